"""Truncation by frequency-limited, time-limited or frequency-weighted Gramians.

These methods have no error bound, and not all of them give stable models. The error in the band, up to the
horizon or with the weights is therefore measured and compared with that of plain truncation: a model that is
unstable, or less accurate than the plain truncation, is never returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..._util.arrays import EPS, Array
from ..._util.checks import require_option
from ...errors import ModelError
from ...gramians.factorize import FactoredSystem, factorize
from ...gramians.limited import band_factors, horizon_factors
from ...gramians.weighted import dual, input_weighted_factors
from ...models.linear_model import LinearModel
from ..balancing import Balancing, balance, truncate_balanced
from ..measured_error import region_error, region_norm
from ..methods import Residualization, UserFactors
from ..order import order_by_bisection
from ..region import Region, checked_bands, checked_horizon, checked_weights

#: Errors nearer than this, relatively, count as equal.
SAME = 1e-6

#: Name of the Gramians of the candidate that is the plain truncation.
PLAIN = "the plain Gramians"

WEIGHTINGS = ("best", "enns", "lin_chiu")


@dataclass(frozen=True)
class Candidate:
    """A reduced model with its measured error; ``balanced`` names the Gramians that were balanced."""

    balanced: str
    model: LinearModel
    left: Array | None
    right: Array | None
    error: float
    stable: bool


class Restricted(UserFactors):
    """Truncation by limited or weighted Gramians, compared with plain truncation.

    ``pairs`` maps names to pairs of factors; the singular values are those of the first pair. With ``best``,
    the candidate with the smallest measured error is returned, and each pair gives two, by truncation and by
    residualization; otherwise the first one, if it is stable and not less accurate than plain truncation.
    """

    may_lower_order = True
    never_unstable = True

    def __init__(
        self,
        method: str,
        model: LinearModel,
        factored: FactoredSystem,
        pairs: dict[str, tuple[Array, Array]],
        region: Region,
        solver: str,
        *,
        best: bool = False,
    ):
        balancings = {
            name: balance(replace(factored, controllability=Lc, observability=Lo, solver=solver))
            for name, (Lc, Lo) in pairs.items()
        }
        super().__init__(model, next(iter(balancings.values())))
        self.method = method
        self.region = region
        self._plain = balance(factored)
        self._balancings = balancings
        self._best = best
        self._kind = "hinf" if region.horizon is None else "h2"
        self._chosen: dict[int, tuple[Candidate, str]] = {}

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the candidate chosen at an order."""
        chosen = self._at(order)[0]
        return chosen.model, chosen.left, chosen.right

    def balanced(self, order: int) -> str:
        """Return the name of the Gramians that were balanced for the model of an order."""
        return self._at(order)[0].balanced

    def warning_text(self, order: int) -> str:
        """Return the reason if the model of other Gramians than the first ones is returned."""
        return self._at(order)[1]

    def order_within(self, tol: float | None, rtol: float | None) -> int | None:
        """Return the order at which the measured error meets a tolerance."""
        if tol is None and rtol is None:
            return None
        rank = self.unstable_order + self.balancing.rank
        return order_by_bisection(self.level, self.unstable_order, rank, self.tolerance(tol, rtol))

    def tolerance(self, tol: float | None, rtol: float | None) -> float:
        """Return the error that a tolerance allows; ``rtol`` is relative to :meth:`size`."""
        if rtol is not None:
            return rtol * self.size()
        return np.inf if tol is None else tol

    def level(self, order: int) -> float:
        """Return the measured error of an order in the region."""
        return self._at(order)[0].error

    def size(self) -> float:
        """Return the norm of the stable part of the full model in the region."""
        A, B, C = self.stable_states
        D = self.full.D / self.unit
        if self._kind == "h2" and not self.full.is_discrete:
            D = np.zeros_like(D)  # the energy of its impulse is infinite
        return (
            self.unit * region_norm((A, B, C, D), self.region, self._kind, discrete=self.full.is_discrete)[0]
        )

    def _at(self, order: int) -> tuple[Candidate, str]:
        if order not in self._chosen:
            self._chosen[order] = self._choose(order)
        return self._chosen[order]

    def _choose(self, order: int) -> tuple[Candidate, str]:
        """Return the candidate to return, and the reason if it is not the first one."""
        r = order - self.unstable_order
        first, *others = self._balancings.items()
        plain = self._candidates({PLAIN: self._plain}, r)
        candidates = self._candidates(dict([first]), r)
        requested = candidates[0]
        if not self._best and requested.stable:
            limit = self._tolerated(plain[0].error) if plain and plain[0].stable else np.inf
            if requested.error <= limit:
                return requested, ""
        candidates += plain + self._candidates(dict(others), r)
        if self._best:
            candidates += self._residualized(r)
        chosen = min(candidates, key=lambda candidate: (not candidate.stable, candidate.error))
        if self._best:
            return chosen, ""
        if requested.stable:
            why = f"has the error {requested.error:.3g}, and plain truncation has {plain[0].error:.3g}"
        else:
            pole = self.unstable_poles_of(requested.model)[0]
            why = f"has a pole at {pole:.3g}, outside the stability region"
        return chosen, (
            f"the model of order {order} balanced by {requested.balanced} {why}; the returned model is "
            f"balanced by {chosen.balanced}, with the error {chosen.error:.3g}"
        )

    def _tolerated(self, error: float) -> float:
        """Return the largest error that, within rounding, is not larger than this one."""
        largest = float(self._plain.values.max(initial=0.0)) * self.unit
        return error * (1 + SAME) + EPS * self.full.n_states * largest

    def _candidates(self, balancings: dict[str, Balancing], r: int) -> list[Candidate]:
        return [
            self._candidate(name, *truncate_balanced(self.full, balancing, r))
            for name, balancing in balancings.items()
            if balancing.n_computable >= r
        ]

    def _residualized(self, r: int) -> list[Candidate]:
        """Return the candidates whose removed states are at steady state."""
        out = []
        for name, balancing in {PLAIN: self._plain, **self._balancings}.items():
            source = Residualization(self.full, balancing)
            if balancing.n_computable < r:
                continue
            try:
                reduced = source.truncate(r + self.unstable_order)
            except np.linalg.LinAlgError:  # the removed states have no steady state
                continue
            out.append(self._candidate(f"{name}, residualized", *reduced))
        return out

    def _candidate(self, name: str, model: LinearModel, left: Array | None, right: Array | None) -> Candidate:
        if self.unstable_poles_of(model).size:
            return Candidate(name, model, left, right, np.inf, stable=False)
        full, reduced, unit = self.compared(model)
        discrete = self.full.is_discrete
        error = unit * region_error(full, reduced, self.region, self._kind, discrete=discrete)[0]
        return Candidate(name, model, left, right, error, stable=True)


