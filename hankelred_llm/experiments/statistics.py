"""Paired differences of two methods on the same rows, with what is known about their size."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95

#: No difference is clear with fewer seeds: the differences of two seeds may be equal by chance, and their
#: interval then has width zero.
FEWEST_SEEDS = 3

#: Documents are resampled whole where there are at least so many; else units one by one.
FEWEST_DOCUMENTS = 10

#: What scipy calls the argument for random numbers: from 1.15 on it has another name.
_GENERATOR = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A method minus another one.

    Attributes
    ----------
    mean : float
        Of the weighted means over units, over seeds.
    over_seeds : (float, float) or None
        Interval of Student's t, from the differences of each seed: would another training say the same? None
        with one seed.
    over_units : (float, float)
        Interval of a bootstrap over units, or documents, of differences averaged over seeds: would other
        questions say the same?
    resampled : str
        "documents" or "units".
    seeds : int
    """

    mean: float
    over_seeds: tuple[float, float] | None
    over_units: tuple[float, float]
    resampled: str
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether there are at least three seeds and both intervals leave out zero, on the same side."""
        if self.over_seeds is None or self.seeds < FEWEST_SEEDS:
            return False
        ends = [*self.over_seeds, *self.over_units]
        return min(ends) > 0 or max(ends) < 0


def paired_difference(
    method: FloatArray, reference: FloatArray, weights: FloatArray, documents: Sequence[str]
) -> Difference:
    """Compare a method with a reference, trained from the same seeds and tested on the same units.

    Parameters
    ----------
    method, reference : ndarray, shape (seeds, units)
        Values of one metric.
    weights : ndarray, shape (units,)
        Weight of each unit in the mean.
    documents : sequence of str
        Document of each unit; units of one document are not independent.

    Returns
    -------
    Difference

    Examples
    --------
    >>> import numpy as np
    >>> from hankelred_llm.experiments.statistics import paired_difference
    >>> rng = np.random.default_rng(0)
    >>> base = rng.uniform(size=(3, 100))
    >>> better = base + 0.1 + 0.01 * rng.standard_normal((3, 100))
    >>> difference = paired_difference(better, base, np.ones(100), [str(i) for i in range(100)])
    >>> round(difference.mean, 2), difference.clear
    (0.1, True)
    """
    differences = method - reference
    by_seed = differences @ weights / weights.sum()
    over_seeds = None
    if len(by_seed) > 1:
        spread = stats.sem(by_seed)
        half = float(spread * stats.t.ppf((1 + CONFIDENCE) / 2, len(by_seed) - 1))
        over_seeds = float(by_seed.mean()) - half, float(by_seed.mean()) + half
    names, group = np.unique(np.asarray(documents), return_inverse=True)
    resampled = "documents"
    if len(names) < FEWEST_DOCUMENTS:
        group, resampled = np.arange(len(weights)), "units"
    total = np.bincount(group, weights=weights * differences.mean(axis=0)).astype(np.float64)
    weight = np.bincount(group, weights=weights).astype(np.float64)
    over_units = _bootstrap(total, weight)
    return Difference(float(by_seed.mean()), over_seeds, over_units, resampled, len(by_seed))


def _bootstrap(total: FloatArray, weight: FloatArray) -> tuple[float, float]:
    if len(total) < 2 or np.allclose(total / weight, total.sum() / weight.sum(), rtol=0, atol=1e-15):
        value = float(total.sum() / weight.sum())
        return value, value
    interval = stats.bootstrap(
        (total, weight),
        lambda t, w, axis: t.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        confidence_level=CONFIDENCE,
        method="percentile",
        **{_GENERATOR: np.random.default_rng(0)},
    ).confidence_interval
    return float(interval.low), float(interval.high)
