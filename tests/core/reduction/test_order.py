"""Choosing an order: each rule by its definition, edges, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import hankelred
from hankelred import OrderError, select_order
from hankelred.reduction.order import error_bounds, repeated_clusters

HSV = np.array([8.0, 4.0, 2.0, 1.0])


def test_error_bounds_by_hand():
    np.testing.assert_array_equal(error_bounds(HSV), [30, 14, 6, 2, 0])
    np.testing.assert_array_equal(error_bounds(np.zeros(0)), [0])
    np.testing.assert_array_equal(error_bounds(np.zeros(3)), [0, 0, 0, 0])
    assert error_bounds(np.array([np.inf, np.inf, 1.0])).tolist() == [np.inf, np.inf, 2, 0]


def test_repeated_values_count_once():
    # Glover: each distinct value counts once, however often it is repeated
    np.testing.assert_array_equal(error_bounds(np.array([3.0, 3, 3, 1, 1])), [8, 8, 8, 2, 2, 0])
    nearly = np.array([3.0, 3 * (1 - 1e-13), 1.0])
    np.testing.assert_allclose(error_bounds(nearly), [8, 8, 2, 0], rtol=1e-12)
    apart = np.array([3.0, 3 * (1 - 1e-6), 1.0])
    np.testing.assert_allclose(error_bounds(apart)[0], 2 * apart.sum(), rtol=1e-15)


def test_a_chain_of_near_repeats_is_not_one_value():
    # neighbours 0.8e-10 apart: each pair is within 1e-10, the ends are not
    chain = 1 - 0.8e-10 * np.arange(6)
    assert error_bounds(chain)[0] >= 2 * 2.9
    assert [(c.start, c.stop) for c in repeated_clusters(chain)] == [(0, 2), (2, 4), (4, 6)]


def test_repeated_finds_clusters():
    assert repeated_clusters(np.array([3.0, 3, 2, 1, 1, 1])) == [slice(0, 2), slice(3, 6)]
    assert repeated_clusters(np.zeros(0)) == [] and repeated_clusters(np.array([1.0])) == []


@pytest.mark.parametrize(
    "rule, order",
    [
        ({"tol": 30}, 0),
        ({"tol": 29.999}, 1),
        ({"tol": 14}, 1),
        ({"tol": 6}, 2),
        ({"tol": 2}, 3),
        ({"tol": 1.999}, 4),
        ({"tol": 1e-300}, 4),
        ({"tol": 1e300}, 0),
        ({"rtol": 30 / 8}, 0),
        ({"rtol": 14 / 8}, 1),
        ({"rtol": 1e-12}, 4),
        ({"energy": 8 / 15}, 1),
        ({"energy": 0.5}, 1),
        ({"energy": 0.54}, 2),
        ({"energy": 12 / 15}, 2),
        ({"energy": 1}, 4),
        ({"energy": 1e-9}, 1),
        ({}, 4),
        ({"gap": False}, 4),
    ],
)
def test_rules(rule, order):
    assert select_order(HSV, **rule) == order
    with_unstable = np.concatenate([[np.inf, np.inf], HSV])
    assert select_order(with_unstable, **rule) == order + 2
    assert isinstance(select_order(HSV.tolist(), **rule), int)


@pytest.mark.parametrize("total", [7, 10, 13, 100])
def test_energy_met_exactly_is_met(total):
    # Story: [8, 4, 2, 1] at energy=0.8 kept three, because (1 - 0.8) * 15 rounds to below 3.
    values = np.arange(total, 0, -1.0)
    held = np.cumsum(values)
    for k in range(1, total):
        assert select_order(values, energy=held[k - 1] / held[-1]) == k
    assert select_order([4.0, 3, 2, 1], energy=0.9) == 3
    assert select_order([1.0, 1e-14], energy=1) == 2


def test_gap():
    assert select_order([10.0, 9, 1, 0.9, 0.5], gap=True) == 2
    assert select_order([np.inf, 10.0, 9, 1, 0.9, 0.5], gap=True) == 3
    # the cliff into the noise is no gap
    assert select_order([10.0, 9, 1, 1e-17, 1e-18], gap=True) == 2
    assert select_order([10.0, 9, 1, 1e-3, 1e-9], gap=True, noise_floor=1e-2) == 2
    assert select_order([5.0], gap=True) == 1
    assert select_order([], gap=True) == 0
    assert select_order([np.inf], gap=True) == 1
    assert select_order([0.0, 0.0], gap=True) == 0


def test_noise_floor():
    assert select_order([1.0, 1e-3, 1e-17]) == 2
    assert select_order([1.0, 1e-3, 1e-17], noise_floor=0) == 3
    assert select_order([1.0, 1e-3, 1e-17], noise_floor=1e-3) == 1
    assert select_order([np.inf, 1.0, 0.0]) == 2


@pytest.mark.parametrize("rule", [{"tol": 1.0}, {"rtol": 0.5}, {"energy": 0.5}, {"gap": True}, {}])
@pytest.mark.parametrize("hsv, order", [([], 0), ([0.0, 0.0], 0), ([np.inf, np.inf], 2), ([np.inf, 0.0], 1)])
def test_empty_spectra(hsv, order, rule):
    assert select_order(hsv, **rule) == order


@pytest.mark.parametrize(
    "hsv",
    [[1.0, 2.0], [1.0, np.nan], [1.0, -1.0], [[1.0, 0.5]], "x", None, 3.0, [1.0, np.inf], [1j], [None], {}],
)
def test_bad_values(hsv):
    with pytest.raises(OrderError, match="hsv"):
        select_order(hsv)


@pytest.mark.parametrize(
    "rule",
    [
        {"tol": 0},
        {"tol": -1},
        {"tol": np.nan},
        {"tol": np.inf},
        {"tol": "x"},
        {"tol": [1]},
        {"rtol": 0},
        {"rtol": -1e-9},
        {"energy": 0},
        {"energy": 1.1},
        {"energy": "half"},
        {"tol": 1, "rtol": 1},
        {"tol": 1, "gap": True},
        {"energy": 1, "gap": True},
        {"tol": 1, "rtol": 1, "energy": 1, "gap": True},
    ],
)
def test_bad_rules(rule):
    with pytest.raises(OrderError):
        select_order(HSV, **rule)


def test_message_names_every_rule_passed():
    with pytest.raises(OrderError, match=r"tol=1.*energy=0.5"):
        select_order(HSV, tol=1, energy=0.5)


def test_agrees_with_reduce():
    from helpers.reference import random_system

    for seed in range(5):
        system = random_system(seed, 8, 2, 2)
        base = hankelred.reduce(system)
        values, floor = base.hankel_singular_values, base.noise_floor
        for rule in ({"tol": values[3]}, {"rtol": 0.1}, {"energy": 0.9}, {}):
            assert hankelred.reduce(system, **rule).order == select_order(values, **rule, noise_floor=floor)


def test_input_is_not_changed():
    values = HSV.copy()
    values.setflags(write=False)
    select_order(values, tol=1.0)
    np.testing.assert_array_equal(values, HSV)
