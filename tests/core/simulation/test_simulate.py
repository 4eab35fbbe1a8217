"""Simulation, impulse responses and convolution against independent oracles."""

from __future__ import annotations

import copy
import pickle
import threading
import time
import tracemalloc

import control
import numpy as np
import pytest
import scipy.linalg as sla
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

import hankelred
from hankelred import Convolver, HankelredError, convolve, impulse_response, simulate
from hankelred.errors import ModelError
from hankelred.models.scaling import balance_matrix
from hankelred.simulation import recurrence
from hankelred.simulation.convolve import _fft_size
from hankelred.simulation.discretize import discretize

METHODS = ["blocks", "steps", "auto"]


def random_model(rng, n, m, p, *, radius=0.95, complex_=False):
    def draw(*shape):
        real = rng.standard_normal(shape)
        return real + 1j * rng.standard_normal(shape) if complex_ else real

    A = draw(n, n)
    if n:
        A *= radius / np.abs(np.linalg.eigvals(A)).max()
    return A, draw(n, m), draw(p, n), draw(p, m)


def loop(model, u, x0=None, dtype=None):
    """The definition, one sample at a time; optionally in another precision."""
    A, B, C, D = model
    dtype = dtype or np.result_type(A, B, C, D, u, float)
    A, B, C, D, u = (np.asarray(M, dtype=dtype) for M in (A, B, C, D, u))
    x = np.zeros(A.shape[0], dtype=dtype) if x0 is None else np.asarray(x0, dtype=dtype)
    states = np.empty((A.shape[0], u.shape[1] + 1), dtype=dtype)
    y = np.empty((C.shape[0], u.shape[1]), dtype=dtype)
    for k in range(u.shape[1]):
        states[:, k] = x
        y[:, k] = C @ x + D @ u[:, k]
        x = A @ x + B @ u[:, k]
    states[:, -1] = x
    return y, states


def sums(markov, u):
    """The definition of causal convolution."""
    n, p, _ = markov.shape
    y = np.zeros((p, u.shape[1]), dtype=np.result_type(markov, u))
    for i in range(min(n, u.shape[1])):
        y[:, i:] += markov[i] @ u[:, : u.shape[1] - i]
    return y


def local_error(markov, u, y, truth):
    """Error of each output over the sum of the magnitudes of its own terms."""
    scale = sums(np.abs(markov), np.abs(u))
    return np.max(np.abs(y - truth) / np.where(scale > 0, scale, 1))


# ---------------------------------------------------------------- simulate


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(
    ("n", "m", "p", "samples"),
    [
        (1, 1, 1, 1), (1, 1, 1, 999), (3, 2, 1, 64), (3, 1, 2, 65), (5, 2, 3, 2049), (7, 3, 2, 0),
        (4, 0, 2, 130), (4, 2, 0, 130), (0, 2, 3, 50), (30, 2, 2, 700), (2, 5, 5, 1001),
    ],
)  # fmt: skip
def test_matches_the_loop(method, complex_, n, m, p, samples):
    rng = np.random.default_rng(n + 10 * m + 100 * p + samples)
    model = random_model(rng, n, m, p, complex_=complex_)
    u, x0 = rng.standard_normal((m, samples)), rng.standard_normal(n)
    truth, states = loop(model, u, x0)
    y, last, trajectory = simulate(
        model, u, x0=x0, dt=True, method=method, return_state=True, return_states=True
    )
    assert y.shape == (p, samples) and last.shape == (n,) and trajectory.shape == (n, samples)
    assert y.dtype == (complex if complex_ else float)
    scale = 1 + np.abs(truth).max(initial=0)
    np.testing.assert_allclose(y, truth, atol=1e-13 * scale, rtol=0)
    np.testing.assert_allclose(trajectory, states[:, :-1], atol=1e-13 * scale, rtol=0)
    np.testing.assert_allclose(last, states[:, -1], atol=1e-13 * scale, rtol=0)


def test_the_block_route_is_really_taken_and_differs_only_in_rounding(monkeypatch):
    rng = np.random.default_rng(1)
    model, u = random_model(rng, 6, 1, 1), rng.standard_normal(20_000)
    slow = simulate(model, u, dt=True, method="steps")

    def refuse(*args):
        raise AssertionError("plain loop")

    monkeypatch.setattr(recurrence, "step_loop", refuse)
    for method in ("blocks", "auto"):
        fast = simulate(model, u, dt=True, method=method)
        assert 0 < np.abs(fast - slow).max() < 1e-12


def test_shapes_and_types_in_and_out():
    rng = np.random.default_rng(2)
    model, u = random_model(rng, 3, 1, 1), rng.standard_normal(40)
    flat = simulate(model, u, dt=True)
    assert flat.shape == (40,)
    row = simulate(model, u[None], dt=True)
    assert row.shape == (1, 40)
    np.testing.assert_array_equal(row[0], flat)
    two = (*model[:2], np.vstack([model[2]] * 2), np.zeros((2, 1)))
    assert simulate(two, u, dt=True).shape == (2, 40)
    ones = simulate(model, [1] * 40, dt=True)
    np.testing.assert_array_equal(ones, simulate(model, np.ones(40), dt=True))
    single = simulate(model, u.astype(np.float32), dt=True)
    assert single.dtype == float
    turned = simulate(model, u + 1j * u[::-1], dt=True)
    np.testing.assert_allclose(turned, flat + 1j * simulate(model, u[::-1], dt=True), atol=1e-13)
    strided = simulate(model, np.repeat(u, 2)[::2], dt=True)
    np.testing.assert_array_equal(strided, flat)
    before = u.copy()
    simulate(model, u, dt=True, x0=np.ones(3))
    np.testing.assert_array_equal(u, before)
    assert simulate(model, [], dt=True).shape == (0,)


