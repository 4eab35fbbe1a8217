"""The bilinear map between discrete and continuous time, which preserves Gramians and gains."""

from __future__ import annotations

import math

import numpy as np

from ..._util.arrays import Array, Quadruple


def to_half_plane(A: Array, B: Array, C: Array, D: Array) -> Quadruple:
    """Return the continuous system whose response at s is that of the discrete one at (1 + s) / (1 - s)."""
    eye, root = np.eye(A.shape[0]), math.sqrt(2)
    inverse = np.linalg.inv(A + eye)
    return inverse @ (A - eye), root * inverse @ B, root * C @ inverse, D - C @ inverse @ B


def from_half_plane(A: Array, B: Array, C: Array, D: Array) -> Quadruple:
    """Return the discrete system whose response at z is that of the continuous one at (z - 1) / (z + 1)."""
    eye, root = np.eye(A.shape[0]), math.sqrt(2)
    inverse = np.linalg.inv(eye - A)
    return inverse @ (A + eye), root * inverse @ B, root * C @ inverse, D + C @ inverse @ B
