"""Models of second order: dense in energy coordinates, sparse, and reduced to second order again."""

from __future__ import annotations

import warnings

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg as sla
import scipy.sparse as sp
from helpers.data import second_order_model
from helpers.sparse_models import beam, chain, modal_values

import hankelred
from hankelred import (
    ConvergenceError,
    ModelError,
    OrderError,
    ReductionWarning,
    SecondOrderModel,
    hankel_singular_values,
)
from hankelred.gramians.deflation import rigid_body_part
from hankelred.gramians.low_rank import low_rank_factors
from hankelred.models.sparse_model import any_model


def dense(parts):
    return [each.toarray() if sp.issparse(each) else each for each in parts]


def exact_response(parts, w):
    """Cp (K + i w D - w^2 M)^-1 B to 50 digits."""
    M, D, K, B, C = (mp.matrix(np.asarray(each).tolist()) for each in parts)
    s = mp.mpc(0, w)
    return (C * mp.lu_solve(M * s * s + D * s + K, B))[0]


def exact_response_of_state_space(system, w):
    A, B, C, D = (mp.matrix(np.asarray(each).tolist()) for each in system)
    return (C * mp.lu_solve(mp.mpc(0, w) * mp.eye(A.rows) - A, B) + D)[0]


def test_singular_values_of_modal_damping():
    parts = chain(40, 1e-2, 1e-1)
    truth = modal_values(*parts)
    np.testing.assert_allclose(
        hankel_singular_values(SecondOrderModel(*parts)), truth, rtol=1e-8, atol=1e-12 * truth[0]
    )


def test_output_of_velocities_and_direct_term():
    rng = np.random.default_rng(0)
    M, D, K, B, _ = dense(chain(6, 0.1, 0.1))
    Cp, Cv, Du = rng.standard_normal((2, 6)), rng.standard_normal((2, 6)), rng.standard_normal((2, 1))
    for system in (
        SecondOrderModel(M, D, K, B, Cp, Cv, Du),
        SecondOrderModel(sp.csr_array(M), D, K, B, Cp, Cv, Du),
    ):
        A, B1, C1, D1 = system.dense().as_tuple()
        for s in (0.3j, 2 + 1j):
            expected = (Cp + s * Cv) @ np.linalg.solve(s**2 * M + s * D + K, B) + Du
            got = C1 @ np.linalg.solve(s * np.eye(12) - A, B1) + D1
            np.testing.assert_allclose(got, expected, rtol=1e-12)
    y = hankelred.simulate(SecondOrderModel(M, D, K, B, Cp, Cv, Du), np.ones(4), step=0.1)
    assert y.shape == (2, 4) and np.all(y[:, 0] == Du[:, 0])


def test_gyroscopic_and_unsymmetric_stiffness():
    rng = np.random.default_rng(1)
    M, D, K, B, C = dense(chain(8, 0.5, 0.5))
    G = rng.standard_normal((8, 8))
    for system in (SecondOrderModel(M, D + G - G.T, K, B, C), SecondOrderModel(M, D, K + 0.1 * G, B, C)):
        A, B1, C1, _ = system.dense().as_tuple()
        s = 0.7j
        expected = C @ np.linalg.solve(s**2 * system.M + s * system.D + system.K, B)
        np.testing.assert_allclose(C1 @ np.linalg.solve(s * np.eye(16) - A, B1), expected, rtol=1e-10)


@pytest.mark.parametrize("order", [2, 8, 10])
@pytest.mark.slow
def test_beam_of_slicot_to_fifty_digits(order):
    """In companion form, with entries of 1e13 beside ones, 8 states had an error 68 times the bound."""
    parts = second_order_model("LF10")
    reduction = hankelred.reduce(SecondOrderModel(*parts), order)
    poles = np.linalg.eigvals(reduction.model.A)
    frequencies = np.concatenate([[0.0], np.geomspace(1e-4, 1e6, 21), np.abs(poles.imag)])
    with mp.workdps(50):
        error = max(
            float(abs(exact_response(parts, w) - exact_response_of_state_space(reduction.system, w)))
            for w in frequencies
        )
    assert error <= reduction.error_bound + reduction.noise_floor
    assert error == pytest.approx(reduction.error(), rel=0.1)


