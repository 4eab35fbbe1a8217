"""Empirical Gramians of a slow simulator on two workers: loky, Dask, and with a checkpoint.

    pip install 'dask[distributed]'
    python benchmarks/bench_clusters.py [--states 60]

Prediction, before the first run: the experiments are independent and take a tenth of a second each, so that
two idle cores halve the time; the start of workers and the copies cost a few per cent, the checkpoint less
than that. Every variant must return the same bits.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
from distributed import Client, LocalCluster

import hankelred


def make_simulator(n):
    """Return a ladder of n nodes whose conductance falls with their difference, in plain Python."""

    def simulate(x0, u):
        import itertools
        import math

        states, x = [], list(map(float, x0))
        for k in range(u.shape[1]):
            states.append(x)
            level = [float(u[0, k]), *x, 0.0]
            flow = [math.tanh(a - b) for a, b in itertools.pairwise(level)]
            x = [value + 0.2 * (a - b) for value, (a, b) in zip(x, itertools.pairwise(flow), strict=True)]
        trajectory = np.array(states).T
        return trajectory, trajectory[-1:]

    return simulate


def main():
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--states", type=int, default=60)
    parser.add_argument("--samples", type=int, default=3000)
    options = parser.parse_args()
    simulate = make_simulator(options.states)
    grid = {"dt": True, "horizon": options.samples, "n_states": options.states, "n_inputs": 1}

    def seconds(**how):
        start = time.perf_counter()
        grams = hankelred.empirical_gramians(simulate, **grid, **how)
        return time.perf_counter() - start, grams

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        serial, expected = seconds()
        print(f"one process                  {serial:6.1f} s")
        for name, how in (
            ("loky, 2 processes", {"n_jobs": 2}),
            ("Dask, 2 workers", {"backend": client}),
            ("Dask, with a checkpoint", {"backend": client, "checkpoint": folder}),
            ("the same call again", {"backend": client, "checkpoint": folder}),
        ):
            taken, grams = seconds(**how)
            same = np.array_equal(grams.controllability, expected.controllability) and np.array_equal(
                grams.observability, expected.observability
            )
            print(f"{name:28} {taken:6.1f} s, {serial / taken:5.2f} times as fast, the same bits: {same}")
        again, _ = seconds()
        print(f"one process, again           {again:6.1f} s")


if __name__ == "__main__":
    main()
