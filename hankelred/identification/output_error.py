"""Fit a state space to the *simulated* output (output-error method): linear least squares, then Gauss-Newton.

The records are scaled (channels of unit size, offsets removed). The model is in discrete time,
``x[k+1] = A x[k] + B u[k]``, ``y[k] = C x[k] + D u[k] + offset``, with one initial state per record.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg as sla
from scipy.linalg.lapack import dormqr

from .._util.arrays import EPS, Array
from ..reduction.balancing import BalancedFactors
from ..simulation.batch_recurrence import forced_responses, free_responses, recurrence, simulate_states

#: The largest spectral radius of a model that has to be stable: so near to 1 that an integrator still acts
#: as one over the length of a record.
STABLE_RADIUS = 1.0 - 1e-6

#: Mean square of the residual, in units of the output's own size, that is rounding: no refinement below.
_ROUNDING = 1e-28

#: Below this reciprocal condition number of M^T M, M itself is factored, which is several times slower.
_GRAM_RCOND = 1e-10


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


def input_responses(A: Array, C: Array, u: Array) -> Array:
    """Return the outputs (p, T, n m) that every entry of B would cause alone: input j acting on state i.

    With fewer outputs than states it is computed by the transposed system: the state i of one that is driven
    through row k of C is the output k of one that is driven through state i.
    """
    (p, n), (m, T) = C.shape, u.shape
    if p > n:
        return forced_responses(A, C, np.eye(n * m).reshape(n * m, n, m), u)
    forcing = np.einsum("kn,jt->ntkj", C, u).reshape(n, T, p * m)
    states = recurrence(A.T, forcing).reshape(n, T, p, m)
    return states.transpose(2, 1, 0, 3).reshape(p, T, n * m)


@np.errstate(over="ignore", invalid="ignore")
def residuals(model: FittedModel, us: Sequence[Array], ys: Sequence[Array]) -> list[Array]:
    """Return the measured minus the simulated output, (p, T) for each record."""
    return [
        y - (model.C @ simulate_states(model.A, model.B, u, x0) + model.D @ u + model.offset[:, None])
        for u, y, x0 in zip(us, ys, model.x0, strict=True)
    ]


def with_initial_states(model: FittedModel, us: Sequence[Array], ys: Sequence[Array]) -> FittedModel:
    """Return the model with the initial states that fit other records best in the least-squares sense."""
    return fit_initial_states(model, us, ys)[0]


@np.errstate(over="ignore", invalid="ignore")
def fit_initial_states(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array]
) -> tuple[FittedModel, list[Array]]:
    """Return the model with the initial states that fit other records best, and the residuals (p, T)."""
    from_zero = replace(model, x0=tuple(np.zeros(model.order) for _ in us))
    x0, errors = [], []
    for u, error in zip(us, residuals(from_zero, us, ys), strict=True):
        free = free_responses(model.A, model.C, u.shape[1])
        x0.append(_least_squares(free.reshape(-1, model.order), error.reshape(-1)))
        errors.append(error - free @ x0[-1])
    return replace(model, x0=tuple(x0), loss=_mean_square(errors)), errors


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
    theta = _least_squares(
        np.concatenate([M.reshape(-1, K) for M in blocks]), np.concatenate([e.reshape(-1) for e in errors])
    )
    errors = [error - M @ theta for error, M in zip(errors, blocks, strict=True)]
    offset = theta[E * n :] if offsets else np.zeros(p)
    x0 = tuple(theta[: E * n].reshape(E, n))
    return replace(base, x0=x0, offset=offset, loss=_mean_square(errors)), errors


@np.errstate(over="ignore", invalid="ignore")
def fit_inputs(
    A: Array,
    C: Array,
    us: Sequence[Array],
    ys: Sequence[Array],
    offsets: bool,
    *,
    direct: bool = True,
) -> list[FittedModel]:
    """Solve for B, D, x0 and an offset, in which the simulated output is linear once A and C are known.

    The classical second step of subspace methods (Verhaegen and Verdult, Filtering and System
    Identification, 2007, section 9.2), here on the simulated output of every record. With `offsets` two
    models are returned, without and with an output offset in addition to the mean already removed: a record
    that starts away from equilibrium needs it, while for one that drifts it can make the fit worse.
    Without `direct`, D is zero.
    """
    n, p, m = A.shape[0], C.shape[0], us[0].shape[0]
    d = m if direct else 0
    rows = []
    for e, u in enumerate(us):
        T = u.shape[1]
        # one column for each entry of B: input j acting on state i alone
        by_B = input_responses(A, C, u)
        by_D = np.einsum("ik,jt->itkj", np.eye(p), u[:d]).reshape(p, T, p * d)
        by_x0 = np.zeros((p, T, len(us) * n))
        by_x0[:, :, e * n : (e + 1) * n] = free_responses(A, C, T)
        columns = [by_B, by_D, by_x0]
        if offsets:
            columns.append(np.broadcast_to(np.eye(p)[:, None], (p, T, p)))
        rows.append(np.concatenate(columns, axis=2).reshape(p * T, -1))
    M, target = np.concatenate(rows), np.concatenate([y.reshape(-1) for y in ys])
    inner = n * m + p * d + len(us) * n
    models = []
    # the powers of a nearly defective A may overflow; such a model has an infinite loss
    for theta in _nested_least_squares(M, target, [inner, inner + p] if offsets else [inner]):
        B, D, x0, offset = np.split(theta, np.cumsum([n * m, p * d, len(us) * n]))
        offset = offset if offset.size else np.zeros(p)
        error = target - M[:, : theta.size] @ theta
        loss = float(error @ error) / target.size
        states = tuple(x0.reshape(len(us), n))
        D = np.pad(D.reshape(p, d), ((0, 0), (0, m - d)))
        model = FittedModel(A, B.reshape(n, m), C, D, states, offset, direct=direct)
        models.append(replace(model, loss=loss if np.isfinite(loss) else np.inf))
    return models


def refine(
    model: FittedModel,
    us: Sequence[Array],
    ys: Sequence[Array],
    *,
    stable: bool,
    max_steps: int,
    rtol: float,
) -> FittedModel:
    """Lower the mean square of the simulated output's residual (prediction-error method, output-error form).

    Levenberg-Marquardt in data-driven local coordinates: of all directions in (A, B, C) only those are
    searched that are orthogonal to changes of the state's basis, which leave the output unchanged
    (McKelvey, Helmersson and Ribarits, Automatica 40, 2004).
    """
    model = balance_states(model)
    offsets = bool(np.any(model.offset))  # refined only where the initial model has one
    damping = 1e-3
    for _ in range(max_steps):
        if model.loss < _ROUNDING:
            break
        with np.errstate(over="ignore", invalid="ignore"):
            gram, gradient, update = _normal_equations(model, us, ys, offsets)
        if not (np.all(np.isfinite(gram)) and np.all(np.isfinite(gradient))):
            break  # an unstable model, whose output grows beyond all numbers in a long record
        size = np.sqrt(np.maximum(np.diag(gram), np.diag(gram).max() * 1e-14))
        scaled = gram / np.outer(size, size)
        decreased = False
        for _ in range(8):
            try:
                factor = sla.cho_factor(scaled + damping * np.eye(size.size))
            except sla.LinAlgError:
                damping *= 10
                continue
            trial = update(sla.cho_solve(factor, gradient / size) / size)
            if stable:
                trial = stabilized(trial)
            trial = _with_loss(trial, us, ys)
            if trial.loss < model.loss:
                decreased = True
                break
            damping *= 6
        if not decreased:
            break
        gain = 1 - trial.loss / model.loss
        model = trial
        damping = max(damping / 8, 1e-13)
        if gain < rtol:
            break
    return model


def _normal_equations(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array], offsets: bool
) -> tuple[Array, Array, Callable[[Array], FittedModel]]:
    n, m, p, direct = model.order, model.B.shape[1], model.C.shape[0], model.B.shape[1] if model.direct else 0
    directions = local_coordinates(model)
    P = directions.shape[1]
    K = P + p * direct + len(us) * n + (p if offsets else 0)
    gram, gradient = np.zeros((K, K)), np.zeros(K)
    for J, error in output_derivatives(model, us, ys, offsets, directions):
        flat = J.reshape(-1, K)
        gram += flat.T @ flat
        gradient += flat.T @ error.reshape(-1)

    def update(step: Array) -> FittedModel:
        a, b, c = np.split(directions @ step[:P], np.cumsum([n * n, n * m]))
        d, x, o = np.split(step[P:], np.cumsum([p * direct, len(us) * n]))
        return replace(
            model,
            A=model.A + a.reshape(n, n),
            B=model.B + b.reshape(n, m),
            C=model.C + c.reshape(p, n),
            D=model.D + np.pad(d.reshape(p, direct), ((0, 0), (0, m - direct))),
            x0=tuple(np.asarray(model.x0) + x.reshape(len(us), n)),
            offset=model.offset + o if offsets else model.offset,
        )

    return gram, gradient, update


def output_derivatives(
    model: FittedModel, us: Sequence[Array], ys: Sequence[Array], offsets: bool, directions: Array
) -> Iterator[tuple[Array, Array]]:
    """Yield for every record the derivative of the output (p, T, K), and the residual (p, T).

    The parameters are the changes in these directions of (A, B, C), D, the initial states, and the offset.
    """
    A, B, C = model.A, model.B, model.C
    n, m, p = A.shape[0], B.shape[1], C.shape[0]
    P, direct = directions.shape[1], m if model.direct else 0
    dA, dB, dC = np.split(directions.T, np.cumsum([n * n, n * m]), axis=1)
    dAB = np.concatenate([dA.reshape(P, n, n), dB.reshape(P, n, m)], axis=2)
    by_C = np.ascontiguousarray(dC.reshape(P, p, n).transpose(1, 2, 0))
    K = P + p * direct + len(us) * n + (p if offsets else 0)
    for e, (u, y, x0) in enumerate(zip(us, ys, model.x0, strict=True)):
        T = u.shape[1]
        x = simulate_states(A, B, u, x0)
        error = y - (C @ x + model.D @ u + model.offset[:, None])
        J = np.zeros((p, T, K))
        J[:, :, :P] = forced_responses(A, C, dAB, np.concatenate([x, u]))
        J[:, :, :P] += np.matmul(x.T, by_C)
        by_D = np.einsum("ik,jt->itkj", np.eye(p), u[:direct]).reshape(p, T, p * direct)
        J[:, :, P : P + p * direct] = by_D
        at = P + p * direct + e * n
        J[:, :, at : at + n] = free_responses(A, C, T)
        if offsets:
            J[:, :, K - p :] = np.eye(p)[:, None]
        yield J, error


def local_coordinates(model: FittedModel) -> Array:
    """Return an orthonormal basis (n^2 + nm + pn, n(m+p)) orthogonal to the orbit of similar systems."""
    A, B, C = model.A, model.B, model.C
    eye = np.eye(A.shape[0])
    # d/dT of (T A T^-1, T B, C T^-1) at T = I, acting on T flattened by rows
    tangents = np.concatenate([np.kron(eye, A.T) - np.kron(A, eye), np.kron(eye, B.T), -np.kron(C, eye)])
    size, rank = tangents.shape
    if size == rank:
        return np.zeros((size, 0))
    (reflectors, tau), _ = sla.qr(tangents, mode="raw", check_finite=False)
    complement = np.eye(size, size - rank, -rank)
    return np.asarray(dormqr("L", "N", reflectors, tau, complement, lwork=64 * size)[0])


def balance_states(model: FittedModel) -> FittedModel:
    """Balance the states approximately, so that one damping parameter suits all directions.

    Every state is kept, reachable or not, for which a ridge is added to the Gramians. For them the solvers of
    :mod:`hankelred.gramians` would split off unstable poles and take longer.
    """
    n = model.order
    # A slightly contracted copy always has Gramians; only the scaling is needed here.
    radius = spectral_radius(model.A)
    A = model.A * min(1.0, 0.9999 / radius) if radius else model.A
    try:
        with warnings.catch_warnings():
            # states whose equations are too ill-conditioned, as scipy warns, stay as they are
            warnings.simplefilter("error", RuntimeWarning)
            # scipy's default below order 10 solves n^2 equations, which are worse conditioned
            P = sla.solve_discrete_lyapunov(A, model.B @ model.B.T, method="bilinear")
            Q = sla.solve_discrete_lyapunov(A.T, model.C.T @ model.C, method="bilinear")
        ridge = np.eye(n) * EPS
        L = np.linalg.cholesky(P + ridge * np.trace(P))
        M = np.linalg.cholesky(Q + ridge * np.trace(Q))
    except (np.linalg.LinAlgError, ValueError, RuntimeWarning):
        return model
    balanced = BalancedFactors.of(L, M)
    if n and balanced.values[-1] <= 0:
        return model
    left, T = balanced.bases(n)
    return replace(
        model,
        A=left.T @ model.A @ T,
        B=left.T @ model.B,
        C=model.C @ T,
        x0=tuple(left.T @ x for x in model.x0),
    )


def truncate_states(model: FittedModel, order: int) -> tuple[Array, Array]:
    """Return (A, C) of the leading states of the balanced model."""
    model = balance_states(model)
    return model.A[:order, :order], model.C[:, :order]


def truncated_starts(
    larger: FittedModel,
    order: int,
    us: Sequence[Array],
    ys: Sequence[Array],
    offsets: bool,
    *,
    stable: bool,
) -> list[FittedModel]:
    """Return the models of the leading states of a balanced model, fitted to records as by `fit_inputs`."""
    A, C = truncate_states(larger, order)
    return fit_inputs(stable_matrix(A) if stable else A, C, us, ys, offsets)


def on_stability_limit(A: Array) -> bool:
    """Whether a pole lies where `stable_matrix` moves unstable poles."""
    return spectral_radius(A) > 2 * STABLE_RADIUS - 1


def spectral_radius(A: Array) -> float:
    """Return the largest modulus of an eigenvalue."""
    return float(np.abs(np.linalg.eigvals(A)).max(initial=0.0))


def stabilized(model: FittedModel, radius: float = STABLE_RADIUS) -> FittedModel:
    """Return the model with the poles beyond a radius moved onto it."""
    return replace(model, A=stable_matrix(model.A, radius))


def stable_matrix(A: Array, radius: float = STABLE_RADIUS) -> Array:
    """Return A with eigenvalues beyond a radius moved onto it, at the same angle."""
    if spectral_radius(A) <= radius:
        return A
    w, v = np.linalg.eig(A)
    if np.linalg.cond(v) < 1e8:
        outside = np.abs(w) > radius
        w[outside] *= radius / np.abs(w[outside])
        out = (v * w) @ np.linalg.inv(v)
    else:
        # a (nearly) defective A, for example a double integrator, has no basis of eigenvectors
        out = A * (radius / spectral_radius(A))
    return out if np.iscomplexobj(A) else out.real


def _with_loss(model: FittedModel, us: Sequence[Array], ys: Sequence[Array]) -> FittedModel:
    with np.errstate(over="ignore", invalid="ignore"):
        loss = _mean_square(residuals(model, us, ys))
    return replace(model, loss=loss if np.isfinite(loss) else np.inf)


def _mean_square(errors: Sequence[Array]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        total = sum(float(np.vdot(e, e).real) for e in errors)
    return total / sum(e.size for e in errors)


def _least_squares(M: Array, rhs: Array) -> Array:
    """Solve a column-scaled least-squares problem; directions that are not determined stay near zero."""
    return _nested_least_squares(M, rhs, [M.shape[1]])[0]


def _nested_least_squares(M: Array, rhs: Array, counts: Sequence[int]) -> list[Array]:
    """Solve it for the first columns of M only, for several numbers of them."""
    size = np.sqrt(np.einsum("ij,ij->j", M, M))
    size[size == 0] = 1
    if not np.all(np.isfinite(size)):
        return [np.zeros(count) for count in counts]
    M = M / size
    gram, moments = M.T @ M, M.T @ rhs
    return [_from_gram(M[:, :k], rhs, gram[:k, :k], moments[:k]) / size[:k] for k in counts]


def _from_gram(M: Array, rhs: Array, gram: Array, moments: Array) -> Array:
    try:
        factor = sla.cho_factor(gram, check_finite=False)
        pocon = sla.lapack.get_lapack_funcs("pocon", (gram,))
        well_conditioned = float(pocon(factor[0], np.linalg.norm(gram, 1))[0]) > _GRAM_RCOND
    except sla.LinAlgError:
        well_conditioned = False
    if not well_conditioned:
        return np.asarray(sla.lstsq(M, rhs, cond=1e-12, lapack_driver="gelsy", check_finite=False)[0])
    solution = sla.cho_solve(factor, moments, check_finite=False)
    # one step of iterative refinement recovers the digits lost in the product M^T M
    return np.asarray(solution + sla.cho_solve(factor, M.T @ (rhs - M @ solution), check_finite=False))
