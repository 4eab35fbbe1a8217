"""The example programs of SLICOT: the published inputs, and the results as they are printed.

Source: the example data and results of SLICOT-Reference (BSD-3-Clause), and of slycot's tests where they hold
numbers of their own. Only numbers are taken. A test is called after the routine whose example it is; the
tolerance is half a unit of the last printed digit, or what that leaves open in the response. The examples of
routines that hankelred has no counterpart of are not here.
"""

from __future__ import annotations

import control
import numpy as np
import pytest
import scipy.linalg
from helpers.printed import assert_same_response, half_unit, printed_response, response_at, table

import hankelred
from hankelred import hankel_singular_values, norm

FOUR = half_unit(4)

# AB09AD, AB09BD, AB09CD and AB13AD share a model: two turbines on one axis, 2 inputs and 3 outputs
A7 = table("""
    -0.04165   0      4.92  -4.92   0        0      0
    -5.21    -12.5    0      0      0        0      0
     0         3.33  -3.33   0      0        0      0
     0.545     0      0      0     -0.545    0      0
     0         0      0      4.92  -0.04165  0      4.92
     0         0      0      0     -5.21   -12.5    0
     0         0      0      0      0        3.33  -3.33
""")
B7 = np.zeros((7, 2))
B7[1, 0] = B7[5, 1] = 12.5
C7 = np.zeros((3, 7))
C7[[0, 1, 2], [0, 3, 4]] = 1
AXIS = A7, B7, C7, np.zeros((3, 2))
AXIS_VALUES = [2.5139, 2.0846, 1.9178, 0.7666, 0.5473, 0.0253, 0.0246]
FREQUENCIES = 1j * np.array([0, 0.1, 0.5, 1, 2, 3, 4, 8, 20, 100])


def test_hankel_singular_values_of_ab09ad():
    np.testing.assert_allclose(hankel_singular_values(AXIS), AXIS_VALUES, atol=FOUR)


def test_hankel_norm_of_ab13ad():
    np.testing.assert_allclose(norm(AXIS, "hankel"), 2.51388, atol=half_unit(5))


def test_order_of_ab09ad():
    # SLICOT's tolerance 0.1 keeps the values above it; ours bounds the error by twice the sum of the others
    assert hankelred.select_order(AXIS_VALUES, gap=True) == 5
    assert hankelred.reduce(AXIS, tol=0.1).order == 5


def test_reduced_model_of_ab09ad():
    printed = (
        table("""
             1.3451   5.0399   0.0000   0.0000   4.5315
            -4.0214  -3.6604   0.0000   0.0000  -0.9056
             0.0000   0.0000   0.5124   1.7910   0.0000
             0.0000   0.0000  -4.2167  -2.9900   0.0000
             1.2402   1.6416   0.0000   0.0000  -0.0586
        """),
        table("""
            -0.3857   0.3857
            -3.1753   3.1753
            -0.7447  -0.7447
            -3.6872  -3.6872
             1.8197  -1.8197
        """),
        table("""
            -0.6704   0.1828  -0.6582   0.2222  -0.0104
             0.1089   0.4867   0.0000   0.0000   0.8651
             0.6704  -0.1828  -0.6582   0.2222   0.0104
        """),
        np.zeros((3, 2)),
    )
    reduction = hankelred.reduce(AXIS, 5)
    assert_same_response(reduction.system, printed, FREQUENCIES, 4)
    np.testing.assert_allclose(reduction.error_bound, 2 * (0.0253 + 0.0246), atol=4 * FOUR)


def test_reduced_model_of_ab09bd():
    # singular perturbation: residualization
    printed = (
        table("""
             1.3960   5.1248   0.0000   0.0000   4.4331
            -4.1411  -3.8605   0.0000   0.0000  -0.6738
             0.0000   0.0000   0.5847   1.9230   0.0000
             0.0000   0.0000  -4.3823  -3.2922   0.0000
             1.3261   1.7851   0.0000   0.0000  -0.2249
        """),
        table("""
            -0.2901   0.2901
            -3.4004   3.4004
            -0.6379  -0.6379
            -3.9315  -3.9315
             1.9813  -1.9813
        """),
        table("""
            -0.6570   0.2053  -0.6416   0.2526  -0.0364
             0.1094   0.4875   0.0000   0.0000   0.8641
             0.6570  -0.2053  -0.6416   0.2526   0.0364
        """),
        table("""
             0.0498  -0.0007
             0.0010  -0.0010
            -0.0007   0.0498
        """),
    )
    system = hankelred.reduce(AXIS, 5, method="residualization").system
    assert_same_response(system, printed, FREQUENCIES, 4)
    np.testing.assert_allclose(system[3], printed[3], atol=FOUR)


