"""The plot of a measured record, the simulated or predicted outputs of a model, and their differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._util.arrays import Array
from .draw import ERROR, FULL, REDUCED, grid_in_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_record(
    times: Array,
    measured: Array,
    computed: Array,
    kind: str,
    fit: Array,
    labels: Sequence[str],
    time_label: str,
    ax: Axes | None,
) -> Array:
    """Replace ``ax`` by two axes for each output: measured and computed, and below it their difference.

    The outputs computed are named by their kind: "simulated" or "predicted".

    Returns
    -------
    ndarray of Axes, shape (p, 2)
    """
    p = measured.shape[0]
    figure, grid = grid_in_place(ax, 2 * p, 1, figsize=(8, 1 + 2.4 * p), height_ratios=[2, 1] * p)
    drawn = np.empty((p, 2), dtype=object)
    first = None
    for i in range(p):
        above = figure.add_subplot(grid[2 * i], sharex=first)
        first = first or above
        below = figure.add_subplot(grid[2 * i + 1], sharex=first)
        above.plot(times, measured[i], color=FULL, linewidth=3, alpha=0.4, label="measured")
        above.plot(times, computed[i], color=REDUCED, linewidth=1.0, label=f"{kind}, fit {fit[i]:.3f}")
        above.set_ylabel(labels[i])
        above.legend(loc="upper right", fontsize="small")
        below.axhline(0, color="black", linewidth=0.5)
        below.plot(times, measured[i] - computed[i], color=ERROR, linewidth=0.8, label="residual")
        below.set_ylabel("residual")
        above.tick_params(labelbottom=False)
        below.tick_params(labelbottom=i == p - 1)
        drawn[i] = above, below
    drawn[-1, 1].set_xlabel(time_label)
    return drawn
