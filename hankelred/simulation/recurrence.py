"""The blocked linear recurrence ``x[k+1] = A x[k] + B u[k]``, ``y[k] = C x[k] + D u[k]``.

All functions work on plain arrays; models, checks and shapes are handled in
:mod:`hankelred.simulation.simulate`.

There are two levels of blocks. A block of ``L`` samples is one row of a matrix product: the outputs of all
blocks are ``[x_0, u_0 .. u_(L-1)] @ G``, where ``G`` holds ``C A^k`` and the Markov parameters. The states
at the block starts satisfy the same recurrence with ``A^L``. They are computed by a parallel prefix scan,
whose steps are matrix products over all pairs of blocks. Both levels process chunks that fit the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .._util.arrays import Array
from ..models.scaling import balance_matrix

#: Working set of one chunk in bytes, about one second-level cache.
_CHUNK_BYTES = 1 << 20
#: A block has at most 2 ** this samples, and a chunk at most 2 ** this blocks.
_MAX_LEVEL = 11
# Costs for the choice of the block length, in units of one floating-point operation inside a large matrix
# product (1 / 38e9 s on the machine where they were measured; only their ratios matter).
#: One step of the plain loop, or of the scan over blocks, of any size.
_STEP = 1.0e5
#: One operation of a matrix-vector product.
_VECTOR_OPERATION = 8.0
#: All work before the first block is finished.
_BLOCK_START = 8.0e6
#: Upper limits of a power of A: relative to the growth of the model (times sqrt(n) for the Frobenius norm),
#: and absolute.
_MAX_GROWTH = 100.0
_MAX_SIZE = 1e100
_GELFAND_SQUARINGS = 20


def safe_squares(A: Array, count: int) -> list[Array]:
    """Return ``A, A^2, A^4, ...``, at most ``count + 1`` of them, as long as they are accurate.

    Plain repeated squaring doubles the relative error each time: after ``k`` squarings it is ``2**k eps``,
    which is visible for models with a long memory (a pole on the unit circle), unlike in the plain loop. So
    the rounding error of each power is kept in a second matrix, and the result has the accuracy of one
    rounding.

    A product with a power P has a rounding error of ``eps ||P||``. If P is large because the model is
    unstable, the error of the loop is as large. If the powers are large only transiently (strongly non-normal
    A), that of the loop may be smaller, and the list ends there. It also ends long before overflow.
    """
    squares = [A]
    low = np.zeros_like(A)
    limit = _MAX_GROWTH * math.sqrt(max(A.shape[0], 1))
    rate = None
    for k in range(1, count + 1):
        with np.errstate(over="ignore", invalid="ignore"):
            square, low = _square(squares[-1], low)
            size = float(np.linalg.norm(square))
        if not size < _MAX_SIZE:
            break
        if size > limit:
            # A scaling of the states does not change the rounding, so the smallest norm by scaling counts.
            size = float(np.linalg.norm(balance_matrix(square)[0]))
        if size > limit:
            rate = _growth_rate(A) if rate is None else rate
            if math.log(size / limit) > rate * 2.0**k:
                break
        squares.append(square)
    return squares


def _growth_rate(A: Array) -> float:
    """Return max(0, log of the spectral radius), by Gelfand's formula with normalized squaring."""
    log_size = 0.0
    for k in range(_GELFAND_SQUARINGS):
        size = float(np.linalg.norm(A))
        if size == 0.0:
            return 0.0
        log_size += math.log(size) / 2.0**k
        A = A / size
        A = A @ A
    return max(0.0, log_size)


def _square(P: Array, low: Array) -> tuple[Array, Array]:
    """Square ``P + low`` with about 23 bits more than double precision; return the result as such a pair.

    P is rounded to its leading bits ``H`` so that ``H @ H`` is exact (Ozaki, Ogita, Oishi, Rump, Numer.
    Algorithms 59, 2012, 95-118); the remainder is small, and so is the rounding of its products.
    """
    top = float(np.abs(P).max(initial=0.0))
    if top == 0.0 or not np.isfinite(top):
        return P @ P, low
    # A complex product is a sum of twice as many terms.
    bits = (53 - int(2 * P.shape[0]).bit_length()) // 2
    cut = 1.5 * 2.0 ** (np.frexp(top)[1] + 52 - bits)
    head = _leading(P.real, cut) + 1j * _leading(P.imag, cut) if np.iscomplexobj(P) else _leading(P, cut)
    tail = (P - head) + low
    exact = head @ head
    cross_terms = head @ tail + tail @ P
    square = exact + cross_terms
    # Knuth's two-sum: the exact rounding error of the last addition.
    added = square - exact
    return square, (exact - (square - added)) + (cross_terms - added)


def _leading(P: Array, cut: float) -> Array:
    # Adding a large number rounds away the bits below its last bit.
    out: Array = (P + cut) - cut
    return out


@dataclass(frozen=True)
class BlockPlan:
    """The division of a simulation: blocks of ``2**level`` samples, ``2**depth`` of them in one scan."""

    level: int
    depth: int
    chunk: int
    blocks_are_faster: bool


