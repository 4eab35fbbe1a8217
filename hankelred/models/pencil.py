"""Sparse pencils A + s E: products, and linear systems with one factorization for both Gramians."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from scipy.linalg.lapack import dgbtrf, dgbtrs, zgbtrf, zgbtrs

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError, ModelError

#: Share of the entries whose mirror image is an entry too, above which pivots are taken from the diagonal.
NEARLY_SYMMETRIC = 0.9
#: A diagonal pivot is taken if it is at least this share of the largest entry of its column.
PIVOT_SHARE = 0.01
#: If the factors have fewer entries than this per column, panels of SuperLU with so many columns take up to
#: 40 % less time than its default. With more entries, as of bodies in 3-D, they would take more.
FULL_COLUMNS = 100
SMALL_PANEL = 2
#: Relative residuals of a linear system above which one step of refinement is made, and the limit after it.
REFINED = 1e-12
ACCEPTED = 1e-8
#: Asymmetry that counts as rounding, relative to the largest entry.
SYMMETRIC = 1e-14
#: A matrix is factored as a band if its entries can be ordered to be no farther than this from the diagonal,
#: as those of beams, chains and lines.
NARROW = 8
#: Routines of LAPACK for real and for complex band matrices.
BAND_ROUTINES = {"f": (dgbtrf, dgbtrs), "c": (zgbtrf, zgbtrs)}

#: Arrays of a sparse matrix.
PARTS = ("indptr", "indices", "data")

SINGULAR = (
    "a shifted matrix A + s E is singular to working precision: A and E share a null space, or s is a pole "
    "of the model"
)


class SparseFactorization(Protocol):
    """Interface of a sparse factorization: SuperLU of scipy, or a user-supplied one."""

    def solve(self, b: Array, trans: str) -> Array:
        """Solve M x = b for trans "N", and M^T x = b for "T"; b is (n, k), real or complex as M is."""


Factorize: TypeAlias = Callable[[Any], SparseFactorization]


class Pencil(Protocol):
    """Interface to A and E of ``E x' = A x + B u`` for the low-rank solver."""

    #: number of states
    n: int

    @property
    def is_complex(self) -> bool:
        """Whether A or E is complex."""

    @property
    def factorizations(self) -> int:
        """Number of factorizations so far."""

    def A(self, x: Array, *, transposed: bool = False) -> Array:
        """Return A x, or A^T x."""

    def E(self, x: Array, *, transposed: bool = False) -> Array:
        """Return E x, or E^T x."""

    def into(self, x: Array) -> Array:
        """Permute states of the model to the order of this pencil."""

    def back(self, x: Array) -> Array:
        """Permute states in the order of this pencil to the order of the model."""

    def sizes(self, left: Array, right: Array) -> Array:
        """Return left^T |A| right for each pair of columns, whose entries must not be negative."""

    def shifted(self, shift: complex) -> Solver:
        """Return the solver of A + shift E."""

    def solve_both(self, shift: complex, right: Array, left: Array) -> tuple[Array, Array]:
        """Return (A + shift E)^-1 right and (A + shift E)^-T left, with one factorization."""

    def mass(self) -> Solver:
        """Return the solver of E."""


class Solver(Protocol):
    """Linear systems with one matrix and its transpose."""

    def __call__(self, b: Array, *, transposed: bool = False) -> Array:
        """Return M^-1 b, or M^-T b."""


