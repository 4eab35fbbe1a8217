"""The frozen base: any causal language model of transformers, or the project's own small one."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import struct
import sys
import sysconfig
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import Progress
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MistralConfig, set_seed

from hankelred._util.writing import scratch_folder
from hankelred.errors import in_one_line, name_list

from .._util.model_names import refuse_absent_path, refuse_unreachable
from ..adapter.checks import GGUF_FILE
from ..errors import ExperimentError
from ..tasks import ByteTokenizer, Collator, get_task
from .processes import this_process

#: Ending of files that hold weights, configuration and tokenizer of a model in one, as llama.cpp reads them.
GGUF = ".gguf"

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
    gguf_file : str, optional
        Name of the GGUF file in ``source`` that holds the weights.
    revision : str, optional
        Branch, tag or commit on the hub.
    """

    name: str
    source: str
    config: Any
    dtype: str
    gguf_file: str | None = None
    revision: str | None = None

    def load(self, *, quantized: bool = False) -> nn.Module:
        """Return the model with its weights; adding an adapter freezes them."""
        options: dict[str, Any] = {
            "dtype": getattr(torch, self.dtype),
            **_place(self.gguf_file, self.revision),
        }
        if quantized and self.gguf_file:
            raise ExperimentError(
                f"model {self.name!r} is read from the GGUF file {self.gguf_file!r}, whose weights cannot be "
                "quantized to 4 bits again; take the original model, or a method other than qlora"
            )
        if quantized:
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=getattr(torch, self.dtype),
            )
        if self.gguf_file and hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model: nn.Module = AutoModelForCausalLM.from_pretrained(self.source, **options)
        if self.gguf_file:
            model = _as_plain(model)
            setattr(model, GGUF_FILE, self.gguf_file)  # adapters record it
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
            return AutoTokenizer.from_pretrained(self.source, **_place(self.gguf_file, self.revision))
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
        for path in sorted(Path(self.source).glob(self.gguf_file or "*.safetensors")):
            with path.open("rb") as file:
                # large files by their size and their beginning, which lists what is in them
                digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(2**26))
        return digest.hexdigest()


def find_model(
    name: str, dtype: str, *, gguf_file: str | None = None, revision: str | None = None
) -> BaseModel:
    """Return a base model by its name, making the small one where it is not there yet.

    Parameters
    ----------
    name : str
        Folder, name on the hub, 'small' or 'small-random'; the path of a GGUF file stands for its folder and
        `gguf_file`.
    dtype : str
    gguf_file : str, optional
        Name of a GGUF file in the folder or repository, which is read in place of other weights.
    revision : str, optional
        Branch, tag or commit on the hub.

    Raises
    ------
    ExperimentError
        There is no such model.
    """
    if name in SMALL:
        source = _small_source(name, gguf_file, revision)
    else:
        source, gguf_file = _split_gguf(name, gguf_file)
        refuse_absent_path(source)
        refuse_unreachable(source, gguf_file or "config.json", revision)
    files = [path.name for path in sorted(Path(source).glob(f"*{GGUF}"))] if os.path.isdir(source) else []
    if gguf_file is not None:
        _check_gguf(source, gguf_file, files)
    try:
        config = AutoConfig.from_pretrained(source, **_place(gguf_file, revision))
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        hint = f" or one of its GGUF files with --gguf-file ({name_list(files, 3)})," if files else ""
        reason = in_one_line(" ".join(str(error).split()), 200)
        raise ExperimentError(
            f"model {name!r} cannot be loaded ({reason}); give a folder with a config.json,{hint} a name on "
            "the hub, 'small' or 'small-random'"
        ) from None
    return BaseModel(name, source, config, dtype, gguf_file, revision)


def _small_source(name: str, gguf_file: str | None, revision: str | None) -> str:
    if gguf_file or revision:
        option = "gguf_file" if gguf_file else "revision"
        raise ExperimentError(f"model {name!r} is made here and has no {option}; leave {option} out")
    if this_process().num_processes > 1 and not _cached(SMALL[name]).is_dir():
        raise ExperimentError(
            f"model {name!r} is made by one process; give the command once without accelerate"
        )
    return str(small_model(pretrained=SMALL[name]))


def _split_gguf(name: str, gguf_file: str | None) -> tuple[str, str | None]:
    """Return the folder and the name of a GGUF file where its path stands for a model."""
    if gguf_file is not None or not name.endswith(GGUF) or os.path.isdir(name):
        return name, gguf_file
    if not os.path.isfile(name):  # no repository is looked up: it could hold such files, not be one
        raise ExperimentError(
            f"there is no GGUF file {in_one_line(name)}; give the path of a file, or a folder or a name on "
            "the hub with --gguf-file"
        )
    return os.path.split(os.path.abspath(name))


def _check_gguf(source: str, gguf_file: str, files: list[str]) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ExperimentError(
            f"reading the GGUF file {in_one_line(gguf_file)} needs the package gguf; run: pip install "
            "'hankelred[llm,gguf]'"
        )
    if os.path.isdir(source) and gguf_file not in files:
        raise ExperimentError(
            f"there is no GGUF file {in_one_line(gguf_file)} in {in_one_line(source)}; there is "
            f"{name_list(files)}"
        )


def _as_plain(model: nn.Module) -> nn.Module:
    """Return a model from a GGUF file, whose weights were unpacked, as one that can be trained and saved.

    transformers still treats it as quantized: its Trainer and `save_pretrained` refuse it.
    """
    packed = [name for name, value in model.named_parameters() if not value.is_floating_point()]
    if packed:
        raise ExperimentError(
            f"transformers {transformers.__version__} left {name_list(packed, 2)} of a GGUF file packed, and "
            "packed weights cannot be trained beside; save the model unpacked and give that folder"
        )
    for owner, names in (
        (model, ("is_quantized", "quantization_method", "hf_quantizer")),
        (model.config, ("quantization_config", "_is_quantized")),
    ):
        for name in names:
            if name in vars(owner):
                delattr(owner, name)
    return model


def _place(gguf_file: str | None, revision: str | None) -> dict[str, str]:
    """Return the options of transformers' from_pretrained."""
    options = {"gguf_file": gguf_file, "revision": revision}
    return {key: value for key, value in options.items() if value}


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
    with scratch_folder(path) as scratch:
        if pretrained:
            _pretrain(model, scratch)
        done = scratch / "model"
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
