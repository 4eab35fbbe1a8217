"""A check, before an adapter is attached, that decoding with a cache equals the full forward pass.

transformers renames arguments and moves code between releases. An adapter could then miss what it reads of a
forward pass, above all the cache, without an error: training and full passes would be correct, but generation
would start every token from a zero state. So a copy of the model with a few narrow layers and random weights
generates some tokens first. Where such a copy cannot be made, the model itself processes two tokens.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from ..errors import ArchitectureError, ConfigError, StateError
from ..state import forward_context
from ..state.decoder_call import argument_names, cache_argument
from .adapter_layers import add_static_layer, hrm_layers, remove_adapters
from .architectures import Decoder, find_decoder
from .checks import readout_names, static_maps
from .config import HRMConfig
from .layer import AdapterLayer, HRMLayer
from .static import Readout
from .system import HRMSystem

#: Environment variable: "1" skips the check.
SKIP = "HANKELRED_SKIP_SELF_CHECK"

#: Largest difference between cached and full pass, of the base model relative to its logits, and with the
#: adapter relative to the change that the adapter makes.
_BASE_TOLERANCE, _TOLERANCE = 1e-4, 1e-2

#: With more parameters a copy is not tiny: the check would take seconds.
_MOST_PARAMETERS = 1_000_000

_ROWS, _PROMPT, _NEW, _PADDING = 2, 6, 3, 2

_ADAPTER = "self_check"
_WAY_OUT = f"set the environment variable {SKIP}=1 and use the adapter without a cache (use_cache=False)"
_NO_PADDING = "padding did not reach the adapter"
_NO_STARTS = "starts of packed documents did not reach the adapter"

#: Sizes of the copy, by their names in configurations. Names that a configuration lacks, or has as None, are
#: left out.
_SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "word_embed_proj_dim": 64,
    "n_inner": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "rotary_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "window_size": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

#: Results are kept by the class of the model, the class of its decoder, blocks, tap, eigenvalues, static
#: readouts and feedthrough.
_Key: TypeAlias = tuple[type[nn.Module], type[nn.Module], frozenset[str], str, str, tuple[str, ...], bool]

_results: dict[_Key, str] = {}  # the fault, "" where there is none
_lock = threading.RLock()


def check_architecture(model: PreTrainedModel, decoder: Decoder, config: HRMConfig, blocks: set[str]) -> None:
    """Check that an adapter in some blocks of a model receives its state, padding and document starts.

    Runs once per process for each class of models, decoders and adapters, before the adapter is attached, so
    that the model is unchanged when the check fails.

    Parameters
    ----------
    model : PreTrainedModel
    decoder : Decoder
        Of the model.
    config : HRMConfig
        Of the adapter that will be attached.
    blocks : set of str
        Names of the blocks within a decoder layer that get an adapter.

    Raises
    ------
    StateError
        It does not receive them, or the check cannot run.
    """
    if os.environ.get(SKIP) == "1":
        return
    key = (
        *(type(model), type(decoder.backbone), frozenset(blocks), config.tap, config.eigenvalues),
        *(tuple(config.static_readouts), config.feedthrough),
    )
    with _lock, _undisturbed():
        if key not in _results:
            fault = _fault_of_copy(model, config, blocks)
            if fault is None:
                if not _check_model(model, decoder, config, blocks):
                    return
                fault = ""
            _results[key] = fault
    if _results[key]:
        raise _refusal(model, _results[key])


def _check_model(model: PreTrainedModel, decoder: Decoder, config: HRMConfig, blocks: set[str]) -> bool:
    """Check the model itself, with a temporary adapter or with those it has.

    The result depends on this model's weights and settings, so a failure is not kept for other models.

    Returns
    -------
    bool
        False where nothing can be concluded: the model has no weights, or no finite ones, or no adapter is
        active.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors) and not hasattr(model, "hf_device_map"):
        return False
    modes = {module: module.training for module in model.modules()}
    temporary = not hrm_layers(model)
    try:
        if temporary:
            _insert_adapter(model, decoder, config, blocks)
        model.eval()
        with _with_weights(model):
            systems = _active_systems(model)
            fault = _fault_of_two_tokens(model, systems)
            if fault == "":
                fault = _fault_of_batches(model, decoder, systems)
    except StateError as error:
        fault = str(error)
    except ConfigError:
        raise
    except Exception as error:
        raise StateError(
            f"{_name(model)} could not compute two tokens, so it is unknown whether it carries the state of "
            f"an adapter ({type(error).__name__}: {error}); {_WAY_OUT}"
        ) from error
    finally:
        if temporary:
            remove_adapters(model)
        for module, training in modes.items():
            module.training = training
    if fault:
        raise _refusal(model, fault)
    return fault == ""