class SparseFamily:
    """Sparse matrices whose linear combinations are factored, with one ordering for all of them.

    Parameters
    ----------
    matrices : list of sparse matrices, shape (n, n)
    factorize : callable, optional
        Sparse matrix (CSC) to an object with ``solve(b, trans)``; default: SuperLU.
    """

    def __init__(self, matrices: list[Any], factorize: Factorize | None = None):
        import scipy.sparse as sp

        matrices = [sp.csc_array(M) for M in matrices]
        self._is_complex = any(np.iscomplexobj(M.data) for M in matrices)
        self._made = 0
        self._factorize = factorize
        self._panel_size: int | None = None  # that of SuperLU, until the fill of a factorization is known
        pattern = _union(matrices)
        mirrored = pattern.T.tocsc()
        shared = pattern.multiply(mirrored).count_nonzero()
        # saddle points have no pivots on a part of the diagonal, and fill up if these are taken late
        full = np.count_nonzero(pattern.diagonal()) >= NEARLY_SYMMETRIC * pattern.shape[0]
        self._from_diagonal = bool(full and shared >= NEARLY_SYMMETRIC * pattern.nnz)
        band = _narrow_band(pattern + mirrored)
        self._bandwidth = None if band is None else band[0]
        self._order = self._inverse = None
        if band is not None:
            self._order = band[1]
        elif self._from_diagonal:
            self._order = _fill_reducing_order(pattern + mirrored)
        if self._order is not None:
            self._inverse = np.argsort(self._order)
            matrices = [M[self._order][:, self._order].tocsc() for M in matrices]
        for M in matrices:
            M.sort_indices()
        #: the matrices in the fill-reducing order
        self.matrices = matrices
        self._is_symmetric = all(is_symmetric(M) for M in matrices)
        self._combine = _CombinedOnOnePattern(matrices)

    @property
    def is_complex(self) -> bool:
        """Whether any of the matrices is complex."""
        return self._is_complex

    @property
    def factorizations(self) -> int:
        """Number of factorizations so far."""
        return self._made

    def into(self, x: Array) -> Array:
        """Permute rows from the order of the model to the fill-reducing order."""
        return x if self._order is None else x[self._order]

    def back(self, x: Array) -> Array:
        """Permute rows from the fill-reducing order to the order of the model."""
        return x if self._inverse is None else x[self._inverse]

    def combined(self, *weights: complex) -> FactoredSolver:
        """Factor the sum of the matrices with these weights."""
        return self.solver(self._combine(weights))

    def shifted_by(self, shift: complex) -> FactoredSolver:
        """Factor the first of two matrices plus a shift times the second; real ones stay real if it is."""
        return self.combined(1.0, shift if self.is_complex else as_real(shift))

    def solver(self, M: Any, *, for_inertia: bool = False) -> FactoredSolver:
        """Factor a sparse matrix in the fill-reducing order; for its inertia, without row exchanges."""
        self._made += 1
        factorize = self._factorize
        if factorize is None and self._bandwidth is not None and not for_inertia:
            return FactoredSolver(M, BandFactorization(M, self._bandwidth), lambda: _superlu(M))
        if for_inertia or factorize is None:
            pivots = 0.0 if for_inertia else PIVOT_SHARE
            factors = _superlu(M, symmetric=self._from_diagonal, pivots=pivots, panel_size=self._panel_size)
            self._panel_size = SMALL_PANEL if factors.nnz < FULL_COLUMNS * M.shape[0] else None
            return FactoredSolver(M, factors, lambda: _superlu(M))
        return FactoredSolver(M, factorize(M), lambda: factorize(M))

    def solve_with_both(self, solve: Solver, right: Array, left: Array) -> tuple[Array, Array]:
        """Return M^-1 right and M^-T left for the solver of a combination M; at once if M is symmetric."""
        if not self._is_symmetric:
            return solve(right), solve(left, transposed=True)
        x = solve(np.hstack([right, left]))
        return x[:, : right.shape[1]], x[:, right.shape[1] :]


class SparsePencil(SparseFamily):
    """A pencil of two sparse matrices."""

    def __init__(self, A: Any, E: Any, factorize: Factorize | None = None):
        super().__init__([A, E], factorize)
        self.n = int(A.shape[0])
        self.A_matrix, self.E_matrix = self.matrices
        self._times_A, self._times_E = map(Product, self.matrices)

    def A(self, x: Array, *, transposed: bool = False) -> Array:
        """Return A x, or A^T x."""
        return self._times_A(x, transposed)

    def E(self, x: Array, *, transposed: bool = False) -> Array:
        """Return E x, or E^T x."""
        return self._times_E(x, transposed)

    def sizes(self, left: Array, right: Array) -> Array:
        """Return left^T |A| right for each pair of columns, whose entries must not be negative."""
        return np.sum(left * (abs(self.A_matrix) @ right), axis=0)

    def shifted(self, shift: complex) -> Solver:
        """Return the solver of A + shift E."""
        return self.shifted_by(shift)

    def solve_both(self, shift: complex, right: Array, left: Array) -> tuple[Array, Array]:
        """Return (A + shift E)^-1 right and (A + shift E)^-T left, with one factorization."""
        return self.solve_with_both(self.shifted_by(shift), right, left)

    def mass(self) -> Solver:
        """Return the solver of E."""
        return self.solver(self.E_matrix)


class Product:
    """Products with a sparse matrix and with its transpose, which scipy would create for each of them."""

    def __init__(self, M: Any):
        self._matrix, self._transpose = M, M.T

    def __call__(self, x: Array, transposed: bool = False) -> Array:
        """Return M x, or M^T x."""
        return np.asarray((self._transpose if transposed else self._matrix) @ x)


def column_lengths(x: Array) -> Array:
    """Return the norms of columns; for one column without the overhead of numpy's function."""
    if x.shape[1] == 1:
        return np.sqrt([np.vdot(x, x).real])
    return np.asarray(np.linalg.norm(x, axis=0))


def applied(times: Callable[..., Array], x: Array, adjoint: bool) -> Array:
    """Return M x for a product with M of a pencil, or M^H x."""
    return times(x.conj(), transposed=True).conj() if adjoint else times(x)