def test_optimal_hankel_norm_approximation_of_ab09cd():
    printed = (
        table("""
            -0.5038  -5.3070  -3.2250   0.0000   0.0000
             1.8355  -0.5038  -2.6289   0.0000   0.0000
             0.0000   0.0000  -1.5171   0.0000   0.0000
             0.0000   0.0000   0.0000  -1.2925  -9.0718
             0.0000   0.0000   0.0000   0.5047  -1.2925
        """),
        table("""
            -1.5343   1.5343
            -0.3614   0.3614
            -1.1096   1.1096
            -4.5325  -4.5325
            -0.7396  -0.7396
        """),
        table("""
             1.8971  -0.3055  -2.1124   0.4421  -2.1023
            -0.0394   1.1112  -0.3119   0.0000   0.0000
            -1.8971   0.3055   2.1124   0.4421  -2.1023
        """),
        table("""
             0.0126  -0.0126
             0.0005  -0.0005
            -0.0126   0.0126
        """),
    )
    reduction = hankelred.reduce(AXIS, 5, method="hankel_norm")
    assert_same_response(reduction.system, printed, FREQUENCIES, 4)
    np.testing.assert_allclose(reduction.system[3], printed[3], atol=FOUR)


def test_optimal_approximation_of_the_fast_part_of_ab09ed():
    # SLICOT keeps the poles right of -0.6; here the axis is moved there and back, which keeps the parts
    printed = (
        table("""
            -0.5181  -1.1084   0.0000   0.0000   0.0000
             8.8157  -0.5181   0.0000   0.0000   0.0000
             0.0000   0.0000  -1.2769   7.3264   0.0000
             0.0000   0.0000  -0.6203  -1.2769   0.0000
             0.0000   0.0000   0.0000   0.0000  -1.5496
        """),
        table("""
            -1.2837   1.2837
            -0.7522   0.7522
             3.2016   3.2016
            -0.7640  -0.7640
             1.3415  -1.3415
        """),
        table("""
            -0.1380  -0.6445  -0.6247  -2.0857  -0.8964
             0.6246   0.0196   0.0000   0.0000   0.6131
             0.1380   0.6445  -0.6247  -2.0857   0.8964
        """),
        table("""
             0.0168  -0.0168
             0.0008  -0.0008
            -0.0168   0.0168
        """),
    )
    T, Z, fast = scipy.linalg.schur(A7, sort=lambda re, im=0: re < -0.6)
    X = scipy.linalg.solve_sylvester(T[:fast, :fast], -T[fast:, fast:], -T[:fast, fast:])
    B, C = Z.T @ B7, C7 @ Z
    part = T[:fast, :fast], B[:fast] - X @ B[fast:], C[:, :fast], np.zeros((3, 2))
    slow = T[fast:, fast:], B[fast:], C[:, fast:] + C[:, :fast] @ X
    values = hankel_singular_values(part)
    np.testing.assert_allclose(values, [1.9178, 0.8621, 0.7666, 0.0336, 0.0246], atol=FOUR)
    reduced = hankelred.reduce(part, 3, method="hankel_norm").system
    whole = [scipy.linalg.block_diag(slow[0], reduced[0]), np.vstack([slow[1], reduced[1]])]
    whole += [np.hstack([slow[2], reduced[2]]), reduced[3]]
    assert_same_response(whole, printed, FREQUENCIES, 4)


