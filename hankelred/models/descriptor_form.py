"""Finite and infinite poles of a pencil s E - A, separated by elimination and orthogonal transformations.

Each stage compresses E to its nonzero part, with A partitioned alike:

    s E - A = [ s E11 - A11   -A12 ]
              [    -A21       -A22 ].

The regular part of A22 is eliminated (states that are algebraic, index 1). If nothing is left, the poles of
the rest are finite. Otherwise A22 = 0, and the pencil has index 2 or more: A12 and A21 are compressed, the
rows of A12 determine the multipliers, the columns of A21 the constrained states, and the next stage continues
with the rest of s E11 - A11. The result is block triangular: infinite, finite, infinite poles.

Ranks are decided separately for each block of E and A22 that is not coupled to the others, with rows and
columns scaled, so that a row of zeros, a floating capacitor or a voltage source is found exactly, whatever
the units of the rest. Unlike the QZ algorithm, which returns an infinite pole of index k at about eps^(-1/k),
every decision is one about singular values near eps.

Source: Van Dooren, Linear Algebra Appl. 27 (1979), here from both sides at once.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array, reciprocal_condition
from ..errors import ModelError

#: Passes of the scaling.
SWEEPS = 60
#: Singular values below this share of the largest of their block may be zero.
MAY_BE_ZERO = 1e-8
#: Those that are zero by rounding alone are below this many units in the last place of the largest.
ROUNDING = 200
#: Entries are zero below this many units in the last place of the terms that they are sums of.
CLEARED = 30
#: Smallest quotient of a singular value that counts and one that does not.
SMALLEST_GAP = 50
#: A matrix with this reciprocal condition number is of full rank, and no singular values are computed.
WELL_CONDITIONED = 1e-5
#: Least relative singular value of the blocks that multiply constraints and their multipliers.
REGULAR = 1e-12

SINGULAR_PENCIL = (
    "the pencil s E - A is singular, det(s E - A) = 0 for every s ({}): the equations do not determine the "
    "states; look for a state that is in no equation, an equation that is there twice, or a part of a "
    "circuit without a reference node"
)


def equilibrating_scales(M: Array) -> tuple[Array, Array]:
    """Return powers of two for rows and columns that bring their largest entries to about one.

    Source: Ruiz, RAL-TR-2001-034.
    """
    size = np.abs(M).astype(float)
    rows, columns = np.ones(M.shape[0]), np.ones(M.shape[1])
    for _ in range(SWEEPS):
        by_row, by_column = (
            _root_exponents(size.max(axis=1, initial=0.0)),
            _root_exponents(size.max(axis=0, initial=0.0)),
        )
        if not np.any(by_row) and not np.any(by_column):
            break
        size = np.ldexp(size, by_row[:, None] + by_column)
        rows, columns = np.ldexp(rows, by_row), np.ldexp(columns, by_column)
    return rows, columns


def _root_exponents(sizes: Array) -> Array:
    """Return the exponents of powers of two near the roots of 1 / sizes; 0 where the size is."""
    return -np.rint(np.log2(np.where(sizes > 0, sizes, 1.0)) / 2).astype(int)


def uncoupled_blocks(M: Array) -> list[tuple[Array, Array]]:
    """Return the rows and columns of the blocks of a matrix that share no entry with the others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.nonzero(M)
    m, n = M.shape
    graph = coo_array((np.ones(rows.size), (rows, columns + m)), shape=(m + n, m + n))
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [(part[part < m], part[part >= m] - m) for part in parts if part.size]


@dataclass(frozen=True, eq=False)
class SeparatedPencil:
    """Bases that bring a pencil to the block diagonal of an infinite and a finite part.

    ``left @ (s E - A) @ right``; the first ``n_infinite`` rows and columns are the infinite part, in which A
    is block triangular and E strictly so, with the given blocks. ``coupled[i, j]`` tells whether E may have
    entries in the rows of block i and the columns of block j; what rounding leaves elsewhere is none.
    """

    left: Array
    right: Array
    n_infinite: int
    blocks: list[Array]
    coupled: Array
    gap: float


