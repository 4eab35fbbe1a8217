"""Factors of frequency-weighted Gramians, and stable equivalents of unstable weights.

The series connection of an input weight and the model has a Gramian [[P11, P12], [P21, P22]], with the states
of the model first and those of the weight second. Let [L1; L2] be its factor. The Gramian of Enns is P11 =
L1 L1^H; that of Lin and Chiu is P11 - P12 P22^-1 P21 = (L1 N)(L1 N)^H, where the columns of N span the null
space of L2, so that no difference of Gramians is formed.

Sources: Enns, Proc. CDC (1984); Lin and Chiu, Control Theory Adv. Technol. 8 (1992); Varga and Anderson,
Automatica 39 (2003).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array, Quadruple
from ..errors import ModelError
from ..models.linear_model import LinearModel, Timebase
from ..models.projection import project_exactly
from .factorize import factorize
from .gramians import gramian
from .stability import is_unstable_pole, matrix_size

#: States of the weight that are less controllable than this, relatively, count as uncontrollable.
CONTROLLABLE = 1e-12


def input_weighted_factors(A: Array, B: Array, weight: Quadruple, *, dt: Timebase) -> tuple[Array, Array]:
    """Return factors of the input-weighted Gramians of Enns and of Lin and Chiu, for a stable weight."""
    Aw, Bw, Cw, Dw = weight
    n, k = A.shape[0], Aw.shape[0]
    joint = np.zeros((n + k, n + k), np.result_type(A, B, Aw, Cw))
    joint[:n, :n], joint[:n, n:], joint[n:, n:] = A, B @ Cw, Aw
    joint_B = np.concatenate([B @ Dw, Bw])
    L = gramian((joint, joint_B, np.eye(n, n + k), np.zeros((n, joint_B.shape[1]))), factor=True, dt=dt)
    L1, L2 = L[:n], L[n:]
    if k == 0:
        return L1, L1
    _, strength, Vh = np.linalg.svd(L2, full_matrices=True)
    rank = int(np.count_nonzero(strength > CONTROLLABLE * strength.max(initial=0.0)))
    return L1, L1 @ Vh[rank:].conj().T


def dual(system: Quadruple) -> Quadruple:
    """Return the system with inputs and outputs exchanged."""
    A, B, C, D = system
    return A.conj().T, C.conj().T, B.conj().T, D.conj().T


def stable_weight(weight: LinearModel, stability_tol: float, name: str, *, on_input: bool) -> Quadruple:
    """Return a stable weight with which every weighted error has the same gain at every frequency.

    An unstable input weight W = N M^-1 with inner M is replaced by N, because M does not change gains. For an
    output weight the factorization is M^-1 N.

    Raises
    ------
    ModelError
        The weight has a pole on the stability boundary, where no weighted error is finite.

    Notes
    -----
    Coprime factorization with inner denominator: Varga, Syst. Control Lett. 20 (1993).
    """
    factored = factorize(weight, stability_tol)
    if factored.n_unstable == 0:
        return weight.as_tuple()
    poles, discrete = np.linalg.eigvals(factored.unstable_A), weight.is_discrete
    size = matrix_size(factored.scaled_system.A)
    marginal = poles[~is_unstable_pole(poles, size, discrete=discrete, tol=stability_tol)]
    if marginal.size:
        raise ModelError(
            f"{name} has a pole at {marginal[0]:.3g}, on the stability boundary, where its gain "
            "is infinite; move the pole into the stable region"
        )
    if not on_input:
        return dual(
            stable_weight(weight.with_matrices(*dual(weight.as_tuple())), stability_tol, name, on_input=True)
        )
    system = factored.scaled_system
    right = np.concatenate(
        [factored.right_states(np.eye(factored.n_stable)), factored.unstable_right], axis=1
    )
    left = np.concatenate([factored.left_states(np.eye(factored.n_stable)), factored.unstable_left], axis=1)
    states = project_exactly(system, left, right)
    n = factored.n_stable
    A, B, C = states.A, states.B * 2.0**system.input_exponent, states.C * 2.0**system.output_exponent
    Au, Bu = A[n:, n:], B[n:]
    # only controllable poles have to be reflected; uncontrollable ones do not contribute to W
    Z = _antistable_gramian(Au, Bu, discrete=discrete)
    values, vectors = np.linalg.eigh((Z + Z.conj().T) / 2)
    if values.min() <= CONTROLLABLE * values.max():
        raise ModelError(f"{name} has an unstable pole that is cancelled by a zero; remove it with minimal()")
    inverse = (vectors / values) @ vectors.conj().T
    F = np.zeros((B.shape[1], A.shape[0]), A.dtype)
    if discrete:
        F[:, n:] = -Bu.conj().T @ sla.solve(Z + Bu @ Bu.conj().T, Au)
        share = np.eye(B.shape[1]) + Bu.conj().T @ inverse @ Bu
        root = sla.solve_triangular(np.linalg.cholesky(share), np.eye(B.shape[1]), lower=True).conj().T
    else:
        F[:, n:] = -Bu.conj().T @ inverse
        root = np.eye(B.shape[1])
    return A + B @ F, B @ root, C + weight.D @ F, weight.D @ root


def _antistable_gramian(A: Array, B: Array, *, discrete: bool) -> Array:
    """Return Z with A Z + Z A^H = B B^H, in discrete time A Z A^H - Z = B B^H, for A without stable poles."""
    source = B @ B.conj().T
    if not discrete:
        return np.asarray(sla.solve_continuous_lyapunov(A, source))
    inverse = np.linalg.inv(A)
    return np.asarray(sla.solve_discrete_lyapunov(inverse, inverse @ source @ inverse.conj().T))
