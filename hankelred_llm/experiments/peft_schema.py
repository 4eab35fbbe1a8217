"""Results in the schema of peft's method_comparison.

That of huggingface/peft, ``method_comparison/MetaMathQA/results``.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hankelred._util.writing import write_atomically

from .experiment import Experiment
from .records import RunRecord, ScoreRecord
from .trainer import CLIP, SCHEDULE, WARMUP

_PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch", "hankelred")


def peft_record(experiment: Experiment, run: RunRecord, scores: list[ScoreRecord], path: Path) -> None:
    """Write one finished run as peft's scripts write theirs.

    What they call memory of the accelerator is, without one, the peak of the process. Test metrics carry the
    length in their name.
    """
    settings, metric = experiment.settings, experiment.task.metric
    steps = run.seconds_steps
    metrics: list[dict[str, Any]] = [
        {
            "step": step,
            "train loss": loss,
            "train samples": step * settings.batch_size,
            "train time": float(np.sum(steps[:step])),
        }
        for step, loss in run.losses
    ]
    final: dict[str, Any] = {"step": settings.steps, "train loss": metrics[-1]["train loss"]}
    if run.validation is not None:
        final[f"valid {metric}"] = run.validation[metric]
    for score in scores:
        name = f"{score.split} {metric}"
        final.setdefault(name, score.means[metric])
        final[f"{name} at length {score.length}"] = score.means[metric]
    if run.forgetting is not None:
        final["forgetting"] = run.forgetting
    final["train samples"] = settings.steps * settings.batch_size
    name_of_experiment = f"{experiment.task.name}-{Path(settings.model).name}-seed{run.seed}"
    content = {
        "run_info": {
            "created_at": run.created_at,
            "total_time": run.seconds_total,
            "experiment_name": f"{run.method}/{name_of_experiment}",
            "peft_branch": None,
            "train_config": {
                "model_id": settings.model,
                "dtype": settings.dtype,
                "max_seq_length": settings.length,
                "batch_size": settings.batch_size,
                "batch_size_eval": settings.eval_batch_size,
                "max_steps": settings.steps,
                "eval_steps": settings.steps,
                "compile": False,
                "use_gc": settings.gradient_checkpointing,
                "query_template": None,
                "seed": run.seed,
                "grad_norm_clip": CLIP,
                "optimizer_type": "AdamW",
                "optimizer_kwargs": {"lr": run.learning_rate, "weight_decay": settings.weight_decay},
                "lr_scheduler": SCHEDULE,
                "warmup_step_ratio": WARMUP,
                "use_amp": False,
                "autocast_adapter_dtype": True,
                "generation_kwargs": {"do_sample": False},
                "attn_implementation": None,
            },
            "peft_config": run.peft_config,
            "error_msg": "" if run.status == "success" else "the loss is not finite",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": run.memory,
            "accelerator_memory_max": run.memory,
            "accelerator_memory_reserved_99th": run.memory,
            "train_time": float(np.sum(steps)),
            "file_size": run.file_size,
            "num_trainable_params": run.parameters,
            "num_total_params": run.parameters_total,
            "status": run.status,
            "metrics": [*metrics, final],
        },
        "meta_info": {
            "model_info": {"sha": experiment.base.version, "created_at": None},
            "dataset_info": {experiment.task.name: {"sha": None, "created_at": None}},
            "package_info": {
                key: value
                for name in _PACKAGES
                for key, value in ((f"{name}-version", _version(name)), (f"{name}-commit-hash", None))
            },
            "system_info": {
                "system": platform.system(),
                "release": platform.release(),
                "version": platform.version(),
                "machine": platform.machine(),
                "processor": platform.processor(),
                "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            },
            "pytorch_info": torch.__config__.show(),
        },
    }
    write_atomically(
        path, lambda name: Path(name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
