"""From sampled responses to Gramians, their factors, and how far off they may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ._quadrature import gregory_weights
from .estimator import TriangularFactor
from .models import Array

_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class Responses:
    """Normalised responses on a uniform grid; the first axis is the variant (scale and sign).

    ``states`` (v, m, n, T) are impulse responses of the states, ``outputs`` (v, n, p, T) responses of
    the outputs to unit initial states. The coarse ones come from every second sample, over an even
    number of intervals; None in discrete time, where a sum has no quadrature error.
    """

    step: float
    discrete: bool
    states: Array | None = None
    outputs: Array | None = None
    coarse_states: Array | None = None
    coarse_outputs: Array | None = None
    #: relative rounding error to expect of the responses
    rounding: float = 100 * _EPS
    #: (P, Q) with the contribution beyond the horizon being sum_j>0 P^j W Q^j, by kind; None: not known
    beyond: dict[str, tuple[Array, Array]] | None = None


@dataclass
class Assembled:
    """Gramians, factors, and relative errors, split by source."""

    gramians: dict[str, Array] = field(default_factory=dict)
    factors: dict[str, Array] = field(default_factory=dict)
    quadrature: dict[str, float] = field(default_factory=dict)
    tail: dict[str, float] = field(default_factory=dict)
    rounding: float = 0.0

    def error(self, kind: str) -> float:
        """Return the relative error estimate of a kind, all sources together."""
        return self.quadrature[kind] + self.tail[kind] + self.rounding


def assemble(responses: Responses, kinds: tuple[str, ...]) -> Assembled:
    """Integrate the responses."""
    out = Assembled(rounding=responses.rounding)
    products: dict[str, Callable[[Array | None, Array | None, Array], Array]] = {
        "controllability": lambda x, y, w: _product(_state_rows(_given(x), w)),
        "observability": lambda x, y, w: _product(_output_rows(_given(y), w)),
        "cross": lambda x, y, w: _cross(_given(x), _given(y), w),
    }
    # Errors are measured in the units of each state, which any scaling of the states leaves alone.
    units = {}
    if responses.states is not None:
        units["x"] = _diagonal(_state_rows(responses.states, _weights(responses, responses.states)))
    if responses.outputs is not None:
        units["y"] = _diagonal(_output_rows(responses.outputs, _weights(responses, responses.outputs)))
    sides = {"controllability": "xx", "observability": "yy", "cross": "xy"}
    decay = {
        side: _decay(values, units[side], axis, responses.rounding)
        for side, values, axis in (("x", responses.states, 2), ("y", responses.outputs, 1))
        if values is not None
    }
    for kind in kinds:
        fine = responses.states if kind != "observability" else responses.outputs
        weights = _weights(responses, _given(fine))
        if kind == "cross":
            W = _cross(_given(responses.states), _given(responses.outputs), weights)
        else:
            make = _state_rows if kind == "controllability" else _output_rows
            triangle = TriangularFactor(_given(fine).shape[2 if kind == "controllability" else 1])
            triangle.push(make(_given(fine), weights))
            L = triangle.triangle.conj().T
            out.factors[kind] = L
            W = L @ L.conj().T
        out.gramians[kind] = W
        left, right = (units[side] for side in sides[kind])

        def relative(difference: Array, W: Array = W, left: Array = left, right: Array = right) -> float:
            return _relative(difference, W, left, right)

        out.quadrature[kind] = _quadrature_error(responses, products[kind], relative)
        if responses.beyond is not None:
            out.tail[kind] = relative(_beyond(W, *responses.beyond[kind]))
        else:
            # |sum x y^H| <= sqrt(sum |x|^2 sum |y|^2), entry by entry
            share = math.sqrt(decay[sides[kind][0]] * decay[sides[kind][1]])
            size = np.linalg.norm(W)
            whole = share * float(np.linalg.norm(left) * np.linalg.norm(right))
            out.tail[kind] = max(share, whole / float(size) if size > 0 else 0.0)
    return out


def _given(values: Array | None) -> Array:
    if values is None:
        raise TypeError("responses of this kind were not computed")
    return values


def _weights(responses: Responses, values: Array) -> Array:
    samples = values.shape[-1]
    return np.ones(samples) if responses.discrete else gregory_weights(samples) * responses.step


def _state_rows(states: Array, weights: Array) -> Array:
    variants, _, n, _ = states.shape
    scaled = states.conj() * np.sqrt(weights / variants)
    return scaled.transpose(0, 1, 3, 2).reshape(-1, n)


def _output_rows(outputs: Array, weights: Array) -> Array:
    variants, n, _, _ = outputs.shape
    scaled = outputs * np.sqrt(weights / variants)
    return scaled.transpose(0, 2, 3, 1).reshape(-1, n)


def _product(rows: Array) -> Array:
    return rows.conj().T @ rows


def _diagonal(rows: Array) -> Array:
    return np.linalg.norm(rows, axis=0)


def _cross(states: Array, outputs: Array, weights: Array) -> Array:
    # The sum over all pairs of variants is the product of the two means.
    x = states.mean(axis=0) * weights
    y = outputs.mean(axis=0)
    return np.tensordot(x, y, axes=([0, 2], [1, 2]))


def _quadrature_error(
    responses: Responses,
    product: Callable[[Array | None, Array | None, Array], Array],
    relative: Callable[[Array], float],
) -> float:
    if responses.discrete:
        return 0.0
    coarse = responses.coarse_states if responses.coarse_states is not None else responses.coarse_outputs
    intervals = _given(coarse).shape[-1] - 1
    if intervals < 1:
        return math.inf

    def cut(values: Array | None) -> Array | None:
        return None if values is None else values[..., : 2 * intervals + 1]

    fine = product(
        cut(responses.states), cut(responses.outputs), gregory_weights(2 * intervals + 1) * responses.step
    )
    half = product(
        responses.coarse_states,
        responses.coarse_outputs,
        gregory_weights(intervals + 1) * (2 * responses.step),
    )
    return relative(fine - half)


def _relative(difference: Array, W: Array, left: Array, right: Array) -> float:
    """Largest of the entries in units of their states, and the Frobenius norm against W's."""
    size, whole = float(np.linalg.norm(difference)), float(np.linalg.norm(W))
    if size == 0:
        return 0.0
    unit = np.outer(left, right)
    seen = unit > 0
    entries = float((np.abs(difference[seen]) / unit[seen]).max(initial=0.0))
    return max(entries, size / whole if whole > 0 else math.inf)


