"""What users write: values in YAML, and names that are near to one which is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import yaml

#: Lists and mappings within each other; settings have three.
_MOST_NESTED = 50


class _ShallowLoader(yaml.SafeLoader):
    """Refuses what is nested deeply, for which the scanner takes seconds before Python's recursion ends."""

    nested = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nested += 1
        if self.nested > _MOST_NESTED:
            raise yaml.YAMLError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.nested -= 1
        return node


def parse_yaml(text: str) -> Any:
    """Return the value that a text is in YAML; lists that are nested too deeply to read are an error.

    Raises
    ------
    yaml.YAMLError
        It is no YAML.

    Examples
    --------
    >>> from hankelred_llm._util.parsing import parse_yaml
    >>> parse_yaml("[1, yes]")
    [1, True]
    """
    try:
        return yaml.load(text, _ShallowLoader)  # a SafeLoader
    except ValueError as error:  # of a date, or a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?', or what there is where nothing is near.

    Examples
    --------
    >>> from hankelred_llm._util.parsing import nearest
    >>> nearest("setps", ["steps", "seeds"])
    "; did you mean 'steps'?"
    """
    names = list(known)
    close = difflib.get_close_matches(name[:100], names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"
