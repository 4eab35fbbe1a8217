"""The Galerkin projection onto low-rank factors: its singular values, and the proved bound of their error."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from helpers.sparse_models import heat

import hankelred
from hankelred import hankel_singular_values
from hankelred.gramians import low_rank
from hankelred.gramians.galerkin import gain_bound
from hankelred.models.sparse_model import any_model

pytestmark = pytest.mark.slow


@pytest.fixture
def projected(monkeypatch):
    """Project models of any size, and at a residual so large that the error is visible."""
    monkeypatch.setattr(low_rank, "STATES_PER_PORT", 0)
    monkeypatch.setattr(low_rank, "PROJECTED_RESIDUALS", (1e-2, 1e-2))


def dense_values(A, B, C, E=None):
    E = np.eye(A.shape[0]) if E is None else E.toarray()
    return hankel_singular_values((A.toarray(), B, C, 0, E))


def mass(n):
    """Return a mass matrix of linear elements on a graded mesh."""
    return sp.csc_array(
        sp.diags([np.full(n - 1, 1 / 6), np.linspace(0.5, 2, n), np.full(n - 1, 1 / 6)], [-1, 0, 1])
    )


def turned(A, B, C):
    """Return a complex model: rotation of each state at its own rate."""
    spin = sp.csc_array(sp.diags([np.linspace(-300, 300, A.shape[0])], [0]))
    return A + 1j * spin, B * (1 + 0.5j), C * (1 - 2j)


MODELS = {
    "symmetric": (*heat(16), None),
    "symmetric with mass matrix": (*heat(15), mass(225)),
    "convection": (*heat(16, convection=20.0), None),
    "convection with mass matrix": (*heat(15, convection=20.0), mass(225)),
    "complex": (*turned(*heat(14, convection=10.0)), None),
    "one input": (heat(16)[0], heat(16)[1][:, :1], heat(16)[2], None),
    "output at the input": (heat(16)[0], heat(16)[1], heat(16)[1].T, None),
}


@pytest.mark.parametrize("accuracy", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("name", MODELS)
def test_error_is_within_the_proved_bound(projected, name, accuracy):
    A, B, C, E = MODELS[name]
    system = (A, B, C, 0) if E is None else (A, B, C, 0, E)
    factors = low_rank.low_rank_factors(any_model(system, 0, "low_rank"), accuracy)
    truth = dense_values(A, B, C, E)
    values, certificate = factors.values * factors.problem.gain, factors.certificate * factors.problem.gain
    known = np.zeros(truth.size)
    known[: values.size] = values
    assert factors.kind == "rigorous"
    assert np.abs(known - truth).max() <= certificate <= accuracy * truth[0]
    # it is sharper than what the residual factors alone prove with as many steps
    assert factors.residual_factors[0].shape[1] == 0


@pytest.mark.parametrize("name", MODELS)
def test_residual_is_that_of_the_gramian_equations(projected, name):
    A, B, C, E = MODELS[name]
    E = sp.eye_array(A.shape[0]) if E is None else E
    factors = low_rank.low_rank_factors(any_model((A, B, C, 0, E), 0, "low_rank"))
    residuals = []
    for a, e, b, L in (
        (A, E, B, factors.controllability * 2.0**factors.problem.input_exponent),
        (A.conj().T, E.conj().T, C.conj().T, factors.observability * 2.0**factors.problem.output_exponent),
    ):
        L = factors.problem.pencil.back(L)
        aL, eL, b = a @ L, e @ L, np.asarray(b)
        defect = aL @ eL.conj().T + eL @ aL.conj().T + b @ b.conj().T
        residuals.append(np.linalg.norm(defect) / np.linalg.norm(b @ b.conj().T))
    assert max(residuals) <= 1.01 * factors.residual + 1e-10
    assert factors.residual <= 20 * max(residuals) + 1e-10


def test_rounding_is_not_hidden(projected):
    # more digits than products with A have: further steps of the iteration give them, or an error
    A, B, C = heat(16, convection=20.0)
    values = hankel_singular_values((A, B, C, 0), solver="low_rank", accuracy=1e-11)
    np.testing.assert_allclose(values[:5], dense_values(A, B, C)[:5], rtol=1e-10)
    with pytest.raises(hankelred.ConvergenceError, match="accuracy of the singular values"):
        hankel_singular_values((A, B, C, 0), solver="low_rank", accuracy=1e-17)


@pytest.mark.parametrize("convection", [0.0, 20.0])
def test_reduction_and_its_bound(projected, convection):
    A, B, C = heat(15, convection=convection)
    reduction = hankelred.reduce((A, B, C, 0), 6, solver="low_rank")
    dense = hankelred.reduce((A.toarray(), B, C, 0), 6)
    assert reduction.certificate.kind == "rigorous"
    assert abs(reduction.error() - dense.error()) <= reduction.error_uncertainty + 1e-6 * dense.error()
    assert dense.error() <= reduction.error_bound <= 1.05 * dense.error_bound
    # the H2 norm has no contribution of residual factors
    h2 = hankelred.norm((A, B, C, 0), "h2", solver="low_rank")
    assert h2 == pytest.approx(hankelred.norm((A.toarray(), B, C, 0), "h2"), rel=1e-4)


def test_a_model_with_many_states_per_port_is_projected():
    """Before, 37 factorizations were needed here to prove 1e-8, and 29 to prove 1e-6."""
    A, B, C = heat(45)
    factors = low_rank.low_rank_factors(any_model((A, B[:, :1], C[:1], 0), 0, "low_rank"), 1e-8)
    assert factors.residual_factors[0].shape[1] == 1  # 2025 states are too few for two ports
    A, B, C = heat(80)
    factors = low_rank.low_rank_factors(any_model((A, B, C, 0), 0, "low_rank"), 1e-8)
    assert factors.residual_factors[0].shape[1] == 0
    assert factors.factorizations <= 28 and factors.certificate <= 1e-9 * factors.values[0]


@pytest.mark.parametrize("seed", range(8))
def test_gain_bound(seed):
    rng = np.random.default_rng(seed)
    k, m, p = 9, 2, 12
    A = rng.standard_normal((k, k)) - 4 * np.eye(k)
    if seed % 2:  # sharp resonances between the sampled frequencies
        A = np.kron(np.diag(rng.uniform(1, 30, 4)), [[0, 1.0], [-1.0, 0]]) - 1e-3 * np.eye(8)
        k = 8
    B, r_b, R_A = (rng.standard_normal(shape) for shape in ((k, m), (p, m), (p, k)))
    norm = hankelred.norm((A, B, R_A, r_b), "hinf")
    bound = gain_bound(A, B, r_b.T @ r_b, R_A.T @ r_b, R_A.T @ R_A)
    assert norm <= bound <= 2.2 * norm
