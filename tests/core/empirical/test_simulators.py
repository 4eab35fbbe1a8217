"""Simulators made of right-hand sides, of models of python-control, and of functions of JAX and torch.

A right-hand side alone was refused as "cannot find the sizes of the simulator", without a word of what to do,
and every user wrote the same integrator around it.
"""

from __future__ import annotations

import control
import numpy as np
import pytest
import scipy.linalg as sla

from hankelred import HankelredError, ModelError, empirical_gramians, gramian, simulator_from_rhs
from hankelred.empirical.simulators import simulator_of_control_system

A = np.array([[-1.0, 0.4, 0.0], [0.0, -2.0, 1.0], [-0.3, 0.0, -1.5]])
B = np.array([[1.0], [0.5], [-1.0]])
C = np.array([[1.0, 0.0, 2.0]])
GRID = {"step": 0.05, "horizon": 25.0}


def rate(x, u):
    return A @ x + B @ u


def read(x, u):
    return C @ x


@pytest.mark.parametrize("solver", ["rk4", "RK45", "DOP853", "LSODA", "Radau", "BDF"])
def test_states_are_those_of_the_matrix_exponential(solver):
    step, u = 0.1, np.random.default_rng(0).standard_normal((1, 40))
    x, y = simulator_from_rhs(rate, step, output=read, solver=solver, rtol=1e-10)(np.ones(3), u)
    block = sla.expm(step * np.block([[A, B], [np.zeros((1, 4))]]))
    expected = np.empty((3, 40))
    state = np.ones(3)
    for k in range(40):
        expected[:, k] = state
        state = block[:3, :3] @ state + block[:3, 3:] @ u[:, k]
    np.testing.assert_allclose(x, expected, atol=1e-5 if solver == "rk4" else 1e-7)
    np.testing.assert_allclose(y, C @ x, rtol=1e-14)


def test_gramians_of_a_linear_right_hand_side_are_those_of_the_lyapunov_equation():
    grams = empirical_gramians(simulator_from_rhs(rate, GRID["step"], output=read), **GRID)
    for kind in ("controllability", "observability"):
        exact = gramian((A, B, C, 0.0), kind)
        np.testing.assert_allclose(getattr(grams, kind), exact, atol=1e-5 * np.abs(exact).max())


def test_another_step_than_that_of_the_simulator_is_refused():
    """The controllability Gramian was twice as large, without a word, with a simulator of twice the step."""
    simulate = simulator_from_rhs(rate, 2 * GRID["step"], output=read)
    for options in ({"step": GRID["step"]}, {"dt": GRID["step"]}):
        with pytest.raises(HankelredError, match=r"step=0\.05 differs from the step of the simulator, 0\.1"):
            empirical_gramians(simulate, horizon=GRID["horizon"], **options)
    given = empirical_gramians(simulate, horizon=GRID["horizon"], step=2 * GRID["step"])
    own = empirical_gramians(simulate, horizon=GRID["horizon"])
    np.testing.assert_array_equal(own.controllability, given.controllability)


def test_stiff_system_with_an_implicit_solver():
    def stiff(x, u):
        return np.array([-1e5 * (x[0] - x[1]), -x[1] + u[0]])

    grams = empirical_gramians(simulator_from_rhs(stiff, 0.05, solver="LSODA"), step=0.05, horizon=20.0)
    assert grams.controllability[1, 1] == pytest.approx(0.5, rel=1e-4)


def test_state_that_decays_to_nothing():
    """The tolerance was relative to the state of the moment, and 0 where that had decayed below 1e-300."""

    def stiff(x, u):
        return np.array([-1e5 * (x[0] - x[1]), -x[1] + u[0]])

    for solver in ("LSODA", "Radau", "BDF"):
        x, _ = simulator_from_rhs(stiff, 0.05, solver=solver)(np.array([1.0, 0.0]), np.zeros((1, 50)))
        assert np.abs(x[:, 1:]).max() < 1e-8


