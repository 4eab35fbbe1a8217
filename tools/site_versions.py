"""Put a built site beside those of other versions: `python tools/site_versions.py BUILT SITE NAME`.

NAME is a release, such as 0.2.0, or latest, the state of the main branch. SITE/NAME is replaced; the newest
release is SITE/stable as well, to which SITE/index.html leads. SITE/versions.json lists the versions that are
there, and the pages show links to these only (docs/_static/versions.js).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

LATEST, STABLE = "latest", "stable"
_RELEASE = re.compile(r"\d+\.\d+\.\d+")


def place(built: Path, site: Path, name: str) -> list[dict[str, str]]:
    """Copy a built site into the folder of its version, and return what is in versions.json then.

    Raises
    ------
    SystemExit
        The name is not that of a version, or the site has not been built.
    """
    if name != LATEST and not _RELEASE.fullmatch(name):
        raise SystemExit(f"error: NAME must be a release such as 0.2.0, or {LATEST}, got {name!r}")
    if not (built / "index.html").is_file():
        raise SystemExit(f"error: there is no site in {built}; make it with: make docs")
    names = {name}
    if name != LATEST and name == max([name, *releases(site)], key=numbers):
        names.add(STABLE)
    for folder in names:
        shutil.rmtree(site / folder, ignore_errors=True)
        shutil.copytree(built, site / folder, ignore=shutil.ignore_patterns(".doctrees", ".buildinfo"))
    versions = listed(site)
    (site / "versions.json").write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")
    (site / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>hankelred</title>\n'
        f'<meta http-equiv="refresh" content="0; url={versions[0]["name"]}/">\n'
        f'<a href="{versions[0]["name"]}/">Documentation of hankelred</a>\n',
        encoding="utf-8",
    )
    (site / ".nojekyll").touch()  # GitHub Pages would leave out folders such as _static
    return versions


def listed(site: Path) -> list[dict[str, str]]:
    """Return name and title of each version that is there: stable, latest, releases from the newest on."""
    there = releases(site)
    versions = [{"name": name, "title": name} for name in there]
    if (site / LATEST / "index.html").is_file():
        versions.insert(0, {"name": LATEST, "title": "latest (main branch)"})
    if (site / STABLE / "index.html").is_file():
        versions.insert(0, {"name": STABLE, "title": f"stable ({there[0]})"})
    return versions


def releases(site: Path) -> list[str]:
    """Return the releases that are there, the newest first."""
    found = [path.parent.name for path in site.glob("*/index.html") if _RELEASE.fullmatch(path.parent.name)]
    return sorted(found, key=numbers, reverse=True)


def numbers(name: str) -> tuple[int, ...]:
    """Return what releases are compared by."""
    return tuple(map(int, name.split(".")))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("built", type=Path)
    parser.add_argument("site", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    for version in place(options.built, options.site, options.name):
        print(f"{version['name']}/: {version['title']}")


if __name__ == "__main__":
    main()
