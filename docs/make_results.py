"""Write docs/results.md from docs/results/*.json: `python docs/make_results.py`.

The files are written by benchmarks/bench_comparison.py and benchmarks/bench_ranks.py. Every figure and every
verdict of the page is computed here; docs/results.md is not to be edited by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hankelred.plotting.draw import BOUND, FULL, NOISE, REDUCED
from hankelred_llm.experiments.settings import HRM_FAMILY

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import _markdown as markdown  # noqa: E402 (a script beside this one)
from _markdown import listed, table  # noqa: E402
from make_images import save  # noqa: E402

paragraph = partial(markdown.paragraph, width=140)
RESULTS = HERE / "results"

#: The two families that are compared; of each, the validation score chooses one method for every task.
HRM_METHODS = HRM_ALONE, WITH_LORA_MLP, WITH_LORA_ALL = HRM_FAMILY
LORA_METHODS = ("lora-qv", "lora-mlp", "lora-all")
#: The tasks on which HRM is required to be clearly better at four times the trained length.
LONGER_ROWS_TASKS = ("prefix_dfa", "flip_flop", "lag_copy")
#: How many tasks the figure of the modes shows.
TASKS_IN_FIGURE = 5
#: How many tasks stand side by side in the figure of the scores.
SCORE_COLUMNS = 3
RANDOM_BASE = ", base with random weights"
TASKS = {
    "prefix_dfa": "automaton of four states",
    "flip_flop": "flip-flop",
    "lag_copy": "copy from 8 tokens before",
    "key_retrieval": "key retrieval",
    "byte_lm": "bytes of text",
    "majority": "majority",
    "associative_recall": "associative recall",
    "modular_sum": "modular sum",
    "parity": "parity",
    "s3_words": "words of S3",
    "prefix_dfa-random": f"automaton of four states{RANDOM_BASE}",
    "flip_flop-random": f"flip-flop{RANDOM_BASE}",
    "lag_copy-random": f"copy from 8 tokens before{RANDOM_BASE}",
    "key_retrieval-random": f"key retrieval{RANDOM_BASE}",
}
SHORT = {
    WITH_LORA_MLP: "hrm-attention + lora-mlp",
    WITH_LORA_ALL: "hrm-attention + lora-all",
    "hrm-attention init_weights=s4d_real eigenvalues=real": "s4d_real",
    "hrm-attention init_weights=balanced-B": "balanced, B",
    "hrm-attention init_weights=balanced": "balanced, AB",
    "hrm-attention init_weights=balanced-ABC": "balanced, ABC",
}

Results = dict[str, Any]


def read() -> dict[str, Results]:
    """Return the contents of the files of results by name; an empty dict where there is no file."""
    results = {}
    for name in ("comparisons", "systems", "costs", "initializations", "ranks"):
        path = RESULTS / f"{name}.json"
        results[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return results


def page(results: dict[str, Results]) -> str:
    """Return the whole page."""
    comparisons, starts = results["comparisons"], results["initializations"]
    ordered = {name: comparisons[name] for name in TASKS if name in comparisons}
    parts = [
        setup_section(ordered),
        methods_compared(ordered),
        main_comparison(ordered),
        all_methods(ordered),
        learned_systems(results["systems"]),
        costs(results["costs"]),
        initializations(starts),
        reduction_after_training(results["ranks"]),
        not_run(ordered, starts),
    ]
    return "\n".join(part for part in parts if part)


def setup_section(comparisons: dict[str, Results]) -> str:
    """Return the introduction: what was run, and with which commands."""
    first = next(iter(comparisons.values()))
    counts = [m["parameters"] for c in comparisons.values() for m in c["methods"].values()]
    rates = sorted({float(r) for m in first["methods"].values() for r in m["tuned"]})
    shared = [c for c in comparisons.values() if c["seeds"] == first["seeds"]]
    others = [TASKS[n] for n, c in comparisons.items() if c not in shared]
    text = f"""
        The base model is `small`, a frozen Mistral of two layers of width 64, pretrained on source code
        ([](comparing.md)); `small-random` has random weights. Every method has
        {min(counts):,} to {max(counts):,} trainable parameters and is trained for {first["steps"]} steps of
        {first["batch_size"]} rows of length {first["length"]}. It is tested at that length (1x) and at four
        times that length (4x). The learning rate of each method is the one of {number_list(rates)} with the
        best validation score, averaged over both lengths and over seeds
        {number_list(first["tuning_seeds"])}. The results are from {len(first["seeds"])} other seeds; ± is
        their standard deviation. With so few seeds the intervals are wide. **One small base model and one
        short training: these results do not tell what happens on a large model.**
    """
    if others:
        counts_of_seeds = sorted({len(c["seeds"]) for c in comparisons.values() if c not in shared})
        text += f" Of {', '.join(others)} there are {number_list(counts_of_seeds)} seeds."
    return f"""# Results

