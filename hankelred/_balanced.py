"""The methods of reduction that start from the balanced realisation."""

from __future__ import annotations

import math
import warnings
from functools import cached_property

import numpy as np

from ._arrays import Array, Quadruple
from ._errors import ReductionWarning
from ._split import is_stable_pole
from .hankel import Balancing, padded, truncated
from .lyapunov import factorize
from .models import LinearModel
from .norms import difference_norm, h2_norm, negated, parallel, verified_hinf


class BalancedSource:
    """A balanced model; subclasses say how states are left out of it."""

    method: str
    certified = True
    #: what leaves a pole outside the stability region, and why
    instability = ("rounding left", "the full model has a pole as near to the boundary")

    def __init__(self, model: LinearModel, balancing: Balancing):
        self.full = model
        self.balancing = balancing
        factored = balancing.factored
        self.hankel_singular_values = padded(balancing.values[: factored.n_stable], factored)
        self.noise_floor = balancing.noise_floor
        self.unstable_order = factored.n_kept
        self.solver = factored.solver
        self.residual = factored.residual

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        raise NotImplementedError

    def certificate(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the bound: Enns and Glover have proved it."""
        return bound

    @cached_property
    def minimal(self) -> LinearModel:
        """All balanced states above the noise floor, behind the kept ones."""
        return truncated(self.full, self.balancing, self.balancing.rank)[0]

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced; the kept parts are equal and cancel."""
        discrete = self.full.is_discrete
        f = self.balancing.factored
        # the user's own matrices where they are all stable: other coordinates bring rounding of their own
        full: Quadruple = (f.A, f.B, f.C, self.full.D) if f.n_kept else self.full.as_tuple()
        small = self._stable_part(self.minimal)
        other = negated(self._stable_part(reduced))
        if norm == "h2":
            if not discrete and np.any(self.full.D != reduced.D):
                return math.inf
            difference = LinearModel(*parallel([full, other]), dt=self.full.dt)
            return h2_norm(factorize(difference, 0.0), difference.D, discrete=discrete)
        noise = 2 * float(self.balancing.values[self.balancing.rank :].sum()) + self.noise_floor
        return verified_hinf([(small, full), (other, other)], discrete=discrete, noise=noise)

    def _stable_part(self, model: LinearModel) -> Quadruple:
        k = self.unstable_order
        return model.A[k:, k:], model.B[k:], model.C[:, k:], model.D

    def _warn_if_unstable(self, model: LinearModel) -> None:
        """Say so where a pole of the reduced model lies outside: never an unstable model in silence."""
        A = self._stable_part(model)[0]
        poles = np.linalg.eigvals(A) if A.size else np.zeros(0)
        discrete = self.full.is_discrete
        stable = is_stable_pole(poles, 0.0, discrete=discrete, tol=0.0)
        if not np.all(stable):
            worst = poles[~stable][0]
            warnings.warn(
                f"{self.instability[0]} a pole of the reduced model at {worst:.3g}, outside the stability "
                f"region: {self.instability[1]}; ask for another order",
                ReductionWarning,
                stacklevel=5,
            )


class Truncation(BalancedSource):
    """Leave the weak balanced states out: a projection."""

    method = "truncation"

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the leading states and the projection onto them."""
        model, left, right = truncated(self.full, self.balancing, order - self.unstable_order)
        self._warn_if_unstable(model)
        return model, left, right


class GivenFactors(Truncation):
    """Truncation by Gramian factors that were handed in, such as those of real inputs: nothing is proved."""

    certified = False
    instability = ("the projection put", "only the model's own Gramians guarantee stability")

    def certificate(self, bound: float, reduced: LinearModel | None) -> float:
        """Return inf: the proofs of Enns and Glover need the model's own Gramians."""
        return math.inf

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced; the given factors may miss states that matter to it."""
        return difference_norm(self.full, reduced, norm)


class Residualization(BalancedSource):
    """Let the weak balanced states settle at once: the response at frequency zero is kept."""

    method = "residualization"

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the leading states with the others at rest; there is no projection."""
        r = order
        A, B, C, D = self.minimal.as_tuple()
        rest = A[r:, r:]
        # x2 at rest: 0 = A21 x1 + A22 x2 + B2 u, in discrete time x2 = A21 x1 + A22 x2 + B2 u
        solved = np.linalg.solve(
            np.eye(rest.shape[0]) - rest if self.full.is_discrete else -rest,
            np.concatenate([A[r:, :r], B[r:]], axis=1),
        )
        from_state, from_input = solved[:, :r], solved[:, r:]
        model = self.full.with_matrices(
            A[:r, :r] + A[:r, r:] @ from_state,
            B[:r] + A[:r, r:] @ from_input,
            C[:, :r] + C[:, r:] @ from_state,
            D + C[:, r:] @ from_input,
        )
        if r < self.full.n_states:
            # states below the noise floor are in neither: put what they add at frequency zero into D
            model = model.with_matrices(model.A, model.B, model.C, model.D + self._dc_defect(model))
        self._warn_if_unstable(model)
        return model, None, None

    def _dc_defect(self, model: LinearModel) -> Array:
        f = self.balancing.factored
        return _dc(f.A, f.B, f.C, self.full.D, self.full.is_discrete) - _dc(
            *self._stable_part(model), self.full.is_discrete
        )


def _dc(A: Array, B: Array, C: Array, D: Array, discrete: bool) -> Array:
    if A.size == 0:
        return D
    return D + C @ np.linalg.solve(np.eye(A.shape[0]) - A if discrete else -A, B)
