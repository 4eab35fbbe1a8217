"""Error bounds from Hankel singular values, and rules of order: bound, energy, gap, noise floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .._util.arrays import EPS, Array
from .._util.checks import as_integer, real_number
from ..errors import OrderError

#: Values whose relative distance is smaller count as one repeated value in the error bound.
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
        Hankel singular values in descending order, ``inf`` first for unstable and marginal poles.
    tol : float, optional
        Smallest order whose error bound, twice the sum of the distinct removed values, is at most this (in
        the unit of the gain from input to output).
    rtol : float, optional
        The same with ``rtol`` times the largest finite value.
    energy : float in (0, 1], optional
        Smallest order whose values have at least this share of the sum of all finite values.
    gap : bool, optional
        Truncate at the largest ratio of neighboring values above the noise floor.
    noise_floor : float, optional
        Values up to this are rounding errors. Default: ``n * eps`` times the largest finite value.

    Returns
    -------
    int
        Number of states, including those of infinite values. Without ``tol``, ``rtol``, ``energy`` and
        ``gap``: the number of values above the noise floor.

    Raises
    ------
    OrderError
        More than one rule, a value out of range, or ``hsv`` that is not descending or has a negative value.

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
    else:
        real_number(noise_floor, lambda floor: floor >= 0, "noise_floor must be a number >= 0", OrderError)
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
        # sums of the removed values from the smallest on, so that energy=1 keeps all nonzero values
        tail_sums = np.append(np.cumsum(finite[::-1])[::-1], 0.0)
        allowed = (1 - energy) * total
        if energy < 1:  # a share that is reached exactly must not fail by rounding
            allowed += 4 * finite.size * EPS * total
        return n_inf + int(np.argmax(tail_sums <= allowed))
    if gap:
        significant = values[n_inf:rank]
        if significant.size < 2:
            return rank
        return n_inf + int(np.argmax(significant[:-1] / significant[1:])) + 1
    return rank


def error_bounds(values: Array) -> Array:
    """Return the error bound for every order 0..n: twice the sum of the distinct removed values."""
    n = values.size
    bounds = np.zeros(n + 1)
    next_distinct = n  # index of the next value that is distinctly smaller
    for k in range(n - 1, -1, -1):
        while next_distinct > k + 1 and values[next_distinct - 1] < values[k] * (1 - REPEATED):
            next_distinct -= 1
        bounds[k] = 2 * values[k] + bounds[next_distinct]
    return bounds


def order_of_negligible_tail(values: Array, level: float) -> int:
    """Return the smallest order whose error bound, twice the sum of the removed values, is at most this."""
    tails = 2 * np.append(np.cumsum(values[::-1])[::-1], 0.0)
    return int(np.argmax(tails <= level))


def distinct(values: Array) -> Array:
    """Return descending values without repetitions."""
    is_first = np.ones(values.size, dtype=bool)
    for cluster in repeated_clusters(values):
        is_first[cluster.start + 1 : cluster.stop] = False
    return values[is_first]


def repeated_clusters(values: Array) -> list[slice]:
    """Return the ranges of values that count as one repeated value."""
    clusters: list[slice] = []
    start = 0
    for k in range(1, values.size + 1):
        if k == values.size or values[k] < values[start] * (1 - REPEATED):
            if k - start > 1:
                clusters.append(slice(start, k))
            start = k
    return clusters


def check_rule(*, tol: float | None, rtol: float | None, energy: float | None, gap: bool = False) -> None:
    """Refuse more than one rule, and values out of range."""
    rules = {
        name: value
        for name, value in (("tol", tol), ("rtol", rtol), ("energy", energy), ("gap", gap or None))
        if value is not None
    }
    if len(rules) > 1:
        raise OrderError(
            f"give at most one rule for the order, got {', '.join(f'{k}={v}' for k, v in rules.items())}"
        )
    if not isinstance(gap, bool | np.bool_):
        raise OrderError(
            f"gap must be True or False, got {gap!r}; it chooses the largest ratio and takes no threshold"
        )
    for name, value in (("tol", tol), ("rtol", rtol), ("energy", energy)):
        if value is None:
            continue
        real_number(value, lambda x: 0 < x < np.inf, f"{name} must be a positive finite number", OrderError)
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
        raise OrderError("hsv must be in descending order, inf first; sort it with np.sort(hsv)[::-1]")
    return values


def checked_order(order: Any) -> int:
    """Return the order as an int; refuse fractions, negative numbers and booleans."""
    number = as_integer(order)
    if number is None:
        description = repr(order) if np.ndim(order) == 0 else f"an array of shape {np.shape(order)}"
        raise OrderError(f"order must be a whole number, got {description}")
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