HRM adapters against LoRA and DoRA with the same number of trainable parameters. These commands
write the files in `docs/results`, and this page from them:

```sh
OMP_NUM_THREADS=1 python benchmarks/bench_comparison.py run comparisons
OMP_NUM_THREADS=1 python benchmarks/bench_comparison.py costs
python benchmarks/bench_comparison.py collect comparisons
python docs/make_results.py
```

{paragraph(text)}
"""


def methods_compared(comparisons: dict[str, Results]) -> str:
    """Return what is compared, and how the tables are read."""
    text = f"""
        Three HRM methods are compared: HRM in parallel with attention alone (`{HRM_ALONE}`), the same with a
        LoRA on the MLP (`{WITH_LORA_MLP}`), and the same with a LoRA on all layers (`{WITH_LORA_ALL}`; the
        tables give the learning rate of the HRM part). For each task the one with the best validation score
        is used. The LoRA methods are LoRA on query and value, on the MLP and on all layers, and on some tasks
        DoRA; "best LoRA" in a row is the one with the best mean on the test rows of that very
        row, which is an advantage for LoRA. The two combinations, their shares and the ratio of their
        learning rates were chosen in trials on validation rows, with seeds 100 to 103. The methods without
        combination had been measured on these test rows for an earlier version of this page. Differences are
        HRM minus best LoRA, paired by seed, and the 95 % interval over seeds is in brackets. **Better** and
        **worse** mean that both this interval and the one over test rows exclude zero; ahead and behind are
        within noise. All scores are accuracies, of which more is better, except bits per byte, of which less
        is better.
    """
    with_dora = [TASKS[n] for n, c in comparisons.items() if "dora-all" in c["methods"]]
    text += f" DoRA was run on: {', '.join(with_dora)}. Bytes of text are from tiny Shakespeare."
    text += """
        On the base model with random weights only HRM alone and LoRA on all layers were run, and on key
        retrieval, where HRM alone failed, also HRM with LoRA on all layers.
    """
    if {"parity", "modular_sum", "s3_words"} & set(comparisons):
        text += """
            Parity, modular sum and words of S3 are included as tasks that cannot be solved: a linear
            time-invariant recurrence cannot represent them, whatever its eigenvalues
            ([](what_a_linear_state_cannot_do.md)).
        """
    return f"""## Which methods are compared

