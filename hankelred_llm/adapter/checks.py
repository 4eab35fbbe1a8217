"""Whether a configuration fits a model: its base model, and the names in its fields."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hankelred.errors import in_one_line, name_list, short_repr

from ..errors import AdapterFileError, ArchitectureError, ConfigError
from .architectures import ADDS_RESIDUAL, SITES, Decoder, is_linear, linear_sizes
from .config import HRMConfig, has_lora, lora_targets, names_block, static_rank
from .system import StaticMaps

#: Attribute of a base model: the GGUF file that it was read from.
GGUF_FILE = "_hrm_gguf_file"


def check_base(config: HRMConfig, model: nn.Module, decoder: Decoder) -> None:
    """Refuse another base model than the adapter was made for; record it in a new configuration."""
    shape = {
        "model_type": decoder.model_type,
        "hidden_size": decoder.width,
        "num_hidden_layers": len(decoder.layers),
    }
    if config.base_shape is None:
        config.base_shape = shape
        if config.base_gguf_file is None:
            config.base_gguf_file = _gguf_file(model)
    elif config.base_shape != shape:
        base = (
            f"'{in_one_line(config.base_model_name_or_path, 300)}'"
            if config.base_model_name_or_path
            else "that it had"
        )
        raise AdapterFileError(
            f"the adapter was made for base_shape={_listed(config.base_shape)}, and the model is "
            f"{_listed(shape)}; load the base {base}, or train an adapter of this one"
        )
    made_for, name = config.base_model_name_or_path, getattr(model, "name_or_path", None)
    # the same model may be in another folder
    if made_for and name and os.path.basename(made_for) != os.path.basename(name):
        warnings.warn(
            f"the adapter was trained on '{in_one_line(made_for, 300)}', and is put into '{name}'; with "
            "other weights its output is another one",
            stacklevel=2,
        )


def _gguf_file(model: nn.Module) -> str | None:
    """Return the GGUF file a model was read from, as recorded in it, or where its folder has no other one."""
    recorded: str | None = getattr(model, GGUF_FILE, None)
    if recorded is not None:
        return recorded
    if getattr(model, "quantization_method", None) != "gguf":
        return None
    name = str(getattr(model, "name_or_path", "") or "")
    files = (
        sorted(entry for entry in os.listdir(name) if entry.endswith(".gguf")) if os.path.isdir(name) else []
    )
    if len(files) == 1:
        return files[0]
    warnings.warn(
        f"the base model was read from a GGUF file, and which one is not known (in "
        f"{in_one_line(name, 300)!r}: {name_list(files, 3)}); give HRMConfig(base_gguf_file=...), so that "
        "the adapter records it",
        stacklevel=2,
    )
    return None


def _listed(shape: Mapping[str, object]) -> str:
    return f"{{{', '.join(f'{key!r}: {short_repr(value)}' for key, value in sorted(shape.items()))}}}"


def check_names(config: HRMConfig, model: nn.Module, decoder: Decoder, *, fresh: bool) -> list[str]:
    """Refuse names of layers, blocks and modules that do not exist; return the blocks that are adapted.

    Parameters
    ----------
    fresh : bool
        Whether the configuration is a new one, whose user may have passed ``site``, not one read from a file.

    Raises
    ------
    ArchitectureError
        No block of the model has a name in ``target_modules``.
    ConfigError
        Another field names something that does not exist, or two fields contradict each other.
    """
    blocks = [
        _Block(index, name, f"{decoder.name}.{index}.{name}")
        for index, layer in enumerate(decoder.layers)
        for name, _ in layer.named_children()
    ]
    targets = _target_blocks(config, decoder, blocks)
    names = {block.name for block in targets}
    _check_site(config, decoder, names, fresh=fresh)
    _check_tap(config, decoder, names)
    layers = _chosen_layers(config, decoder)
    adapted = [block.full_name for block in targets if block.layer in layers]
    if config.exclude_modules:
        adapted = _without_excluded(adapted, config.exclude_modules)
    _check_modules_to_save(config, model, adapted)
    _check_patterns(config, decoder, adapted)
    return adapted


def warn_of_many_states(config: HRMConfig, adapted: Sequence[str], width: int) -> None:
    """Warn where a layer gets more states than the model is wide, and say what they cost."""
    orders = {block: config.modes_of(block).order for block in adapted}
    larger = {block: order for block, order in orders.items() if order > width}
    if larger:
        block, order = max(larger.items(), key=lambda item: item[1])
        warnings.warn(
            f"{block} gets r={order} states, more than the {width} channels that they read and write: 2 r d "
            f"= {2 * order * width:,} parameters in this layer, and {order} numbers of state for each row of "
            f"a batch; take r of at most {width}, unless the task needs more independent time constants",
            stacklevel=2,
        )


class _Block(NamedTuple):
    """A child of a decoder layer."""

    layer: int
    name: str  # within its layer, as in "mlp"
    full_name: str  # as in "model.layers.3.mlp"


def _target_blocks(config: HRMConfig, decoder: Decoder, blocks: list[_Block]) -> list[_Block]:
    """Return the blocks that ``target_modules`` names: a list of names, or a pattern of whole names."""
    targets = config.target_modules
    if isinstance(targets, list):
        named = [block for block in blocks if any(names_block(t, block.full_name) for t in targets)]
        if not named:
            existing = sorted({block.name for block in blocks})
            sites = [f"site='{site}'" for site in SITES if decoder.block_name(site) in existing]
            raise ArchitectureError(
                f"model_type '{decoder.model_type}' has no block {short_repr(targets)} in its decoder "
                f"layers, only {', '.join(existing)}; give {' or '.join([*sites, 'target_modules'])}, with a "
                "block that takes and returns hidden states"
            )
        return named
    named = [block for block in blocks if re.fullmatch(str(targets), block.full_name)]
    if not named:
        site = decoder.block_name(config.site)
        raise ArchitectureError(
            f"target_modules={short_repr(targets)} is a pattern that matches the whole name of no block, "
            f"such as '{decoder.name}.0.{site}'; write '.*{site}', or a list as in ['{site}']"
        )
    return named


def _check_site(config: HRMConfig, decoder: Decoder, names: set[str], *, fresh: bool) -> None:
    """Refuse a ``site`` that is none of the target blocks."""
    # the default value was not chosen by the user, and a file does not record whether it was the default
    chosen = config.site != HRMConfig.site or (fresh and config.site_given)
    if chosen and decoder.block_name(config.site) not in names:
        raise ConfigError(
            f"site={config.site!r} and target_modules={short_repr(config.target_modules)} name different "
            "blocks; give one of them"
        )


def _check_tap(config: HRMConfig, decoder: Decoder, names: set[str]) -> None:
    """Refuse ``tap="output"`` at a block whose output is not its own contribution alone."""
    adding = [s for s in SITES if decoder.block_name(s) in names and (decoder.model_type, s) in ADDS_RESIDUAL]
    if adding and config.tap == "output":
        raise ConfigError(
            f"tap='output' is not possible at site={adding[0]!r} of model_type '{decoder.model_type}': "
            "its block returns the residual stream with its output; use tap='input'"
        )


def _check_modules_to_save(config: HRMConfig, model: nn.Module, adapted: list[str]) -> None:
    """Refuse ``modules_to_save`` with a name that no module of the model has, or an adapted block is in."""
    modules = [name for name, _ in model.named_modules() if name]
    for key in config.modules_to_save or ():
        named = [name for name in modules if names_block(key, name)]
        if inside := [b for b in adapted for name in named if f"{b}.".startswith(f"{name}.")]:
            raise ConfigError(
                f"modules_to_save names {short_repr(key)}, and {inside[0]} gets an adapter; a block is "
                "either trained whole or has an adapter: take it out of modules_to_save or of target_modules"
            )
        if not named:
            near = get_close_matches(key, {name.rpartition(".")[2] for name in modules}, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ", of which print(model) shows all"
            raise ConfigError(
                f"modules_to_save names {short_repr(key)}, which is no module of the model{hint}"
            )


def _chosen_layers(config: HRMConfig, decoder: Decoder) -> Sequence[int]:
    """Return the indices that ``layers_to_transform`` chooses; all of them by default."""
    count, chosen = len(decoder.layers), config.layers_to_transform
    layers = range(count) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    for index in layers:
        if not 0 <= index < count:
            raise ConfigError(
                f"layers_to_transform names layer {short_repr(index)}; the model has layers 0 to {count - 1}"
            )
    return layers


def _check_patterns(config: HRMConfig, decoder: Decoder, adapted: list[str]) -> None:
    """Refuse keys of ``rank_pattern``, ``mode_pattern`` and ``static_pattern`` that name no adapted block."""
    for field in ("rank_pattern", "mode_pattern", "static_pattern"):
        for key in getattr(config, field):
            if not any(names_block(key, name) for name in adapted):
                example = adapted[0] if adapted else f"{decoder.name}.0.{decoder.block_name(config.site)}"
                chosen = config.layers_to_transform
                only = "" if chosen is None else f", and layers_to_transform={short_repr(chosen)}"
                raise ConfigError(
                    f"{field} names {short_repr(key)}, which is no adapted block; names are like "
                    f"'{example.removeprefix(decoder.name.rpartition('.')[0] + '.')}', up to layer "
                    f"{len(decoder.layers) - 1}{only}"
                )


def _without_excluded(blocks: list[str], excluded: list[str] | str) -> list[str]:
    """Return the blocks that are not excluded: a list excludes by name, a string by a pattern of whole names.

    Raises
    ------
    ConfigError
        A name is that of no block, or no block is left.
    """
    remaining = list(blocks)
    for name in [excluded] if isinstance(excluded, str) else excluded:
        matched = [
            block
            for block in blocks
            if (re.fullmatch(name, block) if isinstance(excluded, str) else names_block(name, block))
        ]
        if not matched:
            raise ConfigError(
                f"exclude_modules has {short_repr(name)}, which is no adapted block; they are "
                f"{', '.join(blocks[:3])}"
                f"{', ...' if len(blocks) > 3 else ''}"
            )
        remaining = [block for block in remaining if block not in matched]
    if not remaining:
        raise ConfigError(
            f"exclude_modules={short_repr(excluded)} leaves no block for an adapter; exclude fewer"
        )
    return remaining


def readout_names(config: HRMConfig, model: nn.Module, adapted: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the whole names of the linear modules in ``static_readouts``, by block and by name in the field.

    Raises
    ------
    ConfigError
        A name is that of no linear module of a block, or of several in one.
    """
    named: dict[str, dict[str, str]] = {block: {} for block in adapted}
    for block in named:
        inside = _modules_in(model.get_submodule(block))
        for name in config.static_readouts:
            matches = [key for key in inside if names_block(name, key)]
            linear = [key for key in matches if is_linear(inside[key])]
            if len(linear) > 1 or (matches and not linear):
                what = f"{len(linear)} linear modules" if linear else f"a {type(inside[matches[0]]).__name__}"
                raise ConfigError(
                    f"static_readouts names {short_repr(name)}, which is {what} in {block}; name one linear "
                    "module that reads the input of the block, such as 'q_proj'"
                )
            if linear:
                named[block][name] = f"{block}.{linear[0]}"
    for name in config.static_readouts:
        if not any(name in readouts for readouts in named.values()):
            block = next(iter(named))
            inside = _modules_in(model.get_submodule(block))
            linear = [key for key in inside if is_linear(inside[key])]
            raise ConfigError(
                f"static_readouts names {short_repr(name)}, which is no linear module of {block}; it has "
                f"{name_list(linear, 6) if linear else 'none'}"
            )
    return named


