"""Plots of Hankel spectra; draws arrays and computes nothing; matplotlib is imported inside functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array: TypeAlias = npt.NDArray[Any]

# one color per role, as in hankelred.reduction.plots, distinguishable without color vision (Okabe and Ito)
VALUES, CHOSEN, OTHER, LINE, NULL = "#0072B2", "#D55E00", "#009E73", "#555555", "#BBBBBB"

#: Decades below the largest value that a plot shows.
DECADES = 6

#: Largest number of layers that have labels of their own in the legend.
MOST_LABELS = 8

KINDS = ("curves", "heatmap")


@dataclass(frozen=True)
class Spectra:
    """The arrays of a plot, by layer index.

    Parameters
    ----------
    values : mapping of int to ndarray
        Singular values in descending order.
    thresholds : mapping of int to float
        Levels above which values are significant.
    trained : bool
        Whether values are those of trained adapters, not of the gradient before training.
    empirical, null : mapping of int to ndarray, optional
        Values on calibration data, and those of the permutation null.
    """

    values: Mapping[int, Array]
    thresholds: Mapping[int, float]
    trained: bool
    empirical: Mapping[int, Array] | None = None
    null: Mapping[int, Array] | None = None

    @property
    def layers(self) -> list[int]:
        """Layer indices, in order."""
        return list(self.values)

    @property
    def title(self) -> str:
        """Title of the plot."""
        if self.trained:
            return "Hankel singular values of the adapter"
        return "Hankel singular values of the gradient, before training"

    @property
    def unit(self) -> str:
        """Label of the axis of values."""
        return "gain (output per input)" if self.trained else "loss per token and unit of gain"


def draw(spectra: Spectra, ax: Axes | None, *, kind: str, ranks: Mapping[int, int] | None) -> Axes:
    """Draw the spectra of all layers.

    Raises
    ------
    ConfigError
        An unknown kind, or there is nothing to draw.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r} is unknown; choose one of {', '.join(map(repr, KINDS))}")
    if not spectra.values:
        raise ConfigError("there are no layers to draw; the model has no adapter and there is no calibration")
    if ax is None:
        from matplotlib import pyplot

        height = 0.16 * len(spectra.values) + 2 if kind == "heatmap" else 4.5
        ax = pyplot.subplots(figsize=(7.5, max(3.2, height)), layout="constrained")[1]
    if kind == "heatmap":
        _draw_heatmap(spectra, ax, ranks)
    else:
        _draw_curves(spectra, ax, ranks)
    ax.set_title(spectra.title)
    ax.set_xlabel("index $k$")
    return ax


