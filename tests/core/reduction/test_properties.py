"""Properties that hold for every system, tested with systems drawn by hypothesis."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla
from helpers.reference import difference, frequency_grid, gains, random_system
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import hankelred
from hankelred import hankel_singular_values, select_order

settings.register_profile(
    "suite",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("suite")


@st.composite
def systems(draw, max_states=8, square=False):
    """A stable system, its timebase: dense random, or with poles placed at all sorts of rates."""
    n, m = draw(st.integers(1, max_states)), draw(st.integers(1, 3))
    p = m if square else draw(st.integers(1, 3))
    dt = draw(st.sampled_from([0, True, 0.1]))
    seed, complex_ = draw(st.integers(0, 10**6)), draw(st.booleans())
    margin = draw(st.sampled_from([0.5, 0.1, 1e-2]))
    system = random_system(seed, n, m, p, discrete=bool(dt), complex_=complex_, margin=margin)
    return system, dt


@given(systems(), st.integers(0, 10**6))
def test_invariant_under_similarity(case, seed):
    (A, B, C, D), dt = case
    T = np.random.default_rng(seed).standard_normal(A.shape)
    assume(np.linalg.cond(T) < 1e3)
    values = hankel_singular_values((A, B, C, D), dt=dt)
    other = hankel_singular_values((np.linalg.solve(T, A @ T), np.linalg.solve(T, B), C @ T, D), dt=dt)
    np.testing.assert_allclose(other, values, rtol=1e-7, atol=1e-10 * values[0])


@given(systems())
def test_invariant_under_duality(case):
    (A, B, C, D), dt = case
    values = hankel_singular_values((A, B, C, D), dt=dt)
    for dual in (
        (A.T, C.T, B.T, D.T),
        (A.conj().T, C.conj().T, B.conj().T, D.conj().T),
        (A.conj(), B.conj(), C.conj(), D.conj()),
    ):
        np.testing.assert_allclose(
            hankel_singular_values(dual, dt=dt), values, rtol=1e-9, atol=1e-12 * values[0]
        )


@given(systems())
def test_invariant_under_time_reversal_and_bilinear_map(case):
    """A system run backwards and mirrored, and its image in the other kind of time, have the same values."""
    (A, B, C, D), dt = case
    values = hankel_singular_values((A, B, C, D), dt=dt)
    n = A.shape[0]
    if dt:
        # to continuous time: s = (z - 1) / (z + 1)
        assume(np.linalg.cond(A + np.eye(n)) < 1e6)
        inverse = np.linalg.inv(A + np.eye(n))
        image = (
            (A - np.eye(n)) @ inverse,
            np.sqrt(2) * inverse @ B,
            np.sqrt(2) * C @ inverse,
            D - C @ inverse @ B,
        )
        np.testing.assert_allclose(hankel_singular_values(image), values, rtol=1e-7, atol=1e-10 * values[0])
    else:
        # s -> 1 / s maps the past to the past: the reciprocal system has the same Gramians
        assume(np.linalg.cond(A) < 1e6)
        inverse = np.linalg.inv(A)
        image = inverse, inverse @ B, C @ inverse, D - C @ inverse @ B
        np.testing.assert_allclose(hankel_singular_values(image), values, rtol=1e-7, atol=1e-10 * values[0])
        # backwards in time every pole is unstable: nothing to reduce
        assert np.all(np.isinf(hankel_singular_values((-A, -B, C, D))))


@given(systems(), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_linear_in_the_gain(case, a, b):
    (A, B, C, D), dt = case
    values = hankel_singular_values((A, B, C, D), dt=dt)
    np.testing.assert_allclose(
        hankel_singular_values((A, -a * B, b * C, D), dt=dt),
        a * b * values,
        rtol=1e-9,
        atol=1e-12 * a * b * values[0],
    )


@given(systems(), st.integers(0, 10**6))
def test_invariant_under_rotation_of_the_ports_and_blind_to_d(case, seed):
    (A, B, C, D), dt = case
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((k, k)))[0] for k in (B.shape[1], C.shape[0]))
    values = hankel_singular_values((A, B, C, D), dt=dt)
    other = hankel_singular_values((A, B @ U, V @ C, 7 * V @ D @ U), dt=dt)
    np.testing.assert_allclose(other, values, rtol=1e-9, atol=1e-12 * values[0])


@given(systems(max_states=5), systems(max_states=5))
def test_block_diagonal_union(one, two):
    (first, dt), (second, other_dt) = one, two
    assume(bool(dt) == bool(other_dt))
    union = tuple(sla.block_diag(M, N) for M, N in zip(first, second, strict=True))
    values = np.concatenate([hankel_singular_values(s, dt=dt) for s in (first, second)])
    values = np.sort(values)[::-1]
    np.testing.assert_allclose(
        hankel_singular_values(union, dt=dt), values, rtol=1e-8, atol=1e-11 * values[0]
    )


@given(systems(max_states=5), st.floats(0.0, 3.0))
def test_an_unstable_mode_beside_changes_nothing(case, growth):
    (A, B, C, D), dt = case
    pole = 1.0 + growth if dt else growth
    union = sla.block_diag(A, pole), np.vstack([B, B[:1] + 1]), np.hstack([C, C[:, :1] - 1]), D
    values = hankel_singular_values((A, B, C, D), dt=dt)
    got = hankel_singular_values(union, dt=dt)
    assert np.isinf(got[0])
    np.testing.assert_allclose(got[1:], values, rtol=1e-8, atol=1e-11 * values[0])


@given(systems())
def test_first_value_is_below_every_gain_bound(case):
    system, dt = case
    values = hankel_singular_values(system, dt=dt)
    assert np.all(np.diff(values) <= 0) and np.all(values >= 0) and values.size == system[0].shape[0]
    # the gain of a system without D is at most twice the sum of its values, and at least the first of them
    without_d = (*system[:3], 0 * system[3])
    hinf = hankelred.norm(without_d, "hinf", dt=dt)
    assert hinf <= 2 * values.sum() * (1 + 1e-6)


@given(systems(), st.sampled_from(["truncation", "residualization"]), st.data())
def test_certificate(case, method, data):
    system, dt = case
    base = hankelred.reduce(system, method=method, dt=dt)
    order = data.draw(st.integers(0, base.numerical_rank))
    r = base.at(order)
    assert r.order == order == r.system[0].shape[0]
    size = base.hankel_singular_values[0]
    assert r.error() <= r.error_bound * (1 + 1e-8) + 10 * r.noise_floor + 1e-11 * size
    w = frequency_grid(system[0], discrete=bool(dt), both_sides=True, points=60)
    assert (
        gains(difference(system, r.system), w, discrete=bool(dt)).max()
        <= r.error() * (1 + 2e-6) + 1e-9 * size
    )
    if order == base.numerical_rank:
        assert r.error() <= 1e-9 * size


@given(systems())
def test_bound_falls_with_the_order(case):
    system, dt = case
    base = hankelred.reduce(system, dt=dt)
    bounds = [base.at(k).error_bound for k in range(base.numerical_rank + 1)]
    assert np.all(np.diff(bounds) <= 0)
    assert all(base.at(k).error_bound >= base.hankel_singular_values[k] for k in range(base.numerical_rank))


@given(systems(), st.floats(1e-6, 1e3), st.sampled_from(["tol", "rtol"]))
def test_tolerance_is_met_by_the_smallest_order(case, tol, rule):
    system, dt = case
    r = hankelred.reduce(system, dt=dt, **{rule: tol})
    level = tol if rule == "tol" else tol * r.hankel_singular_values[0]
    assert r.error_bound <= level
    if r.order:
        assert r.at(r.order - 1).error_bound > level
    values, floor = r.hankel_singular_values, r.noise_floor
    assert select_order(values, noise_floor=floor, **{rule: tol}) == r.order


@given(st.lists(st.floats(0, 1e6), max_size=12), st.floats(1e-6, 1.0))
def test_energy_rule(raw, energy):
    values = np.sort(np.array(raw))[::-1]
    order = select_order(values, energy=energy)
    total = values.sum()
    assert values[:order].sum() >= energy * total * (1 - 1e-12)
    if order:
        assert values[: order - 1].sum() < energy * total * (1 + 1e-12)


@given(systems(max_states=6))
def test_balanced_realization_is_a_fixed_point(case):
    system, dt = case
    values = hankel_singular_values(system, dt=dt)
    assume(values[-1] > 1e-9 * values[0])
    balanced = hankelred.balanced_realization(system, dt=dt)
    W = hankelred.gramian(balanced, "controllability", dt=dt)
    np.testing.assert_allclose(W, np.diag(values), atol=1e-7 * values[0])
    np.testing.assert_allclose(
        hankel_singular_values(balanced, dt=dt), values, rtol=1e-6, atol=1e-9 * values[0]
    )


@given(systems(max_states=6))
def test_modal_form_agrees(case):
    system, dt = case
    assume(np.linalg.cond(np.linalg.eig(system[0])[1]) < 1e4)
    values = hankel_singular_values(system, dt=dt)
    modal = hankelred.modal_form(system, dt=dt)
    np.testing.assert_allclose(hankel_singular_values(modal), values, rtol=1e-6, atol=1e-9 * values[0])
