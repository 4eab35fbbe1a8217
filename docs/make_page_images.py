"""Make the pictures of tutorials and how-to pages again: `python docs/make_page_images.py [NAME ...]`.

Where a page has an example, its code is run and its variables are drawn, so that picture and text agree. The
pictures are small and have few colors, because they are part of the source archive.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import itertools
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import hankelred
from hankelred.plotting.draw import BOUND, ERROR, FULL, NOISE, REDUCED, SERIES

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_images import HERE, save


def variables(page: str, until: str = "") -> dict[str, Any]:
    """Run the examples of a page, up to a line of text, and return their variables."""
    text = (HERE / f"{page}.md").read_text(encoding="utf-8")
    if until:
        text = text[: text.index(until)]
    code = "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {"__name__": page}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        try:
            for example in doctest.DocTestParser().get_examples(code):
                with contextlib.suppress(hankelred.HankelredError):  # examples of errors
                    exec(example.source, names)
        finally:
            os.chdir(before)
    return names


def axes_of(columns: int = 2, height: float = 3.0, **options: Any) -> Any:
    """Return a figure of the width of the text, and its axes."""
    from matplotlib import pyplot

    pyplot.close("all")
    return pyplot.subplots(1, columns, figsize=(9, height), layout="constrained", **options)


def finish(figure: Any, name: str) -> None:
    """Write the picture of a page."""
    for ax in figure.axes:
        legend = ax.get_legend()
        if legend is not None:
            for label in legend.get_texts():
                label.set_fontsize("small")
    save(figure, name)


def tutorial_order() -> None:
    """Draw the spectrum of the ten masses with the chosen order, and what the reduction loses."""
    page = variables("tutorial_order")
    figure, (left, right) = axes_of()
    hankelred.plot_hankel_singular_values(page["plant"], order=page["reduction"].order, ax=left)
    hankelred.plot_reduction(page["reduction"], ax=right)
    finish(figure, "tutorial_order")


def tutorial_record() -> None:
    """Draw the output that was set aside, measured and simulated, and the residual."""
    page = variables("tutorial_record")
    figure, (left, right) = axes_of(width_ratios=[1.6, 1])
    comparison, dt = page["comparison"], 0.4
    t = dt * np.arange(comparison.output.shape[1])
    left.plot(t, page["y_new"], ".", color=FULL, markersize=4, label="measured")
    left.plot(t, comparison.output[0], color=REDUCED, linewidth=1.4, label="simulated")
    left.plot(t, page["residual"] + 12, color=ERROR, linewidth=0.8, label="residual, at 12")
    left.set(xlabel="time (s)", ylabel="position", title=f"not used to estimate: fit {comparison.fit[0]:.2f}")
    left.margins(y=0.2)
    left.legend(loc="upper center", ncols=3)
    hankelred.plot_hankel_singular_values(page["model"], order=page["model"].order, ax=right)
    finish(figure, "tutorial_record")


def tutorial_simulator() -> None:
    """Draw singular values of the simulator, and outputs of reduced models for inputs that were not used."""
    page = variables("tutorial_simulator")
    figure, (left, right) = axes_of(width_ratios=[1, 1.6])
    hankelred.plot_hankel_singular_values(page["gramians"], order=3, ax=left)
    left.get_legend().set_loc("lower left")
    t = page["step"] * np.arange(page["u"].shape[1])
    right.plot(t, page["y"][0], color=FULL, linewidth=2, label="full, 12 states")
    for order, color in ((1, SERIES[3]), (2, ERROR), (3, REDUCED)):
        reduced = page["gramians"].reduce(order)
        rate = reduced.right_hand_side(page["rate"])
        z = page["integrate"](rate, reduced.restrict(np.zeros(12)), page["u"])
        states = f"{order} state{'s' * (order > 1)}"
        right.plot(t, reduced.lift(z)[4], "--", color=color, linewidth=1.2, label=states)
    right.set(xlabel="time (s)", ylabel="temperature of the fifth piece")
    right.legend(loc="best", ncols=2)
    finish(figure, "tutorial_simulator")


def simulators() -> None:
    """Draw outputs of a chain of tanks for two steps, and singular values of both sizes."""

    def f(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        outflow = np.sqrt(np.maximum(x, 0))
        change: np.ndarray = np.concatenate([u, outflow[:-1]]) - outflow
        return change

    simulate = hankelred.simulator_from_rhs(f, 0.25, output=lambda x, u: x[-1], solver="rk4")
    figure, (left, right) = axes_of()
    t = 0.25 * np.arange(160)
    for size, color in ((0.1, FULL), (0.5, REDUCED)):
        for sign in (1, -1):
            y = simulate(np.ones(5), np.full((1, t.size), 1 + sign * size))[1][0]
            label = f"inflow changed by {size:.0%}" if sign > 0 else None
            left.plot(t, (y - 1) / size, color=color, linewidth=1.4, label=label)
        grams = hankelred.empirical_gramians(
            simulate,
            step=0.25,
            horizon=80.0,
            steady_state=np.ones(5),
            steady_input=[1.0],
            input_scales=size,
            state_scales=size,
            excitation="step",
        )
        values = grams.hankel_singular_values
        right.semilogy(np.arange(1, 6), values, "o-", color=color, label=f"experiments of {size:.0%}")
    left.set(xlabel="time (s)", ylabel="level change / inflow change")
    left.legend(loc="center right")
    right.set(xlabel="order $k$", ylabel="Hankel singular value", xticks=range(1, 6))
    right.legend()
    finish(figure, "simulators")


def clusters() -> None:
    """Draw times on two workers, as bench_clusters.py measured them."""
    results = json.loads((HERE / "results" / "clusters.json").read_text(encoding="utf-8"))
    figure, ax = axes_of(1, 2.2)
    names = list(results["seconds"])
    ax.barh(names[::-1], [results["seconds"][name] for name in names[::-1]], color=FULL, height=0.6)
    for k, name in enumerate(names[::-1]):
        ax.text(
            results["seconds"][name], k, f" {results['seconds'][name]:.1f} s", va="center", fontsize="small"
        )
    ax.set(xlabel="processor time of the calling process and the busier worker (s)")
    ax.spines[["top", "right"]].set_visible(False)
    finish(figure, "clusters")


def descriptor() -> None:
    """Draw the ladder filter of the page, its reduced model and the error."""
    page = variables("descriptor", until=">>> E[0, 0] = 2e-12")
    figure, (left, right) = axes_of()
    hankelred.plot_hankel_singular_values(page["reduction"], order=page["reduction"].order, ax=left)
    left.get_legend().set_loc("lower left")
    hankelred.plot_reduction(page["reduction"], ax=right)
    finish(figure, "descriptor")


def modal() -> None:
    """Draw poles of the modal system of the page and of its reduced model, and their impulse responses."""
    page = variables("modal", until=">>> A, B, C = (")
    figure, (left, right) = axes_of()
    t = np.linspace(0, 12, 400)
    for system, color, mark, label in (
        (page["system"], FULL, "o", "4 states"),
        (page["reduction"].system, REDUCED, "x", "2 states"),
    ):
        poles = np.asarray(system.log_poles)
        left.plot(poles.real, poles.imag, mark, color=color, label=label, markersize=8, fillstyle="none")
        C, B = np.asarray(system.C), np.asarray(system.B)
        right.plot(t, np.real(np.exp(np.outer(t, poles)) @ (C[0] * B[:, 0])), color=color, label=label)
    left.axvline(0, color=NOISE)
    left.set(xlabel="real part of the poles (1/s)", ylabel="imaginary part (rad/s)")
    right.set(xlabel="time (s)", ylabel="impulse response")
    left.legend()
    right.legend()
    finish(figure, "modal")


def box(ax: Any, x: float, y: float, text: str, color: str, width: float = 2.4, height: float = 0.8) -> None:
    """Draw a block of a diagram around its center."""
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    shape = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.05", fc="white", ec=color, lw=1.6)
    ax.add_patch(shape)
    ax.text(x, y, text, ha="center", va="center", fontsize=10)


def arrow(ax: Any, *points: tuple[float, float], color: str = "black") -> None:
    """Draw a line through points that ends in an arrow."""
    for start, end in itertools.pairwise(points[:-1]):
        ax.plot([start[0], end[0]], [start[1], end[1]], color=color, lw=1.2)
    ax.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "->", "color": color, "lw": 1.2})


def diagram(width: float, height: float) -> Any:
    """Return a figure and axes without frame for a diagram of this size."""
    figure, ax = axes_of(1, 9 * height / width)
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return figure, ax


def adapter() -> None:
    """Draw one decoder layer with the adapter in parallel to its MLP, for three tokens."""
    figure, ax = diagram(15, 4.6)
    for k, x in enumerate((2.6, 7.2, 11.8)):
        token = ("$t-1$", "$t$", "$t+1$")[k]
        ax.text(x - 0.6, 0.1, f"token {token}", ha="center", fontsize=10)
        arrow(ax, (x - 0.6, 0.4), (x - 0.6, 2.6))
        box(ax, x - 0.6, 3.0, "MLP (frozen)", FULL)
        box(ax, x + 1.2, 1.5, "state $s$", REDUCED, 1.5)
        arrow(ax, (x - 0.6, 0.75), (x + 1.2, 0.75), (x + 1.2, 1.05), color=REDUCED)
        ax.text(x + 0.3, 0.84, "$B$", color=REDUCED, fontsize=10)
        arrow(ax, (x + 1.2, 1.95), (x + 1.2, 4.0), (x - 0.45, 4.0), color=REDUCED)
        ax.text(x + 0.75, 4.08, "gate $C$", color=REDUCED, fontsize=10, ha="center")
        arrow(ax, (x - 0.6, 3.45), (x - 0.6, 3.85))
        ax.text(x - 0.6, 4.0, "+", ha="center", va="center", fontsize=14)
        arrow(ax, (x - 0.6, 4.15), (x - 0.6, 4.55))
        if k < 2:
            arrow(ax, (x + 2.05, 1.5), (x + 4.98, 1.5), color=REDUCED)
            ax.text(x + 2.35, 1.6, "$A$", color=REDUCED, fontsize=10)
    arrow(ax, (1.6, 1.5), (2.98, 1.5), color=REDUCED)
    finish(figure, "adapter")


def parallel() -> None:
    """Draw a sequence over three processes: attention sees all parts, the state goes from one to the next."""
    figure, ax = diagram(15, 3.4)
    for k, x in enumerate((2.4, 7.4, 12.4)):
        box(ax, x, 2.6, f"process {k}: tokens {k * 1000} to {k * 1000 + 999}", FULL, 4.3)
        box(ax, x, 0.9, "states of these tokens", REDUCED, 3.4)
        arrow(ax, (x, 2.15), (x, 1.38))
        if k < 2:
            arrow(ax, (x + 1.78, 0.9), (x + 3.22, 0.9), color=REDUCED)
            ax.text(x + 2.5, 0.35, "last state", color=REDUCED, ha="center", fontsize=10)
            ax.annotate("", (x + 2.78, 2.6), (x + 2.22, 2.6), arrowprops={"arrowstyle": "<->", "lw": 1.2})
    ax.text(7.4, 3.2, "attention over all tokens", ha="center", fontsize=10)
    finish(figure, "parallel")


def mistral_memory() -> None:
    """Draw the table of the memory of Mistral-7B, at the first of its lengths and at the last."""
    text = (HERE / "mistral_7b.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (no|yes) \| [\d.]+ \| ([\d./ ]+) \| ([\d./ ]+) \|$", text, re.MULTILINE)
    figure, axes = axes_of(2, 2.8, sharey=True)
    for ax, kept, title in zip(axes, ("no", "yes"), ("without", "with"), strict=True):
        chosen = [row for row in rows if row[1] == kept][::-1]
        for base, color, shift, label in (
            (2, FULL, 0.2, "base in bfloat16"),
            (3, REDUCED, -0.2, "base in 4 bits"),
        ):
            first = [float(row[base].split("/")[0]) for row in chosen]
            ax.barh(np.arange(len(chosen)) + shift, first, 0.36, color=color, label=label)
        ax.set_yticks(range(len(chosen)), [row[0] for row in chosen], fontsize="small")
        ax.axvline(24, color=BOUND, linestyle=":", label="24 GB")
        ax.set(xlabel="GB, shortest rows of the table", title=f"{title} gradient checkpointing", xlim=(0, 42))
    axes[1].legend(loc="lower right")
    finish(figure, "mistral_memory")


def identification() -> None:
    """Draw the process of the page and the model of its noisy record, and the gain with its errors."""
    page = variables("identification", until="`model.response_errors(omega)` is")
    figure, (left, right) = axes_of(width_ratios=[1.4, 1])
    model, t = page["noisy"], 0.1 * np.arange(page["y"].size)
    comparison = model.compare(page["u"], page["y"])
    left.plot(t[:150], page["y"][:150], color=FULL, linewidth=2.4, label="process, without noise")
    left.plot(t[:150], comparison.output[0, :150], "--", color=REDUCED, linewidth=1.4, label="model")
    left.set(xlabel="time (s)", ylabel="output", title="estimated from a record with noise")
    left.margins(y=0.25)
    left.legend(loc="upper center", ncols=2)
    model.plot_response(ax=right)
    finish(figure, "identification")


def serving() -> None:
    """Draw the table of what a token costs: the time that each adapter adds to the base model."""
    text = (HERE / "serving.md").read_text(encoding="utf-8")
    number = r"([\d.]+) \(([\d.]+) to ([\d.]+)\)"
    row = rf"^\| (.+?) \| [\d, ]*\| [\d.]+ \| {number} \| [\d.]+ \| {number} \| [\d.]+ \|$"
    rows = re.findall(row, text, re.MULTILINE)[::-1]
    figure, axes = axes_of(2, 2.4, sharey=True)
    for ax, first, title in zip(axes, (1, 4), ("a batch of 1", "a batch of 8"), strict=True):
        middle, low, high = np.array([cells[first : first + 3] for cells in rows], dtype=float).T
        spread = [middle - low, high - middle]
        ax.barh(range(len(rows)), middle, xerr=spread, color=FULL, ecolor="black", height=0.6)
        ax.set(xlabel="added to the base (ms a token)", title=title, xlim=(0, 22))
    names = [cells[0].split(":")[0].replace("the same", "both in one") for cells in rows]
    axes[0].set_yticks(range(len(rows)), names, fontsize="small")
    finish(figure, "serving")


PAGES = (
    identification,
    serving,
    tutorial_order,
    tutorial_record,
    tutorial_simulator,
    simulators,
    clusters,
    descriptor,
    modal,
    adapter,
    parallel,
    mistral_memory,
)

if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    chosen = sys.argv[1:]
    for draw in PAGES:
        if not chosen or draw.__name__ in chosen:
            draw()
