"""Placeholder of the recurrence: a plain loop with the interface of the real one."""

from __future__ import annotations

import torch
from torch import Tensor


def column_scan(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    *,
    state: Tensor | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run s_t = exp(lambda) s_{t-1} + u_t on real columns, channel first."""
    batch, columns, time = u.shape
    pairs = 0 if phase is None else phase.shape[0]
    decay = log_decay.double().exp()
    if phase is not None:
        turn_cos = (decay[:pairs] * phase.double().cos()).to(u.dtype)
        turn_sin = (decay[:pairs] * phase.double().sin()).to(u.dtype)
    real = decay[pairs:].to(u.dtype)
    s = u.new_zeros(batch, columns) if state is None else state
    out = []
    for t in range(time):
        before = s
        if reset is not None:
            before = torch.where(reset[:, t, None], torch.zeros_like(s), s)
        moved = before[:, 2 * pairs :] * real
        if phase is not None:
            re, im = before[:, :pairs], before[:, pairs : 2 * pairs]
            moved = torch.cat([re * turn_cos - im * turn_sin, re * turn_sin + im * turn_cos, moved], 1)
        after = moved + u[:, :, t]
        s = after if keep is None else torch.where(keep[:, t, None], after, before)
        out.append(s)
    return torch.stack(out, -1), s
