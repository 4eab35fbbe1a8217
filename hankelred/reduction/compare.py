"""Comparison of all methods on one model: error, bound and time."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._util.checks import real_number
from .._util.text_table import aligned
from ..errors import HankelredError, ModelError, ReductionWarning, count
from ..gramians.stability import STABILITY_TOL, checked_tol
from ..models.linear_model import Timebase, as_model
from ..report.notebook import headed_table
from .norms import norm
from .order import checked_order
from .plots import plot_methods
from .reduce import Reduction, error_in, reduce
from .region import Region, checked_bands, checked_horizon, checked_weights
from .variants.catalog import REDUCTION_METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Default regularization of "stochastic" for models that require one, as a share of the largest gain.
REGULARIZATION = 0.1


@dataclass(frozen=True)
class MethodResult:
    """The result of one method.

    Attributes
    ----------
    method : str
        Its name, the argument ``method`` of ``reduce``.
    order : int or None
        Number of states of the reduced model; None if there is none.
    error : float
        H-infinity norm of full minus reduced.
    band_error, horizon_error, weighted_error : float
        The error in the band, up to the horizon, and with the weights; NaN if these were not passed.
    bound : float
        ``error_bound``; inf if no bound is known.
    seconds : float
        Computing time of the reduction.
    note : str
        The warning of the method, or the reason why there is no model.
    reduction : Reduction or None
    """

    method: str
    order: int | None = None
    error: float = math.nan
    band_error: float = math.nan
    horizon_error: float = math.nan
    weighted_error: float = math.nan
    bound: float = math.nan
    seconds: float = math.nan
    note: str = ""
    reduction: Reduction | None = field(default=None, repr=False)


@dataclass(frozen=True, repr=False)
class MethodComparison:
    """The results of all methods on one model; ``print`` shows them as a table.

    Attributes
    ----------
    rows : list of MethodResult
        Sorted by the error in the band, up to the horizon or with the weights if one of these was passed,
        otherwise by ``error``; methods without a model are last.
    """

    rows: list[MethodResult]

    def __getitem__(self, method: str) -> MethodResult:
        """Return the result of a method."""
        for row in self.rows:
            if row.method == method:
                return row
        raise ModelError(
            f"method {method!r} was not compared; there are {', '.join(r.method for r in self.rows)}"
        )

    @property
    def columns(self) -> list[str]:
        """Names of the errors in the table."""
        names = ["error", "band_error", "horizon_error", "weighted_error"]
        return [n for n in names if n == "error" or any(not math.isnan(getattr(r, n)) for r in self.rows)]

    def cells(self) -> list[list[str]]:
        """Return the cells of the table as text, with the heading as the first row."""
        heading = [
            "method",
            "order",
            *(name.replace("_", " ") for name in self.columns),
            "bound",
            "seconds",
            "note",
        ]
        table = [heading]
        for row in self.rows:
            if row.order is None:
                table.append([row.method, "-", *("-" for _ in self.columns), "-", "-", row.note])
                continue
            numbers = [f"{getattr(row, name):.3e}" for name in self.columns]
            bound = f"{row.bound:.3e}" if math.isfinite(row.bound) else "none"
            table.append([row.method, str(row.order), *numbers, bound, f"{row.seconds:.2f}", row.note])
        return table

    def __repr__(self) -> str:
        best = self.rows[0]
        number = count(len(self.rows), "method")
        return f"<MethodComparison of {number}: {best.method} first, error {best.error:.3g}>"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return headed_table(self.cells())

    def __str__(self) -> str:
        lines = aligned([line[:-1] for line in self.cells()])
        notes = [f"{row.method}: {row.note}" for row in self.rows if row.note]
        return "\n".join([*lines, *notes])

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the gain of the full model and of every method's error over frequency.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The axes to draw in; default: a new figure.

        Raises
        ------
        ModelError
            No method gave a model.
        """
        reductions = [row.reduction for row in self.rows if row.reduction is not None]
        return plot_methods(reductions, ax=ax)


