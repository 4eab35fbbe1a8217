"""Hankel singular values and certified model reduction, with plots, for any linear model."""

from __future__ import annotations

import typing as _typing

from ._util.lazy_names import lazy_names as _lazy_names
from .errors import (
    ConvergenceError,
    FileFormatError,
    HankelredError,
    ModelError,
    OrderError,
    ReductionWarning,
    UnstableError,
)

if _typing.TYPE_CHECKING:
    from .empirical.empirical_gramians import empirical_gramians
    from .empirical.estimator import GramianEstimator
    from .empirical.results import EmpiricalGramians, EmpiricalReduction
    from .empirical.simulators import simulator_from_rhs
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
    from .reduction.interactive import explore
    from .reduction.norms import norm
    from .reduction.order import select_order
    from .reduction.parts import minimal, split, truncate_states
    from .reduction.plots import plot_hankel_singular_values, plot_reduction
    from .reduction.reduce import Reduction, reduce
    from .simulation.simulate import Convolver, convolve, impulse_response, simulate

#: Where the public names are. A module is imported when one of its names is first used.
_MODULES = {
    ".empirical.empirical_gramians": ("empirical_gramians",),
    ".empirical.estimator": ("GramianEstimator",),
    ".empirical.results": ("EmpiricalGramians", "EmpiricalReduction"),
    ".empirical.simulators": ("simulator_from_rhs",),
    ".gramians.gramians": ("gramian", "gramian_factor"),
    ".identification.era": ("realize",),
    ".identification.frequency_fit.frequency_fit": ("FrequencyFit", "fit_frequency_response"),
    ".identification.identify": ("Comparison", "IdentifiedModel", "identify"),
    ".identification.markov": ("MarkovParameters", "markov_parameters"),
    ".identification.system_identifier": ("SystemIdentifier",),
    ".models.modal": ("ModalSystem", "modal_form"),
    ".models.second_order": ("SecondOrderModel",),
    ".reduction.balancing": ("balanced_realization", "hankel_singular_values"),
    ".reduction.compare": ("MethodComparison", "compare_methods"),
    ".reduction.interactive": ("explore",),
    ".reduction.norms": ("norm",),
    ".reduction.order": ("select_order",),
    ".reduction.parts": ("minimal", "split", "truncate_states"),
    ".reduction.plots": ("plot_hankel_singular_values", "plot_reduction"),
    ".reduction.reduce": ("Reduction", "reduce"),
    ".simulation.simulate": ("Convolver", "convolve", "impulse_response", "simulate"),
}

__version__ = "0.2.0"

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
    "explore",
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
    "simulator_from_rhs",
    "split",
    "truncate_states",
]

__getattr__, __dir__ = _lazy_names(
    __name__,
    _MODULES,
    folders=(
        "empirical",
        "files",
        "gramians",
        "identification",
        "models",
        "plotting",
        "reduction",
        "report",
        "simulation",
    ),
)
