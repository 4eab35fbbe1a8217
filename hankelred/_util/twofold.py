"""Matrix products with about twice the digits of double precision, from ordinary matrix products.

Each factor is cut into slices of so few bits that products of the leading slices are exact; the sum is
kept as an unevaluated pair `high + low`. The cost is that of some ten ordinary products.

Source: Ozaki, Ogita, Oishi, Rump, Numer. Algorithms 59 (2012).
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import Array

#: Slices of each factor. The first two hold some 40 bits of the largest entry of a row or column. Products
#: with what is left are rounded: to 2^-90 of that entry, and never worse than an ordinary product.
SLICES = 3


def product(A: Array, B: Array) -> tuple[Array, Array]:
    """Return A @ B as a pair of matrices whose sum has about twice the digits of double precision."""
    if np.iscomplexobj(A) or np.iscomplexobj(B):
        left, right = np.hstack([A.real, -A.imag]), np.vstack([B.real, B.imag])
        re = product(left, right)
        im = product(np.hstack([A.imag, A.real]), right)
        return re[0] + 1j * im[0], re[1] + 1j * im[1]
    shape = (A.shape[0], B.shape[1])
    high, low = np.zeros(shape), np.zeros(shape)
    if 0 in (*shape, A.shape[1]):
        return high, low
    bits = (53 - math.ceil(math.log2(A.shape[1]))) // 2
    # columns of one size, and the inner index in units in which the rows of B are alike: an entry of A then
    # counts for what it contributes
    columns = np.frexp(np.abs(B).max(axis=0))[1]
    B = np.ldexp(B, -columns)
    units = np.frexp(np.abs(B).max(axis=1))[1]
    first = _slices(np.ldexp(A, units), bits)
    second = [piece.T for piece in _slices(np.ldexp(B.T, -units), bits)]
    for left in first:
        for right in second:
            high, rest = two_sum(high, left @ right)
            low += rest
    high, low = two_sum(high, low)
    return np.ldexp(high, columns), np.ldexp(low, columns)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its rounding error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Array, B: Array) -> tuple[Array, Array]:
    """Return the entrywise products of complex arrays, as rounded sums and what these lack."""
    re, re_low = _real_two_product(a.real, B.real)
    other, other_low = _real_two_product(-a.imag, B.imag)
    re, rest = two_sum(re, other)
    im, im_low = _real_two_product(a.real, B.imag)
    other, other_im = _real_two_product(a.imag, B.real)
    im, rest_im = two_sum(im, other)
    return re + 1j * im, (re_low + other_low + rest) + 1j * (im_low + other_im + rest_im)


def _real_two_product(a: Array, B: Array) -> tuple[Array, Array]:
    """Return a B and its rounding error, from halves of the numbers that multiply exactly (Dekker)."""
    total = a * B
    big, small = _halves(a)
    Big, Small = _halves(B)
    return total, ((big * Big - total) + big * Small + small * Big) + small * Small


def _halves(x: Array) -> tuple[Array, Array]:
    mantissa, exponent = np.frexp(x)
    big = np.round(mantissa * 2.0**26) * 2.0**-26
    return np.ldexp(big, exponent), np.ldexp(mantissa - big, exponent)


def _slices(M: Array, bits: int) -> list[Array]:
    """Cut each row into slices of so many bits, counted from the largest entry of what is left of the row."""
    out = []
    rest = M
    for _ in range(SLICES - 1):
        largest = np.abs(rest).max(axis=1, keepdims=True)
        # adding and subtracting this rounds to multiples of 2^-bits of the power of two above the largest
        anchor = np.ldexp(0.75, np.frexp(largest)[1] + 53 - bits)
        piece = (rest + anchor) - anchor
        out.append(piece)
        rest = rest - piece
    return [*out, rest]
