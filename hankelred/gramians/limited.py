"""Factors of frequency-limited and time-limited Gramians.

The controllability Gramian is an integral over all frequencies, or over all time. If only a band of
frequencies, or the time up to a horizon, is included, the Gramian measures the response of the states there.
It is computed as a sum L L^H and is therefore positive semidefinite in spite of rounding. The generalized
Lyapunov equations of these Gramians have an indefinite right-hand side, and their solution would lose this
property.

Sources: Gawronski and Juang, Int. J. Systems Sci. 21 (1990); Benner, Kuerschner and Saak, SIAM J. Sci.
Comput. 38 (2016); Kuerschner, Adv. Comput. Math. 44 (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ConvergenceError, ModelError
from ..models.frequency_response import FrequencyResponse
from .smith import compress

#: Bands of angular frequencies, 0 <= low < high, in rad/s (inf allowed) or in radians per sample.
Bands: TypeAlias = Sequence[tuple[float, float]]

#: Gauss nodes in a panel. No panel is longer than the distance of its center to the nearest pole, so that the
#: quadrature error decreases at least by a factor of 13 with every node.
NODES = 12

#: If more panels were necessary, a pole is so close to the stability boundary that it counts as marginal.
MAX_PANELS = 200_000

#: Terms of the series of the exponential of a matrix of norm one: 1 / 21! is below rounding.
TERMS = 21

#: Largest number of columns before compression, as a multiple of the number of states.
MAX_COLUMNS = 6


def whole_axis(*, discrete: bool) -> Bands:
    """Return the band of all frequencies."""
    return [(0.0, math.pi if discrete else math.inf)]


def band_nodes(poles: Array, bands: Bands, *, discrete: bool) -> tuple[Array, Array]:
    """Return frequencies and weights of a quadrature rule over bands, for a response with these poles.

    Panels are halved until none is longer than its distance to the nearest pole. Frequencies beyond twice the
    largest pole are integrated over their inverse, in which the response has no pole nearby.
    """
    with np.errstate(divide="ignore"):
        singular = np.log(poles[poles != 0].astype(complex)) if discrete else poles.astype(complex)
    x, g = np.polynomial.legendre.leggauss(NODES)
    far = max(2 * float(np.abs(singular).max(initial=0.5)), 1e-300)
    frequencies, weights = [], []
    for low, high in bands:
        edges = [low, high]
        if math.isinf(high):
            edges = [low, max(low, far)]
            # w = 1 / t, so that dw = dt / t^2
            half = 0.5 / max(low, far)
            t = half * (1 + x)
            frequencies.append(1 / t)
            weights.append(half * g / t**2)
        panels = _panels(singular, *edges, discrete=discrete) if edges[1] > edges[0] else np.zeros((0, 2))
        center, half_length = panels.mean(axis=1), np.diff(panels, axis=1)[:, 0] / 2
        frequencies.append((center[:, None] + half_length[:, None] * x).ravel())
        weights.append((half_length[:, None] * g).ravel())
    return np.concatenate(frequencies), np.concatenate(weights)


def _panels(singular: Array, low: float, high: float, *, discrete: bool) -> Array:
    """Return panels (k, 2) that cover an interval, none longer than its distance to the nearest pole."""
    pending, done = np.array([[low, high]]), []
    count = 0
    while pending.size:
        center, length = pending.mean(axis=1), np.diff(pending, axis=1)[:, 0]
        long = np.zeros(length.size, dtype=bool)
        for start in range(0, length.size, 256):
            part = slice(start, start + 256)
            difference = 1j * center[part, None] - singular
            if discrete:
                turns = np.round(difference.imag / (2 * math.pi))
                difference = difference - 2j * math.pi * turns
            long[part] = length[part] > np.abs(difference).min(axis=1, initial=np.inf)
        done.append(pending[~long])
        count += len(done[-1])
        if count + int(long.sum()) > MAX_PANELS:
            raise ConvergenceError(
                f"a pole is so close to the band that {MAX_PANELS} panels do not resolve it; increase "
                "stability_tol= so that it counts as marginal and is kept"
            )
        halves = np.stack([pending[long, 0], center[long], center[long], pending[long, 1]], axis=1)
        pending = halves.reshape(-1, 2)
    out = np.concatenate(done)
    return out[np.argsort(out[:, 0])]


def band_factors(A: Array, B: Array, C: Array, bands: Bands, *, discrete: bool) -> tuple[Array, Array]:
    """Return factors of the controllability and the observability Gramian over bands of frequencies.

    Over all frequencies they are factors of the ordinary Gramians. The corresponding negative frequencies are
    included. A must have no pole in the bands; it may be unstable.
    """
    poles = np.linalg.eigvals(A)
    frequencies, weights = band_nodes(poles, bands, discrete=discrete)
    real = not any(np.iscomplexobj(M) for M in (A, B, C))
    if real:
        weights = weights / math.pi  # for both signs of the frequency
    else:
        frequencies = np.concatenate([frequencies, -frequencies])
        weights = np.concatenate([weights, weights]) / (2 * math.pi)
    return (
        _sum_of_responses(A, B, frequencies, weights, discrete=discrete),
        # (s - A)^-H is the response of A^H at the conjugate of s
        _sum_of_responses(A.conj().T, C.conj().T, -frequencies, weights, discrete=discrete),
    )


def _sum_of_responses(A: Array, B: Array, frequencies: Array, weights: Array, *, discrete: bool) -> Array:
    """Return a factor of the weighted sum of (s - A)^-1 B B^H (s - A)^-H; its real part for real A."""
    n, m = B.shape
    if n == 0 or m == 0 or frequencies.size == 0:
        return np.zeros((n, 0), B.dtype)
    real = not (np.iscomplexobj(A) or np.iscomplexobj(B))
    response = FrequencyResponse(A, B, np.eye(n), np.zeros((n, m)), discrete=discrete)
    chunk = max(1, MAX_COLUMNS * n // (2 * m))
    blocks: list[Array] = []
    for start in range(0, frequencies.size, chunk):
        part = slice(start, start + chunk)
        states = response(frequencies[part]) * np.sqrt(weights[part])[:, None, None]
        columns = states.transpose(1, 0, 2).reshape(n, -1)
        if real:
            columns = np.concatenate([columns.real, columns.imag], axis=1)
        blocks.append(columns)
        if sum(block.shape[1] for block in blocks) > MAX_COLUMNS * n:
            blocks = [compress(np.concatenate(blocks, axis=1))]
    return compress(np.concatenate(blocks, axis=1))


def horizon_factors(A: Array, B: Array, C: Array, horizon: float, *, discrete: bool) -> tuple[Array, Array]:
    """Return factors of both Gramians over the time from 0 to a horizon; A may be unstable.

    The horizon is a time in continuous time. In discrete time it is a whole number of samples, the number of
    powers of A in the sum.
    """
    return (
        horizon_factor(A, B, horizon, discrete=discrete),
        horizon_factor(A.conj().T, C.conj().T, horizon, discrete=discrete),
    )


def horizon_factor(A: Array, B: Array, horizon: float, *, discrete: bool) -> Array:
    """Return a factor of the controllability Gramian over the time from 0 to a horizon, by doubling.

    If L is a factor over a time h, [L, e^(Ah) L] is a factor over 2 h.
    """
    n, m = B.shape
    if n == 0 or m == 0:
        return np.zeros((n, 0), B.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        L = _samples_by_doubling(A, B, int(horizon)) if discrete else _time_by_doubling(A, B, horizon)
    if not np.all(np.isfinite(L)):
        raise ModelError(
            f"the response grows beyond double precision within the horizon {horizon:g}: the model is "
            "unstable, so choose a shorter horizon"
        )
    return L


def _time_by_doubling(A: Array, B: Array, horizon: float) -> Array:
    # in a Schur form, because the exponential of a triangular matrix is accurate for slow next to fast poles
    T, Z = sla.schur(A, output="complex", check_finite=False)
    real = not (np.iscomplexobj(A) or np.iscomplexobj(B))
    size = float(np.linalg.norm(T, 1))
    doublings = max(0, math.ceil(math.log2(max(size * horizon, 1.0))))
    step = math.ldexp(horizon, -doublings)
    # |A| step is at most one, so the series of e^(A t) B converges in about twenty products with few columns
    terms = [Z.conj().T @ B]
    for j in range(1, TERMS):
        terms.append((step / j) * (T @ terms[-1]))
    x, g = np.polynomial.legendre.leggauss(NODES)
    powers = ((1 + x) / 2)[:, None] ** np.arange(TERMS)
    samples = np.tensordot(powers * np.sqrt(g * step / 2)[:, None], np.stack(terms), axes=1)
    L = compress(samples.transpose(1, 0, 2).reshape(T.shape[0], -1))
    power = sla.expm(T * step)
    for k in range(doublings):
        if k:
            power = power @ power
            # the exact diagonal is used, because squaring would lose the digits of slow next to fast poles
            np.fill_diagonal(power, np.exp(np.diag(T) * math.ldexp(step, k)))
        shifted = power @ L
        if not np.all(np.isfinite(shifted)):
            return shifted
        L = compress(np.concatenate([L, shifted], axis=1))
    L = Z @ L
    return compress(np.concatenate([L.real, L.imag], axis=1)) if real else L


def _samples_by_doubling(A: Array, B: Array, samples: int) -> Array:
    L, power, done = B, A, 1
    for bit in bin(samples)[3:]:
        L, done = np.concatenate([L, power @ L], axis=1), 2 * done
        power = power @ power
        if bit == "1":
            L, done = np.concatenate([B, A @ L], axis=1), done + 1
            power = power @ A
        if not np.all(np.isfinite(L)):
            return L
        L = compress(L)
    return L
