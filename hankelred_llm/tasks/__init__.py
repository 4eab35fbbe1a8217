"""Tasks: data, prompts, labels, metrics and trivial baselines.

A file of the folders ``synthetic``, ``natural``, ``documents`` and ``language_modeling`` is a task. It holds
one subclass of `Task`, bound to ``TASK``; most need only `SyntheticTask.draw`, `NaturalTask.draw`,
`DocumentTask.parse` or `ByteTask.streams`. Nothing has to be registered.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from importlib import import_module
from typing import Any

from hankelred.errors import short_repr

from .base import Choice, Example, Scores, Split, Task
from .byte_tokens import ByteTokenizer
from .collate import Collator
from .errors import SplitReadError, TaskDataError, TaskError

__all__ = [
    "ByteTokenizer",
    "Choice",
    "Collator",
    "Example",
    "Scores",
    "Split",
    "SplitReadError",
    "Task",
    "TaskDataError",
    "TaskError",
    "get_task",
    "list_tasks",
]

FAMILIES = ("synthetic", "natural", "documents", "language_modeling")


def list_tasks() -> dict[str, str]:
    """Return the name of every task and what it predicts.

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> from hankelred_llm.tasks import list_tasks
    >>> list_tasks()["parity"]
    'parity of the bits read so far, after every bit'
    """
    return {name: _task_class(name).summary for name in _names()}


def get_task(name: str, **options: Any) -> Task:
    """Make a task.

    Parameters
    ----------
    name : str
        One of `list_tasks`.
    **options
        Those of the task. Synthetic tasks: ``seed`` (draws what is fixed, and the rows) and what their page
        lists. Tasks in plain sentences: ``seed``, ``text`` (where the noise is from), ``questions`` and
        ``by``. Byte tasks: ``path``. Documents: ``data_dir`` (None: the hub, where the task is there).
        Documents and plain sentences: ``tokenizer`` (None: bytes).

    Returns
    -------
    Task

    Raises
    ------
    TaskError
        Unknown name or option, or a value the task cannot take.
    TaskDataError
        Files that are not there or do not parse, found when the first split is made.

    Examples
    --------
    >>> from hankelred_llm.tasks import get_task
    >>> task = get_task("prefix_dfa", transitions=[[2, 1], [0, 3], [0, 2], [0, 3]])
    >>> row = task.train(6)[0]
    >>> bytes(row.input_ids[:-1].tolist()), bytes(row.targets.tolist())
    (b'...', b'...')
    >>> task.baselines(task.validation(32))["chance"]
    {'accuracy': 0.25}
    """
    check_name(name)
    task = _task_class(name)
    known = [p for p in inspect.signature(task).parameters]
    for option in options:
        if option not in known:
            raise TaskError(f"task {name} has no option {short_repr(option)}; it has: {', '.join(known)}")
    for parameter in inspect.signature(task).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise TaskError(f"task {name} needs the option {parameter.name!r}")
    return task(**options)


def check_name(name: str) -> None:
    """Refuse a name that is that of no task; nothing of a task is imported.

    Raises
    ------
    TaskError
        With the names that there are.
    """
    if name not in _names():
        near = difflib.get_close_matches(str(name), _names(), n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise TaskError(f"there is no task {short_repr(name)}; {hint} are: {', '.join(_names())}")


def _modules() -> dict[str, str]:
    """Return the module of each task, by the name of the task."""
    return {
        module.name: f"{__name__}.{family}.{module.name}"
        for family in FAMILIES
        for module in pkgutil.iter_modules([f"{__path__[0]}/{family}"])
    }


def _names() -> list[str]:
    return sorted(_modules())


def _task_class(name: str) -> type[Task]:
    task: type[Task] = import_module(_modules()[name]).TASK
    return task
