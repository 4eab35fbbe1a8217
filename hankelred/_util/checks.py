"""Checks of numbers and arrays, as arguments or read from files."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ..errors import HankelredError, short_repr
from .arrays import Array


def real_number(
    value: Any, is_valid: Callable[[float], bool], requirement: str, error: type[HankelredError]
) -> float:
    """Return a real number as a float; if it is invalid, raise ``error``, which states the requirement."""
    number = _as_real(value)
    if number is None or not is_valid(number):
        raise error(f"{requirement}, got {short_repr(value)}")
    return number


def _as_real(value: Any) -> float | None:
    """Return a real number as a float; None for anything else.

    Strings are refused although float() reads some of them: they would fail later, in the middle of a
    computation. float() would drop the imaginary part of a complex number and the unit of a time span.
    """
    try:
        if type(value) in (int, float):
            return float(value)
        number = np.asarray(value)
        return float(value) if number.ndim == 0 and number.dtype.kind in "biufO" else None
    except (TypeError, ValueError, OverflowError):
        return None


def as_positive_integer(value: Any) -> int | None:
    """Return a whole number of at least 1 as an int; None for anything else. 3.0 is accepted as 3."""
    number = None if isinstance(value, bool | np.bool_) else _as_real(value)
    return int(number) if number is not None and number >= 1 and number.is_integer() else None


def as_integer(value: Any) -> int | None:
    """Return an integer as an int; None for anything else, such as fractions, booleans and strings."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def require_option(value: Any, options: Collection[str], name: str, error: type[HankelredError]) -> str:
    """Return an argument that is one of these texts; refuse anything else."""
    if not isinstance(value, str) or value not in options:
        *others, last = map(repr, options)
        raise error(f"{name} must be {', '.join(others)} or {last}, got {short_repr(value)}")
    return value


def first_index(mask: Array) -> tuple[int, ...] | None:
    """Return the index of the first entry that is true; None if there is none."""
    return tuple(int(k) for k in np.argwhere(mask)[0]) if mask.any() else None


def require_finite(
    values: Array,
    name: str,
    error: type[HankelredError],
    requirement: str = "every entry must be finite",
    start: int = 0,
) -> None:
    """Refuse an array with NaN or Inf; the message names the first.

    The array may be a part of the one with this name: then `start` is where it starts on the last axis.
    """
    at = first_index(~np.isfinite(values))
    if at is not None:
        *others, last = at
        index = ", ".join(str(k) for k in (*others, last + start))
        raise error(f"{name}[{index}] is {values[at]}; {requirement}")


def is_rounded_to_zero(digits: str) -> bool:
    """Return whether a nonzero number in decimal digits is too small for double precision."""
    return float(digits) == 0 and any(digit in "123456789" for digit in digits.lower().partition("e")[0])
