"""An adapter with a state, static readouts and a LoRA: one name, one file, merged where there is no state."""

from __future__ import annotations

import copy
import os
import pickle

import peft
import pytest
import torch
from helpers.models import (
    HYBRID,
    adapted,
    base_model,
    checkpointed,
    error,
    needs_adapter_methods,
    step_by_step,
    system_of,
    tokens,
    with_random_output,
)
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils import prune
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import hankelred_llm
from hankelred_llm import AdapterError, AdapterFileError, ConfigError, HRMConfig
from hankelred_llm.adapter.adapter_layers import hrm_layers
from hankelred_llm.adapter.static import static_layers

WEIGHTS = "adapter_model.safetensors"
#: Relative to the largest logit.
MERGED = 2e-5

#: Static readouts without feedthrough, feedthrough alone, a LoRA alone, and all of them beside the MLP.
KINDS = {
    "hybrid": HYBRID,
    "readouts": {"r": 4, "site": "attention", "static_readouts": ["q_proj"]},
    "feedthrough": {"r": 4, "feedthrough": True},
    "lora": {"r": 4, "lora": LoraConfig(r=2, target_modules=["q_proj", "down_proj"])},
    "mlp": {
        "r": 5,
        "eigenvalues": "real",
        "static_readouts": ["gate_proj", "up_proj"],
        "feedthrough": True,
        "lora": {"r": 1, "target_modules": ["o_proj"], "use_rslora": True, "lora_alpha": 3},
    },
}


@pytest.fixture
def ids():
    return tokens(2, 12)


@pytest.fixture
def model():
    return adapted(**HYBRID)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def without_state(model):
    """The model with the state, and its feedthrough, switched off."""
    with torch.no_grad():
        for layer in hrm_layers(model):
            layer.system("default").C.zero_()
    return model


