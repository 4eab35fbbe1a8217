"""Optimal approximation in the Hankel norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..._util.arrays import Array, Quadruple
from ...errors import ConvergenceError
from ...gramians.factorize import factorize
from ...gramians.stability import split_schur
from ...models.frequency_response import FrequencyResponse
from ...models.linear_model import LinearModel
from ..balancing import assemble_model, balance, unstable_poles
from ..methods import BalancedSource
from ..norms import critical_frequencies, negated, no_direct_term, parallel
from .bilinear import from_half_plane, to_half_plane

#: Singular values nearer than this, relatively, to the first truncated one count as equal to it.
REPEATED = 1e-9

#: Above the first share of the error, rounding causes a warning; above the second one, an error.
VISIBLE_ROUNDING, MAX_ROUNDING = 1e-5, 0.5


@dataclass(frozen=True)
class Approximation:
    """The stable and the antistable part of an optimal approximation, and its error level."""

    stable: Quadruple
    antistable: Quadruple
    level: float


class HankelNorm(BalancedSource):
    """The model of a certain order whose error has the smallest possible Hankel norm.

    This norm is the first truncated singular value. The model is not a projection. In discrete time it is
    computed by the bilinear map, which preserves Gramians and Hankel norms.

    Sources: Glover, Int. J. Control 39 (1984); Safonov, Chiang and Limebeer, IEEE Trans. Autom. Control 35
    (1990).
    """

    method = "hankel_norm"

    def __init__(self, model: LinearModel, stability_tol: float):
        super().__init__(model, balance(factorize(model, stability_tol)))
        self.largest_order = self.unstable_order + self._states[0].shape[0]
        self._approximations: dict[int, Approximation] = {}

    @cached_property
    def _states(self) -> tuple[Array, Array, Array]:
        """The leading balanced states that form a stable model, in scaled units."""
        minimal = self.minimal_realization
        for r in range(self.balancing.rank, 0, -1):
            A, B, C = minimal.A[:r, :r], minimal.B[:r], minimal.C[:, :r]
            model = LinearModel(A, B, C, no_direct_term((C.shape[0], B.shape[1])), self.full.dt)
            if not unstable_poles(model, 0).size:
                return A, B, C
        return minimal.A[:0, :0], minimal.B[:0], minimal.C[:, :0]

    def attainable(self, order: int) -> tuple[int, str]:
        """Return a smaller order if the requested one would split a repeated singular value."""
        order = min(order, self.largest_order)
        values, r = self.balancing.values, order - self.unstable_order
        if r >= self._states[0].shape[0]:
            return order, ""
        first = int(np.argmax(values <= values[r] * (1 + REPEATED)))
        return order - (r - first), "a repeated singular value can only be truncated as a whole"

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the optimal approximation; there is no projection."""
        A, B, C, D = self._at(order).stable
        if self.full.is_discrete:
            A, B, C, D = from_half_plane(A, B, C, D)
        direct = self.full.D + self.unit * D if np.any(D) else self.full.D.copy()
        return assemble_model(self.full, self.balancing, A, B, C, direct), None, None

    def warning_text(self, order: int) -> str:
        """Return a warning if rounding makes the error visibly larger than the optimum.

        Raises
        ------
        ConvergenceError
            The effect of rounding is as large as the error itself.
        """
        approximation = self._at(order)
        excess = self._excess(approximation, self.truncate(order)[0])
        if excess <= VISIBLE_ROUNDING * approximation.level or order == self.largest_order:
            return ""
        if excess > MAX_ROUNDING * approximation.level:
            raise ConvergenceError(
                f"the optimal Hankel-norm approximation of order {order} cannot be computed: the first "
                f"truncated singular value is {self.unit * approximation.level:.3g}, and rounding adds "
                f"{self.unit * excess:.3g}; request a lower order, or use method='truncation'"
            )
        return (
            f"the Hankel norm of the error is up to {excess / approximation.level:.1e} above the optimum, "
            f"relatively: the singular value {self.unit * approximation.level:.3g} is close to rounding"
        )

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the first truncated singular value plus twice the sum of the smaller ones.

        At every frequency, the error minus the antistable part has the gain of the first truncated singular
        value. If the computed gain is larger, the excess is added, twice because it is sampled, and so is the
        accuracy of the singular values.
        """
        if reduced is None or self.unstable_poles_of(reduced).size:
            return math.inf
        approximation = self._at(reduced.n_states)
        excess = self._excess(approximation, reduced)
        return bound - self.unit * approximation.level + 2 * (self.unit * excess + self.accuracy)

    def error_model(self, stable_reduced: Quadruple, k: int | None = None) -> Quadruple:
        """Return full minus reduced in scaled units."""
        return parallel(
            [(*self.stable_states, no_direct_term(stable_reduced[3].shape)), negated(stable_reduced)]
        )

    def _excess(self, approximation: Approximation, reduced: LinearModel) -> float:
        other = self._stable_part(reduced)
        discrete = self.full.is_discrete
        whole = self.error_model(other)
        w = critical_frequencies(whole[0], discrete=discrete)
        w = w[np.isfinite(w)]
        response = FrequencyResponse(*whole, discrete=discrete)(w)
        if approximation.antistable[0].size:
            in_plane = np.tan(np.minimum(w, math.pi * (1 - 1e-12)) / 2) if discrete else w
            response = response - FrequencyResponse(*approximation.antistable, discrete=False)(in_plane)
        gains = np.linalg.norm(response, 2, axis=(1, 2)) if 0 not in response.shape else np.zeros(1)
        return max(float(gains.max()) - approximation.level, 0.0)

    def _at(self, order: int) -> Approximation:
        r = order - self.unstable_order
        if r not in self._approximations:
            self._approximations[r] = self._approximated(r)
        return self._approximations[r]

    def _approximated(self, r: int) -> Approximation:
        A, B, C = self._states
        system = A, B, C, np.zeros((C.shape[0], B.shape[1]))
        if self.full.is_discrete:
            system = to_half_plane(*system)
        n = A.shape[0]
        if r == n:
            return Approximation(system, (A[:0, :0], B[:0], C[:, :0], np.zeros_like(system[3])), 0.0)
        return optimal_approximation(*system, self.balancing.values[:n], r)


def optimal_approximation(A: Array, B: Array, C: Array, D: Array, values: Array, r: int) -> Approximation:
    """Return the approximation of order r of a balanced continuous-time system with these singular values.

    ``values[r]`` must be smaller than ``values[r - 1]``.

    Raises
    ------
    ConvergenceError
        Because of rounding, the number of stable poles is not r, as it should be.
    """
    level = float(values[r])
    p, m = D.shape
    q = max(p, m)
    # zero inputs or outputs are added to make the system square
    B, C = np.pad(B, ((0, 0), (0, q - m))), np.pad(C, ((0, q - p), (0, 0)))
    D = np.pad(D, ((0, q - p), (0, q - m)))
    same = np.abs(values - level) <= REPEATED * level
    kept = np.flatnonzero(~same)
    sizes = values[kept]
    B1, C1, B2, C2 = B[kept], C[:, kept], B[same], C[:, same]
    U = -np.linalg.pinv(C2.conj().T) @ B2
    gap = ((sizes - level) * (sizes + level))[:, None]
    coupled = level * C1.conj().T @ U
    A11 = A[np.ix_(kept, kept)]
    Ah = (level**2 * A11.conj().T + sizes[:, None] * A11 * sizes - coupled @ B1.conj().T) / gap
    Bh = (sizes[:, None] * B1 + coupled) / gap
    Ch = C1 * sizes + level * U @ B1.conj().T
    Dh = D - level * U
    none = np.zeros((p, m))
    if kept.size == 0:
        empty = (Ah, Bh[:, :m], Ch[:p], none)
        return Approximation((*empty[:3], Dh[:p, :m]), empty, level)
    parts = split_schur(Ah, discrete=False, tol=0.0)
    if parts.n_stable != r:
        raise ConvergenceError(
            f"the computed Hankel-norm approximation of order {r} has {parts.n_stable} stable poles: the "
            f"singular value {level:.3g} is too close to rounding or to another singular value; request "
            "another order"
        )
    projection = parts.left.conj().T
    Bs, Cs = projection @ Bh, Ch @ parts.right
    stable = parts.T_stable, Bs[:r, :m], Cs[:p, :r], Dh[:p, :m]
    return Approximation(stable, (parts.T_unstable, Bs[r:, :m], Cs[:p, r:], none), level)
