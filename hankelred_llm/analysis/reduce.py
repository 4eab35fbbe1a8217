"""Reduction of adapters in place: fewer states, still trainable, with a measured (or certified) error."""

from __future__ import annotations

import html
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import nn

import hankelred
from hankelred import ModalSystem, OrderError, ReductionWarning
from hankelred.errors import count
from hankelred.report.notebook import headed_table

from .._util.progress import progress_bar
from .._util.tables import table
from ..adapter.adapter_layers import AdapterLayers, check_active, find_adapter_layers
from ..adapter.systems import set_systems
from .balancing import balanced, modal_systems, whole_number, with_compressed_io
from .calibration import Calibration, check_calibration
from .candidates import LayerReductionChoice, choose, run_validation_rows
from .capture import mean_loss
from .spectra import HankelSpectra

_NOTHING_HELD_OUT = (
    "the calibration held no rows out to compare candidates on, so the exact ones were taken; calibrate with "
    "held_out=4096, on more than one row"
)


@dataclass(frozen=True)
class LayerReduction:
    """The reduction of one layer.

    Attributes
    ----------
    name : str
        Name of the module.
    full_order, order : int
        Number of states before and after.
    kept : str
        The chosen candidate: "exact", "empirical", "empirical, loss" or "output POD" (see :func:`reduce`);
        "unchanged" where no state was removed.
    bound : float
        Bound on the H-infinity norm of the difference, up to ``rounding``: Glover's bound, twice the sum of
        the singular values left out. inf where the chosen candidate is not the exact one, as there is no
        bound for the others.
    error : float
        The true error: H-infinity norm of the difference between the stored systems before and after.
    rounding : float
        The part of the error due to storing the reduced system in the precision of the parameters.
    norm : float
        H-infinity norm of the system before.
    held_out : dict of float
        For each candidate, the root mean square output error on the validation rows of the calibration,
        relative to the output; inf for an unstable candidate. Empty without calibration.
    """

    name: str
    full_order: int
    order: int
    kept: str
    bound: float
    error: float
    rounding: float
    norm: float
    held_out: dict[str, float] = field(default_factory=dict)

    @property
    def vacuous(self) -> bool:
        """Whether the bound is vacuous: removing the whole layer would not make a larger error."""
        return self.bound >= self.norm > 0


@dataclass(frozen=True, repr=False)
class ReductionReport:
    """The reduction of an adapter; returned by :func:`reduce`. Printing it gives a table.

    Attributes
    ----------
    layers : dict of LayerReduction
        By layer index.
    parameters_before, parameters_after : int
        Numbers of parameters of the adapter.
    loss_before, loss_after : float or None
        Mean loss over the labels of the validation rows of the calibration; None where there are none.
    held_out_rows : int or None
        Number of validation rows that candidates were compared on; None without calibration. 0: the
        calibration has none, so it was not used.
    """

    layers: dict[int, LayerReduction]
    parameters_before: int
    parameters_after: int
    loss_before: float | None = None
    loss_after: float | None = None
    held_out_rows: int | None = None

    @property
    def orders(self) -> dict[int, int]:
        """Number of states of each layer."""
        return {i: layer.order for i, layer in self.layers.items()}

    @property
    def bounds(self) -> dict[int, float]:
        """Bound on the error of each layer."""
        return {i: layer.bound for i, layer in self.layers.items()}

    @property
    def errors(self) -> dict[int, float]:
        """True H-infinity error of each layer."""
        return {i: layer.error for i, layer in self.layers.items()}

    @property
    def parameters_saved(self) -> int:
        """Number of parameters removed."""
        return self.parameters_before - self.parameters_after

    def to_json(self) -> str:
        """Return everything as JSON; infinite values are null."""
        layers = {str(i): {**asdict(layer), "vacuous": layer.vacuous} for i, layer in self.layers.items()}
        numbers = {
            name: getattr(self, name)
            for name in (
                *("parameters_before", "parameters_after"),
                *("loss_before", "loss_after", "held_out_rows"),
            )
        }
        return json.dumps(_without_infinity({"layers": layers, **numbers}), allow_nan=False)

    def __repr__(self) -> str:
        before, after = (
            sum(sizes) for sizes in zip(*((x.full_order, x.order) for x in self.layers.values()), strict=True)
        )
        return f"<ReductionReport of {count(len(self.layers), 'layer')}: {before} -> {after} states>"

    def __str__(self) -> str:
        return "\n".join([table(self._rows()), *self._remarks()])

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        remarks = "".join(f"<div>{html.escape(text)}</div>" for text in self._remarks())
        return headed_table(self._rows()) + remarks

    def _rows(self) -> list[list[str]]:
        validation = any(layer.held_out for layer in self.layers.values())
        heads = ["layer", "states", "candidate", "norm", "bound", "error", "relative bound"]
        rows = [heads + (["held-out error"] if validation else [])]
        for layer in self.layers.values():
            relative_bound = (
                "vacuous"
                if layer.vacuous or math.isinf(layer.bound)
                else f"{layer.bound / (layer.norm or 1):.1%}"
            )
            cells = [
                layer.name,
                f"{layer.full_order} -> {layer.order}",
                layer.kept,
                f"{layer.norm:.3g}",
                f"{layer.bound:.3g}",
                f"{layer.error:.3g}",
                relative_bound,
            ]
            if validation:
                # one of the names has a comma
                cells.append("; ".join(f"{name} {value:.2%}" for name, value in layer.held_out.items()))
            rows.append(cells)
        return rows

    def _remarks(self) -> list[str]:
        lines = [
            f"parameters: {self.parameters_before} -> {self.parameters_after} "
            f"({self.parameters_saved} saved)",
        ]
        if self.loss_before is not None and self.loss_after is not None:
            lines.append(f"loss on held-out rows: {self.loss_before:.4f} -> {self.loss_after:.4f}")
        if self.held_out_rows == 0:
            lines.append(f"not used: {_NOTHING_HELD_OUT}")
        return lines


