"""Low-rank factors of the Gramians of large sparse models, and the accuracy of the singular values.

The dual ADI iteration (`dual_adi`) stops when the certificate of the Hankel singular values is as small as
required. If the decay of the model can be proved (`residual_bounds`) it is a rigorous bound: with the
Gramians' factors Zp, Zq and the Gramians dP, dQ of the final residuals, by Weyl's inequality

    |sigma_i - sigma_i(Zq^T E Zp)| <= max(sqrt(|Q| |dP|), sqrt(|P| |dQ|)) + sqrt(|dP| |dQ|).

Otherwise it is an estimate: the change by the last columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .._util.arrays import EPS, Array
from .._util.checks import real_number
from .._util.progress import on_terminal, with_status_line
from ..errors import ConvergenceError, ModelError, OrderError, short_repr
from ..models.linear_model import DENSE_LIMIT
from ..models.pencil import Factorize, Pencil
from ..models.scaling import gain_exponent
from ..models.sparse_model import SparseModel
from .deflation import UnstablePart, no_unstable_part, unstable_part
from .dual_adi import SHIFTS, DualADI, Side
from .poles import slow_poles
from .residual_bounds import ResidualBound, check_descriptor, is_proven_stable, proven_bound
from .stability import STABILITY_TOL

#: Accuracy of the singular values, relative to the largest, unless another is asked for.
ACCURACY = 1e-4
#: Steps of the power iteration for the largest singular value during the iteration.
POWERS = 8
#: Rows whose absolute values are taken at a time.
ROWS = 65_536
#: Poles near the origin that are looked for first.
FIRST_POLES = 40
#: Models whose poles have less damping than this are lightly damped.
LIGHTLY_DAMPED = 0.1
#: Poles nearer than this, relatively, to the farthest one known are not taken as new ones.
SAME_POLE = 1e-6
#: What the last batches of steps changed, times this, estimates what is missing.
REMEMBERED = 2
SAFETY = 2.0
#: Frequencies beside the origin at which an estimate is checked.
SAMPLES = 4
#: Balanced states whose sensitivity to rounding is looked at.
LEADING = 8
#: So many columns are no proof that Gramians have no low rank, however few the states.
FEW_COLUMNS = 400
#: Batches of shifts from what is left over, after the poles of a lightly damped model.
FAR = 2
#: A residual beyond this is that of an unstable pole.
DIVERGED = 1e15
#: Residual to be reached where it says something: not of lightly damped models, whose fast modes keep it
#: large.
SETTLED_RESIDUAL = 1e-8
#: Batches after which the rank of the Gramians is checked.
PATIENCE = 12
#: Smallest residual that is required.
SMALLEST = 1e-28
#: Residual to be reached whatever the certificate is, because small singular values depend on it. Models of
#: more than CHEAP_STATES states, with expensive factorizations, only reach what their certificate requires.
RESIDUAL = 2e-13
CHEAP_STATES = 20_000
#: No more factorizations than this.
MAX_SHIFTS = 500


@dataclass(frozen=True)
class SparseProblem:
    """A model as the iteration works on it: its pencil, and ports with entries of about one.

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
        """The model's gains divided by those of this problem."""
        return 2.0 ** (self.input_exponent + self.output_exponent)

    @property
    def ports(self) -> tuple[Array, Array]:
        """B and C of the model itself but for the gain."""
        root = math.sqrt(2) if self.discrete else 1.0
        return self.B / root, self.C / root

    def E(self, x: Array, *, adjoint: bool = False) -> Array:
        """Return E x with E of the model, or E^H x."""
        E, A = self._products(x, adjoint)
        return (E - A) / 2 if A is not None else E

    def A(self, x: Array, *, adjoint: bool = False) -> Array:
        """Return A x with A of the model, or A^H x."""
        if not self.discrete:
            return _product_with(self.pencil.A, x, adjoint)
        E, A = self._products(x, adjoint)
        return (E + A) / 2

    def _products(self, x: Array, adjoint: bool) -> tuple[Array, Array | None]:
        A = _product_with(self.pencil.A, x, adjoint) if self.discrete else None
        return _product_with(self.pencil.E, x, adjoint), A


