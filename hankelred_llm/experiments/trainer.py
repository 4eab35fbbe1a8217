"""transformers' Trainer for adapters: adapter-only checkpoints, chunks, and what a step costs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from hankelred.errors import in_one_line

from ..adapter.adapter_layers import static_parameters
from ..errors import ExperimentError
from ..state.cache import HRMState
from ..state.decoder_call import cache_argument

#: The same for every method, and written with every result.
WARMUP, CLIP, SCHEDULE = 0.1, 1.0, "cosine"

#: How often the loss is recorded: this many times in a run.
LOSS_RECORDS = 100

_WEIGHTS, _COMPLETE = "trainable.safetensors", "complete"


def arguments(
    folder: Path,
    *,
    steps: int,
    rows: int,
    learning_rate: float,
    seed: int,
    save_every: int | None,
    weight_decay: float = 0.0,
    accumulation: int = 1,
    gradient_checkpointing: bool = False,
) -> TrainingArguments:
    """Return the arguments of a run; `rows` are those of a step over all devices."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if rows % (world * accumulation):
        raise ExperimentError(
            f"batch_size {rows} cannot be split over {world} devices in {accumulation} parts each; take a "
            f"multiple of {world * accumulation}"
        )
    every = max(1, steps // LOSS_RECORDS)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=rows // (world * accumulation),
        gradient_accumulation_steps=accumulation,
        learning_rate=learning_rate,
        lr_scheduler_type=SCHEDULE,
        warmup_steps=round(WARMUP * steps),
        weight_decay=weight_decay,
        max_grad_norm=CLIP,
        seed=seed,
        train_sampling_strategy="sequential",  # the order of the rows is the task's, the same for all methods
        logging_steps=every,
        logging_nan_inf_filter=False,  # a run that diverged must be seen
        save_strategy="no" if save_every is None else "steps",
        # the loss is averaged since the last record: only at records can a run resume with the same curve
        save_steps=every * max(1, round((save_every or 1) / every)),
        save_total_limit=2,  # the last complete one stays while the next is written
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **_checkpointing_arguments(gradient_checkpointing),
    )


def _checkpointing_arguments(on: bool) -> dict[str, Any]:
    """Return the arguments of gradient checkpointing, which transformers has renamed."""
    if not on:
        return {}
    new = "activation_checkpointing"
    name = new if new in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


