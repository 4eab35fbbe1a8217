"""Delays of the inputs: found from the record, and added to a model as states.

Without them a delay of d samples costs d states, each with as many parameters as any other state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.linalg as sla
from scipy.special import chdtri

from .._util.arrays import Array
from .diagnostics.feedback import arx_regression
from .linear_fit import FittedModel, with_initial_states

#: Most lags of the ARX model, and the least number of equations for each coefficient.
_MOST_LAGS, _EQUATIONS_PER_COEFFICIENT = 20, 4
_LEAST_LAGS = 4
#: The first coefficients of an input count as zero if they are this likely to be as large by chance ...
_ZERO_PROBABILITY = 0.05
#: ... and the one after them as a response if that is less likely than this.
_RESPONSE_PROBABILITY = 1e-4
_RIDGE = 1e-10


def likely_delays(us: Sequence[Array], ys: Sequence[Array]) -> tuple[int, ...]:
    """Return for every input how many samples its effect seems to be delayed, beyond the one of a state.

    The coefficients of a high-order ARX model at the first lags of the input are tested against zero, all
    outputs together. An input counts as delayed only where an effect begins clearly after them.
    """
    m, p = us[0].shape[0], ys[0].shape[0]
    samples = sum(u.shape[1] for u in us)
    longest = max(u.shape[1] for u in us)
    lags = min(_MOST_LAGS, int((samples / _EQUATIONS_PER_COEFFICIENT - m - 1) / (m + p)), longest // 2)
    if lags < _LEAST_LAGS:
        return (0,) * m
    R, Y = arx_regression(us, ys, lags)
    if R.shape[1] <= 2 * R.shape[0]:
        return (0,) * m
    gram = R @ R.T
    gram += _RIDGE * np.trace(gram) / gram.shape[0] * np.eye(gram.shape[0])
    inverse = np.asarray(sla.inv(gram))
    theta = Y @ R.T @ inverse
    errors = Y - theta @ R
    precision = np.linalg.pinv(errors @ errors.T / (R.shape[1] - R.shape[0]), hermitian=True)
    return tuple(
        _delay(
            theta[:, j : (lags + 1) * m : m],
            inverse[j : (lags + 1) * m : m, j : (lags + 1) * m : m],
            precision,
        )
        for j in range(m)
    )


def _delay(coefficients: Array, covariance: Array, precision: Array) -> int:
    """Return a delay by the coefficients (p, lags), their covariance, and the precision of the errors."""
    p, lags = coefficients.shape
    previous, n_zero = 0.0, 0
    for d in range(1, lags // 2 + 2):
        b = coefficients[:, :d]
        statistic = float(np.trace(precision @ b @ np.linalg.solve(covariance[:d, :d], b.T)))
        if statistic > chdtri(d * p, _ZERO_PROBABILITY):
            clear = statistic - previous > chdtri(p, _RESPONSE_PROBABILITY)
            return n_zero - 1 if clear and n_zero > 1 else 0
        previous, n_zero = statistic, d
    return 0


def shifted_records(
    us: Sequence[Array], ys: Sequence[Array], delays: Sequence[int]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return records in which every input comes later by its delay, without the first samples."""
    most = max(delays)
    return (
        tuple(np.stack([x[most - d : x.size - d] for x, d in zip(u, delays, strict=True)]) for u in us),
        tuple(y[:, most:] for y in ys),
    )


def with_delay_states(
    model: FittedModel, delays: Sequence[int], us: Sequence[Array], ys: Sequence[Array]
) -> FittedModel:
    """Return the model of inputs that come later as one of the inputs themselves.

    The states added are the past of the inputs, or, if those are fewer, the outputs to come. The initial
    states are those that fit records best.
    """
    if sum(delays) <= model.C.shape[0] * max(delays):
        matrices = _past_inputs(model, delays)
    else:
        matrices = _outputs_to_come(model, delays)
    A, B, C, D = matrices
    return with_initial_states(replace(model, A=A, B=B, C=C, D=D), us, ys)


def _past_inputs(model: FittedModel, delays: Sequence[int]) -> tuple[Array, Array, Array, Array]:
    (n, m), p = model.B.shape, model.C.shape[0]
    total = n + sum(delays)
    A, B = np.zeros((total, total)), np.zeros((total, m))
    C, D = np.zeros((p, total)), model.D.copy()
    A[:n, :n], B[:n], C[:, :n] = model.A, model.B, model.C
    last = n - 1
    for j, d in enumerate(delays):
        if d:
            first, last = last + 1, last + d
            B[:n, j], D[:, j] = 0, 0
            B[first, j] = 1
            A[range(first + 1, last + 1), range(first, last)] = 1
            A[:n, last], C[:, last] = model.B[:, j], model.D[:, j]
    return A, B, C, D


def _outputs_to_come(model: FittedModel, delays: Sequence[int]) -> tuple[Array, Array, Array, Array]:
    (n, m), p = model.B.shape, model.C.shape[0]
    most = max(delays)
    total = n + p * most
    # the response of output i to input j, at the lags that all inputs have not yet reached
    response = np.zeros((most + 1, p, m))
    A, B = np.zeros((total, total)), np.zeros((total, m))
    for j, d in enumerate(delays):
        response[d, :, j] = model.D[:, j]
        b = model.B[:, j]
        for lag in range(d + 1, most + 1):
            response[lag, :, j] = model.C @ b
            b = model.A @ b
        B[:n, j] = b
    A[:n, :n] = model.A
    B[n:] = response[1:].reshape(p * most, m)
    A[n : total - p, n + p :] = np.eye(p * (most - 1))
    A[total - p :, :n] = model.C
    C = np.zeros((p, total))
    C[:, n : n + p] = np.eye(p)
    return A, B, C, response[0]
