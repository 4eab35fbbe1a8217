"""Time of the four basic calls on models of the size that users have, against slycot, in one run.

    make bench        or        python benchmarks/bench_models.py [--quick] [--table FILE]
    python benchmarks/bench_models.py --two-threads   hankelred with one and two threads of BLAS
    python benchmarks/bench_models.py --errors        measured errors of reductions of one and of many orders
    python benchmarks/bench_models.py --limits        the calls of LAPACK alone, for small models

SLICOT's benchmark models are taken from `../shared/data` (or HANKELRED_SHARED); those that are not there are
reported by name, and models made by formula always run. One thread. Each figure is the median of repeated
calls, of both packages in turn, in processor time (with two threads: of both numbers of threads in turn, in
elapsed time too, as threads that wait for each other take processor time).

Targets, set before the work on speed: a median ratio of at most 0.8; at most 1.0 for each model of 100
states or more, 1.2 for smaller ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import slycot
from rich.console import Console
from rich.table import Table
from scipy.linalg import lapack  # its BLAS must be loaded before threads are limited
from threadpoolctl import threadpool_limits

import hankelred
from hankelred._util.schur import schur_form
from hankelred.gramians.hammarling import TILE_OF_ONE_INPUT
from hankelred.models.scaling import scale_system
from hankelred.reduction import norms

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _baseline
import _systems
from helpers import data as _data

console = Console(width=150)

REAL = ("build", "pde", "CDplayer", "heat-cont", "heatmodel", "random", "iss", "beam")

MADE = {
    "structure n=120": lambda: _systems.structure(120),
    "structure n=350": lambda: _systems.structure(350, 2),
    "lightly damped n=120": lambda: _systems.lightly_damped(120, 1),
    "lightly damped n=350": lambda: _systems.lightly_damped(350, 1),
    "random stable n=200": lambda: _systems.random_stable(200),
    "random damped n=200": lambda: _systems.random_damped(200),
    "diffusion n=200": lambda: _systems.diffusion(200),
    "random stable n=10": lambda: _systems.random_stable(10, 1),
}

#: Order of the reductions.
ORDER = 8


def ab09ad(A, B, C, order):
    n, m, p = A.shape[0], B.shape[1], C.shape[0]
    return slycot.ab09ad("C", "B", "S", n, m, p, A.copy(), B.copy(), C.copy(), nr=order)


def ab13bd(A, B, C):
    n, m, p = A.shape[0], B.shape[1], C.shape[0]
    return slycot.ab13bd("C", "H", n, m, p, A.copy(), B.copy(), C.copy(), np.zeros((p, m)))


def ab13dd(A, B, C):
    n, m, p = A.shape[0], B.shape[1], C.shape[0]
    D, E = np.zeros((p, m)), np.eye(n)
    return slycot.ab13dd("C", "I", "S", "Z", n, m, p, A.copy(), E, B.copy(), C.copy(), D)


def dc_gain_of_reduced(A, B, C):
    return np.linalg.norm(C @ np.linalg.solve(A, B))


#: For each call: hankelred's, slycot's, and the numbers of each that are compared.
CALLS = {
    "values": (
        lambda *system: hankelred.hankel_singular_values((*system, 0)),
        lambda *system: ab09ad(*system, 1)[-1],
        lambda values: values,
        lambda values: values,
    ),
    "reduce": (
        lambda *system: hankelred.reduce((*system, 0), ORDER),
        lambda *system: ab09ad(*system, ORDER),
        lambda reduction: [dc_gain_of_reduced(*reduction.system[:3])],
        lambda result: [dc_gain_of_reduced(*result[1:4])],
    ),
    "h2": (
        lambda *system: hankelred.norm((*system, 0), "h2"),
        ab13bd,
        lambda value: [value],
        lambda value: [value],
    ),
    "hinf": (
        lambda *system: hankelred.norm((*system, 0), "hinf"),
        ab13dd,
        lambda value: [value],
        lambda result: [result[0]],
    ),
}


def make_models():
    """Return (name, system) of all models that are available; print which are not."""
    models, missing = [], []
    for name in REAL:
        if (_data.shared_folder() / "data" / "lti" / f"{name}.mat").is_file():
            system = _data.slicot_model(name)[0][:3]
            models.append((f"{name} n={system[0].shape[0]}", system))
        else:
            missing.append(name)
    if missing:
        console.print(f"not in {_data.shared_folder() / 'data' / 'lti'}, left out: {', '.join(missing)}")
    return models + [(name, make()) for name, make in MADE.items()]


def seconds(function, system):
    start = time.process_time()
    function(*system)
    return time.process_time() - start


def compare(system, call, budget):
    """Return the median seconds of both, and the largest relative difference of their results."""
    ours, theirs, our_numbers, their_numbers = CALLS[call]
    first, second = np.asarray(our_numbers(ours(*system))), np.asarray(their_numbers(theirs(*system)))
    once = max(seconds(ours, system) + seconds(theirs, system), 1e-4)
    repeats = int(min(max(budget / once, 5), 101))
    times = [(seconds(ours, system), seconds(theirs, system)) for _ in range(repeats)]
    large = second > 1e-8 * second.max()
    difference = float(np.abs(first[large] / second[large] - 1).max())
    return *(statistics.median(side) for side in zip(*times, strict=True)), difference


def elapsed_and_processor_time(function, system):
    start = time.perf_counter(), time.process_time()
    function(*system)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def compare_threads(system, call, budget):
    """Return the median elapsed and processor seconds with one thread, and the same with two."""
    function = CALLS[call][0]
    function(*system)
    once = max(elapsed_and_processor_time(function, system)[0], 1e-4)
    times = {1: [], 2: []}
    for _ in range(int(min(max(budget / once, 5), 51))):
        for threads, measured in times.items():
            with threadpool_limits(threads):
                function(*system)  # starts the threads
                measured.append(elapsed_and_processor_time(function, system))
    return [[statistics.median(side) for side in zip(*times[k], strict=True)] for k in (1, 2)]


def print_threads(budget) -> None:
    """Print the time with two threads divided by that with one, for all models and calls."""
    print("elapsed time with one and two threads = ratio (ratio of processor time)")
    print("| model | " + " | ".join(CALLS) + " |\n|" + "---|" * (len(CALLS) + 1))
    for name, system in make_models():
        cells = []
        for call in CALLS:
            (one, one_cpu), (two, two_cpu) = compare_threads(system, call, budget)
            cells.append(f"{one * 1e3:.2f} -> {two * 1e3:.2f} ms = {two / one:.2f} ({two_cpu / one_cpu:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def timed_level_tests() -> list[float]:
    """Return a list to which the time of every level test of an H-infinity norm is appended from now on."""
    times: list[float] = []

    def timed(candidates):
        def call(*arguments, **keywords):
            start = time.process_time()
            result = candidates(*arguments, **keywords)
            times.append(time.process_time() - start)
            return result

        return call

    for plane in (norms._SquaredPoles, norms._HalfPlane):
        plane.candidates = timed(plane.candidates)
    return times


def print_errors() -> None:
    """Print the time of the measured errors of reductions from one set of factors."""
    level_tests = timed_level_tests()
    print("milliseconds of error('hinf'), and of the level tests in the median call for another order")
    print("| model | first order | another order | of it level tests | orders 1 to 30 |\n|" + "---|" * 5)
    for name, system in make_models():
        if system[0].shape[0] < 40:
            continue
        reduction = hankelred.reduce((*system, 0), ORDER)
        first = seconds(lambda r=reduction: r.error("hinf"), ())
        others = []
        for _ in range(9):
            level_tests.clear()
            another = seconds(lambda r=reduction: r.at(ORDER + 1).error("hinf"), ())
            others.append((another, list(level_tests)))
        another, tests = sorted(others, key=lambda call: call[0])[len(others) // 2]
        start = time.process_time()
        for order in range(1, 31):
            reduction.at(order).error("hinf")
        all_orders = time.process_time() - start
        parts = " + ".join(f"{1e3 * test:.1f}" for test in tests)
        print(
            f"| {name} | {1e3 * first:.1f} | {1e3 * another:.1f} | {parts} | {1e3 * all_orders:.0f} |",
            flush=True,
        )


def median_of(function, budget):
    function()
    once = max(seconds(function, ()), 1e-5)
    return statistics.median(seconds(function, ()) for _ in range(int(min(max(budget / once, 5), 301))))


def print_limits(budget) -> None:
    """Print the time of the calls of LAPACK that small models need, beside slycot's."""
    columns = [
        "Schur form",
        "Sylvester equations",
        "pivoted QR",
        "SVD, values",
        "SVD, QR iteration",
        "ab09ad",
    ]
    columns += ["limit, values", "limit, reduce"]
    print("milliseconds of LAPACK; limits: the sum of the calls that are needed over the time of ab09ad")
    print("| model | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, (A, B, C) in make_models():
        n, m, p = A.shape[0], B.shape[1], C.shape[0]
        if n > 120:
            continue
        T, _ = schur_form(scale_system(A, B, C).A)
        tiles = -(-n // TILE_OF_ONE_INPUT)
        size = -(-n // tiles)
        tile = np.asfortranarray(T[:size, :size])
        full = np.random.default_rng(0).standard_normal((n, n))
        R = np.asfortranarray(np.triu(full))
        schur = median_of(lambda A=A: schur_form(A), budget)
        equation = median_of(lambda tile=tile: lapack.dtrsyl(tile, tile, tile, tranb="C"), budget)
        sylvester = equation * tiles * (tiles + 1) / 2 * (m + p)
        pivoted = 3 * median_of(lambda full=full, n=n: lapack.dgeqp3(full, lwork=34 * n + 32), budget)
        svd = median_of(lambda R=R: np.linalg.svd(R, compute_uv=False), budget)
        graded = R * np.geomspace(1, 1e-12, n)[:, None]
        vectors = median_of(lambda M=graded, n=n: lapack.dgesvd(M, lwork=70 * n), budget)
        theirs = median_of(lambda s=(A, B, C): ab09ad(*s, ORDER), budget)
        values = schur + sylvester + pivoted + svd
        parts = " | ".join(f"{part * 1e3:.2f}" for part in (schur, sylvester, pivoted, svd, vectors, theirs))
        print(
            f"| {name} | {parts} | {values / theirs:.2f} | {(values - svd + vectors) / theirs:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument(
        "--table", type=Path, help="write the table in Markdown too, as in docs/benchmarks.md"
    )
    parser.add_argument("--two-threads", action="store_true", help="compare one with two threads only")
    parser.add_argument("--errors", action="store_true", help="time the measured errors of reductions")
    parser.add_argument("--limits", action="store_true", help="time the calls of LAPACK alone")
    _baseline.add_option(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    budget = 0.3 if arguments.quick else 1.5
    if arguments.two_threads:
        print_threads(budget)
        return
    if arguments.errors:
        with threadpool_limits(1):
            print_errors()
        return
    if arguments.limits:
        with threadpool_limits(1):
            print_limits(budget / 5)
        return
    names = {"values": "ab09ad", "reduce": "ab09ad", "h2": "ab13bd", "hinf": "ab13dd"}
    headings = [f"{call} ({names[call]})" for call in CALLS]
    table = Table(title="Processor milliseconds of hankelred / slycot = ratio; difference of the results")
    table.add_column("model")
    for heading in headings:
        table.add_column(heading)
    lines = ["| model | " + " | ".join(headings) + " |", "|" + "---|" * (len(headings) + 1)]
    ratios = {}
    with threadpool_limits(1):
        for name, system in make_models():
            cells, short = [], []
            for call in CALLS:
                try:
                    ours, theirs, difference = compare(system, call, budget)
                except Exception as error:  # a failure is a result
                    cells.append(f"{type(error).__name__}: {error}"[:40])
                    short.append("-")
                    continue
                ratios[f"{call}, {name}"] = ours / theirs
                cells.append(f"{ours * 1e3:.2f} / {theirs * 1e3:.2f} = {ours / theirs:.2f}; {difference:.0e}")
                short.append(f"{ours * 1e3:.2f} / {theirs * 1e3:.2f} = {ours / theirs:.2f}")
            table.add_row(name, *cells)
            lines.append(f"| {name} | " + " | ".join(short) + " |")
    console.print(table)
    is_real = tuple(f"{name} n=" for name in REAL)
    for title, chosen in (
        ("real models", lambda name: name.startswith(is_real)),
        ("models made by formula", lambda name: not name.startswith(is_real)),
        ("all", lambda name: True),
    ):
        medians = []
        for call in CALLS:
            kept = [r for key, r in ratios.items() if key.startswith(call) and chosen(key.split(", ", 1)[1])]
            medians.append(f"{statistics.median(kept):.2f}" if kept else "-")
        console.print(f"median ratio, {title}: " + ", ".join(map(" ".join, zip(CALLS, medians, strict=True))))
        lines.append(f"| **median, {title}** | " + " | ".join(medians) + " |")
    if arguments.table:
        arguments.table.write_text("\n".join(lines) + "\n", "utf-8")
    _baseline.compare("models", ratios, save=arguments.save_baseline)


if __name__ == "__main__":
    main()
