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
from scipy.special import chdtrc, fdtrc, ndtr, ndtri

from .._util.arrays import EPS, Array
from .output_error import FittedModel, balance_states, local_coordinates, output_derivatives

#: Most lags of a correlation, and the least number of samples for each.
_MOST_LAGS, _SAMPLES_PER_LAG = 25, 4
_MOST_COEFFICIENTS, _SAMPLES_PER_COEFFICIENT = 12, 20
#: Penalty of one parameter in Akaike's criterion, in units of minus twice the logarithm of the likelihood.
AKAIKE_PENALTY = 2.0
#: Lags of the ARX model of the test for feedback, its samples for each lag and channel, and the later inputs.
_MOST_FEEDBACK_LAGS, _SAMPLES_PER_ROW, _LATER_INPUTS = 20, 6, 8
#: Share of an output that an ARX model leaves where there is no noise.
_NOISE_FREE = 1e-8
#: Eigenvalues of the Gram matrix of derivatives below this share of the largest are rounding, and so is this
#: share of a quantity in their directions.
_UNDETERMINED, _LOST = 1e-13, 1e-6
#: Points as near to a pole as this, for each state and relative to A, may be the pole.
_ROUNDING = 10 * EPS


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


@dataclass(frozen=True)
class Uncertainty:
    """The matrices of a model, and the covariance of their estimates."""

    A: Array
    B: Array
    C: Array
    D: Array
    #: derivatives by each parameter: (K, n, n), (K, n, m), (K, p, n), (K, p, m)
    by_parameters: tuple[Array, Array, Array, Array]
    #: (K, K), and what it would be with white residuals
    covariance: Array
    of_white: Array
    information: Information

    def poles(self) -> tuple[Array, Array]:
        """Return the poles, and the root mean square of the error of each, to first order."""
        poles, left, right = sla.eig(self.A, left=True, right=True)
        products = np.einsum("ik,jil,lk->kj", left.conj(), self.by_parameters[0], right)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = products / np.einsum("ik,ik->k", left.conj(), right)[:, None]
        return poles, self._errors(slopes)

    def response(self, z: Array, *, white: bool = False) -> tuple[Array, Array]:
        """Return the frequency response (p, m, frequencies) at points z, and the errors to first order.

        At a pole, to rounding, the errors are infinite, and the response may be that just beside it. They are
        infinite too where the record does not determine the response. With `white` they are those of white
        residuals.
        """
        by_A, by_B, by_C, by_D = self.by_parameters
        n, shape = self.A.shape[0], self.D.shape
        values, errors = np.empty((*shape, z.size), dtype=complex), np.full((*shape, z.size), np.inf)
        rounding = _ROUNDING * n * max(1.0, float(np.linalg.norm(self.A, 2)))
        for k, point in enumerate(z):
            try:
                resolvent = np.linalg.inv(point * np.eye(n) - self.A)
            except np.linalg.LinAlgError:
                resolvent = np.linalg.inv(point * (1 + n * EPS) * np.eye(n) - self.A)
            left, right = self.C @ resolvent, resolvent @ self.B
            values[..., k] = left @ self.B + self.D
            # a change of A by the reciprocal of the norm of the resolvent makes this point a pole
            if np.linalg.norm(resolvent, 2) * rounding < 1:
                slopes = left @ by_A @ right + left @ by_B + by_C @ right + by_D
                errors[..., k] = self._errors(slopes.reshape(slopes.shape[0], -1).T, white).reshape(shape)
        return values, errors

    def _errors(self, slopes: Array, white: bool = False) -> Array:
        covariance = self.of_white if white else self.covariance
        with np.errstate(invalid="ignore"):
            variances = np.einsum("kj,jl,kl->k", slopes.conj(), covariance, slopes).real
            known = np.isfinite(variances) & self.information.determines(slopes)
        return np.sqrt(np.where(known, np.maximum(variances, 0.0), np.inf))


def uncertainty(model: FittedModel, us: Sequence[Array], ys: Sequence[Array]) -> Uncertainty:
    """Return the covariance of the estimates of a model that was fitted to its simulated outputs.

    For correlated residuals it is ``G^-1 S G^-1`` with the Gram matrix G of the derivatives of the output,
    and S the same weighted with the autocovariance of the residuals (Ljung, System Identification, 1999,
    section 9.4).
    """
    from scipy.signal import lfilter

    model = balance_states(model)
    offsets = bool(np.any(model.offset))
    directions = local_coordinates(model)
    parts = list(output_derivatives(model, us, ys, offsets, directions))
    p, K = model.C.shape[0], parts[0][0].shape[2]
    gram, weighted, of_white = np.zeros((K, K)), np.zeros((K, K)), np.zeros((K, K))
    for i in range(p):
        a = autoregression([error[i] for _, error in parts])
        white = [lfilter(a, [1.0], error[i]) for _, error in parts]
        count = sum(e.size for e in white)
        variance = sum(float(e @ e) for e in white) / max(count - K / p, 1.0)
        power = sum(float(error[i] @ error[i]) for _, error in parts) / max(count - K / p, 1.0)
        for J, _ in parts:
            gram += J[i].T @ J[i]
            of_white += power * (J[i].T @ J[i])
            # the transpose of the lower triangular square root of the covariance, which is a filter
            filtered = lfilter([1.0], a, J[i][::-1], axis=0)
            weighted += variance * (filtered.T @ filtered)
    slopes = derivatives(model, directions)
    k = slopes[0].shape[0]
    information = Information.of(gram)
    covariance = information.covariance(weighted)[:k, :k]
    of_white = information.covariance(of_white)[:k, :k]
    return Uncertainty(model.A, model.B, model.C, model.D, slopes, covariance, of_white, information)


