"""Processes that are unstable in open loop, estimated by the one-step prediction, and integrating ones.

Of a stable process, the unknown levels of inputs and outputs are one offset of the output. An integrator
sums the input: where the mean of the record is subtracted in place of the level, the output has a ramp of
unknown slope in addition, and a model without it needs one more state. Here a constant is one more input,
whose effect on the states is estimated with theirs; it is then expressed as a level of the inputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import HankelredError, ReductionWarning
from .linear_fit import FittedModel, fit_inputs_of_each, fit_levels, mean_square, with_initial_states
from .noise.information_criterion import order_trials
from .noise.innovations import innovations_model, unstable_pole, with_outputs
from .noise.whitening import whitened_fit
from .order_selection import (
    NOISE_FREE,
    Recipe,
    ScaledRecords,
    SelectedModel,
    fits,
    linear_models,
    scale_records,
    split_records,
)
from .output_error import on_stability_limit, refine, spectral_radius, usable_matrices
from .subspace import determines_horizon, subspaces

#: An output is simulated without a warning if errors grow by no more than this factor over the record.
_HARMLESS_GROWTH = 1.1
#: An unstable model is far better if it leaves less than this share of the mean square that the stable one
#: leaves, and if its response grows by more than this factor over the record: an integrator or a drift, of
#: which a stable model with too few states describes little, is followed by poles just outside the circle.
_FAR_BETTER = 0.1
_UNSTABLE_GROWTH = 7.0
#: Of the unstable models the smallest order is named whose mean square is below this multiple of the least.
_NEARLY_BEST = 2.0
#: Largest order, and number of horizons, of the unstable models that a stable one is compared with.
_FREE_ORDER = 6
_FREE_HORIZONS = 2
#: The output may grow if this share of its squares belongs to the last fifth of a record.
_GROWING = 0.4
#: A pole may be an integrator if over the longest record its response falls by less than this exponent.
_DECAY = 3.0
#: Steps of the refinement that looks for a model without noise.
_STEPS = 25


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


def far_better_unstable_model(
    chosen: SelectedModel, horizons: Sequence[int], max_order: int, *, offsets: bool
) -> FittedModel | None:
    """Return an unstable model that explains the records far better than the chosen stable one, if any.

    Without noise, or with little, the output of an unstable process grows until nothing else is left, and its
    one-step prediction has no errors that a pole could be tested with.
    """
    us, ys = chosen.data.inputs, chosen.data.outputs
    if not on_stability_limit(chosen.model.A) and not any(_may_grow(y) for y in ys):
        return None
    limit = _FAR_BETTER * mean_square(chosen.errors())
    spaces = [space for h in horizons[:_FREE_HORIZONS] for space in subspaces(us, ys, h)]
    orders = range(1, min(max_order, _FREE_ORDER) + 1)
    of_every_order = linear_models(us, ys, spaces, orders, offsets=offsets, stable=False)
    samples = max(u.shape[1] for u in us)
    models = [
        model
        for _, model in of_every_order
        if model.loss < limit and _grows(spectral_radius(model.A), samples, _UNSTABLE_GROWTH)
    ]
    least = min((model.loss for model in models), default=0.0)
    # smaller orders come first
    return next((model for model in models if model.loss <= _NEARLY_BEST * least), None)


def _may_grow(y: Array) -> bool:
    squares = np.sum(y**2, axis=1)
    last = np.sum(y[:, -(-4 * y.shape[1] // 5) :] ** 2, axis=1)
    return bool(np.any(last > _GROWING * squares))


def _grows(radius: float, samples: int, factor: float) -> bool:
    return radius > 1 and samples * math.log(radius) > math.log(factor)


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
    if _grows(radius, samples, _HARMLESS_GROWTH):
        warnings.warn(
            f"the model has a pole of modulus {radius:.9g}, outside the unit circle, and its output is "
            "simulated: any error of it grows without bound in a long record. Compare short records, or "
            "identify a model with stable=True",
            ReductionWarning,
            stacklevel=stacklevel + 1,
        )


def may_integrate(selected: SelectedModel) -> bool:
    """Whether a pole is so near to 1 that the records are too short to tell it from an integrator."""
    poles = np.linalg.eigvals(selected.model.A)
    longest = max(u.shape[1] for u in selected.data.inputs)
    return bool(np.any(np.abs(poles - 1) < _DECAY / longest))


def integrating_process(
    us: Sequence[Array],
    ys: Sequence[Array],
    orders: Sequence[int],
    horizons: Sequence[int],
    *,
    stable: bool,
    noise_free: bool,
) -> SelectedModel | None:
    """Return the model, with the levels of the inputs estimated, that Schwarz's criterion prefers.

    Of `noise_free` records it is the smallest that describes them to rounding. None if there is no model.
    """
    split = split_records(us, ys, True, 0)
    whole = replace(split.estimation, inputs=split.whole_inputs, outputs=split.whole_outputs)
    starts = _starts(whole, orders, horizons, stable=stable)
    if noise_free:
        start = _smallest_exact(starts, whole, stable=stable)
    else:
        start = _of_least_criterion(starts, whole, stable=stable)
    if start is None:
        return None
    model, data = _with_levels(start, whole, stable=stable)
    of_part, part = _with_levels(start, split.estimation, stable=stable)
    validation_us = [u + _shift(split.estimation, part)[:, None] for u in split.validation_inputs]
    validation_ys = split.validation_outputs
    of_part = with_initial_states(of_part, validation_us, validation_ys)
    held_back_fit = fits(of_part, validation_us, validation_ys)
    return SelectedModel(model, data, Recipe("", model.order, "refined", True, True), held_back_fit)


def _smallest_exact(
    starts: Mapping[int, FittedModel], data: ScaledRecords, *, stable: bool
) -> FittedModel | None:
    for order in sorted(starts):
        us, ys = _with_constant(data.inputs), data.outputs
        model = refine(starts[order], us, ys, stable=stable, max_steps=_STEPS, rtol=1e-4)
        if model.loss < NOISE_FREE:
            return model
    return None


def _of_least_criterion(
    starts: Mapping[int, FittedModel], data: ScaledRecords, *, stable: bool
) -> FittedModel | None:
    if not starts:
        return None
    us, m = _with_constant(data.inputs), data.inputs[0].shape[0]
    trials = order_trials(starts, us, data.outputs, offsets=False, stable=stable, n_inputs=m)
    return min(trials.values(), key=lambda trial: trial.criterion).model


def _with_constant(us: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(np.vstack([u, np.ones((1, u.shape[1]))]) for u in us)


def _starts(
    data: ScaledRecords, orders: Sequence[int], horizons: Sequence[int], *, stable: bool
) -> dict[int, FittedModel]:
    """Return the best model of every order, of subspaces of the differences, which have no levels."""
    us, ys = data.inputs, data.outputs
    extended = _with_constant(us)
    du, dy = (tuple(np.diff(x, axis=1) for x in signals) for signals in (us, ys))
    lengths, channels = [u.shape[1] for u in du], us[0].shape[0] + ys[0].shape[0]
    spaces = [s for h in horizons if determines_horizon(lengths, channels, h) for s in subspaces(du, dy, h)]
    out: dict[int, FittedModel] = {}
    for order in orders:
        pairs = [
            pair
            for space in spaces
            if order <= space.max_order and (pair := usable_matrices(*space.build(order), stable=stable))
        ]
        models = [of_pair[0] for of_pair in fit_inputs_of_each(pairs, extended, ys, False)]
        best = min(models, key=lambda model: model.loss, default=None)
        if best is not None and np.isfinite(best.loss):
            out[order] = best
    return out


def _with_levels(
    start: FittedModel, data: ScaledRecords, *, stable: bool
) -> tuple[FittedModel, ScaledRecords]:
    """Refine a model of inputs and a constant; return it without the constant, and records with its levels.

    The constant and a shift of the inputs act alike on the pole nearest to 1; what is left of the constant
    only changes the offset and the initial states.
    """
    us, ys = _with_constant(data.inputs), data.outputs
    start, errors = fit_levels(start, us, ys, False)
    model = start
    if start.loss > NOISE_FREE:
        model = whitened_fit(start, us, ys, errors, stable=stable)
    poles, left, _ = sla.eig(model.A, left=True, right=True)
    by_pole = left[:, np.argmin(np.abs(poles - 1))].conj() @ model.B
    # a complex pole has two equations
    equations = np.stack([by_pole.real, by_pole.imag])
    shift = np.linalg.lstsq(equations[:, :-1], equations[:, -1], rcond=None)[0]
    moved = replace(
        data,
        inputs=tuple(u + shift[:, None] for u in data.inputs),
        input_offset=data.input_offset - shift * data.input_scale,
    )
    without = replace(model, B=model.B[:, :-1], D=model.D[:, :-1])
    return fit_levels(without, moved.inputs, ys, True)[0], moved


def _shift(data: ScaledRecords, moved: ScaledRecords) -> Array:
    return np.asarray((data.input_offset - moved.input_offset) / data.input_scale)
