"""Conjugate pairs of poles in modal form, and the real states that represent them."""

from __future__ import annotations

import math

import numpy as np

from .._util.arrays import Array

TOLERANCE = 1e-9


def pair_starts(log_poles: Array, *, discrete: bool) -> list[int] | None:
    """Return where conjugate pairs start; None if a complex pole is not adjacent to its conjugate."""
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
