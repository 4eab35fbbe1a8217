"""docs/results_real_ranks.md agrees with its pieces, and what is switched off in them is off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.data import needs_pieces
from helpers.models import adapted, base_model, error, tokens
from helpers.scripts import load_script
from peft import PeftModel

import hankelred_llm

DOCS = Path(__file__).resolve().parents[3] / "docs"
LORA = {"r": 2, "target_modules": ["up_proj"]}
MIXED = {"r": 6, "site": "attention", "static_readouts": ["q_proj", "v_proj"], "lora": LORA}


@pytest.fixture(scope="module")
def made():
    return load_script(DOCS / "make_results_real_ranks.py")


@pytest.fixture
def ids():
    return tokens(2, 20)


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


def test_the_page_is_what_its_command_writes(made):
    needs_pieces()
    page = (DOCS / "results_real_ranks.md").read_text(encoding="utf-8")
    assert made.page(made.finished()) == page, "run: python docs/make_results_real_ranks.py"


def test_differences_are_of_the_same_rows(made):
    def scored(values):
        return {"accuracy": sum(values) / 10, "values": values, "questions_of_a_row": 5}

    right, half = scored([1] * 10), scored([1, 0] * 5)
    lengths = list(map(str, made.study.TEST_ROWS))
    full = {"states": 799, "test": dict.fromkeys(lengths, half), "further": dict.fromkeys(lengths, right)}
    start = {"states": 390, "test": dict.fromkeys(lengths, half)}
    steps = made.FULL_STEPS
    page = made.page({("full", 0): full, (f"half--from the start, {steps} steps", 0): start})
    assert "| whole | 799 | 0 | 0.500 | 0.500 |" in page
    assert "| whole | 24 and 8 steps | 0 | 1.000 | 1.000 |" in page
    assert "| half, from the start | 32 steps | 0 | 0.500 | 0.500 |" in page
    assert "half, equal orders: seed 0" in page


def test_differences_are_of_the_seeds_that_both_have(made):
    rows = 12

    def scored(share):
        values = [share] * 5 * rows
        return {"accuracy": share, "values": values, "questions_of_a_row": 5}

    def piece(test, further):
        lengths = list(map(str, made.study.TEST_ROWS))
        return {
            "test": dict.fromkeys(lengths, scored(test)),
            "further": dict.fromkeys(lengths, scored(further)),
        }

    pieces = {("full", seed): piece(0.5, 0.75 + seed / 100) for seed in range(5)}
    for seed in (0, 2):
        pieces["half--equal orders", seed] = piece(0.25, 0.5)
    (line,) = made.differences(pieces, [("half--equal orders", "test", "full", "test")])
    # two seeds whose differences are equal: the interval has width zero, and decides nothing
    assert line.startswith("half, equal orders minus whole: -0.250 [-0.250, -0.250] at 256 tokens")
    assert line.endswith("(2 seeds)")
    assert made.verdict([line]).startswith(
        "Clearly worse in 0, clearly better in 0 and not decided in 2 of 2"
    )
    pieces["half--equal orders", 4] = piece(0.25, 0.5)
    (line,) = made.differences(pieces, [("half--equal orders", "further", "full", "further")])
    # the differences of the seeds are .25, .27 and .29: Student's t with two degrees of freedom
    assert "-0.270 [-0.320, -0.220]* at 256 tokens" in line
    assert made.verdict([line]).startswith(
        "Clearly worse in 2, clearly better in 0 and not decided in 0 of 2"
    )


def test_one_seed_decides_nothing(made):
    def scored(share):
        values = [share] * 60
        return {"accuracy": share, "values": values, "questions_of_a_row": 5}

    def test(share):
        return {"test": dict.fromkeys(map(str, made.study.TEST_ROWS), scored(share))}

    pieces = {("full", 0): test(0.9), ("half--equal orders", 0): test(0.1)}
    (line,) = made.differences(pieces, [("half--equal orders", "test", "full", "test")])
    assert "-0.800 [-0.800, -0.800] at 256 tokens" in line and "*" not in line


def test_the_command_runs_what_is_missing(made):
    """The page named the command without `--seeds`, which runs seed 0 only; other seeds were missing."""
    complete = {(name, seed): {} for name in made.study.names() for seed in (0, 1, 2)}
    assert made.command(complete) == "python benchmarks/bench_real_ranks.py"
    del complete["off--hybrid", 1], complete["text--base", 2]
    assert made.command(complete) == "python benchmarks/bench_real_ranks.py --seeds 1 2"


def test_without_its_state_the_adapter_is_the_lora_that_is_exported(made, ids, tmp_path):
    model = adapted(**MIXED).eval()
    model.export_static(tmp_path)
    with torch.no_grad():
        made.study.switch_off(model, "state")
    exported = PeftModel.from_pretrained(base_model(), tmp_path).eval()
    assert error(logits(model, ids), logits(exported, ids)) < 1e-5
    assert error(logits(model, ids), logits(base_model(), ids)) > 1e-3


def test_without_its_state_the_direct_term_stays(made, ids):
    """The oracle has no feedthrough, and states that forget at once: then s_t is u_t."""
    model, oracle = adapted(**MIXED, feedthrough=True).eval(), adapted(**MIXED).eval()
    unused = oracle.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert len(unused) == 2 and all(".m." in key or key.endswith(".m") for key in unused)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if name.endswith(".log_rate"):
                parameter.fill_(10)
        made.study.switch_off(model, "state")
    assert error(logits(model, ids), logits(oracle, ids)) < 1e-5
    assert error(logits(model, ids), logits(base_model(), ids)) > 1e-3


def test_without_static_parts_the_adapter_is_its_systems(made, ids):
    model = adapted(**MIXED).eval()
    plain = adapted(r=6, site="attention").eval()
    hankelred_llm.set_systems(plain, hankelred_llm.get_systems(model))
    before = logits(model, ids)
    with torch.no_grad():
        made.study.switch_off(model, "static")
    assert error(logits(model, ids), logits(plain, ids)) < 1e-5
    assert error(before, logits(plain, ids)) > 1e-3
