"""Linear relations between the inputs of a record, such as a delay: their responses cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import Array

#: Singular values of delayed copies of one input below this share of the largest are rounding.
_ROUNDING = 1e-9
#: A relation holds if its sum is below this share of the inputs in it.
_RELATED = 1e-5
#: Terms below this share of the largest are rounding.
_SMALL_TERM = 1e-8


@dataclass(frozen=True)
class Dependence:
    """A linear relation between delayed inputs that holds over all records.

    Attributes
    ----------
    channels : tuple of int
        The inputs in it, at least two.
    terms : tuple of (float, int, int)
        Factors, inputs and delays in samples whose sum is constant. The first factor is 1. Empty if there are
        several relations as short as this one.
    """

    channels: tuple[int, ...]
    terms: tuple[tuple[float, int, int], ...]


def dependence(us: Sequence[Array], copies: int, *, offsets: bool) -> Dependence | None:
    """Return the shortest relation between inputs delayed by less than `copies` samples, or None.

    With `offsets` the sum may be any constant, else it is zero. Relations within one input do not count.
    """
    lengths = [u.shape[1] for u in us]
    m = us[0].shape[0]
    if m == 1:
        return None
    while copies > 1 and sum(max(length - copies + 1, 0) for length in lengths) < 2 * m * copies:
        copies -= 1
    delayed = _delayed(us, copies, offsets)
    if _weakest(delayed)[0][-1] > _RELATED:
        return None
    # a relation that is the shortest is unique up to a factor; longer ones are sums of its delayed copies
    for rows in range(1, copies + 1):
        shortest = [one[:, :rows] for one in delayed]
        sizes, factors = _weakest(shortest)
        if sizes[-1] <= _RELATED:
            break
    shares = np.abs(factors) * np.linalg.norm(shortest, axis=1)  # one row per input, its delays from 0
    # of terms that are as large as the largest, the last input undelayed
    largest = [tuple(place) for place in np.argwhere(shares > 0.99 * shares.max()).tolist()]
    first = max(largest, key=lambda place: (place[0], -place[1]))
    present = shares > _SMALL_TERM * shares[first]
    channels = np.flatnonzero(present.any(axis=1)).tolist()
    if len(channels) < 2:
        return None
    if sizes.size > 1 and sizes[-2] <= _RELATED:
        return Dependence(tuple(channels), ())
    places = sorted(map(tuple, np.argwhere(present).tolist()), key=lambda place: place != first)
    return Dependence(
        tuple(channels), tuple((float(factors[j, k] / factors[first]), j, k) for j, k in places)
    )


def _weakest(delayed: Sequence[Array]) -> tuple[Array, Array]:
    """Return the sizes of combinations of the delayed inputs, and the factors (m, rows) of the smallest.

    The copies of every input are first made orthogonal, so that those of a slow input are not related.
    """
    bases, maps = [], []
    for one in delayed:
        left, sizes, right = np.linalg.svd(one, full_matrices=False)
        kept = sizes > _ROUNDING * sizes[0]
        bases.append(left[:, kept])
        maps.append(right[kept].T / sizes[kept])
    _, sizes, right = np.linalg.svd(np.concatenate(bases, axis=1), full_matrices=False)
    if not sizes.size:
        return np.array([np.inf]), np.zeros((len(delayed), delayed[0].shape[1]))
    parts = np.split(right[-1], np.cumsum([basis.shape[1] for basis in bases])[:-1])
    return sizes, np.array([one @ part for one, part in zip(maps, parts, strict=True)])


def _delayed(us: Sequence[Array], copies: int, offsets: bool) -> list[Array]:
    """Return for every input its copies delayed by 0 to copies - 1 samples, as columns.

    All are multiplied by the same orthogonal matrix, which leaves as many rows as columns.
    """
    columns = np.concatenate(
        [
            np.concatenate(
                [np.lib.stride_tricks.sliding_window_view(row, copies)[:, ::-1] for row in u], axis=1
            )
            for u in us
            if u.shape[1] >= copies
        ]
    )
    if offsets:
        columns = columns - columns.mean(axis=0)
    (triangle,) = sla.qr(columns, mode="r", check_finite=False)
    return np.split(triangle[: columns.shape[1]], us[0].shape[0], axis=1)
