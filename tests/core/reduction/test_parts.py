"""Hidden modes, stable and unstable parts, chosen states; the norms of unstable models; several orders."""

from __future__ import annotations

import control
import numpy as np
import pytest
import scipy.linalg as sla
import scipy.signal as signal
from helpers.reference import random_system, similar
from hypothesis import given, settings
from hypothesis import strategies as st

from hankelred import (
    ModelError,
    OrderError,
    ReductionWarning,
    balanced_realization,
    minimal,
    norm,
    reduce,
    split,
    truncate_states,
)

POINTS = {False: 1j * np.geomspace(0.01, 100, 40) + 0.3, True: 1.1 * np.exp(1j * np.linspace(0, 3, 40))}


def response(system, discrete=False):
    A, B, C, D = (np.atleast_2d(M) for M in system)
    return np.array([C @ np.linalg.solve(s * np.eye(len(A)) - A, B) + D for s in POINTS[discrete]])


def with_hidden_modes(seed, discrete, hidden):
    """Visible and hidden modes of every stability, in mixed coordinates."""
    rng = np.random.default_rng(seed)
    A, B, C, D = random_system(seed, 4, 2, 2, discrete=discrete)
    out = [1.4, -1.1, 1.0] if discrete else [0.7, 2.0, 0.0]
    A = sla.block_diag(A, np.diag(out))
    B, C = np.vstack([B, rng.normal(size=(3, 2))]), np.hstack([C, rng.normal(size=(2, 3))])
    for k, pole in enumerate(hidden):
        A = sla.block_diag(A, pole)
        B = np.vstack([B, np.zeros((1, 2)) if k % 2 else rng.normal(size=(1, 2))])
        C = np.hstack([C, rng.normal(size=(2, 1)) if k % 2 else np.zeros((2, 1))])
    return similar(A, B, C, D, rng, orthogonal=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_hidden_modes_of_any_stability_are_removed(seed, discrete):
    hidden = [0.3, 1.7, -1.0, 0.5] if discrete else [-0.5, 3.0, 0.4, -2.0]
    system = with_hidden_modes(seed, discrete, hidden)
    smaller = minimal(system, dt=discrete)
    assert len(smaller[0]) == 7
    first, second = response(system, discrete), response(smaller, discrete)
    np.testing.assert_allclose(second, first, atol=1e-8 * np.abs(first).max())


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_hidden_chains_of_integrators_are_removed(seed, discrete):
    """They were refused: at their computed poles, 1e-8, the response of the full model is rounding."""
    A, B, C, D = random_system(seed, 5, 2, 1, discrete=discrete)
    rng = np.random.default_rng(seed)
    chain = np.eye(2, k=1) + discrete * np.eye(2)
    T = rng.standard_normal((7, 7))
    for reached, observed in ((0, 1), (1, 0), (1, 1)):
        Bc, Cc = reached * rng.standard_normal((2, 2)), observed * rng.standard_normal((1, 2))
        states = T @ sla.block_diag(A, chain) @ np.linalg.inv(T)
        system = states, T @ np.vstack([B, Bc]), np.hstack([C, Cc]) @ np.linalg.inv(T), D
        smaller = minimal(system, dt=discrete)
        assert len(smaller[0]) == (7 if reached and observed else 5)
        points = np.exp(1j * np.linspace(0.2, 3, 9)) if discrete else 1j * np.geomspace(0.1, 10, 9)
        for point in points:
            full, other = (
                c @ np.linalg.solve(point * np.eye(len(a)) - a, b) for a, b, c, _ in (system, smaller)
            )
            np.testing.assert_allclose(other, full, atol=1e-7 * np.abs(full).max())


def test_nothing_hidden_is_nothing_changed():
    system = random_system(1, 4, 2, 2)
    assert minimal(system) is system


def test_a_cancelled_transfer_function():
    model = control.tf(np.poly([1, -2]), np.poly([1, -2, -5]), name="g")
    smaller = minimal(model, 1e-6)
    assert isinstance(smaller, control.TransferFunction) and smaller.name == "g"
    np.testing.assert_allclose(smaller.den_array[0, 0], [1, 5], atol=1e-8)
    np.testing.assert_allclose(smaller.num_array[0, 0], [1], atol=1e-8)


@pytest.mark.parametrize("tol", [-1, 1, np.nan, "1"])
def test_tolerances_that_make_no_sense(tol):
    with pytest.raises(OrderError, match="tol must be"):
        minimal(random_system(1, 3), tol)


@pytest.mark.parametrize("discrete", [False, True])
def test_the_parts_add_up(discrete):
    system = with_hidden_modes(3, discrete, [])
    stable, unstable = split(system, dt=discrete)
    poles = [np.linalg.eigvals(part[0]) for part in (stable, unstable)]
    inside = [np.abs(p) < 1 - 1e-9 if discrete else p.real < -1e-9 for p in poles]
    assert inside[0].all() and not inside[1].any() and len(poles[1]) == 3
    np.testing.assert_array_equal(stable[3], system[3])
    np.testing.assert_array_equal(unstable[3], 0)
    whole = response(system, discrete)
    total = response(stable, discrete) + response(unstable, discrete)
    np.testing.assert_allclose(total, whole, atol=1e-9 * np.abs(whole).max())


def test_parts_of_a_stable_model_keep_its_type():
    model = control.ss([[-1.0]], [[1.0]], [[1.0]], [[2.0]], inputs=["u1"], outputs=["y1"])
    stable, unstable = split(model)
    assert stable.input_labels == unstable.input_labels == ["u1"]
    assert stable.nstates == 1 and unstable.nstates == 0 and unstable.D == 0


@pytest.mark.parametrize("discrete", [False, True])
def test_chosen_states_are_removed(discrete):
    A, B, C, D = system = random_system(4, 5, 2, 2, discrete=discrete, margin=0.5)
    kept = [0, 2, 3]
    with_warning = truncate_states(system, [1, -1], dt=discrete)
    np.testing.assert_array_equal(with_warning[0], A[np.ix_(kept, kept)])
    np.testing.assert_array_equal(with_warning[1], B[kept])
    dc = truncate_states(system, [1, 4], "match_dc", dt=discrete)
    rest = np.eye(5) if discrete else np.zeros((5, 5))
    first = C @ np.linalg.solve(rest - A, B) + D
    second = dc[2] @ np.linalg.solve(rest[:3, :3] - dc[0], dc[1]) + dc[3]
    np.testing.assert_allclose(second, first, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:without these states")
def test_states_removed_as_python_control_does():
    A, B, C, D = random_system(5, 6, 1, 1)
    for method, other in (("truncate", "truncate"), ("match_dc", "matchdc")):
        theirs = control.model_reduction(
            control.ss(A, B, C, D), elim_states=[1, 4], method=other, warn_unstable=False
        )
        ours = truncate_states(control.ss(A, B, C, D), [1, 4], method)
        np.testing.assert_allclose(
            response(control.ssdata(ours)), response(control.ssdata(theirs)), rtol=1e-9
        )


@pytest.mark.parametrize(
    ("remove", "method", "message"),
    [
        ([3], "truncate", "states 0 to 2"),
        ([1.5], "truncate", "states 0 to 2"),
        ([True], "truncate", "states 0 to 2"),
        (1, "truncate", "list of indices"),
        ([1], "dc", "method must be"),
    ],
)
def test_states_that_are_not_there(remove, method, message):
    with pytest.raises(ModelError, match=message):
        truncate_states(random_system(1, 3), remove, method)


def test_states_that_cannot_be_at_rest_or_are_none():
    with pytest.raises(ModelError, match="cannot be at rest"):
        truncate_states((np.diag([-1.0, 0.0]), np.ones((2, 1)), np.ones((1, 2)), 0), [1], "match_dc")
    with pytest.raises(ModelError, match="has no states"):
        truncate_states(control.tf([1], [1, 1]), [0])
    unstable = np.array([[1.0, -5.0], [5.0, -3.0]]), np.ones((2, 1)), np.ones((1, 2)), 0
    with pytest.warns(ReductionWarning, match="unstable"):
        truncate_states(unstable, [1])


# --- norms


@pytest.mark.parametrize("discrete", [False, True])
def test_largest_gain_of_an_unstable_model(discrete):
    A, B, C, D = random_system(6, 5, 2, 2, discrete=discrete)
    poles = [1.3] if discrete else [0.4]
    system = sla.block_diag(A, poles), np.vstack([B, [[1.0, 2.0]]]), np.hstack([C, [[1.0], [0.5]]]), D
    value, frequency = norm(system, "linf", dt=discrete, return_frequency=True)
    w = np.linspace(0, np.pi, 20001) if discrete else np.concatenate([[0], np.geomspace(1e-3, 1e3, 20001)])
    points = np.exp(1j * w) if discrete else 1j * w
    G = np.array([system[2] @ np.linalg.solve(s * np.eye(6) - system[0], system[1]) + D for s in points])
    gains = np.linalg.norm(G, 2, axis=(1, 2))
    assert value == pytest.approx(gains.max(), rel=1e-4)
    assert np.interp(frequency, w, gains) == pytest.approx(value, rel=1e-3)
    assert norm(system, "hinf", dt=discrete) == np.inf


def test_norms_by_the_names_of_others():
    system = random_system(7, 4, 2, 2, direct=False)
    assert norm(system, 2) == norm(system, "h2")
    assert norm(system, np.inf) == norm(system, "hinf")
    value, frequency = norm(system, np.inf, return_frequency=True)
    A, B, C, _ = system
    at = np.linalg.norm(C @ np.linalg.solve(1j * frequency * np.eye(4) - A, B), 2)
    assert at == pytest.approx(value, rel=1e-5)
    sampled = (*random_system(7, 4, 2, 2, discrete=True),)
    _, frequency = norm(sampled, "hinf", dt=0.01, return_frequency=True)
    assert frequency * 0.01 == pytest.approx(norm(sampled, "hinf", dt=True, return_frequency=True)[1])


def test_a_pole_on_the_boundary_has_no_largest_gain():
    system = np.array([[0.0, 2.0], [-2.0, 0.0]]), np.ones((2, 1)), np.ones((1, 2)), 0
    assert norm(system, "linf", return_frequency=True) == (np.inf, pytest.approx(2.0))
    value, frequency = norm(system, "hinf", return_frequency=True)
    assert value == np.inf and np.isnan(frequency)


@pytest.mark.parametrize("kind", ["h3", 1, True, None, np.array([2])])
def test_norms_that_are_none(kind):
    with pytest.raises(ModelError, match="kind must be"):
        norm(random_system(1, 2), kind)
    with pytest.raises(ModelError, match="return_frequency"):
        norm(random_system(1, 2), "h2", return_frequency=True)


# --- several orders, other names


def test_several_orders_are_as_many_reductions():
    system = random_system(8, 7, 2, 2)
    for orders in ([2, 3, 5], (4,), range(1, 3), np.array([1, 6])):
        several = reduce(system, orders)
        assert [r.order for r in several] == list(orders)
        for r in several:
            np.testing.assert_array_equal(r.system[0], reduce(system, r.order).system[0])
    with pytest.raises(OrderError, match="empty list"):
        reduce(system, [])
    with pytest.raises(OrderError, match="not both"):
        reduce(system, [1, 2], tol=0.1)


def test_matchdc_is_residualization():
    model = signal.StateSpace(*random_system(9, 5, 1, 1))
    first, second = reduce(model, 2, method="matchdc"), reduce(model, 2, method="residualization")
    np.testing.assert_array_equal(first.system.A, second.system.A)
    assert first.method == "residualization"


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("method", ["truncation", "residualization", "hankel_norm"])
def test_integrators_stay_at_zero(k, method):
    """The first model of the README, with an integrator, was reduced to a pole at +6e-31.

    The split has the pole at 0, exactly, and the product with its bases rounded it to the unstable side;
    python-control printed "- 2.936e-31" at the end of the denominator.
    """
    plant = control.tf([1, 4, 6], [1, 5, 9, 7, 2] + [0] * k)
    reduction = reduce(plant, k + 2, method=method)
    den = reduction.system.den[0][0]
    assert den.size == k + 3 and not den[-k:].any() and den[-k - 1] != 0
    assert reduction.error("hinf") <= reduction.error_bound * (1 + 1e-9)
    # near the pole both have the gain of the integrators: num(0) / den'(0) / s^k, 6 / 2 here
    s = 1e-9j
    assert reduction.system(s) * s**k == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_integrators_stay_at_zero_in_parts_and_balanced_states(k):
    """Relatives: `split` and `balanced_realization`, and an integrator of a state space behind a plant."""
    plant = control.tf([1, 4, 6], [1, 5, 9, 7, 2] + [0] * k)
    assert not split(plant)[1].den[0][0][1:].any()
    assert not balanced_realization(plant).den[0][0][-k:].any()
    A = np.diag([0.0] * k + [-1.0, -3.0]) + np.diag(np.arange(1.0, k + 2), 1)
    B, C = np.eye(k + 2)[:, [-1]], np.eye(k + 2)[[0]]
    reduced = reduce((A, B, C, 0), k + 1).system[0]
    assert np.count_nonzero(np.linalg.eigvals(reduced) == 0) == k


def test_an_oscillator_keeps_its_poles():
    """Relative: its Schur form has zeros on the diagonal of a block of two, which are no poles."""
    A = np.block(
        [[np.array([[0.0, 2.0], [-2.0, 0.0]]), np.zeros((2, 2))], [np.ones((2, 2)), -np.diag([1.0, 3])]]
    )
    reduced = reduce((A, np.ones((4, 1)), np.ones((1, 4)), 0), 3).system[0]
    poles = np.linalg.eigvals(reduced)
    assert sorted(poles[np.abs(poles.real) < 1e-12].imag) == pytest.approx([-2, 2], rel=1e-12)
