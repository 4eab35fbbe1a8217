"""Long simulation and convolution against python-control and scipy, in one run on one thread.

Run with ``python benchmarks/bench_simulation.py``: two to three minutes, ``--quick`` for a tenth of the
samples.

Prediction, written before the first run. The plain loops cost 6 to 10 microseconds per sample for any
size. The block route does ``2 (p m L + (p + m) n + 2 n^2 / L)`` operations per sample, about 600 for
(10, 1, 1), 2000 for (100, 2, 2) and 2100 for (50, 4, 4), at a third to a half of the matrix product's rate
(some 15e9 a second here), so 10, 13 and 14 ms. That makes 600, 80 and 80 times ``forced_response``,
against the required 150, 60 and 30. Differences: rounding only, 1e-13 relative. ``convolve`` does the same
transforms as ``oaconvolve`` for one channel, so a ratio near 1 there, and (m + p) / (3 m p) for more.

Measured in two runs on a busy machine: 580 and 1440, 142 and 96, 97 and 87 times, differences near 1e-15,
23 to 34 % of the matrix product's rate (49 % for n = 400). The operations per sample were overestimated
(about 200 for (10, 1, 1) with L = 64), and so was the rate; the remaining time is memory traffic. For one
channel ``convolve`` was faster than predicted, ratio 0.4 to 1, because its transforms run over blocks that
fit the cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import control
import mpmath
import numpy as np
import scipy.linalg
import scipy.signal
from threadpoolctl import threadpool_limits

import hankelred
from hankelred.simulation import recurrence

BARS = {(10, 1, 1): 150, (100, 2, 2): 60, (50, 4, 4): 30}


def best(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the least time of some runs in seconds, and the result."""
    least, result = np.inf, None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        least = min(least, time.perf_counter() - start)
    return least, result


def dgemm_rate() -> float:
    a = np.random.default_rng(0).standard_normal((1000, 1000))
    return 2e9 / best(lambda: a @ a, 7)[0]


def stable_model(rng: np.random.Generator, n: int, m: int, p: int) -> control.StateSpace:
    A = rng.standard_normal((n, n))
    A *= 0.99 / np.abs(np.linalg.eigvals(A)).max()
    return control.StateSpace(
        A, rng.standard_normal((n, m)), rng.standard_normal((p, n)), rng.standard_normal((p, m)), 1.0
    )


def block_operations(n: int, m: int, p: int, samples: int) -> float:
    """Operations in the matrix products of the block route, the zeros of the Toeplitz part included."""
    plan = recurrence.plan_blocks(n, m, p, samples)
    L = 1 << plan.level
    per_sample = 2.0 * (n + m * L) * p + 2.0 * m * n + 4.0 * n**2 / L
    return samples * per_sample + 6.0 * n**3 * (plan.level + plan.depth)


def simulation(quick: bool, rate: float) -> bool:
    print("\nsimulate: seconds, ratio to simulate, largest difference over largest output")
    print(
        f"{'n,m,p,samples':>20} {'simulate':>9} {'forced_response':>22} {'dlsim':>17} {'difference':>11} "
        f"{'DGEMM share':>12}  bar"
    )
    met = True
    for n, m, p, samples in [
        (10, 1, 1, 10**6),
        (100, 2, 2, 10**5),
        (50, 4, 4, 10**5),
        (2, 1, 1, 10**5),
        (400, 1, 1, 10**5),
    ]:
        samples //= 10 if quick else 1
        rng = np.random.default_rng(n)
        sys, u = stable_model(rng, n, m, p), rng.standard_normal((m, samples))
        times = np.arange(samples, dtype=float)
        dsys = (sys.A, sys.B, sys.C, sys.D, 1.0)
        ours, y = best(lambda sys=sys, u=u: hankelred.simulate(sys, u), 7)
        slow, response = best(lambda sys=sys, u=u, t=times: control.forced_response(sys, t, u), 2)
        dlsim, result = best(lambda dsys=dsys, u=u: scipy.signal.dlsim(dsys, u.T), 2)
        truth = np.atleast_2d(response.outputs)
        difference = max(np.abs(y - truth).max(), np.abs(y.T - result[1]).max()) / np.abs(truth).max()
        share = block_operations(n, m, p, samples) / ours / rate
        bar = BARS.get((n, m, p), 1)
        ok = slow / ours >= bar and difference < 1e-9
        met &= ok
        print(
            f"{f'{n},{m},{p},{samples:.0e}':>20} {ours:9.4f} {slow:10.3f} = {slow / ours:6.0f} x "
            f"{dlsim:7.3f} = {dlsim / ours:5.0f} x {difference:11.1e} {share:11.0%}  "
            f"{bar} x {'met' if ok else 'MISSED'}"
        )
    return met


def channel_loop(convolve: Callable[..., Any], markov: Any, u: Any) -> Any:
    """Convolve with scipy, one pair of channels at a time."""
    _, p, m = markov.shape
    y = np.zeros((p, u.shape[1]))
    for o in range(p):
        for i in range(m):
            y[o] += convolve(u[i], markov[:, o, i])[: u.shape[1]]
    return y


