"""Poles of a large sparse pencil near the origin, with what they matter to the ports."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ConvergenceError, ModelError
from ..models.pencil import Pencil, Solver

#: Columns of the Krylov spaces for each pole asked for.
OVERSAMPLING = 3


def slow_poles(pencil: Pencil, B: Array, C: Array, count: int, around: float = 0.0) -> tuple[Array, Array]:
    """Return stable poles near the origin, and how much each adds to the largest gain from B to C.

    Where the origin may be a pole itself they are looked for around a positive number.

    By the modes of a model of second order; else from shifted and inverted Krylov spaces of both sides, which
    start at the ports, so that poles that neither are driven nor seen do not appear.
    """
    own = getattr(pencil, "slow_poles", None)
    found = own(count, B, C, around) if own is not None else None
    if found is not None:
        return found
    nothing = np.zeros(0, complex), np.zeros(0)
    try:
        solve = pencil.shifted(complex(-around))
        right = krylov(pencil, solve, B, OVERSAMPLING * count, transposed=False)
        left = krylov(pencil, solve, C.T, OVERSAMPLING * count, transposed=True)
    except (ModelError, ConvergenceError):  # the origin is a pole
        return nothing
    k = min(right.shape[1], left.shape[1])
    if k == 0:
        return nothing
    right, left = right[:, :k], left[:, :k]
    A, E = left.T @ pencil.A(right), left.T @ pencil.E(right)
    poles, Y, X = sla.eig(A, E, left=True, right=True)
    weight = np.einsum("ij,ik,kj->j", Y.conj(), E, X)
    with np.errstate(all="ignore"):
        seen = np.linalg.norm(C @ (right @ X), axis=0)
        fed = np.linalg.norm((Y.conj().T @ left.T) @ B, axis=1)
        gains = seen * fed / np.abs(weight * poles.real)
    good = (
        np.isfinite(poles)
        & np.isfinite(gains)
        & (poles.real < 0)
        & (poles.imag >= 0 if not pencil.is_complex else True)
    )
    poles, gains = poles[good], gains[good]
    nearest = np.argsort(np.abs(poles - around))[:count]
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
