"""Gramian factors of a diagonal system in closed form, to high relative accuracy.

The Gramian of a diagonal system is of Cauchy type, W_ij = b_i b_j^H / d(i, j). Its Cholesky factor with
complete pivoting is computed without the Gramian: each step scales the remaining rows b_i by a Blaschke
factor of the eliminated pole. These are only products, so no digits are lost.

Source: Gohberg, Kailath, Olshevsky, Math. Comp. 64 (1995); Demmel, SIAM J. Matrix Anal. Appl. 21 (1999).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._util.arrays import EPS, Array, reduce_columns

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
