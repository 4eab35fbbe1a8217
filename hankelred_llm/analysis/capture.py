"""Capture of adapter activations and gradients while batches run; the model is left unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adapter.adapter_layers import AdapterLayers
from ..errors import CalibrationError
from ..state.cache import find_cache

#: The Trainer's number of labels in several batches, with which the loss is not a mean over this batch.
_CHANGES_THE_LOSS = ("num_items_in_batch",)


class CapturedActivation(NamedTuple):
    """Input, states and masks of the system of one layer on a batch."""

    x: Tensor  # (batch, time, d)
    s: Tensor  # (batch, order, time)
    valid: Tensor | None  # (batch, time)
    segment_start: Tensor | None  # (batch, time)


#: Called with the layer index and the captured activation; may return a function to call with the gradient of
#: the summed loss with respect to the system's output, (batch, time, d).
CaptureCallback = Callable[[int, CapturedActivation], Callable[[Tensor], None] | None]


@contextlib.contextmanager
def capturing(
    model: nn.Module, adapter_layers: AdapterLayers, callback: CaptureCallback, *, gradients: bool
) -> Iterator[Callable[[Mapping[str, Any]], tuple[float, int] | None]]:
    """Prepare a model for passes; yields a function that runs one batch.

    The model is in evaluation mode (no dropout). Gradients are those with respect to the outputs of the
    systems; only the gates require gradients, so none are computed for weights. Gradient checkpointing stays
    on where it was; a recomputed forward pass is recognized by its place in the backward pass.

    Parameters
    ----------
    gradients : bool
        Run a backward pass for batches with labels.

    Yields
    ------
    callable
        From a batch to (mean loss, number of labels), None for a batch without labels.

    Notes
    -----
    Hooks, mode, gradients, requires_grad and the random state are restored, also after an error.
    """
    modes = {module: module.training for module in model.modules()}
    parameters = list(model.parameters())
    forward = True

    def hook(index: int) -> Callable[..., None]:
        def on_activation(
            _: nn.Module, args: Any, kwargs: dict[str, Any], output: tuple[Tensor, Tensor]
        ) -> None:
            y, s = output
            captured = CapturedActivation(
                args[0].detach(), s.detach(), kwargs.get("valid"), kwargs.get("segment_start")
            )
            # with reentrant checkpointing the graph belongs to the recomputed pass, otherwise to the first
            # one; a hook on the output of the other pass is never called
            on_gradient = callback(index, captured) if forward or y.requires_grad else None
            if on_gradient is not None and y.requires_grad:
                y.register_hook(on_gradient)  # type: ignore[no-untyped-call]

        return on_activation

    def run(batch: Mapping[str, Any]) -> tuple[float, int] | None:
        nonlocal forward
        forward = True
        batch_on_device = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
            if key not in _CHANGES_THE_LOSS
        }
        labels = batch_on_device.get("labels")
        # the caller may have no_grad or inference_mode on
        with torch.inference_mode(False), torch.set_grad_enabled(gradients and labels is not None):
            loss = model(**{"use_cache": False, **batch_on_device}).loss
            if labels is None:
                return None
            count = int((labels[..., 1:] != -100).sum())
            mean = float(loss.detach()) if count else 0.0  # a mean over no labels is NaN
            # the sum over labels gives equal weights to batches of all sizes, and avoids underflow in float16
            total = loss * count
        if gradients and count:
            forward = False
            total.backward()
            for system in adapter_layers.systems.values():
                system.gate.grad = None
        return mean, count

    device = _input_device(model, adapter_layers)
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    with _restored_afterwards(model, adapter_layers) as handles, torch.random.fork_rng(devices):
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
        if gradients:
            _checkpoint(model, modes, handles)
            for system in adapter_layers.systems.values():
                system.gate.requires_grad_(True)
                system.gate.grad = None
        for index, system in adapter_layers.systems.items():
            handles.append(system.register_forward_hook(hook(index), with_kwargs=True))
        yield run


def _input_device(model: nn.Module, adapter_layers: AdapterLayers) -> torch.device:
    """Return the device of the model, and of the adapter where the model names none."""
    device = getattr(model, "device", None)
    if isinstance(device, torch.device) and device.type != "meta":
        return device
    return next(iter(adapter_layers.systems.values())).B.device


@contextlib.contextmanager
def _restored_afterwards(model: nn.Module, adapter_layers: AdapterLayers) -> Iterator[list[Any]]:
    """Yield a list of hook handles; afterwards remove them and restore modes, requires_grad and gradients."""
    modes = {module: module.training for module in model.modules()}
    parameters = list(model.parameters())
    trainable = [parameter.requires_grad for parameter in parameters]
    kept_gradients = {system: system.gate.grad for system in adapter_layers.systems.values()}
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
        for parameter, requires_grad in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(requires_grad)
        for system, gradient in kept_gradients.items():
            system.gate.grad = gradient


def mean_loss(
    model: nn.Module,
    adapter_layers: AdapterLayers,
    rows: Iterable[Mapping[str, Any]],
    callback: CaptureCallback | None = None,
) -> float | None:
    """Return the mean loss over the labels of all rows, None without labels; there is no backward pass."""
    total, labels = 0.0, 0
    with capturing(model, adapter_layers, callback or (lambda index, captured: None), gradients=False) as run:
        for row in rows:
            mean, count = run(row) or (0.0, 0)
            total, labels = total + mean * count, labels + count
    return total / labels if labels else None


def inputs_of(batch: Mapping[str, Any]) -> Any:
    """Return the token ids of a batch, or the embeddings passed instead."""
    return batch.get("input_ids", batch.get("inputs_embeds"))


def _checkpoint(model: Any, modes: dict[nn.Module, bool], handles: list[Any]) -> None:
    """Keep gradient checkpointing on where the model trains with it: memory may require it."""
    checkpointed = [
        module for module, mode in modes.items() if mode and getattr(module, "gradient_checkpointing", False)
    ]
    for module in checkpointed:
        module.training = True  # this module only, not the dropout inside it
    embeddings = (
        model.get_input_embeddings() if checkpointed and hasattr(model, "get_input_embeddings") else None
    )
    if isinstance(embeddings, nn.Module):
        # reentrant checkpointing builds a graph only for inputs that require gradients
        handles.append(embeddings.register_forward_hook(lambda _, __, out: out.requires_grad_(True)))


def checked_batch(batch: Any, number: int) -> Mapping[str, Any]:
    """Return a batch, checked.

    Raises
    ------
    CalibrationError
        It is not a mapping, has no inputs, or has a cache.
    """
    if not isinstance(batch, Mapping):
        raise CalibrationError(
            f"batch {number} is a {type(batch).__name__}; batches are dicts for model(**batch), with "
            "input_ids and attention_mask, and labels for the statistics of the loss"
        )
    inputs = inputs_of(batch)
    if not isinstance(inputs, Tensor) or inputs.ndim < 2:
        raise CalibrationError(
            f"batch {number} has no input_ids (batch, time) as a tensor; it has {', '.join(map(str, batch))}"
        )
    if find_cache(batch.values()) is not None:
        raise CalibrationError(
            f"batch {number} has a cache; calibration reads whole sequences: leave the cache out"
        )
    return batch
