"""The few unstable and marginal poles of a large sparse pencil, taken out before its Gramians are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ModelError
from ..models.pencil import Pencil, Solver
from .poles import krylov
from .stability import is_stable_pole

#: Columns of the Krylov spaces in which such poles are looked for.
COLUMNS = 40
#: So many poles are taken out at most.
MOST = 20
#: A chain of two integrators comes out of an eigenvalue computation as poles of the square root of rounding.
CLUSTER = 1e-6
#: Poles are looked for nearer to the origin, so often, until these nearest ones are found exactly.
ROUNDS = 5
NEAREST = 6
#: Relative residual of an eigenvector up to which its pole counts as one.
SETTLED = 1e-6
#: Steps of subspace iteration, and how far from invariant the result may be.
STEPS = 6
INVARIANT = 1e-8


@dataclass(frozen=True, eq=False)
class UnstablePart:
    """An invariant subspace of a pencil: A right = E right A_k, left^H E right = 1.

    Empty for stable models.
    """

    A: Array
    left: Array
    right: Array


def no_unstable_part(n: int) -> UnstablePart:
    """Return the part of a stable model."""
    return UnstablePart(np.zeros((0, 0)), np.zeros((n, 0)), np.zeros((n, 0)))


def unstable_part(pencil: Pencil, near: float, tol: float) -> UnstablePart:
    """Return the invariant subspace of the unstable and marginal poles among those nearest the origin.

    Parameters
    ----------
    near : float
        Size of the slowest poles, roughly: poles are looked for around this positive number, where a stable
        pencil has none.
    tol : float
        Poles nearer to the stability boundary than this, relative to the size of the fastest pole, are
        marginal.

    Raises
    ------
    ConvergenceError
        There are too many of them, or their subspace did not become invariant.
    """
    for _ in range(ROUNDS):
        solve, right, left, poles, Y, X, settled = _projected_near(pencil, near)
        nearest = np.argsort(np.abs(poles))[:NEAREST]
        if np.all(settled[nearest]) or not np.any(np.abs(poles[nearest]) < near):
            break
        near = float(np.median(np.abs(poles[nearest])))
    size = float(np.abs(poles[np.isfinite(poles)]).max(initial=0.0))
    tol = max(tol, 10 * EPS)
    unstable = settled & ~is_stable_pole(poles, size, discrete=False, tol=tol)
    # the poles of a chain of integrators part to both sides, while their mean stays
    group = settled & (np.abs(poles) <= CLUSTER * near)
    if np.any(group) and abs(np.mean(poles[group])) <= tol * size:
        unstable |= group
    if not np.any(unstable):
        return no_unstable_part(pencil.n)
    count = int(np.count_nonzero(unstable))
    if count > min(MOST, right.shape[1] // 2):
        raise ConvergenceError(
            f"at least {count} poles near {near:.1e} are unstable or marginal, and the low-rank solver takes "
            f"at most {MOST} out: use solver='dense', and check the sign of A (a stable model has its poles "
            "in the left half plane)"
        )
    V, U = right @ X[:, unstable], left.conj() @ Y[:, unstable]
    if not pencil.is_complex:
        V, U = _real_basis(V), _real_basis(U)
    return _refined(pencil, solve, V[:, :count], U[:, :count], near)


def _projected_near(pencil: Pencil, near: float) -> tuple[Solver, Array, Array, Array, Array, Array, Array]:
    """Return a solver, both Krylov spaces around a positive number, and the poles and vectors in them.

    Last, which of the poles are settled: many a pole of a projection is none of the pencil.
    """
    solve = _solver_near(pencil, near)
    start = np.random.default_rng(0).standard_normal((pencil.n, 2))
    right = krylov(pencil, solve, start, COLUMNS, transposed=False)
    left = krylov(pencil, solve, start, COLUMNS, transposed=True)
    k = min(right.shape[1], left.shape[1])
    right, left = right[:, :k], left[:, :k]
    poles, Y, X = sla.eig(left.T @ pencil.A(right), left.T @ pencil.E(right), left=True, right=True)
    settled = np.isfinite(poles) & (_defects(pencil, right @ X, poles, near) <= SETTLED)
    return solve, right, left, poles, Y, X, settled


def _defects(pencil: Pencil, V: Array, poles: Array, near: float) -> Array:
    """Return the residuals of eigenvectors relative to what a pole of size `near` would have."""
    image, E = pencil.A(V), pencil.E(V)
    sizes = np.linalg.norm(image, axis=0) + (np.abs(poles) + near) * np.linalg.norm(E, axis=0)
    with np.errstate(all="ignore"):
        return np.linalg.norm(image - E * poles, axis=0) / sizes


def _solver_near(pencil: Pencil, near: float) -> Solver:
    """Return the solver of A - s E with s around a positive number that is no pole."""
    for factor in (1.0, 1.3, 0.7):
        try:
            return pencil.shifted(complex(-near * factor))
        except (ModelError, ConvergenceError):
            continue
    raise ConvergenceError(f"A - s E could not be factored for s around {near:.1e}: the pencil is singular")


def _real_basis(V: Array) -> Array:
    """Return an orthonormal real basis of the space of vectors whose conjugates belong to it too."""
    U, _, _ = np.linalg.svd(np.hstack([V.real, V.imag]), full_matrices=False)
    return U


def _refined(pencil: Pencil, solve: Solver, V: Array, U: Array, near: float) -> UnstablePart:
    """Return the subspaces of both sides after some steps of subspace iteration."""
    for _ in range(STEPS):
        V = np.linalg.qr(solve(pencil.E(V)))[0]
        U = np.linalg.qr(solve(pencil.E(U.conj(), transposed=True), transposed=True).conj())[0]
    U = np.linalg.solve(U.conj().T @ pencil.E(V), U.conj().T).conj().T
    image = pencil.A(V)
    A = U.conj().T @ image
    E = pencil.E(V)
    defect = float(np.linalg.norm(image - E @ A))
    size = float(np.linalg.norm(image)) + float(np.linalg.norm(E)) * (float(np.linalg.norm(A)) + near)
    if not defect <= INVARIANT * size:
        raise ConvergenceError(
            f"the unstable or marginal poles could not be taken out: their subspace is invariant to "
            f"{defect / size:.1e} only, where at most {INVARIANT:.0e} is accepted; use solver='dense'"
        )
    return UnstablePart(A, U, V)
