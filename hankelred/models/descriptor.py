"""Models with a singular E: a state space of their finite poles, and a polynomial of their infinite ones.

With bases that separate the poles (:mod:`.descriptor_form`) the transfer function is

    C (s E - A)^-1 B + D = C_f (s - A_f)^-1 B_f + D_0 + s D_1 + s^2 D_2 + ...,

where D_k = -C_i (A_i^-1 E_i)^k A_i^-1 B_i is that of the infinite part. The bases are corrected with twice
the digits of double precision, and the two sides of this equation are compared, the left one with twice the
digits, before anything is returned.

Source: Mehrmann and Stykel, in Benner, Mehrmann, Sorensen (eds.), Dimension Reduction of Large-Scale Systems,
Springer (2005), chapter 3.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg as sla

from .._util.arrays import EPS, Array, largest_entry, reciprocal_condition
from .._util.poles import boundary_width, distance_to_boundary
from .._util.twofold import (
    Pair,
    pair,
    pair_product,
    pair_sum,
    refined_pair_solution,
    two_product,
    two_sum,
)
from ..errors import ConvergenceError, ModelError
from .descriptor_bases import DecoupledPencil, decouple, split_by_size
from .descriptor_form import (
    SINGULAR_PENCIL,
    SMALLEST_GAP,
    Elimination,
    SeparatedPencil,
    equilibrating_scales,
)
from .frequency_response import points_off_the_poles

#: Models with more states are corrected only where the comparison fails without.
ALWAYS_CORRECTED = 1000
#: Largest difference of the transfer functions that is accepted, relative to the original's.
ACCEPTED = 1e-8
#: What cancels between the finite part and the polynomial may leave this share of both.
CANCELED = 1e-13
#: Entries of D_k below this share of the terms that they are sums of are rounding.
NEGLIGIBLE = 1e-12
#: Terms s^k D_k below this share of the largest, at the frequency of the fastest pole, are rounding too.
INVISIBLE = 1e-13
#: Rounding of the entries of a model, in units in the last place.
DATA_ROUNDING = 10
#: Least number of points at which a difference as large as is accepted would be visible beside rounding; with
#: fewer, the responses count as not compared.
LEAST_COMPARED = 2
#: Points at which transfer functions are compared, and for models with more than ALWAYS_CORRECTED states.
POINTS, FEW_POINTS = 9, 3
#: Entries of the bases, relative to the largest of a row or column, that are rounding of pairs.
BASIS_ROUNDING = 2.0**-86
#: Gap above rounding that leaves no doubt that a singular value is not zero.
CLEAR_GAP = 1e5
#: Poles smaller than the fastest by more are lost in a Schur form of all.
STIFF = 1e-12
#: Margin of a pole that is stable beyond doubt.
CLEARLY_STABLE = 1e-12
#: Lowest frequency that is compared beside marginal poles, relative to the slowest other pole.
FAR_BELOW = 1e-4
#: Reciprocal condition number below which s E - A is singular.
SINGULAR = 1e-15
#: Entries of a null vector below this share of the largest are zero.
NULL_ENTRY = 1e-6
#: Indices of states that a message names, and null vectors.
NAMED, NAMED_VECTORS = 8, 3
#: Corrections of a solution with s E - A.
REFINEMENTS = 3


@dataclass(frozen=True, eq=False)
class InfinitePart:
    """What a model with a singular E has beside the state space of its finite poles."""

    #: D_1, D_2, ...; empty for proper models
    improper: tuple[Array, ...]
    #: quotient of the smallest singular value that counted in a decision on ranks and the largest that did
    #: not
    gap: float
    #: number of states of the user's model
    n_states: int
    #: (n_states, finite states), left^T E right = 1; the finite part is left^T A right, left^T B, C right
    left: Array = field(repr=False)
    right: Array = field(repr=False)
    #: E^T left: the finite states are coordinates^T x
    coordinates: Array = field(repr=False)
    #: X_0, X_1, ...: x = right x_f + X_0 u + X_1 u' + ...
    states: tuple[Array, ...] = field(repr=False)
    E: Array = field(repr=False)
    #: poles of the finite part, and how far each is inside the stability boundary, measured on the pencil:
    #: the smallest relative change of all entries of A and E that may put it on the boundary
    poles: Array | None = field(default=None, repr=False)
    margins: Array | None = field(default=None, repr=False)

    def tolerance(self, tol: float, size: float, *, discrete: bool) -> float:
        """Return the tolerance, relative to the size of a state space, that acts as `tol` does on the pencil.

        A stiff circuit has poles that are slower than the fastest by more than double precision has digits.
        Such poles are rounding errors beside the size of E^-1 A, but not in the pencil.
        """
        if self.poles is None or self.margins is None or self.poles.size == 0:
            return tol
        depth = distance_to_boundary(self.poles, discrete=discrete)
        unit = boundary_width(size, discrete=discrete, tol=1.0)
        if unit == 0:
            return tol
        stable = self.margins > tol
        if np.all(stable):
            return min(tol, 0.5 * float(depth.min()) / unit)
        outside = float(depth[~stable].max())
        least = float(depth[stable & (depth > outside)].min(initial=np.inf))
        if math.isinf(least):
            return max(tol, 2 * outside / unit)
        # other computations put a marginal pole elsewhere, by the rounding of the state space
        outside = max(outside, min(8 * EPS * unit, 1e-3 * least))
        return math.sqrt(outside * least) / unit


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A state space, the polynomial beside it, and how well both agree with the model."""

    A: Array
    B: Array
    C: Array
    D: Array
    infinite: InfinitePart
    error: float


