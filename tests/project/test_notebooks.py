"""The notebooks in examples/notebooks run from first to last cell; results are tables and pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers.sweeps import sweep

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: Cells whose output is an HTML table of a result.
TABLES = {"identify_a_model": 2, "reduce_a_model": 2, "memory_of_a_language_model": 3}


def test_there_are_three():
    assert {path.stem for path in NOTEBOOKS} == set(TABLES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's packages
@pytest.mark.parametrize("name", sweep(TABLES, first=2))
def test_notebooks_run(name, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbclient, which runs notebooks, is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel, in which notebooks run, is not installed")
    root = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    tables = [o for o in outputs if "<table>" in o.get("data", {}).get("text/html", "")]
    assert len(tables) >= TABLES[name]
