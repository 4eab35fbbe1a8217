"""The errors of computed balanced states, and their effect on a reduced model.

A computed Schur form is the Schur form of a matrix near A. In a stiff model, or with a pole near the
stability boundary, the errors of the singular values and balanced states that are computed from it are much
larger than rounding. In the computed states both Gramians should be diag(values); the residuals of their
equations can be computed with twice the digits and solved for the corrections, for which a few digits are
enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import EPS, Array
from ...models.projection import ProjectedSystem
from ..order import repeated_clusters


@dataclass(frozen=True)
class Imbalance:
    """Errors of the singular values, and the change of states that balances a system.

    ``errors`` are relative, and overestimated by a factor of about four. ``correction`` is F, where the
    states z of ``x = (1 + F) z`` are balanced to first order.
    """

    errors: Array
    correction: Array


def imbalance(system: ProjectedSystem, values: Array, *, discrete: bool) -> Imbalance:
    """Return the deviation of a system from one with both Gramians equal to diag(values)."""
    if values.size == 0:
        return Imbalance(np.zeros(0), np.zeros((0, 0)))
    A, A_low, C = (M.conj().T for M in (system.A, system.A_low, system.C))
    solve = _stein_solver(system.A) if discrete else _lyapunov_solver(system.A)
    P, P_noise = (solve(M) for M in _defect(system.A, system.A_low, system.B, values, discrete=discrete))
    Q, Q_noise = (solve(M, adjoint=True) for M in _defect(A, A_low, C, values, discrete=discrete))
    sizes = (np.abs(P) + np.abs(P_noise) + np.abs(Q) + np.abs(Q_noise)) / 2
    if not np.all(np.isfinite(sizes)):
        return Imbalance(np.ones(values.size), np.full(P.shape, np.inf))
    return Imbalance(_errors(sizes, values), _balancing_correction(P, Q, values))


def _defect(A: Array, A_low: Array, B: Array, values: Array, *, discrete: bool) -> tuple[Array, Array]:
    """Return the residual of the equation of the controllability Gramian diag(values), and its rounding."""
    AS, AS_low = A * values, A_low * values
    if not discrete:
        return AS + AS.conj().T + B @ B.conj().T + AS_low + AS_low.conj().T, np.zeros(A.shape)
    AS_low = AS @ A_low.conj().T
    AS = AS @ A.conj().T
    defect = AS - np.diag(values) + B @ B.conj().T + AS_low + AS_low.conj().T
    return defect, np.diag(EPS * (np.diag(AS).real + values))


def _lyapunov_solver(A: Array) -> Callable[..., Array]:
    """Return a solver of A X + X A^H = -W, or with adjoint=True of A^H X + X A = -W."""
    T, Z = sla.schur(A, output="complex" if np.iscomplexobj(A) else "real", check_finite=False)
    (trsyl,) = sla.get_lapack_funcs(("trsyl",), (T,))

    def solve(W: Array, *, adjoint: bool = False) -> Array:
        sides = {"trana": "C", "tranb": "N"} if adjoint else {"trana": "N", "tranb": "C"}
        X, scale, _ = trsyl(T, T, -(Z.conj().T @ W @ Z), **sides)
        return Z @ (X / scale) @ Z.conj().T

    return solve


def _stein_solver(A: Array) -> Callable[..., Array]:
    """Return a solver of X = A X A^H + W, or with adjoint=True of X = A^H X A + W."""
    T, Z = sla.schur(A, output="complex", check_finite=False)
    eye = np.eye(A.shape[0])

    def solve(W: Array, *, adjoint: bool = False) -> Array:
        # with rows and columns reversed T^H is upper triangular
        U, W = T, Z.conj().T @ W @ Z
        if adjoint:
            U, W = T[::-1, ::-1].conj().T, W[::-1, ::-1]
        X = np.zeros(W.shape, complex)
        for j in range(eye.shape[0] - 1, -1, -1):
            right = W[:, j] + U @ (X[:, j + 1 :] @ U[j, j + 1 :].conj())
            X[:, j] = sla.solve_triangular(eye - U[j, j].conj() * U, right, check_finite=False)
        X = Z @ (X[::-1, ::-1] if adjoint else X) @ Z.conj().T
        return X if np.iscomplexobj(A) else X.real

    return solve


def _errors(corrections: Array, values: Array) -> Array:
    """Return the relative errors of the values for corrections of this size, the mean of both Gramians.

    To first order the values change by the diagonal, and close values also by their off-diagonal entries.
    """
    couplings = corrections**2 / (np.abs(values[:, None] - values) + corrections + np.finfo(float).tiny)
    changes = 4 * (np.diag(corrections) + couplings.sum(axis=1) - np.diag(couplings))
    return np.clip(changes / values, 16 * EPS, 1.0)


def _balancing_correction(P: Array, Q: Array, values: Array) -> Array:
    """Return F for which P - F S - S F^H and Q + F^H S + S F, S = diag(values), are diagonal.

    Any basis of the space of a repeated value is balanced.
    """
    rows, columns = values[:, None], values[None, :]
    gaps = (columns - rows) * (columns + rows)
    same_cluster = np.eye(values.size, dtype=bool)
    for cluster in repeated_clusters(values):
        same_cluster[cluster, cluster] = True
    same_cluster |= gaps == 0
    return np.where(same_cluster, 0.0, (columns * P + rows * Q) / np.where(same_cluster, 1.0, gaps))


def changes_by_balancing(system: ProjectedSystem, correction: Array, r: int) -> tuple[Array, Array, Array]:
    """Return the changes of A, B and C if the states after the first r were balanced against these."""
    coupling = correction.copy()
    coupling[:r, :r] = coupling[r:, r:] = 0.0
    A, B, C = system.A, system.B, system.C
    return A @ coupling - coupling @ A, -coupling @ B, C @ coupling
