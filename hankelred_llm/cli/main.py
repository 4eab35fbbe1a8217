"""The command line `hankelred-llm`: one file of this folder for each subcommand."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Any

import click

from hankelred import __version__
from hankelred.cli.console import run

from .._util.imports import after_import
from ..errors import ExperimentError

#: Each is a module of this folder that binds a click command to ``COMMAND``.
COMMANDS = ("compare", "evaluate", "reduce", "spectra", "train")


class _Commands(click.Group):
    """Subcommands that are imported when they are called, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            command: click.Command = import_module(f"hankelred_llm.cli.{cmd_name}").COMMAND
        except ExperimentError as error:  # what it needs is not installed
            return _unavailable(cmd_name, error)
        return command


def _unavailable(name: str, reason: ExperimentError) -> click.Command:
    """Return a command that is listed with the others, and says what it needs."""

    def refuse() -> None:
        raise reason

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, anything, refuse, short_help=str(reason), add_help_option=False)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="hankelred-llm")
def cli() -> None:
    """Recurrent adapters for language models: spectra, training, reduction, evaluation, comparison.

    \b
    Example:
      hankelred-llm compare --task flip_flop
    """


def console() -> Any:
    """Return a console for tables, as wide as needed where the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def progress() -> Any:
    """Return bars for runs and steps, which vanish when they are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, transient=True)


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def main() -> None:
    """Run the command line; an error is printed in one line, with exit status 2."""
    # deprecations between the libraries below are nothing that a user can act on
    warnings.filterwarnings("ignore", category=FutureWarning)
    # progress bars of these libraries would overlap with those of the command
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    after_import("transformers", _quiet)
    run(cli, "hankelred-llm", interrupted="interrupted; run the same command to resume")
