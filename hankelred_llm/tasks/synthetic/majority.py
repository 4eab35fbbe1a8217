"""Running majority: bits ``0`` and ``1``; after each, the one read more often so far. Ties are not scored."""

from __future__ import annotations

import numpy as np

from ..byte_tokens import IGNORED, IntArray
from ..synthetic_task import SyntheticTask, after_each, codes


class Majority(SyntheticTask):
    """Majority of the bits read so far."""

    name = "majority"
    summary = "the bit that has been read more often, after every bit; ties are not scored"
    answers = "01"

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of bits; positions with a tie are not scored."""
        bits = rng.integers(0, 2, (size, length))
        lead = np.cumsum(2 * bits - 1, axis=1)
        targets = np.where(lead == 0, IGNORED, codes("01")[(lead > 0).astype(int)])
        return after_each(codes("01")[bits], targets)


TASK = Majority
