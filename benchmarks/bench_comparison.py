"""The runs behind docs/results.md: comparisons of methods, what they learn, what a step costs.

    python benchmarks/bench_comparison.py run FOLDER [NAME ...]   hours on one core; resumes
    python benchmarks/bench_comparison.py costs                   minutes; writes docs/results/costs.json
    python benchmarks/bench_comparison.py collect FOLDER          writes the other files of docs/results/
    python docs/make_results.py                                   writes the page

Texts are read from ../shared, or where HANKELRED_SHARED points. A comparison that is not finished is not
collected. One thread: OMP_NUM_THREADS=1. docs/results/initializations.json was written by an earlier version,
in which starts from data were methods of `compare`.

Predictions, before measuring, from small trials with rows of 64: HRM beside attention extrapolates best on
automaton, flip-flop and lag copy; LoRA on all layers is best on bytes and key retrieval; half of each loses
some of both. Nothing linear and time-invariant solves parity or words of S3, and neither does LoRA. Poles
from data lose to the ring where the task is not linear. A step with the chunked scan costs what a step of
LoRA costs, within a half; FFT costs the same at 512 tokens and more at 8192; one sample after the other costs
tens of times as much.

Seen: the first sentence held. LoRA on all layers won key retrieval, which no HRM alone learned, and LoRA on
the MLP bytes. Half of each beside attention, LoRA at a third of the rate, lost half of key retrieval; in
trials on validation rows (seeds 100 to 103) three times the rate cured that, and on text a small HRM beside
LoRA on the MLP was as good as LoRA. There, slow poles, poles with small phases and input maps scaled to
states of equal size lost to the ring or changed nothing. No mixture was best on all tasks, so validation
chooses of three. Nothing solved parity, modular sum or S3. Of the starts, poles from data were within noise
of ring; the paper's start lost. FFT cost no more than chunks at any length, since the scan is a small part
of a step at 16 states; one sample after the other cost 2.2 to 3 times a step, not tens. A calibration takes
as many passes as the steps it replaces and 4 to 40 times their seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hankelred_llm.adapter.system
from hankelred_llm import linear_recurrence
from hankelred_llm.adapter.systems import get_systems
from hankelred_llm.experiments.compare import RESULTS, Settings, compare
from hankelred_llm.experiments.experiment import Experiment, open_experiment
from hankelred_llm.experiments.methods import load_adapter, parse_method
from hankelred_llm.experiments.records import ResultRecord, read_records
from hankelred_llm.experiments.settings import HRM_FAMILY
from hankelred_llm.experiments.statistics import paired_difference

RESULTS_OF_PAGE = Path(__file__).resolve().parents[1] / "docs/results"
SHARED = Path(os.environ.get("HANKELRED_SHARED") or Path(__file__).resolve().parents[1] / "../shared")

DFA = {"transitions": [[2, 1], [0, 3], [0, 2], [0, 3]]}
TEXT = {"path": str(SHARED / "data/text/tinyshakespeare.txt")}
COMMON: dict[str, Any] = {
    "budget": "4096",
    "length": 32,
    "steps": 250,
    "batch_size": 16,
    "learning_rates": [3e-3, 1e-2, 3e-2],
    "tuning_seeds": [100, 101],
    "tuning_lengths": [32, 128],
    "seeds": [0, 1, 2, 3],
    "validation_size": 128,
    "test_size": 256,
    "save_every": 1000,
    "eval_batch_size": 64,
}
MAIN = [*HRM_FAMILY, "lora-qv", "lora-mlp", "lora-all"]
ALONE = ["hrm-attention", "lora-all"]
MORE = ["hrm-mlp", "hrm-s4d"]
FAMILY = ["dora-all"]
#: Where four seeds left a difference open.
MORE_SEEDS = list(range(8))

STUDIES: dict[str, dict[str, Any]] = {
    "prefix_dfa": {"task": "prefix_dfa", "task_options": DFA, "methods": MAIN + MORE + FAMILY},
    "flip_flop": {"task": "flip_flop", "methods": MAIN + MORE, "seeds": MORE_SEEDS},
    "lag_copy": {"task": "lag_copy", "task_options": {"lag": 8}, "methods": MAIN + MORE},
    "key_retrieval": {"task": "key_retrieval", "methods": MAIN, "seeds": MORE_SEEDS},
    "byte_lm": {"task": "byte_lm", "task_options": TEXT, "methods": MAIN},
    "majority": {"task": "majority", "methods": MAIN},
    "associative_recall": {"task": "associative_recall", "methods": MAIN},
    "modular_sum": {"task": "modular_sum", "methods": MAIN},
    "prefix_dfa-random": {
        "task": "prefix_dfa",
        "task_options": DFA,
        "model": "small-random",
        "methods": ALONE,
    },
    "flip_flop-random": {"task": "flip_flop", "model": "small-random", "methods": ALONE},
    "lag_copy-random": {
        "task": "lag_copy",
        "task_options": {"lag": 8},
        "model": "small-random",
        "methods": ALONE,
    },
    "key_retrieval-random": {
        "task": "key_retrieval",
        "model": "small-random",
        "methods": [HRM_FAMILY[0], HRM_FAMILY[2], "lora-all"],  # HRM alone cannot
    },
    "parity": {"task": "parity", "methods": ALONE},
    "s3_words": {"task": "s3_words", "methods": ALONE},
}


def settings_of(name: str, out: Path) -> Settings:
    """Return the settings of a comparison by its name."""
    return Settings(**{**COMMON, **STUDIES[name], "out": str(out / name)})


def run(out: Path, names: list[str]) -> None:
    """Run what is left of the comparisons, one after the other."""
    for name in names or STUDIES:
        began = time.perf_counter()
        compare(settings_of(name, out))
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


def collect(out: Path) -> None:
    """Write what the page needs of all comparisons that are finished; what was collected before stays."""
    finished = [name for name in STUDIES if (out / name / "summary.json").is_file()]
    found, systems = (collected(name) for name in ("comparisons.json", "systems.json"))
    for name in finished:
        settings = settings_of(name, out)
        summary = json.loads((out / name / "summary.json").read_text(encoding="utf-8"))
        found[name] = condensed(settings, summary, read_records(out / name / RESULTS))
        if "hrm-attention" in settings.methods:
            systems[name] = learned(settings, found[name]["methods"]["hrm-attention"]["learning_rate"])
        print(f"collected {name}", flush=True)
    write("comparisons.json", found)
    write("systems.json", systems)


def collected(name: str) -> dict[str, ResultRecord]:
    """Return what a file of results holds of the studies there are."""
    path = RESULTS_OF_PAGE / name
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {study: entry for study, entry in known.items() if study in STUDIES}


def condensed(s: Settings, summary: ResultRecord, records: list[ResultRecord]) -> ResultRecord:
    """Return a comparison without its rows, and with paired differences of all that are of interest."""
    metric = summary["metric"]
    runs = [r for r in records if r["kind"] == "run"]
    methods = {}
    for name in s.methods:
        final = [r for r in runs if r["method"] == name and r["phase"] == "final"]
        methods[name] = {
            "ranks": final[0]["ranks"],
            "parameters": final[0]["parameters"],
            "learning_rate": final[0]["learning_rate"],
            "tuned": tuned([r for r in runs if r["method"] == name and r["phase"] == "tuning"], metric),
            "step_seconds": float(np.median(np.concatenate([r["seconds_steps"] for r in final]))),
        }
    keys = ("examples", "context_mean", "floors")
    return {
        "task": s.task,
        "model": s.model,
        "options": {k: v for k, v in s.task_options.items() if k != "path"},
        "metric": metric,
        "higher_is_better": summary["higher_is_better"],
        "length": s.length,
        "steps": s.steps,
        "batch_size": s.batch_size,
        "seeds": s.seeds,
        "tuning_seeds": s.tuning_seeds,
        "tuning_lengths": list(s.validated),
        "reference": summary["reference"],
        "methods": methods,
        "lengths": {
            length: {
                **{key: found["split"][key] for key in keys},
                "scores": {line["method"]: line["scores"] for line in found["methods"]},
                "differences": _differences(s, metric, int(length), records),
            }
            for length, found in summary["lengths"].items()
        },
    }


def tuned(runs: list[ResultRecord], metric: str) -> dict[str, float | None]:
    """Return the mean validation score of every learning rate; None where a run of it diverged."""
    found: dict[str, float | None] = {}
    for rate in sorted({r["learning_rate"] for r in runs}):
        scores = [(r["validation"] or {}).get(metric) for r in runs if r["learning_rate"] == rate]
        found[f"{rate:g}"] = None if None in scores else float(np.mean(scores))
    return found


def _differences(
    settings: Settings, metric: str, length: int, records: list[ResultRecord]
) -> list[ResultRecord]:
    """Compare every HRM with every method without; or with the reference, where there is one."""

    def scores(name: str) -> list[ResultRecord]:
        wanted = {"kind": "score", "method": name, "length": length}
        mine = [r for r in records if wanted.items() <= r.items()]
        return [next(r for r in mine if r["seed"] == seed) for seed in settings.seeds]

    def values(name: str) -> Any:
        return np.array([r["per_unit"][metric] for r in scores(name)])

    references = [settings.reference] if settings.reference else settings.methods
    found = []
    for reference in references:
        if settings.reference is None and parse_method(reference).stateful:
            continue
        for method in settings.methods:
            if method == reference or not parse_method(method).stateful:
                continue
            first = scores(method)[0]
            d = paired_difference(
                values(method), values(reference), np.array(first["weights"]), first["documents"]
            )
            found.append(
                {
                    "method": method,
                    "minus": reference,
                    "mean": d.mean,
                    "over_seeds": d.over_seeds,
                    "over_units": d.over_units,
                    "clear": bool(d.clear),
                }
            )
    return found


def learned(settings: Settings, rate: float) -> ResultRecord:
    """Return poles, gains and gates of the HRM beside attention, before and after, of the first seed."""
    name, seed = "hrm-attention", settings.seeds[0]
    experiment = open_experiment(settings, settings.methods)
    folder = Path(settings.out) / "runs" / f"final--{name}--rate{rate:g}--seed{seed}" / "adapter"
    before = _layers(experiment.untrained_model(name, seed))
    after = _layers(load_adapter(experiment.base_model(name), folder))
    return {"seed": seed, "before": before, "after": after}


def _layers(model: Any) -> list[ResultRecord]:
    gates = [p.item() for n, p in model.named_parameters() if n.rpartition(".")[2] == "gate"]
    layers = get_systems(model)
    return [
        {
            "decay": (-logs.real).tolist(),
            "phase": logs.imag.tolist(),
            "gain": (np.linalg.norm(B, axis=1) * np.linalg.norm(C, axis=0)).tolist(),
            "gate": gate,
        }
        for (logs, B, C), gate in zip(layers.values(), gates, strict=True)
    ]


SCANS = {"FFT": "fft", "sequential": "sequential"}
COST_TOKENS = (512, 2048, 8192)


def costs(rounds: int = 3) -> None:
    """Measure a step of every method on one row: CPU time and memory beyond the model.

    Methods are taken in turn, so that a busy moment of the machine hits all of them, and the least is kept.
    """
    settings = settings_of("prefix_dfa", Path("unused"))
    experiment = open_experiment(settings, settings.methods)
    cases = [(name, name, "auto") for name in settings.methods]
    cases += [(f"hrm-attention, {title} scan", "hrm-attention", scan) for title, scan in SCANS.items()]
    rows: dict[str, dict[str, ResultRecord]] = {title: {} for title, _, _ in cases}
    for done in range(1, rounds + 1):
        for tokens in COST_TOKENS:
            for title, name, scan in cases:
                new = in_a_fork(lambda n=name, s=scan, t=tokens: one_cost(experiment, n, s, t))
                known = rows[title].setdefault(str(tokens), new)
                rows[title][str(tokens)] = {key: min(known[key], value) for key, value in new.items()}
        print(f"round {done} of {rounds}", flush=True)
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        write("costs.json", {**machine, "threads": torch.get_num_threads(), "rounds": done, "rows": rows})


def one_cost(experiment: Experiment, name: str, scan: str, tokens: int) -> ResultRecord:
    """Return seconds and bytes of a step: forward, backward, AdamW."""
    model = experiment.untrained_model(name, 0).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    if scan != "auto":
        hankelred_llm.adapter.system.channel_scan = scan_by(scan)  # type: ignore[attr-defined]

    def step(ids: Tensor) -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ids = torch.randint(256, (1, tokens), generator=torch.Generator().manual_seed(0))
    step(ids[:, :64])  # makes what all later ones find: moments, buffers
    before, began = _resident(), time.process_time()
    step(ids)
    return {"seconds": time.process_time() - began, "bytes": _peak() - before}


def scan_by(method: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return another scan in the place of the one of real columns; the systems here are all pairs."""

    def scan(log_decay: Tensor, phase: Tensor, u: Tensor, **masks: Any) -> tuple[Tensor, Tensor]:
        pairs = phase.shape[0]
        assert pairs == log_decay.shape[0] and not any(v is not None for v in masks.values())
        columns = torch.complex(u[:, :pairs].float(), u[:, pairs:].float()).mT
        s, last = linear_recurrence(log_decay, phase, columns, method=method)
        return torch.cat([s.real.mT, s.imag.mT], 1), torch.cat([last.real, last.imag], 1)

    return scan


def _resident() -> int:
    """Give back what is free, start the peak anew, and return the bytes that are held."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def in_a_fork(measure: Callable[[], ResultRecord]) -> ResultRecord:
    """Return what a function says in a process of its own, whose memory nobody else has touched."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.write(writing, json.dumps(measure()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    result: ResultRecord = json.loads(said)
    return result


def write(name: str, content: ResultRecord) -> None:
    """Write a file of results, a few digits of each number and an entry a line."""
    RESULTS_OF_PAGE.mkdir(exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(shortened(value))}" for key, value in content.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (RESULTS_OF_PAGE / name).write_text(text, encoding="utf-8")


def shortened(value: Any) -> Any:
    """Return a value with five digits of every float in it."""
    if isinstance(value, dict):
        return {key: shortened(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shortened(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "collect", "costs"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("comparisons"))
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.what == "run":
        run(options.folder, options.names)
    elif options.what == "collect":
        collect(options.folder)
    else:
        costs()


if __name__ == "__main__":
    main()
