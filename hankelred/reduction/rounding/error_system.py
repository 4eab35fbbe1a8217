"""The error system, a model minus its reduction, in states in which nothing cancels.

Both gains can be far larger than their difference, so that subtracting them leaves only rounding. The states
of the model in balanced form, x1 retained and x2 removed, and the error e = x1 - x_r of the retained states
form a system whose output is the difference itself. It includes the rounding of the matrices that are
returned to the user, because it is formed with these matrices.
"""

from __future__ import annotations

import numpy as np

from ..._util.arrays import Array, Quadruple, reduce_columns
from ..._util.poles import distance_to_boundary, frequencies_of, slowest_poles
from ...models.frequency_response import FrequencyResponse, largest_singular_value
from ...models.projection import ProjectedSystem

#: Number of poles nearest the stability boundary that are considered; changes of the gain are largest there.
SLOWEST_POLES = 60


def error_system(full: ProjectedSystem, reduced: Quadruple) -> Quadruple:
    """Return full minus reduced, where the states of reduced are the leading ones of full.

    The D of `reduced` is its difference from that of the full model.
    """
    Ar, _, Cr, D = reduced
    r, n = Ar.shape[0], full.A.shape[0]
    changes = rounding_changes(full, reduced)
    A = np.zeros((n + r, n + r), np.result_type(full.A, Ar))
    A[:n, :n], A[n:, n:] = full.A, Ar
    A[n:, :r], A[n:, r:n] = changes[0], full.A[:r, r:]
    C = np.concatenate([changes[2], full.C[:, r:], Cr], axis=1)
    return A, np.concatenate([full.B, changes[1]]), C, -D


def rounding_changes(full: ProjectedSystem, reduced: Quadruple) -> tuple[Array, Array, Array]:
    """Return the differences of A, B and C of the leading states of full from those of the reduced model."""
    Ar, Br, Cr, _ = reduced
    r = Ar.shape[0]
    return (
        (full.A[:r, :r] - Ar) + full.A_low[:r, :r],
        (full.B[:r] - Br) + full.B_low[:r],
        (full.C[:, :r] - Cr) + full.C_low[:, :r],
    )


def gain_of_changes(reduced: Quadruple, changes: tuple[Array, Array, Array], *, discrete: bool) -> float:
    """Return an upper limit of the change of the gain of a stable system by changes of A, B and C.

    It is twice the first-order change at the frequencies of the poles and one width beside them, where the
    change has its peaks; the factor two covers other frequencies and higher orders.
    """
    A, B, C, _ = reduced
    if 0 in (A.shape[0], B.shape[1], C.shape[0]):
        return 0.0
    dA, dB, dC = changes
    n = A.shape[0]
    # thousands of inputs and outputs are compressed to a few
    inputs = reduce_columns(np.concatenate([B, dB]))
    outputs = reduce_columns(np.concatenate([C, dC], axis=1).T).T
    B, dB, C, dC = inputs[:n], inputs[n:], outputs[:, :n], outputs[:, n:]
    poles = slowest_poles(np.linalg.eigvals(A), SLOWEST_POLES, discrete=discrete)
    centers, widths = frequencies_of(poles, discrete=discrete), distance_to_boundary(poles, discrete=discrete)
    frequencies = np.concatenate([centers, centers + widths, centers - widths, [0.0]])
    if not any(np.iscomplexobj(M) for M in (A, B, C)):
        frequencies = np.abs(frequencies)
    frequencies = np.unique(frequencies)
    state_gains = _resolvent_product(A, B, frequencies, discrete)
    output_gains = _resolvent_product(A.T, C.T, frequencies, discrete).transpose(0, 2, 1)
    change = output_gains @ (dA @ state_gains + dB) + dC @ state_gains
    return 2 * float(largest_singular_value(change).max())


def _resolvent_product(A: Array, B: Array, frequencies: Array, discrete: bool) -> Array:
    """Return (s - A)^-1 B, shape (frequencies, states, inputs)."""
    n = A.shape[0]
    return FrequencyResponse(A, B, np.eye(n), np.zeros((n, B.shape[1])), discrete=discrete)(frequencies)
