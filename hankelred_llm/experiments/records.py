"""Results as JSON lines: one record appended whole for everything that is finished."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import ExperimentError

Record = dict[str, Any]


class ResultsFile:
    """Records of one experiment, in a file that can be cut off at any moment.

    Parameters
    ----------
    path : Path
        Made where it is not there.
    identity : dict
        What all records of a file have in common; another one than that of the file is refused.
    write : bool
        Whether this process writes; the others only remember.

    Raises
    ------
    ExperimentError
        The file is that of another experiment, or is none.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hankelred_llm.experiments.records import ResultsFile
    >>> path = Path(tempfile.mkdtemp()) / "results.jsonl"
    >>> ResultsFile(path, {"steps": 10}).append({"kind": "run", "seed": 0})
    >>> ResultsFile(path, {"steps": 10}).find(kind="run")["seed"]
    0
    >>> ResultsFile(path, {"steps": 20})
    Traceback (most recent call last):
    ...
    hankelred_llm.errors.ExperimentError: ...another configuration: steps is 10 there and 20 here...
    """

    def __init__(self, path: Path, identity: Record, *, write: bool = True) -> None:
        self.path, self._write = path, write
        self.records = read_records(path) if path.exists() else []
        # as JSON gives it back
        identity = json.loads(json.dumps(identity, default=str))
        if self.records:
            _compare(path, self.records[0], identity)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.append({"kind": "experiment", "identity": identity})

    def append(self, record: Record) -> None:
        """Write a record: all of it, or after a crash none."""
        record = json.loads(json.dumps(record))
        self.records.append(record)
        if not self._write:
            return
        line = json.dumps(record) + "\n"
        with self.path.open("ab") as file:
            # what was cut off by a crash is no line, and must not become the beginning of this one
            if file.tell() and not _ends(self.path):
                file.truncate(_whole(self.path))
                file.seek(0, os.SEEK_END)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def find(self, **values: Any) -> Record | None:
        """Return the first record with these values."""
        return next(iter(self.all(**values)), None)

    def all(self, **values: Any) -> list[Record]:
        """Return all records with these values, in order."""
        return [r for r in self.records if all(r.get(key) == value for key, value in values.items())]


def read_records(path: Path) -> list[Record]:
    """Return the records of a file; a last line that was cut off is none.

    Raises
    ------
    ExperimentError
        A line is no record, or there is none.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "kind" not in record:
                raise ValueError
        except ValueError:
            raise ExperimentError(
                f"{path}, line {number}: is no record of results; take another folder with out, "
                "or remove the line"
            ) from None
        records.append(record)
    return records


def _compare(path: Path, first: Record, identity: Record) -> None:
    there = first.get("identity")
    if not isinstance(there, dict):
        raise ExperimentError(f"{path}, line 1: says nothing of an experiment; take another folder with out")
    different = [key for key in sorted({*there, *identity}) if there.get(key) != identity.get(key)]
    if different:
        said = "; ".join(
            f"{key} is {there.get(key)!r} there and {identity.get(key)!r} here" for key in different
        )
        raise ExperimentError(
            f"{path} is that of another configuration: {said}; take another folder with out, or the same "
            "settings"
        )


def _ends(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def _whole(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
