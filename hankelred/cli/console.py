"""What every command of both packages shares: how it ends, what it writes, and how it counts."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from .._util.writing import check_writable, write_atomically
from ..errors import FileFormatError, HankelredError, in_one_line, short_repr
from ..models.linear_model import Timebase

PICTURES = (".png", ".pdf", ".svg")


def run(commands: click.Group, program: str, *, interrupted: str = "interrupted") -> None:
    """Run the commands of a program; what is wrong is said in one line, with exit status 2.

    Parameters
    ----------
    commands : click.Group
    program : str
        The name it was called by.
    interrupted : str
        What is said after Ctrl-C where the command itself says nothing.
    """
    warnings.showwarning = lambda message, *_: click.echo(f"warning: {in_one_line(message)}", err=True)
    try:
        commands.main(prog_name=program, standalone_mode=False)
    except click.exceptions.Abort as stop:
        _stop(str(stop) or interrupted, 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        _stop(" ".join(error.format_message().split()) + hint, 2)
    except HankelredError as error:
        _stop(str(error), 2)
    except MemoryError:
        _stop("not enough memory for a model of this size", 2)


def _stop(message: str, status: int) -> None:
    click.echo(f"error: {in_one_line(message)}", err=True)
    sys.exit(status)


def count(n: int, what: str) -> str:
    """Return '1 input' or '2 inputs'."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def timestep(dt: Timebase) -> str:
    """Return the step of a discrete model in words."""
    return "dt unspecified" if dt is True else f"dt = {dt}"


def console() -> Any:
    """Return a console for tables, as wide as needed where the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100, highlight=False)


def force_option(function: Any) -> Any:
    """Add --force to a command that writes files."""
    return click.option(
        "--force",
        is_flag=True,
        help="Replace a file even where it is a link, write-protected, or the one that is read.",
    )(function)


def check_target(path: Path | None, source: Path, force: bool) -> None:
    """Refuse to write over what is easily lost, before any work is done.

    Parameters
    ----------
    path : path or None
        What is to be written.
    source : path
        What the command reads.
    force : bool
        Whether the user has said that it may be replaced.
    """
    if path is None:
        return
    check_folder(path)
    named = in_one_line(path)
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileFormatError(f"cannot write {named}: {error.strerror or error}") from None
    if stat.S_ISDIR(there.st_mode):
        raise FileFormatError(f"cannot write {named}: it is a folder")
    what = None
    if stat.S_ISLNK(there.st_mode):
        what = f"a symbolic link (to {in_one_line(os.readlink(path))})"
    elif not stat.S_ISREG(there.st_mode):
        what = "no ordinary file"
    elif _same_file(path, source):
        what = "the file that is read"
    elif not there.st_mode & 0o222 or not os.access(path, os.W_OK):  # root may write everything
        what = "write-protected"
    if what and not force:
        raise FileFormatError(f"{named} is {what}; --force replaces it")


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # the other is not there; reading it will say so
        return False


def check_picture(path: Path | None) -> None:
    """Refuse an ending that is no picture, or a missing folder, before any work is done."""
    if path is None:
        return
    if path.suffix.lower() not in PICTURES:
        raise FileFormatError(
            f"{in_one_line(path)}: a picture ends in {', '.join(PICTURES)}, "
            f"got {short_repr(path.suffix or 'no ending')}"
        )
    check_folder(path)


def check_folder(path: Path) -> None:
    """Refuse a folder that is not there or cannot be written to, before any work is done."""
    check_writable(path)


def save_picture(path: Path, draw: Any) -> None:
    """Draw on a new figure and write it; the file is complete or not there at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    write_atomically(path, lambda name: figure.savefig(name, format=path.suffix[1:].lower()))
    click.echo(f"wrote {in_one_line(path)}")