def test_small_states_are_integrated_relative_to_their_size():
    simulate = simulator_from_rhs(lambda x, u: -x, 0.5)
    x, _ = simulate(np.array([1e-12]), np.zeros((1, 5)))
    np.testing.assert_allclose(x[0], 1e-12 * np.exp(-0.5 * np.arange(5)), rtol=1e-7)


def test_nonlinear_model_of_python_control():
    system = control.nlsys(
        lambda t, x, u, params: np.array([params["gain"] * u[0] - np.sqrt(max(x[0], 0.0))]),
        lambda t, x, u, params: x,
        inputs=1,
        outputs=1,
        states=1,
        params={"gain": 2.0},
    )
    grams = empirical_gramians(
        system,
        step=0.1,
        horizon=60.0,
        steady_state=[4.0],
        steady_input=[1.0],
        input_scales=0.01,
        state_scales=0.01,
    )
    # linearized: x' = 2 u - x / 4, so that W = 4 / (2 / 4)
    assert grams.controllability[0, 0] == pytest.approx(8.0, rel=1e-4)


def test_discrete_nonlinear_model_of_python_control():
    system = control.nlsys(
        lambda t, x, u, params: 0.5 * x + np.tanh(u),
        lambda t, x, u, params: 3 * x,
        inputs=1,
        outputs=1,
        states=1,
        dt=0.1,
    )
    grams = empirical_gramians(system, horizon=6.0, input_scales=1e-4)
    assert grams.controllability[0, 0] == pytest.approx(1 / (1 - 0.25), rel=1e-6)
    assert grams.observability[0, 0] == pytest.approx(9 / (1 - 0.25), rel=1e-6)


def lag(**options):
    """x' = -2 x + u, or x[k+1] = -x[k] / 2 + u[k]."""
    rate = 0.5 if options.get("dt") else 2.0
    return control.nlsys(
        lambda t, x, u, params: u - rate * x,
        lambda t, x, u, params: x,
        **{"inputs": 1, "outputs": 1, "states": 1, **options},
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steady_state": [0, 0, 0]}, "steady_state has 3 entries, but the number of states .* is 1"),
        ({"steady_input": [0, 0]}, "steady_input has 2 entries, but the number of inputs .* is 1"),
        ({"steady_state": []}, "steady_state has 0 entries"),
        ({"n_states": 3}, "n_states=3, but the number of states of the system is 1"),
        ({"n_inputs": 2}, "n_inputs=2, but the number of inputs of the system is 1"),
        ({"n_states": 1.5}, "n_states must be a whole number"),
        ({"n_states": 3, "steady_state": [0, 0, 0]}, "n_states=3, but"),
        ({"dt": 0.1}, "dt=0.1, but that of the system is 0"),
        ({"dt": True}, "dt=True, but that of the system is 0"),
    ],
)
def test_arguments_that_contradict_a_model_of_python_control(arguments, message):
    """A steady state of three entries gave a Gramian (3, 3) of one state; sizes and dt were overwritten."""
    with pytest.raises(HankelredError, match=message):
        empirical_gramians(lag(), **GRID, **arguments)


def test_timebases_of_models_of_python_control():
    for given in ({}, {"dt": 0.1}, {"dt": np.float64(0.1)}):
        grams = empirical_gramians(lag(dt=0.1), horizon=6.0, **given)
        assert grams.controllability[0, 0] == pytest.approx(1 / (1 - 0.25), rel=1e-6)
    for given in (True, 0.2):
        with pytest.raises(HankelredError, match=r"but that of the system is 0.1; leave out dt="):
            empirical_gramians(lag(dt=0.1), horizon=6.0, dt=given)


def test_sizes_that_agree_with_a_model_of_python_control():
    arguments = {"n_states": 1, "n_inputs": 1, "steady_state": [0.0], "steady_input": [0.0], "dt": 0}
    grams = empirical_gramians(lag(), **GRID, **arguments)
    assert grams.controllability[0, 0] == pytest.approx(0.25, rel=1e-4)


