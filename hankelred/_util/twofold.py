"""Matrix products with about twice the digits of double precision, from ordinary matrix products.

Each factor is split into slices of so few bits that products of the leading slices are exact; the sum is
an unevaluated pair `high + low`. The cost is that of about ten ordinary products.

Source: Ozaki, Ogita, Oishi, Rump, Numer. Algorithms 59 (2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .arrays import Array

#: An unevaluated sum high + low of arrays.
Pair: TypeAlias = tuple[Array, Array]

#: Slices of each factor. The first two hold about 40 bits of the largest entry of a row or column. Products
#: with the third are rounded: to 2^-90 of that entry, and never worse than an ordinary product.
SLICES = 3
#: Typical rounding of a product of pairs of up to a thousand terms, relative to the largest entries.
PAIR_ROUNDING = 2.0**-95


def product(A: Array, B: Array) -> tuple[Array, Array]:
    """Return A @ B as a pair of matrices whose sum has about twice the digits of double precision."""
    if np.iscomplexobj(B) and not np.iscomplexobj(A):
        k = B.shape[1]
        high, low = product(A, np.hstack([B.real, B.imag]))
        return high[:, :k] + 1j * high[:, k:], low[:, :k] + 1j * low[:, k:]
    if np.iscomplexobj(A) and not np.iscomplexobj(B):
        k = A.shape[0]
        high, low = product(np.vstack([A.real, A.imag]), B)
        return high[:k] + 1j * high[k:], low[:k] + 1j * low[k:]
    if np.iscomplexobj(A):
        left, right = np.hstack([A.real, -A.imag]), np.vstack([B.real, B.imag])
        re = product(left, right)
        im = product(np.hstack([A.imag, A.real]), right)
        return re[0] + 1j * im[0], re[1] + 1j * im[1]
    shape = (A.shape[0], B.shape[1])
    high, low = np.zeros(shape), np.zeros(shape)
    if 0 in (*shape, A.shape[1]):
        return high, low
    bits = (53 - math.ceil(math.log2(A.shape[1]))) // 2
    # Scale the columns of B to the same size, and the inner index so that the rows of B have the same size:
    # an entry of A then counts by its contribution to the product.
    columns = np.frexp(np.abs(B).max(axis=0))[1]
    B = np.ldexp(B, -columns)
    units = np.frexp(np.abs(B).max(axis=1))[1]
    first = _slices(np.ldexp(A, units), bits)
    second = [piece.T for piece in _slices(np.ldexp(B.T, -units), bits)]
    for left in first:
        for right in second:
            high, error = two_sum(high, left @ right)
            low += error
    high, low = two_sum(high, low)
    return np.ldexp(high, columns), np.ldexp(low, columns)


def pair(M: Array) -> Pair:
    """Return a matrix as a pair."""
    return M, np.zeros_like(M)


def pair_product(X: Pair, Y: Pair) -> Pair:
    """Return the product of two matrices that are pairs."""
    high, low = product(X[0], Y[0])
    for left, right in ((X[0], Y[1]), (X[1], Y[0])):
        if np.any(left) and np.any(right):
            low = low + left @ right
    return two_sum(high, low)


def product_rounding(X: Array, Y: Array) -> Array:
    """Return about how large the rounding of the entries of a product of pairs is, from the sizes of both.

    Roundings are independent, so their squares add up.
    """
    columns = Y.max(axis=0, initial=0.0)
    units = (Y / np.where(columns > 0, columns, 1.0)).max(axis=1, initial=0.0)
    return PAIR_ROUNDING * np.outer(root_square_product(X, units), columns)


def root_square_product(X: Array, Y: Array) -> Array:
    """Return the size of X @ Y with independent terms, from the sizes of both: the root of X^2 @ Y^2."""
    rows, columns = X.max(axis=1, initial=0.0), Y.max(axis=0, initial=0.0)
    rows, columns = np.where(rows > 0, rows, 1.0), np.where(columns > 0, columns, 1.0)
    scaled = (X / rows[:, None]) ** 2 @ (Y / columns) ** 2
    return np.asarray(np.sqrt(scaled) * (np.outer(rows, columns) if Y.ndim == 2 else rows * columns))


def pair_sum(X: Pair, Y: Pair) -> Pair:
    """Return the sum of two arrays that are pairs."""
    high, rest = two_sum(X[0], Y[0])
    return two_sum(high, rest + (X[1] + Y[1]))


def refined_pair_solution(solve: Callable[[Array], Array], A: Pair, b: Pair, steps: int) -> Pair:
    """Return the solution of A x = b, all of them pairs; ``solve`` solves it in double precision."""
    x = pair(solve(b[0]))
    for _ in range(steps):
        image = pair_product(A, x)
        defect = pair_sum(b, (-image[0], -image[1]))
        x = pair_sum(x, pair(solve(defect[0] + defect[1])))
    return x


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its rounding error (Knuth)."""
    total = a + b
    high_part = total - a
    return total, (a - (total - high_part)) + (b - high_part)


def two_product(a: Array, B: Array) -> tuple[Array, Array]:
    """Return the entrywise products of complex arrays and their rounding errors."""
    rr, rr_low = _real_two_product(a.real, B.real)
    ii, ii_low = _real_two_product(-a.imag, B.imag)
    re, re_low = two_sum(rr, ii)
    ri, ri_low = _real_two_product(a.real, B.imag)
    ir, ir_low = _real_two_product(a.imag, B.real)
    im, im_low = two_sum(ri, ir)
    return re + 1j * im, (rr_low + ii_low + re_low) + 1j * (ri_low + ir_low + im_low)


def _real_two_product(a: Array, B: Array) -> tuple[Array, Array]:
    """Return a B and its rounding error, from halves of the factors, whose products are exact (Dekker)."""
    total = a * B
    a1, a2 = _halves(a)
    B1, B2 = _halves(B)
    return total, ((a1 * B1 - total) + a1 * B2 + a2 * B1) + a2 * B2


def _halves(x: Array) -> tuple[Array, Array]:
    mantissa, exponent = np.frexp(x)
    high = np.round(mantissa * 2.0**26) * 2.0**-26
    return np.ldexp(high, exponent), np.ldexp(mantissa - high, exponent)


def _slices(M: Array, bits: int) -> list[Array]:
    """Split each row into slices of `bits` bits, counted from the largest remaining entry of the row."""
    out = []
    remainder = M
    for _ in range(SLICES - 1):
        largest = np.abs(remainder).max(axis=1, keepdims=True)
        # adding and subtracting this rounds to multiples of 2^-bits of the power of two above the largest
        anchor = np.ldexp(0.75, np.frexp(largest)[1] + 53 - bits)
        piece = (remainder + anchor) - anchor
        out.append(piece)
        remainder = remainder - piece
    return [*out, remainder]
