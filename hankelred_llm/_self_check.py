"""A check that the cached pass of an architecture is its full pass, made before an adapter is put into it.

transformers renames arguments and moves code between releases. What an adapter reads of a forward pass, the
cache most of all, could then be missed without an error: training and full passes would be right, and
generation would start every token from a state of zero. So a copy of the model with a few narrow layers and
random weights generates some tokens first. Where such a copy cannot be made, the model itself generates two.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import transformers
from peft.peft_model import PeftModelForCausalLM
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ._architectures import find_decoder
from ._decoder_call import WITHOUT_POSITIONS
from ._errors import StateError
from ._sites import hrm_layers
from .adapter import HRMSystem
from .config import HRMConfig

#: Environment variable: "1" leaves the check out.
SKIP = "HANKELRED_SKIP_SELF_CHECK"

#: Largest difference between cached and full pass: of the base model, as a share of its logits; with the
#: adapter, as a share of what it changes.
_BASE_TOLERANCE, _TOLERANCE = 1e-4, 1e-2

#: With more parameters a copy is not tiny: the check would take seconds.
_MOST_PARAMETERS = 1_000_000

_ROWS, _PROMPT, _NEW, _PADDING = 2, 6, 3, 2

#: Sizes of the copy, by the names that configurations have for them. What a configuration lacks, or has as
#: None, is left out.
_SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "ffn_hidden_size": 32,
    "word_embed_proj_dim": 32,
    "n_inner": 32,
    "num_attention_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "rotary_dim": 4,
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

# by class of the model and version of transformers: what is wrong, or nothing
_results: dict[tuple[type[nn.Module], str], str] = {}
_lock = threading.RLock()


def check_copy(model: PreTrainedModel, config: HRMConfig, blocks: set[str]) -> bool:
    """Check a tiny copy of a model, once in a process.

    Parameters
    ----------
    model : PreTrainedModel
    config : HRMConfig
        Of the adapter that is to be put into it.
    blocks : set of str
        Names of the blocks within a decoder layer that get an adapter.

    Returns
    -------
    bool
        False where no tiny copy can be made, so that :func:`check_model` has to follow.

    Raises
    ------
    StateError
        What the copy computes with a cache is not what it computes without.
    """
    if os.environ.get(SKIP) == "1":
        return True
    key = (type(model), transformers.__version__)
    with _lock:
        if key not in _results:
            with _undisturbed():
                tiny = _tiny_copy(model, blocks)
                if tiny is None:
                    return False
                _results[key] = ""  # an adapter is put into the copy in the same way
                try:
                    _results[key] = _fault(tiny, config, blocks)
                except BaseException:
                    del _results[key]
                    raise
    _refuse(model, _results[key])
    return True


def check_model(model: PreTrainedModel) -> None:
    """Check a model with an adapter in it: the second of two tokens has to get the state after the first.

    Raises
    ------
    StateError
        It does not, or the model cannot generate.
    """
    key = (type(model), transformers.__version__)
    systems = _systems(model)
    own = {id(p) for system in systems for p in system.parameters()}
    offloaded = hasattr(model, "hf_device_map")
    if not offloaded and any(p.is_meta and id(p) not in own for p in model.parameters()):
        return  # a model without weights computes nothing
    with _lock, _undisturbed(), _with_weights(systems), _recorded(systems) as calls:
        ids = torch.ones(1, 1, dtype=torch.long, device=model.device)
        try:
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                use_cache=True,
                max_new_tokens=2,
                min_new_tokens=2,
                num_beams=1,
                do_sample=False,
            )
            followed = all(
                len(each) == 2
                and each[1].state is not None
                and torch.allclose(each[1].state, each[0].states[..., -1])
                for each in calls.values()
            )
            _results[key] = "" if followed else "the second token did not get the state after the first"
        except StateError as error:
            _results[key] = str(error)
        except Exception as error:
            raise StateError(
                f"{type(model).__name__} of transformers {transformers.__version__} could not generate two "
                f"tokens, so it is unknown whether it carries the state of an adapter ({error}); {_way_out()}"
            ) from error
    _refuse(model, _results[key])


def _refuse(model: nn.Module, fault: str) -> None:
    if fault:
        raise StateError(
            f"{type(model).__name__} of transformers {transformers.__version__} failed the self check: "
            f"{fault}. Generation with a cache would be wrong; use a version of transformers in the range "
            f"that hankelred_llm declares, or {_way_out()}"
        )


def _way_out() -> str:
    return f"set the environment variable {SKIP}=1 and use the adapter without a cache (use_cache=False)"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the caller's random state, device, precision and warnings out, and leave them as they were."""
    verbosity = logging.get_verbosity()
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
    ):
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)


def _tiny_copy(model: PreTrainedModel, blocks: set[str]) -> PreTrainedModel | None:
    """Return a model of the same class with few and narrow layers; None where that does not work."""
    try:
        config = _tiny_config(model.config)
        with torch.device("meta"):
            size = sum(p.numel() for p in type(model)._from_config(config, dtype=torch.float32).parameters())
        if size > _MOST_PARAMETERS:
            return None
        tiny = type(model)._from_config(config, dtype=torch.float32).eval()
        _randomize(tiny)
        layers = find_decoder(tiny).layers
        if not all(any(hasattr(layer, block) for layer in layers) for block in blocks):
            return None
        cached, full = _both_ways(tiny)
        close = (cached - full).abs().max() <= _BASE_TOLERANCE * full.abs().max()
    except Exception:
        # whatever a configuration cannot express in small: the model itself is checked instead
        return None
    return tiny if bool(close) else None


