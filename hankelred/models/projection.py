"""The matrices of a projected system, in double precision and with about twice its digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._util.arrays import EPS, Array
from .._util.twofold import product, two_sum
from .scaling import ScaledSystem


@dataclass(frozen=True)
class ProjectedSystem:
    """A system with about twice the digits of double precision: each matrix is the sum of two."""

    A: Array
    B: Array
    C: Array
    A_low: Array
    B_low: Array
    C_low: Array

    def leading(self, k: int | None) -> ProjectedSystem:
        """Return the system of the k leading states, with None of all."""
        A, A_low = self.A[:k, :k], self.A_low[:k, :k]
        return ProjectedSystem(A, self.B[:k], self.C[:, :k], A_low, self.B_low[:k], self.C_low[:, :k])


def project(system: ScaledSystem, left: Array, right: Array) -> tuple[Array, Array, Array]:
    """Return left^H A right, left^H B and C right in double precision."""
    left_h = left.conj().T
    return left_h @ (system.A @ right), left_h @ system.B, system.C @ right


def project_exactly(system: ScaledSystem, left: Array, right: Array) -> ProjectedSystem:
    """Return the projection onto the columns of right along the complement of left.

    left^H right is the identity up to rounding, and that rounding is corrected too, so that the result
    depends only on the two subspaces.
    """
    left_h = left.conj().T
    image = product(system.A, right)
    A, A_low = product(left_h, image[0])
    A_low = A_low + left_h @ image[1]
    B, B_low = product(left_h, system.B)
    C, C_low = product(system.C, right)
    overlap, overlap_low = product(left_h, right)
    defect = (overlap - np.eye(left.shape[1])) + overlap_low
    # (1 + defect)^-1 M = M - (1 + defect)^-1 defect M
    correction = np.linalg.solve(overlap, defect) if defect.size else defect
    A, A_low = two_sum(A, A_low - correction @ A)
    B, B_low = two_sum(B, B_low - correction @ B)
    return ProjectedSystem(A, B, C, A_low, B_low, C_low)


def rounding_of_projection(system: ScaledSystem, left: Array, right: Array, values: Array) -> float:
    """Estimate how much the rounding of :func:`project` changes the gain of a balanced system.

    The rounding error of entry (i, j) of A is at most a few EPS (|left|^T |A| |right|)_ij. A single state
    has the pole -|b| |c| / (2 sigma) in continuous time, so that its gain, 2 sigma, changes by
    4 sigma^2 / (|b| |c|) times the change of its pole; in discrete time the same holds near the boundary.
    inf where a state is driven or observed through other states only.
    """
    io_norms = np.linalg.norm(left.conj().T @ system.B, axis=1) * np.linalg.norm(system.C @ right, axis=0)
    if np.any(io_norms == 0):
        return float("inf")
    weights = values * np.sqrt(2 / io_norms)
    sizes = np.abs(left).T @ (np.abs(system.A) @ (np.abs(right) @ weights))
    return 2 * EPS * float(weights @ sizes)
