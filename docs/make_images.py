"""Make the pictures of the documentation again: `python docs/make_images.py`.

Everything in them comes from hankelred and systems by formula. Those of the pages of the methods are made by
`docs/make_method_images.py`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import hankelred
from hankelred.plotting.draw import BOUND, ERROR, FULL, REDUCED

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

HERE = Path(__file__).resolve().parent
IMAGES = HERE / "images"
#: pixels of the column of text, to which wider pictures are shrunk, and of the smallest text that is legible
COLUMN, LEGIBLE = 736, 9
DPI = 100


def masses(count: int = 3, damping: float = 0.02) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return masses between springs and walls; force on the first, position of the last."""
    stiffness = 2 * np.eye(count) - np.eye(count, k=1) - np.eye(count, k=-1)
    A = np.block(
        [
            [np.zeros((count, count)), np.eye(count)],
            [-stiffness, -damping * np.eye(count) - damping * stiffness],
        ]
    )
    B, C = np.zeros((2 * count, 1)), np.zeros((1, 2 * count))
    B[count, 0] = C[0, count - 1] = 1.0
    return A, B, C, np.zeros((1, 1))


def line(n: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return heat on a rod: heated at one end, the temperature measured in the same place."""
    h = 1 / (n + 1)
    A = (np.eye(n, k=1) + np.eye(n, k=-1) - 2 * np.eye(n)) / h**2
    B, C = np.zeros((n, 1)), np.zeros((1, n))
    B[0, 0], C[0, 0] = 1 / h, 1.0
    return A, B, C, np.zeros((1, 1))


def spectrum() -> None:
    """Draw the best past inputs and what they leave behind, beside the singular values."""
    from matplotlib import pyplot

    system = masses()
    A, B, C, _ = hankelred.balanced_realization(system)
    values = hankelred.hankel_singular_values(system)
    step, samples = 0.05, 800
    t = np.arange(samples) * step
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for k, colour in ((0, FULL), (2, REDUCED), (4, ERROR)):
        start = np.eye(A.shape[0])[:, k] * np.sqrt(values[k])
        later = hankelred.simulate((A, B, C, 0.0), np.zeros(samples), x0=start, step=step)
        # the input of unit energy that reaches this state: the dual system run backwards
        first = hankelred.simulate((A.T, C.T, B.T, 0.0), np.zeros(samples), x0=start / values[k], step=step)
        left.plot(-t, first, color=colour, linewidth=1)
        left.plot(t, later, color=colour, linewidth=1, label=f"$\\sigma_{k + 1}$ = {values[k]:.2f}")
    left.axvline(0, color="black", linewidth=0.8)
    left.set(
        xlabel="time (s)",
        title="input before 0, output after 0",
        ylabel="input of unit energy, output",
    )
    left.legend(loc="upper left", fontsize="small")
    hankelred.plot_hankel_singular_values(system, ax=right)
    save(figure, "spectrum")


def order() -> None:
    """Draw the two kinds of spectra one meets: one with a gap, one that decays evenly."""
    from matplotlib import pyplot

    # two strong resonances and twenty weak ones
    poles = np.concatenate([[-0.05 + 1j, -0.05 + 3j], -0.2 + 1j * np.linspace(5, 40, 20)])
    gains = np.concatenate([[1.0, 1.0], np.geomspace(0.02, 0.005, 20)])
    poles = np.column_stack([poles, poles.conj()]).ravel()
    gains = np.repeat(gains, 2)
    gap = hankelred.ModalSystem(poles, gains, gains, dt=0)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    chosen = hankelred.select_order(hankelred.hankel_singular_values(gap), gap=True)
    hankelred.plot_hankel_singular_values(gap, order=chosen, ax=left)
    left.set_title("A gap: two resonances stand out")
    hankelred.plot_hankel_singular_values(line(), tol=1e-6, ax=right)
    right.set_title("No gap: a tolerance decides")
    save(figure, "order")


def certificate() -> None:
    """Draw full, reduced, error and bound of a system whose error reaches the bound."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, system in zip(axes, (line(), masses(6)), strict=True):
        hankelred.plot_reduction(hankelred.reduce(system, rtol=0.3), ax=ax)
    axes[0].set_title("Heat on a rod: the bound is reached at frequency 0")
    axes[1].set_title("Six masses: the bound is above the error")
    save(figure, "certificate")


def methods() -> None:
    """Draw the errors of every method on a chain of masses, with a band."""
    comparison = hankelred.compare_methods(masses(8), 6, band=(0.9, 1.1))
    axes = comparison.plot()
    axes.set_xlim(0.1, 10)
    axes.set_ylim(1e-8, 1e2)
    axes.legend(loc="lower left", fontsize="x-small", ncols=2)
    save(axes.figure, "methods")


def explore() -> None:
    """Draw the interactive figure at one order, for `docs/order.md`."""
    explorer = hankelred.explore(hankelred.reduce(line(), order=3))
    explorer.figure.set_size_inches(9, 4.8)
    save(explorer.figure, "explore")


#: a million states of the heat equation, by `python benchmarks/bench_large.py --million`
MILLION = {"seconds": 8.3 * 60, "gigabytes": 4.7}


def large_scaling() -> None:
    """Draw time and memory against the number of states, as bench_large_scaling.py measured them."""
    from matplotlib import pyplot

    results = json.loads((HERE / "results" / "large_scaling.json").read_text())
    names = {"hankelred": "hankelred, low rank", "pymor": "pyMOR", "dense": "hankelred, dense"}
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, key, label in zip(
        axes, ("seconds", "gigabytes"), ("processor time (s)", "memory (GB)"), strict=True
    ):
        for (package, name), color in zip(names.items(), (FULL, REDUCED, ERROR), strict=True):
            points = [point for point in results[package].values() if point is not None]
            ax.loglog(
                [point["states"] for point in points],
                [point[key] for point in points],
                "o-",
                color=color,
                label=name,
            )
        ax.loglog(1e6, MILLION[key], "o", color=FULL, fillstyle="none", label="hankelred, another run")
        ax.set(xlabel="states", ylabel=label)
        ax.grid(alpha=0.3)
    axes[0].axhline(120, color=BOUND, linestyle=":", label="limit of pyMOR and the dense solver")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    save(figure, "large_scaling")


def save(figure: Figure, name: str) -> None:
    """Write one picture, whose text must be legible where it is shown."""
    from PIL import Image

    smallest = smallest_text(figure)
    if smallest < LEGIBLE:
        raise ValueError(
            f"text of {smallest:.1f} pixels in {name}.png; draw it larger, or the figure smaller"
        )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    write_opaque(Image.open(drawn), name)


def smallest_text(figure: Figure) -> float:
    """Return the size in pixels of the smallest text, where the figure is shown in the column of a page."""
    from matplotlib.text import Text

    shrunk = min(1.0, COLUMN / (figure.get_figwidth() * DPI))
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return min(text.get_fontsize() for text in texts) * DPI / 72 * shrunk


def write_opaque(picture: Image.Image, name: str) -> None:
    """Write a picture in a few colors and without transparency: a third as large in the source archive."""
    in_few_colors(picture.convert("RGB")).save(IMAGES / f"{name}.png", optimize=True)


def in_few_colors(picture: Image.Image, colors: int = 16) -> Image.Image:
    """Return a picture in its most frequent colors that are distinct.

    Pillow's own choice of colors takes means of neighbors: curves of similar colors became the same.
    """
    from PIL import Image

    counted = sorted(picture.getcolors(picture.width * picture.height) or [], reverse=True)
    distance, palette = 60, []
    while len(palette) < min(colors, len(counted)) and distance > 1:
        for _, color in counted:
            if len(palette) < colors and all(
                sum(abs(a - b) for a, b in zip(color, other, strict=True)) >= distance for other in palette
            ):
                palette.append(color)
        distance //= 2
    mapped = Image.new("P", (1, 1))
    mapped.putpalette([value for color in palette for value in color])
    return picture.quantize(palette=mapped, dither=Image.Dither.NONE)


def demo() -> None:
    """Take the picture of `make demo`."""
    from PIL import Image

    script = HERE.parent / "examples" / "demo.py"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(script), "--out", folder], check=True)
        write_opaque(Image.open(Path(folder) / "reduction.png"), "demo")


#: examples whose picture stands in the gallery
GALLERY = (
    "record_to_model",
    "impulse_response_to_model",
    "nonlinear_rc_ladder",
    "membrane_to_model",
    "long_simulation",
    "ranks_from_data",
    "system_as_adapter",
)


def gallery() -> None:
    """Run the examples of the gallery and take their pictures, small and in few colors."""
    from PIL import Image

    for name in GALLERY:
        script = HERE.parent / "examples" / f"{name}.py"
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, str(script)], check=True, cwd=folder)
            picture = Image.open(next(Path(folder).rglob("*.png"))).convert("RGB")
            size = COLUMN, picture.height * COLUMN // picture.width
            write_opaque(picture.resize(size, Image.Resampling.LANCZOS), name)


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    IMAGES.mkdir(exist_ok=True)
    spectrum()
    order()
    certificate()
    methods()
    explore()
    large_scaling()
    demo()
    gallery()
