"""The chunked scan, block by block: chooses `chunk_matmul` or `chunk_elementwise` for the chunks of a block.

Autograd is added by `autograd`. The chunks of a block are scanned in parallel, each from zero; their final
states are passed from chunk to chunk in float64, and the initial state of each chunk is added to its states.
Matrix products are used on a CPU without masks, elementwise operations everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import chunk_elementwise, chunk_matmul
from .chunk_matmul import ChunkMatmul
from .decay_matrices import MATMUL_CHUNK
from .eigenvalues import Eigenvalues, to_channels, to_modes
from .masks import SegmentMasks


def scan(
    eigenvalues: Eigenvalues,
    u: Tensor,
    out: Tensor,
    state: Tensor | None,
    masks: SegmentMasks,
    *,
    reverse: bool = False,
) -> Iterator[tuple[int, int]]:
    """Run ``s_t = a s_(t-1) + u_t`` block by block; each yield says which samples of `out` have become valid.

    Parameters
    ----------
    eigenvalues : Eigenvalues
    u : Tensor, (batch, channels, time)
        Any strides, any floating-point dtype.
    out : Tensor, (batch, channels, time)
        Is written; its dtype is that of the computation.
    state : Tensor, (batch, channels), or None
        The state before the first sample; in reverse, what is added to the last sample. Zero when None.
    masks : SegmentMasks
        Of every step ``a s_(t-1)``. Forward, `u` is not read where `valid` is False.
    reverse : bool
        From the last sample to the first: ``s_t = a s_(t+1) + u_t``, the step's masks being those at t.
    """
    batch, channels, time = u.shape
    initial_state = u.new_zeros(batch, channels) if state is None or reverse else state
    carry = to_modes(initial_state, eigenvalues.pairs)
    for start, stop, products in _blocks(eigenvalues, u, out.dtype, masks, reverse):
        x, s = u[..., start:stop], out[..., start:stop]
        if reverse and state is not None and stop == time:
            x = x.to(out.dtype, copy=True)
            x[..., -1] += state
        if products is None:
            valid, segment_start = (
                m if m is None else m[:, start:stop] for m in (masks.valid, masks.segment_start)
            )
            carry = chunk_elementwise.scan_block(eigenvalues, x, s, carry, valid, segment_start, reverse)
        else:
            after = products.scan_block(x, s, carry)
            if not all(mode.isfinite().all() for mode in after):
                after = _recomputed(eigenvalues, products, x, s, carry)
            carry = after
        yield start, stop


def _blocks(
    eigenvalues: Eigenvalues, u: Tensor, dtype: torch.dtype, masks: SegmentMasks, reverse: bool
) -> list[tuple[int, int, ChunkMatmul | None]]:
    """Return start and stop of each block, in scan order, and its matrices where products are used."""
    time = u.shape[-1]
    blocks: list[tuple[int, int, ChunkMatmul | None]]
    if masks.valid is not None or masks.segment_start is not None or not chunk_matmul.is_applicable(u, dtype):
        blocks = [(*block, None) for block in _split(time, chunk_elementwise.block_length(u))]
    else:
        remainder, block = time % MATMUL_CHUNK, chunk_matmul.block_length(u)
        products = ChunkMatmul.of(eigenvalues, MATMUL_CHUNK, min(block, time) // MATMUL_CHUNK, dtype, reverse)
        blocks = [(*samples, products) for samples in _split(time - remainder, block)]
        if remainder:  # one shorter chunk
            blocks.append((time - remainder, time, ChunkMatmul.of(eigenvalues, remainder, 1, dtype, reverse)))
    return blocks[::-1] if reverse else blocks


def _split(time: int, length: int) -> list[tuple[int, int]]:
    return [(start, min(start + length, time)) for start in range(0, time, length)]


def _recomputed(
    eigenvalues: Eigenvalues, products: ChunkMatmul, u: Tensor, out: Tensor, carry: list[Tensor]
) -> list[Tensor]:
    """Scan a block with values that are not finite: by products before the first one, then elementwise."""
    elementwise = torch.empty_like(out)
    elementwise_carry = chunk_elementwise.scan_block(
        eigenvalues, u, elementwise, carry, None, None, products.reverse
    )
    carry, correct, all_correct = products.scan_finite_part(u, out, carry)
    torch.where(correct, out, elementwise, out=out)
    p = eigenvalues.pairs
    of_modes = [all_correct[:, :p], all_correct[:, 2 * p :]] if p else [all_correct]
    return [torch.where(c, a, b) for c, a, b in zip(of_modes, carry, elementwise_carry, strict=False)]


def initial_state_gradient(eigenvalues: Eigenvalues, h: Tensor, masks: SegmentMasks) -> Tensor:
    """Return the gradient with respect to the initial state, float64 (batch, channels), from that of s_0."""
    factors = [
        power.conj() for power in eigenvalues.powers(torch.ones(1, device=h.device, dtype=torch.float64))
    ]
    moved = [f.squeeze(1) * m for f, m in zip(factors, to_modes(h, eigenvalues.pairs), strict=True)]
    back = torch.cat(to_channels(moved), 1)
    if masks.valid is not None:
        back = torch.where(masks.valid[:, :1], back, h.double())
    return back if masks.segment_start is None else torch.where(masks.segment_start[:, :1], 0.0, back)
