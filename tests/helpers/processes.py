"""What the processes of test_distributed.py run.

Each check returns numbers or texts by name; a process writes them to ``folder/rank.json``, or the traceback
where it failed.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import traceback

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AttentionInterface, AttentionMaskInterface

import hankelred_llm
from hankelred_llm import StateError
from hankelred_llm.adapter.config import ModeCounts
from hankelred_llm.adapter.system import HRMSystem
from hankelred_llm.state.attention_masks import read_segment_masks
from hankelred_llm.state.shards import Shards, compare_shards, read_shard
from helpers.models import (
    HYBRID,
    PAD,
    adapted,
    base_model,
    cache_of,
    checkpointed,
    error,
    step_by_step,
    tokens,
    with_cache,
    with_random_output,
)


def relative(seen, expected):
    """Largest difference over the largest number."""
    scale = expected.detach().abs().max()
    assert scale > 0
    return error(seen / scale, expected / scale)


def gradients(model, **fields):
    """By name, of the parameters that are trained; `fields` of the adapter, where not the default ones."""
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            found[name.removeprefix("module.")] = grad.clone()
    assert len(found) == (26 if fields else 10)
    return found


def values(model):
    return {
        name.removeprefix("module."): p.full_tensor() if hasattr(p, "full_tensor") else p.detach()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def worst(seen, expected):
    assert seen.keys() == expected.keys()
    return max(relative(seen[name], expected[name]) for name in expected)


def mine(rank, size, rows):
    return rows.chunk(size)[rank]


# the batch over processes


def batch():
    """Four rows, padded in different places, which attention and adapter see."""
    ids, mask = tokens(4, 18), torch.ones(4, 18, dtype=torch.long)
    for row, gap in enumerate([slice(0, 4), slice(5, 9), slice(15, 18), slice(0, 0)]):
        mask[row, gap] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask, "position_ids": positions}


def loss_of(model, inputs):
    return model(**inputs, use_cache=False).logits.square().mean()


def whole_batch(**fields):
    """Gradients of the whole batch in one process, parameters after a step, and the model after it."""
    model = adapted(base={"sliding_window": None}, **fields).train()
    loss_of(model, batch()).backward()
    found = gradients(model, **fields)
    step(model)
    return found, values(model), model


def step(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    # without epsilon in the way, AdamW's first step would amplify differences of gradients near zero
    torch.optim.AdamW(trained, lr=1e-2, eps=1e-3).step()


def fresh(recompute, **fields):
    model = adapted(base={"sliding_window": None}, **fields).train()
    return model if recompute is None else checkpointed(model, reentrant=recompute == "reentrant")


def check_ddp(rank, size, folder, **fields):
    expected, after, _ = whole_batch(**fields)
    found = {}
    part = {key: mine(rank, size, value) for key, value in batch().items()}
    for recompute in (None, "non-reentrant", "reentrant"):
        model = fresh(recompute, **fields)
        with torch.no_grad():  # processes may start apart: DistributedDataParallel sends those of the first
            for p in model.parameters():
                if p.requires_grad and rank:
                    p.add_(1.0)
        model = DistributedDataParallel(model)
        loss_of(model, part).backward()
        found[f"gradient, {recompute}"] = worst(gradients(model, **fields), expected)
        step(model)
        found[f"step, {recompute}"] = worst(values(model), after)
    return found


def shard_model(model, **options):
    from torch.distributed.fsdp import fully_shard

    for layer in model.get_base_model().model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def check_fsdp(rank, size, folder, **fields):
    from peft import PeftModel
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.tensor import DTensor

    expected, after, single = whole_batch(**fields)
    found = {}
    part = {key: mine(rank, size, value) for key, value in batch().items()}
    for recompute in (None, "non-reentrant", "reentrant"):
        model = shard_model(fresh(recompute, **fields))
        assert all(isinstance(p, DTensor) for p in model.parameters())
        loss_of(model, part).backward()
        found[f"gradient, {recompute}"] = worst(gradients(model, **fields), expected)
        step(model)
        found[f"step, {recompute}"] = worst(values(model), after)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state = get_model_state_dict(model, options=options)
    if rank == 0:
        model.save_pretrained(folder / "adapter", state_dict=state)
    dist.barrier()
    loaded = PeftModel.from_pretrained(base_model(sliding_window=None), folder / "adapter").eval()
    with torch.no_grad():
        seen, right = (each.eval()(**batch(), use_cache=False).logits for each in (loaded, single))
    found["loaded again"] = error(seen, right)
    again = shard_model(PeftModel.from_pretrained(base_model(sliding_window=None), folder / "adapter"))
    with torch.no_grad():
        found["sharded again"] = error(again(**part, use_cache=False).logits, mine(rank, size, right))
        ids = mine(rank, size, tokens(4, 9))
        found["token by token"] = error(step_by_step(again, ids), single(ids).logits)
    return found


check_ddp_hybrid = functools.partial(check_ddp, **HYBRID)
check_fsdp_hybrid = functools.partial(check_fsdp, **HYBRID)


def check_fsdp_half_precision(rank, size, folder):
    """A base in bfloat16, its adapters sharded by themselves, so that they stay in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from hankelred_llm.adapter.adapter_layers import hrm_layers

    def build():
        torch.manual_seed(7)
        base = base_model(sliding_window=None).to(torch.bfloat16)
        return with_random_output(hankelred_llm.attach(base, r=6)).train()

    single = build()
    # rows apart, as the processes see them: products of half precision depend on the batch
    for number in range(size):
        part = {key: mine(number, size, value) for key, value in batch().items()}
        (loss_of(single, part).float() / size).backward()
    model = build()
    for layer in hrm_layers(model):
        fully_shard(layer.system("default"))
    seen = []
    hrm_layers(model)[0].system("default").register_forward_hook(
        lambda module, args, out: seen.append(str(module.log_rate.dtype))
    )
    shard_model(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    loss_of(model, {key: mine(rank, size, value) for key, value in batch().items()}).float().backward()
    return {"gradient": worst(gradients(model), gradients(single)), "type": seen[0]}


def check_trainer(rank, size, folder):
    trainer = train(folder / "trained", rows=2)
    trainer.save_model()
    return {"wrapped in": type(trainer.model_wrapped).__name__}


def train(folder, *, rows):
    """Three steps of transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        learning_rate=1e-2,
        max_steps=3,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        ddp_find_unused_parameters=False,
    )
    torch.manual_seed(3)
    model = hankelred_llm.attach(base_model(), r=4)
    data = [{"input_ids": row, "labels": row} for row in tokens(16, 10)]
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    return trainer


# the sequence over processes

TIME = 103
LENGTHS = {2: [61, 42], 4: [40, 1, 33, 29]}


def cut(rank, size, value, dim=1):
    return value.split(LENGTHS[size], dim)[rank]


def layouts():
    """Padding and documents: name -> keep and positions of two rows."""
    plain = torch.arange(TIME).expand(2, -1)
    everything = torch.ones(2, TIME, dtype=torch.bool)
    gaps = everything.clone()
    gaps[0, :7] = gaps[0, 55:66] = gaps[1, 98:] = gaps[1, 20:30] = False
    # a row whose last shard is padding throughout, and one whose first is
    ends = everything.clone()
    ends[0, 60:], ends[1, :62] = False, False
    middle = everything.clone()
    middle[0, 38:75] = False
    packed = plain.clone()
    packed[0, 50:] -= 50  # in the first of two shards, across a boundary of four
    packed[1, 61:] -= 61  # at the boundary of two
    packed[1, 90:] -= 29

    def positions(keep):
        return (keep.long().cumsum(1) - 1).masked_fill(~keep, 0)

    both = positions(middle)
    both[0, 80:] -= 43
    assert both[0, 80] == 0
    return {
        "plain": (None, plain),
        "padding": (gaps, positions(gaps)),
        "padded shards": (ends, positions(ends)),
        "padded middle": (middle, positions(middle)),
        "documents": (None, packed),
        "documents and padding": (middle, both),
    }


KINDS = {
    "pairs": ModeCounts(order=16, pairs=8, negative=0),
    "pairs and real": ModeCounts(order=17, pairs=8, negative=0),
    "real": ModeCounts(order=8, pairs=0, negative=0),
    "negative": ModeCounts(order=20, pairs=8, negative=2),
}


def read(keep, positions, time):
    mask = None if keep is None else keep.long()
    told = {"mask": mask, "positions": positions, "cumulative_lengths": None, "document_ids": None}
    return told, read_segment_masks(2, time, **told, cache=None, window=None)


def check_system(rank, size, folder):
    """The layer alone: outputs, gradients of inputs and of parameters."""
    found = {}
    for kind, modes in KINDS.items():
        for dtype in (torch.float32, torch.float64):
            for name, (keep, positions) in layouts().items():
                torch.manual_seed(0)
                system = HRMSystem(8, modes, dtype=dtype, device="cpu")
                system.initialize("ring", gate=0.7)
                torch.nn.init.normal_(system.C)
                x = torch.randn(2, TIME, 8, dtype=dtype, requires_grad=True)
                _, whole = read(keep, positions, TIME)
                y, _ = system(x, valid=whole.valid, segment_start=whole.segment_start)
                y.square().sum().backward()
                expected = {name: p.grad.clone() for name, p in system.named_parameters()}
                scales = {name: grad.abs().max() for name, grad in expected.items()}
                if "phase" in scales:
                    # decay and phase are one complex number; a phase's gradient alone may cancel to nothing
                    decay = expected["log_rate"] / system.log_decay().detach()
                    scales["phase"] = torch.maximum(scales["phase"], decay.abs().max())
                system.zero_grad()

                own = cut(rank, size, x.detach()).requires_grad_(True)
                told, part = read(
                    None if keep is None else cut(rank, size, keep),
                    cut(rank, size, positions),
                    own.shape[1],
                )
                known = read_shard(2, own.shape[1], part, **told)
                shards = compare_shards(dist.group.WORLD, known, known.device)
                seen, _ = system(own, valid=part.valid, segment_start=part.segment_start, shards=shards)
                seen.square().sum().backward()
                for p in system.parameters():
                    dist.all_reduce(p.grad)
                bits = str(dtype).removeprefix("torch.")
                label = f"{kind}, {name}, {bits}"
                scale = y.detach().abs().max()
                found[f"{label}: output"] = error(seen / scale, cut(rank, size, y) / scale)
                scale = x.grad.abs().max()
                found[f"{label}: to inputs"] = error(own.grad / scale, cut(rank, size, x.grad) / scale)
                found[f"{label}: to parameters"] = max(
                    error(p.grad / scales[name], expected[name] / scales[name])
                    for name, p in system.named_parameters()
                )
    return found


class _Everyone(torch.autograd.Function):
    """Keys or values of the whole sequence, (batch, heads, time, width), from those of each process."""

    @staticmethod
    def forward(ctx, own, size):
        ctx.size = size
        longest = max(LENGTHS[size])
        sent = torch.nn.functional.pad(own, (0, 0, 0, longest - own.shape[2]))
        parts = [torch.empty_like(sent) for _ in range(size)]
        dist.all_gather(parts, sent)
        return torch.cat([part[:, :, :n] for part, n in zip(parts, LENGTHS[size], strict=True)], 2)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return cut(dist.get_rank(), ctx.size, grad, 2), None


ALLOWED = {}  # what each of the queries may look at, and over how many processes they are


def attention_by_hand(module, query, key, value, attention_mask, scaling, **_):
    if ALLOWED["size"] > 1:
        key, value = (_Everyone.apply(each, ALLOWED["size"]) for each in (key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    weights = (query @ key.mT * scaling).masked_fill(~ALLOWED["mask"][:, None], -1e9).softmax(-1)
    return (weights @ value).transpose(1, 2), None


def check_model(rank, size, folder):
    """A whole model whose attention sees all shards: logits and gradients, recomputed or not."""
    AttentionInterface.register("by_hand", attention_by_hand)
    AttentionMaskInterface.register("by_hand", lambda *_, **__: None)
    found = {}
    ids = tokens(2, TIME)
    for name, (keep, positions) in layouts().items():
        if size == 4 and name != "documents and padding":
            continue
        kept = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep
        document = ((positions == 0) & kept).cumsum(1)
        allowed = (document[:, :, None] == document[:, None, :]) & kept[:, None]
        allowed = allowed & torch.ones(TIME, TIME, dtype=torch.bool).tril()
        inputs = {"input_ids": ids, "position_ids": positions}
        if keep is not None:
            inputs["attention_mask"] = keep.long()

        def build():
            base = {"sliding_window": None, "attn_implementation": "by_hand"}
            return adapted(r=5, base=base).double().train()

        ALLOWED.update(mask=allowed, size=1)
        single = build()
        logits = single(**inputs, use_cache=False).logits
        logits[kept].square().sum().div(kept.sum()).backward()
        expected = gradients(single)

        ALLOWED.update(mask=cut(rank, size, allowed), size=size)
        part = {key: cut(rank, size, value) for key, value in inputs.items()}
        for recompute in (None, "non-reentrant", "reentrant"):
            model = build()
            if recompute:
                checkpointed(model, reentrant=recompute == "reentrant")
            model = DistributedDataParallel(model)
            own_kept = cut(rank, size, kept)
            with hankelred_llm.context_parallel(model):
                seen = model(**part).logits  # with the cache that it makes for itself, where it does
            # a sum over all tokens of the sequence, where the wrapper takes the mean over processes
            (seen[own_kept].square().sum() / kept.sum() * size).backward()
            rows = cut(rank, size, logits)
            if own_kept.any():
                found[f"{name}, {recompute}: output"] = relative(seen[own_kept], rows[own_kept])
            found[f"{name}, {recompute}: gradient"] = worst(gradients(model), expected)
    return found


def refused(call):
    try:
        call()
    except StateError as refusal:
        return str(refusal)
    return "not refused"


def check_refusals(rank, size, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import _attention, context_parallel

    model = adapted(base={"sliding_window": None})
    mesh = init_device_mesh("cpu", (size,))
    found = {}

    def under_torch():
        ids, positions = tokens(2, 16), torch.arange(16).expand(2, -1).clone()
        with context_parallel(mesh, buffers=[ids, positions], buffer_seq_dims=[1, 1]):
            assert ids.shape[1] == 16 // size
            model(input_ids=ids, position_ids=positions, use_cache=False)

    with torch.no_grad():
        found["torch's, without ours"] = refused(under_torch)
        with hankelred_llm.context_parallel(model, mesh.get_group()):
            found["torch's, balanced"] = refused(under_torch)
            _attention._cp_options.enable_load_balance = False
            try:
                under_torch()
                found["torch's, contiguous"] = "passed"
            except NotImplementedError as ring:  # torch has no ring attention for processors
                found["torch's, contiguous"] = f"passed to torch: {ring}"
            finally:
                _attention._cp_options.enable_load_balance = True

            ids, positions = tokens(2, 16), torch.arange(16).expand(2, -1)
            order = torch.arange(16).view(2 * size, -1)
            head_tail = order[[rank, 2 * size - 1 - rank]].flatten()
            part = {"input_ids": ids[:, head_tail]}
            found["head and tail"] = refused(
                lambda: model(**part, position_ids=positions[:, head_tail], use_cache=False)
            )
            half = order.flatten().chunk(size)[rank]
            part = {"input_ids": ids[:, half]}
            at = {"position_ids": positions[:, half]}
            found["no positions"] = refused(lambda: model(**part, use_cache=False))
            found["wide mask"] = refused(
                lambda: model(**part, **at, attention_mask=torch.ones(2, 16), use_cache=False)
            )
            starts = torch.tensor([0, 16 // size], dtype=torch.int32)
            found["lengths"] = refused(lambda: model(**part, **at, cu_seq_lens_q=starts, use_cache=False))
            found["gap"] = refused(
                lambda: model(**part, position_ids=positions[:, half] + rank, use_cache=False)
            )
            cache = cache_of(model(**part, **at))
            found["filled cache"] = refused(lambda: model(**part, **at, **with_cache(cache)))
        found["cache of a shard"] = refused(lambda: model(ids[:, :1], **with_cache(cache)))
        # legal outside: tokens that start late, with no state
        model(**part, **at, use_cache=False)
    return found


def check_alone(rank, size, folder):
    """The last process alone hands over something wrong; all the others hand over their shards."""
    model = adapted(base={"sliding_window": None})
    whole = {"input_ids": tokens(2, 16), "position_ids": torch.arange(16).expand(2, -1)}
    part = {key: value.chunk(size, 1)[rank] for key, value in whole.items()}
    alone = rank == size - 1
    with torch.no_grad():
        cache = cache_of(model(part["input_ids"]))
        time = part["input_ids"].shape[1]
        wrong = {
            "no positions": {"position_ids": None},
            "positions of another length": {"position_ids": torch.arange(time + 1)[None]},
            "wide mask": {"attention_mask": torch.ones(2, 16)},
            "flat mask": {"attention_mask": torch.ones(time)},
            "lengths": {"cu_seq_lens_q": torch.tensor([0, time], dtype=torch.int32)},
            "filled cache": {**with_cache(cache), "use_cache": True},
            "other rows": {key: value[:1] for key, value in part.items()},
            "no tokens": {"input_ids": None},
        }
        found = {}
        with hankelred_llm.context_parallel(model):
            for name, change in wrong.items():
                given = {**part, "use_cache": False, **(change if alone else {})}
                found[name] = refused(lambda given=given: model(**given))
            model(**part, use_cache=False)  # and on they go
    return found


def check_devices(rank, size, folder):
    """A model on two devices, of which one has no numbers: what meets there must have come over."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.destroy_process_group()
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    here = Shards(dist.group.WORLD, torch.full((2, 2), 5), torch.zeros(2, 2, dtype=torch.bool))
    there = here.on(torch.device("meta"))
    u, log_decay, phase = (
        torch.empty(shape, device="meta", requires_grad=True) for shape in ((2, 6, 5), (4,), (2,))
    )
    s = there.scan(log_decay, phase, u, valid=None, segment_start=None)
    s.sum().backward()
    return {
        "states": str(s.device),
        "gradient": str(u.grad.device),
        "tokens": str(there.valid_before().device),
    }


def main(check, rank, size, folder):
    """Run one check in one of several processes."""
    torch.set_num_threads(1)
    # what torchrun sets and accelerate reads; the processes meet in a file, not at the port
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 1,
    }
    os.environ.update({key: str(value) for key, value in place.items()})
    store = dist.FileStore(str(folder / "store"), size)
    timeout = datetime.timedelta(seconds=120)  # so that a process whose peer failed does not wait for ever
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        result = globals()[f"check_{check}"](rank, size, folder)
    except Exception:
        result = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
