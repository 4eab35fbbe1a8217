"""Bands and horizons of large sparse models, compared with the dense methods and with plain solves."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from helpers.sparse_models import chain, heat
from scipy.sparse.linalg import expm_multiply, spsolve

import hankelred
from hankelred import ConvergenceError, ModelError, SecondOrderModel
from hankelred.reduction.variants import large_limited

#: the fallback to other Gramians is tested in test_restricted
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the model of order")]

A, B, C = heat(15, convection=10.0)
EYE = sp.identity(A.shape[0], format="csc")
COMPLEX = sp.csc_array(A * (1 + 0.3j))
UNSTABLE = sp.csc_array(sp.block_diag([A, [[0.0]]])), np.vstack([B, [[1, 1]]]), np.hstack([C, [[1], [0]]]), 0
MODELS = {
    "plain": ((A, B, C, 0), 0),
    "with E": ((A, B, C, 0, sp.diags(np.linspace(1, 2, A.shape[0])).tocsc()), 0),
    "integrator": (UNSTABLE, 0),
    "complex": ((COMPLEX, B, (1 + 1j) * C, 0), 0),
    "discrete": ((sp.csc_array(EYE + 5e-4 * A), B, C, np.ones((2, 2))), 0.5),
}
REGIONS = [{"band": [(10, 100), (500, 600)]}, {"band": (2e3, 1e4)}, {"horizon": 0.01}]
DISCRETE_REGIONS = [{"band": [(0.01, 0.1), (1, 6)]}, {"horizon": 20}]


def method_of(region):
    return "frequency_limited" if "band" in region else "time_limited"


@pytest.mark.parametrize("name", MODELS)
def test_large_models_are_reduced_as_dense_ones(name):
    """Large models were refused by every method but truncation and residualization."""
    system, dt = MODELS[name]
    for region in DISCRETE_REGIONS if dt else REGIONS:
        options = {"method": method_of(region), "dt": dt, **region}
        large = hankelred.reduce(system, 6, solver="low_rank", **options)
        dense = hankelred.reduce(system, 6, solver="dense", **options)
        assert large.solver == "low_rank" and large.balanced_by == dense.balanced_by
        assert large.error(**region) == pytest.approx(dense.error(**region), rel=1e-6)
        finite = slice(large.unstable_order, 6)
        np.testing.assert_allclose(
            large.hankel_singular_values[finite],
            dense.hankel_singular_values[finite],
            atol=1e-9 * dense.hankel_singular_values[finite].max(),
        )
        assert large.unstable_order == dense.unstable_order
        assert large.error_bound == np.inf and large.certificate.kind == "estimate"


def test_small_gains_in_a_band_are_resolved():
    """Above 1e4 rad/s the gain is a millionth of its peak, of which plain balancing resolves 7 digits."""
    A, B, C = heat(71)
    band = (1e4, 2e4)
    large = hankelred.reduce((A, B, C, 0), 12, method="frequency_limited", band=band)
    assert large.certificate.factorizations < 100
    a, b, c, _ = large.system
    gains = []
    for w in np.linspace(*band, 5):
        full = C @ spsolve((1j * w * sp.identity(A.shape[0]) - A).tocsc(), B.astype(complex))
        gains.append(np.linalg.norm(full - c @ np.linalg.solve(1j * w * np.eye(12) - a, b), 2))
    error = large.error(band=band)
    assert max(gains) <= error * (1 + 1e-6) + large.source.distance
    assert max(gains) >= 0.5 * error and error < 1e-3 * hankelred.norm((A, B, C, 0), "hinf") * 1e-6
    assert large.source.distance < 1e-3 * error


def test_the_error_up_to_a_horizon_is_that_of_the_large_model():
    T, order = 0.01, 5
    large = hankelred.reduce((A, B, C, 0), order, method="time_limited", horizon=T, solver="low_rank")
    a, b, c, _ = large.system
    x, g = np.polynomial.legendre.leggauss(12)
    energy = 0.0
    for start, stop in zip(
        T * np.array([0, *2.0 ** np.arange(-12, 0)]), T * 2.0 ** np.arange(-12, 1), strict=True
    ):
        for t, weight in zip((stop - start) / 2 * (x + 1) + start, (stop - start) / 2 * g, strict=True):
            full = C @ expm_multiply(A * t, B)
            energy += weight * np.sum((full - c @ expm_multiply(a * t, b)) ** 2)
    assert large.error(horizon=T) == pytest.approx(np.sqrt(energy), rel=1e-4)


@pytest.mark.parametrize("region", [{"band": (10, 20)}, {"horizon": 5.0}])
def test_complex_models_are_compared_at_both_signs_of_frequencies(monkeypatch, region):
    """A complex model was compared with its intermediate model at positive frequencies only.

    Here the poles around -15j count as unresolved: both intermediate models deviate by 1 below zero.
    """
    n = 300
    poles = np.concatenate([-np.geomspace(1, 100, n // 2), -1 - 1j * np.linspace(12, 18, n // 2)])
    b, c = np.ones((n, 1)), np.ones((1, n))
    system = sp.diags_array(poles).tocsc(), b, c, 0
    errors = large_limited._Line.errors

    def without_poles_below(self, models, frequencies):
        assert not self.is_real
        out = errors(self, models, frequencies)
        return np.where(frequencies < 0, 1.0, out)

    monkeypatch.setattr(large_limited._Line, "errors", without_poles_below)
    with pytest.raises(
        ConvergenceError, match="in the region, the large model and its intermediate model differ"
    ):
        hankelred.reduce(system, 4, method=method_of(region), solver="low_rank", **region)


def test_projection_orders_and_tolerances():
    system = (A, B, C, 0)
    band = (10, 100)
    reduction = hankelred.reduce(system, 5, method="frequency_limited", band=band, solver="low_rank")
    left, right = reduction.left, reduction.right
    np.testing.assert_allclose(left.T @ right, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(left.T @ (A @ right), reduction.system[0], atol=1e-7 * abs(A).max())
    tol = 1e-5
    by_tol = hankelred.reduce(system, tol=tol, method="frequency_limited", band=band, solver="low_rank")
    assert by_tol.error(band=band) <= tol < by_tol.at(by_tol.order - 1).error(band=band)
    relative = hankelred.reduce(system, rtol=1e-3, method="time_limited", horizon=0.01, solver="low_rank")
    assert relative.error(horizon=0.01) <= 1e-3 * relative.at(0).error(horizon=0.01) * (1 + 1e-6)


def test_models_of_second_order_and_algebraic_states():
    M, D, K, b, c = chain(150, 0.1, 0.1)
    model = SecondOrderModel(M, D, K, b, c)
    for region in ({"band": (0.2, 0.6)}, {"horizon": 80.0}):
        options = {"method": method_of(region), **region}
        large = hankelred.reduce(model, 8, solver="low_rank", **options)
        dense = hankelred.reduce(model, 8, solver="dense", **options)
        assert large.error(**region) == pytest.approx(dense.error(**region), rel=1e-4)
    # an algebraic state: 0 = x_1 - z
    n = A.shape[0]
    E = sp.block_diag([EYE, [[0.0]]], format="csc")
    coupling = np.eye(1, n)
    A0 = sp.bmat([[A, None], [coupling, [[-1.0]]]], format="csc")
    B0, C0 = np.vstack([B, np.zeros((1, 2))]), np.hstack([0 * C, [[1.0], [2.0]]])
    region = {"band": (10, 100)}
    large = hankelred.reduce((A0, B0, C0, 0, E), 5, method="frequency_limited", solver="low_rank", **region)
    dense = hankelred.reduce((A, B, [[1], [2]] * coupling, 0), 5, method="frequency_limited", **region)
    assert large.error(**region) == pytest.approx(dense.error(**region), rel=1e-5)


def test_what_large_models_do_not_have_is_refused_by_name():
    system = (A, B, C, 0)
    for method in ("hankel_norm", "coprime", "modal", "stochastic", "positive_real", "bounded_real"):
        with pytest.raises(ModelError, match=f"method='{method}' is for dense models.*solver='dense'"):
            hankelred.reduce(system, 4, method=method, solver="low_rank")
    with pytest.raises(ModelError, match="0 <= w1 < w2"):
        hankelred.reduce(system, 4, method="frequency_limited", band=(3, 1), solver="low_rank")
    with pytest.raises(ModelError, match="horizon must be a positive"):
        hankelred.reduce(system, 4, method="time_limited", horizon=0, solver="low_rank")
    # wrong arguments are refused before the Gramians of a large model are computed
    with pytest.raises(ModelError, match="0 <= w1 < w2"):
        hankelred.reduce((EYE, B, C, 0), 4, method="frequency_limited", band=(3, 1), solver="low_rank")


def test_too_many_nodes_are_refused(monkeypatch):
    monkeypatch.setattr(large_limited, "MAX_NODES", 30)
    with pytest.raises(ConvergenceError, match=r"at most 30 are .* narrower band"):
        hankelred.reduce((A, B, C, 0), 4, method="frequency_limited", band=(1, 1e4), solver="low_rank")
