"""The file name "-": standard input, and standard output, whose format is given by --format."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._util.reading import recognized_format
from ..errors import FileFormatError

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # before click 8.4 it takes no parameter

#: Name, without ending, of the file that stands in for a stream.
STANDARD_INPUT, STANDARD_OUTPUT = "standard-input", "standard-output"
_FORMAT = "hankelred.format"
#: The format in which standard input is read, and whether standard output is written.
_READ, _WRITTEN = "hankelred.read", "hankelred.written"
#: Formats of each kind of file on streams, the usual one first.
_MODELS, _TABLES = ("json", "npz", "mat"), ("csv",)
#: Bytes by which the format of standard input is recognized.
_START = 4096


def with_stream_names(message: str) -> str:
    """Return a message with the names of streams in place of the files that stand in for them."""
    for name in (STANDARD_INPUT, STANDARD_OUTPUT):
        message = re.sub(rf"\S*{name}\.\w+", name.replace("-", " "), message)
    return message


class InputFile(_ParamType):
    """A file to read; "-" is standard input.

    Parameters
    ----------
    formats : tuple of str
        Formats that --format may name where the first bytes of standard input do not tell; otherwise it is
        the first of these.
    """

    name = "path"

    def __init__(self, formats: tuple[str, ...]) -> None:
        self._formats = formats

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; standard input is copied to a file that is removed at the end of the command."""
        if str(value) != "-" or ctx is None:
            return Path(value)
        if ctx.meta.get(STANDARD_INPUT):
            raise FileFormatError("standard input can be read once: give - for one of the files only")
        ctx.meta[STANDARD_INPUT] = True
        start = b"" if sys.stdin is None else sys.stdin.buffer.read(_START)  # None where it is closed
        if not start:
            raise FileFormatError("standard input is empty")
        given = ctx.meta.get(_FORMAT)
        # --format may be meant for standard output, so that the bytes come first
        kind = recognized_format(start) or (given if given in self._formats else self._formats[0])
        ctx.meta[_READ] = kind
        path = _stand_in(ctx, STANDARD_INPUT, kind)
        with path.open("wb") as file:
            file.write(start)
            shutil.copyfileobj(sys.stdin.buffer, file)
        return path


class OutputFile(_ParamType):
    """A file to write; "-" is standard output, and what is printed goes to standard error.

    Parameters
    ----------
    what : str
        What is written, for messages.
    formats : tuple of str
        Formats that --format may name; without it, it is the first of these.
    """

    name = "path"

    def __init__(self, what: str, formats: tuple[str, ...]) -> None:
        self._what = what
        self._formats = formats

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; standard output is written when the command ends, by copying a file."""
        if str(value) != "-" or ctx is None:
            return Path(value)
        kind = ctx.meta.get(_FORMAT) or self._formats[0]
        if kind not in self._formats:
            raise FileFormatError(
                f"--format of {self._what} on standard output must be {' or '.join(self._formats)}, "
                f"got {kind}"
            )
        ctx.meta[_WRITTEN] = True
        path = _stand_in(ctx, STANDARD_OUTPUT, kind)

        def copy() -> None:
            if path.is_file():
                output = sys.stdout.buffer
                output.write(path.read_bytes())
                output.flush()

        ctx.call_on_close(copy)
        ctx.with_resource(contextlib.redirect_stdout(sys.stderr))  # left before the copy is made
        return path


def _stand_in(ctx: click.Context, name: str, kind: str) -> Path:
    folder = tempfile.mkdtemp()
    ctx.call_on_close(lambda: shutil.rmtree(folder, ignore_errors=True))
    return Path(folder) / f"{name}.{kind}"


def format_option(function: Any) -> Any:
    """Add --format to a command that reads or writes a stream."""

    def keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        ctx.meta[_FORMAT] = value

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        _refuse_unused_format(click.get_current_context())
        return function(*args, **options)

    return click.option(
        "--format",
        type=click.Choice(["json", "npz", "mat", "csv"]),
        is_eager=True,  # before the files, whatever the order on the command line
        expose_value=False,
        callback=keep,
        help="Format of - as an output; json for models, csv for tables, unless given. Of - as an input only "
        "where the first bytes do not tell.",
    )(checked)


def _refuse_unused_format(ctx: click.Context) -> None:
    """Raise for a --format that would be ignored: of no stream, or of an input that is in another format."""
    given = ctx.meta.get(_FORMAT)
    if given is None or ctx.meta.get(_WRITTEN):
        return
    kind = ctx.meta.get(_READ)
    if kind is None:
        raise FileFormatError(
            f"--format {given} is that of -, standard input or output, and no file is -: leave it out; the "
            "ending of a file tells its format"
        )
    if given != kind:
        raise FileFormatError(
            f"--format {given} is not that of standard input, which is read as {kind}: leave it out"
        )


MODEL_IN, MODEL_OUT = InputFile(_MODELS), OutputFile("a model", _MODELS)
TABLE_IN, TABLE_OUT = InputFile(_TABLES), OutputFile("a table", _TABLES)
