"""Readers of .mat, .npz and .json files, as arrays by name, that do not trust the contents of a file."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import FileFormatError, HankelredError, in_one_line, short_repr
from .arrays import LARGEST_IN_FILE, Array
from .checks import is_rounded_to_zero
from .mat_files import MatFile

FORMATS = (".mat", ".npz", ".json")


def checked_suffix(path: Path, others: str = "") -> str:
    """Return the suffix of a model file; refuse an unknown one before any work is done.

    Parameters
    ----------
    path : Path
    others : str
        Other endings that the caller reads itself, for the message.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise FileFormatError(
            f"{in_one_line(path)}: the ending must be one of {', '.join(FORMATS)}{others}, "
            f"got {short_repr(suffix or 'none')}"
        )
    return suffix


def recognized_format(start: bytes) -> str | None:
    """Return the format of a file, json, npz or mat, by its first bytes; None for text and anything else.

    Parameters
    ----------
    start : bytes
        The first 128 bytes, or more; all of a smaller file.
    """
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # a zip archive, or an empty one
        return "npz"
    # the text of level 5 may be any, and ends with the version and the order of bytes
    level_5 = start[126:128] in (b"IM", b"MI") and 0 in start[124:126]
    # level 4 begins with an integer of at most four digits
    level_4 = b"\0\0" in (start[:2], start[2:4])
    if level_5 or level_4 or start.startswith((b"MATLAB 5.0 MAT", b"MATLAB 7.3 MAT", b"\x89HDF")):
        return "mat"
    # Windows writes text also in UTF-16, and in UTF-8 with a mark at the beginning
    return "json" if start.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"{") else None


@contextmanager
def open_arrays(path: Path, others: str = "") -> Iterator[Mapping[str, Any]]:
    """Open a .mat, .npz or .json file as its arrays by name; each is read when it is looked up.

    Parameters
    ----------
    path : Path
    others : str
        As of `checked_suffix`.

    Raises
    ------
    FileFormatError
        Any failure to read the file, also while it is open; the message begins with the file's name.
    """
    reader = _READERS[checked_suffix(path, others)]
    name = in_one_line(path)
    check_readable(path)
    try:
        with open(path, "rb") as file:
            yield reader(file)
    except PermissionError:
        raise FileFormatError(f"{name} cannot be read: permission denied") from None
    except HankelredError as error:
        raise FileFormatError(f"{name}: {error}") from None
    except Exception as error:  # the readers of JSON, zip and numpy raise many types on damaged files
        detail = in_one_line(" ".join(str(error).split()), 120) or type(error).__name__
        raise FileFormatError(f"{name} is damaged or not a {path.suffix.lower()} file ({detail})") from None


def check_readable(path: Path) -> None:
    """Refuse a path that does not exist or is not a regular file."""
    name = in_one_line(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileFormatError(f"{name} does not exist") from None
    except (
        OSError,
        ValueError,
    ) as error:  # a name too long, a cycle of links, a null character
        raise FileFormatError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        raise FileFormatError(f"{name} is not a file")


class Archive(Mapping[str, Array]):
    """The arrays of an .npz file by name; a member is unpacked when it is looked up, up to a limit."""

    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file)
        self._members = _without_repetition(
            [(info.filename.removesuffix(".npy"), info) for info in self._zip.infolist()]
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> Array:
        info = self._members[name]
        if info.file_size > LARGEST_IN_FILE:
            raise FileFormatError(
                f"{in_one_line(name, 60)} has {info.file_size} bytes; at most {LARGEST_IN_FILE} are read "
                "from a file: pass the matrices as a tuple"
            )
        with self._zip.open(info) as member:
            try:
                array = np.lib.format.read_array(member, allow_pickle=False)
            except ValueError as error:
                if "Object arrays" not in str(error):
                    raise
                raise FileFormatError(
                    f"{in_one_line(name, 60)} holds Python objects, which are not read from files; write a "
                    "sparse matrix by scipy.sparse.save_npz, or its arrays (see read_model)"
                ) from None
            # zipfile compares the checksum when the end of a member is read
            if member.read(1):
                raise ValueError(f"{in_one_line(name, 60)} is longer than its shape says")
        return array


def _read_json(file: BinaryIO) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    if size > LARGEST_IN_FILE:
        raise FileFormatError(f"{size} bytes of JSON are too many; at most {LARGEST_IN_FILE} are read")
    text = file.read()
    content = json.loads(text, object_pairs_hook=_without_repetition)
    if not isinstance(content, dict):
        raise FileFormatError("expected an object, arrays by their names")
    for key, value in content.items():
        # a tiny step rounded to zero would make the model continuous; as text it is refused later
        if key.lower() == "dt" and isinstance(value, float) and value == 0:
            digits = json.loads(text, parse_float=str)[key]
            content[key] = digits if is_rounded_to_zero(digits) else value
    return content


_READERS: dict[str, Callable[[BinaryIO], Mapping[str, Any]]] = {
    ".mat": MatFile,
    ".npz": Archive,
    ".json": _read_json,
}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FileFormatError(f"it has {in_one_line(twice, 60)} twice; keep one")
    return content
