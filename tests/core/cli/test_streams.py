"""Standard streams that are closed, full, or read by a program that has ended."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import hankelred
from hankelred.cli import main as cli
from hankelred.files import read_model, write_model
from hankelred.models.linear_model import as_model

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")

#: Each command, and the options that print something else on standard output.
COMMANDS = [
    ("hsv", "model.mat"),
    ("hsv", "model.mat", "--json"),
    ("reduce", "model.mat", "--order", "2"),
    ("compare", "model.mat", "--order", "2"),
    ("norm", "model.mat"),
    ("convert", "model.mat", "-"),
    ("convert", "model.mat", "copy.json"),
    ("simulate", "model.mat", "inputs.csv", "--step", "0.1", "--out", "-"),
    ("identify", "record.csv", "--inputs", "0", "--outputs", "1", "--dt", "0.2", "--order", "2"),
    ("fit", "response.csv", "--order", "2"),
    ("hsv", "--help"),
    ("--version",),
    (),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chain = 2 * np.eye(3) - np.eye(3, k=1) - np.eye(3, k=-1)
    A = np.block([[np.zeros((3, 3)), np.eye(3)], [-chain, -0.2 * chain]])
    model = (A, np.eye(6)[:, [3]], np.eye(6)[[2]], 0)
    write_model(as_model(model), "model.mat")
    u = np.random.default_rng(0).standard_normal(200)
    y = hankelred.simulate(model, u, step=0.2)
    np.savetxt("inputs.csv", u, header="u", comments="")
    np.savetxt("record.csv", np.column_stack([u, y]), delimiter=",")
    w = np.geomspace(0.1, 10, 30)
    G = 1 / ((1j * w) ** 2 + 0.2j * w + 1)
    np.savetxt("response.csv", np.column_stack([w, G.real, G.imag]), delimiter=",")
    return tmp_path


def run(*arguments, stdout="", stderr=""):
    """Run the command in this process with streams that are captured, closed (None), or a device."""
    captured = []
    with contextlib.ExitStack() as stack:
        for name, wanted in (("stdout", stdout), ("stderr", stderr)):
            stream = None
            if wanted == "":
                stream = io.TextIOWrapper(io.BytesIO(), write_through=True)
            elif wanted is not None:
                stream = stack.enter_context(open(wanted, "w"))
            captured.append(stream if wanted == "" else None)
            stack.enter_context(getattr(contextlib, f"redirect_{name}")(stream))
        argv, sys.argv = sys.argv, ["hankelred", *arguments]
        stack.callback(setattr, sys, "argv", argv)
        stack.enter_context(warnings.catch_warnings())
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        if stderr is None and sys.stderr is not None:
            sys.stderr.close()
    return status, *("" if s is None else s.buffer.getvalue().decode() for s in captured)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_closed_output_is_refused_before_any_work(folder, arguments):
    """`hsv model.mat >&-` ended in AttributeError; `--json` printed nothing, with exit status 0."""
    message = "error: standard output is closed: redirect it to a file, or to /dev/null\n"
    assert run(*arguments, stdout=None) == (2, "", message)
    assert run(*arguments, stdout=None, stderr=None) == (2, "", "")
    assert not (folder / "copy.json").exists()


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_closed_messages_change_no_result(folder, arguments):
    """Relative: what goes to standard error with --out - must find something there."""
    expected, seen = run(*arguments), run(*arguments, stderr=None)
    assert seen[0] == expected[0] == (0 if arguments else 2)
    # compare prints times
    assert re.sub(r"\d\.\d\d$", "", seen[1], flags=re.M) == re.sub(r"\d\.\d\d$", "", expected[1], flags=re.M)


def test_closed_messages_keep_the_status_of_an_error(folder):
    assert run("hsv", "gone.mat", stderr=None) == (2, "", "")


@full
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_disk_is_reported_in_one_line(folder, arguments):
    """`hsv model.mat > /dev/full` ended in a traceback of OSError."""
    status, _, err = run(*arguments, stdout="/dev/full")
    assert status == 2
    *told, last = err.splitlines()
    assert last == "error: cannot write the output: No space left on device"
    assert not any("Traceback" in line for line in told)


@full
def test_an_error_that_cannot_be_printed_keeps_its_status(folder):
    """Relative: the message of an error raised a second one."""
    assert run("hsv", "gone.mat", stderr="/dev/full") == (2, "", "")
    status, out, _ = run("hsv", "model.mat", stderr="/dev/full")
    assert status == 0 and "noise floor" in out
    assert run("hsv", "model.mat", stdout="/dev/full", stderr="/dev/full") == (2, "", "")


def shell(command):
    """Run a line of the shell; return the status, output and messages."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(hankelred.__file__))}
    line = command.replace("hankelred", f"{sys.executable} -m hankelred")
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such shell")
@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        ("hankelred norm model.mat >&-", 2, "error: standard output is closed"),
        ("hankelred norm model.mat 2>&-", 0, ""),
        # at its end Python writes what is left in a stream, fails again, and exits with status 120
        pytest.param("hankelred norm model.mat >/dev/full", 2, "error: cannot write the output", marks=full),
        pytest.param("hankelred norm gone.mat 2>/dev/full", 2, "", marks=full),
        ("{ hankelred hsv model.mat --json; echo $? >&2; } | head -1", 0, ""),
        ("{ hankelred --help; echo $? >&2; } | true", 0, ""),
    ],
)
def test_at_the_end_of_a_process(folder, command, status, told):
    seen, _, err = shell(command)
    assert seen == status and err.startswith(told), err
    assert "Traceback" not in err and "Exception ignored" not in err and "BrokenPipe" not in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such shell")
def test_a_model_is_written_where_messages_are_closed(folder):
    assert shell("hankelred convert model.mat - 2>&- > copy.json")[0] == 0
    assert np.array_equal(read_model("copy.json").A, read_model("model.mat").A)
