"""The one reduction pipeline: factors -> SVD -> projection -> :class:`Reduction`.

A method of reduction is a :class:`ReductionSource`: something that knows its singular values and can
give the reduced model at any order. Choosing the order, clipping it, refusing it and reporting on it
happen here, once, for all of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from ..errors import ModelError, OrderError, ReductionWarning
from ..gramians.factorize import factorize as factored_system
from ..gramians.factorize import with_given_factors
from ..gramians.stability import STABILITY_TOL, checked_tol, suspected_timebase
from ..models.linear_model import LinearModel, Timebase
from ..models.modal import ModalSystem, diagonalised
from ..models.pencil import Factorize
from ..models.second_order import SecondOrderModel
from ..models.sparse_model import dense_model, large_or_none
from .balancing import balance
from .methods import BalancedSource, GivenFactors, Residualization, Truncation
from .middle import middle_model
from .order import check_rule, checked_order, error_bounds, select_order
from .plots import plot_reduction
from .structure import STRUCTURES, PositionVelocity
from .two_level import LargeResidualization, LargeTruncation, TwoLevel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


METHODS: dict[str, type[BalancedSource]] = {"truncation": Truncation, "residualization": Residualization}


LARGE_METHODS: dict[str, type[TwoLevel]] = {
    "truncation": LargeTruncation,
    "residualization": LargeResidualization,
}


class ReductionSource(Protocol):
    """What a :class:`Reduction` is made from: the factored problem, able to give any order."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def hankel_singular_values(self) -> Array:
        """All n values, inf first."""

    @property
    def noise_floor(self) -> float:
        """Size below which a singular value is rounding (or noise in the data)."""

    @property
    def unstable_order(self) -> int:
        """Number of states that every reduction keeps."""

    @property
    def solver(self) -> str:
        """Name of the solver that made the factors."""

    @property
    def residual(self) -> float:
        """Relative residual of the solver."""

    @property
    def certified(self) -> bool:
        """Whether twice the sum of the values left out bounds the error of every order."""

    def certificate(self, bound: float, reduced: LinearModel | None) -> float:
        """Return what of `bound`, twice the sum of the values left out, holds for this reduced model."""

    @property
    def full(self) -> LinearModel | None:
        """The model that is reduced; None where there is none, as for data."""

    def truncate(self, order: int) -> tuple[LinearModel | None, Array | None, Array | None]:
        """Return the reduced model (None for a simulator) and the projection (left, right), if it is one."""

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm ("hinf" or "h2") of the full model minus the reduced one."""


@dataclass(frozen=True)
class Certificate:
    """How sure the singular values of a reduction are.

    Attributes
    ----------
    kind : str
        "exact" where both Gramians were factored as they are, so that the values are right but for rounding;
        "rigorous" where a bound of the error of low-rank factors is proved; "estimate" where it is not, or
        where the values come from data, experiments or factors that were handed in.
    value : float
        Absolute accuracy of the values, in their unit. Where the Gramians were factored it is at least the
        noise floor, and larger where the balanced states do not satisfy their equations: in stiff models, and
        with poles near the stability boundary. For estimates it is the noise floor.
    residual : float
        Largest relative residual of the Gramian equations.
    factorizations : int
        Sparse factorizations that were made; 0 for dense models.
    """

    kind: str
    value: float
    residual: float
    factorizations: int


@dataclass(frozen=True, eq=False)
class Reduction:
    """A reduced model with its spectrum and certificate.

    Attributes
    ----------
    system : model
        The reduced model, in the type, dt and names of the model it came from.
    order : int
        Its number of states, ``unstable_order`` included.
    hankel_singular_values : ndarray, shape (n,)
        Of the full model: falling, ``inf`` first for unstable and marginal poles.
    error_bound : float
        No frequency has a larger gain of (full minus reduced) than this and ``noise_floor`` together: twice
        the sum of the distinct singular values left out, and what the rounding of the matrices handed out
        adds, which depends on the order and shows where a pole is near the stability boundary. It compares
        state spaces: what a transfer function or a descriptor model is converted to rounds the data by a
        few units in the last digit (for a :class:`SecondOrderModel` that is measured and included), and
        polynomials and modal forms made from the reduced state space may be off by 1e-6 of the largest
        response before a warning says so. inf where no bound is known (empirical Gramians, models estimated
        from data), and where the reduced model is unstable.
    certificate : Certificate
        How sure the singular values are: ``kind``, ``value``, ``residual``, ``factorizations``.
    noise_floor : float
        At least n eps times the largest singular value. Values at or below it say nothing to somebody who
        chooses an order.
    unstable_order : int
        States of unstable and marginal poles; they are kept exactly.
    numerical_rank : int
        Number of singular values above the noise floor. An order that is asked for may be larger, as long as
        it can be computed.
    left, right : ndarray, shape (n, order), or None
        The projection: ``A_r = left.T @ A @ right`` and ``left.T @ right = 1``; with a fifth matrix E
        the A meant is E^-1 A. None for methods that are not projections.
    method : str
        "truncation", "residualization", or how a model was made from data.
    solver : str
        Which Gramian solver was used: "smith", "hammarling" or "cauchy"; see the ladder in the docs.
        "given" where a factor was handed in, "empirical" for empirical Gramians, "svd" and "qr" for
        models from data.
    residual : float
        Largest relative residual of the Gramian equations with the factors the solver made.
    """

    system: Any
    order: int
    hankel_singular_values: Array
    noise_floor: float
    unstable_order: int
    numerical_rank: int
    left: Array | None = field(repr=False)
    right: Array | None = field(repr=False)
    method: str
    solver: str
    residual: float
    source: ReductionSource = field(repr=False, compare=False)
    #: the reduced LinearModel; None where a simulator was reduced
    model: Any = field(repr=False, compare=False)

    @cached_property
    def error_bound(self) -> float:
        """No frequency has a larger gain of (full minus reduced); computed when it is first read."""
        bound = float(error_bounds(self.hankel_singular_values)[self.order])
        conversion = float(getattr(self.source, "conversion_error", 0.0))
        return self.source.certificate(bound, self.model) + conversion

    @property
    def error_uncertainty(self) -> float:
        """How far :meth:`error` can be from the error of the full model; 0 but for large sparse models.

        Those are reduced in two levels, and errors are measured from the middle one. Proved where the
        certificate is "rigorous". The error bound includes it.
        """
        return float(getattr(self.source, "error_uncertainty", 0.0))

    @property
    def certificate(self) -> Certificate:
        """How sure the singular values are; see :class:`hankelred.reduction.reduce.Certificate`."""
        source = self.source
        if isinstance(source, TwoLevel):
            return Certificate(source.kind, source.accuracy, self.residual, source.factorizations)
        if isinstance(source, BalancedSource) and source.certified:
            return Certificate("exact", source.accuracy, self.residual, 0)
        return Certificate("estimate", self.noise_floor, self.residual, 0)

    def __repr__(self) -> str:
        source, n = self.source, self.hankel_singular_values.size
        if isinstance(source, TwoLevel):
            n = source.middle.large.n_states
        return (
            f"<{type(self).__name__} of {n} states to order {self.order} by "
            f"{self.method}: error bound {self.error_bound:.3g}, solver {self.solver}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        # python-control's StateSpace cannot be pickled, so the reduced model travels in the internal form
        state = dict(self.__dict__)
        if self.model is not None:
            del state["system"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "system" not in state:
            state = {**state, "system": state["model"].to_user()}
        self.__dict__.update(state)

    def at(self, order: int) -> Reduction:
        """Return the reduction to another order, from the same factors.

        Parameters
        ----------
        order : int
            Number of states; see :func:`reduce`.

        Examples
        --------
        >>> import numpy as np, hankelred
        >>> A = np.diag([-1.0, -2.0, -50.0]); B = np.ones((3, 1)); C = np.ones((1, 3))
        >>> reduction = hankelred.reduce((A, B, C, 0), order=2)
        >>> reduction.at(1).order
        1
        """
        return make_reduction(self.source, order)

    def error(self, norm: Literal["hinf", "h2"] = "hinf") -> float:
        """Return the true error, the norm of the full model minus the reduced one.

        Parameters
        ----------
        norm : {"hinf", "h2"}
            "hinf": largest gain of the difference over all frequencies, found from level sets to a
            relative accuracy of 1e-6, and no better than the rounding of the two gains that are
            subtracted. "h2": root of the energy of the difference of the impulse responses; inf in
            continuous time if the direct terms differ.

        Raises
        ------
        ModelError
            Unknown norm, or a simulator was reduced, so that there is no model to compare.
        """
        if norm not in ("hinf", "h2"):
            raise ModelError(f"norm must be 'hinf' or 'h2', got {norm!r}")
        if self.model is None:
            raise ModelError("a simulator was reduced: there is no model to compare, so simulate both")
        return self.source.error(self.model, norm)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw full, reduced, error and bound over frequency; see :func:`plot_reduction`."""
        return plot_reduction(self, ax=ax)


