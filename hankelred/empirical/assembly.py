"""From sampled responses to Gramians, their factors, and how far off they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .._util.arrays import EPS, Array
from .quadrature import gregory_weights
from .triangular_factor import TriangularFactor

#: Which responses make a kind of Gramian, W = rows(left)^H rows(right): of states "x" or outputs "y".
_SIDES = {"controllability": ("x", "x"), "observability": ("y", "y"), "cross": ("x", "y")}

#: For a state that decays more slowly than the windows can see: the tail they foretell is taken this often.
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
    #: by how much what a broadband experiment cuts off is found again, misplaced, in the states
    leakage: float = 0.0
    #: (P, Q), where what is beyond the horizon is known to be the sum over j > 0 of P^j W Q^j, by kind
    beyond: dict[str, tuple[Array, Array]] | None = None


@dataclass
class Assembled:
    """Gramians, factors, and relative errors, split by source."""

    gramians: dict[str, Array] = field(default_factory=dict)
    factors: dict[str, Array] = field(default_factory=dict)
    quadrature: dict[str, float] = field(default_factory=dict)
    tail: dict[str, float] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    #: of the responses themselves
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
    # Errors are measured in the units of each state, which any scaling of the states leaves alone.
    units = {side: np.linalg.norm(rows, axis=0) for side, rows in sides.items()}
    squares = {side: rows.conj().T @ rows for side, rows in sides.items()}
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
        size = _Size(W, units[left], units[right])
        out.quadrature[kind] = _quadrature_error(responses, kind, size)
        out.tail[kind] = _tail_error(responses, kind, size, squares, units)
        # rounding is as large as the terms of the sum; what they leave of each other may be much smaller
        out.rounding[kind] = size.of_share(responses.rounding)
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
class _Size:
    """The measure of relative errors of one Gramian."""

    W: Array
    left: Array
    right: Array

    def of(self, difference: Array) -> float:
        """Largest of the entries in units of their states, and the Frobenius norm against W's."""
        norm, whole = float(np.linalg.norm(difference)), float(np.linalg.norm(self.W))
        if norm == 0:
            return 0.0
        unit = np.outer(self.left, self.right)
        seen = unit > 0
        entries = float((np.abs(difference[seen]) / unit[seen]).max(initial=0.0))
        return max(entries, norm / whole if whole > 0 else math.inf)

    def of_share(self, share: float) -> float:
        """Bound it for a difference known only to be at most ``share`` in units of the states."""
        whole = float(np.linalg.norm(self.W))
        if share == 0 or whole == 0:
            return share
        return share * max(1.0, float(np.linalg.norm(self.left) * np.linalg.norm(self.right)) / whole)


def _quadrature_error(responses: Responses, kind: str, size: _Size) -> float:
    if responses.discrete:
        return 0.0
    samples = next(iter(responses.coarse.values())).shape[-1]
    if samples < 2:
        return math.inf
    over = 2 * samples - 1  # an even number of intervals, one fewer than there are where that is odd
    fine = {side: values[..., :over] for side, values in responses.fine.items()}
    return size.of(
        _gramian(responses, kind, fine, _weights(responses, over))
        - _gramian(responses, kind, responses.coarse, 2 * _weights(responses, samples))
    )


def _tail_error(
    responses: Responses, kind: str, size: _Size, squares: dict[str, Array], units: dict[str, Array]
) -> float:
    """Estimate what is missing from beyond the horizon, and what of it leaks into the responses."""

    def missing(side: str) -> float:
        own = "controllability" if side == "x" else "observability"
        if responses.beyond is None:
            return _decay(responses.fine[side], responses.rounding)
        return _Size(squares[side], units[side], units[side]).of(
            _beyond(squares[side], *responses.beyond[own])
        )

    left, right = _SIDES[kind]
    if responses.beyond is None:
        # |sum x y^H|^2 <= sum |x|^2 sum |y|^2, entry by entry
        tail = size.of_share(math.sqrt(missing(left) * missing(right)))
    else:
        tail = size.of(_beyond(size.W, *responses.beyond[kind]))
    if responses.leakage > 0 and "x" in (left, right):
        # Misplaced, the tail stands beside the response itself: first order in its amplitude.
        share = missing("x")
        tail += size.of_share((left, right).count("x") * responses.leakage * math.sqrt(share) + share)
    return tail


def _beyond(W: Array, P: Array, Q: Array) -> Array:
    # sum over j >= 1 of P^j W Q^j by doubling: terms 1..k, then k+1..2k from them
    total: Array = P @ W @ Q
    for _ in range(60):
        more = P @ total @ Q
        if np.linalg.norm(more) <= EPS * np.linalg.norm(total):
            break
        total = total + more
        P, Q = P @ P, Q @ Q
    return total


def _decay(values: Array, rounding: float) -> float:
    """Estimate the largest share of a state's energy that lies beyond the last sample, from the decay.

    The energy in each of four windows; the slowest of the rates over the last one, two and three of
    them and the highest level they extrapolate to, so that an oscillation that happens to end in a
    node does not look like decay; and a margin for one slower than the windows are long. The rate is
    that of all states together, since the slowest one outlasts the others in all it touches.
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
    together = windows.sum(axis=1)
    last = float(windows[0].max())
    if last <= rounding**2:
        return last  # down at rounding nothing decays any more
    rate = max((together[0] / together[i]) ** (1 / i) if together[i] > 0 else math.inf for i in (1, 2, 3))
    if rate >= 1:
        return math.inf
    level = float(np.max(windows * rate ** np.arange(4)[:, None]))
    return _TAIL_MARGIN * level * rate / (1 - rate)
