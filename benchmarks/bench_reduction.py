"""Speed and accuracy of Hankel singular values and reductions compared with other packages, in one run.

    make bench        or        python benchmarks/bench_reduction.py [--quick]

One thread. Every time is the processor time of the best of a few repetitions; only ratios of times from one
run are comparable.

Predictions, written before the first measurement:
- singular values decay quickly (convection-diffusion, random damped), n = 1000: at most 0.25 of
  slycot's ab09ad, because compressed doubling needs about five squarings and thin products.
- singular values hardly decay (lightly damped modes), n = 1000: at most 0.5 of ab09ad, because one
  real Schur form and tiled solves replace Hammarling's unblocked loops.
- n = 300: at most 0.9 in both.
- accuracy: at least that of the best other package on every system, two digits more on heat and pde.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import control
import numpy as np
import scipy.linalg as sla
import slycot
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

import hankelred

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _baseline
import _systems
from helpers import data as _data
from helpers import reference as _reference

console = Console(width=130)


def by_hankelred(A, B, C):
    return hankelred.hankel_singular_values((A, B, C, 0))


def by_ab09ad(A, B, C):
    n, m, p = A.shape[0], B.shape[1], C.shape[0]
    return slycot.ab09ad("C", "B", "S", n, m, p, A.copy(), B.copy(), C.copy(), nr=1)[-1]


def by_scipy(A, B, C):
    P = sla.solve_continuous_lyapunov(A, -B @ B.T)
    Q = sla.solve_continuous_lyapunov(A.T, -C.T @ C)
    return np.sqrt(np.sort(np.abs(np.linalg.eigvals(P @ Q)))[::-1])


def by_control(A, B, C):
    return np.real(
        np.sort_complex(
            control.hankel_singular_values(control.ss(A, B, C, np.zeros((C.shape[0], B.shape[1]))))
        )[::-1]
    )


def by_pymor(A, B, C):
    from pymor.models.iosys import LTIModel

    return LTIModel.from_matrices(A, B, C).hsv()


PEERS = {
    "hankelred": by_hankelred,
    "slycot ab09ad": by_ab09ad,
    "scipy": by_scipy,
    "python-control": by_control,
    "pyMOR": by_pymor,
}


def timed(function, *arguments, repeat: int):
    best = np.inf
    for _ in range(repeat):
        start = time.process_time()
        result = function(*arguments)
        best = min(best, time.process_time() - start)
    return best, np.asarray(result)


def speed(quick: bool) -> dict[str, float]:
    ratios = {}
    table = Table(title="Hankel singular values: processor seconds (ratio to slycot ab09ad), one thread")
    table.add_column("system")
    table.add_column("solver")
    for name in PEERS:
        table.add_column(name, justify="right")
    table.add_column("difference from ab09ad", justify="right")
    for n in (300,) if quick else (300, 1000):
        for build in (_systems.convection_diffusion, _systems.random_damped, _systems.lightly_damped):
            for m in (1, 3):
                system = build(n, m)
                n_true = system[0].shape[0]
                row = [f"{build.__name__.replace('_', ' ')} n={n_true} m=p={m}"]
                row.append(hankelred.reduce((*system, 0), order=1).solver)
                times, values = {}, {}
                for name, peer in PEERS.items():
                    slow = n > 300 and name not in ("hankelred", "slycot ab09ad")
                    if slow and m > 1:
                        continue
                    try:
                        times[name], values[name] = timed(peer, *system, repeat=1 if slow else 5)
                    except Exception as error:  # a peer that fails is a result
                        values[name] = type(error).__name__
                base = times["slycot ab09ad"]
                ratios[row[0]] = times["hankelred"] / base
                for name in PEERS:
                    if name in times:
                        row.append(f"{times[name]:.3f} ({times[name] / base:.2f})")
                    else:
                        row.append(str(values.get(name, "-")))
                ours, theirs = values["hankelred"], values["slycot ab09ad"]
                large = theirs > 1e-8 * theirs[0]
                row.append(f"{np.max(np.abs(ours[large] / theirs[large] - 1)):.0e}")
                table.add_row(*row)
    console.print(table)
    return ratios


def accuracy_systems():
    """Return the systems of the accuracy table; pde only if the shared data are available."""
    systems = {
        "1-D heat": _reference.heat()[:3],
        "near-nonminimal": _reference.near_nonminimal()[:3],
        "pole at -1e-9": _reference.slow_pole()[:3],
    }
    path = _data.shared_folder() / "data" / "lti" / "pde.mat"
    if path.is_file():
        systems["SLICOT pde"] = _data.slicot_model("pde")[0][:3]
    return systems


def accuracy_of(values, truth):
    """Return the largest relative error of the large values, and how many leading ones are correct to 1 %."""
    values = np.concatenate([values, np.zeros(max(0, truth.size - values.size))])[: truth.size]
    error = np.abs(values - truth) / truth
    wrong = error > 0.01
    leading = int(np.argmax(wrong)) if np.any(wrong) else truth.size
    return float(error[truth > 1e-8 * truth[0]].max()), leading


def accuracy() -> None:
    table = Table(
        title="Largest relative error for sigma > 1e-8 sigma_1 / leading values correct to 1 %, "
        "against 1500-bit arithmetic"
    )
    table.add_column("system")
    for name in PEERS:
        table.add_column(name, justify="right")
    for name, (A, B, C) in accuracy_systems().items():
        truth = _reference.exact_hsv(A, B, C)
        row = [f"{name}, n={A.shape[0]}"]
        for peer in PEERS.values():
            try:
                values = np.asarray(peer(A, B, C), dtype=float)
            except Exception as error:  # a peer that fails is a result
                row.append(type(error).__name__)
                continue
            row.append("{:.0e} / {}".format(*accuracy_of(values, truth)))
        table.add_row(*row)
    console.print(table)


def discrete_reduction() -> None:
    """Compare the reductions of a discrete model with two inputs and outputs."""
    rng = np.random.default_rng(1)
    A = rng.standard_normal((8, 8))
    A *= 0.9 / np.abs(np.linalg.eigvals(A)).max()
    B, C = rng.standard_normal((8, 2)), rng.standard_normal((2, 8))
    sys = control.ss(A, B, C, np.zeros((2, 2)), 0.1)
    table = Table(title="Reduction of a discrete model of 8 states to order 4")
    for heading in ("", "order", "dt", "true error / valid bound", "stable"):
        table.add_column(heading)
    bound = hankelred.reduce(sys, order=4).error_bound
    for name, reduced in (
        ("hankelred", hankelred.reduce(sys, order=4).system),
        ("python-control balred", control.balred(sys, 4)),
    ):
        difference = control.ss(reduced.A, reduced.B, reduced.C, reduced.D, 0.1) - sys
        error = hankelred.norm(difference, "hinf")
        stable = bool(np.all(np.abs(np.linalg.eigvals(reduced.A)) < 1))
        table.add_row(name, str(reduced.nstates), str(reduced.dt), f"{error / bound:.2f}", str(stable))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="leave out n = 1000")
    _baseline.add_option(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    versions = f"control {control.__version__}, slycot {slycot.__version__}, numpy {np.__version__}"
    console.print(f"hankelred {hankelred.__version__}; {versions}")
    with threadpool_limits(1):
        accuracy()
        discrete_reduction()
        ratios = speed(arguments.quick)
    _baseline.compare("reduction", ratios, save=arguments.save_baseline)


if __name__ == "__main__":
    main()