def test_weighted_optimal_approximation_of_ab09jd():
    # the stable part of V G is approximated, and the stable part of 1/V times the result is the answer
    A = np.eye(6, k=-1)
    A[0] = [-3.8637, -7.4641, -9.1416, -7.4641, -3.8637, -1.0]
    G = control.ss(A, np.eye(6, 1), np.eye(1, 6, 5), 0)
    V = control.ss(table("0.2 -1 \n 1 0"), [[1], [0]], [[-1.8, 0]], 1)
    inverse = control.ss(V.A - V.B @ V.C, V.B, -V.C, 1)
    assert V.poles().real.min() > 0 and inverse.poles().real.min() > 0
    weighted, _ = hankelred.split(V * G)
    reduction = hankelred.reduce(weighted, 4, method="hankel_norm")
    printed_values = [2.6790, 2.1589, 0.8424, 0.1929, 0.0219, 0.0011]
    np.testing.assert_allclose(reduction.hankel_singular_values, printed_values, atol=FOUR)
    reduced, _ = hankelred.split(inverse * reduction.system)
    printed = (
        table("""
            -0.2391   0.3072   1.1630   1.1967
            -2.9709  -0.2391   2.6270   3.1027
             0.0000   0.0000  -0.5137  -1.2842
             0.0000   0.0000   0.1519  -0.5137
        """),
        table("-1.0497\n-3.7052\n0.8223\n0.7435"),
        table("-0.4466   0.0143  -0.4780  -0.2013"),
        np.array([[0.0219]]),
    )
    assert_same_response(control.ssdata(reduced), printed, FREQUENCIES, 4)
    np.testing.assert_allclose(reduced.D, printed[3], atol=FOUR)


def test_coprime_factors_with_inner_denominator_of_ab09fd():
    # [N, M] of an unstable plant, its unstable poles reflected; then truncation at SLICOT's tolerance
    A = A7.copy()
    A[0, 3], A[3, 4], A[4, 3], A[4, 4], A[5, 4] = 0.4920, 0.0545, -0.49200, 0.004165, 0.5210
    T, Z, k = scipy.linalg.schur(A.T, sort="lhp")
    Cu = C7 @ Z[:, k:]
    Y = scipy.linalg.solve_continuous_lyapunov(T[k:, k:], Cu.T @ Cu)
    L = -Z[:, k:] @ np.linalg.solve(Y, Cu.T)
    factors = A + L @ C7, np.hstack([B7, L]), C7, np.zeros((3, 5))
    assert np.linalg.eigvals(factors[0]).real.max() < 0
    values = [13.6047, 9.4106, 1.7684, 0.7456, 0.6891, 0.0241, 0.0230]
    np.testing.assert_allclose(hankel_singular_values(factors), values, atol=FOUR)
    printed = table("""
         0.0520  -0.1491   0.0037  -0.0232   0.0168
         0.2340   0.2618   0.0010  -0.0153  -0.0318
         0.1197   0.0075  -0.5752   2.0119  -0.7779
         0.1571  -0.2019  -2.1282  -2.1192  -0.3618
         0.0368  -0.4810   0.8395  -0.2790  -2.8796
    """)
    Ar, Br, Cr, _ = hankelred.reduce(factors, 5).system
    poles = [np.sort_complex(np.linalg.eigvals(M)) for M in (Ar - Br[:, 2:] @ Cr, printed)]
    np.testing.assert_allclose(*poles, atol=1e-3)


@pytest.mark.parametrize("printed", [0.5000000006e6, 0.5000000001e6], ids=["AB13CD", "AB13DD"])
def test_hinf_norm_of_three_resonances(printed):
    # damping 1e-4, 1e-5 and 1e-6; the two routines print different tenth digits
    A = np.zeros((6, 6))
    for k, (stiffness, damping) in enumerate([(0.5, 2e-4), (1.0, 2e-5), (2.0, 2e-6)]):
        A[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[0, 1], [-stiffness, -damping]]
    B = np.array([[1.0, 0, 1, 0, 1, 0]]).T
    np.testing.assert_allclose(norm((A, B, B.T, 0), "hinf"), printed, rtol=1e-6)


def test_stability_radius_of_ab13fd():
    # the distance to an unstable matrix is 1 / |(s - A)^-1|
    A = table("""
         246.5  242.5  202.5 -197.5
        -252.5 -248.5 -207.5  202.5
        -302.5 -297.5 -248.5  242.5
        -307.5 -302.5 -252.5  246.5
    """)
    eye = np.eye(4)
    np.testing.assert_allclose(1 / norm((A, eye, eye, 0), "hinf"), 0.39196472317e-2, rtol=1e-6)


def test_stability_radius_of_ab13ed():
    # the example's matrix is antistable; its negative is as far from the axis
    A = -(0.1 * np.eye(5) + np.eye(5, k=1))
    radius = 1 / norm((A, np.eye(5), np.eye(5), 0), "hinf")
    assert 0.20929379255e-5 <= radius <= 0.20793050504e-4


