"""Hankel singular values against multiprecision, published values, closed forms and slycot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg as sla
from helpers.data import slicot_model
from helpers.reference import (
    all_pass,
    damped_chain,
    exact_gramians,
    exact_hsv,
    heat,
    near_nonminimal,
    random_system,
    slow_pole,
)

import hankelred
from hankelred import hankel_singular_values
from hankelred.reduction.balancing import BalancedFactors


def leading_right(values, exact, share=0.01):
    """How many leading values are right to the given share."""
    wrong = np.abs(values - exact) > share * exact
    return int(np.argmax(wrong)) if np.any(wrong) else values.size


def worst_large(values, exact, least=1e-8):
    """Largest relative error among the values above least times the first."""
    large = exact > least * exact[0]
    return float(np.max(np.abs(values[large] / exact[large] - 1)))


def test_reference_agrees_with_a_closed_form():
    # the oracle itself, on 1 / (s + 1) + 1 / (s + 2), whose cross Gramian is b_i c_j / (a_i + a_j)
    A, B, C = np.diag([-1.0, -2.0]), np.ones((2, 1)), np.ones((1, 2))
    cross = np.array([[1 / 2, 1 / 3], [1 / 3, 1 / 4]])
    expected = np.sort(np.abs(np.linalg.eigvals(cross)))[::-1]
    np.testing.assert_allclose(exact_hsv(A, B, C), expected, rtol=1e-13)
    shift = np.diag(np.ones(2), -1)
    exact = exact_hsv(shift, np.eye(3)[:, :1], np.array([[3.0, 2.0, 1.0]]), discrete=True)
    np.testing.assert_allclose(exact, np.linalg.svd(sla.hankel([3.0, 2, 1]))[1], rtol=1e-13)


@pytest.mark.slow
def test_heat_equation():
    system = heat(30)
    exact, values = exact_hsv(*system[:3]), hankel_singular_values(system)
    assert leading_right(values, exact) >= 20
    assert worst_large(values, exact) < 1e-9


@pytest.mark.slow
def test_near_nonminimal():
    system = near_nonminimal(30)
    exact, values = exact_hsv(*system[:3]), hankel_singular_values(system)
    assert leading_right(values, exact) >= 28
    assert worst_large(values, exact) < 1e-11


@pytest.mark.slow
def test_pde_benchmark():
    system, published = slicot_model("pde")
    exact, values = exact_hsv(*system[:3], bits=420), hankel_singular_values(system)
    assert worst_large(exact[: published.size], published) < 1e-7
    assert leading_right(values, exact) >= 34
    assert worst_large(values, exact) < 1e-10


@pytest.mark.parametrize("distance", [1e-6, 1e-9, 1e-11])
def test_pole_near_the_axis(distance):
    system = slow_pole(distance)
    exact, values = exact_hsv(*system[:3]), hankel_singular_values(system)
    assert worst_large(values, exact) < 1e-9
    assert leading_right(values, exact) == 21


@pytest.mark.parametrize("distance", [1e-6, 1e-9, 1e-11])
def test_pole_near_the_circle(distance):
    # the pole is alone in its block, so that rounding does not move it
    A, B, C, D = random_system(1, 12, 2, 2, discrete=True, margin=0.5, direct=False)
    rng = np.random.default_rng(1)
    A = sla.block_diag(A, 1 - distance)
    system = A, np.vstack([B, rng.standard_normal((1, 2))]), np.hstack([C, rng.standard_normal((2, 1))]), D
    exact = exact_hsv(*system[:3], discrete=True)
    values = hankel_singular_values(system, dt=True)
    assert worst_large(values, exact, least=1e-13) < 1e-9
    assert leading_right(values, exact) == 13


@pytest.mark.parametrize("name", ["iss", "build", "heat-cont", "pde"])
def test_published_values(name):
    system, published = slicot_model(name)
    values = hankel_singular_values(system)
    assert values.size == system[0].shape[0]
    assert worst_large(values[: published.size], published) < 1e-7


@pytest.mark.parametrize(
    "system, discrete, tolerance",
    [
        (damped_chain(8, 1e-2), False, 1e-11),
        (damped_chain(8, 1e-6, m=2), False, 1e-7),
        (all_pass([-1, -2, -3, -1e-3]), False, 1e-12),
        (random_system(1, 12, 2, 3, discrete=True), True, 1e-12),
        (random_system(2, 12, 2, 3, discrete=True, margin=1e-6), True, 1e-7),
        (random_system(3, 12, 3, 1, margin=1e-6), False, 1e-7),
        (random_system(4, 10, 2, 2, complex_=True), False, 1e-12),
        (random_system(5, 10, 2, 2, complex_=True, margin=1e-6), False, 1e-7),
        (random_system(6, 10, 2, 2, complex_=True, margin=1e-6, discrete=True), True, 1e-7),
        (random_system(7, 1, 3, 2), False, 1e-13),
    ],
)
def test_many_kinds_against_multiprecision(system, discrete, tolerance):
    exact = exact_hsv(*system[:3], discrete=discrete)
    values = hankel_singular_values(system, dt=discrete)
    assert worst_large(values, exact) < tolerance


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("discrete", [False, True])
def test_states_in_any_unit(seed, discrete):
    # Story: with states in units of 1e-8 to 1e8 the peers refuse, or give an unstable model and bound 0.
    n = 12
    A, B, C, D = random_system(seed, n, 2, 2, discrete=discrete)
    unit = 10.0 ** np.random.default_rng(seed).uniform(-8, 8, n)
    scaled = A * unit[:, None] / unit, B * unit[:, None], C / unit, D
    values = hankel_singular_values((A, B, C, D), dt=discrete)
    np.testing.assert_allclose(hankel_singular_values(scaled, dt=discrete), values, rtol=1e-8)
    for order in (1, 5, 11):
        reduction = hankelred.reduce(scaled, order, dt=discrete)
        poles = np.linalg.eigvals(reduction.system[0])
        assert np.all(np.abs(poles) < 1) if discrete else np.all(poles.real < 0)
        # the error is that of two gains subtracted, so it carries their rounding
        assert 0 < reduction.error() <= reduction.error_bound * (1 + 1e-6) + 1e-9 * values[0]
        np.testing.assert_allclose(
            reduction.left.T @ scaled[0] @ reduction.right, reduction.system[0], atol=1e-8
        )


@pytest.mark.parametrize("rate", [1e-12, 1e-6, 1e6, 1e12])
def test_time_in_any_unit(rate):
    A, B, C, D = random_system(0, 7, 2, 2)
    values = hankel_singular_values((A, B, C, D))
    np.testing.assert_allclose(hankel_singular_values((rate * A, rate * B, C, D)), values, rtol=1e-11)
    np.testing.assert_allclose(hankel_singular_values((rate * A, B, C, D)), values / rate, rtol=1e-11)


@pytest.mark.parametrize("gain", [1e-150, 1e-20, 1e20, 1e150])
def test_gain_in_any_unit(gain):
    A, B, C, D = random_system(0, 7, 2, 2)
    values = hankel_singular_values((A, B, C, D))
    np.testing.assert_allclose(hankel_singular_values((A, gain * B, C, D)), gain * values, rtol=1e-11)
    np.testing.assert_allclose(hankel_singular_values((A, B, gain * C, D)), gain * values, rtol=1e-11)
    np.testing.assert_allclose(hankel_singular_values((A, gain * B, C / gain, D)), values, rtol=1e-11)
    reduction = hankelred.reduce((A, gain * B, C, D), 3)
    assert 0 < reduction.error() <= reduction.error_bound * (1 + 1e-9)


def oscillators_and_lags(seed):
    """Two oscillators and three lags, uncoupled, two inputs and outputs."""
    rng = np.random.default_rng(seed)
    blocks = [[[-d, w], [-w, -d]] for w, d in zip(*10 ** rng.uniform([[-1] * 2, [-3] * 2], 0), strict=True)]
    A = sla.block_diag(*blocks, *-(10 ** rng.uniform(-1, 1, 3)))
    return A, rng.standard_normal((7, 2)), rng.standard_normal((2, 7)), np.zeros((2, 2))


@pytest.mark.parametrize(
    "b, c", [(0, -50), (0, -60), (20, -80), (-50, 0), (0, -150), (119, 119), (60, 60), (-119, -119)]
)
@pytest.mark.parametrize("seed", range(2))
def test_inputs_and_outputs_in_units_far_apart(seed, b, c):
    """Story: with |C| / |B| = 1e-60 the values were 97 % off and the bound was 0, in silence.

    A lag could be scaled into the middle, an oscillator not: its two states are tied to each other more
    strongly than to the ports, and moved in small steps until the sweeps were over. The states were then 30
    decades apart, and small rows of the factors were taken for rounding. With gains of 1e119 squares
    overflowed.
    """
    A, B, C, D = oscillators_and_lags(seed)
    values, reduction = exact_hsv(A, B, C), hankelred.reduce((A, B, C, D), 3)
    gain = 10.0 ** (b + c)
    scaled = A, B * 10.0**b, C * 10.0**c, D
    np.testing.assert_allclose(hankel_singular_values(scaled), values * gain, rtol=1e-11)
    other = hankelred.reduce(scaled, 3)
    assert hankelred.reduce(scaled).order == 7
    for name in ("error_bound", "noise_floor"):
        np.testing.assert_allclose(getattr(other, name), getattr(reduction, name) * gain, rtol=1e-9)
    np.testing.assert_allclose(other.error(), reduction.error() * gain, rtol=1e-5)
    for kind in ("h2", "hinf", "hankel"):
        np.testing.assert_allclose(
            hankelred.norm(scaled, kind), hankelred.norm((A, B, C, D), kind) * gain, rtol=2e-6
        )
    A_r, B_r, C_r, _ = other.system
    np.testing.assert_allclose(other.left.T @ A @ other.right, A_r, atol=1e-10)
    np.testing.assert_allclose(other.left.T @ scaled[1], B_r, rtol=1e-8)
    np.testing.assert_allclose(scaled[2] @ other.right, C_r, rtol=1e-8)
    np.testing.assert_allclose(
        hankelred.gramian(scaled), hankelred.gramian((A, B, C, D)) * 10.0 ** (2 * b), rtol=1e-9
    )


@pytest.mark.parametrize("apart", [30, 60, 100])
@pytest.mark.parametrize("seed", range(3))
def test_every_block_in_units_of_its_own(seed, apart):
    # the relative of the story above: no common factor of B and of C brings these blocks together
    A, B, C, D = oscillators_and_lags(seed)
    unit = 10.0 ** (apart * np.array([1, 1, -1, -1, 0, 1, -1]))
    scaled = A, B * unit[:, None], C / unit, D
    np.testing.assert_allclose(hankel_singular_values(scaled), exact_hsv(A, B, C), rtol=1e-11)
    other = hankelred.reduce(scaled, 3)
    np.testing.assert_allclose(other.error(), hankelred.reduce((A, B, C, D), 3).error(), rtol=1e-5)
    assert other.error() <= other.error_bound


def test_rates_far_from_one_in_a_transfer_function():
    # Story: ten poles at 1e8 rad/s gave two infinite values, because the scaling of the companion
    # matrix stopped after 40 sweeps; only the unit of time had changed.
    control = pytest.importorskip("control")
    poles = -np.arange(1.0, 11.0)
    slow = control.tf([np.prod(-poles)], np.poly(poles))
    fast = control.tf([np.prod(-1e8 * poles)], np.poly(1e8 * poles))
    np.testing.assert_allclose(hankel_singular_values(fast), hankel_singular_values(slow), rtol=1e-6)


@pytest.mark.parametrize("a", [1e-12, 0.5, 3.0, 1e12])
def test_first_order_closed_form(a):
    # c b / (s + a) has the one value |c b| / 2a; in discrete time c b / (z - a) has |c b| / (1 - a^2)
    np.testing.assert_allclose(
        hankel_singular_values(([[-a]], [[3.0]], [[-0.25]], 7.0)), [0.375 / a], rtol=1e-14
    )
    if a < 1:
        values = hankel_singular_values(([[-a]], [[3.0]], [[-0.25]], 7.0), dt=0.1)
        np.testing.assert_allclose(values, [0.75 / (1 - a * a)], rtol=1e-14)


def test_all_pass_closed_form():
    values = hankel_singular_values(all_pass([-0.1, -1, -1, -30, -500], gain=-2.5))
    np.testing.assert_allclose(values, np.full(5, 2.5), rtol=1e-12)


def test_finite_impulse_response_closed_form():
    # A is nilpotent, every pole is 0 and defective; the values are those of the Hankel matrix of h
    h = np.array([1.0, -2.0, 3.0, 0.5, 5.0, -0.1])
    A = np.diag(np.ones(5), -1)
    values = hankel_singular_values((A, np.eye(6)[:, :1], h[None, :], 0), dt=True)
    np.testing.assert_allclose(values, np.linalg.svd(sla.hankel(h))[1], rtol=1e-13, atol=1e-14)


def test_two_equal_slow_poles():
    # Story: the Jordan block of a double pole at -1e-6 was called an integrator chain, because the
    # first order condition number of a multiple pole is infinite.
    for distance in (1e-5, 1e-6):
        A = sla.block_diag(-1.0, [[-distance, 1.0], [0.0, -distance]])
        B, C = np.ones((3, 1)), np.ones((1, 3))
        np.testing.assert_allclose(hankel_singular_values((A, B, C, 0)), exact_hsv(A, B, C), rtol=1e-9)


def test_defective_matrix():
    A = -np.eye(8) + np.diag(np.ones(7), 1)
    B, C = np.eye(8)[:, -1:], np.eye(8)[:1]
    values, exact = hankel_singular_values((A, B, C, 0)), exact_hsv(A, B, C)
    assert worst_large(values, exact) < 1e-11


def test_strongly_nonnormal():
    # shear of 1e6 between the states: the powers of A grow before they fall
    A = np.diag(-np.arange(1.0, 9.0)) + np.triu(1e3 * np.ones((8, 8)), 1)
    B, C = np.ones((8, 1)), np.ones((1, 8))
    assert worst_large(hankel_singular_values((A, B, C, 0)), exact_hsv(A, B, C)) < 1e-8


@pytest.mark.parametrize("discrete", [False, True])
def test_gramians_against_multiprecision(discrete):
    A, B, C, D = random_system(11, 9, 2, 3, discrete=discrete)
    P, Q = exact_gramians(A, B, C, discrete=discrete)
    np.testing.assert_allclose(
        hankelred.gramian((A, B, C, D), dt=discrete), P, rtol=1e-11, atol=1e-13 * P.max()
    )
    W = hankelred.gramian((A, B, C, D), "observability", dt=discrete)
    np.testing.assert_allclose(W, Q, rtol=1e-11, atol=1e-13 * Q.max())


def test_factor_carries_twice_the_digits():
    # the smallest eigenvalue of W is 1e-30 of the largest: lost in W, kept in the factor
    A, B, C, D = heat(20)
    L = hankelred.gramian((A, B, C, D), factor=True)
    P, _ = exact_gramians(A, B, C)
    np.testing.assert_allclose(L @ L.T, P, rtol=1e-10, atol=1e-14 * P.max())
    exact = exact_hsv(A, B, np.eye(20))
    through_factor = hankel_singular_values((A, B, np.eye(20), np.zeros((20, 1))))
    assert leading_right(through_factor, exact) >= 18
    in_w = np.sort(np.abs(np.linalg.eigvalsh(L @ L.T)))[::-1]
    assert np.linalg.svd(L, compute_uv=False)[-1] ** 2 < 1e-3 * in_w[-1]


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_slycot(seed):
    slycot = pytest.importorskip("slycot", reason="slycot is not installed (extra slycot)")
    A, B, C, D = random_system(seed, 25, 3, 2)
    _, _, _, _, hsv = slycot.ab09ad("C", "B", "N", 25, 3, 2, A, B, C, nr=25)
    np.testing.assert_allclose(hankel_singular_values((A, B, C, D)), hsv, rtol=1e-9, atol=1e-12 * hsv[0])
    A, B, C, D = random_system(seed, 25, 3, 2, discrete=True)
    _, _, _, _, hsv = slycot.ab09ad("D", "B", "N", 25, 3, 2, A, B, C, nr=25)
    np.testing.assert_allclose(
        hankel_singular_values((A, B, C, D), dt=True), hsv, rtol=1e-9, atol=1e-12 * hsv[0]
    )


def test_closed_form_of_a_slow_discrete_pole():
    # exp(-1e-9): 1 - |pole|^2 from the float pole has 7 digits, from its logarithm 16
    modal = hankelred.ModalSystem([-1e-9], [[1.0]], [[1.0]])
    exact = 1 / -math.expm1(-2e-9)
    np.testing.assert_allclose(hankel_singular_values(modal), [exact], rtol=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_quadruple_poles_in_discrete_time(seed):
    """Story: two quadruple poles, powers of A up to 700, and a singular value was off by 1.2e-6 of itself.

    The residual of doubling was small, as it is for every backward stable step; squaring powers of a matrix
    far from normal loses what their size is over 1. Such matrices go to Hammarling's method now.
    """
    rng = np.random.default_rng(seed)
    A = np.zeros((8, 8))
    for start, pole in ((0, -0.8), (4, 0.6)):
        block = slice(start, start + 4)
        A[block, block] = pole * np.eye(4) + np.diag(rng.uniform(2, 3, 3), 1)
    Q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    system = Q @ A @ Q.T, rng.standard_normal((8, 3)), rng.standard_normal((1, 8)), np.zeros((1, 3))
    exact = exact_hsv(*system[:3], discrete=True)
    np.testing.assert_allclose(hankelred.hankel_singular_values(system, dt=True), exact, rtol=3e-12)


def unreachable_beside(first, seed, *, discrete):
    """Return a model in mixed states whose first part alone is driven: the other values are rounding."""
    rng = np.random.default_rng(seed)
    k, n = first.shape[0], int(rng.integers(1, 4))
    A = sla.block_diag(first, random_system(seed + 1000, n, discrete=discrete)[0])
    B = np.concatenate([rng.standard_normal((k, 1)), np.zeros((n, 1))])
    C, T = rng.standard_normal((1, k + n)), rng.standard_normal(A.shape)
    return T @ A @ np.linalg.inv(T), T @ B, C @ np.linalg.inv(T), np.zeros((1, 1))


@pytest.mark.parametrize(
    "part, seed", [*(("delays", seed) for seed in (0, 4, 9, 24)), *(("random", s) for s in (2, 13, 24, 30))]
)
def test_the_noise_floor_covers_what_doubling_loses_where_powers_grow(part, seed):
    """Story: a chain of delays had a state of 9.4e-10 where 1.2e-11 is exact, and a noise floor of 3.3e-11.

    The powers of its A reach 400 before they vanish, and squaring them rounds by eps times the square of
    that; n eps sigma_1, the floor of a backward stable solver, does not count it. Relatives: matrices without
    delays.
    """
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 8))
    first = random_system(seed, k, discrete=True)[0]
    if part == "delays":
        first = np.eye(k, k=-1) * rng.uniform(0.5, 3)
    system = unreachable_beside(first, seed, discrete=True)
    reduction, exact = hankelred.reduce(system, dt=True), exact_hsv(*system[:3], discrete=True)
    values, floor = reduction.hankel_singular_values, reduction.noise_floor
    assert reduction.solver == "smith"
    assert np.all(np.abs(values - exact) <= floor + 1e-8 * exact)
    assert reduction.order <= np.count_nonzero(exact > 0.5 * floor)


@pytest.mark.parametrize("discrete", [True, False])
def test_the_noise_floor_of_other_matrices_is_that_of_the_largest_value(discrete):
    # the other side: powers that do not grow lose nothing, and Hammarling's method is backward stable
    rng, n = np.random.default_rng(0), 20
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    for slowest, solver in ((0.1, "smith"), (1e-12, "hammarling")):
        rates = np.append(rng.uniform(0.2, 0.9, n - 1), slowest)
        A = Q @ np.diag(1 - rates if discrete else -rates) @ Q.T
        system = A, rng.standard_normal((n, 2)), rng.standard_normal((2, n)), np.zeros((2, 2))
        reduction = hankelred.reduce(system, dt=discrete)
        assert reduction.solver == solver
        least = n * np.finfo(float).eps * reduction.hankel_singular_values[0]
        assert least <= reduction.noise_floor <= 3 * least


def test_a_multiple_slow_pole_keeps_its_states():
    # powers of A grow to 1e8, all values but the last are right to 1e-5, and a floor of |A| |Lc| |Lo| eps is
    # larger than the second of them
    system = (
        sla.companion(np.poly([-1e-3] * 4 + [-100.0])),
        np.eye(5)[:, :1],
        np.eye(5)[-1:],
        np.zeros((1, 1)),
    )
    reduction, exact = hankelred.reduce(system), exact_hsv(*system[:3])
    assert reduction.order == 4 and exact[3] > 1e-3 * exact[0]
    np.testing.assert_allclose(reduction.hankel_singular_values[:4], exact[:4], rtol=1e-4)


@pytest.mark.parametrize("smallest", [1e-7, 1e-30])
def test_balanced_states_of_small_values_have_all_digits(smallest):
    """One-sided Jacobi left balanced states of values below 1e-10 with errors of 1e-10, in twice the time.

    The truth is a singular value decomposition with 80 digits. Of the two cases one takes divide and conquer,
    the other one the QR iteration.
    """
    mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed (extra test)")
    rng = np.random.default_rng(7)
    scales = np.geomspace(1, math.sqrt(smallest), 14)
    Lc, Lo = rng.standard_normal((14, 14)) * scales, rng.standard_normal((14, 14)) * scales
    product = Lo.T @ Lc
    balanced = BalancedFactors.of(Lc, Lo)
    with mpmath.workdps(80):
        U, values, Vh = mpmath.svd_r(mpmath.matrix(product.tolist()))
        right = np.array((mpmath.matrix(Lc.tolist()) * Vh.T).tolist(), dtype=float)
        left = np.array((mpmath.matrix(Lo.tolist()) * U).tolist(), dtype=float)
        values = np.array([float(value) for value in values])
    assert values[-1] < smallest * 10 * values[0]
    np.testing.assert_allclose(balanced.values, values, rtol=1e-12)
    for exact, computed in ((right, Lc @ balanced.V), (left, Lo @ balanced.U)):
        signs = np.sign(np.sum(exact * computed, axis=0))
        errors = np.linalg.norm(computed * signs - exact, axis=0) / np.linalg.norm(exact, axis=0)
        assert errors.max() < 1e-12
