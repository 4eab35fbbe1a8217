"""Empirical Gramians of a simulator, from experiments with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._util.arrays import EPS, Array
from ..errors import HankelredError
from ..models.linear_model import Timebase, is_discrete
from .assembly import Assembled, Responses, assemble
from .excitations import Excitation, Seed, impulse_from_pulse_response, make_excitation
from .experiments import Runner, SimulatorRun, timed
from .responses import amplification, centered, cross_needs_square, leakage


@dataclass(frozen=True)
class SimulatorJob:
    """A simulator, its operating point, the experiments to run, and the Gramians to compute from them."""

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


def simulator_gramians(job: SimulatorJob, intervals: int, step: float) -> Assembled:
    """Run the experiments and return the Gramians."""
    discrete = is_discrete(job.dt)
    needs_states = bool({"controllability", "cross"} & set(job.kinds))
    needs_outputs = bool({"observability", "cross"} & set(job.kinds))
    m, samples = job.steady_input.size, intervals if discrete else intervals + 1
    excitation = None
    run_length = samples
    if needs_states:
        hold = "zoh" if discrete else job.hold or _detect_hold(job, intervals + 1)
        excitation = make_excitation(
            job.excitation,
            n_inputs=m,
            samples=intervals + 1,
            step=step,
            hold=hold,
            discrete=discrete,
            seed=job.seed,
        )
        run_length = max(run_length, excitation.run_length)
    unperturbed = SimulatorRun("unperturbed", job.steady_state, job.steady_input, np.zeros(run_length))
    x_steady, y_steady, seconds = timed(job.runner, unperturbed)
    if "cross" in job.kinds and y_steady.shape[0] != m:
        raise cross_needs_square(m, y_steady.shape[0])
    fine: dict[str, Array] = {}
    coarse: dict[str, Array] = {}
    if excitation is not None:
        fine["x"], coarse["x"] = _state_responses(job, excitation, x_steady, y_steady.shape[0], seconds, step)
    if needs_outputs:
        fine["y"] = centered(_output_responses(job, samples, y_steady, seconds), job.centering)
        coarse["y"] = fine["y"][..., ::2]
    responses = Responses(
        step,
        discrete,
        fine,
        {} if discrete else coarse,
        rounding=100 * EPS * (1 + amplification(excitation)),
        leakage=leakage(excitation),
    )
    return assemble(responses, job.kinds)


def _variants(scales: Array, signs: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(column, sign) for column in range(scales.shape[1]) for sign in signs]


def _all_at_once(scales: Array, signs: tuple[int, ...]) -> Array:
    """Return amounts, near the largest scales, by which all inputs or all states are perturbed in one run.

    They differ so much that the responses to two of them hardly cancel. Where all at once are too much for
    the simulator, each one divided by their number is a mean of the experiments.
    """
    count = scales.shape[0]
    amounts: Array = signs[0] * scales.max(axis=1) / np.sqrt(1 + np.arange(count) / count)
    return amounts


def _state_responses(
    job: SimulatorJob, excitation: Excitation, x_steady: Array, n_outputs: int, seconds: float, step: float
) -> tuple[Array, Array]:
    m, variants = job.steady_input.size, _variants(job.input_scales, job.signs)
    experiments = [
        SimulatorRun(
            f"{excitation.name} on input {channel + 1}, scale {sign * job.input_scales[channel, column]:g}",
            job.steady_state,
            job.steady_input,
            sign * job.input_scales[channel, column] * excitation.waveforms[channel],
            channel,
        )
        for column, sign in variants
        for channel in range(m)
    ]
    waveforms = _all_at_once(job.input_scales, job.signs)[:, None] * excitation.waveforms
    witnesses = [
        SimulatorRun("all inputs at once", job.steady_state, job.steady_input, share * waveforms)
        for share in (1.0, 1 / m)
    ]
    runs = job.runner.run_all(experiments, witnesses, "states", n_outputs, seconds)
    pulses = np.stack(
        [
            excitation.pulse_response(run - x_steady[:, : excitation.run_length], i % m)
            / (variants[i // m][1] * job.input_scales[i % m, variants[i // m][0]])
            for i, run in enumerate(runs)
        ]
    )
    pulses = pulses.reshape(len(variants), m, *pulses.shape[1:])

    def responses(stride: int) -> Array:
        impulses = impulse_from_pulse_response(
            pulses, hold=excitation.hold, step=step, discrete=is_discrete(job.dt), stride=stride
        )
        return centered(impulses, job.centering)

    return responses(1), responses(2)


def _output_responses(job: SimulatorJob, samples: int, y_steady: Array, seconds: float) -> Array:
    n, variants = job.steady_state.size, _variants(job.state_scales, job.signs)
    amounts = [sign * job.state_scales[:, column] for column, sign in variants]
    experiments = [
        SimulatorRun(
            f"initial state {state + 1}, scale {amount[state]:g}",
            job.steady_state + amount[state] * (np.arange(n) == state),
            job.steady_input,
            np.zeros(samples),
        )
        for amount in amounts
        for state in range(n)
    ]
    together = _all_at_once(job.state_scales, job.signs)
    witnesses = [
        SimulatorRun(
            "all initial states at once",
            job.steady_state + share * together,
            job.steady_input,
            np.zeros(samples),
        )
        for share in (1.0, 1 / n)
    ]
    runs = job.runner.run_all(experiments, witnesses, "outputs", y_steady.shape[0], seconds)
    stacked = np.stack([run - y_steady[:, :samples] for run in runs])
    by_variant = stacked.reshape(len(variants), n, *stacked.shape[1:])
    scaled: Array = by_variant / np.stack(amounts)[:, :, None, None]
    return scaled.transpose(0, 2, 1, 3)


def _detect_hold(job: SimulatorJob, samples: int) -> str:
    """Detect how the simulator holds its input between samples, from a pulse at sample 1.

    Under a zero-order hold the pulse starts at its own sample, where the state has not moved yet; under a
    first-order hold the rising edge before it has moved the state about half as far as at sample 2.
    """
    if samples < 3 or (isinstance(job.excitation, str) and job.excitation.lower() == "step"):
        return "zoh"  # too short to detect, or the result does not depend on the hold
    pulse = np.zeros(samples)
    pulse[1] = 1.0
    unperturbed = SimulatorRun("unperturbed", job.steady_state, job.steady_input, np.zeros(samples))
    x_steady = job.runner.run(unperturbed)[0]
    ratio = 0.0
    for channel in range(job.steady_input.size):
        name = f"pulse on input {channel + 1}, to detect the hold"
        waveform = pulse * job.input_scales[channel, 0]
        x = job.runner.run(SimulatorRun(name, job.steady_state, job.steady_input, waveform, channel))[0]
        first, second = np.abs(x - x_steady)[:, 1:3].max(axis=0)
        ratio = max(ratio, first / second) if second > 0 else ratio
    if ratio < 0.1:
        return "zoh"
    if ratio < 0.9:
        return "foh"
    raise HankelredError(
        "cannot detect how the simulator holds its input between samples (a pulse moved the state "
        f"{ratio:.2g} times as far by its own sample as one later); pass hold='zoh' (constant until the next "
        "sample) or hold='foh' (a straight line to it)"
    )