@pytest.mark.parametrize("make", [control.StateSpace, scipy.signal.dlti])
def test_other_model_types(make):
    rng = np.random.default_rng(3)
    matrices = random_model(rng, 4, 2, 2)
    u = rng.standard_normal((2, 300))
    sys = make(*matrices, 0.1) if make is control.StateSpace else make(*matrices, dt=0.1)
    np.testing.assert_allclose(simulate(sys, u), loop(matrices, u)[0], atol=1e-12)
    np.testing.assert_allclose(simulate(sys, u, step=0.1), simulate(sys, u), atol=0)


def test_transfer_function_against_lfilter():
    num, den = [1.0, 0.4], [1.0, -0.9, 0.5]
    u = np.random.default_rng(4).standard_normal(5000)
    truth = scipy.signal.lfilter([0.0, 1.0, 0.4], den, u)
    np.testing.assert_allclose(simulate(control.tf(num, den, True), u), truth, atol=1e-11)


def test_forced_response_discrete_and_first_order_hold():
    rng = np.random.default_rng(5)
    u, x0 = rng.standard_normal((2, 500)), rng.standard_normal(5)
    times = np.arange(500) * 0.05
    discrete = control.StateSpace(*random_model(rng, 5, 2, 3), 0.05)
    truth = control.forced_response(discrete, times, u, x0)
    np.testing.assert_allclose(simulate(discrete, u, x0=x0), truth.outputs, atol=1e-11)
    A, B, C, D = random_model(rng, 5, 2, 3)
    continuous = control.StateSpace(10 * (A - 1.2 * np.eye(5)), B, C, D)
    truth = control.forced_response(continuous, times, u, x0)
    y, states = simulate(continuous, u, x0=x0, step=0.05, hold="foh", return_states=True)
    np.testing.assert_allclose(y, truth.outputs, atol=1e-11)
    np.testing.assert_allclose(states, truth.states, atol=1e-11)
    held = control.sample_system(continuous, 0.05, method="zoh")
    truth = control.forced_response(held, times, u, x0)
    np.testing.assert_allclose(simulate(continuous, u, x0=x0, step=0.05), truth.outputs, atol=1e-11)


def test_continuous_closed_forms():
    # x' = -a x + u from x0: step response under zoh, ramp response under foh, both exact.
    a, h, x0 = 3.0, 0.2, 0.7
    t = np.arange(200) * h
    model = ([[-a]], [[1.0]], [[1.0]], [[0.0]])
    y = simulate(model, np.ones(200), step=h, x0=[x0])
    np.testing.assert_allclose(y, x0 * np.exp(-a * t) + (1 - np.exp(-a * t)) / a, rtol=1e-13)
    y = simulate(model, t, step=h, x0=[x0], hold="foh")
    np.testing.assert_allclose(y, x0 * np.exp(-a * t) + (a * t - 1 + np.exp(-a * t)) / a**2, atol=1e-14)
    # double integrator under a ramp, and a singular A
    double = ([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], [[1.0, 0.0]], [[0.0]])
    np.testing.assert_allclose(simulate(double, t, step=h, hold="foh"), t**3 / 6, rtol=1e-12)


def test_discretisation_keeps_digits_in_mixed_units_and_for_large_inputs():
    rng = np.random.default_rng(6)
    A, B, C, D = random_model(rng, 4, 2, 2)
    A -= 1.5 * np.eye(4)
    u = rng.standard_normal((2, 100))
    for hold in ("zoh", "foh"):
        truth = simulate((A, B, C, D), u, step=0.3, hold=hold)
        size = np.abs(truth).max()
        scale = 2.0 ** np.array([-50.0, 0.0, 50.0, 10.0])
        F, G, H = discretize(A, B, 0.3, hold)
        got = discretize(A * scale / scale[:, None], B / scale[:, None], 0.3, hold)
        wanted = (F * scale / scale[:, None], G / scale[:, None], H / scale[:, None])
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
        gain = np.array([2.0**70, 2.0**-70])
        large = (A, B * gain, C, D * gain)
        y = simulate(large, u / gain[:, None], step=0.3, hold=hold)
        np.testing.assert_allclose(y, truth, atol=1e-13 * size)


