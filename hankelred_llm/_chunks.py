"""The chunked scan: chunks of 16 samples swept side by side, their states joined in float64.

Nothing here knows of autograd; `_scan.py` makes differentiable operators of it. The recurrence runs on real
columns: the real parts of the conjugate pairs, their imaginary parts, the real modes.

A block of samples is copied to ``(chunk position, batch, column, chunk)``, so that one step of all chunks is
one elementwise operation on contiguous memory. Two sweeps over the 16 positions and a short prefix between
them give every state:

1. from zero, for the state each chunk ends with;
2. the prefix: those ends joined over the chunks in float64;
3. from the true incoming state, writing every state down.

Only elementwise operations are used, on purpose. A matrix product with a triangular Toeplitz matrix is as
fast but multiplies later samples by zero, which turns an Inf there into a NaN here; and it obeys the global
switches (TF32, bfloat16) that trade accuracy for speed. Here a sample meets the past only, whatever its
value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

# Samples a chunk: a step's coefficient is rounded to float32, which 16 steps turn into at most 16 * 3e-8.
CHUNK = 16
# Elements a block: two float32 buffers of this size stay in a core's cache; other devices take all at once.
_CPU_BLOCK = 2**20
# Chunks up to which recursive doubling joins them: log2 steps, each over all of them.
_DOUBLING = 32


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
    """Turn (batch, columns, ...) into complex128 pairs and float64 real modes; an empty kind beside another is left out."""
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
    return max(64, _CPU_BLOCK // max(1, batch * columns * CHUNK)) * CHUNK


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
            x.masked_fill_(~keep, 0)
        if state is not None and reverse and stop == time:
            chunk, position = divmod(stop - 1 - start, CHUNK)
            x[:, :, position, chunk] += state
        carry = _scan_block(coefficients, x, carry, keep, reset, reverse)
        _store(x, out[..., start:stop])
        yield start, stop


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
    """What a block needs of the eigenvalues.

    Parameters
    ----------
    pairs : int
    step : list of Tensor, (modes, 1)
        Real and imaginary part of a for the pairs, a for the real modes, in the type computed in.
    table : list of Tensor, complex (pairs, CHUNK + 1) and real (real modes, CHUNK + 1)
        The powers 0 to CHUNK, in float64.
    """

    pairs: int
    step: list[Tensor]
    table: list[Tensor]

    @classmethod
    def of(cls, modes: Modes, dtype: torch.dtype) -> _Coefficients:
        table = modes.powers(torch.arange(CHUNK + 1, device=modes.log_decay.device, dtype=torch.float64))
        return cls(
            modes.pairs, [a.to(dtype) for a in to_columns([powers[:, 1:2] for powers in table])], table
        )


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
    pairs = coefficients.pairs
    sizes = [end.shape[1] for mode in carry for end in ((mode, mode) if mode.is_complex() else (mode,))]
    # every position a list of its parts: real parts, imaginary parts, real modes
    positions = list(zip(*(part.unbind(2) for part in x.split_with_sizes(sizes, 1)), strict=True))
    keeps = None if keep is None else keep.unbind(2)
    resets = None if reset is None else reset.unbind(2)
    zero, one = x.new_zeros(()), x.new_ones(())

    def step(into: Sequence[Tensor], k: int, before: Sequence[Tensor]) -> None:
        now, factors = positions[k], coefficients.step
        if resets is not None:
            before = [torch.where(resets[k], zero, part) for part in before]  # not 0 * part, which may be Inf
        if keeps is not None:
            skip = [one, zero] * (pairs > 0) + [one]
            factors = [torch.where(keeps[k], a, b) for a, b in zip(factors, skip, strict=False)]
        if pairs:
            a_real, a_imag = factors[:2]
            torch.addcmul(now[0], before[0], a_real, out=into[0]).addcmul_(before[1], a_imag, value=-1)
            torch.addcmul(now[1], before[1], a_real, out=into[1]).addcmul_(before[0], a_imag)
        if len(now) != 2:
            torch.addcmul(now[-1], before[-1], factors[-1], out=into[-1])

    order = range(CHUNK - 1, -1, -1) if reverse else range(CHUNK)
    ends: Sequence[Tensor] = positions[order[0]]
    spares = torch.empty_like(x[:, :, :2]).unbind(2)
    buffers = [spare.split_with_sizes(sizes, 1) for spare in spares]
    for k in order[1:]:
        step(buffers[k % 2], k, ends)
        ends = buffers[k % 2]
    entering, leaving = _join(coefficients, ends, carry, keep, reset, reverse)
    before: Sequence[Tensor] = [part.to(x.dtype) for part in to_columns(entering)]
    for k in order:
        step(positions[k], k, before)
        before = positions[k]
    if keep is not None and not reverse:
        # a skipped step repeats the bits, also from one chunk to the next: the state after a chunk's last event
        # is the one that enters the next chunk, rounded from float64
        event = keep if reset is None else keep | reset
        settled = event.flip(2).cumsum(2).flip(2) <= event
        torch.where(settled, torch.cat(to_columns(leaving), 1).to(x.dtype)[:, :, None], x, out=x)
    return [mode[..., 0 if reverse else -1] for mode in leaving]


def _join(
    coefficients: _Coefficients,
    ends: Sequence[Tensor],
    carry: list[Tensor],
    keep: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the states that enter and leave each chunk, as modes (batch, modes, chunks)."""
    if keep is None:
        factors = [powers[:, -1:] for powers in coefficients.table]
    else:
        kept = keep.sum(2).squeeze(1)
        factors = [powers[:, kept].transpose(0, 1) for powers in coefficients.table]
    cut = None if reset is None else reset.any(2)
    if coefficients.pairs:
        real, imag, *rest = (end.double() for end in ends)
        v = [torch.complex(real, imag), *rest]
    else:
        v = [end.double() for end in ends]
    if reverse:
        v, factors = [t.flip(-1) for t in v], [t.flip(-1) for t in factors]
        cut = None if cut is None else cut.flip(-1)
    states = [_prefix(*each, cut) for each in zip(v, factors, carry, strict=True)]
    entering = [
        torch.cat([old[..., None], new[..., :-1]], -1) for old, new in zip(carry, states, strict=True)
    ]
    if reverse:
        return [t.flip(-1) for t in entering], [t.flip(-1) for t in states]
    return entering, states


