"""Recurrent adapters: diagonal linear systems in parallel with the blocks of a frozen language model."""

from hankelred import __version__

from .adapter.config import HRMConfig
from .adapter.model import attach, register
from .adapter.systems import get_systems, set_systems
from .analysis.calibration import Calibration
from .analysis.calibration_pass import calibrate
from .analysis.initialize import InitializationReport, initialize
from .analysis.reduce import ReductionReport, reduce
from .analysis.spectra import HankelSpectra, hankel_spectra
from .errors import (
    AdapterError,
    AdapterFileError,
    ArchitectureError,
    CalibrationError,
    ConfigError,
    ExperimentError,
    StateError,
)
from .ops.recurrence import linear_recurrence
from .state.sequence_parallel import context_parallel

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
