"""Settings of the whole suite."""

from __future__ import annotations

import os
import sys

if os.environ.get("HANKELRED_WITHOUT_SLYCOT"):
    # makes every `import slycot` fail, also python-control's own: nothing may need it
    sys.modules["slycot"] = None
