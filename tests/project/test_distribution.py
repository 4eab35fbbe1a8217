"""What is published: wheel and source archive hold the packages, and work without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

import hankelred

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both, and unpack the wheel where no repository is near."""
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    installed = folder / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "-t", installed, wheel],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return wheel, source, installed


def run(installed, *command):
    """Run a command of the installed packages in a folder of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        command,
        cwd=installed.parent,
        env=environment | {"PYTHONPATH": str(installed), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_wheel_is_small_and_holds_the_packages_only(built):
    wheel, _, _ = built
    assert wheel.stat().st_size < 1_000_000
    names = zipfile.ZipFile(wheel).namelist()
    info = f"hankelred-{hankelred.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"hankelred", "hankelred_llm", info}
    for needed in ("hankelred/py.typed", "hankelred_llm/py.typed", f"{info}/licenses/LICENSE"):
        assert needed in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".png", ".npz", ".mat"))]
    modules = {p.relative_to(ROOT).as_posix() for k in ("hankelred*/**/*.py",) for p in ROOT.glob(k)}
    assert modules <= set(names)


def test_source_archive_can_be_tested(built):
    _, source, _ = built
    with tarfile.open(source) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert source.stat().st_size < 2_000_000
    for needed in (
        "Makefile",
        "constraints.txt",
        "tests/conftest.py",
        "docs/conf.py",
        "LICENSE",
        "README.md",
    ):
        assert needed in names
    # pieces of studies are in folders of docs/results: tests that read them are skipped without
    left_out = (".venv", "docs/_build", "demo-output", "docs/results/real", "docs/results/shapes")
    assert not [name for name in names if name.startswith(left_out)]
    assert "docs/results/comparisons.json" in names


def test_installed_packages_work_without_the_repository(built):
    *_, installed = built
    code = "import hankelred, hankelred_llm; print(hankelred.__file__, hankelred_llm.__file__)"
    seen = run(installed, sys.executable, "-c", code)
    assert seen.returncode == 0, seen.stderr
    assert all(str(installed) in path for path in seen.stdout.split())
    for program in ("hankelred", "hankelred-llm"):
        told = run(installed, sys.executable, str(installed / "bin" / program), "--version")
        assert told.returncode == 0, told.stderr
        assert hankelred.__version__ in told.stdout
    model = installed.parent / "model.json"
    model.write_text('{"A": [[-1.0]], "B": [[1.0]], "C": [[2.0]], "D": [[0.0]]}', encoding="utf-8")
    values = run(installed, sys.executable, str(installed / "bin" / "hankelred"), "hsv", str(model))
    assert values.returncode == 0, values.stderr
    assert "1" in values.stdout


def test_metadata(built):
    *_, installed = built
    told = PathDistribution(next(installed.glob("*.dist-info"))).metadata
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert told["Version"] == hankelred.__version__
    assert "version" not in project  # it stands in the package, once
    assert set(told.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    required = [line for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    # slycot is under the GPL, torch is large: neither is forced on anyone
    assert not [line for line in required if line.startswith(("slycot", "torch", "transformers"))]