def _beyond(W: Array, P: Array, Q: Array) -> Array:
    # sum over j >= 1 of P^j W Q^j by doubling: terms 1..k, then k+1..2k from them
    total: Array = P @ W @ Q
    for _ in range(60):
        more = P @ total @ Q
        if np.linalg.norm(more) <= _EPS * np.linalg.norm(total):
            break
        total = total + more
        P, Q = P @ P, Q @ Q
    return total


def _decay(values: Array, units: Array, state_axis: int, rounding: float) -> float:
    """Estimate the share of the energy that lies beyond the last sample, from how it decays.

    The energy in each of four windows; the slowest of the rates over the last one, two and three of
    them, so that an oscillation that happens to end in a node does not look like decay.
    """
    scale = np.where(units > 0, units, 1.0)
    shape = [1] * values.ndim
    shape[state_axis] = scale.size
    energy = np.sum(np.abs(values / scale.reshape(shape)) ** 2, axis=tuple(range(values.ndim - 1)))
    total = float(energy.sum())
    if total == 0:
        return 0.0
    width = energy.size // 4
    if width == 0:
        return math.inf
    windows = [float(energy[energy.size - (i + 1) * width : energy.size - i * width].sum()) for i in range(4)]
    last = windows[0]
    if last <= rounding**2 * total:
        return last / total  # down at rounding nothing decays any more
    rate = max((last / windows[i]) ** (1 / i) if windows[i] > 0 else math.inf for i in (1, 2, 3))
    if rate >= 1:
        return math.inf
    # share of the sum over states; each state's own share is at most `scale.size` times as large
    return last * rate / (1 - rate) / total * scale.size
