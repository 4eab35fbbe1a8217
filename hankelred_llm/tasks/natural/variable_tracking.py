"""Chains of names: the first has a value, each of the others that of the one before it.

After variable tracking in Hsieh et al., "RULER", COLM 2024, which asks for all names of a value.
"""

from __future__ import annotations

import numpy as np

from ..natural_task import NUMBERS, NaturalTask, Story

LETTERS = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta"),
    *("eta", "theta", "kappa", "lambda", "sigma", "omega"),
)
#: Sentences from the value to the name that is asked for at most.
HOPS = 3


class VariableTracking(NaturalTask):
    """The value of a name at any place of a chain; as many chains as questions, each of its own value."""

    name = "variable_tracking"
    summary = "the value of a name that has it through a chain of others, in sentences among others"
    names = LETTERS
    candidates = NUMBERS
    most_questions = len(LETTERS) // HOPS
    usual_questions = 3

    def draw(self, rng: np.random.Generator) -> Story:
        """Return a story of chains, their sentences shuffled into each other."""
        chains = rng.permutation(LETTERS)[: HOPS * self.questions].reshape(self.questions, HOPS)
        values = rng.permutation(len(NUMBERS))[: self.questions]
        placed = [0] * self.questions
        facts = []
        # every chain keeps its order
        for k in rng.permutation(np.repeat(np.arange(self.questions), HOPS)):
            place = placed[k]
            end = NUMBERS[values[k]] if place == 0 else f"that of {chains[k][place - 1]}"
            facts.append(f"The value of {chains[k][place]} is {end}.")
            placed[k] += 1
        ends = rng.integers(0, HOPS, self.questions)
        questions = [
            (f"What is the value of {chains[k][ends[k]]}? It is", int(values[k]))
            for k in rng.permutation(self.questions)
        ]
        return Story(tuple(facts), tuple(questions))


TASK = VariableTracking
