"""Each Gramian solver against independent ones, and the rule that chooses among them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg as sla
import scipy.sparse
from helpers.reference import damped_chain, exact_gramians, exact_hsv, random_system, slow_pole
from helpers.sparse_models import heat

import hankelred
from hankelred._util.arrays import schur_poles
from hankelred._util.schur import is_block_diagonal, is_block_triangular, order_of_separate_modes, schur_form
from hankelred.gramians import factorize, hammarling, smith
from hankelred.gramians.cauchy import cauchy_factor
from hankelred.gramians.hammarling import hammarling_factors
from hankelred.gramians.smith import cayley, compress, smith_factors
from hankelred.models.scaling import equilibrate


def solved_by_scipy(A, B, *, discrete):
    if discrete:
        return sla.solve_discrete_lyapunov(A, B @ B.conj().T)
    return sla.solve_continuous_lyapunov(A, -B @ B.conj().T)


def assert_gramians(A, B, C, Lc, Lo, *, discrete, rtol=1e-9):
    P = solved_by_scipy(A, B, discrete=discrete)
    Q = solved_by_scipy(A.conj().T, C.conj().T, discrete=discrete)
    np.testing.assert_allclose(Lc @ Lc.conj().T, P, rtol=0, atol=rtol * np.abs(P).max())
    np.testing.assert_allclose(Lo @ Lo.conj().T, Q, rtol=0, atol=rtol * np.abs(Q).max())


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("n, m, p", [(1, 1, 1), (2, 3, 1), (7, 1, 4), (40, 2, 2), (15, 20, 30)])
def test_smith_doubling(n, m, p, discrete, complex_, monkeypatch):
    monkeypatch.setattr(smith, "MAX_DOUBLINGS_CONTINUOUS", smith.MAX_DOUBLINGS)
    A, B, C, _ = random_system(n, n, m, p, discrete=discrete, complex_=complex_)
    result = smith_factors(A, B, C, discrete=discrete)
    assert result.failure == ""
    assert_gramians(A, B, C, result.controllability, result.observability, discrete=discrete)


@pytest.mark.parametrize("n, m, p", [(1, 1, 1), (2, 3, 1), (7, 1, 4), (40, 2, 2), (15, 20, 30)])
def test_hammarling_real_continuous(n, m, p):
    A, B, C, _ = random_system(n, n, m, p)
    T, Z = sla.schur(A)
    B, C = Z.T @ B, C @ Z
    Lc, Lo = hammarling_factors(T, B, C, discrete=False)
    assert not np.iscomplexobj(Lc)
    assert_gramians(T, B, C, Lc, Lo, discrete=False)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("n, m, p", [(1, 1, 1), (2, 3, 1), (7, 1, 4), (40, 2, 2), (15, 20, 30)])
def test_hammarling_complex(n, m, p, discrete):
    A, B, C, _ = random_system(n, n, m, p, discrete=discrete, complex_=True)
    T, Z = sla.schur(A, output="complex")
    B, C = Z.conj().T @ B, C @ Z
    Lc, Lo = hammarling_factors(T, B, C, discrete=discrete)
    assert_gramians(T, B, C, Lc, Lo, discrete=discrete)


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("kind", ["real", "complex", "discrete"])
def test_hammarling_in_tiles_of_any_size(tile, kind, monkeypatch):
    # 2 x 2 blocks must not be cut by the edge of a tile
    monkeypatch.setattr(hammarling, "TILE", tile)
    discrete = kind == "discrete"
    A, B, C, _ = random_system(5, 21, 2, 3, discrete=discrete)
    T, Z = sla.schur(A, output="real" if kind == "real" else "complex")
    B, C = Z.conj().T @ B, C @ Z
    Lc, Lo = hammarling_factors(T, B, C, discrete=discrete)
    assert_gramians(T, B, C, Lc, Lo, discrete=discrete)


@pytest.mark.parametrize("discrete", [False, True])
def test_hammarling_with_nothing_to_reach(discrete):
    A, B, C, _ = random_system(1, 6, 2, 2, discrete=discrete)
    T, Z = sla.schur(A, output="complex")
    Lc, Lo = hammarling_factors(T, 0 * (Z.conj().T @ B), C @ Z, discrete=discrete)
    assert np.all(Lc == 0) and np.all(np.isfinite(Lo)) and np.any(Lo != 0)


def test_hammarling_pair_driven_along_one_direction():
    # B of a lightly damped pair is real, of rank one: the closed form of its root must not cancel
    for damping in (1e-1, 1e-6, 1e-10):
        T = np.array([[-damping, 3.0], [-0.5, -damping]])
        for B in (np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]]), np.array([[1.0, 2.0], [2.0, 4.0]])):
            Lc, _ = hammarling_factors(T, B, np.ones((1, 2)), discrete=False)
            P, _ = exact_gramians(T, B, np.ones((1, 2)))
            np.testing.assert_allclose(Lc @ Lc.T, P, rtol=1e-13, atol=1e-15 * P.max())


def test_hammarling_pair_of_nearly_equal_poles_and_nearly_parallel_rows():
    """Heat on a square plate with an integrator was refused: "the Gramians could not be computed".

    Poles equal up to rounding become pairs of T, whose rows of B are nearly parallel after other poles have
    been removed. The direction of M was then a difference of equal numbers.
    """
    rng = np.random.default_rng(0)
    for trial in range(3000):
        a, exponents = -(10.0 ** rng.uniform(-6, 6)), rng.uniform(-16, 4, size=2)
        f, g = np.array([1, -1]) * rng.choice([-1, 1]) * 10.0**exponents * abs(a)
        b = rng.standard_normal((2, 1 + trial % 3))
        b[1] = b[0] * rng.standard_normal() + 10.0 ** rng.uniform(-20, 0) * b[1]
        b[trial % 2] *= 10.0 ** rng.uniform(-20, 0)
        T = np.array([[a, f], [g, a]])
        U, S, M = hammarling._factor_of_pair(T, b)
        P, size = U @ U.T, np.linalg.norm(T)
        for defect, scale in (
            (T @ P + P @ T.T + b @ b.T, size * np.linalg.norm(P)),
            (S + S.T + M @ M.T, np.linalg.norm(S)),
            (U @ S - T @ U, np.linalg.norm(U) * (size + np.linalg.norm(S))),
            (U @ M - b, np.linalg.norm(U) * np.linalg.norm(M)),
        ):
            assert np.linalg.norm(defect) <= 1e-14 * scale


@pytest.mark.parametrize("convection", [0.0, 10.0])
def test_repeated_poles_beside_an_integrator(convection):
    A, B, C = heat(15, convection=convection)
    driven = np.vstack([B, [[1.0, 1.0]]]), np.hstack([C, [[1.0], [0.0]]])
    values = hankelred.hankel_singular_values((scipy.sparse.block_diag([A, [[0.0]]]), *driven, 0))
    alone = hankelred.hankel_singular_values((A, B, C, 0))
    assert values[0] == np.inf
    np.testing.assert_allclose(values[1:20], alone[:19], rtol=1e-9, atol=1e-14 * alone[0])


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("m", [1, 3, 9])
def test_cauchy_closed_form(discrete, m):
    rng = np.random.default_rng(m)
    n = 6
    logs = -rng.uniform(0.01, 2, n) + 1j * rng.uniform(-3, 3, n)
    B = rng.standard_normal((n, m)) + 1j * rng.standard_normal((n, m))
    L = cauchy_factor(logs, B, discrete=discrete)
    poles = np.exp(logs) if discrete else logs
    other = poles[:, None] * poles.conj() if discrete else poles[:, None] + poles.conj()
    W = (B @ B.conj().T) / (1 - other if discrete else -other)
    np.testing.assert_allclose(L @ L.conj().T, W, rtol=1e-11, atol=1e-13)


def test_cauchy_with_poles_at_zero():
    # log 0 = -inf: a pole at zero is a delay, in discrete time only
    logs = np.array([-np.inf, -0.5, -np.inf + 0j])
    B = np.array([[1.0], [2.0], [0.5]])
    L = cauchy_factor(logs.astype(complex), B, discrete=True)
    poles = np.array([0, np.exp(-0.5), 0])
    W = (B @ B.T) / (1 - poles[:, None] * poles)
    np.testing.assert_allclose((L @ L.conj().T).real, W, rtol=1e-13, atol=1e-14)


# the rule ------------------------------------------------


def solver_of(system, **options):
    return hankelred.reduce(system, **options).solver


def test_doubling_is_the_first_choice():
    assert solver_of(random_system(0, 20, 2, 2, margin=0.1)) == "smith"
    assert solver_of(random_system(0, 10, 2, 2, discrete=True), dt=True) == "smith"


def test_modal_systems_take_the_closed_form():
    assert solver_of(hankelred.ModalSystem([-1.0, -2.0], np.ones((2, 1)), np.ones((1, 2)), dt=0)) == "cauchy"


@pytest.mark.parametrize("discrete", [False, True])
def test_poles_near_the_boundary_go_to_hammarling(discrete):
    assert solver_of(random_system(0, 20, 1, 1, discrete=discrete, margin=1e-9), dt=discrete) == "hammarling"
    assert solver_of(random_system(0, 20, 1, 1, discrete=discrete, margin=1e-1), dt=discrete) == "smith"


def test_doublings_are_predicted_before_they_are_done(monkeypatch):
    # Story: up to 16 squarings were done for lightly damped models before the method was given up, which took
    # longer than the Schur form.
    n = 80
    lightly_damped = np.kron(np.diag(np.geomspace(1, 50, n // 2)), [[-0.005, 1.0], [-1.0, -0.005]])
    # stable poles of which the trace tells nothing: one slow among fast ones
    one_slow = -np.diag(np.append(np.linspace(1, 2, n - 1), 1e-5)) + 1e-3 * np.diag(np.ones(n - 1), 1)
    squarings = []
    monkeypatch.setattr(smith, "compress", lambda L, *_: squarings.append(L.shape) or L)
    for A in (lightly_damped, one_slow):
        result = smith_factors(A, np.ones((n, 1)), np.ones((1, n)), discrete=False)
        assert result.controllability is None
        assert "boundary" in result.failure
    assert not squarings
    for A in (lightly_damped, one_slow):
        assert solver_of((A, np.ones((n, 1)), np.ones((1, n)), 0)) == "hammarling"


def test_trace_bounds_the_doublings():
    # the bound must not exceed what the poles need
    for seed in range(20):
        A, B, C, _ = random_system(seed, 12, 1, 1, margin=10.0 ** -(seed % 4))
        shift = smith._shift(A)
        poles = np.linalg.eigvals(cayley(A, B, C, shift)[0])
        needed = smith.doublings_needed(float(np.abs(poles).max()))
        assert smith._least_doublings(A, shift) <= needed + 1e-6


@pytest.mark.parametrize("complex_", [False, True])
def test_hermitian_with_rates_far_apart_takes_the_closed_form(complex_):
    n = 30
    A, B, C = (M.astype(complex if complex_ else float) for M in diffusion(n))
    if complex_:
        turn = np.exp(1j * np.arange(n))
        A, B, C = turn[:, None] * A / turn, turn[:, None] * B, C / turn
        A = (A + A.conj().T) / 2
    rates = -np.linalg.eigvalsh(A)
    assert rates.max() / rates.min() < factorize.CLOSED_FORM_CONDITION
    assert solver_of((A, B, C, 0)) == "smith"
    A[-1, -1] *= 1e4
    assert solver_of((A, B, C, 0)) == "cauchy"
    with_schur = (A[::-1, ::-1] * (1 + np.triu(np.full((n, n), 1e-14), 1)))[::-1, ::-1]
    reference = hankelred.hankel_singular_values((with_schur, B, C, 0), stability_tol=2e-9)
    values = hankelred.hankel_singular_values((A, B, C, 0))
    large = reference > 1e-6 * reference[0]
    np.testing.assert_allclose(values[large], reference[large], rtol=1e-6)
    # an unstable pole, or one with no sign, is left to the Schur method
    A[0, 0] *= -1
    assert solver_of((A, B, C, 0)) == "hammarling"


def diffusion(n):
    A = -2 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    B, C = np.zeros((n, 1)), np.zeros((1, n))
    B[0, 0] = C[0, n // 2] = 1
    return A, B, C


@pytest.mark.parametrize("n", [1, 2, 9, 64, 65, 130])
@pytest.mark.parametrize("m", [1, 2])
def test_one_equation_of_a_tile_agrees_with_closed_forms_of_its_poles(n, m):
    A, B, C, _ = random_system(n, n, m, m)
    T, Z = sla.schur(A, output="real")
    b = Z.T @ B
    by_poles = hammarling.hammarling(T, b, discrete=False)
    by_equation = hammarling_factors(T, b, C @ Z, discrete=False)[0]
    W = by_poles @ by_poles.T
    np.testing.assert_allclose(by_equation @ by_equation.T, W, rtol=0, atol=1e-12 * np.abs(W).max())


def test_lightly_damped_pairs_keep_their_closed_form():
    # one equation for the tile would lose the digits of the ratio of damping and frequency
    assert hammarling._has_light_damping(np.array([-1e-6 + 1j, -1e-6 - 1j, -1.0]))
    assert not hammarling._has_light_damping(np.array([-1e-3 + 1j, -1e-3 - 1j, -1.0]))
    for damping in 10.0 ** -np.arange(1, 12):
        T = np.array([[-damping, 3.0], [-0.5, -damping]])
        Lc, _ = hammarling_factors(T, np.array([[1.0], [0.5]]), np.ones((1, 2)), discrete=False)
        P, _ = exact_gramians(T, np.array([[1.0], [0.5]]), np.ones((1, 2)))
        np.testing.assert_allclose(Lc @ Lc.T, P, rtol=0, atol=1e-11 * P.max())


def test_number_of_doublings_is_the_edge(monkeypatch):
    # a pole at 1 - 2^-8 needs about 13 squarings before its power is below rounding
    A = np.diag([1 - 2.0**-8, 0.5])
    system = A, np.ones((2, 1)), np.ones((1, 2)), 0
    needed = next(k for k in range(40) if _solver_with(monkeypatch, system, "MAX_DOUBLINGS", k) == "smith")
    assert 10 < needed <= smith.MAX_DOUBLINGS
    assert _solver_with(monkeypatch, system, "MAX_DOUBLINGS", needed - 1) == "hammarling"


def _solver_with(monkeypatch, system, name, value):
    with monkeypatch.context() as patch:
        patch.setattr(smith, name, value)
        return solver_of(system, dt=True)


def test_unstable_poles_go_to_hammarling():
    system = np.diag([0.5, -1.0]), np.ones((2, 1)), np.ones((1, 2)), 0
    assert solver_of(system) == "hammarling"


def test_explicit_tolerance_needs_the_poles():
    system = random_system(0, 20, 1, 1)
    edge = factorize.EXPLICIT_POLES_TOL
    assert solver_of(system, stability_tol=edge) == "smith"
    assert solver_of(system, stability_tol=np.nextafter(edge, 1)) == "hammarling"


def test_full_rank_factors_beyond_a_size(monkeypatch):
    # many lightly damped modes: every singular value counts, so the factors never become thin
    system = damped_chain(12, 0.3, m=6)
    n = 24
    monkeypatch.setattr(smith, "MAX_DOUBLINGS_CONTINUOUS", smith.MAX_DOUBLINGS)
    monkeypatch.setattr(factorize, "SCHUR_FIRST_SIZE", 0)
    monkeypatch.setattr(smith, "FULL_RANK_SIZE", n)
    assert solver_of(system) == "smith"
    monkeypatch.setattr(smith, "FULL_RANK_SIZE", n - 1)
    assert solver_of(system) == "hammarling"
    monkeypatch.setattr(smith, "FULL_RANK_SHARE", 10.0)
    monkeypatch.setattr(smith, "_extrapolated_rank", lambda A, B: 0.0)
    assert solver_of(system) == "smith"


def test_growing_factors_stop_the_doubling(monkeypatch):
    # the forecast may be wrong; the factors themselves decide then
    monkeypatch.setattr(smith, "MAX_DOUBLINGS_CONTINUOUS", smith.MAX_DOUBLINGS)
    monkeypatch.setattr(smith, "FULL_RANK_SIZE", 23)
    monkeypatch.setattr(smith, "_extrapolated_rank", lambda A, B: 0.0)
    A, B, C, _ = damped_chain(12, 0.3, m=6)
    result = smith_factors(A, B, C, discrete=False)
    assert result.controllability is None and "full rank" in result.failure


@pytest.mark.parametrize("n", [198, 199, 200, 201, 202, 240])
def test_both_sides_of_the_size_limit_agree(n):
    assert smith.FULL_RANK_SIZE == 200
    rng = np.random.default_rng(n)
    poles = -np.geomspace(0.1, 100, n)
    A = np.diag(poles) + np.diag(0.01 * rng.standard_normal(n - 1), 1)
    system = A, np.ones((n, 1)), np.ones((1, n)), 0
    with_smith = hankelred.hankel_singular_values(system)
    with_schur = hankelred.hankel_singular_values(system, stability_tol=2e-9)
    large = with_schur > 1e-10 * with_schur[0]
    np.testing.assert_allclose(with_smith[large], with_schur[large], rtol=1e-5, atol=1e-13 * with_schur[0])
    np.testing.assert_allclose(with_smith[:5], with_schur[:5], rtol=1e-11)


def test_bad_residual_of_doubling_gives_way(monkeypatch):
    system = random_system(0, 8, 1, 1)
    values = hankelred.hankel_singular_values(system)
    monkeypatch.setattr(factorize, "SMITH_RESIDUAL", -1.0)
    reduction = hankelred.reduce(system)
    assert reduction.solver == "hammarling"
    np.testing.assert_allclose(reduction.hankel_singular_values, values, rtol=1e-10)


def test_failure_raises_instead_of_returning(monkeypatch):
    monkeypatch.setattr(factorize, "SMITH_RESIDUAL", -1.0)
    monkeypatch.setattr(factorize, "ACCEPTED_RESIDUAL", -1.0)
    system = random_system(0, 8, 1, 1)
    for function in (hankelred.hankel_singular_values, hankelred.reduce, hankelred.gramian, hankelred.norm):
        with pytest.raises(hankelred.ConvergenceError, match="residual"):
            function(system)


def test_wrong_factors_are_noticed(monkeypatch):
    # plausible but wrong factors must be detected by their residual
    def wrong(T, B, C, *, discrete, poles=None):
        Lc, Lo = hammarling_factors(T, B, C, discrete=discrete)
        return 1.01 * Lc, Lo

    monkeypatch.setattr(factorize, "hammarling_factors", wrong)
    with pytest.raises(hankelred.ConvergenceError):
        hankelred.hankel_singular_values(random_system(0, 8, 2, 2), stability_tol=1e-6)


def test_cross_gramian_failure_raises(monkeypatch):
    from hankelred.gramians import cross_gramian

    monkeypatch.setattr(cross_gramian, "_solve_continuous", lambda T, source: 1.01 * np.ones_like(T))
    with pytest.raises(hankelred.ConvergenceError, match="cross"):
        hankelred.gramian(random_system(0, 5, 2, 2), "cross")


@pytest.mark.parametrize(
    "system, dt",
    [
        (random_system(0, 30, 2, 2), 0),
        (random_system(0, 30, 2, 2, discrete=True), True),
        (slow_pole(), 0),
        (damped_chain(20, 1e-8), 0),
    ],
)
def test_residual_is_reported(system, dt):
    assert 0 <= hankelred.reduce(system, dt=dt).residual < 1e-13


# Gramians as the user gets them ------------------------------------------------


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("margin", [0.1, 1e-8])
def test_gramians_solve_their_equations(discrete, complex_, margin):
    A, B, C, D = random_system(4, 9, 2, 2, discrete=discrete, complex_=complex_, margin=margin)
    dt = 0.1 if discrete else 0
    P = hankelred.gramian((A, B, C, D), dt=dt)
    Q = hankelred.gramian((A, B, C, D), "observability", dt=dt)
    X = hankelred.gramian((A, B, C, D), "cross", dt=dt)
    adj = A.conj().T
    if discrete:
        defects = A @ P @ adj - P + B @ B.conj().T, adj @ Q @ A - Q + C.conj().T @ C, A @ X @ A - X + B @ C
    else:
        defects = A @ P + P @ adj + B @ B.conj().T, adj @ Q + Q @ A + C.conj().T @ C, A @ X + X @ A + B @ C
    for defect, W in zip(defects, (P, Q, X), strict=True):
        assert np.abs(defect).max() <= 1e-12 * np.linalg.norm(A, 2) * np.linalg.norm(W, 2) + 1e-12
    np.testing.assert_allclose(P, P.conj().T, rtol=1e-12)
    assert np.linalg.eigvalsh(P).min() > -1e-12 * np.linalg.norm(P)


@pytest.mark.parametrize("dt", [0, True])
def test_factor_times_itself(dt):
    system = random_system(4, 9, 2, 3, discrete=bool(dt))
    for kind in ("controllability", "observability"):
        L = hankelred.gramian(system, kind, factor=True, dt=dt)
        assert L.shape[0] == 9
        np.testing.assert_allclose(L @ L.T, hankelred.gramian(system, kind, dt=dt), rtol=1e-12)


def test_gramian_is_in_the_users_states():
    # the solver works in scaled states; the Gramian it returns does not
    A, B, C, D = random_system(4, 5, 2, 2)
    unit = 10.0 ** np.array([-8, 8, 0, 5, -3])
    P, Q, X = (
        hankelred.gramian((A, B, C, D), kind) for kind in ("controllability", "observability", "cross")
    )
    scaled = A * unit[:, None] / unit, B * unit[:, None], C / unit, D
    np.testing.assert_allclose(hankelred.gramian(scaled), P * unit[:, None] * unit, rtol=1e-7)
    np.testing.assert_allclose(
        hankelred.gramian(scaled, "observability"), Q / unit[:, None] / unit, rtol=1e-7
    )
    np.testing.assert_allclose(hankelred.gramian(scaled, "cross"), X * unit[:, None] / unit, rtol=1e-7)


def test_squared_cross_gramian_of_a_symmetric_system_is_pq():
    A, B, C, D = random_system(4, 6, 1, 1)
    P, Q, X = (
        hankelred.gramian((A, B, C, D), kind) for kind in ("controllability", "observability", "cross")
    )
    np.testing.assert_allclose(X @ X, P @ Q, rtol=1e-8, atol=1e-10 * np.abs(P @ Q).max())


def test_gramian_refusals():
    system = random_system(4, 5, 2, 3)
    for kind in ("w", None, 3, "Controllability"):
        with pytest.raises(hankelred.ModelError, match="kind"):
            hankelred.gramian(system, kind)
    with pytest.raises(hankelred.ModelError, match="2 and 3"):
        hankelred.gramian(system, "cross")
    with pytest.raises(hankelred.ModelError, match="factor"):
        hankelred.gramian(random_system(4, 5, 2, 2), "cross", factor=True)
    for kind in ("controllability", "observability", "cross"):
        with pytest.raises(hankelred.UnstableError, match=r"2 unstable or marginal.*1"):
            hankelred.gramian((np.diag([1.0, 0.0, -1]), np.ones((3, 1)), np.ones((1, 3)), 0), kind)


# pieces ------------------------------------------------


def test_cayley_keeps_both_gramians():
    A, B, C, _ = random_system(9, 6, 2, 2)
    Ad, Bd, Cd = cayley(A, B, C)
    P = sla.solve_discrete_lyapunov(Ad, Bd @ Bd.T)
    np.testing.assert_allclose(P, solved_by_scipy(A, B, discrete=False), rtol=1e-9)
    Q = sla.solve_discrete_lyapunov(Ad.T, Cd.T @ Cd)
    np.testing.assert_allclose(Q, solved_by_scipy(A.T, C.T, discrete=False), rtol=1e-9)
    assert cayley(np.zeros((2, 2)), np.ones((2, 1)), np.ones((1, 2))) is None


@pytest.mark.parametrize("shape", [(5, 0), (5, 1), (5, 3), (5, 9), (0, 3)])
def test_compress_keeps_the_product(shape):
    L = np.random.default_rng(0).standard_normal(shape)
    out = compress(np.hstack([L, L]))
    assert out.shape[0] == shape[0]
    assert out.shape[1] <= max(2 * shape[1] if shape[0] == 0 else 0, min(shape[0], 2 * shape[1]))
    np.testing.assert_allclose(out @ out.T, 2 * L @ L.T, atol=1e-13)


def test_equilibrate_by_powers_of_two_and_independent_of_units():
    A, B, C, _ = random_system(2, 10, 2, 2)
    assert np.all(equilibrate(A, B, C) == 1)
    unit = 2.0 ** np.random.default_rng(0).integers(-30, 30, 10)
    scaled = A * unit[:, None] / unit, B * unit[:, None], C / unit
    scales = equilibrate(*scaled)
    assert np.all(np.log2(scales) == np.round(np.log2(scales)))
    assert np.ptp(np.log2(scales / unit)) <= 4
    assert np.all(equilibrate(np.diag([-1.0, -1e9]), np.zeros((2, 1)), np.zeros((1, 2))) == 1)


def test_mirrored_poles_are_an_error_of_ours():
    # Story: where LAPACK gave up inside Hammarling's method the user read "LinAlgError: ztrtrs failed", which
    # is not an error of this package and does not describe the model.
    T, ones, U = np.diag([2.0 + 0j, 0.5]), np.ones((2, 1), complex), np.zeros((2, 2), complex)
    first, second = slice(0, 1), slice(1, 2)
    with pytest.raises(hankelred.ConvergenceError, match="LAPACK's ztrtrs returned 1, as for two poles"):
        hammarling._discrete_tile(T, ones, U, first, second, U[:1, 1:], T[1:, 1:], ones[1:])


@pytest.mark.slow
def test_rows_of_denormal_numbers_do_not_overflow():
    """The heat equation beside an integrator: rows of B shrink below 1e-308, and their inverse was infinite.

    hankel_singular_values ended in scipy's "array must not contain infs or NaNs".
    """
    for row in ([1e-309, 0.0], [5e-324, 5e-324], [3e-310, 4e-310]):
        T, B = np.diag([-1.0, -2.0]), np.array([[1.0, 2.0], row])
        for t, discrete in ((T, False), (-T / 4, True)):
            U = hammarling.hammarling(t.astype(complex) if discrete else t, B, discrete=discrete)
            assert np.all(np.isfinite(U))
    n = 30
    line = np.diag(np.full(n, -2.0)) + np.eye(n, k=1) + np.eye(n, k=-1)
    A = (np.kron(line, np.eye(n)) + np.kron(np.eye(n), line)) * (n + 1) ** 2
    B, C = np.zeros((n * n, 1)), np.zeros((1, n * n))
    B[:40], C[0, -40:] = 1, 1
    whole = np.zeros((n * n + 1, n * n + 1))
    whole[:-1, :-1] = A
    system = (whole, np.vstack([B, [[1.0]]]), np.hstack([C, [[1.0]]]), 0)
    values = hankelred.hankel_singular_values(system)
    poles, modes = np.linalg.eigh(A)
    truth = hankelred.hankel_singular_values(hankelred.ModalSystem(poles, modes.T @ B, C @ modes, dt=0))
    assert np.isinf(values[0])
    np.testing.assert_allclose(values[1:7], truth[:6], rtol=1e-8)


@pytest.mark.parametrize(("n", "m"), [(10, 2), (10, 20), (30, 1), (48, 1), (61, 1), (100, 1)])
@pytest.mark.parametrize("complex_", [False, True])
def test_small_tiles_of_one_input_give_both_gramians(n, m, complex_):
    """Inputs are solved one by one with one form of S, and no tile may cut a pair of poles."""
    rng = np.random.default_rng(n + m)
    A = rng.standard_normal((n, n)) + 1j * complex_ * rng.standard_normal((n, n))
    A = A - (np.linalg.eigvals(A).real.max() + 0.1) * np.eye(n)
    B, C = rng.standard_normal((n, m)), rng.standard_normal((m, n))
    for kind, exact in (
        ("controllability", sla.solve_continuous_lyapunov(A, -B @ B.T)),
        ("observability", sla.solve_continuous_lyapunov(A.conj().T, -C.T @ C)),
    ):
        L = hankelred.gramian((A, B, C, 0), kind, factor=True)
        assert L.shape[1] <= n
        np.testing.assert_allclose(L @ L.conj().T, exact, atol=1e-9 * np.abs(exact).max())


@pytest.mark.parametrize("damping", [0.3, 1e-2, 1e-9])
@pytest.mark.parametrize("kind", ["pairs", "pairs and real poles", "real poles", "complex"])
def test_separate_modes_have_a_closed_form(kind, damping):
    """A block diagonal model took as many Sylvester equations as any other; its factors are products.

    The truth is the Gramian of each pair of poles, -b_i conj(b_k) / (pole_i + conj(pole_k)), in the states in
    which A is diagonal.
    """
    rng = np.random.default_rng(4)
    n_pairs, n_real = {"pairs": (6, 0), "pairs and real poles": (4, 3)}.get(kind, (0, 7))
    blocks = [np.array([[-(10.0**x)]]) for x in rng.uniform(-2, 2, n_real)]
    for frequency, ratio in 10.0 ** rng.uniform(-1, 1, (n_pairs, 2)):
        a = -damping * frequency
        blocks.append(np.array([[a, frequency * ratio], [-frequency / ratio, a]]))
    A = sla.block_diag(*(blocks[k] for k in rng.permutation(len(blocks))))
    if kind == "complex":
        A = A + 1j * np.diag(rng.standard_normal(len(A)))
    B, C = rng.standard_normal((len(A), 2)), rng.standard_normal((2, len(A)))
    factors = hammarling_factors(A, B, C, discrete=False)
    for M, inputs, L in zip((A, A.conj().T), (B, C.T), factors, strict=True):
        poles, V = np.linalg.eig(M)
        rows = np.linalg.solve(V, inputs)
        truth = V @ (-(rows @ rows.conj().T) / (poles[:, None] + poles.conj())) @ V.conj().T
        assert np.iscomplexobj(L) == (kind == "complex")
        np.testing.assert_allclose(L @ L.conj().T, truth, rtol=1e-7, atol=1e-13 * np.abs(truth).max())


def test_small_singular_values_of_separate_modes_are_accurate():
    """The closed form of separate modes against that of a diagonal model, in another order of states."""
    rates, rows = -np.geomspace(1e-3, 10, 14), np.random.default_rng(0).standard_normal((2, 14))
    frequencies = np.linspace(0.5, 6, 14)
    A = sla.block_diag(*([[a, w], [-w, a]] for a, w in zip(rates, frequencies, strict=True)))
    B, C = np.kron(rows[0], [1, 0])[:, None], np.kron(rows[1], [1, 1])[None]
    poles = np.ravel([rates + 1j * frequencies, rates - 1j * frequencies], order="F")
    # x1 + j x2 of the states of a pair has the pole a - j w
    modal = hankelred.ModalSystem(
        poles,
        np.repeat(rows[0], 2)[:, None] / 2,
        (np.repeat(rows[1], 2) * np.tile([1 + 1j, 1 - 1j], 14))[None],
        dt=0,
    )
    values, truth = (hankelred.hankel_singular_values(sys) for sys in ((A, B, C, 0), modal))
    assert truth[-1] < 1e-7 * truth[0]
    np.testing.assert_allclose(values, truth, rtol=1e-9)


def modes_with_positions_first(n_modes, damping, seed):
    """Return the A of separate modes as finite elements give it, all positions before all velocities."""
    w = 10.0 ** np.random.default_rng(seed).uniform(-1, 2, n_modes)
    zero, eye = np.zeros((n_modes, n_modes)), np.eye(n_modes)
    return np.block([[zero, eye], [-np.diag(w * w), -np.diag(2 * damping * w)]]), w


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overdamped", [False, True])
@pytest.mark.parametrize("n_modes", [1, 2, 29, 30, 31, 75])
def test_modes_in_any_order_have_a_block_diagonal_schur_form(n_modes, overdamped, seed):
    """Rounding coupled modes whose states are apart, so that those of a space station had no closed form."""
    rng = np.random.default_rng(seed)
    blocks = [rng.standard_normal((k, k)) for k in rng.integers(1, 3, n_modes)]
    if overdamped:
        blocks = [block if rng.uniform() < 0.7 else np.triu(block) for block in blocks]
    else:
        blocks = [0.3 * block + 3 * (np.eye(len(block), k=1) - np.eye(len(block), k=-1)) for block in blocks]
    A = sla.block_diag(*blocks)
    order = rng.permutation(len(A))
    A = A[np.ix_(order, order)]
    found = order_of_separate_modes(A)
    assert sorted(found) == list(range(len(A)))
    assert is_block_triangular(A[np.ix_(found, found)])
    T, Z = schur_form(A)
    np.testing.assert_allclose(Z @ T @ Z.T, A, atol=1e-14 * max(len(A), 10))
    np.testing.assert_allclose(Z.T @ Z, np.eye(len(A)), atol=1e-14)
    assert overdamped or is_block_diagonal(T)
    poles = np.linalg.eigvals(A)
    np.testing.assert_allclose(np.sort_complex(schur_poles(T)), np.sort_complex(poles), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("extra", [(0, 5), (5, 0)])
def test_a_third_state_in_a_mode_is_seen(extra):
    A, _ = modes_with_positions_first(10, 0.01, 0)
    assert order_of_separate_modes(A) is not None
    A[extra] = 1e-300
    assert order_of_separate_modes(A) is None


@pytest.mark.parametrize("damping", [0.01, 1e-6])
@pytest.mark.parametrize("kind", ["independent", "nearly parallel", "graded", "rank one"])
def test_several_inputs_of_separate_modes_against_multiprecision(kind, damping):
    """Above 256 states times inputs tiles took the place of the closed form, and more than slycot's time."""
    rng = np.random.default_rng(3)
    A, _ = modes_with_positions_first(12, damping, 1)
    B, C = rng.standard_normal((24, 20)), rng.standard_normal((20, 24))
    if kind == "nearly parallel":
        B = B[:, :1] * (1 + 1e-10 * B)
    elif kind == "graded":
        B = B * np.geomspace(1e-140, 1e140, 20)
    elif kind == "rank one":
        B = np.outer(B[:, 0], C[:, 0])
    assert hammarling.ONE_BY_ONE < B.size <= hammarling.ONE_BY_ONE_OF_MODES
    truth, _ = exact_gramians(A, B, C)
    scales = np.sqrt(np.diag(truth))
    W = hankelred.gramian((A, B, C, 0), "controllability")
    # poles have the rounding of A, relative to their damping
    tolerance = 1e-14 / damping
    np.testing.assert_allclose(W / scales / scales[:, None], truth / scales / scales[:, None], atol=tolerance)
    exact = exact_hsv(A, B, C)
    values = hankelred.hankel_singular_values((A, B, C, 0))
    np.testing.assert_allclose(values, exact, rtol=10 * tolerance, atol=1e-10 * exact[0])
    h2 = math.sqrt(np.trace(C @ truth @ C.T))
    assert hankelred.norm((A, B, C, 0)) == pytest.approx(h2, rel=tolerance)


