"""Poles of a large sparse pencil near the origin, and their contribution to the gain from B to C."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ConvergenceError, ModelError
from ..models.pencil import Pencil, Solver

#: Columns of the Krylov spaces for each requested pole.
OVERSAMPLING = 3


def slow_poles(pencil: Pencil, B: Array, C: Array, count: int, center: float = 0.0) -> tuple[Array, Array]:
    """Return stable poles near the origin, and the contribution of each to the largest gain from B to C.

    If the origin may be a pole, the poles nearest to the positive number `center` are returned instead.

    The poles of a second-order model are computed from its modes. Otherwise they are computed from
    shift-and-invert Krylov spaces that start from B and C, so that poles that are neither controllable nor
    observable do not appear.
    """
    by_modes = getattr(pencil, "slow_poles", None)
    poles_and_gains = by_modes(count, B, C, center) if by_modes is not None else None
    if poles_and_gains is not None:
        return poles_and_gains
    no_poles = np.zeros(0, complex), np.zeros(0)
    try:
        solve = pencil.shifted(complex(-center))
        right = krylov(pencil, solve, B, OVERSAMPLING * count, transposed=False)
        left = krylov(pencil, solve, C.T, OVERSAMPLING * count, transposed=True)
    except (ModelError, ConvergenceError):  # the origin is a pole
        return no_poles
    k = min(right.shape[1], left.shape[1])
    if k == 0:
        return no_poles
    right, left = right[:, :k], left[:, :k]
    A, E = left.T @ pencil.A(right), left.T @ pencil.E(right)
    poles, Y, X = sla.eig(A, E, left=True, right=True)
    weight = np.einsum("ij,ik,kj->j", Y.conj(), E, X)
    with np.errstate(all="ignore"):
        output_gains = np.linalg.norm(C @ (right @ X), axis=0)
        input_gains = np.linalg.norm((Y.conj().T @ left.T) @ B, axis=1)
        gains = output_gains * input_gains / np.abs(weight * poles.real)
    usable = (
        np.isfinite(poles)
        & np.isfinite(gains)
        & (poles.real < 0)
        & (poles.imag >= 0 if not pencil.is_complex else True)
    )
    poles, gains = poles[usable], gains[usable]
    nearest = np.argsort(np.abs(poles - center))[:count]
    return poles[nearest], gains[nearest]


def krylov(pencil: Pencil, solve: Solver, start: Array, columns: int, *, transposed: bool) -> Array:
    """Return an orthonormal basis of the space of (A^-1 E)^k A^-1 start."""
    columns = min(columns, pencil.n // 2)
    block = solve(start, transposed=transposed)
    basis = np.zeros((pencil.n, 0), block.dtype)
    while basis.shape[1] < columns and block.shape[1]:
        block = block[:, : columns - basis.shape[1]]
        size = np.linalg.norm(block, axis=0)
        for _ in range(2):
            block = block - basis @ (basis.conj().T @ block)
        Q, R = np.linalg.qr(block)
        block = Q[:, np.abs(np.diag(R)) > 1e-12 * size]
        basis = np.hstack([basis, block])
        block = solve(pencil.E(block, transposed=transposed), transposed=transposed)
    return basis
