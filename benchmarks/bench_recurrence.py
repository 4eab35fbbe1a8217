"""The chunked recurrence against the zero-padded FFT convolution: time, local error, saved memory.

Run with ``python benchmarks/bench_recurrence.py``: about three minutes; ``--threads`` (2; CPU time with 1),
``--quick`` for up to 8192 samples. The FFT scan is what the paper's method is known for, with its gradient by
autograd.

Predictions, each written before the measurement it speaks of; one thread, CPU time, nanoseconds per number.

1. A matrix product with the Toeplitz matrix of a chunk costs 64 operations a number at 32 samples a chunk,
   some 2.5 ns, and needs three more passes to keep an Inf from reaching earlier states through a factor 0.
   Elementwise sweeps over transposed blocks: two strided copies at 0.7, four passes at 0.15 to 0.3: 2 to
   2.5 ns. Seen: copy in 1.0, copy out 1.6, sweeps and prefix 1.3, so 3.9 forward.
2. The copy out should not cost more than the copy in. Rows a power of two apart share cache lines; an odd
   number of lines a row should bring 1.6 down to 0.7. Seen: 1.64 to 0.67.
3. Recursive doubling over the 2048 chunks of a block is 11 rounds in float64 over all of them, half of all
   the work at 16 samples a chunk. By halves down to 32 chunks it is 4 passes in all. Seen at 131072:
   55-60 ms before, 41-50 after, on a machine that was busy.
4. Adding the state that enters a chunk by exact powers takes 1 to 4 calls, a second sweep takes 16 to 64,
   and rounds once instead of 16 times: a fifth less time, half the error. Seen: 40 ms to 31-33, largest local
   error 1.6e-6 to 4e-7.
5. Together 7 ns forward and backward, so 30 ms of CPU time at 131072 samples and r = 32. Seen: 31-33 ms where
   the FFT scan took 770.
6. Two threads must meet at the end of every call that is split, 190 times a scan at 131072 samples. On a
   machine with other work on both cores each meeting may wait for a time slice: seen, 730 ms where one thread
   took 100. With the steps of a sweep below the size that torch splits, some 70 meetings are left.
7. Prediction 1 forgot that a row of samples, time contiguous, is a matrix with a chunk a row already: neither
   copy is needed, nor the passes that guard against Inf, if one looks at the state carried on and mends only
   where it is not finite. .4 ns a number, one more pass for what enters: forward 2 ms and backward 4 at
   131072 samples where sweeps took 12 and 14, so 40 times faster than the FFT scan. Seen on two threads: the
   product .2 ns, the pass .1; forward and backward 12 to 17 ms, 20 to 26 times. An FFT scan before it drives
   everything out of the caches: 15 to 17 ms then, and 5 to 7 at 32768 samples (8 to 10 times).
   At 32768 a third of what is left is the time of some 250 calls; below 16384 samples sweeps are as fast
   (8192 after 8).
8. Those calls: joins cost a third of a block, because torch falls back to one product a mode where rows
   are a strided view, and the triangles of 48 are 1.2 MB of float64, written twice. Whole rows,
   triangles of 16 laid out for all levels at once, chunks written where the states go: 3 ms by itself
   and 4 in turn, 11 times the FFT scan. Seen at 32768: 3.2 and 3.7 to 3.9, 11.0 to 11.6 times (in
   trials 10.2 to 11.5); 11.1 to 11.5 ms at 131072, 26 times; eight rows of 4096 in 3.7 ms instead of
   7.1. Blocks of 2^18 numbers for everything, so that it stays in a cache: predicted a fifth, seen
   nothing, but 5 % for the sum of products alone.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import _baseline
import torch
from torch import Tensor

from hankelred_llm import linear_recurrence
from hankelred_llm.ops.autograd import channel_scan
from hankelred_llm.ops.decode_step import StepCoefficients
from hankelred_llm.ops.exported_scan import exported_scan

BARS = {8192: 3, 32768: 10, 131072: 20}
R = 32


def fft_scan(u: Tensor, log_decay: Tensor, phase: Tensor | None = None) -> Tensor:
    """Convolve (batch, r, time) by zero-padded FFT; autograd does the rest."""
    samples = u.shape[-1]
    if phase is None:
        kernel = torch.exp(log_decay[:, None] * torch.arange(samples))
        product = torch.fft.rfft(kernel, 2 * samples) * torch.fft.rfft(u, 2 * samples)
        return torch.fft.irfft(product, 2 * samples)[..., :samples]
    kernel = torch.exp(torch.complex(log_decay, phase)[:, None] * torch.arange(samples))
    return torch.fft.ifft(torch.fft.fft(kernel, 2 * samples) * torch.fft.fft(u, 2 * samples))[..., :samples]


def problem(samples: int, kind: str, batch: int = 1) -> tuple[list[Tensor], Tensor]:
    """Return the parameters and u (batch, r, time); complex modes count as two of the R real states."""
    modes = R if kind == "real" else R // 2
    dtype = torch.float32 if kind == "real" else torch.complex64
    parameters = [-torch.logspace(-4, 0, modes)]
    if kind == "complex":
        parameters.append(math.pi * torch.rand(modes))
    return parameters, torch.randn(batch, modes, samples, dtype=dtype)


def in_turn(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the least milliseconds of each; taken in turn, so that a busy moment hits all of them.

    Each is called once before it is timed, so that none pays for what the one before it left in the caches.
    On one thread it is CPU time, which other programs disturb less.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    least = [math.inf] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            function()
            start = clock()
            function()
            least[i] = min(least[i], 1e3 * (clock() - start))
    return least


def gradients(
    scan: Callable[..., Tensor], parameters: list[Tensor], u: Tensor, **masks: Tensor
) -> Callable[[], object]:
    """Return a function that runs a scan forward and backward."""
    leaves = [
        x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in (u, *parameters)
    ]
    ones = torch.ones_like(scan(*leaves, **masks))
    return lambda: torch.autograd.grad(scan(*leaves, **masks), leaves, ones)


def speed(lengths: list[int]) -> tuple[bool, dict[str, float]]:
    print("\nforward and backward, milliseconds, r = 32 real states; batch 8 has T / 8 samples a row")
    names = ("chunked", "plain", "masks", "batch 8")
    print(f"{'T':>7} {'modes':>8} " + " ".join(f"{name:>8}" for name in names) + "  FFT scan  ratio  bar")
    met, ratios = True, {}

    def channel_first(u: Tensor, log_decay: Tensor, phase: Tensor | None = None, **masks: Tensor) -> Tensor:
        return linear_recurrence(log_decay, phase, u.mT, **masks)[0].mT

    def plain(u: Tensor, log_decay: Tensor, phase: Tensor | None = None) -> Tensor:
        return linear_recurrence(log_decay, phase, u)[0]

    for samples in lengths:
        for kind in ("real", "complex"):
            parameters, u = problem(samples, kind)
            keep, reset = torch.rand(1, samples) > 0.1, torch.rand(1, samples) > 0.99
            chunked, *others, fft = in_turn(
                [
                    gradients(channel_first, parameters, u),
                    gradients(plain, parameters, u.mT.contiguous()),
                    gradients(channel_first, parameters, u, keep=keep, reset=reset),
                    gradients(channel_first, *problem(samples // 8, kind, batch=8)),
                    gradients(fft_scan, parameters, u),
                ],
                12 if samples < 50_000 else 6,
            )
            bar = BARS.get(samples) if kind == "real" else None
            verdict = "" if bar is None else f"{bar} {'met' if fft / chunked >= bar else 'MISSED'}"
            met &= bar is None or fft / chunked >= bar
            ratios[f"{kind}, {samples} samples"] = chunked / fft
            print(
                f"{samples:>7} {kind:>8} {chunked:8.2f} "
                + " ".join(f"{other:8.2f}" for other in others)
                + f" {fft:9.2f} {fft / chunked:6.1f}  {verdict}"
            )
    return met, ratios


def decode() -> None:
    log_decay, phase = -torch.rand(R // 2), torch.rand(R // 2)
    u, state, factors = torch.randn(1, R, 1), torch.randn(1, R), StepCoefficients.of(log_decay, phase)

    def repeat(step: Callable[[], object]) -> Callable[[], None]:
        return lambda: [step() for _ in range(200)] and None

    whole, kept = in_turn(
        [
            repeat(lambda: channel_scan(log_decay, phase, u, state=state)),
            repeat(lambda: factors.advance(u[..., 0], state)),
        ],
        10,
    )
    print(f"\none token, {R // 2} pairs: {whole * 5:.0f} microseconds, {kept * 5:.0f} with the factors kept")


def exported() -> None:
    """Print the time of the operator, and of the plain operators that exported programs have in its place."""
    log_decay, phase = -torch.rand(R // 2), torch.rand(R // 2)
    print(f"\nforward, {R // 2} pairs, milliseconds: operator, exported program, ratio")
    for samples in (32, 512, 2048, 8192):
        u = torch.randn(1, R, samples)
        operator, plain = in_turn(
            [lambda u=u: channel_scan(log_decay, phase, u), lambda u=u: exported_scan(log_decay, phase, u)], 5
        )
        print(f"{samples:>7} {operator:8.2f} {plain:8.2f} {plain / operator:6.1f}")


def signals(samples: int, modes: int) -> dict[str, Tensor]:
    white = torch.randn(1, samples, modes)
    spike = white.clone()
    spike[:, -1] = 1e6
    coloured = linear_recurrence(torch.full((modes,), -1e-3), None, white)[0].contiguous()
    return {
        "white": white,
        "spike of 1e6 at the end": spike,
        "coloured": coloured,
        "constant": torch.ones_like(white),
    }


def accuracy(lengths: list[int]) -> bool:
    print("\nlargest |e_t| / sum_j |a|^(t-j) |u_j|, float32, against the float64 loop; bar: 2e-6 for chunked")
    print(f"{'T':>7} {'modes':>8} {'input':>25} {'chunked':>9} {'masks':>9} {'fft':>9}")
    met, modes = True, 16
    log_decay = -torch.logspace(-6, 1, modes)
    for samples in lengths:
        for phase in (None, math.pi * torch.rand(modes)):
            keep, reset = torch.rand(1, samples) > 0.1, torch.rand(1, samples) > 0.999
            for name, u in signals(samples, modes).items():
                errors = []
                for method, masks in (
                    ("chunked", {}),
                    ("chunked", dict(keep=keep, reset=reset)),
                    ("fft", {}),
                ):
                    u64 = u.double()
                    true, _ = linear_recurrence(log_decay, phase, u64, method="sequential", **masks)
                    scale, _ = linear_recurrence(log_decay, None, u64.abs(), method="sequential", **masks)
                    s, _ = linear_recurrence(log_decay, phase, u, method=method, **masks)
                    errors.append(((s - true).abs() / scale.clamp(min=1e-300)).max().item())
                met &= max(errors[:2]) <= 2e-6
                kind = "real" if phase is None else "complex"
                print(f"{samples:>7} {kind:>8} {name:>25} " + " ".join(f"{e:9.1e}" for e in errors))
    return met


def memory(samples: int) -> bool:
    print("\nbytes saved for the backward pass, over those of the input")
    met = True
    for name, function in (
        ("chunked", lambda p, u: linear_recurrence(p, None, u.mT)[0]),
        ("FFT scan", lambda p, u: fft_scan(u, p)),
    ):
        (log_decay,), u = problem(samples, "real")
        log_decay.requires_grad_()
        u.requires_grad_()
        saved: dict[int, int] = {}

        def pack(t: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = t.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            kept_alive = function(log_decay, u)
        ratio = sum(saved.values()) / (u.numel() * u.element_size())
        met &= name != "chunked" or ratio <= 1.2
        print(f"  {name:>9}: {ratio:.2f}")
        del kept_alive
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 8192 samples")
    parser.add_argument("--threads", type=int, default=2)
    _baseline.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lengths = [2048, 8192] if options.quick else [2048, 8192, 32768, 131072]
    print(f"{options.threads} threads")
    met, ratios = speed(lengths)
    with torch.no_grad():
        decode()
        exported()
        met &= accuracy([lengths[0], lengths[-1]])
    met &= memory(8192)
    print("\nevery bar met" if met else "\nA BAR WAS MISSED")
    _baseline.compare("recurrence", ratios, save=options.save_baseline)


if __name__ == "__main__":
    main()
