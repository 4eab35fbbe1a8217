"""Flip-flop language: pairs of an instruction and a bit, ``w1i0i1r1``.

``w`` writes the bit after it, ``i`` says to ignore it, and the bit after ``r`` is the one written last. The
first instruction is ``w`` and the last ``r``; the others are ``w``, ``i`` and ``r`` with probabilities .1, .8
and .1. Only bits after ``r`` are scored, as next token. After Liu, Ash, Goel, Krishnamurthy and Zhang,
"Exposing attention glitches with flip-flop language modeling", NeurIPS 2023 (their FFL(0.8)).
"""

from __future__ import annotations

import numpy as np

from ..byte_tokens import IGNORED, IntArray
from ..synthetic_task import SyntheticTask, codes, needs_length

WRITE, READ = 0, 2
INSTRUCTIONS, PROBABILITIES = "wir", (0.1, 0.8, 0.1)


class FlipFlop(SyntheticTask):
    """The bit written last."""

    name = "flip_flop"
    summary = "the bit written last, at every read"
    answers = "01"

    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return rows of pairs; bits after a read are scored."""
        needs_length(self.name, length, 4, even=True)
        pairs = length // 2
        instruction = rng.choice(3, (size, pairs), p=PROBABILITIES)
        instruction[:, 0], instruction[:, -1] = WRITE, READ
        bits = rng.integers(0, 2, (size, pairs))
        last_write = np.maximum.accumulate(np.where(instruction == WRITE, np.arange(pairs), 0), axis=1)
        stored = np.take_along_axis(bits, last_write, axis=1)
        read = instruction == READ
        shown = codes("01")[np.where(read, stored, bits)]
        ids = np.stack([codes(INSTRUCTIONS)[instruction], shown], axis=2).reshape(size, length)
        labels = np.stack([np.full_like(shown, IGNORED), np.where(read, shown, IGNORED)], axis=2)
        return ids, labels.reshape(size, length)


TASK = FlipFlop
