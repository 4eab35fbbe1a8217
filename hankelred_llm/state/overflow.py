"""Overflow of half-precision activations in training, which ends in a loss of NaN for good."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def warn_of_overflow(decoder: nn.Module, output: Any) -> None:
    """Warn once for a model whose float16 forward pass, with gradients, gave a value that is not finite.

    In float16 nothing above 65504 can be represented. The gradient scaler of a Trainer skips such steps, but
    it cannot help where the forward pass itself overflows. In other precisions nothing is computed here.

    Parameters
    ----------
    decoder : Module
    output : Any
        What it returned: its hidden states are the first value.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or "_hrm_overflow" in decoder.__dict__:
        return
    hidden = next(iter(output.values() if isinstance(output, Mapping) else output), None)
    if not isinstance(hidden, Tensor) or not _in_float16(hidden):
        return
    if bool(torch.isfinite(hidden.detach()).all()):
        return
    decoder.__dict__["_hrm_overflow"] = True
    warnings.warn(
        "the forward pass in float16 gave activations that are not finite (its largest number is 65504), so "
        "that the loss is NaN; train in bfloat16 (bf16=True) or float32, or with a lower learning rate",
        stacklevel=2,
    )


def _in_float16(hidden: Tensor) -> bool:
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    return hidden.dtype is torch.float16 or autocast
