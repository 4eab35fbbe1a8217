"""The faster parts of the H-infinity norm: partial fractions, squared poles, separate parts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla

import hankelred
from hankelred._util.schur import schur_form
from hankelred.models.frequency_response import (
    DifferenceResponse,
    FrequencyResponse,
    largest_singular_value,
)
from hankelred.reduction import norms


def resonant(n, p, m, seed, *, damping=(1e-3, 1e-1), span=(1, 100)):
    """Return n / 2 resonances in dense coordinates."""
    rng = np.random.default_rng(seed)
    blocks = [
        np.array([[-z * w, w], [-w, -z * w]])
        for w, z in zip(np.geomspace(*span, n // 2), rng.uniform(*damping, n // 2), strict=True)
    ]
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    A = Q @ sla.block_diag(*blocks) @ Q.T
    return A, rng.standard_normal((n, m)), rng.standard_normal((p, n))


def gains(A, B, C, D, w):
    """Largest singular values, by a dense solution for each frequency."""
    eye = np.eye(len(A))
    return np.array([np.linalg.norm(D + C @ np.linalg.solve(1j * x * eye - A, B), 2) for x in w])


def around_the_poles(A):
    """Return frequencies on and beside every resonance, and between them."""
    poles = np.linalg.eigvals(A)
    beside = poles.imag + poles.real * np.linspace(-3, 3, 31)[:, None]
    return np.unique(np.abs(np.concatenate([beside.ravel(), np.geomspace(1e-4, 1e4, 300), [0.0]])))


@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("direct", [0.0, 0.3])
def test_squared_poles_find_every_crossing(p, m, direct):
    rng = np.random.default_rng(p + 2 * m)
    A, B, C = resonant(16, p, m, p * m, damping=(0.02, 0.2))
    D = direct * rng.standard_normal((p, m))
    T, Z = schur_form(A)
    system = T, Z.T @ B, C @ Z, D
    assert norms._SquaredPoles.are_usable(*system, discrete=False)
    plane = norms._SquaredPoles.of_system(*system, None)
    w = np.linspace(0, 150, 6000)
    g = gains(A, B, C, D, w)
    for level in (0.2 * g.max(), 0.5 * g.max(), 0.9 * g.max()):
        if level <= np.linalg.norm(D):
            continue
        candidates = plane.candidates(level, real=True)
        for k in np.flatnonzero((g[1:] > level) != (g[:-1] > level)):
            inside = (candidates >= w[k] - 1e-9) & (candidates <= w[k + 1] + 1e-9)
            assert np.any(inside), (level, w[k])


@pytest.mark.parametrize(
    ("n", "p", "m", "options"),
    [
        (48, 1, 1, {}),
        (120, 1, 1, {"damping": (1e-4, 1e-3)}),
        (60, 1, 4, {}),
        (60, 4, 1, {}),
        (60, 2, 2, {}),
        (60, 3, 3, {}),
        # stiff: the squares of the slow poles are rounding, and the Hamiltonian matrix is used
        (48, 1, 1, {"span": (1e-3, 1e4), "damping": (1e-4, 1e-3)}),
    ],
)
def test_no_frequency_has_a_larger_gain(n, p, m, options):
    A, B, C = resonant(n, p, m, n + p, **options)
    D = np.full((p, m), 0.1)
    value, at = hankelred.norm((A, B, C, D), "hinf", return_frequency=True)
    assert gains(A, B, C, D, around_the_poles(A)).max() <= value * (1 + 1e-6)
    assert gains(A, B, C, D, [at])[0] == pytest.approx(value, rel=1e-6)


def test_a_stiff_model_is_left_to_the_hamiltonian_matrix():
    A, B, C = resonant(48, 1, 1, 49, span=(1e-3, 1e4), damping=(1e-4, 1e-3))
    T, Z = schur_form(A)
    assert not norms._SquaredPoles.are_usable(T, Z.T @ B, C @ Z, np.zeros((1, 1)), discrete=False)
    assert not norms._SquaredPoles.are_usable(-T, Z.T @ B, C @ Z, np.zeros((1, 1)), discrete=False)


@pytest.mark.parametrize("n", [8, 44])
def test_dependent_eigenvectors_are_not_used(n):
    A = -np.eye(n) + np.eye(n, k=1)
    response = FrequencyResponse(A, np.ones((n, 1)), np.ones((1, n)), np.zeros((1, 1)), discrete=False)
    w = np.geomspace(0.01, 10, 7)
    approximate = response.approximate_gain(w)
    exact = response.gain(w)
    # refused, or the estimated errors cover the deviation
    assert approximate is None or np.all(np.abs(approximate[0] - exact) <= approximate[1] + 1e-12 * exact)
    value = hankelred.norm((A, np.ones((n, 1)), np.ones((1, n)), 0), "hinf")
    assert value == pytest.approx(gains(A, np.ones((n, 1)), np.ones((1, n)), np.zeros((1, 1)), [0.0])[0])


@pytest.mark.parametrize("n", [12, 60])
@pytest.mark.parametrize("discrete", [False, True])
def test_gains_from_partial_fractions(n, discrete):
    A, B, C = resonant(n, 2, 3, n)
    if discrete:
        A = sla.expm(0.02 * A)
    D = np.ones((2, 3))
    response = FrequencyResponse(A, B, C, D, discrete=discrete)
    w = np.linspace(0, 3, 40)
    approximate, errors = response.approximate_gain(w)
    exact = response.gain(w)
    assert np.all(np.abs(approximate - exact) <= errors + 1e-14 * exact)
    assert errors.max() <= 1e-8 * exact.max()


def test_many_pairs_of_inputs_and_outputs_have_no_table_of_residues():
    # a table of residues for each pair took gigabytes for a model with hundreds of inputs and outputs
    A, B, C = resonant(48, 40, 40, 3)
    response = FrequencyResponse(A, B, C, np.zeros((40, 40)), discrete=False)
    assert response.approximate_gain(np.ones(3)) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 2), (2, 5), (5, 2), (3, 3)])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_largest_singular_values_of_small_matrices(shape, scale):
    rng = np.random.default_rng(sum(shape))
    stack = rng.standard_normal((20, *shape)) + 1j * rng.standard_normal((20, *shape))
    stack[0] = 0
    stack[1] = stack[2][:, :1] @ stack[2][:1]  # rank one
    expected = np.linalg.svd(stack, compute_uv=False)[:, 0] * scale
    np.testing.assert_allclose(largest_singular_value(stack * scale), expected, rtol=1e-14)


@pytest.mark.parametrize("m", [1, 3])
def test_errors_from_separate_parts(monkeypatch, m):
    A, B, C = resonant(60, 1, m, 7)
    reduction = hankelred.reduce((A, B, C, np.full((1, m), 0.2)), 6)
    calls = []
    separate = norms.CriticalResponse.error_without_cancellation

    def recorded(self, reduced, bound):
        calls.append(separate(self, reduced, bound))
        return calls[-1]

    monkeypatch.setattr(norms.CriticalResponse, "error_without_cancellation", recorded)
    fast = [reduction.at(order).error() for order in range(1, 20)]
    assert sum(value is not None for value in calls) >= 15
    monkeypatch.setattr(
        norms.CriticalResponse, "error_without_cancellation", lambda self, reduced, bound: None
    )
    slow = [reduction.at(order).error() for order in range(1, 20)]
    np.testing.assert_allclose(fast, slow, rtol=1e-6)
    w = around_the_poles(A)
    A6, B6, C6, D6 = reduction.system
    error = C @ np.linalg.solve(1j * w[:, None, None] * np.eye(60) - A, B)
    error = error + 0.2 - D6 - C6 @ np.linalg.solve(1j * w[:, None, None] * np.eye(6) - A6, B6)
    assert np.linalg.norm(error, 2, axis=(1, 2)).max() == pytest.approx(fast[5], rel=1e-2)


def test_errors_of_small_differences_are_not_subtracted():
    """A difference of 1e-11 of the gain would lose all digits by subtraction."""
    A, B, C = resonant(16, 1, 1, 5, damping=(0.7, 0.9), span=(1, 8))
    reduction = hankelred.reduce((A, B, C, 0), 3)
    values = reduction.hankel_singular_values
    order = int(np.argmax(values < 1e-10 * values[0]))
    small = reduction.at(order)
    assert small.solver == "hammarling"
    assert values[order] * (1 - 1e-3) <= small.error() <= small.error_bound


def test_errors_of_weighted_reductions_use_the_model_s_own_gramian():
    # with weights the factors of the balancing are not those of the model
    A, B, C = resonant(60, 1, 1, 9)
    weight = ([[-1.0]], [[1.0]], [[1.0]], 0)
    reduction = hankelred.reduce((A, B, C, 0), 8, method="frequency_weighted", input_weight=weight)
    A8, B8, C8, D8 = reduction.system
    difference = (sla.block_diag(A, A8), np.vstack([B, B8]), np.hstack([C, -C8]), -D8)
    assert reduction.error() == pytest.approx(hankelred.norm(difference, "hinf"), rel=1e-6)


def test_the_difference_of_two_responses():
    first, second = resonant(50, 2, 2, 1), resonant(12, 2, 2, 2)
    D = np.ones((2, 2))
    parts = [FrequencyResponse(*system, D * k, discrete=False) for k, system in enumerate((first, second))]
    difference = DifferenceResponse(*parts)
    w = np.geomspace(0.1, 100, 9)
    exact = parts[0](w) - parts[1](w)
    np.testing.assert_allclose(difference(w), exact)
    np.testing.assert_allclose(difference.approximate_gain(w)[0], largest_singular_value(exact), rtol=1e-8)
    assert np.all(difference.rounding(w) >= parts[0].rounding(w))
