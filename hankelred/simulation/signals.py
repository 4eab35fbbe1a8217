"""Inputs, outputs and impulse responses: the checks and shapes every convolution shares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from ..errors import HankelredError


def as_numbers(values: npt.ArrayLike, name: str) -> Array:
    """Bring anything array-like to an array of numbers."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise HankelredError(f"{name} is not an array of numbers: {error}") from None
    if array.dtype.kind not in "biufc":
        if hasattr(values, "markov"):
            raise HankelredError(f"{name} must hold numbers, got a {type(values).__name__}: pass its .markov")
        raise HankelredError(f"{name} must hold numbers, got an array of {array.dtype}")
    return array


def as_input(
    u: npt.ArrayLike,
    m: int,
    *,
    finite: str | None = "remove or replace such samples first",
    whose: str = "the model",
) -> tuple[Array, bool]:
    """Bring an input to (m, T) float64 or complex128; also tell whether it was 1-D.

    ``finite`` is the advice that goes with the error for NaN or Inf; None lets them through. ``whose``
    inputs these are is said where their number does not fit.
    """
    signal = as_numbers(u, "u")
    flat = signal.ndim == 1
    if flat:
        if m != 1:
            raise HankelredError(
                f"u has one axis ({signal.shape[0]} samples) but {whose} has {m} inputs; give shape "
                f"({m}, samples)"
            )
        signal = signal[None]
    if signal.ndim != 2:
        raise HankelredError(f"u must have shape (inputs, samples) or (samples,), got {signal.shape}")
    if signal.shape[0] != m:
        hint = "; time is the last axis, so pass u.T" if signal.shape[1] == m else ""
        raise HankelredError(f"u has {signal.shape[0]} rows but {whose} has {m} inputs{hint}")
    signal = signal.astype(complex if np.iscomplexobj(signal) else float, copy=False)
    if finite is not None:
        good = np.isfinite(signal)
        if not good.all():
            channel, sample = np.argwhere(~good)[0]
            raise HankelredError(
                f"u[{channel}, {sample}] (input {channel}, sample {sample}) is "
                f"{signal[channel, sample]}; every sample must be finite: {finite}"
            )
    return signal, flat


def as_kernel(markov: npt.ArrayLike) -> Array:
    """Bring an impulse response to (n, p, m) float64 or complex128."""
    kernel = as_numbers(markov, "markov")
    if kernel.ndim == 1:
        kernel = kernel[:, None, None]
    if kernel.ndim != 3:
        raise HankelredError(
            f"markov must have shape (samples, outputs, inputs), or (samples,) for one channel, "
            f"got {kernel.shape}"
        )
    good = np.isfinite(kernel)
    if not good.all():
        k, o, i = np.argwhere(~good)[0]
        raise HankelredError(f"markov[{k}, {o}, {i}] is {kernel[k, o, i]}; every entry must be finite")
    return kernel.astype(complex if np.iscomplexobj(kernel) else float)


def as_output(y: Array, flat: bool) -> Array:
    """Give one output back as 1-D where the input was."""
    return y[0] if flat and y.shape[0] == 1 else y


def check_overflow(y: Array, what: str) -> None:
    """Refuse values that left the range of double precision; time is the last axis."""
    if np.isfinite(y).all():
        return
    sample = int(np.argwhere(~np.isfinite(y))[:, -1].min())
    raise HankelredError(
        f"{what} exceeds double precision (1.8e308) at sample {sample} of {y.shape[-1]}; run fewer samples, "
        "or scale the input or the model down"
    )
