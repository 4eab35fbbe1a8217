"""Choosing the order of a model and how it is estimated.

By an information criterion and by the fit to a validation part of the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .._util.arrays import Array
from .._util.progress import with_progress_bar
from ..errors import HankelredError
from .linear_fit import (
    FittedModel,
    fit_initial_states_of_each,
    fit_inputs,
    fit_inputs_of_each,
    fit_levels,
    in_groups,
    residuals,
    with_initial_states,
)
from .noise.information_criterion import OrderTrial, order_trials, schwarz_criterion
from .noise.innovations import InnovationsModel
from .noise.whitening import whitened_fit
from .output_error import on_stability_limit, refine, truncated_starts, usable_matrices
from .subspace import Subspace, determines_horizon, subspaces

#: Share of every record that candidate models are estimated from; the other samples are for validation.
ESTIMATION_SHARE = 0.7
#: The largest order tried where the user gives none.
MAX_ORDER = 12
_HORIZONS = (3, 5, 10, 15, 20, 30)
#: One more horizon, whose models only start a refinement: by themselves they have a large variance.
_START_HORIZON = 60
#: Most zeros put before a record that starts from rest: as many as the block rows of the longest horizon.
MAX_LEADING_ZEROS = 2 * _START_HORIZON + 1
#: All weightings of subspaces with more block rows than this, times the channels, take too long.
_MAX_BLOCK_ROWS = 260
#: Steps of refinement for every order before the choice.
_FIRST_STEPS = 12
#: A refined model is preferred if its validation error is below this share of that of the others.
_REFINEMENT_FACTOR = 0.9
#: So is a model with a pole on the stability limit to those without.
_LIMIT_FACTOR = 0.9
#: An order is preferred to a larger one whose validation error is smaller by less than this share ...
_PARSIMONY = 0.01
#: ... or by less than this many standard errors of the difference, but at most by this share ...
_STANDARD_ERRORS = 1.0
_MAX_UNCERTAINTY = 0.1
#: ... or by less than this, in units of the output's own size: rounding.
_ROUNDING = 1e-9
#: A refinement with a noise model is used unless its validation error is larger by this share: it is the more
#: efficient estimate, and the comparison is uncertain by more.
_WHITENED_TOLERANCE = 0.02
#: The order of the information criterion is used unless the validation part prefers another one by more
#: standard errors of the difference than this, and by a larger share of the error.
_CLEAR_ERRORS = 2.0
_CLEAR_SHARE = 0.05
#: The validation part is cut into this many pieces; leaving out each in turn gives a score's standard error.
_PIECES = 10
#: A validation error, in units of the output's own size, below which no model is refined.
_NEGLIGIBLE_ERROR = 1e-6
#: Mean square of the residual, in units of the output's own size, below which a record counts as noise-free.
NOISE_FREE = 1e-8


@dataclass(frozen=True)
class Recipe:
    """How a model is estimated: applicable to any records of the same process."""

    #: method and horizon of the subspace; empty for a refined model, which starts from the best of all
    source: str
    order: int
    #: "linear" or "refined"
    kind: str
    #: whether an output offset is estimated beyond the mean
    offset: bool
    #: whether it is refined with a noise model at the end
    whitened: bool = False


@dataclass(frozen=True)
class ScaledRecords:
    """Records with offsets removed, in units of their own size, and the transformation back."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    input_offset: Array
    output_offset: Array
    input_scale: Array
    output_scale: Array

    def apply(self, us: Sequence[Array], ys: Sequence[Array]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Transform other records to the same units."""
        return (
            tuple((u - self.input_offset[:, None]) / self.input_scale[:, None] for u in us),
            tuple((y - self.output_offset[:, None]) / self.output_scale[:, None] for y in ys),
        )

    def unscaled(self, model: FittedModel) -> tuple[Array, Array, Array, Array]:
        """Return the matrices of a model in the user's units."""
        return (
            model.A,
            model.B / self.input_scale,
            self.output_scale[:, None] * model.C,
            self.output_scale[:, None] * model.D / self.input_scale,
        )


def scale_records(us: Sequence[Array], ys: Sequence[Array], offsets: bool) -> ScaledRecords:
    """Scale records to unit size, so that nothing later depends on the units."""
    input_offset, input_scale = _offset_and_scale(us, offsets)
    output_offset, output_scale = _offset_and_scale(ys, offsets)
    transform = ScaledRecords((), (), input_offset, output_offset, input_scale, output_scale)
    inputs, outputs = transform.apply(us, ys)
    return ScaledRecords(inputs, outputs, input_offset, output_offset, input_scale, output_scale)


def _offset_and_scale(records: Sequence[Array], offsets: bool) -> tuple[Array, Array]:
    joined = np.concatenate(records, axis=1)
    offset = joined.mean(axis=1) if offsets else np.zeros(joined.shape[0])
    scale = np.sqrt(np.mean((joined - offset[:, None]) ** 2, axis=1))
    scale[scale == 0] = 1.0  # a channel that is constant in this part only
    return offset, scale


def fits(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array], *, n_zeros: int = 0, centered: bool = True
) -> Array:
    """Return ``1 - |y - yhat| / |y - mean|`` of each output, over all records together.

    A constant output counts as 0. The first `n_zeros` samples are left out; where levels are known (not
    `centered`), the output is measured from zero instead of from its mean.
    An output that grows beyond all numbers has the fit -inf.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        error = sum(np.sum(e[:, n_zeros:] ** 2, axis=1) for e in residuals(model, us, ys))
    error = np.nan_to_num(error, nan=np.inf, posinf=np.inf)
    spread = sum(np.sum((_centered(y[:, n_zeros:]) if centered else y) ** 2, axis=1) for y in ys)
    ratio = np.divide(error, spread, out=np.ones_like(spread), where=spread > 0)
    return np.asarray(1 - np.sqrt(ratio))


def _centered(y: Array) -> Array:
    return np.asarray(y - y.mean(axis=1, keepdims=True))


def usable_horizons(lengths: Sequence[int], n_channels: int, n_outputs: int, order: int | None) -> list[int]:
    """Return the horizons (numbers of block rows) for which records of these lengths are long enough.

    With an `order`, only horizons that determine a model of this order.
    """
    horizons = [h for h in _HORIZONS if _is_usable(lengths, n_channels, h)]
    # Longer horizons capture slow states and delayed responses; four are enough to choose from.
    horizons = horizons[-4:]
    if _is_usable(lengths, n_channels, _START_HORIZON):
        horizons.append(_START_HORIZON)
    if order is not None:
        least = _least_horizon(n_outputs, order)
        horizons = [h for h in horizons if h >= least]
        if not horizons and _is_usable(lengths, n_channels, least):
            horizons = [least]
    return horizons


def least_samples(n_channels: int, n_outputs: int, order: int | None) -> int:
    """Return the length of a single record from which a model can be estimated."""
    h = _HORIZONS[0] if order is None else max(_HORIZONS[0], _least_horizon(n_outputs, order))
    return int(np.ceil(max(2 * (2 * h + 1) * n_channels, 4 * h + 2) / ESTIMATION_SHARE))


def _least_horizon(n_outputs: int, order: int) -> int:
    return -(-order // n_outputs) + 1  # the shift structure needs one block row more than the states fill


def _is_usable(lengths: Sequence[int], n_channels: int, h: int) -> bool:
    return (2 * h + 1) * n_channels <= _MAX_BLOCK_ROWS and determines_horizon(lengths, n_channels, h)


def linear_models(
    us: Sequence[Array],
    ys: Sequence[Array],
    spaces: Sequence[Subspace],
    orders: Iterable[int],
    *,
    offsets: bool,
    stable: bool,
) -> Iterator[tuple[Recipe, FittedModel]]:
    """Yield every model of these orders that linear least squares gives, without iteration."""
    for order in orders:
        matrices = {
            space.name: pair
            for space in spaces
            if order <= space.max_order and (pair := usable_matrices(*space.build(order), stable=stable))
        }
        fitted = fit_inputs_of_each(list(matrices.values()), us, ys, offsets)
        for name, models in zip(matrices, fitted, strict=True):
            for model in models:
                if np.isfinite(model.loss):
                    yield Recipe(name, order, "linear", bool(np.any(model.offset))), model


@dataclass(frozen=True)
class Candidate:
    """A model of the estimation part, and its mean fit to the validation part."""

    score: float
    model: FittedModel
    #: the score with each piece of the validation part left out in turn
    jackknife_scores: Array


@dataclass(frozen=True)
class DataSplit:
    """Records cut in two: the part that candidate models are estimated from, and the validation part."""

    estimation: ScaledRecords
    validation_inputs: tuple[Array, ...]
    validation_outputs: tuple[Array, ...]
    #: number of zeros before every record of a step test, which starts from rest
    n_zeros: int
    #: the whole records, with these zeros
    whole_inputs: tuple[Array, ...]
    whole_outputs: tuple[Array, ...]

    @property
    def scored(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """What models are scored on.

        For a step test, whose end carries little information, these are the whole records.
        """
        if self.n_zeros:
            return self.whole_inputs, self.whole_outputs
        return self.validation_inputs, self.validation_outputs

    @cached_property
    def spread(self) -> Array:
        """Sums of squares of these outputs about their means: of all, and without each piece in turn."""
        ys = [_centered(y[:, self.n_zeros :]) for y in self.scored[1]]
        return _with_pieces_left_out(sums_over_pieces(np.concatenate(ys, axis=1) ** 2))


def estimation_length(samples: int, n_zeros: int) -> int:
    """Return how many samples of a record candidate models are estimated from."""
    return n_zeros + round(ESTIMATION_SHARE * (samples - n_zeros))


def split_records(us: Sequence[Array], ys: Sequence[Array], offsets: bool, n_zeros: int) -> DataSplit:
    """Use the last part of every record for validation; its `n_zeros` leading zeros are not counted."""

    def cut(x: Array) -> tuple[Array, Array]:
        length = estimation_length(x.shape[1], n_zeros)
        return x[:, :length], x[:, length:]

    estimation_us, validation_us = zip(*(cut(u) for u in us), strict=True)
    estimation_ys, validation_ys = zip(*(cut(y) for y in ys), strict=True)
    if not any(np.ptp(y, axis=1).any() for y in estimation_ys):
        raise HankelredError(
            f"no output moves in the first {ESTIMATION_SHARE:.0%} of the record, which candidate models are "
            "estimated from; pass a record that moves early on, or leave out its beginning"
        )
    estimation = scale_records(estimation_us, estimation_ys, offsets)
    return DataSplit(
        estimation,
        *estimation.apply(validation_us, validation_ys),
        n_zeros,
        *estimation.apply(us, ys),
    )


def candidate_models(
    split: DataSplit,
    orders: Sequence[int],
    horizons: Sequence[int],
    start_orders: Sequence[int] = (),
    *,
    offsets: bool,
    stable: bool,
    progress: bool = False,
) -> dict[Recipe, Candidate]:
    """Estimate a model by every recipe on the estimation part, and score each on the validation part.

    Models of `start_orders`, which are larger, only serve as starts for the refinement of smaller ones.
    """
    us, ys = split.estimation.inputs, split.estimation.outputs
    shown_horizons = with_progress_bar(horizons, "Subspaces (horizons)", progress, len(horizons))
    spaces = [space for h in shown_horizons for space in subspaces(us, ys, h)]
    max_order = max(space.max_order for space in spaces)
    if max_order == 0:
        raise HankelredError(
            "the record shows no state: the output follows the input at once; fit a static gain by least "
            "squares"
        )
    orders = sorted({min(n, max_order) for n in orders})
    all_orders = sorted({*orders, *(n for n in start_orders if orders[-1] < n <= max_order)})
    linear, starts = _linear_candidates(split, spaces, all_orders, offsets, stable, progress)
    candidates = {recipe: candidate for recipe, candidate in linear.items() if recipe.order in orders}
    best_score = max((candidate.score for candidate in candidates.values()), default=np.inf)
    if best_score > 1 - _NEGLIGIBLE_ERROR:
        return candidates
    refined = _refined_candidates(split, linear, starts, all_orders, offsets, stable, progress)
    return candidates | {r: candidate for r, candidate in refined.items() if r.order in orders}


def _linear_candidates(
    split: DataSplit,
    spaces: Sequence[Subspace],
    orders: Sequence[int],
    offsets: bool,
    stable: bool,
    progress: bool,
) -> tuple[dict[Recipe, Candidate], list[tuple[Recipe, FittedModel]]]:
    """Return the scored candidates of linear least squares, and models that only start a refinement."""
    us, ys = split.estimation.inputs, split.estimation.outputs
    candidates: dict[Recipe, Candidate] = {}
    starts: list[tuple[Recipe, FittedModel]] = []
    for order in with_progress_bar(orders, "Trial models (orders)", progress, len(orders)):
        models = dict(linear_models(us, ys, spaces, [order], offsets=offsets, stable=stable))
        # unless no other horizon determines this order
        scored = {r: m for r, m in models.items() if not r.source.endswith(f"-{_START_HORIZON}")} or models
        starts += [item for item in models.items() if item[0] not in scored]
        candidates |= zip(scored, score_models(list(scored.values()), split), strict=True)
    return candidates, starts


def _refined_candidates(
    split: DataSplit,
    linear: dict[Recipe, Candidate],
    extra_starts: Sequence[tuple[Recipe, FittedModel]],
    orders: Sequence[int],
    offsets: bool,
    stable: bool,
    progress: bool,
) -> dict[Recipe, Candidate]:
    """Refine one model of every order by its simulated output, from the largest order down.

    A refined model, truncated by its weakest states, is one more start for the next smaller order: starts
    from subspaces alone are poor where noise hides the weaker modes at every horizon.
    """
    us, ys = split.estimation.inputs, split.estimation.outputs
    refined: dict[Recipe, Candidate] = {}
    larger_model: FittedModel | None = None
    for order in with_progress_bar(orders[::-1], "Refinement (orders)", progress, len(orders)):
        of_order = [(recipe, candidate) for recipe, candidate in linear.items() if recipe.order == order]
        if not of_order:
            continue
        best_recipe, _ = max(of_order, key=lambda item: (item[1].score, not item[0].offset))
        offset = best_recipe.offset
        starts = [candidate.model for recipe, candidate in of_order if recipe.offset == offset]
        starts += [m for recipe, m in extra_starts if (recipe.order, recipe.offset) == (order, offset)]
        if larger_model is not None:
            truncated_models = truncated_starts(larger_model, order, us, ys, offsets, stable=stable)
            starts += [m for m in truncated_models if bool(np.any(m.offset)) == offset]
        start = min(starts, key=lambda model: model.loss)
        larger_model = refine(start, us, ys, stable=stable, max_steps=_FIRST_STEPS, rtol=1e-4)
        refined[Recipe("", order, "refined", offset)] = score_model(larger_model, split)
    return refined


def score_model(model: FittedModel, split: DataSplit) -> Candidate:
    """Score a model by its mean fit to the validation part."""
    return score_models([model], split)[0]


def score_models(models: Sequence[FittedModel], split: DataSplit) -> list[Candidate]:
    """Score models of one order by their mean fit to the validation part."""
    us, ys = split.scored
    # As in later use, offsets and initial state of the validation part are unknown: the offsets are those of
    # the estimation part, the initial state is estimated.
    out: list[Candidate] = []
    for group in in_groups(models, sum(y.size for y in ys) * max((m.order for m in models), default=1)):
        fitted = fit_initial_states_of_each(group, us, ys)
        out += _scored(group, split, [[e[:, split.n_zeros :] for e in residual] for _, residual in fitted])
    return out


def score_continued(model: FittedModel, split: DataSplit, offsets: bool) -> Candidate:
    """Score a model on the validation part as the continuation of the estimation part.

    No initial state is fitted there, so that free oscillations of superfluous states cannot follow a resonant
    disturbance. With `offsets` the level of the outputs is fitted: slow disturbances change it, whatever
    the order is.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        residual = residuals(model, split.whole_inputs, split.whole_outputs)
    lengths = [y.shape[1] for y in split.validation_outputs]
    errors = [e[:, -n:] for e, n in zip(residual, lengths, strict=True)]
    return _scored([model], split, [[_centered(e) for e in errors] if offsets else errors])[0]


