"""An attached model in lm-evaluation-harness: its answers and likelihoods against references without a cache.

    pip install lm-eval
    python benchmarks/bench_lm_eval.py [--model FOLDER]

The harness (https://github.com/EleutherAI/lm-evaluation-harness) calls a model by its own code, as its
users do: ``generate_until`` with a cache, on rows padded to the left, and ``loglikelihood`` on rows padded
to the right. The references feed whole rows to the model, one by one, with ``use_cache=False``. Without
``--model`` a small random Mistral with a tokenizer of single bytes is used. The adapter's output maps are
random, so that a lost state changes the answers.

Prints one line a check; the exit status is 1 if one fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

import hankelred_llm
from hankelred_llm.adapter.adapter_layers import hrm_layers

CONTEXTS = [
    "Once upon a time there was a small dog. ",
    "The key is 7. The box is red. What is the key? ",
    "a b a b a b ",
    "One. Two. Three. Four. Five. Six. Seven. Eight. Nine. ",
    "x",
    "He said that she said that he said ",
]
CONTINUATIONS = ["It was happy.", "7", "a b", "Ten.", "yes", "so"]
NEW_TOKENS = 24
#: Of a sum of log-likelihoods; single precision leaves about 1e-5.
TOLERANCE = 1e-3


def small_model(folder: Path) -> None:
    """Write a random Mistral with a tokenizer whose tokens are bytes."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    specials = {name: len(vocabulary) + i for i, name in enumerate(("<pad>", "<s>", "</s>"))}
    tokenizer = Tokenizer(models.BPE({**vocabulary, **specials}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=len(vocabulary) + 3,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=specials["<pad>"],
        bos_token_id=specials["<s>"],
        eos_token_id=specials["</s>"],
    )
    transformers.MistralForCausalLM(config).save_pretrained(folder)


@torch.no_grad()
def greedy(model: Any, ids: list[int], end: int) -> list[int]:
    """Return the most probable next tokens, each from a whole row without a cache."""
    out: list[int] = []
    for _ in range(NEW_TOKENS):
        logits = model(torch.tensor([ids + out]), use_cache=False).logits[0, -1]
        out.append(int(logits.argmax()))
        if out[-1] == end:
            break
    return out


@torch.no_grad()
def likelihood(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Return the log-likelihood of a continuation, and whether it is the greedy one."""
    ids = torch.tensor([context + continuation])
    logits: Tensor = model(ids, use_cache=False).logits[0].log_softmax(-1)
    logits = logits[len(context) - 1 : -1]
    chosen = logits.gather(1, ids[0, len(context) :, None])
    return float(chosen.sum()), bool((logits.argmax(-1) == ids[0, len(context) :]).all())


def main() -> None:
    """Read the command line, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of a causal language model with its tokenizer")
    arguments = parser.parse_args()
    try:
        import lm_eval
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        parser.error(f"lm-evaluation-harness is needed ({error}); run: pip install lm-eval")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.model or Path(made)
        if arguments.model is None:
            small_model(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    model = hankelred_llm.attach(base, r=8).eval()
    with torch.no_grad():
        for layer in hrm_layers(model):
            layer.system("default").C.normal_(std=0.5 * layer.width**-0.5)

    failed = False
    for batch in (1, 4):
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device="cpu", max_length=512)
        encoded = [harness.tok_encode(text) for text in CONTEXTS]
        end = tokenizer.eos_token_id
        until = {"until": ["\n\n\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
        requests = [
            Instance("generate_until", {}, (text, dict(until)), index) for index, text in enumerate(CONTEXTS)
        ]
        answers = harness.generate_until(requests, disable_tqdm=True)
        expected = [
            tokenizer.decode(greedy(model, ids, end), skip_special_tokens=True).split("\n\n\n")[0]
            for ids in encoded
        ]
        same = sum(answer == reference for answer, reference in zip(answers, expected, strict=True))
        print(f"batch {batch}: generate_until equals the reference in {same} of {len(CONTEXTS)} answers")

        pairs = list(zip(CONTEXTS, CONTINUATIONS, strict=True))
        requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        found = harness.loglikelihood(requests, disable_tqdm=True)
        references = []
        for context, continuation in pairs:
            left, right = harness._encode_pair(context, continuation)
            references.append(likelihood(model, left, right))
        worst = max(abs(a[0] - b[0]) for a, b in zip(found, references, strict=True))
        flags = all(a[1] == b[1] for a, b in zip(found, references, strict=True))
        print(f"batch {batch}: loglikelihood differs by {worst:.1e} at most, greedy flags equal: {flags}")
        failed |= same < len(CONTEXTS) or worst > TOLERANCE or not flags
    with model.disable_adapter():
        changed = sum(
            tokenizer.decode(greedy(model, ids, end)) != answer
            for ids, answer in zip(encoded, answers, strict=True)
        )
    print(f"without the adapter {changed} of {len(CONTEXTS)} answers are others")
    versions = f"lm-eval {lm_eval.__version__}, transformers {transformers.__version__}"
    print(f"hankelred_llm {hankelred_llm.__version__}, {versions}")
    sys.exit(1 if failed or not changed else 0)


if __name__ == "__main__":
    main()
