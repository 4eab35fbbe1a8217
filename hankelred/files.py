"""Models in files: .mat, .npz and .json with the keys A, B, C, D, E, dt."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._errors import FileFormatError
from .models import LinearModel, Timebase, validated

FORMATS = (".mat", ".npz", ".json")
WORDS: dict[Any, Timebase] = {"None": None, "True": True}
KEYS = ("A", "B", "C", "D", "E", "dt")


def read_model(path: str | os.PathLike[str], dt: Timebase = None) -> LinearModel:
    """Read a model from a file.

    Parameters
    ----------
    path : path
        ``.mat`` (MATLAB 5 to 7.2, sparse too), ``.npz`` or ``.json`` (nested lists). Keys A, B, C and
        optionally D, E and dt, in either case; others are ignored.
    dt : 0, True, float or None
        Timebase, over that of the file; None takes the file's, or 0 (continuous) where it has none.

    Raises
    ------
    FileFormatError
        The file is missing, unreadable, truncated, or lacks a key.
    ModelError
        The matrices do not make a model.
    """
    path = Path(path)
    content = read_arrays(path)
    found = _matrices(content, path)
    missing = [key for key in "ABC" if key not in found]
    if missing:
        raise FileFormatError(
            f"{path} has no {', '.join(missing)}; a model file has the keys A, B, C and optionally D, E, dt, "
            f"and this one has {', '.join(list(content)[:8]) or 'none'}"
        )
    if dt is None:
        dt = _timebase(found.get("dt"), path)
    A, B, C, D, dt = validated(*(found.get(key) for key in "ABCDE"), dt=dt)
    return LinearModel(A, B, C, D, dt)


def write_model(model: LinearModel, path: str | os.PathLike[str]) -> None:
    """Write A, B, C, D and dt to a file; it is complete or not there at all.

    Raises
    ------
    FileFormatError
        Unknown ending, a folder that is not there or not writable, complex numbers in .json.
    """
    path = Path(path)
    suffix = checked_suffix(path)
    content: dict[str, Any] = dict(zip("ABCD", model.as_tuple(), strict=True))
    # only JSON can tell True from 1; the other formats hold the word
    content["dt"] = (
        str(model.dt) if model.dt is None or (model.dt is True and suffix != ".json") else model.dt
    )
    if suffix == ".json":
        if model.is_complex:
            raise FileFormatError(f"{path}: JSON has no complex numbers; write the model to .npz or .mat")
        text = json.dumps(
            {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in content.items()}, indent=1
        )
        write_atomically(path, lambda name: Path(name).write_text(text + "\n", encoding="utf-8"))
    elif suffix == ".npz":
        write_atomically(path, lambda name: np.savez(name, **content))
    else:
        from scipy.io import savemat

        write_atomically(path, lambda name: savemat(name, content))


def checked_suffix(path: Path) -> str:
    """Return the ending of a model file, or refuse it before any work is done."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise FileFormatError(
            f"{path}: the ending must be one of {', '.join(FORMATS)}, got {suffix or 'none'!r}"
        )
    return suffix


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Do `replace_file`, and say what is in the way: a FileFormatError."""
    if not path.parent.is_dir():
        raise FileFormatError(f"cannot write {path}: the folder {path.parent} does not exist")
    try:
        replace_file(path, write)
    except OSError as error:
        raise FileFormatError(f"cannot write {path}: {error.strerror or error}") from None


def replace_file(path: Path, write: Callable[[str], object]) -> None:
    """Write beside the target under another name, then move it there: never half a file."""
    # in the target's own folder: os.replace is atomic only inside one file system
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_arrays(path: Path) -> dict[str, Any]:
    """Return the named arrays of a .mat, .npz or .json file."""
    suffix = checked_suffix(path)
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    try:
        if suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise FileFormatError(f"{path}: expected an object with the keys {', '.join(KEYS)}")
            return content
        if suffix == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        from scipy.io import loadmat

        return {name: value for name, value in loadmat(path).items() if not name.startswith("__")}
    except NotImplementedError:
        raise FileFormatError(
            f"{path} is a MATLAB 7.3 (HDF5) file; save it with save(..., '-v7') and try again"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        if isinstance(error, FileFormatError):
            raise
        if isinstance(error, PermissionError):
            raise FileFormatError(f"{path} cannot be read: permission denied") from None
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise FileFormatError(f"{path} is damaged or not a {suffix} file ({detail})") from None
    except Exception as error:  # scipy's reader raises its own and zlib's types on damaged files
        detail = f"{type(error).__name__}: {error}"
        raise FileFormatError(f"{path} is damaged or not a {suffix} file ({detail})") from None


def _matrices(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Pick the keys of a model, upper case before lower case."""
    found: dict[str, Any] = {}
    for key in KEYS:
        names = [key] if key in content else [name for name in content if name.lower() == key.lower()]
        if len(names) > 1:
            raise FileFormatError(f"{path} has {' and '.join(names)}: which one is {key}?")
        if names:
            found[key] = content[names[0]]
    if "A" not in found and {"M", "K"} & {name.upper() for name in content}:
        raise FileFormatError(
            f"{path} holds {', '.join(sorted(content))}: second-order models (M, D, K) are not read; write "
            "the first-order form A, B, C, D, E"
        )
    return found


def _timebase(value: Any, path: Path) -> Any:
    if value is None:
        return 0
    if isinstance(value, str | bool):
        return WORDS.get(value, value)
    flat = np.asarray(value).ravel()
    if flat.size != 1:
        raise FileFormatError(f"{path}: dt must be one number, got shape {np.shape(value)}")
    item = flat[0]
    if isinstance(item, str | np.str_):
        return WORDS.get(str(item), str(item))
    return bool(item) if flat.dtype == bool else float(item)
