"""What an adapter meets on real data: sums of its states and of the loss's gradient at its output."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

import hankelred

from ._calibration_file import FORMAT, read
from ._errors import CalibrationError
from ._gradient_operator import GradientOperator
from ._passes import Seen, checked_batch, listening
from ._progress import watched
from ._sites import Sites, check_heard, find_sites, hrm_layers
from ._tags import adapter_tag, add_batch, compare, model_tag
from .tuner import attach

Array: TypeAlias = npt.NDArray[Any]

#: One row in so many is held out, from the second one on, until there are more tokens than asked for.
HELD_OUT_STRIDE = 4

#: Seconds between two saves of a checkpoint.
SAVE_EVERY = 60.0

#: Entries of a batch that belong to the batch as a whole, not to one of its rows.
_OF_THE_BATCH = ("num_items_in_batch", "return_dict", "use_cache")


@dataclass(frozen=True, eq=False)
class LayerSums:
    """Sums over the kept positions, in the layer's columns: real parts, imaginary parts, real modes.

    Attributes
    ----------
    pairs : int
        Number of conjugate pairs among the columns.
    states : ndarray, shape (r, r)
        Sum of s s^T.
    outputs : ndarray, shape (r, r)
        Sum of (C^T g)(C^T g)^T, g the gradient of the summed loss at the adapter's output; zero without
        labels.
    """

    pairs: int
    states: Array
    outputs: Array

    def __add__(self, other: LayerSums) -> LayerSums:
        return LayerSums(self.pairs, self.states + other.states, self.outputs + other.outputs)

    def to_modes(self) -> Array:
        """Return T (r, r) from real columns to the modes as :func:`get_systems` lists them."""
        r, p = self.states.shape[0], self.pairs
        T = np.zeros((r, r), complex)
        k = np.arange(p)
        T[2 * k, k], T[2 * k, p + k] = 1, 1j
        T[2 * k + 1, k], T[2 * k + 1, p + k] = 1, -1j
        T[range(2 * p, r), range(2 * p, r)] = 1
        return T


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of an adapter on data; made by :func:`calibrate`.

    It holds 2 r^2 numbers a layer, whatever the amount of data, and the tokens of a few rows that were held
    out of the statistics, to compare candidates of a reduction on them. Of a fresh adapter, and batches with
    labels, also the gradient operator: 8 MB a layer for a width of 64, 50 MB at d = 4096.

    Attributes
    ----------
    model, adapter : dict
        What it was made with: a name and a fingerprint of the weights each.
    data : tuple of dict
        What it was made from: digest and numbers of batches, rows and tokens, for each part that was merged.
    layers : dict of LayerSums
        By layer index.
    gradients : dict of GradientOperator
        Of layers whose adapter is fresh (C = 0), from batches with labels: what the loss asks of them.
    tokens : int
        Kept positions that were counted.
    labelled_tokens : int
        Those of them in batches with labels: the outputs' sums are over these.
    loss_sum : float
        Of the labels' losses; ``labels`` is their number.
    labels : int
    held_out : tuple of dict
        Rows that were held out, as batches of one row.
    held_out_limit, stride : int
        How many tokens of them are kept, and one row in how many that has become.
    rows : int
        Rows seen, held out or not.

    Notes
    -----
    A sum of squares in float64 resolves directions down to 1e-8 of the largest; states in float32 are not
    better.
    """

    model: dict[str, str]
    adapter: dict[str, str]
    data: tuple[dict[str, Any], ...]
    layers: dict[int, LayerSums] = field(repr=False)
    gradients: dict[int, GradientOperator] = field(repr=False)
    tokens: int
    labelled_tokens: int
    loss_sum: float
    labels: int
    held_out: tuple[dict[str, Tensor], ...] = field(repr=False)
    held_out_limit: int
    stride: int
    rows: int

    @property
    def loss(self) -> float | None:
        """Mean loss over all labels; None without labels."""
        return self.loss_sum / self.labels if self.labels else None

    def check(self, model: nn.Module, adapter_name: str | None = None) -> None:
        """Refuse another model, another adapter, or one whose parameters have changed.

        Parameters
        ----------
        model : PeftModel
        adapter_name : str, optional
            Default: the active adapter.

        Raises
        ------
        CalibrationError
            Naming both.

        Examples
        --------
        >>> import transformers, torch, hankelred_llm
        >>> config = transformers.MistralConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
        >>> calibration = hankelred_llm.calibrate(model, [{"input_ids": torch.arange(64).view(4, 16) % 32}])
        >>> calibration.check(model)
        """
        sites = find_sites(model, adapter_name)
        compare(self.model, model_tag(model), "model")
        compare(self.adapter, adapter_tag(sites), "adapter")
        self._check_sizes(sites)

    def _check_sizes(self, sites: Sites) -> None:
        """Refuse sums of other sizes than the adapter has: a file may name it and still hold others."""
        mine = {i: (len(sums.states), sums.pairs) for i, sums in self.layers.items()}
        theirs = {i: (system.modes.order, system.modes.pairs) for i, system in sites.systems.items()}
        for i in sorted({*mine, *theirs}):
            if mine.get(i) != theirs.get(i):
                raise CalibrationError(
                    f"layer {i}: the calibration has (states, conjugate pairs) {mine.get(i)}, and adapter "
                    f"'{sites.adapter}' has {theirs.get(i)}; calibrate again"
                )
        for i, operator in self.gradients.items():
            if operator.width != sites.systems[i].width:
                raise CalibrationError(
                    f"layer {i}: the calibration has gradients of width {operator.width}, and the model has "
                    f"width {sites.systems[i].width}; calibrate again"
                )

    def merge(self, other: Calibration) -> Calibration:
        """Return the calibration of both parts of the data; neither of the two is changed.

        Sums are added, so the order does not matter, but for which rows stay held out.

        Parameters
        ----------
        other : Calibration
            Of the same model and adapter.

        Raises
        ------
        CalibrationError
            Of another model or adapter.

        Examples
        --------
        >>> import transformers, torch, hankelred_llm
        >>> config = transformers.MistralConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
        >>> parts = [
        ...     hankelred_llm.calibrate(model, [{"input_ids": torch.randint(32, (4, 16))}]) for _ in range(2)]
        >>> parts[0].merge(parts[1]).tokens
        96
        """
        check_calibration(other)
        compare(self.model, other.model, "model")
        compare(self.adapter, other.adapter, "adapter")
        merged = replace(
            self,
            data=tuple(sorted(self.data + other.data, key=lambda part: str(part["digest"]))),
            layers={index: sums + other.layers[index] for index, sums in self.layers.items()},
            gradients={i: own.merge(other.gradients[i]) for i, own in self.gradients.items()},
            tokens=self.tokens + other.tokens,
            labelled_tokens=self.labelled_tokens + other.labelled_tokens,
            loss_sum=self.loss_sum + other.loss_sum,
            labels=self.labels + other.labels,
            held_out=self.held_out + other.held_out,
            held_out_limit=max(self.held_out_limit, other.held_out_limit),
            stride=max(self.stride, other.stride),
            rows=self.rows + other.rows,
        )
        return merged._thinned()

    def _thinned(self) -> Calibration:
        """Drop every second row that is held out while there are more tokens of them than allowed."""
        held, stride = self.held_out, self.stride
        while len(held) > 1 and sum(map(_tokens_in, held)) > self.held_out_limit:
            held, stride = held[::2], 2 * stride
        return replace(self, held_out=held, stride=stride)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with JSON metadata, in one step: a reader sees the old or the new one.

        Parameters
        ----------
        path : path
            Written under exactly this name. The file holds the tokens of the rows that were held out.

        Raises
        ------
        OSError
            The file cannot be written; then there is no partial file.
        """
        target = Path(path)
        tensors = {}
        for index, sums in self.layers.items():
            tensors[f"layers.{index}.states"] = torch.from_numpy(np.ascontiguousarray(sums.states))
            tensors[f"layers.{index}.outputs"] = torch.from_numpy(np.ascontiguousarray(sums.outputs))
        for index, operator in self.gradients.items():
            state = operator.state()
            tensors |= {f"gradients.{index}.{key}": value.cpu() for key, value in state.items()}
        for k, row in enumerate(self.held_out):
            tensors |= {f"held_out.{k}.{key}": value.contiguous() for key, value in row.items()}
        numbers = {
            name: getattr(self, name)
            for name in (
                *("tokens", "labelled_tokens", "loss_sum", "labels"),
                *("held_out_limit", "stride", "rows", "model", "adapter", "data"),
            )
        }
        pairs = {str(index): sums.pairs for index, sums in self.layers.items()}
        metadata = {"calibration": json.dumps({"format": FORMAT, "pairs": pairs, **numbers})}
        # in the target's own folder: os.replace is atomic only inside one file system
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
        try:
            with open(temporary, "xb") as file:
                file.write(save(tensors, metadata=metadata))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file written by :meth:`save`.

        Parameters
        ----------
        path : path

        Raises
        ------
        CalibrationError
            Not such a file, a damaged one, or one with parts that are unknown or do not fit each other.
        FileNotFoundError
            No file there.
        """
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"no calibration at {os.fspath(path)}; write one with calibrate(model, batches).save(path)"
            )
        try:
            content = read(path)
        except (SafetensorError, CalibrationError, ValueError, OSError) as error:
            raise CalibrationError(
                f"{os.fspath(path)} is no complete calibration ({error}); write it with Calibration.save"
            ) from error
        layers = {
            i: LayerSums(pairs, content.sums[i]["states"].numpy(), content.sums[i]["outputs"].numpy())
            for i, pairs in content.pairs.items()
        }
        return cls(layers=layers, gradients=content.gradients, held_out=content.held_out, **content.numbers)

    def factors(self, index: int, system: hankelred.ModalSystem) -> tuple[Array, Array | None]:
        """Return factors of the empirical Gramians of a layer, in the modes of its system.

        Parameters
        ----------
        index : int
            Of the layer.
        system : hankelred.ModalSystem
            That layer's, as :func:`get_systems` gives it.

        Returns
        -------
        controllability : ndarray, shape (r, k)
            L with L L^H = E[s s^H]: of the states that the data excite.
        observability : ndarray, shape (r, k), or None without labels
            Of the outputs weighted by how much the loss feels them: with Q = E[(C^H g)(C^H g)^H], the
            solution of ``A^H W A - W + Q = 0``, W_ij = Q_ij / (1 - conj(a_i) a_j).
        """
        sums = self.layers[index]
        T = sums.to_modes()
        states = T @ hankelred.gramian_factor(sums.states / self.tokens)
        if not self.labelled_tokens or not np.any(sums.outputs):
            return states, None
        seen = hankelred.gramian_factor(sums.outputs / self.labelled_tokens)
        weighted = hankelred.ModalSystem(system.log_poles, system.B, seen.T @ np.linalg.inv(T))
        return states, hankelred.gramian(weighted, "observability", factor=True)


