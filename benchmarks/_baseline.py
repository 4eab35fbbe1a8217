"""Ratios of earlier runs, in `baseline.json`, so that a benchmark can report what has become slower.

Only ratios to another package in the same run are stored: they depend less on the machine than seconds do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

BASELINE = Path(__file__).with_name("baseline.json")

#: Ratios vary by this factor on a busy machine.
NOISE = 1.25


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that stores the measured ratios."""
    parser.add_argument(
        "--save-baseline", action="store_true", help="store the ratios in benchmarks/baseline.json"
    )


def compare(benchmark: str, ratios: dict[str, float], *, save: bool) -> None:
    """Print which ratios have grown since the baseline; with `save`, store the new ones."""
    stored = json.loads(BASELINE.read_text("utf-8")) if BASELINE.exists() else {}
    baseline = stored.get(benchmark, {})
    slower = {
        name: ratio for name, ratio in ratios.items() if ratio > NOISE * baseline.get(name, float("inf"))
    }
    n_compared = sum(name in baseline for name in ratios)
    print(f"\nof {n_compared} ratios with a baseline, {len(slower)} are more than {NOISE} times theirs")
    for name, ratio in slower.items():
        print(f"  {name}: {ratio:.2f}, was {baseline[name]:.2f}")
    if save:
        stored[benchmark] = baseline | {name: float(f"{ratio:.3g}") for name, ratio in ratios.items()}
        BASELINE.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", "utf-8")
        print(f"kept in {BASELINE.name}")
