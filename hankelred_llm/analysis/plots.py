"""Pictures of Hankel spectra; matplotlib is imported inside functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .spectra import HankelSpectra

Array: TypeAlias = npt.NDArray[Any]

# one colour a role, as in hankelred.reduction.plots, readable without colour vision (Okabe and Ito)
VALUES, CHOSEN, OTHER, LINE, NULL = "#0072B2", "#D55E00", "#009E73", "#555555", "#BBBBBB"

#: Decades below the largest value that a picture shows.
DECADES = 6

#: Up to so many layers each has a label of its own in the legend or on the axis.
FEW = 8

KINDS = ("curves", "heatmap")

TITLES = {
    "exact": "Hankel singular values of the adapter",
    "gradient": "What the loss asks for, before training",
}
UNITS = {"exact": "gain (output per input)", "gradient": "loss per token and unit of gain"}


def draw(spectra: HankelSpectra, ax: Axes | None, *, kind: str, ranks: Mapping[int, int] | None) -> Axes:
    """Draw the spectra of all layers.

    Raises
    ------
    ConfigError
        An unknown kind, or there is nothing to draw.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r} is unknown; choose one of {', '.join(map(repr, KINDS))}")
    if not len(spectra):
        raise ConfigError("there are no layers to draw; the model has no adapter and there is no calibration")
    if ax is None:
        from matplotlib import pyplot

        tall = 0.16 * len(spectra) + 2 if kind == "heatmap" else 4.5
        ax = pyplot.subplots(figsize=(7.5, max(3.2, tall)), layout="constrained")[1]
    if kind == "heatmap":
        _heatmap(spectra, ax, ranks)
    else:
        _curves(spectra, ax, ranks)
    name = "exact" if spectra.exact else "gradient"
    ax.set_title(TITLES[name])
    ax.set_xlabel("index $k$")
    return ax