def reduce(
    sys: Any,
    order: int | None = None,
    *,
    tol: float | None = None,
    rtol: float | None = None,
    energy: float | None = None,
    gap: bool = False,
    method: Literal["truncation", "residualization"] = "truncation",
    controllability_factor: npt.ArrayLike | None = None,
    observability_factor: npt.ArrayLike | None = None,
    dt: Timebase = 0,
    stability_tol: float = STABILITY_TOL,
    solver: Literal["auto", "dense", "low_rank"] = "auto",
    accuracy: float | None = None,
    factorize: Factorize | None = None,
    structure: Literal["first_order", "second_order"] = "first_order",
) -> Reduction:
    """Reduce a model by balancing, with a certificate of the error.

    Parameters
    ----------
    sys : model
        As in :func:`hankel_singular_values`. Unstable and marginal poles are split off and kept.
    order : int, optional
        Number of states to keep, those of unstable and marginal poles included. Beyond what can be told from
        rounding it is clipped, with a warning that names the true number.
    tol : float, optional
        Take the smallest order whose error bound, rounding included, is at most this (unit: output per
        input).
    rtol : float, optional
        The same with ``rtol`` times the largest finite Hankel singular value.
    energy : float in (0, 1], optional
        Take the smallest order that holds this share of the sum of the finite singular values.
    gap : bool
        Cut at the largest ratio of neighbouring singular values above the noise floor. Without ``order``
        and any of these rules, all above the noise floor are kept, and never a pole outside the stability
        region that the full model has not.
    method : {"truncation", "residualization"}
        "truncation" is exact at high frequency (continuous time), "residualization" at frequency
        zero. Both have the same error bound.
    controllability_factor, observability_factor : array_like, shape (n, k), optional
        L with W = L L^H, to balance by these Gramians in place of the model's own: those of the states
        that real inputs excite (:class:`GramianEstimator`, :func:`gramian_factor`), or of outputs that do not
        all matter alike. No bound follows (``error_bound`` is inf; ``tol`` and the other rules read these
        singular values, as a guide), and stability is not guaranteed. In the states of ``sys``; for a
        :class:`ModalSystem` those are its modes. With "truncation" only.
    dt : 0, True, float or None
        Timebase of a tuple.
    stability_tol : float
        Poles nearer to the stability boundary than this, relative to the size of A, count as
        marginal and are kept.
    solver, accuracy, factorize
        As in :func:`hankel_singular_values`, for large sparse models. These are reduced in two levels: to all
        states that the low-rank factors resolve, a hundred or so, and from there as any other model.
        ``error_bound`` includes the distance of the two levels.
    structure : {"first_order", "second_order"}
        What comes back for a :class:`SecondOrderModel`: a state space as a tuple, or a model of second
        order, by position-velocity balancing (Reis and Stykel 2008). That keeps the form and nothing else:
        it has no error bound and takes an even ``order``, no rule.

    Returns
    -------
    Reduction

    Raises
    ------
    OrderError
        An order that is no whole number >= 0, or below the number of unstable poles; a tolerance that
        is not positive; more than one rule.
    ModelError
        The model cannot be used, the method is unknown, or a given factor does not fit.
    ConvergenceError
        No solver reached its accuracy.

    Warns
    -----
    ReductionWarning
        The order was clipped to what can be computed; rounding (or a given factor) left a pole of the reduced
        model unstable; a tolerance is below the rounding of the matrices.

    Notes
    -----
    Square-root balanced truncation: Moore (1981); Tombs and Postlethwaite, Int. J. Control 46 (1987).
    Residualization: Liu and Anderson, Int. J. Control 50 (1989). Bound: Enns (1984), Glover (1984);
    discrete time: Hinrichsen and Pritchard, Linear Algebra Appl. 122 (1989). The model's own matrices are
    projected, with twice the digits where rounding would be seen: Ozaki and others, Numer. Algorithms 59
    (2012).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> A = np.diag([-1.0, -2.0, -50.0]); B = np.ones((3, 1)); C = np.array([[1.0, -2.0, 5.0]])
    >>> reduction = hankelred.reduce((A, B, C, 0), order=2)
    >>> A_r, B_r, C_r, D_r = reduction.system
    >>> A_r.shape
    (2, 2)
    >>> bool(reduction.error("hinf") <= reduction.error_bound)
    True

    By the states that a recorded input excites:

    >>> states = hankelred.GramianEstimator(3)
    >>> states.update(np.random.default_rng(0).standard_normal((3, 500)) * [[1.0], [0.1], [1e-3]])
    >>> weighted = hankelred.reduce((A, B, C, 0), 1, controllability_factor=states.factor())
    >>> weighted.error_bound
    inf
    """
    if not isinstance(method, str) or method not in METHODS:
        raise ModelError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    rule = checked_choice(order, tol=tol, rtol=rtol, energy=energy, gap=gap)
    margin = checked_tol(stability_tol)
    if not isinstance(structure, str) or structure not in STRUCTURES:
        raise ModelError(f"structure must be one of {', '.join(STRUCTURES)}, got {structure!r}")
    if structure == "second_order":
        if not isinstance(sys, SecondOrderModel):
            raise ModelError(f"structure='second_order' is for a SecondOrderModel, got {type(sys).__name__}")
        if (
            order is None
            or method != "truncation"
            or controllability_factor is not None
            or observability_factor is not None
        ):
            raise ModelError(
                "structure='second_order' takes an order and method='truncation': no bound is known from "
                "which a rule could choose"
            )
        return make_reduction(PositionVelocity(sys, solver, accuracy, factorize, margin), order)
    if controllability_factor is None and observability_factor is None:
        middle = large_or_none(
            sys, dt, solver, lambda large: middle_model(large, accuracy, factorize, margin)
        )
        if middle is not None:
            at_rest = method == "residualization" and not middle.large.is_discrete
            return _chosen(LARGE_METHODS[method](middle, reciprocal=at_rest), order, rule)
    model = dense_model(sys, dt, solver)
    at_rest = method == "residualization" and not model.is_discrete
    given = {
        name: None if L is None else checked_factor(L, name, model.n_states)
        for name, L in (
            ("controllability_factor", controllability_factor),
            ("observability_factor", observability_factor),
        )
    }
    names = [name for name, L in given.items() if L is not None]
    if names and method != "truncation":
        raise ModelError(f"{names[0]} serves method='truncation' only, got method={method!r}")
    factored = factored_system(model, margin)
    if names:
        factored = with_given_factors(factored, *given.values())
    source = (GivenFactors if names else METHODS[method])(model, balance(factored, reciprocal=at_rest))
    if isinstance(sys, SecondOrderModel):
        source.second_order = sys
    return _chosen(source, order, rule)


