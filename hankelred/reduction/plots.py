"""Plots of a Hankel spectrum and of a reduction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._util.arrays import Array
from ..errors import ModelError, OrderError, count
from ..gramians.stability import STABILITY_TOL
from ..models.frequency_response import FrequencyResponse, largest_singular_value
from ..models.linear_model import LinearModel, Timebase, sampling_time
from ..plotting.draw import (
    DASHES,
    ERROR,
    FULL,
    REDUCED,
    SERIES,
    Curve,
    Spectrum,
    draw_gains,
    draw_over_time,
    draw_spectrum,
    shade,
)
from ..simulation.simulate import impulse_response
from .balancing import SolvedSpectrum, spectrum_of
from .order import checked_order, error_bounds, select_order
from .region import Region
from .two_level import TwoLevel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .reduce import Reduction

#: Points of time of a picture of impulse responses, and most samples of a discrete one.
TIMES, MOST_SAMPLES = 801, 100_000


def plot_hankel_singular_values(
    source: Any,
    *,
    order: int | None = None,
    tol: float | None = None,
    ax: Axes | None = None,
    dt: Timebase = 0,
) -> Axes:
    """Plot the Hankel spectrum, to choose an order.

    Parameters
    ----------
    source : model, Reduction, EmpiricalGramians, or array_like of Hankel singular values
        A model as in :func:`hankel_singular_values`; values in descending order, inf first.
    order : int, optional
        Order to mark. Default: the order of a Reduction, otherwise none.
    tol : float, optional
        Mark the smallest order whose error bound is at most this, and draw this level.
    ax : matplotlib Axes, optional
        Where to draw; default: a new figure.
    dt : 0, True, float or None
        Timebase of a tuple.

    Returns
    -------
    matplotlib Axes
        On a logarithmic axis against the index: the singular values, the error bound of every order, the
        noise floor, unstable values as triangles at the top, the chosen order as a labeled line.

    Raises
    ------
    OrderError
        Both ``order`` and ``tol``, or one out of range.
    ModelError
        ``source`` is none of the above.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import hankelred
    >>> ax = hankelred.plot_hankel_singular_values([1.0, 0.1, 1e-3], tol=0.01)
    >>> ax.get_yscale()
    'log'
    """
    if order is not None and tol is not None:
        raise OrderError(
            f"give the order to mark or a tolerance to choose it, not both (order={order}, tol={tol})"
        )
    values, floor, reduced_order, certified = _spectrum_of(source, dt)
    marked_order = reduced_order
    if tol is not None:
        marked_order = select_order(values, tol=tol, noise_floor=floor)
    if order is not None:
        marked_order = checked_order(order)
        if marked_order > values.size:
            raise OrderError(
                f"order {marked_order} is more than the number of singular values, {values.size}"
            )
    note = ""
    if certified and marked_order is not None:
        bound = (
            source.error_bound if marked_order == reduced_order else float(error_bounds(values)[marked_order])
        )
        note = " (exact)" if bound == 0 else f" (bound {bound:.2e})"
    bounds = _bounds(values, certified=certified)
    return draw_spectrum(Spectrum(values, bounds, floor, marked_order, note, tol), ax)


def reduction_spectrum(reduction: Reduction) -> Spectrum:
    """Return what the picture of the spectrum of a reduction shows."""
    values, floor, order, certified = _spectrum_of(reduction, 0)
    return Spectrum(values, _bounds(values, certified=certified), floor, order)


def _bounds(values: Array, *, certified: bool) -> Array:
    """Return the error bound of each order; zeros for empirical Gramians and models estimated from data."""
    unstable = int(np.isinf(values).sum())
    return error_bounds(values)[unstable : values.size] if certified else np.zeros(values.size - unstable)


def _spectrum_of(source: Any, dt: Timebase) -> tuple[Array, float, int | None, bool]:
    """Return the values, their noise floor, the order of a reduction, and whether error bounds are known."""
    if hasattr(source, "hankel_singular_values") and hasattr(source, "noise_floor"):
        # a Reduction, or EmpiricalGramians, which have no order and no bound
        certified = hasattr(source, "source") and source.source.certified
        return source.hankel_singular_values, source.noise_floor, getattr(source, "order", None), certified
    if isinstance(source, SolvedSpectrum):
        return source.values, source.noise_floor, None, True
    array = isinstance(source, np.ndarray) or (
        isinstance(source, list) and source and np.ndim(source[0]) == 0
    )
    if array:
        select_order(source)  # checks the values
        return np.asarray(source, dtype=float), 0.0, None, True
    spectrum = spectrum_of(source, STABILITY_TOL, dt=dt)
    return spectrum.values, spectrum.noise_floor, None, True


def plot_reduction(reduction: Reduction, *, ax: Axes | None = None) -> Axes:
    """Plot the gain of the full model, the reduced model and their difference, with the error bound.

    Parameters
    ----------
    reduction : Reduction
    ax : matplotlib Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib Axes
        Largest singular value of the frequency response against angular frequency (rad/s; radians per sample
        if the step is unspecified), both axes logarithmic. The band of a "frequency_limited" reduction is
        shaded, and the weights of a "frequency_weighted" one are drawn. Of a "time_limited" one the impulse
        responses are drawn against time, and the time until the horizon is shaded.

    Raises
    ------
    ModelError
        ``reduction`` is not a Reduction, or that of a simulator.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import numpy as np, hankelred
    >>> A = np.diag([-1.0, -2.0, -50.0]); B = np.ones((3, 1)); C = np.ones((1, 3))
    >>> ax = hankelred.plot_reduction(hankelred.reduce((A, B, C, 0), order=1))
    >>> [line.get_label() for line in ax.get_lines()]
    ['full (3 states)', 'reduced (1 state)', 'error', 'bound 5.60e-02']
    """
    if not (hasattr(reduction, "source") and hasattr(reduction, "error_bound")):
        raise ModelError(
            f"plot_reduction takes a Reduction, got {type(reduction).__name__}; make one with reduce()"
        )
    full, reduced = reduction.source.full, reduction.model
    if reduced is None:
        raise ModelError("the reduction is that of a simulator, which has no frequency response")
    region: Region = getattr(reduction.source, "region", Region())
    if region.horizon is not None and full is not None:
        return _plot_impulse_responses(reduction, full, reduced, region.horizon, ax)
    step, label = frequency_axis(reduced)
    w = frequency_grid(full if full is not None else reduced)
    response_of_reduced = response(reduced, w)
    curves = [
        _curve(response_of_reduced, f"reduced ({count(reduced.n_states, 'state')})", REDUCED, "--", 1.6)
    ]
    bound = error = None
    if full is not None:
        response_of_full = response(full, w)
        with np.errstate(invalid="ignore"):  # both are infinite on a pole, which is a gap in the curve
            difference = _curve(response_of_full - response_of_reduced, "error", ERROR, "-", 1.2)
        curves = [
            _curve(response_of_full, f"full ({count(full_size(reduction), 'state')})", FULL, "-", 1.8),
            *curves,
            difference,
        ]
        error = difference.gain
        if math.isfinite(reduction.error_bound) and reduction.error_bound > 0:
            bound = reduction.error_bound
    for weight, name, color in (
        (region.input_weight, "input weight", SERIES[2]),
        (region.output_weight, "output weight", SERIES[3]),
    ):
        if weight is not None:
            response_of_weight = FrequencyResponse(*weight, discrete=reduced.is_discrete)(w)
            curves.append(_curve(response_of_weight, name, color, "-.", 1.0))
    ax = draw_gains(w / step, curves, ax, bound=bound, error=error)
    ax.set_xlabel(label)
    ax.set_ylabel(gain_label(reduced))
    ax.set_title(f"{reduction.method} to order {reduction.order}")
    if region.bands is not None:
        shade(ax, [(low / step, high / step) for low, high in region.bands], "band")
    return ax


def _plot_impulse_responses(
    reduction: Reduction, full: LinearModel, reduced: LinearModel, horizon: float, ax: Axes | None
) -> Axes:
    """Draw the size of the impulse responses of full, reduced and error over twice the horizon."""
    if full.is_discrete:
        n, step = 2 * int(horizon) + 1, sampling_time(full.dt)
        n = min(n, MOST_SAMPLES)
        responses = [impulse_response(model.as_tuple(), n, dt=True) for model in (full, reduced)]
    else:
        n, step = TIMES, 2 * horizon / (TIMES - 1)
        responses = [impulse_response(model.as_tuple(), n, step=step) for model in (full, reduced)]
    first, second = responses
    curves = [
        Curve(np.linalg.norm(first, axis=(1, 2)), f"full ({count(full.n_states, 'state')})", FULL, "-", 1.8),
        Curve(
            np.linalg.norm(second, axis=(1, 2)),
            f"reduced ({count(reduced.n_states, 'state')})",
            REDUCED,
            "--",
            1.6,
        ),
        Curve(np.linalg.norm(first - second, axis=(1, 2)), "error", ERROR, "-", 1.2),
    ]
    ax = draw_over_time(np.arange(n) * step, curves, ax)
    seconds = not full.is_discrete or full.dt is not True
    ax.set_xlabel("time (s)" if seconds else "sample")
    ax.set_ylabel("impulse response")
    ax.set_title(f"{reduction.method} to order {reduction.order}")
    shade(ax, [(0.0, horizon * (step if full.is_discrete else 1.0))], "horizon")
    return ax


def full_size(reduction: Reduction) -> int:
    """Return the number of states of the full model, of which a singular E makes some algebraic."""
    if isinstance(reduction.source, TwoLevel):
        return reduction.source.intermediate.large.n_states
    infinite = getattr(reduction.model, "infinite", None)
    return reduction.hankel_singular_values.size if infinite is None else infinite.n_states


def plot_methods(reductions: Sequence[Reduction], *, ax: Axes | None = None) -> Axes:
    """Draw the gain of a full model and of the errors of several reductions of it over frequency."""
    if not reductions:
        raise ModelError("no method gave a model, so there is no error to draw")
    full = reductions[0].source.full
    if full is None:
        raise ModelError("there is no full model to compare with")
    step, label = frequency_axis(full)
    w = frequency_grid(full)
    response_of_full = response(full, w)
    curves = [_curve(response_of_full, f"full ({count(full.n_states, 'state')})", FULL, "-", 2.0)]
    spans: list[tuple[float, float]] = []
    largest = None
    for k, reduction in enumerate(reductions):
        with np.errstate(invalid="ignore"):
            apart = response_of_full - response(reduction.model, w)
        color, style = SERIES[k % len(SERIES)], DASHES[k // len(SERIES) % len(DASHES)]
        curves.append(_curve(apart, f"error of {reduction.method}", color, style, 1.2))
        largest = curves[-1].gain if largest is None else np.fmin(largest, curves[-1].gain)
        region: Region = getattr(reduction.source, "region", Region())
        spans = spans or [(low / step, high / step) for low, high in region.bands or []]
    ax = draw_gains(w / step, curves, ax, error=largest)
    ax.set_xlabel(label)
    ax.set_ylabel(gain_label(full))
    ax.set_title(f"errors at order {reductions[0].order}")
    if spans:
        shade(ax, spans, "band")
    return ax


def _curve(values: Array, label: str, color: str, style: str, width: float) -> Curve:
    return Curve(largest_singular_value(values), label, color, style, width)


def frequency_axis(model: LinearModel) -> tuple[float, str]:
    """Return the seconds per unit of time of a model, and the label of its frequency axis."""
    if not model.is_discrete:
        return 1.0, "angular frequency (rad/s)"
    unit = "rad/sample" if model.dt is True else "rad/s"
    return sampling_time(model.dt), f"angular frequency ({unit})"


def gain_label(model: LinearModel) -> str:
    """Return the label of an axis of gains."""
    return "gain" if min(model.n_inputs, model.n_outputs) == 1 else "largest singular value"


def response(model: LinearModel, w: Array) -> Array:
    """Return the frequency response at angular frequencies per unit of time of the model."""
    values = FrequencyResponse(*model.as_tuple(), discrete=model.is_discrete)(w)
    points = np.exp(1j * w) if model.is_discrete else 1j * w
    for power, D in enumerate(model.improper, 1):
        values = values + points[:, None, None] ** power * D
    return values


def frequency_grid(model: LinearModel) -> Array:
    """Return a grid of frequencies over all time scales of the model, denser at its resonances."""
    poles = np.linalg.eigvals(model.A)
    if model.is_discrete:
        with np.errstate(divide="ignore"):
            rates = np.abs(np.log(poles[poles != 0].astype(complex)))
        peaks, high = np.abs(np.angle(poles)), math.pi
        low = min(float(rates[rates > 1e-9].min(initial=0.1)), 0.1) / 10
    else:
        rates = np.abs(poles)
        rates = rates[rates > 1e-12 * rates.max(initial=1.0)]
        peaks = np.abs(poles.imag)
        low, high = (float(rates.min()) / 30, float(rates.max()) * 30) if rates.size else (1e-2, 1e2)
    grid = np.geomspace(low, high, 400)
    peaks = np.unique(peaks[(peaks > low) & (peaks < high)])
    if peaks.size > 100:
        peaks = peaks[np.linspace(0, peaks.size - 1, 100).astype(int)]
    around = (peaks[:, None] * np.array([0.98, 0.995, 1.0, 1.005, 1.02])).ravel()
    return np.unique(np.concatenate([grid, around[around <= high]]))
