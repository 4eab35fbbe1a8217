"""The recurrence of many columns at once, against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest

from hankelred.simulation.batch_recurrence import forced_responses, free_responses, recurrence, squares
from hankelred.simulation.recurrence import row_powers


def system(rng, n, p, complex_=False):
    A, C = rng.standard_normal((n, n)), rng.standard_normal((p, n))
    if complex_:
        A, C = A + 1j * rng.standard_normal((n, n)), C + 1j * rng.standard_normal((p, n))
    return 0.98 * A / np.abs(np.linalg.eigvals(A)).max(), C


def loop(A, forcing, start):
    x, states = start, []
    for k in range(forcing.shape[1]):
        states.append(x)
        x = A @ x + forcing[:, k]
    return np.stack(states, axis=1)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 17, 100, 101])
@pytest.mark.parametrize(("n", "P"), [(1, 1), (3, 2), (5, 4), (40, 3)])
def test_recurrence(n, P, samples, complex_):
    rng = np.random.default_rng(samples)
    A, _ = system(rng, n, 1, complex_)
    forcing, start = rng.standard_normal((n, samples, P)), rng.standard_normal((n, P))
    expected = loop(A, forcing, start)
    size = np.abs(expected).max()
    np.testing.assert_allclose(recurrence(A, forcing, start), expected, rtol=0, atol=1e-12 * size)
    from_zero = loop(A, forcing, np.zeros((n, P)))
    np.testing.assert_allclose(recurrence(A, forcing), from_zero, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize(("n", "P"), [(1, 1), (3, 2), (6, 8)])
def test_a_stack_of_systems(n, P):
    rng = np.random.default_rng(n)
    A, C = (np.stack(x) for x in zip(*(system(rng, n, 2) for _ in range(5)), strict=True))
    forcing, start = rng.standard_normal((5, n, 101, P)), rng.standard_normal((5, n, P))
    expected = np.stack([loop(*each) for each in zip(A, forcing, start, strict=True)])
    np.testing.assert_allclose(recurrence(A, forcing, start), expected, rtol=0, atol=1e-11)
    free = np.stack([C_ @ np.linalg.matrix_power(A_, 100) for A_, C_ in zip(A, C, strict=True)])
    np.testing.assert_allclose(free_responses(A, C, 101)[:, :, -1], free, rtol=0, atol=1e-11)


@pytest.mark.parametrize("samples", [1, 30, 257])
@pytest.mark.parametrize(("n", "p", "P", "k"), [(2, 1, 3, 1), (6, 2, 700, 3)])
def test_forced_responses(n, p, P, k, samples):
    rng = np.random.default_rng(n)
    A, C = system(rng, n, p)
    directions, signals = rng.standard_normal((P, n, k)), rng.standard_normal((k, samples))
    forcing = np.einsum("pnk,kt->ntp", directions, signals)
    expected = np.einsum("on,ntp->otp", C, loop(A, forcing, np.zeros((n, P))))
    computed = forced_responses(A, C, directions, signals)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9, 100])
@pytest.mark.parametrize("n_squares", [1, 2, 20])
def test_row_powers(count, n_squares):
    """With fewer squares than doublings, the largest power continues the rows."""
    rng = np.random.default_rng(count)
    A, C = system(rng, 4, 2)
    expected = np.array([C @ np.linalg.matrix_power(A, k) for k in range(count)]).reshape(count, 2, 4)
    rows = row_powers(C, squares(A, 2**n_squares), count)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-12 * np.abs(C).max())
    if count:
        np.testing.assert_allclose(
            free_responses(A, C, count), expected.transpose(1, 0, 2), rtol=0, atol=1e-11
        )
