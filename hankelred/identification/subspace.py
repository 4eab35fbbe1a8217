"""Subspace identification: initial models of every order from one decomposition of the records.

Block rows of future outputs are regressed on block rows of past data; the singular vectors of the
(weighted) regression span the range of the observability matrix, or give the states. Everything is
computed from the triangular factor of the stacked block rows, whose size does not depend on the length
of the records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from .linear_fit import nested_regression

#: Columns of block rows that are stacked at a time before they are compressed.
_CHUNK = 20_000
#: Directions of past data below this share of the largest are treated as not excited.
_RANK_TOL = 1e-12


@dataclass(frozen=True)
class Subspace:
    """One method and horizon: models of any order up to the number of significant singular values."""

    name: str
    singular_values: Array
    #: returns (A, C) for an order
    build: Callable[[int], tuple[Array, Array]]

    #: largest order that the shift structure determines
    rows: int

    @property
    def max_order(self) -> int:
        """The largest order that is determined and not at the level of rounding."""
        s = self.singular_values
        return min(self.rows, int(np.count_nonzero(s > _RANK_TOL * s[0])))


def determines_horizon(lengths: Sequence[int], n_channels: int, horizon: int) -> bool:
    """Whether records of these lengths determine the subspaces of a horizon: twice as many samples as rows.

    Records that are shorter than the block rows have no part in them.
    """
    length = 2 * horizon + 1
    samples = sum(samples for samples in lengths if samples >= length)
    return 2 * length <= max(lengths) and 2 * length * n_channels <= samples


def subspaces(us: Sequence[Array], ys: Sequence[Array], horizon: int) -> list[Subspace]:
    """Return the subspaces of the records for one horizon.

    ``moesp``, ``n4sid`` and ``cva`` are weightings of one oblique projection (Van Overschee and De Moor,
    Automatica 31, 1995), A and C coming from the shift structure of the observability matrix;
    ``n4sid-states`` and ``cva-states`` take A and C from a regression of the estimated states instead (the
    same authors, Automatica 30, 1994); ``arx`` realizes the impulse response of a high-order ARX model.
    """
    rows = _compressed(us, ys, horizon)
    m, p = us[0].shape[0], ys[0].shape[0]
    u, y = rows[: (2 * horizon + 1) * m], rows[(2 * horizon + 1) * m :]
    future_u, future_y = u[horizon * m : -m], y[horizon * p : -p]
    past, present = _past_and_present(u, y, m, p, horizon)
    next_past = np.concatenate([u[m : (horizon + 1) * m], y[p : (horizon + 1) * p]])
    a, b = future_u.shape[0], past.shape[0]
    # LQ factorization: the part explained by future inputs, the part added by the past, the remainder
    lower = sla.qr(np.concatenate([future_u, past, future_y]).T, mode="r", check_finite=False)[0].T
    lower = np.pad(lower, ((0, 0), (0, max(0, lower.shape[0] - lower.shape[1]))))[:, : lower.shape[0]]
    L21, L22 = lower[a : a + b, :a], lower[a : a + b, a : a + b]
    L32, L33 = lower[a + b :, a : a + b], lower[a + b :, a + b :]
    by_past = _regress(L32, L22)
    oblique = by_past @ np.concatenate([L21, L22], axis=1)
    spread = _square_root(L32 @ L32.T + L33 @ L33.T)
    out = []
    for name, matrix, weight in (("moesp", L32, None), ("n4sid", oblique, None), ("cva", L32, spread)):
        left, s = _left_svd(matrix, weight)
        gamma = (left if weight is None else weight @ left) * np.sqrt(s)
        out.append(Subspace(f"{name}-{horizon}", s, _shift_structure(gamma, p), gamma.shape[0] - p))
        if name != "moesp":
            to_state = by_past if weight is None else sla.solve_triangular(weight, by_past, lower=True)
            to_state = (left / np.sqrt(np.maximum(s, np.finfo(float).tiny))).T @ to_state
            build = _state_regression(to_state, past, next_past, *present)
            out.append(Subspace(f"{name}-states-{horizon}", s, build, s.size))
    return [*out, _realized_arx(past, present, horizon)]


def arx_subspace(us: Sequence[Array], ys: Sequence[Array], horizon: int) -> Subspace:
    """Return the last of the :func:`subspaces` without the others."""
    rows = _compressed(us, ys, horizon)
    m, p = us[0].shape[0], ys[0].shape[0]
    u, y = rows[: (2 * horizon + 1) * m], rows[(2 * horizon + 1) * m :]
    return _realized_arx(*_past_and_present(u, y, m, p, horizon), horizon)


def _past_and_present(u: Array, y: Array, m: int, p: int, horizon: int) -> tuple[Array, tuple[Array, Array]]:
    past = np.concatenate([u[: horizon * m], y[: horizon * p]])
    return past, (u[horizon * m : (horizon + 1) * m], y[horizon * p : (horizon + 1) * p])


def _realized_arx(past: Array, present: tuple[Array, Array], horizon: int) -> Subspace:
    gamma, s = _arx_observability(past, present, horizon)
    p = present[1].shape[0]
    return Subspace(f"arx-{horizon}", s, _shift_structure(gamma, p), gamma.shape[0] - p)


def _compressed(us: Sequence[Array], ys: Sequence[Array], horizon: int) -> Array:
    """Return block rows u[0..2h], y[0..2h] of all records, as a square matrix of the same inner products."""
    length = 2 * horizon + 1
    K = length * (us[0].shape[0] + ys[0].shape[0])
    factor = np.zeros((0, K))
    for u, y in zip(us, ys, strict=True):
        columns = u.shape[1] - length + 1
        for start in range(0, columns, _CHUNK):
            stop = min(start + _CHUNK, columns)
            rows = [x[:, k + start : k + stop] for x in (u, y) for k in range(length)]
            block = np.concatenate([factor, np.concatenate(rows).T])
            factor = sla.qr(block, mode="r", check_finite=False)[0][:K]
    return factor.T


def _shift_structure(gamma: Array, p: int) -> Callable[[int], tuple[Array, Array]]:
    solve = nested_regression(gamma[:-p], gamma[p:], EPS)

    def build(order: int) -> tuple[Array, Array]:
        return solve(order)[:, :order], gamma[:p, :order]

    return build


def _state_regression(
    to_state: Array, past: Array, next_past: Array, u: Array, y: Array
) -> Callable[[int], tuple[Array, Array]]:
    x, following, m, p = to_state @ past, to_state @ next_past, u.shape[0], y.shape[0]
    solve = nested_regression(np.concatenate([u, x]).T, np.concatenate([y, following]).T, _RANK_TOL)

    def build(order: int) -> tuple[Array, Array]:
        theta = solve(m + order)[m:].T
        return theta[p : p + order], theta[:p]

    return build


def _arx_observability(past: Array, present: tuple[Array, Array], horizon: int) -> tuple[Array, Array]:
    """Return the observability matrix, by the impulse response of a high-order ARX model.

    The poles and zeros of the ARX model describe the noise too; the reduction of its impulse response keeps
    the part that the input explains (Wahlberg, IEEE Trans. Automatic Control 34, 1989).
    """
    u, y = present
    m, p = u.shape[0], y.shape[0]
    # past rows: inputs then outputs, each oldest first
    arx = _regress(y, np.concatenate([past, u]))
    by_u = arx[:, : horizon * m].reshape(p, horizon, m)[:, ::-1]
    by_y = arx[:, horizon * m : horizon * (m + p)].reshape(p, horizon, p)[:, ::-1]
    length = 12 * horizon
    # `horizon` zeros before the response, so that every sample is one product with those before it
    padded = np.zeros((horizon + length, p, m))
    response = padded[horizon:]
    oldest_first = by_y[:, ::-1].reshape(p, horizon * p)
    response[0] = arx[:, -m:]
    response[1 : horizon + 1] = by_u.transpose(1, 0, 2)
    for k in range(1, length):
        response[k] += oldest_first @ padded[k : k + horizon].reshape(horizon * p, m)
        if not np.abs(response[k]).max() < 1e6:  # unstable: only the part before the overflow is used
            response[k:] = 0
            response = response[: max(k, 2 * horizon)]
            break
    half = response.shape[0] // 2
    index = np.arange(half)[:, None] + np.arange(half)[None]
    hankel = response[1:][index].transpose(0, 2, 1, 3).reshape(half * p, half * m)
    left, s = _left_svd(hankel, None)
    return left * np.sqrt(s), s


def _left_svd(matrix: Array, weight: Array | None) -> tuple[Array, Array]:
    weighted = matrix if weight is None else sla.solve_triangular(weight, matrix, lower=True)
    left, s, _ = sla.svd(weighted, full_matrices=False, check_finite=False)
    return left, s


def _square_root(covariance: Array) -> Array:
    # A noise-free record has a singular covariance; the ridge is at the level of its rounding.
    ridge = np.trace(covariance) * 1e-13 * np.eye(covariance.shape[0])
    return np.asarray(np.linalg.cholesky(covariance + ridge))


def _regress(target: Array, regressors: Array) -> Array:
    return np.asarray(sla.lstsq(regressors.T, target.T, cond=_RANK_TOL, lapack_driver="gelsy")[0]).T
