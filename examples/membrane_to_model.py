"""Reduce a finite-element model from its Matrix Market files, and draw its modes, spectrum and response.

A membrane under tension, clamped at its edge, is divided into bilinear rectangular elements. A force presses
on a small patch, and a sensor measures the deflection elsewhere. On a rectangle the matrices of such elements
are Kronecker products of those of linear elements on a line, which are known by formula.

The model is written to membrane.M, .D, .K, .B and .C, as finite-element programs export it, and reduced from
these files to a model of second order and to a state space.

Run ``python examples/membrane_to_model.py [picture.png]``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse as sp
import scipy.sparse.linalg as spl

import hankelred
from hankelred.files import read_model

LENGTH, WIDTH = 1.5, 1.0  # m
ELEMENTS = 60, 40
TENSION, DENSITY = 400.0, 1.0  # N/m, kg/m^2
#: damping proportional to mass (1/s) and to stiffness (s)
MASS_DAMPING, STIFFNESS_DAMPING = 2.0, 2e-4


def line(length: float, elements: int) -> tuple[sp.csc_array, sp.csc_array]:
    """Return mass and stiffness of linear elements on a line clamped at both ends."""
    h, n = length / elements, elements - 1
    mass = sp.diags([np.full(n - 1, h / 6), np.full(n, 2 * h / 3), np.full(n - 1, h / 6)], [-1, 0, 1])
    stiffness = sp.diags([np.full(n - 1, -1 / h), np.full(n, 2 / h), np.full(n - 1, -1 / h)], [-1, 0, 1])
    return sp.csc_array(mass), sp.csc_array(stiffness)


def membrane() -> tuple[dict[str, sp.csc_array], np.ndarray, np.ndarray]:
    """Return M, D, K, B and C of the membrane, and the positions of its nodes."""
    (mass_x, stiff_x), (mass_y, stiff_y) = (
        line(size, count) for size, count in zip((LENGTH, WIDTH), ELEMENTS, strict=True)
    )
    M = DENSITY * sp.kron(mass_x, mass_y)
    K = TENSION * (sp.kron(stiff_x, mass_y) + sp.kron(mass_x, stiff_y))
    x, y = (size * np.arange(1, count) / count for size, count in zip((LENGTH, WIDTH), ELEMENTS, strict=True))
    x, y = (axis.ravel() for axis in np.meshgrid(x, y, indexing="ij"))
    pressed = np.exp(-(((x - 0.35) ** 2 + (y - 0.3) ** 2) / 0.12**2))
    B = M @ (pressed / (M @ pressed).sum())[:, None]  # a distributed force of 1 N
    C = np.exp(-(((x - 1.0) ** 2 + (y - 0.6) ** 2) / 0.08**2))[None]
    matrices = {"M": M, "D": MASS_DAMPING * M + STIFFNESS_DAMPING * K, "K": K, "B": B, "C": C / C.sum()}
    return {key: sp.csc_array(each) for key, each in matrices.items()}, x, y


def write_matrix_market(matrices: dict[str, sp.csc_array], folder: Path, name: str) -> Path:
    """Write one file for each matrix, as the Oberwolfach collection names them; return the first."""
    for key, matrix in matrices.items():
        with open(folder / f"{name}.{key}", "wb") as file:
            scipy.io.mmwrite(file, matrix)
    return folder / f"{name}.M"


def response(model: hankelred.SecondOrderModel, frequencies: np.ndarray) -> np.ndarray:
    """Return the gain at some frequencies, with one sparse factorization for each."""
    gains = []
    for w in frequencies:
        pencil = sp.csc_array(model.K) + 1j * w * sp.csc_array(model.D) - w**2 * sp.csc_array(model.M)
        gains.append(abs(model.Cp @ spl.splu(pencil.tocsc()).solve(model.B.astype(complex)))[0, 0])
    return np.array(gains)


def draw(
    model: hankelred.SecondOrderModel, reduction: hankelred.Reduction, x: np.ndarray, y: np.ndarray
) -> object:
    """Draw three modes, the Hankel singular values and both responses."""
    from matplotlib import pyplot

    shape = tuple(count - 1 for count in ELEMENTS)
    squares, modes = spl.eigsh(model.K, k=8, M=model.M, sigma=0)
    figure, axes = pyplot.subplot_mosaic("AABBCC;DDDEEE", figsize=(9, 6), layout="constrained")
    for name, k in zip("ABC", (0, 2, 5), strict=True):
        ax, mode = axes[name], modes[:, k].reshape(shape)
        limit = np.abs(mode).max()
        ax.pcolormesh(x.reshape(shape), y.reshape(shape), mode, cmap="RdBu", vmin=-limit, vmax=limit)
        ax.contour(x.reshape(shape), y.reshape(shape), mode, levels=[0.0], colors="black", linewidths=0.8)
        ax.set(
            title=f"mode {k + 1}: {np.sqrt(squares[k]) / (2 * np.pi):.1f} Hz", aspect="equal", xlabel="x (m)"
        )
    axes["A"].set_ylabel("y (m)")
    spectrum, gains = axes["D"], axes["E"]
    hankelred.plot_hankel_singular_values(reduction, ax=spectrum)
    w = 2 * np.pi * np.geomspace(3, 150, 150)
    A, B, C, D = reduction.system
    reduced = [abs(C @ np.linalg.solve(1j * each * np.eye(len(A)) - A, B) + D)[0, 0] for each in w]
    gains.loglog(
        w / 2 / np.pi, response(model, w), color="#0072B2", label=f"finite elements ({model.n_states} states)"
    )
    gains.loglog(w / 2 / np.pi, reduced, "--", color="#D55E00", label=f"reduced ({reduction.order} states)")
    gains.axhline(reduction.error_bound, color="gray", linestyle=":", label="error bound")
    gains.set(xlabel="frequency (Hz)", ylabel="gain (m/N)")
    gains.legend(fontsize="small")
    return figure


def main() -> None:
    """Reduce the membrane and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", nargs="?", type=Path, default=Path("membrane_to_model.png"))
    arguments = parser.parse_args()
    matrices, x, y = membrane()
    with tempfile.TemporaryDirectory() as folder:
        model = read_model(write_matrix_market(matrices, Path(folder), "membrane"))
    print(model)
    reduction = hankelred.reduce(model, rtol=0.02)
    certificate = reduction.certificate
    print(f"{certificate.factorizations} factorizations of {model.M.shape[0]} x {model.M.shape[0]} matrices")
    print(f"Hankel singular values to {certificate.value:.1e} ({certificate.kind})")
    print(f"{reduction.order} states: error {reduction.error('hinf'):.3g}, bound {reduction.error_bound:.3g}")
    kept = hankelred.reduce(model, reduction.order + reduction.order % 2, structure="second_order")
    print(f"as masses and springs: {kept.system}, error {kept.error('hinf'):.3g}")
    draw(model, reduction, x, y).savefig(arguments.picture, dpi=100)
    print(f"picture: {arguments.picture}")


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    main()
