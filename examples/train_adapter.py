"""An adapter of a frozen language model: attach, train, generate, save, reload in a new process.

    python examples/train_adapter.py [--model FOLDER] [--text FILE] [--out FOLDER]

The model is a folder, or with a connection to the Hugging Face hub a name such as
mistralai/Mistral-7B-v0.1; without it, a small one is used. The adapter is trained on the first nine tenths of
the text and evaluated on the last; a new process that loads the saved adapter must generate the same text.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from _model_and_text import pretrained_model, text_file
from matplotlib import pyplot
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Trainer, TrainingArguments

import hankelred_llm

# warnings of libraries about future versions of each other are not useful to a user
warnings.filterwarnings("ignore", category=FutureWarning)


def blocks(text: str, tokenizer, length: int) -> torch.Tensor:
    """Return the text as token ids, (n, length); an incomplete last block is left out."""
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    n = ids.numel() // length
    if n < 1:
        sys.exit(f"error: the text has {ids.numel()} tokens, less than one block of {length}; see --length")
    return ids[: n * length].view(n, length)


@torch.no_grad()
def bits_per_token(model, ids: torch.Tensor) -> float:
    """Return the mean cross-entropy in bits, over blocks that the adapter was not trained on."""
    model.eval()
    rows = ids.to(model.device).split(8)  # the Trainer may have moved the model to a GPU
    losses = [model(input_ids=batch, labels=batch).loss.item() for batch in rows]
    return sum(losses) / len(losses) / math.log(2)


def train(model, ids: torch.Tensor, out: Path, *, steps: int, batch: int, learning_rate: float):
    """Train the adapter with transformers' Trainer; return the loss, in bits per token, by step."""
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        weight_decay=0.0,
        save_strategy="no",
        logging_steps=max(steps // 20, 1),
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [(entry["step"], float(entry["loss"]) / math.log(2)) for entry in logs]


def poles(model) -> dict[int, torch.Tensor]:
    """Return the poles of every layer's system, complex."""
    systems = hankelred_llm.get_systems(model)
    return {layer: torch.as_tensor(log_poles).exp() for layer, (log_poles, _, _) in systems.items()}


def draw(losses, before, after, path: Path) -> None:
    """Draw the loss, and the poles before and after training: near the circle the memory is long."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.plot(*zip(*losses, strict=True), color="#0072B2")
    left.set(xlabel="step", ylabel="bits per token", title="training")
    circle = torch.linspace(0, 2 * math.pi, 200)
    right.plot(circle.cos(), circle.sin(), color="0.6", linewidth=0.8)
    for layer, layer_poles in after.items():
        color = pyplot.get_cmap("viridis")(layer / max(len(after) - 1, 1))
        right.plot(before[layer].real, before[layer].imag, "o", color=color, markersize=3, alpha=0.3)
        right.plot(layer_poles.real, layer_poles.imag, "o", color=color, markersize=4, label=f"layer {layer}")
    right.set(aspect="equal", xlabel="real", ylabel="imaginary", title="poles: start (pale), trained")
    right.legend(fontsize="small", loc="center", ncols=2)
    figure.savefig(path, dpi=120)


@torch.no_grad()
def generate(model, tokenizer, prompt: str, tokens: int, *, use_cache: bool = True) -> list[int]:
    """Return the token ids of the prompt and its continuation by greedy decoding."""
    model.eval()
    encoding = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    options["pad_token_id"] = tokenizer.pad_token_id or 0
    return model.generate(**encoding, **options, use_cache=use_cache)[0].tolist()


def load(name: str):
    """Return the frozen model and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def run(arguments: argparse.Namespace) -> None:
    """Train, and compare with a new process."""
    torch.manual_seed(0)
    base, tokenizer = load(arguments.model)
    arguments.out.mkdir(parents=True, exist_ok=True)
    ids = blocks(Path(arguments.text).read_text(encoding="utf-8"), tokenizer, arguments.length)
    n_validation = max(1, len(ids) // 10)
    training, validation = ids[:-n_validation], ids[-n_validation:][:64]

    model = hankelred_llm.attach(base, r=arguments.r)
    model.print_trainable_parameters()
    before, poles_before = bits_per_token(model, validation), poles(model)
    start = time.perf_counter()
    losses = train(
        model,
        training,
        arguments.out,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
    )
    model.save_pretrained(arguments.out)  # before anything else can fail
    after = bits_per_token(model, validation)
    print(
        f"{validation.numel()} validation tokens: {before:.3f} bits per token, {after:.3f} with the adapter"
    )
    print(f"{arguments.steps} steps in {time.perf_counter() - start:.0f} s")

    draw(losses, poles_before, poles(model), arguments.out / "training.png")
    count = max(arguments.tokens, 16)  # fewer would hardly test the state
    tokens = generate(model, tokenizer, arguments.prompt, count)
    print("\n" + tokenizer.decode(tokens, skip_special_tokens=True) + "\n")
    without_cache = generate(model, tokenizer, arguments.prompt, count, use_cache=False)
    cache_agrees = without_cache == tokens
    print(f"the same {len(tokens)} tokens with the state in the cache and without a cache: {cache_agrees}")
    command = [sys.executable, __file__, "--model", arguments.model, "--adapter", str(arguments.out)]
    command += ["--prompt", arguments.prompt, "--tokens", str(count)]
    reloaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    same = json.loads(reloaded.splitlines()[-1]) == tokens
    print(f"adapter saved to {arguments.out}; a new process generates the same tokens: {same}")
    if not same:
        sys.exit("error: the saved adapter does not generate what the trained one does")
    if not cache_agrees:
        sys.exit(
            "error: other tokens with a cache than without (in half precision two may be equally probable)"
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name; default: a small model")
    parser.add_argument("--text", help="plain text; default: a text that is there")
    parser.add_argument("--adapter", type=Path, help="only load this adapter, continue the prompt, print ids")
    parser.add_argument("--out", type=Path, default=Path("demo-output/adapter"), help="folder of the adapter")
    parser.add_argument("--r", type=int, default=16, help="states per layer")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8, help="blocks per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per block")
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="1e-3 to 3e-3 on SmolLM2-135M")
    parser.add_argument("--prompt", default="My lord, ", help="text to continue")
    parser.add_argument("--tokens", type=int, default=60, help="number of tokens to generate")
    arguments = parser.parse_args()
    if arguments.adapter is not None:
        base, tokenizer = load(arguments.model)
        model = PeftModel.from_pretrained(base, str(arguments.adapter))
        print(json.dumps(generate(model, tokenizer, arguments.prompt, arguments.tokens)))
        return
    arguments.model = arguments.model or str(pretrained_model(arguments.out.parent))
    arguments.text = arguments.text or str(text_file(arguments.out.parent))
    if not Path(arguments.text).is_file():
        parser.error(f"no text file {arguments.text}; name one with --text")
    run(arguments)


if __name__ == "__main__":
    main()
