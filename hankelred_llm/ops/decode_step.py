"""One step of the recurrence on real channels, by plain operations, for decoding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from .masks import after_reset


class StepCoefficients(NamedTuple):
    """The coefficients of a step, in float64: rounding errors of theirs would accumulate over many tokens."""

    diagonal: Tensor  # (channels,): of the channel itself
    cross: Tensor | None  # (channels,): of the other channel of its pair, None without pairs
    partner_index: Tensor | None  # (channels,): which channel that is

    @classmethod
    def of(cls, log_decay: Tensor, phase: Tensor | None, *, negative: int = 0) -> StepCoefficients:
        """Compute them from eigenvalues as in `channel_scan`, of which the last may be negative."""
        decay = log_decay.double().exp()
        if negative:
            decay = torch.cat([decay[:-negative], -decay[-negative:]])
        if phase is None:
            return cls(decay, None, None)
        pairs, modes = phase.shape[0], decay.shape[0]
        angle = phase.double()
        real, imag = decay[:pairs] * angle.cos(), decay[:pairs] * angle.sin()
        index = torch.arange(modes + pairs, device=decay.device)
        return cls(
            torch.cat([real, real, decay[pairs:]]),
            torch.cat([-imag, imag, decay.new_zeros(modes - pairs)]),
            torch.cat([index[pairs : 2 * pairs], index[:pairs], index[2 * pairs :]]),
        )

    @classmethod
    def stacked(cls, coefficients: Sequence[StepCoefficients]) -> StepCoefficients:
        """Return the coefficients of several systems, with their channels concatenated."""
        diagonals = [each.diagonal for each in coefficients]
        if all(each.cross is None for each in coefficients):
            return cls(torch.cat(diagonals), None, None)
        crosses, indices, start = [], [], 0
        for each in coefficients:
            channels = torch.arange(len(each.diagonal), device=each.diagonal.device)
            crosses.append(torch.zeros_like(each.diagonal) if each.cross is None else each.cross)
            indices.append(start + (channels if each.partner_index is None else each.partner_index))
            start += len(channels)
        return cls(torch.cat(diagonals), torch.cat(crosses), torch.cat(indices))

    def decay(self, before: Tensor) -> Tensor:
        """Return the state before a sample times A, (batch, channels), in double precision."""
        after = self.diagonal * before
        if self.cross is not None and self.partner_index is not None:
            after = torch.addcmul(after, self.cross, before.index_select(1, self.partner_index))
        return after

    def advance(self, u: Tensor, before: Tensor) -> Tensor:
        """Return the state after one sample, both (batch, channels), in the type of the state."""
        return (self.decay(before) + u).to(before.dtype)


class SteppedSystem(Protocol):
    """A system that can be prepared for one token at a time."""

    def stepper(self) -> Stepper:
        """Return it prepared."""

    def tensors(self) -> Iterable[Tensor | None]:
        """Return its parameters."""

    def is_called_plainly(self) -> bool:
        """Return whether a call of it is its own forward pass, and nothing else."""


class Versions(NamedTuple):
    """Numbers that change when tensors are replaced, moved or written to.

    Torch counts neither what is written to the ``data`` of a parameter nor to tensors of inference mode.
    """

    counts: list[int]
    addresses: list[int]

    @classmethod
    def of(cls, tensors: Iterable[Tensor | None]) -> Versions:
        """Read them: once a pass for all adapters, hence by functions in C."""
        present = [tensor for tensor in tensors if tensor is not None]
        try:
            counts = list(map(_count, present))
        except RuntimeError:  # there are tensors of inference mode
            counts = [0 if tensor.is_inference() else tensor._version for tensor in present]
        return cls(counts, list(map(Tensor.data_ptr, present)))

    @classmethod
    def joined(cls, several: Iterable[Versions]) -> Versions:
        """Return those of the tensors of all."""
        counts, addresses = zip(*several, strict=True)
        return cls(list(itertools.chain(*counts)), list(itertools.chain(*addresses)))


_count: Callable[[Tensor], int] = Tensor._version.__get__  # type: ignore[attr-defined]


class Stepper(NamedTuple):
    """A system prepared for one token at a time."""

    step: StepCoefficients
    B: Tensor  # (order, d)
    C: Tensor  # (d, order), with the gate; a product with one row is faster where its transpose is contiguous
    m: Tensor | None  # (order,): the output is that of u + m s, None: of s alone
    static_B: Tensor | None  # (rank, d): input map of static parts, None where they read u
    static_C: Tensor | None  # (d, rank), likewise: output map of a direct term that does not read u
    system: SteppedSystem  # what it was prepared from
    versions: Versions  # of its parameters then

    def is_current(self) -> bool:
        """Return whether the parameters are those that it was prepared from."""
        return Versions.of(self.system.tensors()) == self.versions

    def static_input(self, x: Tensor) -> Tensor:
        """Return what static parts read of x (batch, 1, d): (batch, 1, rank)."""
        input_map = self.B if self.static_B is None else self.static_B
        return linear(x if x.dtype == input_map.dtype else x.to(input_map.dtype), input_map)

    def run(
        self,
        x: Tensor,
        state: Tensor,
        valid: Tensor | None,
        segment_start: Tensor | None,
        static_input: Tensor | None = None,
        decayed: Tensor | None = None,
        head: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one token, in as few operations as possible: (batch, 1, d) and (batch, 1, channels).

        The operations are those of the base model where there is a choice: between its layers, code that ran
        before is faster than code that does less. `decayed` (batch, 1, channels), or (channels,) of a single
        row, is A times the state, zero where a segment starts, and `static_input` (batch, 1, rank) is what
        static parts read, where they were computed before. The output is added to `head` (batch, 1, d), in
        its type, where that is given.
        """
        if decayed is None:
            decayed = after_reset(self.step.decay(state).to(state.dtype), segment_start).unsqueeze(1)
        u = static_input if self.static_B is None else None
        x = x if x.dtype == state.dtype else x.to(state.dtype)
        if decayed.ndim == 1 and valid is None and u is None and self.m is None:
            s = outputs = linear(x, self.B, decayed)  # of a single row, what is added is a bias
        else:
            u = linear(x, self.B) if u is None else u
            s = u + decayed
            if valid is not None:
                s = torch.where(valid[..., None], s, after_reset(state, segment_start).unsqueeze(1))
            outputs = s if self.m is None else torch.addcmul(u, self.m, s)
        y = linear(outputs, self.C)
        if self.static_C is not None:
            y = y + linear(self.static_input(x) if static_input is None else static_input, self.static_C)
        if head is not None:
            y = head + y
            y = y if y.dtype == head.dtype else y.to(head.dtype)
        return y, s
