"""docs/results.md agrees with the files it is made from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.comparisons import small_comparison
from helpers.scripts import load_script

from hankelred_llm.experiments.compare import compare
from hankelred_llm.experiments.records import read_records
from hankelred_llm.ops.autograd import channel_scan

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def made():
    """The command that writes the page, as a module."""
    return load_script(DOCS / "make_results.py")


@pytest.fixture(scope="module")
def bench():
    """The command that writes the files, as a module."""
    return load_script(DOCS.parent / "benchmarks/bench_comparison.py")


def test_the_page_is_what_its_command_writes(made):
    assert made.page(made.read()) == (DOCS / "results.md").read_text(encoding="utf-8"), (
        "run: python docs/make_results.py"
    )


def test_the_figures_are_there_and_legible(made, tmp_path, monkeypatch):
    """Text was 7 points at 68 dots an inch in a picture wider than the page: 6 pixels, without a legend."""
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    images = sys.modules[made.save.__module__]
    monkeypatch.setattr(images, "IMAGES", tmp_path)
    made.draw_figures(made.read())
    pictures = list(tmp_path.iterdir())
    assert len(pictures) == 2
    for picture in pictures:
        assert f"images/{picture.name}" in text and (DOCS / "images" / picture.name).is_file()


@pytest.mark.parametrize(("points", "width", "pixels"), [(9, 7, 12.5), (10, 13, 7.9), (7, 8, 8.9)])
def test_text_is_measured_where_a_picture_is_shown(made, points, width, pixels, tmp_path, monkeypatch):
    """A picture wider than the column of text is shrunk, and its text with it."""
    from matplotlib.figure import Figure

    images = sys.modules[made.save.__module__]
    monkeypatch.setattr(images, "IMAGES", tmp_path)
    figure = Figure(figsize=(width, 2))
    figure.text(0.5, 0.5, "text", fontsize=points)
    figure.text(0.5, 0.2, "").set_fontsize(1)
    assert images.smallest_text(figure) == pytest.approx(pixels, abs=0.05)
    if pixels < 9:
        with pytest.raises(ValueError, match=rf"text of {pixels} pixels in small\.png"):
            images.save(figure, "small")


def test_the_files_are_small_and_whole(made):
    assert sum(path.stat().st_size for path in (DOCS / "results").glob("*.json")) < 200_000
    for name, comparison in made.read()["comparisons"].items():
        counts = [m["parameters"] for m in comparison["methods"].values()]
        assert max(counts) <= 1.05 * min(counts), name
        assert not set(comparison["seeds"]) & set(comparison["tuning_seeds"]), name
        for at in comparison["lengths"].values():
            assert set(at["scores"]) == set(comparison["methods"]), name
            assert all(len(scores) == len(comparison["seeds"]) for scores in at["scores"].values())
            for d in at["differences"]:
                ours, theirs = (np.array(at["scores"][d[key]]) for key in ("method", "minus"))
                assert d["mean"] == pytest.approx(np.mean(ours - theirs), abs=1e-4), (name, d)
                low, high = d["over_seeds"]
                assert low <= d["mean"] <= high


@pytest.mark.parametrize(
    ("mean", "clear", "higher", "word"),
    [
        (0.2, True, True, "**better**"),
        (0.2, True, False, "**worse**"),
        (-0.2, True, False, "**better**"),
        (0.2, False, True, "ahead"),
        (-0.2, False, True, "behind"),
        (0.0001, False, True, "level"),
    ],
)
def test_verdicts(made, mean, clear, higher, word):
    assert made.verdict_of({"mean": mean, "clear": clear}, higher) == word


def test_the_best_of_lora_is_the_strongest_one(made):
    scores = {"hrm-attention": [0.9], "lora-qv": [0.5, 0.7], "dora-all": [0.2, 0.1]}
    comparison = {"higher_is_better": True, "lengths": {"8": {"scores": scores}}}
    assert made.best_lora(comparison, "8") == "lora-qv"
    assert made.best_lora({**comparison, "higher_is_better": False}, "8") == "dora-all"


def test_a_file_without_its_costs_makes_a_page(made):
    data = json.loads(json.dumps(made.read()))
    data["costs"] = {}
    assert "## How long does a training step take?" not in made.page(data)


@pytest.mark.parametrize("method", ["fft", "sequential"])
def test_the_scans_whose_cost_is_shown_are_the_same_recurrence(bench, method):
    generator = torch.Generator().manual_seed(0)
    phase = torch.linspace(0.1, 3, 4)
    log_decay = -torch.linspace(0.01, 0.5, 4)
    u = torch.randn(2, 8, 50, generator=generator)
    masks = {"state": None, "valid": None, "segment_start": None}
    ours, theirs = (scan(log_decay, phase, u, **masks) for scan in (bench.scan_by(method), channel_scan))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_what_goes_into_the_files_comes_from_the_runs(bench, tmp_path):
    settings = small_comparison(
        "small-random",
        ["hrm-attention", "lora-qv", "lora-all"],
        tmp_path,
        learning_rates=[1e-2],
        steps=2,
        batch_size=2,
        test_size=16,
        validation_size=8,
    )
    comparison = compare(settings)
    summary = json.loads((tmp_path / "summary.json").read_text())
    condensed = bench.condensed(settings, summary, read_records(tmp_path / "results.jsonl"))
    assert [(d["method"], d["minus"]) for d in condensed["lengths"]["32"]["differences"]] == [
        ("hrm-attention", "lora-qv"),
        ("hrm-attention", "lora-all"),
    ]
    line = comparison.line("hrm-attention", 32)
    assert condensed["lengths"]["32"]["scores"]["hrm-attention"] == list(line.scores)
    known = next(d for d in condensed["lengths"]["32"]["differences"] if d["minus"] == comparison.reference)
    assert known["mean"] == line.difference.mean and known["clear"] == line.difference.clear
    learned = bench.learned(settings, 1e-2)
    for before, after in zip(learned["before"], learned["after"], strict=True):
        assert before["gate"] == 1 and not any(before["gain"]) and any(after["gain"])
        moved = np.abs(np.log(np.divide(after["decay"], before["decay"])))
        assert 0 < moved.max() < 1  # two steps from the same start
