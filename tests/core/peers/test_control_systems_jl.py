"""The numerical cases of ControlSystems.jl and RobustAndOptimalControl.jl: their inputs and expected results.

Source: the test files linalg, matrix_comps, simplification, discrete and timeresp of ControlSystems.jl, and
canonical_forms and descriptor of RobustAndOptimalControl.jl (both MIT). Only numbers are taken. Julia's
comparison without a tolerance is a relative one of 1.5e-8; the H-infinity norm is held to the 1e-6 that is
promised here. Cases with drawn numbers are drawn here.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla
from helpers.printed import response_at, table
from helpers.reference import random_system

import hankelred
from hankelred import hankel_singular_values, norm, simulate

JULIA = 1.5e-8


def ss(A, B, C, D, dt=0):
    """Return the matrices, written as numbers or tables, and dt."""
    return tuple(table(M) if isinstance(M, str) else np.atleast_2d(M) for M in (A, B, C, D)), dt


A2 = "-5 -3\n2 -9"
C_212 = ss(A2, "1\n2", np.eye(2), "0\n0")
C_222 = ss(A2, "1 0\n0 2", np.eye(2), np.zeros((2, 2)))
C_221 = ss(A2, "1 0\n0 2", "1 0", "0 0")
C_222_D = ss(A2, "1 0\n0 2", np.eye(2), np.eye(2))
C_732 = ss(
    """
        -0.81  0.47 -0.43  1.58  0.25 -0.40  0.92
        -0.61 -1.89  0.80 -1.59  2.01  0.98 -0.90
         0.50 -1.18 -2.12 -1.56 -1.14  0.14 -0.87
        -1.28  2.12  0.47 -1.16  3.65 -1.23 -1.26
        -0.24 -0.08  1.58 -3.58 -1.26  1.72 -2.59
         1.28 -0.96 -1.28 -0.57 -2.43 -2.43 -0.36
        -0.16  1.53 -0.99  1.47  0.61 -2.22 -3.27
    """,
    """
         0.49 -0.80  0.10
        -0.18  0.70  0.72
         0.00  0.83  2.58
         1.42  0.00  0.00
         0.00  0.22  0.19
         0.00  0.00 -0.08
         0.00 -1.15 -1.93
    """,
    "0 0.84 0.10 0.30 0.49 1.71 0\n-1.79 -0.89 -0.54 -0.60 0.74 -0.19 0",
    "1.36 0.96 1.44\n-1.07 0 -1.96",
)
DA2 = "0.2 -0.8\n-0.8 0.07"
D_221 = ss(DA2, "1 0\n0 2", "1 0", "0 0", 0.005)
D_222 = ss(DA2, "1 0\n0 2", np.eye(2), np.zeros((2, 2)), 0.005)
D_422 = ss(
    "-0.08 0.83 0 0\n-0.83 -0.08 0 0\n0 0 -0.7 9\n0 0 -9 -0.7",
    "1 1\n0 0\n1 -1\n0 0",
    "0.4 0 0.4 0\n0.6 0 1 0",
    "0.3 0\n0 -0.15",
    0.2,
)


@pytest.mark.parametrize(
    "case, kind, expected",
    [
        (
            C_212,
            "controllability",
            "0.042016806722689065 0.09663865546218485\n0.09663865546218488 0.24369747899159663",
        ),
        (
            C_212,
            "observability",
            "0.09523809523809523 -0.0119047619047619\n-0.011904761904761911 0.059523809523809534",
        ),
        (
            C_222,
            "controllability",
            "0.11764705882352941 -0.029411764705882346\n-0.02941176470588234 0.21568627450980393",
        ),
        (
            C_222,
            "observability",
            "0.09523809523809523 -0.0119047619047619\n-0.011904761904761911 0.059523809523809534",
        ),
        (
            D_221,
            "controllability",
            "11.895658388619264 -7.526846649259635\n-7.526846649259634 12.517564258299078",
        ),
        (
            D_221,
            "observability",
            "3.1039794541519283 -1.7910988952221152\n-1.7910988952221152 2.197919733616834",
        ),
        (
            D_222,
            "controllability",
            "11.895658388619264 -7.526846649259635\n-7.526846649259634 12.517564258299078",
        ),
        (
            D_222,
            "observability",
            "5.301899187768763 -3.2250358337314955\n-3.2250358337314955 4.777830864787395",
        ),
    ],
)
def test_gram(case, kind, expected):
    system, dt = case
    np.testing.assert_allclose(hankelred.gramian(system, kind, dt=dt), table(expected), rtol=1e-13)


@pytest.mark.parametrize(
    "case, expected",
    [
        (C_222, 0.5773502691896258),
        (C_212, 0.5345224838248488),
        (D_222, 4.940973856125768),
        (D_221, 3.4490083195926426),
        (ss(1, 2, 3, 4), np.inf),
    ],
)
def test_h2_norm(case, expected):
    system, dt = case
    np.testing.assert_allclose(norm(system, "h2", dt=dt), expected, rtol=1e-13)


def resonances(gain):
    """Ten oscillators of frequencies 1 to 10, side by side, with these input gains."""
    w, zero = np.diag(np.arange(1.0, 11)), np.zeros((10, 10))
    A = np.block([[-0.1 * np.eye(10), -w], [w, zero]])
    B = np.concatenate([0.1 * np.asarray(gain, float), np.zeros(10)])[:, None]
    return ss(A, B, np.concatenate([np.zeros(10), np.ones(10)])[None], 0)


@pytest.mark.parametrize(
    "case, expected",
    [
        (ss(-1, 1, 1, 0), 1),
        (ss(-1, 1, 1, 1), 2),
        (C_212, 0.242535625036333),
        (C_222, 0.242535625036333),
        (C_732, 4.899135403568278),
        # poles on the axis: an integrator, with a lag, an oscillator, and a single complex one
        (ss(0.0, 1, 1, 0), np.inf),
        (ss("-2 1\n0 0", "0\n1", "1 0", 0), np.inf),
        (ss("0 1\n-1 0", "1\n0", "0 1", 0), np.inf),
        (ss(1j, 1, 1, 0), np.inf),
        # complex coefficients
        (ss(-1 + 1j, 1, 1, 0), 1),
        (ss(-1 - 1j, 1, 1, 0), 1),
        (ss(np.array([[0, 1], [-1j, -(1 + 2j)]]), "0\n1", "1 0", 0), 2 / np.sqrt(3)),
        (ss(np.array([[0, 1], [1j, -1 + 2j]]), "0\n1", "1 0", 0), 2 / np.sqrt(3)),
        # unstable, with an L-infinity norm of 1
        (ss("-1 1\n0 1", "0\n1", "1 0", 0), np.inf),
        (ss("0 1\n-1 -1", "0\n1", "1 0", 0), 2 / np.sqrt(3)),
        (ss(0.8, 1, 1, 0, 1), 5),
        (ss(-0.8, 1, 1, 0, 1), 5),
        (D_221, 17.794697451669421),
        (D_422, np.inf),
        (ss(1, 1, 1, 0, 1), np.inf),
        (ss(0.8 * np.exp(1j), 1, 1, 0, 1), 5),
        (ss(0.8 * np.exp(-1j), 1, 1, 0, 1), 5),
        (ss(0.8 * np.exp(2.5j), 1, 1, 0, 1), 5),
        (ss(2, 3, 1, 1, 1), np.inf),
    ],
)
def test_hinf_norm(case, expected):
    system, dt = case
    np.testing.assert_allclose(norm(system, "hinf", dt=dt), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "case, expected",
    [(resonances(np.ones(10)), 1.05871265), (resonances([1, 1, 1, 1, 2, 1, 1, 1, 1, 1]), 2.00918)],
)
def test_hinf_norm_among_ten_resonances(case, expected):
    np.testing.assert_allclose(norm(case[0], "hinf"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "D, dt, expected",
    [
        ("1.5", 0, 1.5),
        ("-0.78593 -1.2707\n0.2638 -1.13143", 0, 1.760164138376307),
        ("0.704473 1.56483\n-1.6661 -2.16041", 0.07, 3.205246234285972),
    ],
)
def test_hinf_norm_without_states(D, dt, expected):
    np.testing.assert_allclose(norm(([], [], [], table(D)), "hinf", dt=dt), expected, rtol=1e-13)


W0 = 52.0


@pytest.mark.parametrize(
    "num, den, dt, expected",
    [
        (np.polymul([1, 2], [1, 3]), np.polymul([1, 4], [1, 5]), 0, 1.0),
        ([1 / (10 * W0), 0], [1 / W0**2, 1 / (10 * W0), 1], 0, 1.0),
        ([1], [1, -1], 0, np.inf),
        ([[[0], [3, 0]], [[1, 1], [2]]], [[[1], [1, 1, 10]], [[1, 5], [1, 6]]], 0, 3.014974550173459),
        ([1, 0, 0, 0], np.polymul([1, 0.5], [1, -1.4, 0.72801]), 0.05, 4.458729529942810),
    ],
)
def test_hinf_norm_of_a_transfer_function(num, den, dt, expected):
    control = pytest.importorskip("control")
    np.testing.assert_allclose(norm(control.tf(num, den, dt), "hinf"), expected, rtol=1e-6)


def test_hinf_norm_of_a_sensitivity():
    # ControlSystems.jl issue 1014; eleven poles, a controller with an integrator
    signal = pytest.importorskip("scipy.signal")
    zeros = [-101.47795511977208, -48.91219110762173, -7.96322290641594, -0.7114937019357614]
    zeros += [
        z + s * 1j
        for z, w in ((-7.282563985219324, 7.114985406231401), (-1.5268748507837735, 1.2594070637611725))
        for s in (w, -w)
    ]
    poles = [-101.32273797977184, -49.510558929948274, -20.0, -11.82446898287247, -10.604444850836952]
    poles += [-0.6235091399063754, -0.2743617810110765]
    poles += [
        z + s * 1j
        for z, w in ((-5.297845964509693, 6.146324852257861), (-1.4795349979133343, 1.2376578249023653))
        for s in (w, -w)
    ]
    num = 0.6 * 704.6392766532747 * np.poly([*zeros, -0.5]).real
    den = np.poly([*poles, 0.0]).real
    sensitivity = signal.TransferFunction(den, np.polyadd(den, num))
    np.testing.assert_allclose(norm(sensitivity, "hinf"), 1.3056118418593037, rtol=1e-5)


# Gramians of a symmetric model, and what they give ------------------------------------------------

A = table("-0.21 0.2\n0.2 -0.21")
SYMMETRIC = A, 0.01 * np.eye(2), np.eye(2), np.zeros((2, 2))


@pytest.mark.parametrize("dt", [0, 1.0])
def test_balreal(dt):
    balanced = hankelred.balanced_realization(SYMMETRIC, dt=dt)
    values = np.diag(hankel_singular_values(SYMMETRIC, dt=dt))
    for kind in ("controllability", "observability"):
        np.testing.assert_allclose(hankelred.gramian(balanced, kind, dt=dt), values, atol=1e-14)
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvals(balanced[0])), np.sort(np.linalg.eigvals(A)), rtol=1e-12
    )
    for s in (2.0, 1j + 0.3):
        np.testing.assert_allclose(response_at(balanced, [s]), response_at(SYMMETRIC, [s]), rtol=1e-12)


@pytest.mark.parametrize(
    "D, dt, expected",
    [
        (0, 0, "0.002560975609756 0.002439024390244\n0.002439024390244 0.002560975609756"),
        (1, 1.0, "1.000110108378310 -0.000010098377310\n-0.000010098377310 1.000110108378310"),
        (1, 0.1, "1.00011010837831 -1.0098377309782909e-5\n-1.0098377309782909e-5 1.00011010837831"),
    ],
)
def test_covariance_of_the_output_under_white_noise(D, dt, expected):
    direct = D * np.eye(2)
    W = hankelred.gramian((*SYMMETRIC[:3], direct), dt=dt)
    np.testing.assert_allclose(W + direct @ direct.T, table(expected), rtol=1e-9)
    np.testing.assert_allclose(
        norm((*SYMMETRIC[:3], direct), "h2", dt=dt) ** 2, np.trace(table(expected)), rtol=1e-12
    )


@pytest.mark.parametrize("system", [(*SYMMETRIC[:3], np.eye(2)), (np.eye(2), *SYMMETRIC[1:])])
def test_infinite_covariance(system):
    assert norm(system, "h2") == np.inf


# Reduction ------------------------------------------------

# fifteen states they drew, in units of 1e-4: A, then B and C as rows; four decimals keep what they test
FIFTEEN = (
    table("""
    -24670 -17579 2642 -18140 9582 -11573 -24096 12007 2661 9999 -3559 9416 -472 19049 411
    17914 -27626 11196 -5686 6727 10083 5813 -7829 -5725 2739 2758 -11772 -6382 -5567 3626
    -51 -17087 -17176 15009 18738 -10940 -5264 2250 12460 -5303 -5548 3388 5102 2054 2606
    6046 12138 -20594 -11917 11507 8110 -1541 11119 1143 12819 9215 4697 51 -6759 2326
    -3279 -3900 1266 8299 -26661 -3314 -129 -4210 15144 -7962 -658 12194 -17007 -4806 5646
    2451 -18805 3067 9479 -12302 -31367 -2482 3806 -14162 6987 -8854 -10303 14525 3629 3851
    -20022 -2835 -2603 722 841 245 -26763 116 17134 1760 -6727 15442 -2 13010 355
    -1625 1320 13237 3302 4518 749 -16288 -15393 -6217 2859 -14166 -3583 18697 -3059 19344
    -3098 19026 -6714 -2505 -10961 5517 -5206 -1006 -42935 2475 5853 12157 -5437 315 -13602
    -18759 -809 0 -1523 -4474 -10628 11462 4826 11227 -25567 2745 15140 8781 -7005 8540
    13103 20268 -2645 1673 3400 13424 -5263 17724 7427 -6895 -46488 6160 2769 -5844 -505
    -2668 -8395 7357 214 16248 10376 -4456 -13187 1198 288 11651 -25802 -10 3531 8802
    -2340 -4702 905 -11592 -3226 -2040 -13882 6800 3460 -8951 3719 -1798 -32542 -1250 -7674
    -4889 7857 5531 2868 -3538 13882 494 -6880 13415 -16887 -8465 -28373 -8703 -20491 -458
    1478 -10182 1741 5046 12757 513 19399 -13740 -16331 -4570 -6656 -1127 1748 9496 -20691
    -9890 9449 -6141 1617 3159 4870 14986 2037 3020 -8328 5412 -6001 9564 30913 -3447
    3132 -2984 -2776 7222 1076 -8433 -12942 899 -16845 -25358 -6469 6817 -14395 -3003 4932