def _tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a configuration with small sizes."""
    config = copy.deepcopy(config)
    for name in ("quantization_config", "_name_or_path"):
        config.__dict__.pop(name, None)
    config._attn_implementation = "eager"
    text = config.get_text_config(decoder=True)
    heads = (text.num_attention_heads, getattr(text, "num_key_value_heads", None))
    for name, size in _SIZES.items():
        if getattr(text, name, None) is not None:
            with contextlib.suppress(AttributeError):  # a property that follows from the others
                setattr(text, name, size)
    if heads[1] is not None:
        text.num_key_value_heads = 4 if heads[0] == heads[1] else 2
    kinds = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)
    if kinds:
        kinds = list(dict.fromkeys(kinds))  # one layer of each kind, two in all at least
        kinds = kinds if len(kinds) > 1 else kinds * 2
        setattr(text, "layer_types" if getattr(text, "layer_types", None) else "attention_layers", kinds)
    text.num_hidden_layers = len(kinds) if kinds else 2
    if isinstance(getattr(text, "rope_parameters", None), dict):
        text.rope_parameters = _plain_rotations(text.rope_parameters)
    return config


def _plain_rotations(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return rotary embeddings without the stretching to long contexts, whose factors depend on the width."""
    if any(isinstance(value, dict) for value in parameters.values()):  # by kind of layer
        return {
            kind: _plain_rotations(value) if isinstance(value, dict) else value
            for kind, value in parameters.items()
        }
    kept = {key: value for key, value in parameters.items() if not isinstance(value, list)}
    return {**kept, "rope_type": "default"}


def _randomize(tiny: nn.Module) -> None:
    """Give weights that make every part count, whatever the initialization of the architecture is."""
    generator = torch.Generator().manual_seed(0)
    for module in tiny.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            values = torch.randn(parameter.shape, generator=generator)
            values = 1 + 0.1 * values if parameter.ndim == 1 else values * parameter.shape[-1] ** -0.5
            # peft's low_cpu_mem_usage keeps parameters made meanwhile without memory
            module._parameters[name] = nn.Parameter(values, requires_grad=False)
    if (tie := getattr(tiny, "tie_weights", None)) is not None:
        tie()


@torch.no_grad()
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
    if tiny.config.model_type not in WITHOUT_POSITIONS:
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    full = tiny(input_ids=out.sequences, use_cache=False, **inputs).logits
    return torch.stack(out.logits, 1), full[:, _PROMPT - 1 : -1]


def _fault(tiny: PreTrainedModel, config: HRMConfig, blocks: set[str]) -> str:
    """Return what is wrong with the passes of a tiny copy that has an adapter, "" where nothing is."""
    own = HRMConfig(r=4, eigenvalues=config.eigenvalues, tap=config.tap, target_modules=sorted(blocks))
    model = PeftModelForCausalLM(tiny, own).eval()
    systems = _systems(tiny)
    _randomize(nn.ModuleList(systems))
    try:
        with _recorded(systems) as calls:
            cached, full = _both_ways(tiny)
        with model.disable_adapter():
            _, base = _both_ways(tiny)
    except StateError as error:
        return str(error)
    difference, effect = float((cached - full).abs().max()), float((base - full).abs().max())
    if not effect > 1e-3 * float(base.abs().max()):
        return f"the adapter changes the output by {effect:.1e} at most, as if it were not there"
    if not difference <= _TOLERANCE * effect:
        return (
            f"outputs with a cache differ by {difference:.1e} from those without, where the adapter changes "
            f"them by {effect:.1e}"
        )
    kept = torch.ones(_ROWS, _PROMPT + _NEW, dtype=torch.bool)
    kept[-1, :_PADDING] = False
    for each in calls.values():
        if each[-1].keep is None or not torch.equal(each[-1].keep, kept):
            return "padding did not reach the adapter"
    if tiny.config.model_type not in WITHOUT_POSITIONS:
        positions = torch.arange(_PROMPT) % (_PROMPT // 2)
        with _recorded(systems) as calls, torch.no_grad():
            tiny(torch.arange(_PROMPT)[None] + 3, position_ids=positions[None], use_cache=False)
        starts = positions[None] == 0
        if not all(
            each[-1].reset is not None and torch.equal(each[-1].reset, starts) for each in calls.values()
        ):
            return "starts of packed documents did not reach the adapter"
    return ""


def _systems(model: nn.Module) -> list[HRMSystem]:
    return [layer.system(name) for layer in hrm_layers(model) for name in layer.hrm_system]


class _Call(NamedTuple):
    """What a system was called with, and its states."""

    state: Tensor | None
    keep: Tensor | None
    reset: Tensor | None
    states: Tensor


@contextlib.contextmanager
def _recorded(systems: Iterable[nn.Module]) -> Iterator[dict[int, list[_Call]]]:
    """Record the calls of systems, by their ids."""
    calls: dict[int, list[_Call]] = {id(system): [] for system in systems}

    def hook(system: nn.Module, args: Any, kwargs: dict[str, Any], output: tuple[Tensor, Tensor]) -> None:
        call = _Call(kwargs.get("state"), kwargs.get("keep"), kwargs.get("reset"), output[1])
        calls[id(system)].append(call)

    handles = [system.register_forward_hook(hook, with_kwargs=True) for system in systems]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _with_weights(systems: Iterable[nn.Module]) -> Iterator[None]:
    """Lend weights to adapters that get theirs from a file later."""
    empty = [
        (module, name, parameter)
        for module in systems
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.is_meta
    ]
    for module, name, parameter in empty:
        module._parameters[name] = nn.Parameter(torch.randn(parameter.shape), requires_grad=False)
    try:
        yield
    finally:
        for module, name, parameter in empty:
            module._parameters[name] = parameter
