"""Records as tables of other packages, and the scikit-learn estimator, against the same arrays."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import control
import numpy as np
import pytest
import scipy.io
from click.testing import CliRunner

import hankelred
from hankelred.cli.main import cli
from hankelred.identification.records import read_columns
from hankelred.identification.tables import from_table, time_step


def record(samples=300):
    rng = np.random.default_rng(0)
    u = rng.standard_normal(samples)
    y = np.convolve(u, 0.8 ** np.arange(80))[:samples] + 0.05 * rng.standard_normal(samples)
    return u, y


@pytest.fixture(scope="module")
def expected():
    return hankelred.identify(*record(), 1, dt=0.2)


def same(model, expected):
    return np.array_equal(model.system.A, expected.system.A) and model.system.dt == expected.system.dt


class TestPandas:
    def test_names_and_times(self, expected):
        """Names once became u[0], and a time axis of .2 s was ignored without a word."""
        pandas = pytest.importorskip("pandas")
        u, y = record()
        times = 5 + 0.2 * np.arange(300)
        index = pandas.date_range("2026-01-01", periods=300, freq="200ms")
        for where in (times, index, index - index[0]):
            frame = pandas.DataFrame({"valve": u, "level": y}, index=where)
            for inputs, outputs in (
                (frame[["valve"]], frame[["level"]]),
                (frame["valve"], frame["level"]),
            ):
                model = hankelred.identify(inputs, outputs, 1)
                assert same(model, expected)
                assert model.system.input_labels == ["valve"] and model.system.output_labels == ["level"]

    def test_either_orientation_and_a_column_of_times(self, expected):
        pandas = pytest.importorskip("pandas")
        u, y = record()
        frame = pandas.DataFrame({"Time": 0.2 * np.arange(300), "valve": u})
        assert same(hankelred.identify(frame, y, 1), expected)
        assert same(hankelred.identify(frame.T, y, 1), expected)
        plain = pandas.DataFrame({"valve": u})  # the index counts samples, which are no times
        assert hankelred.identify(plain, y, 1).system.dt is True

    def test_times_that_contradict(self):
        pandas = pytest.importorskip("pandas")
        u, y = record()
        frame = pandas.DataFrame({"valve": u}, index=0.2 * np.arange(300))
        with pytest.raises(hankelred.HankelredError, match="disagrees"):
            hankelred.identify(frame, y, 1, dt=0.1)
        frame.index *= 1e-8  # steps below 1e-8 seconds all counted as the same
        with pytest.raises(hankelred.HankelredError, match="disagrees"):
            hankelred.identify(frame, y, 1, dt=4e-9)
        frame.index = np.cumsum(np.linspace(0.1, 0.3, 300))
        with pytest.raises(hankelred.HankelredError, match="not uniform"):
            hankelred.identify(frame, y, 1)

    def test_times_of_u_and_y_that_differ(self, expected):
        """Of the times only the step was used: records an hour apart were fitted without a warning."""
        pandas = pytest.importorskip("pandas")
        u, y = record()
        dates = pandas.date_range("2026-01-01", periods=300, freq="200ms", tz="Europe/Berlin")
        spans = dates - dates[0]
        seconds = 0.2 * np.arange(300)
        for index, shift, text in (
            (dates, pandas.Timedelta("1h"), "y begins 3600 s after"),
            (dates, -pandas.Timedelta("40ms"), "y begins 0.04 s before"),
            (spans, pandas.Timedelta("40ms"), "y begins 0.04 s after"),
            (seconds, 5.0, "y begins 5 s after"),
        ):
            with pytest.raises(hankelred.HankelredError, match=text):
                hankelred.identify(pandas.Series(u, index), pandas.Series(y, index + shift), 1)
            assert same(hankelred.identify(pandas.Series(u, index), pandas.Series(y, index), 1), expected)
        frames = [pandas.DataFrame({"time": seconds + s, "x": x}) for s, x in ((0, u), (7, y))]
        with pytest.raises(hankelred.HankelredError, match="begins 7 s after"):
            hankelred.identify(*frames, 1)
        pair = ([frames[0], frames[0]], [pandas.DataFrame({"time": seconds, "x": y}), frames[1]])
        with pytest.raises(hankelred.HankelredError, match="y of experiment 1 begins 7 s after"):
            hankelred.identify(*pair, 1)
        assert same(hankelred.identify(pandas.Series(u, dates), pandas.Series(y, seconds), 1), expected)

    def test_index_that_counts_samples(self):
        """An index with a gap, or of other samples in y than in u, gave a fit of .90 instead of 1.00."""
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(dict(zip("uy", record(400), strict=True)))
        gap = frame.drop(index=range(100, 150))
        for cut in (gap, frame[::-1], pandas.concat([frame, frame])):
            with pytest.raises(hankelred.HankelredError, match="index of u is not evenly spaced"):
                hankelred.identify(cut.u, cut.y, 1)
        with pytest.raises(hankelred.HankelredError, match="index of u is not evenly spaced: 150 follows 99"):
            hankelred.identify(gap.u, gap.y, 1)
        with pytest.raises(hankelred.HankelredError, match=r"y begins 100 sample\(s\) after that of u"):
            hankelred.identify(frame.u.iloc[:300], frame.y.iloc[100:], 1)
        with pytest.raises(hankelred.HankelredError, match="steps of 1 and that of y of 2"):
            hankelred.identify(frame.u.iloc[:200], frame.y[::2], 1)
        whole = hankelred.identify(frame.u[50:], frame.y[50:], 1)
        joined = hankelred.identify(gap.u.reset_index(drop=True), gap.y.to_numpy(), 1)
        assert whole.fit[0] > 0.95 > joined.fit[0]
        thinned = hankelred.identify(frame.u[::2], frame.y[::2], 1)  # every second sample is a record too
        assert thinned.system.dt is True


def test_xarray(expected):
    xarray = pytest.importorskip("xarray")
    u, y = record()
    coordinates = {"time": 0.2 * np.arange(300), "channel": ["valve"]}
    inputs = xarray.DataArray(u[:, None], dims=("time", "channel"), coords=coordinates)
    output = xarray.DataArray(y, dims="time", coords={"time": coordinates["time"]}, name="level")
    for array in (inputs, inputs.T):
        model = hankelred.identify(array, output, 1)
        assert same(model, expected)
        assert model.system.input_labels == ["valve"] and model.system.output_labels == ["level"]

    late = output.assign_coords(time=coordinates["time"] + 5)
    with pytest.raises(hankelred.HankelredError, match="begins 5 s after"):
        hankelred.identify(inputs, late, 1)


def test_polars(expected):
    polars = pytest.importorskip("polars")
    u, y = record()
    inputs = polars.DataFrame({"time": 0.2 * np.arange(300), "valve": u})
    model = hankelred.identify(inputs, polars.Series("level", y), 1)
    assert same(model, expected)
    assert model.system.input_labels == ["valve"] and model.system.output_labels == ["level"]


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_other_types_of_numbers(dtype):
    u, y = record()
    u, y = np.round(100 * u).astype(dtype), np.round(100 * y).astype(dtype)
    model = hankelred.identify(u, y, 1)
    assert model.system.poles()[0].real == pytest.approx(0.8, abs=0.01)


def test_time_steps():
    assert time_step(np.arange(10) * 0.1, "u") == 0.1
    assert time_step(np.round(np.arange(1000) * 0.1, 4), "u") == 0.1
    assert time_step(np.array([0.1]), "u") is None


def test_an_index_of_names_is_no_time_axis():
    pandas = pytest.importorskip("pandas")
    table = from_table(pandas.DataFrame({"u": [1.0, 2.0]}, index=["a", "b"]), "u")
    assert table.times is None and table.step is None


def test_a_column_of_times_on_the_command_line(tmp_path):
    u, y = record()
    table = np.column_stack([0.2 * np.arange(300), u, y])
    np.savetxt(tmp_path / "r.csv", table, delimiter=",", header="time,valve,level", comments="")
    arguments = [
        "identify",
        str(tmp_path / "r.csv"),
        "--inputs",
        "valve",
        "--outputs",
        "level",
        "--order",
        "1",
    ]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 0 and "dt = 0.2" in run.output, run.output
    assert "dt = 0.5" in CliRunner().invoke(cli, [*arguments, "--dt", "0.5"]).output


class TestSystemIdentifier:
    @pytest.mark.parametrize("where", ["column", "index"])
    def test_the_times_of_tables_are_no_input(self, expected, where):
        """A column named time became a second input without a word, and a time index was ignored."""
        pandas = pytest.importorskip("pandas")
        u, y = record()
        times = 0.2 * np.arange(u.size)
        X, Y = pandas.DataFrame({"time": times, "valve": u}), pandas.DataFrame({"time": times, "level": y})
        if where == "index":
            X, Y = X.set_index("time"), Y.set_index("time")
        estimator = hankelred.SystemIdentifier(1).fit(X, Y)
        assert estimator.n_features_in_ == 1 and same(estimator.model_, expected)
        assert "level" in str(estimator.model_.summary())
        arrays = hankelred.SystemIdentifier(1, dt=0.2).fit(u[:, None], y[:, None])
        np.testing.assert_array_equal(estimator.predict(X), arrays.predict(u[:, None]))
        assert estimator.score(X, Y) == arrays.score(u[:, None], y[:, None])
        # a single row has no more rows than columns, and is still one sample
        assert estimator.predict(X.drop(columns="time", errors="ignore").iloc[:1]).shape == (1, 1)

    def test_it_is_identify_with_samples_first(self, expected):
        u, y = record()
        estimator = hankelred.SystemIdentifier(1, dt=0.2).fit(u[:, None], y)
        assert same(estimator.model_, expected) and estimator.n_features_in_ == 1
        compared = expected.compare(u, y)
        residual = np.sum((y - compared.output[0]) ** 2) / np.sum((y - y.mean()) ** 2)
        assert estimator.score(u[:, None], y) == pytest.approx(1 - residual, rel=1e-9)

    def test_predict_starts_in_equilibrium(self):
        u, y = record()
        estimator = hankelred.SystemIdentifier(1).fit(u[:, None], y[:, None])
        constant = estimator.predict(np.ones((50, 1)))
        assert constant.shape == (50, 1) and np.ptp(constant) < 1e-9
        assert constant[0, 0] == pytest.approx(1 / (1 - 0.8), rel=0.05)
        step = estimator.predict(np.concatenate([np.zeros(10), np.ones(60)])[:, None])
        assert step[:10, 0] == pytest.approx(step[0, 0]) and step[-1, 0] == pytest.approx(
            constant[0, 0], rel=1e-3
        )

    def test_parameters(self):
        estimator = hankelred.SystemIdentifier(order=3, dt=0.5)
        assert estimator.get_params()["order"] == 3
        assert repr(estimator.set_params(order=2)) == "SystemIdentifier(order=2, dt=0.5)"
        with pytest.raises(hankelred.HankelredError, match="no parameter"):
            estimator.set_params(horizon=3)
        assert pickle.loads(pickle.dumps(estimator)).get_params() == estimator.get_params()

    def test_what_does_not_fit_is_refused(self):
        u, y = record()
        estimator = hankelred.SystemIdentifier(1)
        with pytest.raises(hankelred.HankelredError, match="not fitted"):
            estimator.predict(u[:, None])
        with pytest.raises(hankelred.HankelredError, match="y is None"):
            estimator.fit(u[:, None], None)
        with pytest.raises(hankelred.HankelredError, match="samples"):
            estimator.fit(u[:, None], y[:-1])
        estimator.fit(u[:, None], y)
        with pytest.raises(hankelred.HankelredError, match="2 features"):
            estimator.predict(np.ones((5, 2)))

    def test_it_does_not_import_scikit_learn(self):
        code = "import sys, hankelred; hankelred.SystemIdentifier(1); sys.exit('sklearn' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_scikit_learn(self):
        """Its own checks, apart from those whose records have fewer samples than a model needs."""
        pytest.importorskip("sklearn")
        from sklearn.base import clone
        from sklearn.model_selection import TimeSeriesSplit, cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.utils.estimator_checks import check_estimator

        u, y = record()
        estimator = hankelred.SystemIdentifier(1)
        assert clone(estimator).get_params() == estimator.get_params()
        assert np.all(cross_val_score(estimator, u[:, None], y, cv=TimeSeriesSplit(2)) > 0.98)
        assert make_pipeline(StandardScaler(), estimator).fit(u[:, None], y).score(u[:, None], y) > 0.98
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it does not inherit from scikit-learn's base class
            results = check_estimator(estimator, on_fail=None, on_skip=None)
        failed = [
            r for r in results if r["status"] == "failed" and "too few samples" not in str(r["exception"])
        ]
        # "minimum of two samples" is worded differently
        assert {r["check_name"] for r in failed} <= {"check_fit2d_1sample"}, failed


def test_measured_record_is_visible_under_the_simulated_one(expected):
    """Both lines had about the same width, so that the simulated one, drawn later, hid the measured one."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    above = expected.plot()[0, 0]
    measured, simulated = above.get_lines()
    assert measured.get_label() == "measured" and measured.get_linewidth() > 2 * simulated.get_linewidth()
    pyplot.close("all")


