"""Where records come from: JSON lines in a folder, or a data set through the `datasets` library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hankelred.errors import short_repr

from .errors import TaskDataError, TaskError

T = TypeVar("T")


@dataclass(frozen=True)
class SourceRecord:
    """One record with its file and line, so that an error can name them.

    Attributes
    ----------
    content : object
        What was parsed.
    file : str
        File, or data set.
    line : int
        Counted from 1.
    layout : str
        What a record of this task looks like, for the remedy.
    """

    content: Any
    file: str
    line: int
    layout: str

    def get(self, key: str | int, kind: type[T]) -> T:
        """Return an entry of the requested type."""
        try:
            value = self.content[key]
        except (KeyError, IndexError, TypeError):
            raise self.error(f"has no {key!r}") from None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(f"{key!r} is {short_repr(value)}, not of type {kind.__name__}")
        return value

    def text(self, key: str | int) -> str:
        """Return an entry that is a text and not blank."""
        value = self.get(key, str)
        if not value.strip():
            raise self.error(f"{key!r} is blank")
        return value

    def within(self, key: str | int) -> SourceRecord:
        """Return an entry that has entries itself."""
        value = self.get(key, object)
        return SourceRecord(value, self.file, self.line, self.layout)

    def each(self, key: str | int) -> list[SourceRecord]:
        """Return the entries of a list."""
        return [SourceRecord(v, self.file, self.line, self.layout) for v in self.get(key, list)]

    def error(self, problem: str) -> TaskDataError:
        """Return the error that names this record."""
        return TaskDataError(self.file, self.line, problem, f"a record must have {self.layout}")


#: What to do about a text that is not there.
TEXT_REMEDY = "give a text file, or a folder with .txt files"


def text_files(path: Path) -> list[Path]:
    """Return a text file, or the .txt files of a folder and those below it.

    Raises
    ------
    TaskDataError
        There is none.
    """
    if not path.exists():
        raise TaskDataError(path, None, "is not there", TEXT_REMEDY)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not files:
        raise TaskDataError(path, None, "has no .txt files", TEXT_REMEDY)
    return files


def read_text(path: Path) -> str:
    """Return the content of a text file.

    Raises
    ------
    TaskDataError
        It cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TaskDataError(path, None, f"cannot be read ({error.strerror})", TEXT_REMEDY) from None
    except UnicodeDecodeError as error:
        raise TaskDataError(path, None, f"is no UTF-8 ({error.reason})", "save it as UTF-8") from None


def read_jsonl(path: Path, layout: str) -> Iterator[SourceRecord]:
    """Yield the records of a file with one JSON object a line; blank lines are passed over."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield SourceRecord(_parsed(line, path, number, layout), str(path), number, layout)
    except OSError as error:
        raise TaskDataError(
            path, None, f"cannot be read ({error.strerror})", "give as data_dir the folder that has it"
        ) from None
    except UnicodeDecodeError as error:
        raise TaskDataError(path, None, f"is no UTF-8 ({error.reason})", "fetch it again") from None


def checked_revision(revision: object) -> str:
    """Return the branch, tag or commit of a data set on the hub."""
    if not isinstance(revision, str) or not revision:
        raise TaskError(f"revision is {short_repr(revision)}; give a branch, tag or commit, such as 'main'")
    return revision


def read_hub(name: str, split: str, layout: str, **options: Any) -> Iterator[SourceRecord]:
    """Yield the rows of a data set; `datasets` keeps what it fetched."""
    shown = options.get("data_files", f"{name}, {split}")
    try:
        import datasets
    except ImportError:
        raise TaskError(
            "data sets of the hub need the library datasets; pip install 'hankelred[evaluate]', or give "
            "data_dir"
        ) from None
    try:
        rows = datasets.load_dataset(name, split=split, **options)
    except Exception as error:  # whatever the network, the hub or the library raises
        raise TaskDataError(
            f"data set {shown}", None, f"cannot be loaded ({error})", "connect to the hub, or give data_dir"
        ) from error
    for number, row in enumerate(rows, 1):
        yield SourceRecord(row, f"data set {shown}", number, layout)


def _parsed(line: str, path: Path, number: int, layout: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskDataError(
            path, number, f"is no JSON ({error})", f"a record must be one line and have {layout}"
        ) from None
