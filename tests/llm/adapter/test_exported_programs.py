"""Programs of torch.export and ONNX: equal to the model, also where the state is an input and an output."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import HYBRID, adapted, error, step_by_step, tokens, with_cache
from helpers.sweeps import sweep
from torch import nn
from transformers import DynamicCache, StaticCache

import hankelred_llm
from hankelred_llm import StateError

TOLERANCE = 2e-6
#: Lengths of a row that is longer than the one that was traced: less and more than a chunk, and several.
LENGTHS = (5, 40, 100)


class Logits(nn.Module):
    """The whole row at once."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask=None):
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits


class Step(nn.Module):
    """Some tokens after others, of which keys, values and states are inputs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, states, ids, positions, keys):
        cache = cache_with(keys)
        hankelred_llm.set_states(cache, states)
        out = self.model(input_ids=ids, position_ids=positions, use_cache=True, **with_cache(cache))
        return out.logits, *keys_and_states(cache, len(keys))


def shapes_of_step(states):
    """Return which sizes of the inputs of `Step` change: the keys grow."""
    grows = {2: torch.export.Dim.DYNAMIC}
    return {
        "states": dict.fromkeys(states),
        "ids": None,
        "positions": None,
        "keys": [(grows, grows)] * 2,
    }


def keys_and_states(cache, n_layers=2):
    return [(layer.keys, layer.values) for layer in cache.layers[:n_layers]], hankelred_llm.get_states(cache)


def cache_with(keys):
    cache = DynamicCache()
    for k, pair in enumerate(keys):
        cache.update(*pair, k)
    return cache


def model_of(**fields):
    return adapted(base={"sliding_window": None}, **fields).eval()


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("fields", sweep([HYBRID, {}], first=1), ids=["hybrid", "mlp"])
@pytest.mark.parametrize("longer", [False, True], ids=["as traced", "longer"])
def test_a_program_without_a_cache(fields, longer):
    module = Logits(model_of(**fields)).eval()
    time = {"dynamic_shapes": {"ids": {1: torch.export.Dim("t", min=2, max=128)}}} if longer else {}
    with torch.no_grad():
        program = torch.export.export(module, (tokens(1, 12),), strict=False, **time)
        exported = program.module()
        for length in LENGTHS if longer else (12,):
            ids = tokens(1, length)
            assert error(exported(ids), module(ids)) < TOLERANCE
    # the program needs this package no more
    assert not any("hankelred" in name for name in operators(program))


def test_a_program_has_gradients():
    module, ids = Logits(model_of(**HYBRID)), tokens(1, 40)
    program = torch.export.export(module, (ids,), strict=False).module()
    program(ids).square().mean().backward()
    of_program = {name: p.grad for name, p in program.named_parameters() if p.grad is not None}
    module(ids).square().mean().backward()
    expected = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert expected and of_program.keys() == expected.keys()
    for name, gradient in expected.items():
        assert error(of_program[name], gradient) < 1e-4 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("fields", sweep([HYBRID, {}], first=1), ids=["hybrid", "mlp"])
def test_a_program_of_one_step_with_its_states(fields):
    # a cache of torch.export has keys only; keys without states are refused, so there was no such program
    model, ids = model_of(**fields), tokens(1, 30)
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        keys, states = keys_and_states(model(ids[:, :8], use_cache=True).past_key_values)
        example = states, ids[:, 8:9], torch.tensor([[8]]), keys
        shapes = shapes_of_step(states)
        program = torch.export.export(
            Step(model).eval(), example, strict=False, dynamic_shapes=shapes
        ).module()
        for t in range(8, 30):
            logits, keys, states = program(states, ids[:, t : t + 1], torch.tensor([[t]]), keys)
            assert error(logits, full[:, t : t + 1]) < TOLERANCE


@pytest.mark.filterwarnings("ignore")  # of torch and onnxscript about each other
class TestOnnx:
    @pytest.fixture(autouse=True)
    def needed(self):
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)

    def session(self, tmp_path, module, example, shapes):
        import onnxruntime

        with torch.no_grad():
            program = torch.onnx.export(module, example, dynamo=True, dynamic_shapes=shapes, verbose=False)
        program.save(str(tmp_path / "model.onnx"))
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
        names = [node.name for node in session.get_inputs()]
        return lambda *inputs: [
            torch.tensor(out)
            for out in session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        ]

    @pytest.mark.parametrize("kind", ["mlp", "hybrid", "merged"])
    def test_rows_with_padding(self, tmp_path, kind):
        # the recurrence was an operator that no exporter to ONNX knew
        model = model_of(**({} if kind == "mlp" else HYBRID))
        if kind == "merged":
            model.merge_static()
        module = Logits(model).eval()

        def batch(length):
            mask = torch.ones(2, length, dtype=torch.long)
            mask[0, :4] = 0
            return tokens(2, length), mask

        time = {1: torch.export.Dim("t", min=2, max=128)}
        run = self.session(tmp_path, module, batch(12), {"ids": time, "mask": time})
        for length in LENGTHS:
            ids, mask = batch(length)
            with torch.no_grad():
                expected = module(ids, mask)
            assert error(run(ids, mask)[0][mask > 0], expected[mask > 0]) < TOLERANCE

    def test_one_step_with_its_states(self, tmp_path):
        model, ids = model_of(**HYBRID), tokens(1, 20)
        with torch.no_grad():
            full = model(ids, use_cache=False).logits
            keys, states = keys_and_states(model(ids[:, :8], use_cache=True).past_key_values)
        shapes = shapes_of_step(states)
        example = states, ids[:, 8:9], torch.tensor([[8]]), keys
        run = self.session(tmp_path, Step(model).eval(), example, shapes)
        flat, last = [tensor for pair in keys for tensor in pair], list(states.values())
        for t in range(8, 20):
            logits, *rest = run(*last, ids[:, t : t + 1], torch.tensor([[t]]), *flat)
            flat, last = rest[: len(flat)], rest[len(flat) :]
            assert error(logits, full[:, t : t + 1]) < TOLERANCE


class TestStatesOfACache:
    def test_a_cache_is_rebuilt_from_tensors(self):
        model, ids = model_of(**HYBRID), tokens(2, 12)
        logits = {}
        with torch.no_grad():
            cache = model(ids[:, :8], use_cache=True).past_key_values
            keys, states = keys_and_states(cache)
            again = cache_with(keys)
            hankelred_llm.set_states(again, states)
            for t in range(8, 12):
                logits[t] = model(ids[:, t : t + 1], **with_cache(cache)).logits
                assert torch.equal(model(ids[:, t : t + 1], **with_cache(again)).logits, logits[t])
            again.crop(-2)
            assert torch.equal(model(ids[:, 10:11], **with_cache(again)).logits, logits[10])
            # of the tokens before, only the last state was given
            with pytest.raises(StateError, match="states are kept for the last 3"):
                again.crop(-5)

    @pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
    def test_states_do_not_change_with_the_next_token(self, static):
        # of a static cache they were its buffers, which the next token overwrites; of a growing one they were
        # views that kept the states of a whole prompt in memory
        model, ids = model_of(), tokens(1, 12)
        cache = StaticCache(config=model.config, max_cache_len=16) if static else DynamicCache()
        with torch.no_grad():
            model(ids[:, :11], **with_cache(cache))
            states = hankelred_llm.get_states(cache)
            before = {name: state.clone() for name, state in states.items()}
            model(ids[:, 11:], **with_cache(cache))
        for name, state in states.items():
            assert torch.equal(state, before[name])
            assert state.untyped_storage().nbytes() == 4 * 6
        assert not torch.equal(state, hankelred_llm.get_states(cache)[name])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state[:1], "has 1 rows, and the cache has 2"),
            (lambda state: state[..., None], r"shape \(2, 6, 1\); pass floating-point tensors"),
            (lambda state: state[0], r"shape \(6,\); pass floating-point tensors"),
            (lambda state: state.long(), "is a torch.int64 of shape"),
            (lambda state: state.tolist(), "is a list; pass floating-point tensors"),
            (lambda state: state * torch.nan, "numbers that are not finite"),
            (lambda state: state[:, :5], "a state of 5 numbers for block 0.mlp, whose adapter has 6"),
        ],
    )
    def test_what_is_no_state_of_the_rows_is_refused(self, change, message):
        # states of one row were used for both rows, NaN gave NaN, and other shapes ended in errors of torch
        model, ids = model_of(), tokens(2, 12)
        with torch.no_grad():
            keys, states = keys_and_states(model(ids[:, :8], use_cache=True).past_key_values)
            again = cache_with(keys)
            with pytest.raises(StateError, match=message):
                hankelred_llm.set_states(again, {name: change(state) for name, state in states.items()})
                model(ids[:, 8:9], **with_cache(again))

    def test_states_of_layers_that_the_cache_does_not_have_are_refused(self):
        # they were stored, and never used
        model, ids = model_of(), tokens(1, 8)
        with torch.no_grad():
            keys, states = keys_and_states(model(ids, use_cache=True).past_key_values)
        states["7.mlp x"] = torch.zeros(1, 6)
        with pytest.raises(StateError, match=r"states of 7\.mlp, and the cache has 2 layers only"):
            hankelred_llm.set_states(cache_with(keys), states)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    @pytest.mark.parametrize("size", [1, 4])
    def test_states_of_another_type_are_converted(self, dtype, size):
        # they ended in an error of torch
        model, ids = model_of(), tokens(2, 12)
        with torch.no_grad():
            full = model(ids, use_cache=False).logits
            keys, states = keys_and_states(model(ids[:, :8], use_cache=True).past_key_values)
            again = cache_with(keys)
            hankelred_llm.set_states(again, {name: state.to(dtype) for name, state in states.items()})
            tolerance = TOLERANCE if dtype == torch.float64 else 1e-3
            assert error(step_by_step(model, ids[:, 8:], cache=again, size=size), full[:, 8:]) < tolerance

    @pytest.mark.parametrize(
        "fields", [{}, {"target_modules": ["self_attn", "mlp"]}], ids=["one block", "two"]
    )
    def test_states_with_the_names_of_a_copy(self, fields):
        # names belong to the model object, and no page told how states are used with another one
        model, ids = model_of(**fields), tokens(1, 9)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            full = model(ids, use_cache=False).logits
            keys, states = keys_and_states(model(ids[:, :8], use_cache=True).past_key_values)
            names = hankelred_llm.get_states(twin(ids[:, :3], use_cache=True).past_key_values)
            again = cache_with(keys)
            hankelred_llm.set_states(again, dict(zip(names, states.values(), strict=True)))
            assert names.keys().isdisjoint(states)
            assert error(twin(ids[:, 8:], **with_cache(again)).logits, full[:, 8:]) < TOLERANCE

    def test_states_of_a_copy_are_refused(self):
        model, ids = model_of(), tokens(1, 8)
        with torch.no_grad():
            cache = model(ids, use_cache=True).past_key_values
            keys, states = keys_and_states(cache)
            again = cache_with(keys)
            hankelred_llm.set_states(again, states)
            with pytest.raises(StateError, match="has not processed"):
                copy.deepcopy(model)(ids[:, :1], **with_cache(again))

    def test_what_is_no_cache_with_or_without_states(self):
        model, ids = model_of(), tokens(1, 8)
        with torch.no_grad():
            cache = model(ids, use_cache=True).past_key_values
        states = hankelred_llm.get_states(cache)
        with pytest.raises(StateError, match="has states of adapters already"):
            hankelred_llm.set_states(cache, states)
        with pytest.raises(StateError, match="growing cache that has keys"):
            hankelred_llm.set_states(DynamicCache(), states)
        with pytest.raises(StateError, match="growing cache that has keys"):
            hankelred_llm.set_states(DynamicCache(config=model.config), states)
        with pytest.raises(StateError, match="growing cache that has keys"):
            hankelred_llm.set_states(StaticCache(config=model.config, max_cache_len=8), states)
        with pytest.raises(StateError, match="has no states of adapters"):
            hankelred_llm.get_states(DynamicCache())
        keyed = DynamicCache()
        keyed.update(cache.layers[0].keys, cache.layers[0].values, 0)
        for names in ({}, {"0.mlp": torch.zeros(1, 6)}):
            with pytest.raises(StateError, match="not named as get_states names them"):
                hankelred_llm.set_states(keyed, names)

    def test_a_program_with_a_static_cache_is_refused(self):
        # it was exported, and started from a state of zero at every call: logits off by half the largest
        from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

        base = model_of().get_base_model()
        base.config.use_cache = base.generation_config.use_cache = True
        base.generation_config.cache_implementation = "static"
        base.generation_config.cache_config = {"batch_size": 1, "max_cache_len": 16}
        exportable = TorchExportableModuleForDecoderOnlyLM(base, batch_size=1, max_cache_len=16)
        # torch puts an exception of its own around the StateError
        with torch.no_grad(), pytest.raises(Exception, match="none for the states of the adapters"):
            exportable.export(input_ids=tokens(1, 1), cache_position=torch.tensor([0]), strict=False)
