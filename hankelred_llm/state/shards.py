"""One sequence in contiguous shards, one per process: state passing between shards, and its adjoint.

Each process scans its shard from zero. The final states of those scans are gathered (batch times channels
numbers per process) and scanned in order of the shards; then each shard is scanned again from its true
initial state. The adjoint does the same in reverse: the gradients with respect to the initial states of the
shards are gathered and scanned in the opposite order. Each process thus computes its part of the parameters'
gradients from its own tokens; the parts add up to the gradient of the whole sequence.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import StateError
from ..ops.autograd import channel_scan, channel_scan_backward
from ..ops.eigenvalues import to_channels, to_modes
from ..ops.masks import SegmentMasks
from ..ops.recurrence import states_between_shards

_CONTIGUOUS = (
    "give each process one contiguous piece of the sequence, in the order of the processes; torch's "
    "context_parallel, and accelerate with it, do so after "
    "torch.distributed.tensor.experimental._attention._cp_options.enable_load_balance = False"
)


@dataclass(frozen=True)
class Shards:
    """The shards of one sequence, and which one this process holds, for one forward pass.

    Parameters
    ----------
    group : ProcessGroup
        The processes that hold the sequence, in order.
    valid_counts : Tensor of int, (shards, batch)
        Number of valid tokens (no padding) of each shard.
    has_start : Tensor of bool, (shards, batch)
        Whether a segment starts in the shard.
    """

    group: dist.ProcessGroup
    valid_counts: Tensor
    has_start: Tensor

    @property
    def rank(self) -> int:
        """Number of this process's shard."""
        return dist.get_rank(self.group)

    def valid_before(self) -> Tensor:
        """Return the number of valid tokens before this shard, (batch,)."""
        return self.valid_counts[: self.rank].sum(0)

    def on(self, device: torch.device) -> Shards:
        """Return a copy on another device: a model may be spread over several."""
        return replace(self, valid_counts=self.valid_counts.to(device), has_start=self.has_start.to(device))

    def scan(
        self,
        log_decay: Tensor,
        phase: Tensor | None,
        u: Tensor,
        *,
        valid: Tensor | None,
        segment_start: Tensor | None,
    ) -> Tensor:
        """Return the states of this shard, as a scan of the whole sequence on one process computes them.

        Like :func:`channel_scan`, with the initial state taken from the other processes.
        """
        out: Tensor = _ShardScan.apply(self, u, log_decay, phase, valid, segment_start)  # type: ignore[no-untyped-call]
        return out

    def initial_state(
        self, log_decay: Tensor, phase: Tensor | None, final_states: Tensor, *, reverse: bool
    ) -> Tensor:
        """Return the initial state of this shard, float64 (batch, channels).

        Parameters
        ----------
        final_states : Tensor, (batch, channels)
            Final state of the scan of this shard from zero; in reverse, the gradient that the adjoint of that
            scan gives for the state before the first token.
        reverse : bool
            From the last shard to the first.
        """
        pairs = 0 if phase is None else phase.shape[0]
        order = -1 if reverse else 1
        numbers = range(self.valid_counts.shape[0])[::order]
        all_final_states = gather(final_states.double(), self.group)
        # every mode as a complex one; real modes have phase zero
        modes = torch.stack(
            [
                torch.cat([m.to(torch.complex128) for m in to_modes(all_final_states[n], pairs)], 1)
                for n in numbers
            ]
        )
        angle = log_decay.new_zeros(log_decay.shape, dtype=torch.float64)
        if phase is not None:
            angle[:pairs] = order * phase
        shards = list(numbers)
        initial_states = states_between_shards(
            log_decay, angle, modes, self.valid_counts[shards], cut=self.has_start[shards]
        )[shards.index(self.rank)]
        return torch.cat([*to_channels([initial_states[:, :pairs]]), initial_states.real[:, pairs:]], 1)


class _ShardScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shards: Shards,
        u: Tensor,
        log_decay: Tensor,
        phase: Tensor | None,
        valid: Tensor | None,
        segment_start: Tensor | None,
    ) -> Tensor:
        _, last = channel_scan(log_decay, phase, u, valid=valid, segment_start=segment_start)
        state = shards.initial_state(log_decay, phase, last, reverse=False)
        s, _ = channel_scan(log_decay, phase, u, state=state, valid=valid, segment_start=segment_start)
        ctx.shards = shards
        ctx.save_for_backward(s, log_decay, phase, state, valid, segment_start)
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, s_gradient: Tensor) -> tuple[Tensor | None, ...]:
        s, log_decay, phase, state, valid, segment_start = ctx.saved_tensors
        saved = (s, log_decay, phase, state, valid, segment_start)
        *_, first = channel_scan_backward(s_gradient, None, *saved, False)
        last = ctx.shards.initial_state(log_decay, phase, first, reverse=True).to(s.dtype)
        u_gradient, decay_gradient, phase_gradient, _ = channel_scan_backward(s_gradient, last, *saved, True)
        return (
            None,
            u_gradient,
            decay_gradient.to(log_decay.dtype),
            None if phase is None else phase_gradient.to(phase.dtype),
            None,
            None,
        )


