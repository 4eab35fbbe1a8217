"""Adapters as systems for the core: between few ports, and balanced."""

from __future__ import annotations

import operator
import warnings
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import nn

import hankelred
from hankelred import OrderError, ReductionWarning

from ..adapter.adapter_layers import Sites
from ..adapter.systems import get_systems
from ..errors import AdapterError

Array: TypeAlias = npt.NDArray[Any]


def modal_systems(model: nn.Module, sites: Sites) -> dict[int, hankelred.ModalSystem]:
    """Return the systems of an adapter for the core.

    Raises
    ------
    AdapterError
        A parameter is not finite.
    """
    for i, site in sites.systems.items():
        for name, parameter in site.named_parameters():
            bad = ~parameter.detach().isfinite()
            if bool(bad.any()):
                raise AdapterError(
                    f"layer {i}: {int(bad.sum())} of the {bad.numel()} entries of {name} are NaN or "
                    "infinite; the training has diverged: go back to a saved adapter"
                )
    return {i: hankelred.ModalSystem(*system) for i, system in get_systems(model, sites.adapter).items()}


def with_few_ports(*systems: hankelred.ModalSystem) -> Any:
    """Return systems with the same ports brought onto an orthonormal basis of what their B and C span.

    d inputs on r real states are an isometry around at most r of them: nothing that the core measures
    changes, and d = 4096 costs no more than d = 64. Of each conjugate pair one mode is listed above the real
    axis, and spans what the pair does.
    """
    upper = np.concatenate([s.log_poles for s in systems]).imag >= 0
    inputs = _basis(np.concatenate([s.B for s in systems])[upper].T)
    outputs = _basis(np.concatenate([s.C for s in systems], axis=1)[:, upper])
    few = [hankelred.ModalSystem(s.log_poles, s.B @ inputs, outputs.T @ s.C) for s in systems]
    return few[0] if len(few) == 1 else few


def _basis(M: Array) -> Array:
    """Return a real orthonormal basis of the real and imaginary parts of the columns."""
    columns = np.concatenate([M.real, M.imag], axis=1)
    columns = columns[:, columns.any(axis=0)]  # real modes have no imaginary part
    return np.linalg.qr(columns)[0] if columns.shape[0] > columns.shape[1] else np.eye(columns.shape[0])


def balanced(
    system: hankelred.ModalSystem, states: Array | None = None, outputs: Array | None = None
) -> hankelred.Reduction:
    """Return the balancing of a system as its reduction to one state, from which any order follows."""
    with warnings.catch_warnings():
        # of this first order alone: a system that does nothing has none, and factors of data may fail at one
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
