"""One sequence in contiguous shards, one a process: the state that passes between them, and its adjoint.

Each process scans its shard from zero. The states those scans end with are gathered (batch times columns
numbers a process), joined in order, and the shard is scanned again from the state that truly enters it. The
adjoint does the same from the end: the gradients that reach the start of each shard are gathered and joined
in the opposite order. What a process computes with its own tokens is thus all it needs for its share of the
parameters' gradients; the shares add up to the gradient of the whole sequence.
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
from ..ops.autograd import column_scan, column_scan_backward
from ..ops.eigenvalues import to_columns, to_modes
from ..ops.recurrence import states_between_shards
from .segments import Tokens

_CONTIGUOUS = (
    "give each process one contiguous piece of the sequence, in the order of the processes; torch's "
    "context_parallel, and accelerate with it, do so after "
    "torch.distributed.tensor.experimental._attention._cp_options.enable_load_balance = False"
)


@dataclass(frozen=True)
class Shards:
    """Where the shard of this process stands in one sequence, for one forward pass.

    Parameters
    ----------
    group : ProcessGroup
        The processes that hold the sequence, in order.
    kept : Tensor of int, (shards, batch)
        Tokens of each shard that are no padding.
    cut : Tensor of bool, (shards, batch)
        Whether a document starts in the shard.
    """

    group: dist.ProcessGroup
    kept: Tensor
    cut: Tensor

    @property
    def rank(self) -> int:
        """Number of this process's shard."""
        return dist.get_rank(self.group)

    def kept_before(self) -> Tensor:
        """Return how many tokens before this shard are no padding, (batch,)."""
        return self.kept[: self.rank].sum(0)

    def on(self, device: torch.device) -> Shards:
        """Return the same, known on another device: a model may stand on several."""
        return replace(self, kept=self.kept.to(device), cut=self.cut.to(device))

    def scan(
        self, log_decay: Tensor, phase: Tensor | None, u: Tensor, *, keep: Tensor | None, reset: Tensor | None
    ) -> Tensor:
        """Return the states that one process would have computed with the whole sequence.

        As :func:`column_scan`, but for the state that enters, which the other processes know.
        """
        out: Tensor = _ShardScan.apply(self, u, log_decay, phase, keep, reset)  # type: ignore[no-untyped-call]
        return out

    def join(self, log_decay: Tensor, phase: Tensor | None, ends: Tensor, *, reverse: bool) -> Tensor:
        """Return what enters this shard, float64 (batch, columns).

        Parameters
        ----------
        ends : Tensor, (batch, columns)
            Its own: what the scan of this shard from zero ends with; in reverse, what the adjoint of that
            scan gives for the state before the first token.
        reverse : bool
            From the last shard to the first.
        """
        pairs = 0 if phase is None else phase.shape[0]
        order = -1 if reverse else 1
        numbers = range(self.kept.shape[0])[::order]
        all_ends = gather(ends.double(), self.group)
        # every mode as a complex one, a real mode without phase
        modes = torch.stack(
            [torch.cat([m.to(torch.complex128) for m in to_modes(all_ends[n], pairs)], 1) for n in numbers]
        )
        angle = log_decay.new_zeros(log_decay.shape, dtype=torch.float64)
        if phase is not None:
            angle[:pairs] = order * phase
        shards = list(numbers)
        entering = states_between_shards(log_decay, angle, modes, self.kept[shards], cut=self.cut[shards])[
            shards.index(self.rank)
        ]
        return torch.cat([*to_columns([entering[:, :pairs]]), entering.real[:, pairs:]], 1)


class _ShardScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        shards: Shards,
        u: Tensor,
        log_decay: Tensor,
        phase: Tensor | None,
        keep: Tensor | None,
        reset: Tensor | None,
    ) -> Tensor:
        _, last = column_scan(log_decay, phase, u, keep=keep, reset=reset)
        state = shards.join(log_decay, phase, last, reverse=False)
        s, _ = column_scan(log_decay, phase, u, state=state, keep=keep, reset=reset)
        ctx.shards = shards
        ctx.save_for_backward(s, log_decay, phase, state, keep, reset)
        return s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, s_gradient: Tensor) -> tuple[Tensor | None, ...]:
        s, log_decay, phase, state, keep, reset = ctx.saved_tensors
        rest = (s, log_decay, phase, state, keep, reset)
        *_, first = column_scan_backward(s_gradient, None, *rest, False)
        last = ctx.shards.join(log_decay, phase, first, reverse=True).to(s.dtype)
        u_gradient, decay_gradient, phase_gradient, _ = column_scan_backward(s_gradient, last, *rest, True)
        return (
            None,
            u_gradient,
            decay_gradient.to(log_decay.dtype),
            None if phase is None else phase_gradient.to(phase.dtype),
            None,
            None,
        )