def _draw_curves(spectra: Spectra, ax: Axes, ranks: Mapping[int, int] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    top = max(float(values.max(initial=0.0)) for values in spectra.values.values()) or 1.0
    bottom = _lower_limit(top, spectra.values)
    _draw_layers(spectra, ax)
    if len(spectra.values) > 2:
        _draw_spread(spectra, ax)
    if spectra.empirical is not None:
        _draw_empirical(spectra.empirical, ax, top)
    if not spectra.trained and spectra.null:
        _draw_thresholds(spectra.thresholds, ax)
        _draw_null(spectra.null, spectra.layers, ax)
        bottom = min(bottom, _lower_limit(top, spectra.null))
    elif spectra.trained:
        _draw_noise_floor(max(spectra.thresholds.values()), bottom, ax)
    if ranks is not None:
        _draw_ranks(spectra, ranks, ax)
    ax.set_yscale("log")
    ax.set_ylim(bottom, top * 2)
    ax.set_xlim(0.5, _last_index(spectra, bottom) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(spectra.unit)
    ax.legend(loc="best", fontsize="small")


def _lower_limit(top: float, values: Mapping[int, Array]) -> float:
    """Return the lower limit of the axis: below all positive values, but at most DECADES below the top."""
    lowest = min(float(v[v > 0].min(initial=top)) for v in values.values())
    return max(top * 10.0**-DECADES, lowest / 3)


def _draw_layers(spectra: Spectra, ax: Axes) -> None:
    """Draw a curve for each layer, from light for the first to dark for the last."""
    layers = spectra.layers
    shades = _shades(len(layers))
    for layer, shade in zip(layers, shades, strict=True):
        values = _positive(spectra.values[layer])
        label = f"layer {layer}" if len(layers) <= MOST_LABELS else None
        ax.plot(_index(values), values, color=shade, linewidth=1.0, alpha=0.8, label=label, zorder=2)
    if len(layers) > MOST_LABELS:
        ax.plot([], [], color=shades[0], label=f"layer {layers[0]} (light) to {layers[-1]} (dark)")


def _draw_spread(spectra: Spectra, ax: Axes) -> None:
    """Draw median and quartiles over layers."""
    middle, low, high = _quartiles([_positive(values) for values in spectra.values.values()])
    ax.plot(_index(middle), middle, color=LINE, linewidth=2.2, label="median of the layers", zorder=3)
    ax.fill_between(_index(low), low, high, color=LINE, alpha=0.15, linewidth=0, label="middle half")


def _draw_empirical(empirical: Mapping[int, Array], ax: Axes, top: float) -> None:
    """Draw empirical values, which have the units of the data, scaled to the same largest value."""
    scale = top / max(float(v.max(initial=0.0)) for v in empirical.values())
    for k, values in enumerate(empirical.values()):
        values = _positive(values * scale)
        label = "on the calibration data, scaled to the same top" if k == 0 else None
        ax.plot(_index(values), values, color=OTHER, linestyle="--", linewidth=0.9, label=label)


def _draw_thresholds(thresholds: Mapping[int, float], ax: Axes) -> None:
    """Draw the smallest and the largest of the levels of significance."""
    levels = sorted({min(thresholds.values()), max(thresholds.values())})
    for k, level in enumerate(levels):
        text = "level of significance" + ("" if len(levels) == 1 else " (smallest, largest)")
        ax.axhline(level, color=CHOSEN, linestyle=":", linewidth=1.2, label=text if k == 0 else None)


def _draw_null(null: Mapping[int, Array], layers: list[int], ax: Axes) -> None:
    for k, layer in enumerate(layers):
        values = _positive(null[layer])
        label = "null: unrelated sequences" if k == 0 else None
        ax.plot(_index(values), values, color=NULL, linewidth=1.0, marker=".", markersize=3, label=label)


def _draw_noise_floor(floor: float, bottom: float, ax: Axes) -> None:
    if floor > bottom:
        ax.axhspan(bottom, floor, color=NULL, alpha=0.35, linewidth=0, label=f"noise floor {floor:.1e}")


def _draw_ranks(spectra: Spectra, ranks: Mapping[int, int], ax: Axes) -> None:
    """Mark the last value that each rank keeps."""
    marked = [i for i, values in spectra.values.items() if 1 <= ranks.get(i, 0) <= values.size]
    ax.plot(
        [ranks[layer] for layer in marked],
        [spectra.values[layer][ranks[layer] - 1] for layer in marked],
        color=CHOSEN,
        marker="o",
        markersize=5,
        linestyle="none",
        label="rank chosen",
        zorder=4,
    )


def _draw_heatmap(spectra: Spectra, ax: Axes, ranks: Mapping[int, int] | None) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    layers = spectra.layers
    width = max(values.size for values in spectra.values.values())
    grid = np.full((len(layers), width), np.nan)
    for row, values in zip(grid, spectra.values.values(), strict=True):
        row[: values.size] = _positive(values)
    top = float(np.nanmax(grid)) if np.any(np.isfinite(grid)) else 1.0
    last = _last_index(spectra, top * 10.0**-DECADES)
    low = max(float(np.nanmin(grid)) if np.any(np.isfinite(grid)) else 0.1, top * 10.0**-DECADES)
    # explicit edges: every layer has one row, whatever its index
    edges = np.arange(width + 1) + 0.5, np.arange(len(layers) + 1) - 0.5
    image = ax.pcolormesh(*edges, grid, cmap="cividis", norm=LogNorm(min(low, top / 2), top), rasterized=True)
    ax.figure.colorbar(image, ax=ax, label=spectra.unit)
    rows = np.arange(len(layers))
    significant = np.array(
        [np.count_nonzero(values > spectra.thresholds[i]) for i, values in spectra.values.items()]
    )
    if spectra.trained:
        _draw_staircase(ax, significant, rows, LINE, "-", "above rounding")
    else:
        _draw_staircase(ax, significant, rows, CHOSEN, "-", "above the null")
    if ranks is not None:
        chosen = np.array([ranks.get(layer, 0) for layer in layers])
        _draw_staircase(ax, chosen, rows, "white", "--", "rank chosen")
    step = max(1, -(-len(layers) // 16))
    ax.set_yticks(rows[::step], [str(layer) for layer in layers[::step]])
    ax.set_ylabel("layer")
    ax.set_xlim(0.5, last + 0.5)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="lower right", fontsize="small", facecolor=NULL)


def _draw_staircase(ax: Axes, counts: Array, rows: Array, color: str, style: str, label: str) -> None:
    """Draw a line after the first `counts` cells of each row."""
    x = np.repeat(counts + 0.5, 2)
    y = np.stack([rows - 0.5, rows + 0.5], 1).ravel()
    ax.plot(x, y, color=color, linestyle=style, linewidth=1.8, label=label)


def _shades(count: int) -> list[tuple[float, float, float]]:
    """Return shades of the color of values, from light to dark."""
    from matplotlib.colors import to_rgb

    base = np.array(to_rgb(VALUES))
    weights = np.linspace(0.45, -0.45, count) if count > 1 else [0.0]
    shades = [base + (1 - base) * w if w > 0 else base * (1 + w) for w in weights]
    return [(float(r), float(g), float(b)) for r, g, b in shades]


def _positive(values: Array) -> Array:
    """Return values with NaN, a gap in a curve, where a logarithmic axis cannot show them."""
    return np.where(values > 0, values, np.nan)


def _index(values: Array) -> Array:
    return np.arange(1, values.size + 1)


def _quartiles(curves: list[Array]) -> tuple[Array, Array, Array]:
    """Return median and quartiles over layers, at the indices that at least half of them have."""
    lengths = sorted(curve.size for curve in curves)
    length = lengths[len(lengths) // 2]
    rows = np.full((len(curves), length), np.nan)
    for row, curve in zip(rows, curves, strict=True):
        row[: min(length, curve.size)] = curve[:length]
    rows = rows[:, np.any(np.isfinite(rows), axis=0)]
    low, middle, high = np.nanquantile(rows, [0.25, 0.5, 0.75], axis=0)
    return middle, low, high


def _last_index(spectra: Spectra, bottom: float) -> int:
    """Return the last index at which any layer has a value in the plot."""
    counts = [int(np.count_nonzero(values > bottom)) for values in spectra.values.values()]
    return max(1, *counts)
