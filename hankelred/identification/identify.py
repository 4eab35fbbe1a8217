"""`identify`: a model from a record in one call, its order chosen by the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._util.arrays import EPS, Array
from .._util.checks import first_index, require_finite, require_option
from .._util.progress import on_terminal
from ..errors import HankelredError, OrderError, ReductionWarning, short_repr
from ..gramians.stability import count_unstable
from ..models.linear_model import LinearModel, Timebase, sampling_time, to_control
from ..reduction.balancing import hankel_singular_values
from ..reduction.interactive import reduction_in_notebook
from ..reduction.norms import difference_norm
from ..reduction.order import checked_order
from ..reduction.reduce import Reduction, make_reduction
from ..reduction.source import UncertifiedSource
from ..simulation.batch_recurrence import simulate_states
from .delays import likely_delays, shifted_records, with_delay_states
from .diagnostics.input_warnings import POOR_FIT, warn_of_feedback, warn_of_undetermined_responses
from .diagnostics.residual_tests import ResidualTest, residual_test
from .diagnostics.uncertainty import Uncertainty, uncertainty
from .hankel_svd import NOISE_NORM
from .linear_fit import FittedModel, mean_square, residuals, with_initial_states
from .missing import without_missing
from .noise.innovations import with_outputs
from .order_selection import (
    MAX_LEADING_ZEROS,
    MAX_ORDER,
    NOISE_FREE,
    SelectedModel,
    estimation_length,
    fits,
    largest_model,
    least_samples,
    select_model,
    usable_horizons,
)
from .output_error import STABLE_RADIUS, on_stability_limit, spectral_radius
from .records import (
    RecordedData,
    as_recorded_data,
    constant_channels,
    label,
    refuse_constant_channels,
    refuse_dependent_inputs,
)
from .summary import draw_residual_test, draw_response_bands, draw_simulation, summary_table
from .unstable_process import (
    UnstableProcess,
    check_simulation,
    far_better_unstable_model,
    integrating_process,
    may_integrate,
    unstable_process,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BRIDGING_PASSES = 2
#: The validation part refutes an integrator whose error there is larger than without it by this factor.
_REFUTED_FACTOR = 1.1
#: How many horizons, the shortest ones, are used with inputs that come later.
_HORIZONS_WITH_DELAYS = 2
#: The order up to which models are tried there in any case.
_ORDER_WITH_DELAYS = 5


@dataclass(frozen=True, eq=False, repr=False)
class IdentifiedModel(Reduction):
    """A :class:`Reduction` made from recorded data, with its fit to them.

    Attributes
    ----------
    hankel_singular_values : ndarray
        Singular values of the pilot model: the largest one estimated from the record, in its units.
    error_bound : float
        Always inf: ``system`` is not a truncation of a known model but is estimated from the data at its
        order, so there is no bound on its error. ``error()`` is the distance to the pilot model.
    noise_floor : float
        The largest contribution of the residual of the model to a singular value.
    fit : ndarray, shape (p,)
        ``1 - |y - yhat| / |y - mean(y)|`` of each simulated output over all records, with estimated initial
        states: 1 is perfect, 0 no better than the mean. Of a process that is unstable in open loop, whose
        output cannot be simulated for long, ``yhat`` is the one-step prediction, here and in
        ``held_back_fit``.
    held_back_fit : ndarray, shape (p,)
        The validation fit: the same on the last 30 % of every record, of the model estimated from the first
        70 % alone. For a step test it is ``1 - |y - yhat| / |y|``, since the output may have settled.
    input_offset, output_offset : ndarray, shape (m,) and (p,)
        ``system`` maps ``u - input_offset`` to ``y - output_offset``.
    input_delays : tuple of int
        Number of samples by which each input was found to be delayed: so many states are the past of the
        input. With an order given, delays are not looked for.
    initial_states : tuple of ndarray, shape (order,)
        One per record.
    """

    @property
    def _selected(self) -> SelectedModel:
        """The model in the units of the scaled records, and these."""
        selected: SelectedModel = self.source.model_of_order(self.order)  # type: ignore[attr-defined]
        return selected

    @property
    def _n_zeros(self) -> int:
        """Number of zeros before every record of a step test."""
        n_zeros: int = self.source.problem.n_zeros  # type: ignore[attr-defined]
        return n_zeros

    @cached_property
    def fit(self) -> Array:
        """Fit of each output over all records, simulated or, of an unstable process, predicted."""
        selected = self._selected
        us, ys = selected.data.inputs, selected.data.outputs
        if selected.innovations is not None:
            return fits(selected.innovations.predictor, with_outputs(us, ys), ys)
        return fits(selected.model, us, ys, n_zeros=self._n_zeros)

    @property
    def held_back_fit(self) -> Array:
        """The validation fit of each output."""
        return self._selected.held_back_fit

    @property
    def input_offset(self) -> Array:
        """What is subtracted from the inputs."""
        return self._selected.data.input_offset

    @property
    def output_offset(self) -> Array:
        """What is subtracted from the outputs."""
        data = self._selected.data
        return data.output_offset + data.output_scale * self._selected.model.offset

    @property
    def input_delays(self) -> tuple[int, ...]:
        """How many samples each input was found to be delayed, beyond what other states describe."""
        return self._selected.delays or (0,) * self.model.n_inputs

    @cached_property
    def initial_states(self) -> tuple[Array, ...]:
        """The estimated initial state of each record."""
        model = self._selected.model
        records = zip(self._selected.data.inputs, model.x0, strict=True)
        return tuple(simulate_states(model.A, model.B, u, x0)[:, self._n_zeros] for u, x0 in records)

    def __repr__(self) -> str:
        return (
            f"<IdentifiedModel of order {self.order}, dt = {self.model.dt}: fit {_figures(self.fit)}, "
            f"held back {_figures(self.held_back_fit)}>"
        )

    def _repr_html_(self) -> str:
        """Return the table and the small spectrum that a notebook shows."""
        fits = (("fit", _figures(self.fit)), ("held-back fit", _figures(self.held_back_fit)))
        return reduction_in_notebook(self, fits)

    def at(self, order: int) -> IdentifiedModel:
        """Return a model of another order, estimated from the same records.

        Parameters
        ----------
        order : int
            Number of states.
        """
        _refuse_static(order)
        return super().at(order)

    def simulated_outputs(self) -> list[Array]:
        """Return the simulated outputs (p, T) of every record that the model was identified from.

        Those of a process that is unstable in open loop move away from the measured ones without bound.
        """
        selected = self._selected
        errors = residuals(selected.model, selected.data.inputs, selected.data.outputs)
        return self._without_errors(errors)

    def _without_errors(self, errors: list[Array]) -> list[Array]:
        """Return the measured outputs (p, T) minus errors in scaled units."""
        return [y - e for y, e in zip(self._records()[1], self._unscaled(errors), strict=True)]

    def _unscaled(self, errors: list[Array]) -> list[Array]:
        return [e[:, self._n_zeros :] * self._selected.data.output_scale[:, None] for e in errors]

    def _bridging_outputs(self, masks: Sequence[Array]) -> list[Array]:
        """Return the outputs (p, T) that gaps are filled with, where `masks` are true.

        They are simulated, or, of an unstable process, predicted from one sample to the next. Other models
        whose simulated output does not describe the measured one cannot fill gaps.

        Raises
        ------
        HankelredError
            The model is unstable and does not describe the outputs.
        """
        selected = self._selected
        if selected.innovations is None:
            if count_unstable(selected.model.A, discrete=True) and not np.all(self.fit > POOR_FIT):
                raise HankelredError(
                    f"missing outputs cannot be bridged: the model of order {self.order} is unstable, and "
                    f"the fit of its simulated output is {_figures(self.fit)}. Cut the record at the gaps, "
                    "and pass the pieces as a list of records"
                )
            return self.simulated_outputs()
        data = selected.data
        predicted = selected.innovations.predicted_outputs(data.inputs, data.outputs, masks)
        filled = []
        for y, prediction, mask in zip(data.outputs, predicted, masks, strict=True):
            # A gap starts from the samples before it; it is moved to meet the one after it.
            after = np.pad(mask[:, :-1], ((0, 0), (1, 0)))
            filled.append(np.where(mask | after, y - prediction, 0.0))
        return self._without_errors(filled)

    def _records(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Return inputs and outputs without the zeros before a step test."""
        data: RecordedData = self.source.problem.data  # type: ignore[attr-defined]
        return (
            tuple(u[:, self._n_zeros :] for u in data.inputs),
            tuple(y[:, self._n_zeros :] for y in data.outputs),
        )

    def _residuals(self) -> list[Array]:
        """Return the errors (p, T) of the simulated output, or of the one-step prediction of `fit`."""
        return self._unscaled(self._selected.errors())

    def residual_test(self) -> ResidualTest:
        """Test whether the residuals are white, and independent of earlier and later inputs.

        They are those of the simulated output; of a process that is unstable in open loop, whose output
        cannot be simulated for long, the errors of the one-step prediction.

        Returns
        -------
        ResidualTest
            With probabilities, correlations, and their bounds.
        """
        return residual_test(self._residuals(), self._records()[0])

    def pole_errors(self) -> tuple[Array, Array]:
        """Return the poles and the standard error of each.

        Returns
        -------
        poles : ndarray, shape (order,), complex
        errors : ndarray, shape (order,)
            Root mean square distance of a pole to the true one, to first order, if the order is right and the
            inputs do not depend on the outputs. The correlation of the residuals in time is taken into
            account. Infinite where the record does not determine a pole.
        """
        poles, errors = self._uncertainty.poles()
        n_delays = self.order - poles.size  # the poles at zero of delays are not estimated
        return np.pad(poles, (0, n_delays)), np.pad(errors, (0, n_delays))

    def response_errors(self, omega: Any) -> tuple[Array, Array]:
        """Return the frequency response and its standard errors.

        Parameters
        ----------
        omega : array_like, shape (K,)
            Angular frequencies in rad/s, up to ``pi / dt``; radians per sample without a sampling time.

        Returns
        -------
        response : ndarray, shape (p, m, K), complex
        errors : ndarray, shape (p, m, K)
            Root mean square distance of each value to the true one, under the conditions of
            :meth:`pole_errors`: it does not contain what an order too small leaves out. Infinite where the
            record does not determine the response, and at a pole, where the response is large but finite,
            from a point a rounding error away.

        Raises
        ------
        HankelredError
            A frequency is no finite real number, or beyond ``pi / dt``.

        Examples
        --------
        >>> import numpy as np, hankelred
        >>> rng = np.random.default_rng(0)
        >>> u = rng.standard_normal(400)
        >>> y = np.convolve(u, 0.8 ** np.arange(60))[:400] + 0.1 * rng.standard_normal(400)
        >>> response, errors = hankelred.identify(u, y, 1).response_errors([0.1])
        >>> bool(abs(response[0, 0, 0] - 1 / (1 - 0.8 * np.exp(-0.1j))) < 4 * errors[0, 0, 0] < 0.2)
        True
        """
        return self._response_errors(_checked_frequencies(omega, self.model.dt))

    def _response_errors(self, omega: Array, *, white: bool = False) -> tuple[Array, Array]:
        """Return the frequency response and its standard errors, with `white` those of white residuals."""
        angles = omega * sampling_time(self.model.dt)
        response, errors = self._uncertainty.response(np.exp(1j * angles), white=white)
        data = self._selected.data
        gains = data.output_scale[:, None, None] / data.input_scale[:, None]
        late = np.exp(-1j * np.outer(self.input_delays, angles))
        return response * gains * late, errors * gains

    @cached_property
    def _uncertainty(self) -> Uncertainty:
        """The covariance of what was estimated, in scaled units and without the states of delays."""
        part = self._selected.undelayed or self._selected
        us, ys = part.data.inputs, part.data.outputs
        if part.innovations is not None:
            return part.innovations.uncertainty(us, ys)
        return uncertainty(part.model, us, ys)

    def plot_response(self, *, ax: Axes | None = None) -> Any:
        """Plot the gain of every output for every input, with a band of two standard errors.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Replaced by the axes drawn. Default: a new figure.

        Returns
        -------
        ndarray of matplotlib Axes, shape (p, m)
        """
        most = np.pi / sampling_time(self.model.dt)
        longest = max(u.shape[1] for u in self._records()[0])
        omega = np.geomspace(2 * most / longest, most, 200)
        names = (self.model.output_labels, self.model.input_labels)
        return draw_response_bands(omega, *self.response_errors(omega), self.model.dt, names, ax)

    def plot_residual_test(self, *, ax: Axes | None = None) -> Any:
        """Plot the correlation of every residual with itself and with each input, and 99 % bounds.

        Values at negative lags are correlations with later inputs, which a closed loop causes.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Replaced by the axes drawn. Default: a new figure.

        Returns
        -------
        ndarray of matplotlib Axes, shape (p, 1 + m)
        """
        return draw_residual_test(
            self.residual_test(), (self.model.output_labels, self.model.input_labels), ax
        )

    def summary(self) -> str:
        """Return a table: fits and residual tests of each output, poles with their standard errors.

        Examples
        --------
        >>> import numpy as np, hankelred
        >>> rng = np.random.default_rng(0)
        >>> u = rng.standard_normal(400)
        >>> y = np.convolve(u, 0.8 ** np.arange(60))[:400] + 0.1 * rng.standard_normal(400)
        >>> print(hankelred.identify(u, y, 1, dt=0.5).summary())
        order 1, dt = 0.5, 400 samples in 1 record
        output     fit  held back  white residual  independent of input
        0       0.9... 0.9... 0... 0...
        pole     standard error  frequency (rad/s)  damping
        0.80... 0.001... 0.44... 1.0000
        """
        return summary_table(
            self.order,
            self.model.dt,
            [u.shape[1] for u in self._records()[0]],
            (self.model.output_labels, self.fit, self.held_back_fit),
            self.residual_test(),
            self.pole_errors(),
        )

    def plot(self, *, ax: Axes | None = None) -> Any:
        """Plot every output as measured and as simulated, and the residual below it.

        Of a process that is unstable in open loop, the one-step prediction is drawn, as in ``fit``.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Replaced by the axes drawn. Default: a new figure. The first record is drawn.

        Returns
        -------
        ndarray of matplotlib Axes, shape (p, 2)
        """
        measured, error = self._records()[1][0], self._residuals()[0]
        predicted = self._selected.innovations is not None
        return draw_simulation(
            measured,
            measured - error,
            self.fit,
            self.model.dt,
            self.model.output_labels,
            ax,
            predicted=predicted,
        )

    def compare(self, u: Any, y: Any = None) -> Comparison:
        """Simulate another record of the same process and compare.

        Of a process that is unstable in open loop, the output is predicted one sample ahead, as in ``fit``.

        Parameters
        ----------
        u : array_like, shape (m, T) or (T,), or control.TimeResponseData
        y : array_like, shape (p, T) or (T,)
            Measured outputs. Only the initial state is fitted to them (least squares over the whole record);
            the offsets are those of the model. The one-step prediction uses those before each sample too.

        Returns
        -------
        Comparison

        Raises
        ------
        HankelredError
            The record does not fit the model, or the simulated output of an unstable model is too large for
            double precision.

        Warns
        -----
        ReductionWarning
            The model has a pole outside the unit circle, but the records it was identified from did not show
            an unstable process beyond doubt: its output is simulated, and errors grow over the record.
        """
        data = as_recorded_data(u, y, self.model.dt)
        if len(data.inputs) != 1:
            raise HankelredError(f"compare takes one record at a time, got {len(data.inputs)}")
        m, p = self.model.n_inputs, self.model.n_outputs
        if (data.n_inputs, data.n_outputs) != (m, p):
            raise HankelredError(
                f"the model has {m} input(s) and {p} output(s), the record {data.n_inputs} and "
                f"{data.n_outputs}"
            )
        selected = self._selected
        us, ys = selected.data.apply(data.inputs, data.outputs)
        model, innovations = selected.model, selected.innovations
        if innovations is not None:
            model, us = innovations.predictor, tuple(with_outputs(us, ys))
        model = with_initial_states(model, us, ys)
        with np.errstate(over="ignore"):
            error = residuals(model, us, ys)[0] * selected.data.output_scale[:, None]
        if innovations is None:
            check_simulation(model.A, error, stacklevel=2)
        return Comparison(
            data.outputs[0] - error,
            fits(model, us, ys),
            data.outputs[0],
            self.model.dt,
            self.model.output_labels,
            innovations is not None,
        )


