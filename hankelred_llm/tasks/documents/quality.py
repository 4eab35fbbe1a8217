"""QuALITY: choose one of four answers to a question about a long story.

With ``by="likelihood"`` (the default), every question has four rows, in which its options are permuted
cyclically so that each letter stands once for each option. The answer is the option with the largest sum of
log-likelihoods, so that a preference for a letter has no effect. With ``by="generation"``, the letter is read
from the generated text. Training rows are the four permutations with the letter as completion, for both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar

import numpy as np

from hankelred.errors import short_repr

from ..base import FloatArray, Scores, Split, SplitName, checked_array
from ..byte_tokens import IntArray, Tokenizer
from ..document_task import Document, DocumentTask, Question, Row, text_hash
from ..errors import TaskError
from ..sources import SourceRecord, checked_revision, read_hub

LETTERS = "ABCD"
DATASET = "emozilla/quality"
#: an option in a question of L-Eval's files
OPTION = re.compile(r"\n[ \t]*\(([A-D])\)")
#: the letter of an option in a generated answer
ANSWER_LETTER = re.compile(r"\(([A-D])\)|\b([A-D])\b(?=\s*(?:[).:,]|$))")


class Quality(DocumentTask):
    """Multiple choice about stories.

    Parameters
    ----------
    data_dir : path or str, optional
        Folder with ``quality/quality.jsonl``, in the form of L-Eval. Default: the hub.
    tokenizer : object, optional
        As in every task of texts.
    by : str
        "likelihood" or "generation".
    revision : str
        Branch, tag or commit of the data set on the hub.
    """

    name = "quality"
    summary = "choose one of four answers to a question about a long story"
    source = "nyu-mll/quality; files: OpenLMLab/LEval"
    license = "CC BY 4.0"
    metric = "accuracy"
    # not in LongBench; worded like its prompts
    prompt = (
        "You are given a story, a question and four possible answers, one of them right. Give its letter.\n\n"
        "Story: {context}\n\n"
        "Now, choose the right answer based on the story. Only give its letter.\n\n"
        "Question: {input}\n"
        "Answer:"
    )
    answer_length = 8
    files: ClassVar[Mapping[str, str]] = {"train": "quality/quality.jsonl"}
    layout = "input (the story), instructions (questions with options (A) to (D)) and outputs, as in L-Eval"

    def __init__(
        self,
        *,
        data_dir: str | PathLike[str] | None = None,
        tokenizer: Tokenizer | None = None,
        by: str = "likelihood",
        revision: str = "main",
    ) -> None:
        super().__init__(data_dir=data_dir, tokenizer=tokenizer)
        self.revision = checked_revision(revision)
        if by not in ("likelihood", "generation"):
            raise TaskError(f"by is {short_repr(by)}; give 'likelihood' or 'generation'")
        self.prediction_kind = "options" if by == "likelihood" else "text"

    def hub(self) -> Mapping[SplitName, Iterable[SourceRecord]]:
        """Return the rows of the hub, one per question; answers of the official test set are not public."""
        layout = "article, question, options (four) and answer (0 to 3), as the rows of the hub"
        names: tuple[SplitName, ...] = ("train", "validation")
        return {name: read_hub(DATASET, name, layout, revision=self.revision) for name in names}

    def parse(self, records: Iterable[SourceRecord]) -> list[Document]:
        """Return one document per story, from rows of L-Eval or of the hub."""
        questions: dict[str, list[Question]] = {}
        for record in records:
            if isinstance(record.content, dict) and "article" in record.content:
                questions.setdefault(record.text("article"), []).append(_question_of_hub(record))
            else:
                questions.setdefault(record.text("input"), []).extend(_questions_of_leval(record))
        return [Document(_document_key(text), text, tuple(of_story)) for text, of_story in questions.items()]

    def question_rows(self, document: Document, question: Question, unit: str, name: SplitName) -> list[Row]:
        """Return the rows of one question: its options in every cyclic permutation, or in one."""
        right = question.right
        cycles = len(LETTERS) if name == "train" or self.prediction_kind == "options" else 1
        rows = []
        for cycle in range(cycles):
            letter = [LETTERS[(i - cycle) % len(LETTERS)] for i in range(len(LETTERS))]
            options_shown = sorted(zip(letter, question.options, strict=True))
            prompt_end = self._prompt_end(
                "\n".join([question.text, *(f"({a}) {text}" for a, text in options_shown)])
            )
            continuations = [self._encode_continuation(prompt_end, f" ({a})") for a in letter]
            prompt, answers = continuations[0][0], [c[1] for c in continuations]
            completion = np.append(answers[right], self._eos)[: self.answer_length]
            if self.prediction_kind == "options":
                # the common start of the answers is put into the prompt: one forward pass compares them
                common = _common_prefix_length(answers)
                common_end = _common_prefix_length([a[common:][::-1] for a in answers])
                prompt, completion = np.append(prompt, answers[0][:common]), completion[common:]
                candidates = tuple(a[common : len(a) - common_end] for a in answers)
                rows.append(Row(document, question, unit, prompt, completion, candidates, right))
            else:
                rows.append(Row(document, question, unit, prompt, completion, answer=right))
        return rows

    def baselines(self, split: Split) -> Mapping[str, dict[str, float]]:
        """Return chance, the letter that is most often correct in training, and the longest option.

        The letters are those of the data, before the permutation.
        """
        rights = [q.right for d in self.documents()["train"] for q in d.questions]
        constant = int(np.bincount(rights, minlength=len(LETTERS)).argmax())
        questions = self._questions(split)
        longest = np.array([np.argmax([len(option) for option in q.options]) for q in questions])
        right = np.array([q.right for q in questions])
        return {
            "chance": {"accuracy": 1 / len(LETTERS)},
            "constant": {"accuracy": float(np.mean(right == constant))},
            "longest": {"accuracy": float(np.mean(right == longest))},
        }

    def _questions(self, split: Split) -> list[Question]:
        """Return the questions of a split, each once."""
        known = {
            f"{d.key}, question {i + 1}": q
            for d in self.documents()[split.name]
            for i, q in enumerate(d.questions)
        }
        return [known[unit] for unit in dict.fromkeys(e.unit for e in split)]

    def _score(self, split: Split, predictions: Sequence[Any]) -> Scores:
        if self.prediction_kind == "options":
            return _by_likelihood(split, predictions)
        right, without_letter, units, documents = [], [], [], []
        for row, (e, text) in enumerate(zip(split, predictions, strict=True)):
            if not isinstance(text, str):
                raise TaskError(f"prediction of row {row} is of type {type(text).__name__}; give the text")
            letter = first_letter(text)
            right.append(float(letter == LETTERS[e.answer]))
            without_letter.append(float(letter is None))
            units.append(e.unit)
            documents.append(e.document)
        values = {"accuracy": np.array(right), "no_letter": np.array(without_letter)}
        return Scores(values, np.ones(len(units)), tuple(units), tuple(documents))


def first_letter(text: str) -> str | None:
    """Return the first letter A to D in parentheses, or before punctuation or the end of the text, if any."""
    match = ANSWER_LETTER.search(text.strip())
    return None if match is None else match.group(1) or match.group(2)


def _by_likelihood(split: Split, predictions: Sequence[Any]) -> Scores:
    sums: dict[str, list[FloatArray]] = {}
    answers: dict[str, tuple[int, str]] = {}
    for row, (e, values) in enumerate(zip(split, predictions, strict=True)):
        sums.setdefault(e.unit, []).append(checked_array(values, len(e.candidates), row))
        answers[e.unit] = e.answer, e.document
    right = []
    for unit, cycles in sums.items():
        # exact sums: a model that prefers letters only has ties, which must not be decided by rounding
        total = [math.fsum(column) for column in zip(*cycles, strict=True)]
        best = [i for i, value in enumerate(total) if value == max(total)]
        right.append((answers[unit][0] in best) / len(best))
    documents = tuple(document for _, document in answers.values())
    return Scores({"accuracy": np.array(right)}, np.ones(len(right)), tuple(answers), documents)


def _common_prefix_length(rows: Sequence[IntArray]) -> int:
    """Return the number of ids that all rows have in common at their start, leaving at least one of each."""
    length = 0
    while length < min(map(len, rows)) - 1 and len({int(row[length]) for row in rows}) == 1:
        length += 1
    return length


def _questions_of_leval(record: SourceRecord) -> list[Question]:
    instructions, outputs = record.each("instructions"), record.each("outputs")
    if len(instructions) != len(outputs):
        raise record.error(f"has {len(instructions)} instructions and {len(outputs)} outputs")
    questions = []
    for i in range(len(instructions)):
        parts = OPTION.split(record.within("instructions").text(i))
        letters, options = parts[1::2], tuple(p.strip() for p in parts[2::2])
        answer = re.match(r"\(([A-D])\)", record.within("outputs").text(i).strip())
        if "".join(letters) != LETTERS or answer is None:
            raise record.error(f"question {i + 1} has options {letters} and answer {outputs[i].content!r}")
        right = LETTERS.index(answer.group(1))
        questions.append(Question(parts[0].strip(), (options[right],), options=options, right=right))
    return questions


def _question_of_hub(record: SourceRecord) -> Question:
    options = tuple(str(o.content).strip() for o in record.each("options"))
    right = record.get("answer", int)
    if len(options) != len(LETTERS) or not 0 <= right < len(LETTERS):
        raise record.error(f"has {len(options)} options and answer {right}")
    return Question(record.text("question"), (options[right],), options=options, right=right)


def _document_key(text: str) -> str:
    """Return the key of a story: its beginning and its hash."""
    return f"{' '.join(text.split())[:40]} {text_hash(text)}"


TASK = Quality
