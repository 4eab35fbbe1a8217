"""Bounds for the Gramian of a residual factor, on which a rigorous low-rank certificate is based.

With E positive definite, let a Gramian be measured by its largest eigenvalue in the coordinates in which E is
the identity. For a residual factor W the Gramian X of ``A X E + E X A^T = -W W^T`` is bounded

- if A is symmetric and negative definite, by its trace: tr(E X) = tr(W^T (-A)^-1 W) / 2, exactly;
- if A + A^T is negative definite, by |W|^2 / (2 mu) with W measured by E^-1 and mu the smallest decay rate,
  ``(A + A^T) / 2 <= -mu E``.

In discrete time, for symmetric A and E, the pencil is (A - E, A + E) and tr(E X) is the mean of
tr(W^T (E - A)^-1 W) / 2 and tr(W^T (A + E)^-1 W) / 2.

Definiteness is proved: by diagonals that dominate their rows, or by the signs of the pivots of a
factorization without exchanges (Sylvester's law of inertia). All of it holds up to rounding.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ModelError
from ..models.pencil import (
    Pencil,
    Solver,
    SparseFamily,
    SparsePencil,
    entry_columns,
    is_hermitian,
    least_singular_value,
)
from ..models.second_order import SecondOrderPencil
from ..models.sparse_model import SINGULAR_E
from .dual_adi import Side

#: Up to this many states the factorization for the bounds is kept; for more it is computed when needed.
KEPT_STATES = 200_000
#: Number of columns of linear systems with it that are solved at a time.
COLUMNS = 16
#: Steps of inverse iteration for the least singular value of E.
STEPS = 3
#: A row whose diagonal entry exceeds the sum of the others by more than this share is strictly dominant.
STRICT = 1e-10
#: The decay rate that is proved, as a share of the estimated one.
PROVED_SHARE = 0.9


class ResidualBound(Protocol):
    """A proved bound for (s E - A)^-1."""

    def __call__(self, side: Side) -> float:
        """Return a bound for the largest eigenvalue of the Gramian of the residual factor."""

    def gram(self, W: Array, V: Array, *, transposed: bool = False) -> Array:
        """Return W^H X V, so that |w^H (s E - A)^-1 v|^2 <= (w^H X w) (v^H X v) on the stability boundary.

        With `transposed` X^T takes the place of X.
        """


def proven_bound(pencil: Pencil, *, discrete: bool) -> ResidualBound | None:
    """Return the bound that can be proved for this pencil, or None."""
    if not isinstance(pencil, SparsePencil):
        return None
    A, E = pencil.A_matrix, pencil.E_matrix
    if not is_hermitian(E):
        return None
    if is_hermitian(A):
        if not (is_positive_definite(pencil, -A) and is_positive_definite(pencil, E)):
            return None
        return SymmetricBound(pencil, discrete=discrete)
    if discrete or not is_positive_definite(pencil, E):
        return None
    mu = decay_rate(pencil)
    return None if mu is None else DissipativeBound(pencil, mu)


class SymmetricBound:
    """By the trace, for symmetric pencils."""

    def __init__(self, pencil: SparsePencil, *, discrete: bool):
        matrices = [-pencil.A_matrix, pencil.E_matrix] if discrete else [-pencil.A_matrix]
        self._solvers = [_FactoredOnDemand(pencil, M) for M in matrices]

    def __call__(self, side: Side) -> float:
        """Return a bound for the largest eigenvalue of the Gramian of the residual factor."""
        trace = float(np.trace(self.gram(side.W, side.W, transposed=side.transposed)).real)
        return max(trace / (2 * len(self._solvers)), 0.0)

    def gram(self, W: Array, V: Array, *, transposed: bool = False) -> Array:
        """Return W^H X V with X = (-A)^-1, in discrete time (E - A)^-1 + (E + A)^-1."""
        grams = [solver.gram(W, V, transposed=transposed) for solver in self._solvers]
        return sum(grams[1:], grams[0])


class DissipativeBound:
    """By the smallest decay rate mu."""

    def __init__(self, pencil: SparsePencil, mu: float):
        self.mu = mu
        self._solver = _FactoredOnDemand(pencil, pencil.E_matrix)

    def __call__(self, side: Side) -> float:
        """Return a bound for the largest eigenvalue of the Gramian of the residual factor."""
        return float(np.linalg.norm(self.gram(side.W, side.W, transposed=side.transposed), 2)) / 2

    def gram(self, W: Array, V: Array, *, transposed: bool = False) -> Array:
        """Return W^H X V with X = E^-1 / mu."""
        return self._solver.gram(W, V, transposed=transposed) / self.mu


class _FactoredOnDemand:
    """A factored matrix; the factors of a large matrix are computed for each use and not kept."""

    def __init__(self, pencil: SparsePencil, M: Any):
        self._pencil, self._matrix = pencil, M
        self._diagonal = M.diagonal() if is_diagonal(M) else None
        self._factored: Solver | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_factored": None}  # the factors of SuperLU cannot be pickled

    def gram(self, W: Array, V: Array, *, transposed: bool) -> Array:
        """Return W^H M^-1 V, or W^H M^-T V; a few columns are solved at a time, to save memory."""
        if self._diagonal is not None:
            return W.conj().T @ (V / self._diagonal[:, None])
        solver = self._factored or self._pencil.solver(self._matrix)
        if self._pencil.n <= KEPT_STATES:
            self._factored = solver
        blocks = [V[:, at : at + COLUMNS] for at in range(0, max(V.shape[1], 1), COLUMNS)]
        return np.hstack([W.conj().T @ solver(block, transposed=transposed) for block in blocks])


def is_diagonal(M: Any) -> bool:
    """Tell whether a sparse matrix is diagonal."""
    return M.nnz <= M.shape[0] and bool(np.array_equal(M.indices, entry_columns(M)))


def is_proven_stable(pencil: Pencil) -> bool:
    """Tell whether a model of second order is proved to be stable: M, D and K are all positive definite.

    M must have passed :func:`check_descriptor`; only D and K are checked here.
    """
    if not isinstance(pencil, SecondOrderPencil):
        return False
    return all(is_hermitian(X) and is_positive_definite(pencil.family, X) for X in (pencil.K, pencil.D))


def is_positive_definite(family: SparseFamily, M: Any) -> bool:
    """Tell whether a Hermitian sparse matrix is proved to be positive definite."""
    diagonal = M.diagonal().real
    if not np.all(diagonal > 0):
        return False
    if is_diagonal(M):
        return True
    others = np.asarray(abs(M).sum(axis=1)).ravel() - diagonal
    excess = diagonal * (1 + 8 * EPS) - others
    strict = excess > STRICT * diagonal
    if np.all(excess >= 0) and _is_connected_to(M, strict):
        return True
    try:
        factored = family.solver(M.astype(complex) if family.is_complex else M, for_inertia=True)
    except ModelError:
        return False
    inertia = factored.inertia(M.shape[0] * EPS)
    return inertia is not None and inertia[0] == M.shape[0]


def check_descriptor(pencil: Pencil, *, discrete: bool) -> None:
    """Refuse a singular E, and a mass matrix that is not positive definite.

    Raises
    ------
    ModelError
    """
    if isinstance(pencil, SecondOrderPencil):
        if not (is_hermitian(pencil.M) and is_positive_definite(pencil.family, pencil.M)):
            raise ModelError("M must be symmetric and positive definite; eliminate states without mass first")
        return
    if not isinstance(pencil, SparsePencil):
        return
    E = ((pencil.E_matrix - pencil.A_matrix) / 2).tocsc() if discrete else pencil.E_matrix
    if is_diagonal(E) and np.all(E.diagonal() != 0):
        return
    E.sort_indices()
    size = float(np.abs(E.data).max(initial=0.0))
    try:
        least = least_singular_value(pencil.solver(E), pencil.n, STEPS)
    except (ModelError, ConvergenceError):
        least = 0.0
    if not least > pencil.n * EPS * size:
        raise ModelError(
            SINGULAR_E.format(f"its least singular value is {least:.1e}, its entries up to {size:.1e}")
        )


def _is_connected_to(M: Any, strict: Array) -> bool:
    """Tell whether every part of the graph of M has a row that is strictly dominant.

    Source: Taussky, Amer. Math. Monthly 56 (1949): such a matrix is not singular.
    """
    from scipy.sparse.csgraph import connected_components

    count, labels = connected_components(abs(M), directed=False)
    return np.unique(labels[strict]).size == count


def decay_rate(pencil: SparsePencil) -> float | None:
    """Return mu with (A + A^T) / 2 <= -mu E, proved; None where that is not negative definite."""
    import scipy.sparse.linalg as spl

    S = ((pencil.A_matrix + pencil.A_matrix.conj().T) / 2).tocsc()
    S.sort_indices()
    if not is_positive_definite(pencil, -S):
        return None
    solver = pencil.solver(-S)
    n = pencil.n
    start = np.random.default_rng(0).standard_normal(n).astype(S.dtype)
    inverse = spl.LinearOperator((n, n), matvec=solver.operator(), dtype=S.dtype)
    try:
        values = spl.eigsh(
            -S, k=1, M=pencil.E_matrix, sigma=0, OPinv=inverse, v0=start, return_eigenvectors=False, tol=1e-3
        )
    except spl.ArpackError:
        return None
    mu = PROVED_SHARE * float(values[0])
    shifted = (-S - mu * pencil.E_matrix).tocsc()
    shifted.sort_indices()
    return mu if mu > 0 and is_positive_definite(pencil, shifted) else None
