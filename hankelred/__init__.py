"""Hankel singular values, certified model reduction and their pictures for any linear model."""

from __future__ import annotations

from ._errors import (
    ConvergenceError,
    FileFormatError,
    HankelredError,
    ModelError,
    OrderError,
    ReductionWarning,
    UnstableError,
)
from .empirical import EmpiricalGramians, EmpiricalReduction, empirical_gramians
from .estimator import GramianEstimator

__version__ = "0.1.0"

__all__ = [
    "ConvergenceError",
    "EmpiricalGramians",
    "EmpiricalReduction",
    "FileFormatError",
    "GramianEstimator",
    "HankelredError",
    "ModelError",
    "OrderError",
    "ReductionWarning",
    "UnstableError",
    "empirical_gramians",
]
