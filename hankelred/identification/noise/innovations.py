"""Models in innovations form, with measured outputs fed back: for processes unstable in open loop.

The output of an unstable process cannot be simulated over a long record, since the smallest error grows
without bound. The one-step prediction ``x[k+1] = (A - K C) x[k] + B u[k] + K y[k]`` is stable, and its
error is independent of earlier inputs and outputs even in a closed loop, without which such a process cannot
be recorded (Ljung, System Identification, 1999, sections 4.3 and 13.4). It is estimated as a model with the
inputs (u, y), without direct terms, from a high-order ARX model (Jansson, Proc. IFAC Symp. System
Identification, 2003) by Levenberg-Marquardt steps. The process has no direct term D either: if the controller
responds within the same sample, as most do, D could not be distinguished from the controller's own response.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import Array
from ..diagnostics.feedback import lagged
from ..diagnostics.uncertainty import Information, Uncertainty, derivatives
from ..linear_fit import FittedModel, fit_inputs, residuals, with_initial_states
from ..output_error import (
    STABLE_RADIUS,
    balance_states,
    local_coordinates,
    output_derivatives,
    refine,
    stable_matrix,
)

#: Lags of the ARX models that give the starts, and the least number of equations for each coefficient.
_LAGS = (10, 20)
_EQUATIONS_PER_COEFFICIENT = 3
#: Predictors have their poles inside this radius, so that the unknown state before the record is forgotten.
_PREDICTOR_RADIUS = 0.999
_STEPS = 25
#: Orders are tried from 1 on, until this many in a row do not improve the criterion.
_PATIENCE = 2
#: A pole counts as unstable if it is more of its standard errors outside the unit circle than this.
_SIGNIFICANT = 4.0


@dataclass(frozen=True)
class InnovationsModel:
    """A predictor with the inputs (u, y), and Schwarz's criterion: the smaller, the better."""

    predictor: FittedModel
    n_inputs: int
    criterion: float

    @property
    def gain(self) -> Array:
        """The gain K (n, p) of the innovations."""
        return self.predictor.B[:, self.n_inputs :]

    def process(self, us: Sequence[Array], ys: Sequence[Array]) -> FittedModel:
        """Return the model from u to y, with the initial states that fit the simulated outputs best.

        Its offset is the level of the outputs at which the predictor predicts that very level.
        """
        predictor, m = self.predictor, self.n_inputs
        A = predictor.A + self.gain @ predictor.C
        B, D = predictor.B[:, :m], predictor.D[:, :m]
        eye = np.eye(predictor.order)
        by_level = np.eye(D.shape[0]) - predictor.C @ np.linalg.solve(eye - predictor.A, self.gain)
        offset = np.linalg.lstsq(by_level, predictor.offset, rcond=None)[0]
        return with_initial_states(FittedModel(A, B, predictor.C, D, (), offset), us, ys)

    def prediction_errors(self, us: Sequence[Array], ys: Sequence[Array]) -> list[Array]:
        """Return the errors (p, T) of the one-step prediction."""
        return residuals(self.predictor, with_outputs(us, ys), ys)

    def predicted_outputs(
        self, us: Sequence[Array], ys: Sequence[Array], masks: Sequence[Array]
    ) -> list[Array]:
        """Return the one-step predictions (p, T), which use themselves in place of the masked outputs."""
        model, m = self.predictor, self.n_inputs
        by_inputs, predictions = model.B[:, :m], []
        for u, y, mask, x0 in zip(us, ys, masks, model.x0, strict=True):
            predicted, x = np.empty_like(y), x0
            for t in range(y.shape[1]):
                predicted[:, t] = model.C @ x + model.offset
                fed_back = np.where(mask[:, t], predicted[:, t], y[:, t])
                x = model.A @ x + by_inputs @ u[:, t] + self.gain @ fed_back
            predictions.append(predicted)
        return predictions

    def uncertainty(self, us: Sequence[Array], ys: Sequence[Array]) -> Uncertainty:
        """Return the covariance of the estimates of the process."""
        model, m = balance_states(self.predictor), self.n_inputs
        directions = local_coordinates(model)
        offsets = bool(np.any(model.offset))
        parts = list(output_derivatives(model, with_outputs(us, ys), ys, offsets, directions))
        size = np.sqrt(np.mean(np.concatenate([error for _, error in parts], axis=1) ** 2, axis=1))
        columns = [(J / size[:, None, None]).reshape(-1, J.shape[2]) for J, _ in parts]
        information = Information.of(columns)
        by_A, by_B, by_C, by_D = derivatives(model, directions)
        # the residuals have unit variance
        covariance = information.covariance(np.eye(information.known.shape[1]))[: len(by_A), : len(by_A)]
        K, by_K = model.B[:, m:], by_B[:, :, m:]
        return Uncertainty(
            model.A + K @ model.C,
            model.B[:, :m],
            model.C,
            model.D[:, :m],
            (by_A + by_K @ model.C + K @ by_C, by_B[:, :, :m], by_C, by_D[:, :, :m]),
            covariance,
            covariance,
            information,
        )


