"""Methods that truncate another model, made from the full one, and read the reduced model off that."""

from __future__ import annotations

import math

from ..._util.arrays import Array, Quadruple
from ...gramians.factorize import factorize
from ...models.linear_model import LinearModel
from ..balancing import balance
from ..methods import Truncation, UserFactors, whole_models
from ..order import error_bounds


class Derived(UserFactors):
    """Truncation of a model that has the states of the full one and other ports.

    ``derived`` is stable; its states are those of the full model.
    """

    may_lower_order = True
    never_unstable = True

    def __init__(self, model: LinearModel, derived: LinearModel):
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
        """Return the reduced model that the truncated derived model stands for."""
        model, left, right = self.inner_at(order)
        return self.full.with_matrices(*self.read_off(model), self.full.D), left, right

    def read_off(self, model: LinearModel) -> tuple[Array, Array, Array]:
        """Return A, B and C of the reduced model that a truncated derived model stands for."""
        raise NotImplementedError

    def inner_bound(self, order: int) -> float:
        """Return the bound of the error of the derived model, rounding included."""
        tail = float(error_bounds(self.hankel_singular_values)[order])
        return self.inner.certified_bound(tail, self.inner_at(order)[0])

    def compared(self, reduced: LinearModel) -> tuple[tuple[Array, Array, Array], Quadruple, float]:
        """Return the full and the reduced model as they are."""
        return whole_models(self.full, reduced)

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return inf: no theorem bounds the error of the model itself."""
        return math.inf
