"""Training: one curve, however often it is killed; chunks; what checkpoints hold."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import cache_of, with_cache
from helpers.sweeps import sweep
from safetensors.torch import load_file

from hankelred_llm.experiments import trainer as trainer_module
from hankelred_llm.experiments.base_models import small_model
from hankelred_llm.experiments.evaluate import predict
from hankelred_llm.experiments.experiment import open_experiment
from hankelred_llm.experiments.methods import load_adapter
from hankelred_llm.experiments.records import read_records
from hankelred_llm.experiments.settings import Settings
from hankelred_llm.experiments.single_run import one_run, train_into
from hankelred_llm.experiments.train import train
from hankelred_llm.experiments.trainer import AdapterTrainer, arguments, last_checkpoint
from hankelred_llm.tasks import Collator


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(small_model(tmp_path_factory.mktemp("base") / "small", pretrained=False))


def experiment(base, method, **values):
    sizes = {"length": 16, "steps": 12, "batch_size": 4, "save_every": 4, "test_lengths": [16]}
    settings = Settings(task="flip_flop", model=base, methods=[method], **{**sizes, **values})
    return open_experiment(settings, [method])


def run(opened, folder, method, **values):
    return train(opened, method, learning_rate=1e-2, seed=3, folder=folder, **values)


@pytest.mark.parametrize("method", sweep(["hrm-mlp+lora-qv lora_lr_ratio=0.3", "dora", "hrm-mlp"], first=1))
def test_a_run_stopped_at_a_checkpoint_goes_on_to_the_same_curve(base, tmp_path, method, monkeypatch):
    opened = experiment(base, method)
    whole = run(opened, tmp_path / "whole", method)

    def stop(trainer, *args, **kwargs):
        if trainer.state.global_step == 7:
            raise KeyboardInterrupt
        return training_step(trainer, *args, **kwargs)

    training_step = AdapterTrainer.training_step
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(AdapterTrainer, "training_step", stop)
        run(opened, tmp_path / "parts", method)
    assert last_checkpoint(tmp_path / "parts").name == "checkpoint-4"
    parts = run(opened, tmp_path / "parts", method)
    assert parts.record.losses == whole.record.losses
    assert len(parts.record.seconds_steps) == 12
    ours, theirs = dict(parts.model.named_parameters()), dict(whole.model.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.xslow
def test_killed_by_the_system_and_resumed(base, tmp_path):
    """A process is killed with SIGKILL while it trains; given again, its command ends with equal losses."""

    settings = {"task": "flip_flop", "model": base, "length": 16, "steps": 60, "batch_size": 4}
    settings |= {"save_every": 5, "test_lengths": [16]}

    def command(out):
        flags = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in settings.items()
            if name != "test_lengths"
        ]
        flags += ["--test-length=16", "--method=hrm-attention", f"--out={out}"]
        return [sys.executable, "-m", "hankelred_llm", "train", *flags]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(tmp_path / "killed"), env=environment)
    deadline = time.monotonic() + 100
    while not list((tmp_path / "killed").glob("checkpoint-*/complete")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "adapter").exists()
    reached = last_checkpoint(tmp_path / "killed")
    assert reached is not None and reached.name != "checkpoint-60"
    subprocess.run(command(tmp_path / "killed"), env=environment, check=True)
    train_into(one_run("hrm-attention", 0.01, 0, out=str(tmp_path / "whole"), **settings))
    killed, whole = (read_records(tmp_path / name / "results.jsonl")[1] for name in ("killed", "whole"))
    assert killed["losses"] == whole["losses"] and len(killed["losses"]) == 60
    assert killed["validation"] == whole["validation"]


def test_a_checkpoint_that_was_cut_off_is_not_taken(tmp_path):
    for step, complete in ((5, True), (10, True), (15, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "complete").touch()
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()


def test_checkpoints_hold_the_adapter_only(base, tmp_path):
    opened = experiment(base, "hrm-mlp+lora-qv")
    trained = run(opened, tmp_path, "hrm-mlp+lora-qv")
    weights = load_file(last_checkpoint(tmp_path) / "trainable.safetensors")
    assert sum(w.numel() for w in weights.values()) == trained.record.parameters
    written = sum(f.stat().st_size for f in (tmp_path / "adapter").rglob("*.safetensors"))
    assert written == trained.record.file_size < 8 * trained.record.parameters


@pytest.mark.parametrize("method", ["hrm-attention", "hrm-mlp+lora-all", "dora"])
def test_the_saved_adapter_is_the_trained_one(base, tmp_path, method):
    opened = experiment(base, method)
    trained = run(opened, tmp_path, method)
    loaded = load_adapter(opened.base_model(method), tmp_path / "adapter")
    split = opened.validation(16)
    batch = Collator(opened.task.pad_token_id, prompts=True)(split[:4])
    with torch.no_grad():
        ours, theirs = (m.eval()(**batch).logits for m in (loaded, trained.model))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert all(
        map(np.array_equal, predict(loaded, opened.task, split), predict(trained.model, opened.task, split))
    )


def test_the_rate_of_a_lora_beside_an_hrm_is_a_multiple(base, tmp_path):
    """Adam's first step has the size of the learning rate, whatever the gradient."""
    moved = {}
    for name in ("", " lora_lr_ratio=0.25"):
        method = f"hrm-mlp+lora-qv{name}"
        opened = experiment(base, method, steps=1)
        start = {n: p.detach().clone() for n, p in opened.untrained_model(method, 3).named_parameters()}
        trained = run(opened, tmp_path / f"run{len(moved)}", method).model
        moved[name] = {n: (p - start[n]).abs().max().item() for n, p in trained.named_parameters()}
    ours, theirs = moved[" lora_lr_ratio=0.25"], moved[""]
    lora = [n for n in ours if "lora_B" in n]
    hrm = [n for n in ours if "hrm" in n and n.endswith("C")]
    assert lora and hrm
    for name in lora:
        assert ours[name] == pytest.approx(0.25 * theirs[name], rel=1e-3)
    for name in hrm:
        assert ours[name] == theirs[name] > 0


