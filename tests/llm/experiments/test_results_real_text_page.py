"""docs/results_real_text.md agrees with its pieces, and its differences are those of the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.data import needs_pieces
from helpers.scripts import load_script

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def made():
    return load_script(DOCS / "make_results_real_text.py")


def test_the_page_is_what_its_command_writes(made):
    needs_pieces()
    page = (DOCS / "results_real_text.md").read_text(encoding="utf-8")
    assert made.page(made.finished()) == page, "run: python docs/make_results_real_text.py"


def name_of(made, method, seed):
    return made.study.path_of(method, seed).stem


def test_gains_and_differences_are_those_of_the_same_rows(made):
    base = np.full((12, 4), [4.0, 3.0, 2.0, 1.0])
    rows = np.arange(12)[:, None] / 1000
    pieces = {"base": {"test": base.tolist()}}
    for seed in range(3):
        # HRM gains .2, and in the last band .3; the seeds and the rows differ, the differences hardly
        lora = base - 0.1 + rows + seed / 100
        hrm = lora - [0.1, 0.1, 0.1, 0.2] + seed / 1000
        pieces[name_of(made, made.study.LORA, seed)] = {"test": lora.tolist()}
        pieces[name_of(made, made.study.HRM, seed)] = {
            "test": hrm.tolist(),
            "state_off": base.tolist(),
            "time_scales": list(range(11)),
        }
    (_, against, verdict) = made.against_lora(pieces)
    assert "clearly worse in 0 and clearly better in 4 of 4 bands" in " ".join(verdict.split())
    line = against.splitlines()[-1]
    # the means of the seeds are -.100, -.099 and -.098: Student's t with two degrees of freedom
    assert "| 0, 1, 2 | -0.0990 [-0.1015, -0.0965]* |" in line and "-0.1990 [-0.2015, -0.1965]* |" in line
    (_, far) = made.far_against_near(pieces)
    assert far.splitlines()[-1].endswith("| +0.0000 [+0.0000, +0.0000] | +0.0000 [+0.0000, +0.0000] | "
                                         "+0.1000 [+0.1000, +0.1000]* |")  # fmt: skip
    page = made.page(pieces)
    assert "| the base as it is: loss |  | 4.000 | 3.000 | 2.000 | 1.000 |" in page
    assert "| LoRA on all linear layers: change | 0, 1, 2 | -0.0845 ± 0.0100 |" in page
    assert "trainings: 6 of 12 are there" in page
    # without its state the method is the base here, so the state is worth what the method gains
    (_, off) = made.state_off(pieces)
    assert "+0.1835 " in off and "+0.2835 " in off


def test_without_pieces_the_page_says_so(made):
    page = made.page({})
    assert page.count("## ") == 1 and "trainings: none of 12 is there" in page


def test_the_bands_are_the_positions_of_a_row(made, tmp_path, monkeypatch):
    """Scores by band against the mean over single tokens, of a model whose loss is its position."""
    study = made.study
    monkeypatch.setattr(study, "TEST_LENGTH", 32)
    monkeypatch.setattr(study, "BANDS", (8, 16, 24, 32))
    monkeypatch.setattr(
        study, "position_losses", lambda *args, **kwargs: np.tile([np.nan, *range(1, 32)], (2, 1))
    )
    for k in range(6):
        (tmp_path / f"{k}.txt").write_text(50 * "a few words ")

    class Experiment:
        """What is read of an experiment."""

        class settings:
            """The options of its task."""

            task_options = {"text": str(tmp_path)}  # noqa: RUF012 (as in Settings)

        class base:
            """Its tokenizer."""

            tokenizer = None

    assert study.band_losses(Experiment, None) == 2 * [[4.0, 11.5, 19.5, 27.5]]
