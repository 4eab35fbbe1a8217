"""Reading and writing models: .mat, .npz and .json files with the keys A, B, C, D, E, dt or M, D, K, B, C.

Matrix Market files are read too, and sparse matrices in .npz files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._util import matrix_market, sparse_npz
from ._util.mat_files import MatFile, Unread
from ._util.reading import checked_suffix, open_arrays
from ._util.writing import write_atomically
from .errors import FileFormatError, in_one_line, name_list
from .models.linear_model import LinearModel, Timebase, as_model, to_tuple, validated_timebase
from .models.second_order import SecondOrderModel
from .models.sparse_model import SparseModel, any_model

WORDS: dict[str, Timebase] = {"None": None, "True": True}
KEYS = ("A", "B", "C", "D", "E", "dt")
#: Of a second-order model. The Oberwolfach collection calls the damping E.
SECOND_ORDER_KEYS = ("M", "D", "E", "K", "B", "C", "Cp", "Cv", "Du")


def read_model(
    path: str | os.PathLike[str], dt: Timebase = None
) -> LinearModel | SparseModel | SecondOrderModel:
    """Read a model from a file.

    Every length and index in the file is checked before it is used, and nothing in it is executed, so that
    files from untrusted sources are safe to read. Only the keys of a model are read, each up to 512 MiB.

    Parameters
    ----------
    path : path
        ``.mat`` (MATLAB 4 to 7.2, also with sparse matrices), ``.npz`` or ``.json`` (nested lists). Keys A,
        B, C and optionally D, E and dt, in upper or lower case; others are ignored. They may be the fields of
        the only struct (in JSON: object) of a file. MATLAB's Ts counts as dt. A file with M and K and
        without A is a second-order model: M, D (or E), K, B, and C (or Cp, Cv, Du). Alternatively one of
        the Matrix Market files ``NAME.A``, ``NAME.B``, ``NAME.C``, ``NAME.E`` or ``NAME.M``, ``NAME.K`` and
        so on, which are read together.
    dt : 0, True, float or None
        Timebase, which overrides that of the file; None takes the file's, or 0 (continuous) if it has none.

    Returns
    -------
    model
        Accepted by every function that takes models; sparse ones of more than 5000 states remain sparse.

    Raises
    ------
    FileFormatError
        The file is missing, unreadable, damaged, or lacks a key; an entry is not a number (a string, a
        boolean); a key occurs twice; dt is not a timebase.
    ModelError
        The matrices do not form a model.

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
    if matrix_market.is_matrix_market(path):
        matrices, dt = _model_matrices(matrix_market.read_together(path), dt)
    elif sparse_npz.is_one_of_several(path):
        matrices, dt = _model_matrices(sparse_npz.read_together(path), dt)
    else:
        others = ", or of Matrix Market files " + ", ".join(f".{key}" for key in matrix_market.ENDINGS)
        with open_arrays(path, others) as content:
            if path.suffix.lower() == ".npz":
                content = sparse_npz.SparseArchive(content)
            matrices, dt = _model_matrices(content, dt)
    if "A" not in matrices:
        return _second_order(matrices)
    values = tuple(matrices.get(key) for key in "ABCDE")
    return any_model(values, dt)


def _model_matrices(content: Mapping[str, Any], dt: Timebase) -> tuple[dict[str, Any], Timebase]:
    """Return the matrices of a model by their names, and its timebase."""
    names = {name.upper() for name in content}
    if not ({"A", "B", "C"} <= names or {"M", "K"} <= names):
        fields = _fields_of_struct(content)
        if fields is not None:
            return _model_matrices(fields, dt)
    if {"M", "K"} <= names and "A" not in names:
        matrices = _matrices(content, SECOND_ORDER_KEYS, ("M", "K", "B"))
        for what, choice in (("damping, D or E", "DE"), ("output by position, C or Cp", ("C", "Cp"))):
            count = sum(key in matrices for key in choice)
            if count != 1:
                raise FileFormatError(f"a second-order model has one {what}; this file has {count}")
        return matrices, 0
    matrices = _matrices(content, KEYS if dt is None else KEYS[:-1], ("A", "B", "C"))
    if dt is not None:
        return matrices, dt
    steps = [name for name in content if name.lower() == "ts"]
    if not steps:
        return matrices, _timebase(matrices.get("dt"))
    if "dt" in matrices or len(steps) > 1:
        raise FileFormatError(
            f"it has {' and '.join([*steps, *(['dt'] if 'dt' in matrices else [])])}; keep one"
        )
    step = content[steps[0]]
    # MATLAB's -1 is discrete time with an unknown step
    return matrices, True if np.size(step) == 1 and np.all(np.asarray(step) == -1) else _timebase(step)


