"""The calibration pass: statistics of an adapter in one pass over data, resumable after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .._util.progress import progress_bar
from ..adapter.adapter_layers import AdapterLayers, check_active, find_adapter_layers, hrm_layers
from ..adapter.model import attach
from ..errors import CalibrationError
from .calibration import Calibration, LayerSums, thinned
from .capture import CapturedActivation, capturing, checked_batch, inputs_of
from .fingerprints import adapter_fingerprint, add_batch, model_fingerprint
from .gradient_hankel import GradientOperator

Array: TypeAlias = npt.NDArray[Any]

#: One row in so many is a validation row, from the second row on, until there are more tokens than requested.
HELD_OUT_STRIDE = 4

#: Seconds between two saves of a checkpoint.
SAVE_EVERY = 60.0

#: Entries of a batch that belong to the batch, not to one of its rows.
_OF_THE_BATCH = ("num_items_in_batch", "return_dict", "use_cache")


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    adapter_name: str | None = None,
    held_out: int = 4096,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Collect statistics of an adapter's states, and of the gradient of the loss at its output, in one pass.

    For each layer these are the means of s s^T (s its states) and, from batches with labels, of
    (C^T g)(C^T g)^T, g the gradient of the loss with respect to the adapter's output. Masked positions do not
    count; packed documents are separated as in training.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        A model with an HRM adapter, in any mode and precision; or one without, to analyze the gradient before
        training.
    batches : iterable of dict
        For ``model(**batch)``: a DataLoader, or a list. ``labels`` switch on the statistics of the loss, at
        the cost of a backward pass.
    adapter_name : str, optional
        Default: the active adapter.
    held_out : int
        About so many tokens, in whole rows spread evenly over the data, are left out of the statistics and
        kept as validation rows, on which reductions are compared: one row in four at first, fewer as the data
        get longer. They take the memory of their token ids, masks and labels. 0: none.
    checkpoint : path, optional
        The statistics are saved here once a minute and at the end. If the file exists already, its batches
        are skipped, so that an interrupted pass over the same batches resumes.
    progress : bool, optional
        Show a bar on stderr. Default: where that is a terminal.

    Returns
    -------
    Calibration

    Raises
    ------
    AdapterError
        The model has no such adapter, or it is not active.
    CalibrationError
        No batches, batches that cannot be used or give numbers that are not finite, or a checkpoint of other
        data, another model, another adapter or another ``held_out``.

    Notes
    -----
    The model is left unchanged, also if a batch fails: parameters, gradients, hooks, mode and random state.
    Gradient checkpointing stays on where it was, without counting anything twice. The gradient is that of the
    loss summed over labels, so that batches of different sizes have equal weight. Dropout is off.

    Examples
    --------
    >>> import transformers, torch, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    >>> tokens = torch.arange(8 * 16).view(8, 16) % 32
    >>> calibration = hankelred_llm.calibrate(model, [{"input_ids": tokens, "labels": tokens}])
    >>> calibration.tokens, len(calibration.held_out)
    (96, 2)
    """
    if isinstance(batches, Mapping):
        raise CalibrationError("batches is one batch; pass a list of batches, as in [batch]")
    if not hrm_layers(model) and adapter_name is None:
        with _temporary_adapters(model) as adapted:
            return calibrate(adapted, batches, held_out=held_out, checkpoint=checkpoint, progress=progress)
    if isinstance(held_out, bool) or not isinstance(held_out, int) or held_out < 0:
        raise CalibrationError(f"held_out must be a number of tokens, 0 or more, got {held_out!r}")
    adapter_layers = find_adapter_layers(model, adapter_name)
    check_active(model, adapter_layers)
    collector = _Collector(_empty_calibration(model, adapter_layers, held_out), adapter_layers)
    previous = None if checkpoint is None else _Checkpoint(checkpoint, model, adapter_layers, held_out)
    digest = hashlib.sha256()
    with capturing(model, adapter_layers, collector.on_activation, gradients=True) as run:
        for number, raw in enumerate(progress_bar(batches, "calibrating", progress)):
            batch = checked_batch(raw, number)
            add_batch(digest, batch)
            if previous is not None and number < previous.batches:
                if number + 1 == previous.batches:
                    collector.total = previous.of_same_data(digest.hexdigest())
                continue
            collector.add(batch, run, number, digest.hexdigest())
            if previous is not None:
                previous.save(collector.total)
    out = collector.total
    if previous is not None and out.data[0]["batches"] < previous.batches:
        raise previous.refusal("fewer were passed")
    if not out.tokens:
        raise CalibrationError(
            "no position was counted: there were no batches, or their attention masks are all zero"
            if not out.rows
            else f"no position was counted in {out.rows} rows: check the attention mask"
        )
    if checkpoint is not None:
        out.save(checkpoint)
    return out


