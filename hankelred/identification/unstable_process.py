"""Processes that are unstable in open loop: found, and estimated by the one-step prediction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._util.arrays import Array
from ..errors import HankelredError, ReductionWarning
from .noise.innovations import innovations_model, unstable_pole, with_outputs
from .order_selection import Recipe, SelectedModel, fits, scale_records, split_records
from .output_error import spectral_radius, with_initial_states

#: An output is simulated without a warning if errors grow by no more than this factor over the record.
_HARMLESS_GROWTH = 1.1


@dataclass(frozen=True)
class UnstableProcess:
    """A model in innovations form with a pole that is significantly outside the unit circle."""

    order: int
    pole: complex
    #: standard error of the pole
    error: float
    selected: SelectedModel


def unstable_process(
    us: Sequence[Array], ys: Sequence[Array], orders: Sequence[int], *, offsets: bool
) -> UnstableProcess | None:
    """Return a model of the process if the records show that it is unstable in open loop.

    The order is that of Schwarz's criterion for the one-step prediction. None of records whose first part is
    too short to estimate this order from, since its validation fit is then unknown.
    """
    data = scale_records(us, ys, offsets)
    model = innovations_model(data.inputs, data.outputs, orders, offsets=offsets)
    pole_and_error = None if model is None else unstable_pole(model, data.inputs, data.outputs)
    if model is None or pole_and_error is None:
        return None
    order = model.predictor.order
    process = model.process(data.inputs, data.outputs)
    split = split_records(us, ys, offsets, 0)
    part = split.estimation
    of_part = innovations_model(part.inputs, part.outputs, [order], offsets=offsets)
    if of_part is None:
        return None
    validation_ys = split.validation_outputs
    validation = with_outputs(split.validation_inputs, validation_ys), validation_ys
    held_back_fit = fits(with_initial_states(of_part.predictor, *validation), *validation)
    recipe = Recipe("innovations", order, "refined", offsets)
    return UnstableProcess(order, *pole_and_error, SelectedModel(process, data, recipe, held_back_fit, model))


def check_simulation(A: Array, output: Array, *, stacklevel: int) -> None:
    """Check the simulated output (p, T), or its error, of a model that may be unstable.

    Raises
    ------
    HankelredError
        The output is too large for double precision.

    Warns
    -----
    ReductionWarning
        Errors of the output grow markedly over the record.
    """
    radius, samples = spectral_radius(A), output.shape[1]
    if not np.all(np.isfinite(output)):
        raise HankelredError(
            f"the simulated output of {samples} samples grows beyond the largest number: the model has a "
            f"pole of modulus {radius:.6g}. Simulate shorter records, or identify a model with stable=True"
        )
    if radius > 1 and samples * math.log(radius) > math.log(_HARMLESS_GROWTH):
        warnings.warn(
            f"the model has a pole of modulus {radius:.9g}, outside the unit circle, and its output is "
            "simulated: any error of it grows without bound in a long record. Compare short records, or "
            "identify a model with stable=True",
            ReductionWarning,
            stacklevel=stacklevel + 1,
        )
