"""Settings of the whole suite."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from hypothesis import settings

TESTS = Path(__file__).parent

# What fails in continuous integration (GitHub and `make test` set CI) must fail for everybody: hypothesis
# draws the same examples each time there. Elsewhere it keeps drawing new ones; failures are kept as @example.
settings.register_profile("repeatable", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("repeatable")

if os.environ.get("HANKELRED_WITHOUT_SLYCOT"):
    # makes every `import slycot` fail, also python-control's own: nothing may need it
    sys.modules["slycot"] = None


def pytest_collection_modifyitems(items):
    """Mark the tests of the two packages by their folder: ``pytest -m core``."""
    for item in items:
        folder = item.path.parent.relative_to(TESTS) if item.path.is_relative_to(TESTS) else None
        for name in ("core", "llm"):
            if folder is not None and folder.parts[:1] == (name,):
                item.add_marker(name)


def pytest_collection_finish():
    """Keep what the collection left out of later garbage collections.

    transformers' Trainer runs a full one after each training. With torch, transformers and thousands of tests
    in memory that took half of the time of a training of a few steps.
    """
    gc.collect()
    gc.freeze()
