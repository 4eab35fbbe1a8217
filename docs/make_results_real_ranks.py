"""Write docs/results_real_ranks.md from docs/results/real_ranks: `python docs/make_results_real_ranks.py`.

The files are written by benchmarks/bench_real_ranks.py. The scores, counts and differences of the page are
computed here; the page is not to be edited by hand.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hankelred_llm.experiments.evaluate import TEXT_LENGTH, TEXT_ROWS
from hankelred_llm.experiments.methods import parse_method
from hankelred_llm.experiments.statistics import FEWEST_SEEDS, paired_difference

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

import _markdown as markdown  # noqa: E402 (a script beside this one)
import bench_real_ranks as study  # noqa: E402 (it is no package)
from _markdown import listed, table  # noqa: E402
from make_results_real import NAMES  # noqa: E402

PAGE = HERE / "results_real_ranks.md"
FULL_STEPS = study.STEPS + study.FURTHER

NOTHING = "Nothing has been run yet."

Piece = dict[str, Any]
Pieces = dict[tuple[str, int], Piece]

paragraph = partial(markdown.paragraph, width=110)
bullets = partial(markdown.bullets, width=110)


def finished() -> Pieces:
    """Return the finished pieces by name and seed."""
    contents = (json.loads(path.read_text()) for path in sorted(study.PIECES.glob("*.json")))
    return {(content["piece"], content["seed"]): content for content in contents}


def page(pieces: Pieces) -> str:
    """Return the page."""
    parts = ["# Ranks and reduction on a real language model", introduction(pieces)]
    for heading, section in (
        ("What does a reduction cost without further training?", as_reduced),
        ("Do spectra choose better orders than equal ones?", by_spectra),
        ("Reduce and train further, or train at that size from the start?", against_start),
        ("How are the states distributed?", distributions),
        ("What does each part of the mixture do?", parts_off),
        ("What is forgotten?", forgetting),
        ("What is missing?", missing),
    ):
        parts += [f"## {heading}", *section(pieces)]
    return "\n\n".join(parts) + "\n"


def introduction(pieces: Pieces) -> str:
    """Return what the page is, and the protocol."""
    rows = listed(f"{size} rows of {length} tokens" for length, size in study.TEST_ROWS.items())
    first = paragraph(
        "The adapter beside attention of [](results_real.md), trained on `where_is`, reduced to a half and a "
        "quarter of its states, against adapters of these sizes that were trained from the start. "
        f"`{command(pieces)}` runs what is missing (`make results-real` runs seed 0), and "
        "`python docs/make_results_real_ranks.py` writes this page from the pieces in "
        "`docs/results/real_ranks`."
    )
    orders = listed(f"{order} states a layer for a {share}" for share, order in study.ORDERS.items())
    lines = [
        f"Test: {rows}, five questions a row, the first of those of [](results_real.md). Tables show the "
        "share of right answers, higher is better: the mean over seeds, and the standard deviation from two "
        "seeds on.",
        f"Orders: {orders}, and {study.LAYERS} times as many in all where layers differ; the whole adapter "
        "has 26 or 27 a layer.",
        "Equal orders: `reduce(order=)`. One threshold: `reduce(budget=)`, the largest Hankel singular "
        f"values of all layers. Calibrated: on {study.CALIBRATION_ROWS} rows of the training with labels, "
        "and of the candidates the one with the smallest output error on the rows held out. One threshold on "
        "the loss: the largest empirical values, that is with the states on the data and with outputs "
        "weighted by the gradient of the loss.",
        f"Training: {study.STEPS} steps; further training: {study.FURTHER} steps on the rows that come "
        f"next, with a new schedule at the rate {study.RATE:g}. From the start: either so, or {FULL_STEPS} "
        "steps with one schedule on all these rows; the same rate, which was chosen for the whole size.",
        "Differences are paired. From two seeds on, the interval in brackets is Student's t over seeds; with "
        "one seed it is a bootstrap over rows, which does not say how other seeds differ. A star, and "
        f'"clearly", need at least {FEWEST_SEEDS} seeds, and both intervals must leave out zero: two '
        "differences that are equal by chance have an interval of width zero.",
    ]
    return first + "\n\n" + bullets(lines)


def absent(pieces: Pieces) -> dict[str, list[int]]:
    """Return the seeds that are missing, by name of a piece, of the seeds that were begun."""
    begun = sorted({seed for _, seed in pieces}) or [0]
    of_name = {name: [seed for seed in begun if (name, seed) not in pieces] for name in study.names()}
    return {name: seeds for name, seeds in of_name.items() if seeds}


def command(pieces: Pieces) -> str:
    """Return the command that runs what is missing of the seeds that were begun."""
    seeds = sorted(set().union(*absent(pieces).values()))
    named = f" --seeds {' '.join(map(str, seeds))}" if seeds else ""
    return f"python benchmarks/bench_real_ranks.py{named}"


def as_reduced(pieces: Pieces) -> list[str]:
    """Return the scores of reduced adapters as they are."""
    names = {"full": "whole"}
    names |= {f"{share}--{way}": f"{share}, {way}" for share in study.ORDERS for way in study.WAYS}
    rows = [
        [title, number(of_name, "states"), seeds_of(of_name), *means(of_name, "test")]
        for name, title in names.items()
        if (of_name := by_seed(pieces, name))
    ]
    pairs = [(f"{share}--{way}", "test", "full", "test") for share in study.ORDERS for way in study.WAYS]
    return tabled(["", "states", "seeds", *lengths()], rows, differences(pieces, pairs))


def by_spectra(pieces: Pieces) -> list[str]:
    """Return the differences between orders by spectra and equal orders."""
    equal, *others = study.WAYS
    pairs = [
        (f"{share}--{way}", when, f"{share}--{equal}", when)
        for when in ("test", "further")
        for share in study.ORDERS
        for way in others
    ]
    lines = differences(pieces, pairs)
    return [verdict(lines), bullets(lines)] if lines else [NOTHING]


def against_start(pieces: Pieces) -> list[str]:
    """Return the scores after further training, and those of trainings from the start."""
    short, longer = (f"from the start, {steps} steps" for steps in (study.STEPS, FULL_STEPS))
    rows, pairs = [], []
    for share in ("whole", *study.ORDERS):
        ways = ("full",) if share == "whole" else tuple(f"{share}--{way}" for way in study.WAYS)
        for name, when, how in (
            *((name, "further", f"{study.STEPS} and {study.FURTHER} steps") for name in ways),
            (f"{share}--{short}", "further", f"{study.STEPS} and {study.FURTHER} steps"),
            (f"{share}--{longer}", "test", f"{FULL_STEPS} steps"),
        ):
            if of_name := by_seed(pieces, name):
                what = share if name == "full" else name.replace("--", ", ").rpartition(", ")[0]
                if name in ways[share == "whole" :]:
                    what = f"{name.replace('--', ', ')}, reduced"
                rows.append([what, how, seeds_of(of_name), *means(of_name, when)])
        pairs += [(name, "further", f"{share}--{short}", "further") for name in ways]
        pairs += [(name, "further", f"{share}--{longer}", "test") for name in ways]
        pairs += [(f"{share}--{short}", "further", f"{share}--{longer}", "test")]
        pairs += [(f"{share}--{longer}", "test", f"whole--{longer}", "test")] * (share != "whole")
    return tabled(["", "training", "seeds", *lengths()], rows, differences(pieces, pairs))


def distributions(pieces: Pieces) -> list[str]:
    """Return how many states layers keep, and with which error."""
    lines = []
    for name in (f"{share}--{way}" for share in study.ORDERS for way in study.WAYS):
        if of_name := list(by_seed(pieces, name).values()):
            orders = [order for piece in of_name for order in piece["orders"]]
            errors = [error for piece in of_name for error in piece["relative_errors"]]
            kept = [each for piece in of_name for each in piece["kept"]]
            lines.append(
                f"{name.replace('--', ', ')}: {states_of_layers(orders)}, {kept.count('exact')} of "
                f"{len(kept)} layers by the exact candidate; error of a layer relative to its norm, median "
                f"{np.median(errors):.2g}"
            )
    return [bullets(lines)] if lines else [NOTHING]


def tabled(headings: list[str], rows: list[list[str]], lines: list[str]) -> list[str]:
    """Return a table and the differences below it."""
    if not rows:
        return [NOTHING]
    text = "Accuracy, more is better:"
    return [text, table(headings, rows), *([verdict(lines), bullets(lines)] if lines else [])]


def verdict(lines: list[str]) -> str:
    """Return how many of the differences are clear."""
    of_all = re.findall(r"([+-])[.0-9]+ \[[^]]*\](\*?)", "\n".join(lines))
    worse, better = (sum(clear == (sign, "*") for clear in of_all) for sign in "-+")
    return paragraph(
        f"Clearly worse in {worse}, clearly better in {better} and not decided in "
        f"{len(of_all) - worse - better} of {len(of_all)} paired differences:"
    )


def states_of_layers(orders: list[int]) -> str:
    """Return the least and the largest number of states of a layer."""
    least, most = min(orders), max(orders)
    return f"{least} states in every layer" if least == most else f"{least} to {most} states a layer"


def by_seed(pieces: Pieces, name: str) -> dict[int, Piece]:
    """Return the pieces of a name."""
    return {seed: piece for (other, seed), piece in sorted(pieces.items()) if other == name}


def lengths() -> list[str]:
    """Return the headings of the scores."""
    return [f"{n} tokens" for n in study.TEST_ROWS]


def seeds_of(of_name: dict[int, Piece]) -> str:
    """Return the seeds of a line."""
    return ", ".join(map(str, of_name))


def number(of_name: dict[int, Piece], key: str) -> str:
    """Return the values of a number over seeds."""
    return " or ".join(map(str, sorted({piece[key] for piece in of_name.values()})))


def means(of_name: dict[int, Piece], when: str) -> list[str]:
    """Return the mean accuracy and its standard deviation by length."""
    cells = []
    for n in map(str, study.TEST_ROWS):
        values = [piece[when][n]["accuracy"] for piece in of_name.values()]
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.3f}{spread}")
    return cells


def differences(pieces: Pieces, pairs: list[tuple[str, str, str, str]]) -> list[str]:
    """Return paired differences in words, over the seeds that both have."""
    lines = []
    for name, when, reference, when_reference in pairs:
        a, b = by_seed(pieces, name), by_seed(pieces, reference)
        seeds = sorted(a.keys() & b.keys())
        if seeds:
            of_lengths = (
                difference([a[s][when] for s in seeds], [b[s][when_reference] for s in seeds], str(n))
                for n in study.TEST_ROWS
            )
            text = listed(f"{d} at {n} tokens" for d, n in zip(of_lengths, study.TEST_ROWS, strict=True))
            counted = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
            lines.append(f"{title(name, when)} minus {title(reference, when_reference)}: {text} ({counted})")
    return lines


def title(name: str, when: str) -> str:
    """Return the name of what is compared."""
    text = "whole" if name == "full" else name.replace("--", ", ")
    return f"{text}, trained further" if when == "further" else text


def difference(scored: list[Piece], reference: list[Piece], length: str) -> str:
    """Return the mean difference with its interval."""
    a, b = (
        np.array([piece[length]["values"] for piece in of_seeds], dtype=float)
        for of_seeds in (scored, reference)
    )
    rows = [str(i // scored[0][length]["questions_of_a_row"]) for i in range(a.shape[1])]
    d = paired_difference(a, b, np.ones(a.shape[1]), rows)
    low, high = d.over_seeds or d.over_units
    return f"{d.mean:+.3f} [{low:+.3f}, {high:+.3f}]" + "*" * d.clear


def parts_off(pieces: Pieces) -> list[str]:
    """Return what is left of the mixture with one of its parts switched off."""
    names = {"nothing": "as trained", "state": "state off", "static": "LoRA off"}
    rows = []
    for task, name in ((study.TASK, "off--hybrid"), ("counting", "off--counting")):
        if of_name := by_seed(pieces, name):
            for off, what in names.items():
                scored = {seed: {"test": piece["off"][off]} for seed, piece in of_name.items()}
                rows.append([f"`{task}`, {what}", seeds_of(of_name), *means(scored, "test")])
    if not rows:
        return [NOTHING]
    what = f"{NAMES[study.HYBRID]}, with a part switched off and no further training:"
    text = f"Accuracy, more is better, of {what}"
    return [paragraph(text), table(["", "seeds", *lengths()], rows)]


def forgetting(pieces: Pieces) -> list[str]:
    """Return the loss on text that no training had."""
    of_base = by_seed(pieces, "text--base")
    if not of_base:
        return [NOTHING]
    before = np.array(next(iter(of_base.values()))["loss"])
    rows = [["the base as it is", "", f"{before.mean():.3f}", ""]]
    for method in study.ALL_METHODS:
        if of_name := by_seed(pieces, f"text--{parse_method(method).slug}"):
            more = np.array([piece["loss"] for piece in of_name.values()]).mean(axis=0) - before
            error = more.std(ddof=1) / np.sqrt(len(more))
            rows.append(
                [
                    NAMES[method],
                    seeds_of(of_name),
                    f"{(before + more).mean():.3f}",
                    f"{more.mean():+.3f} ± {error:.3f}",
                ]
            )
    text = (
        f"Loss in nats a token, lower is better, on {TEXT_ROWS} rows of {TEXT_LENGTH} tokens of WikiText-2, "
        "before and after the training on `where_is`; mean change and its standard error over the rows:"
    )
    return [paragraph(text), table(["", "seeds", "loss", "change"], rows)]


def missing(pieces: Pieces) -> list[str]:
    """Return what is not there."""
    lines = [
        f"{name.replace('--', ', ')}: seed{'s' * (len(seeds) > 1)} {listed(map(str, seeds))}"
        for name, seeds in absent(pieces).items()
    ]
    lines += [
        "other tasks than `where_is`, and a learning rate of its own for each size",
        f"more than {FULL_STEPS} steps: the adapter is not trained to the end, so a difference may be one of "
        "training and not of size",
    ]
    return [bullets(lines)]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(finished()), encoding="utf-8")


if __name__ == "__main__":
    main()
