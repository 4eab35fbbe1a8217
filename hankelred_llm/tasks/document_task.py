"""Questions about documents: splits by document, prompts truncated in the middle of the document, baselines.

A prompt is the instruction, the document and the question, each tokenized separately, so that a document is
tokenized once for all its questions. What does not fit is cut from the middle of the document;
LongBench cuts the middle of the whole prompt, so that its two ends, instruction and question included, are
equally long. Instruction and question stay whole.
"""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from .base import Example, PredictionKind, Scores, Split, SplitName
from .byte_tokens import IGNORED, IntArray, Tokenizer
from .errors import TaskDataError, TaskError
from .metrics import word_f1
from .sources import SourceRecord, read_jsonl, read_text, text_files
from .synthetic_task import checked_count
from .text_task import TextTask

#: Size of the sample of training answers among which the constant answer is chosen.
CONSTANT_SAMPLE = 300

Measure: TypeAlias = Callable[[str, Sequence[str]], dict[str, float]]


@dataclass(frozen=True)
class Question:
    """A question and its correct answers.

    `evidence` has character ranges of the document; `right` is the index of the correct one of `options`.
    """

    text: str
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int], ...] = ()
    options: tuple[str, ...] = ()
    right: int = -1


@dataclass(frozen=True)
class Document:
    """A text and the questions about it."""

    key: str
    text: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Row:
    """A question as it is passed to a model: tokenized, except for its document."""

    document: Document
    question: Question
    unit: str
    prompt_end: IntArray
    """The part of the prompt after the document."""
    completion: IntArray
    """What follows the prompt in training."""
    candidates: tuple[IntArray, ...] = ()
    answer: int = -1