def test_minimal_realization_of_tb01pd():
    # two unstable poles and one stable, hidden from nobody: order 3 is minimal
    A, B, C = table("1 2 0\n4 -1 0\n0 0 1"), np.array([[1.0], [0], [1]]), table("0 1 -1\n0 0 1")
    printed = (
        table("1 -1.4142 1.4142\n-2.8284 0 1\n2.8284 1 0"),
        table("-1\n0.7071\n0.7071"),
        table("0 0 -1.4142\n0 0.7071 0.7071"),
        np.zeros((2, 1)),
    )
    reduction = hankelred.reduce((A, B, C, 0))
    assert reduction.order == 3 and reduction.unstable_order == 2
    assert_same_response(reduction.system, printed, 1j * np.array([0.1, 1, 5]) + 0.3, 4)


def test_controllable_part_of_tb01ud():
    A = table("-1 0 0\n-2 -2 -2\n-1 0 -3")
    B, C = np.array([[1.0, 0], [0, 2], [0, 1]]), table("0 2 1\n1 0 0")
    printed = (
        table("-3 2.2361\n0 -1"),
        table("0 -2.2361\n1 0"),
        table("-2.2361 0\n0 1"),
        np.zeros((2, 2)),
    )
    reduction = hankelred.reduce((A, B, C, np.zeros((2, 2))))
    assert reduction.order == 2
    assert_same_response(reduction.system, printed, 1j * np.array([0, 1, 5]), 4)


def test_scaled_model_of_tb01id():
    # states in units from 1e-5 to 1e6: the same model before and after scaling
    A, B, C = np.zeros((5, 5)), np.zeros((5, 2)), np.zeros((5, 5))
    A[0, 1] = A[3, 4] = C[0, 0] = C[1, 2] = C[2, 3] = 1
    A[1, :2], A[2, [0, 2, 4]], A[4, 3:] = [-1.58e6, -1257], [3.541e14, -1434, -5.33e11], [-1.863e4, -1.482]
    B[1, 0], B[4, 1] = 110.3, 8.333e-3
    C[3, [0, 2]], C[4, 2:] = [0.6664, -6.2e-13], [-1e-3, 1.896e6, 150.8]
    scaled_A, scaled_B, scaled_C = np.zeros((5, 5)), np.zeros((5, 2)), np.zeros((5, 5))
    scaled_A[0, 1], scaled_A[3, 4] = 1e4, 100
    scaled_A[1, :2], scaled_A[2, [0, 2, 4]], scaled_A[4, 3:] = (
        [-158, -1257],
        [35410, -1434, -533],
        [-186.3, -1.482],
    )
    scaled_B[1, 0], scaled_B[4, 1] = 1103, 83.33
    scaled_C[0, 0], scaled_C[1, 2], scaled_C[2, 3] = 1e-5, 1e5, 1e-6
    scaled_C[3, [0, 2]], scaled_C[4, 2:] = [6.664e-6, -6.2e-8], [-100, 1.896, 0.01508]
    D = np.zeros((5, 2))
    np.testing.assert_allclose(
        hankel_singular_values((A, B, C, D)),
        hankel_singular_values((scaled_A, scaled_B, scaled_C, D)),
        rtol=1e-9,
    )


# TB01KD, TB01LD and TB01WD share a model
A5 = table("""
    -0.04165    4.92  -4.92   0         0
    -1.387944  -3.33   0      0         0
     0.545      0      0     -0.545     0
     0          0      4.92  -0.04165   4.92
     0          0      0     -1.387944 -3.33
""")
B5 = np.zeros((5, 2))
B5[1, 0] = B5[4, 1] = 3.33
C5 = np.zeros((3, 5))
C5[[0, 1, 2], [0, 2, 3]] = 1


@pytest.mark.parametrize(
    "column, B, C",
    [
        (
            [0, 0, 0, 0],
            "2.0240 -2.0240\n-1.1309 1.1309\n-0.8621 -0.8621\n2.1912 2.1912\n-1.5555 1.5555",
            "0.6864 -0.0987 0.6580 0.2589 0.9650\n-0.0471 0.6873 0 0 -0.5609\n"
            "-0.6864 0.0987 0.6580 0.2589 -0.9650",
        ),
        (
            [1.1745, -2.1164, 0, 0],
            "-0.5543 0.5543\n-1.6786 1.6786\n-0.8621 -0.8621\n2.1912 2.1912\n-1.5555 1.5555",
            "0.6864 -0.0987 0.6580 0.2589 -0.1381\n-0.0471 0.6873 0 0 -0.7249\n"
            "-0.6864 0.0987 0.6580 0.2589 0.1381",
        ),
    ],
    ids=["TB01KD", "TB01LD and TB01WD"],
)
def test_modal_form_against_block_diagonal_and_schur_form(column, B, C):
    A = table("""
        -0.7483 -8.6406  0       0       0
         1.0374 -0.7483  0       0       0
         0       0      -1.6858  5.5669  0
         0       0      -0.7411 -1.6858  0
         0       0       0       0      -1.8751
    """)
    A[:4, 4] = column
    modal = hankelred.modal_form((A5, B5, C5, np.zeros((3, 2))))
    poles = [-0.7483 + 2.994j, -0.7483 - 2.994j, -1.6858 + 2.0311j, -1.6858 - 2.0311j, -1.8751]
    np.testing.assert_allclose(modal.poles, poles, atol=2 * FOUR)
    system = np.diag(modal.poles), modal.B, modal.C, modal.D
    assert_same_response(system, (A, table(B), table(C), np.zeros((3, 2))), FREQUENCIES, 4)


