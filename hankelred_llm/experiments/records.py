"""Results as JSON lines: one record, appended atomically, for every finished step."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hankelred.errors import in_one_line, short_repr

from .._util.value_types import (
    FileCount,
    FileNumber,
    FileText,
    NotEmpty,
    TypeAdapter,
    ValidationError,
    problem,
)
from ..errors import ExperimentError

#: A line of the file: what it is under "kind", and the values.
ResultRecord = dict[str, Any]


class RunKey(NamedTuple):
    """What identifies a run."""

    method: str
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class _OfRun:
    """What the records of a run have in common."""

    method: FileText
    learning_rate: FileNumber
    seed: FileCount

    @property
    def key(self) -> RunKey:
        """Which run it is."""
        return RunKey(self.method, self.learning_rate, self.seed)


@dataclass(frozen=True)
class RunRecord(_OfRun):
    """A finished training.

    Attributes
    ----------
    method, learning_rate, seed
        The run.
    created_at : str
    seconds_total : float
    seconds_steps : list of float
    memory : int or None
        Peak in bytes.
    parameters, parameters_total : int
        Trainable ones, and all.
    ranks : str
    peft_config : dict
    losses : list of (int, float)
        By step.
    status : str
        "success" or "failed".
    file_size : int
        Bytes of the adapter.
    validation : dict of str to float, optional
        Mean of each metric on the validation rows; None before they are scored, and where a run diverged.
    phase : str, optional
        "tuning" or "final" in a comparison.
    forgetting : float, optional
        What training added to the loss on a text, in nats a token; None where none is named.
    """

    created_at: FileText
    seconds_total: FileNumber
    seconds_steps: list[FileNumber]
    memory: FileCount | None
    parameters: FileCount
    parameters_total: FileCount
    ranks: FileText
    peft_config: dict[str, Any]
    losses: NotEmpty[list[tuple[FileCount, FileNumber]]]
    status: FileText
    file_size: FileCount
    validation: NotEmpty[dict[str, FileNumber]] | None
    phase: FileText | None = None
    forgetting: FileNumber | None = None


@dataclass(frozen=True)
class ScoreRecord(_OfRun):
    """The scores of a run on a split at a length, as :class:`hankelred_llm.tasks.Scores` has them."""

    split: FileText
    length: FileCount
    means: NotEmpty[dict[str, FileNumber]]
    per_unit: dict[str, list[FileNumber]]
    weights: list[FileNumber]
    documents: list[Any]
    units: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len({*map(len, self.per_unit.values()), len(self.weights), len(self.documents)}) > 1:
            raise ValueError("per_unit, weights and documents have different lengths")


@dataclass(frozen=True)
class _SplitFields:
    """What tables need of the description of a split; the record has more."""

    split: FileText
    length: FileCount
    examples: FileCount
    context_mean: FileNumber
    cut_share: FileNumber
    evidence_share: FileNumber | None
    floors: dict[str, NotEmpty[dict[str, FileNumber]]]


@dataclass(frozen=True)
class _EvaluationFields(_SplitFields):
    """What `evaluate` prints."""

    metric: FileText
    means: NotEmpty[dict[str, FileNumber]]


@dataclass(frozen=True)
class _ExperimentFields:
    identity: dict[str, Any]


_TYPES: dict[str, TypeAdapter[Any]] = {
    "experiment": TypeAdapter(_ExperimentFields),
    "run": TypeAdapter(RunRecord),
    "split": TypeAdapter(_SplitFields),
}
_SCORE, _EVALUATION = TypeAdapter(ScoreRecord), TypeAdapter(_EvaluationFields)

#: Settings in files of earlier versions that changed only methods which there are no more.
_NO_LONGER_SETTINGS = {"calibration_steps"}


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

    def add(self, record: RunRecord | ScoreRecord) -> None:
        """Write a record of a run or a score."""
        self.append({"kind": "run" if isinstance(record, RunRecord) else "score", **asdict(record)})

    def runs(self) -> list[RunRecord]:
        """Return the records of all runs, in order."""
        return [_TYPES["run"].validate_python(r) for r in self.all(kind="run")]

    def scores(self, split: str) -> list[ScoreRecord]:
        """Return the scores of all runs on a split, in order."""
        records = self.all(kind="score", split=split)
        return [_SCORE.validate_python(r) for r in records if "per_unit" in r]

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
        except ValidationError as error:
            raise _no_record(path, number, problem(error)) from None
        except (ValueError, RecursionError) as error:
            raise _no_record(path, number, str(error)) from None
        records.append(record)
    return records


def _check_fields(record: ResultRecord) -> None:
    """Raise pydantic's error where a record lacks what a command reads of it."""
    if record["kind"] == "score":
        (_SCORE if "per_unit" in record else _EVALUATION).validate_python(record)
    elif record["kind"] in _TYPES:
        _TYPES[record["kind"]].validate_python(record)


def _no_record(path: Path, number: int, reason: str) -> ExperimentError:
    return ExperimentError(
        f"{path}, line {number}: is no record of results ({in_one_line(reason, 150)}); take another folder "
        "with out, or remove the line"
    )


def _check_identity(path: Path, first: ResultRecord, identity: ResultRecord) -> None:
    stored = first.get("identity")
    if not isinstance(stored, dict):
        raise ExperimentError(
            f"{path}, line 1: has no identity of an experiment; take another folder with out"
        )
    keys = {*stored, *identity} - _NO_LONGER_SETTINGS
    different = [key for key in sorted(keys) if stored.get(key) != identity.get(key)]
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
