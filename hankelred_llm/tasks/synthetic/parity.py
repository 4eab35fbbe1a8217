"""Running parity: bits ``0`` and ``1``; after each, ``1`` when an odd number of ones has been read.

A linear time-invariant state is a weighted sum of what was read, and parity is no threshold of such a sum:
this is the control, on which adapters of that kind stay near chance.
"""

from __future__ import annotations

import numpy as np

from ..byte_tokens import IntArray
from ..synthetic_task import SyntheticTask, after_each, codes


class Parity(SyntheticTask):
    """Parity of the bits read so far."""

    name = "parity"
    summary = "parity of the bits read so far, after every bit"
    answers = "01"

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of bits; every position is scored."""
        bits = rng.integers(0, 2, (size, length))
        return after_each(codes("01")[bits], codes("01")[np.cumsum(bits, axis=1) % 2])


TASK = Parity