class _Checkpoint:
    """The file of an interrupted pass, and the time of its last write."""

    def __init__(
        self, path: str | os.PathLike[str], model: nn.Module, adapter_layers: AdapterLayers, held_out: int
    ):
        self.path = path
        self._done = Calibration.load(path) if os.path.exists(path) else None
        if self._done is not None:
            self._done.check(model, adapter_layers.adapter)
            if self._done.held_out_limit != held_out:
                raise CalibrationError(
                    f"the checkpoint {os.fspath(path)} was made with held_out={self._done.held_out_limit}, "
                    f"and held_out={held_out} was passed; delete it, or pass the same"
                )
        self.batches = 0 if self._done is None else int(self._done.data[0]["batches"])
        self._saved = time.monotonic()

    def of_same_data(self, digest: str) -> Calibration:
        """Return the statistics in the file, if they were collected on batches with this digest."""
        if self._done is None or digest != self._done.data[0]["digest"]:
            raise self.refusal("these are others")
        return self._done

    def refusal(self, why: str) -> CalibrationError:
        """Return the error for a checkpoint that does not fit the batches."""
        return CalibrationError(
            f"the checkpoint {os.fspath(self.path)} holds statistics of {self.batches} batches, and {why}; "
            "delete it, or pass the batches it was made from in the same order"
        )

    def save(self, calibration: Calibration) -> None:
        """Write the file, unless the last write was less than SAVE_EVERY ago."""
        if time.monotonic() - self._saved > SAVE_EVERY:
            calibration.save(self.path)
            self._saved = time.monotonic()


@contextlib.contextmanager
def _temporary_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """Attach, for a while, an adapter of rank 1 whose output is zero."""
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # its parameters do not matter, but they must be the same when a checkpoint is resumed
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        adapted = attach(model, r=1)
    try:
        yield adapted
    finally:
        adapted.unload()
        for parameter, value in trainable:
            parameter.requires_grad_(value)