@pytest.mark.parametrize("order", [11, 13])
def test_what_the_conversion_rounds_is_in_the_bound(order):
    """Energy coordinates round M, D and K: 34 times the bound that the state space alone would have."""
    parts = second_order_model("LF10")
    reduction = hankelred.reduce(SecondOrderModel(*parts), order)
    with mp.workdps(50):
        error = max(
            float(abs(exact_response(parts, w) - exact_response_of_state_space(reduction.system, w)))
            for w in np.concatenate([[0.0], np.geomspace(1e-3, 1e5, 11)])
        )
    assert reduction.error() < 0.5 * error <= 0.5 * (reduction.error_bound + reduction.noise_floor)


@pytest.mark.slow
def test_structure_is_kept_on_request():
    parts = second_order_model("LF10")
    system = SecondOrderModel(*parts)
    reduction = hankelred.reduce(system, 8, structure="second_order")
    small = reduction.system
    assert isinstance(small, SecondOrderModel) and small.n_states == reduction.order == 8
    assert reduction.error_bound == np.inf and reduction.certificate.kind == "estimate"
    np.testing.assert_allclose(small.M, np.eye(4), atol=1e-9)
    reduced = small.M, small.D, small.K, small.B, small.Cp
    with mp.workdps(50):
        error = max(
            float(abs(exact_response(parts, w) - exact_response(reduced, w)))
            for w in np.concatenate([[0.0], np.geomspace(1e-3, 1e5, 41)])
        )
    assert error <= reduction.error() * 1.1
    # what pyMOR 2026.1 has for the same method: 3.5e-9 to 3.1e-8 of the largest gain
    assert reduction.error() <= 5e-9 * hankelred.norm(system, "hinf")


@pytest.mark.parametrize("solver", ["dense", "low_rank"])
def test_structure_of_a_beam(solver):
    system = SecondOrderModel(*beam(20))
    gain = hankelred.norm(system, "hinf", solver="dense")
    for structure in ("first_order", "second_order"):
        reduction = hankelred.reduce(system, 10, structure=structure, solver=solver)
        assert reduction.error() / gain == pytest.approx(1.32e-4, rel=5e-3)
        assert np.all(np.linalg.eigvals(reduction.model.A).real < 0)


def test_wrong_uses_of_structure():
    system = SecondOrderModel(*beam(10))
    with pytest.raises(OrderError, match="even"):
        hankelred.reduce(system, 5, structure="second_order")
    with pytest.warns(ReductionWarning, match="order 400 was requested"):
        assert hankelred.reduce(system, 400, structure="second_order").order == 40
    for options in ({}, {"tol": 1e-3}, {"order": 4, "method": "residualization"}):
        with pytest.raises(ModelError, match="takes an order"):
            hankelred.reduce(system, structure="second_order", **options)
    with pytest.raises(ModelError, match="SecondOrderModel"):
        hankelred.reduce(([[-1.0]], [[1.0]], [[1.0]], 0), 2, structure="second_order")
    with pytest.raises(ModelError, match="structure"):
        hankelred.reduce(system, 4, structure="third_order")
    free = SecondOrderModel(np.eye(2), np.eye(2), [[1, -1], [-1, 1]], [[1], [0]], [[0, 1]])
    with pytest.raises(ModelError, match="rigid body"):
        hankelred.reduce(free, 2, structure="second_order")


@pytest.mark.parametrize("damping", [0.2, 0.0], ids=["internal", "with friction"])
def test_rigid_body_modes_are_kept(damping):
    n = 120
    off = -np.ones(n - 1)
    K = sp.csc_array(sp.diags([off, np.r_[1, 2 * np.ones(n - 2), 1], off], [-1, 0, 1]))
    D = sp.csc_array(0.2 * K if damping else 0.2 * K + 0.05 * sp.identity(n))
    B, C = np.zeros((n, 1)), np.zeros((1, n))
    B[3], C[0, -4] = 1, 1
    system = SecondOrderModel(sp.identity(n), D, K, B, C)
    dense_values = hankel_singular_values(system, solver="dense")
    values = hankel_singular_values(system, solver="low_rank")
    k = int(np.isinf(dense_values).sum())
    assert k == (2 if damping else 1) and np.isinf(values).sum() == k
    np.testing.assert_allclose(values[k : k + 6], dense_values[k : k + 6], rtol=1e-5)


