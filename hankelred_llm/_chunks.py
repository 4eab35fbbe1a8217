"""The chunked scan: chunks of 16 samples swept side by side, their states joined in float64.

Nothing here knows of autograd; `_scan.py` makes differentiable operators of it. The recurrence runs on real
columns: the real parts of the conjugate pairs, their imaginary parts, the real modes.

A block of samples is copied to ``(chunk position, batch, column, chunk)``, so that one step of all chunks is
one elementwise operation on contiguous memory. Two sweeps over the 16 positions and a short prefix between
them give every state:

1. from zero, for the state each chunk ends with;
2. the prefix: those ends joined over the chunks by recursive doubling, in float64;
3. from the true incoming state, writing every state down.

Only elementwise operations are used, on purpose. A matrix product with a triangular Toeplitz matrix is as fast
but multiplies later samples by zero, which turns an Inf there into a NaN here; and it obeys the global switches
(TF32, bfloat16) that trade accuracy for speed. Here a sample meets the past only, whatever its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Samples a chunk: a step's coefficient is rounded to float32, which 16 steps turn into at most 16 * 3e-8.
CHUNK = 16
# Elements a block: two float32 buffers of this size stay in a core's cache; other devices take all at once.
_CPU_BLOCK = 2**18


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

    def powers(self, exponents: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``exp(k lambda)``, complex (pairs, k) and real (real modes, k); never powers of a rounded a."""
        radius = (self.log_decay[:, None] * exponents).exp()
        angle = self.phase[:, None] * exponents
        return torch.polar(radius[: self.pairs], angle), radius[self.pairs :]

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


