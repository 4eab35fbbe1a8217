"""Recorded inputs and outputs: checks of the arguments, and reading from files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from .._util.arrays import LARGEST_IN_FILE, Array
from .._util.checks import first_index
from .._util.mat_files import MatFile
from .._util.reading import check_readable, open_arrays
from ..errors import FileFormatError, HankelredError, in_one_line, name_list, short_repr
from ..models.linear_model import LARGEST_ENTRY, Timebase, validated_timebase
from .tables import TIME_NAMES, check_same_times, from_table, is_same_step

#: Fields of structs in .mat files that are inputs and outputs, in lower case.
_STRUCT_FIELDS = {"u": ("inputdata", "u"), "y": ("outputdata", "y")}

#: Values of the property TimeUnit of MATLAB's iddata, in seconds. Months and years have no fixed length.
_SECONDS = {
    "nanoseconds": 1e-9,
    "microseconds": 1e-6,
    "milliseconds": 1e-3,
    "seconds": 1.0,
    "minutes": 60.0,
    "hours": 3600.0,
    "days": 86400.0,
    "weeks": 604800.0,
}


@dataclass(frozen=True)
class RecordedData:
    """One or several records of the same process, after the checks.

    ``inputs[e]`` is (m, T_e) and ``outputs[e]`` (p, T_e).
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    dt: Timebase
    input_labels: tuple[str, ...] | None = None
    output_labels: tuple[str, ...] | None = None

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        return int(self.inputs[0].shape[0])

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return int(self.outputs[0].shape[0])

    @property
    def n_samples(self) -> int:
        """Samples of all records together."""
        return sum(u.shape[1] for u in self.inputs)

    @property
    def is_complex(self) -> bool:
        """Whether any signal is complex."""
        return any(np.iscomplexobj(x) for x in (*self.inputs, *self.outputs))


def as_recorded_data(u: Any, y: Any, dt: Timebase = True, *, allow_missing: bool = False) -> RecordedData:
    """Check a record, or a list of records, and convert it to a list of arrays.

    Parameters
    ----------
    u, y : array_like (m, T) and (p, T), or lists of arrays
        Inputs and outputs, time last; 1-D for one channel. A list (or tuple) of arrays is several
        records. ``u`` may be a ``control.TimeResponseData``, or a list of them, with ``y`` None.
    dt : True or float
        Sampling time in seconds. A ``TimeResponseData`` has its own.
    allow_missing : bool
        Accept NaN as missing samples.

    Raises
    ------
    HankelredError
        The shapes do not fit, the axes are swapped, or a sample is NaN or Inf.
    """
    dt = validated_timebase(dt)
    labels: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)
    responses = _time_responses(u)
    if responses is not None:
        if y is not None:
            raise HankelredError("a TimeResponseData holds inputs and outputs: leave y out, or pass arrays")
        us, ys, dt, labels = _from_responses(responses, dt)
    else:
        if y is None:
            raise HankelredError(
                "y is missing: pass u and y, or one control.TimeResponseData that holds both"
            )
        us, ys = _as_list(u), _as_list(y)
        us, ys, dt, labels = _from_tables(us, ys, dt)
    if not dt:
        raise HankelredError(
            f"dt is {dt!r}, but a record is sampled: pass the sampling time in seconds, or True where it "
            "has none"
        )
    if len(us) != len(ys):
        raise HankelredError(
            f"there are {len(us)} input records and {len(ys)} output records; pass as many of each"
        )
    if not us:
        raise HankelredError("there is no record: pass u and y, or lists of them with at least one entry")
    where = [f" of experiment {e}" if len(us) > 1 else "" for e in range(len(us))]
    us = [_channels(x, "u" + w, allow_missing) for x, w in zip(us, where, strict=True)]
    ys = [_channels(x, "y" + w, allow_missing) for x, w in zip(ys, where, strict=True)]
    _check_sizes(us, ys, where)
    return RecordedData(tuple(us), tuple(ys), dt, *labels)


