"""Language modeling of bytes: windows of streams, scored in bits per byte."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from .base import Example, Scores, Split, SplitName, Task
from .byte_tokens import IGNORED, ByteTokenizer, IntArray
from .synthetic_task import checked_count
from .windows import DEFAULT_SIZE, evenly_spread, random_windows, score_bits

#: What is read of one split: names and bytes of pieces that are modelled one by one.
Streams = Sequence[tuple[str, bytes]]


class ByteTask(Task):
    """A task that predicts every byte of its data from those before it in the same window.

    A window begins with the id of the beginning, so that its first byte is scored too. Training windows lie
    anywhere in the training streams; those of the other splits follow each other and hold every byte once.
    A subclass writes `streams`.
    """

    prediction_kind = "bits"
    metric = "bits_per_byte"
    higher_is_better = False
    vocab_size = ByteTokenizer.vocab_size
    pad_token_id = ByteTokenizer.pad_token_id

    def __init__(self) -> None:
        super().__init__()
        self._streams: Mapping[SplitName, Streams] | None = None

    @abstractmethod
    def streams(self) -> Mapping[SplitName, Streams]:
        """Return the streams of the three splits, none of them empty; read once."""

    def baselines(self, split: Split) -> Mapping[str, dict[str, float]]:
        """Return the bits of equal probabilities (chance), and of training frequencies.

        "constant" gives every byte its frequency in the training split whatever came before, "previous_byte"
        its frequency after the byte before; both count every pair of bytes once more than it was seen.
        """
        joint = np.ones((256, 256))
        for _, data in self._stored()["train"]:
            text = np.frombuffer(data, dtype=np.uint8)
            np.add.at(joint, (text[:-1], text[1:]), 1)
        alone = joint.sum(axis=0)
        bits_alone = -np.log2(alone / alone.sum())
        bits_after = -np.log2(joint / joint.sum(axis=1, keepdims=True))
        constant, after, count = 0.0, 0.0, 0
        for e in split:
            targets_of_row = e.targets
            count += len(targets_of_row)
            constant += float(bits_alone[targets_of_row].sum())
            after += float(
                bits_alone[targets_of_row[0]] + bits_after[targets_of_row[:-1], targets_of_row[1:]].sum()
            )
        return {
            "chance": {self.metric: 8.0},
            "constant": {self.metric: constant / count},
            "previous_byte": {self.metric: after / count},
        }

    def _stored(self) -> Mapping[SplitName, Streams]:
        if self._streams is None:
            self._streams = self.streams()
        return self._streams

    def _split(self, name: SplitName, length: int, size: int | None, seed: int) -> Split:
        streams = self._stored()[name]
        if name == "train":
            seed = checked_count("seed", seed, least=0)
            sizes = [len(data) for _, data in streams]
            windows = random_windows(sizes, length, size or DEFAULT_SIZE, seed)
        else:
            windows = [
                (i, start) for i, (_, data) in enumerate(streams) for start in range(0, len(data), length)
            ]
            windows = evenly_spread(windows, size)
        return Split(partial(_window, streams, windows, length), len(windows), name=name, length=length)

    def _score(self, split: Split, predictions: Sequence[Any]) -> Scores:
        return score_bits(self.metric, split, predictions)


def _window(streams: Streams, windows: Sequence[tuple[int, int]], length: int, i: int) -> Example:
    stream, start = windows[i]
    key, data = streams[stream]
    text = np.frombuffer(data[start : start + length], dtype=np.uint8).astype(np.int64)
    ids: IntArray = np.concatenate([[ByteTokenizer.bos_token_id], text])
    labels: IntArray = np.concatenate([[IGNORED], text])
    return Example(ids, labels, len(ids), f"{key} from {start}", key)


def ranges(pieces: Sequence[bytes], held_out: float) -> tuple[bytes, bytes, bytes]:
    """Cut a row of documents into training, validation and test ranges, the last two of a share each."""
    ends = np.cumsum([len(p) for p in pieces])
    total = ends[-1]
    first = int(np.searchsorted(ends, (1 - 2 * held_out) * total, side="left")) + 1
    second = int(np.searchsorted(ends, (1 - held_out) * total, side="left")) + 1
    first = min(first, len(pieces) - 2)
    second = min(max(second, first + 1), len(pieces) - 1)
    cuts = pairwise([0, first, second, len(pieces)])
    train, validation, test = (b"".join(pieces[a:b]) for a, b in cuts)
    return train, validation, test