def as_real(shift: complex) -> complex:
    """Return a shift without an imaginary part as a float, so that real matrices stay real."""
    return float(shift.real) if shift.imag == 0 else shift


class FactoredSolver:
    """Linear systems with a factored sparse matrix; the residual of every column of a solution is checked.

    Pivots from the diagonal reduce the fill by half but can fail. In that case the matrix is factored again
    with full pivoting.
    """

    def __init__(self, M: Any, factors: SparseFactorization, again: Callable[[], SparseFactorization]):
        self.matrix, self.factors, self._again = M, factors, again
        self._size = float(np.abs(M.data).max(initial=0.0))

    def __call__(self, b: Array, *, transposed: bool = False) -> Array:
        """Return M^-1 b, or M^-T b."""
        x, residual = self._solved(b, transposed)
        if not residual <= ACCEPTED:
            self.factors = self._again()
            x, residual = self._solved(b, transposed)
            if not residual <= ACCEPTED:
                raise ConvergenceError(
                    f"the relative residual of a sparse linear system is {residual:.1e}, and at most "
                    f"{ACCEPTED:.0e} is accepted: the pencil is singular or too ill-conditioned; scale its "
                    "states, or pass another factorization (factorize=)"
                )
        return x

    def operator(self) -> Callable[[Array], Array]:
        """Return b -> M^-1 b for vectors, as iterations for eigenvalues require it."""
        return lambda b: self(np.reshape(b, (-1, 1)))[:, 0]

    def _solved(self, b: Array, transposed: bool) -> tuple[Array, float]:
        """Return the solution and the largest relative residual of its columns."""
        trans = "T" if transposed else "N"
        M = self._transpose if transposed else self.matrix
        b = np.ascontiguousarray(b, dtype=np.result_type(b, self.matrix.dtype))
        if b.size == 0:
            return b, 0.0
        with np.errstate(all="ignore"):  # after an overflow the residual is not small
            x = self._from_factors(b, trans)
            relative = self._residual(M, x, b)
            if REFINED < relative <= 1:
                x = x + self._from_factors(b - M @ x, trans)
                relative = self._residual(M, x, b)
        return x, relative if np.isfinite(relative) else np.inf

    @cached_property
    def _transpose(self) -> Any:
        return self.matrix.T

    def _from_factors(self, b: Array, trans: str) -> Array:
        if np.iscomplexobj(b) and not np.iscomplexobj(self.matrix.data):  # a real E beside a complex A
            real, imaginary = np.ascontiguousarray(b.real), np.ascontiguousarray(b.imag)
            return np.asarray(self.factors.solve(real, trans) + 1j * self.factors.solve(imaginary, trans))
        return np.asarray(self.factors.solve(b, trans))

    def _residual(self, M: Any, x: Array, b: Array) -> float:
        """Return the largest relative residual of a column, and NaN if one is not finite."""
        sizes = column_lengths(b) + self._size * column_lengths(x)
        residuals = column_lengths(b - M @ x)
        return float(np.max(residuals / np.where(sizes > 0, sizes, 1.0)))

    def inertia(self, rounding: float) -> tuple[int, int] | None:
        """Return the numbers of positive and negative eigenvalues of a Hermitian matrix.

        Pivots below this share of the largest are rounding and count as neither. By Sylvester's law, the
        inertia is that of the pivots if all of them are on the diagonal, in order; otherwise the result is
        None.
        """
        factors: Any = self.factors
        if not hasattr(factors, "perm_r") or not np.array_equal(factors.perm_r, factors.perm_c):
            return None
        pivots = factors.U.diagonal()
        if np.any(np.abs(pivots.imag) > 1e3 * EPS * np.abs(pivots.real)):
            return None
        floor = rounding * float(np.abs(pivots).max(initial=0.0))
        return int(np.count_nonzero(pivots.real > floor)), int(np.count_nonzero(pivots.real < -floor))


def _superlu(M: Any, *, symmetric: bool = False, pivots: float = 1.0, panel_size: int | None = None) -> Any:
    import scipy.sparse.linalg as spl

    try:
        if symmetric:  # the rows and columns are in order already
            return spl.splu(
                M,
                permc_spec="NATURAL",
                diag_pivot_thresh=pivots,
                panel_size=panel_size,
                options={"SymmetricMode": True},
            )
        return spl.splu(M, permc_spec="COLAMD")
    except RuntimeError as error:
        if "singular" not in str(error).lower():
            raise
        raise ModelError(SINGULAR) from None


