"""Training: recomputed layers, precision, compilation, the Trainer and TRL."""

from __future__ import annotations

import contextlib
import gc
import os
import weakref

import pytest
import torch
from helpers.models import (
    HYBRID,
    VOCAB,
    adapted,
    base_model,
    cache_of,
    checkpointed,
    error,
    padded,
    step_by_step,
    system_of,
    tokens,
    with_cache,
    with_random_output,
)
from helpers.sweeps import sweep
from safetensors.torch import load_file
from transformers import DynamicCache, StaticCache

import hankelred_llm
from hankelred_llm import HRMConfig
from hankelred_llm.adapter.config import ModeCounts
from hankelred_llm.adapter.system import HRMSystem
from hankelred_llm.state.forward_context import current_layer_call

TOLERANCE = 2e-6


def gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs, use_cache=False).logits.square().mean()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def batches():
    """Padded in mid-row, and packed."""
    ids = tokens(2, 20)
    positions = torch.cat([torch.arange(7), torch.arange(13)])[None].expand(2, -1)
    return {
        "padded": padded(ids, slice(5, 9), 24),
        "packed": {"input_ids": ids, "position_ids": positions},
        "plain": {"input_ids": ids},
    }


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["padded", "packed", "plain"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"site": "attention", "tap": "output", "r": 5}, HYBRID],
    ids=["mlp", "attention, output", "hybrid"],
)
def test_recomputed_layers_give_the_same_gradients(reentrant, kind, fields):
    model = adapted(base={"sliding_window": None}, **fields).train()
    plain = gradients(model, **batches()[kind])
    again = gradients(checkpointed(model, reentrant=reentrant), **batches()[kind])
    assert plain.keys() == again.keys() and len(plain) == (26 if fields is HYBRID else 10)
    for name, gradient in plain.items():
        scale = gradient.abs().max()
        assert scale > 0 and error(again[name] / scale, gradient / scale) < TOLERANCE, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_passes_before_one_backward_pass(reentrant):
    """A recomputed layer sees the padding of its own pass, not of the last one."""
    model = adapted(base={"sliding_window": None}).train()
    first, second = batches()["padded"], batches()["packed"]

    def both():
        model.zero_grad()
        loss = sum(model(**inputs, use_cache=False).logits.square().mean() for inputs in (first, second))
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain = both()
    checkpointed(model, reentrant=reentrant)
    for name, gradient in both().items():
        scale = plain[name].abs().max()
        assert error(gradient / scale, plain[name] / scale) < TOLERANCE, name


def test_checkpointing_switches_the_cache_off_for_the_state_too():
    model = checkpointed(adapted()).train()
    out = model(tokens(2, 6), use_cache=True, labels=tokens(2, 6))
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("base_type", [torch.bfloat16, torch.float16])
def test_float32_states_beside_a_half_precision_base(base_type):
    ids = tokens(2, 20)
    model = with_random_output(hankelred_llm.attach(base_model().to(base_type), r=6)).eval()
    captured = []
    system_of(model).register_forward_hook(lambda _, args, out: captured.append((args[0], *out)))
    with torch.no_grad():
        full = model(ids).logits
        assert full.dtype == base_type
        steps = step_by_step(model, ids)
    x, y, s = captured[0]
    assert x.dtype == base_type and y.dtype == s.dtype == torch.float32
    # the base itself differs by its rounding
    with torch.no_grad(), model.disable_adapter():
        noise = error(step_by_step(model, ids).float(), model(ids).logits.float())
    assert error(steps.float(), full.float()) < 4 * max(noise, torch.finfo(base_type).eps)
    # the states themselves do not
    with torch.no_grad():
        assert error(s.double(), system_of(model).double()(x.double())[1]) < 1e-6


