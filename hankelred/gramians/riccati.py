"""Stabilizing solutions of Riccati equations, with a check of the residual."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ConvergenceError
from .stability import is_stable_matrix

#: Solutions with a larger relative residual are rejected.
ACCEPTED_RESIDUAL = 1e-8

#: Newton's method stops at this relative residual, or after so many steps.
GOOD_RESIDUAL, STEPS = 1e-15, 30


@dataclass(frozen=True)
class Riccati:
    """The solution X, the gain K that makes A - B K stable, and the corresponding weight.

    The weight is R in continuous time and R + B^H X B in discrete time. With the rows sqrt(weight) K as an
    additional output, the equation becomes a Lyapunov equation.
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
        No such solution could be computed, or it does not satisfy the equation. ``what`` and ``advice`` are
        part of the message.
    """
    failed = f"the Riccati equation of {what} has no stabilizing solution that can be computed"
    equation = _Equation(A, B, Q, S, R, discrete)
    X: Array | None = None
    with warnings.catch_warnings():
        # about ill-conditioned matrices and closed loops near the stability limit; the residual is checked
        warnings.simplefilter("ignore", sla.LinAlgWarning)
        warnings.filterwarnings("ignore", ".*eigenvalue pair whose sum", RuntimeWarning)
        try:
            solve = sla.solve_discrete_are if discrete else sla.solve_continuous_are
            X = np.asarray(solve(A, B, Q, R, s=S))
        except (np.linalg.LinAlgError, ValueError) as error:
            failed = f"{failed} ({error})"
        try:
            solution = equation.improved(X)
        except (np.linalg.LinAlgError, ValueError):
            solution = None
    if solution is None or not np.all(np.linalg.eigvalsh(solution.weight) > 0):
        raise ConvergenceError(f"{failed}; {advice}")
    if not solution.residual <= ACCEPTED_RESIDUAL:
        raise ConvergenceError(f"{failed}: its relative residual is {solution.residual:.1e}; {advice}")
    return solution


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
        """Return the solution by Newton's method, started from X, or from zero if A is stable.

        None if neither initial value makes A - B K stable.
        """
        solution = None if X is None else self.evaluated(X)
        if solution is None or not self.is_stabilizing(solution.K):
            solution = self.evaluated(np.zeros_like(self.Q))
            if not self.is_stabilizing(np.zeros_like(solution.K)):
                return None
            solution = self.step(np.zeros_like(solution.K))
        for _ in range(STEPS):
            if solution.residual <= GOOD_RESIDUAL or not self.is_stabilizing(solution.K):
                break
            better = self.step(solution.K)
            # with zeros near the boundary a step of the size of rounding may leave A - B K unstable
            if not better.residual < solution.residual or not self.is_stabilizing(better.K):
                break
            solution = better
        return solution if self.is_stabilizing(solution.K) else None

    def step(self, K: Array) -> Riccati:
        """Return the result of one step of Newton's method (Kleinman 1968) from the feedback gain K."""
        closed, SK = self.A - self.B @ K, self.S @ K
        cost = self.Q - SK - SK.conj().T + K.conj().T @ self.R @ K
        if self.discrete:
            return self.evaluated(np.asarray(sla.solve_discrete_lyapunov(closed.conj().T, cost)))
        return self.evaluated(np.asarray(sla.solve_continuous_lyapunov(closed.conj().T, -cost)))

    def evaluated(self, X: Array) -> Riccati:
        """Return the gain and the residual of an approximate solution."""
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

    def is_stabilizing(self, K: Array) -> bool:
        """Return whether A - B K is stable."""
        return is_stable_matrix(self.A - self.B @ K, discrete=self.discrete)
