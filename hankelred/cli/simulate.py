"""`hankelred simulate`: the outputs of a model for the inputs in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from .._util.writing import check_suffix, check_writable, write_atomically
from ..errors import FileFormatError, count, in_one_line
from ..files import read_model
from ..models.linear_model import Timebase
from .console import check_target, comma_separated, print_json, report_written, sizes_of
from .options import dt_option, force_option, json_option
from .streams import MODEL_IN, TABLE_IN, TABLE_OUT, format_option


@click.command(short_help="The outputs of MODEL for the inputs in DATA.")
@click.argument("model", type=MODEL_IN)
@click.argument("data", type=TABLE_IN)
@dt_option
@format_option
@click.option("--inputs", default="", help="Columns of the inputs, by names or numbers (default: all).")
@click.option("--step", type=float, help="Seconds between samples of a continuous model.")
@click.option(
    "--hold",
    type=click.Choice(["zoh", "foh"]),
    default="zoh",
    show_default=True,
    help="The input between samples: constant, or linear.",
)
@click.option("--out", type=TABLE_OUT, required=True, help="Write the outputs (.csv).")
@json_option
@force_option
def simulate(
    model: Path,
    data: Path,
    dt: Timebase,
    inputs: str,
    step: float | None,
    hold: Any,
    out: Path,
    as_json: bool,
    force: bool,
) -> None:
    """Simulate MODEL from rest for the inputs in DATA, a table of samples as for identify.

    A column named time, t or seconds is the time, which gives --step.

    \b
    Example:
      hankelred simulate model.mat inputs.csv --step 0.01 --out outputs.csv
    """
    from ..identification.records import choose_columns, describe_columns, read_columns, time_columns
    from ..identification.tables import is_same_step, time_step
    from ..simulation.simulate import simulate as simulate_model

    check_suffix(out, [".csv"], "a table of outputs")
    check_writable(out)
    for source in (model, data):
        check_target(out, source, force)
    system: Any = read_model(model, dt)
    table, names = read_columns(data)
    if inputs:
        columns = choose_columns(comma_separated(inputs), names, table.shape[1])
    else:
        times = time_columns(names)
        columns = [k for k in range(table.shape[1]) if k not in times]
    if len(columns) != system.n_inputs:
        raise FileFormatError(
            f"the model has {count(system.n_inputs, 'input')}, and there are {len(columns)} columns; choose "
            f"them with --inputs: {in_one_line(data)} has {describe_columns(names, table.shape[1])}"
        )
    time = next(iter(time_columns(names, used=columns)), None)
    if time is not None:
        step_of_times = time_step(table[:, time], "the table")
        if step is None:
            step = step_of_times
        elif step_of_times is not None and not is_same_step(step, step_of_times):
            raise FileFormatError(
                f"--step {step:g} disagrees with the column {(names or [])[time]!r}, whose step is "
                f"{step_of_times:g}: omit --step, or remove the column"
            )
    if step is None and not system.is_discrete and system.n_states:
        raise FileFormatError("the model is continuous: give --step, the seconds between samples")
    y = simulate_model(system, table[:, columns].T, step=step, hold=hold)
    if np.iscomplexobj(y):
        raise FileFormatError("the outputs are complex, and a .csv file has no complex numbers")
    head = ",".join(f"y{i}" for i in range(system.n_outputs))
    columns_out = np.atleast_2d(y).T
    if time is not None:
        head, columns_out = f"time,{head}", np.column_stack([table[:, time], columns_out])
    write_atomically(
        out, lambda name: np.savetxt(name, columns_out, fmt="%.17g", delimiter=",", header=head, comments="")
    )
    if as_json:
        print_json({"samples": y.shape[-1], **sizes_of(system)})
    else:
        click.echo(f"{count(y.shape[-1], 'sample')}, {count(system.n_outputs, 'output')}")
    report_written(out, quiet=as_json)
