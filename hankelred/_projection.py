"""The matrices of a projection: the nearest doubles, and what these lack of the exact ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._arrays import EPS, Array
from ._scaling import Scaled
from ._twofold import product, two_sum
from .order import repeated

#: The error of a singular value is at most this many times what the diagonals of the Gramian equations show
#: of it, also where slow modes are spread over many balanced states.
SPREAD = 20


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


def imbalance(system: Projected, values: Array, *, discrete: bool) -> Array:
    """Return how far from balanced a system is: about the relative error of each of its singular values.

    In balanced states the diagonals of the two Gramian equations tie each value to its row of B and its
    column of C. The rounding of a Schur form breaks the tie where the model is stiff or a pole is near the
    stability boundary.
    """
    k = values.size
    # a repeated value is one, whatever basis its states were given
    group = np.arange(k)
    for cluster in repeated(values):
        group[cluster] = cluster.start
    out = np.zeros(k)
    for A, A_low, ports in (
        (system.A, system.A_low, np.linalg.norm(system.B, axis=1)),
        (system.A.conj().T, system.A_low.conj().T, np.linalg.norm(system.C, axis=0)),
    ):
        if discrete:
            image = np.einsum("ij,j,ij->i", A, values, A.conj()).real
            here = image - values + 2 * np.einsum("ij,j,ij->i", A, values, A_low.conj()).real
            rounding = EPS * (image + values)
        else:
            here = 2 * np.diag(A).real * values
            rounding = np.zeros(k)
        source = np.bincount(group, ports**2, minlength=k)
        defect = np.abs(np.bincount(group, here + ports**2, minlength=k))
        defect += np.bincount(group, rounding, minlength=k)
        share = np.divide(defect, source, out=np.ones(k), where=source > 0)
        out = np.maximum(out, np.clip(SPREAD * share, 16 * EPS, 1.0)[group])
    return out
