"""Poles at the edge of stability and other hard models by every method, against multiprecision."""

from __future__ import annotations

import warnings

import control
import mpmath as mp
import numpy as np
import pytest
import scipy.linalg as sla
from helpers.exact import eigenvalues, matrix
from helpers.reference import exact_gains, random_system
from helpers.sweeps import sweep

import hankelred
from hankelred import ConvergenceError, HankelredError, reduce
from hankelred.gramians.hammarling import hammarling

METHODS = [
    ("truncation", {}),
    ("residualization", {}),
    ("stochastic", {"regularization": 0.5}),
    ("modal", {}),
    ("coprime", {}),
    ("frequency_limited", {"band": (0.3, 2.0)}),
]


def largest_difference(system, reduced, discrete):
    """Largest gain of the difference at and beside all poles, in multiprecision."""
    frequencies = [0.0]
    for A in (system[0], reduced[0]):
        for pole in eigenvalues(matrix(A)):
            center, width = (pole.arg(), 1 - abs(pole)) if discrete else (pole.imag, pole.real)
            frequencies += [float((center + k * width).mid()) for k in (-1, -0.5, 0, 0.5, 1)]
    return exact_gains(system, reduced, frequencies, discrete=discrete).max()


def near_the_edge(distance, discrete):
    A, B, C, D = random_system(0, 6, 1, 1, discrete=discrete)
    poles = np.linalg.eigvals(A)
    A = (
        A * ((1 - distance) / np.abs(poles).max())
        if discrete
        else A - np.eye(6) * (poles.real.max() + distance)
    )
    return A, B, C, D


@pytest.mark.slow
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("distance", sweep([1e-10, 1e-8], first=1))
def test_errors_and_bounds_near_the_edge_of_stability(distance, discrete):
    """Errors of other methods than truncation were up to six times too small, and one bound did not hold.

    There two gains of 1e10 were subtracted in double precision, and the relative error that rounding leaves
    was sampled where the full model is largest only, not the reduced one. Hankel norms of such errors came
    out larger than their H-infinity norms.
    """
    system = near_the_edge(distance, discrete)
    for method, options in METHODS:
        for order in (3, 6):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", hankelred.ReductionWarning)
                try:
                    reduction = reduce(system, order, method=method, dt=discrete, **options)
                    error, bound, in_hankel = (
                        reduction.error(),
                        reduction.error_bound,
                        reduction.error("hankel"),
                    )
                except HankelredError:
                    continue
            true = largest_difference(system, reduction.system, discrete)
            assert true <= bound, (method, order)
            assert true <= error * (1 + 1e-3), (method, order)
            assert in_hankel <= error, (method, order)


def test_a_pole_on_the_boundary_within_rounding_is_an_error_of_ours():
    """error("h2") ended in "math domain error" for a pole of 1 - 1e-12 that rounding had moved beyond 1."""
    system = near_the_edge(1e-12, True)
    reduction = reduce(system, 6, dt=True)
    try:
        # nothing is left out; rounding of 1e-16 moves the pole by a thousandth of its distance
        assert reduction.error("h2") <= 1e-2 * hankelred.norm(system, "h2", dt=True, stability_tol=0)
    except ConvergenceError as error:
        assert "stability_tol=" in str(error)
    with pytest.raises(ConvergenceError, match="on the stability boundary; increase stability_tol="):
        hammarling(np.array([[1.0 + 0j]]), np.ones((1, 1)), discrete=True)


@pytest.mark.parametrize("discrete", [False, True])
def test_modes_beside_integrators_warn_of_nothing(discrete):
    """The comparison of two infinite responses at the pole gave a RuntimeWarning, an error in these tests."""
    A, B, C, D = random_system(1, 5, 1, 1, discrete=discrete)
    driven = sla.block_diag(A, float(discrete)), np.vstack([B, [[1.0]]]), np.hstack([C, [[1.0]]]), D
    reduction = reduce(driven, 4, method="modal", dt=discrete)
    assert reduction.unstable_order == 1
    # the integrator cancels in the difference; its frequency is not sampled
    w = np.concatenate([np.linspace(1e-4, np.pi, 4000), np.geomspace(1e-4, 100, 500)])
    if discrete:
        w = np.minimum(w, np.pi)
    z = np.exp(1j * w) if discrete else 1j * w
    full, reduced = (
        (c @ np.linalg.solve(z[:, None, None] * np.eye(len(a)) - a, b[None]) + d)[:, 0, 0]
        for a, b, c, d in (driven, reduction.system)
    )
    assert reduction.error() == pytest.approx(np.abs(full - reduced).max(), rel=1e-4)
    assert reduction.error() <= reduction.error_bound


def test_a_riccati_equation_without_a_solution_warns_of_nothing():
    """scipy's warning of a singular Lyapunov equation reached the user, before the refusal by name."""
    with pytest.raises(ConvergenceError, match="larger regularization"):
        reduce(near_the_edge(1e-12, False), 3, method="stochastic")


def attenuator():
    """Eight lead-lag elements in series: the gain falls from 1 to 3e-6, all zeros are on the left."""
    A, B, C, D = np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), np.eye(1)
    for pole in np.geomspace(0.1, 1000, 8):
        A = np.block([[A, np.zeros((len(A), 1))], [0.8 * pole * C, -pole]])
        B, C, D = np.vstack([B, 0.8 * pole * D]), np.hstack([C / 5, [[1.0]]]), D / 5
    return A, B, C, D


