"""The methods that can be compared, as data; and how each is put into a model, saved and loaded.

A method is one part (an HRM or a member of the LoRA family) or an HRM and a LoRA that share one budget. It is
written as a name and options: ``hrm-attention``, ``hrm-mlp init_weights=s4d_real eigenvalues=real``,
``hrm-mlp+lora-all share=0.25 lora_lr_ratio=0.3``. Options are fields of `HRMConfig` or of peft's
`LoraConfig`. An HRM with static parts is one part:
``hrm-attention static_readouts=[q_proj,k_proj] feedthrough=true static_lr_ratio=3``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import nn

from hankelred.errors import in_one_line, short_repr

from .._util.numbers import is_number
from .._util.parsing import nearest, parse_yaml
from ..adapter.adapter_layers import other_adapter_layers
from ..adapter.architectures import find_decoder
from ..adapter.config import HRMConfig
from ..adapter.model import attach
from ..errors import ExperimentError


@dataclass(frozen=True)
class Part:
    """An adapter of one kind.

    Attributes
    ----------
    kind : {"hrm", "lora"}
    where : str
        The linear layers of a LoRA: "qv", "mlp" or "all". An HRM has its site among its fields.
    options : dict
        Fields of the configuration.
    quantized : bool
        Whether the base is loaded in four bits.
    r : int
        Rank, 0 until a budget or the user sets it.
    larger : tuple of str
        Blocks (HRM) or linear layers (LoRA) that get one more.
    """

    kind: str
    where: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    quantized: bool = False
    r: int = 0
    larger: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A method as it is named in settings, tables and files.

    Attributes
    ----------
    name : str
        As written by the user, blanks made single.
    parts : tuple of Part
    share : float
        Share of the budget that the first of two parts gets.
    static_lr_ratio : float
        Learning rate of a LoRA next to an HRM, or of the static parts in it, as a multiple of that of the
        state.
    parameters : int
        Number of trainable parameters, 0 until the ranks are set.
    """

    name: str
    parts: tuple[Part, ...]
    share: float = 1.0
    static_lr_ratio: float = 1.0
    parameters: int = 0

    @property
    def quantized(self) -> bool:
        """Whether the base is loaded in four bits."""
        return any(part.quantized for part in self.parts)

    @property
    def stateful(self) -> bool:
        """Whether an HRM is among the parts."""
        return any(part.kind == "hrm" for part in self.parts)

    @property
    def slug(self) -> str:
        """The name for files."""
        return "".join(c if c.isalnum() or c in "-+." else "_" for c in self.name)

    def ranks(self) -> str:
        """Return the ranks for tables, as in '8 (+1 in 2)'.

        Examples
        --------
        >>> from dataclasses import replace
        >>> from hankelred_llm.experiments.methods import parse_method
        >>> method = parse_method("lora-qv")
        >>> replace(method, parts=(replace(method.parts[0], r=8, larger=("a", "b")),)).ranks()
        '8 (+1 in 2)'
        """
        return " + ".join(f"{p.r} (+1 in {len(p.larger)})" if p.larger else str(p.r) for p in self.parts)


#: Every name there is. ``hrm`` is the default adapter of this package, whatever that is.
ADAPTER_METHODS: dict[str, Part] = {
    "hrm": Part("hrm"),
    "hrm-mlp": Part("hrm", options={"site": "mlp"}),
    "hrm-attention": Part("hrm", options={"site": "attention"}),
    "hrm-s4d": Part("hrm", options={"init_weights": "s4d_real", "eigenvalues": "real"}),
    "lora-qv": Part("lora", "qv"),
    "lora-mlp": Part("lora", "mlp"),
    "lora-all": Part("lora", "all"),
    "dora": Part("lora", "qv", {"use_dora": True}),
    "dora-all": Part("lora", "all", {"use_dora": True}),
    "qlora": Part("lora", "qv", quantized=True),
}

#: Methods that are in other comparisons but not in this one, and what to do instead.
NOT_COMPARED = {
    "adalora": "ranks that change while it trains need a training loop of their own; compare dora or lora-qv",
}

_CONFIGS: dict[str, type[Any]] = {"hrm": HRMConfig, "lora": LoraConfig}

#: Set from the budget, not by the user.
_COMPUTED = frozenset({"rank_pattern", "alpha_pattern"})


