"""An architecture whose cache, mask or positions an adapter cannot read is right or refused, never wrong."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
import transformers
from helpers.models import (
    ARCHITECTURES,
    adapted,
    base_model,
    checkpointed,
    error,
    needs_adapter_methods,
    step_by_step,
    tokens,
    with_random_output,
)
from helpers.renamed import CACHE, boxed_source, model_of, renamed_source
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, MistralForCausalLM

import hankelred_llm
from hankelred_llm import ArchitectureError, HRMConfig, StateError
from hankelred_llm.adapter import self_check as _self_check


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No result of another test."""
    monkeypatch.setattr(_self_check, "_results", {})


@pytest.mark.parametrize("skipped", [False, True], ids=["checked", "unchecked"])
def test_a_cache_of_another_name_is_found(monkeypatch, tmp_path, skipped):
    # transformers 5.24 renamed past_key_values to cache. The adapter looked for the old name, found nothing
    # and ran every cached step from a zero state: full passes were right, generation was wrong in silence.
    monkeypatch.setenv(_self_check.SKIP, "1" if skipped else "0")
    model = with_random_output(
        hankelred_llm.attach(model_of(renamed_source(CACHE, "memory_bank"), tmp_path), r=6)
    ).eval()
    ids = tokens(2, 20)
    with torch.no_grad():
        full = model(ids).logits
        with model.disable_adapter():
            assert error(model(ids).logits, full) > 1e-2
    assert error(step_by_step(model, ids), full) < 2e-6
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))


def test_a_cache_that_the_layers_get_in_another_object_is_refused(monkeypatch, tmp_path):
    base = model_of(boxed_source(), tmp_path)
    with pytest.raises(StateError, match=r"MistralForCausalLM of transformers .* failed the self check"):
        hankelred_llm.attach(base, r=4)
    assert "HRM" not in str(base)
    # and in use, where the check was left out
    monkeypatch.setenv(_self_check.SKIP, "1")
    model, ids = with_random_output(hankelred_llm.attach(base, r=4)).eval(), tokens(1, 6)
    with torch.no_grad():
        model(ids, use_cache=False)
        with pytest.raises(StateError, match="holds 6 tokens, and no decoder layer was called with it"):
            model(ids, use_cache=True)
    with pytest.raises(StateError, match="no decoder layer was called with it"):
        model.generate(ids, max_new_tokens=3)


def _without_copies(monkeypatch):
    """As for a class of which no tiny copy can be made."""
    monkeypatch.setattr(_self_check, "_tiny_config", None)


@pytest.mark.parametrize("name", ["attention_mask", "position_ids"])
def test_masks_and_positions_of_another_name_are_refused(tmp_path, name):
    base = model_of(renamed_source(name, "renamed"), tmp_path)
    with pytest.raises(ArchitectureError, match=rf"transformers {transformers.__version__} .*not {name},"):
        hankelred_llm.attach(base, r=4)
    assert "HRM" not in str(base)


def test_a_cache_that_is_requested_and_not_shown_is_refused(monkeypatch, tmp_path):
    source = renamed_source(CACHE, "memory_bank").replace("if use_cache and memory_bank is None", "if False")
    base = model_of(source, tmp_path)
    monkeypatch.setenv(_self_check.SKIP, "1")
    model, ids = hankelred_llm.attach(base, r=4), tokens(1, 6)
    with pytest.raises(StateError, match="use_cache=True was given, and neither"):
        model(ids, use_cache=True)
    # transformers itself keeps no cache of layers that are computed again
    checkpointed(model).train()(ids, use_cache=True, labels=ids).loss.backward()


def _attach(folder, base):
    return hankelred_llm.attach(base, r=4)


def _get_peft_model(folder, base):
    return peft.get_peft_model(base, HRMConfig(r=4))


def _from_pretrained(folder, base):
    return PeftModel.from_pretrained(base, folder)


def _little_memory(folder, base):
    return PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True)


def _load_adapter(folder, base):
    base.load_adapter(str(folder))
    return base


