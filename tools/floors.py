"""Print the oldest versions that pyproject.toml declares, as constraints for pip.

    python tools/floors.py > floors.txt

The packages named are those that users install; tools of the tests stay as new as they are.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

#: Installed first and alone, in the one version that comes without gigabytes of CUDA packages.
APART = {"torch"}
EXTRAS = ("llm", "evaluate")

#: Packages beside them, in a version of their time: newer ones warn of them, or do not run with them.
COMPANIONS = {"pyarrow": "24.0.0", "pyparsing": "3.2.0", "trl": "1.8.0"}


def floors(project: Path) -> dict[str, str]:
    """Return the oldest version of each dependency, by its name."""
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = declared["optional-dependencies"]
    found = {}
    for requirement in [*declared["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]:
        match = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
        if match is None:
            raise SystemExit(
                f"error: {requirement!r} in {project} declares no oldest version; write NAME>=VERSION"
            )
        found[match[1]] = match[2]
    return {**{name: version for name, version in found.items() if name not in APART}, **COMPANIONS}


if __name__ == "__main__":
    for name, version in floors(Path(__file__).parents[1] / "pyproject.toml").items():
        print(f"{name}=={version}")