def test_autocast_stays_out_of_the_system():
    model, ids = adapted(), tokens(2, 20)
    captured = []
    system_of(model).register_forward_hook(lambda _, args, out: captured.append((args[0], *out)))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            model(ids)
        x, y, s = captured[0]
        assert y.dtype == s.dtype == torch.float32
        expected = system_of(model)(x)
    assert torch.equal(y, expected[0]) and torch.equal(s, expected[1])


def test_double_precision():
    model, ids = with_random_output(hankelred_llm.attach(base_model().double(), r=6)).eval(), tokens(2, 20)
    with torch.no_grad():
        assert error(step_by_step(model, ids), model(ids).logits) < 1e-13


@pytest.mark.parametrize("negative", [0, 1])
def test_gradients_by_finite_differences(negative):
    system = HRMSystem(
        4, ModeCounts(order=5, pairs=2 - negative, negative=negative), dtype=torch.float64, device="cpu"
    )
    torch.manual_seed(0)
    system.initialize("ring", gate=0.8)
    torch.nn.init.normal_(system.C)
    keep, reset = torch.rand(2, 7) > 0.3, torch.rand(2, 7) > 0.7
    inputs = [torch.randn(2, 7, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)]

    def run(x, state, *_):
        return system(x, state=state, valid=keep, segment_start=reset)

    for each in inputs:
        each.requires_grad_(True)
    assert torch.autograd.gradcheck(run, (*inputs, *system.parameters()))


@pytest.mark.slow
class TestCompiled:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        yield
        torch._dynamo.reset()

    @pytest.mark.parametrize("fields", sweep([HYBRID, {}], first=1), ids=["hybrid", "mlp"])
    def test_without_a_break_in_the_graph(self, fields):
        model, ids = adapted(base={"num_hidden_layers": 1}, **fields), tokens(2, 20)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert error(compiled(ids, use_cache=False).logits, model(ids).logits) < TOLERANCE
            batch = padded(ids, slice(0, 4), 24)
            assert error(compiled(**batch, use_cache=False).logits, model(**batch).logits) < TOLERANCE

    def test_gradients(self):
        model, ids = adapted(base={"num_hidden_layers": 1}), tokens(2, 20)
        plain = gradients(model, input_ids=ids)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        model.zero_grad()
        compiled(ids, use_cache=False).logits.square().mean().backward()
        for name, p in model.named_parameters():
            if p.requires_grad:
                scale = plain[name].abs().max()
                assert error(p.grad / scale, plain[name] / scale) < 1e-5

    @pytest.mark.parametrize("fields", sweep([HYBRID, {}], first=1), ids=["hybrid", "mlp"])
    def test_decoding_with_a_static_cache(self, fields):
        model, ids = adapted(base={"sliding_window": None}, **fields), tokens(2, 20)
        cache = StaticCache(model.config, max_cache_len=32)
        with torch.no_grad():
            full = model(ids).logits
            model(ids[:, :10], **with_cache(cache))
            compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
            for t in range(10, 20):
                out = compiled(ids[:, t : t + 1], **with_cache(cache)).logits
                assert error(out, full[:, t : t + 1]) < TOLERANCE
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_decoding_asks_no_device(monkeypatch):
    """No step of decoding reads a number from the device: on a GPU that would wait for it."""
    model, ids = adapted(), tokens(2, 12)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :10], **with_cache(cache))
        for name in ("__bool__", "__int__", "__float__", "item", "tolist"):
            monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a number was read"))
        system = system_of(model)
        system(torch.randn(2, 1, 32), state=torch.zeros(2, 6))
        system(torch.randn(2, 40, 32), valid=torch.ones(2, 40, dtype=torch.bool))


def test_a_recomputed_layer_leaves_out_the_last_product_of_a_frozen_block():
    """Adapters ran after their block, so that recomputing what they need ran all of it."""
    model = checkpointed(adapted().train(), reentrant=False)
    calls = []
    for layer in model.get_base_model().model.layers:
        for name in ("up_proj", "down_proj"):
            layer.mlp.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    gradients(model, input_ids=tokens(2, 20))
    assert calls.count("up_proj") == 4 and calls.count("down_proj") == 2


