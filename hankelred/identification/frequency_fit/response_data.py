"""Frequency responses: checks of the arguments, the map from discrete time, and reading from files."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..._util.arrays import Array
from ..._util.checks import first_index, require_finite
from ..._util.reading import check_readable, open_arrays
from ...errors import FileFormatError, HankelredError, in_one_line, name_list, short_repr
from ...models.linear_model import LARGEST_ENTRY, Timebase, is_discrete, sampling_time, validated_timebase
from ..records import read_columns


@dataclass(frozen=True)
class ResponseData:
    """A frequency response after the checks: ``response`` (N, p, m) at ``omega`` (N,), in rad/s.

    With dt True, omega is in radians per sample.
    """

    response: Array
    omega: Array
    dt: Timebase
    input_labels: tuple[str, ...] | None = None
    output_labels: tuple[str, ...] | None = None

    @property
    def is_discrete(self) -> bool:
        """Whether the model is in discrete time."""
        return is_discrete(self.dt)

    @property
    def axis(self) -> Array:
        """The frequencies on the imaginary axis, which z = (1 + s) / (1 - s) maps to the unit circle."""
        if not self.is_discrete:
            return self.omega
        return np.tan(np.minimum(self.omega * sampling_time(self.dt), math.pi) / 2)


def as_response_data(data: Any, omega: Any, dt: Timebase) -> ResponseData:
    """Check a frequency response and convert it to arrays.

    Raises
    ------
    HankelredError
        The shapes do not fit, a value is not finite, the frequencies are not increasing, or beyond Nyquist.
    """
    dt = validated_timebase(dt)
    labels: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)
    control, skrf = sys.modules.get("control"), sys.modules.get("skrf")
    if control is not None and isinstance(data, control.FrequencyResponseData):
        _refuse_omega(omega, "FrequencyResponseData")
        omega, dt = data.omega, _common_timebase(data.dt, dt)
        labels = tuple(data.input_labels), tuple(data.output_labels)
        data = np.asarray(data.frdata if hasattr(data, "frdata") else data.fresp)
    elif skrf is not None and isinstance(data, skrf.Network):
        _refuse_omega(omega, "Network")
        data, omega = _of_network(data)
    elif omega is None:
        raise HankelredError(
            "omega is missing: pass the angular frequencies (N,) of the response (outputs, inputs, N), or a "
            "control.FrequencyResponseData, which holds both"
        )
    return _checked(data, omega, dt or 0, *labels)


def _refuse_omega(omega: Any, name: str) -> None:
    if omega is not None:
        raise HankelredError(f"a {name} holds its frequencies: leave omega out, or pass arrays")


def _of_network(network: Any) -> tuple[Array, Array]:
    """Return the scattering parameters (p, m, N) of a network of scikit-rf, and its frequencies in rad/s."""
    return np.moveaxis(np.asarray(network.s), 0, -1), 2 * math.pi * np.asarray(network.f, dtype=float)


def _common_timebase(of_data: Timebase, dt: Timebase) -> Timebase:
    of_data = validated_timebase(of_data)
    if not of_data:
        return dt
    if dt and dt is not True and of_data is not True and not math.isclose(float(dt), float(of_data)):
        raise HankelredError(f"dt={dt!r} disagrees with the {of_data!r} of the data; leave dt out")
    return dt if of_data is True and dt else of_data


def _checked(
    data: Any,
    omega: Any,
    dt: Timebase,
    input_labels: tuple[str, ...] | None,
    output_labels: tuple[str, ...] | None,
) -> ResponseData:
    try:
        frequencies = np.asarray(omega)
        response = np.asarray(data)
        if frequencies.dtype.kind not in "iuf" or response.dtype.kind not in "iufc":
            raise TypeError(f"their types are {response.dtype} and {frequencies.dtype}")
        frequencies = frequencies.astype(float)
    except (TypeError, ValueError) as error:
        raise HankelredError(f"the response and omega must be numeric arrays: {error}") from None
    if frequencies.ndim != 1 or frequencies.size == 0:
        raise HankelredError(f"omega must be one-dimensional, (N,), got shape {frequencies.shape}")
    if response.ndim == 1:
        response = response[None, None]
    if response.ndim != 3 or 0 in response.shape:
        raise HankelredError(
            f"the response must be (outputs, inputs, frequencies), or 1-D for one channel, got shape "
            f"{response.shape}"
        )
    if response.shape[2] != frequencies.size:
        advice = (
            "; frequency is the last axis: pass np.moveaxis(response, 0, -1)"
            if response.shape[0] == frequencies.size
            else ""
        )
        raise HankelredError(
            f"the response has shape {response.shape} and omega {frequencies.size} frequencies; the last "
            f"axis must be as long as omega{advice}"
        )
    if not np.iscomplexobj(response):
        raise HankelredError(
            "the response is real; it must be complex, since gains without phases do not determine a model"
        )
    at = first_index(~np.isfinite(response))
    if at is not None:
        i, j, k = at
        raise HankelredError(
            f"the response from input {j} to output {i} is {response[at]} at frequency {k} (omega = "
            f"{frequencies[k]:.6g}); leave that frequency out"
        )
    size = float(np.abs(response).max())
    if not 1 / LARGEST_ENTRY <= size <= LARGEST_ENTRY:
        raise HankelredError(
            f"the largest gain is {size:.1e}; {1 / LARGEST_ENTRY:.0e} to {LARGEST_ENTRY:.0e} is supported: "
            "choose other units"
            if size
            else "the response is zero at every frequency: there is nothing to fit"
        )
    _check_frequencies(frequencies, dt)
    return ResponseData(
        np.moveaxis(response, -1, 0).astype(complex), frequencies, dt, input_labels, output_labels
    )


def _check_frequencies(omega: Array, dt: Timebase) -> None:
    require_finite(omega, "omega", HankelredError, "every frequency must be finite")
    if omega.min() < 0:
        k = int(np.argmax(omega < 0))
        raise HankelredError(
            f"omega[{k}] is {omega[k]:.6g}; frequencies must not be negative (a real model has the conjugate "
            "response there)"
        )
    falls = np.flatnonzero(np.diff(omega) <= 0)
    if falls.size:
        k = int(falls[0])
        what = "twice" if omega[k] == omega[k + 1] else "not in increasing order"
        raise HankelredError(
            f"omega[{k}] = {omega[k]:.6g} is followed by {omega[k + 1]:.6g}: frequencies are {what}; sort "
            "them, and average repeated ones"
        )
    if is_discrete(dt):
        nyquist = math.pi / sampling_time(dt)
        if omega[-1] > nyquist * (1 + 1e-9):
            raise HankelredError(
                f"omega goes up to {omega[-1]:.6g}, beyond the Nyquist frequency pi / dt = {nyquist:.6g}; "
                "omega is in rad/s (2 pi times Hz), in radians per sample where dt is True"
            )
    elif omega[-1] > LARGEST_ENTRY or (omega[omega > 0].size and omega[omega > 0][0] < 1 / LARGEST_ENTRY):
        raise HankelredError(
            f"omega goes from {omega[0]:.1e} to {omega[-1]:.1e}; choose another unit of time"
        )


def read_response(path: str | Path, *, inputs: int = 1, in_hertz: bool = False) -> tuple[Array, Array]:
    r"""Read a frequency response: a table of text, an .npz or .mat file, or a Touchstone file.

    Parameters
    ----------
    path : path
        A table has one frequency per line: omega, then real and imaginary part of every entry, those of
        the first output and its inputs first. An .npz or .mat file has ``omega`` (N,), or ``f`` in Hz, and
        ``response`` (p, m, N). A Touchstone file (.s1p, .s2p, ...) is read by scikit-rf, if installed.
    inputs : int
        Number of inputs of a table.
    in_hertz : bool
        Whether the frequencies of a table are in Hz.

    Returns
    -------
    response : ndarray (p, m, N)
    omega : ndarray (N,)
        In rad per unit of time.

    Raises
    ------
    FileFormatError
        The file is missing, or is no such file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "response.csv"
    >>> _ = file.write_text("omega,re,im\n0.5,0.8,-0.4\n1,0.5,-0.5\n2,0.2,-0.4\n")
    >>> response, omega = read_response(file)
    >>> complex(response[0, 0, 1]), float(omega[1])
    ((0.5-0.5j), 1.0)
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_readable(path)
    if suffix in (".npz", ".mat"):
        return _read_arrays(path)
    if suffix.startswith(".s") and suffix.endswith("p") and suffix[2:-1].isdigit():
        return _read_touchstone(path)
    table, _ = read_columns(path)
    width = table.shape[1]
    if width < 3 or width % 2 == 0 or (width - 1) // 2 % inputs:
        raise FileFormatError(
            f"{in_one_line(path)} has {width} columns; a response of {inputs} input(s) has the frequency and "
            f"two columns, real and imaginary part, for each of its entries: 1 + 2 x outputs x {inputs}"
        )
    values = table[:, 1::2] + 1j * table[:, 2::2]
    omega = table[:, 0] * (2 * math.pi if in_hertz else 1.0)
    return values.T.reshape(-1, inputs, table.shape[0]), omega


