"""The faster parts of the H-infinity norm: partial fractions, squared poles, separate parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.linalg as sla
from helpers.sweeps import sweep
from scipy.optimize import minimize_scalar

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
    # no eigenvectors, or an estimated error with which no search accepts the gains
    assert approximate is None or approximate[1].max() > norms.CHEAP_RTOL * approximate[0].max()
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


@pytest.mark.parametrize("p, m", [(1, 1), (1, 3), (2, 3)])
def test_errors_from_separate_parts(monkeypatch, p, m):
    """With several outputs the Hamiltonian matrix of both models takes the place of the squared poles."""
    A, B, C = resonant(60, p, m, 7)
    reduction = hankelred.reduce((A, B, C, np.full((p, m), 0.2)), 6)
    calls = []
    separate = norms.CriticalResponse.error_without_cancellation

    def recorded(self, *arguments):
        calls.append(separate(self, *arguments))
        return calls[-1]

    monkeypatch.setattr(norms.CriticalResponse, "error_without_cancellation", recorded)
    fast = [reduction.at(order).error() for order in range(1, 20)]
    assert sum(value is not None for value in calls) >= 15
    monkeypatch.setattr(norms.CriticalResponse, "error_without_cancellation", lambda self, *arguments: None)
    slow = [reduction.at(order).error() for order in range(1, 20)]
    np.testing.assert_allclose(fast, slow, rtol=1e-6)
    A6, B6, C6, D6 = reduction.system

    def error_at(w):
        full = C @ np.linalg.solve(1j * w * np.eye(60) - A, B) + 0.2
        return np.linalg.norm(full - D6 - C6 @ np.linalg.solve(1j * w * np.eye(6) - A6, B6), 2)

    w = around_the_poles(A)
    sampled = [error_at(x) for x in w]
    k = int(np.argmax(sampled))
    peak = minimize_scalar(lambda x: -error_at(x), bounds=(w[k - 1], w[k + 1]), options={"xatol": 1e-12})
    assert -peak.fun == pytest.approx(fast[5], rel=1e-6)


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
    # the difference as one system with the states of both
    A, B, C = (
        sla.block_diag(first[0], second[0]),
        np.vstack([first[1], second[1]]),
        np.hstack([first[2], -second[2]]),
    )
    exact = gains(A, B, C, -D, w)
    np.testing.assert_allclose(difference.gain(w), exact, rtol=1e-10)
    np.testing.assert_allclose(difference.approximate_gain(w)[0], exact, rtol=1e-8)
    assert np.all(difference.rounding(w) >= parts[0].rounding(w))


COUPLED = (
    np.array([[-0.17, 1.45, -4, -2], [-1.45, -0.17, -18, -11], [0, 0, -0.31, 0.44], [0, 0, -0.44, -0.31]]),
    np.array([[0.7], [-0.9], [-0.8], [-0.4]]),
    np.array([[0.4, -0.6, -0.6, 0.7]]),
)


@pytest.mark.parametrize("exponent", [-500, -400, -300, 300, 400, 490])
@pytest.mark.parametrize("kind", ["hinf", "linf"])
def test_tiny_and_huge_gains_have_the_same_peak(exponent, kind):
    """Squared poles used a product of B and twice C, which underflowed to zero for B and C of about 1e-120.

    Then no level was crossed, and the norm was the gain at a point of the grid, 0.4 % too low. For B and C of
    1e120 the product overflowed, and the eigenvalues of an infinite matrix ended in LinAlgError.
    """
    exact = 26.1569597972902  # mpmath, 60 digits, at 1.42419 rad/s
    A, B, C = COUPLED
    for of_inputs, of_outputs in ((exponent, exponent), (exponent, -exponent), (exponent, 0), (0, exponent)):
        value = hankelred.norm((A, np.ldexp(B, of_inputs), np.ldexp(C, of_outputs), 0), kind)
        assert np.ldexp(value, -of_inputs - of_outputs) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("gain", sweep([1e-300, 1e-60, 1e290, 1e-240, 1e-120, 1e60, 1e150, 1e240], first=3))
@pytest.mark.parametrize(("p", "m"), [(1, 1), (1, 3), (3, 1), (2, 3)])
@pytest.mark.parametrize("dt", [0, True])
def test_the_norm_is_proportional_to_the_gain(gain, p, m, dt):
    for n in (1, 2, 4, 8):
        rng = np.random.default_rng(100 * n + 10 * p + m)
        A = np.triu(rng.uniform(-5, 5, (n, n)), 1) - np.diag(rng.uniform(0.05, 1, n))
        A[range(1, n, 2), range(0, n - 1, 2)] = -3 * np.sign(A[range(0, n - 1, 2), range(1, n, 2)])
        A = A - max(0.0, np.linalg.eigvals(A).real.max() + 0.05) * np.eye(n)
        if dt:
            A = sla.expm(0.3 * A)
        B, C, D = rng.standard_normal((n, m)), rng.standard_normal((p, n)), rng.standard_normal((p, m))
        root = np.sqrt(gain)
        # entries of D beyond 1e150 are refused
        for direct in (0.0, 0.1) if gain < 1e150 else (0.0,):
            for kind in ("hinf", "linf"):
                value = hankelred.norm((A, root * B, root * C, gain * direct * D), kind, dt=dt)
                unit = hankelred.norm((A, B, C, direct * D), kind, dt=dt)
                assert value / gain == pytest.approx(unit, rel=1e-10), (n, direct, kind)


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e-160, 1e-20, 1e20, 1e120, 1e149])
@pytest.mark.parametrize("direct", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["hinf", "linf"])
def test_gains_that_only_the_direct_term_has(size, direct, kind):
    """A gain of 1e-400 ended in ValueError, one of 1e-320 in LinAlgError, B of 1e-320 in OverflowError."""
    # b^2 (s + 1) / ((s + 1)^2 + 4) has its peak of b^2 0.54934 at w^2 = 2 sqrt(8) - 1
    w = np.sqrt(2 * np.sqrt(8) - 1)
    peak = abs((1j * w + 1) / ((1j * w + 1) ** 2 + 4))
    model = ([[-1, 2], [-2, -1]], [[size], [0]], [[size, 0]], direct)
    value = hankelred.norm(model, kind)
    if direct == 0 or size > 1e10:
        assert value == pytest.approx(peak * size * size, rel=1e-10, abs=1e-323)
    else:
        assert value == pytest.approx(direct, rel=1e-10)


def test_a_largest_gain_beyond_double_precision_is_refused():
    for kind in ("hinf", "linf"):
        with pytest.raises(hankelred.ModelError, match="1e309, more than double precision"):
            hankelred.norm(([[-1e-9]], [[1e150]], [[1e150]], 0), kind)


@pytest.mark.parametrize("rate", [1e-150, 1e-100, 1e-60, 1e60, 1e100, 1e150])
def test_rates_of_which_the_squares_underflow_or_overflow(rate):
    # the squares of the poles are then no numbers of double precision
    A, B, C = COUPLED
    w = [1.4241885]
    level = gains(A, B, C, np.zeros((1, 1)), w)[0]
    schur = schur_form(A)[0] * rate
    B, C = schur_form(A)[1].T @ B, C @ schur_form(A)[1]
    value, at = norms.hinf_norm(schur, B, C, np.zeros((1, 1)), discrete=False)
    assert value * rate == pytest.approx(level, rel=1e-7)
    assert at / rate == pytest.approx(w[0], rel=1e-3)


def test_squared_poles_that_do_not_give_the_gain_are_not_used(monkeypatch):
    """Without crossings a level test accepts whatever the grid has: an h of zeros must not be believed."""
    of_system = norms._SquaredPoles.of_system
    A, B, C = COUPLED
    T, Z = schur_form(A)
    system = T, Z.T @ B, C @ Z, np.zeros((1, 1))
    response = FrequencyResponse(*system, discrete=False, schur=True)
    assert of_system(*system, None).agree_with(response)

    def without_h(*args):
        plane = of_system(*args)
        return dataclasses.replace(plane, h=0 * plane.h)

    assert not without_h(*system, None).agree_with(response)
    monkeypatch.setattr(norms._SquaredPoles, "of_system", without_h)
    assert norms.hinf_norm(*system, discrete=False)[0] == pytest.approx(26.1569597972902, rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_squared_poles_of_far_from_normal_matrices(seed):
    """Eigenvalues of A^2 + h c are ill-conditioned where A is far from normal; rotated A are too easy."""
    rng = np.random.default_rng(seed)
    n, m = 2 * int(rng.integers(2, 7)), int(rng.integers(1, 4))
    blocks = [
        [[-d, w], [-w, -d]]
        for d, w in zip(10 ** rng.uniform(-3, 0, n // 2), rng.uniform(0.3, 5, n // 2), strict=True)
    ]
    couplings = rng.standard_normal((n, n)) * 10 ** rng.uniform(0, 3)
    A = sla.block_diag(*blocks) + np.triu(
        np.kron(np.triu(np.ones((n // 2, n // 2)), 1), np.ones((2, 2))) * couplings
    )
    B, C, D = rng.standard_normal((n, m)), rng.standard_normal((1, n)), np.zeros((1, m))
    value, _ = norms.hinf_norm(A, B, C, D, discrete=False)
    T, Z = schur_form(A)
    poles = np.linalg.eigvals(A)
    plane = norms._HalfPlane(T, Z.T @ B, C @ Z, D, poles, discrete=False)
    response = FrequencyResponse(A, B, C, D, discrete=False)
    expected, _ = norms._search(response, plane, D, norms._Inside(None, real=True), real=True)
    assert value == pytest.approx(expected, rel=3e-6)


def test_the_frequency_is_that_of_the_returned_gain():
    # value and frequency came from two searches, whose peaks were not the same to the last digits
    for n, p, m in ((8, 1, 1), (8, 2, 2), (60, 1, 1), (60, 2, 2)):
        A, B, C = resonant(n, p, m, n + p)
        D = np.zeros((p, m))
        value, at = hankelred.norm((A, B, C, D), "hinf", return_frequency=True)
        assert at >= 0
        assert value == hankelred.norm((A, B, C, D), "hinf")
        assert gains(A, B, C, D, [at])[0] == pytest.approx(value, rel=1e-11)


@pytest.mark.parametrize("ports", [1, 2])
@pytest.mark.parametrize("ulps", [0, 1, -1, 1e4, -1e4, 1e8, -1e8])
def test_a_level_at_the_direct_term(ports, ulps):
    """At a level equal to a singular value of D the matrix of the level test is infinite, or does not exist.

    In bands without infinity the largest gain, and so the level, may be there. That ended in LinAlgError.
    """
    # |1 + k / (1 + jw)| rises with w; at the edge w = 1 of the band it is 1 divided by the level
    level = (1 + 1e-6) * (1 + ulps * np.finfo(float).eps)
    k = -1 + np.sqrt(1 - 2 * (1 - level**-2))
    eye = np.eye(ports)
    system = -eye, eye, k * eye, eye
    value, at = norms.hinf_norm(*system, discrete=False, within=[(0.0, 1.0)])
    assert value == pytest.approx(1 / level, rel=1e-12)
    assert at == 1.0


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 0.25])
def test_levels_beside_singular_ones(share):
    singular = np.array([2 * (1 + share * norms.HINF_RTOL), 2.0, 3.0])
    level = norms._level_above(2.0, singular)
    assert 2 < level <= 2 * (1 + norms.HINF_RTOL)
    assert np.abs(singular / level - 1).min() > norms.SINGULAR_LEVEL
    assert norms._level_above(2.0, np.array([2.0])) == 2 * (1 + norms.HINF_RTOL)
