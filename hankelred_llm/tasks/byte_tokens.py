"""Bytes as tokens, for tasks without a tokenizer; and the interface of other tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int64]

#: Label of a position that is not scored, as in torch and transformers.
IGNORED = -100


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that tasks use."""

    bos_token_id: Any
    eos_token_id: Any
    pad_token_id: Any

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> Any:
        """Return the ids of a text."""

    def decode(self, ids: Any, *, skip_special_tokens: bool = ...) -> Any:
        """Return the text of ids."""


class ByteTokenizer:
    """The 256 bytes of UTF-8 and three specials, 259 ids in all.

    Attributes
    ----------
    bos_token_id, eos_token_id, pad_token_id : int
        256, 257 and 258.
    vocab_size : int
        259.

    Examples
    --------
    >>> from hankelred_llm.tasks import ByteTokenizer
    >>> tokens = ByteTokenizer()
    >>> tokens.encode("aé")
    [97, 195, 169]
    >>> tokens.decode([256, 97, 195, 169, 257])
    'aé'
    """

    bos_token_id = 256
    eos_token_id = 257
    pad_token_id = 258
    vocab_size = 259

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the bytes of a text; with `add_special_tokens` after the id of the beginning."""
        ids = list(text.encode("utf-8"))
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ids; specials have none, and bytes that are no UTF-8 are dropped."""
        del skip_special_tokens  # they never have a text
        return bytes(int(i) for i in ids if 0 <= i < 256).decode("utf-8", errors="ignore")


def codes(text: str) -> IntArray:
    """Return the ids of ASCII symbols, as in ``codes("01")[bits]``."""
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64)
