"""Candidates for the reduction of a layer, and which of them does best on rows that were held out."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import hankelred
from hankelred import ModalSystem, ReductionWarning

from ..adapter.adapter_layers import Sites
from ..adapter.system import FASTEST
from ..errors import AdapterError
from ..ops.autograd import column_scan
from .balancing import balanced
from .calibration import Calibration
from .capture import Seen, mean_loss

Array: TypeAlias = npt.NDArray[Any]


class HeldOut(NamedTuple):
    """What the systems meet on the rows that were held out, document after document."""

    inputs: dict[int, Array]  # by layer: B x_t in the modes, (r, tokens)
    starts: Array  # (tokens,) bool
    loss: float | None


def hold(model: nn.Module, sites: Sites, calibration: Calibration) -> HeldOut | None:
    """Run the held-out rows once; r numbers a token and layer are kept, whatever the width of the model."""
    if not calibration.held_out:
        return None
    inputs: dict[int, list[Array]] = {i: [] for i in sites.systems}
    starts: list[Array] = []

    def hear(index: int, seen: Seen) -> None:
        system = sites.systems[index]
        keep = torch.ones(seen.x.shape[:2], dtype=torch.bool) if seen.keep is None else seen.keep.cpu()
        rows = seen.x[keep.to(seen.x.device)].to(system.B.dtype)
        inputs[index].append((rows @ system.B.detach().t()).cpu().double().numpy().T)
        if index == next(iter(sites.systems)):
            first = torch.zeros_like(keep) if seen.reset is None else seen.reset.cpu().clone()
            # an identity step changes nothing, so what is masked is left out; a row starts anew
            first[torch.arange(len(keep)), keep.int().argmax(1)] = True
            starts.append(first[keep].numpy())

    loss = mean_loss(model, sites, calibration.held_out, hear)
    T = {i: calibration.layers[i].to_modes() for i in inputs}
    return HeldOut({i: T[i] @ np.concatenate(u, 1) for i, u in inputs.items()}, np.concatenate(starts), loss)


class Plan(NamedTuple):
    """The reduction of a layer that was chosen, and how the candidates did."""

    kept: str
    system: ModalSystem  # in few ports
    left: Array  # (r, order): B of the layer goes to left.T B
    right: Array  # (r, order): C to C right
    bound: float
    held_out: dict[str, float]

    def expanded(self, full: ModalSystem) -> ModalSystem:
        """Return the reduced system between all the ports of the layer."""
        return ModalSystem(self.system.log_poles, self.left.T @ full.B, full.C @ self.right)


def choose(
    index: int,
    system: ModalSystem,
    exact: hankelred.Reduction,
    order: int,
    calibration: Calibration | None,
    held: HeldOut | None,
) -> Plan:
    """Return the candidate with the smallest error on what was held out; the exact one without that."""
    if exact.numerical_rank == 0:
        return _silent(system)
    balancings = {"exact": exact}
    if calibration is not None and held is not None:
        states, outputs = calibration.factors(index, system)
        balancings["empirical"] = balanced(system, states)
        if outputs is not None:
            balancings["empirical, loss"] = balanced(system, states, outputs)
        balancings["output POD"] = balanced(system, states, system.C.conj().T)
    candidates = {name: one for name, b in balancings.items() if (one := _usable(b, order)) is not None}
    if not candidates:
        raise AdapterError(
            f"layer {index}: its system has no stable diagonal form of order {order}, because of poles "
            "within rounding of the stability boundary or of each other; ask for another order in ranks="
        )
    errors = {}
    if held is not None:
        seen = _Responses(system, held.inputs[index], held.starts)
        errors = {
            name: seen.error(candidates[name]) if name in candidates else math.inf for name in balancings
        }
    # the first of equals, so that a certificate is not given away for nothing
    kept = min(candidates, key=lambda name: errors.get(name, 0.0))
    best = candidates[kept]
    assert best.left is not None and best.right is not None
    return Plan(kept, best.system, best.left, best.right, best.error_bound, errors)


def _usable(balancing: hankelred.Reduction, order: int) -> hankelred.Reduction | None:
    """Return the reduction to an order, None where it has another one, no diagonal form, or is not stable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReductionWarning)
        try:
            one = balancing.at(order)
        except hankelred.ModelError:
            return None
    return one if one.order == order and np.all(one.system.log_poles.real < 0) else None


def _silent(system: ModalSystem) -> Plan:
    """Return one real state for a layer that does nothing: the side that is not zero is kept, to train on."""
    size = np.linalg.norm(system.B, axis=1) if np.any(system.B) else np.linalg.norm(system.C, axis=0)
    strongest = int(np.argmax(size))
    pole = system.log_poles[strongest]
    # of a pair the real parts
    twin = int(np.argmin(np.abs(system.log_poles - pole.conj())))
    left = np.zeros((system.n_states, 1))
    left[strongest] += 0.5
    left[twin] += 0.5
    right = 0 * left if np.any(system.B) else left
    reduced = ModalSystem([pole.real], left.T @ system.B, system.C @ right)
    return Plan("exact", reduced, left, right, 0.0, {})


class _Responses:
    """Outputs of a system and of its reductions, on what was held out."""

    def __init__(self, system: ModalSystem, inputs: Array, starts: Array):
        self.system, self.inputs, self.starts = system, inputs, starts
        self.states = _run(system.log_poles, inputs, starts)
        self.size = float(np.linalg.norm(np.linalg.qr(system.C, mode="r") @ self.states))

    def error(self, reduction: hankelred.Reduction) -> float:
        """Return the root mean square of the output error relative to the output."""
        assert reduction.left is not None
        reduced = reduction.system
        states = _run(reduced.log_poles, reduction.left.T @ self.inputs, self.starts)
        seen = np.linalg.qr(np.concatenate([self.system.C, -reduced.C], axis=1), mode="r")
        error = float(np.linalg.norm(seen @ np.concatenate([self.states, states])))
        return error / self.size if self.size > 0 else 0.0


def _run(log_poles: Array, inputs: Array, starts: Array) -> Array:
    """Return the states (n, tokens) of a modal system, every mode as a complex one of its own."""
    n = log_poles.size
    u = torch.from_numpy(np.concatenate([inputs.real, inputs.imag]))[None]
    decay = torch.from_numpy(np.maximum(log_poles.real, FASTEST))
    phase = torch.from_numpy(np.ascontiguousarray(log_poles.imag))
    s, _ = column_scan(decay, phase, u, reset=torch.from_numpy(starts)[None])
    columns = s[0].numpy()
    return columns[:n] + 1j * columns[n:]
