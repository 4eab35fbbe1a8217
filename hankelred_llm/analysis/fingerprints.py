"""Fingerprints of models, adapters and data: what statistics belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..adapter.adapter_layers import Sites
from ..errors import CalibrationError

#: Values of each weight that go into the fingerprint of a model: enough to tell two trainings apart.
FINGERPRINT = 16


def add_batch(digest: Any, batch: Mapping[str, Any]) -> None:
    """Add the tensors of a batch to a hash."""
    for key in sorted(batch):
        value = batch[key]
        if isinstance(value, Tensor):
            digest.update(f"{key}{tuple(value.shape)}".encode())
            numbers = value.detach().cpu()
            digest.update((numbers.double() if numbers.is_floating_point() else numbers).numpy().tobytes())


def model_tag(model: nn.Module) -> dict[str, str]:
    """Return name and fingerprint of a model without its HRM adapters."""
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", "a model"))
    digest = hashlib.sha256(model_type.encode())
    for name, parameter in model.named_parameters():
        if ".hrm_system." in name:
            continue
        # not the name: it is another one in a PeftModel, and the model with and without adapters is the same
        digest.update(f"{tuple(parameter.shape)}".encode())
        if not parameter.is_meta:
            flat = parameter.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // FINGERPRINT)][:FINGERPRINT]
            digest.update(some.cpu().double().numpy().tobytes())
    name = str(getattr(config, "_name_or_path", "") or model_type)
    return {"name": name, "fingerprint": digest.hexdigest()}


def adapter_tag(sites: Sites) -> dict[str, str]:
    """Return name and fingerprint of an adapter."""
    digest = hashlib.sha256()
    for index, system in sites.systems.items():
        digest.update(f"{index}{system.modes}".encode())
        for name, parameter in system.named_parameters():
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().double().numpy().tobytes())
    return {"name": sites.adapter, "fingerprint": digest.hexdigest()}


def compare(mine: dict[str, str], theirs: dict[str, str], what: str) -> None:
    """Refuse other weights than those a calibration was made with."""
    # a name may differ between the folders a model was loaded from; its weights may not
    if mine["fingerprint"] != theirs["fingerprint"]:
        raise CalibrationError(
            f"the calibration was made with {what} '{mine['name']}' ({mine['fingerprint'][:12]}), and this "
            f"is '{theirs['name']}' ({theirs['fingerprint'][:12]}): "
            + (
                "its parameters are others; calibrate again after training or reducing"
                if what == "adapter"
                else "its weights are others; calibrate again with this model"
            )
        )
