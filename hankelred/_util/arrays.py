"""Types and constants that every module shares: arrays, the matrices of a model, machine precision."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
#: A, B, C, D
Quadruple: TypeAlias = tuple[Array, Array, Array, Array]

EPS = float(np.finfo(float).eps)

#: Entries of a matrix up to this size need no closer look.
MODERATE = 1e150

#: Largest array that is read from a file, in bytes: 512 MiB, 8192 states in double precision. A small
#: compressed file can expand to more than the memory holds.
LARGEST_IN_FILE = 2**29


def largest_entry(M: Array) -> float:
    """Return the largest absolute value of a matrix: NaN if one is NaN, 0 if there is none."""
    if M.size == 0:
        return 0.0
    return float(np.abs(M).max()) if np.iscomplexobj(M) else max(float(M.max()), -float(M.min()))


def is_moderate(M: Array) -> bool:
    """Return whether the sum of squares of a matrix is finite and far from overflow: a single cheap pass.

    Then every entry is finite and below 1e150. NaN and Inf make the sum NaN or Inf.
    """
    entries = M.ravel(order="K")
    return bool(np.vdot(entries, entries).real < MODERATE**2)


def length(M: Array) -> float:
    """Return the root of the sum of squares of a vector or matrix, without the checks of numpy's norm."""
    return math.sqrt(np.vdot(M, M).real)


def reciprocal_condition(M: Array) -> float:
    """Return LAPACK's estimate of the reciprocal condition number of a square matrix: 0 if it is singular."""
    import scipy.linalg as sla

    gecon, getrf = sla.get_lapack_funcs(("gecon", "getrf"), (M,))
    lu, _, info = getrf(M)
    return 0.0 if info > 0 else float(gecon(lu, np.linalg.norm(M, 1))[0])


def reduce_columns(M: Array) -> Array:
    """Return a matrix with no more columns than rows and the same M M^H."""
    if M.shape[1] <= M.shape[0]:
        return M
    return np.asarray(np.linalg.qr(M.conj().T, mode="r")).conj().T


def schur_poles(T: Array) -> Array:
    """Return the eigenvalues of a real or complex Schur form, in the order of its diagonal."""
    poles = T.diagonal().astype(complex)
    if np.iscomplexobj(T):
        return poles
    # LAPACK's standard form of a pair: equal diagonal, off-diagonal of opposite sign
    below = T.diagonal(-1)
    (pairs,) = below.nonzero()
    imaginary = np.sqrt(np.maximum(-T.diagonal(1)[pairs] * below[pairs], 0.0))
    poles.imag[pairs], poles.imag[pairs + 1] = imaginary, -imaginary
    return poles