def check_calibration(calibration: object) -> None:
    """Refuse what is none, such as the name of its file.

    Raises
    ------
    CalibrationError
    """
    if not isinstance(calibration, Calibration):
        remedy = "Calibration.load" if isinstance(calibration, str | os.PathLike) else "calibrate"
        raise CalibrationError(
            f"calibration={calibration!r} is a {type(calibration).__name__}, not a Calibration; get one from "
            f"hankelred_llm.{remedy}"
        )


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
        inputs = batch.get("input_ids", batch.get("inputs_embeds"))
        assert isinstance(inputs, Tensor)
        rows = before.rows + torch.arange(inputs.shape[0])
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
        self.so_far = replace(
            before,
            data=(added,),
            layers={i: old + sums[i] for i, old in before.layers.items()},
            tokens=before.tokens + self._counted,
            labelled_tokens=before.labelled_tokens + (self._counted if labels else 0),
            loss_sum=before.loss_sum + loss * count,
            labels=before.labels + count,
            held_out=before.held_out + tuple(_row(batch, int(k)) for k in torch.nonzero(self._held)),
            rows=before.rows + len(rows),
        )._thinned()

    def hear(self, index: int, seen: Seen) -> Any:
        """Add the states of a layer; return what adds the gradient at its output."""
        batch, _, length = seen.s.shape
        counted = ~self._held.to(seen.s.device)[:, None].expand(batch, length)
        if seen.keep is not None:
            counted = counted & seen.keep
        # a recomputed pass, in gradient checkpointing, says the same again
        first = index not in self._states
        if first:
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
    inputs = batch.get("input_ids", batch.get("inputs_embeds"))
    assert isinstance(inputs, Tensor)
    n = inputs.shape[0]
    row = {}
    for key, value in batch.items():
        if isinstance(value, Tensor) and key not in _OF_THE_BATCH:
            own = value.ndim > 0 and value.shape[0] == n and n > 1
            row[key] = (value[k : k + 1] if own else value).detach().cpu().clone()
    return row


def _tokens_in(row: Mapping[str, Tensor]) -> int:
    inputs = row.get("input_ids", row.get("inputs_embeds"))
    assert inputs is not None
    return int(inputs.shape[1])
