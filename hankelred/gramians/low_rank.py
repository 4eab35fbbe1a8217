"""Low-rank factors of the Gramians of large sparse models, and the accuracy of the singular values.

The dual ADI iteration (`dual_adi`) stops when the certificate of the Hankel singular values is as small as
required. If the decay of the model can be proved (`residual_bounds`) it is a rigorous bound: with the
Gramians' factors Zp, Zq and the Gramians dP, dQ of the final residuals, by Weyl's inequality

    |sigma_i - sigma_i(Zq^T E Zp)| <= max(sqrt(|Q| |dP|), sqrt(|P| |dQ|)) + sqrt(|dP| |dQ|).

For continuous models with many states per input and output the factors are replaced by those of a Galerkin
projection, whose proved error is much smaller (`galerkin`). If no decay can be proved, the certificate is an
estimate: the change caused by the last columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .._util.arrays import EPS, Array
from .._util.checks import real_number
from .._util.progress import on_terminal, with_status_line
from ..errors import ConvergenceError, ModelError, OrderError, short_repr
from ..models.linear_model import DENSE_LIMIT
from ..models.pencil import Factorize, Pencil, SparsePencil, applied
from ..models.scaling import gain_exponent, times_power_of_two
from ..models.second_order import SecondOrderPencil
from ..models.sparse_model import SparseModel
from .deflation import InvariantSubspace, WithKnownPoles, no_unstable_part, rigid_body_part, unstable_part
from .dual_adi import SHIFTS, DualADI, Side
from .galerkin import ROWS, GalerkinFactors, galerkin_factors
from .poles import slow_poles
from .residual_bounds import ResidualBound, check_descriptor, is_proven_stable, proven_bound
from .stability import STABILITY_TOL

#: Default accuracy of the singular values, relative to the largest.
ACCURACY = 1e-4
#: Steps of the power iteration for the largest singular value during the iteration.
POWER_ITERATIONS = 8
#: Number of poles near the origin in the first search.
FIRST_POLES = 40
#: Models whose poles have less damping than this are lightly damped.
LIGHTLY_DAMPED = 0.1
#: Poles nearer than this, relatively, to the farthest known pole do not count as new.
SAME_POLE = 1e-6
#: The largest change by this many recent batches of steps, times SAFETY, estimates the remaining error.
RECENT_BATCHES = 2
SAFETY = 2.0
#: Number of frequencies, in addition to the origin, at which an estimate is checked.
SAMPLES = 4
#: Number of leading balanced states whose sensitivity to rounding is estimated.
LEADING_STATES = 8
#: The number of columns may always be as large as this, even if the model has few states.
MIN_COLUMNS = 400
#: Batches of shifts chosen from the residual, after the poles of a lightly damped model.
FAR_BATCHES = 2
#: A larger residual indicates an unstable pole.
DIVERGED = 1e15
#: Residual required for convergence. It is not required of lightly damped models, whose fast modes keep the
#: residual large.
CONVERGED_RESIDUAL = 1e-8
#: Number of batches after which the speed of convergence is checked.
MIN_BATCHES = 12
#: With a smaller residual the iteration stops in any case.
SMALLEST_RESIDUAL = 1e-28
#: Residual that is required independently of the certificate, because small singular values depend on it. For
#: models of more than CHEAP_STATES states, whose factorizations are expensive, only the certificate counts.
TARGET_RESIDUAL = 2e-13
CHEAP_STATES = 20_000
#: A Galerkin projection is computed for models with at least this many states per input and output. For
#: others, more factorizations cost less than the dense operations on the projected model.
STATES_PER_PORT = 1500
#: Residual below which a Galerkin projection is computed first, for at most CHEAP_STATES states and for more.
#: The certificate would allow larger ones, but the number of correct small singular values depends on it.
PROJECTED_RESIDUALS = (1e-9, 1e-5)
#: The accuracy of a projection improves at least in proportion to the residual; it is computed again when
#: this predicts the requested one, but not before the residual has decreased by this share, and at most so
#: often.
PROJECTED_AGAIN = 0.3
MAX_PROJECTIONS = 6
#: Largest number of factorizations.
MAX_SHIFTS = 500


@dataclass(frozen=True)
class SparseProblem:
    """A model in the form used by the iteration: its pencil, and B and C scaled to entries of about one.

    In discrete time the pencil is (A - E, A + E), and B and C carry the factor sqrt(2) of that transform.
    """

    pencil: Pencil
    B: Array
    C: Array
    discrete: bool
    input_exponent: int
    output_exponent: int

    @property
    def gain(self) -> float:
        """Ratio of the gains of the model to those of this problem."""
        return 2.0 ** (self.input_exponent + self.output_exponent)

    @property
    def input_output_matrices(self) -> tuple[Array, Array]:
        """B and C of the model, without the factor of the bilinear transform, but scaled."""
        root = math.sqrt(2) if self.discrete else 1.0
        return self.B / root, self.C / root

    def E(self, x: Array, *, adjoint: bool = False) -> Array:
        """Return E x with E of the model, or E^H x."""
        E = applied(self.pencil.E, x, adjoint)
        return (E - applied(self.pencil.A, x, adjoint)) / 2 if self.discrete else E

    def A(self, x: Array, *, adjoint: bool = False) -> Array:
        """Return A x with A of the model, or A^H x."""
        A = applied(self.pencil.A, x, adjoint)
        return (applied(self.pencil.E, x, adjoint) + A) / 2 if self.discrete else A


def sparse_problem(model: SparseModel, factorize: Factorize | None = None) -> SparseProblem:
    """Prepare a model for the iteration."""
    if factorize is not None and not callable(factorize):
        raise ModelError(
            "factorize must be a function from a sparse matrix to an object with solve(b, trans), got "
            f"{short_repr(factorize)}"
        )
    pencil = model.make_pencil(factorize)
    input_exponent, output_exponent = gain_exponent(model.B), gain_exponent(model.C)
    root = math.sqrt(2) if model.is_discrete else 1.0
    B = pencil.into(times_power_of_two(model.B, -input_exponent)) * root
    C = pencil.into(times_power_of_two(model.C, -output_exponent).T).T * root
    return SparseProblem(pencil, B, C, model.is_discrete, input_exponent, output_exponent)


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """Factors of both Gramians of a problem, and their accuracy.

    Gains (``product``, ``values``, ``certificate``, ``rounding``) are in the units of the problem.
    """

    problem: SparseProblem
    controllability: Array
    observability: Array
    #: Lo^H E Lc, of which the singular values are those of the system
    product: Array
    #: "rigorous" or "estimate"
    kind: str
    certificate: float
    #: size of the rounding errors in the product
    rounding: float
    residual: float
    factorizations: int
    #: bound from a proved decay rate; None if none is proved
    bound: ResidualBound | None
    #: the requested accuracy
    accuracy: float
    #: the unstable and marginal part
    unstable: InvariantSubspace
    #: low-rank factors of the residuals of both Lyapunov equations
    residual_factors: tuple[Array, Array]

    @property
    def n_unstable(self) -> int:
        """Number of unstable and marginal poles."""
        return int(self.unstable.A.shape[0])

    @cached_property
    def values(self) -> Array:
        """Singular values that exceed the rounding errors."""
        values = np.linalg.svd(self.product, compute_uv=False)
        return values[values > self.rounding]

    @property
    def negligible_value(self) -> float:
        """Largest singular value that rounding alone can give.

        It is the accuracy that is requested where no input reaches an output.
        """
        sizes = [float(np.linalg.norm(L)) for L in (self.observability, self.problem.E(self.controllability))]
        return self.problem.pencil.n * EPS * sizes[0] * sizes[1]

    @cached_property
    def vectors(self) -> tuple[Array, Array]:
        """Left and right singular vectors of the product, as columns."""
        U, _, Vh = np.linalg.svd(self.product, full_matrices=False)
        k = self.values.size
        return U[:, :k], Vh[:k].conj().T

    @cached_property
    def all_states(self) -> BalancedStates:
        """All balanced states whose singular values exceed the rounding errors."""
        return self.balanced(self.values.size)

    def extended(self, controllability: Array, observability: Array) -> LowRankFactors:
        """Return the factors with these columns too, scaled so that both largest singular values agree."""
        E = self.problem.E
        added = float(np.linalg.norm(observability.conj().T @ E(controllability), 2))
        if not added > 0:
            return self
        scale = math.sqrt(float(self.values.max(initial=added)) / added)
        Lc = np.concatenate([self.controllability, scale * controllability], axis=1)
        Lo = np.concatenate([self.observability, scale * observability], axis=1)
        product, rounding = _product(Lo, E(Lc))
        return replace(self, controllability=Lc, observability=Lo, product=product, rounding=rounding)

    def balanced(self, r: int) -> BalancedStates:
        """Return the leading r balanced states."""
        U, V = self.vectors
        scale = 1 / np.sqrt(self.values[:r])
        left: Array = self.observability @ (U[:, :r] * scale)
        right: Array = self.controllability @ (V[:, :r] * scale)
        # left^H E right is the identity up to rounding of size eps sigma_1 / sigma_r, which is removed here
        left = left @ np.linalg.inv(left.conj().T @ self.problem.E(right)).conj().T
        B, C = self.problem.input_output_matrices
        projection = left.conj().T
        return BalancedStates(left, right, projection @ self.problem.A(right), projection @ B, C @ right)


@dataclass(frozen=True, eq=False)
class BalancedStates:
    """Balanced states of a problem: bases (n, r) with left^H E right = 1, and A, B and C in its units."""

    left: Array
    right: Array
    A: Array
    B: Array
    C: Array

    def leading(self, r: int) -> BalancedStates:
        """Return the first r of the states."""
        return BalancedStates(self.left[:, :r], self.right[:, :r], self.A[:r, :r], self.B[:r], self.C[:, :r])


def checked_accuracy(accuracy: Any) -> float:
    """Return the requested accuracy, or the default for None."""
    if accuracy is None:
        return ACCURACY
    requirement = "accuracy is relative to the largest singular value and must be between 0 and 1"
    return real_number(accuracy, lambda share: 0 < share < 1, requirement, OrderError)


def low_rank_factors(
    model: SparseModel,
    accuracy: float | None = None,
    factorize: Factorize | None = None,
    stability_tol: float = STABILITY_TOL,
) -> LowRankFactors:
    """Factor both Gramians of the stable part of a large model to the requested accuracy.

    Raises
    ------
    ConvergenceError
        The certificate did not become as small as requested.
    """
    accuracy = checked_accuracy(accuracy)
    problem = sparse_problem(model, factorize)
    bound = proven_bound(problem.pencil, discrete=problem.discrete)
    adi = DualADI(problem.pencil, problem.B, problem.C)
    unstable, center, product = no_unstable_part(model.n_states), 0.0, None
    if bound is None:
        check_descriptor(problem.pencil, discrete=problem.discrete)
        if not is_proven_stable(problem.pencil):
            problem, unstable, center = _deflated(problem, adi, stability_tol)
    certificate, galerkin = 0.0, None  # if B or C is zero
    if all(side.start > 0 for side in adi.sides):
        visible = model.n_states > CHEAP_STATES and on_terminal()
        with with_status_line("low-rank Gramians", visible) as adi.report:
            if bound is not None:
                galerkin = _iterate_until_projected(problem, adi, bound, accuracy)
                if galerkin is None:
                    _iterate_until_proven(problem, adi, bound, accuracy)
                    certificate = weyl_bound(problem, adi, bound)
            else:
                certificate, product = _iterate_until_converged(problem, adi, accuracy, center)
    if galerkin is None:
        factors = _assembled_factors(problem, adi, bound, accuracy, certificate, unstable, product)
    else:
        factors = _projected_factors(problem, galerkin, bound, accuracy, unstable)
    if bound is None and math.isfinite(certificate) and factors.values.size:
        sampled = sampled_error(factors, _sample_frequencies(adi.ritz, unstable))
        certificate = max(certificate, sampled) + rounding_of_values(factors)
        factors = replace(factors, certificate=certificate, factorizations=problem.pencil.factorizations)
    largest = float(factors.values.max(initial=0.0))
    requested = accuracy * largest if largest > 0 else factors.negligible_value
    if not factors.certificate <= requested:
        columns = [L.shape[1] for L in (factors.controllability, factors.observability)]
        raise ConvergenceError(
            f"the low-rank factors of the Gramians did not converge: after {factors.factorizations} sparse "
            f"factorizations and {columns[0]} + {columns[1]} columns the accuracy of the singular values is "
            f"{_share(factors.certificate, largest)} of the largest ({factors.kind}), and {accuracy:.1e} was "
            f"requested; the residual is {factors.residual:.1e}. {_remedy(model.n_states)}"
        )
    return factors


def _deflated(
    problem: SparseProblem, adi: DualADI, stability_tol: float
) -> tuple[SparseProblem, InvariantSubspace, float]:
    """Deflate unstable and marginal poles from both sides; return the problem without them, and them.

    The third item is about the size of the slowest other poles, or zero where nothing was deflated.
    """
    pencil = problem.pencil
    rigid = rigid_body_part(pencil)
    adi.next_shifts()  # computes first approximations of the poles
    slowest = float(np.abs(adi.ritz).min(initial=np.inf))
    unstable = no_unstable_part(pencil.n)
    if rigid is not None:
        unstable, slowest = rigid.at_origin, rigid.slowest
        if rigid.damped is not None and isinstance(pencil, SecondOrderPencil):
            adi.pencil = WithKnownPoles(pencil, rigid.damped)
            problem = replace(problem, pencil=adi.pencil)
    elif math.isfinite(slowest):
        unstable = unstable_part(pencil, slowest, stability_tol)
    if unstable.A.size == 0:
        return problem, unstable, 0.0
    adi.deflate(unstable.left, unstable.right)
    return replace(problem, B=adi.controllability.W, C=adi.observability.W.T), unstable, slowest


def _share(certificate: float, largest: float) -> str:
    return (
        f"{certificate / largest:.1e}" if largest > 0 and math.isfinite(certificate) else "an unknown share"
    )


def _remedy(n: int) -> str:
    dense = "use solver='dense'" if n <= DENSE_LIMIT else "with enough memory, use solver='dense'"
    return (
        "Lightly damped models with many significant modes have Gramians without low rank, and models with "
        f"unstable poles have no Gramians: {dense}, or request a lower accuracy (accuracy=)"
    )


def _iterate_until_projected(
    problem: SparseProblem, adi: DualADI, bound: ResidualBound, accuracy: float
) -> GalerkinFactors | None:
    """Take steps until a Galerkin projection is as accurate as requested; return its factors.

    The result is None for models with few states per input and output, in discrete time, if no input reaches
    an output, and if rounding prevents the requested accuracy: then further steps of the iteration follow,
    which round less.
    """
    ports = problem.B.shape[1] + problem.C.shape[0]
    pencil = problem.pencil
    if pencil.n < STATES_PER_PORT * ports or problem.discrete or not isinstance(pencil, SparsePencil):
        return None
    project_below = PROJECTED_RESIDUALS[pencil.n > CHEAP_STATES]
    attempts = 0
    for residual in _steps(adi):
        if not math.isfinite(residual):
            return None
        if residual > project_below:
            continue
        if attempts == MAX_PROJECTIONS:
            return None
        blocks = adi.controllability.blocks + [block.conj() for block in adi.observability.blocks]
        factors = galerkin_factors(pencil, problem.B, problem.C, blocks, bound)
        attempts += 1
        if factors is None or factors.relative_rounding > accuracy:
            return None
        requested = accuracy * factors.largest_value
        if factors.certificate <= requested:
            return factors
        if factors.largest_value <= factors.rounding or residual < SMALLEST_RESIDUAL:
            return None
        project_below = residual * min(requested / factors.certificate, PROJECTED_AGAIN)
    return None


def _steps(adi: DualADI) -> Iterator[float]:
    """Take steps, about MAX_SHIFTS at most, and yield the larger relative residual after each."""
    while len(adi.shifts) < MAX_SHIFTS and (batch := adi.next_shifts()):
        for shift in batch:
            adi.step(shift)
            for side in adi.sides:
                side.compress()
            yield max(side.residual for side in adi.sides)


def _iterate_until_proven(
    problem: SparseProblem, adi: DualADI, bound: ResidualBound, accuracy: float
) -> None:
    """Take steps until the bound, computed rarely, is as small as requested, or cannot become so."""
    check_below = accuracy**2 * (10 if problem.pencil.n <= CHEAP_STATES else 0.1)
    if problem.pencil.n <= CHEAP_STATES:
        check_below = min(check_below, TARGET_RESIDUAL)
    for residual in _steps(adi):
        if not math.isfinite(residual) or residual < SMALLEST_RESIDUAL:
            return
        if residual > check_below:
            continue
        certificate = weyl_bound(problem, adi, bound)
        requested = accuracy * largest_value(problem, adi)
        if certificate <= requested:
            return
        # the bound decreases as the root of the residual
        check_below = residual * (requested / certificate) ** 2


def _iterate_until_converged(
    problem: SparseProblem, adi: DualADI, accuracy: float, center: float
) -> tuple[float, Array]:
    """Take steps until the last ones change little; return an estimate of the error, and Lo^H E Lc.

    As far as poles are known they are the shifts, those with the largest contribution to the gain first:
    without a shift at its pole, a lightly damped mode is hardly resolved, and its contribution is visible
    only once its shift has been used.
    """
    changes: list[float] = []
    product = _GrowingProduct(problem, adi)
    B, C = problem.input_output_matrices
    poles, gains = slow_poles(problem.pencil, B, C, FIRST_POLES, center)
    lightly_damped = poles.size > 0 and float(np.median(np.abs(poles.real) / np.abs(poles))) < LIGHTLY_DAMPED
    unused = list(poles[np.argsort(-gains)].conj()) if poles.size else []
    estimate = target = math.inf
    change_by_poles, far_batches = 0.0, 0
    width = max(side.W.shape[1] for side in adi.sides)
    max_shifts = min(MAX_SHIFTS, max(problem.pencil.n // 2, MIN_COLUMNS) // width)
    while len(adi.shifts) < max_shifts:
        if not unused and lightly_damped and math.isfinite(estimate):
            if estimate <= target or (far_batches and changes[-1] > target / SAFETY):
                # shifts far from the origin are chosen from the residuals
                batch, far_batches = adi.far_shifts(), far_batches + 1
            else:
                more, gains = slow_poles(problem.pencil, B, C, 2 * poles.size, center)
                new = np.abs(more) > np.abs(poles).max() * (1 + SAME_POLE)
                unused = list(more[new][np.argsort(-gains[new])].conj())
                poles, lightly_damped = more, bool(unused)
                continue
        elif unused:
            batch, unused = unused[:SHIFTS], unused[SHIFTS:]
        else:
            batch = adi.next_shifts()
        if not batch:  # all Ritz values are on the stability boundary
            return math.inf, product.matrix
        for shift in batch:
            adi.step(complex(shift))
        residual = max(side.residual for side in adi.sides)
        if not residual <= DIVERGED:
            return math.inf, product.matrix
        changes.append(product.grow())
        if not far_batches:
            change_by_poles = max(changes[-RECENT_BATCHES:]) if len(changes) >= RECENT_BATCHES else math.inf
        recent = changes[len(changes) - min(far_batches, FAR_BATCHES) :]
        estimate = SAFETY * max([change_by_poles, *recent])
        target = accuracy * product.largest
        if not unused and estimate <= target:
            # a resonance whose pole is not used would not be visible in the changes: all known poles are used
            if far_batches >= FAR_BATCHES or (not lightly_damped and residual <= CONVERGED_RESIDUAL):
                break
        elif _converges_too_slowly(changes, target / SAFETY, max_shifts // SHIFTS):
            break
    adi.ritz = np.concatenate([poles, adi.ritz])
    return estimate, product.matrix


def _sample_frequencies(ritz: Array, unstable: InvariantSubspace) -> Array:
    """Return the origin, unless a pole may be there, and frequencies covering the approximate poles."""
    sizes = np.abs(ritz)
    origin = np.zeros(0 if unstable.A.size else 1)
    if sizes.size == 0:
        return origin
    return np.concatenate([origin, np.geomspace(sizes.min() / 2, 4 * sizes.max(), SAMPLES)])


def sampled_error(factors: LowRankFactors, frequencies: Array) -> float:
    """Return the largest gain of the model minus its balanced states at these frequencies of the pencil.

    The effect of the rounding of A on the gain is subtracted, because near a resonance it is much larger than
    the effect on the singular values.
    """
    problem = factors.problem
    displacements, _, widths = _sensitivities(factors)
    rounding = float(np.max(displacements / widths, initial=0.0))
    B, C = problem.input_output_matrices
    reduced = factors.all_states
    largest = 0.0
    for frequency in frequencies:
        s = 1j * frequency
        try:
            response = -C @ problem.pencil.shifted(-s)(B)
        except (ModelError, ConvergenceError):  # a pole on the boundary
            return math.inf
        point, scale = ((1 + s) / (1 - s), 1 - s) if problem.discrete else (s, 1.0)
        pencil = point * np.eye(factors.values.size) - reduced.A
        reduced_response = reduced.C @ np.linalg.solve(pencil, reduced.B.astype(complex))
        error = float(np.linalg.norm(scale * response - reduced_response, 2))
        largest = max(largest, error - rounding * float(np.linalg.norm(reduced_response, 2)))
    return largest


def rounding_of_values(factors: LowRankFactors) -> float:
    """Estimate the effect on the singular values of rounding the entries of A, as in each factorization.

    The pole lambda of a state moves by d = eps |left|^T |A| |right|, which changes its singular value by the
    share d / |lambda|. If d is not small compared with the width |Re lambda| of the resonance, the solves at
    different shifts belong to different models, which changes the value by a share of order
    (d / Re lambda)^2.
    """
    if factors.values.size == 0:
        return 0.0
    displacements, moduli, widths = _sensitivities(factors)
    shares = np.minimum(displacements / moduli + 0.5 * (displacements / (4 * widths)) ** 2, 1.0)
    rounding = factors.problem.pencil.n * EPS * float(factors.values[0]) + factors.rounding
    return rounding + float(np.max(factors.values[: shares.size] * shares))


def _sensitivities(factors: LowRankFactors) -> tuple[Array, Array, Array]:
    """Return how far rounding moves the poles of the leading states, their moduli and their peaks' widths."""
    r = min(LEADING_STATES, factors.values.size)
    states, pencil = factors.all_states.leading(r), factors.problem.pencil
    left, right = states.left, states.right
    if isinstance(pencil, WithKnownPoles):
        left, right = pencil.without_known(left, transposed=True), pencil.without_known(right)
    displacements = EPS * pencil.sizes(np.abs(left), np.abs(right))
    A = states.A
    tiny = np.finfo(float).tiny
    return (
        displacements,
        np.maximum(np.linalg.norm(A, axis=1), tiny),
        np.maximum(np.abs(np.diag(A).real), tiny),
    )


