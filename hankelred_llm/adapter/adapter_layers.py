"""The adapters in a model: their layers, their systems by layer index, and how to remove them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from hankelred.errors import short_repr

from .._util.numbers import is_number
from ..errors import AdapterError, ConfigError
from ..state import forward_context
from .architectures import find_decoder, without_wrapper
from .config import HRMConfig
from .layer import AdapterLayer, HRMLayer
from .static import StaticLayer, remove_merge_checks
from .system import HRMSystem


def hrm_layers(model: nn.Module) -> list[HRMLayer]:
    """Return the HRM layers of a model, by layer index.

    Raises
    ------
    AdapterError
        The argument is not a model, for example the name of one.

    Examples
    --------
    >>> from torch import nn
    >>> from hankelred_llm.adapter.adapter_layers import hrm_layers
    >>> hrm_layers(nn.Linear(2, 2))
    []
    """
    if not isinstance(model, nn.Module):
        raise AdapterError(
            f"{model!r} is no model but a {type(model).__name__}; load it first, an adapter with "
            "peft.PeftModel.from_pretrained(base, folder)"
        )
    layers = [module for module in model.modules() if isinstance(module, HRMLayer)]
    return sorted(layers, key=lambda layer: layer.index)


def find_adapter(model: nn.Module, adapter_name: str | None) -> tuple[str, list[HRMLayer]]:
    """Return the name of an adapter, and its layers."""
    layers = hrm_layers(model)
    known = sorted({name for layer in layers for name in layer.hrm_system})
    if not known:
        raise AdapterError("the model has no HRM adapter; put one in with hankelred_llm.attach(model)")
    if adapter_name is None:
        active = sorted({name for layer in layers for name in layer.active_parts()})
        if len(active) != 1:
            raise AdapterError(f"pass adapter_name: {len(active)} of the adapters {known} are active")
        adapter_name = active[0]
    if adapter_name not in known:
        raise AdapterError(
            f"there is no adapter '{adapter_name}'; the model has {', '.join(map(repr, known))}"
        )
    named = [layer for layer in layers if adapter_name in layer.hrm_system]
    if len({layer.index for layer in named}) < len(named):
        blocks = ", ".join(sorted({layer.block for layer in named}))
        raise AdapterError(
            f"adapter '{adapter_name}' has more than one system in a decoder layer ({blocks}), and systems "
            "are named by layer index here; give each block an adapter of its own, with add_adapter and "
            "target_modules or site"
        )
    return adapter_name, named


class AdapterLayers(NamedTuple):
    """The systems of one adapter and their module names, by layer index."""

    adapter: str
    systems: dict[int, HRMSystem]
    names: dict[int, str]


def find_adapter_layers(model: nn.Module, adapter_name: str | None) -> AdapterLayers:
    """Return the systems of the adapter that is active, or of the one that is named.

    Raises
    ------
    AdapterError
        There is no such adapter, or none is named and not exactly one is active.
    """
    adapter, layers = find_adapter(model, adapter_name)
    parents = {id(module): name.rpartition(".")[0] for name, module in model.named_modules()}
    return AdapterLayers(
        adapter,
        {layer.index: layer.system(adapter) for layer in layers},
        {layer.index: ".".join([*parents[id(layer)].split(".")[-2:], layer.block]) for layer in layers},
    )


def add_static_layer(model: nn.Module, name: str, method_adapters: tuple[str, ...]) -> StaticLayer:
    """Return the layer of a linear module, which is added next to it where there is none.

    Parameters
    ----------
    model : Module
    name : str
        Whole name of the linear module in it.
    method_adapters : tuple of str
        Names of all HRM adapters of the model.
    """
    parent = model.get_submodule(name.rpartition(".")[0])
    child = f"{name.rpartition('.')[2]}_adapter"
    if not hasattr(parent, child):
        target = without_wrapper(model.get_submodule(name))
        setattr(parent, child, StaticLayer(target).train(target.training))
    layer = cast(StaticLayer, getattr(parent, child))
    layer.method_adapters = method_adapters
    return layer


def check_active(model: nn.Module, adapter_layers: AdapterLayers) -> None:
    """Refuse an adapter that a forward pass would leave out.

    Raises
    ------
    AdapterError
        The adapter is not active.
    """
    for layer in hrm_layers(model):
        if layer.index in adapter_layers.systems and adapter_layers.adapter not in layer.active_parts():
            raise AdapterError(
                f"adapter '{adapter_layers.adapter}' is not active, so no batch reaches it; call "
                f"model.set_adapter('{adapter_layers.adapter}'), outside of disable_adapter()"
            )


def parameter_groups(model: nn.Module, lr: float, static_lr_ratio: float = 1.0) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for an optimizer, static parts at a rate of their own.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
    lr : float
        Learning rate of the states, with their input and output maps, and of modules of the base model.
    static_lr_ratio : float
        Learning rate of the static readouts and of a LoRA, in the adapter or beside it, over ``lr``. An input
        map that readouts share with the state is trained with the state.

    Returns
    -------
    list of dict
        With ``params`` and ``lr``; a group without parameters is left out.

    Raises
    ------
    ConfigError
        A rate is not a positive number.
    AdapterError
        Nothing in the model is trainable.

    Examples
    --------
    >>> import transformers, torch, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(
    ...     transformers.MistralForCausalLM(config), r=4, site="attention", static_readouts=["q_proj"])
    >>> groups = hankelred_llm.parameter_groups(model, lr=1e-2, static_lr_ratio=3)
    >>> [(len(group["params"]), group["lr"]) for group in groups]  # q_proj of two layers
    [(10, 0.01), (2, 0.03)]
    >>> optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    """
    for name, value in (("lr", lr), ("static_lr_ratio", static_lr_ratio)):
        if not is_number(value) or not 0 < value < math.inf:
            raise ConfigError(f"{name}={short_repr(value)} must be a positive number")
    static = static_parameters(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise AdapterError(
            "the model has no trainable parameters; attach an adapter, or load one with is_trainable=True"
        )
    groups = [
        {"params": [p for p in trained if id(p) not in static], "lr": lr},
        {"params": [p for p in trained if id(p) in static], "lr": lr * static_lr_ratio},
    ]
    return [group for group in groups if group["params"]]


def static_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that have no part in a state, those of other methods among them."""
    return {
        id(p)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
        for p in (module.static_parameters() if isinstance(module, HRMLayer) else module.parameters())
    }


def other_adapter_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules with an adapter of another method, such as a LoRA, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, AdapterLayer)
    }


def remove_adapters(model: nn.Module) -> None:
    """Restore a model to what it was before any HRM adapter was attached; adapters of other methods stay."""
    decoder = find_decoder(model)
    forward_context.remove(decoder.backbone, decoder.layers)
    remove_merge_checks(model)
    for layer in decoder.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, AdapterLayer):
                module.detach()
                parent, _, child = name.rpartition(".")
                delattr(layer.get_submodule(parent), child)
    configs = model.__dict__.get("peft_config", {})
    for name in [n for n, c in configs.items() if isinstance(c, HRMConfig)]:
        del configs[name]
    if not configs:
        model.__dict__.pop("peft_config", None)
