"""Speed of realization against python-control; fits on real records against nfoursid, SIPPY, python-control.

    python benchmarks/bench_identification.py hankel
    python benchmarks/bench_identification.py synthetic [--count 200] [--first 0]
    python benchmarks/bench_identification.py integrating [--count 200] [--first 0]
    python benchmarks/bench_identification.py feedback [--count 200] [--first 0]
    python benchmarks/bench_identification.py times [--count 5] [--first 0]
    python benchmarks/bench_identification.py records [--swap] [--shared ../shared] [NAME ...]
    python benchmarks/bench_identification.py records [--swap] --others FOLDER [NAME ...]

For each record a model is estimated from the first half and tested by its fit on the second half. The same
procedure holds for every method: the means of the first half are subtracted from both halves; every setting
(order, block rows, number of Markov parameters) is chosen on the last 30 % of the first half with a model
estimated from its first 70 %; the model is then estimated from the whole first half, and its output on the
second half is simulated from an initial state fitted by least squares over the whole second half. Nothing
else is fitted there: the output offset that `identify` estimates is left out, since the other methods have
none. The fit is 1 - |y - yhat| / |y - mean(y)|, averaged over the outputs. "best setting in hindsight"
chooses the settings of the other packages on the second half itself, which is not possible in practice, and
shows how much of a difference is due to that choice. --swap estimates on the second half and scores on the
first. The search for the order was developed with results on the second halves, so the swapped figures are
less favorable and more reliable.

`synthetic` and `integrating` compare models of random records with the true processes, `feedback` prints how
often the test for feedback warns in open and in closed loop, and `times` the CPU seconds of `identify` and of
nfoursid, with the choice of settings above, for `--count` records of 1000 samples. Seeds 0 to 199, 3000 to
3036 and, for integrating processes, 9000 to 9029 were used in development.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg as sla
import scipy.stats
from _natural_records import DAISY, OTHERS, Record
from _synthetic_records import (
    SyntheticRecord,
    closed_loop_record,
    integrating_record,
    random_record,
    states,
)

import hankelred
from hankelred.identification.diagnostics.feedback import feedback_probabilities
from hankelred.identification.diagnostics.input_warnings import LATER_PROBABILITY
from hankelred.identification.diagnostics.uncertainty import autoregression
from hankelred.identification.linear_fit import FittedModel, fit_inputs, fit_levels
from hankelred.identification.noise.whitening import filtered
from hankelred.identification.output_error import refine, stable_matrix, truncate_states

ORDERS = range(1, 11)
#: Fits that differ by less count as equal.
MARGIN = 0.01
Matrices = tuple[Any, Any, Any, Any]
Method = Callable[[Any, Any], Iterator[tuple[tuple[Any, ...], Matrices]]]


def fit(model: Matrices, u: Any, y: Any, *, level: bool = False) -> float:
    """Return the mean fit of the simulated output; least squares over the record give the initial state.

    With `level` they give the level of the output too.
    """
    A, B, C, D = model
    n, T, p = A.shape[0], u.shape[1], y.shape[0]
    simulated, free = np.empty((p, T)), np.empty((T, p, n))
    x, power = np.zeros(n), np.asarray(C)
    with np.errstate(all="ignore"):
        for t in range(T):
            simulated[:, t], free[t] = C @ x + D @ u[:, t], power
            x, power = A @ x + B @ u[:, t], power @ A
    if not (np.isfinite(simulated).all() and np.isfinite(free).all()):
        return -np.inf
    if level:
        free = np.concatenate([free, np.broadcast_to(np.eye(p), (T, p, p))], axis=2)
    weight = 1 / y.std(axis=1)
    M, r = (free * weight[:, None]).reshape(-1, free.shape[2]), ((y - simulated).T * weight).reshape(-1)
    x0 = np.linalg.lstsq(M, r, rcond=None)[0]
    error = y - simulated - (free @ x0).T
    spread = np.linalg.norm(y - y.mean(axis=1, keepdims=True), axis=1)
    return float(np.mean(1 - np.linalg.norm(error, axis=1) / spread))


def nfoursid(u: Any, y: Any) -> Iterator[tuple[tuple[int, int], Matrices]]:
    import pandas as pd
    from nfoursid.nfoursid import NFourSID

    names_u, names_y = [f"u{i}" for i in range(len(u))], [f"y{i}" for i in range(len(y))]
    frame = pd.DataFrame(np.vstack([u, y]).T, columns=names_u + names_y)
    for rows in (5, 10, 15, 20) if len(u) > 1 else (5, 10, 20, 30):
        method = NFourSID(frame, names_y, names_u, rows)
        method.subspace_identification()
        for order in ORDERS:
            try:
                system, _ = method.system_identification(order)
            except Exception:  # the package raises on some orders; they are then not candidates
                continue
            yield (rows, order), (system.a, system.b, system.c, system.d)


def control_era(u: Any, y: Any) -> Iterator[tuple[tuple[int, int], Matrices]]:
    import control

    for count in (21, 41, 81) if len(u) > 1 else (21, 51, 101, 201):
        if count * len(u) > 0.6 * u.shape[1]:
            continue
        h = np.asarray(control.markov(y, u, count)).reshape(len(y), len(u), count)
        for order in ORDERS:
            half = (count - 1) // 2
            s, _ = control.eigensys_realization(h, order, m=half, n=half, dt=True)
            yield (count, order), (s.A, s.B, s.C, s.D)


def sippy(u: Any, y: Any) -> Iterator[tuple[tuple[Any, ...], Matrices]]:
    import contextlib
    import io

    import control
    from sippy_unipi import system_identification

    for method in ("N4SID", "CVA", "MOESP"):
        for rows in (10, 20) if len(u) > 1 else (10, 20, 30):
            for order in ORDERS:
                try:
                    with contextlib.redirect_stdout(io.StringIO()):
                        s = system_identification(
                            y, u, method, SS_f=rows, SS_p=rows, SS_fixed_order=order, SS_D_required=True
                        )
                except Exception:  # the package raises on some orders; they are then not candidates
                    continue
                yield (method, rows, order), (s.A, s.B, s.C, s.D)
    if len(u) > 1 or len(y) > 1:
        return
    for order in ORDERS:
        for delay in (0, 1, 2, 3):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    s = control.ss(system_identification(y, u, "ARX", ARX_orders=[order, order, delay]).G)
            except Exception:
                continue
            yield ("ARX", delay, order), (s.A, s.B, s.C, s.D)


def peer(
    method: Method, first: tuple[Any, Any], second: tuple[Any, Any]
) -> tuple[float, tuple[Any, ...], float]:
    """Return the fit with the setting chosen on validation samples, that setting, and the best fit."""
    u, y = first
    cut = int(0.7 * u.shape[1])
    validation_fits = {key: fit(m, u[:, cut:], y[:, cut:]) for key, m in method(u[:, :cut], y[:, :cut])}
    test_fits = {key: fit(m, *second) for key, m in method(u, y)}
    key = max((k for k in validation_fits if k in test_fits), key=lambda k: validation_fits[k])
    return test_fits[key], key, max(test_fits.values())


def bench_records(records: dict[str, Callable[[Path], Record]], folder: Path, swap: bool) -> None:
    heads = "record, hankelred, order, CPU seconds, nfoursid, SIPPY, control, at least the best minus .01, "
    heads += "best in hindsight"
    print(f"| {heads.replace(', ', ' | ')} |")
    print("|---|---|---|---|---|---|---|---|---|")
    won = won_hindsight = 0
    notes: list[str] = []
    for name, load in records.items():
        u, y, dt = load(folder)
        half = u.shape[1] // 2
        if swap:
            u, y, half = np.roll(u, -half, axis=1), np.roll(y, -half, axis=1), u.shape[1] - half
        mu, my = u[:, :half].mean(axis=1, keepdims=True), y[:, :half].mean(axis=1, keepdims=True)
        first, second = (u[:, :half] - mu, y[:, :half] - my), (u[:, half:] - mu, y[:, half:] - my)
        start = time.process_time()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", hankelred.ReductionWarning)
            model = hankelred.identify(u[:, :half], y[:, :half], dt=dt)
        seconds = time.process_time() - start
        s = model.system
        our_fit = fit((s.A, s.B, s.C, s.D), *second)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unstable = [str(w.message) for w in warned if "unstable in open loop" in str(w.message)]
            if unstable:
                process = hankelred.identify(u[:, :half], y[:, :half], dt=dt, stable=False)
                s = process.system
                simulated = fit((s.A, s.B, s.C, s.D), *second)
                notes.append(
                    f"{name}: with stable=False, order {process.order}, fit {simulated:.4f}, since identify "
                    f"warns: {unstable[0]}"
                )
            n4, n4_key, n4_best = peer(nfoursid, first, second)
            era, era_key, era_best = peer(control_era, first, second)
            sip, sip_key, sip_best = peer(sippy, first, second)
        ok = our_fit >= max(n4, era, sip) - MARGIN
        hindsight = our_fit >= max(n4_best, era_best, sip_best) - MARGIN
        won, won_hindsight = won + ok, won_hindsight + hindsight
        print(
            f"| {name} | {our_fit:.4f} | {model.order} | {seconds:.1f} "
            f"| {n4:.4f} (rows {n4_key[0]}, order {n4_key[1]}) "
            f"| {sip:.4f} ({', '.join(map(str, sip_key))}) "
            f"| {era:.4f} ({era_key[0]} parameters, order {era_key[1]}) "
            f"| {'yes' if ok else 'no'} "
            f"| {max(n4_best, era_best, sip_best):.4f} ({'yes' if hindsight else 'no'}) |",
            flush=True,
        )
    print(
        f"\nat least the best peer on {won} of {len(records)}; "
        f"of peers tuned in hindsight on {won_hindsight}",
        *notes,
        sep="\n",
    )


def bench_synthetic(first: int, count: int) -> None:
    """Print how near the models of synthetic records come to the true process on the half not seen."""
    shares: list[tuple[float, float, float]] = []
    errors, orders, visible, seconds = [], [], [], []
    failures = 0
    for seed in range(first, first + count):
        r = random_record(seed)
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", hankelred.ReductionWarning)
                model = hankelred.identify(r.u, r.y)
        except hankelred.HankelredError as error:
            failures += 1
            print(f"seed {seed}: {error}", flush=True)
            continue
        seconds.append(time.process_time() - start)
        s, offset = model.system, model.output_offset[:, None]
        matrices, u = (s.A, s.B, s.C, s.D), r.test_u - model.input_offset[:, None]
        size = np.linalg.norm(r.test_y - r.test_y.mean(axis=1, keepdims=True), axis=1)
        of_truth = float(np.mean(1 - np.linalg.norm(r.test_y - r.test_clean, axis=1) / size))
        with_level = fit(true_process(r), r.test_u, r.test_y, level=True)
        if of_truth > 0.2:  # else the disturbance is most of the output
            best, best_input_mean = efficient_estimate(r)
            shares.append(
                (
                    fit(matrices, u, r.test_y - offset) / of_truth,
                    fit(matrices, u, r.test_y, level=True) / with_level,
                    fit(best, r.test_u - best_input_mean, r.test_y, level=True) / with_level,
                )
            )
        errors.append(1 - fit(matrices, u, r.test_clean - offset))
        if not r.delay:
            orders.append(model.order - r.order)
            visible.append(visible_order(r) - r.order)
    differences, limits = np.array(orders), np.array(visible)
    print(f"{count} records, {failures} refused; fit of the measured output relative to the true model's:")
    for name, values in zip(
        ("levels of the first half", "levels fitted", "efficient estimate, levels fitted"),
        np.array(shares).T,
        strict=True,
    ):
        print(
            f"  {name}: median {np.median(values):.4f}, a tenth below {np.quantile(values, 0.1):.3f}, "
            f"at least .98 on {np.mean(values >= 0.98):.0%}"
        )
    print(
        f"error of the undisturbed output: median {np.median(errors):.4f}, mean "
        f"{np.mean(np.minimum(errors, 1)):.4f}; {np.median(seconds):.2f} CPU seconds"
    )
    print(
        f"order, {len(orders)} records without delay: within one of the truth on "
        f"{np.mean(np.abs(differences) <= 1):.0%} (mean difference {differences.mean():+.1f}), within one of "
        f"the visible order on {np.mean(np.abs(differences - limits) <= 1):.0%}; the visible order is within "
        f"one of the truth on {np.mean(np.abs(limits) <= 1):.0%}"
    )


def bench_times(first: int, count: int) -> None:
    """Print CPU seconds for records of 1000 samples, with one input and output and with four of each."""
    print("| inputs and outputs | seed | identify, CPU seconds | nfoursid, CPU seconds | ratio |")
    print("|---|---|---|---|---|")
    for channels in (1, 4):
        times: list[tuple[float, float]] = []
        for seed in itertools.count(first):
            r = random_record(seed)
            if (r.u.shape, r.y.shape) != ((channels, 1000), (channels, 1000)):
                continue
            ours = cpu_seconds(hankelred.identify, r.u, r.y)
            times.append((ours, cpu_seconds(peer, nfoursid, (r.u, r.y), (r.test_u, r.test_y))))
            ours, theirs = times[-1]
            print(f"| {channels} | {seed} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)
            if len(times) == count:
                break
        ours, theirs = np.median(times, axis=0)
        ratio = np.median([a / b for a, b in times])
        print(f"| {channels} | median | {ours:.1f} | {theirs:.1f} | {ratio:.2f} |", flush=True)


def cpu_seconds(call: Callable[..., Any], *arguments: Any) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(*arguments)
    return time.process_time() - start


def bench_integrating(first: int, count: int) -> None:
    """Print the same for integrating processes, whose output rises with the level of the inputs."""
    shares, orders = [], []
    for seed in range(first, first + count):
        r = integrating_record(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hankelred.ReductionWarning)
            model = hankelred.identify(r.u, r.y)
        s, u = model.system, r.test_u - model.input_offset[:, None]
        of_truth = fit(r.process, r.test_u - r.input_level, r.test_y, level=True)
        shares.append(fit((s.A, s.B, s.C, s.D), u, r.test_y, level=True) / of_truth)
        orders.append(model.order - r.order)
    values, differences = np.array(shares), np.array(orders)
    print(
        f"{count} integrating processes; fit relative to the true model's, levels of the output fitted:\n"
        f"  median {np.median(values):.4f}, a tenth below {np.quantile(values, 0.1):.3f}, at least .98 on "
        f"{np.mean(values >= 0.98):.0%}"
    )
    print(
        f"order: the true one on {np.mean(differences == 0):.0%}, within one of it on "
        f"{np.mean(np.abs(differences) <= 1):.0%} (mean difference {differences.mean():+.1f})"
    )


def bench_feedback(first: int, count: int) -> None:
    """Print on how many records in open and in closed loop the test for feedback gives a warning."""

    def share(records: list[tuple[Any, Any]]) -> float:
        least = [(p.min() * p.size) for p in (feedback_probabilities([u], [y]) for u, y in records)]
        return float(np.mean(np.array(least) <= LATER_PROBABILITY))

    seeds = range(first, first + count)
    synthetic = [r for r in map(random_record, seeds) if "closed" not in r.description]
    opened = share([(r.u, r.y) for r in synthetic])
    print(f"open loop: {opened:.1%} of {len(synthetic)} records")
    for delay in (0, 1):
        closed = share([closed_loop_record(seed, delay) for seed in seeds])
        print(f"closed loop, controller with a delay of {delay} samples: {closed:.0%} of {count} records")


def true_process(r: SyntheticRecord) -> Matrices:
    """Return the process with a state for every sample of the delay of each input."""
    A, B, C, D = r.process
    m = B.shape[1]
    for _ in range(r.delay):
        A = np.block([[A, B], [np.zeros((m, A.shape[0] + m))]])
        B = np.concatenate([np.zeros((A.shape[0] - m, m)), np.eye(m)])
        C, D = np.concatenate([C, D], axis=1), np.zeros_like(D)
    return A, B, C, D


def efficient_estimate(r: SyntheticRecord) -> tuple[Matrices, Any]:
    """Return the estimate of greatest likelihood, of someone who knows the order and the noise color.

    The search begins at the true process. No method without more knowledge does better on average in long
    records. The mean of the inputs is returned too.
    """
    A, B, C, D = true_process(r)
    mean, p = r.u.mean(axis=1, keepdims=True), C.shape[0]
    level, size = r.y.mean(axis=1, keepdims=True), r.y.std(axis=1, keepdims=True)
    whitener = autoregression(list(r.disturbance / r.disturbance.std(axis=1, keepdims=True)), most=30)
    us, ys = filtered(whitener, [r.u - mean]), filtered(whitener, [(r.y - level) / size])
    start = FittedModel(A, B, C / size, D / size, (np.zeros(A.shape[0]),), np.zeros(p))
    start, _ = fit_levels(start, us, ys, True)
    best = refine(start, us, ys, stable=True, max_steps=40, rtol=1e-6)
    return (best.A, best.B, size * best.C, size * best.D), mean


def visible_order(r: SyntheticRecord) -> int:
    """Return the smallest order that a test which knew the noise color could not refute in most records.

    The best model of every order is fitted to the undisturbed output of the first half, both filtered to
    whiten the disturbance. What it leaves, relative to the innovations, is the noncentrality of the
    likelihood ratio against the true order; an order is refuted at 5 % with probability one half or more.
    """
    A, B, C, D = r.process
    (n, m), p, samples = B.shape, C.shape[0], r.samples
    u = np.pad(r.u, ((0, 0), (r.delay, 0)))[:, :samples]
    whitener = autoregression(list(r.disturbance / r.disturbance.std(axis=1, keepdims=True)), most=30)
    size = filtered(whitener, [r.disturbance])[0].std(axis=1)
    us = filtered(whitener, [u])
    ys = filtered(whitener, [(C @ states(A, B @ u) + D @ u) / size[:, None]])
    larger = FittedModel(A, B, C / size[:, None], D / size[:, None], (np.zeros(n),), np.zeros(p))
    truth, visible = larger, n
    for order in range(n - 1, 0, -1):
        starts = [
            fit_inputs(stable_matrix(A), C, us, ys, offsets=False)[0]
            for A, C in (truncate_states(model, order) for model in (truth, larger))
        ]
        start = min(starts, key=lambda model: model.loss)
        larger = refine(start, us, ys, stable=True, max_steps=30, rtol=1e-4)
        parameters = (m + p) * (n - order)
        threshold = scipy.stats.chi2.isf(0.05, parameters)
        if scipy.stats.ncx2.sf(threshold, parameters, larger.loss * ys[0].size) < 0.5:
            visible = order
    return visible


def bench_hankel() -> None:
    import control

    k = np.arange(8001)
    rng = np.random.default_rng(0)
    poles = rng.uniform(0.95, 0.999, 20) * np.exp(1j * rng.uniform(0.01, 3, 20))
    h = (rng.standard_normal(20) * poles ** k[:, None]).sum(axis=1).real
    # a 2 x 2 system with 2000 x 2000 blocks, and one channel: both matrices are 4000 x 4000
    blocks = np.stack([np.roll(h, -i)[:4001] for i in range(4)], axis=1).reshape(-1, 2, 2)
    for title, markov, order in (
        ("1 x 1", h[:, None, None], None),
        ("2 x 2", blocks, None),
        ("order 10", h, 10),
    ):
        start = time.perf_counter()
        reduction = hankelred.realize(markov, order)
        print(
            f"4000 x 4000 block Hankel, {title}: {time.perf_counter() - start:.2f} s, order {reduction.order}"
        )
    from hankelred.identification.hankel_svd import HankelOperator

    small = h[:4001]
    start = time.perf_counter()
    reduction = hankelred.realize(small, 40)
    our_time = time.perf_counter() - start
    start = time.perf_counter()
    _, s = control.eigensys_realization(small, 40, m=2000, n=2000, dt=True)
    peer_time = time.perf_counter() - start
    exact = sla.svdvals(HankelOperator(small[:, None, None]).dense())
    size = reduction.hankel_singular_values.size
    print(
        f"2000 x 2000: hankelred {our_time:.3f} s, control.eigensys_realization {peer_time:.2f} s, "
        f"{peer_time / our_time:.0f} times as fast; singular values differ by "
        f"{np.abs(reduction.hankel_singular_values - exact[:size]).max() / exact[0]:.1e} of the largest "
        f"(control: {np.abs(s - exact).max() / exact[0]:.1e})"
    )
    start = time.perf_counter()
    hankelred.realize(h)
    ratio = peer_time / (time.perf_counter() - start)
    print(f"4000 x 4000 against control at 2000 x 2000: {ratio:.0f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=["hankel", "records", "synthetic", "integrating", "feedback", "times"]
    )
    parser.add_argument("--count", type=int, default=200, help="number of synthetic records")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of them")
    parser.add_argument("names", nargs="*", help="records (default: all)")
    default = os.environ.get("HANKELRED_SHARED") or Path(__file__).parents[1] / "../shared"
    parser.add_argument("--swap", action="store_true", help="estimate on the second half, score on the first")
    parser.add_argument("--shared", type=Path, default=Path(default))
    parser.add_argument("--others", type=Path, help="folder of the records that are not of DaISy")
    args = parser.parse_args()
    if args.what == "hankel":
        bench_hankel()
    elif args.what == "synthetic":
        bench_synthetic(args.first, args.count)
    elif args.what == "integrating":
        bench_integrating(args.first, args.count)
    elif args.what == "feedback":
        bench_feedback(args.first, args.count)
    elif args.what == "times":
        bench_times(args.first, args.count)
    else:
        records = OTHERS if args.others else DAISY
        chosen = {name: records[name] for name in args.names or records}
        bench_records(chosen, args.others or args.shared / "data" / "sysid", args.swap)


if __name__ == "__main__":
    main()
