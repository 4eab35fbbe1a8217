"""Read the linear systems of an adapter, and write linear systems into an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import hankelred

from ..errors import AdapterError
from .adapter_layers import find_adapter
from .config import HRMConfig, ModeCounts, names_block
from .layer import HRMLayer
from .system import FASTEST_LOG_DECAY, LOG_RATE_LIMITS, READOUT, SLOWEST_LOG_DECAY, HRMSystem, StaticMaps

Array: TypeAlias = npt.NDArray[Any]
System: TypeAlias = tuple[Array, Array, Array]


def get_systems(model: nn.Module, adapter_name: str | None = None) -> dict[int, System]:
    """Return an adapter as linear systems.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        A model with an HRM adapter.
    adapter_name : str, optional
        Default: the active adapter.

    Returns
    -------
    dict of int to (log_poles, B, C)
        By layer index, float64 on the CPU: log_poles (n,), complex, in radians and nepers per token,
        conjugates side by side; B (n, d) and C (d, n), complex, the gate folded into C. The adapter adds
        ``y_t = sum_k Re(C exp(k log_poles) B) x_{t-k}``, k >= 0, to the block's output.

    Raises
    ------
    AdapterError
        There is no such adapter.

    Examples
    --------
    >>> import transformers, hankelred, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    >>> log_poles, B, C = hankelred_llm.get_systems(model)[1]
    >>> log_poles.shape, B.shape, C.shape
    ((4,), (4, 16), (16, 4))
    >>> hankelred.hankel_singular_values(hankelred.ModalSystem(log_poles, B, C)).shape
    (4,)
    """
    name, layers = find_adapter(model, adapter_name)
    return {layer.index: _complex_system(layer.system(name)) for layer in layers}


def set_systems(model: nn.Module, systems: Mapping[int, Any], adapter_name: str | None = None) -> None:
    """Write linear systems into an adapter, in place: the inverse of :func:`get_systems`.

    Orders may differ from the previous ones; the configuration is updated, so that the adapter is saved and
    loaded as usual. The gate becomes 1. The parameters are replaced: create the optimizer after this.

    Static readouts and the direct term of ``feedthrough`` stay what they are: where B of the state changes,
    or C of a direct term, they get maps of their own.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
        A model with an HRM adapter.
    systems : mapping of int to system
        By layer index; other layers stay as they are. A system is a tuple (log_poles, B, C) as
        :func:`get_systems` gives it, a :class:`hankelred.ModalSystem`, a :class:`hankelred.Reduction`, or any
        stable discrete-time model that :func:`hankelred.modal_form` takes, with d inputs, d outputs and no
        feedthrough: its A, B and C are taken.
    adapter_name : str, optional
        Default: the active adapter.

    Raises
    ------
    AdapterError
        No such adapter or layer, or a system that is not stable, not in discrete time, or has other sizes.

    Notes
    -----
    A real pole whose B and C cannot both be made real takes two states, as a conjugate pair does.

    Examples
    --------
    >>> import numpy as np, transformers, hankelred, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=8)
    >>> rng = np.random.default_rng(0)
    >>> large = hankelred.ModalSystem([-0.1, -0.2, -0.4], rng.normal(size=(3, 16)), rng.normal(size=(16, 3)))
    >>> hankelred_llm.set_systems(model, {1: hankelred.reduce(large, 2)})
    >>> model.peft_config["default"].rank_pattern
    {'layers.1.mlp': 2}
    """
    if not isinstance(systems, Mapping):
        raise AdapterError(
            f"systems must be a mapping from layer index to system, as get_systems returns, got a "
            f"{type(systems).__name__}"
        )
    name, layers = find_adapter(model, adapter_name)
    by_index = {layer.index: layer for layer in layers}
    for index in systems:
        if index not in by_index:
            raise AdapterError(
                f"adapter '{name}' has no layer {index!r}; it has layers {', '.join(map(str, by_index))}"
            )
    # all are read before any is written
    real_systems = {i: _real_system(_read_system(s, i, by_index[i].width)) for i, s in systems.items()}
    config = cast(dict[str, HRMConfig], model.peft_config)[name]
    parents = {id(module): key.rpartition(".")[0] for key, module in model.named_modules()}
    for index, system in real_systems.items():
        layer = by_index[index]
        _replace_system(layer, name, system)
        _update_config(config, f"{parents[id(layer)]}.{layer.block}", system, layer.system(name).static.rank)


class _RealSystem(NamedTuple):
    """A system in the order of the layer's real channels: pairs, then positive and negative real modes."""

    log_decay: Array  # (modes,)
    phase: Array  # (pairs,)
    negative: int
    B: Array  # (order, d)
    C: Array  # (d, order)

    @property
    def modes(self) -> ModeCounts:
        return ModeCounts(order=self.B.shape[0], pairs=self.phase.size, negative=self.negative)


