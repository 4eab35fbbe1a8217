"""Several needles in a haystack: places and their code words; the questions are about some of them.

After the task of many keys in Hsieh et al., "RULER", COLM 2024.
"""

from __future__ import annotations

import numpy as np

from ..natural_task import NaturalTask, Story

KEYS = ("bakery", "market", "school", "park", "hospital", "church", "station", "harbor", "museum", "farm")
WORDS = ("moon", "river", "stone", "tree", "bird", "fish", "cloud", "horse")
#: Keys that no question asks for.
OTHERS = 3


class MultikeyNeedle(NaturalTask):
    """The code word of a place; there are three places more than questions."""

    name = "multikey_needle"
    summary = "the code word of one of many places, in sentences among others"
    names = KEYS
    candidates = WORDS
    most_questions = len(KEYS) - OTHERS

    def draw(self, rng: np.random.Generator) -> Story:
        """Return a story of places with code words, which more than one of them may have."""
        keys = rng.permutation(KEYS)[: self.questions + OTHERS]
        values = rng.integers(0, len(WORDS), len(keys))
        facts = [f"The code word of the {key} is {WORDS[v]}." for key, v in zip(keys, values, strict=True)]
        questions = [
            (f"What is the code word of the {keys[k]}? It is", int(values[k]))
            for k in rng.permutation(len(keys))[: self.questions]
        ]
        return Story(tuple(facts), tuple(questions))


TASK = MultikeyNeedle
