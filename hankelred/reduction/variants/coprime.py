"""Reduction of a stable or unstable plant by its normalized coprime factors."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import Array
from ...gramians.riccati import solve_riccati
from ...gramians.stability import is_unstable_pole
from ...models.linear_model import LinearModel
from ..balancing import unstable_poles
from .derived import Derived, in_balanced_states

#: Poles of a plant nearer to the stability boundary than this, relatively, count as marginal.
BOUNDARY = 1e-9


class Coprime(Derived):
    """Truncation of the normalized left coprime factors [N, M] of G = M^-1 N.

    The gap between two plants measures how differently they behave in a feedback loop, so a reduced plant
    with a small gap can replace the full one in controller design. Poles on the stability boundary are not
    kept exactly.

    Sources: Meyer, Proc. IFAC World Congress (1990); McFarlane and Glover, Robust Controller Design (1990).
    """

    may_lower_order = False

    def __init__(self, model: LinearModel, stability_tol: float):
        states, bases = in_balanced_states(model, stability_tol)
        A, B, C, D = states.as_tuple()
        R = np.eye(D.shape[0]) + D @ D.conj().T
        if model.n_states == 0:
            L, weight = np.zeros((0, D.shape[0])), R
        else:
            solution = solve_riccati(
                A.conj().T,
                C.conj().T,
                B @ B.conj().T,
                B @ D.conj().T,
                R,
                discrete=model.is_discrete,
                what="the coprime factors",
                advice="remove unstable or marginal poles that are not controllable and observable with "
                "minimal() first",
            )
            L, weight = -solution.K.conj().T, solution.weight
        self._root = np.linalg.cholesky(weight)
        Cn = sla.solve_triangular(self._root, C, lower=True)
        Bn = np.concatenate([B + L @ D, L], axis=1)
        none = np.zeros((C.shape[0], Bn.shape[1]))
        derived = LinearModel(A + L @ C, Bn, Cn, none, model.dt)
        poles = unstable_poles(model, 0)
        size = float(np.abs(poles).max(initial=0.0))
        unstable = is_unstable_pole(poles, size, discrete=model.is_discrete, tol=BOUNDARY)
        #: number of unstable poles without and with marginal ones, which may move to either side
        self._n_unstable = int(np.count_nonzero(unstable)), poles.size
        super().__init__(model, derived, bases)
        self.method = "coprime"

    def reduced_matrices(self, model: LinearModel) -> tuple[Array, Array, Array]:
        """Return A, B and C of the plant whose coprime factors are the truncated ones."""
        m = self.full.n_inputs
        C = self._root @ model.C
        L = model.B[:, m:]
        return model.A - L @ C, model.B[:, :m] - L @ self.full.D, C

    def unstable_poles_of(self, model: LinearModel) -> Array:
        """Return the unstable poles if the full plant is stable; else none, since they are intended."""
        return np.zeros(0) if self._n_unstable[1] else unstable_poles(model, 0)

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced; inf if the plant is not stable."""
        return math.inf if self._n_unstable[1] else super().error(reduced, norm)

    def warning_text(self, order: int) -> str:
        """Return a warning if the number of unstable poles of an unstable plant has changed."""
        count = unstable_poles(self.truncate(order)[0], 0).size
        smallest, largest = self._n_unstable
        if smallest <= count <= largest:
            return ""
        return (
            f"the reduced model of order {order} has {count} unstable pole(s) and the full one {largest}: "
            "in closed loop they behave alike if gap_bound is small, in open loop they do not"
        )

    def gap_bound(self, order: int) -> float:
        """Return twice the sum of the truncated singular values, plus the effects of rounding."""
        return self.inner_bound(order)
