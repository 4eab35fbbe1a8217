"""Normalised responses of a linear model, by its matrices, and of a simulator, by experiments."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg as sla

from ._assembly import EPS, Assembled, Responses, assemble
from ._errors import HankelredError, ModelError, UnstableError
from ._excitations import Excitation, Seed, impulse_response, make_excitation
from ._experiments import Experiment, Runner, timed
from .models import Array, LinearModel, Timebase, is_discrete

CENTERINGS = ("steady", "mean", "final")

#: What the default grid of a linear model aims at, for each source of error.
_TARGET = 1e-8
#: Default step, in units of the fastest pole's time constant.
_STEP = 0.05
#: Doublings of the horizon and halvings of the step before giving up.
_REFINEMENTS = 8
#: Numbers held at once on behalf of one call (about 1 GB).
_MOST_NUMBERS = 1.5e8


def centred(responses: Array, centering: str) -> Array:
    """Subtract the mean or the last value of each response, which is off the steady state already."""
    if centering == "steady":
        return responses
    centre: Array = responses.mean(axis=-1, keepdims=True) if centering == "mean" else responses[..., -1:]
    return responses - centre


def count_intervals(horizon: float, step: float) -> int:
    """Whole steps in the horizon."""
    for value, name in ((horizon, "horizon"), (step, "step")):
        if not (math.isfinite(value) and value > 0):
            raise HankelredError(f"{name} must be a positive number, got {value!r}")
    intervals = round(horizon / step)
    if intervals < 1:
        raise HankelredError(
            f"the horizon {horizon:g} is shorter than the step {step:g}; the horizon is how long a response "
            "takes to die out, the step the distance of its samples"
        )
    return intervals


def discrete_step(dt: Timebase, step: float | None) -> float:
    """Return the sampling time of discrete time, 1 where it is not given, checked against ``step``."""
    own = 1.0 if dt is True else float(dt or 0)
    if step is not None and not math.isclose(step, own):
        raise HankelredError(
            f"step={step:g} differs from the sampling time {own:g} of a discrete-time system; leave step out"
        )
    return own


def amplification(feed: Excitation | None) -> float:
    """How much undoing the excitation amplifies rounding."""
    return 0.0 if feed is None else feed.amplification


def leakage(feed: Excitation | None) -> float:
    """How much of an amplitude that an experiment cuts off comes back misplaced, at most.

    A period folds it onto itself, and the lead-in or the end of a run leaves as much of a difference.
    """
    return 0.0 if feed is None or feed.shape in ("pulse", "step") else 1 + 2 * feed.amplification


# --- linear models ------------------------------------------------------------------------------


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
    # Powers of two undo exactly, and states in wild units would cost the matrix exponential its digits.
    A, (scaling, _) = sla.matrix_balance(model.A, permute=False, separate=True)
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
            runs = _simulate_channels(transition, B if discrete else _zoh_input(A, B, step), feed.waveforms)
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


def _zoh_input(A: Array, B: Array, step: float) -> Array:
    n, m = B.shape
    both = np.zeros((n + m, n + m), dtype=np.result_type(A, B))
    both[:n, :n], both[:n, n:] = A, B
    held: Array = sla.expm(both * step)[:n, n:]
    return held


def _simulate_channels(A: Array, B: Array, waveforms: Array) -> Array:
    """States (m, n, T) when each input alone is fed its waveform (m, T), from rest."""
    m, samples = waveforms.shape
    out = np.empty((samples, A.shape[0], m), dtype=np.result_type(A, B, float))
    x = np.zeros(out.shape[1:], dtype=out.dtype)
    for k in range(samples):
        out[k] = x
        x = A @ x + B * waveforms[:, k]
    return out.transpose(2, 1, 0)


# --- simulators ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimulatorJob:
    """What is asked about a simulator."""

    runner: Runner
    kinds: tuple[str, ...]
    excitation: str | npt.ArrayLike
    dt: Timebase
    hold: str | None
    steady_state: Array
    steady_input: Array
    input_scales: Array
    state_scales: Array
    signs: tuple[int, ...]
    centering: str
    seed: Seed


def of_simulator(job: SimulatorJob, intervals: int, step: float) -> Assembled:
    """Run the experiments and return the Gramians."""
    discrete = is_discrete(job.dt)
    want_states = bool({"controllability", "cross"} & set(job.kinds))
    want_outputs = bool({"observability", "cross"} & set(job.kinds))
    m, samples = job.steady_input.size, intervals if discrete else intervals + 1
    feed = None
    run = samples
    if want_states:
        hold = "zoh" if discrete else job.hold or _find_hold(job, intervals + 1)
        feed = make_excitation(
            job.excitation,
            n_inputs=m,
            samples=intervals + 1,
            step=step,
            hold=hold,
            discrete=discrete,
            seed=job.seed,
        )
        run = max(run, feed.run)
    at_rest = Experiment("unperturbed", job.steady_state, job.steady_input, np.zeros(run))
    x_rest, y_rest, seconds = timed(job.runner, at_rest)
    if "cross" in job.kinds and y_rest.shape[0] != m:
        raise cross_needs_square(m, y_rest.shape[0])
    fine: dict[str, Array] = {}
    coarse: dict[str, Array] = {}
    if feed is not None:
        fine["x"], coarse["x"] = _state_responses(job, feed, x_rest, y_rest.shape[0], seconds, step)
    if want_outputs:
        fine["y"] = centred(_output_responses(job, samples, y_rest, seconds), job.centering)
        coarse["y"] = fine["y"][..., ::2]
    responses = Responses(
        step,
        discrete,
        fine,
        {} if discrete else coarse,
        rounding=100 * EPS * (1 + amplification(feed)),
        leakage=leakage(feed),
    )
    return assemble(responses, job.kinds)


def cross_needs_square(n_inputs: int, n_outputs: int) -> ModelError:
    """Return the error for a cross Gramian of a system that is not square."""
    return ModelError(
        f"a cross Gramian needs as many outputs as inputs, and the system has {n_inputs} inputs and "
        f"{n_outputs} outputs; ask for controllability and observability"
    )


def _variants(scales: Array, signs: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(column, sign) for column in range(scales.shape[1]) for sign in signs]


def _state_responses(
    job: SimulatorJob, feed: Excitation, x_rest: Array, n_outputs: int, seconds: float, step: float
) -> tuple[Array, Array]:
    m, variants = job.steady_input.size, _variants(job.input_scales, job.signs)
    experiments = [
        Experiment(
            f"{feed.name} on input {channel + 1}, scale {sign * job.input_scales[channel, column]:g}",
            job.steady_state,
            job.steady_input,
            sign * job.input_scales[channel, column] * feed.waveforms[channel],
            channel,
        )
        for column, sign in variants
        for channel in range(m)
    ]
    runs = job.runner.all(experiments, "states", n_outputs, seconds)
    pulses = np.stack(
        [
            feed.pulse_response(run - x_rest[:, : feed.run], i % m)
            / (variants[i // m][1] * job.input_scales[i % m, variants[i // m][0]])
            for i, run in enumerate(runs)
        ]
    )
    pulses = pulses.reshape(len(variants), m, *pulses.shape[1:])

    def responses(stride: int) -> Array:
        found = impulse_response(
            pulses, hold=feed.hold, step=step, discrete=is_discrete(job.dt), stride=stride
        )
        return centred(found, job.centering)

    return responses(1), responses(2)


def _output_responses(job: SimulatorJob, samples: int, y_rest: Array, seconds: float) -> Array:
    n, variants = job.steady_state.size, _variants(job.state_scales, job.signs)
    amounts = [sign * job.state_scales[:, column] for column, sign in variants]
    experiments = [
        Experiment(
            f"initial state {state + 1}, scale {amount[state]:g}",
            job.steady_state + amount[state] * (np.arange(n) == state),
            job.steady_input,
            np.zeros(samples),
        )
        for amount in amounts
        for state in range(n)
    ]
    runs = job.runner.all(experiments, "outputs", y_rest.shape[0], seconds)
    stacked = np.stack([run - y_rest[:, :samples] for run in runs])
    by_variant = stacked.reshape(len(variants), n, *stacked.shape[1:])
    scaled: Array = by_variant / np.stack(amounts)[:, :, None, None]
    return scaled.transpose(0, 2, 1, 3)


def _find_hold(job: SimulatorJob, samples: int) -> str:
    """Find out how the simulator holds its input between samples, from a pulse at sample 1.

    Under a zero-order hold the pulse starts there, and the state has not moved yet; under a
    first-order hold the flank before it has moved the state about half as much as it will by sample 2.
    """
    if samples < 3 or (isinstance(job.excitation, str) and job.excitation.lower() == "step"):
        return "zoh"  # nothing to see, or nothing that depends on it
    pulse = np.zeros(samples)
    pulse[1] = 1.0
    quiet = Experiment("unperturbed", job.steady_state, job.steady_input, np.zeros(samples))
    rest = job.runner.one(quiet)[0]
    ratio = 0.0
    for channel in range(job.steady_input.size):
        name = f"pulse on input {channel + 1}, to find the hold"
        waveform = pulse * job.input_scales[channel, 0]
        x = job.runner.one(Experiment(name, job.steady_state, job.steady_input, waveform, channel))[0]
        first, second = np.abs(x - rest)[:, 1:3].max(axis=0)
        ratio = max(ratio, first / second) if second > 0 else ratio
    if ratio < 0.1:
        return "zoh"
    if ratio < 0.9:
        return "foh"
    raise HankelredError(
        "cannot tell how the simulator holds its input between samples (a pulse moved the state "
        f"{ratio:.2g} times as far by its own sample as one later); pass hold='zoh' (constant until the next "
        "sample) or hold='foh' (a straight line to it)"
    )
