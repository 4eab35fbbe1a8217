"""Records as tables with names and times: pandas, xarray and polars, recognized without importing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .._util.arrays import Array
from ..errors import HankelredError

#: Names of columns and dimensions that are times.
TIME_NAMES = ("time", "t", "seconds")


@dataclass(frozen=True)
class TimeAxis:
    """The times of a record, or the numbers of its samples.

    ``first`` is in nanoseconds (an int, which is exact) for dates, in seconds for times, a number of samples
    for an index that counts them.
    ``step`` is in seconds, or in samples; None for a single sample.
    """

    kind: Literal["dates", "times", "samples"]
    first: float
    step: float | None


@dataclass(frozen=True)
class Table:
    """Channels (channels, samples) with their names and times; None where there are none."""

    values: Any
    labels: tuple[str, ...] | None
    times: TimeAxis | None

    @property
    def step(self) -> float | None:
        """Sampling time in seconds; numbers of samples have none."""
        return None if self.times is None or self.times.kind == "samples" else self.times.step


def from_table(x: Any, name: str) -> Table | None:
    """Convert a table of pandas, xarray or polars; None for anything else.

    Raises
    ------
    HankelredError
        Its times are not uniform, or its index counts samples with a gap.
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
        return Table(x.to_numpy(), label, _index_axis(x.index, name))
    if x.shape[1] > x.shape[0]:  # channels in rows, as hankelred has them
        x = x.T
    times = next((c for c in x.columns if str(c).lower() in TIME_NAMES), None)
    if times is None:
        axis = _index_axis(x.index, name)
    else:
        axis = _time_axis(_numbers(x.set_index(times).index), name)
        x = x.drop(columns=times)
    return Table(x.to_numpy().T, _labels(x.columns), axis)


def _numbers(index: Any) -> Array:
    """Return the entries of an index; dates in a time zone, which numpy does not have, in UTC."""
    return np.asarray((index if getattr(index, "tz", None) is None else index.tz_convert(None)).to_numpy())


def _index_axis(index: Any, name: str) -> TimeAxis | None:
    values = _numbers(index)
    if values.dtype.kind not in "iu":
        return _time_axis(values, name)
    if not values.size:
        return None
    # whole numbers count samples; a gap means that rows were removed
    steps = np.diff(values.astype(np.int64))
    if steps.size and (steps[0] <= 0 or np.any(steps != steps[0])):
        k = int(np.argmax((steps != steps[0]) | (steps <= 0)))
        raise HankelredError(
            f"the index of {name} is not evenly spaced: {values[k + 1]} follows {values[k]}, so samples are "
            "missing or not in order; pass the parts without a gap as a list, or use reset_index(drop=True) "
            "if the samples do follow each other"
        )
    return TimeAxis("samples", int(values[0]), int(steps[0]) if steps.size else None)


def _time_axis(times: Array, name: str) -> TimeAxis | None:
    if times.dtype.kind not in "iufmM" or not times.size:
        return None
    step = time_step(times, name)
    if times.dtype.kind == "M":
        return TimeAxis("dates", int(times[0].astype("datetime64[ns]").astype(np.int64)), step)
    if times.dtype.kind == "m":
        return TimeAxis("times", float(times[0].astype("timedelta64[ns]").astype(float) * 1e-9), step)
    return TimeAxis("times", float(times[0]), step)


def check_same_times(u: TimeAxis | None, y: TimeAxis | None, where: str) -> None:
    """Refuse an input and an output record whose times begin at different times.

    Raises
    ------
    HankelredError
        The message has both times.
    """
    if u is None or y is None or u.kind != y.kind:
        return
    unit = {"dates": 1e-9, "times": 1.0, "samples": 1.0}[u.kind]
    shift = (y.first - u.first) * unit
    # the times may be rounded to a few digits, as in time_step
    if abs(shift) > 2e-3 * (u.step or 0):
        what = "sample(s)" if u.kind == "samples" else "s"
        advice = ", or use reset_index(drop=True) if they do belong together" if u.kind == "samples" else ""
        side = "after" if shift > 0 else "before"
        raise HankelredError(
            f"the record of y{where} begins {abs(shift):.6g} {what} {side} that of u{where}; cut both to "
            f"the same times{advice}"
        )
    if u.kind == "samples" and u.step != y.step:
        raise HankelredError(
            f"the index of u{where} has steps of {u.step} and that of y{where} of {y.step}; "
            "take the same samples of both"
        )


def _from_xarray(x: Any, name: str) -> Table:
    if x.ndim not in (1, 2):
        raise HankelredError(
            f"{name} has the dimensions {tuple(x.dims)}; a record has one of time and at most one of channels"
        )
    dims = list(x.dims)
    time = next((d for d in dims if str(d).lower() in TIME_NAMES), dims[int(np.argmax(x.shape))])
    axis = _time_axis(x.coords[time].to_numpy(), name) if time in x.coords else None
    if x.ndim == 1:
        return Table(x.to_numpy(), None if x.name is None else (str(x.name),), axis)
    channel = next(d for d in dims if d != time)
    labels = _labels(x.coords[channel].to_numpy()) if channel in x.coords else None
    return Table(x.transpose(channel, time).to_numpy(), labels, axis)


def _from_polars(x: Any, name: str) -> Table:
    if type(x).__name__ == "Series":
        return Table(x.to_numpy(), (x.name,) if x.name else None, None)
    times = next((c for c in x.columns if c.lower() in TIME_NAMES), None)
    axis = None
    if times is not None:
        axis = _time_axis(x[times].to_numpy(), name)
        x = x.drop(times)
    return Table(x.to_numpy().T, _labels(x.columns), axis)


def _labels(names: Sequence[Any] | Array) -> tuple[str, ...] | None:
    """Return names; None where they are numbers, which number the columns only."""
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def time_step(times: Array, name: str) -> float | None:
    """Return the step in seconds of uniform times, numbers or dates. None for a single sample.

    Raises
    ------
    HankelredError
        The times are not uniform.
    """
    if times.dtype.kind in "mM":
        times = (times - times[:1]).astype("timedelta64[ns]").astype(float) * 1e-9
    if times.size < 2:
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


def is_same_step(step: float, other: float) -> bool:
    """Return whether two sampling times are the same but for the rounding of the times."""
    return abs(step - other) <= 1e-6 * abs(other)
