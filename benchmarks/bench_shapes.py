"""Which shape of adapter? The study of docs/results_shapes.md, one comparison after the other.

    python benchmarks/bench_shapes.py FOLDER [NAME ...]   hours on one core; resumes
    python docs/make_results_shapes.py                    writes the page

A comparison is all methods on a task with a budget: NAME is as in 16384--prefix_dfa, and without names all
that are missing are run. Once it is finished it becomes a file of docs/results/shapes/ and is not repeated;
FOLDER keeps its trainings, of which none is repeated either. Processes with different names can share the
work. Texts are read from ../shared, or where HANKELRED_SHARED points. One thread: OMP_NUM_THREADS=1.

U4 and U4us are the shapes with one input map for a state and for static readouts on q, k and v, and a LoRA on
the MLP; in U4us the block's output gets the input of the state, too. Their shares and their ratio of rates,
and those of the mixture, are from earlier trials with 4,096 parameters and other seeds, some of them on the
test rows, and are not tuned here.

The number of steps is from trials with one other seed on validation rows, U4 and LoRA on all layers, 16,384
parameters. At the rate .01 the losses were flat from 250 steps on, and 500 steps changed little; but at .003
LoRA learned the flip-flop between 250 and 500 steps (from .750 and .674 at one and four times the length to
.975 and .791), where U4 had .996 and .894 after 250. Fewer steps would have been for the state. So the
protocol, which began with the 250 steps of docs/results.md, was changed to 750, and the one training that had
ended, HRM alone at the smallest rate, was discarded before its score was read.

Written before the first comparison. Prediction: with 16,384 parameters the wins of a state at four times the
length become smaller, since LoRA on all layers learns to copy there; U4 stays clearly better on the automaton
only; on text U4us is within noise of LoRA at the trained length and behind at four times it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_comparison import DFA, TEXT, condensed, shortened
from bench_real import write
from bench_real_ranks import switch_off

from hankelred_llm.experiments.compare import RESULTS, compare
from hankelred_llm.experiments.evaluate import evaluate
from hankelred_llm.experiments.experiment import open_experiment
from hankelred_llm.experiments.methods import load_adapter, parse_method
from hankelred_llm.experiments.records import ResultRecord, read_records
from hankelred_llm.experiments.settings import HRM_FAMILY, Settings
from hankelred_llm.experiments.train import ADAPTER

PIECES = Path(__file__).resolve().parents[1] / "docs/results/shapes"

#: The protocol. It was written, and committed, before the first comparison was begun.
READOUTS = "static_readouts=[q_proj,k_proj,v_proj]"
HRM_ALONE, _, MIXTURE = HRM_FAMILY
U4 = f"hrm-attention+lora-mlp {READOUTS} share=0.625 lora_lr_ratio=3"
U4US = f"hrm-attention+lora-mlp {READOUTS} feedthrough=true share=0.625 lora_lr_ratio=3"
#: Those with a state and static parts, each of which is switched off after the training.
MIXED = (U4, U4US, MIXTURE)
LORA = ("lora-qv", "lora-mlp", "lora-all")
METHODS = (HRM_ALONE, *MIXED, *LORA)
TASKS: dict[str, ResultRecord] = {
    "prefix_dfa": DFA,
    "flip_flop": {},
    "lag_copy": {"lag": 8},
    "key_retrieval": {},
    "byte_lm": TEXT,
}
BUDGETS = (16384, 4096)
COMMON: dict[str, Any] = {
    "length": 32,
    "steps": 750,
    "batch_size": 16,
    "learning_rates": [1e-3, 3e-3, 1e-2, 3e-2],
    "tuning_seeds": [100, 101],
    "tuning_lengths": [32, 128],
    "seeds": list(range(8, 16)),
    "validation_size": 128,
    "test_size": 256,
    "save_every": 1000,
    "eval_batch_size": 64,
}


def names() -> list[str]:
    """Return the names of the comparisons in the order in which they are run."""
    return [f"{budget}--{task}" for budget in BUDGETS for task in TASKS]


def settings_of(name: str, folder: Path) -> Settings:
    """Return the settings of a comparison by its name."""
    budget, _, task = name.partition("--")
    return Settings(
        task=task,
        task_options=TASKS[task],
        budget=budget,
        methods=list(METHODS),
        out=str(folder / name),
        **COMMON,
    )


def path_of(name: str) -> Path:
    """Return the file of a comparison."""
    return PIECES / f"{name}.json"


def run(folder: Path, wanted: list[str]) -> None:
    """Run the comparisons that are missing."""
    for name in wanted:
        if path_of(name).is_file():
            continue
        print(time.strftime("%H:%M:%S"), name, flush=True)
        settings = settings_of(name, folder)
        compare(settings)
        write(path_of(name), {"name": name, **shortened(content(settings))})


def content(settings: Settings) -> ResultRecord:
    """Return what is kept of a finished comparison: no rows of the test, but all differences of interest."""
    folder = Path(settings.out)
    records = read_records(folder / RESULTS)
    found = condensed(settings, json.loads((folder / "summary.json").read_text(encoding="utf-8")), records)
    found["budget"] = int(settings.budget)
    for method, entry in found["methods"].items():
        runs = [r for r in records if r["kind"] == "run" and r["method"] == method and r["phase"] == "final"]
        entry["losses"] = [mean_loss(runs, fifth) for fifth in range(5)]
        if method in MIXED:
            entry["off"] = ablations(settings, method, entry["learning_rate"])
    return found


def mean_loss(runs: list[ResultRecord], fifth: int) -> float:
    """Return the mean training loss in one fifth of the steps, over all runs."""
    return float(np.mean([np.array_split([loss for _, loss in r["losses"]], 5)[fifth].mean() for r in runs]))


def ablations(settings: Settings, method: str, rate: float) -> dict[str, dict[str, list[float]]]:
    """Return the scores by seed with the state, and with the static parts, switched off, by length."""
    experiment = open_experiment(settings, [method])
    task = experiment.task
    splits = [task.test(length, size=settings.test_size) for length in settings.lengths]
    scores: dict[str, dict[str, list[float]]] = {
        off: {str(length): [] for length in settings.lengths} for off in ("state", "static")
    }
    for seed in settings.seeds:
        run_folder = f"final--{parse_method(method).slug}--rate{rate:g}--seed{seed}"
        for off, by_length in scores.items():
            model = load_adapter(
                experiment.base_model(method), Path(settings.out) / "runs" / run_folder / ADAPTER
            )
            with torch.no_grad():
                switch_off(model, off)
            for split in splits:
                scored = evaluate(model, task, split, batch_size=settings.eval_batch_size)
                by_length[str(split.length)].append(scored.means[task.metric])
    return scores


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("comparisons/shapes"))
    parser.add_argument("names", nargs="*", default=[], help=", ".join(names()))
    options = parser.parse_args()
    if unknown := set(options.names) - set(names()):
        parser.error(f"there is no comparison {min(unknown)}; there are: {', '.join(names())}")
    run(options.folder, options.names or names())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
