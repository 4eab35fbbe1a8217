"""A call of hours that was killed started again from nothing, and one lost worker process cost all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest

import hankelred
from hankelred import FileFormatError, HankelredError, ModelError, empirical_gramians
from hankelred.empirical import experiments

ROOT = Path(hankelred.__file__).parents[1]
GRID = {"dt": True, "horizon": 30, "n_states": 3, "n_inputs": 2}
KINDS = ("controllability", "observability")


class Counted:
    """A simulator that counts its runs, and may fail at one of them."""

    def __init__(self, fail_at=None, gain=(0.5, 0.5, 0.5)):
        self.runs, self.fail_at, self.gain = 0, fail_at, np.array(gain)

    def __call__(self, x0, u):
        self.runs += 1
        if self.runs == self.fail_at:
            raise KeyboardInterrupt
        x = np.empty((3, u.shape[1]))
        state = x0
        for k in range(u.shape[1]):
            x[:, k] = state
            state = np.tanh(self.gain * state + np.array([u[0, k], u[1, k], state[0]]) / 2)
        return x, x[:2] + x[2]


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(experiments, "_ROUND_SECONDS", 1e-9)


def assert_equal(grams, expected):
    for kind in KINDS:
        np.testing.assert_array_equal(getattr(grams, kind), getattr(expected, kind))
    assert grams.error_estimate == expected.error_estimate


def test_finished_call_is_read_again(tmp_path):
    expected = empirical_gramians(Counted(), **GRID)
    assert_equal(empirical_gramians(Counted(), checkpoint=tmp_path / "run", **GRID), expected)
    again = Counted()
    assert_equal(empirical_gramians(again, checkpoint=tmp_path / "run", **GRID), expected)
    assert again.runs == 3  # the unperturbed run, and one of each kind that recognizes the simulator
    assert len(list((tmp_path / "run").iterdir())) == 2


@pytest.mark.parametrize(("fail_at", "finished"), [(2, 0), (3, 0), (5, 2), (6, 3), (7, 4), (12, 8)])
def test_interrupted_call_goes_on(fail_at, finished, tmp_path, short_rounds):
    plain = Counted()
    expected = empirical_gramians(plain, **GRID)
    with pytest.raises(KeyboardInterrupt):
        empirical_gramians(Counted(fail_at), checkpoint=tmp_path, **GRID)
    second = Counted()
    assert_equal(empirical_gramians(second, checkpoint=tmp_path, **GRID), expected)
    # what was finished is not run again; one run of each kind recognizes the simulator
    assert second.runs == plain.runs - finished + 2


def test_batches(tmp_path, short_rounds):
    single = Counted()

    def batched(x0, u):
        pairs = [single(a, b) for a, b in zip(x0, u, strict=True)]
        return np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs])

    expected = empirical_gramians(Counted(), **GRID)
    single.fail_at = 8
    with pytest.raises(KeyboardInterrupt):
        empirical_gramians(batched, batch_size=3, checkpoint=tmp_path, **GRID)
    single.fail_at = None
    assert_equal(empirical_gramians(batched, batch_size=3, checkpoint=tmp_path, **GRID), expected)


@pytest.mark.parametrize(
    "changed", [{"horizon": 31}, {"input_scales": 2.0}, {"excitation": "prbs"}, {"steady_state": [0.1, 0, 0]}]
)
def test_checkpoint_of_other_experiments_is_refused(changed, tmp_path):
    empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)
    with pytest.raises(HankelredError, match="responses of other experiments"):
        empirical_gramians(Counted(), checkpoint=tmp_path, **{**GRID, **changed})


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("state", range(3))
def test_checkpoint_of_another_simulator_is_refused(state, kinds, tmp_path):
    """Only the first experiment was compared: what other states or inputs reach was read from the old one."""
    gain = [0.5, 0.5, 0.5]
    empirical_gramians(Counted(), kinds=kinds, checkpoint=tmp_path, **GRID)
    gain[state] = 0.4
    with pytest.raises(HankelredError, match="those of another simulator"):
        empirical_gramians(Counted(gain=gain), kinds=kinds, checkpoint=tmp_path, **GRID)


def decoupled(poles, gains, steady=(0.0, 0.0)):
    """x[k+1] = poles x[k] + gains u[k] around a steady state, two inputs, and the sum of the states."""

    def simulate(x0, u):
        x = np.empty((2, u.shape[1]))
        x[:, 0] = x0
        for k in range(u.shape[1] - 1):
            x[:, k + 1] = steady + np.array(poles) * (x[:, k] - steady) + np.array(gains) * u[:, k]
        return x, x[:1] + x[1:]

    return simulate


TWO = {"dt": True, "horizon": 40, "n_states": 2, "n_inputs": 2, "signs": (1,)}


@pytest.mark.parametrize(
    ("poles", "gains", "kinds"),
    [
        ((0.5, 0.9), (1.0, 1.0), "observability"),
        ((0.5, 0.5), (1.0, 2.0), "controllability"),
        ((0.5, 0.5), (1.0, 1.0 + 1e-4), "controllability"),
    ],
)
def test_only_the_second_state_of_another_simulator_differs(poles, gains, kinds, tmp_path):
    """The second call returned the observability Gramian 4 / 3 [[1, 1], [1, 1]] of the first."""
    first, second = decoupled((0.5, 0.5), (1.0, 1.0)), decoupled(poles, gains)
    empirical_gramians(first, kinds=kinds, checkpoint=tmp_path / "run", **TWO)
    with pytest.raises(HankelredError, match="those of another simulator"):
        empirical_gramians(second, kinds=kinds, checkpoint=tmp_path / "run", **TWO)
    grams = empirical_gramians(second, kinds=kinds, checkpoint=tmp_path / "other", **TWO)
    a, b = np.array(poles), np.array(gains)
    expected = np.diag(b**2 / (1 - a**2)) if kinds == "controllability" else 1 / (1 - np.outer(a, a))
    np.testing.assert_allclose(getattr(grams, kinds), expected, rtol=1e-3)


def test_small_changes_of_a_small_perturbation_of_a_large_steady_state(tmp_path):
    """Relative to the steady state the responses of both simulators are equal to seven digits."""
    arguments = TWO | {"steady_state": (1e3, 2e3), "state_scales": 1e-3, "kinds": "observability"}
    steady = np.array(arguments["steady_state"])
    empirical_gramians(decoupled((0.5, 0.5), (1, 1), steady), checkpoint=tmp_path, **arguments)
    with pytest.raises(HankelredError, match="those of another simulator"):
        empirical_gramians(decoupled((0.5, 0.6), (1, 1), steady), checkpoint=tmp_path, **arguments)


def test_file_left_over_from_another_simulator(tmp_path, short_rounds):
    """The first file may have been removed, as the message about a damaged one says."""
    first, second = decoupled((0.5, 0.5), (1.0, 1.0)), decoupled((0.5, 0.9), (1.0, 1.0))
    empirical_gramians(first, kinds="observability", checkpoint=tmp_path, **TWO)
    left_over = (tmp_path / "outputs-000001.npz").read_bytes()
    (tmp_path / "outputs-000000.npz").unlink()
    empirical_gramians(second, kinds="observability", checkpoint=tmp_path, **TWO)
    (tmp_path / "outputs-000001.npz").write_bytes(left_over)
    with pytest.raises(HankelredError, match="those of another simulator"):
        empirical_gramians(second, kinds="observability", checkpoint=tmp_path, **TWO)


def test_simulator_that_fails_with_all_states_perturbed_at_once(tmp_path):
    """It works for each experiment, so that a checkpoint must not make it fail."""

    def narrow(poles):
        def simulate(x0, u):
            if np.abs(x0).sum() > 1.1:
                raise ValueError("out of range")
            return decoupled(poles, (0.1, 0.1))(x0, u)

        return simulate

    expected = empirical_gramians(narrow((0.5, 0.8)), **TWO)
    for _ in range(2):
        grams = empirical_gramians(narrow((0.5, 0.8)), checkpoint=tmp_path, **TWO)
        assert_equal(grams, expected)
    with pytest.raises(HankelredError, match="those of another simulator"):
        empirical_gramians(narrow((0.5, 0.7)), checkpoint=tmp_path, **TWO)


def test_damaged_checkpoint_is_named(tmp_path):
    empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)
    file = next(tmp_path.glob("states-*.npz"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=r"states-000000.npz cannot be read .*remove it"):
        empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)


def damaged(responses, damage):
    if damage == "NaN":
        responses[1, 0, 3] = np.nan
    return {
        "empty": responses[:0],
        "NaN": responses,
        "too many": np.concatenate([responses, responses]),
        "a number": np.array(3.0),
        "an axis missing": responses[0],
        "rows missing": responses[:, 1:],
        "samples missing": responses[:, :, 1:],
        "text": responses.astype(str),
    }[damage]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "0 responses, expected from 1 to 4"),
        ("NaN", "values that are not finite"),
        ("too many", "8 responses, expected from 1 to 4"),
        ("a number", "an array of shape"),
        ("an axis missing", "an array of shape"),
        ("rows missing", "an array of shape"),
        ("samples missing", "an array of shape"),
        ("text", "an array of type <U"),
    ],
)
def test_file_with_other_contents_is_named(damage, reason, tmp_path):
    """No response made an endless loop, NaN a Gramian of NaN, the others an error of numpy."""
    empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)
    file = next(tmp_path.glob("states-*.npz"))
    with np.load(file) as content:
        arrays = dict(content)
    arrays["responses"] = damaged(arrays["responses"], damage)
    np.savez(file, **arrays)
    with pytest.raises(FileFormatError, match=rf"states-000000.npz cannot be read \({reason}.*remove it"):
        empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)


@pytest.mark.parametrize("witness", [np.array(1.0), np.full((3, 2), np.nan), None])
def test_damaged_witness_is_named(witness, tmp_path):
    empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)
    file = next(tmp_path.glob("outputs-*.npz"))
    with np.load(file) as content:
        arrays = dict(content)
    arrays.pop("witness")
    np.savez(file, **arrays, **({} if witness is None else {"witness": witness}))
    with pytest.raises(FileFormatError, match=r"outputs-000000.npz cannot be read .*remove it"):
        empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", 3):
        with pytest.raises(HankelredError, match="checkpoint must be a folder"):
            empirical_gramians(Counted(), checkpoint=folder, **GRID)


@pytest.mark.parametrize("argument", ["backend", "checkpoint"])
def test_linear_models_need_neither(argument, tmp_path):
    with pytest.raises(HankelredError, match=f"{argument}= is for simulators"):
        empirical_gramians(([[-1.0]], [[1.0]], [[1.0]], 0), **{argument: "loky"})


@pytest.mark.parametrize("backend", ["cluster", 3, object()])
def test_unknown_backend(backend):
    with pytest.raises(HankelredError, match="backend must be one of loky, threading"):
        empirical_gramians(Counted(), backend=backend, **GRID)


def test_dask_without_a_client_is_an_error_of_ours():
    with pytest.raises(HankelredError, match="backend 'dask'"):
        empirical_gramians(Counted(), backend="dask", **GRID)


def test_named_backends_give_the_same_bits():
    expected = empirical_gramians(Counted(), **GRID)
    assert_equal(empirical_gramians(Counted(), backend="threading", **GRID), expected)
    assert_equal(empirical_gramians(Counted(), backend="threading", n_jobs=2, **GRID), expected)


def test_backend_of_joblib_keeps_its_workers_with_a_checkpoint(tmp_path, short_rounds):
    """Rounds were made for one worker, each with one experiment, unless n_jobs or a backend was given."""
    with joblib.parallel_config("threading", n_jobs=2):
        grams = empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)
    files = sorted(file.name for file in tmp_path.glob("states-*.npz"))
    assert files == ["states-000000.npz", "states-000002.npz"]
    assert_equal(grams, empirical_gramians(Counted(), **GRID))


def test_one_worker_without_a_backend_of_joblib(tmp_path, short_rounds):
    empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)
    assert len(list(tmp_path.glob("states-*.npz"))) == 4


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("kinds", KINDS)
def test_warning_of_a_lost_worker_names_the_line_of_the_call(kinds, checkpoint, monkeypatch, tmp_path):
    """It named a line of this package. Both kinds get there by calls of the same depth."""
    parallel, lost = joblib.Parallel, []

    def lost_once(**options):
        if not lost:
            lost.append(True)
            raise BrokenExecutor
        return parallel(**options)

    monkeypatch.setattr(joblib, "Parallel", lost_once)
    with pytest.warns(RuntimeWarning, match="its experiments are run again") as warned:
        empirical_gramians(Counted(), kinds=kinds, checkpoint=tmp_path if checkpoint else None, **GRID)
    assert [warning.filename for warning in warned] == [__file__]


PROGRAM = """
import sys, time
import numpy as np
from hankelred import empirical_gramians
from hankelred.empirical import experiments
experiments._ROUND_SECONDS = 0.05