def parse_method(text: str) -> Method:
    """Return the method that a text names.

    Raises
    ------
    ExperimentError
        An unknown name or option, or two parts that cannot be together.

    Examples
    --------
    >>> from hankelred_llm.experiments.methods import parse_method
    >>> parse_method("hrm-mlp+lora-all share=0.25").share
    0.25
    >>> parse_method("lora-qw")
    Traceback (most recent call last):
    ...
    hankelred_llm.errors.ExperimentError: there is no method 'lora-qw'; did you mean 'lora-qv'?
    """
    words = text.split()
    if not words:
        raise ExperimentError(f"a method has no name; there are: {', '.join(ADAPTER_METHODS)}")
    parts = tuple(map(_named_part, words[0].split("+")))
    if len(parts) > 1 and [part.kind for part in parts] != ["hrm", "lora"]:
        raise ExperimentError(f"{short_repr(words[0])}: only an HRM and a LoRA share a budget, in this order")
    method = Method(" ".join(words), parts, share=0.5 if len(parts) > 1 else 1.0)
    for word in words[1:]:
        method = _with_option(method, word)
    return method


def _named_part(name: str) -> Part:
    if name in NOT_COMPARED:
        raise ExperimentError(f"method {name!r} is not compared here: {NOT_COMPARED[name]}")
    if name not in ADAPTER_METHODS:
        raise ExperimentError(f"there is no method {short_repr(name)}{nearest(name, ADAPTER_METHODS)}")
    return ADAPTER_METHODS[name]


def _with_option(method: Method, word: str) -> Method:
    """Return a method with one option more: its own, or that of the first part with such a field."""
    key, equals, text = word.partition("=")
    where = f"method {short_repr(method.name)}"
    if not equals:
        raise ExperimentError(f"{where}: {short_repr(word)} is no option; write it as NAME=VALUE")
    try:
        value = _option_value(text)
    except yaml.YAMLError:
        raise ExperimentError(
            f"{where}: {short_repr(text)} is no value; write {key}=NUMBER or {key}=NAME"
        ) from None
    known = ["share", "lora_lr_ratio"] if len(method.parts) > 1 else []
    known += ["static_lr_ratio"] if method.stateful else []
    if key == "share" and key in known:
        if not _is_between(value, 1):
            raise ExperimentError(f"{where}: share is {short_repr(text)}; give a number between 0 and 1")
        return replace(method, share=value)
    if key in known:
        if not _is_between(value, math.inf):
            raise ExperimentError(
                f"{where}: {key} is {short_repr(text)}; give a positive number, the learning rate of the "
                "LoRA, and of static readouts, over that of the state"
            )
        return replace(method, static_lr_ratio=float(value))
    parts = list(method.parts)
    for i, part in enumerate(parts):
        names = [f.name for f in fields(_CONFIGS[part.kind]) if f.name not in _COMPUTED]
        if key in names:
            parts[i] = replace(part, options={**part.options, key: value})
            return replace(method, parts=tuple(parts))
        known += names
    raise ExperimentError(f"{where} has no option {short_repr(key)}{nearest(key, known)}")


def _option_value(text: str) -> Any:
    value = parse_yaml(text)
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)  # 1e-3, which YAML takes for a text
    return value


def _is_between(value: Any, most: float) -> bool:
    return is_number(value) and 0 < value < most


def check_available(method: Method) -> None:
    """Refuse four bits where bitsandbytes is not installed.

    Raises
    ------
    ExperimentError
        It is not there.
    """
    if method.quantized and importlib.util.find_spec("bitsandbytes") is None:
        raise ExperimentError(
            f"method {method.name!r} needs bitsandbytes, which is not installed; pip install bitsandbytes "
            "(on a machine with a GPU), or leave the method out"
        )


