"""Reduction of second-order models to second-order models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ConvergenceError, ModelError, OrderError
from ..gramians.factorize import factorize
from ..gramians.stability import is_stable_matrix
from ..models.linear_model import LinearModel
from ..models.second_order import SecondOrderModel
from ..models.sparse_model import by_size
from .balancing import singular_values
from .intermediate import IntermediateModel, intermediate_model
from .norms import difference_norm, intermediate_error
from .source import UncertifiedSource

STRUCTURES = ("first_order", "second_order")


class PositionVelocity(UncertifiedSource):
    """Balances the position part of one Gramian against the velocity part of the other.

    With Rp the positions of the controllability factor and Lv the velocities of the observability factor, the
    singular value decomposition of Lv^T M Rp gives bases W and T with W^T M T = 1. The model with mass W^T M
    T, damping W^T D T and stiffness W^T K T is a second-order model again. There is no error bound.

    Source: Reis and Stykel, Math. Comput. Model. Dyn. Syst. 14 (2008).
    """

    method = "truncation"
    full: LinearModel | None

    def __init__(
        self, model: SecondOrderModel, solver: str, accuracy: float | None, user_solver: Any, tol: float
    ):
        self.second_order = model
        self.intermediate: IntermediateModel | None = None
        by_size(
            model,
            0,
            solver,
            lambda large: self._by_low_rank_factors(intermediate_model(large, accuracy, user_solver, tol)),
            lambda full: self._by_dense_factors(full, tol),
        )
        if self.unstable_order:
            raise ModelError(
                f"{self.unstable_order} pole(s) are unstable or marginal, such as those of rigid body modes, "
                "but position-velocity balancing requires a stable model: use structure='first_order', which "
                "keeps such poles"
            )
        M = model.M
        U, values, Vh = np.linalg.svd(self._Lv.T @ (M @ self._Rp), full_matrices=False)
        self.position_velocity_values = values
        largest = float(values.max(initial=0.0))
        k = int(np.count_nonzero(values > M.shape[0] * np.finfo(float).eps * largest))
        scale = 1 / np.sqrt(values[:k])
        self._W, self._T = self._Lv @ (U[:, :k] * scale), self._Rp @ (Vh[:k].T * scale)

    def _by_dense_factors(self, full: LinearModel, tol: float) -> None:
        factored = factorize(full, tol)
        model = self.second_order
        self._full = self.full = full
        self.hankel_singular_values, self.noise_floor = singular_values(factored)
        self.unstable_order, self.solver, self.residual = (
            factored.n_unstable,
            factored.solver,
            factored.residual,
        )
        N = model.M.shape[0]
        system = factored.scaled_system
        Lc = system.unscale_right(factored.right_states(factored.controllability))
        Lo = system.unscale_left(factored.left_states(factored.observability))
        self._Rp, self._Lv = model.positions(Lc[:N]), model.velocities(Lo[N:])

    def _by_low_rank_factors(self, intermediate: IntermediateModel) -> None:
        self.intermediate = intermediate
        self._full = self.full = intermediate.model
        self.hankel_singular_values, self.noise_floor = intermediate.values, intermediate.accuracy
        self.unstable_order, self.solver = intermediate.n_unstable, "low_rank"
        self.residual = intermediate.factors.residual
        back = intermediate.factors.problem.pencil.back
        N = self.second_order.M.shape[0]
        self._Rp = back(intermediate.factors.controllability)[:N]
        self._Lv = back(intermediate.factors.observability)[N:]

    def truncate(self, order: int) -> tuple[LinearModel, None, None]:
        """Return the reduced model, with order / 2 degrees of freedom; it is no projection of the states."""
        if order % 2:
            raise OrderError(
                "a second-order model has two states per degree of freedom, so the order must be even, got "
                f"{order}"
            )
        k = order // 2
        if k > self._W.shape[1]:
            raise OrderError(
                f"order {order} was requested, but only {2 * self._W.shape[1]} states exceed rounding errors"
            )
        W, T = self._W[:, :k], self._T[:, :k]
        # W^T M T is the identity up to rounding, which is removed here
        T = np.linalg.solve((W.T @ (self.second_order.M @ T)).T, T.T).T
        reduced = self.second_order.projected(W, T, np.eye(k))
        if not is_stable_matrix(reduced.dense().A, discrete=False):
            # the same basis on both sides preserves the definiteness of M, D and K, and therefore stability
            basis = np.linalg.qr(T)[0]
            reduced = self.second_order.projected(basis, basis)
            if not is_stable_matrix(reduced.dense().A, discrete=False):
                raise ConvergenceError(
                    f"position-velocity balancing to order {order} gives an unstable model, and so does the "
                    "projection onto its position basis only: use another order, or structure='first_order'"
                )
        return replace(reduced.dense(), export=_Export(reduced)), None, None

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of the full (for large models: the intermediate) model minus the reduced one."""
        return difference_norm(self._full, reduced, norm)

    @property
    def error_uncertainty(self) -> float:
        """Bound or estimate of the difference between the measured error and that of the large model."""
        return 0.0 if self.intermediate is None else intermediate_error(self.intermediate)


class _Export:
    """Returns the reduced model as a `SecondOrderModel`."""

    def __init__(self, model: SecondOrderModel):
        self.model = model

    def __call__(self, model: LinearModel) -> SecondOrderModel:
        return self.model
