"""A comparison from end to end: what is equal for all methods, what is written, resuming, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from helpers.commands import command
from helpers.comparisons import small_comparison
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hankelred_llm.errors import ExperimentError
from hankelred_llm.experiments import compare as comparison_module
from hankelred_llm.experiments.base_models import small_model
from hankelred_llm.experiments.compare import compare
from hankelred_llm.experiments.methods import ADAPTER_METHODS, load_adapter, parse_method
from hankelred_llm.experiments.records import ResultsFile, read_records
from hankelred_llm.experiments.settings import Settings, read_settings
from hankelred_llm.experiments.statistics import paired_difference
from hankelred_llm.tasks import Task, TaskDataError

EXAMPLES = Path(__file__).parents[3] / "examples"
DFA = [[2, 1], [0, 3], [0, 2], [0, 3]]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small_model(tmp_path_factory.mktemp("base") / "small", pretrained=False))


@pytest.fixture(scope="module")
def settings(base, tmp_path_factory):
    methods = ["hrm-attention", "hrm-mlp+lora-qv", "lora-qv"]
    return small_comparison(base, methods, tmp_path_factory.mktemp("comparison"), learning_rates=[3e-3, 1e-2])


@pytest.fixture(scope="module")
def finished(settings):
    return compare(settings)


@pytest.fixture(scope="module")
def records(finished):
    return read_records(finished.folder / "results.jsonl")


def test_every_method_is_tuned_trained_and_tested(settings, finished, records):
    runs = [r for r in records if r["kind"] == "run"]
    tuning = [(r["method"], r["learning_rate"], r["seed"]) for r in runs if r["phase"] == "tuning"]
    assert tuning == [(m, rate, 100) for m in settings.methods for rate in (3e-3, 1e-2)]
    final = [(r["method"], r["seed"]) for r in runs if r["phase"] == "final"]
    assert final == [(m, seed) for m in settings.methods for seed in (0, 1)]
    for method in settings.methods:
        scores = {
            r["learning_rate"]: r["validation"]["accuracy"]
            for r in runs
            if r["phase"] == "tuning" and r["method"] == method
        }
        line = finished.line(method, 8)
        assert scores[line.learning_rate] == max(scores.values()) and line.at_edge
    counts = [line.parameters for line in finished.lines[8]]
    assert max(counts) <= 1.02 * min(counts)


def test_the_test_split_comes_last_and_once(records):
    kinds = [r["kind"] for r in records]
    assert kinds == ["experiment", *["run"] * 12, "split", *["score"] * 6, "split", *["score"] * 6]
    assert [r["length"] for r in records if r["kind"] == "split"] == [8, 32]
    assert [r["test_reads"] for r in records if r["kind"] == "split"] == [[8], [8, 32]]
    # the same rows for everybody
    assert len({tuple(r["units"]) for r in records if r["kind"] == "score" and r["length"] == 8}) == 1


def test_scores_and_differences_come_from_the_records(finished, records):
    scores = {(r["method"], r["seed"]): r for r in records if r["kind"] == "score" and r["length"] == 32}
    line = finished.line("hrm-attention", 32)
    assert line.scores == tuple(scores["hrm-attention", s]["means"]["accuracy"] for s in (0, 1))
    ours, theirs = (
        [np.average(scores[m, s]["per_unit"]["accuracy"], weights=scores[m, s]["weights"]) for s in (0, 1)]
        for m in ("hrm-attention", "lora-qv")
    )
    assert finished.reference == "lora-qv"
    assert line.difference.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    expected = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert line.difference.over_seeds == pytest.approx((expected.low, expected.high))
    assert finished.line("lora-qv", 32).difference is None


def test_intervals_cover_what_they_say():
    """Of 200 comparisons without a difference, about 5 % of the intervals leave out zero."""
    rng = np.random.default_rng(0)
    missed = np.zeros(2)
    for _ in range(200):
        method, reference = rng.standard_normal((2, 4, 60))
        difference = paired_difference(method, reference, np.ones(60), [str(i) for i in range(60)])
        for i, (low, high) in enumerate((difference.over_seeds, difference.over_units)):
            missed[i] += not low < 0 < high
    assert np.all(missed / 200 < 0.1) and np.all(missed / 200 > 0.015)


def test_two_seeds_decide_nothing():
    """The differences of two seeds were equal by chance: -0.142 [-0.142, -0.142]*, and "clearly worse".

    Student's interval of equal differences has width zero, and leaves out zero whatever the seeds are.
    """
    rows = np.random.default_rng(0).random(60)
    for seeds in (1, 2, 3):
        method = np.tile(rows, (seeds, 1))
        difference = paired_difference(method, method + 0.1, np.ones(60), [str(i) for i in range(60)])
        assert difference.seeds == seeds and difference.clear is (seeds == 3)
        assert difference.over_seeds is None or np.ptp(difference.over_seeds) < 1e-12


def test_documents_are_resampled_whole():
    rng = np.random.default_rng(0)
    apart = np.repeat(rng.standard_normal(20), 50)  # all questions of a document agree
    documents = [str(i // 50) for i in range(1000)]
    zero = np.zeros((2, 1000))
    whole = paired_difference(np.stack([apart, apart]), zero, np.ones(1000), documents)
    single = paired_difference(np.stack([apart, apart]), zero, np.ones(1000), ["one"] * 1000)
    assert (whole.resampled, single.resampled) == ("documents", "units")
    width = [d.over_units[1] - d.over_units[0] for d in (whole, single)]
    assert width[0] / width[1] == pytest.approx(np.sqrt(50), rel=0.15)


def test_table_plot_and_summary(finished):
    folder = finished.folder
    table = (folder / "table.md").read_text()
    assert table.count("| hrm-attention |") == 2 and "trivial baselines: chance 0.500" in table
    assert "context 8 tokens" in table and "context 32 tokens" in table
    assert (folder / "scores.png").stat().st_size > 10_000
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["lengths"]["32"]["methods"][0]["method"] == "hrm-attention"
    assert summary["lengths"]["8"]["split"]["split"] == "test"


def test_json_in_the_schema_of_peft(settings, finished):
    files = sorted((finished.folder / "peft").glob("*.json"))
    assert len(files) == 6
    for file in files:
        content = json.loads(file.read_text())
        assert set(content) == {"run_info", "train_info", "meta_info"}
        run, trained, meta = content["run_info"], content["train_info"], content["meta_info"]
        assert set(run) == {
            *("created_at", "total_time", "experiment_name", "peft_branch", "train_config", "peft_config"),
            "error_msg",
        }
        assert set(trained) == {
            *(
                "accelerator_memory_reserved_avg",
                "accelerator_memory_max",
                "accelerator_memory_reserved_99th",
            ),
            *("train_time", "file_size", "num_trainable_params", "num_total_params", "status", "metrics"),
        }
        assert set(meta) == {"model_info", "dataset_info", "package_info", "system_info", "pytorch_info"}
        assert run["train_config"]["optimizer_kwargs"]["weight_decay"] == 0.0
        assert run["peft_config"]["peft_type"] in ("HRM", "LORA")
        assert trained["status"] == "success" and trained["accelerator_memory_max"] > 2**20
        last = trained["metrics"][-1]
        assert {"step", "train loss", "valid accuracy", "test accuracy", "test accuracy at length 32"} <= set(
            last
        )


@pytest.mark.xslow
def test_forgetting_is_what_training_adds_to_the_loss_on_a_text(base, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The {k}th sentence of a text that no training has. " for k in range(80)))
    settings = small_comparison(
        base, ["hrm-attention", "lora-qv"], tmp_path / "out", forgetting_text=str(text)
    )
    result = compare(settings)
    ids = torch.tensor([list(text.read_bytes())])

    def losses(model):
        length = min(1024, model.config.max_position_embeddings)
        starts = np.linspace(0, ids.shape[1] - length, 8).astype(int)
        rows = torch.cat([ids[:, start : start + length] for start in starts])
        with torch.no_grad():
            return float(model.eval()(input_ids=rows, labels=rows).loss)

    before = losses(AutoModelForCausalLM.from_pretrained(base))
    for line in result.lines[settings.length]:
        folders = sorted((tmp_path / "out" / "runs").glob(f"final--{line.method}--*/adapter"))
        after = [losses(load_adapter(AutoModelForCausalLM.from_pretrained(base), f)) for f in folders]
        assert len(after) == 2 and abs(np.mean(after) - before - line.forgetting) < 1e-5
        assert abs(line.forgetting) > 1e-5
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| file MiB | forgetting |" in table and f"| {line.forgetting:+.3f} |" in table
    record = json.loads((tmp_path / "out" / "peft" / "lora-qv--seed0.json").read_text())
    assert abs(record["train_info"]["metrics"][-1]["forgetting"]) > 1e-5


def test_a_text_that_forgetting_cannot_be_measured_on_is_refused_before_training(base, tmp_path):
    settings = small_comparison(base, ["hrm-attention", "lora-qv"], tmp_path, forgetting_text="none.txt")
    with pytest.raises(ExperimentError, match=r"forgetting_text none\.txt cannot be read as a text"):
        compare(settings)


def test_comparisons_that_were_begun_without_a_text_have_the_same_identity(settings):
    assert "forgetting_text" not in settings.identity()
    assert replace(settings, forgetting_text="text.txt").identity()["forgetting_text"] == "text.txt"


@pytest.mark.parametrize(
    ("name", "fields", "rate"), [("default", (32, "mlp"), None), ("tuned", (26, "attention"), 3e-3)]
)
def test_experiments_in_the_form_of_peft(base, finished, name, fields, rate):
    folder = EXAMPLES / "peft_method_comparison" / f"hrm-{name}"
    config = PeftConfig.from_pretrained(folder)
    assert (config.peft_type, config.r, config.site) == ("HRM", *fields)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    training = json.loads((folder / "training_params.json").read_text())
    written = json.loads(next((finished.folder / "peft").glob("*.json")).read_text())
    assert training.keys() <= written["run_info"]["train_config"].keys()
    assert training.get("optimizer_kwargs", {}).get("lr") == rate


def test_a_restart_repeats_nothing(settings, finished, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(comparison_module, "train", refuse)
    monkeypatch.setattr(Task, "test", refuse)
    again = compare(settings)
    assert again.lines == finished.lines


def test_a_file_of_an_earlier_version_is_taken_up(settings, finished, tmp_path, monkeypatch):
    # a setting that is no more, and what else is unknown, made the file one of another configuration
    lines = [json.loads(line) for line in (finished.folder / "results.jsonl").read_text().splitlines()]
    lines[0]["identity"]["calibration_steps"] = 25
    for record in lines[1:]:
        record |= {"calibration_steps": 0, "seconds_calibration": 0.0}
    content = "".join(json.dumps(record) + "\n" for record in lines)
    (tmp_path / "results.jsonl").write_text(content)
    monkeypatch.setattr(comparison_module, "train", None)
    assert compare(replace(settings, out=str(tmp_path))).lines == finished.lines
    assert (tmp_path / "results.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("run", {"seconds_steps": [0.1, "x"]}, "seconds_steps[1] is 'x'; it should be a valid number"),
        ("run", {"losses": []}, "losses is []; it should have at least 1 item"),
        ("run", {"losses": [[1]]}, "losses[0] has no 1"),
        ("run", {"memory": -1}, "memory is -1; it should be greater than or equal to 0"),
        ("run", {"validation": {"accuracy": True}}, "validation['accuracy'] is True"),
        ("run", {"seed": 10**30}, "seed is 1000000000000000000000000000000; it should be less than"),
        ("run", {"file_size": None}, "file_size is None; it should be a valid integer"),
        ("score", {"weights": [1.0]}, "per_unit, weights and documents have different lengths"),
        ("score", {"learning_rate": "0.01"}, "learning_rate is '0.01'; it should be a valid number"),
        ("split", {"floors": {"chance": {}}}, "floors['chance'] is {}; it should have at least 1 item"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_with_its_line(records, tmp_path, kind, change, message):
    number, record = next((i, r) for i, r in enumerate(records, start=1) if r["kind"] == kind)
    lines = [json.dumps(r) for r in records]
    lines[number - 1] = json.dumps({**record, **change})
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ExperimentError) as error:
        read_records(tmp_path / "results.jsonl")
    assert f"line {number}: is no record of results ({message}" in str(error.value)


def test_a_restart_makes_what_is_missing(settings, finished, tmp_path, monkeypatch):
    """A results file that was cut off in the middle of a line resumes after its last complete one."""
    lines = (finished.folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:-7]) + lines[-7][:40])
    (tmp_path / "runs").symlink_to(finished.folder / "runs")
    monkeypatch.setattr(comparison_module, "train", None)
    again = compare(replace(settings, out=str(tmp_path)))
    assert [line.scores for line in again.lines[32]] == [line.scores for line in finished.lines[32]]
    read_records(tmp_path / "results.jsonl")


def test_nothing_is_trained_after_the_test(settings, finished):
    with pytest.raises(ExperimentError, match="test split has been read, and method 'lora-all'"):
        compare(replace(settings, methods=[*settings.methods, "lora-all"]))


def test_another_configuration_is_refused_by_name(settings, finished):
    with pytest.raises(ExperimentError, match="another configuration: steps is 3 there and 4 here"):
        compare(replace(settings, steps=4))


def test_validation_only_leaves_the_test_unread(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Task, "test", None)
    values = {"methods": ["hrm", "lora-qv"], "learning_rates": [1e-2], "validation_only": True}
    comparison = compare(replace(settings, out=str(tmp_path), **values))
    assert comparison.splits[32]["split"] == "validation"


def test_a_rate_that_diverges_is_not_chosen(settings, tmp_path):
    values = {"methods": ["lora-qv"], "learning_rates": [1e-2, 1e38], "seeds": [0], "test_lengths": [8]}
    comparison = compare(replace(settings, out=str(tmp_path / "one"), **values))
    assert comparison.lines[8][0].learning_rate == 1e-2
    with pytest.raises(ExperimentError, match="diverged at every learning rate"):
        compare(replace(settings, out=str(tmp_path / "two"), **{**values, "learning_rates": [1e37, 1e38]}))


# the command line


@pytest.fixture
def flags(base, tmp_path):
    return ["--model", base, "--length", 8, "--steps", 2, "--batch-size", 2, "--out", tmp_path / "out"]


def test_compare_from_yaml_and_flags(base, tmp_path):
    config = {"task": "parity", "methods": ["hrm", "lora-qv"], "learning_rates": {"default": [0.01]}}
    config |= {"model": base, "length": 8, "steps": 2, "batch_size": 2, "test_size": 8, "seeds": [0]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    status, out, err = command(
        *("compare", "--config", tmp_path / "config.yaml", "--task", "majority", "--out", tmp_path / "out")
    )
    assert (status, err) == (0, "")
    assert "majority on" in out and "minus reference" in out


def test_train_and_evaluate(flags, tmp_path):
    arguments = ["train", "--task", "lag_copy", "--task-option", "lag=3", "--method", "hrm r=4", *flags]
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert "hrm r=4 (r 4, 1,034 parameters) on lag_copy" in out
    for _ in range(2):
        status, out, _ = command("evaluate", tmp_path / "out", "--split", "test", "--length", 8)
        assert status == 0 and "baseline: chance" in out
    kinds = [r["kind"] for r in read_records(tmp_path / "out" / "results.jsonl")]
    assert kinds == ["experiment", "run", "score"]
    assert command(*arguments[:-2], "--out", tmp_path / "out", "--seed", 1)[0] == 2


def test_help_has_an_example_for_every_command():
    status, out, _ = command("--help")
    commands = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.startswith("  ")]
    names = [name for name in ("compare", "evaluate", "train") if name in commands]
    assert status == 0 and len(names) == 3
    for name in names:
        status, out, _ = command(name, "--help")
        assert status == 0 and f"Example:\n    hankelred-llm {name}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "paritty"], "no task 'paritty'; did you mean 'parity'"),
        (["--task", "parity", "--method", "lara"], "no method 'lara'"),
        (["--task", "qmsum", "--data-dir", "nowhere"], "data_dir nowhere is no folder"),
        (
            ["--task", "parity", "--length", 8193],
            "holds 8192 positions (max_position_embeddings), and length 8193",
        ),
        (["--task", "parity", "--test-length", 9000], "and test length 9000 of task parity needs 9001"),
        (["--task", "parity", "--model", "nowhere/at-all"], "model 'nowhere/at-all' cannot be loaded"),
        # it was looked up on the hub
        (["--task", "parity", "--model", "./nowhere"], "there is no folder ./nowhere"),
        (["--task", "parity", "--budget", "200"], "the budget for it is 200; give a larger budget"),
        (["--task", "parity", "--reference", "dora"], "reference 'dora' is not among methods"),
        (["--task", "parity", "--task-option", "sede=1"], "no option 'sede'"),
        (["--task", "parity", "--seed", 100], "seed 100 would both choose"),
        (["--task", "parity", "--steps", 0], "steps is 0"),
        (["--task", "parity", "--config", "no.yaml"], "no.yaml cannot be read"),
        ([], "no task is named; give task (in YAML) or --task, as in --task flip_flop"),
        # it said of the number that there is no such method
        (["--task", "parity", "--budget", "huge"], "budget 'huge' is neither a number of parameters nor"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, _, err = command("compare", *flags, *arguments)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_record_that_does_not_parse_is_named(flags, tmp_path):
    folder = tmp_path / "data" / "qmsum"
    folder.mkdir(parents=True)
    for name in ("train", "val"):
        (folder / f"{name}.jsonl").write_text("{}\n{broken\n")
    status, _, err = command("compare", "--task", "qmsum", "--data-dir", folder.parent, *flags)
    assert status == 2 and "train.jsonl, line 1" in err
    assert not (tmp_path / "out").exists()
    (folder / "train.jsonl").unlink()
    status, _, err = command("compare", "--task", "qmsum", "--data-dir", folder.parent, *flags)
    assert status == 2 and "train.jsonl: is not there" in err


def test_unknown_keys_are_named_with_the_nearest(tmp_path):
    (tmp_path / "config.yaml").write_text("task: parity\nsetps: 3\n")
    with pytest.raises(ExperimentError, match=r"unknown key 'setps'; did you mean 'steps'"):
        read_settings(tmp_path / "config.yaml", {})
    (tmp_path / "config.yaml").write_text("task: parity\nsteps: many\n")
    with pytest.raises(ExperimentError, match="steps is 'many'; it should be a valid integer"):
        read_settings(tmp_path / "config.yaml", {})


def test_a_results_file_that_is_none(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"kind": "experiment", "identity": {}}\nnothing\n')
    with pytest.raises(ExperimentError, match=r"results.jsonl, line 2"):
        ResultsFile(path, {})


@pytest.mark.parametrize("name", ["quality", "qmsum", "narrativeqa"])
def test_the_papers_rows_are_ready(name):
    """Every configuration parses, and has the paper's methods, context and model."""
    settings = read_settings(EXAMPLES / "paper" / f"{name}.yaml", {})
    assert (settings.task, settings.length, settings.model) == (name, 2048, "mistralai/Mistral-7B-v0.1")
    parts = [part for method in settings.methods for part in parse_method(method).parts]
    assert all(ADAPTER_METHODS[m] in parts for m in ("hrm-s4d", "lora-qv", "dora", "qlora"))
    assert len(settings.seeds) >= 3 and settings.lengths == (2048,)


