"""Reduction of a plant, stable or not, by its normalized coprime factors."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import Array
from ...gramians.riccati import solve_riccati
from ...models.linear_model import LinearModel
from ..balancing import unstable_poles
from .derived import Derived

#: Poles of a plant nearer to the stability boundary than this, relatively, count as on it.
BOUNDARY = 1e-9


class Coprime(Derived):
    """Truncation of the normalized left coprime factors [N, M] of G = M^-1 N.

    The gap between two plants is what a controller has to bear, so a plant near in the gap is as good in a
    loop. Poles on the stability boundary are not kept exactly.

    Sources: Meyer, Proc. IFAC World Congress (1990); McFarlane and Glover, Robust Controller Design (1990).
    """

    may_lower_order = False

    def __init__(self, model: LinearModel, stability_tol: float):
        A, B, C, D = model.as_tuple()
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
                advice="an unstable or marginal pole that is not observable, or not reached, has to be "
                "removed "
                "with minimal() first",
            )
            L, weight = -solution.K.conj().T, solution.weight
        self._root = np.linalg.cholesky(weight)
        Cn = sla.solve_triangular(self._root, C, lower=True)
        Bn = np.concatenate([B + L @ D, L], axis=1)
        none = np.zeros((C.shape[0], Bn.shape[1]))
        derived = LinearModel(A + L @ C, Bn, Cn, none, model.dt)
        poles = unstable_poles(model, 0)
        beyond = np.abs(poles) - 1 if model.is_discrete else poles.real
        size = float(np.abs(poles).max(initial=0.0))
        #: unstable poles without and with those on the stability boundary, which may come out on either side
        self._unstable = int(np.count_nonzero(beyond > BOUNDARY * size)), poles.size
        super().__init__(model, derived)
        self.method = "coprime"

    def read_off(self, model: LinearModel) -> tuple[Array, Array, Array]:
        """Return the plant of truncated factors."""
        m = self.full.n_inputs
        C = self._root @ model.C
        L = model.B[:, m:]
        return model.A - L @ C, model.B[:, :m] - L @ self.full.D, C

    def unstable_poles_of(self, model: LinearModel) -> Array:
        """Return the unstable poles, if the full plant is stable; else they are as they should be."""
        return np.zeros(0) if self._unstable[1] else unstable_poles(model, 0)

    def remark(self, order: int) -> str:
        """Return a note where an unstable plant has lost or gained unstable poles."""
        found = unstable_poles(self.truncate(order)[0], 0).size
        least, most = self._unstable
        if least <= found <= most:
            return ""
        return (
            f"the reduced model of order {order} has {found} unstable pole(s) and the full one "
            f"{most}: in "
            "a loop they are near each other if gap_bound is small, in open loop they are not"
        )

    def gap_bound(self, order: int) -> float:
        """Return twice the sum of the singular values left out, and what rounding adds."""
        return self.inner_bound(order)
