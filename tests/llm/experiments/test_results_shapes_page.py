"""docs/results_shapes.md agrees with its files, and its script does what the page states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.data import needs_pieces
from helpers.scripts import load_script

import hankelred_llm

DOCS = Path(__file__).resolve().parents[3] / "docs"
SCRIPT = DOCS / "make_results_shapes.py"
TINY = {
    "length": 8,
    "steps": 15,
    "batch_size": 4,
    "learning_rates": [1e-2, 3e-2],
    "tuning_seeds": [100],
    "tuning_lengths": [8],
    "seeds": [8, 9],
    "validation_size": 8,
    "test_size": 16,
}


@pytest.fixture(scope="module")
def made():
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The study with a protocol of seconds: where its files are, and where its runs."""
    made = load_script(SCRIPT)
    # a module of its own: other tests of this file, in whatever order, read the protocol as it is
    made.study = load_script(Path(made.study.__file__))
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("shapes")
        patch.setattr(made.study, "PIECES", folder / "pieces")
        patch.setattr(made.study, "COMMON", {**made.study.COMMON, **TINY})
        patch.setattr(made.study, "TASKS", {"prefix_dfa": made.study.DFA})
        patch.setattr(made.study, "BUDGETS", (4096,))
        patch.setattr(made.study, "METHODS", (made.study.U4, made.study.U4US, "lora-qv"))
        patch.setattr(made.study, "MIXED", (made.study.U4, made.study.U4US))
        patch.setattr(made, "CANDIDATES", made.study.MIXED)
        made.study.run(folder / "runs", made.study.names())
        yield made, folder


def test_the_page_is_what_its_command_writes(made):
    needs_pieces()
    page = (DOCS / "results_shapes.md").read_text(encoding="utf-8")
    assert made.page(made.finished()) == page, "run: python docs/make_results_shapes.py"


def test_the_files_are_those_of_the_protocol(made):
    for name, piece in made.finished().items():
        assert piece["seeds"] == list(range(8, 16)) and list(piece["methods"]) == list(made.study.METHODS), (
            name
        )
        assert not {100, 101} & set(piece["seeds"]) and piece["steps"] == made.study.COMMON["steps"]
        for method, entry in piece["methods"].items():
            assert abs(entry["parameters"] - piece["budget"]) <= 0.02 * piece["budget"], (name, method)


def test_a_finished_comparison_is_not_repeated(tiny, monkeypatch):
    made, folder = tiny
    before = made.study.path_of("4096--prefix_dfa").read_text()
    monkeypatch.setattr(made.study, "compare", lambda settings: pytest.fail("it was run again"))
    made.study.run(folder / "runs", made.study.names())
    assert made.study.path_of("4096--prefix_dfa").read_text() == before


def test_a_file_that_was_lost_is_written_again_from_the_runs(tiny):
    made, folder = tiny
    path = made.study.path_of("4096--prefix_dfa")
    before = path.read_text()
    path.unlink()
    made.study.run(folder / "runs", made.study.names())
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_u4_is_one_input_map_for_state_and_readouts_and_a_lora_on_the_mlp(made, tmp_path):
    settings = made.study.settings_of("16384--flip_flop", tmp_path)
    experiment = made.study.open_experiment(settings, made.study.MIXED)
    for method in (made.study.U4, made.study.U4US):
        model = experiment.untrained_model(method, 8)
        names = {id(p): name for name, p in model.named_parameters() if "layers.0." in name}
        of_state, static = (
            [names[id(p)] for p in group["params"] if id(p) in names]
            for group in hankelred_llm.parameter_groups(model, 1e-2, static_lr_ratio=3)
        )
        direct = {"m"} if method == made.study.U4US else set()
        assert {n.rpartition(".")[2] for n in of_state} == {"B", "C", "gate", "log_rate", "phase"} | direct
        assert len(of_state) == 5 + len(direct) and all(".self_attn" in name for name in of_state)
        readouts = [name.rpartition("readout_")[2] for name in static if "readout_" in name]
        assert sorted(readouts) == ["k_proj", "q_proj", "v_proj"]
        loras = [name for name in static if ".mlp." in name and "lora_" in name]
        assert len(loras) == 6 and len(static) == len(loras) + len(readouts)


