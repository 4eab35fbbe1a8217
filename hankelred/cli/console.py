"""Functions shared by the commands of both packages: exit status, messages, output files and pictures."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import click

from .._util.writing import check_page_suffix, check_suffix, check_writable, write_atomically
from ..errors import FileFormatError, HankelredError, count, in_one_line
from ..models.linear_model import timestep
from .streams import STANDARD_OUTPUT, with_stream_names

PICTURES = (".png", ".pdf", ".svg")


def run(commands: click.Group, program: str, *, interrupted: str = "interrupted") -> None:
    """Run the commands of a program; an error is reported in one line, with exit status 2.

    Parameters
    ----------
    commands : click.Group
    program : str
        Its name on the command line.
    interrupted : str
        The message after Ctrl-C where the command has none of its own.
    """
    _replace_closed_streams()
    warnings.showwarning = lambda message, *_: _say(f"warning: {in_one_line(message)}")
    try:
        status = _status_of(commands, program, interrupted)
        sys.stdout.flush()
    except OSError as error:  # at the end, where the disk is full
        status = _unwritten(error)
    if status:
        sys.exit(status)


def _status_of(commands: click.Group, program: str, interrupted: str) -> int:
    """Run the commands; print what is wrong, and return the exit status."""
    try:
        commands.main(prog_name=program, standalone_mode=False)
    except click.exceptions.Abort as stop:
        return _failed(str(stop) or interrupted, 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        return _failed(" ".join(error.format_message().split()) + hint)
    except HankelredError as error:
        return _failed(str(error))
    except MemoryError:
        return _failed("not enough memory for a model of this size")
    return 0


def _replace_closed_streams() -> None:
    """Refuse a standard output that is closed (>&-) before any work; drop messages where 2>&- says so.

    Python has None in their place, and the next file that is opened has their number.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
    if sys.stdout is None:
        _say("error: standard output is closed: redirect it to a file, or to /dev/null")
        sys.exit(2)


def _failed(message: str, status: int = 2) -> int:
    _say(f"error: {with_stream_names(in_one_line(message))}")
    return status


def _say(text: str) -> None:
    """Print on standard error, which may be closed at its other end, or full."""
    try:
        click.echo(text, err=True)
    except OSError:
        _drop(sys.stderr)


def _unwritten(error: OSError) -> int:
    """Report output that could not be written; a reader that stopped early is no error to report."""
    _drop(sys.stdout)
    if error.errno == errno.EPIPE:
        return 1
    where = in_one_line(error.filename) if error.filename else "the output"
    return _failed(f"cannot write {where}: {error.strerror or error}")


def _drop(stream: TextIO) -> None:
    """Let go nowhere what is left in a stream: at the end of the process it would fail again."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def comma_separated(text: str) -> list[str]:
    """Return the entries of a list on the command line."""
    return [item.strip() for item in text.split(",") if item.strip()]


def print_json(content: dict[str, Any]) -> None:
    """Print results as one JSON object, in which values that are not finite are null."""
    if sys.stdout is sys.stderr:
        raise HankelredError("--json and --out - cannot both have standard output: give --out a file")
    click.echo(json.dumps(_for_json(content), indent=1))


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_json(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_for_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_written(path: Path, *, quiet: bool = False) -> None:
    """Print that a file was written; with --json on standard error."""
    if path.stem != STANDARD_OUTPUT:
        click.echo(f"wrote {in_one_line(path)}", err=quiet)


def sizes_of(system: Any) -> dict[str, Any]:
    """Return the sizes and the timebase of a model by name."""
    return {
        # a second-order model has no E
        "states": getattr(system, "n_all_states", system.n_states),
        "inputs": system.n_inputs,
        "outputs": system.n_outputs,
        "dt": system.dt,
    }


def describe(system: Any) -> str:
    """Return the sizes and the timebase of a model in one line."""
    sizes = sizes_of(system)
    time = f"discrete, {timestep(system.dt)}" if system.is_discrete else "continuous"
    return ", ".join([*(count(sizes[f"{what}s"], what) for what in ("state", "input", "output")), time])


def console() -> Any:
    """Return a console for tables, as wide as needed where the output is no terminal."""
    from rich.console import Console

    # https://no-color.org: NO_COLOR switches bold and dim off too
    plain = False if os.environ.get("NO_COLOR") else None
    return Console(width=None if sys.stdout.isatty() else 100, highlight=False, force_terminal=plain)


def print_table(table: Any) -> None:
    """Print a table; on a narrow terminal without lines around it, and never with digits cut off."""
    from rich.measure import Measurement

    output = console()
    unlimited = output.options.update(width=10_000)
    if Measurement.get(output, unlimited, table).maximum > output.width:
        table.box, table.padding = None, (0, 1, 0, 0)
        output.width = max(output.width, Measurement.get(output, unlimited, table).maximum)
    output.print(table)


def check_target(path: Path | None, source: Path, force: bool) -> None:
    """Raise before any computation if the output would replace a file that is easily lost.

    Parameters
    ----------
    path : path or None
        The file to write.
    source : path
        The file that the command reads.
    force : bool
        Whether the user has given --force.
    """
    if path is None:
        return
    check_writable(path)
    name = in_one_line(path)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileFormatError(f"cannot write {name}: {error.strerror or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise FileFormatError(f"cannot write {name}: it is a folder")
    obstacle = None
    if stat.S_ISLNK(status.st_mode):
        obstacle = f"a symbolic link (to {in_one_line(os.readlink(path))})"
    elif not stat.S_ISREG(status.st_mode):
        obstacle = "no ordinary file"
    elif _same_file(path, source):
        obstacle = "the file that is read"
    elif not status.st_mode & 0o222 or not os.access(path, os.W_OK):  # root may write everything
        obstacle = "write-protected"
    if obstacle and not force:
        raise FileFormatError(f"{name} is {obstacle}; --force replaces it")


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # the other does not exist; reading it raises the error
        return False


def check_picture(path: Path | None) -> None:
    """Raise before any computation if the ending is not of a picture, or the folder is missing."""
    if path is None:
        return
    _refuse_standard_output(path, "a picture")
    check_suffix(path, PICTURES, "a picture")
    check_writable(path)


def check_page(path: Path | None) -> None:
    """Raise before any computation if the ending is not that of a page, or the folder is missing."""
    if path is None:
        return
    _refuse_standard_output(path, "a report")
    check_page_suffix(path)
    check_writable(path)


def _refuse_standard_output(path: Path, what: str) -> None:
    if str(path) == "-":
        raise FileFormatError(f"{what} cannot go to standard output: name a file")


def save_picture(path: Path, draw: Any, *, quiet: bool = False) -> None:
    """Draw on a new figure and write it to a file, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    write_atomically(path, lambda name: figure.savefig(name, format=path.suffix[1:].lower()))
    report_written(path, quiet=quiet)
