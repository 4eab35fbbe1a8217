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
from .._util.twofold import product, refined_solution, two_product, two_sum
from ..errors import ConvergenceError, ModelError
from .descriptor_form import (
    SINGULAR_PENCIL,
    SMALLEST_GAP,
    Elimination,
    SeparatedPencil,
    equilibrating_scales,
)
from .frequency_response import points_off_the_poles

#: Corrections of the bases, each of which squares their errors.
CORRECTIONS = 2
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
#: Reciprocal condition number below which s E - A is singular.
SINGULAR = 1e-15
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
        They are rounding beside its E^-1 A, and none in its pencil.
        """
        if self.poles is None or self.margins is None or self.poles.size == 0:
            return tol
        depth = 1 - np.abs(self.poles) if discrete else -self.poles.real
        unit = max(1.0, size) if discrete else size
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
    worst = 0.0
    for scale in (1e-3, 1.0, 1e3):
        M = (0.6 + 0.8j) * scale * (unit or 1.0) * E - A
        rows, columns = equilibrating_scales(M)
        if not np.all(np.any(M, axis=0)) or not np.all(np.any(M, axis=1)):
            break
        M = M * rows[:, None] * columns
        rcond = reciprocal_condition(M)
        if rcond > SINGULAR * math.sqrt(n):
            return
        worst = max(worst, rcond)
    raise ModelError(
        SINGULAR_PENCIL.format(f"its reciprocal condition number is at most {worst:.1e} at three values of s")
    )


def _candidate(
    pencil: SeparatedPencil, model: tuple[Array, Array, Array, Array, Array], discrete: bool
) -> _Candidate:
    n = model[0].shape[0]
    corrected = n <= ALWAYS_CORRECTED
    candidate = _assembled(_corrected(pencil, model[0], model[4], corrected), model, discrete)
    if candidate.error > 1 and not corrected:
        candidate = _assembled(_corrected(pencil, model[0], model[4], True), model, discrete)
    return candidate


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The bases, and the pencil in them: infinite part (A strictly block triangular below), finite part."""

    left: Array
    right: Array
    A: Array
    E: Array
    k: int
    blocks: list[Array]
    coupled: Array
    gap: float


def _corrected(pencil: SeparatedPencil, A: Array, E: Array, twofold: bool) -> _Blocks:
    """Decouple the two parts: correct the bases until both matrices are block diagonal."""
    left, right, k = pencil.left.copy(), pencil.right.copy(), pencil.n_infinite

    def transformed(M: Array) -> Array:
        if not twofold:
            return np.asarray(left @ M @ right)
        high, low = product(M, right)
        total, rest = product(left, high)
        return np.asarray(total + (rest + left @ low))

    finite, infinite = slice(k, None), slice(0, k)
    for _ in range(1 + CORRECTIONS if twofold else 1):
        if k in (0, A.shape[0]):
            break
        X, Y = _coupling_of_finite_rows(transformed(A), transformed(E), pencil.blocks, k)
        right[:, infinite] += right[:, finite] @ X
        left[finite] -= Y @ left[infinite]
        X, Y = _coupling_of_infinite_rows(transformed(A), transformed(E), pencil.blocks, k)
        right[:, finite] += right[:, infinite] @ X
        left[infinite] -= Y @ left[finite]
    return _Blocks(left, right, transformed(A), transformed(E), k, pencil.blocks, pencil.coupled, pencil.gap)


def _coupling_of_finite_rows(A: Array, E: Array, blocks: list[Array], k: int) -> tuple[Array, Array]:
    """Solve A_f X - Y A_i = -A_fi and E_f X - Y E_i = -E_fi, block by block: E_i has no diagonal blocks."""
    finite = slice(k, None)
    X, Y = np.zeros((A.shape[0] - k, k), A.dtype), np.zeros((A.shape[0] - k, k), A.dtype)
    factors = sla.lu_factor(E[finite, finite], check_finite=False)
    for block in blocks:
        done = slice(0, int(block[0]))
        X[:, block] = sla.lu_solve(factors, Y[:, done] @ E[done, block] - E[finite, block])
        rest = A[finite, finite] @ X[:, block] + A[finite, block] - Y[:, done] @ A[done, block]
        Y[:, block] = np.linalg.solve(A[np.ix_(block, block)].T, rest.T).T
    return X, Y


