"""What can go wrong with an adapter, as types."""

from __future__ import annotations

from hankelred import HankelredError


class ConfigError(HankelredError):
    """A field of an adapter's configuration has a value that means nothing."""


class ArchitectureError(HankelredError):
    """The model is none that an adapter can stand beside."""


class AdapterError(HankelredError):
    """What was asked of an adapter cannot be done, or there is no such adapter."""


class AdapterFileError(HankelredError):
    """A saved adapter cannot be read, or does not fit the model."""


class StateError(HankelredError):
    """The recurrent state, or which tokens it should follow, cannot be known."""


class ExperimentError(HankelredError):
    """A training, an evaluation or a comparison cannot be run as asked."""


class CalibrationError(HankelredError):
    """Statistics cannot be collected from these batches, or belong to another model, adapter or data."""
