"""Records of random processes with known truth: inputs, disturbances and loops of many kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla
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
    #: the process has the input minus this
    input_level: float = 0.0

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
    description = f"{kind} input, {noise} disturbance{', closed loop' if closed else ''}"
    return _halves(u, y, clean, v, (A, B, C, D), delay, description)


def _halves(
    u: Any, y: Any, clean: Any, v: Any, process: Any, delay: int, description: str, level: float = 0.0
) -> SyntheticRecord:
    samples = u.shape[1] // 2
    first, second = slice(0, samples), slice(samples, None)
    test_clean = clean[:, second]
    test_clean = test_clean + (y[:, second] - test_clean).mean(axis=1, keepdims=True)
    return SyntheticRecord(
        u[:, first],
        y[:, first],
        u[:, second],
        y[:, second],
        test_clean,
        process[0].shape[0],
        delay,
        description,
        v[:, first],
        process,
        level,
    )


def integrating_record(seed: int) -> SyntheticRecord:
    """Return a record of an integrator and up to three other states, with an unknown level of the inputs."""
    rng = np.random.default_rng(seed)
    p, m = [(1, 1), (1, 1), (2, 1), (1, 2)][rng.integers(4)]
    n, samples = int(rng.integers(0, 4)), int(rng.choice([200, 400, 800]))
    kind, noise = str(rng.choice(INPUTS)), str(rng.choice(DISTURBANCES[:5]))
    A, B, C, D = _process(rng, n, p, m) if n else (np.zeros((0, 0)), np.zeros((0, m)), np.zeros((p, 0)), 0)
    u = _input(rng, kind, m, 2 * samples)
    other = C @ states(A, B @ u) + D * np.ones((p, m)) @ u
    gain, by_outputs = rng.standard_normal((1, m)), rng.standard_normal((p, 1))
    integrated = by_outputs @ states(np.ones((1, 1)), gain @ u)
    if n:  # as large as the other part, to within a factor of three
        factor = 10 ** rng.uniform(-0.5, 0.5) * other.std() / integrated.std()
        gain, integrated = factor * gain, factor * integrated
    clean = other + integrated
    A, B, C = sla.block_diag(1.0, A), np.vstack([gain, B]), np.hstack([by_outputs, C])
    size = clean[:, :samples].std(axis=1, keepdims=True)
    v = _disturbance(rng, noise, p, 2 * samples) * 10 ** rng.uniform(-2.0, -0.5) * size
    y, level = clean + v + 3 * size, float(rng.standard_normal())
    process = A, B, C, D * np.ones((p, m))
    description = f"integrator, {kind} input, {noise} disturbance"
    return _halves(u + level, y, clean, v, process, 0, description, level)


def closed_loop_record(seed: int, delay: int) -> tuple[Any, Any]:
    """Return inputs and outputs in a closed loop, ``u[k] = r[k] - K y[k - delay]``, without a direct term."""
    rng = np.random.default_rng(seed)
    n, samples = int(rng.integers(1, 4)), int(rng.choice([300, 500]))
    A, B, C, _ = _process(rng, n, 1, 1)
    steady = float((C @ np.linalg.solve(np.eye(n) - A, B))[0, 0])

    def radius(gain: float) -> float:
        loop = np.block([[A, -gain * B], [C, np.zeros((1, 1))]]) if delay else A - gain * B @ C
        return float(np.abs(np.linalg.eigvals(loop)).max())

    gain, largest = 10 / steady, max(radius(0.0), 0.97)
    while radius(gain) > largest:
        gain *= 0.8
    gain *= rng.uniform(0.3, 1.0)
    reference = _input(rng, str(rng.choice(INPUTS[:4])), 1, samples)[0]
    color, share = str(rng.choice(DISTURBANCES[:5])), 10 ** rng.uniform(-1.3, -0.3)
    size = (C @ states(A, B @ reference[None])).std()
    v = _disturbance(rng, color, 1, samples)[0] * share * size
    x, u, y = np.zeros(n), np.zeros(samples), np.zeros(samples)
    for t in range(samples):
        y[t] = C[0] @ x + v[t]
        u[t] = reference[t] - gain * (y[t - delay] if t >= delay else 0.0)
        x = A @ x + B[:, 0] * u[t]
    return u[None], y[None]


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
