"""Bases that decouple a pencil s E - A, with twice the digits of double precision.

Bases in double precision leave rounding of the fastest poles in the coupling of all parts. In a circuit whose
time constants are 1e20 apart that is large beside the slow poles, and it moves poles that are zero by
structure. So bases are unevaluated pairs `high + low`, corrected by Newton's method, and only the matrices of
the decoupled parts are rounded. The finite part is decoupled once more, into blocks of poles of similar size:
rounding an entry of a fast block changes no slow pole.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array, schur_poles
from .._util.twofold import Pair, pair, pair_product, pair_sum, product_rounding, root_square_product
from .descriptor_form import SeparatedPencil, equilibrating_scales

#: Corrections of the bases at most, each of which squares their errors until these are rounding of pairs.
CORRECTIONS = 6
#: Largest entry of left E right - 1 of the finite part.
LARGEST_DEFECT = 2.0**-90
#: Corrections end when they reduce the coupling by less than this.
LEAST_PROGRESS = 10.0
#: Quotient of the sizes of poles that share a block.
SPREAD = 1e3
#: Poles smaller than the largest by more are not accurate before that is split off.
WINDOW = 1e-5
#: Least quotient of the sizes of neighboring poles between which a block is split.
SMALLEST_RATIO = 1.05
#: Largest entry of a transformation that splits a block.
LARGEST_COUPLING = 1e3
#: Entries are scaled by those that are larger than their rounding by this.
CLEAR = 2.0**14
#: Largest exponent of a scale of a state of a block.
LARGEST_SCALE = 20
#: Corrections of bases that are right but for rounding.
BLOCK_CORRECTIONS = 2
#: Inputs below this share of the left basis and the largest entry of B are none.
NO_INPUT = 1e-20
#: Places that are tried for each split.
TRIALS = 6


@dataclass(frozen=True, eq=False)
class DecoupledPencil:
    """The parts of a pencil in bases in which they are decoupled, and the bases.

    ``infinite_left @ (s E - A) @ infinite_right`` has ``infinite_A`` and ``infinite_E``, block triangular and
    strictly so but for rounding. That of the finite part is 1 and ``A``, which is block diagonal.
    """

    infinite_left: Pair
    infinite_right: Pair
    infinite_A: Pair
    infinite_E: Pair
    left: Pair
    right: Pair
    A: Array
    blocks: list[slice]


class _Bases:
    """Left and right bases: pairs, or in double precision alone."""

    def __init__(self, left: Pair, right: Pair, *, twofold: bool = True):
        self.left = left[0].copy(), left[1].copy()
        self.right = right[0].copy(), right[1].copy()
        self.twofold = twofold

    def transformed(self, M: Pair) -> Pair:
        """Return left M right."""
        return self._product(self.left, self._product(M, self.right))

    def rounding(self, M: Array, known: Array | None = None) -> Array:
        """Return about how large the rounding of the entries of left M right is; with that of M, if known."""
        left, M, right = np.abs(self.left[0]), np.abs(M), np.abs(self.right[0])
        inner = product_rounding(M, right)
        if known is not None:
            inner = inner + root_square_product(known, right)
        outer = product_rounding(left, root_square_product(M, right))
        return np.asarray(outer + root_square_product(left, inner))

    def add_columns(self, to: slice, columns: slice, X: Array) -> None:
        """Add columns of the right basis, times X, to others."""
        part = self.right[0][:, columns], self.right[1][:, columns]
        self._add(self.right, (slice(None), to), self._product(part, pair(X)))

    def add_rows(self, to: slice, rows: slice, X: Array) -> None:
        """Add X times rows of the left basis to others."""
        part = self.left[0][rows], self.left[1][rows]
        self._add(self.left, (to, slice(None)), self._product(pair(X), part))

    def normalize(self, E: Array | None = None) -> None:
        """Correct the left basis so that left E right = 1, which must be so but for rounding."""
        mass = pair_product(self.left, self.right) if E is None else self.transformed(pair(E))
        self.add_rows(slice(None), slice(None), (np.eye(len(mass[0])) - mass[0]) - mass[1])

    def solve_rows(self, rows: slice, M: Array) -> None:
        """Multiply rows of the left basis by the inverse of M, in double precision."""
        self.left[0][rows] = np.linalg.solve(M, self.left[0][rows])
        self.left[1][rows] = 0.0

    def _product(self, X: Pair, Y: Pair) -> Pair:
        return pair_product(X, Y) if self.twofold else pair(X[0] @ Y[0])

    def _add(self, basis: Pair, where: tuple[slice, slice], change: Pair) -> None:
        high, low = pair_sum((basis[0][where], basis[1][where]), change)
        if self.twofold:
            basis[0][where], basis[1][where] = high, low
        else:
            basis[0][where] = high + low


def decouple(pencil: SeparatedPencil, A: Array, E: Array, *, twofold: bool) -> DecoupledPencil:
    """Correct the bases until both matrices are block diagonal, and E of the finite part is 1."""
    k, n = pencil.n_infinite, A.shape[0]
    finite, infinite = slice(k, n), slice(0, k)
    bases = _Bases(pair(pencil.left), pair(pencil.right), twofold=False)

    def transformed() -> tuple[Pair, Pair]:
        return bases.transformed(pair(A)), bases.transformed(pair(E))

    def decouple_finite_rows(tA: Pair, tE: Pair) -> None:
        X, Y = _coupling_of_finite_rows(tA[0], tE[0], pencil.blocks, k)
        bases.add_columns(infinite, finite, X)
        bases.add_rows(finite, infinite, -Y)

    def decouple_infinite_rows(tA: Pair, tE: Pair) -> None:
        X, Y = _coupling_of_infinite_rows(tA[0], tE[0], pencil.blocks, k)
        bases.add_columns(finite, infinite, X)
        bases.add_rows(infinite, finite, -Y)

    both = 0 < k < n
    if both:
        decouple_finite_rows(*transformed())
        decouple_infinite_rows(*transformed())
    if k < n:
        bases.solve_rows(finite, transformed()[1][0][finite, finite])
    bases.twofold = twofold
    before = np.inf
    for _ in range(CORRECTIONS if twofold else 0):
        tA, tE = transformed()
        left = max(_coupling(M, bases.rounding(N), k) for M, N in ((tA, A), (tE, E)))
        defect = (np.eye(n - k) - tE[0][finite, finite]) - tE[1][finite, finite]
        left = max(left, float(np.abs(defect).max(initial=0.0)) / LARGEST_DEFECT)
        if left <= 1 or left * LEAST_PROGRESS > before:
            break
        before = left
        if both:
            decouple_finite_rows(tA, tE)
            decouple_infinite_rows(tA, tE)
        bases.add_rows(finite, finite, defect)
    else:
        tA, tE = transformed()
    return DecoupledPencil(
        _part(bases.left, infinite, slice(None)),
        _part(bases.right, slice(None), infinite),
        _part(tA, infinite, infinite),
        _part(tE, infinite, infinite),
        _part(bases.left, finite, slice(None)),
        _part(bases.right, slice(None), finite),
        tA[0][finite, finite],
        [slice(0, n - k)],
    )


def split_by_size(parts: DecoupledPencil, A: Array, B: Array, E: Array, nullity: int) -> DecoupledPencil:
    """Decouple the finite part into blocks of poles of similar size.

    ``nullity`` is the number of poles that are zero by structure. Where they are found as a block, it is
    zero, and as few of its states as possible have an input.
    """
    bases = _Bases(parts.left, parts.right)
    pieces = _split(bases.transformed(pair(A)), bases.rounding(A))
    ends = np.cumsum([0] + [piece.A[0].shape[0] for piece in pieces])
    blocks = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
    left = pair_product(_stacked([piece.left for piece in pieces], 0), bases.left)
    right = pair_product(bases.right, _stacked([piece.right for piece in pieces], 1))
    bases = _Bases(left, right)
    at_zero = [block for block in blocks[-1:] if block.stop - block.start <= nullity]
    for block in at_zero:
        _orthogonalize(bases, block)
    _decouple_blocks(bases, A, E, blocks)
    for block in at_zero:
        terms = np.abs(bases.left[0][block]) @ np.abs(A) @ np.abs(bases.right[0][:, block])
        if np.all(np.abs(bases.transformed(pair(A))[0][block, block]) <= EPS * terms):
            _compress_inputs(bases, B, block)
            bases.normalize(E)
        else:
            at_zero = []
    M, rounding = bases.transformed(pair(A)), bases.rounding(A)
    core = np.zeros_like(M[0])
    for block in blocks:
        if block not in at_zero:
            value = M[0][block, block] + M[1][block, block]
            core[block, block] = np.where(np.abs(value) > rounding[block, block], value, 0.0)
    return replace(parts, left=bases.left, right=bases.right, A=core, blocks=blocks)


def _decouple_blocks(bases: _Bases, A: Array, E: Array, blocks: list[slice]) -> None:
    """Correct bases that nearly decouple all blocks.

    Bases that were multiplied level by level have rounding of each level.
    """
    for _ in range(BLOCK_CORRECTIONS):
        bases.normalize(E)
        M = bases.transformed(pair(A))
        X = np.zeros_like(M[0])
        for i, j in itertools.permutations(blocks, 2):
            X[i, j] = sla.solve_sylvester(M[0][i, i], -M[0][j, j], -(M[0][i, j] + M[1][i, j]))
        bases.add_columns(slice(None), slice(None), X)
        bases.add_rows(slice(None), slice(None), -X)
    bases.normalize(E)


def _orthogonalize(bases: _Bases, block: slice) -> None:
    """Choose orthonormal states, in units that make their entries similar, for poles that may all be zero.

    What counts as rounding depends on the size of the bases, and scales chosen from rounding would make them
    large.
    """
    rows, columns = equilibrating_scales(bases.right[0][:, block])
    triangle = sla.qr(bases.right[0][:, block] * rows[:, None] * columns, mode="r")[0][: columns.size]
    change = columns[:, None] * np.linalg.inv(triangle), triangle / columns
    for basis, where, factors in (
        (bases.right, (slice(None), block), (_part(bases.right, slice(None), block), pair(change[0]))),
        (bases.left, (block, slice(None)), (pair(change[1]), _part(bases.left, block, slice(None)))),
    ):
        basis[0][where], basis[1][where] = pair_product(*factors)


def _compress_inputs(bases: _Bases, B: Array, block: slice) -> None:
    """Choose the states of poles that are zero by structure such that as few as possible have an input.

    Their residues often cancel. In other states they would cancel but for rounding of B and C.
    """
    part_bases = _Bases(_part(bases.left, block, slice(None)), _part(bases.right, slice(None), block))
    rows = 1 / np.abs(part_bases.left[0]).max(axis=1)
    size = np.abs(B).max(axis=0)
    columns = 1 / np.where(size > 0, size, 1.0)
    inputs = pair_product(part_bases.left, pair(B))[0] * rows[:, None] * columns
    Q, R, pivots = sla.qr(inputs, pivoting=True)
    rank = int(np.count_nonzero(np.abs(np.diag(R)) > NO_INPUT))
    change = _Bases(pair(Q.conj().T * rows), pair(Q / rows[:, None]))
    for _ in range(BLOCK_CORRECTIONS):
        change.normalize()
    part_bases = _Bases(
        pair_product(change.left, part_bases.left), pair_product(part_bases.right, change.right)
    )
    strong, weak, independent = slice(0, rank), slice(rank, rows.size), pivots[:rank]
    for _ in range(1 + BLOCK_CORRECTIONS if rank else 0):
        # the inputs that are independent act on one state each, and on no other
        total = pair_product(part_bases.left, pair(B * columns))
        inputs = (total[0] + total[1])[:, independent]
        X = np.linalg.solve(inputs[strong].T, inputs[weak].T).T
        part_bases.add_columns(strong, weak, X)
        part_bases.add_rows(weak, strong, -X)
    if rank:
        first = inputs[strong]
        part_bases.left[0][strong], part_bases.left[1][strong] = pair_product(
            pair(np.linalg.inv(first)), _part(part_bases.left, strong, slice(None))
        )
        part = pair_product(_part(part_bases.right, slice(None), strong), pair(first))
        part_bases.right[0][:, strong], part_bases.right[1][:, strong] = part
    for basis, part, where in (
        (bases.left, part_bases.left, (block, slice(None))),
        (bases.right, part_bases.right, (slice(None), block)),
    ):
        basis[0][where], basis[1][where] = part


def _part(M: Pair, rows: slice, columns: slice) -> Pair:
    return M[0][rows, columns], M[1][rows, columns]


def _stacked(pairs: list[Pair], axis: int) -> Pair:
    return tuple(np.concatenate([one[i] for one in pairs], axis=axis) for i in (0, 1))  # type: ignore[return-value]


def _coupling(M: Pair, rounding: Array, k: int) -> float:
    """Return the largest entry that couples the first k states with the others, in units of its rounding."""
    defect = np.abs(M[0] + M[1])
    worst = 0.0
    for rows, columns in ((slice(0, k), slice(k, None)), (slice(k, None), slice(0, k))):
        part, level = defect[rows, columns], rounding[rows, columns]
        worst = max(worst, float((part / np.where(level > 0, level, 1.0)).max(initial=0.0)))
    return worst


def _coupling_of_finite_rows(A: Array, E: Array, blocks: list[Array], k: int) -> tuple[Array, Array]:
    """Solve A_f X - Y A_i = -A_fi and E_f X - Y E_i = -E_fi, block by block: E_i has no diagonal blocks."""
    finite = slice(k, None)
    X, Y = np.zeros((A.shape[0] - k, k), A.dtype), np.zeros((A.shape[0] - k, k), A.dtype)
    factors = sla.lu_factor(E[finite, finite], check_finite=False)
    for block in blocks:
        done = slice(0, int(block[0]))
        X[:, block] = sla.lu_solve(factors, Y[:, done] @ E[done, block] - E[finite, block])
        rest = A[finite, finite] @ X[:, block] + A[finite, block] - Y[:, done] @ A[done, block]
        Y[:, block] = np.linalg.solve(A[np.ix_(block, block)].T, rest.T).T
    return X, Y


def _coupling_of_infinite_rows(A: Array, E: Array, blocks: list[Array], k: int) -> tuple[Array, Array]:
    """Solve A_i X - Y A_f = -A_if and E_i X - Y E_f = -E_if, from the last block to the first."""
    finite = slice(k, None)
    X, Y = np.zeros((k, A.shape[0] - k), A.dtype), np.zeros((k, A.shape[0] - k), A.dtype)
    factors = sla.lu_factor(E[finite, finite], check_finite=False)
    for block in reversed(blocks):
        done = slice(int(block[-1]) + 1, k)
        Y[block] = sla.lu_solve(factors, (E[block, done] @ X[done] + E[block, finite]).T, trans=1).T
        rest = Y[block] @ A[finite, finite] - A[block, finite] - A[block, done] @ X[done]
        X[block] = np.linalg.solve(A[np.ix_(block, block)], rest)
    return X, Y


@dataclass(frozen=True, eq=False)
class _Piece:
    """A block of a decoupled matrix, left M right, where left right = 1."""

    left: Pair
    right: Pair
    A: Pair


def _split(A: Pair, rounding: Array) -> list[_Piece]:
    """Decouple a matrix into blocks of poles of similar size, the largest first.

    ``rounding`` has the sizes of the errors of the entries. Each time the largest poles are split off, the
    others become accurate to the rounding of pairs.
    """
    size = np.abs(A[0])
    # entries that are nearly rounding would be scaled to the size of the others
    clear = np.where(size > CLEAR * rounding, size, 0.0)
    scale = sla.matrix_balance(clear, permute=False, separate=True)[1][0]
    exponents = np.log2(scale)
    scale = np.exp2(np.clip(exponents - np.rint(np.median(exponents)), -LARGEST_SCALE, LARGEST_SCALE))
    change = scale / scale[:, None]
    A = tuple(np.where(size > rounding, M, 0.0) * change for M in A)
    rounding = rounding * change
    cut = _cut(A[0])
    eye = np.eye(scale.size)
    pieces = [_Piece(pair(eye), pair(eye), A)] if cut is None else _decoupled(A, rounding, *cut)
    return [
        _Piece(
            (piece.left[0] / scale, piece.left[1] / scale),
            (piece.right[0] * scale[:, None], piece.right[1] * scale[:, None]),
            piece.A,
        )
        for piece in pieces
    ]


def _decoupled(A: Pair, rounding: Array, Z: Array, k: int) -> list[_Piece]:
    """Decouple the first k states of a matrix in a basis in which it is nearly block triangular."""
    n = Z.shape[0]
    first, second = slice(0, k), slice(k, n)
    bases = _Bases(pair(Z.conj().T), pair(Z))
    before = np.inf
    for _ in range(CORRECTIONS):
        bases.normalize()
        M, reached = bases.transformed(A), bases.rounding(A[0], rounding)
        coupling = _coupling(M, reached, k)
        if coupling * LEAST_PROGRESS > before:
            break
        before = coupling
        for to, other in ((first, second), (second, first)):
            X = sla.solve_sylvester(M[0][to, to], -M[0][other, other], -M[0][to, other])
            bases.add_columns(other, to, X)
            bases.add_rows(to, other, -X)
            M = bases.transformed(A)
    out = []
    for part in (first, second):
        left, right = _part(bases.left, part, slice(None)), _part(bases.right, slice(None), part)
        for piece in _split(_part(M, part, part), reached[part, part]):
            out.append(_Piece(pair_product(piece.left, left), pair_product(right, piece.right), piece.A))
    return out


def _cut(A: Array) -> tuple[Array, int] | None:
    """Return a Schur basis and the number of its first states to be split off, those of the largest poles.

    None if the poles are of similar size, or no basis with moderate entries splits them.
    """
    T, Z = sla.schur(A, output="complex" if np.iscomplexobj(A) else "real", check_finite=False)
    poles = np.abs(schur_poles(T))
    ordered = np.sort(poles)[::-1]
    if ordered.size < 2 or ordered[-1] * SPREAD >= ordered[0]:
        return None
    ratios = ordered[:-1] / np.maximum(ordered[1:], 1e-30 * ordered[0])
    possible = np.flatnonzero((ordered[:-1] >= WINDOW * ordered[0]) & (ratios >= SMALLEST_RATIO))
    trsen, lwork, trsyl = sla.get_lapack_funcs(("trsen", "trsen_lwork", "trsyl"), (T,))
    for place in possible[np.argsort(-ratios[possible])][:TRIALS]:
        k = int(place) + 1
        chosen = (poles >= ordered[place]).astype(int)
        work = max(int(np.real(lwork(chosen, T, job="N")[0])), 1)
        result = trsen(chosen, T, Z, job="N", lwork=work)
        S, Q, info = result[0], result[1], result[-1]
        if info != 0:
            continue
        X, scale, info = trsyl(S[:k, :k], S[k:, k:], -S[:k, k:], isgn=-1)
        if info != 0:
            continue
        size = float(np.abs(X).max()) / scale
        if size <= LARGEST_COUPLING:
            return Q, k
    return None