def _coupling_of_infinite_rows(A: Array, E: Array, blocks: list[Array], k: int) -> tuple[Array, Array]:
    """Solve A_i X - Y A_f = -A_if and E_i X - Y E_f = -E_if, from the last block to the first."""
    finite = slice(k, None)
    X, Y = np.zeros((k, A.shape[0] - k), A.dtype), np.zeros((k, A.shape[0] - k), A.dtype)
    factors = sla.lu_factor(E[finite, finite], check_finite=False)
    for block in reversed(blocks):
        done = slice(int(block[-1]) + 1, k)
        Y[block] = sla.lu_solve(factors, (E[block, done] @ X[done] + E[block, finite]).T, trans=1).T
        rest = Y[block] @ A[finite, finite] - A[block, finite] - A[block, done] @ X[done]
        X[block] = np.linalg.solve(A[np.ix_(block, block)], rest)
    return X, Y


def _assembled(parts: _Blocks, model: tuple[Array, Array, Array, Array, Array], discrete: bool) -> _Candidate:
    """Return the state space and the polynomial of separated parts, compared with the model."""
    A, B, C, D, E = model
    k = parts.k
    factors = sla.lu_factor(parts.E[k:, k:], check_finite=False) if k < A.shape[0] else None
    left, right = parts.left[k:], parts.right[:, k:]
    if not all(np.all(np.isfinite(M)) for M in (parts.left, parts.right, parts.A, parts.E)):
        raise ModelError("E is singular, and its infinite poles cannot be separated: the bases overflow")
    if factors is None:
        Af = parts.A[k:, k:]
    else:
        Af = sla.lu_solve(factors, parts.A[k:, k:], check_finite=False)
        left = sla.lu_solve(factors, left, check_finite=False)
    states = _polynomial(parts, B)
    direct, improper = _transfer_polynomial(C, D, states)
    poles = margins = None
    if 0 < Af.shape[0] <= ALWAYS_CORRECTED:
        nullity = _nullity(A - E if discrete else A)
        poles, margins = _margins(Af, factors, parts.A[k:, k:], parts.E[k:, k:], nullity, discrete)
        improper = _without_invisible(improper, direct, float(np.abs(poles).max()))
    infinite = InfinitePart(
        improper,
        parts.gap,
        A.shape[0],
        left.T,
        right,
        (left @ E).T,
        tuple(X for X, _ in states),
        E,
        poles,
        margins,
    )
    Bf, Cf = left @ B, C @ right
    error = _disagreement(model, (Af, Bf, Cf), (direct, *improper), _points(Af, poles, discrete, A.shape[0]))
    return _Candidate(Af, Bf, Cf, direct, infinite, error)


def _polynomial(parts: _Blocks, B: Array) -> list[tuple[Array, Array]]:
    """Return X_k with x = ... + X_0 u + X_1 u' + ..., and the size of the terms in the sums that they are."""
    k = parts.k
    if k == 0:
        return []
    A, E = parts.A[:k, :k].copy(), parts.E[:k, :k].copy()
    for i, row_block in enumerate(parts.blocks):  # zero but for rounding
        for j, block in enumerate(parts.blocks):
            if j < i:
                A[np.ix_(row_block, block)] = 0
            if not parts.coupled[i, j]:
                E[np.ix_(row_block, block)] = 0
    right = parts.right[:, :k]
    factors = sla.lu_factor(A, check_finite=False)
    inputs = parts.left[:k] @ B
    size = np.abs(parts.left[:k]) @ np.abs(B)
    inverse = np.abs(sla.lu_solve(factors, np.eye(k), check_finite=False))
    terms = []
    for _ in range(len(parts.blocks) + 1):
        inputs, size = sla.lu_solve(factors, inputs, check_finite=False), inverse @ size
        terms.append((-right @ inputs, np.abs(right) @ size))
        inputs, size = E @ inputs, np.abs(E) @ size
    while len(terms) > 1 and not np.any(np.abs(terms[-1][0]) > NEGLIGIBLE * terms[-1][1]):
        terms.pop()
    return terms


