"""From a record to a model in one call: samples held back choose the order and how it is estimated."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from .._util.arrays import EPS, Array
from .._util.progress import on_terminal
from ..errors import HankelredError, OrderError, ReductionWarning
from ..gramians.stability import STABILITY_TOL
from ..models.linear_model import LinearModel, Timebase, to_control
from ..reduction.balancing import hankel_singular_values
from ..reduction.norms import difference_norm
from ..reduction.order import checked_order
from ..reduction.reduce import Reduction, make_reduction
from . import order_selection as order_search
from .hankel_svd import NOISE_NORM
from .output_error import STABLE_RADIUS, on_limit, residuals, simulate_states, with_initial_states
from .records import (
    Experiments,
    as_experiments,
    constant_channels,
    refuse_constant_channels,
    refuse_dependent_inputs,
)

#: Fit to the held-back samples below which `identify` warns.
_POOR_FIT = 0.1


@dataclass(frozen=True, eq=False, repr=False)
class IdentifiedModel(Reduction):
    """A :class:`Reduction` made from recorded data, with how well it explains them.

    Attributes
    ----------
    hankel_singular_values : ndarray
        Of the pilot model: the largest one estimated from the record, in the units of the record.
    error_bound : float
        Always inf: ``system`` is no truncation of a known model but estimated from the data at its order,
        so nothing bounds its error. ``error()`` measures how far it is from the pilot model.
    noise_floor : float
        What the part of the record that the model leaves unexplained can contribute to a singular value.
    fit : ndarray, shape (p,)
        ``1 - |y - yhat| / |y - mean(y)|`` per output for the simulated output over all records, initial
        states estimated: 1 is perfect, 0 no better than the mean.
    held_back_fit : ndarray, shape (p,)
        The same on the last 30 % of every record, of the model that the first 70 % alone gave. Of a step test
        it is ``1 - |y - yhat| / |y|``, since the output may have settled.
    input_offset, output_offset : ndarray, shape (m,) and (p,)
        ``system`` maps ``u - input_offset`` to ``y - output_offset``.
    initial_states : tuple of ndarray, shape (order,)
        One per record.
    """

    fit: Array = field(default_factory=lambda: np.zeros(0))
    held_back_fit: Array = field(default_factory=lambda: np.zeros(0))
    input_offset: Array = field(default_factory=lambda: np.zeros(0), repr=False)
    output_offset: Array = field(default_factory=lambda: np.zeros(0), repr=False)
    initial_states: tuple[Array, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return (
            f"<IdentifiedModel of order {self.order}, dt = {self.model.dt}: fit {_figures(self.fit)}, "
            f"held back {_figures(self.held_back_fit)}>"
        )

    def at(self, order: int) -> IdentifiedModel:
        """Return the model of another order, estimated from the same records.

        Parameters
        ----------
        order : int
            Number of states.
        """
        _refuse_static(order)
        return _with_fit(make_reduction(self.source, order))

    def compare(self, u: Any, y: Any = None) -> Comparison:
        """Simulate another record of the same process and compare.

        Parameters
        ----------
        u : array_like, shape (m, T) or (T,), or control.TimeResponseData
        y : array_like, shape (p, T) or (T,)
            Measured outputs. The initial state is fitted to them (least squares over the whole record),
            nothing else is; the offsets are those of the model.

        Returns
        -------
        Comparison

        Raises
        ------
        HankelredError
            A record that does not fit the model.
        """
        data = as_experiments(u, y, self.model.dt)
        if len(data.inputs) != 1:
            raise HankelredError(f"compare takes one record at a time, got {len(data.inputs)}")
        m, p = self.model.n_inputs, self.model.n_outputs
        if (data.n_inputs, data.n_outputs) != (m, p):
            raise HankelredError(
                f"the model has {m} input(s) and {p} output(s), the record {data.n_inputs} and "
                f"{data.n_outputs}"
            )
        found = self.source.found(self.order)  # type: ignore[attr-defined]
        us, ys = found.data.apply(data.inputs, data.outputs)
        fitted = with_initial_states(found.model, us, ys)
        error = residuals(fitted, us, ys)[0] * found.data.output_scale[:, None]
        return Comparison(data.outputs[0] - error, order_search.fits(fitted, us, ys))


def _refuse_static(order: Any) -> None:
    if checked_order(order) < 1:
        raise OrderError(
            f"order must be at least 1, got {order}: a model without states is a static gain, fit it by "
            "least squares"
        )


def _figures(values: Array) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """A simulated record.

    Attributes
    ----------
    output : ndarray, shape (p, T)
        Simulated, offsets included.
    fit : ndarray, shape (p,)
        ``1 - |y - output| / |y - mean(y)|`` per output.
    """

    output: Array
    fit: Array

    def __repr__(self) -> str:
        return f"<Comparison over {self.output.shape[1]} samples: fit {_figures(self.fit)}>"


def identify(
    u: Any,
    y: Any = None,
    order: int | None = None,
    *,
    dt: Timebase = True,
    offsets: bool = True,
    stable: bool = True,
    progress: bool | None = None,
) -> IdentifiedModel:
    """Identify a state-space model from recorded inputs and outputs, in one call.

    Subspace methods of several kinds and horizons, and a high-order ARX model, give trial models of every
    order, which are refined by minimising the error of the simulated output. The last 30 % of every record,
    held back, chooses among them: the smallest order that is not worse than the best by more than the
    held-back part can tell. The chosen recipe is then followed on the whole record.

    Parameters
    ----------
    u : array_like, shape (m, T) or (T,), or list of them, or control.TimeResponseData
        Inputs, time last. A list of arrays is several experiments.
    y : array_like, shape (p, T) or (T,), or list of them
        Outputs; left out with ``TimeResponseData``, whose dt and names are kept.
    order : int, optional
        Number of states. Without it the held-back samples choose, up to 12.
    dt : True or float
        Sampling time in seconds.
    offsets : bool
        Records are deviations from unknown constant levels (the default); False takes them as they are. An
        input that is constant from the first sample on is then a step, with zero input and output before it.
        So it is by default, too, where all inputs are constant and all outputs start at zero.
    stable : bool
        Return a stable model (the default). An integrator then becomes a pole just inside the unit circle.
        False lets poles be where the data put them.
    progress : bool, optional
        Show a progress bar on stderr. By default where that is a terminal.

    Returns
    -------
    IdentifiedModel
        A :class:`Reduction`; ``system`` is a ``control.StateSpace``.

    Raises
    ------
    HankelredError
        Records that do not fit together, NaN, a channel that never moves, inputs that always move together,
        swapped axes, too few samples, complex data.
    OrderError
        An order that is no whole number >= 1.

    Warns
    -----
    ReductionWarning
        The data do not bear the order that was asked for, the model has a pole on the stability limit, or it
        explains next to nothing of an output in the held-back samples.

    Notes
    -----
    Sources: Van Overschee and De Moor, Subspace Identification for Linear Systems (1996); Ljung, System
    Identification (1999); McKelvey, Helmersson and Ribarits, Automatica 40 (2004).

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> u = np.random.default_rng(0).standard_normal(300)
    >>> y = np.zeros(300)
    >>> for t in range(1, 300):
    ...     y[t] = 0.8 * y[t - 1] + u[t - 1]
    >>> model = hankelred.identify(u, y + 20.0, dt=0.1)
    >>> model.order, model.system.dt
    (1, 0.1)
    >>> np.round(model.system.poles().real, 9), np.round(model.fit, 6)
    (array([0.8]), array([1.]))
    """
    data = as_experiments(u, y, dt)
    if data.is_complex:
        raise HankelredError(
            "identify works on real records, and these are complex; estimate markov_parameters and realize "
            "them"
        )
    rest = 0
    if constant_channels(data.inputs) and (not offsets or _is_step_test(data)):
        refuse_constant_channels(data, from_rest=True)
        data, rest, offsets = *_after_rest(data), False
    refuse_constant_channels(data)
    refuse_dependent_inputs(data, offsets=offsets)
    if order is not None:
        _refuse_static(order)
    kept = [order_search.estimation_length(x.shape[1], rest) for x in data.inputs]
    channels = data.n_inputs + data.n_outputs
    sizes = order_search.horizons(kept, channels, data.n_outputs, order)
    if not sizes:
        raise HankelredError(
            f"too few samples: {data.n_samples - rest * len(kept)} in {len(kept)} record(s) with {channels} "
            "channels"
            + (f" for order {order}" if order is not None else "")
            + f"; about {order_search.least_samples(channels, data.n_outputs, order)} in one piece are needed"
        )
    shown = on_terminal() if progress is None else progress
    source = IdentificationSource(data, tuple(sizes), offsets, stable, order, rest, shown)
    model = _with_fit(make_reduction(source, source.chosen_order))
    for i, held_back in enumerate(model.held_back_fit):
        if held_back < _POOR_FIT:
            label = f"output {data.output_labels[i] if data.output_labels else i}"
            warnings.warn(
                f"the model explains next to nothing of {label}: its held-back fit is {held_back:.3g}. Are "
                "inputs and outputs swapped, is the order too small, or the output driven by something else?",
                ReductionWarning,
                stacklevel=2,
            )
    return model


def _is_step_test(data: Experiments) -> bool:
    """Whether every input is constant and every output starts at zero, to within its scatter.

    Then levels need not be known: with zero input and output before the record, all of it is a step response.
    """

    def starts_at_zero(y: Array) -> bool:
        size = np.ptp(y)
        last = y[-max(y.size // 4, 2) :]
        scatter = float(np.sqrt(np.mean(np.diff(last) ** 2) / 2)) if y.size > 1 else 0.0
        return bool(np.abs(y[0]) <= max(min(3 * scatter, 0.05 * size), 1e-9 * size))

    return len(constant_channels(data.inputs)) == data.n_inputs and all(
        starts_at_zero(channel) for y in data.outputs for channel in y
    )


def _after_rest(data: Experiments) -> tuple[Experiments, int]:
    """Put zeros before every record; return how many."""
    rest = min(order_search.REST, *(x.shape[1] for x in data.inputs))

    def after_zeros(records: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(np.pad(x, ((0, 0), (rest, 0))) for x in records)

    return replace(data, inputs=after_zeros(data.inputs), outputs=after_zeros(data.outputs)), rest


class IdentificationSource:
    """Records and the pilot model; the model of any order is estimated when it is asked for."""

    solver = "qr"
    certified = False
    full: LinearModel | None = None
    residual = 0.0

    def __init__(
        self,
        data: Experiments,
        sizes: tuple[int, ...],
        offsets: bool,
        stable: bool,
        order: int | None,
        rest: int,
        progress: bool,
    ) -> None:
        self._data, self._sizes, self._offsets, self._stable = data, sizes, offsets, stable
        self.rest = rest
        self._found: dict[int, order_search.Identified] = {}
        self._largest = order_search.MAX_ORDER if order is None else max(order_search.MAX_ORDER, order)
        orders = self._orders() if order is None else [order]
        above = self._above(order) if order is not None else ()
        chosen = order_search.search(
            data.inputs,
            data.outputs,
            orders,
            sizes,
            above,
            offsets=offsets,
            stable=stable,
            rest=rest,
            progress=progress,
        )
        self.chosen_order = chosen.model.order
        if order is not None and self.chosen_order < order:
            warnings.warn(
                f"order {order} was asked for, but the record bears only {self.chosen_order} states; the "
                "model has that order",
                ReductionWarning,
                stacklevel=3,
            )
        if stable and on_limit(chosen.model.A):
            warnings.warn(
                f"the model of order {self.chosen_order} has a pole on the stability limit "
                f"({STABLE_RADIUS:.7g}): the record asks for an integrator, an unstable pole or a slow "
                "drift. Compare other orders on another record, or pass stable=False",
                ReductionWarning,
                stacklevel=3,
            )
        self._found[self.chosen_order] = chosen

    def certificate(self, bound: float, reduced: LinearModel | None) -> float:
        """Return inf: the model of each order is estimated afresh."""
        return math.inf

    def _orders(self) -> list[int]:
        # a quarter of the samples as parameters is the most that a held-back part can still judge
        per_state = self._data.n_inputs + self._data.n_outputs
        samples = self._data.n_samples - self.rest * len(self._data.inputs)
        most = samples * self._data.n_outputs // (4 * per_state)
        return list(range(1, max(2, min(self._largest, most) + 1)))

    def _above(self, order: int) -> list[int]:
        return [n for n in self._orders() if n > order and (n - order) % 2 == 0]

    def found(self, order: int) -> order_search.Identified:
        """Return the model of an order, estimated on first use."""
        if order not in self._found:
            self._found[order] = order_search.search(
                self._data.inputs,
                self._data.outputs,
                [order],
                self._sizes,
                self._above(order),
                offsets=self._offsets,
                stable=self._stable,
                rest=self.rest,
            )
        return self._found[order]

    @property
    def method(self) -> str:
        """Name of the method."""
        return "identification"

    @cached_property
    def pilot(self) -> LinearModel:
        """The largest model, the one the spectrum is of."""
        chosen = self._found[self.chosen_order]
        orders = [n for n in self._orders() if n > self.chosen_order]
        model = order_search.largest(chosen, orders, self._sizes, offsets=self._offsets, stable=self._stable)
        if _outside(model.A) != self.unstable_order:
            # Noise pushes poles of a large model out: its spectrum would then say nothing of the chosen one.
            model = chosen.model
        return LinearModel(*chosen.data.unscaled(model), self._data.dt)

    @cached_property
    def hankel_singular_values(self) -> Array:
        """Of the pilot model."""
        return hankel_singular_values(self.pilot.as_tuple(), dt=self._data.dt)

    @property
    def unstable_order(self) -> int:
        """Poles on or outside the unit circle of the chosen model."""
        return _outside(self._found[self.chosen_order].model.A)

    @cached_property
    def noise_floor(self) -> float:
        """What the residual can contribute to a singular value."""
        chosen = self._found[self.chosen_order]
        left = np.concatenate(residuals(chosen.model, chosen.data.inputs, chosen.data.outputs), axis=1)
        size = np.sqrt(np.mean(left**2, axis=1)) * chosen.data.output_scale
        error = size.max() / (chosen.data.input_scale.min() * np.sqrt(self._data.n_samples))
        width = max(self._sizes) * max(self._data.n_inputs, self._data.n_outputs)
        floor = NOISE_NORM * error * np.sqrt(width)
        values = self.hankel_singular_values
        # What was asked for by number, or passed the held-back samples, is not noise.
        if np.count_nonzero(values > floor) < self.chosen_order:
            return float(values.size * EPS * values[np.isfinite(values)].max(initial=0.0))
        return float(floor)

    def truncate(self, order: int) -> tuple[LinearModel, None, None]:
        """Return the model of an order; there is no projection."""
        found = self.found(order)
        labels = self._data.input_labels, self._data.output_labels
        return LinearModel(*found.data.unscaled(found.model), self._data.dt, to_control, *labels), None, None

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of the pilot model minus the reduced one."""
        return difference_norm(self.pilot, reduced, norm)


def _outside(A: Array) -> int:
    size = max(1.0, float(np.linalg.norm(A)))
    return int(np.count_nonzero(np.abs(np.linalg.eigvals(A)) >= 1 - STABILITY_TOL * size))


def _with_fit(reduction: Reduction) -> IdentifiedModel:
    found, rest = reduction.source.found(reduction.order), reduction.source.rest  # type: ignore[attr-defined]
    data, model = found.data, found.model
    starts = (simulate_states(model.A, model.B, u, x0) for u, x0 in zip(data.inputs, model.x0, strict=True))
    own = {f.name: getattr(reduction, f.name) for f in fields(Reduction)}
    return IdentifiedModel(
        **own,
        fit=order_search.fits(model, data.inputs, data.outputs, rest=rest),
        held_back_fit=found.held_back_fit,
        input_offset=data.input_offset,
        output_offset=data.output_offset + data.output_scale * model.offset,
        initial_states=tuple(states[:, rest] for states in starts),
    )
