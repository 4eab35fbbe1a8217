"""Stateful fine-tuning adapters: diagonal linear systems beside the blocks of a frozen language model."""

from hankelred import __version__

from ._collecting import calibrate
from ._errors import (
    AdapterError,
    AdapterFileError,
    ArchitectureError,
    CalibrationError,
    ConfigError,
    ExperimentError,
    StateError,
)
from .calibration import Calibration
from .config import HRMConfig
from .initialization import InitializationReport, initialize
from .parallel import context_parallel
from .recurrence import linear_recurrence
from .reduction import ReductionReport, reduce
from .spectra import HankelSpectra, hankel_spectra
from .systems import get_systems, set_systems
from .tuner import attach, register

register()

__all__ = [
    "AdapterError",
    "AdapterFileError",
    "ArchitectureError",
    "Calibration",
    "CalibrationError",
    "ConfigError",
    "ExperimentError",
    "HRMConfig",
    "HankelSpectra",
    "InitializationReport",
    "ReductionReport",
    "StateError",
    "__version__",
    "attach",
    "calibrate",
    "context_parallel",
    "get_systems",
    "hankel_spectra",
    "initialize",
    "linear_recurrence",
    "reduce",
    "set_systems",
]
