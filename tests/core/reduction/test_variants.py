"""Relative errors, coprime factors, passivity, and modes."""

from __future__ import annotations

import control
import numpy as np
import pytest
import scipy.linalg as sla
from helpers.data import slicot_model
from helpers.printed import half_unit
from helpers.reference import difference, gains, random_system, similar
from helpers.sweeps import sweep
from hypothesis import given, settings
from hypothesis import strategies as st

import hankelred
from hankelred import (
    ConvergenceError,
    ModalSystem,
    ModelError,
    OrderError,
    ReductionWarning,
    UnstableError,
    reduce,
)


def grid(discrete, points=400):
    return np.exp(1j * np.linspace(0, np.pi, points)) if discrete else 1j * np.geomspace(1e-3, 1e3, points)


def response(system, points):
    A, B, C, D = (np.atleast_2d(M) for M in system)
    return np.array([C @ np.linalg.solve(s * np.eye(len(A)) - A, B) + D for s in points])


def gain_of(first, second):
    """Largest gain of the difference of two systems of python-control on a grid."""
    points = grid(False, 2000)
    return np.linalg.norm(response(control.ssdata(first - second), points), 2, axis=(1, 2)).max()


# --- relative error


def relative_errors(system, reduced, points, regularization=0.0):
    """Gain of W^-1 (G - G_r) with W W^H = G G^H + regularization^2, at points."""
    out = []
    for G, E in zip(
        response(system, points), response(system, points) - response(reduced, points), strict=True
    ):
        W = np.linalg.cholesky(G @ G.conj().T + regularization**2 * np.eye(len(G)))
        out.append(np.linalg.norm(np.linalg.solve(W, E), 2))
    return np.array(out)


@pytest.mark.parametrize("discrete", sweep([False, True], first=1))
@pytest.mark.parametrize(("m", "p", "regularization"), [(2, 2, None), (3, 2, None), (1, 3, 0.5), (2, 2, 0.1)])
def test_relative_error_is_within_its_bound(m, p, regularization, discrete):
    system = random_system(1, 7, m, p, discrete=discrete)
    first = reduce(system, 7, method="stochastic", regularization=regularization, dt=discrete)
    ones = int(np.count_nonzero(first.hankel_singular_values > 1 - 1e-7))
    for order in range(ones, 7):
        reduction = first.at(order)
        errors = relative_errors(system, reduction.system, grid(discrete), regularization or 0.0)
        assert errors.max() <= reduction.relative_error_bound * (1 + 1e-8) + 1e-10
        assert reduction.error() <= reduction.error_bound * (1 + 1e-6) + 1e-10
    assert first.error() < 1e-9


def test_values_of_one_are_the_zeros_in_the_right_half_plane():
    # (s - 1)(s - 3)(s + 2) / ((s + 1)(s + 4)(s + 6)): two zeros on the right
    model = control.tf(np.poly([1, 3, -2]), np.poly([-1, -4, -6]))
    reduction = reduce(model, 2, method="stochastic")
    assert isinstance(reduction.system, control.TransferFunction)
    np.testing.assert_allclose(reduction.hankel_singular_values[:2], 1, atol=1e-9)
    assert reduction.hankel_singular_values[2] < 1 - 1e-3
    with pytest.raises(OrderError, match=r"below the 2 zero\(s\)"):
        reduction.at(1)