{paragraph(text)}
"""


def main_comparison(comparisons: dict[str, Results]) -> str:
    """Compare HRM methods with the best LoRA: one chosen for each task, and two used for all tasks."""
    chosen = rows_against_best_lora(comparisons, best_by_validation(HRM_METHODS))
    pretrained = [row for row in chosen if not row.random_base]
    against_chosen_lora = []
    for c in comparisons.values():
        hrm = best_by_validation(HRM_METHODS)(c)
        lora = best_by_validation(LORA_METHODS)(c)
        against_chosen_lora += [
            verdict_of(difference(at, hrm, lora), c["higher_is_better"]) for at in c["lengths"].values()
        ]
    summary = f"""
        All {len(chosen)} rows of the three tables: {verdict_counts(chosen)}. {targets_met(chosen)} Against
        the LoRA with the best validation score: {verdict_summary(against_chosen_lora)}.
    """
    caveat = f"""
        With so few seeds, "never clearly worse" is a weak claim: a row with "behind" may be a real loss, and
        a row with "ahead" may be no gain. {tasks_not_learned(comparisons)}
    """
    parts = [
        "## Is HRM better than LoRA at the trained length?",
        paragraph("The HRM method with the best validation score, against the best LoRA, at 1x."),
        comparison_table([row for row in pretrained if row.times == 1]),
        "## Is HRM better than LoRA on sequences four times as long?",
        paragraph("The same adapters, tested at 4x."),
        comparison_table([row for row in pretrained if row.times == 4]),
        paragraph(caveat),
        "```{image} images/results_scores.png\n:alt: Scores of every method on every task, a dot for each "
        "seed\n```",
    ]
    if random := [row for row in chosen if row.random_base]:
        parts += [
            "## Is HRM better than LoRA where the base has random weights?",
            paragraph("The same on `small-random`, at both lengths."),
            comparison_table(random, with_length=True),
        ]
    parts.append(paragraph(summary))
    for method, question in (
        (HRM_ALONE, "Is HRM alone better than LoRA on every task?"),
        (WITH_LORA_ALL, "Is HRM with LoRA on all layers better than LoRA on every task?"),
    ):
        rows = rows_against_best_lora(comparisons, lambda c, method=method: method)
        text = (
            f"`{SHORT.get(method, method)}` wherever it was run, against the best LoRA of the tables above."
        )
        text_below = f"{verdict_counts(rows)}. {targets_met(rows)}"
        parts += [f"## {question}", paragraph(text), table_by_task(rows), paragraph(text_below)]
    return "\n\n".join(parts) + "\n"


Selector = Callable[[Results], str]


def best_by_validation(methods: tuple[str, ...]) -> Selector:
    """Return a function that chooses the method with the best validation score at its best rate."""

    def best(c: Results) -> str:
        sign = 1 if c["higher_is_better"] else -1
        present = [name for name in methods if name in c["methods"]]

        def validation(name: str) -> float:
            scores = [v for v in c["methods"][name]["tuned"].values() if v is not None]
            return max(sign * v for v in scores)

        return max(present, key=validation)

    return best


class Row(NamedTuple):
    """A method against the best LoRA, on a task at a length."""

    name: str
    times: int
    better: str
    lora: str
    lora_score: str
    method: str
    method_score: str
    difference: Results
    verdict: str

    @property
    def random_base(self) -> bool:
        """Whether the base has random weights."""
        return self.name.endswith("-random")

    @property
    def change(self) -> str:
        """The difference with its interval and the verdict."""
        d = self.difference
        return f"{signed(d['mean'])} {interval(d['over_seeds'])} {self.verdict}"


def rows_against_best_lora(comparisons: dict[str, Results], selector: Selector) -> list[Row]:
    """Return the selected methods against the best LoRA, where they were run."""
    rows = []
    for name, c in comparisons.items():
        method = selector(c)
        for times, (length, at) in zip((1, 4), c["lengths"].items(), strict=True):
            if method not in at["scores"]:
                continue
            best = best_lora(c, length)
            d = difference(at, method, best)
            scores = (score(at["scores"][best]), score(at["scores"][method]))
            verdict = verdict_of(d, c["higher_is_better"])
            rows.append(Row(name, times, direction(c), best, scores[0], method, scores[1], d, verdict))
    return rows


def direction(c: Results) -> str:
    """Return the unit of the scores, and which are better."""
    return f"{c['metric'].replace('_', ' ')}, {'more' if c['higher_is_better'] else 'less'}"


def comparison_table(rows: list[Row], *, with_length: bool = False) -> str:
    """Return a table of one line for each row, with both methods by name."""
    headings = ["task", *(["length"] if with_length else []), "score, better"]
    lines = [
        [
            TASKS[row.name].removesuffix(RANDOM_BASE),
            *([f"{row.times}x"] if with_length else []),
            row.better,
            f"{row.lora_score} ({row.lora})",
            f"{row.method_score} ({SHORT.get(row.method, row.method)})",
            row.change,
        ]
        for row in rows
    ]
    return table([*headings, "best LoRA", "HRM", "difference"], lines)


def table_by_task(rows: list[Row]) -> str:
    """Return a table of one line for each task, with the scores of one method at both lengths."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        line = lines.setdefault(row.name, [TASKS[row.name], row.better])
        line += [row.method_score, row.change]
    headings = ["task", "score, better", "1x", "minus best LoRA", "4x", "minus best LoRA"]
    return table(headings, list(lines.values()))


