"""The settings of a run or a comparison: read from YAML and from flags, checked key by key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml

from hankelred.errors import in_one_line, short_repr

from .._util.parsing import nearest, parse_yaml
from ..errors import ExperimentError
from ..tasks import check_name

#: The same grid for all methods is the simplest fair choice; a method whose best rate is at an end is marked.
DEFAULT_GRID = (3e-3, 1e-2, 3e-2)

#: HRM alone, for tasks that need memory; with LoRA where features, or attention itself, must change too.
HRM_FAMILY = (
    "hrm-attention",
    "hrm-attention+lora-mlp share=0.3",
    "hrm-attention+lora-all share=0.4 lora_lr_ratio=3",
)

#: Fields that select runs and their folder, and do not change a run.
_SELECTION = frozenset(
    {"methods", "learning_rates", "tuning_seeds", "seeds", "reference", "out", "validation_only"}
    | {"eval_batch_size", "save_every"}
)


#: Bytes of a file of settings, which is written by hand.
_FILE_SIZE = 2**20

#: The largest whole number of a setting: seeds of numpy end there, and nothing else has a use for more.
_LARGEST = 2**32 - 1

#: Values of the options of a task, lists within lists counted one by one, and how deep these may be.
_VALUES, _DEPTH = 10_000, 8


def _option(help: str, default: Any) -> Any:
    """Return a field; its help text is that of the flag."""
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """All settings of training and comparison. Each field is a YAML key and a flag.

    Parameters
    ----------
    **fields
        ``hankelred-llm compare --help`` says what each of them means.

    Raises
    ------
    ExperimentError
        A value of the wrong kind.

    Examples
    --------
    >>> from hankelred_llm.experiments.settings import Settings
    >>> Settings(task="flip_flop", length=32).lengths
    (32, 128)
    >>> Settings(task="flip_flop", steps=0)
    Traceback (most recent call last):
    ...
    hankelred_llm.errors.ExperimentError: steps is 0; give a whole number of at least 1
    """

    task: str = _option("Name of the task; an unknown name lists all.", "")
    model: str = _option(
        "Causal language model: a folder or a name on the hub; 'small' (a Mistral of 0.1 million parameters, "
        "pretrained here once on Python's library) or 'small-random'.",
        "small",
    )
    gguf_file: str | None = _option("GGUF file in the model's folder or repository, to be read.", None)
    revision: str | None = _option("Branch, tag or commit of the model on the hub.", None)
    methods: list[str] = _option(
        "Methods, such as 'hrm-attention', 'lora-all', 'hrm-mlp+lora-all share=0.5'.",
        [*HRM_FAMILY, "lora-qv", "lora-mlp", "lora-all"],
    )
    budget: str = _option(
        "Trainable parameters of every method: a number, or a method with its r.", "lora-qv r=16"
    )
    task_options: dict[str, Any] = _option("Options of the task, as NAME=VALUE.", {})
    data_dir: str | None = _option("Folder with the files of a task of texts (default: the hub).", None)
    length: int = _option("Length of training rows, in the unit of the task.", 64)
    test_lengths: list[int] = _option("Lengths of the test (default: once and four times the length).", [])
    steps: int = _option("Optimizer steps of every run.", 250)
    batch_size: int = _option("Rows of a step, over all devices.", 16)
    accumulation: int = _option("Parts that the rows of a step are computed in, to save memory.", 1)
    learning_rates: dict[str, list[float]] = _option(
        "Learning rates to choose from, for all methods; in YAML also lists by method.",
        {"default": list(DEFAULT_GRID)},
    )
    weight_decay: float = _option("Decoupled weight decay of every method.", 0.0)
    tuning_seeds: list[int] = _option("Seeds of the runs that choose the learning rate.", [100])
    tuning_lengths: list[int] = _option(
        "Lengths whose validation scores, averaged, choose the learning rate (default: the length).", []
    )
    seeds: list[int] = _option("Seeds of the runs that are reported.", [0, 1, 2])
    reference: str | None = _option(
        "Method the others are compared with (default: the best on validation of those without HRM).", None
    )
    dtype: str = _option("Weights of the base: float32 or bfloat16. Adapters are float32.", "float32")
    gradient_checkpointing: bool = _option("Recompute layers in the backward pass, to save memory.", False)
    chunk: int | None = _option(
        "Train through rows in chunks of so many tokens: cache and state are passed on, gradients stop at "
        "chunk boundaries.",
        None,
    )
    validation_size: int | None = _option("Rows or questions of the validation split.", None)
    test_size: int | None = _option("Rows or questions of the test split.", None)
    eval_batch_size: int = _option("Rows that are evaluated at a time.", 32)
    save_every: int = _option("Steps between checkpoints of a run.", 100)
    validation_only: bool = _option("Report on the validation split; the test split stays unread.", False)
    out: str = _option("Folder for everything that is written.", "comparison")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f.name, hints[f.name], getattr(self, f.name)))
        if not self.task:
            raise ExperimentError(
                "no task is named; give task (in YAML) or --task, as in --task flip_flop: an unknown name "
                "lists all"
            )
        check_name(self.task)
        for name in ("steps", "batch_size", "accumulation", "length", "eval_batch_size", "save_every"):
            _at_least(name, getattr(self, name), 1)
        for name in ("seeds", "tuning_seeds"):
            for seed in getattr(self, name):
                _at_least(name, seed, 0)
        for name in ("test_lengths", "tuning_lengths"):
            for length in getattr(self, name):
                _at_least(name, length, 1)
        for name in ("chunk", "validation_size", "test_size"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.dtype not in ("float32", "bfloat16"):
            raise ExperimentError(f"dtype is {short_repr(self.dtype)}; give 'float32' or 'bfloat16'")
        if self.batch_size % self.accumulation:
            raise ExperimentError(
                f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}"
            )
        if self.weight_decay < 0:
            raise ExperimentError(f"weight_decay is {self.weight_decay}; give 0 or more")
        for name in ("methods", "seeds", "tuning_seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ExperimentError(f"{name} is {short_repr(values)}; give at least one, and each once")
        if shared := set(self.seeds) & set(self.tuning_seeds):
            raise ExperimentError(
                f"seed {min(shared)} would both choose the learning rate and be reported; take different "
                "numbers for seeds and tuning_seeds"
            )
        if self.chunk is not None and self.gradient_checkpointing:
            raise ExperimentError(
                "chunk needs the cache, which gradient_checkpointing switches off; take one of the two"
            )
        for key, rates in self.learning_rates.items():
            if not rates or min(rates) <= 0:
                raise ExperimentError(
                    f"learning_rates[{short_repr(key)}] is {short_repr(rates)}; give at least one positive "
                    "number"
                )
            if key != "default" and key not in self.methods:
                raise ExperimentError(
                    f"learning_rates names {short_repr(key)}, which is not among "
                    f"methods{nearest(key, self.methods)}"
                )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the test, once and four times that of training unless given."""
        return tuple(sorted(set(self.test_lengths))) or (self.length, 4 * self.length)

    @property
    def validated(self) -> tuple[int, ...]:
        """Lengths that are validated to choose a learning rate, that of training unless given."""
        return tuple(sorted(set(self.tuning_lengths))) or (self.length,)

    def rates(self, method: str) -> list[float]:
        """Return the learning rates a method chooses from."""
        return sorted(set(self.learning_rates.get(method, self.learning_rates.get("default", DEFAULT_GRID))))

    def identity(self) -> dict[str, Any]:
        """Return the settings that all runs in one results file share."""
        values = {name: value for name, value in asdict(self).items() if name not in _SELECTION}
        return {**values, "test_lengths": list(self.lengths), "tuning_lengths": list(self.validated)}


