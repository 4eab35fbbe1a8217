"""Pictures. The only room that imports matplotlib, and only inside its functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrays import Array
from ._empirical_results import EmpiricalGramians
from ._errors import ModelError, OrderError
from ._response import FrequencyResponse, largest_singular_value
from ._split import STABILITY_TOL
from .hankel import singular_values
from .lyapunov import factorize
from .models import LinearModel, Timebase, as_model
from .order import error_bounds, select_order
from .reduction import Reduction, checked_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# one colour a role, readable without colour vision (Okabe and Ito)
FULL, REDUCED, ERROR, BOUND, NOISE = "#0072B2", "#D55E00", "#009E73", "#555555", "#BBBBBB"


def plot_hankel_singular_values(
    source: Any,
    *,
    order: int | None = None,
    tol: float | None = None,
    ax: Axes | None = None,
    dt: Timebase = 0,
) -> Axes:
    """Draw the Hankel spectrum to choose an order from.

    Parameters
    ----------
    source : model, Reduction, EmpiricalGramians, or array_like of Hankel singular values
        A model as in :func:`hankel_singular_values`; values in falling order, inf first.
    order : int, optional
        Order to mark. Default: the order of a Reduction; else none.
    tol : float, optional
        Mark the smallest order whose error bound is at most this, and draw the level.
    ax : matplotlib Axes, optional
        Where to draw; default: a new figure.
    dt : 0, True, float or None
        Timebase of a tuple.

    Returns
    -------
    matplotlib Axes
        Logarithmic, over the index: the singular values, the error bound of every order, the noise
        floor, unstable values as triangles at the top, the chosen order as a labelled line.

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
    from matplotlib.ticker import MaxNLocator

    if order is not None and tol is not None:
        raise OrderError(
            f"give the order to mark or a tolerance to choose it, not both (order={order}, tol={tol})"
        )
    values, floor, marked = _spectrum_of(source, dt)
    empirical = isinstance(source, EmpiricalGramians)
    certified = source.source.certified if isinstance(source, Reduction) else not empirical
    if tol is not None:
        marked = select_order(values, tol=tol, noise_floor=floor)
    if order is not None:
        marked = checked_order(order)
        if marked > values.size:
            raise OrderError(f"order {marked} is above the {values.size} singular values there are")
    ax = _axes(ax)
    unstable = int(np.isinf(values).sum())
    finite = values[unstable:]
    index = np.arange(1, values.size + 1)
    positive = finite > 0
    # nothing bounds the error of what was estimated from data or empirical Gramians
    bounds = error_bounds(values)[unstable : values.size] if certified else np.zeros(finite.size)
    shown = np.concatenate([finite[positive], bounds[bounds > 0], [floor] if floor else []])
    top = float(shown.max(initial=1e-300)) * 4 if shown.size else 1.0
    bottom = (
        max(float(finite[positive].min(initial=np.inf)), floor / 1e3, top * 1e-20) if shown.size else 1e-1
    )
    bottom = min(bottom, top / 1e2) / 3

    ax.set_yscale("log")
    ax.set_ylim(bottom, top)
    # values below the picture need no room on the right
    visible = max(int(np.count_nonzero(values > bottom)), marked or 0, 1)
    ax.set_xlim(-0.2, min(values.size, math.ceil(1.05 * visible)) + 0.8)
    many = values.size > 120
    ax.plot(
        index[unstable:][positive],
        finite[positive],
        marker="o",
        markersize=2.5 if many else 5,
        linestyle="none",
        color=FULL,
        label="Hankel singular value $\\sigma_k$",
        zorder=3,
    )
    if unstable:
        ax.plot(
            index[:unstable],
            np.full(unstable, top / 1.6),
            marker="^",
            markersize=8,
            linestyle="none",
            color=REDUCED,
            label=f"unstable or marginal ({unstable}), kept exactly",
            zorder=3,
            clip_on=False,
        )
    seen = bounds > 0
    if np.any(seen):
        ax.step(
            np.arange(unstable, values.size)[seen],
            bounds[seen],
            where="mid",
            color=BOUND,
            linewidth=1,
            label="error bound of order $k$",
        )
    if floor > 0:
        below = " (below the picture)" if floor <= bottom else ""
        ax.axhspan(
            bottom,
            max(floor, bottom),
            color=NOISE,
            alpha=0.35,
            linewidth=0,
            label=f"noise floor {floor:.1e}{below}",
        )
    if tol is not None:
        ax.axhline(tol, color=ERROR, linewidth=1, linestyle="--", label=f"tolerance {tol:g}")
    if marked is not None:
        same = isinstance(source, Reduction) and source.order == marked
        bound = source.error_bound if same else float(error_bounds(values)[marked])
        says = "" if not certified else " (exact)" if bound == 0 else f" (bound {bound:.2e})"
        ax.axvline(marked + 0.5, color=REDUCED, linewidth=1.2, label=f"chosen order {marked}{says}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("order $k$")
    ax.set_ylabel("gain (output per input)")
    ax.set_title("Hankel spectrum")
    ax.legend(loc="best", fontsize="small")
    return ax


def _spectrum_of(source: Any, dt: Timebase) -> tuple[Array, float, int | None]:
    if isinstance(source, Reduction):
        return source.hankel_singular_values, source.noise_floor, source.order
    if isinstance(source, EmpiricalGramians):
        return source.hankel_singular_values, source.noise_floor, None
    array = isinstance(source, np.ndarray) or (
        isinstance(source, list) and source and np.ndim(source[0]) == 0
    )
    if array:
        select_order(source)  # checks it
        return np.asarray(source, dtype=float), 0.0, None
    values, floor = singular_values(factorize(as_model(source, dt), STABILITY_TOL))
    return values, floor, None


def plot_reduction(reduction: Reduction, *, ax: Axes | None = None) -> Axes:
    """Draw the gain of the full model, the reduced model and their difference, with the bound.

    Parameters
    ----------
    reduction : Reduction
    ax : matplotlib Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib Axes
        Largest singular value of the frequency response over angular frequency (rad/s; radians per
        sample where the step is unspecified), both axes logarithmic.

    Raises
    ------
    ModelError
        ``reduction`` is none.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import numpy as np, hankelred
    >>> A = np.diag([-1.0, -2.0, -50.0]); B = np.ones((3, 1)); C = np.ones((1, 3))
    >>> ax = hankelred.plot_reduction(hankelred.reduce((A, B, C, 0), order=1))
    >>> [line.get_label() for line in ax.get_lines()]
    ['full (3 states)', 'reduced (1 state)', 'error', 'bound 5.60e-02']
    """
    if not isinstance(reduction, Reduction):
        raise ModelError(
            f"plot_reduction takes a Reduction, got {type(reduction).__name__}; make one with reduce()"
        )
    ax = _axes(ax)
    full, reduced = reduction.source.full, reduction.model
    if reduced is None:
        raise ModelError("a simulator was reduced, so there is no frequency response to draw")
    step = float(reduced.dt) if reduced.is_discrete and reduced.dt is not True else 1.0
    w = _frequencies(full if full is not None else reduced)
    second = _response(reduced, w)
    curves = [(second, f"reduced ({_states(reduced.n_states)})", REDUCED, "--", 1.6)]
    if full is not None:
        first = _response(full, w)
        curves.insert(0, (first, f"full ({_states(full.n_states)})", FULL, "-", 1.8))
        with np.errstate(invalid="ignore"):  # both infinite exactly on a pole: a gap in the curve
            curves.append((first - second, "error", ERROR, "-", 1.2))
    highest = peak_error = 0.0
    gains = []
    for response, label, colour, style, width in curves:
        gain = largest_singular_value(response)
        peak = float(gain[np.isfinite(gain)].max(initial=0.0))
        highest, peak_error = max(highest, peak), peak if label == "error" else 0.0
        gain[(gain == 0) | ~np.isfinite(gain)] = np.nan  # a logarithmic axis has no place for them
        gains.append(gain)
        ax.plot(w / step, gain, color=colour, linestyle=style, linewidth=width, label=label)
    bound = reduction.error_bound
    if full is not None and math.isfinite(bound) and bound > 0:
        ax.axhline(bound, color=BOUND, linewidth=1, linestyle=":", label=f"bound {bound:.2e}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    if highest > 0:
        # down to where there is something to see, not to where a gain dies away
        interesting = min(highest * 1e-5, peak_error * 1e-3) if peak_error > 0 else highest * 1e-5
        ax.set_ylim(max(ax.get_ylim()[0], interesting, highest * 1e-16), None)
        drawn = np.flatnonzero((np.stack(gains) > ax.get_ylim()[0]).any(axis=0))
        ax.set_xlim(w[drawn[0]] / step / 1.3, w[drawn[-1]] / step * 1.3)
    else:
        ax.set_ylim(0.1, 1.0)  # identically zero: a logarithmic axis finds no range by itself
    seconds = not reduced.is_discrete or reduced.dt is not True
    ax.set_xlabel("angular frequency (rad/s)" if seconds else "angular frequency (rad/sample)")
    ax.set_ylabel("gain" if min(reduced.n_inputs, reduced.n_outputs) == 1 else "largest singular value")
    ax.set_title(f"{reduction.method} to order {reduction.order}")
    ax.legend(loc="best", fontsize="small")
    return ax


def _states(n: int) -> str:
    return f"{n} state" if n == 1 else f"{n} states"


def _response(model: LinearModel, w: Array) -> Array:
    return FrequencyResponse(*model.as_tuple(), discrete=model.is_discrete)(w)


def _frequencies(model: LinearModel) -> Array:
    """Return a grid over all time scales of the model, denser at its resonances."""
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


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        if not hasattr(ax, "axhline"):
            raise ModelError(
                f"ax must be matplotlib Axes, got a {type(ax).__name__}; a figure's are figure.add_subplot()"
            )
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(7, 4.5), layout="constrained")[1]