class Elimination:
    """The stages, on copies of A and E; ``left @ A @ right`` is the present A.

    Parameters
    ----------
    A, E : ndarray, shape (n, n)
    widest : bool
        Where to cut singular values of which some may be zero: at the widest gap (True), or below rounding.
    """

    def __init__(self, A: Array, E: Array, *, widest: bool):
        n = A.shape[0]
        dtype = np.result_type(A, E, float)
        self.A, self.E = A.astype(dtype), E.astype(dtype)
        self._sizes = np.abs(A), np.abs(E)
        # sizes of the terms that the entries of the bases are sums of
        self._left_sizes, self._right_sizes = np.eye(n), np.eye(n)
        self.left, self.right = np.eye(n, dtype=dtype), np.eye(n, dtype=dtype)
        self.widest = widest
        #: smallest quotient of what was counted and what was not; inf where nothing was close to zero
        self.gap = math.inf
        #: rows and columns of the infinite blocks before and after the finite part
        self.before: list[tuple[Array, Array]] = []
        self.after: list[tuple[Array, Array]] = []
        self.rows = self.columns = np.arange(n)
        while self.rows.size and self._stage():
            pass

    def _transform_rows(self, rows: Array, M: Array) -> None:
        for X in (self.A, self.E, self.left):
            X[rows] = M @ X[rows]
        self._left_sizes[rows] = _sizes_of_rotation(M) @ self._left_sizes[rows]

    def _transform_columns(self, columns: Array, M: Array) -> None:
        for X in (self.A, self.E, self.right):
            X[:, columns] = X[:, columns] @ M
        self._right_sizes[:, columns] = self._right_sizes[:, columns] @ _sizes_of_rotation(M)

    def _scale(self, rows: Array, columns: Array, by_row: Array, by_column: Array) -> None:
        for X in (self.A, self.E, self.left, self._left_sizes):
            X[rows] *= by_row[:, None]
        for X in (self.A, self.E, self.right, self._right_sizes):
            X[:, columns] *= by_column

    def _stage(self) -> bool:
        """Take out infinite poles once; return whether there may be more."""
        regular_rows, regular_columns, null_rows, null_columns = self._compress(
            self.E, self.rows, self.columns
        )
        self.rows, self.columns = regular_rows, regular_columns
        if null_rows.size == 0:
            return False
        solved, by, constraints, multipliers = self._compress(self.A, null_rows, null_columns)
        if solved.size:
            self._eliminate(
                solved,
                by,
                np.concatenate([regular_rows, constraints]),
                np.concatenate([regular_columns, multipliers]),
            )
        q = constraints.size
        if q == 0:
            return False
        if q > self.rows.size:
            raise ModelError(
                SINGULAR_PENCIL.format(f"{q} constraints on {self.rows.size} states with a derivative")
            )
        self._check_constraints(constraints, multipliers)
        rows, columns = self.rows, self.columns
        Q = sla.qr(self.A[np.ix_(rows, multipliers)], check_finite=False)[0]
        self._transform_rows(rows, Q.conj().T)
        self.A[np.ix_(rows[q:], multipliers)] = 0
        Q = sla.qr(self.A[np.ix_(constraints, columns)].conj().T, check_finite=False)[0]
        self._transform_columns(columns, Q)
        self.A[np.ix_(constraints, columns[q:])] = 0
        self.before.append((rows[:q], multipliers))
        self.after.insert(0, (constraints, columns[:q]))
        self.rows, self.columns = rows[q:], columns[q:]
        return True

    def _compress(self, M: Array, rows: Array, columns: Array) -> tuple[Array, Array, Array, Array]:
        """Bring a part of A or E to a regular block and zeros; return the rows and columns of both."""
        self._clear_rounding(M, rows, columns)
        self._scale(rows, columns, *equilibrating_scales(M[np.ix_(rows, columns)]))
        part = M[np.ix_(rows, columns)]
        parts: list[list[Array]] = [[], [], [], []]
        for block_rows, block_columns in uncoupled_blocks(part):
            block = part[np.ix_(block_rows, block_columns)]
            i, j = rows[block_rows], columns[block_columns]
            k = block.shape[0] if _is_well_conditioned(block) else 0
            if k == 0 and block.size:
                U, values, Vh = sla.svd(block, check_finite=False)
                k = self._rank(values, max(block.shape))
                if k < max(block.shape):
                    self._transform_rows(i, U.conj().T)
                    self._transform_columns(j, Vh.conj().T)
                    M[np.ix_(i[k:], j)] = 0
                    M[np.ix_(i, j[k:])] = 0
            for pieces, index in zip(parts, (i[:k], j[:k], i[k:], j[k:]), strict=True):
                pieces.append(index)
        regular_rows, regular_columns, null_rows, null_columns = (
            np.concatenate(pieces).astype(int) for pieces in parts
        )
        return regular_rows, regular_columns, null_rows, null_columns

    def _clear_rounding(self, M: Array, rows: Array, columns: Array) -> None:
        """Set entries to zero that are rounding, so that the scaling does not bring them to one."""
        size = self._sizes[0] if M is self.A else self._sizes[1]
        terms = self._left_sizes[rows] @ size @ self._right_sizes[:, columns]
        part = M[np.ix_(rows, columns)]
        M[np.ix_(rows, columns)] = np.where(np.abs(part) > CLEARED * EPS * terms, part, 0.0)

    def _rank(self, values: Array, size: int) -> int:
        """Decide how many singular values count."""
        noise = EPS * math.sqrt(size) * float(values[0])
        floored = np.append(np.maximum(values, noise), noise)
        zero_below = MAY_BE_ZERO * values[0] if self.widest else ROUNDING * noise
        possible = np.flatnonzero(floored[1:] <= zero_below) + 1
        gaps = floored[possible - 1] / floored[possible]
        best = int(np.argmax(gaps))
        self.gap = min(self.gap, float(gaps[best]))
        return int(possible[best])

    def _eliminate(self, rows: Array, columns: Array, other_rows: Array, other_columns: Array) -> None:
        """Take algebraic states out by their own equations: a Schur complement."""
        factors = sla.lu_factor(self.A[np.ix_(rows, columns)], check_finite=False)
        into = sla.lu_solve(factors, self.A[np.ix_(other_rows, columns)].T, trans=1, check_finite=False).T
        onto = sla.lu_solve(factors, self.A[np.ix_(rows, other_columns)], check_finite=False)
        for X in (self.A, self.E, self.left):
            X[other_rows] -= into @ X[rows]
        for X in (self.A, self.E, self.right):
            X[:, other_columns] -= X[:, columns] @ onto
        self._left_sizes[other_rows] += np.abs(into) @ self._left_sizes[rows]
        self._right_sizes[:, other_columns] += self._right_sizes[:, columns] @ np.abs(onto)
        self.A[np.ix_(other_rows, columns)] = 0
        self.A[np.ix_(rows, other_columns)] = 0
        self.before.append((rows, columns))

    def _check_constraints(self, constraints: Array, multipliers: Array) -> None:
        """Scale constraints and multipliers, and refuse those that depend on each other."""
        by_column = _unit_scales(np.linalg.norm(self.A[np.ix_(self.rows, multipliers)], axis=0))
        by_row = _unit_scales(np.linalg.norm(self.A[np.ix_(constraints, self.columns)], axis=1))
        self._scale(constraints, multipliers, by_row, by_column)
        for part, what in (
            (self.A[np.ix_(self.rows, multipliers)], "multipliers"),
            (self.A[np.ix_(constraints, self.columns)], "constraints"),
        ):
            values = sla.svdvals(part, check_finite=False)
            if values[-1] <= REGULAR * values[0]:
                relative = 0.0 if values[0] == 0 else float(values[-1] / values[0])
                raise ModelError(
                    SINGULAR_PENCIL.format(
                        f"{what} depend on each other: least relative singular value {relative:.1e}"
                    )
                )
            self.gap = min(self.gap, float(values[-1] / (EPS * values[0])))

    def separated(self) -> SeparatedPencil:
        """Return bases of the infinite and the finite part, block triangular as they are."""
        blocks = self.before + self.after
        if not blocks:
            return SeparatedPencil(self.left, self.right, 0, [], np.zeros((0, 0), bool), self.gap)
        rows = np.concatenate([i for i, _ in blocks])
        columns = np.concatenate([j for _, j in blocks])
        left = np.concatenate([self.left[rows], self.left[self.rows]])
        right = np.concatenate([self.right[:, columns], self.right[:, self.columns]], axis=1)
        sizes = np.cumsum([0] + [i.size for i, _ in blocks])
        parts = [np.arange(a, b) for a, b in itertools.pairwise(sizes)]
        # blocks that are both coupled to the finite part become coupled to each other when that is taken away
        into = [np.any(M[np.ix_(i, self.columns)]) for i, _ in blocks for M in (self.A, self.E)]
        by_rows = np.array(into, bool).reshape(-1, 2).any(axis=1)
        onto = [np.any(M[np.ix_(self.rows, j)]) for _, j in blocks for M in (self.A, self.E)]
        by_columns = np.array(onto, bool).reshape(-1, 2).any(axis=1)
        coupled = np.array([[np.any(self.E[np.ix_(i, j)]) for _, j in blocks] for i, _ in blocks], bool)
        coupled = np.triu(coupled | np.outer(by_rows, by_columns), 1)
        return SeparatedPencil(left, right, int(rows.size), parts, coupled, self.gap)


def _is_well_conditioned(M: Array) -> bool:
    """Tell without singular values whether a square matrix has full rank beyond doubt."""
    if M.size == 0 or M.shape[0] != M.shape[1]:
        return False
    return reciprocal_condition(M) > WELL_CONDITIONED


def _sizes_of_rotation(M: Array) -> Array:
    """Return the sizes of the entries of a unitary matrix; all have the rounding of a typical one."""
    return np.maximum(np.abs(M), 1 / math.sqrt(max(M.shape[0], 1)))


def _unit_scales(norms: Array) -> Array:
    exponents = -np.rint(np.log2(np.where(norms > 0, norms, 1.0))).astype(int)
    return np.ldexp(np.ones(norms.size), exponents)