def finite_part(
    A: Array, B: Array, C: Array, D: Array, E: Array, *, discrete: bool
) -> tuple[Array, Array, Array, Array, InfinitePart]:
    """Return A, B, C and D of the finite poles of a model with a singular E, and what it has beside them.

    Raises
    ------
    ModelError
        A singular pencil, or one whose infinite poles cannot be told from large finite ones.
    ConvergenceError
        The parts found do not add up to the model's transfer function.
    """
    _refuse_singular_pencil(A, E)
    candidates: list[_Candidate] = []
    failure: ModelError | None = None
    for widest in (False, True):
        try:
            # what overflows agrees with nothing, and neither does a block that is singular
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("error", sla.LinAlgWarning)
                elimination = Elimination(A, E, widest=widest)
                if candidates and elimination.rows.size == candidates[0].A.shape[0]:
                    continue
                candidates.append(_candidate(elimination.separated(), (A, B, C, D, E), discrete))
        except ModelError as error:
            failure = failure or error
        except (np.linalg.LinAlgError, sla.LinAlgWarning, ValueError) as error:
            failure = failure or ModelError(
                f"E is singular, and its infinite poles cannot be separated: {error}"
            )
    agreeing = [one for one in candidates if one.error <= 1]
    if not agreeing and candidates:
        best = min(candidates, key=lambda one: one.error)
        raise ConvergenceError(
            f"E is singular, and the finite part found ({best.A.shape[0]} of {A.shape[0]} poles) differs "
            f"from the model by {best.error:.1e} times what is accepted, {ACCEPTED:.0e} of its transfer "
            f"function, at some frequency; the gap between finite and infinite poles is "
            f"{best.infinite.gap:.1e}: choose units in which the entries of A and E are of similar size, or "
            "eliminate the algebraic states first"
        )
    if not agreeing:
        raise failure or ModelError("the infinite poles cannot be separated")
    # what is far above rounding is no zero, although the gap above it may be wider
    best = agreeing[0]
    if agreeing[0] is not candidates[0] or best.infinite.gap < CLEAR_GAP:
        best = max(agreeing, key=lambda one: one.infinite.gap)
    if best.infinite.gap < SMALLEST_GAP:
        raise ModelError(
            f"E is nearly singular, and infinite poles cannot be told from large finite ones: singular "
            f"values that count and that do not differ by a factor of {best.infinite.gap:.1f} only, where at "
            f"least {SMALLEST_GAP} is accepted; set entries of E that should be zero to zero, or scale the "
            "states"
        )
    return best.A, best.B, best.C, best.D, best.infinite