@dataclass(frozen=True)
class Information:
    """What a record tells of the parameters of a model: the Gram matrix of the derivatives of its output.

    Directions in which it is rounding are not determined by the record.
    """

    #: norms of the derivatives, by which the columns are divided: (K,)
    size: Array
    #: orthonormal directions that are determined (K, k), and their eigenvalues (k,)
    known: Array
    values: Array
    #: those that are not: (K, q)
    unknown: Array

    @classmethod
    def of(cls, gram: Array) -> Information:
        """Split a Gram matrix."""
        size = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
        values, vectors = np.linalg.eigh(gram / np.outer(size, size))
        determined = values > _UNDETERMINED * values[-1]
        return cls(size, vectors[:, determined], values[determined], vectors[:, ~determined])

    def covariance(self, weighted: Array) -> Array:
        """Return ``G^-1 S G^-1`` for a weighted Gram matrix S, without what is not determined."""
        scales = np.outer(self.size, self.size)
        inverse = (self.known / self.values) @ self.known.T
        return np.asarray(inverse @ (weighted / scales) @ inverse / scales)

    def determines(self, slopes: Array) -> Array:
        """Return whether quantities with these derivatives by the first parameters (k, K') are determined."""
        scaled = slopes / self.size[: slopes.shape[1]]
        lost = np.linalg.norm(scaled @ self.unknown[: slopes.shape[1]], axis=1)
        return np.asarray(lost <= _LOST * np.linalg.norm(scaled, axis=1))


def derivatives(model: FittedModel, directions: Array) -> tuple[Array, Array, Array, Array]:
    """Return the derivatives of A, B, C, D by the parameters: these directions, and the entries of D."""
    (n, m), p, P = model.B.shape, model.C.shape[0], directions.shape[1]
    K = P + (p * m if model.direct else 0)
    by_A, by_B, by_C, by_D = (np.zeros((K, *x.shape)) for x in (model.A, model.B, model.C, model.D))
    a, b, c = np.split(directions.T, np.cumsum([n * n, n * m]), axis=1)
    by_A[:P], by_B[:P], by_C[:P] = a.reshape(P, n, n), b.reshape(P, n, m), c.reshape(P, p, n)
    by_D[P:] = np.eye(p * m).reshape(-1, p, m)[: K - P]
    return by_A, by_B, by_C, by_D


def lagged(x: Array, first: int, last: int) -> Array:
    """Return x (channels, T) at lags from `first` to `last`, one after the other: (rows, T - last)."""
    T = x.shape[1]
    return np.concatenate([x[:, last - k : T - k] for k in range(first, last + 1)])


def arx_regression(
    us: Sequence[Array], ys: Sequence[Array], lags: int, ahead: int = 0
) -> tuple[Array, Array]:
    """Return regressors (rows, N) and outputs (p, N) of an ARX model of records.

    The rows are the inputs at lags from 0 to `lags`, oldest last, a constant, the outputs at lags from 1 on,
    and the inputs from 1 to `ahead` samples later. Records that are too short have no part in them.
    """
    rows, targets = [], []
    for u, y in zip(us, ys, strict=True):
        T = u.shape[1] - ahead
        if lags < T:
            later = [u[:, lags + k : T + k] for k in range(1, ahead + 1)]
            past = lagged(u[:, :T], 0, lags), np.ones((1, T - lags)), lagged(y[:, :T], 1, lags)
            rows.append(np.concatenate([*past, *later]))
            targets.append(y[:, lags:T])
    n_rows = us[0].shape[0] * (lags + 1 + ahead) + 1 + ys[0].shape[0] * lags
    joined = np.concatenate([np.zeros((n_rows, 0)), *rows], axis=1)
    return joined, np.concatenate([np.zeros((ys[0].shape[0], 0)), *targets], axis=1)


def feedback_probabilities(us: Sequence[Array], ys: Sequence[Array]) -> Array:
    """Return how likely later inputs explain each output as well as they do by chance: (p, m).

    Without feedback they do not help, once the past of the output and the inputs up to then are known (Sims,
    American Economic Review 62, 1972; here by the F-test of the regression). One means that there are too few
    samples, or no noise. The effect of the present input is taken for that of the process, so that feedback
    within the same sample shows only in what an output tells of later samples. If both the disturbance and
    the reference are white it cannot show: the records are then those of an open loop as well.
    """
    p, m = ys[0].shape[0], us[0].shape[0]
    us, ys = _standardized(us), _standardized(ys)
    lags = min(_MOST_FEEDBACK_LAGS, sum(u.shape[1] for u in us) // (_SAMPLES_PER_ROW * (m + p)))
    probabilities = np.ones((p, m))
    if lags < 1:
        return probabilities
    R, Y = arx_regression(us, ys, lags, _LATER_INPUTS)
    n_causal = R.shape[0] - m * _LATER_INPUTS
    degrees = R.shape[1] - n_causal - _LATER_INPUTS
    if degrees < n_causal:
        return probabilities

    def squares(rows: Array) -> Array:
        Q = sla.qr(rows.T, mode="economic", check_finite=False)[0]
        return np.asarray(np.sum((Y - (Y @ Q) @ Q.T) ** 2, axis=1))

    causal = squares(R[:n_causal])
    noisy = causal > _NOISE_FREE * np.sum(Y**2, axis=1)
    for j in range(m):
        rest = squares(np.concatenate([R[:n_causal], R[n_causal + j :: m]]))
        ratio = (causal - rest) / _LATER_INPUTS * degrees / np.maximum(rest, np.finfo(float).tiny)
        probabilities[:, j] = np.where(noisy, fdtrc(_LATER_INPUTS, degrees, np.maximum(ratio, 0.0)), 1.0)
    return probabilities


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
        autocorrelation_bound=float(-ndtri(0.005) / np.sqrt(N)),
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
