"""`hankelred-llm compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .settings_options import flag_values, settings_options


@click.command(short_help="Methods on a task: equal budgets, own learning rates, several seeds.")
@settings_options()
def compare(config: Path | None, **flags: Any) -> None:
    """Compare methods on a task and write table, plot and JSON into the folder --out.

    A comparison that was stopped resumes when the command is given again.

    \b
    Example:
      hankelred-llm compare --task flip_flop
      hankelred-llm compare --task flip_flop --model mistralai/Mistral-7B-v0.1 --dtype bfloat16
      hankelred-llm compare --config examples/paper/quality.yaml --data-dir data
    """
    from ..experiments.settings import read_settings

    settings = read_settings(config, flag_values(flags))
    from ..experiments import compare as comparison
    from ..experiments.processes import this_process
    from ..experiments.report import tables
    from .main import console, progress

    found = comparison.compare(settings, progress=progress())
    if not this_process().is_main_process:
        return
    console().print(tables(found))
    click.echo(f"wrote table.md, scores.png, summary.json, results.jsonl and peft/ into {found.folder}")


COMMAND = compare
