"""Results as JSON lines: one record, appended atomically, for every finished step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hankelred.errors import in_one_line, short_repr

from .._util.numbers import is_number
from ..errors import ExperimentError

ResultRecord = dict[str, Any]


def _is_number(value: Any) -> bool:
    # NaN is the loss of a run that diverged; a whole number may be too long for a float
    return is_number(value) and (isinstance(value, float) or abs(value) < 2**63)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_means(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_number, value.values()))


def _are_losses(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_are_numbers(v) and len(v) == 2 for v in value)


#: What a record of each kind must have. What is null or absent where `compare` does not need it stays out.
_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "experiment": {"identity": lambda value: isinstance(value, dict)},
    "run": {
        "method": _is_text,
        "learning_rate": _is_number,
        "seed": _is_count,
        "created_at": _is_text,
        "seconds_total": _is_number,
        "seconds_steps": _are_numbers,
        "memory": lambda value: value is None or _is_count(value),
        "parameters": _is_count,
        "parameters_total": _is_count,
        "ranks": _is_text,
        "peft_config": lambda value: isinstance(value, dict),
        "losses": _are_losses,
        "validation": lambda value: value is None or _are_means(value),
        "status": _is_text,
        "file_size": _is_count,
    },
    "split": {
        "split": _is_text,
        "length": _is_count,
        "examples": _is_count,
        "context_mean": _is_number,
        "cut_share": _is_number,
        "evidence_share": lambda value: value is None or _is_number(value),
        "floors": lambda value: isinstance(value, dict) and all(map(_are_means, value.values())),
    },
    "score": {"split": _is_text, "length": _is_count, "means": _are_means},
}
#: A score has beside that what evaluate prints, or with ``per_unit`` what compare computes differences from.
_OF_EVALUATE = {**_FIELDS["split"], "metric": _is_text}
_OF_COMPARE: dict[str, Callable[[Any], bool]] = {
    "method": _is_text,
    "seed": _is_count,
    "learning_rate": _is_number,
    "weights": _are_numbers,
    "documents": lambda value: isinstance(value, list),
    "per_unit": lambda value: isinstance(value, dict) and all(map(_are_numbers, value.values())),
}


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
    >>> ResultsFile(path, {"steps": 10}).append({"kind": "note", "seed": 0})
    >>> ResultsFile(path, {"steps": 10}).find(kind="note")["seed"]
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
            if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                raise ValueError("it is no dict with a kind")
            _check_fields(record)
        except (ValueError, RecursionError) as error:
            raise ExperimentError(
                f"{path}, line {number}: is no record of results ({in_one_line(error, 150)}); take another "
                "folder with out, or remove the line"
            ) from None
        records.append(record)
    return records


def _check_fields(record: ResultRecord) -> None:
    required = _FIELDS.get(record["kind"], {})
    if record["kind"] == "score":
        required = {**required, **(_OF_COMPARE if "per_unit" in record else _OF_EVALUATE)}
    for name, fits in required.items():
        if name not in record:
            raise ValueError(f"it has no {name!r}")
        if not fits(record[name]):
            raise ValueError(f"{name} is {short_repr(record[name])}")
    if "per_unit" in record and record["kind"] == "score":
        rows = [*record["per_unit"].values(), record["weights"], record["documents"]]
        if len(set(map(len, rows))) > 1:
            raise ValueError("per_unit, weights and documents have different lengths")


def _check_identity(path: Path, first: ResultRecord, identity: ResultRecord) -> None:
    stored = first.get("identity")
    if not isinstance(stored, dict):
        raise ExperimentError(
            f"{path}, line 1: has no identity of an experiment; take another folder with out"
        )
    different = [key for key in sorted({*stored, *identity}) if stored.get(key) != identity.get(key)]
    if different:
        differences = "; ".join(
            f"{key} is {short_repr(stored.get(key))} there and {short_repr(identity.get(key))} here"
            for key in different
        )
        raise ExperimentError(
            f"{path} is that of another configuration: {differences}; take another folder with out, or the "
            "same settings"
        )


def _ends_with_newline(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def _complete_length(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