def _check_sizes(us: Sequence[Array], ys: Sequence[Array], where: Sequence[str]) -> None:
    """Refuse swapped axes, and sizes that do not fit each other."""
    for u_e, y_e, w in zip(us, ys, where, strict=True):
        for x, name in ((u_e, "u"), (y_e, "y")):
            if x.shape[0] > x.shape[1]:
                raise HankelredError(
                    f"{name}{w} has shape {x.shape}: {x.shape[0]} channels of only {x.shape[1]} samples. "
                    f"Time is the last axis; if the rows are samples, pass {name}.T"
                )
        if u_e.shape[1] != y_e.shape[1]:
            raise HankelredError(
                f"u{w} has {u_e.shape[1]} samples and y{w} has {y_e.shape[1]} (shapes {u_e.shape} and "
                f"{y_e.shape}); time is the last axis and both must cover the same samples"
            )
    for group, name in ((us, "u"), (ys, "y")):
        if len({x.shape[0] for x in group}) > 1:
            raise HankelredError(
                f"the experiments have {', '.join(str(x.shape[0]) for x in group)} channels of {name}; "
                "they must all have the same"
            )


def label(labels: Sequence[str] | None, kind: str, index: int) -> str:
    """Return the name of a channel, or its kind and number."""
    return labels[index] if labels else f"{kind} {index}"


def refuse_constant_channels(data: RecordedData, *, outputs: bool = True, from_rest: bool = False) -> None:
    """Raise for a channel that is constant in every record: it carries no information.

    A constant output is no problem for a linear regression (its parameters are zero): with `outputs` False
    it is accepted. With `from_rest` everything was zero before the record: a constant input is then a step
    at its first sample, and only a zero input is refused.

    Raises
    ------
    HankelredError
        The message names the channel and its value.
    """
    for i in constant_channels(data.inputs):
        level = data.inputs[0][i, 0]
        if not from_rest or not any(x[i].any() for x in data.inputs):
            advice = (
                "it has no effect; leave it out"
                if from_rest
                else "its effect cannot be distinguished from an offset; leave it out, or, if everything was "
                "zero before the record, pass offsets=False or past='rest'"
            )
            raise HankelredError(f"input {i} is constant ({level:.6g}) over the whole record: {advice}")
    for i in constant_channels(data.outputs) if outputs else ():
        level = data.outputs[0][i, 0]
        raise HankelredError(
            f"output {i} is constant ({level:.6g}) over the whole record: there is nothing to model; "
            "leave it out"
        )


def refuse_dependent_inputs(data: RecordedData, *, offsets: bool) -> None:
    """Raise for linearly dependent inputs: their effects cannot be distinguished.

    Raises
    ------
    HankelredError
        The message names the channels.
    """
    joined = np.concatenate(data.inputs, axis=1)
    if offsets:
        joined = joined - joined.mean(axis=1, keepdims=True)
    left, sizes, _ = np.linalg.svd(
        joined / np.linalg.norm(joined, axis=1, keepdims=True), full_matrices=False
    )
    # two copies of a channel may differ by the rounding of a unit conversion
    if sizes[-1] <= 1e-12 * sizes[0]:
        channels = np.flatnonzero(np.abs(left[:, -1]) > 1e-6)
        raise HankelredError(
            f"inputs {', '.join(map(str, channels))} move together over the whole record: their effects "
            "cannot be distinguished; leave one of them out, or move them one after the other"
        )


def constant_channels(records: Sequence[Array]) -> list[int]:
    """Return the channels that are constant in every record."""
    # A range as small as the rounding of the level is a constant after a unit conversion.
    return [
        i
        for i in range(records[0].shape[0])
        if all(np.ptp(np.abs(x[i] - x[i, 0])) <= 1e-13 * np.abs(x[i, 0]) for x in records)
    ]


def _time_responses(u: Any) -> list[Any] | None:
    control = sys.modules.get("control")
    if control is None:  # then the user cannot hold one of its objects
        return None
    items = list(u) if isinstance(u, list | tuple) else [u]
    if items and all(isinstance(item, control.TimeResponseData) for item in items):
        return items
    return None


