"""From data to a reduced model: Markov parameters, Ho-Kalman realisation, identification of records."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.linalg as sla

from . import _order_search as order_search
from ._errors import HankelredError, OrderError, ReductionWarning
from ._hankel_operator import NOISE_NORM, HankelOperator, HankelSVD, leading_svd
from ._impulse_fit import ConvolutionMatrix, solve_least_squares
from ._numbers import real, whole
from ._progress import on_terminal
from ._records import Experiments, as_experiments, refuse_constant_channels
from ._response import largest_singular_value
from ._simulation_fit import (
    STABLE_RADIUS,
    free_responses,
    on_limit,
    residuals,
    stable_matrix,
    with_initial_states,
)
from ._split import STABILITY_TOL
from .hankel import hankel_singular_values
from .models import LinearModel, Timebase, validated_timebase
from .norms import difference_norm
from .order import check_rule, select_order
from .reduction import Reduction, checked_order, make_reduction

Array: TypeAlias = npt.NDArray[Any]

#: Fit to the held-back samples below which `identify` warns.
_POOR_FIT = 0.1


@dataclass(frozen=True, eq=False, repr=False)
class MarkovParameters:
    """An estimated impulse response.

    Attributes
    ----------
    markov : ndarray, shape (n, p, m)
        Entry 0 is D, entry k is C A^(k-1) B; outputs per unit of input.
    standard_error : ndarray, shape (n, p, m)
        Of every entry, from the residual, for noise that is white. With ``ridge`` it is that of the
        regularised solution seen as a Bayesian mean, inf where there is no sample to spare.
    dt : True or float
        Sampling time in seconds.
    residual : ndarray, shape (p,)
        Root mean square of what the parameters leave unexplained, per output.
    input_labels, output_labels : tuple of str, or None
        Names of the channels, where the record had any.
    """

    markov: Array
    standard_error: Array
    dt: Timebase
    residual: Array
    input_labels: tuple[str, ...] | None = None
    output_labels: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        n, p, m = self.markov.shape
        return (
            f"<MarkovParameters: {n} of {p} output(s) by {m} input(s), dt = {self.dt}: largest "
            f"{np.abs(self.markov).max(initial=0.0):.3g}, largest standard error "
            f"{self.standard_error.max(initial=0.0):.2g}>"
        )


def markov_parameters(
    u: Any,
    y: Any = None,
    n: int | None = None,
    *,
    dt: Timebase = True,
    past: Literal["rest", "unknown"] = "rest",
    ridge: float = 0.0,
) -> MarkovParameters:
    """Estimate the first n Markov parameters (the impulse response) from recorded data.

    Least squares for ``y[t] = sum_k h[k] u[t - k]``, exact at the edges of the record: the convolution is
    not taken as circular. Every product is an FFT, the normal equations are solved by preconditioned
    conjugate gradients, so that a hundred thousand samples and thousands of parameters take seconds.

    Parameters
    ----------
    u : array_like, shape (m, T) or (T,), or list of them, or control.TimeResponseData
        Inputs, time last. A list of arrays is several experiments.
    y : array_like, shape (p, T) or (T,), or list of them
        Outputs; left out with ``TimeResponseData``. Remove offsets first: they are not estimated here.
    n : int
        Number of parameters, entry 0 being the direct term. What the response does after n samples goes
        into the residual.
    dt : True or float
        Sampling time in seconds; only handed on.
    past : {"rest", "unknown"}
        "rest": input and state are zero before the record (as in ``control.markov``). "unknown": the first
        n - 1 samples of every record, which its past reaches, serve as input only.
    ridge : float
        Weight of ``|h|^2`` beside the squared residual, as a share of the mean square of the input times its
        length. It bounds the parameters where the input excites little, at the price of a bias.

    Returns
    -------
    MarkovParameters

    Raises
    ------
    HankelredError
        Records that do not fit together, NaN, a constant input, too few samples, or an input that does not
        excite n lags.
    ConvergenceError
        The iteration stagnated far from the solution.

    Notes
    -----
    Source: Ljung, System Identification (1999), section 7.3; standard errors are those of linear
    regression, their diagonal found from the displacement structure of the normal matrix where it is too
    large to invert.

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> u = np.random.default_rng(0).standard_normal(200)
    >>> y = 0.5 * np.concatenate([[0], u[:-1]]) + 0.25 * np.concatenate([[0, 0], u[:-2]])
    >>> estimate = hankelred.markov_parameters(u, y, 4, dt=0.1)
    >>> np.round(estimate.markov[:, 0, 0], 12) + 0.0
    array([0.  , 0.5 , 0.25, 0.  ])
    """
    data = as_experiments(u, y, dt)
    refuse_constant_channels(data, outputs=False)
    if past not in ("rest", "unknown"):
        raise HankelredError(f"past must be 'rest' or 'unknown', got {past!r}")
    if not 0 <= real(ridge) < np.inf:
        raise HankelredError(f"ridge must be a finite number >= 0, got {ridge!r}")
    n = _checked_length(n, data, past == "rest", ridge > 0)
    joined = np.concatenate(data.inputs, axis=1)
    # Inputs in different units would make the normal matrix look singular.
    scale = np.sqrt(np.mean(np.abs(joined) ** 2, axis=1))
    matrix = ConvolutionMatrix([x / scale[:, None] for x in data.inputs], n, past == "rest")
    outputs = [x[:, matrix.first :] for x in data.outputs]
    h, spread, errors = solve_least_squares(matrix, outputs, ridge)
    m, p = data.n_inputs, data.n_outputs
    equations = sum(e.shape[1] for e in errors)
    squares = sum(np.sum(np.abs(e) ** 2, axis=1) for e in errors)
    # A ridge ties the parameters down: only so many are free to follow the noise.
    total = float(sum(np.sum(np.abs(x) ** 2) for x in matrix.us))
    used = n * m - ridge * total / m * float(spread.sum()) if ridge else n * m
    free = equations - used
    variance = squares / free if free > 0.5 else np.full(p, np.inf)
    error = np.sqrt(np.maximum(spread, 0)[:, None] * variance)
    return MarkovParameters(
        h.reshape(n, m, p).transpose(0, 2, 1) / scale,
        error.reshape(n, m, p).transpose(0, 2, 1) / scale,
        data.dt,
        np.sqrt(squares / equations),
        data.input_labels,
        data.output_labels,
    )


def _checked_length(n: Any, data: Experiments, at_rest: bool, regularised: bool) -> int:
    number = whole(n)
    if number is None:
        raise HankelredError(f"n must be a whole number of Markov parameters, got {n!r}")
    shortest = min(x.shape[1] for x in data.inputs)
    if not 1 <= number <= shortest:
        raise HankelredError(
            f"n must be from 1 to the {shortest} samples of the (shortest) record, got {number}"
        )
    equations = data.n_samples - (0 if at_rest else (number - 1) * len(data.inputs))
    if equations < number * data.n_inputs and not regularised:
        raise HankelredError(
            f"{number} Markov parameters of {data.n_inputs} input(s) are {number * data.n_inputs} unknowns, "
            f"the record gives {equations} usable samples; ask for fewer, or regularise with ridge=1e-6 or more"
        )
    return number


def realize(
    markov: Any,
    order: int | None = None,
    *,
    tol: float | None = None,
    dt: Timebase = True,
    stabilize: bool = False,
) -> Reduction:
    """Realise a state space from Markov parameters (Ho-Kalman, or eigensystem realisation).

    The block Hankel matrix of the parameters is never formed when it is large: its leading singular
    triplets come from a randomised subspace iteration whose products are FFTs.

    Parameters
    ----------
    markov : array_like, shape (n, p, m) or (n,), or MarkovParameters
        Impulse response, entry 0 being D. Real or complex. Of an odd number the last one is not needed.
        (``control.impulse_response`` divides by dt: multiply its discrete-time outputs by dt first.)
    order : int, optional
        Number of states, honoured up to the rounding of the singular values.
    tol : float, optional
        Take the smallest order whose neglected singular values, summed and doubled, are at most this.
        Without ``order`` and ``tol``, every singular value above the noise floor is kept.
    dt : True or float
        Sampling time in seconds of the model; those of a ``MarkovParameters``, and its names, win.
    stabilize : bool
        Move poles outside the unit circle onto it and fit B again; a ``ReductionWarning`` says so. Without
        it an unstable realisation is returned as it is.

    Returns
    -------
    Reduction
        ``hankel_singular_values`` are those of the data (of a large matrix: as many as were needed),
        ``noise_floor`` what noise in the data, or rounding, can contribute to any of them. ``system`` is a
        ``control.StateSpace``; control has no complex systems, so complex data give a tuple
        ``(A, B, C, D)``. ``error("h2")`` and ``error("hinf")`` compare with the data.

    Raises
    ------
    HankelredError
        Not a finite array of three or more parameters, or ``dt=0``: parameters are samples.
    OrderError
        ``order`` and ``tol`` together, or out of range.

    Warns
    -----
    ReductionWarning
        The order was clipped to the numerical rank, or poles were moved.

    Notes
    -----
    The noise floor is the norm that white noise gives to the Hankel matrix: its size is taken from the
    standard errors of ``MarkovParameters``, else from the flat end of the spectrum if there is one.
    Sources: Ho and Kalman (1966); Kung, Proc. 12th Asilomar Conf. (1978), whose shift of the observability
    matrix gives A; Juang and Pappa, J. Guidance 8 (1985).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> k = np.arange(60)
    >>> h = np.where(k > 0, 0.9 ** (k - 1.0) + 0.5 ** (k - 1.0), 0.0)
    >>> reduction = hankelred.realize(h, dt=0.1)
    >>> reduction.order, reduction.system.dt
    (2, 0.1)
    >>> np.round(np.sort(reduction.system.poles().real), 9)
    array([0.5, 0.9])
    """
    check_rule(tol=tol, rtol=None, energy=None)
    if order is not None and tol is not None:
        raise OrderError(
            f"give the order or a tolerance to choose it, not both: got order={order} and tol={tol}"
        )
    error_size: float | None = None
    labels: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)
    if isinstance(markov, MarkovParameters):
        labels = markov.input_labels, markov.output_labels
        finite = markov.standard_error[np.isfinite(markov.standard_error)]
        error_size = float(np.sqrt(np.mean(finite**2))) if finite.size else None
        markov, dt = markov.markov, markov.dt
    h = _checked_markov(markov)
    dt = validated_timebase(dt)
    if not dt:
        raise HankelredError(
            f"dt is {dt!r}, but Markov parameters are samples: pass the sampling time in seconds, or True; a "
            "continuous-time model follows from the result by an inverse zero-order hold"
        )
    hankel = HankelOperator(h)
    svd = leading_svd(hankel, None if order is None else checked_order(order), tol)
    floor = max(svd.rounding, _noise_floor(svd, hankel.shape, hankel.blocks, error_size))
    if order is not None and order > np.count_nonzero(svd.singular_values > floor):
        floor = (
            svd.rounding
        )  # asked for by number: what is noise and what is not is then the user's judgement
    source = RealizationSource(h, hankel, svd, floor, dt, stabilize, *labels)
    if order is None:
        order = select_order(svd.singular_values, tol=tol, noise_floor=floor)
    return make_reduction(source, order)


def _checked_markov(markov: Any) -> Array:
    try:
        h = np.asarray(markov)
        h = h.astype(complex if np.iscomplexobj(h) else float)
    except (TypeError, ValueError) as error:
        raise HankelredError(f"markov is not a numeric array: {error}") from None
    if h.ndim == 1:
        h = h[:, None, None]
    if h.ndim != 3 or 0 in h.shape:
        raise HankelredError(
            f"markov must be (n, outputs, inputs), or 1-D for one channel, got shape {h.shape}"
        )
    if h.shape[0] < 3:
        raise HankelredError(
            f"markov has {h.shape[0]} entries (shape {h.shape}); at least 3 are needed, samples are the "
            f"first axis"
        )
    if not np.all(np.isfinite(h)):
        sample, row, column = np.argwhere(~np.isfinite(h))[0]
        raise HankelredError(
            f"markov[{sample}, {row}, {column}] is {h[sample, row, column]}; every entry must be finite"
        )
    return h


def _noise_floor(svd: HankelSVD, shape: tuple[int, int], blocks: int, error_size: float | None) -> float:
    if error_size is not None:
        return NOISE_NORM * error_size * float(np.sqrt(max(shape)))
    if svd.rest > 0:
        # Only a flat spectrum leaves a remainder of the size of the last values that were computed.
        flat = svd.singular_values[-1] <= NOISE_NORM * svd.rest
        return NOISE_NORM * svd.rest if flat else 0.0
    s = svd.singular_values
    # White noise gives singular values that fall off slowly and evenly; those of a system fall geometrically.
    if s.size >= 32 and s[s.size // 2] > 0 and s[3 * s.size // 4] > 0.2 * s[s.size // 2]:
        return NOISE_NORM * float(np.sqrt(np.mean(s[s.size // 2 :] ** 2))) * 1.5
    return 0.0


@dataclass(frozen=True)
class RealizationSource:
    """Markov parameters and the singular triplets of their Hankel matrix."""

    markov: Array
    hankel: HankelOperator
    svd: HankelSVD
    noise_floor: float
    dt: Timebase
    stabilize: bool
    input_labels: tuple[str, ...] | None = None
    output_labels: tuple[str, ...] | None = None

    method = "era"
    solver = "svd"
    certified = True
    unstable_order = 0
    full: LinearModel | None = None

    @property
    def hankel_singular_values(self) -> Array:
        """Of the data's Hankel matrix, as many as were computed."""
        return self.svd.singular_values

    def certificate(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the bound unless the data contradict it.

        It is proved for a whole impulse response. Where a window has cut off one that is still ringing the
        model can miss the data by more, and then nothing is known.
        """
        if reduced is None:
            return math.inf
        slack = self.noise_floor + self.svd.rounding * self.markov.shape[0]
        return bound if self.error(reduced, "hinf") <= bound * (1 + 1e-6) + slack else math.inf

    @property
    def residual(self) -> float:
        """Numerical uncertainty of the singular values, relative to the largest."""
        top = float(self.svd.singular_values[0])
        return self.svd.rounding / top if top else 0.0

    def truncate(self, order: int) -> tuple[LinearModel, None, None]:
        """Return the realisation of an order; there is no projection."""
        p, m = self.hankel.p, self.hankel.m
        root = np.sqrt(self.svd.singular_values[:order])
        observability = self.svd.left[:, :order] * root
        A = sla.lstsq(observability[:-p], observability[p:])[0] if order else np.zeros((0, 0))
        B = (self.svd.right[:m, :order] * root).conj().T
        C = observability[:p]
        if self.stabilize:
            A, B = self._stable(A, B, C)
        names = self.input_labels, self.output_labels
        return LinearModel(A, B, C, self.markov[0].copy(), self.dt, _to_control, *names), None, None

    def _stable(self, A: Array, B: Array, C: Array) -> tuple[Array, Array]:
        moved = stable_matrix(A)
        if moved is A:
            return A, B
        poles = np.linalg.eigvals(A)
        worst = float(np.abs(poles).max())
        warnings.warn(
            f"{int(np.count_nonzero(np.abs(poles) > 1))} pole(s) of the realisation were outside the unit "
            f"circle (the "
            f"largest of modulus {worst:.6g}); they were moved onto it and B was fitted again",
            ReductionWarning,
            stacklevel=5,
        )
        responses = free_responses(moved, C, self.markov.shape[0] - 1).transpose(1, 0, 2)
        target = self.markov[1:].reshape(-1, B.shape[1])
        return moved, np.asarray(sla.lstsq(responses.reshape(target.shape[0], -1), target)[0])

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of the data minus the model's Markov parameters."""
        n = self.markov.shape[0]
        own = np.empty(self.markov.shape, dtype=np.result_type(self.markov, reduced.A))
        own[0] = reduced.D
        own[1:] = (
            (free_responses(reduced.A, reduced.C, n - 1).transpose(1, 0, 2) @ reduced.B)
            if reduced.n_states
            else 0
        )
        difference = self.markov - own
        if norm == "h2":
            return float(np.linalg.norm(difference))
        # Four times the length leaves less than a thousandth of the peak between two frequencies.
        return float(largest_singular_value(np.fft.fft(difference, 4 * n, axis=0)).max())


def _to_control(model: LinearModel) -> Any:
    if model.is_complex:
        return model.as_tuple()
    import control

    return control.StateSpace(
        *model.as_tuple(),
        model.dt,
        remove_useless_states=False,
        inputs=list(model.input_labels) if model.input_labels else None,
        outputs=list(model.output_labels) if model.output_labels else None,
    )


@dataclass(frozen=True, eq=False, repr=False)
class IdentifiedModel(Reduction):
    """A :class:`Reduction` made from recorded data, with how well it explains them.

    Attributes
    ----------
    hankel_singular_values : ndarray
        Of the pilot model: the largest one estimated from the record, in the units of the record.
    error_bound : float
        Always inf: ``system`` is no truncation of a known model but estimated from the data at its order,
        so nothing bounds its error. ``error()`` measures how far it is from the pilot model.
    noise_floor : float
        What the part of the record that the model leaves unexplained can contribute to a singular value.
    fit : ndarray, shape (p,)
        ``1 - |y - yhat| / |y - mean(y)|`` per output for the simulated output over all records, initial
        states estimated: 1 is perfect, 0 no better than the mean.
    held_back_fit : ndarray, shape (p,)
        The same on the last 30 % of every record, of the model that the first 70 % alone gave.
    input_offset, output_offset : ndarray, shape (m,) and (p,)
        ``system`` maps ``u - input_offset`` to ``y - output_offset``.
    initial_states : tuple of ndarray, shape (order,)
        One per record.
    """

    fit: Array = field(default_factory=lambda: np.zeros(0))
    held_back_fit: Array = field(default_factory=lambda: np.zeros(0))
    input_offset: Array = field(default_factory=lambda: np.zeros(0), repr=False)
    output_offset: Array = field(default_factory=lambda: np.zeros(0), repr=False)
    initial_states: tuple[Array, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return (
            f"<IdentifiedModel of order {self.order}, dt = {self.model.dt}: fit {_figures(self.fit)}, "
            f"held back {_figures(self.held_back_fit)}>"
        )

    def at(self, order: int) -> IdentifiedModel:
        """Return the model of another order, estimated from the same records.

        Parameters
        ----------
        order : int
            Number of states.
        """
        _refuse_static(order)
        return _with_fit(make_reduction(self.source, order))

    def compare(self, u: Any, y: Any = None) -> Comparison:
        """Simulate another record of the same process and compare.

        Parameters
        ----------
        u : array_like, shape (m, T) or (T,), or control.TimeResponseData
        y : array_like, shape (p, T) or (T,)
            Measured outputs. The initial state is fitted to them (least squares over the whole record),
            nothing else is; the offsets are those of the model.

        Returns
        -------
        Comparison

        Raises
        ------
        HankelredError
            A record that does not fit the model.
        """
        data = as_experiments(u, y, self.model.dt)
        if len(data.inputs) != 1:
            raise HankelredError(f"compare takes one record at a time, got {len(data.inputs)}")
        m, p = self.model.n_inputs, self.model.n_outputs
        if (data.n_inputs, data.n_outputs) != (m, p):
            raise HankelredError(
                f"the model has {m} input(s) and {p} output(s), the record {data.n_inputs} and "
                f"{data.n_outputs}"
            )
        found = self.source.found(self.order)  # type: ignore[attr-defined]
        us, ys = found.data.apply(data.inputs, data.outputs)
        fitted = with_initial_states(found.model, us, ys)
        error = residuals(fitted, us, ys)[0] * found.data.output_scale[:, None]
        return Comparison(data.outputs[0] - error, order_search.fits(fitted, us, ys))


def _refuse_static(order: Any) -> None:
    if checked_order(order) < 1:
        raise OrderError(
            f"order must be at least 1, got {order}: a model without states is a static gain, fit it by "
            "least squares"
        )


def _figures(values: Array) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """A simulated record.

    Attributes
    ----------
    output : ndarray, shape (p, T)
        Simulated, offsets included.
    fit : ndarray, shape (p,)
        ``1 - |y - output| / |y - mean(y)|`` per output.
    """

    output: Array
    fit: Array

    def __repr__(self) -> str:
        return f"<Comparison over {self.output.shape[1]} samples: fit {_figures(self.fit)}>"


def identify(
    u: Any,
    y: Any = None,
    order: int | None = None,
    *,
    dt: Timebase = True,
    offsets: bool = True,
    stable: bool = True,
    progress: bool | None = None,
) -> IdentifiedModel:
    """Identify a state-space model from recorded inputs and outputs, in one call.

    Subspace methods of several kinds and horizons, and a high-order ARX model, give trial models of every
    order, which are refined by minimising the error of the simulated output. The last 30 % of every record,
    held back, chooses among them: the smallest order that is not worse than the best by more than the
    held-back part can tell. The chosen recipe is then followed on the whole record.

    Parameters
    ----------
    u : array_like, shape (m, T) or (T,), or list of them, or control.TimeResponseData
        Inputs, time last. A list of arrays is several experiments.
    y : array_like, shape (p, T) or (T,), or list of them
        Outputs; left out with ``TimeResponseData``, whose dt and names are kept.
    order : int, optional
        Number of states. Without it the held-back samples choose, up to 12.
    dt : True or float
        Sampling time in seconds.
    offsets : bool
        Records are deviations from unknown constant levels (the default); False takes them as they are.
    stable : bool
        Return a stable model (the default). An integrator then becomes a pole just inside the unit circle.
        False lets poles be where the data put them.
    progress : bool, optional
        Show a progress bar on stderr. By default where that is a terminal.

    Returns
    -------
    IdentifiedModel
        A :class:`Reduction`; ``system`` is a ``control.StateSpace``.

    Raises
    ------
    HankelredError
        Records that do not fit together, NaN, a channel that never moves, swapped axes, too few samples,
        complex data.
    OrderError
        An order that is no whole number >= 1.

    Warns
    -----
    ReductionWarning
        The data do not bear the order that was asked for, the model has a pole on the stability limit, or it
        explains next to nothing of an output in the held-back samples.

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
    data = as_experiments(u, y, dt)
    if data.is_complex:
        raise HankelredError(
            "identify works on real records, and these are complex; estimate markov_parameters and realize "
            "them"
        )
    refuse_constant_channels(data)
    if order is not None:
        _refuse_static(order)
    kept = [round(order_search.ESTIMATION_SHARE * x.shape[1]) for x in data.inputs]
    channels = data.n_inputs + data.n_outputs
    sizes = order_search.horizons(kept, channels, data.n_outputs, order)
    if not sizes:
        raise HankelredError(
            f"too few samples: {data.n_samples} in {len(kept)} record(s) with {channels} channels"
            + (f" for order {order}" if order is not None else "")
            + f"; about {order_search.least_samples(channels, data.n_outputs, order)} in one piece are needed"
        )
    shown = on_terminal() if progress is None else progress
    source = IdentificationSource(data, tuple(sizes), offsets, stable, order, shown)
    model = _with_fit(make_reduction(source, source.chosen_order))
    for i, held_back in enumerate(model.held_back_fit):
        if held_back < _POOR_FIT:
            label = f"output {data.output_labels[i] if data.output_labels else i}"
            warnings.warn(
                f"the model explains next to nothing of {label}: its held-back fit is {held_back:.3g}. Are "
                "inputs and outputs swapped, is the order too small, or the output driven by something else?",
                ReductionWarning,
                stacklevel=2,
            )
    return model


class IdentificationSource:
    """Records and the pilot model; the model of any order is estimated when it is asked for."""

    solver = "qr"
    certified = False
    full: LinearModel | None = None
    residual = 0.0

    def __init__(
        self,
        data: Experiments,
        sizes: tuple[int, ...],
        offsets: bool,
        stable: bool,
        order: int | None,
        progress: bool,
    ) -> None:
        self._data, self._sizes, self._offsets, self._stable = data, sizes, offsets, stable
        self._found: dict[int, order_search.Identified] = {}
        self._largest = order_search.MAX_ORDER if order is None else max(order_search.MAX_ORDER, order)
        orders = self._orders() if order is None else [order]
        above = self._above(order) if order is not None else ()
        chosen = order_search.search(
            data.inputs, data.outputs, orders, sizes, above, offsets=offsets, stable=stable, progress=progress
        )
        self.chosen_order = chosen.model.order
        if order is not None and self.chosen_order < order:
            warnings.warn(
                f"order {order} was asked for, but the record bears only {self.chosen_order} states; the "
                f"model has "
                "that order",
                ReductionWarning,
                stacklevel=3,
            )
        if stable and on_limit(chosen.model.A):
            warnings.warn(
                f"the model of order {self.chosen_order} has a pole on the stability limit "
                f"({STABLE_RADIUS:.7g}): the record asks for an integrator, an unstable pole or "
                "a slow drift. Compare other orders on another record, or pass stable=False",
                ReductionWarning,
                stacklevel=3,
            )
        self._found[self.chosen_order] = chosen

    def certificate(self, bound: float, reduced: LinearModel | None) -> float:
        """Return inf: the model of each order is estimated afresh."""
        return math.inf

    def _orders(self) -> list[int]:
        # a quarter of the samples as parameters is the most that a held-back part can still judge
        per_state = self._data.n_inputs + self._data.n_outputs
        most = self._data.n_samples * self._data.n_outputs // (4 * per_state)
        return list(range(1, max(2, min(self._largest, most) + 1)))

    def _above(self, order: int) -> list[int]:
        return [n for n in self._orders() if n > order and (n - order) % 2 == 0]

    def found(self, order: int) -> order_search.Identified:
        """Return the model of an order, estimated on first use."""
        if order not in self._found:
            self._found[order] = order_search.search(
                self._data.inputs,
                self._data.outputs,
                [order],
                self._sizes,
                self._above(order),
                offsets=self._offsets,
                stable=self._stable,
            )
        return self._found[order]

    @property
    def method(self) -> str:
        """Name of the method."""
        return "identification"

    @cached_property
    def pilot(self) -> LinearModel:
        """The largest model, the one the spectrum is of."""
        chosen = self._found[self.chosen_order]
        orders = [n for n in self._orders() if n > self.chosen_order]
        model = order_search.largest(chosen, orders, self._sizes, offsets=self._offsets, stable=self._stable)
        if _outside(model.A) != self.unstable_order:
            # Noise pushes poles of a large model out: its spectrum would then say nothing of the chosen one.
            model = chosen.model
        return LinearModel(*chosen.data.unscaled(model), self._data.dt)

    @cached_property
    def hankel_singular_values(self) -> Array:
        """Of the pilot model."""
        return hankel_singular_values(self.pilot.as_tuple(), dt=self._data.dt)

    @property
    def unstable_order(self) -> int:
        """Poles on or outside the unit circle of the chosen model."""
        return _outside(self._found[self.chosen_order].model.A)

    @cached_property
    def noise_floor(self) -> float:
        """What the residual can contribute to a singular value."""
        chosen = self._found[self.chosen_order]
        left = np.concatenate(residuals(chosen.model, chosen.data.inputs, chosen.data.outputs), axis=1)
        size = np.sqrt(np.mean(left**2, axis=1)) * chosen.data.output_scale
        error = size.max() / (chosen.data.input_scale.min() * np.sqrt(self._data.n_samples))
        width = max(self._sizes) * max(self._data.n_inputs, self._data.n_outputs)
        floor = NOISE_NORM * error * np.sqrt(width)
        values = self.hankel_singular_values
        # What was asked for by number, or passed the held-back samples, is not noise.
        if np.count_nonzero(values > floor) < self.chosen_order:
            return float(values.size * np.finfo(float).eps * values[np.isfinite(values)].max(initial=0.0))
        return float(floor)

    def truncate(self, order: int) -> tuple[LinearModel, None, None]:
        """Return the model of an order; there is no projection."""
        found = self.found(order)
        labels = self._data.input_labels, self._data.output_labels
        return LinearModel(*found.data.unscaled(found.model), self._data.dt, _to_control, *labels), None, None

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of the pilot model minus the reduced one."""
        return difference_norm(self.pilot, reduced, norm)


def _outside(A: Array) -> int:
    size = max(1.0, float(np.linalg.norm(A)))
    return int(np.count_nonzero(np.abs(np.linalg.eigvals(A)) >= 1 - STABILITY_TOL * size))


def _with_fit(reduction: Reduction) -> IdentifiedModel:
    found = reduction.source.found(reduction.order)  # type: ignore[attr-defined]
    data, model = found.data, found.model
    own = {f.name: getattr(reduction, f.name) for f in fields(Reduction)}
    return IdentifiedModel(
        **own,
        fit=order_search.fits(model, data.inputs, data.outputs),
        held_back_fit=found.held_back_fit,
        input_offset=data.input_offset,
        output_offset=data.output_offset + data.output_scale * model.offset,
        initial_states=model.x0,
    )
