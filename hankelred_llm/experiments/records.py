"""Results as JSON lines: one record, appended atomically, for every finished step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import ExperimentError

ResultRecord = dict[str, Any]


class ResultsFile:
    """Records of one experiment, in a file that can be cut off at any moment.

    Parameters
    ----------
    path : Path
        Created if it does not exist.
    identity : dict
        The configuration that all records of a file share; a file with another one is refused.
    write : bool
        Whether this process writes; the others keep records in memory only.

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

    def __init__(self, path: Path, identity: ResultRecord, *, write: bool = True) -> None:
        self.path, self._write = path, write
        self.records = read_records(path) if path.exists() else []
        # in the form that JSON returns
        identity = json.loads(json.dumps(identity, default=str))
        if self.records:
            _check_identity(path, self.records[0], identity)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.append({"kind": "experiment", "identity": identity})

    def append(self, record: ResultRecord) -> None:
        """Write a record, completely or, after a crash, not at all."""
        record = json.loads(json.dumps(record))
        self.records.append(record)
        if not self._write:
            return
        line = json.dumps(record) + "\n"
        with self.path.open("ab") as file:
            # remove an incomplete last line, left by a crash, before appending
            if file.tell() and not _ends_with_newline(self.path):
                file.truncate(_complete_length(self.path))
                file.seek(0, os.SEEK_END)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def find(self, **values: Any) -> ResultRecord | None:
        """Return the first record with these values."""
        return next(iter(self.all(**values)), None)

    def all(self, **values: Any) -> list[ResultRecord]:
        """Return all records with these values, in order."""
        return [r for r in self.records if all(r.get(key) == value for key, value in values.items())]


def read_records(path: Path) -> list[ResultRecord]:
    """Return the records of a file; an incomplete last line is ignored.

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


def _check_identity(path: Path, first: ResultRecord, identity: ResultRecord) -> None:
    stored = first.get("identity")
    if not isinstance(stored, dict):
        raise ExperimentError(
            f"{path}, line 1: has no identity of an experiment; take another folder with out"
        )
    different = [key for key in sorted({*stored, *identity}) if stored.get(key) != identity.get(key)]
    if different:
        differences = "; ".join(
            f"{key} is {stored.get(key)!r} there and {identity.get(key)!r} here" for key in different
        )
        raise ExperimentError(
            f"{path} is that of another configuration: {differences}; take another folder with out, or the "
            "same settings"
        )


def _ends_with_newline(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def _complete_length(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