def test_model_of_python_control_that_knows_no_sizes():
    system = control.nlsys(lambda t, x, u, params: u - 2 * x, None)
    assert system.nstates is None
    grams = empirical_gramians(system, n_states=1, n_inputs=1, **GRID)
    assert grams.controllability[0, 0] == pytest.approx(0.25, rel=1e-4)


def test_model_of_python_control_without_states_or_inputs():
    """The error was that n_states must be at least 1, which nobody had passed."""
    static = control.nlsys(None, lambda t, x, u, params: u, inputs=1, outputs=1)
    with pytest.raises(ModelError, match="the system has no states"):
        empirical_gramians(static, **GRID)
    with pytest.raises(ModelError, match="the system has no inputs"):
        empirical_gramians(lag(inputs=0), **GRID)


@pytest.mark.parametrize("name", ["steady_state", "steady_input"])
def test_empty_operating_point_of_a_simulator(name):
    """It was a ZeroDivisionError."""
    with pytest.raises(HankelredError, match=f"{name} is empty"):
        empirical_gramians(simulator_from_rhs(rate, 0.05), **GRID, **{name: []})


def test_continuous_model_of_python_control_needs_a_step():
    system = control.nlsys(lambda t, x, u, params: u - x, None, inputs=1, states=1)
    with pytest.raises(HankelredError, match="needs step="):
        empirical_gramians(system, horizon=5.0)


@pytest.mark.slow
def test_function_of_torch():
    torch = pytest.importorskip("torch")
    matrices = [torch.as_tensor(M) for M in (A, B)]

    def f(x, u):
        return matrices[0] @ torch.as_tensor(x) + matrices[1] @ torch.as_tensor(u)

    grams = empirical_gramians(
        simulator_from_rhs(f, 0.05, output=read, solver="rk4"), step=0.05, horizon=12.0
    )
    np.testing.assert_allclose(grams.controllability, gramian((A, B, C, 0.0), "controllability"), atol=1e-4)
    single = simulator_from_rhs(lambda x, u: f(x, u).float(), 0.05)
    with pytest.raises(ModelError, match=r"float32, whose rounding.*float64"):
        single(np.ones(3), np.zeros((1, 3)))


def test_function_of_jax():
    jax = pytest.importorskip("jax")

    @jax.jit
    def f(x, u):
        return jax.numpy.asarray(A) @ x + jax.numpy.asarray(B) @ u

    single = simulator_from_rhs(f, 0.05)
    with pytest.raises(ModelError, match="jax_enable_x64"):
        single(np.ones(3), np.zeros((1, 3)))
    jax.config.update("jax_enable_x64", True)
    try:
        grams = empirical_gramians(
            simulator_from_rhs(f, 0.05, output=read, solver="rk4"), step=0.05, horizon=12.0
        )
    finally:
        jax.config.update("jax_enable_x64", False)
    np.testing.assert_allclose(grams.controllability, gramian((A, B, C, 0.0), "controllability"), atol=1e-4)


def test_right_hand_side_in_place_of_a_simulator_is_told_the_remedy():
    with pytest.raises(ModelError, match=r"right-hand side f\(x, u\), simulator_from_rhs makes a simulator"):
        empirical_gramians(rate, **GRID)
    with pytest.raises(ModelError, match=r"right-hand side f\(x, u\), simulator_from_rhs makes a simulator"):
        empirical_gramians(rate, n_states=3, n_inputs=1, **GRID)


@pytest.mark.parametrize(
    ("f", "arguments", "message"),
    [
        (3, {}, "f must be a function"),
        (rate, {"output": 2}, "output must be a function"),
        (rate, {"step": 0}, "step must be a positive number"),
        (rate, {"step": np.nan}, "step must be a positive number"),
        (rate, {"solver": "euler"}, "solver"),
        (rate, {"rtol": 0}, "rtol must be from"),
    ],
)
def test_bad_arguments(f, arguments, message):
    with pytest.raises(HankelredError, match=message):
        simulator_from_rhs(f, **{"step": 0.1, **arguments})