def _chosen(source: BalancedSource, order: int | None, rule: dict[str, Any]) -> Reduction:
    """Return the reduction to the order, or to the one that the rule chooses."""
    reduction = make_reduction(
        source, chosen_order(source, order, rule), by_noise=order is None and not any(rule.values())
    )
    tol = rule["tol"]
    if rule["rtol"] is not None:
        values = source.hankel_singular_values
        tol = rule["rtol"] * float(values[np.isfinite(values)].max(initial=0.0))
    return reduction if tol is None else _within(reduction, tol)


def checked_factor(L: npt.ArrayLike, name: str, n: int) -> Array:
    """Return a given Gramian factor as a finite (n, k) array."""
    try:
        factor = np.asarray(L, dtype=complex if np.iscomplexobj(L) else float)
    except (TypeError, ValueError):
        raise ModelError(f"{name} must be a numeric array") from None
    if factor.ndim != 2 or factor.shape[0] != n:
        raise ModelError(f"{name} must have a row for each of the {n} states, got shape {factor.shape}")
    if not np.all(np.isfinite(factor)):
        row, column = np.argwhere(~np.isfinite(factor))[0]
        raise ModelError(f"{name}[{row}, {column}] is {factor[row, column]}; every entry must be finite")
    return factor


def checked_choice(order: Any, **rule: Any) -> dict[str, Any]:
    """Check an order and the rules for choosing one, before any work is done; return the rules."""
    check_rule(**rule)
    if order is not None:
        checked_order(order)
        given = [
            f"{name}={value}" for name, value in rule.items() if value is not None and value is not False
        ]
        if given:
            raise OrderError(
                f"give the order or a rule to choose it ({', '.join(rule)}), not both: got order={order} and "
                f"{given[0]}"
            )
    return rule