def number_list(values: list[Any]) -> str:
    """Return numbers as an enumeration, as in "1, 2 and 3"."""
    return listed(f"{value:g}" for value in values)


def tasks_not_learned(comparisons: dict[str, Results]) -> str:
    """Name the tasks on which no method learned much more than the best trivial baseline."""
    names = []
    for name, c in comparisons.items():
        sign, metric = (1 if c["higher_is_better"] else -1), c["metric"]
        at = next(iter(c["lengths"].values()))
        baseline = max(sign * values[metric] for values in at["floors"].values())
        if max(sign * float(np.mean(values)) for values in at["scores"].values()) < baseline + 0.05:
            names.append(TASKS[name])
    if not names:
        return ""
    return (
        f"On {', '.join(names)}, no method is at 1x more than .05 above the best trivial baseline: "
        "differences there mean little."
    )


def verdict_counts(rows: list[Row]) -> str:
    """Return how often each verdict was given, and the tasks where HRM lost."""
    losses = [
        f"{TASKS[row.name]} at {row.times}x ({signed(row.difference['mean'])})"
        for row in rows
        if row.verdict in ("**worse**", "behind")
    ]
    where = f"; worse or behind: {', '.join(losses)}" if losses else ""
    return f"{verdict_summary([row.verdict for row in rows])}{where}"


def targets_met(rows: list[Row]) -> str:
    """Return whether the two requirements are met: never clearly worse, and clearly better at 4x."""
    verdict_at = {(row.name, row.times): row.verdict for row in rows}
    clear = [n for n in LONGER_ROWS_TASKS if verdict_at.get((n, 4)) == "**better**"]
    missed = [TASKS[n] for n in LONGER_ROWS_TASKS if n not in clear and (n, 4) in verdict_at]
    worse = [1 for v in verdict_at.values() if v == "**worse**"]
    first = (
        "It is never clearly worse than the best LoRA"
        if not worse
        else f"It is clearly worse than the best LoRA in {len(worse)} rows"
    )
    second = (
        "clearly better on automaton, flip-flop and copy at 4x, which was the target"
        if not missed
        else f"misses the target to be clearly better at 4x on {', '.join(missed)}"
    )
    return f"{first}, and {second}."


def all_methods(comparisons: dict[str, Results]) -> str:
    """Return a table for each task."""
    parts = [
        "## Which method is best on each task?\n",
        paragraph(
            "One table a task, with every method that was run; r is the rank of the LoRA, or the number of "
            "states, of each layer."
        )
        + "\n",
    ]
    for name, c in comparisons.items():
        one, four = c["lengths"]
        rows = [
            [
                SHORT.get(method, method),
                m["ranks"],
                f"{m['parameters']:,}",
                f"{m['learning_rate']:g}",
                score(c["lengths"][one]["scores"][method]),
                score(c["lengths"][four]["scores"][method]),
            ]
            for method, m in c["methods"].items()
        ]
        metric = c["metric"]
        baselines = []
        for baseline in c["lengths"][one]["floors"]:
            values = [f"{at['floors'][baseline][metric]:.3f}" for at in c["lengths"].values()]
            baselines.append(f"{baseline.replace('_', ' ')} {' and '.join(values)}")
        title = f"{TASKS[name][0].upper()}{TASKS[name][1:]}: which method is best?"
        text = f"""
            Task `{c["task"]}`; {direction(c)} is better. Trivial baselines at 1x and 4x:
            {", ".join(baselines)}.
        """
        parts.append(
            f"### {title}\n\n{paragraph(text)}\n\n"
            + table(["method", "r", "parameters", "learning rate", f"1x ({one})", f"4x ({four})"], rows)
            + "\n"
        )
    return "\n".join(parts)