class TestOutputs:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("gate_init", [0.0, 1.0])
    def test_a_fresh_adapter_adds_nothing_and_is_soon_trained(self, kind, gate_init, ids):
        base = base_model()
        before = logits(base, ids)
        torch.manual_seed(5)
        model = hankelred_llm.attach(base, gate_init=gate_init, **KINDS[kind])
        assert torch.equal(logits(model, ids), before)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
        reached = set()
        for _ in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            reached |= {name for name, p in trained.items() if p.grad.abs().max() > 0}
            optimizer.step()
        assert reached == trained.keys()

    def test_the_parts_are_those_of_the_definition(self, ids):
        # every part again from its parameters: u = B x, C (u + m s) with the gate, 2 C_q u, and the LoRA
        model = adapted(gate_init=0.7, **HYBRID)
        inner = model.get_base_model()
        system, attention, mlp = system_of(model), inner.model.layers[0].self_attn, inner.model.layers[0].mlp
        seen = {}
        handles = [
            attention.register_forward_pre_hook(
                lambda _, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            ),
            attention.q_proj.register_forward_hook(lambda _, args, out: seen.update(q=out)),
            mlp.up_proj.register_forward_hook(lambda _, args, out: seen.update(x_up=args[0], up=out)),
            system.register_forward_hook(lambda _, args, out: seen.update(y=out[0])),
        ]
        logits(model, ids)
        for handle in handles:
            handle.remove()
        u = linear(seen["x"].double(), system.B.double())
        log_poles, B, C = hankelred_llm.get_systems(model)[0]
        expected = system.gate.double() * linear(u, system.C.double())
        x, poles = seen["x"].double().numpy(), torch.tensor(log_poles).exp()
        state = torch.zeros(2, len(poles), dtype=torch.complex128)
        for t in range(ids.shape[1]):
            state = poles * state + torch.tensor(x[:, t] @ B.T)
            expected[:, t] += (state @ torch.tensor(C.T)).real
        assert error(seen["y"], expected.float()) < 1e-5
        q = linear(seen["x"], attention.q_proj.weight).double() + 2 * linear(
            u, system.readout("q_proj").double()
        )
        assert error(seen["q"], q.float()) < 1e-6
        maps = static_layers(inner)["model.layers.0.mlp.up_proj"].hrm_lora["default"]
        up = linear(seen["x_up"], mlp.up_proj.weight)
        up = up + 2.0 * linear(linear(seen["x_up"], maps.lora_A), maps.lora_B)  # lora_alpha / r
        assert error(seen["up"], up) < 1e-6

    def test_a_readout_that_is_pruned(self, model, ids):
        # KeyError: 'readout_q_proj': while it is pruned, the readout is no entry of the parameters
        expected = copy.deepcopy(model)
        mask = torch.rand(system_of(model).readout("q_proj").shape) < 0.5
        prune.custom_from_mask(system_of(model), "readout_q_proj", mask)
        with torch.no_grad():
            system_of(expected).readout("q_proj").mul_(mask)
        assert torch.equal(logits(model, ids), logits(expected, ids))
        assert error(step_by_step(model, ids), logits(expected, ids)) < 2e-6
        with torch.no_grad():
            system_of(model).readout_q_proj_orig.mul_(2)
            system_of(expected).readout("q_proj").mul_(2)
        assert torch.equal(logits(model, ids), logits(expected, ids))

    def test_parameters_in_one_flat_tensor(self, model, ids):
        # the same under FSDP with use_orig_params=False, where parameters are views of the shards, and plain
        # attributes of the module
        full = logits(model, ids)
        for layer in hrm_layers(model):
            system = layer.system("default")
            for name, parameter in list(system.named_parameters()):
                delattr(system, name)
                setattr(system, name, parameter.detach())
        assert torch.equal(logits(model, ids), full)
        assert error(step_by_step(model, ids), full) < 2e-6

    def test_with_no_state_it_is_a_lora_of_peft(self, ids):
        model = adapted(**KINDS["lora"])
        lora = peft.get_peft_model(base_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        theirs = dict(lora.named_parameters())
        with torch.no_grad():
            for name, layer in static_layers(model.get_base_model()).items():
                for part, value in layer.hrm_lora["default"].named_parameters():
                    theirs[f"base_model.model.{name}.{part}.default.weight"].copy_(value)
        assert torch.equal(logits(without_state(model), ids), logits(lora, ids))

    def test_the_sizes(self):
        model = hankelred_llm.attach(base_model(), **HYBRID)
        # per layer: B and C (5, 32), 5 for the poles, gate, m; q 32, k and v 16 wide; LoRA of rank 2
        layer = 2 * 5 * 32 + 5 + 1 + 5 + 5 * (32 + 16 + 16) + 2 * (32 + 48) + 2 * (48 + 32)
        assert model.get_nb_trainable_parameters()[0] == 2 * layer

    @pytest.mark.parametrize("model_type", ["gpt2", "phi3", "falcon", "gpt_neo", "qwen3_moe"])
    def test_other_architectures(self, model_type, ids):
        # one projection for queries, keys and values; Conv1D in its place; a module inside a module; experts
        readout, lora = {
            "gpt2": ("c_attn", ["mlp.c_fc", "mlp.c_proj"]),
            "phi3": ("qkv_proj", ["down_proj"]),
            "falcon": ("query_key_value", ["dense_4h_to_h"]),
            "gpt_neo": ("v_proj", ["c_fc"]),
            "qwen3_moe": ("k_proj", ["o_proj"]),
        }[model_type]
        fields = {"r": 4, "site": "attention", "static_readouts": [readout], "feedthrough": True}
        base = base_model(model_type)
        before = logits(base, ids)
        model = hankelred_llm.attach(base, lora={"r": 2, "target_modules": lora}, **fields).eval()
        assert torch.equal(logits(model, ids), before)
        full = logits(with_random_output(model), ids)
        assert error(full, before) > 1e-2 and error(step_by_step(model, ids), full) < 2e-6
        model.merge_static()
        assert error(logits(model, ids), full) < MERGED
        model.unload()
        assert error(logits(base, ids), before) < MERGED

    def test_all_linear(self, ids):
        model = adapted(r=4, lora={"r": 1, "target_modules": "all-linear"})
        assert len(static_layers(model.get_base_model())) == 2 * 7
        assert error(step_by_step(model, ids), logits(model, ids)) < 2e-6

    def test_ranks_and_alphas_by_name(self):
        lora = LoraConfig(
            r=2,
            lora_alpha=6,
            target_modules=["up_proj", "down_proj"],
            rank_pattern={"up_proj": 3},
            alpha_pattern={"layers.1.mlp.down_proj": 5},
        )
        layers = static_layers(hankelred_llm.attach(base_model(), r=4, lora=lora).get_base_model())
        ranks = {}
        for name, layer in layers.items():
            maps = layer.hrm_lora["default"]
            ranks[name.removeprefix("model.layers.")] = (len(maps.lora_A), maps.scale)
        assert ranks == {
            "0.mlp.up_proj": (3, 2.0),
            "1.mlp.up_proj": (3, 2.0),
            "0.mlp.down_proj": (2, 3.0),
            "1.mlp.down_proj": (2, 2.5),
        }

    def test_dropout_is_that_of_the_lora(self, ids):
        model = adapted(r=4, lora={"r": 2, "target_modules": ["up_proj"], "lora_dropout": 0.5})
        assert torch.equal(logits(model, ids), logits(model, ids))
        model.train()
        assert not torch.equal(logits(model, ids), logits(model, ids))

    def test_rows_with_adapters_of_their_own(self, model, ids):
        model.add_adapter("other", HRMConfig(**{**HYBRID, "r": 4, "static_readouts": ["q_proj"]}))
        with_random_output(model, seed=4)
        with torch.no_grad():
            mixed = model(ids, adapter_names=["other", "__base__"]).logits
        assert error(mixed[1], logits(base_model(), ids)[1]) < 1e-6
        model.set_adapter("other")
        assert error(mixed[0], logits(model, ids)[0]) < 1e-6

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_other_precisions(self, dtype, ids):
        base = base_model().to(dtype)
        model = hankelred_llm.attach(base, **HYBRID).eval()
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {kept}
        assert torch.equal(logits(model, ids), logits(base_model().to(dtype), ids))
        full = logits(with_random_output(model), ids)
        assert full.dtype == dtype
        if dtype == torch.float64:
            assert error(step_by_step(model, ids), full) < 1e-12


class TestFiles:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_round_trip_is_bitwise(self, tmp_path, kind, ids):
        model = adapted(**KINDS[kind])
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        assert sorted(os.listdir(tmp_path)) == ["README.md", "adapter_config.json", WEIGHTS]
        again = PeftModel.from_pretrained(base_model(), tmp_path, is_trainable=True)
        assert torch.equal(logits(again, ids), expected)
        assert len(load_file(tmp_path / WEIGHTS)) == sum(p.requires_grad for p in again.parameters())
        little = PeftModel.from_pretrained(base_model(), tmp_path, low_cpu_mem_usage=True)
        torch.testing.assert_close(logits(little, ids), expected, rtol=0, atol=2e-6)

    def test_in_one_call_with_the_base(self, tmp_path, ids):
        base_model().save_pretrained(tmp_path / "base")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model = with_random_output(hankelred_llm.attach(base, **HYBRID)).eval()
        model.save_pretrained(tmp_path / "adapter")
        again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        assert torch.equal(logits(again, ids), logits(model, ids))

    @needs_adapter_methods
    def test_into_a_model_by_transformers(self, tmp_path, model, ids):
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        base = base_model()
        base.load_adapter(str(tmp_path))
        torch.testing.assert_close(logits(base, ids), expected, rtol=0, atol=2e-6)
        base.disable_adapters()
        assert torch.equal(logits(base, ids), logits(base_model(), ids))
        base.enable_adapters()
        base.save_pretrained(tmp_path / "again")
        assert torch.equal(logits(PeftModel.from_pretrained(base_model(), tmp_path / "again"), ids), expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"static_readouts": ["q_proj"]}, "unknown"),
            ({"lora": None}, "unknown"),
            ({"feedthrough": False}, "m"),
        ],
        ids=["readouts", "lora", "feedthrough"],
    )
    def test_a_file_of_other_parts_is_refused(self, tmp_path, model, change, message):
        model.save_pretrained(tmp_path)
        config = HRMConfig.from_pretrained(str(tmp_path))
        for name, value in change.items():
            setattr(config, name, value)
        config.save_pretrained(str(tmp_path))
        with pytest.raises(AdapterFileError, match=rf"do not fit.*{message}"):
            PeftModel.from_pretrained(base_model(), tmp_path)

    def test_two_adapters(self, tmp_path, model, ids):
        first, base = logits(model, ids), logits(base_model(), ids)
        other = {"r": 3, "static_readouts": ["up_proj"], "lora": LoraConfig(r=1, target_modules=["v_proj"])}
        model.add_adapter("other", HRMConfig(**other))
        assert torch.equal(logits(model, ids), first)
        model.set_adapter("other")
        assert torch.equal(logits(model, ids), base)
        second = logits(with_random_output(model, seed=9), ids)
        assert error(step_by_step(model, ids), second) < 2e-6
        trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {"other"}
        with model.disable_adapter():
            assert torch.equal(logits(model, ids), base)
        model.base_model.set_adapter(["default", "other"])
        assert error(step_by_step(model, ids), logits(model, ids)) < 2e-6
        model.set_adapter("other")
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base_model(), tmp_path / "other")
        assert torch.equal(logits(again, ids), second)
        model.delete_adapter("default")
        assert torch.equal(logits(model, ids), second)

    def test_copies_and_pickles(self, model, ids):
        expected = logits(model, ids)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(logits(twin, ids), expected)
            assert error(step_by_step(twin, ids), expected) < 2e-6
            with torch.no_grad():
                for p in twin.parameters():
                    p.zero_()
            assert torch.equal(logits(model, ids), expected)

    def test_unload_gives_the_base_back(self, model, ids):
        base = model.unload()
        assert torch.equal(logits(base, ids), logits(base_model(), ids))
        assert not any("hrm" in name for name, _ in base.named_modules())
        assert not base.model.layers[0].self_attn.q_proj._forward_hooks

    @pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
    @pytest.mark.parametrize("first", ["lora", "hybrid"])
    def test_beside_a_lora_of_another_name_and_on_the_same_modules(self, first, ids):
        beside = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        base = base_model()
        torch.manual_seed(1)
        if first == "lora":
            peft.inject_adapter_in_model(beside, base, adapter_name="style")
        model = hankelred_llm.attach(base, **HYBRID).eval()
        if first == "hybrid":
            peft.inject_adapter_in_model(beside, base, adapter_name="style")
        fresh = logits(model, ids)
        assert error(fresh, logits(base_model(), ids)) > 1e-3
        full = logits(with_random_output(model), ids)
        assert error(full, fresh) > 1e-2 and error(step_by_step(model, ids), full) < 2e-6
        model.merge_static()
        assert error(logits(model, ids), full) < MERGED


