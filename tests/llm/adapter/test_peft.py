"""At home in peft and transformers: saved, loaded, switched, combined with LoRA."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from functools import wraps
from types import SimpleNamespace

import huggingface_hub
import peft
import pytest
import torch
import transformers
from helpers.models import (
    HYBRID,
    WIDTH,
    adapted,
    base_model,
    error,
    needs_adapter_methods,
    step_by_step,
    system_of,
    tokens,
    with_random_output,
)
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hankelred
import hankelred_llm
from hankelred_llm import AdapterError, AdapterFileError, ConfigError, HRMConfig
from hankelred_llm.adapter.layer import HRMLayer

WEIGHTS = "adapter_model.safetensors"
BLOCK_7 = "base_model.model.model.layers.7.mlp_adapter.hrm_system.B"


@pytest.fixture
def ids():
    return tokens(2, 12)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


class TestFrontDoor:
    def test_get_peft_model_is_the_same_thing(self, ids):
        models = []
        for build in (
            lambda base: hankelred_llm.attach(base, r=6),
            lambda base: peft.get_peft_model(base, HRMConfig(r=6)),
        ):
            torch.manual_seed(3)
            models.append(build(base_model()))
        parameters = [dict(m.named_parameters()) for m in models]
        assert type(models[0]) is type(models[1]) and parameters[0].keys() == parameters[1].keys()
        assert all(torch.equal(p, parameters[1][name]) for name, p in parameters[0].items())

    def test_only_the_adapter_is_trained(self):
        model = hankelred_llm.attach(base_model(), r=6)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 10 and all("hrm_system" in name for name in trained)
        assert sum(name.endswith("gate") for name in trained) == 2
        assert all(p.shape == (1,) for n, p in model.named_parameters() if n.endswith("gate"))

    def test_config_and_fields_together_are_refused(self):
        with pytest.raises(ConfigError, match="not both"):
            hankelred_llm.attach(base_model(), HRMConfig(), r=4)

    def test_attaching_twice_is_refused(self):
        model = hankelred_llm.attach(base_model(), r=4)
        for again in (model, model.get_base_model()):
            with pytest.raises(AdapterError, match="already"):
                hankelred_llm.attach(again)

    def test_a_lora_peft_model_is_refused_with_the_remedy(self):
        wrapped = peft.get_peft_model(base_model(), LoraConfig(task_type="CAUSAL_LM"))
        with pytest.raises(AdapterError, match=r"add_adapter\(LoraConfig"):
            hankelred_llm.attach(wrapped)

    def test_a_fresh_process_needs_the_import_only_and_no_training_stack(self, tmp_path, ids):
        base = base_model()
        base.save_pretrained(tmp_path / "base")
        model = with_random_output(
            hankelred_llm.attach(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), r=6)
        ).eval()
        model.save_pretrained(tmp_path / "adapter")
        torch.save({"ids": ids, "logits": logits(model, ids)}, tmp_path / "expected.pt")
        script = f"""
import sys, torch, hankelred_llm
print([name for name in ("trl", "datasets", "matplotlib", "transformers.trainer") if name in sys.modules])
from peft import AutoPeftModelForCausalLM
expected = torch.load(r"{tmp_path}/expected.pt")
model = AutoPeftModelForCausalLM.from_pretrained(r"{tmp_path}/adapter").eval()
with torch.no_grad():
    print(torch.equal(model(expected["ids"]).logits, expected["logits"]))
