"""Exact discretization of a continuous model for a zero-order or first-order hold."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ModelError
from ..models.scaling import balance_matrix


def discretize(A: Array, B: Array, step: float, hold: str) -> tuple[Array, Array, Array]:
    """Return ``F, G, H`` of ``x[k+1] = F x[k] + G u[k] + H u[k+1]``, exact for this hold ("zoh" or "foh")."""
    n, m = B.shape
    # The exponential is accurate relative to the norm of its argument: mixed units of the states, or B much
    # larger than A, would lose digits. Scaling by powers of two is exact.
    balanced_A, scale = balance_matrix(A)
    scaled_B = B / scale[:, None] * step
    size = max(1.0, float(np.linalg.norm(balanced_A * step)))
    columns = np.linalg.norm(scaled_B, axis=0)
    gain = np.exp2(np.ceil(np.log2(np.maximum(columns / size, np.finfo(float).tiny))))
    gain[columns == 0] = 1.0
    hold_order = 2 if hold == "foh" else 1
    augmented = np.zeros((n + hold_order * m, n + hold_order * m), dtype=A.dtype)
    augmented[:n, :n] = balanced_A * step
    augmented[:n, n : n + m] = scaled_B / gain
    if hold == "foh":
        augmented[n : n + m, n + m :] = np.eye(m)
    with np.errstate(over="ignore", invalid="ignore"):
        exponential = sla.expm(augmented)
    if not np.isfinite(exponential).all():
        raise ModelError(
            f"expm(A * step) overflows for step={step}; the model grows too fast for this step; use a "
            "smaller one"
        )
    F = exponential[:n, :n] * (scale[:, None] / scale)
    G = exponential[:n, n : n + m] * gain * scale[:, None]
    if hold == "zoh":
        return F, G, np.zeros_like(G)
    H = exponential[:n, n + m :] * gain * scale[:, None]
    return F, G - H, H
