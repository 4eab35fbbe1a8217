"""Optimal approximation in the Hankel norm."""

from __future__ import annotations

import control
import numpy as np
import pytest
import scipy.linalg as sla
from helpers.data import slicot_model
from helpers.reference import difference, exact_hsv, gains, random_system, similar
from hypothesis import given, settings
from hypothesis import strategies as st

import hankelred
from hankelred import ConvergenceError, ReductionWarning, reduce


def test_one_state_left_by_hand():
    # G = 1 / (s + 1): one singular value 1/2, and the best constant is 1/2: the error (1 - s) / (2 (1 + s))
    reduction = reduce(([[-1.0]], [[1.0]], [[1.0]], 0), 0, method="hankel_norm")
    np.testing.assert_allclose(reduction.system[3], 0.5)
    assert reduction.error() == pytest.approx(0.5)
    assert reduction.error_bound == pytest.approx(0.5)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("order", range(6))
def test_the_error_has_the_singular_value_left_out(order, discrete):
    system = random_system(1, 6, 3, 2, discrete=discrete)
    reduction = reduce(system, order, method="hankel_norm", dt=discrete)
    expected = exact_hsv(*system[:3], discrete=discrete)[order]
    # exact singular values of the difference, in multiprecision
    apart = difference(system, reduction.system)
    error = exact_hsv(*apart[:3], discrete=discrete)[0]
    assert error == pytest.approx(expected, rel=1e-9)
    assert reduction.error("hankel") == pytest.approx(expected, rel=1e-9)
    # no model of this order does better, and plain truncation does worse
    assert reduce(system, order, dt=discrete).error("hankel") >= expected * (1 - 1e-9)
    assert reduction.error() <= reduction.error_bound + reduction.noise_floor
    assert reduction.left is None and reduction.right is None


@pytest.mark.parametrize("order", [1, 4, 5, 9, 10, 17, 20])
def test_the_error_of_a_real_model(order):
    system, _ = slicot_model("build")
    reduction = reduce(system, order, method="hankel_norm")
    assert reduction.order == order
    assert reduction.error("hankel") == pytest.approx(reduction.hankel_singular_values[order], rel=1e-9)
    w = np.geomspace(1, 200, 3000)
    assert gains(difference(system, reduction.system), w).max() <= reduction.error_bound


def test_a_repeated_value_leaves_as_a_whole():
    # two equal, uncoupled parts: every singular value twice
    A, B, C, _ = random_system(2, 3, 1, 1)
    system = sla.block_diag(A, A), sla.block_diag(B, B), sla.block_diag(C, C), np.zeros((2, 2))
    with pytest.warns(ReductionWarning, match="repeated"):
        reduction = reduce(system, 3, method="hankel_norm")
    assert reduction.order == 2 == len(reduction.system[0])
    assert reduction.error("hankel") == pytest.approx(reduction.hankel_singular_values[2], rel=1e-8)


def test_all_states_are_the_model():
    for discrete in (False, True):
        system = random_system(3, 5, 2, 2, discrete=discrete)
        reduction = reduce(system, 5, method="hankel_norm", dt=discrete)
        assert reduction.error() < 1e-11 and reduction.error_bound < 1e-10


def test_unstable_poles_names_and_dt():
    A, B, C, D = random_system(4, 5, 1, 1, discrete=True)
    model = control.ss(
        sla.block_diag(1.3, A), np.vstack([[[1.0]], B]), np.hstack([[[1.0]], C]), D, 0.5, name="g"
    )
    reduction = reduce(model, 3, method="hankel_norm")
    assert reduction.unstable_order == 1 and reduction.system.dt == 0.5 and reduction.system.name == "g"
    assert np.isclose(reduction.system.poles(), 1.3).sum() == 1
    assert reduction.error("hankel") == pytest.approx(reduction.hankel_singular_values[3], rel=1e-9)


def test_what_rounding_has_is_told():
    # pde: the eleventh singular value is 1e-12 of the first, and the optimum is rounding
    system, _ = slicot_model("pde")
    with pytest.raises(ConvergenceError, match="cannot be computed"):
        reduce(system, 10, method="hankel_norm")
    with pytest.warns(ReductionWarning, match="above the optimum"):
        reduce(system, 6, method="hankel_norm")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 2), st.integers(1, 2), st.booleans())
def test_the_states_do_not_matter(seed, n, m, p, discrete):
    system = random_system(seed, n, m, p, discrete=discrete)
    order = n // 2
    values = hankelred.hankel_singular_values(system, dt=discrete)
    if values[order] < 1e-4 * values[0] or values[order] > (1 - 1e-3) * values[order - 1]:
        return
    first = reduce(system, order, method="hankel_norm", dt=discrete)
    other = similar(*system, np.random.default_rng(seed))
    second = reduce(other, order, method="hankel_norm", dt=discrete)
    assert first.error("hankel") == pytest.approx(values[order], rel=1e-7)
    w = np.linspace(0, 3, 20)
    apart = gains(difference(first.system, second.system), w, discrete=discrete)
    assert apart.max() <= 1e-6 * values[0]
    assert first.error() <= first.error_bound * (1 + 1e-9) + first.noise_floor
