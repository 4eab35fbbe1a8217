"""Stabilizing solutions of Riccati equations, checked."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ConvergenceError

#: No solution with a larger relative residual is believed.
ACCEPTED_RESIDUAL = 1e-8

#: A solution with a smaller one is not improved further; so many steps of Newton's method are made at most.
GOOD_RESIDUAL, STEPS = 1e-15, 30


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
    equation = _Equation(A, B, Q, S, R, discrete)
    X: Array | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a badly conditioned matrix; the residual is checked
            solve = sla.solve_discrete_are if discrete else sla.solve_continuous_are
            X = np.asarray(solve(A, B, Q, R, s=S))
    except (np.linalg.LinAlgError, ValueError) as error:
        failed = f"{failed} ({error})"
    try:
        found = equation.improved(X)
    except (np.linalg.LinAlgError, ValueError):
        found = None
    if found is None or not np.all(np.linalg.eigvalsh(found.weight) > 0):
        raise ConvergenceError(f"{failed}; {advice}")
    if not found.residual <= ACCEPTED_RESIDUAL:
        raise ConvergenceError(f"{failed}: its relative residual is {found.residual:.1e}; {advice}")
    return found


@dataclass(frozen=True)
class _Equation:
    """A Riccati equation, and Newton's method for it."""

    A: Array
    B: Array
    Q: Array
    S: Array
    R: Array
    discrete: bool

    def improved(self, X: Array | None) -> Riccati | None:
        """Return the solution that Newton's method reaches from X, or from zero if A is stable.

        None where neither start makes A - B K stable.
        """
        found = None if X is None else self.evaluated(X)
        if found is None or not self.settled(found.K):
            found = self.evaluated(np.zeros_like(self.Q))
            if not self.settled(np.zeros_like(found.K)):
                return None
            found = self.step(np.zeros_like(found.K))
        for _ in range(STEPS):
            if found.residual <= GOOD_RESIDUAL or not self.settled(found.K):
                break
            better = self.step(found.K)
            if not better.residual < found.residual:
                break
            found = better
        return found if self.settled(found.K) else None

    def step(self, K: Array) -> Riccati:
        """Return one step of Newton's method (Kleinman 1968): the cost of the feedback K."""
        closed, SK = self.A - self.B @ K, self.S @ K
        cost = self.Q - SK - SK.conj().T + K.conj().T @ self.R @ K
        if self.discrete:
            return self.evaluated(np.asarray(sla.solve_discrete_lyapunov(closed.conj().T, cost)))
        return self.evaluated(np.asarray(sla.solve_continuous_lyapunov(closed.conj().T, -cost)))

    def evaluated(self, X: Array) -> Riccati:
        """Return the gain and the residual of a solution."""
        A, B = self.A, self.B
        X = (X + X.conj().T) / 2
        weight = self.R + B.conj().T @ X @ B if self.discrete else self.R
        weight = (weight + weight.conj().T) / 2
        cross = A.conj().T @ X @ B + self.S if self.discrete else X @ B + self.S
        K = np.linalg.solve(weight, cross.conj().T)
        linear = A.conj().T @ X @ A - X if self.discrete else A.conj().T @ X + X @ A
        sizes = [2 * float(np.linalg.norm(A)) * float(np.linalg.norm(X))]
        sizes += [float(np.linalg.norm(term)) for term in (linear, cross @ K, self.Q)]
        residual = float(np.linalg.norm(linear - cross @ K + self.Q))
        return Riccati(X, K, weight, residual / sum(sizes) if sum(sizes) > 0 else 0.0)

    def settled(self, K: Array) -> bool:
        """Tell whether A - B K is stable."""
        poles = np.linalg.eigvals(self.A - self.B @ K)
        return bool(np.all(np.abs(poles) < 1) if self.discrete else np.all(poles.real < 0))
