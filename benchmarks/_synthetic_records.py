"""Records of random processes with known truth: inputs, disturbances and loops of many kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import lfilter

INPUTS = ("white", "binary", "steps", "low", "sines")
DISTURBANCES = ("white", "ar", "slow", "resonant", "ma", "drift")


@dataclass(frozen=True)
class SyntheticRecord:
    """Two halves of a record, the output of the process alone on the second, and what it is."""

    u: Any
    y: Any
    test_u: Any
    test_y: Any
    test_clean: Any
    order: int
    delay: int
    description: str
    #: the disturbance of the first half, and (A, B, C, D)
    disturbance: Any
    process: Any

    @property
    def samples(self) -> int:
        return int(self.u.shape[1])


def random_record(seed: int) -> SyntheticRecord:
    rng = np.random.default_rng(seed)
    p, m = [(1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (2, 2), (4, 4)][rng.integers(7)]
    n = int(rng.integers(1, 7)) + (2 if p > 2 else 0)
    samples = int(rng.choice([100, 300, 500, 1000]))
    samples = max(samples, 1000) if p > 2 else samples
    A, B, C, D = _process(rng, n, p, m)
    kind, noise = str(rng.choice(INPUTS)), str(rng.choice(DISTURBANCES))
    share = 10 ** rng.uniform(-2.0, -0.3)
    closed = rng.random() < 0.15 and p == m == 1
    total = 2 * samples
    u = _input(rng, kind, m, total)
    delay = int(rng.integers(0, 6)) if rng.random() < 0.25 and not closed else 0
    delayed = np.concatenate([np.zeros((m, delay)), u[:, : total - delay]], axis=1)
    clean = C @ states(A, B @ delayed) + D @ delayed
    size = clean.std(axis=1, keepdims=True)
    size[size == 0] = 1.0
    v = _disturbance(rng, noise, p, total) * share * size
    if closed:  # u = reference - gain y, without a direct term
        gain = 0.3 / max(1e-6, float(np.abs(C @ np.linalg.solve(np.eye(n) - A, B)).max()))
        while np.abs(np.linalg.eigvals(A - gain * B @ C)).max() > 0.999:
            gain /= 2
        D = np.zeros_like(D)
        clean = C @ states(A - gain * B @ C, B @ (u - gain * v))
        u = u - gain * (clean + v)
    y = clean + v + rng.standard_normal((p, 1)) * 3 * size
    parts = (slice(0, samples), slice(samples, total))
    test_clean = clean[:, parts[1]]
    test_clean = test_clean + (y[:, parts[1]] - test_clean).mean(axis=1, keepdims=True)
    return SyntheticRecord(
        u[:, parts[0]],
        y[:, parts[0]],
        u[:, parts[1]],
        y[:, parts[1]],
        test_clean,
        n,
        delay,
        f"{kind} input, {noise} disturbance{', closed loop' if closed else ''}",
        v[:, parts[0]],
        (A, B, C, D),
    )


def states(A: Any, forcing: Any) -> Any:
    """Return x of ``x[k+1] = A x[k] + f[k]`` from zero, by doubling."""
    n, samples = forcing.shape
    x = np.zeros((n, samples))
    x[:, 1:] = forcing[:, :-1]
    shift = 1
    while shift < samples:
        x[:, shift:] = x[:, shift:] + A @ x[:, :-shift]
        A, shift = A @ A, 2 * shift
    return x


def _process(rng: Any, n: int, p: int, m: int) -> Any:
    A = np.zeros((n, n))
    k = 0
    while k < n:
        if k + 1 < n and rng.random() < 0.5:
            radius, angle = 1 - 10 ** rng.uniform(-2.3, -0.4), min(10 ** rng.uniform(-1.5, 0.4), 3.0)
            c, s = radius * np.cos(angle), radius * np.sin(angle)
            A[k : k + 2, k : k + 2] = [[c, s], [-s, c]]
            k += 2
        else:
            A[k, k] = 1 - 10 ** rng.uniform(-2.3, -0.2)
            k += 1
    radii = np.minimum(np.abs(np.linalg.eigvals(A)), 0.999)
    B = rng.standard_normal((n, m)) * np.sqrt(1 - radii**2)[:, None]
    D = rng.standard_normal((p, m)) * (0.3 if rng.random() < 0.3 else 0.0)
    return A, B, rng.standard_normal((p, n)), D


def _input(rng: Any, kind: str, m: int, samples: int) -> Any:
    if kind == "white":
        return rng.standard_normal((m, samples))
    if kind == "binary":
        hold = int(rng.integers(2, 12))
        return np.repeat(rng.choice([-1.0, 1.0], (m, samples // hold + 1)), hold, axis=1)[:, :samples]
    if kind == "steps":
        u = np.zeros((m, samples))
        for channel in u:
            t = 0
            while t < samples:
                length = int(rng.integers(10, 80))
                channel[t : t + length] = rng.standard_normal()
                t += length
        return u
    if kind == "low":
        return lfilter([1], [1, -0.9], rng.standard_normal((m, samples)), axis=1)
    t, phase = np.arange(samples), 2 * np.pi
    return np.array(
        [
            sum(np.sin(phase * rng.uniform(0.002, 0.3) * t + rng.uniform(0, phase)) for _ in range(12))
            for _ in range(m)
        ]
    )


def _disturbance(rng: Any, kind: str, p: int, samples: int) -> Any:
    e = rng.standard_normal((p, samples + 200))
    pole = 0.97 * np.exp(0.5j)
    filters = {
        "white": ([1], [1]),
        "ar": ([1], [1, -0.9]),
        "slow": ([1], [1, -0.99]),
        "resonant": ([1], [1, -2 * pole.real, abs(pole) ** 2]),
        "ma": ([1, -0.9], [1]),
    }
    if kind == "drift":
        t = np.linspace(-1, 1, samples + 200)
        v = 0.5 * e + rng.standard_normal((p, 1)) * 2 * t + np.cumsum(e, axis=1) * 0.03
    else:
        v = lfilter(*filters[kind], e)
    v = v[:, 200:]
    return v / v.std(axis=1, keepdims=True)
