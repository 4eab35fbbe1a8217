"""A pretrained model and a text for examples that are started without arguments.

In ../shared/data, or below the folder in HANKELRED_SHARED, they look for the model stories260K and the plays
of Shakespeare. Where these are not, they use what every machine has: a small model of the package itself,
which is pretrained on the source of Python's standard library, and the texts of Python's own help.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hankelred_llm.experiments.base_models import small_model

SHARED = Path(os.environ.get("HANKELRED_SHARED") or Path(__file__).parents[2] / "shared") / "data"


def pretrained_model(out: Path) -> Path:
    """Return the folder of a small pretrained model with its tokenizer, written into `out` if needed."""
    shared = SHARED / "models" / "stories260K"
    if shared.is_dir():
        return shared
    folder = out / "small-model"
    shutil.copytree(small_model(), folder, dirs_exist_ok=True)
    byte_tokenizer().save_pretrained(folder)
    return folder


def text_file(out: Path) -> Path:
    """Return a file of English text, written into `out` if needed."""
    shared = SHARED / "text" / "tinyshakespeare.txt"
    if shared.is_file():
        return shared
    out.mkdir(parents=True, exist_ok=True)
    file = out / "help.txt"
    file.write_text("\n".join(help_texts().values()), encoding="utf-8")
    return file


def help_texts() -> dict[str, str]:
    """Return the texts behind Python's ``help()``, by topic."""
    from pydoc_data.topics import topics

    return topics


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the 256 bytes, as the small model reads them, and padding."""
    # each byte is written as a visible character: those that are visible as themselves, others from 256 on
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    vocabulary = {chr(byte): byte for byte in visible}
    vocabulary |= {chr(256 + k): byte for k, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE({**vocabulary, "<begin>": 256, "<end>": 257, "<pad>": 258}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