def innovations_model(
    us: Sequence[Array], ys: Sequence[Array], orders: Sequence[int], *, offsets: bool
) -> InnovationsModel | None:
    """Return the model of the order, among some, that Schwarz's criterion prefers; None of short records."""
    zs, m = with_outputs(us, ys), us[0].shape[0]
    best: InnovationsModel | None = None
    n_worse = 0
    spaces = [space for lags in _LAGS if (space := _arx_observability(us, ys, lags)) is not None]
    for order in orders:
        predictors = list(_predictors(zs, ys, spaces, order, offsets=offsets))
        if not predictors:
            continue
        trials = [InnovationsModel(model, m, _criterion(model, zs, ys)) for model in predictors]
        trial = min(trials, key=lambda trial: trial.criterion)
        if best is None or trial.criterion < best.criterion:
            best, n_worse = trial, 0
        else:
            n_worse += 1
        if n_worse == _PATIENCE:
            break
    return best


def unstable_pole(
    model: InnovationsModel, us: Sequence[Array], ys: Sequence[Array]
) -> tuple[complex, float] | None:
    """Return the pole that is most significantly outside the unit circle, and its standard error."""
    poles, errors = model.uncertainty(us, ys).poles()
    # an integrator in a record without noise has a pole at 1 to within rounding, and so is its standard error
    excess = (np.abs(poles) - (2 - STABLE_RADIUS)) / np.maximum(errors, np.finfo(float).tiny)
    k = int(np.argmax(excess))
    return (complex(poles[k]), float(errors[k])) if excess[k] > _SIGNIFICANT else None


def with_outputs(us: Sequence[Array], ys: Sequence[Array]) -> list[Array]:
    """Return the inputs (u, y) of the predictor."""
    return [np.concatenate([u, y]) for u, y in zip(us, ys, strict=True)]


def _predictors(
    zs: Sequence[Array],
    ys: Sequence[Array],
    spaces: Sequence[tuple[Array, int]],
    order: int,
    *,
    offsets: bool,
) -> Iterator[FittedModel]:
    """Yield predictors of an order, without and with an output offset beyond the mean."""
    p = ys[0].shape[0]
    starts: list[list[FittedModel]] = []
    for gamma, lags in spaces:
        if order <= min(gamma.shape[1], (lags - 1) * p):
            g = gamma[:, :order]
            A = stable_matrix(sla.lstsq(g[:-p], g[p:])[0], _PREDICTOR_RADIUS)
            starts.append(fit_inputs(A, g[:p], zs, ys, offsets, direct=False))
    for same_offsets in zip(*starts, strict=True):
        start = min(same_offsets, key=lambda model: model.loss)
        if np.isfinite(start.loss):
            yield refine(start, zs, ys, stable=True, max_steps=_STEPS, rtol=1e-5)


def _arx_observability(us: Sequence[Array], ys: Sequence[Array], lags: int) -> tuple[Array, int] | None:
    """Return the observability matrix of a predictor, by the coefficients of an ARX model, and its lags."""
    m, p = us[0].shape[0], ys[0].shape[0]
    rows, targets = [], []
    for z, y in zip(with_outputs(us, ys), ys, strict=True):
        T = y.shape[1] - lags
        if T > 0:
            rows.append(np.concatenate([np.ones((1, T)), lagged(z, 1, lags)]))
            targets.append(y[:, lags:])
    if sum(x.shape[1] for x in rows) < _EQUATIONS_PER_COEFFICIENT * (lags * (m + p) + 1):
        return None
    regressors, target = np.concatenate(rows, axis=1), np.concatenate(targets, axis=1)
    coefficients = sla.lstsq(regressors.T, target.T, lapack_driver="gelsy")[0].T[:, 1:]
    response = np.zeros((2 * lags, p, m + p))
    response[:lags] = coefficients.reshape(p, lags, m + p).transpose(1, 0, 2)
    index = np.arange(lags)[:, None] + np.arange(lags)[None]
    hankel = response[index].transpose(0, 2, 1, 3).reshape(lags * p, lags * (m + p))
    left, s, _ = sla.svd(hankel, full_matrices=False)
    return left * np.sqrt(s), lags


def _criterion(model: FittedModel, zs: Sequence[Array], ys: Sequence[Array]) -> float:
    errors = np.concatenate(residuals(model, zs, ys), axis=1)
    samples = errors.shape[1]
    variances = np.linalg.eigvalsh(errors @ errors.T / samples)
    n_parameters = model.order * (model.B.shape[1] + model.C.shape[0]) + np.count_nonzero(model.offset)
    deviance = samples * float(np.log(np.maximum(variances, np.finfo(float).tiny)).sum())
    return deviance + math.log(samples) * n_parameters
