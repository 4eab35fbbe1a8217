"""Initialization of the poles of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class InitialPoles(NamedTuple):
    """Initial poles of a layer, float64."""

    log_decay: Tensor  # (modes,)
    phase: Tensor  # (pairs,)


def _ring(modes: int, pairs: int) -> InitialPoles:
    """Spread poles uniformly over the area of a ring, as the linear recurrent unit of arXiv:2303.06349."""
    squared = torch.empty(modes, dtype=torch.float64, device="cpu").uniform_(0.9**2, 0.999**2)
    phase = torch.empty(pairs, dtype=torch.float64, device="cpu").uniform_(0.0, 2 * math.pi)
    return InitialPoles(0.5 * squared.log(), phase)


def _s4d_real(modes: int, pairs: int) -> InitialPoles:
    """Set poles as S4D-Real of arXiv:2206.11893, with a step size of its own for each mode."""
    step = torch.empty(modes, dtype=torch.float64, device="cpu").uniform_(math.log(1e-4), math.log(0.1)).exp()
    rates = torch.arange(1, modes + 1, dtype=torch.float64, device="cpu")
    return InitialPoles(-rates * step, torch.zeros(pairs, dtype=torch.float64, device="cpu"))


#: By the name in ``HRMConfig.init_weights``: a function from numbers of modes and of pairs to poles.
INITIAL_POLES: dict[str, Callable[[int, int], InitialPoles]] = {"ring": _ring, "s4d_real": _s4d_real}