def _scored(
    models: Sequence[FittedModel], split: DataSplit, residuals_of_each: Sequence[Sequence[Array]]
) -> list[Candidate]:
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.stack([np.concatenate(e, axis=1) for e in residuals_of_each]) ** 2
    size, model = errors[0].size, models[0]
    if split.n_zeros:
        # Akaike's final prediction error: the model was fitted to (most of) these samples
        n_parameters = model.B.size + model.C.size + model.D.size
        penalty = (size + n_parameters) / max(size - n_parameters, 1)
    else:
        # An initial state fitted to the same samples costs as many degrees of freedom.
        penalty = size / max(size - model.order * len(residuals_of_each[0]), 1)
    scores = _mean_fit(_with_pieces_left_out(sums_over_pieces(errors)), split.spread, penalty)
    return [Candidate(float(s[0]), m, s[1:]) for m, s in zip(models, scores, strict=True)]


def _with_pieces_left_out(sums: Array) -> Array:
    """Return the sum over all pieces, and those without each piece in turn."""
    total = sums.sum(axis=-1, keepdims=True)
    return np.concatenate([total, np.maximum(total - sums, 0)], axis=-1)


def sums_over_pieces(x: Array) -> Array:
    """Return the sums over pieces of consecutive samples, on the last axis."""
    edges = np.linspace(0, x.shape[-1], min(_PIECES, x.shape[-1]), endpoint=False).astype(int)
    return np.asarray(np.add.reduceat(x, edges, axis=-1))


