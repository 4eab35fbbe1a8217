"""Reduction, norms and Gramians of large sparse models, in two levels."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from helpers.sparse_models import beam, chain, heat, rail

import hankelred
from hankelred import ConvergenceError, ModelError, ReductionWarning

pytestmark = pytest.mark.slow


def response(A, B, C, w, E=None):
    E = np.eye(A.shape[0]) if E is None else E
    return C @ np.linalg.solve(1j * w * E - A, B.astype(complex))


@pytest.mark.parametrize("convection", [0.0, 10.0], ids=["symmetric", "dissipative"])
@pytest.mark.parametrize("method", ["truncation", "residualization"])
def test_bound_and_error_hold_on_the_large_model(convection, method):
    A, B, C = heat(15, convection=convection)
    reduction = hankelred.reduce((A, B, C, 0), 6, method=method, solver="low_rank")
    dense = hankelred.reduce((A.toarray(), B, C, 0), 6, method=method)
    assert reduction.solver == "low_rank" and reduction.certificate.kind == "rigorous"
    assert "of 225 states" in repr(reduction)
    assert reduction.certificate.factorizations > 5
    # the true error, by the dense solver
    assert reduction.error() == pytest.approx(dense.error(), rel=1e-4)
    assert abs(reduction.error() - dense.error()) <= reduction.error_uncertainty + 1e-6 * dense.error()
    if method == "truncation":
        assert reduction.error("h2") == pytest.approx(dense.error("h2"), rel=1e-3)
    assert dense.error() <= reduction.error_bound
    assert reduction.error_bound == pytest.approx(dense.error_bound, rel=1e-3)
    A_r, B_r, C_r, D_r = reduction.system
    for w in (0.0, 30.0, 4e3):
        apart = response(A.toarray(), B, C, w) - response(A_r, B_r, C_r, w) - D_r
        assert np.linalg.norm(apart, 2) <= reduction.error_bound


def test_uncertainty_is_a_bound_where_it_is_not_small():
    # with a low accuracy, the intermediate model differs visibly from the large one
    A, B, C = heat(15, convection=10.0)
    rough = hankelred.reduce((A, B, C, 0), 8, solver="low_rank", accuracy=0.3)
    intermediate = rough.source.intermediate.model
    distance = max(
        np.linalg.norm(
            response(A.toarray(), B, C, w) - response(intermediate.A, intermediate.B, intermediate.C, w), 2
        )
        for w in np.concatenate([[0.0], np.geomspace(1, 1e5, 60)])
    )
    assert distance <= rough.error_uncertainty


def test_projection_is_in_the_states_of_the_model():
    A, B, C = heat(12, convection=10.0)
    n = A.shape[0]
    E = sp.csc_array(sp.diags([np.linspace(1, 2, n)], [0]))
    reduction = hankelred.reduce((A, B, C, 0, E), 5, solver="low_rank")
    left, right = reduction.left, reduction.right
    A_r, B_r, C_r, _ = reduction.system
    inverse = np.diag(1 / E.diagonal())
    np.testing.assert_allclose(left.T @ right, np.eye(5), atol=1e-10)
    np.testing.assert_allclose(left.T @ inverse @ (A @ right), A_r, atol=1e-8 * np.abs(A_r).max())
    np.testing.assert_allclose(left.T @ inverse @ B, B_r, atol=1e-9 * np.abs(B_r).max())
    np.testing.assert_allclose(C @ right, C_r, atol=1e-9 * np.abs(C_r).max())


def test_other_orders_rules_and_the_default():
    A, B, C = heat(14)
    system = (A, B, C, 0)
    default = hankelred.reduce(system, solver="low_rank")
    assert default.noise_floor == pytest.approx(default.certificate.value)
    assert default.order == default.numerical_rank < 40
    assert default.at(3).order == 3
    # an explicit order goes beyond the certificate
    assert hankelred.reduce(system, default.order + 5, solver="low_rank").order == default.order + 5
    by_tol = hankelred.reduce(system, rtol=1e-3, solver="low_rank")
    assert by_tol.error() <= by_tol.error_bound <= 1e-3 * by_tol.hankel_singular_values[0]
    # the distance of the two levels is known better than the singular values are
    fine = hankelred.reduce(system, rtol=1e-7, solver="low_rank")
    assert fine.error_bound <= 1e-7 * fine.hankel_singular_values[0]
    with pytest.warns(ReductionWarning, match="accuracy="):
        hankelred.reduce(system, rtol=1e-13, solver="low_rank")


def test_norms():
    A, B, C = heat(12, convection=10.0)
    for D in (0, np.ones((2, 2))):
        for kind in ("h2", "hinf", "hankel"):
            truth = hankelred.norm((A.toarray(), B, C, D), kind)
            assert hankelred.norm((A, B, C, D), kind, solver="low_rank") == pytest.approx(truth, rel=1e-6)
    step = sp.csc_array(sp.identity(A.shape[0]) + 5e-4 * A)
    for kind in ("h2", "hinf", "hankel"):
        truth = hankelred.norm((step.toarray(), B, C, 0), kind, dt=True)
        assert hankelred.norm((step, B, C, 0), kind, dt=True, solver="low_rank") == pytest.approx(
            truth, rel=1e-6
        )
    integrator = sp.csc_array(sp.block_diag([A, [[0.0]]]))
    driven = np.vstack([B, [[1.0, 1.0]]]), np.hstack([C, [[1.0], [0.0]]])
    assert hankelred.norm((integrator, *driven, 0), "hinf", solver="low_rank") == np.inf


@pytest.mark.parametrize("kind", ["controllability", "observability"])
def test_gramian_factors_solve_their_equations(kind):
    A, B, C = heat(12, convection=10.0)
    n = A.shape[0]
    E = sp.csc_array(sp.diags([np.ones(n), np.full(n - 1, 0.2)], [0, 1]))
    L = hankelred.gramian((A, B, C, 0, E), kind, factor=True, solver="low_rank", accuracy=1e-8)
    a, e, b = (A, E, B) if kind == "controllability" else (A.T, E.T, C.T)
    W = L @ L.T
    defect = a @ W @ e.T + e @ W @ a.T + b @ b.T
    assert L.shape[1] < n and np.linalg.norm(defect) <= 1e-6 * np.linalg.norm(b @ b.T)
    with pytest.raises(ModelError, match="factor=True"):
        hankelred.gramian((A, B, C, 0, E), kind, solver="low_rank")


def test_large_models_take_this_way_by_themselves():
    # before, more than 5000 states were refused
    n = 5200
    off = np.ones(n - 1)
    A = sp.csc_array(sp.diags([off, -2.1 * np.ones(n), off], [-1, 0, 1]))
    B, C = np.zeros((n, 1)), np.zeros((1, n))
    B[40], C[0, 45] = 1, 1
    reduction = hankelred.reduce((A, sp.csr_array(B), sp.csr_array(C), 0), rtol=1e-2)
    assert reduction.solver == "low_rank" and reduction.hankel_singular_values.size < 200
    values = hankelred.hankel_singular_values((A, B, C, 0))
    # far from the ports the chain is not seen: that of 200 states has the same values
    short = (A[:200][:, :200].toarray(), B[:200], C[:, :200], 0)
    np.testing.assert_allclose(values[:8], hankelred.hankel_singular_values(short)[:8], rtol=1e-6)
    for kind in ("h2", "hinf", "hankel"):
        assert hankelred.norm((A, B, C, 0), kind) == pytest.approx(hankelred.norm(short, kind), rel=1e-6)
    with pytest.raises(ModelError, match=r"5000 states; .*larger ones"):
        hankelred.balanced_realization((A, B, C, 0))


def test_pictures_of_large_models():
    from matplotlib import pyplot

    A, B, C = heat(12)
    reduction = hankelred.reduce((A, B, C, 0), 5, solver="low_rank")
    labels = [line.get_label() for line in hankelred.plot_reduction(reduction).get_lines()]
    assert "reduced (5 states)" in labels
    assert hankelred.plot_hankel_singular_values(reduction).get_yscale() == "log"
    pyplot.close("all")


def test_pickle():
    import pickle

    A, B, C = heat(10)
    reduction = hankelred.reduce((A, B, C, 0), 5, solver="low_rank")
    again = pickle.loads(pickle.dumps(reduction))
    assert again.error_bound == reduction.error_bound and again.at(3).order == 3


def test_sparse_second_order_model_falls_back_to_the_dense_way():
    parts = chain(300, 1e-3, 1e-3)
    system = hankelred.SecondOrderModel(*parts)
    with pytest.raises(ConvergenceError, match="low rank"):
        hankelred.reduce(system, 10, solver="low_rank")
    reduction = hankelred.reduce(system, 10)
    assert reduction.hankel_singular_values.size == 600
    assert reduction.solver != "low_rank" and reduction.certificate.kind == "exact"
    assert hankelred.reduce(hankelred.SecondOrderModel(*beam(150)), 10).solver == "low_rank"


def test_rail_as_published():
    A, B, C, E = rail()
    reduction = hankelred.reduce((A, B, C, 0, E), 20, solver="low_rank")
    assert reduction.error() == pytest.approx(1.22544215e-3, rel=1e-7)
    assert reduction.error_uncertainty <= 1e-3 * reduction.error_bound
    assert reduction.error() <= reduction.error_bound
