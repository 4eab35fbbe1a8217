"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .._util.checks import is_rounded_to_zero
from ..errors import short_repr
from ..models.linear_model import Timebase, validated_timebase
from .streams import MODEL_IN, format_option

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # before click 8.4 it takes no parameter


class Timestep(_ParamType):
    """A timebase on the command line: 0, true or seconds."""

    name = "0|true|SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Timebase:
        """Turn the text into a timebase."""
        text = str(value)
        if text.lower() == "true":
            return True
        try:
            # a step rounded to 0 would turn the model into a continuous one
            return validated_timebase(text if is_rounded_to_zero(text) else float(text))
        except ValueError:
            self.fail(f"{short_repr(text)} is neither 0 nor true nor seconds between samples", param, ctx)


def model_options(function: Any) -> Any:
    """Add the options of every command that reads a model."""
    function = click.option(
        "--stability-tol",
        type=float,
        default=1e-13,
        show_default=True,
        help="Relative distance from the stability boundary below which a pole is marginal.",
    )(function)
    return click.argument("model", type=MODEL_IN)(dt_option(format_option(function)))


def dt_option(function: Any) -> Any:
    """Add --dt to a command that reads a model."""
    return click.option(
        "--dt",
        type=Timestep(),
        help="Timebase, instead of that of the file (0, continuous, if the file has none).",
    )(function)


def region_options(function: Any) -> Any:
    """Add the options that say where an error counts."""
    for option in (
        click.option("--regularization", type=float, help="Gain below which errors count as absolute ones."),
        click.option("--horizon", type=float, help="Time after an impulse that counts (s, or samples)."),
        click.option(
            "--band",
            type=(float, float),
            multiple=True,
            help="Angular frequencies that count (rad/s, or rad/sample); may be repeated.",
        ),
    ):
        function = option(function)
    return function


def force_option(function: Any) -> Any:
    """Add --force to a command that writes files."""
    return click.option(
        "--force",
        is_flag=True,
        help="Replace a file even where it is a link, write-protected, or the one that is read.",
    )(function)


def json_option(function: Any) -> Any:
    """Add --json to a command that prints a result."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object; infinite values are null."
    )(function)