def _refuse_singular_pencil(A: Array, E: Array) -> None:
    """Refuse a pencil that is singular at points chosen at random."""
    n = A.shape[0]
    size_of_E = largest_entry(E)
    unit = largest_entry(A) / size_of_E if size_of_E > 0 else 1.0
    worst, singular = math.inf, np.zeros((n, n), complex)
    for scale in (1e-3, 1.0, 1e3):
        M = (0.6 + 0.8j) * scale * (unit or 1.0) * E - A
        rows, columns = equilibrating_scales(M)
        M = M * rows[:, None] * columns
        zeros = not np.all(np.any(M, axis=0)) or not np.all(np.any(M, axis=1))
        rcond = 0.0 if zeros else reciprocal_condition(M)
        if rcond > SINGULAR * math.sqrt(n):
            return
        if rcond < worst:
            worst, singular = rcond, M
    U, values, Vh = np.linalg.svd(singular)
    dimension = max(1, int(np.count_nonzero(values <= SINGULAR * n * values[0])))
    states, equations = (_supports(basis[:, -dimension:]) for basis in (Vh.conj().T, U.conj()))
    raise ModelError(
        SINGULAR_PENCIL.format(
            f"its reciprocal condition number is at most {worst:.1e} at three values of s, and its null "
            f"space has dimension {dimension}: {_listed(states, 'states')} are not determined, and "
            f"{_listed(equations, 'equations')} depend on each other"
        )
    )


def _supports(basis: Array) -> list[Array]:
    """Return the indices of the entries that are not zero in a basis of a null space with many zeros."""
    pivots = sla.qr(basis.conj().T, mode="r", pivoting=True)[1][: basis.shape[1]]
    sparse = np.abs(basis @ np.linalg.inv(basis[pivots]))
    return [np.flatnonzero(column > NULL_ENTRY * column.max()) for column in sparse.T]


def _listed(supports: list[Array], what: str) -> str:
    """Return the indices of some of the supports for a message."""
    lists = [
        ", ".join(map(str, support[:NAMED])) + (", ..." if support.size > NAMED else "")
        for support in supports[:NAMED_VECTORS]
    ]
    more = "" if len(supports) <= NAMED_VECTORS else " and others"
    return f"{what} {' or '.join(f'[{one}]' for one in lists)}{more}"


def _candidate(
    pencil: SeparatedPencil, model: tuple[Array, Array, Array, Array, Array], discrete: bool
) -> _Candidate:
    """Return a candidate that agrees with the model, or the best; what is cheap is tried first."""
    A, B, _, _, E = model
    small = A.shape[0] <= ALWAYS_CORRECTED
    nullity = _nullity(A - E if discrete else A) if small else 0
    candidate = _assembled(decouple(pencil, A, E, twofold=small), pencil, model, discrete, nullity)
    if candidate.error > 1 and not small:
        parts = decouple(pencil, A, E, twofold=True)
        candidate = _assembled(parts, pencil, model, discrete, nullity)
    poles = candidate.infinite.poles
    stiff = poles is not None and np.abs(poles).min() < STIFF * np.abs(poles).max()
    if candidate.A.size and (candidate.error > 1 or nullity or stiff):
        # rounding of the entries of fast poles moves slow ones, and those that are zero by structure
        parts = decouple(pencil, A, E, twofold=True)
        parts = split_by_size(parts, A, B, E, 0 if discrete else nullity)
        split = _assembled(parts, pencil, model, discrete, nullity)
        candidate = split if split.error <= max(candidate.error, 1.0) else candidate
    return candidate


def _assembled(
    parts: DecoupledPencil,
    pencil: SeparatedPencil,
    model: tuple[Array, Array, Array, Array, Array],
    discrete: bool,
    nullity: int,
) -> _Candidate:
    """Return the state space and the polynomial of decoupled parts, compared with the model."""
    A, B, C, D, E = model
    states = _polynomial(parts, pencil, B)
    direct, improper = _transfer_polynomial(C, D, states)
    left, right = parts.left[0], parts.right[0]
    Bf = _rounded(pair_product(parts.left, pair(B)), _outer_sizes(left, B))
    Cf = _rounded(pair_product(pair(C), parts.right), _outer_sizes(C, right))
    if not all(np.all(np.isfinite(M)) for M in (parts.A, Bf, Cf, left, right)):
        raise ModelError("E is singular, and its infinite poles cannot be separated: the bases overflow")
    poles = margins = None
    if 0 < parts.A.shape[0] <= ALWAYS_CORRECTED:
        poles, margins = _margins(parts, nullity, discrete)
        improper = _without_invisible(improper, direct, float(np.abs(poles).max()))
    infinite = InfinitePart(
        improper,
        pencil.gap,
        A.shape[0],
        left.T,
        right,
        (left @ E).T,
        tuple(X[0] for X, _ in states),
        E,
        poles,
        margins,
    )
    points = _points(parts.A, poles, discrete, A.shape[0])
    if poles is not None and margins is not None and not discrete:
        points = np.concatenate([points, _points_beside_marginal(poles, margins)])
    finite = [(parts.A[i, i], Bf[i], Cf[:, i]) for i in parts.blocks]
    error = _disagreement(model, finite, (direct, *improper), points)
    return _Candidate(parts.A, Bf, Cf, direct, infinite, error)


