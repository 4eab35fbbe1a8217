"""`hankelred-llm evaluate`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Score a trained adapter.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--split",
    "split_name",
    type=click.Choice(["validation", "test"]),
    default="validation",
    show_default=True,
    help="Use validation to choose; read the test split once, when all choices are made.",
)
@click.option(
    "--length",
    "lengths",
    type=int,
    multiple=True,
    help="Length of the rows; repeatable. Default: the lengths given in training.",
)
@click.option("--eval-batch-size", type=int, help="Rows at a time (default: as in training).")
def evaluate(folder: Path, split_name: str, lengths: tuple[int, ...], eval_batch_size: int | None) -> None:
    """Score the adapter that hankelred-llm train wrote into FOLDER.

    Scores are saved in FOLDER/results.jsonl; a split already scored at a length is not read again.

    \b
    Example:
      hankelred-llm evaluate training
      hankelred-llm evaluate training --split test --length 64 --length 256
    """
    from rich.table import Table

    from ..experiments.processes import this_process
    from ..experiments.single_run import score_folder
    from .main import console

    records = score_folder(folder, split_name, lengths, eval_batch_size)
    if not this_process().is_main_process:
        return
    table = Table(title=f"{folder}, {split_name}", title_justify="left")
    columns = ["length", "rows", "context", "truncated", "evidence left"]
    metrics = list(records[0]["means"])
    baselines = list(records[0]["floors"])
    main = records[0]["metric"]
    for heading in [*columns, *metrics, *(f"baseline: {name}" for name in baselines)]:
        table.add_column(heading, justify="right")
    for r in records:
        evidence = "" if r["evidence_share"] is None else f"{r['evidence_share']:.0%}"
        cells = [
            str(r["length"]),
            str(r["examples"]),
            f"{r['context_mean']:.0f}",
            f"{r['cut_share']:.0%}",
            evidence,
        ]
        cells += [f"{r['means'][name]:.4f}" for name in metrics]
        cells += [f"{r['floors'][name][main]:.4f}" for name in baselines]
        table.add_row(*cells)
    console().print(table)


COMMAND = evaluate