class BandFactorization:
    """LU factors of a matrix without entries outside a narrow band, by LAPACK.

    Parameters
    ----------
    M : sparse matrix (CSC), shape (n, n)
    width : int
        Largest distance of an entry from the diagonal.
    """

    def __init__(self, M: Any, width: int):
        M.sum_duplicates()
        band = np.zeros((3 * width + 1, M.shape[0]), M.dtype, order="F")
        columns = entry_columns(M)
        band[2 * width + M.indices - columns, columns] = M.data
        factor, self._solve = BAND_ROUTINES[band.dtype.kind]
        self._factors, self._pivots, info = factor(band, width, width, overwrite_ab=True)
        self._width = width
        if info > 0:
            raise ModelError(SINGULAR)

    def solve(self, b: Array, trans: str) -> Array:
        """Solve M x = b for trans "N", and M^T x = b for "T"."""
        lower = upper = self._width
        x, _ = self._solve(self._factors, lower, upper, b, self._pivots, trans=int(trans == "T"))
        return np.asarray(x)


def least_singular_value(solve: Solver, n: int, steps: int) -> float:
    """Return the least singular value of the matrix of a solver, from above, by inverse iteration."""
    x = np.random.default_rng(0).standard_normal((n, 1))
    for _ in range(steps):
        x = solve(solve(x / np.linalg.norm(x)).conj(), transposed=True).conj()
    return float(np.linalg.norm(x)) ** -0.5


class _CombinedOnOnePattern:
    """Linear combinations of sparse matrices; their common pattern is computed once."""

    def __init__(self, matrices: list[Any]):
        import scipy.sparse as sp

        pattern = _union(matrices)
        pattern.sort_indices()
        keys = _keys(pattern)
        self._entries = []
        for M in matrices:
            entries = np.zeros(keys.size, dtype=M.dtype)
            entries[np.searchsorted(keys, _keys(M))] = M.data
            self._entries.append(entries)
        self._pattern = sp.csc_array((keys, pattern.indices, pattern.indptr), shape=pattern.shape)
        self._pattern.has_canonical_format = True

    def __call__(self, weights: tuple[complex, ...]) -> Any:
        first, *others = (w * entries for w, entries in zip(weights, self._entries, strict=True))
        combined = copy.copy(self._pattern)  # its indices are checked already
        combined.data = sum(others, first)
        return combined


def _keys(M: Any) -> Array:
    """Return one number for the place of each entry, rising where the indices are sorted."""
    return entry_columns(M) * M.shape[0] + M.indices


def entry_columns(M: Any) -> Array:
    """Return the column of each entry of a sparse matrix (CSC)."""
    return np.repeat(np.arange(M.shape[1], dtype=np.int64), np.diff(M.indptr))


def is_symmetric(M: Any) -> bool:
    """Tell whether a sparse matrix (CSC, with sorted indices) is exactly its transpose."""
    mirrored = M.T.tocsc()
    return all(np.array_equal(getattr(M, part), getattr(mirrored, part)) for part in PARTS)


def is_hermitian(M: Any) -> bool:
    """Tell whether a matrix, sparse or not, is Hermitian up to rounding."""

    def largest(X: Any) -> float:
        return float(np.abs(X.data if hasattr(X, "toarray") else X).max(initial=0.0))

    return largest(M - M.conj().T) <= SYMMETRIC * largest(M)


def _union(matrices: list[Any]) -> Any:
    """Return a sparse matrix with an entry wherever one of the matrices has one."""
    import scipy.sparse as sp

    first, *others = (
        sp.csc_array((np.ones(M.data.size), M.indices, M.indptr), shape=M.shape) for M in matrices
    )
    return sum(others, first).tocsc()


def _narrow_band(pattern: Any) -> tuple[int, Array] | None:
    """Return the bandwidth and the order of states of a matrix that has a narrow band; None for others."""
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    if np.diff(pattern.indptr).max(initial=0) > 2 * NARROW + 1:
        return None
    order = reverse_cuthill_mckee(pattern.tocsr(), symmetric_mode=True)
    places = np.argsort(order)
    width = int(np.abs(places[pattern.indices] - places[entry_columns(pattern)]).max(initial=0))
    return (width, order) if width <= NARROW else None


def _fill_reducing_order(pattern: Any) -> Array:
    """Return the order of states in which elimination from the diagonal makes few new entries."""
    import scipy.sparse as sp
    import scipy.sparse.linalg as spl

    # Any matrix of the pattern will do, so a strongly diagonal one, which needs no pivots; an incomplete
    # factorization that drops everything finds the same order for a fraction of the time.
    dominant = (pattern + sp.diags_array(np.asarray(pattern.sum(axis=1)).ravel() + 1)).tocsc()
    factors = spl.spilu(
        dominant,
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        drop_tol=1.0,
        fill_factor=1.0,
        options={"SymmetricMode": True},
    )
    return np.argsort(factors.perm_c)
