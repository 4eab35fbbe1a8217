"""Comparison of methods: equal budgets, a learning rate tuned per method, several seeds, one final test."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from hankelred.errors import short_repr

from .._util.parsing import nearest
from .._util.results_folder import results_folder
from ..errors import ExperimentError
from ..tasks import Split, TaskError
from .evaluate import evaluate
from .experiment import Experiment, open_experiment
from .methods import load_adapter, parse_method
from .peft_schema import peft_record
from .processes import this_process
from .records import ResultRecord, ResultsFile, RunKey, RunRecord, ScoreRecord
from .settings import Settings, read_settings
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
    file_size : int
        Bytes of the adapter.
    forgetting : float or None
        What training added to the loss on a text, in nats a token, the mean over seeds.
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
    file_size: int
    forgetting: float | None

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
    ...     comparison = compare(Settings(
    ...         task="flip_flop", model="small-random", methods=["hrm", "lora-qv"], learning_rates=[1e-2],
    ...         length=8, steps=2, batch_size=2, seeds=[0, 1], test_size=8, out=folder))
    >>> [line.method for line in comparison.lines[32]]
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
) -> RunRecord:
    """Train one run of a comparison whose other runs are made by other processes.

    Parameters
    ----------
    settings : Settings
        Those of the whole comparison, with a folder of its own (``out``) where several processes run at once.
    only : str
        METHOD,RATE,SEED, as "hrm-attention,0.01,100". The rate is one of the method's grid; or "best", which
        has the best validation score, once all runs that choose it are there. A seed of `tuning_seeds` makes
        a run that chooses the rate, one of `seeds` a run that is reported: of a grid of rates only the best
        is reported.
    merge, progress
        As in :func:`compare`.

    Returns
    -------
    RunRecord
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
        self.split_name = "validation" if settings.validation_only else "test"
        self.runs = {(run.phase, run.key): run for run in self.results.runs()}
        self.scores = {(score.length, score.key): score for score in self.results.scores(self.split_name)}
        self.splits = {
            record["length"]: {name: value for name, value in record.items() if name != "kind"}
            for record in self.results.all(kind="split", split=self.split_name)
        }
        self._refuse_training_after_test()
        self.bars = progress if main else None

    @cached_property
    def tuning(self) -> list[RunKey]:
        """The runs that choose a learning rate, where there is a choice."""
        return [
            RunKey(name, rate, seed)
            for name in self.experiment.methods
            if len(rates := self.settings.rates(name)) > 1
            for rate in rates
            for seed in self.settings.tuning_seeds
        ]

    @cached_property
    def final(self) -> dict[str, list[RunKey]]:
        """The runs that are reported, by method: at the chosen rate, so that those of tuning come first."""
        chosen = {name: self._chosen_rate(name) for name in self.experiment.methods}
        return {name: [RunKey(name, rate, s) for s in self.settings.seeds] for name, rate in chosen.items()}

    def run(self) -> Comparison:
        with self.bars or nullcontext(), self._all_runs() as done:
            for key in self.tuning:
                self._train("tuning", key)
                done()
            for key in chain.from_iterable(self.final.values()):
                self._train("final", key)
                done()
            self._score_all()
        comparison = self._comparison()
        if self.process.is_main_process:
            self._write(comparison)
        self.process.wait_for_everyone()
        return comparison

    def take_over(self, folders: Sequence[Path]) -> None:
        """Add the runs of other folders to this one, with the adapters that are to be scored.

        Runs that are here already change nothing, so that the same command resumes after the test, too.
        """
        for folder in folders:
            path = folder / RESULTS
            if not path.is_file():
                raise ExperimentError(f"{folder} has no {RESULTS}; merge folders that compare has written")
            others = ResultsFile(path, self.experiment.identity(), write=False)
            _refuse_after_test(others)
            for run in others.runs():
                phase = str(run.phase)
                if (phase, run.key) in self.runs:
                    continue
                _refuse_after_test(self.results)
                if phase == "final" and self.process.is_main_process:
                    place = _run_folder(phase, run.key)
                    shutil.copytree(folder / place, self.folder / place, dirs_exist_ok=True)
                self.results.add(run)
                self.runs[phase, run.key] = run
        self.process.wait_for_everyone()

    def run_one(self, only: str) -> RunRecord:
        """Train and validate one run of the comparison."""
        key = self._parsed(only)
        phase = "tuning" if key.seed in self.settings.tuning_seeds else "final"
        if phase == "tuning" and key not in self.tuning:
            raise ExperimentError(
                f"method {key.method!r} has one learning rate, so no run chooses it; take one of seeds "
                f"{self.settings.seeds}"
            )
        with self.bars or nullcontext():
            self._train(phase, key)
        return self.runs[phase, key]

    def _parsed(self, only: str) -> RunKey:
        # a method may have commas among its options
        name, *rest = only.rsplit(",", 2)
        if len(rest) < 2:
            raise ExperimentError(f"only is {short_repr(only)}; give METHOD,RATE,SEED, as in hrm,0.01,100")
        name = " ".join(name.split())
        if name not in self.experiment.methods:
            raise ExperimentError(
                f"{short_repr(name)} is not among methods{nearest(name, self.experiment.methods)}"
            )
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
                f"{key.learning_rate:g} from seed {key.seed}"
                for key in self._missing_tuning()
                if key.method == name
            ]
            if missing:
                raise ExperimentError(
                    f"method {name!r} has no best rate yet; still to be run: {', '.join(missing)}"
                )
            rate = self._chosen_rate(name)
        return RunKey(name, rate, seed)

    def _missing_tuning(self) -> list[RunKey]:
        return [key for key in self.tuning if ("tuning", key) not in self.runs]

    @contextmanager
    def _all_runs(self) -> Iterator[Callable[[], None]]:
        bars = self.bars
        if bars is None:
            yield lambda: None
            return
        runs = len(self.tuning) + len(self.experiment.methods) * len(self.settings.seeds)
        bar = bars.add_task("all runs", total=runs)
        yield lambda: bars.advance(bar)

    def _refuse_training_after_test(self) -> None:
        if self.settings.validation_only or not self.splits:
            return
        missing = self._missing_tuning()
        if not missing:
            keys = chain.from_iterable(self.final.values())
            missing = [key for key in keys if ("final", key) not in self.runs]
        if missing:
            raise ExperimentError(
                f"{self.results.path}: the test split has been read, and method {missing[0].method!r} would "
                "be trained after it; compare it in another folder (out), with the methods it is to be "
                "compared with"
            )

    def _train(self, phase: str, key: RunKey) -> None:
        """Train, unless the run is recorded already, and record the validation score."""
        if (phase, key) in self.runs:
            return
        folder = self.folder / _run_folder(phase, key)
        run = train(
            self.experiment,
            key.method,
            learning_rate=key.learning_rate,
            seed=key.seed,
            folder=folder,
            progress=self.bars,
        )
        validation = self._validated(run.model)
        status = run.record.status if validation is not None else "failed"
        forgetting = None
        if phase == "final" and status == "success":
            forgetting = self.experiment.forgetting(key.method, run.model)
        record = replace(run.record, phase=phase, validation=validation, status=status, forgetting=forgetting)
        self.results.add(record)
        self.runs[phase, key] = record
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

    def _validation_score(self, phase: str, keys: list[RunKey]) -> float:
        """Return the mean validation score of runs, larger being better; -inf where one diverged."""
        task = self.experiment.task
        sign = 1 if task.higher_is_better else -1
        means = [self.runs[phase, key].validation for key in keys]
        return float(np.mean([-math.inf if m is None else sign * m[task.metric] for m in means]))

    def _chosen_rate(self, name: str) -> float:
        """Return the learning rate with the best validation score."""
        rates = self.settings.rates(name)
        if len(rates) == 1:
            return rates[0]
        scores = {
            rate: self._validation_score(
                "tuning", [RunKey(name, rate, seed) for seed in self.settings.tuning_seeds]
            )
            for rate in rates
        }
        best = max(rates, key=lambda rate: scores[rate])
        if scores[best] == -math.inf:
            raise ExperimentError(
                f"method {name!r} diverged at every learning rate of {rates}; give smaller ones"
            )
        return best

    def _score_all(self) -> None:
        """Score every adapter on the split that is reported, which is made once."""
        for length in self.settings.lengths:
            keys = chain.from_iterable(self.final.values())
            missing = [key for key in keys if (length, key) not in self.scores]
            if missing or length not in self.splits:
                split = self._split(length)
                for key in missing:
                    self._score(split, key)

    def _split(self, length: int) -> Split:
        task = self.experiment.task
        if self.settings.validation_only:
            split = self.experiment.validation(length)
        else:
            split = task.test(length, size=self.settings.test_size)
        if length not in self.splits:
            floors, reads = self.experiment.floors(split), list(task.test_reads)
            self.splits[length] = {**split.describe(), "floors": floors, "test_reads": reads}
            self.results.append({"kind": "split", **self.splits[length]})
        return split

    def _score(self, split: Split, key: RunKey) -> None:
        folder = self.folder / _run_folder("final", key) / ADAPTER
        model = load_adapter(self.experiment.base_model(key.method), folder).to(self.process.device)
        scores = evaluate(model, self.experiment.task, split, batch_size=self.settings.eval_batch_size)
        record = ScoreRecord(
            *key,
            split=self.split_name,
            length=split.length,
            means=scores.means,
            per_unit={metric: values.tolist() for metric, values in scores.per_unit.items()},
            weights=scores.weights.tolist(),
            documents=list(scores.documents),
            units=list(scores.units),
        )
        self.results.add(record)
        self.scores[split.length, key] = record

    def _comparison(self) -> Comparison:
        task, settings = self.experiment.task, self.settings
        reference = settings.reference or self._best_without_hrm()
        lines = {
            length: tuple(self._line(name, length, reference) for name in self.final)
            for length in settings.lengths
        }
        splits = {length: self.splits[length] for length in settings.lengths}
        return Comparison(settings, task.metric, task.higher_is_better, reference, lines, splits, self.folder)

    def _best_without_hrm(self) -> str:
        """Return the reference: the method without a state with the best validation score."""
        methods = self.experiment.methods
        candidates = [name for name in methods if not methods[name].stateful] or list(methods)[:1]
        return max(candidates, key=lambda name: self._validation_score("final", self.final[name]))

    def _line(self, name: str, length: int, reference: str) -> Line:
        metric, rates = self.experiment.task.metric, self.settings.rates(name)
        runs = [self.runs["final", key] for key in self.final[name]]
        scores = [self.scores[length, key] for key in self.final[name]]
        difference = None
        if name != reference:
            reference_scores = [self.scores[length, key] for key in self.final[reference]]
            difference = paired_difference(
                np.array([score.per_unit[metric] for score in scores]),
                np.array([score.per_unit[metric] for score in reference_scores]),
                np.array(scores[0].weights),
                scores[0].documents,
            )
        rate = runs[0].learning_rate
        forgotten = [run.forgetting for run in runs if run.forgetting is not None]
        return Line(
            method=name,
            ranks=runs[0].ranks,
            parameters=runs[0].parameters,
            learning_rate=rate,
            at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
            scores=tuple(score.means[metric] for score in scores),
            difference=difference,
            seconds=float(np.median(np.concatenate([run.seconds_steps for run in runs]))),
            memory=max((run.memory for run in runs if run.memory is not None), default=None),
            file_size=max(run.file_size for run in runs),
            forgetting=float(np.mean(forgotten)) if len(forgotten) == len(runs) else None,
        )

    def _write(self, comparison: Comparison) -> None:
        from .report import write_reports

        write_reports(comparison)
        folder = self.folder / "peft"
        folder.mkdir(exist_ok=True)
        for name, keys in self.final.items():
            slug = self.experiment.methods[name].slug
            for key in keys:
                scores = [self.scores[length, key] for length in self.settings.lengths]
                path = folder / f"{slug}--seed{key.seed}.json"
                peft_record(self.experiment, self.runs["final", key], scores, path)


def _refuse_after_test(results: ResultsFile) -> None:
    """Refuse to merge the runs of a comparison, or others into it, that has read the test split."""
    if results.all(kind="split", split="test"):
        raise ExperimentError(
            f"{results.path}: the test split has been read, and no runs can be merged after it; "
            "merge all folders into a new one (out) first"
        )


def _run_folder(phase: str, key: RunKey) -> Path:
    """Return the folder of a run within that of its comparison."""
    slug = parse_method(key.method).slug
    return Path("runs") / f"{phase}--{slug}--rate{key.learning_rate:g}--seed{key.seed}"
