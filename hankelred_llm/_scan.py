"""The recurrence on real columns, time last: what the adapter layer calls."""

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
    """Run the diagonal recurrence on real columns.

    Parameters
    ----------
    log_decay : Tensor, (modes,)
        log|a| of every mode; the first `pairs` modes stand for a conjugate pair each.
    phase : Tensor, (pairs,), or None
        Angle of the pairs in radians per step.
    u : Tensor, (batch, 2 pairs + real modes, time)
        Columns: real parts of the pairs, their imaginary parts, real modes.
    state : Tensor, (batch, columns), optional
        State before the first sample; zero when not given.
    keep, reset : bool Tensor, (batch, time), optional
        Where `keep` is False the state stays and u is not read; where `reset` is True all before is forgotten.

    Returns
    -------
    s : Tensor, (batch, columns, time)
    last_state : Tensor, (batch, columns)
    """
    batch, _, time = u.shape
    pairs = 0 if phase is None else phase.shape[0]
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    zero = u.new_zeros((), dtype=dtype)
    decay = log_decay.double().exp()
    cos = decay[:pairs] * (phase.double().cos() if phase is not None else 1.0)
    sin = decay[:pairs] * (phase.double().sin() if phase is not None else 0.0)
    same = torch.cat([cos, cos, decay[pairs:]]).to(dtype)
    cross = torch.cat([-sin, sin, torch.zeros_like(decay[pairs:])]).to(dtype)
    s = u.new_zeros(batch, u.shape[1], dtype=dtype) if state is None else state.to(dtype)
    out = []
    for t in range(time):
        before = s
        if reset is not None:
            before = torch.where(reset[:, t, None], zero, before)
        swapped = torch.cat([before[:, pairs : 2 * pairs], before[:, :pairs], before[:, 2 * pairs :]], 1)
        s = same * before + cross * swapped + u[..., t].to(dtype)
        if keep is not None:
            s = torch.where(keep[:, t, None], s, before)
        out.append(s)
    if not out:
        return u.new_zeros(batch, u.shape[1], 0, dtype=dtype), s
    return torch.stack(out, -1), s
