"""The base class of tasks with texts: the tokenizer, and the ids of a text and its continuation."""

from __future__ import annotations

import numpy as np

from .base import Task
from .byte_tokens import ByteTokenizer, IntArray, Tokenizer


class TextTask(Task):
    """A task whose rows are texts, read by any tokenizer.

    Parameters
    ----------
    tokenizer : object, optional
        A tokenizer of transformers, or any with ``encode``, ``decode`` and the ids of its specials. Default:
        `ByteTokenizer`.
    """

    def __init__(self, *, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.tokenizer: Tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self.vocab_size = ByteTokenizer.vocab_size if tokenizer is None else None
        self.pad_token_id = next(
            (i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0
        )

    def _encode(self, text: str) -> IntArray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)

    def _encode_continuation(self, text: str, answer: str) -> tuple[IntArray, IntArray]:
        """Return the ids of a text and of the answer after it, tokenized as one text where possible."""
        alone, both = self._encode(text), self._encode(text + answer)
        if np.array_equal(both[: len(alone)], alone):
            return alone, both[len(alone) :]
        # a token crosses the boundary; the prompt must not depend on the answer
        return alone, self._encode(answer)