def learned_systems(systems: dict[str, Results]) -> str:
    """Return how training changed gates and time scales."""
    if not systems:
        return ""
    rows = []
    for name in (n for n in TASKS if n in systems):
        s = systems[name]
        for layer, (before, after) in enumerate(zip(s["before"], s["after"], strict=True)):
            rows.append(
                [
                    TASKS[name],
                    str(layer),
                    f"{after['gate']:.2f}",
                    *(time_scale_range(x) for x in (before, after)),
                    f"{np.median(np.abs(np.log(np.divide(after['decay'], before['decay'])))):.2f}",
                    f"{np.median(np.abs(np.subtract(after['phase'], before['phase']))):.2f}",
                ]
            )
    headings = [
        "task",
        "layer",
        "gate",
        "time scales before",
        "after",
        "median of abs log ratio",
        "median change of phase, rad",
    ]
    text = f"""
        HRM in parallel with attention, seed {next(iter(systems.values()))["seed"]}. The initial gate is 1.
        The time scale of a mode is 1 / (decay rate), in tokens; the table gives the smallest, the median and
        the largest of a layer. The last two columns compare each mode with its initial value: the factor by
        which its time scale changed (absolute natural logarithm), and the change of its phase. None of these
        figures is better large or small.
    """
    return f"""## Which time scales and gates does training choose?

{paragraph(text)}

{table(headings, rows)}

{paragraph(time_scale_changes(systems))}

```{{image}} images/results_systems.png
:alt: Time scale and frequency of every mode before and after training, by task and layer
```
"""


def time_scale_changes(systems: dict[str, Results]) -> str:
    """Return in how many layers time scales and gates became smaller."""
    layers = [pair for s in systems.values() for pair in zip(s["before"], s["after"], strict=True)]
    shorter = [a for b, a in layers if np.median(a["decay"]) > np.median(b["decay"])]
    smaller = [a for _, a in layers if a["gate"] < 1]
    return (
        f"The median time scale became shorter in {len(shorter)} of {len(layers)} layers, "
        f"and the gate smaller in {len(smaller)}. The figure shows the first {TASKS_IN_FIGURE} tasks."
    )


def time_scale_range(layer: Results) -> str:
    """Return the smallest, the median and the largest time scale of a layer."""
    times = 1 / np.maximum(np.array(layer["decay"]), 1e-12)
    return f"{times.min():.0f}, {np.median(times):.0f}, {times.max():.0f}"


def costs(results: Results) -> str:
    """Return time and memory of a step."""
    if not results:
        return ""
    lengths = list(next(iter(results["rows"].values())))
    base = results["rows"]["lora-qv"]
    times, memory = [], []
    for name, at in results["rows"].items():
        seconds = [
            f"{1e3 * at[n]['seconds']:.0f} ({at[n]['seconds'] / base[n]['seconds']:.2f})" for n in lengths
        ]
        times.append([SHORT.get(name, name), *seconds])
        memory.append([SHORT.get(name, name), *(f"{at[n]['bytes'] / 2**20:.0f}" for n in lengths)])
    headings = ["method", *(f"{n} tokens" for n in lengths)]
    text = f"""
        CPU time in milliseconds, less is better, of one training step (forward, backward, AdamW) on one row
        with {results["threads"]} thread ({results["processor"]}, torch {results["torch"]}): the minimum of
        {results["rounds"]} rounds, each over all methods, on a machine with other load. The ratio to LoRA on
        query and value is in brackets; ratios within a third of 1 are noise. `hrm-*` use the chunked scan of
        this package. "FFT scan" is the zero-padded convolution, differentiated by autograd, and "sequential
        scan" the loop over samples, both in the same adapter, as in the tables of the paper. The base model
        is so small that the adapter is a large part of a step. It has only two layers: an adapter in parallel
        with attention needs no backward pass through the attention of the first layer, but a LoRA inside that
        attention does, and at 8192 tokens this pass is most of the step.
    """
    text_of_memory = """
        Peak of the process above its level before the step, in MiB, less is better. It includes the
        activations of the base model.
    """
    return f"""## How long does a training step take?

{paragraph(text)}

{table(headings, times)}

## How much memory does a training step need?

{paragraph(text_of_memory)}

{table(headings, memory)}
"""


def cells_against_reference(c: Results, method: str) -> list[str]:
    """Return the cells of a method at each length: its score, and its difference to the reference."""
    cells = []
    for at in c["lengths"].values():
        cells.append(score(at["scores"][method]))
        if method == c["reference"]:
            cells.append("")
            continue
        d = difference(at, method, c["reference"])
        cells.append(
            f"{signed(d['mean'])} {interval(d['over_seeds'])} {verdict_of(d, c['higher_is_better'])}"
        )
    return cells


