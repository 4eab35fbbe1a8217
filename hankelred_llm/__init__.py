"""Stateful fine-tuning adapters: diagonal linear systems beside the blocks of a frozen language model."""

from hankelred import __version__

from ._errors import AdapterError, AdapterFileError, ArchitectureError, ConfigError, StateError
from .config import HRMConfig
from .parallel import context_parallel
from .recurrence import linear_recurrence
from .systems import get_systems, set_systems
from .tuner import attach, register

register()

__all__ = [
    "AdapterError",
    "AdapterFileError",
    "ArchitectureError",
    "ConfigError",
    "HRMConfig",
    "StateError",
    "__version__",
    "attach",
    "context_parallel",
    "get_systems",
    "linear_recurrence",
    "set_systems",
]
