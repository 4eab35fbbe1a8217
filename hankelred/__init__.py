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

__version__ = "0.1.0"

__all__ = [
    "ConvergenceError",
    "FileFormatError",
    "HankelredError",
    "ModelError",
    "OrderError",
    "ReductionWarning",
    "UnstableError",
]
