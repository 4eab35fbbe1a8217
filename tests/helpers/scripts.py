"""Scripts of benchmarks, docs and tools, which belong to no package, as modules."""

from __future__ import annotations

import importlib.util


def load_script(path):
    """Return a script as a module of its own, which no other test shares."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
