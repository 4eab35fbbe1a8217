"""The chunked recurrence against the zero-padded FFT convolution: local error, saved memory, time, in one run.

Run with ``python benchmarks/bench_recurrence.py``: about three minutes; ``--threads`` (2), ``--quick`` up to 8192
samples. The FFT scan is what the paper's method is known for, with its gradient by autograd.

Predictions, each written before the measurement it speaks of; one thread, CPU time, nanoseconds per number.

1. A matrix product with the Toeplitz matrix of a chunk costs 64 operations a number at 32 samples a chunk, some
   2.5 ns, and needs three more passes to keep an Inf from reaching earlier states through a factor 0. Elementwise
   sweeps over transposed blocks: two copies at 0.7 (strided), four passes at 0.15 to 0.3: 2 to 2.5 ns, the same
   without those passes. Seen: copy in 1.0, copy out 1.6, sweeps and prefix 1.3, so 3.9 forward.
2. The copy out should not cost more than the copy in. Rows of 4096 bytes times a power of two share cache lines;
   an odd number of lines a row should bring 1.6 down to 0.7. Seen: 1.64 to 0.67.
3. Recursive doubling over the 2048 chunks of a block is 11 steps in float64 over all of them, about half of all the
   work at 16 samples a chunk. By halves down to 32 chunks it is 4 passes in all. Seen: 55-60 ms at 131072 samples
   before, 41-50 after, on a machine that was busy.
4. Together 7 ns forward and backward, so 30 ms of CPU time at 131072 samples and r = 32, and 15 on two threads that
   have a core each; the FFT scan takes 600 by the reference's figures. Seen: 40 and 890 ms of CPU time on one
   thread with other work on both cores. Two threads need both cores at once, some 100 times a scan: on a busy
   machine each of these may wait, and two threads are then slower than one.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hankelred_llm import linear_recurrence

BARS = {8192: 3, 32768: 10, 131072: 20}
R = 32


def fft_scan(log_decay: Tensor, phase: Tensor | None, u: Tensor) -> Tensor:
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
    """Return the least milliseconds of each; taken in turn, so that a busy moment hits all of them."""
    least = [math.inf] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            least[i] = min(least[i], 1e3 * (time.perf_counter() - start))
    return least


def speed(lengths: list[int]) -> bool:
    print("\nforward and backward, milliseconds, r = 32 real states, batch 1 unless said")
    print(
        f"{'T':>7} {'modes':>8} {'chunked':>8} {'plain':>8} {'masks':>8} {'batch 8':>8} {'FFT scan':>9} {'ratio':>6}  bar"
    )
    met = True
    for samples in lengths:
        for kind in ("real", "complex"):
            parameters, u = problem(samples, kind)
            _, wide = problem(samples // 8, kind, batch=8)
            keep, reset = torch.rand(1, samples) > 0.1, torch.rand(1, samples) > 0.99
            gradient = torch.randn_like(u)

            def run(u: Tensor = u, parameters: list[Tensor] = parameters, **masks: Tensor) -> None:
                leaves = [x.detach().requires_grad_() for x in (u, *parameters)]
                phase = leaves[2] if len(leaves) == 3 else None
                s, _ = linear_recurrence(leaves[1], phase, leaves[0].mT, **masks)
                torch.autograd.grad(s, leaves, torch.ones_like(s) if s.shape[0] > 1 else gradient.mT)

            def run_plain(u: Tensor = u.mT.contiguous(), parameters: list[Tensor] = parameters) -> None:
                leaves = [x.detach().requires_grad_() for x in (u, *parameters)]
                s, _ = linear_recurrence(leaves[1], leaves[2] if len(leaves) == 3 else None, leaves[0])
                torch.autograd.grad(s, leaves, gradient.mT)

            def run_fft(u: Tensor = u, parameters: list[Tensor] = parameters) -> None:
                leaves = [x.detach().requires_grad_() for x in (u, *parameters)]
                s = fft_scan(leaves[1], leaves[2] if len(leaves) == 3 else None, leaves[0])
                torch.autograd.grad(s, leaves, gradient)

            functions = [
                run,
                run_plain,
                lambda run=run, keep=keep, reset=reset: run(keep=keep, reset=reset),
                lambda run=run, wide=wide: run(u=wide),
                run_fft,
            ]
            chunked, plain, masked, batch, fft = in_turn(functions, 12 if samples < 50_000 else 6)
            bar = BARS.get(samples, 1) if kind == "real" else 1
            met &= fft / chunked >= bar
            print(
                f"{samples:>7} {kind:>8} {chunked:8.2f} {plain:8.2f} {masked:8.2f} {batch:8.2f} {fft:9.2f} "
                f"{fft / chunked:6.1f}  {bar} {'met' if fft / chunked >= bar else 'MISSED'}"
            )
    return met


def decode() -> None:
    parameters, u = problem(1, "complex", batch=1)
    state = torch.randn(1, R // 2, dtype=torch.complex64)
    from hankelred_llm._scan import column_scan

    columns, before = torch.randn(1, R, 1), torch.cat([state.real, state.imag], 1)

    def steps() -> None:
        for _ in range(200):
            column_scan(*parameters, columns, state=before)

    with torch.no_grad():
        (least,) = in_turn([steps], 10)
    print(f"\none token, {R // 2} pairs: {least / 200 * 1e3:.0f} microseconds")


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
        ("FFT scan", lambda p, u: fft_scan(p, None, u)),
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lengths = [2048, 8192] if options.quick else [2048, 8192, 32768, 131072]
    print(f"{options.threads} threads")
    met = speed(lengths)
    with torch.no_grad():
        decode()
        met &= accuracy([lengths[0], lengths[-1]])
    met &= memory(8192)
    print("\nevery bar met" if met else "\nA BAR WAS MISSED")


if __name__ == "__main__":
    main()