def read_settings(file: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Return settings from a YAML file and from flags, which take precedence.

    Parameters
    ----------
    file : Path or None
        Keys are the fields of :class:`Settings`.
    flags : mapping
        Values given on the command line.

    Returns
    -------
    Settings

    Raises
    ------
    ExperimentError
        No such file, no mapping in it, an unknown key, or a value of the wrong kind.

    Examples
    --------
    >>> from hankelred_llm.experiments.settings import read_settings
    >>> read_settings(None, {"task": "parity", "steps": 10}).steps
    10
    """
    return Settings(**{**read_values(file), **flags})


def one_run(method: str, learning_rate: float, seed: int, **values: Any) -> Settings:
    """Return settings of a single run."""
    single = {
        "methods": [method],
        "learning_rates": [learning_rate],
        "seeds": [seed],
        "tuning_seeds": [seed + 1],
    }
    return Settings(**{**values, **single, "reference": None})


def read_values(file: Path | None) -> dict[str, Any]:
    """Return the keys and values of a YAML file, of none where there is no file.

    Raises
    ------
    ExperimentError
        No such file, no mapping in it, or an unknown key.
    """
    if file is None:
        return {}
    try:
        with file.open("rb") as opened:
            text = opened.read(_FILE_SIZE + 1)
        if len(text) > _FILE_SIZE:
            raise ExperimentError(f"{file} has more than {_FILE_SIZE} bytes; give a YAML file of settings")
        content = parse_yaml(text.decode())
    except OSError as error:
        raise ExperimentError(f"{file} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExperimentError(
            f"{file} is no YAML: {in_one_line(' '.join(str(error).split()), 300)}"
        ) from None
    if not isinstance(content, dict):
        raise ExperimentError(f"{file} has no keys with values; see hankelred-llm compare --help")
    known = [f.name for f in fields(Settings)]
    for key in content:
        if key not in known:
            raise ExperimentError(f"{file}: unknown key {short_repr(key)}{nearest(str(key), known)}")
    return content


def without_none(hint: Any) -> Any:
    """Return T for an annotation ``T | None``, and every other annotation unchanged.

    Examples
    --------
    >>> from hankelred_llm.experiments.settings import without_none
    >>> without_none(int | None), without_none(list[int])
    (<class 'int'>, list[int])
    """
    parts = get_args(hint)
    return next(part for part in parts if part is not NoneType) if NoneType in parts else hint


def _checked(name: str, hint: Any, value: Any) -> Any:
    """Return the value of a field, converted to the type of its annotation.

    Raises
    ------
    ExperimentError
        The value is of another kind.
    """
    convert, description = _CONVERTERS[without_none(hint)]
    if value is None and NoneType in get_args(hint):
        return None
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise ExperimentError(f"{name} is {short_repr(value)}; give {description}") from None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)  # YAML takes 1e-3, without a point, for a text
    if not math.isfinite(number):
        raise ValueError
    return number


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError
    text = str(value)
    if "\0" in text:  # in no name of a file, task or method
        raise ValueError
    return text


def _at_least(name: str, value: int, least: int) -> None:
    if not least <= value <= _LARGEST:
        most = f" and at most {_LARGEST}" if value > least else ""
        raise ExperimentError(f"{name} is {short_repr(value)}; give a whole number of at least {least}{most}")


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _texts(value: Any) -> list[str]:
    return [_text(entry) for entry in _listed(value)]


def _whole_numbers(value: Any) -> list[int]:
    return [_whole(entry) for entry in _listed(value)]


def _named_values(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    remaining = _VALUES
    lists: list[tuple[Any, int]] = [(value, 0)]
    while lists:  # entries that occur twice are counted twice: repr and copies write them out, too
        container, depth = lists.pop()
        remaining -= len(container)
        if remaining < 0 or depth > _DEPTH:
            raise ValueError
        entries = container.values() if isinstance(container, dict) else container
        lists += [(entry, depth + 1) for entry in entries if isinstance(entry, (dict, list, tuple, set))]
    return {str(key): entry for key, entry in value.items()}


def _rates_by_method(value: Any) -> dict[str, list[float]]:
    if value is None:
        raise TypeError
    lists = value if isinstance(value, dict) else {"default": value}
    return {str(key): [_number(rate) for rate in _listed(rates)] for key, rates in lists.items()}


#: By the annotation of a field: how a value is converted, and how it is described in an error.
_CONVERTERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    str: (_text, "a text"),
    int: (_whole, "a whole number"),
    float: (_number, "a finite number"),
    bool: (_flag, "true or false"),
    list[str]: (_texts, "a list of texts"),
    list[int]: (_whole_numbers, "a list of whole numbers"),
    dict[str, Any]: (_named_values, f"names with values, at most {_VALUES} in all"),
    dict[str, list[float]]: (_rates_by_method, "a list of finite numbers, or such lists by method"),
}