def _rounded(value: Pair, sizes: Array) -> Array:
    """Return a pair in double precision; entries that are rounding of pairs of these sizes are zero."""
    total = value[0] + value[1]
    return np.where(np.abs(total) > BASIS_ROUNDING * sizes, total, 0.0)


def _sizes_of_terms(X: Array, sizes: Array) -> Array:
    """Return the sizes of the terms of a product, of which NEGLIGIBLE is rounding; bases are rounded too."""
    return np.asarray(np.abs(X) @ sizes + BASIS_ROUNDING / NEGLIGIBLE * _outer_sizes(X, sizes))


def _outer_sizes(X: Array, Y: Array) -> Array:
    """Return the products of the largest entries of the rows of X and the columns of Y."""
    return np.outer(np.abs(X).max(axis=1, initial=0.0), np.abs(Y).max(axis=0, initial=0.0))


def _polynomial(parts: DecoupledPencil, pencil: SeparatedPencil, B: Array) -> list[tuple[Pair, Array]]:
    """Return X_k with x = ... + X_0 u + X_1 u' + ..., and the size of the terms in the sums that they are."""
    if pencil.n_infinite == 0:
        return []
    A, E = parts.infinite_A, parts.infinite_E
    triangular, nilpotent = ((M[0].copy(), M[1].copy()) for M in (A, E))
    for i, row_block in enumerate(pencil.blocks):  # zero but for rounding
        for j, block in enumerate(pencil.blocks):
            for M, zero in ((triangular, j < i), (nilpotent, not pencil.coupled[i, j])):
                if zero:
                    M[0][np.ix_(row_block, block)] = M[1][np.ix_(row_block, block)] = 0.0
    # rounding below the diagonal of A would raise the degree, and is part of D_0
    powers = _powers(parts, triangular, nilpotent, B, len(pencil.blocks) + 1)
    while len(powers) > 1 and not np.any(np.abs(powers[-1][0][0]) > NEGLIGIBLE * powers[-1][1]):
        powers.pop()
    return _powers(parts, A, nilpotent, B, 1) + powers[1:]


def _powers(parts: DecoupledPencil, A: Pair, E: Pair, B: Array, count: int) -> list[tuple[Pair, Array]]:
    """Return -right (A^-1 E)^k A^-1 left B of an infinite part, and the size of the terms of the sums."""
    factors = sla.lu_factor(A[0], check_finite=False)

    def solve(b: Array) -> Array:
        return np.asarray(sla.lu_solve(factors, b, check_finite=False))

    inputs = pair_product(parts.infinite_left, pair(B))
    right = -parts.infinite_right[0], -parts.infinite_right[1]
    size = _sizes_of_terms(parts.infinite_left[0], np.abs(B))
    inverse = np.abs(solve(np.eye(A[0].shape[0])))
    powers = []
    for _ in range(count):
        inputs, size = refined_pair_solution(solve, A, inputs, REFINEMENTS), inverse @ size
        powers.append((pair_product(right, inputs), _sizes_of_terms(right[0], size)))
        inputs, size = pair_product(E, inputs), np.abs(E[0]) @ size
    return powers


def _transfer_polynomial(
    C: Array, D: Array, states: list[tuple[Pair, Array]]
) -> tuple[Array, tuple[Array, ...]]:
    """Return D_0 and (D_1, D_2, ...); entries that are rounding are zero."""
    terms = []
    for power, (X, size) in enumerate(states):
        total, terms_of_sum = pair_product(pair(C), X), _sizes_of_terms(C, size)
        if power == 0:
            total, terms_of_sum = pair_sum(total, pair(D)), terms_of_sum + np.abs(D)
        value = total[0] + total[1]
        terms.append(np.where(np.abs(value) > NEGLIGIBLE * terms_of_sum, value, 0.0))
    if not terms:
        return D, ()
    while len(terms) > 1 and not np.any(terms[-1]):
        terms.pop()
    return terms[0], tuple(terms[1:])


