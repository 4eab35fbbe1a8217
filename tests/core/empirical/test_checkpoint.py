"""A call of hours that was killed started again from nothing, and one lost worker process cost all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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

    def __init__(self, fail_at=None, gain=0.5):
        self.runs, self.fail_at, self.gain = 0, fail_at, gain

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
    assert again.runs == 3  # the unperturbed run, and one of each kind to see that it is the same simulator
    assert len(list((tmp_path / "run").iterdir())) == 2


@pytest.mark.parametrize("fail_at", [2, 4, 6, 11])
def test_interrupted_call_goes_on(fail_at, tmp_path, short_rounds):
    plain = Counted()
    expected = empirical_gramians(plain, **GRID)
    with pytest.raises(KeyboardInterrupt):
        empirical_gramians(Counted(fail_at), checkpoint=tmp_path, **GRID)
    second = Counted()
    assert_equal(empirical_gramians(second, checkpoint=tmp_path, **GRID), expected)
    # what was finished is not run again, but for the unperturbed run and one to compare for each kind
    finished = fail_at - 2
    assert second.runs <= plain.runs - finished + 2


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


def test_checkpoint_of_another_simulator_is_refused(tmp_path):
    """The arguments are the same, so that only a response tells."""
    empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)
    with pytest.raises(HankelredError, match="those of another simulator"):
        empirical_gramians(Counted(gain=0.4), checkpoint=tmp_path, **GRID)


def test_damaged_checkpoint_is_named(tmp_path):
    empirical_gramians(Counted(), checkpoint=tmp_path, **GRID)
    file = next(tmp_path.glob("states-*.npz"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=r"states-000000.npz cannot be read .*remove it"):
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
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_worker_that_is_always_lost_is_an_error(tmp_path):
    simulate = Crashing(tmp_path, 99)
    with (
        pytest.warns(RuntimeWarning, match="run again"),
        pytest.raises(ModelError, match=r"ended twice.*in the checkpoint"),
    ):
        empirical_gramians(simulate, n_jobs=2, checkpoint=tmp_path / "run", **GRID)
    assert list((tmp_path / "run").glob("states-*.npz"))
