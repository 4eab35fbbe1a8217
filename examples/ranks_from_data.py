"""Find out, before any training, which layers of a language model could use a state, and how large.

    python examples/ranks_from_data.py [PICTURE]

Computes the Hankel operator of the gradient of the loss with respect to a linear residual branch in
parallel to each MLP of a small frozen model. Prints its singular values, how many are above the permutation
null and which ranks they suggest, and draws them: for real text, and for a task that needs memory (repeat the
character of eight tokens before).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch
from _model_and_text import pretrained_model, text_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hankelred_llm

ROWS, TIME, BATCHES, LAG = 32, 128, 12, 8


def text_batches(folder: Path, text: Path) -> list[dict[str, torch.Tensor]]:
    """Return batches of real text, in rows of TIME tokens of the model in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = text.read_text(encoding="utf-8")[:400_000]
    tokens = tokenizer(words, return_tensors="pt", verbose=False)["input_ids"][0]
    rows = tokens[: ROWS * TIME * BATCHES].unfold(0, TIME, TIME)
    # neighboring rows of a text are related, so the rows of a batch are drawn from all of it
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return [{"input_ids": batch, "labels": batch} for batch in rows.split(ROWS)]


def copy_batches(vocabulary: int) -> list[dict[str, torch.Tensor]]:
    """Return batches of eight random tokens; the label is the one of LAG tokens before."""
    rng = torch.Generator().manual_seed(0)
    first = min(420, vocabulary - 8)  # letters of stories260K
    out = []
    for _ in range(BATCHES):
        tokens = torch.randint(first, first + 8, (ROWS, TIME), generator=rng)
        labels = torch.full_like(tokens, -100)
        # the logits of token t are for label t + 1
        labels[:, LAG + 1 :] = tokens[:, : -LAG - 1]
        out.append({"input_ids": tokens, "labels": labels})
    return out


def main() -> None:
    """Print the spectra of both tasks, and draw those of the second."""
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        print(__doc__)
        return
    matplotlib.use("Agg")
    picture = sys.argv[1] if len(sys.argv) > 1 else "ranks_from_data.png"
    out = Path("demo-output")
    folder = pretrained_model(out)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tasks = {
        "text": text_batches(folder, text_file(out)),
        f"copy of lag {LAG}": copy_batches(model.config.vocab_size),
    }
    for name, batches in tasks.items():
        calibration = hankelred_llm.calibrate(model, batches, held_out=0)
        spectra = hankelred_llm.hankel_spectra(model, calibration)
        print(f"\n{name}: {calibration.tokens} tokens, loss {calibration.loss:.3f}\n{spectra}")
        print(f"ranks for 60 states in all: {spectra.suggest_ranks(budget=60)}")
    ranks = spectra.suggest_ranks(budget=60)
    spectra.plot(ranks=ranks).figure.savefig(picture, dpi=120)
    print(f"\nthe spectra of the last task are drawn in {picture}")


if __name__ == "__main__":
    main()
