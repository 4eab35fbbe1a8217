"""`hankelred identify`: from a record in a file to a model in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .._util.reading import checked_suffix
from ..errors import FileFormatError, HankelredError, count, in_one_line
from ..files import write_model
from ..identification.records import choose_columns, describe_columns, read_columns, time_columns
from ..identification.tables import time_step
from ..models.linear_model import timestep
from .console import check_picture, check_target, comma_separated, print_json, report_written, save_picture
from .options import force_option, json_option
from .streams import MODEL_OUT, TABLE_IN, format_option

if TYPE_CHECKING:
    from ..identification.identify import IdentifiedModel


@click.command(short_help="A model from the record in DATA.")
@click.argument("data", type=TABLE_IN)
@format_option
@click.option(
    "--inputs", default="", help="Input columns: numbers from 0, or header names, with commas. [required]"
)
@click.option("--outputs", default="", help="Output columns, in the same form. [required]")
@click.option(
    "--dt",
    type=float,
    help="Sampling time in seconds (default: that of a column named time, t or seconds, else unspecified).",
)
@click.option("--order", type=int, help="Number of states (default: chosen from the data, up to 12).")
@click.option("--unstable", is_flag=True, help="Allow poles outside the unit circle.")
@click.option(
    "--keep-offsets", is_flag=True, help="Use the signals as they are, without removing their means."
)
@click.option(
    "--missing",
    type=click.Choice(["refuse", "bridge"]),
    default="refuse",
    help="What to do with samples that are nan: bridge fills outputs by the model, and cuts the record where "
    "inputs are missing.",
)
@click.option("--out", type=MODEL_OUT, help="Write the model (.mat, .npz, .json).")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Write spectrum, measured and simulated output as a picture.",
)
@force_option
@json_option
def identify(
    data: Path,
    inputs: str,
    outputs: str,
    dt: float | None,
    order: int | None,
    unstable: bool,
    keep_offsets: bool,
    missing: Literal["refuse", "bridge"],
    out: Path | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Identify a model from the record in DATA: columns of text, CSV (with or without header), or .mat.

    A fit of 1 is perfect, 0 no better than the mean. The held-back fit is that of a model
    estimated from the first 70 % of the record, on the last 30 %.

    \b
    Example:
      hankelred identify record.csv --inputs u --outputs y1,y2 --dt 0.1 --out model.json --plot model.png
      hankelred identify dryer.dat --inputs 0 --outputs 1 --dt 0.08 --order 4
    """
    from ..identification.identify import identify as identify_record

    check_picture(plot)
    if out is not None:
        checked_suffix(out)
    check_target(out, data, force)
    check_target(plot, data, force)
    if dt is not None and not dt > 0:
        raise HankelredError(f"--dt must be a positive number of seconds, got {dt:g}")
    table, names = read_columns(data)
    if not comma_separated(inputs) or not comma_separated(outputs):
        raise FileFormatError(
            f"name the columns with --inputs and --outputs; {in_one_line(data)} has "
            f"{describe_columns(names, table.shape[1])}"
        )
    input_columns = choose_columns(comma_separated(inputs), names, table.shape[1])
    output_columns = choose_columns(comma_separated(outputs), names, table.shape[1])
    duplicates = sorted(set(input_columns) & set(output_columns))
    if duplicates:
        raise FileFormatError(f"column {duplicates[0]} is both an input and an output")
    u, y = table[:, input_columns].T, table[:, output_columns].T
    if dt is None:
        times = time_columns(names, used=[*input_columns, *output_columns])
        dt = time_step(table[:, times[0]], "the record") if times else None
    model = identify_record(
        u,
        y,
        order,
        dt=True if dt is None else dt,
        offsets=not keep_offsets,
        stable=not unstable,
        missing=missing,
    )
    labels = [names[column] if names else f"column {column}" for column in output_columns]
    if as_json:
        print_json(
            {
                "samples": u.shape[1],
                "inputs": u.shape[0],
                "outputs": y.shape[0],
                "dt": model.model.dt,
                "order": model.order,
                "output_names": labels,
                "fit": model.fit,
                "held_back_fit": model.held_back_fit,
                "hankel_singular_values": model.hankel_singular_values,
                "noise_floor": model.noise_floor,
            }
        )
    else:
        click.echo(
            f"{u.shape[1]} samples, {count(u.shape[0], 'input')}, {count(y.shape[0], 'output')} -> order "
            f"{model.order}, {timestep(model.model.dt)}"
        )
        for label, fit, held_back in zip(labels, model.fit, model.held_back_fit, strict=True):
            click.echo(f"fit of {in_one_line(label, 60)}: {fit:.4f} (held back: {held_back:.4f})")
    if out is not None:
        write_model(model.model, out)
        report_written(out, quiet=as_json)
    if plot is not None:
        save_picture(plot, lambda ax: draw_identification(model, u, y, labels, ax), quiet=as_json)


def draw_identification(model: IdentifiedModel, u: Any, y: Any, labels: list[str], ax: Any) -> None:
    """Replace `ax` by the spectrum and, below it, every output as measured and as simulated or predicted."""
    from ..reduction.plots import plot_hankel_singular_values

    figure = ax.figure
    ax.remove()
    p = y.shape[0]
    figure.set_size_inches(8, 3.2 + 2.4 * p)
    above, below = figure.subplots(2, 1, height_ratios=[1.3, p])
    plot_hankel_singular_values(model, ax=above)
    comparison = model.compare(u, y)
    replace(comparison, output_labels=tuple(labels)).plot(ax=below)
