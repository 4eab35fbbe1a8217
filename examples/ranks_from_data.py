"""Find out, before any training, which layers of a language model could use a state, and how large.

    python examples/ranks_from_data.py [PICTURE]

Computes the Hankel operator of the gradient of the loss with respect to a linear residual branch in
parallel to each MLP of a small frozen model. Prints its singular values, how many are above the permutation
null and which ranks they suggest, and draws them: for real text, and for a task that needs memory (repeat the
character of eight tokens before).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hankelred_llm

SHARED = Path(os.environ.get("HANKELRED_SHARED", Path(__file__).parents[1] / "../shared"))
MODEL = SHARED / "data" / "models" / "stories260K"
TEXT = SHARED / "data" / "text"

ROWS, TIME, BATCHES, LAG = 32, 128, 12, 8


def text_batches() -> list[dict[str, torch.Tensor]]:
    """Return batches of real text, in rows of TIME tokens."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    words = "\n".join(path.read_text(encoding="utf-8", errors="ignore")[:400_000] for path in text_files())
    tokens = tokenizer(words, return_tensors="pt", verbose=False)["input_ids"][0]
    rows = tokens[: ROWS * TIME * BATCHES].unfold(0, TIME, TIME)
    # neighboring rows of a text are related, so the rows of a batch are drawn from all of it
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return [{"input_ids": batch, "labels": batch} for batch in rows.split(ROWS)]


def text_files() -> list[Path]:
    """Return the files of the text, none if there is no text."""
    return sorted(path for path in TEXT.rglob("*.txt") if path.is_file())


def copy_batches() -> list[dict[str, torch.Tensor]]:
    """Return batches of eight random characters; the label is the one of LAG tokens before."""
    rng = torch.Generator().manual_seed(0)
    out = []
    for _ in range(BATCHES):
        tokens = torch.randint(420, 428, (ROWS, TIME), generator=rng)
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
    if not MODEL.is_dir() or not text_files():
        print(f"skipped: there is no model in {MODEL} or no text in {TEXT}; set HANKELRED_SHARED")
        return
    matplotlib.use("Agg")
    picture = sys.argv[1] if len(sys.argv) > 1 else "ranks_from_data.png"
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    for name, batches in (("text", text_batches()), (f"copy of lag {LAG}", copy_batches())):
        calibration = hankelred_llm.calibrate(model, batches, held_out=0)
        spectra = hankelred_llm.hankel_spectra(model, calibration)
        print(f"\n{name}: {calibration.tokens} tokens, loss {calibration.loss:.3f}\n{spectra}")
        print(f"ranks for 60 states in all: {spectra.suggest_ranks(budget=60)}")
    ranks = spectra.suggest_ranks(budget=60)
    spectra.plot(ranks=ranks).figure.savefig(picture, dpi=120)
    print(f"\nthe spectra of the last task are drawn in {picture}")


if __name__ == "__main__":
    main()
