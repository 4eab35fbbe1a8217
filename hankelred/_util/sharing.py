"""The base class of objects that several threads may use."""

from __future__ import annotations

import copy
import threading
from typing import Any


class Shared:
    """An object with a lock; a copy or pickle has the state between two changes and a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: copy.deepcopy(value) for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