def _without_invisible(improper: tuple[Array, ...], direct: Array, fastest: float) -> tuple[Array, ...]:
    """Leave out terms that are rounding beside the others at the frequency of the fastest pole."""
    sizes = [float(np.linalg.norm(D)) * fastest**k for k, D in enumerate((direct, *improper))]
    kept = [
        D if size > INVISIBLE * max(sizes) else np.zeros_like(D)
        for D, size in zip(improper, sizes[1:], strict=True)
    ]
    while kept and not np.any(kept[-1]):
        kept.pop()
    return tuple(kept)


def _margins(parts: DecoupledPencil, nullity: int, discrete: bool) -> tuple[Array, Array]:
    """Return the poles and how far they are inside the boundary, by the sensitivities of decoupled parts.

    ``nullity`` is the number of poles at s = 0 (z = 1) by the null space of the user's pencil: poles that are
    on the boundary by structure, as of a loop of inductors, do not move with the entries at all.
    """
    of_blocks = [_margins_of_block(parts.A[block, block], discrete) for block in parts.blocks]
    poles, margins = (np.concatenate(values) for values in zip(*of_blocks, strict=True))
    margins[np.argsort(np.abs(poles - (1.0 if discrete else 0.0)))[:nullity]] = 0.0
    return poles, margins


def _margins_of_block(A: Array, discrete: bool) -> tuple[Array, Array]:
    rows, columns = equilibrating_scales(A)
    scale = np.sqrt(columns / rows)  # states such that rows and columns of A are of the same size
    poles, Y, X = sla.eig(A * scale / scale[:, None], left=True, right=True, check_finite=False)
    X, Y = X * scale[:, None], Y / scale[:, None]
    weight = np.abs(np.sum(Y.conj() * X, axis=0))
    depth = distance_to_boundary(poles, discrete=discrete)
    change = np.sum(np.abs(Y) * (np.abs(A) @ np.abs(X)), axis=0)
    change += np.abs(poles) * np.sum(np.abs(Y) * np.abs(X), axis=0)
    return poles, depth * weight / np.where(change > 0, change, 1.0)


def _nullity(M: Array) -> int:
    """Return the dimension of the null space of a matrix in units that make its entries similar."""
    rows, columns = equilibrating_scales(M)
    values = np.linalg.svd(M * rows[:, None] * columns, compute_uv=False)
    return int(np.count_nonzero(values <= 10 * M.shape[0] * EPS * values.max(initial=0.0)))


def keeps_response(
    model: tuple[Array, Array, Array, Array, Array], folded: tuple[Array, Array], *, discrete: bool
) -> bool:
    """Return whether E^-1 A and E^-1 B have the transfer function of a model, as far as that can be told."""
    _, _, C, D, _ = model
    Af, Bf = folded
    points = _points(Af, np.linalg.eigvals(Af), discrete, Af.shape[0])
    apart = _disagreement(model, [(Af, Bf, C)], (D,), points)
    return apart <= 1 or math.isinf(apart)


def _points(Af: Array, poles: Array | None, discrete: bool, n: int) -> Array:
    """Return points at which transfer functions are compared, over the poles and beyond."""
    count = POINTS if n <= ALWAYS_CORRECTED else FEW_POINTS
    if poles is None:
        size = float(np.linalg.norm(Af, np.inf)) if Af.size else 1.0
        slow = 1 / float(np.linalg.norm(np.linalg.inv(Af), np.inf)) if Af.size and n <= 3000 else 1e-3 * size
        poles = -np.array([max(slow, 1e-12 * size), size])
    candidates = points_off_the_poles(poles, discrete=discrete)
    return candidates[np.unique(np.linspace(0, candidates.size - 1, count).astype(int))]


def _points_beside_marginal(poles: Array, margins: Array) -> Array:
    """Return points from below the slowest clearly stable pole to the fastest, if others are marginal.

    At the frequencies of poles that may be zero the response is rounding, and comparing it shows nothing.
    """
    clear = np.abs(poles[margins > CLEARLY_STABLE])
    if clear.size in (0, poles.size):
        return np.zeros(0, complex)
    return 1j * np.geomspace(clear.min() * FAR_BELOW, clear.max(), POINTS)