def test_frequency_response_of_tb05ad():
    A, B, C = table("1 2 0\n4 -1 0\n0 0 1"), np.array([[1.0], [0], [1]]), table("1 0 -1\n0 0 1")
    modal = hankelred.modal_form((A, B, C, 0))
    np.testing.assert_allclose(np.sort(modal.poles.real), [-3, 1, 3], atol=half_unit(2))
    G = response_at((np.diag(modal.poles), modal.B, modal.C, modal.D), [0.5j])[0, :, 0]
    np.testing.assert_allclose(G.real, [0.69, -0.80], atol=half_unit(2))
    np.testing.assert_allclose(G.imag, [0.35, -0.40], atol=half_unit(2))


def test_frequency_response_that_slycot_once_got_wrong():
    # slycot's test of TB05AD calls it a known failure: poles that are equal in pairs, one pair defective
    A = np.diag([-0.5, -1.0, -0.5, -1.0])
    A[2, 0] = A[3, 1] = 1
    B, C = np.eye(4, 2), table("0 1 1 0\n0 1 0 1\n0 1 1 1")
    system = A, B, C, np.zeros((3, 2))
    with pytest.raises(hankelred.ModelError):
        hankelred.modal_form(system)
    full = hankelred.balanced_realization(system)
    np.testing.assert_allclose(
        response_at(full, [10j])[0], response_at(system, [10j])[0], rtol=1e-12, atol=1e-15
    )


def test_cholesky_factor_of_sb03od():
    A = table("-1 37 -12 -12\n-1 -10 0 4\n2 -4 7 -6\n2 2 7 -9")
    C = table("1 2.5 1 3.5\n0 1 0 1\n-1 -2.5 -1 -1.5\n1 2.5 4 -5.5\n-1 -2.5 -4 3.5")
    X = table("1 3 2 -1\n3 10 5 -2\n2 5 6 -5\n-1 -2 -5 7")
    L = table("1 0 0 0\n3 1 0 0\n2 -1 1 0\n-1 1 -2 1")
    system = A, np.ones((4, 1)), C, np.zeros((5, 1))
    np.testing.assert_allclose(hankelred.gramian(system, "observability"), X, atol=FOUR)
    factor = hankelred.gramian(system, "observability", factor=True)
    # the triangular factor is that of any other, up to signs
    triangle = np.linalg.qr(factor.T, mode="r")
    np.testing.assert_allclose((triangle * np.sign(np.diag(triangle))[:, None]).T, L, atol=FOUR)


def test_generalised_cholesky_factor_of_sg03bd():
    # A^T X E + E^T X A = -C^T C, so that E^T X E is the observability Gramian of E^-1 A
    A, E = table("-1 3 -4\n0 5 -2\n-4 4 1"), table("2 1 3\n2 0 1\n4 5 1")
    C, U = table("2 -1 7"), table("1.6003 -0.4418 -0.1523\n0 0.6795 -0.2499\n0 0 0.2041")
    W = hankelred.gramian((A, np.ones((3, 1)), C, 0, E), "observability")
    triangle = np.linalg.cholesky(np.linalg.inv(E).T @ W @ np.linalg.inv(E)).T
    np.testing.assert_allclose(triangle, U, atol=FOUR)


