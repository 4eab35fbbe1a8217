"""`hankelred-llm spectra` and `reduce`, as a user runs them: tables, files, refusals in one line."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.commands import command
from helpers.data import data_file, shared_folder
from helpers.models import with_random_output
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import hankelred_llm
from hankelred_llm import Calibration, HRMConfig, get_systems, hankel_spectra
from hankelred_llm.analysis import calibration_pass
from hankelred_llm.cli.text_rows import text_batches
from hankelred_llm.experiments.base_models import small_model
from hankelred_llm.tasks import ByteTokenizer, TaskDataError

SHORT = ("--length", 24, "--batches", 3, "--batch-size", 4, "--device", "cpu")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Return a folder with a base model, adapters beside it, and a text."""
    folder = tmp_path_factory.mktemp("stored")
    small_model(folder / "base", pretrained=False)
    for name, site in (("adapter", "mlp"), ("attention", "attention")):
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        torch.manual_seed(3)
        with_random_output(hankelred_llm.attach(model, r=6, site=site)).save_pretrained(folder / name)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder / "lora")
    # numbered: a sentence that is only repeated gave equal rows, and spectra of zeros
    sentences = [f"Night {k} was dark, and the rain fell in torrents. " for k in range(60)]
    (folder / "corpus.txt").write_text("".join(sentences))
    return folder


@pytest.fixture
def folder(stored, tmp_path, monkeypatch):
    """Return a copy of it as the working directory."""
    shutil.copytree(stored, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "here"


def load(folder, name):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / name)


# spectra ------------------------------------------------------


