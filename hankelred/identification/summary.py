"""The table and the plots of an identified model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._util.arrays import Array
from .._util.text_table import aligned
from ..errors import count
from ..models.linear_model import Timebase, sampling_time, timestep
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
