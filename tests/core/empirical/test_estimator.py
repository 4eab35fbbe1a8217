"""The streaming Gramian estimator: one pass, mergeable, as a factor."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hankelred import FileFormatError, GramianEstimator, HankelredError
from hankelred.empirical.triangular_factor import TriangularFactor


def fed(*blocks, n=None, **options):
    estimator = GramianEstimator(blocks[0].shape[0] if n is None else n, **options)
    for block in blocks:
        estimator.update(block)
    return estimator


def data(seed, n, samples, complex_=False):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, samples)) * 10.0 ** rng.uniform(-2, 2, (n, 1))
    return x + 1j * rng.standard_normal((n, samples)) if complex_ else x


def close(W, W0):
    # entry by entry in the states' own units
    unit = np.sqrt(np.outer(np.diag(W0).real, np.diag(W0).real))
    return float((np.abs(W - W0) / unit).max())


def same(a, b):
    return close(a.gramian(), b.gramian()) < 1e-12 and a.n_samples == b.n_samples


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    complex_=st.booleans(),
    forgetting=st.sampled_from([1.0, 0.99, 0.5]),
)
def test_streaming_equals_one_pass_and_the_definition(seed, n, cuts, complex_, forgetting):
    x = data(seed, n, 300, complex_)
    blocks = np.split(x, sorted(cuts), axis=1)
    streamed, whole = fed(*blocks, n=n, forgetting=forgetting), fed(x, forgetting=forgetting)
    assert same(streamed, whole)
    weights = forgetting ** np.arange(299, -1, -1.0)
    assert close(streamed.gramian(), (x * weights) @ x.conj().T / weights.sum()) < 1e-12
    L = streamed.factor()
    assert close(L @ L.conj().T, streamed.gramian()) < 1e-14


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    sizes=st.tuples(*[st.integers(0, 200)] * 3),
    forgetting=st.sampled_from([1.0, 0.95]),
)
def test_merging_is_associative_and_commutative(seed, n, sizes, forgetting):
    sizes = (sizes[0] + n, sizes[1], sizes[2])
    a, b, c = (fed(data(seed + i, n, size), forgetting=forgetting) for i, size in enumerate(sizes))
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert same(a.merge(b), b.merge(a))
    if sizes[1] > 0:
        mean = (a.weight * a.gramian() + b.weight * b.gramian()) / (a.weight + b.weight)
        assert close(a.merge(b).gramian(), mean) < 1e-12
    if forgetting == 1:
        whole = np.concatenate([data(seed + i, n, size) for i, size in enumerate(sizes)], axis=1)
        assert same(a.merge(b).merge(c), fed(whole))


def test_merge_leaves_its_parts_alone():
    a, b = fed(data(0, 3, 10)), fed(data(1, 3, 10))
    before = a.gramian()
    merged = a.merge(b)
    merged.update(data(2, 3, 10))
    np.testing.assert_array_equal(a.gramian(), before)
    assert (a.n_samples, merged.n_samples) == (10, 30)


def test_dynamic_range_of_states_1e_minus_8_to_1e8():
    scale = 10.0 ** np.linspace(-8, 8, 9)
    x = np.random.default_rng(0).standard_normal((9, 4000))
    wild = fed(*np.array_split(scale[:, None] * x, 7, axis=1))
    assert close(wild.gramian(), np.outer(scale, scale) * (x @ x.T) / 4000) < 1e-12


def test_factor_keeps_directions_that_a_product_loses():
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    strengths = np.array([1.0, 1e-4, 1e-8, 1e-12])
    z = np.linalg.qr(rng.standard_normal((500, 4)))[0].T * 500**0.5
    x = Q @ (strengths[:, None] * z)
    found = np.linalg.svd(fed(*np.array_split(x, 9, axis=1)).factor(), compute_uv=False)
    np.testing.assert_allclose(found, strengths, rtol=1e-3)
    product = np.sqrt(np.abs(np.linalg.eigvalsh(x @ x.T / 500)))[::-1]
    assert abs(product[3] / strengths[3] - 1) > 10  # the test can fail: squaring does lose it


def test_memory_does_not_grow_with_the_stream():
    estimator = GramianEstimator(8)

    def held():
        factor = estimator._factor
        return factor._triangle.size + sum(rows.size for rows in factor._pending)

    for i in range(300):
        estimator.update(data(i, 8, 50))
        assert held() <= 8 * (8 + 4 * 8 + 64 + 50)
    assert estimator.n_samples == 15000


def test_fewer_samples_than_states_give_a_thin_factor():
    x = data(3, 6, 2)
    estimator = fed(x)
    assert estimator.factor().shape == (6, 2)
    assert close(estimator.gramian(), x @ x.T / 2) < 1e-13


@pytest.mark.parametrize("complex_", [False, True])
def test_save_and_load_go_on_where_they_were(tmp_path, complex_):
    x = data(4, 3, 100, complex_)
    path = tmp_path / "shard"
    fed(x[:, :60], forgetting=0.9).save(path)
    loaded = GramianEstimator.load(path)
    loaded.update(x[:, 60:])
    assert same(loaded, fed(x, forgetting=0.9))
    assert os.listdir(tmp_path) == ["shard"]


def test_save_replaces_whole_files_only(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    fed(data(5, 2, 10)).save(path)
    before = path.read_bytes()

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        fed(data(6, 2, 10)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.npz"]


def test_load_refuses_other_files(tmp_path):
    text = tmp_path / "a.npz"
    text.write_text("not an archive")
    other = tmp_path / "b.npz"
    np.savez(other, A=np.eye(2))
    pickled = tmp_path / "c.npz"
    np.savez(pickled, format=np.array([object()]), allow_pickle=True)
    wrong = tmp_path / "d.npz"
    parts = {"n_states": 3, "forgetting": 1.0, "n_samples": 1, "weight": 1.0}
    np.savez(wrong, format=1, triangle=np.eye(2), **parts)
    later = tmp_path / "e.npz"
    np.savez(later, format=99, triangle=np.eye(3), **parts)
    cut = tmp_path / "f.npz"
    fed(data(7, 3, 50)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    for path in (text, other, pickled, wrong, later, cut):
        with pytest.raises(FileFormatError, match=path.name):
            GramianEstimator.load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_samples", np.inf),  # was an OverflowError
        ("n_samples", -1),
        ("n_samples", "many"),
        ("n_states", 0),
        ("n_states", [3, 3]),
        ("forgetting", 2.0),
        ("weight", np.nan),
        ("weight", 1j),
        ("triangle", np.full((3, 3), np.nan)),
        ("triangle", np.full((3, 3), 1.7e308)),  # was NaN after the next QR
        ("triangle", np.ones(3)),
        ("triangle", np.ones((2, 3)).astype("m8[s]")),
        ("triangle", np.ones((2, 3)).astype(str)),
        ("format", None),
    ],
    ids=str,
)
def test_load_refuses_odd_values(tmp_path, key, value):
    path = tmp_path / "a\nb.npz"
    parts = {"format": 1, "n_states": 3, "forgetting": 1.0, "n_samples": 1, "weight": 1.0}
    parts["triangle"] = np.ones((1, 3))
    np.savez(path, **parts)
    assert GramianEstimator.load(path).n_samples == 1
    np.savez(path, **(parts | {key: np.array(value)}), allow_pickle=True)
    with pytest.raises(FileFormatError, match="is not a saved GramianEstimator") as caught:
        GramianEstimator.load(path)
    assert str(caught.value).isprintable()


@pytest.mark.slow
def test_load_unpacks_only_what_belongs_to_an_estimator(tmp_path):
    path = tmp_path / "bomb.npz"
    estimator = fed(data(0, 3, 10))
    estimator.save(path)
    with np.load(path) as content:
        np.savez_compressed(path, junk=np.zeros(20_000_000), **dict(content))
    tracemalloc.start()
    loaded = GramianEstimator.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    assert same(loaded, estimator)


def test_what_goes_wrong_is_said():
    estimator = GramianEstimator(3)
    estimator.update(np.zeros((3, 0)))
    for method in (estimator.gramian, estimator.factor):
        with pytest.raises(HankelredError, match="no samples"):
            method()
    with pytest.raises(HankelredError, match=r"\(3, samples\).*transpose"):
        estimator.update(np.zeros((10, 3)))
    with pytest.raises(HankelredError, match=r"\(3, samples\)"):
        estimator.update(np.zeros(3))
    with pytest.raises(HankelredError, match=r"states\[1, 4\] is nan"):
        estimator.update(np.where(np.arange(15).reshape(3, 5) == 9, np.nan, 1.0))
    assert estimator.n_samples == 0
    with pytest.raises(HankelredError, match="n_states 3 and 2"):
        estimator.merge(GramianEstimator(2))
    with pytest.raises(HankelredError, match="forgetting"):
        estimator.merge(GramianEstimator(3, forgetting=0.9))
    with pytest.raises(HankelredError, match="can only merge"):
        estimator.merge(np.eye(3))
    for bad in (0, -1, 1.5, True):
        with pytest.raises(HankelredError, match="n_states"):
            GramianEstimator(bad)
    for forgetting in (0.0, 1.1, float("nan")):
        with pytest.raises(HankelredError, match="forgetting"):
            GramianEstimator(2, forgetting=forgetting)
    with pytest.raises(HankelredError, match=r"overflow.*factor"):
        fed(np.full((2, 3), 1e200)).gramian()
    assert np.isfinite(fed(np.full((2, 3), 1e200)).factor()).all()
    # what a QR makes infinite is refused: the factor of three samples of 1.7e308 was NaN
    for size in (1.1e300, 1.7e308):
        with pytest.raises(HankelredError, match=r"as large as 1\.\de\+30\d.*other units"):
            fed(np.full((2, 3), size))
    many = fed(*[np.full((2, 1000), 1e300 * sign) for sign in (1, -1, 1j)])
    assert np.isfinite(many.factor()).all() and np.isfinite(many.merge(many).factor()).all()


class TestThreads:
    """One estimator updated by several threads was wrong without a word: 6 of 10 runs, by up to 58 %."""

    @pytest.fixture(autouse=True)
    def switch_often(self):
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        yield
        sys.setswitchinterval(interval)

    @staticmethod
    def together(*functions):
        """Run functions in threads that start at the same time; raise what one of them raises."""
        barrier = threading.Barrier(len(functions))

        def started(function):
            barrier.wait()
            return function()

        with ThreadPoolExecutor(len(functions)) as pool:
            return [future.result() for future in [pool.submit(started, f) for f in functions]]

    @pytest.mark.parametrize("forgetting", [1.0, 0.999])
    def test_updates_of_several_threads_are_all_counted(self, forgetting):
        # large enough for numpy to let other threads run in the middle of a QR
        blocks = [data(i, 40, 16) for i in range(1600)]
        shared = GramianEstimator(40, forgetting=forgetting)

        def feed(part):
            return lambda: [shared.update(block) for block in blocks[part::8]]

        self.together(*(feed(part) for part in range(8)))
        assert shared.n_samples == 25600
        if forgetting == 1:
            assert same(shared, fed(*blocks))
        else:
            # the order of the blocks is that of the threads; nothing is lost or counted twice
            weight = (1 - forgetting**25600) / (1 - forgetting)
            assert abs(shared.weight / weight - 1) < 1e-12

    def test_what_is_read_meanwhile_belongs_to_whole_updates(self, tmp_path):
        # every state is the same, and so is every mean of whole updates
        state = np.array([[1.0], [-2.0], [0.5]])
        shared = fed(state)
        others = [GramianEstimator(3) for _ in range(4)]

        def write():
            for _ in range(1500):
                shared.update(state)

        def read():
            for i in range(150):
                shared.save(tmp_path / "shared.npz")
                copies = (
                    shared,
                    shared.merge(shared),
                    others[0].merge(shared),
                    copy.deepcopy(shared),
                    pickle.loads(pickle.dumps(shared)),
                    GramianEstimator.load(tmp_path / "shared.npz"),
                )
                assert close(copies[i % 6].gramian(), state @ state.T) < 1e-12

        self.together(write, read, write)
        assert shared.n_samples == 3001

    def test_two_that_merge_each_other_do_not_wait_for_ever(self):
        a, b = fed(data(0, 3, 10)), fed(data(1, 3, 10))
        results = self.together(
            lambda: [a.merge(b) for _ in range(300)][-1], lambda: [b.merge(a) for _ in range(300)][-1]
        )
        assert same(*results)

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
    def test_a_copy_waits_for_the_update_in_progress(self, monkeypatch, duplicate):
        shared, inside = fed(data(0, 3, 10)), threading.Event()
        push = TriangularFactor.push

        def slow(factor, rows):
            inside.set()
            time.sleep(0.1)  # the weight is that of the new samples already
            push(factor, rows)

        monkeypatch.setattr(TriangularFactor, "push", slow)
        thread = threading.Thread(target=shared.update, args=(data(1, 3, 10),))
        thread.start()
        inside.wait()
        other = duplicate(shared)
        thread.join()
        assert (other.n_samples, other.weight) == (20, 20.0)
        assert same(other, shared)

    def test_copies_and_pickles_go_on_by_themselves(self):
        original = fed(data(0, 3, 10), forgetting=0.9)
        for other in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
            before = original.gramian()
            other.update(data(1, 3, 10))
            np.testing.assert_array_equal(original.gramian(), before)
            assert other.n_samples == 20
            assert same(other, fed(data(0, 3, 10), data(1, 3, 10), forgetting=0.9))

    def test_a_pickle_from_before_there_was_a_lock_is_read(self):
        original = fed(data(0, 3, 10))
        old = GramianEstimator.__new__(GramianEstimator)
        old.__setstate__({name: value for name, value in vars(original).items() if name != "_lock"})
        old.update(data(1, 3, 10))
        assert old.n_samples == 20


class Lazy:
    """An array that is not in memory, as those of HDF5, zarr and dask: it records the largest piece read."""

    def __init__(self, x, chunks=None):
        self.x, self.shape, self.dtype, self.largest = x, x.shape, x.dtype, 0
        if chunks is not None:
            self.chunks = chunks

    def __getitem__(self, key):
        piece = self.x[key]
        self.largest = max(self.largest, piece.shape[1])
        return piece

    def __array__(self, dtype=None, copy=None):
        raise MemoryError("the whole array was read")


@pytest.mark.parametrize("forgetting", [1.0, 0.999])
@pytest.mark.parametrize("chunks", [None, (4, 300), ((4,), (300,) * 34)])
def test_arrays_outside_memory_are_read_in_blocks(monkeypatch, forgetting, chunks):
    """A dask array of 2.2 GB once took 6.4 GB, because it was converted as a whole."""
    monkeypatch.setattr("hankelred.empirical.estimator._BLOCK_BYTES", 4 * 8 * 1000)
    x = data(5, 4, 10_200)
    lazy = Lazy(x, chunks)
    estimator = fed(data(1, 4, 50), forgetting=forgetting)
    estimator.update(lazy)
    assert lazy.largest == (1000 if chunks is None else 900)
    assert same(estimator, fed(data(1, 4, 50), x, forgetting=forgetting))


def test_a_bad_sample_in_a_late_block_changes_nothing(monkeypatch):
    monkeypatch.setattr("hankelred.empirical.estimator._BLOCK_BYTES", 4 * 8 * 1000)
    x = data(5, 4, 5000)
    x[2, 4321] = np.nan
    estimator = fed(data(1, 4, 50))
    with pytest.raises(HankelredError, match=r"states\[2, 4321\] is nan"):
        estimator.update(Lazy(x))
    assert same(estimator, fed(data(1, 4, 50)))


@pytest.mark.slow
def test_a_memory_map_takes_constant_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("hankelred.empirical.estimator._BLOCK_BYTES", 2**20)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=float, shape=(8, 2_000_000))
    x[:] = data(3, 8, 2000)[:, np.arange(2_000_000) % 2000]
    estimator = GramianEstimator(8)
    tracemalloc.start()
    estimator.update(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 8
    assert close(estimator.gramian(), x @ x.T / 2_000_000) < 1e-10


def test_merge_all():
    parts = [data(seed, 3, 40 + seed) for seed in range(5)]
    merged = GramianEstimator.merge_all(fed(part) for part in parts)
    assert same(merged, fed(np.concatenate(parts, axis=1)))
    for wrong, message in (
        ([], "no estimator"),
        ([GramianEstimator(2), GramianEstimator(3)], "n_states 2 and 3"),
        ([GramianEstimator(2), None], "NoneType"),
    ):
        with pytest.raises(HankelredError, match=message):
            GramianEstimator.merge_all(wrong)
