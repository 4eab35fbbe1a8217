"""Speed of an HRM adapter against LoRA as peft computes it, on the shapes of Mistral-7B.

    python benchmarks/bench_adapter.py [--threads 1] [--tokens 2048 8192]

Layers of width 4096; HRM with r = 26 in parallel to the MLP, LoRA with r = 16 on q_proj (4096 to 4096) and
v_proj (4096 to 1024), which have the same number of parameters. The blocks themselves take no time here:
they return a precomputed tensor, so that only the adapters are timed. Both run in turn in one process, and
medians are compared.

Prediction, before measuring: both are bound by skinny matrix products, 2 against 4 in the forward pass, of
equal numbers of operations. LoRA also writes its scaled update and the sum once each for q and v, where HRM
writes its own once, and the sum. The scan is 1-2 %. So .5-.8 in training. One token: 2 products and one step
against 4 products in two modules; .5-.8. It is measured over the 32 layers of a model, each with its own
weights: A times the states is one operation for all, and weights do not stay in the processor's caches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import _baseline
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from hankelred_llm.adapter.config import HRMConfig
from hankelred_llm.adapter.layer import HRMLayer
from hankelred_llm.adapter.system import StaticMaps
from hankelred_llm.ops.masks import SegmentMasks
from hankelred_llm.state import forward_context
from hankelred_llm.state.cache import HRMState
from hankelred_llm.state.decoder_call import DecoderCall

WIDTH, VALUES, LAYERS = 4096, 1024, 32


def enter_layer(tokens: int) -> forward_context.ForwardContext:
    """Make the layers that are called next run in a forward pass over one row without padding."""
    call = DecoderCall(
        batch=1,
        time=tokens,
        cache=None,
        use_cache=False,
        mask=None,
        positions=None,
        cumulative_lengths=None,
        document_ids=None,
    )
    context = forward_context.ForwardContext(call, SegmentMasks(None, None), 1)
    forward_context._running.call = forward_context.LayerCall(context)
    return context


class Free(nn.Linear):
    """A projection with a precomputed output."""

    output: Tensor

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.output


class FreeBlock(nn.Module):
    """A block with a precomputed output."""

    output: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.output


def lora_layer() -> nn.Module:
    layer = nn.Module()
    layer.q_proj, layer.v_proj = Free(WIDTH, WIDTH, bias=False), Free(WIDTH, VALUES, bias=False)
    config = LoraConfig(r=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return inject_adapter_in_model(config, layer)


def hrm_layer(index: int = 0) -> tuple[FreeBlock, HRMLayer]:
    block = FreeBlock()
    layer = HRMLayer(block, index, "mlp", WIDTH)
    layer.method_adapters = ("default",)
    config = HRMConfig(r=26, gate_init=0.0)
    layer.update_layer("default", config, config.modes_of("layers.0.mlp"), StaticMaps())
    with torch.no_grad():
        layer.system("default").gate.fill_(1.0)
    return block, layer


def run_in_turns(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seen[2:]) for name, seen in times.items()}


def training(tokens: int, repeats: int) -> dict[str, float]:
    """Run forward and backward, with the gradient of the input, as in every layer but the first."""
    x = torch.randn(1, tokens, WIDTH, requires_grad=True)
    into_block, into_values = torch.randn(1, tokens, WIDTH), torch.randn(1, tokens, VALUES)
    lora = lora_layer()
    lora.q_proj.base_layer.output, lora.v_proj.base_layer.output = (
        torch.zeros_like(into_block),
        torch.zeros_like(into_values),
    )
    block, _ = hrm_layer()
    block.output = torch.zeros_like(into_block)
    enter_layer(tokens)

    def run_lora() -> None:
        torch.autograd.backward([lora.q_proj(x), lora.v_proj(x)], [into_block, into_values])

    def run_hrm() -> None:
        torch.autograd.backward([block(x)], [into_block])

    return run_in_turns({"LoRA": run_lora, "HRM": run_hrm}, repeats)


@torch.no_grad()
def decoding(repeats: int) -> dict[str, float]:
    """Decode one token, a pass of its own with the states in a cache; seconds a layer."""
    x = torch.randn(1, 1, WIDTH)
    loras, blocks, state = [], [], HRMState(static=False)
    for index in range(LAYERS):
        lora = lora_layer()
        lora.q_proj.base_layer.output = torch.zeros(1, 1, WIDTH)
        lora.v_proj.base_layer.output = torch.zeros(1, 1, VALUES)
        loras.append(lora)
        block, hrm = hrm_layer(index)
        block.output = torch.zeros(1, 1, WIDTH)
        blocks.append(block)
        state.store(hrm.cache_key, {hrm.system("default").identity.value: torch.randn(1, 26, 40)})

    def run_lora() -> None:
        for lora in loras:
            lora.q_proj(x)
            lora.v_proj(x)

    def run_hrm() -> None:
        context = enter_layer(1)
        context._state = state
        for block in blocks:
            block(x)
        context.leave(finished=True)

    runs = {"LoRA": run_lora, "HRM": run_hrm}
    return {name: seconds / LAYERS for name, seconds in run_in_turns(runs, 10 * repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--repeats", type=int, default=7)
    _baseline.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = [(f"training, {n} tokens", training(n, options.repeats)) for n in options.tokens]
    rows.append(("decoding, 1 token", decoding(options.repeats)))
    print(f"{'':24}{'LoRA ms':>10}{'HRM ms':>10}{'ratio':>8}")
    for name, seen in rows:
        print(
            f"{name:24}{1e3 * seen['LoRA']:10.3f}{1e3 * seen['HRM']:10.3f}{seen['HRM'] / seen['LoRA']:8.2f}"
        )
    ratios = {name: seen["HRM"] / seen["LoRA"] for name, seen in rows}
    _baseline.compare("adapter", ratios, save=options.save_baseline)


if __name__ == "__main__":
    main()
