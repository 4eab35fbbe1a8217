"""Whether a configuration fits a model: the base it was made for, and the names in it."""

from __future__ import annotations

import os
import re
import warnings
from difflib import get_close_matches

from torch import nn

from ..errors import AdapterFileError, ArchitectureError, ConfigError
from .architectures import ADDS_RESIDUAL, SITES, Decoder
from .config import HRMConfig, names_block


def check_base(config: HRMConfig, model: nn.Module, decoder: Decoder) -> None:
    """Refuse another base than the adapter was made for; write that down in a new one."""
    shape = {
        "model_type": decoder.model_type,
        "hidden_size": decoder.width,
        "num_hidden_layers": len(decoder.layers),
    }
    if config.base_shape is None:
        config.base_shape = shape
    elif config.base_shape != shape:
        base = f"'{config.base_model_name_or_path}'" if config.base_model_name_or_path else "that it had"
        raise AdapterFileError(
            f"the adapter was made for {dict(sorted(config.base_shape.items()))}, and the model is "
            f"{dict(sorted(shape.items()))}; load the base {base}, or train an adapter of this one"
        )
    made_for, name = config.base_model_name_or_path, getattr(model, "name_or_path", None)
    # the same model may lie in another folder
    if made_for and name and os.path.basename(made_for) != os.path.basename(name):
        warnings.warn(
            f"the adapter was trained on '{made_for}', and is put into '{name}'; with other weights it "
            "computes something else",
            stacklevel=2,
        )


def check_names(config: HRMConfig, model: nn.Module, decoder: Decoder, *, fresh: bool) -> list[str]:
    """Refuse names of layers, blocks and modules that are not there; return the blocks that are adapted."""
    count, site = len(decoder.layers), decoder.block_name(config.site)
    targets = config.target_modules
    blocks = [
        (i, name, f"{decoder.name}.{i}.{name}")
        for i, layer in enumerate(decoder.layers)
        for name, _ in layer.named_children()
    ]
    if isinstance(targets, list):
        blocks_named = [block for block in blocks if any(names_block(t, block[2]) for t in targets)]
        if not blocks_named:
            there = sorted({name for _, name, _ in blocks})
            sites = [f"site='{s}'" for s in SITES if decoder.block_name(s) in there]
            raise ArchitectureError(
                f"model_type '{decoder.model_type}' has no block {targets} in its decoder layers, only "
                f"{', '.join(there)}; give {' or '.join([*sites, 'target_modules'])}, with a block that "
                "takes and returns hidden states"
            )
    else:
        blocks_named = [block for block in blocks if re.fullmatch(str(targets), block[2])]
        if not blocks_named:
            raise ArchitectureError(
                f"target_modules={targets!r} is a pattern that matches the whole name of no block, such as "
                f"'{decoder.name}.0.{site}'; write '.*{site}', or a list as in ['{site}']"
            )
    names = {name for _, name, _ in blocks_named}
    # the default says nothing of what its user meant, and a file does not say whether it was the default
    wished = config.site != HRMConfig.site or (fresh and config.site_given)
    if wished and names and site not in names:
        raise ConfigError(
            f"site={config.site!r} and target_modules={targets!r} name different blocks; give one of them"
        )
    adding = [s for s in SITES if decoder.block_name(s) in names and (decoder.model_type, s) in ADDS_RESIDUAL]
    if adding and config.tap == "output":
        raise ConfigError(
            f"tap='output' is not possible at site={adding[0]!r} of model_type '{decoder.model_type}': "
            "its block returns the residual stream with its output; use tap='input'"
        )
    parts = [name for name, _ in model.named_modules() if name]
    for wanted in config.modules_to_save or ():
        if not any(names_block(wanted, name) for name in parts):
            near = get_close_matches(wanted, {name.rpartition(".")[2] for name in parts}, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ", of which print(model) shows all"
            raise ConfigError(f"modules_to_save names {wanted!r}, which is no module of the model{hint}")
    chosen = config.layers_to_transform
    layers = range(count) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    for index in layers:
        if not 0 <= index < count:
            raise ConfigError(
                f"layers_to_transform names layer {index}; the model has layers 0 to {count - 1}"
            )
    adapted = [full for i, _, full in blocks_named if i in layers]
    if config.exclude_modules:
        adapted = _without(adapted, config.exclude_modules)
    for field in ("rank_pattern", "mode_pattern"):
        for key in getattr(config, field):
            if not any(names_block(key, full) for full in adapted):
                example = adapted[0] if adapted else f"{decoder.name}.0.{site}"
                only = "" if chosen is None else f", and layers_to_transform={chosen!r}"
                raise ConfigError(
                    f"{field} names {key!r}, which is no adapted block; names are like "
                    f"'{example.removeprefix(decoder.name.rpartition('.')[0] + '.')}', up to layer "
                    f"{count - 1}{only}"
                )
    return adapted


def _without(blocks: list[str], excluded: list[str] | str) -> list[str]:
    """Return the blocks that are not excluded: a list excludes by name, a string by a pattern of whole names.

    Raises
    ------
    ConfigError
        A name means none of the blocks, or no block is left.
    """
    left = list(blocks)
    for wanted in [excluded] if isinstance(excluded, str) else excluded:
        matched = [
            block
            for block in blocks
            if (re.fullmatch(wanted, block) if isinstance(excluded, str) else names_block(wanted, block))
        ]
        if not matched:
            raise ConfigError(
                f"exclude_modules has {wanted!r}, which is no adapted block; they are {', '.join(blocks[:3])}"
                f"{', ...' if len(blocks) > 3 else ''}"
            )
        left = [block for block in left if block not in matched]
    if not left:
        raise ConfigError(f"exclude_modules={excluded!r} leaves no block for an adapter; exclude fewer")
    return left
