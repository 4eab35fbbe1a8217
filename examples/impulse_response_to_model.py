"""From a long impulse response to a small model.

The data are three thousand noisy samples of a lightly damped structure. The singular values of their Hankel
matrix separate the states from the noise. Writes impulse_response_to_model.png.

    python examples/impulse_response_to_model.py [FILE.png]
"""

from __future__ import annotations

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import hankelred


def noisy_response(samples: int, dt: float) -> np.ndarray:
    """Return the impulse response of three modes (0.7, 1.9 and 4.3 Hz), with 0.5 % of noise."""
    t = np.arange(samples) * dt
    modes = ((1.0, 0.7, 0.012), (0.6, 1.9, 0.010), (0.25, 4.3, 0.006))
    h = sum(
        gain * np.exp(-damping * 2 * np.pi * f * t) * np.sin(2 * np.pi * f * t) for gain, f, damping in modes
    )
    return np.asarray(h) + 0.005 * np.random.default_rng(1).standard_normal(samples)


def main() -> None:
    """Realize, report and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", nargs="?", default="impulse_response_to_model.png")
    path = parser.parse_args().picture
    dt = 0.05
    h = noisy_response(3000, dt)
    model = hankelred.realize(h, dt=dt)
    poles = np.log(model.system.poles()) / dt
    print(f"order {model.order}, noise floor {model.noise_floor:.3g}")
    for pole in sorted(poles[poles.imag > 0], key=lambda pole: pole.imag):
        print(f"mode at {abs(pole) / (2 * np.pi):.3f} Hz, damping ratio {-pole.real / abs(pole):.4f}")
    print(
        f"error over all samples, H2: {model.error('h2'):.3g} (the noise alone: {0.005 * np.sqrt(3000):.3g})"
    )

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), layout="constrained")
    hankelred.plot_hankel_singular_values(model, ax=top)
    response = [model.system.D[0, 0]]
    x = model.system.B[:, 0]
    for _ in range(299):
        response.append(float(model.system.C[0] @ x))
        x = model.system.A @ x
    t = np.arange(300) * dt
    bottom.plot(t, h[:300], ".", ms=3, color="#0072B2", label="measured")
    bottom.plot(t, response, lw=1.2, color="#D55E00", label=f"model of order {model.order}")
    bottom.set_xlabel("time in seconds")
    bottom.set_ylabel("impulse response")
    bottom.legend()
    figure.savefig(path, dpi=130)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
