"""The table and the plots of an identified model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._util.arrays import Array
from .._util.text_table import aligned
from ..errors import count
from ..models.linear_model import Timebase, sampling_time, timestep
from ..plotting.draw import REDUCED, axes
from ..plotting.record import draw_record
from .diagnostics import ResidualTest
from .records import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_simulation(
    measured: Array,
    simulated: Array,
    fit: Array,
    dt: Timebase,
    labels: tuple[str, ...] | None,
    ax: Axes | None,
) -> Any:
    """Draw a record over time."""
    times = np.arange(measured.shape[1]) * sampling_time(dt)
    names = [label(labels, "output", i) for i in range(measured.shape[0])]
    time_label = "sample" if dt is True else "time in seconds"
    return draw_record(times, measured, simulated, fit, names, time_label, ax)


def draw_response_bands(
    omega: Array,
    response: Array,
    errors: Array,
    dt: Timebase,
    names: tuple[tuple[str, ...] | None, tuple[str, ...] | None],
    ax: Axes | None,
) -> Any:
    """Replace ``ax`` by the gain (p, m, K) of every output for every input, with a band of two errors."""
    p, m = response.shape[:2]
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(1.5 + 4 * m, 1 + 2.4 * p), layout="constrained")[1]
    ax = axes(ax)
    figure = ax.figure
    place = ax.get_subplotspec() or figure.add_gridspec(1, 1)[0]
    ax.remove()
    grid = place.subgridspec(p, m)
    drawn = np.empty((p, m), dtype=object)
    for i, j in np.ndindex(p, m):
        drawn[i, j] = axis = figure.add_subplot(grid[i, j])
        gain, error = np.abs(response[i, j]), 2 * errors[i, j]
        lowest = gain.max() * 1e-6
        band = np.maximum(gain - error, lowest), np.maximum(gain + error, lowest)
        axis.fill_between(omega, *band, color=REDUCED, alpha=0.25, label="two standard errors")
        axis.plot(omega, np.maximum(gain, lowest), color=REDUCED, linewidth=1.2, label="model")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"{label(names[0], 'output', i)} for {label(names[1], 'input', j)}", fontsize="small")
        if i == p - 1:
            axis.set_xlabel("radians per sample" if dt is True else "rad/s")
        if j == 0:
            axis.set_ylabel("gain")
    drawn[0, 0].legend(loc="best", fontsize="small")
    return drawn


def summary_table(
    order: int,
    dt: Timebase,
    lengths: Sequence[int],
    outputs: tuple[tuple[str, ...] | None, Array, Array],
    test: ResidualTest,
    poles_and_errors: tuple[Array, Array],
) -> str:
    """Return a table of a model: `outputs` are labels, fits, and fits to the validation part."""
    labels, fits, held_back = outputs
    rows = [["output", "fit", "held back", "white residual", "independent of input"]]
    for i, name in enumerate(labels or [str(i) for i in range(fits.size)]):
        figures = fits[i], held_back[i], test.whiteness[i], test.independence[i].min()
        rows.append([name, *(f"{value:.4f}" for value in figures)])
    unit = "radians per sample" if dt is True else "rad/s"
    poles = [["pole", "standard error", f"frequency ({unit})", "damping"]]
    for pole, error in zip(*poles_and_errors, strict=True):
        if pole.imag < 0:
            continue
        log = np.log(complex(pole)) / sampling_time(dt) if pole != 0 else complex(-np.inf)
        frequency = abs(log)
        damping = -log.real / frequency if np.isfinite(frequency) and frequency > 0 else 1.0
        text = f"{pole.real:.5f}" if pole.imag == 0 else f"{pole.real:.5f} +- {pole.imag:.5f}j"
        poles.append([text, f"{error:.2g}", f"{frequency:.5g}", f"{damping:.4f}"])
    heading = f"order {order}, {timestep(dt)}, {sum(lengths)} samples in {count(len(lengths), 'record')}"
    return "\n".join([heading, *aligned(rows), *aligned(poles)])