def _fields_of_struct(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields of the only struct, None if there is none or more than one."""
    if isinstance(content, MatFile):
        names = [name for name in content if content.kind(name) == "struct"]
        structs = [content.fields(names[0])] if len(names) == 1 else []
    else:
        structs = [value for value in content.values() if isinstance(value, dict)]
    if len(structs) != 1:
        return None
    # MATLAB's get(sys) has empty matrices for what a model does not have
    fields = {key: value for key, value in structs[0].items() if not _is_empty(value)}
    for key in fields:
        if key.lower().endswith("delay") and np.any(np.asarray(fields[key]) != 0):
            raise FileFormatError(
                f"the struct has the property {in_one_line(key, 60)}, and models have no delays"
            )
        if key.lower() == "timeunit" and fields[key] != "seconds":
            raise FileFormatError(f"the {in_one_line(key, 60)} of the struct must be seconds")
    return fields


def _is_empty(value: Any) -> bool:
    return value is None or (hasattr(value, "shape") and 0 in value.shape)


def _second_order(matrices: Mapping[str, Any]) -> SecondOrderModel:
    M, K, B = (matrices[key] for key in ("M", "K", "B"))
    damping = matrices["D"] if "D" in matrices else matrices["E"]
    output = matrices["C"] if "C" in matrices else matrices["Cp"]
    return SecondOrderModel(M, damping, K, B, output, matrices.get("Cv"), matrices.get("Du", 0))


def write_model(model: Any, path: str | os.PathLike[str], dt: Timebase = 0) -> None:
    """Write A, B, C, D and dt to a file atomically, and E if the model is improper.

    Parameters
    ----------
    model : model
        Of any type; of a result, such as a :class:`Reduction`, pass ``.system``.
    path : path
        ``.mat``, ``.npz`` or ``.json``.
    dt : 0, True, float or None
        Timebase of a tuple; every other type has its own.

    Raises
    ------
    ModelError
        ``model`` is no model.
    FileFormatError
        Unknown suffix, a folder that does not exist or is not writable, complex numbers in .json.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "lag.npz"
    >>> write_model(([[0.5]], [[1]], [[2]], 0), file, dt=0.1)
    >>> read_model(file).dt
    0.1
    """
    path = Path(path)
    suffix = checked_suffix(path)
    model = as_model(model, dt)
    matrices = to_tuple(model)
    content: dict[str, Any] = dict(zip("ABCDE", matrices, strict=False))
    # only JSON distinguishes True from 1; the other formats hold the word as text
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
    """Read these keys only, in upper or lower case."""
    names = {key: [name for name in content if name.lower() == key.lower()] for key in keys}
    for key, matches in names.items():
        names[key] = [key] if key in matches else matches
        if len(names[key]) > 1:
            raise FileFormatError(f"it has {' and '.join(matches)}: which one is {key}?")
    missing = [key for key in needed if not names[key]]
    if missing:
        raise FileFormatError(
            f"it has no {', '.join(missing)}; a model file has the keys A, B, C and optionally D, E, dt, or "
            f"M, D, K, B and C, and this one has {name_list(content)}"
        )
    matrices = {key: content[matches[0]] for key, matches in names.items() if matches}
    for key, value in matrices.items():
        if key != "dt" and value is not None:
            _check_entries(key, value)
    return matrices


_KINDS = {"b": "booleans", "U": "strings", "S": "strings", "M": "dates", "m": "time spans"}
_WORDS_OF_JSON = {str: "a string", bool: "a boolean", dict: "an object", type(None): "null"}


def _check_entries(key: str, value: Any) -> None:
    """Refuse entries that numpy would silently convert to numbers: strings, booleans, dates."""
    problem = None
    if isinstance(value, Unread):
        problem = f"a MATLAB {value.kind}"
    elif hasattr(value, "dtype"):
        if value.dtype.kind not in "iufc":
            problem = _KINDS.get(value.dtype.kind, f"entries of type {value.dtype}")
    elif isinstance(value, str):
        problem = "text"
    else:
        kinds = set(map(type, np.array(value, dtype=object).flat))
        unexpected = kinds - {int, float}
        if unexpected:
            problem = "rows of different lengths" if list in unexpected else _WORDS_OF_JSON[unexpected.pop()]
    if problem:
        raise FileFormatError(f"{key} holds {in_one_line(problem, 60)}; write a matrix of numbers")


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
