"""Refinement with a noise model: the simulated output is fitted after both signals have been whitened.

The disturbance at the output is described by an autoregressive model of the residuals. Its inverse, a moving
average, is applied to inputs and outputs alike, which leaves the response of the process as it is; the
refinement then weights every frequency by the inverse of the disturbance there. Repeated, it is the estimate
of greatest likelihood with an autoregressive disturbance (generalized least squares: Clarke, Proc. IFAC Symp.
Identification, 1967; Ljung, System Identification, 1999, section 10.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..._util.arrays import Array
from ..diagnostics.uncertainty import AKAIKE_PENALTY, autoregression
from ..linear_fit import FittedModel, fit_levels
from ..output_error import refine

_ITERATIONS = 2
_STEPS = 25


def whitened_fit(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array], errors: Sequence[Array], *, stable: bool
) -> FittedModel:
    """Refine a model with these residuals (p, T): on the simulated output itself where they are white.

    One filter serves all outputs, since the records have only one input signal for them.
    """
    offsets = bool(np.any(model.offset))
    for _ in range(_ITERATIONS):
        coefficients = noise_filter(errors)
        white_us, white_ys = filtered(coefficients, us), filtered(coefficients, ys)
        start, _ = fit_levels(model, white_us, white_ys, offsets)
        refined = refine(start, white_us, white_ys, stable=stable, max_steps=_STEPS, rtol=1e-5)
        model, errors = fit_levels(refined, us, ys, offsets)
        if coefficients.size == 1:
            break
    return model


def noise_filter(errors: Sequence[Array], penalty: float = AKAIKE_PENALTY) -> Array:
    """Return the filter ``1, a_1, ..., a_q`` that whitens residuals (p, T).

    The penalty is that of each coefficient.
    """
    size = np.sqrt(np.mean(np.concatenate(errors, axis=1) ** 2, axis=1))
    channels = [channel / s for error in errors for channel, s in zip(error, size, strict=True) if s > 0]
    return autoregression(channels, penalty=penalty) if channels else np.ones(1)


def filtered(coefficients: Array, records: Sequence[Array]) -> list[Array]:
    """Return signals (channels, T) after a filter, without the first samples, whose past is unknown."""
    past = coefficients.size - 1
    return [
        np.asarray(sum(a * x[:, past - k : x.shape[1] - k] for k, a in enumerate(coefficients)))
        for x in records
    ]
