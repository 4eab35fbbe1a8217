"""The configuration of an adapter, which peft stores next to its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from hankelred.errors import short_repr

from .._util.numbers import is_number
from ..errors import ConfigError
from .architectures import SITES
from .initial_poles import INITIAL_POLES
from .weights_file import check_safetensors

EIGENVALUES = ("complex", "real")
TAPS = ("input", "output")

#: Beyond any memory, and the largest size that torch counts with.
_MOST_STATES = 2**31 - 1

#: The largest number in single precision.
_LARGEST = (2 - 2.0**-23) * 2.0**127

#: Keys of ``base_shape``, and the types of their values.
_BASE_SHAPE = {"model_type": str, "hidden_size": int, "num_hidden_layers": int}

#: Fields of other methods of peft that have no counterpart, and what to do instead.
_NOT_OFFERED = {
    "layers_pattern": (
        "the decoder layers are found from the architecture; choose among them with layers_to_transform"
    ),
    "trainable_token_indices": ("train the whole embedding with modules_to_save=['embed_tokens']"),
    "lora_alpha": (
        "the output is scaled by a learned gate; its initial value is gate_init. A LoRA in the adapter has "
        "it in lora=LoraConfig(...)"
    ),
    "lora_dropout": (
        "there is no dropout in a recurrence; a LoRA in the adapter has it in lora=LoraConfig(...)"
    ),
    "calibration": "initialization from data is a second call: hankelred_llm.initialize(model, calibration)",
    "bias": "biases of the base model stay frozen; name whole modules in modules_to_save",
}

#: Fields of peft's LoraConfig that ``lora`` may set; the others change the kind of adapter, or the base.
_LORA_FIELDS = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)

#: Fields of every configuration of peft, which ``lora`` gets from the HRMConfig around it.
_OUTER_FIELDS = frozenset(f.name for f in fields(PeftConfig))

#: Fields that only peft reads, or that describe where an adapter comes from: texts, or None.
_TEXT_FIELDS = ("base_model_name_or_path", "base_gguf_file", "revision", "peft_version", "training_data")

_T = TypeVar("_T")


class ModeCounts(NamedTuple):
    """Numbers of real states of a system, and of conjugate pairs and negative real eigenvalues among them."""

    order: int
    pairs: int
    negative: int


class LoraOptions(NamedTuple):
    """The LoRA of one linear module."""

    rank: int
    scale: float
    dropout: float
    gaussian: bool  # initialization of lora_A; otherwise that of Kaiming


class _UnknownFieldError(ConfigError, TypeError):
    """Also a TypeError with the usual message: peft then ignores such fields of files of later versions."""


class _Default(str):
    """A default value, to distinguish it from the same value passed by a user."""


class HRMType(str, Enum):  # noqa: UP042, peft reports the part of str() after the point
    """The name of the method in peft, whose own enumeration cannot be extended."""

    HRM = "HRM"


@dataclass
class HRMConfig(PeftConfig):
    """Configuration of a Hankel reduced-order model (HRM) adapter.

    In parallel with one block of every decoder layer, with input x_t of width d, runs a diagonal linear
    system of ``r`` real states, ``s_t = A s_{t-1} + B x_t``, and ``gate * C s_t`` is added to the block's
    output. It costs ``2 r d`` parameters and O(r) more; ``r = 26`` equals LoRA of rank 16 on the query and
    value projections of Mistral-7B.

    Parameters
    ----------
    r : int
        Number of real states in each layer. A conjugate pair of eigenvalues is two of them.
    eigenvalues : {"complex", "real"}
        Conjugate pairs (with one real state more if ``r`` is odd), or real ones only.
    site : {"mlp", "attention"}
        The block that the system runs in parallel with. With ``target_modules`` it may be left out.
    tap : {"input", "output"}
        Whether x_t is the input or the output of that block.
    init_weights : str
        Initialization of poles and input map. ``"ring"``: ``|A|^2`` uniform in [0.9^2, 0.999^2], phases
        uniform, B normal with variance 1/(2d). ``"s4d_real"``: decay rates n + 1 (n = 0, 1, ...) times a step
        that is log-uniform in [1e-4, 0.1], phases zero. With both the adapted model starts as the base model.
        Initialization from data is a second call, :func:`initialize`.
    gate_init : float
        Initial value of the gate. With 0 the output map C is initialized at random, otherwise to zero.
    target_modules : list of str or str, optional
        Names of the blocks; by default those of ``site`` in the architecture.
    exclude_modules : list of str or str, optional
        Blocks that get no adapter, by names as in ``"layers.3.mlp"``, or a pattern of their whole names.
    layers_to_transform : list of int or int, optional
        Only these layers get an adapter. Default: all.
    rank_pattern : dict
        ``r`` of single layers, by names as in ``"layers.3.mlp"``.
    mode_pattern : dict
        Numbers of conjugate pairs and of negative real eigenvalues, ``[pairs, negative]``, of single layers,
        by the same names. :func:`set_systems` writes it for a system with another mix than the default.
    modules_to_save : list of str, optional
        Modules of the base model that are trained and saved too.
    static_readouts : sequence of str
        Names of linear modules of the block that read its input, such as ``"q_proj"``: to their output
        ``static_scale * C_q u_t`` is added, with u_t = B x_t as for the state. Each is a LoRA whose input map
        is B.
    feedthrough : bool
        Add ``gate * C (u_t + m * s_t)`` to the block's output, with m (r,) learned, from 1.
    static_scale : float
        Scale of the static readouts.
    lora : peft.LoraConfig or dict, optional
        A LoRA on other linear modules of the decoder layers, in the same adapter. Stored as a dict.
    static_pattern : dict
        Rank of the input map of the static parts of single layers, by the names of ``rank_pattern``, where
        they do not share that of the state: :func:`set_systems` and :func:`reduce` write it.
    base_gguf_file : str, optional
        Name of the GGUF file in the base model's folder or repository that its weights were read from. It is
        recorded at attaching where the folder has one GGUF file only.
    base_shape : dict, optional
        Architecture and sizes of the base model: written at attaching, compared at loading.
    training_data : str, optional
        What the adapter was trained on, for its model card.

    Raises
    ------
    ConfigError
        A field has an invalid value.

    Notes
    -----
    ``task_type``, ``inference_mode`` and the other fields of :class:`peft.PeftConfig` work as there.

    Examples
    --------
    >>> from hankelred_llm import HRMConfig
    >>> HRMConfig(r=26, layers_to_transform=[0, 1]).site
    'mlp'
    >>> HRMConfig(site="norm")
    Traceback (most recent call last):
    ...
    hankelred_llm.errors.ConfigError: site='norm' is unknown; choose one of 'mlp', 'attention'
    """

    task_type: str | None = "CAUSAL_LM"
    r: int = 32
    eigenvalues: str = "complex"
    site: str = _Default("mlp")
    tap: str = "input"
    init_weights: str = "ring"
    gate_init: float = 1.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    mode_pattern: dict[str, list[int]] = field(default_factory=dict)
    modules_to_save: list[str] | None = None
    base_gguf_file: str | None = None
    base_shape: dict[str, Any] | None = None
    static_readouts: Sequence[str] = ()
    feedthrough: bool = False
    static_scale: float = 2.0
    lora: dict[str, Any] | LoraConfig | None = None
    static_pattern: dict[str, int] = field(default_factory=dict)
    training_data: str | None = None

    def __new__(cls, *args: Any, **options: Any) -> HRMConfig:
        """Refuse unknown fields by name, most of all those of other methods."""
        allowed = [f.name for f in fields(cls)]
        for name in options:
            if name not in allowed:
                field_names = ", ".join(other for other in allowed if other in HRMConfig.__annotations__)
                remedy = _NOT_OFFERED.get(name, f"its fields are {field_names}")
                raise _UnknownFieldError(f"HRMConfig got an unexpected keyword argument {name!r}: {remedy}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.task_type not in (None, "CAUSAL_LM"):
            raise ConfigError(
                f"task_type={short_repr(self.task_type)} is not possible: an adapter belongs to a causal "
                "language model; leave it at 'CAUSAL_LM'"
            )
        super().__post_init__()
        self.peft_type = HRMType.HRM
        # not a field: a saved configuration does not record which values its user passed
        self.site_given = not isinstance(self.site, _Default)
        self.site = str(self.site) if isinstance(self.site, str) else self.site
        for name, allowed in (
            ("eigenvalues", EIGENVALUES),
            ("site", tuple(SITES)),
            ("tap", TAPS),
            ("init_weights", tuple(INITIAL_POLES)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(
                    f"{name}={short_repr(value)} is unknown; choose one of {', '.join(map(repr, allowed))}"
                )
        _check_count("r", self.r, least=1)
        self._check_patterns()
        if not is_number(self.gate_init) or not abs(self.gate_init) <= _LARGEST:
            raise ConfigError(
                f"gate_init={short_repr(self.gate_init)} is no finite number of single precision; 1.0 is the "
                "default"
            )
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), (set, tuple)):
                setattr(self, name, sorted(value))
            _check_block_names(name, getattr(self, name))
        if isinstance(self.layers_to_transform, (range, tuple, set)):
            self.layers_to_transform = sorted(self.layers_to_transform)
        _check_layers(self.layers_to_transform)
        self._check_static_parts()
        self._check_fields_for_peft()

    def _check_patterns(self) -> None:
        """Refuse invalid values by the name of a block."""
        for name in ("rank_pattern", "mode_pattern", "static_pattern"):
            pattern = getattr(self, name)
            if not isinstance(pattern, dict) or not all(isinstance(key, str) for key in pattern):
                raise ConfigError(
                    f"{name}={short_repr(pattern)} must be a dict by names such as 'layers.3.mlp'"
                )
        for name in ("rank_pattern", "static_pattern"):
            for key, order in getattr(self, name).items():
                _check_count(f"{name}[{short_repr(key)}]", order, least=1)
        for key, modes in self.mode_pattern.items():
            if not isinstance(modes, (list, tuple)) or len(modes) != 2:
                raise ConfigError(
                    f"mode_pattern[{short_repr(key)}]={short_repr(modes)} must be [pairs, negative real "
                    "eigenvalues]"
                )
            for count in modes:
                _check_count(f"mode_pattern[{short_repr(key)}]", count, least=0)

    def _check_static_parts(self) -> None:
        """Refuse invalid values of the fields of the parts without a state."""
        names = self.static_readouts
        if not isinstance(names, (list, tuple, set)) or not _all_texts(names):
            raise ConfigError(
                f"static_readouts={short_repr(names)} must be a list of names of linear modules of the "
                "block, such as ['q_proj']"
            )
        self.static_readouts = tuple(sorted(names) if isinstance(names, set) else names)
        for name in self.static_readouts:
            if not name.isidentifier() or self.static_readouts.count(name) > 1:
                raise ConfigError(
                    f"static_readouts={short_repr(names)}: {short_repr(name)} must be the last part of a "
                    "name, as 'q_proj' of 'model.layers.0.self_attn.q_proj', once"
                )
        if self.static_readouts and self.tap != "input":
            raise ConfigError(
                f"tap={self.tap!r} is not possible with static_readouts, which read the input of the block "
                "before it runs; use tap='input'"
            )
        if not isinstance(self.feedthrough, bool):
            raise ConfigError(f"feedthrough={short_repr(self.feedthrough)} must be true or false")
        scale = self.static_scale
        if not is_number(scale) or not 0 < abs(scale) <= _LARGEST:
            raise ConfigError(
                f"static_scale={short_repr(scale)} is no finite number of single precision other than 0, "
                "with which no readout would be trained; 2.0 is the default"
            )
        if self.lora is not None:
            self.lora = _lora_fields(self.lora)

    def _check_fields_for_peft(self) -> None:
        """Refuse values of the fields that only peft reads, which would end in an exception there."""
        modules = self.modules_to_save
        if modules is not None and not (isinstance(modules, (list, tuple, set)) and _all_texts(modules)):
            raise ConfigError(
                f"modules_to_save={short_repr(modules)} must be a list of names of modules, such as "
                "['lm_head']"
            )
        for name in _TEXT_FIELDS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise ConfigError(f"{name}={short_repr(value)} must be a text; leave it out if it is unknown")
        if not isinstance(self.inference_mode, bool):
            raise ConfigError(f"inference_mode={short_repr(self.inference_mode)} must be true or false")
        mapping = self.auto_mapping
        if mapping is not None and not (
            isinstance(mapping, dict) and all(v is None or isinstance(v, str) for v in mapping.values())
        ):
            raise ConfigError(f"auto_mapping={short_repr(mapping)} must be a dict of texts; leave it out")
        shape = self.base_shape
        if shape is not None and not (
            isinstance(shape, dict)
            and shape.keys() == _BASE_SHAPE.keys()
            and all(type(shape[key]) is kind for key, kind in _BASE_SHAPE.items())
        ):
            raise ConfigError(
                f"base_shape={short_repr(shape)} must have {', '.join(_BASE_SHAPE)} of the base model; leave "
                "it out, and it is written when the adapter is attached"
            )

    def modes_of(self, module_name: str) -> ModeCounts:
        """Return the numbers of states, conjugate pairs and negative real eigenvalues of one block.

        Parameters
        ----------
        module_name : str
            Such as ``"model.layers.3.mlp"``.

        Returns
        -------
        ModeCounts
            Named ``order``, ``pairs`` and ``negative``.

        Examples
        --------
        >>> from hankelred_llm import HRMConfig
        >>> HRMConfig(r=8, rank_pattern={"layers.1.mlp": 5}).modes_of("model.layers.1.mlp")
        ModeCounts(order=5, pairs=2, negative=0)
        """
        order = _by_name(self.rank_pattern, module_name, self.r)
        default = [order // 2 if self.eigenvalues == "complex" else 0, 0]
        pairs, negative = _by_name(self.mode_pattern, module_name, default)
        if 2 * pairs + negative > order:
            raise ConfigError(
                f"{module_name}: {pairs} conjugate pairs and {negative} negative eigenvalues need "
                f"{2 * pairs + negative} states, but its order is {order}; set rank_pattern and "
                "mode_pattern together"
            )
        return ModeCounts(order, pairs, negative)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> HRMConfig:
        """Load the configuration from a folder or a repository, and refuse weights that must not be loaded.

        Parameters
        ----------
        pretrained_model_name_or_path, subfolder, **kwargs
            As in :meth:`peft.PeftConfig.from_pretrained`.

        Returns
        -------
        HRMConfig

        Raises
        ------
        AdapterFileError
            The weights are pickled, or the safetensors file is damaged.
        """
        check_safetensors(str(pretrained_model_name_or_path), subfolder, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)


def _check_count(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST_STATES:
        most = f" and at most {_MOST_STATES}" if isinstance(value, int) and value > least else ""
        raise ConfigError(f"{name}={short_repr(value)} must be a whole number of at least {least}{most}")


def _check_block_names(name: str, value: Any) -> None:
    """Refuse what is neither a list of names nor a pattern."""
    if value is None or (isinstance(value, list) and _all_texts(value)):
        return
    if not isinstance(value, str):
        raise ConfigError(
            f"{name}={short_repr(value)} must be a list of names of blocks, such as ['mlp'], or a pattern of "
            "whole names, such as '.*mlp'"
        )
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{name}={short_repr(value)} is no regular expression ({error})") from None


def _all_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _check_layers(value: Any) -> None:
    layers = value if isinstance(value, list) else [] if value is None else [value]
    if value == [] or any(isinstance(index, bool) or not isinstance(index, int) for index in layers):
        raise ConfigError(
            f"layers_to_transform={short_repr(value)} must be a layer index or a list of them, such as "
            "[0, 1]; leave it out for all layers"
        )


def names_block(key: str, module_name: str) -> bool:
    """Return whether a key such as "layers.3.mlp" names this module."""
    return module_name == key or module_name.endswith("." + key)


def _lora_config(config: HRMConfig) -> LoraConfig | None:
    """Return ``lora`` as a configuration of peft."""
    return None if config.lora is None else LoraConfig(**_fields_of(config.lora))


def lora_options(config: HRMConfig, module_name: str) -> LoraOptions:
    """Return rank, scale, dropout and initialization of the LoRA of a module, by peft's rules.

    Parameters
    ----------
    module_name : str
        Such as ``"model.layers.3.mlp.up_proj"``.

    Examples
    --------
    >>> from hankelred_llm import HRMConfig
    >>> from hankelred_llm.adapter.config import lora_options
    >>> config = HRMConfig(lora={"r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]})
    >>> lora_options(config, "model.layers.3.mlp.up_proj")
    LoraOptions(rank=4, scale=2.0, dropout=0.0, gaussian=False)
    """
    lora = _lora_config(config)
    if lora is None:
        raise ConfigError("the configuration has no lora")
    ranks, alphas = lora.rank_pattern or {}, lora.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(ranks, module_name), lora.r)
    alpha = alphas.get(get_pattern_key(alphas, module_name), lora.lora_alpha)
    scale = alpha / (rank**0.5 if lora.use_rslora else rank)
    return LoraOptions(rank, scale, lora.lora_dropout, lora.init_lora_weights == "gaussian")


def lora_targets(config: HRMConfig) -> list[str] | str | None:
    """Return the target modules of ``lora``: names, or a pattern."""
    return None if config.lora is None else _fields_of(config.lora)["target_modules"]


def has_lora(config: HRMConfig, module_name: str, *, linear: bool) -> bool:
    """Return whether the target modules of ``lora`` match a module, by its name and whether it is linear."""
    lora = _lora_config(config)
    if lora is None:
        return False
    if lora.target_modules == "all-linear":
        if not linear:
            return False
        lora.target_modules = ".*"
    return bool(check_target_module_exists(lora, module_name))


def static_rank(config: HRMConfig, module_name: str) -> int | None:
    """Return the rank of the input map of the static parts of a block, None where they share B."""
    return _by_name(config.static_pattern, module_name, None)


def _fields_of(lora: Mapping[str, Any] | LoraConfig) -> dict[str, Any]:
    """Return the fields of a LoRA that are set, without those of every configuration."""
    content = lora if isinstance(lora, Mapping) else {f.name: getattr(lora, f.name) for f in fields(lora)}
    return {key: value for key, value in content.items() if key not in _OUTER_FIELDS}


def _lora_fields(lora: Any) -> dict[str, Any]:
    """Return the fields of a LoRA as they are saved.

    Raises
    ------
    ConfigError
        It is neither a configuration nor a dict of its fields, or has a field that is not offered here.
    """
    if not isinstance(lora, (dict, LoraConfig)):
        raise ConfigError(
            f"lora={short_repr(lora)} must be a peft.LoraConfig, or a dict of its fields, such as "
            "{'r': 8, 'target_modules': ['up_proj']}"
        )
    try:
        config = LoraConfig(**_fields_of(lora))
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"lora={short_repr(lora)} is no configuration of a LoRA ({error})") from None
    default = LoraConfig()
    for name, value in _fields_of(config).items():
        if name not in _LORA_FIELDS and value != getattr(default, name):
            raise ConfigError(
                f"lora has {name}={short_repr(value)}, which the LoRA in this adapter does not offer; its "
                f"fields are {', '.join(_LORA_FIELDS)}; add an adapter of peft beside this one for the rest"
            )
    _check_lora_numbers(config)
    if config.init_lora_weights not in (True, "gaussian"):
        raise ConfigError(
            f"lora.init_lora_weights={short_repr(config.init_lora_weights)} would change the output of the "
            "base model at the start; take True or 'gaussian'"
        )
    if not config.target_modules:
        raise ConfigError(
            f"lora.target_modules={short_repr(config.target_modules)} names no modules; give names of linear "
            "modules such as ['up_proj', 'down_proj'], a pattern, or 'all-linear'"
        )
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name)
        if isinstance(value, (set, tuple)):
            value = sorted(value)
        if not (name == "target_modules" and value == "all-linear"):
            _check_block_names(f"lora.{name}", value)
        setattr(config, name, value)
    return {name: getattr(config, name) for name in _LORA_FIELDS}


def _check_lora_numbers(config: LoraConfig) -> None:
    """Refuse ranks, scales and a dropout that are not possible."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    for name, rank in (("lora.r", config.r), *((f"lora.rank_pattern[{k!r}]", r) for k, r in ranks.items())):
        _check_count(name, rank, least=1)
    for name, alpha in (
        ("lora.lora_alpha", config.lora_alpha),
        *((f"lora.alpha_pattern[{k!r}]", a) for k, a in alphas.items()),
    ):
        if not is_number(alpha) or not 0 < abs(alpha) <= _LARGEST:
            raise ConfigError(f"{name}={short_repr(alpha)} must be a finite number other than 0")
    if not is_number(config.lora_dropout) or not 0 <= config.lora_dropout < 1:
        raise ConfigError(f"lora.lora_dropout={short_repr(config.lora_dropout)} must be in [0, 1)")


def _by_name(pattern: Mapping[str, _T], module_name: str, default: _T) -> _T:
    matches = [value for key, value in pattern.items() if names_block(key, module_name)]
    return matches[0] if matches else default
