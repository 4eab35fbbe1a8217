"""The folder of results: one process writes it at a time, and a disk that is full is named in one line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hankelred.errors import in_one_line

from ..errors import ExperimentError

if sys.platform != "win32":
    import fcntl

_LOCK = ".lock"


@contextmanager
def results_folder(folder: Path, *, write: bool) -> Iterator[None]:
    """Create a folder and lock it; inside, errors of the disk are reported in one line.

    The system releases the lock when the process ends, however it ends. On Windows, and on file systems that
    have no locks, nothing is locked.

    Parameters
    ----------
    folder : Path
    write : bool
        Whether this process writes; the others of a run on several devices do not lock.

    Raises
    ------
    ExperimentError
        Another process holds the folder, or it cannot be written.
    """
    handle, new = None, not folder.exists()
    try:
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            handle = _lock(folder)
        yield
    except OSError as error:
        where = in_one_line(error.filename or folder)
        raise _unwritten(folder, f"{where}: {error.strerror or error}") from error
    except SafetensorError as error:  # of which some are those of the system
        raise _unwritten(folder, in_one_line(str(error), 200)) from error
    finally:
        if handle is not None:
            if new and os.listdir(folder) == [_LOCK]:  # refused before anything was written
                (folder / _LOCK).unlink()
                folder.rmdir()
            os.close(handle)


def _unwritten(folder: Path, reason: str) -> ExperimentError:
    return ExperimentError(
        f"{in_one_line(folder)} cannot be written or read ({reason}); what was recorded is kept, and the "
        "same command resumes from there once there is space and permission"
    )


def _lock(folder: Path) -> int | None:
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return None  # nothing can be written there: what is recorded can be read, and the first record fails
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return handle  # a file system without locks
        holder = os.read(handle, 100).decode(errors="replace")
        os.close(handle)
        raise ExperimentError(
            f"another process ({in_one_line(holder) or 'unknown'}) is working in {in_one_line(folder)}; wait "
            "until it has ended, or take another folder with --out"
        ) from None
    if not _is_there(folder / _LOCK, handle):  # removed by its last holder before it was locked here
        os.close(handle)
        folder.mkdir(parents=True, exist_ok=True)
        return _lock(folder)
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
    return handle


def _is_there(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False
