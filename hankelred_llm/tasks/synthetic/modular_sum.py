"""Running sum modulo m: digits below m; after each, the sum of all digits so far, modulo m."""

from __future__ import annotations

import numpy as np

from ..byte_tokens import IntArray
from ..synthetic_task import SyntheticTask, after_each, checked_count, codes

DIGITS = "0123456789"


class ModularSum(SyntheticTask):
    """Sum of the digits read so far, modulo `modulus`.

    Parameters
    ----------
    modulus : int
        From 2 to 10; digits are ``0`` to ``modulus - 1``.
    seed : int
        Draws the rows.
    """

    name = "modular_sum"
    summary = "sum of the digits read so far modulo m, after every digit"

    def __init__(self, *, modulus: int = 5, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.modulus = checked_count("modulus", modulus, least=2, most=len(DIGITS))
        self.answers = DIGITS[: self.modulus]

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of digits; every position is scored."""
        digits = rng.integers(0, self.modulus, (size, length))
        return after_each(codes(DIGITS)[digits], codes(DIGITS)[np.cumsum(digits, axis=1) % self.modulus])


TASK = ModularSum
