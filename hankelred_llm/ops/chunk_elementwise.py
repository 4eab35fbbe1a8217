"""Chunks by sweeps: elementwise operations only, on any device, with masks.

A block of samples is copied to ``(batch, column, chunk position, chunk)``, so that one step of all chunks is
one elementwise operation on contiguous memory. Then

1. a sweep over the positions runs every chunk from zero;
2. the states the chunks end with are joined over the chunks, in float64, by `_prefix.py`;
3. the state that enters a chunk is added to its positions, times the powers of a.

A sample meets the past only, whatever its value, and nothing here obeys the switches (TF32, bfloat16) that
trade the accuracy of products for speed.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from hankelred_llm.ops.chunk_states import choose, join
from hankelred_llm.ops.eigenvalues import Modes, Powers, add_product, to_columns

# Samples a chunk: the sweep's coefficient is rounded to float32, which 15 steps turn into at most 15 * 3e-8.
CHUNK = 16
# Numbers in one step of all chunks of a block. The block then stays in a cache, and torch does the steps of
# a sweep on one thread (it splits from 32768 numbers on): waiting for a second one, 15 times a sweep, costs
# more than it saves, and very much more on a busy machine. Copies in and out are large enough to be split.
_CPU_STEP = 2**15 - 1


def block_length(u: Tensor) -> int:
    """Return how many samples of (batch, columns, time) are worked on at once."""
    batch, columns, time = u.shape
    if u.device.type != "cpu":
        return time
    return max(64, _CPU_STEP // max(1, batch * columns)) * CHUNK


def scan_block(
    modes: Modes,
    u: Tensor,
    out: Tensor,
    carry: list[Tensor],
    keep: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    """Write the states of a block, (batch, columns, samples), any number; return the state carried on.

    The masks are (batch, samples) and belong to the step ``a s_(t-1)``. Forward, `u` is not read where
    `keep` is False.
    """
    x = _load(u, out.dtype)
    keep, reset = (None if mask is None else _load(mask[:, None], torch.bool) for mask in (keep, reset))
    if keep is not None and not reverse:
        hide(x, keep)
    powers = Powers.of(modes, CHUNK, out.dtype)
    leaving = _scan_chunks(powers, x, carry, keep, reset, reverse)
    _store(x, out)
    return leaving


def hide(x: Tensor, keep: Tensor) -> None:
    """Put 0 in place where `keep` is False, whatever was there."""
    # twice as fast as masked_fill_
    torch.where(keep, x, x.new_zeros(()), out=x)


def _load(block: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy (batch, columns, samples) to (batch, columns, CHUNK, chunks), filled up with zeros at the end."""
    batch, columns, samples = block.shape
    whole, rest = divmod(samples, CHUNK)
    chunks = whole + (rest > 0)
    # rows a power of two apart would share few cache lines: an odd number of lines (16 floats) a row
    row = ((chunks + 15) // 16 | 1) * 16
    x = block.new_empty(batch, columns, CHUNK, row, dtype=dtype)[..., :chunks]
    if whole:
        x[..., :whole].copy_(block[..., : whole * CHUNK].view(batch, columns, whole, CHUNK).transpose(2, 3))
    if rest:
        x[:, :, :rest, whole].copy_(block[..., whole * CHUNK :])
        x[:, :, rest:, whole].zero_()
    return x


def _store(x: Tensor, block: Tensor) -> None:
    """Undo `_load`."""
    batch, columns, samples = block.shape
    whole, rest = divmod(samples, CHUNK)
    if whole:
        block[..., : whole * CHUNK].view(batch, columns, whole, CHUNK).copy_(x[..., :whole].transpose(2, 3))
    if rest:
        block[..., whole * CHUNK :].copy_(x[:, :, :rest, whole])


def _scan_chunks(
    powers: Powers,
    x: Tensor,
    carry: list[Tensor],
    keep: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    """Turn the inputs (batch, columns, CHUNK, chunks) into states in place; return the state carried on."""
    _sweep(powers, x, keep, reset, reverse)
    # how many steps lead from the state that enters the chunk to each position, and where none does
    steps = None if keep is None else _running(keep, reverse).squeeze(1)
    cut = None if reset is None else _running(reset, reverse) > 0
    end = 0 if reverse else CHUNK - 1
    entering, leaving = join(
        powers,
        x[:, :, end],
        carry,
        None if steps is None else steps[:, end],
        None if cut is None else cut[:, :, end],
        reverse,
    )
    _add_entering(powers, x, entering, steps, cut, reverse)
    if keep is not None and not reverse:
        # a skipped step repeats the bits, from one chunk to the next too: what follows a chunk's last event
        # is the state that enters the next chunk, rounded from float64
        event = keep if reset is None else keep | reset
        settled = _running(event, reverse=True) <= event
        torch.where(settled, torch.cat(to_columns(leaving), 1).to(x.dtype)[:, :, None], x, out=x)
    return [mode[..., 0 if reverse else -1] for mode in leaving]


def _running(mask: Tensor, reverse: bool) -> Tensor:
    """Count True along the positions of each chunk, (batch, 1, CHUNK, chunks), in the scan's direction."""
    return mask.flip(2).cumsum(2).flip(2) if reverse else mask.cumsum(2)


def _sweep(powers: Powers, x: Tensor, keep: Tensor | None, reset: Tensor | None, reverse: bool) -> None:
    """Run the recurrence inside every chunk from zero, in place."""
    pairs, zero, one = powers.pairs, x.new_zeros(()), x.new_ones(())
    sizes = [len(column) for column in powers.columns]
    # every position a list of its parts: real parts, imaginary parts, real modes
    positions = list(zip(*(part.unbind(2) for part in x.split_with_sizes(sizes, 1)), strict=True))
    keeps = None if keep is None else keep.unbind(2)
    resets = None if reset is None else reset.unbind(2)
    a = [column[:, 1:2] for column in powers.columns]
    skip = [one, zero, one] if pairs else [one]
    order = range(CHUNK - 1, -1, -1) if reverse else range(CHUNK)
    for before_k, k in pairwise(order):
        now, before, factors = positions[k], positions[before_k], a
        if resets is not None:
            before = tuple(torch.where(resets[k], zero, part) for part in before)  # not 0 * part: may be Inf
        if keeps is not None:
            factors = [torch.where(keeps[k], f, s) for f, s in zip(a, skip, strict=False)]
        add_product(now, factors, before, pairs)


def _add_entering(
    powers: Powers,
    x: Tensor,
    entering: list[Tensor],
    steps: Tensor | None,
    cut: Tensor | None,
    reverse: bool,
) -> None:
    """Add to every position of a chunk what has become of the state that entered it, in place."""
    if steps is None:
        factors = [column[:, 1:, None] for column in powers.columns]
        factors = [factor.flip(1) for factor in factors] if reverse else factors
    else:
        factors = [choose(column, steps) for column in powers.columns]
    states = [part.to(x.dtype)[:, :, None] for part in to_columns(entering)]
    into = x if cut is None else x.clone()
    sizes = [len(column) for column in powers.columns]
    add_product(into.split_with_sizes(sizes, 1), factors, states, powers.pairs)
    if cut is not None:
        torch.where(cut, x, into, out=x)
