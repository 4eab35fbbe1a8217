"""The plot of a measured frequency response and the model fitted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._util.arrays import Array
from .draw import ERROR, FULL, REDUCED, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_fitted_response(
    omega: Array,
    gain: Array,
    error: Array,
    fine_omega: Array,
    model_gain: Array,
    title: str,
    ax: Axes | None,
    *,
    frequency_label: str,
    gain_label: str,
) -> Axes:
    """Plot gains against frequency: data and error as points, the model as a curve."""
    ax = axes(ax)
    ax.plot(omega, gain, ".", color=FULL, markersize=4, label="data")
    ax.plot(fine_omega, model_gain, color=REDUCED, linewidth=1.2, label="model")
    ax.plot(omega, error, ".", color=ERROR, markersize=2.5, label="data minus model")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(frequency_label)
    ax.set_ylabel(gain_label)
    ax.set_title(f"Frequency response, {title}")
    ax.legend(loc="best", fontsize="small")
    return ax
