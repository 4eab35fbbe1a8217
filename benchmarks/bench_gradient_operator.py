"""What the gradient Hankel operator finds, how often chance passes, what it costs and what a start is worth.

    python benchmarks/bench_gradient_operator.py [chance] [tasks] [wide] [training]

Predictions, before measuring. chance: the largest of three nulls times 1.5 is passed by one draw in thirty
at most, more often where few directions carry everything, since their one large value varies most. tasks: a
delay by L tokens of eight symbols has 7 (L + 1) states, found when the weakest symbol is above the null; on
text few. wide: an update costs six products with 128 or 64 columns a token, so about 600 d multiplications;
at d = 4096 sensitivity is less by the square root of 4096 / 128, so that a system seen at d = 128 is not
seen there in white noise. training: AB and ABC help where the answer is linear and the data show it, B
little.
"""

from __future__ import annotations

import copy
import os
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers

import hankelred_llm
from hankelred_llm.analysis.gradient_hankel import GradientOperator

SHARED = Path(os.environ.get("HANKELRED_SHARED") or Path(__file__).parents[1] / "../shared")


def chance(draws: int = 60) -> None:
    """How often unrelated inputs and gradients have a value that counts."""
    print(
        "chance: channels, rows, tokens, decay over channels, pole -> share of draws with a value that counts"
    )
    for d, rows, time_, decay, pole in (
        (8, 16, 64, 0.0, 0.0),
        (8, 16, 128, 0.5, 0.9),
        (16, 32, 128, 0.3, 0.5),
        (8, 16, 128, 1.5, 0.95),
        (8, 4, 256, 0.5, 0.9),
    ):
        passed = 0
        for seed in range(draws):
            rng = torch.Generator().manual_seed(seed)
            x, g = (
                torch.randn(rows, time_, d, generator=rng) * torch.exp(-decay * torch.arange(d)) for _ in "xg"
            )
            for t in range(1, time_):
                x[:, t] += pole * x[:, t - 1]
                g[:, t] += pole / 2 * g[:, t - 1]
            operator = GradientOperator(d)
            operator.update(x, g)
            passed += operator.spectrum().significant > 0
        print(f"  {d:3d} {rows:3d} {time_:4d} {decay:4.1f} {pole:5.2f} -> {passed / draws:.3f}", flush=True)