def test_rows_and_their_order_are_those_of_the_seed(base, tmp_path, monkeypatch):
    """Every method sees the rows of the task's split one after the other."""
    batches = {}
    step = AdapterTrainer.training_step
    for method in ("hrm-mlp", "lora-all"):
        rows = batches[method] = []

        def spy(trainer, model, inputs, items=None, rows=rows):
            rows.append(inputs["input_ids"].clone())
            return step(trainer, model, inputs, items)

        monkeypatch.setattr(AdapterTrainer, "training_step", spy)
        opened = experiment(base, method, accumulation=2)
        run(opened, tmp_path / method, method)
    expected = np.stack([row.input_ids for row in opened.train_rows(3)])
    for rows in batches.values():
        assert np.array_equal(torch.cat(rows).numpy(), expected)


@pytest.fixture
def trainer(base, tmp_path):
    def make(method, chunk, checkpointing=False):
        opened = experiment(base, method)
        model = opened.untrained_model(method, 0)
        # adapters that say something, so that states and gradients are not zero
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad and not p.any():
                    p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        args = arguments(
            tmp_path,
            steps=1,
            rows=4,
            learning_rate=1e-2,
            seed=0,
            save_every=None,
            gradient_checkpointing=checkpointing,
        )
        made = AdapterTrainer(model=model, args=args, train_dataset=opened.train_rows(0), chunk=chunk)
        rows = opened.train_rows(0)[:4]
        batch = Collator(opened.task.pad_token_id)([*rows[:3], opened.task.train(10, size=1)[0]])
        return made, batch

    return make


def gradients(made, batch):
    model = made.model
    model.zero_grad()
    # the first column of labels is asked of nothing
    items = (batch["labels"][:, 1:] != -100).sum()
    loss = made.training_step(model, dict(batch), items)
    return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["hrm-mlp", "hrm-attention", "lora-qv"])
