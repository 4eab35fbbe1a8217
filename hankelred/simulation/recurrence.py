"""The blocked linear recurrence ``x[k+1] = A x[k] + B u[k]``, ``y[k] = C x[k] + D u[k]``.

Everything here works on plain arrays; the models, checks and shapes of the caller are in
:mod:`hankelred.simulation.simulate`.

Two levels of blocks. A block of ``L`` samples is one row of a matrix product: the outputs of all
blocks are ``[x_0, u_0 .. u_(L-1)] @ G``, with ``G`` holding ``C A^k`` and the Markov parameters. The
states at the block starts obey the same recurrence with ``A^L``, and are found by a pairwise sweep up
and down, again matrix products over all pairs at once. Both levels run over chunks that fit the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .._util.arrays import Array
from ..models.scaling import balance_matrix

#: Working set of one chunk in bytes, about one second-level cache.
_CHUNK_BYTES = 1 << 20
#: Neither a block nor a chunk is longer than 2 ** this, in samples and in blocks.
_MAX_LEVEL = 11
# The costs the plan is made from, in units of one floating-point operation inside a large matrix
# product (1 / 38e9 s on the machine they were measured on; only their ratios matter).
#: One step of the plain loop, or of the sweep over blocks, whatever its size.
_STEP = 1.0e5
#: One operation of a matrix-vector product.
_VECTOR_OPERATION = 8.0
#: Everything that comes before the first block is through.
_BLOCK_START = 8.0e6
#: A power may be this much larger than the growth of the model explains (times sqrt(n): the norm
#: is Frobenius'), and no larger than this at all.
_MAX_GROWTH = 100.0
_MAX_SIZE = 1e100
_GELFAND_SQUARINGS = 20


def safe_squares(A: Array, count: int) -> list[Array]:
    """Return ``A, A^2, A^4, ...``, at most ``count + 1`` of them, while their use is harmless.

    Plain repeated squaring doubles the relative error each time: after ``k`` squarings it is
    ``2**k eps``, which a model with a long memory (a pole on the unit circle) shows and the plain loop
    does not. So each power carries its rounding error along as a second matrix, and the result has the
    accuracy of one rounding.

    Using a power P still rounds by ``eps ||P||``. If it is large because the model is unstable, the loop
    would have grown an error as large. If it is large only for a while (strongly non-normal A), the
    loop need not, and the list ends there; it also ends long before overflow.
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
            # A scaling of the states changes no rounding, so only what it cannot remove counts.
            size = float(np.linalg.norm(balance_matrix(square)[0]))
        if size > limit:
            rate = _growth_rate(A) if rate is None else rate
            if math.log(size / limit) > rate * 2.0**k:
                break
        squares.append(square)
    return squares


def _growth_rate(A: Array) -> float:
    """Return max(0, log of the spectral radius), by Gelfand's formula with normalised squaring."""
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
    """Square ``P + low`` to about 23 bits beyond double precision; return the result the same way.

    The leading bits ``H`` of P are cut so that ``H @ H`` is free of rounding (Ozaki, Ogita, Oishi, Rump,
    Numer. Algorithms 59, 2012, 95-118); what remains is small, and so is the rounding of its products.
    """
    top = float(np.abs(P).max(initial=0.0))
    if top == 0.0 or not np.isfinite(top):
        return P @ P, low
    # A complex product sums twice as many terms.
    bits = (53 - int(2 * P.shape[0]).bit_length()) // 2
    cut = 1.5 * 2.0 ** (np.frexp(top)[1] + 52 - bits)
    head = _leading(P.real, cut) + 1j * _leading(P.imag, cut) if np.iscomplexobj(P) else _leading(P, cut)
    tail = (P - head) + low
    exact = head @ head
    rest = head @ tail + tail @ P
    square = exact + rest
    # Knuth's two-sum: the rounding of the last addition, exactly.
    kept = square - exact
    return square, (exact - (square - kept)) + (rest - kept)


def _leading(P: Array, cut: float) -> Array:
    # Adding a large number drops the bits below its last one.
    out: Array = (P + cut) - cut
    return out


@dataclass(frozen=True)
class Plan:
    """How a simulation is cut: blocks of ``2**level`` samples, ``2**depth`` of them in one sweep."""

    level: int
    depth: int
    chunk: int
    blocks_pay: bool


