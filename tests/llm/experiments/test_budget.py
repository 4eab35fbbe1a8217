"""Equal numbers of trainable parameters: ranks that come from a budget, counted on what peft really makes."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from helpers.models import base_model
from transformers import MistralConfig, MistralForCausalLM

from hankelred_llm.errors import ExperimentError
from hankelred_llm.experiments.budget import TOLERANCE, check_equal, fit, fixed, parameters_of
from hankelred_llm.experiments.methods import (
    ADAPTER_METHODS,
    add_adapters,
    check_available,
    parse_method,
    trainable,
)

ALL = [name for name in ADAPTER_METHODS if name != "qlora"]


def skeleton():
    with torch.device("meta"):
        return MistralForCausalLM(
            MistralConfig(
                vocab_size=64,
                hidden_size=64,
                intermediate_size=160,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )


@pytest.mark.parametrize("name", [*ALL, "hrm-mlp+lora-all"])
def test_every_method_comes_to_the_budget(name):
    fitted = fit(parse_method(name), 14_400, skeleton)
    assert abs(fitted.parameters / 14_400 - 1) <= TOLERANCE
    # counted again on a model with weights, as it is trained
    model = add_adapters(MistralForCausalLM(skeleton().config), fitted.parts)
    assert trainable(model) == fitted.parameters
    assert fitted.parameters == sum(p.numel() for n, p in model.named_parameters() if p.requires_grad)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in n or "hrm_system" in n for n in names)


def test_shares_of_two_parts():
    fitted = fit(parse_method("hrm-mlp+lora-all share=0.25"), 20_000, skeleton)
    hrm = trainable(add_adapters(skeleton(), fitted.parts[:1]))
    assert hrm / fitted.parameters == pytest.approx(0.25, abs=0.02)


def test_the_papers_budget_is_26_states_a_layer():
    # 212,992 a layer at Mistral-7B's sizes; r = 32 would be 1.23 times as many
    def mistral():
        with torch.device("meta"):
            return MistralForCausalLM(MistralConfig(num_hidden_layers=2))

    budget = parameters_of("lora-qv r=16", mistral)
    assert budget == 2 * 212_992
    fitted = fit(parse_method("hrm-s4d"), budget, mistral)
    assert fitted.parts[0].r == 26 and not fitted.parts[0].larger
    assert fitted.parameters == pytest.approx(budget, rel=1e-3)
    for name in ("lora-all", "lora-mlp", "dora"):
        assert fit(parse_method(name), budget, mistral).parameters == pytest.approx(budget, rel=TOLERANCE)


@pytest.mark.parametrize("model_type", ["gpt_neox", "phi3", "falcon"])
def test_architectures_with_other_names(model_type):
    fitted = fit(parse_method("hrm+lora-mlp"), 6000, lambda: base_model(model_type))
    assert fitted.parameters == pytest.approx(6000, rel=TOLERANCE)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ExperimentError, match="'falcon' has no linear layers for LoRA at 'qv'"):
        fit(parse_method("lora-qv"), 6000, lambda: base_model("falcon"))


def test_a_budget_that_cannot_be_met_is_refused_with_the_numbers():
    with pytest.raises(ExperimentError, match=r"3,360 trainable parameters at rank 1.*budget for it is 900"):
        fit(parse_method("lora-all"), 900, skeleton)
    with pytest.raises(ExperimentError, match=r"'hrm'.*comes no nearer.*than [\d,]+, -?\+?[\d.]+%"):
        fit(parse_method("hrm"), 460, skeleton)


def test_methods_on_both_sides_of_the_budget_must_not_be_too_far_apart():
    smaller, larger = (fixed(parse_method(f"lora-qv r={r}"), skeleton) for r in (50, 52))
    with pytest.raises(ExperimentError, match=r"'lora-qv r=52'.*'lora-qv r=50'.*4.0% apart"):
        check_equal([smaller, larger])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora", "no method 'lora'; did you mean"),
        ("lora-qv+hrm", "only an HRM and a LoRA share a budget"),
        ("adalora", "'adalora' is not compared here: .*; compare dora or lora-qv"),
        ("hrm+adalora", "'adalora' is not compared here"),
        ("hrm stie=mlp", "no option 'stie'; did you mean 'site'"),
        ("hrm site", "'site' is no option"),
        ("hrm+lora-qv share=2", "between 0 and 1"),
        ("hrm share=0.5", "no option 'share'"),
        ("hrm+lora-qv lora_lr_ratio=0", "lora_lr_ratio is '0'; give a positive number"),
        ("hrm lora_lr_ratio=0.3", "no option 'lora_lr_ratio'"),
        ("", "has no name"),
    ],
)
def test_methods_that_mean_nothing(text, message):
    with pytest.raises(ExperimentError, match=message):
        parse_method(text)


def test_r_is_not_given_by_hand_where_it_follows():
    with pytest.raises(ExperimentError, match="r follows from the budget"):
        fit(parse_method("hrm r=8"), 5000, skeleton)


@pytest.mark.parametrize("text", ["many", "lora-qv", "hrm+lora-qv"])
def test_budgets_that_are_no_number(text):
    with pytest.raises(ExperimentError):
        parameters_of(text, skeleton)
    assert parameters_of("4_200", skeleton) == 4200


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_four_bits_need_bitsandbytes():
    with pytest.raises(ExperimentError, match="'qlora' needs bitsandbytes"):
        check_available(parse_method("qlora"))
