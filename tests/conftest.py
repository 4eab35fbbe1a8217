"""Settings of the whole suite."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

# What fails in continuous integration (GitHub and `make test` set CI) must fail for everybody: there
# hypothesis draws the same examples each time. Elsewhere it goes on looking; what it finds stays as @example.
settings.register_profile("repeatable", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("repeatable")

if os.environ.get("HANKELRED_WITHOUT_SLYCOT"):
    # makes every `import slycot` fail, also python-control's own: nothing may need it
    sys.modules["slycot"] = None
