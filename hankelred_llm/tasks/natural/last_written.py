"""The word on a board: each word replaces the one before it. Sentences "Nobody wrote ..." change nothing.

The flip-flop language of Liu et al., NeurIPS 2023, in plain sentences, with several boards and eight words.
"""

from __future__ import annotations

import numpy as np

from ..natural_task import NaturalTask, Story, each_at_least_once, other_than

COLORS = ("red", "blue", "green", "white", "black", "yellow")
WORDS = ("candle", "bridge", "flower", "mountain", "window", "letter", "lemon", "hammer")


class LastWritten(NaturalTask):
    """The word written last on a board; as many boards as questions, written on three times on average.

    For every two words that are written there is one sentence saying that nobody wrote a word.
    """

    name = "last_written"
    summary = "the word written last on a board, in sentences among others"
    names = COLORS
    candidates = WORDS
    most_questions = len(COLORS)
    usual_questions = 3

    def draw(self, rng: np.random.Generator) -> Story:
        """Return a story of boards that are written on."""
        colors = rng.permutation(COLORS)[: self.questions]
        writes = 3 * self.questions
        order = each_at_least_once(rng, self.questions, writes)
        distractors = rng.permutation(np.arange(writes + writes // 2) >= writes)
        written: dict[int, int] = {}
        facts = []
        for is_distractor in distractors:
            board = int(rng.integers(self.questions)) if is_distractor else order.pop()
            word = other_than(rng, len(WORDS), written.get(board))
            if is_distractor:
                facts.append(f"Nobody wrote {WORDS[word]} on the {colors[board]} board.")
            else:
                written[board] = word
                facts.append(f"Somebody wrote {WORDS[word]} on the {colors[board]} board.")
        questions = [
            (f"Which word is on the {colors[k]} board? It is", written[k])
            for k in rng.permutation(self.questions)
        ]
        return Story(tuple(facts), tuple(questions))


TASK = LastWritten
