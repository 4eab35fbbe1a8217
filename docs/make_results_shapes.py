"""Write docs/results_shapes.md from docs/results/shapes/*.json: `python docs/make_results_shapes.py`.

The files are written by benchmarks/bench_shapes.py, which has the protocol. The scores, counts and verdicts
of the page are computed here; docs/results_shapes.md is not to be edited by hand.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hankelred.errors import count
from hankelred_llm.experiments.budget import TOLERANCE
from hankelred_llm.experiments.trainer import CLIP, SCHEDULE, WARMUP

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

import _markdown as markdown  # noqa: E402 (a script beside this one)
import bench_shapes as study  # noqa: E402 (it is no package)
from _markdown import listed, table  # noqa: E402
from make_results import (  # noqa: E402
    LONGER_ROWS_TASKS,
    TASKS,
    difference,
    interval,
    number_list,
    score,
    signed,
    verdict_of,
    verdict_summary,
)

PAGE = HERE / "results_shapes.md"
NAMES = {
    study.HRM_ALONE: "HRM alone",
    study.U4: "U4",
    study.U4US: "U4us",
    study.MIXTURE: "mixture",
    "lora-qv": "LoRA on q, v",
    "lora-mlp": "LoRA on the MLP",
    "lora-all": "LoRA on all",
}
CANDIDATES = (study.HRM_ALONE, *study.MIXED)
BETTER, WORSE = "**better**", "**worse**"

Piece = dict[str, Any]

paragraph = partial(markdown.paragraph, width=110)
bullets = partial(markdown.bullets, width=110)


def finished() -> dict[str, Piece]:
    """Return the finished comparisons by name, in the order in which they are run."""
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in study.names()
        if (path := study.path_of(name)).is_file()
    }


def page(pieces: dict[str, Piece]) -> str:
    """Return the page."""
    parts = ["# Which shape of adapter?", introduction(), shapes()]
    parts += ["## Is one of them a candidate?", *candidates(pieces)]
    parts += ["## Protocol", protocol(pieces)]
    for budget in study.BUDGETS:
        of_budget = {name: piece for name, piece in pieces.items() if piece["budget"] == budget}
        if of_budget:
            parts += section(of_budget)
    parts += ["## What is missing", missing(pieces)]
    return "\n\n".join(parts) + "\n"


def introduction() -> str:
    """Return what the page is."""
    return paragraph(
        "A recurrent state remembers earlier tokens; a LoRA changes what attention and MLP compute. How "
        "should one budget of parameters be divided between them? Four shapes with a state against three of "
        "LoRA, on the small frozen base model of [](results.md). "
        "`OMP_NUM_THREADS=1 python benchmarks/bench_shapes.py comparisons/shapes` runs what is missing, and "
        "`python docs/make_results_shapes.py` writes this page from the finished comparisons in "
        "`docs/results/shapes`. **One small base model and one short training: these results do not tell "
        "what happens on a large model.**"
    )


def shapes() -> str:
    """Return what the names mean."""
    rows = [
        ["HRM alone", "a state beside attention, written to the block's output", study.HRM_ALONE],
        [
            "U4",
            "one input map for a state beside attention and for static readouts on q, k and v; LoRA on the "
            "MLP",
            study.U4,
        ],
        ["U4us", "as U4, and the block's output also gets the input of the state (feedthrough)", study.U4US],
        ["mixture", "a state beside attention, and LoRA on all linear layers", study.MIXTURE],
    ]
    rows += [[NAMES[name], "LoRA, alpha = 2 r", name] for name in study.LORA]
    return table(
        ["", "shape", "as a method of `hankelred-llm compare`"], [[a, b, f"`{c}`"] for a, b, c in rows]
    )


def protocol(pieces: dict[str, Piece]) -> str:
    """Return the protocol, which was written before anything was run."""
    c = study.COMMON
    counts = sorted({m["parameters"] for piece in pieces.values() for m in piece["methods"].values()})
    counted = f" (here {ranges_of_counts(counts)})" if counts else ""
    lines = [
        f"Tasks: {listed(TASKS[task] for task in study.TASKS)}. Budgets: "
        f"{listed(f'{budget:,}' for budget in study.BUDGETS)} trainable parameters, each method within "
        f"{TOLERANCE:.0%}{counted}.",
        f"Training: {c['steps']} steps of {c['batch_size']} rows of length {c['length']}, the same rows for "
        f"all methods of a seed. AdamW without weight decay, warm-up over {WARMUP:.0%} of the steps, "
        f"{SCHEDULE}, gradients clipped at norm {CLIP:g}.",
        f"Rate: of {number_list(c['learning_rates'])}, the same grid for all methods, the one with the best "
        f"score on {c['validation_size']} validation rows, averaged over lengths "
        f"{listed(map(str, c['tuning_lengths']))} and seeds {listed(map(str, c['tuning_seeds']))}. Where "
        "there are a state and static parts, it is the rate of the state, and static parts have three times "
        "it. That ratio and the shares of the budget are from earlier trials with 4,096 parameters and other "
        "seeds, some of them on test rows; they are not tuned here.",
        f"Report: seeds {c['seeds'][0]} to {c['seeds'][-1]}, which chose no rate; {c['test_size']} test rows "
        "at the trained length (1x) and at four times it (4x). Differences are paired by seed, with the 95 % "
        "interval of Student's t over seeds in brackets. **Better** and **worse** mean that both this "
        "interval and a bootstrap over test rows leave out zero; ahead and behind are within noise. All "
        "scores are accuracies, except bits per byte, where lower is better.",
        "Opponent: the LoRA with the best score on validation rows, averaged over both lengths and the "
        "reported seeds.",
        "Ablations: of each trained adapter with static parts, the state switched off (the direct term of "
        "U4us stays), and static readouts and LoRA switched off.",
        "Order: the larger budget first, one task after the other.",
    ]
    text = (
        "Fixed, and committed, before the first score was read. The steps were raised from the 250 of "
        "[](results.md) when a trial on validation rows, with another seed, showed that LoRA on all layers "
        "learns the flip-flop only after that; the one training that had ended was discarded."
    )
    return f"{paragraph(text)}\n\n{bullets(lines)}"


def ranges_of_counts(counts: list[int]) -> str:
    """Return the least and the largest number of parameters at each budget, in words."""
    ranges = []
    for budget in study.BUDGETS:
        near = [n for n in counts if abs(n - budget) <= 2 * TOLERANCE * budget]
        if near:
            ranges.append(f"{near[0]:,} to {near[-1]:,}")
    return listed(ranges)


def verdicts(piece: Piece, method: str) -> list[tuple[str, Piece]]:
    """Return the verdict and the difference against the opponent, at 1x and at 4x."""
    found = []
    for at in piece["lengths"].values():
        d = difference(at, method, piece["reference"])
        found.append((verdict_of(d, piece["higher_is_better"]), d))
    return found


def candidates(pieces: dict[str, Piece]) -> list[str]:
    """Return what is required, and for each shape whether it reaches it and how far it is."""
    required = [TASKS[task] for task in LONGER_ROWS_TASKS]
    first = paragraph(
        "A candidate for a large model has, at the larger budget, no line that is clearly worse than that of "
        "the LoRA chosen by validation, on any task at either length, and is clearly better at 4x on "
        f"{listed(required)}."
    )
    parts = [first]
    for budget in study.BUDGETS:
        of_budget = {name.partition("--")[2]: p for name, p in pieces.items() if p["budget"] == budget}
        if not of_budget:
            continue
        absent = [TASKS[task] for task in study.TASKS if task not in of_budget]
        lines = [f"{NAMES[method]}: {distance(of_budget, method)}" for method in CANDIDATES]
        heading = f"With {budget:,} parameters" + (f", without {listed(absent)}" if absent else "") + ":"
        parts += [paragraph(heading), bullets(lines)]
        if budget == study.BUDGETS[0]:
            parts.append(paragraph(conclusion(of_budget, absent)))
    return parts if len(parts) > 1 else [first, "No comparison has been finished yet."]


def distance(pieces: dict[str, Piece], method: str) -> str:
    """Return how many lines are clearly worse or better, which are worse, and which wins are missing."""
    all_verdicts, worse = [], []
    for task, piece in pieces.items():
        for times, (verdict, d) in zip((1, 4), verdicts(piece, method), strict=True):
            all_verdicts.append(verdict)
            if verdict == WORSE:
                worse.append(f"{TASKS[task]} at {times}x ({signed(d['mean'])})")
    text = f"{len(all_verdicts)} lines: {verdict_summary(all_verdicts)}"
    if worse:
        text += f"; clearly worse: {listed(worse)}"
    wins = [
        f"{TASKS[task]} {signed(d['mean'])} {interval(d['over_seeds'])} {verdict}"
        for task in LONGER_ROWS_TASKS
        if task in pieces
        for verdict, d in verdicts(pieces[task], method)[1:]
    ]
    return text + (f"; required at 4x: {'; '.join(wins)}" if wins else "")


def shortfall(pieces: dict[str, Piece], method: str) -> tuple[int, int]:
    """Return the number of clearly worse lines, and of required wins that are not clear."""
    lines = [verdict for piece in pieces.values() for verdict, _ in verdicts(piece, method)]
    at_4x = [verdicts(pieces[task], method)[1][0] for task in LONGER_ROWS_TASKS if task in pieces]
    return lines.count(WORSE), len(at_4x) - at_4x.count(BETTER)


def conclusion(pieces: dict[str, Piece], absent: list[str]) -> str:
    """Return which shapes reach what is required; while tasks are missing, which of them still may."""
    missed = {method: shortfall(pieces, method) for method in CANDIDATES}
    reached = [method for method in CANDIDATES if missed[method] == (0, 0)]
    if absent and reached:
        required = sum(task in pieces for task in LONGER_ROWS_TASKS)
        return (
            f"This is open: {len(pieces)} of {len(study.TASKS)} tasks are there, and {required} of the "
            f"{len(LONGER_ROWS_TASKS)} on which a clear win is required. {so_far(missed)}"
        )
    if reached:
        verb = "reach" if len(reached) > 1 else "reaches"
        return f"**{listed(NAMES[m] for m in reached)} {verb} what is required.**"
    fewest = min(sum(counts) for counts in missed.values())
    nearest = [m for m in CANDIDATES if sum(missed[m]) == fewest]
    missing, yet = (", whatever the missing tasks give", " so far") if absent else ("", "")
    return f"**No shape reaches what is required{missing}. The nearest{yet}: {shortfalls(missed, nearest)}.**"


def so_far(missed: dict[str, tuple[int, int]]) -> str:
    """Return what the tasks that are there say: one of them can rule a shape out, but none can admit it."""
    out = [method for method in CANDIDATES if missed[method] != (0, 0)]
    within = [NAMES[method] for method in CANDIDATES if method not in out]
    parts = []
    if within:
        verb = "are" if len(within) > 1 else "is"
        parts.append(f"On these, {listed(within)} {verb} within the requirement.")
    if out:
        parts.append(f"What is required is out of reach already for {shortfalls(missed, out)}.")
    return " ".join(parts)


def shortfalls(missed: dict[str, tuple[int, int]], methods: list[str]) -> str:
    """Return in words what these shapes miss."""
    described = []
    for method in methods:
        worse, not_clear = missed[method]
        counts = [count(worse, "clearly worse line")] * bool(worse)
        counts += [f"{not_clear} of the required wins not clear"] * bool(not_clear)
        described.append(f"{NAMES[method]} ({', '.join(counts)})")
    return listed(described)


def section(pieces: dict[str, Piece]) -> list[str]:
    """Return the tables of a budget, each with its question."""
    size = f"with {next(iter(pieces.values()))['budget']:,} parameters"
    has_bits = any(piece["task"] == "byte_lm" for piece in pieces.values())
    direction = "more is better" + ", of bits per byte less" * has_bits
    parts = [
        f"## Is a shape with a state better than the best LoRA, {size}?",
        f"Scores, {direction}, and what is added to them by a shape in place of the LoRA:",
        against_lora(pieces),
    ]
    for piece in pieces.values():
        parts += [f"## How do all methods score on {TASKS[piece['task']]}, {size}?", *all_methods(piece)]
    return [
        *parts,
        f"## What does each part contribute, {size}?",
        f"Scores, {direction}, with the state and with the static parts switched off:",
        ablations(pieces),
    ]


def against_lora(pieces: dict[str, Piece]) -> str:
    """Return the table of all shapes with a state against the opponent."""
    rows = []
    for piece in pieces.values():
        reference = piece["reference"]
        for times, (length, at) in zip((1, 4), piece["lengths"].items(), strict=True):
            row = [
                TASKS[piece["task"]],
                f"{times}x",
                f"{score(at['scores'][reference])} ({NAMES[reference]})",
            ]
            for method in CANDIDATES:
                verdict, d = verdicts(piece, method)[list(piece["lengths"]).index(length)]
                row.append(f"{signed(d['mean'])} {interval(d['over_seeds'])} {verdict}")
            rows.append(row)
    headings = ["task", "length", "LoRA chosen by validation"]
    return table(headings + [f"{NAMES[method]}, minus it" for method in CANDIDATES], rows)


def all_methods(piece: Piece) -> list[str]:
    """Return the table of all methods on a task."""
    one, four = piece["lengths"]
    rows = []
    for method, m in piece["methods"].items():
        rate = f"{m['learning_rate']:g}" + " (end of grid)" * at_end_of_grid(m)
        scores = [score(piece["lengths"][length]["scores"][method]) for length in (one, four)]
        losses = f"{m['losses'][2]:.3f}, {m['losses'][3]:.3f}, {m['losses'][4]:.3f}"
        rows.append([NAMES[method], m["ranks"], rate, *scores, losses])
    metric = piece["metric"].replace("_", " ")
    direction = "less" if piece["task"] == "byte_lm" else "more"
    return [
        f"`{piece['task']}`, {metric}, {direction} is better. {baselines(piece)}",
        table(["method", "ranks", "rate", "1x", "4x", "training loss, third to last fifth"], rows),
    ]


def baselines(piece: Piece) -> str:
    """Return the scores of the trivial baselines."""
    metric, ats = piece["metric"], list(piece["lengths"].values())
    found = []
    for baseline in ats[0]["floors"]:
        scores = [f"{at['floors'][baseline][metric]:.3f}" for at in ats]
        found.append(f"{baseline.replace('_', ' ')} {' and '.join(scores)}")
    return f"Baselines at 1x and 4x: {', '.join(found)}."


def at_end_of_grid(entry: Piece) -> bool:
    """Return whether the chosen rate of a method is the smallest or the largest that was tried."""
    rates = list(map(float, entry["tuned"]))
    return entry["learning_rate"] in (min(rates), max(rates))


def ablations(pieces: dict[str, Piece]) -> str:
    """Return what is left of the shapes with one of their parts switched off."""
    rows = []
    for piece in pieces.values():
        for method in study.MIXED:
            off = piece["methods"][method]["off"]
            for times, (length, at) in zip((1, 4), piece["lengths"].items(), strict=True):
                cells = [at["scores"][method], off["state"][length], off["static"][length]]
                rows.append([TASKS[piece["task"]], NAMES[method], f"{times}x", *map(score, cells)])
    return table(["task", "shape", "length", "as trained", "state off", "static off"], rows)


def missing(pieces: dict[str, Piece]) -> str:
    """Return what is not there."""
    absent = [name for name in study.names() if name not in pieces]
    lines = []
    for budget in study.BUDGETS:
        tasks = [TASKS[name.partition("--")[2]] for name in absent if name.startswith(f"{budget}--")]
        if tasks:
            lines.append(f"{budget:,} parameters: {listed(tasks)}")
    chosen = [at_end_of_grid(m) for piece in pieces.values() for m in piece["methods"].values()]
    lines += [
        f"rates beyond the grid: {sum(chosen)} of {len(chosen)} chosen rates are at an end of it",
        "other ratios of the two rates, other shares of the budget, a longer training",
        "a base of more than 100,000 parameters",
    ]
    return bullets(lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(finished()), encoding="utf-8")


if __name__ == "__main__":
    main()
