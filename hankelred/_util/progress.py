"""The progress bar of what can take long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


def on_terminal() -> bool:
    """Whether somebody may be watching."""
    return sys.stderr.isatty()


@contextmanager
def described(title: str, shown: bool) -> Iterator[Callable[[str], None]]:
    """Show a line on stderr, if `shown`, and yield the function that says how far the work is."""
    if not shown:
        yield lambda text: None
        return
    from rich.console import Console
    from rich.status import Status

    with Status(title, console=Console(stderr=True)) as status:
        yield lambda text: status.update(f"{title}: {text}")


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
