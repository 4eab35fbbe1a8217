"""Collecting statistics of an adapter in one pass over data, which may be interrupted and gone on with."""

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

from .._util.progress import watched
from ..adapter.adapter_layers import Sites, check_heard, find_sites, hrm_layers
from ..adapter.model import attach
from ..errors import CalibrationError
from .calibration import Calibration, LayerSums, thinned
from .capture import Seen, checked_batch, inputs_of, listening
from .fingerprints import adapter_tag, add_batch, model_tag
from .gradient_hankel import GradientOperator

Array: TypeAlias = npt.NDArray[Any]

#: One row in so many is held out, from the second one on, until there are more tokens than asked for.
HELD_OUT_STRIDE = 4

#: Seconds between two saves of a checkpoint.
SAVE_EVERY = 60.0

#: Entries of a batch that belong to the batch as a whole, not to one of its rows.
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
    """Collect, in one pass over data, what an adapter's states are and which of its outputs the loss feels.

    For each layer the means of s s^T (its states) and, from batches with labels, of (C^T g)(C^T g)^T, g
    being the gradient of the loss at the adapter's output. Positions that the attention mask leaves out
    count nowhere; packed documents are kept apart as in training.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        A model with an HRM adapter, in any mode and precision; or one without, to see what the data ask of
        one.
    batches : iterable of dict
        For ``model(**batch)``: a DataLoader, or a list. ``labels`` switch on the statistics of the loss, at
        the cost of a backward pass.
    adapter_name : str, optional
        Default: the active adapter.
    held_out : int
        About so many tokens, in whole rows spread evenly over the data, are left out of the statistics and
        kept to compare reductions on: of every four rows one at first, fewer as the data get longer. The
        memory is that of their token ids, masks and labels. 0: none.
    checkpoint : path, optional
        The state is saved here once a minute and at the end. If there is such a file already, its
        batches are skipped: an interrupted pass over the same batches goes on.
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
        No batches, batches that cannot be used or that give numbers that are not finite, a checkpoint of
        other data, another model or another adapter, or made with another ``held_out``.

    Notes
    -----
    Nothing of the model changes: parameters, gradients, hooks, mode, random state, also if a batch fails.
    Gradient checkpointing stays on where it was, and counts nothing twice. The loss's gradient is that of
    the sum over labels, so that batches of different sizes weigh alike. Dropout is off.

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
        with _one_state_each(model) as adapted:
            return calibrate(adapted, batches, held_out=held_out, checkpoint=checkpoint, progress=progress)
    if isinstance(held_out, bool) or not isinstance(held_out, int) or held_out < 0:
        raise CalibrationError(f"held_out must be a number of tokens, 0 or more, got {held_out!r}")
    sites = find_sites(model, adapter_name)
    check_heard(model, sites)
    total = _Collector(_empty(model, sites, held_out), sites)
    earlier = None if checkpoint is None else _Checkpoint(checkpoint, model, sites, held_out)
    digest = hashlib.sha256()
    with listening(model, sites, total.hear, gradients=True) as run:
        for number, raw in enumerate(watched(batches, "calibrating", progress)):
            batch = checked_batch(raw, number)
            add_batch(digest, batch)
            if earlier is not None and number < earlier.batches:
                if number + 1 == earlier.batches:
                    total.so_far = earlier.of_same_data(digest.hexdigest())
                continue
            total.add(batch, run, number, digest.hexdigest())
            if earlier is not None:
                earlier.save(total.so_far)
    out = total.so_far
    if earlier is not None and out.data[0]["batches"] < earlier.batches:
        raise earlier.refusal("fewer were passed")
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
    """The file of an interrupted pass, and when to write it again."""

    def __init__(self, path: str | os.PathLike[str], model: nn.Module, sites: Sites, held_out: int):
        self.path = path
        self._done = Calibration.load(path) if os.path.exists(path) else None
        if self._done is not None:
            self._done.check(model, sites.adapter)
            if self._done.held_out_limit != held_out:
                raise CalibrationError(
                    f"the checkpoint {os.fspath(path)} was made with held_out={self._done.held_out_limit}, "
                    f"and held_out={held_out} was passed; delete it, or pass the same"
                )
        self.batches = 0 if self._done is None else int(self._done.data[0]["batches"])
        self._saved = time.monotonic()

    def of_same_data(self, digest: str) -> Calibration:
        """Return what was done, if it was done on the batches with this digest."""
        if self._done is None or digest != self._done.data[0]["digest"]:
            raise self.refusal("these are others")
        return self._done

    def refusal(self, why: str) -> CalibrationError:
        """Return the error of a checkpoint that does not fit the batches."""
        return CalibrationError(
            f"the checkpoint {os.fspath(self.path)} holds statistics of {self.batches} batches, and {why}; "
            "delete it, or pass the batches it was made from in the same order"
        )

    def save(self, calibration: Calibration) -> None:
        """Write the file, unless that was done a moment ago."""
        if time.monotonic() - self._saved > SAVE_EVERY:
            calibration.save(self.path)
            self._saved = time.monotonic()


@contextlib.contextmanager
def _one_state_each(model: nn.Module) -> Iterator[nn.Module]:
    """Put the smallest adapter that adds nothing into a model, and take it out again."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # poles and rows are of no account here, but a checkpoint must meet the same again
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        adapted = attach(model, r=1)
    try:
        yield adapted
    finally:
        adapted.unload()
        for parameter, value in wanted:
            parameter.requires_grad_(value)