def test_stochastic_singular_values_of_ab09hd():
    A = np.array(
        [
            [-0.04165, 0, 4.92, -4.92, 0, 0, 0],
            [-5.21, -12.5, 0, 0, 0, 0, 0],
            [0, 3.33, -3.33, 0, 0, 0, 0],
            [0.545, 0, 0, 0, -0.545, 0, 0],
            [0, 0, 0, 4.92, -0.04165, 0, 4.92],
            [0, 0, 0, 0, -5.21, -12.5, 0],
            [0, 0, 0, 0, 0, 3.33, -3.33],
        ]
    )
    B, C = np.zeros((7, 2)), np.zeros((3, 7))
    B[1, 0] = B[5, 1] = 12.5
    C[[0, 1, 2], [0, 3, 4]] = 1
    reduction = reduce((A, B, C, 0), 5, method="stochastic", regularization=1.0)
    printed = [0.8803, 0.8506, 0.8038, 0.4494, 0.3973, 0.0214, 0.0209]
    np.testing.assert_allclose(reduction.hankel_singular_values, printed, atol=half_unit(4))
    # the printed reduced model, compared by its poles
    Ar = np.array(
        [
            [1.2729, 0, 6.5947, 0, -3.4229],
            [0, 0.8169, 0, 2.4821, 0],
            [-2.9889, 0, -2.9028, 0, -0.3692],
            [0, -3.3921, 0, -3.1126, 0],
            [-1.4767, 0, -2.0339, 0, -0.6107],
        ]
    )
    np.testing.assert_allclose(
        np.sort_complex(np.linalg.eigvals(reduction.system[0])),
        np.sort_complex(np.linalg.eigvals(Ar)),
        atol=1e-3,
    )


@pytest.mark.parametrize("regularization", [None, 0.4])
def test_discrete_singular_values_are_those_of_the_discrete_equation(regularization):
    # AB09HD's example is in continuous time: here scipy solves the equation that it solves in discrete time
    A, B, C, D = system = random_system(11, 7, 3, 2, discrete=True)
    P = sla.solve_discrete_lyapunov(A, B @ B.T)
    R = C @ P @ C.T + D @ D.T + (regularization or 0.0) ** 2 * np.eye(2)
    X = -sla.solve_discrete_are(A, A @ P @ C.T + B @ D.T, np.zeros((7, 7)), R, s=C.T)
    values = np.sort(np.sqrt(np.abs(np.linalg.eigvals(P @ X))))[::-1]
    reduction = reduce(system, 7, method="stochastic", regularization=regularization, dt=True)
    np.testing.assert_allclose(reduction.hankel_singular_values, values, rtol=1e-7, atol=1e-12)


def test_relative_tolerance():
    system = random_system(2, 8, 2, 2)
    reduction = reduce(system, rtol=0.05, method="stochastic", regularization=0.3)
    assert reduction.relative_error_bound <= 0.05 < reduction.at(reduction.order - 1).relative_error_bound
    assert relative_errors(system, reduction.system, grid(False), 0.3).max() <= 0.05


def test_relative_errors_that_have_no_bound():
    A, B, C, D = random_system(3, 5, 2, 2)
    with pytest.raises(ModelError, match="full row rank"):
        reduce((A, B, C, 0), 2, method="stochastic")
    with pytest.raises(ModelError, match="full row rank"):
        reduce((A, B[:, :1], C, D[:, :1]), 2, method="stochastic")
    with pytest.raises(UnstableError, match="needs a stable model"):
        reduce((-A, B, C, D), 2, method="stochastic")
    for bad in (0, -1, np.inf, np.nan, "1", [1.0]):
        with pytest.raises(ModelError, match="regularization must be"):
            reduce((A, B, C, D), 2, method="stochastic", regularization=bad)
    with pytest.raises(ModelError, match="belongs to"):
        reduce((A, B, C, D), 2, regularization=0.1)


def test_a_regularization_of_nothing_raises():
    system, _ = slicot_model("heat-cont")
    with pytest.raises(ConvergenceError, match="larger regularization"):
        reduce(system, 5, method="stochastic", regularization=1e-7 * hankelred.norm(system, "hinf"))


@pytest.mark.parametrize("share", [0.1, 1e-3, 1e-6])
def test_values_of_a_real_model_are_below_one(share):
    # by scipy's solver alone the smallest of these regularizations left a residual of 5e-7
    system, _ = slicot_model("build")
    regularization = share * hankelred.norm(system, "hinf")
    reduction = reduce(system, 20, method="stochastic", regularization=regularization)
    assert reduction.hankel_singular_values[0] < 1
    errors = relative_errors(system, reduction.system, 1j * np.geomspace(1, 200, 500), regularization)
    assert errors.max() <= reduction.relative_error_bound


