"""The decoder layers of a model, and the blocks in them that an adapter can run in parallel with.

An architecture whose blocks are called ``mlp`` and ``self_attn`` needs no entry here; other names are entered
in :data:`BLOCK_NAMES`. An architecture is tested by an entry in ``ARCHITECTURES`` of tests/helpers/models.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterError, ArchitectureError

#: Default name of the block, by the ``site`` of a configuration.
SITES = {"mlp": "mlp", "attention": "self_attn"}

#: Names that differ from the default, by ``model_type`` and ``site``.
BLOCK_NAMES: dict[str, dict[str, str]] = {
    "bloom": {"attention": "self_attention"},
    "codegen": {"attention": "attn"},
    "falcon": {"attention": "self_attention"},
    "gpt2": {"attention": "attn"},
    "gpt_neo": {"attention": "attn"},
    "gpt_neox": {"attention": "attention"},
    "gptj": {"attention": "attn"},
    "granitemoe": {"mlp": "block_sparse_moe"},
    "mpt": {"mlp": "ffn", "attention": "attn"},
}

#: Blocks that return the residual stream plus their own output, as (model_type, site); no ``tap="output"``.
ADDS_RESIDUAL = {("bloom", "mlp"), ("bloom", "attention"), ("mpt", "mlp")}


@dataclass(frozen=True)
class Decoder:
    """The decoder of a causal language model."""

    model_type: str
    backbone: nn.Module  # the module that is called with tokens, mask and positions
    name: str  # of the list of layers, as in "model.layers"
    layers: nn.ModuleList
    width: int

    def block_name(self, site: str) -> str:
        """Return the name of the block of a site within a layer."""
        return BLOCK_NAMES.get(self.model_type, {}).get(site, SITES[site])


def find_decoder(model: nn.Module) -> Decoder:
    """Find the decoder layers of a causal language model.

    Raises
    ------
    AdapterError
        The model is wrapped in a PeftModel.
    ArchitectureError
        The model is not a causal language model, or its decoder layers were not found.
    """
    kind = type(model).__name__
    if isinstance(model, PeftModel):
        raise AdapterError(
            "the model is a PeftModel already; for a second HRM adapter call model.add_adapter(name, "
            "HRMConfig(...)), or model.load_adapter(folder, name) for a saved one; to combine with LoRA "
            "attach to model.get_base_model(), or call base.add_adapter(LoraConfig(...)) and attach to that"
        )
    if not isinstance(model, PreTrainedModel):
        raise ArchitectureError(
            f"{kind} is no model of transformers; load one with transformers.AutoModelForCausalLM"
        )
    model_type = str(model.config.model_type)
    if (
        not isinstance(model, GenerationMixin)
        or model.config.is_encoder_decoder
        or model.get_output_embeddings() is None
    ):
        raise ArchitectureError(
            f"{kind} (model_type '{model_type}') is no causal language model: an adapter follows the tokens "
            "from left to right; load the model with transformers.AutoModelForCausalLM"
        )
    text = model.config.get_text_config(decoder=True)
    backbone = model.get_decoder()
    for layers in backbone.children():
        if isinstance(layers, nn.ModuleList) and len(layers) == text.num_hidden_layers:
            full = next(n for n, module in model.named_modules() if module is layers)
            return Decoder(model_type, backbone, full, layers, int(text.hidden_size))
    raise ArchitectureError(
        f"{kind} (model_type '{model_type}') is not supported: {type(backbone).__name__} holds no list of "
        f"{text.num_hidden_layers} decoder layers"
    )


def without_wrapper(module: nn.Module) -> nn.Module:
    """Return the module of the base model that an adapter of another method wraps, or the module itself."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is linear, quantized ones included, and those that adapters have wrapped.

    Examples
    --------
    >>> from torch import nn
    >>> from hankelred_llm.adapter.architectures import is_linear
    >>> is_linear(nn.Linear(2, 3)), is_linear(nn.Embedding(2, 3))
    (True, False)
    """
    module = without_wrapper(module)
    sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return isinstance(module, (nn.Linear, Conv1D)) or all(isinstance(size, int) for size in sizes)


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """Return the widths of the input and the output of a linear module."""
    module = without_wrapper(module)
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def plain_weight(module: nn.Module) -> Tensor | None:
    """Return the weight of a linear module; None where it is quantized, sharded or offloaded."""
    weight = getattr(module, "weight", None)
    plain = (
        isinstance(module, (nn.Linear, Conv1D))
        and type(weight) is nn.Parameter
        and type(weight.data) is Tensor
        and weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and not weight.is_meta
    )
    return weight if plain else None
