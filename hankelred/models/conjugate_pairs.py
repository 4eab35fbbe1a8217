"""Conjugate pairs of poles and zeros, and the real states that represent those of a modal form."""

from __future__ import annotations

import math

import numpy as np

from .._util.arrays import Array

TOLERANCE = 1e-9


def grouped_conjugates(roots: Array, tolerance: float) -> list[tuple[int, ...]] | None:
    """Return the indices of each real root and of each conjugate pair, in the order of the roots.

    Conjugates may be anywhere. None if one is missing, up to this share of the size of the root.
    """
    remaining = list(range(roots.size))
    groups: list[tuple[int, ...]] = []
    while remaining:
        first = remaining.pop(0)
        width = tolerance * max(abs(roots[first]), np.finfo(float).tiny)
        distances = np.abs(roots[remaining] - roots[first].conjugate())
        if roots[first].imag != 0 and distances.min(initial=np.inf) <= width:
            groups.append((first, remaining.pop(int(distances.argmin()))))
        elif abs(roots[first].imag) <= width:
            groups.append((first,))
        else:
            return None
    return groups


def pair_starts(log_poles: Array, *, discrete: bool) -> list[int] | None:
    """Return where conjugate pairs start; None if a complex pole is not adjacent to its conjugate.

    Unlike :func:`grouped_conjugates` it requires neighbors, as the states of a pair are in a modal form. Of
    discrete poles it compares logarithms, in which slow poles have more digits.
    """
    starts: list[int] = []
    k = 0
    while k < log_poles.size:
        angle = log_poles[k].imag
        if angle == 0 or (discrete and abs(angle) == math.pi):
            k += 1
            continue
        if k + 1 < log_poles.size:
            gap = abs(log_poles[k + 1] - log_poles[k].conjugate())
            if gap <= TOLERANCE * max(abs(log_poles[k]), abs(angle)):
                starts.append(k)
                k += 2
                continue
        if not (discrete and abs(abs(angle) - math.pi) < TOLERANCE):
            return None
        k += 1  # the logarithm of a negative real pole, up to rounding
    return starts


def real_coordinates(log_poles: Array, B: Array, C: Array, D: Array, *, discrete: bool) -> Array | None:
    """Return the unitary map from modal states to real ones; None if the system is not real.

    A pair z, conj z becomes the real states sqrt(2) Re z and sqrt(2) Im z.
    """
    starts = pair_starts(log_poles, discrete=discrete)
    if starts is None or np.any(np.imag(D) != 0):
        return None
    out = np.eye(log_poles.size, dtype=complex)
    for k in starts:
        out[k : k + 2, k : k + 2] = np.array([[1, 1], [-1j, 1j]]) * math.sqrt(0.5)
    for M in (out @ B, (C @ out.conj().T).T):
        rows = np.linalg.norm(M, axis=1)
        # one of the two real states of a pair may be tiny: its rounding is relative to the size of the pair
        for k in starts:
            rows[k : k + 2] = rows[k : k + 2].max()
        if np.any(np.linalg.norm(M.imag, axis=1) > TOLERANCE * np.maximum(rows, np.finfo(float).tiny)):
            return None
    return out
