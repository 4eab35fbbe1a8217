"""Stateful fine-tuning adapters: state-space residuals beside the blocks of a frozen language model."""

from hankelred import __version__

__all__ = ["__version__"]