def frequency_limited(model: LinearModel, stability_tol: float, *, band: Any) -> Restricted:
    """Return truncation by frequency-limited Gramians."""
    region = Region(bands=checked_bands(band, model))
    factored = factorize(model, stability_tol)
    pairs = band_pairs(factored, region, discrete=model.is_discrete)
    return Restricted("frequency_limited", model, factored, pairs, region, "quadrature")


def time_limited(model: LinearModel, stability_tol: float, *, horizon: Any) -> Restricted:
    """Return truncation by time-limited Gramians."""
    region = Region(horizon=checked_horizon(horizon, model))
    factored = factorize(model, stability_tol)
    pairs = horizon_pairs(factored, region, discrete=model.is_discrete)
    return Restricted("time_limited", model, factored, pairs, region, "doubling")


def band_pairs(factored: FactoredSystem, region: Region, *, discrete: bool) -> dict[str, tuple[Array, Array]]:
    """Return the pairs of factors that are compared for the bands of a region."""
    bands = region.bands or []
    return _two_sided(
        factored, *band_factors(factored.A, factored.B, factored.C, bands, discrete=discrete), "band"
    )


def horizon_pairs(
    factored: FactoredSystem, region: Region, *, discrete: bool
) -> dict[str, tuple[Array, Array]]:
    """Return the pairs of factors that are compared for the horizon of a region."""
    time = region.horizon or 0.0
    L = horizon_factors(factored.A, factored.B, factored.C, time, discrete=discrete)
    return _two_sided(factored, *L, "horizon")


def _two_sided(factored: FactoredSystem, Lc: Array, Lo: Array, what: str) -> dict[str, tuple[Array, Array]]:
    # with one plain Gramian the reduced model is stable, because it satisfies the truncated Lyapunov equation
    return {
        f"both Gramians of the {what}": (Lc, Lo),
        f"the controllability Gramian of the {what}": (Lc, factored.observability),
        f"the observability Gramian of the {what}": (factored.controllability, Lo),
    }


def frequency_weighted(
    model: LinearModel,
    stability_tol: float,
    *,
    input_weight: Any = None,
    output_weight: Any = None,
    weighting: str = "best",
) -> Restricted:
    """Return truncation by frequency-weighted Gramians."""
    require_option(weighting, WEIGHTINGS, "weighting", ModelError)
    if input_weight is None and output_weight is None:
        raise ModelError("method='frequency_weighted' needs input_weight= or output_weight=, or both")
    on_input, on_output = checked_weights(input_weight, output_weight, model, stability_tol)
    factored = factorize(model, stability_tol)
    A, B, C = factored.A, factored.B, factored.C
    plain = factored.controllability, factored.observability
    enns, lin_chiu = list(plain), list(plain)
    if on_input is not None:
        enns[0], lin_chiu[0] = input_weighted_factors(A, B, on_input, dt=model.dt)
    if on_output is not None:
        enns[1], lin_chiu[1] = input_weighted_factors(A.conj().T, C.conj().T, dual(on_output), dt=model.dt)
    pairs = {"enns": (enns[0], enns[1]), "lin_chiu": (lin_chiu[0], lin_chiu[1])}
    if on_input is not None and on_output is not None:
        pairs["the input weight"] = enns[0], plain[1]
        pairs["the output weight"] = plain[0], enns[1]
    if weighting == "lin_chiu":
        pairs = {name: pairs[name] for name in ("lin_chiu", *pairs)}
    region = Region(input_weight=on_input, output_weight=on_output)
    return Restricted(
        "frequency_weighted", model, factored, pairs, region, factored.solver, best=weighting == "best"
    )
