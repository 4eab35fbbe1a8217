"""Foreign adapter files: invalid fields and sizes are refused by name before anything is allocated."""

from __future__ import annotations

import json
import math
import resource

import pytest
import torch
from helpers.models import adapted, base_model, needs_adapter_methods
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from hankelred import HankelredError
from hankelred_llm import AdapterFileError, ConfigError, HRMConfig, attach
from hankelred_llm.adapter.system import output_bound

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Values as JSON text, some of which Python's json module cannot write.
VALUES = (
    *("null", "true", "0", "-1", "1e9", "1e400", "NaN", "1" + "0" * 400, '""', '"x"', '"["', '"LORA"'),
    *('"' + "(" * 3000 + '"', '"' + "a" * 100_000 + '"', "[]", "[null]", '["mlp"]', '["x"]', "[[1]]"),
    *(
        "{}",
        '{"a": 1}',
        '{"layers.0.mlp": 100000000}',
        '{"layers.0.mlp": [100000000, 0]}',
        "[" * 90 + "]" * 90,
    ),
)


@pytest.fixture
def folder(tmp_path):
    adapted(r=4).save_pretrained(tmp_path)
    return tmp_path


def change(folder, field, text):
    content = json.loads((folder / CONFIG).read_text())
    entries = {key: json.dumps(value) for key, value in content.items()} | {field: text}
    (folder / CONFIG).write_text("{" + ", ".join(f"{json.dumps(k)}: {v}" for k, v in entries.items()) + "}")


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message and len(message) < 1500
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("field", sorted(HRMConfig().to_dict()))
def test_a_value_that_is_not_valid_is_refused_by_field(folder, field):
    # 1629 of 5461 mutated configurations ended in AttributeError, TypeError, KeyError, re.error, ...
    refused = 0
    for text in VALUES:
        change(folder, field, text)
        try:
            PeftModel.from_pretrained(base_model(), folder)
        except AdapterFileError as error:
            assert field in str(error) and "\n" not in str(error) and len(str(error)) < 1500
            refused += 1
    assert refused >= 15


