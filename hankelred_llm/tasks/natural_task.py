"""Questions in plain sentences about facts that are scattered among the sentences of another text.

A row is an instruction, a story and questions with their answers: ``... Mary went to the kitchen. (other
sentences) ... Where is Mary? In the kitchen. Where is ...``. The facts keep their order. The sentences
between them, the noise, follow each other as in the text they are from. A longer row has more noise, and as
many facts. After Kuratov et al., "BABILong", NeurIPS 2024, and Hsieh et al., "RULER", COLM 2024.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hankelred.errors import name_list, short_repr

from .base import Choice, Example, FloatArray, Scores, Split, SplitName, checked_array
from .byte_tokens import IGNORED, IntArray, Tokenizer
from .document_task import Document, split_folder
from .errors import TaskDataError, TaskError
from .sources import read_text, text_files
from .synthetic_task import checked_count, generator_of, split_of
from .text_task import TextTask

PEOPLE = (
    *("Mary", "John", "Sandra", "Daniel", "Peter", "Anna"),
    *("Julia", "Thomas", "Laura", "Henry", "Emma", "Oscar"),
)
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

INSTRUCTION = "Read the story and answer the questions."
#: Sentences of the project's own making, in which no name and no answer of any task occurs.
NOISE = Path(__file__).with_name("noise.txt")
#: Words of a sentence that is taken as noise. What is longer is often a list or a broken line.
FEWEST_WORDS, MOST_WORDS = 3, 40
#: Sentences that a text must have, so that rows differ.
FEWEST_SENTENCES = 20
#: A row is full when so many sentences in turn do not fit any more.
TRIES = 3
DEFAULT_SIZE: dict[SplitName, int] = {"train": 1024, "validation": 64, "test": 128}

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'\u2019\u201d])\s+")


@dataclass(frozen=True)
class Story:
    """The facts and the questions of a row.

    Attributes
    ----------
    facts : tuple of str
        Sentences in their order.
    questions : tuple of (str, int)
        Each with the beginning of its answer, and the index of the candidate that completes it.
    """

    facts: tuple[str, ...]
    questions: tuple[tuple[str, int], ...]


class NaturalTask(TextTask):
    """A task of facts and questions in plain sentences. A subclass sets the class variables, writes `draw`.

    Parameters
    ----------
    seed : int
        Draws the rows.
    text : path or str, optional
        Where the noise is from: a text file, or a folder of .txt files, of which no two splits share one.
        Sentences with a name or an answer of the task are left out. Default: a small text of this project.
    questions : int, optional
        Questions of a row; each is about something else. Default: 3 or 5, by the task.
    by : str
        "likelihood": the likeliest of the candidates is the answer, all questions of a row in one pass where
        each candidate is one token. "generation": the word that is generated; questions before it are shown
        with their right answers. Rows for training are the same.
    tokenizer : object, optional
        As in every task of texts.
    """

    source: ClassVar[str] = "facts drawn from a seed, among the sentences of a text"
    license: ClassVar[str] = "none needed; that of the text where one is given"
    metric = "accuracy"
    #: what facts are about; no sentence of the noise has one of these words, or one of the candidates
    names: ClassVar[tuple[str, ...]]
    #: every answer there is, none the beginning of another
    candidates: ClassVar[tuple[str, ...]]
    #: the most questions that a row can have, and how many it has by default
    most_questions: ClassVar[int]
    usual_questions: ClassVar[int] = 5

    def __init__(
        self,
        *,
        seed: int = 0,
        text: str | PathLike[str] | None = None,
        questions: int | None = None,
        by: str = "likelihood",
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__(tokenizer=tokenizer)
        if by not in ("likelihood", "generation"):
            raise TaskError(f"by is {short_repr(by)}; give 'likelihood' or 'generation'")
        self.prediction_kind = "choices" if by == "likelihood" else "text"
        self.seed = checked_count("seed", seed, least=0)
        wanted = self.usual_questions if questions is None else questions
        self.questions = checked_count("questions", wanted, least=1, most=self.most_questions)
        if text is not None and (not isinstance(text, str | PathLike) or not str(text)):
            raise TaskError(f"text is {short_repr(text)}; give the path of a text, or of a folder of texts")
        self.text = NOISE if text is None else Path(text)
        self._noise: Mapping[SplitName, list[list[str]]] | None = None
        self._pieces: dict[str, IntArray] = {}
        self._answers: dict[str, tuple[IntArray, tuple[IntArray, ...]]] = {}

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Story:
        """Return a new story with `questions` questions."""

    def baselines(self, split: Split) -> Mapping[str, dict[str, float]]:
        """Return chance, the best constant answer, and the candidate that the story mentioned last.

        The best constant is counted on the split itself. The last one is there where facts have candidates.
        """
        answers = np.array([c.answer for e in split for c in e.choices])
        accuracies = {
            "chance": 1 / len(self.candidates),
            "constant": float(np.bincount(answers).max() / len(answers)),
        }
        # the first prompt of a row: later ones have answers in them
        of_row: dict[str, int | None] = {}
        for e in split:
            if e.document not in of_row:
                of_row[e.document] = self._last_mention(e)
        last = [of_row[e.document] for e in split for _ in e.choices]
        if any(index is not None for index in last):
            accuracies["last_mention"] = float(np.mean([a == b for a, b in zip(last, answers, strict=True)]))
        return {name: {"accuracy": value} for name, value in accuracies.items()}

    def _last_mention(self, example: Example) -> int | None:
        text = self.tokenizer.decode(example.prompt_ids.tolist(), skip_special_tokens=True)
        words = re.findall(r"\w+", text)
        return next((self.candidates.index(w) for w in reversed(words) if w in self.candidates), None)

    def _split(self, name: SplitName, length: int, size: int | None, seed: int) -> Split:
        rng = generator_of(self.seed, name, length, seed)
        documents = self._documents()[name]
        rows: list[Example] = []
        while len(rows) < (size or DEFAULT_SIZE[name]):
            row = self._row(rng, documents, length, f"{name} {len(rows)}")
            # rows follow from their hash to a split, so that none is in two
            if split_of(row.input_ids) == name:
                rows.append(row)
        if self.prediction_kind == "text" and name != "train":
            rows = [one for row in rows for one in self._one_by_one(row)]
        longest = max(len(ids) for c in rows[0].choices for ids in c.candidates)
        new_tokens = longest if self.prediction_kind == "text" else 0
        return Split(rows.__getitem__, len(rows), name=name, length=length, max_new_tokens=new_tokens)

    def _row(
        self, rng: np.random.Generator, documents: Sequence[Sequence[str]], length: int, unit: str
    ) -> Example:
        story = self.draw(rng)
        start = self._start()
        facts = [self._piece(f" {fact}") for fact in story.facts]
        questions = [
            self._answer(f" {text}" if k == 0 else f". {text}") for k, (text, _) in enumerate(story.questions)
        ]
        ends = [
            np.concatenate([prompt, answers[right]])
            for (prompt, answers), (_, right) in zip(questions, story.questions, strict=True)
        ]
        free = length - len(start) - sum(map(len, facts)) - sum(map(len, ends))
        if free < 0:
            raise TaskError(
                f"length {length} is too short for task {self.name}: instruction, facts and "
                f"{self.questions} questions of a row take {length - free} tokens and more; give a larger "
                "length, or fewer questions"
            )
        pieces = self._noise_pieces(rng, documents, free)
        # from the last to the first, so that places found before stay right
        for where, fact in zip(
            np.sort(rng.integers(0, len(pieces) + 1, len(facts)))[::-1], facts[::-1], strict=True
        ):
            pieces.insert(where, fact)
        context = np.concatenate([start, *pieces])
        ids = np.concatenate([context, *ends])
        labels = np.full_like(ids, IGNORED)
        choices, position = [], len(context)
        for (prompt, answers), (_, right) in zip(questions, story.questions, strict=True):
            position += len(prompt)
            choices.append(Choice(position, answers, right))
            after = position + len(answers[right])
            labels[position:after] = ids[position:after]
            position = after
        return Example(ids, labels, choices[0].position, unit, unit, choices=tuple(choices))

    def _start(self) -> IntArray:
        """Return the ids of the instruction, after what the tokenizer puts before a text."""
        plain = self._piece(INSTRUCTION)
        whole = np.array(self.tokenizer.encode(INSTRUCTION, add_special_tokens=True), dtype=np.int64)
        for before in range(len(whole) - len(plain) + 1):
            end = before + len(plain)
            if np.array_equal(whole[before:end], plain):
                return whole[:end]  # without what it puts after a text
        return plain

    def _noise_pieces(
        self, rng: np.random.Generator, documents: Sequence[Sequence[str]], free: int
    ) -> list[IntArray]:
        """Return sentences that follow each other in a document; at its end, those of another document."""
        pieces: list[IntArray] = []
        failed = 0
        for sentence in _sentences_from(rng, documents):
            piece = self._piece(f" {sentence}")
            if len(piece) > free:
                failed += 1
                if failed == TRIES:
                    break
                continue
            failed, free = 0, free - len(piece)
            pieces.append(piece)
        return pieces

    def _one_by_one(self, row: Example) -> Iterator[Example]:
        """Yield a row for each question of a row, with the questions before it answered."""
        for k, choice in enumerate(row.choices):
            end = choice.position + len(choice.candidates[choice.answer])
            yield Example(
                row.input_ids[:end],
                np.where(np.arange(end) < choice.position, IGNORED, row.labels[:end]),
                choice.position,
                _question_unit(row, k),
                row.document,
                (self.candidates[choice.answer],),
                choices=(choice,),
            )

    def _score(self, split: Split, predictions: Sequence[Any]) -> Scores:
        right: list[float] = []
        units, documents = [], []
        for row, (e, prediction) in enumerate(zip(split, predictions, strict=True)):
            if self.prediction_kind == "text":
                right.append(_generated_right(prediction, e.references, row))
                units.append(e.unit)
            else:
                right += _likeliest_right(e.choices, prediction, row)
                units += [_question_unit(e, k) for k in range(len(e.choices))]
            documents += [e.document] * len(e.choices)
        return Scores({"accuracy": np.array(right)}, np.ones(len(right)), tuple(units), tuple(documents))

    def _piece(self, text: str) -> IntArray:
        """Return the ids of a text: after a sentence where it begins with a blank, after a word if a dot."""
        if text not in self._pieces:
            before = {" ": ".", ".": "the"}.get(text[0])
            self._pieces[text] = (
                self._encode(text) if before is None else self._encode_continuation(before, text)[1]
            )
        return self._pieces[text]

    def _answer(self, text: str) -> tuple[IntArray, tuple[IntArray, ...]]:
        """Return the ids of a question and of every answer to it.

        Raises
        ------
        TaskError
            The ids of one answer are the beginning of those of another.
        """
        if text in self._answers:
            return self._answers[text]
        answers = tuple(self._encode_continuation(text, f" {word}")[1] for word in self.candidates)
        for i, one in enumerate(answers):
            for j, other in enumerate(answers):
                if i != j and np.array_equal(one, other[: len(one)]):
                    raise TaskError(
                        f"the tokenizer does not tell answers of task {self.name} apart: "
                        f"{self.candidates[i]!r} is {one.tolist()} and {self.candidates[j]!r} is "
                        f"{other.tolist()}; take another tokenizer"
                    )
        self._answers[text] = self._piece(text), answers
        return self._answers[text]

    def _documents(self) -> Mapping[SplitName, list[list[str]]]:
        """Return the sentences of the documents of every split; one file is the noise of all splits."""
        if self._noise is None:
            forbidden = {word.lower() for word in (*self.names, *self.candidates)}
            if self.text.is_dir():
                parts: Mapping[SplitName, list[Document]] = split_folder(self.text)
            else:  # the noise of all splits
                (file,) = text_files(self.text)
                document = Document(file.name, read_text(file), ())
                parts = {name: [document] for name in DEFAULT_SIZE}
            self._noise = {
                name: self._sentences_of(name, of_split, forbidden) for name, of_split in parts.items()
            }
        return self._noise

    def _sentences_of(
        self, name: SplitName, documents: Sequence[Document], forbidden: set[str]
    ) -> list[list[str]]:
        documents_sentences = [usable_sentences(d.text, forbidden) for d in documents]
        count = sum(map(len, documents_sentences))
        if count < FEWEST_SENTENCES:
            raise TaskDataError(
                self.text,
                None,
                f"has {count} sentences for the {name} split of task {self.name}, of {FEWEST_WORDS} to "
                f"{MOST_WORDS} words and without {name_list(sorted(forbidden), 3)} and the like",
                f"give a text with at least {FEWEST_SENTENCES}",
            )
        return [sentences for sentences in documents_sentences if sentences]


def usable_sentences(text: str, forbidden: set[str]) -> list[str]:
    r"""Return the sentences of a text that are neither short nor long and have none of these words.

    Parameters
    ----------
    text : str
    forbidden : set of str
        In lower case.

    Examples
    --------
    >>> from hankelred_llm.tasks.natural_task import usable_sentences
    >>> usable_sentences("Mary slept well. It rained all day. So? He ran\nhome at once!", {"mary"})
    ['It rained all day.', 'He ran home at once!']
    """
    sentences = (" ".join(s.split()) for s in _SENTENCE_END.split(text))
    return [
        s
        for s in sentences
        if s.rstrip("\"'\u2019\u201d").endswith((".", "!", "?"))
        and FEWEST_WORDS <= len(s.split()) <= MOST_WORDS
        and forbidden.isdisjoint(re.findall(r"[^\W_]+", s.lower()))
    ]


def each_at_least_once(rng: np.random.Generator, subjects: int, count: int) -> list[int]:
    """Return `count` indices below `subjects` in random order, each of them at least once."""
    extra = rng.integers(0, subjects, count - subjects)
    return [int(i) for i in rng.permutation(np.concatenate([np.arange(subjects), extra]))]


def other_than(rng: np.random.Generator, count: int, index: int | None) -> int:
    """Return a random index below `count` that is another one."""
    if index is None:
        return int(rng.integers(count))
    return (index + 1 + int(rng.integers(count - 1))) % count


def _sentences_from(rng: np.random.Generator, documents: Sequence[Sequence[str]]) -> Iterator[str]:
    while True:
        sentences = documents[int(rng.integers(len(documents)))]
        yield from sentences[int(rng.integers(len(sentences))) :]


def _question_unit(row: Example, k: int) -> str:
    """Return the unit of question k of a row, the same where the question has a row of its own."""
    return f"{row.unit}, question {k + 1}"


def _likeliest_right(choices: Sequence[Choice], prediction: Any, row: int) -> list[float]:
    sizes = [len(c.candidates) for c in choices]
    values: FloatArray = checked_array(prediction, sum(sizes), row)
    right = []
    for choice, of_choice in zip(choices, np.split(values, np.cumsum(sizes)[:-1]), strict=True):
        best = np.flatnonzero(of_choice == of_choice.max())
        # a tie counts as the guess that it is
        right.append(float(choice.answer in best) / len(best))
    return right


def _generated_right(prediction: Any, references: Sequence[str], row: int) -> float:
    if not isinstance(prediction, str):
        raise TaskError(f"prediction of row {row} is of type {type(prediction).__name__}; give the text")
    words = re.findall(r"\w+", prediction)
    return float(words[:1] == list(references))
