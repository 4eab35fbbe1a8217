"""The base class of tasks: examples in three splits, a metric, baselines; the test split is read once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from hankelred.errors import short_repr

from .byte_tokens import IGNORED, IntArray
from .errors import SplitReadError, TaskError

FloatArray: TypeAlias = npt.NDArray[np.float64]
SplitName: TypeAlias = Literal["train", "validation", "test"]

#: Kinds of predictions: the likeliest token at every scored position; the negative log-likelihood of the
#: scored tokens; the log-likelihood of each candidate after the prompt, or at every question of the row; a
#: generated text.
PredictionKind: TypeAlias = Literal["tokens", "bits", "options", "choices", "text"]


@dataclass(frozen=True, eq=False)
class Choice:
    """A question within a row, answered by one of several candidates.

    Attributes
    ----------
    position : int
        The candidates are compared after ``input_ids[:position]``; in the row the right one follows.
    candidates : tuple of ndarray
        Their ids; none is the beginning of another.
    answer : int
        Index of the right one.
    """

    position: int
    candidates: tuple[IntArray, ...]
    answer: int


@dataclass(frozen=True, eq=False)
class Example:
    """One row for a model, in the conventions of transformers.

    ``labels[t]`` is the target of the logits at ``t - 1``, as ``model(input_ids, labels=labels)`` shifts them
    itself; -100 is not scored.

    Attributes
    ----------
    input_ids, labels : ndarray of int64, shape (time,)
        The prompt, then the completion that is trained on.
    prompt_length : int
        ``input_ids[:prompt_length]`` is the input for options and for generation.
    unit, document : str
        The unit of scoring (a question, in however many rows) and its document. Splits never share a
        document.
    references : tuple of str
        Right answers, for generated text.
    candidates : tuple of ndarray
        Ids to be compared after the prompt, in an order that is the same in all rows of the unit.
    answer : int
        Index of the right candidate; -1 where there are none.
    choices : tuple of Choice
        The questions of a row that has several, in order.
    cut : int
        Number of tokens of the document that were left out.
    evidence : float or None
        Share of the marked evidence that was kept; None where nothing is marked.
    """

    input_ids: IntArray
    labels: IntArray
    prompt_length: int
    unit: str
    document: str
    references: tuple[str, ...] = ()
    candidates: tuple[IntArray, ...] = ()
    answer: int = -1
    choices: tuple[Choice, ...] = ()
    cut: int = 0
    evidence: float | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def prompt_ids(self) -> IntArray:
        """The input for options and for generation."""
        return self.input_ids[: self.prompt_length]

    @property
    def scored(self) -> IntArray:
        """Positions whose logits are scored."""
        return np.flatnonzero(self.labels[1:] != IGNORED)

    @property
    def targets(self) -> IntArray:
        """The target tokens at `scored`."""
        return self.labels[self.scored + 1]


class Split(Sequence[Example]):
    """Examples in their final order: the same for every method that is trained or tested on them.

    Rows are made on access; documents are tokenized once for all of them. Do not shuffle a
    training split: its order comes from its seed.

    Attributes
    ----------
    name : str
        "train", "validation" or "test".
    length : int
        The requested length, in the unit of the task.
    max_new_tokens : int
        Longest text to be generated; 0 where none is.
    documents_dropped : int
        Documents left out because another split has them.
    """

    def __init__(
        self,
        make: Callable[[int], Example],
        size: int,
        *,
        name: SplitName,
        length: int,
        max_new_tokens: int = 0,
        documents_dropped: int = 0,
    ) -> None:
        self._make = make
        self._size = size
        self.name, self.length = name, length
        self.max_new_tokens, self.documents_dropped = max_new_tokens, documents_dropped

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(self._size)[index]]
        return self._make(range(self._size)[index])

    def __iter__(self) -> Iterator[Example]:
        return (self._make(i) for i in range(self._size))

    @cached_property
    def positions(self) -> int:
        """Number of positions that a model needs: the longest row, or the longest prompt and its answer."""
        return max(max(len(e), e.prompt_length + self.max_new_tokens) for e in self)

    def describe(self) -> dict[str, float | int | str | None]:
        """Return a description to report with every score: sizes, context lengths and truncation.

        Returns
        -------
        dict
            ``split``, ``examples``, ``documents``, ``documents_dropped``, ``length``, ``context_mean`` and
            ``context_max`` (tokens before the answer), ``cut_mean`` (tokens left out of a document),
            ``cut_share`` (rows with a cut), ``evidence_share`` (mean share of marked evidence that was kept)
            and ``evidence_none`` (share of rows of which none was), both None where nothing is marked.
        """
        context, cut, evidence, documents = [], [], [], set()
        for e in self:
            context.append(e.prompt_length)
            cut.append(e.cut)
            documents.add(e.document)
            if e.evidence is not None:
                evidence.append(e.evidence)
        kept = np.array(evidence)
        return {
            "split": self.name,
            "examples": len(self),
            "documents": len(documents),
            "documents_dropped": self.documents_dropped,
            "length": self.length,
            "context_mean": float(np.mean(context)),
            "context_max": int(np.max(context)),
            "cut_mean": float(np.mean(cut)),
            "cut_share": float(np.mean(np.array(cut) > 0)),
            "evidence_share": float(kept.mean()) if kept.size else None,
            "evidence_none": float((kept == 0).mean()) if kept.size else None,
        }


@dataclass(frozen=True, eq=False)
class Scores:
    """Values by unit, so that two methods can be compared unit by unit, and their weighted means.

    Attributes
    ----------
    per_unit : dict of str to ndarray, shape (units,)
        Values of every metric, the first being the task's own.
    weights : ndarray, shape (units,)
        Weight of each unit in the mean: scored tokens, or 1.
    units, documents : tuple of str
        Which unit each value belongs to, and its document.
    """

    per_unit: dict[str, FloatArray]
    weights: FloatArray
    units: tuple[str, ...]
    documents: tuple[str, ...]

    @property
    def means(self) -> dict[str, float]:
        """Weighted mean of every metric."""
        return {name: float(np.average(v, weights=self.weights)) for name, v in self.per_unit.items()}


class Task(ABC):
    """A task: three splits, a metric and trivial baselines. Make one with `get_task`.

    Attributes
    ----------
    name, summary, source, license : str
        For tables.
    prediction_kind : str
        Kind of predictions: "tokens", "bits", "options", "choices" or "text"; see `score`.
    metric : str
        The metric reported first.
    higher_is_better : bool
        Whether it is to be large.
    vocab_size : int or None
        Ids a model must know; None where they are those of a tokenizer that was given.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    license: ClassVar[str]
    prediction_kind: PredictionKind
    metric: str
    higher_is_better: bool = True
    vocab_size: int | None
    pad_token_id: int

    def __init__(self) -> None:
        self._test_reads: list[int] = []

    @property
    def test_reads(self) -> tuple[int, ...]:
        """Lengths at which the test split was read, in order; report them with the results."""
        return tuple(self._test_reads)

    def train(self, length: int, *, size: int | None = None, seed: int = 0) -> Split:
        """Return the training split in the order of a seed.

        Parameters
        ----------
        length : int
            Symbols (synthetic tasks), bytes (language modeling) or tokens of the prompt at most (texts).
        size : int, optional
            Number of rows, steps times batch. Tasks with a fixed set go through it again and again, in a
            new order each time. Default: 1024, or the whole set.
        seed : int
            Draws the rows, or their order.

        Returns
        -------
        Split

        Raises
        ------
        TaskError
            An invalid length or size, or a length that is too short for the question.
        SplitReadError
            The test split has been read.
        """
        self._check_test_unread("train")
        return self._checked("train", length, size, seed)

    def validation(self, length: int, *, size: int | None = None) -> Split:
        """Return the validation split, on which everything is chosen; as `train`, but of a fixed order."""
        self._check_test_unread("validation")
        return self._checked("validation", length, size, 0)

    def test(self, length: int, *, size: int | None = None) -> Split:
        """Return the test split, once for each length, after everything has been chosen.

        Training and validation splits that were made before stay usable; new ones are refused, and so is
        a second reading. Keep the split and give it to every method.

        Parameters
        ----------
        length : int
            As in `train`.
        size : int, optional
            Number of rows at most. Default: 512, or the whole set.

        Returns
        -------
        Split

        Raises
        ------
        SplitReadError
            The test split was read at this length.
        """
        if length in self._test_reads:
            raise SplitReadError(
                f"the test split of {self.name} was read at length {length} before; keep that split and give "
                "it to every method, or make a new task for a new experiment"
            )
        split = self._checked("test", length, size, 0)
        self._test_reads.append(length)
        return split

    def score(self, split: Split, predictions: Sequence[Any]) -> Scores:
        """Score the predictions of a model on a split.

        Parameters
        ----------
        split : Split
            One of this task's.
        predictions : sequence, one entry for each row of the split
            "tokens": ids, the likeliest token at each position of `Example.scored`. "bits": the sum over
            them of the negative log-likelihood of `Example.targets`, in nats. "options": log-likelihoods
            of `Example.candidates` after the prompt. "choices": those of the candidates of each of
            `Example.choices`, one question after the other. "text": what was generated after the prompt.

        Returns
        -------
        Scores

        Raises
        ------
        TaskError
            Not one prediction for each row, or of the wrong shape, or not finite.
        """
        if len(predictions) != len(split):
            raise TaskError(f"{len(predictions)} predictions for {len(split)} rows; give one for each row")
        return self._score(split, predictions)

    @abstractmethod
    def baselines(self, split: Split) -> Mapping[str, dict[str, float]]:
        """Return the metrics of trivial baselines, by name of the baseline."""

    @abstractmethod
    def _split(self, name: SplitName, length: int, size: int | None, seed: int) -> Split:
        """Return a split; the arguments have been checked."""

    @abstractmethod
    def _score(self, split: Split, predictions: Sequence[Any]) -> Scores:
        """Return scores; there is one prediction for each row."""

    def _check_test_unread(self, name: str) -> None:
        if self._test_reads:
            raise SplitReadError(
                f"the {name} split of {self.name} was requested after the test split was read; make it "
                "before, or make a new task for a new experiment"
            )

    def _checked(self, name: SplitName, length: int, size: int | None, seed: int) -> Split:
        for what, value in (("length", length), ("size", 1 if size is None else size)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise TaskError(f"{what} is {short_repr(value)}; give a whole number of at least 1")
        return self._split(name, int(length), size, seed)


def checked_array(prediction: Any, size: int, row: int) -> FloatArray:
    """Return a prediction as floats after checking its size and that it is finite."""
    try:
        values = np.asarray(prediction, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise TaskError(f"prediction of row {row} is no array of numbers: {error}") from None
    if values.size != size:
        raise TaskError(f"prediction of row {row} has {values.size} values, expected {size}")
    if not np.isfinite(values).all():
        raise TaskError(f"prediction of row {row} is not finite; the model diverged")
    return values
