"""Empirical Gramians of a linear model: its responses are computed from its matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from ..errors import HankelredError, UnstableError
from ..gramians.stability import suspected_timebase
from ..models.linear_model import LinearModel
from ..models.scaling import balance_matrix
from ..simulation.discretize import discretize
from .assembly import Assembled, Responses, assemble
from .excitations import Seed, impulse_response, make_excitation
from .responses import amplification, centred, count_intervals, discrete_step, leakage

#: What the default grid of a linear model aims at, for each source of error.
_TARGET = 1e-8
#: Default step, in units of the fastest pole's time constant.
_STEP = 0.05
#: Doublings of the horizon and halvings of the step before giving up.
_REFINEMENTS = 8
#: Numbers held at once on behalf of one call (about 1 GB).
_MOST_NUMBERS = 1.5e8


@dataclass(frozen=True)
class LinearJob:
    """What is asked about a linear model."""

    model: LinearModel
    kinds: tuple[str, ...]
    excitation: str | npt.ArrayLike
    centering: str
    seed: Seed
    stability_tol: float


def of_model(job: LinearJob, horizon: float | None, step: float | None) -> tuple[Assembled, float, float]:
    """Return the Gramians of a linear model, the horizon, and the step they were computed with."""
    model = job.model
    # States in wild units would cost the matrix exponential its digits.
    A, scaling = balance_matrix(model.A)
    system = _Scaled(A, model.B / scaling[:, None], model.C * scaling, scaling)
    poles = np.linalg.eigvals(A)
    _require_stable(poles, A, model.is_discrete, job.stability_tol)
    # The amplitude that may be left at the horizon: what is cut off counts squared, except where a
    # broadband excitation misplaces it.
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
        _require_room(intervals, model, horizon, step)
        done = assemble(_linear_responses(job, system, intervals, step_now), job.kinds)
        # The poles do not tell all: a far from normal A outlives its slowest time constant.
        longer = horizon is None and max(done.tail.values()) > (_TARGET if squared else 10 * _TARGET)
        finer = step is None and not model.is_discrete and max(done.quadrature.values()) > _TARGET
        if not (longer or finer):
            break
        horizon_now = horizon_now * 2 if longer else horizon_now
        step_now = step_now / 2 if finer else step_now
    return done, intervals * step_now, step_now


@dataclass(frozen=True)
class _Scaled:
    A: Array
    B: Array
    C: Array
    scaling: Array


def _require_stable(poles: Array, A: Array, discrete: bool, tol: float) -> None:
    size = float(np.linalg.norm(A, 2))
    margin = 1 - np.abs(poles) if discrete else -poles.real
    worst = int(margin.argmin())
    if margin[worst] <= tol * (max(1.0, size) if discrete else size):
        region = "inside the unit circle" if discrete else "in the open left half plane"
        raise UnstableError(
            f"the model has a pole at {poles[worst]:.6g}, not {region}: its Gramians do not exist; "
            "reduce the stable part, or pass a simulator and a finite horizon"
            f"{suspected_timebase(poles, discrete=discrete)}"
        )


def _require_room(intervals: int, model: LinearModel, horizon: float | None, step: float | None) -> None:
    numbers = (intervals + 1) * model.n_states * (model.n_inputs + model.n_outputs)
    if numbers > _MOST_NUMBERS:
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
    feed = None
    if {"controllability", "cross"} & set(job.kinds):
        if isinstance(job.excitation, str) and job.excitation.lower() == "impulse":
            # an impulse is an initial state: exact in continuous time too
            found = _powers(transition, B, samples).transpose(2, 1, 0)
            both = (found, found[..., ::2])
        else:
            feed = make_excitation(
                job.excitation,
                n_inputs=B.shape[1],
                samples=intervals + 1,
                step=step,
                hold="zoh",
                discrete=discrete,
                seed=job.seed,
            )
            runs = _simulate_channels(
                transition, B if discrete else discretize(A, B, step, "zoh")[1], feed.waveforms
            )
            pulses = np.stack([feed.pulse_response(run, channel) for channel, run in enumerate(runs)])
            both = (
                impulse_response(pulses, hold="zoh", step=step, discrete=discrete),
                impulse_response(pulses, hold="zoh", step=step, discrete=discrete, stride=2),
            )
        fine["x"], coarse["x"] = (centred(values * scaling[:, None], job.centering)[None] for values in both)
    if {"observability", "cross"} & set(job.kinds):
        found = centred(_powers(transition.T, C.T, samples).transpose(2, 1, 0), job.centering)
        fine["y"] = (found / scaling[:, None])[None]
        coarse["y"] = fine["y"][..., ::2]
    whole = np.linalg.matrix_power(transition, intervals) * scaling[:, None] / scaling
    rounding = 100 * (1 + amplification(feed)) + intervals * _growth(transition, intervals) ** 2
    adjoint = whole.conj().T
    return Responses(
        step,
        discrete,
        fine,
        {} if discrete else coarse,
        rounding=rounding * EPS,
        leakage=leakage(feed),
        beyond={
            "controllability": (whole, adjoint),
            "observability": (adjoint, whole),
            "cross": (whole, whole),
        },
    )


def _growth(A: Array, steps: int) -> float:
    """Largest norm of A^k over k = 1, 2, 4, ...: what rounding in one step may grow to."""
    largest = 1.0
    for _ in range(steps.bit_length()):
        largest = max(largest, float(np.linalg.norm(A, 2)))
        A = A @ A
    return largest


def _powers(A: Array, start: Array, samples: int) -> Array:
    """A^k start for k = 0 ... samples - 1, (samples, n, columns), by doubling."""
    n, columns = start.shape
    out = np.empty((samples, n, columns), dtype=np.result_type(A, start, float))
    out[0] = start
    have, power = 1, A
    while have < samples:
        more = min(have, samples - have)
        out[have : have + more] = power @ out[:more]
        have, power = have + more, power @ power
    return out


def _simulate_channels(A: Array, B: Array, waveforms: Array) -> Array:
    """States (m, n, T) when each input alone is fed its waveform (m, T), from rest."""
    m, samples = waveforms.shape
    out = np.empty((samples, A.shape[0], m), dtype=np.result_type(A, B, float))
    x = np.zeros(out.shape[1:], dtype=out.dtype)
    for k in range(samples):
        out[k] = x
        x = A @ x + B * waveforms[:, k]
    return out.transpose(2, 1, 0)
