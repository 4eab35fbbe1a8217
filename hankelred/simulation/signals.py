"""Checks and shapes of inputs, outputs and impulse responses, shared by simulation and convolution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from .._util.checks import first_index, require_finite
from ..errors import HankelredError


def as_numbers(values: npt.ArrayLike, name: str) -> Array:
    """Convert an array-like to an array of numbers."""
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
    advice: str | None = "remove or replace such samples first",
    owner: str = "the model",
) -> tuple[Array, bool]:
    """Convert an input to (m, T) float64 or complex128; also return whether it was 1-D.

    ``advice`` ends the error message about NaN or Inf; with None they are accepted. ``owner`` names what has
    the m inputs in the message about a wrong number of them.
    """
    signal = as_numbers(u, "u")
    is_1d = signal.ndim == 1
    if is_1d:
        if m != 1:
            raise HankelredError(
                f"u has one axis ({signal.shape[0]} samples) but {owner} has {m} inputs; give shape "
                f"({m}, samples)"
            )
        signal = signal[None]
    if signal.ndim != 2:
        raise HankelredError(f"u must have shape (inputs, samples) or (samples,), got {signal.shape}")
    if signal.shape[0] != m:
        hint = "; time is the last axis, so pass u.T" if signal.shape[1] == m else ""
        raise HankelredError(f"u has {signal.shape[0]} rows but {owner} has {m} inputs{hint}")
    signal = signal.astype(complex if np.iscomplexobj(signal) else float, copy=False)
    if advice is not None:
        at = first_index(~np.isfinite(signal))
        if at is not None:
            raise HankelredError(
                f"u[{at[0]}, {at[1]}] (input {at[0]}, sample {at[1]}) is {signal[at]}; every sample must be "
                f"finite: {advice}"
            )
    return signal, is_1d


def as_kernel(markov: npt.ArrayLike) -> Array:
    """Convert an impulse response to (n, p, m) float64 or complex128."""
    kernel = as_numbers(markov, "markov")
    if kernel.ndim == 1:
        kernel = kernel[:, None, None]
    if kernel.ndim != 3:
        raise HankelredError(
            f"markov must have shape (samples, outputs, inputs), or (samples,) for one channel, "
            f"got {kernel.shape}"
        )
    require_finite(kernel, "markov", HankelredError)
    return kernel.astype(complex if np.iscomplexobj(kernel) else float)


def as_output(y: Array, is_1d: bool) -> Array:
    """Return a single output as 1-D if the input was 1-D."""
    return y[0] if is_1d and y.shape[0] == 1 else y


def check_overflow(y: Array, what: str) -> None:
    """Refuse values that overflowed; time is the last axis."""
    if np.isfinite(y).all():
        return
    sample = int(np.argwhere(~np.isfinite(y))[:, -1].min())
    raise HankelredError(
        f"{what} exceeds double precision (1.8e308) at sample {sample} of {y.shape[-1]}; run fewer samples, "
        "or scale the input or the model down"
    )
