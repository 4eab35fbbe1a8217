"""The cross Gramian of a model with as many inputs as outputs, from a Schur form of A."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array, schur_poles
from ..errors import ConvergenceError, ModelError, UnstableError
from ..models.linear_model import LinearModel
from ..models.scaling import in_range, scale_system
from .factorize import ACCEPTED_RESIDUAL, check_rates
from .stability import is_stable_pole, matrix_size, no_gramian_message


def cross_gramian(model: LinearModel, tol: float) -> Array:
    """Return X with A X + X A + B C = 0, in discrete time X = A X A + B C, in the states of the model."""
    if model.n_inputs != model.n_outputs:
        raise ModelError(
            f"the cross Gramian needs as many inputs as outputs, got {model.n_inputs} and {model.n_outputs}"
        )
    if model.n_states == 0:
        return np.zeros((0, 0))
    system = scale_system(model.A, model.B, model.C)
    A, B, C = system.A, system.B, system.C
    discrete = model.is_discrete
    check_rates(A, discrete)
    complex_form = discrete or np.iscomplexobj(A)
    T, Z = sla.schur(A, output="complex" if complex_form else "real", check_finite=False)
    poles = schur_poles(T)
    size = matrix_size(A)
    stable = is_stable_pole(poles, size, discrete=discrete, tol=model.tolerance(tol, size))
    if not np.all(stable):
        raise UnstableError(no_gramian_message(poles[~stable], model.A, discrete=discrete))
    source = (Z.conj().T @ B) @ (C @ Z)
    X = _solve_discrete(T, source) if discrete else _solve_continuous(T, source)
    X = Z @ X @ Z.conj().T
    if not np.iscomplexobj(A):
        X = X.real
    defect = (A @ X @ A - X if discrete else A @ X + X @ A) + B @ C
    size = float(np.linalg.norm(X)) * max(matrix_size(A), 1.0) ** 2 + float(np.linalg.norm(B @ C))
    residual = float(np.linalg.norm(defect))
    if not residual <= ACCEPTED_RESIDUAL * max(size, np.finfo(float).tiny):
        raise ConvergenceError(
            f"the cross Gramian could not be computed: residual {residual:.1e} with terms of size "
            f"{size:.1e}; check the units of the states"
        )
    X = X * system.states[:, None] / system.states
    return in_range(X, system.exponent, "Gramian")


def _solve_continuous(T: Array, source: Array) -> Array:
    """Solve T X + X T + source = 0, T upper triangular or with 2 x 2 blocks on the diagonal."""
    (trsyl,) = sla.get_lapack_funcs(("trsyl",), (T,))
    X, scale, _ = trsyl(T, T, -source)
    return X / scale


def _solve_discrete(T: Array, source: Array) -> Array:
    """Solve X = T X T + source column by column, T upper triangular."""
    n = T.shape[0]
    X, TX = np.zeros((n, n), complex), np.zeros((n, n), complex)
    eye = np.eye(n)
    for j in range(n):
        rhs = source[:, j] + TX[:, :j] @ T[:j, j]
        X[:, j] = sla.solve_triangular(eye - T[j, j] * T, rhs, check_finite=False)
        TX[:, j] = T @ X[:, j]
    return X
