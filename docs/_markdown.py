"""Parts of pages in Markdown, for the scripts that write pages of results."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable


def paragraph(text: str, width: int) -> str:
    """Return a paragraph wrapped into lines."""
    return textwrap.fill(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)


def bullets(items: Iterable[str], width: int) -> str:
    """Return a list whose items are wrapped into lines."""
    return "\n".join(
        textwrap.fill(item, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        for item in items
    )


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def listed(words: Iterable[str]) -> str:
    """Return words as an enumeration, as in "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