@overload
def _part(values: Tensor, where: slice) -> Tensor: ...
@overload
def _part(values: None, where: slice) -> None: ...
def _part(values: Tensor | None, where: slice) -> Tensor | None:
    """Choose chunks, where there is something and it differs from chunk to chunk."""
    return values if values is None or values.dim() == 2 else values[..., where]


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a | b


def _advance(v: Tensor, factor: Tensor, before: Tensor, cut: Tensor | None) -> Tensor:
    """Return ``factor before + v``, and v where the past is cut off, whatever it holds."""
    if cut is None:
        return torch.addcmul(v, factor, before)
    return v + torch.where(cut, v.new_zeros(()), factor * before)


def _prefix(v: Tensor, factor: Tensor, state: Tensor, cut: Tensor | None) -> Tensor:
    """Return the states ``s_j = factor_j s_(j-1) + v_j``; where `cut`, ``s_j = v_j``.

    `v` is (batch, modes, chunks), `state` (batch, modes), `factor` (batch, modes, chunks) or, where it is the
    same for all chunks, (modes, 1); `cut` is (batch, 1, chunks).
    """
    first = _advance(v[..., :1], factor[..., :1], state[..., None], _part(cut, slice(1)))
    return _inclusive(torch.cat([first, v[..., 1:]], -1), factor, cut)


def _inclusive(v: Tensor, factor: Tensor, cut: Tensor | None) -> Tensor:
    """Do `_prefix` from zero: by halves while there are many chunks, which is less work, then by doubling."""
    count = v.shape[-1]
    if count <= _DOUBLING:
        return _doubling(v, factor, cut)
    odd, even = slice(1, None, 2), slice(0, count - 1, 2)
    joined = _advance(v[..., odd], _part(factor, odd), v[..., even], _part(cut, odd))
    half = _inclusive(
        joined, _part(factor, odd) * _part(factor, even), _either(_part(cut, odd), _part(cut, even))
    )
    out, later = torch.empty_like(v), slice(2, None, 2)
    out[..., :1] = v[..., :1]
    out[..., odd] = half
    out[..., later] = _advance(
        v[..., later], _part(factor, later), half[..., : (count - 1) // 2], _part(cut, later)
    )
    return out


def _doubling(v: Tensor, factor: Tensor, cut: Tensor | None) -> Tensor:
    """Do `_inclusive` in log2(chunks) steps, each of which reaches twice as far back."""
    distance = 1
    while distance < v.shape[-1]:
        near, far, shifted = slice(distance), slice(distance, None), slice(-distance)
        moved = _advance(v[..., far], _part(factor, far), v[..., shifted], _part(cut, far))
        v = torch.cat([v[..., near], moved], -1)
        product = _part(factor, far) * _part(factor, shifted)
        factor = product if factor.dim() == 2 else torch.cat([factor[..., near], product], -1)
        if cut is not None:
            cut = torch.cat([cut[..., near], cut[..., far] | cut[..., shifted]], -1)
        distance *= 2
    return v