class TestMerged:
    @pytest.mark.parametrize("kind", ["hybrid", "readouts", "lora", "mlp"])
    def test_logits_are_those_unmerged(self, kind, ids):
        model = adapted(**KINDS[kind])
        full = logits(model, ids)
        weight = model.get_base_model().model.layers[0].self_attn.q_proj.weight.detach().clone()
        model.merge_static()
        assert error(logits(model, ids), full) < MERGED
        assert error(step_by_step(model, ids), full) < MERGED
        model.unmerge_static()
        assert error(logits(model, ids), full) < MERGED
        assert error(model.get_base_model().model.layers[0].self_attn.q_proj.weight, weight) < 1e-6

    def test_where_it_is_not_active_it_is_subtracted(self, model, ids):
        base = logits(base_model(), ids)
        model.add_adapter("other", HRMConfig(r=3, lora={"r": 1, "target_modules": ["up_proj"]}))
        model.set_adapter("other")
        other = logits(with_random_output(model, seed=9), ids)
        model.set_adapter("default")
        full = logits(model, ids)
        model.merge_static()
        with model.disable_adapter():
            assert error(logits(model, ids), base) < MERGED
        assert error(logits(model, ids), full) < MERGED
        with torch.no_grad():
            mixed = model(ids, adapter_names=["default", "other"]).logits
        assert error(mixed[0], full[0]) < MERGED and error(mixed[1], other[1]) < MERGED
        with pytest.warns(UserWarning, match="Unmerging"):  # as every method of peft does
            model.set_adapter("other")
        assert error(logits(model, ids), other) < MERGED
        with pytest.raises(AdapterError, match="no static parts are merged"):
            model.unmerge_static()

    @pytest.mark.parametrize("copied", [False, True])
    def test_merged_modules_run_without_hooks_until_one_is_needed(self, model, ids, copied):
        # the hooks of seven linear modules a layer did nothing, and took half the time of a decoded token
        def hooked():
            return {bool(layer.target._forward_hooks) for layer in static_layers(model).values()}

        base, adapted_logits = logits(base_model(), ids), logits(model, ids)
        model.merge_static()
        model = copy.deepcopy(model) if copied else model
        assert hooked() == {False}
        with model.disable_adapter():
            assert hooked() == {True}
            assert error(logits(model, ids), base) < MERGED * base.abs().max()
        assert hooked() == {False}
        # rows have adapters of their own: the first the base model, the second the merged adapter
        with torch.no_grad():
            rows = model.eval()(ids, adapter_names=["__base__", "default"]).logits
        assert error(rows[0], base[0]) < MERGED * base.abs().max()
        assert error(rows[1], adapted_logits[1]) < MERGED * adapted_logits.abs().max()
        assert error(logits(model, ids), adapted_logits) < MERGED * adapted_logits.abs().max()
        model.unmerge_static()
        assert hooked() == {True}
        assert error(logits(model, ids), adapted_logits) < MERGED * adapted_logits.abs().max()

    @pytest.mark.parametrize("change", ["merge", "switch off", "rows", "copy"])
    def test_hooks_of_others_keep_their_places(self, model, ids, change):
        # merging removed the hook of the adapter, and unmerging registered it behind hooks that others had
        # registered in the meantime or before: they got the output of the base model, off by 3
        layer = static_layers(model)["base_model.model.model.layers.0.self_attn.q_proj"]
        outputs = {}

        def register(name, **options):
            def record(module, args, out):
                outputs[name] = out.detach().clone()

            layer.target.register_forward_hook(record, **options)

        register("before", prepend=True)
        register("after")
        logits(model, ids)
        expected = dict(outputs)
        assert error(expected["before"], expected["after"]) > 0.1
        model.merge_static()
        logits(model, ids)
        assert error(outputs["after"], expected["after"]) < MERGED
        register("first", prepend=True)
        register("last")
        if change == "switch off":
            with model.disable_adapter():
                logits(model, ids)
            assert error(outputs["last"], expected["before"]) < MERGED
        elif change == "rows":
            with torch.no_grad():
                model.eval()(ids, adapter_names=["__base__", "default"])
            assert error(outputs["last"][0], expected["before"][0]) < MERGED
            assert error(outputs["after"][1], expected["after"][1]) < MERGED
        elif change == "copy":
            model = copy.deepcopy(model)
        model.unmerge_static()
        outputs.clear()
        logits(model, ids)
        assert list(outputs) == ["first", "before", "after", "last"]
        for name, output in outputs.items():
            assert error(output, expected["before" if name in ("first", "before") else "after"]) < MERGED

    def test_the_file_of_a_merged_adapter_is_that_of_an_unmerged_one(self, tmp_path, model, ids):
        full = logits(model, ids)
        model.merge_static()
        model.save_pretrained(tmp_path)
        assert torch.equal(logits(PeftModel.from_pretrained(base_model(), tmp_path), ids), full)

    def test_activating_or_adding_an_adapter_unmerges(self, model, ids):
        # the docstring promised that set_adapter works as before; peft unmerges, and says so
        full = logits(model, ids)
        for change in (
            lambda: model.set_adapter("default"),
            lambda: model.add_adapter("other", HRMConfig(r=2)),
        ):
            model.merge_static()
            with pytest.warns(UserWarning, match="Unmerging the model first"):
                change()
            assert error(logits(model, ids), full) < MERGED
            with pytest.raises(AdapterError, match="no static parts are merged"):
                model.unmerge_static()

    def test_a_base_in_16_bits_is_restored_up_to_rounding(self):
        # merged and unmerged, a bfloat16 base is not what it was, which no page said
        model = adapted(**HYBRID).to(torch.bfloat16)
        weight = model.get_base_model().model.layers[0].self_attn.q_proj.weight
        before = weight.detach().double().clone()
        model.merge_static()
        step = weight.detach().double().abs().maximum(before.abs()) * 2.0**-8  # half of an ulp, at most
        assert (weight.double() - before).abs().max() > step.max()
        model.unmerge_static()
        difference = (weight.double() - before).abs()
        assert difference.max() > 0 and bool((difference <= 2 * step).all())

    def test_copies_of_a_merged_model(self, model, ids):
        model.merge_static()
        twin = copy.deepcopy(model)
        merged = logits(model, ids)
        twin.unmerge_static()
        assert torch.equal(logits(model, ids), merged)
        assert error(logits(twin, ids), merged) < MERGED

    def test_unload_takes_it_out_again(self, model, ids):
        model.merge_static()
        assert error(logits(model.unload(), ids), logits(base_model(), ids)) < MERGED

    def test_loading_other_weights_is_refused(self, tmp_path, model):
        model.save_pretrained(tmp_path)
        model.merge_static()
        with pytest.raises(AdapterError, match=r"'default' are merged.*unmerge_static"):
            model.load_adapter(tmp_path, "default")
        model.unmerge_static()
        model.load_adapter(tmp_path, "default")

    @pytest.mark.parametrize("route", ["model", "base", "linear", "peft", "system"])
    def test_no_route_loads_weights_beside_merged_ones(self, route, model, ids):
        # only load_adapter refused: load_state_dict of the unmerged weights, then unmerge_static, left a base
        # that lacked what had never been added, and set_peft_model_state_dict mixed new states with old parts
        linear_name = "model.layers.1.self_attn.q_proj"
        base = model.get_base_model()
        full = {key: value.clone() for key, value in model.state_dict().items()}
        of_adapter = {key: 2 * value for key, value in peft.get_peft_model_state_dict(model).items()}
        q_proj, system = base.get_submodule(linear_name), hrm_layers(model)[1].system("default")
        weight = q_proj.weight.detach().clone()
        of_system = {key: value.clone() for key, value in system.state_dict().items()}
        load = {
            "model": lambda: model.load_state_dict(full),
            "base": lambda: base.load_state_dict({f"{linear_name}.weight": weight}, strict=False),
            "linear": lambda: q_proj.load_state_dict({"weight": weight}),
            "peft": lambda: peft.set_peft_model_state_dict(model, of_adapter),
            "system": lambda: system.load_state_dict(of_system),
        }[route]
        before = logits(model, ids)
        model.merge_static()
        merged = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(AdapterError, match=r"'default' are merged.*unmerge_static"):
            load()
        assert all(torch.equal(merged[key], value) for key, value in model.state_dict().items())
        twin = copy.deepcopy(model)
        twin.unmerge_static()
        twin.load_state_dict(full)
        assert torch.equal(logits(twin, ids), before)  # and the copy's hooks are not those of the model
        with pytest.raises(AdapterError, match=r"'default' are merged"):
            load()
        model.unmerge_static()
        load()
        assert not any(module._load_state_dict_pre_hooks for module in base.modules())

    def test_another_adapter_is_loaded_beside_a_merged_one(self, tmp_path, model, ids):
        other = adapted(r=3)
        other.save_pretrained(tmp_path)
        model.merge_static()
        with pytest.warns(UserWarning, match="Unmerging"):  # peft activates adapters when one is added
            model.load_adapter(tmp_path, "other")
        model.set_adapter("other")
        assert error(logits(model, ids), logits(other, ids)) < MERGED
        model.load_state_dict(model.state_dict())  # nothing is merged, though unmerge_static was not called

    def test_training_is_refused(self, model, ids):
        model.merge_static()
        model.train()
        with pytest.raises(AdapterError, match=r"unmerge_static\(\) before training"):
            model(ids)

    def test_what_cannot_be_merged(self, model, ids):
        model.merge_static()
        with pytest.raises(AdapterError, match="merged already"):
            model.merge_static()
        model.unmerge_static()
        with pytest.raises(AdapterError, match="no static parts are merged"):
            model.unmerge_static()
        for call in ("merge_static", "export_static"):
            with pytest.raises(AdapterError, match=r"'default' has no static parts"):
                getattr(adapted(feedthrough=True), call)(*(["folder"] if call == "export_static" else []))

    def test_quantized_and_shared_weights(self, model, ids):
        layer = model.get_base_model().model.layers[1].mlp
        layer.up_proj.weight = nn.Parameter(layer.up_proj.weight.detach().to(torch.int8), requires_grad=False)
        with pytest.raises(AdapterError, match=r"layers\.1\.mlp\.up_proj.*quantized"):
            model.merge_static()
        shared = adapted(**HYBRID)
        layers = shared.get_base_model().model.layers
        layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
        expected = logits(shared, ids)
        with pytest.raises(AdapterError, match="shared"):
            shared.merge_static()
        assert torch.equal(logits(shared, ids), expected)  # nothing was merged before the refusal

    @pytest.mark.parametrize("kind", ["feedthrough", "hybrid"])
    def test_on_a_base_in_four_bits(self, kind, ids, tmp_path):
        # the recipe of docs/mistral_7b.md, on the CPU
        bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
        base_model().save_pretrained(tmp_path / "base")
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        four_bits = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=torch.bfloat16)

        def base():
            options = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}, "quantization_config": four_bits}
            return AutoModelForCausalLM.from_pretrained(tmp_path / "base", **options)

        model = checkpointed(hankelred_llm.attach(base(), **KINDS[kind]), reentrant=True)
        assert isinstance(model.get_base_model().model.layers[0].mlp.gate_proj, bitsandbytes.nn.Linear4bit)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.config.use_cache, losses = False, []
        for _ in range(6):
            losses.append(model.train()(ids, labels=ids).loss)
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0] - 0.1
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(base(), tmp_path)
        assert torch.equal(logits(loaded, ids), logits(model.eval(), ids))
        if kind == "hybrid":
            with pytest.raises(AdapterError, match="Linear4bit whose weight is quantized"):
                loaded.merge_static()


