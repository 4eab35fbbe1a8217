"""Reduce a model from start to end: singular values, order, error bound, pictures, files.

Without an argument the model is a lightly damped beam on two supports (240 states). To reduce another model,
pass a .mat, .npz or .json file.

    python examples/demo.py [MODEL] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

import hankelred
from hankelred.files import read_model, write_model


def beam(nodes: int = 120, damping: float = 0.005):
    """Return A, B, C, D of a beam on two supports, lightly damped, by finite differences.

    The input is a force at a fifth of its length; the outputs are the deflection in the middle and the slope
    at the end, in micrometers and microradians per newton.
    """
    bending = 2 * np.eye(nodes) - np.eye(nodes, k=1) - np.eye(nodes, k=-1)
    stiffness = 60.0 * (nodes + 1) ** 4 * bending @ bending / np.pi**4
    mass_damping, stiffness_damping = 0.1, damping / 60.0
    A = np.block(
        [
            [np.zeros((nodes, nodes)), np.eye(nodes)],
            [-stiffness, -mass_damping * np.eye(nodes) - stiffness_damping * stiffness],
        ]
    )
    B, C = np.zeros((2 * nodes, 1)), np.zeros((2, 2 * nodes))
    B[nodes + nodes // 5] = nodes + 1.0
    C[0, nodes // 2], C[1, nodes - 1] = 1.0, nodes + 1.0
    return A, B, C, np.zeros((2, 1))


def table(reduction: hankelred.Reduction, orders: list[int]) -> None:
    """Print bound and true error at a few orders, all from the same factors."""
    print(f"\n{'order':>6} {'error bound':>14} {'true error':>14} {'relative':>10}")
    size = reduction.at(reduction.unstable_order).error("hinf") or 1.0
    for order in orders:
        other = reduction.at(order)
        error = other.error("hinf")
        print(f"{other.order:6d} {other.error_bound:14.4e} {error:14.4e} {error / size:10.1e}")


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a .mat, .npz or .json file with A, B, C[, D, E, dt]")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for pictures and files")
    arguments = parser.parse_args()
    try:
        run(arguments.model, arguments.out)
    except hankelred.HankelredError as error:
        sys.exit(f"error: {error}")


def run(path: str | None, out: Path) -> None:
    """Reduce the model to 1 % and to a few orders around that."""
    if path is None:
        system = beam()
        print("model: a lightly damped beam on two supports, 240 states")
    else:
        system = read_model(path)
        print(f"model: {path}")
    out.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    reduction = hankelred.reduce(system, rtol=1e-2)
    seconds = time.perf_counter() - start
    full = reduction.hankel_singular_values.size
    print(
        f"{full} states reduced to {reduction.order} in {seconds:.2f} s by the {reduction.solver} solver "
        f"(residual {reduction.residual:.0e});\n"
        f"{reduction.numerical_rank} values are above the noise floor {reduction.noise_floor:.0e}"
    )
    if reduction.unstable_order:
        print(f"{reduction.unstable_order} unstable or marginal state(s) are kept exactly")
    min_order, max_order = reduction.unstable_order, reduction.numerical_rank
    orders = {
        min_order,
        reduction.order // 4,
        reduction.order // 2,
        reduction.order,
        reduction.order * 3 // 2,
    }
    table(reduction, sorted(order for order in orders if min_order <= order <= max_order))

    spectrum, response = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")[1]
    hankelred.plot_hankel_singular_values(reduction, ax=spectrum)
    hankelred.plot_reduction(reduction, ax=response)
    picture = out / "reduction.png"
    spectrum.figure.savefig(picture, dpi=130)
    write_model(reduction.model, out / "reduced.mat")
    write_model(reduction.model, out / "reduced.json")
    print(f"\nthe error is proven to be, at every frequency, at most {reduction.error_bound:.3e}")
    print("open these:")
    for name in (picture, out / "reduced.mat", out / "reduced.json"):
        print(f"  {name}")


if __name__ == "__main__":
    main()
