"""A learning rate found by short trainings: `hankelred-llm train --find-rate`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.progress import Progress

from .._util.results_folder import results_folder
from ..errors import ExperimentError
from .experiment import open_experiment
from .processes import this_process
from .records import ResultsFile, RunRecord
from .settings import Settings
from .single_run import RESULTS
from .train import train

__all__ = ["Trial", "find_rate"]

#: The folder of the search within that of the training.
SEARCH = "rate"

#: A trial has this share of the steps of the training, and at least so many.
SHARE, LEAST_STEPS = 0.25, 20

#: Neighboring rates are apart by this factor, half a decade.
FACTOR = 10**0.5

#: Rates beyond these are not tried.
LOWEST, HIGHEST = 1e-7, 1.0


@dataclass(frozen=True)
class Trial:
    """A short training at one rate.

    Attributes
    ----------
    rate : float
    loss : float
        Mean training loss over the last third of its steps; infinite where it diverged. The rows are the same
        for all rates.
    """

    rate: float
    loss: float


def find_rate(settings: Settings, *, progress: Progress | None = None) -> list[Trial]:
    """Try learning rates by short trainings, and return them by their loss, the best first.

    The search begins at the rate of the settings, and goes up or down by half a decade while the loss falls.
    So the neighbors of the best rate have been tried, within 1e-7 and 1. Each trial has a quarter of the
    steps, with a warm-up and a decay of its own, from the seed after that of the training: other rows for
    generated tasks, another order for documents. Rows of validation and test are not read. Trials are
    recorded in the folder ``rate`` of ``settings.out`` and not repeated.

    A short training often prefers a somewhat larger rate than a long one. Where that matters, compare full
    trainings on validation rows: `hankelred-llm compare`.

    Parameters
    ----------
    settings : Settings
        Of a single run.
    progress : rich.progress.Progress, optional
        Where bars of the steps are drawn.

    Returns
    -------
    list of Trial
        At least two.

    Raises
    ------
    HankelredError
        What is wrong with settings or data; the rate is beyond those that are tried; every rate diverged; or
        the folder is that of another training.

    Examples
    --------
    >>> import tempfile
    >>> from hankelred_llm.experiments.find_rate import find_rate
    >>> from hankelred_llm.experiments.settings import one_run
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trials = find_rate(one_run("lora-qv", 1e-2, 0, task="flip_flop", model="small-random", length=8,
    ...                                steps=8, batch_size=2, test_size=4, out=folder))
    >>> all(trials[0].loss <= trial.loss for trial in trials)
    True
    """
    folder, write = Path(settings.out) / SEARCH, this_process().is_main_process
    if (Path(settings.out) / RESULTS).exists() and not (folder / RESULTS).exists():
        raise ExperimentError(
            f"{settings.out} holds a training whose rate was given, not searched for; take another folder "
            "(out)"
        )
    with results_folder(folder, write=write):
        return _find_rate(settings, folder, progress if write else None)


def _find_rate(settings: Settings, folder: Path, progress: Progress | None) -> list[Trial]:
    (method,), (seed,) = settings.methods, settings.tuning_seeds
    (start,) = settings.rates(method)
    if not LOWEST <= start <= HIGHEST:
        raise ExperimentError(
            f"the search of a learning rate begins at learning_rate {start:g}, and tries rates from "
            f"{LOWEST:g} to {HIGHEST:g}: give one of these"
        )
    steps = min(settings.steps, max(LEAST_STEPS, round(SHARE * settings.steps)))
    experiment = open_experiment(replace(settings, steps=steps), [method], by_hand=True)
    results = ResultsFile(
        folder / RESULTS,
        {**experiment.identity(), "method": method, "seed": seed},
        write=this_process().is_main_process,
    )
    records = {record.learning_rate: record for record in results.runs()}

    def loss_at(rate: float) -> float:
        if rate not in records:
            place = folder / f"{rate:g}"
            run = train(experiment, method, learning_rate=rate, seed=seed, folder=place, progress=progress)
            results.add(run.record)
            records[rate] = run.record
            if this_process().is_main_process:
                shutil.rmtree(place)  # the adapter of a trial serves nothing else
        return _loss(records[rate])

    with progress or nullcontext():
        trials = search(start, loss_at)
    if not math.isfinite(trials[0].loss):
        tried = ", ".join(f"{trial.rate:g}" for trial in trials)
        raise ExperimentError(
            f"{method} diverged, or had no loss, at every rate that was tried ({tried}); check the data, or "
            "take a lower learning_rate to begin at"
        )
    return trials


def search(start: float, loss_at: Callable[[float], float]) -> list[Trial]:
    """Walk downhill from a rate in steps of a factor, and return all trials, the best first.

    From a rate at which training diverges the walk goes down until it does not.
    """
    losses: dict[int, float] = {}

    def loss(k: int) -> float:
        rate = rate_at(start, k)
        if not LOWEST <= rate <= HIGHEST:
            return math.inf
        if k not in losses:
            losses[k] = loss_at(rate)
        return losses[k]

    best = 0
    while not math.isfinite(loss(best)) and rate_at(start, best - 1) >= LOWEST:
        best -= 1
    while loss(neighbor := min((best - 1, best + 1), key=loss)) < loss(best):
        best = neighbor
    return sorted((Trial(rate_at(start, k), value) for k, value in losses.items()), key=lambda t: t.loss)


def rate_at(start: float, k: int) -> float:
    """Return the k-th rate above the start, in two digits."""
    return float(f"{start * FACTOR**k:.2g}") if k else start


def _loss(record: RunRecord) -> float:
    """Return the mean loss of the last third of a run."""
    losses = np.array([loss for _, loss in record.losses])
    mean = float(losses[-math.ceil(len(losses) / 3) :].mean())
    return mean if math.isfinite(mean) else math.inf
