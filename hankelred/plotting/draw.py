"""Plots of arrays, without computations. matplotlib is imported inside functions only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._util.arrays import Array
from ..errors import ModelError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# one color per role, distinguishable with color blindness (Okabe and Ito)
FULL, REDUCED, ERROR, BOUND, NOISE = "#0072B2", "#D55E00", "#009E73", "#555555", "#BBBBBB"

#: further curves of one picture, told apart by dashes where the colors come around again
SERIES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")


@dataclass(frozen=True)
class Spectrum:
    """The contents of a plot of a Hankel spectrum.

    ``values`` are in descending order, inf first. ``bounds`` has the error bound of each order, from the
    number of infinite values to ``len(values) - 1``, and zeros where no bound is known. ``order`` is the
    order to mark, followed by the text ``note``; ``tol`` is a level to draw. A noise floor of 0 is not drawn.
    """

    values: Array
    bounds: Array
    noise_floor: float = 0.0
    order: int | None = None
    note: str = ""
    tol: float | None = None


@dataclass(frozen=True)
class Curve:
    """A gain as a function of frequency."""

    gain: Array
    label: str
    color: str
    style: str
    width: float


def draw_spectrum(spectrum: Spectrum, ax: Axes | None) -> Axes:
    """Plot Hankel singular values against their index, on a logarithmic axis."""
    from matplotlib.ticker import MaxNLocator

    ax = axes(ax)
    values, bounds, floor = spectrum.values, spectrum.bounds, spectrum.noise_floor
    unstable = int(np.isinf(values).sum())
    finite = values[unstable:]
    positive = finite > 0
    bottom, top = _range(finite[positive], bounds[bounds > 0], floor)
    ax.set_yscale("log")
    ax.set_ylim(bottom, top)
    # the width does not include values below the plotted range
    visible = max(int(np.count_nonzero(values > bottom)), spectrum.order or 0, 1)
    ax.set_xlim(-0.2, min(values.size, math.ceil(1.05 * visible)) + 0.8)
    _draw_values(ax, finite, unstable, top, many=values.size > 120)
    bounded = bounds > 0
    if np.any(bounded):
        ax.step(
            np.arange(unstable, values.size)[bounded],
            bounds[bounded],
            where="mid",
            color=BOUND,
            linewidth=1,
            label="error bound of order $k$",
        )
    if floor > 0:
        below = " (below the plot)" if floor <= bottom else ""
        ax.axhspan(
            bottom,
            max(floor, bottom),
            color=NOISE,
            alpha=0.35,
            linewidth=0,
            label=f"noise floor {floor:.1e}{below}",
        )
    if spectrum.tol is not None:
        ax.axhline(
            spectrum.tol, color=ERROR, linewidth=1, linestyle="--", label=f"tolerance {spectrum.tol:g}"
        )
    if spectrum.order is not None:
        label = f"chosen order {spectrum.order}{spectrum.note}"
        ax.axvline(spectrum.order + 0.5, color=REDUCED, linewidth=1.2, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("order $k$")
    ax.set_ylabel("gain (output per input)")
    ax.set_title("Hankel spectrum")
    ax.legend(loc="best", fontsize="small")
    return ax


def _range(values: Array, bounds: Array, floor: float) -> tuple[float, float]:
    """Return the lower and upper limit of the gains that are drawn."""
    drawn = np.concatenate([values, bounds, [floor] if floor else []])
    if not drawn.size:
        return 1e-2 / 3, 1.0
    top = float(drawn.max(initial=1e-300)) * 4
    bottom = max(float(values.min(initial=np.inf)), floor / 1e3, top * 1e-20)
    return min(bottom, top / 1e2) / 3, top


def _draw_values(ax: Axes, finite: Array, unstable: int, top: float, *, many: bool) -> None:
    positive = finite > 0
    ax.plot(
        np.arange(unstable + 1, unstable + finite.size + 1)[positive],
        finite[positive],
        marker="o",
        markersize=2.5 if many else 5,
        linestyle="none",
        color=FULL,
        label="Hankel singular value $\\sigma_k$",
        zorder=3,
    )
    if unstable:
        ax.plot(
            np.arange(1, unstable + 1),
            np.full(unstable, top / 1.6),
            marker="^",
            markersize=8,
            linestyle="none",
            color=REDUCED,
            label=f"unstable or marginal ({unstable}), kept exactly",
            zorder=3,
            clip_on=False,
        )


def draw_gains(
    frequencies: Array,
    curves: Sequence[Curve],
    ax: Axes | None,
    *,
    bound: float | None = None,
    error: Array | None = None,
) -> Axes:
    """Plot gains against frequency on logarithmic axes, down to the smallest gain of interest.

    ``error`` is the gain of the error, if it is among the curves; ``bound`` is drawn as a level.
    """
    ax = axes(ax)
    gains = []
    for curve in curves:
        gain = np.where((curve.gain == 0) | ~np.isfinite(curve.gain), np.nan, curve.gain)
        gains.append(gain)
        ax.plot(
            frequencies,
            gain,
            color=curve.color,
            linestyle=curve.style,
            linewidth=curve.width,
            label=curve.label,
        )
    if bound is not None:
        ax.axhline(bound, color=BOUND, linewidth=1, linestyle=":", label=f"bound {bound:.2e}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    highest = max((_peak(curve.gain) for curve in curves), default=0.0)
    peak_error = 0.0 if error is None else _peak(error)
    if highest > 0:
        # down to the smallest gain of interest, not to where a gain vanishes
        interesting = min(highest * 1e-5, peak_error * 1e-3) if peak_error > 0 else highest * 1e-5
        ax.set_ylim(max(ax.get_ylim()[0], interesting, highest * 1e-16), None)
        drawn = np.flatnonzero((np.stack(gains) > ax.get_ylim()[0]).any(axis=0))
        ax.set_xlim(frequencies[drawn[0]] / 1.3, frequencies[drawn[-1]] * 1.3)
    else:
        ax.set_ylim(0.1, 1.0)  # identically zero: a logarithmic axis has no range of its own
    ax.legend(loc="best", fontsize="small")
    return ax


def shade(ax: Axes, spans: Sequence[tuple[float, float]], label: str) -> None:
    """Shade spans of the horizontal axis, which keeps its limits."""
    left, right = ax.get_xlim()
    for low, high in spans:
        ax.axvspan(max(low, left), min(high, right), color=NOISE, alpha=0.3, linewidth=0, label=label)
        label = "_"
    ax.set_xlim(left, right)
    ax.legend(loc="best", fontsize="small")


def draw_over_time(times: Array, curves: Sequence[Curve], ax: Axes | None) -> Axes:
    """Draw sizes over time, the vertical axis logarithmic."""
    ax = axes(ax)
    for curve in curves:
        size = np.where((curve.gain == 0) | ~np.isfinite(curve.gain), np.nan, curve.gain)
        ax.plot(
            times, size, color=curve.color, linestyle=curve.style, linewidth=curve.width, label=curve.label
        )
    ax.set_yscale("log")
    highest = max((_peak(curve.gain) for curve in curves), default=0.0)
    if highest > 0:
        ax.set_ylim(max(ax.get_ylim()[0], highest * 1e-16), None)
    ax.set_xlim(0, times[-1])
    ax.legend(loc="best", fontsize="small")
    return ax


def _peak(gain: Array) -> float:
    return float(gain[np.isfinite(gain)].max(initial=0.0))


def axes(ax: Axes | None) -> Axes:
    """Return ``ax``, or new axes if it is None."""
    if ax is not None:
        if not hasattr(ax, "axhline"):
            raise ModelError(
                f"ax must be matplotlib Axes, got a {type(ax).__name__}; a figure's are figure.add_subplot()"
            )
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(7, 4.5), layout="constrained")[1]


def grid_in_place(
    ax: Axes | None,
    n_rows: int,
    n_columns: int,
    *,
    figsize: tuple[float, float],
    height_ratios: Sequence[float] | None = None,
) -> tuple[Any, Any]:
    """Return a figure and a grid for axes that replace ``ax``; a new figure of this size if it is None."""
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=figsize, layout="constrained")[1]
    ax = axes(ax)
    figure = ax.figure
    place = ax.get_subplotspec() or figure.add_gridspec(1, 1)[0]
    ax.remove()
    return figure, place.subgridspec(n_rows, n_columns, height_ratios=height_ratios)
