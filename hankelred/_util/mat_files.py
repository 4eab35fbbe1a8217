"""A reader of MAT-files of MATLAB 4 to 7.2 that does not trust their contents.

scipy's reader is compiled, and a damaged or malicious file makes it read and write outside its memory. Here
every length, count and index in a file is checked before it is used, and only the requested variables are
read.

Source: MathWorks, "MAT-File Format" (levels 4 and 5). The tests compare with scipy's reader.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np

from ..errors import FileFormatError, in_one_line
from .arrays import LARGEST_IN_FILE, Array

_Value = TypeVar("_Value")

#: Bytes of a compressed variable that are read from the file at a time.
_CHUNK = 1 << 16
#: Upper limit of the flags, the dimensions and the name of a variable, each (bytes).
_LONGEST_HEADER = 1 << 16

# Level 5: types of elements, and classes of variables
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "text", 5: "sparse", 16: "function", 17: "object"}
_CLASSES |= dict.fromkeys(range(6, 16), "numbers")
_LOGICAL, _COMPLEX = 0x02, 0x08
#: Kinds of variables, and of fields of structs, that are read.
_VALUES = ("numbers", "logicals", "sparse", "text")

# Level 4: digits of the type of a variable
_NUMBERS_4 = ("f8", "f4", "i4", "i2", "u2", "u1")
_CLASSES_4 = ("numbers", "text", "sparse")


def _damaged(problem: str) -> FileFormatError:
    return FileFormatError(f"the file is damaged: {problem}")


@dataclass(frozen=True)
class _Variable:
    """The position of a variable in the file, and the contents of its header."""

    #: "numbers", "logicals", "text", "sparse"; "struct"; not read: "cell", "object", "function"
    kind: str
    start: int
    size: int
    compressed: bool
    shape: tuple[int, ...]
    is_complex: bool
    #: level 4 only: the type of its numbers
    stored_as: str = ""


@dataclass(frozen=True)
class Unread:
    """A field of a struct of a kind that is not read."""

    kind: str


class MatFile(Mapping[str, Any]):
    """The variables of an open MAT-file by name; each is read when it is looked up.

    Numbers are ndarrays (logicals bool ones), sparse matrices those of ``scipy.sparse``, text is str. The
    fields of a struct are read by :meth:`fields`.

    Raises
    ------
    FileFormatError
        The file is damaged, of level 7.3 (HDF5), or holds two variables of one name. On look-up: a struct,
        cell, object or function, or a variable that is too large.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(128)
        if start.startswith(b"\x89HDF") or start[124:126] in (b"\x00\x02", b"\x02\x00"):
            raise FileFormatError(
                "it is a MATLAB 7.3 (HDF5) file; save it with save(..., '-v7') and try again"
            )
        # A file of level 5 begins with a line of text, one of level 4 with a small number.
        self._level = 4 if 0 in start[:4] else 5
        if self._level == 5:
            if start[126:128] not in (b"IM", b"MI"):
                raise _damaged("it does not begin as a MAT-file does")
            self._order = "<" if start[126:128] == b"IM" else ">"
        else:
            self._order = "<" if int.from_bytes(start[:4], "little") <= 5000 else ">"
        self._variables: dict[str, _Variable] = {}
        for name, variable in self._level_5_variables() if self._level == 5 else self._level_4_variables():
            if name in self._variables:
                raise FileFormatError(f"it holds two variables {in_one_line(name, 60)}; keep one")
            # MATLAB's internal variables have no name
            if name and not name.startswith("__"):
                self._variables[name] = variable

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def kind(self, name: str) -> str:
        """Return the kind of a variable ("numbers", "logicals", "sparse", "text", ...) without reading it."""
        return self._variables[name].kind

    def __getitem__(self, name: str) -> Any:
        variable = self._variables[name]
        if variable.kind not in _VALUES:
            raise FileFormatError(
                f"{in_one_line(name, 60)} holds a MATLAB {variable.kind}; save a matrix of numbers instead"
            )
        if self._level == 4:
            return self._read_4(variable, self._stream(variable.start, variable.size, variable.compressed))
        return self._read_whole(variable, self._read)

    def fields(self, name: str) -> dict[str, Any]:
        """Return the fields of a struct; those that are not read (cells, structs, objects) are `Unread`.

        Raises
        ------
        FileFormatError
            It is an array of structs, or the file is damaged.
        """
        return self._read_whole(self._variables[name], self._struct)

    def _read_whole(self, variable: _Variable, read: Callable[[_Variable, _Stream], _Value]) -> _Value:
        stream = self._stream(variable.start, variable.size, variable.compressed)
        _header(stream, self._order, variable.compressed)
        value = read(variable, stream)
        stream.finish()
        return value

    def _stream(self, start: int, size: int, compressed: bool) -> _Stream:
        return (_Inflated if compressed else _Stream)(self._file, start, size)

    # level 5: a sequence of elements, each with its type and number of bytes

    def _level_5_variables(self) -> Iterator[tuple[str, _Variable]]:
        at = 128
        while at < self._size:
            self._file.seek(at)
            kind, size = _unpacked(self._order + "II", self._file.read(8))
            start, at = at + 8, at + 8 + size
            if at > self._size:
                raise _damaged("it ends in the middle of a variable")
            if kind not in (_MATRIX, _COMPRESSED):
                raise _damaged(f"an element of type {kind} where a variable should be")
            compressed = kind == _COMPRESSED
            stream = self._stream(start, size, compressed)
            name, what, shape, is_complex = _header(stream, self._order, compressed)
            yield name, _Variable(what, start, size, compressed, shape, is_complex)

    def _read(self, variable: _Variable, stream: _Stream) -> Any:
        if variable.kind == "text":
            return self._text(variable.shape, stream)
        if variable.kind == "sparse":
            rows, columns = self._numbers(stream), self._numbers(stream)
            return _sparse_columns(variable.shape, rows, columns, self._parts(variable, stream))
        return _shaped(variable, self._parts(variable, stream))

    def _struct(self, variable: _Variable, stream: _Stream) -> dict[str, Any]:
        # the length of a name, all names, then a variable for each field
        if any(length != 1 for length in variable.shape):
            raise FileFormatError(f"an array of structs, of shape {variable.shape}; save one struct")
        lengths = self._numbers(stream)
        names = _element(stream, self._order, _LONGEST_HEADER)[1]
        if lengths.size != 1 or lengths[0] <= 0 or len(names) % int(lengths[0]):
            raise _damaged("the names of the fields of a struct")
        length = int(lengths[0])
        fields: dict[str, Any] = {}
        for start in range(0, len(names), length):
            name = names[start : start + length].split(b"\0")[0].decode("latin-1")
            kind, data = _element(stream, self._order)
            if name in fields:
                raise FileFormatError(f"a struct has two fields {in_one_line(name, 60)}; keep one")
            if kind != _MATRIX:
                raise _damaged(f"the field {in_one_line(name, 60)} of a struct")
            if not data:  # an empty matrix may be written without a header
                fields[name] = np.zeros((0, 0))
                continue
            field = _Stream(io.BytesIO(data), 0, len(data))
            _, what, field_shape, is_complex = _header(field, self._order, False)
            if what in _VALUES:
                field_variable = _Variable(what, 0, len(data), False, field_shape, is_complex)
                fields[name] = self._read(field_variable, field)
            else:
                fields[name] = Unread(what)
        return fields

    def _parts(self, variable: _Variable, stream: _Stream) -> list[Array]:
        """Return the real parts and, for a complex variable, the imaginary parts."""
        return [self._numbers(stream) for _ in range(1 + variable.is_complex)]

    def _numbers(self, stream: _Stream) -> Array:
        kind, data = _element(stream, self._order)
        if kind not in _NUMBERS:
            raise _damaged(f"an element of type {kind} where numbers should be")
        return _from_bytes(data, self._order + _NUMBERS[kind])

    def _text(self, shape: tuple[int, ...], stream: _Stream) -> str:
        if len(shape) != 2 or shape[0] > 1:
            raise FileFormatError(f"text of shape {shape} is more than one line; save one line")
        kind, data = _element(stream, self._order)
        if kind not in _TEXTS:
            raise _damaged(f"an element of type {kind} where text should be")
        coding = _TEXTS[kind]
        if coding in ("utf-16", "utf-32"):
            coding += "-le" if self._order == "<" else "-be"
        return data.decode(coding, errors="replace")

    # level 4: 20 bytes, the name, the numbers, one variable after the other

    def _level_4_variables(self) -> Iterator[tuple[str, _Variable]]:
        at = 0
        while at < self._size:
            self._file.seek(at)
            digits, rows, columns, imaginary, length = _unpacked(self._order + "5i", self._file.read(20))
            machine, zero, number, what = (digits // 10**k % 10 for k in (3, 2, 1, 0))
            known = 0 <= digits <= 9999 and zero == 0 and number < 6 and what < 3
            if not known or rows < 0 or columns < 0 or not 0 < length <= _LONGEST_HEADER:
                raise _damaged(f"the variable at byte {at} has an impossible header")
            if machine > 1:
                raise FileFormatError(
                    "its numbers are not in an IEEE 754 format; save it again on a current machine"
                )
            name = self._file.read(length).split(b"\0")[0].decode("latin-1")
            is_complex = bool(imaginary)
            size = rows * columns * np.dtype(_NUMBERS_4[number]).itemsize * (1 + is_complex)
            start, at = at + 20 + length, at + 20 + length + size
            if at > self._size:
                raise _damaged("it ends in the middle of a variable")
            shape = (rows, columns)
            yield name, _Variable(_CLASSES_4[what], start, size, False, shape, is_complex, _NUMBERS_4[number])

    def _read_4(self, variable: _Variable, stream: _Stream) -> Any:
        numbers = _from_bytes(stream.read(variable.size), self._order + variable.stored_as)
        value = _shaped(variable, np.split(numbers, 1 + variable.is_complex))
        if variable.kind == "sparse":
            return _sparse_4(value)
        if variable.kind == "text":
            if value.shape[0] > 1 or not np.all((value >= 0) & (value < 0x110000)):
                raise FileFormatError(f"text of shape {value.shape} is not one line of characters")
            return "".join(chr(int(code)) for code in value.ravel())
        return value


class _Stream:
    """The bytes of one variable, in order."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        file.seek(start)
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        """Return exactly this many bytes."""
        if size > LARGEST_IN_FILE:
            raise FileFormatError(
                f"a variable has {size} bytes; at most {LARGEST_IN_FILE} are read from a file: pass the "
                "matrices as a tuple"
            )
        data = self._next(size)
        if len(data) < size:
            raise _damaged("a variable ends too early")
        return data

    def skip_padding(self, size: int) -> None:
        """Skip the bytes that pad an element to a multiple of 8; the last element may have none."""
        self._next(-size % 8)

    def finish(self) -> None:
        """Make the checks that are possible at the end of a variable."""

    def _next(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


class _Inflated(_Stream):
    """The bytes of one compressed variable; only as many as are read are inflated."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__(file, start, size)
        self._inflater = zlib.decompressobj()
        self._pending = b""

    def finish(self) -> None:
        """Check that only padding is left, and that the checksum, which comes last, agrees."""
        if len(self._next(8)) == 8 or not self._inflater.eof:
            raise _damaged("a compressed variable does not end where it should")

    def _next(self, size: int) -> bytes:
        parts, missing = [], size
        while missing and not self._inflater.eof:
            self._pending = self._pending or super()._next(_CHUNK)
            ended = not self._pending
            try:
                part = self._inflater.decompress(self._pending, missing)
            except zlib.error as error:
                raise _damaged(f"a compressed variable cannot be inflated ({error})") from None
            self._pending = self._inflater.unconsumed_tail
            parts.append(part)
            missing -= len(part)
            if ended and not part:
                break
        return b"".join(parts)


def _unpacked(form: str, data: bytes) -> tuple[int, ...]:
    if len(data) != struct.calcsize(form):
        raise _damaged("it ends in the middle of a variable")
    return struct.unpack(form, data)


def _element(stream: _Stream, order: str, at_most: int = LARGEST_IN_FILE + 1) -> tuple[int, bytes]:
    """Return the type and the bytes of the next element of a variable."""
    tag = stream.read(8)
    kind, size = _unpacked(order + "II", tag)
    if kind >> 16:  # up to four bytes are stored in the tag itself
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise _damaged(f"a short element of {size} bytes")
        return kind, tag[4 : 4 + size]
    if size > at_most:
        raise _damaged(f"an element of {size} bytes in the header of a variable")
    data = stream.read(size)
    stream.skip_padding(size)
    return kind, data


def _header(stream: _Stream, order: str, compressed: bool) -> tuple[str, str, tuple[int, ...], bool]:
    """Return name, kind, shape and whether the variable is complex; the stream is then at the data."""
    if compressed and _unpacked(order + "II", stream.read(8))[0] != _MATRIX:
        raise _damaged("a compressed element that is no variable")
    flags = _element(stream, order, _LONGEST_HEADER)[1]
    number = _unpacked(order + "II", flags)[0]
    kind = _CLASSES.get(number & 0xFF)
    if kind is None:
        raise _damaged(f"a variable of class {number & 0xFF}")
    is_complex, is_logical = bool(number >> 8 & _COMPLEX), bool(number >> 8 & _LOGICAL)
    shape: tuple[int, ...] = ()
    if number & 0xFF != 17:  # objects of this newer class have no dimensions
        kind_of_sizes, sizes = _element(stream, order, _LONGEST_HEADER)
        if kind_of_sizes not in (5, 6) or len(sizes) % 4:
            raise _damaged("dimensions that are no whole numbers")
        shape = _unpacked(f"{order}{len(sizes) // 4}i", sizes)
        if len(shape) < 2 or min(shape) < 0:
            raise _damaged(f"a variable of shape {shape}")
    name = _element(stream, order, _LONGEST_HEADER)[1].decode("latin-1")
    if is_logical:
        kind = {"numbers": "logicals", "sparse": "sparse logical matrix"}.get(kind, kind)
    return name, kind, shape, is_complex


def _from_bytes(data: bytes, stored_as: str) -> Array:
    dtype = np.dtype(stored_as)
    if len(data) % dtype.itemsize:
        raise _damaged(f"{len(data)} bytes are no whole number of {dtype.itemsize}-byte numbers")
    numbers = np.frombuffer(data, dtype)
    return numbers.astype(dtype.newbyteorder("="))


def _shaped(variable: _Variable, parts: list[Array]) -> Array:
    """Return the numbers, which a file stores column by column, as an array."""
    count = 1
    for length in variable.shape:
        count *= length
    if any(part.size != count for part in parts):
        raise _damaged(f"{parts[0].size} numbers in a variable of shape {variable.shape}")
    value = parts[0] if len(parts) == 1 else _complex(parts)
    if variable.kind == "logicals":
        value = value != 0
    return value.reshape(variable.shape, order="F")


def _complex(parts: list[Array]) -> Array:
    value = np.empty(parts[0].shape, dtype=complex)
    value.real, value.imag = parts
    return value


def _sparse_columns(shape: tuple[int, ...], rows: Array, columns: Array, parts: list[Array]) -> Any:
    """Return a sparse matrix from row numbers and the number of entries before each column."""
    if len(shape) != 2 or columns.size != shape[1] + 1 or columns.dtype.kind == "f" or rows.dtype.kind == "f":
        raise _damaged(f"a sparse matrix of shape {shape} with {columns.size} ends of columns")
    columns, rows = columns.astype(np.int64), rows.astype(np.int64)
    if columns[0] != 0 or np.any(np.diff(columns) < 0):
        raise _damaged("a sparse matrix whose columns do not follow one another")
    count = int(columns[-1])
    # more space than entries may be allocated
    if count > min(rows.size, *(part.size for part in parts)):
        raise _damaged(f"a sparse matrix of {count} entries with fewer numbers")
    rows = rows[:count]
    outside = (rows < 0) | (rows >= shape[0])
    if np.any(outside):
        raise _damaged(f"a sparse matrix of {shape[0]} rows with an entry in row {rows[outside][0]} (from 0)")
    parts = [part[:count] for part in parts]
    from scipy.sparse import csc_matrix  # slow to import, and few files need it

    return csc_matrix((_complex(parts) if len(parts) == 2 else parts[0], rows, columns), shape=shape)


def _sparse_4(table: Array) -> Any:
    """Return a sparse matrix from rows of (row, column, value), of which the last holds the shape."""
    if table.shape[0] < 1 or table.shape[1] not in (3, 4) or np.iscomplexobj(table):
        raise _damaged(f"a sparse matrix written as a table of shape {table.shape}")
    indices = table[:, :2]
    if not np.all((indices == np.floor(indices)) & (indices >= 0) & (indices < 2**31)):
        raise _damaged("a sparse matrix with an index that is no whole number")
    shape, indices = indices[-1].astype(int), indices[:-1].astype(int) - 1
    if np.any((indices < 0) | (indices >= shape)):
        raise _damaged(f"a sparse matrix of shape {tuple(shape.tolist())} with an entry outside")
    values = _complex([table[:-1, 2], table[:-1, 3]]) if table.shape[1] == 4 else table[:-1, 2]
    from scipy.sparse import coo_matrix  # slow to import, and few files need it

    return coo_matrix((values, (indices[:, 0], indices[:, 1])), shape=tuple(shape.tolist()))
