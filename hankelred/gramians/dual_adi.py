"""The ADI iteration for both Gramians of a sparse system, with one factorization per step for both.

The shifts are Ritz values, ordered so that each damps the remaining residual most.

The Gramians are those of ``A P E^T + E P A^T + B B^T = 0`` and of the transposed pencil with C^T. After each
step the residual is known exactly, as W W^T with as many columns of W as B has: P - Z Z^T is the Gramian of
the system with W in place of B.

Sources: Kuerschner, dissertation, Magdeburg (2016), section 4; Benner, Kuerschner and Saak, Numer.
Algorithms 62 (2013), for real arithmetic with complex shifts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..models.pencil import Pencil
from .smith import compress

#: Number of shifts that are chosen at a time, and of blocks of columns from which they are computed.
SHIFTS = 8
HISTORY = 8
#: Factors with more columns than this are compressed.
MANY_COLUMNS = 600
#: A shift nearer to the real axis than this, relatively, is made real.
REAL_SHIFT = 1e-8
#: If an invariant subspace is deflated and less than this share of B or C remains, it is rounding.
NOTHING = 1e-14
#: Number of blocks of columns for shifts far from the origin.
FAR_BLOCKS = 4
#: Smallest number of columns from which the first shifts are computed.
FIRST_COLUMNS = 8
#: Columns that depend linearly on the others, up to this share of their length, are omitted.
INDEPENDENT = 1e-10


class Side:
    """One of the two Gramians: its factor in blocks of columns, and the factor W of the residual.

    For complex systems the observability side contains the conjugates.
    """

    def __init__(self, pencil: Pencil, W: Array, *, transposed: bool):
        self.pencil, self.W, self.transposed = pencil, W, transposed
        self.blocks: list[Array] = []
        self._rank = 0
        #: columns that span the spaces from which the next shifts are computed
        self.recent: list[Array] = []
        self.start = self.residual_factor_size()
        #: the two factors of a projection whose image is removed from W; None without deflation
        self.deflated: tuple[Array, Array] | None = None
        #: those of the projection whose image is removed from the solutions V; None without deflation
        self.deflated_states: tuple[Array, Array] | None = None

    def residual_factor_size(self) -> float:
        """Return |W|_F."""
        return float(np.linalg.norm(self.W))

    @property
    def residual(self) -> float:
        """Residual of the equation, |W W^T|, relative to |B B^T|."""
        return (self.residual_factor_size() / self.start) ** 2 if self.start > 0 else 0.0

    @property
    def columns(self) -> int:
        """Number of columns of the factor."""
        return sum(block.shape[1] for block in self.blocks)

    def step(self, V: Array, shift: complex, *, pair: bool) -> None:
        """Add the columns of V = (A + shift E)^-1 W; with `pair` also those of the conjugate shift."""
        V = _without_image(V, self.deflated_states)  # rounding, which a small shift increases
        if not pair:
            self.blocks.append(math.sqrt(-2 * shift.real) * V)
            self._add_to_residual_factor(-2 * shift.real * self.pencil.E(V, transposed=self.transposed))
            self.recent.append(V)
        else:
            ratio = shift.real / shift.imag
            real = V.real + ratio * V.imag
            gamma = 2 * math.sqrt(-shift.real)
            self.blocks += [gamma * real, gamma * math.hypot(ratio, 1) * V.imag]
            self._add_to_residual_factor(gamma**2 * self.pencil.E(real, transposed=self.transposed))
            self.recent += [V.real, V.imag]
        del self.recent[:-HISTORY]

    def deflate(self, right: Array, left: Array) -> None:
        """Subtract E right @ left^T W from W, now and after each step, and right @ left^T E V from each V.

        On the observability side E is transposed.
        """
        before = self.start
        self.deflated = self.pencil.E(right, transposed=self.transposed), left
        self.deflated_states = right, self.pencil.E(left, transposed=not self.transposed)
        self._add_to_residual_factor(np.zeros_like(self.W))
        self.start = self.residual_factor_size()
        if self.start <= NOTHING * before:
            self.W, self.start = np.zeros_like(self.W), 0.0

    def _add_to_residual_factor(self, change: Array) -> None:
        self.W = _without_image(self.W + change, self.deflated)

    def compress(self) -> None:
        """Reduce the number of columns to the numerical rank, if it has grown since the last compression.

        With many inputs or outputs every step adds many columns.
        """
        if self.columns > max(MANY_COLUMNS, 2 * self._rank):
            self.blocks = [compress(self.factor())]
            self._rank = self.columns

    def factor(self) -> Array:
        """Return the factor, shape (n, k)."""
        return np.hstack(self.blocks) if self.blocks else np.zeros((self.W.shape[0], 0), self.W.dtype)

    def spanning(self) -> Array:
        """Return columns from which shifts are computed."""
        if self.recent:
            return np.hstack(self.recent)
        rng = np.random.default_rng(0)
        missing = max(0, FIRST_COLUMNS - self.W.shape[1])
        random = rng.standard_normal((self.W.shape[0], missing)) * self.start
        return np.hstack([self.W, _without_image(random, self.deflated)])


def _without_image(X: Array, projection: tuple[Array, Array] | None) -> Array:
    """Return X minus its part in the image of a projection right @ left^T; X itself without one."""
    if projection is None:
        return X
    right, left = projection
    return X - right @ (left.T @ X)


class DualADI:
    """Both sides, advanced together."""

    def __init__(self, pencil: Pencil, B: Array, C: Array):
        self.pencil = pencil
        self.controllability = Side(pencil, B, transposed=False)
        self.observability = Side(pencil, np.ascontiguousarray(C.T), transposed=True)
        self.shifts: list[complex] = []
        #: is called with a line on the progress of the iteration
        self.report: Callable[[str], None] = lambda text: None
        #: the last Ritz values, which approximate poles
        self.ritz: Array = np.zeros(0, complex)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both sides."""
        return self.controllability, self.observability

    def deflate(self, left: Array, right: Array) -> None:
        """Deflate an invariant subspace from both sides: A right = E right A_k, left^H E right = 1."""
        self.controllability.deflate(right, left.conj())
        self.observability.deflate(left.conj(), right)

    def far_shifts(self) -> list[complex]:
        """Compute shifts far from the origin, from the fast modes that the residual excites."""
        solve = self.pencil.mass()
        parts = []
        for side in self.sides:
            blocks = [solve(side.W, transposed=side.transposed)]
            while len(blocks) < FAR_BLOCKS:
                image = self.pencil.A(blocks[-1], transposed=side.transposed)
                block = solve(image, transposed=side.transposed)
                blocks.append(block / np.maximum(np.linalg.norm(block, axis=0), np.finfo(float).tiny))
            parts.append(ritz_values(self.pencil, np.hstack(blocks), transposed=side.transposed))
        self.ritz = np.concatenate(parts)
        return ordered(self.ritz, SHIFTS, real=not self.pencil.is_complex)

    def next_shifts(self) -> list[complex]:
        """Compute shifts from the columns of both sides."""
        parts = [
            ritz_values(self.pencil, side.spanning(), transposed=side.transposed)
            for side in self.sides
            if side.W.shape[1] and side.start > 0
        ]
        self.ritz = np.concatenate(parts) if parts else np.zeros(0, complex)
        return ordered(self.ritz, SHIFTS, real=not self.pencil.is_complex)

    def step(self, shift: complex) -> None:
        """Advance both sides with one factorization."""
        real = abs(shift.imag) <= REAL_SHIFT * abs(shift)
        if real:
            shift = complex(shift.real)
        solutions = self.pencil.solve_both(shift, *(side.W for side in self.sides))
        for side, V in zip(self.sides, solutions, strict=True):
            side.step(V, shift, pair=not real and not self.pencil.is_complex)
        self.shifts.append(shift)
        residual = max(side.residual for side in self.sides)
        columns = " + ".join(str(side.columns) for side in self.sides)
        self.report(f"{len(self.shifts)} shifts, {columns} columns, residual {residual:.1e}")


