"""Simulators made of right-hand sides, and of nonlinear models of python-control."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._util.arrays import Array
from .._util.checks import first_index, real_number, require_option
from ..errors import HankelredError, ModelError
from ..models.linear_model import is_discrete, sampling_time
from .experiments import Simulator

#: One Runge-Kutta step for each sample, or an adaptive method of scipy.
_SOLVERS = ("rk4", "RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")
#: Calls of f between two samples after which an adaptive method is stopped.
_MAX_EVALUATIONS = 20_000


def simulator_from_rhs(
    f: Callable[[Array, Array], Any],
    step: float,
    *,
    output: Callable[[Array, Array], Any] | None = None,
    solver: str = "RK45",
    rtol: float = 1e-8,
) -> Simulator:
    """Make a simulator for :func:`empirical_gramians` from the right-hand side of x' = f(x, u).

    The input is constant between samples (a zero-order hold). :func:`empirical_gramians` then needs no
    ``step``, and refuses another one.

    Parameters
    ----------
    f : callable
        ``f(x, u)``, of a state (n,) and an input (m,), returns the derivative (n,) in double precision: a
        numpy array, a list, or an array of JAX or torch that can be converted to numpy.
    step : float
        Time between samples (s).
    output : callable, optional
        ``output(x, u)`` returns the outputs (p,) or a number. By default all states are outputs.
    solver : str
        An adaptive method of ``scipy.integrate.solve_ivp`` ("RK45", "DOP853", "RK23"; "LSODA", "Radau" and
        "BDF" for stiff systems), or "rk4": one step of the classical Runge-Kutta method for each sample,
        which is fast and does not control its error.
    rtol : float
        Relative tolerance of the adaptive methods; the absolute one is 1e-3 of it, times the largest entry
        of the states so far.

    Returns
    -------
    callable
        ``simulate(x0, u) -> (x, y)``; it can be sent to other processes where f and output can.

    Raises
    ------
    HankelredError
        An argument is out of range. The simulator itself raises a ModelError where f or output return a
        wrong shape or single precision, f returns NaN or Inf, or the solver fails.

    References
    ----------
    E. Hairer, S. P. Norsett, G. Wanner, *Solving Ordinary Differential Equations I*, 2nd ed., 1993.

    Examples
    --------
    A tank that drains through a hole:

    >>> import numpy as np
    >>> simulate = simulator_from_rhs(lambda x, u: u - np.sqrt(np.maximum(x, 0)), 0.1)
    >>> from hankelred import empirical_gramians
    >>> grams = empirical_gramians(simulate, step=0.1, horizon=20, steady_state=[1.0], steady_input=[1.0],
    ...                            input_scales=0.01, state_scales=0.01)
    >>> float(round(grams.controllability[0, 0], 3))  # linearized: x' = u - x / 2
    1.0
    """
    for function, name in ((f, "f"), (output, "output")):
        if not callable(function) and not (function is None and name == "output"):
            raise HankelredError(
                f"{name} must be a function of the state and the input, got a {type(function).__name__}"
            )
    return _RhsSimulator(
        _WithoutTime(f),
        None if output is None else _WithoutTime(output),
        real_number(step, lambda h: 0 < h < np.inf, "step must be a positive number", HankelredError),
        require_option(solver, _SOLVERS, "solver", HankelredError),
        real_number(rtol, lambda r: 1e-13 <= r < 1, "rtol must be from 1e-13 to 1", HankelredError),
    )


@dataclass(frozen=True)
class _WithoutTime:
    """A function of the state and the input as one of time, state and input."""

    function: Callable[[Array, Array], Any]

    def __call__(self, t: float, x: Array, u: Array) -> Any:
        return self.function(x, u)


def step_of_simulator(simulate: Any, step: float | None) -> float | None:
    """Return the step of a call, which of a simulator made of a right-hand side is its own.

    Raises
    ------
    HankelredError
        They differ: responses of one step would be taken for those of another.
    """
    if not isinstance(simulate, _RhsSimulator):
        return step
    if step is not None and not np.isclose(step, simulate.step, rtol=1e-9, atol=0):
        raise HankelredError(
            f"step={step:g} differs from the step of the simulator, {simulate.step:g}, with which "
            "simulator_from_rhs made it; use one for both"
        )
    return simulate.step


def is_nonlinear_control_system(system: Any) -> bool:
    """Tell whether this is a model of python-control that is not a linear one."""
    control = sys.modules.get("control")
    return (
        control is not None
        and isinstance(system, control.NonlinearIOSystem)
        and not isinstance(system, control.StateSpace)
    )


def simulator_of_control_system(system: Any, step: float | None) -> Simulator:
    """Return a simulator of a ``control.NonlinearIOSystem`` with its own parameters.

    Parameters
    ----------
    system : control.NonlinearIOSystem
    step : float or None
        Time between samples; of a discrete-time system its sampling time.
    """
    if is_discrete(system.dt):
        return _DiscreteSimulator(system.dynamics, system.output, sampling_time(system.dt))
    if step is None:
        raise HankelredError("a continuous-time system needs step=, the time between samples (s)")
    return _RhsSimulator(system.dynamics, system.output, step, "RK45", 1e-8)


@dataclass(frozen=True)
class _RhsSimulator:
    """Integration of x' = f(t, x, u) with u constant between samples."""

    f: Callable[[float, Array, Array], Any]
    output: Callable[[float, Array, Array], Any] | None
    step: float
    solver: str
    rtol: float

    def __call__(self, x0: Array, u: Array) -> tuple[Array, Array]:
        x0 = np.asarray(x0, dtype=float)
        states = np.empty((x0.size, u.shape[1]))
        x, size = x0, 0.0
        for k in range(u.shape[1]):
            states[:, k] = x
            if k + 1 < u.shape[1]:
                # errors count against the largest state so far: one that has decayed would need smaller ones
                size = max(size, float(np.abs(x).max(initial=0.0)))
                x = self._advance(k * self.step, x, u[:, k], size)
        return states, _outputs(self.output, states, u, self.step)

    def _advance(self, t: float, x: Array, u: Array, size: float) -> Array:
        evaluations = 0

        def rate(time: float, state: Array) -> Array:
            nonlocal evaluations
            evaluations += 1
            if evaluations > _MAX_EVALUATIONS:
                # a solution that ends in a pole is approached in ever smaller steps
                raise ModelError(
                    f"{self.solver} called f {_MAX_EVALUATIONS} times from t = {t:g} to {t + self.step:g} "
                    f"and is at {time:.6g}: the solution may become infinite there; use a smaller step or "
                    "smaller scales, or a solver for stiff systems (LSODA, Radau, BDF)"
                )
            return _vector(_call(self.f, time, state, u), state.size, "f", time)

        h = self.step
        if self.solver == "rk4":
            k1 = rate(t, x)
            k2 = rate(t + h / 2, x + h / 2 * k1)
            k3 = rate(t + h / 2, x + h / 2 * k2)
            k4 = rate(t + h, x + h * k3)
            result: Array = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return result
        from scipy.integrate import solve_ivp

        if size == 0:  # at rest there is no state yet, but its change over the step
            size = h * float(np.abs(rate(t, x)).max(initial=0.0)) or 1.0
        solution = solve_ivp(
            rate,
            (t, t + h),
            x,
            method=self.solver,
            t_eval=(t + h,),
            rtol=self.rtol,
            atol=1e-3 * self.rtol * size,
        )
        if not (solution.success and np.all(np.isfinite(solution.y))):
            raise ModelError(
                f"solve_ivp with {self.solver} failed at t = {t:g}: {solution.message}; use a smaller step, "
                "or a solver for stiff systems (LSODA, Radau, BDF)"
            )
        end: Array = solution.y[:, -1]
        return end


