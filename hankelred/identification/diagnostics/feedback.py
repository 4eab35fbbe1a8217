"""Whether the inputs of a record depend on its outputs, by regressions on delayed and on later inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg as sla
from scipy.special import fdtrc

from ..._util.arrays import Array
from .residual_tests import standardized

#: Lags of the ARX model of the test for feedback, its samples for each lag and channel, and the later inputs.
_MOST_FEEDBACK_LAGS, _SAMPLES_PER_ROW, _LATER_INPUTS = 20, 6, 8
#: Share of an output that an ARX model leaves where there is no noise.
_NOISE_FREE = 1e-8


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
    us, ys = standardized(us), standardized(ys)
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
