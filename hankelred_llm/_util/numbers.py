"""Numbers in files and arguments."""

from __future__ import annotations

from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a number, finite or not; a bool is none.

    Examples
    --------
    >>> from hankelred_llm._util.numbers import is_number
    >>> is_number(3), is_number(0.5), is_number(True), is_number("3")
    (True, True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)
