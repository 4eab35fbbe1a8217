"""Chunks by matrix products: the fast way for long sequences on a CPU, without masks.

A row of samples, time contiguous, is already a matrix with a chunk a row. Its product with the triangular
Toeplitz matrix of the powers of a runs the recurrence inside every chunk from zero, and reads and writes
each number once, where it stands. What has entered a chunk is added afterwards, times the powers of a.

Two things a product does that a recurrence must not. A sample that is not finite meets the zeros of the
triangle, 0 * Inf, and turns *earlier* states into NaN, and so does a chunk whose end overflows; then the
state that is carried on is not finite either, at which `_chunks` sees it (nothing is synchronised: this is a
CPU) and mends it. And products obey switches that trade accuracy for speed: `allowed` says no where one is
on. Later samples that are finite add zero, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hankelred_llm.ops.decay_matrices import CHUNK, Join, entering_of, powers_of, triangle_of
from hankelred_llm.ops.eigenvalues import Modes, to_columns

# What pays for laying out a column's matrices: its samples, those of all rows together. And what pays for the
# calls that a row takes: its numbers. Below, sweeps are as fast.
_FEWEST_SAMPLES = 2**13
_FEWEST_NUMBERS = 2**15
# Numbers in a block: what is held beside the input and the output. More blocks are more calls.
_BLOCK = 2**21


def allowed(u: Tensor, dtype: torch.dtype) -> bool:
    """Whether products serve for inputs (batch, columns, time): long ones, on a CPU, in full precision."""
    batch, columns, time = u.shape
    if u.device.type != "cpu" or batch * time < _FEWEST_SAMPLES or columns * time < _FEWEST_NUMBERS:
        return False
    backends: Any = torch.backends
    switches = (backends, backends.mkldnn, backends.mkldnn.matmul)
    return dtype == torch.float64 or not any(s.fp32_precision in ("bf16", "tf32") for s in switches)


def block_length(u: Tensor) -> int:
    """Return how many samples of (batch, columns, time) are worked on at once, whole chunks, at least one."""
    return max(1, _BLOCK // (u.shape[0] * u.shape[1] * CHUNK)) * CHUNK


@dataclass(frozen=True)
class Products:
    """What the products with chunks of a length need of the eigenvalues.

    The lists of tensors of the type computed in hold real parts, imaginary parts, real modes.

    Parameters
    ----------
    pairs : int
    length : int
        Samples a chunk.
    triangles : list of Tensor, (modes, length, length)
        ``x @ triangle`` is the recurrence from zero along the last axis of x.
    entering : list of Tensor, (modes, 1, length)
        The powers that lead from the state that enters a chunk to each of its positions.
    joins : list of Join
        Of each kind of modes: pairs, real modes.
    reverse : bool
        From the last sample to the first.
    """

    pairs: int
    length: int
    triangles: list[Tensor]
    entering: list[Tensor]
    joins: list[Join]
    reverse: bool

    @classmethod
    def of(cls, modes: Modes, length: int, chunks: int, dtype: torch.dtype, reverse: bool) -> Products:
        """Lay out the powers of the modes, for blocks of up to so many chunks of a length."""
        exact = [powers_of(log, length, chunks) for log in modes.logs()]
        powers = [_normal(part.to(dtype)) for part in to_columns(p[0, :, : length + 1] for p in exact)]
        return cls(
            modes.pairs,
            length,
            [triangle_of(part, reverse) for part in powers],
            [entering_of(part, reverse) for part in powers],
            [Join.of(p[1:], reverse) for p in exact],
            reverse,
        )

    def scan_block(self, u: Tensor, out: Tensor, carry: list[Tensor]) -> list[Tensor]:
        """Write the states of whole chunks, (batch, columns, samples); return the state carried on.

        Where it is not finite, a sample was not, or the end of a chunk overflowed, and all that is written of
        that mode may be wrong: see `scan_block_up_to`.
        """
        return self._scan_block(u, out, carry)[0]

    def scan_block_up_to(
        self, u: Tensor, out: Tensor, carry: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Do the same as far as products can go, to the same bits.

        Returns
        -------
        carry : list of Tensor
            Right for modes of which everything is.
        right : bool Tensor, (batch, columns, samples)
            Which of the states are right.
        whole : bool Tensor, (batch, columns)
            Of which columns all are; the two of a pair agree.
        """
        bad = self._coupled(~u.isfinite())
        seen = self._running(bad)
        after, lost = self._scan_block(torch.where(seen, 0.0, u), out, carry, guard=True)
        wrong = seen | lost | self._running(self._coupled(~out.isfinite()))
        return after, ~wrong, ~wrong.any(2)

    def _scan_block(
        self, u: Tensor, out: Tensor, carry: list[Tensor], guard: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """Do `scan_block`, and say which samples are lost behind a chunk whose end overflows, under guard."""
        batch, columns = u.shape[:2]
        sizes = [len(triangle) for triangle in self.triangles]
        x = u.to(out.dtype).view(batch, columns, -1, self.length)
        x = x if x.stride(-1) == 1 else x.contiguous()
        into = out.view(batch, columns, -1, self.length)
        # torch multiplies batches at once only into memory without gaps, and only matrices of one distance
        s = into if into.is_contiguous() else into.new_empty(into.shape)
        for row, row_into in zip(x, s, strict=True):
            self._multiply(row.split_with_sizes(sizes), row_into.split_with_sizes(sizes))
        ends = s[..., 0 if self.reverse else -1]
        lost = ends.new_zeros((), dtype=torch.bool)
        if guard:
            overflowed = self._coupled(~ends.isfinite())
            beyond = self._running(overflowed)
            ends = torch.where(beyond, 0.0, ends)
            # what enters the first chunk that overflows is still right
            first = overflowed & (self._count(overflowed) == 1)
            lost = (beyond & ~first).repeat_interleave(self.length, 2)
        entering, after = self._join(ends, carry)
        states = [part.to(s.dtype)[..., None] for part in to_columns(entering)]
        self._add(s.split_with_sizes(sizes, 1), states, into.split_with_sizes(sizes, 1))
        return after, lost

    def _coupled(self, flags: Tensor) -> Tensor:
        """Give both columns of a pair what either has."""
        p = self.pairs
        both = flags[:, :p] | flags[:, p : 2 * p]
        return torch.cat([both, both, flags[:, 2 * p :]], 1)

    def _count(self, flags: Tensor) -> Tensor:
        """Count along the last axis, in the direction of the scan."""
        return flags.flip(2).cumsum(2).flip(2) if self.reverse else flags.cumsum(2)

    def _running(self, flags: Tensor) -> Tensor:
        """Say where a flag is, or was before in the direction of the scan."""
        return self._count(flags) > 0

    def _join(self, ends: Tensor, carry: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the states that enter each chunk and the one that leaves the last, as modes in float64."""
        p, before, after = self.pairs, [], []
        kinds: list[tuple[Tensor, ...]] = [(ends[:, :p], ends[:, p : 2 * p])] if p else []
        if len(kinds) < len(self.joins):
            kinds.append((ends[:, 2 * p :],))
        for join, start, parts in zip(self.joins, carry, kinds, strict=True):
            states = join.states(start, parts)
            before.append(states[..., 1:] if self.reverse else states[..., :-1])
            after.append(states[..., 0 if self.reverse else -1])
        return before, after

    def _multiply(self, x: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Run every chunk from zero."""
        if self.pairs:
            torch.bmm(x[0], self.triangles[0], out=into[0])
            into[0].baddbmm_(x[1], self.triangles[1], alpha=-1)
            torch.bmm(x[0], self.triangles[1], out=into[1])
            into[1].baddbmm_(x[1], self.triangles[0])
        if len(into) != 2:
            torch.bmm(x[-1], self.triangles[-1], out=into[-1])

    def _add(self, s: Sequence[Tensor], states: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Add what has become of the states that entered the chunks."""
        a = self.entering
        if self.pairs:
            torch.addcmul(s[0], states[0], a[0], out=into[0]).addcmul_(states[1], a[1], value=-1)
            torch.addcmul(s[1], states[0], a[1], out=into[1]).addcmul_(states[1], a[0])
        if len(s) != 2:
            torch.addcmul(s[-1], states[-1], a[-1], out=into[-1])


def _normal(powers: Tensor) -> Tensor:
    """Put 0 for powers so small that they have no full precision, and cost processors ten times the time."""
    return torch.where(powers.abs() < torch.finfo(powers.dtype).tiny, 0.0, powers)
