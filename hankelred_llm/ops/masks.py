"""The masks of a recurrence: which steps are skipped, and where segments start."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def after_reset(state: Tensor, segment_start: Tensor | None) -> Tensor:
    """Return the state (batch, channels) before a step: zero in rows (batch, 1) where a segment starts."""
    return state if segment_start is None else torch.where(segment_start, 0.0, state)


class SegmentMasks(NamedTuple):
    """Validity and segment starts of a batch, each (batch, time) bool, or None where all tokens are alike.

    A segment is a run of tokens that the state follows without a break: a document of a packed row.
    """

    valid: Tensor | None
    """False: padding, an identity step."""
    segment_start: Tensor | None
    """True: a segment starts, and the state before it is forgotten."""

    def without_no_ops(self) -> SegmentMasks:
        """Leave out masks in main memory that change nothing; others cannot be read without waiting."""
        valid, segment_start = self
        if valid is not None and valid.device.type == "cpu" and bool(valid.all()):
            valid = None
        if segment_start is not None and segment_start.device.type == "cpu" and not bool(segment_start.any()):
            segment_start = None
        return SegmentMasks(valid, segment_start)

    def adjoint(self) -> SegmentMasks:
        """Return the masks of the adjoint recurrence: its step at t is step t + 1 of the original one."""
        valid, segment_start = self
        return SegmentMasks(
            None if valid is None else torch.cat([valid[:, 1:], torch.ones_like(valid[:, :1])], 1),
            None
            if segment_start is None
            else torch.cat([segment_start[:, 1:], torch.zeros_like(segment_start[:, :1])], 1),
        )
