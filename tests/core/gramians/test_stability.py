"""Classification of poles as stable, marginal and unstable, and the separation of the unstable part."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla
from helpers.reference import gains, random_system, response, similar, with_jordan_block

import hankelred
from hankelred import hankel_singular_values
from hankelred._util.arrays import schur_poles
from hankelred.gramians.stability import STABILITY_TOL, is_stable_pole, matrix_size, split_schur


def infinite(system, **options):
    values = hankel_singular_values(system, **options)
    count = int(np.isinf(values).sum())
    assert np.all(np.isinf(values[:count])), "infinite values come first"
    assert np.all(np.isfinite(values[count:])) and np.all(np.diff(values[count:]) <= 0)
    return count


def with_pole(pole, *, others):
    poles = np.append(others, pole)
    return np.diag(poles), np.ones((poles.size, 1)), np.ones((1, poles.size)), 0


def test_default_tolerance_is_as_documented():
    assert STABILITY_TOL == 1e-13
    assert infinite(with_pole(-1e-9, others=[-1.0, -2.0])) == 0
    assert infinite(with_pole(-1e-16, others=[-1.0, -2.0])) == 1


@pytest.mark.parametrize("tol", [1e-13, 1e-11, 1e-6, 1e-2])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_continuous_edge_scales_with_the_size_of_a(tol, size):
    # diagonal, so that |A| is the largest pole, -2 size
    others = [-size, -2 * size]
    edge = tol * 2 * size
    assert infinite(with_pole(-edge * 1.001, others=others), stability_tol=tol) == 0
    assert infinite(with_pole(-edge * 0.999, others=others), stability_tol=tol) == 1
    assert infinite(with_pole(+edge * 0.001, others=others), stability_tol=tol) == 1


@pytest.mark.parametrize("tol", [1e-11, 1e-6, 1e-2])
@pytest.mark.parametrize("side", [1, -1])
def test_discrete_edge(tol, side):
    others = [0.5, -0.2, 0.0]
    assert infinite(with_pole(side * (1 - 1.01 * tol), others=others), stability_tol=tol, dt=True) == 0
    assert infinite(with_pole(side * (1 - 0.99 * tol), others=others), stability_tol=tol, dt=True) == 1
    assert infinite(with_pole(side * (1 + 0.99 * tol), others=others), stability_tol=tol, dt=0.1) == 1
    assert infinite(with_pole(side * (1 + 1.01 * tol), others=others), stability_tol=tol, dt=0.1) == 1


def test_zero_tolerance():
    assert infinite(with_pole(-1e-15, others=[-1.0]), stability_tol=0) == 0
    assert infinite(with_pole(0.0, others=[-1.0]), stability_tol=0) == 1


@pytest.mark.parametrize("bad", [-1e-3, 1.0, np.nan, np.inf, "no", None, [1]])
def test_tolerance_out_of_range(bad):
    for function in (hankel_singular_values, hankelred.reduce, hankelred.norm, hankelred.gramian):
        with pytest.raises(hankelred.HankelredError, match="stability_tol"):
            function(with_pole(-1.0, others=[]), stability_tol=bad)


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("multiplicity", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_integrators_hidden_by_a_similarity(multiplicity, orthogonal, seed):
    # Story: a k-fold pole splits by rounding into a circle of radius eps^(1/k); members on the stable
    # side are as marginal as the others.
    block = np.diag(np.ones(multiplicity - 1), 1)
    assert infinite(with_jordan_block(block, seed, orthogonal=orthogonal)) == multiplicity
    for edge in (1, -1):
        shifted = block + edge * np.eye(multiplicity)
        system = with_jordan_block(shifted, seed, discrete=True, orthogonal=orthogonal)
        assert infinite(system, dt=True) == multiplicity


@pytest.mark.parametrize("seed", range(4))
def test_undamped_oscillators_hidden_by_a_similarity(seed):
    oscillator = np.array([[0.0, 2.0], [-2.0, 0.0]])
    assert infinite(with_jordan_block(oscillator, seed)) == 2
    assert infinite(with_jordan_block(sla.expm(oscillator), seed, discrete=True), dt=True) == 2


@pytest.mark.parametrize("discrete", [False, True])
def test_stable_systems_are_not_called_marginal(discrete):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        margin = 10.0 ** -rng.integers(1, 9)
        system = random_system(seed, 8, 1, 1, discrete=discrete, margin=margin)
        if seed % 2:
            system = similar(*system, rng, orthogonal=True)
        assert infinite(system, dt=discrete) == 0


def test_equal_slow_poles_are_stable():
    # Story: two equal tanks in series with rate 1e-6, together with a pole of size 1, counted as integrators.
    A = np.array([[-1e-6, 1.0, 0.0], [0.0, -1e-6, 0.0], [0.0, 0.0, -1.0]])
    assert infinite((A, np.ones((3, 1)), np.ones((1, 3)), 0)) == 0
    assert infinite((np.diag([-1e-9, -1e-9, -1.0]), np.ones((3, 1)), np.ones((1, 3)), 0)) == 0


def test_everything_unstable():
    A = np.diag([1.0, 2.0, 0.0])
    system = A, np.ones((3, 1)), np.ones((1, 3)), 0
    assert infinite(system) == 3
    for method in ("truncation", "residualization"):
        reduction = hankelred.reduce(system, method=method)
        assert (reduction.order, reduction.unstable_order, reduction.numerical_rank) == (3, 3, 3)
        assert reduction.error_bound == reduction.error() == reduction.error("h2") == 0
        w = np.array([0.1, 1.0, 7.0])
        np.testing.assert_allclose(
            response(reduction.system, w), response((*system[:3], np.zeros((1, 1))), w)
        )
        with pytest.raises(hankelred.OrderError, match="least order possible is 3"):
            reduction.at(2)


def test_static_and_zero_a():
    assert infinite((np.zeros((2, 2)), np.ones((2, 1)), np.ones((1, 2)), 0)) == 2
    assert infinite((np.zeros((2, 2)), np.ones((2, 1)), np.ones((1, 2)), 0), dt=True) == 0
    assert hankel_singular_values((np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), 3)).size == 0


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("method", ["truncation", "residualization"])
def test_unstable_part_is_kept_exactly(discrete, method):
    # Story: pyMOR dropped the unstable pole in one run and moved it from .5 to .468 in another.
    unstable = np.array([[1.25, 0.5], [-0.5, 1.25]]) if discrete else np.array([[0.5, 3.0], [-3.0, 0.5]])
    system = with_jordan_block(unstable, 3, discrete=discrete, orthogonal=True)
    w = np.linspace(0.05, 3, 40)
    for order in range(2, 9):
        reduction = hankelred.reduce(system, order, method=method, dt=discrete)
        assert (reduction.order, reduction.unstable_order) == (order, 2)
        poles = np.linalg.eigvals(reduction.system[0])
        outside = poles[np.abs(poles) > 1] if discrete else poles[poles.real > 0]
        np.testing.assert_allclose(
            np.sort_complex(outside), np.sort_complex(np.linalg.eigvals(unstable)), rtol=1e-11
        )
        full, reduced = (response(s, w, discrete=discrete) for s in (system, reduction.system))
        sampled = np.linalg.svd(full - reduced, compute_uv=False).max()
        assert sampled <= reduction.error() * (1 + 1e-9) + 1e-10
        assert reduction.error() <= reduction.error_bound * (1 + 1e-9) + 1e-10
    assert reduction.error_bound < 1e-12 and sampled < 1e-10, "nothing but the rounding of the matrices"


def test_order_below_the_unstable_poles_is_refused():
    system = np.diag([1.0, 0.0, -1.0, -2.0]), np.ones((4, 1)), np.ones((1, 4)), 0
    for order in (0, 1):
        with pytest.raises(hankelred.OrderError, match=f"order {order} .*least order possible is 2"):
            hankelred.reduce(system, order)
    assert hankelred.reduce(system, 2).order == 2
    assert hankelred.reduce(system, tol=1e6).order == 2
    assert hankelred.reduce(system, energy=1e-9).order == 3  # some share, so at least one finite value
    assert hankelred.reduce(system, rtol=1e3).order == 2


def test_norms_of_an_unstable_model_are_infinite():
    for pole, dt in ((0.0, 0), (1.0, 0), (1.0, True), (-1.0, True), (-3.0, 0.1)):
        for kind in ("h2", "hinf", "hankel"):
            assert hankelred.norm(([[pole]], [[1.0]], [[1.0]], 0), kind, dt=dt) == np.inf


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_split_decouples(discrete, complex_):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((12, 12)) + (1j * rng.standard_normal((12, 12)) if complex_ else 0)
    A = A / 3 if discrete else A
    parts = split_schur(A, discrete=discrete, tol=1e-13)
    k = parts.n_stable
    assert 0 < k < 12
    np.testing.assert_allclose(parts.left.conj().T @ parts.right, np.eye(12), atol=1e-10)
    np.testing.assert_allclose(
        parts.left.conj().T @ A @ parts.right, sla.block_diag(parts.T_stable, parts.T_unstable), atol=1e-10
    )
    poles = np.linalg.eigvals(parts.T_stable)
    assert np.all(np.abs(poles) < 1) if discrete else np.all(poles.real < 0)
    kept = np.linalg.eigvals(parts.T_unstable)
    assert np.all(np.abs(kept) >= 1) if discrete else np.all(kept.real >= 0)


def test_conjugates_stay_together():
    A = np.array([[-1e-14, 1.0], [-1.0, -1e-14]])
    assert infinite((sla.block_diag(A, -1.0), np.ones((3, 1)), np.ones((1, 3)), 0)) == 2


def test_pieces():
    assert matrix_size(np.zeros((0, 0))) == 0
    assert matrix_size(np.diag([3.0, -4.0])) == 4
    poles = is_stable_pole(np.array([-1.0, 0, 1, -1e-14]), 1.0, discrete=False, tol=1e-13)
    assert poles.tolist() == [True, False, False, False]
    A = np.random.default_rng(1).standard_normal((9, 9))
    T, _ = sla.schur(A)
    np.testing.assert_allclose(
        np.sort_complex(schur_poles(T)), np.sort_complex(np.linalg.eigvals(A)), rtol=1e-10
    )


def test_pole_on_minus_one_and_slow_alternation():
    assert infinite(with_pole(-1.0, others=[0.5]), dt=True) == 1
    values = hankel_singular_values(with_pole(-1 + 1e-9, others=[0.5]), dt=True)
    np.testing.assert_allclose(values[0], 1 / (1 - (1 - 1e-9) ** 2), rtol=1e-6)


def test_bound_counts_only_stable_values():
    system = np.diag([0.5, -1.0, -2.0, -50.0]), np.ones((4, 1)), np.ones((1, 4)), 0
    reduction = hankelred.reduce(system, 2)
    stable = hankel_singular_values((np.diag([-1.0, -2.0, -50.0]), np.ones((3, 1)), np.ones((1, 3)), 0))
    np.testing.assert_allclose(reduction.hankel_singular_values, [np.inf, *stable], rtol=1e-12)
    np.testing.assert_allclose(reduction.error_bound, 2 * stable[1:].sum(), rtol=1e-12)
    w = np.geomspace(1e-3, 1e3, 400)
    A, B, C, _ = system
    full = (A, B, C, np.zeros((1, 1)))
    difference = np.abs(response(full, w) - response(reduction.system, w)).max()
    assert difference <= reduction.error() * (1 + 1e-9)
    assert gains(full, w).max() > reduction.error()