@pytest.mark.parametrize("hold", ["zoh", "foh"])
def test_runs_join_through_the_state(hold):
    rng = np.random.default_rng(7)
    A, B, C, D = random_model(rng, 4, 2, 2)
    model = (A - 1.5 * np.eye(4), B, C, D)
    u, x0 = rng.standard_normal((2, 400)), rng.standard_normal(4)
    whole, end = simulate(model, u, x0=x0, step=0.1, hold=hold, return_state=True)
    # Under foh the state belongs to the last sample itself, which the next run repeats.
    back = 1 if hold == "foh" else 0
    for cut in (1, 63, 64, 217, 399):
        head, x = simulate(model, u[:, :cut], x0=x0, step=0.1, hold=hold, return_state=True)
        tail, x = simulate(model, u[:, cut - back :], x0=x, step=0.1, hold=hold, return_state=True)
        np.testing.assert_allclose(np.hstack([head, tail[:, back:]]), whole, atol=1e-12)
        np.testing.assert_allclose(tail[:, :back], head[:, cut - back :], atol=1e-12)
        np.testing.assert_allclose(x, end, atol=1e-12)
    nothing, x = simulate(model, u[:, :0], x0=x0, step=0.1, hold=hold, return_state=True)
    assert nothing.shape == (2, 0)
    np.testing.assert_array_equal(x, x0)


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 12),
    ports=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    cuts=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    radius=st.sampled_from([0.3, 0.99, 1.0, 1.02]),
)
@settings(max_examples=40, deadline=None)
def test_joining_and_linearity(seed, n, ports, cuts, radius):
    rng = np.random.default_rng(seed)
    m, p = ports
    model = random_model(rng, n, m, p, radius=radius)
    u, v = rng.standard_normal((2, m, sum(cuts)))
    x, z = rng.standard_normal((2, n))

    def run(u, x):
        return simulate(model, u, x0=x, dt=True, method="blocks", return_state=True)

    whole, end = run(u, x)
    pieces, state = [], x
    for start, length in zip(np.cumsum([0, *cuts]), cuts, strict=False):
        piece, state = run(u[:, start : start + length], state)
        pieces.append(piece)
    # The bound that holds for every method: one rounding per step, carried on by the loop itself.
    _, states = loop(model, u, x)
    growth = np.linalg.norm(np.linalg.matrix_power(model[0], 30)) + np.linalg.norm(model[0]) + 1
    size = growth**2 * (1 + np.abs(states).max()) * (1 + max(np.linalg.norm(M) for M in model[1:]))
    np.testing.assert_allclose(np.hstack(pieces), whole, atol=1e-13 * size)
    np.testing.assert_allclose(state, end, atol=1e-13 * size)
    mixed = run(2 * u - 3 * v, 2 * x - 3 * z)[0]
    _, others = loop(model, v, z)
    size *= 5 * (1 + np.abs(others).max())
    np.testing.assert_allclose(mixed, 2 * whole - 3 * run(v, z)[0], atol=1e-13 * size)


@pytest.mark.parametrize("method", METHODS)
def test_a_later_input_changes_no_earlier_bit(method):
    rng = np.random.default_rng(8)
    model = random_model(rng, 8, 2, 2)
    u = rng.standard_normal((2, 3000))
    y = simulate(model, u, dt=True, method=method)
    for k in (0, 31, 32, 1000, 2047, 2990):
        changed = u.copy()
        changed[:, k:] = rng.standard_normal((2, 3000 - k)) * 1e200
        z = simulate(model, changed, dt=True, method=method)
        np.testing.assert_array_equal(z[:, :k], y[:, :k])
        assert not np.array_equal(z[:, k:], y[:, k:])


def no_worse_than_the_loop(model, u, x0, factor):
    """Compare blocks and plain loop with the loop in extended precision."""
    exact, _ = loop(model, u, x0, dtype=np.longdouble)
    plain, _ = loop(model, u, x0)
    y = simulate(model, u, x0=x0, dt=True, method="blocks")
    assert np.isfinite(y).all()
    size = np.maximum.accumulate(np.abs(exact).max(axis=0))
    size = np.where(size > 0, size, 1)
    ours = (np.abs(y - exact).max(axis=0) / size).max()
    theirs = (np.abs(plain - exact).max(axis=0) / size).max()
    assert ours <= factor * theirs + 1e-14, (ours, theirs)