def _mean_fit(error: Array, spread: Array, penalty: float) -> Array:
    with np.errstate(invalid="ignore"):
        ratio = np.divide(error, spread, out=np.ones_like(error), where=spread > 0)
        fit = 1 - np.sqrt(ratio * penalty)
    # An output that is not explained counts as -1 at worst: the others can then still rank the models.
    return np.asarray(np.mean(np.clip(np.nan_to_num(fit, nan=-1.0), -1.0, 1.0), axis=-2))


@dataclass(frozen=True)
class SelectedModel:
    """The chosen model, estimated from all samples, in scaled units."""

    model: FittedModel
    data: ScaledRecords
    recipe: Recipe
    #: fit of each output on the validation part, of the model of the estimation part alone
    held_back_fit: Array
    #: the predictor that it was estimated as, if the process is unstable in open loop
    innovations: InnovationsModel | None = None
    #: the model without the states of input delays, of records in which the inputs come later by these
    undelayed: SelectedModel | None = None
    delays: tuple[int, ...] = ()

    def errors(self) -> list[Array]:
        """Return the errors (p, T), in scaled units, of the simulated output or the one-step prediction."""
        if self.innovations is not None:
            return self.innovations.prediction_errors(self.data.inputs, self.data.outputs)
        return residuals(self.model, self.data.inputs, self.data.outputs)

    def rating(self) -> float:
        """Return Schwarz's criterion, with an autoregression of the residuals: the smaller, the better."""
        errors = residuals(self.model, self.data.inputs, self.data.outputs)
        n_free = self.model.order if self.undelayed is None else self.undelayed.model.order
        channels = self.data.input_scale.size + self.data.output_scale.size
        n_delays = sum(d > 0 for d in self.delays)
        return schwarz_criterion(
            [e * self.data.output_scale[:, None] for e in errors], n_free * channels + n_delays
        )