def free_beam(elements, friction):
    """A beam without supports, whose two rigid body modes are undamped, or damped by friction."""
    M, _, K, B, _ = beam(elements + 1)
    # the beam of one more element, without the first element, from its own matrices
    end = 1 / (elements + 1)
    x = np.array([1.0, end])  # the matrices of one element scale with its length in this way
    element_M, element_K = (beam(1)[k].toarray() for k in (0, 2))
    M, K = M.tolil(), K.tolil()
    M[:2, :2] -= element_M * np.outer(x, x) * end
    K[:2, :2] -= element_K * np.outer(x, x) / end**3
    M, K = sp.csc_array(M), sp.csc_array((K + K.T) / 2)
    return SecondOrderModel(M, friction * M + 1e-5 * K, K, B, B.T)


@pytest.mark.parametrize("friction", [0.0, 0.1])
@pytest.mark.parametrize("elements", [20, 100])
def test_beam_without_supports(elements, friction):
    """Of 100 elements, the dense way returned three integrators and a fourth value of 1e6 instead of four.

    Both poles of a rigid body mode are one double pole, which rounding moves by the square root of its size,
    and the low-rank solver could not deflate two such modes.
    """
    system = free_beam(elements, friction)
    dense_values = hankel_singular_values(system, solver="dense")
    # rounding of K moves the slow pole of friction by a share of 1e-6
    values = hankel_singular_values(system, solver="low_rank", accuracy=1e-3)
    for each in (dense_values, values):
        assert np.isinf(each).sum() == (2 if friction else 4)
    # the elastic modes of the free beam, and with friction the pole of translation and rotation at -friction
    free = int(np.isinf(values).sum())
    np.testing.assert_allclose(values[free : free + 8], dense_values[free : free + 8], rtol=1e-4)
    M, _, K = (each.toarray() for each in (system.M, system.D, system.K))
    squares, modes = sla.eigh(K, M)
    elastic = slice(2, None)
    b = modes.T @ system.B
    damping = (friction + 1e-5 * squares[elastic]) / 2
    root = np.sqrt((damping**2 - squares[elastic]).astype(complex))
    poles = np.concatenate([-damping + root, -damping - root])
    weights = np.concatenate([1 / (2 * root), -1 / (2 * root)])[:, None]
    inputs, outputs = np.concatenate([b[elastic]] * 2) * weights, np.concatenate([b[elastic]] * 2).T
    if friction:  # 1 / (s (s + friction)) = (1 / s - 1 / (s + friction)) / friction
        poles = np.concatenate([poles, [-friction, -friction]])
        inputs = np.concatenate([inputs, -b[:2] / friction])
        outputs = np.concatenate([outputs, b[:2].T], axis=1)
    truth = hankel_singular_values(hankelred.ModalSystem(poles, inputs, outputs, dt=0))
    np.testing.assert_allclose(values[free : free + 8], truth[:8], rtol=1e-4)
    np.testing.assert_allclose(dense_values[free : free + 8], truth[:8], rtol=1e-4)


def test_three_bodies():
    # a free body in the plane has three such modes; some with friction, some without
    n = 60
    off = -np.ones(n - 1)
    body = sp.csc_array(sp.diags([off, np.r_[1, 2 * np.ones(n - 2), 1], off], [-1, 0, 1]))
    K = sp.csc_array(sp.block_diag([body, 1.3 * body, 0.8 * body]))
    ground = sp.diags([np.repeat([0.3, 0.0, 0.1], n)], [0])
    B = np.zeros((3 * n, 3))
    B[10, 0] = B[90, 1] = B[150, 2] = 1
    system = SecondOrderModel(sp.identity(3 * n), 0.5 * K + ground, K, B, B.T)
    dense_values = hankel_singular_values(system, solver="dense")
    values = hankel_singular_values(system, solver="low_rank")
    assert np.isinf(values).sum() == np.isinf(dense_values).sum() == 4
    np.testing.assert_allclose(values[4:12], dense_values[4:12], rtol=1e-5)
    reduction = hankelred.reduce(system, 16, solver="low_rank")
    assert reduction.unstable_order == 4
    A, B_r, C_r, _ = reduction.system
    for w in (0.05, 0.3, 2.0):
        full = system.Cp @ np.linalg.solve(
            system.K.toarray() + 1j * w * system.D.toarray() - w**2 * np.eye(3 * n), B.astype(complex)
        )
        small = C_r @ np.linalg.solve(1j * w * np.eye(16) - A, B_r.astype(complex))
        assert np.linalg.norm(full - small, 2) <= 2.1 * dense_values[16:].sum()


