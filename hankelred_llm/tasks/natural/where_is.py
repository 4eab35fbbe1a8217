"""The place of a person: people go from place to place, and the question is where each went last.

After task 1 of Weston et al., "Towards AI-complete question answering" (bAbI), 2015.
"""

from __future__ import annotations

import numpy as np

from ..natural_task import PEOPLE, NaturalTask, Story, each_at_least_once, other_than

PLACES = ("kitchen", "garden", "office", "bathroom", "bedroom", "attic", "library", "garage")
VERBS = ("went", "walked", "ran", "moved")


class WhereIs(NaturalTask):
    """The place that a person went to last; as many people as questions, who go twice on average."""

    name = "where_is"
    summary = "where somebody is who went from place to place, in sentences among others"
    names = PEOPLE
    candidates = PLACES
    most_questions = len(PEOPLE)

    def draw(self, rng: np.random.Generator) -> Story:
        """Return a story of people who move."""
        people = rng.permutation(PEOPLE)[: self.questions]
        place: dict[int, int] = {}
        facts = []
        for who in each_at_least_once(rng, self.questions, 2 * self.questions):
            place[who] = other_than(rng, len(PLACES), place.get(who))
            facts.append(f"{people[who]} {rng.choice(VERBS)} to the {PLACES[place[who]]}.")
        questions = [(f"Where is {people[k]}? In the", place[k]) for k in rng.permutation(self.questions)]
        return Story(tuple(facts), tuple(questions))


TASK = WhereIs
