"""Pictures of spectra: what is drawn, read from the axes."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot

from hankelred.plotting import draw as plotting
from hankelred_llm import ConfigError, HankelSpectra
from hankelred_llm.analysis import plots as spectra_plots


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def trained(count, **more):
    values = {i: (1 + i / count) * np.exp(-0.3 * np.arange(8 + i % 3)) for i in range(count)}
    return HankelSpectra(values, noise_floors=dict.fromkeys(values, 1e-15), **more)


def before_training(count):
    gradient = {i: np.concatenate([np.full(i % 4 + 1, 5.0), np.linspace(1.2, 0.5, 20)]) for i in range(count)}
    return HankelSpectra({}, gradient=gradient, null={i: np.linspace(1, 0.8, 8) for i in range(count)})


def labels(ax):
    return [line.get_label() for line in ax.get_lines() if not line.get_label().startswith("_")]


class TestCurves:
    def test_two_layers(self):
        spectra = trained(2)
        ax = spectra.plot(ranks={0: 3, 1: 5})
        assert ax.get_yscale() == "log"
        assert labels(ax) == ["layer 0", "layer 1", "rank chosen"]
        lines = ax.get_lines()
        assert np.allclose(lines[0].get_ydata(), spectra[0])
        assert np.allclose(lines[1].get_ydata(), spectra[1])
        assert list(lines[2].get_xdata()) == [3, 5]
        assert np.allclose(lines[2].get_ydata(), [spectra[0][2], spectra[1][4]])

    def test_median_and_spread_of_many(self):
        spectra = trained(32)
        ax = spectra.plot()
        named = {line.get_label(): line for line in ax.get_lines()}
        assert "layer 0 (light) to 31 (dark)" in named
        rows = np.array([spectra[i][:8] for i in spectra])
        assert np.allclose(named["median of the layers"].get_ydata()[:8], np.median(rows, axis=0))
        assert "middle half" in [c.get_label() for c in ax.collections]
        assert len(ax.get_legend().get_texts()) < 6

    def test_before_training_shows_the_null_and_the_level(self):
        spectra = before_training(3)
        ax = spectra.plot()
        assert {"null: unrelated sequences", "level of significance"} <= set(labels(ax))
        level = next(line for line in ax.get_lines() if line.get_label().startswith("level"))
        assert level.get_ydata()[0] == pytest.approx(spectra.threshold(0))
        assert "before training" in ax.get_title()
        assert "loss" in ax.get_ylabel()

    def test_empirical_is_dashed(self):
        spectra = trained(2, empirical={i: np.exp(-np.arange(8.0)) * 40 for i in range(2)})
        ax = spectra.plot()
        dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
        assert len(dashed) == 2
        assert dashed[0].get_color() == spectra_plots.OTHER != spectra_plots.VALUES
        top = max(v.max() for v in spectra.values())
        assert max(line.get_ydata().max() for line in dashed) == pytest.approx(top)

    def test_zero_values_are_gaps(self):
        ax = HankelSpectra({0: np.array([1.0, 0.0]), 1: np.zeros(2)}).plot()
        ax.figure.canvas.draw()
        assert np.isnan(ax.get_lines()[0].get_ydata()[1])


class TestHeatmap:
    @pytest.mark.parametrize("count", [2, 32])
    @pytest.mark.parametrize("make", [trained, before_training])
    def test_layer_by_index(self, make, count):
        spectra = make(count)
        ax = spectra.plot(kind="heatmap", ranks=dict.fromkeys(spectra, 2))
        ax.figure.canvas.draw()
        grid = ax.collections[0].get_array().reshape(count, -1)
        assert np.allclose(grid[1, : spectra[1].size].filled(np.nan), spectra[1])
        assert 2 <= len(ax.get_yticks()) <= 16
        assert "rank chosen" in labels(ax)
        bottom, top = ax.get_ylim()
        assert bottom > top  # first layer on top
        counted = ax.get_lines()[0].get_xdata()[::2] - 0.5
        assert list(counted) == [spectra.significant(i) for i in spectra]

    def test_zeros_alone(self):
        ax = HankelSpectra({0: np.zeros(3), 4: np.zeros(3)}).plot(kind="heatmap")
        ax.figure.canvas.draw()
        assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "4"]


def test_refusals():
    with pytest.raises(ConfigError, match="kind='bars' is unknown"):
        trained(1).plot(kind="bars")
    with pytest.raises(ConfigError, match="no layers to draw"):
        HankelSpectra({}).plot()


def test_given_axes_are_used():
    _, ax = pyplot.subplots()
    assert trained(2).plot(ax) is ax
    assert trained(2).plot(ax=ax) is ax


def test_colours_are_those_of_the_core():
    assert (spectra_plots.VALUES, spectra_plots.CHOSEN) == (plotting.FULL, plotting.REDUCED)
    assert (spectra_plots.OTHER, spectra_plots.LINE) == (plotting.ERROR, plotting.BOUND)
    assert spectra_plots.NULL == plotting.NOISE
