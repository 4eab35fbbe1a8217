"""Warnings of responses that the inputs do not determine, and of inputs that depend on the outputs."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ..._util.arrays import EPS, Array
from ...errors import ReductionWarning, count
from ...models.linear_model import sampling_time
from ..records import RecordedData, label
from .feedback import feedback_probabilities
from .input_dependence import dependence

if TYPE_CHECKING:
    from ..identify import IdentifiedModel

#: Fit to the validation samples below which a model explains nothing.
POOR_FIT = 0.1
#: Feedback is suspected if the residual is less likely than this to be independent of later inputs, and this
#: many times as correlated with them as with earlier ones.
_FEEDBACK_PROBABILITY, _FEEDBACK_RATIO = 1e-6, 1.5
#: So is it if later inputs are less likely than this to explain an output by chance as well as they do.
LATER_PROBABILITY = 1e-4
#: A response is not determined where two standard errors are larger than it, and than this share of the ratio
#: of the standard deviations of output and input, if that is so for this share of frequencies: zero, and
#: from one period in the record to Nyquist.
_NOTICED, _UNKNOWN_SHARE, _FREQUENCIES = 0.1, 0.05, 61
#: With more initial states, of many records, the standard errors would take longer than the model.
_MOST_INITIAL_STATES = 300
#: Noise that is not smaller than this share of the output, since records are rounded.
_LEAST_NOISE = 1e-6
#: Most terms of a relation that are written out.
_MOST_TERMS = 6
#: Residuals as small as this are rounding, not noise.
_NOISE_FREE_FIT = 1e-4


def warn_of_undetermined_responses(model: IdentifiedModel, data: RecordedData, *, offsets: bool) -> None:
    """Warn of responses that are smaller than two standard errors, and name the frequencies.

    It is a test to first order, with the errors of white residuals: those of resonant residuals, which an
    order too small leaves, would refute models that predict well.
    """
    if len(data.inputs) * model.order > _MOST_INITIAL_STATES:
        return
    longest = max(u.shape[1] for u in data.inputs)
    angles = np.append(0.0, np.geomspace(2 * np.pi / longest, np.pi, _FREQUENCIES - 1))
    omega = angles / sampling_time(data.dt)
    response, errors = model._response_errors(omega, white=True)
    # without noise the record is still rounded
    errors = errors * np.maximum(1.0, _LEAST_NOISE / np.maximum(1 - model.fit, EPS))[:, None, None]
    scaled = model._selected.data
    noticed = _NOTICED * scaled.output_scale[:, None, None] / scaled.input_scale[:, None]
    unknown = 2 * errors > np.maximum(np.abs(response), noticed)
    shares = unknown.mean(axis=2) * (model.held_back_fit >= POOR_FIT)[:, None]  # the others are reported
    if shares.max() < _UNKNOWN_SHARE:
        return
    i, j = (int(k) for k in np.unravel_index(int(np.argmax(shares)), shares.shape))
    others = int(np.count_nonzero(shares >= _UNKNOWN_SHARE)) - 1
    names = [label(data.input_labels, "input", k) for k in range(data.n_inputs)]
    unit = "radians per sample" if data.dt is True else "rad/s"
    bands = (
        f"all {omega.size} frequencies tested"
        if unknown[i, j].all()
        else f"{_bands(omega, unknown[i, j])} {unit}"
    )
    verb = "are" if others > 1 else "is"
    warnings.warn(
        f"the record does not determine the response from {names[j]} to "
        f"{label(data.output_labels, 'output', i)}: at {bands} two standard errors are larger than it"
        + _relation(model.order, data, j, names, offsets)
        + (f" ({count(others, 'other response')} {verb} not determined either)" if others else "")
        + ". Do not use the model there, ask for a smaller order, or record more samples, with inputs that "
        "excite these frequencies" + (" independently of each other" if len(names) > 1 else ""),
        ReductionWarning,
        stacklevel=4,
    )


def _bands(omega: Array, unknown: Array) -> str:
    """Return in words at which frequencies something is unknown."""
    at = np.flatnonzero(unknown)
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    return ", ".join(
        f"{omega[run[0]]:.3g}" if run.size == 1 else f"{omega[run[0]]:.3g} to {omega[run[-1]]:.3g}"
        for run in runs
    )


def _relation(order: int, data: RecordedData, j: int, names: list[str], offsets: bool) -> str:
    """Return in words how input j depends on others, first on one of them."""
    pairs = ([j, k] for k in range(data.n_inputs) if k != j)
    for channels in (*pairs, list(range(data.n_inputs))):
        found = dependence([u[channels] for u in data.inputs], order + 1, offsets=offsets)
        if found is not None and j in (related := [channels[k] for k in found.channels]):
            break
    else:
        return ""
    *first, last = (names[k] for k in sorted(related))
    text = f", since {', '.join(first)} and {last} depend on each other"
    if not 0 < len(found.terms) <= _MOST_TERMS:
        return text
    written = ""
    for factor, k, delay in found.terms:
        size = "" if math.isclose(abs(factor), 1, rel_tol=1e-3) else f"{abs(factor):.3g} "
        sign = (" - " if factor < 0 else " + ") if written else ""
        written += f"{sign}{size}{names[channels[k]]}[t{-delay or ''}]"
    return text + f" ({written} is {'constant' if offsets else 'zero'}, with t in samples)"


def warn_of_feedback(model: IdentifiedModel, data: RecordedData) -> bool:
    """Warn of inputs that depend on the outputs; return whether there is feedback for certain."""
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
            stacklevel=4,
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
        stacklevel=5,
    )
