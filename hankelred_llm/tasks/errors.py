"""The errors of tasks."""

from __future__ import annotations

from os import PathLike

from hankelred import HankelredError


class TaskError(HankelredError):
    """A task cannot be used as requested: unknown name or option, invalid length or prediction."""


class SplitReadError(TaskError):
    """The test split was read before, or something is to be chosen after it was read."""


class TaskDataError(TaskError):
    """A data file is missing or has a record that does not parse; names file, line and remedy.

    Parameters
    ----------
    file : path or str
        File, or name of the data set on the hub.
    line : int or None
        Number of the line, counted from 1; None where the whole file is meant.
    problem, remedy : str
        What was seen, and what to do about it.
    """

    def __init__(self, file: str | PathLike[str], line: int | None, problem: str, remedy: str) -> None:
        self.file, self.line, self.problem, self.remedy = str(file), line, problem, remedy
        where = self.file if line is None else f"{self.file}, line {line}"
        super().__init__(f"{where}: {problem}; {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        # the default would call __init__ with the message alone, and fail in a worker process
        return type(self), (self.file, self.line, self.problem, self.remedy)