def _curves(spectra: HankelSpectra, ax: Axes, ranks: Mapping[int, int] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    layers = list(spectra)
    name = "exact" if spectra.exact else "gradient"
    top = max(float(values.max(initial=0.0)) for values in spectra.values()) or 1.0
    lowest = min(float(v[v > 0].min(initial=top)) for v in spectra.values())
    bottom = max(top * 10.0**-DECADES, lowest / 3)
    shades = _shades(len(layers))
    for layer, shade in zip(layers, shades, strict=True):
        values = _positive(spectra[layer])
        label = f"layer {layer}" if len(layers) <= FEW else None
        ax.plot(_index(values), values, color=shade, linewidth=1.0, alpha=0.8, label=label, zorder=2)
    if len(layers) > FEW:
        ax.plot([], [], color=shades[0], label=f"layer {layers[0]} (light) to {layers[-1]} (dark)")
    if len(layers) > 2:
        middle, low, high = _spread([_positive(spectra[layer]) for layer in layers])
        ax.plot(_index(middle), middle, color=LINE, linewidth=2.2, label="median of the layers", zorder=3)
        ax.fill_between(_index(low), low, high, color=LINE, alpha=0.15, linewidth=0, label="middle half")
    if spectra.empirical is not None:
        # in the units of the data: brought to the same first value, so that their fall can be compared
        scale = top / max(float(v.max(initial=0.0)) for v in spectra.empirical.values())
        for k, values in enumerate(spectra.empirical.values()):
            values = _positive(values * scale)
            label = "on the calibration data, scaled to the same top" if k == 0 else None
            ax.plot(_index(values), values, color=OTHER, linestyle="--", linewidth=0.9, label=label)
    if name == "gradient" and spectra.null:
        levels = [spectra.threshold(layer) for layer in layers]
        ends = sorted({min(levels), max(levels)})
        for k, level in enumerate(ends):
            words = "level that counts, above the null" + ("" if len(ends) == 1 else " (least, greatest)")
            label = words if k == 0 else None
            ax.axhline(level, color=CHOSEN, linestyle=":", linewidth=1.2, label=label)
        for k, layer in enumerate(layers):
            values = _positive(spectra.null[layer])
            label = "null: unrelated sequences" if k == 0 else None
            ax.plot(_index(values), values, color=NULL, linewidth=1.0, marker=".", markersize=3, label=label)
        nulls = [float(v[v > 0].min(initial=top)) for v in spectra.null.values()]
        bottom = max(top * 10.0**-DECADES, min(lowest, *nulls) / 3)
    elif name == "exact":
        floor = max(spectra.threshold(layer) for layer in layers)
        if floor > bottom:
            ax.axhspan(bottom, floor, color=NULL, alpha=0.35, linewidth=0, label=f"noise floor {floor:.1e}")
    if ranks is not None:
        known = [layer for layer in layers if 1 <= ranks.get(layer, 0) <= spectra[layer].size]
        at = [spectra[layer][ranks[layer] - 1] for layer in known]
        ax.plot(
            [ranks[layer] for layer in known],
            at,
            color=CHOSEN,
            marker="o",
            markersize=5,
            linestyle="none",
            label="rank chosen",
            zorder=4,
        )
    ax.set_yscale("log")
    ax.set_ylim(bottom, top * 2)
    ax.set_xlim(0.5, _shown(spectra, bottom) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(UNITS[name])
    ax.legend(loc="best", fontsize="small")


def _heatmap(spectra: HankelSpectra, ax: Axes, ranks: Mapping[int, int] | None) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    layers = list(spectra)
    name = "exact" if spectra.exact else "gradient"
    width = max(values.size for values in spectra.values())
    grid = np.full((len(layers), width), np.nan)
    for row, layer in enumerate(layers):
        grid[row, : spectra[layer].size] = _positive(spectra[layer])
    top = float(np.nanmax(grid)) if np.any(np.isfinite(grid)) else 1.0
    shown = _shown(spectra, top * 10.0**-DECADES)
    low = max(float(np.nanmin(grid)) if np.any(np.isfinite(grid)) else 0.1, top * 10.0**-DECADES)
    # a grid of lines of their own size: every layer has a row, whatever its index
    edges = np.arange(width + 1) + 0.5, np.arange(len(layers) + 1) - 0.5
    image = ax.pcolormesh(*edges, grid, cmap="cividis", norm=LogNorm(min(low, top / 2), top), rasterized=True)
    ax.figure.colorbar(image, ax=ax, label=UNITS[name])
    rows = np.arange(len(layers))
    counted = np.array([spectra.significant(layer) for layer in layers])
    words = "above the null" if name == "gradient" else "above rounding"
    _staircase(ax, counted, rows, LINE if name == "exact" else CHOSEN, "-", words)
    if ranks is not None:
        _staircase(
            ax, np.array([ranks.get(layer, 0) for layer in layers]), rows, "white", "--", "rank chosen"
        )
    step = max(1, -(-len(layers) // 16))
    ax.set_yticks(rows[::step], [str(layer) for layer in layers[::step]])
    ax.set_ylabel("layer")
    ax.set_xlim(0.5, shown + 0.5)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="lower right", fontsize="small", facecolor=NULL)


def _staircase(ax: Axes, counts: Array, rows: Array, colour: str, style: str, label: str) -> None:
    """Draw where each row stops counting."""
    x = np.repeat(counts + 0.5, 2)
    y = np.stack([rows - 0.5, rows + 0.5], 1).ravel()
    ax.plot(x, y, color=colour, linestyle=style, linewidth=1.8, label=label)


def _shades(count: int) -> list[tuple[float, float, float]]:
    """Return the colour of values, from light for the first layer to dark for the last."""
    from matplotlib.colors import to_rgb

    base = np.array(to_rgb(VALUES))
    weights = np.linspace(0.45, -0.45, count) if count > 1 else [0.0]
    shades = [base + (1 - base) * w if w > 0 else base * (1 + w) for w in weights]
    return [(float(r), float(g), float(b)) for r, g, b in shades]


def _positive(values: Array) -> Array:
    """Return values with gaps where a logarithmic axis has no place for them."""
    return np.where(values > 0, values, np.nan)


def _index(values: Array) -> Array:
    return np.arange(1, values.size + 1)


def _spread(curves: list[Array]) -> tuple[Array, Array, Array]:
    """Return the median and the quartiles over layers, as far as at least half of them reach."""
    lengths = sorted(curve.size for curve in curves)
    reach = lengths[len(lengths) // 2]
    rows = np.full((len(curves), reach), np.nan)
    for row, curve in zip(rows, curves, strict=True):
        row[: min(reach, curve.size)] = curve[:reach]
    rows = rows[:, np.any(np.isfinite(rows), axis=0)]
    low, middle, high = np.nanquantile(rows, [0.25, 0.5, 0.75], axis=0)
    return middle, low, high


def _shown(spectra: HankelSpectra, bottom: float) -> int:
    """Return the last index at which any layer is in the picture."""
    return max(1, max(int(np.count_nonzero(values > bottom)) for values in spectra.values()))
