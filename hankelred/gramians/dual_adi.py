"""The ADI iteration for both Gramians of a sparse system, with one factorization for both a step.

The Gramians are those of ``A P E^T + E P A^T + B B^T = 0`` and of the transposed pencil with C^T. What a
step leaves over is known exactly, as a factor W of as many columns as B has: P - Z Z^T is the Gramian that
belongs to W in the place of B.

Sources: Kuerschner, dissertation, Magdeburg (2016), section 4; Benner, Kuerschner and Saak, Numer.
Algorithms 62 (2013), for real arithmetic with complex shifts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .._util.arrays import Array
from ..models.pencil import Pencil
from .shifts import ordered, ritz_values
from .smith import compress

#: Shifts that are chosen at a time, and blocks of columns that they are chosen from.
SHIFTS = 8
HISTORY = 8
#: Factors with more columns than this are compressed.
MANY_COLUMNS = 600
#: A shift nearer to the real axis than this, relatively, is taken as real.
REAL_SHIFT = 1e-8
#: What is left of B or C when an invariant subspace is taken out and this small was nothing before rounding.
NOTHING = 1e-14
#: Blocks of columns for shifts far from the origin.
FAR_BLOCKS = 4
#: Columns that the first shifts are chosen from at least.
FIRST_COLUMNS = 8


class Side:
    """One of the two Gramians: its factor in blocks of columns, and the factor of what is left over.

    For complex systems the observability side holds the conjugates.
    """

    def __init__(self, pencil: Pencil, W: Array, *, transposed: bool):
        self.pencil, self.W, self.transposed = pencil, W, transposed
        self.blocks: list[Array] = []
        self._rank = 0
        #: columns that span the spaces the next shifts are chosen from
        self.recent: list[Array] = []
        self.start = self.residual_factor_size()
        #: a projection whose image is taken out of W: columns, and what they are multiplied by
        self.deflated: tuple[Array, Array] | None = None

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
        """Take in V = (A + shift E)^-1 W; with `pair` for the conjugate shift too."""
        if not pair:
            self.blocks.append(math.sqrt(-2 * shift.real) * V)
            self._leave(-2 * shift.real * self.pencil.E(V, transposed=self.transposed))
            self.recent.append(V)
        else:
            ratio = shift.real / shift.imag
            real = V.real + ratio * V.imag
            gamma = 2 * math.sqrt(-shift.real)
            self.blocks += [gamma * real, gamma * math.hypot(ratio, 1) * V.imag]
            self._leave(gamma**2 * self.pencil.E(real, transposed=self.transposed))
            self.recent += [V.real, V.imag]
        del self.recent[:-HISTORY]

    def deflate(self, spanned: Array, projector: Array) -> None:
        """Work on what is left of W without spanned @ projector^T W, now and after each step."""
        before = self.start
        self.deflated = spanned, projector
        self._leave(np.zeros_like(self.W))
        self.start = self.residual_factor_size()
        if self.start <= NOTHING * before:
            self.W, self.start = np.zeros_like(self.W), 0.0

    def _leave(self, change: Array) -> None:
        self.W = self.W + change
        if self.deflated is not None:
            spanned, projector = self.deflated
            self.W = self.W - spanned @ (projector.T @ self.W)

    def compress(self) -> None:
        """Bring the factor to as many columns as its numerical rank, once it has many more than last time.

        With many inputs or outputs every step adds as many columns.
        """
        if self.columns > max(MANY_COLUMNS, 2 * self._rank):
            self.blocks = [compress(self.factor())]
            self._rank = self.columns

    def factor(self) -> Array:
        """Return the factor, shape (n, k)."""
        return np.hstack(self.blocks) if self.blocks else np.zeros((self.W.shape[0], 0), self.W.dtype)

    def spanning(self) -> Array:
        """Return columns to choose shifts from."""
        if self.recent:
            return np.hstack(self.recent)
        rng = np.random.default_rng(0)
        missing = max(0, FIRST_COLUMNS - self.W.shape[1])
        return np.hstack([self.W, rng.standard_normal((self.W.shape[0], missing)) * self.start])


class DualADI:
    """Both sides, advanced together."""

    def __init__(self, pencil: Pencil, B: Array, C: Array):
        self.pencil = pencil
        self.controllability = Side(pencil, B, transposed=False)
        self.observability = Side(pencil, np.ascontiguousarray(C.T), transposed=True)
        self.shifts: list[complex] = []
        #: is told how far the iteration is
        self.tell: Callable[[str], None] = lambda text: None
        #: all Ritz values seen, which tell where the poles are
        self.ritz: Array = np.zeros(0, complex)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both sides."""
        return self.controllability, self.observability

    def deflate(self, left: Array, right: Array) -> None:
        """Take an invariant subspace out of both sides: A right = E right A_k, left^H E right = 1."""
        pencil = self.pencil
        self.controllability.deflate(pencil.E(right), left.conj())
        self.observability.deflate(pencil.E(left.conj(), transposed=True), right)

    def far_shifts(self) -> list[complex]:
        """Choose shifts far from the origin, from the modes that what is left over excites at once."""
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
        """Choose shifts from the columns of both sides."""
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
        solve = self.pencil.shifted(shift)
        for side in self.sides:
            V = solve(side.W, transposed=side.transposed)
            side.step(V, shift, pair=not real and not self.pencil.is_complex)
        self.shifts.append(shift)
        residual = max(side.residual for side in self.sides)
        columns = " + ".join(str(side.columns) for side in self.sides)
        self.tell(f"{len(self.shifts)} shifts, {columns} columns, residual {residual:.1e}")
