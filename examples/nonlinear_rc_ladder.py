"""Reduce a nonlinear RC ladder from its empirical Gramians, and compare with POD of the same order.

This is a classical benchmark of nonlinear reduction: capacitors in a chain, connected by resistors and
exponential diodes in parallel, driven by a current into the first node, whose voltage is the output
(Y. Chen, *Model Order Reduction for Nonlinear Systems*, MIT, 1999). Here a second current disturbs the
far end. POD keeps the directions in which the voltages vary most, including the far end; balancing also
weighs them by their effect on the output. (Without the disturbance, input and output are at the same node
of a reciprocal circuit: the two Gramians are then equal, and balancing and POD about as accurate.)

Run ``python examples/nonlinear_rc_ladder.py [picture.png]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

import hankelred

NODES = 30
STEP = 0.005  # s
HORIZON = 45.0  # s, of the training runs
TEST = 20.0  # s
ORDERS = (1, 2, 3, 4, 5, 6, 8)


def diode(v: np.ndarray) -> np.ndarray:
    """Return the current through a resistor and a diode in parallel."""
    return np.expm1(40 * v) + v


def ladder(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the rate of the node voltages (..., nodes) under the currents (..., 2) at both ends."""
    between = diode(v[..., :-1] - v[..., 1:])
    rate = np.zeros_like(v)
    rate[..., 0] = u[..., 0] - diode(v[..., 0])
    rate[..., -1] = u[..., 1]
    rate[..., :-1] -= between
    rate[..., 1:] += between
    return rate


def integrate(f: Callable[..., np.ndarray], x0: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Runge-Kutta of fourth order; x0 (b, n), u (b, m, T) constant over each step; returns (b, n, T)."""
    out = np.empty((*x0.shape, u.shape[-1]))
    x = x0
    for k in range(u.shape[-1]):
        out[..., k] = x
        input_now = u[..., k]
        k1 = f(x, input_now)
        k2 = f(x + STEP / 2 * k1, input_now)
        k3 = f(x + STEP / 2 * k2, input_now)
        k4 = f(x + STEP * k3, input_now)
        x = x + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return out


def simulate(x0: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a batch of experiments, as ``empirical_gramians`` calls it with ``batch_size``."""
    x = integrate(ladder, x0, u)
    return x, x[:, :1]


def projected(left: np.ndarray, right: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return outputs (b, T) of the ladder projected to ``v = right z``, from rest, under inputs (b, 2, T)."""

    def rate(z: np.ndarray, input_now: np.ndarray) -> np.ndarray:
        return ladder(z @ right.T, input_now) @ left

    z = integrate(rate, np.zeros((u.shape[0], right.shape[1])), u)
    return np.einsum("k,bkt->bt", right[0], z)


def test_inputs() -> dict[str, np.ndarray]:
    """Return pairs of currents (2, T) not used in the training runs: an input, and random levels."""
    t = np.arange(0, TEST, STEP)
    rng = np.random.default_rng(1)

    def levels() -> np.ndarray:
        return rng.uniform(0, 1, 14).repeat(t.size // 14 + 1)[: t.size]

    return {
        "decaying exponential": np.stack([np.exp(-t / 2), levels()]),
        "rectified sine": np.stack([np.maximum(np.sin(2 * np.pi * t / 3), 0), levels()]),
        "random levels": np.stack([levels(), levels()]),
    }


def main(picture: str = "nonlinear_rc_ladder.png") -> dict[str, dict[int, tuple[float, float]]]:
    """Print the table, write the picture, return {input: {order: (error of POD, of balancing)}}."""
    scales = (0.5, 1.0)
    grams = hankelred.empirical_gramians(
        simulate,
        excitation="step",
        horizon=HORIZON,
        step=STEP,
        n_states=NODES,
        n_inputs=2,
        input_scales=scales,
        state_scales=0.01,
        signs=(1,),
        batch_size=64,
    )
    print(grams)
    # POD from the same runs as the controllability Gramian
    t = np.arange(0, HORIZON + STEP / 2, STEP)
    steps = np.array([scale * end for scale in scales for end in np.eye(2)])
    runs, _ = simulate(np.zeros((len(steps), NODES)), np.repeat(steps[:, :, None], t.size, axis=2))
    modes = np.linalg.svd(np.concatenate(list(runs), axis=1), full_matrices=False)[0]

    inputs = test_inputs()
    stacked = np.stack(list(inputs.values()))
    truth = simulate(np.zeros((len(inputs), NODES)), stacked)[1][:, 0]
    table: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in inputs}
    outputs = {f"full, {NODES} states": truth[-1]}
    for order in ORDERS:
        reduced = grams.reduce(order)
        pod = projected(modes[:, :order], modes[:, :order], stacked)
        balanced = projected(reduced.left, reduced.right, stacked)
        for i, name in enumerate(inputs):
            size = np.linalg.norm(truth[i])
            errors = (np.linalg.norm(y[i] - truth[i]) / size for y in (pod, balanced))
            table[name][order] = (float(next(errors)), float(next(errors)))
        if order == 2:
            outputs |= {"POD, 2": pod[-1], "empirical balancing, 2": balanced[-1]}
    print(f"\nrelative output error\n{'input':22s} {'order':>5s} {'POD':>10s} {'balanced':>10s}")
    for name, rows in table.items():
        for order, (pod, balanced) in rows.items():
            print(f"{name:22s} {order:5d} {pod:10.2e} {balanced:10.2e}")
    draw(picture, table, outputs, grams.hankel_singular_values)
    return table


def draw(
    picture: str,
    table: dict[str, dict[int, tuple[float, float]]],
    outputs: dict[str, np.ndarray],
    values: np.ndarray,
) -> None:
    """Write the picture: singular values, errors by order, one response."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    blue, orange, green = "#0072B2", "#D55E00", "#009E73"  # as in the plots of hankelred
    fig, (spectrum, errors, response) = plt.subplots(1, 3, figsize=(9, 3.8), layout="constrained")
    spectrum.semilogy(np.arange(1, 13), values[:12], "o", color=blue)
    spectrum.set(xlabel="index", ylabel="empirical value", title="Hankel singular values")
    spectrum.set_xticks(range(2, 13, 2))
    for (name, rows), color in zip(table.items(), (blue, orange, green), strict=True):
        pod, balanced = np.array(list(rows.values())).T
        errors.semilogy(list(rows), pod, "s--", color=color, label=f"POD, {name}", alpha=0.6)
        errors.semilogy(list(rows), balanced, "o-", color=color, label=f"balanced, {name}")
    errors.set(xlabel="order", ylabel="relative output error", title="Inputs not trained on")
    errors.set_ylim(bottom=1e-7)  # the legend is below the curves
    errors.legend(loc="lower left", fontsize="small")
    t = np.arange(0, TEST, STEP)
    styles = ((blue, "-"), (green, "--"), (orange, "-."))
    for (name, y), (color, style) in zip(outputs.items(), styles, strict=True):
        response.plot(t, 1e3 * y, style, color=color, label=name, linewidth=1.2)
    response.set(xlabel="time (s)", ylabel="output (mV)", title="Random levels, order 2")
    response.legend(fontsize="small")
    fig.savefig(picture, dpi=130)
    print(f"\nwrote {picture}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", nargs="?", default="nonlinear_rc_ladder.png")
    main(parser.parse_args().picture)
