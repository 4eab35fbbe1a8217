"""Write docs/results_real_text.md from docs/results/real_text: `python docs/make_results_real_text.py`.

The files are written by benchmarks/bench_real_text.py, which has the protocol. The losses and differences of
the page are computed here; the page is not to be edited by hand.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hankelred_llm.experiments.statistics import FEWEST_SEEDS, Difference, paired_difference

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

import _markdown as markdown  # noqa: E402 (a script beside this one)
import bench_real_text as study  # noqa: E402 (it is no package)
from _markdown import listed, table  # noqa: E402
from make_results_real import NAMES  # noqa: E402

PAGE = HERE / "results_real_text.md"
Piece = dict[str, Any]
Pieces = dict[str, Piece]

paragraph = partial(markdown.paragraph, width=110)
bullets = partial(markdown.bullets, width=110)
shown = partial(markdown.shown, digits=4)


def finished() -> Pieces:
    """Return the finished pieces by the name of their file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(study.PIECES.glob("*.json"))}


def page(pieces: Pieces) -> str:
    """Return the page."""
    parts = ["# Does a token far into a long text profit from a state?", introduction()]
    for heading, section in (
        ("What does training gain over the base, by position?", gains),
        ("Is a method with a state better than LoRA?", against_lora),
        ("Does a far token gain more than a near one?", far_against_near),
        ("What does the state do?", state_off),
        ("How long do the states remember?", memory),
        ("What is missing?", missing),
    ):
        if found := section(pieces):
            parts += [f"## {heading}", *found]
    return "\n\n".join(parts) + "\n"


def introduction() -> str:
    """Return what the page is, and the protocol."""
    c = study.COMMON
    first = paragraph(
        "SmolLM2-135M-Instruct, frozen, as in [](results_real.md) but in float32, and adapters of the same "
        "number of parameters, trained to continue stories. A state carries what was read, but attention "
        "reads all of it again: does the loss far into a row tell them apart? "
        "`python benchmarks/bench_real_text.py` runs what is missing, and "
        "`python docs/make_results_real_text.py` writes this page from the pieces in "
        "`docs/results/real_text`. **A short training of one small model.**"
    )
    lines = [
        f"Methods: {listed(f'`{m}`' for m in study.COMPARED)}; `{study.LORA}` is the LoRA with the best "
        "validation accuracy on [](results_real.md), averaged over tasks and lengths.",
        f"Training: {c['steps']} steps of {study.BATCH} row of {study.LENGTH} tokens from the stories of "
        f"SQuALITY; the test is on other stories. Rate {study.RATE:g} for all, not tuned here.",
        f"Report: seeds {listed(map(str, study.SEEDS))}; {study.TEST_ROWS} test rows "
        f"of {study.TEST_LENGTH} tokens. Losses are in nats a token, lower is better. Intervals in brackets "
        f"are Student's t over seeds, from two seeds on; a star says that there are at least {FEWEST_SEEDS} "
        "seeds, and that it and a bootstrap over rows leave out zero.",
        "The protocol and a prediction were committed before the first training; they are in the docstring "
        "of the benchmark.",
    ]
    return first + "\n\n" + bullets(lines)


def bands() -> list[str]:
    """Return the headings of the bands of positions."""
    starts = (1, *study.BANDS[:-1])
    return [f"tokens {a} to {b - 1}" for a, b in zip(starts, study.BANDS, strict=True)]


def of_method(pieces: Pieces, method: str) -> dict[int, Piece]:
    """Return the trainings of a method by seed."""
    paths = {seed: study.path_of(method, seed).stem for seed in study.SEEDS}
    return {seed: pieces[name] for seed, name in paths.items() if name in pieces}


def losses(of_seeds: dict[int, Piece], seeds: list[int], key: str = "test") -> npt.NDArray[np.float64]:
    """Return losses, shape (seeds, rows, bands)."""
    return np.array([of_seeds[seed][key] for seed in seeds])


def gains(pieces: Pieces) -> list[str]:
    """Return the losses of the base, and what they change by training."""
    if "base" not in pieces:
        return []
    base = np.array(pieces["base"]["test"])
    lines = [["the base as it is: loss", "", *(f"{value:.3f}" for value in base.mean(axis=0))]]
    for method in study.COMPARED:
        if of_seeds := of_method(pieces, method):
            change = losses(of_seeds, list(of_seeds)).mean(axis=1) - base.mean(axis=0)
            spread = change.std(axis=0, ddof=1) if len(change) > 1 else None
            cells = [f"{value:+.4f}" for value in change.mean(axis=0)]
            if spread is not None:
                cells = [f"{cell} ± {value:.4f}" for cell, value in zip(cells, spread, strict=True)]
            lines.append([f"{NAMES[method]}: change", ", ".join(map(str, of_seeds)), *cells])
    text = (
        f"Loss by position in the row, and its change by training (mean over seeds, standard deviation). "
        f"Training rows have {study.LENGTH} tokens: the last two bands are beyond them."
    )
    return [paragraph(text), table(["", "seeds", *bands()], lines)]


