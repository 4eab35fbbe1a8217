"""The options that say which model is loaded and which text it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--base", help="Folder or hub name of the adapter's base, where it is not as saved."),
    click.option("--gguf-file", help="GGUF file in the base's folder or repository, to be read."),
    click.option("--revision", help="Branch, tag or commit of the base on the hub."),
    click.option(
        "--data", type=click.Path(path_type=Path), help="Text: a file, or a folder with .txt files."
    ),
    click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens of a row."),
    click.option("--batches", type=click.IntRange(1), default=16, show_default=True, help="How many."),
    click.option(
        "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Rows of a batch."
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Of the base.",
    ),
    click.option("--device", help="Such as cpu or cuda:1 (default: a GPU where there is one)."),
)


def data_options(function: F) -> F:
    """Add them to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