def _from_responses(
    responses: list[Any], dt: Timebase
) -> tuple[list[Any], list[Any], Timebase, tuple[tuple[str, ...] | None, tuple[str, ...] | None]]:
    us: list[Any] = []
    ys: list[Any] = []
    steps = []
    for response in responses:
        if response.inputs is None:
            raise HankelredError(
                "the TimeResponseData holds no input (an initial response?); pass u and y as arrays"
            )
        u, y = np.asarray(response.u), np.asarray(response.y)
        # A response "per input" (impulse, step) has a trace axis: each trace is a record.
        traces = range(u.shape[1]) if u.ndim == 3 else [None]
        for trace in traces:
            us.append(u if trace is None else u[:, trace])
            ys.append(y if trace is None else y[:, trace])
        time = np.asarray(response.time, dtype=float)
        if time.size > 1:
            step = (time[-1] - time[0]) / (time.size - 1)
            if not step > 0 or not np.allclose(np.diff(time), step, rtol=1e-6, atol=0):
                raise HankelredError(
                    f"the time axis does not rise uniformly: steps from {np.diff(time).min():.6g} to "
                    f"{np.diff(time).max():.6g}; resample the record first"
                )
            steps.append(step)
    if steps:
        dt = _common_step(steps, dt)
    first = responses[0]
    labels = (
        tuple(first.input_labels) if first.input_labels else None,
        tuple(first.output_labels) if first.output_labels else None,
    )
    return us, ys, dt, labels


def _common_step(steps: list[float], dt: Timebase) -> Timebase:
    """Return the sampling time of records with their own, which dt must not contradict."""
    if not all(is_same_step(step, steps[0]) for step in steps):
        raise HankelredError(f"the records are sampled at different times ({steps}); resample them first")
    if not isinstance(dt, bool) and dt is not None and not is_same_step(float(dt), steps[0]):
        raise HankelredError(
            f"dt={dt!r} disagrees with the record's own time step {steps[0]:.6g}; leave dt out"
        )
    # The average over the record is rounded, so that 0.1 seconds stays 0.1.
    return float(f"{steps[0]:.9g}")


def _from_tables(
    us: list[Any], ys: list[Any], dt: Timebase
) -> tuple[list[Any], list[Any], Timebase, tuple[tuple[str, ...] | None, tuple[str, ...] | None]]:
    """Replace tables by arrays; their names and times are used."""
    groups, labels, steps, axes = [], [], [], []
    for records, name in ((us, "u"), (ys, "y")):
        tables = [from_table(x, name) for x in records]
        groups.append([x if t is None else t.values for x, t in zip(records, tables, strict=True)])
        labels.append(next((t.labels for t in tables if t is not None), None))
        steps += [t.step for t in tables if t is not None and t.step is not None]
        axes.append([None if t is None else t.times for t in tables])
    if steps:
        dt = _common_step(steps, dt)
    # that both have as many records is checked later
    for e, (times_of_u, times_of_y) in enumerate(zip(*axes, strict=False)):
        check_same_times(times_of_u, times_of_y, f" of experiment {e}" if len(us) > 1 else "")
    return *groups, dt, (labels[0], labels[1])  # type: ignore[return-value]


def _as_list(x: Any) -> list[Any]:
    if isinstance(x, list | tuple) and x:
        depth = np.ndim(x[0]) if isinstance(x[0], np.ndarray) else _depth(x[0]) - 1
        if isinstance(x[0], np.ndarray) or depth >= 1:
            return list(x)
    return [x]


def _depth(x: Any) -> int:
    return 1 + _depth(x[0]) if isinstance(x, list | tuple) and x else int(np.ndim(x))


