"""Training of one adapter: a run that can be stopped at any moment and resumed."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from peft import PeftModel
from rich.progress import Progress

from ..tasks import Collator
from .experiment import Experiment
from .methods import save_adapter, trainable
from .processes import this_process
from .records import RunRecord
from .trainer import AdapterTrainer, arguments, last_checkpoint

__all__ = ["Run", "train"]

ADAPTER = "adapter"


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes
    ----------
    model : PeftModel
        Trained, on its device.
    record : RunRecord
        What belongs into results: sizes, losses by step, seconds and memory; no scores yet.
    folder : Path
        Has the adapter in its folder ``adapter``.
    """

    model: PeftModel
    record: RunRecord
    folder: Path


def train(
    experiment: Experiment,
    method: str,
    *,
    learning_rate: float,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> Run:
    """Train an adapter, from the last checkpoint in the folder where there is one.

    AdamW, the learning rate warmed up over a tenth of the steps and then lowered by a cosine, gradients
    clipped at norm 1: the same for every method, on the same rows in the same order.

    Parameters
    ----------
    experiment : Experiment
    method : str
        One of its methods.
    learning_rate : float
    seed : int
        Draws the adapter's start, and the order of the rows.
    folder : Path
        For checkpoints, which hold what is trained only, and the adapter.
    progress : rich.progress.Progress, optional
        Where a bar of the steps is drawn.

    Returns
    -------
    Run
    """
    settings, began = experiment.settings, time.perf_counter()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    model = experiment.untrained_model(method, seed)
    parameters, total = trainable(model), sum(p.numel() for p in model.parameters())
    process = this_process()
    resumed = last_checkpoint(folder) if process.is_main_process else None
    process.wait_for_everyone()
    if not process.is_main_process:
        resumed = last_checkpoint(folder)
    trainer = AdapterTrainer(
        model=model,
        args=arguments(
            folder,
            steps=settings.steps,
            rows=settings.batch_size,
            learning_rate=learning_rate,
            seed=seed,
            save_every=settings.save_every,
            weight_decay=settings.weight_decay,
            accumulation=settings.accumulation,
            gradient_checkpointing=settings.gradient_checkpointing,
        ),
        train_dataset=experiment.train_rows(seed),
        data_collator=Collator(experiment.task.pad_token_id),
        chunk=settings.chunk,
        static_lr_ratio=experiment.methods[method].static_lr_ratio,
        title=f"{method}, rate {learning_rate:g}, seed {seed}",
        progress=progress,
    )
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    config = next(iter(model.peft_config.values())).to_dict()
    file_size = 0
    if process.is_main_process:
        _write_adapter(model, folder, f"task {settings.task}, rows of length {settings.length}")
        file_size = sum(f.stat().st_size for f in (folder / ADAPTER).rglob("*.safetensors"))
    process.wait_for_everyone()
    record = RunRecord(
        method=method,
        learning_rate=learning_rate,
        seed=seed,
        created_at=created,
        seconds_total=time.perf_counter() - began,
        seconds_steps=trainer.meter.seconds,
        memory=trainer.meter.memory,
        parameters=parameters,
        parameters_total=total,
        ranks=experiment.methods[method].ranks(),
        peft_config={key: sorted(v) if isinstance(v, set) else v for key, v in config.items()},
        losses=losses,
        status="success" if all(math.isfinite(loss) for _, loss in losses) else "failed",
        file_size=file_size,
        validation=None,
    )
    return Run(model, record, folder)


def _write_adapter(model: PeftModel, folder: Path, data: str) -> None:
    """Write the adapter whole, then remove what a restart would have needed."""
    scratch = folder / ".adapter"
    shutil.rmtree(scratch, ignore_errors=True)
    save_adapter(model, scratch, data=data)
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    os.replace(scratch, folder / ADAPTER)
