"""An architecture whose cache, mask or positions an adapter cannot read is right or refused, never wrong."""

from __future__ import annotations

import time
import warnings

import peft
import pytest
import torch
import transformers
from _models import (
    ARCHITECTURES,
    adapted,
    awake,
    base_model,
    checkpointed,
    error,
    needs_adapter_methods,
    step_by_step,
    tokens,
)
from _renamed import CACHE, boxed_source, model_of, renamed_source
from peft import LoraConfig, PeftModel
from transformers import MistralForCausalLM

import hankelred_llm
from hankelred_llm import ArchitectureError, HRMConfig, StateError, _self_check


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No result of another test."""
    monkeypatch.setattr(_self_check, "_results", {})


@pytest.mark.parametrize("skipped", [False, True], ids=["checked", "unchecked"])
def test_a_cache_of_another_name_is_found(monkeypatch, tmp_path, skipped):
    # transformers 5.24 renamed past_key_values to cache. The adapter looked for the old name, found nothing
    # and ran every cached step from a zero state: full passes were right, generation was wrong in silence.
    monkeypatch.setenv(_self_check.SKIP, "1" if skipped else "0")
    model = awake(hankelred_llm.attach(model_of(renamed_source(CACHE, "memory_bank"), tmp_path), r=6)).eval()
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
    model, ids = awake(hankelred_llm.attach(base, r=4)).eval(), tokens(1, 6)
    with torch.no_grad():
        model(ids, use_cache=False)
        with pytest.raises(StateError, match="holds 6 tokens, and no decoder layer was called with it"):
            model(ids, use_cache=True)
    with pytest.raises(StateError, match="no decoder layer was called with it"):
        model.generate(ids, max_new_tokens=3)


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
        monkeypatch.setattr(_self_check, "_tiny_copy", lambda model, blocks: None)
    model, ids = route(saved, base_model()), tokens(1, 5)
    assert list(_self_check._results.values()) == [""]
    assert error(step_by_step(model.eval(), ids), model(ids).logits) < 2e-6
    # a state that gets lost
    monkeypatch.setattr(_self_check, "_results", {})
    monkeypatch.setattr("hankelred_llm.state.HRMState.previous", lambda *_: None)
    base = base_model()
    with pytest.raises(StateError, match=r"self check: (outputs with a cache differ|the second token)"):
        route(saved, base)
    assert "HRM" not in str(base)
    # the result is kept
    monkeypatch.setattr(_self_check, "_fault", None)
    with pytest.raises(StateError, match="self check"):
        route(saved, base_model())
    monkeypatch.setenv(_self_check.SKIP, "1")
    route(saved, base_model())


def test_the_check_is_made_once_for_a_class(monkeypatch):
    hankelred_llm.attach(base_model(), r=4)
    monkeypatch.setattr(_self_check, "_tiny_copy", None)
    hankelred_llm.attach(base_model(), r=4, site="attention")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("keep", "padding did not reach the adapter"),
        ("reset", "starts of packed documents did not reach the adapter"),
        ("y", "as if it were not there"),
    ],
)
def test_what_else_the_check_notices(monkeypatch, place, message):
    forward = hankelred_llm.adapter.HRMSystem.forward

    def broken(self, x, **kwargs):
        y, s = forward(self, x, **kwargs)
        return (0 * y if place == "y" else y), s

    if place == "y":
        monkeypatch.setattr("hankelred_llm.adapter.HRMSystem.forward", broken)
    else:
        read = hankelred_llm._carrier.read_tokens
        monkeypatch.setattr(
            "hankelred_llm._carrier.read_tokens", lambda *a, **k: read(*a, **k)._replace(**{place: None})
        )
    with pytest.raises(StateError, match=message):
        hankelred_llm.attach(base_model(), r=4)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_copy_of_every_architecture_is_checked(model_type):
    base = base_model(model_type)
    began = time.process_time()
    hankelred_llm.attach(base, r=4)
    assert list(_self_check._results.values()) == [""]
    # told from the fallback by what it checked
    assert _self_check._tiny_copy(base_model(model_type), set()) is not None
    assert time.process_time() - began < 5


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


def test_a_model_that_cannot_generate_is_refused(monkeypatch):
    monkeypatch.setattr(_self_check, "_tiny_copy", lambda model, blocks: None)
    base = base_model()

    def generate(*args, **kwargs):
        raise RuntimeError("pixel_values are needed")

    base.generate = generate
    with pytest.raises(StateError, match=r"unknown whether .*pixel_values are needed.*SKIP_SELF_CHECK=1"):
        hankelred_llm.attach(base, r=4)
    assert "HRM" not in str(base) and all(p.requires_grad for p in base.parameters())


def test_the_base_may_have_a_lora():
    base = base_model()
    peft.get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    hankelred_llm.attach(base, r=4)
    assert list(_self_check._results.values()) == [""]
