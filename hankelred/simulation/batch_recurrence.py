"""The recurrence ``X[k+1] = A X[k] + F[k]`` for many columns at once, as fits and experiments need it.

Leading axes (...) are those of a stack of systems, which are stepped together.

:mod:`.recurrence` runs one long record, with powers of A that have the accuracy of the plain loop. Here
records are short or many, and the powers of A are computed by plain squaring: that costs less than half, and
its error, the number of samples times that of one product, is far below that of a fit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._util.arrays import Array
from .recurrence import row_powers

#: Largest size of the forced states that are stepped together: half a MiB, to fit into the cache.
_CACHED_SIZE = 1 << 16
#: Up to this many entries of the states per sample a recurrence is computed by doubling.
_FEW_COLUMNS = 16


def squares(A: Array, count: int) -> list[Array]:
    """Return ``A, A^2, A^4, ...``, as many as all powers below `count` are products of."""
    out = [A] if count > 1 else []
    while 1 << len(out) < count:
        out.append(out[-1] @ out[-1])
    return out


def free_responses(A: Array, C: Array, T: int) -> Array:
    """Return the outputs (..., p, T, n) of the unforced system from each unit initial state."""
    return np.swapaxes(row_powers(C, squares(A, T), T), -3, -2)


def simulate_states(A: Array, B: Array, u: Array, x0: Array) -> Array:
    """Return the states (..., n, T) from x0."""
    return recurrence(A, (B @ u)[..., None], x0[..., None])[..., 0]


def recurrence(A: Array, forcing: Array, start: Array | None = None) -> Array:
    """Compute ``X[k+1] = A X[k] + F[k]`` for many columns at once, and for many A.

    Parameters
    ----------
    A : ndarray (..., n, n)
    forcing : ndarray (..., n, T, P)
    start : ndarray (..., n, P), optional

    Returns
    -------
    ndarray (..., n, T, P)
        ``X[0]`` is `start`, or zero.
    """
    *stack, n, T, P = forcing.shape
    dtype = np.result_type(A, forcing) if start is None else np.result_type(A, forcing, start)
    if n * P <= _FEW_COLUMNS:
        return _by_doubling(A, forcing, start, dtype)
    L, blocks = _block_sizes(T)
    padded = np.zeros((*stack, n, blocks * L, P), dtype)
    padded[..., :T, :] = forcing
    by_step = np.moveaxis(padded.reshape(*stack, n, blocks, L, P), -2, 0)
    of_step = np.ascontiguousarray(by_step).reshape(L, *stack, n, blocks * P)
    identity = np.broadcast_to(np.eye(n, dtype=dtype), A.shape)
    powers = row_powers(identity, squares(A, L), L)
    states = _in_blocks(A, None, powers, of_step.__getitem__, (*stack, n, blocks, P), dtype, start)
    return states.reshape(*stack, n, blocks * L, P)[..., :T, :]


def forced_responses(A: Array, C: Array, directions: Array, signals: Array) -> Array:
    """Return the outputs (p, T, P) of states forced by ``directions[j] @ signals``.

    Directions are (P, n, k), signals (k, T). Neither forcing nor states of all samples are stored.
    """
    P, n, k = directions.shape
    p, T = C.shape[0], signals.shape[1]
    L, blocks = _block_sizes(T)
    padded = np.zeros((k, blocks * L))
    padded[:, :T] = signals
    of_samples = np.ascontiguousarray(padded.reshape(k, blocks, L).transpose(2, 1, 0))
    powers = row_powers(C, squares(A, L), L)
    out = np.empty((p, blocks, L, P))
    width = max(1, _CACHED_SIZE // (n * blocks))
    for j in range(0, P, width):
        some = np.ascontiguousarray(directions[j : j + width].transpose(1, 2, 0))

        def of_step(s: int, some: Array = some) -> Array:
            return np.matmul(of_samples[s], some).reshape(n, -1)

        shape = n, blocks, some.shape[2]
        out[..., j : j + width] = _in_blocks(A, C, powers, of_step, shape, out.dtype)
    return out.reshape(p, blocks * L, P)[:, :T]


def _block_sizes(T: int) -> tuple[int, int]:
    """Return the samples of a block, about sqrt(T), and the number of blocks."""
    L = max(int(np.sqrt(T)), 1)
    return L, -(-T // L)


def _in_blocks(
    A: Array,
    C: Array | None,
    powers: Array,
    forcing: Callable[[int], Array],
    shape: tuple[int, ...],
    dtype: np.dtype,
    start: Array | None = None,
) -> Array:
    """Compute the outputs (..., p, blocks, L, P) of all blocks side by side, or with C None their states.

    The blocks are computed from a zero state, with one matrix product per step; the response to the state at
    the start of each block is added afterwards. That takes two passes of sqrt(T) steps instead of T steps.

    ``shape`` is (..., n, blocks, P), ``forcing(s)`` the forcing (..., n, blocks P) at sample s of all blocks,
    and ``powers`` are C A^s, (..., L, p, n).
    """
    *stack, n, blocks, P = shape
    L, p, _ = powers.shape[-3:]
    local = np.empty((L, *stack, p, blocks * P), dtype)
    Z = np.zeros((*stack, n, blocks * P), dtype)
    for s in range(L):
        local[s] = Z if C is None else C @ Z
        Z = A @ Z
        Z += forcing(s)
    ends, carry = Z.reshape(shape), np.empty(shape, dtype)
    x = np.zeros((*stack, n, P), dtype) if start is None else start
    over_block = np.linalg.matrix_power(A, L)
    for b in range(blocks):
        carry[..., b, :] = x
        x = over_block @ x + ends[..., b, :]
    carried = powers.reshape(*stack, L * p, n) @ carry.reshape(*stack, n, -1)
    local += np.moveaxis(carried.reshape(*stack, L, p, -1), -3, 0)
    return np.moveaxis(local.reshape(L, *stack, p, blocks, P), 0, -2)


def _by_doubling(A: Array, forcing: Array, start: Array | None, dtype: np.dtype) -> Array:
    """Compute the same by doubling: after pass i each state contains the forcing of the last 2^i samples.

    It takes log2 T passes instead of 2 sqrt(T) steps, and log2 T times the operations: for few columns the
    number of calls decides.
    """
    *stack, n, T, P = forcing.shape
    states = np.zeros((*stack, n, T * P), dtype)
    if T == 0:
        return states.reshape(forcing.shape)
    states.reshape(forcing.shape)[..., 1:, :] = forcing[..., :-1, :]
    if start is not None:
        states[..., :P] = start
    power, shift = A, 1
    while shift < T:
        states[..., shift * P :] += power @ states[..., : (T - shift) * P]
        shift *= 2
        if shift < T:
            power = power @ power
            if not power.any():
                break
    return states.reshape(forcing.shape)
