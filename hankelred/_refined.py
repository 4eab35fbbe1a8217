"""The frequency response at single points to more digits than double precision has.

A linear system solved in double precision loses as many digits as its condition number has; iterative
refinement with residuals of twice the precision brings them back.

Source: Higham, Accuracy and Stability of Numerical Algorithms, SIAM (2002), chapter 12.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ._arrays import EPS, Array
from ._twofold import product, two_product, two_sum

#: Corrections of a solution. Each gains as many digits as double precision leaves of the solution.
CORRECTIONS = 30


def refined_response(A: Array, B: Array, C: Array, points: Array) -> tuple[Array, Array]:
    """Return C (s - A)^-1 B at each point as a pair whose sum has more digits than either.

    Shape (points, outputs, inputs) each; inf where a point is a pole.
    """
    shape = (points.size, C.shape[0], B.shape[1])
    high, low = np.zeros(shape, complex), np.zeros(shape, complex)
    if 0 in (*shape, A.shape[0]):
        return high, low
    for k, point in enumerate(points):
        solved = _refined_solution(A, B, point)
        if solved is None:
            high[k] = np.inf
            continue
        x, x_low = solved
        high[k], low[k] = product(C, x)
        low[k] += C @ x_low
    return high, low


def _refined_solution(A: Array, B: Array, point: complex) -> tuple[Array, Array] | None:
    """Return (s - A)^-1 B as a pair; None where s is a pole."""
    (getrf, getrs) = sla.get_lapack_funcs(("getrf", "getrs"), dtype=complex)
    shifted = point * np.eye(A.shape[0]) - A
    # rows and columns of size one: what is ill-conditioned by its units only is well-conditioned then
    rows = _units(np.abs(shifted).max(axis=1))[:, None]
    shifted *= rows
    columns = _units(np.abs(shifted).max(axis=0))
    lu, pivots, info = getrf(shifted * columns, overwrite_a=True)
    if info != 0:
        return None
    x: Array = columns[:, None] * getrs(lu, pivots, rows * B)[0]
    x_low = np.zeros_like(x)
    last = np.inf
    for _ in range(CORRECTIONS):
        residual = _residual(A, B, point, x, x_low)
        step = columns[:, None] * getrs(lu, pivots, rows * residual)[0]
        size = float(np.abs(step).max())
        if not size < 0.5 * last:  # no digit is gained any more
            break
        x, x_low = two_sum(x, x_low + step)
        last = size
        if size <= EPS**2 * float(np.abs(x).max()):
            break
    return x, x_low


def _units(sizes: Array) -> Array:
    return np.ldexp(1.0, -np.frexp(sizes)[1])


def _residual(A: Array, B: Array, point: complex, x: Array, x_low: Array) -> Array:
    """Return B - (s - A) (x + x_low), computed with twice the digits."""
    image, image_low = product(A, x)
    shifted, shifted_low = two_product(point, x)
    total, rest = two_sum(B + 0j, image)
    total, more = two_sum(total, -shifted)
    return total + (rest + more + image_low - shifted_low + A @ x_low - point * x_low)
