"""Figures in tests: drawn without a screen, and closed after each test."""

from __future__ import annotations

import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def closed_figures():
    """Close the figures of a test after it; a module imports this fixture to have it."""
    yield
    plt.close("all")