class AdapterTrainer(Trainer):
    """A Trainer whose checkpoints hold what is trained and nothing of the base.

    Parameters
    ----------
    chunk : int, optional
        Train through rows in chunks of so many tokens, the cache going on from one to the next.
    static_lr_ratio : float
        As in :func:`hankelred_llm.parameter_groups`.
    title : str
        For the progress bar.
    progress : rich.progress.Progress, optional
        Where the bar is drawn; none is without it.
    **options
        Those of transformers' Trainer.
    """

    def __init__(
        self,
        *,
        chunk: int | None = None,
        static_lr_ratio: float = 1.0,
        title: str = "",
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        callbacks: list[TrainerCallback] = [Meter(), _Marker()]
        if progress is not None:
            callbacks.append(_Bar(progress, title))
        super().__init__(callbacks=callbacks, **options)
        for default_callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(default_callback)
        self.chunk, self.static_lr_ratio = chunk, static_lr_ratio
        if chunk is not None and not self.model_accepts_loss_kwargs:
            raise ExperimentError(f"{type(self.model).__name__} cannot be trained in chunks; leave chunk out")

    @property
    def meter(self) -> Meter:
        """Cost of the steps so far. A Trainer that resumes replaces it."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Meter))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW, in which static parts have groups of their own where their rate is another."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.static_lr_ratio == 1.0 or not fresh:
            return optimizer
        static = static_parameters(model or self.model)
        for group in list(optimizer.param_groups):
            apart = [p for p in group["params"] if id(p) in static]
            if not apart:
                continue
            group["params"] = [p for p in group["params"] if id(p) not in static]
            optimizer.add_param_group(
                # the schedule scales both
                {**group, "params": apart, "lr": self.static_lr_ratio * group["lr"]}
            )
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Train on a batch, whole or chunk by chunk.

        In chunks the loss is that of the whole rows; its gradient is that within each chunk: what a token
        passes on to later chunks, through keys, values and states, is taken as given.
        """
        time = inputs["input_ids"].shape[1]
        if self.chunk is None or time <= self.chunk:
            return super().training_step(model, inputs, num_items_in_batch)
        # shifted before it is split: the target of the last token of a chunk is the first token of the next
        shifted_labels = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        base = self.accelerator.unwrap_model(self.model)
        base = base.get_base_model() if isinstance(base, PeftModel) else base
        cache, cache_name = DynamicCache(config=base.config), cache_argument(type(base).forward)
        losses = []
        for start in range(0, time, self.chunk):
            part = slice(start, start + self.chunk)
            chunk = {
                "input_ids": inputs["input_ids"][:, part],
                "attention_mask": inputs["attention_mask"][:, : part.stop],
                "labels": shifted_labels[:, part],
                "shift_labels": shifted_labels[:, part].contiguous(),
                cache_name: cache,
                "use_cache": True,
            }
            losses.append(super().training_step(model, chunk, num_items_in_batch))
            _detach(cache)
        return torch.stack(losses).sum()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint.

        Raises
        ------
        OSError
            It cannot be written.
        """
        try:
            super()._save_checkpoint(*args, **kwargs)
        except RuntimeError as error:
            # what torch says where the system refuses to write, without its reason
            reason = in_one_line(str(error).strip().partition("\n")[0], 100)
            raise OSError(f"no checkpoint can be written: {reason}") from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        parameters_by_name = dict(self.model.named_parameters()) if state_dict is None else state_dict
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        weights = {name: parameters_by_name[name].detach().cpu().contiguous() for name in names}
        save_file(weights, folder / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        parameters = dict(model.named_parameters())
        with safe_open(Path(resume_from_checkpoint) / _WEIGHTS, framework="pt") as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                parameters[name].copy_(file.get_tensor(name))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, and delete those that were not."""
    folders = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    complete = [p for p in folders if (p / _COMPLETE).exists()]
    for path in folders:
        if path not in complete:
            shutil.rmtree(path)
    return complete[-1] if complete else None


def _detach(cache: DynamicCache) -> None:
    for layer in cache.layers:
        if isinstance(layer, HRMState):
            layer.detach()
        elif layer.is_initialized:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()


class Meter(TrainerCallback, ExportableState):
    """Seconds of each step, and the peak of memory.

    Attributes
    ----------
    seconds : list of float
        One for each step, those before a restart included.
    memory : int or None
        Peak in bytes: allocated on the GPU, or without a GPU that of the process; None where the system does
        not report it, as on Windows.
    """

    def __init__(self, seconds: list[float] | None = None, memory: int | None = None) -> None:
        self.seconds = seconds or []
        self.memory = memory
        self._began = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Forget the peaks of what came before."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the system's way to reset the peak

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock, and read the peak before a checkpoint is written."""
        self.seconds.append(round(self._now() - self._began, 6))
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _process_peak()
        if peak is not None:
            self.memory = max(peak, self.memory or 0)

    def state(self) -> dict[str, Any]:
        """Return what goes into a checkpoint."""
        return {"args": {"seconds": self.seconds, "memory": self.memory}, "attributes": {}}

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def _process_peak() -> int | None:
    """Return the peak memory of this process in bytes; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Marker(TrainerCallback):
    """Marks a checkpoint as complete."""

    def on_save(self, args: TrainingArguments, state: Any, *rest: Any, **kwargs: Any) -> None:
        if args.should_save:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()


class _Bar(TrainerCallback):
    """A bar of the steps of one run."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title = progress, title
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._bar = self._progress.add_task(
                self._title, total=state.max_steps, completed=state.global_step
            )

    def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._progress.update(self._bar, completed=state.global_step)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
