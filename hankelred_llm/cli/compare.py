"""`hankelred-llm compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .settings_options import flag_values, settings_options


@click.command(short_help="Methods on a task: equal budgets, own learning rates, several seeds.")
@settings_options()
@click.option(
    "--only",
    metavar="METHOD,RATE,SEED",
    help="Make this run only, and nothing else; RATE may be 'best', after the runs that choose it. Runs that "
    "are reported take the best rate of the grid only.",
)
@click.option(
    "--merge",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder whose runs are taken over, as those of --only; may be given more than once.",
)
def compare(config: Path | None, only: str | None, merge: tuple[Path, ...], **flags: Any) -> None:
    """Compare methods on a task and write table, plot and JSON into the folder --out.

    A comparison that was stopped resumes when the command is given again.

    \b
    Example:
      hankelred-llm compare --task flip_flop
      hankelred-llm compare --task flip_flop --model mistralai/Mistral-7B-v0.1 --dtype bfloat16
      hankelred-llm compare --config examples/paper/quality.yaml --data-dir data
      hankelred-llm compare --config study.yaml --only "hrm-attention,0.01,100" --out part-1
      hankelred-llm compare --config study.yaml --merge part-1 --merge part-2 --out study
    """
    from ..experiments.settings import read_settings

    settings = read_settings(config, flag_values(flags))
    from ..experiments import compare as comparison
    from ..experiments.processes import this_process
    from ..experiments.report import tables
    from .main import console, progress

    if only is not None:
        run = comparison.compare_one(settings, only, merge=merge, progress=progress())
        if this_process().is_main_process:
            scores = run.validation or {}
            shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items()) or "diverged"
            click.echo(
                f"{run.method}, rate {run.learning_rate:g}, seed {run.seed}: validation {shown}; "
                f"written into {settings.out}"
            )
        return
    result = comparison.compare(settings, merge=merge, progress=progress())
    if not this_process().is_main_process:
        return
    console().print(tables(result))
    click.echo(f"wrote table.md, scores.png, summary.json, results.jsonl and peft/ into {result.folder}")


COMMAND = compare
