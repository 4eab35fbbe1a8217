"""Parts of pages in Markdown, for the scripts that write pages of results."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from hankelred_llm.experiments.statistics import Difference


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


def shown(difference: Difference, digits: int) -> str:
    """Return a difference, its interval over seeds where there is one, and a star where it is clear."""

    def signed(value: float) -> str:
        return f"{value:+z.{digits}f}"

    if difference.over_seeds is None:
        return signed(difference.mean)
    low, high = difference.over_seeds
    return f"{signed(difference.mean)} [{signed(low)}, {signed(high)}]" + "*" * difference.clear
