"""``adapter_names``, an adapter for each row of a batch, was ignored: all rows got the active adapter."""

from __future__ import annotations

import contextlib
import json

import peft
import pytest
import torch
from helpers.models import PAD, adapted, base_model, cache_of, error, tokens, with_cache, with_random_output
from transformers import DynamicCache, GenerationConfig, StaticCache

import hankelred_llm
from hankelred_llm import AdapterError, ConfigError, HRMConfig, StateError

NAMES = ["a", "__base__", "b", "a"]
TOLERANCE = 2e-6


@pytest.fixture
def model():
    """Adapters a, beside the MLPs, and b, beside one of the attention blocks; neither is the active one."""
    model = adapted(r=4)
    model.add_adapter("a", HRMConfig(r=6))
    model.add_adapter("b", HRMConfig(r=5, site="attention", tap="output", layers_to_transform=[1]))
    return with_random_output(model).eval()


def alone(model, name, call):
    """What a call gives where one adapter is active, or none."""
    with contextlib.ExitStack() as stack:
        if name == "__base__":
            stack.enter_context(model.disable_adapter())
        else:
            model.set_adapter(name)
        out = call()
    model.set_adapter("default")
    return out


def test_every_row_gets_its_adapter(model):
    ids = tokens(4, 12)
    with torch.no_grad():
        rows = model(ids, adapter_names=NAMES).logits
        for row, name in enumerate(NAMES):
            row_ids = ids[row : row + 1]
            expected = alone(model, name, lambda row_ids=row_ids: model(row_ids).logits)
            assert error(rows[row : row + 1], expected) < TOLERANCE
            assert (
                name == "a" or error(rows[row : row + 1], model(row_ids, adapter_names=["a"]).logits) > 1e-2
            )
        # the active adapter is as it was
        assert error(model(ids).logits, alone(model, "default", lambda: model(ids).logits)) == 0


def test_with_a_cache_token_by_token(model):
    ids = tokens(4, 12)
    with torch.no_grad():
        full = model(ids, adapter_names=NAMES).logits
        cache, logits = None, []
        for t in range(12):
            out = model(ids[:, t : t + 1], **with_cache(cache), use_cache=True, adapter_names=NAMES)
            cache = cache_of(out)
            logits.append(out.logits)
    assert error(torch.cat(logits, 1), full) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [{}, {"cache_implementation": "static"}, {"num_beams": 3}, {"use_cache": False}],
    ids=["greedy", "static", "beams", "without cache"],
)
def test_generation(model, options):
    ids = torch.nn.functional.pad(tokens(4, 7), (2, 0), value=PAD)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **options}
    both = model.generate(ids, attention_mask=(ids != PAD).long(), adapter_names=NAMES, **options)
    for row, name in enumerate(NAMES):
        row_ids = ids[row : row + 1, 2:]
        expected = alone(model, name, lambda row_ids=row_ids: model.generate(row_ids, **options))
        assert torch.equal(both[row, 9:], expected[0, 7:])


def test_several_samples_of_a_row(model):
    ids, names = tokens(2, 7), ["a", "b"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": True, "num_return_sequences": 2}
    out = model.generate(
        ids, adapter_names=names, output_logits=True, return_dict_in_generate=True, **options
    )
    with torch.no_grad():
        full = model(out.sequences, adapter_names=["a", "a", "b", "b"]).logits
    assert error(torch.stack(out.logits, 1), full[:, 6:-1]) < TOLERANCE


def test_an_adapter_that_has_not_seen_the_cache_is_refused(model):
    ids = tokens(2, 6)
    with torch.no_grad():
        cache = cache_of(model(ids, adapter_names=["a", "a"], use_cache=True))
        with pytest.raises(StateError, match="filled with one adapter for all rows, and is called with"):
            model(ids, adapter_names=["a", "b"], **with_cache(cache))
        cache = cache_of(model(ids, adapter_names=["a", "a"], use_cache=True))
        with pytest.raises(StateError, match="has not processed"):
            model(ids, adapter_names=["b", "b"], **with_cache(cache))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"adapter_names": ["a", "b"]}, {"adapter_names": ["b", "a"]}),
        ({"adapter_names": ["a", "b"]}, {}),
        ({"adapter_names": ["a", "a"]}, {"adapter_names": ["a", "__base__"]}),
        ({"adapter_names": ["__base__", "a"]}, {"adapter_names": ["a", "a"]}),
    ],
    ids=["swapped", "mixed to one", "one to base", "base to one"],
)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_rows_with_other_adapters_than_their_tokens_are_refused(model, first, then, static):
    # every adapter runs over all rows, so there were states to go on from: those of inputs that another
    # adapter had changed
    ids, cache = tokens(2, 6), StaticCache(model.config, max_cache_len=16) if static else DynamicCache()
    with torch.no_grad():
        model(ids, **first, **with_cache(cache))
        model.set_adapter("a")
        with pytest.raises(StateError, match=r"filled with .* is called with|has not processed"):
            model(ids, **then, **with_cache(cache))


def test_rows_of_the_cache_move_with_their_names(model):
    ids, end, rows = tokens(3, 6), tokens(3, 2, seed=4), torch.tensor([2, 0, 0])
    names = ["a", "b", "__base__"]
    with torch.no_grad():
        cache = cache_of(model(ids, adapter_names=names, use_cache=True))
        cache.reorder_cache(rows)
        moved = [names[row] for row in rows]
        out = model(end, adapter_names=moved, **with_cache(cache)).logits
        whole = model(torch.cat([ids[rows], end], 1), adapter_names=moved).logits[:, 6:]
        assert error(out, whole) < TOLERANCE
        cache.batch_select_indices(torch.tensor([1]))
        cache.batch_repeat_interleave(2)
        model(tokens(2, 1), adapter_names=["a", "a"], **with_cache(cache))