def to_modes(columns: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Turn (batch, columns, ...) into complex128 (batch, pairs, ...) and float64 (batch, real modes, ...)."""
    columns = columns.double()
    return torch.complex(columns[:, :pairs], columns[:, pairs : 2 * pairs]), columns[:, 2 * pairs :]


def to_columns(pair_modes: Tensor, real_modes: Tensor) -> Tensor:
    """Undo `to_modes`, in float64."""
    return torch.cat([pair_modes.real, pair_modes.imag, real_modes], 1)


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
    carry = u.new_zeros(batch, columns, dtype=torch.float64)
    if state is not None and not reverse:
        carry = state.double()
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
            x[position, ..., chunk] += state
        carry = _scan_block(coefficients, x, carry, keep, reset, reverse)
        _store(x, out[..., start:stop])
        yield start, stop


def one_step_back(modes: Modes, h: Tensor, masks: Masks) -> Tensor:
    """Return the gradient to the initial state, float64 (batch, columns), from the adjoint at the first sample."""
    pair, real = (power.squeeze(1) for power in modes.powers(torch.ones(1, device=h.device, dtype=torch.float64)))
    h_pair, h_real = to_modes(h, modes.pairs)
    moved = to_columns(pair.conj() * h_pair, real * h_real)
    if masks.keep is not None:
        moved = torch.where(masks.keep[:, :1], moved, h.double())
    return moved if masks.reset is None else torch.where(masks.reset[:, :1], 0.0, moved)


@dataclass(frozen=True)
class _Coefficients:
    """What a block needs of the eigenvalues.

    Parameters
    ----------
    pairs : int
    step : Tensor, three of (modes, 1)
        Real and imaginary part of a for the pairs, a for the real modes, in the type computed in.
    table : Tensor, complex (pairs, CHUNK + 1) and real (real modes, CHUNK + 1)
        The powers 0 to CHUNK, in float64.
    """

    pairs: int
    step: tuple[Tensor, Tensor, Tensor]
    table: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, modes: Modes, dtype: torch.dtype) -> _Coefficients:
        table = modes.powers(torch.arange(CHUNK + 1, device=modes.log_decay.device, dtype=torch.float64))
        pair, real = (powers[:, 1:2] for powers in table)
        return cls(modes.pairs, (pair.real.to(dtype), pair.imag.to(dtype), real.to(dtype)), table)


def _load(block: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy (batch, columns, samples) to (CHUNK, batch, columns, chunks), the last chunk filled up with zeros."""
    batch, columns, samples = block.shape
    whole, rest = divmod(samples, CHUNK)
    x = block.new_empty(CHUNK, batch, columns, whole + (rest > 0), dtype=dtype)
    if whole:
        x[..., :whole].copy_(block[..., : whole * CHUNK].unflatten(-1, (whole, CHUNK)).permute(3, 0, 1, 2))
    if rest:
        x[:rest, ..., whole].copy_(block[..., whole * CHUNK :].permute(2, 0, 1))
        x[rest:, ..., whole].zero_()
    return x


def _store(x: Tensor, block: Tensor) -> None:
    """Undo `_load`."""
    whole, rest = divmod(block.shape[-1], CHUNK)
    if whole:
        block[..., : whole * CHUNK].unflatten(-1, (whole, CHUNK)).copy_(x[..., :whole].permute(1, 2, 3, 0))
    if rest:
        block[..., whole * CHUNK :].copy_(x[:rest, ..., whole].permute(1, 2, 0))


def _scan_block(
    coefficients: _Coefficients,
    x: Tensor,
    carry: Tensor,
    keep: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> Tensor:
    """Turn the inputs (CHUNK, batch, columns, chunks) into states in place, and return the state carried on."""
    order = range(CHUNK - 1, -1, -1) if reverse else range(CHUNK)
    pairs = coefficients.pairs
    zero = x.new_zeros(())

    def step(into: Tensor, k: int, before: Tensor) -> None:
        a_real, a_imag, a = coefficients.step
        if reset is not None:
            before = torch.where(reset[k], zero, before)  # not a factor 0: the past may be Inf
        if keep is not None:
            a_real, a_imag, a = (
                torch.where(keep[k], factor, skip) for factor, skip in ((a_real, 1.0), (a_imag, 0.0), (a, 1.0))
            )
        if pairs:
            (real, imag), (old_real, old_imag) = (
                (t[:, :pairs], t[:, pairs : 2 * pairs]) for t in (x[k], before)
            )
            into_real, into_imag = into[:, :pairs], into[:, pairs : 2 * pairs]
            torch.addcmul(real, old_real, a_real, out=into_real).addcmul_(old_imag, a_imag, value=-1)
            torch.addcmul(imag, old_imag, a_real, out=into_imag).addcmul_(old_real, a_imag)
        if 2 * pairs < x.shape[2]:
            torch.addcmul(x[k, :, 2 * pairs :], before[:, 2 * pairs :], a, out=into[:, 2 * pairs :])

    ends, spare = x[order[0]], (torch.empty_like(x[0]), torch.empty_like(x[0]))
    for k in order[1:]:
        step(spare[k % 2], k, ends)
        ends = spare[k % 2]
    incoming, carry = _join(coefficients, ends, carry, keep, reset, reverse)
    before = incoming.to(x.dtype)
    for k in order:
        step(x[k], k, before)
        before = x[k]
    return carry


def _join(
    coefficients: _Coefficients,
    ends: Tensor,
    carry: Tensor,
    keep: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Return the state that enters each chunk, (batch, columns, chunks), and the one that leaves the last."""
    if keep is None:
        factors = [powers[:, -1:] for powers in coefficients.table]
    else:
        kept = keep.sum(0).squeeze(1)
        factors = [powers[:, kept].transpose(0, 1) for powers in coefficients.table]
    cut = None if reset is None else reset.any(0)
    if reverse:
        ends = ends.flip(-1)
        factors = [factor.flip(-1) for factor in factors]
        cut = None if cut is None else cut.flip(-1)
    entering, leaving = [], []
    for end, factor, old in zip(
        to_modes(ends, coefficients.pairs), factors, to_modes(carry, coefficients.pairs), strict=True
    ):
        states = _prefix(end, factor, cut, old[..., None])
        entering.append(torch.cat([old[..., None], states[..., :-1]], -1))
        leaving.append(states[..., -1])
    incoming = to_columns(*entering)
    return incoming.flip(-1) if reverse else incoming, to_columns(*leaving)


def _prefix(v: Tensor, factor: Tensor, cut: Tensor | None, state: Tensor) -> Tensor:
    """Return the states ``s_j = factor_j s_(j-1) + v_j`` by recursive doubling; where `cut`, ``s_j = v_j``."""
    zero = v.new_zeros(())

    def advance(v: Tensor, factor: Tensor, before: Tensor, cut: Tensor | None) -> Tensor:
        old = factor * before
        return v + (old if cut is None else torch.where(cut, zero, old))

    constant = factor.shape[-1] == 1 and factor.dim() == 2
    first = advance(v[..., :1], factor[..., :1], state, None if cut is None else cut[..., :1])
    v = torch.cat([first, v[..., 1:]], -1)
    distance = 1
    while distance < v.shape[-1]:
        later = None if cut is None else cut[..., distance:]
        far = factor if constant else factor[..., distance:]
        v = torch.cat([v[..., :distance], advance(v[..., distance:], far, v[..., :-distance], later)], -1)
        if constant:
            factor = factor * factor
        else:
            factor = torch.cat([factor[..., :distance], far * factor[..., :-distance]], -1)
        if cut is not None:
            cut = torch.cat([cut[..., :distance], cut[..., distance:] | cut[..., :-distance]], -1)
        distance *= 2
    return v
