"""Systems for the benchmarks, defined by formulas; all are stable and returned as (A, B, C)."""

from __future__ import annotations

import numpy as np


def convection_diffusion(n: int, m: int = 2, seed: int = 0):
    """Return convection-diffusion on a square grid: singular values decay quickly."""
    k = round(n**0.5)
    h = 1 / (k + 1)
    diffusion = (-2 * np.eye(k) + np.eye(k, k=1) + np.eye(k, k=-1)) / h**2
    wind = (np.eye(k, k=1) - np.eye(k, k=-1)) / (2 * h)
    identity = np.eye(k)
    A = np.kron(diffusion - 10 * wind, identity) + np.kron(identity, diffusion - 50 * wind)
    return A, *_inputs_and_outputs(k * k, m, seed)


def random_damped(n: int, m: int = 2, seed: int = 0):
    """Return a random matrix shifted well into the left half plane: singular values decay quickly."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, n)) / np.sqrt(n) - 1.2 * np.eye(n), *_inputs_and_outputs(n, m, seed + 1)


def lightly_damped(n: int, m: int = 2, seed: int = 0):
    """Return n/2 modes with 0.1 to 1 % damping in dense coordinates: singular values hardly decay."""
    rng = np.random.default_rng(seed)
    A = np.zeros((n, n))
    for i, w in enumerate(np.geomspace(1, 100, n // 2)):
        zeta = rng.uniform(0.001, 0.01)
        A[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[-zeta * w, w], [-w, -zeta * w]]
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return Q @ A @ Q.T, *_inputs_and_outputs(n, m, seed + 1)


def _inputs_and_outputs(n: int, m: int, seed: int):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, m)), rng.standard_normal((m, n))
