"""Simulation of large sparse models by implicit steps, against exact dense simulation and closed forms."""

import mpmath
import numpy as np
import pytest
import scipy.signal
import scipy.sparse as sp
from helpers.sparse_models import chain, heat

import hankelred
from hankelred import ConvergenceError, HankelredError, ModelError
from hankelred.models.linear_model import DENSE_LIMIT
from hankelred.models.sparse_model import any_model
from hankelred.simulation.implicit import run_implicit, sparse_impulse_response
from hankelred.simulation.rational_exponential import chebyshev_fractions, pade_fractions

T = 30
U = np.random.default_rng(0).standard_normal((2, T))


def run(model, u, interval, dt=0, start=None, **options):
    """Simulate by implicit steps, however few states there are."""
    model = any_model(model, dt, "low_rank")
    start = np.zeros(model.n_states) if start is None else start
    result = run_implicit(model, start[:, None], np.atleast_2d(u), interval, **options)
    return result.outputs[:, :, 0].T, result.last[:, 0]


def close(actual, expected, share):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


def value(fractions, s):
    """The sum of fractions in 40 digits."""
    with mpmath.workdps(40):
        terms = [
            mpmath.mpc(complex(w)) / (mpmath.mpc(complex(z)) - s) for z, w in zip(*fractions, strict=True)
        ]
        return mpmath.fsum(terms)


def test_approximation_on_the_negative_axis():
    """The best possible error of degree 14 is 9.289^-14 = 2.8e-14 (Gonchar and Rakhmanov).

    It was 3.0e-14 to 4.6e-14, by the rounding of the processor: the weights had not been refined.
    """
    errors = [abs(value(chebyshev_fractions(), s) - mpmath.exp(s)) for s in (0, *(-np.logspace(-4, 8, 200)))]
    assert max(errors) < 3.2e-14
    assert len(chebyshev_fractions().poles) == 14


def test_approximation_of_pade():
    """Of degrees (4, 5): the series of the exponential up to order 9, no gain on the imaginary axis."""
    assert abs(value(pade_fractions(), mpmath.mpf("0.1")) - mpmath.exp(mpmath.mpf("0.1"))) < 1e-12
    first, second = (abs(value(pade_fractions(), s) - mpmath.exp(s)) for s in (mpmath.mpf(1), mpmath.mpf(2)))
    assert 2**9.5 < second / first < 2**12
    assert max(abs(value(pade_fractions(), 1j * y)) for y in np.logspace(-2, 4, 50)) <= 1 + 1e-13
    assert abs(value(pade_fractions(), mpmath.mpf(-(10**9)))) < 1e-7


@pytest.mark.parametrize("hold", ["zoh", "foh"])
@pytest.mark.parametrize(("convection", "share"), [(0.0, 2e-11), (5.0, 1e-6)])
@pytest.mark.parametrize("step", [1e-4, 0.01, 3.0])
def test_heat_equation(hold, convection, share, step):
    """Steps far below and far above the time constants; with convection A is not symmetric."""
    A, B, C = heat(9, convection=convection)
    expected, last, states = hankelred.simulate(
        (A.toarray(), B, C, 0), U, step=step, hold=hold, return_state=True, return_states=True
    )
    y, x = run((A, B, C, 0), U, step, first_order_hold=hold == "foh")
    terms = np.abs(C).sum(axis=1) * np.abs(states).max()  # in which the short runs cancel
    np.testing.assert_array_less(np.abs(y - expected).max(axis=1), share * terms)
    close(x, last, 10 * share)


def test_complex_model_with_a_real_mass():
    """The factors of a real E beside a complex A took no complex vectors: a TypeError of SuperLU."""
    rng = np.random.default_rng(4)
    A, B, C = heat(5, convection=2.0)
    A = sp.csc_array(A + 0.3j * sp.diags_array(rng.uniform(0.5, 1.0, 25)))
    E = sp.csc_array(sp.diags_array(rng.uniform(0.5, 2.0, 25)))
    dense = (A.toarray(), B, C, 0, E.toarray())
    y, _ = run((A, B, C, 0, E), U, 0.1)
    close(y, hankelred.simulate(dense, U, step=0.1), 1e-6)
    impulse = sparse_impulse_response(any_model((A, B, C, 0, E), 0, "low_rank"), 10, 0.1)
    close(impulse, hankelred.impulse_response(dense, 10, step=0.1), 1e-6)


