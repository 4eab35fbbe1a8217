"""The file name "-": standard input and standard output, whose format is given by --format."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import FileFormatError

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # before click 8.4 it takes no parameter

#: Name, without ending, of the file that stands in for a stream.
STANDARD_INPUT, STANDARD_OUTPUT = "standard-input", "standard-output"
_FORMAT = "hankelred.format"


def with_stream_names(message: str) -> str:
    """Return a message with the names of streams in place of the files that stand in for them."""
    for name in (STANDARD_INPUT, STANDARD_OUTPUT):
        message = re.sub(rf"\S*{name}\.\w+", name.replace("-", " "), message)
    return message


class InputFile(_ParamType):
    """A file to read; "-" is standard input.

    Parameters
    ----------
    default : str
        Format of standard input without --format.
    """

    name = "path"

    def __init__(self, default: str) -> None:
        self._default = default

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; standard input is copied to a file that is removed at the end of the command."""
        if str(value) != "-" or ctx is None:
            return Path(value)
        if ctx.meta.get(STANDARD_INPUT):
            raise FileFormatError("standard input can be read once: give - for one of the files only")
        ctx.meta[STANDARD_INPUT] = True
        path = _stand_in(ctx, STANDARD_INPUT, self._default)
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        return path


class OutputFile(_ParamType):
    """A file to write; "-" is standard output, and what is printed goes to standard error.

    Parameters
    ----------
    default : str
        Format of standard output without --format.
    """

    name = "path"

    def __init__(self, default: str) -> None:
        self._default = default

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; standard output is written when the command ends, by copying a file."""
        if str(value) != "-" or ctx is None:
            return Path(value)
        path = _stand_in(ctx, STANDARD_OUTPUT, self._default)

        def copy() -> None:
            if path.is_file():
                output = sys.stdout.buffer
                output.write(path.read_bytes())
                output.flush()

        ctx.call_on_close(copy)
        ctx.with_resource(contextlib.redirect_stdout(sys.stderr))  # left before the copy is made
        return path


def _stand_in(ctx: click.Context, name: str, default: str) -> Path:
    folder = tempfile.mkdtemp()
    ctx.call_on_close(lambda: shutil.rmtree(folder, ignore_errors=True))
    return Path(folder) / f"{name}.{ctx.meta.get(_FORMAT) or default}"


def format_option(function: Any) -> Any:
    """Add --format to a command that reads or writes a stream."""

    def keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        ctx.meta[_FORMAT] = value

    return click.option(
        "--format",
        type=click.Choice(["json", "npz", "mat", "csv"]),
        is_eager=True,  # before the files, whatever the order on the command line
        expose_value=False,
        callback=keep,
        help="Format of - (standard input or output); json for models, csv for tables, unless given.",
    )(function)


MODEL_IN, MODEL_OUT = InputFile("json"), OutputFile("json")
TABLE_IN, TABLE_OUT = InputFile("csv"), OutputFile("csv")
