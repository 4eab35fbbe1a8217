"""Integrate sampled responses to Gramians and their factors, with error estimates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .._util.arrays import EPS, Array
from .quadrature import gregory_weights
from .triangular_factor import TriangularFactor

#: Which responses make a kind of Gramian, W = rows(left)^H rows(right): of states "x" or outputs "y".
_SIDES = {"controllability": ("x", "x"), "observability": ("y", "y"), "cross": ("x", "y")}

#: Safety factor on the extrapolated tail, for a state that decays more slowly than the windows can resolve.
_TAIL_MARGIN = 2.0


@dataclass(frozen=True)
class Responses:
    """Normalised responses on a uniform grid.

    ``fine`` has, under "x", impulse responses of the states (v, m, n, T) and, under "y", responses of
    the outputs to unit initial states (v, p, n, T); the first axis is the variant (scale and sign).
    ``coarse`` has the same from every second sample alone; it is empty in discrete time, where a sum
    has no quadrature error.
    """

    step: float
    discrete: bool
    fine: dict[str, Array]
    coarse: dict[str, Array]
    #: relative rounding error to expect of the responses
    rounding: float = 100 * EPS
    #: factor by which the amplitude that a broadband experiment cuts off reappears as an error of the states
    leakage: float = 0.0
    #: (P, Q) by kind, where the part beyond the horizon is known to be the sum over j > 0 of P^j W Q^j
    beyond: dict[str, tuple[Array, Array]] | None = None


@dataclass
class Assembled:
    """Gramians, factors, and relative errors, split by source."""

    gramians: dict[str, Array] = field(default_factory=dict)
    factors: dict[str, Array] = field(default_factory=dict)
    quadrature: dict[str, float] = field(default_factory=dict)
    tail: dict[str, float] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    #: relative rounding error of the responses
    response_rounding: float = 0.0

    def error(self, kind: str) -> float:
        """Return the error estimate of a kind, all sources together, relative to the exact Gramian."""
        of_computed = self.quadrature[kind] + self.tail[kind] + self.rounding[kind]
        return of_computed / (1 - of_computed) if of_computed < 1 else math.inf


def assemble(responses: Responses, kinds: tuple[str, ...]) -> Assembled:
    """Integrate the responses."""
    out = Assembled(response_rounding=responses.rounding)
    samples = next(iter(responses.fine.values())).shape[-1]
    weights = _weights(responses, samples)
    sides = {side: _rows(side, values, weights) for side, values in responses.fine.items()}
    squares = {side: rows.conj().T @ rows for side, rows in sides.items()}
    # Errors are measured in the units of each state, so that they do not depend on the scaling of the states.
    units = {side: np.sqrt(np.diagonal(square).real) for side, square in squares.items()}
    for kind in kinds:
        left, right = _SIDES[kind]
        if kind == "cross":
            W = _gramian(responses, kind, responses.fine, weights)
        else:
            triangle = TriangularFactor(units[left].size)
            triangle.push(sides[left])
            L = triangle.triangle.conj().T
            out.factors[kind] = L
            W = L @ L.conj().T
        out.gramians[kind] = W
        norm = _ErrorNorm(W, units[left], units[right])
        integrated = W if kind == "cross" else squares[left]
        out.quadrature[kind] = _quadrature_error(responses, kind, norm, integrated)
        out.tail[kind] = _tail_error(responses, kind, norm, squares, units)
        # rounding is relative to the terms of the sum, which may cancel to a much smaller result
        out.rounding[kind] = norm.of_share(responses.rounding)
    return out


def _weights(responses: Responses, samples: int) -> Array:
    return np.ones(samples) if responses.discrete else gregory_weights(samples) * responses.step


def _rows(side: str, values: Array, weights: Array) -> Array:
    """Return rows r with r^H r the integral, the mean over the variants: (v * channels * T, n)."""
    # x is a column of the integrand x x^H, y a row of Y^H Y
    scaled: Array = (values.conj() if side == "x" else values) * np.sqrt(weights / values.shape[0])
    return scaled.transpose(0, 1, 3, 2).reshape(-1, values.shape[2])


def _gramian(responses: Responses, kind: str, values: dict[str, Array], weights: Array) -> Array:
    left, right = _SIDES[kind]
    if kind == "cross":
        # The sum over all pairs of variants is the product of the two means.
        values = {side: variants.mean(axis=0, keepdims=True) for side, variants in values.items()}
    rows = {side: _rows(side, values[side], weights) for side in {left, right}}
    return rows[left].conj().T @ rows[right]


@dataclass(frozen=True)
class _ErrorNorm:
    """The norm in which relative errors of one Gramian are measured."""

    W: Array
    left: Array
    right: Array

    def of(self, difference: Array) -> float:
        """Return the largest entry in units of its states, or the relative Frobenius norm if larger."""
        size, W_size = float(np.linalg.norm(difference)), float(np.linalg.norm(self.W))
        if size == 0:
            return 0.0
        unit = np.outer(self.left, self.right)
        nonzero = unit > 0
        entries = float((np.abs(difference[nonzero]) / unit[nonzero]).max(initial=0.0))
        return max(entries, size / W_size if W_size > 0 else math.inf)

    def of_share(self, share: float) -> float:
        """Bound the error for a difference known only to be at most ``share`` in units of the states."""
        W_size = float(np.linalg.norm(self.W))
        if share == 0 or W_size == 0:
            return share
        return share * max(1.0, float(np.linalg.norm(self.left) * np.linalg.norm(self.right)) / W_size)


def _quadrature_error(responses: Responses, kind: str, norm: _ErrorNorm, integrated: Array) -> float:
    """Return the difference from the integral with half of the samples; `integrated` has all of them."""
    if responses.discrete:
        return 0.0
    samples = next(iter(responses.coarse.values())).shape[-1]
    if samples < 2:
        return math.inf
    n_fine = 2 * samples - 1  # an even number of intervals: the last one is left out where it is odd
    if n_fine < next(iter(responses.fine.values())).shape[-1]:
        fine = {side: values[..., :n_fine] for side, values in responses.fine.items()}
        integrated = _gramian(responses, kind, fine, _weights(responses, n_fine))
    return norm.of(integrated - _gramian(responses, kind, responses.coarse, 2 * _weights(responses, samples)))


def _tail_error(
    responses: Responses, kind: str, norm: _ErrorNorm, squares: dict[str, Array], units: dict[str, Array]
) -> float:
    """Estimate the part of the integral beyond the horizon, and how much of it leaks into the responses."""

    def tail_share(side: str) -> float:
        kind_of_side = "controllability" if side == "x" else "observability"
        if responses.beyond is None:
            return _decay(responses.fine[side], responses.rounding)
        return _ErrorNorm(squares[side], units[side], units[side]).of(
            _beyond(squares[side], *responses.beyond[kind_of_side])
        )

    left, right = _SIDES[kind]
    if responses.beyond is None:
        # |sum x y^H|^2 <= sum |x|^2 sum |y|^2, entry by entry
        tail = norm.of_share(math.sqrt(tail_share(left) * tail_share(right)))
    else:
        tail = norm.of(_beyond(norm.W, *responses.beyond[kind]))
    if responses.leakage > 0 and "x" in (left, right):
        # The leaked tail is added to the response itself, so its effect is of first order in its amplitude.
        share = tail_share("x")
        tail += norm.of_share((left, right).count("x") * responses.leakage * math.sqrt(share) + share)
    return tail


def _beyond(W: Array, P: Array, Q: Array) -> Array:
    # sum over j >= 1 of P^j W Q^j by doubling: terms 1..k, then k+1..2k from them
    total: Array = P @ W @ Q
    for _ in range(60):
        increment = P @ total @ Q
        if np.linalg.norm(increment) <= EPS * np.linalg.norm(total):
            break
        total = total + increment
        P, Q = P @ P, Q @ Q
    return total


def _decay(values: Array, rounding: float) -> float:
    """Estimate the largest share of a state's energy that lies beyond the last sample, from the decay.

    The energy is summed over each of four windows. The estimate extrapolates the slowest of the rates over
    the last one, two and three windows from the highest level they give, so that an oscillation that
    happens to end in a node is not taken for decay, and adds a margin for an oscillation slower than the
    windows are long. The rate is that of all states together, since the slowest mode dominates the end of
    every response that contains it.
    """
    width = values.shape[-1] // 4
    if width == 0:
        return math.inf
    energy = np.sum(np.abs(values) ** 2, axis=(0, 1))
    total = energy.sum(axis=-1)
    shares = energy[total > 0] / total[total > 0, None]
    if shares.size == 0:
        return 0.0
    ends = shares.shape[1] - width * np.arange(4)
    windows = np.array([shares[:, end - width : end].sum(axis=-1) for end in ends])
    window_energy = windows.sum(axis=1)
    last = float(windows[0].max())
    if last <= rounding**2:
        return last  # at the level of rounding nothing decays any more
    rate = max(
        (window_energy[0] / window_energy[i]) ** (1 / i) if window_energy[i] > 0 else math.inf
        for i in (1, 2, 3)
    )
    if rate >= 1:
        return math.inf
    level = float(np.max(windows * rate ** np.arange(4)[:, None]))
    return _TAIL_MARGIN * level * rate / (1 - rate)
