"""The example that spreads a comparison by Ray makes the comparison of one process, for real where Ray is."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from helpers.comparisons import small_comparison

from hankelred_llm.experiments.base_models import small_model
from hankelred_llm.experiments.compare import compare
from hankelred_llm.experiments.records import read_records

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "examples" / "cluster" / "compare_with_ray.py"


def scores(folder):
    return sorted(
        (
            record["length"],
            record["method"],
            record["learning_rate"],
            record["seed"],
            record["means"]["accuracy"],
        )
        for record in read_records(folder / "results.jsonl")
        if record["kind"] == "score" and record["split"] == "test"
    )


@pytest.mark.slow
def test_the_comparison_spread_by_ray_is_that_of_one_process(tmp_path):
    pytest.importorskip("ray")
    base = small_model(tmp_path / "small", pretrained=False)
    methods = ["hrm-attention", "lora-qv"]
    settings = small_comparison(
        str(base), methods, tmp_path / "ray", learning_rates={"default": [3e-3, 3e-2], "lora-qv": [3e-2]}
    )
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(asdict(settings)))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, str(SCRIPT), str(config)]
    for _ in range(2):  # given again, the script repeats nothing
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "the report is in" in done.stdout
    one = replace(settings, out=str(tmp_path / "one"))
    compare(one)
    assert scores(tmp_path / "ray") == scores(tmp_path / "one") and len(scores(tmp_path / "one")) == 8
    assert len(list((tmp_path / "ray" / "parts").iterdir())) == 2 + 4
