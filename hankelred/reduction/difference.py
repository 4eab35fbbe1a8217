"""The difference of a model and its reduction, in coordinates in which nothing cancels.

Both are far larger than their difference, so that two gains subtracted leave rounding. The states of
the model in balanced coordinates, x1 kept and x2 left out, and the error e = x1 - x_r of the kept ones
make a system of which the output is the difference itself. It knows the rounding of the matrices handed
out, because these enter as they are.
"""

from __future__ import annotations

import numpy as np

from .._util.arrays import Array, Quadruple, reduce_columns
from ..models.frequency_response import FrequencyResponse, largest_singular_value
from ..models.projection import ProjectedSystem

#: So many of the poles nearest the stability boundary, where changes move the gain most, are looked at.
SLOWEST = 60


def difference(full: ProjectedSystem, reduced: Quadruple) -> Quadruple:
    """Return full minus reduced, the reduced states being the leading ones of full.

    The D of `reduced` is what it has more than that of the full model.
    """
    Ar, _, Cr, D = reduced
    r, n = Ar.shape[0], full.A.shape[0]
    moved = moved_by_rounding(full, reduced)
    A = np.zeros((n + r, n + r), np.result_type(full.A, Ar))
    A[:n, :n], A[n:, n:] = full.A, Ar
    A[n:, :r], A[n:, r:n] = moved[0], full.A[:r, r:]
    C = np.concatenate([moved[2], full.C[:, r:], Cr], axis=1)
    return A, np.concatenate([full.B, moved[1]]), C, -D


def moved_by_rounding(full: ProjectedSystem, reduced: Quadruple) -> tuple[Array, Array, Array]:
    """Return how far A, B and C of the leading states of full are from those of the reduced model."""
    Ar, Br, Cr, _ = reduced
    r = Ar.shape[0]
    return (
        (full.A[:r, :r] - Ar) + full.A_low[:r, :r],
        (full.B[:r] - Br) + full.B_low[:r],
        (full.C[:, :r] - Cr) + full.C_low[:, :r],
    )


def gain_of_changes(reduced: Quadruple, changes: tuple[Array, Array, Array], *, discrete: bool) -> float:
    """Return how far these changes of A, B and C move the gain of a stable system.

    Twice what they do to first order at the frequencies of its poles and a width beside these, where the
    effect has its peaks: for what lies between, and for higher orders.
    """
    A, B, C, _ = reduced
    if 0 in (A.shape[0], B.shape[1], C.shape[0]):
        return 0.0
    dA, dB, dC = changes
    n = A.shape[0]
    # thousands of ports as isometries around a few
    inputs = reduce_columns(np.concatenate([B, dB]))
    outputs = reduce_columns(np.concatenate([C, dC], axis=1).T).T
    B, dB, C, dC = inputs[:n], inputs[n:], outputs[:, :n], outputs[:, n:]
    poles = np.linalg.eigvals(A)
    poles = poles[np.argsort(1 - np.abs(poles) if discrete else -poles.real)[:SLOWEST]]
    centers, widths = (np.angle(poles), 1 - np.abs(poles)) if discrete else (poles.imag, poles.real)
    frequencies = np.concatenate([centers, centers + widths, centers - widths, [0.0]])
    if not any(np.iscomplexobj(M) for M in (A, B, C)):
        frequencies = np.abs(frequencies)
    frequencies = np.unique(frequencies)
    reached = _resolved(A, B, frequencies, discrete)
    observed = _resolved(A.T, C.T, frequencies, discrete).transpose(0, 2, 1)
    effect = observed @ (dA @ reached + dB) + dC @ reached
    return 2 * float(largest_singular_value(effect).max())


def _resolved(A: Array, B: Array, frequencies: Array, discrete: bool) -> Array:
    """Return (s - A)^-1 B, shape (frequencies, states, inputs)."""
    n = A.shape[0]
    return FrequencyResponse(A, B, np.eye(n), np.zeros((n, B.shape[1])), discrete=discrete)(frequencies)
