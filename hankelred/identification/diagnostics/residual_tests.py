"""Tests of the residuals of a model: whether they are white, and independent of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc, ndtr, ndtri

from ..._util.arrays import Array

#: Most lags of a correlation, and the least number of samples for each.
_MOST_LAGS, _SAMPLES_PER_LAG = 25, 4


@dataclass(frozen=True, eq=False)
class ResidualTest:
    """Tests of the residuals of a model: what it leaves out, and what the noise is like.

    Attributes
    ----------
    whiteness : ndarray, shape (p,)
        Probability that white residuals would be as correlated in time as these (Ljung and Box). Small: the
        disturbance is colored, which a model of the simulated output need not describe.
    independence : ndarray, shape (p, m)
        Probability that residuals independent of the past inputs would be as correlated with them. Small: the
        model leaves a part of the response out; try a larger order.
    feedback : ndarray, shape (p, m)
        The same for future inputs. Small, with a large `independence`: the input depends on the output, as in
        a closed loop.
    autocorrelation : ndarray, shape (p, lags + 1)
    cross_correlation : ndarray, shape (p, m, 2 lags + 1)
        Of the residual with the input `lag` samples before, from -lags to lags.
    bound : ndarray, shape (p, m)
        99 % bound of a cross-correlation.
    autocorrelation_bound : float
        99 % bound of the autocorrelation of white residuals.
    """

    whiteness: Array
    independence: Array
    feedback: Array
    autocorrelation: Array
    cross_correlation: Array
    bound: Array
    autocorrelation_bound: float


def residual_test(errors: Sequence[Array], us: Sequence[Array]) -> ResidualTest:
    """Test residuals (p, T) of records against their inputs (m, T); see Ljung (1999), section 16.6."""
    p, m = errors[0].shape[0], us[0].shape[0]
    shortest, N = min(e.shape[1] for e in errors), sum(e.shape[1] for e in errors)
    lags = max(1, min(_MOST_LAGS, shortest // _SAMPLES_PER_LAG))
    errors, us = standardized(errors), standardized(us)
    auto = np.array([[_correlation(errors, errors, i, i, k) for k in range(lags + 1)] for i in range(p)]) / N
    inputs = np.array([[_correlation(us, us, j, j, k) for k in range(lags + 1)] for j in range(m)]) / N
    cross = (
        np.array(
            [
                [[_correlation(errors, us, i, j, k) for k in range(-lags, lags + 1)] for j in range(m)]
                for i in range(p)
            ]
        )
        / N
    )
    taken = np.arange(1, lags + 1)
    statistic = N * (N + 2) * np.sum(auto[:, 1:] ** 2 / (N - taken), axis=1)
    # the variance of a cross-correlation of independent signals, by Bartlett's formula
    variance = np.maximum(1 + 2 * auto[:, 1:] @ inputs[:, 1:].T, 0.1)
    scores = np.abs(cross) * np.sqrt(N) / np.sqrt(variance)[..., None]

    def probability(largest: Array) -> Array:
        return np.asarray(np.minimum(1.0, lags * 2 * ndtr(-largest)))

    return ResidualTest(
        whiteness=np.asarray(chdtrc(lags, statistic)),
        independence=probability(scores[..., lags:].max(axis=2)),
        feedback=probability(scores[..., :lags].max(axis=2)),
        autocorrelation=auto,
        cross_correlation=cross,
        bound=-ndtri(0.005) * np.sqrt(variance / N),
        autocorrelation_bound=float(-ndtri(0.005) / np.sqrt(N)),
    )


def standardized(records: Sequence[Array]) -> list[Array]:
    """Return the records with each channel of mean zero and variance one over all of them."""
    joined = np.concatenate(records, axis=1)
    mean, size = joined.mean(axis=1, keepdims=True), joined.std(axis=1, keepdims=True)
    size[size == 0] = 1.0
    return [(x - mean) / size for x in records]


def _correlation(first: Sequence[Array], second: Sequence[Array], i: int, j: int, lag: int) -> float:
    """Sum first[i][k] second[j][k - lag] over records."""
    total = 0.0
    for x, y in zip(first, second, strict=True):
        T = x.shape[1]
        total += float(x[i, max(lag, 0) : T + min(lag, 0)] @ y[j, max(-lag, 0) : T - max(lag, 0)])
    return total
