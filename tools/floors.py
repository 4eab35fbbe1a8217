"""Print the oldest versions that pyproject.toml declares, as constraints for pip.

    python tools/floors.py > floors.txt

Only packages that users install are listed; the tools of the tests keep their newest versions.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

#: Installed first and separately, in the one version that comes without gigabytes of CUDA packages.
INSTALLED_FIRST = {"torch"}
EXTRAS = ("llm", "experiments", "evaluate", "gguf")

#: Indirect dependencies of the same age: newer versions do not work with the old ones, or warn about them.
COMPANIONS = {"pyarrow": "24.0.0", "pyparsing": "3.2.0", "trl": "1.8.0"}


def floors(project: Path) -> dict[str, str]:
    """Return the oldest version of each dependency, by its name."""
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = declared["optional-dependencies"]
    versions = {}
    for requirement in [*declared["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]:
        if requirement.startswith(f"{declared['name']}["):  # another extra, which is in the list too
            continue
        match = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
        if match is None:
            raise SystemExit(
                f"error: {requirement!r} in {project} declares no oldest version; write NAME>=VERSION"
            )
        versions[match[1]] = match[2]
    return {
        **{name: version for name, version in versions.items() if name not in INSTALLED_FIRST},
        **COMPANIONS,
    }


if __name__ == "__main__":
    for name, version in floors(Path(__file__).parents[1] / "pyproject.toml").items():
        print(f"{name}=={version}")
