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


def structure(n: int, m: int = 1, seed: int = 0):
    """Return n/2 modes of positions and velocities, 0.1 to 2 % damped, as finite elements give them."""
    rng = np.random.default_rng(seed)
    A = np.zeros((n, n))
    for i, w in enumerate(np.geomspace(1, 1000, n // 2)):
        A[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[0, 1], [-w * w, -2 * rng.uniform(0.001, 0.02) * w]]
    B, C = np.zeros((n, m)), np.zeros((m, n))
    B[1::2], C[:, ::2] = rng.standard_normal((n // 2, m)), rng.standard_normal((m, n // 2))
    return A, B, C


def diffusion(n: int):
    """Return diffusion on a line, driven and measured at single points: singular values decay quickly."""
    h = 1 / (n + 1)
    A = (-2 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)) / h**2
    B, C = np.zeros((n, 1)), np.zeros((1, n))
    B[n // 3], C[0, 2 * n // 3] = 1 / h, 1
    return A, B, C


def random_stable(n: int, m: int = 2, seed: int = 0):
    """Return a random matrix whose rightmost pole is at -0.05."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n)) / np.sqrt(n)
    A -= (np.linalg.eigvals(A).real.max() + 0.05) * np.eye(n)
    return A, rng.standard_normal((n, m)), rng.standard_normal((m, n))


def _inputs_and_outputs(n: int, m: int, seed: int):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, m)), rng.standard_normal((m, n))
