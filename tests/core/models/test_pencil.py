"""Factorizations of sparse pencils: bands, both sides of a symmetric pencil at once."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as spl
from helpers.sparse_models import beam, heat

from hankelred import ModelError
from hankelred.models.pencil import NARROW, BandFactorization, SparseFamily, SparsePencil
from hankelred.models.second_order import SecondOrderPencil


def banded(n, width, kind, rng):
    """Return a random matrix with a band, and not symmetric, whose states are in random order."""
    diagonals = rng.standard_normal((2 * width + 1, n))
    if kind == "complex":
        diagonals = diagonals + 1j * rng.standard_normal(diagonals.shape)
    M = sp.diags_array(
        list(diagonals), offsets=range(-width, width + 1), shape=(n, n), dtype=diagonals.dtype
    ).tocsc()
    order = rng.permutation(n)
    return M[order][:, order].tocsc()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("width", [0, 1, 3, NARROW])
def test_band_of_states_in_any_order(width, kind, transposed):
    rng = np.random.default_rng(width)
    M = banded(40, width, kind, rng)
    family = SparseFamily([M, sp.eye_array(40, format="csc")])
    solver = family.combined(1.0, 0.3)
    assert isinstance(solver.factors, BandFactorization)
    b = rng.standard_normal((40, 3))
    x = family.back(solver(family.into(b), transposed=transposed))
    dense = M.toarray() + 0.3 * np.eye(40)
    expected = np.linalg.solve(dense.T if transposed else dense, b)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_band_with_a_real_matrix_and_a_complex_right_side():
    rng = np.random.default_rng(5)
    M = banded(30, 2, "real", rng)
    family = SparseFamily([M])
    b = rng.standard_normal((30, 1)) + 1j * rng.standard_normal((30, 1))
    x = family.back(family.combined(1.0)(family.into(b)))
    np.testing.assert_allclose(x, np.linalg.solve(M.toarray(), b), rtol=1e-8)


def test_singular_band_is_refused():
    """An elimination with pivots from the columns finds that the second row depends on the first."""
    M = sp.block_diag([np.array([[1.0, 2.0], [2.0, 4.0]]), 5.0], format="csc")
    with pytest.raises(ModelError, match="singular to working precision"):
        SparseFamily([M]).combined(1.0)


def test_wide_bands_are_factored_as_sparse_matrices():
    assert not isinstance(
        SparsePencil(heat(10)[0], sp.eye_array(100)).shifted(-1.0).factors, BandFactorization
    )
    arrow = sp.eye_array(60, format="lil")
    arrow[0, :] = arrow[:, 0] = 1.0
    arrow[0, 0] = 100.0
    assert not isinstance(SparseFamily([arrow.tocsc()]).combined(1.0).factors, BandFactorization)


def test_user_supplied_factorizations_are_used_for_bands_too():
    made = []

    def factorize(M):
        made.append(M.shape)
        return spl.splu(M)

    M, D, K, _, _ = beam(20)
    pencil = SecondOrderPencil(M, D, K, factorize)
    pencil.shifted(-1.0)(np.ones((80, 1)))
    assert made == [(40, 40)]


@pytest.mark.parametrize("shift", [-3.0, -3.0 + 2.0j])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["first order", "second order", "band"])
def test_both_sides_at_once_are_those_of_two_solutions(kind, symmetric, shift):
    """Symmetric pencils are solved for both Gramians at once; an asymmetry of one entry must be respected."""
    rng = np.random.default_rng(1)
    if kind == "second order":
        M, D, K, _, _ = beam(12)
        if not symmetric:
            D = D.tolil()
            D[0, 2] *= 1.5
            D = D.tocsc()
        pencil = SecondOrderPencil(M, D, K)
    else:
        A = banded(36, 1, "real", rng) if kind == "band" else heat(6)[0]
        if kind == "band" and symmetric:
            A = (A + A.T).tocsc()
        elif not symmetric:
            A = A.tolil()
            A[0, 1] *= 1.5
            A = A.tocsc()
        pencil = SparsePencil(A, sp.eye_array(36))
    right, left = rng.standard_normal((pencil.n, 2)), rng.standard_normal((pencil.n, 3))
    V, U = pencil.solve_both(shift, right, left)
    np.testing.assert_allclose(pencil.A(V) + shift * pencil.E(V), right, atol=1e-9)
    image = pencil.A(U, transposed=True) + shift * pencil.E(U, transposed=True)
    np.testing.assert_allclose(image, left, atol=1e-9)
