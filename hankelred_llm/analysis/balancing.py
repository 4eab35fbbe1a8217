"""Adapters as systems of hankelred: with compressed inputs and outputs, and balanced."""

from __future__ import annotations

import operator
import warnings
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import nn

import hankelred
from hankelred import OrderError, ReductionWarning

from ..adapter.adapter_layers import AdapterLayers
from ..adapter.systems import get_systems
from ..errors import AdapterError

Array: TypeAlias = npt.NDArray[Any]


def modal_systems(model: nn.Module, adapter_layers: AdapterLayers) -> dict[int, hankelred.ModalSystem]:
    """Return the systems of an adapter as modal systems.

    Raises
    ------
    AdapterError
        A parameter is not finite.
    """
    for i, system in adapter_layers.systems.items():
        for name, parameter in system.named_parameters():
            not_finite = ~parameter.detach().isfinite()
            if bool(not_finite.any()):
                raise AdapterError(
                    f"layer {i}: {int(not_finite.sum())} of the {not_finite.numel()} entries of {name} are "
                    "NaN or infinite; the training has diverged: go back to a saved adapter"
                )
    return {
        i: hankelred.ModalSystem(*parts) for i, parts in get_systems(model, adapter_layers.adapter).items()
    }


def with_compressed_io(*systems: hankelred.ModalSystem) -> Any:
    """Return systems with inputs and outputs projected onto orthonormal bases of what B and C span.

    Systems passed together get the same bases. The projection is an isometry onto at most r dimensions, so no
    norm or singular value changes, and d = 4096 costs no more than d = 64. Of each conjugate pair only the
    mode above the real axis is used, whose real and imaginary parts span the same space as the pair.
    """
    upper = np.concatenate([s.log_poles for s in systems]).imag >= 0
    inputs = _basis(np.concatenate([s.B for s in systems])[upper].T)
    outputs = _basis(np.concatenate([s.C for s in systems], axis=1)[:, upper])
    compressed = [hankelred.ModalSystem(s.log_poles, s.B @ inputs, outputs.T @ s.C) for s in systems]
    return compressed[0] if len(compressed) == 1 else compressed


def _basis(M: Array) -> Array:
    """Return a real orthonormal basis of the real and imaginary parts of the columns."""
    columns = np.concatenate([M.real, M.imag], axis=1)
    columns = columns[:, columns.any(axis=0)]  # real modes have no imaginary part
    return np.linalg.qr(columns)[0] if columns.shape[0] > columns.shape[1] else np.eye(columns.shape[0])


def balanced(
    system: hankelred.ModalSystem, states: Array | None = None, outputs: Array | None = None
) -> hankelred.Reduction:
    """Return the balancing of a system, as its reduction to one state; ``.at(order)`` gives the others."""
    with warnings.catch_warnings():
        # warnings about order 1 alone: a zero system has no states, and factors from data may fail at one
        warnings.simplefilter("ignore", ReductionWarning)
        return hankelred.reduce(system, 1, controllability_factor=states, observability_factor=outputs)


def whole_number(value: Any, name: str) -> int:
    """Return a whole number of at least 1.

    Raises
    ------
    OrderError
        It is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise OrderError(f"{name} must be a whole number of states, got {value!r}") from None
    if number < 1:
        raise OrderError(f"{name} must be at least 1, got {number}")
    return number
