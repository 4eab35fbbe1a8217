"""`hankelred-llm spectra`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hankelred._util.writing import check_writable
from hankelred.cli.console import check_picture, save_picture

from .._util.model_names import refuse_absent_path
from .data_options import data_options

if TYPE_CHECKING:
    from .. import HankelSpectra


@click.command(short_help="How much memory an adapter uses, or a text requires.")
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
    help="The calibration, for reduce. An interrupted command resumes from it.",
)
def spectra(
    model: str,
    base: str | None,
    gguf_file: str | None,
    revision: str | None,
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

    MODEL is a folder with an HRM adapter, or a causal language model: a folder, a hub name, or 'small'. For
    an adapter these are the values of its systems; --data adds those weighted by the states on a text and by
    the gradient of the loss. For a model without adapter they are those of the gradient of the loss on
    --data, compared with a permutation null.

    \b
    Example:
      hankelred-llm spectra small --data corpus.txt --budget 16 --plot before.png
      hankelred-llm spectra training/adapter --data corpus.txt --plot after.png --save calibration.safetensors
    """
    if tol is not None and budget is not None:
        raise click.UsageError("--tol and --budget are two rules for the ranks; give one of them")
    if save is not None and data is None:
        raise click.UsageError("--save writes the statistics of a text; give one with --data")
    check_picture(plot)
    for path in (table, save):
        if path is not None:
            check_writable(path)
    # before torch is imported, which takes seconds
    refuse_absent_path(model, base)
    from .. import AdapterError, Calibration, calibrate, hankel_spectra
    from .open_model import open_named

    loaded = open_named(model, base=base, gguf_file=gguf_file, revision=revision, dtype=dtype, device=device)
    if loaded.config is None and data is None:
        raise AdapterError(
            f"{model} is a model without adapter, whose spectra are those of a text; give one with --data"
        )
    calibration: Calibration | None = None
    try:
        if data is not None:
            rows = loaded.batches(data, length=length, batches=batches, batch_size=batch_size)
            # without an adapter there is nothing to reduce, and all rows can count
            more: dict[str, Any] = {"held_out": 0} if loaded.config is None else {}
            calibration = calibrate(loaded.model, rows, checkpoint=save, **more)
        result = hankel_spectra(loaded.model, calibration)
    except KeyboardInterrupt:
        raise click.Abort(f"interrupted; {_goes_on(save)}") from None
    click.echo(_headline(model, result, calibration))
    click.echo(str(result))
    ranks = None if tol is None and budget is None else result.suggest_ranks(tol=tol, budget=budget)
    if ranks is not None:
        click.echo(f"\n{_suggestion(result, ranks, loaded.config, budget)}")
    if table is not None:
        _write_json(table, result, ranks, calibration)
    if plot is not None:
        layers = plot.with_stem(f"{plot.stem}-layers")
        save_picture(plot, lambda ax: result.plot(ax, ranks=ranks))
        save_picture(layers, lambda ax: result.plot(ax, kind="heatmap", ranks=ranks))
    if save is not None:
        click.echo(f"wrote {save}")


def _goes_on(save: Path | None) -> str:
    if save is None:
        return "with --save it could be resumed"
    if not save.is_file():
        return f"{save} was not written yet, which is done once a minute"
    return f"the same command resumes from {save}, which was written less than a minute or a batch ago"


def _headline(model: str, result: HankelSpectra, calibration: Any) -> str:
    what = "values of the adapter" if result.exact else "gradient of the loss, before training"
    if calibration is None:
        return f"{model}: {what}"
    return f"{model}: {what}; {calibration.tokens:,} tokens, loss {calibration.loss:.4f}"


def _suggestion(
    result: HankelSpectra, ranks: Mapping[int, int], config: Mapping[str, Any] | None, budget: int | None
) -> str:
    """Return the ranks with the values they are based on, the configuration that has them, and cautions."""
    from .._util.tables import table

    level = "noise floor" if result.exact else "null threshold"
    rows = [["layer", "rank", "counted", "last kept", "first left out", level]]
    if result.exact:
        rows[0].append("error bound")
    for i, rank in ranks.items():
        values = result[i]
        left = f"{values[rank]:.2e}" if rank < values.size else ""
        cells = [result.names.get(i, str(i)), str(rank), str(result.significant(i))]
        cells += [f"{values[rank - 1]:.2e}", left, f"{result.threshold(i):.2e}"]
        if result.exact:
            cells.append(f"{2 * float(values[rank:].sum()):.2e}")
        rows.append(cells)
    states = sum(ranks.values())
    lines = [table(rows), f"ranks of {states} states in all:", f"  {_pattern(result, ranks, config)}"]
    if budget is not None and budget > states:
        why = "rounding" if result.exact else "not above the null on this text"
        lines.append(
            f"{budget - states} of the {budget} states were given to no layer: the values left are {why}"
        )
    if not result.exact:
        lines.append("first order only: what becomes useful after training has begun is not measured")
    return "\n".join(lines)


def _pattern(result: HankelSpectra, ranks: Mapping[int, int], config: Mapping[str, Any] | None) -> str:
    """Return the configuration of a new adapter with these ranks, to be pasted."""
    most = max(ranks.values())
    fields = [f"r={most}"]
    for name, default in (("site", "mlp"), ("tap", "input"), ("eigenvalues", "complex")):
        if config is not None and config.get(name, default) != default:
            fields.append(f"{name}={config[name]!r}")
    if config is not None and config.get("layers_to_transform") is not None:
        fields.append(f"layers_to_transform={sorted(ranks)}")
    pattern = {result.names[i]: rank for i, rank in ranks.items() if rank != most}
    if pattern:
        fields.append(f"rank_pattern={pattern}")
    return f"HRMConfig({', '.join(fields)})"


def _write_json(path: Path, result: HankelSpectra, ranks: Mapping[int, int] | None, calibration: Any) -> None:
    from hankelred._util.writing import write_atomically

    content = json.loads(result.to_json())
    if ranks is not None:
        content["ranks"] = {str(i): rank for i, rank in ranks.items()}
    if calibration is not None:
        content["tokens"], content["loss"] = calibration.tokens, calibration.loss
    text = json.dumps(content, indent=2)
    write_atomically(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
    click.echo(f"wrote {path}")


COMMAND = spectra