@pytest.mark.parametrize("hold", ["zoh", "foh"])
@pytest.mark.parametrize(("convection", "share"), [(0.0, 1e-11), (5.0, 1e-6)])
def test_scipy_agrees(hold, convection, share):
    """scipy.signal.lsim, whose exponential and holds are its own."""
    A, B, C = heat(6, convection=convection)
    times = 0.02 * np.arange(T)
    expected = scipy.signal.lsim((A.toarray(), B, C, np.zeros((2, 2))), U.T, times, interp=hold == "foh")[1]
    close(run((A, B, C, 0), U, 0.02, first_order_hold=hold == "foh")[0], expected.T, share)


def test_mass_matrix_start_and_complex_input():
    rng = np.random.default_rng(1)
    A, B, C = heat(6, convection=2.0)
    E = sp.csc_array(sp.diags_array(rng.uniform(0.5, 2.0, 36)) + 0.1 * sp.eye_array(36, k=1))
    x0 = rng.standard_normal(36)
    u = U + 1j * U[::-1]
    expected = hankelred.simulate((A.toarray(), B, C, np.eye(2), E.toarray()), u, step=0.02, x0=x0)
    y, _ = run((A, B, C, np.eye(2), E), u, 0.02, start=x0)
    close(y, expected, 1e-6)


def test_complex_model():
    A, B, C = heat(6)
    A = sp.csc_array(A + 3j * sp.eye_array(36, k=1) - 2j * sp.eye_array(36))
    expected = hankelred.simulate((A.toarray(), B, C, 0), U, step=0.02)
    y, _ = run((A, B, C, 0), U, 0.02)
    close(y, expected, 1e-6)


@pytest.mark.parametrize("descriptor", [False, True])
def test_discrete_model(descriptor):
    rng = np.random.default_rng(2)
    A = sp.csc_array(0.3 * rng.random((40, 40)) * (rng.random((40, 40)) < 0.1) + 0.4 * np.eye(40))
    E = sp.csc_array(sp.eye_array(40) + 0.2 * sp.eye_array(40, k=1)) if descriptor else None
    B, C, D = rng.standard_normal((40, 2)), rng.standard_normal((3, 40)), rng.standard_normal((3, 2))
    sparse = (A, B, C, D) if E is None else (A, B, C, D, E)
    dense = tuple(M.toarray() if sp.issparse(M) else M for M in sparse)
    expected, last = hankelred.simulate(dense, U, dt=0.1, return_state=True)
    y, x = run(sparse, U, None, dt=0.1)
    close(y, expected, 1e-12)
    close(x, last, 1e-12)
    markov = sparse_impulse_response(any_model(sparse, 0.1, "low_rank"), 12, None)
    close(markov, hankelred.impulse_response(dense, 12, dt=0.1), 1e-12)


def test_lightly_damped_chain():
    """Of second order, with K + s D + s^2 M factored only; modes up to 2 rad/s, damped by 1e-4 and less."""
    M, D, K, B, C = chain(80, 1e-4, 1e-5)
    model = hankelred.SecondOrderModel(M, D, K, B, C)
    expected = hankelred.simulate(model, U[0], step=1.5)
    close(run(model, U[0], 1.5)[0][0], expected, 1e-6)
    impulse = sparse_impulse_response(any_model(model, 0, "low_rank"), 40, 1.5)
    close(impulse, hankelred.impulse_response(model, 40, step=1.5), 1e-6)


def test_algebraic_states():
    """A resistor-capacitor line, in which every other node has no capacitor."""
    n = 40
    A = sp.csc_array(sp.diags_array([np.ones(n - 1), -2.1 * np.ones(n), np.ones(n - 1)], offsets=[-1, 0, 1]))
    E = sp.csc_array(sp.diags_array((np.arange(n) % 2).astype(float)))
    B, C = np.zeros((n, 1)), np.zeros((2, n))
    B[0] = C[0, 0] = C[1, 20] = 1
    dense = (A.toarray(), B, C, np.zeros((2, 1)), E.toarray())
    expected = hankelred.simulate(dense, U[0], step=0.3)
    model = any_model((A, B, C, np.zeros((2, 1)), E), 0, "low_rank")
    y = run_implicit(model, np.zeros((model.n_states, 1)), U[:1], 0.3).outputs[:, :, 0].T
    close(y, expected, 1e-6)