class _Collector:
    """Adds up the statistics of batches; a batch that fails changes nothing."""

    def __init__(self, start: Calibration, adapter_layers: AdapterLayers):
        self.total = start
        self.adapter_layers = adapter_layers
        self._validation_mask: Tensor = torch.zeros(0, dtype=torch.bool)
        self._states: dict[int, Array] = {}
        self._outputs: dict[int, Array] = {}
        self._counted = 0

    def add(self, batch: Mapping[str, Any], run: Any, number: int, digest: str) -> None:
        before = self.total
        rows = before.rows + torch.arange(inputs_of(batch).shape[0])
        limit = before.held_out_limit
        self._validation_mask = (
            rows % before.stride == 1 % before.stride if limit else torch.zeros(len(rows), dtype=torch.bool)
        )
        self._states, self._outputs, self._counted = {}, {}, 0
        outcome = run(batch)
        labels = outcome is not None and outcome[1] > 0
        if labels and self._counted and len(self._outputs) < len(self._states):
            missing = sorted(set(self._states) - set(self._outputs))
            raise CalibrationError(
                f"batch {number}: the gradient of the loss did not reach the adapter in layers {missing}; "
                "with reentrant gradient checkpointing pass use_reentrant=False, or leave the labels out"
            )
        zero = {i: np.zeros_like(sums.states) for i, sums in before.layers.items()}
        sums = {
            i: LayerSums(old.pairs, self._states.get(i, zero[i]), self._outputs.get(i, zero[i]))
            for i, old in before.layers.items()
        }
        loss, count = (0.0, 0) if outcome is None else outcome
        # states first: gradients from a layer that is not finite are not finite in the layers below either
        not_finite = [
            i
            for kind in ("states", "outputs")
            for i, layer_sums in sums.items()
            if not np.all(np.isfinite(getattr(layer_sums, kind)))
        ]
        if not_finite or not np.isfinite(loss):
            what = (
                f"states or gradients of layer {not_finite[0]} are" if not_finite else f"the loss {loss} is"
            )
            raise CalibrationError(
                f"batch {number}: {what} not finite; check the adapter's parameters for NaN, and the batch"
            )
        data = before.data[0]
        added = {
            "digest": digest,
            "batches": data["batches"] + 1,
            "rows": data["rows"] + len(rows),
            "tokens": data["tokens"] + self._counted,
        }
        self.total = thinned(
            replace(
                before,
                data=(added,),
                layers={i: old + sums[i] for i, old in before.layers.items()},
                tokens=before.tokens + self._counted,
                labelled_tokens=before.labelled_tokens + (self._counted if labels else 0),
                loss_sum=before.loss_sum + loss * count,
                labels=before.labels + count,
                held_out=before.held_out
                + tuple(_row(batch, int(k)) for k in torch.nonzero(self._validation_mask)),
                rows=before.rows + len(rows),
            )
        )

    def on_activation(self, index: int, captured: CapturedActivation) -> Any:
        """Add the states of a layer; return the function that adds the gradient at its output."""
        batch, _, length = captured.s.shape
        counted = ~self._validation_mask.to(captured.s.device)[:, None].expand(batch, length)
        if captured.valid is not None:
            counted = counted & captured.valid
        # a pass recomputed by gradient checkpointing repeats the same states
        if index not in self._states:
            states = captured.s.transpose(1, 2)[counted]
            self._states[index] = _square(states)
            self._counted = len(states)
        system = self.adapter_layers.systems[index]
        operator = self.total.gradients.get(index)

        def on_gradient(g: Tensor) -> None:
            if operator is not None:
                operator.update(captured.x, g, counted, captured.segment_start)
            C = system.output_map().detach()
            self._outputs[index] = _square(g[counted].to(C.dtype) @ C)

        return on_gradient


def _square(rows: Tensor) -> Array:
    """Return the sum of v v^T over rows v, in float64."""
    rows = rows.detach()
    v = (rows.cpu() if rows.device.type == "mps" else rows).double()  # mps has no float64
    return (v.t() @ v).cpu().numpy()


def _empty_calibration(model: nn.Module, adapter_layers: AdapterLayers, held_out: int) -> Calibration:
    return Calibration(
        model=model_fingerprint(model),
        adapter=adapter_fingerprint(adapter_layers),
        data=({"digest": hashlib.sha256().hexdigest(), "batches": 0, "rows": 0, "tokens": 0},),
        layers={
            i: LayerSums(s.modes.pairs, *np.zeros((2, s.modes.order, s.modes.order)))
            for i, s in adapter_layers.systems.items()
        },
        gradients={
            i: GradientOperator(s.width, "cpu" if s.B.device.type == "mps" else s.B.device)
            for i, s in adapter_layers.systems.items()
            if s.output_is_zero()
        },
        tokens=0,
        labelled_tokens=0,
        loss_sum=0.0,
        labels=0,
        held_out=(),
        held_out_limit=held_out,
        stride=HELD_OUT_STRIDE,
        rows=0,
    )


def _row(batch: Mapping[str, Any], k: int) -> dict[str, Tensor]:
    """Return one row of a batch, as a batch."""
    n = inputs_of(batch).shape[0]
    row = {}
    for key, value in batch.items():
        if isinstance(value, Tensor) and key not in _OF_THE_BATCH:
            is_per_row = value.ndim > 0 and value.shape[0] == n and n > 1
            row[key] = (value[k : k + 1] if is_per_row else value).detach().cpu().clone()
    return row