def select_model(
    us: Sequence[Array],
    ys: Sequence[Array],
    orders: Sequence[int],
    horizons: Sequence[int],
    start_orders: Sequence[int] = (),
    *,
    offsets: bool,
    stable: bool,
    n_zeros: int = 0,
    progress: bool = False,
) -> SelectedModel:
    """Choose recipe and order by the criterion or the validation part, then estimate from all samples."""
    split = split_records(us, ys, offsets, n_zeros)
    candidates = candidate_models(
        split, orders, horizons, start_orders, offsets=offsets, stable=stable, progress=progress
    )
    trials: dict[int, OrderTrial] = {}
    if len(orders) > 1:
        trials = _trials_with_noise_model(candidates, split, offsets=offsets, stable=stable)
    data = scale_records(us, ys, offsets)
    recipe = choose_recipe(candidates)
    chosen = _chosen_by_criterion(
        trials, candidates, candidates[recipe], split, offsets=offsets, stable=stable
    )
    if chosen is not None:
        recipe, candidate = chosen
        model = _estimate_with_noise_model(
            trials[recipe.order].model, split, data, offsets=offsets, stable=stable
        )
    else:
        recipe, candidate = _with_noise_model(recipe, candidates, split, stable=stable)
        model = _estimate_from_all(recipe, candidate, data, horizons, offsets=offsets, stable=stable)
    model_on_data = with_initial_states(candidate, split.validation_inputs, split.validation_outputs)
    held_back_fit = fits(
        model_on_data, split.validation_inputs, split.validation_outputs, centered=not n_zeros
    )
    return SelectedModel(model, data, recipe, held_back_fit)


