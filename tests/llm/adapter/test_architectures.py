"""Every architecture in `ARCHITECTURES` of tests/helpers/models.py; an entry there adds one."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from helpers.models import (
    ARCHITECTURES,
    adapted,
    base_model,
    checkpointed,
    error,
    padded,
    step_by_step,
    tokens,
    with_random_output,
)
from transformers import (
    AutoModelForSequenceClassification,
    MistralConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import hankelred_llm

TOLERANCE = 2e-6
LENGTH, WIDTH = 17, 21
GAPS = {"left": slice(0, 4), "right": slice(17, 21), "middle": slice(6, 10)}
#: Base models whose positions count padding too: padding in the middle of a row changes their own output.
POSITIONS_COUNT_PADDING = {"mpt"}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_output_at_initialization_is_bit_identical_to_the_base(model_type):
    base, ids = base_model(model_type), tokens(2, LENGTH)
    with torch.no_grad():
        before = base(ids).logits
        model = hankelred_llm.attach(base, r=6)
        assert torch.equal(model(ids).logits, before)
        assert error(with_random_output(model)(ids).logits, before) > 1e-2


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_cached_decoding_equals_the_full_forward_pass(model_type):
    model, ids = adapted(model_type), tokens(2, LENGTH)
    with torch.no_grad():
        full = model(ids).logits
    assert error(step_by_step(model, ids), full) < TOLERANCE
    cached = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert torch.equal(
        cached, model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=False)
    )


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("gap", GAPS)
def test_padded_rows_give_the_outputs_of_unpadded_rows(model_type, gap):
    if gap == "middle" and model_type in POSITIONS_COUNT_PADDING:
        pytest.skip("the base model itself changes")
    # a short sliding window would count padding too
    wide = {"window_size": 64} if model_type == "gpt_neo" else {}
    if "sliding_window" in ARCHITECTURES[model_type]:
        wide = {"sliding_window": 64}
    model, ids = adapted(model_type, base=wide), tokens(2, LENGTH)
    batch = padded(ids, GAPS[gap], WIDTH)
    valid = batch["attention_mask"][0].bool()
    if "position_ids" not in inspect.signature(type(model.get_base_model()).forward).parameters:
        del batch["position_ids"]
    with torch.no_grad():
        alone = model(ids).logits
        assert error(model(**batch).logits[:, valid], alone) < TOLERANCE


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(model_type, checkpointing):
    model, ids = adapted(model_type).train(), tokens(2, LENGTH)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model(ids, labels=ids).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert len(plain) == 2 * 5
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    if checkpointing:
        model.zero_grad()
        checkpointed(model)(ids, labels=ids, use_cache=False).loss.backward()
        for name, p in model.named_parameters():
            if p.requires_grad:
                assert error(p.grad, plain[name]) < 1e-5, name


@pytest.mark.parametrize("model_type", ["gpt2", "bloom", "falcon", "gpt_neox", "mistral", "gemma3_text"])
def test_site_attention(model_type):
    model, ids = adapted(model_type, site="attention"), tokens(2, LENGTH)
    with torch.no_grad():
        full = model(ids).logits
        with model.disable_adapter():
            assert error(model(ids).logits, full) > 1e-2
    assert error(step_by_step(model, ids), full) < TOLERANCE


def test_falcon_with_linear_biases():
    """docs/adapter.md lists falcon with ALiBi; the configuration of the other tests has rotary embeddings."""
    model, ids = adapted("falcon", base={"alibi": True}), tokens(2, LENGTH)
    batch = padded(ids, GAPS["left"], WIDTH)
    del batch["position_ids"]
    with torch.no_grad():
        full = model(ids).logits
        assert error(model(**batch).logits[:, 4:], full) < TOLERANCE
    assert error(step_by_step(model, ids), full) < TOLERANCE


def test_every_architecture_is_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs/adapter.md").read_text("utf-8")
    table = page.partition("## Architectures")[2].partition("\n## ")[0]
    assert set(ARCHITECTURES) <= set(re.findall(r"\w+", table))


def test_a_block_without_mlp_module_is_refused_by_name():
    base = base_model("opt", ffn_dim=48, word_embed_proj_dim=32, activation_function="relu")
    with pytest.raises(hankelred_llm.ArchitectureError, match=r"'opt' has no block \['mlp'\].*fc1"):
        hankelred_llm.attach(base)
    assert "HRM" not in str(base)


def test_site_attention_of_opt():
    base = base_model("opt", ffn_dim=48, word_embed_proj_dim=32, activation_function="relu")
    model, ids = with_random_output(hankelred_llm.attach(base, r=4, site="attention")), tokens(2, LENGTH)
    with torch.no_grad():
        full = model(ids).logits
    assert error(step_by_step(model, ids), full) < TOLERANCE


@pytest.mark.parametrize("site", ["mlp", "attention"])
def test_a_block_that_returns_the_residual_stream_has_no_output_tap(site):
    with pytest.raises(hankelred_llm.ConfigError, match="residual stream"):
        hankelred_llm.attach(base_model("bloom"), site=site, tap="output")


def test_encoder_decoders_and_classifiers_are_refused():
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    )
    with pytest.raises(hankelred_llm.ArchitectureError, match=r"'t5'.* no causal language model"):
        hankelred_llm.attach(t5)
    config = MistralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    for model in (
        AutoModelForSequenceClassification.from_config(config),
        base_model().model,
        torch.nn.Linear(2, 2),
    ):
        with pytest.raises(hankelred_llm.ArchitectureError, match=r"AutoModelForCausalLM"):
            hankelred_llm.attach(model)
