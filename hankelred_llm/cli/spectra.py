"""`hankelred-llm spectra`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hankelred.cli.console import check_folder, check_picture, save_picture

from .data_options import data_options

if TYPE_CHECKING:
    from hankelred_llm import HankelSpectra


@click.command(short_help="How much memory an adapter uses, or a text asks for.")
@click.argument("model")
@data_options
@click.option("--tol", type=float, help="Suggest ranks: the least whose error bound is at most this.")
@click.option("--budget", type=int, help="Suggest ranks: so many states over all layers.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Pictures: curves in this file, layers by index in the one with -layers in its name.",
)
@click.option("--json", "table", type=click.Path(path_type=Path), help="All numbers.")
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="The calibration, for reduce. A command that was interrupted goes on from it.",
)
def spectra(
    model: str,
    base: str | None,
    data: Path | None,
    length: int,
    batches: int,
    batch_size: int,
    dtype: str,
    device: str | None,
    tol: float | None,
    budget: int | None,
    plot: Path | None,
    table: Path | None,
    save: Path | None,
) -> None:
    """Print the Hankel singular values of every layer of MODEL.

    MODEL is a folder with an HRM adapter, or a causal language model: a folder, a hub name, or 'small'.
    Of an adapter the values are those of its systems; --data adds those of the states that a text excites and
    of the outputs that the loss feels. Of a model without adapter they are what the loss asks for on --data,
    beside chance.

    \b
    Example:
      hankelred-llm spectra small --data corpus.txt --budget 16 --plot before.png
      hankelred-llm spectra training/adapter --data corpus.txt --plot after.png --save calibration.safetensors
    """
    if tol is not None and budget is not None:
        raise click.UsageError("--tol and --budget are two rules for the ranks; give one of them")
    if save is not None and data is None:
        raise click.UsageError("--save writes what was seen of a text; give one with --data")
    check_picture(plot)
    for path in (table, save):
        if path is not None:
            check_folder(path)
    from hankelred_llm import AdapterError, Calibration, calibrate, hankel_spectra
    from hankelred_llm.cli.open_model import open_named

    opened = open_named(model, base=base, dtype=dtype, device=device)
    if opened.config is None and data is None:
        raise AdapterError(
            f"{model} is a model without adapter, whose spectra are those of a text; give one with --data"
        )
    calibration: Calibration | None = None
    try:
        if data is not None:
            rows = opened.batches(data, length=length, batches=batches, batch_size=batch_size)
            # without an adapter there is nothing to reduce, and all rows can count
            more: dict[str, Any] = {"held_out": 0} if opened.config is None else {}
            calibration = calibrate(opened.model, rows, checkpoint=save, **more)
        found = hankel_spectra(opened.model, calibration)
    except KeyboardInterrupt:
        raise click.Abort(f"interrupted; {_goes_on(save)}") from None
    click.echo(_headline(model, found, calibration))
    click.echo(str(found))
    ranks = None if tol is None and budget is None else found.suggest_ranks(tol=tol, budget=budget)
    if ranks is not None:
        click.echo(f"\n{_suggestion(found, ranks, opened.config)}")
        spare = 0 if budget is None else budget - sum(ranks.values())
        if spare:
            why = "rounding" if found.exact else "within chance on this text"
            click.echo(f"{spare} of the {budget} states were given to no layer: the values left are {why}")
        if not found.exact:
            click.echo("first order only: what pays once something is remembered is not seen")
    if table is not None:
        _write_json(table, found, ranks, calibration)
    if plot is not None:
        layers = plot.with_stem(f"{plot.stem}-layers")
        save_picture(plot, lambda ax: found.plot(ax, ranks=ranks))
        save_picture(layers, lambda ax: found.plot(ax, kind="heatmap", ranks=ranks))
    if save is not None:
        click.echo(f"wrote {save}")


def _goes_on(save: Path | None) -> str:
    if save is None:
        return "with --save it could be gone on with"
    if not save.is_file():
        return f"{save} was not written yet, which is done once a minute"
    return f"the same command goes on from {save}, which was written less than a minute or a batch ago"


def _headline(model: str, found: HankelSpectra, calibration: Any) -> str:
    what = "values of the adapter" if found.exact else "what the loss asks for, before training"
    if calibration is None:
        return f"{model}: {what}"
    return f"{model}: {what}; {calibration.tokens:,} tokens, loss {calibration.loss:.4f}"


def _suggestion(found: HankelSpectra, ranks: Mapping[int, int], config: Mapping[str, Any] | None) -> str:
    """Return the ranks with what speaks for them, and the configuration that has them."""
    from hankelred_llm._util.tables import table

    level = "noise floor" if found.exact else "level of chance"
    rows = [["layer", "rank", "counted", "last kept", "first left out", level]]
    if found.exact:
        rows[0].append("error bound")
    for i, rank in ranks.items():
        values = found[i]
        left = f"{values[rank]:.2e}" if rank < values.size else ""
        cells = [found.names.get(i, str(i)), str(rank), str(found.significant(i))]
        cells += [f"{values[rank - 1]:.2e}", left, f"{found.threshold(i):.2e}"]
        if found.exact:
            cells.append(f"{2 * float(values[rank:].sum()):.2e}")
        rows.append(cells)
    return f"{table(rows)}\nranks of {sum(ranks.values())} states in all:\n  {_pattern(found, ranks, config)}"


def _pattern(found: HankelSpectra, ranks: Mapping[int, int], config: Mapping[str, Any] | None) -> str:
    """Return the configuration of a new adapter with these ranks, to be pasted."""
    most = max(ranks.values())
    fields = [f"r={most}"]
    for name, usual in (("site", "mlp"), ("tap", "input"), ("eigenvalues", "complex")):
        if config is not None and config.get(name, usual) != usual:
            fields.append(f"{name}={config[name]!r}")
    if config is not None and config.get("layers_to_transform") is not None:
        fields.append(f"layers_to_transform={sorted(ranks)}")
    pattern = {found.names[i]: rank for i, rank in ranks.items() if rank != most}
    if pattern:
        fields.append(f"rank_pattern={pattern}")
    return f"HRMConfig({', '.join(fields)})"


def _write_json(path: Path, found: HankelSpectra, ranks: Mapping[int, int] | None, calibration: Any) -> None:
    from hankelred._util.writing import write_atomically

    content = json.loads(found.to_json())
    if ranks is not None:
        content["ranks"] = {str(i): rank for i, rank in ranks.items()}
    if calibration is not None:
        content["tokens"], content["loss"] = calibration.tokens, calibration.loss
    text = json.dumps(content, indent=2)
    write_atomically(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
    click.echo(f"wrote {path}")


COMMAND = spectra
