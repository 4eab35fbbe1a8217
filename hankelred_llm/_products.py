"""Chunks by matrix products: the fast way on a CPU, without masks.

A row of samples, time contiguous, is already a matrix with a chunk a row. Its product with the triangular
Toeplitz matrix of the powers of a runs the recurrence inside every chunk from zero, and reads and writes
each number once, where it stands. What has entered a chunk is added afterwards, times the powers of a.

Two things a product does that a recurrence must not. A sample that is not finite meets the zeros of the
triangle, 0 * Inf, and turns *earlier* states of its chunk into NaN; then no later state is finite either, so
that whoever calls sees it at the state carried on (nothing is synchronised: this is a CPU) and can mend it.
Later samples that are finite change no bit: they add zero, exactly. And products obey switches that trade
accuracy for speed: `allowed` says no where one is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from hankelred_llm._modes import Modes, to_columns, to_modes

# Samples a chunk. A product costs twice as many operations a number; short chunks make many states to join.
CHUNK = 32
# Numbers in a block: what is held beside the input and the output. More blocks are more calls.
_BLOCK = 2**21


def allowed(u: Tensor, dtype: torch.dtype) -> bool:
    """Whether products serve for inputs (batch, columns, time): on a CPU, a chunk long, in full precision."""
    if u.device.type != "cpu" or u.shape[-1] < CHUNK:
        return False
    backends: Any = torch.backends
    switches = (backends, backends.mkldnn, backends.mkldnn.matmul)
    return dtype == torch.float64 or not any(s.fp32_precision in ("bf16", "tf32") for s in switches)


def block_length(u: Tensor) -> int:
    """Return how many samples of (batch, columns, time) are worked on at once, a multiple of `CHUNK`."""
    return max(1, _BLOCK // max(1, u.shape[0] * u.shape[1] * CHUNK)) * CHUNK


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
        powers = [part.to(dtype) for part in to_columns(_powers(log, length) for log in logs)]
        triangles = [_triangle(part[:, :-1], reverse) for part in powers]
        entering = [_entering(part, reverse) for part in powers]
        return cls(logs, modes.pairs, length, triangles, entering, reverse)

    def scan_block(self, u: Tensor, out: Tensor, carry: list[Tensor]) -> list[Tensor]:
        """Write the states of whole chunks, (batch, columns, samples); return the state carried on.

        Where a row of `u` is not finite, neither is what is returned for it, and what is written is wrong.
        """
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
        entering, after = self._join(s[..., 0 if self.reverse else -1], carry)
        states = [part.to(s.dtype)[..., None] for part in to_columns(entering)]
        into = out.view(batch, columns, -1, self.length).split_with_sizes(sizes, 1)
        self._add(s.split_with_sizes(sizes, 1), states, into)
        return after

    def _multiply(self, x: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Run every chunk from zero."""
        if self.pairs:
            torch.bmm(x[0], self.triangles[0], out=into[0])
            into[0].baddbmm_(x[1], self.triangles[1], alpha=-1)
            torch.bmm(x[0], self.triangles[1], out=into[1])
            into[1].baddbmm_(x[1], self.triangles[0])
        if len(into) != 2:
            torch.bmm(x[-1], self.triangles[-1], out=into[-1])

    def _join(self, ends: Tensor, carry: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the states that enter each chunk and the one that leaves the last, as modes in float64."""
        entering, after = [], []
        for log, start, v in zip(self.logs, carry, to_modes(ends, self.pairs), strict=True):
            order = (v, start[..., None]) if self.reverse else (start[..., None], v)
            states = _scan_from_zero(self.length * log, torch.cat(order, -1), self.reverse)
            entering.append(states[..., 1:] if self.reverse else states[..., :-1])
            after.append(states[..., 0 if self.reverse else -1])
        return entering, after

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
    length = n if n <= 2 * CHUNK else CHUNK
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
