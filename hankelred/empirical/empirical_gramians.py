"""`empirical_gramians`, for linear models and simulators, and the checks of its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._util.arrays import EPS, Array
from .._util.checks import as_integer, as_positive_integer, require_option
from ..errors import HankelredError, ModelError
from ..gramians.stability import checked_tol
from ..models.linear_model import LinearModel, Timebase, as_model, is_discrete, validated_timebase
from ..simulation.signals import as_numbers
from .assembly import Assembled
from .backends import check_backend
from .checkpoint import Checkpoint
from .excitations import Seed
from .experiments import Runner, find_sizes
from .linear_responses import LinearJob, model_gramians
from .responses import CENTERINGS, check_span, count_intervals, cross_needs_square, discrete_step
from .results import EmpiricalGramians
from .simulator_responses import SimulatorJob, simulator_gramians
from .simulators import is_nonlinear_control_system, simulator_of_control_system, step_of_simulator

_KINDS = ("controllability", "observability", "cross")


def empirical_gramians(
    system: Any,
    *,
    kinds: str | Sequence[str] = ("controllability", "observability"),
    excitation: str | npt.ArrayLike = "impulse",
    horizon: float | None = None,
    step: float | None = None,
    dt: Timebase = 0,
    n_states: int | None = None,
    n_inputs: int | None = None,
    steady_state: npt.ArrayLike | None = None,
    steady_input: npt.ArrayLike | None = None,
    input_scales: npt.ArrayLike = 1.0,
    state_scales: npt.ArrayLike = 1.0,
    signs: Sequence[int] = (1, -1),
    centering: str = "steady",
    hold: str | None = None,
    seed: Seed = 0,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    backend: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    stability_tol: float = 1e-13,
) -> EmpiricalGramians:
    """Compute Gramians from the responses of a linear model, or of any simulator given as a callable.

    A simulator is run with each input excited in turn, and from each state perturbed in turn; the
    responses are deconvolved by the excitation and integrated. For a linear system every excitation
    gives the same, exact Gramian; for a nonlinear one the result depends on the scales of excitation
    and perturbation, which should be those of the intended operation.

    Parameters
    ----------
    system : model or callable
        Any linear model, a ``control.NonlinearIOSystem``, or a callable ``simulate(x0, u) -> (x, y)`` with
        x0 (n,), u (m, T), x (n, T), y (p, T), time last, ``x[:, 0] = x0``, for any T; of a right-hand side
        it is made by :func:`simulator_from_rhs`. With ``batch_size`` given: x0 (b, n), u (b, m, T),
        x (b, n, T), y (b, p, T).
    kinds : str or sequence of str
        Which Gramians: "controllability", "observability" and "cross" (needs as many outputs as inputs).
    excitation : str or array_like
        "impulse", "step", "prbs", "chirp", "multisine", "white_noise", or a record (samples,), applied
        to each input in turn, or (m, samples), of which row i is applied to input i alone.
    horizon : float
        How long a response takes to die out (s; samples where dt is True). The runs of a broadband
        excitation are longer. Linear models have a default, from their poles.
    step : float
        Time between samples of u, x and y (s). In discrete time it is the sampling time and may be left
        out. Linear models have a default, from their poles.
    dt : 0, True, float or None
        Timebase of a tuple or a callable: 0 continuous (default), True or seconds discrete.
    n_states, n_inputs : int, optional
        Sizes n and m of a callable. Where they are given neither here nor by ``steady_state`` and
        ``steady_input``, they are found by calling it with zeros of growing size.
    steady_state, steady_input : array_like (n,) and (m,), optional
        Operating point of a simulator, around which it is excited; zero by default.
    input_scales, state_scales : float or array_like (k,), (m, k) or (n, k)
        Magnitudes of the excitations and perturbations; the Gramian is the average over all k of them. With
        two axes each input or state has its own. The scale is the area (continuous) or height (discrete) of
        an impulse, the height of a step, and the root mean square value of every other signal; a record is
        multiplied by it. Without effect on a linear model.
    signs : sequence of int
        (1, -1), (1,) or (-1,): the signs with which the scales are applied. Without effect on a linear model.
    centering : str
        What is subtracted from the responses: "steady" subtracts the unperturbed run, which makes the
        result a Gramian; "mean" and "final" subtract the mean over the horizon or the last value in addition.
    hold : "zoh", "foh" or None
        How a continuous-time simulator holds u between samples: constant, or a straight line. None
        (default) detects it with one short pulse on each input.
    seed : int or numpy Generator
        Seed of the random excitations.
    batch_size : int, optional
        The callable takes up to this many experiments at once, stacked along a new first axis.
    n_jobs : int, optional
        Number of experiments run in parallel, as in joblib. By default 1, or with a backend all its workers.
    backend : str or dask.distributed.Client, optional
        Where experiments run in parallel: "loky" (processes, the default), "threading", "multiprocessing",
        "dask" (the current client), "ray", the address of a Dask scheduler, or a Dask client. A backend
        chosen with ``joblib.parallel_config`` is used, too.
    checkpoint : path, optional
        A folder in which the responses of a simulator are written about every 30 s. A call that was
        interrupted resumes from there if it is made again with the same arguments, and a lost worker process
        costs one round. Another simulator is noticed if it answers otherwise to one run with all inputs, or
        all states, perturbed at once. The folder is kept.
    progress : bool, optional
        Show a progress bar. By default it is shown when stderr is a terminal and the computation is long.
    stability_tol : float
        Relative distance from the stability boundary below which a pole of a linear model is marginal.

    Returns
    -------
    EmpiricalGramians

    Raises
    ------
    UnstableError
        The linear model has an unstable or marginal pole.
    ModelError
        The simulator fails, or returns wrong shapes, NaN or Inf (the message names the experiment); or a
        cross Gramian is requested of a system that is not square.
    HankelredError
        An argument is unknown or contradicts another, the horizon is shorter than the step, the record
        leaves frequencies unexcited, the model is too stiff for a uniform grid, or the checkpoint is of other
        experiments or of another simulator.

    Notes
    -----
    With g the normalised response of the states to input i (an impulse response), and y that of
    the outputs to a perturbed initial state, averaged over scales and signs::

        controllability   W_c = sum_i  integral  g_i g_i^H dt         A W + W A^H + B B^H = 0
        observability     W_o =        integral  Y^H Y dt             A^H W + W A + C^H C = 0
        cross             X   = sum_i  integral  g_i Y_i dt           A X + X A + B C = 0

    In discrete time the integrals are sums. Integrals are of eighth order in the step (Gregory), the
    derivatives that invert a hold of sixth. See the page "Empirical Gramians" of the documentation.

    References
    ----------
    S. Lall, J. E. Marsden, S. Glavaski, "A subspace approach to balanced truncation for model reduction
    of nonlinear control systems", *Int. J. Robust Nonlinear Control* 12 (2002) 519-535.
    C. Himpe, "emgr - The Empirical Gramian Framework", *Algorithms* 11 (2018) 91.

    Examples
    --------
    A linear model:

    >>> A, B, C = [[-1.0, 1.0], [0.0, -2.0]], [[0.0], [1.0]], [[1.0, 0.0]]
    >>> grams = empirical_gramians((A, B, C, 0.0))
    >>> np.round(grams.controllability * 12, 6)
    array([[1., 1.],
           [1., 3.]])

    A nonlinear simulator in discrete time:

    >>> def simulate(x0, u):
    ...     x = np.empty((2, u.shape[1]))
    ...     state = x0
    ...     for k in range(u.shape[1]):
    ...         x[:, k] = state
    ...         state = np.tanh([0.5 * state[0] + 0.2 * state[1], 0.4 * state[1] + u[0, k]])
    ...     return x, x[:1]
    >>> grams = empirical_gramians(simulate, dt=True, horizon=40, input_scales=[0.1, 0.5])
    >>> grams.hankel_singular_values.shape
    (2,)
    """
    kinds = _checked_kinds(kinds)
    if centering not in CENTERINGS:
        raise HankelredError(f"unknown centering {centering!r}; use one of {', '.join(CENTERINGS)}")
    for value, name in ((horizon, "horizon"), (step, "step")):
        if value is not None:
            check_span(value, name)
    check_backend(backend)
    if is_nonlinear_control_system(system):
        n_states = _size_of_system(system.nstates, n_states, steady_state, "state")
        n_inputs = _size_of_system(system.ninputs, n_inputs, steady_input, "input")
        dt = _timebase_of_system(system.dt, dt)
        system = simulator_of_control_system(system, step)
    if _is_simulator(system):
        runner = Runner(
            system,
            _checked_batch(batch_size),
            _checked_jobs(n_jobs),
            progress,
            backend,
            None if checkpoint is None else Checkpoint(checkpoint),
        )
        dt = validated_timebase(dt)
        signs, hold = _checked_signs(signs), _checked_hold(hold)
        step, intervals = _grid(dt, horizon, step if is_discrete(dt) else step_of_simulator(system, step))
        step_of_simulator(system, step)
        x_steady, u_steady = _operating_point(
            runner, intervals, (steady_state, n_states), (steady_input, n_inputs)
        )
        job = SimulatorJob(
            runner=runner,
            kinds=kinds,
            excitation=excitation,
            dt=dt,
            hold=hold,
            steady_state=x_steady,
            steady_input=u_steady,
            input_scales=_scale_table(input_scales, u_steady.size, "input_scales"),
            state_scales=_scale_table(state_scales, x_steady.size, "state_scales"),
            signs=signs,
            centering=centering,
            seed=seed,
        )
        assembled = simulator_gramians(job, intervals, step)
        return _result(
            assembled, kinds, horizon=intervals * step, step=step, steady_state=x_steady, model=None
        )
    model = as_model(system, dt)
    if backend is not None or checkpoint is not None:
        argument = "checkpoint" if backend is None else "backend"
        raise HankelredError(
            f"{argument}= is for simulators: the responses of a linear model are computed here"
        )
    if model.infinite is not None:
        raise ModelError(
            "E is singular, so that the states cannot be excited one by one: pass the state space of the "
            "finite poles, reduce(system, finite_order).system, or use gramian()"
        )
    if "cross" in kinds and model.n_inputs != model.n_outputs:
        raise cross_needs_square(model.n_inputs, model.n_outputs)
    origin = np.zeros(model.n_states)
    if model.n_states == 0:
        empty = Assembled(
            gramians={kind: np.zeros((0, 0)) for kind in kinds},
            factors={kind: np.zeros((0, 0)) for kind in kinds},
            quadrature=dict.fromkeys(kinds, 0.0),
            tail=dict.fromkeys(kinds, 0.0),
            rounding=dict.fromkeys(kinds, 0.0),
        )
        return _result(
            empty, kinds, horizon=horizon or 0.0, step=step or 0.0, steady_state=origin, model=model
        )
    linear_job = LinearJob(model, kinds, excitation, centering, seed, checked_tol(stability_tol))
    assembled, horizon, step = model_gramians(linear_job, horizon, step)
    return _result(assembled, kinds, horizon=horizon, step=step, steady_state=origin, model=model)


def _is_simulator(system: Any) -> bool:
    # Some models are callable too: those of python-control return their value at a complex frequency.
    control = sys.modules.get("control")
    is_model = hasattr(system, "__hankelred_model__") or (
        control is not None and isinstance(system, control.InputOutputSystem)
    )
    return callable(system) and not is_model


def _result(
    assembled: Assembled,
    kinds: tuple[str, ...],
    *,
    horizon: float,
    step: float,
    steady_state: Array,
    model: LinearModel | None,
) -> EmpiricalGramians:
    return EmpiricalGramians(
        controllability=assembled.gramians.get("controllability"),
        observability=assembled.gramians.get("observability"),
        cross=assembled.gramians.get("cross"),
        error_estimate={kind: assembled.error(kind) for kind in kinds},
        horizon=horizon,
        step=step,
        controllability_factor=assembled.factors.get("controllability"),
        observability_factor=assembled.factors.get("observability"),
        steady_state=steady_state,
        _model=model,
        _rounding=max(assembled.response_rounding, steady_state.size * EPS),
    )


def _grid(dt: Timebase, horizon: float | None, step: float | None) -> tuple[float, int]:
    """Return the step and the number of steps of the runs of a simulator."""
    if is_discrete(dt):
        step = discrete_step(dt, step)
    if horizon is None or step is None:
        missing = "horizon=" if horizon is None else "step="
        raise HankelredError(
            f"a simulator needs {missing}; give the time its responses take to die out as horizon= and, in "
            "continuous time, the time between its samples as step= (dt=True for discrete time)"
        )
    return step, count_intervals(horizon, step)


def _operating_point(
    runner: Runner,
    intervals: int,
    state: tuple[npt.ArrayLike | None, int | None],
    inputs: tuple[npt.ArrayLike | None, int | None],
) -> tuple[Array, Array]:
    """Return the steady state and input, zero where they are not given, from their values and sizes.

    Where neither is given, the size is found by trial runs.
    """
    x_steady, u_steady = (
        None if value is None else _vector(value, name)
        for value, name in ((state[0], "steady_state"), (inputs[0], "steady_input"))
    )
    for vector, what in ((x_steady, "state"), (u_steady, "input")):
        if vector is not None and vector.size == 0:
            raise HankelredError(f"steady_{what} is empty; a simulator has at least one {what}")
    n, m = _size(state[1], x_steady, "n_states"), _size(inputs[1], u_steady, "n_inputs")
    if n is None or m is None:
        n, m = find_sizes(runner.simulate, intervals + 1, n, m, runner.batch_size is not None)
    return np.zeros(n) if x_steady is None else x_steady, np.zeros(m) if u_steady is None else u_steady


def _size_of_system(
    size: int | None, given: int | None, steady: npt.ArrayLike | None, what: str
) -> int | None:
    """Return the number of states or inputs of a model of python-control, None where it does not know it.

    The size and the operating point that the user gives must agree with it.
    """
    if size is None:
        return given
    if size == 0:
        raise ModelError(f"the system has no {what}s, and nothing to excite by them; pass one with {what}s")
    if given is not None and _size(given, None, f"n_{what}s") != size:
        raise HankelredError(
            f"n_{what}s={given}, but the number of {what}s of the system is {size}; leave out n_{what}s="
        )
    entries = size if steady is None else _vector(steady, f"steady_{what}").size
    if entries != size:
        raise HankelredError(
            f"steady_{what} has {entries} entries, but the number of {what}s of the system is {size}"
        )
    return size


def _timebase_of_system(dt: Timebase, given: Timebase) -> Timebase:
    """Return the timebase of a model of python-control; one that the user gives must be 0 or equal it."""
    if validated_timebase(given) not in (0, None, dt):
        raise HankelredError(f"dt={given}, but that of the system is {dt}; leave out dt=")
    return dt


def _checked_kinds(kinds: str | Sequence[str]) -> tuple[str, ...]:
    names = (kinds,) if isinstance(kinds, str) or not isinstance(kinds, Iterable) else tuple(kinds)
    for kind in names:
        if kind not in _KINDS:
            raise HankelredError(f"unknown kind of Gramian {kind!r}; use some of {', '.join(_KINDS)}")
    if not names:
        raise HankelredError(f"kinds= names no kind of Gramian; use some of {', '.join(_KINDS)}")
    return tuple(dict.fromkeys(names))


def _checked_signs(signs: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(signs, Iterable) or not (set(signs) and set(signs) <= {1, -1}):
        raise HankelredError(f"signs must be (1, -1), (1,) or (-1,), got {signs!r}")
    return tuple(dict.fromkeys(signs))


def _checked_hold(hold: str | None) -> str | None:
    return None if hold is None else require_option(hold, ("zoh", "foh"), "hold", HankelredError)


def _checked_batch(batch_size: int | None) -> int | None:
    if batch_size is None:
        return None
    size = as_positive_integer(batch_size)
    if size is None:
        raise HankelredError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    return size


def _checked_jobs(n_jobs: int | None) -> int | None:
    if n_jobs is not None and not as_integer(n_jobs):
        raise HankelredError(
            f"n_jobs must be None, a number of processes, or negative (-1: one per core), got {n_jobs!r}"
        )
    return n_jobs


def _reals(values: npt.ArrayLike, name: str) -> Array:
    array = as_numbers(values, name)
    if np.iscomplexobj(array):
        raise HankelredError(f"{name} must be real, got {values!r}")
    return array.astype(float)


def _vector(value: npt.ArrayLike, name: str) -> Array:
    vector = np.atleast_1d(_reals(value, name))
    if vector.ndim != 1 or not np.all(np.isfinite(vector)):
        raise HankelredError(f"{name} must be a vector of finite numbers, got {value!r}")
    return vector


def _size(value: int | None, vector: Array | None, name: str) -> int | None:
    size = None if value is None else as_positive_integer(value)
    if value is not None and size is None:
        raise HankelredError(f"{name} must be a whole number of at least 1, got {value!r}")
    if vector is None:
        return size
    if size is not None and size != vector.size:
        raise HankelredError(f"{name}={size}, but the operating point has {vector.size} entries")
    return vector.size


def _scale_table(scales: npt.ArrayLike, size: int, name: str) -> Array:
    """Return (size, k) magnitudes."""
    table = np.atleast_1d(_reals(scales, name))
    if table.ndim == 1:
        table = np.broadcast_to(table, (size, table.size))
    if table.ndim != 2 or table.shape[0] != size or table.shape[1] == 0:
        raise HankelredError(
            f"{name} must be a number, a list of magnitudes, or an array ({size}, k); got shape "
            f"{np.shape(scales)}"
        )
    if not np.all(np.isfinite(table) & (table > 0)):
        raise HankelredError(
            f"{name} must be positive and finite (signs= adds the negative ones), got {scales!r}"
        )
    return table
