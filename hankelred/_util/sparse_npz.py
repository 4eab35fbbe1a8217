"""Sparse matrices in .npz files: the arrays that scipy.sparse.save_npz writes, alone or several in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileFormatError, in_one_line, short_repr
from .arrays import LARGEST_IN_FILE, Array
from .matrix_market import ENDINGS
from .reading import check_readable, open_arrays

#: The arrays of each format of scipy.sparse, besides `format`, `shape` and `data`.
PARTS = {
    "csc": ("indices", "indptr"),
    "csr": ("indices", "indptr"),
    "bsr": ("indices", "indptr"),
    "coo": ("row", "col"),
    "dia": ("offsets",),
}
SEPARATORS = "_."


class SparseArchive(Mapping[str, Any]):
    """Arrays by name in which A_format, A_shape, A_data, A_indices and A_indptr are one sparse matrix A."""

    def __init__(self, arrays: Mapping[str, Array]):
        self._arrays = arrays
        if {"format", "shape", "data"} <= set(arrays):
            raise FileFormatError(
                "it contains one sparse matrix; name the files of a model NAME.A.npz, NAME.B.npz and so on"
            )
        ending = "format"
        self._prefixes = {
            name.removesuffix(ending)[:-1]: name.removesuffix(ending)
            for name in arrays
            if name.endswith(ending) and name[: -len(ending)][-1:] in tuple(SEPARATORS)
        }
        parts = {prefix + part for prefix in self._prefixes.values() for part in _ALL_PARTS}
        self._names = [*self._prefixes, *(name for name in arrays if name not in parts)]
        for name in self._prefixes:
            if name in arrays:
                raise FileFormatError(f"it has {in_one_line(name, 60)} as an array and in parts; keep one")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Any:
        if name in self._prefixes:
            return _assembled(self._arrays, self._prefixes[name])
        if name not in self._names:
            raise KeyError(name)
        return self._arrays[name]


_ALL_PARTS = {"format", "shape", "data", "_is_array", *(part for parts in PARTS.values() for part in parts)}


def _assembled(arrays: Mapping[str, Array], prefix: str) -> Any:
    """Return the sparse matrix whose parts have this prefix; every size and index in them is checked."""
    import scipy.sparse as sp

    what = f"the sparse matrix {in_one_line(prefix[:-1], 60)}" if prefix else "the sparse matrix"
    word = arrays[prefix + "format"]
    kind = word.item() if word.size == 1 and word.dtype.kind in "SU" else word
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else kind
    if not isinstance(kind, str) or kind not in PARTS:
        raise FileFormatError(
            f"the format of {what} must be one of {', '.join(PARTS)}, got {short_repr(kind)}"
        )
    missing = [part for part in ("shape", "data", *PARTS[kind]) if prefix + part not in arrays]
    if missing:
        raise FileFormatError(f"{what} has no {', '.join(missing)}, which its format {kind} requires")
    data, shape, *places = (arrays[prefix + part] for part in ("data", "shape", *PARTS[kind]))
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or shape.min() < 0:
        raise FileFormatError(f"the shape of {what} is {short_repr(shape.tolist())}; two sizes are expected")
    rows, columns = (int(size) for size in shape)
    if 16 * max(rows, columns) > 4 * LARGEST_IN_FILE:
        raise FileFormatError(f"{what} has shape {(rows, columns)}: too large to be read")
    for part, place in zip(PARTS[kind], places, strict=True):
        if place.dtype.kind not in "iu" or place.ndim != 1:
            raise FileFormatError(f"{part} of {what} must be a list of integers")
    try:
        if kind == "coo":
            row, column = places
            return sp.coo_array((data, (row, column)), shape=(rows, columns))
        M = getattr(sp, f"{kind}_array")((data, *places), shape=(rows, columns))
        # scipy's own check omits the order of index pointers that end with 0
        if kind != "dia" and not (np.all(np.diff(places[1]) >= 0) and places[1][-1] == places[0].size):
            raise ValueError("the index pointers are not in order")
        if kind != "dia":
            M.check_format(full_check=True)
    except (ValueError, TypeError, IndexError) as error:
        raise FileFormatError(f"the parts of {what} do not fit together ({error})") from None
    return M


def is_one_of_several(path: Path) -> bool:
    """Tell whether a file is one of NAME.A.npz, NAME.B.npz and so on."""
    return path.suffix.lower() == ".npz" and path.with_suffix("").suffix[1:].upper() in ENDINGS


def read_together(path: Path) -> dict[str, Any]:
    """Read NAME.A.npz and the files beside it with the same name and the other letters.

    Each contains a sparse matrix, as scipy.sparse.save_npz writes it, or one array.

    Raises
    ------
    FileFormatError
        A file is missing or damaged, or contains something else.
    """
    check_readable(path)
    name = path.with_suffix("").stem
    matrices: dict[str, Any] = {}
    for beside in sorted(path.parent.glob("*")):
        if is_one_of_several(beside) and beside.with_suffix("").stem == name:
            key = beside.with_suffix("").suffix[1:].upper()
            if key in matrices:
                raise FileFormatError(f"{in_one_line(beside)}: there is another file of {key}; keep one")
            matrices[key] = read_matrix(beside)
    return matrices


def read_matrix(path: Path) -> Any:
    """Read a file with one sparse matrix or one array."""
    with open_arrays(path) as arrays:
        if "format" in arrays:
            return _assembled(arrays, "")
        if len(arrays) != 1:
            raise FileFormatError(
                f"it has {len(arrays)} arrays; expected one array, or the parts of a sparse matrix"
            )
        return next(iter(arrays.values()))
