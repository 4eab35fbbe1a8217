"""Pretrain a small model, then train, save and reload an adapter: no download, two minutes on two cores.

A small Mistral is pretrained on bytes of Python's standard library and frozen. An adapter then learns
English, from the texts of Python's own help, is saved, and generates the same tokens in a new process.

    python examples/demo_llm.py [--out FOLDER] [--seconds N]
"""

from __future__ import annotations

import argparse
import ast
import math
import sysconfig
import time
from pathlib import Path

import torch
import train_adapter
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

LENGTH = 256


def library(limit: int = 4_000_000) -> str:
    """Return source text of the standard library, without the help texts."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts, size = [], 0
    for path in sorted(folder.glob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
        if size > limit:
            break
    return "".join(parts)


def help_texts() -> str:
    """Return the English texts behind Python's ``help()``."""
    import pydoc_data.topics

    tree = ast.parse(Path(pydoc_data.topics.__file__).read_text(encoding="utf-8"))
    return "\n".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and len(str(node.value)) > 500
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the 256 bytes, and padding."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**vocabulary, "<pad>": len(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def pretrain(folder: Path, seconds: float) -> None:
    """Train a small byte-level Mistral for a while, and write it as a model folder."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    ids = torch.tensor(tokenizer(library()).input_ids)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            sliding_window=None,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    start, losses = time.perf_counter(), []
    with Progress(transient=True) as bar:
        task = bar.add_task("pretraining a small model", total=seconds)
        while (passed := time.perf_counter() - start) < seconds:
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1.0, 10 * passed / seconds, 1.05 - passed / seconds)
            offsets = torch.randint(ids.numel() - LENGTH, (8,)).tolist()
            rows = torch.stack([ids[offset : offset + LENGTH] for offset in offsets])
            loss = model(input_ids=rows, labels=rows).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.update(task, completed=passed)
    size, last = sum(p.numel() for p in model.parameters()), torch.tensor(losses[-20:]).mean() / math.log(2)
    print(f"pretrained {size:,} parameters for {len(losses)} steps: {last:.2f} bits per byte of source code")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Pretrain, then run train_adapter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the output files")
    parser.add_argument("--seconds", type=float, default=45.0, help="seconds of pretraining")
    parser.add_argument("--steps", type=int, default=100, help="steps of training the adapter")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = arguments.out / "base-model"
    pretrain(base, arguments.seconds)
    text = arguments.out / "help.txt"
    text.write_text(help_texts(), encoding="utf-8")
    train_adapter.main(
        [
            *("--model", str(base), "--text", str(text), "--out", str(arguments.out / "adapter")),
            *("--steps", str(arguments.steps), "--length", str(LENGTH), "--prompt", "The statement "),
        ]
    )


if __name__ == "__main__":
    main()
