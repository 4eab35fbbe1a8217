"""Copying at a distance: letters ``a`` to ``h``; after each, the letter read `lag` positions before."""

from __future__ import annotations

import numpy as np

from ..byte_tokens import IGNORED, IntArray
from ..synthetic_task import SyntheticTask, after_each, checked_count, codes, needs_length

LETTERS = "abcdefgh"


class LagCopy(SyntheticTask):
    """The letter read `lag` positions before.

    Parameters
    ----------
    lag : int
        At least 1; the first `lag` positions are not scored.
    seed : int
        Draws the rows.
    """

    name = "lag_copy"
    summary = "the letter read a fixed number of positions before, after every letter"
    answers = LETTERS

    def __init__(self, *, lag: int = 8, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.lag = checked_count("lag", lag, least=1)

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of letters; positions from `lag` on are scored."""
        needs_length(self.name, length, self.lag + 1)
        letters = codes(LETTERS)[rng.integers(0, len(LETTERS), (size, length))]
        targets = np.full_like(letters, IGNORED)
        targets[:, self.lag :] = letters[:, : -self.lag]
        return after_each(letters, targets)


TASK = LagCopy
