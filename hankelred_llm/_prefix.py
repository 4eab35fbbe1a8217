"""A linear recurrence over few steps with coefficients of their own: by halves, then by doubling.

Only elementwise operations, each from earlier steps to later ones.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

# Steps up to which recursive doubling serves: log2 rounds, each over all of them.
_DOUBLING = 32


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
