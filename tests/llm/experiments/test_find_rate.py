"""The search of a learning rate: the walk, its record, and what the command prints."""

from __future__ import annotations

import json
import math
import re

import pytest
from click.testing import CliRunner

from hankelred_llm.cli.main import cli
from hankelred_llm.errors import ExperimentError
from hankelred_llm.experiments import find_rate as module
from hankelred_llm.experiments.base_models import small_model
from hankelred_llm.experiments.find_rate import find_rate, search
from hankelred_llm.experiments.settings import one_run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small_model(tmp_path_factory.mktemp("base") / "small", pretrained=False))


def settings(base, out, rate=1e-2, **values):
    sizes = {"length": 16, "steps": 24, "batch_size": 4, "test_lengths": [16], "model": base}
    return one_run("lora-qv", rate, 0, task="flip_flop", out=str(out), **{**sizes, **values})


def test_the_walk_ends_where_both_neighbors_are_worse():
    tried = []

    def loss(rate):
        tried.append(rate)
        return abs(math.log10(rate / 2e-4))

    trials = search(1e-2, loss)
    assert [trial.rate for trial in trials] == [3.2e-4, 1e-4, 1e-3, 3.2e-3, 1e-2, 3.2e-2]
    assert len(tried) == len(set(tried)) == len(trials)
    upward = search(1e-4, lambda rate: -rate if rate < 0.02 else rate)
    assert upward[0].rate == 1e-2


def test_from_a_rate_that_diverges_the_walk_goes_down():
    trials = search(0.1, lambda rate: math.inf if rate > 0.005 else rate)
    assert trials[0].rate == 1.0e-7
    trials = search(0.1, lambda rate: math.inf if rate > 0.005 else -rate)
    assert trials[0].rate == 3.2e-3
    assert not math.isfinite(search(0.1, lambda rate: math.inf)[0].loss)


def test_trials_are_recorded_and_not_repeated(base, tmp_path, monkeypatch):
    trials = find_rate(settings(base, tmp_path / "run"))
    assert len(trials) >= 3 and trials == sorted(trials, key=lambda t: t.loss)
    lines = (tmp_path / "run" / "rate" / "results.jsonl").read_text().splitlines()
    runs = [record for record in map(json.loads, lines) if record["kind"] == "run"]
    assert {run["learning_rate"] for run in runs} == {trial.rate for trial in trials}
    assert all(run["seed"] == 1 and run["losses"][-1][0] == 20 for run in runs)
    assert [path.name for path in (tmp_path / "run" / "rate").iterdir() if path.is_dir()] == []

    def no_training(*args, **kwargs):
        raise AssertionError("a recorded trial was trained again")

    monkeypatch.setattr(module, "train", no_training)
    assert find_rate(settings(base, tmp_path / "run")) == trials
    with pytest.raises(ExperimentError, match="another configuration: length is 16 there and 18 here"):
        find_rate(settings(base, tmp_path / "run", length=18))


def test_every_rate_diverges(base, tmp_path, monkeypatch):
    """Losses that are no numbers choose no rate, and the search names what was tried."""
    monkeypatch.setattr(module, "_loss", lambda record: math.inf)
    monkeypatch.setattr(module, "LOWEST", 1e-3)
    with pytest.raises(ExperimentError, match=r"diverged.*at every rate that was tried \(.*0\.01.*\)"):
        find_rate(settings(base, tmp_path / "run"))


def test_the_command_trains_at_the_rate_it_found(base, tmp_path):
    out = tmp_path / "run"
    flags = ["train", "--task", "flip_flop", "--model", base, "--method", "lora-qv", "--length", "16"]
    flags += ["--steps", "20", "--batch-size", "4", "--test-length", "16", "--out", str(out)]
    result = CliRunner().invoke(cli, [*flags, "--find-rate"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    table = re.findall(r"^([\d.e-]+): ([\d.]+)(  \(taken\))?$", result.output, flags=re.MULTILINE)
    assert len(table) >= 3
    rate, loss, mark = min(table, key=lambda line: float(line[1]))
    assert mark and f"rate {rate}, seed 0: last loss" in result.output
    again = CliRunner().invoke(cli, [*flags, "--find-rate"], catch_exceptions=False)
    assert result.output.strip()[-150:] == again.output.strip()[-150:]
    assert f"{rate}: {loss}  (taken)" in again.output


def test_a_rate_beyond_those_that_are_tried_is_refused(base, tmp_path):
    """From 1e-8 the search ended in an IndexError: no rate was tried at all."""
    with pytest.raises(
        ExperimentError, match="begins at learning_rate 1e-08, and tries rates from 1e-07 to 1"
    ):
        find_rate(settings(base, tmp_path / "run", rate=1e-8))
    assert [t.rate for t in search(1.0, lambda rate: rate)][-1] == 1.0


def test_the_folder_of_a_training_at_a_given_rate_is_refused(base, tmp_path):
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(ExperimentError, match="a training whose rate was given, not searched for"):
        find_rate(settings(base, tmp_path))
