"""Gramians in the coordinates of the user's model: controllability, observability, cross."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg as sla

from .._util.arrays import EPS, Array, schur_poles
from ..errors import ConvergenceError, ModelError, UnstableError
from ..models.linear_model import LinearModel, Timebase
from ..models.pencil import Factorize
from ..models.scaling import in_range, scaled
from ..models.sparse_model import SparseModel, dense_model, large_or_none
from .factorize import ACCEPTED_RESIDUAL, check_rates
from .factorize import factorize as factored_system
from .low_rank import low_rank_factors
from .stability import STABILITY_TOL, checked_tol, is_stable_pole, matrix_size, suspected_timebase

#: How far from semidefinite a Gramian may be by rounding, for each of its states.
SEMIDEFINITE = 1e-10

KINDS = ("controllability", "observability", "cross")


def gramian(
    sys: Any,
    kind: Literal["controllability", "observability", "cross"] = "controllability",
    *,
    factor: bool = False,
    dt: Timebase = 0,
    stability_tol: float = STABILITY_TOL,
    solver: Literal["auto", "dense", "low_rank"] = "auto",
    accuracy: float | None = None,
    factorize: Factorize | None = None,
) -> Array:
    """Return a Gramian of a stable model, or a factor of it.

    Parameters
    ----------
    sys : model
        As in :func:`hankel_singular_values`.
    kind : {"controllability", "observability", "cross"}
        Controllability W: A W + W A^H + B B^H = 0 (discrete: A W A^H - W + B B^H = 0).
        Observability W: A^H W + W A + C^H C = 0 (discrete: A^H W A - W + C^H C = 0).
        Cross X: A X + X A + B C = 0 (discrete: X = A X A + B C), for as many inputs as outputs.
    factor : bool
        Return L, shape (n, k), with W = L L^H instead of W. It carries twice the digits of W for
        small directions. Not for the cross Gramian, which has no such factor.
    dt : 0, True, float or None
        Timebase of a tuple.
    stability_tol : float
        Poles nearer to the boundary than this, relative to the size of A, count as marginal.
    solver, accuracy, factorize
        As in :func:`hankel_singular_values`. The low-rank solver returns factors only. With E the equation is
        A W E^H + E W A^H + B B^H = 0 and, for observability, the same with A^H, E^H and C^H.

    Returns
    -------
    ndarray, shape (n, n), or (n, k) with ``factor=True``

    Raises
    ------
    UnstableError
        The model has unstable or marginal poles: no Gramian exists.
    ModelError
        Unknown kind; a cross Gramian of a model that is not square; a factor of a cross Gramian.

    Notes
    -----
    Antoulas, Approximation of Large-Scale Dynamical Systems, SIAM (2005), chapters 4 and 12.

    Examples
    --------
    >>> import hankelred
    >>> hankelred.gramian(([[-1.0]], [[2.0]], [[1.0]], 0), "controllability")
    array([[2.]])
    >>> hankelred.gramian(([[0.5]], [[1.0]], [[1.0]], 0), "observability", dt=1.0).round(4)
    array([[1.3333]])
    """
    if kind not in KINDS:
        raise ModelError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    tol = checked_tol(stability_tol)
    L = large_or_none(
        sys, dt, solver, lambda large: _factor_of_large(large, kind, factor, accuracy, factorize, tol)
    )
    if L is not None:
        return L
    model = dense_model(sys, dt, solver)
    if kind == "cross":
        if factor:
            raise ModelError(
                "the cross Gramian is not semidefinite and has no factor L L^H; use factor=False"
            )
        return _cross(model, tol)
    factored = factored_system(model, tol)
    if factored.n_kept:
        poles = np.linalg.eigvals(factored.kept_A)
        raise UnstableError(_no_gramian(poles, model))
    system = factored.scaled
    if kind == "controllability":
        L, exponent = system.right(factored.right_states(factored.controllability)), system.input_exponent
    else:
        L, exponent = system.left(factored.left_states(factored.observability)), system.output_exponent
    return in_range((L if factor else L @ L.conj().T), exponent if factor else 2 * exponent, "Gramian")


def _factor_of_large(
    large: SparseModel,
    kind: str,
    factor: bool,
    accuracy: float | None,
    factorize: Factorize | None,
    tol: float,
) -> Array:
    """Return the low-rank factor of a Gramian of a large model."""
    if kind == "cross" or not factor:
        raise ModelError(
            f"a Gramian of {large.n_states} states is not formed: factor=True returns L with W = L L^H, for "
            "kind='controllability' and 'observability'"
        )
    found = low_rank_factors(large, accuracy, factorize, tol)
    if found.kept.A.size:
        poles = np.linalg.eigvals(found.kept.A)
        raise UnstableError(
            f"the model has {poles.size} unstable or marginal pole(s) near the origin, so no Gramian exists"
        )
    problem = found.problem
    if kind == "controllability":
        return in_range(problem.pencil.back(found.controllability), problem.input_exponent, "Gramian")
    return in_range(problem.pencil.back(found.observability), problem.output_exponent, "Gramian")


def gramian_factor(gramian: npt.ArrayLike) -> Array:
    """Return L with W = L L^H of a Gramian that is at hand as a matrix, such as a sum of x x^H.

    A factor from the model (``gramian(sys, factor=True)``) or from the states themselves
    (:class:`GramianEstimator`) has twice the digits in small directions; this is for where only the
    matrix is left.

    Parameters
    ----------
    gramian : array_like, shape (n, n)
        Hermitian and positive semidefinite, up to rounding.

    Returns
    -------
    ndarray, shape (n, k)
        Without the directions that are rounding, so k may be less than n.

    Raises
    ------
    ModelError
        Not a square, finite, Hermitian, positive semidefinite matrix.

    Notes
    -----
    From the eigenvectors of W scaled to a unit diagonal, so that the units of the states do not matter and
    singular matrices are as good as any: no Cholesky factorisation, which fails on them.

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> W = np.array([[4.0, 2.0], [2.0, 1.0]])
    >>> L = hankelred.gramian_factor(W)
    >>> L.shape, bool(np.allclose(L @ L.T, W))
    ((2, 1), True)
    """
    try:
        W = np.asarray(gramian, dtype=complex if np.iscomplexobj(gramian) else float)
    except (TypeError, ValueError):
        raise ModelError("the Gramian must be a numeric array") from None
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise ModelError(f"a Gramian is a square matrix, got shape {W.shape}")
    if not np.all(np.isfinite(W)):
        row, column = np.argwhere(~np.isfinite(W))[0]
        raise ModelError(
            f"the Gramian's entry [{row}, {column}] is {W[row, column]}; every entry must be finite"
        )
    n = W.shape[0]
    units = np.sqrt(np.maximum(np.diag(W).real, 0.0))
    inverse = np.divide(1.0, units, out=np.zeros(n), where=units > 0)
    scaled = inverse[:, None] * W * inverse
    size = max(n, 1) * SEMIDEFINITE
    asymmetry = float(np.abs(scaled - scaled.conj().T).max(initial=0.0))
    alone = float(np.abs(W[units == 0]).max(initial=0.0))
    values, vectors = np.linalg.eigh((scaled + scaled.conj().T) / 2)
    if asymmetry > size or alone > 0 or (n and values[0] < -size):
        raise ModelError(
            "not a Gramian: it must be Hermitian and positive semidefinite, and scaled to a unit diagonal "
            f"it has asymmetry {asymmetry:.1e} and least eigenvalue {values[0]:.1e}"
        )
    kept = values > n * EPS
    return units[:, None] * vectors[:, kept] * np.sqrt(values[kept])


def _no_gramian(poles: Array, model: LinearModel) -> str:
    shown = ", ".join(f"{pole:.3g}" for pole in poles[:3]) + (", ..." if poles.size > 3 else "")
    return (
        f"the model has {poles.size} unstable or marginal pole(s) ({shown}), so "
        "no Gramian exists; reduce() and hankel_singular_values() split such poles off by themselves"
        f"{suspected_timebase(np.linalg.eigvals(model.A), discrete=model.is_discrete)}"
    )


def _cross(model: LinearModel, tol: float) -> Array:
    if model.n_inputs != model.n_outputs:
        raise ModelError(
            f"the cross Gramian needs as many inputs as outputs, got {model.n_inputs} and {model.n_outputs}"
        )
    if model.n_states == 0:
        return np.zeros((0, 0))
    system = scaled(model.A, model.B, model.C)
    A, B, C = system.A, system.B, system.C
    discrete = model.is_discrete
    check_rates(A, discrete)
    complex_form = discrete or np.iscomplexobj(A)
    T, Z = sla.schur(A, output="complex" if complex_form else "real", check_finite=False)
    poles = schur_poles(T)
    stable = is_stable_pole(poles, matrix_size(A), discrete=discrete, tol=tol)
    if not np.all(stable):
        raise UnstableError(_no_gramian(poles[~stable], model))
    source = (Z.conj().T @ B) @ (C @ Z)
    X = _cross_discrete(T, source) if discrete else _cross_continuous(T, source)
    X = Z @ X @ Z.conj().T
    if not np.iscomplexobj(A):
        X = X.real
    defect = (A @ X @ A - X if discrete else A @ X + X @ A) + B @ C
    size = float(np.linalg.norm(X)) * max(matrix_size(A), 1.0) ** 2 + float(np.linalg.norm(B @ C))
    residual = float(np.linalg.norm(defect))
    if not residual <= ACCEPTED_RESIDUAL * max(size, np.finfo(float).tiny):
        raise ConvergenceError(
            f"the cross Gramian could not be computed: residual {residual:.1e} against {size:.1e}"
        )
    X = X * system.states[:, None] / system.states
    return in_range(X, system.input_exponent + system.output_exponent, "Gramian")


def _cross_continuous(T: Array, source: Array) -> Array:
    (trsyl,) = sla.get_lapack_funcs(("trsyl",), (T,))
    X, scale, _ = trsyl(T, T, -source)
    return X / scale


def _cross_discrete(T: Array, source: Array) -> Array:
    """Solve X = T X T + source column by column, T upper triangular."""
    n = T.shape[0]
    X, TX = np.zeros((n, n), complex), np.zeros((n, n), complex)
    eye = np.eye(n)
    for j in range(n):
        rhs = source[:, j] + TX[:, :j] @ T[:j, j]
        X[:, j] = sla.solve_triangular(eye - T[j, j] * T, rhs, check_finite=False)
        TX[:, j] = T @ X[:, j]
    return X
