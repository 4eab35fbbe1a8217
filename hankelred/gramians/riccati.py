"""Stabilizing solutions of Riccati equations, checked."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ConvergenceError

#: No solution with a larger relative residual is believed.
ACCEPTED_RESIDUAL = 1e-8


@dataclass(frozen=True)
class Riccati:
    """The solution X, the gain K that makes A - B K stable, and the weight that goes with it.

    The weight is R in continuous time and R + B^H X B in discrete time. ``rows`` is sqrt(weight) K: the
    output that completes the equation to one of Lyapunov type.
    """

    X: Array
    K: Array
    weight: Array
    residual: float

    @property
    def rows(self) -> Array:
        """The additional output sqrt(weight) K."""
        return np.linalg.cholesky(self.weight).conj().T @ self.K


def solve_riccati(
    A: Array, B: Array, Q: Array, S: Array, R: Array, *, discrete: bool, what: str, advice: str
) -> Riccati:
    """Return the stabilizing solution of A^H X + X A - (X B + S) R^-1 (X B + S)^H + Q = 0.

    In discrete time A^H X A - X - (A^H X B + S) (R + B^H X B)^-1 (A^H X B + S)^H + Q = 0.

    Raises
    ------
    ConvergenceError
        No such solution was found, or it does not satisfy the equation. ``what`` and ``advice`` go into the
        message.
    """
    failed = f"the Riccati equation of {what} has no stabilizing solution that can be computed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a badly conditioned matrix; the residual is checked
            solve = sla.solve_discrete_are if discrete else sla.solve_continuous_are
            X = np.asarray(solve(A, B, Q, R, s=S))
            X = (X + X.conj().T) / 2
            weight = R + B.conj().T @ X @ B if discrete else R
            weight = (weight + weight.conj().T) / 2
            cross = A.conj().T @ X @ B + S if discrete else X @ B + S
            K = np.linalg.solve(weight, cross.conj().T)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise ConvergenceError(f"{failed} ({error}); {advice}") from None
    poles = np.linalg.eigvals(A - B @ K)
    settled = np.all(np.abs(poles) < 1) if discrete else np.all(poles.real < 0)
    if not settled or not np.all(np.linalg.eigvalsh(weight) > 0):
        raise ConvergenceError(f"{failed}; {advice}")
    linear = A.conj().T @ X @ A - X if discrete else A.conj().T @ X + X @ A
    terms = [linear, cross @ K, Q]
    size = 2 * float(np.linalg.norm(A)) * float(np.linalg.norm(X)) + sum(
        float(np.linalg.norm(term)) for term in terms
    )
    residual = float(np.linalg.norm(linear - cross @ K + Q)) / size if size > 0 else 0.0
    if not residual <= ACCEPTED_RESIDUAL or not math.isfinite(residual):
        raise ConvergenceError(f"{failed}: its relative residual is {residual:.1e}; {advice}")
    return Riccati(X, K, weight, residual)