def choose_recipe(candidates: dict[Recipe, Candidate]) -> Recipe:
    """Return the recipe of the best score, preferring a smaller order where the difference is uncertain."""

    def margin(recipe: Recipe) -> float:
        # A refined model follows the estimation part more closely, drifts and disturbances included, and a
        # pole on the stability limit was moved there: both have to be better by a clear margin.
        factor = _REFINEMENT_FACTOR if recipe.kind == "refined" else 1.0
        return factor * _LIMIT_FACTOR if on_stability_limit(candidates[recipe].model.A) else factor

    recipes = list(candidates)
    margins = np.array([margin(recipe) for recipe in recipes])
    errors = (1 - np.array([candidates[recipe].score for recipe in recipes])) / margins
    relative = np.stack([candidates[recipe].jackknife_scores for recipe in recipes]) / margins[:, None]
    best = int(np.argmin(errors))
    uncertainties = np.minimum(
        _STANDARD_ERRORS * _standard_errors(relative[best] - relative), _MAX_UNCERTAINTY * errors[best]
    )
    tolerances = np.maximum(uncertainties, _PARSIMONY * errors[best]) + _ROUNDING
    order = min(recipes[i].order for i in np.flatnonzero(errors <= errors[best] + tolerances))
    of_order = [i for i, recipe in enumerate(recipes) if recipe.order == order]
    return recipes[min(of_order, key=lambda i: errors[i])]


