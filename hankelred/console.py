"""What every command of both packages shares: how it ends, what it writes, and how it counts."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import click

from ._errors import FileFormatError, HankelredError
from .files import write_atomically
from .models import Timebase

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
    warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
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
    click.echo(f"error: {message}", err=True)
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


def check_picture(path: Path | None) -> None:
    """Refuse an ending that is no picture, or a missing folder, before any work is done."""
    if path is None:
        return
    if path.suffix.lower() not in PICTURES:
        raise FileFormatError(
            f"{path}: a picture ends in {', '.join(PICTURES)}, got {path.suffix or 'no ending'!r}"
        )
    check_folder(path)


def check_folder(path: Path) -> None:
    """Refuse a folder that is not there before any work is done."""
    if not path.parent.is_dir():
        raise FileFormatError(f"cannot write {path}: the folder {path.parent} does not exist")


def save_picture(path: Path, draw: Any) -> None:
    """Draw on a new figure and write it; the file is complete or not there at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    write_atomically(path, lambda name: figure.savefig(name, format=path.suffix[1:].lower()))
    click.echo(f"wrote {path}")
