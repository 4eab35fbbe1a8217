"""An hour of a vibrating structure at 1 kHz: 3.6 million samples, exactly, in about a second.

Ten masses between springs, lightly damped, excited by colored noise on the first mass. The
simulation runs in pieces connected by the state and is compared with python-control on its first seconds. The
long record then gives a spectrum fine enough to separate resonances of 0.2 % damping.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import control
import matplotlib
import numpy as np
import scipy.signal

import hankelred

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RATE = 1000.0  # samples per second
MASSES = 10


def structure() -> control.StateSpace:
    """Return a row of masses of 1 kg, fixed at both ends; force on the first, position of the last."""
    stiffness = (2 * np.pi * 20.0) ** 2
    K = stiffness * (2 * np.eye(MASSES) - np.eye(MASSES, k=1) - np.eye(MASSES, k=-1))
    # Damping of 0.2 % in every mode.
    values, modes = np.linalg.eigh(K)
    damping = modes @ np.diag(2 * 0.002 * np.sqrt(values)) @ modes.T
    zero, identity = np.zeros((MASSES, MASSES)), np.eye(MASSES)
    A = np.block([[zero, identity], [-K, -damping]])
    B, C = np.zeros((2 * MASSES, 1)), np.zeros((1, 2 * MASSES))
    B[MASSES, 0] = 1.0
    C[0, MASSES - 1] = 1.0
    return control.StateSpace(A, B, C, 0, inputs="force", outputs="position", name="structure")


def main() -> None:
    """Simulate, check, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("long_simulation.png"), help="picture to write")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the record")
    options = parser.parse_args()

    plant = structure()
    samples = int(options.minutes * 60 * RATE)
    rng = np.random.default_rng(0)
    force = scipy.signal.lfilter([0.2], [1.0, -0.8], rng.standard_normal(samples))

    # One minute at a time, as from a recorder: the final state of a piece starts the next one. With a
    # first-order hold the state belongs to the last sample of a piece, which the next piece repeats.
    piece = int(60 * RATE)
    position = np.empty(samples)
    state = np.zeros(2 * MASSES)
    start = time.perf_counter()
    for first in range(0, samples, piece):
        overlap = 1 if first else 0
        u = force[first - overlap : first + piece]
        y, state = hankelred.simulate(plant, u, x0=state, step=1 / RATE, hold="foh", return_state=True)
        position[first : first + piece] = y[overlap:]
    piece_seconds = time.perf_counter() - start
    start = time.perf_counter()
    single_run = hankelred.simulate(plant, force, step=1 / RATE, hold="foh")
    single_seconds = time.perf_counter() - start
    size = np.abs(single_run).max()
    print(f"{samples} samples: {single_seconds:.2f} s in one run, {piece_seconds:.2f} s in pieces of {piece}")
    print(f"pieces against one run: {np.abs(position - single_run).max() / size:.1e} of the largest output")

    checked = min(30_000, samples)
    start = time.perf_counter()
    peer = control.forced_response(plant, np.arange(checked) / RATE, force[:checked])
    slow = time.perf_counter() - start
    error = np.abs(peer.outputs - position[:checked]).max() / size
    print(f"control.forced_response on {checked} samples: {slow:.2f} s, difference {error:.1e}")
    print(f"per sample that is {slow / checked / (single_seconds / samples):.0f} times the time")

    # The same output from a measured impulse response, streamed in uneven blocks.
    markov = hankelred.impulse_response(control.sample_system(plant, 1 / RATE), 60_000)
    stream = hankelred.Convolver(markov)
    held = hankelred.simulate(control.sample_system(plant, 1 / RATE), force[:200_000])
    cuts = np.sort(rng.integers(0, len(held), 40))
    blocks = [stream.push(block) for block in np.split(force[: len(held)], cuts)]
    lost = np.abs(np.concatenate(blocks) - held).max() / size
    print(f"impulse response cut at 60 s, convolved as a stream: difference {lost:.1e} (the part after 60 s)")

    frequency, power = scipy.signal.welch(position, RATE, nperseg=min(200_000, samples))
    _, driven = scipy.signal.welch(force, RATE, nperseg=min(200_000, samples))
    near = (frequency > 0) & (frequency < 50)
    exact = np.abs(plant(2j * np.pi * frequency[near]))

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), constrained_layout=True)
    shown = min(5000, samples)
    top.plot(np.arange(shown) / RATE, position[:shown] * 1e6, color="#0072B2", lw=0.8, label="simulate")
    top.plot(
        peer.time[:shown:25],
        peer.outputs[:shown:25] * 1e6,
        "k.",
        ms=3,
        label="control.forced_response, every 25th",
    )
    top.set(xlabel="time (s)", ylabel="position of the last mass (µm)", title="The first seconds")
    top.legend(loc="upper left")
    measured = np.sqrt(power / driven)[near]
    bottom.semilogy(frequency[near], measured, color="#0072B2", lw=0.9, label="from the simulated record")
    bottom.semilogy(frequency[near], exact, "k--", lw=0.8, label="exact gain")
    bottom.set(
        xlabel="frequency (Hz)",
        ylabel="gain (m/N)",
        title=f"{samples / RATE / 60:.0f} minutes of simulation resolve ten modes of 0.2 % damping",
    )
    bottom.legend(loc="lower left")
    figure.savefig(options.out, dpi=130)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