"""
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ}
        )
        assert run.stdout.split() == ["[]", "True"], run.stderr


class TestSizes:
    def test_the_count_is_that_of_lora_16_on_mistral_7b(self):
        sizes = {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        }
        with torch.device("meta"):
            ours = hankelred_llm.attach(base_model_on_meta(**sizes), r=26)
            lora = peft.get_peft_model(
                base_model_on_meta(**sizes),
                LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
            )
        assert all(p.is_meta for p in ours.parameters())
        per_layer = ours.get_nb_trainable_parameters()[0] / 2
        assert lora.get_nb_trainable_parameters()[0] / 2 == 212_992
        assert per_layer == 212_992 + 26 + 1

    @pytest.mark.parametrize(
        ("r", "eigenvalues", "extra"), [(6, "complex", 6), (5, "complex", 5), (6, "real", 6)]
    )
    def test_parameters_of_a_layer(self, r, eigenvalues, extra, capsys):
        model = hankelred_llm.attach(base_model(), r=r, eigenvalues=eigenvalues)
        assert model.get_nb_trainable_parameters()[0] == 2 * (2 * r * WIDTH + extra + 1)
        model.print_trainable_parameters()
        assert "trainable params" in capsys.readouterr().out

    @pytest.mark.parametrize(("width", "heads", "groups", "saved"), [(64, 4, 2, 43), (4096, 32, 8, 46)])
    def test_what_one_input_map_saves(self, width, heads, groups, saved):
        read = ["q_proj", "k_proj", "v_proj"]
        counts = []
        for low_rank in {"static_readouts": read}, {"lora": {"r": 8, "target_modules": read}}:
            sizes = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": groups}
            with torch.device("meta"):
                model = hankelred_llm.attach(base_model_on_meta(**sizes), r=8, site="attention", **low_rank)
            counts.append(model.get_nb_trainable_parameters()[0])
        assert round(100 * (1 - counts[0] / counts[1])) == saved


def base_model_on_meta(**sizes):
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(num_hidden_layers=2, **sizes))


class TestFiles:
    def test_the_round_trip_is_bitwise(self, tmp_path, ids):
        model = adapted(r=5)
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base_model(), tmp_path)
        assert torch.equal(logits(again, ids), expected)
        assert sorted(os.listdir(tmp_path)) == ["README.md", "adapter_config.json", WEIGHTS]
        keys = load_file(tmp_path / WEIGHTS)
        assert len(keys) == 10 and all("default" not in key and "hrm_system" in key for key in keys)
        assert not any(p.requires_grad for p in again.parameters())
        trainable = PeftModel.from_pretrained(base_model(), tmp_path, is_trainable=True)
        assert sum(p.requires_grad for p in trainable.parameters()) == 10

    def test_under_another_name(self, tmp_path, ids):
        model = adapted()
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base_model(), tmp_path, adapter_name="other")
        assert torch.equal(logits(again, ids), expected)
        again.save_pretrained(tmp_path / "again")
        assert (
            load_file(tmp_path / "again" / "other" / WEIGHTS).keys() == load_file(tmp_path / WEIGHTS).keys()
        )

    def test_with_little_memory(self, tmp_path, ids):
        model = adapted()
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base_model(), tmp_path, low_cpu_mem_usage=True)
        # The weights stay where the file maps them, at any address: products round by alignment.
        torch.testing.assert_close(logits(again, ids), expected, rtol=0, atol=2e-6)
        weights = peft.get_peft_model_state_dict(model)
        for key, value in peft.get_peft_model_state_dict(again).items():
            assert torch.equal(value, weights[key])

    @needs_adapter_methods
    def test_into_a_model_by_transformers(self, tmp_path, ids):
        model = adapted()
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        base = base_model()
        base.load_adapter(str(tmp_path))  # whose weights, too, stay where the file maps them
        torch.testing.assert_close(logits(base, ids), expected, rtol=0, atol=2e-6)
        assert error(step_by_step(base, ids), expected) < 2e-6
        base.disable_adapters()
        assert torch.equal(logits(base, ids), logits(base_model(), ids))
        base.enable_adapters()
        base.save_pretrained(tmp_path / "again")
        assert torch.equal(logits(PeftModel.from_pretrained(base_model(), tmp_path / "again"), ids), expected)

    @pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
    @needs_adapter_methods
    def test_more_adapters_by_transformers(self, tmp_path, ids):
        # All that is not in the file and has "hrm", or the adapter's name, somewhere in its own counts as
        # missing for transformers: a second adapter was refused for the parameters of the first, one called
        # "a" for those of the base, and one called style for those of a LoRA called style-lora.
        model = adapted()
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        base = base_model()
        base.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]), "style-lora")
        for name in ("first", "a", "style"):
            base.load_adapter(str(tmp_path), adapter_name=name)
        base.set_adapter("style")
        torch.testing.assert_close(logits(base, ids), expected, rtol=0, atol=2e-6)

    def test_the_file_on_the_hub_that_is_checked_is_the_one_that_is_loaded(self, monkeypatch, tmp_path):
        # Revision and token were left out: a private adapter was refused, and a revision with nothing but a
        # pickle passed where the main branch had a safetensors file. Without a connection all passed.
        asked = []

        def exists(repo, name, **hub):
            asked.append(hub)
            return None if hub.get("token") == "none" else hub.get("revision") == "v2"

        monkeypatch.setattr("hankelred_llm.adapter.weights_file.check_file_exists_on_hf_hub", exists)
        with pytest.raises(AdapterFileError, match=r"someone/adapter has no adapter_model.safetensors"):
            HRMConfig.from_pretrained("someone/adapter", revision="v1", token="mine")
        assert asked == [{"revision": "v1", "token": "mine"}]
        with pytest.raises(AdapterFileError, match="not in the cache"):
            HRMConfig.from_pretrained("someone/adapter", token="none", cache_dir=str(tmp_path))

    def test_a_hybrid_goes_to_the_hub_and_comes_back_whole(self, monkeypatch, tmp_path, ids):
        # of the hub only the existence of a file had been in the tests: the network alone is replaced here
        def create_commit(*_, operations, **__):
            for added in operations:
                shutil.copy(added.path_or_fileobj, tmp_path / added.path_in_repo)

        def create_repo(_, repo_id, **__):
            return SimpleNamespace(repo_id=repo_id)

        monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
        monkeypatch.setattr("huggingface_hub.HfApi.create_commit", create_commit)
        monkeypatch.setattr("huggingface_hub.ModelCard.load", lambda *_, **__: ModelCard("---\n{}\n---\n"))
        model = adapted(**HYBRID)
        model.push_to_hub("someone/hybrid")

        fetched = []

        @wraps(huggingface_hub.hf_hub_download)
        def download(repo_id, filename, **_):
            fetched.append((repo_id, filename))
            return str(tmp_path / filename)

        def exists(repo_id, filename, **_):
            return repo_id == "someone/hybrid" and (tmp_path / filename).is_file()

        for module in [m for name, m in sys.modules.items() if name.startswith(("peft.", "hankelred_llm."))]:
            for name, call in {"hf_hub_download": download, "file_exists": exists}.items():
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, call)
        loaded = PeftModel.from_pretrained(base_model(), "someone/hybrid")
        assert torch.equal(logits(loaded, ids), logits(model, ids))
        assert set(fetched) == {("someone/hybrid", name) for name in ("adapter_config.json", WEIGHTS)}

    @needs_adapter_methods
    def test_a_refused_adapter_leaves_the_base_trainable(self, tmp_path):
        adapted(r=4).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 6}))
        base = base_model()
        with pytest.raises(AdapterFileError, match="do not fit"):
            base.load_adapter(str(tmp_path), is_trainable=True)
        assert all(p.requires_grad for p in base.parameters())

    def test_trained_modules_of_the_base_are_saved_too(self, tmp_path, ids):
        model = adapted(modules_to_save=["lm_head"])
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lm_head" in name and p.requires_grad:
                    p.mul_(1.5)
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        assert sum("lm_head" in key for key in load_file(tmp_path / WEIGHTS)) == 1
        assert torch.equal(logits(PeftModel.from_pretrained(base_model(), tmp_path), ids), expected)

    @pytest.mark.parametrize("base_type", [torch.bfloat16, torch.float16, torch.float64])
    def test_precision_of_parameters(self, tmp_path, base_type, ids):
        dtype = torch.float64 if base_type == torch.float64 else torch.float32
        model = with_random_output(hankelred_llm.attach(base_model().to(base_type), r=6)).eval()
        model.save_pretrained(tmp_path)
        loaded = [
            model,
            PeftModel.from_pretrained(base_model().to(base_type), tmp_path),
            PeftModel.from_pretrained(base_model().to(base_type), tmp_path, low_cpu_mem_usage=True),
            PeftModel.from_pretrained(base_model().to(base_type), tmp_path, autocast_adapter_dtype=False),
        ]
        for each in loaded:
            types = {p.dtype for name, p in each.named_parameters() if "hrm_system" in name}
            assert types == {dtype}
            assert torch.equal(logits(each, ids), logits(model, ids))
            assert logits(each, ids).dtype == base_type

    def test_a_pickle_is_refused(self, tmp_path):
        adapted().save_pretrained(tmp_path)
        marker = tmp_path / "executed"

        class Payload:
            def __reduce__(self):
                return (os.mkdir, (str(marker),))

        with open(tmp_path / "adapter_model.bin", "wb") as file:
            pickle.dump(Payload(), file)
        os.remove(tmp_path / WEIGHTS)
        with pytest.raises(AdapterFileError, match=r"only adapter_model.bin.*never unpickled"):
            PeftModel.from_pretrained(base_model(), tmp_path)
        assert not marker.exists()
        os.remove(tmp_path / "adapter_model.bin")
        with pytest.raises(AdapterFileError, match="no weights"):
            PeftModel.from_pretrained(base_model(), tmp_path)

    def test_a_pickle_is_refused_with_a_configuration_of_ones_own(self, tmp_path):
        # the folder was looked at where its configuration is read: with config=HRMConfig(...) it is not read,
        # and peft unpickled the weights
        adapted(r=6).save_pretrained(tmp_path)
        torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
        os.remove(tmp_path / WEIGHTS)
        with pytest.raises(AdapterFileError, match=r"only adapter_model.bin.*never unpickled"):
            PeftModel.from_pretrained(base_model(), tmp_path, config=HRMConfig(r=6))

    def test_no_pickle_is_written(self, tmp_path):
        # peft wrote a file that could not be loaded any more
        with pytest.raises(AdapterFileError, match=r"safe_serialization=False.*leave it out"):
            adapted().save_pretrained(tmp_path, safe_serialization=False)
        assert not list(tmp_path.iterdir())
        lora = peft.get_peft_model(base_model(), LoraConfig(r=2, target_modules=["q_proj"]))
        lora.save_pretrained(tmp_path, safe_serialization=False)
        assert (tmp_path / "adapter_model.bin").is_file()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda w: w.pop(next(iter(w))), "1 are missing"),
            (lambda w: w.update({BLOCK_7: torch.zeros(6, WIDTH)}), "1 are unknown"),
            (lambda w: w.update({k: v[:4] for k, v in w.items() if k.endswith(".B")}), "shape"),
            (lambda w: w.update({k: v.int() for k, v in w.items()}), r"has type torch\.int32"),
            (lambda w: w.update({k: v.mul(torch.nan) for k, v in w.items()}), "not finite.*earlier"),
        ],
        ids=["less", "more", "shape", "integers", "NaN"],
    )
    @pytest.mark.parametrize("route", ["peft", "transformers"])
    @needs_adapter_methods
    def test_unfit_weights_are_refused_on_both_routes(self, tmp_path, change, message, route, ids):
        # transformers' load_adapter went round the checks: missing weights stayed random with a warning,
        # and NaN or whole numbers were loaded
        adapted(r=6).save_pretrained(tmp_path)
        weights = load_file(tmp_path / WEIGHTS)
        change(weights)
        save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / WEIGHTS)
        base = base_model()
        with pytest.raises(AdapterFileError, match=message):
            if route == "peft":
                PeftModel.from_pretrained(base, tmp_path)
            else:
                base.load_adapter(str(tmp_path))
        if route == "transformers":
            assert torch.equal(logits(base, ids), logits(base_model(), ids))

    @needs_adapter_methods
    def test_a_refusal_by_transformers_leaves_the_base_as_it_was(self, tmp_path):
        # the decoder kept hooks, its layers another class, and empty modules beside their blocks
        adapted(r=6).save_pretrained(tmp_path / "whole")
        weights = load_file(tmp_path / "whole" / WEIGHTS)
        shutil.copytree(tmp_path / "whole", tmp_path / "torn")
        weights.pop(next(iter(weights)))
        save_file(weights, tmp_path / "torn" / WEIGHTS)
        plain, base = base_model(), base_model()
        with pytest.raises(AdapterFileError, match="1 are missing"):
            base.load_adapter(str(tmp_path / "torn"))
        assert [type(m) for m in base.modules()] == [type(m) for m in plain.modules()]
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in base.modules())
        base.load_adapter(str(tmp_path / "whole"))
        # one that was there before stays, at work
        with (
            pytest.raises(AdapterFileError, match="1 are missing"),
            pytest.warns(UserWarning, match="multiple adapters|is now deleted"),
        ):
            base.load_adapter(str(tmp_path / "torn"), adapter_name="other")
        base.set_adapter("default")
        ids = tokens(2, 12)
        expected = logits(adapted(r=6), ids)
        assert torch.equal(logits(base, ids), expected)
        assert error(step_by_step(base, ids), expected) < 2e-6

    @pytest.mark.parametrize("method", ["lora", "hrm"])
    @needs_adapter_methods
    def test_who_asks_for_local_files_is_not_looked_up_on_the_hub(self, tmp_path, monkeypatch, method, ids):
        # an adapter of any method was looked up on the hub once more, whatever the caller had said of local
        # files: offline that waited, and one of ours was then loaded without any check
        if method == "lora":
            saved = base_model()
            saved.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        else:
            saved = adapted(r=6)
        saved.save_pretrained(tmp_path / "adapter")
        cache = tmp_path / "cache"
        snapshot = cache / "models--someone--something" / "snapshots" / ("0" * 40)
        shutil.copytree(tmp_path / "adapter", snapshot)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)

        asked = []

        def no_connection(*args, **kwargs):
            asked.append(args)
            raise ConnectionError("no connection")

        monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", no_connection)
        base = base_model()
        only = {"cache_dir": str(cache), "local_files_only": True}
        base.load_adapter("someone/something", adapter_kwargs=only)
        assert error(logits(base, ids), logits(saved, ids)) < 2e-6
        if method == "hrm":
            weights = load_file(snapshot / WEIGHTS)
            save_file({key: value * torch.nan for key, value in weights.items()}, snapshot / WEIGHTS)
            with pytest.raises(AdapterFileError, match="not finite"):
                base_model().load_adapter("someone/something", adapter_kwargs=only)
        assert not asked

    @needs_adapter_methods
    def test_damaged_files_are_refused_by_transformers(self, tmp_path):
        # a truncated file gave a raw error of safetensors, and a pickle was loaded
        adapted().save_pretrained(tmp_path)
        content = (tmp_path / WEIGHTS).read_bytes()
        (tmp_path / WEIGHTS).write_bytes(content[:200])
        with pytest.raises(AdapterFileError, match=r"no complete safetensors file.*copy it again"):
            base_model().load_adapter(str(tmp_path))
        os.rename(tmp_path / WEIGHTS, tmp_path / "adapter_model.bin")
        with pytest.raises(AdapterFileError, match="never unpickled"):
            base_model().load_adapter(str(tmp_path))

    @pytest.mark.parametrize("wrong", ["NaN", "no file"])
    def test_a_refusal_by_peft_leaves_the_base_as_it_was(self, tmp_path, wrong):
        # the base kept an adapter that nobody had a hold of: attach then refused, and told to call unload()
        # on a PeftModel that did not exist
        adapted(r=6).save_pretrained(tmp_path)
        weights = load_file(tmp_path / WEIGHTS)
        if wrong == "NaN":
            save_file({key: value * torch.nan for key, value in weights.items()}, tmp_path / WEIGHTS)
        else:
            os.remove(tmp_path / WEIGHTS)
        plain, base = base_model(), base_model()
        config = HRMConfig(r=6)  # one that is handed in has looked at no file
        with pytest.raises(AdapterFileError):
            PeftModel.from_pretrained(base, tmp_path, config=config)
        assert [type(m) for m in base.modules()] == [type(m) for m in plain.modules()]
        assert all(p.requires_grad for p in base.parameters()) and not hasattr(base, "peft_config")
        hankelred_llm.attach(base, r=6)

    @pytest.mark.filterwarnings("ignore:You are trying to modify a model")
    def test_a_base_with_an_adapter_is_not_wrapped_again(self, tmp_path):
        # a second PeftModel replaced the first, and both then used one adapter
        model = adapted(r=6)
        model.save_pretrained(tmp_path)
        B = system_of(model).B.clone()
        for call in (
            lambda base: PeftModel.from_pretrained(base, tmp_path),
            lambda base: peft.get_peft_model(base, HRMConfig(r=4)),
        ):
            with pytest.raises(AdapterError, match="the model has an HRM adapter already"):
                call(model.get_base_model())
            with pytest.raises(AdapterError, match=r"is a PeftModel already.*load_adapter\(folder"):
                call(model)
        assert torch.equal(system_of(model).B, B)

    def test_saving_the_base_with_an_adapter_in_it_is_warned_of(self, tmp_path):
        # a Trainer that was given the base instead of what attach returned wrote all of it at each
        # checkpoint, with adapters that no from_pretrained reads
        base = base_model()
        model = hankelred_llm.attach(base, r=4)
        with pytest.warns(UserWarning, match="the PeftModel that attach returned"):
            base.save_pretrained(tmp_path)
        model.unload().save_pretrained(tmp_path)

    @needs_adapter_methods
    def test_other_methods_load_by_transformers(self, tmp_path, ids):
        base = base_model()
        base.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        base.save_pretrained(tmp_path)
        again = base_model()
        again.load_adapter(str(tmp_path))
        assert error(logits(again, ids), logits(base, ids)) < 2e-6

    @pytest.mark.parametrize("size", [0, 5, 200, -1])
    def test_a_truncated_file_is_refused(self, tmp_path, size):
        adapted().save_pretrained(tmp_path)
        content = (tmp_path / WEIGHTS).read_bytes()
        (tmp_path / WEIGHTS).write_bytes(content[:size])
        with pytest.raises(AdapterFileError, match=r"no complete safetensors file.*copy it again"):
            PeftModel.from_pretrained(base_model(), tmp_path)

    def test_other_shapes_are_refused(self, tmp_path):
        adapted(r=6).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
        with pytest.raises(AdapterFileError, match=r"shape \((3|6).*in the file and \((4|8)"):
            PeftModel.from_pretrained(base_model(), tmp_path)

    @pytest.mark.parametrize("change", ["less", "more"])
    def test_other_weights_are_refused(self, tmp_path, change):
        adapted(r=6).save_pretrained(tmp_path)
        weights = load_file(tmp_path / WEIGHTS)
        if change == "less":
            weights.pop(next(iter(weights)))
        else:
            weights["base_model.model.model.layers.7.mlp.hrm_system.B"] = torch.zeros(6, WIDTH)
        save_file(weights, tmp_path / WEIGHTS)
        with pytest.raises(AdapterFileError, match="1 are missing" if change == "less" else "1 are unknown"):
            PeftModel.from_pretrained(base_model(), tmp_path)

    @pytest.mark.parametrize(
        "base", [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"model_type": "llama"}], ids=str
    )
    def test_another_base_is_refused_naming_both(self, tmp_path, base):
        adapted(r=6).save_pretrained(tmp_path)
        with pytest.raises(
            AdapterFileError, match=r"made for .*mistral.*the model is .*'model_type': '(mistral|llama)'"
        ):
            PeftModel.from_pretrained(base_model(**base), tmp_path)

    def test_a_base_of_another_name_is_warned_of(self, tmp_path):
        for name in ("one", "two"):
            base_model(seed=len(name)).save_pretrained(tmp_path / name)
        first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
        hankelred_llm.attach(first, r=4).save_pretrained(tmp_path / "adapter")
        moved = shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "one")
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(moved), tmp_path / "adapter")
        with pytest.warns(UserWarning, match=r"trained on '.*one', and is put into '.*two'"):
            PeftModel.from_pretrained(second, tmp_path / "adapter")


class TestSeveral:
    def test_two_adapters(self, tmp_path, ids):
        model, base = adapted(), logits(base_model(), ids)
        first = logits(model, ids)
        model.add_adapter(
            "other", HRMConfig(r=4, site="attention", eigenvalues="real", layers_to_transform=[1])
        )
        assert torch.equal(logits(model, ids), first)
        model.set_adapter("other")
        assert torch.equal(logits(model, ids), base)
        with_random_output(model, seed=9)
        other = logits(model, ids)
        assert error(step_by_step(model, ids), other) < 2e-6
        with model.disable_adapter():
            assert torch.equal(logits(model, ids), base)
        assert torch.equal(logits(model, ids), other)
        model.base_model.set_adapter(["default", "other"])
        assert error(step_by_step(model, ids), logits(model, ids)) < 2e-6
        model.set_adapter("default")
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base_model(), tmp_path)
        again.load_adapter(tmp_path / "other", adapter_name="other")
        assert torch.equal(logits(again, ids), logits(model, ids))
        again.set_adapter("other")
        assert torch.equal(logits(again, ids), other)
        again.delete_adapter("default")
        assert torch.equal(logits(again, ids), other)

    def test_both_sites_of_one_layer(self, ids):
        model = adapted()
        model.add_adapter("other", HRMConfig(r=4, site="attention"))
        with_random_output(model, seed=9)
        model.base_model.set_adapter(["default", "other"])
        assert error(step_by_step(model, ids), logits(model, ids)) < 2e-6

    def test_copies_are_independent(self, ids):
        model = adapted()
        before = logits(model, ids)
        twin = copy.deepcopy(model)
        assert torch.equal(logits(twin, ids), before)
        with torch.no_grad():
            for name, p in twin.named_parameters():
                if name.endswith(".C"):
                    p.zero_()
        assert torch.equal(logits(twin, ids), logits(base_model(), ids))
        assert torch.equal(logits(model, ids), before)
        # hooks of the copy feed the copy: a padded batch through one does not show in the other
        mask = torch.ones_like(ids)
        mask[:, :3] = 0
        calls = []
        system = system_of(model)
        system.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(kwargs["valid"]), with_kwargs=True
        )
        logits(model, ids)
        with torch.no_grad():
            twin(ids, attention_mask=mask)
        logits(model, ids)
        assert calls == [None, None]
        assert torch.equal(logits(model.unload(), ids), logits(base_model(), ids))
        assert error(step_by_step(twin, ids), logits(twin, ids)) < 2e-6
        assert not twin.unload().model.layers[0].mlp._forward_hooks

    def test_models_can_be_pickled_whole(self, ids):
        model = adapted()
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(logits(again, ids), logits(model, ids))
        assert error(step_by_step(again, ids), logits(model, ids)) < 2e-6


class TestBesideLora:
    LORA = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)

    def trained(self, model, ids):
        base = model.get_base_model()
        optimizer = torch.optim.SGD([p for p in base.parameters() if p.requires_grad], lr=0.5)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        return model

    @needs_adapter_methods
    def test_lora_first(self, tmp_path, ids):
        base = base_model()
        base.add_adapter(copy.deepcopy(self.LORA))
        only_lora = logits(base, ids)
        model = hankelred_llm.attach(base, r=6)
        assert torch.equal(logits(model, ids), only_lora)
        self.check_training_and_files(model, base, tmp_path, ids)

    @needs_adapter_methods
    def test_hrm_first(self, tmp_path, ids):
        base = base_model()
        model = hankelred_llm.attach(base, r=6)
        with pytest.warns(UserWarning, match="multiple adapters"):
            base.add_adapter(copy.deepcopy(self.LORA))
        self.check_training_and_files(model, base, tmp_path, ids)

    def test_the_bases_own_names_do_not_change(self):
        names = set(base_model().state_dict())
        assert names == {name for name in adapted().get_base_model().state_dict() if "hrm_system" not in name}

    @pytest.mark.parametrize("name", ["default", "lora"])
    @needs_adapter_methods
    def test_names_of_one_do_not_switch_the_other(self, name, ids):
        base = base_model()
        base.add_adapter(copy.deepcopy(self.LORA), adapter_name=name)
        model = with_random_output(hankelred_llm.attach(base, r=6))
        both = logits(model, ids)
        base.set_adapter(name)
        assert torch.equal(logits(model, ids), both)
        model.set_adapter("default")
        assert torch.equal(logits(model, ids), both)

    def check_training_and_files(self, model, base, tmp_path, ids):
        with_random_output(model)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert any("lora" in name for name in trained) and any("hrm_system" in name for name in trained)
        assert all("lora" in name or "hrm_system" in name for name in trained)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.trained(model.train(), ids).eval()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == set(trained)
        both = logits(model, ids)
        assert error(step_by_step(model, ids), both) < 2e-6
        model.save_pretrained(tmp_path / "hrm")
        base.save_pretrained(tmp_path / "lora")
        assert all("hrm_system" in key for key in load_file(tmp_path / "hrm" / WEIGHTS))
        assert all("lora" in key for key in load_file(tmp_path / "lora" / WEIGHTS))
        assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
        fresh = base_model()
        fresh.load_adapter(str(tmp_path / "lora"))
        again = hankelred_llm.attach(fresh, HRMConfig.from_pretrained(tmp_path / "hrm"))
        peft.set_peft_model_state_dict(again, load_file(tmp_path / "hrm" / WEIGHTS))
        assert torch.equal(logits(again.eval(), ids), both)
        fresh = base_model()
        fresh.load_adapter(str(tmp_path / "lora"))
        assert torch.equal(logits(PeftModel.from_pretrained(fresh, tmp_path / "hrm"), ids), both)

    @needs_adapter_methods
    def test_unload_leaves_lora(self, ids):
        base = base_model()
        base.add_adapter(copy.deepcopy(self.LORA))
        only_lora = logits(base, ids)
        with_random_output(hankelred_llm.attach(base, r=6)).unload()
        assert torch.equal(logits(base, ids), only_lora)
        assert list(base.peft_config) == ["default"] and base.peft_config["default"].peft_type == "LORA"

    def test_a_lora_peft_models_base(self, tmp_path, ids):
        base = base_model()
        peft.get_peft_model(base, copy.deepcopy(self.LORA))
        model = with_random_output(hankelred_llm.attach(base, r=6))
        model.save_pretrained(tmp_path)
        assert all("hrm_system" in key for key in load_file(tmp_path / WEIGHTS))


class TestUnloading:
    def test_unload_gives_the_base_back(self, ids):
        plain = base_model()
        model = adapted()
        base = model.unload()
        assert torch.equal(logits(base, ids), logits(plain, ids))
        assert not any(isinstance(module, HRMLayer) for module in base.modules())
        assert {n for n, _ in base.named_parameters()} == {n for n, _ in plain.named_parameters()}
        assert [type(m) for m in base.modules()] == [type(m) for m in plain.modules()]
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in base.modules())
        assert not hasattr(base, "peft_config")
        hankelred_llm.attach(base, r=3)

    @pytest.mark.parametrize("call", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
    def test_merging_is_refused(self, call):
        with pytest.raises(AdapterError, match="cannot be merged into weights"):
            getattr(adapted(), call)()

    def test_merging_a_layer_is_refused(self):
        layer = adapted().get_base_model().model.layers[0].mlp_adapter
        for call in (layer.merge, layer.unmerge):
            with pytest.raises(AdapterError, match="cannot be merged"):
                call()


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"r": 0}, r"r=0 must be a whole number of at least 1"),
            ({"r": 2.5}, r"r=2.5"),
            ({"r": True}, r"r=True"),
            (
                {"eigenvalues": "imaginary"},
                r"eigenvalues='imaginary' is unknown; choose one of 'complex', 'real'",
            ),
            ({"site": "norm"}, r"site='norm' is unknown; choose one of 'mlp', 'attention'"),
            ({"tap": "middle"}, r"tap='middle' is unknown; choose one of 'input', 'output'"),
            ({"init_weights": "zeros"}, r"init_weights='zeros' is unknown; choose one of 'ring', 's4d_real'"),
            ({"gate_init": float("nan")}, r"gate_init=nan is no finite number"),
            ({"gate_init": "big"}, r"gate_init='big'"),
            ({"rank_pattern": {"layers.0.mlp": 0}}, r"rank_pattern\['layers.0.mlp'\]=0"),
            ({"mode_pattern": {"layers.0.mlp": 1}}, r"mode_pattern\['layers.0.mlp'\]=1"),
            ({"mode_pattern": {"layers.0.mlp": [1, -1]}}, r"mode_pattern\['layers.0.mlp'\]=-1"),
            # these came out as AttributeError and TypeError, or, the last two, were taken: [] for all layers
            ({"rank_pattern": None}, "rank_pattern=None must be a dict"),
            ({"mode_pattern": [1]}, r"mode_pattern=\[1\] must be a dict"),
            ({"layers_to_transform": "0"}, "layers_to_transform='0' must be a layer index"),
            ({"layers_to_transform": ["0"]}, r"layers_to_transform=\['0'\] must be"),
            ({"layers_to_transform": [0.0]}, r"layers_to_transform=\[0.0\] must be"),
        ],
    )
    def test_values_that_mean_nothing(self, fields, message):
        with pytest.raises(ConfigError, match=message) as caught:
            HRMConfig(**fields)
        assert isinstance(caught.value, hankelred.HankelredError)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            # the site was passed over without a word
            ({"site": "attention", "target_modules": ["mlp"]}, "name different blocks"),
            ({"site": "attention", "target_modules": ["layers.0.mlp"]}, "name different blocks"),
            # the default was not told from a wish
            ({"site": "mlp", "target_modules": ["self_attn"]}, "site='mlp' and .* name different blocks"),
            ({"site": "mlp", "target_modules": r".*self_attn"}, "site='mlp' and .* name different blocks"),
            # a TypeError of HRMConfig.__init__ that named no remedy
            ({"rank": 4}, "unexpected keyword argument 'rank': its fields are .*r, eigenvalues, site"),
            ({"layers_to_transform": [0, 2]}, "layer 2; the model has layers 0 to 1"),
            ({"layers_to_transform": -1}, "layer -1"),
            ({"layers_to_transform": []}, "leave it out for all layers"),
            ({"rank_pattern": {"layers.2.mlp": 4}}, r"'layers.2.mlp'.*like 'layers.0.mlp', up to layer 1"),
            ({"rank_pattern": {"layers.0.self_attn": 4}}, "no adapted block"),
            ({"mode_pattern": {"layers.0.mlp": [4, 0]}, "r": 6}, "need 8 states, but its order is 6"),
        ],
    )
    def test_layers_that_do_not_exist(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            hankelred_llm.attach(base_model(), **fields)

    @pytest.mark.parametrize("target", ["gate_proj", "lm_head"])
    def test_targets_that_are_no_blocks(self, target):
        with pytest.raises(hankelred_llm.ArchitectureError, match=f"{target}"):
            hankelred_llm.attach(base_model(), target_modules=[target])

    def test_ranks_and_layers(self, tmp_path, ids):
        model = adapted(
            base={"num_hidden_layers": 4},
            layers_to_transform=[0, 2, 3],
            rank_pattern={"layers.2.mlp": 3, "layers.3.mlp": 9},
        )
        systems = hankelred_llm.get_systems(model)
        assert {i: len(s[0]) for i, s in systems.items()} == {0: 6, 2: 3, 3: 9}
        expected = logits(model, ids)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base_model(num_hidden_layers=4), tmp_path)
        assert torch.equal(logits(again, ids), expected)

    def test_a_block_by_name(self, ids):
        model = adapted(target_modules=["self_attn"], rank_pattern={"layers.0.self_attn": 3})
        assert [len(s[0]) for s in hankelred_llm.get_systems(model).values()] == [3, 6]
        assert error(step_by_step(model, ids), logits(model, ids)) < 2e-6

    def test_a_site_that_was_not_asked_for_follows_from_the_block(self, tmp_path, ids):
        model = adapted(target_modules=["self_attn"])
        model.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        assert (saved["site"], saved["target_modules"]) == ("mlp", ["self_attn"])
        # whoever loads it passes both on, and copies of a configuration do as well
        assert torch.equal(logits(PeftModel.from_pretrained(base_model(), tmp_path), ids), logits(model, ids))
        config = copy.deepcopy(HRMConfig(r=3, target_modules=["self_attn"]))
        assert config.site == HRMConfig().site == "mlp" and type(config.site) is str
        hankelred_llm.attach(base_model(), config)
        # of bloom's and mpt's blocks, mpt's attention alone returns nothing but its output
        hankelred_llm.attach(base_model("mpt"), r=3, target_modules=["attn"], tap="output")
        for model_type, block in (("mpt", "ffn"), ("bloom", "self_attention"), ("bloom", "mlp")):
            with pytest.raises(ConfigError, match="returns the residual stream"):
                hankelred_llm.attach(base_model(model_type), r=3, target_modules=[block], tap="output")

    @pytest.mark.parametrize("names", ["all-linear", "q_proj"])
    def test_a_pattern_that_names_no_block(self, names):
        # a string is a pattern for whole names: peft said that they were not found, and not what is there
        with pytest.raises(
            hankelred_llm.ArchitectureError, match=rf"target_modules='{names}'.*'\.\*mlp'.*\['mlp'\]"
        ):
            hankelred_llm.attach(base_model(), target_modules=names)

    def test_a_model_without_mlp_is_told_the_other_site(self):
        # only target_modules was named as the way out
        with pytest.raises(hankelred_llm.ArchitectureError, match="site='attention'"):
            hankelred_llm.attach(base_model("opt", word_embed_proj_dim=WIDTH))

    def test_modules_to_save_that_do_not_exist(self):
        # they were passed over without a word, and nothing of them was trained
        with pytest.raises(ConfigError, match=r"modules_to_save names 'lm_heads'.*lm_head"):
            hankelred_llm.attach(base_model(), modules_to_save=["lm_heads"])

    def test_one_layer_by_number(self):
        model = hankelred_llm.attach(base_model(), r=4, layers_to_transform=1)
        assert list(hankelred_llm.get_systems(model)) == [1]

    def test_names_of_layers_in_gpt2(self):
        model = hankelred_llm.attach(base_model("gpt2"), r=4, rank_pattern={"h.1.mlp": 2})
        assert [len(s[0]) for s in hankelred_llm.get_systems(model).values()] == [4, 2]

    def test_the_configuration_survives_its_file(self, tmp_path):
        config = HRMConfig(
            r=7,
            eigenvalues="real",
            site="attention",
            tap="output",
            gate_init=0.5,
            layers_to_transform=range(2),
            rank_pattern={"layers.0.self_attn": 3},
        )
        config.save_pretrained(tmp_path)
        assert peft.PeftConfig.from_pretrained(tmp_path) == config


class TestStart:
    def test_the_ring(self):
        model = hankelred_llm.attach(base_model(hidden_size=64), r=64)
        systems = hankelred_llm.get_systems(model)
        modulus = torch.cat([torch.from_numpy(s[0].real).exp() for s in systems.values()])
        assert 0.9 <= modulus.min() < 0.93 and 0.99 < modulus.max() <= 0.999
        squared = modulus.square()
        middle = (0.9**2 + 0.999**2) / 2
        assert 0.35 < (squared < middle).float().mean() < 0.65
        phase = torch.cat([torch.from_numpy(s[0].imag) for s in systems.values()])
        assert (phase.abs() > 0).all() and phase.cos().mean().abs() < 0.25
        B = system_of(model).B
        assert B.std().item() == pytest.approx((2 * 64) ** -0.5, rel=0.05)
        for layer in model.get_base_model().model.layers:
            system = layer.mlp_adapter.system("default")
            assert system.C.abs().max() == 0 and system.gate.item() == 1
            assert system.modes.pairs == 32

    @pytest.mark.parametrize("eigenvalues", ["real", "complex"])
    def test_s4d_real(self, eigenvalues):
        model = hankelred_llm.attach(
            base_model(), r=8, eigenvalues=eigenvalues, init_weights="s4d_real", gate_init=0.3
        )
        for log_poles, _, _ in hankelred_llm.get_systems(model).values():
            rates = -log_poles.real[:: 2 if eigenvalues == "complex" else 1]
            steps = rates / (1 + torch.arange(len(rates)).numpy())
            assert (steps >= 0.99e-4).all() and (steps <= 0.101).all() and steps.std() > 0
            assert abs(log_poles.imag).max() == 0
        assert system_of(model).gate.item() == pytest.approx(0.3)

    @pytest.mark.parametrize("init_weights", ["ring", "s4d_real"])
    @pytest.mark.parametrize("gate_init", [0.0, 1.0, 0.1])
    @pytest.mark.parametrize("eigenvalues", ["complex", "real"])
    def test_nothing_is_said_at_first_and_everything_is_learned_soon(
        self, init_weights, gate_init, eigenvalues, ids
    ):
        base = base_model()
        before = logits(base, ids)
        model = hankelred_llm.attach(
            base, r=5, init_weights=init_weights, gate_init=gate_init, eigenvalues=eigenvalues
        )
        assert torch.equal(logits(model, ids), before)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
        reached = set()
        for step in range(3):
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            reached |= {name for name, p in trained.items() if p.grad.abs().max() > 0}
            optimizer.step()
            if step == 0:
                assert not torch.equal(logits(model, ids), before)
        assert reached == trained.keys()

    def test_seeds_are_torchs(self):
        def B(seed):
            base = base_model()
            torch.manual_seed(seed)
            model = hankelred_llm.attach(base, r=4)
            return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])

        assert torch.equal(B(1), B(1)) and not torch.equal(B(1), B(2))

    def test_no_step_reaches_an_unstable_pole(self):
        system = system_of(adapted())
        with torch.no_grad():
            for value in (-80.0, -5.0, 0.0, 5.0, 80.0):
                system.log_rate.fill_(value)
                assert (system.log_decay() < 0).all()


@pytest.mark.parametrize("fields", [{"r": 6}, HYBRID], ids=["mlp", "hybrid"])
def test_offloaded_models(tmp_path, fields, ids):
    """accelerate puts functions of its own in the place of forward."""
    accelerate = pytest.importorskip("accelerate")
    expected = logits(adapted(**fields), ids)
    base = accelerate.cpu_offload(base_model(), execution_device=torch.device("cpu"))
    torch.manual_seed(7)
    model = with_random_output(hankelred_llm.attach(base, **fields)).eval()
    assert error(logits(model, ids), expected) < 2e-6
    if fields is HYBRID:
        with pytest.raises(AdapterError, match="quantized, sharded or offloaded"):
            model.merge_static()
    model.unload()
    assert error(logits(base, ids), logits(base_model(), ids)) < 2e-6


@pytest.mark.parametrize(
    "fields", [{"r": 6}, {"r": 6, "tap": "output"}, HYBRID], ids=["mlp", "output", "hybrid"]
)
def test_offloading_a_model_with_an_adapter(fields, ids):
    # accelerate brings parameters back for the forward of their module only, and decoding and static readouts
    # read them elsewhere: a NotImplementedError of torch, "Cannot copy out of meta tensor".
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(adapted(**fields), execution_device=torch.device("cpu"))
    with pytest.raises(AdapterError, match=r"'default' are on the meta device.*offload the base model first"):
        logits(model, ids)


def test_auto_class(tmp_path, ids):
    base_model().save_pretrained(tmp_path / "base")
    model = with_random_output(
        hankelred_llm.attach(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), r=6)
    ).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize("config", [LoraConfig(r=2), {"r": 4}, 16])
def test_configuration_of_another_method(config):
    # attach(model, LoraConfig(r=4)) returned a model with a LoRA in it and no HRM adapter, without a word; a
    # dict ended in "'dict' object has no attribute 'base_model_name_or_path'".
    base = base_model()
    with pytest.raises(ConfigError, match=rf"{type(config).__name__}.*attach takes an HRMConfig"):
        hankelred_llm.attach(base, config)
    assert not [name for name, _ in base.named_parameters() if "lora" in name]


@pytest.mark.parametrize("model", [None, "mistralai/Mistral-7B-v0.1"])
def test_no_model(model):
    # The name of a model in its place gave "'str' object has no attribute 'modules'".
    with pytest.raises(
        hankelred_llm.ArchitectureError, match=r"is no model.*from_pretrained|is no model.*Auto"
    ):
        hankelred_llm.attach(model)


@pytest.mark.parametrize("layers", [[], "0", ["0"], [True], 1.0])
def test_layers_that_are_no_indices(layers):
    # An empty list of layers, the outcome of a filter that matches nothing, adapted all of them; a string
    # gave "'<=' not supported between instances of 'int' and 'str'".
    with pytest.raises(ConfigError, match=r"layers_to_transform=.*such as"):
        HRMConfig(layers_to_transform=layers)


@pytest.mark.parametrize("pattern", [{0: 4}, ["layers.0.mlp"]])
def test_rank_pattern_by_index(pattern):
    # rank_pattern={0: 4} is how reduce names layers; here it gave "can only concatenate str".
    with pytest.raises(ConfigError, match=r"rank_pattern=.*by names such as 'layers\.3\.mlp'"):
        HRMConfig(rank_pattern=pattern)


def test_rank_of_a_layer_that_is_not_adapted():
    # The rank of a layer outside layers_to_transform was ignored without a word.
    with pytest.raises(
        ConfigError, match=r"'layers\.0\.mlp'.*like 'layers\.1\.mlp'.*layers_to_transform=\[1\]"
    ):
        hankelred_llm.attach(base_model(), layers_to_transform=[1], rank_pattern={"layers.0.mlp": 4})


@pytest.mark.parametrize("target", [["self_attn"], r".*\.self_attn"])
def test_rank_of_a_named_block(target):
    # With target_modules of one's own, ranks were compared with the block of the site: rank_pattern could
    # not be used, and an adapter that reduce had written could not be loaded.
    model = hankelred_llm.attach(
        base_model(), target_modules=target, rank_pattern={"layers.0.self_attn": 3}, r=5
    )
    orders = {index: len(system[0]) for index, system in hankelred_llm.get_systems(model).items()}
    assert (orders.pop(0), set(orders.values())) == (3, {5})


def test_task_of_another_kind():
    # task_type="SEQ_CLS" was accepted, and written to a file that peft then loads as a classifier.
    with pytest.raises(ConfigError, match=r"task_type='SEQ_CLS'.*CAUSAL_LM"):
        HRMConfig(task_type="SEQ_CLS")
    assert HRMConfig(task_type=peft.TaskType.CAUSAL_LM).task_type == "CAUSAL_LM"


def test_file_of_whole_numbers(tmp_path):
    # A file of integers was loaded: every phase rounded to whole radians.
    adapted().save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: value.to(torch.int32) for key, value in load_file(path).items()}, path)
    with pytest.raises(AdapterFileError, match=r"has type torch\.int32"):
        PeftModel.from_pretrained(base_model(), tmp_path)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half()], ids=["to", "half"])
def test_casting_the_model_does_not_round_the_poles(cast):
    """model.to(bfloat16) after attaching, as bf16_full_eval does, once changed the logits by 0.74."""
    config = transformers.MistralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    before = hankelred_llm.get_systems(model)[0][0]
    cast(model)
    assert next(model.get_base_model().model.embed_tokens.parameters()).dtype in (
        torch.bfloat16,
        torch.float16,
    )
    assert (hankelred_llm.get_systems(model)[0][0] == before).all()


@pytest.mark.parametrize("fields", [{}, HYBRID], ids=["mlp", "hybrid"])
def test_status_names_the_method(fields):
    # peft prints what comes after the point in str(peft_type), which was nothing
    model = adapted(**fields)
    assert len(peft.get_layer_status(model)) > 0
    assert peft.get_model_status(model).peft_types == {"default": "HRM"}