class TestExported:
    @pytest.mark.parametrize("kind", ["hybrid", "lora", "mlp"])
    def test_peft_loads_it_with_equal_logits(self, tmp_path, kind, ids):
        model = adapted(**KINDS[kind])
        model.export_static(tmp_path)
        lora = PeftModel.from_pretrained(base_model(), tmp_path)
        assert type(lora.peft_config["default"]) is LoraConfig
        expected = logits(without_state(model), ids)
        assert error(logits(lora, ids), expected) < 2e-6
        assert error(logits(lora.merge_and_unload(), ids), expected) < MERGED

    def test_some_layers_only(self, tmp_path, ids):
        model = adapted(**HYBRID, layers_to_transform=[1])
        model.export_static(tmp_path)
        lora = PeftModel.from_pretrained(base_model(), tmp_path)
        assert error(logits(lora, ids), logits(without_state(model), ids)) < 2e-6

    def test_while_merged(self, tmp_path, model, ids):
        expected = logits(without_state(copy.deepcopy(model)), ids)
        model.merge_static()
        model.export_static(tmp_path)
        assert error(logits(PeftModel.from_pretrained(base_model(), tmp_path), ids), expected) < 2e-6

    def test_a_saved_adapter_is_not_overwritten(self, tmp_path, model, ids):
        # export_static into the folder of save_pretrained replaced the HRM adapter, state and all, in silence
        full = logits(model, ids)
        model.save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(AdapterError, match=r"holds an adapter with peft_type='HRM'.*another folder"):
            model.export_static(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert torch.equal(logits(PeftModel.from_pretrained(base_model(), tmp_path), ids), full)
        (tmp_path / "adapter_config.json").write_text("{")
        with pytest.raises(AdapterError, match="peft_type=None"):
            model.export_static(tmp_path)

    def test_a_lora_is_written_anew_with_a_card(self, tmp_path, model):
        # the export had no model card, or that of whatever was in the folder
        model.export_static(tmp_path)
        card = (tmp_path / "README.md").read_text()
        assert "# LoRA exported from an HRM adapter" in card and "lacks the recurrent state" in card
        model.export_static(tmp_path)
        assert (tmp_path / "README.md").read_text() == card
        (tmp_path / "README.md").write_text("# Mine\n")
        model.export_static(tmp_path)
        assert "# Mine" in (tmp_path / "README.md").read_text()


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"static_readouts": "q_proj"}, "static_readouts='q_proj' must be a list"),
            ({"static_readouts": [3]}, "must be a list of names"),
            ({"static_readouts": ["self_attn.q_proj"]}, "must be the last part of a name"),
            ({"static_readouts": ["q_proj", "q_proj"]}, "once"),
            ({"static_readouts": ["q_proj"], "tap": "output"}, "tap='output' is not possible"),
            ({"feedthrough": 1}, "feedthrough=1 must be true or false"),
            ({"static_scale": 0.0}, r"static_scale=0\.0"),
            ({"static_scale": float("nan")}, "static_scale=nan"),
            ({"lora": 8}, r"lora=8 must be a peft\.LoraConfig"),
            ({"lora": {"rank": 8}}, "no configuration of a LoRA.*rank"),
            ({"lora": {"r": 0, "target_modules": ["up_proj"]}}, "no configuration of a LoRA|lora.r=0"),
            (
                {"lora": {"r": 4, "rank_pattern": {"up_proj": 0}, "target_modules": ["up_proj"]}},
                "rank_pattern",
            ),
            ({"lora": {"r": 4}}, "target_modules=None names no modules"),
            ({"lora": {"target_modules": ["up_proj"], "use_dora": True}}, "use_dora=True"),
            ({"lora": {"target_modules": ["up_proj"], "bias": "all"}}, "bias='all'"),
            (
                {"lora": {"target_modules": ["up_proj"], "init_lora_weights": False}},
                "init_lora_weights=False",
            ),
            ({"lora": {"target_modules": ["up_proj"], "init_lora_weights": "pissa"}}, "init_lora_weights"),
            ({"lora": {"target_modules": ["up_proj"], "lora_dropout": 1.0}}, r"lora_dropout=1\.0"),
            ({"lora": {"target_modules": ["up_proj"], "lora_alpha": 0}}, "lora_alpha=0"),
            ({"static_pattern": {"layers.0.mlp": 0}}, "static_pattern"),
        ],
    )
    def test_values_that_mean_nothing(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            HRMConfig(r=4, **fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"static_readouts": ["o_proj"]}, "'o_proj', which has another input"),
            (
                {"static_readouts": ["up_proj"]},
                r"'up_proj', which is no linear module of model\.layers\.0\.self",
            ),
            ({"static_readouts": ["nothing"]}, "it has q_proj, k_proj, v_proj, o_proj"),
            ({"site": "mlp", "static_readouts": ["act_fn"]}, "'act_fn', which is a SiLU"),
            ({"site": "mlp", "static_readouts": ["down_proj"]}, "'down_proj', which has another input"),
            (
                {"static_readouts": ["q_proj"], "lora": {"target_modules": ["q_proj"]}},
                r"layers\.0\.self_attn\.q_proj, which is read statically too",
            ),
            (
                {"static_readouts": ["q_proj"], "lora": {"target_modules": "all-linear"}},
                "read statically too",
            ),
            ({"lora": {"target_modules": ["nothing"]}}, r"\['nothing'\] is no linear module"),
            ({"lora": {"target_modules": ["lm_head"]}}, "lm_head, which is in no decoder layer"),
            ({"lora": {"target_modules": ["act_fn"]}}, "act_fn, a SiLU"),
        ],
    )
    def test_names_that_do_not_fit_the_model(self, fields, message, ids):
        base = base_model()
        with pytest.raises(ConfigError, match=message):
            hankelred_llm.attach(base, r=4, **{"site": "attention", **fields})
        assert torch.equal(logits(base, ids), logits(base_model(), ids))
        assert not any("hrm" in name for name, _ in base.named_modules())

    def test_readouts_before_a_pre_hook_computes_the_parameters(self, model, ids):
        # with a later pre-hook of the block, the systems run after it: readouts were those of the pass before
        for layer in hrm_layers(model):
            prune.random_unstructured(layer.system("default"), "B", amount=0.3)
        first = logits(model, ids)
        blocks = [layer.self_attn for layer in model.get_base_model().model.layers]
        handles = [block.register_forward_pre_hook(lambda *_: None) for block in blocks]
        with pytest.raises(AdapterError, match=r"computed in a forward pre-hook.*prune\.remove"):
            logits(model, ids)
        for handle in handles:
            handle.remove()
        assert torch.equal(logits(model, ids), first)
        blocks[0].register_forward_pre_hook(lambda *_: None)
        for layer in hrm_layers(model):
            prune.remove(layer.system("default"), "B")
            layer.system("default").register_forward_pre_hook(lambda *_: None)  # computes nothing
        assert error(logits(model, ids), first) < 1e-6

    @pytest.mark.parametrize("later", ["block", "system"])
    def test_another_input_is_refused_with_pre_hooks_too(self, monkeypatch, later, ids):
        monkeypatch.setenv("HANKELRED_SKIP_SELF_CHECK", "1")
        model = hankelred_llm.attach(base_model(), r=4, site="attention", static_readouts=["o_proj"])
        for layer in hrm_layers(model):
            module = layer.system("default") if later == "system" else layer.target
            module.register_forward_pre_hook(lambda *_: None)
        with pytest.raises(ConfigError, match="another input"):
            logits(model, ids)

    def test_another_input_is_refused_without_the_self_check_too(self, monkeypatch, ids):
        monkeypatch.setenv("HANKELRED_SKIP_SELF_CHECK", "1")
        model = hankelred_llm.attach(base_model(), r=4, site="attention", static_readouts=["o_proj"])
        with pytest.raises(ConfigError, match="another input"):
            model(ids)