@pytest.mark.parametrize(
    "text", [b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"r": 4}', b'{"peft_type": "X"}']
)
def test_a_file_that_is_no_configuration(folder, text):
    # the three exceptions of json.load, and KeyError for a method that peft does not know
    (folder / CONFIG).write_bytes(text)
    for load in (
        lambda: PeftModel.from_pretrained(base_model(), folder),
        lambda: HRMConfig.from_pretrained(str(folder)),
        lambda: base_model().load_adapter(str(folder)),
    ):
        with pytest.raises(AdapterFileError) as error:
            load()
        one_line(error, CONFIG)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("r", "1000000000"),
        ("rank_pattern", '{"layers.0.mlp": 100000000}'),
        ("mode_pattern", '{"layers.0.mlp": [0, 0]}'),
        ("layers_to_transform", "[0]"),
    ],
)
@pytest.mark.parametrize("route", ["peft", "second adapter", "transformers", "configuration passed"])
def test_sizes_are_compared_with_the_header_of_the_weights(folder, field, text, route):
    # r=1e9 asked for 64 GB, and rank_pattern for 6.4 GB: the configuration was believed
    change(folder, field, text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    base = base_model()
    loads = {
        "peft": lambda: PeftModel.from_pretrained(base, folder),
        "second adapter": lambda: attach(base, r=2).load_adapter(str(folder), "second"),
        "transformers": lambda: base.load_adapter(str(folder)),
        "configuration passed": lambda: PeftModel.from_pretrained(
            base, folder, config=HRMConfig.from_pretrained(str(folder))
        ),
    }
    with pytest.raises(AdapterFileError, match="do not fit") as error:
        loads[route]()
    one_line(error, f"{field}=")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("what", ["is missing", "is unknown", "has another shape"])
def test_weights_that_are_passed_are_compared_too(folder, what):
    # the same fault had other remedies here, and the fields that decide the sizes were not named
    weights = load_file(folder / WEIGHTS)
    key = next(key for key in weights if key.endswith(".B"))
    value = weights.pop(key)
    if what == "is unknown":
        weights |= {key: value, key.replace(".B", ".b"): value}
    elif what == "has another shape":
        weights[key] = value[1:].contiguous()
    model = PeftModel.from_pretrained(base_model(), folder)
    with pytest.raises(AdapterFileError, match="do not fit") as error:
        set_peft_model_state_dict(model, weights)
    one_line(error, "r=4")
    expected = {
        "is missing": "1 are missing",
        "is unknown": "1 are unknown",
        "has another shape": f"{tuple(value[1:].shape)} in the file and {tuple(value.shape)} in the model",
    }
    assert expected[what] in str(error.value)


@needs_adapter_methods
def test_a_whole_module_of_another_size(tmp_path):
    adapted(r=6, modules_to_save=["lm_head"]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    key = next(key for key in weights if "lm_head" in key)
    save_file({**weights, key: weights[key][:-1].contiguous()}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterFileError, match=r"1 have another shape|1 are unknown \(lm_head") as error:
        base_model().load_adapter(str(tmp_path))
    one_line(error, "lm_head", "r=6")


def test_an_adapter_of_another_method_is_named(folder):
    change(folder, "peft_type", '"LORA"')
    with pytest.raises(AdapterFileError, match="peft_type='LORA'"):
        PeftModel.from_pretrained(base_model(), folder)


@pytest.mark.parametrize("exponent", [6, 20, 38])
@pytest.mark.parametrize("which", [".B", ".C", ".gate"])
def test_weights_whose_output_leaves_the_range_are_refused(folder, exponent, which):
    # 52 files of finite weights between 1e20 and 3e38 were loaded and gave logits that are not finite
    weights = load_file(folder / WEIGHTS)
    for key, value in weights.items():
        if key.endswith((which, ".C")):
            weights[key] = torch.full_like(value, 10.0**exponent)
    save_file(weights, folder / WEIGHTS)
    model = None
    try:
        model = PeftModel.from_pretrained(base_model(), folder)
    except AdapterFileError as error:
        assert "(1 - |a|)" in str(error) and "take an earlier checkpoint" in str(error)
        with pytest.raises(AdapterFileError, match=r"\(1 - \|a\|\)"):
            base_model().load_adapter(str(folder))
    if model is not None:
        ids = torch.arange(20).view(1, 20)
        assert bool(torch.isfinite(model(ids).logits).all())
    # two factors of 1e20, or one near the end of the range
    assert (model is None) == (exponent == 38 or (exponent == 20 and which != ".C"))


def test_the_bound_is_that_of_the_impulse_response():
    # the sum of the magnitudes of the impulse response, term by term
    torch.manual_seed(0)
    pairs, real, width = 2, 1, 3
    log_rate = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64).log()  # a = exp(-0.3), ...
    B = torch.randn(2 * pairs + real, width, dtype=torch.float64).abs()
    C = torch.randn(width, 2 * pairs + real, dtype=torch.float64).abs()
    total, state = torch.zeros(width, dtype=torch.float64), B.sum(1)
    state = torch.cat([state[:2] + state[2:4], state[:2] + state[2:4], state[4:]])
    decay = torch.exp(-log_rate.exp())[[0, 1, 0, 1, 2]]
    for _ in range(1000):
        total, state = total + 2 * C @ state, decay * state
    assert output_bound(log_rate, B, C, torch.tensor([2.0])) == pytest.approx(float(total.max()), rel=1e-12)
    assert math.isfinite(float(total.max()))


def test_a_block_that_is_trained_whole_has_no_adapter():
    # peft said that no modules were targeted
    with pytest.raises(ConfigError, match=r"modules_to_save names 'mlp', and model\.layers\.0\.mlp gets"):
        attach(base_model(), r=2, modules_to_save=["mlp"])


def test_valid_files_are_loaded_as_before(folder):
    expected = load_file(folder / WEIGHTS)
    model = PeftModel.from_pretrained(base_model(), folder)
    loaded = {k.replace(".default", ""): v for k, v in model.state_dict().items() if "hrm_system" in k}
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    assert issubclass(AdapterFileError, HankelredError)
