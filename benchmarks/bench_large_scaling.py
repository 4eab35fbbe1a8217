"""Processor time and memory against the number of states, from 1e3 to 1e6, with pyMOR where it finishes.

    python benchmarks/bench_large_scaling.py [--largest N]

Hankel singular values of the heat equation on a square at the default accuracy. One thread; each point in a
process of its own, which reports its processor seconds and its largest memory. Points are stored in
docs/results/large_scaling.json one by one, and a run continues with those that are missing; delete the file
to measure all of them again. pyMOR and the dense solver are stopped after two processor minutes a point.
`docs/make_images.py` draws the picture.

Predictions, written before the first measurement:
- factorizations dominate: with an ordering of minimum degree their time grows as n^1.3 to n^1.5 and their
  memory somewhat faster than n; the number of shifts grows with the logarithm of the condition number, by
  about 5 for each factor of ten. So the time grows as n^1.4, from half a second at 1e4 to 5 minutes at 1e6.
- pyMOR factors for each Gramian separately and needs more shifts: three to four times as much at 1e5, and the
  next point, 3e5, takes more than two minutes.
- the dense solver: n^2.8, two minutes at about 7000 states.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "large_scaling.json"
SIDES = (32, 56, 100, 178, 316, 562, 1000)
#: Processor seconds after which a point of these is stopped.
LIMITS = {"pymor": 120, "dense": 120}


def measure(package: str, side: int) -> dict[str, float]:
    """Compute the singular values in this process; return the cost of one call."""
    from helpers.sparse_models import heat

    A, B, C = heat(side)
    if package == "pymor":
        import scipy.sparse as sp
        from pymor.core.logger import set_log_levels
        from pymor.models.iosys import LTIModel

        set_log_levels({"pymor": "ERROR"})
        model = LTIModel.from_matrices(sp.csc_matrix(A), B, C)
        call = model.hsv
    else:
        import hankelred

        solver = "dense" if package == "dense" else "low_rank"

        def call():
            return hankelred.hankel_singular_values((A, B, C, 0), solver=solver)

    start = time.process_time()
    values = call()
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"states": side**2, "seconds": seconds, "gigabytes": memory, "largest value": float(values[0])}


def in_process(package: str, side: int) -> dict[str, float] | None:
    """Measure a point in a process of its own; return None if it was stopped."""
    limit = LIMITS.get(package)

    def stop_late():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))

    command = [sys.executable, __file__, "--point", package, str(side)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=stop_late, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        return None
    raise RuntimeError(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=1_000_000, help="largest number of states")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(arguments.point[0], int(arguments.point[1]))))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for package in ("hankelred", "pymor", "dense"):
        points = results.setdefault(package, {})
        for side in SIDES:
            key = str(side**2)
            if side**2 > arguments.largest:
                break
            if key not in points:
                points[key] = in_process(package, side)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            point = points[key]
            if point is None:
                print(f"{package}, n = {key}: stopped after {LIMITS[package]} s")
                break
            print(f"{package}, n = {key}: {point['seconds']:.2f} s, {point['gigabytes']:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
