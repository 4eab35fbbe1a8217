"""The methods of reduction that start from the balanced realisation."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from .._util.arrays import Array, Quadruple
from .._util.twofold import product, two_sum
from ..gramians.factorize import factorize
from ..models.frequency_response import FrequencyResponse
from ..models.linear_model import LinearModel
from ..models.projection import Projected, exactly_projected
from ..models.scaling import in_range
from ..models.second_order import SecondOrderModel
from .balancing import UNSEEN, Balancing, assembled, padded, truncated, unstable_poles
from .conversion import conversion_error
from .difference import difference, gain_of_changes, moved_by_rounding
from .imbalance import Imbalance, imbalance, tilted
from .norms import (
    difference_norm,
    h2_norm,
    no_direct_term,
    refined_gains,
    telling_frequencies,
    verified_error,
)
from .order import repeated
from .refined_response import refined_response


class BalancedSource:
    """A balanced model; subclasses say how states are left out of it.

    Gains inside are those of the scaled model; what goes out is in the units of the model.
    """

    method: str
    certified = True
    #: whether an order at which rounding left a pole outside may be lowered until none is
    lowers_order = True
    #: the model of second order that the full model was made from, if it was
    second_order: SecondOrderModel | None = None
    #: what leaves a pole outside the stability region, and why
    instability = ("rounding left", "states this weak are rounding, or the full model has a pole as near")

    def __init__(self, model: LinearModel, balancing: Balancing):
        self.full = model
        self.balancing = balancing
        factored = balancing.factored
        self.unit = factored.scaled.gain
        self.hankel_singular_values = padded(balancing.values[: factored.n_stable], factored)
        self.noise_floor = balancing.noise_floor * self.unit
        self.unstable_order = factored.n_kept
        self.largest_order = factored.n_kept + balancing.computable
        self.solver = factored.solver
        self.residual = factored.residual

    @cached_property
    def conversion_error(self) -> float:
        """What rounding has changed of the gain before the full model was there."""
        return 0.0 if self.second_order is None else conversion_error(self.second_order, self.full)

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the reduced model, and left and right bases where it is a projection."""
        raise NotImplementedError

    def exact(self, order: int) -> tuple[Projected, Array]:
        """Return the balanced states of an order to twice the digits, and its D beyond the model's."""
        raise NotImplementedError

    def certificate(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the bound, which Enns and Glover have proved, and what rounding adds to it.

        The matrices handed out are rounded, the more harmfully the nearer a pole is to the stability
        boundary.
        """
        if reduced is None or self.outside(reduced).size:
            return math.inf
        discrete, values = self.full.is_discrete, self.balancing.values
        stable = self._stable_part(reduced)
        r = stable[0].shape[0]
        exact, D = self.exact(reduced.n_states)
        moved = gain_of_changes(stable, moved_by_rounding(exact, stable), discrete=discrete)
        errors = values[: self._imbalance.errors.size] * self._imbalance.errors
        left_out = bound / self.unit + 2 * float(errors[r:].sum())
        direct = stable[3] - D if np.any(stable[3]) or np.any(D) else np.zeros(1)
        total = left_out + moved + float(np.linalg.norm(direct))
        # States that are not quite balanced give not quite the model that the bound is about.
        mixed = self._mixing(r)
        # What states too weak to be computed add is below the values, if these are known that well.
        weak = self.balancing.computable < self.balancing.factored.n_stable
        unknown = weak and float(errors[:r].max(initial=0.0)) > UNSEEN * left_out
        if mixed <= UNSEEN * left_out and not unknown:
            return self.unit * (total + mixed)
        # Most of it is harmless: states left out of spaces that are right cost nothing more. Where it is not,
        # it shows at the slowest poles.
        total *= 1 + 4 * float(self._imbalance.errors[:r].max(initial=0.0))
        sampled = max(total, 2 * self._sampled_error(stable) - left_out)
        return self.unit * (sampled if unknown else min(total + mixed, sampled))

    def _mixing(self, r: int) -> float:
        """Return how far the gain of r states would change if these were balanced exactly."""
        if not np.all(np.isfinite(self._imbalance.tilt)):
            return math.inf
        if any(cluster.start < r < cluster.stop for cluster in repeated(self.balancing.values)):
            return math.inf  # any basis of their space is balanced, and no correction is known
        changes = tilted(self.minimal, self._imbalance.tilt, r)
        model, dA, dB, dC, dD = self._cut(self.minimal, changes, r)
        moved = gain_of_changes(model, (dA, dB, dC), discrete=self.full.is_discrete)
        return moved + float(np.linalg.norm(dD))

    def _cut(
        self, full: Projected, changes: tuple[Array, Array, Array], r: int
    ) -> tuple[Quadruple, Array, Array, Array, Array]:
        """Return the reduced model of r states, and how changes of the full one change its matrices."""
        raise NotImplementedError

    def _sampled_error(self, reduced: Quadruple) -> float:
        """Return the largest gain of the error at the frequencies where rounding shows."""
        discrete = self.full.is_discrete
        frequencies = telling_frequencies(reduced[0], discrete=discrete)
        if self._whole is None:
            apart = difference(self.minimal, reduced)
            finite = frequencies[np.isfinite(frequencies)]
            sampled = FrequencyResponse(*apart, discrete=discrete).gain(finite)
            return max(float(sampled.max()), float(np.linalg.norm(apart[3], 2)))
        return float(refined_gains(self._whole, reduced, frequencies, discrete=discrete)[0].max())

    @property
    def _whole(self) -> tuple[Array, Array, Array] | None:
        """The full model; None where it has unstable poles: only its stable part has a gain then."""
        system = self.balancing.factored.scaled
        return None if self.unstable_order else (system.A, system.B, system.C)

    @cached_property
    def _imbalance(self) -> Imbalance:
        values = self.balancing.values[: self.balancing.computable]
        return imbalance(self.minimal, values, discrete=self.full.is_discrete)

    @property
    def accuracy(self) -> float:
        """Absolute accuracy of the singular values."""
        errors = self._imbalance.errors
        known = self.balancing.values[: errors.size] * errors
        return max(self.noise_floor, self.unit * float(known.max(initial=0.0)))

    @cached_property
    def minimal(self) -> Projected:
        """All balanced states that can be computed, to twice the digits of double precision."""
        return self._exactly_balanced(self.balancing.computable)

    def _exactly_balanced(self, r: int) -> Projected:
        return exactly_projected(self.balancing.factored.scaled, *self.balancing.in_scaled_states(r))

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced; the kept parts are equal and cancel."""
        if self.outside(reduced).size:
            return math.inf
        discrete = self.full.is_discrete
        other = self._stable_part(reduced)
        apart = difference(self.minimal, other)
        if norm == "h2":
            if not discrete and np.any(apart[3] != 0):
                return math.inf
            model = LinearModel(*apart, dt=self.full.dt)
            value = h2_norm(factorize(model, 0.0), model.D, discrete=discrete)
        else:
            k = self.balancing.computable
            noise = 2 * float(self.balancing.values[k:].sum()) + self.balancing.rounding
            value = verified_error(apart, self._whole, other, discrete=discrete, noise=noise)
        if not math.isfinite(value):
            return value
        return float(in_range(np.array([value]), round(math.log2(self.unit)), "error")[0])

    def _stable_part(self, model: LinearModel) -> Quadruple:
        """Return the balanced states of a reduced model in scaled units, and its D beyond the model's."""
        k = self.unstable_order
        half = math.sqrt(self.unit)
        same = np.array_equal(model.D, self.full.D)
        D = no_direct_term(model.D.shape) if same else (model.D - self.full.D) / self.unit
        return model.A[k:, k:], model.B[k:] / half, model.C[:, k:] / half, D

    def outside(self, model: LinearModel) -> Array:
        """Return the poles that rounding has left outside the stability region."""
        return unstable_poles(model, self.unstable_order)


class Truncation(BalancedSource):
    """Leave the weak balanced states out: a projection."""

    method = "truncation"

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the leading states and the projection onto them."""
        return truncated(self.full, self.balancing, order - self.unstable_order)

    def exact(self, order: int) -> tuple[Projected, Array]:
        """Return the projection onto the leading states."""
        return self._exactly_balanced(order - self.unstable_order), no_direct_term(self.full.D.shape)

    def _cut(
        self, full: Projected, changes: tuple[Array, Array, Array], r: int
    ) -> tuple[Quadruple, Array, Array, Array, Array]:
        dA, dB, dC = changes
        none = no_direct_term(self.full.D.shape)
        return (full.A[:r, :r], full.B[:r], full.C[:, :r], none), dA[:r, :r], dB[:r], dC[:, :r], np.zeros(1)


class GivenFactors(Truncation):
    """Truncation by Gramian factors that were handed in, such as those of real inputs: nothing is proved."""

    certified = False
    lowers_order = False
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
        exact, D = self.exact(order)
        if order < self.full.n_states and not self.unstable_order:
            D = self._missing_at_dc(exact)
        direct = self.full.D + self.unit * D if np.any(D) else self.full.D.copy()
        return assembled(self.full, self.balancing, exact.A, exact.B, exact.C, direct), None, None

    def exact(self, order: int) -> tuple[Projected, Array]:
        """Return the leading states with the others at rest."""
        return self._settled(order - self.unstable_order)

    def _settled(self, r: int) -> tuple[Projected, Array]:
        """Return the system of the leading states, and its direct term."""
        full = self.minimal
        k = full.A.shape[0]
        # x2 at rest: 0 = A21 x1 + A22 x2 + B2 u, in discrete time x2 = A21 x1 + A22 x2 + B2 u
        rest, rest_low = full.A[r:, r:], full.A_low[r:, r:]
        driven = np.concatenate([full.A[r:, :r], full.B[r:]], axis=1)
        driven_low = np.concatenate([full.A_low[r:, :r], full.B_low[r:]], axis=1)
        eye = np.eye(k - r) if self.full.is_discrete else np.zeros((k - r, k - r))
        settled = np.linalg.solve(eye - rest, driven)
        image, image_low = product(rest, settled)
        defect, low = two_sum(driven, image)
        defect = (defect - eye @ settled) + (low + image_low + driven_low + rest_low @ settled)
        settled, settled_low = two_sum(settled, np.linalg.solve(eye - rest, defect))
        into = np.concatenate([full.A[:r, r:], full.C[:, r:]])
        into_low = np.concatenate([full.A_low[:r, r:], full.C_low[:, r:]])
        added, added_low = product(into, settled)
        added_low = added_low + into @ settled_low + into_low @ settled

        def total(M: Array, M_low: Array, rows: slice, columns: slice) -> tuple[Array, Array]:
            high, low = two_sum(M, added[rows, columns])
            return two_sum(high, low + M_low + added_low[rows, columns])

        states, others = slice(0, r), slice(r, None)
        A, A_low = total(full.A[:r, :r], full.A_low[:r, :r], states, states)
        B, B_low = total(full.B[:r], full.B_low[:r], states, others)
        C, C_low = total(full.C[:, :r], full.C_low[:, :r], others, states)
        return Projected(A, B, C, A_low, B_low, C_low), added[r:, r:]

    def _cut(
        self, full: Projected, changes: tuple[Array, Array, Array], r: int
    ) -> tuple[Quadruple, Array, Array, Array, Array]:
        dA, dB, dC = changes
        k = full.A.shape[0]
        rest = full.A[r:, r:] - np.eye(k - r) if self.full.is_discrete else full.A[r:, r:]
        # the reduced matrices are a Schur complement; x2 = into (x1, u), and from takes x2 to (x1, y)
        into = -np.linalg.solve(rest, np.concatenate([full.A[r:, :r], full.B[r:]], axis=1))
        onto = np.concatenate([full.A[:r, r:], full.C[:, r:]])
        back = -np.linalg.solve(rest.T, onto.T).T
        m, p = full.B.shape[1], full.C.shape[0]
        change = np.block([[dA, dB], [dC, np.zeros((p, m))]])
        kept, others = np.r_[:r, k : k + m], np.s_[r:k]
        rows = np.r_[:r, k : k + p]
        total = (
            change[np.ix_(rows, kept)]
            + change[rows, others] @ into
            + back @ (change[others][:, kept] + change[others, others] @ into)
        )
        moved = onto @ into
        model = (
            full.A[:r, :r] + moved[:r, :r],
            full.B[:r] + moved[:r, r:],
            full.C[:, :r] + moved[r:, :r],
            moved[r:, r:],
        )
        return model, total[:r, :r], total[:r, r:], total[r:, :r], total[r:, r:]

    def _missing_at_dc(self, reduced: Projected) -> Array:
        """Return the direct term that makes up for everything at frequency zero.

        That includes the rounding of the matrices handed out and states too weak to be computed.
        """
        at = np.array([1.0 + 0j if self.full.is_discrete else 0j])
        whole, whole_low = self._whole_at_dc
        small, small_low = refined_response(reduced.A, reduced.B, reduced.C, at)
        missing = (whole[0] - small[0]) + (whole_low[0] - small_low[0])
        return missing if self.full.is_complex else missing.real

    @cached_property
    def _whole_at_dc(self) -> tuple[Array, Array]:
        system = self.balancing.factored.scaled
        at = np.array([1.0 + 0j if self.full.is_discrete else 0j])
        return refined_response(system.A, system.B, system.C, at)
