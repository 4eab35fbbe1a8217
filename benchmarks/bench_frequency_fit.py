"""Models fitted to frequency responses, against pyMOR's Loewner, scipy's AAA and scikit-rf's vector fitting.

    python benchmarks/bench_frequency_fit.py [--first 0] [CASE ...]

400 frequencies are fitted, 3001 others compared with the exact response: the relative L2 error over all
entries, with noise the root mean square of five draws. The noise is complex, Gaussian, and 1e-3 of each
value. Every method gets the same order: Loewner and AAA the number of states, vector fitting as many
pairs of poles as the order holds (with several inputs and outputs every pole of scikit-rf has a residue
of full rank, so that its model has more states than the order). Unstable poles are counted over all
draws; a model that has any cannot be simulated. The rows "order chosen" are of one draw. SLICOT's models are
those of `../shared/data`, or of the folder HANKELRED_SHARED.

Prediction: without noise all methods reach rounding where the order is that of the model. With noise,
Loewner and AAA interpolate it, which gives unstable poles; vector fitting is stable but minimizes a
weighted error, so that a refinement by least squares lowers its error by a third or more.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg as sla

import hankelred

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.data import slicot_model

NOISE = 1e-3
POINTS, TEST_POINTS, DRAWS = 400, 3001, 5


def response(system: Any, omega: Any) -> Any:
    """Return C (jw - A)^-1 B, (N, p, m)."""
    A, B, C = system
    T, Z = sla.schur(A, output="complex")
    B, C, eye = Z.conj().T @ B, C @ Z, np.eye(len(A))
    return np.array([C @ sla.solve_triangular(1j * w * eye - T, B) for w in omega])


def resonant(n: int = 40, seed: int = 3) -> Any:
    """Return a chain of n / 2 resonances over three decades, with damping ratios of 1 to 5 %."""
    rng = np.random.default_rng(seed)
    w = np.geomspace(3, 3e3, n // 2) * rng.uniform(0.8, 1.25, n // 2)
    A, B, C = np.zeros((n, n)), np.zeros((n, 1)), np.zeros((1, n))
    for k, (frequency, damping) in enumerate(zip(w, rng.uniform(0.01, 0.05, n // 2), strict=True)):
        A[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[0, frequency], [-frequency, -2 * damping * frequency]]
        B[2 * k + 1], C[0, 2 * k] = 1, rng.standard_normal() * (3 / frequency) ** 0.3
    return A, B, C


def rounding(system: Any, omega: Any) -> float:
    """Return the relative L2 error of `response` itself, against each resonance in extended precision."""
    A, _, C = (x.astype(np.longdouble) for x in system)
    s, first = 1j * np.asarray(omega, np.longdouble), np.arange(0, len(A), 2)
    frequency, damping, gain = A[first, first + 1], -A[first + 1, first + 1], C[0, first]
    exact = (gain * frequency / (s[:, None] * (s[:, None] + damping) + frequency**2)).sum(axis=1)
    return float(np.linalg.norm(response(system, omega)[:, 0, 0] - exact) / np.linalg.norm(exact))


#: name: lowest and highest frequency, order
CASES: dict[str, tuple[float, float, int]] = {
    "build": (1, 200, 48),
    "resonant": (1, 1e4, 40),
    "iss": (0.1, 100, 60),
}
Evaluated = tuple[Callable[[Any], Any], int]


def ours(omega: Any, values: Any, order: int | None, noise: float) -> Evaluated:
    model = hankelred.fit_frequency_response(np.moveaxis(values, 0, -1), order, omega=omega)
    if order is None:
        print(f"  (order chosen: {model.order})")
    s = model.system
    return lambda w: response((s.A, s.B, s.C), w) + s.D, int((s.poles().real > 0).sum())


def ours_chosen(omega: Any, values: Any, order: int, noise: float) -> Evaluated:
    return ours(omega, values, None, noise)


def pymor_loewner(omega: Any, values: Any, order: int, noise: float) -> Evaluated:
    from pymor.core.logger import set_log_levels
    from pymor.reductors.loewner import LoewnerReductor

    set_log_levels({"pymor": "ERROR"})
    model = LoewnerReductor(1j * omega, values).reduce(r=order)
    A, B, C, _, E = model.to_matrices()
    poles = sla.eigvals(A, E)

    def evaluate(w: Any) -> Any:
        return np.array([C @ np.linalg.solve(1j * x * E - A, B) for x in w])

    return evaluate, int((poles.real > 0).sum())


def scipy_aaa(omega: Any, values: Any, order: int, noise: float) -> Evaluated:
    from scipy.interpolate import AAA

    points = np.concatenate([1j * omega, -1j * omega])
    samples = np.concatenate([values[:, 0, 0], values[:, 0, 0].conj()])
    fit = AAA(points, samples, rtol=noise or 1e-13, max_terms=order + 1)
    return lambda w: fit(1j * w)[:, None, None], int((fit.poles().real > 0).sum())


def skrf_vector_fitting(omega: Any, values: Any, order: int, noise: float) -> Evaluated:
    import skrf
    from skrf.vectorFitting import VectorFitting

    _, p, m = values.shape
    size, q = np.abs(values).max(), max(p, m)
    scattering = np.zeros((omega.size, q, q), complex)
    scattering[:, :p, :m] = values / size
    network = skrf.Network(frequency=skrf.Frequency.from_f(omega / 2 / np.pi, unit="hz"), s=scattering)
    fit = VectorFitting(network)
    fit.vector_fit(n_poles_real=0, n_poles_cmplx=order // 2, fit_constant=True, fit_proportional=False)

    def evaluate(w: Any) -> Any:
        entries = [[fit.get_model_response(i, j, w / 2 / np.pi) for j in range(m)] for i in range(p)]
        return np.array(entries).transpose(2, 0, 1) * size

    return evaluate, int((fit.poles.real > 0).sum())


METHODS = {
    "hankelred": ours,
    "hankelred, order chosen": ours_chosen,
    "pyMOR Loewner": pymor_loewner,
    "scipy AAA": scipy_aaa,
    "scikit-rf": skrf_vector_fitting,
}


def rows(name: str, system: Any, noise: float, first: int) -> Iterator[str]:
    low, high, order = CASES[name]
    omega, test = np.geomspace(low, high, POINTS), np.geomspace(low, high, TEST_POINTS)
    exact_values, exact = response(system, omega), response(system, test)
    for method, fit in METHODS.items():
        if exact[0].size > 1 and method in ("scipy AAA", "hankelred, order chosen"):
            continue  # AAA has one channel; the order of the space station is far above 80
        distances, unstable, seconds = [], 0, 0.0
        for draw in range(DRAWS if noise and "chosen" not in method else 1):
            rng = np.random.default_rng(first + draw)
            error = rng.standard_normal(exact_values.shape) + 1j * rng.standard_normal(exact_values.shape)
            values = exact_values + noise * np.abs(exact_values) * error / np.sqrt(2)
            start = time.process_time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    evaluate, count = fit(omega, values, order, noise)
                    seconds += time.process_time() - start
                    distances.append(np.linalg.norm(evaluate(test) - exact) / np.linalg.norm(exact))
                    unstable += count
            except ImportError as missing:
                yield f"| {name} | {noise:g} | {method} | not installed ({missing.name}) | | |"
                break
        else:
            distance = np.sqrt(np.mean(np.square(distances)))
            yield (
                f"| {name} | {noise:g} | {method} | {distance:.1e} | {unstable} "
                f"| {seconds / len(distances):.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"cases: {', '.join(CASES)} (default: all)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw of the noise")
    args = parser.parse_args()
    print("| model | noise | method | relative error | unstable poles | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for name in args.names or CASES:
        system = resonant() if name == "resonant" else slicot_model(name)[0][:3]
        for noise in (0.0, NOISE):
            for row in rows(name, system, noise, args.first):
                print(row, flush=True)
        if name == "resonant":
            own = rounding(system, np.geomspace(*CASES[name][:2], TEST_POINTS))
            print(f"\nrounding of the exact response of {name} in double precision: {own:.1e}\n")


if __name__ == "__main__":
    main()
