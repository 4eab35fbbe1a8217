"""Triangular Toeplitz matrices of powers, which scan rows by a matrix product, and state passing by them.

``x @ toeplitz``, with ``a^(i - j)`` at [j, i], is the recurrence along each row of x, from zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# Largest number of samples per chunk, and of chunks that one product scans. Larger values take more
# operations per number, smaller ones more calls; and powers of fast modes must not underflow before their
# states do.
MATMUL_CHUNK = 16


def powers_of(log: Tensor, length: int, chunks: int) -> Tensor:
    """Return the powers of eigenvalues for chunks of a length, and for state passing between up to `chunks`.

    Returns
    -------
    powers : Tensor, (1 + levels, modes, MATMUL_CHUNK + 1)
        Powers 0 to MATMUL_CHUNK of a, of a^length, and at each further level of an exponent MATMUL_CHUNK
        times as large.
    """
    steps, chunks_per_step = [1], 1
    while chunks_per_step <= chunks:
        steps.append(length * chunks_per_step)
        chunks_per_step *= MATMUL_CHUNK
    exponents = log.new_tensor(steps, dtype=torch.float64)[:, None] * torch.arange(
        MATMUL_CHUNK + 1, device=log.device
    )
    return torch.exp(log[:, None] * exponents[:, None])


def toeplitz_matrix(powers: Tensor, reverse: bool) -> Tensor:
    """Return matrices (..., n, n) from the powers 0 to n, (..., n + 1); in reverse they are transposed."""
    n = powers.shape[-1] - 1
    # powers in falling order, then zeros: each column is a window that begins one entry later
    falling = pad(powers[..., :-1].flip(-1), (0, n - 1))
    transposed = falling.unfold(-1, n, 1).flip(-2)
    return transposed if reverse else transposed.mT


def initial_state_powers(powers: Tensor, reverse: bool) -> Tensor:
    """Return the factors of the initial state of a row at its positions, (..., 1, n)."""
    ahead = powers[..., None, 1:]
    return ahead.flip(-1) if reverse else ahead


@dataclass(frozen=True)
class InterChunkScan:
    """State passing between chunks of one length, for one kind of modes, in complex128 or float64.

    Parameters
    ----------
    toeplitz : Tensor, (levels, modes, MATMUL_CHUNK, MATMUL_CHUNK)
        Between chunks, between groups of MATMUL_CHUNK chunks, of MATMUL_CHUNK^2 chunks and so on.
    initial_powers : Tensor, (levels, modes, 1, MATMUL_CHUNK)
        Factors of the initial state of a group.
    reverse : bool
        From the last chunk to the first.
    """

    toeplitz: Tensor
    initial_powers: Tensor
    reverse: bool

    @classmethod
    def of(cls, powers: Tensor, reverse: bool) -> InterChunkScan:
        """Build the matrices from powers of eigenvalues, (levels, modes, MATMUL_CHUNK + 1)."""
        return cls(toeplitz_matrix(powers, reverse), initial_state_powers(powers, reverse), reverse)

    def states(self, initial_state: Tensor, final_states: tuple[Tensor, ...]) -> Tensor:
        """Return the states between chunks, before the first and after the last, (batch, modes, chunks + 1).

        Parameters
        ----------
        initial_state : Tensor, (batch, modes)
            Of the first chunk; in reverse, of the last one.
        final_states : tuple of Tensor, (batch, modes, chunks)
            Of each chunk scanned from zero; for pairs, real and imaginary parts.
        """
        (batch, modes), chunks = initial_state.shape, final_states[0].shape[-1]
        x = self._zeros(modes, batch, chunks + 1)
        x[..., chunks if self.reverse else 0] = initial_state.mT
        steps = slice(0, chunks) if self.reverse else slice(1, chunks + 1)
        for part, values in zip((x.real, x.imag) if x.is_complex() else (x,), final_states, strict=True):
            part[..., steps] = values.transpose(0, 1)
        return self._run(x, 0)[..., : chunks + 1].transpose(0, 1)

    def _zeros(self, modes: int, batch: int, steps: int) -> Tensor:
        """Return zeros for a number of steps, rounded up to whole rows."""
        return self.toeplitz.new_zeros(modes, batch, -(-steps // MATMUL_CHUNK) * MATMUL_CHUNK)

    def _run(self, x: Tensor, level: int) -> Tensor:
        """Run the recurrence from zero along the last axis, in whole rows."""
        modes, batch, steps = x.shape
        rows = steps // MATMUL_CHUNK
        s = torch.bmm(x.view(modes, -1, MATMUL_CHUNK), self.toeplitz[level]).view(modes, batch, rows, -1)
        if rows > 1:
            final_states = self._zeros(modes, batch, rows)
            final_states[..., :rows] = s[..., 0 if self.reverse else -1]
            final_states = self._run(final_states, level + 1)
            later, before = (
                (s[:, :, :-1], final_states[..., 1:rows])
                if self.reverse
                else (s[:, :, 1:], final_states[..., : rows - 1])
            )
            later.addcmul_(before[..., None], self.initial_powers[level][:, None])
        return s.flatten(2)
