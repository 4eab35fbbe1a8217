"""Refine a state space by its *simulated* output (output-error method); keep its poles inside a radius."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import scipy.linalg as sla
from scipy.linalg.lapack import dormqr

from .._util.arrays import EPS, Array
from ..reduction.balancing import BalancedFactors
from ..simulation.batch_recurrence import forced_responses, free_responses, simulate_states
from .linear_fit import FittedModel, fit_inputs, mean_square, residuals

#: The largest spectral radius of a model that has to be stable: so near to 1 that an integrator still acts
#: as one over the length of a record.
STABLE_RADIUS = 1.0 - 1e-6

#: Mean square of the residual, in units of the output's own size, that is rounding: no refinement below.
_ROUNDING = 1e-28


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
        change, levels = directions @ step[:P], step[P + p * direct :]
        D = model.D.copy()
        D[:, :direct] += step[P : P + p * direct].reshape(p, direct)
        return replace(
            model,
            A=model.A + change[: n * n].reshape(n, n),
            B=model.B + change[n * n : n * (n + m)].reshape(n, m),
            C=model.C + change[n * (n + m) :].reshape(p, n),
            D=D,
            x0=tuple(x + levels[e * n : (e + 1) * n] for e, x in enumerate(model.x0)),
            offset=model.offset + levels[len(us) * n :] if offsets else model.offset,
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
    (n, m), p, k = B.shape, C.shape[0], np.arange(A.shape[0])
    # d/dT of (T A T^-1, T B, C T^-1) at T = I: the entry [i, j, k, l] is that of entry (i, j) by T[k, l]
    by_A, by_B, by_C = np.zeros((n, n, n, n)), np.zeros((n, m, n, n)), np.zeros((p, n, n, n))
    by_A[k, :, k] += A.T
    by_A[:, k, :, k] -= A
    by_B[k, :, k] = B.T
    by_C[:, k, :, k] = -C
    tangents = np.concatenate([x.reshape(-1, n * n) for x in (by_A, by_B, by_C)])
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


def usable_matrices(A: Array, C: Array, *, stable: bool) -> tuple[Array, Array] | None:
    """Return A and C, with `stable` A as by `stable_matrix`; None where they are not finite."""
    if not (np.isfinite(A).all() and np.isfinite(C).all()):
        return None
    return (stable_matrix(A) if stable else A), C


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
        return replace(model, loss=mean_square(residuals(model, us, ys)))
