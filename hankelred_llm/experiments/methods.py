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
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import nn

from hankelred.errors import in_one_line, short_repr

from .._util.numbers import is_number
from ..adapter.adapter_layers import other_adapter_layers
from ..adapter.architectures import find_decoder
from ..adapter.config import HRMConfig
from ..adapter.model import attach
from ..errors import ExperimentError
from .settings import nearest, parse_yaml

#: Share of the steps of AdaLoRA before ranks are taken away, and after the last was.
ADALORA_FIRST, ADALORA_LAST = 0.1, 0.3

#: AdaLoRA starts with this multiple of the rank it ends with, as its authors do.
ADALORA_EXCESS = 1.5


@dataclass(frozen=True)
class Part:
    """An adapter of one kind.

    Attributes
    ----------
    kind : {"hrm", "lora", "adalora"}
    where : str
        The linear layers of a LoRA: "qv", "mlp" or "all". An HRM has its site among its fields.
    options : dict
        Fields of the configuration.
    quantized : bool
        Whether the base is loaded in four bits.
    """

    kind: str
    where: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    quantized: bool = False

    @property
    def balanced(self) -> str | None:
        """The parts set from data, "B", "AB" or "ABC"; None for another initialization."""
        name = str(self.options.get("init_weights")) if self.kind == "hrm" else ""
        return BALANCED.get(name)


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
    """

    name: str
    parts: tuple[Part, ...]
    share: float = 1.0
    static_lr_ratio: float = 1.0

    @property
    def quantized(self) -> bool:
        """Whether the base is loaded in four bits."""
        return any(part.quantized for part in self.parts)

    @property
    def stateful(self) -> bool:
        """Whether an HRM is among the parts."""
        return any(part.kind == "hrm" for part in self.parts)

    @property
    def balanced(self) -> str | None:
        """The parts of its HRM that are set from data; None if none are."""
        return self.parts[0].balanced

    @property
    def slug(self) -> str:
        """The name for files."""
        return "".join(c if c.isalnum() or c in "-+." else "_" for c in self.name)


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
    "adalora": Part("adalora", "qv"),
    "qlora": Part("lora", "qv", quantized=True),
}

#: Initializations from data by the value of ``init_weights``, and the parts they set.
BALANCED = {"balanced-B": "B", "balanced": "AB", "balanced-ABC": "ABC"}

_CONFIGS: dict[str, type[Any]] = {"hrm": HRMConfig, "lora": LoraConfig, "adalora": AdaLoraConfig}

#: Set from the budget or from training rows, not by the user.
_COMPUTED = frozenset({"rank_pattern", "alpha_pattern", "init_r", "target_r"})


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
    parts = []
    for name in words[0].split("+"):
        if name not in ADAPTER_METHODS:
            raise ExperimentError(f"there is no method {short_repr(name)}{nearest(name, ADAPTER_METHODS)}")
        parts.append(ADAPTER_METHODS[name])
    if len(parts) > 1 and [part.kind for part in parts] != ["hrm", "lora"]:
        raise ExperimentError(f"{short_repr(words[0])}: only an HRM and a LoRA share a budget, in this order")
    share, ratio = 0.5 if len(parts) > 1 else 1.0, 1.0
    for word in words[1:]:
        key, equals, written = word.partition("=")
        if not equals:
            raise ExperimentError(
                f"method {short_repr(text)}: {short_repr(word)} is no option; write it as NAME=VALUE"
            )
        try:
            value = parse_yaml(written)
        except yaml.YAMLError:
            raise ExperimentError(
                f"method {short_repr(text)}: {short_repr(written)} is no value; write {key}=NUMBER or "
                f"{key}=NAME"
            ) from None
        if isinstance(value, str):
            with suppress(ValueError):
                value = float(value)  # 1e-3, which YAML takes for a text
        if key == "share" and len(parts) > 1:
            share = value
            if isinstance(share, bool) or not isinstance(share, float) or not 0 < share < 1:
                raise ExperimentError(
                    f"method {short_repr(text)}: share is {short_repr(written)}; give a number between 0 "
                    "and 1"
                )
            continue
        if (key == "lora_lr_ratio" and len(parts) > 1) or (
            key == "static_lr_ratio" and parts[0].kind == "hrm"
        ):
            if not is_number(value) or not 0 < value < math.inf:
                raise ExperimentError(
                    f"method {short_repr(text)}: {key} is {short_repr(written)}; give a positive number, the "
                    "learning rate of the LoRA, and of static readouts, over that of the state"
                )
            ratio = float(value)
            continue
        parts = _with_option(text, parts, key, value)
    return Method(" ".join(words), tuple(parts), share, ratio)


def _with_option(text: str, parts: list[Part], key: str, value: Any) -> list[Part]:
    """Return the parts with one option more, given to the first part that has such a field."""
    known: list[str] = ["share", "lora_lr_ratio"] if len(parts) > 1 else []
    known += ["static_lr_ratio"] if parts[0].kind == "hrm" else []
    for i, part in enumerate(parts):
        names = [f.name for f in fields(_CONFIGS[part.kind]) if f.name not in _COMPUTED]
        if key in names:
            return [*parts[:i], replace(part, options={**part.options, key: value}), *parts[i + 1 :]]
        known += names
    raise ExperimentError(f"method {short_repr(text)} has no option {short_repr(key)}{nearest(key, known)}")


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


@dataclass(frozen=True)
class FittedPart:
    """A part with its rank.

    Attributes
    ----------
    part : Part
    r : int
    larger : tuple of str
        Blocks (HRM) or linear layers (LoRA) that get one more.
    """

    part: Part
    r: int
    larger: tuple[str, ...] = ()


@dataclass(frozen=True)
class FittedMethod:
    """A method with its ranks and the number of parameters they come to."""

    method: Method
    parts: tuple[FittedPart, ...]
    parameters: int

    def ranks(self) -> str:
        """Return the ranks for tables, as in '8 (+3 layers)'.

        Examples
        --------
        >>> from hankelred_llm.experiments.methods import FittedMethod, FittedPart, ADAPTER_METHODS, Method
        >>> part = ADAPTER_METHODS["lora-qv"]
        >>> FittedMethod(Method("lora-qv", (part,)), (FittedPart(part, 8, ("a", "b")),), 0).ranks()
        '8 (+1 in 2)'
        """
        return " + ".join(f"{p.r} (+1 in {len(p.larger)})" if p.larger else str(p.r) for p in self.parts)


def add_adapters(
    model: nn.Module,
    parts: tuple[FittedPart, ...],
    *,
    steps: int,
    gguf_file: str | None = None,
    revision: str | None = None,
) -> PeftModel:
    """Put the adapters of a method into a model, which is changed in place.

    Parameters
    ----------
    model : PreTrainedModel
    parts : tuple of FittedPart
    steps : int
        Length of the training, which AdaLoRA plans for.
    gguf_file, revision : str, optional
        Where the model came from; the adapters record it.

    Returns
    -------
    PeftModel
    """
    configs = [(part.part.kind, _config(model, part, steps)) for part in parts]
    for _, config in configs:
        config.revision = revision
        if isinstance(config, HRMConfig):
            config.base_gguf_file = gguf_file
    if len(configs) == 2:
        # not by add_adapter of transformers, which may need a newer peft than there is
        get_peft_model(model, configs[1][1])
    kind, config = configs[0]
    return attach(model, config) if kind == "hrm" else get_peft_model(model, config)


def _config(model: nn.Module, fitted: FittedPart, steps: int) -> Any:
    part, r = fitted.part, fitted.r
    options = {key: value for key, value in part.options.items() if key != "r"}
    if part.balanced is not None:
        del options["init_weights"]  # the default first; initialization from data follows
    if part.kind == "hrm":
        return HRMConfig(r=r, rank_pattern={_short(name): r + 1 for name in fitted.larger}, **options)
    targets = sorted(linear_layers(model, part.where))
    # alpha = 2 r, a scale of 2 whatever the rank
    shared = {"target_modules": targets, "lora_alpha": 2 * r, "task_type": "CAUSAL_LM", **options}
    if part.kind == "adalora":
        first, last = math.ceil(ADALORA_FIRST * steps), math.ceil(ADALORA_LAST * steps)
        return AdaLoraConfig(
            init_r=r,
            target_r=max(1, round(r / ADALORA_EXCESS)),
            tinit=first,
            tfinal=last,
            deltaT=max(1, steps // 100),
            total_step=steps,
            **shared,
        )
    larger = {name: r + 1 for name in fitted.larger}
    return LoraConfig(
        r=r,
        rank_pattern=larger,
        alpha_pattern={name: 2 * rank for name, rank in larger.items()},
        **shared,
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
    with warnings.catch_warnings():
        # AdaLoRA names its ranks otherwise than the check of LoRA's names expects
        warnings.filterwarnings("ignore", "The following rank_pattern keys", RuntimeWarning)
        return PeftModel.from_pretrained(base, str(folder))


def _has_lora(model: PeftModel) -> bool:
    config = next(iter(model.peft_config.values()))
    return isinstance(config, HRMConfig) and bool(other_adapter_layers(model))
