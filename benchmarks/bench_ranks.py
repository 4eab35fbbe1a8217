"""Sixteen states a layer from the start, or sixty-four, reduced on the way equally or by one threshold.

    python benchmarks/bench_ranks.py FOLDER [TASK ...]   minutes; writes docs/results/ranks.json
    python docs/make_results.py                          writes the page

All see the same rows in as many steps; a step with 64 states costs more, and seconds are reported. The first
part of a training that is reduced has 150 of the 250 steps and a schedule of its own, the reduction is the
exact one, and the rest is trained with a fresh optimiser. Each way has its own learning rate, chosen on one
seed by validation; the test rows are read once, after all training. Finished runs in FOLDER are not repeated.

Prediction, before measuring: 64 modes hold more of what a task asks for than 16 drawn by chance, so large
first is ahead where the modes that are there at the start decide (lag copy, few states), and level where 16
are plenty (automaton). One threshold gives the states to the layer that uses them; with two layers that
matters little: within noise of equal ranks.

Seen: neither. Large first was worse on lag copy (.84 for .97, and .78 for .96 at four times the length) and
automaton, level on flip-flop: 100 steps do not bring back what the cut takes from states that all work. One
threshold gave three quarters of the states to the second layer, and was worse than equal orders on lag copy
(.64) and automaton: the spectra of two layers are in the units of their outputs, not of the loss.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_comparison import COMMON, DFA, RESULTS_OF_PAGE, shortened, write

from hankelred_llm import reduce
from hankelred_llm.experiments.compare import Settings
from hankelred_llm.experiments.evaluate import evaluate
from hankelred_llm.experiments.experiment import Experiment, open_experiment
from hankelred_llm.experiments.records import ResultRecord, ResultsFile
from hankelred_llm.experiments.statistics import paired_difference
from hankelred_llm.experiments.trainer import AdapterTrainer, arguments
from hankelred_llm.tasks import Collator

LARGE, STATES, LAYERS, FIRST = 64, 16, 2, 150
#: What `reduce` is given after the first part; nothing for a training that is not reduced.
WAYS: dict[str, dict[str, int]] = {
    f"{STATES} from the start": {},
    f"{LARGE}, then {STATES} in every layer": {"order": STATES},
    f"{LARGE}, then {STATES * LAYERS} by one threshold": {"budget": STATES * LAYERS},
}
TASKS: dict[str, dict[str, Any]] = {
    "prefix_dfa": DFA,
    "flip_flop": {},
    "lag_copy": {"lag": 8},
}
SEEDS, TUNING = [0, 1, 2, 3], 100


def experiment_of(task: str, states: int, folder: Path) -> Experiment:
    """Return the experiment in which an adapter has so many states a layer."""
    own = {"task": task, "task_options": TASKS[task], "methods": [f"hrm-attention r={states}"]}
    settings = Settings(**{**COMMON, **own, "out": str(folder / "scratch")})
    return open_experiment(settings, settings.methods, by_hand=True)


def rates_of(experiment: Experiment) -> list[float]:
    """Return the learning rates to choose from."""
    return experiment.settings.rates(experiment.settings.methods[0])


def train(experiment: Experiment, way: dict[str, int], rate: float, seed: int) -> tuple[Any, ResultRecord]:
    """Train in one piece or in two, and return the model and what there is to say of it."""
    settings, (method,), began = experiment.settings, experiment.settings.methods, time.perf_counter()
    model, rows = experiment.untrained_model(method, seed), experiment.train_rows(seed)
    first = FIRST if way else settings.steps
    fit(model, experiment, rows[: first * settings.batch_size], rate, seed)
    record: ResultRecord = {"orders": [STATES] * LAYERS}
    if way:
        report = reduce(model, **way, progress=False)
        record = {"orders": list(report.orders.values()), "bounds": list(report.bounds.values())}
        fit(model, experiment, rows[first * settings.batch_size :], rate, seed)
    return model, record | {"seconds": time.perf_counter() - began}


def fit(model: Any, experiment: Experiment, rows: Any, rate: float, seed: int) -> None:
    """Train on rows in their order, as `hankelred-llm train` does."""
    size = experiment.settings.batch_size
    options = {"rows": size, "learning_rate": rate, "seed": seed, "save_every": None}
    AdapterTrainer(
        model=model,
        args=arguments(Path(experiment.settings.out), steps=len(rows) // size, **options),
        train_dataset=rows,
        data_collator=Collator(experiment.task.pad_token_id),
    ).train()


def study(task: str, folder: Path) -> ResultRecord:
    """Compare the ways on a task."""
    experiments = {name: experiment_of(task, LARGE if way else STATES, folder) for name, way in WAYS.items()}
    one = next(iter(experiments.values()))
    metric, size = one.task.metric, one.settings.eval_batch_size
    results = ResultsFile(folder / f"{task}.jsonl", one.identity())
    for name, experiment in experiments.items():
        for rate in rates_of(experiment):
            key = {"kind": "tuning", "way": name, "rate": rate}
            if results.find(**key) is None:
                model, record = train(experiment, WAYS[name], rate, TUNING)
                split = experiment.validation(experiment.settings.length)
                found = evaluate(model, experiment.task, split, batch_size=size).means[metric]
                results.append({**key, **record, "validation": found})
                print(f"{task}, {name}, rate {rate:g}: {found:.3f} {record}", flush=True)
    chosen = {}
    for name, experiment in experiments.items():
        tried = [results.find(kind="tuning", way=name, rate=r) for r in rates_of(experiment)]
        chosen[name] = max((t for t in tried if t), key=lambda t: float(t["validation"]))
    models: dict[str, list[tuple[Any, ResultRecord]]] = {
        name: [train(experiment, WAYS[name], chosen[name]["rate"], seed) for seed in SEEDS]
        for name, experiment in experiments.items()
    }
    lengths = {}
    for length in one.settings.lengths:
        split = one.task.test(length, size=one.settings.test_size)
        scores = {
            n: [evaluate(m, one.task, split, batch_size=size) for m, _ in ms] for n, ms in models.items()
        }
        first, *others = scores
        values = {n: np.array([s.per_unit[metric] for s in found]) for n, found in scores.items()}
        one_score = scores[first][0]
        differences = []
        for method, reference in [*((n, first) for n in others), (others[1], others[0])]:
            d = paired_difference(values[method], values[reference], one_score.weights, one_score.documents)
            differences.append(
                {
                    "method": method,
                    "minus": reference,
                    "mean": d.mean,
                    "over_seeds": d.over_seeds,
                    "clear": bool(d.clear),
                }
            )
        means = {n: [s.means[metric] for s in found] for n, found in scores.items()}
        lengths[str(length)] = {"scores": means, "differences": differences}
    return {
        "task": task,
        "higher_is_better": True,
        "steps": one.settings.steps,
        "seeds": SEEDS,
        "reference": next(iter(WAYS)),
        "ways": {
            name: {
                "learning_rate": chosen[name]["rate"],
                "orders": [record["orders"] for _, record in found],
                "seconds": float(np.median([record["seconds"] for _, record in found])),
            }
            for name, found in models.items()
        },
        "lengths": lengths,
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"default: {', '.join(TASKS)}")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    known = RESULTS_OF_PAGE / "ranks.json"
    found = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    for task in options.tasks or TASKS:
        found[task] = shortened(study(task, options.folder))
        write("ranks.json", found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
