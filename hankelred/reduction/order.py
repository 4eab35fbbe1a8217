"""Choosing an order from Hankel singular values: by bound, by share, by gap, or by noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .._util.arrays import EPS, Array
from .._util.checks import real, whole
from ..errors import OrderError

#: Values nearer than this, relatively, count as one repeated value in the error bound.
REPEATED = 1e-10


def select_order(
    hsv: npt.ArrayLike,
    *,
    tol: float | None = None,
    rtol: float | None = None,
    energy: float | None = None,
    gap: bool = False,
    noise_floor: float | None = None,
) -> int:
    """Choose an order from Hankel singular values.

    Parameters
    ----------
    hsv : array_like, shape (n,)
        Hankel singular values in falling order, ``inf`` first for unstable and marginal poles.
    tol : float, optional
        Smallest order whose error bound, twice the sum of the distinct values left out, is at most
        this (in the unit of the gain from input to output).
    rtol : float, optional
        The same with ``rtol`` times the largest finite value.
    energy : float in (0, 1], optional
        Smallest order that holds this share of the sum of the finite values.
    gap : bool, optional
        Cut at the largest ratio of neighbouring values above the noise floor.
    noise_floor : float, optional
        Values at or below it are rounding. Default: ``n * eps`` times the largest finite value.

    Returns
    -------
    int
        Number of states, those of the infinite values included. With none of ``tol``, ``rtol``,
        ``energy`` and ``gap`` given: as many as lie above the noise floor.

    Raises
    ------
    OrderError
        More than one rule, a value out of range, or ``hsv`` not falling and non-negative.

    Notes
    -----
    Source of the bound: Glover, Int. J. Control 39 (1984); Enns, Proc. CDC (1984).

    Examples
    --------
    >>> import hankelred
    >>> hsv = [1.0, 0.5, 1e-3, 1e-4]
    >>> hankelred.select_order(hsv, tol=0.01)
    2
    >>> hankelred.select_order(hsv, energy=0.6)
    1
    >>> hankelred.select_order(hsv, gap=True)
    2
    """
    values = _checked_values(hsv)
    check_rule(tol=tol, rtol=rtol, energy=energy, gap=gap)
    n_inf = int(np.isinf(values).sum())
    finite = values[n_inf:]
    if noise_floor is None:
        noise_floor = float(values.size * EPS * finite.max(initial=0.0))
    elif not real(noise_floor) >= 0:
        raise OrderError(f"noise_floor must be a number >= 0, got {noise_floor!r}")
    rank = n_inf + int(np.count_nonzero(finite > noise_floor))
    if rtol is not None:
        tol = rtol * float(finite.max(initial=0.0))
        if tol == 0:
            return n_inf
    if tol is not None:
        return int(np.argmax(error_bounds(values) <= tol))
    if energy is not None:
        total = float(finite.sum())
        if total == 0:
            return n_inf
        # the share left out is summed from the small end, so energy=1 keeps all that is not zero
        left_out = np.append(np.cumsum(finite[::-1])[::-1], 0.0)
        allowed = (1 - energy) * total
        if energy < 1:  # a share that is held exactly must not fail by rounding
            allowed += 4 * finite.size * EPS * total
        return n_inf + int(np.argmax(left_out <= allowed))
    if gap:
        seen = values[n_inf:rank]
        if seen.size < 2:
            return rank
        return n_inf + int(np.argmax(seen[:-1] / seen[1:])) + 1
    return rank


def error_bounds(values: Array) -> Array:
    """Return the bound for every order 0..n: twice the sum of the distinct values left out."""
    n = values.size
    bounds = np.zeros(n + 1)
    following = n  # first index whose value is distinctly smaller
    for k in range(n - 1, -1, -1):
        while following > k + 1 and values[following - 1] < values[k] * (1 - REPEATED):
            following -= 1
        bounds[k] = 2 * values[k] + bounds[following]
    return bounds


def distinct(values: Array) -> Array:
    """Return falling values without repetitions."""
    kept = np.ones(values.size, dtype=bool)
    for cluster in repeated(values):
        kept[cluster.start + 1 : cluster.stop] = False
    return values[kept]


def repeated(values: Array) -> list[slice]:
    """Return where values stand that count as one repeated value."""
    clusters: list[slice] = []
    start = 0
    for k in range(1, values.size + 1):
        if k == values.size or values[k] < values[start] * (1 - REPEATED):
            if k - start > 1:
                clusters.append(slice(start, k))
            start = k
    return clusters


def check_rule(*, tol: float | None, rtol: float | None, energy: float | None, gap: bool = False) -> None:
    """Refuse more than one rule, and rules out of range."""
    given = {
        name: value
        for name, value in (("tol", tol), ("rtol", rtol), ("energy", energy), ("gap", gap or None))
        if value is not None
    }
    if len(given) > 1:
        raise OrderError(
            f"give at most one rule for the order, got {', '.join(f'{k}={v}' for k, v in given.items())}"
        )
    if not isinstance(gap, bool | np.bool_):
        raise OrderError(
            f"gap must be True or False, got {gap!r}: the largest ratio is cut at, whatever it is"
        )
    for name, value in (("tol", tol), ("rtol", rtol), ("energy", energy)):
        if value is None:
            continue
        if not 0 < real(value) < np.inf:
            raise OrderError(f"{name} must be a positive finite number, got {value!r}")
        if name == "energy" and value > 1:
            raise OrderError(f"energy is a share and must be in (0, 1], got {value!r}")


def _checked_values(hsv: npt.ArrayLike) -> Array:
    try:
        values = np.asarray(hsv, dtype=float)
    except (TypeError, ValueError):
        raise OrderError("hsv must be an array of Hankel singular values") from None
    if values.ndim != 1:
        raise OrderError(f"hsv must have one dimension, got shape {values.shape}")
    if np.any(np.isnan(values)) or np.any(values < 0):
        raise OrderError("hsv must be non-negative and without NaN")
    if np.any(values[1:] > values[:-1]):
        raise OrderError("hsv must be in falling order, inf first; sort it with np.sort(hsv)[::-1]")
    return values


def checked_order(order: Any) -> int:
    """Return the order as an int; refuse fractions, negative numbers and booleans."""
    number = whole(order)
    if number is None:
        seen = repr(order) if np.ndim(order) == 0 else f"an array of shape {np.shape(order)}"
        raise OrderError(f"order must be a whole number, got {seen}")
    if number < 0:
        raise OrderError(f"order must not be negative, got {number}")
    return number


def order_by_bisection(error: Callable[[int], float], low: int, high: int, tol: float) -> int:
    """Return an order between low and high with an error of at most tol, one less having a larger one.

    Measured errors need not fall with every order, so a smaller one that would do as well may exist. Where
    even the highest order does not do, that is returned.
    """
    if low >= high or error(low) <= tol:
        return low
    if error(high) > tol:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if error(middle) <= tol:
            high = middle
        else:
            low = middle
    return high
