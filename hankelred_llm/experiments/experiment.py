"""An experiment, checked as a whole before anything is trained: task, base model, ranks, lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import set_seed

from hankelred.errors import in_one_line

from ..errors import ExperimentError
from ..tasks import ByteTokenizer, Split, Task, get_task
from ..tasks.text_task import TextTask
from .base_models import BaseModel, find_model
from .budget import check_equal, fit, fixed, parameters_of
from .evaluate import TEXT_LENGTH, FloatArray, evaluate, text_losses
from .methods import Method, add_adapters, check_available, parse_method
from .processes import this_process
from .settings import Settings


@dataclass
class Experiment:
    """The configuration that all runs of an experiment share.

    Attributes
    ----------
    settings : Settings
    task : Task
    base : BaseModel
    budget : int or None
        Trainable parameters of every method; None where methods have an r of their own.
    methods : dict of str to Method
        By name, as in the settings; with their ranks.
    """

    settings: Settings
    task: Task
    base: BaseModel
    budget: int | None
    methods: dict[str, Method]
    _validation: dict[int, Split] = field(default_factory=dict)
    _base_losses: dict[bool, FloatArray] = field(default_factory=dict)

    def validation(self, length: int) -> Split:
        """Return the validation split of a length, always the same one."""
        if length not in self._validation:
            self._validation[length] = self.task.validation(length, size=self.settings.validation_size)
        return self._validation[length]

    def train_rows(self, seed: int) -> Split:
        """Return the rows of a run in their order, the same for every method."""
        rows = self.settings.steps * self.settings.batch_size
        return self.task.train(self.settings.length, size=rows, seed=seed)

    def untrained_model(self, name: str, seed: int) -> PeftModel:
        """Return the base model with the untrained adapters of a method."""
        base = self.base_model(name)
        set_seed(seed)
        parts = self.methods[name].parts
        return add_adapters(base, parts, gguf_file=self.base.gguf_file, revision=self.base.revision)

    def floors(self, split: Split) -> dict[str, dict[str, float]]:
        """Return the scores of trivial baselines; for a task of texts, also those of the base as it is."""
        floors = dict(self.task.baselines(split))
        if isinstance(self.task, TextTask):
            # in four bits where every method needs it: then the whole base may not fit
            quantized = all(method.quantized for method in self.methods.values())
            model = self.base.load(quantized=quantized).to(this_process().device)
            scores = evaluate(model, self.task, split, batch_size=self.settings.eval_batch_size)
            floors["base"] = scores.means
        return floors

    def base_model(self, name: str) -> nn.Module:
        """Return the base model that a method adapts, without adapters."""
        return self.base.load(quantized=self.methods[name].quantized)

    def forgetting(self, name: str, model: nn.Module) -> float | None:
        """Return what training added to the loss of a method's base on `forgetting_text`; None without."""
        if self.settings.forgetting_text is None:
            return None
        text, tokenizer = self._forgetting_text(), self.base.tokenizer or ByteTokenizer()
        length = min(TEXT_LENGTH, self.base.positions or TEXT_LENGTH)
        quantized = self.methods[name].quantized
        if quantized not in self._base_losses:
            base = self.base.load(quantized=quantized).to(this_process().device)
            self._base_losses[quantized] = text_losses(base, text, tokenizer, length=length)
        after = text_losses(model, text, tokenizer, length=length)
        return float(np.mean(after - self._base_losses[quantized]))

    def _forgetting_text(self) -> str:
        path = Path(self.settings.forgetting_text or "")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExperimentError(
                f"forgetting_text {in_one_line(path)} cannot be read as a text ({in_one_line(error)}); give "
                "a text file in UTF-8"
            ) from None

    def identity(self) -> dict[str, Any]:
        """Return the configuration that all runs in one results file share."""
        return {**self.settings.identity(), "model_version": self.base.version, "parameters": self.budget}


def open_experiment(settings: Settings, methods: Iterable[str], *, by_hand: bool = False) -> Experiment:
    """Return an experiment after every check that needs no training.

    Parameters
    ----------
    settings : Settings
    methods : iterable of str
        Names of methods.
    by_hand : bool
        Whether a method may have an r of its own, instead of the budget.

    Raises
    ------
    HankelredError
        Unknown task, method or model; data that are missing or do not parse; a context or a vocabulary that
        the model does not have; a budget that cannot be met.
    """
    parsed = [parse_method(name) for name in methods]
    for method in parsed:
        check_available(method)
    options = dict(settings.task_options)
    if settings.data_dir is not None:
        folder = Path(settings.data_dir)
        if not folder.is_dir():
            raise ExperimentError(f"data_dir {settings.data_dir} is no folder; give the one with the files")
        options["data_dir"] = folder
    task = get_task(settings.task, **options)
    base = find_model(
        settings.model, settings.dtype, gguf_file=settings.gguf_file, revision=settings.revision
    )
    if isinstance(task, TextTask) and base.tokenizer is not None and "tokenizer" not in options:
        task = get_task(settings.task, **options, tokenizer=base.tokenizer)
    experiment = Experiment(settings, task, base, None, {})
    _check_fit(experiment)
    if settings.forgetting_text is not None:
        experiment._forgetting_text()
    free = [m for m in parsed if by_hand and any("r" in part.options for part in m.parts)]
    if len(free) < len(parsed):
        experiment.budget = parameters_of(settings.budget, base.skeleton)
    for method in parsed:
        experiment.methods[method.name] = (
            fixed(method, base.skeleton)
            if method in free
            else fit(method, experiment.budget or 0, base.skeleton)
        )
    if not by_hand:
        check_equal(experiment.methods.values())
    return experiment


def _check_fit(experiment: Experiment) -> None:
    """Refuse rows with ids or positions that the model does not support."""
    settings, task, base = experiment.settings, experiment.task, experiment.base
    if task.vocab_size is not None and task.vocab_size > base.vocabulary:
        raise ExperimentError(
            f"task {task.name} has {task.vocab_size} ids, and model {base.name} knows {base.vocabulary}; "
            "take another model, or 'small'"
        )
    longest = {f"test length {n}": experiment.validation(n).positions for n in settings.lengths}
    trained = experiment.validation(settings.length).positions
    trained = max(trained, max(len(row) for row in experiment.train_rows(settings.seeds[0])))
    for what, needed in {f"length {settings.length}": trained, **longest}.items():
        if base.positions is not None and needed > base.positions:
            raise ExperimentError(
                f"model {base.name} holds {base.positions} positions (max_position_embeddings), and {what} "
                f"of task {task.name} needs {needed}; take a smaller length or another model"
            )
