"""Models in files: .mat, .npz and .json with keys A, B, C, D, E, dt or M, D, K, B, C; Matrix Market."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._util import matrix_market
from ._util.reading import checked_suffix, opened
from ._util.writing import write_atomically
from .errors import FileFormatError, in_one_line, listed
from .models.linear_model import LinearModel, Timebase, validated, validated_timebase
from .models.second_order import SecondOrderModel
from .models.sparse_model import SparseModel, large_model

WORDS: dict[str, Timebase] = {"None": None, "True": True}
KEYS = ("A", "B", "C", "D", "E", "dt")
#: Of a model of second order. The Oberwolfach collection calls the damping E.
SECOND_ORDER_KEYS = ("M", "D", "E", "K", "B", "C", "Cp", "Cv", "Du")


def read_model(
    path: str | os.PathLike[str], dt: Timebase = None
) -> LinearModel | SparseModel | SecondOrderModel:
    """Read a model from a file.

    Every length and index in the file is checked before it is used, and nothing in it is executed: files of
    strangers are safe to read. Only the keys of a model are read, each up to 512 MiB.

    Parameters
    ----------
    path : path
        ``.mat`` (MATLAB 4 to 7.2, sparse too), ``.npz`` or ``.json`` (nested lists). Keys A, B, C and
        optionally D, E and dt, in either case; others are ignored. With M and K and without A it is a model
        of second order: M, D (or E), K, B, and C (or Cp, Cv, Du). Or one of the Matrix Market files
        ``NAME.A``, ``NAME.B``, ``NAME.C``, ``NAME.E`` or ``NAME.M``, ``.K`` and so on, which are read
        together.

    Returns
    -------
    model
        Accepted by every function that takes models; sparse ones of more than 5000 states stay sparse.
    dt : 0, True, float or None
        Timebase, over that of the file; None takes the file's, or 0 (continuous) where it has none.

    Raises
    ------
    FileFormatError
        The file is missing, unreadable, damaged, or lacks a key; an entry is no number (a string, a boolean);
        a key is there twice; dt is no timebase.
    ModelError
        The matrices do not make a model.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "lag.json"
    >>> _ = file.write_text('{"A": [[0.5]], "B": [[1]], "C": [[2]], "dt": 0.1}')
    >>> model = read_model(file)
    >>> model.n_states, model.dt
    (1, 0.1)
    """
    path = Path(path)
    if matrix_market.is_one(path):
        found, dt = _found(matrix_market.read_together(path), dt)
    else:
        with opened(path) as content:
            found, dt = _found(content, dt)
    if "A" not in found:
        return _second_order(found)
    matrices = [found.get(key) for key in "ABCDE"]
    large = large_model(tuple(matrices) if "E" in found else tuple(matrices[:4]), dt)
    if large is not None:
        return large
    A, B, C, D, dt = validated(*matrices, dt=dt)
    return LinearModel(A, B, C, D, dt)


def _found(content: Mapping[str, Any], dt: Timebase) -> tuple[dict[str, Any], Timebase]:
    """Return the matrices of a model by their names, and its timebase."""
    names = {name.upper() for name in content}
    if {"M", "K"} <= names and "A" not in names:
        found = _matrices(content, SECOND_ORDER_KEYS, ("M", "K", "B"))
        for what, choice in (("damping, D or E", "DE"), ("output by position, C or Cp", ("C", "Cp"))):
            if sum(key in found for key in choice) != 1:
                count = sum(key in found for key in choice)
                raise FileFormatError(f"a model of second order has one {what}; this file has {count}")
        return found, 0
    found = _matrices(content, KEYS if dt is None else KEYS[:-1], ("A", "B", "C"))
    return found, _timebase(found.get("dt")) if dt is None else dt


def _second_order(found: Mapping[str, Any]) -> SecondOrderModel:
    damping = found["D"] if "D" in found else found["E"]
    output = found["C"] if "C" in found else found["Cp"]
    return SecondOrderModel(
        found["M"], damping, found["K"], found["B"], output, found.get("Cv"), found.get("Du", 0)
    )


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
            raise FileFormatError(
                f"{in_one_line(path)}: JSON has no complex numbers; write the model to .npz or .mat"
            )
        text = json.dumps(
            {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in content.items()}, indent=1
        )
        write_atomically(path, lambda name: Path(name).write_text(text + "\n", encoding="utf-8"))
    elif suffix == ".npz":
        write_atomically(path, lambda name: np.savez(name, **content))
    else:
        from scipy.io import savemat

        write_atomically(path, lambda name: savemat(name, content))


def _matrices(content: Mapping[str, Any], keys: Sequence[str], needed: Sequence[str]) -> dict[str, Any]:
    """Read these keys, in upper or lower case, and nothing else."""
    names = {key: [name for name in content if name.lower() == key.lower()] for key in keys}
    for key, same in names.items():
        names[key] = [key] if key in same else same
        if len(names[key]) > 1:
            raise FileFormatError(f"it has {' and '.join(same)}: which one is {key}?")
    missing = [key for key in needed if not names[key]]
    if missing:
        raise FileFormatError(
            f"it has no {', '.join(missing)}; a model file has the keys A, B, C and optionally D, E, dt, or "
            f"M, D, K, B and C, and this one has {listed(content)}"
        )
    found = {key: content[same[0]] for key, same in names.items() if same}
    for key, value in found.items():
        if key != "dt" and value is not None:
            _check_entries(key, value)
    return found


_KINDS = {"b": "booleans", "U": "strings", "S": "strings", "M": "dates", "m": "time spans"}
_WORDS_OF_JSON = {str: "a string", bool: "a boolean", dict: "an object", type(None): "null"}


def _check_entries(key: str, value: Any) -> None:
    """Refuse what numpy would turn into numbers without a word: strings, booleans, dates."""
    what = None
    if hasattr(value, "dtype"):
        if value.dtype.kind not in "iufc":
            what = _KINDS.get(value.dtype.kind, f"entries of type {value.dtype}")
    elif isinstance(value, str):
        what = "text"
    else:
        kinds = set(map(type, np.array(value, dtype=object).flat))
        strange = kinds - {int, float}
        if strange:
            what = "rows of different lengths" if list in strange else _WORDS_OF_JSON[strange.pop()]
    if what:
        raise FileFormatError(f"{key} holds {in_one_line(what, 60)}; write a matrix of numbers")


def _timebase(value: Any) -> Timebase:
    if value is None:
        return 0
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and str(value) in WORDS:
        return WORDS[str(value)]
    return validated_timebase(value)
