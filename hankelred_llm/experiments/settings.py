"""The settings of a run or a comparison: read from YAML and from flags, checked key by key.

The type of a field says what its values may be: pydantic converts and checks them. Its classes of settings
are not used: they know no flags of click, and do not name the key that was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from hankelred.errors import in_one_line, short_repr

from .._util.parsing import nearest, parse_yaml
from .._util.value_types import (
    Count,
    Flag,
    Index,
    ListOf,
    Options,
    Precision,
    RatesByName,
    SetOf,
    Text,
    TypeAdapter,
    ValidationError,
    Weight,
    problem,
)
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
    hankelred_llm.errors.ExperimentError: steps is 0; it should be greater than or equal to 1
    """

    task: Text = _option("Name of the task; an unknown name lists all.", "")
    model: Text = _option(
        "Causal language model: a folder or a name on the hub; 'small' (a Mistral of 0.1 million parameters, "
        "pretrained here once on Python's library) or 'small-random'.",
        "small",
    )
    gguf_file: Text | None = _option("GGUF file in the model's folder or repository, to be read.", None)
    revision: Text | None = _option("Branch, tag or commit of the model on the hub.", None)
    methods: SetOf[Text] = _option(
        "Methods, such as 'hrm-attention', 'lora-all', 'hrm-mlp+lora-all share=0.5'.",
        [*HRM_FAMILY, "lora-qv", "lora-mlp", "lora-all"],
    )
    budget: Text = _option(
        "Trainable parameters of every method: a number, or a method with its r.", "lora-qv r=16"
    )
    task_options: Options = _option("Options of the task, as NAME=VALUE.", {})
    data_dir: Text | None = _option("Folder with the files of a task of texts (default: the hub).", None)
    length: Count = _option("Length of training rows, in the unit of the task.", 64)
    test_lengths: ListOf[Count] = _option(
        "Lengths of the test (default: once and four times the length).", []
    )
    steps: Count = _option("Optimizer steps of every run.", 250)
    batch_size: Count = _option("Rows of a step, over all devices.", 16)
    accumulation: Count = _option("Parts that the rows of a step are computed in, to save memory.", 1)
    learning_rates: RatesByName = _option(
        "Learning rates to choose from, for all methods; in YAML also lists by method.",
        {"default": list(DEFAULT_GRID)},
    )
    weight_decay: Weight = _option("Decoupled weight decay of every method.", 0.0)
    tuning_seeds: SetOf[Index] = _option("Seeds of the runs that choose the learning rate.", [100])
    tuning_lengths: ListOf[Count] = _option(
        "Lengths whose validation scores, averaged, choose the learning rate (default: the length).", []
    )
    seeds: SetOf[Index] = _option("Seeds of the runs that are reported.", [0, 1, 2])
    reference: Text | None = _option(
        "Method the others are compared with (default: the best on validation of those without HRM).", None
    )
    dtype: Precision = _option("Weights of the base: float32 or bfloat16. Adapters are float32.", "float32")
    gradient_checkpointing: Flag = _option("Recompute layers in the backward pass, to save memory.", False)
    chunk: Count | None = _option(
        "Train through rows in chunks of so many tokens: cache and state are passed on, gradients stop at "
        "chunk boundaries.",
        None,
    )
    validation_size: Count | None = _option("Rows or questions of the validation split.", None)
    test_size: Count | None = _option("Rows or questions of the test split.", None)
    eval_batch_size: Count = _option("Rows that are evaluated at a time.", 32)
    save_every: Count = _option("Steps between checkpoints of a run.", 100)
    forgetting_text: Text | None = _option(
        "Text file; the table then has what training adds to the loss on it, in nats a token.", None
    )
    validation_only: Flag = _option("Report on the validation split; the test split stays unread.", False)
    out: Text = _option("Folder for everything that is written.", "comparison")

    def __post_init__(self) -> None:
        for name, check in _checkers().items():
            try:
                object.__setattr__(self, name, check(getattr(self, name)))
            except ValidationError as error:
                raise ExperimentError(problem(error, name)) from None
        if not self.task:
            raise ExperimentError(
                "no task is named; give task (in YAML) or --task, as in --task flip_flop: an unknown name "
                "lists all"
            )
        check_name(self.task)
        self._check_together()

    def _check_together(self) -> None:
        """Refuse values that are right by themselves, but not with another one."""
        if self.batch_size % self.accumulation:
            raise ExperimentError(
                f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}"
            )
        if shared := set(self.seeds) & set(self.tuning_seeds):
            raise ExperimentError(
                f"seed {min(shared)} would both choose the learning rate and be reported; take different "
                "numbers for seeds and tuning_seeds"
            )
        if self.chunk is not None and self.gradient_checkpointing:
            raise ExperimentError(
                "chunk needs the cache, which gradient_checkpointing switches off; take one of the two"
            )
        for key in self.learning_rates:
            if key not in ("default", *self.methods):
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
        if self.forgetting_text is None:  # comparisons that were begun before there was this setting go on
            del values["forgetting_text"]
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


@cache
def _checkers() -> dict[str, Callable[[Any], Any]]:
    """Return what converts and checks the value of a field, by its name."""
    hints = get_type_hints(Settings, include_extras=True)
    return {f.name: TypeAdapter(hints[f.name]).validate_python for f in fields(Settings)}
