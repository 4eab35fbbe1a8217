"""The low-rank solver for large sparse models: values, certificates, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg as sla
import scipy.sparse as sp
import scipy.sparse.linalg as spl
from helpers.sparse_models import beam, chain, heat, modal_values, rail, right_to

import hankelred
from hankelred import ConvergenceError, ModelError, OrderError, hankel_singular_values
from hankelred.gramians.dual_adi import DualADI
from hankelred.gramians.low_rank import low_rank_factors
from hankelred.gramians.residual_bounds import SymmetricBound
from hankelred.models.pencil import FactoredSolver, SparsePencil
from hankelred.models.sparse_model import any_model

pytestmark = pytest.mark.slow


def factored(system, accuracy=None, **options):
    dt = options.pop("dt", 0)
    return low_rank_factors(any_model(system, dt, "low_rank"), accuracy, **options)


def checked(system, truth, accuracy=None, **options):
    """Factor, compare with the true values, and return values, factors, and the certificate over sigma_1."""
    factors = factored(system, accuracy, **options)
    values, certificate = factors.values * factors.problem.gain, factors.certificate * factors.problem.gain
    known = np.zeros(truth.size)
    known[: values.size] = values[: truth.size]
    error = np.abs(known - truth).max()
    assert error <= certificate
    assert certificate <= (accuracy or 1e-4) * truth[0]
    return values, factors, certificate / truth[0]


def dense(A, B, C, E=None, dt=0):
    system = (A.toarray(), B, C, 0) if E is None else (A.toarray(), B, C, 0, E.toarray())
    return hankel_singular_values(system, dt=dt)


def symmetric_values(A, B, C, E=None):
    """Singular values of a symmetric pencil from its eigenvectors, in closed form."""
    poles, modes = sla.eigh(A.toarray(), None if E is None else E.toarray())
    return hankel_singular_values(hankelred.ModalSystem(poles, modes.T @ B, C @ modes, dt=0))


def test_symmetric_pencil_is_certified_rigorously():
    A, B, C = heat(24)
    truth = symmetric_values(A, B, C)
    values, factors, _ = checked((A, B, C, 0), truth)
    assert factors.kind == "rigorous"
    assert right_to(1e-2, values, truth) >= 25
    # four more proved digits at a price
    values, precise, share = checked((A, B, C, 0), truth, 1e-8)
    assert precise.kind == "rigorous" and share <= 1e-8
    assert precise.factorizations <= 1.6 * factors.factorizations


def test_mass_matrix():
    A, B, C = heat(15)
    n = A.shape[0]
    E = sp.csc_array(
        sp.diags([np.full(n - 1, 1 / 6), np.linspace(0.5, 2, n), np.full(n - 1, 1 / 6)], [-1, 0, 1])
    )
    truth = symmetric_values(A, B, C, E)
    _, factors, _ = checked((A, B, C, 0, E), truth)
    assert factors.kind == "rigorous"


def test_mass_matrix_of_linear_elements_is_proved_definite():
    # its rows are dominant nowhere strictly, so that only the inertia proves it
    n = 300
    E = sp.csc_array(sp.diags([np.ones(n - 1), np.r_[1, 2 * np.ones(n - 2), 1], np.ones(n - 1)], [-1, 0, 1]))
    A = sp.csc_array(sp.diags([np.ones(n - 1), -2.01 * np.ones(n), np.ones(n - 1)], [-1, 0, 1]))
    B, C = np.eye(n)[:, [0, 40]], np.eye(n)[[200]]
    # singular: the alternating vector is in its null space
    with pytest.raises(ModelError, match="least singular value"):
        factored((A, B, C, 0, E))
    E = E + sp.csc_array(sp.diags([np.full(n, 0.5)], [0]))
    _, factors, _ = checked((A, B, C, 0, E), symmetric_values(A, B, C, E))
    assert factors.kind == "rigorous"


def test_dissipative_pencil_is_certified_rigorously():
    A, B, C = heat(20, convection=20.0)
    truth = dense(A, B, C)
    _, factors, _ = checked((A, B, C, 0), truth)
    assert factors.kind == "rigorous"
    checked((A, B, C, 0), truth, 1e-8)


def test_estimate_where_nothing_is_proved():
    # E is not symmetric, so that there is no norm in which the decay could be proved
    A, B, C = heat(18, convection=5.0)
    n = A.shape[0]
    E = sp.csc_array(sp.diags([np.ones(n), np.full(n - 1, 0.2)], [0, 1]))
    _, factors, _ = checked((A, B, C, 0, E), dense(A, B, C, E))
    assert factors.kind == "estimate"


def test_complex_model():
    A, B, C = heat(14, convection=10.0)
    A = A + 1j * sp.csc_array(sp.diags([np.linspace(-300, 300, A.shape[0])], [0]))
    B, C = B * (1 + 0.5j), C * (1 - 2j)
    values, factors, _ = checked((A, B, C, 0), dense(A, B, C))
    assert np.iscomplexobj(factors.controllability) and values.size > 10


def test_discrete_model_keeps_its_sparsity():
    A, B, C = heat(14)
    step = sp.csc_array(sp.identity(A.shape[0]) + 1e-3 * A)
    truth = dense(step, B, C, dt=True)
    _, factors, _ = checked((step, B, C, 0), truth, dt=True)
    assert factors.kind == "rigorous"
    # an implicit step, and a matrix that is not symmetric
    A, B, C = heat(14, convection=15.0)
    E = sp.csc_array(sp.identity(A.shape[0]) - 2e-3 * A)
    step = sp.csc_array(sp.identity(A.shape[0]) + 2e-3 * A)
    checked((step, B, C, 0, E), dense(step, B, C, E, dt=0.1), dt=0.1)


def test_gains_of_any_size():
    A, B, C = heat(12)
    truth = symmetric_values(A, B, C)
    for size in (1e-60, 1e60):
        values = hankel_singular_values((A, size * B, C / size * 3, 0), solver="low_rank")
        np.testing.assert_allclose(values[:8], 3 * truth[:8], rtol=1e-6)


@pytest.mark.parametrize(
    "block",
    [[[0.0]], [[0.0, 1.0], [0.0, 0.0]], [[3.0]], [[0.5, 7.0], [-7.0, 0.5]], [[0.0, 7.0], [-7.0, 0.0]]],
    ids=["integrator", "two in a chain", "unstable", "unstable pair", "undamped pair"],
)
def test_unstable_poles_near_the_origin_are_taken_out(block):
    A, B, C = heat(16, convection=10.0)
    n, k = A.shape[0], len(block)
    rng = np.random.default_rng(k)
    into = np.zeros((n, k))
    into[rng.integers(0, n, 5)] = rng.standard_normal((5, k))
    whole = sp.csc_array(
        sp.block_array([[A, sp.csc_array(10 * into)], [None, sp.csc_array(np.array(block))]])
    )
    B_all, C_all = np.vstack([B, rng.standard_normal((k, 2))]), np.hstack([C, rng.standard_normal((2, k))])
    # the stable part by a Sylvester equation
    X = sla.solve_sylvester(A.toarray(), -np.array(block), -10 * into)
    truth = dense(A, B - X @ B_all[n:], C)
    values = hankel_singular_values((whole, B_all, C_all, 0), solver="low_rank")
    assert np.all(np.isinf(values[:k])) and np.isfinite(values[k])
    np.testing.assert_allclose(values[k : k + 8], truth[:8], rtol=1e-5)
    reduction = hankelred.reduce((whole, B_all, C_all, 0), k + 10, solver="low_rank")
    assert reduction.unstable_order == k
    # the response, kept part included, off the poles
    for s in (0.3 + 2j, 40j):
        full = C_all @ np.linalg.solve(s * np.eye(n + k) - whole.toarray(), B_all.astype(complex))
        A_r, B_r, C_r, _ = reduction.system
        small = C_r @ np.linalg.solve(s * np.eye(k + 10) - A_r, B_r)
        assert np.abs(full - small).max() <= reduction.error_bound + 1e-8 * np.abs(full).max()


def test_unstable_model_far_from_the_origin_is_refused():
    A, B, C = heat(16, convection=10.0)
    shifted = A + 600 * sp.csc_array(sp.identity(A.shape[0]))
    with pytest.raises(ConvergenceError, match="unstable"):
        hankel_singular_values((shifted, B, C, 0), solver="low_rank")
    with pytest.raises(ConvergenceError, match="unstable"):
        hankel_singular_values((-A, B, C, 0), solver="low_rank")


def test_model_without_input_or_output():
    A, B, C = heat(10)
    assert hankel_singular_values((A, 0 * B, C, 0), solver="low_rank").size == 0
    assert hankelred.reduce((A, B, 0 * C, [[1, 2], [3, 4]]), solver="low_rank").order == 0
    assert hankelred.norm((A, 0 * B, C, 0), "hinf", solver="low_rank") == 0


def test_complex_matrices_without_imaginary_parts():
    # numpy's warning about discarded imaginary parts reached the user
    A, B, C = heat(12, convection=10.0)
    values = hankel_singular_values((A.astype(complex), B + 0j, C, 0), solver="low_rank")
    np.testing.assert_allclose(values[:10], dense(A, B, C)[:10], rtol=1e-8)


def test_all_poles_at_the_origin():
    """The error was one of numpy, about an empty list of arrays."""
    _, B, C = heat(12)
    with pytest.raises(ConvergenceError, match="unstable poles"):
        hankel_singular_values((sp.csc_array((144, 144)), B, C, 0), solver="low_rank")


def test_another_factorization():
    A, B, C = heat(12, convection=10.0)
    made = []

    class Dense:
        def __init__(self, M):
            self.M = M.toarray()

        def solve(self, b, trans):
            return np.linalg.solve(self.M.T if trans == "T" else self.M, b)

    def factorize(M):
        made.append(M.shape)
        return Dense(M)

    values = hankel_singular_values((A, B, C, 0), solver="low_rank", factorize=factorize)
    assert len(made) > 10
    np.testing.assert_allclose(values[:10], dense(A, B, C)[:10], rtol=1e-6)
    with pytest.raises(ModelError, match="factorize"):
        hankel_singular_values((A, B, C, 0), solver="low_rank", factorize=3)


def test_a_wrong_factorization_is_noticed():
    A, B, C = heat(8, convection=10.0)

    class Wrong:
        def __init__(self, M):
            self.M = M.toarray()

        def solve(self, b, trans):
            return np.linalg.solve(self.M, b)  # whatever trans says

    with pytest.raises(ConvergenceError, match="factorization"):
        hankel_singular_values((A, B, C, 0), solver="low_rank", factorize=Wrong)


def test_pivots_from_the_diagonal_are_checked():
    # a zero diagonal: elimination without exchanges cannot solve these
    n = 60
    A = sp.csc_array(sp.kron(sp.diags([np.linspace(1, 9, n // 2)], [0]), np.array([[0, 1.0], [-1.0, -3.0]])))
    rng = np.random.default_rng(0)
    B, C = rng.standard_normal((n, 1)), rng.standard_normal((1, n))
    values = hankel_singular_values((A, B, C, 0), solver="low_rank")
    np.testing.assert_allclose(values[:20], dense(A, B, C)[:20], rtol=1e-4)


@pytest.mark.parametrize("stiffness_damping", [1e-3, 1e-5])
def test_lightly_damped_chain_is_right_or_refused(stiffness_damping):
    # pyMOR 2026.1 answers with a line in its log: its sigma_5 is 42 % off
    parts = chain(300, 0.0, stiffness_damping)
    system = hankelred.SecondOrderModel(*parts)
    truth = modal_values(*parts)
    values, factors, _ = checked(system, truth)
    assert factors.kind == "estimate" and right_to(1e-2, values, truth) >= 50


def test_gramians_without_low_rank_are_refused_or_go_the_dense_way():
    # all 600 modes matter alike
    parts = chain(400, 1e-3, 1e-4)
    system = hankelred.SecondOrderModel(*parts)
    with pytest.raises(ConvergenceError, match=r"factorizations and \d+ \+ \d+ columns .* residual"):
        hankel_singular_values(system, solver="low_rank", accuracy=1e-6)


def test_beam_without_the_companion_form():
    parts = beam(100)
    values, _, _ = checked(hankelred.SecondOrderModel(*parts), modal_values(*parts))
    assert right_to(1e-4, values, modal_values(*parts)) >= 45


def test_ill_conditioned_beam_is_not_answered_in_silence():
    """With 1500 elements the condition of K leaves no correct digit: an error, no values."""
    system = hankelred.SecondOrderModel(*beam(1500))
    with pytest.raises(ConvergenceError, match="accuracy of the singular values"):
        hankel_singular_values(system, solver="low_rank")


def test_rail():
    A, B, C, E = rail()
    truth = symmetric_values(A, B, C, E)
    values, factors, _ = checked((A, B, C, 0, E), truth)
    assert factors.kind == "rigorous"
    assert right_to(1e-2, values, truth) >= 150
    _, precise, share = checked((A, B, C, 0, E), truth, 1e-8)
    assert share <= 1e-8 and precise.factorizations <= 1.6 * factors.factorizations


def test_bad_matrices_are_refused():
    A, B, C = heat(6)
    n = A.shape[0]
    bad = A.copy()
    bad.data = bad.data.copy()
    bad.data[7] = np.nan
    row, column = bad.indices[7], np.searchsorted(bad.indptr, 7, side="right") - 1

    def refused(system, says):
        for function in (hankel_singular_values, hankelred.reduce, hankelred.norm):
            with pytest.raises(ModelError, match=says):
                function(system, solver="low_rank")

    refused((bad, B, C, 0), rf"A\[{row}, {column}\] is nan")
    refused((A[:, :-1], B, C, 0), "square")
    refused((A, B[:-1], C, 0), rf"B must have {n} rows")
    refused((A, B, C[:, :-1], 0), rf"C must have {n} columns")
    refused((A, B, C, np.ones((3, 1))), "D must have shape")
    refused((A, B, C, 0, A[:-1, :-1]), "E must have shape")
    coupled = sp.eye_array(n, format="lil")
    coupled[0, 1] = coupled[1, 0] = 1.0
    refused((A, B, C, 0, coupled.tocsc()), "E is singular")
    refused((1e200 * A, B, C, 0), "choose other units")
    with pytest.raises(ModelError, match="solver"):
        hankel_singular_values((A, B, C, 0), solver="sparse")
    with pytest.raises(OrderError, match="accuracy"):
        hankel_singular_values((A, B, C, 0), solver="low_rank", accuracy=2)


def test_many_inputs():
    A, _, C = heat(16)
    n = A.shape[0]
    B = np.eye(n)[:, np.random.default_rng(0).permutation(n)[:90]]
    _, factors, _ = checked((A, B, C, 0), symmetric_values(A, B, C))
    # 90 columns a step, of which few are new
    assert factors.controllability.shape[1] < 1000 < 90 * (factors.factorizations - 2)


def two_parts(kind):
    """Two parts of which the second is coupled to the first at most in one direction."""
    n = 120
    if kind == "diagonal":
        return sp.csc_array(sp.diags_array(-np.linspace(1, 2, 2 * n)))
    below = 1.0 if kind != "convection" else 0.5
    part = sp.diags_array([below * np.ones(n - 1), -3 * np.ones(n), np.ones(n - 1)], offsets=[-1, 0, 1])
    coupling = 0.3 * sp.eye_array(n) if kind == "one way" else None
    return sp.csc_array(sp.block_array([[part, coupling], [None, 1.3 * part]]))


@pytest.mark.parametrize("ports", [1, 2])
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("kind", ["diagonal", "symmetric", "convection", "one way"])
def test_no_input_reaches_an_output(monkeypatch, kind, projected, ports):
    """Story: the certificate was divided by the largest singular value, and ZeroDivisionError escaped.

    Rounding of the projection was relative to that value too, so that other such models had singular values
    of 1e-17 with a rigorous certificate, and without the projection they did not converge.
    """
    if projected:
        monkeypatch.setattr("hankelred.gramians.low_rank.STATES_PER_PORT", 0)
    A = two_parts(kind)
    n = A.shape[0]
    B, C = np.zeros((n, ports)), np.zeros((ports, n))
    B[5], C[:, n // 2 + 9] = 1, 1
    for system in ((A, B, C, 0), (A, 0 * B, C, 0), (A, B, 0 * C, 0), (A, 1e90 * B, C, 0)):
        assert hankel_singular_values(system, solver="low_rank").size == 0
    assert hankel_singular_values((sp.csc_array(0.1 * A), B, C, 0), dt=1, solver="low_rank").size == 0
    # one of two outputs
    C = np.concatenate([C, np.zeros((1, n))])
    C[-1, 5] = 1
    values = hankel_singular_values((A, B, C, 0), solver="low_rank")
    truth = hankel_singular_values((A.toarray(), B, C, 0))
    assert values.size and np.abs(values[:4] - truth[: values.size][:4]).max() <= 1e-4 * truth[0]


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("calls", [0, 1])
def test_iteration_ends_when_no_shifts_are_left(monkeypatch, calls, projected):
    """Story: the number of steps was limited, but a batch without shifts takes none: an endless loop."""
    original = DualADI.next_shifts
    made = []

    def next_shifts(self):
        made.append(0)
        return original(self) if len(made) <= calls else []

    monkeypatch.setattr(DualADI, "next_shifts", next_shifts)
    if projected:
        monkeypatch.setattr("hankelred.gramians.low_rank.STATES_PER_PORT", 0)
    for convection in (0.0, 20.0):
        made.clear()
        A, B, C = heat(20, convection=convection)
        with pytest.raises(ConvergenceError, match="did not converge"):
            factored((A, B, C, 0), 1e-10)


class DamagedFactorization:
    """SuperLU, except that solutions after the first `correct` columns, counted over all calls, are wrong."""

    def __init__(self, M, correct):
        self.factors, self.correct, self.solved = spl.splu(sp.csc_matrix(M)), correct, 0

    def solve(self, b, trans):
        x = self.factors.solve(b, trans)
        x[:, max(0, self.correct - self.solved) :] *= 1.5
        self.solved += b.shape[1]
        return x


@pytest.mark.parametrize("correct", [0, 1, 5, 15])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_column_of_a_solution_is_checked(correct, transposed):
    """Story: only the residual of the first column was checked, and the rest went into rigorous bounds.

    The linear systems of iterations for eigenvalues were checked in the first of all solutions only.
    """
    A, _, _ = heat(6, convection=3.0)
    pencil = SparsePencil(A, sp.eye_array(36))
    b = np.random.default_rng(0).standard_normal((36, 16))

    def solver():
        factors = DamagedFactorization(pencil.A_matrix, correct)
        return FactoredSolver(pencil.A_matrix, factors, lambda: factors)

    with pytest.raises(ConvergenceError, match="relative residual"):
        solver()(b, transposed=transposed)
    operator = solver().operator()
    solved = 0
    with pytest.raises(ConvergenceError, match="relative residual"):
        for each in b.T:
            operator(each)
            solved += 1
    assert solved == correct


def test_right_solutions_are_accepted():
    A, _, _ = heat(6, convection=3.0)
    b = np.random.default_rng(0).standard_normal((36, 16))
    b[:, 3] = 0
    pencil = SparsePencil(A, sp.eye_array(36))
    solver = pencil.shifted(0.0)
    for transposed in (False, True):
        x = pencil.back(solver(pencil.into(b), transposed=transposed))
        expected = np.linalg.solve(A.toarray().T if transposed else A.toarray(), b)
        np.testing.assert_allclose(x, expected, atol=1e-12 * np.abs(expected).max())
    single = pencil.back(solver.operator()(pencil.into(b[:, 5])))
    np.testing.assert_allclose(single, np.linalg.solve(A.toarray(), b[:, 5]), atol=1e-12)


def test_bounds_check_every_column():
    A, _, _ = heat(6)
    W = np.random.default_rng(0).standard_normal((36, 40))
    for correct in (40, 20):
        kept = []  # so that a second factorization is damaged too

        def factorize(M, correct=correct, kept=kept):
            kept[:] = kept or [DamagedFactorization(M, correct)]
            return kept[0]

        pencil = SparsePencil(A, sp.eye_array(36), factorize)
        bound = SymmetricBound(pencil, discrete=False)
        if correct == 40:
            expected, V = W.T @ np.linalg.solve(-A.toarray(), W), pencil.into(W)
            np.testing.assert_allclose(bound.gram(V, V), expected, atol=1e-9 * np.abs(expected).max())
        else:
            with pytest.raises(ConvergenceError, match="relative residual"):
                bound.gram(W, W)


def test_inputs_near_the_smallest_number():
    """2.0**exponent overflowed for B of 1e-320 in the low-rank solver and for modal systems."""
    n = 60
    A = sp.diags_array([1.0, -3.0, 1.0], offsets=[-1, 0, 1], shape=(n, n)).tocsc()
    B, C = np.zeros((n, 1)), np.ones((1, n))
    B[3] = 1e-320
    low_rank = hankelred.hankel_singular_values((A, B, C, 0), solver="low_rank")
    dense = hankelred.hankel_singular_values((A.toarray(), B, C, 0))
    assert (
        low_rank[0] == pytest.approx(dense[0], rel=0.05) and dense[0] > 0
    )  # denormal numbers have few digits
    modal = hankelred.ModalSystem([-1.0, -2.0], 1e-320 * np.ones((2, 1)), np.ones((1, 2)))
    plain = hankelred.ModalSystem([-1.0, -2.0], np.ones((2, 1)), np.ones((1, 2)))
    values = hankelred.hankel_singular_values(modal)
    assert values[0] == pytest.approx(1e-320 * hankelred.hankel_singular_values(plain)[0], rel=0.01)
