"""Choosing an order by looking: an interactive figure, and a page for the browser."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._util.writing import check_page_suffix, write_atomically
from ..errors import ModelError, OrderError, ReductionWarning, count
from ..models.frequency_response import largest_singular_value
from ..report.curves import OrderCurves, ReducedCurve
from ..report.explorer import Explorer
from ..report.notebook import table_with_spectrum
from ..report.page import page
from .plots import frequency_axis, frequency_grid, full_size, gain_label, reduction_spectrum, response

if TYPE_CHECKING:
    from .reduce import Reduction


def explore(reduction: Reduction) -> Explorer:
    """Open an interactive figure to choose an order: the spectrum beside full model, reduced model and error.

    Click into the spectrum, move the slider, or press the arrow keys; the response and the error bound of the
    order follow at once.

    Parameters
    ----------
    reduction : Reduction
        Of any order and method; a model estimated from data has no full model to compare with.

    Returns
    -------
    Explorer
        With ``order``, the chosen one (then ``reduction.at(explorer.order)``), ``set_order(order)`` and
        ``figure``. Keep a reference to it, as with every matplotlib widget.

    Raises
    ------
    ModelError
        ``reduction`` is not a Reduction, or that of a simulator.

    Notes
    -----
    The figure reacts where matplotlib has an interactive backend: in a script after ``pyplot.show()``, in a
    notebook after ``%matplotlib widget`` (package ipympl). Where it has none, :meth:`Reduction.report` writes
    the same as a page for the browser.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import numpy as np, hankelred
    >>> A = np.diag([-1.0, -2.0, -50.0]); B = np.ones((3, 1)); C = np.ones((1, 3))
    >>> explorer = hankelred.explore(hankelred.reduce((A, B, C, 0), order=2))
    >>> explorer.set_order(1)
    >>> explorer.order
    1
    """
    return Explorer(order_curves(reduction))


def write_report(reduction: Reduction, path: str | Path) -> None:
    """Write the page of :meth:`Reduction.report`."""
    path = Path(path)
    check_page_suffix(path)
    text = page(order_curves(reduction))
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def order_curves(reduction: Reduction) -> OrderCurves:
    """Return what the pictures of all orders show.

    Raises
    ------
    ModelError
        ``reduction`` is not a Reduction, or that of a simulator.
    """
    if not (hasattr(reduction, "source") and hasattr(reduction, "error_bound")):
        raise ModelError(f"explore takes a Reduction, got {type(reduction).__name__}; make one with reduce()")
    full, model = reduction.source.full, reduction.model
    if model is None:
        raise ModelError("the reduction is that of a simulator, which has no frequency response")
    shown = full if full is not None else model
    w = frequency_grid(shown)
    response_of_full = None if full is None else response(full, w)
    step, label = frequency_axis(model)

    def reduced(order: int) -> ReducedCurve:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ReductionWarning)
            try:
                one = reduction.at(order)
            except OrderError as refusal:
                nothing = np.full(w.size, np.nan)
                return ReducedCurve(order, math.inf, nothing, None if full is None else nothing, str(refusal))
            bound = one.error_bound
        note = "; ".join(str(warning.message) for warning in caught)
        gain = response(one.model, w)
        with np.errstate(invalid="ignore"):  # both are infinite on a pole, which is a gap in the curve
            error = None if response_of_full is None else largest_singular_value(response_of_full - gain)
        return ReducedCurve(order, bound, largest_singular_value(gain), error, note)

    size = count(full_size(reduction), "state")
    last = max(reduction.numerical_rank, reduction.order)
    return OrderCurves(
        title=f"{reduction.method} of {size}"
        if full is not None
        else f"{reduction.method}, pilot model of {size}",
        spectrum=reduction_spectrum(reduction),
        orders=range(reduction.unstable_order, last + 1),
        frequencies=w / step,
        frequency_label=label,
        gain_label=gain_label(model),
        full=None if response_of_full is None else largest_singular_value(response_of_full),
        reduced=reduced,
        facts=_facts(reduction),
    )


def _facts(reduction: Reduction) -> tuple[tuple[str, str], ...]:
    """Return the rows of the table about a reduction."""
    known, model = reduction.certificate, reduction.model
    # a model from data has no full model; its singular values are those of the pilot model
    from_data = model is not None and reduction.source.full is None
    facts = [
        ("pilot model" if from_data else "full model", count(full_size(reduction), "state")),
        ("method", reduction.method),
        ("solver", f"{reduction.solver}, residual {reduction.residual:.1e}"),
        ("certificate", f"{known.kind}, singular values accurate to {known.value:.1e}"),
        ("noise floor", f"{reduction.noise_floor:.1e}, {reduction.numerical_rank} values above it"),
    ]
    if model is not None:
        facts.insert(1, ("inputs, outputs", f"{model.n_inputs}, {model.n_outputs}"))
    if reduction.unstable_order:
        facts.append(("unstable or marginal states", f"{reduction.unstable_order}, not reduced"))
    return tuple(facts)


def reduction_in_notebook(reduction: Reduction, quality: tuple[tuple[str, str], ...] = ()) -> str:
    """Return a table about a reduction, and a small picture of its spectrum.

    Parameters
    ----------
    reduction : Reduction
    quality : tuple of (str, str)
        Rows about the quality of a model from data, which has no error bound; default: the error bound.
    """
    bound = reduction.error_bound
    known = ("error bound", f"{bound:.3g}" if math.isfinite(bound) else "none known")
    rows = [("order", str(reduction.order)), *(quality or (known,)), *_facts(reduction)]
    return table_with_spectrum(rows, reduction_spectrum(reduction))
