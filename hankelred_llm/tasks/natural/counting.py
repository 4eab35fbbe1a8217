"""The coins of a person: people find coins one at a time, and the question is how many each found."""

from __future__ import annotations

import numpy as np

from ..natural_task import NUMBERS, PEOPLE, NaturalTask, Story

COUNTS = NUMBERS[:5]


class Counting(NaturalTask):
    """The number of coins that a person found; as many people as questions, each finds one to five."""

    name = "counting"
    summary = "how many coins somebody found one at a time, in sentences among others"
    names = (*PEOPLE, "coin", "coins")
    candidates = COUNTS
    most_questions = 8

    def draw(self, rng: np.random.Generator) -> Story:
        """Return a story of people who find coins."""
        people = rng.permutation(PEOPLE)[: self.questions]
        counts = rng.integers(1, len(COUNTS) + 1, self.questions)
        finders = rng.permutation(np.repeat(people, counts))
        questions = [
            (f"How many coins did {people[k]} find? {people[k]} found", int(counts[k]) - 1)
            for k in rng.permutation(self.questions)
        ]
        return Story(tuple(f"{who} found a coin." for who in finders), tuple(questions))


TASK = Counting
