"""Every field of `Settings` as a flag, over a YAML file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from hankelred_llm._errors import ExperimentError
from hankelred_llm._settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "list[int]": int, "list[str]": str}


def settings_options(*leave_out: str) -> Callable[[F], F]:
    """Add ``--config`` and a flag for each field but those left out."""

    def decorate(function: F) -> F:
        for f in reversed(fields(Settings)):
            if f.name not in leave_out:
                function = _flag(f)(function)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            help="YAML file whose keys are these flags; flags go over it.",
        )(function)

    return decorate


def _flag(f: Any) -> Callable[[Any], Any]:
    kind = str(f.type).removesuffix(" | None")
    name, help = f"--{f.name.replace('_', '-')}", f.metadata["help"]
    if kind == "bool":
        return click.option(f"{name}/--no-{name[2:]}", default=None, help=help)
    if f.name == "task_options":
        return click.option("--task-option", "task_options", multiple=True, metavar="NAME=VALUE", help=help)
    if f.name == "learning_rates":
        return click.option("--learning-rate", "learning_rates", multiple=True, type=float, help=help)
    many = kind.startswith("list")
    flag = f"--{f.name.removesuffix('s').replace('_', '-')}" if many else name
    return click.option(
        flag, f.name, type=_TYPES[kind], multiple=many, help=help + (" Repeatable." if many else "")
    )


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were used, as values of settings."""
    found = {name: value for name, value in flags.items() if value is not None and value != ()}
    if "task_options" in found:
        found["task_options"] = dict(_pair(text) for text in found["task_options"])
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ExperimentError(f"--task-option {text!r}: write it as NAME=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value
