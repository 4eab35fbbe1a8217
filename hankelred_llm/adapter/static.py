"""The parts of an adapter without a state: static readouts and LoRA, on linear modules of the base model."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, PeftType
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from hankelred.errors import in_one_line, short_repr

from ..errors import AdapterError, AdapterFileError, StateError
from ..state.cache import TokenStep
from ..state.forward_context import LayerCall, current_layer_call
from .architectures import find_decoder, linear_sizes, plain_weight
from .layer import AdapterLayer, HRMLayer
from .system import PreciseModule
from .weights_file import read_config_file

if TYPE_CHECKING:
    from .config import LoraOptions

#: Attribute of a model with merged adapters: the hooks that refuse to train, and to load weights.
_MERGED_HOOKS = "_hrm_merged_hooks"


class LowRankMaps(PreciseModule):
    """A LoRA: ``scale * lora_B lora_A x`` is added to the output of a linear module.

    Parameters
    ----------
    sizes : tuple of int
        Widths of the input and the output.
    options : LoraOptions
        Rank, scale, dropout and initialization.
    dtype, device
        Of the parameters.
    """

    def __init__(self, sizes: tuple[int, int], options: LoraOptions, *, dtype: torch.dtype, device: Any):
        super().__init__()
        self.scale, self.dropout = options.scale, options.dropout
        self.lora_A = nn.Parameter(torch.empty(options.rank, sizes[0], dtype=dtype, device=device))
        self.lora_B = nn.Parameter(torch.zeros(sizes[1], options.rank, dtype=dtype, device=device))
        if options.gaussian:
            nn.init.normal_(self.lora_A, std=1 / options.rank)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return what is added to the output as ``scale * linear(h, up)``: h, up and the scale."""
        lora_A, lora_B = self.lora_A, self.lora_B
        x = x if x.dtype == lora_A.dtype else x.to(lora_A.dtype)
        if self.dropout and self.training:
            x = dropout(x, self.dropout)
        return linear(x, lora_A), lora_B, self.scale


class Readout(NamedTuple):
    """Where a linear module gets ``scale * C_q u`` from."""

    layer: HRMLayer
    name: str  # of the linear module in its block
    scale: float


class _Product(NamedTuple):
    """A matrix of low rank, up @ down."""

    down: Tensor  # (rank, inputs)
    up: Tensor  # (outputs, rank)


