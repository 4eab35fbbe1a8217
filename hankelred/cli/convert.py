"""`hankelred convert`: a model from one kind of file to another."""

from __future__ import annotations

from pathlib import Path

import click

from .._util.reading import checked_suffix
from ..files import read_model, write_model
from ..models.linear_model import Timebase
from .console import check_target, describe, print_json, report_written, sizes_of
from .options import dt_option, force_option, json_option
from .streams import MODEL_IN, MODEL_OUT, format_option


@click.command(short_help="MODEL in another kind of file.")
@click.argument("model", type=MODEL_IN)
@click.argument("out", type=MODEL_OUT)
@dt_option
@format_option
@json_option
@force_option
def convert(model: Path, out: Path, dt: Timebase, as_json: bool, force: bool) -> None:
    """Write MODEL to OUT (.mat, .npz, .json), as A, B, C, D and dt, with E if it is improper.

    Models of more than 5000 states stay sparse, and are not written.

    \b
    Example:
      hankelred convert model.mat copy.json --dt 0.1
    """
    checked_suffix(out)
    check_target(out, model, force)
    system = read_model(model, dt)
    write_model(system, out)
    if as_json:
        print_json(sizes_of(system))
    else:
        click.echo(describe(system))
    report_written(out, quiet=as_json)
