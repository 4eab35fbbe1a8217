"""Galerkin projection onto the columns of both low-rank factors, with a proved error of the singular values.

Let V be a basis of these columns with V^H E V = 1, and let A_V = V^H A V, B_V, C_V be the projected model. It
is stable if a decay rate of the pencil is proved (`residual_bounds`). With the residual

    r_B(s) = B - (s E - A) V (s - A_V)^-1 B_V

and r_C(s) of the adjoint model, the transfer functions of the model and its projection differ by exactly
``r_C^H (s E - A)^-1 r_B``. The largest gain of this product bounds the difference of all Hankel singular
values, because these are those of Hankel operators. It is of second order in the residuals, whereas the bound
from the residuals of the Lyapunov equations contains a square root: half as many factorizations suffice.

Source of the projection: Druskin and Simoncini, Syst. Control Lett. 60 (2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .._util.arrays import EPS, Array
from ..errors import ConvergenceError
from ..models.linear_model import LinearModel
from ..models.pencil import SparsePencil, applied
from ..models.scaling import in_range
from .factorize import factorize
from .residual_bounds import COLUMNS, ResidualBound, SymmetricBound
from .smith import compress

#: Number of rows that are processed at a time.
ROWS = 65_536
#: Directions in which the columns, scaled to length one, have less than the root of this are omitted.
DEPENDENT = 1e-14
#: A gain is bounded by the largest gain at about this many frequencies, times MARGIN, if no eigenvalue of a
#: Hamiltonian matrix contradicts, and otherwise times further powers of FACTOR.
FREQUENCIES = 20
MARGIN = 1.05
FACTOR = 2.0
MAX_LEVELS = 30
#: An eigenvalue nearer to the imaginary axis than this, relative to its modulus, is on it; so is one that
#: rounding may have moved off it, by this many times EPS times the norm of the matrix.
ON_AXIS = 1e-6
ROUNDING = 10


@dataclass(frozen=True, eq=False)
class GalerkinFactors:
    """Factors (n, k) of the Gramians of the projected model, and their accuracy."""

    controllability: Array
    observability: Array
    #: Lo^H E Lc, of which the singular values are those of the projected model
    product: Array
    #: size of the rounding errors in the product
    rounding: float
    #: proved bound for the error of the singular values
    error: float
    #: estimate of the effect of rounding on the singular values, relative to the largest
    relative_rounding: float
    #: residual of the Lyapunov equations, the larger one
    residual: float

    @property
    def certificate(self) -> float:
        """Bound for the error of the singular values, with rounding."""
        return self.error + self.relative_rounding * self.largest_value + self.rounding

    @property
    def largest_value(self) -> float:
        """The largest singular value."""
        return float(np.linalg.norm(self.product, 2))


def galerkin_factors(
    pencil: SparsePencil, B: Array, C: Array, blocks: list[Array], bound: ResidualBound
) -> GalerkinFactors | None:
    """Project a continuous model with a proved decay rate onto the span of these blocks of columns.

    Besides the blocks, two matrices of their size are in memory at a time. The result is None if the Gramians
    of the projected model cannot be computed.
    """
    V = _orthonormal_basis(pencil, blocks)
    A_V = np.hstack([V.conj().T @ pencil.A(W) for W in _in_blocks(V)])
    B_V, C_V = V.conj().T @ B, C @ V
    try:
        factored = factorize(LinearModel(A_V, B_V, C_V, np.zeros((C.shape[0], B.shape[1])), 0), 0.0)
    except ConvergenceError:
        return None
    if factored.n_unstable:
        return None
    system = factored.scaled_system
    Lc = system.unscale_right(factored.right_states(factored.controllability))
    Lo = system.unscale_left(factored.left_states(factored.observability))
    Lc = compress(in_range(Lc, system.input_exponent, "Gramian"))
    Lo = compress(in_range(Lo, system.output_exponent, "Gramian"))
    E_size = float(abs(pencil.E_matrix).sum(axis=0).max())
    sides = (A_V, B_V, B, Lc, False), (A_V.conj().T, C_V.conj().T, C.conj().T, Lo, True)
    error, residual, squares = 1.0, 0.0, None
    for A_k, B_k, b, L, adjoint in sides:
        R_b, R_A = b - applied(pencil.E, V @ B_k, adjoint), np.empty_like(V, np.result_type(V, A_k))
        for at, W in enumerate(_in_blocks(V)):
            columns = slice(at * COLUMNS, at * COLUMNS + W.shape[1])
            R_A[:, columns] = applied(pencil.A, W, adjoint)
            R_A[:, columns] -= applied(pencil.E, V @ A_k[:, columns], adjoint)
        residual = max(residual, _lyapunov_residual(b, R_b, R_A, B_k, L, E_size))
        if squares is None or not isinstance(bound, SymmetricBound):
            squares = bound.gram(R_A, R_A)  # with A = A^H both sides have the same R_A
        error *= gain_bound(A_k, B_k, bound.gram(R_b, R_b), bound.gram(R_A, R_b), squares)
        del R_A
    sizes = [float(pencil.sizes(W, W).max()) for W in map(np.abs, _in_blocks(V))]
    relative = (pencil.n + max(sizes) / float(np.abs(np.linalg.eigvals(A_V)).min())) * EPS
    # if no input reaches an output the product consists of rounding errors, of the size of its factors
    rounding = EPS * float(np.linalg.norm(Lo)) * float(np.linalg.norm(Lc))
    return GalerkinFactors(V @ Lc, V @ Lo, Lo.conj().T @ Lc, rounding, error, relative, residual)


def _orthonormal_basis(pencil: SparsePencil, blocks: list[Array]) -> Array:
    """Return V with V^H E V = 1 that spans the blocks, without columns that depend on the others.

    Products with the inverse root of V^H E V are repeated, since the first one has rounding errors.
    """
    lengths = np.concatenate([np.linalg.norm(block, axis=0) for block in blocks])
    scales = 1 / np.where(lengths > 0, lengths, 1.0)
    ends = np.cumsum([0, *(block.shape[1] for block in blocks)])
    gram = np.zeros((ends[-1],) * 2, np.result_type(*blocks))
    for first in range(0, len(blocks), COLUMNS):
        group = np.hstack(blocks[first : first + COLUMNS])
        columns = slice(ends[first], ends[first] + group.shape[1])
        image = pencil.E(group)
        for k, block in enumerate(blocks):
            gram[ends[k] : ends[k + 1], columns] = block.conj().T @ image
    root = _inverse_root(scales[:, None] * gram * scales)
    V = np.zeros((pencil.n, root.shape[1]), root.dtype)
    for first in range(0, len(blocks), COLUMNS):
        group = np.hstack(blocks[first : first + COLUMNS])
        columns = slice(ends[first], ends[first] + group.shape[1])
        V += group @ (scales[columns, None] * root[columns])
    root = _inverse_root(np.hstack([V.conj().T @ pencil.E(W) for W in _in_blocks(V)]))
    for first in range(0, pencil.n, ROWS):
        V[first : first + ROWS] = V[first : first + ROWS] @ root
    return V


def _inverse_root(gram: Array) -> Array:
    """Return X with X^H gram X = 1, without the directions in which gram is rounding."""
    values, vectors = np.linalg.eigh((gram + gram.conj().T) / 2)
    kept = values > DEPENDENT * values[-1]
    return np.asarray(vectors[:, kept] / np.sqrt(values[kept]))


def _lyapunov_residual(b: Array, R_b: Array, R_A: Array, B_V: Array, L: Array, E_size: float) -> float:
    """Return a bound for the residual of the Lyapunov equation of (V L)(V L)^H, relative to |b b^H|.

    The residual is T (E V)^H + E V T^H + R_b R_b^H with T = R_A L L^H + R_b B_V^H.
    """
    R = np.block([[R_b.conj().T @ R_b, R_b.conj().T @ R_A], [R_A.conj().T @ R_b, R_A.conj().T @ R_A]])
    weights = np.concatenate([B_V.conj().T, L @ L.conj().T])
    mixed = math.sqrt(max(float(np.trace(weights.conj().T @ R @ weights).real), 0.0))
    size = 2 * mixed * math.sqrt(E_size) + float(np.linalg.norm(R_b)) ** 2
    return size / float(np.linalg.norm(b)) ** 2


def _in_blocks(V: Array) -> list[Array]:
    return [V[:, at : at + COLUMNS] for at in range(0, V.shape[1], COLUMNS)]


def gain_bound(A: Array, B: Array, direct: Array, mixed: Array, squares: Array) -> float:
    """Return a bound for the gain of r_b + R_A (i w - A)^-1 B over all w, from the products of r_b and R_A.

    Parameters
    ----------
    A, B : ndarray, shapes (k, k) and (k, m)
        Stable.
    direct, mixed, squares : ndarray, shapes (m, m), (k, m), (k, k)
        r_b^H X r_b, R_A^H X r_b and R_A^H X R_A, where X is the weight of the norm.

    Notes
    -----
    The gain is g at w if and only if i w is an eigenvalue of a Hamiltonian matrix (Boyd, Balakrishnan and
    Kabamba, Math. Control Signals Systems 2 (1989)). The norm of this matrix measures how far rounding moves
    eigenvalues that are not sensitive; beyond that, rounding of this test is not part of the bound. The gain
    at w = 0 is among those that are evaluated.
    """
    k, m = B.shape
    mixed = mixed.conj().T
    poles = np.linalg.eigvals(A)
    poles = poles[np.argsort(np.abs(poles))][:: max(1, k // FREQUENCIES)]
    frequencies = np.concatenate([[0.0], np.abs(poles), poles.imag])
    largest = float(np.linalg.eigvalsh(direct)[-1])
    for frequency in frequencies:
        x = np.linalg.solve(1j * frequency * np.eye(k) - A, B.astype(complex))
        half = mixed @ x
        value = direct + half + half.conj().T + x.conj().T @ squares @ x
        largest = max(largest, float(np.linalg.eigvalsh(value)[-1]))
    if largest <= 0:
        return 0.0
    level = MARGIN**2 * largest
    for _ in range(MAX_LEVELS):
        inverse = np.linalg.inv(level * np.eye(m) - direct)
        closed = A + B @ inverse @ mixed
        # both off-diagonal blocks are scaled to the same size
        right, below = B @ inverse @ B.conj().T, squares + mixed.conj().T @ inverse @ mixed
        sizes = [max(float(np.linalg.norm(block)), np.finfo(float).tiny) for block in (below, right)]
        scale = math.sqrt(sizes[0] / sizes[1])
        hamiltonian = np.block([[closed, scale * right], [-below / scale, -closed.conj().T]])
        values = np.linalg.eigvals(hamiltonian)
        rounding = ROUNDING * EPS * float(np.linalg.norm(hamiltonian))
        if np.all(np.abs(values.real) > ON_AXIS * np.abs(values.imag) + rounding):
            return math.sqrt(level)
        level *= FACTOR**2
    return math.inf
