"""Choosing how, and with how many states, to model a record: by a part of it that is held back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .._util.arrays import Array
from .._util.progress import with_progress_bar
from ..errors import HankelredError
from .output_error import (
    Fitted,
    fit_inputs,
    on_limit,
    refine,
    residuals,
    stable_matrix,
    truncated,
    with_initial_states,
)
from .subspace import Subspace, subspaces

#: Share of every record that a trial model is estimated from; the other samples are held back.
ESTIMATION_SHARE = 0.7
#: The largest order tried where none is asked for.
MAX_ORDER = 12
_HORIZONS = (3, 5, 10, 15, 20, 30)
#: One more, whose models serve as starts of a refinement only: by themselves they are of large variance.
_START_HORIZON = 60
#: Zeros put before a record that starts from rest, at most: what the block rows of the longest horizon take.
REST = 2 * _START_HORIZON + 1
_MAX_BLOCK_ROWS = 260
#: Steps of refinement that every order gets before the choice.
_FIRST_STEPS = 12
#: A refined model is preferred if its held-back error is below this share of that of the others.
_REFINEMENT_PAYS = 0.9
#: So is a model with a pole on the stability limit to those without.
_LIMIT_PAYS = 0.9
#: An order is preferred to a larger one whose held-back error is smaller by less than this share ...
_PARSIMONY = 0.01
#: ... or by less than this many standard errors of the difference, but at most by this share ...
_STANDARD_ERRORS = 1.0
_UNCERTAIN = 0.1
#: ... or by less than this, in units of the output's own size: rounding.
_EXACT = 1e-9
#: The held-back samples are cut into this many pieces, left out in turn, to tell how sure a score is.
_PIECES = 10
#: A held-back error, in units of the output's own size, below which a linear model leaves nothing to refine.
_NOTHING_LEFT = 1e-6
#: Mean square of the residual, in units of the output's own size, below which a record counts as noise-free.
_NOISE_FREE = 1e-8


@dataclass(frozen=True)
class Recipe:
    """How a model is made: reproducible on any records of the same process."""

    #: method and horizon of the subspace; empty for a refined model, which starts from the best of all
    source: str
    order: int
    #: "linear" or "refined"
    kind: str
    #: whether an output offset is estimated beyond the mean
    offset: bool


@dataclass(frozen=True)
class Scaled:
    """Records in units of their own size with offsets removed, and the way back."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    input_offset: Array
    output_offset: Array
    input_scale: Array
    output_scale: Array

    def apply(self, us: Sequence[Array], ys: Sequence[Array]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Bring other records to the same units."""
        return (
            tuple((u - self.input_offset[:, None]) / self.input_scale[:, None] for u in us),
            tuple((y - self.output_offset[:, None]) / self.output_scale[:, None] for y in ys),
        )

    def unscaled(self, model: Fitted) -> tuple[Array, Array, Array, Array]:
        """Matrices in the user's units."""
        return (
            model.A,
            model.B / self.input_scale,
            self.output_scale[:, None] * model.C,
            self.output_scale[:, None] * model.D / self.input_scale,
        )


def scaled(us: Sequence[Array], ys: Sequence[Array], offsets: bool) -> Scaled:
    """Bring records to unit size: nothing that follows depends on the units."""
    parts = []
    for group in (us, ys):
        joined = np.concatenate(group, axis=1)
        offset = joined.mean(axis=1) if offsets else np.zeros(joined.shape[0])
        scale = np.sqrt(np.mean((joined - offset[:, None]) ** 2, axis=1))
        scale[scale == 0] = 1.0  # a channel that is still in this stretch only
        parts.append((tuple((x - offset[:, None]) / scale[:, None] for x in group), offset, scale))
    (u, uo, us_), (y, yo, ys_) = parts
    return Scaled(u, y, uo, yo, us_, ys_)


def fits(
    model: Fitted, us: Sequence[Array], ys: Sequence[Array], *, rest: int = 0, centred: bool = True
) -> Array:
    """``1 - |y - yhat| / |y - mean|`` of each output, over all records together.

    A constant output counts as 0. The first `rest` samples are left out; where levels are known (not
    `centred`), the output is measured from zero instead of from its mean.
    """
    error = sum(np.sum(e[:, rest:] ** 2, axis=1) for e in residuals(model, us, ys))
    spread = sum(np.sum((_centred(y[:, rest:]) if centred else y) ** 2, axis=1) for y in ys)
    ratio = np.divide(error, spread, out=np.ones_like(spread), where=spread > 0)
    return np.asarray(1 - np.sqrt(ratio))


def _centred(y: Array) -> Array:
    return np.asarray(y - y.mean(axis=1, keepdims=True))


def horizons(lengths: Sequence[int], n_channels: int, n_outputs: int, order: int | None) -> list[int]:
    """Return the numbers of block rows that records of these lengths bear, for an order if one is given."""
    chosen = [h for h in _HORIZONS if _bears(lengths, n_channels, h)]
    # The longer ones see slow states, and responses that arrive late; four are enough to choose from.
    chosen = chosen[-4:]
    if _bears(lengths, n_channels, _START_HORIZON):
        chosen.append(_START_HORIZON)
    if order is not None:
        least = _least_horizon(n_outputs, order)
        chosen = [h for h in chosen if h >= least]
        if not chosen and _bears(lengths, n_channels, least):
            chosen = [least]
    return chosen


def least_samples(n_channels: int, n_outputs: int, order: int | None) -> int:
    """Return the length of a single record from which on something can be estimated."""
    h = _HORIZONS[0] if order is None else max(_HORIZONS[0], _least_horizon(n_outputs, order))
    return int(np.ceil(max(2 * (2 * h + 1) * n_channels, 4 * h + 2) / ESTIMATION_SHARE))


def _least_horizon(n_outputs: int, order: int) -> int:
    return -(-order // n_outputs) + 1  # the shift structure needs one block row more than the states fill


def _bears(lengths: Sequence[int], n_channels: int, h: int) -> bool:
    rows = (2 * h + 1) * n_channels
    return 2 * rows <= sum(lengths) and 2 * h + 1 <= max(lengths) // 2 and rows <= _MAX_BLOCK_ROWS


def trials(
    us: Sequence[Array],
    ys: Sequence[Array],
    spaces: Sequence[Subspace],
    orders: Iterable[int],
    *,
    offsets: bool,
    stable: bool,
) -> Iterator[tuple[Recipe, Fitted]]:
    """Give every model of the given orders that takes no iteration."""
    for order in orders:
        for space in spaces:
            if order > space.max_order:
                continue
            A, C = space.build(order)
            if not (np.all(np.isfinite(A)) and np.all(np.isfinite(C))):
                continue
            for fitted in fit_inputs(stable_matrix(A) if stable else A, C, us, ys, offsets):
                if np.isfinite(fitted.loss):
                    yield Recipe(space.name, order, "linear", bool(np.any(fitted.offset))), fitted


@dataclass(frozen=True)
class Trial:
    """A model from the estimation part, and its mean fit to the held-back part."""

    score: float
    model: Fitted
    #: the score without each of the pieces of the held-back part in turn
    partial: Array


@dataclass(frozen=True)
class Fold:
    """Records cut in two: what trial models are estimated from, and what is held back from them."""

    estimation: Scaled
    held_inputs: tuple[Array, ...]
    held_outputs: tuple[Array, ...]
    #: zeros before every record, which then starts from rest
    rest: int
    #: the records with these zeros
    from_rest: tuple[tuple[Array, ...], tuple[Array, ...]]


def estimation_length(samples: int, rest: int) -> int:
    """Return how many samples of a record trial models are estimated from."""
    return rest + round(ESTIMATION_SHARE * (samples - rest))


def fold(us: Sequence[Array], ys: Sequence[Array], offsets: bool, rest: int) -> Fold:
    """Hold back the last part of every record; of its first `rest` samples, put there as zeros, none."""

    def cut(x: Array) -> tuple[Array, Array]:
        at = estimation_length(x.shape[1], rest)
        return x[:, :at], x[:, at:]

    kept_u, held_u = zip(*(cut(u) for u in us), strict=True)
    kept_y, held_y = zip(*(cut(y) for y in ys), strict=True)
    if not any(np.ptp(y, axis=1).any() for y in kept_y):
        raise HankelredError(
            f"no output moves in the first {ESTIMATION_SHARE:.0%} of the record, which trial models are "
            "estimated from; pass a record that moves early on, or leave out its beginning"
        )
    data = scaled(kept_u, kept_y, offsets)
    return Fold(data, *data.apply(held_u, held_y), rest, data.apply(us, ys))


def evaluate(
    part: Fold,
    orders: Sequence[int],
    sizes: Sequence[int],
    above: Sequence[int] = (),
    *,
    offsets: bool,
    stable: bool,
    progress: bool = False,
) -> dict[Recipe, Trial]:
    """Estimate every recipe on one fold, and score each by the held-back samples.

    Of the orders `above` models are made only for what they are as starts of the smaller ones.
    """
    us, ys = part.estimation.inputs, part.estimation.outputs
    horizons = with_progress_bar(sizes, "Subspaces (horizons)", progress, len(sizes))
    spaces = [space for h in horizons for space in subspaces(us, ys, h)]
    limit = max(space.max_order for space in spaces)
    if limit == 0:
        raise HankelredError(
            "the record shows no state: the output follows the input at once; fit a static gain by least "
            "squares"
        )
    orders = sorted({min(n, limit) for n in orders})
    ladder = sorted({*orders, *(n for n in above if orders[-1] < n <= limit)})
    found: dict[Recipe, Trial] = {}
    only_starts: dict[int, list[tuple[Recipe, Fitted]]] = {}
    rising = with_progress_bar(ladder, "Trial models (orders)", progress, len(ladder))
    for recipe, model in trials(us, ys, spaces, rising, offsets=offsets, stable=stable):
        if recipe.source.endswith(f"-{_START_HORIZON}"):
            only_starts.setdefault(recipe.order, []).append((recipe, model))
        else:
            found[recipe] = judged(model, part)
    wanted = {recipe: trial for recipe, trial in found.items() if recipe.order in orders}
    if not wanted or max(trial.score for trial in wanted.values()) > 1 - _NOTHING_LEFT:
        return wanted
    # From the largest order down: what an order has found is, without its weakest state, one more start for
    # the next. Subspace starts alone are poor where noise hides the weaker modes from every horizon.
    larger: Fitted | None = None
    for order in with_progress_bar(ladder[::-1], "Refinement (orders)", progress, len(ladder)):
        own = [(recipe, trial) for recipe, trial in found.items() if recipe.order == order]
        if not own:
            continue
        offset = max(own, key=lambda item: (item[1].score, not item[0].offset))[0].offset
        starts = [trial.model for recipe, trial in own if recipe.offset == offset]
        starts += [model for recipe, model in only_starts.get(order, []) if recipe.offset == offset]
        if larger is not None:
            A, C = truncated(larger, order)
            more = fit_inputs(stable_matrix(A) if stable else A, C, us, ys, offsets)
            starts += [model for model in more if bool(np.any(model.offset)) == offset]
        start = min(starts, key=lambda model: model.loss)
        larger = refine(start, us, ys, stable=stable, max_steps=_FIRST_STEPS, rtol=1e-4)
        found[Recipe("", order, "refined", offset)] = judged(larger, part)
    return {recipe: trial for recipe, trial in found.items() if recipe.order in orders}


def judged(model: Fitted, part: Fold) -> Trial:
    """Score a model by the held-back samples; of a step test, whose end says little, by all samples."""
    us, ys = part.from_rest if part.rest else (part.held_inputs, part.held_outputs)
    # Offsets and the initial state of the held-back part are unknown in use, too: the offsets stay those of
    # the estimation part, the initial state is estimated.
    with np.errstate(over="ignore", invalid="ignore"):
        moved = with_initial_states(model, us, ys)
        error = np.concatenate([e[:, part.rest :] for e in residuals(moved, us, ys)], axis=1) ** 2
    spread = np.concatenate([_centred(y[:, part.rest :]) for y in ys], axis=1) ** 2
    if part.rest:
        # Akaike's final prediction error: the model was fitted to (most of) these samples
        free = model.B.size + model.C.size + model.D.size
        lost = (spread.size + free) / max(spread.size - free, 1)
    else:
        # The initial state was fitted to the very samples it is judged by: as many of them are used up.
        lost = spread.size / max(spread.size - model.order * len(ys), 1)

    def pieces(x: Array) -> Array:
        edges = np.linspace(0, x.shape[1], min(_PIECES, x.shape[1]), endpoint=False).astype(int)
        return np.asarray(np.add.reduceat(x, edges, axis=1))

    def score(error: Array, spread: Array) -> Array:
        with np.errstate(invalid="ignore"):
            ratio = np.divide(error, spread, out=np.ones_like(spread), where=spread > 0)
            value = 1 - np.sqrt(ratio * lost)
        # One output that fails counts as failed, not as arbitrarily bad: the others still tell models apart.
        return np.asarray(np.mean(np.clip(np.nan_to_num(value, nan=-1.0), -1.0, 1.0), axis=0))

    e, y = pieces(error), pieces(spread)
    total_e, total_y = e.sum(axis=1, keepdims=True), y.sum(axis=1, keepdims=True)
    whole = float(score(total_e, total_y)[0])
    return Trial(whole, model, score(np.maximum(total_e - e, 0), np.maximum(total_y - y, 0)))


@dataclass(frozen=True)
class Identified:
    """The chosen model on all records, in scaled units, and how it was found."""

    model: Fitted
    data: Scaled
    recipe: Recipe
    #: per output, on the held-back samples, of the model that the estimation part alone gave
    held_back_fit: Array


def search(
    us: Sequence[Array],
    ys: Sequence[Array],
    orders: Sequence[int],
    sizes: Sequence[int],
    above: Sequence[int] = (),
    *,
    offsets: bool,
    stable: bool,
    rest: int = 0,
    progress: bool = False,
) -> Identified:
    """Choose recipe and order by the held-back samples, then estimate from all of them."""
    part = fold(us, ys, offsets, rest)
    found = evaluate(part, orders, sizes, above, offsets=offsets, stable=stable, progress=progress)
    recipe = choose(found)
    data = scaled(us, ys, offsets)
    trial = found[recipe].model
    model = _from_all(recipe, trial, data, sizes, offsets=offsets, stable=stable)
    moved = with_initial_states(trial, part.held_inputs, part.held_outputs)
    held_back_fit = fits(moved, part.held_inputs, part.held_outputs, centred=not rest)
    return Identified(model, data, recipe, held_back_fit)


def choose(found: dict[Recipe, Trial]) -> Recipe:
    """Best score; of orders that differ by less than can be told from the held-back part, the smallest."""

    def handicap(recipe: Recipe) -> float:
        # A refined model has followed the estimation part more closely, its drifts and disturbances too, and
        # a pole on the stability limit wanted to be beyond: both have to be better by a clear margin.
        margin = _REFINEMENT_PAYS if recipe.kind == "refined" else 1.0
        return margin * _LIMIT_PAYS if on_limit(found[recipe].model.A) else margin

    errors = {recipe: (1 - trial.score) / handicap(recipe) for recipe, trial in found.items()}
    best = min(found, key=lambda recipe: errors[recipe])

    def tolerance(recipe: Recipe) -> float:
        # the jackknife's standard error of the difference of the two on the same samples
        parts = found[best].partial / handicap(best) - found[recipe].partial / handicap(recipe)
        deviation = np.sqrt((parts.size - 1) * np.mean((parts - parts.mean()) ** 2))
        unsure = min(_STANDARD_ERRORS * float(deviation), _UNCERTAIN * errors[best])
        return max(unsure, _PARSIMONY * errors[best]) + _EXACT

    order = min(recipe.order for recipe in found if errors[recipe] <= errors[best] + tolerance(recipe))
    return min((recipe for recipe in found if recipe.order == order), key=lambda recipe: errors[recipe])


def _from_all(
    recipe: Recipe, trial: Fitted, data: Scaled, sizes: Sequence[int], *, offsets: bool, stable: bool
) -> Fitted:
    """Follow the recipe on all samples; keep the trial's dynamics where that turns out worse."""
    us, ys = data.inputs, data.outputs
    candidates = fit_inputs(trial.A, trial.C, us, ys, offsets)
    spaces = [s for h in sizes for s in subspaces(us, ys, h) if recipe.source in ("", s.name)]
    candidates += [m for _, m in trials(us, ys, spaces, [recipe.order], offsets=offsets, stable=stable)]
    candidates = [
        m for m in candidates if m.order == recipe.order and bool(np.any(m.offset)) == recipe.offset
    ]
    if not on_limit(trial.A):
        inside = [m for m in candidates if not on_limit(m.A)]
        candidates = inside or candidates
    model = min(candidates, key=lambda m: m.loss)
    # Data that a model explains to rounding deserve the last digits too.
    if recipe.kind == "refined" or model.loss < _NOISE_FREE:
        refined = refine(model, us, ys, stable=stable, max_steps=40, rtol=1e-6)
        # What the held-back part has chosen had all poles inside the stability limit.
        if on_limit(trial.A) or not on_limit(refined.A):
            model = refined
    return model


def largest(
    found: Identified, orders: Sequence[int], sizes: Sequence[int], *, offsets: bool, stable: bool
) -> Fitted:
    """Return the model of the largest order that the records bear, for its spectrum.

    At least it is the chosen one.
    """
    us, ys = found.data.inputs, found.data.outputs
    spaces = [space for h in sizes for space in subspaces(us, ys, h)]
    limit = max(space.max_order for space in spaces)
    top = [n for n in orders if n <= limit][-1:]
    models = [model for _, model in trials(us, ys, spaces, top, offsets=offsets, stable=stable)]
    return min(models, key=lambda model: model.loss, default=found.model)
