"""A training step and a decoded token of a whole Mistral-7B, HRM against LoRA as peft computes it.

    python benchmarks/bench_mistral.py [--tokens 2048 8192 32768 131072] [--out FILE]

For a GPU with 48 GB, or 80 GB for the longest. True shapes, weights random and bfloat16, so nothing is
fetched; full attention (no window), gradient checkpointing, one sequence. HRM with r = 26 beside the MLP
and LoRA with r = 16 on q_proj and v_proj have the same number of parameters. The loss is that of the last
64 tokens: the logits of 131072 tokens would take more memory than the model, for every adapter the same.
The backward pass is as long as with all. ``--device cpu --layers 1 --width 256 --tokens 64`` shows that the
script runs.

Prediction, before any measurement on a GPU: a step is bound by the base, so HRM/LoRA .95 to 1.0 at each
length; the scan moves 26 numbers a token where the base moves thousands. One token is bound by the calls that
are launched: LoRA adds 2 x 3 a layer, HRM about 10, so 1.0 to 1.1 without compilation.

Seen on a CPU, one layer, 512 tokens: 1.05. Adapters ran after their block, so checkpointing ran the down
projection of every layer once more. Listening before the block: 1.00; with three layers .99, a token 1.01.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

import hankelred_llm

LOSS_TOKENS = 64
PROMPT = 2048
METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "no adapter": lambda base: base,
    "LoRA r = 16 on q, v": lambda base: get_peft_model(
        base, LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    ),
    "HRM r = 26": lambda base: hankelred_llm.attach(base, r=26),
}


def base_model(layers: int, width: int, longest: int, device: torch.device) -> MistralForCausalLM:
    config = MistralConfig(
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=max(1, width // 512),
        head_dim=128,
        max_position_embeddings=longest,
        sliding_window=None,
        dtype=torch.bfloat16,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return MistralForCausalLM(config)
    finally:
        torch.set_default_dtype(default)


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Return the median seconds and the most memory, in GB, that the device had allocated."""
    cuda, seen = device.type == "cuda", []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats + 1):  # the first one compiles kernels and fills caches
        start = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        seen.append(time.perf_counter() - start)
    return statistics.median(seen[1:]), torch.cuda.max_memory_allocated() / 1e9 if cuda else float("nan")


def training(model: nn.Module, ids: Tensor, device: torch.device, repeats: int) -> tuple[float, float]:
    """Forward, backward, and a step of AdamW."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    targets = ids[0, -LOSS_TOKENS:]

    def step() -> None:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=LOSS_TOKENS).logits
        nn.functional.cross_entropy(logits[0].float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    try:
        return seconds(step, device, repeats)
    finally:
        model.gradient_checkpointing_disable()


@torch.no_grad()
def decoding(model: nn.Module, ids: Tensor, device: torch.device, repeats: int) -> tuple[float, float]:
    """One token after a prompt, without compilation; each continues the one before."""
    model.eval()
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    return seconds(
        lambda: model(input_ids=ids[:, :1], past_key_values=cache).logits.argmax(-1), device, 8 * repeats
    )


def attempt(run: Callable[[], tuple[float, float]]) -> tuple[float, float] | None:
    try:
        return run()
    except torch.OutOfMemoryError:
        return None
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def rows(
    options: argparse.Namespace, device: torch.device
) -> dict[str, dict[str, tuple[float, float] | None]]:
    """Measure every method at every length, in turns; the base stays where it is."""
    base = base_model(options.layers, options.width, max(options.tokens) + PROMPT, device)
    base.requires_grad_(False)
    found: dict[str, dict[str, tuple[float, float] | None]] = {}
    for tokens in [0, *options.tokens]:
        name = f"training, {tokens} tokens" if tokens else "decoding, 1 token"
        measure = training if tokens else decoding
        ids = torch.randint(0, base.config.vocab_size, (1, tokens or PROMPT), device=device)
        found[name] = {}
        for method, adapt in METHODS.items():
            if tokens and method == "no adapter":
                continue
            model = adapt(base)
            found[name][method] = attempt(lambda: measure(model, ids, device, options.repeats))  # noqa: B023
            if model is not base:
                base = model.unload()
            print(f"{name}, {method}: {_cell(found[name][method])}", flush=True)
    return found


def table(found: dict[str, dict[str, tuple[float, float] | None]]) -> str:
    """Return times and GB as Markdown; the ratio is that of the times of HRM and LoRA."""
    text = "| | " + " | ".join(METHODS) + " | HRM / LoRA |\n|" + "---|" * (len(METHODS) + 2) + "\n"
    for name, seen in found.items():
        cells = ["" if method not in seen else _cell(seen[method]) for method in METHODS]
        hrm, lora = seen["HRM r = 26"], seen["LoRA r = 16 on q, v"]
        ratio = f"{hrm[0] / lora[0]:.2f}" if hrm and lora else ""
        text += f"| {name} | " + " | ".join(cells) + f" | {ratio} |\n"
    return text


def _cell(seen: tuple[float, float] | None) -> str:
    if seen is None:
        return "out of memory"
    duration = f"{seen[0]:.4g} s" if seen[0] >= 1 else f"{1e3 * seen[0]:.3g} ms"
    return duration if math.isnan(seen[1]) else f"{duration}, {seen[1]:.1f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 32768, 131072])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096, help="a multiple of 128")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, help="a file for the table")
    options = parser.parse_args()
    if options.layers < 1 or options.width < 128 or options.width % 128 or min(options.tokens) < LOSS_TOKENS:
        parser.error(
            f"it takes a layer, a width that is a multiple of 128, and {LOSS_TOKENS} tokens at least"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "there is no GPU here; --device cpu with few layers and a small width shows that this runs"
        )
    device = torch.device(options.device)
    torch.manual_seed(0)
    found = rows(options, device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    setting = f"{where}, torch {torch.__version__}, {options.layers} layers of width {options.width}"
    text = f"{setting}\n\n{table(found)}"
    print("\n" + text)
    if options.out:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
