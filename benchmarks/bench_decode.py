"""The cost of a decoded token: base, LoRA, HRM and both in one adapter, merged and not.

    python benchmarks/bench_decode.py [--base FILE] [--layers 30] [--batch 1] [--tokens 40] [--runs 5]
    python benchmarks/bench_decode.py --profile    the operators of a token

The base has the shape of SmolLM2-135M, without its vocabulary, and random weights, on whose values the cost
does not depend, or is the model that --base names, such as a GGUF file; all models share its weights. They
decode in turn, token by token, in one process on one thread, so that the load of the machine is the same for
all; times are those of the process, medians over tokens and then over runs. What is added to the base is the
median difference to the base at the same token. Masks and positions are given, as generate gives them. A
merged LoRA is not listed: it is the base.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import peft
import torch
import transformers
from torch.profiler import ProfilerActivity, profile

import hankelred_llm
from hankelred_llm.experiments.base_models import find_model
from hankelred_llm.state.cache import CROPPABLE_TOKENS, find_state

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
QV, READ = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj"]


def with_random_maps(model: Any) -> Any:
    """Give every adapter parameter that is zero random values, as after training."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.01)
    return model.eval()


def make_base(layers: int, name: str | None) -> Any:
    """Return a base with random weights, or the one of a name, with its first layers."""
    if name is None:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=layers, **SHAPE))
    base: Any = find_model(name, "float32").load()
    del base.model.layers[layers:]
    base.config.num_hidden_layers = len(base.model.layers)
    return base


def make_models(layers: int, base_name: str | None = None) -> dict[str, Any]:
    """Return the models by name; adapters have 921,600 parameters (LoRA) and about as many (the others)."""
    base = make_base(layers, base_name).eval()

    def twin() -> Any:
        return copy.deepcopy(base, {id(p): p for p in base.parameters()})

    both = {"site": "attention", "r": 8, "static_readouts": READ, "feedthrough": True}
    both["lora"] = {"r": 3, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
    models = {
        "base": base,
        "LoRA q,v": peft.get_peft_model(twin(), peft.LoraConfig(r=16, target_modules=QV)),
        "LoRA all": peft.get_peft_model(twin(), peft.LoraConfig(r=3, target_modules="all-linear")),
        "HRM mlp": hankelred_llm.attach(twin(), r=26),
        "HRM attention": hankelred_llm.attach(twin(), r=26, site="attention"),
        "both": hankelred_llm.attach(twin(), **both),
        "both merged": hankelred_llm.attach(twin(), **both),
    }
    models = {name: with_random_maps(model) for name, model in models.items()}
    models["both merged"].merge_static()
    return models


def cache_sizes(model: Any) -> str:
    """Return the kB of keys and values of a token, and those of the states, of one row."""
    prompt = torch.zeros(1, CROPPABLE_TOKENS + 1, dtype=torch.long)  # that many states are always kept
    cache = model(prompt, use_cache=True).past_key_values
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    keys = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) / prompt.shape[1]
    text = f"cache {keys / 1e3:.1f} kB a token"
    state = find_state(cache)
    if state is None:  # no adapter with a state
        return text
    held = sum(piece.nbytes for history in state._all() for _, piece in history._pieces)
    last = sum(tensor.nbytes for tensor in hankelred_llm.get_states(cache).values())
    return f"{text}, states {held / 1e3:.1f} kB, the last {last / 1e3:.1f} kB"


@torch.no_grad()
def decode(models: dict[str, Any], batch: int, tokens: int) -> dict[str, list[float]]:
    """Return the times of all tokens by model, in ms, decoding in turn after a prompt of 32 tokens."""
    vocabulary = models["base"].config.vocab_size
    ids = torch.randint(vocabulary, (batch, 32))
    outs = {name: model(ids, use_cache=True) for name, model in models.items()}
    caches = {name: out["past_key_values"] for name, out in outs.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for step in range(tokens + 3):
        token = torch.randint(vocabulary, (batch, 1))
        position = torch.full((batch, 1), 32 + step)
        mask = torch.ones(batch, 33 + step, dtype=torch.long)
        names = list(models)
        for name in names[step % len(names) :] + names[: step % len(names)]:
            model = models[name]
            began = time.process_time()
            model(
                token,
                use_cache=True,
                past_key_values=caches[name],
                attention_mask=mask,
                position_ids=position,
            )
            if step >= 3:  # the first ones prepare
                times[name].append(1e3 * (time.process_time() - began))
    return times


@torch.no_grad()
def show_profile(model: Any) -> None:
    """Print the operators of ten tokens by their time."""
    out = model(torch.randint(512, (1, 32)), use_cache=True)
    token = torch.randint(512, (1, 1))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(10):
            model(token, use_cache=True, past_key_values=out["past_key_values"])
    print(
        profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=40)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="a GGUF file, or the folder or name of a model")
    for name, value in (("layers", 30), ("batch", 1), ("tokens", 40), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = make_models(options.layers, options.base)
    if options.profile:
        for name in ("base", "LoRA q,v", "HRM attention", "both", "both merged"):
            print(name)
            show_profile(models[name])
        return
    runs = [decode(models, options.batch, options.tokens) for _ in range(options.runs)]
    added = {
        name: [statistics.median(a - b for a, b in zip(run[name], run["base"], strict=True)) for run in runs]
        for name in models
    }
    reference = statistics.median(added["LoRA q,v"])
    for name, model in models.items():
        median = statistics.median(statistics.median(run[name]) for run in runs)
        more = statistics.median(added[name])
        trained = sum(p.numel() for key, p in model.named_parameters() if "lora_" in key or "hrm_" in key)
        with torch.no_grad():
            sizes = cache_sizes(model)
        print(
            f"{name:14s} {median:7.2f} ms, added {more:6.2f} ({min(added[name]):5.2f} to "
            f"{max(added[name]):5.2f}), {more / reference:.2f} of LoRA q,v; {trained:,} parameters; "
            f"{sizes}"
        )


if __name__ == "__main__":
    main()
