"""Long simulation, impulse responses and convolution of linear models.

:func:`simulate` runs a state space over a long input in blocks of matrix products,
:func:`impulse_response` samples what :func:`convolve` takes, and :class:`Convolver` convolves a stream.
Time is the last axis of inputs and outputs and the first of impulse responses.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from .._util.checks import as_integer, real_number, require_finite, require_option
from ..errors import HankelredError, ModelError, ReductionWarning
from ..models.descriptor import InfinitePart
from ..models.linear_model import Dimensions, LinearModel, Timebase
from ..models.scaling import balance_matrix
from ..models.sparse_model import SparseModel, any_model
from . import recurrence
from .convolve import convolve_direct, convolve_fft, direct_is_faster
from .discretize import discretize
from .implicit import run_implicit, sparse_impulse_response
from .signals import as_input, as_kernel, as_numbers, as_output, check_overflow
from .stream import Convolver

__all__ = ["Convolver", "convolve", "impulse_response", "simulate"]

#: How far ``step`` may be from the ``dt`` of a discrete model, relative.
_STEP_TOLERANCE = 1e-9
#: How far a start may be from what the constraints of a model with a singular E demand, relative.
_CONSISTENT = 1e-8


@overload
def simulate(
    sys: Any,
    u: npt.ArrayLike,
    *,
    x0: npt.ArrayLike | None = ...,
    return_state: Literal[False] = ...,
    return_states: Literal[False] = ...,
    step: float | None = ...,
    hold: str = ...,
    method: str = ...,
    dt: Timebase = ...,
) -> Array: ...


@overload
def simulate(
    sys: Any,
    u: npt.ArrayLike,
    *,
    x0: npt.ArrayLike | None = ...,
    return_state: bool = ...,
    return_states: bool = ...,
    step: float | None = ...,
    hold: str = ...,
    method: str = ...,
    dt: Timebase = ...,
) -> Any: ...


def simulate(
    sys: Any,
    u: npt.ArrayLike,
    *,
    x0: npt.ArrayLike | None = None,
    return_state: bool = False,
    return_states: bool = False,
    step: float | None = None,
    hold: str = "zoh",
    method: str = "auto",
    dt: Timebase = 0,
) -> Any:
    """Simulate a linear model over a uniformly sampled input, fast enough for millions of samples.

    Parameters
    ----------
    sys : model
        Any model (see the package's list of types), n states, m inputs, p outputs.
    u : (m, T) or (T,) array_like
        Input, real or complex; 1-D is accepted for one input.
    x0 : (n,) array_like, optional
        State at the first sample; zero by default. With a singular E only E x0 matters, and it must satisfy
        the constraints of the model. For a transfer function it is the state of
        hankelred's realization, so it must come from an earlier call.
    return_state : bool
        Also return the state after the last sample, so that a next run can start from it.
    return_states : bool
        Also return the state at every sample, starting with ``x0``.
    step : float, optional
        Time between samples in seconds; required for a continuous model with states. For a discrete
        one it may be given and must then agree with its ``dt``.
    hold : {"zoh", "foh"}
        The input of a continuous model between samples: constant, or linear to the next sample, which is
        what ``control.forced_response`` assumes. Both are discretized exactly.
    method : {"auto", "blocks", "steps"}
        "blocks" computes the recurrence by matrix products, "steps" is the plain loop over samples, "auto"
        is the faster one by a count of operations (blocks from about 100 samples on for small models). The
        choice depends only on n, m, p and T, not on values.
    dt : 0, True, float or None
        Timebase of a tuple; other models have their own.

    Returns
    -------
    y : (p, T) or (T,) ndarray
        Output; 1-D when ``u`` is 1-D and p = 1. Complex if the model, ``u`` or ``x0`` is.
    x : (n,) ndarray
        With ``return_state``; for a singular E, without the part of the states that follows the input
        algebraically. With ``hold="zoh"`` and for discrete models it is the state one sample after the last,
        so the next run starts with the *next* input sample. With ``hold="foh"`` that state would depend on
        an input sample that is not known yet, so it is the state *at* the last sample, and the next run
        starts with that same sample.
    states : (n, T) ndarray
        With ``return_states``.

    Raises
    ------
    ModelError
        The model cannot be used, or is improper; ``step`` is missing or contradicts it; a start that is not
        consistent with a singular E.
    HankelredError
        NaN or Inf in ``u`` or ``x0``, shapes that do not fit, an unknown ``hold`` or ``method``, or an output
        too large for double precision (an unstable model run for too long).
    ConvergenceError
        The implicit steps of a sparse model do not reach their accuracy.

    Notes
    -----
    A block of samples is one row of a matrix product, and the states at the block starts are computed by a
    parallel prefix scan [1]_. Powers of A are squared together with their rounding errors, so the result is
    as accurate as that of the plain loop, also for poles on the unit circle. Where a power of A would be
    inaccurate (strongly non-normal A) the blocks are shorter, down to the plain loop, so that the error is at
    most about a hundred times that of the loop. A sample of the input changes no bit of any earlier output.
    The discretization is the block matrix exponential of [2]_.

    Sparse models of more than 5000 states are simulated by implicit steps, without a dense matrix. If A and E
    are symmetric, -A and E positive definite, the error is about 1e-11 of the largest state, or less.
    Otherwise what is returned agrees to 1e-6 of its largest values when the steps are halved, and responses
    faster than the steps are less than 1e-4 of it or proved to be damped. For many samples, it is faster to
    :func:`reduce` such a model and to simulate the reduced one.

    References
    ----------
    .. [1] G. E. Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990.
    .. [2] C. F. Van Loan, "Computing integrals involving the matrix exponential", IEEE Trans.
       Automat. Control 23 (1978) 395-404.

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> decay = ([[0.5]], [[1.0]], [[1.0]], [[0.0]])
    >>> hankelred.simulate(decay, [1.0, 0.0, 0.0, 0.0], dt=True)
    array([0.  , 1.  , 0.5 , 0.25])

    A run can be continued from the state of an earlier one:

    >>> u = np.ones(6)
    >>> head, x = hankelred.simulate(decay, u[:2], dt=True, return_state=True)
    >>> tail = hankelred.simulate(decay, u[2:], dt=True, x0=x)
    >>> np.allclose(np.r_[head, tail], hankelred.simulate(decay, u, dt=True))
    True
    """
    system = _dense_or_sparse(sys, dt)
    require_option(method, ("auto", "blocks", "steps"), "method", HankelredError)
    require_option(hold, ("zoh", "foh"), "hold", HankelredError)
    if hold == "foh" and system.is_discrete:
        raise ModelError(
            f'hold="foh" is for continuous models; this one is discrete (dt={system.dt}): omit hold'
        )
    signal, is_1d = as_input(u, system.n_inputs)
    task = _Task(signal, x0, step, hold, method, return_state, return_states)
    y, x, states = _run_sparse(system, task) if isinstance(system, SparseModel) else _run_dense(system, task)
    return _results(y, x if return_state else None, states, is_1d)


@dataclass(frozen=True)
class _Task:
    """What is simulated: the checked input, and the other arguments of :func:`simulate`."""

    signal: Array
    x0: npt.ArrayLike | None
    step: float | None
    hold: str
    method: str
    return_state: bool
    return_states: bool


def _run_sparse(model: SparseModel, task: _Task) -> tuple[Array, Array, Array | None]:
    """Return the outputs, the state after the last sample and, on request, all states of a sparse model."""
    if task.method == "blocks":
        raise HankelredError(
            f'method="blocks" multiplies dense matrices, and this sparse model has {model.n_states} '
            "states: omit method"
        )
    states_count = task.return_state or task.return_states
    if model.finite_order is not None and (task.x0 is not None or states_count):
        raise ModelError(
            "the model is sparse and E is singular, so that only outputs from rest are computed: leave "
            "out x0, return_state and return_states, or reduce the model first"
        )
    run = run_implicit(
        model,
        _initial_state(task.x0, model)[:, None],
        task.signal,
        _interval(model, task.step),
        first_order_hold=task.hold == "foh",
        keep_states=task.return_states,
        states_count=states_count,
    )
    states = None if run.states is None else run.states[:, :, 0].T
    return run.outputs[:, :, 0].T, run.last[:, 0], states


def _run_dense(model: LinearModel, task: _Task) -> tuple[Array, Array, Array | None]:
    """Return the outputs, the state after the last sample and, on request, all states of a dense model."""
    model.require_proper("an input that jumps from sample to sample makes impulses in its outputs")
    signal, infinite = task.signal, model.infinite
    x = _initial_state(task.x0, model) if infinite is None else _finite_state(task.x0, signal, infinite)
    model, x, unitary = _in_real_states(model, x, signal)
    dtype = np.result_type(model.A, model.B, signal, x)
    A, B, C, D = (M.astype(dtype) for M in model.as_tuple())
    signal, x = signal.astype(dtype, copy=False), x.astype(dtype)
    interval = _interval(model, task.step)
    next_input_gain = np.zeros_like(B)
    if interval is not None:
        A, B, next_input_gain = discretize(A, B, interval, task.hold)
    n, p = model.n_states, model.n_outputs
    if task.return_states:
        C = np.concatenate([C, np.eye(n, dtype=dtype) if infinite is None else infinite.right.astype(dtype)])
        direct = np.zeros((n, model.n_inputs)) if infinite is None else _algebraic_states(infinite)
        D = np.concatenate([D, direct.astype(dtype)])
    if task.hold == "foh" and signal.shape[1]:
        # x[k+1] = A x[k] + B u[k] + H u[k+1] is an ordinary recurrence for z = x - H u, H = next_input_gain.
        D_of_z = D + C @ next_input_gain
        last = signal[:, -1]
        start = x - next_input_gain @ signal[:, 0]
        y, z = _run(A, B + A @ next_input_gain, C, D_of_z, signal[:, :-1], start, task.method)
        y = np.concatenate([y, (C @ z + D_of_z @ last)[:, None]], axis=1)
        x = z + next_input_gain @ last
    else:
        y, x = _run(A, B, C, D, signal, x, task.method)
    x = x if infinite is None else infinite.right @ x
    states = y[p:] if task.return_states else None
    if unitary is not None:
        x = unitary.conj().T @ x
        states = None if states is None else unitary.conj().T @ states
    return y[:p], x, states


def _in_real_states(model: LinearModel, x: Array, signal: Array) -> tuple[LinearModel, Array, Array | None]:
    """Return a model and its start in real states, and the unitary map to these; None if they stay complex.

    A modal model of a real system has complex states, but a real output for a real input.
    """
    real, unitary = model.in_real_states()
    if unitary is None or np.iscomplexobj(signal):
        return model, x, None
    start = unitary @ x
    if np.abs(start.imag).max(initial=0.0) > 1e-12 * np.abs(start).max(initial=0.0):
        return model, x, None
    return real, start.real, unitary


def impulse_response(sys: Any, n: int, *, step: float | None = None, dt: Timebase = 0) -> Array:
    """Sample the impulse response of a linear model, by products of powers instead of a loop.

    Parameters
    ----------
    sys : model
        Any model, m inputs, p outputs.
    n : int
        Number of samples.
    step : float, optional
        Time between samples in seconds; required for a continuous model with states.
    dt : 0, True, float or None
        Timebase of a tuple; other models carry their own.

    Returns
    -------
    markov : (n, p, m) ndarray
        Discrete time: the Markov parameters ``D, C B, C A B, C A^2 B, ...``, which :func:`convolve` takes.
        Continuous time: ``C expm(A k step) B`` for k = 0, 1, ... in output units per (input unit times
        second). There the direct term ``D delta(t)`` has no sample value and is *not* in the result, as in
        ``control.impulse_response``; add ``D u`` to a convolution separately. For the response to a sampled
        input use :func:`simulate`, which is exact, or the impulse response of a discretized model. A static
        gain has ``D, 0, 0, ...`` in both cases.

    Warns
    -----
    ReductionWarning
        An improper model (singular E): its impulses, derivatives of delta(t), are named.

    Raises
    ------
    ModelError
        The model cannot be used, or ``step`` is missing or contradicts it.
    HankelredError
        ``n`` is not a whole number >= 0, or a sample is too large for double precision.

    Notes
    -----
    The response is the product of ``C A^i``, i < K, with ``A^(K j) B``, both computed by doubling, with K
    near the square root of n; powers are squared as in :func:`simulate`.

    Examples
    --------
    >>> import hankelred
    >>> hankelred.impulse_response(([[0.5]], [[1.0]], [[1.0]], [[3.0]]), 4, dt=True).ravel()
    array([3.  , 1.  , 0.5 , 0.25])
    """
    count = as_integer(n)
    if count is None or count < 0:
        raise HankelredError(f"n must be a whole number of samples >= 0, got {n!r}")
    system = _dense_or_sparse(sys, dt)
    interval = _interval(system, step)
    if isinstance(system, SparseModel):
        markov = sparse_impulse_response(system, count, interval)
        check_overflow(np.moveaxis(markov, 0, -1), "the impulse response")
        return markov
    model = system.in_real_states()[0]
    if model.improper:
        _name_impulses(model)
    A, B, C, D = model.as_tuple()
    if interval is not None:
        A = discretize(A, B, interval, "zoh")[0]
        lead = np.zeros((0, *D.shape), dtype=D.dtype)
    else:
        lead = D[None][:count]
    balanced, scale = balance_matrix(A)
    with np.errstate(over="ignore", invalid="ignore"):
        tail = recurrence.free_response(balanced, B / scale[:, None], C * scale, count - len(lead))
        markov = np.concatenate([lead, tail])
        if not np.isfinite(markov).all():
            # Products of powers can overflow slightly before the response itself does.
            tail = _markov_by_steps(A, B, C, count - len(lead))
            markov = np.concatenate([lead, tail])
    check_overflow(np.moveaxis(markov, 0, -1), "the impulse response")
    return markov


def _name_impulses(model: LinearModel) -> None:
    """Warn of the part of an impulse response that no sample contains."""
    sizes = [f"{np.linalg.norm(D):.3g}" for D in model.improper]
    if model.is_discrete:
        terms = ", ".join(f"D_{k} at sample -{k} of size {size}" for k, size in enumerate(sizes, 1))
        text = (
            f"the model is improper and answers before the impulse: {terms}, which the result does not "
            "contain"
        )
    else:
        terms = " + ".join(f"D_{k} delta^({k})(t) of size {size}" for k, size in enumerate(sizes, 1))
        text = (
            f"the model is improper, and its impulse response has the impulses D delta(t) + {terms} beside "
            "the samples returned"
        )
    warnings.warn(text + "; reduce(sys).improper lists D_1, D_2, ...", ReductionWarning, stacklevel=3)


def convolve(markov: npt.ArrayLike, u: npt.ArrayLike, *, method: str = "auto") -> Array:
    """Convolve an impulse response with an input, causally: ``y[k] = sum_i markov[i] u[k - i]``.

    Parameters
    ----------
    markov : (n, p, m) or (n,) array_like
        Impulse response, real or complex; 1-D is accepted for one input and one output.
    u : (m, T) or (T,) array_like
        Input; 1-D is accepted for one input. Zero before its first sample.
    method : {"auto", "fft", "direct"}
        "fft" is overlap-save; its error is about 1e-16 times the *largest* samples inside the same
        transform (which may be that of the whole record), so that a spike disturbs small samples before it.
        "direct" sums each output separately: the error of ``y[k]`` is about 1e-16 times
        ``sum_i |markov[i]| |u[k - i]|``, and a later sample changes no bit of an earlier output; it also
        accepts NaN and Inf in ``u``. It costs n p m T operations. "auto" is "direct" where that is as fast
        (at most 64 kernel samples, with one input or one output), else "fft".

    Returns
    -------
    y : (p, T) or (T,) ndarray
        Output, as long as the input; 1-D when ``u`` is 1-D and p = 1. After a NaN or Inf in ``u`` ("direct"
        only) the n outputs from that sample on are NaN, and no others.

    Raises
    ------
    HankelredError
        Shapes that do not fit, NaN or Inf in ``markov``, or in ``u`` with another method than "direct", an
        unknown method, or an output too large for double precision.

    Notes
    -----
    Overlap-save: A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", 3rd ed., 8.7.3. Each
    channel is transformed once rather than once per pair of input and output.

    Examples
    --------
    >>> import hankelred
    >>> hankelred.convolve([1.0, 0.5, 0.25], [1.0, 0.0, 0.0, 2.0])
    array([1.  , 0.5 , 0.25, 2.  ])
    """
    require_option(method, ("auto", "fft", "direct"), "method", HankelredError)
    kernel = as_kernel(markov)
    n, p, m = kernel.shape
    signal, is_1d = as_input(
        u,
        m,
        owner=f"markov of shape {np.shape(markov)} (samples, outputs, inputs)",
        advice='use method="direct", in which they do not affect earlier outputs'
        if method != "direct"
        else None,
    )
    samples = signal.shape[1]
    kernel = kernel[:samples]
    if 0 in (samples, n, p, m):
        return as_output(np.zeros((p, samples), dtype=np.result_type(kernel, signal)), is_1d)
    bad = ~np.isfinite(signal).all(axis=0) if method == "direct" else np.zeros(samples, dtype=bool)
    if bad.any():
        signal = np.where(bad, 0.0, signal)
    direct = method == "direct" or (method == "auto" and direct_is_faster(n, m, p))
    with np.errstate(over="ignore", invalid="ignore"):
        y = (convolve_direct if direct else convolve_fft)(kernel, signal)
    check_overflow(y, "the output")
    if bad.any():
        bad_before = np.concatenate([np.zeros(len(kernel), dtype=int), np.cumsum(bad)])
        y[:, bad_before[len(kernel) :] > bad_before[:samples]] = np.nan
    return as_output(y, is_1d)


def _dense_or_sparse(sys: Any, dt: Timebase) -> LinearModel | SparseModel:
    """Return a model in dense form, or in sparse form if it has too many states for that."""
    model = any_model(sys, dt)
    return model.dense() if isinstance(model, SparseModel) and model.falls_back else model


def _results(y: Array, last: Array | None, states: Array | None, is_1d: bool) -> Any:
    """Return the output, and what else was requested of the states, after checking that all is finite."""
    check_overflow(y, "the output")
    results = [as_output(y, is_1d)]
    if last is not None:
        check_overflow(last[:, None], "the state after the last sample")
        results.append(last)
    if states is not None:
        check_overflow(states, "the state")
        results.append(states)
    return results[0] if len(results) == 1 else tuple(results)


def _initial_state(x0: npt.ArrayLike | None, model: Dimensions) -> Array:
    return np.zeros(model.n_states) if x0 is None else _checked_state(x0, model.n_states)


def _checked_state(x0: npt.ArrayLike, n: int) -> Array:
    x = as_numbers(x0, "x0")
    if x.shape != (n,):
        raise HankelredError(f"x0 must have one entry per state, shape ({n},), got {x.shape}")
    require_finite(x, "x0", HankelredError, "every initial state must be finite")
    return x


def _finite_state(x0: npt.ArrayLike | None, signal: Array, infinite: InfinitePart) -> Array:
    """Return the finite states of a start of a model with a singular E; refuse one that is not consistent.

    E x_0 determines the finite states. What else it has must be what the constraints demand at the first
    sample: of an index of 1 nothing, beyond that the constraints themselves.
    """
    if x0 is None:
        return np.zeros(infinite.right.shape[1])
    x = _checked_state(x0, infinite.n_states)
    start: Array = infinite.coordinates.T @ x
    first = signal[:, 0] if signal.shape[1] else np.zeros(signal.shape[0])
    image, size = infinite.E @ x, np.abs(infinite.E) @ np.abs(x)
    demanded = infinite.E @ (infinite.right @ start)
    apart = np.abs(image - demanded)  # zero for the state that an earlier run has returned
    if infinite.states:
        demanded = demanded + infinite.E @ (infinite.states[0] @ first)
        apart = np.minimum(apart, np.abs(image - demanded))
    k = int(np.argmax(apart))
    if apart[k] > _CONSISTENT * float(size.max()):
        raise ModelError(
            f"x0 is not consistent: the constraints of the model (E is singular) and the first input demand "
            f"{demanded[k]:.6g} for entry {k} of E x0, which is {image[k]:.6g}; a jump there would be an "
            "impulse. Start from a state that satisfies the constraints, or leave x0 out to start at rest"
        )
    return start


def _algebraic_states(infinite: InfinitePart) -> Array:
    """Return how the states follow the input at once; refuse states that are derivatives of it."""
    if len(infinite.states) > 1:
        raise ModelError(
            "some states are derivatives of the input (E is singular, of index 2 or more), which has none "
            "where it jumps: leave out return_states, the outputs are known"
        )
    return infinite.states[0] if infinite.states else np.zeros((infinite.n_states, 0))


def _interval(model: Dimensions, step: float | None) -> float | None:
    """Return the step of the discretization; None for a discrete model or one without states."""
    if step is not None:
        seconds = real_number(
            step, lambda t: 0 < t < np.inf, "step must be a positive number of seconds", ModelError
        )
        if model.is_discrete:
            if model.dt is not True and abs(seconds - float(model.dt or 0)) > _STEP_TOLERANCE * seconds:
                raise ModelError(
                    f"step={step} disagrees with the model's own dt={model.dt}; omit step, or resample the "
                    "model first"
                )
            return None
        return seconds if model.n_states else None
    if not model.is_discrete and model.n_states:
        raise ModelError(
            f"the model is continuous (dt={model.dt}): give step=, the seconds between samples; for a "
            "discrete model in a tuple give dt="
        )
    return None


def _run(A: Array, B: Array, C: Array, D: Array, u: Array, x: Array, method: str) -> tuple[Array, Array]:
    n, samples = A.shape[0], u.shape[1]
    if n == 0:
        return D @ u, x
    plan = recurrence.plan_blocks(n, B.shape[1], C.shape[0], samples)
    with np.errstate(over="ignore", invalid="ignore"):
        if method == "blocks" or (method == "auto" and plan.blocks_are_faster):
            balanced, scale = balance_matrix(A)
            y, last = recurrence.block_run(balanced, B / scale[:, None], C * scale, D, u, x / scale, plan)
            last = last * scale
            if np.isfinite(y).all() and np.isfinite(last).all():
                return y, last
            # A product over a whole block can overflow slightly before the loop does.
        return recurrence.step_loop(A, B, C, D, u, x)


def _markov_by_steps(A: Array, B: Array, C: Array, count: int) -> Array:
    """Return C A^k B for k < count, one step after the other: an impulse is an initial state."""
    no_input, dtype = np.zeros((0, count)), np.result_type(A, B, C)
    nothing = np.zeros((C.shape[0], 0))
    runs = [recurrence.step_loop(A, B[:, :0], C, nothing, no_input, b.astype(dtype))[0] for b in B.T]
    return np.stack(runs, axis=2).transpose(1, 0, 2)
