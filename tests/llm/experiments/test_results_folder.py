"""Folders of results: locked, and whole again by the same command after a full disk or a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.sweeps import sweep

import hankelred_llm
from hankelred_llm._util.results_folder import results_folder
from hankelred_llm.errors import ExperimentError
from hankelred_llm.experiments.base_models import small_model
from hankelred_llm.experiments.compare import compare
from hankelred_llm.experiments.records import read_records
from hankelred_llm.experiments.settings import Settings, one_run
from hankelred_llm.experiments.single_run import score_folder, train_into

ROOT = Path(hankelred_llm.__file__).parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small_model(tmp_path_factory.mktemp("base") / "small", pretrained=False))


SIZES = {"task": "flip_flop", "length": 8, "steps": 4, "batch_size": 2, "save_every": 2}
SIZES |= {"test_lengths": [8], "test_size": 8}


def settings(base, out):
    return one_run("hrm-mlp r=2", 0.01, 0, model=base, out=str(out), **SIZES)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    train_into(settings(base, out))
    return out


def test_two_commands_cannot_share_a_folder(base, tmp_path):
    # two compare on one folder: 3 duplicated records, and "Directory not empty" as a traceback
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from hankelred_llm._util.results_folder import results_folder\n"
        "with results_folder(Path(sys.argv[1]), write=True): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout.readline() == b"held\n"
        for start in (
            lambda: train_into(settings(base, tmp_path)),
            lambda: compare(Settings(task="flip_flop", model=base, out=str(tmp_path))),
        ):
            with pytest.raises(ExperimentError, match=rf"another process \(process {other.pid} on .*--out"):
                start()
        with results_folder(tmp_path, write=False):  # another device of the same run
            pass
        other.kill()  # however it ends, the system releases the lock
        other.wait()
    train_into(settings(base, tmp_path))


def limited(base, out, size):
    """Train in a process whose files cannot be longer than `size` bytes, as on a disk that is full."""
    code = (
        "import resource, sys\n"
        "from hankelred_llm.experiments.settings import one_run\n"
        "from hankelred_llm.experiments.single_run import train_into\n"
        "import json; values = json.loads(sys.argv[1])\n"
        "import hankelred_llm.experiments.trainer\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))\n"
        "from hankelred_llm import ExperimentError\n"
        "try: train_into(one_run('hrm-mlp r=2', 0.01, 0, **values))\n"
        "except ExperimentError as error: print(error)\n"
    )
    values = settings(base, out)
    names = (
        "task",
        "length",
        "steps",
        "batch_size",
        "test_lengths",
        "test_size",
        "model",
        "out",
        "save_every",
    )
    content = json.dumps({name: getattr(values, name) for name in names})
    return subprocess.run(
        [sys.executable, "-c", code, content, str(size)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", sweep([100, 5000], first=1))
def test_a_full_disk_is_named_and_the_same_command_resumes(base, tmp_path, trained, size):
    # a traceback of torch, "[enforce fail at inline_container.cc]", or OSError from results.jsonl
    done = limited(base, tmp_path, size)
    assert done.returncode == 0 and "cannot be written" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1 and "resumes from there" in done.stdout
    record = train_into(settings(base, tmp_path))
    expected = read_records(trained / "results.jsonl")[1]
    assert list(map(list, record.losses)) == expected["losses"]
    assert record.validation == expected["validation"]


def test_a_folder_that_cannot_be_made(base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match=r"file.*cannot be written or read"):
        train_into(settings(base, tmp_path / "file" / "out"))


@pytest.mark.parametrize("size", [0, 1, 60])
def test_evaluate_before_the_first_line_is_whole(base, trained, tmp_path, size):
    # IndexError after a kill in the first write
    content = (trained / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(content[:size])
    with pytest.raises(ExperimentError, match="give the same train command again"):
        score_folder(tmp_path, "validation", (), None)
    train_into(settings(base, tmp_path))
    assert len(read_records(tmp_path / "results.jsonl")) == 2


@pytest.mark.parametrize(
    "line",
    [
        *("[]", "5", "{}", '{"kind": 5}', "[" * 100_000, '{"kind": "experiment", "identity": null}', "\xff"),
        *('{"kind": "run"}', '{"kind": "score", "split": "test", "length": 8, "means": {"accuracy": null}}'),
        '{"kind": "score", "split": "test", "length": 8, "means": {"a": 1}, "per_unit": {"a": [1]}}',
    ],
    ids=lambda line: line[:30],
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_line_that_is_no_record(base, trained, tmp_path, line, number):
    # TypeError for a null identity, RecursionError for nested lists, KeyError for what was missing
    lines = (trained / "results.jsonl").read_text().splitlines()
    lines[number] = line
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="latin-1")
    for command in (
        lambda: train_into(settings(base, tmp_path)),
        lambda: score_folder(tmp_path, "test", (), None),
    ):
        with pytest.raises(ExperimentError, match=rf"line {number + 1}: .*"):
            command()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(base, trained, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ExperimentError, match="cannot be written"):
        train_into(settings(base, tmp_path / "out"))
