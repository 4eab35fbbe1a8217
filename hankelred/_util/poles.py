"""Where poles are, relative to the stability boundary: the imaginary axis, or the unit circle."""

from __future__ import annotations

import numpy as np

from .arrays import Array


def distance_to_boundary(poles: Array, *, discrete: bool) -> Array:
    """Return how far each pole is inside the stability boundary; negative for unstable poles."""
    return 1 - np.abs(poles) if discrete else -poles.real


def boundary_width(size: float, *, discrete: bool, tol: float) -> float:
    """Return the distance from the boundary up to which poles of a matrix of this size count as on it."""
    return tol * (max(1.0, size) if discrete else size)


def slowest_poles(poles: Array, count: int, *, discrete: bool) -> Array:
    """Return the poles nearest to the stability boundary, or beyond it, most critical first."""
    return poles[np.argsort(distance_to_boundary(poles, discrete=discrete))[:count]]


def frequencies_of(poles: Array, *, discrete: bool) -> Array:
    """Return the frequency of the point of the stability boundary nearest to each pole."""
    return np.angle(poles) if discrete else poles.imag
