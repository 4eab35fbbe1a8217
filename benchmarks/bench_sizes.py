"""Time and memory of Hankel singular values against the number of states, with slycot and python-control.

    python benchmarks/bench_sizes.py measure       writes benchmarks/sizes.json; hours on a busy machine
    python benchmarks/bench_sizes.py draw          draws docs/images/sizes.png from it

Every point is measured in a process of its own with one thread. The memory of a call is the largest of that
process (VmHWM of Linux) minus that before the call. A call of more than two processor minutes is stopped, and
larger models of that family are not tried; hankelred has ten minutes. Points that are stored are not measured
again.

Prediction, before the first run: below n = 50 slycot is faster, python-control always slower; from n = 100
on hankelred is faster than both, at n = 1000 by a factor of 2 where singular values hardly decay and of 7
where they decay quickly; it takes up to twice slycot's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "sizes.json"
SIZES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
FAMILIES = {"random_damped": "values decay quickly", "lightly_damped": "values hardly decay"}
PACKAGES = {"hankelred": 600, "slycot": 120, "python-control": 120}  # and processor seconds of a call


def function_of(package: str, A, B, C):
    """Return a function without arguments that computes the Hankel singular values."""
    if package == "hankelred":
        import hankelred

        return lambda: hankelred.hankel_singular_values((A, B, C, 0))
    if package == "slycot":
        import slycot

        n = A.shape[0]
        return lambda: slycot.ab09ad("C", "B", "S", n, 1, 1, A.copy(), B.copy(), C.copy(), nr=1)
    import control

    system = control.ss(A, B, C, 0)
    return lambda: control.hankel_singular_values(system)


def memory_of_process(name: str) -> float:
    """Return a memory of this process in MiB, as the kernel names it."""
    (line,) = (x for x in Path("/proc/self/status").read_text("utf-8").splitlines() if x.startswith(name))
    return int(line.split()[1]) / 1024


def measure_one(family: str, n: int, packages: list[str]) -> None:
    """Print seconds of processor time and MiB of memory of each package; runs in a process of its own."""
    import scipy.linalg  # noqa: F401

    sys.path.insert(0, str(FOLDER))
    import _systems

    make = getattr(_systems, family)
    for package in packages:
        small = function_of(package, *make(20, 1))
        small()  # imports and first calls
        call = function_of(package, *make(n, 1))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(PACKAGES[package] + used.ru_utime + used.ru_stime) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        Path("/proc/self/clear_refs").write_text("5")  # the largest memory counts from here on
        before = memory_of_process("VmRSS")
        start, calls, total = time.process_time(), 0, 0.0
        while total < 0.5:  # the mean: where its limit is set, the clock may have ticks of 10 ms
            call()
            calls, total = calls + 1, time.process_time() - start
        print(json.dumps([package, [total / calls, memory_of_process("VmHWM") - before]]), flush=True)


def measure(largest: int) -> None:
    """Measure all points that are not stored."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for n in (size for size in SIZES if size <= largest):
        for family in FAMILIES:
            points = results.setdefault(family, {package: {} for package in PACKAGES})
            while packages := [
                name for name in PACKAGES if str(n) not in points[name] and None not in points[name].values()
            ]:
                command = [sys.executable, __file__, "one", family, str(n), packages[0]]
                run = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, **one_thread}, check=False
                )
                measured = dict(map(json.loads, run.stdout.splitlines()))
                # None: stopped by the limit of time, or by the lack of memory
                stopped = None if measured else packages[0]
                measured |= {} if stopped is None else {stopped: None}
                for package, point in measured.items():
                    points[package][str(n)] = point
                print(n, family, measured, run.stderr[-200:], flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def draw() -> None:
    """Draw time and memory of all packages."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sys.path.insert(0, str(FOLDER.parent / "docs"))
    from make_images import IMAGES, save  # it is no package

    results = json.loads(RESULTS.read_text("utf-8"))
    figure, axes = plt.subplots(2, 2, figsize=(8, 6), sharex=True, layout="constrained")
    styles = {
        "hankelred": ("o-", "#0072B2"),
        "slycot": ("s--", "#D55E00"),
        "python-control": ("^:", "#009E73"),
    }
    for column, (family, title) in zip(axes.T, FAMILIES.items(), strict=True):
        column[0].set_title(f"{family.replace('_', ' ')}: {title}", fontsize=10)
        for quantity, ax in enumerate(column):
            for package, (style, color) in styles.items():
                points = [(int(n), p[quantity]) for n, p in results[family][package].items() if p is not None]
                # less than a megabyte is below what the size of a process shows
                points = [(n, value) for n, value in points if quantity == 0 or value >= 1]
                ax.loglog(*zip(*points, strict=True), style, color=color, label=package, markersize=4)
            ax.grid(alpha=0.3)
        column[0].set_ylabel("processor time (s), one thread")
        column[1].set_ylabel("memory (MiB)")
        column[1].set_xlabel("states")
    axes[0, 0].legend()
    save(figure, "sizes")
    picture = IMAGES / "sizes.png"
    print(f"{picture}: {picture.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("measure", "draw", "one"))
    parser.add_argument("point", nargs="*", help="family, n and packages of one process")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="largest number of states")
    arguments = parser.parse_args()
    if arguments.task == "one":
        family, n, *packages = arguments.point
        measure_one(family, int(n), packages)
    elif arguments.task == "measure":
        measure(arguments.largest)
    else:
        draw()


if __name__ == "__main__":
    main()
