"""`fit_frequency_response`: a state space from a measured or computed frequency response."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._util.arrays import EPS, Array
from ..._util.progress import on_terminal
from ...errors import HankelredError, OrderError, ReductionWarning
from ...gramians.stability import count_unstable
from ...models.frequency_response import largest_singular_value
from ...models.linear_model import LinearModel, Timebase, to_control
from ...plotting.response import draw_fitted_response
from ...reduction.balancing import hankel_singular_values
from ...reduction.interactive import reduction_in_notebook
from ...reduction.norms import difference_norm
from ...reduction.order import checked_order
from ...reduction.plots import frequency_axis, gain_label, response
from ...reduction.reduce import Reduction, make_reduction
from ...reduction.source import UncertifiedSource
from ..records import label
from .fitter import FREQUENCIES_PER_STATE, MAX_ORDER, ResponseFitter, Surplus
from .response_data import ResponseData, as_response_data
from .sections import Fit
from .starts import NYQUIST_IMAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: There is a warning if a requested order is larger than this times the number of states that count by
#: Schwarz's criterion, and a chosen order is lowered to it. The criterion leaves out
#: states that are real but below the noise: of the 48 of `build` at a noise of 1e-3 it counts 38 to 40.
_SURPLUS = 1.3
#: Fit below which there is a warning.
_POOR_FIT = 0.1
#: There is a warning if free poles have less than this share of the squared error of stable ones ...
_FREE_POLES_BETTER = 0.25
#: ... and the stable ones more than this error, relative to the response.
_VISIBLE_ERROR = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class FrequencyFit(Reduction):
    """A :class:`Reduction` made from a frequency response, with its fit to it.

    Attributes
    ----------
    hankel_singular_values : ndarray
        Those of the pilot model, which has more poles than ``system``, in the units of the response.
    error_bound : float
        Always inf: ``system`` is not a truncation of a known model. ``error()`` is the distance to the pilot
        model.
    noise_floor : float
        The largest singular value of the residual over the frequencies. The singular values of the model
        are uncertain by this much (if the residual is as small between the frequencies). It is rounding
        instead, and no measure of this uncertainty, where fewer singular values than states are above the
        residual.
    fit : ndarray, shape (p,)
        ``1 - |G - Ghat| / |G|`` of each output over all inputs and frequencies: 1 is perfect.
    residual : float
        ``|G - Ghat| / |G|`` over all outputs, inputs and frequencies.
    """

    @cached_property
    def fit(self) -> Array:
        """``1 - |G - Ghat| / |G|`` of each output over all inputs and frequencies."""
        error, data = self._error_and_data
        spread = np.linalg.norm(data, axis=(0, 2))
        ratio = np.divide(
            np.linalg.norm(error, axis=(0, 2)), spread, out=np.ones_like(spread), where=spread > 0
        )
        return 1 - ratio

    @cached_property
    def residual(self) -> float:
        """``|G - Ghat| / |G|`` over all outputs, inputs and frequencies."""
        error, data = self._error_and_data
        return float(np.linalg.norm(error) / np.linalg.norm(data))

    @property
    def _error_and_data(self) -> tuple[Array, Array]:
        """The response minus that of the model, and the response, both (N, p, m) and of size one."""
        source: FrequencyFitSource = self.source  # type: ignore[assignment]
        return source.model_error(self.order) / source.size, source.data.response / source.size

    def __repr__(self) -> str:
        return f"<FrequencyFit of order {self.order}, dt = {self.model.dt}: fit {self._figures()}>"

    def _repr_html_(self) -> str:
        """Return the table and the small spectrum that a notebook shows."""
        return reduction_in_notebook(self, (("fit", self._figures()),))

    def _figures(self) -> str:
        return ", ".join(f"{value:.6g}" for value in self.fit)

    def at(self, order: int) -> FrequencyFit:
        """Return a model of another order, fitted to the same response.

        Parameters
        ----------
        order : int
            Number of states.
        """
        source: FrequencyFitSource = self.source  # type: ignore[assignment]
        _check_order(order, source.data)
        return make_reduction(source, source.attainable(checked_order(order)), FrequencyFit)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Plot the gain of the response, of the model, and of their difference.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Default: the axes of a new figure.

        Returns
        -------
        matplotlib Axes
            With several inputs and outputs the curves are largest singular values.
        """
        source: FrequencyFitSource = self.source  # type: ignore[assignment]
        data = source.data
        positive = data.omega[data.omega > 0]
        fine = np.unique(np.concatenate([np.geomspace(positive[0], positive[-1], 1000), positive]))
        step, frequency_label = frequency_axis(self.model)
        return draw_fitted_response(
            data.omega,
            largest_singular_value(data.response),
            largest_singular_value(source.model_error(self.order)),
            fine,
            largest_singular_value(response(self.model, fine * step)),
            f"order {self.order}, fit {', '.join(f'{value:.4g}' for value in self.fit)}",
            ax,
            frequency_label=frequency_label,
            gain_label=gain_label(self.model),
        )


