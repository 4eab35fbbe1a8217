"""The report of a comparison: tables, a figure and a summary in JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hankelred._util.writing import write_atomically

from .statistics import FEWEST_SEEDS

if TYPE_CHECKING:
    from .compare import Comparison, Line

_HEADINGS = (
    "method",
    "r",
    "parameters",
    "rate",
    "{metric}",
    "minus reference",
    "over seeds",
    "over {units}",
    "s/step",
    "MiB",
    "file MiB",
    "forgetting",
)


def write_reports(comparison: Comparison) -> None:
    """Write table.md, scores.png and summary.json into the folder of a comparison."""
    folder = comparison.folder
    write_atomically(
        folder / "table.md", lambda n: Path(n).write_text(markdown(comparison), encoding="utf-8")
    )
    content = json.dumps(summary(comparison), indent=2)
    write_atomically(folder / "summary.json", lambda n: Path(n).write_text(content, encoding="utf-8"))
    write_atomically(folder / "scores.png", lambda n: draw(comparison).savefig(n, format="png"))


def headline(comparison: Comparison) -> str:
    """Return the settings that all methods have in common, as a sentence."""
    s = comparison.settings
    first = next(iter(comparison.lines.values()))[0]
    return (
        f"{s.task} on {s.model}: {first.parameters:,} parameters within 2 %, {s.steps} steps of "
        f"{s.batch_size} rows of length {s.length}, {len(s.seeds)} seeds, weight decay {s.weight_decay:g}; "
        f"reference: {comparison.reference}"
    )


def caption(comparison: Comparison, length: int) -> str:
    """Return the caption of the scores of one length: sizes, context, truncation, evidence, baselines."""
    split = comparison.splits[length]
    parts = [
        f"{split['split']}, {split['examples']} rows of {split['documents']} documents",
        f"context {split['context_mean']:.0f} tokens, at most {split['context_max']}",
    ]
    if split["cut_share"]:
        parts.append(
            f"{split['cut_share']:.0%} of rows truncated, by {split['cut_mean']:.0f} tokens on average"
        )
    if split["evidence_share"] is not None:
        parts.append(
            f"{split['evidence_share']:.0%} of the marked evidence left, none of it in "
            f"{split['evidence_none']:.0%} of rows"
        )
    baselines = ", ".join(
        f"{name} {values[comparison.metric]:.3f}" for name, values in split["floors"].items()
    )
    return "; ".join([*parts, f"trivial baselines: {baselines}"])


def rows(comparison: Comparison, length: int) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the table of one length."""
    lines = comparison.lines[length]
    units = next((line.difference.resampled for line in lines if line.difference), "units")
    headings = [h.format(metric=comparison.metric, units=units) for h in _HEADINGS]
    cells = [_cells(line) for line in lines]
    if comparison.settings.forgetting_text is None:
        return headings[:-1], [of_line[:-1] for of_line in cells]
    return headings, cells


def _cells(line: Line) -> list[str]:
    d = line.difference
    spread = "" if math.isnan(line.spread) else f" ± {line.spread:.3f}"
    return [
        line.method,
        line.ranks,
        f"{line.parameters:,}",
        f"{line.learning_rate:g}" + (" (edge)" if line.at_edge else ""),
        f"{line.mean:.3f}{spread}",
        "reference" if d is None else f"{d.mean:+.3f}" + (" *" if d.clear else ""),
        "" if d is None or d.over_seeds is None else _interval(d.over_seeds),
        "" if d is None else _interval(d.over_units),
        f"{line.seconds:.3g}",
        "" if line.memory is None else f"{line.memory / 2**20:.0f}",
        f"{line.file_size / 2**20:.2g}",
        "" if line.forgetting is None else f"{line.forgetting:+.3f}",
    ]


def _interval(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"


def tables(comparison: Comparison) -> Group:
    """Return the tables of all lengths for a console."""
    shown: list[Any] = [Text(headline(comparison))]
    for length in comparison.lines:
        headings, cells = rows(comparison, length)
        table = Table(title=f"length {length}", title_justify="left", caption=caption(comparison, length))
        table.caption_justify = "left"
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="left" if i == 0 else "right")
        for row in cells:
            table.add_row(*row)
        shown.append(table)
    return Group(*shown, Text(FOOTNOTE))


FOOTNOTE = (
    "± is the standard deviation over seeds. The 95 % intervals are of paired differences: over seeds by "
    "Student's t, over units or documents by bootstrap. * marks differences for which both intervals exclude "
    f"zero, of at least {FEWEST_SEEDS} seeds. (edge): the first or last of the learning rates that were "
    "tried."
)


def markdown(comparison: Comparison) -> str:
    """Return the tables of all lengths as Markdown."""
    text = [headline(comparison), ""]
    for length in comparison.lines:
        headings, cells = rows(comparison, length)
        text += [f"**Length {length}.** {caption(comparison, length)}", ""]
        text += [_row(headings), _row(["---", *["---:"] * (len(headings) - 1)]), *map(_row, cells), ""]
    return "\n".join([*text, FOOTNOTE, ""])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def summary(comparison: Comparison) -> dict[str, Any]:
    """Return the content of the tables as a dict, for JSON."""
    return {
        "settings": asdict(comparison.settings),
        "metric": comparison.metric,
        "higher_is_better": comparison.higher_is_better,
        "reference": comparison.reference,
        "lengths": {
            str(length): {
                "split": comparison.splits[length],
                "methods": [
                    {
                        **asdict(line),
                        "mean": line.mean,
                        "spread": None if math.isnan(line.spread) else line.spread,
                        "clear": line.difference.clear if line.difference else None,
                    }
                    for line in lines
                ],
            }
            for length, lines in comparison.lines.items()
        },
    }


def draw(comparison: Comparison) -> Any:
    """Return a figure: a panel per length, a row per method, a dot per seed, lines for trivial baselines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = list(comparison.lines)
    names = [line.method for line in comparison.lines[lengths[0]]]
    figure = Figure(figsize=(2 + 3.6 * len(lengths), 1.6 + 0.36 * len(names)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(lengths), sharey=True, sharex=True, squeeze=False)[0]
    colors = ["0.75", "0.55", "0.35"]
    for ax, length in zip(axes, lengths, strict=True):
        baselines = comparison.splits[length]["floors"]
        for (name, values), color in zip(baselines.items(), colors, strict=False):
            ax.axvline(
                values[comparison.metric], color=color, linestyle="--", linewidth=1, label=f"baseline: {name}"
            )
        for i, line in enumerate(comparison.lines[length]):
            color = "tab:blue" if "hrm" in line.method else "tab:orange"
            ax.plot(line.scores, [i] * len(line.scores), "o", color=color, alpha=0.45, markersize=5)
            ax.plot([line.mean], [i], "|", color=color, markersize=16, markeredgewidth=2.5)
        ax.set_title(f"length {length}")
        ax.set_xlabel(comparison.metric.replace("_", " "))
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)  # the first method on top
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    better = "right" if comparison.higher_is_better else "left"
    figure.suptitle(
        f"{comparison.settings.task}: dots are seeds, bars are means; further {better} is better",
        fontsize=10,
    )
    return figure
