"""The scan of chunks by elementwise operations only, on any device, with masks.

A block of samples is copied to ``(batch, channel, chunk position, chunk)``, so that one step of all chunks is
one elementwise operation on contiguous memory. Then

1. every chunk is scanned from zero, position by position;
2. the final states of the chunks are passed from chunk to chunk, in float64, by `chunk_states`;
3. the initial state of a chunk, times the powers of a, is added to its positions.

A sample never changes earlier states, whatever its value, and none of these operations is affected by the
settings (TF32, bfloat16) that trade the accuracy of matrix products for speed.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .chunk_states import pass_states, select_powers
from .eigenvalues import Eigenvalues, Powers, add_product, to_channels

# Samples per chunk: a is rounded to float32 in the scan from zero, a relative error of at most 15 * 3e-8
# after 15 steps.
ELEMENTWISE_CHUNK = 16
# Numbers in one step of all chunks of a block. The block then stays in the processor's cache, and torch runs
# each step on one thread (it uses several from 32768 numbers on): synchronizing threads 15 times per block
# costs more than it saves, much more on a busy machine. Copies in and out are large enough for several
# threads.
_CPU_STEP = 2**15 - 1


def block_length(u: Tensor) -> int:
    """Return how many samples of inputs (batch, channels, time) are processed at once."""
    batch, channels, time = u.shape
    if u.device.type != "cpu":
        return time
    return max(64, _CPU_STEP // max(1, batch * channels)) * ELEMENTWISE_CHUNK


def scan_block(
    eigenvalues: Eigenvalues,
    u: Tensor,
    out: Tensor,
    carry: list[Tensor],
    valid: Tensor | None,
    segment_start: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    """Write the states of a block, (batch, channels, samples), of any length; return its final state.

    The masks are (batch, samples) and apply to the step ``a s_(t-1)``. Forward, `u` is not read where
    `valid` is False.
    """
    x = _load(u, out.dtype)
    valid, segment_start = (
        None if mask is None else _load(mask[:, None], torch.bool) for mask in (valid, segment_start)
    )
    if valid is not None and not reverse:
        zero_invalid(x, valid)
    powers = Powers.of(eigenvalues, ELEMENTWISE_CHUNK, out.dtype)
    carry_out = _scan_chunks(powers, x, carry, valid, segment_start, reverse)
    _store(x, out)
    return carry_out


def zero_invalid(x: Tensor, valid: Tensor) -> None:
    """Set x to 0 in place where `valid` is False, also where it is NaN."""
    # twice as fast as masked_fill_
    torch.where(valid, x, x.new_zeros(()), out=x)


def _load(block: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy (batch, channels, samples) to (batch, channels, position, chunk), padded with zeros at the end."""
    batch, channels, samples = block.shape
    whole, remainder = divmod(samples, ELEMENTWISE_CHUNK)
    chunks = whole + (remainder > 0)
    # rows at a distance of a power of two would share few cache lines: use an odd number of lines (16 floats)
    row = ((chunks + 15) // 16 | 1) * 16
    x = block.new_empty(batch, channels, ELEMENTWISE_CHUNK, row, dtype=dtype)[..., :chunks]
    if whole:
        x[..., :whole].copy_(
            block[..., : whole * ELEMENTWISE_CHUNK]
            .view(batch, channels, whole, ELEMENTWISE_CHUNK)
            .transpose(2, 3)
        )
    if remainder:
        x[:, :, :remainder, whole].copy_(block[..., whole * ELEMENTWISE_CHUNK :])
        x[:, :, remainder:, whole].zero_()
    return x


def _store(x: Tensor, block: Tensor) -> None:
    """Undo `_load`."""
    batch, channels, samples = block.shape
    whole, remainder = divmod(samples, ELEMENTWISE_CHUNK)
    if whole:
        block[..., : whole * ELEMENTWISE_CHUNK].view(batch, channels, whole, ELEMENTWISE_CHUNK).copy_(
            x[..., :whole].transpose(2, 3)
        )
    if remainder:
        block[..., whole * ELEMENTWISE_CHUNK :].copy_(x[:, :, :remainder, whole])


def _scan_chunks(
    powers: Powers,
    x: Tensor,
    carry: list[Tensor],
    valid: Tensor | None,
    segment_start: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    """Replace the inputs (batch, channels, position, chunk) by states; return the final state."""
    _scan_within_chunks(powers, x, valid, segment_start, reverse)
    # number of steps from the initial state of the chunk to each position, and where a segment start cuts it
    # off
    steps = None if valid is None else _cumulative_count(valid, reverse).squeeze(1)
    has_start = None if segment_start is None else _cumulative_count(segment_start, reverse) > 0
    end = 0 if reverse else ELEMENTWISE_CHUNK - 1
    initial_states, carry_out = pass_states(
        powers,
        x[:, :, end],
        carry,
        None if steps is None else steps[:, end],
        None if has_start is None else has_start[:, :, end],
        reverse,
    )
    _add_initial_states(powers, x, initial_states, steps, has_start, reverse)
    if valid is not None and not reverse:
        # a skipped step repeats the previous state exactly, from chunk to chunk too: the states after the
        # last change in a chunk are the initial state of the next chunk, rounded from float64
        changes = valid if segment_start is None else valid | segment_start
        after_last_change = _cumulative_count(changes, reverse=True) <= changes
        torch.where(after_last_change, torch.cat(to_channels(carry_out), 1).to(x.dtype)[:, :, None], x, out=x)
    return [mode[..., 0 if reverse else -1] for mode in carry_out]


def _cumulative_count(mask: Tensor, reverse: bool) -> Tensor:
    """Count True along the positions of each chunk, (batch, 1, position, chunk), in the scan's direction."""
    return mask.flip(2).cumsum(2).flip(2) if reverse else mask.cumsum(2)


def _scan_within_chunks(
    powers: Powers, x: Tensor, valid: Tensor | None, segment_start: Tensor | None, reverse: bool
) -> None:
    """Scan every chunk from zero, in place."""
    pairs, zero, one = powers.pairs, x.new_zeros(()), x.new_ones(())
    sizes = [len(channel) for channel in powers.channels]
    # every position a list of its parts: real parts, imaginary parts, real modes
    positions = list(zip(*(part.unbind(2) for part in x.split_with_sizes(sizes, 1)), strict=True))
    valid_by_position = None if valid is None else valid.unbind(2)
    starts_by_position = None if segment_start is None else segment_start.unbind(2)
    a = [channel[:, 1:2] for channel in powers.channels]
    skip = [one, zero, one] if pairs else [one]
    order = range(ELEMENTWISE_CHUNK - 1, -1, -1) if reverse else range(ELEMENTWISE_CHUNK)
    for before_k, k in pairwise(order):
        now, before, factors = positions[k], positions[before_k], a
        if starts_by_position is not None:
            # not 0 * part, which is NaN where part is Inf
            before = tuple(torch.where(starts_by_position[k], zero, part) for part in before)
        if valid_by_position is not None:
            factors = [torch.where(valid_by_position[k], f, s) for f, s in zip(a, skip, strict=False)]
        add_product(now, factors, before, pairs)


def _add_initial_states(
    powers: Powers,
    x: Tensor,
    initial_states: list[Tensor],
    steps: Tensor | None,
    has_start: Tensor | None,
    reverse: bool,
) -> None:
    """Add to every position of a chunk its initial state times the powers of a, in place."""
    if steps is None:
        factors = [channel[:, 1:, None] for channel in powers.channels]
        factors = [factor.flip(1) for factor in factors] if reverse else factors
    else:
        factors = [select_powers(channel, steps) for channel in powers.channels]
    states = [part.to(x.dtype)[:, :, None] for part in to_channels(initial_states)]
    into = x if has_start is None else x.clone()
    sizes = [len(channel) for channel in powers.channels]
    add_product(into.split_with_sizes(sizes, 1), factors, states, powers.pairs)
    if has_start is not None:
        torch.where(has_start, x, into, out=x)