def _complex_system(system: HRMSystem) -> System:
    def numpy(tensor: torch.Tensor) -> Array:
        return tensor.detach().double().cpu().numpy()

    pairs, negative = system.modes.pairs, system.modes.negative
    B = numpy(system.B)
    C = numpy(system.gate) * numpy(system.C) * (1.0 if system.m is None else numpy(system.m))
    decay = -np.exp(np.clip(numpy(system.log_rate), *LOG_RATE_LIMITS))
    phase = np.zeros(0) if system.phase is None else numpy(system.phase)
    real = decay[pairs:] + 1j * np.pi * (np.arange(decay.size - pairs) >= decay.size - pairs - negative)
    upper = decay[:pairs] + 1j * phase
    B_upper = B[:pairs] + 1j * B[pairs : 2 * pairs]
    C_upper = (C[:, :pairs] - 1j * C[:, pairs : 2 * pairs]) / 2
    d = B.shape[1]
    # (pairs, 2, ...) flattened: conjugates side by side
    log_poles = np.concatenate([np.stack([upper, upper.conj()], 1).ravel(), real])
    B_pairs = np.stack([B_upper, B_upper.conj()], 1).reshape(2 * pairs, d)
    C_pairs = np.stack([C_upper, C_upper.conj()], 2).reshape(d, 2 * pairs)
    B_all = np.concatenate([B_pairs, B[2 * pairs :]])
    C_all = np.concatenate([C_pairs, C[:, 2 * pairs :]], 1)
    return log_poles, B_all, C_all


def _read_system(system: Any, index: int, width: int) -> System:
    """Return any kind of system as (log_poles, B, C).

    Raises
    ------
    AdapterError
        It is not a stable discrete-time system of this width without feedthrough.
    """
    D: Array = np.zeros(0)
    if isinstance(system, tuple) and len(system) == 3:
        log_poles, B, C = (np.asarray(part, dtype=complex) for part in system)
    else:
        if isinstance(system, hankelred.Reduction):
            system = system.system
        try:
            modal = system if isinstance(system, hankelred.ModalSystem) else hankelred.modal_form(system)
        except hankelred.HankelredError as error:
            raise AdapterError(f"layer {index}: {error}") from error
        if not modal.dt:
            raise AdapterError(
                f"layer {index}: the system has dt={modal.dt}, and an adapter steps once per token: it must "
                "be in discrete time (dt=True); discretize it first"
            )
        log_poles, B, C, D = modal.log_poles, modal.B, modal.C, modal.D
    if log_poles.ndim != 1 or B.shape != (log_poles.size, width) or C.shape != (width, log_poles.size):
        raise AdapterError(
            f"layer {index}: log_poles, B and C have shapes {log_poles.shape}, {B.shape} and {C.shape}; "
            f"expected (n,), (n, {width}) and ({width}, n)"
        )
    if log_poles.size == 0:
        raise AdapterError(f"layer {index}: the system has no states; an adapter has at least one")
    if np.any(D):
        raise AdapterError(
            f"layer {index}: the system has a feedthrough D of size {np.abs(D).max():.2g}, for which an "
            "adapter has no parameters; reduce with method='truncation', which keeps D = 0"
        )
    for label, ok in (
        ("log_poles", np.isfinite(log_poles.imag) & ~np.isnan(log_poles.real) & (log_poles.real < np.inf)),
        ("B", np.isfinite(B)),
        ("C", np.isfinite(C)),
    ):
        if not np.all(ok):
            raise AdapterError(f"layer {index}: {label} has entries that are not finite")
    if np.any(log_poles.real >= 0):
        raise AdapterError(
            f"layer {index}: the system is not stable: its largest pole has modulus "
            f"{math.exp(log_poles.real.max()):.9g}; an adapter needs all below 1"
        )
    return log_poles, B, C


def _real_system(system: System) -> _RealSystem:
    """Sort the modes into conjugate pairs and real ones."""
    log_poles, B, C = system
    positive: list[tuple[float, Array, Array]] = []
    negative: list[tuple[float, Array, Array]] = []
    paired: list[tuple[complex, Array, Array]] = []
    remaining = list(range(log_poles.size))
    while remaining:
        i = remaining.pop(0)
        pole, b, c = log_poles[i], B[i], C[:, i]
        half_turns = pole.imag / math.pi
        if abs(half_turns - round(half_turns)) <= 1e-12:
            real_b, real_c = _with_real_row(b, c)
            if not np.any(real_b.imag) and not np.any(real_c.imag):
                single = negative if round(half_turns) % 2 else positive
                single.append((pole.real, real_b.real, real_c.real))
                continue
        partner = next((j for j in remaining if _conjugate(log_poles, B, C, i, j)), None)
        if partner is not None:
            remaining.remove(partner)
            c = 2 * c
        paired.append((pole, b, c))
    poles = np.array([p for p, _, _ in paired], dtype=complex)
    real = positive + negative
    decay = np.concatenate([poles.real, [p for p, _, _ in real]])
    rows = [b.real for _, b, _ in paired] + [b.imag for _, b, _ in paired] + [b for _, b, _ in real]
    outs = [c.real for _, _, c in paired] + [-c.imag for _, _, c in paired] + [c for _, _, c in real]
    decay = np.clip(decay, FASTEST_LOG_DECAY, SLOWEST_LOG_DECAY)
    return _RealSystem(decay, poles.imag, len(negative), np.array(rows), np.array(outs).T)


