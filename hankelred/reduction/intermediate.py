"""The intermediate model of a large sparse model: all balanced states that its low-rank factors resolve.

It has about a hundred states, and all dense computations use it. Its error is known from the residuals of
both sides: with r_B(s) = B - (s E - A) R x(s) and its dual r_C(s), the difference from the large model is
exactly r_C (s E - A)^-1 r_B, which is small if both residuals are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array, Quadruple
from ..errors import ConvergenceError
from ..gramians.low_rank import BalancedStates, LowRankFactors, low_rank_factors, sampled_error
from ..gramians.residual_bounds import ResidualBound
from ..gramians.stability import STABILITY_TOL, is_stable_matrix
from ..models.descriptor_sparse import BorderedPencil
from ..models.linear_model import LinearModel
from ..models.scaling import in_range
from ..models.sparse_model import SparseModel
from .balancing import values_of_large

#: The intermediate model omits states whose singular values are below this share of the largest.
RESOLVED = 1e-13


@dataclass(frozen=True, eq=False)
class IntermediateModel:
    """The balanced states of the stable part of a large model, and the model with the unstable states.

    The unstable states come first in ``model``; ``states`` are in the units of the problem.
    """

    large: SparseModel
    factors: LowRankFactors
    states: BalancedStates
    model: LinearModel

    @property
    def n_unstable(self) -> int:
        """Number of states of unstable and marginal poles."""
        return self.factors.n_unstable

    @property
    def values(self) -> Array:
        """Hankel singular values, in the units of the model, inf first for unstable and marginal poles."""
        return values_of_large(self.factors)

    @property
    def accuracy(self) -> float:
        """Absolute accuracy of the singular values."""
        return float(self._in_units(np.array([self.factors.certificate]), "accuracy")[0])

    def _in_units(self, values: Array, what: str) -> Array:
        problem = self.factors.problem
        return in_range(values, problem.input_exponent + problem.output_exponent, what)

    def h2(self) -> float:
        """Return the H2 norm without the direct term.

        The contribution of the missing part of the controllability Gramian is computed from its residual
        factor and the observability factor.
        """
        factors = self.factors
        outputs = factors.problem.input_output_matrices[1] @ factors.controllability
        missing = factors.observability.conj().T @ factors.residual_factors[0]
        h2 = math.hypot(float(np.linalg.norm(outputs)), float(np.linalg.norm(missing)))
        return float(self._in_units(np.array([h2]), "H2 norm")[0])

    def bases(self) -> tuple[Array, Array]:
        """Return left and right, (n, states), in the states of the large model, with left^T right = 1.

        ``left.T @ E^-1 A @ right`` is the A of the intermediate model.
        """
        problem, unstable = self.factors.problem, self.factors.unstable
        half = 2.0 ** ((problem.input_exponent - problem.output_exponent) // 2)
        left = np.concatenate([unstable.left, self.states.left / half], axis=1)
        right = np.concatenate([unstable.right, self.states.right * half], axis=1)
        back = problem.pencil.back
        if isinstance(problem.pencil, BorderedPencil):  # left^T E right = 1 with a singular E
            expand = problem.pencil.expand
            return expand(left.conj(), transposed=True), expand(right)
        return back(problem.E(left, adjoint=True).conj()), back(right)


def intermediate_model(
    large: SparseModel,
    accuracy: float | None = None,
    factorize: Any = None,
    stability_tol: float = STABILITY_TOL,
) -> IntermediateModel:
    """Factor the Gramians of a large model and project the model onto all states that the factors resolve.

    Raises
    ------
    ConvergenceError
        The factors did not converge, or the model of their leading states is unstable.
    """
    return resolved_states(large, low_rank_factors(large, accuracy, factorize, stability_tol))


def resolved_states(large: SparseModel, factors: LowRankFactors) -> IntermediateModel:
    """Project a large model onto all states that the factors resolve and that form a stable model.

    Raises
    ------
    ConvergenceError
        The model of the leading states is unstable.
    """
    values = factors.values
    r = int(np.count_nonzero(values > RESOLVED * values.max(initial=0.0)))
    states = factors.balanced(r)
    while r and not is_stable_matrix(states.A, discrete=large.is_discrete):
        # the last states are the least accurate ones
        r = int(np.count_nonzero(values > 10 * values[r - 1]))
        states = factors.balanced(r)
    if r == 0 and values.size:
        raise ConvergenceError(
            "the model of the leading states of the low-rank factors is unstable: request a higher accuracy "
            "(accuracy=), or use solver='dense'"
        )
    return IntermediateModel(large, factors, states, _model_of(large, factors, states))


def _model_of(large: SparseModel, factors: LowRankFactors, states: BalancedStates) -> LinearModel:
    """Return the model of the unstable and the balanced states, in the units of the large model."""
    pencil, unstable = factors.problem.pencil, factors.unstable
    half = 2.0 ** ((factors.problem.input_exponent + factors.problem.output_exponent) // 2)
    k = unstable.A.shape[0]
    A = sla.block_diag(_dynamics(large, unstable.A), states.A) if k else states.A
    B = np.concatenate([unstable.left.conj().T @ pencil.into(large.B), states.B * half])
    C = np.concatenate([pencil.into(large.C.T).T @ unstable.right, states.C * half], axis=1)
    return LinearModel(A, B, C, large.D, large.dt)


def _dynamics(large: SparseModel, A: Array) -> Array:
    """Return the A of the model that corresponds to this A of the pencil of the iteration."""
    eye = np.eye(A.shape[0])
    return np.linalg.solve(eye - A, eye + A) if large.is_discrete else A


def residual_systems(intermediate: IntermediateModel, bound: ResidualBound) -> tuple[Quadruple, Quadruple]:
    """Return two systems such that the product of their gains bounds the error of the intermediate model.

    The systems are in the units of the problem.
    """
    problem, states = intermediate.factors.problem, intermediate.states
    B, C = problem.input_output_matrices
    ER, LE = problem.E(states.right), problem.E(states.left, adjoint=True)
    LA = problem.A(states.left, adjoint=True)
    input_residual = np.concatenate([B - ER @ states.B, problem.A(states.right) - ER @ states.A], axis=1)
    output_residual = np.concatenate(
        [C.conj().T - LE @ states.C.conj().T, LA - LE @ states.A.conj().T], axis=1
    )
    m, p = B.shape[1], C.shape[0]
    input_root = _root(bound.gram(input_residual, input_residual))
    mirrored = output_residual.conj()
    output_root = _root(bound.gram(mirrored, mirrored, transposed=True).conj()).conj().T
    return (
        (states.A, states.B, input_root[:, m:], input_root[:, :m]),
        (states.A, output_root[p:], states.C, output_root[:p]),
    )


def _root(gram: Array) -> Array:
    """Return R such that R^H R is this positive semidefinite matrix."""
    values, vectors = sla.eigh((gram + gram.conj().T) / 2, check_finite=False)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.conj().T


def sampled_distance(intermediate: IntermediateModel) -> float:
    """Estimate the largest gain of the large model minus the intermediate one, in the units of the model."""
    poles = np.linalg.eigvals(intermediate.states.A)
    if poles.size == 0:
        return 0.0
    if intermediate.large.is_discrete:
        poles = (poles - 1) / (poles + 1)  # of the pencil of the iteration
    sizes = np.abs(poles)
    frequencies = np.concatenate([[0.0], np.geomspace(sizes.min() / 2, 2 * sizes.max(), 5)])
    error = sampled_error(intermediate.factors, frequencies)
    if not math.isfinite(error):
        return error
    return 2 * (error + intermediate.factors.certificate) * intermediate.factors.problem.gain
