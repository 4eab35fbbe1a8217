"""Balanced stochastic truncation: a small relative error at every frequency."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from ..._util.arrays import EPS, Array, Quadruple
from ..._util.checks import real_number
from ...errors import ConvergenceError, ModelError, OrderError, UnstableError
from ...gramians.factorize import FactoredSystem, factorize
from ...gramians.gramians import gramian
from ...gramians.riccati import solve_riccati
from ...models.linear_model import LinearModel
from ..balancing import balance, singular_values, truncate_balanced
from ..methods import UserFactors, whole_models
from ..norms import (
    compress_inputs_and_outputs,
    critical_frequencies,
    equilibrated,
    hinf_norm,
    refined_gains,
)
from ..order import distinct, order_by_bisection
from .bilinear import from_half_plane, to_half_plane
from .derived import in_balanced_states

#: Singular values nearer to 1 than this correspond to zeros in the right half plane.
ONE = 1e-6

#: A direct term with a singular value below this share of the largest does not have full rank.
FULL_RANK = 1e-10


class Stochastic(UserFactors):
    """Truncation by the Gramian of the model and that of its phase system, from the spectral factor.

    A discrete-time model is mapped to continuous time by the bilinear map, and the reduced model back, which
    does not change relative errors. The reduced model is then not a projection of the discrete-time states.

    Sources: Desai and Pal, IEEE Trans. Autom. Control 29 (1984); Green, IEEE Trans. Autom. Control 33 (1988);
    Varga and Fasol, Proc. IFAC World Congress (1993).
    """

    may_lower_order = True
    never_unstable = True

    def __init__(self, model: LinearModel, stability_tol: float, *, regularization: Any = None):
        self.regularization = _checked(regularization)
        unstable = factorize(model, stability_tol).n_unstable
        if unstable:
            raise UnstableError(
                f"method='stochastic' needs a stable model, and {unstable} pole(s) are unstable or marginal; "
                "separate them by split(), reduce the stable part, and add the unstable part to the result"
            )
        inner, self._bases = in_balanced_states(model, stability_tol)
        if model.is_discrete:  # the bilinear map leaves balanced states balanced
            inner = replace(inner.with_matrices(*to_half_plane(*inner.as_tuple())), dt=0)
        factored = factorize(inner, 0.0)
        Lo = _phase_factor(factored, inner, self.regularization)
        super().__init__(inner, balance(replace(factored, observability=Lo, solver="riccati")))
        # the singular values of a phase system have no unit
        self.hankel_singular_values = self.hankel_singular_values / self.unit
        self.noise_floor = self.noise_floor / self.unit
        self.inner, self.full = inner, model
        self.method = "stochastic"
        largest = float(self.hankel_singular_values.max(initial=0.0))
        if largest > 1 + ONE:
            raise ConvergenceError(
                f"a computed singular value of the phase system is {largest:.9g}, but none can be above 1: "
                "the Riccati equation was not solved accurately enough; choose a larger regularization="
            )
        #: singular values of 1, one for each zero in the right half plane
        self.zeros = int(np.count_nonzero(self.hankel_singular_values > 1 - ONE))

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the leading states."""
        if order < self.zeros:
            raise OrderError(
                f"order {order} is below the {self.zeros} zero(s) in the right half plane, which "
                f"method='stochastic' keeps; the least order possible is {self.zeros}"
            )
        model, left, right = truncate_balanced(self.inner, self.balancing, order)
        if not self.full.is_discrete:
            return model, self._bases[0] @ left, self._bases[1] @ right
        return self.full.with_matrices(*from_half_plane(*model.as_tuple())), None, None

    def compared(self, reduced: LinearModel) -> tuple[tuple[Array, Array, Array], Quadruple, float]:
        """Return the complete full and reduced models."""
        return whole_models(self.full, reduced)

    def relative_error_bound(self, order: int) -> float:
        """Return the bound of the relative error for an order.

        It is the product of (1 + sigma) / (1 - sigma) over the distinct truncated values, minus one.
        """
        truncated = distinct(self.hankel_singular_values[order:])
        if np.any(truncated > 1 - ONE):
            return math.inf
        return float(np.expm1(np.sum(np.log1p(truncated) - np.log1p(-truncated))))

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return a bound of the absolute error: the relative one times the largest gain, plus rounding."""
        if reduced is None or self.unstable_poles_of(reduced).size:
            return math.inf
        total = self.level(reduced.n_states)
        # if rounding is larger than the truncation error, it is visible in the sampled error
        full, other, _ = self.compared(reduced)
        discrete = self.full.is_discrete
        w = np.concatenate([critical_frequencies(M.A, discrete=discrete) for M in (self.full, reduced)])
        gains, _ = refined_gains(full, other, w, discrete=discrete)
        sampled = float(gains.max(initial=0.0))
        return total if sampled <= total else 2 * sampled

    def order_within(self, tol: float | None, rtol: float | None) -> int | None:
        """Return the smallest order whose bound is within a tolerance."""
        if tol is None and rtol is None:
            return None
        level = self.tolerance(tol, rtol)
        return order_by_bisection(self.level, self.zeros, self.balancing.rank, level)

    def tolerance(self, tol: float | None, rtol: float | None) -> float:
        """Return the error that a tolerance allows: ``rtol`` refers to the relative error."""
        return rtol * self._largest_gain if rtol is not None else tol or 0.0

    def level(self, order: int) -> float:
        """Return the bound of the error at an order."""
        rounding = self.full.n_states * EPS
        return (self.relative_error_bound(order) + rounding) * self._largest_gain

    @cached_property
    def _largest_gain(self) -> float:
        system = compress_inputs_and_outputs(*equilibrated(*self.full.as_tuple()))
        gain = hinf_norm(*system, discrete=self.full.is_discrete)[0]
        return math.hypot(gain, self.regularization)


def _checked(regularization: Any) -> float:
    if regularization is None:
        return 0.0
    return real_number(
        regularization,
        lambda gain: 0 < gain < math.inf,
        "regularization must be a positive finite gain",
        ModelError,
    )


def _phase_factor(factored: FactoredSystem, model: LinearModel, regularization: float) -> Array:
    """Return a factor of the observability Gramian of the phase system, in the states of the solver."""
    unit = factored.scaled_system.nonzero_gain
    A, B, C, D = factored.A, factored.B, factored.C, model.D / unit
    p = C.shape[0]
    strength = np.linalg.svd(D, compute_uv=False) if D.size else np.zeros(0)
    full_rank = strength.size >= p and strength[p - 1 :].min(initial=np.inf) > FULL_RANK * strength.max(
        initial=0
    )
    if not full_rank and not regularization:
        gain = float(singular_values(factored)[0].max(initial=0.0))
        raise ModelError(
            "method='stochastic' needs a direct term D of full row rank, at least as many inputs as outputs: "
            "relative errors are unbounded where the gain goes to zero; pass regularization=, the gain below "
            f"which errors are measured absolutely (the gains of this model are about {gain:.1g})"
        )
    R = D @ D.conj().T + (regularization / unit) ** 2 * np.eye(p)
    Bw = factored.controllability @ (factored.controllability.conj().T @ C.conj().T) + B @ D.conj().T
    n = A.shape[0]
    if n == 0:
        return np.zeros((0, 0))
    solution = solve_riccati(
        A,
        Bw,
        np.zeros((n, n)),
        C.conj().T,
        R,
        discrete=False,
        what="the spectral factor",
        advice="the model has a zero on or near the stability boundary: choose a larger regularization=",
    )
    phase = A, B, solution.rows, np.zeros((p, B.shape[1]))
    return gramian(phase, "observability", factor=True, stability_tol=0.0)
