"""Schur forms by LAPACK, without the overhead of scipy's wrappers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.linalg.lapack import dgees, zgees

from ..errors import ConvergenceError
from .arrays import Array

#: States of separate pairs whose Schur form is computed together: few calls, of small matrices.
STATES_OF_PAIRS = 60


def schur_form(A: Array) -> tuple[Array, Array]:
    """Return T and Z of the Schur form A = Z T Z^H, real with 2 x 2 blocks for real A.

    Modes of one and two states that nothing couples are separate in T too, in any order of the states.

    Raises
    ------
    ConvergenceError
        The QR algorithm did not converge.
    """
    order = order_of_separate_modes(A)
    if order is None:
        return _schur_form(A)
    T = np.asfortranarray(A[np.ix_(order, order)])
    blocks = np.eye(order.size, dtype=A.dtype)
    # LAPACK exchanges states that are no pair, and then rounding couples modes: these states are last
    n_paired = 2 * np.count_nonzero((T.diagonal(1) != 0) & (T.diagonal(-1) != 0))
    starts = [*range(0, n_paired, STATES_OF_PAIRS), n_paired]
    groups = [slice(*ends) for ends in pairwise(starts)]
    groups += [slice(k, k + 2) for k in np.flatnonzero(T.diagonal(-1)).tolist() if k >= n_paired]
    for group in groups:
        T[group, group], blocks[group, group] = _schur_form(T[group, group])
    Z = np.empty_like(blocks)
    Z[order] = blocks
    return T, Z


def order_of_separate_modes(A: Array) -> Array | None:
    """Return an order of the states in which A is block diagonal with blocks of one and two states, or None.

    The states of a mode, as position and velocity, may be far apart in A. Pairs that depend on each other are
    first.
    """
    if np.count_nonzero(A[:1]) > 2:  # most matrices end here
        return None
    coupled = A != 0
    np.fill_diagonal(coupled, False)
    coupled |= coupled.T
    if np.count_nonzero(coupled, axis=1).max(initial=0) > 1:
        return None
    states = np.arange(A.shape[0])
    partners = np.where(coupled.any(axis=1), coupled.argmax(axis=1), states)
    first = np.flatnonzero(states <= partners)
    second = partners[first]
    is_pair = (first != second) & (A[first, second] != 0) & (A[second, first] != 0)
    modes = np.stack([first, second], axis=1)[np.argsort(~is_pair, kind="stable")]
    is_new = np.ones(modes.shape, dtype=bool)
    is_new[:, 1] = modes[:, 0] != modes[:, 1]
    return modes[is_new]


def _schur_form(A: Array) -> tuple[Array, Array]:
    gees = zgees if np.iscomplexobj(A) else dgees
    # blocks of 32 columns in the reduction to Hessenberg form
    out = gees(_unsorted, A, lwork=max(1, 33 * A.shape[0]))
    if out[-1] != 0:
        raise ConvergenceError("the poles could not be computed: the QR algorithm did not converge")
    return out[0], out[-3]


def _unsorted(*pole: float) -> None:
    """Fill the argument of LAPACK that chooses which poles are first; it is not called."""


def is_block_triangular(A: Array) -> bool:
    """Return whether a matrix is upper triangular with blocks of one and two states, as of separate modes."""
    if np.any(A[2:, :1]) or np.any(A[-1:, :-2]):  # most matrices end here
        return False
    below = np.flatnonzero(np.diagonal(A, -1))
    return not np.any(below[1:] == below[:-1] + 1) and not np.any(np.tril(A, -2))


def is_block_diagonal(T: Array) -> bool:
    """Return whether a matrix in Schur form has nothing but its blocks of one and two states."""
    if np.any(T[:1, 2:]):  # most matrices end here
        return False
    pairs = np.count_nonzero(T.diagonal(-1))
    return int(np.count_nonzero(T)) == np.count_nonzero(T.diagonal()) + 2 * pairs


def is_quasi_triangular(A: Array) -> bool:
    """Return whether a matrix is in Schur form already, in the standard form of LAPACK."""
    if not is_block_triangular(A):
        return False
    below = np.diagonal(A, -1)
    first = np.flatnonzero(below)
    if first.size == 0:
        return True
    if np.iscomplexobj(A):
        return False
    diagonal = np.diagonal(A)
    standard = (diagonal[first] == diagonal[first + 1]) & (below[first] * np.diagonal(A, 1)[first] < 0)
    return bool(np.all(standard))


def triangular_form(T: Array, B: Array, C: Array) -> tuple[Array, Array, Array]:
    """Return a system in real Schur form in the states in which T is triangular and complex.

    The 2 x 2 blocks [[a, f], [g, a]], f g = -w^2, act on disjoint pairs of states, so that all are
    diagonalized at once, by the unitary matrices of their eigenvectors (f, j w).
    """
    T, B, C = T.astype(complex, order="F"), B.astype(complex), C.astype(complex)
    first = np.flatnonzero(np.diagonal(T, -1))
    second = first + 1
    f, g = np.diagonal(T, 1)[first], np.diagonal(T, -1)[first]
    w = np.sqrt(np.maximum(-(f * g).real, 0.0))
    size = np.hypot(f.real, w)
    x, y = f / size, 1j * w / size
    for M in (T, B):
        M[first], M[second] = (
            x.conj()[:, None] * M[first] + y.conj()[:, None] * M[second],
            -y[:, None] * M[first] + x[:, None] * M[second],
        )
    for M in (T, C):
        M[:, first], M[:, second] = (
            M[:, first] * x + M[:, second] * y,
            -M[:, first] * y.conj() + M[:, second] * x.conj(),
        )
    T[second, first] = 0
    return T, B, C
