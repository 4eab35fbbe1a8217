"""A start from data: what the loss asks of a fresh adapter, put into it before the first step."""

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
from ..adapter.adapter_layers import Sites, check_heard, find_sites
from ..adapter.systems import get_systems, set_systems
from ..errors import AdapterError, CalibrationError, ConfigError
from .calibration import Calibration
from .calibration_pass import calibrate
from .capture import mean_loss
from .fingerprints import compare, model_tag
from .gradient_hankel import GradientSpectrum

Array: TypeAlias = npt.NDArray[Any]
System: TypeAlias = tuple[Array, Array, Array]

PARTS = ("B", "AB", "ABC")

#: Share of a row of B that comes from data, in energy; the rest is what was there. With all of it a layer
#: with one value above the null would see one direction only, whatever its r.
SHARE = 0.5

#: Tokens that are held back to find the size of C on.
HELD_BACK = 4096

#: First size of C that is tried, where 1 makes the largest Hankel singular value 1, and how often it is
#: doubled.
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
        States that were taken from data; those of a layer that was left as it was are 0.
    gain : float or None
        Size of C, in units of -dL/dH per token; None where C is zero.
    loss_before, loss_after : float or None
        Mean loss over the rows that were held back to find that size.

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
            text += f"\nC: loss on rows held back {self.loss_before:.4f} -> {self.loss_after:.4f}"
        return text


