"""The progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item], title: str, shown: bool | None) -> Iterable[Item]:
    """Iterate over items with a progress bar on stderr; with `shown` None only if stderr is a terminal."""
    if not (sys.stderr.isatty() if shown is None else shown):
        return items
    console = Console(stderr=True)
    return track(items, title, console=console, transient=console.is_terminal)
