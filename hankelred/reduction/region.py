"""Where an error counts: bands of frequencies, the time after an impulse, weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._util.arrays import Quadruple
from .._util.checks import real_number
from ..errors import ModelError, short_repr
from ..gramians.limited import Bands
from ..gramians.weighted import stable_weight
from ..models.linear_model import Dimensions, LinearModel, as_model

#: A band may end this far beyond the Nyquist frequency, relatively: its last digits are rounding.
BEYOND = 1e-9


#: What the edges of a band must be.
EDGES = "a band (w1, w2) needs 0 <= w1 < w2"


@dataclass(frozen=True)
class Region:
    """What part of the frequencies, or of time, an error is measured on, and with which weights.

    ``bands`` are in rad/s, in discrete time in radians per sample; ``horizon`` is a time, in discrete time a
    number of samples. Weights are stable. None where there is no such limit.
    """

    bands: Bands | None = None
    horizon: float | None = None
    input_weight: Quadruple | None = None
    output_weight: Quadruple | None = None

    @property
    def weighted(self) -> bool:
        """Whether there is a weight."""
        return self.input_weight is not None or self.output_weight is not None


def radians_per_sample(model: Dimensions) -> float:
    """Return the factor of a user's angular frequencies: the seconds of a sample, where known."""
    return float(model.dt) if model.is_discrete and model.dt is not True else 1.0  # type: ignore[arg-type]


def checked_bands(band: Any, model: Dimensions) -> Bands:
    """Return the bands of ``band=``, a pair or a list of pairs, sorted and joined where they overlap.

    Raises
    ------
    ModelError
        No pair of numbers, an upper edge that is not above the lower one, a negative one, or one beyond the
        Nyquist frequency.
    """
    try:
        pairs = [band] if np.ndim(band[0]) == 0 else list(band)
        pairs = [tuple(pair) for pair in pairs]
    except (TypeError, IndexError, KeyError, ValueError):
        pairs = []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ModelError(
            "band must be a pair (w1, w2) of angular frequencies, or a list of such pairs, got "
            f"{short_repr(band)}"
        )
    unit = radians_per_sample(model)
    highest = math.pi / unit if model.is_discrete else math.inf
    bands: list[tuple[float, float]] = []
    edges = [[real_number(w, lambda w: w >= 0, EDGES, ModelError) for w in pair] for pair in pairs]
    for low, high in sorted(edges):
        if not 0 <= low < high:
            raise ModelError(f"{EDGES}, got ({low:g}, {high:g})")
        if high > highest * (1 + BEYOND):
            raise ModelError(
                f"the band ({low:g}, {high:g}) reaches beyond the Nyquist frequency {highest:.6g} of a model "
                f"with dt={model.dt!r}"
            )
        low, high = low * unit, min(high, highest) * unit
        if bands and low <= bands[-1][1]:
            bands[-1] = bands[-1][0], max(bands[-1][1], high)
        else:
            bands.append((low, high))
    return bands


def checked_horizon(horizon: Any, model: Dimensions) -> float:
    """Return a horizon as a time or, in discrete time, as a number of samples.

    Raises
    ------
    ModelError
        No positive finite number, or less than one sample.
    """
    time = real_number(
        horizon, lambda t: 0 < t < math.inf, "horizon must be a positive finite time", ModelError
    )
    if not model.is_discrete:
        return time
    samples = math.floor(time / radians_per_sample(model) * (1 + BEYOND))
    if samples < 1:
        raise ModelError(f"the horizon {time:g} is shorter than a sample (dt={model.dt!r})")
    return float(samples)


def checked_weights(
    input_weight: Any, output_weight: Any, model: LinearModel, stability_tol: float
) -> tuple[Quadruple | None, Quadruple | None]:
    """Return stable weights that give every error the same weighted norm.

    Raises
    ------
    ModelError
        The size or timebase of a weight does not match the model, or it has a pole on the stability boundary.
    """
    weights: list[Quadruple | None] = []
    for name, weight, on_input in (
        ("input_weight", input_weight, True),
        ("output_weight", output_weight, False),
    ):
        if weight is None:
            weights.append(None)
            continue
        system = as_model(weight, model.dt)
        system.require_proper(f"{name} has to be proper: the weighted error would have no largest gain")
        if system.is_discrete != model.is_discrete or (
            system.is_discrete and True not in (system.dt, model.dt) and system.dt != model.dt
        ):
            raise ModelError(f"{name} has dt={system.dt!r}, but the model has dt={model.dt!r}")
        size, needed, side = (
            (system.n_outputs, model.n_inputs, "outputs, one for each input")
            if on_input
            else (system.n_inputs, model.n_outputs, "inputs, one for each output")
        )
        if size != needed:
            raise ModelError(f"{name} must have {needed} {side} of the model, got {size}")
        weights.append(stable_weight(system, stability_tol, name, on_input=on_input))
    return weights[0], weights[1]
