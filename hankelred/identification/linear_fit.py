"""What the simulated output is linear in once A and C are known: B, D, initial states, offsets.

The records are scaled (channels of unit size, offsets removed). The model is in discrete time,
``x[k+1] = A x[k] + B u[k]``, ``y[k] = C x[k] + D u[k] + offset``, with one initial state per record. Many
candidates of one order are fitted together: each is so small that calls, not operations, take the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import scipy.linalg as sla
from scipy.linalg.lapack import dpocon, dpotrf, dpotrs, dtrtrs

from .._util.arrays import Array
from ..simulation.batch_recurrence import free_responses, recurrence, simulate_states

Item = TypeVar("Item")

#: Below this reciprocal condition number of M^T M, M itself is factored, which is several times slower.
_GRAM_RCOND = 1e-10
#: Models are fitted together as long as their equations have no more entries than this: 2 MiB.
_STACKED_SIZE = 1 << 18
#: A regressor of which less than this share is independent of those before it counts as dependent on them.
_DEPENDENT = 1e-8


@dataclass(frozen=True)
class FittedModel:
    """A state space, and the initial states and output offset of the records it was fitted to."""

    A: Array
    B: Array
    C: Array
    D: Array
    x0: tuple[Array, ...]
    offset: Array
    #: mean square of the residual over all samples and outputs
    loss: float = np.inf
    #: whether D is estimated; otherwise it is zero
    direct: bool = True

    @property
    def order(self) -> int:
        """Number of states."""
        return int(self.A.shape[0])


@np.errstate(over="ignore", invalid="ignore")
def residuals(model: FittedModel, us: Sequence[Array], ys: Sequence[Array]) -> list[Array]:
    """Return the measured minus the simulated output, (p, T) for each record."""
    return [
        y - (model.C @ simulate_states(model.A, model.B, u, x0) + model.D @ u + model.offset[:, None])
        for u, y, x0 in zip(us, ys, model.x0, strict=True)
    ]


def in_groups(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items that are fitted together, whose equations have so many entries each."""
    together = max(1, _STACKED_SIZE // max(size, 1))
    for first in range(0, len(items), together):
        yield items[first : first + together]


def mean_square(errors: Sequence[Array]) -> float:
    """Return the mean square over all records, inf if it is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = sum(float(np.vdot(e, e).real) for e in errors)
    return total / sum(e.size for e in errors) if np.isfinite(total) else np.inf


def with_initial_states(model: FittedModel, us: Sequence[Array], ys: Sequence[Array]) -> FittedModel:
    """Return the model with the initial states that fit other records best in the least-squares sense."""
    return fit_initial_states(model, us, ys)[0]


def fit_initial_states(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array]
) -> tuple[FittedModel, list[Array]]:
    """Return the model with the initial states that fit other records best, and the residuals (p, T)."""
    return fit_initial_states_of_each([model], us, ys)[0]


@np.errstate(over="ignore", invalid="ignore")
def fit_initial_states_of_each(
    models: Sequence[FittedModel], us: Sequence[Array], ys: Sequence[Array]
) -> list[tuple[FittedModel, list[Array]]]:
    """Do the same for several models of one order, at least one."""
    A, B, C, D, offset = (
        np.stack([getattr(model, name) for model in models]) for name in ("A", "B", "C", "D", "offset")
    )
    S, n, p = len(models), A.shape[1], C.shape[1]
    x0, errors = [], []
    for u, y in zip(us, ys, strict=True):
        x = simulate_states(A, B, u, np.zeros((S, n)))
        error = y - (C @ x + D @ u + offset[..., None])
        free = free_responses(A, C, u.shape[1]).reshape(S, -1, n)
        x0.append(_nested_least_squares(free, error.reshape(S, -1), [n])[0])
        errors.append(error - (free @ x0[-1][..., None]).reshape(S, p, -1))
    out = []
    for i, model in enumerate(models):
        of_model = [error[i] for error in errors]
        states = tuple(x[i] for x in x0)
        out.append((replace(model, x0=states, loss=mean_square(of_model)), of_model))
    return out


@np.errstate(over="ignore", invalid="ignore")
def fit_levels(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array], offsets: bool
) -> tuple[FittedModel, list[Array]]:
    """Return the model with the initial states and, with `offsets`, the output offset that fit best.

    The residuals (p, T) are returned too.
    """
    n, p, E = model.order, model.C.shape[0], len(us)
    base = replace(model, x0=tuple(np.zeros(n) for _ in us), offset=np.zeros(p))
    errors = residuals(base, us, ys)
    blocks = []
    for e, u in enumerate(us):
        M = np.zeros((p, u.shape[1], E * n + (p if offsets else 0)))
        M[:, :, e * n : (e + 1) * n] = free_responses(model.A, model.C, u.shape[1])
        if offsets:
            M[:, :, E * n :] = np.eye(p)[:, None]
        blocks.append(M)
    K = blocks[0].shape[2]
    theta = _nested_least_squares(
        np.concatenate([M.reshape(-1, K) for M in blocks])[None],
        np.concatenate([e.reshape(-1) for e in errors])[None],
        [K],
    )[0][0]
    errors = [error - M @ theta for error, M in zip(errors, blocks, strict=True)]
    offset = theta[E * n :] if offsets else np.zeros(p)
    x0 = tuple(theta[: E * n].reshape(E, n))
    return replace(base, x0=x0, offset=offset, loss=mean_square(errors)), errors


def fit_inputs(
    A: Array, C: Array, us: Sequence[Array], ys: Sequence[Array], offsets: bool, *, direct: bool = True
) -> list[FittedModel]:
    """Solve for B, D, x0 and an offset, in which the simulated output is linear once A and C are known.

    The classical second step of subspace methods (Verhaegen and Verdult, Filtering and System
    Identification, 2007, section 9.2), here on the simulated output of every record. With `offsets` two
    models are returned, without and with an output offset in addition to the mean already removed: a record
    that starts away from equilibrium needs it, while for one that drifts it can make the fit worse.
    Without `direct`, D is zero.
    """
    return fit_inputs_of_each([(A, C)], us, ys, offsets, direct=direct)[0]


def fit_inputs_of_each(
    matrices: Sequence[tuple[Array, Array]],
    us: Sequence[Array],
    ys: Sequence[Array],
    offsets: bool,
    *,
    direct: bool = True,
) -> list[list[FittedModel]]:
    """Do the same for several matrices A and C of one order."""
    if not matrices:
        return []
    p, n = matrices[0][1].shape
    unknowns = (us[0].shape[0] + len(us)) * n + p * us[0].shape[0] + p
    out = []
    for group in in_groups(matrices, sum(y.size for y in ys) * unknowns):
        A, C = (np.stack(x) for x in zip(*group, strict=True))
        out += _fit_inputs_together(A, C, us, ys, offsets, direct)
    return out


@np.errstate(over="ignore", invalid="ignore")
def _fit_inputs_together(
    A: Array, C: Array, us: Sequence[Array], ys: Sequence[Array], offsets: bool, direct: bool
) -> list[list[FittedModel]]:
    (S, p, n), m, E = C.shape, us[0].shape[0], len(us)
    d = m if direct else 0
    inner = n * m + p * d + E * n
    M = np.zeros((S, sum(y.size for y in ys), inner + (p if offsets else 0)))
    row = 0
    for e, u in enumerate(us):
        T = u.shape[1]
        by_output = M[:, row : row + p * T].reshape(S, p, T, -1)  # a view
        # one column for each entry of B: input j acting on state i alone
        by_output[..., : n * m] = _input_responses(A, C, u)
        at = inner - (E - e) * n
        by_output[..., at : at + n] = free_responses(A, C, T)
        for k in range(p):
            by_output[:, k, :, n * m + k * d : n * m + (k + 1) * d] = u[:d].T
            if offsets:
                by_output[:, k, :, inner + k] = 1
        row += p * T
    target = np.concatenate([y.reshape(-1) for y in ys])
    solved = _nested_least_squares(
        M, np.broadcast_to(target, (S, target.size)), [inner, inner + p] if offsets else [inner]
    )
    models: list[list[FittedModel]] = [[] for _ in range(S)]
    for thetas in solved:
        # the powers of a nearly defective A may overflow; such a model has an infinite loss
        errors = target - (M[:, :, : thetas.shape[1]] @ thetas[..., None])[..., 0]
        for i, (theta, error) in enumerate(zip(thetas, errors, strict=True)):
            B, D, x0 = theta[: n * m], theta[n * m : inner - E * n], theta[inner - E * n : inner]
            full_D = np.zeros((p, m))
            full_D[:, :d] = D.reshape(p, d)
            states = tuple(x0.reshape(E, n))
            offset = theta[inner:] if theta.size > inner else np.zeros(p)
            loss = mean_square([error])
            models[i].append(
                FittedModel(A[i], B.reshape(n, m), C[i], full_D, states, offset, loss, direct=direct)
            )
    return models


def _input_responses(A: Array, C: Array, u: Array) -> Array:
    """Return the outputs (S, p, T, n m) that every entry of B would cause alone: input j acting on state i.

    With fewer outputs than states it is computed by the transposed system: the state i of one that is driven
    through row k of C is the output k of one that is driven through state i.
    """
    (S, p, n), (m, T) = C.shape, u.shape
    if p > n:
        forcing = np.zeros((S, n, T, n, m))
        forcing[:, np.arange(n), :, np.arange(n)] = u.T
        states = recurrence(A, forcing.reshape(S, n, T, n * m))
        return np.asarray((C @ states.reshape(S, n, -1)).reshape(S, p, T, n * m))
    forcing = np.einsum("skn,jt->sntkj", C, u).reshape(S, n, T, p * m)
    states = recurrence(np.swapaxes(A, 1, 2), forcing).reshape(S, n, T, p, m)
    return states.transpose(0, 3, 2, 1, 4).reshape(S, p, T, n * m)


def _nested_least_squares(M: Array, targets: Array, counts: Sequence[int]) -> list[Array]:
    """Solve column-scaled least-squares problems; directions that are not determined stay near zero.

    M is a stack (S, N, K), the targets (S, N). The solutions (S, count) are those for the first columns of M
    only, for several numbers of them; they are zero where M is not finite.
    """
    size = np.sqrt(np.einsum("sij,sij->sj", M, M))
    size[size == 0] = 1
    finite = np.isfinite(size).all(axis=1)
    M = M / size[:, None]
    transposed = np.swapaxes(M, 1, 2)
    grams, moments = transposed @ M, (transposed @ targets[..., None])[..., 0]
    out = []
    for k in counts:
        factors = [_cholesky(gram[:k, :k]) if ok else None for gram, ok in zip(grams, finite, strict=True)]
        solutions = np.zeros((len(M), k))
        for i, factor in enumerate(factors):
            if factor is not None:
                solutions[i] = dpotrs(factor, moments[i, :k])[0]
        # one step of iterative refinement recovers the digits lost in the product M^T M
        errors = targets - (M[:, :, :k] @ solutions[..., None])[..., 0]
        corrections = (transposed[:, :k] @ errors[..., None])[..., 0]
        for i, factor in enumerate(factors):
            if factor is not None:
                solutions[i] += dpotrs(factor, corrections[i])[0]
            elif finite[i]:
                solutions[i] = sla.lstsq(
                    M[i, :, :k], targets[i], cond=1e-12, lapack_driver="gelsy", check_finite=False
                )[0]
        out.append(solutions / size[:, :k])
    return out


def _cholesky(gram: Array) -> Array | None:
    """Return the upper Cholesky factor; None if the matrix is singular, or nearly so."""
    factor, info = dpotrf(gram)
    if info == 0 and dpocon(factor, np.abs(gram).sum(axis=0).max(initial=0.0))[0] > _GRAM_RCOND:
        return np.asarray(factor)
    return None


def nested_regression(regressors: Array, targets: Array, rank_tol: float) -> Callable[[int], Array]:
    """Return a function that regresses the targets (samples, L) on the first k regressors, k at least 1.

    One QR factorization serves every k whose regressors are independent; of the others, scipy's solution of
    least norm is returned, up to this tolerance of the rank.
    """
    samples, count = regressors.shape
    Q, R = sla.qr(regressors, mode="economic", check_finite=False)
    rotated = Q.T @ targets
    remainders = np.abs(np.diag(R)) / np.maximum(np.linalg.norm(R, axis=0)[: len(R)], np.finfo(float).tiny)
    dependent = np.flatnonzero(~(remainders > _DEPENDENT))
    limit = dependent[0] if dependent.size else min(samples, count)

    def solve(k: int) -> Array:
        if k > limit:
            return np.asarray(sla.lstsq(regressors[:, :k], targets, cond=rank_tol, lapack_driver="gelsy")[0])
        return np.asarray(dtrtrs(R[:k, :k], rotated[:k])[0])

    return solve
