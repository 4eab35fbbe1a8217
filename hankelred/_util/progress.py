"""The progress bar of what can take long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def on_terminal() -> bool:
    """Whether somebody may be watching."""
    return sys.stderr.isatty()


def watched(
    items: Iterable[Item], title: str, shown: bool, total: int, size: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """Go through the items, each of which counts `size` of `total`, under a bar on stderr if `shown`."""
    if not shown:
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        for item in items:
            yield item
            bar.advance(task, size(item))
