"""The versions of the documentation: folders beside each other, and links to those that are there only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "site_versions.py"
# the source archive has no tools
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="no tools here: this is no clone")


@pytest.fixture(scope="module")
def tool():
    return load_script(SCRIPT)


def built(folder, text):
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(text)
    (folder / ".doctrees").mkdir()
    return folder


def test_versions_beside_each_other(tool, tmp_path):
    """The documentation had one version, that of the last release, and no word of others."""
    site = tmp_path / "site"
    tool.place(built(tmp_path / "main", "main"), site, "latest")
    assert [v["name"] for v in json.loads((site / "versions.json").read_text())] == ["latest"]
    assert "url=latest/" in (site / "index.html").read_text()
    for name in ("0.2.0", "0.10.0"):
        tool.place(built(tmp_path / name, name), site, name)
    # a correction of an older series is not the stable version
    tool.place(built(tmp_path / "0.9.1", "0.9.1"), site, "0.9.1")
    versions = json.loads((site / "versions.json").read_text())
    assert [v["name"] for v in versions] == ["stable", "latest", "0.10.0", "0.9.1", "0.2.0"]
    assert versions[0]["title"] == "stable (0.10.0)"
    for version in versions:
        assert (site / version["name"] / "index.html").is_file()
    assert (site / "stable" / "index.html").read_text() == "0.10.0"
    assert "url=stable/" in (site / "index.html").read_text() and (site / ".nojekyll").exists()
    assert not list(site.rglob(".doctrees"))


def test_a_version_is_replaced_whole(tool, tmp_path):
    site = tmp_path / "site"
    first = built(tmp_path / "first", "first")
    (first / "gone.html").touch()
    tool.place(first, site, "0.2.0")
    tool.place(built(tmp_path / "second", "second"), site, "0.2.0")
    for folder in ("0.2.0", "stable"):
        assert [path.name for path in (site / folder).iterdir()] == ["index.html"]


@pytest.mark.parametrize("name", ["v0.2.0", "stable", "../0.2.0", "0.2", "main"])
def test_other_names_are_refused(tool, tmp_path, name):
    with pytest.raises(SystemExit, match="NAME must be a release"):
        tool.place(built(tmp_path / "built", ""), tmp_path / "site", name)
    assert not (tmp_path / "site").exists()


def test_a_site_that_is_not_built_is_refused(tool, tmp_path):
    with pytest.raises(SystemExit, match="make docs"):
        tool.place(tmp_path / "nothing", tmp_path / "site", "latest")


def test_pages_read_the_list_that_is_written(tool):
    """The script of the pages reads versions.json beside the folder of its version, and no other address."""
    script = (ROOT / "docs" / "_static" / "versions.js").read_text("utf-8")
    assert re.findall(r"new URL\(([\"`][^,]*),", script) == ['"../versions.json"', "`../${choice.value}/`"]
    assert "http" not in script
    configuration = (ROOT / "docs" / "conf.py").read_text("utf-8")
    assert '"versions.html"' in configuration and '"versions.js"' in configuration
    assert 'id="versions"' in (ROOT / "docs" / "_templates" / "versions.html").read_text("utf-8")
