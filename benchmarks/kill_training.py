"""Trainings killed by the system at random moments: the same command must end with the same results.

    python benchmarks/kill_training.py --runs 20    # some ten minutes

A run is started again after each kill until it ends by itself. It is compared with one that was not killed:
results.jsonl without times, the weights byte by byte, no other file in the folder. The moments of the kills
are drawn from a seed, but where in the run they fall depends on the machine.

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
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20262
TIMES = ("created_at", "seconds_total", "seconds_calibration", "seconds_steps", "memory")


def train_in_child(folder: Path, model: str) -> int:
    """Start a training in a forked process and return its number: imports are not repeated."""
    from hankelred_llm.experiments.settings import one_run
    from hankelred_llm.experiments.single_run import train_into

    pid = os.fork()
    if pid:
        return pid
    sizes: dict[str, Any] = {"length": 8, "steps": 12, "batch_size": 2, "save_every": 2, "validation_size": 8}
    with contextlib.suppress(BaseException):
        train_into(one_run("hrm-mlp r=2", 0.01, 0, task="parity", model=model, out=str(folder), **sizes))
        os._exit(0)
    os._exit(1)


def contents(folder: Path) -> dict[str, str]:
    """Return a digest of every file of a finished training, times left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name == ".lock" or "checkpoint-" in str(path):
            continue
        data = path.read_bytes()
        if path.name == "results.jsonl":
            records = [json.loads(line) for line in data.splitlines()]
            kept = [{k: v for k, v in record.items() if k not in TIMES} for record in records]
            data = json.dumps(kept).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    import torch

    from hankelred_llm.experiments.base_models import small_model

    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    kills = different = 0
    with tempfile.TemporaryDirectory() as scratch:
        model = str(small_model(Path(scratch) / "small", pretrained=False))
        began = time.monotonic()
        if os.waitpid(train_in_child(Path(scratch) / "whole", model), 0)[1] != 0:
            raise SystemExit("the training that is not killed failed")
        whole, seconds = contents(Path(scratch) / "whole"), time.monotonic() - began
        for run in range(runs):
            folder, finished = Path(scratch) / f"run{run}", False
            while not finished:
                pid = train_in_child(folder, model)
                time.sleep(float(rng.uniform(0, 0.5 * seconds)))
                finished, status = (found := os.waitpid(pid, os.WNOHANG))[0] == pid, found[1]
                if not finished:
                    os.kill(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                    finished = not os.WIFSIGNALED(status)
                    kills += not finished
                if finished and status != 0:
                    print(f"run {run}: ended with status {status}", flush=True)
            if (found_contents := contents(folder)) != whole:
                different += 1
                names = {n for n in {*whole, *found_contents} if whole.get(n) != found_contents.get(n)}
                print(f"run {run} differs in {sorted(names)}", flush=True)
    print(f"{runs} runs, {kills} kills, {different} different from the run that was not killed")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