@pytest.mark.parametrize(
    "corner, first, second",
    [
        (
            0.015,
            "0.3078 -1.5125 -1.2577 -0.2947 -0.5632 -1.0846 -1.2427 1.8097 0.6685 -0.0896",
            "-0.0928 1.2611 3.4002 -0.7060 5.4532 1.1846 2.2286 -1.9534 -4.4965 1.1654",
        ),
        (
            0.0,
            "0.3078 -1.5275 -1.3026 -0.3512 -0.5922 -1.1693 -1.3029 1.7529 0.6793 -0.0349",
            "-0.0928 1.2611 3.4002 -0.7060 5.4532 1.1846 2.2286 -1.9534 -4.4965 1.1654",
        ),
    ],
    ids=["TF01MD", "TF01ND"],
)
@pytest.mark.parametrize("method", ["blocks", "steps"])
def test_output_sequence(corner, first, second, method):
    A = table("0 1 0\n-0.07 0.8 0\n0 -0.15 0.5")
    A[2, 0] = corner
    B, C, D = table("0 -1\n2 -0.1\n1 1"), table("0 0 1\n1 0 0"), table("1 0\n0.5 0.5")
    u = table("""
        -0.6922  0.3081 2.0039 -0.9160 1.2556 -1.5734 -0.9942 0.8988 -1.4893  1.2506
        -1.4934 -2.7726 0.2614 -0.6030 0.2951  1.5639  1.8957 0.4118 -0.9344 -0.0701
    """)
    y = hankelred.simulate((A, B, C, D), u, x0=np.ones(3), dt=True, method=method)
    np.testing.assert_allclose(y, table(f"{first}\n{second}"), atol=FOUR)


def test_markov_parameters_of_tf01rd():
    A = table("0 1 0\n-0.07 0.8 0\n0.015 -0.15 0.5")
    B, C = table("0 -1\n2 -0.1\n1 1"), table("0 0 1\n1 0 0")
    printed = table("""
         1      1       0       -1
         0.2    0.5     2       -0.1
        -0.11   0.25    1.6     -0.01
        -0.202  0.125   1.14    -0.001
        -0.2039 0.0625  0.8     -0.0001
    """)
    h = hankelred.impulse_response((A, B, C, np.zeros((2, 2))), 6, dt=True)
    np.testing.assert_allclose(h[1:].reshape(5, 4), printed, atol=FOUR)


def test_markov_parameters_of_tf01qd():
    # numerator and denominator coefficients, without the leading one, in powers of 1 / z
    control = pytest.importorskip("control")
    num = [[[1, -0.5], [1]], [[0.5, -0.4, 0.3], [1, 0.5, -0.5, 0]]]
    den = [[[0.6, -0.2], [-0.8]], [[0.8, 0.4, 0.1], [-0.8, 0.6, 0, -0.2]]]
    plant = control.tf(num, [[[1, *coefficients] for coefficients in row] for row in den], True)
    printed = table("""
         1      1       0.5     1
        -1.1    0.8    -0.8     1.3
         0.86   0.64    0.74   -0.06
        -0.736  0.512  -0.322  -0.828
         0.6136 0.4096  0.0416 -0.4264
        -0.5154 0.3277  0.0215  0.4157
         0.4319 0.2621 -0.0017  0.5764
        -0.3622 0.2097 -0.0114  0.0461
    """)
    h = hankelred.impulse_response(plant, 9)
    np.testing.assert_allclose(h[1:].reshape(8, 4), printed, atol=FOUR)


def test_block_hankel_matrix_of_tf01od():
    printed = table("""
         1.0647 -0.4922 -0.3043 -0.0926 -0.1844  0.4441
        -0.4282 -1.2072  0.6883  0.7167 -0.8507 -0.0478
        -0.3043 -0.0926 -0.1844  0.4441  0.7195 -0.3955
         0.6883  0.7167 -0.8507 -0.0478  0.0500  0.5674
        -0.1844  0.4441  0.7195 -0.3955  1.3387  0.1073
        -0.8507 -0.0478  0.0500  0.5674 -0.2801 -0.5315
    """)
    parameters = table("""
         1.0647 -0.4922 -0.4282 -1.2072
        -0.3043 -0.0926  0.6883  0.7167
        -0.1844  0.4441 -0.8507 -0.0478
         0.7195 -0.3955  0.0500  0.5674
         1.3387  0.1073 -0.2801 -0.5315
    """).reshape(5, 2, 2)
    markov = np.concatenate([np.zeros((1, 2, 2)), parameters])
    values = hankelred.realize(markov).hankel_singular_values
    np.testing.assert_allclose(values, np.linalg.svd(printed)[1], rtol=1e-12)


