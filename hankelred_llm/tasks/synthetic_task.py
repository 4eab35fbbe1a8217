"""Tasks made by a formula: rows drawn from a seed, splits that share no row, accuracy at scored positions."""

from __future__ import annotations

import hashlib
import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from hankelred.errors import short_repr

from .base import Example, Scores, Split, SplitName, Task, checked_array
from .byte_tokens import IGNORED, ByteTokenizer, IntArray, codes
from .errors import TaskError

#: A row belongs to the split that its hash names, so that no row is in two splits however short it is.
SPLIT_OF_HASH: tuple[SplitName, ...] = ("train", "train", "validation", "test")
DEFAULT_SIZE: dict[SplitName, int] = {"train": 1024, "validation": 256, "test": 512}
MAX_ROUNDS = 50
#: In a split, which is drawn as a whole: 2 GB of them.
MAX_SYMBOLS = 2**30


class SyntheticTask(Task):
    """A task whose rows are drawn; symbols are ASCII bytes, the vocabulary that of `ByteTokenizer`.

    A subclass says what can be an answer and writes `draw`.

    Parameters
    ----------
    seed : int
        Draws what is fixed in the task and, with the name of the split, its rows.
    """

    source: ClassVar[str] = "drawn from a seed"
    license: ClassVar[str] = "none needed"
    answers: str
    prediction_kind = "tokens"
    metric = "accuracy"
    vocab_size = ByteTokenizer.vocab_size
    pad_token_id = ByteTokenizer.pad_token_id

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.seed = checked_count("seed", seed, least=0)

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int, length: int) -> tuple[IntArray, IntArray]:
        """Return `size` rows of ids and their labels, in the convention of `Example`."""

    def baselines(self, split: Split) -> Mapping[str, dict[str, float]]:
        """Return the baselines: chance, the best constant, and the best guess from the last symbol.

        The last two are counted on the split itself, so that no constant and no guess does better there.
        """
        before, after = [], []
        for e in split:
            before.append(e.input_ids[e.scored])
            after.append(e.targets)
        counts = np.zeros((self.vocab_size, self.vocab_size))
        np.add.at(counts, (np.concatenate(before), np.concatenate(after)), 1)
        return {
            "chance": {"accuracy": 1 / len(self.answers)},
            "constant": {"accuracy": float(counts.sum(axis=0).max() / counts.sum())},
            "last_symbol": {"accuracy": float(counts.max(axis=1).sum() / counts.sum())},
        }

    def _score(self, split: Split, predictions: Sequence[Any]) -> Scores:
        return token_accuracy(split, predictions)

    def _split(self, name: SplitName, length: int, size: int | None, seed: int) -> Split:
        ids, labels = self._rows(name, length, size or DEFAULT_SIZE[name], seed)
        make = partial(synthetic_example, ids, labels, name)
        return Split(make, len(ids), name=name, length=length)

    def _rows(self, name: SplitName, length: int, size: int, seed: int) -> tuple[IntArray, IntArray]:
        if size * length > MAX_SYMBOLS:
            raise TaskError(
                f"task {self.name}: {size} rows of length {length} are more than {MAX_SYMBOLS} symbols, "
                "which are drawn at once; give a smaller length, or fewer rows or steps"
            )
        rng = generator_of(self.seed, name, length, seed)
        kept: list[tuple[IntArray, IntArray]] = []
        missing = size
        for _ in range(MAX_ROUNDS):
            ids, labels = self.draw(rng, max(64, 2 * missing), length)
            # the vocabulary fits in 16 bits; a long training stream is large
            ids, labels = ids.astype(np.int16), labels.astype(np.int16)
            chosen = np.flatnonzero([split_of(row) == name for row in ids])[:missing]
            kept.append((ids[chosen], labels[chosen]))
            missing -= len(chosen)
            if missing == 0:
                return np.concatenate([k[0] for k in kept]), np.concatenate([k[1] for k in kept])
        raise TaskError(
            f"length {length} gives task {self.name} too few different rows to fill the {name} split without "
            "sharing rows with the others; take a larger length"
        )


def generator_of(task_seed: int, name: SplitName, length: int, seed: int) -> np.random.Generator:
    """Return the generator that draws the rows of a split."""
    stream = [task_seed, zlib.crc32(name.encode()), checked_count("seed", seed, least=0), length]
    return np.random.default_rng(stream)


def split_of(row: IntArray) -> SplitName:
    """Return the split that a row belongs to."""
    # not a checksum such as CRC: it is linear over the bits, and so is parity
    return SPLIT_OF_HASH[hashlib.blake2b(row.tobytes(), digest_size=1).digest()[0] % len(SPLIT_OF_HASH)]


def synthetic_example(ids: IntArray, labels: IntArray, name: str, i: int) -> Example:
    """Return row i; it is its own unit and document."""
    key = f"{name} {i}"
    return Example(ids[i].astype(np.int64), labels[i].astype(np.int64), ids.shape[1], key, key)


def after_each(symbols: IntArray, targets: IntArray) -> tuple[IntArray, IntArray]:
    """Return ids and labels of rows where ``targets[:, t]`` is scored once ``symbols[:, t]`` was read.

    The end token follows the symbols, so that the logits at the last symbol have a label to be scored with.
    """
    column = np.full((len(symbols), 1), ByteTokenizer.eos_token_id)
    return np.hstack([symbols, column]), np.hstack([np.full_like(column, IGNORED), targets])


def token_accuracy(split: Split, predictions: Sequence[Any]) -> Scores:
    """Score ids against the targets of each row; rows weigh by the tokens scored."""
    share, weights, units, documents = [], [], [], []
    for row, (e, prediction) in enumerate(zip(split, predictions, strict=True)):
        targets = e.targets
        share.append(float(np.mean(checked_array(prediction, targets.size, row) == targets)))
        weights.append(targets.size)
        units.append(e.unit)
        documents.append(e.document)
    return Scores({"accuracy": np.array(share)}, np.array(weights, float), tuple(units), tuple(documents))


def checked_count(name: str, value: Any, *, least: int, most: int | None = None) -> int:
    """Return an option that is a whole number in a range."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise TaskError(f"{name} is {short_repr(value)}; give a whole number of at least {least}{upper}")
    return int(value)


def needs_length(name: str, length: int, least: int, *, even: bool = False) -> None:
    """Refuse a length at which no position would be scored."""
    if length < least or (even and length % 2):
        kind = "an even length" if even else "a length"
        raise TaskError(f"task {name} needs {kind} of at least {least}, not {length}")


__all__ = ["SyntheticTask", "after_each", "checked_count", "codes", "needs_length"]
