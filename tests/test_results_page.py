"""The page of results says what its files say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def made():
    """The command that writes the page, as a module."""
    spec = importlib.util.spec_from_file_location("make_results", DOCS / "make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_command_writes(made):
    assert made.page(made.read()) == (DOCS / "results.md").read_text(encoding="utf-8"), (
        "give: python docs/make_results.py"
    )


def test_the_pictures_are_there(made, tmp_path, monkeypatch):
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    monkeypatch.setattr(made, "IMAGES", tmp_path)
    found = made.read()
    made.draw_scores(found)
    made.draw_systems(found)
    for picture in tmp_path.iterdir():
        assert f"images/{picture.name}" in text and (DOCS / "images" / picture.name).is_file()


def test_the_files_are_small_and_whole(made):
    assert sum(path.stat().st_size for path in (DOCS / "results").glob("*.json")) < 200_000
    for name, found in made.read()["comparisons"].items():
        counts = [m["parameters"] for m in found["methods"].values()]
        assert max(counts) <= 1.05 * min(counts), name
        assert not set(found["seeds"]) & set(found["tuning_seeds"]), name
        for at in found["lengths"].values():
            assert set(at["scores"]) == set(found["methods"]), name
            assert all(len(scores) == len(found["seeds"]) for scores in at["scores"].values())
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
    assert made.judge({"mean": mean, "clear": clear}, higher) == word


def test_the_best_of_lora_is_the_hardest_one(made):
    scores = {"hrm-attention": [0.9], "lora-qv": [0.5, 0.7], "adalora": [0.2, 0.1]}
    found = {"higher_is_better": True, "lengths": {"8": {"scores": scores}}}
    assert made.best_lora(found, "8") == "lora-qv"
    assert made.best_lora({**found, "higher_is_better": False}, "8") == "adalora"


def test_a_file_without_its_costs_makes_a_page(made):
    found = json.loads(json.dumps(made.read()))
    found["costs"] = {}
    assert "## What a step costs" not in made.page(found)
