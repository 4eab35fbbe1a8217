"""Calibration: sums against a plain computation, what does not count, what stays as it was, files."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.models import PAD, VOCAB, WIDTH, adapted, base_model, checkpointed, tokens
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache

import hankelred
import hankelred_llm
from hankelred_llm import AdapterError, Calibration, CalibrationError, calibrate
from hankelred_llm.adapter.adapter_layers import hrm_layers
from hankelred_llm.analysis import calibration_pass
from hankelred_llm.analysis.gradient_hankel import GradientOperator


def plain_sums(model, rows):
    """Sums of s s^T and (C^T g)(C^T g)^T over unpadded rows, by a loop over time and an added probe."""
    layers = {layer.index: layer.system("default") for layer in hrm_layers(model)}
    sums = {i: [*np.zeros((2, s.modes.order, s.modes.order))] for i, s in layers.items()}
    for row in rows:
        states, probes, handles = {}, {}, []
        for i, system in layers.items():

            def hook(_, args, __, output, i=i, states=states, probes=probes):
                states[i] = args[0].detach().double()[0]
                probes[i] = torch.zeros_like(output[0], requires_grad=True)
                return output[0] + probes[i], output[1]

            handles.append(system.register_forward_hook(hook, with_kwargs=True))
        out = model(input_ids=row[None], labels=row[None], use_cache=False)
        gradients = torch.autograd.grad(out.loss * (len(row) - 1), list(probes.values()))
        for handle in handles:
            handle.remove()
        for (i, x), g in zip(states.items(), gradients, strict=True):
            system, p = layers[i], layers[i].modes.pairs
            a = -np.exp(system.log_rate.detach().double().numpy())
            phase = system.phase.detach().double().numpy()
            u = (x @ system.B.detach().double().T).numpy()
            z, real = np.zeros(p, complex), np.zeros(system.modes.order - 2 * p)
            for t in range(len(row)):
                z = np.exp(a[:p] + 1j * phase) * z + u[t, :p] + 1j * u[t, p : 2 * p]
                real = np.exp(a[p:]) * real + u[t, 2 * p :]
                s = np.concatenate([z.real, z.imag, real])
                sums[i][0] += np.outer(s, s)
            v = (g[0].double() @ (system.gate * system.C).detach().double()).numpy()
            sums[i][1] += v.T @ v
    return sums


def assert_sums(sums, expected, rtol=2e-4):
    for i, (states, outputs) in expected.items():
        for mine, theirs in ((sums.layers[i].states, states), (sums.layers[i].outputs, outputs)):
            assert np.abs(mine - theirs).max() <= rtol * np.abs(theirs).max()


def rows_of(*lengths):
    return [tokens(length, seed=10 + k) for k, length in enumerate(lengths)]


def padded(rows, side):
    width = max(map(len, rows))
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        pad = torch.full((width - len(row),), PAD)
        ones, zeros, ignored = torch.ones_like(row), torch.zeros_like(pad), torch.full_like(pad, -100)
        labels = torch.cat([torch.tensor([-100]), row[1:]])  # nothing is predicted from padding
        for key, values, fill in (
            ("input_ids", row, pad),
            ("attention_mask", ones, zeros),
            ("labels", labels, ignored),
        ):
            batch[key].append(torch.cat([values, fill] if side == "right" else [fill, values]))
    return {key: torch.stack(value) for key, value in batch.items()}


@pytest.mark.parametrize("side", ["left", "right"])
def test_sums_of_a_padded_batch_are_those_of_its_rows(side):
    model, rows = adapted(r=5), rows_of(9, 14, 5)
    batch = padded(rows, side)
    if side == "left":
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    calibration = calibrate(model, [batch], held_out=0)
    assert_sums(calibration, plain_sums(model, rows))
    assert calibration.tokens == calibration.labelled_tokens == 28
    assert calibration.labels == 25


def test_packed_documents_are_kept_apart():
    model, rows = adapted(), rows_of(9, 14, 5)
    packed = {
        "input_ids": torch.cat(rows)[None],
        "labels": torch.cat([torch.cat([torch.tensor([-100]), row[1:]]) for row in rows])[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
    }
    assert_sums(calibrate(model, [packed], held_out=0), plain_sums(model, rows))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_nothing_twice(reentrant):
    model, rows = adapted(), rows_of(8, 8)
    batch = {"input_ids": torch.stack(rows), "labels": torch.stack(rows)}
    expected = plain_sums(model, rows)
    checkpointed(model, reentrant=reentrant)
    model.train()
    recomputed = []
    layer = model.base_model.model.model.layers[0].mlp
    handle = layer.register_forward_pre_hook(lambda *_: recomputed.append(1))
    calibration = calibrate(model, [batch], held_out=0)
    handle.remove()
    assert len(recomputed) == 2  # it was on
    assert_sums(calibration, expected)


def test_without_labels_there_is_no_backward_pass():
    model, rows = adapted(), rows_of(7, 7)
    calibration = calibrate(model, [{"input_ids": torch.stack(rows)}], held_out=0)
    expected = plain_sums(model, rows)
    assert calibration.labelled_tokens == 0 and calibration.loss is None
    assert_sums(calibration, {i: (states, 0 * outputs) for i, (states, outputs) in expected.items()})


def test_positions_of_documents_that_the_mask_leaves_out_do_not_even_need_to_be_finite():
    model = adapted()
    rows = rows_of(6, 6)
    batch = padded([rows[0], rows[1][:4]], "right")
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]).detach(),
        "attention_mask": batch["attention_mask"],
    }
    a = calibrate(model, [embedded], held_out=0)
    embedded["inputs_embeds"][1, 4:] = 1e6
    b = calibrate(model, [embedded], held_out=0)
    np.testing.assert_allclose(a.layers[0].states, b.layers[0].states, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    model, rows = adapted(), rows_of(12, 12)
    batch = {"input_ids": torch.stack(rows), "labels": torch.stack(rows)}
    expected = calibrate(model, [batch], held_out=0)
    for name, parameter in model.named_parameters():
        if "hrm_system" not in name:
            parameter.data = parameter.data.to(dtype)
    calibration = calibrate(model, [batch], held_out=0)
    for i in expected.layers:
        for kind in ("states", "outputs"):
            mine, theirs = getattr(calibration.layers[i], kind), getattr(expected.layers[i], kind)
            assert np.abs(mine - theirs).max() < 0.1 * np.abs(theirs).max()


# what stays as it was ------------------------------------------------


def everything(model):
    return {
        "parameters": [p.detach().clone() for p in model.parameters()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "identity of gradients": [id(p.grad) for p in model.parameters() if p.grad is not None],
        "mode": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "random state": torch.get_rng_state(),
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_stays_as_it_was(frozen, fails):
    model = adapted(base={"attention_dropout": 0.5}).train()
    checkpointed(model, reentrant=False)
    good = tokens(3, 8)
    model(input_ids=good, labels=good).loss.backward()
    model.base_model.model.model.layers[1].mlp.eval()
    if frozen:
        model.requires_grad_(False)
    before = everything(model)
    batch = {"input_ids": good, "labels": good}
    if fails:
        with pytest.raises(IndexError):
            calibrate(model, [batch, {"input_ids": good + VOCAB, "labels": good}])
    else:
        first, second = calibrate(model, [batch]), calibrate(model, [batch])
        np.testing.assert_array_equal(first.layers[0].states, second.layers[0].states)  # no dropout
    after = everything(model)
    for name in before:
        assert equal(before[name], after[name]), name


def test_a_pass_that_draws_random_numbers_leaves_the_random_state():
    # nothing of the small model draws in evaluation mode: without the guard all tests passed, and a block
    # that draws, as a noisy router does, would have changed the training that follows
    model, batch = adapted(), {"input_ids": tokens(2, 6)}
    model.base_model.model.model.layers[0].mlp.register_forward_hook(lambda *_: torch.rand(1) and None)
    before = torch.get_rng_state()
    calibrate(model, [batch], held_out=0)
    assert torch.equal(torch.get_rng_state(), before)


# merging, resuming, files ------------------------------------------------


def batches(count=6, rows=4, length=10):
    return [{"input_ids": (t := tokens(rows, length, seed=40 + k)), "labels": t} for k in range(count)]


def test_parts_merge_to_the_whole():
    model, data = adapted(), batches()
    whole = calibrate(model, data)
    parts = calibrate(model, data[:4]), calibrate(model, data[4:])
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        for i, sums in whole.layers.items():
            np.testing.assert_allclose(merged.layers[i].states, sums.states, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(merged.layers[i].outputs, sums.outputs, rtol=1e-6, atol=1e-9)
        assert (merged.tokens, merged.rows, merged.labels) == (whole.tokens, whole.rows, whole.labels)
        assert merged.loss == pytest.approx(whole.loss)
        assert len(merged.held_out) == len(whole.held_out)
    assert parts[0].merge(parts[1]).data == parts[1].merge(parts[0]).data


def test_held_out_rows_are_spread_over_the_data_and_bounded():
    model = adapted()
    for count in (1, 6, 30):
        calibration = calibrate(model, [{"input_ids": b["input_ids"]} for b in batches(count)], held_out=100)
        lengths = [int(row["input_ids"].numel()) for row in calibration.held_out]
        assert 0 < sum(lengths) <= 100
        assert calibration.tokens + sum(lengths) <= 40 * count
        rows = torch.cat([b["input_ids"] for b in batches(count)])
        places = [int((rows == row["input_ids"]).all(1).nonzero()[0]) for row in calibration.held_out]
        assert places == list(range(1, 4 * count, calibration.stride))[: len(places)]
        assert places[-1] >= 4 * count - 2 * calibration.stride  # up to the end


def test_held_out_rows_are_in_no_sum():
    model = adapted()
    data = batches(1)
    calibration = calibrate(model, data)
    others = [data[0]["input_ids"][k] for k in (0, 2, 3)]
    assert_sums(calibration, plain_sums(model, others))


def test_save_and_load(tmp_path):
    model = adapted()
    calibration = calibrate(model, batches(2))
    path = tmp_path / "calibration.safetensors"
    calibration.save(path)
    calibration.save(path)
    assert os.listdir(tmp_path) == [path.name]
    loaded = Calibration.load(path)
    for name in ("model", "adapter", "data", "tokens", "labels", "loss_sum", "stride", "rows"):
        assert getattr(loaded, name) == getattr(calibration, name)
    for i in calibration.layers:
        np.testing.assert_array_equal(loaded.layers[i].outputs, calibration.layers[i].outputs)
    assert all(
        torch.equal(a["labels"], b["labels"])
        for a, b in zip(loaded.held_out, calibration.held_out, strict=True)
    )
    loaded.check(model)
    assert loaded.merge(calibration).tokens == 2 * calibration.tokens
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["calibration"])["adapter"]["name"] == "default"


def test_files_that_are_none(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        Calibration.load(path)
    calibrate(adapted(), batches(1)).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-50], b"x" * 200):
        path.write_bytes(damaged)
        with pytest.raises(CalibrationError, match="no complete calibration"):
            Calibration.load(path)
    with pytest.raises(OSError):
        calibrate(adapted(), batches(1)).save(tmp_path / "no" / "file")


def test_an_interrupted_pass_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_pass, "SAVE_EVERY", 0.0)
    model, data, path = adapted(), batches(), tmp_path / "checkpoint"

    def interrupted():
        yield from data[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, interrupted(), checkpoint=path)
    assert Calibration.load(path).rows == 16
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    calibration = calibrate(model, data, checkpoint=path)
    assert len(calls) == 2
    whole = calibrate(model, data)
    handle.remove()
    np.testing.assert_allclose(calibration.layers[1].outputs, whole.layers[1].outputs)
    assert calibration.data == whole.data == Calibration.load(path).data
    with pytest.raises(CalibrationError, match="6 batches, and these are others"):
        calibrate(model, batches(6, length=9), checkpoint=path)
    with pytest.raises(CalibrationError, match="6 batches, and fewer were passed"):
        calibrate(model, data[:3], checkpoint=path)


@pytest.mark.parametrize("change", ["adapter", "model", "one base weight"])
def test_another_model_or_adapter_is_refused(change):
    model = adapted()
    calibration = calibrate(model, batches(1))
    if change == "adapter":
        with torch.no_grad():
            hrm_layers(model)[1].system("default").B[0, 0] += 1e-3
        other, message = (
            model,
            r"adapter 'default' \(\w{12}\), and this is 'default' \(\w{12}\).*calibrate again",
        )
    elif change == "model":
        other, message = adapted("llama"), r"model 'mistral' \(\w{12}\), and this is 'llama'"
    else:
        other, message = adapted(base={"seed": 5}), "model 'mistral'"
    for refused in (
        lambda: calibration.check(other),
        lambda: calibration.merge(calibrate(other, batches(1))),
        lambda: hankelred_llm.hankel_spectra(other, calibration),
        lambda: hankelred_llm.reduce(other, order=2, calibration=calibration),
    ):
        with pytest.raises(CalibrationError, match=message):
            refused()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_collected_where_the_caller_has_them_off(mode):
    # A frozen model is mostly run under no_grad: the backward pass then failed with "element 0 of tensors
    # does not require grad", because the sum of the losses was made outside of enable_grad.
    model = adapted(r=5)
    batches = [{"input_ids": tokens(4, 12), "labels": tokens(4, 12)}]
    expected = calibrate(model, batches)
    with mode():
        calibration = calibrate(model, batches)
    assert np.any(calibration.layers[0].outputs)
    np.testing.assert_array_equal(calibration.layers[0].outputs, expected.layers[0].outputs)


def test_the_number_of_items_of_a_training_step_changes_no_loss():
    # num_items_in_batch turns the model's loss into another one than the mean over the batch's labels: taken
    # for the mean, 1000 in place of 92 made the loss 11 times too small and the gradients' sums 118 times.
    model = adapted(r=5)
    batch = {"input_ids": tokens(4, 12), "labels": tokens(4, 12)}
    plain = calibrate(model, [batch])
    counted = calibrate(model, [{**batch, "num_items_in_batch": torch.tensor(1000)}])
    assert counted.loss == plain.loss
    np.testing.assert_array_equal(counted.layers[0].outputs, plain.layers[0].outputs)


def test_a_checkpoint_with_other_held_out_rows_is_refused(tmp_path):
    # It resumed with the rows of the call before: of 4096 tokens to compare reductions on it returned none.
    model, batches = adapted(r=5), [{"input_ids": tokens(4, 12)}]
    calibrate(model, batches, checkpoint=tmp_path / "sums", held_out=0)
    with pytest.raises(CalibrationError, match=r"made with held_out=0, and held_out=48 was passed"):
        calibrate(model, batches, checkpoint=tmp_path / "sums", held_out=48)


def edited_file(path, calibration, facts=None, tensors=None):
    """Write a calibration with entries of its metadata and tensors replaced; None takes one away."""
    calibration.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["calibration"])
        content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata = {key: value for key, value in (metadata | (facts or {})).items() if value is not None}
    content = {key: value for key, value in (content | (tensors or {})).items() if value is not None}
    save_file(content, path, metadata={"calibration": json.dumps(metadata)})


@pytest.fixture(scope="module")
def fresh_calibration():
    """Return a calibration that has everything a file can hold, of layers with 5 states, 2 pairs each."""
    model = hankelred_llm.attach(base_model(), r=5)
    data = [{"input_ids": tokens(4, 12, seed=k), "labels": tokens(4, 12, seed=k)} for k in (0, 1)]
    return calibrate(model, data, held_out=24)


EYE, PART = torch.eye(5, dtype=torch.float64), {"digest": "", "batches": 2, "rows": 8, "tokens": 72}


@pytest.mark.parametrize(
    ("facts", "tensors", "message"),
    [
        ({"format": 2}, {}, "it has format 2, this version reads 1"),
        ({"format": None}, {}, "it has format None"),
        ({"tokens": None}, {}, "has no 'tokens'"),
        ({"colour": "red"}, {}, "has 'colour', which is unknown"),
        ({"tokens": 1.5}, {}, "tokens is 1.5, not a whole number"),
        ({"rows": True}, {}, "rows is True, not a whole number"),
        ({"labels": -1}, {}, "labels is -1, not a whole number of at least 0"),
        ({"stride": 0}, {}, "stride is 0, not a whole number of at least 1"),
        ({"labelled_tokens": 99}, {}, "99 of 72 tokens have labels"),
        ({"loss_sum": float("nan")}, {}, "loss_sum is nan"),
        ({"loss_sum": "much"}, {}, "loss_sum is 'much'"),
        ({"loss_sum": 10**400}, {}, "loss_sum is 1000"),
        ({"stride": 10**400}, {}, "stride is 1000"),
        ({"model": "mistral"}, {}, "model is 'mistral', not a dict"),
        ({"adapter": {"name": "default"}}, {}, "adapter has no 'fingerprint'"),
        ({"adapter": {"name": "default", "fingerprint": 5}}, {}, "not two strings"),
        ({"data": []}, {}, "data is \\[\\], not a list of parts"),
        ({"data": [{**PART, "tokens": "all"}]}, {}, "tokens of a part of data is 'all'"),
        ({"data": [{**PART, "digest": 5}]}, {}, "a digest is 5"),
        ({"data": [{**PART, "rows": 7}]}, {}, "its parts have 7 rows, and the whole has 8"),
        ({"pairs": [1]}, {}, "pairs is \\[1\\], not a dict by layer index"),
        ({"pairs": {"0": 99, "1": 2}}, {}, "layer 0 has 99 conjugate pairs among 5 states"),
        ({"pairs": {"0": 2, "01": 2}}, {}, "not a dict by layer index"),
        ({"pairs": {"0": 2}}, {}, r"sums of layers \[0, 1\], and pairs of layers \[0\]"),
        ({}, {"layers.0.states": None}, "layer 0 has no 'states'"),
        ({}, {"layers.0.inputs": EYE}, "layer 0 has 'inputs', which is unknown"),
        ({}, {"layers.0.states": torch.zeros(2, 5).double()}, r"states of layer 0 have shape \(2, 5\)"),
        ({}, {"layers.0.states": torch.tensor(1.0).double()}, r"states of layer 0 have shape \(\)"),
        ({}, {"layers.0.outputs": torch.eye(4).double()}, r"outputs of layer 0 have shape \(4, 4\)"),
        ({}, {"layers.0.states": EYE.float()}, "states of layer 0 is of type torch.float32"),
        ({}, {"layers.0.states": EYE * float("nan")}, "states of layer 0 holds numbers that are not finite"),
        ({}, {"layers.0.states": -EYE}, "states of layer 0 are no sums of squares"),
        ({}, {"weights": EYE}, "'weights' is not an entry of a calibration"),
        ({}, {"layers.first.states": EYE}, "'layers.first.states' is not an entry of"),
        ({}, {"gradients.7.tokens": EYE}, "gradients of layer 7, and sums of layers"),
        ({}, {"gradients.0.own.0.core": EYE}, "own.0.core has shape"),
        ({}, {"gradients.0.own.0.core": None}, "no 'own.0.core'"),
        ({}, {"gradients.0.tokens": torch.tensor(1)}, "tokens of the gradients of layer 0 is of type"),
        ({}, {"gradients.0.more": EYE}, "the gradients of layer 0 has 'more', which is unknown"),
        ({}, {"held_out.9.input_ids": torch.ones(1, 4).long()}, r"numbered \[0, 1, 9\]"),
        ({}, {"held_out.0.input_ids": None}, "held-out row 0 has no input_ids of one sequence"),
        ({}, {"held_out.0.input_ids": torch.ones(2, 4).long()}, "held-out row 0 has no input_ids of one"),
        ({}, {"held_out.0.input_ids": torch.ones(1, 4)}, "input_ids of held-out row 0 are of type"),
        ({}, {"held_out.0.input_ids": torch.ones(1, 1, 12).long()}, "no input_ids of one sequence"),
        ({}, {"held_out.0.input_ids": -torch.ones(1, 12).long()}, "held-out row 0 has token -1"),
        ({}, {"held_out.0.labels": torch.ones(1, 12)}, "labels of held-out row 0 are of type"),
        ({}, {"held_out.0.labels": torch.ones(1, 9).long()}, r"labels of held-out row 0 have shape \(1, 9\)"),
        ({}, {"held_out.0.attention_mask": torch.ones(2, 12)}, r"attention_mask of .* have shape \(2, 12\)"),
        ({}, {"held_out.0.position_ids": torch.tensor(1)}, r"position_ids of .* have shape \(\)"),
        ({}, {"gradients.0.own.0.inputs": torch.tensor(1.0).double()}, "own.0.inputs has shape"),
        # of 10^9 rows and no column: the sums of that width would take 500 TB
        ({}, {"gradients.0.own.0.inputs": torch.empty(10**9, 0).double()}, "has shape"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(tmp_path, fresh_calibration, facts, tensors, message):
    # A list in place of a mapping came out as an AttributeError, and sums of another shape than r x r, wrong
    # types and unknown entries were loaded without a word.
    path = tmp_path / "calibration.safetensors"
    edited_file(path, fresh_calibration, facts, tensors)
    with pytest.raises(CalibrationError, match=f"no complete calibration.*{message}"):
        Calibration.load(path)


@pytest.mark.parametrize("what", ["input_ids", "labels"])
def test_validation_rows_with_tokens_that_the_model_does_not_have(tmp_path, what):
    # they were loaded, and ended in an IndexError of the embedding in the middle of a reduction
    model, path = hankelred_llm.attach(base_model(), r=5), tmp_path / "file"
    calibration = calibrate(model, [{"input_ids": tokens(4, 12), "labels": tokens(4, 12)}], held_out=24)
    edited_file(path, calibration, tensors={f"held_out.0.{what}": torch.full((1, 12), 10**6)})
    with pytest.raises(CalibrationError, match=f"token 1000000 in {what}, and the model has"):
        hankelred_llm.reduce(model, order=2, calibration=Calibration.load(path))


def test_validation_rows_with_arguments_that_the_model_does_not_take(tmp_path):
    model, path = adapted(r=5), tmp_path / "file"
    calibration = calibrate(model, [{"input_ids": tokens(4, 12), "labels": tokens(4, 12)}], held_out=24)
    edited_file(path, calibration, tensors={"held_out.0.inputs_embeds": torch.ones(1, 12, 3)})
    with pytest.raises(CalibrationError, match="cannot run the validation rows"):
        hankelred_llm.reduce(model, order=2, calibration=Calibration.load(path))


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"calibration": "{"}, {"calibration": "[1]"}, {"calibration": "[" * 100_000}],
    ids=lambda value: str(value)[:30],
)
def test_another_safetensors_file_is_refused(tmp_path, metadata):
    save_file({"weight": torch.eye(2)}, tmp_path / "file", metadata=metadata)
    with pytest.raises(CalibrationError, match="no complete calibration"):
        Calibration.load(tmp_path / "file")


def test_sums_of_other_sizes_than_the_named_adapter_has_are_refused(tmp_path):
    # A file can name the model and the adapter by their fingerprints and hold sums of other layers.
    model, path = hankelred_llm.attach(base_model(), r=5), tmp_path / "file"
    calibration = calibrate(model, [{"input_ids": tokens(4, 12), "labels": tokens(4, 12)}])
    small = {f"layers.0.{name}": torch.eye(4, dtype=torch.float64) for name in ("states", "outputs")}
    narrow = GradientOperator(3).state()
    gone = {f"layers.1.{name}": None for name in ("states", "outputs")}
    gone |= {f"gradients.1.{name}": None for name in narrow}
    for facts, tensors, message in (
        ({}, small, r"layer 0: .* \(4, 2\), and adapter 'default' has \(5, 2\)"),
        ({"pairs": {"0": 1, "1": 2}}, {}, r"layer 0: .* \(5, 1\), and adapter 'default' has \(5, 2\)"),
        ({"pairs": {"0": 2}}, gone, r"layer 1: .* None, and adapter 'default' has \(5, 2\)"),
        (
            {},
            {f"gradients.0.{name}": tensor for name, tensor in narrow.items()},
            f"gradients of width 3, and the model has width {WIDTH}",
        ),
    ):
        edited_file(path, calibration, facts, tensors)
        with pytest.raises(CalibrationError, match=message):
            Calibration.load(path).check(model)


def test_the_name_of_a_file_is_no_calibration(tmp_path):
    # AttributeErrors of str, in functions that take a Calibration
    model = adapted()
    name = str(tmp_path / "seen.safetensors")
    for call in (
        lambda: hankelred_llm.hankel_spectra(model, name),
        lambda: hankelred_llm.reduce(model, order=2, calibration=name),
    ):
        with pytest.raises(CalibrationError, match=r"is a str, not a Calibration; .*Calibration\.load"):
            call()
    with pytest.raises(hankelred_llm.AdapterError, match=r"'adapter' is no model but a str; load it first"):
        hankelred_llm.hankel_spectra("adapter")
    with pytest.raises(FileNotFoundError, match=r"calibrate\(model, batches\)\.save"):
        Calibration.load(name)


def test_merged_parts_keep_the_wider_spacing_of_held_out_rows():
    # With the narrower one, further batches would hold out too many rows of the longer part.
    model = adapted(r=5)
    short = calibrate(model, [{"input_ids": tokens(4, 12)}], held_out=24)
    long = calibrate(model, [{"input_ids": tokens(4, 12, seed=k)} for k in range(9)], held_out=24)
    assert short.stride < long.stride
    for merged in (short.merge(long), long.merge(short)):
        assert merged.stride >= long.stride
        assert sum(row["input_ids"].shape[1] for row in merged.held_out) <= 24


def test_the_same_model_loaded_again_is_the_same(tmp_path):
    model = adapted()
    calibration = calibrate(model, batches(1))
    model.save_pretrained(tmp_path)
    again = hankelred_llm.adapter.model.PeftModel.from_pretrained(base_model(), tmp_path)
    calibration.check(again)


@pytest.mark.xslow
def test_ranks_merge_over_processes(tmp_path):
    # the recipe of the documentation, in two processes
    script = textwrap.dedent(
        """
        import sys
        sys.path[:0] = ["tests", "tests/llm/analysis"]
        from test_calibration import on_rank
        on_rank(1, sys.argv[1])
        """
    )
    store = str(tmp_path / "store")
    other = subprocess.Popen([sys.executable, "-c", script, store])
    whole = on_rank(0, store)
    assert other.wait(120) == 0
    again = Calibration.load(store + "-1")
    expected = calibrate(adapted(), batches())
    assert whole.tokens == again.tokens == expected.tokens
    np.testing.assert_array_equal(whole.layers[0].states, again.layers[0].states)
    assert_sums(whole, plain_sums(adapted(), counted_rows()))


def counted_rows():
    """Every row that is in the sums when each of two ranks holds out its own."""
    rows = []
    for rank in range(2):
        ids = torch.cat([b["input_ids"] for b in batches()[rank::2]])
        rows += [row for k, row in enumerate(ids) if k % 4 != 1]
    return rows


def on_rank(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        part = calibrate(adapted(), batches()[rank::2])
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, part)
        whole = functools.reduce(Calibration.merge, parts)
    finally:
        dist.destroy_process_group()
    if rank:
        whole.save(f"{store}-{rank}")
    return whole


# refusals ------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no batches"),
        ({"input_ids": tokens(1, 4)}, r"pass a list of batches"),
        ([tokens(1, 4)], "batch 0 is a Tensor; batches are dicts"),
        ([{"labels": tokens(1, 4)}], "batch 0 has no input_ids"),
        ([{"input_ids": [[3, 4]]}], "no input_ids"),
        ([{"input_ids": tokens(1, 4), "any_name": DynamicCache()}], "leave the cache out"),
        ([{"input_ids": tokens(2, 4), "attention_mask": torch.zeros(2, 4, dtype=torch.long)}], "mask"),
    ],
)
def test_batches_that_cannot_be_used(data, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(adapted(), data)


def test_models_and_adapters_that_cannot_be_calibrated():
    with pytest.raises(AdapterError, match="no HRM adapter"):
        calibrate(base_model(), batches(1), adapter_name="default")
    model = adapted()
    with pytest.raises(AdapterError, match="no adapter 'other'"):
        calibrate(model, batches(1), adapter_name="other")
    with model.disable_adapter(), pytest.raises(AdapterError, match="active"):
        calibrate(model, batches(1))
    model.add_adapter("second", hankelred_llm.HRMConfig(r=4))
    with pytest.raises(AdapterError, match="'second' is not active"):
        calibrate(model, batches(1), adapter_name="second")
    with pytest.raises(CalibrationError, match="held_out"):
        calibrate(model, batches(1), held_out=-1)


def test_numbers_that_are_not_finite_name_the_batch():
    model = adapted()
    with torch.no_grad():
        hrm_layers(model)[1].system("default").B[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=r"batch 0: states or gradients of layer 1 are not finite"):
        calibrate(model, batches(1))


# factors ------------------------------------------------


def test_factors_are_those_of_the_modes():
    model = adapted(r=5)
    calibration = calibrate(model, batches(2))
    for i, (log_poles, B, C) in hankelred_llm.get_systems(model).items():
        states, outputs = calibration.factors(i, hankelred.ModalSystem(log_poles, B, C))
        # stationary relations in the modes: the pair's second state is the conjugate of the first
        W = states @ states.conj().T
        np.testing.assert_allclose(W[0, 0], W[1, 1])
        np.testing.assert_allclose(W[0, 2], W[1, 3].conj())
        sums = calibration.layers[i]
        np.testing.assert_allclose(
            np.trace(sums.states[:2, :2] + sums.states[2:4, 2:4]) * 2 / calibration.tokens,
            np.trace(W[:4, :4]).real,
        )
        # A^H W A - W + Q = 0, with Q real between the columns again
        Wo = outputs @ outputs.conj().T
        a = np.exp(log_poles)
        Q = Wo - a.conj()[:, None] * Wo * a
        T = sums.mode_transform()
        np.testing.assert_allclose(
            T.conj().T @ Q @ T, sums.outputs / calibration.labelled_tokens, atol=1e-9 * np.abs(Q).max()
        )


def test_fingerprints_of_adapters_are_those_of_earlier_files():
    # The hash contained the repr of a class of this package: renaming the class would have made every saved
    # calibration one of another adapter.
    model = adapted(r=5)
    digest = hashlib.sha256()
    for layer, log_poles in enumerate(poles for poles, _, _ in hankelred_llm.get_systems(model).values()):
        pairs = int(np.sum(log_poles.imag > 0))
        digest.update(f"{layer}Modes(order=5, pairs={pairs}, negative=0)".encode())
        for name, parameter in model.named_parameters():
            if f"layers.{layer}." in name and ".hrm_system." in name:
                digest.update(f"{name.rpartition('.')[2]}{tuple(parameter.shape)}".encode())
                digest.update(parameter.detach().double().numpy().tobytes())
    assert calibrate(model, batches(1)).adapter == {"name": "default", "fingerprint": digest.hexdigest()}


def test_spectra_before_training_say_what_they_lack():
    """Missing labels were reported as too few sequences, and copies of one row gave zeros in silence."""
    model, ids = base_model(), tokens(4, 12)
    with pytest.raises(CalibrationError, match=r"had no labels.*batches with labels"):
        hankelred_llm.hankel_spectra(model, calibrate(model, [{"input_ids": ids}], held_out=0))
    pair = {"input_ids": ids[:2], "labels": ids[:2]}
    with pytest.raises(CalibrationError, match="at least three sequences"):
        hankelred_llm.hankel_spectra(model, calibrate(model, [pair], held_out=0))
    copies = ids[:1].expand(4, -1)
    same = [{"input_ids": copies, "labels": copies}] * 2
    with pytest.raises(CalibrationError, match="different texts"):
        hankelred_llm.hankel_spectra(model, calibrate(model, same, held_out=0))
    with pytest.raises(CalibrationError, match="different texts"):
        hankelred_llm.initialize(hankelred_llm.attach(model, r=2), same)


def test_batches_in_place_of_a_calibration_are_not_printed():
    # the message was all tensors of all batches
    data = batches()
    with pytest.raises(
        CalibrationError, match=r"^calibration is a list, not a Calibration.*\.calibrate"
    ) as info:
        hankelred_llm.hankel_spectra(adapted(), data)
    assert len(str(info.value)) < 120
