"""Gramian factors of a diagonal system in closed form, to high relative accuracy.

The Gramian of a diagonal system is of Cauchy type, W_ij = b_i b_j^H / d(i, j). Its Cholesky factor with
complete pivoting is computed without the Gramian: each step scales the remaining rows b_i by a Blaschke
factor of the eliminated pole. These are only products, so no digits are lost.

Source: Gohberg, Kailath, Olshevsky, Math. Comp. 64 (1995); Demmel, SIAM J. Matrix Anal. Appl. 21 (1999).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .._util.arrays import EPS, Array, reduce_columns, schur_poles

#: The factor ends at a column smaller than this, relative to the first: far below rounding, because the
#: closed form computes tiny columns accurately.
STOP = EPS * 1e-10


def cauchy_factor(log_poles: Array, B: Array, *, discrete: bool) -> Array:
    """Return L (n, k) with W = L L^H for x' = diag(log_poles) x + B u, all poles stable.

    In discrete time the poles are exp(log_poles). Costs O(n k m). Real for real poles and real B.
    """
    n = log_poles.size
    B = reduce_columns(B.astype(np.result_type(B, log_poles)))
    denominators = _denominator(log_poles.real, log_poles.real, discrete)
    remaining = np.ones(n, dtype=bool)
    columns: list[Array] = []
    largest = 0.0
    for _ in range(n):
        squares = np.where(remaining, np.einsum("ij,ij->i", B, B.conj()).real / denominators, -1.0)
        pivot = int(np.argmax(squares))
        diagonal = float(np.sqrt(max(squares[pivot], 0.0)))
        largest = largest or diagonal
        if diagonal <= STOP * largest:
            break
        inner = B @ B[pivot].conj()
        column = inner / (diagonal * _denominator(log_poles, log_poles[pivot], discrete))
        column[~remaining] = 0
        column[pivot] = diagonal
        columns.append(column)
        unit = B[pivot] / np.linalg.norm(B[pivot])
        scaling = _blaschke(log_poles, log_poles[pivot], discrete) - 1
        B = B + np.outer((B @ unit.conj()) * scaling, unit)
        remaining[pivot] = False
        B[pivot] = 0
    return np.array(columns).T.reshape(n, len(columns))


@dataclass(frozen=True)
class SeparateModes:
    """A block diagonal T in Schur form, in continuous time, and its factor for an input of each mode.

    With one input b, the block upper triangular factor U of T U U^H + U U^H T^H + b b^H = 0 is known in
    closed form. In the states in which T is the diagonal of its poles, the column of a mode k is
    b_k m / -(poles + conj(pole)), m^2 = -2 Re(pole), where b_k is b times the Blaschke factors of the modes
    after k. A conjugate pair has two such columns, which are combined to real ones, and one row, since the
    other is its conjugate. These are products only, so that no digits are lost, however light the damping is.
    """

    T: Array
    #: the first states of all modes, and the second states of pairs
    first: Array
    second: Array
    #: (modes, n), the columns divided by the b of each row
    columns: Array

    @classmethod
    def of(cls, T: Array) -> Self:
        """Compute what does not depend on the input."""
        n = T.shape[0]
        second = np.flatnonzero(T.diagonal(-1)) + 1
        first = np.delete(np.arange(n), second)
        poles = schur_poles(T)[first]
        if not (second.size or np.iscomplexobj(T)):
            poles = poles.real
        is_pair = np.isin(first, second - 1)
        row_poles, conjugates = poles[:, None], poles.conj()
        total, difference = row_poles + conjugates, row_poles - poles
        if second.size:
            total *= np.where(is_pair, row_poles + poles, 1)
            difference *= np.where(is_pair, row_poles - conjugates, 1)
        weights = np.sqrt(-2 * poles.real) / -total
        weights[:, :-1] *= np.cumprod((difference / total)[:, :0:-1], axis=1)[:, ::-1]
        if not second.size:
            return cls(T, first, second, weights)
        size = np.abs(poles)
        columns = np.empty((first.size, n), poles.dtype)
        columns[:, first] = weights * np.where(is_pair, row_poles - size, 1)
        columns[:, second] = (weights * (row_poles + size))[:, is_pair]
        return cls(T, first, second, columns)

    def factor(self, b: Array, *, adjoint: bool) -> Array:
        """Return U for an input b, or with ``adjoint`` that of T^H and b."""
        T, first, second = self.T.conj().T if adjoint else self.T, self.first, self.second
        if second.size == 0:
            columns = self.columns.conj() if adjoint else self.columns
            return b[:, None] * columns
        # the state of a mode with the pole a + j w in [[a, f], [g, a]] has the right eigenvector (1, j w / f)
        f, g = T.diagonal(1)[second - 1], T.diagonal(-1)[second - 1]
        ratio = np.copysign(np.sqrt(-g / f), f)
        row_b = b[first].astype(complex)
        is_pair = np.isin(first, second - 1)
        row_b[is_pair] = 0.5 * b[second - 1] - (0.5j / ratio) * b[second]
        rows = row_b[:, None] * self.columns
        U = np.empty((b.size, b.size))
        U[first] = rows.real
        U[second - 1] *= 2
        U[second] = rows.imag[is_pair] * (-2 * ratio)[:, None]
        return U


def _denominator(a: Array, b: Any, discrete: bool) -> Array:
    """Return -(a + conj b), or 1 - exp(a) conj(exp(b)) without cancellation."""
    total = a + np.conj(b)
    if not discrete:
        return -total
    # a pole at zero has log -inf; its product with anything is zero
    return np.where(np.isneginf(total.real), 1.0, -np.expm1(np.where(np.isneginf(total.real), 0.0, total)))


def _blaschke(a: Array, b: Any, discrete: bool) -> Array:
    """Return (a - b) / (a + conj b), or its discrete counterpart, up to a common phase."""
    if not discrete:
        return (a - b) / (a + np.conj(b))
    if np.isneginf(b.real):
        return np.exp(a)
    zero = np.isneginf(a.real)
    safe = np.where(zero, 0.0, a)
    return np.where(zero, np.exp(b.real), np.exp(b.real) * np.expm1(safe - b) / -_denominator(safe, b, True))
