"""Empirical Gramians of a slow simulator on two workers of Dask, with and without a checkpoint.

    pip install 'dask[distributed]'
    python benchmarks/bench_clusters.py

Elapsed times say little on a machine that is in use by others. Counted are processor seconds: those of the
calling process, and of the busier of the two workers, which run at the same time on two idle cores.

Prediction, before the first run: the experiments are independent and take a tenth of a second each, so that
the busier worker has a little more than half of the work; sending tasks and results costs a few per cent, the
checkpoint less than that. Every variant must return the same bits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

import hankelred

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "clusters.json"


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
    parser.add_argument("--states", type=int, default=40)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument(
        "--rounds", type=int, default=3, help="each variant in turn; the shortest time counts"
    )
    options = parser.parse_args()
    simulate = make_simulator(options.states)
    grid = {"dt": True, "horizon": options.samples, "n_states": options.states, "n_inputs": 1}
    shortest: dict[str, float] = {}
    expected = None
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        tempfile.TemporaryDirectory() as folder,
    ):

        def processor_seconds():
            """Return those of this process, and of the workers."""
            return time.process_time(), np.array(list(client.run(time.process_time).values()))

        for k in range(options.rounds):
            checkpoint = Path(folder) / str(k)
            for name, how in (
                ("one process", {}),
                ("Dask, 2 workers", {"backend": client}),
                ("Dask, with a checkpoint", {"backend": client, "checkpoint": checkpoint}),
                ("the same call again", {"backend": client, "checkpoint": checkpoint}),
            ):
                here, there = processor_seconds()
                grams = hankelred.empirical_gramians(simulate, **grid, **how)
                here_after, there_after = processor_seconds()
                # what two idle cores would take: this process waits for the busier worker
                seconds = here_after - here + (there_after - there).max()
                shortest[name] = min(seconds, shortest.get(name, seconds))
                expected = expected or grams
                for kind in ("controllability", "observability"):
                    if not np.array_equal(getattr(grams, kind), getattr(expected, kind)):
                        raise SystemExit(f"error: {name} returned other bits")
    serial = shortest["one process"]
    for name, seconds in shortest.items():
        print(f"| {name} | {seconds:.2f} | {serial / seconds:.2f} |")
    content = {"states": options.states, "samples": options.samples, "seconds": shortest}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"the same bits everywhere; wrote {RESULTS.name}")


if __name__ == "__main__":
    main()
