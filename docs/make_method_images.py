"""Make the pictures of the pages of the methods again: `python docs/make_method_images.py`.

Each shows the example of its page. They are small and have few colors, because they are part of the source
archive.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg

import hankelred
from hankelred.plotting.draw import BOUND, ERROR, FULL, REDUCED, SERIES

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_images import IMAGES, line, masses, save

FIRST, SECOND, THIRD, SHADE = REDUCED, ERROR, SERIES[2], "#E6E6E6"
Model = tuple[Any, ...]


def response(model: Model, w: np.ndarray) -> np.ndarray:
    """Return the response of a continuous model with one input and one output at angular frequencies."""
    A, B, C, D = (np.atleast_2d(M) for M in model)
    eye = np.eye(len(A))
    return np.array([(C @ np.linalg.solve(1j * x * eye - A, B) + D).item() for x in w])


def draw(name: str, curves: list[tuple[np.ndarray, np.ndarray, str, str]], **settings: Any) -> None:
    """Write a picture of curves (x, y, color, label); bounds and reduced models are dashed."""
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(6, 3), layout="constrained")
    finish = settings.pop("finish", None)
    for x, y, color, label in curves:
        style = "--" if label.startswith(("bound", "reduced", "gap_bound", "relative_error_bound")) else "-"
        ax.plot(x, y, style, color=color, linewidth=1.2, label=label)
    ax.set(**settings)
    if finish is not None:
        finish(ax)
    ax.legend(fontsize="x-small", loc="best")
    save(figure, f"method_{name}")
    pyplot.close(figure)


def errors(full: Model, reductions: dict[str, Any], w: np.ndarray) -> list[Any]:
    """Return the curves of the gain of the full model and of the error of each reduction."""
    G = response(full, w)
    curves = [(w, np.abs(G), FULL, "full")]
    for color, (label, reduction) in zip((FIRST, SECOND, THIRD), reductions.items(), strict=False):
        curves.append((w, np.abs(G - response(reduction.system, w)), color, f"error, {label}"))
    return curves


FREQUENCY = {"xscale": "log", "yscale": "log", "xlabel": "angular frequency (rad/s)", "ylabel": "gain"}


def truncation() -> None:
    """Draw the error of truncation, and its bound at every frequency."""
    rod, w = line(), np.geomspace(1e-2, 1e6, 300)
    reduction = hankelred.reduce(rod, 4)
    G, H = response(rod, w), response(reduction.system, w)
    curves = [
        (w, np.abs(G), FULL, "full"),
        (w, np.abs(H), REDUCED, "reduced, order 4"),
        (w, np.abs(G - H), ERROR, "error"),
    ]
    bound = np.full(w.size, reduction.error_bound)
    draw("truncation", [*curves, (w, bound, BOUND, "bound")], **FREQUENCY, ylim=(1e-8, 10))


def residualization() -> None:
    """Draw the errors of truncation and residualization: one vanishes at infinity, the other at zero."""
    rod, w = line(), np.geomspace(1e-2, 1e6, 300)
    runs = {m: hankelred.reduce(rod, 4, method=m) for m in ("residualization", "truncation")}
    draw("residualization", errors(rod, runs, w), **FREQUENCY, ylim=(1e-8, 10))


def frequency_limited() -> None:
    """Draw the errors inside and outside a band."""
    chain, w, band = masses(8), np.geomspace(0.1, 10, 900), (0.9, 1.1)
    runs = {
        "frequency_limited": hankelred.reduce(chain, 6, method="frequency_limited", band=band),
        "truncation": hankelred.reduce(chain, 6),
    }

    def shade(ax: Any) -> None:
        ax.axvspan(*band, color=SHADE, label="band")

    draw("frequency_limited", errors(chain, runs, w), **FREQUENCY, ylim=(1e-7, 1e2), finish=shade)


def time_limited() -> None:
    """Draw the errors of the impulse response up to a horizon and after it."""
    chain, step, samples, horizon = masses(8), 0.05, 500, 6.0
    t = step * np.arange(samples)
    full = hankelred.impulse_response(chain, samples, step=step)[:, 0, 0]
    curves = [(t, np.abs(full), FULL, "full")]
    for method, color in (("time_limited", FIRST), ("truncation", SECOND)):
        options = {"horizon": horizon} if method == "time_limited" else {}
        reduced = hankelred.reduce(chain, 8, method=method, **options).system
        apart = full - hankelred.impulse_response(reduced, samples, step=step)[:, 0, 0]
        curves.append((t, np.abs(apart), color, f"error, {method}"))

    def shade(ax: Any) -> None:
        ax.axvspan(0, horizon, color=SHADE, label="horizon")

    draw(
        "time_limited",
        curves,
        yscale="log",
        ylim=(1e-7, 3),
        xlabel="time after an impulse (s)",
        ylabel="size of the output",
        finish=shade,
    )


def frequency_weighted() -> None:
    """Draw the weighted errors."""
    chain, w = masses(8), np.geomspace(0.02, 10, 900)
    slow = ([[-0.5]], [[0.5]], [[1.0]], 0)
    runs = {
        "frequency_weighted": hankelred.reduce(chain, 6, method="frequency_weighted", input_weight=slow),
        "truncation": hankelred.reduce(chain, 6),
    }
    curves = errors(chain, runs, w)
    weight = np.abs(response(slow, w))
    curves = [(x, y * weight, color, f"{label}, weighted") for x, y, color, label in curves]
    draw("frequency_weighted", [*curves, (w, weight, THIRD, "weight")], **FREQUENCY, ylim=(1e-5, 20))


def attenuator() -> Model:
    """Return eight lead-lag elements in series, whose gain falls from 1 to 3e-6."""
    A, B, C, D = np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), np.eye(1)
    for pole in np.geomspace(0.1, 1000, 8):  # each is (s / 5 + pole) / (s + pole)
        A = np.block([[A, np.zeros((len(A), 1))], [0.8 * pole * C, -pole]])
        B, C, D = np.vstack([B, 0.8 * pole * D]), np.hstack([C / 5, [[1.0]]]), D / 5
    return A, B, C, D


def stochastic() -> None:
    """Draw the relative errors and the bound."""
    path, w = attenuator(), np.geomspace(1e-3, 1e6, 500)
    G, curves = response(path, w), []
    relative = hankelred.reduce(path, 4, method="stochastic")
    for label, color, reduction in (
        ("stochastic", FIRST, relative),
        ("truncation", SECOND, hankelred.reduce(path, 4)),
    ):
        curves.append((w, np.abs((G - response(reduction.system, w)) / G), color, f"relative error, {label}"))
    bound = np.full(w.size, relative.relative_error_bound)
    curves += [(w, bound, BOUND, "relative_error_bound"), (w, np.abs(G), FULL, "full")]
    draw("stochastic", curves, **{**FREQUENCY, "ylabel": "gain or share"}, ylim=(1e-7, 10))


def hankel_norm() -> None:
    """Draw the errors of the optimal approximation and of truncation."""
    rod, w = line(), np.geomspace(1e-2, 1e6, 300)
    runs = {m: hankelred.reduce(rod, 3, method=m) for m in ("hankel_norm", "truncation")}
    curves = errors(rod, runs, w)
    bound = np.full(w.size, runs["hankel_norm"].error_bound)
    draw("hankel_norm", [*curves, (w, bound, BOUND, "bound, hankel_norm")], **FREQUENCY, ylim=(1e-8, 10))


def plant_with_integrator() -> Model:
    """Return the chain with an integrator and an unstable pole."""
    A, B, C, D = masses(8)
    return (
        scipy.linalg.block_diag(A, 0.0, 0.1),
        np.vstack([B, [[1.0], [0.2]]]),
        np.hstack([C, [[0.5, 1.0]]]),
        D,
    )


def coprime() -> None:
    """Draw the gap between the plants over frequency, and its bound."""
    plant, w = plant_with_integrator(), np.geomspace(0.01, 20, 900)
    curves = []
    for order, color in ((8, SECOND), (14, FIRST)):
        reduction = hankelred.reduce(plant, order, method="coprime")
        G, H = response(plant, w), response(reduction.system, w)
        chordal = np.abs(G - H) / np.sqrt((1 + np.abs(G) ** 2) * (1 + np.abs(H) ** 2))
        curves.append((w, chordal, color, f"distance, order {order}"))
        curves.append((w, np.full(w.size, reduction.gap_bound), color, f"gap_bound, order {order}"))
    draw("coprime", curves, **{**FREQUENCY, "ylabel": "distance of the graphs"}, ylim=(1e-4, 10))


def modal() -> None:
    """Draw the poles that are kept."""
    chain = masses(8)
    modes = hankelred.reduce(chain, 6, method="modal").system
    poles, kept = np.linalg.eigvals(chain[0]), np.linalg.eigvals(modes[0])
    balanced = np.linalg.eigvals(hankelred.reduce(chain, 6).system[0])

    def points(ax: Any) -> None:
        ax.plot(poles.real, poles.imag, "o", color=FULL, markerfacecolor="none", label="full model")
        ax.plot(kept.real, kept.imag, "+", color=FIRST, markersize=12, label="modal, order 6")
        ax.plot(balanced.real, balanced.imag, "x", color=SECOND, label="truncation, order 6")

    draw("modal", [], xlabel="real part of the poles (1/s)", ylabel="imaginary part (rad/s)", finish=points)


def passive_model() -> Model:
    """Return a chain of masses with a direct term just large enough for a positive real part."""
    A, B, C, _ = masses(5, damping=0.1)
    lowest = response((A, B, C, 0), np.linspace(0, 5, 5000)).real.min()
    return A, B, C, 0.05 - lowest


def positive_real() -> None:
    """Draw real parts that must stay positive."""
    model, w = passive_model(), np.linspace(0, 2.5, 800)
    curves = [(w, response(model, w).real, FULL, "full")]
    for method, color in (("positive_real", FIRST), ("truncation", SECOND)):
        reduction = hankelred.reduce(model, 4, method=method)
        curves.append((w, response(reduction.system, w).real, color, f"by {method}"))

    def zero(ax: Any) -> None:
        ax.axhspan(-1, 0, color=SHADE, label="not passive")

    draw(
        "positive_real",
        curves,
        xlabel="angular frequency (rad/s)",
        ylabel="real part",
        ylim=(-0.4, 2),
        finish=zero,
    )


def scattering() -> Model:
    """Return the chain, driven through dampers, with a largest gain of 0.99."""
    A, B, C, D = masses(6, damping=0.1)
    model = A, B, C, D
    return A, 0.99 / hankelred.norm(model, "hinf") * B, C, D


def bounded_real() -> None:
    """Draw gains that must stay below one."""
    model, w = scattering(), np.linspace(0.01, 1.2, 800)
    curves = [(w, np.abs(response(model, w)), FULL, "full")]
    for method, color in (("bounded_real", FIRST), ("truncation", SECOND)):
        reduction = hankelred.reduce(model, 4, method=method)
        curves.append((w, np.abs(response(reduction.system, w)), color, f"by {method}"))

    def one(ax: Any) -> None:
        ax.axhspan(1, 2, color=SHADE, label="not bounded real")

    draw("bounded_real", curves, xlabel="angular frequency (rad/s)", ylabel="gain", ylim=(0, 1.2), finish=one)


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    warnings.simplefilter("ignore", hankelred.ReductionWarning)
    IMAGES.mkdir(exist_ok=True)
    for picture in (
        truncation,
        residualization,
        frequency_limited,
        time_limited,
        frequency_weighted,
        stochastic,
        hankel_norm,
        coprime,
        modal,
        positive_real,
        bounded_real,
    ):
        picture()
