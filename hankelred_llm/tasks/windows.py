"""Windows of long sequences, for language modeling, and their scores in bits a symbol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Scores, Split, checked_array

#: Training rows where no size is given.
DEFAULT_SIZE = 1024


def random_windows(sizes: Sequence[int], length: int, size: int, seed: int) -> list[tuple[int, int]]:
    """Return (sequence, start) of windows of sequences of these sizes, every start as likely as any other."""
    starts = np.array([max(1, whole - length + 1) for whole in sizes])
    ends = np.cumsum(starts)
    drawn = np.random.default_rng([seed, length]).integers(0, ends[-1], size)
    which = np.searchsorted(ends, drawn, side="right")
    return list(zip(which.tolist(), (drawn - ends[which] + starts[which]).tolist(), strict=True))


def evenly_spread(windows: list[tuple[int, int]], size: int | None) -> list[tuple[int, int]]:
    """Return at most so many of the windows, so that a part of the split resembles the whole."""
    if size is None or size >= len(windows):
        return windows
    return [windows[i * len(windows) // size] for i in range(size)]


def score_bits(metric: str, split: Split, predictions: Sequence[Any]) -> Scores:
    """Return the bits a scored symbol of each row, from negative log-likelihoods of whole rows in nats."""
    bits, weights, units, documents = [], [], [], []
    for row, (e, nats) in enumerate(zip(split, predictions, strict=True)):
        count = len(e.scored)
        bits.append(checked_array(nats, 1, row)[0] / math.log(2) / count)
        weights.append(count)
        units.append(e.unit)
        documents.append(e.document)
    return Scores({metric: np.array(bits)}, np.array(weights, float), tuple(units), tuple(documents))