def test_exponential_and_its_integral_of_mb05nd():
    # the columns are the states 0.1 s later, from unit vectors or under constant unit inputs
    A = table("5 4 3 2 1\n1 6 0 4 3\n2 0 7 6 5\n1 3 1 8 7\n2 5 7 1 9")
    exponential = table("""
        1.8391 0.9476 0.7920 0.8216 0.7811
        0.3359 2.2262 0.4013 1.0078 1.0957
        0.6335 0.6776 2.6933 1.6155 1.8502
        0.4804 1.1561 0.9110 2.7461 2.0854
        0.7105 1.4244 1.8835 1.0966 3.4134
    """)
    integral = table("""
        0.1347 0.0352 0.0284 0.0272 0.0231
        0.0114 0.1477 0.0104 0.0369 0.0368
        0.0218 0.0178 0.1624 0.0580 0.0619
        0.0152 0.0385 0.0267 0.1660 0.0732
        0.0240 0.0503 0.0679 0.0317 0.1863
    """)
    system = A, np.eye(5), np.eye(5), 0
    for k in range(5):
        unit, still = np.eye(5)[k], np.zeros((5, 2))
        y = hankelred.simulate(system, still, x0=unit, step=0.1)
        np.testing.assert_allclose(y[:, 1], exponential[:, k], atol=FOUR)
        y = hankelred.simulate(system, still + unit[:, None], step=0.1)
        np.testing.assert_allclose(y[:, 1], integral[:, k], atol=FOUR)


def test_exponential_and_eigenvalues_of_mb05md():
    A = table("0.5 0 2.3 -2.6\n0 0.5 -1.4 -0.7\n2.3 -1.4 0.5 0\n-2.6 -0.7 0 0.5")
    exponential = table("""
         26.8551 -3.2824  18.7409 -19.4430
         -3.2824  4.3474  -5.1848   0.2700
         18.7409 -5.1848  15.6012 -11.7228
        -19.4430  0.2700 -11.7228  15.6012
    """)
    system = A, np.eye(4), np.eye(4), 0
    for k in range(4):
        y = hankelred.simulate(system, np.zeros((4, 2)), x0=np.eye(4)[k], step=1.0)
        np.testing.assert_allclose(y[:, 1], exponential[:, k], atol=FOUR)
    np.testing.assert_allclose(hankelred.modal_form(system).poles, [4, 2, -1, -3], atol=half_unit(1))


# TB04AD, TB04BD, TB04CD and TD04AD are about one model: three poles, two inputs and outputs
DIAGONAL = np.diag([-1.0, -2, -3]), table("0 1\n1 1\n-1 0"), table("0 1 1\n1 1 1"), np.eye(2)
POINTS = 1j * np.array([0, 0.5, 2, 10])


def values_of(transfer_function, points):
    return np.array([transfer_function(s) for s in points])


@pytest.mark.parametrize(
    "num, den",
    [
        (
            [[[1, 6, 12, 7], [0, 1, 4, 3]], [[0, 0, 1, 1], [1, 8, 20, 15]]],
            [[[1, 6, 11, 6]] * 2] * 2,
        ),
        (
            [[[1, 5, 7, 0], [0, 1, 3, 0]], [[0, 0, 1, 1], [1, 8, 20, 15]]],
            [[[1, 5, 6, 0]] * 2, [[1, 6, 11, 6]] * 2],
        ),
        ([[[1, 5, 7], [1]], [[1], [1, 5, 5]]], [[[1, 5, 6], [1, 2]], [[1, 5, 6], [1, 3, 2]]]),
    ],
    ids=["TD04AD", "TB04AD", "TB04BD"],
)
def test_minimal_realization_of_a_transfer_matrix(num, den):
    control = pytest.importorskip("control")
    reduction = hankelred.reduce(control.tf(num, den))
    # the second has a pole at zero that its numerators cancel: it is marginal, and kept by the rules
    assert reduction.order == 3 + reduction.unstable_order
    finite = reduction.hankel_singular_values[reduction.unstable_order :]
    np.testing.assert_allclose(finite[:3], hankel_singular_values(DIAGONAL), rtol=1e-9)
    G = values_of(reduction.system, POINTS[1:])
    np.testing.assert_allclose(G, response_at(DIAGONAL, POINTS[1:]), atol=1e-9)


