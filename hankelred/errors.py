"""The exceptions of the package. Each message names the problem, the value and the remedy."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable


class HankelredError(ValueError):
    """Base class of all exceptions that hankelred raises."""


class ModelError(HankelredError):
    """A model cannot be used: its shapes, its values, its type, or a feature that is not supported."""


class OrderError(HankelredError):
    """A requested order, tolerance or energy is invalid or cannot be met."""


class UnstableError(HankelredError):
    """The requested quantity does not exist for a model with unstable or marginal poles."""


class ConvergenceError(HankelredError):
    """A solver did not reach its accuracy, so no result is returned."""


class FileFormatError(HankelredError):
    """A file could not be read as a model or data, or could not be written as one."""


class ReductionWarning(UserWarning):
    """The reduction differs from the request; the result records how."""


def in_one_line(text: object, longest: int = 1000) -> str:
    """Return a name or message for use within one line: control characters escaped, length limited."""
    text = str(text)
    cut = text if len(text) <= longest else text[:longest] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def count(n: int, what: str) -> str:
    """Return the number with its noun, '1 input' or '2 inputs'."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


_REPR = reprlib.Repr()
# strings are cut below; of nested containers only the outermost levels are written, since a few hundred bytes
# of YAML can describe a structure whose whole repr does not fit into memory
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = _REPR.maxdeque = 20


def short_repr(value: object) -> str:
    """Return the repr of a value for an error message: in one line, length limited."""
    try:
        return in_one_line(_REPR.repr(value), 60)
    except ValueError:  # Python refuses to convert very long integers to decimal digits
        return "a number of thousands of digits"


def name_list(names: Iterable[str], most: int = 8) -> str:
    """Return the first few names, separated by commas, for use within one line."""
    lines = [in_one_line(name, 60) for name in names]
    more = [f"{len(lines) - most} more"] if len(lines) > most else []
    return ", ".join(lines[:most] + more) or "none"
