"""Matrices in Matrix Market files, one a file: NAME.A, NAME.B and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import FileFormatError, in_one_line, short_repr
from .arrays import LARGEST_IN_FILE
from .reading import check_readable

#: Endings of the files of one model, as the Oberwolfach collection names them.
ENDINGS = ("A", "B", "C", "D", "E", "M", "K")


def is_matrix_market(path: Path) -> bool:
    """Tell whether the ending is that of a matrix of a model."""
    return path.suffix[1:].upper() in ENDINGS


def read_together(path: Path) -> dict[str, Any]:
    """Read a Matrix Market file and those beside it with the same name and the other endings.

    Raises
    ------
    FileFormatError
        A file is missing, damaged, too large, or no Matrix Market file.
    """
    check_readable(path)
    matrices = {}
    for beside in sorted(path.parent.glob("*")):
        key = beside.suffix[1:].upper()
        if beside.stem == path.stem and key in ENDINGS:
            if key in matrices:
                raise FileFormatError(f"{in_one_line(beside)}: there is another file of {key}; keep one")
            matrices[key] = read_matrix(beside)
    return matrices


def read_matrix(path: Path) -> Any:
    """Read one matrix: sparse from coordinates, else an array."""
    check_readable(path)
    named = in_one_line(path)
    try:
        _check_header(path)
        from scipy.io import mmread

        return mmread(path)
    except FileFormatError as error:
        raise FileFormatError(f"{named}: {error}") from None
    except Exception as error:  # the reader of scipy raises many types
        detail = in_one_line(" ".join(str(error).split()), 120) or type(error).__name__
        raise FileFormatError(f"{named} is damaged or not a Matrix Market file ({detail})") from None


def _check_header(path: Path) -> None:
    """Refuse what is not a Matrix Market file, or names more entries than the file can hold."""
    with open(path, "rb") as file:
        first = file.readline(200).decode("ascii", "replace")
        words = first.lower().split()
        if words[:2] != ["%%matrixmarket", "matrix"] or len(words) != 5:
            raise FileFormatError(f"a Matrix Market file does not begin with {short_repr(first)}")
        if words[2] not in ("coordinate", "array") or words[3] not in ("real", "integer", "complex"):
            raise FileFormatError(f"it holds {words[3]} entries as {words[2]}; a matrix of numbers is wanted")
        line = file.readline(2000)
        while line.startswith(b"%") or (line and not line.strip()):
            line = file.readline(2000)
        text = line.decode("ascii", "replace").strip()
        try:
            sizes = [int(word) for word in text.split()]
        except ValueError:
            sizes = []
        if len(sizes) != (3 if words[2] == "coordinate" else 2) or min(sizes) < 0:
            raise FileFormatError(f"its line of sizes is {short_repr(text)}")
        entries = sizes[2] if len(sizes) == 3 else sizes[0] * sizes[1]
        if words[4] != "general" and len(sizes) == 2:
            entries //= 2
        # an entry takes a digit and the end of a line at least
        if 2 * entries > path.stat().st_size:
            raise FileFormatError(f"it names {entries} entries, more than a file of its size can hold")
        if 16 * max(entries, *sizes[:2]) > 4 * LARGEST_IN_FILE:
            raise FileFormatError(
                f"it names {entries} entries of {sizes[0]} x {sizes[1]}: too many to be read"
            )
