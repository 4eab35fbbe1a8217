"""The one reduction pipeline: factors -> SVD -> projection -> :class:`Reduction`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .models import LinearModel

Array: TypeAlias = npt.NDArray[Any]


class ReductionSource(Protocol):
    """What a :class:`Reduction` is made from: the factored problem, able to give any order.

    A method of reduction is one of these; nothing else of the pipeline knows which.
    """

    @property
    def method(self) -> str: ...
    @property
    def hankel_singular_values(self) -> Array: ...
    @property
    def noise_floor(self) -> float: ...
    @property
    def unstable_order(self) -> int: ...
    @property
    def numerical_rank(self) -> int: ...
    @property
    def full(self) -> LinearModel | None:
        """The model that was reduced; None where it came from data."""

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the reduced model and the projection (left, right) at an order, both None if none."""

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced."""
