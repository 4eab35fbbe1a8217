"""Systems on which other programs fall; each test opens with what was seen there."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla
from helpers.reference import damped_chain, difference, exact_hsv, frequency_grid, gains, heat, random_system

import hankelred

control = pytest.importorskip("control")


@pytest.mark.parametrize("order", [2, 4, 6])
def test_discrete_balred(order):
    # python-control's balred, discrete: asked for 2, 4, 6 states it returns 6 or 8, with an error 3.6
    # times the valid bound, dt=0 and the names gone; without a word.
    system = random_system(12, 10, 2, 2, discrete=True, margin=0.05)
    plant = control.ss(*system, 0.2, inputs=["a", "b"], outputs=["c", "d"], name="plant")
    r = hankelred.reduce(plant, order)
    assert (r.system.nstates, r.system.dt, r.system.name) == (order, 0.2, "plant")
    assert (r.system.input_labels, r.system.output_labels) == (["a", "b"], ["c", "d"])
    reduced = r.system.A, r.system.B, r.system.C, r.system.D
    w = frequency_grid(system[0], discrete=True)
    assert gains(difference(system, reduced), w, discrete=True).max() <= r.error_bound
    assert np.all(np.abs(r.system.poles()) < 1)


def test_discrete_hsvd():
    # control's hsvd raises in discrete time.
    system = random_system(12, 10, 2, 2, discrete=True)
    values = hankelred.hankel_singular_values(control.ss(*system, True))
    np.testing.assert_allclose(values, exact_hsv(*system[:3], discrete=True), rtol=1e-9)


def test_square_roots_of_eigenvalues():
    # hsvd takes sqrt(eig(Wc Wo)): complex, NaN, unsorted, and every value below 1e-8 sigma_1 lost.
    values = hankelred.hankel_singular_values(control.ss(*heat(30)))
    assert values.dtype == float and np.all(values >= 0) and np.all(np.diff(values) <= 0)
    assert np.all(np.isfinite(values))


def test_gramian_of_a_discrete_model():
    # control's gram was silently the continuous one for a discrete model (issue 967 there).
    A, B, C, D = random_system(3, 5, 1, 1, discrete=True)
    W = hankelred.gramian(control.ss(A, B, C, D, True))
    np.testing.assert_allclose(W, sla.solve_discrete_lyapunov(A, B @ B.T), rtol=1e-10)


def test_large_lightly_damped_model():
    # pyMOR changes to a low-rank method from n >= 1000 on; sigma_1 was off by 88 %, with only a log line.
    # Modal form makes the truth cheap: 2 x 2 blocks with known Gramians, weakly coupled by construction.
    n = 240
    w = np.linspace(1, 50, n // 2)
    A = sla.block_diag(*[[[-1e-3 * x, x], [-x, -1e-3 * x]] for x in w])
    B = np.tile([[1.0], [0.0]], (n // 2, 1))
    system = A, B, B.T, np.zeros((1, 1))
    r = hankelred.reduce(system, 20)
    modal = hankelred.modal_form(system)
    truth = hankelred.hankel_singular_values(modal)  # closed form, another solver
    np.testing.assert_allclose(r.hankel_singular_values, truth, rtol=1e-9)
    assert r.residual < 1e-12
    assert r.error() <= r.error_bound


@pytest.mark.parametrize("dt", [0, True])
def test_unstable_pole_neither_dropped_nor_moved(dt):
    # pyMOR continues with indefinite Gramians: the pole was dropped, or moved from .5 to .468.
    stable = random_system(1, 6, 1, 1, discrete=bool(dt))
    pole = 1.5 if dt else 0.5
    system = (
        sla.block_diag(pole, stable[0]),
        np.vstack([[[1.0]], stable[1]]),
        np.hstack([[[1.0]], stable[2]]),
        stable[3],
    )
    for order in range(1, 8):
        poles = np.linalg.eigvals(hankelred.reduce(system, order, dt=dt).system[0])
        outside = poles[np.abs(poles) > 1] if dt else poles[poles.real > 0]
        np.testing.assert_allclose(outside, [pole], rtol=1e-13)


def test_edges_without_a_bare_assertion():
    # pyMOR: r=0, r=n, B=0 and a static gain end in AssertionError ''.
    A, B, C, D = random_system(1, 4, 1, 1)
    assert hankelred.reduce((A, B, C, D), 0).order == 0
    assert hankelred.reduce((A, B, C, D), 4).order == 4
    assert hankelred.reduce((A, 0 * B, C, D)).order == 0
    assert hankelred.reduce(([], [], [], 2.0)).order == 0


def test_scaled_states_with_match_dc():
    # control's balred(method='matchdc') gave an unstable model and the bound 0 for states in units of
    # 1e-8 to 1e8; others refused.
    A, B, C, D = random_system(4, 10, 1, 1)
    unit = 10.0 ** np.linspace(-8, 8, 10)
    scaled = A * unit[:, None] / unit, B * unit[:, None], C / unit, D
    for order in range(1, 10):
        r = hankelred.reduce(scaled, order, method="residualization")
        assert np.all(np.linalg.eigvals(r.system[0]).real < 0)
        assert 0 < r.error() <= r.error_bound * (1 + 1e-6)
        np.testing.assert_allclose(
            r.system[3] - r.system[2] @ np.linalg.solve(r.system[0], r.system[1]),
            D - C @ np.linalg.solve(A, B),
            rtol=1e-9,
        )


def test_cross_gramian_of_many_ports():
    # emgr's Wx of a MIMO system was wrong by 100 %.
    A, B, C, D = random_system(5, 6, 3, 3)
    X = hankelred.gramian((A, B, C, D), "cross")
    np.testing.assert_allclose(X, sla.solve_sylvester(A, A, -B @ C), rtol=1e-8, atol=1e-10 * np.abs(X).max())


def test_wrong_vacuous_bound_is_seen():
    # a bound above the gain of the model certifies nothing: error() says what is really lost
    system = damped_chain(8, 1e-2)
    r = hankelred.reduce(system, 2)
    assert r.error() < r.error_bound
    assert r.error() <= hankelred.norm(system, "hinf") + hankelred.norm(r.system, "hinf")


def test_no_value_is_nan_or_negative_on_the_hard_ones():
    for system in (heat(30), damped_chain(20, 1e-9), (np.zeros((3, 3)), np.ones((3, 1)), np.ones((1, 3)), 0)):
        values = hankelred.hankel_singular_values(system)
        assert not np.any(np.isnan(values)) and np.all(values >= 0)
