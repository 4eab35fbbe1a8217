"""A comparison made in parts by several processes, put together, is the one made by one process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from helpers.commands import command
from helpers.comparisons import small_comparison
from transformers import AutoModelForCausalLM

from hankelred_llm.errors import ExperimentError
from hankelred_llm.experiments import compare as comparison_module
from hankelred_llm.experiments.base_models import small_model
from hankelred_llm.experiments.compare import compare, compare_one
from hankelred_llm.experiments.evaluate import evaluate
from hankelred_llm.experiments.records import read_records
from hankelred_llm.tasks import get_task


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    base = small_model(tmp_path_factory.mktemp("base") / "small", pretrained=False)
    methods = ["hrm-attention static_readouts=[q_proj,k_proj]", "lora-qv"]
    out = tmp_path_factory.mktemp("whole")
    return small_comparison(str(base), methods, out, learning_rates=[3e-3, 3e-2])


@pytest.fixture(scope="module")
def whole(settings):
    return compare(settings)


@pytest.fixture(scope="module")
def parts(settings, tmp_path_factory):
    """Every run in a folder of its own: first those that choose rates, then those at the best rate."""
    folder = tmp_path_factory.mktemp("parts")
    for name in settings.methods:
        for rate in settings.rates(name):
            out = folder / f"tuning-{len(list(folder.iterdir()))}"
            compare_one(replace(settings, out=str(out)), f"{name},{rate},100")
    tuning = sorted(folder.iterdir())
    for name in settings.methods:
        for seed in settings.seeds:
            out = folder / f"final-{len(list(folder.iterdir()))}"
            compare_one(replace(settings, out=str(out)), f"{name},best,{seed}", merge=tuning)
    return sorted(folder.iterdir())


def scores(comparison):
    return {
        (length, line.method): (line.learning_rate, line.scores, line.ranks, line.difference)
        for length, lines in comparison.lines.items()
        for line in lines
    }


def test_the_parts_are_the_whole(settings, whole, parts, tmp_path, monkeypatch):
    assert len(parts) == 8
    monkeypatch.setattr(comparison_module, "train", None)  # nothing is trained again
    together = compare(replace(settings, out=str(tmp_path / "out")), merge=parts)
    assert scores(together) == scores(whole)
    assert together.reference == whole.reference
    runs = [r for r in read_records(together.folder / "results.jsonl") if r["kind"] == "run"]
    assert len(runs) == 8
    # the merged folder stands alone: merging is not needed again
    assert scores(compare(replace(settings, out=str(tmp_path / "out")))) == scores(whole)


@pytest.mark.slow
@pytest.mark.xslow
@pytest.mark.skipif(os.name == "nt", reason="a script of the shell")
def test_the_jobs_of_an_array_are_the_parts(settings, parts, tmp_path):
    root = Path(__file__).resolve().parents[3]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(asdict(settings)))
    (tmp_path / "runs.txt").write_text("lora-qv,0.003,100\nlora-qv,best,1\n")
    python = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
    }
    tuning = [f"--merge={part}" for part in parts if part.name.startswith("tuning")]
    for index, merged in enumerate(([], tuning)):
        subprocess.run(
            ["sh", str(root / "examples/cluster/job_array.sh"), "study.yaml", "runs.txt", "job", *merged],
            cwd=tmp_path,
            env=os.environ | python | {"SLURM_ARRAY_TASK_ID": str(index)},
            check=True,
            timeout=300,
        )

    def runs(folders):
        records = [r for folder in folders for r in read_records(folder / "results.jsonl")]
        found = [r for r in records if r["kind"] == "run" and r["method"] == "lora-qv"]
        return {(r["learning_rate"], r["seed"]): (r["losses"], r["validation"]) for r in found}

    jobs = runs([tmp_path / "job-0", tmp_path / "job-1"])
    assert len(jobs) == 3 and jobs.items() <= runs(parts).items()


def test_a_part_is_not_repeated(settings, parts, monkeypatch):
    monkeypatch.setattr(comparison_module, "train", None)
    final = next(path for path in parts if path.name.startswith("final"))
    record = compare_one(replace(settings, out=str(final)), "lora-qv,0.003,100")
    assert record.phase == "tuning" and record.validation


def test_nothing_is_merged_after_the_test(settings, whole, parts, tmp_path):
    with pytest.raises(ExperimentError, match="test split has been read, and no runs can be merged"):
        compare(replace(settings, out=str(tmp_path)), merge=[whole.folder])
    other = replace(settings, seeds=[0, 1, 2], out=str(tmp_path / "other"))
    compare_one(other, "lora-qv,0.003,2")
    with pytest.raises(ExperimentError, match="test split has been read, and no runs can be merged"):
        compare(settings, merge=[tmp_path / "other"])


def test_the_command_that_merged_can_be_given_again(settings, whole, parts):
    """After the test split was read it was refused, so that an interrupted report could not be finished."""
    assert scores(compare(settings, merge=parts)) == scores(whole)


def test_parts_of_another_configuration_are_refused(settings, parts, tmp_path):
    with pytest.raises(ExperimentError, match="another configuration: steps is 3 there and 4 here"):
        compare(replace(settings, steps=4, out=str(tmp_path / "a")), merge=parts[:1])
    with pytest.raises(ExperimentError, match=r"nowhere has no results\.jsonl"):
        compare(replace(settings, out=str(tmp_path / "b")), merge=[Path("nowhere")])


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("lora-qv", "give METHOD,RATE,SEED"),
        ("lora-qv,fast,0", "with a number or 'best' as rate"),
        ("lora-qw,0.003,0", "'lora-qw' is not among methods; did you mean 'lora-qv'"),
        ("lora-qv,0.004,0", r"rate 0.004 is not in the grid of method 'lora-qv', \[0.003, 0.03\]"),
        ("lora-qv,0.003,7", "seed 7 is neither among"),
        ("lora-qv,best,0", "no best rate yet; still to be run: 0.003 from seed 100, 0.03 from seed 100"),
    ],
)
def test_runs_that_belong_to_no_comparison(settings, tmp_path, only, message):
    with pytest.raises(ExperimentError, match=message):
        compare_one(replace(settings, out=str(tmp_path)), only)


@pytest.mark.parametrize("rate", ["0.003", "best"])
def test_no_run_chooses_the_only_rate(settings, tmp_path, monkeypatch, rate):
    """With one rate, a run from a seed of tuning_seeds was trained and recorded, and belonged to nothing.

    No run of the comparison has that seed then: the training was in vain, without a word.
    """
    monkeypatch.setattr(comparison_module, "train", None)  # nothing is trained
    one_rate = replace(settings, learning_rates=[3e-3], out=str(tmp_path))
    with pytest.raises(ExperimentError, match=r"'lora-qv' has one learning rate.*take one of seeds \[0"):
        compare_one(one_rate, f"lora-qv,{rate},100")
    assert not any(r["kind"] == "run" for r in read_records(tmp_path / "results.jsonl"))


def test_from_the_command_line_and_in_plain_sentences(settings, tmp_path):
    """The same for a task of texts: bytes are read, so that answers have several tokens."""
    config = {"task": "where_is", "task_options": {"questions": 1}, "methods": ["hrm", "lora-qv"]}
    config |= {"model": settings.model, "learning_rates": [0.01], "length": 250, "test_lengths": [250]}
    config |= {"steps": 2, "batch_size": 2, "test_size": 8, "validation_size": 4, "seeds": [0]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    call = ("compare", "--config", tmp_path / "config.yaml", "--out")
    status, out, err = command(*call, tmp_path / "one", "--only", "hrm,0.01,0")
    assert (status, err) == (0, "") and "hrm, rate 0.01, seed 0: validation accuracy " in out
    status, out, err = command(*call, tmp_path / "all", "--merge", tmp_path / "one")
    assert (status, err) == (0, "") and "where_is on" in out
    (split,) = [r for r in read_records(tmp_path / "all/results.jsonl") if r["kind"] == "split"]
    task = get_task("where_is", questions=1)
    rows = task.test(250, size=8)
    base = AutoModelForCausalLM.from_pretrained(settings.model)
    assert split["floors"] == {**task.baselines(rows), "base": evaluate(base, task, rows).means}
    assert set(split["floors"]) == {"chance", "constant", "last_mention", "base"}
    status, _, err = command(*call, tmp_path / "new", "--only", "hrm,0.1,0")
    assert status == 2 and "rate 0.1 is not in the grid" in err and err.count("\n") == 1