def gather(mine: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tensors of all processes, stacked in order."""
    size = dist.get_world_size(group)
    everyone = mine.new_empty(size, *mine.shape)
    dist.all_gather(list(everyone.unbind()), mine.contiguous(), group=group)
    return everyone


def meeting_place(group: dist.ProcessGroup, decoder: nn.Module) -> torch.device:
    """Return a device that the processes of a group can talk on, whatever each of them was called with."""
    kinds = [entry.partition(":")[0] for entry in dist.get_backend_config(group).split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    own = (p.device for p in decoder.parameters() if p.device.type in kinds)
    return next(own, torch.device(kinds[0]))


def tell_refusal(group: dist.ProcessGroup, place: torch.device) -> None:
    """Let the others know that this process does not run the pass they are waiting for."""
    gather(torch.tensor([-1], device=place), group)


def read_shard(
    batch: int,
    time: int,
    tokens: Tokens,
    *,
    mask: Any,
    positions: Tensor | None,
    starts: Tensor | None,
    documents: Tensor | None,
) -> Tensor:
    """Read from the shard of this process what the others have to know of it.

    Parameters
    ----------
    batch, time : int
        Size of the shard.
    tokens : Tokens
        What was read of it.
    mask, positions, starts, documents
        As for :func:`read_tokens`.

    Returns
    -------
    Tensor of int, (4, batch)
        Kept tokens, whether a document starts, positions of the first and of the last kept token.

    Raises
    ------
    StateError
        There are no positions, or something else than tokens is cut.
    """
    if positions is None:
        raise StateError(
            "a shard of a sequence came without position_ids, so attention and adapter cannot know where it "
            "stands; pass position_ids of the whole sequence, cut like the tokens"
        )
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != time):
        seen = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise StateError(
            f"padding of a shard cannot be read from an attention mask of kind {seen}; pass one of shape "
            f"(batch, {time}), cut like the tokens"
        )
    if starts is not None or documents is not None:
        raise StateError(
            "cu_seq_lens_q and seq_idx do not say whether a shard's first document began in the shard "
            "before; leave them out and mark document starts by position_ids"
        )
    positions = positions.expand(batch, time)
    keep = torch.ones_like(positions, dtype=torch.bool) if tokens.keep is None else tokens.keep
    index = torch.arange(time, device=positions.device)
    first = torch.where(keep, index, time - 1).amin(1, keepdim=True)
    last = torch.where(keep, index, 0).amax(1, keepdim=True)
    reset = torch.zeros_like(keep) if tokens.reset is None else tokens.reset
    own = [keep.sum(1), reset.any(1), positions.gather(1, first)[:, 0], positions.gather(1, last)[:, 0]]
    return torch.stack([each.long() for each in own])


def compare_shards(group: dist.ProcessGroup, own: Tensor, place: torch.device) -> Shards:
    """Compare the shards of all processes; where one refuses its shard, or the pieces do not fit, all refuse.

    Two answers are waited for: whether all have as many rows, and whether shards follow one another.

    Parameters
    ----------
    group : ProcessGroup
    own : Tensor of int, (4, batch)
        What :func:`read_shard` said of the shard of this process.
    place : torch.device
        Where the processes meet.

    Raises
    ------
    StateError
        A process has refused its shard, has another number of rows, or a shard does not go on where the one
        before it ends.
    """
    rows = gather(torch.tensor([own.shape[1]], device=place), group)[:, 0].tolist()
    refusing = [number for number, count in enumerate(rows) if count < 0]
    if refusing:
        raise StateError(
            f"process {refusing[0]} of the group refused its shard of the sequence, and its own error says "
            "why; the others stop with it, for its state would be missing"
        )
    if len(set(rows)) > 1:
        raise StateError(
            f"the shards of the processes have {', '.join(map(str, rows))} rows; cut every row of the batch "
            "into as many pieces as there are processes"
        )
    kept, cut, opening, closing = gather(own.to(place), group).unbind(1)
    if bool(_breaks(kept, opening, closing)):
        raise StateError(
            "a shard starts at a position that is neither 0 nor the one after the last position of the shard "
            "before, as in load-balanced (zigzag, head-tail) sharding; a state runs along the sequence: "
            f"{_CONTIGUOUS}"
        )
    return Shards(group, kept, cut.bool()).on(own.device)


def _breaks(kept: Tensor, opening: Tensor, closing: Tensor) -> Tensor:
    """Whether any shard neither goes on nor starts a document; padding says nothing. All (shards, batch)."""
    expected, known = closing[0] + 1, kept[0] > 0
    broken = torch.zeros_like(known)
    for number in range(1, kept.shape[0]):
        some = kept[number] > 0
        broken |= known & some & (opening[number] != 0) & (opening[number] != expected)
        expected, known = torch.where(some, closing[number] + 1, expected), known | some
    return broken.any()


def check_ring(group: dist.ProcessGroup | None) -> None:
    """Refuse what torch's own context parallelism would feed the adapter without its state.

    Raises
    ------
    StateError
        It is on, and no group is known, or it balances the load.
    """
    # who has not imported it cannot have switched it on
    ring = sys.modules.get("torch.distributed.tensor.experimental._context_parallel._attention")
    if ring is None or torch.compiler.is_compiling():
        return
    handlers = ring.DTensor._op_dispatcher._custom_op_handlers
    if not any(op in handlers for op in ring.custom_ops):
        return
    if group is None:
        raise StateError(
            "torch's context_parallel has cut the sequence over processes, and the adapter would start from "
            "zero in each shard; run the model inside hankelred_llm.context_parallel(model, group), and "
            f"{_CONTIGUOUS}"
        )
    if ring._cp_options.enable_load_balance:
        raise StateError(
            "torch's context_parallel balances the load: each process holds a piece from the start and one "
            f"from the end of the sequence, along which a state cannot run; {_CONTIGUOUS}"
        )
