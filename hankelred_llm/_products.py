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
from torch.nn.functional import pad

from hankelred_llm._modes import Modes, to_columns, to_modes

# Samples a chunk, as of the sweeps: powers of fast modes must not underflow before their states do.
CHUNK = 16
# Samples of a row below which sweeps are as fast: laying out the matrices costs some 0.3 ms.
_FEWEST = 2**14
# Numbers in a block: what is held beside the input and the output. More blocks are more calls.
_BLOCK = 2**21
# Steps that are run by one product where chunk ends are joined.
_AT_ONCE = 96


def allowed(u: Tensor, dtype: torch.dtype) -> bool:
    """Whether products serve for inputs (batch, columns, time): long ones, on a CPU, in full precision."""
    if u.device.type != "cpu" or u.shape[-1] < max(_FEWEST, CHUNK) or not u.numel():
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
    logs : list of Tensor, complex128 (pairs,) and float64 (real modes,)
        Logarithms of the eigenvalues.
    pairs : int
    length : int
        Samples a chunk.
    triangles : list of Tensor, (modes, length, length)
        ``x @ triangle`` is the recurrence from zero along the last axis of x.
    entering : list of Tensor, (modes, 1, length)
        The powers that lead from the state that enters a chunk to each of its positions.
    reverse : bool
        From the last sample to the first.
    """

    logs: list[Tensor]
    pairs: int
    length: int
    triangles: list[Tensor]
    entering: list[Tensor]
    reverse: bool

    @classmethod
    def of(cls, modes: Modes, length: int, dtype: torch.dtype, reverse: bool) -> Products:
        """Lay out the powers of the modes."""
        logs = modes.logs()
        powers = [_normal(part.to(dtype)) for part in to_columns(_powers(log, length) for log in logs)]
        triangles = [_triangle(part[:, :-1], reverse) for part in powers]
        entering = [_entering(part, reverse) for part in powers]
        return cls(logs, modes.pairs, length, triangles, entering, reverse)

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
        # chunks of all rows one below the other: a view of one row, a copy of several
        x = u.to(out.dtype).view(batch, columns, -1, self.length).transpose(0, 1).flatten(1, 2)
        if x.stride(-1) != 1:
            x = x.contiguous()
        # torch multiplies batches at once only into memory without gaps
        s = x.new_empty(x.shape)
        self._multiply(x.split_with_sizes(sizes), s.split_with_sizes(sizes))
        s = s.view(columns, batch, -1, self.length).transpose(0, 1)
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
        into = out.view(batch, columns, -1, self.length).split_with_sizes(sizes, 1)
        self._add(s.split_with_sizes(sizes, 1), states, into)
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
        entering, after = [], []
        for log, start, v in zip(self.logs, carry, to_modes(ends, self.pairs), strict=True):
            order = (v, start[..., None]) if self.reverse else (start[..., None], v)
            states = _scan_from_zero(self.length * log, torch.cat(order, -1), self.reverse)
            entering.append(states[..., 1:] if self.reverse else states[..., :-1])
            after.append(states[..., 0 if self.reverse else -1])
        return entering, after

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


def _powers(log: Tensor, length: int) -> Tensor:
    """Return the powers 0 to `length` of eigenvalues in float64, (modes, length + 1)."""
    return torch.exp(log[:, None] * torch.arange(length + 1, dtype=torch.float64, device=log.device))


def _normal(powers: Tensor) -> Tensor:
    """Put 0 for powers so small that they have no full precision, and cost processors ten times the time."""
    return torch.where(powers.abs() < torch.finfo(powers.dtype).tiny, 0.0, powers)


def _triangle(powers: Tensor, reverse: bool) -> Tensor:
    """Return matrices (modes, n, n) with a^(i - j) at [j, i], 0 where i < j, from the powers 0 to n - 1.

    Rows of 2 n numbers, one after the other and read in rows of 2 n - 1: each is moved on by one.
    """
    modes, n = powers.shape
    rows = pad(powers, (0, n)).repeat(1, n)
    triangle = rows[:, : n * (2 * n - 1)].view(modes, n, 2 * n - 1)[..., :n]
    return triangle.mT if reverse else triangle


def _entering(powers: Tensor, reverse: bool) -> Tensor:
    """Return the powers from the state that enters a chunk to its positions, (modes, 1, n)."""
    return (powers[:, 1:].flip(1) if reverse else powers[:, 1:])[:, None]


def _scan_from_zero(log: Tensor, v: Tensor, reverse: bool) -> Tensor:
    """Run the recurrence of one kind of modes along the last axis of (batch, modes, n), the same way."""
    batch, modes, n = v.shape
    length = n if n <= _AT_ONCE else _AT_ONCE // 2
    powers = _powers(log, length)
    triangle = _triangle(powers[:, :-1], reverse)
    whole = pad(v, (0, -n % length)) if n % length else v
    rows = whole.transpose(0, 1).reshape(modes, -1, length)
    s = torch.bmm(rows, triangle).view(modes, batch, -1, length).transpose(0, 1)
    if n > length:
        ends = _scan_from_zero(length * log, s[..., 0 if reverse else -1], reverse)
        inner, enter = (s[..., :-1, :], ends[..., 1:]) if reverse else (s[..., 1:, :], ends[..., :-1])
        inner.addcmul_(enter[..., None], _entering(powers, reverse))
    return s.flatten(2)[..., :n]