def simulate(x0, u):
    time.sleep(0.02)
    x = np.empty((12, u.shape[1]))
    state = x0
    for k in range(u.shape[1]):
        x[:, k] = state
        state = np.tanh(0.6 * state + np.roll(state, 1) / 5 + u[0, k] * np.arange(12) / 12)
    return x, x[:1]

grams = empirical_gramians(simulate, dt=True, horizon=40, n_states=12, n_inputs=1, checkpoint=sys.argv[1])
print(grams.controllability.tobytes().hex() + grams.observability.tobytes().hex())
"""


@pytest.mark.slow
def test_killed_call_goes_on_with_the_same_bits(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(folder):
        command = [sys.executable, str(program), str(tmp_path / folder)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    expected = start("whole").communicate(timeout=60)[0]
    kills = 0
    for _ in range(2):
        process = start("killed")
        before = len(list((tmp_path / "killed").glob("*.npz"))) if kills else 0
        for _ in range(600):
            if len(list((tmp_path / "killed").glob("*.npz"))) >= before + 2 or process.poll() is not None:
                break
            time.sleep(0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills
    assert start("killed").communicate(timeout=60)[0] == expected
    assert len(expected) == 2 * 12 * 12 * 8 * 2 + 1


class Crashing:
    """Kills its own process at one run, each time until a file says that it has happened often enough."""

    def __init__(self, folder, times):
        self.folder, self.times = folder, times

    def __call__(self, x0, u):
        if x0[2] > 0:
            for k in range(self.times):
                try:
                    (self.folder / str(k)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return Counted()(x0, u)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_lost_worker_costs_a_round(tmp_path):
    expected = empirical_gramians(Counted(), **GRID)
    with pytest.warns(RuntimeWarning, match="its experiments are run again"):
        grams = empirical_gramians(Crashing(tmp_path, 1), n_jobs=2, **GRID)
    assert_equal(grams, expected)


@pytest.mark.slow
@pytest.mark.xslow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_worker_that_is_always_lost_is_an_error(tmp_path):
    simulate = Crashing(tmp_path, 99)
    with (
        pytest.warns(RuntimeWarning, match="run again"),
        pytest.raises(ModelError, match=r"ended twice.*in the checkpoint"),
    ):
        empirical_gramians(simulate, n_jobs=2, checkpoint=tmp_path / "run", **GRID)
    assert list((tmp_path / "run").glob("states-*.npz"))
