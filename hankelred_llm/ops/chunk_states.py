"""The states between chunks: a linear recurrence with a coefficient of its own at each step.

By halves, then by doubling, with elementwise operations only, each from earlier chunks to later ones.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from hankelred_llm.ops.eigenvalues import Powers, to_modes

# Steps up to which recursive doubling serves: log2 rounds, each over all of them.
_DOUBLING = 32


def join(
    powers: Powers,
    ends: Tensor,
    carry: list[Tensor],
    steps: Tensor | None,
    cut: Tensor | None,
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the states that enter and leave each chunk, as modes (batch, modes, chunks).

    Parameters
    ----------
    powers : Powers
        Up to the length of the chunks.
    ends : Tensor, (batch, columns, chunks)
        The states each chunk ends with when it starts from zero.
    carry : list of Tensor, (batch, modes)
        The state that enters the first chunk; in reverse, the last one.
    steps : Tensor, (batch, chunks), or None
        How many steps lead through each chunk; None for all of them.
    cut : Tensor, (batch, 1, chunks), or None
        Where the past is forgotten inside a chunk.
    reverse : bool
    """
    if steps is None:
        factors = [power[:, -1:] for power in powers.exact]
    else:
        factors = [choose(power, steps) for power in powers.exact]
    v = to_modes(ends, powers.pairs)
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


def choose(powers: Tensor, steps: Tensor) -> Tensor:
    """Return (batch, modes, ...) from the powers (modes, length + 1) and their numbers (batch, ...)."""
    # index_select: four times as fast as an index in brackets
    return powers.index_select(1, steps.flatten()).view(-1, *steps.shape).transpose(0, 1)


def prefix(v: Tensor, factor: Tensor, state: Tensor, cut: Tensor | None) -> Tensor:
    """Return the states ``s_j = factor_j s_(j-1) + v_j``; where `cut`, ``s_j = v_j``.

    `v` is (batch, modes, chunks), `state` (batch, modes), `factor` (batch, modes, chunks) or, where it is the
    same for all chunks, (modes, 1); `cut` is (batch, 1, chunks).
    """
    first = _advance(v[..., :1], factor[..., :1], state[..., None], _part(cut, slice(1)))
    return _inclusive(torch.cat([first, v[..., 1:]], -1), factor, cut)


def _inclusive(v: Tensor, factor: Tensor, cut: Tensor | None) -> Tensor:
    """Do `prefix` from zero: by halves while there are many chunks, which is less work, then by doubling."""
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