def _refusal(model: nn.Module, fault: str) -> StateError:
    return StateError(
        f"{_name(model)} failed the self check: {fault}. Generation with a cache would be wrong; use a "
        f"version of transformers in the range that hankelred_llm declares, or {_WAY_OUT}"
    )


def _name(model: nn.Module) -> str:
    return f"{type(model).__name__} of transformers {transformers.__version__}"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Neither use nor change the caller's random state, default device and precision."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        yield


def _fault_of_copy(model: PreTrainedModel, config: HRMConfig, blocks: set[str]) -> str | None:
    """Return the fault of a tiny copy, "" if it has none; None where there can be no copy."""
    try:
        tiny, decoder = _tiny_copy(model, blocks)
        cached, full = _both_ways(tiny)
        if not bool((cached - full).abs().max() <= _BASE_TOLERANCE * full.abs().max()):
            return None
        _insert_adapter(tiny, decoder, config, blocks)
        systems = _active_systems(tiny)
        _randomize(nn.ModuleList(systems))
        return _fault_of_generation(tiny, systems, base=full) or _fault_of_batches(tiny, decoder, systems)
    except StateError as error:
        return str(error)
    except ConfigError:  # a static readout of another input than that of its block
        raise
    except Exception:
        # this configuration cannot be made small: the model itself is checked instead
        return None


def _tiny_copy(model: PreTrainedModel, blocks: set[str]) -> tuple[PreTrainedModel, Decoder]:
    """Return a model of the same class with few and narrow layers, and its decoder."""
    config = _tiny_config(model.config)
    with torch.device("meta"):
        size = sum(p.numel() for p in type(model)._from_config(config, dtype=torch.float32).parameters())
    if size > _MOST_PARAMETERS:
        raise ArchitectureError(f"a copy of {_name(model)} has {size} parameters")
    tiny = type(model)._from_config(config, dtype=torch.float32).eval()
    _randomize(tiny)
    decoder = find_decoder(tiny)
    for block in blocks:
        if not any(hasattr(layer, block) for layer in decoder.layers):
            raise ArchitectureError(f"no layer of a copy of {_name(model)} has a block {block}")
    return tiny, decoder


def _tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a configuration with small sizes."""
    config = copy.deepcopy(config)
    for name in ("quantization_config", "_name_or_path"):
        config.__dict__.pop(name, None)
    config._attn_implementation = "eager"
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    shared = {name: getattr(text, name, None) for name in ("num_key_value_heads", "num_kv_heads")}
    for name, size in _SIZES.items():
        if getattr(text, name, None) is not None:
            with contextlib.suppress(AttributeError):  # a property derived from the others
                setattr(text, name, size)
    for name, count in shared.items():
        if count is not None:
            setattr(text, name, 4 if count == heads else 2)
    kinds = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)
    if kinds:
        kinds = list(dict.fromkeys(kinds))  # one layer of each kind, at least two layers
        kinds = kinds if len(kinds) > 1 else kinds * 2
        setattr(text, "layer_types" if getattr(text, "layer_types", None) else "attention_layers", kinds)
    text.num_hidden_layers = len(kinds) if kinds else 2
    if isinstance(getattr(text, "rope_parameters", None), dict):
        text.rope_parameters = _plain_rotations(text.rope_parameters)
    return config


def _plain_rotations(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return rotary embeddings without scaling to long contexts, whose factors depend on the width."""
    if any(isinstance(value, dict) for value in parameters.values()):  # by kind of layer
        return {
            kind: _plain_rotations(value) if isinstance(value, dict) else value
            for kind, value in parameters.items()
        }
    scalars = {key: value for key, value in parameters.items() if not isinstance(value, list)}
    return {**scalars, "rope_type": "default"}