def orthogonal(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


@pytest.mark.parametrize(
    "name",
    ["rotation", "orthogonal", "integrators", "unstable", "fast unstable", "jordan", "rotated jordan", "hump",
     "rotated hump", "steep", "nilpotent", "mixed units", "stiff"],
)  # fmt: skip
def test_accurate_as_the_loop(name):
    rng = np.random.default_rng(9)
    samples, q = 5_000, orthogonal(rng, 8)
    shift = np.diag(np.ones(7), 1)
    if name == "rotation":
        c, s = np.cos(0.01234), np.sin(0.01234)
        A, samples = np.array([[c, s], [-s, c]]), 30_000
    elif name == "orthogonal":
        A = q
    elif name == "integrators":
        A = np.eye(3) + 0.1 * np.diag(np.ones(2), 1)
    elif name == "unstable":
        A, samples = q @ np.diag([1.05, 1.0, *[0.9] * 6]) @ q.T, 5_000
    elif name == "fast unstable":
        A, samples = np.diag([1e10, 1e-10, 2.0, 0.5, 0, 1, -1, -1e5]), 30
    elif name == "jordan":
        A = 0.9 * np.eye(8) + shift
    elif name == "rotated jordan":
        A = q @ (0.9 * np.eye(8) + shift) @ q.T
    elif name == "hump":
        A = 0.5 * np.eye(8) + 1e3 * shift
    elif name == "rotated hump":
        A = q @ (0.5 * np.eye(8) + 10 * shift) @ q.T
    elif name == "steep":
        A, samples = q @ np.diag([3.0, *[0.5] * 7]) @ q.T, 600
    elif name == "nilpotent":
        A = q @ (100 * shift) @ q.T
    elif name == "mixed units":
        scale = 2.0 ** rng.integers(-60, 60, 8)
        A = (q * 0.999) * scale / scale[:, None]
    else:
        A = q @ np.diag([0.9999999, 1e-3, 1e-6, 1e-9, 1e-12, 1e-15, -0.5, -0.999]) @ q.T
    n = len(A)
    model = (A, rng.standard_normal((n, 1)), rng.standard_normal((1, n)), np.zeros((1, 1)))
    # The documented price of speed where powers grow without the model growing; 10 elsewhere.
    factor = 100 if name in ("rotated jordan", "rotated hump", "nilpotent") else 10
    no_worse_than_the_loop(model, rng.standard_normal((1, samples)), rng.standard_normal(n), factor)
    # A state that the large entries of a power barely see: the slowest direction, no input.
    slow = np.linalg.svd(A - np.diag(A).max() * np.eye(n))[2][-1]
    if name == "steep":
        within_rounding_of_growth(model, slow, 3.0)
    else:
        no_worse_than_the_loop(model, np.zeros((1, min(samples, 300))), slow, factor)


def within_rounding_of_growth(model, x0, growth, units=4):
    """Compare blocks with the loop in extended precision where all that grows is the rounding of the start.

    How much of it the first product of the loop adds is chance: over seeds the loop was off by .02 to 2.2
    units of rounding, blocks by .03 to 1.2, in ratios from .4 to 14, by the seed and by the processor.
    """
    u = np.zeros((1, 300))
    exact, _ = loop(model, u, x0, dtype=np.longdouble)
    y = simulate(model, u, x0=x0, dt=True, method="blocks")
    unit = np.finfo(float).eps * np.linalg.norm(model[2]) * np.linalg.norm(x0)
    assert np.abs((y - exact)[0] / growth ** np.arange(300)).max() <= units * unit


def test_filters_in_companion_form_run_in_long_blocks():
    # Powers of a companion matrix grow before they decay, and the loop rounds one entry per step only.
    model = scipy.signal.tf2ss(*scipy.signal.butter(4, 0.1))
    assert len(recurrence.safe_squares(balance_matrix(model[0])[0], 14)) == 15
    rng = np.random.default_rng(24)
    no_worse_than_the_loop(model, rng.standard_normal((1, 5000)), rng.standard_normal(4), factor=30)


def test_plain_squaring_would_be_less_accurate_than_the_loop():
    # The reason why powers carry their rounding errors: without it the error is 2**20 eps.
    q = orthogonal(np.random.default_rng(10), 12)
    exact = q.astype(np.longdouble)
    plain = q
    for _ in range(20):
        exact, plain = exact @ exact, plain @ plain
    ours = recurrence.safe_squares(q, 20)[-1]
    assert np.abs(ours - exact).max() < 1e-12
    assert np.abs(plain - exact).max() > 1e-11


def test_squaring_is_exact_to_the_last_bits_complex():
    rng = np.random.default_rng(11)
    q = orthogonal(rng, 9) @ np.diag(np.exp(1j * rng.uniform(0, 6, 9)))
    exact = q.astype(np.clongdouble)
    for square in recurrence.safe_squares(q, 12)[1:]:
        exact = exact @ exact
        assert np.abs(square - exact).max() < 4e-16


def test_unstable_up_to_the_end_of_the_range():
    # 2**1000 is finite; powers of a block must not overflow before it is reached.
    model = ([[2.0]], [[1.0]], [[1.0]], [[0.0]])
    for method in METHODS:
        y = simulate(model, np.r_[1.0, np.zeros(1022)], dt=True, method=method)
        np.testing.assert_array_equal(y[1:], 2.0 ** np.arange(1022))
    y = simulate(model, np.ones(1023), dt=True, method="blocks")
    np.testing.assert_allclose(y, 2.0 ** np.arange(1023.0) - 1, rtol=1e-15)
    for method in METHODS:
        with pytest.raises(HankelredError, match=r"sample 1024 of 100000; run fewer samples"):
            simulate(model, np.ones(100_000), dt=True, method=method)
    mixed = (np.diag([30.0, 0.5]), np.ones((2, 1)), np.ones((1, 2)), np.zeros((1, 1)))
    u = np.ones((1, 200))
    np.testing.assert_allclose(simulate(mixed, u, dt=True, method="blocks"), loop(mixed, u)[0], rtol=1e-13)


def test_state_overflow_matters_only_when_asked_for():
    model = ([[1e150]], [[1e150]], [[1.0]], [[0.0]])
    assert simulate(model, [1e100, 0.0], dt=True)[1] == 1e250
    with pytest.raises(HankelredError, match="state after the last sample"):
        simulate(model, [1e100, 0.0], dt=True, return_state=True)


def test_dynamic_range_of_the_input():
    # A huge late sample must leave the small early outputs at full relative accuracy.
    rng = np.random.default_rng(12)
    model = random_model(rng, 5, 1, 1, radius=0.8)
    u = rng.standard_normal(500) * 10.0 ** rng.uniform(-12, 12, 500)
    u[-1] = 1e300
    y = simulate(model, u, dt=True, method="blocks")
    markov = np.concatenate(
        [[model[3]], [model[2] @ np.linalg.matrix_power(model[0], k) @ model[1] for k in range(499)]]
    )
    assert local_error(markov, u[None], y[None], sums(markov, u[None])) < 1e-12


def test_auto_takes_the_loop_for_few_samples_only():
    assert not recurrence.plan_blocks(10, 1, 1, 10).blocks_are_faster
    assert not recurrence.plan_blocks(2000, 1, 1, 100).blocks_are_faster
    assert recurrence.plan_blocks(10, 1, 1, 1000).blocks_are_faster
    assert recurrence.plan_blocks(2000, 1, 1, 10**6).blocks_are_faster


GOOD = ([[0.5]], [[1.0]], [[1.0]], [[0.0]])
TWO = (np.eye(2) * 0.5, np.eye(2), np.eye(2), np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("model", "u", "options", "message"),
    [
        (GOOD, [1.0, np.nan, 2.0], {"dt": True}, r"input 0, sample 1\) is nan"),
        (GOOD, [1.0, np.inf], {"dt": True}, r"sample 1\) is inf"),
        (TWO, np.ones((3, 5)), {"dt": True}, "u has 3 rows but the model has 2 inputs"),
        (TWO, np.ones((5, 2)), {"dt": True}, "pass u.T"),
        (TWO, np.ones(5), {"dt": True}, r"one axis \(5 samples\) but the model has 2 inputs"),
        (GOOD, 3.0, {"dt": True}, r"must have shape \(inputs, samples\)"),
        (GOOD, np.ones((1, 2, 3)), {"dt": True}, r"got \(1, 2, 3\)"),
        (GOOD, ["a"], {"dt": True}, "must hold numbers"),
        (GOOD, [[1.0], [2.0, 3.0]], {"dt": True}, "u is not an array of numbers"),
        (GOOD, [1.0], {"dt": True, "x0": [1.0, 2.0]}, r"shape \(1,\), got \(2,\)"),
        (GOOD, [1.0], {"dt": True, "x0": [np.nan]}, r"x0\[0\] is nan"),
        (GOOD, [1.0], {"dt": True, "method": "fft"}, "got 'fft'"),
        (GOOD, [1.0], {"dt": 0, "step": 1.0, "hold": "tustin"}, "got 'tustin'"),
        (GOOD, [1.0], {"dt": True, "hold": "foh"}, "omit hold"),
        (GOOD, [1.0], {}, r"continuous \(dt=0\): give step="),
        (GOOD, [1.0], {"dt": None}, "give step="),
        (GOOD, [1.0], {"dt": 0.1, "step": 0.2}, "step=0.2 disagrees with the model's own dt=0.1"),
        (GOOD, [1.0], {"step": -1.0}, "positive number of seconds, got -1.0"),
        (GOOD, [1.0], {"step": "fast"}, "got 'fast'"),
        (([[800.0]], [[1.0]], [[1.0]], [[0.0]]), [1.0], {"step": 1.0}, "use a smaller one"),
    ],
)
def test_bad_input_to_simulate(model, u, options, message):
    with pytest.raises(HankelredError, match=message):
        simulate(model, u, **options)


def test_static_gain_needs_no_step():
    gain = control.StateSpace([], [], [], [[2.0, 1.0]])
    np.testing.assert_array_equal(simulate(gain, np.ones((2, 3))), [[3.0, 3.0, 3.0]])
    _, x, states = simulate(gain, np.ones((2, 3)), return_state=True, return_states=True)
    assert x.shape == (0,) and states.shape == (0, 3)


# ---------------------------------------------------------------- impulse_response


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 1), (3, 2, 1), (6, 2, 3), (0, 2, 3), (3, 0, 2), (3, 2, 0)])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 17, 1000])
def test_impulse_response_is_powers(n, m, p, count, complex_):
    rng = np.random.default_rng(count + n)
    A, B, C, D = random_model(rng, n, m, p, complex_=complex_)
    H = impulse_response((A, B, C, D), count, dt=True)
    assert H.shape == (count, p, m)
    truth = np.zeros((count, p, m), dtype=H.dtype)
    for k in range(count):
        truth[k] = D if k == 0 else C @ B
        B = B if k == 0 else A @ B
    np.testing.assert_allclose(H, truth, atol=1e-13 * (1 + np.abs(truth).max(initial=0)))


