"""Simulation of large sparse models by implicit steps, against exact dense simulation and closed forms."""

import warnings

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from helpers.sparse_models import chain, heat

import hankelred
from hankelred import ConvergenceError, HankelredError, ModelError, ReductionWarning
from hankelred.models.linear_model import DENSE_LIMIT
from hankelred.models.sparse_model import large_model
from hankelred.simulation.implicit import run_implicit, sparse_impulse_response
from hankelred.simulation.rational_exponential import chebyshev_fractions, pade_fractions

T = 30
U = np.random.default_rng(0).standard_normal((2, T))


def run(model, u, interval, dt=0, start=None, **options):
    """Simulate by implicit steps, however few states there are."""
    model = large_model(model, dt, "low_rank")
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
    """The best possible error of degree 14 is 9.289^-14 = 2.8e-14 (Gonchar and Rakhmanov)."""
    errors = [abs(value(chebyshev_fractions(), s) - mpmath.exp(s)) for s in (0, *(-np.logspace(-4, 8, 200)))]
    assert max(errors) < 4e-14
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReductionWarning)
        y, x = run((A, B, C, 0), U, step, first_order_hold=hold == "foh")
    terms = np.abs(C).sum(axis=1) * np.abs(states).max()  # in which the short runs cancel
    np.testing.assert_array_less(np.abs(y - expected).max(axis=1), share * terms)
    close(x, last, 10 * share)


def test_mass_matrix_start_and_complex_input():
    rng = np.random.default_rng(1)
    A, B, C = heat(6, convection=2.0)
    E = sp.csc_array(sp.diags_array(rng.uniform(0.5, 2.0, 36)) + 0.1 * sp.eye_array(36, k=1))
    x0 = rng.standard_normal(36)
    u = U + 1j * U[::-1]
    expected = hankelred.simulate((A.toarray(), B, C, np.eye(2), E.toarray()), u, step=0.02, x0=x0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReductionWarning)
        y, _ = run((A, B, C, np.eye(2), E), u, 0.02, start=x0)
    close(y, expected, 1e-6)


def test_complex_model():
    A, B, C = heat(6)
    A = sp.csc_array(A + 3j * sp.eye_array(36, k=1) - 2j * sp.eye_array(36))
    expected = hankelred.simulate((A.toarray(), B, C, 0), U, step=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReductionWarning)
        y, _ = run((A, B, C, 0), U, 0.02)
    close(y, expected, 1e-6)


@pytest.mark.parametrize("descriptor", [False, True])
def test_discrete_model(descriptor):
    rng = np.random.default_rng(2)
    A = sp.csc_array(sp.random_array((40, 40), density=0.1, rng=rng) * 0.3 + 0.4 * sp.eye_array(40))
    E = sp.csc_array(sp.eye_array(40) + 0.2 * sp.eye_array(40, k=1)) if descriptor else None
    B, C, D = rng.standard_normal((40, 2)), rng.standard_normal((3, 40)), rng.standard_normal((3, 2))
    sparse = (A, B, C, D) if E is None else (A, B, C, D, E)
    dense = tuple(M.toarray() if sp.issparse(M) else M for M in sparse)
    expected, last = hankelred.simulate(dense, U, dt=0.1, return_state=True)
    y, x = run(sparse, U, None, dt=0.1)
    close(y, expected, 1e-12)
    close(x, last, 1e-12)
    markov = sparse_impulse_response(large_model(sparse, 0.1, "low_rank"), 12, None)
    close(markov, hankelred.impulse_response(dense, 12, dt=0.1), 1e-12)


def test_lightly_damped_chain():
    """Of second order, with K + s D + s^2 M factored only; modes up to 2 rad/s, damped by 1e-4 and less."""
    M, D, K, B, C = chain(80, 1e-4, 1e-5)
    model = hankelred.SecondOrderModel(M, D, K, B, C)
    expected = hankelred.simulate(model, U[0], step=1.5)
    close(run(model, U[0], 1.5)[0][0], expected, 1e-6)
    impulse = sparse_impulse_response(large_model(model, 0, "low_rank"), 40, 1.5)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReductionWarning)
        model = large_model((A, B, C, np.zeros((2, 1)), E), 0, "low_rank")
        y = run_implicit(model, np.zeros((model.n_states, 1)), U[:1], 0.3).outputs[:, :, 0].T
    close(y, expected, 1e-6)


def test_unresolved_oscillations_are_refused_or_named():
    """An oscillator of 1e7 rad/s, steps of 1 s: L-stable steps damp it at once, at any number."""
    w, n = 1e7, 30
    slow, B, C = heat(n // 5 - 1, convection=1.0)
    A = sp.block_diag([slow, sp.csc_array([[0.0, w], [-w, -1e-3 * w]])], format="csc")
    B = np.concatenate([B[:, :1], [[0.0], [w]]])
    C = np.concatenate([C[:1], [[1.0, 0.0]]], axis=1)
    with pytest.warns(ReductionWarning, match="lightly damped"):
        run((A, B, C, 0), U[0], 1.0)


def test_no_convergence_is_an_error():
    M, D, K, B, _ = chain(50, 0.0, 1e-6)
    with pytest.raises(ConvergenceError, match="128 implicit steps per sample, output 0 still changes by"):
        run(hankelred.SecondOrderModel(M, D, K, B, B.T), U[0], 100.0)


class TestThroughTheFrontDoor:
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
