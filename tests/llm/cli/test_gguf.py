"""Base models in GGUF files: read by every command that takes a model, and remembered by their adapters."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM

import hankelred_llm
from hankelred_llm.cli.main import cli
from hankelred_llm.errors import ExperimentError
from hankelred_llm.experiments import base_models
from hankelred_llm.experiments.base_models import find_model

gguf = pytest.importorskip("gguf")

WIDTH, HIDDEN, LAYERS, HEADS, VOCABULARY = 32, 64, 2, 4, 264


def write_gguf(path, seed=0):
    """Write a Llama with random weights, as llama.cpp's converter would."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    rng = np.random.default_rng(seed)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH)}
    for k in range(LAYERS):
        shapes |= {f"blk.{k}.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{k}.ffn_{name}": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes |= {f"blk.{k}.ffn_down": (WIDTH, HIDDEN)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (0.2 * rng.standard_normal(shape)).astype(np.float32))
    for name in ("output_norm", *(f"blk.{k}.{norm}_norm" for k in range(LAYERS) for norm in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf")
    write_gguf(path / "tiny.gguf")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    # sentences of different lengths: one that is repeated gave equal rows, and spectra of zeros
    path.write_text(" ".join(f"fox {k} jumps over {k * k} lazy dogs." for k in range(300)))
    return path


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def train(folder, out, *more):
    return run(
        *("train", "--task", "flip_flop", "--length", 16, "--steps", 2, "--batch-size", 2),
        *("--validation-size", 4, "--method", "hrm-mlp r=4", "--model", folder, "--out", out, *more),
    )


def test_trained_adapter_remembers_the_file(folder, corpus, tmp_path):
    """spectra and reduce then need only the adapter."""
    result = train(folder, tmp_path / "run", "--gguf-file", "tiny.gguf")
    assert result.exit_code == 0, result.output
    adapter = tmp_path / "run" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_gguf_file"] == "tiny.gguf"
    assert config["base_model_name_or_path"] == str(folder)
    assert "gguf_file='tiny.gguf'" in (adapter / "README.md").read_text()
    spectra = run("spectra", adapter, "--data", corpus, "--length", 32, "--batches", 2, "--batch-size", 2)
    assert spectra.exit_code == 0, spectra.output
    reduced = run("reduce", adapter, "--order", 2, "--out", tmp_path / "small")
    assert reduced.exit_code == 0, reduced.output
    again = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert again["base_gguf_file"] == "tiny.gguf"


def test_saving_says_nothing_of_a_missing_config(tmp_path, monkeypatch):
    # peft took the folder "models" for a repository, and warned at every save that it could not fetch its
    # config.json
    (tmp_path / "models").mkdir()
    write_gguf(tmp_path / "models" / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    base = find_model("models", "float32", gguf_file="tiny.gguf").load()
    model = hankelred_llm.attach(base, r=2, base_gguf_file="tiny.gguf")
    model.peft_config["default"].base_model_name_or_path = "models"

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("peft.utils.other.file_exists", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained("out")


def test_path_of_the_file_is_enough(folder, corpus):
    options = ("--data", corpus, "--length", 32, "--batches", 2, "--batch-size", 2)
    by_path = run("spectra", folder / "tiny.gguf", *options)
    by_name = run("spectra", folder, "--gguf-file", "tiny.gguf", *options)
    assert by_path.exit_code == by_name.exit_code == 0, by_path.output
    tables = [
        [line for line in result.output.splitlines() if "layer" in line or "state" in line]
        for result in (by_path, by_name)
    ]
    assert tables[0] and tables[0] == tables[1]


def test_weights_are_those_of_the_file(folder):
    model = find_model(str(folder), "float32", gguf_file="tiny.gguf").load()
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(folder / "tiny.gguf").tensors}
    torch.testing.assert_close(
        model.model.layers[1].mlp.down_proj.weight,
        torch.tensor(tensors["blk.1.ffn_down.weight"].reshape(WIDTH, HIDDEN)),
    )


def test_versions_of_two_files_differ(tmp_path):
    """Results of two files must not be mixed in one folder: the version is a hash of the file."""
    for seed, name in enumerate(("a.gguf", "b.gguf")):
        write_gguf(tmp_path / name, seed)
    versions = {find_model(str(tmp_path), "float32", gguf_file=name).version for name in ("a.gguf", "b.gguf")}
    assert len(versions) == 2


def test_attach_in_python_remembers_the_only_file(folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf")
    model = hankelred_llm.attach(base, r=4)
    model.save_pretrained(tmp_path)
    from peft import AutoPeftModelForCausalLM

    config = hankelred_llm.HRMConfig.from_pretrained(str(tmp_path))
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path, gguf_file=config.base_gguf_file)
    ids = torch.arange(12)[None] + 4
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_attach_remembers_the_file_of_a_base_that_was_found_by_name(tmp_path):
    # find_model().load() removes the marks of transformers, so that the base can be trained, and attach then
    # recorded no file; the adapter could not be loaded by the name of its base
    for seed, name in enumerate(("a.gguf", "b.gguf")):
        write_gguf(tmp_path / name, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        base = find_model(str(tmp_path / "b.gguf"), "float32").load()
        model = hankelred_llm.attach(base, r=4)
    assert model.peft_config["default"].base_gguf_file == "b.gguf"
    model.save_pretrained(tmp_path / "adapter")
    again = find_model(
        str(tmp_path),
        "float32",
        gguf_file=hankelred_llm.HRMConfig.from_pretrained(str(tmp_path / "adapter")).base_gguf_file,
    ).load()
    ids = torch.arange(12)[None] + 4
    with torch.no_grad():
        assert torch.equal(
            PeftModel.from_pretrained(again, tmp_path / "adapter")(input_ids=ids).logits,
            model.eval()(input_ids=ids).logits,
        )


def test_attach_warns_where_several_files_are_possible(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name)
    with pytest.warns(UserWarning, match="which one is not known"):
        model = hankelred_llm.attach(AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf"), r=4)
    assert model.peft_config["default"].base_gguf_file is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        base = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="b.gguf")
        model = hankelred_llm.attach(base, r=4, base_gguf_file="b.gguf")
    assert model.peft_config["default"].base_gguf_file == "b.gguf"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gguf_file": "missing.gguf"}, "no GGUF file missing.gguf in .*; there is tiny.gguf"),
        ({}, "one of its GGUF files with --gguf-file .tiny.gguf."),
    ],
)
def test_folder_without_that_file(folder, options, message):
    with pytest.raises(ExperimentError, match=message):
        find_model(str(folder), "float32", **options)


@pytest.mark.parametrize("name", ["models/nope.gguf", "nope.gguf", "/nowhere/at/nope.gguf"])
def test_path_of_no_file(name, monkeypatch):
    # a mistyped path was taken for a name on the hub, and failed only after all retries of the network
    def looked_up(*args, **kwargs):
        raise AssertionError("looked up on the hub")

    monkeypatch.setattr(base_models.AutoConfig, "from_pretrained", looked_up)
    with pytest.raises(ExperimentError, match=f"no GGUF file {name}; give the path of a file"):
        find_model(name, "float32")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 64, b"no model"])
def test_damaged_file(tmp_path, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ExperimentError, match="cannot be loaded"):
        find_model(str(tmp_path), "float32", gguf_file="bad.gguf").load()


def test_small_model_has_no_file():
    with pytest.raises(ExperimentError, match="leave gguf_file out"):
        find_model("small", "float32", gguf_file="tiny.gguf")
    with pytest.raises(ExperimentError, match="leave revision out"):
        find_model("small", "float32", revision="main")


def test_four_bits_of_a_gguf_file_are_refused(folder):
    with pytest.raises(ExperimentError, match="cannot be quantized to 4 bits again"):
        find_model(str(folder), "float32", gguf_file="tiny.gguf").load(quantized=True)


def test_without_the_package(folder, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match=r"pip install 'hankelred\[llm,gguf\]'"):
        find_model(str(folder), "float32", gguf_file="tiny.gguf")


def test_revision_reaches_transformers(monkeypatch, tmp_path):
    """A hub name with a revision must not be read from its newest commit."""
    from hankelred_llm.experiments import base_models

    options = {}

    def from_pretrained(source, **keywords):
        options.update(keywords, source=source)
        raise OSError("no such revision")

    monkeypatch.setattr(base_models.AutoConfig, "from_pretrained", from_pretrained)
    monkeypatch.setattr(base_models, "refuse_unreachable", lambda *_: None)  # the hub, which would be asked
    with pytest.raises(ExperimentError, match="no such revision"):
        find_model("owner/name", "float32", revision="v1.0")
    assert options == {"source": "owner/name", "revision": "v1.0"}