@pytest.mark.parametrize("step", [-0.1, 0.0])
def test_times_that_do_not_rise_are_refused(step):
    """A response with falling times was refused for its negative dt, without a word of its times."""
    u, y = record()
    data = control.TimeResponseData(step * np.arange(300), y, None, u, issiso=True)
    with pytest.raises(hankelred.HankelredError, match="does not rise uniformly"):
        hankelred.identify(data, order=1)


class TestStructs:
    """Records as structs with the fields of MATLAB's iddata, written by scipy; they were passed over."""

    @pytest.mark.parametrize(("inputs", "outputs"), [("InputData", "OutputData"), ("u", "y")])
    def test_columns_and_times(self, tmp_path, inputs, outputs):
        rng = np.random.default_rng(0)
        u, y = rng.standard_normal((50, 2)), rng.standard_normal((50, 1))
        path = tmp_path / "record.mat"
        scipy.io.savemat(path, {"data": {inputs: u, outputs: y, "Ts": 0.25, "Name": "a record"}})
        table, names = read_columns(path)
        assert names == ["u0", "u1", "y", "time"]
        assert np.array_equal(table[:, :3], np.concatenate([u, y], axis=1))
        assert table[-1, 3] == pytest.approx(0.25 * 49)

    @pytest.mark.parametrize(("unit", "seconds"), [("minutes", 60), ("milliseconds", 1e-3), ("seconds", 1)])
    def test_the_unit_of_time(self, tmp_path, unit, seconds):
        """It was ignored: a step of a quarter of a minute was read as one of 0.25 s."""
        path = tmp_path / "record.mat"
        fields = {"u": np.arange(9.0), "y": np.arange(9.0), "Ts": 0.25, "TimeUnit": unit}
        scipy.io.savemat(path, {"data": fields})
        table, names = read_columns(path)
        assert names[-1] == "time"
        assert table[-1, -1] == pytest.approx(0.25 * 8 * seconds)

    @pytest.mark.parametrize("unit", ["months", 3.0])
    def test_other_units_of_time_are_refused(self, tmp_path, unit):
        path = tmp_path / "record.mat"
        fields = {"u": np.arange(9.0), "y": np.arange(9.0), "Ts": 0.25, "TimeUnit": unit}
        scipy.io.savemat(path, {"data": fields})
        with pytest.raises(hankelred.HankelredError, match=r"TimeUnit .*(months|3\.).*minutes"):
            read_columns(path)

    def test_another_struct_is_passed_over(self, tmp_path):
        path = tmp_path / "record.mat"
        scipy.io.savemat(path, {"info": {"u": 1.0, "note": "x"}, "u": np.arange(9.0), "y": np.arange(9.0)})
        assert read_columns(path)[1] == ["u", "y"]
