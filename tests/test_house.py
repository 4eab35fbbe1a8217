"""The house: imports go one way, and what a room keeps to itself is not taken from it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("hankelred", "hankelred_llm")
    for path in sorted((ROOT / package).rglob("*.py"))
}
#: rooms of the adapters, from the one that knows least to the one that knows most
STOREYS = (
    {"_errors", "_tokens", "_step", "_modes", "_triangles"},
    {"_prefix"},
    {"_sweeps", "_products"},
    {"_chunks"},
    {"recurrence", "_scan", "_starts", "config", "state"},
    {"adapter", "_layer", "_carrier", "_shards"},
    {"tuner", "_sites"},
    {"systems", "parallel", "calibration", "_passes"},
    {"_collecting", "_candidates"},
    {"spectra", "initialization", "reduction"},
    {"comparison", "train", "evaluate", "_trainer", "_experiment"},
    {"cli"},
)


def taken(path, name, *, everywhere=False):
    """Yield (room, name in it) for what a room imports from others, at import time or everywhere."""
    tree = ast.parse(path.read_text("utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree) if everywhere else tree.body:
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            if inner in ROOMS:
                yield inner, None
            elif source in ROOMS:
                yield source, alias.name


@pytest.fixture(scope="module")
def graph():
    rooms = {name: path for name, path in ROOMS.items() if path.name not in ("__init__.py", "__main__.py")}
    return {name: {room for room, _ in taken(path, name) if room in rooms} for name, path in rooms.items()}


def test_no_room_imports_itself_in_a_circle(graph):
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_adapters_know_nothing_of_what_is_built_on_them(graph):
    def below(room, seen):
        for other in graph.get(room, ()):
            if other not in seen:
                seen.add(other)
                below(other, seen)
        return seen

    for level, storey in enumerate(STOREYS):
        above = {f"hankelred_llm.{room}" for rooms in STOREYS[level + 1 :] for room in rooms}
        for room in storey:
            assert f"hankelred_llm.{room}" in graph, f"there is no room {room}"
            assert not below(f"hankelred_llm.{room}", set()) & above, f"{room} knows a room above it"


@pytest.mark.parametrize("name", ROOMS)
def test_no_private_name_crosses_a_wall(name):
    for room, what in taken(ROOMS[name], name, everywhere=True):
        assert what is None or not what.startswith("_") or what.startswith("__"), f"{what} of {room}"


def test_the_core_knows_nothing_of_the_bridge():
    for name, path in ROOMS.items():
        if name.split(".")[0] == "hankelred":
            assert "hankelred_llm" not in {
                room.split(".")[0] for room, _ in taken(path, name, everywhere=True)
            }
