"""What can go wrong, as types: every message says what was seen and what to do."""

from __future__ import annotations


class HankelredError(ValueError):
    """Base of every error hankelred raises on purpose."""


class ModelError(HankelredError):
    """The model itself cannot be used: shapes, values, type, or a missing capability."""


class OrderError(HankelredError):
    """The requested order, tolerance or energy cannot be met or makes no sense."""


class UnstableError(HankelredError):
    """The quantity asked for does not exist for a model with unstable or marginal poles."""


class ConvergenceError(HankelredError):
    """A solver did not reach its accuracy; nothing was returned rather than something wrong."""


class FileFormatError(HankelredError):
    """A file could not be read as a model or data, or could not be written as one."""


class ReductionWarning(UserWarning):
    """The reduction differs from what was asked in a way the result records."""
