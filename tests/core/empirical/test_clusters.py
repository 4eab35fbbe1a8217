"""Experiments on workers of Dask and Ray: the same bits as in one process, also if a worker is killed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hankelred import GramianEstimator, empirical_gramians

GRID = {"dt": True, "horizon": 60, "n_states": 8, "n_inputs": 2, "excitation": "prbs"}


def make_simulator(pause=0.0, kill=None):
    """A simulator that is sent by value, as those of notebooks are; one of its runs may end its process."""

    def simulate(x0, u):
        import os
        import signal
        import time

        import numpy as np

        time.sleep(pause)
        if kill is not None and x0[4] > 0:
            try:
                open(kill, "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        x = np.empty((8, u.shape[1]))
        state = x0
        for k in range(u.shape[1]):
            x[:, k] = state
            state = np.tanh(0.6 * state + np.roll(state, 1) / 4 + u[0, k] / 8 - u[1, k] * np.arange(8) / 8)
        return x, x[:2]

    return simulate


def assert_equal(grams, expected):
    for kind in ("controllability", "observability"):
        np.testing.assert_array_equal(getattr(grams, kind), getattr(expected, kind))


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask about its own processes
@pytest.mark.parametrize("given", ["client", "name", "address"])
def test_dask_gives_the_same_bits(given, client):
    backend = {"client": client, "name": "dask", "address": client.scheduler.address}[given]
    simulate = make_simulator()
    assert_equal(empirical_gramians(simulate, backend=backend, **GRID), empirical_gramians(simulate, **GRID))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_worker_of_dask_changes_no_bit(client, tmp_path):
    expected = empirical_gramians(make_simulator(), **GRID)
    simulate = make_simulator(0.02, str(tmp_path / "killed"))
    grams = empirical_gramians(simulate, backend=client, checkpoint=tmp_path / "run", **GRID)
    assert (tmp_path / "killed").exists()
    assert_equal(grams, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_snapshots_larger_than_memory_by_dask(client):
    """Each worker reduces its chunks to factors; only these come back."""
    dask = pytest.importorskip("dask.array")
    states = dask.random.default_rng(0).standard_normal((5, 40_000), chunks=(5, 5_000))

    def estimate(block):
        estimator = GramianEstimator(5)
        estimator.update(block)
        return estimator

    import dask as scheduler

    parts = [scheduler.delayed(estimate)(block) for block in states.to_delayed().ravel()]
    total = GramianEstimator.merge_all(client.gather(client.compute(parts)))
    expected = np.asarray(states) @ np.asarray(states).T / 40_000
    assert total.n_samples == 40_000
    np.testing.assert_allclose(total.gramian(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_bits():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        simulate = make_simulator()
        assert_equal(
            empirical_gramians(simulate, backend="ray", **GRID), empirical_gramians(simulate, **GRID)
        )
    finally:
        ray.shutdown()
