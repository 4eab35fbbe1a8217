"""What responses of linear models and of simulators have in common."""

from __future__ import annotations

import math
from typing import Any

from .._util.arrays import Array
from .._util.checks import real_number
from ..errors import HankelredError, ModelError
from ..models.linear_model import Timebase
from .excitations import Excitation

CENTERINGS = ("steady", "mean", "final")


def centred(responses: Array, centering: str) -> Array:
    """Subtract the mean or the last value of each response, which is off the steady state already."""
    if centering == "steady":
        return responses
    centre: Array = responses.mean(axis=-1, keepdims=True) if centering == "mean" else responses[..., -1:]
    return responses - centre


def check_span(value: Any, name: str) -> None:
    """Refuse what is no length of time."""
    real_number(value, lambda t: 0 < t < math.inf, f"{name} must be a positive number", HankelredError)


def count_intervals(horizon: float, step: float) -> int:
    """Whole steps in the horizon."""
    check_span(horizon, "horizon")
    check_span(step, "step")
    intervals = round(horizon / step)
    if intervals < 1:
        raise HankelredError(
            f"the horizon {horizon:g} is shorter than the step {step:g}; the horizon is how long a response "
            "takes to die out, the step the distance of its samples"
        )
    return intervals


def discrete_step(dt: Timebase, step: float | None) -> float:
    """Return the sampling time of discrete time, 1 where it is not given, checked against ``step``."""
    own = 1.0 if dt is True else float(dt or 0)
    if step is not None and not math.isclose(step, own):
        raise HankelredError(
            f"step={step:g} differs from the sampling time {own:g} of a discrete-time system; leave step out"
        )
    return own


def amplification(feed: Excitation | None) -> float:
    """How much undoing the excitation amplifies rounding."""
    return 0.0 if feed is None else feed.amplification


def leakage(feed: Excitation | None) -> float:
    """How much of an amplitude that an experiment cuts off comes back misplaced, at most.

    A period folds it onto itself, and the lead-in or the end of a run leaves as much of a difference.
    """
    return 0.0 if feed is None or feed.shape in ("pulse", "step") else 1 + 2 * feed.amplification


def cross_needs_square(n_inputs: int, n_outputs: int) -> ModelError:
    """Return the error for a cross Gramian of a system that is not square."""
    return ModelError(
        f"a cross Gramian needs as many outputs as inputs, and the system has {n_inputs} inputs and "
        f"{n_outputs} outputs; ask for controllability and observability"
    )
