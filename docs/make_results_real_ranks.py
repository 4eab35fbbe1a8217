"""Write docs/results_real_ranks.md from docs/results/real_ranks: `python docs/make_results_real_ranks.py`.

The files are written by benchmarks/bench_real_ranks.py. The scores, counts and differences of the page are
computed here; the page is not to be edited by hand.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hankelred_llm.experiments.evaluate import TEXT_LENGTH, TEXT_ROWS
from hankelred_llm.experiments.methods import parse_method
from hankelred_llm.experiments.statistics import paired_difference

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

import _markdown as markdown  # noqa: E402 (a script beside this one)
import bench_real_ranks as study  # noqa: E402 (it is no package)
from _markdown import listed, table  # noqa: E402
from make_results_real import NAMES  # noqa: E402

PAGE = HERE / "results_real_ranks.md"
FULL_STEPS = study.STEPS + study.FURTHER

Piece = dict[str, Any]

paragraph = partial(markdown.paragraph, width=110)
bullets = partial(markdown.bullets, width=110)


def finished() -> dict[tuple[str, int], Piece]:
    """Return the finished pieces by name and seed."""
    contents = (json.loads(path.read_text()) for path in sorted(study.PIECES.glob("*.json")))
    return {(content["piece"], content["seed"]): content for content in contents}


def page(pieces: dict[tuple[str, int], Piece]) -> str:
    """Return the page."""
    parts = ["# Ranks and reduction on a real language model"]
    parts += ["## Is it better to reduce an adapter or to train a small one?", verdicts(pieces)]
    parts += ["## Protocol", introduction()]
    for seed in sorted({seed for _, seed in pieces}):
        of_seed = {name: piece for (name, s), piece in pieces.items() if s == seed}
        parts += [f"## Seed {seed}", *section(of_seed)]
    parts += ["## What is missing", missing(pieces)]
    return "\n\n".join(parts) + "\n"


def verdicts(pieces: dict[tuple[str, int], Piece]) -> str:
    """Return where intervals leave out zero, in words."""
    start = f"from the start, {FULL_STEPS} steps"
    reduced = [(f"{share}--{way}", f"{share}--{start}") for share in study.ORDERS for way in study.WAYS]
    equal, *others = study.WAYS
    ranks = [(f"{share}--{way}", f"{share}--{equal}") for share in study.ORDERS for way in others]
    lines = []
    for comparison, pairs, when in (
        ("Reduced and trained further, against training at that size from the start", reduced, "further"),
        ("Orders by Hankel singular values, against equal orders, as reduced", ranks, "test"),
    ):
        counts = {"worse": 0, "better": 0, "not decided": 0}
        for (name, seed), piece in pieces.items():
            for reference in (there for one, there in pairs if one == name and (there, seed) in pieces):
                for n in map(str, study.TEST_ROWS):
                    text = difference(piece[when], pieces[reference, seed]["test"], n)
                    counts["not decided" if "*" not in text else "worse" if text[0] == "-" else "better"] += 1
        total = listed(f"{verdict} in {count}" for verdict, count in counts.items())
        lines.append(f"{comparison}: {total} of {sum(counts.values())} comparisons")
    seeds = sorted({seed for _, seed in pieces})
    text = f"Where the interval over rows leaves out zero ({len(seeds)} seed{'s' * (len(seeds) > 1)}):"
    return f"{paragraph(text)}\n\n{bullets(lines)}"


def introduction() -> str:
    """Return what the page is, and the protocol."""
    rows = listed(f"{size} rows of {length} tokens" for length, size in study.TEST_ROWS.items())
    first = paragraph(
        "The adapter beside attention of [](results_real.md), trained on `where_is`, reduced to a half and a "
        "quarter of its states, against adapters of these sizes that were trained from the start. "
        "`python benchmarks/bench_real_ranks.py` runs what is missing, and "
        "`python docs/make_results_real_ranks.py` writes this page from the pieces in "
        "`docs/results/real_ranks`."
    )
    orders = listed(f"{order} states a layer for a {share}" for share, order in study.ORDERS.items())
    lines = [
        f"Test: {rows}, five questions a row, the first of those of [](results_real.md).",
        f"Orders: {orders}, and {study.LAYERS} times as many in all where layers differ; the whole adapter "
        "has 26 or 27 a layer.",
        "Equal orders: `reduce(order=)`. One threshold: `reduce(budget=)`, the largest Hankel singular "
        f"values of all layers. Calibrated: on {study.CALIBRATION_ROWS} rows of the training with labels, "
        "and of the candidates the one with the smallest output error on the rows held out. One threshold on "
        "the loss: the largest empirical values, that is with the states on the data and with outputs "
        "weighted by the gradient of the loss.",
        f"Further training: {study.FURTHER} steps on the rows that come next, with a new schedule at the "
        f"rate {study.RATE:g}. From the start: {FULL_STEPS} steps on the same rows as the adapter and its "
        f"further training, or the {study.STEPS} of the adapter; the same rate, which was chosen for the "
        "whole size.",
        "Each difference is between two trainings from one seed; its interval is a bootstrap over rows, so "
        "it does not say how other seeds differ. A star: zero is not in it.",
    ]
    return first + "\n\n" + bullets(lines)


def section(pieces: dict[str, Piece]) -> list[str]:
    """Return the parts of a seed."""
    parts = reductions(pieces)
    parts += hybrid(pieces.get("off--hybrid"))
    parts += forgetting(pieces)
    return parts


def reductions(pieces: dict[str, Piece]) -> list[str]:
    """Return the table of reductions, the differences, and how ranks were distributed."""
    lengths = list(map(str, study.TEST_ROWS))
    reduced, trained = [], []
    if full := pieces.get("full"):
        reduced.append(row("whole", full, "test", lengths))
        trained.append(row("whole", full, "further", lengths))
    for share in ("whole", *study.ORDERS):
        for way in study.WAYS:
            if piece := pieces.get(f"{share}--{way}"):
                reduced.append(row(f"{share}, {way}", piece, "test", lengths))
                trained.append(row(f"{share}, {way}", piece, "further", lengths))
        for steps, rows in ((study.STEPS, reduced), (FULL_STEPS, trained)):
            if piece := pieces.get(f"{share}--from the start, {steps} steps"):
                rows.append(row(f"{share}, from the start", piece, "test", lengths))
    if not reduced and not trained:
        return ["Nothing has been run yet."]
    headings = ["", "states", *(f"{n} tokens" for n in lengths)]
    pairs = compared()
    text = "Accuracy, more is better, of the adapter as it was trained, and reduced without further training."
    parts = ["### What does a reduction cost, as reduced?", paragraph(text), table(headings, reduced)]
    parts += differences(pieces, lengths, [pair for pair in pairs if pair[1] == "test" == pair[3]])
    text = f"""
        Accuracy, more is better, after the {study.FURTHER} steps of further training, and of adapters of
        these sizes trained from the start, for {FULL_STEPS} steps.
    """
    parts += ["### Is it better to reduce and train further, or to train from the start?"]
    parts += [paragraph(text), table(headings, trained)]
    parts += differences(pieces, lengths, [pair for pair in pairs if not pair[1] == "test" == pair[3]])
    lines = [
        f"{name.replace('--', ', ')}: {states_of_layers(piece['orders'])}, "
        f"{sum(kept == 'exact' for kept in piece['kept'])} of {len(piece['kept'])} layers by the exact "
        "candidate; error of a layer relative to its norm, median "
        f"{np.median(piece['relative_errors']):.2g}"
        for name, piece in pieces.items()
        if "orders" in piece
    ]
    return [*parts, "### How many states did each layer keep?", bullets(lines)] if lines else parts


def row(name: str, piece: Piece, when: str, lengths: list[str]) -> list[str]:
    """Return the line of an adapter in a table of accuracies."""
    return [name, str(piece["states"]), *(f"{piece[when][n]['accuracy']:.3f}" for n in lengths)]


def states_of_layers(orders: list[int]) -> str:
    """Return the least and the largest number of states of a layer."""
    least, most = min(orders), max(orders)
    return f"{least} states in every layer" if least == most else f"{least} to {most} states a layer"


def compared() -> list[tuple[str, str, str, str]]:
    """Return what is compared: a piece, when it was scored, and the same of its reference."""
    start = f"from the start, {FULL_STEPS} steps"
    pairs = [("full", "further", "full", "test"), (f"whole--{start}", "test", "full", "further")]
    for share in study.ORDERS:
        equal, one, calibrated, loss = (f"{share}--{way}" for way in study.WAYS)
        pairs += [(equal, "test", "full", "test")]
        pairs += [(one, "test", equal, "test"), (loss, "test", equal, "test")]
        pairs += [(calibrated, "test", equal, "test")]
        pairs += [(name, "further", f"{share}--{start}", "test") for name in (equal, one, loss)]
        pairs += [(f"{share}--{start}", "test", f"whole--{start}", "test")]
    return pairs


def differences(
    pieces: dict[str, Piece], lengths: list[str], pairs: list[tuple[str, str, str, str]]
) -> list[str]:
    """Return the paired differences of those pairs that are there."""
    lines = []
    for name, when, reference, when_reference in pairs:
        if name in pieces and reference in pieces:
            of_lengths = (
                difference(pieces[name][when], pieces[reference][when_reference], n) for n in lengths
            )
            text = listed(f"{d} at {n} tokens" for d, n in zip(of_lengths, lengths, strict=True))
            lines.append(f"{title(name, when)} minus {title(reference, when_reference)}: {text}")
    return ["Paired differences:", bullets(lines)] if lines else []


def title(name: str, when: str) -> str:
    """Return the name of what is compared."""
    text = "whole" if name == "full" else name.replace("--", ", ")
    return f"{text}, trained further" if when == "further" else text


def difference(scored: Piece, reference: Piece, length: str) -> str:
    """Return the mean difference with its interval over rows."""
    a, b = (np.array([piece[length]["values"]], dtype=float) for piece in (scored, reference))
    rows = [str(i // scored[length]["questions_of_a_row"]) for i in range(a.shape[1])]
    d = paired_difference(a, b, np.ones(a.shape[1]), rows)
    low, high = d.over_units
    return f"{d.mean:+.3f} [{low:+.3f}, {high:+.3f}]" + ("*" if low > 0 or high < 0 else "")


def hybrid(piece: Piece | None) -> list[str]:
    """Return what is left of the mixture with one of its parts switched off."""
    if piece is None:
        return []
    lengths = list(map(str, study.TEST_ROWS))
    names = {"nothing": "as trained", "state": "state off", "static": "LoRA off"}
    rows = [
        [names[off], *(f"{scored[n]['accuracy']:.3f}" for n in lengths)]
        for off, scored in piece["off"].items()
    ]
    heading = "### Which part of the mixture does the work?"
    text = f"Accuracy, more is better, of {NAMES[study.HYBRID]}, with one part switched off:"
    return [heading, text, table(["", *(f"{n} tokens" for n in lengths)], rows)]


def forgetting(pieces: dict[str, Piece]) -> list[str]:
    """Return the loss on text that no training had."""
    base = pieces.get("text--base")
    if base is None:
        return []
    before = np.array(base["loss"])
    rows = [["the base as it is", f"{before.mean():.3f}", ""]]
    for method in study.ALL_METHODS:
        piece = pieces.get(f"text--{parse_method(method).slug}")
        if piece is not None:
            more = np.array(piece["loss"]) - before
            error = more.std(ddof=1) / np.sqrt(len(more))
            rows.append([NAMES[method], f"{np.mean(piece['loss']):.3f}", f"{more.mean():+.3f} ± {error:.3f}"])
    text = (
        f"Loss in nats a token, less is better, on {TEXT_ROWS} rows of {TEXT_LENGTH} tokens of WikiText-2, "
        "before and after the training on `where_is`; mean change and its standard error over the rows:"
    )
    return [
        "### How much does training make the base forget?",
        paragraph(text),
        table(["", "loss (nats a token)", "change"], rows),
    ]


def missing(pieces: dict[tuple[str, int], Piece]) -> str:
    """Return what is not there."""
    names = study.names()
    seeds = sorted({seed for _, seed in pieces}) or [0]
    lines = []
    for seed in seeds:
        absent = [name.replace("--", ", ") for name in names if (name, seed) not in pieces]
        lines.append(f"seed {seed}: " + ("nothing" if not absent else "; ".join(absent)))
    lines += [
        "other seeds, other tasks than `where_is`, and a learning rate of its own for each size",
        "more than 24 steps: the whole adapter is not trained to the end, so a difference may be one of "
        "training and not of size",
    ]
    return bullets(lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(finished()), encoding="utf-8")


if __name__ == "__main__":
    main()