# --- coprime factors


def coprime_factors(system, discrete):
    """Normalized left coprime factors [N, M] by scipy's Riccati solver."""
    A, B, C, D = system
    R = np.eye(len(C)) + D @ D.T
    care = sla.solve_discrete_are if discrete else sla.solve_continuous_are
    Y = care(A.T, C.T, B @ B.T, R, s=B @ D.T)
    S = R + C @ Y @ C.T if discrete else R
    L = -((A @ Y @ C.T if discrete else Y @ C.T) + B @ D.T) @ np.linalg.inv(S)
    root = np.linalg.inv(np.linalg.cholesky(S))
    return A + L @ C, np.hstack([B + L @ D, L]), root @ C, root @ np.hstack([D, np.eye(len(C))])


def unstable_plant(seed, discrete):
    A, B, C, D = random_system(seed, 8, 2, 2, discrete=discrete)
    poles = [1.2, 1.0] if discrete else [0.3, 0.0]  # one of them an integrator
    return sla.block_diag(A, np.diag(poles)), np.vstack([B, np.eye(2)]), np.hstack([C, np.eye(2)]), D


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("order", sweep([5, 3, 8], first=1))
def test_the_gap_is_within_its_bound(order, discrete):
    plant = unstable_plant(4, discrete)
    reduction = reduce(plant, order, method="coprime", dt=discrete)
    points = grid(discrete)[1:]  # in discrete time the first is the integrator
    full = response(coprime_factors(plant, discrete), points)
    # the oracle's factors are normalized: [N, M] [N, M]^H = 1
    np.testing.assert_allclose(full @ full.conj().transpose(0, 2, 1) - np.eye(2), 0, atol=1e-7)
    values = hankelred.hankel_singular_values(coprime_factors(plant, discrete), dt=discrete)
    np.testing.assert_allclose(reduction.hankel_singular_values, values, rtol=1e-7, atol=1e-12)
    # the gap is at most the error of the factors; at each frequency it is that of the two graphs
    reduced = response(reduction.system, points)
    whole = response(plant, points)
    for G, Gr in zip(whole, reduced, strict=True):
        first, _ = np.linalg.qr(np.vstack([np.eye(2), G]))
        second, _ = np.linalg.qr(np.vstack([np.eye(2), Gr]))
        gap = np.linalg.norm(first @ first.conj().T - second @ second.conj().T, 2)
        assert gap <= reduction.gap_bound + 1e-8
    assert reduction.error_bound == np.inf
    left, right = reduction.left, reduction.right
    np.testing.assert_allclose(left.T @ plant[0] @ right, reduction.system[0], atol=1e-8)


def test_an_unstable_pole_that_is_lost_is_told():
    plant = unstable_plant(5, False)
    with pytest.warns(ReductionWarning, match=r"unstable pole\(s\)"):
        reduce(plant, 0, method="coprime")


def test_a_stable_plant_is_not_made_unstable():
    # eight masses between springs: the factors of order 6 belong to a plant with two unstable poles
    n = 8
    springs = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    A = np.block([[np.zeros((n, n)), np.eye(n)], [-springs, -0.02 * np.eye(n) - 0.02 * springs]])
    chain = A, np.eye(2 * n)[:, [n]], np.eye(2 * n)[[n - 1]], 0
    with pytest.raises(UnstableError, match="no stable model of order 6 was found by coprime"):
        reduce(chain, 6, method="coprime")


