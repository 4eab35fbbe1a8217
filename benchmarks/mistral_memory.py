"""The memory that training an adapter of Mistral-7B keeps, calculated.

    python benchmarks/mistral_memory.py [--method TITLE]    minutes; without a GPU and without a download

The numbers of parameters are those of the 32 layers on the meta device. The bytes that autograd keeps for the
backward pass are counted in models of one and of two layers of Mistral's true width, for 64 and for 128
tokens: the differences are what a layer and a token add. Every method has the parameters of LoRA with r = 16
on q and v, within 2 %; an HRM is beside attention.

Counted: the weights of the base, in bfloat16 or in four bits (NF4 of bitsandbytes with double quantization,
4.127 bits a weight of the linear layers; embeddings and head stay bfloat16); the adapters in float32 with
gradient and the two moments of AdamW; and the tensors that are kept for the backward pass of one sequence,
logits and loss included. Not counted: what a kernel allocates while it runs, the context of CUDA (about .5
GB) and fragmentation. So these are lower bounds; `bench_mistral.py` measures on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM

from hankelred_llm.experiments.budget import fit, parameters_of
from hankelred_llm.experiments.methods import Part, add_adapters, parse_method

LAYERS, WIDTH, VOCABULARY = 32, 4096, 32000
BUDGET = "lora-qv r=16"
METHODS = {
    "LoRA on q, v": "lora-qv",
    "LoRA on all linear layers": "lora-all",
    "HRM": "hrm-attention",
    "HRM and LoRA on all": "hrm-attention+lora-all share=0.4",
}
TOKENS = (2048, 8192, 32768)
FEW, MORE = 64, 128
BITS_OF_NF4 = 4.127
ADAM = 4 * 4  # weight, gradient and two moments, in float32


def mistral(layers: int, device: str) -> MistralForCausalLM:
    """Return a Mistral of true width."""
    config = MistralConfig(num_hidden_layers=layers, sliding_window=None, dtype=torch.bfloat16)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return MistralForCausalLM(config)
    finally:
        torch.set_default_dtype(default)


def zeros(layers: int) -> MistralForCausalLM:
    """Return a Mistral of true width whose weights are zero: the bytes do not depend on them."""
    model = mistral(layers, "meta").to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.zero_()
    return model


def kept(model: nn.Module, tokens: int) -> int:
    """Return the bytes that are kept for the backward pass of one sequence, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that was freed could be counted twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    del loss
    return sum(sizes.values())


def adapted(parts: tuple[Part, ...], layers: int, *, checkpointing: bool) -> nn.Module:
    """Return a small Mistral with the adapters of a method."""
    here = tuple(f"layers.{k}." for k in range(layers))
    parts = tuple(replace(p, larger=tuple(n for n in p.larger if n.startswith(here))) for p in parts)
    model = add_adapters(zeros(layers), parts)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def bytes_per_token(parts: tuple[Part, ...], *, checkpointing: bool) -> tuple[float, float]:
    """Return what a token adds in a layer, and what it adds outside of the layers."""
    slopes = []
    for layers in (1, 2):
        model = adapted(parts, layers, checkpointing=checkpointing)
        slopes.append((kept(model, MORE) - kept(model, FEW)) / (MORE - FEW))
        del model
    return slopes[1] - slopes[0], 2 * slopes[0] - slopes[1]


def base_bytes(four_bits: bool) -> float:
    """Return the bytes of the weights of Mistral-7B."""
    model = mistral(LAYERS, "meta")
    total = sum(p.numel() for p in model.parameters())
    linear = sum(
        m.weight.numel()
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and name != "lm_head"
    )
    return 2 * (total - linear) + linear * (BITS_OF_NF4 / 8 if four_bits else 2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", action="append", choices=METHODS, help="one of the table; repeatable")
    titles = parser.parse_args().method or list(METHODS)
    skeleton: Callable[[], nn.Module] = lambda: mistral(LAYERS, "meta")  # noqa: E731
    budget = parameters_of(BUDGET, skeleton)
    bases = {name: base_bytes(four) for name, four in (("bfloat16", False), ("4 bits", True))}
    print("base: " + ", ".join(f"{size / 1e9:.2f} GB in {name}" for name, size in bases.items()))
    print(f"{'method':28}{'parameters':>12}{'kB a token and layer':>22}  GB at {TOKENS} tokens, by base")
    for title in titles:
        method = fit(parse_method(METHODS[title]), budget, skeleton)
        whole, _ = bytes_per_token(method.parts, checkpointing=False)
        for checkpointing in (False, True):
            layer, outside = bytes_per_token(method.parts, checkpointing=checkpointing)
            # in the backward pass one layer is computed again
            again = whole if checkpointing else 0.0
            cells = []
            for base in bases.values():
                fixed = base + ADAM * method.parameters
                cells.append(
                    " / ".join(
                        f"{(fixed + n * (LAYERS * layer + again + outside)) / 1e9:.1f}" for n in TOKENS
                    )
                )
            label = title + (", checkpointing" if checkpointing else "")
            print(f"{label:44}{method.parameters:>12,}{layer / 1e3:>10.1f}   {'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
