"""Warnings of inputs that determine less than the model needs, or that depend on the outputs."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ReductionWarning
from ..models.linear_model import sampling_time
from .diagnostics import feedback_probabilities
from .excitation import Dependence, dependence, excited_directions, excited_frequencies
from .records import RecordedData, label

if TYPE_CHECKING:
    from .identify import IdentifiedModel

#: Feedback is suspected if the residual is less likely than this to be independent of later inputs, and this
#: many times as correlated with them as with earlier ones.
_FEEDBACK_PROBABILITY, _FEEDBACK_RATIO = 1e-6, 1.5
#: So is it if later inputs are less likely than this to explain an output by chance as well as they do.
LATER_PROBABILITY = 1e-4
#: Residuals as small as this are rounding, not noise.
_NOISE_FREE_FIT = 1e-4


def warn_of_inputs(model: IdentifiedModel, data: RecordedData, *, offsets: bool) -> bool:
    """Warn of inputs that excite too little for the order, or that depend on the outputs; say if one does."""
    _warn_of_excitation(model.order, data, offsets)
    return _warn_of_feedback(model, data)


def _warn_of_excitation(order: int, data: RecordedData, offsets: bool) -> None:
    copies = 2 * order + 1
    weak = False
    for j, (excited, needed) in enumerate(excited_directions(data.inputs, copies, offsets=offsets)):
        if excited < needed:
            weak = True
            warnings.warn(
                f"{label(data.input_labels, 'input', j)} excites only {excited} of the {needed} directions "
                f"that order {order} needs (a sum of k sines excites 2 k)"
                f"{_at_frequencies(data, j, offsets)}: the response at other frequencies is not determined; "
                f"it determines order {max((excited - 1) // 2, 0)}",
                ReductionWarning,
                stacklevel=5,
            )
    relation = None if weak else dependence(data.inputs, copies, offsets=offsets)
    if relation is not None:
        *first, last = (label(data.input_labels, "input", j) for j in relation.channels)
        warnings.warn(
            f"{', '.join(first)} and {last} depend on each other{_in_words(relation, data, offsets)}: their "
            "responses are determined in combination only. Leave one of them out, or move them independently",
            ReductionWarning,
            stacklevel=5,
        )


def _at_frequencies(data: RecordedData, channel: int, offsets: bool) -> str:
    """Return in words where an input has power."""
    rate, unit = sampling_time(data.dt), "radians per sample" if data.dt is True else "rad/s"
    bands = excited_frequencies(data.inputs, channel, offsets=offsets)
    words = [
        f"{low / rate:.3g}" if low == high else f"{low / rate:.3g} to {high / rate:.3g}"
        for low, high in bands
    ]
    return f", its power is at {', '.join(words)} {unit}" if 0 < len(words) <= 8 else ""


def _in_words(relation: Dependence, data: RecordedData, offsets: bool) -> str:
    """Return the relation as a formula, if it is short."""
    if not relation.terms:
        return ""
    written = ""
    for factor, j, k in relation.terms:
        size = "" if math.isclose(abs(factor), 1, rel_tol=1e-3) else f"{abs(factor):.3g} "
        sign = (" - " if factor < 0 else " + ") if written else ""
        written += f"{sign}{size}{label(data.input_labels, 'input', j)}(t{-k or ''})"
    return (
        f" ({written} is {'constant' if offsets else 'zero'} to within {relation.rest:.1g} of its first term)"
    )


def _warn_of_feedback(model: IdentifiedModel, data: RecordedData) -> bool:
    test = model.residual_test()
    lags = (test.cross_correlation.shape[2] - 1) // 2
    sizes = np.abs(test.cross_correlation)
    future, past = sizes[..., :lags].max(axis=2), sizes[..., lags:].max(axis=2)
    suspects = (test.feedback < _FEEDBACK_PROBABILITY) & (future > _FEEDBACK_RATIO * past)
    feedback = bool(np.any(suspects)) and float(model.fit.min()) < 1 - _NOISE_FREE_FIT
    if feedback:
        i, j = np.argwhere(suspects)[0]
        warnings.warn(
            f"the residual of {label(data.output_labels, 'output', i)} is correlated with later samples of "
            f"{label(data.input_labels, 'input', j)} "
            f"({future[i, j]:.2f}, with earlier ones {past[i, j]:.2f}): the input seems to depend on the "
            "output, as in a closed loop; the model may then describe the controller as well as the process. "
            "Add a test signal to the reference, or open the loop",
            ReductionWarning,
            stacklevel=5,
        )
    elif model._selected.innovations is None:  # that is estimated as in a closed loop
        _warn_of_later_inputs(data)
    return feedback


def _warn_of_later_inputs(data: RecordedData) -> None:
    """Warn if later inputs help to explain an output."""
    probabilities = feedback_probabilities(data.inputs, data.outputs)
    least = float(probabilities.min())
    if least * probabilities.size > LATER_PROBABILITY:
        return
    i, j = np.argwhere(probabilities == least)[0]
    warnings.warn(
        f"later samples of {label(data.input_labels, 'input', j)} help to explain "
        f"{label(data.output_labels, 'output', i)}, beyond its past and the inputs up to then (by chance "
        f"with probability {least:.1g}): the input seems to depend on the output, as in a closed loop, "
        "perhaps within the same sample; the model may then describe the controller as well as the process. "
        "Add a test signal to the reference, or open the loop",
        ReductionWarning,
        stacklevel=6,
    )
