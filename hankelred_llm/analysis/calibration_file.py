"""The file of a calibration: safetensors with JSON metadata, checked completely before it is used."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from hankelred._util.writing import replace_file
from hankelred.errors import short_repr

from .._util.numbers import is_number
from .capture import inputs_of
from .gradient_hankel import GradientOperator

FORMAT = 1

_COUNTS = ("tokens", "labelled_tokens", "labels", "held_out_limit", "stride", "rows")
_FINGERPRINTS = ("model", "adapter")
#: Fields of a calibration that are not tensors.
NUMBERS = (*_COUNTS, "loss_sum", *_FINGERPRINTS, "data")
_KEYS = {"format", "pairs", *NUMBERS}
_PART_COUNTS = ("batches", "rows", "tokens")


class Content(NamedTuple):
    """The content of a file."""

    numbers: dict[str, Any]  # fields of a Calibration that are not tensors
    pairs: dict[int, int]  # by layer
    sums: dict[int, dict[str, Tensor]]  # by layer: states and outputs
    gradients: dict[int, GradientOperator]  # by layer
    held_out: tuple[dict[str, Tensor], ...]


def write(path: str | os.PathLike[str], content: Content) -> None:
    """Write a file atomically: a reader sees the old or the new file.

    Raises
    ------
    OSError
        It cannot be written; no partial file is left.
    """
    tensors = {
        f"{kind}.{index}.{key}": value.cpu().contiguous()
        for kind, groups in (
            ("layers", content.sums),
            ("gradients", {i: operator.state() for i, operator in content.gradients.items()}),
            ("held_out", dict(enumerate(content.held_out))),
        )
        for index, group in groups.items()
        for key, value in group.items()
    }
    pairs = {str(index): count for index, count in content.pairs.items()}
    metadata = json.dumps({"format": FORMAT, "pairs": pairs, **content.numbers})
    data = save(tensors, metadata={"calibration": metadata})
    replace_file(Path(path), lambda name: Path(name).write_bytes(data))


def read(path: str | os.PathLike[str]) -> Content:
    """Return the content of a file.

    Raises
    ------
    ValueError
        An entry is missing, unknown, or of a type or size that does not fit the others.
    CalibrationError
        The same for the sums of a gradient operator.
    SafetensorError, OSError
        It cannot be read as a safetensors file.
    """
    with safe_open(path, framework="pt") as file:
        metadata = _read_metadata(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    pairs = _pairs(metadata.pop("pairs"))
    groups: dict[str, dict[int, dict[str, Tensor]]] = {"layers": {}, "gradients": {}, "held_out": {}}
    for name, tensor in tensors.items():
        kind, _, remainder = name.partition(".")
        number, dot, key = remainder.partition(".")
        if kind not in groups or not _is_index(number) or not dot:
            raise ValueError(f"{name!r} is not an entry of a calibration")
        groups[kind].setdefault(int(number), {})[key] = tensor
    _check_sums(groups["layers"], pairs)
    return Content(
        metadata, pairs, groups["layers"], _gradients(groups["gradients"], pairs), _rows(groups["held_out"])
    )


def _read_metadata(of_file: Mapping[str, str] | None) -> dict[str, Any]:
    if not of_file or "calibration" not in of_file:
        raise ValueError("it has no entry 'calibration'")
    metadata = json.loads(of_file["calibration"])
    if not isinstance(metadata, dict):
        raise ValueError(f"its entry 'calibration' is {short_repr(metadata)}, not a dict")
    if metadata.get("format") != FORMAT:
        raise ValueError(f"it has format {short_repr(metadata.get('format'))}, this version reads {FORMAT}")
    _check_keys(metadata, _KEYS, "its entry 'calibration'")
    del metadata["format"]
    for name in _COUNTS:
        _check_count(metadata[name], name, least=1 if name == "stride" else 0)
    if metadata["labelled_tokens"] > metadata["tokens"]:
        raise ValueError(f"{metadata['labelled_tokens']} of {metadata['tokens']} tokens have labels")
    loss = metadata["loss_sum"]
    if not is_number(loss) or not abs(loss) <= sys.float_info.max:
        raise ValueError(f"loss_sum is {short_repr(loss)}, not a finite number")
    for name in _FINGERPRINTS:
        _check_keys(metadata[name], {"name", "fingerprint"}, name)
        if not all(isinstance(value, str) for value in metadata[name].values()):
            raise ValueError(f"{name} is {short_repr(metadata[name])}, not two strings")
    parts = _checked_parts(metadata["data"])
    for name in ("rows", "tokens"):
        total = sum(part[name] for part in parts)
        if total != metadata[name]:
            raise ValueError(f"its parts have {total} {name}, and the whole has {metadata[name]}")
    metadata["data"] = parts
    return metadata


def _checked_parts(parts: Any) -> tuple[dict[str, Any], ...]:
    """Return the parts of the data, each with its digest and counts."""
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"data is {short_repr(parts)}, not a list of parts")
    for part in parts:
        _check_keys(part, {"digest", *_PART_COUNTS}, "a part of data")
        if not isinstance(part["digest"], str):
            raise ValueError(f"a digest is {short_repr(part['digest'])}, not a string")
        for name in _PART_COUNTS:
            _check_count(part[name], f"{name} of a part of data", least=0)
    return tuple(parts)


def _pairs(pairs: Any) -> dict[int, int]:
    if not isinstance(pairs, dict) or not pairs or not all(map(_is_index, pairs)):
        raise ValueError(f"pairs is {short_repr(pairs)}, not a dict by layer index")
    for index, count in pairs.items():
        _check_count(count, f"pairs of layer {index}", least=0)
    return {int(index): count for index, count in pairs.items()}


def _check_sums(layers: Mapping[int, Mapping[str, Tensor]], pairs: Mapping[int, int]) -> None:
    if set(layers) != set(pairs):
        raise ValueError(f"it has sums of layers {sorted(layers)}, and pairs of layers {sorted(pairs)}")
    for index, sums in layers.items():
        _check_keys(sums, {"states", "outputs"}, f"layer {index}")
        r = max(sums["states"].shape, default=0)
        for name in ("states", "outputs"):
            tensor = sums[name]
            _check_numbers(tensor, f"{name} of layer {index}")
            if tensor.shape != (r, r) or r == 0:
                raise ValueError(f"{name} of layer {index} have shape {tuple(tensor.shape)}")
            if bool((tensor.diagonal() < 0).any()):
                raise ValueError(f"{name} of layer {index} are no sums of squares")
        if 2 * pairs[index] > r:
            raise ValueError(f"layer {index} has {pairs[index]} conjugate pairs among {r} states")


def _gradients(
    states: Mapping[int, Mapping[str, Tensor]], layers: Mapping[int, int]
) -> dict[int, GradientOperator]:
    operators = {}
    for index in sorted(states):
        if index not in layers:
            raise ValueError(f"it has gradients of layer {index}, and sums of layers {sorted(layers)}")
        for name, tensor in states[index].items():
            _check_numbers(tensor, f"{name} of the gradients of layer {index}")
        operators[index] = GradientOperator.from_state(states[index])
        _check_keys(states[index], set(operators[index].state()), f"the gradients of layer {index}")
    return operators


def _rows(rows: Mapping[int, dict[str, Tensor]]) -> tuple[dict[str, Tensor], ...]:
    if sorted(rows) != list(range(len(rows))):
        raise ValueError(f"its held-out rows are numbered {sorted(rows)}")
    for k, row in rows.items():
        _check_row(row, f"held-out row {k}")
    return tuple(rows[k] for k in sorted(rows))


def _check_row(row: Mapping[str, Tensor], name: str) -> None:
    inputs = inputs_of(row)
    if inputs is None or inputs.ndim != (2 if "input_ids" in row else 3) or inputs.shape[0] != 1:
        raise ValueError(f"{name} has no input_ids of one sequence")
    for key in ("input_ids", "labels"):
        if key in row and row[key].dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{key} of {name} are of type {row[key].dtype}")
    time = inputs.shape[1]
    for key in ("labels", "attention_mask", "position_ids"):
        # masks of pairs of tokens have four axes, and positions in pictures three
        shape = tuple(row[key].shape) if key in row else (1, time)
        if shape[-1:] != (time,) or len(shape) < 2 or (len(shape) == 2 and shape[0] != 1):
            raise ValueError(f"{key} of {name} have shape {shape}, and there are {time} tokens")
    if time == 0:
        raise ValueError(f"{name} has no tokens")
    if "input_ids" in row and int(inputs.min()) < 0:
        raise ValueError(f"{name} has token {int(inputs.min())}")


def _check_keys(value: Any, expected: set[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {short_repr(value)}, not a dict")
    missing, unknown = sorted(expected - set(value)), sorted(set(value) - expected)
    if missing:
        raise ValueError(f"{where} has no {', '.join(map(repr, missing))}")
    if unknown:
        raise ValueError(f"{where} has {', '.join(map(repr, unknown))}, which is unknown")


def _check_count(value: Any, name: str, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError(f"{name} is {short_repr(value)}, not a whole number of at least {least}")


def _check_numbers(tensor: Tensor, name: str) -> None:
    if tensor.dtype != torch.float64:
        raise ValueError(f"{name} is of type {tensor.dtype}, not torch.float64")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds numbers that are not finite")


def _is_index(text: str) -> bool:
    # '01' would be the same layer as '1'
    return text.isascii() and text.isdigit() and str(int(text)) == text