def free_bodies(count, form=np.asarray, damping=0.1):
    """Bodies of two masses each, M, D, K, B and C, and the squared frequency of each by formula."""
    scales = np.linspace(0.3, 1.7, count)
    M = np.kron(np.eye(count), np.diag([1.0, 2.0]))
    K = np.kron(np.diag(scales), [[3.0, -3.0], [-3.0, 3.0]])
    B, C = np.ones((2 * count, 1)), np.ones((1, 2 * count))
    B[::2] = 0
    return SecondOrderModel(form(M), form(damping * K), form(K), B, C), 4.5 * scales


def values_of_elastic_modes(squares, inputs, outputs, damping):
    """Hankel singular values of parallel modes with stiffness damping, from their poles."""
    real = -damping * squares / 2
    root = np.sqrt((real**2 - squares).astype(complex))
    weights = np.concatenate([1 / (2 * root), -1 / (2 * root)])[:, None]
    poles = np.concatenate([real + root, real - root])
    return hankel_singular_values(
        hankelred.ModalSystem(
            poles, np.concatenate([inputs] * 2) * weights, np.concatenate([outputs] * 2).T, dt=0
        )
    )


@pytest.mark.parametrize("solver", ["dense", "low_rank"])
@pytest.mark.parametrize("count", [1, 2, 7, 12, 13, 15, 20, 40])
def test_many_free_bodies(count, solver):
    """Story: rigid body modes were searched for among the twelve slowest modes only.

    Of 15 bodies there were 28 infinite values instead of 30, then 7.7e14 and 2.1e12, and no warning. Sparse
    models of 13 bodies were refused without a remedy, those of one or two could not be deflated.
    """
    form = sp.csc_array if solver == "low_rank" else np.asarray
    system, squares = free_bodies(count, form)
    values = hankel_singular_values(system, solver=solver)
    assert np.isinf(values).sum() == 2 * count
    # the elastic mode of masses 1 and 2 is (2, -1) / sqrt(6); force at the second, both positions as outputs
    inputs, outputs = np.full((count, 1), -1 / 6**0.5), np.full((count, 1), 1 / 6**0.5)
    truth = values_of_elastic_modes(squares, inputs, outputs, 0.1)
    finite = values[np.isfinite(values)][:6]
    np.testing.assert_allclose(finite, truth[: finite.size], rtol=1e-4, atol=1e-4 * truth[0])
    assert finite.size >= min(6, truth.size) - 1


@pytest.mark.parametrize("solver", ["dense", "low_rank"])
def test_many_bodies_in_equal_copies(solver):
    # all frequencies are repeated, so that an iteration from one vector finds some of the modes only
    count = 40
    K = np.kron(np.eye(count), [[3.0, -3.0], [-3.0, 3.0]])
    B = np.zeros((2 * count, 1))
    B[3] = 1
    form = sp.csc_array if solver == "low_rank" else np.asarray
    system = SecondOrderModel(form(np.eye(2 * count)), form(0.1 * K), form(K), B, B.T)
    values = hankel_singular_values(system, solver=solver)
    assert np.isinf(values).sum() == 2 * count
    truth = values_of_elastic_modes(
        np.array([6.0]), np.full((1, 1), 0.5**0.5), np.full((1, 1), 0.5**0.5), 0.1
    )
    np.testing.assert_allclose(values[np.isfinite(values)][:2], truth, rtol=1e-4)


