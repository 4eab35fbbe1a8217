"""peft's own common tests, run with HRM adapters.

    git clone https://github.com/huggingface/peft
    python benchmarks/peft_suite.py peft

Takes the tests of ``tests/testing_common.py`` in a checkout of peft, which its own methods have to pass,
and runs them on small models of several architectures, beside the MLP and beside attention. Nothing of the
checkout is kept here. Prints how many passed, were skipped by peft's own rules, or ended in a refusal of
ours, by reason; anything else is a failure, and the exit status is 1.

peft's tests of mixed batches (an adapter for each row) name the methods that have them; HRM is put in
LoRA's place there.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import types
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import hankelred_llm
from hankelred import HankelredError
from hankelred_llm import HRMConfig
from hankelred_llm.adapter.adapter_layers import hrm_layers

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mistral": {},
    "llama": {},
    "qwen2": {},
    "gemma2": {},
    "gpt2": GPT2,
    "gpt_neox": {},
}
CONFIGS = [{"r": 4, "site": site, "task_type": "CAUSAL_LM"} for site in ("mlp", "attention")]

#: Refusals that the documentation lists, by the test and the start of the message. Any other error is a
#: failure.
REFUSALS = [
    (("merge", "unload_adapter", "safe_merge"), "an HRM adapter has a state that runs along the tokens"),
    (("save_pretrained", "load"), "safe_serialization=False writes a pickle"),
]

#: What the tests take beside model and configuration, as peft's tests of decoder models give it.
EXTRA = {"safe_serialization": [True, False], "use_reentrant": [True, False], "raises_err": [False]}


def load_common(checkout: Path) -> Any:
    """Import peft's tests; diffusers, which they import and no language model needs, is replaced."""
    diffusers: Any = types.ModuleType("diffusers")
    diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    sys.modules.setdefault("diffusers", diffusers)
    sys.path.insert(0, str(checkout))
    from tests import testing_common

    return testing_common


def write_models(folder: Path) -> list[str]:
    """Write the small models as folders."""
    names = []
    for model_type, own in ARCHITECTURES.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **SIZES, **own)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / model_type)
        names.append(str(folder / model_type))
    return names


def make_random(model: Any) -> Any:
    """Give all adapters an output, as peft's tests do for LoRA by init_lora_weights=False."""
    generator = torch.Generator().manual_seed(len(model.peft_config))
    for layer in hrm_layers(model):
        for name in layer.hrm_system:
            C = layer.system(name).C
            if not C.is_meta and not C.any():
                C.data.copy_(0.3 * torch.randn(C.shape, generator=generator))
    return model


def tester(common: Any) -> type:
    """Return a class of tests, one method for each case."""
    get_peft_model, add_adapter = common.get_peft_model, peft.PeftModel.add_adapter
    common.get_peft_model = lambda *args, **options: make_random(get_peft_model(*args, **options))

    def add_random(self: Any, *args: Any, **options: Any) -> None:
        add_adapter(self, *args, **options)
        make_random(self)

    peft.PeftModel.add_adapter = add_random

    class Tester(common.PeftCommonTester):  # type: ignore[name-defined, misc]
        transformers_class = transformers.AutoModelForCausalLM

        def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
            ids = torch.tensor([[1, 1, 1], [1, 2, 1]])
            return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 1]])}

    return Tester


def cases(common: Any, models: list[str]) -> list[tuple[str, Any]]:
    """Return names and calls of all cases."""
    kind, found = tester(common), []
    for name, test in inspect.getmembers(kind, inspect.isfunction):
        takes = list(inspect.signature(test).parameters)[1:]
        if not name.startswith("_test_") or not {"model_id", "config_cls", "config_kwargs"} <= set(takes):
            continue
        extras = [extra for extra in EXTRA if extra in takes]
        choices = [{extras[0]: value} for value in EXTRA[extras[0]]] if extras else [{}]
        for model in models:
            for fields in CONFIGS:
                for choice in choices:
                    more = {"test_name": name} if "test_name" in takes else {}
                    arguments = {"model_id": model, "config_cls": HRMConfig, "config_kwargs": dict(fields)}
                    label = f"{name}[{Path(model).name}-{fields['site']}-{choice}]"
                    found.append((label, (kind, name, {**arguments, **choice, **more})))
    return found


def run(common: Any, call: Any) -> tuple[str, str]:
    """Run one case; return how it ended, and why."""
    kind, name, arguments = call
    lora = common.LoraConfig
    try:
        if "mixed_adapter_batches" in name:
            common.LoraConfig = HRMConfig
        getattr(kind(), name)(**arguments)
    except pytest.skip.Exception as reason:
        return "skipped by peft", str(reason)
    except HankelredError as error:
        message = f"{type(error).__name__}: {str(error).split(';')[0][:90]}"
        listed = any(
            str(error).startswith(start) and any(part in name for part in parts) for parts, start in REFUSALS
        )
        return ("refused" if listed else "FAILED"), message
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        cause = error.__cause__ or error.__context__
        return (
            "FAILED",
            f"{type(error).__name__}: {str(error)[:200]} ({type(cause).__name__ if cause else ''})",
        )
    finally:
        common.LoraConfig = lora
    return "passed", ""


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="folder with a checkout of peft")
    parser.add_argument("-k", default="", help="only tests with this in their name")
    arguments = parser.parse_args()
    if not (arguments.checkout / "tests" / "testing_common.py").is_file():
        parser.error(f"{arguments.checkout} has no tests/testing_common.py; give a checkout of peft")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    common = load_common(arguments.checkout)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for label, call in cases(common, write_models(Path(folder))):
            if arguments.k not in label:
                continue
            torch.manual_seed(0)
            ended, why = run(common, call)
            counts[ended] += 1
            if ended == "refused":
                reasons[why] += 1
            elif ended == "FAILED":
                print(f"{label}: {why}")
    versions = f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"{sum(counts.values())} cases with hankelred_llm {hankelred_llm.__version__}, {versions}")
    for ended, count in sorted(counts.items()):
        print(f"{count:5} {ended}")
    for why, count in reasons.most_common():
        print(f"      {count:5} {why}")
    sys.exit(1 if counts["FAILED"] else 0)


if __name__ == "__main__":
    main()
