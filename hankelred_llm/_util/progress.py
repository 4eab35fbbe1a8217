"""The progress bar of what can take long."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def watched(items: Iterable[Item], title: str, shown: bool | None) -> Iterable[Item]:
    """Go through the items under a bar on stderr; None: where that is a terminal."""
    if not (sys.stderr.isatty() if shown is None else shown):
        return items
    console = Console(stderr=True)
    return track(items, title, console=console, transient=console.is_terminal)