def static_maps(
    config: HRMConfig, model: nn.Module, readouts: Mapping[str, Mapping[str, str]]
) -> dict[str, StaticMaps]:
    """Return the parts without a state of the systems of an adapter, by block.

    Parameters
    ----------
    readouts : mapping of str to dict of str
        What :func:`readout_names` returned.
    """
    return {
        block: StaticMaps(
            {key: linear_sizes(model.get_submodule(name))[1] for key, name in names.items()},
            config.feedthrough,
            static_rank(config, block),
        )
        for block, names in readouts.items()
    }


def _modules_in(block: nn.Module) -> dict[str, nn.Module]:
    """Return the modules in a block by their names in it, without the inside of adapters."""
    modules = dict(block.named_modules())
    inside = [f"{name}." for name, module in modules.items() if isinstance(module, BaseTunerLayer)]
    return {
        name: module
        for name, module in modules.items()
        if name and not any(name.startswith(prefix) for prefix in inside)
    }


def lora_names(config: HRMConfig, model: nn.Module, decoder: Decoder, readouts: Iterable[str]) -> list[str]:
    """Return the whole names of the modules that get the LoRA of the adapter.

    Parameters
    ----------
    readouts : iterable of str
        Whole names of the modules that are read statically.

    Raises
    ------
    ConfigError
        No module has such a name, or one is not linear, outside of the decoder layers, or read statically.
    """
    if config.lora is None:
        return []
    modules = _modules_in(model)
    targets = lora_targets(config)
    names = [name for name, module in modules.items() if has_lora(config, name, linear=is_linear(module))]
    inside = [name for name in names if name.startswith(f"{decoder.name}.")]
    if not inside or (len(inside) < len(names) and targets != "all-linear"):
        outside = next((name for name in names if name not in inside), None)
        raise ConfigError(
            f"lora.target_modules names {outside}, which is in no decoder layer"
            if outside
            else f"lora.target_modules={short_repr(targets)} is no linear module of a "
            "decoder layer; names are like 'up_proj'"
        )
    both = set(inside) & set(readouts)
    for name in inside:
        parent = modules.get(name.rpartition(".")[0])
        if not is_linear(modules[name]) or isinstance(parent, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            what = "entry of a list of modules" if is_linear(modules[name]) else type(modules[name]).__name__
            raise ConfigError(
                f"lora.target_modules names {name}, a {what}; the LoRA in this adapter is for linear modules "
                "with a name of their own"
            )
        if name in both:
            raise ConfigError(
                f"lora.target_modules names {name}, which is read statically too; take it out of "
                "static_readouts or of the LoRA (lora.exclude_modules, with 'all-linear')"
            )
    return inside
