"""Parts of a model: without hidden modes, stable and unstable, without chosen states."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .._util.arrays import EPS, Array
from .._util.checks import as_integer, real_number, require_option
from ..errors import ModelError, OrderError, ReductionWarning, short_repr
from ..gramians.factorize import FactoredSystem, factorize
from ..gramians.stability import STABILITY_TOL, checked_tol
from ..models.frequency_response import MAX_RESPONSE_CHANGE, difference_of_responses
from ..models.linear_model import LinearModel, Timebase, as_model
from ..models.projection import project_exactly
from .balancing import balance, project_unstable, truncate_balanced, unstable_poles

#: Directions of unstable and marginal modes that are reached, or observed, less than this, relative to the
#: strongest, are hidden.
HIDDEN = 1e-10

#: Poles of integrators are computed as numbers up to this, relative to the size of A.
INTEGRATORS = 1e-7

METHODS = ("truncate", "match_dc")


def minimal(
    sys: Any, tol: float | None = None, *, dt: Timebase = 0, stability_tol: float = STABILITY_TOL
) -> Any:
    """Remove hidden modes: states that no input reaches or no output shows, stable or not.

    Parameters
    ----------
    sys : model
        As in :func:`hankel_singular_values`.
    tol : float, optional
        Stable states with a Hankel singular value of at most tol times the largest one are removed, and
        unstable or marginal ones that are reached or observed less than tol, relative to the strongest.
        Default: the noise floor, and 1e-10.
    dt : 0, True, float or None
        Timebase of a tuple.
    stability_tol : float
        Poles nearer to the boundary than this, relative to the size of A, count as marginal.

    Returns
    -------
    model
        The same type, dt and names; ``sys`` itself where nothing is hidden.

    Raises
    ------
    OrderError
        ``tol`` is not a number in [0, 1).
    ModelError
        The model cannot be used, or removing the modes would change the response.

    Notes
    -----
    The stable part is balanced; the staircase form (Rosenbrock 1970; Paige, IEEE Trans. Autom.
    Control 26 (1981)) of the rest separates the controllable and observable states.

    Examples
    --------
    An unstable mode that is not observable:

    >>> import numpy as np, hankelred
    >>> hidden = (np.diag([-1.0, 2.0]), np.ones((2, 1)), np.array([[1.0, 0.0]]), 0)
    >>> hankelred.minimal(hidden)[0].shape
    (1, 1)
    """
    level = None
    if tol is not None:
        level = real_number(tol, lambda x: 0 <= x < 1, "tol must be a number in [0, 1)", OrderError)
    model = as_model(sys, dt)
    factored = factorize(model, checked_tol(stability_tol))
    balancing = balance(factored)
    floor = balancing.noise_floor
    if level is not None:
        floor = max(level * float(balancing.values.max(initial=0.0)), balancing.rounding)
    rank = int(np.count_nonzero(balancing.values > floor))
    left, right = _minimal_bases(factored, HIDDEN if level is None else max(level, EPS))
    if rank == factored.n_stable and left.shape[1] == factored.n_unstable:
        return sys
    out, _, _ = truncate_balanced(model, balancing, rank)
    while rank and unstable_poles(out, factored.n_unstable).size:
        rank -= 1
        out, _, _ = truncate_balanced(model, balancing, rank)
    k = factored.n_unstable
    kept = left.conj().T @ out.A[:k, :k] @ right, left.conj().T @ out.B[:k], out.C[:, :k] @ right
    A = np.zeros((left.shape[1] + rank,) * 2, np.result_type(out.A, left))
    A[: left.shape[1], : left.shape[1]], A[left.shape[1] :, left.shape[1] :] = kept[0], out.A[k:, k:]
    B, C = np.concatenate([kept[1], out.B[k:]]), np.concatenate([kept[2], out.C[:, k:]], axis=1)
    lost = difference_of_responses(
        (model.A, model.B, model.C),
        lambda s: C @ np.linalg.solve(s * np.eye(A.shape[0]) - A, B),
        _without_rounding(np.linalg.eigvals(model.A), model),
        discrete=model.is_discrete,
    )
    allowed = max(MAX_RESPONSE_CHANGE, 4 * (level or 0.0) * model.n_states)
    if not lost <= allowed:
        raise ModelError(
            f"removing hidden modes would change the response by {lost:.1e} of its largest value, and at "
            "most "
            f"{allowed:.0e} is accepted; lower tol=, or check the units of the states"
        )
    return model.with_matrices(A, B, C, model.D).to_user()


def _without_rounding(poles: Array, model: LinearModel) -> Array:
    """Return the poles, of which those of a chain of integrators are zero in continuous time.

    They are computed as small numbers, at which a response is nothing but rounding.
    """
    size = 0.0 if model.is_discrete else float(np.linalg.norm(model.A))
    return np.where(np.abs(poles) <= INTEGRATORS * size, 0.0, poles)


def _minimal_bases(factored: FactoredSystem, tol: float) -> tuple[Array, Array]:
    """Return left and right bases of the controllable and observable unstable and marginal states."""
    A, B, C = factored.unstable_A, factored.unstable_B, factored.unstable_C
    system = factored.scaled_system
    Q = _controllable_basis(A, B, tol, _size(factored.unstable_left) * _size(system.B))
    A, C = Q.conj().T @ A @ Q, C @ Q
    P = _controllable_basis(A.conj().T, C.conj().T, tol, _size(factored.unstable_right) * _size(system.C))
    return Q @ P, Q @ P


def _size(M: Array) -> float:
    return float(np.linalg.norm(M, 2)) if M.size else 0.0


def _controllable_basis(A: Array, B: Array, tol: float, size: float) -> Array:
    """Return an orthonormal basis of the controllable subspace of A and B, by the staircase algorithm.

    Entries of B below the tolerance relative to ``size`` count as zero.
    """
    n = A.shape[0]
    Q, block = np.zeros((n, 0), np.result_type(A, B)), B
    while size > 0:
        block = block - Q @ (Q.conj().T @ block)
        block = block - Q @ (Q.conj().T @ block)
        directions, strength, _ = np.linalg.svd(block, full_matrices=False)
        directions = directions[:, strength > tol * size]
        if directions.shape[1] == 0 or Q.shape[1] == n:
            break
        Q = np.concatenate([Q, directions[:, : n - Q.shape[1]]], axis=1)
        block = A @ directions
        size = _size(A)
    return Q


def split(sys: Any, *, dt: Timebase = 0, stability_tol: float = STABILITY_TOL) -> tuple[Any, Any]:
    """Split a model into a stable and an unstable one that add up to it.

    Parameters
    ----------
    sys, dt, stability_tol
        As in :func:`hankel_singular_values`.

    Returns
    -------
    stable, unstable : model
        Of the same type, dt and names. Marginal poles go to the unstable part, the direct term to the stable
        one, and so do the infinite poles of an improper model.

    Raises
    ------
    ModelError
        The model cannot be used.
    ConvergenceError
        A stable and an unstable pole are too close to be separated.

    Notes
    -----
    Ordered Schur form and a Sylvester equation: Bavely and Stewart, SIAM J. Numer. Anal. 16 (1979).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> stable, unstable = hankelred.split((np.diag([-1.0, 2.0]), np.ones((2, 1)), np.ones((1, 2)), 3))
    >>> stable[0], stable[3], unstable[0], unstable[3]
    (array([[-1.]]), array([[3.]]), array([[2.]]), array([[0.]]))
    """
    model = as_model(sys, dt)
    factored = factorize(model, checked_tol(stability_tol))
    system, eye = factored.scaled_system, np.eye(factored.n_stable)
    stable = project_exactly(system, factored.left_states(eye), factored.right_states(eye))
    parts: list[Any] = []
    for part, D in ((stable, model.D), (project_unstable(factored), np.zeros_like(model.D))):
        B, C = part.B * 2.0**system.input_exponent, part.C * 2.0**system.output_exponent
        owner = model.proper_part() if parts else model
        parts.append(owner.with_matrices(part.A, B, C, D).to_user())
    return parts[0], parts[1]


def truncate_states(
    sys: Any,
    remove: npt.ArrayLike | Sequence[int],
    method: Literal["truncate", "match_dc"] = "truncate",
    *,
    dt: Timebase = 0,
) -> Any:
    """Remove chosen states of a model.

    Parameters
    ----------
    sys : model with states
        As in :func:`hankel_singular_values`, without transfer functions.
    remove : sequence of int
        Indices of the states to remove, from 0; negative ones count from the end.
    method : {"truncate", "match_dc"}
        "truncate" leaves their rows and columns out. "match_dc" sets their derivatives (in discrete time,
        their changes) to zero and eliminates them, so that the response at frequency zero stays.
    dt : 0, True, float or None
        Timebase of a tuple.

    Returns
    -------
    model
        The same type, dt and names.

    Raises
    ------
    ModelError
        No states, an index that is none of them, an unknown method, or states that cannot be at rest.

    Warns
    -----
    ReductionWarning
        The full model is stable and the reduced one is not.

    Notes
    -----
    Nothing bounds the error; :func:`reduce` chooses the states, and bounds it.

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> sys = (np.diag([-1.0, -100.0]), np.ones((2, 1)), np.ones((1, 2)), 0)
    >>> A, B, C, D = hankelred.truncate_states(sys, [1], "match_dc")
    >>> A, D
    (array([[-1.]]), array([[0.01]]))
    """
    require_option(method, METHODS, "method", ModelError)
    model = as_model(sys, dt)
    if not model.has_states:
        raise ModelError("a transfer function has no states to remove; convert it to a state space first")
    if model.infinite is not None:
        raise ModelError(
            "E is singular, so that the states depend on each other, and removing some of them is no "
            "reduction: use reduce(), or take the finite part first, reduce(sys, order).system"
        )
    n = model.n_states
    chosen = np.zeros(n, dtype=bool)
    if np.ndim(remove) != 1:
        raise ModelError(f"remove must be a list of indices of states, got {short_repr(remove)}")
    for index in np.asarray(remove, dtype=object):
        k = as_integer(index)
        if k is None or not -n <= k < n:
            raise ModelError(f"remove has {short_repr(index)}, and the model has the states 0 to {n - 1}")
        chosen[k] = True
    A, B, C, D = model.A, model.B, model.C, model.D
    x, z = ~chosen, chosen
    out = A[np.ix_(x, x)], B[x], C[:, x], D
    if method == "match_dc" and np.any(z):
        rest = (np.eye(int(z.sum())) if model.is_discrete else 0.0) - A[np.ix_(z, z)]
        if np.linalg.cond(rest) > 1 / (n * EPS):
            raise ModelError("the states to remove cannot be at rest: a pole of theirs is at frequency zero")
        settled = np.linalg.solve(rest, np.concatenate([A[np.ix_(z, x)], B[z]], axis=1))
        k = int(x.sum())
        into, onto = A[np.ix_(x, z)], C[:, z]
        out = (
            out[0] + into @ settled[:, :k],
            out[1] + into @ settled[:, k:],
            out[2] + onto @ settled[:, :k],
            D + onto @ settled[:, k:],
        )
    reduced = model.with_matrices(*out)
    if not unstable_poles(model, 0).size and unstable_poles(reduced, 0).size:
        warnings.warn(
            f"without these states the model is unstable: a pole is at {unstable_poles(reduced, 0)[0]:.3g}",
            ReductionWarning,
            stacklevel=2,
        )
    return reduced.to_user()
