"""Methods that truncate a model derived from the full one, and compute the reduced model from the result."""

from __future__ import annotations

import math

import numpy as np

from ..._util.arrays import Array, Quadruple
from ...gramians.factorize import factorize
from ...models.linear_model import LinearModel
from ..balancing import balance, truncate_balanced
from ..methods import Truncation, UserFactors, whole_models
from ..order import error_bounds


def in_balanced_states(model: LinearModel, stability_tol: float) -> tuple[LinearModel, tuple[Array, Array]]:
    """Return the model in balanced states, if all can be computed, and the bases of the projection onto them.

    In other states a Riccati equation can be so ill-conditioned that its solution has no correct digits.
    Where not all balanced states can be computed these are the states of the model, and `solve_riccati`
    refuses a solution by its residual.
    """
    balancing = balance(factorize(model, stability_tol))
    if balancing.n_computable < balancing.factored.n_stable:
        eye = np.eye(model.n_states)
        return model, (eye, eye)
    balanced, left, right = truncate_balanced(model, balancing, balancing.n_computable)
    return balanced, (left, right)


class Derived(UserFactors):
    """Truncation of a derived model with other inputs and outputs than the full model.

    ``derived`` must be stable. Its states are those of the full model, projected by ``bases``.
    """

    may_lower_order = True
    never_unstable = True

    def __init__(self, model: LinearModel, derived: LinearModel, bases: tuple[Array, Array]):
        self.bases = bases
        self.inner = Truncation(derived, balance(factorize(derived, 0.0)))
        super().__init__(derived, self.inner.balancing)
        self.full = model
        self.solver = "riccati"
        self._truncated: dict[int, tuple[LinearModel, Array, Array]] = {}

    def inner_at(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the truncated derived model and the projection."""
        if order not in self._truncated:
            self._truncated[order] = self.inner.truncate(order)  # type: ignore[assignment]
        return self._truncated[order]

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the reduced model that corresponds to the truncated derived model."""
        model, left, right = self.inner_at(order)
        if left is not None and right is not None:
            left, right = self.bases[0] @ left, self.bases[1] @ right
        return self.full.with_matrices(*self.reduced_matrices(model), self.full.D), left, right

    def reduced_matrices(self, model: LinearModel) -> tuple[Array, Array, Array]:
        """Return A, B and C of the reduced model that corresponds to a truncated derived model."""
        raise NotImplementedError

    def inner_bound(self, order: int) -> float:
        """Return the error bound of the truncated derived model, including rounding."""
        tail = float(error_bounds(self.hankel_singular_values)[order])
        return self.inner.certified_bound(tail, self.inner_at(order)[0])

    def compared(self, reduced: LinearModel) -> tuple[tuple[Array, Array, Array], Quadruple, float]:
        """Return the complete full and reduced models, including unstable parts."""
        return whole_models(self.full, reduced)

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return inf: no bound is known for the error of the reduced model itself."""
        return math.inf
