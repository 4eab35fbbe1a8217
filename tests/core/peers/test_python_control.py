"""The numerical cases of python-control's test suite: its inputs, and the results it expects.

Source: python-control (BSD-3-Clause), test files modelsimp, statefbk, sysnorm, timeresp, matlab, minreal,
canonical, convert and mateqn; most of its numbers come from MATLAB. Only numbers are taken, the tolerance is
half a unit of the last digit it prints or the one it states. Cases with drawn numbers are drawn here.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla
from helpers.printed import half_unit, response_at, table

import hankelred
from hankelred import hankel_singular_values, norm, simulate

control = pytest.importorskip("control")


def sampled(A, B, C, D, dt):
    """Zero-order hold by one exponential."""
    n, m = B.shape
    E = sla.expm(dt * np.block([[A, B], [np.zeros((m, n + m))]]))
    return E[:n, :n], E[:n, n:], C, D


# Hankel singular values and reduction ------------------------------------------------

SISO = table("1 -2\n3 -4"), table("5\n7"), table("6 8"), table("9")
MIMO = table("1 -2\n3 -4"), table("5 6\n7 8"), table("4 5\n6 7"), table("13 14\n15 16")
TWICE = tuple(np.kron(np.eye(2), M) for M in SISO)
# controllable canonical form of (s^3 + 11 s^2 + 45 s + 32) / (s^4 + 15 s^3 + 60 s^2 + 200 s + 60)
COMPANION = (
    table("-15 -7.5 -6.25 -1.875\n8 0 0 0\n0 4 0 0\n0 0 1 0"),
    table("2\n0\n0\n0"),
    table("0.5 0.6875 0.7031 0.5"),
    table("0"),
)


def test_hankel_singular_values():
    values = hankel_singular_values(control.ss(*SISO))
    np.testing.assert_allclose(values[0], 24.42686, atol=half_unit(5))
    np.testing.assert_allclose(values[1], 0.5731395, atol=half_unit(7))


def in_the_signs_of(expected, system):
    """Return the system with the signs of its states turned to those of the expected input matrix."""
    A, B, C, D = system
    signs = np.sign(B[:, 0] * expected[:, 0])
    return signs[:, None] * A * signs, signs[:, None] * B, C * signs, D


@pytest.mark.parametrize(
    "method, A, B, D",
    [
        ("truncation", "-1.958 -1.194\n-1.194 -0.8344", "0.9057\n0.4068", 0),
        (
            "residualization",
            "-4.43094773 -4.55232904\n-4.55232904 -5.36195206",
            "1.36235673\n1.03114388",
            -0.08383902,
        ),
    ],
)
def test_balred(method, A, B, D):
    A, B = table(A), table(B)
    # an input of four digits: the third digit of the results is not determined by it
    reduced = in_the_signs_of(B, hankelred.reduce(COMPANION, 2, method=method).system)
    np.testing.assert_allclose(reduced[0], A, atol=half_unit(2))
    for M, expected in zip(reduced[1:], (B, B.T, [[D]]), strict=True):
        np.testing.assert_allclose(M, expected, atol=half_unit(4))


@pytest.mark.parametrize(
    "method, A, B, D",
    [
        ("truncation", "-1.958 -1.194\n-1.194 -0.8344", "-0.9057\n-0.4068", 0),
        ("residualization", "-4.431 -4.552\n-4.552 -5.361", "-1.362\n-1.031", -0.08384),
    ],
)
def test_modred_of_a_balanced_realization(method, A, B, D):
    # MATLAB's balanced realization, of four digits; its Gramians are equal to 4e-3, so that cutting it is
    # reducing it to as much
    balanced = (
        table("""
            -1.958 -1.194   1.824  -1.464
            -1.194 -0.8344  2.563  -1.351
            -1.824 -2.563  -1.124   2.704
            -1.464 -1.351  -2.704 -11.08
        """),
        table("-0.9057\n-0.4068\n-0.3263\n-0.3474"),
        table("-0.9057 -0.4068 0.3263 -0.3474"),
        table("0"),
    )
    A, B = table(A), table(B)
    reduced = in_the_signs_of(B, hankelred.reduce(balanced, 2, method=method).system)
    for M, expected in zip(reduced, (A, B, B.T, [[D]]), strict=True):
        np.testing.assert_allclose(M, expected, rtol=4e-3, atol=1e-12)


def test_minreal_of_a_state_space():
    A, B = table("-2 0.5 0\n0.5 -0.3 0\n0 0 -0.1"), table("0.3 -1.3\n0.1 0\n1 0")
    C, D = table("0 0.1 0\n-0.3 -0.2 0"), table("0 -0.8\n-0.3 0")
    minimal = hankelred.reduce(control.ss(A, B, C, D)).system
    assert (minimal.nstates, minimal.ninputs, minimal.noutputs) == (2, 2, 2)
    poles = np.sort(np.linalg.eigvals(minimal.A).real)
    np.testing.assert_allclose(poles, [-2.136154, -0.1638459], atol=half_unit(6))


def test_minreal_of_a_transfer_function():
    # (s + 1)(s + 2.00000000001) / ((s + 2)(s^2 + s + 1)): a pole and a zero 1e-11 apart
    num = np.polymul([1, 1], [1, 2.00000000001])
    den = np.polymul([1, 2], [1, 1, 1])
    reduction = hankelred.reduce(control.tf(num, den), tol=1e-9)
    assert reduction.order == 2
    np.testing.assert_allclose(reduction.system.num[0][0], [1, 1], atol=1e-6)
    np.testing.assert_allclose(reduction.system.den[0][0], [1, 1, 1], atol=1e-6)


# Gramians ------------------------------------------------


@pytest.mark.parametrize(
    "system, kind, dt, expected",
    [
        (MIMO, "controllability", 0, "18.5 24.5\n24.5 32.5"),
        (MIMO, "controllability", 0.2, "3.666767 4.853625\n4.853625 6.435233"),
        (SISO, "controllability", 0, "7.166667 9.833333\n9.833333 13.5"),
        (SISO, "controllability", 0.2, "1.418978 1.946180\n1.946180 2.670758"),
        (MIMO, "observability", 0, "257.5 -94.5\n-94.5 56.5"),
        (MIMO, "observability", 0.2, "1305.369179 -440.046414\n-440.046414 333.034844"),
        (SISO, "observability", 0, "198 -72\n-72 44"),
        (SISO, "observability", 0.2, "1001.835511 -335.337663\n-335.337663 263.355793"),
    ],
)
def test_gram(system, kind, dt, expected):
    system = sampled(*system, dt) if dt else system
    np.testing.assert_allclose(hankelred.gramian(system, kind, dt=dt), table(expected), atol=half_unit(6))


@pytest.mark.parametrize(
    "kind, dt, triangle",
    [
        ("controllability", 0, "4.30116263 5.6961343\n0 0.23249528"),
        ("controllability", 0.2, "1.91488054 2.53468814\n0 0.10290372"),
        ("observability", 0, "16.04680654 -5.8890222\n0 4.67112593"),
        ("observability", 0.2, "36.12989315 -12.17956588\n0 13.59018097"),
    ],
)
def test_factor_of_gram(kind, dt, triangle):
    system = sampled(*MIMO, dt) if dt else MIMO
    factor = hankelred.gramian(system, kind, factor=True, dt=dt)
    R = np.linalg.qr(factor.T, mode="r")
    np.testing.assert_allclose(R * np.sign(np.diag(R))[:, None], table(triangle), atol=half_unit(7))


@pytest.mark.parametrize("kind", ["controllability", "observability"])
def test_gram_of_an_unstable_model_is_refused(kind):
    plant = control.tf([1], [1, -1], 0.5)
    with pytest.raises(hankelred.UnstableError, match="no Gramian"):
        hankelred.gramian(plant, kind)


@pytest.mark.parametrize(
    "A, Q, dt",
    [
        ("-1 1\n-1 0", "1 0\n0 1", 0),
        ("1 2\n-3 -4", "3 1\n1 1", 0),
        ("-0.6 0\n-0.1 -0.4", "1 0\n0 1", True),
        ("-0.6 0\n-0.1 -0.4", "3 1\n1 1", True),
    ],
)
def test_lyap_and_dlyap(A, Q, dt):
    A, Q = table(A), table(Q)
    X = hankelred.gramian((A, np.linalg.cholesky(Q), np.eye(2), 0), dt=dt)
    left = A @ X @ A.T - X if dt else A @ X + X @ A.T
    np.testing.assert_allclose(left + Q, 0, atol=1e-12)


# Norms ------------------------------------------------

THIRD_ORDER = (
    table("""
        -1.017041847539126 -0.224182952826418   0.042538079149249
        -0.310374015319095 -0.516461581407780  -0.119195790221750
        -1.452723568727942  1.7995860837102088 -1.491935830615152
    """),
    table("""
         0.312858596637428 -0.164879019209038
        -0.864879917324456  0.627707287528727
        -0.030051296196269  1.093265669039484
    """),
    table("""
         1.109273297614398  0.077359091130425 -1.113500741486764
        -0.863652821988714 -1.214117043615409 -0.006849328103348
    """),
    np.zeros((2, 2)),
)


@pytest.mark.parametrize(
    "num, den, dt, hinf, h2",
    [
        # a lag, an unstable lag and an undamped oscillator, each held for 0.1 s too
        ([1], [1, 1], 0, 1.0, 0.707106781186547),
        ([1 - np.exp(-0.1)], [1, -np.exp(-0.1)], 0.1, 1.0, 0.223513699524858),
        # python-control's 1.0 is the norm in L-infinity, which an unstable model has too
        ([1], [-1, 1], 0, np.inf, np.inf),
        ([1 - np.exp(0.1)], [1, -np.exp(0.1)], 0.1, np.inf, np.inf),
        ([1], [1, 0, 1], 0, np.inf, np.inf),
        ([1 - np.cos(0.1)] * 2, [1, -2 * np.cos(0.1), 1], 0.1, np.inf, np.inf),
    ],
)
def test_norm_of_a_transfer_function(num, den, dt, hinf, h2):
    plant = control.tf(num, den, dt)
    np.testing.assert_allclose(norm(plant, "hinf"), hinf, rtol=1e-6)
    # its value for the held lag is 1e-8 off the closed form, which is the next test
    np.testing.assert_allclose(norm(plant, "h2"), h2, rtol=2e-8)


def test_h2_norm_of_a_held_lag():
    plant = control.tf([1 - np.exp(-0.1)], [1, -np.exp(-0.1)], 0.1)
    np.testing.assert_allclose(norm(plant, "h2"), np.sqrt(np.tanh(0.05)), rtol=1e-14)


@pytest.mark.parametrize(
    "dt, hinf, h2", [(0, 4.276759162964244, 2.237461821810309), (0.1, 4.276759162964228, 0.707434962289554)]
)
def test_norm_of_a_model_with_two_ports(dt, hinf, h2):
    system = sampled(*THIRD_ORDER, dt) if dt else THIRD_ORDER
    np.testing.assert_allclose(norm(control.ss(*system, dt), "hinf"), hinf, rtol=1e-6)
    np.testing.assert_allclose(norm(control.ss(*system, dt), "h2"), h2, rtol=1e-13)


@pytest.mark.parametrize("dt", [0, 0.1])
@pytest.mark.parametrize("wn, zeta", [(1, 0), (10, 0), (100, 0), (100, 0.1)])
def test_transfer_functions_of_oscillators(wn, zeta, dt):
    # Story: a test point of the way back to a transfer function fell on the pole: LinAlgError from numpy.
    poles = np.roots([1, 2 * zeta * wn, wn**2])
    poles = np.exp(poles * dt) if dt else poles
    plant = control.tf([1], np.poly(poles).real, dt)
    reduction = hankelred.reduce(plant)
    assert reduction.order == 2 and reduction.unstable_order == (0 if zeta else 2)
    np.testing.assert_allclose(np.sort_complex(reduction.system.poles()), np.sort_complex(poles), rtol=1e-9)
    for s in (1.3 * wn * np.exp(0.7j), 1.1 + 2j):
        np.testing.assert_allclose(reduction.system(s), plant(s), rtol=1e-9)


# Impulse responses of records, and models from them ------------------------------------------------


def test_markov_of_a_constant_input_from_rest():
    # u = y = 1 from the first sample on: a gain of one without memory, if the record starts from rest
    ones = np.ones(7)
    for n in (3, 7):
        h = hankelred.markov_parameters(ones, ones, n, past="rest", dt=True).markov[:, 0, 0]
        np.testing.assert_allclose(h, np.eye(n)[0], atol=half_unit(6))


def test_markov_of_a_step_response():
    # 1 / (z + 0.5) driven by ones; cut at four parameters the last one takes the rest of the response
    y = simulate(control.tf([1], [1, 0.5], True), np.ones(100))
    h = hankelred.markov_parameters(np.ones(100), y, 100, past="rest", dt=True).markov[:, 0, 0]
    np.testing.assert_allclose(h[:3], [0, 1, -0.5], atol=half_unit(6))
    np.testing.assert_allclose(h[1:], (-0.5) ** np.arange(99), atol=1e-9)


def test_markov_of_one_parameter():
    estimate = hankelred.markov_parameters([1, 2], [2, 4], 1, past="rest", dt=True)
    np.testing.assert_allclose(estimate.markov.ravel(), [2.0], rtol=1e-12)


def two_masses():
    """Vibrations of two masses on three springs (Inman; figure 6.5 of the book it is from)."""
    m1, k1, c1, m2, k2, c2, k3, c3 = 1.0, 4.0, 1.0, 2.0, 2.0, 1.0, 6.0, 2.0
    K, damping = (
        np.array([[-(k1 + k2), k2], [k2, -(k2 + k3)]]),
        np.array([[-(c1 + c2), c2], [c2, -(c2 + c3)]]),
    )
    inverse = np.diag([1 / m1, 1 / m2])
    A = np.block([[np.zeros((2, 2)), np.eye(2)], [inverse @ K, inverse @ damping]])
    return A, np.vstack([np.zeros((2, 2)), inverse]), np.eye(2, 4), np.zeros((2, 2))


def test_markov_of_two_masses():
    plant = sampled(*two_masses(), 0.25)
    u = np.random.default_rng(0).standard_normal((2, 400))
    y = simulate(plant, u, dt=0.25)
    estimate = hankelred.markov_parameters(u, y, 100, past="rest", dt=0.25)
    exact = hankelred.impulse_response(plant, 100, dt=0.25)
    np.testing.assert_allclose(estimate.markov, exact, atol=half_unit(6))


@pytest.mark.parametrize("states, n, samples", [(2, 2, 2), (2, 5, 5), (5, 2, 2), (5, 5, 5), (5, 10, 10)])
def test_markov_of_short_records(states, n, samples):
    rng = np.random.default_rng(states + n)
    poles = -rng.uniform(0.2, 3, states)
    step = np.min(-poles) / 10
    plant = sampled(
        np.diag(poles),
        rng.standard_normal((states, 1)),
        rng.standard_normal((1, states)),
        np.ones((1, 1)),
        step,
    )
    t = step * np.arange(samples)
    u = np.cos(t) + np.sin(t / np.pi)
    estimate = hankelred.markov_parameters(u, simulate(plant, u, dt=step), n, past="rest", dt=step)
    exact = hankelred.impulse_response(plant, n, dt=step)
    np.testing.assert_allclose(estimate.markov, exact, rtol=1e-6, atol=1e-8)


def test_era_of_the_fibonacci_sequence():
    # Katayama, example 6.1: unstable, and of order two
    sequence = np.array([0.0, 1, 1, 2, 3, 5, 8, 13, 21, 34])
    reduction = hankelred.realize(sequence, 2)
    h = hankelred.impulse_response(reduction.system, 10).ravel()
    np.testing.assert_allclose(h, sequence, rtol=1e-6, atol=1e-8)
    golden = (1 + np.sqrt(5)) / 2
    np.testing.assert_allclose(np.sort(reduction.system.poles().real), [1 - golden, golden], rtol=1e-9)


def test_era_of_two_masses():
    plant = sampled(*two_masses(), 0.1)
    reduction = hankelred.realize(hankelred.impulse_response(plant, 100, dt=0.1), 4, dt=0.1)
    for k in range(2):
        step = np.zeros((2, 100))
        step[k] = 1
        np.testing.assert_allclose(
            simulate(reduction.system, step), simulate(plant, step, dt=0.1), rtol=1e-6, atol=1e-8
        )


# Simulation ------------------------------------------------

T10 = np.linspace(0, 1, 10)
STEP = [9.0, 17.6457, 24.7072, 30.4855, 35.2234, 39.1165, 42.3227, 44.9694, 47.1599, 48.9776]
FREE = [11.0, 8.1494, 5.9361, 4.2258, 2.9118, 1.9092, 1.1508, 0.5833, 0.1645, -0.1391]
IMPULSE = [86.0, 70.1808, 57.3753, 46.9975, 38.5766, 31.7344, 26.1668, 21.6292, 17.9245, 14.8945]


@pytest.mark.parametrize("method", ["blocks", "steps"])
@pytest.mark.parametrize("hold", ["zoh", "foh"])
def test_step_initial_and_impulse_response(hold, method):
    plant, still, options = control.ss(*SISO), np.zeros(10), {"step": 1 / 9, "hold": hold, "method": method}
    np.testing.assert_allclose(simulate(plant, np.ones(10), **options), STEP, atol=half_unit(4))
    free = simulate(plant, still, x0=[0.5, 1.0], **options)
    np.testing.assert_allclose(free, FREE, atol=half_unit(4))
    # the impulse response of the states alone is free, from B
    np.testing.assert_allclose(
        simulate(plant, still, x0=SISO[1].ravel(), **options), IMPULSE, atol=half_unit(4)
    )


def test_step_response_of_the_transfer_function():
    plant = control.ss2tf(control.ss(*SISO))
    np.testing.assert_allclose(simulate(plant, np.ones(10), step=1 / 9), STEP, atol=half_unit(4))


def test_step_and_impulse_response_of_a_double_lag():
    plant = control.tf([1], [1, 2, 1])
    step = [0, 0.0057, 0.0213, 0.0446, 0.0739, 0.1075, 0.1443, 0.1832, 0.2235, 0.2642]
    np.testing.assert_allclose(simulate(plant, np.ones(10), step=1 / 9), step, atol=half_unit(4))
    impulse = [0.0, 0.0994, 0.1779, 0.2388, 0.2850, 0.3188, 0.3423, 0.3573, 0.3654, 0.3679]
    companion = table("-2 -1\n1 0"), table("1\n0"), table("0 1"), 0
    np.testing.assert_allclose(
        simulate(companion, np.zeros(10), x0=[1, 0], step=1 / 9), impulse, atol=half_unit(4)
    )


@pytest.mark.parametrize("discretised", [False, True])
def test_two_uncoupled_models_side_by_side(discretised):
    u = np.vstack([np.zeros(10), np.ones(10)])
    x0 = [0.5, 1, 0, 0]
    if discretised:
        y = simulate(sampled(*TWICE, 1 / 9), u, x0=x0, dt=1 / 9)
    else:
        y = simulate(TWICE, u, x0=x0, step=1 / 9, hold="foh")
    np.testing.assert_allclose(y, [FREE, STEP], atol=half_unit(4))


@pytest.mark.parametrize(
    "num, den, dt, expected",
    [
        ([1], [1, 1, 0.25], True, [0, 0, 1, 0, 0.75]),
        (
            [1],
            [1, 1, 0.25],
            0.2,
            "0 0 1 0 0.75 0.25 0.5625 0.375 0.4844 0.4219 0.457 0.4375 0.4482 0.4424 0.4456 0.4438 0.4448 "
            "0.4443 0.4445 0.4444 0.4445 0.4444 0.4445 0.4444 0.4444",
        ),
        (
            [-0.10966442, 0.12431949],
            [1.0, -1.86789511, 0.88255018],
            0.12493963338370018,
            "0 -0.1097 -0.1902 -0.2438 -0.2729 -0.2799 -0.2674 -0.2377 -0.1934 -0.1368",
        ),
    ],
)
def test_step_response_in_discrete_time(num, den, dt, expected):
    expected = table(expected)[0] if isinstance(expected, str) else np.array(expected)
    y = simulate(control.tf(num, den, dt), np.ones(expected.size))
    np.testing.assert_allclose(y, expected, atol=half_unit(4))


def test_free_response_in_discrete_time():
    system = table("-1 -0.25\n1 0"), table("1\n0"), table("0 1"), table("0")
    y = simulate(system, np.zeros(5), x0=[0.5, 1], dt=True)
    np.testing.assert_allclose(y, [1, 0.5, -0.75, 0.625, -0.4375], rtol=1e-14)


def test_step_response_of_a_model_that_is_unstable_in_discrete_time():
    y = simulate((*SISO[:3], 0), np.ones(10), dt=True)
    expected = [0, 86, -72, 230, -360, 806, -1512, 3110, -6120, 12326]
    np.testing.assert_allclose(y, expected, rtol=1e-13)


@pytest.mark.parametrize("wait", [0, 1])
def test_delay(wait):
    plant = control.tf([1.0], [1.0] + [0] * wait, 1.0)
    np.testing.assert_allclose(hankelred.impulse_response(plant, 4).ravel(), np.eye(4)[wait], atol=1e-15)


@pytest.mark.parametrize(
    "u, x0, states",
    [
        (np.zeros(10), [2.0, 3.0], [np.linspace(2, 5, 10), np.full(10, 3.0)]),
        (np.ones(10), [0.0, 0.0], [0.5 * T10**2, T10]),
        (T10, [0.0, 0.0], [T10**3 / 6, T10**2 / 2]),
    ],
    ids=["zeros", "ones", "linear"],
)
def test_double_integrator(u, x0, states):
    system = table("0 1\n0 0"), table("0\n1"), table("1 0"), 0
    y, computed = simulate(system, u, x0=x0, step=1 / 9, hold="foh", return_states=True)
    np.testing.assert_allclose(computed, states, atol=half_unit(6))
    np.testing.assert_allclose(y, states[0], atol=half_unit(6))


def test_gain_at_frequency_zero():
    y = simulate(control.ss(*SISO), np.ones(1000), step=1.0)
    np.testing.assert_allclose(y[-1], 59, atol=half_unit(6))
    static = hankelred.reduce(control.ss(*TWICE), 0, method="residualization").system
    np.testing.assert_allclose(static.D, 59 * np.eye(2), atol=half_unit(6))


def test_sampled_model():
    # a model with an unstable pole, held for 0.1 s
    A, B = table("-3 4 2\n-1 -3 0\n2 5 3"), table("1 4\n-3 -3\n-2 1")
    expected_A = table("""
         0.742840837331905 0.342242024293711  0.203124211149560
        -0.074130792143890 0.724553295044645 -0.009143771143630
         0.180264783290485 0.544385612448419  1.370501013067845
    """)
    expected_B = table("""
         0.012362066084719  0.301932197918268
        -0.260952977031384 -0.274201791021713
        -0.304617775734327  0.075182622718853
    """)
    system = A, B, np.eye(3), 0
    for k in range(3):
        y = simulate(system, np.zeros((2, 2)), x0=np.eye(3)[k], step=0.1)
        np.testing.assert_allclose(y[:, 1], expected_A[:, k], rtol=1e-12)
    for k in range(2):
        y = simulate(system, np.tile(np.eye(2)[:, [k]], 2), step=0.1)
        np.testing.assert_allclose(y[:, 1], expected_B[:, k], rtol=1e-12)


def test_a_leading_coefficient_that_is_nearly_zero():
    # gh-240: 1e-10 s^2 + s + 1 in place of s + 1
    exact = control.tf([[[0], [1]], [[1], [0]]], [[[1], [1, 1]], [[1, 4], [1]]])
    perturbed = control.tf([[[0], [1]], [[1], [0]]], [[[1], [1e-10, 1, 1]], [[1, 4], [1]]])
    u = np.ones((2, 100))
    np.testing.assert_allclose(
        simulate(exact, u, step=2 / 99), simulate(perturbed, u, step=2 / 99), atol=half_unit(6)
    )
    assert hankelred.reduce(perturbed, 2).error_bound < 1e-9
    np.testing.assert_allclose(
        hankel_singular_values(perturbed)[:2], hankel_singular_values(exact)[:2], rtol=1e-9
    )


def test_a_pole_that_is_nearly_cancelled():
    # gh-440: the pole at -0.54 has a zero beside it, the other two models are one lag in different units
    near = control.tf([1.067e5, 5.791e4], [10.67, 1.067e5, 5.791e4])
    lag = control.tf([1.881e6], [188.1, 1.881e6])
    t = np.linspace(0, 1e-3, 200)
    step = t[1]
    np.testing.assert_allclose(
        simulate(near, np.ones(200), step=step), simulate(lag, np.ones(200), step=step), atol=5e-3
    )
    reduction = hankelred.reduce(near, 1)
    assert norm(near, "hinf") == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(reduction.system.poles(), [-1e4], rtol=1e-3)
    assert reduction.error() <= reduction.error_bound * (1 + 1e-6) < 1e-3


def test_poles_on_and_outside_the_circle():
    # (z^2 + 3 z) / (z^2 + 3 z + 2): poles -1 and -2
    h = hankelred.impulse_response(control.tf([1, 3, 0], [1, 3, 2], True), 12).ravel()
    exact = [1.0, 0.0]
    for _ in range(10):
        exact.append(-3 * exact[-1] - 2 * exact[-2])
    np.testing.assert_allclose(h, exact, rtol=1e-12)


# Conversion and modal form ------------------------------------------------


def test_static_transfer_functions():
    static = control.tf(
        [[[23], [3], [5]], [[-1], [0.125], [101.3]]], [[[46], [0.1], [80]], [[2], [-0.1], [1]]]
    )
    D = table("0.5 30 0.0625\n-0.5 -1.25 101.3")
    assert hankel_singular_values(static).size == 0
    np.testing.assert_allclose(norm(static, "hinf"), np.linalg.norm(D, 2), rtol=1e-13)
    np.testing.assert_allclose(hankelred.reduce(static).system(0), D, rtol=1e-13)


def test_integrators_on_a_diagonal():
    # gh-111: the pole at zero is double, once for each channel
    plant = control.tf([[[1], [0]], [[0], [1]]], [[[1, 0], [1]], [[1], [1, 0]]])
    assert np.isinf(hankel_singular_values(plant)).tolist() == [True, True]
    reduced = hankelred.reduce(plant)
    assert reduced.order == reduced.unstable_order == 2
    np.testing.assert_allclose(reduced.system(1 + 2j), np.eye(2) / (1 + 2j), rtol=1e-12, atol=1e-15)


def test_a_row_of_integrating_channels():
    # gh-120: (1.146e4 - 235 s) over s (s + 48.78), s^2 (s + 48.78) and, times s, 0.008 s^2 + 1.39 s + 48.78
    num = [[[-235, 1.146e4], [-235, 1.146e4], [-235, 1.146e4, 0]]]
    den = [[[1, 48.78, 0], [1, 48.78, 0, 0], [0.008, 1.39, 48.78]]]
    plant = control.tf(num, den)
    reduction = hankelred.reduce(plant)
    for s in (0.3 + 1j, 5 + 40j, 100 + 1000j):
        expected = [[np.polyval(a, s) / np.polyval(b, s) for a, b in zip(num[0], den[0], strict=True)]]
        np.testing.assert_allclose(reduction.system(s), expected, rtol=1e-7)


def test_value_of_the_response():
    for system, expected in ((SISO, 44.8 - 21.4j), (TWICE, (44.8 - 21.4j) * np.eye(2))):
        modal = hankelred.modal_form(control.ss(*system))
        G = response_at((np.diag(modal.poles), modal.B, modal.C, modal.D), [1j])[0]
        np.testing.assert_allclose(G, np.atleast_2d(expected), atol=half_unit(7))


TURN = table("""
    -0.27144004 -0.39933167  0.75634684  0.44135471
    -0.74855725 -0.39136285 -0.18142339 -0.50356997
    -0.40688007  0.81416369  0.38002113 -0.16483334
    -0.44769516  0.15654653 -0.50060858  0.72419146
