"""Rational approximations of the exponential, as partial fractions ``exp(s) = sum_i w_i / (z_i - s)``.

Sources: Hairer and Wanner, "Solving ordinary differential equations II", 2nd ed., IV.3 (Pade); Trefethen,
Weideman and Schmelzer, BIT 46 (2006) 653-670 (Caratheodory-Fejer).
"""

from __future__ import annotations

from functools import cache
from math import factorial
from typing import NamedTuple

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array

#: Degree of the approximation on the negative real axis. The error falls by a factor of 9.3 per degree and is
#: at the level of rounding here.
CHEBYSHEV_DEGREE = 14
#: Degree of the denominator of the Pade approximation.
PADE_DEGREE = 5
#: Number of Chebyshev coefficients of the exponential on the mapped axis, and of points they are from.
_COEFFICIENTS, _POINTS = 75, 1024
#: Scale of the map ``s = scale (t - 1) / (t + 1)`` from [-1, 1] to the negative axis.
_SCALE = 9.0


class Fractions(NamedTuple):
    """Poles z and weights w. Real poles have no imaginary part, and the others are in conjugate pairs."""

    poles: Array
    weights: Array


@cache
def pade_fractions() -> Fractions:
    """Return the Pade approximation of degrees (4, 5), the stability function of Radau IIA of order nine.

    It is L-stable: parts that decay within a step are damped, however fast they are.
    """
    k, j = PADE_DEGREE, PADE_DEGREE - 1
    common = factorial(j + k)
    numerator = [
        factorial(j + k - i) * factorial(j) / (common * factorial(i) * factorial(j - i)) for i in range(j + 1)
    ]
    denominator = [
        (-1) ** i * factorial(j + k - i) * factorial(k) / (common * factorial(i) * factorial(k - i))
        for i in range(k + 1)
    ]
    P, Q = np.polynomial.Polynomial(numerator), np.polynomial.Polynomial(denominator)
    poles = np.asarray(Q.roots(), dtype=complex)
    poles = _in_pairs(poles - Q(poles) / Q.deriv()(poles))  # one step of Newton's method
    return Fractions(poles, -P(poles) / Q.deriv()(poles))


@cache
def chebyshev_fractions() -> Fractions:
    """Return the near-best approximation on the negative real axis, with a uniform error of 3.1e-14.

    The exponential is mapped to [-1, 1], and its poles follow from a singular vector of the Hankel matrix of
    its Chebyshev coefficients (Adamjan, Arov and Krein). The weights are fitted to the exponential: those by
    formula have lost two digits to rounding.
    """
    n, K = CHEBYSHEV_DEGREE, _COEFFICIENTS
    angles = 2 * np.pi * np.arange(_POINTS) / _POINTS
    coefficients = np.fft.fft(np.exp(_from_interval(np.cos(angles)))).real / _POINTS
    roots = np.roots(np.linalg.svd(sla.hankel(coefficients[1 : K + 1]))[2][n])
    outside = roots[np.abs(roots) > 1]
    poles = _in_pairs(_SCALE * (outside - 1) ** 2 / (outside + 1) ** 2)
    upper, real = poles[poles.imag > 0], poles[poles.imag == 0].real
    s = _from_interval(np.cos(angles[: _POINTS // 2] + np.pi / _POINTS))
    pairs = 2 / (upper - s[:, None])
    columns = np.concatenate([1 / (real - s[:, None]), pairs.real, -pairs.imag], axis=1)
    fitted = np.linalg.lstsq(columns, np.exp(s), rcond=None)[0]
    # a second time, what is left: rounding was up to half of the error, by the processor
    fitted += np.linalg.lstsq(columns, np.exp(s) - columns @ fitted, rcond=None)[0]
    of_real, real_parts, imaginary_parts = np.split(fitted, [real.size, real.size + upper.size])
    of_upper = real_parts + 1j * imaginary_parts
    return Fractions(poles, np.concatenate([of_real, of_upper, of_upper.conj()]))


def _from_interval(t: Array) -> Array:
    """Map (-1, 1] to the negative real axis."""
    return np.asarray(_SCALE * (t - 1) / np.maximum(t + 1, 1e-300))


def _in_pairs(poles: Array) -> Array:
    """Return the real poles without an imaginary part, those of the upper half plane, their conjugates."""
    upper = poles[poles.imag > 1e-8 * np.abs(poles)]
    real = poles[np.abs(poles.imag) <= 1e-8 * np.abs(poles)].real
    return np.concatenate([real.astype(complex), upper, upper.conj()])
