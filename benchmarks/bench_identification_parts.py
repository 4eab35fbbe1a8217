"""What each part of `identify` brings: random records with known truth, with one part left out at a time.

    python benchmarks/bench_identification_parts.py FILE [--first 0] [--count 200]   two hours; resumes

The records are those of `bench_identification.py synthetic`: five kinds of inputs, six colors of
disturbances, delays, closed loops. FILE gets a line of JSON for each record, and one that is there is not
repeated. The error is that of the simulated output on the second half, relative to the undisturbed output of
the process, with the level fitted; errors count as .001 at least and 1 at most. Orders are those of records
without delay. A part is left out where models of all processes are chosen: the estimates of integrating
processes, and the state that is added to a smaller model, keep it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from _synthetic_records import random_record
from bench_identification import fit

import hankelred
from hankelred.identification import identify as front
from hankelred.identification import order_selection as selection
from hankelred.identification.noise import information_criterion as criterion

Replacement = tuple[Any, str, Any]


def _keeps_model(model: Any, *_: Any, **__: Any) -> Any:
    return model


def _only(*methods: str) -> Callable[..., Any]:
    def of_methods(*arguments: Any) -> Any:
        return [space for space in _subspaces(*arguments) if space.name.startswith(methods)]

    return of_methods


def _no_starts(*_: Any, **__: Any) -> list[Any]:
    return []


def _nothing(*_: Any, **__: Any) -> dict[Any, Any]:
    return {}


def _no_delays(us: Any, ys: Any) -> tuple[int, ...]:
    return (0,) * len(us[0])


def _middle_horizon(*arguments: Any) -> list[int]:
    horizons = _usable_horizons(*arguments)
    return horizons[len(horizons) // 2 :][:1]


_subspaces = selection.subspaces
_usable_horizons = front.usable_horizons
#: Each part, and what stands in its place.
PARTS: dict[str, list[Replacement]] = {
    "nothing": [],
    "refinement: models of linear least squares only": [
        (selection, "_refined_candidates", _nothing),
        (selection, "whitened_fit", _keeps_model),
    ],
    "the information criterion: order by the validation part": [
        (selection, "_trials_with_noise_model", _nothing)
    ],
    "refutation of the criterion by the validation part": [
        (selection, "_clearly_better", lambda first, second: False)
    ],
    "the last refinement, with a noise model": [(selection, "whitened_fit", _keeps_model)],
    "starts from larger models": [
        (selection, "truncated_starts", _no_starts),
        (criterion, "truncated_starts", _no_starts),
    ],
    "orders improved from the smallest up": [(criterion, "_improve_upwards", _keeps_model)],
    "all horizons but one": [(front, "usable_horizons", _middle_horizon)],
    "the horizon of 60 samples": [(selection, "_START_HORIZON", 10**6)],
    "all subspace methods but MOESP": [
        (selection, "subspaces", _only("moesp")),
        (criterion, "_ARX_HORIZONS", ()),
    ],
    "high-order ARX models": [
        (selection, "subspaces", _only("moesp", "n4sid", "cva")),
        (criterion, "_ARX_HORIZONS", ()),
    ],
    "delays": [(front, "likely_delays", _no_delays)],
}
#: Groups of records by the words of their description.
GROUPS = {
    "white": ("white disturbance", "ma disturbance"),
    "colored": ("ar disturbance", "resonant disturbance"),
    "slow or drift": ("slow disturbance", "drift disturbance"),
    "closed loop": ("closed loop",),
}


@contextlib.contextmanager
def without(part: str) -> Iterator[None]:
    """Leave a part out."""
    with contextlib.ExitStack() as stack:
        for module, name, value in PARTS[part]:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def scores(seed: int) -> dict[str, Any]:
    """Return what a record is, and error, difference of orders, and seconds without each part.

    A record that is too short for so many channels has none of these.
    """
    r = random_record(seed)
    rows: dict[str, Any] = {}
    for part in PARTS:
        start = time.process_time()
        try:
            with without(part), warnings.catch_warnings():
                warnings.simplefilter("ignore", hankelred.ReductionWarning)
                model = hankelred.identify(r.u, r.y)
        except hankelred.HankelredError:
            if part != "nothing":
                raise
            break
        seconds = time.process_time() - start
        s = model.system
        matrices, u = (s.A, s.B, s.C, s.D), r.test_u - model.input_offset[:, None]
        error = 1 - fit(matrices, u, r.test_clean, level=True)
        rows[part] = [float(f"{error:.4g}"), model.order - r.order - r.delay, round(seconds, 2)]
    return {"seed": seed, "delay": r.delay, "record": r.description, "without": rows}


def table(everything: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table, in which the parts that bring most come first."""
    records = [record for record in everything if record["without"]]
    groups = {name: np.array([_is_in(record, words) for record in records]) for name, words in GROUPS.items()}
    delayed = np.array([record["delay"] > 0 for record in records])
    errors, orders, seconds = (
        {part: np.array([record["without"][part][i] for record in records]) for part in PARTS}
        for i in range(3)
    )
    shipped = np.clip(errors["nothing"], 1e-3, 1)
    ratios = {part: np.log(np.clip(errors[part], 1e-3, 1) / shipped) for part in PARTS}
    names = [f"{name} ({int(which.sum())})" for name, which in groups.items()]
    heads = ["left out", "error", "standard error", *names, "larger by a tenth on", "smaller by a tenth on"]
    yield _row(*heads, "order within one", "CPU seconds, median")
    yield _row(*["---"] * (len(heads) + 2))
    for part in ["nothing", *sorted(set(PARTS) - {"nothing"}, key=lambda part: -ratios[part].mean())]:
        ratio = ratios[part]
        yield _row(
            part,
            f"{np.exp(ratio.mean()):.2f}",
            f"{ratio.std(ddof=1) / np.sqrt(ratio.size):.2f}",
            *(f"{np.exp(ratio[which].mean()):.2f}" for which in groups.values()),
            f"{np.mean(ratio > np.log(1.1)):.0%}",
            f"{np.mean(ratio < -np.log(1.1)):.0%}",
            f"{np.mean(np.abs(orders[part][~delayed]) <= 1):.0%}",
            f"{np.median(seconds[part]):.2f}",
        )
    refused, median = len(everything) - len(records), np.median(errors["nothing"])
    yield f"\n{len(records)} records, {refused} too short; median error with all parts {median:.4f}"


def _is_in(record: dict[str, Any], words: tuple[str, ...]) -> bool:
    closed = "closed loop" in record["record"]
    return closed if words == ("closed loop",) else not closed and record["record"].endswith(words)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="what is finished, a line of JSON for each record")
    parser.add_argument("--first", type=int, default=0, help="seed of the first record")
    parser.add_argument("--count", type=int, default=200, help="number of records")
    args = parser.parse_args()
    lines = args.file.read_text().splitlines() if args.file.exists() else []
    finished = {record["seed"]: record for record in map(json.loads, lines)}
    for seed in range(args.first, args.first + args.count):
        if seed not in finished:
            finished[seed] = scores(seed)
            with args.file.open("a") as file:
                file.write(json.dumps(finished[seed]) + "\n")
    print(*table([finished[seed] for seed in range(args.first, args.first + args.count)]), sep="\n")


if __name__ == "__main__":
    main()
