"""High-order quadrature and differentiation on a uniform grid, one-sided at both ends.

Responses of a system start with a jump at t = 0, so no formula here may use samples from across that
edge: the weights and the stencils become one-sided there and keep their order.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import comb, factorial

import numpy as np

from .._util.arrays import Array

#: Points of the end correction; q points make the rule of order q + 1.
_END_POINTS = 7
#: Points of a difference stencil: sixth order inside, and at least fifth at the ends.
_STENCIL_POINTS = 7


@lru_cache
def gregory_weights(n_points: int) -> Array:
    """Weights of the integral over a uniform grid of unit step, both ends included.

    The trapezoidal rule with Gregory's end corrections: eighth order from 14 points or so on, and
    the highest order with positive weights on a shorter grid (Simpson's rule on 3 points).
    Positive weights are needed because their square roots scale the snapshots of a Gramian.

    Parameters
    ----------
    n_points : int
        Number of grid points, at least 2.

    Returns
    -------
    ndarray (n_points,)

    References
    ----------
    P. J. Davis, P. Rabinowitz, *Methods of Numerical Integration*, 2nd ed., 1984, section 2.9.

    Examples
    --------
    >>> gregory_weights(3) * 3
    array([1., 4., 1.])
    """
    for order in range(min(_END_POINTS, n_points), 0, -1):
        weights = np.ones(n_points)
        ends = _end_corrections(order)
        weights[:order] += ends
        weights[n_points - order :] += ends[::-1]
        if weights.min() > 0:
            break
    weights.flags.writeable = False  # every caller receives the same cached array
    return weights


@lru_cache
def _end_corrections(n_points: int) -> Array:
    # Moments of the correction: sum_j c_j j^k = -zeta(-k) - [k = 0], the error of the trapezoidal rule at
    # one end by the Euler-Maclaurin formula. They are exact rationals, since the Vandermonde system loses six
    # digits in floating point.
    moments = [Fraction(-1, 2)]
    moments += [bernoulli / (k + 1) for k, bernoulli in enumerate(_bernoulli(n_points)[2:], start=1)]
    rows = [[Fraction(j) ** k for j in range(n_points)] for k in range(n_points)]
    return _solve(rows, moments[:n_points])


def _bernoulli(last: int) -> list[Fraction]:
    numbers = [Fraction(1)]
    for k in range(1, last + 1):
        numbers.append(-sum((comb(k + 1, j) * numbers[j] for j in range(k)), Fraction(0)) / (k + 1))
    return numbers


def _solve(rows: list[list[Fraction]], right: list[Fraction]) -> Array:
    # Gauss-Jordan in exact arithmetic
    n = len(right)
    table = [[*row, value] for row, value in zip(rows, right, strict=True)]
    for i in range(n):
        pivot = next(k for k in range(i, n) if table[k][i] != 0)
        table[i], table[pivot] = table[pivot], table[i]
        table[i] = [value / table[i][i] for value in table[i]]
        for k in range(n):
            if k != i and table[k][i] != 0:
                table[k] = [a - table[k][i] * b for a, b in zip(table[k], table[i], strict=True)]
    return np.array([float(row[-1]) for row in table])


@lru_cache
def _stencil(n_points: int, at: int, order: int) -> Array:
    rows = [[Fraction(j - at) ** k for j in range(n_points)] for k in range(n_points)]
    return _solve(rows, [Fraction(factorial(order) if k == order else 0) for k in range(n_points)])


def derivative(values: Array, step: float, order: int) -> Array:
    """Differentiate along the last axis on a uniform grid, one-sided near the two ends.

    Parameters
    ----------
    values : ndarray (..., samples)
        At least ``order + 1`` samples.
    step : float
        Time between samples (s).
    order : int
        Order of the derivative, 1 or 2.

    Returns
    -------
    ndarray (..., samples)
        Sixth-order accurate inside, at least fifth order at the ends, less on fewer than 7 samples.

    References
    ----------
    B. Fornberg, "Generation of finite difference formulas on arbitrarily spaced grids",
    *Math. Comp.* 51 (1988).

    Examples
    --------
    >>> bool(np.allclose(derivative(np.arange(8.0) ** 2, 1.0, 1), 2 * np.arange(8.0)))
    True
    """
    samples = values.shape[-1]
    width = min(_STENCIL_POINTS, samples)
    half = width // 2
    out = np.zeros_like(values)
    inside = slice(half, samples - (width - 1 - half))
    for j, weight in enumerate(_stencil(width, half, order)):
        out[..., inside] += weight * values[..., j : samples - width + 1 + j]
    for k in range(half):
        out[..., k] = values[..., :width] @ _stencil(width, k, order)
    for k in range(inside.stop, samples):
        out[..., k] = values[..., samples - width :] @ _stencil(width, k - samples + width, order)
    return out / step**order