def test_texts_from_files(base, tmp_path):
    """Generation, and the share of evidence that survives, on stories made here."""
    folder = tmp_path / "data" / "narrativeqa"
    folder.mkdir(parents=True)
    for split, many in (("train", 3), ("validation", 1)):
        rows = []
        for i in range(many):
            text = " ".join(f"In house {k} of street {i} {split} lives number {k * 7}." for k in range(20))
            document = {
                "id": f"{split}{i}",
                "text": text,
                "summary": {"title": "t", "text": "s"},
                "kind": "book",
            }
            question = {"text": "Who lives in house 2?", "tokens": []}
            rows.append({"document": document, "question": question, "answers": [{"text": "number 14"}]})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    comparison = compare(
        Settings(
            task="narrativeqa",
            data_dir=str(folder.parent),
            model=base,
            methods=["hrm", "lora-qv"],
            learning_rates=[1e-2],
            length=512,
            test_lengths=[512],
            steps=1,
            batch_size=1,
            seeds=[0],
            out=str(tmp_path / "out"),
        )
    )
    assert comparison.metric == "f1" and set(comparison.splits[512]["floors"]) == {
        "chance",
        "constant",
        "base",
    }
    with pytest.raises(TaskDataError):
        compare(
            Settings(task="quality", data_dir=str(folder.parent), model=base, out=str(tmp_path / "other"))
        )
