"""The methods of reduction that start from the balanced realization."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from .._util.arrays import Array, Quadruple
from .._util.twofold import product, two_sum
from ..gramians.factorize import factorize
from ..models.frequency_response import FrequencyResponse
from ..models.linear_model import LinearModel
from ..models.projection import ProjectedSystem, project_exactly
from ..models.scaling import in_range
from ..models.second_order import SecondOrderModel
from .balancing import (
    NEGLIGIBLE_OF_BOUND,
    Balancing,
    assemble_model,
    pad_values,
    singular_values,
    truncate_balanced,
    unstable_poles,
)
from .conversion import conversion_error
from .norms import (
    NEGLIGIBLE_TAIL,
    CriticalResponse,
    critical_frequencies,
    difference_norm,
    gain_of_difference,
    h2_norm,
    negated,
    no_direct_term,
    parallel,
    refined_gains,
    verified_error,
)
from .order import order_of_negligible_tail, repeated_clusters
from .rounding.error_system import error_system, gain_of_changes, rounding_changes
from .rounding.imbalance import Imbalance, changes_by_balancing, imbalance
from .rounding.refined_response import refined_response


class BalancedSource:
    """A balanced model; subclasses define how its weak states are removed.

    It implements :class:`.source.ReductionSource`. A subclass sets ``method`` and defines :meth:`truncate`.
    If its error bound is proved it also defines :meth:`exact_stable_part` and :meth:`reduced_with_changes`,
    from which the effects of rounding on the bound are computed; otherwise it sets ``certified = False``.

    Internally gains are those of the scaled model; results are in the units of the model, in which gains are
    larger by the factor ``unit``.
    """

    #: the name of the method, as an argument of `reduce`
    method: str
    #: whether twice the sum of the removed singular values bounds the error
    certified = True
    #: the second-order model that the full model was computed from, if it was
    second_order: SecondOrderModel | None = None
    #: whether the bases of repeated singular values are chosen for the system with s replaced by 1 / s (in
    #: continuous time), see :func:`.balancing.balance`
    reciprocal = False
    #: whether the order may be lowered until rounding leaves no unstable pole
    may_lower_order = True
    #: whether an unstable reduced model of a stable model is an error, not a warning
    never_unstable = False
    #: the parts of the message about an unstable pole: its cause, and the explanation
    instability = (
        "rounding left",
        "states this weak are rounding, or the full model has a pole as near to it",
    )

    def __init__(self, model: LinearModel, balancing: Balancing):
        self.full = model
        self.balancing = balancing
        factored = balancing.factored
        self.unit = factored.scaled_system.nonzero_gain
        self.hankel_singular_values = pad_values(balancing.values[: factored.n_stable], factored)
        self.noise_floor = balancing.noise_floor * self.unit
        self.unstable_order = factored.n_unstable
        self.largest_order = factored.n_unstable + balancing.n_computable
        self.solver = factored.solver
        self.residual = factored.residual

    @cached_property
    def conversion_error(self) -> float:
        """How much the conversion of a second-order model to the full model changed the gain, by rounding."""
        return 0.0 if self.second_order is None else conversion_error(self.second_order, self.full)

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the reduced model, and left and right bases where it is a projection."""
        raise NotImplementedError

    def exact_stable_part(self, order: int) -> tuple[ProjectedSystem, Array]:
        """Return the stable part of the reduced model with twice the digits, and its D minus the model's."""
        raise NotImplementedError

    def attainable(self, order: int) -> tuple[int, str]:
        """Return the largest attainable order up to this one, and the reason if it is smaller."""
        return min(order, self.largest_order), ""

    def warning_text(self, order: int) -> str:
        """Return the text of a warning about the model of an order; empty if there is none."""
        return ""

    def order_within(self, tol: float | None, rtol: float | None) -> int | None:
        """Return the order that meets a tolerance; None if it follows from the singular values."""
        return None

    def tolerance(self, tol: float | None, rtol: float | None) -> float:
        """Return the error that a tolerance allows; ``rtol`` is relative to the largest singular value."""
        values = self.hankel_singular_values[self.unstable_order :]
        return rtol * float(values.max(initial=0.0)) if rtol is not None else tol or 0.0

    def level(self, order: int) -> float:
        """Return the error that tolerances are compared with, for methods with an :meth:`order_within`."""
        raise NotImplementedError

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the bound, which Enns and Glover have proved, plus the effects of rounding.

        The returned matrices are rounded, which changes the gain more the nearer a pole is to the stability
        boundary. inf if no bound is proved, or the reduced model is unstable.
        """
        if not self.certified or reduced is None or self.unstable_poles_of(reduced).size:
            return math.inf
        stable = self._stable_part(reduced)
        r = stable[0].shape[0]
        bound_of_removed = bound / self.unit + 2 * float(self._value_errors[r:].sum())
        rounding, rounding_of_D = self._rounding_of_matrices(stable, reduced.n_states)
        total = bound_of_removed + rounding + rounding_of_D
        # The bound holds for exactly balanced states; the computed ones are not quite balanced.
        imbalance_error = self._error_of_imbalance(r)
        largest_error = float(self._imbalance.errors[:r].max(initial=0.0))
        negligible = NEGLIGIBLE_OF_BOUND * bound_of_removed
        # The states too weak to be computed contribute less than the values if these are accurate enough.
        has_uncomputed_states = self.balancing.n_computable < self.balancing.factored.n_stable
        values_are_uncertain = has_uncomputed_states and largest_error > negligible
        if imbalance_error <= negligible and not values_are_uncertain:
            return self.unit * (total + imbalance_error)
        # Most of it is harmless: a change of basis inside the correct subspaces does not change the error.
        # The harmful part is visible at the slowest poles.
        total *= 1 + 4 * largest_error
        sampled = max(total, 2 * self._sampled_error(stable) - bound_of_removed)
        return self.unit * (sampled if values_are_uncertain else min(total + imbalance_error, sampled))

    def _rounding_of_matrices(self, stable: Quadruple, order: int) -> tuple[float, float]:
        """Return how much the rounding of the returned A, B and C, and that of D, changes the gain."""
        exact, D = self.exact_stable_part(order)
        changes = rounding_changes(exact, stable)
        direct = stable[3] - D if np.any(stable[3]) or np.any(D) else np.zeros(1)
        change = gain_of_changes(stable, changes, discrete=self.full.is_discrete)
        return change, float(np.linalg.norm(direct))

    def _error_of_imbalance(self, r: int) -> float:
        """Return how much the gain of r states would change if they were balanced exactly."""
        if not np.all(np.isfinite(self._imbalance.correction)):
            return math.inf
        if any(cluster.start < r < cluster.stop for cluster in repeated_clusters(self.balancing.values)):
            return math.inf  # any basis of this space is balanced, and no correction is known
        changes = changes_by_balancing(self.minimal_realization, self._imbalance.correction, r)
        model, dA, dB, dC, dD = self.reduced_with_changes(self.minimal_realization, changes, r)
        change = gain_of_changes(model, (dA, dB, dC), discrete=self.full.is_discrete)
        return change + float(np.linalg.norm(dD))

    def reduced_with_changes(
        self, full: ProjectedSystem, changes: tuple[Array, Array, Array], r: int
    ) -> tuple[Quadruple, Array, Array, Array, Array]:
        """Return the reduced model of r states, and how changes of A, B and C of the full model change it."""
        raise NotImplementedError

    def _sampled_error(self, reduced: Quadruple) -> float:
        """Return the largest gain of the error at the frequencies where rounding is visible."""
        discrete = self.full.is_discrete
        frequencies = critical_frequencies(reduced[0], discrete=discrete)
        if self._full_stable_system is None:
            error_model = error_system(self.minimal_realization, reduced)
            finite = frequencies[np.isfinite(frequencies)]
            sampled = FrequencyResponse(*error_model, discrete=discrete).gain(finite)
            return max(float(sampled.max()), float(np.linalg.norm(error_model[3], 2)))
        return float(
            refined_gains(self._full_stable_system, reduced, frequencies, discrete=discrete)[0].max()
        )

    @property
    def _full_stable_system(self) -> tuple[Array, Array, Array] | None:
        """The full model; None where it has unstable poles, as only its stable part has a gain then."""
        system = self.balancing.factored.scaled_system
        return None if self.unstable_order else (system.A, system.B, system.C)

    @cached_property
    def _critical_response(self) -> CriticalResponse | None:
        full = self._full_stable_system
        if full is None:
            return None
        factored = self.balancing.factored
        known = factored.solver == "hammarling" and not self.full.is_discrete
        return CriticalResponse(
            full,
            discrete=self.full.is_discrete,
            schur=(factored.A, factored.B, factored.C) if known else None,
        )

    @cached_property
    def _imbalance(self) -> Imbalance:
        values = self.balancing.values[: self.balancing.n_computable]
        return imbalance(self.minimal_realization, values, discrete=self.full.is_discrete)

    @property
    def stable_states(self) -> tuple[Array, Array, Array]:
        """The stable part of the full model in scaled units."""
        factored = self.balancing.factored
        return self._full_stable_system or (factored.A, factored.B, factored.C)

    def compared(self, reduced: LinearModel) -> tuple[tuple[Array, Array, Array], Quadruple, float]:
        """Return the stable parts of the full and a reduced model, and the unit of their gains.

        The D of the reduced one is what it has more than that of the full model.
        """
        return self.stable_states, self._stable_part(reduced), self.unit

    @property
    def accuracy(self) -> float:
        """Absolute accuracy of the singular values."""
        return max(self.noise_floor, self.unit * float(self._value_errors.max(initial=0.0)))

    @property
    def _value_errors(self) -> Array:
        """Absolute errors of the computed singular values, of the scaled model."""
        errors = self._imbalance.errors
        return self.balancing.values[: errors.size] * errors

    @cached_property
    def minimal_realization(self) -> ProjectedSystem:
        """The model in all balanced states that can be computed, with twice the digits."""
        return self._exactly_balanced(self.balancing.n_computable)

    def _exactly_balanced(self, r: int) -> ProjectedSystem:
        return project_exactly(
            self.balancing.factored.scaled_system, *self.balancing.bases_in_scaled_states(r)
        )

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced; their unstable parts are equal and cancel."""
        if self.unstable_poles_of(reduced).size:
            return math.inf
        discrete = self.full.is_discrete
        stable_reduced = self._stable_part(reduced)
        error_model = self.error_model(stable_reduced) if norm == "h2" else None
        if error_model is not None:
            if not discrete and np.any(error_model[3] != 0):
                return math.inf
            model = LinearModel(*error_model, dt=self.full.dt)
            value = h2_norm(factorize(model, 0.0), model.D, discrete=discrete)
        elif norm == "hankel":
            # of the model itself: its weakest balanced states are rounding errors
            no_D = no_direct_term(stable_reduced[3].shape)
            difference = parallel([(*self.stable_states, no_D), negated(stable_reduced)])
            factored = factorize(LinearModel(*difference, dt=self.full.dt), 0.0)
            value = float(singular_values(factored)[0].max(initial=0.0))
        else:
            value = self._gain_of_error(stable_reduced)
        if not math.isfinite(value):
            return value
        return float(in_range(np.array([value]), round(math.log2(self.unit)), "error")[0])

    def _gain_of_error(self, stable_reduced: Quadruple) -> float:
        """Return the H-infinity norm of full minus reduced, in scaled units."""
        critical, r = self._critical_response, stable_reduced[0].shape[0]
        k = self._order_for_error(r)
        if critical is not None:
            bound = 2 * float(self.balancing.values[r:].sum())
            value = critical.error_without_cancellation(stable_reduced, bound, k)
            if value is not None:
                return value
        return verified_error(
            self.error_model(stable_reduced, k),
            self._full_stable_system,
            stable_reduced,
            discrete=self.full.is_discrete,
            noise=2 * float(self.balancing.values[k:].sum()) + self.balancing.rounding,
            critical=critical,
        )

    def conversion_loss(self, reduced: LinearModel, converted: LinearModel) -> float:
        """Return the largest gain of a reduced model minus what it was converted to; inf if that is unstable.

        The model has no unstable or marginal poles, so that the states may be any.
        """
        if self.unstable_poles_of(converted).size:
            return math.inf
        _, stable, unit = self.compared(reduced)
        _, other, _ = self.compared(converted)
        return unit * gain_of_difference(stable, other, discrete=self.full.is_discrete)

    def error_without_balancing(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of the stable parts of full minus reduced; the reduced states may be any."""
        if self.unstable_poles_of(reduced).size:
            return math.inf
        full, other, unit = self.compared(reduced)
        whole = (*full, no_direct_term(other[3].shape))
        if norm == "hinf":
            return unit * gain_of_difference(whole, other, discrete=self.full.is_discrete)
        return unit * difference_norm(reduced.with_matrices(*whole), reduced.with_matrices(*other), norm)

    def _order_for_error(self, r: int) -> int:
        """Return how many balanced states have the error of r states up to a fraction of its accuracy.

        No error is smaller than the first singular value left out.
        """
        values = self.balancing.values[: self.balancing.n_computable]
        first = values[r] if r < values.size else 0.0
        return max(r, order_of_negligible_tail(values, NEGLIGIBLE_TAIL * first))

    def error_model(self, stable_reduced: Quadruple, k: int | None = None) -> Quadruple:
        """Return full minus reduced, both balanced and in scaled units, as a system.

        The full model is that of its k leading balanced states, of all that can be computed by default.
        """
        return error_system(self.minimal_realization.leading(k), stable_reduced)

    def _stable_part(self, model: LinearModel) -> Quadruple:
        """Return the stable part of a reduced model in scaled units, with the difference of its D."""
        k = self.unstable_order
        sqrt_gain = math.sqrt(self.unit)
        same_D = np.array_equal(model.D, self.full.D)
        D = no_direct_term(model.D.shape) if same_D else (model.D - self.full.D) / self.unit
        return model.A[k:, k:], model.B[k:] / sqrt_gain, model.C[:, k:] / sqrt_gain, D

    def unstable_poles_of(self, model: LinearModel) -> Array:
        """Return the poles outside the stability region, without those of the full model's unstable part."""
        return unstable_poles(model, self.unstable_order)


class Truncation(BalancedSource):
    """Removal of the weak balanced states: a projection."""

    method = "truncation"

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the model of the leading states and the projection onto them."""
        return truncate_balanced(self.full, self.balancing, order - self.unstable_order)

    def exact_stable_part(self, order: int) -> tuple[ProjectedSystem, Array]:
        """Return the projection onto the leading states; D is not changed."""
        return self._exactly_balanced(order - self.unstable_order), no_direct_term(self.full.D.shape)

    def reduced_with_changes(
        self, full: ProjectedSystem, changes: tuple[Array, Array, Array], r: int
    ) -> tuple[Quadruple, Array, Array, Array, Array]:
        """Return the leading blocks of the matrices and of their changes."""
        dA, dB, dC = changes
        no_D = no_direct_term(self.full.D.shape)
        return (full.A[:r, :r], full.B[:r], full.C[:, :r], no_D), dA[:r, :r], dB[:r], dC[:, :r], np.zeros(1)


class UserFactors(Truncation):
    """Truncation by the user's Gramian factors, such as those of real inputs.

    No bound is known: the proofs of Enns and Glover need the model's own Gramians.
    """

    certified = False
    may_lower_order = False
    instability = ("the projection put", "only the model's own Gramians guarantee stability")

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced, without the balanced form: the factors may lack states."""
        return self.error_without_balancing(reduced, norm)


class Residualization(BalancedSource):
    """Removal of the weak balanced states at their steady state: the response at frequency zero is kept."""

    method = "residualization"
    reciprocal = True

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the model of the leading states with the others at steady state; it is not a projection."""
        exact, D = self.exact_stable_part(order)
        if order < self.full.n_states and not self.unstable_order:
            D = self._missing_at_dc(exact)
        direct = self.full.D + self.unit * D if np.any(D) else self.full.D.copy()
        return assemble_model(self.full, self.balancing, exact.A, exact.B, exact.C, direct), None, None

    def exact_stable_part(self, order: int) -> tuple[ProjectedSystem, Array]:
        """Return the leading states with the others at steady state, and the change of D."""
        return self._residualized(order - self.unstable_order)

    def _residualized(self, r: int) -> tuple[ProjectedSystem, Array]:
        """Return the system of r leading states, and its direct term."""
        full = self.minimal_realization
        k = full.A.shape[0]
        # steady state of x2: 0 = A21 x1 + A22 x2 + B2 u, in discrete time x2 = A21 x1 + A22 x2 + B2 u;
        # its solution is x2 = gain (x1, u)
        A22, A22_low = full.A[r:, r:], full.A_low[r:, r:]
        A21_B2 = np.concatenate([full.A[r:, :r], full.B[r:]], axis=1)
        A21_B2_low = np.concatenate([full.A_low[r:, :r], full.B_low[r:]], axis=1)
        eye = np.eye(k - r) if self.full.is_discrete else np.zeros((k - r, k - r))
        gain = np.linalg.solve(eye - A22, A21_B2)
        image, image_low = product(A22, gain)
        defect, low = two_sum(A21_B2, image)
        defect = (defect - eye @ gain) + (low + image_low + A21_B2_low + A22_low @ gain)
        gain, gain_low = two_sum(gain, np.linalg.solve(eye - A22, defect))
        A12_C2 = np.concatenate([full.A[:r, r:], full.C[:, r:]])
        A12_C2_low = np.concatenate([full.A_low[:r, r:], full.C_low[:, r:]])
        added, added_low = product(A12_C2, gain)
        added_low = added_low + A12_C2 @ gain_low + A12_C2_low @ gain

        def total(M: Array, M_low: Array, rows: slice, columns: slice) -> tuple[Array, Array]:
            high, low = two_sum(M, added[rows, columns])
            return two_sum(high, low + M_low + added_low[rows, columns])

        leading, trailing = slice(0, r), slice(r, None)
        A, A_low = total(full.A[:r, :r], full.A_low[:r, :r], leading, leading)
        B, B_low = total(full.B[:r], full.B_low[:r], leading, trailing)
        C, C_low = total(full.C[:, :r], full.C_low[:, :r], trailing, leading)
        return ProjectedSystem(A, B, C, A_low, B_low, C_low), added[r:, r:]

    def reduced_with_changes(
        self, full: ProjectedSystem, changes: tuple[Array, Array, Array], r: int
    ) -> tuple[Quadruple, Array, Array, Array, Array]:
        """Return the residualized matrices and their changes, to first order in those of the full model."""
        dA, dB, dC = changes
        k = full.A.shape[0]
        A22 = full.A[r:, r:] - np.eye(k - r) if self.full.is_discrete else full.A[r:, r:]
        # the reduced matrices are a Schur complement: x2 = right (x1, u), and left maps x2 to (x1, y)
        right = -np.linalg.solve(A22, np.concatenate([full.A[r:, :r], full.B[r:]], axis=1))
        A12_C2 = np.concatenate([full.A[:r, r:], full.C[:, r:]])
        left = -np.linalg.solve(A22.T, A12_C2.T).T
        m, p = full.B.shape[1], full.C.shape[0]
        changes_of_full = np.block([[dA, dB], [dC, np.zeros((p, m))]])
        columns, removed = np.r_[:r, k : k + m], np.s_[r:k]
        rows = np.r_[:r, k : k + p]
        changes_of_reduced = (
            changes_of_full[np.ix_(rows, columns)]
            + changes_of_full[rows, removed] @ right
            + left @ (changes_of_full[removed][:, columns] + changes_of_full[removed, removed] @ right)
        )
        schur_term = A12_C2 @ right
        model = (
            full.A[:r, :r] + schur_term[:r, :r],
            full.B[:r] + schur_term[:r, r:],
            full.C[:, :r] + schur_term[r:, :r],
            schur_term[r:, r:],
        )
        return (
            model,
            changes_of_reduced[:r, :r],
            changes_of_reduced[:r, r:],
            changes_of_reduced[r:, :r],
            changes_of_reduced[r:, r:],
        )

    def _missing_at_dc(self, reduced: ProjectedSystem) -> Array:
        """Return the direct term that corrects the response at frequency zero.

        It accounts for the rounding of the returned matrices and for states too weak to be computed.
        """
        point = np.array([1.0 + 0j if self.full.is_discrete else 0j])
        full, full_low = self._full_response_at_dc
        response, response_low = refined_response(reduced.A, reduced.B, reduced.C, point)
        missing = (full[0] - response[0]) + (full_low[0] - response_low[0])
        return missing if self.full.is_complex else missing.real

    @cached_property
    def _full_response_at_dc(self) -> tuple[Array, Array]:
        system = self.balancing.factored.scaled_system
        point = np.array([1.0 + 0j if self.full.is_discrete else 0j])
        return refined_response(system.A, system.B, system.C, point)


def whole_models(
    full: LinearModel, reduced: LinearModel
) -> tuple[tuple[Array, Array, Array], Quadruple, float]:
    """Return A, B, C of a full model, a reduced one with its D beyond the full one's, and the unit, 1."""
    return (full.A, full.B, full.C), (reduced.A, reduced.B, reduced.C, reduced.D - full.D), 1.0
