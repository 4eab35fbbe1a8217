"""The cost of a training step: LoRA, HRM and both in one adapter, in time and in what autograd keeps.

    python benchmarks/bench_training.py [--base FILE] [--layers 6] [--lengths 512 1024 2048] [--repeats 3]

The base has the shape of SmolLM2-135M, without its vocabulary, and random weights, or is the first layers of
the model that --base names, such as a GGUF file. The adapters have about as many parameters as LoRA of rank
16 on the query and value projections. Forward and backward pass of one row on one thread; times are those of
the process, the least of the repeats, which are interleaved. "Kept" is the memory of all tensors that
autograd saves for the backward pass, each storage once, parameters left out.
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import torch
from bench_decode import make_models


def kept(model: Any, ids: torch.Tensor) -> float:
    """Return the MB that the forward pass saves for the backward pass."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage  # held, so that no address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(ids, use_cache=False, labels=ids).loss
    total = sum(storage.nbytes() for storage in storages.values()) / 2**20
    del loss
    return total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="a GGUF file, or the folder or name of a model")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained = {
        name: m.train()
        for name, m in make_models(options.layers, options.base).items()
        if "merged" not in name and name != "base"
    }
    for length in options.lengths:
        ids = torch.randint(512, (1, length))
        least = dict.fromkeys(trained, float("inf"))
        for _ in range(options.repeats):
            for name, model in trained.items():
                gc.collect()
                began = time.process_time()
                model(ids, use_cache=False, labels=ids).loss.backward()
                least[name] = min(least[name], time.process_time() - began)
                model.zero_grad()
        for name, model in trained.items():
            memory, reference = kept(model, ids), least["LoRA q,v"]
            ratio = least[name] / reference
            print(f"T={length:5d} {name:14s} {least[name]:6.2f} s ({ratio:.2f})  {memory:7.1f} MB kept")


if __name__ == "__main__":
    main()
