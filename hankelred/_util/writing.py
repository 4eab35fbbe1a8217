"""Atomic writing: after an error or a crash a file is either complete or absent."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import FileFormatError, in_one_line, short_repr

if sys.platform != "win32":
    import fcntl


PAGES = (".html", ".htm")


def check_page_suffix(path: Path) -> None:
    """Refuse a page for the browser whose name ends otherwise, such as .pdf."""
    check_suffix(path, PAGES, "a page")


def check_suffix(path: Path, endings: Sequence[str], what: str) -> None:
    """Refuse a file to write whose name ends otherwise; the error calls it `what`."""
    if path.suffix.lower() not in endings:
        raise FileFormatError(
            f"{in_one_line(path)}: {what} ends in {', '.join(endings)}, "
            f"got {short_repr(path.suffix or 'no ending')}"
        )


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Call `replace_file`, and turn an OSError into a FileFormatError that gives the reason."""
    with _explain_os_errors(path):
        replace_file(path, write)


def replace_file(path: Path, write: Callable[[str], object]) -> None:
    """Write to a temporary file in the target's folder, then rename it to the target.

    Temporary files that killed processes left in the folder are removed.
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


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Make a folder next to a target, to prepare its content in; it is removed at the end.

    The folders that killed processes left for this target are removed. If such a process had moved the
    target's previous content away, to ``PREVIOUS`` in its folder, and not put the new one in place, the
    previous content is put back.
    """
    prefix = f".{target.name[:40]}{_UNFINISHED}"
    for leftover in target.parent.glob(f"{glob.escape(prefix)}????????"):
        if set(leftover.name[len(prefix) :]) <= set("0123456789abcdef"):
            _remove_folder(leftover, target)
    scratch = target.with_name(prefix + secrets.token_hex(4))
    scratch.mkdir()
    handle = _lock(scratch)
    try:
        yield scratch
    finally:
        _release(handle)
        shutil.rmtree(scratch, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Check that `write_atomically` can write this file, by creating a temporary one."""
    with _explain_os_errors(path):
        temporary, handle = _unfinished(path)
        _release(handle)
        temporary.unlink(missing_ok=True)


@contextmanager
def _explain_os_errors(path: Path) -> Iterator[None]:
    name = in_one_line(path)
    try:
        if not path.parent.is_dir():
            raise FileFormatError(
                f"cannot write {name}: the folder {in_one_line(path.parent)} does not exist"
            )
        yield
    except OSError as error:
        raise FileFormatError(f"cannot write {name}: {error.strerror or error}") from None


# A temporary file is locked while it is being written. The system releases the lock when the process ends,
# so an unlocked one is left over. Windows has no such lock; left-over files stay there.

_UNFINISHED = ".unfinished-"

#: Name, in a scratch folder, of the previous content of the target.
PREVIOUS = "previous"


def _unfinished(path: Path) -> tuple[Path, int | None]:
    """Create a temporary file in the target's folder: os.replace is atomic only inside one file system."""
    while True:
        name = f".{path.stem[:40]}{_UNFINISHED}{secrets.token_hex(4)}{path.suffix}"
        temporary = path.with_name(name)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if sys.platform == "win32":
            os.close(handle)
            return temporary, None
        with suppress(OSError):  # a file system without locks: nothing can be locked or removed there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, handle
        os.close(handle)  # another process removed it as left over before it was locked


def _lock(folder: Path) -> int | None:
    """Lock a folder as in use; None where that cannot be done, so that nothing there is removed later."""
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _remove_folder(leftover: Path, target: Path) -> None:
    if sys.platform == "win32":
        return
    with suppress(OSError):  # in use, or no permission
        handle = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (leftover / PREVIOUS).exists() and not target.exists():
                os.replace(leftover / PREVIOUS, target)
            shutil.rmtree(leftover)
        finally:
            os.close(handle)


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _remove_unfinished(folder: Path) -> None:
    if sys.platform == "win32":
        return
    for leftover in folder.glob(f".*{_UNFINISHED}????????*"):
        with suppress(OSError):  # in use, or no permission to remove it
            handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(handle)