class TestGroups:
    def test_static_parts_have_a_rate_of_their_own(self, ids):
        model = hankelred_llm.attach(base_model(), **HYBRID, modules_to_save=["lm_head"])
        state, static = hankelred_llm.parameter_groups(model, lr=1e-2, static_lr_ratio=3)
        assert (state["lr"], static["lr"]) == (1e-2, 3e-2)
        names = {id(p): name for name, p in model.named_parameters()}
        kinds = [{names[id(p)].rpartition(".")[2] for p in group["params"]} for group in (state, static)]
        assert kinds[0] == {"log_rate", "phase", "B", "C", "gate", "m", "weight"}
        assert kinds[1] == {"readout_q_proj", "readout_k_proj", "readout_v_proj", "lora_A", "lora_B"}
        both = [id(p) for group in (state, static) for p in group["params"]]
        assert sorted(both) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        optimizer = torch.optim.AdamW([state, static])
        model(ids, labels=ids).loss.backward()
        optimizer.step()

    def test_an_adapter_without_static_parts_has_one_group(self):
        (group,) = hankelred_llm.parameter_groups(hankelred_llm.attach(base_model(), r=4), lr=1e-3)
        assert group["lr"] == 1e-3 and len(group["params"]) == 10

    def test_a_lora_beside_the_adapter_is_static(self):
        base = base_model()
        peft.get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
        _, static = hankelred_llm.parameter_groups(hankelred_llm.attach(base, r=4), lr=1, static_lr_ratio=2)
        assert len(static["params"]) == 4 and static["lr"] == 2

    @pytest.mark.parametrize("rates", [{"lr": 0}, {"lr": float("nan")}, {"lr": 1, "static_lr_ratio": -1}])
    def test_rates_that_mean_nothing(self, model, rates):
        with pytest.raises(ConfigError, match="must be a positive number"):
            hankelred_llm.parameter_groups(model, **rates)

    def test_nothing_to_train(self, model):
        with pytest.raises(AdapterError, match="no trainable parameters"):
            hankelred_llm.parameter_groups(model.requires_grad_(False), lr=1)