def reduce(
    model: nn.Module,
    *,
    order: int | None = None,
    tol: float | None = None,
    ranks: Mapping[int, int] | None = None,
    budget: int | None = None,
    calibration: Calibration | None = None,
    adapter_name: str | None = None,
    progress: bool | None = None,
) -> ReductionReport:
    """Reduce an adapter by balanced truncation, in place.

    The layers stay in modal form, so the result is an adapter as before: it can be trained further,
    generates, and is saved with the order of each layer in its configuration. The parameters are replaced:
    create the optimizer after this.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        With an HRM adapter.
    order : int
        Number of states of every layer.
    tol : float
        For every layer the smallest order, of at least 1, whose error bound is at most this.
    ranks : mapping of int to int
        Numbers of states by layer index; other layers stay as they are.
    budget : int
        Number of states over all layers, distributed by one threshold: see
        :meth:`HankelSpectra.suggest_ranks`.
    calibration : Calibration, optional
        Of this model and adapter. The removed directions may then be chosen by the states on the data and by
        the gradient of the loss; for every layer the candidate with the smallest output error on the
        validation rows is chosen. The orders are the same as without it.
    adapter_name : str, optional
        Default: the active adapter.
    progress : bool, optional
        Show bars on stderr. Default: where that is a terminal.

    Returns
    -------
    ReductionReport

    Raises
    ------
    OrderError
        Not exactly one of order, tol, ranks and budget, or an invalid value.
    AdapterError
        No such adapter, parameters that are not finite, or a layer with no diagonal form at its order.
    CalibrationError
        The calibration is of another model or adapter, or of other parameters.

    Warns
    -----
    ReductionWarning
        Layers have fewer states, or fewer singular values above rounding, than were requested, and keep
        those. Or: the calibration has no validation rows, and is not used.

    Notes
    -----
    Candidates: "exact", balanced truncation, to which Glover's bound applies; "empirical", with the
    controllability Gramian of the states on the data; "empirical, loss", also with outputs weighted by the
    gradient of the loss; "output POD", the projection that best preserves C s_t of the states on the data.
    See ``docs/spectra_and_reduction.md`` for their guarantees. The adapter is changed only after all layers
    are computed: an error before that leaves it unchanged.

    Examples
    --------
    >>> import transformers, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=8)
    >>> log_poles, B, _ = hankelred_llm.get_systems(model)[0]
    >>> hankelred_llm.set_systems(model, {0: (log_poles, B, B.conj().T)})  # in place of training
    >>> report = hankelred_llm.reduce(model, ranks={0: 4})
    >>> report.orders, bool(report.errors[0] <= report.bounds[0])
    ({0: 4}, True)
    >>> model.peft_config["default"].rank_pattern
    {'layers.0.mlp': 4}
    """
    rules = {"order": order, "tol": tol, "ranks": ranks, "budget": budget}
    chosen = [name for name, value in rules.items() if value is not None]
    if len(chosen) != 1:
        raise OrderError(
            f"give exactly one of order, tol, ranks and budget, got {' and '.join(chosen) or 'none'}"
        )
    adapter_layers = find_adapter_layers(model, adapter_name)
    if calibration is not None:
        check_calibration(calibration)
        check_active(model, adapter_layers)
        calibration.check(model, adapter_layers.adapter)
    full = modal_systems(model, adapter_layers)
    compressed = {i: with_compressed_io(system) for i, system in full.items()}
    exact = {i: balanced(system) for i, system in compressed.items()}
    orders = _orders(exact, adapter_layers, order=order, tol=tol, ranks=ranks, budget=budget)
    validation = None if calibration is None else run_validation_rows(model, adapter_layers, calibration)
    if calibration is not None and validation is None:
        warnings.warn(_NOTHING_HELD_OUT, ReductionWarning, stacklevel=2)
    shrunk = [i for i, n in orders.items() if n < compressed[i].n_states]
    choices = {
        i: choose(i, compressed[i], exact[i], orders[i], calibration, validation)
        for i in progress_bar(shrunk, "reducing", progress)
    }
    before = _parameters(adapter_layers)
    # with all inputs and outputs of the layer again
    reduced = {i: choice.expanded(full[i]) for i, choice in choices.items()}
    set_systems(model, reduced, adapter_layers.adapter)
    adapter_layers = find_adapter_layers(model, adapter_layers.adapter)
    stored = modal_systems(model, adapter_layers)
    layers = {
        i: _layer(adapter_layers.names[i], full[i], compressed[i], stored[i], reduced.get(i), choices.get(i))
        for i in progress_bar(list(orders), "measuring", progress)
    }
    after = _parameters(adapter_layers)
    if calibration is None:
        return ReductionReport(layers, before, after)
    losses = (
        (None, None)
        if validation is None
        else (validation.loss, mean_loss(model, adapter_layers, calibration.held_out))
    )
    return ReductionReport(layers, before, after, *losses, held_out_rows=len(calibration.held_out))


