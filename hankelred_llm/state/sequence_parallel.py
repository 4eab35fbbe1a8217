"""Context parallelism: the user declares which processes hold the shards of a sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from torch import nn

from ..errors import AdapterError
from .forward_context import patched_decoders


@contextlib.contextmanager
def context_parallel(model: nn.Module, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Pass the state of the adapters along a sequence that is sharded over several processes.

    Inside, each process calls the model with its contiguous shard of every row: ``input_ids``,
    ``position_ids`` of the whole sequence and, where there is padding, a 2-D ``attention_mask``, all sharded
    alike. Shards may differ in length; a document may start anywhere (position 0). Attention across
    shards is not part of this: use for example torch's ``context_parallel`` without load balancing.

    The gradients on a process are those of the sum of all processes' losses with respect to the tensors of
    that process: complete for its own tokens; those of parameters must be summed over the group.

    Parameters
    ----------
    model : Module
        A model with HRM adapters; it may be wrapped, for example in DistributedDataParallel.
    group : ProcessGroup, optional
        The processes that hold the shards, in order; default all. Of a ``DeviceMesh``,
        ``mesh["cp"].get_group()``.

    Returns
    -------
    context manager
        It may span one forward pass or a whole training.

    Raises
    ------
    AdapterError
        The model has no HRM adapter, there are no processes, or this one is not in the group.
    StateError
        In the forward pass, in all processes: the shards are not contiguous or differ in rows, or one has no
        ``position_ids`` or a filled cache.

    Notes
    -----
    Each adapter exchanges batch times states numbers in the forward pass, and as many in the backward pass.
    So all processes must run the same passes, forward and backward, in the same order. Each forward pass also
    synchronizes twice: to check that all processes take part, and that the shards are contiguous.

    Examples
    --------
    A sequence on one process, as a single shard:

    >>> import tempfile, torch, transformers, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    >>> ids, positions = torch.arange(8)[None], torch.arange(8)[None]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = torch.distributed.FileStore(f"{folder}/store", 1)
    ...     torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    ...     with hankelred_llm.context_parallel(model):
    ...         logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    ...     torch.distributed.destroy_process_group()
    >>> logits.shape
    torch.Size([1, 8, 32])
    """
    decoders = patched_decoders(model)
    if not decoders:
        raise AdapterError("the model has no HRM adapter; call attach(model) first")
    if not dist.is_available() or not dist.is_initialized():
        raise AdapterError(
            "there is no process group; call torch.distributed.init_process_group() first, and start one "
            "process a shard, with torchrun for example"
        )
    group = dist.group.WORLD if group is None else group
    if group is None or dist.get_rank(group) < 0:
        raise AdapterError(
            f"process {dist.get_rank()} is not in the group; every process passes the group that it belongs "
            "to"
        )
    before = [decoder.__dict__.get("_hrm_group") for decoder in decoders]
    for decoder in decoders:
        decoder.__dict__["_hrm_group"] = group
    try:
        yield
    finally:
        for decoder, old in zip(decoders, before, strict=True):
            decoder.__dict__["_hrm_group"] = old
