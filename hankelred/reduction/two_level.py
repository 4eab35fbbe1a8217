"""Reduction of large sparse models by way of a middle one."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array
from ..gramians.factorize import FactoredSystem, factorize
from ..models.linear_model import LinearModel
from .balancing import balance
from .methods import BalancedSource, Residualization, Truncation
from .middle import Middle
from .norms import distance_of_middle
from .order import error_bounds


class TwoLevel(BalancedSource):
    """The dense reduction of a middle model, and what that lacks of the large one."""

    def __init__(self, middle: Middle):
        reciprocal = self.reciprocal and not middle.large.is_discrete
        super().__init__(middle.model, balance(_factored(middle), reciprocal=reciprocal))
        self.middle = middle
        self._values_of_middle = self.hankel_singular_values
        values = middle.values
        self.hankel_singular_values = values
        finite = values[self.unstable_order :]
        self.noise_floor = max(middle.accuracy, middle.large.n_states * EPS * float(finite.max(initial=0.0)))
        self.solver = "low_rank"
        self.residual = middle.factors.residual

    @property
    def accuracy(self) -> float:
        """Absolute accuracy of the singular values."""
        return self.noise_floor

    @property
    def kind(self) -> str:
        """How sure the accuracy is."""
        return self.middle.factors.kind

    @property
    def factorizations(self) -> int:
        """Number of sparse factorizations."""
        return self.middle.factors.problem.pencil.factorizations

    @cached_property
    def error_uncertainty(self) -> float:
        """How far errors measured on the middle model can be from those of the large one."""
        return distance_of_middle(self.middle)

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the bound for the reduction of the middle model, and the distance of the two models."""
        if reduced is None:
            return math.inf
        own = float(error_bounds(self._values_of_middle)[reduced.n_states])
        return super().certified_bound(own, reduced) + self.error_uncertainty

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the reduced model and the projection in the states of the large one."""
        model, left, right = super().truncate(order)
        if left is None or right is None:
            return model, left, right
        onto, back = self.middle.bases()
        return model, onto @ left, back @ right


class LargeTruncation(TwoLevel, Truncation):
    """Truncation of a large model."""


class LargeResidualization(TwoLevel, Residualization):
    """Residualization of a large model."""


#: The methods for large models by their names, as those for dense models in `REDUCTION_METHODS`.
LARGE_REDUCTION_METHODS: dict[str, type[TwoLevel]] = {
    source_type.method: source_type for source_type in (LargeTruncation, LargeResidualization)
}


def _factored(middle: Middle) -> FactoredSystem:
    """Return the middle model, split into unstable and stable states, with Gramian factors of the latter."""
    k, n = middle.n_unstable, middle.model.n_states
    A, B, C, _ = middle.model.as_tuple()
    stable = factorize(middle.model.with_matrices(A[k:, k:], B[k:], C[:, k:], middle.model.D), 0.0)
    if k == 0:
        return stable
    scaled = stable.scaled_system
    scales = np.concatenate([np.ones(k), scaled.states])
    system = replace(
        scaled,
        A=sla.block_diag(A[:k, :k], scaled.A),
        B=np.concatenate([B[:k] * 2.0**-scaled.input_exponent, scaled.B]),
        C=np.concatenate([C[:, :k] * 2.0**-scaled.output_exponent, scaled.C], axis=1),
        states=scales,
    )
    eye = np.eye(n)

    def beside_unstable(basis: Array | None) -> Array:
        inner = np.eye(n - k) if basis is None else basis
        return np.concatenate([np.zeros((k, inner.shape[1])), inner])

    return replace(
        stable,
        scaled_system=system,
        right=beside_unstable(stable.right),
        left=beside_unstable(stable.left),
        unstable_A=A[:k, :k],
        unstable_B=system.B[:k],
        unstable_C=system.C[:, :k],
        unstable_right=eye[:, :k],
        unstable_left=eye[:, :k],
    )