def test_impulse_response_is_the_response_to_an_impulse():
    rng = np.random.default_rng(13)
    model = random_model(rng, 20, 1, 2, radius=0.999)
    H = impulse_response(model, 5000, dt=True)
    y = simulate(model, np.r_[1.0, np.zeros(4999)], dt=True, method="steps")
    np.testing.assert_allclose(H[:, :, 0].T, y, atol=1e-12 * np.abs(y).max())


def test_continuous_impulse_response():
    rng = np.random.default_rng(14)
    A, B, C, _ = random_model(rng, 4, 2, 2)
    A -= 1.3 * np.eye(4)
    D = np.zeros((2, 2))
    H = impulse_response((A, B, C, D), 60, step=0.1)
    truth = np.stack([C @ sla.expm(A * k * 0.1) @ B for k in range(60)])
    np.testing.assert_allclose(H, truth, atol=1e-13)
    times = np.arange(60) * 0.1
    peer = control.impulse_response(control.StateSpace(A, B, C, D), times).outputs
    np.testing.assert_allclose(H, peer.transpose(2, 0, 1), atol=1e-11)
    gain = impulse_response(control.StateSpace([], [], [], [[2.0]]), 3)
    np.testing.assert_array_equal(gain.ravel(), [2.0, 0.0, 0.0])


