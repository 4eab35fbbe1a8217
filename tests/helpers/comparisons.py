"""Settings of comparisons that take seconds."""

from __future__ import annotations

from typing import Any

from hankelred_llm.experiments.settings import Settings


def small_comparison(model: str, methods: list[str], out: Any, **others: Any) -> Settings:
    """Return settings of three steps on flip-flop for two seeds; the others are added or replace some."""
    values: dict[str, Any] = {
        "task": "flip_flop",
        "length": 8,
        "steps": 3,
        "batch_size": 4,
        "seeds": [0, 1],
        "test_size": 32,
        "validation_size": 16,
    }
    return Settings(model=model, methods=methods, out=str(out), **{**values, **others})
