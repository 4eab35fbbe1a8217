"""Comparison of methods: equal budgets, a learning rate tuned per method, several seeds, one final test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from hankelred.errors import short_repr

from ..errors import ExperimentError
from ..tasks import Split, Task, TaskError
from .evaluate import evaluate
from .experiment import Experiment, open_experiment
from .folder import results_folder
from .methods import load_adapter, parse_method
from .peft_schema import peft_record
from .processes import this_process
from .records import ResultRecord, ResultsFile
from .settings import Settings, nearest, read_settings
from .statistics import Difference, paired_difference
from .train import ADAPTER, train

__all__ = ["Comparison", "Line", "Settings", "compare", "compare_one", "read_settings"]

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Line:
    """One method at one length.

    Attributes
    ----------
    method, ranks : str
    parameters : int
    learning_rate : float
        The chosen one.
    at_edge : bool
        Whether it is the first or last of several that were tried: a wider grid may have a better one.
    scores : tuple of float
        The task's metric, a value for each seed.
    mean, spread : float
        Of the scores; the spread is their standard deviation, nan for one seed.
    difference : Difference or None
        From the reference; None for the reference itself.
    seconds : float
        A step, the median over steps and seeds.
    memory : int or None
        Bytes at most while training.
    """

    method: str
    ranks: str
    parameters: int
    learning_rate: float
    at_edge: bool
    scores: tuple[float, ...]
    difference: Difference | None
    seconds: float
    memory: int | None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else float("nan")


@dataclass(frozen=True)
class Comparison:
    """The finished comparison.

    Attributes
    ----------
    settings : Settings
    metric : str
        Metric of the task.
    higher_is_better : bool
    reference : str
        Method that the others are compared with.
    lines : dict of int to tuple of Line
        By length.
    splits : dict of int to dict
        The split at each length: sizes, contexts, truncation, evidence, and the trivial baselines.
    folder : Path
        Where everything was written.
    """

    settings: Settings
    metric: str
    higher_is_better: bool
    reference: str
    lines: dict[int, tuple[Line, ...]]
    splits: dict[int, ResultRecord]
    folder: Path = field(default=Path())

    def line(self, method: str, length: int) -> Line:
        """Return the line of a method at a length."""
        return next(line for line in self.lines[length] if line.method == method)


def compare(
    settings: Settings, *, merge: Sequence[Path] = (), progress: Progress | None = None
) -> Comparison:
    """Run a comparison, or resume it, and write table, plot and JSON files.

    Everything is checked before anything is trained. Each method is trained at every rate of its grid on
    `tuning_seeds`; the rate with the best validation score, at the training length or averaged over
    `tuning_lengths`, is taken for `seeds`.
    At the end the test split is read once for each length, and all adapters are scored on the same rows.

    Parameters
    ----------
    settings : Settings
    merge : sequence of Path
        Folders with runs of the same configuration, made by :func:`compare_one` or by a comparison that has
        not read the test split. Their runs are taken over and not repeated.
    progress : rich.progress.Progress, optional
        Where bars of runs and steps are drawn; none are without it.

    Returns
    -------
    Comparison

    Raises
    ------
    HankelredError
        The settings, the data or the results file are wrong, or all rates of a method diverged.

    Examples
    --------
    >>> import tempfile
    >>> from hankelred_llm.experiments.compare import Settings, compare
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = compare(Settings(
    ...         task="flip_flop", model="small-random", methods=["hrm", "lora-qv"], learning_rates=[1e-2],
    ...         length=8, steps=2, batch_size=2, seeds=[0, 1], test_size=8, out=folder))
    >>> [line.method for line in found.lines[32]]
    ['hrm', 'lora-qv']
    """
    with results_folder(Path(settings.out), write=this_process().is_main_process):
        study = _Study(settings, progress)
        study.take_over(merge)
        return study.run()


def compare_one(
    settings: Settings,
    only: str,
    *,
    merge: Sequence[Path] = (),
    progress: Progress | None = None,
) -> ResultRecord:
    """Train one method at one rate from one seed, as a part of a comparison that others make the rest of.

    Parameters
    ----------
    settings : Settings
        Those of the whole comparison, with a folder of its own (``out``) where several processes run at once.
    only : str
        METHOD,RATE,SEED, as "hrm-attention,0.01,100". The rate is one of the method's grid; or "best", which
        has the best validation score, once all runs that choose it are there. A seed of `tuning_seeds` makes
        a run that chooses the rate, one of `seeds` a run that is reported.
    merge, progress
        As in :func:`compare`.

    Returns
    -------
    dict
        The record of the run, with its validation score.

    Raises
    ------
    HankelredError
        As in :func:`compare`, or no such run belongs to the comparison.
    """
    with results_folder(Path(settings.out), write=this_process().is_main_process):
        study = _Study(settings, progress)
        study.take_over(merge)
        return study.run_one(only)


class _Study:
    """The steps of a comparison: tuning, training, scoring, report."""

    def __init__(self, settings: Settings, progress: Progress | None) -> None:
        self.settings = settings
        if settings.reference is not None and settings.reference not in settings.methods:
            raise ExperimentError(
                f"reference {settings.reference!r} is not among methods"
                f"{nearest(settings.reference, settings.methods)}"
            )
        self.process = this_process()
        self.experiment: Experiment = open_experiment(settings, settings.methods)
        self.folder = Path(settings.out)
        main = self.process.is_main_process
        self.results = ResultsFile(self.folder / RESULTS, self.experiment.identity(), write=main)
        # all processes read the file before the first record is added
        self.process.wait_for_everyone()
        self.names = list(self.experiment.methods)
        self.split_name = "validation" if settings.validation_only else "test"
        self._refuse_training_after_test()
        self.bars = progress if main else None

    def run(self) -> Comparison:
        with self.bars or nullcontext(), self._all() as done:
            for name in self.names:
                for rate, seed in self._tuning(name):
                    self._trained("tuning", name, rate, seed)
                    done()
            for name in self.names:
                rate = self.chosen(name)
                for seed in self.settings.seeds:
                    self._trained("final", name, rate, seed)
                    done()
            self._score_all()
        comparison = self._comparison()
        if self.process.is_main_process:
            self._write(comparison)
        self.process.wait_for_everyone()
        return comparison

    def take_over(self, folders: Sequence[Path]) -> None:
        """Add the runs of other folders to this one, with the adapters that are to be scored."""
        for folder in folders:
            path = folder / RESULTS
            if not path.is_file():
                raise ExperimentError(f"{folder} has no {RESULTS}; merge folders that compare has written")
            others = ResultsFile(path, self.experiment.identity(), write=False)
            for results in (self.results, others):
                if results.all(kind="split", split="test"):
                    raise ExperimentError(
                        f"{results.path}: the test split has been read, and no runs can be merged after it; "
                        "merge all folders into a new one (out) first"
                    )
            for run in others.all(kind="run"):
                phase, name, rate, seed = (run[k] for k in ("phase", "method", "learning_rate", "seed"))
                if self._run(phase, name, rate, seed) is not None or not self.process.is_main_process:
                    continue
                place = _run_folder(Path(), phase, name, rate, seed)
                if phase == "final":
                    shutil.copytree(folder / place, self.folder / place, dirs_exist_ok=True)
                self.results.append(run)
        self.process.wait_for_everyone()

    def run_one(self, only: str) -> ResultRecord:
        """Train and validate one run of the comparison."""
        name, rate, seed = self._parsed(only)
        phase = "tuning" if seed in self.settings.tuning_seeds else "final"
        with self.bars or nullcontext():
            self._trained(phase, name, rate, seed)
        return self._run(phase, name, rate, seed) or {}

    def _parsed(self, only: str) -> tuple[str, float, int]:
        # a method may have commas among its options
        name, *rest = only.rsplit(",", 2)
        if len(rest) < 2:
            raise ExperimentError(f"only is {short_repr(only)}; give METHOD,RATE,SEED, as in hrm,0.01,100")
        name = " ".join(name.split())
        if name not in self.names:
            raise ExperimentError(f"{short_repr(name)} is not among methods{nearest(name, self.names)}")
        try:
            seed = int(rest[1])
            rate = None if rest[0].strip() == "best" else float(rest[0])
        except ValueError:
            raise ExperimentError(
                f"only is {short_repr(only)}; give METHOD,RATE,SEED with a number or 'best' as rate"
            ) from None
        settings = self.settings
        if seed not in (*settings.tuning_seeds, *settings.seeds):
            raise ExperimentError(
                f"seed {seed} is neither among tuning_seeds {settings.tuning_seeds} nor among seeds "
                f"{settings.seeds}; take one of them"
            )
        if rate is not None and rate not in settings.rates(name):
            raise ExperimentError(
                f"rate {rate:g} is not in the grid of method {name!r}, {settings.rates(name)}; nothing would "
                "choose it"
            )
        if rate is None:
            missing = [
                f"{r:g} from seed {s}"
                for r, s in self._tuning(name)
                if self._run("tuning", name, r, s) is None
            ]
            if missing:
                raise ExperimentError(
                    f"method {name!r} has no best rate yet; still to be run: {', '.join(missing)}"
                )
            rate = self.chosen(name)
        return name, rate, seed

    def _tuning(self, name: str) -> list[tuple[float, int]]:
        rates = self.settings.rates(name)
        return [] if len(rates) == 1 else [(r, s) for r in rates for s in self.settings.tuning_seeds]

    @contextmanager
    def _all(self) -> Iterator[Any]:
        bars = self.bars
        if bars is None:
            yield lambda: None
            return
        runs = sum(len(self._tuning(name)) + len(self.settings.seeds) for name in self.names)
        bar = bars.add_task("all runs", total=runs)
        yield lambda: bars.advance(bar)

    def _refuse_training_after_test(self) -> None:
        if self.settings.validation_only or not self.results.all(kind="split", split="test"):
            return
        for name in self.names:
            for rate, seed in self._tuning(name):
                if self._run("tuning", name, rate, seed) is None:
                    self._refuse(name)
            for seed in self.settings.seeds:
                if self._run("final", name, self.chosen(name), seed) is None:
                    self._refuse(name)

    def _refuse(self, name: str) -> None:
        raise ExperimentError(
            f"{self.results.path}: the test split has been read, and method {name!r} would be trained after "
            "it; compare it in another folder (out), with the methods it is to be compared with"
        )

    def _run(self, phase: str, name: str, rate: float, seed: int) -> ResultRecord | None:
        return self.results.find(kind="run", phase=phase, method=name, learning_rate=rate, seed=seed)

    def _trained(self, phase: str, name: str, rate: float, seed: int) -> None:
        """Train, unless the run is recorded already, and record the validation score."""
        if self._run(phase, name, rate, seed) is not None:
            return
        folder = _run_folder(self.folder, phase, name, rate, seed)
        run = train(self.experiment, name, learning_rate=rate, seed=seed, folder=folder, progress=self.bars)
        validation = self._validated(run.model)
        status = run.record["status"] if validation is not None else "failed"
        self.results.append(
            {"kind": "run", "phase": phase, **run.record, "validation": validation, "status": status}
        )
        if self.process.is_main_process:
            # recorded: the checkpoints of a run, and the adapters of tuning, are not needed any more
            for path in [folder] if phase == "tuning" else folder.glob("checkpoint-*"):
                shutil.rmtree(path)

    def _validated(self, model: Any) -> dict[str, float] | None:
        """Return the mean scores over the validation lengths; None where the model diverged."""
        task, means = self.experiment.task, []
        for length in self.settings.validated:
            split = self.experiment.validation(length)
            try:
                scores = evaluate(model, task, split, batch_size=self.settings.eval_batch_size)
            except TaskError:  # it is not finite
                return None
            means.append(scores.means)
        return {metric: float(np.mean([of_length[metric] for of_length in means])) for metric in means[0]}

    def chosen(self, name: str) -> float:
        """Return the learning rate with the best validation score."""
        rates = self.settings.rates(name)
        if len(rates) == 1:
            return rates[0]
        scores = {rate: self._tuning_score(name, rate) for rate in rates}
        finite = {rate: score for rate, score in scores.items() if score is not None}
        if not finite:
            raise ExperimentError(
                f"method {name!r} diverged at every learning rate of {rates}; give smaller ones"
            )
        return max(finite, key=lambda rate: finite[rate])

    def _tuning_score(self, name: str, rate: float) -> float | None:
        """Return the mean validation score of a rate, larger being better; None where a run diverged."""
        task = self.experiment.task
        means = [
            (self._run("tuning", name, rate, seed) or {}).get("validation")
            for seed in self.settings.tuning_seeds
        ]
        scores = [m[task.metric] for m in means if m is not None]
        if len(scores) < len(means):
            return None
        return float(np.mean(scores)) * (1 if task.higher_is_better else -1)

    def _score_all(self) -> None:
        """Score every adapter on the split that is reported, which is made once."""
        task, settings = self.experiment.task, self.settings
        for length in settings.lengths:
            missing = [
                (name, seed)
                for name in self.names
                for seed in settings.seeds
                if self._score(name, seed, length) is None
            ]
            known = self.results.find(kind="split", split=self.split_name, length=length)
            if not missing and known:
                continue
            split = self._split(length)
            for name, seed in missing:
                self._score_one(task, split, name, seed)

    def _split(self, length: int) -> Split:
        task = self.experiment.task
        if self.settings.validation_only:
            split = self.experiment.validation(length)
        else:
            split = task.test(length, size=self.settings.test_size)
        if self.results.find(kind="split", split=self.split_name, length=length) is None:
            self.results.append(
                {
                    "kind": "split",
                    **split.describe(),
                    "floors": self.experiment.floors(split),
                    "test_reads": list(task.test_reads),
                }
            )
        return split

    def _score(self, name: str, seed: int, length: int) -> ResultRecord | None:
        return self.results.find(
            kind="score",
            split=self.split_name,
            length=length,
            method=name,
            seed=seed,
            learning_rate=self.chosen(name),
        )

    def _score_one(self, task: Task, split: Split, name: str, seed: int) -> None:
        rate = self.chosen(name)
        folder = _run_folder(self.folder, "final", name, rate, seed) / ADAPTER
        model = load_adapter(self.experiment.base_model(name), folder).to(self.process.device)
        scores = evaluate(model, task, split, batch_size=self.settings.eval_batch_size)
        self.results.append(
            {
                "kind": "score",
                "split": self.split_name,
                "length": split.length,
                "method": name,
                "seed": seed,
                "learning_rate": rate,
                "means": scores.means,
                "per_unit": {metric: values.tolist() for metric, values in scores.per_unit.items()},
                "weights": scores.weights.tolist(),
                "units": list(scores.units),
                "documents": list(scores.documents),
            }
        )

    def _comparison(self) -> Comparison:
        task, settings = self.experiment.task, self.settings
        reference = settings.reference or self._best_without_hrm()
        lines, splits = {}, {}
        for length in settings.lengths:
            lines[length] = tuple(self._line(name, length, reference) for name in self.names)
            record = self.results.find(kind="split", split=self.split_name, length=length)
            splits[length] = {key: value for key, value in (record or {}).items() if key != "kind"}
        return Comparison(settings, task.metric, task.higher_is_better, reference, lines, splits, self.folder)

    def _best_without_hrm(self) -> str:
        """Return the reference: the method without a state with the best validation score."""
        task = self.experiment.task
        candidates = [n for n in self.names if not parse_method(n).stateful] or self.names[:1]
        sign = 1 if task.higher_is_better else -1

        def score(name: str) -> float:
            runs = [self._run("final", name, self.chosen(name), seed) or {} for seed in self.settings.seeds]
            means = [r["validation"][task.metric] if r.get("validation") else -sign * np.inf for r in runs]
            return float(np.mean(means)) * sign

        return max(candidates, key=score)

    def _line(self, name: str, length: int, reference: str) -> Line:
        metric, rate = self.experiment.task.metric, self.chosen(name)
        runs = [self._run("final", name, rate, seed) or {} for seed in self.settings.seeds]
        ours = [self._score(name, seed, length) or {} for seed in self.settings.seeds]
        difference = None
        if name != reference:
            theirs = [self._score(reference, seed, length) or {} for seed in self.settings.seeds]
            difference = paired_difference(
                np.array([s["per_unit"][metric] for s in ours]),
                np.array([s["per_unit"][metric] for s in theirs]),
                np.array(ours[0]["weights"]),
                ours[0]["documents"],
            )
        memory = [r["memory"] for r in runs if r["memory"] is not None]
        rates = self.settings.rates(name)
        return Line(
            method=name,
            ranks=runs[0]["ranks"],
            parameters=runs[0]["parameters"],
            learning_rate=rate,
            at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
            scores=tuple(s["means"][metric] for s in ours),
            difference=difference,
            seconds=float(np.median(np.concatenate([r["seconds_steps"] for r in runs]))),
            memory=max(memory) if memory else None,
        )

    def _write(self, comparison: Comparison) -> None:
        from .report import write_reports

        write_reports(comparison)
        folder = self.folder / "peft"
        folder.mkdir(exist_ok=True)
        for name in self.names:
            for seed in self.settings.seeds:
                run = self._run("final", name, self.chosen(name), seed) or {}
                scores = [self._score(name, seed, length) or {} for length in self.settings.lengths]
                slug = self.experiment.methods[name].method.slug
                peft_record(self.experiment, run, scores, folder / f"{slug}--seed{seed}.json")


def _run_folder(folder: Path, phase: str, name: str, rate: float, seed: int) -> Path:
    return folder / "runs" / f"{phase}--{parse_method(name).slug}--rate{rate:g}--seed{seed}"
