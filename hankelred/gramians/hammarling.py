"""Hammarling's method in tiles: the triangular factor of a Gramian, never the Gramian.

For a stable T in Schur form (complex upper triangular, or real with 2 x 2 blocks) and any B the
block upper triangular factor U of

    T U U^H + U U^H T^H + B B^H = 0      (continuous)
    T U U^H T^H - U U^H + B B^H = 0      (discrete)

is found from the last state to the first. Removing the last state leaves a problem of the same
form for the others with B updated in place, so the right-hand side keeps its m columns and nothing
is squared. Columns and rows are worked on in tiles: the work between tiles is matrix products, the
work inside one is a small Sylvester equation.

Sources: Hammarling, IMA J. Numer. Anal. 2 (1982), and Syst. Control Lett. 17 (1991) for discrete
time; Kressner, "Block variants of Hammarling's method" (2008) for the idea of blocks.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from scipy.linalg.lapack import dtrsyl, ztrsyl, ztrtrs

from .._util.arrays import Array, narrow
from ..errors import ConvergenceError

TILE = 40

HALF = math.sqrt(0.5)


def hammarling_factors(T: Array, B: Array, C: Array, *, discrete: bool) -> tuple[Array, Array]:
    """Return Lc and Lo of a stable system whose T is in Schur form, both (n, n).

    Discrete time takes complex Schur form only.
    """
    Lc = hammarling(T, B, discrete=discrete)
    # T^H is lower triangular; with the states in reverse order it is upper triangular again
    Lo = hammarling(T[::-1, ::-1].conj().T, C.conj().T[::-1], discrete=discrete)
    return Lc, Lo[::-1]


def hammarling(T: Array, B: Array, *, discrete: bool) -> Array:
    """Return the block upper triangular U of the equation above; T must be stable."""
    n = T.shape[0]
    dtype = np.result_type(T, B)
    T = np.asfortranarray(T, dtype=dtype)
    B = np.array(narrow(B), dtype=dtype, order="F")
    U = np.zeros((n, n), dtype=dtype, order="F")
    tiles = _tiles(T)
    solve_tile = _discrete_tile if discrete else _continuous_tile
    for at in range(len(tiles) - 1, -1, -1):
        J = tiles[at]
        S, M = _diagonal_tile(T, B, U, J, discrete)
        for above in range(at - 1, -1, -1):
            I = tiles[above]
            coupling = T[I, I.stop : J.stop] @ U[I.stop : J.stop, J]
            solve_tile(T, B, U, I, J, coupling, S, M)
    return U


def _tiles(T: Array) -> list[slice]:
    """Cut the states into tiles without cutting a 2 x 2 block."""
    n, tiles, start = T.shape[0], [], 0
    while start < n:
        stop = min(start + TILE, n)
        if stop < n and T[stop, stop - 1] != 0:
            stop += 1
        tiles.append(slice(start, stop))
        start = stop
    return tiles


def _diagonal_tile(T: Array, B: Array, U: Array, J: slice, discrete: bool) -> tuple[Array, Array]:
    """Solve the tile on the diagonal; return S = U^-1 T U and M = U^-1 B of the tile.

    Neither is computed with an inverse: the size of a row of M follows from its pole, and the rest
    of S from S + S^H + M M^H = 0. So a state that is hardly controllable loses nothing.
    """
    size = J.stop - J.start
    blocks = np.zeros((size, size), dtype=U.dtype, order="F")
    within = np.zeros((size, size), dtype=bool)
    M = np.zeros((size, B.shape[1]), dtype=U.dtype)
    solve_tile = _discrete_tile if discrete else _continuous_tile
    stop = J.stop
    while stop > J.start:
        start = stop - 1
        if start > J.start and T[start, start - 1] != 0:
            start -= 1
        block, local = slice(start, stop), slice(start - J.start, stop - J.start)
        if stop - start == 1:
            U[start, start], blocks[local, local], M[local] = _root_of_pole(
                T[start, start], B[start], discrete
            )
        else:
            U[block, block], blocks[local, local], M[local] = _root_of_pair(T[block, block], B[block])
        within[local, local] = True
        if start > J.start:
            above = slice(J.start, start)
            coupling = T[above, block] @ U[block, block]
            solve_tile(T, B, U, above, block, coupling, blocks[local, local], M[local])
        stop = start
    S = np.asfortranarray(np.where(within, blocks, np.triu(-(M @ M.conj().T), 1)))
    return S, M


def _root_of_pole(pole: Any, b: Array, discrete: bool) -> tuple[float, Any, Array]:
    # (1 - |t|)(1 + |t|) keeps the digits of a pole near the circle
    length = math.sqrt((1 - abs(pole)) * (1 + abs(pole)) if discrete else -2 * pole.real)
    largest = float(np.abs(b).max(initial=0.0))
    if largest == 0:
        return 0.0, pole, b
    # brought to a size of one first: a hardly controllable row may be so small that its inverse overflows
    exponent = math.frexp(largest)[1]
    row = b * 2.0 ** (-exponent // 2) * 2.0 ** (-exponent - -exponent // 2)
    size = math.hypot(*np.abs(row).tolist())
    return math.ldexp(size / length, exponent), pole, row * (length / size)


def _root_of_pair(T: Array, b: Array) -> tuple[Array, Array, Array]:
    """Return U, S and M of a real 2 x 2 block [[a, f], [g, a]] with complex poles (f g < 0).

    A scaling of its two states makes the block normal, so that one unitary matrix diagonalises it
    and the complex root V is known in closed form, with every difference that could cancel
    rewritten. The real root U has U U^T = V V^H, so V = U Q with a unitary Q, and S and M follow by
    Q instead of by the inverse of U.
    """
    # plain numbers throughout: a few inputs are faster so than as arrays
    (a, above), (below, _) = T.tolist()
    upper, lower = b.tolist()
    scale = max(map(abs, upper + lower), default=0.0)
    if scale == 0:
        return np.zeros((2, 2)), T, np.zeros_like(b)
    skew = math.sqrt(below / -above)
    w = math.copysign(math.sqrt(-above * below), above)
    pole = complex(a, w)
    # divided by their size first: squares of a hardly controllable row must not underflow
    x = [v / scale * HALF for v in upper]
    y = [-v / scale * HALF / skew for v in lower]
    beta = list(map(complex, x, y))  # the row of the pole; its conjugate is the row of the other
    xx, yy, xy = _dot(x, x), _dot(y, y), _dot(x, y)
    size = xx + yy
    bilinear = complex(xx - yy, 2 * xy)  # beta beta^T; |beta|^4 - |bilinear|^2 is 4 det of x and y
    larger, other, most = (x, y, xx) if xx >= yy else (y, x, yy)
    rest = [o - v * (xy / most) for o, v in zip(other, larger, strict=True)]
    gap = 4 * most * _dot(rest, rest) / size**2
    # the Gramian of the complex states is [[p, q], [conj q, p]], and ratio is q / p
    p, ratio = size / (-2 * a), bilinear / size * (a / pole)
    v22 = math.sqrt(p)
    v11 = math.sqrt(p * (gap * a * a + w * w)) / abs(pole)
    v12 = ratio * v22
    length = math.sqrt(-2 * a)
    M2 = [v.conjugate() * (length / math.sqrt(size)) for v in beta]
    M1 = [v * (complex(gap * a, w) / pole) for v in beta]
    if len(beta) > 1:
        along = bilinear.conjugate() / size
        M1 = [u - ratio * (v.conjugate() - along * v) for u, v in zip(M1, beta, strict=True)]
    stretch = length / math.hypot(*map(abs, M1))
    M1 = [v * stretch for v in M1]
    # back to the two real states
    first, second = (HALF * v11, HALF * (v12 + v22)), (HALF * skew * v11 * 1j, HALF * skew * (v12 - v22) * 1j)
    u22 = math.hypot(abs(second[0]), abs(second[1]))
    u12 = (first[0] * second[0].conjugate() + first[1] * second[1].conjugate()).real / u22
    left = (first[0] - second[0] * (u12 / u22), first[1] - second[1] * (u12 / u22))
    u11 = math.hypot(abs(left[0]), abs(left[1]))
    q1, q2 = (left[0] / u11, left[1] / u11), (second[0] / u22, second[1] / u22)
    coupling = -sum((u * v.conjugate() for u, v in zip(M1, M2, strict=True)), 0j)

    def entry(row: tuple[complex, complex], column: tuple[complex, complex]) -> float:
        through = row[0] * coupling + row[1] * pole.conjugate()
        return (row[0] * pole * column[0].conjugate() + through * column[1].conjugate()).real

    U = np.array([[u11 * scale, u12 * scale], [0.0, u22 * scale]])
    S = np.array([[entry(q1, q1), entry(q1, q2)], [entry(q2, q1), entry(q2, q2)]])
    M = [[(q[0] * u + q[1] * v).real for u, v in zip(M1, M2, strict=True)] for q in (q1, q2)]
    return U, S, np.array(M)


def _no_factor(routine: str, info: int) -> ConvergenceError:
    return ConvergenceError(
        f"the factor of a Gramian could not be computed: LAPACK's {routine} reports {info}, as for two "
        "poles that are mirrored at the stability boundary; check the units and time step of the model"
    )


def _dot(x: list[float], y: list[float]) -> float:
    return sum(map(operator.mul, x, y))


def _continuous_tile(
    T: Array, B: Array, U: Array, I: slice, J: slice, coupling: Array, S: Array, M: Array
) -> None:
    """Solve T_II X + X S^H = -coupling - B_I M^H for X = U[I, J] and update B_I."""
    trsyl = ztrsyl if np.iscomplexobj(U) else dtrsyl
    X, scale, info = trsyl(T[I, I], S, -coupling - B[I] @ M.conj().T, tranb="C")
    if info < 0 or scale == 0:
        raise _no_factor("trsyl", info)
    U[I, J] = X if scale == 1 else X / scale
    B[I] -= U[I, J] @ M


def _discrete_tile(
    T: Array, B: Array, U: Array, I: slice, J: slice, coupling: Array, S: Array, M: Array
) -> None:
    """Solve (conj(t) T_II - 1) x = -conj(t) coupling - B_I M^H column by column, updating B_I."""
    tile, rows = T[I, I], B[I].copy()
    diagonal = np.arange(tile.shape[0])
    for k in range(J.stop - J.start - 1, -1, -1):
        pole, direction = S[k, k], M[k]
        along = rows @ direction.conj()
        shifted = pole.conjugate() * tile
        shifted[diagonal, diagonal] -= 1
        x, info = ztrtrs(shifted, -pole.conjugate() * coupling[:, k] - along)
        if info != 0:
            raise _no_factor("ztrtrs", info)
        U[I, J.start + k] = x
        # the isometry that leaves B of the remaining states with m columns
        modulus = abs(pole)
        phase = pole.conjugate() / modulus if modulus > 0 else 1.0
        forced = tile @ x + coupling[:, k]
        rows -= np.outer(along / (1 + modulus) + phase * forced, direction)
    B[I] = rows
