"""The chunked scan: chunks of 16 samples swept side by side, their states joined in float64.

Nothing here knows of autograd; `_scan.py` makes differentiable operators of it. The recurrence runs on real
columns: the real parts of the conjugate pairs, their imaginary parts, the real modes.

A block of samples is copied to ``(batch, column, chunk position, chunk)``, so that one step of all chunks is
one elementwise operation on contiguous memory. Then

1. a sweep over the 16 positions runs every chunk from zero;
2. the states the chunks end with are joined over the chunks, in float64, by `_prefix.py`;
3. the state that enters a chunk is added to its positions, times the powers of a.

Only elementwise operations are used, on purpose. A matrix product with a triangular Toeplitz matrix is as
fast but multiplies later samples by zero, which turns an Inf there into a NaN here; and it obeys the global
switches (TF32, bfloat16) that trade accuracy for speed. Here a sample meets the past only, whatever its
value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hankelred_llm._prefix import prefix

# Samples a chunk: the sweep's coefficient is rounded to float32, which 15 steps turn into at most 15 * 3e-8.
CHUNK = 16
# Numbers in one step of all chunks of a block. The block then stays in a cache, and torch does the steps of
# a sweep on one thread (it splits from 32768 numbers on): waiting for a second one, 15 times a sweep, costs
# more than it saves, and very much more on a busy machine. Copies in and out are large enough to be split.
_CPU_STEP = 2**15 - 1


@dataclass(frozen=True)
class Modes:
    """Eigenvalues by their logarithm, in float64.

    Parameters
    ----------
    log_decay : Tensor, (modes,)
    phase : Tensor, (pairs,)
        Belongs to the first modes; empty when all are real.
    """

    log_decay: Tensor
    phase: Tensor

    @classmethod
    def of(cls, log_decay: Tensor, phase: Tensor | None) -> Modes:
        """Take parameters of any precision; no phase means real modes."""
        # the clamp lets a log-decay of -inf take part in k * log_decay with k = 0; exp of both is 0 for k > 0
        log_decay = log_decay.double().clamp(min=-1e30)
        return cls(log_decay, log_decay[:0] if phase is None else phase.double())

    @property
    def pairs(self) -> int:
        """Number of conjugate pairs."""
        return self.phase.shape[0]

    def powers(self, exponents: Tensor) -> list[Tensor]:
        """Return ``exp(k lambda)``, never powers of a rounded a: complex (pairs, k), real (real modes, k).

        As in `to_modes`, a kind that is empty is left out.
        """
        radius = (self.log_decay[:, None] * exponents).exp()
        if not self.pairs:
            return [radius]
        pair = torch.polar(radius[: self.pairs], self.phase[:, None] * exponents)
        return [pair] if self.pairs == radius.shape[0] else [pair, radius[self.pairs :]]

    def conjugate(self) -> Modes:
        """Return the modes of the adjoint recurrence."""
        return Modes(self.log_decay, -self.phase)


@dataclass(frozen=True)
class Masks:
    """Where a step is skipped and where the past is forgotten, both (batch, time) or None."""

    keep: Tensor | None
    reset: Tensor | None

    def adjoint(self) -> Masks:
        """Return the masks of the recurrence that runs backward: its step at t is the original's at t + 1."""
        keep, reset = self.keep, self.reset
        return Masks(
            None if keep is None else torch.cat([keep[:, 1:], torch.ones_like(keep[:, :1])], 1),
            None if reset is None else torch.cat([reset[:, 1:], torch.zeros_like(reset[:, :1])], 1),
        )


def to_modes(columns: Tensor, pairs: int) -> list[Tensor]:
    """Turn (batch, columns, ...) into complex128 pairs and float64 real modes.

    A kind that is empty is left out; without any column, there is an empty tensor of real modes.
    """
    columns = columns.double()
    if not pairs:
        return [columns]
    pair = torch.complex(columns[:, :pairs], columns[:, pairs : 2 * pairs])
    return [pair] if columns.shape[1] == 2 * pairs else [pair, columns[:, 2 * pairs :]]


def to_columns(modes: list[Tensor]) -> list[Tensor]:
    """Undo `to_modes`, short of joining: real parts, imaginary parts, real modes."""
    return [part for mode in modes for part in ((mode.real, mode.imag) if mode.is_complex() else (mode,))]


