"""The result of `empirical_gramians`: the Gramians, their error estimates, and reductions by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from ..errors import HankelredError, count
from ..models.linear_model import LinearModel
from ..plotting.draw import Spectrum
from ..reduction.balancing import BalancedFactors
from ..reduction.norms import difference_norm
from ..reduction.reduce import Reduction, checked_choice, chosen_order, make_reduction
from ..reduction.source import UncertifiedSource
from ..report.notebook import facts_table, table_with_spectrum
from ..simulation.signals import as_numbers


@dataclass(frozen=True, eq=False, repr=False)
class EmpiricalReduction(Reduction):
    """A Petrov-Galerkin projection balanced by empirical Gramians, and the reduced model if there is one.

    Glover's bound on the error needs exact Gramians of a linear system, so there is **no error bound**
    here: ``error_bound`` is inf. Evaluate a reduction by its outputs for inputs other than those of the
    experiments, or for a linear model by :meth:`Reduction.error`.

    Attributes
    ----------
    system : model or None
        The reduced model, of the same type as the full one; None where a simulator was reduced (its
        right-hand side is not known here: see :meth:`right_hand_side`).
    mean : ndarray (n,)
        The steady state, around which ``x = mean + right @ z``.
    error_bound : float
        Always inf.
    residual : float
        The larger error estimate of the two Gramians.

    Notes
    -----
    All other attributes are those of :class:`Reduction`.
    """

    left: Array
    right: Array

    @property
    def mean(self) -> Array:
        """The steady state, around which ``x = mean + right @ z``."""
        mean: Array = self.source.mean  # type: ignore[attr-defined]
        return mean

    def restrict(self, x: npt.ArrayLike) -> Array:
        """Return the reduced coordinates z of full states.

        Parameters
        ----------
        x : array_like (n,) or (n, samples)

        Returns
        -------
        ndarray (order,) or (order, samples)

        Examples
        --------
        >>> from hankelred import empirical_gramians
        >>> grams = empirical_gramians(([[-1.0, 0.5], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 1.0]], 0.0))
        >>> reduced = grams.reduce(1)
        >>> bool(np.allclose(reduced.restrict(reduced.lift([2.0])), [2.0]))
        True
        """
        states = _coordinates(x, "x", self.mean.size, "state")
        z: Array = self.left.T @ (states - (self.mean if states.ndim == 1 else self.mean[:, None]))
        return z

    def lift(self, z: npt.ArrayLike) -> Array:
        """Return the full states that reduced coordinates represent.

        Parameters
        ----------
        z : array_like (order,) or (order, samples)

        Returns
        -------
        ndarray (n,) or (n, samples)

        Examples
        --------
        >>> from hankelred import empirical_gramians
        >>> grams = empirical_gramians(([[-1.0, 0.5], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 1.0]], 0.0))
        >>> grams.reduce(1).lift([0.0])
        array([0., 0.])
        """
        coordinates = _coordinates(z, "z", self.order, "reduced state")
        mean = self.mean if coordinates.ndim == 1 else self.mean[:, None]
        x: Array = mean + self.right @ coordinates
        return x

    def right_hand_side(self, f: Callable[..., Array]) -> Callable[..., Array]:
        """Project a right-hand side: from ``x' = f(x, ...)`` to ``z' = left.T f(mean + right z, ...)``.

        In discrete time give the step ``f(x, ...) = x_next - x``, and add the result to z.

        Parameters
        ----------
        f : callable
            A function of the state (n,) or (n, samples) and any further arguments.

        Returns
        -------
        callable
            The same function of z in place of the state.

        Examples
        --------
        >>> from hankelred import empirical_gramians
        >>> A, B = np.array([[-1.0, 0.5], [0.0, -3.0]]), np.array([[1.0], [1.0]])
        >>> reduced = empirical_gramians((A, B, [[1.0, 1.0]], 0.0)).reduce(1)
        >>> rhs = reduced.right_hand_side(lambda x, u: A @ x + B @ u)
        >>> Ar = reduced.system[0]
        >>> bool(np.allclose(rhs(np.ones(1), np.zeros(1)), Ar @ np.ones(1)))
        True
        """
        if not callable(f):
            raise HankelredError(
                f"f must be a function of the state, x' = f(x, ...), got a {type(f).__name__}"
            )

        def reduced(z: npt.ArrayLike, *args: Any, **kwargs: Any) -> Array:
            dz: Array = self.left.T @ np.asarray(f(self.lift(z), *args, **kwargs))
            return dz

        return reduced


def _coordinates(values: npt.ArrayLike, name: str, size: int, what: str) -> Array:
    array = as_numbers(values, name)
    if array.ndim not in (1, 2) or array.shape[0] != size:
        raise HankelredError(
            f"{name} must have one row per {what}, shape ({size},) or ({size}, samples), got {array.shape}"
        )
    return array


@dataclass(frozen=True, eq=False)
class EmpiricalGramians:
    """Empirical Gramians with their error estimates; the result of :func:`empirical_gramians`.

    Attributes
    ----------
    controllability, observability, cross : ndarray (n, n) or None
        The Gramians named in ``kinds``; None for the others.
    error_estimate : dict of float
        For each kind, the estimated error relative to the Gramian, both in the Frobenius norm and,
        entry by entry, in units of the states concerned (``|dW_ij| <= e sqrt(W_ii W_jj)``). It covers
        quadrature, truncation at the horizon and rounding. It does not cover errors that the simulator
        makes itself, nor the difference between a nonlinear system and any Gramian. inf where the
        responses have not begun to decay by the end of the horizon.
    horizon, step : float
        The grid, in seconds (samples, where a discrete system has no sampling time).
    controllability_factor, observability_factor : ndarray (n, k) or None
        L with W = L L^H, from a QR factorization of the responses, not from W.
    steady_state : ndarray (n,)
    """

    controllability: Array | None
    observability: Array | None
    cross: Array | None
    error_estimate: dict[str, float]
    horizon: float
    step: float
    controllability_factor: Array | None = field(repr=False)
    observability_factor: Array | None = field(repr=False)
    steady_state: Array = field(repr=False)
    _model: LinearModel | None = field(repr=False)
    _rounding: float = field(repr=False)

    def __repr__(self) -> str:
        errors = ", ".join(f"{kind} to {error:.1e}" for kind, error in self.error_estimate.items())
        return (
            f"<EmpiricalGramians of {self.steady_state.size} states: {errors}; horizon {self.horizon:g}, "
            f"step {self.step:g}>"
        )

    def _repr_html_(self) -> str:
        """Return the table and the small spectrum that a notebook shows."""
        rows = [
            ("empirical Gramians", f"of {count(self.steady_state.size, 'state')}"),
            *((f"error of {kind}", f"{error:.1e}") for kind, error in self.error_estimate.items()),
            ("horizon, step", f"{self.horizon:g}, {self.step:g}"),
        ]
        if self.cross is None and len(self.error_estimate) == 1:
            return facts_table(rows)  # one Gramian has no Hankel singular values
        values = self.hankel_singular_values
        # no bound is known of any order
        return table_with_spectrum(rows, Spectrum(values, np.zeros(values.size), self.noise_floor))

    @cached_property
    def _balancing(self) -> BalancedFactors:
        if self.controllability_factor is None or self.observability_factor is None:
            names = ", ".join(self.error_estimate)
            raise HankelredError(
                "this needs both the controllability and the observability Gramian, but only "
                f"{names} was computed; name both in kinds="
            )
        return BalancedFactors.of(self.controllability_factor, self.observability_factor)

    @cached_property
    def hankel_singular_values(self) -> Array:
        """Hankel singular values (n,), descending.

        From an SVD of the factor product where both Gramians were computed. From the cross Gramian alone
        they are the absolute eigenvalues, which is right for symmetric systems (every single-input
        single-output one is) and an estimate otherwise.
        """
        n = self.steady_state.size
        if self.cross is not None and (
            self.controllability_factor is None or self.observability_factor is None
        ):
            return np.sort(np.abs(np.linalg.eigvals(self.cross)))[::-1]
        values = self._balancing.values
        return np.concatenate([values, np.zeros(n - values.size)])

    @property
    def noise_floor(self) -> float:
        """Singular values below this are rounding, in the responses or in the SVD.

        The error estimate does not enter: with a horizon that is too short the values are those of that
        horizon, and the small ones among them are as accurate as the large ones.
        """
        values = self.hankel_singular_values
        return self._rounding * float(values[0]) if values.size else 0.0

    def reduce(
        self,
        order: int | None = None,
        *,
        tol: float | None = None,
        rtol: float | None = None,
        energy: float | None = None,
    ) -> EmpiricalReduction:
        """Return the projection balanced by the two Gramians and, for a linear model, the reduced model.

        There is no bound on the error (``error_bound`` is inf), and stability of the reduced model is not
        guaranteed: both would need exact Gramians.

        Parameters
        ----------
        order : int, optional
            Number of states to keep.
        tol, rtol, energy : float, optional
            Rules to choose the order from the empirical singular values, as in :func:`select_order`; the
            sum that ``tol`` limits is a guide here, not a bound. Without any, everything above the noise
            floor is kept.

        Returns
        -------
        EmpiricalReduction

        Raises
        ------
        OrderError
            An order or rule out of range, or more than one.
        HankelredError
            One of the two Gramians is missing.

        Warns
        -----
        ReductionWarning
            The order is above the numerical rank, and was clipped to it.

        References
        ----------
        S. Lall, J. E. Marsden, S. Glavaski, "A subspace approach to balanced truncation for model
        reduction of nonlinear control systems", *Int. J. Robust Nonlinear Control* 12 (2002).

        Examples
        --------
        >>> from hankelred import empirical_gramians
        >>> A, B, C = np.diag([-1.0, -2.0, -50.0]), np.ones((3, 1)), np.ones((1, 3))
        >>> reduced = empirical_gramians((A, B, C, 0.0)).reduce(2)
        >>> reduced.system[0].shape, reduced.error_bound
        ((2, 2), inf)
        >>> bool(np.allclose(reduced.left.T @ reduced.right, np.eye(2)))
        True
        """
        rule = checked_choice(order, tol=tol, rtol=rtol, energy=energy)
        source = _EmpiricalSource(self, self._balancing)
        return make_reduction(source, chosen_order(source, order, rule), EmpiricalReduction)


class _EmpiricalSource(UncertifiedSource):
    """Empirical Gramians as a source of reductions."""

    method = solver = "empirical"
    unstable_order = 0

    def __init__(self, gramians: EmpiricalGramians, balancing: BalancedFactors):
        self._balancing = balancing
        self.full = gramians._model
        self.mean = gramians.steady_state
        self.hankel_singular_values = gramians.hankel_singular_values
        self.noise_floor = gramians.noise_floor
        self.residual = max(gramians.error_estimate[kind] for kind in ("controllability", "observability"))

    def truncate(self, order: int) -> tuple[LinearModel | None, Array, Array]:
        """Project onto the leading balanced directions."""
        left, right = self._balancing.bases(order)
        left = left.conj()
        if self.full is None:
            return None, left, right
        A, B, C, D = self.full.as_tuple()
        return self.full.with_matrices(left.T @ A @ right, left.T @ B, C @ right, D), left, right

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced; inf where the projection made it unstable."""
        if self.full is None:
            raise HankelredError(
                "the error is defined for linear models only; compare a simulator's outputs instead"
            )
        return difference_norm(self.full, reduced, norm)
