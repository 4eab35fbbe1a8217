"""Candidates for the reduction of a layer, and their comparison on validation rows."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import hankelred
from hankelred import HankelredError, ModalSystem, ReductionWarning
from hankelred.errors import in_one_line

from ..adapter.adapter_layers import AdapterLayers
from ..adapter.system import FASTEST_LOG_DECAY
from ..errors import AdapterError, CalibrationError
from ..ops.autograd import channel_scan
from .balancing import balanced
from .calibration import Calibration
from .capture import CapturedActivation, mean_loss

Array: TypeAlias = npt.NDArray[Any]


class ValidationInputs(NamedTuple):
    """The inputs of the systems on the validation rows, documents concatenated."""

    inputs: dict[int, Array]  # by layer: B x_t in the modes, (r, tokens)
    segment_starts: Array  # (tokens,) bool
    loss: float | None


def run_validation_rows(
    model: nn.Module, adapter_layers: AdapterLayers, calibration: Calibration
) -> ValidationInputs | None:
    """Run the validation rows once; stores r numbers per token and layer, whatever the width of the model."""
    if not calibration.held_out:
        return None
    inputs: dict[int, list[Array]] = {i: [] for i in adapter_layers.systems}
    segment_starts: list[Array] = []

    def on_activation(index: int, captured: CapturedActivation) -> None:
        system = adapter_layers.systems[index]
        valid = (
            torch.ones(captured.x.shape[:2], dtype=torch.bool)
            if captured.valid is None
            else captured.valid.cpu()
        )
        rows = captured.x[valid.to(captured.x.device)].to(system.B.dtype)
        inputs[index].append((rows @ system.B.detach().t()).cpu().double().numpy().T)
        if index == next(iter(adapter_layers.systems)):
            first = (
                torch.zeros_like(valid)
                if captured.segment_start is None
                else captured.segment_start.cpu().clone()
            )
            # masked tokens are identity steps and are left out; each row starts a segment
            first[torch.arange(len(valid)), valid.int().argmax(1)] = True
            segment_starts.append(first[valid].numpy())

    try:
        loss = mean_loss(model, adapter_layers, calibration.held_out, on_activation)
    except (HankelredError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        # a file from elsewhere can contain any arguments of a model
        raise CalibrationError(
            f"the model cannot run the validation rows of the calibration ({in_one_line(error, 200)}); "
            "calibrate again with this model"
        ) from error
    T = {i: calibration.layers[i].mode_transform() for i in inputs}
    return ValidationInputs(
        {i: T[i] @ np.concatenate(u, 1) for i, u in inputs.items()}, np.concatenate(segment_starts), loss
    )


class LayerReductionChoice(NamedTuple):
    """The chosen reduction of a layer, and the errors of all candidates."""

    kept: str
    system: ModalSystem  # with compressed inputs and outputs
    left: Array  # (r, order): B of the layer goes to left.T B
    right: Array  # (r, order): C to C right
    bound: float
    held_out: dict[str, float]

    def expanded(self, full: ModalSystem) -> ModalSystem:
        """Return the reduced system with all inputs and outputs of the layer."""
        return ModalSystem(self.system.log_poles, self.left.T @ full.B, full.C @ self.right)


def choose(
    index: int,
    system: ModalSystem,
    exact: hankelred.Reduction,
    order: int,
    calibration: Calibration | None,
    validation: ValidationInputs | None,
) -> LayerReductionChoice:
    """Return the candidate with the smallest error on the validation rows; without them the exact one."""
    if exact.numerical_rank == 0:
        return _single_real_state(system)
    balancings = {"exact": exact}
    if calibration is not None and validation is not None:
        states, outputs = calibration.factors(index, system)
        balancings["empirical"] = balanced(system, states)
        if outputs is not None:
            balancings["empirical, loss"] = balanced(system, states, outputs)
        balancings["output POD"] = balanced(system, states, system.C.conj().T)
    candidates = {
        name: candidate for name, b in balancings.items() if (candidate := _usable(b, order)) is not None
    }
    if not candidates:
        raise AdapterError(
            f"layer {index}: its system has no stable diagonal form of order {order}, because of poles "
            "within rounding of the stability boundary or of each other; choose another order with ranks="
        )
    errors = {}
    if validation is not None:
        responses = _Responses(system, validation.inputs[index], validation.segment_starts)
        errors = {
            name: responses.error(candidates[name]) if name in candidates else math.inf for name in balancings
        }
    # of equal errors the first, which is the certified one
    kept = min(candidates, key=lambda name: errors.get(name, 0.0))
    best = candidates[kept]
    assert best.left is not None and best.right is not None
    return LayerReductionChoice(kept, best.system, best.left, best.right, best.error_bound, errors)


def _usable(balancing: hankelred.Reduction, order: int) -> hankelred.Reduction | None:
    """Return the reduction to an order; None if it has another order, no diagonal form, or is not stable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReductionWarning)
        try:
            candidate = balancing.at(order)
        except hankelred.ModelError:
            return None
    return candidate if candidate.order == order and np.all(candidate.system.log_poles.real < 0) else None


def _single_real_state(system: ModalSystem) -> LayerReductionChoice:
    """Return one real state for a zero system: of B and C the one that is not zero is kept, for training."""
    size = np.linalg.norm(system.B, axis=1) if np.any(system.B) else np.linalg.norm(system.C, axis=0)
    strongest = int(np.argmax(size))
    pole = system.log_poles[strongest]
    # of a pair, the real parts of both modes
    conjugate = int(np.argmin(np.abs(system.log_poles - pole.conj())))
    left = np.zeros((system.n_states, 1))
    left[strongest] += 0.5
    left[conjugate] += 0.5
    right = 0 * left if np.any(system.B) else left
    reduced = ModalSystem([pole.real], left.T @ system.B, system.C @ right)
    return LayerReductionChoice("exact", reduced, left, right, 0.0, {})


class _Responses:
    """Outputs of a system and of its reductions on the validation rows."""

    def __init__(self, system: ModalSystem, inputs: Array, segment_starts: Array):
        self.system, self.inputs, self.segment_starts = system, inputs, segment_starts
        self.states = _run(system.log_poles, inputs, segment_starts)
        self.size = float(np.linalg.norm(np.linalg.qr(system.C, mode="r") @ self.states))

    def error(self, reduction: hankelred.Reduction) -> float:
        """Return the root mean square output error relative to the output."""
        assert reduction.left is not None
        reduced = reduction.system
        states = _run(reduced.log_poles, reduction.left.T @ self.inputs, self.segment_starts)
        factor = np.linalg.qr(np.concatenate([self.system.C, -reduced.C], axis=1), mode="r")
        error = float(np.linalg.norm(factor @ np.concatenate([self.states, states])))
        return error / self.size if self.size > 0 else 0.0


def _run(log_poles: Array, inputs: Array, segment_starts: Array) -> Array:
    """Return the states (n, tokens) of a modal system, each mode as a separate complex one."""
    n = log_poles.size
    u = torch.from_numpy(np.concatenate([inputs.real, inputs.imag]))[None]
    decay = torch.from_numpy(np.maximum(log_poles.real, FASTEST_LOG_DECAY))
    phase = torch.from_numpy(np.ascontiguousarray(log_poles.imag))
    s, _ = channel_scan(decay, phase, u, segment_start=torch.from_numpy(segment_starts)[None])
    channels = s[0].numpy()
    return channels[:n] + 1j * channels[n:]
