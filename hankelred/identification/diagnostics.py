"""Uncertainty of an identified model: standard errors of its poles, and tests of its residuals.

The residual of the simulated output is usually correlated in time, since disturbances pass through the
process. Its autocorrelation is described by an autoregressive model, and enters the standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla
from scipy.special import chdtrc, ndtr, ndtri

from .._util.arrays import Array
from .output_error import FittedModel, balance_states, local_coordinates, output_derivatives

#: Most lags of a correlation, and the least number of samples for each.
_MOST_LAGS, _SAMPLES_PER_LAG = 25, 4
_MOST_COEFFICIENTS, _SAMPLES_PER_COEFFICIENT = 12, 20
#: Penalty of one parameter in Akaike's criterion, in units of minus twice the logarithm of the likelihood.
AKAIKE_PENALTY = 2.0
#: Singular values of delayed inputs below this share of the largest are rounding.
_EXCITED = 1e-9


def autoregression(
    errors: Sequence[Array], most: int = _MOST_COEFFICIENTS, penalty: float = AKAIKE_PENALTY
) -> Array:
    """Return ``1, a_1, ..., a_q`` of ``e[k] + a_1 e[k-1] + ... = white``.

    The number q minimizes minus twice the logarithm of the likelihood plus `penalty` times q.
    Several arrays are records of the same process; they are not joined.
    """
    shortest = min(e.size for e in errors)
    most = max(0, min(most, shortest // _SAMPLES_PER_COEFFICIENT))
    past = np.concatenate(
        [
            np.stack([e[most - k : e.size - k] for k in range(1, most + 1)], axis=1)
            if most
            else np.zeros((e.size, 0))
            for e in errors
        ]
    )
    present = np.concatenate([e[most:] for e in errors])
    best, best_score = np.ones(1), present.size * math.log(max(float(present @ present), 1e-300))
    for q in range(1, most + 1):
        coefficients = sla.lstsq(past[:, :q], present, check_finite=False)[0]
        error = present - past[:, :q] @ coefficients
        score = present.size * math.log(max(float(error @ error), 1e-300)) + penalty * q
        if score < best_score:
            best, best_score = np.concatenate([[1.0], -coefficients]), score
    return best


def pole_standard_errors(model: FittedModel, us: Sequence[Array], ys: Sequence[Array]) -> tuple[Array, Array]:
    """Return the poles, and the root mean square of the error of each, to first order.

    The covariance of output-error estimates for correlated residuals is ``G^-1 S G^-1`` with the Gram
    matrix G of the derivatives of the output, and S the same weighted with the autocovariance of the
    residuals (Ljung, System Identification, 1999, section 9.4).
    """
    from scipy.signal import lfilter

    model = balance_states(model)
    n = model.order
    offsets = bool(np.any(model.offset))
    directions = local_coordinates(model)
    parts = list(output_derivatives(model, us, ys, offsets, directions))
    p, K = model.C.shape[0], parts[0][0].shape[2]
    gram, weighted = np.zeros((K, K)), np.zeros((K, K))
    for i in range(p):
        a = autoregression([error[i] for _, error in parts])
        white = [lfilter(a, [1.0], error[i]) for _, error in parts]
        count = sum(e.size for e in white)
        variance = sum(float(e @ e) for e in white) / max(count - K / p, 1.0)
        for J, _ in parts:
            gram += J[i].T @ J[i]
            # the transpose of the lower triangular square root of the covariance, which is a filter
            filtered = lfilter([1.0], a, J[i][::-1], axis=0)
            weighted += variance * (filtered.T @ filtered)
    size = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
    inverse = np.linalg.pinv(gram / np.outer(size, size), rcond=1e-13, hermitian=True) / np.outer(size, size)
    covariance = inverse @ weighted @ inverse
    P = directions.shape[1]
    return poles_with_errors(model.A, directions[: n * n].T.reshape(P, n, n), covariance[:P, :P])


def poles_with_errors(A: Array, by_A: Array, covariance: Array) -> tuple[Array, Array]:
    """Return the poles, and the root mean square of the error of each, to first order.

    The derivatives of A (K, n, n) and the covariance (K, K) are those of the parameters.
    """
    poles, left, right = sla.eig(A, left=True, right=True)
    products = np.einsum("ik,jil,lk->kj", left.conj(), by_A, right)
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = products / np.einsum("ik,ik->k", left.conj(), right)[:, None]
        variances = np.einsum("kj,jl,kl->k", slopes.conj(), covariance, slopes).real
    return poles, np.sqrt(np.where(np.isfinite(variances), np.maximum(variances, 0.0), np.inf))


def excited_directions(us: Sequence[Array], count: int) -> list[tuple[int, int]]:
    """Return for every input how many of `count` delayed copies of it are independent, and `count`.

    The count is limited by the lengths of the records.
    """
    out = []
    for j in range(us[0].shape[0]):
        blocks = []
        rows = min(count, max(u.shape[1] for u in us) // 2)
        for u in us:
            if u.shape[1] >= 2 * rows:
                blocks.append(np.lib.stride_tricks.sliding_window_view(u[j], rows))
        sizes = np.linalg.svd(np.concatenate(blocks), compute_uv=False)
        out.append((int(np.count_nonzero(sizes > _EXCITED * sizes[0])), rows))
    return out


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
    """

    whiteness: Array
    independence: Array
    feedback: Array
    autocorrelation: Array
    cross_correlation: Array
    bound: Array


def residual_test(errors: Sequence[Array], us: Sequence[Array]) -> ResidualTest:
    """Test residuals (p, T) of records against their inputs (m, T); see Ljung (1999), section 16.6."""
    p, m = errors[0].shape[0], us[0].shape[0]
    shortest, N = min(e.shape[1] for e in errors), sum(e.shape[1] for e in errors)
    lags = max(1, min(_MOST_LAGS, shortest // _SAMPLES_PER_LAG))
    errors, us = _standardized(errors), _standardized(us)
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
    )


def _standardized(records: Sequence[Array]) -> list[Array]:
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
