"""From a recorded experiment to a validated model.

Without arguments the record is simulated: a heated tank with a dead time, two outputs, an offset, and
drifting noise. Or pass a record, a text file with columns such as those of the DaISy collection:

    python examples/record_to_model.py
    python examples/record_to_model.py dryer.dat --inputs 0 --outputs 1 --dt 0.08

The model is identified from the first half and tested on the second, as the picture shows. Writes
record_to_model.png.
"""

from __future__ import annotations

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import hankelred


def simulated_record(samples: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Return a record of a heater step sequence (1, T) and two temperatures (2, T)."""
    rng = np.random.default_rng(3)
    u = np.repeat(rng.choice([20.0, 60.0], samples // 20), 20)
    tank = wall = drift = 0.0
    y = np.empty((2, samples))
    for t in range(samples):
        y[:, t] = 18 + tank + drift, 18 + wall + drift
        heat = u[t - 3] if t >= 3 else 20.0
        drift = 0.98 * drift + 0.05 * rng.standard_normal()
        wall += 0.10 * (0.5 * heat - wall) + 0.05 * (tank - wall)
        tank += 0.08 * (wall - tank)
    return u[None], y + 0.2 * rng.standard_normal(y.shape)


def main() -> None:
    """Identify, report and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", nargs="?", help="text file with columns")
    parser.add_argument("--inputs", default="0", help="columns, from 0, with commas")
    parser.add_argument("--outputs", default="1")
    parser.add_argument("--dt", type=float, default=1.0, help="sampling time in seconds")
    parser.add_argument("--order", type=int)
    parser.add_argument("--picture", default="record_to_model.png")
    args = parser.parse_args()
    if args.record is None:
        u, y = simulated_record()
    else:
        table = np.loadtxt(args.record)
        u = table[:, [int(c) for c in args.inputs.split(",")]].T
        y = table[:, [int(c) for c in args.outputs.split(",")]].T
    half = u.shape[1] // 2
    model = hankelred.identify(u[:, :half], y[:, :half], args.order, dt=args.dt)
    comparison = model.compare(u[:, half:], y[:, half:])
    print(f"order {model.order}, dt {model.system.dt}")
    print(
        "fit of the first half: ",
        np.round(model.fit, 3),
        " validation fit in it:",
        np.round(model.held_back_fit, 3),
    )
    print("fit of the second half:", np.round(comparison.fit, 3))

    p = y.shape[0]
    figure, axes = plt.subplots(p + 1, 1, figsize=(8, 3 + 2 * p), layout="constrained")
    hankelred.plot_hankel_singular_values(model, ax=axes[0])
    time = (half + np.arange(y.shape[1] - half)) * args.dt
    for i in range(p):
        axes[i + 1].plot(time, y[i, half:], lw=1.2, color="#0072B2", label="measured")
        fit = f"simulated, fit {comparison.fit[i]:.3f}"
        axes[i + 1].plot(time, comparison.output[i], lw=1.0, color="#D55E00", label=fit)
        axes[i + 1].set_ylabel(f"output {i}")
        axes[i + 1].legend(loc="upper right")
    axes[-1].set_xlabel("time in seconds (second half)")
    figure.savefig(args.picture, dpi=130)
    print(f"wrote {args.picture}")


if __name__ == "__main__":
    main()
