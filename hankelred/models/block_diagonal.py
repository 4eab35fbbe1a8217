"""Block-diagonal form by a well-conditioned change of states."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array, schur_poles
from ..errors import ModelError
from .frequency_response import MAX_RESPONSE_CHANGE, difference_of_responses
from .linear_model import LinearModel, as_model
from .projection import project_exactly
from .scaling import equalizing_scales, scale_system

#: Largest entry of a transformation that separates two groups of poles. If it would be larger, they share
#: one block: about as many digits would be lost as this number has.
LARGEST_COUPLING = 1e4


def block_diagonalize(model: LinearModel) -> tuple[LinearModel, Array]:
    """Return a state space in block-diagonal form and the matrix from its states to those of the model.

    The block with the slowest pole comes first.
    """
    if model.log_poles is not None:
        real, unitary = model.in_real_states()
        blocks, T = block_diagonalize(as_model(real.as_tuple(), model.dt))
        return blocks, T if unitary is None else unitary.conj().T @ T
    if model.n_states == 0:
        return model.as_state_space(), np.zeros((0, 0))
    system, discrete = scale_system(model.A, model.B, model.C), model.is_discrete
    right, left, parts = block_diagonal_bases(system.A)
    poles = [np.linalg.eigvals(left[:, b].conj().T @ system.A @ right[:, b]) for b in parts]
    slowest = [float(np.abs(p).max() if discrete else p.real.max()) for p in poles]
    frequencies = [float(np.abs(p.imag).max()) for p in poles]
    sequence = sorted(range(len(parts)), key=lambda k: (-slowest[k], frequencies[k]))
    columns = np.concatenate([np.arange(parts[k].start, parts[k].stop) for k in sequence])
    right, left = right[:, columns], left[:, columns]
    projection = project_exactly(system, left, right)
    B, C = projection.B, projection.C
    A, scale, start = np.zeros_like(projection.A), np.ones(model.n_states), 0
    for k in sequence:
        block = slice(start, start + parts[k].stop - parts[k].start)
        A[block, block] = projection.A[block, block]
        scale[block] = equalizing_scales(*(np.array([np.linalg.norm(M)]) for M in (B[block], C[:, block])))
        start = block.stop
    eye = np.eye(model.n_states)
    response_change = difference_of_responses(
        (system.A, system.B, system.C),
        lambda s: C @ np.linalg.solve(s * eye - A, B),
        np.concatenate(poles),
        discrete=discrete,
    )
    if not response_change <= MAX_RESPONSE_CHANGE:
        raise ModelError(
            f"the block-diagonal form would change the response by {response_change:.1e} of its largest "
            f"value, and at most {MAX_RESPONSE_CHANGE:.0e} is accepted; check the units of the states"
        )
    half = 2.0 ** ((system.input_exponent + system.output_exponent) // 2)
    T = system.unscale_right(right * (2.0 ** ((system.input_exponent - system.output_exponent) // 2) / scale))
    out = model.as_state_space()
    return out.with_matrices(A, B * (half * scale[:, None]), C * (half / scale), model.D), T


def block_diagonal_bases(A: Array) -> tuple[Array, Array, list[slice]]:
    """Return right, left with left^H right = 1 and left^H A right block diagonal, and the blocks.

    A real pole is a block of one state, a conjugate pair of a real matrix one of two, [[a, w], [-w, a]].
    Poles that cannot be separated by a transformation with moderate entries, such as multiple poles
    without enough eigenvectors, share a block, which is quasi-triangular.

    Source: Bavely and Stewart, SIAM J. Numer. Anal. 16 (1979).
    """
    T, Z = sla.schur(A, output="complex" if np.iscomplexobj(A) else "real", check_finite=False)
    n = T.shape[0]
    right, left = Z.copy(), Z.copy()
    trsyl, trexc = sla.get_lapack_funcs(("trsyl", "trexc"), (T,))
    blocks: list[slice] = []
    start = 0
    while start < n:
        stop = start + _size(T, start)
        while stop < n:
            head, tail = slice(start, stop), slice(stop, n)
            # T1 X - X T2 = -T12 removes the coupling of the block with the states after it
            X, scale, info = trsyl(T[head, head], T[tail, tail], -T[head, tail], isgn=-1)
            if info == 0 and np.abs(X).max() <= LARGEST_COUPLING * scale:
                X = X / scale
                T[head, tail] = 0.0
                right[:, tail] += right[:, head] @ X
                left[:, head] -= left[:, tail] @ X.conj().T
                break
            # the nearest of the poles after the block is added to it
            poles = schur_poles(T)
            nearest = stop + int(np.argmin(np.abs(poles[tail] - poles[head].mean())))
            if nearest > start and T[nearest, nearest - 1] != 0:
                nearest -= 1
            T, Q, _ = trexc(T, np.eye(n, dtype=T.dtype), nearest + 1, stop + 1)
            right[:, tail] = right[:, tail] @ Q[tail, tail]
            left[:, tail] = left[:, tail] @ Q[tail, tail]
            stop += _size(T, stop)
        blocks.append(slice(start, stop))
        start = stop
    if not np.iscomplexobj(T):
        for block in blocks:
            if block.stop - block.start == 2 and T[block.start + 1, block.start] != 0:
                _normalize_pair(T[block, block], right, left, block)
    return right, left, blocks


def _size(T: Array, start: int) -> int:
    """Return the size of the diagonal block of a Schur form that starts at this index."""
    return 2 if start + 1 < T.shape[0] and T[start + 1, start] != 0 else 1


def _normalize_pair(T: Array, right: Array, left: Array, block: slice) -> None:
    """Scale in place the second state of a pair so that its block is [[a, w], [-w, a]] with w > 0."""
    factor = math.copysign(math.sqrt(-T[1, 0] / T[0, 1]), T[0, 1])
    right[:, block.stop - 1] *= factor
    left[:, block.stop - 1] /= factor
