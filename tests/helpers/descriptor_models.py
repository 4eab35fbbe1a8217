"""Models with a singular E: of known Weierstrass form, and circuits and mechanisms by their equations."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def weierstrass(seed, index, largest=200):
    """Return a random model of an index, its number of finite poles, and D_0, D_1, ... in closed form.

    In Weierstrass coordinates the infinite part has Jordan blocks of up to this index, so that its transfer
    function is -sum s^k C N^k B; then rows and columns are mixed at random.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.integers(index + 3, largest))
    sizes = [index, *rng.integers(1, index + 1, size=rng.integers(1, max(2, n // 8)))]
    k = int(sum(sizes))
    finite = max(1, n - k)
    n = finite + k
    A, E, N = np.eye(n), np.eye(n), np.zeros((k, k))
    A[:finite, :finite] = np.diag(-(10 ** rng.uniform(-1, 1, finite)))
    for i in range(0, finite - 1, 2):
        A[i, i + 1] = 10 ** rng.uniform(-1, 1)
        A[i + 1, i], A[i + 1, i + 1] = -A[i, i + 1], A[i, i]
    start = 0
    for size in sizes:
        for j in range(start, start + size - 1):
            N[j, j + 1] = 1
        start += size
    E[finite:, finite:] = N
    B, C, D = rng.standard_normal((n, 2)), rng.standard_normal((2, n)), rng.standard_normal((2, 2))
    terms = [-C[:, finite:] @ np.linalg.matrix_power(N, power) @ B[finite:] for power in range(index)]
    terms[0] = terms[0] + D
    P, Q = rng.standard_normal((n, n)), rng.standard_normal((n, n))
    return (P @ A @ Q, P @ B, C @ Q, D, P @ E @ Q), finite, terms


def rc_ladder(sections, *, R=1e3, capacitance=1e-12, at_source=0.0):
    """Return a ladder behind a voltage source by modified nodal analysis: last voltage, and current drawn.

    A capacitor across the source makes its current contain the derivative of the voltage.
    """
    n = sections + 1
    G = np.zeros((n, n))
    for i in range(sections):
        G[i : i + 2, i : i + 2] += np.array([[1, -1], [-1, 1]]) / R
    incidence = np.eye(n)[:, :1]
    A = np.block([[-G, -incidence], [incidence.T, np.zeros((1, 1))]])
    E = np.diag([at_source, *[capacitance] * sections, 0.0])
    B = np.zeros((n + 1, 1))
    B[-1] = -1
    C = np.zeros((2, n + 1))
    C[0, sections] = C[1, n] = 1
    return A, B, C, 0, E


def constrained_masses(n, *, moved=False):
    """Return masses in a row of which the first and the last are coupled rigidly (index 3).

    Outputs are the third position and the force of constraint. The input is a force on the second mass or,
    with ``moved``, the distance of the two coupled masses.
    """
    K = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    damping = 0.1 * K + 0.05 * np.eye(n)
    G = np.zeros((1, n))
    G[0, 0], G[0, -1] = 1, -1
    A = np.block(
        [
            [np.zeros((n, n)), np.eye(n), np.zeros((n, 1))],
            [-K, -damping, -G.T],
            [G, np.zeros((1, n + 1))],
        ]
    )
    E = np.diag([1.0] * (2 * n) + [0.0])
    B = np.zeros((2 * n + 1, 1))
    B[-1 if moved else n + 1] = 1
    C = np.zeros((2, 2 * n + 1))
    C[0, 2] = C[1, 2 * n] = 1
    return A, B, C, 0, E


def integrator(resistance=1e3, capacitance=1e-6):
    """Return an ideal operational amplifier with R at its input and C in its feedback: -1 / (s R C).

    Voltages of input, inverting input (kept at zero) and output; currents of the source and the output.
    """
    g, c = 1 / resistance, capacitance
    A = -np.array(
        [[g, -g, 0, 1, 0], [-g, g, 0, 0, 0], [0, 0, 0, 0, 1], [-1, 0, 0, 0, 0], [0, 1, 0, 0, 0]], float
    )
    E = np.zeros((5, 5))
    E[1:3, 1:3] = [[c, -c], [-c, c]]
    B = np.zeros((5, 1))
    B[3] = -1
    return A, B, np.array([[0, 0, 1.0, 0, 0]]), 0, E


def rlc_grid(N):
    """Return a grid of N x N nodes: R and L in series in rows, R in columns, C at every other node.

    The nodes without a capacitor are algebraic. Currents into two corners, and their voltages.
    """
    n = N * N
    nodes = np.arange(n).reshape(N, N)
    first, second = nodes[:-1].ravel(), nodes[1:].ravel()
    i = np.concatenate([first, second, first, second])
    j = np.concatenate([first, second, second, first])
    values = np.repeat([1.0, 1.0, -1.0, -1.0], first.size)
    G = sp.coo_array((values, (i, j)), shape=(n, n)) + sp.diags_array(np.full(n, 0.05))
    left, right = nodes[:, :-1].ravel(), nodes[:, 1:].ravel()
    branches = np.arange(left.size)
    incidence = sp.coo_array(
        (
            np.repeat([1.0, -1.0], left.size),
            (np.concatenate([left, right]), np.concatenate([branches, branches])),
        ),
        shape=(n, left.size),
    )
    capacitors = (np.add.outer(np.arange(N), np.arange(N)) % 2 == 0).ravel().astype(float)
    E = sp.diags_array(np.concatenate([capacitors, np.full(left.size, 0.1)])).tocsc()
    A = sp.block_array([[-G, -incidence], [incidence.T, -0.5 * sp.eye_array(left.size)]], format="csc")
    B = np.zeros((n + left.size, 2))
    B[0, 0] = B[n - 1, 1] = 1
    return A, B, B.T, 0, E


def stokes(N):
    """Return the flow in a square on a staggered grid, driven by two random fields of force (index 2)."""
    h = 1 / N

    def second_difference(k, at_faces):
        diagonal = np.full(k, 2.0)
        if not at_faces:
            diagonal[[0, -1]] = 3.0
        return sp.diags_array([diagonal, -np.ones(k - 1), -np.ones(k - 1)], offsets=[0, 1, -1]) / h**2

    eye = sp.eye_array
    u = sp.kron(eye(N), second_difference(N - 1, True)) + sp.kron(second_difference(N, False), eye(N - 1))
    v = sp.kron(second_difference(N - 1, True), eye(N)) + sp.kron(eye(N - 1), second_difference(N, False))
    d = sp.diags_array([np.ones(N - 1), -np.ones(N - 1)], offsets=[0, -1], shape=(N, N - 1)) / h
    # without one cell: the sum of all is zero
    divergence = sp.hstack([sp.kron(eye(N), d), sp.kron(d, eye(N))]).tocsr()[:-1]
    k, q = divergence.shape[1], divergence.shape[0]
    A = sp.block_array([[-sp.block_diag([u, v]), divergence.T], [divergence, None]], format="csc")
    E = sp.diags_array(np.concatenate([np.ones(k), np.zeros(q)])).tocsc()
    B = np.zeros((k + q, 2))
    B[:k] = np.random.default_rng(0).standard_normal((k, 2)) * h
    C = np.zeros((2, k + q))
    C[0, k // 3] = C[1, k + 3] = 1  # a velocity, and a pressure
    return A, B, C, 0, E