def _randomize(tiny: nn.Module) -> None:
    """Set random weights under which every part changes the output, whatever the architecture initializes."""
    generator = torch.Generator().manual_seed(0)
    for module in tiny.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            values = torch.randn(parameter.shape, generator=generator)
            values = 1 + 0.1 * values if parameter.ndim == 1 else values * parameter.shape[-1] ** -0.5
            # parameters made under peft's low_cpu_mem_usage have no memory
            module._parameters[name] = nn.Parameter(values, requires_grad=False)
    if (tie := getattr(tiny, "tie_weights", None)) is not None:
        tie()


def _both_ways(tiny: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return logits of generated tokens with and without a cache; one of the rows is padded."""
    ids = torch.arange(_ROWS * _PROMPT).view(_ROWS, _PROMPT) + 3
    mask = torch.ones_like(ids)
    mask[-1, :_PADDING] = 0
    out = tiny.generate(
        ids,
        attention_mask=mask,
        use_cache=True,
        do_sample=False,
        num_beams=1,
        max_new_tokens=_NEW,
        min_new_tokens=_NEW,
        output_logits=True,
        return_dict_in_generate=True,
    )
    mask = nn.functional.pad(mask, (0, _NEW), value=1)
    inputs = {"attention_mask": mask}
    if "position_ids" in argument_names(tiny.get_decoder()):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    full = tiny(input_ids=out.sequences, use_cache=False, **inputs).logits
    return torch.stack(out.logits, 1), full[:, _PROMPT - 1 : -1]


def _insert_adapter(model: nn.Module, decoder: Decoder, config: HRMConfig, blocks: set[str]) -> None:
    """Add an adapter to blocks of a decoder without peft, which would change more of the model."""
    kept = ("eigenvalues", "tap", "static_readouts", "feedthrough", "static_scale")
    check_config = HRMConfig(r=4, **{name: getattr(config, name) for name in kept})
    adapted = [
        f"{decoder.name}.{index}.{block}"
        for index, layer in enumerate(decoder.layers)
        for block in sorted(blocks)
        if hasattr(layer, block)
    ]
    named = readout_names(check_config, model, adapted)
    static = static_maps(check_config, model, named)
    for name, readouts in named.items():
        parent, _, block = name.rpartition(".")
        layer = model.get_submodule(parent)
        adapter_layer = HRMLayer(getattr(layer, block), int(parent.rpartition(".")[2]), block, decoder.width)
        adapter_layer.method_adapters = (_ADAPTER,)
        setattr(layer, f"{block}_adapter", adapter_layer)
        adapter_layer.update_layer(_ADAPTER, check_config, check_config.modes_of(block), static[name])
        adapter_layer.set_adapter(_ADAPTER)
        for key, whole in readouts.items():
            static_layer = add_static_layer(model, whole, adapter_layer.method_adapters)
            static_layer.add_readout(_ADAPTER, Readout(adapter_layer, key, check_config.static_scale))
            static_layer.set_adapter(_ADAPTER)
    forward_context.install(decoder.backbone, decoder.layers)


def _fault_of_generation(tiny: PreTrainedModel, systems: list[HRMSystem], *, base: Tensor) -> str:
    """Return the fault of generated tokens, of which one row is padded; "" if there is none."""
    with _recorded(systems) as calls:
        cached, full = _both_ways(tiny)
    difference = float((cached - full).abs().max())
    effect = float((base - full)[:, 0].abs().max())  # later logits follow other tokens
    if not effect > 1e-3 * float(base.abs().max()):
        return f"the adapter changes the output by {effect:.1e} at most, as if it were absent"
    if not difference <= _TOLERANCE * effect:
        return (
            f"outputs with a cache differ by {difference:.1e} from those without, where the adapter changes "
            f"them by {effect:.1e}"
        )
    valid = torch.ones(_ROWS, _PROMPT + _NEW, dtype=torch.bool)
    valid[-1, :_PADDING] = False
    return "" if _all_received(calls, "valid", valid) else _NO_PADDING


def _fault_of_two_tokens(model: PreTrainedModel, systems: list[HRMSystem]) -> str | None:
    """Return the fault of two tokens passed one after the other with a cache; None if inconclusive."""
    config = model.config.get_text_config(decoder=True)
    cache = {cache_argument(type(model).forward): DynamicCache(config=config)}
    ids = torch.ones(1, 1, dtype=torch.long, device=_input_device(model))
    with _recorded(systems) as calls:
        for _ in range(2):
            model(input_ids=ids, use_cache=True, **cache)
    finite = [bool(first.states.isfinite().all()) for first, _ in calls.values()]
    if not finite or not all(finite):
        return None
    for first, second in calls.values():
        if second.state is None or not torch.allclose(second.state, first.states[..., -1]):
            return "the second token did not get the state after the first"
    return ""


def _fault_of_batches(model: PreTrainedModel, decoder: Decoder, systems: list[HRMSystem]) -> str:
    """Return the fault of padded and of packed rows, in passes without a cache; "" if there is none."""
    device = _input_device(model)
    ids = torch.ones(_ROWS, _PROMPT, dtype=torch.long, device=device)
    mask = ids.clone()
    mask[-1, :_PADDING] = 0
    positions = torch.arange(_PROMPT, device=device) % (_PROMPT // 2)
    batches = [("valid", mask.bool(), {"attention_mask": mask}, _NO_PADDING)]
    if "position_ids" in argument_names(decoder.backbone):
        packed = {"position_ids": positions.expand(_ROWS, -1)}
        batches.append(("segment_start", packed["position_ids"] == 0, packed, _NO_STARTS))
    for what, expected, inputs, fault in batches:
        with _recorded(systems) as calls:
            decoder.backbone(input_ids=ids, use_cache=False, **inputs)
        if not _all_received(calls, what, expected):
            return fault
    return ""


def _all_received(calls: dict[int, list[_SystemCall]], what: str, expected: Tensor) -> bool:
    """Return whether all systems received this mask in their last call."""
    masks = [getattr(of_system[-1], what) if of_system else None for of_system in calls.values()]
    return all(mask is not None and torch.equal(mask.cpu(), expected.cpu()) for mask in masks)


def _input_device(model: PreTrainedModel) -> torch.device:
    """Return the device that token ids have to be on; offloaded weights are moved to it for use."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None) or getattr(model, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else next(embeddings.parameters()).device


def _active_systems(model: nn.Module) -> list[HRMSystem]:
    return [layer.system(name) for layer in hrm_layers(model) for name in layer.active_parts()]


class _SystemCall(NamedTuple):
    """State and masks that a system was called with, and the states it returned."""

    state: Tensor | None
    valid: Tensor | None
    segment_start: Tensor | None
    states: Tensor


@contextlib.contextmanager
def _recorded(systems: Iterable[nn.Module]) -> Iterator[dict[int, list[_SystemCall]]]:
    """Record the calls of systems, by their ids."""
    calls: dict[int, list[_SystemCall]] = {id(system): [] for system in systems}

    def hook(system: nn.Module, args: Any, kwargs: dict[str, Any], output: tuple[Tensor, Tensor]) -> None:
        # copies: a static cache overwrites the last state with the next one
        state = kwargs.get("state")
        state = None if state is None else state.clone()
        call = _SystemCall(state, kwargs.get("valid"), kwargs.get("segment_start"), output[1].clone())
        calls[id(system)].append(call)

    handles = [system.register_forward_hook(hook, with_kwargs=True) for system in systems]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _with_weights(model: nn.Module) -> Iterator[None]:
    """Give random weights, for a while, to adapters that have none, as under low_cpu_mem_usage."""
    empty = [
        (part, name, parameter, layer.target_device())
        for layer in model.modules()
        if isinstance(layer, AdapterLayer)
        for part in layer.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and parameter.is_meta
    ]
    for system, name, parameter, device in empty:
        values = torch.randn(parameter.shape, dtype=parameter.dtype, device="cpu").to(device or "cpu")
        system._parameters[name] = nn.Parameter(values, requires_grad=False)
    try:
        yield
    finally:
        for system, name, parameter, _ in empty:
            system._parameters[name] = parameter