def plan(n: int, m: int, p: int, samples: int) -> Plan:
    """Choose the block length from the sizes alone, by counting operations.

    Per sample a block of ``L`` costs ``2 p m L`` for the input inside the block, ``2 (p + m) n`` to get
    in and out of the state and ``4 n^2 / L`` for the sweep over the block states (at half the rate: its
    products are narrow). One squaring costs ``6 n^3``. The level weighs the first against the third,
    the depth squarings against the plain steps left over at the top of the sweep.
    """
    squaring = 6.0 * n**3
    longest = min(max(samples, 1).bit_length() - 1, _MAX_LEVEL)

    def block_cost(level: int) -> float:
        L = 1 << level
        # Below 16 states the products run no faster.
        sweep = 8.0 * max(n, 16) ** 2 + 6000.0
        return squaring * level + samples * (2.0 * p * m * L + 2.0 * (p + m) * n + sweep / L)

    level = min(range(longest + 1), key=block_cost)
    chunk = max(64, _CHUNK_BYTES // (8 * (n + ((m + p) << level))))
    chunk = 1 << (chunk.bit_length() - 1)
    blocks = samples >> level
    step = _STEP + 2.0 * _VECTOR_OPERATION * n**2

    def sweep_cost(depth: int) -> float:
        return squaring * depth + step * blocks / (1 << depth)

    depth = min(range(min(chunk, max(blocks, 1)).bit_length()), key=sweep_cost)
    loop = samples * (_STEP + 2.0 * _VECTOR_OPERATION * (n + p) * (n + m))
    return Plan(level, depth, chunk, _BLOCK_START + block_cost(level) + sweep_cost(depth) < loop)


def step_loop(A: Array, B: Array, C: Array, D: Array, u: Array, x: Array) -> tuple[Array, Array]:
    """Run the recurrence one sample at a time; return ``y`` (p, T) and the state after the last.

    Once the state has overflowed the rest is NaN.
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


def free_response(A: Array, B: Array, C: Array, count: int) -> Array:
    """Return ``C A^k B`` for ``k < count``, (count, p, m), as products of few ``C A^i`` and ``A^j B``."""
    n, m = B.shape
    p = C.shape[0]
    if count == 0 or n == 0:
        return np.zeros((count, p, m), dtype=A.dtype)
    bits = (count - 1).bit_length()
    step = _STEP + 2.0 * _VECTOR_OPERATION * n**2 * m
    depth = min(range(bits + 1), key=lambda d: 6.0 * n**3 * d + step * count / (1 << d))
    squares = safe_squares(A, depth)
    # look[i] = C A^i for i < K, reach[j] = A^(K j) B, and C A^(i + K j) B = look[i] @ reach[j].
    near = min(len(squares) - 1, bits // 2)
    look = C[None]
    for P in squares[:near]:
        look = np.concatenate([look, look @ P])
    far = -(-count // len(look))
    reach = B[None]
    for P in squares[near:]:
        if len(reach) < far:
            reach = np.concatenate([reach, P @ reach])
    if len(reach) < far:
        groups = [reach]
        newest = reach[len(reach) // 2 :]  # what the largest power at hand carries on by itself
        for _ in range(-(-(far - len(reach)) // len(newest))):
            newest = squares[-1] @ newest
            groups.append(newest)
        reach = np.concatenate(groups)
    reach = reach[:far]
    product = look.reshape(-1, n) @ reach.transpose(1, 0, 2).reshape(n, far * m)
    terms = product.reshape(len(look), p, far, m).transpose(2, 0, 1, 3)
    return terms.reshape(far * len(look), p, m)[:count]


def block_run(A: Array, B: Array, C: Array, D: Array, u: Array, x: Array, plan: Plan) -> tuple[Array, Array]:
    """Run the recurrence in blocks; same result as :func:`step_loop` to rounding."""
    p, n = C.shape
    m, samples = u.shape
    y = np.empty((p, samples), dtype=x.dtype)
    squares = safe_squares(A, plan.level + plan.depth)
    if len(squares) == 1:
        return step_loop(A, B, C, D, u, x)
    level = min(plan.level, len(squares) - 1)
    L, chunk = 1 << level, plan.chunk
    ways = _Block(squares[: level + 1], B, C, D)
    jumps = [np.ascontiguousarray(P.T) for P in squares[level:]]

    whole = samples - samples % L
    rows = np.empty((min(chunk, whole // L), n + m * L), dtype=x.dtype)
    for start in range(0, whole, chunk * L):
        stop = min(start + chunk * L, whole)
        count = (stop - start) // L
        block = rows[:count]
        block[:, n:].reshape(count, m, L)[...] = u[:, start:stop].reshape(m, count, L).transpose(1, 0, 2)
        block[:, :n], x = _sweep(block[:, n:] @ ways.into_state, x, jumps)
        if p == 1:
            np.matmul(block, ways.out, out=y[0, start:stop].reshape(count, L))
        else:
            outputs = (block @ ways.out).reshape(count, p, L)
            y[:, start:stop].reshape(p, count, L)[...] = outputs.transpose(1, 0, 2)

    rest = samples - whole
    if rest:
        last = np.zeros((m, L), dtype=x.dtype)
        last[:, :rest] = u[:, whole:]
        y[:, whole:] = (np.concatenate([x, last.ravel()]) @ ways.out).reshape(p, L)[:, :rest]
        x = ways.partial_step(x, last[:, :rest])
    return y, x


class _Block:
    """The matrices of one block of ``L`` samples, channels first, samples within a channel."""

    def __init__(self, squares: list[Array], B: Array, C: Array, D: Array) -> None:
        n, m = B.shape
        p = C.shape[0]
        L = 1 << (len(squares) - 1)
        # reach[k] = A^k B and look[k] = C A^k, by doubling.
        reach, look = B[None], C[None]
        for P in squares[:-1]:
            reach = np.concatenate([reach, P @ reach])
            look = np.concatenate([look, look @ P])
        dtype = np.result_type(squares[0], B, C, D)
        markov = np.empty((L, p, m), dtype=dtype)
        markov[0] = D
        markov[1:] = (look[:-1].reshape(-1, n) @ B).reshape(L - 1, p, m)
        # Row k of a triangular Toeplitz matrix is a window of the padded sequence, k back.
        padded = np.concatenate([np.zeros((L - 1, p, m), dtype=dtype), markov])
        windows = np.lib.stride_tricks.sliding_window_view(padded, L, axis=0)[::-1]
        self.out = np.empty((n + m * L, p, L), dtype=dtype)
        self.out[:n] = look.transpose(2, 1, 0)
        self.out[n:].reshape(m, L, p, L)[...] = windows.transpose(2, 0, 1, 3)
        self.out = self.out.reshape(n + m * L, p * L)
        self.into_state = np.ascontiguousarray(reach[::-1].transpose(2, 0, 1)).reshape(m * L, n)
        self._squares = squares
        self._length = L

    def partial_step(self, x: Array, u: Array) -> Array:
        """Carry the state over fewer than ``L`` samples, by the binary digits of their number."""
        m, count = u.shape
        n = len(x)
        inputs = self.into_state.reshape(m, self._length, n)
        done = 0
        for bit in reversed(range(len(self._squares) - 1)):
            length = 1 << bit
            if count & length:
                part = u[:, done : done + length]
                driven = part.ravel() @ inputs[:, self._length - length :].reshape(m * length, n)
                x = self._squares[bit] @ x + driven
                done += length
        return x


def _sweep(v: Array, x: Array, jumps: list[Array]) -> tuple[Array, Array]:
    """States at the block starts of ``x_(j+1) = P x_j + v_j``, and the one after the last.

    ``v`` is (blocks, n), ``jumps`` the transposes of ``P, P^2, P^4, ...``. Pairs of blocks become one
    block, the half-length recurrence is solved, and its states give those in between.
    """
    count = v.shape[0]
    states = np.empty_like(v)
    if count < 4 or len(jumps) == 1:
        for j in range(count):
            states[j] = x
            x = x @ jumps[0] + v[j]
        return states, x
    even = count & ~1
    first, second = v[0:even:2], v[1:even:2]
    merged = first @ jumps[0]
    merged += second
    starts, x = _sweep(merged, x, jumps[1:])
    states[0:even:2] = starts
    middle = starts @ jumps[0]
    middle += first
    states[1:even:2] = middle
    if count > even:
        states[even] = x
        x = x @ jumps[0] + v[even]
    return states, x
