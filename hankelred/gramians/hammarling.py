"""Hammarling's method in tiles: the triangular factor of a Gramian, without the Gramian itself.

For a stable T in Schur form (complex upper triangular, or real with 2 x 2 blocks) and any B the
block upper triangular factor U of

    T U U^H + U U^H T^H + B B^H = 0      (continuous)
    T U U^H T^H - U U^H + B B^H = 0      (discrete)

is computed from the last state to the first. Removing the last state leaves a problem of the same form for
the other states, with B updated in place: B keeps its m columns, and no Gramian is formed. Rows and columns
are processed in tiles: between tiles these are matrix products, inside a tile a small Sylvester equation.

Sources: Hammarling, IMA J. Numer. Anal. 2 (1982), and Syst. Control Lett. 17 (1991) for discrete
time; Kressner, "Block variants of Hammarling's method" (2008) for the idea of blocks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg as sla
from scipy.linalg.lapack import dtpqrt, dtrsyl, ztrsyl, ztrtrs

from .._util.arrays import Array, reduce_columns, schur_poles
from .._util.schur import is_block_diagonal, is_block_triangular
from ..errors import ConvergenceError
from .cauchy import SeparateModes
from .smith import upper_triangle

TILE = 40

#: Columns that are solved together for a single input, and states at most in one of these equations. LAPACK
#: solves it one entry at a time, so that narrow ones with matrix products between them are faster.
TILE_OF_ONE_INPUT = 30
ROWS_OF_ONE_INPUT = 60

#: Up to this number of states times inputs, the factors of all inputs are computed one by one and joined,
#: which is faster there: with one input a tile takes one equation instead of one for each pole. The second
#: number is that of separate modes, which take no equation.
ONE_BY_ONE = 400
ONE_BY_ONE_OF_MODES = 1024

#: That equation loses as many digits as the smallest ratio of a pole's damping to its size has. Below this
#: the closed form of each pole is used.
LIGHT_DAMPING = 1e-4

HALF = math.sqrt(0.5)


def hammarling_factors(
    T: Array, B: Array, C: Array, *, discrete: bool, poles: Array | None = None
) -> tuple[Array, Array]:
    """Return Lc and Lo of a stable system whose T is in Schur form, with n rows and at least n columns.

    Discrete time takes complex Schur form only. ``poles`` are those of T, if known.
    """
    one_input = None if discrete or not T.size else _solver_of_one_input(T, poles)
    Lc = _factor(T, B, discrete, one_input, adjoint=False)
    return Lc, _factor(T, C.conj().T, discrete, one_input, adjoint=True)


@dataclass(frozen=True)
class _OneByOne:
    """A function of an input b that returns its factor, and up to how many states times inputs it is fast."""

    factor: Callable[..., Array]
    limit: int


def _solver_of_one_input(T: Array, poles: Array | None) -> _OneByOne | None:
    """Return how the factors of single inputs are computed; None where that would lose digits."""
    if is_block_diagonal(T):
        return _OneByOne(SeparateModes.of(T).factor, ONE_BY_ONE_OF_MODES)
    if _has_light_damping(schur_poles(T) if poles is None else poles):
        return None
    return _OneByOne(partial(_factor_of_one_input, T, *_form_of_one_input(T)), ONE_BY_ONE)


def _reversed_adjoint(T: Array) -> Array:
    return T[::-1, ::-1].conj().T


def _factor(T: Array, B: Array, discrete: bool, one_input: _OneByOne | None, *, adjoint: bool) -> Array:
    """Return a factor of one Gramian: (n, n), or (n, n m) for a few inputs, one after the other.

    ``one_input`` returns that of one input, if known. With ``adjoint`` T^H takes the place of T.
    """
    n, m = B.shape
    if m == 0:
        return np.zeros((n, 0), np.result_type(T, B))
    if one_input is not None and (m == 1 or n * m <= one_input.limit):
        factors = [one_input.factor(B[:, k], adjoint=adjoint) for k in range(m)]
        return factors[0] if m == 1 else np.concatenate(factors, axis=1)
    if adjoint:  # T^H is lower triangular; with the states in reverse order it is upper triangular again
        return hammarling(_reversed_adjoint(T), B[::-1], discrete=discrete)[::-1]
    return hammarling(T, B, discrete=discrete)


def reduce_joined(L: Array) -> Array:
    """Return a factor of L L^H with no more columns than rows, of an L that may be joined of such factors.

    The QR decomposition of triangular matrices below each other costs a fifth of that of full ones.
    """
    n, width = L.shape
    if width <= n or n == 0:
        return L
    parts = [L[:, k : k + n] for k in range(0, width, n)]
    if np.iscomplexobj(L) or width % n or not all(map(is_block_triangular, parts)):
        return reduce_columns(L)
    R = np.zeros((n, n), order="F")
    for part in parts:
        # in reverse order its transpose is a Hessenberg matrix, of which the last n - 1 rows are a triangle
        hessenberg = np.array(part[::-1, ::-1].T, order="F")
        R = dtpqrt(n - 1, min(n, 32), R, hessenberg, overwrite_a=1, overwrite_b=1)[0]
    return R.T[::-1, ::-1]


def _has_light_damping(poles: Array) -> bool:
    return bool(np.any(-poles.real < LIGHT_DAMPING * np.abs(poles)))


def hammarling(T: Array, B: Array, *, discrete: bool) -> Array:
    """Return the block upper triangular U of the equation above; T must be stable."""
    n = T.shape[0]
    dtype = np.result_type(T, B)
    T = np.asfortranarray(T, dtype=dtype)
    B = np.array(reduce_columns(B), dtype=dtype, order="F")
    U = np.zeros((n, n), dtype=dtype, order="F")
    tiles = _tiles(T, TILE)
    solve_tile = _discrete_tile if discrete else _continuous_tile
    for j in range(len(tiles) - 1, -1, -1):
        J = tiles[j]
        S, M = _diagonal_tile(T, B, U, J, discrete)
        for i in range(j - 1, -1, -1):
            I = tiles[i]
            coupling = T[I, I.stop : J.stop] @ U[I.stop : J.stop, J]
            solve_tile(T, B, U, I, J, coupling, S, M)
    return U


def _tiles(T: Array, size: int) -> list[slice]:
    """Cut the states into tiles of a size without cutting a 2 x 2 block."""
    n, tiles, start = T.shape[0], [], 0
    while start < n:
        stop = min(start + size, n)
        if stop < n and T[stop, stop - 1] != 0:
            stop += 1
        tiles.append(slice(start, stop))
        start = stop
    return tiles


def _diagonal_tile(T: Array, B: Array, U: Array, J: slice, discrete: bool) -> tuple[Array, Array]:
    """Solve the tile on the diagonal; return S = U^-1 T U and M = U^-1 B of the tile.

    Neither is computed with an inverse: the norm of a row of M follows from its pole, and S off its
    diagonal blocks from S + S^H + M M^H = 0. So the rows of nearly uncontrollable states are accurate too.
    """
    size = J.stop - J.start
    blocks = np.zeros((size, size), dtype=U.dtype, order="F")
    on_diagonal_blocks = np.zeros((size, size), dtype=bool)
    M = np.zeros((size, B.shape[1]), dtype=U.dtype)
    solve_tile = _discrete_tile if discrete else _continuous_tile
    stop = J.stop
    while stop > J.start:
        start = stop - 1
        if start > J.start and T[start, start - 1] != 0:
            start -= 1
        block, local = slice(start, stop), slice(start - J.start, stop - J.start)
        if stop - start == 1:
            U[start, start], blocks[local, local], M[local] = _factor_of_pole(
                T[start, start], B[start], discrete
            )
        else:
            U[block, block], blocks[local, local], M[local] = _factor_of_pair(T[block, block], B[block])
        on_diagonal_blocks[local, local] = True
        if start > J.start:
            above = slice(J.start, start)
            coupling = T[above, block] @ U[block, block]
            solve_tile(T, B, U, above, block, coupling, blocks[local, local], M[local])
        stop = start
    S = np.asfortranarray(np.where(on_diagonal_blocks, blocks, np.triu(-(M @ M.conj().T), 1)))
    return S, M


def _form_of_one_input(T: Array) -> tuple[Array, Array]:
    """Return S = U^-1 T U and M = U^-1 b for a single input b, in continuous time, for any b.

    M has one column then, so that its entries are numbers whose squares follow from the poles: with the
    phases of 1, S and M are known before U is, and T U + U S^H + b M^T = 0 is a single Sylvester equation.
    """
    poles = T.diagonal()
    M = np.sqrt(-2 * poles.real)
    S = np.where(upper_triangle(M.size), M[:, None] * -M, 0).astype(T.dtype)
    np.fill_diagonal(S, poles)
    first = np.flatnonzero(T.diagonal(-1))
    if first.size:
        # both states of a pair a +- j w have M = sqrt(-2 a): f + g = 2 a and f g = -w^2 in [[a, f], [g, a]]
        a, minus_w_squared = poles[first], T.diagonal(1)[first] * T.diagonal(-1)[first]
        g = a - np.sqrt(a * a - minus_w_squared)
        S[first, first + 1], S[first + 1, first] = minus_w_squared / g, g
    return np.asfortranarray(S), M


def _factor_of_one_input(T: Array, S: Array, M: Array, b: Array, *, adjoint: bool) -> Array:
    """Return the block upper triangular U with T U + U S^H + b M^T = 0.

    With ``adjoint`` it is the lower triangular U with T^H U + U S + b M^T = 0: a factor of the other Gramian,
    of which only the columns are in another order than those of the factor of T^H.
    """
    n = b.size
    tiles = _tiles(T, math.ceil(n / math.ceil(n / TILE_OF_ONE_INPUT)))
    if len(tiles) == 1:
        return _sylvester(T, S, b[:, None] * -M, adjoint=adjoint)
    U = np.zeros((n, n), dtype=np.result_type(T, b), order="F")
    b = b.astype(U.dtype)
    strips = _strips(tiles, n)
    if not adjoint:
        tiles, strips = tiles[::-1], strips[::-1]
    T_of_strips = [np.asfortranarray(T[I, I]) for I in strips]
    for J in tiles:
        S_J, M_J = S[J, J], M[J]
        for I, T_I in zip(strips, T_of_strips, strict=True):
            if adjoint:  # rows from those of the tile down
                start, stop, solved = max(I.start, J.start), I.stop, slice(J.start, max(I.start, J.start))
            else:  # rows from those of the tile up
                start, stop, solved = I.start, min(I.stop, J.stop), slice(min(I.stop, J.stop), J.stop)
            if start >= stop:
                continue
            rows, part = slice(start, stop), slice(start - I.start, stop - I.start)
            W = b[rows, None] * -M_J
            if solved.start < solved.stop:
                coupling = T[solved, rows].conj().T if adjoint else T[rows, solved]
                W -= coupling @ U[solved, J]
            X = _sylvester(T_I[part, part], S_J, W, adjoint=adjoint)
            U[rows, J] = X
            b[rows] -= X @ M_J
    return U


def _strips(tiles: list[slice], n: int) -> list[slice]:
    """Join tiles to strips of rows of at most about :data:`ROWS_OF_ONE_INPUT`."""
    each = max(ROWS_OF_ONE_INPUT * len(tiles) // n, 1)
    groups = [tiles[k : k + each] for k in range(0, len(tiles), each)]
    return [slice(group[0].start, group[-1].stop) for group in groups]


def _sylvester(T: Array, S: Array, W: Array, *, adjoint: bool = False) -> Array:
    """Return the X of T X + X S^H = W, or with ``adjoint`` of T^H X + X S = W."""
    trsyl = ztrsyl if np.iscomplexobj(W) else dtrsyl
    X, scale, info = trsyl(T, S, W, trana="C") if adjoint else trsyl(T, S, W, tranb="C")
    if info < 0 or scale == 0:
        raise _solver_error("trsyl", info)
    if info > 0:  # LAPACK changes sums of poles below rounding of the fastest, as in stiff circuits
        if adjoint:
            T, S = _reversed_adjoint(T), _reversed_adjoint(S)
            return _sylvester_of_stiff(T, S, W[::-1, ::-1])[::-1, ::-1]
        return _sylvester_of_stiff(T, S, W)
    return X if scale == 1 else X / scale


def _sylvester_of_stiff(T: Array, S: Array, W: Array) -> Array:
    """Return the X of T X + X S^H = W, column by column, whatever the sizes of the poles."""
    (T, Q), (S, P) = (
        (M, np.eye(len(M))) if np.iscomplexobj(M) else sla.rsf2csf(M, np.eye(len(M))) for M in (T, S)
    )
    right_side = Q.conj().T @ W @ P
    X = np.zeros(right_side.shape, complex)
    eye = np.eye(len(T))
    for k in reversed(range(len(S))):
        column = right_side[:, k] - X[:, k + 1 :] @ S[k, k + 1 :].conj()
        X[:, k] = sla.solve_triangular(T + S[k, k].conj() * eye, column, check_finite=False)
    out = Q @ X @ P.conj().T
    return np.asarray(out if np.iscomplexobj(W) else out.real)


def _factor_of_pole(pole: Any, b: Array, discrete: bool) -> tuple[float, Any, Array]:
    # (1 - |t|)(1 + |t|) is accurate for a pole near the unit circle
    square = (1 - abs(pole)) * (1 + abs(pole)) if discrete else -2 * pole.real
    if not square > 0:
        raise ConvergenceError(
            f"the Gramian of a pole at {pole:.6g} cannot be computed: within rounding it is on the stability "
            "boundary; increase stability_tol= so that it counts as marginal and is kept"
        )
    length = math.sqrt(square)
    largest = float(np.abs(b).max(initial=0.0))
    if largest == 0:
        return 0.0, pole, b
    # brought to a size of one first: a hardly controllable row may be so small that its inverse overflows
    exponent = math.frexp(largest)[1]
    row = b * 2.0 ** (-exponent // 2) * 2.0 ** (-exponent - -exponent // 2)
    size = math.hypot(*np.abs(row).tolist())
    return math.ldexp(size / length, exponent), pole, row * (length / size)


def _factor_of_pair(T: Array, b: Array) -> tuple[Array, Array, Array]:
    """Return U, S and M of a real 2 x 2 block T = [[a, f], [g, a]] with complex poles (f g < 0).

    The root V of a diagonal form is known in closed form, and U follows from it without the inverse of U.
    Every difference that could cancel is rewritten. With the rows b1, b2 of b:

    1. s = sqrt(-g / f), w = sign(f) sqrt(-f g): scaling the second state by s turns T into [[a, w], [-w, a]].
    2. z1 = (x1 - j x2 / s) / sqrt(2) and its conjugate z2 have the poles l = a + j w and conj l, and the
       input rows beta = (b1 - j b2 / s) / sqrt(2) = x + j y and conj beta.
    3. The Gramian of z is [[p, q], [conj q, p]], p = |beta|^2 / (-2 a), rho = q / p = (d / |beta|^2) (a / l),
       d = beta beta^T. With |beta|^2 - d = 2 (|y|^2 - j x y^T) and |beta|^2 + d = 2 (|x|^2 + j x y^T),
       rho - 1 and rho + 1 are sums of two terms each.
    4. gamma = 1 - |d|^2 / |beta|^4 = 4 |v|^2 |r|^2 / |beta|^4, where v is the longer of x and y and r is the
       part of the other one that is orthogonal to v, which is v times k plus r.
    5. V = [[v11, v12], [0, v22]], v22 = sqrt(p), v12 = rho v22, v11 = sqrt(p (gamma a^2 + w^2)) / |l|.
    6. V^-1 [beta; conj beta] has rows m1 and m2 of norm sqrt(-2 a): m2 along conj beta, and m1 along
       beta (gamma a + j w) / l - rho e, e = conj beta - (conj d / |beta|^2) beta. In v and r, |beta|^2 e is
       2 |r|^2 v - 2 j |v|^2 (1 - j k) r if v = x, and -2 j |r|^2 v + 2 |v|^2 (1 + j k) r if v = y.
    7. V^-1 diag(l, conj l) V = [[l, c], [0, conj l]], c = -m1 m2^H.
    8. In the states x, V has the rows r1, r2 = (v11, v12 + v22) / sqrt(2), (v11, v12 - v22) j s / sqrt(2).
       Orthogonalized from the last row up they are U Q with Q unitary, and S and M are the matrices of 6
       and 7 multiplied by Q. The determinant of V in these states is -j s v11 v22, from which the first row
       of Q and u11 follow.
    """
    # Python numbers instead of arrays, which are slower for a few inputs
    (a, f), (g, _) = T.tolist()
    b1, b2 = b.tolist()
    scale = max(map(abs, b1 + b2), default=0.0)
    if scale == 0:
        return np.zeros((2, 2)), T, np.zeros_like(b)
    # 1
    s = math.sqrt(g / -f)
    w = math.copysign(math.sqrt(-f * g), f)
    # 2, divided by the scale first: squares of a nearly uncontrollable row must not underflow
    pole = complex(a, w)
    x = [value / scale * HALF for value in b1]
    y = [-value / scale * HALF / s for value in b2]
    beta = list(map(complex, x, y))
    # 3
    xx, yy, xy = _dot(x, x), _dot(y, y), _dot(x, y)
    beta_sq = xx + yy
    d = complex(xx - yy, 2 * xy)
    p, rho = beta_sq / (-2 * a), d / beta_sq * (a / pole)
    minus_one = (complex(-yy, xy) * (2 * a / beta_sq) - complex(0, w)) / pole  # rho - 1
    plus_one = (complex(xx, xy) * (2 * a / beta_sq) + complex(0, w)) / pole  # rho + 1
    # 4; of nearly parallel rows the first r is rounding, which the second pass makes orthogonal
    v, u, v_sq = (x, y, xx) if xx >= yy else (y, x, yy)
    k = xy / v_sq
    r = [ui - vi * k for ui, vi in zip(u, v, strict=True)]
    k_of_r = _dot(v, r) / v_sq
    r = [ri - vi * k_of_r for ri, vi in zip(r, v, strict=True)]
    r_sq = _dot(r, r)
    gamma = 4 * v_sq * r_sq / beta_sq**2
    # 5
    v22 = math.sqrt(p)
    v11 = math.sqrt(p * (gamma * a * a + w * w)) / abs(pole)
    # 6
    length = math.sqrt(-2 * a)
    m2 = [value.conjugate() * (length / math.sqrt(beta_sq)) for value in beta]
    of_v, of_r = (1, complex(-k, -1)) if xx >= yy else (-1j, complex(1, k))
    of_v, of_r = rho * of_v * (2 * r_sq / beta_sq), rho * of_r * (2 * v_sq / beta_sq)
    turn = complex(gamma * a, w) / pole
    m1 = [bi * turn - vi * of_v - ri * of_r for bi, vi, ri in zip(beta, v, r, strict=True)]
    stretch = length / math.hypot(*map(abs, m1))
    m1 = [m * stretch for m in m1]
    # 7
    c = -sum((i * k.conjugate() for i, k in zip(m1, m2, strict=True)), 0j)
    # 8
    r1, r2 = (HALF * v11, HALF * v22 * plus_one), (HALF * s * v11 * 1j, HALF * s * v22 * minus_one * 1j)
    u22 = math.hypot(abs(r2[0]), abs(r2[1]))
    u12 = (r1[0] * r2[0].conjugate() + r1[1] * r2[1].conjugate()).real / u22
    u11 = s * v11 * v22 / u22
    q2 = (r2[0] / u22, r2[1] / u22)
    q1 = (-1j * q2[1].conjugate(), 1j * q2[0].conjugate())

    def entry(row: tuple[complex, complex], column: tuple[complex, complex]) -> float:
        second = row[0] * c + row[1] * pole.conjugate()
        return (row[0] * pole * column[0].conjugate() + second * column[1].conjugate()).real

    U = np.array([[u11 * scale, u12 * scale], [0.0, u22 * scale]])
    S = np.array([[entry(q1, q1), entry(q1, q2)], [entry(q2, q1), entry(q2, q2)]])
    M = [[(q[0] * i + q[1] * k).real for i, k in zip(m1, m2, strict=True)] for q in (q1, q2)]
    return U, S, np.array(M)


def _solver_error(routine: str, info: int) -> ConvergenceError:
    return ConvergenceError(
        f"the factor of a Gramian could not be computed: LAPACK's {routine} returned {info}, as for "
        "two poles that are mirrored at the stability boundary; check the units and time step of the model"
    )


def _dot(x: list[float], y: list[float]) -> float:
    return sum(map(operator.mul, x, y))


def _continuous_tile(
    T: Array, B: Array, U: Array, I: slice, J: slice, coupling: Array, S: Array, M: Array
) -> None:
    """Solve T_II X + X S^H = -coupling - B_I M^H for X = U[I, J] and update B_I."""
    U[I, J] = _sylvester(T[I, I], S, -coupling - B[I] @ M.conj().T)
    B[I] -= U[I, J] @ M


def _discrete_tile(
    T: Array, B: Array, U: Array, I: slice, J: slice, coupling: Array, S: Array, M: Array
) -> None:
    """Solve (conj(t) T_II - 1) x = -conj(t) coupling - B_I M^H column by column, updating B_I."""
    tile, rows = T[I, I], B[I].copy()
    diagonal = np.arange(tile.shape[0])
    for k in range(J.stop - J.start - 1, -1, -1):
        pole, direction = S[k, k], M[k]
        inner = rows @ direction.conj()
        shifted = pole.conjugate() * tile
        shifted[diagonal, diagonal] -= 1
        x, info = ztrtrs(shifted, -pole.conjugate() * coupling[:, k] - inner)
        if info != 0:
            raise _solver_error("ztrtrs", info)
        U[I, J.start + k] = x
        # an isometry, so that B of the remaining states keeps its m columns
        modulus = abs(pole)
        phase = pole.conjugate() / modulus if modulus > 0 else 1.0
        image = tile @ x + coupling[:, k]
        rows -= np.outer(inner / (1 + modulus) + phase * image, direction)
    B[I] = rows