def stochastic_values(system):
    """Singular values of the phase system from the eigenvectors of a Hamiltonian matrix, with 40 digits."""
    with mp.workdps(40):
        A, B, C, D = (mp.matrix(M.tolist()) for M in system)
        n = A.rows
        lyapunov = mp.zeros(n * n)
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    lyapunov[i * n + j, k * n + j] += A[i, k]
                    lyapunov[i * n + j, i * n + k] += A[j, k]
        BB = B * B.T
        x = mp.lu_solve(lyapunov, mp.matrix([-BB[i, j] for i in range(n) for j in range(n)]))
        P = mp.matrix([[x[i * n + j] for j in range(n)] for i in range(n)])
        Bw, R = P * C.T + B * D[0], D[0] ** 2
        F, H = A - Bw * C / R, mp.zeros(2 * n)
        H[:n, :n], H[:n, n:], H[n:, :n], H[n:, n:] = F, Bw * Bw.T / R, -C.T * C / R, -F.T
        poles, vectors = mp.eig(H)
        stable = [k for k in range(2 * n) if mp.re(poles[k]) < 0]
        U = mp.matrix([[vectors[i, k] for k in stable] for i in range(2 * n)])
        X = U[n:, :] * mp.inverse(U[:n, :])
        values = mp.eig(P * X, left=False, right=False)
        return np.sort([float(mp.sqrt(abs(value))) for value in values])[::-1]


def test_stochastic_values_do_not_depend_on_the_states():
    """In the states that split() returns, the Riccati equation of this model was refused.

    In others the singular values had five correct digits, or one came out above 1.
    """
    A, B, C, D = system = attenuator()
    expected = stochastic_values(system)
    rng = np.random.default_rng(0)
    drift = control.ss(*system) + control.tf(1, [1, 0])
    others = [system, control.ssdata(hankelred.split(drift)[0])]
    for _ in range(3):
        T = rng.standard_normal((8, 8))
        others.append((T @ A @ np.linalg.inv(T), T @ B, C @ np.linalg.inv(T), D))
    for other in others:
        reduction = reduce(other, 4, method="stochastic")
        np.testing.assert_allclose(reduction.hankel_singular_values, expected, rtol=1e-6)
        projected = reduction.left.T @ other[0] @ reduction.right
        np.testing.assert_allclose(projected, reduction.system[0], atol=1e-6 * np.abs(projected).max())


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("method", ["coprime", "positive_real", "bounded_real", "stochastic"])
def test_singular_values_of_riccati_equations_do_not_depend_on_the_states(method, discrete):
    """In states of condition 1e6, discrete values of three methods were wrong by a third, without a word."""
    A, B, C, _ = random_system(5, 8, 2, 2, discrete=discrete)
    B, D = B * 0.45 / hankelred.norm((A, B, C, 0 * (C @ B)), "hinf", dt=discrete), 0.5 * np.eye(2)
    rng = np.random.default_rng(1)
    first, second = (np.linalg.qr(rng.standard_normal((8, 8)))[0] for _ in range(2))
    T = first @ np.diag(np.geomspace(1e-3, 1e3, 8)) @ second
    other = T @ A @ np.linalg.inv(T), T @ B, C @ np.linalg.inv(T), D
    expected = reduce((A, B, C, D), 4, method=method, dt=discrete)
    reduction = reduce(other, 4, method=method, dt=discrete)
    values, accuracy = reduction.hankel_singular_values, 1e-16 * np.linalg.cond(T) ** 2
    np.testing.assert_allclose(values, expected.hankel_singular_values, rtol=accuracy)
    assert reduction.error() == pytest.approx(expected.error(), rel=accuracy * 10)
    if reduction.left is not None:
        np.testing.assert_allclose(reduction.left.T @ reduction.right, np.eye(4), atol=1e-9)


def of_size(size):
    A = np.array([[-1.0, 2, 0], [-2, -1, 1], [0, 0, -3]])
    return A, size * np.array([[1.0], [0], [1]]), size * np.array([[1.0, 0, 1]]), 0


@pytest.mark.parametrize("size", [1e-165, 1e-200, 1e-320])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        *(each for each in METHODS if each[0] != "modal"),
        ("hankel_norm", {}),
        ("time_limited", {"horizon": 1.0}),
    ],
)
def test_gains_below_double_precision_are_refused(size, method, options):
    """Division by the gain, 0 after underflow, ended in ZeroDivisionError, OverflowError or LinAlgError."""
    model = of_size(size)
    with pytest.raises(
        hankelred.ModelError, match=r"B times C is about 1e-\d+, less than double precision holds"
    ):
        reduce(model, 2, method=method, **options)


@pytest.mark.parametrize("size", [1e-165, 1e-200, 1e-320])
def test_modal_truncation_of_gains_below_double_precision(size):
    """Modal truncation uses no Gramians, so that it returns a model whose gain is zero."""
    reduction = reduce(of_size(size), 2, method="modal")
    assert reduction.error() == 0 and reduction.order == 2