def test_reduction_of_many_free_bodies():
    system, _ = free_bodies(15)
    reduction, values = hankelred.reduce(system, 34), hankel_singular_values(system)
    assert reduction.unstable_order == 30
    A, B, C, _ = reduction.system
    for w in (0.3, 1.0, 2.5):
        full = system.Cp @ np.linalg.solve(system.K + 1j * w * system.D - w**2 * system.M, system.B + 0j)
        small = C @ np.linalg.solve(1j * w * np.eye(34) - A, B + 0j)
        assert abs(full - small).item() <= 2.001 * values[34:].sum()


def test_bound_of_a_model_with_rigid_body_modes():
    """scipy's warning of a singular K reached the user: the response is infinite at frequency zero."""
    system, _ = free_bodies(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduction = hankelred.reduce(system, 8)
        bound = reduction.error_bound
    assert reduction.unstable_order == 6
    tail = reduction.hankel_singular_values[8:].sum()
    assert 2 * tail <= bound <= 2 * tail * (1 + 1e-6)
    for w in np.geomspace(0.1, 30, 50):
        s = 1j * w
        full = system.Cp @ np.linalg.solve(system.M * s**2 + system.D * s + system.K, system.B)
        A, B, C, D = reduction.system
        small = C @ np.linalg.solve(s * np.eye(8) - A, B) + D
        assert abs(full - small).item() <= bound * (1 + 1e-6)


def test_rigid_body_modes_of_a_stiffness_with_rounding():
    """Story: a dense K that was not exactly symmetric kept its double poles with half of the digits."""
    system, _ = free_bodies(3)
    K = system.K.copy()
    K[0, 1] *= 1 + 2**-52
    values = hankel_singular_values(SecondOrderModel(system.M, system.D, K, system.B, system.Cp))
    expected = hankel_singular_values(system)
    assert np.isinf(values).sum() == 6
    np.testing.assert_allclose(values[6:10], expected[6:10], rtol=1e-8)


@pytest.mark.parametrize("elements", [300, 1000])
@pytest.mark.parametrize("by", ["values", "reduction"])
def test_fine_mesh_of_a_free_beam_with_friction(elements, by):
    """Story: only poles at zero were deflated, and rounding of K moved the other pole of each rigid mode.

    With 1000 elements its squared frequency, 0.01, is as large as this rounding, and the model was refused.
    """
    friction, length = 0.1, elements / (elements + 1)
    system = free_beam(elements, friction)
    # of the beam itself: roots of cos(x) cosh(x) = 1, and all elastic modes are 2 / sqrt(length) at the end
    roots = [4.7300407448627, 7.8532046240958, 10.995607838002, 14.137165491257]
    roots += [(k + 0.5) * np.pi for k in range(5, 40)]
    squares = (np.array(roots) / length) ** 4
    damping = (friction + 1e-5 * squares) / 2
    root = np.sqrt((damping**2 - squares).astype(complex))
    poles = np.concatenate([-damping + root, -damping - root, [-friction]])
    inputs = np.concatenate([1 / (2 * root), -1 / (2 * root), [-1 / friction]])[:, None]
    # translation and rotation contribute 1 + 3 to the square of the deflection at the end
    truth = hankel_singular_values(
        hankelred.ModalSystem(poles, inputs, np.full((1, poles.size), 4 / length), dt=0)
    )
    if by == "values":
        values = hankel_singular_values(system, solver="low_rank")
    else:
        values = hankelred.reduce(system, 10, solver="low_rank").hankel_singular_values
    assert np.isinf(values).sum() == 2
    np.testing.assert_allclose(values[2:10], truth[:8], rtol=1e-4)


def test_poles_of_friction_are_known_unless_it_acts_on_elastic_modes():
    """The pencil's own products must confirm both subspaces, each of which does not contain the other."""
    system = free_beam(40, 0.3)
    pencil = system._pencil(None)
    part = rigid_body_part(pencil)
    for known, poles in ((part.at_origin, [0, 0]), (part.damped, [-0.3, -0.3])):
        np.testing.assert_allclose(np.linalg.eigvals(known.A), poles, atol=1e-10)
        image = pencil.E(known.right)
        scale = 1e-12 * abs(pencil.K).max()
        np.testing.assert_allclose(pencil.A(known.right), image @ known.A, atol=scale)
        left = pencil.A(known.left, transposed=True)
        np.testing.assert_allclose(left, pencil.E(known.left, transposed=True) @ known.A.T, atol=scale)
        np.testing.assert_allclose(known.left.T @ image, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(part.damped.left.T @ pencil.E(part.at_origin.right), 0, atol=1e-9)
    np.testing.assert_allclose(part.at_origin.left.T @ pencil.E(part.damped.right), 0, atol=1e-9)
    D = system.D.tolil()
    D[-2, -2] += 0.5  # a damper at one end
    damper = SecondOrderModel(system.M, D.tocsc(), system.K, system.B, system.Cp)
    assert rigid_body_part(damper._pencil(None)).damped is None


@pytest.mark.parametrize("friction", [-0.001, -0.003])
def test_negative_friction_on_rigid_body_modes(friction):
    """Story: their unstable poles were known but not deflated, and the iteration met them or did not end."""
    system = free_beam(40, friction)
    values, expected = (hankel_singular_values(system, solver=solver) for solver in ("low_rank", "dense"))
    assert np.isinf(values).sum() == np.isinf(expected).sum() == 4
    np.testing.assert_allclose(values[4:12], expected[4:12], rtol=1e-5)


def two_beams(first, second):
    one, other = free_beam(40, first), free_beam(40, second)
    pairs = ((one.M, other.M), (one.D, other.D), (one.K, other.K))
    B = np.vstack([one.B, other.B])
    return SecondOrderModel(*(sp.block_diag(pair, format="csc") for pair in pairs), B, B.T)


@pytest.mark.parametrize("other", [0.0, -0.002])
def test_negative_friction_on_two_bodies(other):
    system = two_beams(-0.001, other)
    values, expected = (hankel_singular_values(system, solver=solver) for solver in ("low_rank", "dense"))
    infinite = int(np.isinf(expected).sum())
    assert infinite == np.isinf(values).sum()
    np.testing.assert_allclose(values[infinite:][:8], expected[infinite:][:8], rtol=1e-3)


def test_friction_of_both_signs_is_an_error():
    """Deflated as well, the other values were wrong by 0.6 of the largest at accuracy=0.01."""
    with pytest.raises((ConvergenceError, ModelError)):
        hankel_singular_values(two_beams(-0.001, 0.3), solver="low_rank", accuracy=0.01)


@pytest.mark.parametrize("frictions", [(0.0, 0.3), (0.0, 0.0), (0.1, 0.3)])
@pytest.mark.parametrize("accuracy", [0.01, 1e-3])
def test_equal_bodies_with_different_friction(frictions, accuracy):
    """At accuracy=0.01 values were wrong by half of the largest, in silence.

    Modes of equal bodies have equal frequencies, so that those computed were combinations of both bodies,
    with their mean damping, and the resonances of the undamped one were neither shifts nor sampled.
    """
    system = two_beams(*frictions)
    values, expected = (
        hankel_singular_values(system, solver=solver, **options)
        for solver, options in (("low_rank", {"accuracy": accuracy}), ("dense", {}))
    )
    infinite = int(np.isinf(expected).sum())
    assert infinite == np.isinf(values).sum()
    size = min(values.size, expected.size)
    error = np.abs(values[infinite:size] - expected[infinite:size]).max()
    assert error <= accuracy * expected[infinite]


def skew_damped(elements, supported):
    """A beam with damping that does not prove its stability."""
    system = SecondOrderModel(*beam(elements)) if supported else free_beam(elements, 0.1)
    n = system.M.shape[0]
    skew = sp.csc_array(([1e-6, -1e-6], ([0, 1], [1, 0])), shape=(n, n))
    return SecondOrderModel(system.M, 6 * system.M + skew, system.K, system.B, system.Cp)


def test_clamped_beam_is_not_taken_for_a_free_one():
    """Story: with 5000 elements, |K z| of its slowest mode is as small as rounding makes that of a free beam.

    That mode was deflated as an integrator, and 22.02 was the slowest frequency instead of 3.516.
    """
    for elements in (300, 1000, 2000):
        pencil = skew_damped(elements, True)._pencil(None)
        assert pencil.rigid_body_modes()[0].shape[1] == 0
    for elements in (3000, 5000, 8000):
        with pytest.raises(ConvergenceError, match="coarser mesh"):
            hankel_singular_values(skew_damped(elements, True), solver="low_rank", accuracy=0.03)
    # the frequencies of a free beam are those of beta L = 4.7300, in units of the clamped one
    for elements in (300, 1000, 2000):
        modes, slowest = skew_damped(elements, False)._pencil(None).rigid_body_modes()
        assert modes.shape[1] == 2 and slowest == pytest.approx(4.730041**2, rel=1e-2)
    with pytest.raises(ConvergenceError, match="coarser mesh"):
        skew_damped(5000, False)._pencil(None).rigid_body_modes()


@pytest.mark.parametrize("stiffness, count", [(1e-10, 0), (1e-13, 0), (4e-15, None), (0, 1)])
@pytest.mark.parametrize("form", [np.asarray, sp.csc_array], ids=["dense", "sparse"])
def test_soft_support(form, stiffness, count):
    # a chain held by a spring much softer than those between its masses; in between this is uncertain
    n = 30
    K = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    K[0, 0] = K[-1, -1] = 1
    K += stiffness * np.eye(n)
    system = SecondOrderModel(form(np.eye(n)), form(0.1 * K), form(K), np.eye(n, 1), np.eye(1, n))

    def number():
        if form is np.asarray:
            return system._rigid_body_modes().shape[1]
        return system._pencil(None).rigid_body_modes()[0].shape[1]

    if count is None:
        with pytest.raises(ConvergenceError, match="supports"):
            number()
    else:
        assert number() == count


def test_stiffness_zero():
    # nothing but rigid body modes: two integrators each
    system = SecondOrderModel(np.diag([1.0, 2.0]), np.zeros((2, 2)), np.zeros((2, 2)), np.eye(2), np.eye(2))
    assert np.all(np.isinf(hankel_singular_values(system)))


def test_sparse_model_is_never_brought_to_companion_form():
    system = SecondOrderModel(*beam(60))
    factors = low_rank_factors(any_model(system, 0, "low_rank"))
    assert factors.problem.pencil.family.matrices[0].shape == (120, 120)
    # A + s E of the companion form, against the N x N factorization
    pencil = factors.problem.pencil
    rng = np.random.default_rng(0)
    for shift in (-3.0, -2.0 + 40j):
        for transposed in (False, True):
            x = rng.standard_normal((240, 2)) + (1j * rng.standard_normal((240, 2)) if shift.imag else 0)
            b = pencil.A(x, transposed=transposed) + shift * pencil.E(x, transposed=transposed)
            solved = pencil.shifted(complex(shift))(b, transposed=transposed)
            np.testing.assert_allclose(solved, x, atol=1e-5 * np.abs(x).max())


@pytest.mark.parametrize("matrix", [np.zeros, sp.csc_array], ids=["dense", "sparse"])
def test_model_without_states(matrix):
    """Story: the check of symmetry took the largest of no entries, and numpy's ValueError escaped."""
    M = matrix((0, 0))
    system = SecondOrderModel(M, M, M, np.zeros((0, 1)), np.zeros((2, 0)), Du=[[3.0], [4.0]])
    assert hankel_singular_values(system).size == 0
    assert hankelred.norm(system, "hinf") == pytest.approx(5.0)


def test_bad_models_are_refused():
    M, D, K, B, C = dense(chain(4, 0.1, 0.1))
    good = {"M": M, "D": D, "K": K, "B": B, "Cp": C}

    def refused(says, **changed):
        with pytest.raises(ModelError, match=says):
            hankel_singular_values(SecondOrderModel(**{**good, **changed}))

    refused("M must be positive definite", M=-M)
    refused("M must be positive definite", M=np.ones((4, 4)))
    refused("M must be symmetric", M=M + np.triu(np.ones((4, 4)), 1))
    refused("D must have shape", D=D[:3, :3])
    refused("K must be square", K=K[:, :3])
    refused("B must have 4 rows", B=B[:3])
    refused("Cp must have 4 columns", Cp=C[:, :3])
    refused("Cv must have 4 columns", Cv=C[:, :3])
    refused(r"K\[1, 2\] is nan", K=np.where((np.arange(4) == 2) & (np.arange(4)[:, None] == 1), np.nan, K))
    refused("must be real", D=D * 1j)
    refused("Du must have shape", Du=np.ones((2, 2)))
