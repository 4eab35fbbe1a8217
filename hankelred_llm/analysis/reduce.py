"""Reducing adapters in place: fewer states, still trainable, with a measured (or certified) loss."""

from __future__ import annotations

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

from .._util.progress import watched
from .._util.tables import table
from ..adapter.adapter_layers import Sites, check_heard, find_sites
from ..adapter.systems import set_systems
from .balancing import balanced, modal_systems, whole_number, with_few_ports
from .calibration import Calibration, check_calibration
from .candidates import Plan, choose, hold
from .capture import mean_loss
from .spectra import HankelSpectra

_NOTHING_HELD_OUT = (
    "the calibration held no rows out to compare candidates on, so the exact ones were taken; calibrate with "
    "held_out=4096, on more than one row"
)


@dataclass(frozen=True)
class LayerReduction:
    """What became of one layer.

    Attributes
    ----------
    name : str
        Of the module.
    full_order, order : int
        Number of states before and after.
    kept : str
        Which candidate: "exact", "empirical", "empirical, loss" or "output POD" (see :func:`reduce`);
        "unchanged" where no state was left out.
    bound : float
        No input is amplified by (before minus after) by more than this, up to ``rounding``: Glover's bound,
        twice the sum of the singular values left out. inf where the kept candidate is not the exact one:
        nothing is proved of the others.
    error : float
        The true error, the H-infinity norm of the difference between the systems before and after as they are
        stored.
    rounding : float
        The part of it that storing the reduced system in the precision of the parameters makes.
    norm : float
        H-infinity norm of the system before.
    held_out : dict of float
        For each candidate, the root mean square error of the output on the rows that the calibration held
        out, relative to the output; inf for an unstable candidate. Empty without calibration.
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
        """Whether the bound says nothing: leaving the whole layer out would make no larger error."""
        return self.bound >= self.norm > 0


@dataclass(frozen=True)
class ReductionReport:
    """What a reduction did to an adapter; made by :func:`reduce`. Printing it gives a table.

    Attributes
    ----------
    layers : dict of LayerReduction
        By layer index.
    parameters_before, parameters_after : int
        Of the adapter.
    loss_before, loss_after : float or None
        Mean loss over the labels of the rows that the calibration held out; None where there are none.
    held_out_rows : int or None
        Rows that the candidates were compared on; None without calibration. 0: the calibration held none
        out, so it was not used.
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
        """How many parameters the adapter has less."""
        return self.parameters_before - self.parameters_after

    def to_json(self) -> str:
        """Return everything as JSON; what is infinite is null."""
        layers = {str(i): {**asdict(layer), "vacuous": layer.vacuous} for i, layer in self.layers.items()}
        numbers = {
            name: getattr(self, name)
            for name in (
                *("parameters_before", "parameters_after"),
                *("loss_before", "loss_after", "held_out_rows"),
            )
        }
        return json.dumps(_without_infinity({"layers": layers, **numbers}), allow_nan=False)

    def __str__(self) -> str:
        held = any(layer.held_out for layer in self.layers.values())
        heads = ["layer", "states", "kept", "norm", "bound", "error", "bound says"]
        rows = [heads + (["held-out error"] if held else [])]
        for layer in self.layers.values():
            says = (
                "nothing"
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
                says,
            ]
            if held:
                # one of the names has a comma
                cells.append("; ".join(f"{name} {value:.2%}" for name, value in layer.held_out.items()))
            rows.append(cells)
        lines = [
            table(rows),
            f"parameters: {self.parameters_before} -> {self.parameters_after} "
            f"({self.parameters_saved} saved)",
        ]
        if self.loss_before is not None and self.loss_after is not None:
            lines.append(f"loss on held-out rows: {self.loss_before:.4f} -> {self.loss_after:.4f}")
        if self.held_out_rows == 0:
            lines.append(f"not used: {_NOTHING_HELD_OUT}")
        return "\n".join(lines)


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

    The layers keep their modal form, so the result is an adapter as before: it trains on, generates, and is
    saved with the order of each layer in its configuration. Make the optimizer anew, the parameters are
    others.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        With an HRM adapter.
    order : int
        States of every layer.
    tol : float
        For every layer the smallest order, of at least 1, whose error bound is at most this.
    ranks : mapping of int to int
        States by layer index; layers that are not named stay.
    budget : int
        States over all layers, given out by one threshold for all: see :meth:`HankelSpectra.suggest_ranks`.
    calibration : Calibration, optional
        Of this model and adapter. The directions that are left out may then be chosen by what the data
        excite and the loss feels; for every layer the candidate with the smallest output error on the rows
        that were held out is kept. The orders are those without it.
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
        Not exactly one of order, tol, ranks and budget, or a value that makes no sense.
    AdapterError
        No such adapter, parameters that are not finite, or a layer with no diagonal form at its order.
    CalibrationError
        The calibration is of another model or adapter, or of other parameters.

    Warns
    -----
    ReductionWarning
        Layers have fewer states that do anything than were asked for, and keep those. Or: the calibration
        held no rows out, and is not used.

    Notes
    -----
    Candidates: "exact", balanced truncation, to which Glover's bound applies; "empirical", with the
    controllability Gramian of the states in the data; "empirical, loss", also with the outputs weighted by
    what the loss feels; "output POD", the projection that best keeps C s_t of the states in the data. See
    ``docs/spectra_and_reduction.md`` for what is certain of them. The adapter is changed at once, after
    everything is decided: what fails before that leaves it as it was.

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
    given = {"order": order, "tol": tol, "ranks": ranks, "budget": budget}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise OrderError(
            f"give exactly one of order, tol, ranks and budget, got {' and '.join(chosen) or 'none'}"
        )
    sites = find_sites(model, adapter_name)
    if calibration is not None:
        check_calibration(calibration)
        check_heard(model, sites)
        calibration.check(model, sites.adapter)
    full = modal_systems(model, sites)
    few = {i: with_few_ports(system) for i, system in full.items()}
    exact = {i: balanced(system) for i, system in few.items()}
    wanted = _orders(exact, sites, order=order, tol=tol, ranks=ranks, budget=budget)
    held = None if calibration is None else hold(model, sites, calibration)
    if calibration is not None and held is None:
        warnings.warn(_NOTHING_HELD_OUT, ReductionWarning, stacklevel=2)
    shrunk = [i for i, n in wanted.items() if n < few[i].n_states]
    plans = {
        i: choose(i, few[i], exact[i], wanted[i], calibration, held)
        for i in watched(shrunk, "reducing", progress)
    }
    before = _parameters(sites)
    # in all the ports of the layer again, by the projection
    small = {i: plan.expanded(full[i]) for i, plan in plans.items()}
    set_systems(model, small, sites.adapter)
    sites = find_sites(model, sites.adapter)
    stored = modal_systems(model, sites)
    layers = {
        i: _layer(sites.names[i], full[i], few[i], stored[i], small.get(i), plans.get(i))
        for i in watched(list(wanted), "measuring", progress)
    }
    after = _parameters(sites)
    if calibration is None:
        return ReductionReport(layers, before, after)
    losses = (None, None) if held is None else (held.loss, mean_loss(model, sites, calibration.held_out))
    return ReductionReport(layers, before, after, *losses, held_out_rows=len(calibration.held_out))