def test_impulse_response_unstable_and_marginal():
    H = impulse_response(([[2.0]], [[1.0]], [[1.0]], [[0.0]]), 1024, dt=True)
    np.testing.assert_array_equal(H[1:].ravel(), 2.0 ** np.arange(1023))
    with pytest.raises(HankelredError, match="at sample 1025 of 5000"):
        impulse_response(([[2.0]], [[1.0]], [[1.0]], [[0.0]]), 5000, dt=True)
    angle = 0.3
    c, s = np.cos(angle), np.sin(angle)
    turn = (np.array([[c, s], [-s, c]]), np.eye(2), np.eye(2), np.zeros((2, 2)))
    H = impulse_response(turn, 100_001, dt=True)
    # |A|^k stays 1 to the accuracy of c^2 + s^2, for any k
    norm = np.sqrt(np.abs(np.linalg.det(H[1:])))
    assert np.abs(norm - 1).max() < 1e5 * np.finfo(float).eps


def test_impulse_response_large_model_few_samples_is_not_slowed_by_squaring():
    rng = np.random.default_rng(15)
    model = random_model(rng, 300, 1, 1, radius=0.9)
    start = time.perf_counter()
    H = impulse_response(model, 40, dt=True)
    assert time.perf_counter() - start < 1.0
    y = simulate(model, np.r_[1.0, np.zeros(39)], dt=True, method="steps")
    np.testing.assert_allclose(H.ravel(), y, atol=1e-12 * np.abs(y).max())


def test_impulse_response_without_the_use_of_high_powers():
    # Strongly non-normal: squaring stops early and the largest safe power does the rest.
    q = orthogonal(np.random.default_rng(23), 4)
    for pole, coupling, usable in ((0.5, 10.0, 2), (0.99, 0.15, 7)):
        A = q @ (pole * np.eye(4) + coupling * np.diag(np.ones(3), 1)) @ q.T
        assert len(recurrence.safe_squares(A, 10)) == usable
        model = (A, np.ones((4, 1)), np.ones((1, 4)), np.zeros((1, 1)))
        for count in (2, 3, 7, 8, 1000):
            H = impulse_response(model, count, dt=True)
            y, _ = loop(model, np.r_[1.0, np.zeros(count - 1)][None])
            np.testing.assert_allclose(H.ravel(), y[0], atol=1e-11 * np.abs(y).max())


@pytest.mark.parametrize("n", [-1, 2.5, "3", True, None])
def test_bad_number_of_samples(n):
    with pytest.raises(HankelredError, match="whole number of samples"):
        impulse_response(GOOD, n, dt=True)


def test_impulse_response_needs_a_step():
    with pytest.raises(ModelError, match="give step="):
        impulse_response(GOOD, 5)


# ---------------------------------------------------------------- convolve


@pytest.mark.parametrize("method", ["auto", "fft", "direct"])
@pytest.mark.parametrize("kinds", ["rr", "rc", "cr", "cc"])
@pytest.mark.parametrize(
    ("n", "p", "m", "samples"),
    [
        (1, 1, 1, 1), (5, 1, 1, 300), (64, 2, 3, 64), (65, 3, 2, 129), (300, 1, 2, 40), (17, 2, 1, 777),
        (0, 2, 2, 10), (4, 2, 2, 0), (4, 0, 2, 9), (4, 2, 0, 9),
    ],
)  # fmt: skip
def test_convolve_is_the_sum(method, kinds, n, p, m, samples):
    rng = np.random.default_rng(n + samples)

    def draw(kind, *shape):
        real = rng.standard_normal(shape)
        return real + 1j * rng.standard_normal(shape) if kind == "c" else real

    markov, u = draw(kinds[0], n, p, m), draw(kinds[1], m, samples)
    y = convolve(markov, u, method=method)
    truth = sums(markov, u)
    assert y.shape == (p, samples) and y.dtype == truth.dtype
    np.testing.assert_allclose(y, truth, atol=1e-13 * (1 + np.abs(truth).max(initial=0)))


@pytest.mark.parametrize("method", ["fft", "direct"])
def test_convolve_many_blocks_against_scipy(method):
    rng = np.random.default_rng(16)
    markov, u = rng.standard_normal((700, 2, 2)), rng.standard_normal((2, 60_000))
    truth = np.array([
        sum(scipy.signal.oaconvolve(u[i], markov[:, o, i])[:60_000] for i in range(2)) for o in range(2)
    ])  # fmt: skip
    assert _fft_size(700, 60_000, True) < 60_000  # several blocks
    np.testing.assert_allclose(convolve(markov, u, method=method), truth, atol=1e-12 * np.abs(truth).max())


def test_convolve_shapes():
    assert convolve([1.0, 2.0], [1.0, 0.0, 0.0]).shape == (3,)
    assert convolve([1.0, 2.0], [[1.0, 0.0, 0.0]]).shape == (1, 3)
    assert convolve(np.ones((2, 3, 1)), [1.0, 0.0]).shape == (3, 2)
    assert convolve([1, 2], [3, 4]).dtype == float
    assert convolve([1.0], []).shape == (0,)