def _checked_frequencies(omega: Any, dt: Timebase) -> Array:
    try:
        frequencies = np.atleast_1d(np.asarray(omega))
    except ValueError:  # rows of different lengths
        frequencies = np.empty(0, dtype=object)
    if frequencies.dtype.kind not in "iuf" or frequencies.ndim != 1:
        raise HankelredError(f"omega must be real frequencies in rad/s, shape (K,), got {short_repr(omega)}")
    require_finite(frequencies, "omega", HankelredError, "every frequency must be finite")
    nyquist = np.pi / sampling_time(dt)
    at = first_index(np.abs(frequencies) > nyquist * (1 + 1e-9))
    if at is not None:
        raise HankelredError(
            f"omega[{at[0]}] is {frequencies[at]:.6g}, beyond the Nyquist frequency pi / dt = {nyquist:.6g}; "
            "omega is in rad/s (2 pi times Hz), in radians per sample where dt is True"
        )
    return frequencies.astype(float)


def _refuse_static(order: Any) -> None:
    if checked_order(order) < 1:
        raise OrderError(
            f"order must be at least 1, got {order}: a model without states is a static gain; fit it by "
            "least squares"
        )


def _figures(values: Array) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The simulated output of a model for a record, and its fit to the measured one.

    Attributes
    ----------
    output : ndarray, shape (p, T)
        Simulated output, offsets included; of a process that is unstable in open loop, the one-step
        prediction.
    fit : ndarray, shape (p,)
        ``1 - |y - output| / |y - mean(y)|`` of each output.
    measured : ndarray, shape (p, T)
    dt : True or float
    output_labels : tuple of str, or None
    predicted : bool
        Whether the output is the one-step prediction from the measured inputs and outputs.
    """

    output: Array
    fit: Array
    measured: Array
    dt: Timebase = True
    output_labels: tuple[str, ...] | None = None
    predicted: bool = False

    def plot(self, *, ax: Axes | None = None) -> Any:
        """Plot every output as measured and as simulated or predicted, and the residual below it.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Replaced by the axes drawn. Default: a new figure.

        Returns
        -------
        ndarray of matplotlib Axes, shape (p, 2)
        """
        return draw_simulation(
            self.measured, self.output, self.fit, self.dt, self.output_labels, ax, predicted=self.predicted
        )

    def __repr__(self) -> str:
        kind = "one-step prediction" if self.predicted else "simulation"
        return f"<Comparison of a {kind} over {self.output.shape[1]} samples: fit {_figures(self.fit)}>"


def identify(
    u: Any,
    y: Any = None,
    order: int | None = None,
    *,
    dt: Timebase = True,
    offsets: bool = True,
    stable: bool = True,
    missing: Literal["refuse", "bridge"] = "refuse",
    progress: bool | None = None,
) -> IdentifiedModel:
    """Identify a state-space model from recorded inputs and outputs, in one call.

    Several subspace methods and a high-order ARX model give candidate models of every order, which are
    refined by minimizing the error of the simulated output. The candidates are estimated from the first 70 %
    of every record and compared on the last 30 %, the validation part. The order is that of Schwarz's
    information criterion, over models of every order with an autoregressive disturbance, estimated from the
    whole record. Where the validation part clearly prefers another one, it is used instead: the smallest
    order whose validation error exceeds the best by no more than the uncertainty of the comparison.

    Parameters
    ----------
    u : array_like, shape (m, T) or (T,), or list of them, or control.TimeResponseData
        Inputs, time last. A list of arrays is several records. Inputs and outputs may be tables of pandas,
        xarray or polars too, whose names and times are used.
    y : array_like, shape (p, T) or (T,), or list of them
        Outputs; leave them out with ``TimeResponseData``, whose dt and names are used.
    order : int, optional
        Number of states. Without it the order is chosen from the data, up to 12.
    dt : True or float
        Sampling time in seconds.
    offsets : bool
        Estimate unknown constant levels of inputs and outputs (the default). With False all signals are
        zero before the record, so that an input that is constant from the first sample on is a step. A record
        in which all inputs are constant and all outputs start at zero is taken as a step test by default too.
        The level of the inputs is their mean; of an integrating process it is estimated.
    stable : bool
        Return a stable model (the default). An integrator then becomes a pole just inside the unit circle.
        With False poles may lie anywhere.
    missing : {"refuse", "bridge"}
        What to do with NaN: an error (the default), or "bridge": records are cut where inputs are missing,
        and missing outputs are filled by the model itself, with a warning that states how many. The model
        simulates them; of a process that is unstable in open loop it predicts them (with ``stable=False``).
    progress : bool, optional
        Show a progress bar on stderr. By default it is shown if stderr is a terminal.

    Returns
    -------
    IdentifiedModel
        A :class:`Reduction`; ``system`` is a ``control.StateSpace``.

    Raises
    ------
    HankelredError
        The records do not fit together, their axes are swapped, a sample is NaN or complex, a channel is
        constant, inputs are linearly dependent, or there are too few samples; missing outputs cannot be
        bridged, because the model is unstable and its simulated output is unlike the measured one.
    OrderError
        The order is not a whole number >= 1.

    Warns
    -----
    ReductionWarning
        The data do not determine a model of the requested order, the model has a pole on the stability
        limit, the process looks unstable in open loop, or the model explains next to nothing of an output in
        the validation part; the record does not determine a response, whose two standard errors are larger
        than it at the frequencies named; the input seems to depend on the output (feedback); or samples were
        bridged.

    Notes
    -----
    Sources: Van Overschee and De Moor, Subspace Identification for Linear Systems (1996); Ljung, System
    Identification (1999); McKelvey, Helmersson and Ribarits, Automatica 40 (2004).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> u = np.random.default_rng(0).standard_normal(300)
    >>> y = np.zeros(300)
    >>> for t in range(1, 300):
    ...     y[t] = 0.8 * y[t - 1] + u[t - 1]
    >>> model = hankelred.identify(u, y + 20.0, dt=0.1)
    >>> model.order, model.system.dt
    (1, 0.1)
    >>> np.round(model.system.poles().real, 9), np.round(model.fit, 6)
    (array([0.8]), array([1.]))
    """
    require_option(missing, ("refuse", "bridge"), "missing", HankelredError)
    data = as_recorded_data(u, y, dt, allow_missing=missing == "bridge")
    if data.is_complex:
        raise HankelredError(
            "identify works on real records, and these are complex; use markov_parameters and realize instead"
        )
    shown = on_terminal() if progress is None else progress
    gaps = without_missing(data) if missing == "bridge" else None
    if gaps is None or not (gaps.n_missing or gaps.n_left_out):
        model = _identified(data, order, offsets, stable, shown)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReductionWarning)  # those of the last pass count
            model = _identified(gaps.data, order, offsets, stable, shown)
        for bridging in range(_BRIDGING_PASSES):
            data = gaps.bridged_by(model._bridging_outputs(gaps.masks))
            with warnings.catch_warnings():
                if bridging < _BRIDGING_PASSES - 1:
                    warnings.simplefilter("ignore", ReductionWarning)
                # delays are looked for only where the order is not given
                again = order if model._selected.delays else model.order
                model = _identified(data, again, offsets, stable, shown)
        warnings.warn(
            f"{gaps.n_missing} missing value(s) of outputs were bridged by the model, and {gaps.n_left_out} "
            f"sample(s) with missing inputs, or beside them, left out ({len(data.inputs)} piece(s) remain); "
            "the fits count bridged values too",
            ReductionWarning,
            stacklevel=2,
        )
    return model


def _identified(
    data: RecordedData, order: int | None, offsets: bool, stable: bool, shown: bool
) -> IdentifiedModel:
    n_zeros = 0
    if constant_channels(data.inputs) and (not offsets or _is_step_test(data)):
        refuse_constant_channels(data, from_rest=True)
        data, n_zeros, offsets = *_with_leading_zeros(data), False
    refuse_constant_channels(data)
    refuse_dependent_inputs(data, offsets=offsets)
    if order is not None:
        _refuse_static(order)
    lengths = [estimation_length(x.shape[1], n_zeros) for x in data.inputs]
    channels = data.n_inputs + data.n_outputs
    horizons = usable_horizons(lengths, channels, data.n_outputs, order)
    if not horizons:
        raise HankelredError(
            f"too few samples: {data.n_samples - n_zeros * len(lengths)} in {len(lengths)} record(s) with "
            f"{channels} channels"
            + (f" for order {order}" if order is not None else "")
            + f"; about {least_samples(channels, data.n_outputs, order)} in one piece are needed"
        )
    max_order = MAX_ORDER if order is None else max(MAX_ORDER, order)
    problem = IdentificationProblem(data, tuple(horizons), offsets, stable, n_zeros, max_order)
    chosen = problem.best_model(progress=shown) if order is None else problem.model(order, progress=shown)
    source = IdentificationSource(problem, chosen)
    model = make_reduction(source, source.chosen_order, IdentifiedModel)
    _warn_of_order(chosen, order)
    _warn_of_poor_fit(model, data)
    warn_of_undetermined_responses(model, data, offsets=offsets)
    feedback = not n_zeros and warn_of_feedback(model, data)
    if stable:
        _warn_of_stability(problem, chosen, order, feedback)
    return model


def _warn_of_order(chosen: SelectedModel, order: int | None) -> None:
    n = chosen.model.order
    if order is not None and n < order:
        warnings.warn(
            f"order {order} was requested, but the record determines only {n} states; the model has that "
            "order",
            ReductionWarning,
            stacklevel=4,
        )


def _warn_of_stability(
    problem: IdentificationProblem, chosen: SelectedModel, order: int | None, feedback: bool
) -> None:
    """Warn of a stable model of a process that is unstable in open loop, or may be."""
    on_limit = on_stability_limit(chosen.model.A)
    process = problem.unstable_process(problem.orders()) if on_limit or feedback else None
    # a larger order is no sign of an unstable process if the user asked for a smaller one
    most = problem.max_order if order is None else order
    better = problem.far_better_unstable_model(chosen, most) if process is None else None
    if process is not None:
        warnings.warn(
            f"the process looks unstable in open loop: a model of order {process.order} that predicts one "
            f"step ahead has a pole of modulus {abs(process.pole):.5f} +- {process.error:.2g} (standard "
            "error); the stable model cannot describe it. Pass stable=False for a model with this pole",
            ReductionWarning,
            stacklevel=4,
        )
    elif better is not None:
        share = math.sqrt(better.loss / mean_square(chosen.errors()))
        too_small, larger = "", ""
        if order is not None:
            too_small, larger = ", or the order is too small", "a larger order, or "
        warnings.warn(
            f"the process looks unstable in open loop{too_small}: a model of order {better.order} with a "
            f"pole of modulus about {spectral_radius(better.A):.6g} leaves {share:.2g} of the error of the "
            f"stable model. Pass {larger}stable=False for a model with this pole",
            ReductionWarning,
            stacklevel=4,
        )
    elif on_limit:
        warnings.warn(
            f"the model of order {chosen.model.order} has a pole on the stability limit "
            f"({STABLE_RADIUS:.7g}): the record contains an integrator or a slow drift. Compare other orders "
            "on another record, or pass stable=False",
            ReductionWarning,
            stacklevel=4,
        )


def _warn_of_poor_fit(model: IdentifiedModel, data: RecordedData) -> None:
    for i, held_back in enumerate(model.held_back_fit):
        if held_back < POOR_FIT:
            warnings.warn(
                f"the model explains next to nothing of {label(data.output_labels, 'output', i)}: its "
                f"held-back fit is {held_back:.3g}. Are inputs and outputs swapped, is the order too small, "
                "or the output driven by something else?",
                ReductionWarning,
                stacklevel=4,
            )


def _is_step_test(data: RecordedData) -> bool:
    """Whether every input is constant and every output starts at zero, to within its scatter.

    No levels are then estimated: with zero input and output before it, the record is a step response.
    """

    def starts_at_zero(y: Array) -> bool:
        size = np.ptp(y)
        last = y[-max(y.size // 4, 2) :]
        scatter = float(np.sqrt(np.mean(np.diff(last) ** 2) / 2)) if y.size > 1 else 0.0
        return bool(np.abs(y[0]) <= max(min(3 * scatter, 0.05 * size), 1e-9 * size))

    return len(constant_channels(data.inputs)) == data.n_inputs and all(
        starts_at_zero(channel) for y in data.outputs for channel in y
    )


def _with_leading_zeros(data: RecordedData) -> tuple[RecordedData, int]:
    """Put zeros before every record; return also how many."""
    n_zeros = min(MAX_LEADING_ZEROS, *(x.shape[1] for x in data.inputs))

    def padded(records: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(np.pad(x, ((0, 0), (n_zeros, 0))) for x in records)

    return replace(data, inputs=padded(data.inputs), outputs=padded(data.outputs)), n_zeros


@dataclass(frozen=True)
class IdentificationProblem:
    """Records, and the options with which models of any order are estimated from them."""

    data: RecordedData
    horizons: tuple[int, ...]
    offsets: bool
    stable: bool
    #: number of zeros before every record of a step test
    n_zeros: int
    max_order: int

    def best_model(self, *, progress: bool = False) -> SelectedModel:
        """Estimate a model of the order that the data choose."""
        return self._select(self.orders(), (), progress)

    def model(self, order: int, *, progress: bool = False) -> SelectedModel:
        """Estimate a model of this order, or of the largest that the records determine."""
        return self._select([order], self.larger_orders(order, step=2), progress)

    def largest_model(self, chosen: SelectedModel) -> LinearModel:
        """Return the model of the largest order, or the chosen one where it has other unstable poles.

        Noise moves poles of a large model outside the unit circle, and its spectrum would then say nothing
        about the chosen one.
        """
        orders = self.larger_orders(chosen.model.order)
        model = largest_model(chosen, orders, self.horizons, offsets=self.offsets, stable=self.stable)
        if count_unstable(model.A, discrete=True) != count_unstable(chosen.model.A, discrete=True):
            model = chosen.model
        return LinearModel(*chosen.data.unscaled(model), self.data.dt)

    def orders(self) -> list[int]:
        """Return the orders that the records are long enough for."""
        # with more parameters than a quarter of the samples the validation part cannot compare models
        per_state = self.data.n_inputs + self.data.n_outputs
        samples = self.data.n_samples - self.n_zeros * len(self.data.inputs)
        limit = samples * self.data.n_outputs // (4 * per_state)
        return list(range(1, max(2, min(self.max_order, limit) + 1)))

    def larger_orders(self, order: int, step: int = 1) -> list[int]:
        """Return every `step`-th of the orders above one."""
        return [n for n in self.orders() if n > order and (n - order) % step == 0]

    def unstable_process(self, orders: Sequence[int]) -> UnstableProcess | None:
        """Return a model of one of these orders if the records show an unstable process."""
        if self.n_zeros:
            return None
        return unstable_process(self.data.inputs, self.data.outputs, orders, offsets=self.offsets)

    def far_better_unstable_model(self, chosen: SelectedModel, max_order: int) -> FittedModel | None:
        """Return an unstable model that explains the records far better than the chosen one, if any."""
        if self.n_zeros:
            return None
        return far_better_unstable_model(chosen, self.horizons, max_order, offsets=self.offsets)

    def _select(self, orders: list[int], start_orders: Sequence[int], progress: bool) -> SelectedModel:
        chosen = select_model(
            self.data.inputs,
            self.data.outputs,
            orders,
            self.horizons,
            start_orders,
            offsets=self.offsets,
            stable=self.stable,
            n_zeros=self.n_zeros,
            progress=progress,
        )
        if chosen.model.loss < NOISE_FREE:
            return self._with_input_levels(chosen, orders) or chosen
        if not self.stable:
            process = self.unstable_process(orders)
            if process is not None:
                return process.selected
        if len(orders) > 1 and not self.n_zeros:
            delayed = self._with_delays(chosen, progress)
            if delayed is not None and delayed.rating() < chosen.rating():
                chosen = delayed
        return self._with_input_levels(chosen, orders) or chosen

    def _with_input_levels(self, chosen: SelectedModel, orders: Sequence[int]) -> SelectedModel | None:
        """Return a model of an integrating process, if it is better although it has more parameters."""
        if not self.offsets or self.n_zeros or not may_integrate(chosen):
            return None
        us, ys = self.data.inputs, self.data.outputs
        noise_free = chosen.model.loss < NOISE_FREE
        integrating = integrating_process(
            us, ys, orders, self.horizons, stable=self.stable, noise_free=noise_free
        )
        if integrating is None:
            return None
        if noise_free:
            return integrating if integrating.model.order < chosen.model.order else None
        levels = self.data.n_inputs * math.log(self.data.n_samples)
        if integrating.rating() + levels >= chosen.rating():
            return None
        error, previous = (1 - float(np.mean(s.held_back_fit)) for s in (integrating, chosen))
        if error > _REFUTED_FACTOR * previous:
            return None
        # the integrator would only be the stable model nearest to a process that is unstable in open loop
        return integrating if self.unstable_process(orders) is None else None

    def _with_delays(self, chosen: SelectedModel, progress: bool) -> SelectedModel | None:
        """Return a model with delays of the inputs as states, if there seem to be any."""
        us, ys = self.data.inputs, self.data.outputs
        m, p = self.data.n_inputs, self.data.n_outputs
        delays = likely_delays(chosen.data.inputs, chosen.data.outputs)
        lengths = [estimation_length(u.shape[1] - max(delays), 0) for u in us]
        horizons = usable_horizons(lengths, m + p, p, None)[:_HORIZONS_WITH_DELAYS]
        if not any(delays) or not horizons:
            return None
        # the order of a model without delays contains theirs, as far as they show
        most = min(chosen.model.order, max(chosen.model.order - max(delays), _ORDER_WITH_DELAYS)) + 1
        undelayed = select_model(
            *shifted_records(us, ys, delays),
            [n for n in self.orders() if n <= most],
            horizons,
            offsets=self.offsets,
            stable=self.stable,
            progress=progress,
        )
        inputs, outputs = undelayed.data.apply(us, ys)
        data = replace(undelayed.data, inputs=inputs, outputs=outputs)
        model = with_delay_states(undelayed.model, delays, inputs, outputs)
        return replace(undelayed, model=model, data=data, undelayed=undelayed, delays=delays)


class IdentificationSource(UncertifiedSource):
    """The source of identified models: the chosen one, and those of other orders, estimated on first use."""

    method = "identification"
    solver = "qr"
    full: LinearModel | None = None
    residual = 0.0

    def __init__(self, problem: IdentificationProblem, chosen: SelectedModel) -> None:
        self.problem, self.chosen = problem, chosen
        self.chosen_order = chosen.model.order
        self._models = {self.chosen_order: chosen}

    def model_of_order(self, order: int) -> SelectedModel:
        """Return the model of an order, estimated on first use."""
        if order not in self._models:
            self._models[order] = self.problem.model(order)
        return self._models[order]

    @cached_property
    def pilot(self) -> LinearModel:
        """The largest model, whose Hankel singular values are shown."""
        return self.problem.largest_model(self.chosen)

    @cached_property
    def hankel_singular_values(self) -> Array:
        """Hankel singular values of the pilot model."""
        return hankel_singular_values(self.pilot.as_tuple(), dt=self.problem.data.dt)

    @property
    def unstable_order(self) -> int:
        """Number of poles of the chosen model on or outside the unit circle."""
        return count_unstable(self.chosen.model.A, discrete=True)

    @cached_property
    def noise_floor(self) -> float:
        """The largest contribution of the residual to a singular value."""
        data, scaled = self.problem.data, self.chosen.data
        residual = np.concatenate(self.chosen.errors(), axis=1)
        size = np.sqrt(np.mean(residual**2, axis=1)) * scaled.output_scale
        error = size.max() / (scaled.input_scale.min() * np.sqrt(data.n_samples))
        width = max(self.problem.horizons) * max(data.n_inputs, data.n_outputs)
        floor = NOISE_NORM * error * np.sqrt(width)
        values = self.hankel_singular_values
        # The states of an order requested, or chosen from the data, are not noise.
        if np.count_nonzero(values > floor) < self.chosen_order:
            return float(values.size * EPS * values[np.isfinite(values)].max(initial=0.0))
        return float(floor)

    def truncate(self, order: int) -> tuple[LinearModel, None, None]:
        """Return the model of an order; there is no projection."""
        selected, data = self.model_of_order(order), self.problem.data
        matrices = selected.data.unscaled(selected.model)
        labels = data.input_labels, data.output_labels
        return LinearModel(*matrices, data.dt, to_control, *labels), None, None

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of the pilot model minus the reduced one."""
        return difference_norm(self.pilot, reduced, norm)