def _read_arrays(path: Path) -> tuple[Array, Array]:
    with open_arrays(path) as content:
        names = {key.lower(): key for key in content}
        response = next((names[k] for k in ("response", "frdata", "h", "g") if k in names), None)
        frequency = next((k for k in ("omega", "w", "f") if k in names), None)
        if response is None or frequency is None:
            raise FileFormatError(
                "no frequency response: it needs response (outputs, inputs, N) and omega (N,), or f in Hz; "
                f"this one has {name_list(content)}"
            )
        omega = np.asarray(content[names[frequency]])
        values = np.asarray(content[response])
    if omega.dtype.kind not in "iuf":
        raise FileFormatError(f"{in_one_line(path)}: {frequency} has the type {short_repr(str(omega.dtype))}")
    omega = omega.astype(float).reshape(-1) * (2 * math.pi if frequency == "f" else 1.0)
    if values.size == omega.size:  # .mat files have no vectors
        values = values.reshape(-1)
    return values, omega


def _read_touchstone(path: Path) -> tuple[Array, Array]:
    try:
        import skrf
    except ImportError:
        raise FileFormatError(
            f"{in_one_line(path)} is a Touchstone file; scikit-rf reads it: pip install scikit-rf"
        ) from None
    try:
        network = skrf.Network(str(path))
    except Exception as error:  # the reader raises many types on damaged files
        raise FileFormatError(
            f"{in_one_line(path)} is damaged or no Touchstone file ({in_one_line(error, 120)})"
        ) from None
    return _of_network(network)