def _with_real_row(b: Array, c: Array) -> tuple[Array, Array]:
    """Divide b and multiply c by a phase factor so that the largest entry of b is real."""
    largest = b[np.argmax(np.abs(b))]
    if largest.imag == 0:
        return b, c
    rotation = largest / abs(largest)
    return _without_rounding(b / rotation), _without_rounding(c * rotation)


def _without_rounding(a: Array) -> Array:
    rounding = 64 * np.finfo(float).eps * np.abs(a).max(initial=0.0)
    return a.real.astype(complex) if np.all(np.abs(a.imag) <= rounding) else a


def _conjugate(log_poles: Array, B: Array, C: Array, i: int, j: int) -> bool:
    def same(a: Array, b: Array) -> bool:
        return bool(np.all(np.abs(a - b.conj()) <= 1e-9 * np.abs(a).max(initial=0.0)))

    near = abs(log_poles[i].real - log_poles[j].real) <= 1e-9 * abs(log_poles[i].real)
    angle = math.remainder(log_poles[i].imag + log_poles[j].imag, 2 * math.pi)
    return near and abs(angle) <= 1e-9 and same(B[i], B[j]) and same(C[:, i], C[:, j])


def _replace_system(layer: HRMLayer, name: str, real_system: _RealSystem) -> None:
    old = layer.system(name)
    static, maps = _static_maps(old, real_system)
    new = HRMSystem(old.width, real_system.modes, static, dtype=old.B.dtype, device=old.B.device)
    maps |= {
        "log_rate": np.log(-real_system.log_decay),
        "phase": real_system.phase,
        "B": real_system.B,
        "gate": np.ones(1),
    }
    maps.setdefault("C", real_system.C)
    with torch.no_grad():
        for key, parameter in new.named_parameters():
            value = maps[key]
            parameter.copy_(value if isinstance(value, torch.Tensor) else torch.from_numpy(value))
    new.requires_grad_(old.B.requires_grad)
    new.train(old.training)
    layer.hrm_system[name] = new


def _static_maps(old: HRMSystem, real_system: _RealSystem) -> tuple[StaticMaps, dict[str, Any]]:
    """Return the static parts of a system with another state, and parameters that keep their outputs.

    They share the input map of the state while it is the same, or while they are zero, as in an untrained
    adapter.
    """
    readouts = {key: p.detach() for key, p in old.named_parameters() if key.startswith(READOUT)}
    if not old.static.readouts and not old.static.feedthrough:
        return StaticMaps(), {}
    if old.static_B is not None:
        return old.static, readouts | {"static_B": old.static_B, "static_C": old.static_C}
    shared = old.static._replace(rank=None)
    order = real_system.modes.order
    if old.static_is_zero() and not (old.m is not None and np.any(real_system.C)):
        zeros = {key: value.new_zeros(len(value), order) for key, value in readouts.items()}
        return shared, zeros | {"m": torch.ones(order)}
    before, direct = _real_system(_complex_system(old)), (old.gate * old.C).detach()
    if np.array_equal(before.B, real_system.B):
        if old.m is None:
            return shared, readouts
        if np.array_equal(before.C, real_system.C):
            return shared, readouts | {"C": direct, "m": old.m.detach()}
    own_maps = old.static._replace(rank=old.modes.order)
    return own_maps, readouts | {"static_B": old.B.detach(), "static_C": direct}


def _update_config(
    config: HRMConfig, module_name: str, real_system: _RealSystem, static_rank: int | None
) -> None:
    """Write the order of a layer into the configuration, where it differs from the default."""
    key = ".".join(module_name.split(".")[-3:])
    for pattern in (config.rank_pattern, config.mode_pattern, config.static_pattern):
        for name in [name for name in pattern if names_block(name, module_name)]:
            del pattern[name]
    modes = real_system.modes
    if config.r != modes.order:
        config.rank_pattern[key] = modes.order
    if config.modes_of(module_name) != modes:
        config.mode_pattern[key] = [modes.pairs, modes.negative]
    if static_rank is not None:
        config.static_pattern[key] = static_rank
