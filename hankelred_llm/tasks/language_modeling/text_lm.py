"""Language modeling of long texts with any tokenizer.

Rows are windows within one document, all of the same number of tokens, so that the losses of a position can
be averaged over rows: `hankelred_llm.experiments.evaluate.position_losses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ..base import Example, PredictionKind, Scores, Split, SplitName
from ..byte_tokens import IGNORED, IntArray, Tokenizer
from ..document_task import split_folder
from ..errors import TaskDataError, TaskError
from ..synthetic_task import checked_count
from ..text_task import TextTask
from ..windows import DEFAULT_SIZE, evenly_spread, random_windows, score_bits
from .byte_lm import ByteLM

#: The name and the tokens of each document.
Documents: TypeAlias = Sequence[tuple[str, IntArray]]


class TextLM(TextTask):
    """Every token of a text from those before it in the row; the first one of a row is not scored.

    Training rows lie anywhere in the training documents; those of the other splits follow each other. What is
    left at the end of a document, or a document shorter than a row, is in no row.

    Parameters
    ----------
    text : path or str
        A folder of .txt files, of which no two splits share one; or a text file, the first 90 % of which are
        for training and the rest, in halves, for validation and test, cut at blank lines.
    tokenizer : object, optional
        As in every task of texts.
    """

    name = "text_lm"
    summary = "every token of a long text from those before it"
    source: ClassVar[str] = "a text of yours"
    license: ClassVar[str] = "that of the text"
    prediction_kind: PredictionKind = "bits"
    metric = "bits_per_token"
    higher_is_better = False

    def __init__(self, *, text: str | PathLike[str], tokenizer: Tokenizer | None = None) -> None:
        super().__init__(tokenizer=tokenizer)
        self.text = Path(text)
        self._documents: dict[SplitName, Documents] | None = None

    def baselines(self, split: Split) -> Mapping[str, dict[str, float]]:
        """Return the bits of training frequencies: each token's, whatever came before ("constant").

        Every token of the split is counted once more than it was seen in training.
        """
        seen = np.concatenate([ids for _, ids in self._tokenized()["train"]])
        targets = np.concatenate([e.targets for e in split])
        counts = np.bincount(seen, minlength=int(targets.max()) + 1).astype(float)
        counts[np.unique(targets)] += 1
        bits = -np.log2(counts[targets] / counts.sum())
        return {"constant": {self.metric: float(bits.mean())}}

    def _tokenized(self) -> dict[SplitName, Documents]:
        if self._documents is None:
            self._documents = {
                name: [(key, self._encode(text)) for key, text in texts]
                for name, texts in self._texts().items()
            }
        return self._documents

    def _texts(self) -> dict[SplitName, list[tuple[str, str]]]:
        """Return the name and the text of the documents of the three splits."""
        if self.text.is_dir():
            return {name: [(d.key, d.text) for d in of] for name, of in split_folder(self.text).items()}
        streams = ByteLM(path=self.text).streams()
        try:
            return {name: [(key, data.decode()) for key, data in of] for name, of in streams.items()}
        except UnicodeDecodeError as error:
            raise TaskDataError(
                self.text, None, f"is no UTF-8 ({error.reason})", "save it as UTF-8"
            ) from None

    def _split(self, name: SplitName, length: int, size: int | None, seed: int) -> Split:
        if length < 2:
            raise TaskError(
                f"length {length} is too short for task {self.name}, which scores every token after the "
                "first; give at least 2"
            )
        documents = [(key, ids) for key, ids in self._tokenized()[name] if len(ids) >= length]
        if not documents:
            longest = max(len(ids) for _, ids in self._tokenized()[name])
            raise TaskDataError(
                self.text,
                None,
                f"has no document of {length} tokens in the {name} split; the longest has {longest}",
                "give longer documents, or a smaller length",
            )
        sizes = [len(ids) for _, ids in documents]
        if name == "train":
            seed = checked_count("seed", seed, least=0)
            windows = random_windows(sizes, length, size or DEFAULT_SIZE, seed)
        else:
            windows = [
                (i, start) for i, whole in enumerate(sizes) for start in range(0, whole - length + 1, length)
            ]
            windows = evenly_spread(windows, size)
        return Split(partial(_row, documents, windows, length), len(windows), name=name, length=length)

    def _score(self, split: Split, predictions: Sequence[Any]) -> Scores:
        return score_bits(self.metric, split, predictions)


def _row(documents: Documents, windows: Sequence[tuple[int, int]], length: int, i: int) -> Example:
    which, start = windows[i]
    key, tokens = documents[which]
    ids = tokens[start : start + length]
    labels = ids.copy()
    labels[0] = IGNORED
    return Example(ids, labels, len(ids), f"{key} from token {start}", key)


TASK = TextLM