# --- passivity


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_a_gain_below_one_stays_below_one(order, discrete):
    A, B, C, D = random_system(6, 7, 2, 3, discrete=discrete)
    size = hankelred.norm((A, B, C, D), "hinf", dt=discrete)
    system = A, B / (1.05 * size), C, D / (1.05 * size)
    reduction = reduce(system, order, method="bounded_real", dt=discrete)
    assert np.linalg.norm(response(reduction.system, grid(discrete)), 2, axis=(1, 2)).max() <= 1
    seen = gains(difference(system, reduction.system), np.linspace(0, 3, 300), discrete=discrete).max()
    assert seen <= reduction.error() * (1 + 1e-6) <= reduction.error_bound * (1 + 1e-6)


def ladder(n):
    """A passive RLC ladder seen from its port, with a resistance in series."""
    A = np.zeros((n, n))
    for k in range(n - 1):
        A[k, k + 1], A[k + 1, k] = -1.0, 1.0
    return A - 0.1 * np.eye(n), np.eye(n, 1), np.eye(1, n), np.array([[0.2]])


@pytest.mark.parametrize("order", [1, 4, 7])
def test_a_passive_ladder_stays_passive(order):
    system = ladder(10)
    reduction = reduce(system, order, method="positive_real")
    H = response(reduction.system, grid(False, 2000))[:, 0, 0]
    assert H.real.min() > 0
    assert reduction.error_bound == np.inf
    # the Riccati equation of positive realness itself
    A, B, C, D = system
    X = -sla.solve_continuous_are(A, B, np.zeros((10, 10)), -(D + D.T), s=-C.T)
    Y = -sla.solve_continuous_are(A.T, C.T, np.zeros((10, 10)), -(D + D.T), s=-B)
    values = np.sort(np.sqrt(np.abs(np.linalg.eigvals(X @ Y))))[::-1]
    np.testing.assert_allclose(reduction.hankel_singular_values, values, rtol=1e-5)


def test_passive_in_discrete_time_and_by_tolerance():
    A, B, C, D = random_system(7, 6, 2, 2, discrete=True)
    size = hankelred.norm((A, B, C, 0 * D), "hinf", dt=True)
    system = A, B, C, 1.1 * size * np.eye(2)
    reduction = reduce(system, tol=0.3, method="positive_real", dt=True)
    assert reduction.error() <= 0.3 < reduction.at(reduction.order - 1).error()
    H = response(reduction.system, grid(True))
    assert np.linalg.eigvalsh(H + H.conj().transpose(0, 2, 1)).min() > 0


def test_models_that_are_not_passive():
    A, B, C, D = random_system(8, 4, 2, 2)
    with pytest.raises(ModelError, match="gain below 1"):
        reduce((A, 10 * B, C, D), 2, method="bounded_real")
    with pytest.raises(ModelError, match="positive definite"):
        reduce((A, B, C, 0 * D), 2, method="positive_real")
    with pytest.raises(ModelError, match="strictly passive"):
        reduce((A, 10 * B, C, np.eye(2)), 2, method="positive_real")
    with pytest.raises(ModelError, match="as many outputs"):
        reduce((A, B, C[:1], D[:1]), 2, method="positive_real")
    with pytest.raises(UnstableError, match=r"minimal\(\) if they are hidden"):
        reduce((-A, B, C, D), 2, method="bounded_real")


def test_the_remedies_for_marginal_poles_work():
    # the messages of refusals name them: a port with an ideal capacitor in series, and a drifting sensor
    port = control.ss(*ladder(8)) + control.ss(0, 1, 0.5, 0)
    with pytest.raises(UnstableError, match=r"separate them by split\(\).*passive too"):
        reduce(port, 4, method="positive_real")
    stable, marginal = hankelred.split(port)
    system = reduce(stable, 4, method="positive_real").system + marginal
    assert system.nstates == 5 and np.isclose(system.poles(), 0).sum() == 1
    assert response(control.ssdata(system), grid(False, 2000)).real.min() > 0
    A, B, C, D = random_system(9, 6, 1, 1)
    sensor = control.ss(A, B, C, 2 * np.ones((1, 1))) + control.ss(0, 1, 0.5, 0)
    with pytest.raises(UnstableError, match=r"separate them by split\(\)"):
        reduce(sensor, 4, method="stochastic")
    stable, marginal = hankelred.split(sensor)
    reduction = reduce(stable, 4, method="stochastic")
    apart = gain_of(sensor, reduction.system + marginal)
    assert apart <= reduction.error_bound
    # hidden unstable poles are removed by minimal()
    hidden = sla.block_diag(A, 1.0), np.vstack([0.05 * B, [[0.0]]]), np.hstack([C, [[1.0]]]), 0 * D
    with pytest.raises(UnstableError, match="minimal"):
        reduce(hidden, 2, method="bounded_real")
    assert reduce(hankelred.minimal(hidden), 2, method="bounded_real").order == 2


