"""The order by an information criterion: models of every order with a noise model, of the whole records.

The disturbance is described by an autoregression of the residuals, as in `whitening`. The likelihood of a
model with its own autoregression is that of the innovations which remain, and Schwarz's criterion
penalizes each parameter by the logarithm of the number of samples (Ann. Statistics 6, 1978; Ljung, System
Identification, 1999, section 16.4). A disturbance that is colored is then part of the noise model; the
residual of the simulated output alone would be reduced by states that describe it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import Array
from ..linear_fit import FittedModel, fit_inputs_of_each, fit_levels
from ..output_error import on_stability_limit, refine, truncated_starts, usable_matrices
from ..subspace import arx_subspace, determines_horizon, subspaces
from .whitening import filtered, noise_filter

#: Steps of refinement for every order, as many as before the choice by the validation part.
_STEPS = 12
#: Horizons of the high-order ARX models that give starts.
_ARX_HORIZONS = (10, 20)
#: Horizon of the subspaces that give one more state.
_ADDED_HORIZON = 5
#: Orders are improved until this many in a row do not lower the criterion.
_PATIENCE = 3


@dataclass(frozen=True)
class OrderTrial:
    """A model of one order, fitted with a noise model, and the criterion: the smaller, the better."""

    model: FittedModel
    criterion: float


def order_trials(
    models: Mapping[int, FittedModel],
    us: Sequence[Array],
    ys: Sequence[Array],
    *,
    offsets: bool,
    stable: bool,
    n_inputs: int | None = None,
) -> dict[int, OrderTrial]:
    """Refine a model of every order with a noise model, from the largest order down, and rate it.

    The signals are filtered by the noise model of the next larger order. Its refined model, truncated by the
    weakest states, is a second start, and realized high-order ARX models are others: models fitted to the
    simulated output, such as `models`, can follow a strong resonant disturbance instead of the process, and
    the noise model of their residuals is then wrong too. Then the orders are improved from the smallest up.
    With `n_inputs`, parameters of the other inputs are not counted.
    """
    n_channels = (us[0].shape[0] if n_inputs is None else n_inputs) + ys[0].shape[0]
    penalty = math.log(sum(y.shape[1] for y in ys))
    lengths = [u.shape[1] for u in us]
    usable = [h for h in _ARX_HORIZONS if determines_horizon(lengths, n_channels, h)]
    spaces = [arx_subspace(us, ys, h) for h in usable]
    trials: dict[int, OrderTrial] = {}
    larger: FittedModel | None = None
    whitener: Array | None = None
    for order in sorted(models, reverse=True):
        matrices = [space.build(order) for space in spaces if order <= space.max_order]
        starts = [models[order], *_with_inputs(matrices, us, ys, offsets=offsets, stable=stable)]
        if whitener is None:
            rated = [_rated(start, us, ys, offsets, n_channels) for start in starts]
            whitener = noise_filter(min(rated, key=lambda pair: pair[0].criterion)[1], penalty)
        white_us, white_ys = filtered(whitener, us), filtered(whitener, ys)
        starts = [fit_levels(start, white_us, white_ys, offsets)[0] for start in starts]
        if larger is not None:
            starts += truncated_starts(larger, order, white_us, white_ys, offsets, stable=stable)[-1:]
        start = min(starts, key=lambda model: model.loss)
        larger = refine(start, white_us, white_ys, stable=stable, max_steps=_STEPS, rtol=1e-4)
        trials[order], errors = _rated(larger, us, ys, offsets, n_channels)
        whitener = noise_filter(errors, penalty)
    _improve_upwards(trials, us, ys, n_channels, offsets=offsets, stable=stable)
    return trials


def _with_inputs(
    matrices: Sequence[tuple[Array, Array]],
    us: Sequence[Array],
    ys: Sequence[Array],
    *,
    offsets: bool,
    stable: bool,
) -> list[FittedModel]:
    """Return the models of matrices A and C that linear least squares gives, without those that overflow."""
    pairs = [pair for A, C in matrices if (pair := usable_matrices(A, C, stable=stable))]
    models = [of_pair[-1] for of_pair in fit_inputs_of_each(pairs, us, ys, offsets)]
    return [model for model in models if np.isfinite(model.loss)]


def _rated(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array], offsets: bool, n_channels: int
) -> tuple[OrderTrial, list[Array]]:
    """Fit the levels and rate a model; the residuals (p, T) are returned too."""
    model, errors = fit_levels(model, us, ys, offsets)
    return OrderTrial(model, schwarz_criterion(errors, model.order * n_channels)), errors


def _improve_upwards(
    trials: dict[int, OrderTrial],
    us: Sequence[Array],
    ys: Sequence[Array],
    n_channels: int,
    *,
    offsets: bool,
    stable: bool,
) -> None:
    """Replace trials in a local minimum by ones that start from the next smaller order, with one more state.

    The search from the largest order down can end in a local minimum of some order, which then seems worse
    than a smaller order. An order is refined once more if the start from the smaller one fits better than its
    trial. Orders are improved from the smallest up, until some in a row do not lower the criterion.
    """
    penalty = math.log(sum(y.shape[1] for y in ys))
    best, n_worse = math.inf, 0
    for order in sorted(trials):
        if order - 1 in trials:
            smaller = trials[order - 1].model
            errors = fit_levels(smaller, us, ys, offsets)[1]
            whitener = noise_filter(errors, penalty)
            white_us, white_ys, white = (filtered(whitener, x) for x in (us, ys, errors))
            start = _with_one_more_state(smaller, white_us, white_ys, white, offsets=offsets, stable=stable)
            previous = fit_levels(trials[order].model, white_us, white_ys, offsets)[0]
            if start is not None and start.loss < previous.loss:
                refined = refine(start, white_us, white_ys, stable=stable, max_steps=_STEPS, rtol=1e-4)
                trials[order] = min(
                    _rated(refined, us, ys, offsets, n_channels)[0], trials[order], key=_preference
                )
        n_worse += 1
        if trials[order].criterion < best and not on_stability_limit(trials[order].model.A):
            best, n_worse = trials[order].criterion, 0
        if n_worse == _PATIENCE:
            break


def _preference(trial: OrderTrial) -> tuple[bool, float]:
    """Return a key by which the preferred trial of one order is the least one.

    A trial on the stability limit cannot be chosen, so that its order would be lost.
    """
    return on_stability_limit(trial.model.A), trial.criterion


def _with_one_more_state(
    model: FittedModel,
    us: Sequence[Array],
    ys: Sequence[Array],
    errors: Sequence[Array],
    *,
    offsets: bool,
    stable: bool,
) -> FittedModel | None:
    """Return the best model with one state added, by subspaces of the residuals (p, T); None without one.

    All signals are whitened.
    """
    if not determines_horizon([u.shape[1] for u in us], us[0].shape[0] + ys[0].shape[0], _ADDED_HORIZON):
        return None
    added = [space.build(1) for space in subspaces(us, errors, _ADDED_HORIZON) if space.max_order]
    matrices = [(sla.block_diag(model.A, A), np.hstack([model.C, C])) for A, C in added]
    starts = _with_inputs(matrices, us, ys, offsets=offsets, stable=stable)
    return min(starts, key=lambda start: start.loss, default=None)


def schwarz_criterion(errors: Sequence[Array], n_parameters: int) -> float:
    """Return the criterion by the residuals (p, T); parameters of the noise model are counted in addition."""
    penalty = math.log(sum(error.shape[1] for error in errors))
    whitener = noise_filter(errors, penalty)
    return deviance(errors, whitener) + penalty * (n_parameters + whitener.size - 1)


def deviance(errors: Sequence[Array], whitener: Array) -> float:
    """Return minus twice the logarithm of the likelihood of residuals (p, T), up to a constant."""
    innovations = np.concatenate(filtered(whitener, errors), axis=1)
    variances = np.linalg.eigvalsh(innovations @ innovations.T / innovations.shape[1])
    n_samples = sum(error.shape[1] for error in errors)
    return n_samples * float(np.log(np.maximum(variances, np.finfo(float).tiny)).sum())