@pytest.mark.parametrize("where", ["forward", "backward", "one layer"])
def test_a_step_that_stops_half_way_is_freed(where):
    """What an adapter had said before its block stayed in the pass, and the graph of it holds the pass: a
    circle that no collector sees. Out of memory in a block, caught by the caller, was then for ever."""

    def interrupt(*_):
        raise MemoryError

    model = checkpointed(adapted().train(), reentrant=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    block = model.get_base_model().model.layers[1].mlp.up_proj
    passes = []
    model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(
        lambda *_: passes.append(weakref.ref(current_layer_call().context))
    )
    for attempt in range(3):  # the last one is whole: torch itself may hold the one before
        stops = where if attempt < 2 else "nowhere"
        hook = block.register_forward_hook(interrupt) if stops == "forward" else None
        with contextlib.suppress(MemoryError):
            loss = model(tokens(2, 20), use_cache=False).logits.square().mean()
            hook = block.register_forward_hook(interrupt) if stops == "backward" else None
            torch.autograd.grad(loss, trained[-5:] if stops == "one layer" else trained)
        if hook is not None:
            hook.remove()
        loss = None
    gc.collect()
    assert len(passes) >= 3 and all(this() is None for this in passes)


@pytest.mark.parametrize("first", ["adapter", "hook"])
@pytest.mark.parametrize("double", [lambda _, args: (2 * args[0],), lambda _, args: (args[0].mul_(2),)])
def test_an_adapter_captures_the_input_of_its_block(first, double):
    """A hook that changes what goes into the block counts, whether it was there before the adapter or not.

    An adapter that captured its input before the hook got the old input, and for a new tensor both.
    """
    base = base_model()
    block = base.model.layers[0].mlp
    captured, runs = [], []
    if first == "hook":
        block.register_forward_pre_hook(double)
    model = with_random_output(hankelred_llm.attach(base, r=6)).eval()
    if first == "adapter":
        block.register_forward_pre_hook(double)
    block.register_forward_hook(lambda _, args, out: captured.append((args[0], out)))
    system_of(model).register_forward_hook(lambda _, args, out: runs.append(args[0].clone()))
    before = []
    block.down_proj.register_forward_hook(lambda _, args, out: before.append(out))
    with torch.no_grad():
        model(tokens(2, 9))
        assert len(runs) == 1 and torch.equal(runs[0], captured[0][0])
        y, _ = system_of(model)(captured[0][0])
        assert torch.equal(captured[0][1], before[0] + y)


@pytest.mark.parametrize("kind", ["padded", "packed", "plain"])
def test_a_step_reads_no_number_and_stays_on_the_device(monkeypatch, kind):
    """On the device "meta" there are no numbers, and it takes the way of a GPU: reading one, which would wait
    for a GPU, is an error, and so is a tensor made on the CPU. The base masks by `eager`: with `sdpa`
    transformers itself reads whether there is padding."""
    enabled = torch.is_autocast_enabled  # knows no "meta"
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *of: of != ("meta",) and enabled(*of))
    model = adapted(base={"attn_implementation": "eager"}).to("meta")
    batch = {name: value.to("meta") for name, value in batches()[kind].items()}
    model(**batch, labels=batch["input_ids"]).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 10 and all(p.grad.device.type == "meta" for p in trained)
    with torch.no_grad():
        cache = cache_of(model(**batch, use_cache=True))
        ids = batch["input_ids"][:, :1]
        more = {}
        if kind == "padded":
            more["attention_mask"] = torch.ones(2, batch["attention_mask"].shape[1] + 1, device="meta")
        assert model(ids, **with_cache(cache), **more).logits.device.type == "meta"


