"""Plots of a Hankel spectrum and of a reduction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._util.arrays import Array
from ..errors import ModelError, OrderError
from ..gramians.stability import STABILITY_TOL
from ..models.frequency_response import FrequencyResponse, largest_singular_value
from ..models.linear_model import LinearModel, Timebase
from ..plotting.draw import ERROR, FULL, REDUCED, Curve, Spectrum, draw_gains, draw_spectrum
from .balancing import SolvedSpectrum, spectrum_of
from .order import checked_order, error_bounds, select_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .reduce import Reduction


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
    unstable = int(np.isinf(values).sum())
    bounds, note = np.zeros(values.size - unstable), ""
    # no bound is known for models estimated from data or empirical Gramians
    if certified:
        order_bounds = error_bounds(values)
        bounds = order_bounds[unstable : values.size]
        if marked_order is not None:
            bound = source.error_bound if marked_order == reduced_order else float(order_bounds[marked_order])
            note = " (exact)" if bound == 0 else f" (bound {bound:.2e})"
    return draw_spectrum(Spectrum(values, bounds, floor, marked_order, note, tol), ax)


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
        if the step is unspecified), both axes logarithmic.

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
    has_step = reduced.is_discrete and reduced.dt is not True
    step = float(reduced.dt) if has_step else 1.0
    w = _frequencies(full if full is not None else reduced)
    response = _frequency_response(reduced, w)
    curves = [_curve(response, f"reduced ({_count_states(reduced.n_states)})", REDUCED, "--", 1.6)]
    bound = error = None
    if full is not None:
        response_of_full = _frequency_response(full, w)
        with np.errstate(invalid="ignore"):  # both are infinite on a pole, which is a gap in the curve
            difference = _curve(response_of_full - response, "error", ERROR, "-", 1.2)
        curves = [
            _curve(response_of_full, f"full ({_count_states(full.n_states)})", FULL, "-", 1.8),
            *curves,
            difference,
        ]
        error = difference.gain
        if math.isfinite(reduction.error_bound) and reduction.error_bound > 0:
            bound = reduction.error_bound
    ax = draw_gains(w / step, curves, ax, bound=bound, error=error)
    seconds = not reduced.is_discrete or has_step
    ax.set_xlabel("angular frequency (rad/s)" if seconds else "angular frequency (rad/sample)")
    ax.set_ylabel("gain" if min(reduced.n_inputs, reduced.n_outputs) == 1 else "largest singular value")
    ax.set_title(f"{reduction.method} to order {reduction.order}")
    return ax


def _curve(response: Array, label: str, color: str, style: str, width: float) -> Curve:
    return Curve(largest_singular_value(response), label, color, style, width)


def _count_states(n: int) -> str:
    return f"{n} state" if n == 1 else f"{n} states"


def _frequency_response(model: LinearModel, w: Array) -> Array:
    return FrequencyResponse(*model.as_tuple(), discrete=model.is_discrete)(w)


def _frequencies(model: LinearModel) -> Array:
    """Return a grid of frequencies over all time scales of the model, denser at its resonances."""
    poles = np.linalg.eigvals(model.A) if model.n_states else np.zeros(0)
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
