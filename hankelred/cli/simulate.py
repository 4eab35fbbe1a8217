"""`hankelred simulate`: the outputs of a model for the inputs in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from .._util.writing import write_atomically
from ..errors import FileFormatError, count, in_one_line
from ..files import read_model
from ..models.linear_model import Timebase
from .console import check_folder, check_target, comma_separated, report_written
from .options import dt_option, force_option


@click.command(short_help="The outputs of MODEL for the inputs in DATA.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@dt_option
@click.option("--inputs", default="", help="Columns of the inputs, by names or numbers (default: all).")
@click.option("--step", type=float, help="Seconds between samples of a continuous model.")
@click.option(
    "--hold",
    type=click.Choice(["zoh", "foh"]),
    default="zoh",
    show_default=True,
    help="The input between samples: constant, or linear.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write the outputs (.csv).")
@force_option
def simulate(
    model: Path,
    data: Path,
    dt: Timebase,
    inputs: str,
    step: float | None,
    hold: Any,
    out: Path,
    force: bool,
) -> None:
    """Simulate MODEL from rest for the inputs in DATA, a table of samples as for identify.

    A column named time, t or seconds is the time, which gives --step.

    \b
    Example:
      hankelred simulate model.mat inputs.csv --step 0.01 --out outputs.csv
    """
    from ..identification.records import choose_columns, describe_columns, read_columns
    from ..identification.tables import TIME_NAMES, time_step
    from ..simulation.simulate import simulate as simulate_model

    if out.suffix.lower() != ".csv":
        raise FileFormatError(f"{in_one_line(out)}: the outputs are written to a file that ends in .csv")
    check_folder(out)
    for source in (model, data):
        check_target(out, source, force)
    system: Any = read_model(model, dt)
    table, names = read_columns(data)
    times = [k for k, name in enumerate(names or []) if name.lower() in TIME_NAMES]
    if inputs:
        columns = choose_columns(comma_separated(inputs), names, table.shape[1])
    else:
        columns = [k for k in range(table.shape[1]) if k not in times]
    if len(columns) != system.n_inputs:
        raise FileFormatError(
            f"the model has {count(system.n_inputs, 'input')}, and {len(columns)} columns are named; choose "
            f"them with --inputs: {in_one_line(data)} has {describe_columns(names, table.shape[1])}"
        )
    times = [k for k in times if k not in columns]
    if step is None and times:
        step = time_step(table[:, times[0]], "the table")
    y = simulate_model(system, table[:, columns].T, step=step, hold=hold)
    if np.iscomplexobj(y):
        raise FileFormatError("the outputs are complex, and a .csv file has no complex numbers")
    labels = getattr(system, "output_labels", None) or [f"y{i}" for i in range(system.n_outputs)]
    head = ",".join(labels)
    columns_out = np.atleast_2d(y).T
    if times:
        head, columns_out = f"time,{head}", np.column_stack([table[:, times[0]], columns_out])
    write_atomically(
        out, lambda name: np.savetxt(name, columns_out, fmt="%.17g", delimiter=",", header=head, comments="")
    )
    click.echo(f"{count(y.shape[-1], 'sample')}, {count(system.n_outputs, 'output')}")
    report_written(out)