def _transfer_polynomial(
    C: Array, D: Array, states: list[tuple[Array, Array]]
) -> tuple[Array, tuple[Array, ...]]:
    """Return D_0 and (D_1, D_2, ...); entries that are rounding are zero."""
    terms = []
    for power, (X, size) in enumerate(states):
        value, terms_of_sum = C @ X, np.abs(C) @ size
        if power == 0:
            value, terms_of_sum = value + D, terms_of_sum + np.abs(D)
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


def _margins(
    Af: Array,
    factors: tuple[Array, Array] | None,
    A: Array,
    E: Array,
    nullity: int,
    discrete: bool,
) -> tuple[Array, Array]:
    """Return the poles and how far they are inside the boundary, by the sensitivities of the pencil.

    ``nullity`` is the number of poles at s = 0 (z = 1) by the null space of the user's pencil: poles that are
    on the boundary by structure, as of a loop of inductors, do not move with the entries at all.
    """
    rows, columns = equilibrating_scales(Af)
    scale = np.sqrt(columns / rows)  # states such that rows and columns of A_f are of the same size
    poles, Y, X = sla.eig(Af * scale / scale[:, None], left=True, right=True, check_finite=False)
    X, Y = X * scale[:, None], Y / scale[:, None]
    weight = np.abs(np.sum(Y.conj() * X, axis=0))
    if factors is not None:
        Y = sla.lu_solve(factors, Y, trans=2, check_finite=False)
    depth = 1 - np.abs(poles) if discrete else -poles.real
    change = np.sum(np.abs(Y) * (np.abs(A) @ np.abs(X)), axis=0)
    change += np.abs(poles) * np.sum(np.abs(Y) * (np.abs(E) @ np.abs(X)), axis=0)
    margins = depth * weight / np.where(change > 0, change, 1.0)
    margins[np.argsort(np.abs(poles - (1.0 if discrete else 0.0)))[:nullity]] = 0.0
    return poles, margins


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
    apart = _disagreement(model, (Af, Bf, C), (D,), points)
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


def _disagreement(
    model: tuple[Array, Array, Array, Array, Array],
    finite: tuple[Array, Array, Array],
    polynomial: tuple[Array, ...],
    points: Array,
) -> float:
    """Return the largest difference of the transfer functions, divided by what is accepted."""
    A, B, C, D, E = model
    if 0 in D.shape:
        return 0.0
    Af, Bf, Cf = finite
    eye = np.eye(Af.shape[0])
    worst = 0.0
    compared = 0
    for s in points:
        try:
            original, sensitivity = pencil_response(A, E, B, C, complex(s))
            original = original + D
            part = Cf @ np.linalg.solve(s * eye - Af, Bf.astype(complex))
        except np.linalg.LinAlgError:  # a point that is a pole to the solver
            continue
        terms = [part] + [s**power * Dk for power, Dk in enumerate(polynomial)]
        apart = float(np.linalg.norm(original - sum(terms)))
        accepted = ACCEPTED * float(np.linalg.norm(original))
        if not math.isfinite(apart):
            return math.inf
        # what rounding of the entries of A and E themselves does to the response, and what cancels
        unavoidable = DATA_ROUNDING * EPS * sensitivity + CANCELED * sum(
            float(np.linalg.norm(term)) for term in terms
        )
        compared += min(unavoidable, apart) <= accepted
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
    x, x_low = refined_solution(lambda b: getrs(lu, pivots, b)[0], high, low, right_side, REFINEMENTS)
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