def gather(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tensors of all processes, stacked in order of the processes."""
    size = dist.get_world_size(group)
    stacked = tensor.new_empty(size, *tensor.shape)
    dist.all_gather(list(stacked.unbind()), tensor.contiguous(), group=group)
    return stacked


def common_device(group: dist.ProcessGroup, decoder: nn.Module) -> torch.device:
    """Return a device on which the processes of a group can communicate, whatever their arguments."""
    kinds = [entry.partition(":")[0] for entry in dist.get_backend_config(group).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    devices = (p.device for p in decoder.parameters() if p.device.type in kinds)
    return next(devices, torch.device(kinds[0]))


def announce_refusal(group: dist.ProcessGroup, device: torch.device) -> None:
    """Tell the other processes, which wait in :func:`compare_shards`, that this one raises an error."""
    gather(torch.tensor([-1], device=device), group)


def read_shard(
    batch: int,
    time: int,
    masks: SegmentMasks,
    *,
    mask: Any,
    positions: Tensor | None,
    cumulative_lengths: Tensor | None,
    document_ids: Tensor | None,
) -> Tensor:
    """Summarize the shard of this process for the other processes.

    Parameters
    ----------
    batch, time : int
        Size of the shard.
    tokens : Tokens
        Those of the shard.
    mask, positions, starts, documents
        As for :func:`read_segment_masks`.

    Returns
    -------
    Tensor of int, (4, batch)
        Number of valid tokens, whether a segment starts, positions of the first and of the last valid token.

    Raises
    ------
    StateError
        There are no positions, or the mask or the documents are not sharded like the tokens.
    """
    if positions is None:
        raise StateError(
            "a shard of a sequence has no position_ids, so its place in the sequence is unknown to attention "
            "and adapter; pass position_ids of the whole sequence, sharded like the tokens"
        )
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != time):
        kind = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise StateError(
            f"padding of a shard cannot be read from an attention mask of kind {kind}; pass one of shape "
            f"(batch, {time}), sharded like the tokens"
        )
    if cumulative_lengths is not None or document_ids is not None:
        raise StateError(
            "cu_seq_lens_q and seq_idx do not tell whether a shard's first document began in the previous "
            "shard; leave them out and mark document starts by position_ids"
        )
    positions = positions.expand(batch, time)
    valid = torch.ones_like(positions, dtype=torch.bool) if masks.valid is None else masks.valid
    index = torch.arange(time, device=positions.device)
    first = torch.where(valid, index, time - 1).amin(1, keepdim=True)
    last = torch.where(valid, index, 0).amax(1, keepdim=True)
    segment_start = torch.zeros_like(valid) if masks.segment_start is None else masks.segment_start
    summary = [
        valid.sum(1),
        segment_start.any(1),
        positions.gather(1, first)[:, 0],
        positions.gather(1, last)[:, 0],
    ]
    return torch.stack([row.long() for row in summary])


def compare_shards(group: dist.ProcessGroup, summary: Tensor, device: torch.device) -> Shards:
    """Compare the shards of all processes; if one has raised an error, or they do not fit, all raise one.

    Synchronizes twice: to compare the numbers of rows, and to check that the shards are contiguous.

    Parameters
    ----------
    group : ProcessGroup
    own : Tensor of int, (4, batch)
        The result of :func:`read_shard` on this process.
    device : torch.device
        The result of :func:`common_device`.

    Raises
    ------
    StateError
        A process raised an error, has another number of rows, or a shard does not continue the one before.
    """
    rows = gather(torch.tensor([summary.shape[1]], device=device), group)[:, 0].tolist()
    refusing = [number for number, count in enumerate(rows) if count < 0]
    if refusing:
        raise StateError(
            f"process {refusing[0]} of the group refused its shard of the sequence, for the reason in its "
            "own error; the others stop too, because its state would be missing"
        )
    if len(set(rows)) > 1:
        raise StateError(
            f"the shards of the processes have {', '.join(map(str, rows))} rows; split every row of the "
            "batch into as many pieces as there are processes"
        )
    valid_counts, has_start, first_position, last_position = gather(summary.to(device), group).unbind(1)
    if bool(_discontinuous(valid_counts, first_position, last_position)):
        raise StateError(
            "a shard starts at a position that is neither 0 nor the one after the last position of the "
            "previous shard, as in load-balanced (zigzag, head-tail) sharding; a state needs the order of "
            f"the sequence: {_CONTIGUOUS}"
        )
    return Shards(group, valid_counts, has_start.bool()).on(summary.device)


def _discontinuous(valid_counts: Tensor, first_position: Tensor, last_position: Tensor) -> Tensor:
    """Return whether a shard neither continues the previous one nor starts a document, without padding."""
    expected, known = last_position[0] + 1, valid_counts[0] > 0
    broken = torch.zeros_like(known)
    for number in range(1, valid_counts.shape[0]):
        any_valid = valid_counts[number] > 0
        broken |= known & any_valid & (first_position[number] != 0) & (first_position[number] != expected)
        expected, known = torch.where(any_valid, last_position[number] + 1, expected), known | any_valid
    return broken.any()


def check_torch_context_parallel(group: dist.ProcessGroup | None) -> None:
    """Refuse a forward pass in torch's own context parallelism where the adapter would lack its state.

    Raises
    ------
    StateError
        It is on without a group passed to :func:`context_parallel`, or with load balancing.
    """
    # a program that has not imported it has not switched it on
    ring = sys.modules.get("torch.distributed.tensor.experimental._context_parallel._attention")
    if ring is None or torch.compiler.is_compiling():
        return
    handlers = ring.DTensor._op_dispatcher._custom_op_handlers
    if not any(op in handlers for op in ring.custom_ops):
        return
    if group is None:
        raise StateError(
            "torch's context_parallel has sharded the sequence over processes, and the adapter would start "
            "from zero in each shard; run the model inside hankelred_llm.context_parallel(model, group), and "
            f"{_CONTIGUOUS}"
        )
    if ring._cp_options.enable_load_balance:
        raise StateError(
            "torch's context_parallel balances the load: each process holds a piece from the start and one "
            f"from the end of the sequence, which a state cannot follow; {_CONTIGUOUS}"
        )
