"""A key in a haystack: letters, among them once ``:`` and a digit, at the end ``?``; the digit is scored."""

from __future__ import annotations

import numpy as np

from ..byte_tokens import IGNORED, IntArray
from ..synthetic_task import SyntheticTask, codes, needs_length

LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"


class KeyRetrieval(SyntheticTask):
    """The one digit in a row of letters; `length` counts the question mark, not the answer after it."""

    name = "key_retrieval"
    summary = "the one marked digit among letters, at the end"
    answers = DIGITS

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of letters with one marked digit, anywhere before the question mark."""
        needs_length(self.name, length, 4)
        ids = codes(LETTERS)[rng.integers(0, len(LETTERS), (size, length + 1))]
        rows = np.arange(size)
        where = rng.integers(0, length - 2, size)
        digit = codes(DIGITS)[rng.integers(0, len(DIGITS), size)]
        ids[rows, where], ids[rows, where + 1] = ord(":"), digit
        ids[:, -2], ids[:, -1] = ord("?"), digit
        labels = np.full_like(ids, IGNORED)
        labels[:, -1] = digit
        return ids, labels


TASK = KeyRetrieval
