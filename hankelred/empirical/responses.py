"""Centering, grids and error factors shared by responses of linear models and of simulators."""

from __future__ import annotations

import math
from typing import Any

from .._util.arrays import Array
from .._util.checks import real_number
from ..errors import HankelredError, ModelError
from ..models.linear_model import Timebase, sampling_time
from .excitations import Excitation

CENTERINGS = ("steady", "mean", "final")


def centered(responses: Array, centering: str) -> Array:
    """Subtract the mean or the last value of each response; the steady state is subtracted already."""
    if centering == "steady":
        return responses
    center: Array = responses.mean(axis=-1, keepdims=True) if centering == "mean" else responses[..., -1:]
    return responses - center


def check_span(value: Any, name: str) -> None:
    """Raise unless the value is a positive, finite length of time."""
    real_number(value, lambda t: 0 < t < math.inf, f"{name} must be a positive number", HankelredError)


def count_intervals(horizon: float, step: float) -> int:
    """Return the number of whole steps in the horizon."""
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
    """Return the sampling time of discrete time, 1 where it is unspecified, checked against ``step``."""
    fixed = sampling_time(dt)
    if step is not None and not math.isclose(step, fixed):
        raise HankelredError(
            f"step={step:g} differs from the sampling time {fixed:g} of a discrete-time system; "
            "leave step out"
        )
    return fixed


def amplification(excitation: Excitation | None) -> float:
    """Return the factor by which deconvolving the excitation amplifies rounding."""
    return 0.0 if excitation is None else excitation.amplification


def leakage(excitation: Excitation | None) -> float:
    """Return the factor by which an amplitude cut off at the horizon reappears as an error of the response.

    A periodic excitation folds the cut-off part onto the period, and the lead-in or the end of a run
    contributes an error of the same size.
    """
    if excitation is None or excitation.shape in ("pulse", "step"):
        return 0.0
    return 1 + 2 * excitation.amplification


def cross_needs_square(n_inputs: int, n_outputs: int) -> ModelError:
    """Return the error for a cross Gramian of a system that is not square."""
    return ModelError(
        f"a cross Gramian needs as many outputs as inputs, and the system has {n_inputs} inputs and "
        f"{n_outputs} outputs; use the controllability and observability Gramians instead"
    )
