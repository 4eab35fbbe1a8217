"""The matrices of a projection: the nearest doubles, and what these lack of the exact ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._util.arrays import EPS, Array
from .._util.twofold import product, two_sum
from .scaling import Scaled


@dataclass(frozen=True)
class Projected:
    """A system with about twice the digits of double precision: each matrix is a sum of two."""

    A: Array
    B: Array
    C: Array
    A_low: Array
    B_low: Array
    C_low: Array


def projected(system: Scaled, left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Return left^H A right, left^H B and C right in ordinary arithmetic."""
    into = left.conj().T
    return into @ (system.A @ right), into @ system.B, system.C @ right


def exactly_projected(system: Scaled, left: Array, right: Array) -> Projected:
    """Return the projection onto the columns of right along the complement of left.

    left^H right is the identity but for rounding, and that rounding is taken out as well, so that the
    result depends on the two spaces alone.
    """
    into = left.conj().T
    image = product(system.A, right)
    A, A_low = product(into, image[0])
    A_low = A_low + into @ image[1]
    B, B_low = product(into, system.B)
    C, C_low = product(system.C, right)
    overlap, overlap_low = product(into, right)
    defect = (overlap - np.eye(left.shape[1])) + overlap_low
    # (1 + defect)^-1 M = M - (1 + defect)^-1 defect M
    correction = np.linalg.solve(overlap, defect) if defect.size else defect
    A, A_low = two_sum(A, A_low - correction @ A)
    B, B_low = two_sum(B, B_low - correction @ B)
    return Projected(A, B, C, A_low, B_low, C_low)


def rounding_of_projection(system: Scaled, left: Array, right: Array, values: Array) -> float:
    """Estimate how far the rounding of :func:`projected` moves the gain of a balanced system.

    Entry (i, j) of A carries at most a few EPS (|left|^T |A| |right|)_ij. A state by itself has the pole
    -|b| |c| / (2 sigma) in continuous time, so that its gain, 2 sigma, moves by 4 sigma^2 / (|b| |c|)
    times the change of its pole; in discrete time the same holds near the boundary. inf where a state is
    driven or seen through others only.
    """
    ports = np.linalg.norm(left.conj().T @ system.B, axis=1) * np.linalg.norm(system.C @ right, axis=0)
    if np.any(ports == 0):
        return float("inf")
    reach = values * np.sqrt(2 / ports)
    sizes = np.abs(left).T @ (np.abs(system.A) @ (np.abs(right) @ reach))
    return 2 * EPS * float(reach @ sizes)