def initialize(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]] | Calibration,
    what: str = "B",
    *,
    adapter_name: str | None = None,
    progress: bool | None = None,
) -> InitializationReport:
    """Set a fresh adapter, in place, from the gradient of the loss with respect to its impulse response.

    In each layer the Hankel operator of -dL/dH is collected, H being the impulse response of a linear
    residual where the adapter stands. Its balanced realisation in modal form gives as many states as it has
    singular values above those of its null (:func:`hankel_spectra`), at most r; r itself stays. Layers
    without any stay as they are.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        With an HRM adapter that adds nothing yet.
    batches : iterable of dict, or Calibration
        For ``model(**batch)``, with labels, in batches of at least three sequences; or what
        :func:`calibrate` made of them with this model, before any adapter was trained.
    what : {"B", "AB", "ABC"}
        "B": poles stay, each row of B is turned half towards the inputs that the loss asks for at its pole.
        "AB": poles and rows of the realisation; the remaining states stay. In both C is zero, and the
        model's output unchanged to the bit. "ABC": its C too, of one size for all layers, the one that is
        best on rows held back from the operator.
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
        There is no such adapter, or it adds something already.
    CalibrationError
        Batches without labels, fewer than three sequences, or a Calibration of another model, or of a
        trained adapter; with "ABC" one without rows held out.
    ConfigError
        Another value of ``what``.

    Notes
    -----
    The parameters are replaced: make the optimizer after this. Rows are of the size they had, poles not
    slower than 0.999. How often this helped, and where it did not: docs/spectra_before_training.md.

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
    sites = find_sites(model, adapter_name)
    _check_fresh(sites)
    if isinstance(batches, Calibration):
        # of any fresh adapter: none of them has a part in the gradients
        calibration = batches
        compare(calibration.model, model_tag(model), "model")
    else:
        held_out = HELD_BACK if what == "ABC" else 0
        calibration = calibrate(
            model, batches, adapter_name=sites.adapter, held_out=held_out, progress=progress
        )
    if what == "ABC":
        check_heard(model, sites)
        if not calibration.held_out:
            raise CalibrationError(
                "the size of C is found on rows that were held out, and this calibration has none; "
                "calibrate with "
                "held_out=4096, and with more than a few rows"
            )
    spectra = _spectra(model, calibration, sites.adapter)
    report = _start_from(model, spectra, what, sites.adapter)
    if what != "ABC":
        return report
    largest = max((float(spectra[i].values[0]) for i, n in report.orders.items() if n), default=0.0)
    return _with_gain(model, calibration.held_out, report, largest, sites.adapter)


def _spectra(model: nn.Module, calibration: Calibration, adapter_name: str) -> dict[int, GradientSpectrum]:
    """Return what the data of a calibration ask of each layer of an adapter."""
    layers = get_systems(model, adapter_name)
    missing = sorted(set(layers) - set(calibration.gradients))
    if missing or not calibration.labels:
        raise CalibrationError(
            f"there are no gradients of layers {missing} in the calibration: it was made with an "
            "adapter that was trained, or elsewhere; calibrate a fresh adapter"
            if missing
            else "there are no gradients in the calibration: its batches had no labels"
        )
    return {i: calibration.gradients[i].spectrum() for i in layers}


def _start_from(
    model: nn.Module, spectra: Mapping[int, GradientSpectrum], what: str, adapter_name: str
) -> InitializationReport:
    """Set poles and rows; "ABC" sets C in the unit of -dL/dH per token."""
    new, significant, orders = {}, {}, {}
    for index, old in get_systems(model, adapter_name).items():
        spectrum = spectra[index]
        significant[index] = spectrum.significant
        orders[index] = min(significant[index], old[0].size)
        if orders[index]:
            found = spectrum.realize(orders[index])
            new[index] = _turned(old, found) if what == "B" else _replaced(old, found, output=what == "ABC")
    if new:
        set_systems(model, new, adapter_name)
    return InitializationReport(what, significant, orders)


def _check_fresh(sites: Sites) -> None:
    for index, system in sites.systems.items():
        if not system.adds_nothing():
            raise AdapterError(
                f"the adapter of layer {index} adds something to the output already: it was trained or "
                f"set, and that "
                "would be lost; attach a fresh one, or add one with add_adapter"
            )


def _turned(old: System, found: System) -> System:
    """Turn rows of B towards the gradient they would get at their pole under a random C."""
    logs, B, C = old
    rng = np.random.default_rng(0)
    own, rows, outs = found
    # sum_k exp(k log_pole) (-dL/dH_k) = outs diag(1 / (1 - pole own_pole)) rows
    gains = 1 / (1 - np.exp(logs[:, None] + own[None]))
    shape = logs.size, outs.shape[0]
    random = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    wanted = (((random @ outs) * gains) @ rows).conj()
    new = B.copy()
    for k in range(logs.size):
        if k and _are_pair(logs, k - 1, k) and logs[k - 1].imag > 0:
            new[k] = new[k - 1].conj()
            continue
        # the row of a real mode is real
        row = wanted[k].real if abs(math.sin(logs[k].imag)) < 1e-12 else wanted[k]
        size = np.linalg.norm(row)
        if size > 0:
            row = math.sqrt(1 - SHARE) * B[k] + math.sqrt(SHARE) * np.linalg.norm(B[k]) / size * row
            new[k] = row * (np.linalg.norm(B[k]) / np.linalg.norm(row))
    return logs, new, np.zeros_like(C)


def _are_pair(logs: Array, i: int, j: int) -> bool:
    return bool(logs[i].imag != 0 and np.isclose(logs[i], logs[j].conj(), rtol=1e-9, atol=0))


def _replaced(old: System, found: System, *, output: bool) -> System:
    """Put found modes, with rows of B of norm 1, in the place of as many old ones."""
    logs, B, C = found
    size = np.linalg.norm(B, axis=1)
    size[size == 0] = 1.0
    B, C = B / size[:, None], C * size
    kept = _modes(old, old[0].size - logs.size)
    # C of what stays is zero, as it is before training
    zero = np.zeros((C.shape[0], kept[0].size))
    return (
        np.concatenate([logs, kept[0]]),
        np.concatenate([B, kept[1]]),
        np.concatenate([C if output else np.zeros_like(C), zero], axis=1),
    )


def _modes(system: System, count: int) -> tuple[Array, Array]:
    """Return that many modes of a system; of a pair that has room for one only, a real one of its modulus."""
    logs, B, _ = system
    poles: list[complex] = []
    rows: list[Array] = []
    k = 0
    while len(poles) < count:
        pair = k + 1 < logs.size and _are_pair(logs, k, k + 1)
        if pair and len(poles) + 2 > count:
            poles, rows = [*poles, complex(logs[k].real)], [*rows, B[k].real.astype(complex)]
        else:
            wide = 2 if pair else 1
            poles, rows = [*poles, *logs[k : k + wide]], [*rows, *B[k : k + wide]]
        k += 2 if pair else 1
    return np.array(poles, dtype=complex), np.array(rows, dtype=complex).reshape(count, B.shape[1])


def _with_gain(
    model: nn.Module,
    rows: Iterable[Mapping[str, Any]],
    report: InitializationReport,
    largest: float,
    adapter_name: str,
) -> InitializationReport:
    """Find the size of C: doubled as long as the loss on the rows held back falls."""
    sites = find_sites(model, adapter_name)
    outputs = {i: system.C.detach().clone() for i, system in sites.systems.items()}

    def set_gain(gain: float) -> None:
        with torch.no_grad():
            for i, system in sites.systems.items():
                system.C.copy_(outputs[i] * gain)

    def loss() -> float:
        return mean_loss(model, sites, rows) or 0.0

    set_gain(0.0)
    before = best = loss()
    gain = 0.0
    if largest > 0:
        for doubling in range(DOUBLINGS):
            tried = SMALLEST * 2**doubling / largest
            set_gain(tried)
            now = loss()
            if not now < best:
                break
            gain, best = tried, now
    set_gain(gain)
    return InitializationReport("ABC", report.significant, report.orders, gain, before, best)