def initializations(starts: dict[str, Results]) -> str:
    """Return the comparison of initializations."""
    if not starts:
        return ""
    by_rank: dict[str, list[list[str]]] = {}
    wins: dict[str, dict[str, list[str]]] = {}
    for c in starts.values():
        for method, m in c["methods"].items():
            row = [TASKS[c["task"]], SHORT.get(method, "ring"), f"{m['learning_rate']:g}"]
            by_rank.setdefault(m["ranks"], []).append(row + cells_against_reference(c, method))
            if method != c["reference"]:
                for at in c["lengths"].values():
                    d = difference(at, method, c["reference"])
                    verdict = verdict_of(d, c["higher_is_better"])
                    wins.setdefault(m["ranks"], {}).setdefault(SHORT[method], []).append(verdict)
    first = next(iter(starts.values()))
    spent = [m["calibration_seconds"] for c in starts.values() for m in c["methods"].values()]
    least, most = min(s for s in spent if s), max(spent)
    steps = [m["step_seconds"] for c in starts.values() for m in c["methods"].values()]
    replaced = first["calibration_steps"] * float(np.median(steps))
    headings = ["task", "initialization", "learning rate", "1x", "minus ring", "4x", "minus ring"]
    text = f"""
        HRM in parallel with attention. `ring` is the default; `s4d_real` with real eigenvalues is the
        initialization of the paper. The balanced initializations are computed from data: they use the rows of
        the first {first["calibration_steps"]} of the {first["steps"]} steps for calibration and train on the
        rest, so that the number of rows and of passes is the same for all. They were measured with an earlier
        version: since none of them is better than `ring` beyond noise, they are not among the methods of
        `compare` any more, and `hankelred_llm.initialize` is for scripts. The learning rate was chosen on
        seed {first["tuning_seeds"][0]}; the results are from {len(first["seeds"])} other
        seeds. The time is not the same: calibration took {least:.1f} to {most:.1f} seconds, and the steps
        that it replaces take {replaced:.1f} seconds (on a machine with other load).
    """
    parts = ["## Does the initialization matter?", paragraph(text)]
    for rank in sorted(by_rank, key=int):
        summed = "; ".join(f"{name}: {verdict_summary(v)}" for name, v in wins[rank].items())
        parts += [
            f"### Which initialization is best with {rank} states?",
            paragraph("Accuracy, more is better, and the difference from `ring`."),
            table(headings, by_rank[rank]),
            paragraph(f"Against ring: {summed}."),
        ]
    return "\n\n".join(parts) + "\n"


def reduction_after_training(ranks: dict[str, Results]) -> str:
    """Compare small adapters with larger ones that were reduced, to equal orders or by one threshold."""
    if not ranks:
        return ""
    rows, wins, thresholds = [], {}, []
    for c in ranks.values():
        for way, m in c["ways"].items():
            orders = sorted({"+".join(map(str, o)) for o in m["orders"]})
            row = [TASKS[c["task"]], way, ", ".join(orders), f"{m['learning_rate']:g}", f"{m['seconds']:.0f}"]
            rows.append(row + cells_against_reference(c, way))
        _, equal, threshold = c["ways"]
        for way in (equal, threshold):
            wins.setdefault(way, []).extend(
                verdict_of(difference(at, way, c["reference"]), c["higher_is_better"])
                for at in c["lengths"].values()
            )
        thresholds += [
            verdict_of(difference(at, threshold, equal), c["higher_is_better"])
            for at in c["lengths"].values()
        ]
    first = next(iter(ranks.values()))
    reference = first["reference"]
    text = f"""
        HRM in parallel with attention, `python benchmarks/bench_ranks.py`. Either an adapter of 16 states is
        trained for {first["steps"]} steps, or one of 64 states is trained for 150 steps, reduced with
        `reduce` to the same total number of states, and trained for the remaining steps. The reduction gives
        every layer the same order, or uses one threshold for all layers. The rows are the same for all. The
        {len(first["seeds"])} seeds are not those that chose the learning rate. Scores are accuracies, more is
        better; seconds, less is better, are those of the whole training, on one thread of a machine with
        other load.
    """
    summed = "; ".join(f"{way}: {verdict_summary(v)}" for way, v in wins.items())
    text_below = f"""
        Rows above, against {reference}: {summed}. One threshold against equal orders:
        {verdict_summary(thresholds)}.
    """
    headings = [
        "task",
        "states",
        "orders",
        "learning rate",
        "seconds",
        "1x",
        "difference",
        "4x",
        "difference",
    ]
    return f"""## Is it better to train a large adapter and reduce it?

{paragraph(text)}

{table(headings, rows)}

{paragraph(text_below)}
"""