@dataclass(frozen=True)
class _DiscreteSimulator:
    """Iteration of x_next = f(t, x, u)."""

    f: Callable[[float, Array, Array], Any]
    output: Callable[[float, Array, Array], Any]
    step: float

    def __call__(self, x0: Array, u: Array) -> tuple[Array, Array]:
        states = np.empty((np.size(x0), u.shape[1]))
        x = np.asarray(x0, dtype=float)
        for k in range(u.shape[1]):
            states[:, k] = x
            if k + 1 < u.shape[1]:
                t = k * self.step
                x = _vector(_call(self.f, t, x, u[:, k]), x.size, "the update function", t)
        return states, _outputs(self.output, states, u, self.step)


def _outputs(
    output: Callable[[float, Array, Array], Any] | None, states: Array, u: Array, step: float
) -> Array:
    if output is None:
        return states.copy()
    values = [_numbers(_call(output, k * step, states[:, k], u[:, k]), "output") for k in range(u.shape[1])]
    if len({value.size for value in values}) > 1:
        raise ModelError("output returned different numbers of outputs at different samples")
    return np.stack(values, axis=1)


def _call(function: Callable[[float, Array, Array], Any], t: float, x: Array, u: Array) -> Any:
    # a function may change its arguments in place: the state of the solver, or arrays of the caller
    return function(t, x.copy(), u.copy())


def _vector(value: Any, size: int, name: str, t: float) -> Array:
    vector = _numbers(value, name)
    if vector.size != size:
        raise ModelError(
            f"{name} returned {vector.size} numbers for {size} states; return one for each state"
        )
    at = first_index(~np.isfinite(vector))
    if at is not None:
        raise ModelError(
            f"{name} returned {vector[at]} for state {at[0] + 1} at t = {t:g}; use a smaller step or smaller "
            "scales, or check that it is defined at all states near the operating point"
        )
    return vector


def _numbers(value: Any, name: str) -> Array:
    array = np.asarray(value)
    if array.dtype in (np.float32, np.float16):
        raise ModelError(
            f"{name} returned {array.dtype}, whose rounding is larger than the differences that are "
            "measured; compute in double precision (JAX: jax.config.update('jax_enable_x64', True), torch: "
            "float64)"
        )
    if array.dtype.kind not in "iuf":
        raise ModelError(f"{name} must return real numbers, got an array of type {array.dtype}")
    return array.reshape(-1).astype(float)