class TestSystems:
    """The state of a hybrid is read, replaced and reduced; the parts without a state stay what they are."""

    def static_logits(self, model, ids):
        """Logits without the state: its output map is zero, the direct term and the readouts are not."""
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for layer in hrm_layers(twin):
                system = layer.system("default")
                (system.C if system.m is None else system.m).zero_()
        return logits(twin, ids)

    @pytest.mark.parametrize("kind", ["hybrid", "readouts", "feedthrough", "mlp"])
    def test_what_was_read_can_be_written(self, tmp_path, kind, ids):
        model = adapted(gate_init=0.6, **KINDS[kind])
        full, count = logits(model, ids), model.get_nb_trainable_parameters()[0]
        systems = hankelred_llm.get_systems(model)
        hankelred_llm.set_systems(model, systems)
        assert error(logits(model, ids), full) < 1e-6
        assert model.get_nb_trainable_parameters()[0] == count  # the input map is still shared
        assert model.peft_config["default"].static_pattern == {}

    @pytest.mark.parametrize("kind", ["hybrid", "readouts", "feedthrough"])
    def test_another_state_beside_the_same_static_parts(self, tmp_path, kind, ids):
        model = adapted(gate_init=0.6, **KINDS[kind])
        before = self.static_logits(model, ids)
        log_poles, B, C = hankelred_llm.get_systems(model)[0]
        hankelred_llm.set_systems(model, {0: (log_poles[:2], 2 * B[:2], 3 * C[:, :2])})
        assert error(self.static_logits(model, ids), before) < 1e-6
        full = logits(model, ids)
        assert error(step_by_step(model, ids), full) < 2e-6
        got = hankelred_llm.get_systems(model)[0]
        assert got[1] == pytest.approx(2 * B[:2], abs=1e-6) and got[2] == pytest.approx(
            3 * C[:, :2], abs=1e-6
        )
        block = "layers.0.mlp" if kind == "feedthrough" else "layers.0.self_attn"
        assert model.peft_config["default"].static_pattern == {block: KINDS[kind]["r"]}
        # a second change keeps the maps that the static parts have by now; all is saved, merged and trained
        hankelred_llm.set_systems(model, {0: (log_poles[:2], B[:2], C[:, :2])})
        assert error(self.static_logits(model, ids), before) < 1e-6
        full = logits(model, ids)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base_model(), tmp_path, is_trainable=True)
        assert torch.equal(logits(again, ids), full)
        again(ids, labels=ids).loss.backward()
        assert all(p.grad is not None for p in again.parameters() if p.requires_grad)
        if kind != "feedthrough":
            model.merge_static()
            assert error(logits(model, ids), full) < MERGED

    def test_the_direct_term_keeps_its_output_map(self, ids):
        # B stays, so that only the output map must be another one
        model = adapted(r=4, feedthrough=True)
        before = self.static_logits(model, ids)
        log_poles, B, C = hankelred_llm.get_systems(model)[0]
        hankelred_llm.set_systems(model, {0: (log_poles, B, 2 * C)})
        assert error(self.static_logits(model, ids), before) < 1e-6
        assert hankelred_llm.get_systems(model)[0][2] == pytest.approx(2 * C, abs=1e-6)

    def test_readouts_share_the_map_while_b_is_the_same(self, ids):
        model = adapted(**KINDS["readouts"])
        before = self.static_logits(model, ids)
        log_poles, B, C = hankelred_llm.get_systems(model)[0]
        hankelred_llm.set_systems(model, {0: (2 * log_poles.real + 1j * log_poles.imag, B, 2 * C)})
        assert model.peft_config["default"].static_pattern == {}
        assert error(self.static_logits(model, ids), before) < 1e-6

    def test_spectra_and_reduction_are_those_of_the_state(self, tmp_path, model, ids):
        systems = hankelred_llm.get_systems(model)
        alone = hankelred_llm.attach(base_model(), r=5, site="attention")
        hankelred_llm.set_systems(alone, systems)
        ours, theirs = hankelred_llm.hankel_spectra(model), hankelred_llm.hankel_spectra(alone)
        for index in ours:
            assert ours[index] == pytest.approx(theirs[index], rel=1e-5)
        before = self.static_logits(model, ids)
        report, expected = hankelred_llm.reduce(model, order=3), hankelred_llm.reduce(alone, order=3)
        assert report.orders == {0: 3, 1: 3}
        assert report.bounds == pytest.approx(expected.bounds, rel=1e-4)
        assert all(report.errors[i] <= report.bounds[i] * (1 + 1e-5) for i in report.errors)
        assert error(self.static_logits(model, ids), before) < 1e-6
        full = logits(model, ids)
        model.save_pretrained(tmp_path)
        assert torch.equal(logits(PeftModel.from_pretrained(base_model(), tmp_path), ids), full)
        assert error(step_by_step(model, ids), full) < 2e-6

    def test_calibration_and_reduction_with_it(self, model):
        rows = tokens(8, 24, seed=5)
        batch = {"input_ids": rows, "labels": rows}
        sums = hankelred_llm.calibrate(model, [batch], held_out=0).layers[0]
        # again from the definition: the states, and the gradients weighted through gate * C m
        system, seen = system_of(model), {}

        def keep(_, args, out):
            out[0].retain_grad()
            seen.update(y=out[0], s=out[1])

        handle = system.register_forward_hook(keep)
        (model(**batch).loss * 8 * 23).backward()
        handle.remove()
        output_map = system.gate.double() * system.C.double() * system.m.double()
        weighted = torch.einsum("btd,dr->btr", seen["y"].grad.double(), output_map).detach()
        states = seen["s"].double().detach()
        expected = torch.einsum("btr,btq->rq", weighted, weighted)
        assert (
            error(torch.tensor(sums.outputs) / expected.abs().max(), expected / expected.abs().max()) < 1e-5
        )
        assert error(torch.tensor(sums.states), torch.einsum("brt,bqt->rq", states, states)) < 1e-5
        calibration = hankelred_llm.calibrate(model, [batch], held_out=64)
        spectra = hankelred_llm.hankel_spectra(model, calibration)
        assert len(spectra[0]) == 5 and spectra.empirical is not None
        report = hankelred_llm.reduce(model, order=3, calibration=calibration)
        assert report.orders == {0: 3, 1: 3} and report.loss_after is not None

    def test_a_trained_hybrid_is_not_initialized(self, model):
        with torch.no_grad():
            for layer in hrm_layers(model):
                layer.system("default").C.zero_()
        with pytest.raises(AdapterError, match="adds something to the output already"):
            hankelred_llm.initialize(model, [{"input_ids": tokens(8, 8), "labels": tokens(8, 8)}])