def _standard_errors(differences: Array) -> Array:
    """Return standard errors of differences of two scores, from those with each piece left out in turn.

    They are those of the jackknife, on the same samples; the pieces are the last axis.
    """
    centered = differences - differences.mean(axis=-1, keepdims=True)
    return np.asarray(np.sqrt((differences.shape[-1] - 1) * np.mean(centered**2, axis=-1)))


def _trials_with_noise_model(
    candidates: dict[Recipe, Candidate], split: DataSplit, *, offsets: bool, stable: bool
) -> dict[int, OrderTrial]:
    """Rate a model of every order by the information criterion; none without disturbance or before a step."""
    refined = {recipe.order: c.model for recipe, c in candidates.items() if recipe.kind == "refined"}
    if split.n_zeros or not refined or min(model.loss for model in refined.values()) < NOISE_FREE:
        return {}
    return order_trials(refined, split.whole_inputs, split.whole_outputs, offsets=offsets, stable=stable)


def _chosen_by_criterion(
    trials: dict[int, OrderTrial],
    candidates: dict[Recipe, Candidate],
    by_validation: Candidate,
    split: DataSplit,
    *,
    offsets: bool,
    stable: bool,
) -> tuple[Recipe, FittedModel] | None:
    """Return the recipe of the information criterion and its model; None if they are refuted.

    The criterion compares orders on all samples and models the color of the disturbance. Neither process nor
    disturbance may be as assumed: the validation part decides where its preference is clear.
    """
    usable = [n for n, trial in trials.items() if not on_stability_limit(trial.model.A)]
    if not usable:
        return None
    order = min(usable, key=lambda n: trials[n].criterion)
    recipe = next(r for r in candidates if r.kind == "refined" and r.order == order)
    data = split.estimation
    # the candidate of the estimation part can be in a local minimum
    starts = candidates[recipe].model, fit_levels(trials[order].model, data.inputs, data.outputs, offsets)[0]
    start = min(starts, key=lambda model: model.loss)
    errors = residuals(start, data.inputs, data.outputs)
    # the trial was estimated from the validation part too: it is refined here
    model = whitened_fit(start, data.inputs, data.outputs, errors, stable=stable)
    score = score_continued(model, split, offsets)
    if _clearly_better(score_continued(by_validation.model, split, offsets), score):
        return None
    # the model that will be returned may be in another minimum than the one compared here
    if _clearly_better(score, score_continued(trials[order].model, split, offsets)):
        return None
    return replace(recipe, whitened=True), model


def _clearly_better(first: Candidate, second: Candidate) -> bool:
    difference = first.jackknife_scores - second.jackknife_scores
    least = max(_CLEAR_ERRORS * float(_standard_errors(difference)), _CLEAR_SHARE * (1 - first.score))
    return first.score - second.score > least