def oscillator(w, weight):
    """Two modes of heat conduction with a mode of w rad/s that decays in 3 s, and its dense form."""
    slow, B, C = heat(5, convection=1.0)
    A = sp.block_diag([slow, sp.csc_array([[-0.3, w], [-w, -0.3]])], format="csc")
    B = np.concatenate([B[:, :1], [[1.0], [0.0]]])
    C = np.concatenate([C[:1], [[weight, 0.0]]], axis=1)
    return (A, B, C, 0), (A.toarray(), B, C, 0)


@pytest.mark.parametrize("weight", [1e-3, 1.0])
@pytest.mark.parametrize("w", [200.0, 1e3, 1e5, 1e7])
def test_unresolved_oscillations_are_refused(w, weight):
    """L-stable steps damp what they do not resolve: two runs agreed, and the oscillation was lost."""
    sparse, _ = oscillator(w, weight)
    with pytest.raises(ConvergenceError, match=r"implicit steps per sample"):
        sparse_impulse_response(any_model(sparse, 0, "low_rank"), 4, 1.0)
    with pytest.raises(ConvergenceError, match=r"implicit steps per sample"):
        run(sparse, 0 * U[0, :4], 1.0, start=np.ones(sparse[0].shape[0]))


@pytest.mark.parametrize("w", [1.0, 20.0, 200.0])
def test_resolved_oscillations(w):
    sparse, dense = oscillator(w, 1.0)
    impulse = sparse_impulse_response(any_model(sparse, 0, "low_rank"), 10, 0.02)
    close(impulse, hankelred.impulse_response(dense, 10, step=0.02), 1e-6)
    y, x = run(sparse, U[0], 0.02, start=np.ones(sparse[0].shape[0]))
    expected, last = hankelred.simulate(
        dense, U[0], step=0.02, x0=np.ones(sparse[0].shape[0]), return_state=True
    )
    close(y, expected[None], 1e-6)
    close(x, last, 1e-6)


def test_each_input_is_judged_by_its_own_response():
    """The impulse response of a weak input was compared with the size of that of a strong one."""
    (A, B, C, _), _ = oscillator(3e5, 1.0)
    weak = np.zeros_like(B)
    weak[-2] = 1e-7
    strong = np.concatenate([B[:-2], np.zeros((2, 1))])
    with pytest.raises(ConvergenceError, match="beyond 128 implicit steps"):
        sparse_impulse_response(
            any_model((A, np.hstack([strong, weak]), C, np.zeros((1, 2))), 0, "low_rank"), 6, 0.01
        )


@pytest.mark.parametrize("hold", ["zoh", "foh"])
@pytest.mark.parametrize("convection", [0.0, 5.0])
@pytest.mark.parametrize("factor", [1.0, 1j])
def test_complex_inputs_of_a_real_pencil(hold, convection, factor):
    """A complex B with real A and E: the imaginary parts of the steps were dropped."""
    A, B, C = heat(6, convection=convection)
    B = B * (1 + 2j)
    D = np.array([[1j, 0], [0, 2]])
    u = U * factor
    expected = hankelred.simulate((A.toarray(), B, C, D), u, step=0.02, hold=hold)
    close(run((A, B, C, D), u, 0.02, first_order_hold=hold == "foh")[0], expected, 1e-6)
    impulse = sparse_impulse_response(any_model((A, B, C, D), 0, "low_rank"), 8, 0.02)
    close(impulse, hankelred.impulse_response((A.toarray(), B, C, D), 8, step=0.02), 1e-6)
    stable = sp.csc_array(A / 500)
    expected = hankelred.simulate((stable.toarray(), B, C, D), u, dt=True)
    close(run((stable, B, C, D), u, None, dt=True)[0], expected, 1e-12)
    impulse = sparse_impulse_response(any_model((stable, B, C, D), True, "low_rank"), 8, None)
    close(impulse, hankelred.impulse_response((stable.toarray(), B, C, D), 8, dt=True), 1e-12)


@pytest.mark.parametrize("dt", [0, 0.1])
def test_singular_e_that_has_no_rows_of_zeros_is_refused(dt):
    """The algebraic part of the output was delayed by a sample."""
    A = sp.csc_array(sp.diags_array([-1.0, -2, -3, -2]))
    E = sp.block_diag([sp.eye_array(2), sp.csc_array([[1.0, 1], [1, 1]])], format="csc")
    with pytest.raises(ModelError, match="E is singular to working precision"):
        run((A, np.ones((4, 1)), np.ones((1, 4)), 0, E), U[0], None if dt else 0.1, dt=dt)