class _Collector:
    """Adds batches up: one that fails half-way leaves nothing behind."""

    def __init__(self, start: Calibration, sites: Sites):
        self.so_far = start
        self.sites = sites
        self._held: Tensor = torch.zeros(0, dtype=torch.bool)
        self._states: dict[int, Array] = {}
        self._outputs: dict[int, Array] = {}
        self._counted = 0

    def add(self, batch: Mapping[str, Any], run: Any, number: int, digest: str) -> None:
        before = self.so_far
        rows = before.rows + torch.arange(inputs_of(batch).shape[0])
        limit = before.held_out_limit
        self._held = (
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
        # the states first: gradients that come down from a bad layer are bad in the layers below
        bad = [
            i
            for kind in ("states", "outputs")
            for i, one in sums.items()
            if not np.all(np.isfinite(getattr(one, kind)))
        ]
        if bad or not np.isfinite(loss):
            what = f"states or gradients of layer {bad[0]} are" if bad else f"the loss {loss} is"
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
        self.so_far = thinned(
            replace(
                before,
                data=(added,),
                layers={i: old + sums[i] for i, old in before.layers.items()},
                tokens=before.tokens + self._counted,
                labelled_tokens=before.labelled_tokens + (self._counted if labels else 0),
                loss_sum=before.loss_sum + loss * count,
                labels=before.labels + count,
                held_out=before.held_out + tuple(_row(batch, int(k)) for k in torch.nonzero(self._held)),
                rows=before.rows + len(rows),
            )
        )

    def hear(self, index: int, seen: Seen) -> Any:
        """Add the states of a layer; return what adds the gradient at its output."""
        batch, _, length = seen.s.shape
        counted = ~self._held.to(seen.s.device)[:, None].expand(batch, length)
        if seen.keep is not None:
            counted = counted & seen.keep
        # a recomputed pass, in gradient checkpointing, says the same again
        if index not in self._states:
            states = seen.s.transpose(1, 2)[counted]
            self._states[index] = _square(states)
            self._counted = len(states)
        system = self.sites.systems[index]
        operator = self.so_far.gradients.get(index)

        def feel(g: Tensor) -> None:
            if operator is not None:
                operator.update(seen.x, g, counted, seen.reset)
            C = (system.gate * system.C).detach()
            self._outputs[index] = _square(g[counted].to(C.dtype) @ C)

        return feel


def _square(rows: Tensor) -> Array:
    """Return the sum of v v^T over rows v, in float64."""
    rows = rows.detach()
    v = (rows.cpu() if rows.device.type == "mps" else rows).double()  # which has no float64
    return (v.t() @ v).cpu().numpy()


def _empty(model: nn.Module, sites: Sites, held_out: int) -> Calibration:
    return Calibration(
        model=model_tag(model),
        adapter=adapter_tag(sites),
        data=({"digest": hashlib.sha256().hexdigest(), "batches": 0, "rows": 0, "tokens": 0},),
        layers={
            i: LayerSums(s.modes.pairs, *np.zeros((2, s.modes.order, s.modes.order)))
            for i, s in sites.systems.items()
        },
        gradients={
            i: GradientOperator(s.width, "cpu" if s.B.device.type == "mps" else s.B.device)
            for i, s in sites.systems.items()
            if s.adds_nothing()
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
            own = value.ndim > 0 and value.shape[0] == n and n > 1
            row[key] = (value[k : k + 1] if own else value).detach().cpu().clone()
    return row