def _orders(
    exact: dict[int, hankelred.Reduction],
    sites: Sites,
    *,
    order: int | None,
    tol: float | None,
    ranks: Mapping[int, int] | None,
    budget: int | None,
) -> dict[int, int]:
    """Return the order of each layer that is to be reduced."""
    if tol is not None or budget is not None:
        values = {i: one.hankel_singular_values for i, one in exact.items()}
        floors = {i: one.noise_floor for i, one in exact.items()}
        return HankelSpectra(values, floors).suggest_ranks(tol=tol, budget=budget)
    if order is not None:
        ranks = dict.fromkeys(exact, whole_number(order, "order"))
    if not isinstance(ranks, Mapping):
        raise OrderError(f"ranks must be a mapping from layer index to order, got {ranks!r}")
    for i in ranks:
        if i not in exact:
            raise OrderError(
                f"ranks names layer {i!r}; adapter '{sites.adapter}' has layers {', '.join(map(str, exact))}"
            )
    asked = {i: whole_number(n, f"ranks[{i}]") for i, n in sorted(ranks.items())}
    asked = {i: min(n, exact[i].hankel_singular_values.size) for i, n in asked.items()}
    orders = {i: min(n, max(1, exact[i].numerical_rank)) for i, n in asked.items()}
    clipped = {i: n for i, n in orders.items() if n < asked[i]}
    if clipped:
        warnings.warn(
            "fewer singular values than states asked for are above rounding: layer(s) "
            + ", ".join(f"{i} keep(s) {n} of {asked[i]}" for i, n in clipped.items()),
            ReductionWarning,
            stacklevel=3,
        )
    return orders


def _layer(
    name: str,
    full: ModalSystem,
    few: ModalSystem,
    stored: ModalSystem,
    small: ModalSystem | None,
    plan: Plan | None,
) -> LayerReduction:
    """Measure what was done to a layer."""
    norm = hankelred.norm(few, "hinf")
    if plan is None or small is None:
        return LayerReduction(name, full.n_states, full.n_states, "unchanged", 0.0, 0.0, 0.0, norm)
    return LayerReduction(
        name,
        full.n_states,
        stored.n_states,
        plan.kept,
        plan.bound,
        _distance(full, stored),
        _distance(small, stored),
        norm,
        plan.held_out,
    )


def _distance(first: ModalSystem, second: ModalSystem) -> float:
    """Return the H-infinity norm of the difference."""
    one, other = with_few_ports(first, second)
    poles = np.concatenate([one.log_poles, other.log_poles])
    difference = ModalSystem(
        poles, np.concatenate([one.B, other.B]), np.concatenate([one.C, -other.C], axis=1)
    )
    return hankelred.norm(difference, "hinf")


def _parameters(sites: Sites) -> int:
    return sum(p.numel() for system in sites.systems.values() for p in system.parameters())


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isinf(value) else value
