"""Scaling of the states by powers of two, which undoes bad units without a rounding error."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ._arrays import Array

#: A chain of states with rates far from one (a companion matrix in rad/s) needs over a hundred.
MAX_SWEEPS = 300


def equilibrate(A: Array, B: Array, C: Array) -> Array:
    """Return the state scales s (powers of two) that balance rows against columns.

    With x = s z the system of z is (A s_j / s_i, B / s_i, C s_j): for each state the row of [A B]
    and the column of [A; C], without the diagonal, get about equal norms. The result hardly depends
    on the units the states came in, which is what makes everything after it independent of them.

    Source: Osborne, J. ACM 7 (1960); Varga, SLICOT TB01ID.
    """
    n = A.shape[0]
    exponents = np.zeros(n, dtype=int)
    magnitude = np.abs(A)
    np.fill_diagonal(magnitude, 0.0)
    reach = np.sqrt(np.einsum("ij,ij->i", B, B.conj()).real)
    sight = np.sqrt(np.einsum("ij,ij->j", C, C.conj()).real)
    rows = np.hypot(np.sqrt(np.einsum("ij,ij->i", magnitude, magnitude)), reach)
    columns = np.hypot(np.sqrt(np.einsum("ij,ij->j", magnitude, magnitude)), sight)
    usable = (rows > 0) & (columns > 0)
    if not np.any(np.abs(np.log2(rows[usable]) - np.log2(columns[usable])) > 4):
        return np.ones(n)  # well scaled as it is
    for _ in range(MAX_SWEEPS):
        changed = False
        for i in range(n):
            row = np.hypot(np.sqrt(magnitude[i] @ magnitude[i]), reach[i])
            column = np.hypot(np.sqrt(magnitude[:, i] @ magnitude[:, i]), sight[i])
            if row == 0 or column == 0:
                continue
            shift = int(np.rint(0.5 * (np.log2(row) - np.log2(column))))
            if shift == 0:
                continue
            factor = 2.0**shift
            magnitude[i] /= factor
            reach[i] /= factor
            magnitude[:, i] *= factor
            sight[i] *= factor
            exponents[i] += shift
            changed = True
        if not changed:
            break
    scales: Array = np.ldexp(1.0, exponents)
    return scales


def balance(A: Array) -> tuple[Array, Array]:
    """Scale the states by A alone: ``A = diag(t) Ab diag(1 / t)``; return ``Ab, t``.

    Norms of Ab mean something for states in mixed units, also inside the matrix exponential.
    """
    if A.shape[0] == 0:
        return A, np.ones(0)
    # LAPACK's routine itself: scipy.linalg.matrix_balance casts the factors to integers and warns
    # when they are large.
    gebal = sla.get_lapack_funcs("gebal", (A,))
    scale = gebal(A, scale=1, permute=0)[3]
    # Within limits, so that scaling B, C and x cannot leave the range of double precision.
    scale = np.clip(scale, 2.0**-100, 2.0**100)
    return A * scale / scale[:, None], scale
