"""Factored Smith doubling: both Gramian factors of a stable system from matrix products only.

The controllability Gramian of a discrete system is sum_k A^k B B^H A^kH. With
``L_0 = B`` and ``A_0 = A`` the doubling ``L_{j+1} = [L_j, A_j L_j]``, ``A_{j+1} = A_j^2`` sums 2^j of its
terms after j steps. The factor is compressed to its numerical rank in every step, so a step costs one n x n
product and products with a few columns. A continuous system is converted to discrete time by a Cayley
transform, which does not change its Gramians.

Sources: Smith, SIAM J. Appl. Math. 16 (1968); Gugercin, Sorensen, Antoulas, Numer. Algorithms 32 (2003).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.linalg as sla
from scipy.linalg.lapack import dgeqp3, zgeqp3

from .._util.arrays import EPS, Array, length, reciprocal_condition

#: Columns smaller than this, relative to the largest, are removed from a factor. It is far below rounding
#: for small systems, where tiny columns cost little and improve the smallest singular values.
COMPRESSION = EPS * 1e-10
COMPRESSION_LARGE = EPS * 0.1

#: More squarings than this mean a pole within about 1e-4 of the boundary (after the Cayley transform).
#: Each one doubles the relative error of the powers, so the Schur method is used instead.
MAX_DOUBLINGS = 16

#: In continuous time, where the Schur method takes real numbers and few calls, it is faster and as accurate
#: from this number of squarings on.
MAX_DOUBLINGS_CONTINUOUS = 10

#: After so many squarings the number of those that remain is predicted, from the decay of a vector.
DOUBLINGS_BEFORE_PREDICTION = 5

#: Above this size, factors of more than this share of full rank make doubling slower than Schur
#: (measured: they cross between 0.6 and 1 for n = 250 to 1000).
FULL_RANK_SIZE = 200
FULL_RANK_SHARE = 0.6

#: A power of A whose norm (estimated from below) is under this is considered a contraction, which proves
#: stability. The estimate is within much less than a factor of two of the norm.
CONTRACTION = 0.4

#: Larger powers of A mean that the system is unstable, or so far from normal that squaring loses digits.
GROWTH = 100.0

#: Norm of a power of A from which the rounding of its square can exceed that of the factors.
NEARLY_NORMAL = 1.5

#: Columns of the Krylov sequence from which the decay of the singular values is extrapolated.
PROBE_COLUMNS = 48


@dataclass(frozen=True)
class SmithResult:
    """Both factors and the rounding of their product, or None and the reason of the failure."""

    controllability: Array | None
    observability: Array | None
    failure: str = ""
    #: estimate of what rounding of large powers of A changes Lo^H Lc by; 0 where no power is large
    rounding: float = 0.0


def smith_factors(A: Array, B: Array, C: Array, *, discrete: bool) -> SmithResult:
    """Return Lc and Lo with Wc = Lc Lc^H, Wo = Lo Lo^H, or the reason why doubling does not apply.

    A power of A that is a contraction also proves that A is stable; no eigenvalues are computed.
    """
    n = A.shape[0]
    max_doublings = MAX_DOUBLINGS if discrete else MAX_DOUBLINGS_CONTINUOUS
    if not discrete:
        shift = _shift(A)
        if shift is not None and _least_doublings(A, shift) > max_doublings:
            return SmithResult(None, None, "a pole lies near the stability boundary")
        transformed = None if shift is None else cayley(A, B, C, shift)
        if transformed is None:
            return SmithResult(None, None, "the Cayley transform is singular")
        A, B, C = transformed
    large = n > FULL_RANK_SIZE
    if large and _extrapolated_rank(A, B) > FULL_RANK_SHARE * n:
        return SmithResult(None, None, "the factors have nearly full rank")
    tolerance = COMPRESSION_LARGE if large else COMPRESSION
    powers = [A]
    for _ in range(DOUBLINGS_BEFORE_PREDICTION):
        powers.append(powers[-1] @ powers[-1])
    if _predicted_doublings(powers[-1]) > max_doublings - DOUBLINGS_BEFORE_PREDICTION:
        return SmithResult(None, None, "a pole lies near the stability boundary")
    power = A
    powers.reverse()
    Lc, Lo = compress(B, tolerance), compress(C.conj().T, tolerance)
    large_squarings = 0
    for squaring in range(max_doublings):
        power = powers.pop() if powers else power @ power
        norm = float(np.linalg.norm(power))
        if not norm < GROWTH:
            return SmithResult(None, None, "the powers of A grow")
        products = _remaining_products(power, norm, Lc.shape[1] + Lo.shape[1], thin_is_cheap=large)
        if products is not None:
            Lc = _sum_of_powers(power, Lc, products, tolerance)
            Lo = _sum_of_powers(power.conj().T, Lo, products, tolerance)
            return SmithResult(Lc, Lo, rounding=_rounding_of_squarings(A, large_squarings, Lc, Lo))
        if norm > NEARLY_NORMAL and _spectral_norm(power, NEARLY_NORMAL) >= NEARLY_NORMAL:
            large_squarings = squaring + 1
        Lc = compress(np.concatenate([Lc, power @ Lc], axis=1), tolerance)
        Lo = compress(np.concatenate([Lo, power.conj().T @ Lo], axis=1), tolerance)
        if large and max(Lc.shape[1], Lo.shape[1]) > FULL_RANK_SHARE * n:
            return SmithResult(None, None, "the factors have nearly full rank")
    return SmithResult(None, None, "a pole lies near the stability boundary")


def _predicted_doublings(power: Array) -> float:
    """Predict how many squarings of this power of A it takes until it is below rounding."""
    v = power @ _start_vector(power.shape[1])
    size, next_size = length(v), length(power @ v)
    return doublings_needed(next_size / size if size > 0 else 0.0)


def doublings_needed(size: float) -> float:
    """Return how often a number of this size is squared until it is below rounding."""
    if size >= 1:
        return math.inf
    return math.log2(math.log(EPS / 4) / math.log(max(size, EPS / 4)))


def _remaining_products(power: Array, norm: float, width: int, *, thin_is_cheap: bool) -> int | None:
    """Return how many products with this power of A complete the sum; None if squaring is better."""
    n = power.shape[0]
    # then the spectral norm, which is larger than norm / sqrt(n), is too
    if norm >= CONTRACTION * math.sqrt(n):
        return None
    size = _spectral_norm(power, CONTRACTION)
    if not size < CONTRACTION:
        return None
    products = math.ceil(math.log(EPS / 4) / math.log(max(size, EPS / 4)))
    more_squarings = math.ceil(math.log2(products)) - 1
    if products == 1 or (thin_is_cheap and products * width <= n * more_squarings):
        return products
    return None


def _spectral_norm(A: Array, enough: float) -> float:
    """Estimate the largest singular value from below by the power method, mostly within a few percent.

    The first estimate that is large enough is returned.
    """
    v = _start_vector(A.shape[1])
    norm = 0.0
    for _ in range(6):
        image = A @ (v / max(length(v), np.finfo(float).tiny))
        norm = length(image)
        if norm >= enough:
            break
        v = A.conj().T @ image
    return norm


def _rounding_of_squarings(A: Array, count: int, Lc: Array, Lo: Array) -> float:
    """Return what the rounding of the first `count` squares of A changes Lo^H Lc by, as a mean square.

    Entry (i, j) of a square of P has rounding errors of mean square eps^2 sum_k |P_ik|^2 |P_kj|^2.
    """
    inputs, outputs = np.sum(np.abs(Lc) ** 2, axis=1), np.sum(np.abs(Lo) ** 2, axis=1)
    power, rounding = A, 0.0
    for _ in range(count):
        squares = np.abs(power) ** 2
        rounding += EPS * math.sqrt(float(outputs @ (squares @ (squares @ inputs))))
        power = power @ power
    return rounding


@lru_cache(maxsize=4)
def _start_vector(n: int) -> Array:
    return np.random.default_rng(0).standard_normal(n)


def _sum_of_powers(power: Array, L: Array, products: int, tolerance: float) -> Array:
    """Return the compressed [L, power L, ..., power^products L]."""
    blocks, block, width = [L], L, L.shape[1]
    size = float(np.linalg.norm(L))
    for _ in range(products):
        block = power @ block
        blocks.append(block)
        width += block.shape[1]
        if np.linalg.norm(block) <= EPS / 4 * size:
            break
        if width > 4 * L.shape[1] + 256:
            blocks = [compress(np.hstack(blocks), tolerance)]
            width = blocks[0].shape[1]
    return compress(np.hstack(blocks), tolerance)


def _extrapolated_rank(A: Array, B: Array) -> float:
    """Extrapolate the numerical rank of the controllability factor from its first columns."""
    blocks = [B]
    while len(blocks) * B.shape[1] < max(PROBE_COLUMNS, 2 * B.shape[1]) and B.shape[1]:
        blocks.append(A @ blocks[-1])
    R = sla.qr(np.hstack(blocks), mode="r", pivoting=True, check_finite=False)[0]
    pivots = np.abs(np.diag(R))
    if pivots.size < 2 or pivots[-1] < EPS * pivots[0]:
        return float(pivots.size)
    return pivots.size * math.log(EPS) / min(math.log(pivots[-1] / pivots[0]), -1e-3)


def _least_doublings(A: Array, shift: float) -> float:
    """Return a number of doublings that the trace of A proves to be needed after the Cayley transform.

    Some pole is at most as far from the imaginary axis as the poles are on average, |trace A| / n, and no
    pole so near to it is mapped farther inside the circle than the real one.
    """
    rate = abs(float(np.trace(A).real)) / A.shape[0]
    return doublings_needed((shift - rate) / (shift + rate)) if rate < shift else 0.0


def _shift(A: Array) -> float | None:
    """Return the shift of the Cayley transform; None for a singular A.

    sqrt(|A| / |A^-1|) is the geometric mean of the fastest and the slowest rate, the best single shift for a
    real spectrum.
    """
    norm, rcond = float(np.linalg.norm(A, 1)), reciprocal_condition(A)
    return norm * math.sqrt(rcond) if rcond > 0 and norm > 0 else None


def cayley(A: Array, B: Array, C: Array, shift: float | None = None) -> tuple[Array, Array, Array] | None:
    """Map a continuous system to the discrete one with the same Gramians; None where singular."""
    n = A.shape[0]
    shift = _shift(A) if shift is None else shift
    if shift is None:
        return None
    getrf, getri, gecon = sla.get_lapack_funcs(("getrf", "getri", "gecon"), (A,))
    shifted = shift * np.eye(n) - A
    norm = float(np.linalg.norm(shifted, 1))
    lu, pivots, info = getrf(shifted, overwrite_a=True)
    if info != 0 or gecon(lu, norm)[0] < EPS:  # an unstable pole coincides with the shift
        return None
    resolvent = getri(lu, pivots, lwork=64 * n, overwrite_lu=True)[0]
    scale = math.sqrt(2 * shift)
    discrete = 2 * shift * resolvent
    discrete[np.diag_indices(n)] -= 1
    return discrete, scale * (resolvent @ B), scale * (C @ resolvent)


def compress(L: Array, tolerance: float = COMPRESSION) -> Array:
    """Return a factor of the same L L^H with as many columns as its numerical rank, in descending order."""
    if L.shape[1] <= 1 or L.shape[0] == 0:
        return L
    geqp3 = zgeqp3 if np.iscomplexobj(L) else dgeqp3
    # L^H as LAPACK stores it; the workspace is that of blocks of 32 columns
    rows = np.array(L.conj(), order="C").T
    qr, pivots, _, _, _ = geqp3(rows, lwork=2 * L.shape[0] + 32 * (L.shape[0] + 1), overwrite_a=1)
    diagonal = np.abs(np.diagonal(qr))
    rank = int(np.count_nonzero(diagonal > tolerance * diagonal[0])) if diagonal.size else 0
    out = np.empty((L.shape[0], rank), dtype=L.dtype)
    out[pivots - 1] = (qr[:rank] * upper_triangle(L.shape[0])[:rank]).T.conj()
    return out


@lru_cache(maxsize=4)
def upper_triangle(n: int) -> Array:
    """Return which entries of an n x n matrix are on or above the diagonal."""
    return np.asfortranarray(np.triu(np.ones((n, n), dtype=bool)))
