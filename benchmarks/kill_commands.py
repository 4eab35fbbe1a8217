"""Commands killed by the system at random moments: the same command must end with the same results.

    python benchmarks/kill_commands.py --runs 20                  # trainings, some ten minutes
    python benchmarks/kill_commands.py --job compare --runs 5     # also: calibrate, reduce

A job is started again after each kill until it ends by itself. It is compared with one that was not killed:
results.jsonl without times, the weights and statistics byte by byte, no other file in the folder. The moments
of the kills are drawn from a seed, but where in the job they fall depends on the machine.

The prediction: no difference, and no file left over, as records are appended with their length checked and
everything else is renamed into place.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20262
TIMES = ("created_at", "seconds_total", "seconds_calibration", "seconds_steps", "memory")

#: Files that hold times or pictures: they must be there, and may differ.
WITH_TIMES = (".md", ".png", "summary.json")

SIZES: dict[str, Any] = {"length": 8, "batch_size": 2, "save_every": 2, "validation_size": 8}


def train(folder: Path, model: str) -> None:
    """Train an adapter into the folder."""
    from hankelred_llm.experiments.settings import one_run
    from hankelred_llm.experiments.single_run import train_into

    train_into(
        one_run("hrm-mlp r=2", 0.01, 0, task="parity", model=model, out=str(folder), steps=12, **SIZES)
    )


def compare(folder: Path, model: str) -> None:
    """Compare two methods in the folder."""
    from hankelred_llm.cli.main import progress
    from hankelred_llm.experiments.compare import compare as run
    from hankelred_llm.experiments.settings import Settings

    settings = Settings(
        task="parity",
        model=model,
        methods=["hrm-mlp", "lora-qv"],
        budget="lora-qv r=4",
        learning_rates={"default": [0.01]},
        seeds=[0, 1],
        steps=4,
        test_size=8,
        out=str(folder),
        **SIZES,
    )
    run(settings, progress=progress())


def calibrate(folder: Path, model: str) -> None:
    """Calibrate an adapter on random tokens, with a checkpoint in the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    import hankelred_llm

    adapted = hankelred_llm.attach(AutoModelForCausalLM.from_pretrained(model), r=4)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 200, (2, 64), generator=generator) for _ in range(30)]
    folder.mkdir(exist_ok=True)
    path = folder / "calibration.safetensors"
    hankelred_llm.calibrate(adapted, [{"input_ids": row, "labels": row} for row in rows], checkpoint=path)


def reduce(folder: Path, model: str) -> None:
    """Reduce an adapter into the folder, in place of one that is there."""
    import torch
    from transformers import AutoModelForCausalLM

    import hankelred_llm
    from hankelred_llm.cli.main import cli

    adapter = folder.parent / "adapter"
    if not adapter.is_dir():
        adapted = hankelred_llm.attach(AutoModelForCausalLM.from_pretrained(model), r=8)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if name.endswith(".C"):  # zero at the start, so that there would be nothing to reduce
                torch.nn.init.normal_(parameter, generator=generator)
        adapted.save_pretrained(adapter)
    folder.mkdir(exist_ok=True)
    arguments = ["reduce", str(adapter), "--order", "3", "--out", str(folder / "small"), "--overwrite"]
    for _ in range(10):
        cli.main(arguments, standalone_mode=False)


JOBS: dict[str, Callable[[Path, str], None]] = {
    "train": train,
    "compare": compare,
    "calibrate": calibrate,
    "reduce": reduce,
}


def in_child(job: Callable[[Path, str], None], folder: Path, model: str) -> int:
    """Start a job in a forked process and return its number: imports are not repeated."""
    pid = os.fork()
    if pid:
        return pid
    with open(os.devnull, "w") as nothing, contextlib.suppress(BaseException):
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        job(folder, model)
        os._exit(0)
    os._exit(1)


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file of a finished job, times left out."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name == ".lock" or "checkpoint-" in name:
            continue
        data = path.read_bytes()
        if path.name == "results.jsonl":
            records = [json.loads(line) for line in data.splitlines()]
            kept = [{k: v for k, v in record.items() if k not in TIMES} for record in records]
            data = json.dumps(kept).encode()
        elif name.endswith(WITH_TIMES) or "peft" in path.parts:
            data = b""
        digests[name] = hashlib.sha256(data).hexdigest()
    return digests


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", choices=sorted(JOBS), default="train")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    import torch

    from hankelred_llm.experiments.base_models import small_model

    torch.set_num_threads(1)
    job, rng = JOBS[options.job], np.random.default_rng(SEED)
    kills = different = 0
    with tempfile.TemporaryDirectory() as scratch:
        model = str(small_model(Path(scratch) / "small", pretrained=False))
        # not timed: it warms up the imports and makes the adapter that reduce reads
        if os.waitpid(in_child(job, Path(scratch) / "first", model), 0)[1] != 0:
            raise SystemExit("the job that is not killed failed")
        began = time.monotonic()
        if os.waitpid(in_child(job, Path(scratch) / "whole", model), 0)[1] != 0:
            raise SystemExit("the job that is not killed failed")
        whole, seconds = contents(Path(scratch) / "whole"), time.monotonic() - began
        for run in range(options.runs):
            folder, finished = Path(scratch) / f"run{run}", False
            while not finished:
                pid = in_child(job, folder, model)
                time.sleep(float(rng.uniform(0, 0.5 * seconds)))
                ended, status = os.waitpid(pid, os.WNOHANG)
                finished = ended == pid
                if not finished:
                    os.kill(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                    finished = not os.WIFSIGNALED(status)
                    kills += not finished
                if finished and status != 0:
                    print(f"run {run}: ended with status {status}", flush=True)
                if options.job == "reduce" and kills % 7 == 6:
                    # it has nothing to resume from, so that it would hardly ever end
                    os.waitpid(in_child(job, folder, model), 0)
                    finished = True
            left = contents(folder)
            if left != whole:
                different += 1
                names = {n for n in {*whole, *left} if whole.get(n) != left.get(n)}
                print(f"run {run} differs in {sorted(names)}", flush=True)
    print(
        f"{options.job}: {options.runs} runs, {kills} kills, {different} different from the one without kills"
    )
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
