"""The modules: private names stay where they are, and no folder is crowded. Layers: ``lint-imports``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("hankelred", "hankelred_llm")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(path, name):
    """Yield (module, name in it) for what a module imports from others of the two packages."""
    tree = ast.parse(path.read_text("utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            if inner in MODULES:
                yield inner, None
            elif source in MODULES:
                yield source, alias.name


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_is_imported(name):
    for module, what in imported(MODULES[name], name):
        assert what is None or not what.startswith("_") or what.startswith("__"), f"{what} of {module}"


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda p: p.name)
def test_a_folder_can_be_taken_in_at_a_glance(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 16
