"""Hankel singular values, certified model reduction and their pictures for any linear model."""

from __future__ import annotations

from ._errors import (
    ConvergenceError,
    FileFormatError,
    HankelredError,
    ModelError,
    OrderError,
    ReductionWarning,
    UnstableError,
)
from .convolution import Convolver, convolve, impulse_response, simulate

__version__ = "0.1.0"

__all__ = [
    "ConvergenceError",
    "Convolver",
    "FileFormatError",
    "HankelredError",
    "ModelError",
    "OrderError",
    "ReductionWarning",
    "UnstableError",
    "convolve",
    "impulse_response",
    "simulate",
]
