"""Plain-text tables of reports."""

from __future__ import annotations


def table(rows: list[list[str]]) -> str:
    """Format rows of cells as text; the first row is the header."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [lines[0].rstrip(), "-" * (sum(widths) + 2 * len(widths) - 2), *map(str.rstrip, lines[1:])]
    )