ROUTES = [
    _attach,
    _get_peft_model,
    _from_pretrained,
    _little_memory,
    pytest.param(_load_adapter, marks=needs_adapter_methods),
]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    with monkeypatch.context() as quiet:
        quiet.setenv(_self_check.SKIP, "1")
        adapted(r=4).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("tiny", [True, False], ids=["copy", "model"])
def test_every_route_checks(monkeypatch, saved, route, tiny):
    if not tiny:
        _without_copies(monkeypatch)
    model, ids = route(saved, base_model()), tokens(1, 5)
    assert list(_self_check._results.values()) == [""]
    assert error(step_by_step(model.eval(), ids), model(ids).logits) < 2e-6
    # a state that gets lost
    monkeypatch.setattr(_self_check, "_results", {})
    monkeypatch.setattr("hankelred_llm.state.cache.HRMState.previous", lambda *_: None)
    base = base_model()
    plain = {name: (p.clone(), p.requires_grad) for name, p in base.named_parameters()}
    with pytest.raises(StateError, match=r"self check: (outputs with a cache differ|the second token)"):
        route(saved, base)
    assert "HRM" not in str(base) and not hasattr(base, "peft_config")
    for name, p in base.named_parameters():
        assert torch.equal(p, plain[name][0]) and p.requires_grad == plain[name][1]
    if tiny:  # the result is kept; that of a model itself is of this model only
        monkeypatch.setattr(_self_check, "_fault_of_copy", None)
        with pytest.raises(StateError, match="self check"):
            route(saved, base_model())
    else:
        assert not _self_check._results
    monkeypatch.setenv(_self_check.SKIP, "1")
    route(saved, base_model())


def test_the_check_is_made_once_for_a_class_and_a_kind_of_adapter(monkeypatch):
    made, check = [], _self_check._fault_of_copy
    monkeypatch.setattr(_self_check, "_fault_of_copy", lambda *args: made.append(args) or check(*args))
    for fields in ({}, {"r": 9}, {"site": "attention"}, {"tap": "output"}, {"eigenvalues": "real"}, {}):
        hankelred_llm.attach(base_model(), **{"r": 4, **fields})
    assert len(made) == len(_self_check._results) == 4


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("valid", "padding did not reach the adapter"),
        ("segment_start", "starts of packed documents did not reach the adapter"),
        ("y", "as if it were absent"),
    ],
)
def test_what_else_the_check_notices(monkeypatch, place, message):
    forward = hankelred_llm.adapter.system.HRMSystem.forward

    def broken(self, x, **kwargs):
        y, s = forward(self, x, **kwargs)
        return (0 * y if place == "y" else y), s

    if place == "y":
        monkeypatch.setattr("hankelred_llm.adapter.system.HRMSystem.forward", broken)
    else:
        read = hankelred_llm.state.forward_context.read_segment_masks
        monkeypatch.setattr(
            "hankelred_llm.state.forward_context.read_segment_masks",
            lambda *a, **k: read(*a, **k)._replace(**{place: None}),
        )
    with pytest.raises(StateError, match=message):
        hankelred_llm.attach(base_model(), r=4)


#: Fields of published models that a copy has to be made with.
PUBLISHED = {
    "llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
              "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    "phi": {"partial_rotary_factor": 0.4},
    "phi3": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48,
             "long_factor": [1.0] * 48, "original_max_position_embeddings": 4096}},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 8, "num_attention_heads": 128,
               "hidden_size": 8192, "num_hidden_layers": 2},
    "gpt_neox": {"rotary_pct": 0.25},
    "gemma3_text": {"sliding_window": 1024},
    "mistral": {"head_dim": 128, "sliding_window": None},
    "deepseek_v3": {},
}  # fmt: skip


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, *(f"{name}-published" for name in PUBLISHED)])
def test_a_copy_of_every_architecture_is_checked(monkeypatch, model_type):
    # where no copy can be made the model itself is checked, which looks at less
    monkeypatch.setattr(_self_check, "_check_model", lambda *_: pytest.fail("no copy could be made"))
    name, _, published = model_type.partition("-")
    if not published:
        hankelred_llm.attach(base_model(name), r=4)
    else:
        with torch.device("meta"):
            config = AutoConfig.for_model(name, **PUBLISHED[name])
            hankelred_llm.attach(AutoModelForCausalLM.from_config(config), r=4, layers_to_transform=[0])
    assert list(_self_check._results.values()) == [""]