def plan_blocks(n: int, m: int, p: int, samples: int) -> BlockPlan:
    """Choose the block length from the sizes alone, by counting operations.

    Per sample a block of ``L`` costs ``2 p m L`` for the input inside the block, ``2 (p + m) n`` for the
    products with B and C, and ``4 n^2 / L`` for the scan over the block states (at half the speed: its
    matrices have few rows). One squaring costs ``6 n^3``. The level balances the first against the third, the
    depth balances squarings against the plain steps that remain at the top of the scan.
    """
    squaring = 6.0 * n**3
    longest = min(max(samples, 1).bit_length() - 1, _MAX_LEVEL)

    def block_cost(level: int) -> float:
        L = 1 << level
        # Products with fewer than 16 states are not faster.
        scan = 8.0 * max(n, 16) ** 2 + 6000.0
        return squaring * level + samples * (2.0 * p * m * L + 2.0 * (p + m) * n + scan / L)

    level = min(range(longest + 1), key=block_cost)
    chunk = max(64, _CHUNK_BYTES // (8 * (n + ((m + p) << level))))
    chunk = 1 << (chunk.bit_length() - 1)
    blocks = samples >> level
    step = _STEP + 2.0 * _VECTOR_OPERATION * n**2

    def scan_cost(depth: int) -> float:
        return squaring * depth + step * blocks / (1 << depth)

    depth = min(range(min(chunk, max(blocks, 1)).bit_length()), key=scan_cost)
    loop = samples * (_STEP + 2.0 * _VECTOR_OPERATION * (n + p) * (n + m))
    return BlockPlan(level, depth, chunk, _BLOCK_START + block_cost(level) + scan_cost(depth) < loop)


def step_loop(A: Array, B: Array, C: Array, D: Array, u: Array, x: Array) -> tuple[Array, Array]:
    """Run the recurrence one sample at a time; return ``y`` (p, T) and the state after the last.

    After an overflow of the state all outputs are NaN.
    """
    n = A.shape[0]
    system = np.concatenate([np.concatenate([A, B], 1), np.concatenate([C, D], 1)], 0)
    y = np.empty((C.shape[0], u.shape[1]), dtype=x.dtype)
    state = np.concatenate([x, np.zeros(u.shape[0], dtype=x.dtype)])
    inputs = np.ascontiguousarray(u.T)
    for k in range(u.shape[1]):
        if k % 4096 == 0 and not np.isfinite(state).all():
            y[:, k:] = np.nan
            break
        state[n:] = inputs[k]
        out = system @ state
        y[:, k] = out[n:]
        state[:n] = out[:n]
    return y, state[:n].copy()


def row_powers(C: Array, squares: list[Array], count: int) -> Array:
    """Return ``C A^k`` for ``k < count``, (..., count, p, n), by doubling.

    ``squares`` are A, A^2, A^4, ... If there are too few, the largest power is used again and again. C may be
    a stack (..., p, n) of matrices, with as many A.
    """
    *stack, p, n = C.shape
    rows = np.empty((*stack, max(count, 1) * p, n), np.result_type(C, *squares[:1]))
    rows[..., :p, :] = C
    filled, k = p, 0
    while filled < rows.shape[-2]:
        step = p << k
        stop = min(filled + step, rows.shape[-2])
        np.matmul(rows[..., filled - step : stop - step, :], squares[k], out=rows[..., filled:stop, :])
        filled, k = stop, min(k + 1, len(squares) - 1)
    return rows[..., : count * p, :].reshape(*stack, count, p, n)


def free_response(A: Array, B: Array, C: Array, count: int) -> Array:
    """Return ``C A^k B`` for ``k < count``, (count, p, m), as products of a few ``C A^i`` and ``A^j B``."""
    n, m = B.shape
    p = C.shape[0]
    if count == 0 or n == 0:
        return np.zeros((count, p, m), dtype=A.dtype)
    bits = (count - 1).bit_length()
    step = _STEP + 2.0 * _VECTOR_OPERATION * n**2 * m
    depth = min(range(bits + 1), key=lambda d: 6.0 * n**3 * d + step * count / (1 << d))
    squares = safe_squares(A, depth)
    # With CA[i] = C A^i for i < K and AB[j] = A^(K j) B, C A^(i + K j) B = CA[i] @ AB[j].
    n_row_squares = min(len(squares) - 1, bits // 2)
    CA = row_powers(C, squares[:n_row_squares], 1 << n_row_squares)
    n_columns = -(-count // len(CA))
    AB = row_powers(B.T, [P.T for P in squares[n_row_squares:]], n_columns)
    product = CA.reshape(-1, n) @ AB.reshape(-1, n).T
    terms = product.reshape(len(CA), p, n_columns, m).transpose(2, 0, 1, 3)
    return terms.reshape(n_columns * len(CA), p, m)[:count]


def block_run(
    A: Array, B: Array, C: Array, D: Array, u: Array, x: Array, plan: BlockPlan
) -> tuple[Array, Array]:
    """Run the recurrence in blocks; same result as :func:`step_loop` to rounding."""
    p, n = C.shape
    m, samples = u.shape
    y = np.empty((p, samples), dtype=x.dtype)
    squares = safe_squares(A, plan.level + plan.depth)
    if len(squares) == 1:
        return step_loop(A, B, C, D, u, x)
    level = min(plan.level, len(squares) - 1)
    L, chunk = 1 << level, plan.chunk
    matrices = _Block(squares[: level + 1], B, C, D)
    transition_powers = [np.ascontiguousarray(P.T) for P in squares[level:]]

    end = samples - samples % L  # of the last complete block
    rows = np.empty((min(chunk, end // L), n + m * L), dtype=x.dtype)
    for start in range(0, end, chunk * L):
        stop = min(start + chunk * L, end)
        count = (stop - start) // L
        block = rows[:count]
        block[:, n:].reshape(count, m, L)[...] = u[:, start:stop].reshape(m, count, L).transpose(1, 0, 2)
        block[:, :n], x = _block_start_states(block[:, n:] @ matrices.input_to_state, x, transition_powers)
        if p == 1:
            np.matmul(block, matrices.to_outputs, out=y[0, start:stop].reshape(count, L))
        else:
            outputs = (block @ matrices.to_outputs).reshape(count, p, L)
            y[:, start:stop].reshape(p, count, L)[...] = outputs.transpose(1, 0, 2)

    remainder = samples - end
    if remainder:
        last = np.zeros((m, L), dtype=x.dtype)
        last[:, :remainder] = u[:, end:]
        padded_outputs = (np.concatenate([x, last.ravel()]) @ matrices.to_outputs).reshape(p, L)
        y[:, end:] = padded_outputs[:, :remainder]
        x = matrices.partial_step(x, last[:, :remainder])
    return y, x


class _Block:
    """The matrices of one block of ``L`` samples, channels first, samples within a channel."""

    def __init__(self, squares: list[Array], B: Array, C: Array, D: Array) -> None:
        n, m = B.shape
        p = C.shape[0]
        L = 1 << (len(squares) - 1)
        CA = row_powers(C, squares[:-1], L)
        AB = row_powers(B.T, [P.T for P in squares[:-1]], L)  # the transposes of A^k B
        dtype = np.result_type(squares[0], B, C, D)
        markov = np.empty((L, p, m), dtype=dtype)
        markov[0] = D
        markov[1:] = (CA[:-1].reshape(-1, n) @ B).reshape(L - 1, p, m)
        # Row k of a triangular Toeplitz matrix is a window of the padded sequence, shifted by k.
        padded = np.concatenate([np.zeros((L - 1, p, m), dtype=dtype), markov])
        windows = np.lib.stride_tricks.sliding_window_view(padded, L, axis=0)[::-1]
        self.to_outputs = np.empty((n + m * L, p, L), dtype=dtype)
        self.to_outputs[:n] = CA.transpose(2, 1, 0)
        self.to_outputs[n:].reshape(m, L, p, L)[...] = windows.transpose(2, 0, 1, 3)
        self.to_outputs = self.to_outputs.reshape(n + m * L, p * L)
        self.input_to_state = AB[::-1].transpose(1, 0, 2).reshape(m * L, n)
        self._squares = squares
        self._length = L

    def partial_step(self, x: Array, u: Array) -> Array:
        """Advance the state by fewer than ``L`` samples, by the binary digits of their number."""
        m, count = u.shape
        n = len(x)
        inputs = self.input_to_state.reshape(m, self._length, n)
        done = 0
        for bit in reversed(range(len(self._squares) - 1)):
            length = 1 << bit
            if count & length:
                part = u[:, done : done + length]
                driven = part.ravel() @ inputs[:, self._length - length :].reshape(m * length, n)
                x = self._squares[bit] @ x + driven
                done += length
        return x


def _block_start_states(v: Array, x: Array, transition_powers: list[Array]) -> tuple[Array, Array]:
    """Return the states at the block starts of ``x_(j+1) = P x_j + v_j``, and the state after the last block.

    ``v`` is (blocks, n), ``transition_powers`` the transposes of ``P, P^2, P^4, ...``. Pairs of blocks are
    merged, the recurrence of half the length is solved, and the states between follow from its states.
    """
    count = v.shape[0]
    states = np.empty_like(v)
    if count < 4 or len(transition_powers) == 1:
        for j in range(count):
            states[j] = x
            x = x @ transition_powers[0] + v[j]
        return states, x
    even = count & ~1
    even_inputs, odd_inputs = v[0:even:2], v[1:even:2]
    pair_inputs = even_inputs @ transition_powers[0]
    pair_inputs += odd_inputs
    starts, x = _block_start_states(pair_inputs, x, transition_powers[1:])
    states[0:even:2] = starts
    odd_states = starts @ transition_powers[0]
    odd_states += even_inputs
    states[1:even:2] = odd_states
    if count > even:
        states[even] = x
        x = x @ transition_powers[0] + v[even]
    return states, x
