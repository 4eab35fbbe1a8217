"""Files written whole: complete under their name, or not there at all."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import FileFormatError, in_one_line

if sys.platform != "win32":
    import fcntl


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Do `replace_file`, and say what is in the way: a FileFormatError."""
    with _explained(path):
        replace_file(path, write)


def replace_file(path: Path, write: Callable[[str], object]) -> None:
    """Write beside the target under another name, then move it there: never half a file.

    What writers that were killed have left in the folder is removed.
    """
    _remove_unfinished(path.parent)
    temporary, handle = _unfinished(path)
    try:
        write(str(temporary))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        _release(handle)
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out, by trying, whether `write_atomically` can write under this name."""
    with _explained(path):
        temporary, handle = _unfinished(path)
        _release(handle)
        temporary.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    named = in_one_line(path)
    try:
        if not path.parent.is_dir():
            raise FileFormatError(
                f"cannot write {named}: the folder {in_one_line(path.parent)} does not exist"
            )
        yield
    except OSError as error:
        raise FileFormatError(f"cannot write {named}: {error.strerror or error}") from None


# A temporary file is locked while its writer lives. What is not locked is left over, whoever wrote it: a lock
# ends with its process, however that ends. Windows has no such lock; there, leftovers stay.

_UNFINISHED = ".unfinished-"


def _unfinished(path: Path) -> tuple[Path, int | None]:
    """Create a temporary file in the target's folder: os.replace is atomic only inside one file system."""
    while True:
        name = f".{path.stem[:40]}{_UNFINISHED}{secrets.token_hex(4)}{path.suffix}"
        temporary = path.with_name(name)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if sys.platform == "win32":
            os.close(handle)
            return temporary, None
        with suppress(OSError):  # a file system without locks: nobody removes anything there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, handle
        os.close(handle)  # somebody took it for left over before it was locked


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _remove_unfinished(folder: Path) -> None:
    if sys.platform == "win32":
        return
    for leftover in folder.glob(f".*{_UNFINISHED}????????*"):
        with suppress(OSError):  # in use, or not ours to remove
            handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(handle)
