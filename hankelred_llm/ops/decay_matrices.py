"""Triangles of powers, whose product with a row runs the recurrence along it; joining chunks by them.

``x @ triangle``, with ``a^(i - j)`` at [j, i], is the recurrence along the rows of x, each from zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# Samples a chunk, at most, and chunks that are joined by one product. Larger ones cost more operations a
# number, smaller ones more calls; and powers of fast modes must not underflow before their states do.
CHUNK = 16


def powers_of(log: Tensor, length: int, chunks: int) -> Tensor:
    """Return the powers of eigenvalues that chunks of a length need, and the joining of up to so many.

    Returns
    -------
    powers : Tensor, (1 + levels, modes, CHUNK + 1)
        Powers 0 to CHUNK of a, of a^length, and of CHUNK times as much from there to the next.
    """
    steps, joined = [1], 1
    while joined <= chunks:
        steps.append(length * joined)
        joined *= CHUNK
    exponents = log.new_tensor(steps, dtype=torch.float64)[:, None] * torch.arange(
        CHUNK + 1, device=log.device
    )
    return torch.exp(log[:, None] * exponents[:, None])


def triangle_of(powers: Tensor, reverse: bool) -> Tensor:
    """Return matrices (..., n, n) from the powers 0 to n, (..., n + 1); in reverse they are transposed."""
    n = powers.shape[-1] - 1
    # a row of the powers, falling, then zeros: each column is the window that begins one further on
    falling = pad(powers[..., :-1].flip(-1), (0, n - 1))
    transposed = falling.unfold(-1, n, 1).flip(-2)
    return transposed if reverse else transposed.mT


def entering_of(powers: Tensor, reverse: bool) -> Tensor:
    """Return what leads from the state that enters a row to its positions, (..., 1, n)."""
    ahead = powers[..., None, 1:]
    return ahead.flip(-1) if reverse else ahead


@dataclass(frozen=True)
class Join:
    """What joins the chunks of one kind of modes, all of a length, in complex128 or float64.

    Parameters
    ----------
    triangles : Tensor, (levels, modes, CHUNK, CHUNK)
        Of chunks, of CHUNK chunks, of CHUNK^2 chunks and so on.
    entering : Tensor, (levels, modes, 1, CHUNK)
    reverse : bool
        From the last chunk to the first.
    """

    triangles: Tensor
    entering: Tensor
    reverse: bool

    @classmethod
    def of(cls, powers: Tensor, reverse: bool) -> Join:
        """Lay out the powers of eigenvalues, (levels, modes, CHUNK + 1)."""
        return cls(triangle_of(powers, reverse), entering_of(powers, reverse), reverse)

    def states(self, start: Tensor, ends: tuple[Tensor, ...]) -> Tensor:
        """Return the states between chunks, before the first and after the last, (batch, modes, chunks + 1).

        Parameters
        ----------
        start : Tensor, (batch, modes)
            The state that enters the first chunk; in reverse, the last one.
        ends : tuple of Tensor, (batch, modes, chunks)
            What each chunk ends with when it starts from zero; of pairs, real and imaginary parts.
        """
        (batch, modes), chunks = start.shape, ends[0].shape[-1]
        x = self._room(modes, batch, chunks + 1)
        x[..., chunks if self.reverse else 0] = start.mT
        steps = slice(0, chunks) if self.reverse else slice(1, chunks + 1)
        for part, values in zip((x.real, x.imag) if x.is_complex() else (x,), ends, strict=True):
            part[..., steps] = values.transpose(0, 1)
        return self._run(x, 0)[..., : chunks + 1].transpose(0, 1)

    def _room(self, modes: int, batch: int, steps: int) -> Tensor:
        """Return zeros for so many steps, in whole rows."""
        return self.triangles.new_zeros(modes, batch, -(-steps // CHUNK) * CHUNK)

    def _run(self, x: Tensor, level: int) -> Tensor:
        """Run the recurrence from zero along the last axis, in whole rows."""
        modes, batch, steps = x.shape
        rows = steps // CHUNK
        s = torch.bmm(x.view(modes, -1, CHUNK), self.triangles[level]).view(modes, batch, rows, -1)
        if rows > 1:
            ends = self._room(modes, batch, rows)
            ends[..., :rows] = s[..., 0 if self.reverse else -1]
            ends = self._run(ends, level + 1)
            later, before = (
                (s[:, :, :-1], ends[..., 1:rows]) if self.reverse else (s[:, :, 1:], ends[..., : rows - 1])
            )
            later.addcmul_(before[..., None], self.entering[level][:, None])
        return s.flatten(2)
