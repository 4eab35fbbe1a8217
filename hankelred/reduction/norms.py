"""H2, H-infinity and Hankel norms of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.linalg.lapack import dtrsyl

from .._util.arrays import EPS, Array, Quadruple, schur_poles
from .._util.checks import require_option
from .._util.poles import distance_to_boundary, frequencies_of, slowest_poles
from .._util.schur import is_quasi_triangular, schur_form
from ..errors import ConvergenceError, ModelError
from ..gramians.factorize import RATE_LIMITS, FactoredSystem
from ..gramians.factorize import factorize as factored_system
from ..gramians.hammarling import hammarling_factors
from ..gramians.limited import Bands
from ..gramians.stability import STABILITY_TOL, checked_tol, is_unstable_pole, matrix_size
from ..models.frequency_response import DifferenceResponse, FrequencyResponse, largest_singular_value
from ..models.linear_model import LinearModel, Timebase
from ..models.pencil import Factorize
from ..models.projection import project
from ..models.scaling import SAFE_EXPONENT, gain_exponent, in_range, scale_system, times_power_of_two
from ..models.sparse_model import SparseModel, by_size
from .balancing import Balancing, assemble_model, balance, singular_values
from .intermediate import IntermediateModel, intermediate_model, residual_systems, sampled_distance
from .order import order_of_negligible_tail
from .rounding.refined_response import refined_response

#: Relative accuracy of the H-infinity norm: no frequency has a gain above (1 + this) times it.
HINF_RTOL = 1e-6
#: Levels of a search, which ends after two or three unless rounding hides the peak.
MAX_LEVELS = 60
#: States of which the gain is less than this fraction of the largest singular value are left out of its
#: search.
NEGLIGIBLE_TAIL = 1e-8
#: Local maxima of a grid that are refined, the gain from which on, relative to the largest, and how often the
#: bracket of each is divided into how many parts, of which two remain. Where many gains cost little there are
#: more parts.
MAX_PEAKS = 4
LOW_PEAK = 0.5
ZOOM_STEPS, ZOOM_PARTS = 7, 8
CHEAP_STEPS, CHEAP_PARTS = 4, 16
#: Largest estimated error of gains from partial fractions, relative to the largest gain, far below HINF_RTOL.
CHEAP_RTOL = 1e-8
#: Two systems are subtracted where that changes the largest gain by no more than this share, by an estimate.
SUBTRACTED_RTOL = 0.1 * HINF_RTOL
#: With several inputs and outputs, and fewer balanced states than this share, the search on these is faster.
MANY_STATES = 0.9
#: Squares of poles locate peaks if their rounding, of this size for each state relative to the square of the
#: size of A, is a small share of the width of every peak.
ROUNDING_OF_SQUARES = EPS
SHARE_OF_WIDTH = 1e-2
#: Squares of poles are used only if they give the square of the gain up to this, relative to its largest
#: value. Rounding that moves a pole by SHARE_OF_WIDTH of its width changes the gain by a few times as much.
AGREEMENT = 0.1
#: A level nearer to a singular value of D than this, relatively, is not tested, but one beside it.
SINGULAR_LEVEL = 1e-2 * HINF_RTOL
#: Number of slowest poles at which the gain of a model is compared with that of its balanced states.
SLOWEST_POLES = 40
#: Number of slowest poles at which the difference of two models is evaluated with more digits.
CRITICAL_POLES = 8
#: Nearer to the stability boundary than this, relatively, a pole has a peak that rounding moves visibly: in a
#: stiff chain with a damping of 4e-4 the gain at the pole itself was a quarter of that beside it.
NARROW = 1e-3


#: MATLAB's names of the norms.
NUMBERS = {2: "h2", math.inf: "hinf"}
KINDS = ("h2", "hinf", "hankel", "linf")


def norm(
    sys: Any,
    kind: Literal["h2", "hinf", "hankel", "linf"] | float = "h2",
    *,
    return_frequency: bool = False,
    dt: Timebase = 0,
    stability_tol: float = STABILITY_TOL,
    solver: Literal["auto", "dense", "low_rank"] = "auto",
    accuracy: float | None = None,
    factorize: Factorize | None = None,
) -> Any:
    """Return a norm of a model.

    Parameters
    ----------
    sys : model
        As in :func:`hankel_singular_values`.
    kind : {"h2", "hinf", "hankel", "linf", 2, inf}
        "h2" or 2: root of the energy of the impulse response; inf for an unstable model or a continuous one
        with D != 0. "hinf" or inf: largest gain over all frequencies; inf with a pole on or beyond the
        stability boundary. "linf": largest gain over all frequencies of a model that may be unstable; inf
        with a pole on the boundary. "hankel": largest Hankel singular value. For an improper model
        (singular E) the Hankel norm is that of the proper part, and all other norms are inf.
    return_frequency : bool
        Return also the angular frequency of the largest gain ("hinf" and "linf" only), in rad/s, or radians
        per sample where the step is unspecified: inf where it is the direct term of a continuous model, NaN
        where an unstable model has no H-infinity norm.
    dt : 0, True, float or None
        Timebase of a tuple.
    stability_tol : float
        Poles nearer to the boundary than this, relative to the size of A, count as marginal.
    solver, accuracy, factorize
        As in :func:`hankel_singular_values`, for large sparse models.

    Returns
    -------
    float, or (float, float) with ``return_frequency=True``
        The H-infinity norm is a gain of the model at some frequency, and the gain at any other frequency
        exceeds it by at most 1e-6 of it.

    Raises
    ------
    ModelError
        Unknown kind, or a model that cannot be used.

    Notes
    -----
    H-infinity: level sets computed from the eigenvalues of a Hamiltonian matrix, which cannot miss a narrow
    peak as a grid can (Bruinsma and Steinbuch, Syst. Control Lett. 14 (1990)).

    Examples
    --------
    >>> import hankelred
    >>> sys = ([[-1.0]], [[1.0]], [[2.0]], 0)
    >>> [round(hankelred.norm(sys, kind), 6) for kind in ("h2", "hinf", "hankel")]
    [1.414214, 2.0, 1.0]

    An unstable model has a largest gain too, here at frequency zero:

    >>> hankelred.norm(([[1.0]], [[1.0]], [[2.0]], 0), "linf", return_frequency=True)
    (2.0, 0.0)
    """
    if not isinstance(kind, str | bool | np.ndarray) and np.isscalar(kind):
        kind = NUMBERS.get(kind, kind)  # type: ignore[call-overload]
    name = require_option(kind, KINDS, "kind", ModelError)
    if return_frequency and name not in ("hinf", "linf"):
        raise ModelError(f"return_frequency=True needs kind='hinf' or 'linf', got {kind!r}")
    tol = checked_tol(stability_tol)

    def of_large(large: SparseModel) -> float:
        if name == "linf" or return_frequency:
            raise ModelError("kind='linf' and return_frequency=True are for dense models")
        return _norm_of_large(intermediate_model(large, accuracy, factorize, tol), name)

    return by_size(
        sys, dt, solver, of_large, lambda model: _norm_of_dense(model, name, return_frequency, tol)
    )


def _norm_of_dense(
    model: LinearModel, kind: str, return_frequency: bool, tol: float
) -> float | tuple[float, float]:
    if model.improper and kind != "hankel":
        return (math.inf, math.inf) if return_frequency else math.inf
    factored = factored_system(model, tol, both=kind != "h2")
    if kind == "linf":
        value, at = _largest_gain(model, factored, tol)
    elif factored.n_unstable:
        value, at = math.inf, math.nan
    elif kind == "hankel":
        return float(singular_values(factored)[0].max(initial=0.0))
    elif kind == "h2":
        return h2_norm(factored, model.D, discrete=model.is_discrete)
    else:
        value, at = _hinf_of_schur_form(model, factored) or hinf_of_model(model, balance(factored))
        at = at if model.is_complex else abs(at)
    step = float(model.dt) if model.is_discrete and model.dt is not True else 1.0  # type: ignore[arg-type]
    return (value, at / step) if return_frequency else value


def _largest_gain(model: LinearModel, factored: FactoredSystem, stability_tol: float) -> tuple[float, float]:
    """Return the largest gain on the stability boundary, and its angular frequency (radians per sample)."""
    discrete = model.is_discrete
    poles = np.linalg.eigvals(factored.unstable_A)
    size = matrix_size(factored.scaled_system.A)
    marginal = poles[~is_unstable_pole(poles, size, discrete=discrete, tol=stability_tol)]
    if marginal.size:
        return math.inf, float(abs(frequencies_of(marginal, discrete=discrete)[0]))
    return hinf_norm(*compress_inputs_and_outputs(*equilibrated(*model.as_tuple())), discrete=discrete)


def _norm_of_large(intermediate: IntermediateModel, kind: str) -> float:
    """Return a norm of a large model, by the factors of its Gramians or by its intermediate model."""
    if intermediate.n_unstable:
        return math.inf
    D = intermediate.model.D
    if kind == "hankel":
        return float(intermediate.values.max(initial=0.0))
    if kind == "h2":
        if not intermediate.large.is_discrete and np.any(D):
            return math.inf
        return math.hypot(intermediate.h2(), float(np.linalg.norm(D)))
    value = norm(intermediate.model, "hinf", dt=intermediate.large.dt)
    distance = intermediate_error(intermediate)
    if not distance <= intermediate.factors.accuracy * value:
        raise ConvergenceError(
            f"the largest gain is {value:.6g} with an uncertainty of {distance:.1e}, more than the requested "
            f"share {intermediate.factors.accuracy:.1e}: request more accurate factors (accuracy=)"
        )
    return value


def intermediate_error(intermediate: IntermediateModel) -> float:
    """Return a bound for the gain of a large model minus its intermediate model.

    It is proved if a decay rate of the model is proved, and an estimate otherwise.
    """
    factors = intermediate.factors
    if intermediate.model.n_states == 0:
        return 2 * intermediate.accuracy
    if factors.bound is None:
        return sampled_distance(intermediate)
    discrete = intermediate.large.is_discrete
    sizes = [
        hinf_norm(*compress_inputs_and_outputs(*equilibrated(*system)), discrete=discrete)[0]
        for system in residual_systems(intermediate, factors.bound)
    ]
    return (1 + HINF_RTOL) ** 2 * sizes[0] * sizes[1] * factors.problem.gain


def h2_norm(factored: FactoredSystem, D: Array, *, discrete: bool) -> float:
    """Return the H2 norm of the stable part with this D."""
    direct = float(np.linalg.norm(D))
    if not discrete and np.any(D != 0):
        return math.inf
    image = factored.C @ factored.controllability
    size = float(np.abs(image).max(initial=0.0))  # divided out, so that tiny squares do not underflow
    root = size * float(np.linalg.norm(image / size)) if size > 0 else 0.0
    system = factored.scaled_system
    (root,) = in_range(np.array([root]), system.exponent, "H2 norm")
    return math.hypot(root, direct)


def _hinf_of_schur_form(model: LinearModel, factored: FactoredSystem) -> tuple[float, float] | None:
    """Return the H-infinity norm of a stable model and its frequency (radians per sample in discrete time).

    The search is on its Schur form. None if that is not known, or if the peak is better searched on fewer,
    balanced states.
    """
    system = factored.scaled_system
    if factored.solver != "hammarling" or abs(system.exponent) > SAFE_EXPONENT:
        return None
    schur = factored.A, factored.B, factored.C * system.gain, model.D
    if not _SquaredPoles.are_usable(*schur, discrete=model.is_discrete):
        return None
    schur = compress_inputs_and_outputs(*schur)
    factor = factored.controllability if schur[3].shape[0] == 1 else None
    return hinf_norm(*schur, discrete=False, factor=factor)


def hinf_of_model(model: LinearModel, balancing: Balancing) -> tuple[float, float]:
    """Return the H-infinity norm of a stable model and its frequency (radians per sample in discrete time).

    The peak is searched on the leading balanced states, and the value is a gain of the model itself: at that
    peak, and at its poles nearest the stability boundary, where the rounding of the balanced states is
    largest. If the two differ by more than the states left out can, the search is repeated on the model.
    """
    factored, discrete = balancing.factored, model.is_discrete
    system = factored.scaled_system
    # the norm is at least the largest singular value; refuse it if that overflows
    in_range(balancing.values, system.exponent, "H-infinity norm")
    r = _order_for_search(balancing)
    left, right = balancing.bases_in_scaled_states(r)
    leading = assemble_model(model, balancing, *project(system, left, right), model.D)
    noise = system.gain * (2 * float(balancing.values[r:].sum()) + balancing.noise_floor)
    value, frequency = hinf_norm(*compress_inputs_and_outputs(*leading.as_tuple()), discrete=discrete)
    full = compress_inputs_and_outputs(system.A, *system.in_units_of_the_model(system.B, system.C), model.D)
    if full[0].size == 0 or 0 in full[3].shape:
        return value, frequency
    at_peak = largest = gain_at(full, frequency, discrete=discrete)
    # doubling converges fast in continuous time only if no pole is near the boundary
    if factored.solver != "smith" or discrete:
        # the states of the solver may be in Schur form already
        gains_of_states = system.in_units_of_the_model(factored.B, factored.C)
        stable = compress_inputs_and_outputs(factored.A, *gains_of_states, model.D)
        response = FrequencyResponse(*stable, discrete=discrete)
        slowest = slowest_poles(response.poles, SLOWEST_POLES, discrete=discrete)
        frequencies = np.unique(frequencies_of(slowest, discrete=discrete))
        gains = response.gain(frequencies)
        k = int(np.argmax(gains))
        if gains[k] > largest:
            largest, frequency = float(gains[k]), float(frequencies[k])
    if (
        abs(at_peak - value) <= HINF_RTOL * value + 100 * noise
        and largest <= value * (1 + HINF_RTOL) + 100 * noise
    ):
        return largest, frequency
    return hinf_norm(*full, discrete=discrete)


def _order_for_search(balancing: Balancing) -> int:
    """Return how many balanced states have the largest gain up to a fraction of its accuracy."""
    values = balancing.values[: balancing.rank]
    return order_of_negligible_tail(values, NEGLIGIBLE_TAIL * values.max(initial=0.0))


def verified_error(
    error_model: Quadruple,
    full: tuple[Array, Array, Array] | None,
    reduced: Quadruple,
    *,
    discrete: bool,
    noise: float,
    critical: CriticalResponse | None = None,
) -> float:
    """Return the H-infinity norm of a difference of which a realization, `error_model`, is known.

    The peak is searched on that realization, and the value is a gain of the difference of the two systems (if
    the full one is given), evaluated with more digits than their subtraction loses: at the peak and at the
    poles nearest the stability boundary. If the two differ by more than noise the search is repeated on the
    difference of the systems.
    """
    value, frequency = hinf_norm(*compress_inputs_and_outputs(*equilibrated(*error_model)), discrete=discrete)
    if full is None or full[0].size == 0 or 0 in error_model[3].shape or not math.isfinite(value):
        return value
    if critical is None:
        critical = CriticalResponse(full, discrete=discrete)
    at_critical, rounding = critical.gains(reduced)
    at_peak, _ = refined_gains(full, reduced, np.array([frequency]), discrete=discrete)
    gains = np.append(at_critical, at_peak)
    if not np.all(np.isfinite(gains)):
        return value
    largest = float(gains.max())
    tolerance = HINF_RTOL * value + 10 * noise + rounding
    if max(abs(float(gains[-1]) - value), largest - value) <= tolerance:
        return largest
    difference = parallel([(*full, no_direct_term(reduced[3].shape)), negated(reduced)])
    peak = hinf_norm(*compress_inputs_and_outputs(*equilibrated(*difference)), discrete=discrete)[1]
    gains, _ = refined_gains(full, reduced, np.array([peak]), discrete=discrete)
    return max(largest, float(gains[0]))


def gain_of_difference(first: Quadruple, second: Quadruple, *, discrete: bool) -> float:
    """Return the H-infinity norm of the difference of two stable systems.

    Where they nearly cancel, rounding hides the peak from a search, so that gains with more digits are
    compared also beside the slowest poles, however wide these are.
    """
    A, B, C, D = second
    apart = (A, B, C, D - first[3])
    no_D = no_direct_term(D.shape)
    difference = parallel([(*first[:3], no_D), negated(apart)])
    value = verified_error(difference, first[:3], apart, discrete=discrete, noise=0.0)
    poles = slowest_poles(np.linalg.eigvals(first[0]), CRITICAL_POLES, discrete=discrete)
    frequencies = np.unique(_frequencies_beside_poles(poles, discrete=discrete))
    gains, _ = refined_gains(first[:3], apart, frequencies, discrete=discrete)
    return max(value, float(gains[np.isfinite(gains)].max(initial=0.0)))


def refined_gains(
    full: tuple[Array, Array, Array], reduced: Quadruple, frequencies: Array, *, discrete: bool
) -> tuple[Array, float]:
    """Return the gain of full minus reduced at angular frequencies, and the size of its rounding.

    Both are evaluated with more digits than their subtraction loses. The D of `reduced` is its difference
    from that of the full model.
    """
    _, B, C, D = compress_inputs_and_outputs(
        *parallel([(*full, no_direct_term(reduced[3].shape)), negated(reduced)])
    )
    n = full[0].shape[0]
    points = _points(frequencies, discrete=discrete)
    full_part, full_low = refined_response(full[0], B[:n], C[:, :n], points)
    response = refined_response(reduced[0], B[n:], C[:, n:], points)
    gains = _gains_of_sum((full_part, full_low), response, D, np.isfinite(frequencies))
    # the compression of thousands of inputs and outputs to a few has rounding errors
    rotated = D.shape != reduced[3].shape
    return gains, n * EPS * float(np.abs(full_part).max(initial=0.0)) if rotated else 0.0


def _points(frequencies: Array, *, discrete: bool) -> Array:
    """Return the points of the finite frequencies on the stability boundary."""
    w = frequencies[np.isfinite(frequencies)]
    return np.asarray(np.exp(1j * w) if discrete else 1j * w)


def _gains_of_sum(first: tuple[Array, Array], second: tuple[Array, Array], D: Array, finite: Array) -> Array:
    """Return the gains of the sum of two responses, given as pairs, and of D at infinite frequencies."""
    gains = np.full(finite.size, float(np.linalg.norm(D, 2)) if D.size else 0.0)
    gains[finite] = largest_singular_value((first[0] + second[0] + D) + (first[1] + second[1]))
    return gains


class CriticalResponse:
    """The response of a full model where rounding is largest, from which errors of several orders are found.

    It has more digits than their subtraction loses, where that shows. Everything is computed once, when it is
    first needed. ``schur`` is the model in Schur form, if that is known.
    """

    def __init__(
        self,
        full: tuple[Array, Array, Array],
        *,
        discrete: bool,
        schur: tuple[Array, Array, Array] | None = None,
    ):
        self.full = full
        self.discrete = discrete
        self.schur = schur

    @cached_property
    def frequencies(self) -> Array:
        """The critical frequencies of the model."""
        if self.schur is not None and self.schur[0].size:
            return _critical_of(schur_poles(self.schur[0]), self.full[0], discrete=self.discrete)
        return critical_frequencies(self.full[0], discrete=self.discrete)

    @cached_property
    def _response(self) -> tuple[Array, Array]:
        return refined_response(*self.full, _points(self.frequencies, discrete=self.discrete))

    def gains(self, reduced: Quadruple) -> tuple[Array, float]:
        """Return the gains of full minus reduced, and the size of their rounding."""
        A, B, C, D = negated(reduced)
        n, (p, m) = self.full[0].shape[0], D.shape
        if max(p, m) > n + A.shape[0]:  # thousands of inputs or outputs, compressed with those of reduced
            return refined_gains(self.full, reduced, self.frequencies, discrete=self.discrete)
        response = refined_response(A, B, C, _points(self.frequencies, discrete=self.discrete))
        return _gains_of_sum(self._response, response, D, np.isfinite(self.frequencies)), 0.0

    @cached_property
    def _in_schur_form(self) -> tuple[FrequencyResponse, _SquaredPoles | None, Quadruple] | None:
        """The response, squared poles and matrices of a continuous model in Schur form.

        None for other models; None instead of squared poles with several inputs and outputs.
        """
        if self.schur is None or self.discrete or any(np.iscomplexobj(M) for M in self.schur):
            return None
        A, B, C = self.schur
        D = np.zeros((C.shape[0], B.shape[1]))
        if max(D.shape) > A.shape[0] or 0 in D.shape:  # many inputs or outputs are compressed
            return None
        squares = None
        if min(D.shape) == 1:
            # with one input the search on balanced states has squared poles too
            if D.shape[0] > 1 or not _SquaredPoles.are_usable(A, B, C, D, discrete=False):
                return None
            squares = _SquaredPoles.of_system(A, B, C, D, None)
        return FrequencyResponse(A, B, C, D, discrete=False, schur=True), squares, (A, B, C, D)

    @cached_property
    def _rounding(self) -> float:
        """Largest effect of rounding at the critical frequencies, of the model in Schur form."""
        assert self._in_schur_form is not None
        finite = self.frequencies[np.isfinite(self.frequencies)]
        return float(self._in_schur_form[0].rounding(finite).max())

    def error_without_cancellation(
        self, reduced: Quadruple, bound: float, balanced_states: int
    ) -> float | None:
        """Return the H-infinity norm, at most `bound`, of full minus reduced; None where rounding would show.

        The two systems are subtracted and share no states, so that what is computed of the full one serves
        every order. The result is None too if the search on so many balanced states is faster.
        """
        tolerance = SUBTRACTED_RTOL * bound
        if self._in_schur_form is None or reduced[0].shape[0] == 0 or self._rounding > tolerance:
            return None
        response, squares, full = self._in_schur_form
        T, Z = schur_form(reduced[0])
        D = np.ascontiguousarray(reduced[3])
        reduced = T, Z.T @ reduced[1], reduced[2] @ Z, D
        difference = DifferenceResponse(response, FrequencyResponse(*reduced, discrete=False, schur=True))
        plane: _SquaredPoles | _HalfPlane | None = None
        if squares is None:
            if balanced_states < MANY_STATES * full[0].shape[0]:
                return None
            apart = parallel([(*full[:3], no_direct_term(D.shape)), negated(reduced)])
            plane = _HalfPlane(*apart, difference.poles, discrete=False)
        elif _SquaredPoles.are_usable(*reduced, discrete=False, size=squares.size):
            plane = squares.minus(full, reduced)
        if plane is None or (isinstance(plane, _SquaredPoles) and not plane.agree_with(difference)):
            return None
        finite = self.frequencies[np.isfinite(self.frequencies)]
        rounding = self._rounding + float(difference.parts[1].rounding(finite).max())
        least = rounding / SUBTRACTED_RTOL
        value, frequency = _search(difference, plane, D, _Inside(None, real=True), real=True, least=least)
        if value > least and math.isfinite(frequency):
            rounding = max(rounding, float(difference.rounding(np.array([frequency]))[0]))
        return value if rounding <= SUBTRACTED_RTOL * value else None


def difference_norm(full: LinearModel, reduced: LinearModel, kind: str) -> float:
    """Return the norm of full minus reduced, two models with the same inputs, outputs and timebase."""
    difference = compress_inputs_and_outputs(*parallel([full.as_tuple(), negated(reduced.as_tuple())]))
    return norm(difference, kind, dt=full.dt)  # type: ignore[arg-type]


def no_direct_term(shape: tuple[int, ...]) -> Array:
    """Return a D of zeros that takes no memory, for models with thousands of inputs and outputs."""
    return np.broadcast_to(np.zeros(1), shape)


def negated(system: Quadruple) -> Quadruple:
    """Return the system with the opposite sign."""
    A, B, C, D = system
    return A, B, -C, -D if np.any(D) else D


def parallel(parts: list[Quadruple]) -> Quadruple:
    """Return the sum of systems with the same inputs and outputs."""
    n = sum(A.shape[0] for A, _, _, _ in parts)
    out = np.zeros((n, n), np.result_type(*(A for A, _, _, _ in parts)))
    start = 0
    for A, _, _, _ in parts:
        k = A.shape[0]
        out[start : start + k, start : start + k] = A
        start += k
    B = np.concatenate([B for _, B, _, _ in parts])
    C = np.concatenate([C for _, _, C, _ in parts], axis=1)
    # a D of zeros is not added: it may be large
    direct = [D for _, _, _, D in parts if np.any(D)]
    return out, B, C, np.sum(direct, axis=0) if direct else parts[0][3]


def compress_inputs_and_outputs(A: Array, B: Array, C: Array, D: Array) -> Quadruple:
    """Return a system with the same gain at every frequency and few inputs and outputs.

    A system with thousands of outputs and a few states is an isometry times one with a few outputs: C = Q R
    has the gain of R. The same holds for the inputs.
    """
    direct = bool(np.any(D))
    outputs = np.concatenate([C, D], axis=1) if direct else C
    if outputs.shape[0] > outputs.shape[1]:
        outputs = np.asarray(np.linalg.qr(outputs, mode="r"))
        C, D = outputs[:, : C.shape[1]], outputs[:, C.shape[1] :] if direct else D[: outputs.shape[0]]
    inputs = np.concatenate([B, D]) if direct else B
    if inputs.shape[1] > inputs.shape[0]:
        inputs = np.asarray(np.linalg.qr(inputs.conj().T, mode="r")).conj().T
        B, D = inputs[: B.shape[0]], inputs[B.shape[0] :] if direct else D[:, : inputs.shape[1]]
    return A, B, C, D


def gain_at(system: Quadruple, frequency: float, *, discrete: bool) -> float:
    """Return the largest singular value at one angular frequency (inf: the direct term)."""
    A, B, C, D = system
    if 0 in D.shape:
        return 0.0
    if math.isinf(frequency):
        return float(np.linalg.norm(D, 2))
    point = np.exp(1j * frequency) if discrete else 1j * frequency
    try:
        response = D + C @ np.linalg.solve(point * np.eye(A.shape[0]) - A, B.astype(complex)) if A.size else D
    except np.linalg.LinAlgError:  # a pole at this frequency
        return math.inf
    return float(np.linalg.norm(response, 2))


def hinf_norm(
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    *,
    discrete: bool,
    within: Bands | None = None,
    factor: Array | None = None,
) -> tuple[float, float]:
    """Return the H-infinity norm of a stable system and the angular frequency of the peak.

    ``within`` limits the search to bands of frequencies; the system may be unstable, without poles in them.
    ``factor`` is that of the controllability Gramian, if it is known and A is in Schur form.

    A level just above the largest gain so far is tested: if the gain crosses the level anywhere, the
    crossings are eigenvalues on the imaginary axis of a Hamiltonian matrix, and a higher gain lies between
    two of them. Rounding moves such eigenvalues off the axis, so the imaginary part of each eigenvalue near
    it is a candidate, and the norm is always an evaluated gain.
    """
    if 0 in D.shape or A.shape[0] == 0:
        return (float(np.linalg.norm(D, 2)) if D.size else 0.0), 0.0
    real = not any(np.iscomplexobj(M) for M in (A, B, C, D))
    if factor is None and not is_quasi_triangular(A):
        A, Z = schur_form(A)
        B, C = Z.conj().T @ B, C @ Z
    # products of B, C and Gramians underflow or overflow unless B and C have entries of about one
    of_inputs, exponent = _exponents_of_gain(B, C, D)
    B, C = times_power_of_two(B, -of_inputs), times_power_of_two(C, of_inputs - exponent)
    D = times_power_of_two(D, -exponent) if np.any(D) else D
    response = FrequencyResponse(A, B, C, D, discrete=discrete, schur=True)
    plane: _HalfPlane | _SquaredPoles | None = None
    if factor is not None or _SquaredPoles.are_usable(A, B, C, D, discrete=discrete):
        factor = None if factor is None else times_power_of_two(factor, -of_inputs)
        squared = _SquaredPoles.of_system(A, B, C, D, factor)
        plane = squared if squared.agree_with(response) else None
    if plane is None:
        plane = _HalfPlane(A, B, C, D, response.poles, discrete=discrete)
    value, frequency = _search(response, plane, D, _Inside(within, real=real), real=real)
    if math.isfinite(value):
        (value,) = in_range(np.array([value]), exponent, "H-infinity norm")
    return float(value), frequency


def _exponents_of_gain(B: Array, C: Array, D: Array) -> tuple[int, int]:
    """Return the powers of two that B, and the gain, are divided by for a search of the largest gain.

    That of the gain is the product of those of B and C, unless D divided by it would overflow.
    """
    of_inputs = gain_exponent(B)
    exponent = of_inputs + gain_exponent(C)
    return of_inputs, max(exponent, gain_exponent(D) - SAFE_EXPONENT) if np.any(D) else exponent


def _search(
    response: FrequencyResponse,
    plane: _HalfPlane | _SquaredPoles,
    D: Array,
    inside: _Inside,
    *,
    real: bool,
    least: float = 0.0,
) -> tuple[float, float]:
    """Return the largest gain of a response and its frequency, by level tests.

    Where no gain on the first grid exceeds `least`, the largest one on it is returned without level tests.
    """
    discrete = response.discrete
    start = np.append(
        _start_frequencies(response.poles, discrete=discrete, real=real), plane.singular_frequency
    )
    best, peak_frequency = _highest_peak(response, inside.kept(start), inside)
    direct = float(np.linalg.norm(D, 2))
    if not discrete and direct > best and inside.far_end:
        best, peak_frequency = direct, math.inf
    if best == 0:
        return 0.0, 0.0
    if best <= least:
        return best, peak_frequency
    singular_levels = plane.singular_levels
    for _ in range(MAX_LEVELS):
        level = _level_above(best, singular_levels)
        crossings = plane.candidates(level, real=real)
        crossings = inside.kept(crossings)
        between = 0.5 * (crossings[1:] + crossings[:-1])
        grid = inside.kept(np.concatenate([crossings, between]))
        higher, where = _highest_peak(response, grid, inside, level)
        if higher <= level:
            if higher > best:
                best, peak_frequency = higher, where
            return best, peak_frequency
        best, peak_frequency = higher, where
    raise ConvergenceError(
        f"the H-infinity norm did not converge in {MAX_LEVELS} levels; the last was {best:.6g}"
    )


def _level_above(gain: float, singular_levels: Array) -> float:
    """Return a level above a gain by a relative HINF_RTOL, or less where the level test has no matrix there.

    Where the search leaves out infinity, as in bands, the gain may be close to a singular value of D.
    """
    levels = gain * (1 + HINF_RTOL * np.array([1.0, 0.75, 0.5, 0.25]))
    distances = np.abs(singular_levels / levels[:, None] - 1).min(axis=1, initial=math.inf)
    usable = np.flatnonzero(distances > SINGULAR_LEVEL)
    return float(levels[usable[0] if usable.size else np.argmax(distances)])


class _Inside:
    """The frequencies that are looked at: bands, of both signs for complex systems, or all of them."""

    def __init__(self, bands: Bands | None, *, real: bool):
        self.bands = None
        if bands is not None:
            signs = [1.0] if real else [1.0, -1.0]
            self.bands = [tuple(sorted((sign * low, sign * high))) for low, high in bands for sign in signs]

    @property
    def far_end(self) -> bool:
        """Whether the direct term of a continuous model counts."""
        return self.bands is None or any(math.isinf(edge) for band in self.bands for edge in band)

    def kept(self, frequencies: Array) -> Array:
        """Return the frequencies that lie in the bands, and the edges of these."""
        if self.bands is None:
            return frequencies
        edges = [edge for band in self.bands for edge in band if math.isfinite(edge)]
        return np.unique(np.concatenate([frequencies[self.covers(frequencies)], edges]))

    def covers(self, frequencies: Array) -> Array:
        """Tell which frequencies lie in the bands."""
        if self.bands is None:
            return np.ones(frequencies.shape, dtype=bool)
        return np.any([(frequencies >= low) & (frequencies <= high) for low, high in self.bands], axis=0)


def _highest_peak(
    response: FrequencyResponse, frequencies: Array, inside: _Inside, level: float = 0.0
) -> tuple[float, float]:
    """Return the largest gain on a grid, after a local search for the peaks beside its highest points.

    Where two large systems nearly cancel, the eigenvalues of the Hamiltonian have their rounding, and a level
    test alone would stop below the peak. Where nothing cancels, no gain below the level is refined.
    """
    grid = np.unique(frequencies)
    if grid.size == 0:
        return 0.0, 0.0
    gains, gain_of, steps, parts = _gains_on_grid(response, grid)
    k = int(np.argmax(gains))
    best, peak_frequency = float(gains[k]), float(grid[k])
    is_cheap = gain_of != response.gain
    if is_cheap and best <= level * (1 - CHEAP_RTOL):
        return best, peak_frequency
    padded = np.concatenate([[-np.inf], gains, [-np.inf]])
    peaks = np.flatnonzero((gains >= padded[:-2]) & (gains >= padded[2:]))
    peaks = peaks[gains[peaks] >= LOW_PEAK * best]
    peaks = peaks[np.argsort(-gains[peaks])][:MAX_PEAKS]
    below, above = grid[np.maximum(peaks - 1, 0)], grid[np.minimum(peaks + 1, grid.size - 1)]
    columns, shares = np.arange(peaks.size), np.arange(parts + 1)[:, None] / parts
    for _ in range(steps):
        if not math.isfinite(best):
            break
        grids = below + (above - below) * shares
        # the ends of a bracket are known, and lower
        interior = grids[1:-1]
        gains = np.full(grids.shape, -1.0)
        gains[1:-1] = gain_of(interior.ravel()).reshape(interior.shape)
        if inside.bands is not None:
            gains[~inside.covers(grids)] = -1.0
        highest = gains.argmax(axis=0)
        k = int(np.argmax(gains[highest, columns]))
        if gains[highest[k], k] > best:
            best, peak_frequency = float(gains[highest[k], k]), float(grids[highest[k], k])
        below = grids[np.maximum(highest - 1, 0), columns]
        above = grids[np.minimum(highest + 1, parts), columns]
    if is_cheap:
        grid = np.array([peak_frequency, *_vertices(grids, gains, highest)])
        grid = inside.kept(grid)
        gains = response.gain(grid)
        k = int(np.argmax(gains))
        best, peak_frequency = float(gains[k]), float(grid[k])
    return best, peak_frequency


def _vertices(grids: Array, gains: Array, highest: Array) -> Array:
    """Return the maxima of parabolas through the highest gains of columns and their neighbors.

    They are fitted to 1 / gain^2, which is a parabola for a single resonance.
    """
    columns = np.flatnonzero((highest > 1) & (highest < gains.shape[0] - 2))
    middle = highest[columns]
    with np.errstate(all="ignore"):
        left, center, right = (1 / gains[middle + k, columns] ** 2 for k in (-1, 0, 1))
        step = grids[1, columns] - grids[0, columns]
        vertices = grids[middle, columns] + 0.5 * step * (left - right) / (left - 2 * center + right)
    return np.asarray(vertices[np.isfinite(vertices)])


def _gains_on_grid(
    response: FrequencyResponse, grid: Array
) -> tuple[Array, Callable[[Array], Array], int, int]:
    """Return the gains on a grid, a function for others, and the steps and parts of the local search.

    They are computed from partial fractions where these are accurate.
    """
    approximate = response.approximate_gain(grid)
    if approximate is not None:
        gains, errors = approximate
        if errors.max() <= CHEAP_RTOL * gains.max():
            return gains, response.cheap_gain, CHEAP_STEPS, CHEAP_PARTS
    return response.gain(grid), response.gain, ZOOM_STEPS, ZOOM_PARTS


def _start_frequencies(poles: Array, *, discrete: bool, real: bool) -> Array:
    """Return the resonance of every pole, both ends of the axis, and a coarse grid between."""
    if discrete:
        frequencies = np.concatenate([np.angle(poles), np.linspace(-math.pi, math.pi, 65)])
    else:
        light = np.abs(poles.imag) > np.abs(poles.real)
        resonance = np.sqrt(poles.imag[light] ** 2 - poles.real[light] ** 2) * np.sign(poles.imag[light])
        sizes = np.abs(poles[poles != 0])
        low, high = (math.log(sizes.min() / 3), math.log(sizes.max() * 3)) if sizes.size else (0.0, 0.0)
        grid = np.exp(np.linspace(low, high, 65))
        corners = np.abs(poles[~light])
        frequencies = np.concatenate([resonance, poles.imag[~light], corners, grid, -grid, [0.0]])
    return np.unique(np.abs(frequencies) if real else frequencies)


def equilibrated(A: Array, B: Array, C: Array, D: Array) -> Quadruple:
    """Scale the states by powers of two, which is exact and removes bad units."""
    system = scale_system(A, B, C)
    return system.A, *system.in_units_of_the_model(system.B, system.C), D


def critical_frequencies(A: Array, *, discrete: bool) -> Array:
    """Return the frequencies at which the rounding of a model is largest.

    These are both ends of the axis, the slowest poles and points between them, points beside poles that are
    very near the stability boundary, and the fastest pole.
    """
    return _critical_of(np.linalg.eigvals(A) if A.size else np.zeros(0), A, discrete=discrete)


def _critical_of(poles: Array, A: Array, *, discrete: bool) -> Array:
    real = not np.iscomplexobj(A)
    ends = [0.0, math.pi] if discrete else [0.0, float(np.abs(poles).max(initial=0.0)), math.inf]
    poles = slowest_poles(poles, CRITICAL_POLES, discrete=discrete)
    # where rounding moves a pole by a share of its width, the peak of a difference is beside those of both
    widths = distance_to_boundary(poles, discrete=discrete)
    narrow = (widths > 0) & (widths <= NARROW * (1.0 if discrete else np.abs(poles)))
    beside = _frequencies_beside_poles(poles[narrow], discrete=discrete)
    if discrete:
        # the corner frequency of a real pole near 1 is its distance from 1
        w = np.where(poles.imag == 0, 1 - np.abs(poles), np.angle(poles))
    else:
        # the frequency of the peak of a lightly damped pole, else the corner frequency
        light = np.abs(poles.real) < 0.1 * np.abs(poles)
        w = np.where(light, poles.imag, np.abs(poles))
    w = np.unique(np.abs(w) if real else w)
    between = np.sign(w[1:]) * np.sqrt(np.abs(w[1:] * w[:-1]))
    return np.unique(np.concatenate([w, between, np.abs(beside) if real else beside, ends]))


def _frequencies_beside_poles(poles: Array, *, discrete: bool) -> Array:
    """Return the frequencies of poles, and those half a width and a width below and above them."""
    widths = distance_to_boundary(poles, discrete=discrete) * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None]
    return np.asarray((frequencies_of(poles, discrete=discrete) + widths).ravel())


@dataclass(frozen=True)
class _SquaredPoles:
    """The frequencies of a level for a stable, real, continuous system with one input or one output.

    With the controllability Gramian Y, h = Y C^T + B D^T and p = 1 output, G(s) G(-s)^T is
    D D^T + C (s - A)^-1 h + C (-s - A)^-1 h = D D^T + 2 C A (s^2 - A^2)^-1 h. It is the square of a level g
    where s^2 is an eigenvalue of A^2 + 2 h C A / (g^2 - D D^T), a matrix of half the size of the Hamiltonian
    one. One input is one output of the transposed system.
    """

    square: Array
    h: Array
    image: Array
    direct: float
    size: float
    #: No frequency is sent to infinity, as by the map of a discrete system.
    singular_frequency: ClassVar[list[float]] = []

    @property
    def singular_levels(self) -> Array:
        """The levels at which the matrix is infinite; the identity holds on both sides of them."""
        return np.array([self.direct])

    @classmethod
    def of_system(cls, A: Array, B: Array, C: Array, D: Array, factor: Array | None) -> _SquaredPoles:
        """Return that of a system in Schur form; ``factor`` is that of its controllability Gramian."""
        if D.shape[0] > 1:  # in reverse order A^T is in Schur form again
            A, B, C, D = A.T[::-1, ::-1], C.T[::-1], B.T[:, ::-1], D.T
        if factor is None:
            factor = hammarling_factors(A, B, C[:0], discrete=False)[0]
        h = factor @ (factor.T @ C[0]) + B @ D[0]
        return cls(A @ A, h, C[0] @ A, float(np.linalg.norm(D)), matrix_size(A))

    def minus(self, full: Quadruple, reduced: Quadruple) -> _SquaredPoles | None:
        """Return that of this system, ``full``, minus another one; both are in Schur form with one output.

        None if LAPACK could not solve the equations of the mixed Gramians.
        """
        A, B, C, _ = full
        Ar, Br, Cr, Dr = reduced
        mixed, mixed_scale, mixed_info = dtrsyl(A, Ar, -(B @ Br.T), tranb="C")
        reduced_gramian, reduced_scale, reduced_info = dtrsyl(Ar, Ar, -(Br @ Br.T), tranb="C")
        if mixed_info or reduced_info or not (mixed_scale == reduced_scale == 1):
            return None
        h = np.concatenate(
            [self.h - mixed @ Cr[0] - B @ Dr[0], mixed.T @ C[0] - reduced_gramian @ Cr[0] - Br @ Dr[0]]
        )
        n, r = A.shape[0], Ar.shape[0]
        square = np.zeros((n + r, n + r), order="F")
        square[:n, :n], square[n:, n:] = self.square, Ar @ Ar
        image = np.concatenate([self.image, -(Cr[0] @ Ar)])
        return _SquaredPoles(square, h, image, float(np.linalg.norm(Dr)), max(self.size, matrix_size(Ar)))

    @staticmethod
    def are_usable(A: Array, B: Array, C: Array, D: Array, *, discrete: bool, size: float = 0.0) -> bool:
        """Return whether this applies to a system in Schur form, and its squared poles are accurate enough.

        The rule for their accuracy is empirical: it does not see how the eigenvalues of the matrix of a level
        move where A is far from normal, and is tested with random triangular A against the Hamiltonian
        matrix. An h without correct digits is found by `agree_with`.

        ``size`` is the smallest size of A that counts, as of another system.
        """
        if discrete or 1 not in D.shape or any(np.iscomplexobj(M) for M in (A, B, C, D)):
            return False
        size = max(matrix_size(A), size)
        if not RATE_LIMITS[0] <= size <= RATE_LIMITS[1]:  # squares would underflow or overflow
            return False
        poles = schur_poles(A)
        error = ROUNDING_OF_SQUARES * poles.size * size**2
        return bool(np.all(error <= -SHARE_OF_WIDTH * poles.real * np.abs(poles)))

    def agree_with(self, response: FrequencyResponse) -> bool:
        """Return whether they give the gain of the response at the slowest pole, and at frequency 0.

        Where h underflowed, or its Gramian has no correct digits, no level would be crossed.
        """
        slowest = slowest_poles(response.poles, 1, discrete=False)
        w = np.append(np.abs(slowest.imag), 0.0)
        squares = response.gain(w) ** 2
        # (A^2 + w^2) x = -h, where A^2 is quasi-triangular as A is
        solutions = (dtrsyl(self.square, np.array([[x * x]]), -self.h[:, None]) for x in w)
        products = np.array([self.image @ states[:, 0] / scale for states, scale, _ in solutions])
        deviation = np.abs(self.direct**2 + 2 * products - squares)
        return bool(np.all(deviation <= AGREEMENT * squares.max()))

    def candidates(self, level: float, *, real: bool) -> Array:
        """Return, sorted, the angular frequencies at which the gain may cross the level."""
        # divided by the level, so that no square of a tiny or huge gain is formed
        change = np.outer(self.h / level, self.image * (2 / (level * (1 - (self.direct / level) ** 2))))
        values = np.sqrt(np.linalg.eigvals(self.square + change).astype(complex))
        return np.unique(np.abs(values.imag[_near_axis(values, self.size)]))


def _near_axis(values: Array, size: float) -> Array:
    """Return which eigenvalues, of matrices of this size, may be those of a crossing.

    They are on the axis up to the square root of rounding; anything near it is a candidate.
    """
    return np.asarray(np.abs(values.real) <= 1e-3 * np.abs(values) + 1e-7 * size)


class _HalfPlane:
    """The system in continuous time, for level tests; a discrete one is converted by a Moebius map.

    z = q (1 + s) / (1 - s) maps the left half plane to the unit disk and s = inf to z = -q, so q is chosen so
    that -q is far from the poles: 1 or -1 for real systems unless poles are near both.
    """

    def __init__(self, A: Array, B: Array, C: Array, D: Array, poles: Array, *, discrete: bool):
        self.turn: complex | None = None
        if discrete:
            turns: list[complex] = [1.0, -1.0]
            if max(_distance(poles, q) for q in turns) < 1e-3:
                turns += list(np.exp(1j * np.linspace(0, 2 * np.pi, 4 * poles.size + 8)))
            q = max(turns, key=lambda turn: _distance(poles, turn))
            self.turn = q
            n = A.shape[0]
            inverse = np.linalg.inv(A + q * np.eye(n))
            A, B, C, D = (
                inverse @ (A - q * np.eye(n)),
                math.sqrt(2) * (inverse @ B),
                math.sqrt(2) * q * (C @ inverse),
                D - C @ inverse @ B,
            )
        self.A, self.B, self.C, self.D = A, B, C, D

    @property
    def singular_levels(self) -> Array:
        """The levels at which the Hamiltonian matrix does not exist: the singular values of D."""
        return np.asarray(np.linalg.svd(self.D, compute_uv=False))

    @property
    def singular_frequency(self) -> list[float]:
        """The frequency that the map sends to infinity; a level below the gain there has no Hamiltonian."""
        return [] if self.turn is None else [float(np.angle(-self.turn))]

    def candidates(self, level: float, *, real: bool) -> Array:
        """Return, sorted, the angular frequencies at which the gain may cross the level."""
        A, B, C, D = self.A, self.B, self.C, self.D
        p, m = D.shape
        # divided by the level, so that no square of a tiny or huge gain is formed
        D, B, C = D / level, B / math.sqrt(level), C / math.sqrt(level)
        R, S = np.eye(m) - D.conj().T @ D, np.eye(p) - D @ D.conj().T
        RB = np.linalg.solve(R, np.concatenate([D.conj().T @ C, B.conj().T], axis=1))
        n = A.shape[0]
        F = A + B @ RB[:, :n]
        hamiltonian = np.block([[F, B @ RB[:, n:]], [-(C.conj().T @ np.linalg.solve(S, C)), -F.conj().T]])
        values = np.linalg.eigvals(hamiltonian)
        values = values[_near_axis(values, float(np.abs(values).max()))]
        frequencies = self._to_frequency(values.imag)
        return np.unique(np.abs(frequencies) if real else frequencies)

    def _to_frequency(self, w: Array) -> Array:
        if self.turn is None:
            return w
        return np.angle(self.turn * (1 + 1j * w) / (1 - 1j * w))


def _distance(poles: Array, q: complex) -> float:
    return float(np.abs(poles + q).min())
