"""Truncation by the user's Gramian factors, and factors of Gramians that are known as matrices."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg as sla
from helpers.reference import difference, gains, random_system, slow_pole

import hankelred


def textbook(system, Wc, Wo, order):
    """Balanced truncation of a nonsingular pair of Gramians by eigenvectors of their product."""
    A, B, C, D = system
    values, T = np.linalg.eig(Wc @ Wo)
    T = T[:, np.argsort(-values.real)]
    left, right = np.linalg.inv(T)[:order], T[:, :order]
    return (left @ A @ right, left @ B, C @ right, D), np.sqrt(np.sort(values.real)[::-1])


def colored(A, B):
    """Return the stationary covariance of the states under an input filtered by a first-order lag."""
    n, m = B.shape
    # x+ = A x + B z, z+ = .9 z + white: the covariance of (x, z) from one Lyapunov equation
    F = np.block([[A, B], [np.zeros((m, n)), 0.9 * np.eye(m)]])
    G = np.vstack([np.zeros((n, m)), np.eye(m)])
    return sla.solve_discrete_lyapunov(F, G @ G.T)[:n, :n]


@pytest.mark.parametrize("order", [1, 3, 5])
def test_the_projection_is_that_of_the_users_gramians(order):
    system = random_system(3, 7, 2, 2, discrete=True)
    Wc = colored(*system[:2])
    Wo = sla.solve_discrete_lyapunov(system[0].T, system[2].T @ np.diag([1.0, 9.0]) @ system[2])
    reduction = hankelred.reduce(
        system,
        order,
        controllability_factor=hankelred.gramian_factor(Wc),
        observability_factor=hankelred.gramian_factor(Wo),
        dt=True,
    )
    expected, values = textbook(system, Wc, Wo, order)
    np.testing.assert_allclose(reduction.hankel_singular_values, values, rtol=1e-6)
    w = np.linspace(0, np.pi, 50)
    size = gains(system, w, discrete=True).max()
    assert gains(difference(reduction.system, expected), w, discrete=True).max() < 1e-8 * size
    assert reduction.error_bound == np.inf
    assert reduction.solver == "given"
    np.testing.assert_allclose(reduction.left.T @ reduction.right, np.eye(order), atol=1e-9)
    np.testing.assert_allclose(reduction.left.T @ system[0] @ reduction.right, reduction.system[0], atol=1e-9)


@pytest.mark.parametrize("norm", ["hinf", "h2"])
def test_the_error_is_measured_on_the_full_model(norm):
    # the user's factor misses most of the system, so its singular values are no measure of the error
    system = random_system(4, 6, 2, 3, discrete=True, direct=False)
    two_states = np.eye(6)[:, :2]
    reduction = hankelred.reduce(system, 1, controllability_factor=two_states, dt=True)
    whole = hankelred.norm(difference(system, reduction.system), norm, dt=True)
    assert reduction.error(norm) == pytest.approx(whole, rel=1e-6)


def test_own_factors_change_nothing():
    system = random_system(5, 6, 2, 2)
    own = {
        f"{kind}_factor": hankelred.gramian(system, kind, factor=True)
        for kind in ("controllability", "observability")
    }
    by_factors, plain = hankelred.reduce(system, 3, **own), hankelred.reduce(system, 3)
    np.testing.assert_allclose(by_factors.hankel_singular_values, plain.hankel_singular_values, rtol=1e-9)
    assert by_factors.error() == pytest.approx(plain.error(), rel=1e-6)


def test_modal_systems_take_factors_of_their_modes_and_stay_real():
    rng = np.random.default_rng(0)
    logs = np.array([-0.01 + 0.5j, -0.01 - 0.5j, -0.2, -0.03 + 2j, -0.03 - 2j])
    B = rng.standard_normal((5, 3)) + 1j * rng.standard_normal((5, 3))
    C = rng.standard_normal((2, 5)) + 1j * rng.standard_normal((2, 5))
    for k in (0, 3):
        B[k + 1], C[:, k + 1] = B[k].conj(), C[:, k].conj()
    B[2], C[:, 2] = B[2].real, C[:, 2].real
    system = hankelred.ModalSystem(logs, B, C)
    states = np.zeros((5, 4000), complex)
    u = np.cumsum(rng.standard_normal((3, 4000)), axis=1) * 0.1
    for t in range(1, 4000):
        states[:, t] = np.exp(logs) * states[:, t - 1] + B @ u[:, t]
    estimator = hankelred.GramianEstimator(5)
    estimator.update(states)
    reduction = hankelred.reduce(system, 3, controllability_factor=estimator.factor())
    A, *_ = reduction.system.state_space()
    assert isinstance(reduction.system, hankelred.ModalSystem) and not np.iscomplexobj(A)
    # the projection leads to the modal states of both
    np.testing.assert_allclose(
        reduction.left.T @ np.diag(system.poles) @ reduction.right,
        np.diag(reduction.system.poles),
        atol=1e-9,
    )
    # one member of a pair alone is no Gramian of real states
    with pytest.raises(hankelred.ModelError, match="imaginary part"):
        hankelred.reduce(system, 3, controllability_factor=np.diag([1, 0, 1, 1, 1]) @ states[:, :9])


def test_poles_on_the_boundary_are_not_reduced_by_user_factors():
    A, B, C, D = slow_pole(0.0, n=5)
    by_factors = hankelred.reduce((A, B, C, D), 3, controllability_factor=np.eye(5))
    assert by_factors.unstable_order == 1 and np.isinf(by_factors.hankel_singular_values[0])
    assert np.abs(np.linalg.eigvals(by_factors.system[0])).min() == 0


def test_an_unstable_projection_is_never_silent():
    A = np.array([[-1.0, 10.0], [0.0, -1.0]])
    direction = np.array([[1.0], [1.0]])
    args = (A, np.ones((2, 1)), np.ones((1, 2)), 0)
    with pytest.warns(hankelred.ReductionWarning, match="only the model's own Gramians guarantee"):
        reduction = hankelred.reduce(
            args, 1, controllability_factor=direction, observability_factor=direction
        )
    assert reduction.error() == np.inf


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (np.ones((3, 1)), r"row for each of the 2 states, got shape \(3, 1\)"),
        (np.ones(2), "row for each"),
        ([[1.0], [np.nan]], r"controllability_factor\[1, 0\] is nan"),
        ("no", "numeric"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factor, message):
    system = ([[-1.0, 0.0], [0.0, -2.0]], [[1.0], [1.0]], [[1.0, 1.0]], 0)
    with pytest.raises(hankelred.ModelError, match=message):
        hankelred.reduce(system, 1, controllability_factor=factor)


def test_residualization_takes_no_factors():
    system = ([[-1.0]], [[1.0]], [[1.0]], 0)
    with pytest.raises(hankelred.ModelError, match="method='truncation' only"):
        hankelred.reduce(system, 1, method="residualization", observability_factor=[[1.0]])


# factors of matrices ------------------------------------------------


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_factor_gives_its_gramian_back_in_any_units(rank, complex_):
    rng = np.random.default_rng(rank)
    X = rng.standard_normal((6, rank)) + (1j * rng.standard_normal((6, rank)) if complex_ else 0)
    units = np.geomspace(1e-30, 1e30, 6)
    W = (units[:, None] * X) @ (units[:, None] * X).conj().T
    L = hankelred.gramian_factor(W)
    assert L.shape == (6, rank)
    np.testing.assert_allclose((L @ L.conj().T) / np.outer(units, units), X @ X.conj().T, atol=1e-12)


def test_states_that_are_never_reached_are_zero_rows():
    W = np.diag([2.0, 0.0, 1.0])
    L = hankelred.gramian_factor(W)
    np.testing.assert_allclose(L @ L.T, W, atol=1e-15)
    assert hankelred.gramian_factor(np.zeros((2, 2))).shape == (2, 0)
    assert hankelred.gramian_factor(np.zeros((0, 0))).shape == (0, 0)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], "least eigenvalue -1"),
        ([[1.0, 0.5], [0.0, 1.0]], "asymmetry 5.0e-01"),
        ([[0.0, 1.0], [1.0, 0.0]], "semidefinite"),
        ([[1.0, np.inf], [np.inf, 1.0]], "finite"),
        ([[1.0, 2.0]], r"square matrix, got shape \(1, 2\)"),
        ("W", "numeric"),
    ],
)
def test_what_is_no_gramian_is_refused(matrix, message):
    with pytest.raises(hankelred.ModelError, match=message):
        hankelred.gramian_factor(matrix)


def test_no_warning_where_the_projection_is_stable():
    system = random_system(6, 5, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hankelred.reduce(system, 2, controllability_factor=np.eye(5))