def _channels(x: Any, name: str, allow_missing: bool) -> Array:
    try:
        out = np.asarray(x)
        out = out.astype(complex if np.iscomplexobj(out) else float)
    except (TypeError, ValueError) as error:
        raise HankelredError(f"{name} is not a numeric record: {error}") from None
    if out.ndim == 1:
        out = out[np.newaxis]
    if out.ndim != 2:
        raise HankelredError(
            f"{name} must be (channels, samples) or 1-D, got shape {out.shape}; pass several experiments "
            "as a list"
        )
    if out.shape[0] == 0 or out.shape[1] == 0:
        raise HankelredError(f"{name} is empty (shape {out.shape}); a record needs channels and samples")
    finite = np.isfinite(out) | (np.isnan(out) if allow_missing else False)
    at = first_index(~finite)
    if at is not None:
        bad = int(np.count_nonzero(~finite))
        raise HankelredError(
            f"{name} has {bad} value(s) that are not finite, the first {out[at]} at channel "
            f"{at[0]}, sample {at[1]}; interpolate them, or cut the record there and pass the "
            "pieces as a list (missing='bridge', or --missing bridge, does both for NaN)"
        )
    for channel, size in enumerate(np.abs(np.nan_to_num(out)).max(axis=1)):
        if size and not 1 / LARGEST_ENTRY <= size <= LARGEST_ENTRY:
            raise HankelredError(
                f"channel {channel} of {name} has values of up to {size:.1e}; {1 / LARGEST_ENTRY:.0e} to "
                f"{LARGEST_ENTRY:.0e} is supported: choose other units"
            )
    return out


def read_columns(path: str | Path) -> tuple[Array, list[str] | None]:
    r"""Read a table of samples: whitespace or comma separated text (with or without a header), or .mat.

    Parameters
    ----------
    path : path
        The numeric vectors and matrices of a .mat file are joined column by column in the order of the
        file; rows are samples. A struct with the fields of MATLAB's iddata (``InputData`` or ``u``,
        ``OutputData`` or ``y``, ``Ts``) gives the columns u, y, and time.

    Returns
    -------
    table : ndarray (samples, columns)
    names : list of str or None
        From the header, or the .mat variables.

    Raises
    ------
    FileFormatError
        The file is missing or no table, or a cell is not a number (the message names line and column).

    Examples
    --------
    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "record.csv"
    >>> _ = file.write_text("u,y\n1,0\n0,0.5\n")
    >>> table, names = read_columns(file)
    >>> table.shape, names
    ((2, 2), ['u', 'y'])
    """
    path = Path(path)
    check_readable(path)
    if path.suffix.lower() == ".mat":
        return _read_mat(path)
    return _read_text(path)


def _read_mat(path: Path) -> tuple[Array, list[str] | None]:
    columns: list[Array] = []
    names: list[str] = []
    with open_arrays(path) as opened_file:
        content = cast(MatFile, opened_file)
        for key in content:
            if content.kind(key) == "struct":
                for name, column in _struct_columns(content.fields(key)):
                    columns.append(column)
                    names.append(name)
                continue
            if content.kind(key) not in ("numbers", "logicals"):
                continue
            value = content[key]
            if (
                np.iscomplexobj(value) or value.ndim != 2 or value.size < 2
            ):  # scalars such as dt are not samples
                continue
            block = value if value.shape[0] >= value.shape[1] else value.T
            for j in range(block.shape[1]):
                columns.append(block[:, j].astype(float))
                names.append(key if block.shape[1] == 1 else f"{key}{j}")
        if not columns:
            raise FileFormatError(f"no real vector or matrix of samples; it holds {name_list(content)}")
        if len({c.size for c in columns}) > 1:
            sizes = [f"{name} {column.size}" for name, column in zip(names, columns, strict=True)]
            raise FileFormatError(
                f"its variables have different lengths ({name_list(sizes)}); store one record per file"
            )
    return np.column_stack(columns), names


def _struct_columns(fields: Mapping[str, Any]) -> list[tuple[str, Array]]:
    """Return the columns of a struct with the fields of MATLAB's iddata: inputs, outputs, and times."""
    by_name = {name.lower(): value for name, value in fields.items()}
    columns: list[tuple[str, Array]] = []
    for channel, field_names in _STRUCT_FIELDS.items():
        value = next((by_name[name] for name in field_names if name in by_name), None)
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.size < 2 or np.iscomplexobj(value):
            return []
        block = value if value.shape[0] > 1 else value.T  # samples first, as in iddata; or one channel
        for j, column in enumerate(block.T.astype(float)):
            columns.append((channel if block.shape[1] == 1 else f"{channel}{j}", column))
    step = np.asarray(by_name.get("ts", 0.0))
    if step.size == 1 and step.dtype.kind in "iuf" and step.item() > 0:
        seconds = step.item() * _seconds_of_unit(by_name.get("timeunit"))
        columns.append(("time", seconds * np.arange(columns[0][1].size)))
    return columns