def block_length(u: Tensor) -> int:
    """Return how many samples of (batch, columns, time) are worked on at once."""
    batch, columns, time = u.shape
    if u.device.type != "cpu":
        return time
    return max(64, _CPU_STEP // max(1, batch * columns)) * CHUNK


def scan(
    modes: Modes, u: Tensor, out: Tensor, state: Tensor | None, masks: Masks, *, reverse: bool = False
) -> Iterator[tuple[int, int]]:
    """Run ``s_t = a s_(t-1) + u_t`` block by block; each yield says which samples of `out` have become valid.

    Parameters
    ----------
    modes : Modes
    u : Tensor, (batch, columns, time)
        Any strides, any float type.
    out : Tensor, (batch, columns, time)
        Is written; its type is the one computed in.
    state : Tensor, (batch, columns), or None
        The state before the first sample; in reverse, what is added to the last sample. Zero when None.
    masks : Masks
        Of every step ``a s_(t-1)``. Forward, `u` is not read where `keep` is False.
    reverse : bool
        From the last sample to the first: ``s_t = a s_(t+1) + u_t``, the step's masks being those at t.
    """
    batch, columns, time = u.shape
    start_state = u.new_zeros(batch, columns) if state is None or reverse else state
    carry = to_modes(start_state, modes.pairs)
    coefficients = _Coefficients.of(modes, out.dtype)
    length = block_length(u)
    starts = range(0, time, length)
    for start in reversed(starts) if reverse else starts:
        stop = min(start + length, time)
        x = _load(u[..., start:stop], out.dtype)
        keep, reset = (
            None if mask is None else _load(mask[:, None, start:stop], torch.bool)
            for mask in (masks.keep, masks.reset)
        )
        if keep is not None and not reverse:
            hide(x, keep)
        if state is not None and reverse and stop == time:
            chunk, position = divmod(stop - 1 - start, CHUNK)
            x[:, :, position, chunk] += state
        carry = _scan_block(coefficients, x, carry, keep, reset, reverse)
        _store(x, out[..., start:stop])
        yield start, stop


def hide(x: Tensor, keep: Tensor) -> None:
    """Put 0 in place where `keep` is False, whatever was there."""
    # twice as fast as masked_fill_
    torch.where(keep, x, x.new_zeros(()), out=x)


def one_step_back(modes: Modes, h: Tensor, masks: Masks) -> Tensor:
    """Return the gradient to the initial state, float64 (batch, columns), from the first sample's adjoint."""
    factors = [power.conj() for power in modes.powers(torch.ones(1, device=h.device, dtype=torch.float64))]
    moved = [f.squeeze(1) * m for f, m in zip(factors, to_modes(h, modes.pairs), strict=True)]
    back = torch.cat(to_columns(moved), 1)
    if masks.keep is not None:
        back = torch.where(masks.keep[:, :1], back, h.double())
    return back if masks.reset is None else torch.where(masks.reset[:, :1], 0.0, back)


@dataclass(frozen=True)
class _Coefficients:
    """What a block needs of the eigenvalues: their powers 0 to CHUNK.

    Parameters
    ----------
    pairs : int
    table : list of Tensor, complex (pairs, CHUNK + 1) and real (real modes, CHUNK + 1)
        In float64.
    powers : list of Tensor, (modes, CHUNK + 1)
        The same in the type computed in: real parts, imaginary parts, real modes.
    """

    pairs: int
    table: list[Tensor]
    powers: list[Tensor]

    @classmethod
    def of(cls, modes: Modes, dtype: torch.dtype) -> _Coefficients:
        table = modes.powers(torch.arange(CHUNK + 1, device=modes.log_decay.device, dtype=torch.float64))
        # with strides of its own: the parts of a complex tensor are two apart
        return cls(modes.pairs, table, [column.to(dtype).contiguous() for column in to_columns(table)])


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


def _scan_block(
    coefficients: _Coefficients,
    x: Tensor,
    carry: list[Tensor],
    keep: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    """Turn the inputs (batch, columns, CHUNK, chunks) into states in place; return the state carried on."""
    _sweep(coefficients, x, keep, reset, reverse)
    # how many steps lead from the state that enters the chunk to each position, and where none does
    steps = None if keep is None else _running(keep, reverse).squeeze(1)
    cut = None if reset is None else _running(reset, reverse) > 0
    end = 0 if reverse else CHUNK - 1
    entering, leaving = _join(coefficients, x[:, :, end], carry, steps, cut, reverse)
    _add_entering(coefficients, x, entering, steps, cut, reverse)
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


def _sweep(
    coefficients: _Coefficients, x: Tensor, keep: Tensor | None, reset: Tensor | None, reverse: bool
) -> None:
    """Run the recurrence inside every chunk from zero, in place."""
    pairs, zero, one = coefficients.pairs, x.new_zeros(()), x.new_ones(())
    sizes = [len(column) for column in coefficients.powers]
    # every position a list of its parts: real parts, imaginary parts, real modes
    positions = list(zip(*(part.unbind(2) for part in x.split_with_sizes(sizes, 1)), strict=True))
    keeps = None if keep is None else keep.unbind(2)
    resets = None if reset is None else reset.unbind(2)
    a = [column[:, 1:2] for column in coefficients.powers]
    skip = [one, zero, one] if pairs else [one]
    order = range(CHUNK - 1, -1, -1) if reverse else range(CHUNK)
    for before_k, k in pairwise(order):
        now, before, factors = positions[k], positions[before_k], a
        if resets is not None:
            before = tuple(torch.where(resets[k], zero, part) for part in before)  # not 0 * part: may be Inf
        if keeps is not None:
            factors = [torch.where(keeps[k], f, s) for f, s in zip(a, skip, strict=False)]
        _add_product(now, factors, before, pairs)


def _choose(powers: Tensor, steps: Tensor) -> Tensor:
    """Return (batch, modes, ...) from the powers (modes, CHUNK + 1) and their numbers (batch, ...)."""
    # index_select: four times as fast as an index in brackets
    return powers.index_select(1, steps.flatten()).view(-1, *steps.shape).transpose(0, 1)


def _add_product(into: Sequence[Tensor], a: Sequence[Tensor], s: Sequence[Tensor], pairs: int) -> None:
    """Add the product of two sets of columns to a third, in place."""
    if pairs:
        into[0].addcmul_(a[0], s[0]).addcmul_(a[1], s[1], value=-1)
        into[1].addcmul_(a[0], s[1]).addcmul_(a[1], s[0])
    if len(into) != 2:
        into[-1].addcmul_(a[-1], s[-1])


def _add_entering(
    coefficients: _Coefficients,
    x: Tensor,
    entering: list[Tensor],
    steps: Tensor | None,
    cut: Tensor | None,
    reverse: bool,
) -> None:
    """Add to every position of a chunk what has become of the state that entered it, in place."""
    if steps is None:
        powers = [column[:, 1:, None] for column in coefficients.powers]
        powers = [column.flip(1) for column in powers] if reverse else powers
    else:
        powers = [_choose(column, steps) for column in coefficients.powers]
    states = [part.to(x.dtype)[:, :, None] for part in to_columns(entering)]
    into = x if cut is None else x.clone()
    sizes = [len(column) for column in coefficients.powers]
    _add_product(into.split_with_sizes(sizes, 1), powers, states, coefficients.pairs)
    if cut is not None:
        torch.where(cut, x, into, out=x)


def _join(
    coefficients: _Coefficients,
    ends: Tensor,
    carry: list[Tensor],
    steps: Tensor | None,
    cut: Tensor | None,
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the states that enter and leave each chunk, as modes (batch, modes, chunks).

    `ends` are the states each chunk ends with when it starts from zero, (batch, columns, chunks).
    """
    end = 0 if reverse else CHUNK - 1
    if steps is None:
        factors = [powers[:, -1:] for powers in coefficients.table]
    else:
        factors = [_choose(powers, steps[:, end]) for powers in coefficients.table]
    cut = None if cut is None else cut[:, :, end]
    v = to_modes(ends, coefficients.pairs)
    if reverse:
        v, factors = [t.flip(-1) for t in v], [t.flip(-1) for t in factors]
        cut = None if cut is None else cut.flip(-1)
    states = [prefix(*each, cut) for each in zip(v, factors, carry, strict=True)]
    entering = [
        torch.cat([old[..., None], new[..., :-1]], -1) for old, new in zip(carry, states, strict=True)
    ]
    if reverse:
        return [t.flip(-1) for t in entering], [t.flip(-1) for t in states]
    return entering, states
