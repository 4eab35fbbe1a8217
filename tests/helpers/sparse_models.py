"""Large sparse models by formula, and their Hankel singular values without the solvers under test."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla
import scipy.sparse as sp

import hankelred

from .data import data_file, load_mat


def heat(side, dimensions=2, convection=0.0):
    """The finite-difference heat equation on the unit square or cube, with convection: A, B, C."""
    second = (
        sp.diags([np.ones(side - 1), -2 * np.ones(side), np.ones(side - 1)], [-1, 0, 1]) * (side + 1) ** 2
    )
    first = sp.diags([-np.ones(side - 1), np.ones(side - 1)], [-1, 1]) * (side + 1) / 2
    line, eye = second - convection * first, sp.identity(side)
    A = sp.kron(line, eye) + sp.kron(eye, line)
    if dimensions == 3:
        A = sp.kron(A, eye) + sp.kron(sp.identity(side**2), line)
    points = np.linspace(0, 1, side + 2)[1:-1]
    grid = [axis.ravel() for axis in np.meshgrid(*[points] * dimensions, indexing="ij")]
    x, y = grid[:2]
    B = np.stack([(x < 0.3) & (y < 0.3), (x > 0.6) & (y > 0.7)], axis=1).astype(float)
    C = np.stack([(x > 0.4) & (x < 0.6) & (y < 0.5), (y > 0.8) & (x < 0.4)]).astype(float)
    return sp.csc_array(A), B, C / C.sum(axis=1, keepdims=True)


def chain(masses, mass_damping, stiffness_damping):
    """A chain of masses and springs with both ends fixed: M, D, K, B, C."""
    off = -np.ones(masses - 1)
    K = sp.csc_array(sp.diags([off, 2 * np.ones(masses), off], [-1, 0, 1]))
    M = sp.csc_array(sp.identity(masses))
    B, C = np.zeros((masses, 1)), np.zeros((1, masses))
    B[masses // 3], C[0, 2 * masses // 3] = 1, 1
    return M, sp.csc_array(mass_damping * M + stiffness_damping * K), K, B, C


def beam(elements, mass_damping=1e-2, stiffness_damping=1e-5):
    """A cantilever of Euler-Bernoulli elements, force and deflection at the tip: M, D, K, B, C."""
    h = 1 / elements
    k = [[12, 6 * h, -12, 6 * h], [6 * h, 4 * h**2, -6 * h, 2 * h**2]]
    k += [[-12, -6 * h, 12, -6 * h], [6 * h, 2 * h**2, -6 * h, 4 * h**2]]
    m = [[156, 22 * h, 54, -13 * h], [22 * h, 4 * h**2, 13 * h, -3 * h**2]]
    m += [[54, 13 * h, 156, -22 * h], [-13 * h, -3 * h**2, -22 * h, 4 * h**2]]
    places = 2 * np.arange(elements)[:, None] + np.arange(4)
    rows, columns = np.repeat(places, 4, axis=1).ravel(), np.tile(places, (1, 4)).ravel()

    def assembled(element):
        entries = np.tile(np.ravel(element), elements)
        size = 2 * elements + 2
        return sp.csc_array(sp.csc_matrix((entries, (rows, columns)), shape=(size, size))[2:, 2:])

    K, M = assembled(np.array(k) / h**3), assembled(h / 420 * np.array(m))
    B = np.zeros((2 * elements, 1))
    B[-2] = 1
    return M, sp.csc_array(mass_damping * M + stiffness_damping * K), K, B, B.T.copy()


def modal_values(M, D, K, B, C):
    """Singular values of a model with modal damping, from the closed form for its modes."""
    squares, modes = sla.eigh(K.toarray(), M.toarray())
    damping = np.sum(modes * (D @ modes), axis=0) / 2
    root = np.sqrt((damping**2 - squares).astype(complex))
    poles = np.concatenate([-damping + root, -damping - root])
    b, c = modes.T @ B, C @ modes
    weights = 1 / (2 * root)[:, None]
    inputs = np.concatenate([b * weights, -b * weights])
    system = hankelred.ModalSystem(poles, inputs, np.concatenate([c, c], axis=1), dt=0)
    return hankelred.hankel_singular_values(system)


def right_to(share, values, truth):
    """Return how many of the leading values are right to a share of them."""
    k = min(values.size, truth.size)
    wrong = np.abs(values[:k] - truth[:k]) > share * truth[:k]
    return int(np.argmax(np.append(wrong, True)))


def rail():
    """The steel profile with 1357 nodes: A, B, C, E, A and E sparse."""
    content = load_mat(data_file("lti/rail_1357.mat"))
    A, E = (sp.csc_array(content[key]).astype(float) for key in "AE")
    B, C = (np.asarray(sp.csc_array(content[key]).toarray(), dtype=float) for key in "BC")
    return A, B, C, E
