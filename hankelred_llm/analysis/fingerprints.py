"""Fingerprints of models, adapters and data, by which statistics are matched to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..adapter.adapter_layers import AdapterLayers
from ..adapter.static import PARAMETER_GROUPS
from ..errors import CalibrationError

#: Values of each weight that enter the fingerprint of a model: enough to distinguish two trainings.
FINGERPRINT = 16


def add_batch(digest: Any, batch: Mapping[str, Any]) -> None:
    """Add the tensors of a batch to a hash."""
    for key in sorted(batch):
        value = batch[key]
        if isinstance(value, Tensor):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            numbers = value.detach().cpu()
            digest.update((numbers.double() if numbers.is_floating_point() else numbers).numpy().tobytes())


def model_fingerprint(model: nn.Module) -> dict[str, str]:
    """Return name and fingerprint of a model without its HRM adapters."""
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", "a model"))
    digest = hashlib.sha256(model_type.encode())
    for name, parameter in model.named_parameters():
        if any(f".{part}." in name for part in PARAMETER_GROUPS):
            continue
        # without the name, which differs in a PeftModel: the fingerprint is the same with and without
        # adapters
        digest.update(f"{tuple(parameter.shape)}".encode())
        if not parameter.is_meta:
            flat = parameter.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // FINGERPRINT)][:FINGERPRINT]
            digest.update(sample.cpu().double().numpy().tobytes())
    name = str(getattr(config, "_name_or_path", "") or model_type)
    return {"name": name, "fingerprint": digest.hexdigest()}


def adapter_fingerprint(adapter_layers: AdapterLayers) -> dict[str, str]:
    """Return name and fingerprint of an adapter."""
    digest = hashlib.sha256()
    for index, system in adapter_layers.systems.items():
        order, pairs, negative = system.modes
        # the text of the format of calibration files, not the repr of a class that may be renamed
        digest.update(f"{index}Modes(order={order}, pairs={pairs}, negative={negative})".encode())
        for name, parameter in system.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().double().numpy().tobytes())
    return {"name": adapter_layers.adapter, "fingerprint": digest.hexdigest()}


def check_fingerprint(expected: dict[str, str], actual: dict[str, str], kind: str) -> None:
    """Refuse other weights than those that a calibration was made with."""
    # a name may differ between the folders a model was loaded from; its weights may not
    if expected["fingerprint"] != actual["fingerprint"]:
        raise CalibrationError(
            f"the calibration was made with {kind} '{expected['name']}' ({expected['fingerprint'][:12]}), "
            f"and this is '{actual['name']}' ({actual['fingerprint'][:12]}): "
            + (
                "its parameters differ; calibrate again after training or reducing"
                if kind == "adapter"
                else "its weights differ; calibrate again with this model"
            )
        )
