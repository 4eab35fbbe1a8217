"""`hankelred norm`: a norm of a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from ..files import read_model
from ..models.linear_model import LinearModel, Timebase
from ..models.sparse_model import any_model
from .console import describe, print_json, sizes_of
from .options import json_option, model_options


@click.command(short_help="H2, H-infinity, L-infinity or Hankel norm of MODEL.")
@model_options
@click.option(
    "--kind", type=click.Choice(["h2", "hinf", "linf", "hankel"]), default="hinf", show_default=True
)
@json_option
def norm(model: Path, dt: Timebase, stability_tol: float, kind: Any, as_json: bool) -> None:
    """Print a norm of MODEL: of its largest gain (hinf, linf) also the frequency.

    \b
    Example:
      hankelred norm model.mat --kind h2
    """
    from ..reduction.norms import norm as norm_of

    system = read_model(model, dt)
    # of large sparse models the frequency of the largest gain is not known
    with_frequency = kind in ("hinf", "linf") and isinstance(any_model(system), LinearModel)
    result = norm_of(system, kind, return_frequency=with_frequency, stability_tol=stability_tol)
    value, frequency = result if with_frequency else (result, None)
    if as_json:
        print_json({**sizes_of(system), "kind": kind, "norm": value, "frequency": frequency})
        return
    unit = "rad/sample" if system.dt is True else "rad/s"
    at = "" if frequency is None or math.isnan(frequency) else f" at {frequency:.6g} {unit}"
    click.echo(f"{describe(system)}\n{kind} norm: {value:.6e}{at}")