def _orders(
    exact: dict[int, hankelred.Reduction],
    adapter_layers: AdapterLayers,
    *,
    order: int | None,
    tol: float | None,
    ranks: Mapping[int, int] | None,
    budget: int | None,
) -> dict[int, int]:
    """Return the order of each layer that is to be reduced."""
    if tol is not None or budget is not None:
        values = {i: value.hankel_singular_values for i, value in exact.items()}
        floors = {i: value.noise_floor for i, value in exact.items()}
        return HankelSpectra(values, floors).suggest_ranks(tol=tol, budget=budget)
    if order is not None:
        ranks = dict.fromkeys(exact, whole_number(order, "order"))
    if not isinstance(ranks, Mapping):
        raise OrderError(f"ranks must be a mapping from layer index to order, got {ranks!r}")
    for i in ranks:
        if i not in exact:
            raise OrderError(
                f"ranks names layer {i!r}; adapter '{adapter_layers.adapter}' has layers "
                f"{', '.join(map(str, exact))}"
            )
    requested = {i: whole_number(n, f"ranks[{i}]") for i, n in sorted(ranks.items())}
    states = {i: exact[i].hankel_singular_values.size for i in requested}
    small = {i: n for i, n in requested.items() if n > states[i]}
    if small:
        warnings.warn(
            "layers have fewer states than requested and keep all that are above rounding: layer(s) "
            + ", ".join(f"{i} with {states[i]} of {n}" for i, n in small.items()),
            ReductionWarning,
            stacklevel=3,
        )
    requested = {i: min(n, states[i]) for i, n in requested.items()}
    orders = {i: min(n, max(1, exact[i].numerical_rank)) for i, n in requested.items()}
    clipped = {i: n for i, n in orders.items() if n < requested[i]}
    if clipped:
        warnings.warn(
            "fewer singular values than requested states are above rounding: layer(s) "
            + ", ".join(f"{i} keep(s) {n} of {requested[i]}" for i, n in clipped.items()),
            ReductionWarning,
            stacklevel=3,
        )
    return orders


def _layer(
    name: str,
    full: ModalSystem,
    compressed: ModalSystem,
    stored: ModalSystem,
    reduced: ModalSystem | None,
    choice: LayerReductionChoice | None,
) -> LayerReduction:
    """Measure the reduction of a layer."""
    norm = hankelred.norm(compressed, "hinf")
    if choice is None or reduced is None:
        return LayerReduction(name, full.n_states, full.n_states, "unchanged", 0.0, 0.0, 0.0, norm)
    return LayerReduction(
        name,
        full.n_states,
        stored.n_states,
        choice.kept,
        choice.bound,
        _distance(full, stored),
        _distance(reduced, stored),
        norm,
        choice.held_out,
    )


def _distance(first: ModalSystem, second: ModalSystem) -> float:
    """Return the H-infinity norm of the difference."""
    first, second = with_compressed_io(first, second)
    poles = np.concatenate([first.log_poles, second.log_poles])
    difference = ModalSystem(
        poles, np.concatenate([first.B, second.B]), np.concatenate([first.C, -second.C], axis=1)
    )
    return hankelred.norm(difference, "hinf")


def _parameters(adapter_layers: AdapterLayers) -> int:
    return sum(p.numel() for system in adapter_layers.systems.values() for p in system.parameters())


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(value) for key, value in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value
