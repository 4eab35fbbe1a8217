"""Empirical Gramians of a simulator: its responses are experiments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._util.arrays import EPS, Array
from ..errors import HankelredError
from ..models.linear_model import Timebase, is_discrete
from .assembly import Assembled, Responses, assemble
from .excitations import Excitation, Seed, impulse_response, make_excitation
from .experiments import Experiment, Runner, timed
from .responses import amplification, centred, cross_needs_square, leakage


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
