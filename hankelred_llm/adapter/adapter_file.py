"""The two files of a saved adapter, compared with each other before anything is allocated."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import fields
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import safe_open
from torch import Tensor, nn

from hankelred.errors import in_one_line, name_list, short_repr

from ..errors import AdapterFileError, ArchitectureError, ConfigError
from .config import HRMConfig, HRMType, lora_options
from .static import PARAMETER_GROUPS, LowRankMaps
from .system import HRMSystem, StaticMaps, output_bound
from .weights_file import read_config_file, weights_path

#: Part of the name of every parameter of a system, after the name of its block; of a LoRA, after that of its
#: module; and of both.
_SYSTEM, _LORA = (f"_adapter.{group}." for group in PARAMETER_GROUPS)
_EITHER = "_adapter.hrm_"

Shapes = dict[str, tuple[int, ...]]


def check_config_file(path: str | os.PathLike[str]) -> None:
    """Refuse an adapter_config.json that is no configuration of a method, or of an HRM with an invalid field.

    Raises
    ------
    AdapterFileError
        With the field and its value.
    """
    name, content = in_one_line(path), read_config_file(path)
    kind = content.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise AdapterFileError(
            f"{name}: peft_type={short_repr(kind)} is no method that peft {peft.__version__} knows; that of "
            f"an HRM adapter is {HRMType.HRM.value!r}"
        )
    if kind != HRMType.HRM:
        if {"eigenvalues", "mode_pattern"} <= content.keys():
            raise AdapterFileError(
                f"{name}: peft_type={short_repr(kind)}, and the other fields are those of an HRM adapter; "
                f"set it to {HRMType.HRM.value!r}"
            )
        return
    known = {f.name for f in fields(HRMConfig)}
    try:
        HRMConfig(**{key: value for key, value in content.items() if key in known})
    except ConfigError as error:
        raise AdapterFileError(f"{name}: {error}") from None


#: Where the adapter that is being loaded comes from; None while an adapter is made.
_SOURCE: ContextVar[tuple[str, Mapping[str, Any]] | Mapping[str, Tensor] | None] = ContextVar(
    "source of the adapter that is being loaded", default=None
)


@contextlib.contextmanager
def loading(source: tuple[str, Mapping[str, Any]] | Mapping[str, Tensor]) -> Iterator[None]:
    """Say where the adapter that is loaded inside comes from.

    Parameters
    ----------
    source : tuple of str and dict, or dict of Tensor
        A folder or repository, with the options of the hub; or the weights by name.
    """
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)


@contextlib.contextmanager
def errors_of_file() -> Iterator[None]:
    """Report an invalid field as an error of the file, where the configuration comes from one."""
    try:
        yield
    except (ConfigError, ArchitectureError) as error:
        if _SOURCE.get() is None:
            raise
        raise AdapterFileError(f"adapter_config.json: {error}") from None


def check_sizes(
    config: HRMConfig,
    blocks: Mapping[str, StaticMaps],
    lora: Mapping[str, tuple[int, int]],
    width: int,
) -> None:
    """Refuse a configuration whose systems are not those in the file that is being loaded.

    Only the header of the file is read, and nothing is allocated: a configuration of a few bytes can claim
    any size.

    Parameters
    ----------
    config : HRMConfig
    blocks : mapping of str to StaticMaps
        Whole names of the blocks that get an adapter, and its parts without a state.
    lora : mapping of str to tuple of int
        Whole names of the modules that get a LoRA, and their widths.
    width : int
        Of the model.

    Raises
    ------
    AdapterFileError
        With the fields that decide the sizes.
    """
    source = _SOURCE.get()
    if source is None:
        return
    if isinstance(source, Mapping):
        shapes = {key: tuple(value.shape) for key, value in source.items()}
    else:
        with safe_open(weights_path(*source), framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    in_file = {_short_key(key): shape for key, shape in shapes.items() if _EITHER in key}
    parts: dict[str, nn.Module] = {}
    on_meta: dict[str, Any] = {"dtype": torch.float32, "device": "meta"}
    for block, static in blocks.items():
        parts[f"{block}{_SYSTEM}"] = HRMSystem(width, config.modes_of(block), static, **on_meta)
    for name, sizes in lora.items():
        parts[f"{name}{_LORA}"] = LowRankMaps(sizes, lora_options(config, name), **on_meta)
    expected: Shapes = {
        _short_key(f"{prefix}{parameter}"): tuple(value.shape)
        for prefix, part in parts.items()
        for parameter, value in part.named_parameters()
    }
    check_shapes(expected, in_file, config)


def check_shapes(expected: Shapes, in_file: Shapes, config: HRMConfig) -> None:
    """Refuse parameters of other names or shapes than those that the configuration gives.

    Raises
    ------
    AdapterFileError
        With the parameters, and the fields that decide the sizes.
    """
    missing, unknown = sorted(expected.keys() - in_file.keys()), sorted(in_file.keys() - expected.keys())
    if missing or unknown:
        raise weights_mismatch({"are missing": missing, "are unknown": unknown}, config)
    for key, shape in expected.items():
        if in_file[key] != shape:
            raise AdapterFileError(
                f"the adapter's weights do not fit: {key} has shape {in_file[key]} in the file and {shape} "
                "in the model; were r, rank_pattern or lora changed in its adapter_config.json "
                f"({_sizes(config)}), or is it an adapter of another model?"
            )


def _short_key(key: str) -> str:
    """Return the name of a parameter from the list of layers on, as 'layers.3.mlp_adapter.hrm_system.B'.

    What comes before depends on who wrote the file: peft or transformers, and which version of the base.
    """
    match = re.search(r"[^.]+\.\d+\..+", key)
    return match.group() if match else key


def _sizes(config: HRMConfig) -> str:
    names = ["r", "rank_pattern", "mode_pattern", "eigenvalues", "site", "layers_to_transform"]
    static = "static_readouts", "feedthrough", "lora", "static_pattern"
    names += [name for name in static if getattr(config, name)]
    return ", ".join(f"{name}={short_repr(getattr(config, name))}" for name in names)


def weights_mismatch(problems: Mapping[str, list[str]], config: HRMConfig) -> AdapterFileError:
    """Return the error for weights of another adapter; `problems` maps what is wrong to the parameters."""
    counts = ", ".join(f"{len(keys)} {what} ({name_list(keys, 2)})" for what, keys in problems.items())
    return AdapterFileError(
        f"the adapter's weights do not fit: {counts}; were r, site or layers changed in its "
        f"adapter_config.json ({_sizes(config)}), or is it an adapter of another model?"
    )


def check_numbers(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite floating-point numbers, or whose output need not be.

    Raises
    ------
    AdapterFileError
        With the name of the parameter or of the system.
    """
    systems: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        if not value.is_floating_point():
            raise AdapterFileError(
                f"{key} has type {value.dtype} in the file; parameters of an adapter are floating-point "
                "numbers: save it again from the trained model"
            )
        if not value.is_meta and not bool(torch.isfinite(value).all()):
            raise AdapterFileError(
                f"{key} has entries that are not finite in the file; its training diverged: take an earlier "
                "checkpoint, or train with a lower learning rate"
            )
        if _SYSTEM in key and not value.is_meta:
            system, _, parameter = key.rpartition(".")
            systems.setdefault(system, {})[parameter] = value
    for name, parameters in systems.items():
        _check_range(name, parameters)


def _check_range(name: str, parameters: Mapping[str, Tensor]) -> None:
    """Refuse a system whose state or output can leave the range of its type on inputs of size one."""
    if not {"log_rate", "B", "C", "gate"} <= parameters.keys():
        return  # what is missing is reported with everything else that does not fit
    B, C, log_rate = parameters["B"], parameters["C"], parameters["log_rate"]
    fits = B.ndim == 2 and C.shape == B.shape[::-1] and log_rate.ndim == 1
    if not fits or not len(log_rate) <= len(B) <= 2 * len(log_rate) or parameters["gate"].numel() != 1:
        return  # likewise
    if parameters.get("m") is not None and parameters["m"].shape == B.shape[:1]:
        C = C * parameters["m"]
    bound = output_bound(log_rate, B, C, parameters["gate"])
    largest = torch.finfo(torch.promote_types(B.dtype, torch.float32)).max
    if not bound < largest:
        raise AdapterFileError(
            f"{name}: for inputs of size one its state or output can reach {bound:.3g} (sum |C| |B| / "
            f"(1 - |a|)), and the largest number of its type is {largest:.3g}; its training diverged: take "
            "an earlier checkpoint, or train with a lower learning rate"
        )