def convolution(quick: bool) -> bool:
    print("\nconvolve: milliseconds; ratio to the best scipy loop over channels (bar: at most 1.2)")
    print(
        f"{'n,p,m,samples':>22} {'convolve':>9} {'oaconvolve':>11} {'fftconvolve':>12} {'ratio':>6} "
        f"{'difference':>11}"
    )
    met = True
    for n, p, m, samples in [
        (30, 1, 1, 10**5),
        (1000, 1, 1, 10**6),
        (10**4, 1, 1, 10**6),
        (10**5, 1, 1, 10**6),
        (10**5, 1, 1, 10**5),
        (1000, 1, 1, 1000),
        (1000, 4, 4, 10**5),
        (200, 10, 10, 10**4),
    ]:
        samples //= 10 if quick else 1
        rng = np.random.default_rng(n)
        markov, u = rng.standard_normal((n, p, m)), rng.standard_normal((m, samples))
        ours = overlap = whole = np.inf
        # The three run in turn, so that a change in the machine's load affects all of them.
        for _ in range(7):
            seconds, y = best(lambda h=markov, u=u: hankelred.convolve(h, u), 3)
            ours = min(ours, seconds)
            seconds, truth = best(lambda h=markov, u=u: channel_loop(scipy.signal.oaconvolve, h, u), 2)
            overlap = min(overlap, seconds)
            seconds, _ = best(lambda h=markov, u=u: channel_loop(scipy.signal.fftconvolve, h, u), 2)
            whole = min(whole, seconds)
        ratio = ours / min(overlap, whole)
        difference = np.abs(y - truth).max() / np.abs(truth).max()
        ok = ratio <= 1.2 and difference < 1e-9
        met &= ok
        print(
            f"{f'{n},{p},{m},{samples:.0e}':>22} {ours * 1e3:9.2f} {overlap * 1e3:11.2f} {whole * 1e3:12.2f} "
            f"{ratio:6.2f} {difference:11.1e}  {'met' if ok else 'MISSED'}"
        )
    return met


def streaming(quick: bool) -> None:
    print("\nConvolver: microseconds per push by block size, and nanoseconds per sample")
    total = 2**15 if quick else 2**17
    for n in (100, 10**4, 10**5):
        rng = np.random.default_rng(n)
        u = rng.standard_normal(total)
        stream = hankelred.Convolver(rng.standard_normal(n))
        cells = []
        for block in (1, 64, 1024, 16384, total):
            pushes = min(total // block, 8192)

            def run(block: int = block, pushes: int = pushes, stream: Any = stream, u: Any = u) -> None:
                for k in range(pushes):
                    stream.push(u[k * block : (k + 1) * block])

            run()
            seconds, _ = best(run, 2)
            cells.append(f"{block}: {seconds / pushes * 1e6:.0f} us, {seconds / pushes / block * 1e9:.0f} ns")
        print(f"  kernel {n:>6}: " + "; ".join(cells))


def accuracy() -> None:
    """Compare with multiprecision powers on the unit circle, and with second-order sections off it."""
    print("\nerror relative to the largest output")
    samples, angles = 200_000, np.random.default_rng(0).uniform(0.1, 3.0, 10)
    A = scipy.linalg.block_diag(*([[np.cos(w), -np.sin(w)], [np.sin(w), np.cos(w)]] for w in angles))
    rotation, at_rest, x0 = (A, np.zeros((20, 1)), np.ones((1, 20)), 0), np.zeros(samples), np.ones(20)
    with mpmath.workdps(40):
        # started from ones, the two states of a block add up to twice the real part of a power of its pole
        exact = {
            k: float(sum(2 * (mpmath.mpc(A[i, i], A[i + 1, i]) ** k).real for i in range(0, 20, 2)))
            for k in range(samples // 4 - 1, samples, samples // 4)
        }
    cells = []
    for method in ("steps", "blocks"):
        y = hankelred.simulate(rotation, at_rest, x0=x0, dt=True, method=method)
        cells.append(f"{method} {max(abs(y[k] - exact[k]) for k in exact) / np.abs(y).max():.0e}")
    plain = max(abs(np.linalg.matrix_power(A, k).sum() - exact[k]) for k in exact) / np.abs(y).max()
    print(f"  20-state rotation, {samples} samples: {', '.join(cells)}, plain squaring {plain:.0e}")
    u = np.random.default_rng(1).standard_normal(20_000)
    reference = scipy.signal.sosfilt(scipy.signal.butter(8, 0.05, output="sos"), u)
    for form in ("ba", "zpk"):
        system = scipy.signal.dlti(*scipy.signal.butter(8, 0.05, output=form), dt=1.0)
        cells = []
        for method in ("steps", "blocks"):
            error = np.abs(hankelred.simulate(system, u, method=method) - reference).max()
            cells.append(f"{method} {error / np.abs(reference).max():.0e}")
        print(f"  butter(8, 0.05) as {form}: {', '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    quick = parser.parse_args().quick
    with threadpool_limits(1):
        rate = dgemm_rate()
        print(f"matrix product of order 1000: {rate / 1e9:.1f}e9 operations a second")
        met = simulation(quick, rate)
        met &= convolution(quick)
        streaming(quick)
        accuracy()
    print("\nevery bar met" if met else "\nA BAR WAS MISSED")


if __name__ == "__main__":
    main()
