"""Stateful fine-tuning adapters: diagonal state-space residuals beside the blocks of a language model."""

from hankelred import __version__
from hankelred_llm.recurrence import linear_recurrence

__all__ = ["__version__", "linear_recurrence"]
