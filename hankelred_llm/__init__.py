"""Recurrent adapters: diagonal linear systems in parallel with the blocks of a frozen language model.

The names below are imported when they are first used, and HRM becomes a method of peft when peft is imported:
torch, peft and transformers take seconds, which a command line that only prints its help does not need.
"""

import importlib.util as _importlib_util
import sys as _sys
from pathlib import Path as _Path
from typing import TYPE_CHECKING

from hankelred import __version__
from hankelred._util.lazy_names import lazy_names as _lazy_names

from ._util.imports import after_import as _after_import

if TYPE_CHECKING:
    from .adapter.adapter_layers import parameter_groups
    from .adapter.config import HRMConfig
    from .adapter.model import attach
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
    from .state.cache import get_states, set_states
    from .state.sequence_parallel import context_parallel

#: What the extra ``llm`` installs, by the names they are imported by.
_NEEDED = ("torch", "transformers", "peft", "safetensors")


def _check_installed() -> None:
    missing = [name for name in _NEEDED if _importlib_util.find_spec(name) is None]
    if not missing:
        return
    message = f"hankelred_llm needs {', '.join(missing)}; run: pip install 'hankelred[llm]'"
    # this module is imported before the command can catch its errors
    if _Path("".join(_sys.argv[:1])).stem == "hankelred-llm":
        print(f"error: {message}", file=_sys.stderr)
        raise SystemExit(2)
    raise ImportError(message)


def _register() -> None:
    from .adapter.model import register

    register()


_check_installed()
_after_import("peft", _register)

#: The public names of each module.
_MODULES = {
    ".adapter.adapter_layers": ("parameter_groups",),
    ".adapter.config": ("HRMConfig",),
    ".adapter.model": ("attach",),
    ".adapter.systems": (
        "get_systems",
        "set_systems",
    ),
    ".analysis.calibration": ("Calibration",),
    ".analysis.calibration_pass": ("calibrate",),
    ".analysis.initialize": (
        "InitializationReport",
        "initialize",
    ),
    ".analysis.reduce": (
        "ReductionReport",
        "reduce",
    ),
    ".analysis.spectra": (
        "HankelSpectra",
        "hankel_spectra",
    ),
    ".errors": (
        "AdapterError",
        "AdapterFileError",
        "ArchitectureError",
        "CalibrationError",
        "ConfigError",
        "ExperimentError",
        "StateError",
    ),
    ".ops.recurrence": ("linear_recurrence",),
    ".state.cache": (
        "get_states",
        "set_states",
    ),
    ".state.sequence_parallel": ("context_parallel",),
}

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
    "get_states",
    "get_systems",
    "hankel_spectra",
    "initialize",
    "linear_recurrence",
    "parameter_groups",
    "reduce",
    "set_states",
    "set_systems",
]

__getattr__, __dir__ = _lazy_names(__name__, _MODULES)
