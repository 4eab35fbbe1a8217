"""Train an adapter on real text, compute its spectra, and reduce it: exact against empirical truncation.

An adapter with 16 states per layer is trained on a text for a minute in a small pretrained model. It is
then reduced to fewer states by exact and by empirical truncation, and each result is evaluated on unseen
text: by the error of the layers' outputs, and by the loss. Run with

    python examples/reduce_adapter.py

It writes reduce_adapter.png.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import transformers
from _model_and_text import pretrained_model, text_file

import hankelred_llm

STEPS, LENGTH, ROWS, STATES = 80, 256, 8, 16
ORDERS = (12, 8, 4)


def batches_of(tokens: torch.Tensor, count: int) -> list[dict[str, torch.Tensor]]:
    """Cut a text into batches for language modeling."""
    rows = tokens[: count * ROWS * LENGTH].view(count, ROWS, LENGTH)
    return [{"input_ids": batch, "labels": batch} for batch in rows]


def train(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> None:
    """Train the trainable parameters for one epoch."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.0)
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"  step {step:3d}: loss {float(loss.detach()):.4f}")


@torch.no_grad()
def loss_on(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Return the mean loss."""
    return sum(float(model(**batch).loss) for batch in batches) / len(batches)


def main() -> None:
    """Run the example."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    out = Path("demo-output")
    folder = pretrained_model(out)
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor(tokenizer(text_file(out).read_text(encoding="utf-8")[:900_000])["input_ids"])
    batches = batches_of(tokens, STEPS + 24)
    training, calibration_batches = batches[:STEPS], batches[STEPS : STEPS + 16]
    unseen = batches[STEPS + 16 :]
    print(f"base model: loss {loss_on(base, unseen):.4f}")
    model = hankelred_llm.attach(base, r=STATES)
    train(model, training)
    model.eval()
    full_loss = loss_on(model, unseen)
    print(f"trained adapter: loss {full_loss:.4f}\n")

    calibration = hankelred_llm.calibrate(model, calibration_batches)
    spectra = hankelred_llm.hankel_spectra(model, calibration)
    print(spectra, "\n")

    losses: dict[str, list[float]] = {"exact truncation": [], "chosen on held-out rows": []}
    for order in ORDERS:
        by_bound, by_data = copy.deepcopy(model), copy.deepcopy(model)
        exact = hankelred_llm.reduce(by_bound, order=order)
        best = hankelred_llm.reduce(by_data, order=order, calibration=calibration)
        print(f"--- {order} of {STATES} states per layer\n{best}")
        for name, reduced in zip(losses, (by_bound, by_data), strict=True):
            losses[name].append(loss_on(reduced, unseen))
            print(f"loss on unseen text, {name}: {losses[name][-1]:.4f}")
        gains = [layer.held_out["exact"] / layer.held_out[layer.kept] for layer in best.layers.values()]
        vacuous = sum(layer.vacuous for layer in exact.layers.values())
        print(
            f"output error of exact truncation over the kept one's: {min(gains):.2f} to {max(gains):.2f}; "
            f"the bound is vacuous in {vacuous} of {len(gains)} layers\n"
        )

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes in (left, right):
        axes.set_prop_cycle(color=["#0072B2", "#D55E00", "#009E73"])
    for layer, values in spectra.items():
        left.semilogy(range(1, len(values) + 1), values / values[0], ".-", label=spectra.names[layer])
    left.set(xlabel="index", ylabel="Hankel singular value, relative to the first")
    left.legend()
    for name, values in losses.items():
        right.plot(ORDERS, values, "o-", label=name)
    right.axhline(full_loss, color="grey", linestyle=":", label=f"all {STATES} states")
    right.set(xlabel="states in each layer", ylabel="loss on unseen text")
    right.legend()
    figure.savefig("reduce_adapter.png", dpi=130)
    print("wrote reduce_adapter.png")


if __name__ == "__main__":
    main()
