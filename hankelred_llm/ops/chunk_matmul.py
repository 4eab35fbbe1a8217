"""The scan of chunks by matrix products: fastest for long sequences on a CPU without masks.

A row of samples, contiguous in time, is a matrix with one chunk per row. Its product with the
lower-triangular Toeplitz matrix of the powers of a scans every chunk from zero, and reads and writes each
number once, without a copy. The initial state of each chunk, times the powers of a, is added afterwards.

Products differ from a recurrence in two ways. First, a sample that is not finite is multiplied by the zeros
of the Toeplitz matrix, 0 * Inf, which turns *earlier* states into NaN; a chunk whose final state overflows
does the same between chunks. The final state of the block is then not finite either, by which `chunked`
detects it (without a synchronization, as this is a CPU) and recomputes the block. Second, settings may trade
the accuracy of products for speed: `is_applicable` is False where one is on. Later samples that are finite
add exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .decay_matrices import MATMUL_CHUNK, InterChunkScan, initial_state_powers, powers_of, toeplitz_matrix
from .eigenvalues import Eigenvalues, to_channels

# From so many samples per channel (over all rows) on, products are worth building the matrices of a channel;
# from so many numbers per row on, the calls that each row takes. Below, elementwise operations are as fast.
_FEWEST_SAMPLES = 2**13
_FEWEST_NUMBERS = 2**15
# Numbers per block, which bounds the additional memory. Smaller blocks take more calls.
_BLOCK = 2**21


def is_applicable(u: Tensor, dtype: torch.dtype) -> bool:
    """Return whether inputs (batch, channels, time) are long, on a CPU and multiplied in full precision."""
    batch, channels, time = u.shape
    if u.device.type != "cpu" or batch * time < _FEWEST_SAMPLES or channels * time < _FEWEST_NUMBERS:
        return False
    backends: Any = torch.backends
    switches = (backends, backends.mkldnn, backends.mkldnn.matmul)
    return dtype == torch.float64 or not any(s.fp32_precision in ("bf16", "tf32") for s in switches)


def block_length(u: Tensor) -> int:
    """Return how many samples of (batch, channels, time) are processed at once, in whole chunks."""
    return max(1, _BLOCK // (u.shape[0] * u.shape[1] * MATMUL_CHUNK)) * MATMUL_CHUNK


@dataclass(frozen=True)
class ChunkMatmul:
    """The matrices of powers that scan chunks of one length.

    The lists of tensors hold real parts, imaginary parts and real modes, in the dtype of the computation.

    Parameters
    ----------
    pairs : int
    length : int
        Samples per chunk.
    toeplitz : list of Tensor, (modes, length, length)
        ``x @ toeplitz`` is the scan from zero along the last axis of x.
    initial_powers : list of Tensor, (modes, 1, length)
        Factors of the initial state of a chunk at each of its positions.
    inter_chunk : list of InterChunkScan
        State passing between chunks, for pairs and for real modes.
    reverse : bool
        From the last sample to the first.
    """

    pairs: int
    length: int
    toeplitz: list[Tensor]
    initial_powers: list[Tensor]
    inter_chunk: list[InterChunkScan]
    reverse: bool

    @classmethod
    def of(
        cls, modes: Eigenvalues, length: int, chunks: int, dtype: torch.dtype, reverse: bool
    ) -> ChunkMatmul:
        """Build the matrices for blocks of up to `chunks` chunks of a length."""
        exact = [powers_of(log, length, chunks) for log in modes.logs()]
        powers = [_normal(part.to(dtype)) for part in to_channels(p[0, :, : length + 1] for p in exact)]
        return cls(
            modes.pairs,
            length,
            [toeplitz_matrix(part, reverse) for part in powers],
            [initial_state_powers(part, reverse) for part in powers],
            [InterChunkScan.of(p[1:], reverse) for p in exact],
            reverse,
        )

    def scan_block(self, u: Tensor, out: Tensor, carry: list[Tensor]) -> list[Tensor]:
        """Write the states of whole chunks, (batch, channels, samples); return the final state.

        Where the final state of a mode is not finite, a sample was not finite or a chunk overflowed, and
        every state written for that mode may be wrong: see `scan_finite_part`.
        """
        s = self._scan_from_zero(u, out)
        return self._add_initial_states(s, self._final_states(s), carry, out)

    def scan_finite_part(
        self, u: Tensor, out: Tensor, carry: list[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Do the same for a block with values that are not finite, and tell which states are correct.

        Correct states have the same bits as without those values.

        Returns
        -------
        carry : list of Tensor
            Final state, correct for modes of which all states are.
        correct : bool Tensor, (batch, channels, samples)
            Which of the states are correct.
        all_correct : bool Tensor, (batch, channels)
            Of which channels all are; the two channels of a pair agree.
        """
        not_finite = self._running(self._coupled(~u.isfinite()))
        s = self._scan_from_zero(torch.where(not_finite, 0.0, u), out)
        final_states = self._final_states(s)
        overflows = self._coupled(~final_states.isfinite())
        overflowed = self._running(overflows)
        final_states = torch.where(overflowed, 0.0, final_states)
        # the initial state of the first chunk that overflows is still correct
        first = overflows & (self._count(overflows) == 1)
        lost = (overflowed & ~first).repeat_interleave(self.length, 2)
        carry = self._add_initial_states(s, final_states, carry, out)
        wrong = not_finite | lost | self._running(self._coupled(~out.isfinite()))
        return carry, ~wrong, ~wrong.any(2)

    def _scan_from_zero(self, u: Tensor, out: Tensor) -> Tensor:
        """Return the states of every chunk scanned from zero, (batch, channels, chunks, length).

        They are written into `out` where that is contiguous, else into memory of their own.
        """
        batch, channels = u.shape[:2]
        sizes = self._sizes
        x = u.to(out.dtype).view(batch, channels, -1, self.length)
        x = x if x.stride(-1) == 1 else x.contiguous()
        into = self._by_chunk(out)
        # torch multiplies batches at once only into contiguous memory, and only matrices at equal distances
        s = into if into.is_contiguous() else into.new_empty(into.shape)
        for row, row_into in zip(x, s, strict=True):
            self._multiply(row.split_with_sizes(sizes), row_into.split_with_sizes(sizes))
        return s

    def _final_states(self, s: Tensor) -> Tensor:
        return s[..., 0 if self.reverse else -1]

    def _add_initial_states(
        self, s: Tensor, final_states: Tensor, carry: list[Tensor], out: Tensor
    ) -> list[Tensor]:
        """Pass states from chunk to chunk and add them to the states from zero; return the final state."""
        initial_states, carry = self._pass_states(final_states, carry)
        states = [part.to(s.dtype)[..., None] for part in to_channels(initial_states)]
        sizes = self._sizes
        self._add(s.split_with_sizes(sizes, 1), states, self._by_chunk(out).split_with_sizes(sizes, 1))
        return carry

    @property
    def _sizes(self) -> list[int]:
        """Numbers of channels: real parts, imaginary parts, real modes."""
        return [len(matrices) for matrices in self.toeplitz]

    def _by_chunk(self, out: Tensor) -> Tensor:
        """View (batch, channels, samples) as (batch, channels, chunks, length)."""
        return out.view(out.shape[0], out.shape[1], -1, self.length)

    def _coupled(self, flags: Tensor) -> Tensor:
        """Set a flag for both channels of a pair where either has it."""
        p = self.pairs
        both = flags[:, :p] | flags[:, p : 2 * p]
        return torch.cat([both, both, flags[:, 2 * p :]], 1)

    def _count(self, flags: Tensor) -> Tensor:
        """Count along the last axis, in the direction of the scan."""
        return flags.flip(2).cumsum(2).flip(2) if self.reverse else flags.cumsum(2)

    def _running(self, flags: Tensor) -> Tensor:
        """Return whether a flag is set here or earlier in the direction of the scan."""
        return self._count(flags) > 0

    def _pass_states(self, final_states: Tensor, carry: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the initial states of all chunks and the final state of the last, as modes in float64."""
        p, before, after = self.pairs, [], []
        kinds: list[tuple[Tensor, ...]] = [(final_states[:, :p], final_states[:, p : 2 * p])] if p else []
        if len(kinds) < len(self.inter_chunk):
            kinds.append((final_states[:, 2 * p :],))
        for inter_chunk, initial_state, parts in zip(self.inter_chunk, carry, kinds, strict=True):
            states = inter_chunk.states(initial_state, parts)
            before.append(states[..., 1:] if self.reverse else states[..., :-1])
            after.append(states[..., 0 if self.reverse else -1])
        return before, after

    def _multiply(self, x: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Multiply chunks by the Toeplitz matrices; for pairs, as complex numbers."""
        if self.pairs:
            torch.bmm(x[0], self.toeplitz[0], out=into[0])
            into[0].baddbmm_(x[1], self.toeplitz[1], alpha=-1)
            torch.bmm(x[0], self.toeplitz[1], out=into[1])
            into[1].baddbmm_(x[1], self.toeplitz[0])
        if len(into) != 2:
            torch.bmm(x[-1], self.toeplitz[-1], out=into[-1])

    def _add(self, s: Sequence[Tensor], states: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Add the initial states of the chunks, times the powers of a."""
        a = self.initial_powers
        if self.pairs:
            torch.addcmul(s[0], states[0], a[0], out=into[0]).addcmul_(states[1], a[1], value=-1)
            torch.addcmul(s[1], states[0], a[1], out=into[1]).addcmul_(states[1], a[0])
        if len(s) != 2:
            torch.addcmul(s[-1], states[-1], a[-1], out=into[-1])


def _normal(powers: Tensor) -> Tensor:
    """Replace subnormal powers by 0: they are inaccurate, and processors take ten times as long for them."""
    return torch.where(powers.abs() < torch.finfo(powers.dtype).tiny, 0.0, powers)
