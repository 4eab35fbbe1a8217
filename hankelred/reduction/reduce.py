"""Model reduction in four steps: Gramian factors, SVD, projection, :class:`Reduction`.

A method of reduction (:mod:`.methods`) is a :class:`.source.ReductionSource`: an object that has the singular
values and computes the reduced model of any order. This module chooses, checks and limits the order for all
methods.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Protocol,
    Self,
    TypeAlias,
    TypedDict,
    Unpack,
    overload,
)

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from .._util.checks import require_finite, require_option
from ..errors import ModelError, OrderError, ReductionWarning, UnstableError, count
from ..gramians.factorize import factorize as factored_system
from ..gramians.factorize import with_user_factors
from ..gramians.stability import STABILITY_TOL, checked_tol, suspected_timebase
from ..models.descriptor import InfinitePart
from ..models.linear_model import LinearModel, Timebase
from ..models.modal import exported
from ..models.pencil import Factorize
from ..models.second_order import SecondOrderModel
from ..models.sparse_model import SparseModel, by_size, dense_model
from .balancing import balance
from .conversion import converted_model
from .interactive import reduction_in_notebook, write_report
from .intermediate import intermediate_model
from .measured_error import region_error
from .methods import BalancedSource, UserFactors, whole_models
from .norms import HINF_RTOL
from .order import check_rule, checked_order, error_bounds, select_order
from .plots import full_size, plot_reduction
from .region import Region, checked_bands, checked_horizon, radians_per_sample
from .source import ReductionSource
from .structure import STRUCTURES, PositionVelocity
from .two_level import TwoLevel
from .variants.catalog import REDUCTION_METHODS, checked_method
from .variants.coprime import Coprime
from .variants.large_limited import LARGE_METHODS, region_of
from .variants.restricted import Restricted
from .variants.stochastic import Stochastic

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Certificate:
    """The accuracy of the singular values of a reduction.

    Attributes
    ----------
    kind : str
        "exact" if both Gramians of the model were factored, so that the values are exact up to rounding;
        "rigorous" if a bound of the error of low-rank factors is proved; "estimate" if it is not, or if the
        values are computed from data, experiments or the user's factors.
    value : float
        Absolute accuracy of the values, in their unit. If the Gramians were factored it is at least the noise
        floor, and larger if the balanced states do not satisfy their equations, as in stiff models and with
        poles near the stability boundary. For estimates it is the noise floor.
    residual : float
        Largest relative residual of the Gramian equations.
    factorizations : int
        Number of sparse factorizations; 0 for dense models.
    """

    kind: str
    value: float
    residual: float
    factorizations: int


if TYPE_CHECKING:
    from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

    ModelT = TypeVar("ModelT", default=Any)
else:
    from typing import TypeVar

    ModelT = TypeVar("ModelT")

ReductionT = TypeVar("ReductionT", bound="Reduction")


class _LikePymor(Protocol):
    def to_abcde_matrices(self) -> Any: ...


class _LikeSippy(Protocol):
    A: Any
    ts: Any


class _LikeNfoursid(Protocol):
    a: Any
    b: Any
    c: Any


#: Models for which a tuple is returned.
Matrices: TypeAlias = (
    tuple[Any, ...] | list[Any] | Mapping[str, Any] | LinearModel | _LikePymor | _LikeSippy | _LikeNfoursid
)


@dataclass(frozen=True, eq=False)
class Reduction(Generic[ModelT]):
    """A reduced model with its singular values, error bound and certificate.

    Attributes
    ----------
    system : model
        The reduced model, with the type, dt and names of the full model.
    order : int
        Its number of states, including ``unstable_order``.
    hankel_singular_values : ndarray, shape (n,)
        Of the full model: descending, ``inf`` first for unstable and marginal poles.
    error_bound : float
        Upper bound, together with ``noise_floor``, of the gain of (full minus reduced) at all frequencies:
        twice the sum of the distinct removed singular values, plus the effect of the rounding of the returned
        matrices, which depends on the order and is visible where a pole is near the stability boundary. What
        the conversion of the reduced state space to polynomials, zeros and poles or modal form changes is
        measured and included; where unstable or marginal poles are kept it is not, and may be 1e-6 of the
        largest response before there is a warning. The conversion of a full transfer function or descriptor
        model to a state space rounds the data by a few units in the last digit, which is not included (for
        a :class:`SecondOrderModel` it is). inf if no bound is known (empirical Gramians, models estimated
        from data) or the reduced model is unstable.
    certificate : Certificate
        The accuracy of the singular values: ``kind``, ``value``, ``residual``, ``factorizations``.
    noise_floor : float
        At least n eps times the largest singular value, and more where doubling (solver "smith") loses more.
        Values up to it are meaningless for the choice of an order.
    unstable_order : int
        Number of states of unstable and marginal poles, which are not reduced.
    numerical_rank : int
        Number of singular values above the noise floor. A requested order may be larger, as long as it can be
        computed.
    left, right : ndarray, shape (n, order), or None
        The projection: ``A_r = left.T @ A @ right`` and ``left.T @ right = 1``; for a model with a fifth
        matrix E, A is E^-1 A, and if that is singular ``left.T @ E @ right = 1`` instead. None for methods
        that are not projections.
    method : str
        "truncation", "residualization", or the method of estimation from data.
    solver : str
        The Gramian solver: "smith", "hammarling" or "cauchy", see the page on solvers in the docs; "given"
        for the user's factors, "empirical" for empirical Gramians, "svd" and "qr" for models from data.
    residual : float
        Largest relative residual of the Gramian equations with the computed factors.
    """

    system: ModelT
    order: int
    left: Array | None
    right: Array | None
    source: ReductionSource
    #: the reduced LinearModel; None where a simulator was reduced
    model: Any

    @property
    def hankel_singular_values(self) -> Array:
        """Hankel singular values of the full model."""
        return self.source.hankel_singular_values

    @property
    def noise_floor(self) -> float:
        """Size up to which singular values are meaningless for the choice of an order."""
        return self.source.noise_floor

    @property
    def unstable_order(self) -> int:
        """Number of states of unstable and marginal poles."""
        return self.source.unstable_order

    @property
    def numerical_rank(self) -> int:
        """Number of singular values above the noise floor."""
        return numerical_rank(self.source)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.source.method

    @property
    def solver(self) -> str:
        """Name of the Gramian solver."""
        return self.source.solver

    @property
    def residual(self) -> float:
        """Largest relative residual of the Gramian equations."""
        return self.source.residual

    @cached_property
    def error_bound(self) -> float:
        """Upper bound of the gain of (full minus reduced); computed at the first access."""
        bound = float(error_bounds(self.hankel_singular_values)[self.order])
        conversion = float(getattr(self.source, "conversion_error", 0.0))
        certified = self.source.certified_bound(bound, self.model) + conversion
        return certified + self._conversion_loss if math.isfinite(certified) else certified

    @cached_property
    def _converted(self) -> LinearModel | None:
        """The state space of what was handed out, if that is polynomials, zeros and poles or modes.

        None with kept poles: rounding moves these, and the difference has no finite gain.
        """
        if self.model is None or self.unstable_order or not isinstance(self.source, BalancedSource):
            return None
        return converted_model(self.model, self.system)

    @cached_property
    def _conversion_loss(self) -> float:
        if self._converted is None or not isinstance(self.source, BalancedSource):
            return 0.0
        return self.source.conversion_loss(self.model, self._converted)

    @property
    def error_uncertainty(self) -> float:
        """Upper bound of the distance of :meth:`error` from the true error; 0 except for large models.

        Large sparse models are reduced in two levels, and errors are measured from the model between. Proved
        if the certificate is "rigorous". The error bound includes it.
        """
        return float(getattr(self.source, "error_uncertainty", 0.0))

    @property
    def relative_error_bound(self) -> float:
        """Bound of the relative error by method="stochastic"; inf where no theorem holds.

        Up to rounding, at no frequency is the gain of (full minus reduced), divided by the full model,
        larger. With a regularization that counts as a part of the full model.
        """
        source = self.source
        return source.relative_error_bound(self.order) if isinstance(source, Stochastic) else math.inf

    @property
    def gap_bound(self) -> float:
        """Bound of the gap between full and reduced model by method="coprime"; inf where no theorem holds."""
        source = self.source
        return source.gap_bound(self.order) if isinstance(source, Coprime) else math.inf

    @property
    def finite_order(self) -> int:
        """Number of finite poles of the full model: all of them, unless its E is singular."""
        if isinstance(self.source, TwoLevel):
            large = self.source.intermediate.large
            return large.n_states if large.finite_order is None else large.finite_order
        infinite = self._infinite
        return self.hankel_singular_values.size if infinite is None else int(infinite.right.shape[1])

    @property
    def improper(self) -> list[Array]:
        """D_1, D_2, ... of the polynomial s D_1 + s^2 D_2 + ... that is kept; empty for proper models."""
        infinite = self._infinite
        return [] if infinite is None else list(infinite.improper)

    @property
    def infinite_gap(self) -> float:
        """How clearly infinite poles were told from finite ones; inf for models without infinite poles.

        The smallest quotient, in all decisions on ranks, of a singular value that counted and one that did
        not, or of rounding where that is larger. Below 50 the model is refused. inf for large sparse models
        too, in which infinite poles are those of rows and columns of zeros.
        """
        infinite = self._infinite
        return math.inf if infinite is None else infinite.gap

    @property
    def _infinite(self) -> InfinitePart | None:
        return None if self.model is None else getattr(self.model, "infinite", None)

    @property
    def balanced_by(self) -> str:
        """Which of the Gramians that a method compares were balanced; empty where it compares none."""
        source = self.source
        return source.balanced(self.order) if isinstance(source, Restricted) else ""

    @property
    def certificate(self) -> Certificate:
        """Accuracy of the singular values; see :class:`hankelred.reduction.reduce.Certificate`."""
        source = self.source
        if isinstance(source, TwoLevel):
            return Certificate(source.kind, source.accuracy, self.residual, source.factorizations)
        if isinstance(source, BalancedSource) and source.certified:
            return Certificate("exact", source.accuracy, self.residual, 0)
        return Certificate("estimate", self.noise_floor, self.residual, 0)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {count(full_size(self), 'state')} to order {self.order} by "
            f"{self.method}: error bound {self.error_bound:.3g}, solver {self.solver}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        # python-control's StateSpace cannot be pickled, so the internal form of the reduced model is pickled
        state = dict(self.__dict__)
        if self.model is not None:
            del state["system"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "system" not in state:
            state = {**state, "system": state["model"].to_user()}
        self.__dict__.update(state)

    def at(self, order: int) -> Self:
        """Return the reduction to another order from the same factors.

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
        return make_reduction(self.source, order, type(self))

    def error(
        self,
        norm: Literal["hinf", "h2", "hankel"] | None = None,
        *,
        band: Any = None,
        horizon: float | None = None,
        weighted: bool = False,
        return_frequency: bool = False,
    ) -> Any:
        """Return the error, a norm of the full model minus the reduced one.

        The reduced model is what was handed out: where polynomials, zeros and poles or modes do not have the
        response of the reduced state space, the difference is part of the error, unless unstable or marginal
        poles were kept.

        Parameters
        ----------
        norm : {"hinf", "h2", "hankel"}, optional
            "hinf", the default: largest gain of the difference over all frequencies, computed by level sets
            to a relative accuracy of 1e-6, or to the rounding of the two gains that are subtracted. "h2":
            square root of the energy of the difference of the impulse responses; inf in continuous time if
            the direct terms differ. "hankel": largest Hankel singular value of the difference.
        band : (w1, w2) or list of such pairs, optional
            Count these angular frequencies only (rad/s; radians per sample where the step is unspecified):
            the largest gain, or with "h2" the root of the energy, in them.
        horizon : float, optional
            Count the time from an impulse to this one only (seconds, or samples where the step is
            unspecified): the L2 norm of the difference of the impulse responses. The norm is "h2" then.
        weighted : bool
            Between the weights of ``method="frequency_weighted"``.
        return_frequency : bool
            Return also the angular frequency where the largest gain is ("hinf" only).

        Returns
        -------
        float, or (float, float) with ``return_frequency=True``

        Raises
        ------
        ModelError
            Unknown norm, arguments that cannot be combined, or the reduction of a simulator, for which there
            is no model to compare.

        Examples
        --------
        >>> import numpy as np, hankelred
        >>> A = np.diag([-1.0, -2.0, -50.0]); B = np.ones((3, 1)); C = np.array([[1.0, -2.0, 5.0]])
        >>> reduction = hankelred.reduce((A, B, C, 0), order=2)
        >>> bool(reduction.error() > reduction.error(band=(2, 5)) > 0)
        True
        """
        norm = ("hinf" if horizon is None else "h2") if norm is None else norm
        region = self._region(norm, band, horizon, weighted)
        if return_frequency and norm != "hinf":
            raise ModelError(f"return_frequency=True needs norm='hinf', got {norm!r}")
        converted = self._converted_where_it_shows(norm)
        if region is None and not return_frequency:
            return self._error_everywhere(converted, norm)
        value, at = error_in(self.source, converted or self.model, region or Region(), norm)
        if not return_frequency:
            return value
        if region is None:
            value = self._error_everywhere(converted, norm)
        return value, at / radians_per_sample(self.model)

    def _error_everywhere(self, converted: LinearModel | None, norm: str) -> float:
        if norm == "hankel":
            # where full and reduced nearly cancel, the largest gain, its upper limit, is more accurate
            return min(self._norm_of_error(converted, norm), self._norm_of_error(converted, "hinf"))
        return self._norm_of_error(converted, norm)

    def _norm_of_error(self, converted: LinearModel | None, norm: str) -> float:
        if converted is not None and isinstance(self.source, BalancedSource):
            return self.source.error_without_balancing(converted, norm)
        return self.source.error(self.model, norm)

    def _converted_where_it_shows(self, norm: str) -> LinearModel | None:
        """Return what the reduced model was converted to; None where that is no part of the error.

        The state space itself, in balanced states, is compared more accurately.
        """
        if self._converted is None or self._conversion_loss <= HINF_RTOL * self.source.error(
            self.model, "hinf"
        ):
            return None
        if norm == "h2" and not self._converted.is_discrete:
            # a direct term that differs by rounding has infinite energy
            return replace(self._converted, D=self.model.D)
        return self._converted

    def _region(self, norm: Any, band: Any, horizon: Any, weighted: Any) -> Region | None:
        """Check the arguments of :meth:`error`; return where the error counts, None for everywhere."""
        require_option(norm, ("hinf", "h2", "hankel"), "norm", ModelError)
        if self.model is None:
            raise ModelError(
                "the reduction is that of a simulator: there is no model to compare, so simulate both"
            )
        if band is not None and horizon is not None:
            raise ModelError("give band= or horizon=, not both: an error counts in frequencies or in time")
        if horizon is not None and norm != "h2":
            raise ModelError(f"horizon= needs norm='h2', the L2 norm of the impulse response, got {norm!r}")
        if norm == "hankel" and (band is not None or weighted):
            raise ModelError("the Hankel norm has no band and no weight; leave out band= and weighted=")
        bands = None if band is None else checked_bands(band, self.model)
        time = None if horizon is None else checked_horizon(horizon, self.model)
        if not weighted:
            return None if bands is None and time is None else Region(bands, time)
        region_of_method = getattr(self.source, "region", Region())
        if not region_of_method.weighted:
            raise ModelError(
                f"weighted=True needs the weights of method='frequency_weighted', got method={self.method!r}"
            )
        return Region(bands, time, region_of_method.input_weight, region_of_method.output_weight)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Plot the gains of full, reduced, error and the bound; see :func:`plot_reduction`."""
        return plot_reduction(self, ax=ax)

    def report(self, path: str | Path) -> None:
        """Write a page for the browser: spectrum, responses, certificate, and a slider for the order.

        The page holds all its data and scripts, so it works without a network and can be sent as one file.

        Parameters
        ----------
        path : str or Path
            Of the HTML file, ending in .html or .htm; written as a whole or not at all.

        Raises
        ------
        ModelError
            The reduction of a simulator, which has no frequency response.
        FileFormatError
            The name has another ending, or the file cannot be written.

        Examples
        --------
        >>> import numpy as np, hankelred, tempfile, pathlib
        >>> A = np.diag([-1.0, -2.0, -50.0]); B = np.ones((3, 1)); C = np.ones((1, 3))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.html"
        >>> hankelred.reduce((A, B, C, 0), order=1).report(path)
        >>> path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
        True
        """
        write_report(self, path)

    def _repr_html_(self) -> str:
        """Return the table and the small spectrum that a notebook shows."""
        return reduction_in_notebook(self)


class Options(TypedDict, total=False):
    """The keyword arguments of :func:`reduce`."""

    tol: float | None
    rtol: float | None
    energy: float | None
    gap: bool
    method: str
    band: Any
    horizon: float | None
    input_weight: Any
    output_weight: Any
    weighting: str | None
    regularization: float | None
    controllability_factor: npt.ArrayLike | None
    observability_factor: npt.ArrayLike | None
    dt: Timebase
    stability_tol: float
    solver: Literal["auto", "dense", "low_rank"]
    accuracy: float | None
    factorize: Factorize | None
    structure: Literal["first_order", "second_order"]


@overload
def reduce(
    sys: Matrices, order: int | None = None, **options: Unpack[Options]
) -> Reduction[tuple[Array, ...]]: ...
@overload
def reduce(
    sys: Matrices, order: Sequence[int], **options: Unpack[Options]
) -> list[Reduction[tuple[Array, ...]]]: ...
@overload
def reduce(
    sys: SecondOrderModel, order: int | None = None, **options: Unpack[Options]
) -> Reduction[tuple[Array, ...] | SecondOrderModel]: ...
@overload
def reduce(
    sys: SecondOrderModel, order: Sequence[int], **options: Unpack[Options]
) -> list[Reduction[tuple[Array, ...] | SecondOrderModel]]: ...
@overload
def reduce(sys: ModelT, order: int | None = None, **options: Unpack[Options]) -> Reduction[ModelT]: ...
@overload
def reduce(sys: ModelT, order: Sequence[int], **options: Unpack[Options]) -> list[Reduction[ModelT]]: ...
def reduce(
    sys: Any,
    order: int | Sequence[int] | None = None,
    *,
    tol: float | None = None,
    rtol: float | None = None,
    energy: float | None = None,
    gap: bool = False,
    method: str = "truncation",
    band: Any = None,
    horizon: float | None = None,
    input_weight: Any = None,
    output_weight: Any = None,
    weighting: str | None = None,
    regularization: float | None = None,
    controllability_factor: npt.ArrayLike | None = None,
    observability_factor: npt.ArrayLike | None = None,
    dt: Timebase = 0,
    stability_tol: float = STABILITY_TOL,
    solver: Literal["auto", "dense", "low_rank"] = "auto",
    accuracy: float | None = None,
    factorize: Factorize | None = None,
    structure: Literal["first_order", "second_order"] = "first_order",
) -> Reduction | list[Reduction]:
    """Reduce a model by balancing, with a certificate of the error.

    Parameters
    ----------
    sys : model
        As in :func:`hankel_singular_values`. Unstable and marginal poles are separated and not reduced.
    order : int or list of int, optional
        Number of states of the reduced model, including those of unstable and marginal poles. An order above
        the number of states that exceed rounding errors is lowered to it, with a warning. For a list of
        orders the result is a list of reductions, from the same factors.
    tol : float, optional
        Use the smallest order whose error bound, including rounding, is at most this (unit: output per
        input).
    rtol : float, optional
        The same with ``rtol`` times the largest finite Hankel singular value.
    energy : float in (0, 1], optional
        Use the smallest order whose singular values have at least this share of the sum of all finite ones.
    gap : bool
        Truncate at the largest ratio of neighboring singular values above the noise floor. Without ``order``
        and any of these rules, all states above the noise floor are retained, except where rounding would
        give the reduced model an unstable pole that the full model does not have.
    method : str
        "truncation" is exact at high frequency (continuous time), "residualization" (or "matchdc") at
        frequency zero. Both have the same error bound. "frequency_limited" aims at a small error in a band of
        frequencies, "time_limited" up to a horizon, "frequency_weighted" with weights. These three have no
        error bound (``error_bound`` is inf), so ``tol`` and ``rtol`` refer to the measured error
        ``error(band=)``, ``error(horizon=)`` or ``error(weighted=True)``, and ``rtol`` is relative to the
        same norm of the full model. If such a model were unstable or less accurate than plain truncation, a
        different one is returned, with a warning; see ``balanced_by``.
        "hankel_norm" gives the smallest possible Hankel norm of the error, the first truncated singular
        value. "stochastic" bounds the relative error (``relative_error_bound``), "coprime" reduces unstable
        plants by their normalized coprime factors (``gap_bound``), "positive_real" and "bounded_real"
        preserve passivity, and "modal" keeps the poles with the largest contribution to the gain.
    band : (w1, w2) or list of such pairs
        For "frequency_limited": angular frequencies in rad/s, or radians per sample if the step is
        unspecified; w2 = inf is allowed in continuous time.
    horizon : float
        For "time_limited": seconds, or samples if the step is unspecified.
    input_weight, output_weight : model
        For "frequency_weighted", at least one: the measured error is ``output_weight * error *
        input_weight``. Unstable weights are replaced by stable ones with the same gain.
    weighting : {"best", "enns", "lin_chiu"}
        For "frequency_weighted": the choice of the weighted Gramians. "best", the default, returns the model
        with the smallest measured error. Its candidates are balanced by these and by the plain Gramians, each
        by truncation and by residualization, in which case ``left`` and ``right`` are None.
    regularization : float
        For "stochastic": the gain below which errors are measured absolutely; required if D does not have
        full row rank. If it is too small, the Riccati equation cannot be solved, and an error is raised.
    controllability_factor, observability_factor : array_like, shape (n, k), optional
        L with W = L L^H, to balance with these Gramians instead of the model's own: for example those of the
        states that real inputs excite (:class:`GramianEstimator`, :func:`gramian_factor`), or of weighted
        outputs. No bound is known (``error_bound`` is inf; ``tol`` and the other rules use the singular
        values of these factors), and stability is not guaranteed. In the states of ``sys``; for a
        :class:`ModalSystem` these are its modes. With "truncation" only.
    dt : 0, True, float or None
        Timebase of a tuple.
    stability_tol : float
        Poles nearer to the stability boundary than this, relative to the size of A, count as
        marginal and are not reduced.
    solver, accuracy, factorize
        As in :func:`hankel_singular_values`, for large sparse models. These are reduced in two steps: to an
        intermediate model of all states that the low-rank factors resolve, about a hundred, and from there
        like any other model. ``error_bound`` includes the error of the intermediate model.
    structure : {"first_order", "second_order"}
        The type of the result for a :class:`SecondOrderModel`: a state space as a tuple, or a second-order
        model, by position-velocity balancing (Reis and Stykel 2008). That preserves the second-order form
        only: it has no error bound, and needs an even ``order`` instead of a rule.

    Returns
    -------
    Reduction

    Raises
    ------
    OrderError
        An order that is not a whole number >= 0, or below the number of unstable poles; a tolerance that is
        not positive; more than one rule.
    ModelError
        The model cannot be used, the method is unknown, or a factor has a wrong shape.
    ConvergenceError
        No solver reached its accuracy.

    Warns
    -----
    ReductionWarning
        The order was lowered to the largest that can be computed; rounding (or the user's factor) left an
        unstable pole in the reduced model; a tolerance is below the rounding of the matrices, or is not
        reached by any order; a method would have given an unstable model, or a worse one than plain
        truncation; an optimum was not reached because of rounding.

    Notes
    -----
    Square-root balanced truncation: Moore (1981); Tombs and Postlethwaite, Int. J. Control 46 (1987).
    Residualization: Liu and Anderson, Int. J. Control 50 (1989). Bound: Enns (1984), Glover (1984);
    discrete time: Hinrichsen and Pritchard, Linear Algebra Appl. 122 (1989). The model's matrices are
    projected with twice the digits where rounding would not be negligible: Ozaki and others, Numer.
    Algorithms 59 (2012). Bands and horizons: Gawronski and Juang, Int. J. Systems Sci. 21 (1990). Weights:
    Enns (1984); Lin and Chiu, Control Theory Adv. Technol. 8 (1992).

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

    Balancing with the Gramian of recorded states:

    >>> states = hankelred.GramianEstimator(3)
    >>> states.update(np.random.default_rng(0).standard_normal((3, 500)) * [[1.0], [0.1], [1e-3]])
    >>> weighted = hankelred.reduce((A, B, C, 0), 1, controllability_factor=states.factor())
    >>> weighted.error_bound
    inf
    """
    name, options = checked_method(
        method,
        {
            "band": band,
            "horizon": horizon,
            "input_weight": input_weight,
            "output_weight": output_weight,
            "weighting": weighting,
            "regularization": regularization,
        },
    )
    several = isinstance(order, list | tuple | range | np.ndarray) and np.ndim(order) == 1
    orders: list[Any] = list(order) if several else [order]  # type: ignore[arg-type]
    if not orders:
        raise OrderError("order is an empty list: give one order or more")
    for one in orders:
        rule = checked_choice(one, tol=tol, rtol=rtol, energy=energy, gap=gap)
    margin = checked_tol(stability_tol)
    factors_by_name = {
        "controllability_factor": controllability_factor,
        "observability_factor": observability_factor,
    }
    factors = {key: L for key, L in factors_by_name.items() if L is not None}
    require_option(structure, STRUCTURES, "structure", ModelError)
    if structure == "second_order":
        second_order = _checked_second_order(sys, name, rule_or_factors=order is None or bool(factors))
        of_structure = PositionVelocity(second_order, solver, accuracy, factorize, margin)
        structured: list[Reduction] = [make_reduction(of_structure, one) for one in orders]
        return structured if several else structured[0]

    def of_large(large: SparseModel) -> BalancedSource:
        if name not in LARGE_METHODS:
            raise ModelError(
                f"method={name!r} is for dense models; the methods for large sparse models are "
                f"{', '.join(LARGE_METHODS)}: use one of these, or with enough memory solver='dense'"
            )
        region_of(large, **options)  # refuses wrong arguments before the Gramians are computed
        return LARGE_METHODS[name](intermediate_model(large, accuracy, factorize, margin), **options)

    def of_dense(model: LinearModel) -> BalancedSource:
        entry = REDUCTION_METHODS[name]
        if entry.needs_proper:
            model.require_proper(entry.needs_proper)
        source = entry.make(model, margin, **options)
        source.second_order = sys if isinstance(sys, SecondOrderModel) else None
        return source

    if factors:
        source = _with_user_factors(dense_model(sys, dt, solver), name, factors, margin)
    else:
        source = by_size(sys, dt, solver, of_large, of_dense)
    reductions = []
    for one in orders:
        measured = source.order_within(tol, rtol)
        chosen = chosen_order(source, one, rule) if measured is None else measured
        is_default = one is None and not any(rule.values())
        reduction: Reduction = make_reduction(source, chosen, is_default=is_default)
        if tol is not None or rtol is not None:
            within = _raise_order if measured is None else _within_measured
            reduction = within(reduction, source.tolerance(tol, rtol))
        reductions.append(reduction)
    return reductions if several else reductions[0]


def _checked_second_order(sys: Any, method: str, *, rule_or_factors: bool) -> SecondOrderModel:
    """Return the model of which the second-order form is to be preserved."""
    if not isinstance(sys, SecondOrderModel):
        raise ModelError(f"structure='second_order' is for a SecondOrderModel, got {type(sys).__name__}")
    if rule_or_factors or method != "truncation":
        raise ModelError(
            "structure='second_order' takes an order and method='truncation': no bound is known from "
            "which a rule could choose"
        )
    return sys


def _with_user_factors(
    model: LinearModel, method: str, factors: dict[str, npt.ArrayLike], stability_tol: float
) -> BalancedSource:
    """Return the form of a dense model that is balanced by the user's factors of one or both Gramians."""
    checked = {name: checked_factor(L, name, model.n_all_states) for name, L in factors.items()}
    if method != "truncation":
        raise ModelError(f"{next(iter(factors))} is for method='truncation' only, got method={method!r}")
    if model.infinite is not None:  # from all states of the model to the finite ones
        infinite = model.infinite
        maps = {"controllability_factor": infinite.coordinates.T, "observability_factor": infinite.right.T}
        checked = {name: maps[name] @ L for name, L in checked.items()}
    factored = factored_system(model, stability_tol)
    Lc, Lo = checked.get("controllability_factor"), checked.get("observability_factor")
    return UserFactors(model, balance(with_user_factors(factored, Lc, Lo)))


def checked_factor(L: npt.ArrayLike, name: str, n: int) -> Array:
    """Return the user's Gramian factor as a finite (n, k) array."""
    try:
        factor = np.asarray(L, dtype=complex if np.iscomplexobj(L) else float)
    except (TypeError, ValueError):
        raise ModelError(f"{name} must be a numeric array") from None
    if factor.ndim != 2 or factor.shape[0] != n:
        raise ModelError(f"{name} must have a row for each of the {n} states, got shape {factor.shape}")
    require_finite(factor, name, ModelError)
    return factor


def checked_choice(order: Any, **rule: Any) -> dict[str, Any]:
    """Check an order and the rules for its choice before any work is done; return the rules."""
    check_rule(**rule)
    if order is not None:
        checked_order(order)
        chosen_rules = [
            f"{name}={value}" for name, value in rule.items() if value is not None and value is not False
        ]
        if chosen_rules:
            raise OrderError(
                f"give the order or a rule to choose it, not both: got order={order} and {chosen_rules[0]}"
            )
    return rule


def chosen_order(source: ReductionSource, order: int | None, rule: dict[str, Any]) -> int:
    """Return the order, or the choice of the rule from the source's singular values."""
    if order is not None:
        return order
    return select_order(source.hankel_singular_values, noise_floor=source.noise_floor, **rule)


def numerical_rank(source: ReductionSource) -> int:
    """Return the number of singular values above the noise floor."""
    unstable = source.unstable_order
    return unstable + int(np.count_nonzero(source.hankel_singular_values[unstable:] > source.noise_floor))


def make_reduction(
    source: ReductionSource,
    order: int,
    result_type: type[ReductionT] = Reduction,  # type: ignore[assignment]
    *,
    is_default: bool = False,
) -> ReductionT:
    """Return the reduction to an order; refuse an order that is too small, lower one that is too large.

    ``is_default`` means that the user chose no order: all states above the noise floor are retained.
    """
    order = checked_order(order)
    unstable, rank = source.unstable_order, numerical_rank(source)
    if order < unstable:
        full = source.full
        advice = suspected_timebase(np.linalg.eigvals(full.A), discrete=full.is_discrete) if full else ""
        raise OrderError(
            f"order {order} is below the {unstable} unstable or marginal pole(s), which are kept; the "
            f"least order possible is {unstable}{advice}"
        )
    model: LinearModel | None
    if isinstance(source, BalancedSource):
        order, model, left, right = _truncate_computable(source, order, rank, is_default=is_default)
        if text := source.warning_text(order):
            warnings.warn(text, ReductionWarning, stacklevel=3)
    else:
        if order > rank:
            warnings.warn(
                f"order {order} was requested, but only {rank} Hankel singular values are above the noise "
                f"floor {source.noise_floor:.1e}; the reduced model has order {rank}",
                ReductionWarning,
                stacklevel=3,
            )
            order = rank
        model, left, right = source.truncate(order)
    system = None
    if model is not None:
        system, left, right = exported(model, left, right)
    return result_type(system=system, order=order, left=left, right=right, source=source, model=model)


def _truncate_computable(
    source: BalancedSource, order: int, rank: int, *, is_default: bool
) -> tuple[int, LinearModel, Array | None, Array | None]:
    """Return the reduced model of an order, or of the largest lower order that can be computed."""
    requested, (order, reason) = order, source.attainable(order)
    model, left, right = source.truncate(order)
    unstable = source.unstable_poles_of(model)
    first_order, first_unstable = order, unstable
    # states below the noise floor are used only on request; an unstable pole among them is a rounding error
    lowest = order
    if source.may_lower_order:
        lowest = source.unstable_order if is_default else min(order, rank)
    while unstable.size and order > lowest:
        order -= 1
        model, left, right = source.truncate(order)
        unstable = source.unstable_poles_of(model)
    if order < requested:
        request = (
            f"{rank} states are above the noise floor {source.noise_floor:.1e}"
            if is_default
            else f"order {requested} was requested"
        )
        limit = (
            f"the model has only {count(order, 'state')}"
            if order == source.full.n_states
            else f"the rounding errors of double precision leave only {count(order, 'state')}"
        )
        reason = (
            f"rounding leaves a pole at {first_unstable[0]:.3g}, outside the stability region, at order "
            f"{first_order}"
            if first_unstable.size
            else reason or limit
        )
        warnings.warn(
            f"{request}, but {reason}; the reduced model has order {order}", ReductionWarning, stacklevel=4
        )
    if unstable.size and source.never_unstable:
        raise UnstableError(
            f"no stable model of order {order} was found by {source.method}: a pole is at "
            f"{unstable[0]:.3g}; ask for another order"
        )
    if unstable.size:
        warnings.warn(
            f"{source.instability[0]} a pole of the reduced model at {unstable[0]:.3g}, outside the "
            f"stability region: {source.instability[1]}; choose another order",
            ReductionWarning,
            stacklevel=4,
        )
    return order, model, left, right


def error_in(source: ReductionSource, reduced: LinearModel, region: Region, norm: str) -> tuple[float, float]:
    """Return the norm of full minus reduced in a region, and the frequency per sample of the largest gain."""
    if isinstance(source, BalancedSource):
        if source.unstable_poles_of(reduced).size and region.bands is None and region.horizon is None:
            return math.inf, math.nan
        full, other, unit = source.compared(reduced)
    elif source.full is None:
        raise ModelError("there is no full model to compare with: the reduced one was made from data")
    else:
        full, other, unit = whole_models(source.full, reduced)
    value, at = region_error(full, other, region, norm, discrete=reduced.is_discrete)
    return float(unit * value), at


def _within_measured(reduction: Reduction, level: float) -> Reduction:
    """Return the reduction to an order chosen by a measured error; warn where that is too large."""
    source = reduction.source
    reached = source.level(reduction.order) if isinstance(source, BalancedSource) else math.inf
    if reached > level:
        warnings.warn(
            f"no order reaches the tolerance {level:.3g}: at order {reduction.order} the error is "
            f"{reached:.3g}",
            ReductionWarning,
            stacklevel=3,
        )
    return reduction


def _raise_order(reduction: Reduction, level: float) -> Reduction:
    """Return the reduction, or one of higher order if rounding alone makes its bound exceed a level."""
    initial = reduction
    while reduction.source.certified and reduction.error_bound > level:
        order = reduction.order + 1
        if order > reduction.numerical_rank or (higher := reduction.at(order)).order < order:
            more = "; ask for more of the low-rank factors (accuracy=)"
            advice = more if isinstance(reduction.source, TwoLevel) else ""
            warnings.warn(
                f"the tolerance {level:.3g} is below the rounding of the reduced model's matrices: order "
                f"{initial.order} is certified to {initial.error_bound:.3g}{advice}",
                ReductionWarning,
                stacklevel=3,
            )
            return initial
        reduction = higher
    return reduction
