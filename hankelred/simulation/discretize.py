"""A continuous model over a uniformly sampled input: the exact recurrence for a given hold."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ModelError
from ..models.scaling import balance_matrix


def discretise(A: Array, B: Array, step: float, hold: str) -> tuple[Array, Array, Array]:
    """Return ``F, G, H`` of ``x[k+1] = F x[k] + G u[k] + H u[k+1]``, exact for the given hold."""
    n, m = B.shape
    # The exponential is accurate relative to the norm of its argument: mixed units in the states, or
    # an input much larger than A, would cost digits. Powers of two cost nothing.
    balanced_A, scale = balance_matrix(A)
    drive = B / scale[:, None] * step
    size = max(1.0, float(np.linalg.norm(balanced_A * step)))
    columns = np.linalg.norm(drive, axis=0)
    gain = np.exp2(np.ceil(np.log2(np.maximum(columns / size, np.finfo(float).tiny))))
    gain[columns == 0] = 1.0
    order = 2 if hold == "foh" else 1
    block = np.zeros((n + order * m, n + order * m), dtype=A.dtype)
    block[:n, :n] = balanced_A * step
    block[:n, n : n + m] = drive / gain
    if hold == "foh":
        block[n : n + m, n + m :] = np.eye(m)
    with np.errstate(over="ignore", invalid="ignore"):
        full = sla.expm(block)
    if not np.isfinite(full).all():
        raise ModelError(
            f"expm(A * step) overflows for step={step}; the model grows too fast for this step, take a "
            "smaller one"
        )
    F = full[:n, :n] * (scale[:, None] / scale)
    G = full[:n, n : n + m] * gain * scale[:, None]
    if hold == "zoh":
        return F, G, np.zeros_like(G)
    H = full[:n, n + m :] * gain * scale[:, None]
    return F, G - H, H
