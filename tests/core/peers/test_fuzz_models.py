"""A small sample of the fuzzer of models (benchmarks/fuzz_models.py), and a check that it detects errors."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from helpers.data import ROOT
from helpers.scripts import load_script
from helpers.sweeps import sweep

pytestmark = pytest.mark.slow

pytest.importorskip("flint", reason="python-flint is not installed (extra test)")
pytest.importorskip("control")


def _load():
    path = ROOT / "benchmarks" / "fuzz_models.py"
    before = list(sys.path)
    try:
        return load_script(path)
    finally:
        sys.path[:] = before


fuzz = _load()


@pytest.mark.slow
@pytest.mark.parametrize("family", fuzz.FAMILIES)
@pytest.mark.parametrize("seed", sweep([10000, 10001], first=1))
def test_nothing_is_wrong_in_silence(family, seed):
    record = fuzz.run(family, seed)
    faults = [note for note in record["notes"] if note[0] in fuzz.FAULTS]
    assert not faults, f"{family} {seed}: {faults}"
    assert record["checks"] > 5


def test_cases_are_the_same_for_the_same_seed():
    for family in fuzz.FAMILIES:
        one, other = fuzz.make(family, 3), fuzz.make(family, 3)
        assert len(one.data) == len(other.data)
        for first, second in zip(one.data, other.data, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["A", "C", "gain"])
def test_a_wrong_answer_is_noticed(wrong):
    # the tested model differs from the one it is compared with by 1e-5 in one matrix
    case = fuzz.make("random continuous", 1)
    A, B, C, D = case.model
    if wrong == "gain":
        case = dataclasses.replace(case, gain=case.gain * (1 + 1e-5))
    else:
        model = (A * (1 + 1e-5), B, C, D) if wrong == "A" else (A, B, C * (1 + 1e-5), D)
        case = dataclasses.replace(case, model=model)
    wrong_checks = {check for outcome, check, _ in fuzz.check(case) if outcome == "wrong"}
    assert {"hankel singular values", "norm hinf", "bound, default reduction"} <= wrong_checks


def test_exceptions_and_warnings_of_others_are_noticed(monkeypatch):
    def broken(*args, **options):
        np.float64(1.0) / np.float64(0.0)
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(fuzz.hankelred, "modal_form", broken)
    record = fuzz.run("random continuous", 1)
    assert ("foreign exception", "modal form") in {note[:2] for note in record["notes"]}
    assert record["outcome"] in ("foreign exception", "wrong")


def test_no_family_is_empty_of_stable_models():
    # what is compared is the stable part: it must be there
    for family in fuzz.FAMILIES:
        sizes = []
        for seed in range(6):
            truth = fuzz.Truth(fuzz.make(family, seed))
            sizes.append(truth.exact.n - truth.kept)
        assert max(sizes) > 0, family
