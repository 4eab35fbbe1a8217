"""Shifts of the ADI iteration: Ritz values, ordered so that each damps the remaining residual most."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..models.pencil import Pencil

#: Columns that depend linearly on the others, up to this share of their length, are omitted.
INDEPENDENT = 1e-10


def ritz_values(pencil: Pencil, V: Array, *, transposed: bool) -> Array:
    """Return the eigenvalues of the pencil projected onto the columns of V, moved into the left half plane.

    Source: Benner, Kuerschner and Saak, Electron. Trans. Numer. Anal. 43 (2014).
    """
    lengths = np.linalg.norm(V, axis=0)
    V = V[:, lengths > 0] / lengths[lengths > 0]
    Q, R = np.linalg.qr(V)
    Q = Q[:, np.abs(np.diag(R)) > INDEPENDENT]
    if Q.shape[1] == 0:
        return np.zeros(0, complex)
    left = Q.conj().T
    values = sla.eigvals(left @ pencil.A(Q, transposed=transposed), left @ pencil.E(Q, transposed=transposed))
    values = values[np.isfinite(values)]
    values = values[np.abs(values.real) > 0]
    return -np.abs(values.real) + 1j * values.imag


def ordered(candidates: Array, count: int, *, real: bool) -> list[complex]:
    """Return up to `count` of the candidates; each is the one that the preceding ones damp least.

    A solve with ``A + p E`` multiplies the residual of a mode at s by (s - conj(p)) / (s + p), so that the
    shift for a pole is its conjugate. For real pencils a shift is used together with its conjugate.

    Source: Penzl, SIAM J. Sci. Comput. 21 (2000).
    """
    if real:
        candidates = np.where(candidates.imag < 0, candidates.conj(), candidates)
    candidates = np.unique(candidates)
    if candidates.size == 0:
        return []

    def damping(pole: complex) -> Array:
        """Return the logarithm of the damping of every candidate by the shift for this pole."""
        with np.errstate(divide="ignore"):
            factor = np.log(np.abs(candidates - pole)) - np.log(np.abs(candidates + np.conj(pole)))
            if real and pole.imag != 0:
                factor += np.log(np.abs(candidates - np.conj(pole))) - np.log(np.abs(candidates + pole))
        return factor

    table = np.stack([damping(each) for each in candidates])
    # the first shift is the one that damps all others best
    at = int(np.argmin(np.where(np.isfinite(table), table, -np.inf).max(axis=1)))
    chosen, left = [at], table[at]
    while len(chosen) < min(count, candidates.size):
        chosen.append(int(np.argmax(left)))
        left = left + table[chosen[-1]]
    return [complex(candidates[at]).conjugate() for at in chosen]
