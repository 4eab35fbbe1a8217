"""Common mistakes raise one HankelredError with what is wrong, the value passed, and what to do instead.

Each of these once ended in an error of Python or numpy from somewhere inside, or, where noted, in none.
"""

from __future__ import annotations

import re

import control
import numpy as np
import pytest
from helpers.commands import run_main

import hankelred
from hankelred.cli import main as cli
from hankelred.files import read_model, write_model
from hankelred.models.linear_model import as_model

MODEL = np.array([[-1.0, 0.5], [0.0, -3.0]]), np.ones((2, 1)), np.ones((1, 2)), 0
INPUT = np.random.default_rng(0).standard_normal(300)
OUTPUT = hankelred.simulate(([[0.8]], [[1.0]], [[1.0]], 0), INPUT, dt=True)


def simulator(x0, u):
    """Two states in a row, in discrete time."""
    x, state = np.empty((2, u.shape[1])), x0
    for k in range(u.shape[1]):
        x[:, k] = state
        state = np.array([0.5 * state[0] + u[0, k], 0.4 * state[1] + 0.1 * state[0]])
    return x, x[:1]


def gramians(**arguments):
    return hankelred.empirical_gramians(simulator, dt=True, horizon=20, **arguments)


def nonlinear(t, x, u, params):
    return -(x**3) + u


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hankelred.reduce(MODEL, tol="0.1"), "tol must be a positive finite number, got '0.1'"),
        (lambda: hankelred.reduce(MODEL, 1, tol=0.1), "not both: got order=1 and tol=0.1"),
        # a ratio in place of the switch was taken for True
        (lambda: hankelred.reduce(MODEL, gap=100), "gap must be True or False, got 100"),
        (lambda: hankelred.reduce("model.mat", 1), "from hankelred.files import read_model"),
        (lambda: hankelred.reduce(simulator, 1), "pass a simulator to empirical_gramians"),
        (
            lambda: hankelred.reduce(control.nlsys(nonlinear, None, inputs=1, outputs=1, states=1), 1),
            "NonlinearIOSystem is not a linear model; linearize it",
        ),
        (
            lambda: hankelred.select_order([2, 1], noise_floor="1e-3"),
            "noise_floor must be a number >= 0, got '1e",
        ),
        # a negative floor counted zeros as states
        (lambda: hankelred.select_order([2, 0], noise_floor=-1), "noise_floor must be a number >= 0, got -1"),
        (
            lambda: hankelred.gramian((np.diag([0.5, 0.9]), np.ones((2, 1)), np.ones((1, 2)), 0)),
            "a discrete model needs its dt",
        ),
        (
            lambda: hankelred.markov_parameters(INPUT, OUTPUT, 5, ridge=None),
            "ridge must be a finite number >= 0, got N",
        ),
        (
            lambda: hankelred.convolve(hankelred.markov_parameters(INPUT, OUTPUT, 5), INPUT),
            "got a MarkovParameters: pass its .markov",
        ),
        (
            lambda: hankelred.identify(
                control.forced_response(control.ss([[0.8]], [[1.0]], [[1.0]], 0, True), U=INPUT), dt="1 s"
            ),
            "dt must be 0, True, a positive number of seconds or None, got '1 s'",
        ),
        (lambda: hankelred.realize(OUTPUT, 2, tol=0.1), "not both: got order=2 and tol=0.1"),
        (lambda: hankelred.identify(INPUT, OUTPUT, 1).at(0), "order must be at least 1, got 0"),
        (
            lambda: hankelred.empirical_gramians(MODEL, horizon="5"),
            "horizon must be a positive number, got '5'",
        ),
        (
            lambda: hankelred.empirical_gramians(MODEL, kinds=None),
            "unknown kind of Gramian None; use some of",
        ),
        (
            lambda: hankelred.empirical_gramians(MODEL, stability_tol="x"),
            "stability_tol must be a number in [0, 1)",
        ),
        (lambda: gramians(n_states=[2]), "n_states must be a whole number of at least 1, got [2]"),
        (lambda: gramians(batch_size=[2]), "batch_size must be a whole number of at least 1, got [2]"),
        (lambda: hankelred.GramianEstimator(None), "n_states must be a whole number of at least 1, got None"),
        (
            lambda: hankelred.GramianEstimator(np.nan),
            "n_states must be a whole number of at least 1, got nan",
        ),
        # as in other toolboxes, with the time first: the message was the record itself
        (lambda: hankelred.identify(np.arange(300), INPUT, OUTPUT), "got an array of shape (300,)"),
        # was said to be nan
        (lambda: hankelred.reduce((None, [[1.0]], [[1.0]], 0), 1), "A is None; a model needs A, B and C"),
        (lambda: hankelred.gramian_factor([[1.0, 0.0], [0.0, np.nan]]), "gramian[1, 1] is nan"),
        (lambda: gramians(signs=1), "signs must be (1, -1), (1,) or (-1,), got 1"),
        (lambda: gramians(input_scales="a"), "input_scales must hold numbers"),
        (lambda: gramians(state_scales=1j), "state_scales must be real, got 1j"),
        (lambda: gramians(steady_state="a"), "steady_state must hold numbers"),
        (
            lambda: gramians(excitation="prbs", seed="x"),
            "seed must be a whole number >= 0 or a numpy Generator, got 'x'",
        ),
        (lambda: gramians(n_jobs="all"), "n_jobs must be None, a number of processes, or negative"),
        (lambda: gramians(n_jobs=0), "(-1: one per core), got 0"),
        (
            lambda: gramians().reduce(1).restrict(np.ones(3)),
            "x must have one row per state, shape (2,) or (2, samples)",
        ),
        (
            lambda: gramians().reduce(1).lift(np.ones((2, 5))),
            "z must have one row per reduced state, shape (1,)",
        ),
        # was found out only when the result was called
        (lambda: gramians().reduce(1).right_hand_side(MODEL[0]), "f must be a function of the state"),
        (lambda: hankelred.GramianEstimator(2, forgetting="0.9"), "forgetting must be in (0, 1], got '0.9'"),
        (lambda: hankelred.GramianEstimator(2).update([["a", "b"], ["c", "d"]]), "states must hold numbers"),
        (lambda: hankelred.GramianEstimator(2).update([[1, 2], [3]]), "states is not an array of numbers"),
        # numpy's advice was to trust the file
        (lambda: hankelred.GramianEstimator.load(__file__), "(no .npz file); write it with save()"),
        (
            lambda: hankelred.plot_hankel_singular_values(["a"]),
            "hsv must be an array of Hankel singular values",
        ),
        (
            lambda: hankelred.plot_hankel_singular_values([1.0], ax="left"),
            "ax must be matplotlib Axes, got a str",
        ),
    ],
)
def test_the_error_of_a_mistake_has_the_remedy(call, message):
    with pytest.raises(hankelred.HankelredError, match=re.escape(message)):
        call()


