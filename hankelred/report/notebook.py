"""What a notebook shows of a result: a table, and a picture drawn without touching the user's figures."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable

from ..plotting.draw import Spectrum, draw_spectrum


def table_with_spectrum(rows: Iterable[tuple[str, str]], spectrum: Spectrum) -> str:
    """Return HTML with the rows as a table beside the Hankel spectrum."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.6, 2.4), layout="constrained")
        ax = draw_spectrum(spectrum, figure.add_subplot())
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
        ax.set_title("")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    picture = text.getvalue()
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:1em;align-items:center'>"
        f"<table>{cells}</table>{picture[picture.index('<svg') :]}</div>"
    )
