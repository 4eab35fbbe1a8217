"""Objects that threads may share, or that notice when they do."""

from __future__ import annotations

import copy
import threading
from typing import Any


class Shared:
    """An object with a lock; a copy or pickle is of its state between two changes, and has its own lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: copy.deepcopy(value) for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
