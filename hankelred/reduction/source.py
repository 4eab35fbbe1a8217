"""The interface that every method of reduction implements."""

from __future__ import annotations

import math
from typing import Protocol

from .._util.arrays import Array
from ..models.linear_model import LinearModel


class ReductionSource(Protocol):
    """The singular values of a model or of data, and the reduced model of any order computed from them.

    A :class:`hankelred.Reduction` refers to its source, from which it is reduced to other orders.
    """

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def hankel_singular_values(self) -> Array:
        """All n values, inf first for unstable and marginal poles."""

    @property
    def noise_floor(self) -> float:
        """Size below which a singular value is a rounding error (or noise in the data)."""

    @property
    def unstable_order(self) -> int:
        """Number of states of unstable and marginal poles, which are not reduced."""

    @property
    def solver(self) -> str:
        """Name of the solver of the factors."""

    @property
    def residual(self) -> float:
        """Relative residual of the solver."""

    @property
    def certified(self) -> bool:
        """Whether twice the sum of the removed values bounds the error of every order."""

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return an upper bound of the error of this reduced model; inf if none is known.

        `bound` is twice the sum of the distinct removed values; the effects of rounding are added to it.
        """

    @property
    def full(self) -> LinearModel | None:
        """The full model; None if there is none, as for data."""

    def truncate(self, order: int) -> tuple[LinearModel | None, Array | None, Array | None]:
        """Return the reduced model (None for a simulator) and its projection left, right, if there is one."""

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm ("hinf" or "h2") of the full model minus the reduced one."""


class UncertifiedSource:
    """What sources without an error bound share, such as those of models estimated from data."""

    certified = False

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return inf: no bound is known."""
        return math.inf
