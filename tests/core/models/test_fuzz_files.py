"""The fuzzer of files detects errors, and reports none in its first cases."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.scripts import load_script

import hankelred
from hankelred.models.linear_model import as_model

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "fuzz_files.py"


@pytest.mark.slow
@pytest.mark.xslow
def test_its_first_cases_are_read_right_or_refused(tmp_path):
    log = tmp_path / "fuzz.jsonl"
    done = [
        subprocess.run(
            [sys.executable, SCRIPT, "--cases", cases, "--log", log],
            capture_output=True,
            text=True,
            check=False,
        )
        for cases in ("100", "200", "200")
    ]
    assert [one.returncode for one in done] == [0, 0, 0], "".join(one.stdout + one.stderr for one in done)
    counts = [int(cell) for cell in done[1].stdout.splitlines()[-1].split("|")[2:-1]]
    assert counts[0] == 200 and counts[1] > 125 and counts[2] > 25
    assert counts[3:8] == [0] * 5
    # a second run resumes: finished cases are not repeated
    assert done[2].stdout == done[1].stdout
    assert len(log.read_text().splitlines()) == 200


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(SCRIPT.parent))
    yield load_script(SCRIPT)
    sys.path.remove(str(SCRIPT.parent))


def test_crashes_and_hangs_are_counted_and_the_rest_goes_on(fuzz, monkeypatch):
    # A fuzzer that cannot fail proves nothing.
    child = """
import json, os, signal, sys
for number in range(int(sys.argv[-2]), int(sys.argv[-1])):
    print(json.dumps({"start": number}), flush=True)
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        signal.setitimer(signal.ITIMER_PROF, 0.1)
        while True:
            pass
    result = {"case": number, "target": "read_model", "family": "x", "outcome": "accepted", "detail": ""}
    print(json.dumps(result), flush=True)
    if number == 5:
        print(json.dumps({"compare": number}), flush=True)
        os.kill(os.getpid(), signal.SIGBUS)
"""
    monkeypatch.setattr(fuzz, "CHILD", [sys.executable, "-c", child])
    found = fuzz.run(0, 7, None)
    outcomes = [found[number]["outcome"] for number in range(7)]
    assert outcomes == ["accepted", "accepted", "crash", "hang", "accepted", "scipy crashed", "accepted"]
    assert found[2]["detail"] == "SIGSEGV"


def test_wrong_models_and_unclear_messages_are_seen(fuzz, monkeypatch, tmp_path):
    model = as_model(([[-1.0]], [[1.0]], [[1.0]], 0))

    def outcome(result):
        def read(path):
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(fuzz, "read_model", read)
        return fuzz.run_reading("read_model", tmp_path)[0]

    assert outcome(model) == "accepted"
    assert outcome(model.with_matrices(model.A * np.nan, model.B, model.C, model.D)) == "wrong acceptance"
    assert outcome(hankelred.HankelredError("a file without A, B, C")) == "clean error"
    for message in ("two lines\nof text", "\x1b[31mred and more", "x" * 3000):
        assert outcome(hankelred.HankelredError(message)) == "unclear message"
    with pytest.raises(KeyError):
        outcome(KeyError("foreign"))


def test_a_reader_that_reads_something_else_is_seen(fuzz, monkeypatch, tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, A=[[-1.0]], B=[[1.0]], C=[[1.0]])
    assert fuzz.differs(path) == ""
    others = contextlib.nullcontext({"A": np.ones((1, 1)), "B": np.ones(1), "C": np.ones(1)})
    monkeypatch.setattr(fuzz.np, "load", lambda *_, **__: others)
    assert fuzz.differs(path).startswith("A is [-1.] here")