def _estimate_with_noise_model(
    start: FittedModel, split: DataSplit, data: ScaledRecords, *, offsets: bool, stable: bool
) -> FittedModel:
    """Estimate the model of the criterion from all samples.

    It is converted to their units, and refined with a noise model unless that moves a pole to the stability
    limit.
    """
    us, ys = data.inputs, data.outputs
    outputs = split.estimation.output_scale / data.output_scale
    inputs = data.input_scale / split.estimation.input_scale
    start = replace(
        start, B=start.B * inputs, C=outputs[:, None] * start.C, D=outputs[:, None] * start.D * inputs
    )
    start, errors = fit_levels(start, us, ys, offsets)
    return _refined_with_noise_model(start, us, ys, errors, stable=stable) or start


def _refined_with_noise_model(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array], errors: Sequence[Array], *, stable: bool
) -> FittedModel | None:
    """Refine a model with these residuals; None if a pole moves to the stability limit."""
    whitened = whitened_fit(model, us, ys, errors, stable=stable)
    return None if on_stability_limit(whitened.A) > on_stability_limit(model.A) else whitened


def _with_noise_model(
    recipe: Recipe, candidates: dict[Recipe, Candidate], split: DataSplit, *, stable: bool
) -> tuple[Recipe, FittedModel]:
    """Return the chosen recipe and its model, refined with a noise model where that is no worse."""
    chosen = candidates[recipe]
    data = split.estimation
    if split.n_zeros or chosen.model.loss < NOISE_FREE:  # a step test has no disturbance before the step
        return recipe, chosen.model
    errors = residuals(chosen.model, data.inputs, data.outputs)
    whitened = _refined_with_noise_model(chosen.model, data.inputs, data.outputs, errors, stable=stable)
    if whitened is None:
        return recipe, chosen.model
    if 1 - score_model(whitened, split).score > (1 + _WHITENED_TOLERANCE) * (1 - chosen.score):
        return recipe, chosen.model
    return replace(recipe, whitened=True), whitened


def _estimate_from_all(
    recipe: Recipe,
    candidate: FittedModel,
    data: ScaledRecords,
    horizons: Sequence[int],
    *,
    offsets: bool,
    stable: bool,
) -> FittedModel:
    """Apply the recipe to all samples; keep the A and C of the candidate where those fit better."""
    us, ys = data.inputs, data.outputs
    models = fit_inputs(candidate.A, candidate.C, us, ys, offsets)
    spaces = [s for h in horizons for s in subspaces(us, ys, h) if recipe.source in ("", s.name)]
    models += [m for _, m in linear_models(us, ys, spaces, [recipe.order], offsets=offsets, stable=stable)]
    models = [m for m in models if m.order == recipe.order and bool(np.any(m.offset)) == recipe.offset]
    if not on_stability_limit(candidate.A):
        models = [m for m in models if not on_stability_limit(m.A)] or models
    model = min(models, key=lambda m: m.loss)
    # Data that a model explains to rounding are refined too, for the last digits.
    if recipe.kind == "refined" or model.loss < NOISE_FREE:
        refined = refine(model, us, ys, stable=stable, max_steps=40, rtol=1e-6)
        # The model chosen on the validation part had all poles inside the stability limit.
        if on_stability_limit(candidate.A) or not on_stability_limit(refined.A):
            model = refined
    if recipe.whitened:
        whitened = whitened_fit(model, us, ys, residuals(model, us, ys), stable=stable)
        if not on_stability_limit(whitened.A):
            model = whitened
    return model


def largest_model(
    chosen: SelectedModel, orders: Sequence[int], horizons: Sequence[int], *, offsets: bool, stable: bool
) -> FittedModel:
    """Return the model of the largest order determined at the second longest horizon, or the chosen one."""
    us, ys = chosen.data.inputs, chosen.data.outputs
    # one horizon is enough for the spectrum, and the longest is the slowest
    horizon = horizons[-2] if len(horizons) > 1 else horizons[0]
    spaces = subspaces(us, ys, horizon)
    max_order = max(space.max_order for space in spaces)
    top = [n for n in orders if n <= max_order][-1:]
    models = [model for _, model in linear_models(us, ys, spaces, top, offsets=offsets, stable=stable)]
    return min(models, key=lambda model: model.loss, default=chosen.model)