def test_sizes_near_the_range_of_double_precision():
    A, B, C = heat(6, convection=5.0)
    close(run((A, B, C, 0), 1e295 * U, 0.02)[0] / 1e295, run((A, B, C, 0), U, 0.02)[0], 1e-9)
    with pytest.raises(HankelredError, match="exceeds double precision"):
        hankelred.simulate(
            (2 * sp.eye_array(DENSE_LIMIT + 2), np.eye(DENSE_LIMIT + 2, 1), np.eye(1, DENSE_LIMIT + 2), 0),
            np.ones(1200),
            dt=True,
        )


def test_diffusion_with_convection_is_proved_to_be_damped():
    """Short runs of one were taken for unresolved oscillations."""
    n = 200
    A = sp.csc_array(
        sp.diags_array([1.2 * np.ones(n - 1), -2.0 * np.ones(n), 0.8 * np.ones(n - 1)], offsets=[-1, 0, 1])
    )
    B = (np.arange(n) < 50).astype(float)[:, None]
    expected = hankelred.simulate((A.toarray(), B, B.T, 0), U[0, :6], step=0.5)
    close(run((A, B, B.T, 0), U[0, :6], 0.5)[0][0], expected, 1e-6)


def test_no_convergence_is_an_error():
    M, D, K, B, _ = chain(50, 0.0, 1e-6)
    with pytest.raises(ConvergenceError, match="128 implicit steps per sample"):
        run(hankelred.SecondOrderModel(M, D, K, B, B.T), U[0], 100.0)


class TestSimulate:
    """Models of more states than are converted to dense ones."""

    def setup_class(self):
        self.A, self.B, self.C = heat(int(np.sqrt(DENSE_LIMIT)) + 2)
        self.model = (self.A, self.B[:, :1], self.C[:1], 0)

    def test_step_response_of_the_heat_equation(self):
        """The closed form: the modes of the square are products of sines."""
        side = int(np.sqrt(self.A.shape[0]))
        k = np.arange(1, side + 1)
        sines = np.sqrt(2 / (side + 1)) * np.sin(np.outer(k, k) * np.pi / (side + 1))
        rates = -4 * (side + 1) ** 2 * np.sin(k * np.pi / (2 * (side + 1))) ** 2
        poles = rates[:, None] + rates[None]
        b = sines @ self.B[:, 0].reshape(side, side) @ sines
        c = sines @ self.C[0].reshape(side, side) @ sines
        times = 0.02 * np.arange(8)
        expected = [np.sum(c * b * np.expm1(poles * t) / poles) for t in times]
        close(hankelred.simulate(self.model, np.ones(8), step=0.02), np.array(expected), 1e-11)
        impulse = [np.sum(c * b * np.exp(poles * t)) for t in times]
        close(hankelred.impulse_response(self.model, 8, step=0.02).ravel(), np.array(impulse), 1e-10)

    def test_runs_can_be_joined(self):
        u = U[0, :6]
        whole, states = hankelred.simulate(self.model, u, step=0.02, return_states=True)
        head, x = hankelred.simulate(self.model, u[:3], step=0.02, return_state=True)
        tail = hankelred.simulate(self.model, u[3:], step=0.02, x0=x)
        close(np.concatenate([head, tail]), whole, 1e-13)
        close(x, states[:, 3], 1e-13)
        assert states.shape == (self.A.shape[0], 6)

    def test_refusals(self):
        with pytest.raises(ModelError, match="give step="):
            hankelred.simulate(self.model, U[0])
        with pytest.raises(HankelredError, match="multiplies dense matrices"):
            hankelred.simulate(self.model, U[0], step=0.1, method="blocks")
        with pytest.raises(HankelredError, match="x0 must have one entry per state"):
            hankelred.simulate(self.model, U[0], step=0.1, x0=[1.0])
        n = self.A.shape[0]
        E = sp.csc_array(sp.diags_array((np.arange(n) > 0).astype(float)))
        with pytest.raises(ModelError, match="only outputs from rest"):
            hankelred.simulate((*self.model[:3], [[0.0]], E), U[0], step=0.1, return_state=True)