@pytest.mark.parametrize(("n", "m"), [(1, 3), (2, 2), (3, 4), (40, 2), (70, 3)])
@pytest.mark.parametrize("kind", ["triangles with pairs", "full", "complex"])
def test_joined_factors_are_reduced_row_by_row(n, m, kind):
    """Rows of very different sizes keep their digits, as those of nearly uncontrollable states must."""
    rng = np.random.default_rng(n)
    parts = [rng.standard_normal((n, n)) for _ in range(m)]
    if kind == "triangles with pairs":
        pairs = np.zeros((n, n))
        pairs[np.arange(1, n, 2), np.arange(0, n - 1, 2)] = 1
        parts = [np.triu(part) + pairs * part for part in parts]
    elif kind == "complex":
        parts = [part * 1j for part in parts]
    L = 10.0 ** rng.uniform(-100, 100, n)[:, None] * np.hstack(parts)
    reduced = hammarling.reduce_joined(L)
    assert reduced.shape == (n, n)
    scale = 1 / np.linalg.norm(L, axis=1)[:, None]
    expected, found = ((scale * M) @ (scale * M).conj().T for M in (L, reduced))
    np.testing.assert_allclose(found, expected, atol=1e-14 * n)


def test_a_factor_of_no_states_has_nothing_to_reduce():
    assert hammarling.reduce_joined(np.zeros((0, 3))).shape == (0, 3)
    values = hankelred.hankel_singular_values((np.eye(2), np.ones((2, 3)), np.ones((1, 2)), 0))
    np.testing.assert_array_equal(values, [np.inf, np.inf])


def test_the_order_of_states_and_inputs_changes_nothing():
    """Relatives of a model of separate modes: permuted states, other inputs, tiles instead of closed form."""
    rng = np.random.default_rng(7)
    A, _ = modes_with_positions_first(40, 0.005, 2)
    B, C = rng.standard_normal((80, 12)), rng.standard_normal((2, 80))
    values = hankelred.hankel_singular_values((A, B, C, 0))
    order = rng.permutation(80)
    rotation = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    for other in (
        (A[np.ix_(order, order)], B[order], C[:, order], 0),
        (A, B[:, ::-1], C, 0),
        (A, B @ rotation, C, 0),
        (A, np.hstack([B, 0 * B]), C, 0),  # more inputs than the limit
    ):
        np.testing.assert_allclose(hankelred.hankel_singular_values(other), values, rtol=1e-10)
        assert hankelred.norm(other) == pytest.approx(hankelred.norm((A, B, C, 0)), rel=1e-11)
