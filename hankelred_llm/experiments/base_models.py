"""The frozen base: any causal language model of transformers, or the project's own small one."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MistralConfig, set_seed

from ..errors import ExperimentError
from ..tasks import ByteTokenizer, Collator, get_task
from .processes import this_process

SMALL = {"small": True, "small-random": False}

_SMALL_CONFIG: dict[str, Any] = {
    "vocab_size": ByteTokenizer.vocab_size,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "sliding_window": None,
    "bos_token_id": ByteTokenizer.bos_token_id,
    "eos_token_id": ByteTokenizer.eos_token_id,
    # transformers keeps the embedding of padding at zero
    "pad_token_id": ByteTokenizer.pad_token_id,
    "tie_word_embeddings": False,
}
#: With the usual 0.02, logits of random weights are below 1.3 whatever an adapter does.
_RANDOM_RANGE = _SMALL_CONFIG["hidden_size"] ** -0.5

_PRETRAINING: dict[str, Any] = {
    "steps": 600,
    "rows": 16,
    "length": 128,
    "learning_rate": 3e-3,
    "text": 4_000_000,
}


@dataclass(frozen=True)
class BaseModel:
    """A base model that has been found, but not loaded.

    Attributes
    ----------
    name : str
        As in the settings.
    source : str
        Folder or name on the hub.
    config : object
        Its configuration.
    dtype : str
    """

    name: str
    source: str
    config: Any
    dtype: str

    def load(self, *, quantized: bool = False) -> nn.Module:
        """Return the model with its weights; adding an adapter freezes them."""
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        if quantized:
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, self.dtype),
            )
        model: nn.Module = AutoModelForCausalLM.from_pretrained(self.source, **options)
        return model

    def skeleton(self) -> nn.Module:
        """Return the model on the meta device: its shapes without its weights."""
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(self.config)
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, None where it has none and reads bytes."""
        if self.name in SMALL:
            return None
        try:
            return AutoTokenizer.from_pretrained(self.source)
        except (OSError, ValueError, ImportError):
            return None

    @property
    def positions(self) -> int | None:
        """The longest context, None where the architecture has no such limit."""
        return getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None)

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return int(self.config.get_text_config(decoder=True).vocab_size)

    @cached_property
    def version(self) -> str:
        """What tells another version of the same name apart: a commit, or a hash of files."""
        commit = getattr(self.config, "_commit_hash", None)
        if commit:
            return str(commit)
        digest = hashlib.blake2b(digest_size=6)
        for path in sorted(Path(self.source).glob("*.safetensors")):
            with path.open("rb") as file:
                # large files by their size and their beginning, which lists what is in them
                digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(2**26))
        return digest.hexdigest()


def find_model(name: str, dtype: str) -> BaseModel:
    """Return a base model by its name, making the small one where it is not there yet.

    Raises
    ------
    ExperimentError
        There is no such model.
    """
    if name in SMALL and this_process().num_processes > 1 and not _cached(SMALL[name]).is_dir():
        raise ExperimentError(
            f"model {name!r} is made by one process; give the command once without accelerate"
        )
    source = str(small_model(pretrained=SMALL[name])) if name in SMALL else name
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ExperimentError(
            f"model {name!r} cannot be loaded ({' '.join(str(error).split())[:200]}); give a folder with a "
            "config.json, a name on the hub, 'small' or 'small-random'"
        ) from None
    return BaseModel(name, source, config, dtype)


def small_model(folder: str | os.PathLike[str] | None = None, *, pretrained: bool = True) -> Path:
    """Return the folder of a small Mistral that reads bytes, and make it where it is not there.

    Two layers of width 64, 0.12 million parameters, the ids of :class:`hankelred_llm.tasks.ByteTokenizer`.

    Parameters
    ----------
    folder : path or str, optional
        Default: in the user's cache, by recipe and version of Python.
    pretrained : bool
        Trained for a minute on the source of Python's standard library; else random weights.

    Returns
    -------
    Path
        For ``AutoModelForCausalLM.from_pretrained``.

    Examples
    --------
    >>> import tempfile
    >>> from hankelred_llm.experiments.base_models import small_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = small_model(folder + "/small", pretrained=False)
    ...     sorted(p.name for p in path.iterdir())
    ['config.json', 'generation_config.json', 'model.safetensors']
    """
    path = _cached(pretrained) if folder is None else Path(folder)
    if (path / "config.json").is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    set_seed(0)
    model = AutoModelForCausalLM.from_config(_small_config(pretrained))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".small-") as scratch:
        if pretrained:
            _pretrain(model, Path(scratch))
        done = Path(scratch) / "model"
        model.save_pretrained(done)
        try:
            os.replace(done, path)  # whole or not there
        except OSError:
            # made by another process meanwhile; anything else is no place for a model
            if not (path / "config.json").is_file():
                raise ExperimentError(f"{path} is no place for the small model; give a new folder") from None
    return path


def _small_config(pretrained: bool) -> MistralConfig:
    spread = {} if pretrained else {"initializer_range": _RANDOM_RANGE}
    return MistralConfig(**_SMALL_CONFIG, **spread)


def _cached(pretrained: bool) -> Path:
    config = _small_config(pretrained).to_diff_dict()
    recipe = repr((config, _PRETRAINING if pretrained else None, sys.version_info[:3]))
    name = hashlib.blake2b(recipe.encode(), digest_size=4).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hankelred" / f"{'small' if pretrained else 'small-random'}-{name}"


def _pretrain(model: nn.Module, scratch: Path) -> None:
    """Train all weights on bytes of the standard library."""
    from .trainer import AdapterTrainer, arguments

    text = scratch / "library.txt"
    text.write_bytes(_library(_PRETRAINING["text"]))
    task = get_task("byte_lm", path=text)
    steps, rows = _PRETRAINING["steps"], _PRETRAINING["rows"]
    progress = Progress(transient=True)
    trainer = AdapterTrainer(
        model=model,
        args=arguments(
            scratch / "run",
            steps=steps,
            rows=rows,
            learning_rate=_PRETRAINING["learning_rate"],
            seed=0,
            save_every=None,
        ),
        train_dataset=task.train(_PRETRAINING["length"], size=steps * rows, seed=0),
        data_collator=Collator(task.pad_token_id),
        title="pretraining the small model, once",
        progress=progress,
    )
    with progress:
        trainer.train()
    model.to("cpu")


def _library(limit: int) -> bytes:
    """Return source text of the standard library, which any machine has."""
    parts, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        parts.append(path.read_bytes())
        size += len(parts[-1])
        if size > limit:
            break
    return b"\n\n".join(parts)
