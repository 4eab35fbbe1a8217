"""Every field of `Settings` as a flag, which takes precedence over a YAML file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import click
import yaml

from hankelred.errors import short_repr

from .._util.parsing import parse_yaml
from ..errors import ExperimentError
from ..experiments.settings import DEFAULT_GRID, Settings

F = TypeVar("F", bound=Callable[..., Any])

#: Type of one value of a flag, by the annotation of the field; others are texts.
_FLAG_TYPES: dict[Any, Any] = {int: int, float: float, list[int]: int}


def settings_options(*leave_out: str, **defaults: str) -> Callable[[F], F]:
    """Add ``--config`` and a flag for each field but those left out.

    The default that the help of a flag names is that of the field, or one given here.
    """

    def decorate(function: F) -> F:
        hints = get_type_hints(Settings)
        for f in reversed(fields(Settings)):
            if f.name not in leave_out:
                function = _flag(f, hints[f.name], _help(f, defaults))(function)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="YAML file whose keys are these flags; flags go over it.",
        )(function)

    return decorate


def _help(f: Any, defaults: dict[str, str]) -> str:
    """Return the help text of a field, with its default where that is short."""
    text, default = str(f.metadata["help"]), defaults.get(f.name, f.default)
    if f.name == "learning_rates":
        default = ", ".join(f"{rate:g}" for rate in DEFAULT_GRID)
    elif f.default_factory is not MISSING:
        default = ", ".join(map(str, f.default_factory()))
    if "default:" in text or default in (None, "") or isinstance(default, bool):
        return text
    return f"{text} [default: {default}]"


def _flag(f: Any, kind: Any, help: str) -> Callable[[Any], Any]:
    name = f"--{f.name.replace('_', '-')}"
    options = get_args(kind)
    kind = options[0] if NoneType in options else kind  # T of T | None
    if kind is bool:
        return click.option(f"{name}/--no-{name[2:]}", default=None, help=help)
    if f.name == "task_options":
        return click.option("--task-option", "task_options", multiple=True, metavar="NAME=VALUE", help=help)
    if f.name == "learning_rates":
        help = f"{help} Repeatable."
        return click.option("--learning-rate", "learning_rates", multiple=True, type=float, help=help)
    many = get_origin(kind) is list
    flag = f"--{f.name.removesuffix('s').replace('_', '-')}" if many else name
    return click.option(
        flag,
        f.name,
        type=_FLAG_TYPES.get(kind, str),
        multiple=many,
        help=help + (" Repeatable." if many else ""),
    )


def flag_values(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were used, as values of settings."""
    values = {name: value for name, value in flags.items() if value is not None and value != ()}
    if "task_options" in values:
        values["task_options"] = dict(_pair(text) for text in values["task_options"])
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ExperimentError(f"--task-option {short_repr(text)}: write it as NAME=VALUE")
    try:
        return name, parse_yaml(value)
    except yaml.YAMLError:
        return name, value
