"""Several processes: batches and parameters over them, and sequences."""

from __future__ import annotations

import json
import time

import pytest
import torch
from helpers.models import adapted, base_model, error, tokens
from helpers.preloaded_processes import context
from safetensors.torch import load_file

import hankelred_llm
from hankelred_llm import AdapterError

pytestmark = pytest.mark.slow
needs_processes = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no torch.distributed with gloo",
)

TOLERANCE = 2e-6
LIMIT = 300.0  # seconds for one check; it takes a few, but the machine may be busy


def run(check, size, folder):
    """What each of the processes found."""
    from helpers import processes as _processes

    arguments = [(check, rank, size, folder) for rank in range(size)]
    processes = [context().Process(target=_processes.main, args=each, daemon=True) for each in arguments]
    deadline = time.monotonic() + LIMIT
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    assert [process.exitcode for process in processes] == [0] * size
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    for rank, result in enumerate(results):
        assert isinstance(result, dict), f"process {rank}: {result}"
    return results


def check_small(results, tolerance):
    for rank, result in enumerate(results):
        assert result
        for name, deviation in result.items():
            assert deviation < tolerance, f"process {rank}, {name}"


@needs_processes
@pytest.mark.parametrize("check", ["ddp", "fsdp", "ddp_hybrid", "fsdp_hybrid"])
def test_gradients_steps_and_files_are_those_of_one_process(check, tmp_path):
    results = run(check, 2, tmp_path)
    assert len(results[0]) == (6 if check.startswith("ddp") else 9)
    check_small(results, TOLERANCE)


@needs_processes
def test_sharded_parameters_stay_float32_beside_a_half_precision_base(tmp_path):
    for result in run("fsdp_half_precision", 2, tmp_path):
        assert result["type"] == "torch.float32" and result["gradient"] < TOLERANCE


@needs_processes
def test_trainer(tmp_path):
    from helpers import processes as _processes

    results = run("trainer", 2, tmp_path)
    assert [result["wrapped in"] for result in results] == ["DistributedDataParallel"] * 2
    # one process sees the rows that the two saw together
    alone = _processes.train(tmp_path / "alone", rows=4)
    alone.save_model()
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "alone")]
    start = hankelred_llm.attach(base_model(), r=4).state_dict()
    assert files[0].keys() == files[1].keys() and len(files[0]) == 10
    for name, parameter in files[1].items():
        assert error(files[0][name], parameter) < TOLERANCE, name
        initial = start[name.replace("hrm_system.", "hrm_system.default.")]
        assert name.endswith(".B") or not torch.equal(initial, parameter)


@needs_processes
@pytest.mark.parametrize("size", [2, 4])
def test_a_layer_on_a_cut_sequence(size, tmp_path):
    results = run("system", size, tmp_path)
    for result in results:
        assert len(result) == 4 * 6 * 2 * 3
    for bits, tolerance in (("float32", TOLERANCE), ("float64", 1e-12)):
        check_small([{k: v for k, v in result.items() if bits in k} for result in results], tolerance)


@needs_processes
@pytest.mark.parametrize("size", [2, 4])
def test_a_model_on_a_cut_sequence(size, tmp_path):
    check_small(run("model", size, tmp_path), 1e-12)


@needs_processes
def test_refusals_on_a_cut_sequence(tmp_path):
    reasons = {
        "torch's, without ours": "hankelred_llm.context_parallel(model, group)",
        "torch's, balanced": "balances the load",
        "torch's, contiguous": "passed",
        "head and tail": "load-balanced",
        "gap": "neither 0 nor the one after",
        "no positions": "has no position_ids",
        "wide mask": "sharded like the tokens",
        "lengths": "by position_ids",
        "filled cache": "use_cache=False",
        "cache of a shard": "no adapter has processed",
    }
    for result in run("refusals", 2, tmp_path):
        assert result.keys() == reasons.keys()
        for case, reason in reasons.items():
            assert reason in result[case], case
        for case in ("torch's, without ours", "torch's, balanced", "head and tail"):
            assert "enable_load_balance = False" in result[case], case


@needs_processes
@pytest.mark.parametrize("size", [2, 3])
def test_where_one_process_refuses_its_shard_all_do(size, tmp_path):
    # Positions and masks were looked at before the processes had met: one that refused its shard left the
    # others waiting for it, until the group's timeout and then without a reason.
    reasons = {
        "no positions": "has no position_ids",
        "positions of another length": "position_ids of shape (1, ",
        "wide mask": "sharded like the tokens",
        "flat mask": "pass one of shape (batch, tokens)",
        "lengths": "by position_ids",
        "filled cache": "use_cache=False",
        "other rows": "split every row",
        "no tokens": "has no input_ids",
    }
    *others, alone = run("alone", size, tmp_path)
    assert alone.keys() == reasons.keys()
    for case, reason in reasons.items():
        assert reason in alone[case], case
        for other in others:
            expected = (
                reason if case == "other rows" else f"process {size - 1} of the group refused its shard"
            )
            assert expected in other[case], case


@needs_processes
def test_a_shard_of_a_model_on_several_devices(tmp_path):
    # How many tokens the shards keep was known on the device of the positions only, and met the poles of
    # layers on other devices there.
    assert run("devices", 1, tmp_path) == [dict.fromkeys(("states", "gradient", "tokens"), "meta")]


def test_context_without_processes_or_adapter():
    model = adapted()
    with pytest.raises(AdapterError, match="init_process_group"), hankelred_llm.context_parallel(model):
        pass
    with pytest.raises(AdapterError, match="attach"), hankelred_llm.context_parallel(base_model()):
        pass
    with torch.no_grad():  # nothing is left behind
        model(tokens(1, 4))