def verdict_summary(verdicts: list[str]) -> str:
    """Return how often each verdict was given."""
    kinds = ["**better**", "ahead", "level", "behind", "**worse**"]
    return ", ".join(f"{n} {kind}" for kind in kinds if (n := verdicts.count(kind)))


def not_run(comparisons: dict[str, Results], starts: dict[str, Results]) -> str:
    """List what was not run."""
    missing = [title for name, title in TASKS.items() if name not in comparisons]
    expected = [f"starts-{task}-{r}" for task in LONGER_ROWS_TASKS for r in (4, 16)]
    missing_initializations = [name.removeprefix("starts-") for name in expected if name not in starts]
    lines = ["## What was not run\n"]
    if missing:
        lines.append(f"- Comparisons: {', '.join(missing)}.")
    if missing_initializations:
        lines.append(f"- Initializations (task and r): {', '.join(missing_initializations)}.")
    lines += [
        "- Learning rates other than the three, other lengths, longer training.",
        "- DoRA on tasks other than the automaton.",
        "- A model of more than 100,000 parameters, and a GPU.",
        "",
    ]
    return "\n".join(lines)


def best_lora(c: Results, length: str) -> str:
    """Return the LoRA or DoRA with the best mean at a length."""
    sign = 1 if c["higher_is_better"] else -1
    scores = {n: s for n, s in c["lengths"][length]["scores"].items() if "hrm" not in n}
    return max(scores, key=lambda n: sign * float(np.mean(scores[n])))


def difference(at: Results, method: str, reference: str) -> Results:
    """Return a paired difference from the files."""
    results: Results = next(d for d in at["differences"] if (d["method"], d["minus"]) == (method, reference))
    return results


def verdict_of(d: Results, higher_is_better: bool) -> str:
    """Return the verdict on a difference."""
    mean = d["mean"] if higher_is_better else -d["mean"]
    if d["clear"]:
        return "**better**" if mean > 0 else "**worse**"
    return "level" if abs(mean) < 5e-4 else "ahead" if mean > 0 else "behind"