def test_a_figure_is_no_axes():
    from matplotlib.figure import Figure

    with pytest.raises(hankelred.ModelError, match=r"got a Figure; a figure's are figure.add_subplot\(\)"):
        hankelred.plot_reduction(hankelred.reduce(MODEL, 1), ax=Figure())


def test_the_shell_suspects_a_forgotten_timebase(tmp_path, monkeypatch):
    # Story: a discrete model written without dt gave a table of "unstable or marginal" and not a word more.
    monkeypatch.chdir(tmp_path)
    write_model(as_model((np.diag([0.5, 0.9]), np.ones((2, 1)), np.ones((1, 2)), 0)), "model.json")
    status, _, err = run_main(cli.main, "hankelred", "hsv", "model.json")
    assert (status, err) == (
        0,
        "warning: all poles are inside the unit circle: a discrete model needs its dt (--dt)\n",
    )
    assert run_main(cli.main, "hankelred", "hsv", "model.json", "--dt", "true")[2] == ""


def test_the_error_for_a_file_without_a_model_lists_its_contents(tmp_path):
    (tmp_path / "tf.json").write_text('{"num": [1], "den": [1, 2]}')
    with pytest.raises(hankelred.FileFormatError, match=r"has no A, B, C; .* and this one has num, den"):
        read_model(tmp_path / "tf.json")
