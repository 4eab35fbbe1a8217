"""The owner of a thing: things are put into boxes, boxes are given to people, and the last owner counts.

Two facts are needed, the last box of the thing and the last owner of this box, in either order: as in task 2
of Weston et al., "Towards AI-complete question answering" (bAbI), 2015.
"""

from __future__ import annotations

import numpy as np

from ..natural_task import PEOPLE, NaturalTask, Story, each_at_least_once, other_than

THINGS = ("apple", "bread", "map", "ring", "rope", "hat")
COLORS = ("red", "blue", "green", "white", "black", "yellow")
OWNERS = PEOPLE[:8]
VERBS = ("given", "handed", "sent")


class WhoHas(NaturalTask):
    """The owner of the box that a thing is in; as many things, and boxes, as questions."""

    name = "who_has"
    summary = "who has the box that a thing is in, in sentences among others"
    names = (*THINGS, *COLORS)
    candidates = OWNERS
    most_questions = min(len(THINGS), len(COLORS))
    usual_questions = 3

    def draw(self, rng: np.random.Generator) -> Story:
        """Return a story of things in boxes; each thing, and each box, is moved at least once."""
        count = self.questions
        things, colors = rng.permutation(THINGS)[:count], rng.permutation(COLORS)[:count]
        box: dict[int, int] = {}
        owner: dict[int, int] = {}
        facts = []
        # the first of each are needed, half as many again change something
        things_to_put = each_at_least_once(rng, count, count + count // 2)
        boxes_to_give = each_at_least_once(rng, count, count + count // 2)
        for puts in rng.permutation(np.repeat([True, False], len(things_to_put))):
            if puts:
                k = things_to_put.pop()
                box[k] = other_than(rng, count, box.get(k)) if count > 1 else 0
                facts.append(f"The {things[k]} was put into the {colors[box[k]]} box.")
            else:
                k = boxes_to_give.pop()
                owner[k] = other_than(rng, len(OWNERS), owner.get(k))
                facts.append(f"The {colors[k]} box was {rng.choice(VERBS)} to {OWNERS[owner[k]]}.")
        questions = [(f"Who has the {things[k]}? It is with", owner[box[k]]) for k in rng.permutation(count)]
        return Story(tuple(facts), tuple(questions))


TASK = WhoHas
