"""Empirical Gramians of a linear model, from responses computed with its matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from .._util.poles import distance_to_boundary
from ..errors import HankelredError, UnstableError
from ..gramians.stability import is_stable_pole, matrix_size, suspected_timebase
from ..models.linear_model import LinearModel
from ..models.scaling import balance_matrix
from ..simulation.batch_recurrence import free_responses, recurrence, squares
from ..simulation.discretize import discretize
from ..simulation.recurrence import row_powers
from .assembly import Assembled, Responses, assemble
from .excitations import Seed, impulse_from_pulse_response, make_excitation
from .responses import amplification, centered, count_intervals, discrete_step, leakage

#: Relative error from each source that the default grid of a linear model is refined to.
_TARGET = 1e-8
#: Default step, in units of the fastest pole's time constant.
_STEP = 0.05
#: Doublings of the horizon and halvings of the step before giving up.
_REFINEMENTS = 8
#: Entries of the states that are computed at once.
_CHUNK = 1 << 14
#: Largest number of response samples one call may keep in memory (about 1 GB).
_MAX_NUMBERS = 1.5e8


@dataclass(frozen=True)
class LinearJob:
    """A linear model, its excitation, and the Gramians to compute."""

    model: LinearModel
    kinds: tuple[str, ...]
    excitation: str | npt.ArrayLike
    centering: str
    seed: Seed
    stability_tol: float


def model_gramians(
    job: LinearJob, horizon: float | None, step: float | None
) -> tuple[Assembled, float, float]:
    """Return the Gramians of a linear model, the horizon, and the step they were computed with."""
    model = job.model
    # States in very different units would make the matrix exponential inaccurate.
    A, scaling = balance_matrix(model.A)
    system = _Scaled(A, model.B / scaling[:, None], model.C * scaling, scaling)
    poles = np.linalg.eigvals(A)
    _require_stable(poles, A, model.is_discrete, job.stability_tol)
    # The amplitude that may remain at the horizon: the part cut off enters squared, except where a broadband
    # excitation folds it back into the response.
    squared = isinstance(job.excitation, str) and job.excitation.lower() in ("impulse", "step")
    decay = math.sqrt(_TARGET) if squared or job.kinds == ("observability",) else _TARGET / 4
    if model.is_discrete:
        fixed_step = discrete_step(model.dt, step)
        slowest = float(np.abs(poles).max())
        memory = math.log(decay) / math.log(slowest) if slowest > 0 else 0.0
        horizon_now = horizon or fixed_step * (math.ceil(memory) + model.n_states)
        step_now = fixed_step
    else:
        fastest, slowest = float(np.abs(poles).max()), float(-poles.real.max())
        step_now = _STEP / fastest if step is None else step
        horizon_now = -math.log(decay) / slowest if horizon is None else horizon
    for _ in range(_REFINEMENTS):
        intervals = count_intervals(horizon_now, step_now)
        _require_memory(intervals, model, horizon, step)
        assembled = assemble(_linear_responses(job, system, intervals, step_now), job.kinds)
        # The poles are not sufficient: responses of a far from normal A outlast its slowest time constant.
        longer = horizon is None and max(assembled.tail.values()) > (_TARGET if squared else 10 * _TARGET)
        finer = step is None and not model.is_discrete and max(assembled.quadrature.values()) > _TARGET
        if not (longer or finer):
            break
        horizon_now = horizon_now * 2 if longer else horizon_now
        step_now = step_now / 2 if finer else step_now
    return assembled, intervals * step_now, step_now


@dataclass(frozen=True)
class _Scaled:
    A: Array
    B: Array
    C: Array
    scaling: Array


def _require_stable(poles: Array, A: Array, discrete: bool, tol: float) -> None:
    if not np.all(is_stable_pole(poles, matrix_size(A), discrete=discrete, tol=tol)):
        worst = int(distance_to_boundary(poles, discrete=discrete).argmin())
        region = "inside the unit circle" if discrete else "in the open left half plane"
        raise UnstableError(
            f"the model has a pole at {poles[worst]:.6g}, not {region}: its Gramians do not exist; "
            "reduce the stable part, or pass a simulator and a finite horizon"
            f"{suspected_timebase(poles, discrete=discrete)}"
        )


def _require_memory(intervals: int, model: LinearModel, horizon: float | None, step: float | None) -> None:
    numbers = (intervals + 1) * model.n_states * (model.n_inputs + model.n_outputs)
    if numbers > _MAX_NUMBERS:
        advice = (
            "its fastest and slowest poles lie too far apart for a uniform grid: use hankelred.gramian, "
            "which needs none, or pass horizon= and step="
            if horizon is None or step is None
            else "use a longer step= or a shorter horizon="
        )
        raise HankelredError(
            f"{intervals} samples of {model.n_states} states are too many ({numbers:.1e} numbers); {advice}"
        )


def _linear_responses(job: LinearJob, system: _Scaled, intervals: int, step: float) -> Responses:
    discrete = job.model.is_discrete
    A, B, C, scaling = system.A, system.B, system.C, system.scaling
    samples = intervals if discrete else intervals + 1
    transition = A if discrete else sla.expm(A * step)
    fine: dict[str, Array] = {}
    coarse: dict[str, Array] = {}
    excitation = None
    if {"controllability", "cross"} & set(job.kinds):
        if isinstance(job.excitation, str) and job.excitation.lower() == "impulse":
            # an impulse is an initial state: exact in continuous time too
            impulses = row_powers(B.T, squares(transition.T, samples), samples).transpose(1, 2, 0)
            impulses *= scaling[:, None]
            fine_and_coarse = (impulses, impulses[..., ::2])
        else:
            excitation = make_excitation(
                job.excitation,
                n_inputs=B.shape[1],
                samples=intervals + 1,
                step=step,
                hold="zoh",
                discrete=discrete,
                seed=job.seed,
            )
            runs = _simulate_channels(
                transition, B if discrete else discretize(A, B, step, "zoh")[1], excitation.waveforms
            )
            pulses = np.stack([excitation.pulse_response(run, channel) for channel, run in enumerate(runs)])
            pulses *= scaling[:, None]
            fine_and_coarse = (
                impulse_from_pulse_response(pulses, hold="zoh", step=step, discrete=discrete),
                impulse_from_pulse_response(pulses, hold="zoh", step=step, discrete=discrete, stride=2),
            )
        fine["x"], coarse["x"] = (centered(values, job.centering)[None] for values in fine_and_coarse)
    if {"observability", "cross"} & set(job.kinds):
        outputs = centered(free_responses(transition, C, samples).transpose(0, 2, 1), job.centering)
        outputs /= scaling[:, None]
        fine["y"] = outputs[None]
        coarse["y"] = fine["y"][..., ::2]
    over_horizon = np.linalg.matrix_power(transition, intervals) * scaling[:, None] / scaling
    rounding = 100 * (1 + amplification(excitation)) + intervals * _growth(transition, intervals) ** 2
    adjoint = over_horizon.conj().T
    return Responses(
        step,
        discrete,
        fine,
        {} if discrete else coarse,
        rounding=rounding * EPS,
        leakage=leakage(excitation),
        beyond={
            "controllability": (over_horizon, adjoint),
            "observability": (adjoint, over_horizon),
            "cross": (over_horizon, over_horizon),
        },
    )


def _growth(A: Array, steps: int) -> float:
    """Return the largest norm of A^k, k = 1, 2, 4, ...: how much a rounding error in one step may grow.

    Unlike the growth rate of :mod:`hankelred.simulation.recurrence` it includes transient growth.
    """
    largest = 1.0
    for _ in range(steps.bit_length()):
        largest = max(largest, float(np.linalg.norm(A, 2)))
        A = A @ A
    return largest


def _simulate_channels(A: Array, B: Array, waveforms: Array) -> Array:
    """Return the states (m, n, T), from zero, with its waveform of (m, T) applied to each input in turn."""
    (n, m), samples = B.shape, waveforms.shape[1]
    out = np.empty((n, samples, m), dtype=np.result_type(A, B, float))
    x = np.zeros((n, m), dtype=out.dtype)
    length = max(_CHUNK // (n * m), 64)
    for start in range(0, samples, length):
        forcing = B[:, None] * waveforms.T[start : start + length]
        states = recurrence(A, forcing, x)
        out[:, start : start + length] = states
        x = A @ states[:, -1] + forcing[:, -1]
    return out.transpose(2, 0, 1)
