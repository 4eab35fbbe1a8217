"""One number as an argument, read alike everywhere; what to say of a wrong one is the caller's business."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def real(value: Any) -> float:
    """Return a real number as a float, and NaN for anything else, which no comparison lets pass.

    A string is no number, even where float() would read it: it would fail later, in the middle of the work.
    Of a complex number float() would drop the imaginary part, of a time span the unit.
    """
    try:
        number = np.asarray(value)
        return float(value) if number.ndim == 0 and number.dtype.kind in "biufO" else float("nan")
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def count(value: Any) -> int | None:
    """Return a number of things, at least one, as an int; None for anything else. 3.0 is three."""
    number = float("nan") if isinstance(value, bool | np.bool_) else real(value)
    return int(number) if number >= 1 and number.is_integer() else None


def whole(value: Any) -> int | None:
    """Return a whole number as an int, and None for anything else: fractions, booleans, strings."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def is_rounded_to_zero(digits: str) -> bool:
    """Tell whether a number in decimal digits is not zero, and too small for double precision."""
    return float(digits) == 0 and any(digit in "123456789" for digit in digits.lower().partition("e")[0])
