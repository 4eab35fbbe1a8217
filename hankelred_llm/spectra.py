"""Hankel spectra of adapters, and the ranks they suggest."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import hankelred
from hankelred import HankelredError

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class HankelSpectra(Mapping[int, Array]):
    """Hankel singular values by layer: how much memory each layer uses, or its data asks for.

    A mapping from layer index to values in falling order (float64): those of the trained adapters where there
    are any, else those of the gradient.

    Attributes
    ----------
    exact : dict of ndarray
        Of the systems (A, B, gate C), by closed-form Gramians; a layer of r states has r values. Empty for a model
        without adapters.
    noise_floors : dict of float
        Exact values at or below it are rounding errors.
    empirical : dict of ndarray or None
        By the Gramians of a :class:`Calibration`: of the states that the data excite and of the outputs that
        the loss (or, without labels, the output itself) feels. In units of the data, so they compare layers, and not
        with the exact ones. No bound follows from them.
    gradient, null : dict of ndarray or None
        Before training: of the Hankel operator of the loss's gradient, and of the same with inputs and gradients
        of different sequences, which is what chance gives.
    names : dict of str
        Module names of the layers.
    """

    exact: dict[int, Array]
    noise_floors: dict[int, float] = field(default_factory=dict)
    empirical: dict[int, Array] | None = None
    gradient: dict[int, Array] | None = None
    null: dict[int, Array] | None = None
    names: dict[int, str] = field(default_factory=dict)

    @property
    def _values(self) -> dict[int, Array]:
        return self.exact or self.gradient or {}

    def __getitem__(self, layer: int) -> Array:
        return self._values[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def suggest_ranks(self, *, tol: float | None = None, budget: int | None = None) -> dict[int, int]:
        """Return the order of each layer; filled in below."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return everything as JSON."""
        raise NotImplementedError


def hankel_spectra(model: Any, calibration: Any = None) -> HankelSpectra:
    """Return the Hankel spectra of a model's adapters."""
    raise NotImplementedError