def test_the_loss_in_chunks_is_that_of_whole_rows(trainer, method):
    whole, _ = gradients(*trainer(method, None))
    for chunk in (1, 5, 16, 64):
        assert gradients(*trainer(method, chunk))[0] == pytest.approx(whole, rel=1e-5)


def test_gradients_stop_at_the_border_of_a_chunk(trainer):
    """Against the definition: what comes from before the chunk is a constant.

    The last chunk's loss in chunks has the gradient of a pass over the last chunk with the cache of a pass
    over what came before, made without gradients.
    """
    made, batch = trainer("hrm-mlp", 10)
    ids, labels = batch["input_ids"][:3], batch["labels"][:3]
    time, items = ids.shape[1], (labels[:, 1:] != -100).sum()
    _, computed = gradients(
        made, {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    )
    model = made.model
    model.zero_grad()
    asked = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    losses = []
    for start in range(0, time, 10):
        with torch.no_grad():
            cache = cache_of(model(ids[:, :start], use_cache=True)) if start else None
        logits = model(ids[:, start : start + 10], **with_cache(cache)).logits
        part = asked[:, start : start + 10]
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), part.flatten(), reduction="sum")
        )
    (sum(losses) / items).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.allclose(computed[name], p.grad, atol=1e-6), name
    _, whole = gradients(*trainer("hrm-mlp", None))
    assert any(not torch.allclose(computed[name], whole[name], atol=1e-4) for name in whole)


def test_gradient_checkpointing_changes_nothing(trainer):
    loss, computed = gradients(*trainer("hrm-mlp+lora-qv", None))
    again, same = gradients(*trainer("hrm-mlp+lora-qv", None, checkpointing=True))
    assert loss == pytest.approx(again, rel=1e-6)
    assert all(torch.allclose(computed[name], same[name], atol=1e-6) for name in computed)


def test_the_settings_of_every_run(base, tmp_path):
    args = arguments(tmp_path, steps=50, rows=8, learning_rate=0.1, seed=1, save_every=10, accumulation=2)
    assert (args.warmup_steps, args.max_grad_norm, args.weight_decay) == (5, 1.0, 0.0)
    assert str(args.lr_scheduler_type.value) == "cosine" and args.per_device_train_batch_size == 4


def test_bfloat16_base_with_float32_adapter(base, tmp_path):
    opened = experiment(base, "hrm-mlp", dtype="bfloat16", steps=2)
    trained = run(opened, tmp_path, "hrm-mlp")
    kinds = {p.dtype for p in trained.model.parameters() if p.requires_grad}
    assert kinds == {torch.float32}
    assert next(trained.model.get_base_model().parameters()).dtype == torch.bfloat16
    assert np.isfinite(trained.record.losses[-1][1])


def test_a_diverged_run_says_so(base, tmp_path):
    opened = experiment(base, "lora-all", steps=3)
    record = train(opened, "lora-all", learning_rate=1e30, seed=0, folder=tmp_path).record
    assert record.status == "failed"
    assert json.dumps(asdict(record))


def test_the_small_model_is_the_same_every_time(base, tmp_path):
    again = small_model(tmp_path / "again", pretrained=False)
    ours, theirs = (load_file(Path(folder) / "model.safetensors") for folder in (base, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_can_be_imported_where_there_is_no_resource_module(monkeypatch):
    # `import resource` at the top of the trainer, which exists on Unix only, made the whole training stack
    # impossible to import on Windows. There, the peak of the process is unknown, and everything else works.
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ImportError):
        import resource  # noqa: F401
    spec = importlib.util.spec_from_file_location(
        "hankelred_llm.experiments.on_windows", trainer_module.__file__
    )
    windows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(windows)
    meter = windows.Meter()
    meter.on_step_begin()
    meter.on_step_end()
    assert len(meter.seconds) == 1 and meter.memory is None
    monkeypatch.undo()
    meter.on_step_end()
    assert meter.memory > 2**20
