"""Uncertainty of an identified model: standard errors of its poles and of its frequency response.

The residual of the simulated output is usually correlated in time, since disturbances pass through the
process. Its autocorrelation is described by an autoregressive model, and enters the standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import EPS, Array
from ..linear_fit import FittedModel, nested_regression
from ..output_error import balance_states, local_coordinates, output_derivatives

_MOST_COEFFICIENTS, _SAMPLES_PER_COEFFICIENT = 12, 20
#: Penalty of one parameter in Akaike's criterion, in units of minus twice the logarithm of the likelihood.
AKAIKE_PENALTY = 2.0
#: Singular values of the derivatives below this share of the largest are rounding, and so is this share of a
#: quantity in their directions.
_UNDETERMINED, _LOST = 1e-10, 1e-5
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
    solve = nested_regression(past, present[:, None], EPS)
    for q in range(1, most + 1):
        coefficients = solve(q)[:, 0]
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
    #: (K, K)
    covariance: Array
    #: what it would be with white residuals
    white_covariance: Array
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
        covariance = self.white_covariance if white else self.covariance
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
    information = Information.of([J.reshape(-1, J.shape[2]) for J, _ in parts])
    p, (K, k) = model.C.shape[0], information.known.shape
    correlated, white_only = np.zeros((k, k)), np.zeros((k, k))
    for i in range(p):
        a = autoregression([error[i] for _, error in parts])
        white = [lfilter(a, [1.0], error[i]) for _, error in parts]
        degrees = max(sum(e.size for e in white) - K / p, 1.0)
        variance = sum(float(e @ e) for e in white) / degrees
        power = sum(float(error[i] @ error[i]) for _, error in parts) / degrees
        for J, _ in parts:
            X = J[i] @ information.known
            white_only += power * (X.T @ X)
            # the transpose of the lower triangular square root of the covariance, which is a filter
            filtered = lfilter([1.0], a, X[::-1], axis=0)
            correlated += variance * (filtered.T @ filtered)
    slopes = derivatives(model, directions)
    K = len(slopes[0])  # those of the initial states and offsets are left out
    covariance = information.covariance(correlated)[:K, :K]
    white_covariance = information.covariance(white_only)[:K, :K]
    return Uncertainty(model.A, model.B, model.C, model.D, slopes, covariance, white_covariance, information)


@dataclass(frozen=True)
class Information:
    """What a record tells of the parameters of a model, by the derivatives J of its output.

    Directions in which these are rounding are not determined by the record.
    """

    #: norms of the derivatives by each parameter: (K,)
    size: Array
    #: directions (K, k) that are determined; the columns of J times these are orthonormal
    known: Array
    #: orthonormal directions that are not, for parameters times their size: (K, q)
    unknown: Array

    @classmethod
    def of(cls, blocks: Sequence[Array]) -> Information:
        """Split the derivatives (rows, K) of several records."""
        triangle = np.zeros((0, blocks[0].shape[1]))
        for block in blocks:
            (triangle,) = sla.qr(np.concatenate([triangle, block]), mode="r", check_finite=False)
            triangle = triangle[: block.shape[1]]
        size = np.linalg.norm(triangle, axis=0)
        size[size == 0] = 1.0
        _, values, right = np.linalg.svd(triangle / size)
        values = np.pad(values, (0, size.size - values.size))
        determined = values > _UNDETERMINED * values[0]
        known = right[determined].T / values[determined] / size[:, None]
        return cls(size, known, right[~determined].T)

    def covariance(self, weighted: Array) -> Array:
        """Return ``G^-1 S G^-1`` with G = J^T J, for S given in the known directions: (k, k)."""
        return np.asarray(self.known @ weighted @ self.known.T)

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
