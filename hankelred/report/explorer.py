"""An interactive matplotlib figure: the Hankel spectrum beside the response, and the order under the mouse.

Only the curves that depend on the order are drawn again, over a stored picture of everything else: drawing
two logarithmic axes with their labels would take most of a second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OrderError
from ..plotting.draw import BOUND, ERROR, FULL, REDUCED, Curve, draw_gains, draw_spectrum
from .curves import OrderCurves, ReducedCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Keys that change the order, and by how much.
_STEPS = {"right": 1, "up": 1, "left": -1, "down": -1, "pageup": 10, "pagedown": -10}


class Explorer:
    """The figure that :func:`hankelred.explore` opens.

    Attributes
    ----------
    figure : matplotlib Figure
    orders : range
        Orders that can be chosen.
    order : int
        The chosen one.
    """

    def __init__(self, curves: OrderCurves) -> None:
        from matplotlib import pyplot
        from matplotlib.widgets import Slider

        self._curves = curves
        self.orders = curves.orders
        chosen = curves.spectrum.order
        self.order: int = chosen if chosen is not None and chosen in self.orders else self.orders[0]
        self._computed: dict[int, ReducedCurve] = {}
        self._background: Any = None
        self.figure: Figure = pyplot.figure(figsize=(11, 5.2))
        left, right = self.figure.subplots(1, 2)
        self.figure.subplots_adjust(left=0.08, right=0.98, top=0.84, bottom=0.25, wspace=0.24)
        self._spectrum_axes, self._response_axes = left, right
        draw_spectrum(replace(curves.spectrum, order=None, note=""), left)
        left.set_title("Hankel spectrum: click to choose the order", fontsize="medium")
        self._draw_static_response()
        self._artists = self._dynamic_artists()
        slider_axes = self.figure.add_axes((0.16, 0.05, 0.74, 0.04))
        self._slider = Slider(
            slider_axes,
            "order",
            self.orders[0],
            max(self.orders[-1], self.orders[0] + 1),
            valinit=self.order,
            valstep=1,
            color=FULL,
        )
        # the slider would have the whole figure drawn again; it is drawn with what depends on the order
        self._slider.drawon = False
        for name in ("poly", "_handle", "valtext"):
            artist = getattr(self._slider, name, None)
            if artist is not None:
                artist.set_animated(True)
                self._artists[name] = artist
        self._slider.on_changed(self._slid)
        canvas = self.figure.canvas
        canvas.mpl_connect("draw_event", self._drawn)
        canvas.mpl_connect("button_press_event", self._clicked)
        canvas.mpl_connect("key_press_event", self._pressed)
        self._update()

    def __repr__(self) -> str:
        return f"<Explorer of orders {self.orders[0]} to {self.orders[-1]}: {self.current.summary()}>"

    @property
    def current(self) -> ReducedCurve:
        """Error bound, gain and error of the chosen order."""
        if self.order not in self._computed:
            self._computed[self.order] = self._curves.reduced(self.order)
        return self._computed[self.order]

    def set_order(self, order: int) -> None:
        """Choose an order, as a click or the slider does.

        Parameters
        ----------
        order : int

        Raises
        ------
        OrderError
            The order is not among those that can be chosen.
        """
        if isinstance(order, bool) or order not in self.orders:
            raise OrderError(
                f"order {order!r} cannot be shown; choose a whole number from {self.orders[0]} to "
                f"{self.orders[-1]}"
            )
        if int(order) != self.order:
            self.order = int(order)
            self._update()
            if self._slider.val != self.order:
                self._slider.set_val(self.order)

    def _draw_static_response(self) -> None:
        curves, ax = self._curves, self._response_axes
        if curves.full is not None:
            draw_gains(curves.frequencies, [Curve(curves.full, "full", FULL, "-", 1.8)], ax)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel=curves.frequency_label,
            ylabel=curves.gain_label,
            xlim=(curves.frequencies[0], curves.frequencies[-1]),
            ylim=curves.gain_limits,
        )
        ax.set_title(curves.title, fontsize="medium")

    def _dynamic_artists(self) -> dict[str, Any]:
        ax = self._response_axes
        w = self._curves.frequencies
        empty = np.full(w.size, np.nan)
        artists: dict[str, Any] = {
            "reduced": ax.plot(w, empty, "--", color=REDUCED, linewidth=1.6, label="reduced")[0],
            "order": self._spectrum_axes.axvline(0.5, color=REDUCED, linewidth=1.2),
            "summary": self.figure.text(0.5, 0.955, "", ha="center", va="center"),
            "note": self.figure.text(0.5, 0.905, "", ha="center", va="center", fontsize="small"),
        }
        if self._curves.full is not None:
            artists["error"] = ax.plot(w, empty, "-", color=ERROR, linewidth=1.2, label="error")[0]
            artists["bound"] = ax.axhline(
                np.nan, color=BOUND, linewidth=1, linestyle=":", label="error bound"
            )
        for artist in artists.values():
            artist.set_animated(True)
        ax.legend(loc="lower left", fontsize="small")
        return artists

    def _update(self) -> None:
        """Show the chosen order."""
        current, artists = self.current, self._artists
        artists["reduced"].set_ydata(_positive(current.gain))
        artists["order"].set_xdata([self.order + 0.5] * 2)
        artists["summary"].set_text(current.summary())
        artists["note"].set_text(current.note if len(current.note) < 120 else current.note[:117] + "...")
        if current.error is not None:
            artists["error"].set_ydata(_positive(current.error))
            bound = current.error_bound if 0 < current.error_bound < np.inf else np.nan
            artists["bound"].set_ydata([bound] * 2)
        canvas = self.figure.canvas
        if self._background is None or not getattr(canvas, "supports_blit", False):
            canvas.draw_idle()
            return
        canvas.restore_region(self._background)  # type: ignore[attr-defined]
        self._draw_dynamic()
        canvas.blit(self.figure.bbox)
        canvas.flush_events()

    def _drawn(self, event: Any) -> None:
        """Store the picture of what does not depend on the order, after a complete drawing."""
        canvas = self.figure.canvas
        if getattr(canvas, "supports_blit", False):
            self._background = canvas.copy_from_bbox(self.figure.bbox)  # type: ignore[attr-defined]
        self._draw_dynamic()

    def _draw_dynamic(self) -> None:
        for artist in self._artists.values():
            self.figure.draw_artist(artist)

    def _slid(self, value: float) -> None:
        self._choose(round(value))

    def _clicked(self, event: Any) -> None:
        toolbar = getattr(self.figure.canvas, "toolbar", None)
        if event.inaxes is self._spectrum_axes and event.button == 1 and not getattr(toolbar, "mode", ""):
            self._choose(round(event.xdata))

    def _pressed(self, event: Any) -> None:
        ends = {"home": self.orders[0], "end": self.orders[-1]}
        if event.key in _STEPS or event.key in ends:
            self._choose(ends.get(event.key, self.order + _STEPS.get(event.key, 0)))

    def _choose(self, order: int) -> None:
        """Choose the nearest order there is."""
        self.set_order(min(max(order, self.orders[0]), self.orders[-1]))


def _positive(gain: Any) -> Any:
    return np.where(gain > 0, gain, np.nan)