def _product_with(times: Callable[..., Array], x: Array, adjoint: bool) -> Array:
    return times(x.conj(), transposed=True).conj() if adjoint else times(x)


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
    B = pencil.into(model.B * 2.0**-input_exponent) * root
    C = pencil.into(model.C.T * 2.0**-output_exponent).T * root
    return SparseProblem(pencil, B, C, model.is_discrete, input_exponent, output_exponent)


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """Factors of both Gramians of a problem, and what is known of their accuracy.

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
    #: size of the rounding in the product
    rounding: float
    residual: float
    factorizations: int
    #: what is proved about the model's decay; None where nothing is
    bound: ResidualBound | None
    #: the accuracy that was asked for
    accuracy: float
    #: the unstable and marginal part
    unstable: UnstablePart
    #: what is left over on both sides
    left_over: tuple[Array, Array]

    @property
    def n_unstable(self) -> int:
        """Number of unstable and marginal poles."""
        return int(self.unstable.A.shape[0])

    @cached_property
    def values(self) -> Array:
        """Singular values that can be told from rounding."""
        values = np.linalg.svd(self.product, compute_uv=False)
        return values[values > self.rounding]

    @cached_property
    def vectors(self) -> tuple[Array, Array]:
        """Left and right singular vectors of the product, as columns."""
        U, _, Vh = np.linalg.svd(self.product, full_matrices=False)
        k = self.values.size
        return U[:, :k], Vh[:k].conj().T

    @cached_property
    def all_states(self) -> Balanced:
        """All balanced states that can be told from rounding."""
        return self.balanced(self.values.size)

    def balanced(self, r: int) -> Balanced:
        """Return the leading r balanced states."""
        U, V = self.vectors
        scale = 1 / np.sqrt(self.values[:r])
        left: Array = self.observability @ (U[:, :r] * scale)
        right: Array = self.controllability @ (V[:, :r] * scale)
        # left^H E right is the identity up to rounding of size eps sigma_1 / sigma_r, which is taken out
        left = np.linalg.solve(left.conj().T @ self.problem.E(right), left.conj().T).conj().T
        B, C = self.problem.ports
        into = left.conj().T
        return Balanced(left, right, into @ self.problem.A(right), into @ B, C @ right)


@dataclass(frozen=True, eq=False)
class Balanced:
    """Balanced states of a problem: bases (n, r) with left^H E right = 1, and A, B and C in its units."""

    left: Array
    right: Array
    A: Array
    B: Array
    C: Array

    def leading(self, r: int) -> Balanced:
        """Return the first r of the states."""
        return Balanced(self.left[:, :r], self.right[:, :r], self.A[:r, :r], self.B[:r], self.C[:, :r])


def checked_accuracy(accuracy: Any) -> float:
    """Return the accuracy asked for, or the default for None."""
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
    """Factor both Gramians of the stable part of a large model to the accuracy asked for.

    Raises
    ------
    ConvergenceError
        The certificate did not become as small as asked.
    """
    accuracy = checked_accuracy(accuracy)
    problem = sparse_problem(model, factorize)
    bound = proven_bound(problem.pencil, discrete=problem.discrete)
    adi = DualADI(problem.pencil, problem.B, problem.C)
    unstable = no_unstable_part(model.n_states)
    around, product = 0.0, None
    if bound is None:
        check_descriptor(problem.pencil, discrete=problem.discrete)
    if bound is None and not is_proven_stable(problem.pencil):
        adi.next_shifts()  # for a first look at the poles
        near = float(np.abs(adi.ritz).min(initial=np.inf))
        unstable = unstable_part(problem.pencil, near, stability_tol) if math.isfinite(near) else unstable
        if unstable.A.size:
            adi.deflate(unstable.left, unstable.right)
            problem = replace(problem, B=adi.controllability.W, C=adi.observability.W.T)
            around = near
    certificate = 0.0  # where no input drives the model, or no output sees it
    if all(side.start > 0 for side in adi.sides):
        visible = model.n_states > CHEAP_STATES and on_terminal()
        with with_status_line("low-rank Gramians", visible) as adi.tell:
            if bound is not None:
                _iterate_until_proven(problem, adi, bound, accuracy)
                certificate = weyl_bound(problem, adi, bound)
            else:
                certificate, product = _iterate_until_settled(problem, adi, accuracy, around)
    factors = _finished(problem, adi, bound, accuracy, certificate, unstable, product)
    if bound is None and math.isfinite(certificate) and factors.values.size:
        seen = sampled_error(factors, _other_frequencies(adi.ritz, unstable))
        certificate = max(certificate, seen) + rounding_of_values(factors)
        factors = replace(factors, certificate=certificate, factorizations=problem.pencil.factorizations)
    largest = float(factors.values.max(initial=0.0))
    if not factors.certificate <= accuracy * largest:
        columns = [L.shape[1] for L in (factors.controllability, factors.observability)]
        raise ConvergenceError(
            f"the low-rank factors of the Gramians did not converge: after {factors.factorizations} sparse "
            f"factorizations and {columns[0]} + {columns[1]} columns the singular values are known to "
            f"{_share(factors.certificate, largest)} of the largest ({factors.kind}), where {accuracy:.1e} "
            f"was asked for; the residual is {factors.residual:.1e}. {_remedy(model.n_states)}"
        )
    return factors


def _share(certificate: float, largest: float) -> str:
    return f"{certificate / largest:.1e}" if largest > 0 and math.isfinite(certificate) else "no share"


def _remedy(n: int) -> str:
    dense = "use solver='dense'" if n <= DENSE_LIMIT else "with enough memory, use solver='dense'"
    return (
        "Lightly damped models with many modes that matter have Gramians without low rank, and unstable "
        f"poles have none: {dense}, or ask for less (accuracy=)"
    )


def _iterate_until_proven(
    problem: SparseProblem, adi: DualADI, bound: ResidualBound, accuracy: float
) -> None:
    """Take steps until the bound, looked at rarely, is as small as asked, or there is no hope of it."""
    look_at = accuracy**2 * (10 if problem.pencil.n <= CHEAP_STATES else 0.1)
    if problem.pencil.n <= CHEAP_STATES:
        look_at = min(look_at, RESIDUAL)
    while len(adi.shifts) < MAX_SHIFTS:
        for shift in adi.next_shifts():
            adi.step(shift)
            for side in adi.sides:
                side.compress()
            residual = max(side.residual for side in adi.sides)
            if not math.isfinite(residual) or residual < SMALLEST:
                return
            if residual > look_at:
                continue
            share = weyl_bound(problem, adi, bound) / largest_value(problem, adi) / accuracy
            if share <= 1:
                return
            # the bound falls as the root of the residual
            look_at = residual / share**2


def _iterate_until_settled(
    problem: SparseProblem, adi: DualADI, accuracy: float, around: float
) -> tuple[float, Array]:
    """Take steps until the last ones change little; return an estimate of what is missing, and Lo^H E Lc.

    The shifts are poles where these are known, those that matter most to the gain first: of a lightly damped
    mode nothing else finds enough, and what it adds is seen when its turn comes.
    """
    changes: list[float] = []
    product = _GrowingProduct(problem, adi)
    known, gains = slow_poles(problem.pencil, *problem.ports, FIRST_POLES, around)
    lightly = known.size > 0 and float(np.median(np.abs(known.real) / np.abs(known))) < LIGHTLY_DAMPED
    waiting = list(known[np.argsort(-gains)].conj()) if known.size else []
    estimate = target = math.inf
    by_poles, far = 0.0, 0
    width = max(side.W.shape[1] for side in adi.sides)
    most = min(MAX_SHIFTS, max(problem.pencil.n // 2, FEW_COLUMNS) // width)
    while len(adi.shifts) < most:
        if not waiting and lightly and math.isfinite(estimate):
            if estimate <= target or (far and changes[-1] > target / SAFETY):
                # what is far from the origin is found in what is left over
                batch, far = adi.far_shifts(), far + 1
            else:
                more, gains = slow_poles(problem.pencil, *problem.ports, 2 * known.size, around)
                unused = np.abs(more) > np.abs(known).max() * (1 + SAME_POLE)
                waiting = list(more[unused][np.argsort(-gains[unused])].conj())
                known, lightly = more, bool(waiting)
                continue
        elif waiting:
            batch, waiting = waiting[:SHIFTS], waiting[SHIFTS:]
        else:
            batch = adi.next_shifts()
        for shift in batch:
            adi.step(complex(shift))
        residual = max(side.residual for side in adi.sides)
        if not residual <= DIVERGED:
            return math.inf, product.matrix
        changes.append(product.grow())
        if not far:
            by_poles = max(changes[-REMEMBERED:]) if len(changes) >= REMEMBERED else math.inf
        estimate = SAFETY * max([by_poles, *changes[len(changes) - min(far, FAR) :]])
        target = accuracy * product.largest
        if not waiting and estimate <= target:
            # of a resonance that is left out nothing would be seen, so that all known poles are used
            if far >= FAR or (not lightly and residual <= SETTLED_RESIDUAL):
                break
        elif _is_hopeless(changes, target / SAFETY, most // SHIFTS):
            break
    adi.ritz = np.concatenate([known, adi.ritz])
    return estimate, product.matrix


def _other_frequencies(ritz: Array, unstable: UnstablePart) -> Array:
    """Return the origin, if no pole may be there, and frequencies over and beyond the poles seen."""
    sizes = np.abs(ritz)
    origin = np.zeros(0 if unstable.A.size else 1)
    if sizes.size == 0:
        return origin
    return np.concatenate([origin, np.geomspace(sizes.min() / 2, 4 * sizes.max(), SAMPLES)])


def sampled_error(factors: LowRankFactors, frequencies: Array) -> float:
    """Return the largest gain of the model minus its balanced states at these frequencies of the pencil.

    Less what the rounding of A does to the gain, which near a resonance is far more than it does to the
    singular values.
    """
    problem = factors.problem
    moved, _, widths = _sensitivities(factors)
    rounding = float(np.max(moved / widths, initial=0.0))
    B, C = problem.ports
    reduced = factors.all_states
    worst = 0.0
    for frequency in frequencies:
        s = 1j * frequency
        try:
            response = -C @ problem.pencil.shifted(-s)(B)
        except (ModelError, ConvergenceError):  # a pole on the boundary
            return math.inf
        point, scale = ((1 + s) / (1 - s), 1 - s) if problem.discrete else (s, 1.0)
        pencil = point * np.eye(factors.values.size) - reduced.A
        small = reduced.C @ np.linalg.solve(pencil, reduced.B.astype(complex))
        apart = float(np.linalg.norm(scale * response - small, 2))
        worst = max(worst, apart - rounding * float(np.linalg.norm(small, 2)))
    return worst


def rounding_of_values(factors: LowRankFactors) -> float:
    """Estimate what rounding of the entries of A, as in each factorization, does to the singular values.

    Of a state with the pole lambda it moves the pole by d = eps |left|^T |A| |right|: the value by the share
    d / |lambda|, and where d comes near the width |Re lambda| of its resonance, the solves at different
    shifts are those of different models, which costs a share of order (d / Re lambda)^2.
    """
    if factors.values.size == 0:
        return 0.0
    moved, rates, widths = _sensitivities(factors)
    shares = np.minimum(moved / rates + 0.5 * (moved / (4 * widths)) ** 2, 1.0)
    known = factors.problem.pencil.n * EPS * float(factors.values[0]) + factors.rounding
    return known + float(np.max(factors.values[: shares.size] * shares))


def _sensitivities(factors: LowRankFactors) -> tuple[Array, Array, Array]:
    """Return for the leading states how far rounding moves the pole, its size, the width of its peak."""
    r = min(LEADING, factors.values.size)
    states = factors.all_states.leading(r)
    moved = EPS * factors.problem.pencil.sizes(np.abs(states.left), np.abs(states.right))
    A = states.A
    tiny = np.finfo(float).tiny
    return moved, np.maximum(np.linalg.norm(A, axis=1), tiny), np.maximum(np.abs(np.diag(A).real), tiny)


def _is_hopeless(changes: list[float], target: float, most: int) -> bool:
    """Tell whether changes that fall as they have done so far would take more than `most` batches."""
    count = len(changes)
    if count < PATIENCE:
        return False
    early, late = max(changes[count // 2 - REMEMBERED : count // 2]), max(changes[-REMEMBERED:])
    if late <= target:
        return False
    return late >= early or count + math.log(late / target) * (count / 2) / math.log(early / late) > most


class _GrowingProduct:
    """Lo^H E Lc, grown by the columns of each batch of steps, and how much a batch changed it."""

    def __init__(self, problem: SparseProblem, adi: DualADI):
        self._problem, self._adi = problem, adi
        self.matrix = np.zeros((0, 0), adi.controllability.W.dtype)
        self._columns = self._rows = 0

    def grow(self) -> float:
        """Take in the new blocks of both sides; return the size of what they add."""
        Lc, Lo = (side.blocks for side in self._adi.sides)
        new_c, new_o = Lc[self._columns :], Lo[self._rows :]
        image = self._problem.E(np.hstack(new_c))
        right = np.concatenate([o.T @ image for o in Lo])
        old = self._problem.E(np.hstack(new_o).conj(), adjoint=True)
        below = np.hstack([(old.conj().T @ c) for c in Lc[: self._columns]]) if self._columns else None
        before = self.matrix.shape[0]
        top = np.concatenate([self.matrix, right[:before]], axis=1)
        bottom = right[before:] if below is None else np.concatenate([below, right[before:]], axis=1)
        self.matrix = np.concatenate([top, bottom])
        self._columns, self._rows = len(Lc), len(Lo)
        change = float(np.linalg.norm(right, 2))
        return max(change, float(np.linalg.norm(bottom, 2)))

    @property
    def largest(self) -> float:
        """The largest singular value so far."""
        return float(np.linalg.norm(self.matrix, 2))


def weyl_bound(problem: SparseProblem, adi: DualADI, bound: ResidualBound) -> float:
    """Return the bound of the error of all singular values."""
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
    for _ in range(POWERS):
        x = np.asarray(x / float(np.linalg.norm(x)))
        y = Lo.T @ problem.E(Lc @ x)
        size = float(np.linalg.norm(y))
        if size == 0:
            break
        x = np.asarray(Lc.conj().T @ problem.E(Lo.conj() @ y, adjoint=True))
    return size


def _finished(
    problem: SparseProblem,
    adi: DualADI,
    bound: ResidualBound | None,
    accuracy: float,
    certificate: float,
    unstable: UnstablePart,
    product: Array | None,
) -> LowRankFactors:
    Lc, Lo = adi.controllability.factor(), adi.observability.factor().conj()
    if product is None:
        product, rounding = _product(Lo, problem.E(Lc))
    else:
        rounding = EPS * float(np.linalg.norm(Lo)) * float(np.linalg.norm(problem.E(Lc)))
    return LowRankFactors(
        problem=problem,
        controllability=Lc,
        observability=Lo,
        product=product,
        kind="estimate" if bound is None else "rigorous",
        certificate=certificate + rounding + problem.pencil.n * EPS * float(np.linalg.norm(product, 2)),
        rounding=rounding,
        residual=max(side.residual for side in adi.sides),
        factorizations=problem.pencil.factorizations,
        bound=bound,
        accuracy=accuracy,
        unstable=unstable,
        left_over=(adi.controllability.W, adi.observability.W.conj()),
    )


def _product(Lo: Array, image: Array) -> tuple[Array, float]:
    """Return Lo^H image and the size of its rounding errors; by rows, as absolute values take memory."""
    product = Lo.conj().T @ image
    sizes = np.zeros(product.shape)
    for start in range(0, Lo.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        sizes += np.abs(Lo[rows]).T @ np.abs(image[rows])
    return product, EPS * float(np.linalg.norm(sizes))