# --- modes


def test_modes_by_hand():
    # residues 1, 10 and 1 at -1, -100 and -5: largest gains 1, 0.1 and 0.2
    system = np.diag([-1.0, -100.0, -5.0]), np.ones((3, 1)), np.array([[1.0, 10.0, 1.0]]), 0
    reduction = reduce(system, 1, method="modal")
    np.testing.assert_allclose(reduction.system[0], [[-1.0]])
    np.testing.assert_allclose(2 * reduction.hankel_singular_values, [1, 0.2, 0.1])
    assert reduction.error_bound == pytest.approx(0.3)
    assert reduce(system, tol=0.11, method="modal").order == 2


@pytest.mark.filterwarnings("ignore:order .* was requested")
@pytest.mark.parametrize("discrete", [False, True])
def test_modes_keep_poles_and_their_bound(discrete):
    system = random_system(9, 9, 2, 2, discrete=discrete)
    poles = np.linalg.eigvals(system[0])
    for order in range(1, 9):
        reduction = reduce(system, order, method="modal", dt=discrete)
        assert reduction.order in (order, order - 1)
        for pole in np.linalg.eigvals(reduction.system[0]):
            assert np.abs(poles - pole).min() < 1e-10
        assert reduction.error() <= reduction.error_bound * (1 + 1e-9)
        np.testing.assert_allclose(
            reduction.left.T @ system[0] @ reduction.right, reduction.system[0], atol=1e-9
        )


def test_a_pair_is_not_cut():
    system = [[-0.1, 1], [-1, -0.1]], [[1], [0]], [[1, 0]], 0
    with pytest.warns(ReductionWarning, match="conjugate pair"):
        assert reduce(system, 1, method="modal").order == 0


def test_modes_of_modal_and_unstable_models():
    model = ModalSystem(np.array([-1 + 2j, -1 - 2j, -9.0]), np.ones((3, 1)), np.ones((1, 3)), 0)
    reduction = reduce(model, 2, method="modal")
    assert isinstance(reduction.system, ModalSystem)
    np.testing.assert_allclose(np.sort_complex(reduction.system.log_poles), [-1 - 2j, -1 + 2j])
    system = np.diag([0.5, -1.0, -3.0]), np.ones((3, 1)), np.ones((1, 3)), 0
    reduction = reduce(system, 2, method="modal")
    assert reduction.unstable_order == 1
    assert reduction.error() == pytest.approx(1 / 3) == pytest.approx(reduction.error_bound)


# --- properties


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["stochastic", "coprime", "hankel_norm", "modal"]),
    st.booleans(),
)
def test_all_states_are_the_model_and_coordinates_do_not_matter(seed, method, discrete):
    system = random_system(seed, 4, 2, 2, discrete=discrete)
    options = {"regularization": 0.5} if method == "stochastic" else {}
    reduction = reduce(system, method=method, dt=discrete, **options)
    size = hankelred.norm(system, "hinf", dt=discrete)
    assert reduction.order == 4 and reduction.error() <= 1e-7 * size
    other = similar(*system, np.random.default_rng(seed))
    values = reduce(other, method=method, dt=discrete, **options).hankel_singular_values
    np.testing.assert_allclose(values, reduction.hankel_singular_values, rtol=1e-5, atol=1e-7 * size)
