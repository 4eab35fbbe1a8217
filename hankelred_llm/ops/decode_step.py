"""One step of the recurrence on real channels, by plain operations, for decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from .masks import after_reset


class StepCoefficients(NamedTuple):
    """The coefficients of a step, in float64: rounding errors of theirs would accumulate over many tokens."""

    diagonal: Tensor  # (channels,): of the channel itself
    cross: Tensor | None  # (channels,): of the other channel of its pair, None without pairs
    partner_index: Tensor | None  # (channels,): which channel that is

    @classmethod
    def of(cls, log_decay: Tensor, phase: Tensor | None, *, negative: int = 0) -> StepCoefficients:
        """Compute them from eigenvalues as in `channel_scan`, of which the last may be negative."""
        decay = log_decay.double().exp()
        if negative:
            decay = torch.cat([decay[:-negative], -decay[-negative:]])
        if phase is None:
            return cls(decay, None, None)
        pairs, modes = phase.shape[0], decay.shape[0]
        angle = phase.double()
        real, imag = decay[:pairs] * angle.cos(), decay[:pairs] * angle.sin()
        index = torch.arange(modes + pairs, device=decay.device)
        return cls(
            torch.cat([real, real, decay[pairs:]]),
            torch.cat([-imag, imag, decay.new_zeros(modes - pairs)]),
            torch.cat([index[pairs : 2 * pairs], index[:pairs], index[2 * pairs :]]),
        )

    @classmethod
    def stacked(cls, coefficients: Sequence[StepCoefficients]) -> StepCoefficients:
        """Return the coefficients of several systems, with their channels concatenated."""
        diagonals = [each.diagonal for each in coefficients]
        if all(each.cross is None for each in coefficients):
            return cls(torch.cat(diagonals), None, None)
        crosses, indices, start = [], [], 0
        for each in coefficients:
            channels = torch.arange(len(each.diagonal), device=each.diagonal.device)
            crosses.append(torch.zeros_like(each.diagonal) if each.cross is None else each.cross)
            indices.append(start + (channels if each.partner_index is None else each.partner_index))
            start += len(channels)
        return cls(torch.cat(diagonals), torch.cat(crosses), torch.cat(indices))

    def decay(self, before: Tensor) -> Tensor:
        """Return the state before a sample times A, (batch, channels), in double precision."""
        after = self.diagonal * before
        if self.cross is not None and self.partner_index is not None:
            after = torch.addcmul(after, self.cross, before.index_select(1, self.partner_index))
        return after

    def advance(self, u: Tensor, before: Tensor) -> Tensor:
        """Return the state after one sample, both (batch, channels), in the type of the state."""
        return (self.decay(before) + u).to(before.dtype)


class Stepper(NamedTuple):
    """A system prepared for one token at a time."""

    step: StepCoefficients
    B: Tensor  # (order, d)
    out: Tensor  # (order, d), contiguous: a product with one row reads it twice as fast as C
    m: Tensor | None = None  # (order,): the output is that of u + m s, None: of s alone
    static_B: Tensor | None = None  # (rank, d): input map of the direct term, where it has its own
    static_out: Tensor | None = None  # (rank, d), contiguous
    shared: bool = True  # whether what static parts read is u
    device: str = "cpu"  # its kind

    def run(
        self,
        x: Tensor,
        state: Tensor,
        valid: Tensor | None,
        segment_start: Tensor | None,
        static_input: Tensor | None = None,
        decayed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one token, in as few operations as possible: (batch, 1, d) and (batch, channels).

        The operations are those of the base model where there is a choice: between its layers, code that ran
        before is faster than code that does less. `decayed` (batch, 1, channels) is A times the state, zero
        where a segment starts, where it was computed before.
        """
        if decayed is None:
            decayed = after_reset(self.step.decay(state).to(state.dtype), segment_start).unsqueeze(1)
        static_u = None if static_input is None else static_input.transpose(1, 2)
        u = static_u if self.shared else None
        x = x if x.dtype == state.dtype else x.to(state.dtype)
        if u is None:
            u = linear(x, self.B)
        s = u + decayed
        if valid is not None:
            s = torch.where(valid[..., None], s, after_reset(state, segment_start).unsqueeze(1))
        y = torch.matmul(s if self.m is None else torch.addcmul(u, self.m, s), self.out)
        if self.static_B is not None and self.static_out is not None:
            y = y + torch.matmul(linear(x, self.static_B) if static_u is None else static_u, self.static_out)
        return y, s.squeeze(1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stepper:
        return self  # copies of a cache share it: it is never changed