def compare_methods(
    sys: Any,
    order: int,
    *,
    band: Any = None,
    horizon: float | None = None,
    input_weight: Any = None,
    output_weight: Any = None,
    regularization: float | None = None,
    dt: Timebase = 0,
    stability_tol: float = STABILITY_TOL,
) -> MethodComparison:
    """Reduce a model by every method, to compare the results.

    Parameters
    ----------
    sys : model
        As in :func:`reduce`.
    order : int
        Number of states.
    band, horizon, input_weight, output_weight
        As in :func:`reduce`. Each adds a method, and a column with the corresponding error of every method.
    regularization : float, optional
        For "stochastic". Default: zero, or a tenth of the largest gain if the model requires regularization.
    dt : 0, True, float or None
        Timebase of a tuple.
    stability_tol : float
        As in :func:`reduce`.

    Returns
    -------
    MethodComparison
        Its rows are sorted by error; ``print`` shows a table, and ``.plot()`` draws the errors.

    Raises
    ------
    OrderError, ModelError
        The order or the model cannot be used by any method. An error of a single method is noted in its row.

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> A = np.diag([-1.0, -2.0, -50.0]); B = np.ones((3, 1)); C = np.array([[1.0, -2.0, 5.0]])
    >>> methods = hankelred.compare_methods((A, B, C, 1.0), 1, band=(10, 100))
    >>> methods.rows[0].method
    'frequency_limited'
    >>> bool(methods["hankel_norm"].error <= methods["hankel_norm"].bound)
    True
    """
    checked_order(order)
    model = as_model(sys, dt)
    where: dict[str, dict[str, Any]] = {}
    if band is not None:
        checked_bands(band, model)
        where["frequency_limited"] = {"band": band}
    if horizon is not None:
        checked_horizon(horizon, model)
        where["time_limited"] = {"horizon": horizon}
    weights = {"input_weight": input_weight, "output_weight": output_weight}
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    if weights:
        where["frequency_weighted"] = weights
    if regularization is not None:
        real_number(
            regularization,
            lambda gain: 0 < gain < math.inf,
            "regularization must be a positive finite gain",
            ModelError,
        )
    weights_region = Region()
    if weights:
        tol = checked_tol(stability_tol)
        weights_region = Region(None, None, *checked_weights(input_weight, output_weight, model, tol))
    rows = []
    for method, entry in REDUCTION_METHODS.items():
        options = where.get(method, {})
        if entry.options and not options and method != "stochastic":
            continue
        if method == "stochastic" and regularization is not None:
            options = {"regularization": regularization}
        rows.append(_row(model, order, method, options, stability_tol, band, horizon, weights_region))
    key = "weighted_error" if weights else "horizon_error" if horizon is not None else "error"
    key = "band_error" if band is not None else key
    rows.sort(key=lambda row: (row.order is None, getattr(row, key), row.error))
    return MethodComparison(rows)


def _row(
    model: Any,
    order: int,
    method: str,
    options: dict[str, Any],
    stability_tol: float,
    band: Any,
    horizon: float | None,
    weights_region: Region,
) -> MethodResult:
    """Return the result of one method."""
    note = ""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ReductionWarning)
            try:
                reduction = reduce(model, order, method=method, stability_tol=stability_tol, **options)
            except ModelError as error:
                size = 0.0
                if method == "stochastic" and "regularization=" in str(error):
                    size = REGULARIZATION * norm(model, "hinf", stability_tol=stability_tol)
                if size == 0:  # also of a model that is zero
                    raise
                note = f"regularization {size:.3g}"
                start = time.perf_counter()
                reduction = reduce(
                    model, order, method=method, stability_tol=stability_tol, regularization=size
                )
        seconds = time.perf_counter() - start
        weighted = math.nan
        if weights_region.weighted:
            weighted = error_in(reduction.source, reduction.model, weights_region, "hinf")[0]
        note = "; ".join([note] * bool(note) + [str(w.message) for w in caught])
        return MethodResult(
            method,
            reduction.order,
            reduction.error(),
            math.nan if band is None else reduction.error(band=band),
            math.nan if horizon is None else reduction.error(horizon=horizon),
            weighted,
            reduction.error_bound,
            seconds,
            note,
            reduction,
        )
    except HankelredError as error:
        return MethodResult(method, note=str(error))
