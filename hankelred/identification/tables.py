"""Records as tables with names and times: pandas, xarray and polars, recognized without importing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._util.arrays import Array
from ..errors import HankelredError

#: Names of columns and dimensions that are times.
TIME_NAMES = ("time", "t", "seconds")


@dataclass(frozen=True)
class Table:
    """Channels (channels, samples) with their names, and the sampling time; None where there are none."""

    values: Any
    labels: tuple[str, ...] | None
    step: float | None


def from_table(x: Any, name: str) -> Table | None:
    """Convert a table of pandas, xarray or polars; None for anything else.

    Raises
    ------
    HankelredError
        Its times are not uniform.
    """
    package = type(x).__module__.split(".")[0]
    kind = type(x).__name__
    if package == "pandas" and kind in ("DataFrame", "Series"):
        return _from_pandas(x, name)
    if package == "xarray" and kind == "DataArray":
        return _from_xarray(x, name)
    if package == "polars" and kind in ("DataFrame", "Series"):
        return _from_polars(x, name)
    return None


def _from_pandas(x: Any, name: str) -> Table:
    if x.ndim == 1:
        label = None if x.name is None else (str(x.name),)
        return Table(x.to_numpy(), label, _step_of_index(x.index, name))
    if x.shape[1] > x.shape[0]:  # channels in rows, as hankelred has them
        x = x.T
    times = next((c for c in x.columns if str(c).lower() in TIME_NAMES), None)
    step = _step_of_index(x.index, name)
    if times is not None:
        step = time_step(x[times].to_numpy(), name)
        x = x.drop(columns=times)
    return Table(x.to_numpy().T, _labels(x.columns), step)


def _step_of_index(index: Any, name: str) -> float | None:
    values = index.to_numpy()
    # numbers of samples are no times
    return None if values.dtype.kind not in "fmM" else time_step(values, name)


def _from_xarray(x: Any, name: str) -> Table:
    if x.ndim not in (1, 2):
        raise HankelredError(
            f"{name} has the dimensions {tuple(x.dims)}; a record has one of time and at most one of channels"
        )
    dims = list(x.dims)
    time = next((d for d in dims if str(d).lower() in TIME_NAMES), dims[int(np.argmax(x.shape))])
    step = time_step(x.coords[time].to_numpy(), name) if time in x.coords else None
    if x.ndim == 1:
        return Table(x.to_numpy(), None if x.name is None else (str(x.name),), step)
    channel = next(d for d in dims if d != time)
    labels = _labels(x.coords[channel].to_numpy()) if channel in x.coords else None
    return Table(x.transpose(channel, time).to_numpy(), labels, step)


def _from_polars(x: Any, name: str) -> Table:
    if type(x).__name__ == "Series":
        return Table(x.to_numpy(), (x.name,) if x.name else None, None)
    times = next((c for c in x.columns if c.lower() in TIME_NAMES), None)
    step = None
    if times is not None:
        step = time_step(x[times].to_numpy(), name)
        x = x.drop(times)
    return Table(x.to_numpy().T, _labels(x.columns), step)


def _labels(names: Sequence[Any] | Array) -> tuple[str, ...] | None:
    """Return names; None where they are numbers, which number the columns only."""
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def time_step(times: Array, name: str) -> float | None:
    """Return the step of uniform times in seconds; of dates too. None for a single sample.

    Raises
    ------
    HankelredError
        The times are not uniform.
    """
    times = np.asarray(times)
    if times.dtype.kind in "mM":
        times = (times - times[:1]).astype("timedelta64[ns]").astype(float) * 1e-9
    if times.size < 2 or times.dtype.kind not in "iuf":
        return None
    times = times.astype(float)
    step = (times[-1] - times[0]) / (times.size - 1)
    differences = np.diff(times)
    # times are often written with few digits: the rounding of each may be a thousandth of a step
    if not step > 0 or not np.allclose(differences, step, rtol=2e-3, atol=0):
        raise HankelredError(
            f"the times of {name} are not uniform: steps from {differences.min():.6g} to "
            f"{differences.max():.6g}; resample the record first"
        )
    return float(f"{step:.6g}") if np.abs(differences - step).max() > 1e-9 * step else float(f"{step:.9g}")
