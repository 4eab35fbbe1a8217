"""Initialization from data: an untrained adapter is set from the gradient of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .._util.tables import table
from ..adapter.adapter_layers import AdapterLayers, check_active, find_adapter_layers
from ..adapter.systems import get_systems, set_systems
from ..errors import AdapterError, CalibrationError, ConfigError
from .calibration import Calibration
from .calibration_pass import calibrate
from .capture import mean_loss
from .fingerprints import check_fingerprint, model_fingerprint
from .gradient_hankel import GradientSpectrum

Array: TypeAlias = npt.NDArray[Any]
System: TypeAlias = tuple[Array, Array, Array]

PARTS = ("B", "AB", "ABC")

#: Share of the energy of a row of B that comes from data; the rest is its previous value. With a share of 1,
#: a layer with one value above the null would read one direction only, whatever its r.
SHARE = 0.5

#: Number of tokens of the validation rows on which the gain of C is chosen.
VALIDATION_TOKENS = 4096

#: First gain of C that is tried, where 1 makes the largest Hankel singular value 1, and number of doublings.
SMALLEST, DOUBLINGS = 2.0**-12, 16


@dataclass(frozen=True)
class InitializationReport:
    """What :func:`initialize` did.

    Attributes
    ----------
    what : str
        The parts that were set.
    significant : dict of int
        By layer index: singular values of the gradient operator above its null.
    orders : dict of int
        Number of states taken from data; 0 for a layer that was left unchanged.
    gain : float or None
        Gain of C, in units of -dL/dH per token; None where C is zero.
    loss_before, loss_after : float or None
        Mean loss over the validation rows on which the gain was chosen.

    Examples
    --------
    >>> from hankelred_llm.analysis.initialize import InitializationReport
    >>> print(InitializationReport("AB", {0: 3, 1: 0}, {0: 3, 1: 0}))
    layer  above the null  states from data
    ---------------------------------------
    0      3               3
    1      0               0
    """

    what: str
    significant: dict[int, int]
    orders: dict[int, int]
    gain: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None

    def __str__(self) -> str:
        rows = [["layer", "above the null", "states from data"]]
        rows += [[str(i), str(self.significant[i]), str(self.orders[i])] for i in self.orders]
        text = table(rows)
        if self.loss_before is not None and self.loss_after is not None:
            text += f"\nC: loss on validation rows {self.loss_before:.4f} -> {self.loss_after:.4f}"
        return text


def initialize(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]] | Calibration,
    what: str = "B",
    *,
    adapter_name: str | None = None,
    progress: bool | None = None,
) -> InitializationReport:
    """Initialize an untrained adapter, in place, from the gradient of the loss.

    In each layer the Hankel operator of -dL/dH is collected, H being the impulse response of a linear
    residual branch in the place of the adapter. Its balanced realization in modal form gives as many states
    as it has singular values above those of its null (:func:`hankel_spectra`), at most r; r itself stays.
    Layers without such values stay as they are.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        With an HRM adapter whose output is zero.
    batches : iterable of dict, or Calibration
        For ``model(**batch)``, with labels, in batches of at least three sequences; or the result of
        :func:`calibrate` on them with this model, before any adapter was trained.
    what : {"B", "AB", "ABC"}
        "B": poles stay; each row of B is rotated towards the negative gradient of the loss at its pole. "AB":
        poles and rows of the realization; the remaining states stay. With both C is zero, and the model's
        outputs are bit-identical to the base model's. "ABC": also its C, with one gain for all layers, chosen
        on validation rows that are left out of the operator.
    adapter_name : str, optional
        Default: the active adapter.
    progress : bool, optional
        Show a bar on stderr. Default: where that is a terminal.

    Returns
    -------
    InitializationReport

    Raises
    ------
    AdapterError
        There is no such adapter, or its output is not zero.
    CalibrationError
        Batches without labels, fewer than three sequences, or a Calibration of another model, or of a
        trained adapter; with "ABC" one without validation rows.
    ConfigError
        Another value of ``what``.

    Notes
    -----
    The parameters are replaced: create the optimizer after this. Rows keep their norms; the modulus of poles
    is at most 0.999. docs/spectra_before_training.md reports where this helped and where it did not.

    Examples
    --------
    >>> import transformers, torch, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    >>> tokens = torch.randint(32, (8, 24), generator=torch.Generator().manual_seed(0))
    >>> report = hankelred_llm.initialize(model, [{"input_ids": tokens, "labels": tokens}])
    >>> report.what, sorted(report.orders)
    ('B', [0, 1])
    """
    if what not in PARTS:
        raise ConfigError(f"what={what!r} is unknown; choose one of {', '.join(map(repr, PARTS))}")
    adapter_layers = find_adapter_layers(model, adapter_name)
    _check_untrained(adapter_layers)
    if isinstance(batches, Calibration):
        # a calibration of any untrained adapter: the gradients do not depend on it
        calibration = batches
        check_fingerprint(calibration.model, model_fingerprint(model), "model")
    else:
        held_out = VALIDATION_TOKENS if what == "ABC" else 0
        calibration = calibrate(
            model, batches, adapter_name=adapter_layers.adapter, held_out=held_out, progress=progress
        )
    if what == "ABC":
        check_active(model, adapter_layers)
        if not calibration.held_out:
            raise CalibrationError(
                "the gain of C is chosen on rows that were held out, and this calibration has none; "
                "calibrate with held_out=4096, and with more than a few rows"
            )
    spectra = _spectra(model, calibration, adapter_layers.adapter)
    report = _set_from_spectra(model, spectra, what, adapter_layers.adapter)
    if what != "ABC":
        return report
    largest = max((float(spectra[i].values[0]) for i, n in report.orders.items() if n), default=0.0)
    return _with_gain(model, calibration.held_out, report, largest, adapter_layers.adapter)


def _spectra(model: nn.Module, calibration: Calibration, adapter_name: str) -> dict[int, GradientSpectrum]:
    """Return the spectrum of the gradient operator of each layer of an adapter."""
    layers = get_systems(model, adapter_name)
    missing = sorted(set(layers) - set(calibration.gradients))
    if missing or not calibration.labels:
        raise CalibrationError(
            f"there are no gradients of layers {missing} in the calibration: it was made with an "
            "adapter that was trained, or of other layers; calibrate an untrained adapter"
            if missing
            else "there are no gradients in the calibration: its batches had no labels"
        )
    return {i: calibration.gradients[i].spectrum() for i in layers}


def _set_from_spectra(
    model: nn.Module, spectra: Mapping[int, GradientSpectrum], what: str, adapter_name: str
) -> InitializationReport:
    """Set poles and rows of B; with "ABC" also C, in units of -dL/dH per token."""
    new, significant, orders = {}, {}, {}
    for index, old in get_systems(model, adapter_name).items():
        spectrum = spectra[index]
        significant[index] = spectrum.significant
        orders[index] = min(significant[index], old[0].size)
        if orders[index]:
            realized = spectrum.realize(orders[index])
            new[index] = (
                _with_rotated_rows(old, realized)
                if what == "B"
                else _with_realized_modes(old, realized, output=what == "ABC")
            )
    if new:
        set_systems(model, new, adapter_name)
    return InitializationReport(what, significant, orders)


def _check_untrained(adapter_layers: AdapterLayers) -> None:
    for index, system in adapter_layers.systems.items():
        if not system.output_is_zero():
            raise AdapterError(
                f"the adapter of layer {index} adds something to the output already: it was trained or set, "
                "which would be lost; attach a new one, or add one with add_adapter"
            )


def _with_rotated_rows(old: System, realized: System) -> System:
    """Rotate rows of B towards the gradient that they would get at their pole with a random C."""
    logs, B, C = old
    rng = np.random.default_rng(0)
    realized_logs, rows, outs = realized
    # sum_k exp(k log_pole) (-dL/dH_k) = outs diag(1 / (1 - pole realized_pole)) rows
    gains = 1 / (1 - np.exp(logs[:, None] + realized_logs[None]))
    shape = logs.size, outs.shape[0]
    random = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    directions = (((random @ outs) * gains) @ rows).conj()
    new = B.copy()
    for k in range(logs.size):
        if k and _are_pair(logs, k - 1, k) and logs[k - 1].imag > 0:
            new[k] = new[k - 1].conj()
            continue
        # the row of a real mode is real
        row = directions[k].real if abs(math.sin(logs[k].imag)) < 1e-12 else directions[k]
        size = np.linalg.norm(row)
        if size > 0:
            row = math.sqrt(1 - SHARE) * B[k] + math.sqrt(SHARE) * np.linalg.norm(B[k]) / size * row
            new[k] = row * (np.linalg.norm(B[k]) / np.linalg.norm(row))
    return logs, new, np.zeros_like(C)


def _are_pair(logs: Array, i: int, j: int) -> bool:
    return bool(logs[i].imag != 0 and np.isclose(logs[i], logs[j].conj(), rtol=1e-9, atol=0))


def _with_realized_modes(old: System, realized: System, *, output: bool) -> System:
    """Replace modes by realized ones, with rows of B of norm 1."""
    logs, B, C = realized
    size = np.linalg.norm(B, axis=1)
    size[size == 0] = 1.0
    B, C = B / size[:, None], C * size
    remaining = _leading_modes(old, old[0].size - logs.size)
    # C of the remaining modes is zero, as before training
    zero = np.zeros((C.shape[0], remaining[0].size))
    return (
        np.concatenate([logs, remaining[0]]),
        np.concatenate([B, remaining[1]]),
        np.concatenate([C if output else np.zeros_like(C), zero], axis=1),
    )


def _leading_modes(system: System, count: int) -> tuple[Array, Array]:
    """Return the first modes of a system; half a pair becomes a real mode of the same modulus."""
    logs, B, _ = system
    poles: list[complex] = []
    rows: list[Array] = []
    k = 0
    while len(poles) < count:
        pair = k + 1 < logs.size and _are_pair(logs, k, k + 1)
        if pair and len(poles) + 2 > count:
            poles, rows = [*poles, complex(logs[k].real)], [*rows, B[k].real.astype(complex)]
        else:
            width = 2 if pair else 1
            poles, rows = [*poles, *logs[k : k + width]], [*rows, *B[k : k + width]]
        k += 2 if pair else 1
    return np.array(poles, dtype=complex), np.array(rows, dtype=complex).reshape(count, B.shape[1])


def _with_gain(
    model: nn.Module,
    rows: Iterable[Mapping[str, Any]],
    report: InitializationReport,
    largest: float,
    adapter_name: str,
) -> InitializationReport:
    """Choose the gain of C: doubled as long as the loss on the validation rows falls."""
    adapter_layers = find_adapter_layers(model, adapter_name)
    outputs = {i: system.C.detach().clone() for i, system in adapter_layers.systems.items()}

    def set_gain(gain: float) -> None:
        with torch.no_grad():
            for i, system in adapter_layers.systems.items():
                system.C.copy_(outputs[i] * gain)

    def loss() -> float:
        return mean_loss(model, adapter_layers, rows) or 0.0

    set_gain(0.0)
    before = best = loss()
    gain = 0.0
    if largest > 0:
        for doubling in range(DOUBLINGS):
            trial = SMALLEST * 2**doubling / largest
            set_gain(trial)
            trial_loss = loss()
            if not trial_loss < best:
                break
            gain, best = trial, trial_loss
    set_gain(gain)
    return InitializationReport("ABC", report.significant, report.orders, gain, before, best)