def chosen_order(source: ReductionSource, order: int | None, rule: dict[str, Any]) -> int:
    """Return the order itself, or the one that the rule chooses from the source's singular values."""
    if order is not None:
        return order
    return select_order(source.hankel_singular_values, noise_floor=source.noise_floor, **rule)


def make_reduction(source: ReductionSource, order: int, *, by_noise: bool = False) -> Reduction:
    """Build the result at an order: refuse too small, clip too large.

    ``by_noise`` tells that nobody chose the order: everything above the noise floor is kept.
    """
    order = checked_order(order)
    values, unstable = source.hankel_singular_values, source.unstable_order
    rank = unstable + int(np.count_nonzero(values[unstable:] > source.noise_floor))
    if order < unstable:
        full = source.full
        advice = suspected_timebase(np.linalg.eigvals(full.A), discrete=full.is_discrete) if full else ""
        raise OrderError(
            f"order {order} is below the {unstable} unstable or marginal pole(s), which are kept; the "
            f"least order possible is {unstable}{advice}"
        )
    model: LinearModel | None
    if isinstance(source, BalancedSource):
        order, model, left, right = _attained(source, order, rank, by_noise=by_noise)
    else:
        if order > rank:
            warnings.warn(
                f"order {order} was asked for, but only {rank} Hankel singular values are above the noise "
                f"floor {source.noise_floor:.1e}; the reduced model has order {rank}",
                ReductionWarning,
                stacklevel=3,
            )
            order = rank
        model, left, right = source.truncate(order)
    system = None if model is None else model.to_user()
    if model is not None and isinstance(system, ModalSystem) and left is not None and right is not None:
        # handed out in modal states, so the projection goes there too
        system, to_model = diagonalised(model)
        left, right = left @ np.linalg.inv(to_model).T, right @ to_model
    return Reduction(
        system=system,
        order=order,
        hankel_singular_values=values,
        noise_floor=source.noise_floor,
        unstable_order=unstable,
        numerical_rank=rank,
        left=left,
        right=right,
        method=source.method,
        solver=source.solver,
        residual=source.residual,
        source=source,
        model=model,
    )


