"""A page for the browser with the spectrum, the response of every order and a slider; it needs no network."""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any

import numpy as np

from .._util.arrays import Array
from .curves import OrderCurves

#: Most orders and frequencies on a page: each pair is a number of about ten bytes, twice.
MOST_ORDERS, MOST_FREQUENCIES = 80, 400


def page(curves: OrderCurves) -> str:
    """Return a complete HTML document.

    Parameters
    ----------
    curves : OrderCurves
        Of more than :data:`MOST_ORDERS` orders, those from the smallest one are shown, and the chosen one.

    Returns
    -------
    str
        HTML with all data, styles and scripts in it.
    """
    orders = _shown(curves)
    reduced = [curves.reduced(order) for order in orders]
    at = np.unique(np.linspace(0, curves.frequencies.size - 1, MOST_FREQUENCIES).round().astype(int))
    spectrum = curves.spectrum
    data: dict[str, Any] = {
        "frequencies": _numbers(curves.frequencies[at]),
        "frequencyLabel": curves.frequency_label,
        "gainLabel": curves.gain_label,
        "gainLimits": list(curves.gain_limits),
        "full": None if curves.full is None else _numbers(curves.full[at]),
        "values": _numbers(spectrum.values),
        "noiseFloor": spectrum.noise_floor,
        "first": orders.index(spectrum.order) if spectrum.order in orders else 0,
        "orders": [
            {
                "order": one.order,
                "bound": _number(one.error_bound),
                "gain": _numbers(one.gain[at]),
                "error": None if one.error is None else _numbers(one.error[at]),
                "note": one.note,
                "summary": one.summary(),
            }
            for one in reduced
        ],
    }
    rows = "".join(
        f"<tr><td>{one.order}</td><td>{_text(_value_at(spectrum.values, one.order))}</td>"
        f"<td>{_text(one.error_bound)}</td><td>{_text(one.largest_error)}</td></tr>"
        for one in reduced
    )
    facts = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in curves.facts
    )
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    # "</" must not end the script element, whatever the names in the data are
    values = json.dumps(data, allow_nan=False).replace("</", "<\\/")
    for mark, text in (
        ("%TITLE%", html.escape(curves.title)),
        ("%FACTS%", facts),
        ("%ROWS%", rows),
        ("%DATA%", values),
    ):
        template = template.replace(mark, text)
    return template


def _shown(curves: OrderCurves) -> list[int]:
    orders = list(curves.orders[:MOST_ORDERS])
    chosen = curves.spectrum.order
    if chosen is not None and chosen in curves.orders and chosen not in orders:
        orders.append(chosen)
    return orders


def _value_at(values: Array, order: int) -> float:
    """Return the first singular value that this order truncates; 0 if there is none."""
    return float(values[order]) if order < values.size else 0.0


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _numbers(values: Array) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _text(value: float) -> str:
    return f"{value:.3e}" if np.isfinite(value) else "none"
