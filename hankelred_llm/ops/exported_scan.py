"""The recurrence by operators that every exporter knows, for programs that run without this package.

Samples are split into chunks. In each chunk the states from zero are a product with the powers of a, chosen
by the number of valid samples between two samples; the initial states of the chunks are another such product.
All sizes may be symbolic. A channel costs ``32 T + T^2 / 32^2`` products, and as many powers in double
precision: many times as much as the operator for long rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Samples in a chunk.
LENGTH = 32


def exported_scan(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    *,
    state: Tensor | None = None,
    valid: Tensor | None = None,
    segment_start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence as :func:`channel_scan`, for at least one sample.

    Parameters
    ----------
    log_decay, phase, u, state, valid, segment_start : Tensor
        As there; u in the type of the states.

    Returns
    -------
    s : Tensor, (batch, channels, time)
    last_state : Tensor, (batch, channels)

    Examples
    --------
    >>> import math, torch
    >>> from hankelred_llm.ops.exported_scan import exported_scan
    >>> s, last = exported_scan(torch.tensor([math.log(0.5)]), None, torch.ones(1, 1, 4))
    >>> s.flatten().tolist()
    [1.0, 1.5, 1.75, 1.875]
    """
    time = u.shape[2]
    # more than needed, so that no size below is 0 or 1: exporters would take it for a constant
    chunks = time // LENGTH + 3
    added = chunks * LENGTH - time
    u = u if valid is None else torch.where(valid[:, None], u, 0.0)
    # no views or slices: exporters would have to prove that sizes are divisible, or large enough
    order, chunk = torch.arange(LENGTH, device=u.device), torch.arange(chunks, device=u.device)
    in_chunks = chunk[:, None] * LENGTH + order
    x = pad(u, (0, added))[..., in_chunks]
    # how many samples, and how many segments, have begun; without masks all chunks are alike
    ones = torch.ones(1, time, dtype=torch.long, device=u.device)
    kept = pad(ones if valid is None else valid.long(), (0, added)).cumsum(1)[:, in_chunks]
    starts = torch.zeros_like(ones) if segment_start is None else segment_start.long()
    segment = pad(starts, (0, added)).cumsum(1)[:, in_chunks]
    kept_before, segment_before = pad(kept[:, :-1, -1], (1, 0)), pad(segment[:, :-1, -1], (1, 0))

    log_decay = log_decay.double().clamp(min=-1e4)  # of which exp is 0, as of -inf; 0 times that is NaN

    def product(distance: Tensor, reached: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product of a^distance, where it is reached, with channels along the last axis."""
        steps = torch.where(reached, distance, 0).double()[:, None]
        shape = (1, -1, *(1 for _ in distance.shape[1:]))
        size = torch.where(reached[:, None], (steps * log_decay.view(shape)).exp(), 0.0)
        pairs = 0 if phase is None else phase.shape[0]
        real, angle = size, None
        if phase is not None:
            angle = steps * phase.double().view(shape)
            real = torch.cat([size[:, :pairs] * angle.cos(), size[:, pairs:]], 1)
        real = real.to(u.dtype)
        imag = None if angle is None else (size[:, :pairs] * angle.sin()).to(u.dtype)

        def apply(z: Tensor) -> Tensor:
            z = z[..., None]
            if imag is None:
                return (real @ z)[..., 0]
            a, b, c = z[:, :pairs], z[:, pairs : 2 * pairs], z[:, 2 * pairs :]
            parts = [
                real[:, :pairs] @ a - imag @ b,
                real[:, :pairs] @ b + imag @ a,
                real[:, pairs:] @ c,
            ]
            return torch.cat(parts, 1)[..., 0]

        return apply

    local = product(
        kept[..., :, None] - kept[..., None, :],
        (segment[..., :, None] == segment[..., None, :]) & (order[:, None] >= order),
    )(x)
    initial = product(
        kept_before[:, :, None] - kept[:, None, :, -1],
        (segment_before[:, :, None] == segment[:, None, :, -1]) & (chunk[:, None] > chunk),
    )(local[..., -1])
    if state is not None:
        initial = initial + product(kept_before[..., None], (segment_before == 0)[..., None])(
            state.to(u.dtype)[..., None]
        )
    carried = product(
        (kept - kept_before[..., None])[..., None], (segment == segment_before[..., None])[..., None]
    )(initial[..., None])
    s = (local + carried).flatten(2).index_select(2, torch.arange(time, device=u.device))
    return s, s[..., -1]
