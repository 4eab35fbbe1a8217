"""Tiny causal language models with random weights, and batches to feed them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    MistralForCausalLM,
    PreTrainedModel,
    integrations,
)
from transformers.utils import check_peft_version

import hankelred_llm
from hankelred_llm.adapter.adapter_layers import hrm_layers
from hankelred_llm.adapter.static import LowRankMaps
from hankelred_llm.adapter.system import HRMSystem
from hankelred_llm.state.cache import find_cache
from hankelred_llm.state.decoder_call import cache_argument

VOCAB = 61
PAD = 0
WIDTH = 32

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_HEADS = {"head_dim": 8}
_GPT = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 48}

#: Architectures under test, by ``model_type``: what their configuration needs in addition to the sizes above.
#: An entry here runs all tests of tests/llm/adapter/test_architectures.py, and the self-check, on it.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "arcee": {},
    "bloom": {},
    "codegen": {**_GPT, "rotary_dim": 4},
    "cohere": {},
    "cohere2": {"sliding_window": 8},
    "ernie4_5": {},
    "exaone4": {"sliding_window": 8},
    "falcon": {"multi_query": False},
    "gemma": _HEADS,
    "gemma2": {**_HEADS, "sliding_window": 8},
    "gemma3_text": {**_HEADS, "sliding_window": 8},
    "glm": _HEADS,
    "glm4": _HEADS,
    "gpt2": _GPT,
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gpt_neox": {},
    "gptj": {**_GPT, "rotary_dim": 4},
    "granite": {},
    "granitemoe": {"num_local_experts": 4},
    "helium": _HEADS,
    "llama": {},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4},
    "mpt": {"d_model": WIDTH, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 512},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "num_experts_per_tok": 2,
    },
    "qwen3": _HEADS,
    "qwen3_moe": {**_HEADS, "num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
    "seed_oss": {**_HEADS, "attention_dropout": 0.0, "residual_dropout": 0.0},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 8},
}

#: Fields of an adapter with a state, static readouts and a LoRA.
HYBRID: dict[str, Any] = {
    "site": "attention",
    "r": 5,
    "static_readouts": ("q_proj", "k_proj", "v_proj"),
    "feedthrough": True,
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["up_proj", "down_proj"]},
}


def base_model(model_type: str = "mistral", *, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A tiny model in float32, ready for inference."""
    config = AutoConfig.for_model(model_type, **{**_SIZES, **ARCHITECTURES.get(model_type, {}), **fields})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # transformers zeroes the embedding of padding, which would hide adapters that read it
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD].normal_(std=3.0)
    return model.eval()


def with_random_output(model: nn.Module, *, seed: int = 1, scale: float = 0.3) -> nn.Module:
    """The model with random output maps, which are zero at initialization."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in hrm_layers(model):
            for name in layer.hrm_system:
                system = layer.system(name)
                for map_ in (system.C, *(system.readout(key) for key in system.static.readouts)):
                    map_.copy_(scale * torch.randn(map_.shape, generator=generator, dtype=torch.float64))
                if system.m is not None:
                    system.m.copy_(1 + 0.3 * torch.randn(system.m.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, LowRankMaps):
                module.lora_B.copy_(scale * torch.randn(module.lora_B.shape, generator=generator))
    return model


def adapted(model_type: str = "mistral", *, base: dict[str, Any] | None = None, **fields: Any) -> Any:
    """A tiny model with an adapter whose output map is random."""
    plain = base_model(model_type, **(base or {}))
    torch.manual_seed(7)
    model = hankelred_llm.attach(plain, **{"r": 6, **fields})
    return with_random_output(model).eval()


def system_of(model: Any, layer: int = 0, adapter_name: str = "default") -> HRMSystem:
    """The system of an adapter in one layer."""
    return next(each for each in hrm_layers(model) if each.index == layer).system(adapter_name)


def tokens(*shape: int, seed: int = 2) -> Tensor:
    """Random token ids, never padding."""
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def error(seen: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number where that exceeds 1."""
    assert seen.shape == expected.shape
    seen, expected = seen.detach(), expected.detach()
    return float((seen - expected).abs().max() / expected.abs().max().clamp(min=1.0))


@torch.no_grad()
def step_by_step(model: Any, ids: Tensor, *, cache: Any = None, size: int = 1, **inputs: Any) -> Tensor:
    """Logits from a cache, some tokens at a time; other inputs are cut as the tokens are."""
    logits = []
    for start in range(0, ids.shape[1], size):
        part = {key: value[..., start : start + size] for key, value in inputs.items()}
        out = model(ids[:, start : start + size], **with_cache(cache), use_cache=True, **part)
        cache = cache_of(out)
        logits.append(out.logits)
    return torch.cat(logits, 1)


def _has_adapter_methods() -> bool:
    """Tell whether transformers' own load_adapter takes this peft: that of 5.24 waits for the next one."""
    try:
        check_peft_version(min_version=integrations.peft.MIN_PEFT_VERSION)
    except ValueError:
        return False
    return True


needs_adapter_methods = pytest.mark.skipif(
    not _has_adapter_methods(),
    reason="load_adapter and add_adapter of this transformers need a newer peft than is installed",
)


def with_cache(cache: Cache | None) -> dict[str, Cache | None]:
    """The keyword argument a model takes a cache by: transformers 5.24 renamed it."""
    return {cache_argument(MistralForCausalLM.forward): cache}


def cache_of(out: Any) -> Cache:
    """The cache in the output of a model."""
    cache = find_cache(out.values())
    assert cache is not None
    return cache


def padded(ids: Tensor, gap: slice, width: int) -> dict[str, Tensor]:
    """The rows with padding in a gap, positions counting kept tokens only."""
    keep = torch.ones(width, dtype=torch.bool)
    keep[gap] = False
    padded = torch.full((ids.shape[0], width), PAD)
    padded[:, keep] = ids
    mask = keep.long().expand(ids.shape[0], -1)
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    return {"input_ids": padded, "attention_mask": mask, "position_ids": positions}


def checkpointed(model: Any, *, reentrant: bool = False) -> Any:
    """The model, recomputing its layers in the backward pass."""
    base = model.get_base_model()
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    if reentrant:
        base.enable_input_require_grads()
    return model


def one_layer_llama(vocab_size: int, **others: Any) -> PreTrainedModel:
    """Return a Llama of one layer with the special tokens of `ByteTokenizer`."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        **others,
    )
    return AutoModelForCausalLM.from_config(config).eval()
