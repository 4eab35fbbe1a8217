"""Reduction that preserves bounded realness (all gains below one) or positive realness (passivity)."""

from __future__ import annotations

import math

import numpy as np

from ..._util.arrays import Array, Quadruple
from ...errors import ConvergenceError, ModelError, UnstableError
from ...gramians.factorize import factorize
from ...gramians.riccati import solve_riccati
from ...gramians.stability import is_stable_matrix
from ...gramians.weighted import dual
from ...models.linear_model import LinearModel
from ..norms import compress_inputs_and_outputs, equilibrated, hinf_norm
from ..order import order_by_bisection
from .derived import Derived, in_balanced_states

#: By this share the gain of a reduced model may exceed one because of rounding.
ROUNDING = 1e-9


class BoundedReal(Derived):
    """Truncation by the smallest storage functions of a model whose gain is below one at every frequency.

    Additional inputs and outputs turn the Riccati equations of the storage functions into the Lyapunov
    equations of Gramians. The method is then balanced truncation of this larger model, with its error bound.

    Source: Opdenacker and Jonckheere, IEEE Trans. Circuits Syst. 35 (1988).
    """

    def __init__(self, model: LinearModel, stability_tol: float):
        _check_stable(
            model,
            stability_tol,
            "bounded_real",
            "their gain has no bound; remove them by minimal() if they are hidden, or use another method",
        )
        gain = _largest_gain(model.as_tuple(), discrete=model.is_discrete)
        if gain >= 1:
            raise ModelError(
                "method='bounded_real' needs a gain below 1 at every frequency, and the largest is "
                f"{gain:.6g}: scale inputs or outputs, or use another method"
            )
        states, bases = in_balanced_states(model, stability_tol)
        super().__init__(model, _completed(states), bases)
        self.method = "bounded_real"

    def reduced_matrices(self, model: LinearModel) -> tuple[Array, Array, Array]:
        """Return A, B and C without the additional inputs and outputs."""
        return model.A, model.B[:, : self.full.n_inputs], model.C[: self.full.n_outputs]

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the error bound of the model with the additional inputs and outputs."""
        if reduced is None or self.unstable_poles_of(reduced).size:
            return math.inf
        return self.inner_bound(reduced.n_states)

    def warning_text(self, order: int) -> str:
        """Check the gain of the reduced model; there is no warning.

        Raises
        ------
        ConvergenceError
            Because of rounding, the gain exceeds one.
        """
        gain = self.limited_gain(self.truncate(order)[0])
        if gain > 1 + ROUNDING:
            raise ConvergenceError(
                f"because of rounding, the reduced model of order {order} is not "
                f"{self.method.replace('_', ' ')} (a gain that must be at most 1 is {gain:.12g}): request "
                "another order"
            )
        return ""

    def limited_gain(self, model: LinearModel) -> float:
        """Return the largest gain that must not exceed one."""
        return _largest_gain(model.as_tuple(), discrete=model.is_discrete)


class PositiveReal(BoundedReal):
    """Truncation by the smallest storage functions of a passive model, G + G^H > 0 at every frequency.

    The system from incident waves (u + y) / sqrt(2) to reflected waves (u - y) / sqrt(2) is bounded real and
    has the same storage functions.

    Sources: Desai and Pal, IEEE Trans. Autom. Control 29 (1984); Harshavardhana, Jonckheere and Silverman,
    MTNS (1983).
    """

    def __init__(self, model: LinearModel, stability_tol: float):
        _check_stable(
            model,
            stability_tol,
            "positive_real",
            "those of a passive model are marginal, as of an ideal capacitor; separate them by split(), "
            "reduce the stable part, and add the other part to the result, which is passive too",
        )
        if model.n_inputs != model.n_outputs:
            raise ModelError(
                "method='positive_real' needs as many outputs as inputs, got "
                f"{model.n_outputs} and {model.n_inputs}"
            )
        D = model.D
        least = float(np.linalg.eigvalsh(D + D.conj().T).min(initial=np.inf))
        if not least > 0:
            raise ModelError(
                "method='positive_real' needs D + D^H positive definite, and its least eigenvalue is "
                f"{least:.3g}: add a small resistance to D"
            )
        states, bases = in_balanced_states(model, stability_tol)
        waves = model.with_matrices(*_waves(*states.as_tuple()))
        discrete = model.is_discrete
        stable = is_stable_matrix(waves.A, discrete=discrete)
        gain = _largest_gain(waves.as_tuple(), discrete=discrete) if stable else math.inf
        if gain >= 1:
            raise ModelError(
                "method='positive_real' needs a strictly passive model, G + G^H > 0 at every frequency, and "
                "this one is not"
            )
        Derived.__init__(self, model, _completed(waves), bases)
        self.method = "positive_real"

    def reduced_matrices(self, model: LinearModel) -> tuple[Array, Array, Array]:
        """Return A, B and C of the model that corresponds to the truncated wave system."""
        m = self.full.n_inputs
        D = self.full.D
        through = np.linalg.solve(np.eye(m) + D, np.eye(m) - D)
        A, B, C, _ = _waves(model.A, model.B[:, :m], model.C[:m], through)
        return A, B, C

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return inf: the bound for the wave system does not apply to the model."""
        return math.inf

    def order_within(self, tol: float | None, rtol: float | None) -> int | None:
        """Return the order at which the measured error meets a tolerance."""
        if tol is None and rtol is None:
            return None
        return order_by_bisection(self.level, 0, self.balancing.rank, self.tolerance(tol, rtol))

    def tolerance(self, tol: float | None, rtol: float | None) -> float:
        """Return the error that a tolerance allows; ``rtol`` is relative to the largest gain."""
        if rtol is not None:
            return rtol * _largest_gain(self.full.as_tuple(), discrete=self.full.is_discrete)
        return tol or 0.0

    def level(self, order: int) -> float:
        """Return the measured error of an order."""
        return self.error(self.truncate(order)[0], "hinf")

    def limited_gain(self, model: LinearModel) -> float:
        """Return the largest gain from incident to reflected waves."""
        return _largest_gain(_waves(*model.as_tuple()), discrete=model.is_discrete)


