"""Hankel singular values, certified model reduction and their pictures for any linear model."""

from __future__ import annotations

from ._empirical_results import EmpiricalGramians, EmpiricalReduction
from ._errors import (
    ConvergenceError,
    FileFormatError,
    HankelredError,
    ModelError,
    OrderError,
    ReductionWarning,
    UnstableError,
)
from .convolution import Convolver, convolve, impulse_response, simulate
from .empirical import empirical_gramians
from .estimator import GramianEstimator
from .gramians import gramian, gramian_factor
from .hankel import balanced_realization, hankel_singular_values
from .identification import Comparison, IdentifiedModel, identify
from .markov import MarkovParameters, markov_parameters
from .modal import ModalSystem, modal_form
from .norms import norm
from .order import select_order
from .plotting import plot_hankel_singular_values, plot_reduction
from .realization import realize
from .reduction import Reduction, reduce

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "ConvergenceError",
    "Convolver",
    "EmpiricalGramians",
    "EmpiricalReduction",
    "FileFormatError",
    "GramianEstimator",
    "HankelredError",
    "IdentifiedModel",
    "MarkovParameters",
    "ModalSystem",
    "ModelError",
    "OrderError",
    "Reduction",
    "ReductionWarning",
    "UnstableError",
    "balanced_realization",
    "convolve",
    "empirical_gramians",
    "gramian",
    "gramian_factor",
    "hankel_singular_values",
    "identify",
    "impulse_response",
    "markov_parameters",
    "modal_form",
    "norm",
    "plot_hankel_singular_values",
    "plot_reduction",
    "realize",
    "reduce",
    "select_order",
    "simulate",
]
