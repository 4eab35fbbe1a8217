"""The errors of hankelred_llm."""

from __future__ import annotations

from hankelred import HankelredError


class ConfigError(HankelredError):
    """A field of an adapter's configuration has an invalid value."""


class ArchitectureError(HankelredError):
    """Adapters do not support the architecture of the model."""


class AdapterError(HankelredError):
    """An adapter cannot do what was requested, or there is no such adapter."""


class AdapterFileError(HankelredError):
    """A saved adapter cannot be read, or does not fit the model."""


class StateError(HankelredError):
    """The recurrent state, or the tokens that it belongs to, cannot be determined."""


class ExperimentError(HankelredError):
    """A training, an evaluation or a comparison cannot be run as requested."""


class CalibrationError(HankelredError):
    """Statistics cannot be collected from these batches, or belong to another model, adapter or data."""