def tasks(batches: int = 24) -> None:
    """Values that count in each layer of a small model, for tasks of known order and for text."""
    folder = SHARED / "data" / "models" / "stories260K"
    if not folder.is_dir():
        print(f"tasks: skipped, no model in {folder}")
        return
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rng = torch.Generator().manual_seed(0)

    def lag(n: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(420, 428, (32, 128), generator=rng)
        labels = torch.full_like(tokens, -100)
        labels[:, n + 1 :] = tokens[:, : -n - 1]
        return {"input_ids": tokens, "labels": labels}

    def flip_flop() -> dict[str, torch.Tensor]:
        written = torch.rand(32, 128, generator=rng) < 1 / 12
        bit = torch.randint(2, (32, 128), generator=rng)
        written[:, 0] = True
        held = bit.clone()
        for t in range(1, 128):
            held[:, t] = torch.where(written[:, t], bit[:, t], held[:, t - 1])
        labels = torch.full_like(bit, -100)
        labels[:, 1:] = 430 + held[:, :-1]
        return {"input_ids": torch.where(written, 420 + bit, 422), "labels": labels}

    text = (SHARED / "data" / "text" / "wikitext2_valid.txt").read_text(encoding="utf-8")
    stream = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    rows = stream[: 32 * 128 * batches].unfold(0, 128, 128)
    rows = rows[torch.randperm(len(rows), generator=rng)]
    sets = {
        "flip-flop (1, pole .917)": [flip_flop() for _ in range(batches)],
        "lag 4 (35)": [lag(4) for _ in range(batches)],
        "lag 8 (63)": [lag(8) for _ in range(batches)],
        "text": [{"input_ids": batch, "labels": batch} for batch in rows.split(32)],
    }
    print(f"tasks: {32 * 128 * batches} tokens; values that count by layer; 1, 35, 36, 63, 64 over the level")
    for name, data in sets.items():
        calibration = hankelred_llm.calibrate(model, data, held_out=0, progress=False)
        for i, operator in calibration.gradients.items():
            found = operator.spectrum()
            shown = [k for k in (0, 34, 35, 62, 63) if k < found.values.size]
            ratios = "  ".join(f"{found.values[k] / found.threshold:.2f}" for k in shown)
            pole = float(np.exp(found.realize(1)[0].real)[0])
            print(
                f"  {name:25s} layer {i}: {found.significant:3d}   {ratios}   first pole {pole:.3f}",
                flush=True,
            )


def wide() -> None:
    """Cost, and what is found of six states in white noise, at widths up to 4096."""
    poles = torch.tensor([0.95, 0.9, 0.8, 0.7, 0.5, 0.3])
    print("wide: d, tokens -> ms a token, state MB a layer, seconds for the spectrum, values that count")
    for d in (64, 128, 1024, 4096):
        rng = torch.Generator().manual_seed(0)
        B, C = (torch.linalg.qr(torch.randn(d, 6, generator=rng))[0] for _ in "BC")
        operator, spent, tokens = GradientOperator(d), 0.0, 0
        for _ in range(4):
            x = torch.randn(4, 2048, d, generator=rng)
            u, s, y = x @ B, torch.zeros(4, 6), torch.empty(4, 2048, 6)
            for t in range(2048):
                s = poles * s + u[:, t]
                y[:, t] = s
            g = -y @ C.T + 0.5 * torch.randn(4, 2048, d, generator=rng)
            start = time.perf_counter()
            operator.update(x, g)
            spent += time.perf_counter() - start
            tokens += 4 * 2048
        start = time.perf_counter()
        found = operator.spectrum()
        size = sum(t.numel() * 8 for t in operator.state().values()) / 1e6
        print(
            f"  {d:5d} {tokens} -> {1e3 * spent / tokens:.3f} ms, {size:.1f} MB, "
            f"{time.perf_counter() - start:.1f} s, {found.significant}; peak "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB",
            flush=True,
        )


def training() -> None:
    """Excess of the held-out loss over that of a linear teacher after 0, 5, 20, 40 and 80 steps."""
    print("training: a teacher of poles .95, .9, .7 beside the last block; r = 8, AdamW, learning rate 1e-2")
    for seed in range(4):
        torch.manual_seed(seed)
        config = transformers.MistralConfig(
            vocab_size=24, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1,
        )  # fmt: skip
        base = transformers.MistralForCausalLM(config)
        with torch.no_grad():
            base.get_input_embeddings().weight.mul_(50)
            base.lm_head.weight.mul_(20)
        teacher = hankelred_llm.attach(copy.deepcopy(base), r=3)
        rng = np.random.default_rng(seed)
        B, C = (np.linalg.qr(rng.standard_normal((32, 3)))[0] for _ in "BC")
        poles = np.log(np.array([0.95, 0.9, 0.7], complex))
        hankelred_llm.set_systems(teacher, {1: (poles, B.T, C * 0.5)})
        draws = torch.Generator().manual_seed(1)
        data = []
        for _ in range(20):
            tokens = torch.randint(24, (16, 96), generator=draws)
            with torch.no_grad():
                shares = teacher(tokens).logits.softmax(-1)[:, :-1].reshape(-1, 24)
            labels = torch.full_like(tokens, -100)
            labels[:, 1:] = torch.multinomial(shares, 1, generator=draws).view(16, 95)
            data.append({"input_ids": tokens, "labels": labels})
        train, test = data[:16], data[16:]

        def loss(model: torch.nn.Module, test: list[dict[str, torch.Tensor]] = test) -> float:
            with torch.no_grad():
                return sum(float(model(**batch).loss) for batch in test) / len(test)

        floor = loss(teacher)
        for what in (None, "B", "AB", "ABC"):
            torch.manual_seed(10)
            model = hankelred_llm.attach(copy.deepcopy(base), r=8)
            report = hankelred_llm.initialize(model, train, what, progress=False) if what else None
            curve = [loss(model)]
            parameters = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0)
            for step in range(1, 81):
                optimizer.zero_grad()
                model(**train[step % 16]).loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                if step in (5, 20, 40, 80):
                    curve.append(loss(model))
            states = report.orders if report else ""
            print(
                f"  seed {seed} {what or 'ring':4s}", *(f"{c - floor:.4f}" for c in curve), states, flush=True
            )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or ["chance", "tasks", "wide", "training"]
    for part in (chance, tasks, wide, training):
        if part.__name__ in wanted:
            part()
