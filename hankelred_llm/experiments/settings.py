"""What a run or a comparison is made with: read from YAML and from flags, checked key by key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import ExperimentError

#: One grid for all methods is the plainest of fair ones; a method that chooses an end of it is marked.
DEFAULT_GRID = (3e-3, 1e-2, 3e-2)

#: HRM alone, for what a state can hold; with LoRA where features, or attention itself, must change too.
HRM_FAMILY = (
    "hrm-attention",
    "hrm-attention+lora-mlp share=0.3",
    "hrm-attention+lora-all share=0.4 lora_lr_ratio=3",
)

#: Fields that say which runs are wanted and where they go, not what a run is.
_SELECTION = frozenset(
    {"methods", "learning_rates", "tuning_seeds", "seeds", "reference", "out", "validation_only"}
    | {"eval_batch_size", "save_every"}
)


def _option(help: str, default: Any) -> Any:
    """Return a field; its help text is that of the flag."""
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is trained and what is compared. Each field is a YAML key and a flag.

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
    steps: int = _option("Optimiser steps of every run.", 250)
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
    calibration_steps: int = _option(
        "Steps that a balanced start takes: so many batches are calibrated on and not trained on.",
        25,
    )
    chunk: int | None = _option(
        "Train through rows in chunks of so many tokens: cache and state go on, gradients stop at borders.",
        None,
    )
    validation_size: int | None = _option("Rows or questions of the validation split.", None)
    test_size: int | None = _option("Rows or questions of the test split.", None)
    eval_batch_size: int = _option("Rows that are evaluated at a time.", 32)
    save_every: int = _option("Steps between checkpoints of a run.", 100)
    validation_only: bool = _option("Report on the validation split; the test split stays unread.", False)
    out: str = _option("Folder for everything that is written.", "comparison")

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if not self.task:
            raise ExperimentError(
                "no task is named; give task (in YAML) or --task, as in --task flip_flop: an unknown name "
                "lists all"
            )
        for name in ("steps", "batch_size", "accumulation", "length", "eval_batch_size", "save_every"):
            _at_least(name, getattr(self, name), 1)
        _at_least("calibration_steps", self.calibration_steps, 1)
        for name in ("chunk", "validation_size", "test_size"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.dtype not in ("float32", "bfloat16"):
            raise ExperimentError(f"dtype is {self.dtype!r}; give 'float32' or 'bfloat16'")
        if self.batch_size % self.accumulation:
            raise ExperimentError(
                f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}"
            )
        if self.weight_decay < 0:
            raise ExperimentError(f"weight_decay is {self.weight_decay}; give 0 or more")
        for name in ("methods", "seeds", "tuning_seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ExperimentError(f"{name} is {values}; give at least one, and each once")
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
                    f"learning_rates[{key!r}] is {rates}; give at least one positive number"
                )
            if key != "default" and key not in self.methods:
                raise ExperimentError(
                    f"learning_rates names {key!r}, which is not among methods{nearest(key, self.methods)}"
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
        """Return what must be the same for runs to stand in one results file."""
        values = {name: value for name, value in asdict(self).items() if name not in _SELECTION}
        return {**values, "test_lengths": list(self.lengths), "tuning_lengths": list(self.validated)}


def read_settings(file: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Return settings from a YAML file, over which flags go.

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
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(f"{file} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ExperimentError(f"{file} has no keys with values; see hankelred-llm compare --help")
    known = [f.name for f in fields(Settings)]
    for key in content:
        if key not in known:
            raise ExperimentError(f"{file}: unknown key {key!r}{nearest(str(key), known)}")
    return content


def nearest(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?', or what there is where nothing is near.

    Examples
    --------
    >>> from hankelred_llm.experiments.settings import nearest
    >>> nearest("setps", ["steps", "seeds"])
    "; did you mean 'steps'?"
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"


def _checked(f: Field[Any], value: Any) -> Any:
    """Return a value as the type of its field, or refuse it by name."""
    kind = str(f.type)
    try:
        if value is None:
            if "None" in kind:
                return None
        elif f.name == "learning_rates":
            lists = value if isinstance(value, dict) else {"default": value}
            return {str(k): [_number(v) for v in _listed(rates)] for k, rates in lists.items()}
        elif kind.startswith("dict"):
            if isinstance(value, dict):
                return {str(k): v for k, v in value.items()}
        elif kind.startswith("list"):
            entry = _text if kind == "list[str]" else _whole
            return [entry(v) for v in _listed(value)]
        elif kind == "bool":
            if isinstance(value, bool):
                return value
        elif kind.startswith("int"):
            return _whole(value)
        elif kind == "float":
            return _number(value)
        else:
            return _text(value)
    except (TypeError, ValueError):
        pass
    raise ExperimentError(f"{f.name} is {value!r}; give {_KINDS[kind.removesuffix(' | None')]}")


_KINDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list[str]": "a list of texts",
    "list[int]": "a list of whole numbers",
    "dict[str, Any]": "names with values",
    "dict[str, list[float]]": "a list of numbers, or lists of numbers by method",
}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)  # YAML takes 1e-3, without a point, for a text


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise TypeError
    return str(value)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ExperimentError(f"{name} is {value}; give a whole number of at least {least}")