""")
    / 1e4
)
DRAWN = FIFTEEN[:15], FIFTEEN[15][:, None], FIFTEEN[16:], np.zeros((1, 1))


def test_baltrunc():
    reduction = hankelred.reduce(DRAWN, 10)
    assert reduction.order == 10
    assert reduction.error("h2") < 1e-5
    # their default keeps what is above 1e-3 of the largest value
    assert hankelred.reduce(DRAWN, int(np.sum(reduction.hankel_singular_values > 4.8e-3))).error("h2") < 0.02


@pytest.mark.parametrize("dt", [0, 0.01])
def test_baltrunc_that_keeps_the_gain_at_frequency_zero(dt):
    system = zero_order_hold(DRAWN, dt) if dt else DRAWN
    reduced = hankelred.reduce(system, 3, method="residualization", dt=dt).system
    assert reduced[0].shape == (3, 3)
    point = [1.0 if dt else 0.0]
    np.testing.assert_allclose(response_at(reduced, point), response_at(system, point), rtol=JULIA)


def test_free_response_of_the_reduced_model():
    # the transformation to the reduced states, from a start that excites all states
    reduction = hankelred.reduce(DRAWN, 10)
    still, x0 = np.zeros(1001), np.ones(15)
    full = simulate(DRAWN, still, x0=x0, step=0.01)
    reduced = simulate(reduction.system, still, x0=reduction.left.T @ x0, step=0.01)
    # they allow 1e-3 with an impulse on top; the bound is one for inputs only
    assert np.linalg.norm(full - reduced) < 1e-2 * np.linalg.norm(full)


def test_large_drawn_model():
    # balanced without a loss above 1e-6, of three hundred states
    system = random_system(0, 300, direct=False)
    reduced = hankelred.reduce(system).system
    points = 1j * np.geomspace(1e-2, 1e3, 40)
    np.testing.assert_allclose(response_at(reduced, points), response_at(system, points), atol=1e-6)


def test_minimal_realization_of_a_transfer_matrix():
    # [1/(s+1) 2/(s+3); 1/(s+1) 1/(s+1)] has three states
    control = pytest.importorskip("control")
    plant = control.tf([[[1], [2]], [[1], [1]]], [[[1, 1], [1, 3]], [[1, 1], [1, 1]]])
    reduction = hankelred.reduce(plant)
    assert reduction.order == 3
    assert reduction.error("hinf") < 1e-15
    for s in (0, 1j, 2j):
        np.testing.assert_allclose(reduction.system(s), plant(s), atol=1e-14)


STRUCTURED = (
    table("-5 0 0 0\n0 -1 -2.5 0\n0 4 0 0\n0 0 0 -6"),
    table("2 0\n0 1\n0 0\n0 2"),
    table("0 3 0 0\n-2 0 0 1"),
    table("0 0\n1 0"),
)


@pytest.mark.parametrize(
    "output, input_, expected",
    [
        (0, 0, ([], [], [], 0)),
        (0, 1, ("-1 -2.5\n4 0", "1\n0", "3 0", 0)),
        (1, 0, (-5, 2, -2, 1)),
        (1, 1, (-6, 2, 1, 0)),
    ],
)
def test_structurally_minimal_channels(output, input_, expected):
    A, B, C, D = STRUCTURED
    reduced = hankelred.reduce((A, B[:, [input_]], C[[output]], D[[output]][:, [input_]])).system
    if expected[0] == []:
        assert reduced[0].size == 0 and reduced[3] == expected[3]
        return
    system, _ = ss(*expected)
    assert reduced[0].shape == system[0].shape
    points = [0, 1j, 2 + 3j]
    np.testing.assert_allclose(
        response_at(reduced, points), response_at(system, points), rtol=1e-12, atol=1e-15
    )


def test_structurally_minimal_models_stay():
    assert hankelred.reduce(STRUCTURED).order == 4
    # ControlSystems.jl issue 475: an integrator and an undamped oscillator in series
    chain = table("0 0 0\n1 0 -0.00578297\n0 1 0"), table("1\n0\n0"), table("0 0 1"), table("0")
    reduction = hankelred.reduce(chain)
    assert reduction.order == reduction.unstable_order == 3
    for s in (0.05j + 0.01, 1.0):
        np.testing.assert_allclose(response_at(reduction.system, [s]), response_at(chain, [s]), rtol=1e-10)


@pytest.mark.parametrize("direct", [False, True])
def test_reduction_of_an_unstable_model(direct):
    # forty stable states and two unstable ones, 2 outputs and 3 inputs, to twenty
    A, B, C, D = random_system(4, 40, 3, 2, margin=0.5, direct=direct)
    unstable = -random_system(5, 2, 3, 2, margin=0.5)[0]
    rng = np.random.default_rng(6)
    system = (
        sla.block_diag(A, unstable),
        np.vstack([B, rng.standard_normal((2, 3))]),
        np.hstack([C, rng.standard_normal((2, 2))]),
        D,
    )
    reduction = hankelred.reduce(system, 20)
    poles = np.linalg.eigvals(reduction.system[0])
    assert reduction.order == 20
    np.testing.assert_allclose(
        np.sort_complex(poles[poles.real > 0]), np.sort_complex(np.linalg.eigvals(unstable)), rtol=1e-9
    )
    w = 1j * np.geomspace(1e-2, 1e3, 200)
    worst = np.linalg.norm(response_at(reduction.system, w) - response_at(system, w), 2, axis=(1, 2)).max()
    assert worst <= reduction.error_bound and worst <= reduction.error() * (1 + 1e-6)


def test_a_model_minus_itself():
    # all three norms of G - G are below 1e-6 there
    A, B, C, D = random_system(7, 4, 3, 2)
    zero = sla.block_diag(A, A), np.vstack([B, B]), np.hstack([C, -C]), 0 * D
    size = norm((A, B, C, D), "hinf")
    for kind in ("h2", "hinf", "hankel"):
        assert norm(zero, kind) < 1e-9 * size
    assert hankelred.reduce((A, B, C, D), 4).error() < 1e-10


# Modal form ------------------------------------------------


@pytest.mark.parametrize("seed, ports", [(0, (1, 1)), (1, (2, 3)), (2, (1, 1))])
def test_modal_form(seed, ports):
    # an odd number of states has a real pole
    system = random_system(seed, 5, *ports)
    modal = hankelred.modal_form(system)
    A, B, C, D = modal.state_space()
    blocks = np.abs(np.triu(A, 2)).sum() + np.abs(np.tril(A, -2)).sum()
    assert blocks == 0 and np.allclose(np.diag(A, 1), -np.diag(A, -1))
    np.testing.assert_allclose(
        np.sort_complex(np.linalg.eigvals(A)), np.sort_complex(np.linalg.eigvals(system[0])), rtol=1e-9
    )
    points = [1j, 2 + 3j]
    np.testing.assert_allclose(response_at((A, B, C, D), points), response_at(system, points), rtol=1e-10)
    # balanced: input row and output column of a mode are of one size
    np.testing.assert_allclose(np.linalg.norm(modal.B, axis=1), np.linalg.norm(modal.C, axis=0), rtol=1e-9)


def test_modal_form_of_repeated_complex_poles_is_right_or_refused():
    # 1 / (s^2 + s + 1)^2: a complex pair that is double, and has one eigenvector
    pair = np.polymul([1, 1, 1], [1, 1, 1])
    system = sla.companion(pair), np.eye(4)[:, :1], np.eye(4)[-1:], np.zeros((1, 1))
    try:
        modal = hankelred.modal_form(system)
    except hankelred.ModelError:
        return
    points = 1j * np.linspace(0, 3, 20)
    expected = response_at(system, points)
    computed = response_at((np.diag(modal.poles), modal.B, modal.C, modal.D), points)
    assert np.abs(computed - expected).max() <= 1e-6 * np.abs(expected).max()


# Discretisation and simulation ------------------------------------------------


def zero_order_hold(system, step):
    A, B, C, D = system
    n, m = B.shape
    E = sla.expm(step * np.block([[A, B], [np.zeros((m, n + m))]]))
    return E[:n, :n], E[:n, n:], C, D


SAMPLED_A = table("0.9509478368863918 -0.027970882212682433\n0.018647254808454958 0.9136533272694819")


@pytest.mark.parametrize(
    "case, A, B",
    [
        (ss(-5, 2, 3, 0), table("0.951229424500714"), "0.019508230199714396"),
        (C_212, SAMPLED_A, "0.009466805409666932\n0.019219966830212765"),
        (
            C_221,
            SAMPLED_A,
            "0.009753161420545834 -0.0002863560108789034\n9.54520036263011e-5 0.019124514826586465",
        ),
        (
            C_222_D,
            SAMPLED_A,
            "0.009753161420545834 -0.0002863560108789034\n9.54520036263011e-5 0.019124514826586465",
        ),
    ],
)
def test_zero_order_hold(case, A, B):
    (A0, B0, C0, D0), _ = case
    expected = A, table(B), C0, D0
    u, x0 = np.random.default_rng(0).standard_normal((B0.shape[1], 30)), np.arange(1.0, A.shape[0] + 1)
    computed = simulate((A0, B0, C0, D0), u, x0=x0, step=0.01)
    np.testing.assert_allclose(computed, simulate(expected, u, x0=x0, dt=0.01), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "case, A, B, D, from_input",
    [
        (
            ss(-5, 2, 3, 0),
            table("0.951229424500714"),
            "0.01902855227625244",
            "0.029506188017136226",
            "-0.009835396005712075",
        ),
        (
            C_212,
            SAMPLED_A,
            "0.008957940478201584\n0.018468989584974498",
            "0.004820885889482196\n0.009738343195298675",
            "-0.004820885889482196\n-0.009738343195298675",
        ),
        (
            C_221,
            SAMPLED_A,
            "0.009511049106772921 -0.0005531086285713394\n0.00018436954285711309 0.018284620042117387",
            "0.004917457305816479 -9.657141633428213e-5",
            "-0.004917457305816479 9.657141633428213e-5\n-3.219047211142736e-5 -0.009706152723187249",
        ),
        (
            C_222_D,
            SAMPLED_A,
            "0.009511049106772921 -0.0005531086285713394\n0.00018436954285711309 0.018284620042117387",
            "1.0049174573058164 -9.657141633428213e-5\n3.219047211142736e-5 1.0097061527231872",
            "-0.004917457305816479 9.657141633428213e-5\n-3.219047211142736e-5 -0.009706152723187249",
        ),
    ],
)
def test_first_order_hold(case, A, B, D, from_input):
    # theirs has other states: a part of the input is taken out, at the start too
    (A0, B0, C0, D0), _ = case
    expected = A, table(B), C0, table(D)
    u, x0 = np.random.default_rng(0).standard_normal((B0.shape[1], 30)), np.arange(1.0, A.shape[0] + 1)
    computed = simulate((A0, B0, C0, D0), u, x0=x0, step=0.01, hold="foh")
    start = x0 + table(from_input) @ u[:, 0]
    np.testing.assert_allclose(computed, simulate(expected, u, x0=start, dt=0.01), rtol=1e-9, atol=1e-12)


def test_sampled_transfer_function():
    # (s + 1) / (s^2 + 3 s + 1), held for 0.2 s
    control = pytest.importorskip("control")
    sampled = control.tf(
        [0.165883310712090, -0.135903621603238], [1.0, -1.518831946985175, 0.548811636094027], 0.2
    )
    u = np.random.default_rng(0).standard_normal(50)
    np.testing.assert_allclose(
        simulate(control.tf([1, 1], [1, 3, 1]), u, step=0.2), simulate(sampled, u), rtol=1e-9, atol=1e-12
    )


def test_bilinear_map_keeps_the_values():
    # MATLAB's Tustin approximation at 0.01 s
    tustin = (
        table("0.95094630230333 -0.02800401390866\n0.018669342605773 0.913607617091783"),
        table("0.009754731511517 -0.000280040139087\n9.3346713029e-5 0.019136076170918"),
        table("0.975473151151665 -0.01400200695433\n0.009334671302887 0.956803808545892"),
        table("1.004877365755758 -0.000140020069543\n4.6673356514e-5 1.009568038085459"),
    )
    system, _ = C_222_D
    np.testing.assert_allclose(
        hankel_singular_values(tustin, dt=0.01), hankel_singular_values(system), rtol=1e-10
    )
    np.testing.assert_allclose(norm(tustin, "hinf", dt=0.01), norm(system, "hinf"), rtol=1e-6)


@pytest.mark.parametrize(
    "case, u, expected",
    [
        (ss(1, 1, 1, 1, 1), np.ones(5), [1, 2, 3, 4, 5]),
        (ss(1j, 1, 1, 0, 1), np.ones(3), [0, 1, 1 + 1j]),
        (ss(1j, 1, 1, 0, 1), np.eye(5)[0], [0, 1, 1j, -1, -1j]),
        (ss(1j, 1, 1, 0, 1), np.ones(5), [0, 1, 1 + 1j, 1j, 0]),
        (ss(1, 1, 1, 0, 1), np.array([1, 1j, 1]), [0, 1, 1 + 1j]),
        (ss(1j, 1, 1, 0, 1), np.array([1, 1j, 1]), [0, 1, 2j]),
        ((([], [], [], 1j), 1), np.array([1, 2]), [1j, 2j]),
        ((([], [], [], 1j), 1), np.array([1j, 2]), [-1, 2j]),
    ],
)
def test_complex_simulation(case, u, expected):
    system, dt = case
    np.testing.assert_allclose(simulate(system, u, dt=dt), expected, atol=1e-14)


def test_step_and_impulse_responses_in_closed_form():
    # 1 / (s + 1) and (s - 1) / (s + 1)^2, side by side
    A, B = table("-1 0 0\n0 -2 -1\n0 1 0"), table("1 0\n0 1\n0 0")
    C, t = table("1 0 0\n0 1 -1"), 0.05 * np.arange(41)
    e = np.exp(-t)
    steps = [[1 - e, 0 * t], [0 * t, -1 + e + 2 * e * t]]
    states = [[1 - e, 0 * t, 0 * t], [0 * t, e * t, e * (-t - 1) + 1]]
    impulses = [[e, 0 * t], [0 * t, e * (1 - 2 * t)]]
    for k in range(2):
        u = np.outer(np.eye(2)[k], np.ones(41))
        y, x = simulate((A, B, C, 0), u, step=0.05, return_states=True)
        np.testing.assert_allclose(y, steps[k], atol=1e-13)
        np.testing.assert_allclose(x, states[k], atol=1e-13)
        y = simulate((A, B, C, 0), 0 * u, x0=B[:, k], step=0.05)
        np.testing.assert_allclose(y, impulses[k], atol=1e-13)


@pytest.mark.parametrize("dt, samples", [(1, 11), (0.3, 7)])
def test_step_response_of_a_delay(dt, samples):
    control = pytest.importorskip("control")
    y = simulate(control.tf([1], [1, 0, 0, 0], dt), np.ones(samples))
    np.testing.assert_allclose(y, [0, 0, 0] + [1] * (samples - 3), atol=1e-14)
