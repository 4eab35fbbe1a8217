"""What an interactive picture of a reduction shows: spectrum, full model, and one curve for each order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._util.arrays import Array
from ..plotting.draw import Spectrum


@dataclass(frozen=True)
class ReducedCurve:
    """The reduced model of one order.

    Attributes
    ----------
    order : int
        Number of states.
    error_bound : float
        inf where none is known.
    gain : ndarray, shape (k,)
        Of the reduced model at the frequencies of :class:`OrderCurves`.
    error : ndarray, shape (k,), or None
        Gain of (full minus reduced) there; None without a full model.
    note : str
        Warnings of the method about this order.
    """

    order: int
    error_bound: float
    gain: Array
    error: Array | None
    note: str = ""

    @property
    def largest_error(self) -> float:
        """The largest finite error at the frequencies; nan without a full model."""
        if self.error is None:
            return float("nan")
        return float(self.error[np.isfinite(self.error)].max(initial=0.0))

    def summary(self) -> str:
        """Return the figures of this order in one line."""
        parts = [f"order {self.order}"]
        if np.isfinite(self.error_bound):
            parts.append(f"error bound {self.error_bound:.3g}")
        if self.error is not None:
            parts.append(f"largest error at the frequencies shown {self.largest_error:.3g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class OrderCurves:
    """A reduction to every order.

    Attributes
    ----------
    title : str
    spectrum : Spectrum
        Hankel singular values, bounds and noise floor; its ``order`` is the one shown first.
    orders : range
        Orders that can be chosen.
    frequencies : ndarray, shape (k,)
    frequency_label, gain_label : str
        Of the axes, with units.
    full : ndarray, shape (k,), or None
        Gain of the full model; None where there is none, as for models estimated from data.
    reduced : callable
        Order to :class:`ReducedCurve`.
    facts : tuple of (str, str)
        Names and values for a table: method, solver, certificate.
    """

    title: str
    spectrum: Spectrum
    orders: range
    frequencies: Array
    frequency_label: str
    gain_label: str
    full: Array | None
    reduced: Callable[[int], ReducedCurve]
    facts: tuple[tuple[str, str], ...]

    @property
    def gain_limits(self) -> tuple[float, float]:
        """Ends of the axis of gains: from below the noise floor to above the peak; zeros are cut off."""
        gain = self.reduced(self.orders[-1]).gain if self.full is None else self.full
        highest = float(gain[np.isfinite(gain)].max(initial=0.0)) or 1.0
        floor = self.spectrum.noise_floor or highest * 1e-8
        return max(min(floor, highest * 1e-3) / 10, highest * 1e-16), 3 * highest
