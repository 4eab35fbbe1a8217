"""Hankel singular values and certified model reduction, with plots, for any linear model."""

from __future__ import annotations

from .empirical.empirical_gramians import empirical_gramians
from .empirical.estimator import GramianEstimator
from .empirical.results import EmpiricalGramians, EmpiricalReduction
from .errors import (
    ConvergenceError,
    FileFormatError,
    HankelredError,
    ModelError,
    OrderError,
    ReductionWarning,
    UnstableError,
)
from .gramians.gramians import gramian, gramian_factor
from .identification.era import realize
from .identification.frequency_fit.frequency_fit import FrequencyFit, fit_frequency_response
from .identification.identify import Comparison, IdentifiedModel, identify
from .identification.markov import MarkovParameters, markov_parameters
from .identification.system_identifier import SystemIdentifier
from .models.modal import ModalSystem, modal_form
from .models.second_order import SecondOrderModel
from .reduction.balancing import balanced_realization, hankel_singular_values
from .reduction.compare import MethodComparison, compare_methods
from .reduction.norms import norm
from .reduction.order import select_order
from .reduction.parts import minimal, split, truncate_states
from .reduction.plots import plot_hankel_singular_values, plot_reduction
from .reduction.reduce import Reduction, reduce
from .simulation.simulate import Convolver, convolve, impulse_response, simulate

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "ConvergenceError",
    "Convolver",
    "EmpiricalGramians",
    "EmpiricalReduction",
    "FileFormatError",
    "FrequencyFit",
    "GramianEstimator",
    "HankelredError",
    "IdentifiedModel",
    "MarkovParameters",
    "MethodComparison",
    "ModalSystem",
    "ModelError",
    "OrderError",
    "Reduction",
    "ReductionWarning",
    "SecondOrderModel",
    "SystemIdentifier",
    "UnstableError",
    "balanced_realization",
    "compare_methods",
    "convolve",
    "empirical_gramians",
    "fit_frequency_response",
    "gramian",
    "gramian_factor",
    "hankel_singular_values",
    "identify",
    "impulse_response",
    "markov_parameters",
    "minimal",
    "modal_form",
    "norm",
    "plot_hankel_singular_values",
    "plot_reduction",
    "realize",
    "reduce",
    "select_order",
    "simulate",
    "split",
    "truncate_states",
]
