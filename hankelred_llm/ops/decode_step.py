"""One step of the recurrence on real columns, by plain operations: what decoding runs on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear


class Step(NamedTuple):
    """The coefficients of a step, in float64: rounded ones would add up over very many tokens."""

    own: Tensor  # (columns,): of the column itself
    other: Tensor | None  # (columns,): of the other column of its pair, None without pairs
    partner: Tensor | None  # (columns,): which column that is

    @classmethod
    def of(cls, log_decay: Tensor, phase: Tensor | None, *, negative: int = 0) -> Step:
        """Take eigenvalues as in `column_scan`; the last ones may be negative."""
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

    def advance(self, u: Tensor, before: Tensor) -> Tensor:
        """Return the state after one sample, both (batch, columns), in the type of the state."""
        after = torch.addcmul(u, self.own, before)
        if self.other is not None and self.partner is not None:
            after = torch.addcmul(after, self.other, before.index_select(1, self.partner))
        return after.to(before.dtype)


class Stepper(NamedTuple):
    """A system prepared for one token at a time."""

    step: Step
    B: Tensor  # (order, d)
    out: Tensor  # (order, d), contiguous: a product with one row reads it twice as fast as C

    def run(
        self, x: Tensor, state: Tensor, keep: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run one token, in as few operations as can be."""
        batch, _, width = x.shape
        row = x.reshape(batch, width)
        before = state if reset is None else torch.where(reset, 0.0, state)
        s = self.step.advance(
            linear(row if row.dtype == state.dtype else row.to(state.dtype), self.B), before
        )
        if keep is not None:
            s = torch.where(keep, s, before)
        return torch.mm(s, self.out).view(batch, 1, width), s[..., None]

    def __deepcopy__(self, memo: dict[int, Any]) -> Stepper:
        return self  # copies of a cache share it: nothing in it is ever changed