def test_spectra_of_an_adapter(folder):
    status, out, err = command("spectra", "adapter", "--json", "all.json", "--plot", "picture.png")
    assert (status, err) == (0, "")
    expected = hankel_spectra(load(folder, "adapter"))
    assert str(expected) in out
    report = json.loads((folder / "all.json").read_text())
    assert report["layers"]["1"]["exact"] == pytest.approx(expected[1], rel=1e-9)
    assert "empirical" not in report["layers"]["1"] and "ranks" not in report
    for name in ("picture.png", "picture-layers.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"wrote {name}" in out


def test_spectra_of_an_adapter_on_a_text(folder):
    status, out, err = command(
        *("spectra", "adapter", "--data", "corpus.txt", "--budget", 7, "--save", "seen.safetensors", *SHORT)
    )
    assert (status, err) == (0, "")
    model, calibration = load(folder, "adapter"), Calibration.load("seen.safetensors")
    calibration.check(model)
    expected = hankel_spectra(model, calibration)
    assert str(expected) in out and f"{calibration.tokens} tokens, loss {calibration.loss:.4f}" in out
    ranks = expected.suggest_ranks(budget=7)
    pasted = eval(re.search(r"^  (HRMConfig\(.*\))$", out, re.M).group(1))
    assert {i: pasted.modes_of(f"model.layers.{i}.mlp").order for i in ranks} == ranks
    # the bound of the truncated states is printed next to the rank
    for i, rank in ranks.items():
        row = re.search(rf"^layers.{i}.mlp +{rank} .* (\S+)$", out, re.M)
        assert float(row.group(1)) == pytest.approx(2 * expected[i][rank:].sum(), rel=5e-3, abs=1e-300)


def test_the_pattern_names_the_site(folder):
    status, out, _ = command("spectra", "attention", "--tol", 0.1)
    pasted = eval(re.search(r"^  (HRMConfig\(.*\))$", out, re.M).group(1))
    assert status == 0 and isinstance(pasted, HRMConfig) and pasted.site == "attention"
    ranks = hankel_spectra(load(folder, "attention")).suggest_ranks(tol=0.1)
    assert {i: pasted.modes_of(f"model.layers.{i}.self_attn").order for i in ranks} == ranks


def test_spectra_of_a_model_without_adapter(folder):
    status, out, err = command(
        *("spectra", "base", "--data", "corpus.txt", "--budget", 40, "--json", "all.json", *SHORT),
        *("--save", "seen.safetensors", "--plot", "picture.svg"),
    )
    assert (status, err) == (0, "")
    assert "gradient of the loss, before training" in out and "null threshold" in out
    report = json.loads((folder / "all.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    expected = hankel_spectra(model, Calibration.load("seen.safetensors"))
    assert report["layers"]["0"]["gradient"] == pytest.approx(expected[0], rel=1e-9)
    assert report["layers"]["0"]["name"] == "layers.0.mlp"
    assert report["ranks"] == {str(i): n for i, n in expected.suggest_ranks(budget=40).items()}
    spare = 40 - sum(report["ranks"].values())
    assert f"{spare} of the 40 states were given to no layer" in out
    # what was printed can be attached, and started from what was saved
    pasted = re.search(r"^  HRMConfig\((.*)\)$", out, re.M).group(1)
    attached = hankelred_llm.attach(model, eval(f"HRMConfig({pasted})"))
    hankelred_llm.initialize(attached, Calibration.load("seen.safetensors"), "AB")
    assert len(get_systems(attached)) == 2


def test_an_interrupted_command_goes_on(folder, monkeypatch):
    monkeypatch.setattr(calibration_pass, "SAVE_EVERY", 0.0)
    arguments = ["spectra", "base", "--data", "corpus.txt", *SHORT]
    whole = command(*arguments)[1]
    passes, stop_at = [], 2
    forward = calibration_pass._Collector.add

    def counted(self, *args):
        if len(passes) == stop_at:
            raise KeyboardInterrupt
        passes.append(1)
        forward(self, *args)

    monkeypatch.setattr(calibration_pass._Collector, "add", counted)
    status, _, err = command(*arguments)
    assert status == 130 and "with --save it could be resumed" in err
    passes.clear()
    with monkeypatch.context() as rarely:
        rarely.setattr(calibration_pass, "SAVE_EVERY", 60.0)
        status, _, err = command(*arguments, "--save", "seen.safetensors")
    assert status == 130 and "seen.safetensors was not written yet" in err
    passes.clear()
    status, _, err = command(*arguments, "--save", "seen.safetensors")
    assert status == 130 and "the same command resumes from seen.safetensors" in err
    passes.clear()
    status, out, _ = command(*arguments, "--save", "seen.safetensors")
    assert status == 0 and len(passes) == 1
    assert out.replace("wrote seen.safetensors\n", "") == whole
    status, _, err = command(*arguments, "--batches", 2, "--save", "seen.safetensors")
    assert status == 2 and err.count("\n") == 1 and "delete it" in err


# reduce -------------------------------------------------------


def test_reduce_without_data(folder):
    status, out, err = command("reduce", "adapter", "--order", 3, "--out", "smaller")
    assert (status, err) == (0, "")
    model = load(folder, "adapter")
    report = hankelred_llm.reduce(model, order=3)
    assert str(report) in out and "wrote smaller" in out
    smaller = load(folder, "smaller")
    for i, system in get_systems(model).items():
        for mine, theirs in zip(get_systems(smaller)[i], system, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
    written = json.loads((folder / "smaller" / "reduction.json").read_text())
    assert written["layers"]["0"]["order"] == 3 and written["parameters_after"] == report.parameters_after
    before, after = (
        (folder / name / "adapter_model.safetensors").stat().st_size for name in ("adapter", "smaller")
    )
    assert after < before
    config = json.loads((folder / "smaller" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"layers.0.mlp": 3, "layers.1.mlp": 3}
    assert not list(folder.glob(".*"))


def test_reduce_on_a_text_and_by_its_calibration(folder):
    status, out, err = command(
        *("reduce", "adapter", "--budget", 6, "--data", "corpus.txt", "--out", "by-text", *SHORT)
    )
    assert (status, err) == (0, "")
    assert "held-out error" in out and "loss on held-out rows: " in out
    calibrate = ("spectra", "adapter", "--data", "corpus.txt", "--save", "seen.safetensors", *SHORT)
    assert command(*calibrate)[0] == 0
    status, same, err = command(
        *("reduce", "adapter", "--budget", 6, "--calibration", "seen.safetensors", "--out", "by-file")
    )
    assert (status, err) == (0, "") and same.replace("by-file", "by-text") == out
    report = json.loads((folder / "by-text" / "reduction.json").read_text())
    assert sum(layer["order"] for layer in report["layers"].values()) == 6
    # a reduced adapter is one as every other: it generates, and it is reduced again
    model = load(folder, "by-text")
    assert model.generate(input_ids=torch.tensor([[256, 65]]), max_new_tokens=4, do_sample=False).shape[1] > 2
    assert command("reduce", "by-text", "--order", 1, "--out", "least")[0] == 0
    # the calibration is of the adapter before
    status, _, err = command(
        "reduce", "by-text", "--order", 1, "--calibration", "seen.safetensors", "--out", "x"
    )
    assert status == 2 and "calibrate again" in err and not (folder / "x").exists()


def test_reduce_keeps_what_else_is_in_the_folder_of_an_adapter(folder):
    # --overwrite took whole folders that had an adapter_config.json, checkpoints of a training with them
    (folder / "adapter" / "checkpoint-100").mkdir()
    status, _, err = command("reduce", "adapter", "--order", 2, "--out", "adapter", "--overwrite")
    assert status == 2 and "holds more than an adapter (checkpoint-100), which would be lost" in err
    assert (folder / "adapter" / "checkpoint-100").is_dir()
    (folder / "adapter" / "checkpoint-100").rmdir()


def test_reduce_overwrites_adapters_only_and_only_when_told(folder):
    content = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    status, _, err = command("reduce", "adapter", "--order", 2, "--out", "adapter")
    assert status == 2 and "holds an adapter already; give another --out, or --overwrite" in err
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == content
    status, _, err = command("reduce", "adapter", "--order", 2, "--out", "base", "--overwrite")
    assert status == 2 and "base is there already, and no adapter" in err
    (folder / "empty").mkdir()
    assert command("reduce", "adapter", "--order", 2, "--out", "empty")[0] == 0
    assert command("reduce", "adapter", "--order", 2, "--out", "adapter", "--overwrite")[0] == 0
    assert get_systems(load(folder, "adapter"))[0][0].shape == (2,)
    assert not list(folder.glob(".*"))


def test_a_failure_while_writing_leaves_what_was_there(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hankelred_llm.cli.open_model.save_adapter", full)
    content = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    status, _, err = command("reduce", "adapter", "--order", 2, "--out", "adapter", "--overwrite")
    assert status == 2 and "cannot write adapter: No space left on device" in err
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == content
    assert not list(folder.glob(".*"))


def test_the_base_can_be_named(folder):
    (folder / "base").rename(folder / "elsewhere")
    path = folder / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "gone"}))
    status, _, err = command("spectra", "adapter")
    assert status == 2 and "the base of adapter: model 'gone' cannot be loaded" in err and "--base" in err
    assert command("spectra", "adapter", "--base", "elsewhere")[0] == 0
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    status, _, err = command("spectra", "adapter")
    assert status == 2 and "does not name the base model; give it with --base" in err
    assert command("reduce", "adapter", "--base", "elsewhere", "--order", 2, "--out", "smaller")[0] == 0


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", None])
@pytest.mark.parametrize(
    "arguments", [["spectra", "adapter"], ["reduce", "adapter", "--order", 2, "--out", "x"]]
)
def test_a_damaged_configuration(folder, text, arguments):
    # one nested too deeply ended in a traceback, RecursionError
    path = folder / "adapter" / "adapter_config.json"
    path.write_bytes(b"\xff\xfe" if text is None else text.encode())
    status, _, err = command(*arguments)
    assert status == 2 and "Traceback" not in err and err.startswith("error: adapter/adapter_config.json ")
    assert "copy or save the adapter again" in err


# what is refused ----------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spectra", "nowhere"], "model 'nowhere' cannot be loaded"),
        (["spectra", "./nowhere"], "there is no folder ./nowhere; give the folder of a model or an adapter"),
        (["spectra", "adapter", "--base", "base/gone"], "there is no folder base/gone"),
        (
            ["reduce", "adapter", "--base", "./gone", "--order", "2", "--out", "x"],
            "there is no folder ./gone",
        ),
        (["spectra", "base"], "base is a model without adapter, whose spectra are those of a text"),
        (["spectra", "lora"], "lora holds an adapter of type LORA"),
        (["spectra", "outer"], "give that folder"),
        (["spectra", "base", "--base", "base"], "leave --base out"),
        (["spectra", "adapter", "--tol", "1", "--budget", "5"], "give one of them"),
        (["spectra", "adapter", "--tol", "-1"], "tol"),
        (["spectra", "adapter", "--budget", "1"], "budget=1 is less than one state for each of the 2 layers"),
        (["spectra", "adapter", "--device", "gpu"], "device 'gpu' cannot be used here"),
        (["spectra", "adapter", "--save", "x"], "give one with --data"),
        (["spectra", "adapter", "--data", "nothing.txt"], "nothing.txt: is not there; give a text file"),
        (["spectra", "adapter", "--data", "empty.txt"], "empty.txt: has no text"),
        (["spectra", "adapter", "--data", "blank.txt"], "blank.txt: has no text"),
        (["spectra", "adapter", "--data", "lora"], "lora: has no .txt files"),
        (["spectra", "adapter", "--data", "corpus.txt", "--length", "9000"], "take a smaller --length"),
        (["spectra", "base", "--data", "short.txt"], "at least three sequences"),
        (["spectra", "adapter", "--plot", "x.docx"], "a picture ends in"),
        (["spectra", "adapter", "--json", "no/x.json"], "the folder no does not exist"),
        (["spectra", "adapter", "--length", "1"], "--length"),
        (["reduce", "nowhere", "--order", "2", "--out", "x"], "nowhere has no adapter_config.json"),
        (["reduce", "base", "--order", "2", "--out", "x"], "base has no adapter_config.json"),
        (["reduce", "outer", "--order", "2", "--out", "x"], "give outer/adapter"),
        (["reduce", "lora", "--order", "2", "--out", "x"], "lora holds an adapter of type LORA"),
        (["reduce", "adapter", "--order", "2", "--tol", "1", "--out", "x"], "got --order and --tol"),
        (["reduce", "adapter", "--out", "x"], "give one of --order, --tol and --budget, got none"),
        (["reduce", "adapter", "--order", "2"], "Missing option '--out'"),
        (["reduce", "adapter", "--order", "0", "--out", "x"], "order must be at least 1"),
        (["reduce", "adapter", "--order", "2", "--out", "no/x"], "the folder no does not exist"),
        (["reduce", "adapter", "--order", "2", "--out", "corpus.txt"], "is there already, and no adapter"),
        (
            ["reduce", "adapter", "--order", "2", "--calibration", "c", "--out", "x"],
            "there is no calibration c; make it with hankelred-llm spectra adapter --data TEXT --save c",
        ),
        (
            ["reduce", "adapter", "--order", "2", "--calibration", "corpus.txt", "--out", "x"],
            "corpus.txt is no complete calibration",
        ),
        (
            ["reduce", "adapter", "--order", "2", "--calibration", "c", "--data", "corpus.txt", "--out", "x"],
            "give one of them",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, arguments, message):
    shutil.copytree(folder / "adapter", folder / "outer" / "adapter")
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n" * 50)
    (folder / "short.txt").write_text("It was a dark night.")
    status, _, err = command(*arguments)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not (folder / "x").exists()


def test_a_calibration_without_held_out_rows_is_a_warning(folder):
    model = load(folder, "adapter")
    rows = [{"input_ids": torch.randint(0, 256, (4, 16))}]
    hankelred_llm.calibrate(model, rows, held_out=0).save("seen.safetensors")
    status, out, err = command(
        *("reduce", "adapter", "--order", 2, "--calibration", "seen.safetensors", "--out", "smaller")
    )
    assert (
        status == 0 and err.startswith("warning: the calibration held no rows out") and err.count("\n") == 1
    )
    assert "not used: the calibration held no rows out" in out


def test_help_shows_examples_that_work(folder):
    # they named the folder of a training, in which the adapter is in a folder of its own
    shutil.copytree(folder / "adapter", folder / "training" / "adapter")
    for name in ("spectra", "reduce"):
        status, out, _ = command(name, "--help")
        lines = [line.split() for line in out.splitlines() if line.startswith("    hankelred-llm ")]
        assert status == 0 and len(lines) == 2
        for _, *arguments in lines if name == "reduce" else reversed(lines):
            if name == "reduce" and "--calibration" in arguments:
                shutil.rmtree(folder / "smaller")  # of the example before; those of spectra wrote the file
            # the pretrained small model takes a minute to make where it is not there yet
            arguments = ["base" if argument == "small" else argument for argument in arguments]
            if "--order" in arguments:  # the adapter of this folder has 6 states
                arguments[arguments.index("--order") + 1] = "5"
            status, _, err = command(*arguments)
            assert (status, err) == (0, ""), arguments


# rows of a text -----------------------------------------------


def test_rows_are_spread_over_the_text_and_do_not_overlap(tmp_path):
    text = "".join(f"{k:06d} " for k in range(3000))
    (tmp_path / "text.txt").write_text(text)
    batches = text_batches(tmp_path / "text.txt", ByteTokenizer(), length=64, batches=4, batch_size=5)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(5, 64)] * 4
    rows = [ByteTokenizer().decode(row.tolist()) for batch in batches for row in batch["input_ids"]]
    starts = sorted(text.index(row) for row in rows)
    assert np.diff(starts).min() >= 63 and starts[-1] > 0.9 * len(text)
    # rows of a batch are no neighbours, and what is first is not predicted
    assert np.diff(sorted(text.index(row) for row in rows[:5])).min() > 0.15 * len(text)
    for batch in batches:
        assert (batch["labels"][:, 0] == -100).all() and (batch["input_ids"][:, 0] == 256).all()
        assert torch.equal(batch["labels"][:, 1:], batch["input_ids"][:, 1:])


def test_a_short_text_gives_fewer_rows_and_a_folder_all_of_its_files(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 300)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("b" * 300)
    (tmp_path / "c.bin").write_bytes(b"c" * 300)
    batches = text_batches(tmp_path, ByteTokenizer(), length=100, batches=9, batch_size=4)
    rows = [ByteTokenizer().decode(row.tolist()) for batch in batches for row in batch["input_ids"]]
    assert sorted(rows) == ["a" * 99] * 3 + ["b" * 99] * 3
    with pytest.raises(TaskDataError, match="has no row of two tokens"):
        (tmp_path / "one.txt").write_bytes("é".encode()[:1] + b"x")
        text_batches(tmp_path / "one.txt", _NoStart(), length=4, batches=1, batch_size=1)


class _NoStart(ByteTokenizer):
    bos_token_id = None


def test_a_model_without_tokenizer_and_too_few_ids_is_refused(folder):
    from helpers.models import base_model

    base_model().save_pretrained(folder / "narrow")
    status, _, err = command("spectra", "narrow", "--data", "corpus.txt")
    assert status == 2 and "has no tokenizer, and 61 ids are too few for bytes (259)" in err


# a real model -------------------------------------------------


@pytest.mark.xslow
def test_on_a_pretrained_model(tmp_path, monkeypatch):
    data_file("models/stories260K/model.safetensors")
    text = data_file("text/tinyshakespeare.txt")
    base = shared_folder() / "data" / "models" / "stories260K"
    monkeypatch.chdir(tmp_path)
    some = ("--data", text, "--length", 128)
    status, out, err = command("spectra", base, *some, "--budget", 20, "--plot", "before.png")
    assert (status, err) == (0, "")
    assert re.search(r"^layers\.4\.mlp +32 +[1-9]", out, re.M)  # text asks for some memory
    model = hankelred_llm.attach(AutoModelForCausalLM.from_pretrained(base), r=8)
    ids = torch.tensor(AutoTokenizer.from_pretrained(base)(text.read_text()[:20_000])["input_ids"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for rows in ids[: 10 * 4 * 128].view(-1, 4, 128):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained("adapter")
    assert command("spectra", "adapter", *some, "--plot", "after.png", "--save", "seen.safetensors")[0] == 0
    status, out, err = command(
        *("reduce", "adapter", "--order", 4, "--calibration", "seen.safetensors", "--out", "smaller")
    )
    assert (status, err) == (0, "")
    before, after = map(float, re.search(r"held-out rows: (\S+) -> (\S+)", out).groups())
    assert after < before + 0.3
    assert {p.name for p in tmp_path.glob("*.png")} == {
        *("before.png", "before-layers.png", "after.png", "after-layers.png")
    }
