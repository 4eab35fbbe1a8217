"""Equilibration of the states: powers of two that undo bad units without a rounding error."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

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