def test_printed_realization_of_td04ad():
    printed = (
        table("0.5000 -0.8028 0.9387\n4.4047 -2.3380 2.5076\n-5.5541 1.6872 -4.1620"),
        table("-0.2 -1.25\n0 -0.6097\n0 2.2217"),
        table("0 -0.8679 0.2119\n0 0 0.9002"),
        np.eye(2),
    )
    assert_same_response(hankelred.balanced_realization(DIAGONAL), printed, POINTS, 4)


@pytest.mark.parametrize(
    "output, input_, zeros, poles",
    [
        (0, 0, [-2.5 + 0.8660j, -2.5 - 0.8660j], [-2, -3]),
        (1, 0, [], [-2, -3]),
        (0, 1, [], [-2]),
        (1, 1, [-3.6180, -1.3820], [-1, -2]),
    ],
)
def test_zeros_poles_and_gains_of_tb04cd(output, input_, zeros, poles):
    signal = pytest.importorskip("scipy.signal")
    A, B, C, D = DIAGONAL
    entry = A, B[:, [input_]], C[[output]], D[[output]][:, [input_]]
    printed = signal.ZerosPolesGain(zeros, poles, 1.0)
    reduced = hankelred.reduce(printed)
    assert reduced.order == len(poles) == hankelred.reduce(entry).order
    np.testing.assert_allclose(
        reduced.hankel_singular_values, hankel_singular_values(entry)[: len(poles)], atol=2 * FOUR
    )
    np.testing.assert_allclose(np.sort(reduced.system.poles.real), np.sort(poles), atol=1e-9)
    np.testing.assert_allclose(
        np.sort_complex(reduced.system.zeros), np.sort_complex(np.array(zeros, complex)), atol=1e-6
    )
    np.testing.assert_allclose(reduced.system.gain, 1.0, rtol=1e-9)


def test_columns_with_a_common_denominator_of_slycot():
    # slycot's test of TD04AD by columns, and its realization of order 3
    control = pytest.importorskip("control")
    num = [[[0, 0, 1], [1, 0]], [[3, -1, 1], [0, 1]], [[0, 0, 1], [0, 2]]]
    den = [[[1, 0.4, 3], [1, 1]]] * 3
    A, B, C = (
        table("-1 0 0\n0 -0.4 -0.3\n0 10 0"),
        table("0 -1\n1 0\n0 0"),
        table("1 0 0.1\n-1 -2.2 -0.8\n-2 0 0.1"),
    )
    reference = A, B, C, table("0 1\n3 0\n0 0")
    plant = control.tf(num, den)
    reduction = hankelred.reduce(plant)
    assert reduction.order == 3
    np.testing.assert_allclose(
        reduction.hankel_singular_values[:3], hankel_singular_values(reference), rtol=1e-9
    )
    G = values_of(reduction.system, POINTS)
    np.testing.assert_allclose(G, response_at(reference, POINTS), atol=1e-9)


def test_no_state_is_reached_in_slycots_regression():
    # slycot gh-242: 67 states, none reached, none observed
    system = -np.eye(67), np.zeros((67, 1)), np.zeros((1, 67)), [[42.24]]
    reduction = hankelred.reduce(system)
    assert reduction.order == 0
    np.testing.assert_array_equal(reduction.system[3], [[42.24]])


@pytest.mark.parametrize("discrete", [False, True])
def test_h2_norm_of_slycots_oscillator(discrete):
    # slycot's test of AB13BD compares with both Lyapunov equations, to 1e-5
    import scipy.linalg as sla
    import scipy.signal as signal

    A, B, C, D = table("0 1\n-0.5 -0.1"), np.array([[0.0], [1]]), np.eye(2), np.zeros((2, 1))
    if discrete:
        A, B, C, D, _ = signal.cont2discrete((A, B, C, D), 0.1, method="zoh")
        P = sla.solve_discrete_lyapunov(A, B @ B.T)
    else:
        P = sla.solve_continuous_lyapunov(A, -B @ B.T)
    energy = np.trace(C @ P @ C.T + D @ D.T)
    np.testing.assert_allclose(norm((A, B, C, D), "h2", dt=0.1 * discrete), np.sqrt(energy), rtol=1e-10)


def test_printed_digits_are_worth_something():
    # the comparison itself: one digit more than rounding explains is noticed
    G, slack = printed_response(AXIS, FREQUENCIES, 4)
    assert np.all(slack < 0.02) and np.all(slack >= 5e-5) and np.abs(G).max() > 1
    A, B, C, D = AXIS
    with pytest.raises(AssertionError, match="printed digits"):
        assert_same_response((A, B, C, D + 0.02), AXIS, FREQUENCIES, 4)
