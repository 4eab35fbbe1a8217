"""What users write: values in YAML, and names that are near to one which is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import yaml


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
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
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
