"""What can go wrong, as types: every message says what was seen and what to do."""

from __future__ import annotations

from collections.abc import Iterable


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


def in_one_line(text: object, longest: int = 1000) -> str:
    """Return a name or message as part of one line: no control characters, not endless."""
    text = str(text)
    cut = text if len(text) <= longest else text[:longest] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def shown(value: object) -> str:
    """Return a value as messages quote it: as Python writes it, in one line, not endless."""
    try:
        return in_one_line(repr(value), 60)
    except ValueError:  # Python does not write out the longest whole numbers
        return "a number of thousands of digits"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Return the first of some names as part of one line."""
    lines = [in_one_line(name, 60) for name in names]
    more = [f"{len(lines) - most} more"] if len(lines) > most else []
    return ", ".join(lines[:most] + more) or "none"