def _check_stable(model: LinearModel, stability_tol: float, method: str, advice: str) -> None:
    unstable = factorize(model, stability_tol).n_unstable
    if unstable:
        raise UnstableError(
            f"method={method!r} needs a stable model, and {unstable} pole(s) are unstable or marginal: "
            f"{advice}"
        )


def _largest_gain(system: Quadruple, *, discrete: bool) -> float:
    return hinf_norm(*compress_inputs_and_outputs(*equilibrated(*system)), discrete=discrete)[0]


def _waves(A: Array, B: Array, C: Array, D: Array) -> Quadruple:
    """Return the system from (u + y) / sqrt(2) to (u - y) / sqrt(2); this transformation is its inverse."""
    eye = np.eye(D.shape[0])
    inverse = np.linalg.inv(eye + D)
    root = math.sqrt(2)
    return A - B @ inverse @ C, root * B @ inverse, -root * inverse @ C, inverse @ (eye - D)


def _completed(model: LinearModel) -> LinearModel:
    """Add inputs and outputs to a bounded-real model so that its Gramians are storage functions."""
    A, B, C, D = model.as_tuple()
    if model.n_states == 0:
        return LinearModel(A, B, C, np.zeros_like(D), model.dt)
    outputs = np.concatenate([C, _missing_rows((A, B, C, D), discrete=model.is_discrete)])
    inputs = np.concatenate(
        [B, _missing_rows(dual((A, B, C, D)), discrete=model.is_discrete).conj().T], axis=1
    )
    return LinearModel(A, inputs, outputs, np.zeros((outputs.shape[0], inputs.shape[1])), model.dt)


def _missing_rows(system: Quadruple, *, discrete: bool) -> Array:
    """Return the rows to add to C so that the observability Gramian is the smallest storage function.

    With X = -Z: A^H X + X A + C^H C + (X B + C^H D) (1 - D^H D)^-1 (X B + C^H D)^H = 0.
    """
    A, B, C, D = system
    return solve_riccati(
        A,
        B,
        -C.conj().T @ C,
        -C.conj().T @ D,
        np.eye(B.shape[1]) - D.conj().T @ D,
        discrete=discrete,
        what="the storage function",
        advice="the model is hardly passive, increase its passivity margin",
    ).rows