class DocumentTask(TextTask):
    """A task of questions about documents.

    A subclass sets the class variables and defines `parse`, and `hub` if the data set is on the hub.

    Parameters
    ----------
    data_dir : path or str, optional
        Folder with the files of `files`. Default: the hub, where the task is there.
    tokenizer : object, optional
        A tokenizer of transformers, or any with ``encode``, ``decode`` and the ids of its specials. Default:
        `ByteTokenizer`.
    """

    prediction_kind: PredictionKind = "text"
    #: the prompt, with the placeholders {context} and {input}
    prompt: ClassVar[str]
    #: longest generated answer in tokens
    answer_length: ClassVar[int]
    #: files by split, in data_dir; a missing split is taken from the others, see `three_splits`
    files: ClassVar[Mapping[str, str]]
    #: the fields of a record, for error messages
    layout: ClassVar[str]
    #: scores of one answer, the task's metric first
    measure: Measure

    def __init__(
        self, *, data_dir: str | PathLike[str] | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__(tokenizer=tokenizer)
        self.data_dir = None if data_dir is None else Path(data_dir)
        self._documents: dict[SplitName, list[Document]] | None = None
        self._dropped: dict[SplitName, int] = {}
        self._tokens: dict[str, IntArray] = {}
        self._kept_characters: dict[tuple[str, int, int], tuple[int, int]] = {}

    @abstractmethod
    def parse(self, records: Iterable[SourceRecord]) -> list[Document]:
        """Return the documents of the records of one file."""

    def hub(self) -> Mapping[SplitName, Iterable[SourceRecord]]:
        """Return records by split, from the hub."""
        raise TaskError(
            f"task {self.name} is read from files only; give a data_dir with {self._required_files()}"
        )

    def baselines(self, split: Split) -> Mapping[str, dict[str, float]]:
        """Return two baselines that read neither document nor question: a constant answer, and a random one.

        "constant" gives every question the training answer that is most similar to the other training answers
        (F1 of words); "chance" gives each question a training answer drawn at random.
        """
        answers = sorted({q.answers[0] for d in self.documents()["train"] for q in d.questions})
        rng = random.Random(0)
        sample = rng.sample(answers, min(CONSTANT_SAMPLE, len(answers)))
        constant = max(sample, key=lambda a: sum(word_f1(a, b) for b in sample))
        return {
            "chance": self.score(split, [rng.choice(answers) for _ in range(len(split))]).means,
            "constant": self.score(split, [constant] * len(split)).means,
        }

    def documents(self) -> dict[SplitName, list[Document]]:
        """Return the documents of the three splits, which have none in common."""
        if self._documents is None:
            parts = {name: self.parse(records) for name, records in self._records().items()}
            self._documents, self._dropped = without_shared_documents(three_splits(parts))
            for name, documents in self._documents.items():
                if not documents:
                    raise TaskDataError(
                        str(self.data_dir or self.source),
                        None,
                        f"no document is left for the {name} split of task {self.name}",
                        "give data with at least three different documents",
                    )
        return self._documents

    def rows(self, name: SplitName) -> list[Row]:
        """Return every question of a split as rows."""
        rows = []
        for document in self.documents()[name]:
            for i, question in enumerate(document.questions):
                rows += self.question_rows(document, question, f"{document.key}, question {i + 1}", name)
        return rows

    def question_rows(self, document: Document, question: Question, unit: str, name: SplitName) -> list[Row]:
        """Return the rows of one question."""
        del name  # only for tasks whose training rows differ
        prompt_end = self._prompt_end(question.text)
        prompt, completion = self._encode_continuation(prompt_end, " " + question.answers[0])
        completion = np.append(completion, self._eos)[: self.answer_length]
        return [Row(document, question, unit, prompt, completion)]

    def _records(self) -> Mapping[SplitName, Iterable[SourceRecord]]:
        if self.data_dir is None:
            return self.hub()
        records_by_split: dict[SplitName, Iterable[SourceRecord]] = {}
        for name in ("train", "validation", "test"):
            file = self.files.get(name)
            if file is None:
                continue
            path = self.data_dir / file
            if path.is_file():
                records_by_split[name] = read_jsonl(path, self.layout)
            elif name != "test":
                raise TaskDataError(
                    path, None, "is not there", f"data_dir must have {self._required_files()}"
                )
        return records_by_split

    def _required_files(self) -> str:
        needed = [f for name, f in self.files.items() if name != "test"]
        return " and ".join(needed)

    def _prompt_end(self, question: str) -> str:
        return self.prompt.split("{context}")[1].replace("{input}", question)

    @property
    def _eos(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def _split(self, name: SplitName, length: int, size: int | None, seed: int) -> Split:
        rows = self.rows(name)
        start = self.tokenizer.bos_token_id
        prompt_start = np.append(
            np.array([] if start is None else [start], dtype=np.int64),
            self._encode(self.prompt.split("{context}")[0]),
        )
        longest = len(prompt_start) + max(len(row.prompt_end) for row in rows)
        if longest >= length:
            raise TaskError(
                f"length {length} is too short for a document: instruction and question of task {self.name} "
                f"take up to {longest} tokens; give more"
            )
        order = self._order(name, rows, size, checked_count("seed", seed, least=0))
        return Split(
            partial(self._example, prompt_start, rows, order, length),
            len(order),
            name=name,
            length=length,
            max_new_tokens=self.answer_length if self.prediction_kind == "text" else 1,
            documents_dropped=self._dropped[name],
        )

    def _order(self, name: SplitName, rows: list[Row], size: int | None, seed: int) -> list[int]:
        if name == "train":
            size = size or len(rows)
            rng = np.random.default_rng(seed)
            passes = [rng.permutation(len(rows)) for _ in range(-(-size // len(rows)))]
            return [int(i) for i in np.concatenate(passes)[:size]]
        units = list(dict.fromkeys(row.unit for row in rows))
        if size is not None:
            # the same part of the split for every method, from all documents
            units = sorted(units, key=text_hash)[:size]
        chosen = set(units)
        return [i for i, row in enumerate(rows) if row.unit in chosen]

    def _example(
        self, prompt_start: IntArray, rows: list[Row], order: list[int], length: int, i: int
    ) -> Example:
        row = rows[order[i]]
        document = row.document
        if document.key not in self._tokens:
            self._tokens[document.key] = self._encode(document.text).astype(np.int32)
        tokens = self._tokens[document.key]
        available = length - len(prompt_start) - len(row.prompt_end)
        first, last = len(tokens), 0
        if len(tokens) > available:
            first, last = available - available // 2, available // 2
        kept = np.concatenate([tokens[:first], tokens[len(tokens) - last :]]).astype(np.int64)
        ids = np.concatenate([prompt_start, kept, row.prompt_end, row.completion])
        prompt = len(ids) - len(row.completion)
        labels = ids.copy()
        labels[:prompt] = IGNORED
        return Example(
            ids,
            labels,
            prompt,
            row.unit,
            document.key,
            row.question.answers,
            row.candidates,
            row.answer,
            cut=len(tokens) - len(kept),
            evidence=self._kept_evidence(row, tokens, first, last),
        )

    def _kept_evidence(self, row: Row, tokens: IntArray, first: int, last: int) -> float | None:
        """Return the share of the characters of the evidence that is left after truncation."""
        spans = row.question.evidence
        if not spans:
            return None
        if first >= len(tokens):
            return 1.0
        key = row.document.key, first, last
        if key not in self._kept_characters:
            # by decoding, because only some tokenizers return the offsets of tokens
            ends = tokens[:first], tokens[len(tokens) - last :]
            before, after = (len(self.tokenizer.decode(e.tolist(), skip_special_tokens=True)) for e in ends)
            self._kept_characters[key] = before, len(row.document.text) - after
        before, after = self._kept_characters[key]
        kept = sum(max(0, min(b, before) - a) + max(0, b - max(a, after)) for a, b in spans)
        return kept / sum(b - a for a, b in spans)

    def _score(self, split: Split, predictions: Sequence[Any]) -> Scores:
        values, units, documents = [], [], []
        for row, (e, text) in enumerate(zip(split, predictions, strict=True)):
            if not isinstance(text, str):
                raise TaskError(f"prediction of row {row} is of type {type(text).__name__}; give the text")
            values.append(type(self).measure(text, e.references))
            units.append(e.unit)
            documents.append(e.document)
        per_unit = {name: np.array([v[name] for v in values]) for name in values[0]}
        return Scores(per_unit, np.ones(len(units)), tuple(units), tuple(documents))


def three_splits(parts: Mapping[SplitName, list[Document]]) -> dict[SplitName, list[Document]]:
    """Return training, validation and test documents where some of these parts are missing.

    Without a test part, the validation part becomes the test part, and one training document in eight becomes
    validation. If there is one part only, a third becomes test and a sixth validation. The choice depends on
    the keys of the documents, not on a seed, so that no run trains on what another one tests.
    """
    if "test" in parts:
        return dict(parts)
    if "validation" in parts:
        remaining, selected = _split_off(parts["train"], 8)
        return {"train": remaining, "validation": selected, "test": parts["validation"]}
    remaining, test = _split_off(parts["train"], 3)
    train, validation = _split_off(remaining, 4)
    return {"train": train, "validation": validation, "test": test}


def split_folder(folder: Path) -> dict[SplitName, list[Document]]:
    """Return the .txt files of a folder as documents of three splits, which have none in common.

    Raises
    ------
    TaskDataError
        There are less than three.
    """
    files = text_files(folder)
    if len(files) < 3:
        raise TaskDataError(
            folder,
            None,
            f"has {len(files)} .txt files, and the three splits share none",
            "give at least 3, or a single file",
        )
    # by names within the folder: wherever it lies, splits are the same
    documents = [Document(f.relative_to(folder).as_posix(), read_text(f), ()) for f in files]
    parts, _ = without_shared_documents(three_splits({"train": documents}))
    return parts


def without_shared_documents(
    parts: Mapping[SplitName, list[Document]],
) -> tuple[dict[SplitName, list[Document]], dict[SplitName, int]]:
    """Remove documents that are in more than one part; return the parts and the numbers removed.

    Documents are compared by their key and by their text. The test part keeps all of its documents.
    """
    earlier: set[str] = set()
    kept: dict[SplitName, list[Document]] = {}
    dropped: dict[SplitName, int] = {}
    for name in ("test", "validation", "train"):
        documents = parts[name]
        kept[name] = [d for d in documents if d.key not in earlier and _text_key(d) not in earlier]
        dropped[name] = len(documents) - len(kept[name])
        earlier.update(x for d in documents for x in (d.key, _text_key(d)))
    return {name: kept[name] for name in parts}, dropped


def _split_off(documents: list[Document], of: int) -> tuple[list[Document], list[Document]]:
    """Return the remaining documents, and one in `of` of them, at least one."""
    ordered = sorted(documents, key=lambda d: text_hash(d.key))
    cut = max(1, len(documents) // of)
    selected = {d.key for d in ordered[:cut]}
    return [d for d in documents if d.key not in selected], [d for d in documents if d.key in selected]


def text_hash(text: str) -> str:
    """Return a short hash of a text, the same on every machine."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _text_key(document: Document) -> str:
    # white space may differ between copies of a text
    return "text " + text_hash(" ".join(document.text.split()))


def join_with_ranges(parts: Sequence[str], separator: str) -> tuple[str, list[tuple[int, int]]]:
    """Return parts as one text, and the character range of each."""
    ranges, position = [], 0
    for part in parts:
        ranges.append((position, position + len(part)))
        position += len(part) + len(separator)
    return separator.join(parts), ranges
