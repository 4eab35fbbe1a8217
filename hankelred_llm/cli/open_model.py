"""A model or an adapter as it is named on a command line: loaded and checked, and written whole."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hankelred._util.writing import PREVIOUS, scratch_folder
from hankelred.errors import in_one_line

from ..adapter.config import HRMType
from ..adapter.weights_file import read_config_file
from ..errors import AdapterFileError, ExperimentError
from ..experiments.base_models import BaseModel, find_model
from ..experiments.methods import LORA_FOLDER, load_adapter, save_adapter
from ..experiments.processes import this_process
from ..tasks import ByteTokenizer
from .text_rows import text_batches

CONFIG = "adapter_config.json"

#: What a folder of an adapter holds when it was written by peft, or here.
WRITTEN = {CONFIG, "adapter_model.safetensors", "README.md", "reduction.json", LORA_FOLDER}


class LoadedModel(NamedTuple):
    """A base model, or an adapter with its base model, loaded by name."""

    name: str
    base: BaseModel
    model: nn.Module  # with the adapter, if the name is that of an adapter
    config: dict[str, Any] | None  # of the adapter

    def batches(
        self, data: Path, *, length: int, batches: int, batch_size: int
    ) -> list[dict[str, torch.Tensor]]:
        """Return batches of a text in the tokens of the model.

        Raises
        ------
        HankelredError
            There is no text, the model has no tokenizer and too few ids for bytes, or too few positions.
        """
        tokenizer = self.base.tokenizer
        if tokenizer is None:
            tokenizer = ByteTokenizer()
            if self.base.vocabulary < len(tokenizer):
                raise ExperimentError(
                    f"model {self.base.name} has no tokenizer, and {self.base.vocabulary} ids are too few "
                    f"for bytes ({len(tokenizer)}); put the tokenizer's files into its folder"
                )
        if self.base.positions is not None and length > self.base.positions:
            raise ExperimentError(
                f"model {self.base.name} holds {self.base.positions} positions (max_position_embeddings), "
                f"and length is {length}; take a smaller --length"
            )
        return text_batches(data, tokenizer, length=length, batches=batches, batch_size=batch_size)


def open_named(
    name: str,
    *,
    base: str | None,
    gguf_file: str | None,
    revision: str | None,
    dtype: str,
    device: str | None,
) -> LoadedModel:
    """Open a base model or an adapter folder.

    The GGUF file and the revision of an adapter's base are those in its configuration, unless another base or
    others are named.

    Raises
    ------
    HankelredError
        There is no such model, adapter, base or device, or the adapter is of another method.
    """
    target = _device(device)
    folder = Path(name)
    if not (folder / CONFIG).is_file():
        if (folder / "adapter" / CONFIG).is_file():
            raise AdapterFileError(f"{name} is no adapter, but {folder / 'adapter'} is; give that folder")
        if base is not None:
            raise AdapterFileError(f"{name} has no {CONFIG}, and --base is for adapters; leave --base out")
        base_model = find_model(name, dtype, gguf_file=gguf_file, revision=revision)
        return LoadedModel(name, base_model, _load(base_model).to(target).eval(), None)
    config = adapter_config(folder)
    base_name = base or config.get("base_model_name_or_path")
    if not base_name:
        raise AdapterFileError(f"{folder / CONFIG} does not name the base model; give it with --base")
    if base is None:
        gguf_file = gguf_file or config.get("base_gguf_file")
        revision = revision or config.get("revision")
    try:
        base_model = find_model(str(base_name), dtype, gguf_file=gguf_file, revision=revision)
    except ExperimentError as error:
        raise ExperimentError(f"the base of {name}: {error}; give its folder or name with --base") from None
    model = load_adapter(_load(base_model), folder)
    return LoadedModel(name, base_model, model.to(target).eval(), config)


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a saved HRM adapter.

    Raises
    ------
    AdapterFileError
        There is none, or it is that of another method.
    """
    path = folder / CONFIG
    if not path.is_file():
        inner = folder / "adapter"
        remedy = (
            f"give {inner}"
            if (inner / CONFIG).is_file()
            else "give the folder that model.save_pretrained or hankelred-llm train wrote an adapter into"
        )
        raise AdapterFileError(f"{folder} has no {CONFIG}; {remedy}")
    config = read_config_file(path)
    kind = config.get("peft_type")
    if kind != HRMType.HRM:
        raise AdapterFileError(
            f"{folder} holds an adapter of type {in_one_line(str(kind), 100)}, which has no states; give the "
            "folder of an HRM one"
        )
    return config


def _load(base_model: BaseModel) -> nn.Module:
    try:
        return base_model.load()
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        reason = in_one_line(" ".join(str(error).split()), 200)
        raise ExperimentError(
            f"model {base_model.name!r} cannot be loaded ({reason}); give a causal language model with its "
            "weights"
        ) from None


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device(this_process().device)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:100]
        raise ExperimentError(
            f"device {name!r} cannot be used here ({reason}); give cpu, cuda, cuda:1 or leave --device out"
        ) from None
    return device


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is there already, unless it is to be replaced and holds an adapter.

    Raises
    ------
    AdapterFileError
        The folder must stay as it is, or there is no place for it.
    """
    if not out.absolute().parent.is_dir():
        raise AdapterFileError(f"cannot write {out}: the folder {out.parent} does not exist")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG).is_file():
        raise AdapterFileError(f"{out} is there already, and no adapter; give another --out")
    others = sorted(path.name for path in out.iterdir() if path.name not in WRITTEN)
    if others:
        raise AdapterFileError(
            f"{out} holds more than an adapter ({', '.join(others[:3])}), which would be lost; give "
            "another --out"
        )
    if not overwrite:
        raise AdapterFileError(
            f"{out} holds an adapter already; give another --out, or --overwrite to replace it"
        )


def write_adapter(model: Any, out: Path, texts: Mapping[str, str]) -> None:
    """Write the adapters of a model and other files into a folder, completely or not at all.

    Raises
    ------
    AdapterFileError
        It cannot be written.
    """
    try:
        with scratch_folder(out.absolute()) as scratch:
            new, old = scratch / "new", scratch / PREVIOUS
            save_adapter(model, new)
            for name, text in texts.items():
                (new / name).write_text(text + "\n", encoding="utf-8")
            if out.exists():
                os.replace(out, old)
            try:
                os.replace(new, out)
            except BaseException:  # also an interruption: the old one must not go with the scratch folder
                if old.exists() and not out.exists():
                    os.replace(old, out)
                raise
    except OSError as error:
        raise AdapterFileError(f"cannot write {out}: {error.strerror or error}") from None
