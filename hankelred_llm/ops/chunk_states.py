"""State passing between chunks: a linear recurrence whose coefficient may differ from step to step.

A parallel scan by halving, then by doubling, with elementwise operations only, from earlier to later chunks.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from .eigenvalues import Powers, to_modes

# Number of chunks up to which recursive doubling is used: log2 rounds over all of them.
_DOUBLING = 32


def pass_states(
    powers: Powers,
    final_states: Tensor,
    carry: list[Tensor],
    steps: Tensor | None,
    has_start: Tensor | None,
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the initial and the final state of each chunk, as modes (batch, modes, chunks).

    Parameters
    ----------
    powers : Powers
        Of exponents up to the length of the chunks.
    final_states : Tensor, (batch, channels, chunks)
        Final state of each chunk, scanned from zero.
    carry : list of Tensor, (batch, modes)
        Initial state of the first chunk; in reverse, of the last one.
    steps : Tensor, (batch, chunks), or None
        Number of valid steps in each chunk; None where all are valid.
    has_start : Tensor, (batch, 1, chunks), or None
        Whether a segment starts in a chunk.
    reverse : bool
    """
    if steps is None:
        factors = [power[:, -1:] for power in powers.exact]
    else:
        factors = [select_powers(power, steps) for power in powers.exact]
    v = to_modes(final_states, powers.pairs)
    if reverse:
        v, factors = [t.flip(-1) for t in v], [t.flip(-1) for t in factors]
        has_start = None if has_start is None else has_start.flip(-1)
    states = [prefix_scan(*of_mode, has_start) for of_mode in zip(v, factors, carry, strict=True)]
    initial_states = [
        torch.cat([old[..., None], new[..., :-1]], -1) for old, new in zip(carry, states, strict=True)
    ]
    if reverse:
        return [t.flip(-1) for t in initial_states], [t.flip(-1) for t in states]
    return initial_states, states


def select_powers(powers: Tensor, steps: Tensor) -> Tensor:
    """Look up powers, (modes, length + 1), by exponents `steps`, (batch, ...): (batch, modes, ...)."""
    # index_select: four times as fast as indexing
    return powers.index_select(1, steps.flatten()).view(-1, *steps.shape).transpose(0, 1)


def prefix_scan(v: Tensor, factor: Tensor, state: Tensor, has_start: Tensor | None) -> Tensor:
    """Return the states ``s_j = factor_j s_(j-1) + v_j``; chunks `cut`, ``s_j = v_j``.

    `v` is (batch, modes, chunks), `state` (batch, modes), `factor` (batch, modes, chunks) or, where it is the
    same for all chunks, (modes, 1); `has_start` is (batch, 1, chunks).
    """
    first = _advance(v[..., :1], factor[..., :1], state[..., None], _take(has_start, slice(1)))
    return _scan_from_zero(torch.cat([first, v[..., 1:]], -1), factor, has_start)


def _scan_from_zero(v: Tensor, factor: Tensor, has_start: Tensor | None) -> Tensor:
    """Run `prefix_scan` from zero: by halving for many chunks, which is less work, then by doubling."""
    count = v.shape[-1]
    if count <= _DOUBLING:
        return _doubling(v, factor, has_start)
    odd, even = slice(1, None, 2), slice(0, count - 1, 2)
    combined = _advance(v[..., odd], _take(factor, odd), v[..., even], _take(has_start, odd))
    half = _scan_from_zero(
        combined,
        _take(factor, odd) * _take(factor, even),
        _either(_take(has_start, odd), _take(has_start, even)),
    )
    out, later = torch.empty_like(v), slice(2, None, 2)
    out[..., :1] = v[..., :1]
    out[..., odd] = half
    out[..., later] = _advance(
        v[..., later], _take(factor, later), half[..., : (count - 1) // 2], _take(has_start, later)
    )
    return out


def _doubling(v: Tensor, factor: Tensor, has_start: Tensor | None) -> Tensor:
    """Run `_scan_from_zero` in log2(chunks) steps, each over twice the distance."""
    distance = 1
    while distance < v.shape[-1]:
        near, far, shifted = slice(distance), slice(distance, None), slice(-distance)
        advanced = _advance(v[..., far], _take(factor, far), v[..., shifted], _take(has_start, far))
        v = torch.cat([v[..., near], advanced], -1)
        product = _take(factor, far) * _take(factor, shifted)
        factor = product if factor.dim() == 2 else torch.cat([factor[..., near], product], -1)
        if has_start is not None:
            has_start = torch.cat([has_start[..., near], has_start[..., far] | has_start[..., shifted]], -1)
        distance *= 2
    return v


@overload
def _take(values: Tensor, chunks: slice) -> Tensor: ...
@overload
def _take(values: None, chunks: slice) -> None: ...
def _take(values: Tensor | None, chunks: slice) -> Tensor | None:
    """Return the values of some chunks; all where they are None or the same for all chunks."""
    return values if values is None or values.dim() == 2 else values[..., chunks]


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a | b


def _advance(v: Tensor, factor: Tensor, before: Tensor, has_start: Tensor | None) -> Tensor:
    """Return ``factor before + v``, and v after a segment start, even where `before` is not finite."""
    if has_start is None:
        return torch.addcmul(v, factor, before)
    return v + torch.where(has_start, v.new_zeros(()), factor * before)