def linear_layers(model: nn.Module, where: str) -> dict[str, int]:
    """Return the names of the linear layers a LoRA adapts, and what one rank costs in each.

    Parameters
    ----------
    model : PreTrainedModel
        Without adapters; it may be on the meta device.
    where : {"qv", "mlp", "all"}

    Raises
    ------
    ExperimentError
        The model has no such layers.
    """
    decoder = find_decoder(model)
    layers: dict[str, int] = {}
    for i, layer in enumerate(decoder.layers):
        for name, module in layer.named_modules():
            features = getattr(module, "in_features", None), getattr(module, "out_features", None)
            if None in features or not isinstance(module, nn.Linear):
                continue
            chosen = {
                "qv": name.endswith(("q_proj", "v_proj")),
                "mlp": name.split(".")[0] == decoder.block_name("mlp"),
                "all": True,
            }[where]
            if chosen:
                layers[f"{decoder.name}.{i}.{name}"] = sum(features)  # type: ignore[arg-type]
    if not layers:
        raise ExperimentError(
            f"model_type '{decoder.model_type}' has no linear layers for LoRA at {where!r}; take lora-all or "
            "another model"
        )
    return layers


def add_adapters(
    model: nn.Module,
    parts: tuple[Part, ...],
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
) -> PeftModel:
    """Put the adapters of a method into a model, which is changed in place.

    Parameters
    ----------
    model : PreTrainedModel
    parts : tuple of Part
        With their ranks.
    gguf_file, revision : str, optional
        Where the model came from; the adapters record it.

    Returns
    -------
    PeftModel
    """
    configs = [(part.kind, _config(model, part)) for part in parts]
    for _, config in configs:
        config.revision = revision
        if isinstance(config, HRMConfig):
            config.base_gguf_file = gguf_file
    if len(configs) == 2:
        # not by add_adapter of transformers, which may need a newer peft than there is
        get_peft_model(model, configs[1][1])
    kind, config = configs[0]
    return attach(model, config) if kind == "hrm" else get_peft_model(model, config)


def _config(model: nn.Module, part: Part) -> Any:
    options = {key: value for key, value in part.options.items() if key != "r"}
    if part.kind == "hrm":
        return HRMConfig(r=part.r, rank_pattern={_short(name): part.r + 1 for name in part.larger}, **options)
    targets = sorted(linear_layers(model, part.where))
    larger = {name: part.r + 1 for name in part.larger}
    # alpha = 2 r, a scale of 2 whatever the rank
    defaults = {"target_modules": targets, "lora_alpha": 2 * part.r, "task_type": "CAUSAL_LM"}
    return LoraConfig(
        r=part.r,
        rank_pattern=larger,
        alpha_pattern={name: 2 * rank for name, rank in larger.items()},
        **{**defaults, **options},
    )


def _short(name: str) -> str:
    """Return 'layers.3.mlp' of 'model.layers.3.mlp'."""
    return ".".join(name.split(".")[-3:])


def trainable(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


LORA_FOLDER = "lora"


def save_adapter(model: PeftModel, folder: Path, *, data: str | None = None) -> None:
    """Write the adapters of a model by peft's own routes: the second one goes into a folder of its own.

    Parameters
    ----------
    model : PeftModel
    folder : Path
    data : str, optional
        What it was trained on, for the model card of an HRM.
    """
    base = model.get_base_model()
    config = next(iter(model.peft_config.values()))
    if isinstance(config, HRMConfig) and data is not None:
        config.training_data = data
    model.save_pretrained(str(folder))
    if _has_lora(model):
        lora_folder = folder / LORA_FOLDER
        base.peft_config["default"].save_pretrained(str(lora_folder))
        weights = get_peft_model_state_dict(base, adapter_name="default")
        # under the names that they have in a PeftModel, which loads them
        weights = {f"base_model.model.{key}": value.contiguous() for key, value in weights.items()}
        save_file(weights, lora_folder / SAFETENSORS_WEIGHTS_NAME)


def load_adapter(base: nn.Module, folder: Path) -> PeftModel:
    """Put the adapters of a folder into a model, which is changed in place.

    Raises
    ------
    ExperimentError
        The results name a training whose adapter is not there any more.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise ExperimentError(
            f"{in_one_line(folder)} has no {CONFIG_NAME}: the adapter was moved or removed; put it back, or "
            "train again in another folder"
        )
    if (folder / LORA_FOLDER).is_dir():
        PeftModel.from_pretrained(base, str(folder / LORA_FOLDER))
    return PeftModel.from_pretrained(base, str(folder))


def _has_lora(model: PeftModel) -> bool:
    config = next(iter(model.peft_config.values()))
    return isinstance(config, HRMConfig) and bool(other_adapter_layers(model))
