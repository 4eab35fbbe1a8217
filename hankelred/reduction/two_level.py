"""Reduction of large sparse models in two steps: to an intermediate model, and from there."""

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
from .intermediate import IntermediateModel
from .methods import BalancedSource, Residualization, Truncation
from .norms import intermediate_error
from .order import error_bounds


class TwoLevel(BalancedSource):
    """The dense reduction of an intermediate model, and the error of that model."""

    def __init__(self, intermediate: IntermediateModel):
        reciprocal = self.reciprocal and not intermediate.large.is_discrete
        super().__init__(
            intermediate.model, balance(factored_intermediate(intermediate), reciprocal=reciprocal)
        )
        self.intermediate = intermediate
        self._intermediate_values = self.hankel_singular_values
        values = intermediate.values
        self.hankel_singular_values = values
        finite = values[self.unstable_order :]
        self.noise_floor = max(
            intermediate.accuracy, intermediate.large.n_states * EPS * float(finite.max(initial=0.0))
        )
        self.solver = "low_rank"
        self.residual = intermediate.factors.residual

    @property
    def accuracy(self) -> float:
        """Absolute accuracy of the singular values."""
        return self.noise_floor

    @property
    def kind(self) -> str:
        """Whether the accuracy is "rigorous" or an "estimate"."""
        return self.intermediate.factors.kind

    @property
    def factorizations(self) -> int:
        """Number of sparse factorizations."""
        return self.intermediate.factors.problem.pencil.factorizations

    @cached_property
    def error_uncertainty(self) -> float:
        """Bound or estimate of the error of the intermediate model, by which measured errors can be wrong."""
        return intermediate_error(self.intermediate)

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the error bound for the reduction of the intermediate model plus the error of that model."""
        if reduced is None:
            return math.inf
        tail = float(error_bounds(self._intermediate_values)[reduced.n_states])
        return super().certified_bound(tail, reduced) + self.error_uncertainty

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the reduced model and the projection in the states of the large one."""
        model, left, right = super().truncate(order)
        if left is None or right is None:
            return model, left, right
        intermediate_left, intermediate_right = self.intermediate.bases()
        return model, intermediate_left @ left, intermediate_right @ right


class LargeTruncation(TwoLevel, Truncation):
    """Truncation of a large model."""


class LargeResidualization(TwoLevel, Residualization):
    """Residualization of a large model."""


#: The methods of the whole frequency axis by their names; those of a region are in `variants.large_limited`.
LARGE_REDUCTION_METHODS: dict[str, type[TwoLevel]] = {
    source_type.method: source_type for source_type in (LargeTruncation, LargeResidualization)
}


def factored_intermediate(intermediate: IntermediateModel) -> FactoredSystem:
    """Return the intermediate model, split into unstable and stable states, with factored Gramians."""
    k, n = intermediate.n_unstable, intermediate.model.n_states
    A, B, C, _ = intermediate.model.as_tuple()
    stable = factorize(
        intermediate.model.with_matrices(A[k:, k:], B[k:], C[:, k:], intermediate.model.D), 0.0
    )
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

    def with_zero_rows(basis: Array | None) -> Array:
        inner = np.eye(n - k) if basis is None else basis
        return np.concatenate([np.zeros((k, inner.shape[1])), inner])

    return replace(
        stable,
        scaled_system=system,
        right=with_zero_rows(stable.right),
        left=with_zero_rows(stable.left),
        unstable_A=A[:k, :k],
        unstable_B=system.B[:k],
        unstable_C=system.C[:, :k],
        unstable_right=eye[:, :k],
        unstable_left=eye[:, :k],
    )
