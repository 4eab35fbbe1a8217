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

from ..._util.arrays import Array
from ..output_error import FittedModel, fit_levels, refine, truncated_starts
from .whitening import filtered, noise_filter

#: Steps of refinement for every order, as many as before the choice by the validation part.
_STEPS = 12


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
) -> dict[int, OrderTrial]:
    """Refine a model of every order with a noise model, from the largest order down, and rate it.

    The signals are filtered by the noise model of the next larger order. Its refined model, truncated by the
    weakest states, is a second start.
    """
    trials: dict[int, OrderTrial] = {}
    larger: FittedModel | None = None
    orders = sorted(models, reverse=True)
    penalty = math.log(sum(y.shape[1] for y in ys))
    whitener = noise_filter(fit_levels(models[orders[0]], us, ys, offsets)[1], penalty)
    for order in orders:
        white_us, white_ys = filtered(whitener, us), filtered(whitener, ys)
        starts = [fit_levels(models[order], white_us, white_ys, offsets)[0]]
        if larger is not None:
            starts += truncated_starts(larger, order, white_us, white_ys, offsets, stable=stable)[-1:]
        start = min(starts, key=lambda model: model.loss)
        larger = refine(start, white_us, white_ys, stable=stable, max_steps=_STEPS, rtol=1e-4)
        model, errors = fit_levels(larger, us, ys, offsets)
        whitener = noise_filter(errors, penalty)
        trials[order] = OrderTrial(
            model, schwarz_criterion(errors, order * (us[0].shape[0] + ys[0].shape[0]))
        )
    return trials


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