def ritz_values(pencil: Pencil, V: Array, *, transposed: bool) -> Array:
    """Return the eigenvalues of the pencil projected onto the columns of V, moved into the left half plane.

    Source: Benner, Kuerschner and Saak, Electron. Trans. Numer. Anal. 43 (2014).
    """
    lengths = np.linalg.norm(V, axis=0)
    Q, R = np.linalg.qr(V[:, lengths > 0] / lengths[lengths > 0])
    Q = Q[:, np.abs(np.diag(R)) > INDEPENDENT]
    if Q.shape[1] == 0:
        return np.zeros(0, complex)
    left = Q.conj().T
    values = sla.eigvals(left @ pencil.A(Q, transposed=transposed), left @ pencil.E(Q, transposed=transposed))
    values = values[np.isfinite(values)]
    values = values[np.abs(values.real) > 0]
    return -np.abs(values.real) + 1j * values.imag


def ordered(candidates: Array, count: int, *, real: bool) -> list[complex]:
    """Return up to `count` of the candidates; each is the one that the preceding ones damp least.

    A solve with ``A + p E`` multiplies the residual of a mode at s by (s - conj(p)) / (s + p), so that the
    shift for a pole is its conjugate. For real pencils a shift is used together with its conjugate.

    Source: Penzl, SIAM J. Sci. Comput. 21 (2000).
    """
    if real:
        candidates = np.where(candidates.imag < 0, candidates.conj(), candidates)
    candidates = np.unique(candidates)
    if candidates.size == 0:
        return []

    def damping(pole: complex) -> Array:
        """Return the logarithm of the damping of every candidate by the shift for this pole."""
        with np.errstate(divide="ignore"):
            factor = np.log(np.abs(candidates - pole)) - np.log(np.abs(candidates + np.conj(pole)))
            if real and pole.imag != 0:
                factor += np.log(np.abs(candidates - np.conj(pole))) - np.log(np.abs(candidates + pole))
        return factor

    table = np.stack([damping(each) for each in candidates])
    # the first shift is the one that damps all others best
    at = int(np.argmin(np.where(np.isfinite(table), table, -np.inf).max(axis=1)))
    chosen, left = [at], table[at]
    while len(chosen) < min(count, candidates.size):
        chosen.append(int(np.argmax(left)))
        left = left + table[chosen[-1]]
    return [complex(candidates[at]).conjugate() for at in chosen]
