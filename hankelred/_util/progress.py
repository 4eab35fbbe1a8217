"""A progress bar for long computations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


def on_terminal() -> bool:
    """Return whether stderr is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def with_status_line(title: str, visible: bool) -> Iterator[Callable[[str], None]]:
    """Show a line on stderr, if `visible`, and yield the function that replaces its text."""
    if not visible:
        yield lambda text: None
        return
    from rich.console import Console
    from rich.status import Status

    with Status(title, console=Console(stderr=True)) as status:
        yield lambda text: status.update(f"{title}: {text}")


def with_progress_bar(
    items: Iterable[Item], title: str, visible: bool, total: int, size: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """Yield the items, each of which counts `size` of `total`; show a bar on stderr if `visible`."""
    if not visible:
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
