"""The table and the plots of an identified model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._util.arrays import Array
from .._util.text_table import aligned
from ..errors import count
from ..models.linear_model import Timebase, sampling_time, timestep
from ..plotting.draw import ERROR, REDUCED, grid_in_place
from ..plotting.record import draw_record
from .diagnostics.residual_tests import ResidualTest
from .records import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Bands end at this multiple of the largest gain, and this fraction of the smallest.
_BAND_LIMIT = 30.0


def draw_simulation(
    measured: Array,
    computed: Array,
    fit: Array,
    dt: Timebase,
    labels: tuple[str, ...] | None,
    ax: Axes | None,
    *,
    predicted: bool,
) -> Any:
    """Draw a record over time, with outputs that are simulated or predicted one sample ahead."""
    times = np.arange(measured.shape[1]) * sampling_time(dt)
    names = [label(labels, "output", i) for i in range(measured.shape[0])]
    time_label = "sample" if dt is True else "time in seconds"
    kind = "predicted one sample ahead" if predicted else "simulated"
    return draw_record(times, measured, computed, kind, fit, names, time_label, ax)


def draw_response_bands(
    omega: Array,
    response: Array,
    errors: Array,
    dt: Timebase,
    names: tuple[tuple[str, ...] | None, tuple[str, ...] | None],
    ax: Axes | None,
) -> Any:
    """Replace ``ax`` by the gain (p, m, K) of every output for every input, with a band of two errors."""
    drawn = _grid(response.shape[0], response.shape[1], ax)
    for (i, j), axis in np.ndenumerate(drawn):
        error = 2 * errors[i, j]
        gain = np.maximum(np.abs(response[i, j]), np.abs(response[i, j]).max() * 1e-6)
        # the band ends at these limits; the errors of what the record does not determine are infinite
        limits = gain.min() / _BAND_LIMIT, gain.max() * _BAND_LIMIT
        band = np.clip(gain - error, *limits), np.clip(gain + error, *limits)
        axis.fill_between(omega, *band, color=REDUCED, alpha=0.25, label="two standard errors")
        axis.plot(omega, gain, color=REDUCED, linewidth=1.2, label="model")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"{label(names[0], 'output', i)} for {label(names[1], 'input', j)}", fontsize="small")
    for axis in drawn[-1]:
        axis.set_xlabel("radians per sample" if dt is True else "rad/s")
    for axis in drawn[:, 0]:
        axis.set_ylabel("gain")
    drawn[0, 0].legend(loc="best", fontsize="small")
    return drawn


def draw_residual_test(
    test: ResidualTest, names: tuple[tuple[str, ...] | None, tuple[str, ...] | None], ax: Axes | None
) -> Any:
    """Replace ``ax`` by the correlations of the residual of each output: with itself, and with each input."""
    p, m = test.bound.shape
    lags = test.autocorrelation.shape[1] - 1
    drawn = _grid(p, 1 + m, ax)
    for (i, j), axis in np.ndenumerate(drawn):
        if j == 0:
            at, values, bound = np.arange(lags + 1), test.autocorrelation[i], test.autocorrelation_bound
            title = f"residual of {label(names[0], 'output', i)}"
        else:
            at, values = np.arange(-lags, lags + 1), test.cross_correlation[i, j - 1]
            bound, title = test.bound[i, j - 1], f"and {label(names[1], 'input', j - 1)}"
        axis.axhspan(-bound, bound, color=REDUCED, alpha=0.25, label="99 % of independent ones")
        axis.plot(at, values, ".-", color=ERROR, linewidth=0.6, label="correlation")
        axis.set_title(title, fontsize="small")
    for axis in drawn[-1]:
        axis.set_xlabel("lag in samples")
    drawn[0, 0].legend(loc="best", fontsize="small")
    return drawn


def _grid(n_rows: int, n_columns: int, ax: Axes | None) -> Any:
    """Replace ``ax`` by a grid of axes."""
    size = (1.5 + 4 * n_columns, 1 + 2.4 * n_rows)
    figure, grid = grid_in_place(ax, n_rows, n_columns, figsize=size)
    drawn = np.empty((n_rows, n_columns), dtype=object)
    for i, j in np.ndindex(n_rows, n_columns):
        drawn[i, j] = figure.add_subplot(grid[i, j])
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