def _attained(
    source: BalancedSource, order: int, rank: int, *, by_noise: bool
) -> tuple[int, LinearModel, Array | None, Array | None]:
    """Return the reduced model at an order, or at the largest below it that rounding lets be computed."""
    asked, order = order, min(order, source.largest_order)
    model, left, right = source.truncate(order)
    outside = source.outside(model)
    tried, worst = order, outside
    # states below the noise floor are for those who ask for them; an unstable pole among them is rounding
    least = order
    if source.lowers_order:
        least = source.unstable_order if by_noise else min(order, rank)
    while outside.size and order > least:
        order -= 1
        model, left, right = source.truncate(order)
        outside = source.outside(model)
    if order < asked:
        start = (
            f"{rank} states are above the noise floor {source.noise_floor:.1e}"
            if by_noise
            else f"order {asked} was asked for"
        )
        most = (
            f"the model has only {order} states"
            if order == source.full.n_states
            else f"only {order} states can be told from rounding in double precision"
        )
        reason = (
            f"rounding leaves a pole at {worst[0]:.3g}, outside the stability region, at order {tried}"
            if worst.size
            else most
        )
        warnings.warn(
            f"{start}, but {reason}; the reduced model has order {order}", ReductionWarning, stacklevel=4
        )
    if outside.size:
        warnings.warn(
            f"{source.instability[0]} a pole of the reduced model at {outside[0]:.3g}, outside the stability "
            f"region: {source.instability[1]}; ask for another order",
            ReductionWarning,
            stacklevel=4,
        )
    return order, model, left, right


def _within(reduction: Reduction, level: float) -> Reduction:
    """Return the reduction, or one of higher order where rounding is what keeps the bound above a level."""
    first = reduction
    while reduction.source.certified and reduction.error_bound > level:
        order = reduction.order + 1
        if order > reduction.numerical_rank or (higher := reduction.at(order)).order < order:
            more = "; ask for more of the low-rank factors (accuracy=)"
            advice = more if isinstance(reduction.source, TwoLevel) else ""
            warnings.warn(
                f"the tolerance {level:.3g} is below the rounding of the reduced model's matrices: order "
                f"{first.order} is certified to {first.error_bound:.3g}{advice}",
                ReductionWarning,
                stacklevel=3,
            )
            return first
        reduction = higher
    return reduction
