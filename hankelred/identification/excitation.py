"""What the inputs of a record determine: how many directions they excite, where, and whether independently.

A model of order n is determined if 2 n + 1 delayed copies of every input are independent of each other (the
input is persistently exciting of this order), and of those of the other inputs. See Söderström and Stoica,
System Identification, 1989, chapter 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla
import scipy.signal

from .._util.arrays import Array

#: Singular values of delayed inputs below this share of the largest are rounding.
_EXCITED = 1e-9
#: Delayed inputs are dependent where one minus their largest canonical correlation is below this: the others
#: then leave a hundredth of one of them.
_INDEPENDENT = 1e-4
#: Power below this share of the largest is not excited; the window whose side lobes are below it.
_POWER, _WINDOW = 1e-16, ("kaiser", 25.0)
#: Frequencies for each one of the Fourier transform, and how many of the latter there are between the peak of
#: this window's spectrum and that power, on either side.
_FINER, _HALF_WIDTH = 8, 8
#: Most terms of a dependence that are written out, and the size of those left out, relative to the largest.
_MOST_TERMS, _SMALL_TERM = 6, 1e-3


def excited_directions(us: Sequence[Array], count: int, *, offsets: bool) -> list[tuple[int, int]]:
    """Return for every input how many of `count` delayed copies of it are independent, and `count`.

    The count is limited by the lengths of the records. With `offsets` the level of the input counts nothing.
    """
    out = []
    for copies in _delayed(us, _fitting(us, count, 2), offsets):
        sizes = np.linalg.svd(copies, compute_uv=False)
        out.append((int(np.count_nonzero(sizes > _EXCITED * sizes[0])), copies.shape[1]))
    return out


def excited_frequencies(us: Sequence[Array], channel: int, *, offsets: bool) -> list[tuple[float, float]]:
    """Return the bands, in radians per sample, in which an input has power; a line has two equal ends.

    Empty if it has power at all frequencies. Lines nearer to each other than about 120 divided by the
    number of samples are one. With `offsets` a line at zero, the level, is left out.
    """
    longest = max((u[channel] for u in us), key=len)
    w, power = scipy.signal.periodogram(
        longest, 2 * np.pi, _WINDOW, nfft=_FINER * longest.size, detrend=False, return_onesided=False
    )
    order = np.argsort(w)
    w, power = w[order], power[order]
    if not np.iscomplexobj(longest):
        w, power = np.abs(w[w <= 0])[::-1], power[w <= 0][::-1]  # with an even number, -pi and not pi
    above = np.flatnonzero(power > _POWER * power.max())
    lobe = _HALF_WIDTH * _FINER
    bands = []
    for run in np.split(above, np.flatnonzero(np.diff(above) > lobe / 4) + 1):
        # half a lobe at an end of the axis belongs to a line there
        low = run[0] + lobe if run[0] else 0
        high = run[-1] - lobe if run[-1] < w.size - 1 else w.size - 1
        if high - low < 2 * _FINER or run[-1] - run[0] <= lobe + 2 * _FINER:
            low = high = run[power[run].argmax()]
        bands.append((float(w[low]), float(w[high])))
    if bands == [(float(w[0]), float(w[-1]))]:
        return []
    return [band for band in bands if not offsets or band != (0.0, 0.0)]


@dataclass(frozen=True)
class Dependence:
    """A linear relation between delayed inputs that holds over a whole record.

    Attributes
    ----------
    channels : tuple of int
        The inputs in it.
    terms : tuple of (float, int, int)
        Factors, inputs and delays whose sum vanishes, the first with factor 1; empty if there are too many.
    rest : float
        Size of the sum, as a share of the first input in it.
    """

    channels: tuple[int, ...]
    terms: tuple[tuple[float, int, int], ...]
    rest: float


def dependence(us: Sequence[Array], count: int, *, offsets: bool) -> Dependence | None:
    """Return how up to `count` delayed copies of the inputs depend on those of other inputs, None if not.

    Copies of one input may depend on each other, see :func:`excited_directions`. The shortest relation is
    returned.
    """
    m = us[0].shape[0]
    copies = _delayed(us, _fitting(us, count, 4 * m), offsets)
    if m == 1 or _weakest(copies)[0] > _INDEPENDENT:
        return None
    # the shortest relation is unique up to its size, longer ones are sums of its delayed copies
    for rows in range(1, copies[0].shape[1] + 1):
        shortest = [one[:, :rows] for one in copies]
        left, factors = _weakest(shortest)
        if left <= _INDEPENDENT:
            break
    sizes = np.abs(factors) * np.linalg.norm(shortest, axis=1)  # one row per input, its delays from 0
    first = np.unravel_index(int(np.argmax(sizes)), sizes.shape)
    present = sizes > _SMALL_TERM * sizes[first]
    places = sorted(np.argwhere(present).tolist(), key=lambda place: place != [int(i) for i in first])
    terms = tuple((float(np.real(factors[j, k] / factors[first])), j, k) for j, k in places)
    rest = sum(one @ row for one, row in zip(shortest, factors, strict=True))
    return Dependence(
        tuple(np.flatnonzero(present.any(axis=1)).tolist()),
        terms if len(terms) <= _MOST_TERMS else (),
        float(np.linalg.norm(rest) / sizes[first]),
    )


def _weakest(copies: Sequence[Array]) -> tuple[float, Array]:
    """Return how independent the delayed inputs are, and the direction in which they are least so: (m, rows).

    With two inputs the first is one minus the largest canonical correlation between their copies.
    """
    bases, maps = [], []
    for one in copies:
        left, sizes, right = np.linalg.svd(one, full_matrices=False)
        kept = sizes > _EXCITED * sizes[0]
        bases.append(left[:, kept])
        maps.append(right[kept].conj().T / sizes[kept])
    _, sizes, right = np.linalg.svd(np.concatenate(bases, axis=1), full_matrices=False)
    parts = np.split(right[-1].conj(), np.cumsum([basis.shape[1] for basis in bases])[:-1])
    return float(sizes[-1] ** 2), np.array([one @ part for one, part in zip(maps, parts, strict=True)])


def _fitting(us: Sequence[Array], count: int, samples_per_copy: int) -> int:
    """Return the number of delayed copies, up to `count`, that the records are long enough for."""
    return max(1, min(count, max(u.shape[1] for u in us) // samples_per_copy))


def _delayed(us: Sequence[Array], rows: int, offsets: bool) -> list[Array]:
    """Return for every input its copies delayed by 0 to rows - 1 samples, as columns.

    All are multiplied by the same orthogonal matrix, which leaves as many rows as columns.
    """
    blocks = [
        np.concatenate([np.lib.stride_tricks.sliding_window_view(row, rows)[:, ::-1] for row in u], axis=1)
        for u in us
        if u.shape[1] >= 2 * rows
    ]
    columns = np.concatenate(blocks)
    if offsets:
        columns = columns - columns.mean(axis=0)
    (triangle,) = sla.qr(columns, mode="r", check_finite=False)
    return np.split(triangle[: columns.shape[1]], us[0].shape[0], axis=1)
