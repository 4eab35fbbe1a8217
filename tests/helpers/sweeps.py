"""Sweeps: tests of many seeds, orders or sizes, of which ``make test`` runs the first cases only.

Each case of a sweep asks the same of another model. ``make coverage``, ``make test-floors`` and
``make test-newest`` run all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sweep(cases: Iterable[Any], first: int) -> list[Any]:
    """Return the cases for ``pytest.mark.parametrize``; those after the first ones are marked ``xslow``."""

    def marked(case: Any) -> Any:
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.xslow)

    return [case if i < first else marked(case) for i, case in enumerate(cases)]