@pytest.mark.parametrize(
    "setting",
    [
        lambda base: checkpointed_base(base).train(),
        lambda base: setattr(base.generation_config, "cache_implementation", "static"),
        lambda base: setattr(base.generation_config, "num_return_sequences", 3),
        lambda base: setattr(base.generation_config, "guidance_scale", 1.5),
        lambda base: setattr(base, "generate", None),
        lambda base: base.to(torch.bfloat16),
    ],
    ids=["checkpointing", "static", "samples", "guidance", "no generate", "bfloat16"],
)
def test_settings_of_a_model_are_no_fault(monkeypatch, setting):
    # the model itself was asked to generate, under whatever settings it had
    _without_copies(monkeypatch)
    base = base_model()
    setting(base)
    modes = {name: module.training for name, module in base.named_modules()}
    hankelred_llm.attach(base, r=4)
    assert list(_self_check._results.values()) == [""]
    assert all(base.get_submodule(name).training == training for name, training in modes.items())


def checkpointed_base(base):
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return base


def test_weights_that_are_still_to_come_leave_it_open(monkeypatch):
    _without_copies(monkeypatch)
    base = base_model()
    with torch.no_grad():
        for p in base.parameters():
            p.fill_(torch.nan)
    hankelred_llm.attach(base, r=4)
    assert not _self_check._results


def test_a_refusal_leaves_another_adapter_and_its_modules(monkeypatch):
    # the first adapter was taken out with the refused one, and the head stayed wrapped
    model, ids = adapted(r=4, modules_to_save=["lm_head"]), tokens(1, 5)
    with torch.no_grad():
        before, names = model(ids).logits, set(model.state_dict())
        with monkeypatch.context() as broken:
            _without_copies(broken)
            broken.setattr("hankelred_llm.state.cache.HRMState.previous", lambda *_: None)
            with pytest.raises(StateError, match="self check"):
                model.add_adapter("second", HRMConfig(r=3, tap="output"))
        assert torch.equal(model(ids).logits, before) and set(model.state_dict()) == names


def test_the_check_disturbs_nothing():
    def attached(base):
        torch.manual_seed(11)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model = hankelred_llm.attach(base, r=4)
        return model, torch.rand(1), seen

    base, verbosity = base_model(), transformers.logging.get_verbosity()
    first, after_first, seen = attached(base)
    second, after_second, _ = attached(base_model())  # the result is known
    assert torch.equal(after_first, after_second) and not seen
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert transformers.logging.get_verbosity() == verbosity


def test_a_base_in_half_precision_under_autocast_is_checked_in_single():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hankelred_llm.attach(base_model().to(torch.bfloat16), r=4)
    assert list(_self_check._results.values()) == [""]


def test_a_base_without_memory_is_checked_by_its_copy():
    with torch.device("meta"):
        base = MistralForCausalLM(base_model().config)
        hankelred_llm.attach(base, r=4)
    assert list(_self_check._results.values()) == [""]


def test_a_model_that_cannot_be_run_is_refused(monkeypatch):
    _without_copies(monkeypatch)
    base = base_model()

    def forward(*args, **kwargs):
        raise RuntimeError("pixel_values are needed")

    base.model.norm.forward = forward
    with pytest.raises(StateError, match=r"unknown whether .*pixel_values are needed.*SKIP_SELF_CHECK=1"):
        hankelred_llm.attach(base, r=4)
    assert "HRM" not in str(base) and all(p.requires_grad for p in base.parameters())


def test_the_base_may_have_a_lora():
    base = base_model()
    peft.get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    hankelred_llm.attach(base, r=4)
    assert list(_self_check._results.values()) == [""]