class TestTrainer:
    def arguments(self, folder, **more):
        from transformers import TrainingArguments

        return TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
            **more,
        )

    def data(self):
        return [{"input_ids": row, "labels": row} for row in tokens(12, 10)]

    @pytest.mark.parametrize("fields", [{"r": 4}, HYBRID], ids=["mlp", "hybrid"])
    def test_checkpoints_hold_the_adapter_only_and_resume_to_the_same_loss(self, tmp_path, fields):
        from transformers import Trainer

        def run(folder, **more):
            torch.manual_seed(3)
            model = hankelred_llm.attach(base_model(), **fields)
            trainer = Trainer(
                model, self.arguments(folder, max_steps=6, save_steps=3), train_dataset=self.data()
            )
            trainer.train(**more)
            return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

        model, whole = run(tmp_path / "run")
        checkpoint = tmp_path / "run" / "checkpoint-3"
        files = set(os.listdir(checkpoint))
        assert "adapter_model.safetensors" in files and not any("pytorch_model" in name for name in files)
        assert "model.safetensors" not in files
        weights = load_file(checkpoint / "adapter_model.safetensors")
        assert all("_adapter.hrm_" in key for key in weights)
        assert len(weights) == sum(p.requires_grad for p in model.parameters())
        resumed, again = run(tmp_path / "run", resume_from_checkpoint=str(checkpoint))
        assert again[-3:] == pytest.approx(whole[-3:], abs=1e-4) and whole[0] != whole[-1]
        for name, p in model.named_parameters():
            assert error(dict(resumed.named_parameters())[name], p) < TOLERANCE, name

    def test_the_best_model_at_the_end_is_the_whole_one(self, tmp_path):
        # with a LoRA beside the adapter the HRM of the best step was loaded, the LoRA of the last one stayed
        from transformers import Trainer

        torch.manual_seed(3)
        model = hankelred_llm.attach(base_model(), **HYBRID)
        arguments = self.arguments(
            tmp_path,
            max_steps=8,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            lr_scheduler_type="constant",
        )
        arguments.learning_rate = 0.3
        # other random tokens: the loss on them rises while those of the training are learned
        others = [{"input_ids": row, "labels": row} for row in tokens(4, 10, seed=8)]
        trainer = Trainer(model, arguments, train_dataset=self.data(), eval_dataset=others)
        trainer.train()
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert min(losses) < losses[-1]
        assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_trl_packs_as_separate_documents(self, tmp_path):
        trl = pytest.importorskip("trl")
        datasets = pytest.importorskip("datasets")
        documents = [row[: 4 + i].tolist() for i, row in enumerate(tokens(8, 14))]
        model = hankelred_llm.attach(base_model(), r=4)
        trainer = trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(
                output_dir=str(tmp_path),
                max_steps=2,
                per_device_train_batch_size=2,
                packing=True,
                max_length=32,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                learning_rate=1e-2,
                save_steps=2,
                padding_free=True,
                gradient_checkpointing=True,
                bf16=False,
            ),
            train_dataset=datasets.Dataset.from_dict({"input_ids": documents}),
            processing_class=_tokenizer(),
        )
        captured = []
        system_of(model).register_forward_hook(
            lambda _, args, kwargs, out: captured.append((args[0], kwargs["segment_start"])), with_kwargs=True
        )
        trainer.train()
        assert trainer.state.global_step == 2
        assert all(reset is not None and reset.sum() > 1 for _, reset in captured)
        names = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
        assert all("hrm_system" in name for name in names)


def _tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(VOCAB)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t3")),
        pad_token="t0",
        eos_token="t2",
        bos_token="t1",
        unk_token="t3",
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_get_peft_model_in_trl(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    trainer = trl.SFTTrainer(
        model=base_model(),
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=2,
            max_length=32,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=datasets.Dataset.from_dict({"input_ids": tokens(4, 10).tolist()}),
        processing_class=_tokenizer(),
        peft_config=HRMConfig(r=4),
    )
    trainer.train()
    moved = [p.abs().max() for name, p in trainer.model.named_parameters() if name.endswith(".C")]
    assert len(moved) == 2 and all(size > 0 for size in moved)