""")


@pytest.mark.parametrize(
    "A, B, C, D, poles",
    [
        (np.diag([4.0, 3, 2, 1]), "1.1\n2.2\n3.3\n4.4", "1.3 1.4 1.5 1.6", "42", [4, 3, 2, 1]),
        (
            table("-1 1 0 0\n-1 -1 0 0\n0 0 -2 1\n0 0 0 -3"),
            "0 0\n1 0\n0 0\n0 1",
            "1 0 1 0\n0 1 0 0\n0 0 0 1",
            "0 1\n1 0\n0 0",
            [-1 + 1j, -1 - 1j, -2, -3],
        ),
    ],
    ids=["real", "complex"],
)
def test_modal_form(A, B, C, D, poles):
    B, C, D = table(B), table(C), table(D)
    T = TURN
    modal = hankelred.modal_form((np.linalg.solve(T, A) @ T, np.linalg.solve(T, B), C @ T, D))
    np.testing.assert_allclose(modal.poles, poles, rtol=1e-9)
    powers = [C @ np.linalg.matrix_power(A, k) @ B for k in range(4)]
    for k, expected in enumerate(powers):
        computed = modal.C @ np.diag(modal.poles**k) @ modal.B
        np.testing.assert_allclose(computed, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "poles, dt",
    [
        ([-1, -2, -3, -4, -5], 0),
        ([-1 + 1j, -1 - 1j, -2 + 2j, -2 - 2j, -2], 0),
        ([0.1 + 0.9j, 0.1 - 0.9j, 0.2 + 0.8j, 0.2 - 0.8j], 0),
        ([0.1 + 0.9j, 0.1 - 0.9j, 0.2 + 0.8j, 0.2 - 0.8j], True),
        ([-2, -1, 0, 1, 2], 0),
        ([-2, -2 + 2j, -2 - 2j, -2 - 3j, -2 + 3j], 0),
        (np.exp([-0.2, -0.1, 0, 0.1, 0.2]), True),
        (np.exp([-0.2 + 0.2j, -0.2 - 0.2j, -0.01, -0.03 - 0.3j, -0.03 + 0.3j]), True),
    ],
)
def test_modal_form_of_a_companion_matrix(poles, dt):
    n = len(poles)
    A = np.polynomial.polynomial.polycompanion(np.polynomial.polynomial.polyfromroots(poles)).real
    system = A, np.eye(n)[:, :1], np.eye(n)[-1:], np.zeros((1, 1))
    modal = hankelred.modal_form(system, dt=dt)
    rate = np.abs(poles) if dt else np.real(poles)
    np.testing.assert_allclose(
        np.abs(modal.poles) if dt else modal.poles.real, np.sort(rate)[::-1], atol=1e-9
    )
    points = [3 + 1j, 0.7 + 4j, 5.0]
    G = response_at((np.diag(modal.poles), modal.B, modal.C, modal.D), points)
    np.testing.assert_allclose(G, response_at(system, points), rtol=1e-8)


@pytest.mark.parametrize("poles", [[-1, -1], [-1, -1, -2, -2, -2]])
def test_modal_form_of_multiple_poles_is_right_or_refused(poles):
    # Story: five such poles gave 16.6 at frequency zero where the response is 0.125, without a word.
    # python-control puts each multiple pole into a separate block.
    n = len(poles)
    A = np.polynomial.polynomial.polycompanion(np.polynomial.polynomial.polyfromroots(poles)).real
    system = A, np.eye(n)[:, :1], np.eye(n)[-1:], np.zeros((1, 1))
    try:
        modal = hankelred.modal_form(system)
    except hankelred.ModelError:
        return
    points = 1j * np.linspace(0, 5, 20)
    expected = response_at(system, points)
    computed = response_at((np.diag(modal.poles), modal.B, modal.C, modal.D), points)
    assert np.abs(computed - expected).max() <= 1e-6 * np.abs(expected).max()


def test_models_without_states():
    static = [], [], [], 123
    assert hankelred.modal_form(static).n_states == 0
    assert hankel_singular_values(static).size == 0
    assert norm(static, "hinf") == 123
