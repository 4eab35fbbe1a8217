"""One adapter in one folder: trained by `hankelred-llm train`, scored by `hankelred-llm evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from .._util.results_folder import results_folder
from ..errors import ExperimentError
from .evaluate import evaluate
from .experiment import Experiment, open_experiment
from .methods import load_adapter
from .processes import this_process
from .records import ResultRecord, ResultsFile, RunRecord, read_records
from .settings import Settings, one_run
from .train import ADAPTER, train

RESULTS = "results.jsonl"


def train_into(settings: Settings, *, progress: Progress | None = None) -> RunRecord:
    """Train the only method of some settings at its only rate and seed, and return the record of the run.

    The adapter, and the results with its validation score, are written into ``settings.out``. A training that
    was stopped resumes; a finished one is not repeated.

    Raises
    ------
    HankelredError
        What is wrong with settings or data, or the folder is that of another training.
    """
    with results_folder(Path(settings.out), write=this_process().is_main_process):
        return _train_into(settings, progress)


def _train_into(settings: Settings, progress: Progress | None) -> RunRecord:
    (method,), (seed,) = settings.methods, settings.seeds
    (rate,) = settings.rates(method)
    experiment, results = _open(settings, {"method": method, "learning_rate": rate, "seed": seed})
    for known in results.runs():
        return known
    folder = Path(settings.out)
    if not this_process().is_main_process:
        progress = None
    with progress or nullcontext():
        run = train(experiment, method, learning_rate=rate, seed=seed, folder=folder, progress=progress)
    split = experiment.validation(settings.length)
    means = evaluate(run.model, experiment.task, split, batch_size=settings.eval_batch_size).means
    record = replace(run.record, validation=means)
    results.add(record)
    return record


def score_folder(
    folder: Path, split_name: str, lengths: Sequence[int], batch_size: int | None
) -> list[ResultRecord]:
    """Score the adapter of a folder, once for each split and length, and return the records with floors.

    Raises
    ------
    HankelredError
        The folder holds no finished training, or data or model are not there any more.
    """
    settings, run_identity = _settings_of(folder, batch_size)
    with results_folder(folder, write=this_process().is_main_process):
        return _score_folder(settings, run_identity, folder, split_name, lengths)


def _score_folder(
    settings: Settings, run_identity: ResultRecord, folder: Path, split_name: str, lengths: Sequence[int]
) -> list[ResultRecord]:
    experiment, results = _open(settings, run_identity)
    if not results.runs():
        raise ExperimentError(
            f"{folder} holds a training that is not finished; give the same train command again"
        )
    model: Any = None
    records = []
    for length in lengths or settings.lengths:
        record = results.find(kind="score", split=split_name, length=length)
        if record is None:
            if model is None:
                base = experiment.base_model(run_identity["method"])
                model = load_adapter(base, folder / ADAPTER).to(this_process().device)
            record = _score(experiment, model, split_name, length)
            results.append(record)
        records.append(record)
    return records


def _score(experiment: Experiment, model: Any, split_name: str, length: int) -> ResultRecord:
    task, settings = experiment.task, experiment.settings
    if split_name == "validation":
        split = experiment.validation(length)
    else:
        split = task.test(length, size=settings.test_size)
    scores = evaluate(model, task, split, batch_size=settings.eval_batch_size)
    return {
        "kind": "score",
        **split.describe(),
        "metric": task.metric,
        "means": scores.means,
        "floors": experiment.floors(split),
    }


def _open(settings: Settings, run_identity: ResultRecord) -> tuple[Experiment, ResultsFile]:
    experiment = open_experiment(settings, settings.methods, by_hand=True)
    process = this_process()
    path = Path(settings.out) / RESULTS
    results = ResultsFile(path, {**experiment.identity(), **run_identity}, write=process.is_main_process)
    process.wait_for_everyone()
    return experiment, results


def _settings_of(folder: Path, batch_size: int | None) -> tuple[Settings, ResultRecord]:
    """Return what an adapter was trained with."""
    path = folder / RESULTS
    if not path.is_file():
        raise ExperimentError(
            f"{folder} has no {RESULTS}; give the folder that hankelred-llm train wrote (--out)"
        )
    try:
        records = read_records(path)
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read ({error.strerror})") from None
    if not records:
        raise ExperimentError(
            f"{path} has no complete line: the training ended before its first; give the same train command "
            "again"
        )
    identity = records[0].get("identity")
    if not isinstance(identity, dict):
        raise ExperimentError(f"{path}, line 1: has no identity of an experiment; give another folder")
    if not {"method", "learning_rate", "seed"} <= identity.keys():
        raise ExperimentError(
            f"{folder} is that of a comparison, whose scores are in its table.md and summary.json"
        )
    known = {f.name for f in fields(Settings)}
    values: dict[str, Any] = {name: value for name, value in identity.items() if name in known}
    if batch_size is not None:
        values["eval_batch_size"] = batch_size
    run_identity = {name: identity[name] for name in ("method", "learning_rate", "seed")}
    settings = one_run(
        run_identity["method"], run_identity["learning_rate"], run_identity["seed"], out=str(folder), **values
    )
    return settings, run_identity
