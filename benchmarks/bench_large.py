"""Large sparse models against pyMOR, in one run: processor time, certificates, and the true errors.

    python benchmarks/bench_large.py [--quick] [--million] [--save-baseline]

One thread. Processor seconds of one run each; what counts is the ratio inside one run. The true values are
those of the dense solver for the steel profile and one heat equation, closed forms for beams and chains with
modal damping, and elsewhere values of accuracy 1e-8.

Predictions, written before the first measurement:
- steel profile, n = 1357: at most 0.25 of pyMOR, because one factorization serves both Gramians and both
  histories give the shifts, and at most 0.1 of the dense way; 150 values right to 1 %.
- heat in three dimensions, n = 10648: at most 0.2 of pyMOR, because half of the factorizations are left and
  each fills in half as much with pivots from the diagonal.
- heat in two dimensions, n = 99856: at most 0.35.
- a beam of 500 elements: at most 0.1 of pyMOR, because N x N matrices of bandwidth 4 are factored and never
  the companion form; right where pyMOR says in its log that it has not converged. The same for chains.
- accuracy=1e-8 costs at most 1.6 times the factorizations of the default.
- n = 1e6 (--million): converged in 10 processor minutes and 5 GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

import hankelred
from hankelred.gramians.low_rank import low_rank_factors
from hankelred.models.sparse_model import any_model

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _baseline
from helpers import sparse_models as _models
from helpers.sparse_models import right_to

console = Console(width=150)


def timed(function, *arguments, **options):
    start = time.process_time()
    try:
        result = function(*arguments, **options)
    except hankelred.ConvergenceError as error:
        result = error
    return time.process_time() - start, result


def by_pymor(system):
    from pymor.models.iosys import LTIModel, SecondOrderModel

    if isinstance(system, hankelred.SecondOrderModel):
        M, E, K = (sp.csc_matrix(each) for each in (system.M, system.D, system.K))
        model = SecondOrderModel.from_matrices(M, E, K, system.B, system.Cp).to_lti()
    else:
        A, B, C, _, *E = system
        model = LTIModel.from_matrices(sp.csc_matrix(A), B, C, None, *(sp.csc_matrix(each) for each in E))
    return model.hsv()


def by_low_rank(system, accuracy=None):
    factors = low_rank_factors(any_model(system, 0, "low_rank"), accuracy)
    return factors, factors.values * factors.problem.gain


def cases(quick):
    A, B, C, E = _models.rail()
    yield "steel profile, n=1357", (A, B, C, 0, E), "dense"
    yield "heat, n=1024", (*_models.heat(32), 0), "dense"
    yield "heat, n=4900", (*_models.heat(70), 0), "precise"
    yield "convection, n=4900", (*_models.heat(70, convection=50.0), 0), "precise"
    for elements in (100, 500):
        parts = _models.beam(elements)
        yield f"beam, n={4 * elements}", hankelred.SecondOrderModel(*parts), parts
    for masses, damping in ((600, 1e-5), (1000, 1e-3)):
        parts = _models.chain(masses, 0.0, damping)
        yield f"chain, b={damping}, n={2 * masses}", hankelred.SecondOrderModel(*parts), parts
    if not quick:
        yield "heat 3-D, n=10648", (*_models.heat(22, 3), 0), "precise"
        yield "heat, n=99856", (*_models.heat(316), 0), "precise"


def truth_of(system, kind):
    """Return the true values, how long they took by the dense solver, and the factorizations at 1e-8."""
    dense_time = float("nan")
    if isinstance(kind, tuple):
        return _models.modal_values(*kind), dense_time, None
    if kind == "dense":
        dense_time, values = timed(hankelred.hankel_singular_values, system, solver="dense")
        return values, dense_time, by_low_rank(system, 1e-8)[0].factorizations
    factors, values = by_low_rank(system, 1e-8)
    return values, dense_time, factors.factorizations


def run(quick: bool) -> dict[str, float]:
    table = Table(title="Hankel singular values of large models, processor seconds on one thread")
    for heading in (
        "model",
        "hankelred",
        "pyMOR",
        "ratio",
        "dense",
        "LUs",
        "at 1e-8",
        "certificate",
        "kind",
        "true error",
        "right to 1 %",
        "to 1e-4",
        "pyMOR: error",
        "right to 1 %",
    ):
        table.add_column(heading, justify="right")
    ratios = {}
    for name, system, kind in cases(quick):
        ours, result = timed(by_low_rank, system)
        theirs, peer = timed(by_pymor, system)
        truth, dense_time, precise = truth_of(system, kind)
        known = min(peer.size, truth.size)
        peer_error = np.abs(peer[:known] - truth[:known]).max() / truth[0]
        ratios[name] = ours / theirs
        row = [name, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}", f"{dense_time:.1f}"]
        if isinstance(result, Exception):
            row += ["refused"] * 7
        else:
            factors, values = result
            certificate = factors.certificate * factors.problem.gain / truth[0]
            k = min(values.size, truth.size)
            error = np.abs(values[:k] - truth[:k]).max() / truth[0]
            row += [str(factors.factorizations), str(precise or ""), f"{certificate:.1e}", factors.kind]
            row += [f"{error:.1e}", str(right_to(1e-2, values, truth)), str(right_to(1e-4, values, truth))]
        table.add_row(*row, f"{peer_error:.1e}", str(right_to(1e-2, peer, truth)))
    console.print(table)
    return ratios


def million() -> None:
    A, B, C = _models.heat(1000)
    seconds, (factors, values) = timed(by_low_rank, (A, B, C, 0))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    console.print(
        f"heat, n=1000000: {seconds / 60:.1f} processor minutes, {memory:.1f} GB, {factors.factorizations} "
        f"factorizations, certificate {factors.certificate / factors.values[0]:.1e} ({factors.kind}), "
        f"sigma_1 {values[0]:.6e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the models that take minutes")
    parser.add_argument(
        "--million", action="store_true", help="the heat equation with a million states, alone"
    )
    _baseline.add_option(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    from pymor.core.logger import set_log_levels

    set_log_levels({"pymor": "ERROR"})
    with threadpool_limits(1):
        warm_up = (*_models.heat(6), 0)  # what is imported on first use
        by_low_rank(warm_up)
        by_pymor(warm_up)
        if arguments.million:
            million()
        else:
            _baseline.compare("large", run(arguments.quick), save=arguments.save_baseline)


if __name__ == "__main__":
    main()
