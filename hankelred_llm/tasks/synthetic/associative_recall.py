"""Associative recall: pairs of a letter and a digit, ``c4a7c4b0a7``.

Every row draws anew which digit goes with which letter. A digit is scored, as next token, where its letter
has been read before.
"""

from __future__ import annotations

import numpy as np

from ..byte_tokens import IGNORED, IntArray
from ..synthetic_task import SyntheticTask, codes, needs_length

LETTERS, DIGITS = "abcdefgh", "0123456789"


class AssociativeRecall(SyntheticTask):
    """The digit that goes with a letter in this row."""

    name = "associative_recall"
    summary = "the digit that came with this letter before in the row, at every repeated letter"
    answers = DIGITS

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of pairs; digits of letters seen before are scored."""
        # with one pair more than there are letters, every row repeats a letter, which is scored
        needs_length(self.name, length, 2 * len(LETTERS) + 2, even=True)
        letters = rng.integers(0, len(LETTERS), (size, length // 2))
        digit_of_letter = rng.integers(0, len(DIGITS), (size, len(LETTERS)))
        digits = codes(DIGITS)[np.take_along_axis(digit_of_letter, letters, axis=1)]
        counts = np.cumsum(letters[:, :, None] == np.arange(len(LETTERS)), axis=1)
        repeated = np.take_along_axis(counts, letters[:, :, None], axis=2)[:, :, 0] > 1
        ids = np.stack([codes(LETTERS)[letters], digits], axis=2).reshape(size, length)
        labels = np.stack([np.full_like(digits, IGNORED), np.where(repeated, digits, IGNORED)], axis=2)
        return ids, labels.reshape(size, length)


TASK = AssociativeRecall