@pytest.mark.parametrize(
    ("f", "output", "message"),
    [
        (lambda x, u: np.ones(2), None, "f returned 2 numbers for 3 states"),
        (lambda x, u: 1j * x, None, "f must return real numbers"),
        (lambda x, u: "x", None, "f must return real numbers"),
        (rate, lambda x, u: np.ones(1 + (x[0] > 0.5)), "different numbers of outputs"),
        (rate, lambda x, u: np.float32(1), "output returned float32"),
    ],
)
def test_bad_functions(f, output, message):
    simulate = simulator_from_rhs(f, 1.0, output=output)
    with pytest.raises(ModelError, match=message):
        simulate(np.ones(3), np.zeros((1, 4)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("solver", ["rk4", "RK45", "LSODA", "BDF"])
def test_value_that_is_not_finite_is_named(solver, value):
    """With NaN, f was called 20000 times, and the error was that the solution may become infinite."""
    calls = []

    def f(x, u):
        calls.append(1)
        return np.array([-x[0], value if u[0] > 0 else -x[1]])

    simulate = simulator_from_rhs(f, 0.5, solver=solver)
    with pytest.raises(ModelError, match=rf"f returned {value} for state 2 at t = 1; use a smaller step"):
        simulate(np.ones(2), np.array([[0.0, 0.0, 1.0, 0.0]]))
    assert len(calls) < 1000


def test_update_that_is_not_finite_is_named():
    simulate = simulator_of_control_system(lag(dt=0.1), None)
    with pytest.raises(ModelError, match=r"the update function returned nan for state 1 at t = 0.2"):
        simulate(np.ones(1), np.array([[0.0, 0.0, np.nan, 0.0]]))


@pytest.mark.parametrize("solver", ["rk4", "RK45", "LSODA", "Radau"])
def test_functions_that_change_their_arguments(solver):
    """They changed the caller's x0, and the states of the solver."""

    def in_place(x, u):
        x *= -1
        x += u
        u[:] = 0
        return x

    def output(x, u):
        x *= 2
        u += 7
        return x

    x0, u = np.array([1.0, 2.0]), np.ones((1, 6))
    x, y = simulator_from_rhs(in_place, 0.1, output=output, solver=solver)(x0, u)
    expected = simulator_from_rhs(lambda x, u: u - x, 0.1, solver=solver)(
        np.array([1.0, 2.0]), np.ones((1, 6))
    )
    np.testing.assert_array_equal(x0, [1.0, 2.0])
    np.testing.assert_array_equal(u, 1.0)
    np.testing.assert_array_equal(x, expected[0])
    np.testing.assert_array_equal(y, 2 * expected[0])


def test_update_that_changes_its_arguments():
    def update(t, x, u, params):
        x *= 0.5
        x += u
        return x

    system = control.nlsys(update, None, inputs=1, states=1, dt=True)
    x0, u = np.array([1.0]), np.zeros((1, 4))
    x, _ = simulator_of_control_system(system, None)(x0, u)
    np.testing.assert_array_equal(x, [[1.0, 0.5, 0.25, 0.125]])
    np.testing.assert_array_equal(x0, 1.0)


@pytest.mark.parametrize("solver", ["RK45", "LSODA", "BDF"])
def test_solution_that_ends_is_an_error(solver):
    """x' = x^2 from 1 is infinite at t = 1: steps became smaller and smaller, until the memory was full."""
    simulate = simulator_from_rhs(lambda x, u: x**2, 0.6, solver=solver)
    with pytest.raises(ModelError, match=r"failed at t = 0.6|may become infinite"), np.errstate(all="ignore"):
        simulate(np.ones(1), np.zeros((1, 4)))