def _disagreement(
    model: tuple[Array, Array, Array, Array, Array],
    finite: list[tuple[Array, Array, Array]],
    polynomial: tuple[Array, ...],
    points: Array,
) -> float:
    """Return the largest difference of the transfer functions, divided by what is accepted."""
    A, B, C, D, E = model
    if 0 in D.shape:
        return 0.0
    worst = 0.0
    compared = 0
    peak = 0.0
    # rounding at low frequencies is relative to the response at higher ones, where it may vanish itself
    for s in points[np.argsort(-np.abs(points), kind="stable")]:
        try:
            original, sensitivity = pencil_response(A, E, B, C, complex(s))
            original = original + D
            terms = [Cf @ np.linalg.solve(s * np.eye(len(Af)) - Af, Bf + 0j) for Af, Bf, Cf in finite]
        except np.linalg.LinAlgError:  # a point that is a pole to the solver
            continue
        peak = max(peak, sum(float(np.linalg.norm(term)) for term in terms))
        terms += [s**power * Dk for power, Dk in enumerate(polynomial)]
        apart = float(np.linalg.norm(original - sum(terms)))
        accepted = ACCEPTED * float(np.linalg.norm(original))
        if not math.isfinite(apart):
            return math.inf
        # what rounding of the entries of A and E themselves does to the response, and what cancels
        unavoidable = DATA_ROUNDING * EPS * sensitivity + CANCELED * sum(
            float(np.linalg.norm(term)) for term in terms
        )
        compared += min(unavoidable, apart) <= accepted
        unavoidable = max(unavoidable, CANCELED * peak)
        level = accepted + unavoidable
        worst = max(worst, apart / level if level > 0 else (0.0 if apart == 0 else math.inf))
    return worst if compared >= min(LEAST_COMPARED, points.size) or worst == 0 else math.inf


def pencil_response(A: Array, E: Array, B: Array, C: Array, s: complex) -> tuple[Array, float]:
    """Return C (s E - A)^-1 B, with residuals of twice the digits of double precision, and its sensitivity.

    Relative changes of size d of the entries of A and E change the response by at most d times that.

    Raises
    ------
    LinAlgError
        s is a pole.
    """
    high, low = two_product(np.array([s]), E.astype(complex))
    high, rest = two_sum(high, -A.astype(complex))
    low = low + rest
    rows, columns = equilibrating_scales(high)
    high, low = high * rows[:, None] * columns, low * rows[:, None] * columns
    right_side = rows[:, None] * B.astype(complex)
    getrf, getrs = sla.get_lapack_funcs(("getrf", "getrs"), (high,))
    lu, pivots, info = getrf(high)
    if info > 0:
        raise np.linalg.LinAlgError("singular")
    x, x_low = refined_pair_solution(
        lambda b: getrs(lu, pivots, b)[0], (high, low), pair(right_side), REFINEMENTS
    )
    outputs = C * columns
    adjoint = getrs(lu, pivots, outputs.T.astype(complex), trans=1)[0]
    size = (abs(s) * np.abs(E) + np.abs(A)) * rows[:, None] * columns
    sensitivity = float(np.linalg.norm(np.abs(adjoint).T @ (size @ np.abs(x))))
    return np.asarray(outputs @ x + outputs @ x_low), sensitivity


def nilpotent_realization(improper: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """Return E, B and C with C (s E - 1)^-1 B = s D_1 + s^2 D_2 + ..., E nilpotent and of least size.

    With a minimal realization H F^(k-1) G of D_k, by the singular values of their block Hankel matrix, the
    states are x_1 = (1 - s F)^-1 G u and x_2, where H = Q x_2' has full rank factors.
    """
    degree = len(improper)
    p, m = improper[0].shape
    zero = np.zeros((p, m))
    terms = [*improper, *(zero for _ in range(degree))]
    hankel = np.block([[terms[i + j] for j in range(degree)] for i in range(degree)])
    shifted = np.block([[terms[i + j + 1] for j in range(degree)] for i in range(degree)])
    U, values, Vh = np.linalg.svd(hankel)
    r = int(np.count_nonzero(values > max(hankel.shape) * EPS * values[0]))
    root = np.sqrt(values[:r])
    observe, control = U[:, :r] * root, root[:, None] * Vh[:r]
    F = (U[:, :r] / root).conj().T @ shifted @ (Vh[:r].conj().T / root)
    G, H = control[:, :m], observe[:p]
    Q, size, Wh = np.linalg.svd(H, full_matrices=False)
    q = int(np.count_nonzero(size > max(H.shape) * EPS * size[0]))
    E = np.zeros((r + q, r + q), F.dtype)
    E[:r, :r], E[r:, :r] = F, size[:q, None] * Wh[:q]
    B = np.concatenate([-G, np.zeros((q, m))])
    C = np.concatenate([np.zeros((p, r)), Q[:, :q]], axis=1)
    return E, B, C