class StaticLayer(AdapterLayer):
    """The static parts of the adapters of one linear module: a child of its parent, next to it.

    "Linear" is no part of the name: by it peft would take the layer itself for a linear module.

    Parameters
    ----------
    target : Module
        The linear module.

    Attributes
    ----------
    hrm_lora : ModuleDict of LowRankMaps
        By adapter name.
    readouts : dict of Readout
        By adapter name.
    """

    adapter_layer_names = ("hrm_lora",)
    other_param_names = ("readouts",)
    hrm_lora: nn.ModuleDict

    def __init__(self, target: nn.Module):
        super().__init__(target)
        self.hrm_lora = nn.ModuleDict()
        self._loras = cast("dict[str, LowRankMaps]", self.hrm_lora._modules)  # as in HRMLayer
        self.readouts: dict[str, Readout] = {}
        self._merged: dict[str, _Product] = {}
        self._hooks_before = frozenset(target._forward_hooks)  # those that run before this one
        target.__dict__["_hrm_linear"] = self
        self.add_hook()

    def has_adapter(self, adapter_name: str) -> bool:
        """Return whether an adapter has a part here."""
        return adapter_name in self.readouts or adapter_name in self._loras

    def add_hook(self) -> None:
        """Add the hook that changes the output of the module, where it was among other hooks."""
        if self.__dict__["_hooks"]:
            return
        hooks = self.target._forward_hooks
        others = list(hooks)
        self.__dict__["_hooks"] = (self.target.register_forward_hook(_add_static),)
        place = max((k + 1 for k, key in enumerate(others) if key in self._hooks_before), default=0)
        for key in others[place:]:
            hooks[key] = hooks.pop(key)

    def remove_hooks(self) -> None:
        """Remove the hook, and record its place."""
        if self.__dict__["_hooks"]:
            own = self.__dict__["_hooks"][0].id
            keys = iter(self.target._forward_hooks)
            self._hooks_before = frozenset(itertools.takewhile(lambda key: key != own, keys))
        super().remove_hooks()

    def update_active_parts(self) -> None:
        """Find the active parts anew, and leave the hook out while these are what is merged.

        It would cost time, and change nothing.
        """
        super().update_active_parts()
        if self._merged and self._merged.keys() == set(self.active_parts()):
            self.remove_hooks()
        else:
            self.add_hook()

    def add_readout(self, adapter_name: str, readout: Readout) -> None:
        """Add a static readout; its parameters are those of the system that it reads."""
        self.readouts[adapter_name] = readout
        self.set_adapter(cast(list[str], self.active_adapters))

    def add_lora(self, adapter_name: str, options: LoraOptions) -> None:
        """Add a newly initialized LoRA."""
        maps = LowRankMaps(
            linear_sizes(self.target), options, dtype=self.parameter_dtype(), device=self.target_device()
        )
        self.hrm_lora[adapter_name] = maps.train(self.training)
        self.set_adapter(cast(list[str], self.active_adapters))

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Add the static parts of the active adapters to the output of the module.

        Parameters
        ----------
        x, out : Tensor, shape (..., inputs) and (..., outputs)
            Input and output of the module.

        Returns
        -------
        Tensor, shape (..., outputs)

        Raises
        ------
        ConfigError
            The module is read statically, and its input is not that of its block.
        AdapterError
            Rows have adapters of their own, and the input does not have these rows.
        """
        layer_call = current_layer_call()
        context = None if layer_call is None else layer_call.context
        active = self._active_parts
        dtype = out.dtype
        if len(active) == 1 and not self._merged and (context is None or context.row_adapters is None):
            out = _plus(out, *self._part(layer_call, active[0], x))
            return out if out.dtype == dtype else out.to(dtype)
        active = self.active_in(context)
        for name in active:
            rows = None if context is None else context.rows_of(name)
            if name not in self._merged:
                h, up, scale = self._part(layer_call, name, x)
                if rows is None:
                    out = _plus(out, h, up, scale)
                else:
                    out = out + torch.where(_fitting(rows, x), scale * linear(h, up), 0)
            elif rows is not None:
                out = out - torch.where(_fitting(rows, x), 0, self._merged_delta(name, x))
        for name in self._merged:
            if name not in active:
                out = out - self._merged_delta(name, x)
        return out if out.dtype == dtype else out.to(dtype)

    def _part(self, layer_call: LayerCall | None, name: str, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return what an adapter adds, as ``scale * linear(h, up)``."""
        maps = self._loras.get(name)
        if maps is not None:
            return maps.forward(x) if maps.is_called_plainly() else maps(x)
        layer, key, scale = self.readouts[name]
        block_call = None if layer_call is None else layer_call.blocks.get(layer.cache_key)
        if block_call is None:
            raise StateError(
                f"a linear module of block {layer.cache_key} was called outside the forward pass of its "
                "model; call the model, or its decoder"
            )
        if isinstance(block_call, TokenStep):
            u = layer.static_input_of_token(block_call, name, x, key)
        else:
            u = layer.static_input(block_call, name, x, key).transpose(1, 2)
        return u, layer.system(name).readout(key), scale

    def _merged_delta(self, name: str, x: Tensor) -> Tensor:
        down, up = self._merged[name]
        return linear(linear(x.to(down.dtype), down), up)

    def trained_while_merged(self) -> str | None:
        """Return the name of an adapter that is merged, and would be trained by a forward pass."""
        for name in self._merged if self.training else ():
            part = self._loras[name] if name in self._loras else self.readouts[name].layer.system(name)
            if any(parameter.requires_grad for parameter in part.parameters()):
                return name
        return None

    def product(self, name: str) -> _Product:
        """Return the static part of an adapter as a matrix of low rank, in the type of its parameters."""
        if name in self._loras:
            maps = self._loras[name]
            return _Product(maps.lora_A.detach().clone(), maps.scale * maps.lora_B.detach())
        layer, key, scale = self.readouts[name]
        system = layer.system(name)
        return _Product(system.static_map().detach().clone(), scale * system.readout(key).detach())

    def tensors(self, name: str) -> list[Tensor]:
        """Return the weight of the module, and the parameters of an adapter that are merged into it."""
        weight = cast(Tensor, self.target.weight)
        if name in self._loras:
            return [weight, *self._loras[name].parameters()]
        layer, key, _ = self.readouts[name]
        return [weight, layer.system(name).static_map(), layer.system(name).readout(key)]

    @torch.no_grad()
    def merge_static(self, name: str) -> None:
        """Add the static part of an adapter to the weight of the module, which must be plain."""
        product = self.product(name)
        self._add_to_weight(product, 1.0)
        self._merged[name] = product
        self.merged_adapters.append(name)
        self.update_active_parts()

    @torch.no_grad()
    def unmerge_static(self, name: str) -> None:
        """Subtract what :meth:`merge_static` added."""
        self._add_to_weight(self._merged.pop(name), -1.0)
        self.merged_adapters.remove(name)
        self.update_active_parts()

    def unmerge(self) -> None:
        """Undo :meth:`merge_static` for all adapters, as peft does before another one is activated."""
        for name in list(self._merged):
            self.unmerge_static(name)

    def _add_to_weight(self, product: _Product, sign: float) -> None:
        weight = cast(Tensor, self.target.weight)
        change = product.up.double() @ product.down.double()
        change = change if isinstance(self.target, nn.Linear) else change.t()
        weight.copy_(weight.double() + sign * change.to(weight.device))

    def detach(self) -> None:
        """Remove the hook from the module, and what is merged from its weight."""
        self.unmerge()
        super().detach()
        self.target.__dict__.pop("_hrm_linear", None)