def score(values: list[float]) -> str:
    """Return mean and standard deviation."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.3f}"


def interval(ends: list[float]) -> str:
    """Return an interval."""
    return f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"


def draw_figures(results: dict[str, Results]) -> None:
    """Draw the figures of the page, in text of one size."""
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 9, "axes.titlesize": "medium"}):
        draw_scores(results)
        draw_systems(results)
    pyplot.close("all")


def draw_scores(results: dict[str, Results]) -> None:
    """Draw a panel for each task, a row for each method, a dot for each seed and length."""
    from matplotlib import pyplot

    names = [n for n in TASKS if n in results["comparisons"]]
    blocks = [names[k : k + SCORE_COLUMNS] for k in range(0, len(names), SCORE_COLUMNS)]
    # the tasks of a row share the axis of methods
    methods = [
        list(dict.fromkeys(m for n in block for m in results["comparisons"][n]["methods"]))
        for block in blocks
    ]
    figure, axes = pyplot.subplots(
        len(blocks),
        SCORE_COLUMNS,
        figsize=(7.3, sum(0.85 + 0.24 * len(m) for m in methods) + 0.5),
        height_ratios=[0.85 + 0.24 * len(m) for m in methods],
        layout="constrained",
        squeeze=False,
    )
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for line, (block, shown) in enumerate(zip(blocks, methods, strict=True)):
        for ax, name in zip(axes[line], block, strict=False):
            draw_task(ax, TASKS[name], results["comparisons"][name], shown)
            ax.tick_params(labelleft=ax is axes[line, 0])
    handles = [
        pyplot.Line2D([], [], marker="o", ls="", color=FULL, label="with a state"),
        pyplot.Line2D([], [], marker="o", ls="", color=REDUCED, label="LoRA, DoRA"),
        pyplot.Line2D([], [], marker="o", ls="", mfc="none", color="black", label="trained length"),
        pyplot.Line2D([], [], marker="o", ls="", color="black", label="four times that"),
        pyplot.Line2D([], [], ls="--", color=BOUND, label="best baseline"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handletextpad=0.2)
    save(figure, "results_scores")


def draw_task(ax: Any, title: str, c: Results, methods: list[str]) -> None:
    """Draw the scores of one task, on lines for these methods."""
    for at, offset, filled in zip(c["lengths"].values(), (-0.16, 0.16), (False, True), strict=True):
        for method, values in at["scores"].items():
            color = FULL if "hrm" in method else REDUCED
            face, line = color if filled else "none", methods.index(method) + offset
            ax.plot(values, [line] * len(values), "o", ms=4.5, mfc=face, mec=color, alpha=0.8)
    best = max if c["higher_is_better"] else min
    baselines = next(iter(c["lengths"].values()))["floors"].values()
    ax.axvline(best(b[c["metric"]] for b in baselines), color=BOUND, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(methods)), [SHORT.get(m, m) for m in methods])
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.set_title(title.replace(", base", ",\nbase"))
    ax.set_xlabel(f"{direction(c)} is better")
    ax.grid(axis="x", alpha=0.3)
    if c["higher_is_better"]:
        ax.set(xlim=(-0.04, 1.04), xticks=(0, 0.5, 1))


def draw_systems(results: dict[str, Results]) -> None:
    """Draw the modes before and after training, layers side by side and tasks below each other."""
    from matplotlib import pyplot

    names = [n for n in TASKS if n in results["systems"]][:TASKS_IN_FIGURE]
    layers = len(results["systems"][names[0]]["after"])
    figure, axes = pyplot.subplots(
        len(names),
        layers,
        figsize=(7.3, 1.75 * len(names) + 0.7),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for line, name in enumerate(names):
        s = results["systems"][name]
        for layer, ax in enumerate(axes[line]):
            before, after = (points(s[when][layer]) for when in ("before", "after"))
            for (x, y, _), (u, v, _) in zip(before, after, strict=True):
                if abs(x - u) < np.pi / 2:  # no line across the whole panel where a phase passes zero
                    ax.plot([x, u], [y, v], color=NOISE, linewidth=0.7)
            ax.plot(*zip(*[(x, y) for x, y, _ in before], strict=True), "o", mfc="none", mec=BOUND, ms=4)
            size = [60 * gain / max(g for *_, g in after) + 4 for *_, gain in after]
            ax.scatter([x for x, *_ in after], [y for _, y, _ in after], s=size, color=FULL, alpha=0.8)
            ax.set_yscale("log")
            ax.grid(alpha=0.3)
            ax.set_title(f"{TASKS[name]}, layer {layer}: gate {s['after'][layer]['gate']:.2f}")
        axes[line, 0].set_ylabel("time scale\n(tokens)")
    for ax in axes[-1]:
        ax.set_xlabel("frequency (rad per token)")
    handles = [
        pyplot.Line2D([], [], marker="o", ls="", mfc="none", color=BOUND, label="before training"),
        pyplot.Line2D([], [], marker="o", ls="", color=FULL, label="after training (size: gain of the mode)"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    save(figure, "results_systems")


def points(layer: Results) -> list[tuple[float, float, float]]:
    """Return frequency, time scale and gain of every mode; of a conjugate pair, of one of the two."""
    phases = np.array(layer["phase"])
    once = slice(0, None, 2) if np.allclose(phases[::2], -phases[1::2]) else slice(None)
    frequency = np.abs((phases[once] + np.pi) % (2 * np.pi) - np.pi)
    times = 1 / np.maximum(np.array(layer["decay"])[once], 1e-12)
    return list(zip(frequency, times, np.array(layer["gain"])[once], strict=True))


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    results = read()
    (HERE / "results.md").write_text(page(results), encoding="utf-8")
    draw_figures(results)
