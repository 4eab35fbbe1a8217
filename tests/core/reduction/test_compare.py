"""The comparison of every method, and the pictures of bands, horizons and weights."""

from __future__ import annotations

import control
import matplotlib
import numpy as np
import pytest
from helpers.commands import run_main
from helpers.reference import difference, gains, random_system

import hankelred
from hankelred import ModelError, OrderError, compare_methods, reduce
from hankelred.cli import main as cli
from hankelred.files import write_model
from hankelred.models.linear_model import as_model
from hankelred.reduction.variants.catalog import REDUCTION_METHODS

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _closed():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


SYSTEM = random_system(1, 8, 2, 2)
WEIGHT = control.ss(-np.eye(2), np.eye(2), np.eye(2), 0 * np.eye(2))


@pytest.fixture(scope="module")
def everything():
    return compare_methods(SYSTEM, 4, band=(0.5, 2), horizon=1.0, input_weight=WEIGHT, regularization=0.3)


def test_a_notebook_shows_the_comparison_as_a_table(everything):
    """The repr was a page of nested reductions, which a notebook showed."""
    assert repr(everything).startswith(f"<MethodComparison of {len(everything.rows)} methods: ")
    assert len(repr(everything)) < 100
    text = everything._repr_html_()
    assert text.count("<tr>") == len(everything.rows) + 1
    assert all(f"<td>{row.method}</td>" in text for row in everything.rows)


def test_every_method_has_a_row(everything):
    assert {row.method for row in everything.rows} == set(REDUCTION_METHODS)
    for row in everything.rows:
        if row.reduction is None:
            assert row.note and row.order is None
            continue
        w = np.concatenate([[0], np.geomspace(1e-3, 1e3, 3000)])
        apart = difference(SYSTEM, row.reduction.system)
        assert gains(apart, w).max() == pytest.approx(row.error, rel=1e-2)
        assert gains(apart, np.linspace(0.5, 2, 500)).max() == pytest.approx(row.band_error, rel=1e-3)
        assert row.error <= row.bound * (1 + 1e-9)
        assert row.seconds > 0
    # sorted by the error in the band, and the weighted method is best where its weight is
    errors = [row.band_error for row in everything.rows if row.order is not None]
    assert errors == sorted(errors)
    projections = [everything[m] for m in ("truncation", "frequency_weighted")]
    assert projections[1].weighted_error <= projections[0].weighted_error * (1 + 1e-6)
    assert everything["time_limited"].horizon_error <= everything["truncation"].horizon_error * (1 + 1e-6)


def test_the_table_says_what_the_rows_say(everything):
    text = str(everything).splitlines()
    assert text[0].split()[:3] == ["method", "order", "error"]
    for row, line in zip(everything.rows, text[1:], strict=False):
        assert line.startswith(row.method)
        assert (f"{row.error:.3e}" in line) == (row.order is not None)
    with pytest.raises(ModelError, match="was not compared"):
        everything["balancing"]


def test_only_what_was_asked_for():
    comparison = compare_methods(SYSTEM, 3)
    methods = {row.method for row in comparison.rows}
    assert not methods & {"frequency_limited", "time_limited", "frequency_weighted"}
    assert np.isnan(comparison["truncation"].band_error)
    # D = 0: relative errors need a regularization, which is chosen and told
    flat = compare_methods((*SYSTEM[:3], 0), 3)
    assert "regularization" in flat["stochastic"].note and flat["stochastic"].order == 3


def test_a_model_that_is_zero():
    """The note of "stochastic" was about a regularization of 0.0, which nobody had passed."""
    A, B, C, D = SYSTEM
    comparison = compare_methods((A, 0 * B, C, 0 * D), 2)
    assert "full row rank" in comparison["stochastic"].note
    assert all(row.error == 0 for row in comparison.rows if row.order is not None)


def test_wrong_arguments_are_refused_at_once():
    with pytest.raises(OrderError):
        compare_methods(SYSTEM, 2.5)
    for wrong in ({"band": (2, 1)}, {"horizon": -1}, {"input_weight": (1,)}, {"regularization": 0}):
        with pytest.raises(ModelError):
            compare_methods(SYSTEM, 3, **wrong)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_picture_of_a_comparison(everything):
    ax = everything.plot()
    shown = labels(ax)
    assert "full (8 states)" in shown and "band" in shown
    assert {f"error of {r.method}" for r in everything.rows if r.reduction} <= set(shown)
    line = next(line for line in ax.get_lines() if line.get_label() == "error of truncation")
    assert np.nanmax(line.get_ydata()) == pytest.approx(everything["truncation"].error, rel=0.05)


def test_a_band_is_shaded_and_a_weight_drawn():
    bands = [(0.5, 1.0), (3.0, 4.0)]
    ax = reduce(SYSTEM, 6, method="frequency_limited", band=bands).plot()
    assert "band" in labels(ax) and len(ax.patches) == 2
    spans = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
    np.testing.assert_allclose([(s.x0, s.x1) for s in spans], bands, rtol=1e-6)
    ax = reduce(SYSTEM, 3, method="frequency_weighted", output_weight=WEIGHT).plot()
    line = next(line for line in ax.get_lines() if line.get_label() == "output weight")
    np.testing.assert_allclose(line.get_ydata(), 1 / np.hypot(1, line.get_xdata()), rtol=1e-9)


@pytest.mark.filterwarnings("ignore:the model of order")
@pytest.mark.parametrize("dt", [0, 0.5])
def test_a_horizon_is_shaded_over_time(dt):
    system = random_system(2, 6, 1, 1, discrete=bool(dt))
    reduction = reduce(system, 4, method="time_limited", horizon=3.0, dt=dt)
    ax = reduction.plot()
    assert "horizon" in labels(ax) and ax.get_xlabel() == "time (s)"
    full = ax.get_lines()[0]
    expected = hankelred.impulse_response(
        system, len(full.get_xdata()), dt=dt, **({} if dt else {"step": full.get_xdata()[1]})
    )
    np.testing.assert_allclose(full.get_ydata(), np.abs(expected[:, 0, 0]), rtol=1e-9)
    assert full.get_xdata()[-1] == pytest.approx(6.0)


def test_the_command_line_compares_and_limits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(as_model(SYSTEM), "model.mat")
    status, out, _ = run_main(
        cli.main, "hankelred", "compare", "model.mat", "--order", "4", "--band", "0.5", "2", "--plot", "m.png"
    )
    assert status == 0 and "frequency_limited" in out and "band error" in out
    assert (tmp_path / "m.png").stat().st_size > 10_000
    status, out, _ = run_main(
        cli.main,
        "hankelred",
        *("reduce", "model.mat", "--order", "6", "--method", "frequency_limited", "--band", "0.5", "2"),
    )
    assert status == 0 and "true error in the band" in out
    status, _, err = run_main(
        cli.main, "hankelred", "reduce", "model.mat", "--order", "4", "--band", "1", "2"
    )
    assert status == 2 and "band= belongs to" in err