#: Parts of the names of all parameters of an adapter: of its systems, and of its LoRA.
PARAMETER_GROUPS = (*HRMLayer.adapter_layer_names, *StaticLayer.adapter_layer_names)


def _add_static(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    """Add the static parts to the output of a linear module, as its forward hook."""
    return cast(Tensor, module.__dict__["_hrm_linear"].forward(args[0], out))


def _plus(out: Tensor, h: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return ``out + scale * linear(h, up)``, in one operation where the types allow it."""
    if out.dtype != h.dtype or torch.is_autocast_enabled(out.device.type):
        return out + scale * linear(h, up)
    if out.shape[-2] == 1 and not torch.is_grad_enabled():
        return torch.add(out, linear(h, up), alpha=scale)
    # the sum is not stored beside its parts
    total = torch.addmm(out.reshape(-1, out.shape[-1]), h.reshape(-1, h.shape[-1]), up.t(), alpha=scale)
    return total.view(out.shape)


def _fitting(rows: Tensor, x: Tensor) -> Tensor:
    """Return the rows of an adapter on the device of x, which must have one entry for each of them."""
    if x.ndim != 3 or len(x) != len(rows):
        raise AdapterError(
            f"adapter_names gives an adapter to each row of a batch, and a linear module with a LoRA got "
            f"{tuple(x.shape)} of a batch of {len(rows)} rows; call the model once for each adapter"
        )
    return rows.to(x.device)


def static_layers(model: nn.Module) -> dict[str, StaticLayer]:
    """Return the layers of linear modules by the name of the module."""
    return {
        name.removesuffix("_adapter"): module
        for name, module in model.named_modules()
        if isinstance(module, StaticLayer)
    }


def add_hooks(model: nn.Module) -> None:
    """Add the hooks of all linear modules: rows have adapters of their own, which may not be merged.

    They stay until adapters are next activated or merged: another thread may be using them.
    """
    for layer in static_layers(model).values():
        layer.add_hook()


def parts_of(model: nn.Module, adapter_names: Iterable[str]) -> list[tuple[str, str, StaticLayer]]:
    """Return the static parts of adapters, as name of the adapter, name of the module and layer.

    Raises
    ------
    AdapterError
        An adapter has none.
    """
    layers = static_layers(model)
    parts = []
    for adapter in adapter_names:
        parts_of_adapter = [
            (adapter, name, layer) for name, layer in layers.items() if layer.has_adapter(adapter)
        ]
        parts += parts_of_adapter
        if not parts_of_adapter:
            raise AdapterError(
                f"adapter '{adapter}' has no static parts, neither static_readouts nor a LoRA; its state "
                "cannot be merged into weights or written as a LoRA"
            )
    return parts


def merge(model: nn.Module, adapter_names: Iterable[str]) -> None:
    """Merge the static parts of adapters into the weights of their modules.

    Raises
    ------
    AdapterError
        An adapter has none, or is merged; or a weight is quantized, sharded, offloaded or shared. Nothing is
        changed then.
    """
    parts = parts_of(model, adapter_names)
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    for adapter, name, layer in parts:
        if adapter in layer.merged_adapters:
            raise AdapterError(
                f"the static parts of adapter '{adapter}' are merged already; call unmerge_static() first"
            )
        weight = plain_weight(layer.target)
        if weight is None:
            raise AdapterError(
                f"{name} is a {type(layer.target).__name__} whose weight is quantized, sharded or offloaded "
                "and cannot be added to; load the base model in full precision to merge"
            )
        if uses[id(weight)] > 1:
            raise AdapterError(
                f"the weight of {name} is shared with another module, which merging would change too; keep "
                "the adapter unmerged"
            )
    for adapter, _, layer in parts:
        layer.merge_static(adapter)
    remove_merge_checks(model)
    layers = list(static_layers(model).values())
    check = functools.partial(_check_not_merged, layers)
    # in every module, so that the first one that is loaded refuses before any weight is changed
    model.__dict__[_MERGED_HOOKS] = [
        *(module.register_load_state_dict_pre_hook(check) for module in model.modules()),  # type: ignore[no-untyped-call]
        find_decoder(model).backbone.register_forward_pre_hook(functools.partial(_check_not_trained, layers)),
    ]


def _check_not_trained(layers: Iterable[StaticLayer], *_: Any) -> None:
    """Refuse to train adapters that are merged, before a forward pass of the decoder."""
    if not torch.is_grad_enabled():
        return
    name = next((name for layer in layers if (name := layer.trained_while_merged())), None)
    if name is not None:
        raise AdapterError(
            f"the static parts of adapter '{name}' are merged into the weights of the base model, where "
            "they get no gradient; call model.unmerge_static() before training"
        )


def _check_not_merged(
    layers: Iterable[StaticLayer], module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any
) -> None:
    """Refuse to load merged weights, or the parameters merged into them, before a module's state_dict is."""
    merged = {id(p): name for layer in layers for name in layer.merged_adapters for p in layer.tensors(name)}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in merged and prefix + key in state_dict:
            raise AdapterError(
                f"the static parts of adapter '{merged[id(parameter)]}' are merged, and {prefix}{key} would "
                "be loaded beside them; call model.unmerge_static() first"
            )


def remove_merge_checks(model: nn.Module) -> None:
    """Remove the hooks by which :func:`merge` refuses to train, and to load weights."""
    for hook in model.__dict__.pop(_MERGED_HOOKS, ()):
        hook.remove()


def unmerge(model: nn.Module) -> None:
    """Subtract all merged static parts again.

    Raises
    ------
    AdapterError
        Nothing is merged.
    """
    merged = [(layer, name) for layer in static_layers(model).values() for name in layer.merged_adapters]
    if not merged:
        raise AdapterError("no static parts are merged; call merge_static() first")
    for layer, name in merged:
        layer.unmerge_static(name)
    remove_merge_checks(model)


def export(model: nn.Module, adapter_name: str, folder: str | os.PathLike[str]) -> None:
    """Write the static parts of an adapter as a LoRA of peft.

    Raises
    ------
    AdapterError
        The adapter has none, or the folder holds another adapter than a LoRA. Nothing is written then.
    """
    _check_holds_no_other(folder)
    products = {name: layer.product(adapter_name) for _, name, layer in parts_of(model, [adapter_name])}
    ranks = {name: len(product.down) for name, product in products.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: r for name, r in ranks.items() if r != rank}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
        inference_mode=True,
        r=rank,
        lora_alpha=rank,  # the scale is in the weights
        target_modules=_target_names(model, products),
        rank_pattern=others,
        alpha_pattern=dict(others),
    )
    weights = {}
    for name, (down, up) in products.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = down.contiguous().cpu()
        weights[f"base_model.model.{name}.lora_B.weight"] = up.contiguous().cpu()
    config.save_pretrained(str(folder))
    save_file(weights, os.path.join(folder, SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pt"})


def _check_holds_no_other(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder with a saved adapter of another method, whose files a LoRA would replace."""
    path = os.path.join(folder, CONFIG_NAME)
    if not os.path.lexists(path):
        return
    try:
        kind = read_config_file(path).get("peft_type")
    except AdapterFileError:
        kind = None
    if kind != PeftType.LORA:
        raise AdapterError(
            f"{in_one_line(folder)} holds an adapter with peft_type={short_repr(kind)}, which the LoRA would "
            "replace; give export_static another folder"
        )


def _target_names(model: nn.Module, products: Mapping[str, Any]) -> list[str]:
    """Return last parts of names where they name these modules only, else whole names."""
    short = {name.rpartition(".")[2] for name in products}
    named = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return sorted(short if named == set(products) else products)
