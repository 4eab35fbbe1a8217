"""What a release rests on: one version everywhere, pinned actions, packages with hashes, the conda recipe."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import hankelred

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# the source archive has none of these files
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="no workflows here: this is no clone")


def pins(path):
    """Return the packages of a file of constraints, with their versions."""
    found = re.findall(r"^([\w.-]+)==([\w.!+]+)", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    recipe = (ROOT / "conda.recipe" / "meta.yaml").read_text("utf-8")
    assert f"\nversion: {hankelred.__version__}\n" in citation
    assert f'set version = "{hankelred.__version__}"' in recipe


def test_conda_recipe_needs_what_the_wheel_needs():
    recipe = (ROOT / "conda.recipe" / "meta.yaml").read_text("utf-8")
    run = recipe.split("  run:\n")[1].split("\ntest:")[0]
    needed = dict(re.findall(r"- ([\w-]+) >=([\d.]+)", run))
    declared = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in PROJECT["dependencies"])
    declared["matplotlib-base"] = declared.pop("matplotlib")
    assert needed == declared | {"python": PROJECT["requires-python"].removeprefix(">=")}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(workflow):
    """A tag can be moved to other code; a commit cannot."""
    used = re.findall(r"uses: (\S+)(.*)", workflow.read_text("utf-8"))
    assert used
    for action, comment in used:
        if action.startswith("./"):  # a workflow of the same commit
            assert (ROOT / action).is_file()
            continue
        assert re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", action) and re.search(r"# v\d", comment), action


def test_hashes_are_those_of_the_pinned_versions():
    hashes = ROOT / "constraints-hashes.txt"
    assert pins(hashes) == pins(ROOT / "constraints.txt"), "run: make lock"
    entries = re.split(r"^(?=[\w.-]+==)", hashes.read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)


def test_links_of_the_project_are_there():
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= set(PROJECT["urls"])
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())


def test_workflow_tests_every_declared_python():
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    matrix = re.search(r'python: \[("3.*?)\]\n        slycot', text)[1]
    assert re.findall(r'"(3\.\d+)"', matrix) == declared
    assert "macos-latest" in text and "windows-latest" in text
