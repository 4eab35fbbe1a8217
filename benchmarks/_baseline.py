"""Ratios of earlier runs, in `baseline.json`, so that a benchmark can say what has become slower.

Only ratios against a peer in the same run are kept: they differ less from machine to machine than seconds do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

BASELINE = Path(__file__).with_name("baseline.json")

#: Ratios of a busy machine scatter by this much.
NOISE = 1.25


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let the user keep what is measured."""
    parser.add_argument(
        "--save-baseline", action="store_true", help="keep the ratios in benchmarks/baseline.json"
    )


def compare(benchmark: str, ratios: dict[str, float], *, save: bool) -> None:
    """Say which times, in times of a peer's, have grown since the baseline; then keep them, where asked."""
    stored = json.loads(BASELINE.read_text("utf-8")) if BASELINE.exists() else {}
    before = stored.get(benchmark, {})
    slower = {name: ratio for name, ratio in ratios.items() if ratio > NOISE * before.get(name, float("inf"))}
    known = sum(name in before for name in ratios)
    print(f"\nof {known} ratios with a baseline, {len(slower)} are more than {NOISE} times theirs")
    for name, ratio in slower.items():
        print(f"  {name}: {ratio:.2f}, was {before[name]:.2f}")
    if save:
        stored[benchmark] = before | {name: float(f"{ratio:.3g}") for name, ratio in ratios.items()}
        BASELINE.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", "utf-8")
        print(f"kept in {BASELINE.name}")