def _converges_too_slowly(changes: list[float], target: float, max_batches: int) -> bool:
    """Return whether more than `max_batches` are required if the changes decrease at the rate so far."""
    count = len(changes)
    if count < MIN_BATCHES:
        return False
    early, late = max(changes[count // 2 - RECENT_BATCHES : count // 2]), max(changes[-RECENT_BATCHES:])
    if late <= target:
        return False
    if late >= early:
        return True
    return count + math.log(late / target) * (count / 2) / math.log(early / late) > max_batches


class _GrowingProduct:
    """Lo^H E Lc, extended by the columns of each batch of steps, and how much each batch changes it."""

    def __init__(self, problem: SparseProblem, adi: DualADI):
        self._problem, self._adi = problem, adi
        self.matrix = np.zeros((0, 0), adi.controllability.W.dtype)
        self._batches = 0  # each of which is one block of either side

    def grow(self) -> float:
        """Add the new blocks of both sides; return the norm of the entries that they add."""
        for side in self._adi.sides:
            side.blocks[self._batches :] = [np.hstack(side.blocks[self._batches :])]
        Lc, Lo = (side.blocks for side in self._adi.sides)
        image = self._problem.E(Lc[-1])
        right = np.concatenate([block.T @ image for block in Lo])
        old = self._problem.E(Lo[-1].conj(), adjoint=True).conj().T
        before = self.matrix.shape[0]
        top = np.concatenate([self.matrix, right[:before]], axis=1)
        bottom = np.concatenate([*(old @ block for block in Lc[:-1]), right[before:]], axis=1)
        self.matrix = np.concatenate([top, bottom])
        self._batches += 1
        change = float(np.linalg.norm(right, 2))
        return max(change, float(np.linalg.norm(bottom, 2)))

    @property
    def largest(self) -> float:
        """The largest singular value so far."""
        return float(np.linalg.norm(self.matrix, 2))


def weyl_bound(problem: SparseProblem, adi: DualADI, bound: ResidualBound) -> float:
    """Return a bound for the error of all singular values."""
    dP, dQ = (bound(side) for side in adi.sides)
    P, Q = (trace(problem, side) + rest for side, rest in zip(adi.sides, (dP, dQ), strict=True))
    return max(math.sqrt(Q * dP), math.sqrt(P * dQ)) + math.sqrt(dP * dQ)


def trace(problem: SparseProblem, side: Side) -> float:
    """Return the trace of Z^H E Z, which is at least its largest eigenvalue."""
    return float(sum(np.sum(block.conj() * problem.E(block)).real for block in side.blocks))


def largest_value(problem: SparseProblem, adi: DualADI) -> float:
    """Return the largest singular value of Lo^H E Lc so far, from below, by power iteration."""
    Lc, Lo = (side.factor() for side in adi.sides)
    x: Array = np.random.default_rng(0).standard_normal((Lc.shape[1], 1))
    size = 0.0
    for _ in range(POWER_ITERATIONS):
        x = np.asarray(x / float(np.linalg.norm(x)))
        y = Lo.T @ problem.E(Lc @ x)
        size = float(np.linalg.norm(y))
        if size == 0:
            break
        x = np.asarray(Lc.conj().T @ problem.E(Lo.conj() @ y, adjoint=True))
    return size


def _assembled_factors(
    problem: SparseProblem,
    adi: DualADI,
    bound: ResidualBound | None,
    accuracy: float,
    certificate: float,
    unstable: InvariantSubspace,
    product: Array | None,
) -> LowRankFactors:
    Lc, Lo = adi.controllability.factor(), adi.observability.factor().conj()
    if product is None:
        product, rounding = _product(Lo, problem.E(Lc))
    else:
        rounding = EPS * float(np.linalg.norm(Lo)) * float(np.linalg.norm(problem.E(Lc)))
    largest = float(np.linalg.norm(product, 2)) if product.size else 0.0  # numpy 1 raises without entries
    return LowRankFactors(
        problem=problem,
        controllability=Lc,
        observability=Lo,
        product=product,
        kind="estimate" if bound is None else "rigorous",
        certificate=certificate + rounding + problem.pencil.n * EPS * largest,
        rounding=rounding,
        residual=max(side.residual for side in adi.sides),
        factorizations=problem.pencil.factorizations,
        bound=bound,
        accuracy=accuracy,
        unstable=unstable,
        residual_factors=(adi.controllability.W, adi.observability.W.conj()),
    )


def _projected_factors(
    problem: SparseProblem,
    galerkin: GalerkinFactors,
    bound: ResidualBound | None,
    accuracy: float,
    unstable: InvariantSubspace,
) -> LowRankFactors:
    none = np.zeros((problem.pencil.n, 0))
    return LowRankFactors(
        problem=problem,
        controllability=galerkin.controllability,
        observability=galerkin.observability,
        product=galerkin.product,
        kind="rigorous",
        certificate=galerkin.certificate,
        rounding=galerkin.rounding,
        residual=galerkin.residual,
        factorizations=problem.pencil.factorizations,
        bound=bound,
        accuracy=accuracy,
        unstable=unstable,
        residual_factors=(none, none),
    )


def _product(Lo: Array, image: Array) -> tuple[Array, float]:
    """Return Lo^H image and the size of its rounding errors, in blocks of rows to save memory."""
    product = Lo.conj().T @ image
    sizes = np.zeros(product.shape)
    for start in range(0, Lo.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        sizes += np.abs(Lo[rows]).T @ np.abs(image[rows])
    return product, EPS * float(np.linalg.norm(sizes))
