"""Plots of spectra and reductions: curves, axes, labels; empty and unusual spectra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from helpers.figures import closed_figures, plt  # noqa: F401
from helpers.reference import damped_chain, difference, gains, heat, random_system
from helpers.sweeps import sweep

import hankelred
from hankelred import plot_hankel_singular_values, plot_reduction


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def curve(ax, start):
    """The one line whose label starts so."""
    found = [line for line in ax.get_lines() if line.get_label().startswith(start)]
    assert len(found) == 1, [line.get_label() for line in ax.get_lines()]
    return found[0]


def draw(ax):
    ax.figure.canvas.draw()


HSV = [1.0, 0.1, 0.01, 1e-3]


def test_spectrum_shows_values_and_bound():
    ax = plot_hankel_singular_values(HSV)
    assert ax.get_yscale() == "log" and ax.get_xscale() == "linear"
    values = curve(ax, "Hankel singular value")
    np.testing.assert_array_equal(values.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(values.get_ydata(), HSV)
    bound = curve(ax, "error bound")
    np.testing.assert_array_equal(bound.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_allclose(bound.get_ydata(), [2.222, 0.222, 0.022, 0.002])
    assert len(labels(ax)) == 2 and ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
    low, high = ax.get_ylim()
    assert low < 1e-3 and high > 2.222
    draw(ax)


def test_order_marked_and_labelled():
    ax = plot_hankel_singular_values(HSV, order=2)
    line = curve(ax, "chosen order 2")
    assert "2.20e-02" in line.get_label()
    assert 2 < line.get_xdata()[0] < 3, "between the last value kept and the first left out"
    assert any("chosen order 2" in text for text in labels(ax))
    assert "exact" in curve(plot_hankel_singular_values(HSV, order=4), "chosen order 4").get_label()
    assert curve(plot_hankel_singular_values(HSV, order=0), "chosen order 0").get_xdata()[0] < 1


def test_tolerance_is_drawn_and_chooses():
    ax = plot_hankel_singular_values(HSV, tol=0.03)
    assert curve(ax, "chosen order 2")
    np.testing.assert_array_equal(curve(ax, "tolerance").get_ydata(), [0.03, 0.03])


def test_reduction_brings_its_own_order_and_floor():
    r = hankelred.reduce(heat(30), 5)
    ax = plot_hankel_singular_values(r)
    assert curve(ax, "chosen order 5")
    assert any(f"noise floor {r.noise_floor:.1e}" in text for text in labels(ax))
    assert curve(plot_hankel_singular_values(r, order=3), "chosen order 3")
    draw(ax)


def test_model_as_source():
    system = random_system(0, 6, 1, 1, discrete=True)
    ax = plot_hankel_singular_values(system, dt=True)
    np.testing.assert_allclose(
        curve(ax, "Hankel").get_ydata(), hankelred.hankel_singular_values(system, dt=True), rtol=1e-12
    )
    control = pytest.importorskip("control")
    ax = plot_hankel_singular_values(control.ss(*system, True))
    assert curve(ax, "Hankel").get_xdata().size == 6


def test_unstable_values_are_marked_apart():
    system = np.diag([1.0, 0.0, -1.0, -2.0]), np.ones((4, 1)), np.ones((1, 4)), 0
    ax = plot_hankel_singular_values(system)
    marked = curve(ax, "unstable or marginal (2)")
    assert marked.get_marker() == "^" and marked.get_xdata().tolist() == [1, 2]
    assert np.all(np.isfinite(marked.get_ydata()))
    assert np.all(marked.get_ydata() > curve(ax, "Hankel").get_ydata().max())
    assert curve(ax, "Hankel").get_xdata().tolist() == [3, 4]
    assert np.all(np.isfinite(curve(ax, "error bound").get_ydata()))
    assert curve(plot_hankel_singular_values(hankelred.reduce(system, 3)), "chosen order 3")
    draw(ax)


@pytest.mark.parametrize(
    "source",
    [
        np.zeros(0),
        [3.0],
        [0.0],
        [0.0, 0.0],
        [np.inf],
        [np.inf, np.inf],
        [np.inf, 0.0],
        [1.0, 0.0],
        [1e300, 1e-300],
        [5e-324],
        [1.0, 1.0, 1.0],
        np.geomspace(1, 1e-30, 300),
        (np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), 1),
        (np.eye(1), np.ones((1, 1)), np.ones((1, 1)), 0),
        (-np.eye(2), np.zeros((2, 1)), np.ones((1, 2)), 0),
    ],
)
def test_odd_spectra(source):
    ax = plot_hankel_singular_values(source)
    low, high = ax.get_ylim()
    assert 0 <= low < high and np.isfinite(high)
    draw(ax)
    for line in ax.get_lines():
        assert np.all(np.isfinite(line.get_ydata()))


def test_axes_of_the_user_are_used():
    _, axes = plt.subplots(1, 2)
    before = plt.get_fignums()
    assert plot_hankel_singular_values(HSV, ax=axes[0]) is axes[0]
    assert plot_reduction(hankelred.reduce(random_system(0, 4, 1, 1), 2), ax=axes[1]) is axes[1]
    assert plt.get_fignums() == before, "no other figure"
    assert axes[0].lines and axes[1].lines
    draw(axes[0])


@pytest.mark.parametrize(
    "options",
    [{"order": 2, "tol": 0.1}, {"order": 5}, {"order": -1}, {"order": 1.5}, {"tol": 0}, {"tol": np.nan}],
)
def test_bad_choices(options):
    with pytest.raises(hankelred.OrderError):
        plot_hankel_singular_values(HSV, **options)


@pytest.mark.parametrize("source", [[1.0, 2.0], [1.0, np.nan], [-1.0], "x", None, {}, 3.0])
def test_bad_sources(source):
    with pytest.raises(hankelred.HankelredError):
        plot_hankel_singular_values(source)


# reductions ------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dt", sweep([0, True, 0.5], first=1))
@pytest.mark.parametrize("method", ["truncation", "residualization"])
@pytest.mark.parametrize("ports", [(1, 1), (2, 3)])
def test_full_reduced_error_and_bound(dt, method, ports):
    system = random_system(1, 6, *ports, discrete=bool(dt))
    r = hankelred.reduce(system, 2, method=method, dt=dt)
    ax = plot_reduction(r)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [text.split(" ")[0] for text in labels(ax)] == ["full", "reduced", "error", "bound"]
    assert labels(ax)[:2] == ["full (6 states)", "reduced (2 states)"]
    seconds = 1.0 if dt is True or not dt else dt
    w = curve(ax, "full").get_xdata() * seconds
    assert np.all(np.diff(w) > 0) and w[0] > 0 and w.size > 100
    for start, what in (("full", system), ("reduced", r.system), ("error", difference(system, r.system))):
        expected = gains(what, w, discrete=bool(dt))
        np.testing.assert_allclose(
            curve(ax, start).get_ydata(), expected, rtol=1e-6, atol=1e-9 * expected.max()
        )
    assert np.all(curve(ax, "error").get_ydata() <= r.error_bound * (1 + 1e-9))
    np.testing.assert_array_equal(curve(ax, "bound").get_ydata(), [r.error_bound] * 2)
    assert ("rad/sample" in ax.get_xlabel()) == (dt is True)
    assert ("largest singular value" in ax.get_ylabel()) == (ports != (1, 1))
    if dt:
        assert w.max() <= np.pi * (1 + 1e-12)
    draw(ax)


def test_method_of_the_result():
    r = hankelred.reduce(random_system(1, 6, 1, 1), 2)
    assert labels(r.plot()) == labels(plot_reduction(r))


def test_resonances_are_on_the_grid():
    system = damped_chain(5, 1e-6)
    ax = plot_reduction(hankelred.reduce(system, 4))
    top = curve(ax, "full").get_ydata().max()
    w = np.abs(np.linalg.eigvals(system[0]).imag)
    np.testing.assert_allclose(top, gains(system, w).max(), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "system, order, dt",
    [
        (random_system(0, 3, 1, 1), 3, 0),  # no error, no bound
        (random_system(0, 3, 1, 1), 0, 0),
        (random_system(0, 0, 2, 1), 0, 0),
        ((np.diag([1.0, -1.0]), np.ones((2, 1)), np.ones((1, 2)), 0), 1, 0),
        ((np.diag([0.0, -1.0]), np.ones((2, 1)), np.ones((1, 2)), 0), 1, 0),  # infinite at frequency zero
        ((np.diag([1.0, -1.0, 0.5]), np.ones((3, 1)), np.ones((1, 3)), 0), 2, True),
        ((np.diag(np.ones(3), -1), np.eye(4)[:, :1], np.eye(4)[3:], 0), 2, True),  # poles at zero
        ((-np.eye(2), np.zeros((2, 1)), np.ones((1, 2)), 0), 0, 0),  # identically zero
        (random_system(0, 3, 2, 2, complex_=True), 1, 0),
        (random_system(0, 3, 0, 2), 0, 0),
        (tuple(1e9 * M for M in random_system(0, 4, 1, 1)), 2, 0),
        ((np.array([[0.0, 1.0], [-1.0, 0.0]]), np.eye(2), np.eye(2), 0), 2, 0),  # undamped
    ],
)
def test_odd_reductions(system, order, dt):
    ax = plot_reduction(hankelred.reduce(system, order, dt=dt))
    draw(ax)
    low, high = ax.get_ylim()
    assert 0 < low < high < np.inf
    assert labels(ax)[0].startswith("full")


@pytest.mark.parametrize("bad", [None, 3, random_system(0, 3, 1, 1)])
def test_only_reductions_are_drawn(bad):
    with pytest.raises(hankelred.ModelError, match="Reduction"):
        plot_reduction(bad)


def test_empirical_gramians_as_source():
    grams = hankelred.empirical_gramians(([[-1.0, 0.5], [0.0, -3.0]], [[1.0], [1.0]], [[1.0, 1.0]], 0.0))
    ax = hankelred.plot_hankel_singular_values(grams)
    draw(ax)
    assert not any("bound" in text for text in labels(ax))  # no bound holds
    np.testing.assert_allclose(curve(ax, "Hankel").get_ydata(), grams.hankel_singular_values)


def test_frequencies_where_nothing_is_seen_are_left_out():
    stiff = np.diag([-1.0, -1e7])  # the fast pole adds little, and the gain is long gone where it is
    r = hankelred.reduce((stiff, [[1.0], [0.0]], [[1.0, 1.0]], 0), 1)
    ax = hankelred.plot_reduction(r)
    draw(ax)
    w, gain = curve(ax, "full").get_data()
    bottom, right = ax.get_ylim()[0], ax.get_xlim()[1]
    assert right < 1e6
    assert np.all(gain[w > right] <= bottom)


def test_a_noise_floor_below_the_axis_is_in_the_legend():
    ax = hankelred.plot_hankel_singular_values(([[-1.0]], [[1.0]], [[1.0]], 0))
    draw(ax)
    assert any(text.endswith("(below the plot)") for text in labels(ax))


def test_a_large_model_is_named_by_its_own_size():
    """A membrane of 1610 states was drawn as "full (112 states)": the size of the intermediate model."""
    A = sp.diags([np.ones(599), np.full(600, -2.0), np.ones(599)], [-1, 0, 1], format="csc")
    B, C = np.eye(600)[:, :1], np.eye(600)[[5]]
    reduction = hankelred.reduce((A, B, C, 0), order=3, solver="low_rank")
    ax = plot_reduction(reduction)
    assert labels(ax)[:2] == ["full (600 states)", "reduced (3 states)"]
    assert "<Reduction of 600 states" in repr(reduction)