def fit_frequency_response(
    data: Any,
    order: int | None = None,
    *,
    omega: Any = None,
    dt: Timebase = 0,
    stable: bool = True,
    progress: bool | None = None,
) -> FrequencyFit:
    """Fit a state-space model to a frequency response.

    Parameters
    ----------
    data : control.FrequencyResponseData, or array_like, shape (p, m, N) or (N,), complex
        The response, frequency last. A ``skrf.Network`` (its scattering parameters) is accepted too.
    order : int, optional
        Number of states. Without it the smallest order is chosen that predicts held-out frequencies (every
        fourth one) as well as any other up to 80 (or a third of the number of frequencies, times the smaller
        number of channels), to within the uncertainty of the comparison.
    omega : array_like, shape (N,)
        Angular frequencies in rad/s, not negative and increasing (radians per sample where dt is True).
        Leave it out where the data have their own.
    dt : 0, True or float
        Timebase of the model; with a sampling time the frequencies go up to pi / dt at most. The timebase of
        ``FrequencyResponseData`` is used if it has one.
    stable : bool
        Return a stable model (the default). With False poles may lie anywhere.
    progress : bool, optional
        Show a progress bar on stderr. By default it is shown if stderr is a terminal.

    Returns
    -------
    FrequencyFit
        A :class:`Reduction`; ``system`` is a ``control.StateSpace`` with the names of the data, in modal
        coordinates.

    Raises
    ------
    HankelredError
        The shapes do not fit, a value is not finite, the response is real, the frequencies are negative, not
        increasing or beyond the Nyquist frequency, or there are too few for the order.
    OrderError
        The order is not a whole number >= 1.

    Warns
    -----
    ReductionWarning
        The response does not determine a model of the requested order, or determines fewer states up to its
        noise; the model explains next to nothing of an output, or poles in the right half plane would fit far
        better.

    Notes
    -----
    Initial models come from Loewner matrices, from the relocation of poles (vector fitting) and from balanced
    truncation of a larger relocated model. They are refined by least squares, every output relative to its
    size; where the residuals show the noise of the data, they are weighted with its inverse. Sources: Mayo
    and Antoulas, Linear Algebra Appl. 425 (2007); Gustavsen and Semlyen, IEEE Trans. Power Delivery 14
    (1999); Golub and Pereyra, SIAM J. Numer. Anal. 10 (1973).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> omega = np.geomspace(0.1, 10, 50)
    >>> response = 1 / (1j * omega + 1) + 2 / ((1j * omega) ** 2 + 0.2j * omega + 4)
    >>> model = hankelred.fit_frequency_response(response, omega=omega)
    >>> model.order, model.system.dt
    (3, 0)
    >>> bool(model.fit[0] > 1 - 1e-9)
    True
    >>> np.round(np.sort_complex(model.system.poles()), 4)
    array([-1. +0.j    , -0.1-1.9975j, -0.1+1.9975j])
    """
    checked = as_response_data(data, omega, dt)
    _check_order(1 if order is None else order, checked)
    source = FrequencyFitSource(checked, stable)
    requested = order is not None
    if order is None:
        shown = on_terminal() if progress is None else progress
        order = source.fitter.choose_order(_trial_orders(_largest_order(checked)), progress=shown)
    source.chosen_order = source.attainable(checked_order(order))
    if not requested:
        # held-out frequencies between the others do not refute states that follow the noise
        surplus = _surplus(source)
        if surplus is not None:
            source.chosen_order = source.attainable(surplus.kept.sections.order)
    result = make_reduction(source, source.chosen_order, FrequencyFit)
    if not (requested and _warn_of_surplus(source)):
        _warn(result, source)
    return result


