"""`hankelred-llm train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .settings_options import flag_values, settings_options

if TYPE_CHECKING:
    from ..experiments.settings import Settings


@click.command(short_help="One adapter on a task.")
@click.option("--method", help="Such as 'hrm-attention' or 'hrm r=26'; without r it follows from --budget.")
@click.option("--learning-rate", type=float, help="Default: 0.01.")
@click.option(
    "--find-rate",
    is_flag=True,
    help="Find the rate first, by short trainings of a quarter of the steps; the first is at "
    "--learning-rate.",
)
@click.option("--seed", type=int, help="Default: 0.")
@settings_options(
    "methods",
    "learning_rates",
    "seeds",
    "tuning_seeds",
    "tuning_lengths",
    "reference",
    "validation_only",
    out="training",
)
def train(
    config: Path | None,
    method: str | None,
    learning_rate: float | None,
    find_rate: bool,
    seed: int | None,
    **flags: Any,
) -> None:
    """Train one adapter and write it into the folder --out, with its validation score.

    A training that was stopped resumes from its last checkpoint when the command is given again.
    The adapter is in OUT/adapter, for PeftModel.from_pretrained.

    \b
    Example:
      hankelred-llm train --task flip_flop --method "hrm-attention r=16" --learning-rate 0.03
      hankelred-llm evaluate training --length 64 --length 256
    """
    from ..experiments.settings import one_run, read_values

    values = {"out": "training", **read_values(config), **flag_values(flags)}
    rate = 0.01 if learning_rate is None else learning_rate
    settings = one_run(method or "hrm", rate, seed or 0, **values)
    # after the settings, so that an invalid one is reported before torch is imported
    from ..experiments.processes import this_process
    from ..experiments.single_run import train_into
    from .main import progress

    if find_rate:
        settings = _at_best_rate(settings)
    run = train_into(settings, progress=progress())
    if not this_process().is_main_process:
        return
    scores = ", ".join(f"{name} {value:.4f}" for name, value in (run.validation or {}).items())
    click.echo(
        f"{run.method} (r {run.ranks}, {run.parameters:,} parameters) on {settings.task}, rate "
        f"{run.learning_rate:g}, seed {run.seed}: last loss {run.losses[-1][1]:.4f}"
    )
    click.echo(f"validation at length {settings.length}: {scores}")
    click.echo(f"wrote {Path(settings.out) / 'adapter'}")


def _at_best_rate(settings: Settings) -> Settings:
    """Return the settings with the best rate that was found, after printing all that were tried."""
    from ..experiments.find_rate import find_rate
    from ..experiments.processes import this_process
    from .main import progress

    trials = find_rate(settings, progress=progress())
    if this_process().is_main_process:
        click.echo("learning rate: loss at the end of a short training")
        for trial in sorted(trials, key=lambda trial: trial.rate):
            click.echo(f"{trial.rate:g}: {trial.loss:.4f}{'  (taken)' if trial is trials[0] else ''}")
    return replace(settings, learning_rates={"default": [trials[0].rate]})


COMMAND = train
