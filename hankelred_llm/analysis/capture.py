"""Running batches through a model and listening to its adapters, leaving everything as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adapter.adapter_layers import Sites
from ..errors import CalibrationError
from ..state.cache import find_cache

#: The Trainer's number of labels in several batches: the loss is then no mean over those of this batch.
_CHANGES_THE_LOSS = ("num_items_in_batch",)


class Seen(NamedTuple):
    """What the system of one layer got and made of a batch."""

    x: Tensor  # (batch, time, d)
    s: Tensor  # (batch, order, time)
    keep: Tensor | None  # (batch, time)
    reset: Tensor | None  # (batch, time)


#: Gets the layer index and what was seen; may return what is to be called with the gradient of the summed
#: loss at the system's output, (batch, time, d).
Listener = Callable[[int, Seen], Callable[[Tensor], None] | None]


@contextlib.contextmanager
def listening(
    model: nn.Module, sites: Sites, listener: Listener, *, gradients: bool
) -> Iterator[Callable[[Mapping[str, Any]], tuple[float, int] | None]]:
    """Prepare a model for passes; what is yielded runs one batch.

    The model evaluates (no dropout). Gradients are those with respect to what the systems put out; only the
    gates take part in the graph, so nothing is computed for weights. Gradient checkpointing stays on where
    it was: a recomputed forward pass is told apart because it comes during the backward pass.

    Parameters
    ----------
    gradients : bool
        Go backward through batches with labels.

    Yields
    ------
    callable
        From a batch to (mean loss, number of labels), None for a batch without labels.

    Notes
    -----
    Hooks, mode, gradients, requires_grad and the random state are as before afterwards, whatever happens.
    """
    modes = {module: module.training for module in model.modules()}
    parameters = list(model.parameters())
    trainable = [parameter.requires_grad for parameter in parameters]
    kept_gradients = {system: system.gate.grad for system in sites.systems.values()}
    handles: list[Any] = []
    forward = True

    def hook(index: int) -> Callable[..., None]:
        def hear(_: nn.Module, args: Any, kwargs: dict[str, Any], output: tuple[Tensor, Tensor]) -> None:
            y, s = output
            seen = Seen(args[0].detach(), s.detach(), kwargs.get("keep"), kwargs.get("reset"))
            # with reentrant checkpointing the graph is that of the recomputed pass, else that of the first;
            # a hook on the other one's output is never called
            heard = listener(index, seen) if forward or y.requires_grad else None
            if heard is not None and y.requires_grad:
                y.register_hook(heard)  # type: ignore[no-untyped-call]

        return hear

    def run(batch: Mapping[str, Any]) -> tuple[float, int] | None:
        nonlocal forward
        forward = True
        placed = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
            if key not in _CHANGES_THE_LOSS
        }
        labels = placed.get("labels")
        # the caller may be under no_grad or inference_mode, as one is with a frozen model
        with torch.inference_mode(False), torch.set_grad_enabled(gradients and labels is not None):
            loss = model(**{"use_cache": False, **placed}).loss
            if labels is None:
                return None
            count = int((labels[..., 1:] != -100).sum())
            mean = float(loss.detach()) if count else 0.0  # a mean over no labels is NaN
            # of the sum over labels, whatever the batch's size; it also keeps float16 from underflowing
            total = loss * count
        if gradients and count:
            forward = False
            total.backward()
            for system in sites.systems.values():
                system.gate.grad = None
        return mean, count

    device = next(iter(sites.systems.values())).B.device
    place = getattr(model, "device", device)
    device = place if isinstance(place, torch.device) and place.type != "meta" else device
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            model.eval()
            for parameter in parameters:
                parameter.requires_grad_(False)
            if gradients:
                _checkpoint(model, modes, handles)
                for system in sites.systems.values():
                    system.gate.requires_grad_(True)
                    system.gate.grad = None
            for index, system in sites.systems.items():
                handles.append(system.register_forward_hook(hook(index), with_kwargs=True))
            yield run
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
        for parameter, wanted in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(wanted)
        for system, gradient in kept_gradients.items():
            system.gate.grad = gradient


def mean_loss(
    model: nn.Module, sites: Sites, rows: Iterable[Mapping[str, Any]], listener: Listener | None = None
) -> float | None:
    """Return the mean loss over the labels of all rows, None without labels; nothing goes backward."""
    total, labels = 0.0, 0
    with listening(model, sites, listener or (lambda index, seen: None), gradients=False) as run:
        for row in rows:
            mean, count = run(row) or (0.0, 0)
            total, labels = total + mean * count, labels + count
    return total / labels if labels else None


def inputs_of(batch: Mapping[str, Any]) -> Any:
    """Return the token ids of a batch, or what is given in their place."""
    return batch.get("input_ids", batch.get("inputs_embeds"))


def _checkpoint(model: Any, modes: dict[nn.Module, bool], handles: list[Any]) -> None:
    """Leave gradient checkpointing on where the model trains with it: its memory may not do without."""
    on = [
        module for module, mode in modes.items() if mode and getattr(module, "gradient_checkpointing", False)
    ]
    for module in on:
        module.training = True  # of this module alone, not of the dropout in it
    embeddings = model.get_input_embeddings() if on and hasattr(model, "get_input_embeddings") else None
    if isinstance(embeddings, nn.Module):
        # reentrant checkpointing makes a graph only for inputs that have one
        handles.append(embeddings.register_forward_hook(lambda _, __, out: out.requires_grad_(True)))


def checked_batch(batch: Any, number: int) -> Mapping[str, Any]:
    """Return a batch that a pass can be made of.

    Raises
    ------
    CalibrationError
        It is no mapping, has no inputs, or comes with a cache.
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