def test_the_file_has_the_scores_with_each_part_off(tiny):
    """The adapters that are scored with a part off are those of the comparison."""
    made, folder = tiny
    piece = json.loads(made.study.path_of("4096--prefix_dfa").read_text())
    assert sorted(piece["methods"][made.study.U4]["off"]) == ["state", "static"]
    assert "off" not in piece["methods"]["lora-qv"]
    settings = made.study.settings_of("4096--prefix_dfa", folder / "runs")
    method = made.study.U4US
    rate = piece["methods"][method]["learning_rate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.study, "switch_off", lambda model, off: None)
        unchanged = made.study.ablations(settings, method, rate)
    # or the wrong adapter could be scored; at one length of two, seeds may have the same score
    of_seeds = zip(*(at["scores"][method] for at in piece["lengths"].values()), strict=True)
    assert len(set(of_seeds)) == len(TINY["seeds"])
    for length, at in piece["lengths"].items():
        assert len(piece["methods"][method]["off"]["state"][length]) == len(TINY["seeds"])
        assert unchanged["state"][length] == pytest.approx(at["scores"][method], abs=1e-4)


def test_the_page_states_what_is_there_and_what_is_missing(tiny):
    made, _ = tiny
    page = made.page(made.finished())
    assert "With 4,096 parameters:" in page and "minus it" in page
    assert made.page({}).count("4,096 parameters: automaton") == 1


def comparison(made, differences, clear=True):
    """Return a piece with differences by method, the same at both lengths unless a pair is given."""
    entries = []
    for method, values in differences.items():
        for mean in values:
            entries.append(
                {
                    "method": method,
                    "minus": "lora-all",
                    "mean": mean,
                    "over_seeds": [mean, mean],
                    "clear": clear,
                }
            )
    lengths = {str(n): {"differences": entries[k::2]} for k, n in enumerate((32, 128))}
    return {"reference": "lora-all", "higher_is_better": True, "budget": 16384, "lengths": lengths}


def test_the_requirement(made):
    wins = comparison(made, dict.fromkeys(made.CANDIDATES, (0.1, 0.2)))
    pieces = dict.fromkeys(("prefix_dfa", "flip_flop", "lag_copy"), wins)
    assert made.shortfall(pieces, made.study.U4) == (0, 0)
    assert "reach what is required" in made.conclusion(pieces, [])
    worse = comparison(made, {**dict.fromkeys(made.CANDIDATES, (-0.1, -0.2)), made.study.U4US: (0.1, -0.2)})
    pieces["key_retrieval"] = worse
    assert made.shortfall(pieces, made.study.U4) == (2, 0)
    text = made.conclusion(pieces, [])
    assert "No shape reaches" in text and "U4us (1 clearly worse line)" in text and "U4 (" not in text
    pieces["lag_copy"] = comparison(made, dict.fromkeys(made.CANDIDATES, (0.1, 0.2)), clear=False)
    assert made.shortfall(pieces, made.study.U4) == (2, 1)


def test_one_task_of_five_admits_nothing(made):
    """After one task of five the page said in bold that four shapes reach what is required."""
    pieces = {"prefix_dfa": comparison(made, dict.fromkeys(made.CANDIDATES, (0.1, 0.2)))}
    text = made.conclusion(pieces, ["the others"])
    assert text.startswith("This is open: 1 of 5 tasks are there, and 1 of the 3 on which a clear win")
    assert "**" not in text and "reach" not in text
    assert "HRM alone, U4, U4us and mixture are within the requirement" in text
    # but one task may rule a shape out
    worse = comparison(made, {**dict.fromkeys(made.CANDIDATES, (0.1, 0.2)), made.study.U4US: (-0.1, 0.2)})
    text = made.conclusion({**pieces, "key_retrieval": worse}, ["the others"])
    assert "2 of 5 tasks are there, and 1 of the 3" in text and "HRM alone, U4 and mixture are within" in text
    assert "out of reach already for U4us (1 clearly worse line)." in text
    # or all of them
    worse = comparison(made, dict.fromkeys(made.CANDIDATES, (-0.1, 0.2)))
    text = made.conclusion({**pieces, "key_retrieval": worse}, ["the others"])
    assert text.startswith(
        "**No shape reaches what is required, whatever the missing tasks give. The nearest so"
    )


def test_lower_is_better_for_bits(made):
    bits = {**comparison(made, {made.study.U4: (0.1, 0.2)}), "higher_is_better": False}
    assert made.shortfall({"byte_lm": bits}, made.study.U4) == (2, 0)
    assert np.all([v == made.WORSE for v, _ in made.verdicts(bits, made.study.U4)])
