"""Gramians in the states of the user's model: controllability, observability, cross."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .._util.arrays import EPS, Array
from .._util.checks import require_finite, require_option
from ..errors import ModelError, UnstableError
from ..models.descriptor_sparse import BorderedPencil
from ..models.linear_model import LinearModel, Timebase
from ..models.pencil import Factorize
from ..models.scaling import in_range
from ..models.sparse_model import SparseModel, by_size
from .cross_gramian import cross_gramian
from .factorize import factorize as factored_system
from .low_rank import low_rank_factors
from .smith import compress
from .stability import STABILITY_TOL, checked_tol, no_gramian_message

#: Rounding by which a Gramian may fail to be semidefinite, for each of its states.
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
        Return L, shape (n, k), with W = L L^H instead of W. In weakly controllable or observable directions
        L has twice the digits of W. The cross Gramian has no such factor.
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
        With a singular E: the proper Gramians (Stykel) of the finite poles, in the states of the model. For
        observability the matrix returned is E^H Q E with her Q; a factor from the low-rank solver is one of
        Q itself.

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
    require_option(kind, KINDS, "kind", ModelError)
    tol = checked_tol(stability_tol)
    return by_size(
        sys,
        dt,
        solver,
        lambda large: _factor_of_large(large, kind, factor, accuracy, factorize, tol),
        lambda model: _gramian_of_dense(model, kind, factor, tol),
    )


def _gramian_of_dense(model: LinearModel, kind: str, factor: bool, tol: float) -> Array:
    """Return a Gramian of a dense model, or its factor, in the states of the user's model."""
    infinite = model.infinite
    if kind == "cross":
        if factor:
            raise ModelError(
                "the cross Gramian is not semidefinite and has no factor L L^H; use factor=False"
            )
        X = cross_gramian(model, tol)
        return X if infinite is None else infinite.right @ X @ infinite.coordinates.T
    factored = factored_system(model, tol)
    if factored.n_unstable:
        poles = np.linalg.eigvals(factored.unstable_A)
        raise UnstableError(no_gramian_message(poles, model.A, discrete=model.is_discrete))
    system = factored.scaled_system
    if kind == "controllability":
        L, exponent = (
            system.unscale_right(factored.right_states(factored.controllability)),
            system.input_exponent,
        )
    else:
        L, exponent = (
            system.unscale_left(factored.left_states(factored.observability)),
            system.output_exponent,
        )
    if L.shape[1] > L.shape[0]:
        L = compress(L)
    if infinite is not None:
        L = (infinite.right if kind == "controllability" else infinite.coordinates.conj()) @ L
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
    factors = low_rank_factors(large, accuracy, factorize, tol)
    if factors.n_unstable:
        raise UnstableError(
            f"the model has {factors.n_unstable} unstable or marginal pole(s) near the origin, so no Gramian "
            "exists"
        )
    problem = factors.problem
    if isinstance(problem.pencil, BorderedPencil):
        if kind == "controllability":
            states = problem.pencil.expand(factors.controllability)
            return in_range(states, problem.input_exponent, "Gramian")
        states = problem.pencil.expand(factors.observability.conj(), transposed=True).conj()
        return in_range(states, problem.output_exponent, "Gramian")
    if kind == "controllability":
        return in_range(problem.pencil.back(factors.controllability), problem.input_exponent, "Gramian")
    return in_range(problem.pencil.back(factors.observability), problem.output_exponent, "Gramian")


def gramian_factor(gramian: npt.ArrayLike) -> Array:
    """Return L with W = L L^H of a Gramian that is known as a matrix, such as a sum of x x^H.

    A factor computed from the model (``gramian(sys, factor=True)``) or from the states
    (:class:`GramianEstimator`) has twice the digits in weak directions; this function is for cases where
    only the matrix is known.

    Parameters
    ----------
    gramian : array_like, shape (n, n)
        Hermitian and positive semidefinite, up to rounding.

    Returns
    -------
    ndarray, shape (n, k)
        Directions that are rounding errors are omitted, so k may be less than n.

    Raises
    ------
    ModelError
        Not a square, finite, Hermitian, positive semidefinite matrix.

    Notes
    -----
    Computed from the eigenvectors of W scaled to a unit diagonal, so that the units of the states do not
    matter, and singular matrices, on which a Cholesky factorization fails, are accepted.

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
    require_finite(W, "gramian", ModelError)
    n = W.shape[0]
    scales = np.sqrt(np.maximum(np.diag(W).real, 0.0))
    inverse = np.divide(1.0, scales, out=np.zeros(n), where=scales > 0)
    scaled = inverse[:, None] * W * inverse
    size = max(n, 1) * SEMIDEFINITE
    asymmetry = float(np.abs(scaled - scaled.conj().T).max(initial=0.0))
    outside_support = float(np.abs(W[scales == 0]).max(initial=0.0))
    values, vectors = np.linalg.eigh((scaled + scaled.conj().T) / 2)
    if asymmetry > size or outside_support > 0 or (n and values[0] < -size):
        raise ModelError(
            "not a Gramian: it must be Hermitian and positive semidefinite, and scaled to a unit diagonal "
            f"it has asymmetry {asymmetry:.1e} and least eigenvalue {values[0]:.1e}"
        )
    significant = values > n * EPS
    return scales[:, None] * vectors[:, significant] * np.sqrt(values[significant])