def test_auto_is_direct_for_short_kernels():
    u = np.ones(100)
    u[-1] = 1e15
    for n, route in ((64, "direct"), (65, "fft")):
        markov = np.random.default_rng(n).standard_normal(n)
        np.testing.assert_array_equal(convolve(markov, u), convolve(markov, u, method=route))
        assert not np.array_equal(convolve(markov, u, method="fft"), convolve(markov, u, method="direct"))


def test_convolve_is_simulate():
    rng = np.random.default_rng(17)
    model = random_model(rng, 6, 2, 3, radius=0.9)
    u = rng.standard_normal((2, 3000))
    y = convolve(impulse_response(model, 3000, dt=True), u)
    np.testing.assert_allclose(y, simulate(model, u, dt=True), atol=1e-11)


def test_direct_is_accurate_to_local_scale_and_fft_is_not():
    rng = np.random.default_rng(18)
    markov, u = rng.standard_normal((100, 2, 2)), rng.standard_normal((2, 1500))
    u[:, -1] = 1e12
    truth = sums(markov.astype(np.longdouble), u.astype(np.longdouble))
    assert local_error(markov, u, convolve(markov, u, method="direct"), truth) < 1e-15 * 10
    assert local_error(markov, u, convolve(markov, u, method="fft"), truth) > 1e-8
    # over many orders of magnitude in kernel and input at once
    markov *= 10.0 ** rng.uniform(-100, 100, (100, 1, 1))
    u *= 10.0 ** rng.uniform(-100, 100, (1, 1500))
    truth = sums(markov.astype(np.longdouble), u.astype(np.longdouble))
    assert local_error(markov, u, convolve(markov, u, method="direct"), truth) < 1e-14


def test_direct_is_causal_to_the_bit_and_holds_back_nan():
    rng = np.random.default_rng(19)
    markov, u = rng.standard_normal((90, 2, 2)), rng.standard_normal((2, 1000))
    y = convolve(markov, u, method="direct")
    for k, bad in ((0, 1e300), (500, np.nan), (511, np.inf), (998, -np.inf), (640, 1e250)):
        changed = u.copy()
        changed[1, k] = bad
        z = convolve(markov, changed, method="direct")
        np.testing.assert_array_equal(z[:, :k], y[:, :k])
        if not np.isfinite(bad):
            assert np.isnan(z[:, k : k + 90]).all()
            np.testing.assert_array_equal(z[:, k + 90 :], y[:, k + 90 :])


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 200),
    samples=st.integers(1, 300),
    method=st.sampled_from(["fft", "direct"]),
)
@settings(max_examples=40, deadline=None)
def test_convolve_is_linear_shift_invariant_and_causal(seed, n, samples, method):
    rng = np.random.default_rng(seed)
    markov, (u, v) = rng.standard_normal((n, 2, 2)), rng.standard_normal((2, 2, samples))
    y = convolve(markov, u, method=method)
    mixed = convolve(markov, 2 * u - v, method=method)
    np.testing.assert_allclose(mixed, 2 * y - convolve(markov, v, method=method), atol=1e-11)
    shift = int(rng.integers(0, samples))
    late = np.hstack([np.zeros((2, shift)), u[:, : samples - shift]])
    np.testing.assert_allclose(
        convolve(markov, late, method=method)[:, shift:], y[:, : samples - shift], atol=1e-11
    )
    half = samples // 2
    changed = np.hstack([u[:, :half], v[:, half:]])
    np.testing.assert_allclose(convolve(markov, changed, method=method)[:, :half], y[:, :half], atol=1e-11)


@pytest.mark.parametrize(
    ("markov", "u", "options", "message"),
    [
        (np.ones((3, 2)), [1.0], {}, r"got \(3, 2\)"),
        (np.ones((3, 2, 2)), np.ones((3, 5)), {}, "u has 3 rows but markov"),
        ([1.0, np.nan], [1.0], {}, r"markov\[1, 0, 0\] is nan"),
        ([1.0, np.inf], [1.0], {"method": "direct"}, r"markov\[1, 0, 0\] is inf"),
        ([1.0], [np.nan], {}, 'use method="direct"'),
        ([1.0], [1.0], {"method": "exact"}, "got 'exact'"),
        (["x"], [1.0], {}, "must hold numbers"),
        ([1e200, 0.0], [1e200, 0.0], {"method": "fft"}, "exceeds double precision"),
        ([1e200, 0.0], [1e200, 0.0], {"method": "direct"}, "exceeds double precision"),
    ],
)
def test_bad_input_to_convolve(markov, u, options, message):
    with pytest.raises(HankelredError, match=message):
        convolve(markov, u, **options)


