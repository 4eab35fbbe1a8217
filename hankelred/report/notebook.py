"""What a notebook shows of a result: tables, and pictures drawn without touching the user's figures."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..plotting.draw import Spectrum, draw_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table_with_spectrum(rows: Iterable[tuple[str, str]], spectrum: Spectrum) -> str:
    """Return HTML with the rows as a table of names and values, beside the Hankel spectrum."""

    def draw(ax: Axes) -> None:
        draw_spectrum(spectrum, ax)
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
        ax.set_title("")

    return side_by_side(facts_table(rows), small_picture(draw))


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return an HTML table of names and values."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def headed_table(rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table whose first row is the heading."""
    heading, *lines = rows
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heading)
    body = (f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in line)}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def small_picture(draw: Callable[[Axes], Any]) -> str:
    """Return what a function draws on the axes of a small figure, as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.6, 2.4), layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    picture = text.getvalue()
    return picture[picture.index("<svg") :]


def side_by_side(*parts: str) -> str:
    """Return parts in one row, below each other where there is no space."""
    return f"<div style='display:flex;flex-wrap:wrap;gap:1em;align-items:center'>{''.join(parts)}</div>"