def difference(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Difference:
    """Return the paired difference of losses of shape (seeds, rows)."""
    rows = [str(row) for row in range(a.shape[1])]
    return paired_difference(a, b, np.ones(a.shape[1]), rows)


def against_lora(pieces: Pieces) -> list[str]:
    """Return the differences to LoRA in each band."""
    lora = of_method(pieces, study.LORA)
    lines, verdicts = [], []
    for method in study.COMPARED[1:]:
        of_seeds = of_method(pieces, method)
        seeds = sorted(of_seeds.keys() & lora.keys())
        if seeds:
            a, b = losses(of_seeds, seeds), losses(lora, seeds)
            found = [difference(a[..., k], b[..., k]) for k in range(len(study.BANDS))]
            lines.append([NAMES[method], ", ".join(map(str, seeds)), *map(shown, found)])
            clear = [d.mean for d in found if d.clear]
            worse, better = sum(mean > 0 for mean in clear), sum(mean < 0 for mean in clear)
            verdicts.append(
                f"{NAMES[method]} is clearly worse in {worse} and clearly better in {better} of {len(found)} "
                "bands."
            )
    if not lines:
        return []
    text = f"Loss minus that of {NAMES[study.LORA]}, paired by seed and row; below zero is better."
    return [
        paragraph(text),
        table(["", "seeds", *bands()], lines),
        paragraph(f"**{' '.join(verdicts)}**"),
    ]


def far_against_near(pieces: Pieces) -> list[str]:
    """Return how the gain over the base differs between bands."""
    if "base" not in pieces:
        return []
    base = np.array(pieces["base"]["test"])
    lines = []
    for method in study.COMPARED:
        if of_seeds := of_method(pieces, method):
            gain = base - losses(of_seeds, list(of_seeds))
            cells = [shown(difference(gain[..., k], gain[..., 0])) for k in range(1, len(study.BANDS))]
            lines.append([NAMES[method], ", ".join(map(str, of_seeds)), *cells])
    if not lines:
        return []
    text = (
        f"What training gains over the base in a band, minus what it gains for {bands()[0]}; above zero, far "
        "tokens profit more."
    )
    return [paragraph(text), table(["", "seeds", *bands()[1:]], lines)]


def state_off(pieces: Pieces) -> list[str]:
    """Return what switching the state off costs."""
    lines = []
    for method in study.COMPARED[1:]:
        if of_seeds := of_method(pieces, method):
            off, on = (losses(of_seeds, list(of_seeds), key) for key in ("state_off", "test"))
            cells = [shown(difference(off[..., k], on[..., k])) for k in range(len(study.BANDS))]
            lines.append([NAMES[method], ", ".join(map(str, of_seeds)), *cells])
    if not lines:
        return []
    text = (
        "Loss with the state switched off minus loss as trained, without further training; above zero, the "
        f"state helps. Without its state, {NAMES[study.HRM]} is the base."
    )
    return [paragraph(text), table(["", "seeds", *bands()], lines)]


def memory(pieces: Pieces) -> list[str]:
    """Return the time constants of the states."""
    lines = []
    for method in study.COMPARED[1:]:
        if of_seeds := of_method(pieces, method):
            scales = np.array([piece["time_scales"] for piece in of_seeds.values()])
            middle, tenth, longest = (np.median(scales[:, k]) for k in (5, 9, 10))
            lines.append([NAMES[method], f"{middle:.3g}", f"{tenth:.3g}", f"{longest:.3g}"])
    if not lines:
        return []
    text = "Time constants -1 / log|a| of the states after training, in tokens, median over seeds:"
    return [paragraph(text), table(["", "half are below", "nine tenths are below", "the longest"], lines)]


def missing(pieces: Pieces) -> list[str]:
    """Return what is not there."""
    wanted = [study.path_of(method, seed).stem for method, seed in study.pieces() if method]
    there = sum(name in pieces for name in wanted)
    lines = [f"trainings: {there or 'none'} of {len(wanted)} {'are' if there > 1 else 'is'} there"]
    lines += [
        "a rate of its own for each method, longer training, other texts, a base whose attention does not "
        "reach as far as the row, and "
        f"{listed(NAMES[m] for m in study.METHODS if m not in study.COMPARED)}",
    ]
    return [bullets(lines)]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(finished()), encoding="utf-8")


if __name__ == "__main__":
    main()