# ---------------------------------------------------------------- Convolver


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**31),
    n=st.sampled_from([0, 1, 2, 63, 64, 65, 129, 1000, 9000]),
    ports=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.lists(
        st.one_of(st.integers(0, 5), st.integers(50, 200), st.sampled_from([64, 128, 4096, 8192, 20_000])),
        min_size=1,
        max_size=12,
    ),
)
@settings(max_examples=60, deadline=None)
def test_streaming_equals_one_pass(seed, n, ports, sizes):
    rng = np.random.default_rng(seed)
    p, m = ports
    markov, u = rng.standard_normal((n, p, m)), rng.standard_normal((m, sum(sizes)))
    stream = Convolver(markov)
    pieces, start = [np.zeros((p, 0))], 0
    for size in sizes:
        pieces.append(stream.push(u[:, start : start + size]))
        assert pieces[-1].shape == (p, size)
        start += size
    truth = convolve(markov, u)
    np.testing.assert_allclose(np.hstack(pieces), truth, atol=1e-12 * (1 + np.abs(truth).max(initial=0)))


@pytest.mark.parametrize("n", [1, 50, 64, 200, 3000])
def test_sample_by_sample_over_several_periods(n):
    rng = np.random.default_rng(n)
    markov, u = rng.standard_normal((n, 1, 1)), rng.standard_normal(9000)
    stream = Convolver(markov)
    y = np.concatenate([stream.push(u[k : k + 1]) for k in range(8999)])
    y = np.r_[y, stream.push(u[8999:])]
    truth = convolve(markov, u, method="direct")
    np.testing.assert_allclose(y, truth, atol=1e-12 * np.abs(truth).max())


def test_stream_complex_input_reset_and_many_channels():
    rng = np.random.default_rng(20)
    markov = rng.standard_normal((300, 9, 9))  # takes the short base block
    u = rng.standard_normal((9, 900)) + 1j * rng.standard_normal((9, 900))
    u[:, :100] = u[:, :100].real
    truth = convolve(markov, u)
    stream = Convolver(markov)
    first = stream.push(u[:, :100].real)
    assert first.dtype == float
    rest = [stream.push(u[:, k : k + 50]) for k in range(100, 900, 50)]
    y = np.hstack([first, *rest])
    np.testing.assert_allclose(y, truth, atol=1e-12 * np.abs(truth).max())
    stream.reset()
    again = stream.push(u[:, :100].real)
    np.testing.assert_array_equal(again, first)
    whole = Convolver(markov + 1j * markov[::-1])
    truth = convolve(markov + 1j * markov[::-1], u)
    np.testing.assert_allclose(whole.push(u), truth, atol=1e-12 * np.abs(truth).max())


def test_stream_is_causal_and_immediate():
    stream = Convolver(np.arange(1.0, 1001.0))
    assert stream.push([1.0]) == 1.0
    np.testing.assert_allclose(
        stream.push(np.zeros(1200)), np.r_[np.arange(2.0, 1001.0), np.zeros(201)], atol=1e-10
    )
    assert stream.push([]).shape == (0,)
    assert stream.push(np.zeros((1, 0))).shape == (1, 0)


def test_stream_refuses_bad_blocks_and_goes_on():
    stream = Convolver([1.0, 0.5])
    assert stream.push([2.0]) == 2.0
    for bad in ([np.nan], np.ones((2, 3)), "a", [np.inf]):
        with pytest.raises(HankelredError):
            stream.push(bad)
    assert stream.push([0.0]) == 1.0
    with pytest.raises(HankelredError, match="got"):
        Convolver(np.ones((2, 2)))
    with pytest.raises(HankelredError, match="exceeds double precision"):
        Convolver([1e200]).push([1e200])


def test_a_stream_refuses_to_be_pushed_by_two_threads_at_once():
    # A relative of the estimator that threads shared: blocks of a stream have an order, threads have none.
    kernel = np.random.default_rng(0).standard_normal(5000)
    stream, block = Convolver(kernel), np.random.default_rng(1).standard_normal(20_000)
    refused, taken = [], []

    def push():
        for _ in range(20):
            try:
                taken.append(stream.push(block))
            except HankelredError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) + len(refused) == 80 and taken
    assert all("another thread is using this Convolver" in line for line in refused)
    # what was taken is one stream, whoever pushed it, and a refusal has not disturbed it
    whole = convolve(kernel, np.tile(block, len(taken) + 1))
    np.testing.assert_allclose(stream.push(block), whole[-block.size :], atol=1e-9)
    with stream._lock, pytest.raises(HankelredError, match="push from one thread"):
        stream.push(block)


def test_a_copy_of_a_stream_goes_on_by_itself():
    stream = Convolver([1.0, 0.5])
    stream.push([1.0])
    for other in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert other.push([0.0, 0.0]).tolist() == [0.5, 0.0]
    assert stream.push([0.0]).tolist() == [0.5]


@pytest.mark.slow
def test_stream_memory_is_constant():
    rng = np.random.default_rng(21)
    stream = Convolver(rng.standard_normal((2000, 1, 1)))
    block = rng.standard_normal(1000)
    for _ in range(20):
        stream.push(block)
    tracemalloc.start()
    for _ in range(300):
        stream.push(block)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000  # 300 blocks are 2.4 MB


def test_simulation_memory_is_the_output():
    rng = np.random.default_rng(22)
    model, u = random_model(rng, 20, 1, 1), rng.standard_normal((1, 500_000))
    simulate(model, u, dt=True)
    tracemalloc.start()
    simulate(model, u, dt=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * u.nbytes


def test_exports():
    assert {"simulate", "convolve", "impulse_response", "Convolver"} <= set(hankelred.__all__)
