"""Least squares for what is linear once A and C are known, against lstsq on plainly simulated columns."""

from __future__ import annotations

import numpy as np
import pytest

from hankelred.identification.linear_fit import (
    fit_initial_states_of_each,
    fit_inputs_of_each,
    nested_regression,
    residuals,
)


def simulated(A, B, C, D, u, x):
    y = []
    for column in u.T:
        y.append(C @ x + D @ column)
        x = A @ x + B @ column
    return np.array(y).T


def unit(shape, place):
    out = np.zeros(shape)
    out[place] = 1
    return out


def plain_loss(A, C, us, ys, offsets, direct):
    """The mean square that remains, each unknown's output being simulated alone."""
    (p, n), m, E = C.shape, us[0].shape[0], len(us)
    zero = np.zeros((n, m)), np.zeros((p, m)), [np.zeros(n)] * E
    columns = []

    def add(B=zero[0], D=zero[1], x0=zero[2], level=None):
        outputs = [simulated(A, B, C, D, u, x) for u, x in zip(us, x0, strict=True)]
        columns.append(np.concatenate([(y if level is None else level + 0 * y).ravel() for y in outputs]))

    for place in np.ndindex(n, m):
        add(B=unit((n, m), place))
    for place in np.ndindex(p, m if direct else 0):
        add(D=unit((p, m), place))
    for e, i in np.ndindex(E, n):
        add(x0=[unit(n, i) if e == k else np.zeros(n) for k in range(E)])
    for i in range(p if offsets else 0):
        add(level=unit((p, 1), (i, 0)))
    M, target = np.array(columns).T, np.concatenate([y.ravel() for y in ys])
    error = target - M @ np.linalg.lstsq(M, target, rcond=1e-12)[0]
    return error @ error / target.size


def random_matrices(rng, count, n, p):
    A = rng.standard_normal((count, n, n))
    A *= 0.95 / np.abs(np.linalg.eigvals(A)).max(axis=1)[:, None, None]
    return list(zip(A, rng.standard_normal((count, p, n)), strict=True))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("n", "p", "m", "count"), [(1, 1, 1, 3), (4, 1, 2, 5), (2, 3, 1, 4), (5, 2, 3, 40)])
def test_inputs_of_each(n, p, m, count, direct):
    rng = np.random.default_rng(n + p)
    us = [rng.standard_normal((m, length)) for length in (60, 45)]
    ys = [rng.standard_normal((p, u.shape[1])) for u in us]
    matrices = random_matrices(rng, count, n, p)
    fitted = fit_inputs_of_each(matrices, us, ys, True, direct=direct)
    assert len(fitted) == count
    for (A, C), models in zip(matrices, fitted, strict=True):
        for model, offsets in zip(models, (False, True), strict=True):
            assert model.loss == pytest.approx(plain_loss(A, C, us, ys, offsets, direct), rel=1e-9)
            of_model = np.concatenate([e.ravel() for e in residuals(model, us, ys)])
            assert of_model @ of_model / of_model.size == pytest.approx(model.loss, rel=1e-9)
            assert np.any(model.offset) == offsets and (direct or not np.any(model.D))


def test_a_singular_and_an_overflowing_model_leave_the_others():
    """They are fitted together: one without a Cholesky factor, or with powers beyond all numbers."""
    rng = np.random.default_rng(0)
    us, ys = [rng.standard_normal((1, 400))], [rng.standard_normal((1, 400))]
    (A, C), (B, _) = random_matrices(rng, 2, 3, 1)
    unobservable = np.diag([0.5, 0.5, 0.2]), np.ones((1, 3))
    together = fit_inputs_of_each([(A, C), unobservable, (100 * B, C)], us, ys, False)
    alone = fit_inputs_of_each([(A, C)], us, ys, False)
    assert together[0][0].loss == pytest.approx(alone[0][0].loss, rel=1e-12)
    assert together[1][0].loss == pytest.approx(plain_loss(*unobservable, us, ys, False, True), rel=1e-9)
    assert together[2][0].loss == np.inf


def test_initial_states_of_each():
    rng = np.random.default_rng(1)
    us, ys = [rng.standard_normal((2, 50))], [rng.standard_normal((2, 50))]
    models = [m for (m,) in fit_inputs_of_each(random_matrices(rng, 4, 3, 2), us, ys, False)]
    other_us = [rng.standard_normal((2, length)) for length in (30, 20)]
    other_ys = [rng.standard_normal((2, u.shape[1])) for u in other_us]
    for model, (fitted, errors) in zip(
        models, fit_initial_states_of_each(models, other_us, other_ys), strict=True
    ):
        for u, y, x0, error in zip(other_us, other_ys, fitted.x0, errors, strict=True):

            def output(x, u=u, model=model):
                return simulated(model.A, model.B, model.C, model.D, u, x) + model.offset[:, None]

            free = np.array([(output(unit(3, i)) - output(np.zeros(3))).ravel() for i in range(3)]).T
            best = np.linalg.lstsq(free, (y - output(np.zeros(3))).ravel(), rcond=None)[0]
            np.testing.assert_allclose(x0, best, rtol=1e-8)
            np.testing.assert_allclose(error, y - output(best), atol=1e-10)


def test_nested_regression():
    """For every number of regressors; where one depends on those before it, the solution of least norm."""
    rng = np.random.default_rng(2)
    X, Y = rng.standard_normal((30, 6)) * 10.0 ** -np.arange(6.0), rng.standard_normal((30, 2))
    X[:, 4] = X[:, 0] + 2 * X[:, 1]
    solve = nested_regression(X, Y, 1e-12)
    for k in range(1, 7):
        expected = np.linalg.lstsq(X[:, :k], Y, rcond=1e-12)[0]
        np.testing.assert_allclose(X[:, :k] @ solve(k), X[:, :k] @ expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(solve(k), expected, rtol=1e-6, atol=1e-9)