def _check_order(order: Any, data: ResponseData) -> None:
    number = checked_order(order)
    if number < 1:
        raise OrderError(
            f"order must be at least 1, got {order}: a model without states is a static gain; average the "
            "response"
        )
    if number > _most_states(data):
        N, p, m = data.response.shape
        raise HankelredError(
            f"too few frequencies: {N} of {p} output(s) and {m} input(s) determine at most "
            f"{max(_most_states(data), 0)} states, and order {number} was requested; measure at more "
            "frequencies"
        )


def _most_states(data: ResponseData) -> int:
    """Return the most states that as many real equations as the data have can determine."""
    N, p, m = data.response.shape
    small = min(p, m)
    # each output: 2 N m equations for n + m unknowns; all together: n (p + m) + p m unknowns
    return min(2 * N * small - small, (2 * N * p * m - p * m) // (p + m), N * small - 1, (N // 2) * small * 2)


def _largest_order(data: ResponseData) -> int:
    N, p, m = data.response.shape
    return min(MAX_ORDER, _most_states(data), max(N * min(p, m) // FREQUENCIES_PER_STATE, 1))


def _trial_orders(largest: int) -> list[int]:
    """Return orders in steps that grow with them."""
    orders = [1]
    while orders[-1] < largest:
        orders.append(min(orders[-1] + max(1, orders[-1] // 6), largest))
    return orders


def _surplus(source: FrequencyFitSource) -> Surplus | None:
    """Return the fit without the states that the response does not determine, if these are many."""
    surplus = source.fitter.without_surplus(source.fit(source.chosen_order))
    if surplus is None or surplus.full.sections.order <= _SURPLUS * surplus.kept.sections.order:
        return None
    return surplus


def _warn_of_surplus(source: FrequencyFitSource) -> bool:
    """Warn of states that the response does not determine; return whether there are any."""
    surplus = _surplus(source)
    if surplus is None:
        return False
    count, order = surplus.kept.sections.order, surplus.full.sections.order
    kept_error, full_error = (math.sqrt(fit.loss / surplus.energy) for fit in (surplus.kept, surplus.full))
    warnings.warn(
        f"by Schwarz's criterion the response determines only {count} of the {order} states: without the "
        f"others the error, weighted by the inverse of the noise, is {kept_error:.4g} "
        f"instead of {full_error:.4g}. Do not rely on the poles of the others, nor on "
        f"noise_floor; compare with order={count}",
        ReductionWarning,
        stacklevel=3,
    )
    return True


def _warn(result: FrequencyFit, source: FrequencyFitSource) -> None:
    if source.stable and result.residual > _VISIBLE_ERROR:
        better = source.free_poles_are_better()
        if better is not None:
            warnings.warn(
                f"the stable model leaves {result.residual:.2g} of the response, and poles in the right half "
                f"plane would leave {better:.2g} (in the pilot model): the process may be unstable or its "
                "frequencies or phases may be wrong; pass stable=False to allow such poles",
                ReductionWarning,
                stacklevel=3,
            )
            return
    for i, fit in enumerate(result.fit):
        if fit < _POOR_FIT:
            warnings.warn(
                f"the model explains next to nothing of {label(source.data.output_labels, 'output', i)}: its "
                f"fit is {fit:.3g}; is the order too small, or the response noise only?",
                ReductionWarning,
                stacklevel=3,
            )


class FrequencyFitSource(UncertifiedSource):
    """The source of models fitted to a frequency response, each order on first use."""

    method = "frequency_fit"
    solver = "qr"
    full: LinearModel | None = None
    #: that of the equations; the error of each order is the `residual` of its FrequencyFit
    residual = 0.0

    def __init__(self, data: ResponseData, stable: bool) -> None:
        self.data, self.stable = data, stable
        axis = data.axis
        inside = axis[(axis > 0) & (axis < (NYQUIST_IMAGE if data.is_discrete else np.inf))]
        #: unit of frequency, and of the response
        self.frequency = float(np.sqrt(inside[0]) * np.sqrt(inside[-1])) if inside.size else 1.0
        peak = float(np.abs(data.response).max())
        self.size = float(np.sqrt(np.mean(np.abs(data.response / peak) ** 2))) * peak
        _, p, m = data.response.shape
        #: the response is transposed where it has more inputs than outputs
        self.transposed = m > p
        response = data.response / self.size
        if self.transposed:
            response = response.transpose(0, 2, 1)
        self.fitter = ResponseFitter(axis / self.frequency, response, stable)
        self.chosen_order = 0
        self._fits: dict[int, Fit] = {}

    def truncate(self, order: int) -> tuple[LinearModel, None, None]:
        """Return the model of an order; there is no projection."""
        fit = self.fit(order)
        return self._model(fit.sections.A, fit.sections.B, fit.C, fit.D), None, None

    def fit(self, order: int) -> Fit:
        """Return the fit of an order to the scaled response, computed on first use."""
        if order not in self._fits:
            self._fits[order] = self.fitter.fit(order)
        return self._fits[order]

    def attainable(self, order: int) -> int:
        """Return the order that the data determine, up to the requested one; warn if it is smaller."""
        attained = order
        # the fit of the order that is left may have fewer states again
        while (states := self.truncate(attained)[0].n_states) < attained:
            attained = states
        if attained < order:
            warnings.warn(
                f"order {order} was requested, but the response determines only {attained} states; the model "
                "has that order",
                ReductionWarning,
                stacklevel=3,
            )
        return attained

    def _model(self, A: Array, B: Array, C: Array, D: Array) -> LinearModel:
        """Undo the scaling, the transposition, and the map of discrete time."""
        A, C, D = A * self.frequency, C * (self.size * self.frequency), D * self.size
        if self.transposed:
            A, B, C, D = A.T, C.T, B.T, D.T
        # equal norms of B and C
        b, c = float(np.linalg.norm(B)), float(np.linalg.norm(C))
        if b > 0 and c > 0:
            scale = math.sqrt(c) / math.sqrt(b)
            B, C = B * scale, C / scale
        if self.data.is_discrete:
            eye = np.eye(A.shape[0])
            inverse = np.linalg.inv(eye - A)
            D = D + C @ inverse @ B
            A, B, C = (eye + A) @ inverse, math.sqrt(2) * inverse @ B, math.sqrt(2) * C @ inverse
        labels = self.data.input_labels, self.data.output_labels
        return LinearModel(A, B, C, D, self.data.dt, to_control, *labels)

    @cached_property
    def pilot(self) -> LinearModel:
        """The larger model, whose Hankel singular values are shown."""
        pilot = self.fitter.pilot(self.chosen_order, self.fitter.by_output.weights(self.fitter.response))
        if pilot is None:
            return self.truncate(self.chosen_order)[0]
        A, B, C, D = pilot.state_space()
        return self._model(A, B, C, D)

    @cached_property
    def hankel_singular_values(self) -> Array:
        """Hankel singular values of the pilot model."""
        values = hankel_singular_values(self.pilot.as_tuple(), dt=self.data.dt)
        if values.size < self.chosen_order:
            values = hankel_singular_values(self.truncate(self.chosen_order)[0].as_tuple(), dt=self.data.dt)
        return values

    @property
    def unstable_order(self) -> int:
        """Number of poles of the chosen model on or outside the stability boundary."""
        model = self.truncate(self.chosen_order)[0]
        return count_unstable(model.A, discrete=model.is_discrete)

    def model_error(self, order: int) -> Array:
        """Return the response minus that of the model of an order, (N, p, m)."""
        model = self.truncate(order)[0]
        step, _ = frequency_axis(model)
        return np.asarray(self.data.response - response(model, self.data.omega * step))

    @cached_property
    def noise_floor(self) -> float:
        """The largest singular value of the residual of the chosen model."""
        floor = float(largest_singular_value(self.model_error(self.chosen_order)).max())
        values = self.hankel_singular_values
        # The states of an order that was requested, or chosen at held-out frequencies, are not noise.
        if np.count_nonzero(values > floor) < self.chosen_order:
            return float(
                min(values.size * EPS * values[np.isfinite(values)].max(initial=0.0), values[-1] / 2)
            )
        return floor

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of the pilot model minus the reduced one."""
        return difference_norm(self.pilot, reduced, norm)

    def free_poles_are_better(self) -> float | None:
        """Return the relative error of a pilot with free poles, if it is far below that of stable ones."""
        weights = self.fitter.by_output.weights(self.fitter.response)
        stable = self.fitter.pilot(self.chosen_order, weights)
        free = self.fitter.pilot(self.chosen_order, weights, stable=False)
        if stable is None or free is None or free.loss >= _FREE_POLES_BETTER * stable.loss:
            return None
        return math.sqrt(free.loss)