def test_another_model_in_between_keeps_its_own_adapter(model):
    # the names were those of the thread: a model that scores what this one generates ran as its base
    other, ids = adapted(r=3), tokens(2, 6)
    with torch.no_grad():
        expected, outputs = other(ids).logits, []
        hook = (
            model.get_base_model()
            .model.layers[0]
            .register_forward_pre_hook(lambda *_: outputs.append(other(ids).logits))
        )
        model(ids, adapter_names=["a", "b"])
        hook.remove()
    assert torch.equal(outputs[0], expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, ids, config, names: model.generate(ids, config, adapter_names=names),
        lambda model, ids, config, names: model.generate(ids, generation_config=config, adapter_names=names),
    ],
    ids=["positional", "keyword"],
)
def test_beams_of_a_generation_config(model, call):
    ids, config = tokens(2, 6), GenerationConfig(num_beams=2, max_new_tokens=4, min_new_tokens=4)
    expected = model.generate(
        ids, num_beams=2, max_new_tokens=4, min_new_tokens=4, adapter_names=["a", "b"], do_sample=False
    )
    assert torch.equal(call(model, ids, config, ["a", "b"]), expected)


def test_numbers_that_are_not_finite_stay_in_their_rows(model):
    with torch.no_grad():
        for layer in hankelred_llm.adapter.adapter_layers.hrm_layers(model):
            if "b" in layer.hrm_system:
                layer.system("b").C.fill_(torch.inf)
        rows = model(tokens(2, 5), adapter_names=["a", "b"]).logits
    assert rows[0].isfinite().all() and not rows[1].isfinite().all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "c"], "names 'c'; the model has 'default', 'a', 'b', '__base__'"),
        (["a"], "has 1 names for a batch of 2 rows"),
        ("ab", "must be a list"),
        ([1, 2], "must be a list"),
    ],
)
def test_wrong_names_are_refused(model, names, message):
    with pytest.raises(AdapterError, match=message):
        model(tokens(2, 5), adapter_names=names)


def test_refused_in_training(model):
    with pytest.raises(AdapterError, match=r"inference; call model.eval\(\) first"):
        model.train()(tokens(2, 5), adapter_names=["a", "b"])


def test_refused_where_modules_of_the_base_are_trained_too():
    model = adapted(r=4, modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match="the same for all rows"):
        model(tokens(1, 5), adapter_names=["default"])


def test_refused_by_the_base_itself(model):
    # transformers hands it on to the layers, which ignore it
    with pytest.raises(AdapterError, match="pass it to the PeftModel"):
        model.get_base_model()(tokens(1, 5), adapter_names=["a"])


def test_ignored_with_all_adapters_off_as_in_peft(model):
    ids = tokens(2, 5)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(ids, adapter_names=["a", "b"]).logits, model(ids).logits)


class TestWhatOtherMethodsHave:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("layers_pattern", "layers", "choose among them with layers_to_transform"),
            ("trainable_token_indices", [3], "modules_to_save"),
            ("lora_alpha", 16, "gate_init"),
            ("rank", 4, "its fields are .*r, eigenvalues"),
        ],
    )
    @pytest.mark.parametrize("route", [HRMConfig, lambda **f: hankelred_llm.attach(base_model(), **f)])
    def test_fields_that_are_not_offered(self, field, value, message, route):
        # a TypeError of HRMConfig.__init__ that named no remedy
        with pytest.raises(ConfigError, match=f"unexpected keyword argument '{field}'.*{message}"):
            route(**{field: value})

    def test_a_field_of_a_later_version_is_left_out_of_a_file(self, tmp_path):
        # peft knows a field that is not there by a TypeError: a refusal of another type did not load at all
        adapted(r=4).save_pretrained(tmp_path)
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "field_of_a_later_version": None}))
        with pytest.warns(UserWarning, match="field_of_a_later_version"):
            peft.PeftModel.from_pretrained(base_model(), tmp_path)

    def test_weighted_sums_are_refused(self, model):
        # an AttributeError of the base model
        for owner in (model, model.base_model):
            with pytest.raises(AdapterError, match="has the states of both"):
                owner.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")

    @pytest.mark.parametrize("excluded", [["layers.1.mlp"], ("model.layers.1.mlp",), r".*\.1\.mlp"])
    def test_blocks_can_be_excluded(self, excluded, tmp_path):
        model = adapted(exclude_modules=excluded, rank_pattern={"layers.0.mlp": 3})
        assert [len(system[0]) for system in hankelred_llm.get_systems(model).values()] == [3]
        model.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(base_model(), tmp_path)
        ids = tokens(1, 6)
        with torch.no_grad():
            assert torch.equal(again(ids).logits, model(ids).logits)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"exclude_modules": ["layers.2.mlp"]},
                r"has 'layers.2.mlp', which is no adapted block; they are",
            ),
            ({"exclude_modules": "mlp"}, "has 'mlp', which is no adapted block"),
            ({"exclude_modules": ["mlp"]}, "leaves no block"),
            ({"exclude_modules": ["layers.0.self_attn"]}, "no adapted block"),
            (
                {"exclude_modules": ["layers.0.mlp"], "rank_pattern": {"layers.0.mlp": 3}},
                "rank_pattern names",
            ),
        ],
    )
    def test_exclusions_that_mean_nothing(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            hankelred_llm.attach(base_model(), **fields)
