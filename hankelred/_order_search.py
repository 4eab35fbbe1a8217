"""Choosing how, and with how many states, to model a record: by a part of it that is held back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ._simulation_fit import (
    Fitted,
    fit_inputs,
    refine,
    residuals,
    stable_matrix,
    with_initial_states,
)
from ._subspace import Subspace, subspaces

Array: TypeAlias = npt.NDArray[Any]
Records: TypeAlias = tuple[tuple[Array, ...], tuple[Array, ...]]

#: Share of every record that a trial model is estimated from; the other samples are held back.
ESTIMATION_SHARE = 0.7
#: The largest order tried where none is asked for.
MAX_ORDER = 12
_HORIZONS = (3, 5, 10, 15, 20, 30)
_MAX_BLOCK_ROWS = 260
#: Trial models of this many orders are refined.
_REFINED = 5
#: A refined model is preferred if its held-back error is below this share of that of the others.
_REFINEMENT_PAYS = 0.9
#: An order is preferred to a larger one whose held-back error is smaller by less than this share ...
_PARSIMONY = 0.01
#: ... or by less than this, in units of the output's own size: rounding.
_EXACT = 1e-9
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


def fits(model: Fitted, us: Sequence[Array], ys: Sequence[Array]) -> Array:
    """``1 - |y - yhat| / |y - mean|`` of each output, over all records together.

    A constant output counts as 0.
    """
    error = sum(np.sum(e**2, axis=1) for e in residuals(model, us, ys))
    spread = sum(np.sum((y - y.mean(axis=1, keepdims=True)) ** 2, axis=1) for y in ys)
    ratio = np.divide(error, spread, out=np.ones_like(spread), where=spread > 0)
    return np.asarray(1 - np.sqrt(ratio))


def horizons(lengths: Sequence[int], n_channels: int, n_outputs: int, order: int | None) -> list[int]:
    """Return the numbers of block rows that records of these lengths bear, for an order if one is given."""
    chosen = [h for h in _HORIZONS if _bears(lengths, n_channels, h)]
    # The longer ones see slow states; four are enough to choose from.
    chosen = chosen[-4:]
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
    orders: Sequence[int],
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


@dataclass(frozen=True)
class Fold:
    """Records cut in two: what trial models are estimated from, and what is held back from them."""

    estimation: Scaled
    held_inputs: tuple[Array, ...]
    held_outputs: tuple[Array, ...]


def fold(us: Sequence[Array], ys: Sequence[Array], offsets: bool) -> Fold:
    """Hold back the last part of every record."""

    def cut(x: Array) -> tuple[Array, Array]:
        at = round(ESTIMATION_SHARE * x.shape[1])
        return x[:, :at], x[:, at:]

    kept_u, held_u = zip(*(cut(u) for u in us), strict=True)
    kept_y, held_y = zip(*(cut(y) for y in ys), strict=True)
    data = scaled(kept_u, kept_y, offsets)
    return Fold(data, *data.apply(held_u, held_y))


def evaluate(
    part: Fold, orders: Sequence[int], sizes: Sequence[int], *, offsets: bool, stable: bool
) -> dict[Recipe, Trial]:
    """Estimate every recipe on one fold, and score each by the held-back samples."""
    us, ys = part.estimation.inputs, part.estimation.outputs
    spaces = [space for h in sizes for space in subspaces(us, ys, h)]
    limit = max(space.max_order for space in spaces)
    orders = sorted({min(n, limit) for n in orders})
    found: dict[Recipe, Trial] = {}

    def score(model: Fitted) -> float:
        # Offsets and the initial state of the held-back part are unknown in use, too: the offsets stay those
        # of
        # the estimation part, the initial state is estimated.
        with np.errstate(over="ignore", invalid="ignore"):
            moved = with_initial_states(model, part.held_inputs, part.held_outputs)
            value = fits(moved, part.held_inputs, part.held_outputs)
        # The initial state was fitted to the very samples it is judged by: as many of them are used up.
        samples = sum(y.size for y in part.held_outputs)
        used = model.order * len(part.held_outputs)
        value = 1 - (1 - value) * np.sqrt(samples / max(samples - used, 1))
        # One output that fails counts as failed, not as arbitrarily bad: the others still tell models apart.
        return float(np.mean(np.clip(np.nan_to_num(value, nan=-1.0), -1.0, 1.0)))

    for recipe, model in trials(us, ys, spaces, orders, offsets=offsets, stable=stable):
        found[recipe] = Trial(score(model), model)
    by_order: dict[tuple[int, bool], list[Trial]] = {}
    for recipe, trial in found.items():
        by_order.setdefault((recipe.order, recipe.offset), []).append(trial)
    promising = sorted(by_order, key=lambda key: -max(t.score for t in by_order[key]))[:_REFINED]
    for order, offset in promising:
        start = min((trial.model for trial in by_order[order, offset]), key=lambda model: model.loss)
        refined = refine(start, us, ys, stable=stable, max_steps=12, rtol=1e-4)
        found[Recipe("", order, "refined", offset)] = Trial(score(refined), refined)
    return found


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
    *,
    offsets: bool,
    stable: bool,
) -> Identified:
    """Choose recipe and order by the held-back samples, then estimate from all of them."""
    part = fold(us, ys, offsets)
    found = evaluate(part, orders, sizes, offsets=offsets, stable=stable)
    recipe = choose(found)
    data = scaled(us, ys, offsets)
    trial = found[recipe].model
    model = _from_all(recipe, trial, data, sizes, offsets=offsets, stable=stable)
    moved = with_initial_states(trial, part.held_inputs, part.held_outputs)
    return Identified(model, data, recipe, fits(moved, part.held_inputs, part.held_outputs))


def choose(found: dict[Recipe, Trial]) -> Recipe:
    """Best score; of orders that differ by less than the parsimony share of the error, the smallest."""

    def error(recipe: Recipe) -> float:
        # A refined model has followed the estimation part more closely, its drifts and disturbances too: it
        # has to be better by a clear margin.
        margin = _REFINEMENT_PAYS if recipe.kind == "refined" else 1.0
        return (1 - found[recipe].score) / margin

    best = min(error(recipe) for recipe in found)
    order = min(recipe.order for recipe in found if error(recipe) <= best * (1 + _PARSIMONY) + _EXACT)
    return min((recipe for recipe in found if recipe.order == order), key=error)


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
    model = min(candidates, key=lambda m: m.loss)
    # Data that a model explains to rounding deserve the last digits too.
    if recipe.kind == "refined" or model.loss < _NOISE_FREE:
        model = refine(model, us, ys, stable=stable, max_steps=40, rtol=1e-6)
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