def _seconds_of_unit(unit: Any) -> float:
    """Return how many seconds the TimeUnit of an iddata has; seconds where there is none, or an empty one."""
    if unit is None or np.size(unit) == 0 or unit == "":
        return 1.0
    if not isinstance(unit, str) or unit not in _SECONDS:
        raise FileFormatError(
            f"the TimeUnit of the struct is {short_repr(unit)}; it must be one of {name_list(_SECONDS)}"
        )
    return _SECONDS[unit]


def _read_text(path: Path) -> tuple[Array, list[str] | None]:
    name = in_one_line(path)
    try:
        if path.stat().st_size > LARGEST_IN_FILE:
            raise FileFormatError(
                f"{name} is larger than {LARGEST_IN_FILE} bytes; read it in pieces, or thin it out"
            )
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{name} is not text ({error}); pass columns of numbers, or a .mat file"
        ) from None
    except OSError as error:
        raise FileFormatError(f"{name} cannot be read: {error.strerror or error}") from None
    rows = [(i, s) for i, line in enumerate(lines, 1) if (s := line.strip()) and s[0] not in "#%"]
    if not rows:
        raise FileFormatError(f"{name} has no samples in it")
    delimiter = next((d for d in ",;\t" if d in rows[0][1]), None)
    # A tab-separated file often has blanks next to its tabs: splitting on any white space reads both.
    try:
        cells = [
            (
                i,
                next(csv.reader([s], delimiter=delimiter, strict=True))
                if delimiter in (",", ";")
                else s.split(),
            )
            for i, s in rows
        ]
    except csv.Error as error:  # a null character, a cell of more than 131072 characters
        raise FileFormatError(f"{name} is no table ({error}); pass columns of numbers") from None
    names: list[str] | None = None
    if not _is_number(cells[0][1][0]):
        names = [c.strip() for c in cells[0][1]]
        cells = cells[1:]
        if not cells:
            raise FileFormatError(f"{name} has a header and no samples")
    width = len(names) if names else len(cells[0][1])
    table = np.empty((len(cells), width))
    for r, (line, row) in enumerate(cells):
        if len(row) != width:
            raise FileFormatError(f"{name}, line {line}: {len(row)} columns, where {width} were expected")
        for c, cell in enumerate(row):
            if not _is_number(cell):
                raise FileFormatError(
                    f"{name}, line {line}, column {c}: {short_repr(cell)} is not a number{_advice(cell)}"
                )
            table[r, c] = float(cell)
    return table, names


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # float accepts 1_0 for 10


def _advice(cell: str) -> str:
    return "; write a decimal point" if _is_number(cell.replace(",", ".")) else ""


def time_columns(names: Sequence[str] | None, used: Sequence[int] = ()) -> list[int]:
    """Return the columns of a table that are times by their names, without those used as channels."""
    return [k for k, name in enumerate(names or []) if name.lower() in TIME_NAMES and k not in used]


def describe_columns(names: Sequence[str] | None, width: int) -> str:
    """Describe the columns of a table in one line."""
    return f"columns 0 to {width - 1}" + (f" ({name_list(names, 20)})" if names else "")


def choose_columns(choice: Sequence[str], names: Sequence[str] | None, width: int) -> list[int]:
    """Turn column numbers (from 0, negative from the end) or header names into column numbers.

    Raises
    ------
    FileFormatError
        There is no such column; the message lists those of the file.

    Examples
    --------
    >>> choose_columns(["u", "-1"], ["time", "u", "y"], 3)
    [1, 2]
    """
    description = describe_columns(names, width)
    columns = []
    for item in choice:
        if names is not None and item in names:
            if list(names).count(item) > 1:
                raise FileFormatError(
                    f"{short_repr(item)} names several columns; choose by number: the file has {description}"
                )
            columns.append(list(names).index(item))
            continue
        try:
            number = int(item)
        except ValueError:
            raise FileFormatError(
                f"there is no column {short_repr(item)}; the file has {description}"
            ) from None
        if not -width <= number < width:
            raise FileFormatError(f"there is no column {short_repr(number)}; the file has {description}")
        columns.append(number % width)
    return columns
