"""The frequency response at single points with more digits than double precision has.

The solution of a linear system in double precision loses as many digits as its condition number has;
iterative refinement with residuals in twice the precision recovers them.

Source: Higham, Accuracy and Stability of Numerical Algorithms, SIAM (2002), chapter 12.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import EPS, Array
from ..._util.twofold import product, two_product, two_sum

#: Largest number of corrections. Each adds as many digits as a solution in double precision has.
CORRECTIONS = 30

#: Points that are solved together, so that products with A have many columns.
BATCH_SIZE = 8


def refined_response(A: Array, B: Array, C: Array, points: Array) -> tuple[Array, Array]:
    """Return C (s - A)^-1 B at each point as a pair of arrays whose sum has more digits than either.

    Both have shape (points, outputs, inputs) and are inf where a point is a pole.
    """
    m = B.shape[1]
    shape = (points.size, C.shape[0], m)
    high, low = np.zeros(shape, complex), np.zeros(shape, complex)
    if 0 in (*shape, A.shape[0]):
        return high, low
    for start in range(0, points.size, BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        solvers = [_Solver(A, point) for point in points[batch]]
        regular = np.array([solver.regular for solver in solvers])
        high[batch][~regular] = np.inf
        if np.any(regular):
            x, x_low = _refined(A, B, [solver for solver in solvers if solver.regular])
            image, image_low = product(C, x)
            image_low = image_low + C @ x_low
            for out, values in ((high, image), (low, image_low)):
                out[batch][regular] = values.reshape(C.shape[0], -1, m).transpose(1, 0, 2)
    return high, low


class _Solver:
    """Solutions of (s - A) x = b in double precision."""

    def __init__(self, A: Array, point: complex):
        (getrf, self._getrs) = sla.get_lapack_funcs(("getrf", "getrs"), dtype=complex)
        self.point = point
        shifted = point * np.eye(A.shape[0]) - A
        # scale rows and columns to size one, so that bad units do not make the matrix ill-conditioned
        self._rows = _units(np.abs(shifted).max(axis=1))[:, None]
        shifted *= self._rows
        self._columns = _units(np.abs(shifted).max(axis=0))
        self._lu, self._pivots, info = getrf(shifted * self._columns, overwrite_a=True)
        self.regular = info == 0

    def __call__(self, b: Array) -> Array:
        return self._columns[:, None] * self._getrs(self._lu, self._pivots, self._rows * b)[0]


def _refined(A: Array, B: Array, solvers: list[_Solver]) -> tuple[Array, Array]:
    """Return the solutions at all points, in adjacent columns, as a pair."""
    m = B.shape[1]
    columns = [slice(k * m, (k + 1) * m) for k in range(len(solvers))]
    points = np.repeat([solver.point for solver in solvers], m)
    rhs = np.tile(B + 0j, (1, len(solvers)))
    x = np.concatenate([solver(B + 0j) for solver in solvers], axis=1)
    x_low = np.zeros_like(x)
    last_size, active = np.full(len(solvers), np.inf), np.ones(len(solvers), dtype=bool)
    for _ in range(CORRECTIONS):
        residual = _residual(A, rhs, points, x, x_low)
        for k in np.flatnonzero(active):
            columns_of_point = columns[k]
            step = solvers[k](residual[:, columns_of_point])
            size = float(np.abs(step).max())
            active[k] = size < 0.5 * last_size[k]  # otherwise the corrections have stopped converging
            if active[k]:
                x[:, columns_of_point], x_low[:, columns_of_point] = two_sum(
                    x[:, columns_of_point], x_low[:, columns_of_point] + step
                )
                last_size[k] = size
                active[k] = size > EPS**2 * float(np.abs(x[:, columns_of_point]).max())
        if not np.any(active):
            break
    return x, x_low


def _units(sizes: Array) -> Array:
    return np.ldexp(1.0, -np.frexp(sizes)[1])


def _residual(A: Array, B: Array, points: Array, x: Array, x_low: Array) -> Array:
    """Return B - (s - A) (x + x_low), computed with twice the digits; `points` has s for each column."""
    image, image_low = product(A, x)
    shifted, shifted_low = two_product(points, x)
    total, sum_error = two_sum(B, image)
    total, difference_error = two_sum(total, -shifted)
    return total + (sum_error + difference_error + image_low - shifted_low + A @ x_low - points * x_low)
