"""Batches of rows from a text, for calibration: of a given length, spread evenly over the text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..tasks import Collator, Example, TaskDataError
from ..tasks.byte_tokens import IGNORED, Tokenizer
from ..tasks.sources import TEXT_REMEDY, text_files

#: Bytes that are read for each token of a row: more than any common tokenizer needs on average.
BYTES_PER_TOKEN = 32

#: Bytes at the beginning of a text from which its number of tokens is estimated.
SAMPLE_BYTES = 2**16


def text_batches(
    path: Path, tokenizer: Tokenizer, *, length: int, batches: int, batch_size: int
) -> list[dict[str, torch.Tensor]]:
    """Return batches of rows of a text with labels, for ``model(**batch)``.

    Parameters
    ----------
    path : Path
        A text file, or a folder: all of its .txt files.
    tokenizer : Tokenizer
        That of the model.
    length : int
        Tokens per row.
    batches, batch_size : int
        Number of batches and of rows in each; fewer if the text is too short. The rows of a batch come from
        distant places in the text, because neighboring rows would be related.

    Raises
    ------
    TaskDataError
        There is no text.
    """
    files = text_files(path)
    sizes = [file.stat().st_size for file in files]
    total = sum(sizes)
    sample = _encoded(b"".join(_pieces(files, sizes, 0, SAMPLE_BYTES)), tokenizer)
    if not sample:
        raise TaskDataError(path, None, "has no text", TEXT_REMEDY)
    tokens = len(sample) * total / min(SAMPLE_BYTES, total)
    count = max(1, min(batches * batch_size, int(tokens // length)))
    rows = []
    for k in range(count):
        start, end = k * total // count, (k + 1) * total // count
        # a row is from one file, the first in its part of the text
        piece = next(_pieces(files, sizes, start, min(end - start, BYTES_PER_TOKEN * length)), b"")
        row = _row(piece, tokenizer, length, f"{path.name} from byte {start}")
        if len(row) > 1:
            rows.append(row)
    if not rows:
        raise TaskDataError(path, None, "has no row of two tokens", "give a longer text")
    number = -(-len(rows) // batch_size)
    padding = tokenizer.pad_token_id
    # any id is valid where the attention mask is 0
    collate = Collator(0 if padding is None else int(padding))
    return [collate(rows[k::number]) for k in range(number)]


def _pieces(files: list[Path], sizes: list[int], start: int, length: int) -> Iterator[bytes]:
    """Yield the bytes of a range of all files one after the other, file by file."""
    for file, size in zip(files, sizes, strict=True):
        if start < size and length > 0:
            try:
                with file.open("rb") as content:
                    content.seek(start)
                    piece = content.read(length)
            except OSError as error:
                raise TaskDataError(file, None, f"cannot be read ({error.strerror})", TEXT_REMEDY) from None
            yield piece
            length -= len(piece)
        start = max(0, start - size)


def _encoded(piece: bytes, tokenizer: Tokenizer) -> list[int]:
    # a piece may begin or end inside a multi-byte character
    text = piece.decode("utf-8", errors="ignore").strip()
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []


def _row(piece: bytes, tokenizer: Tokenizer, length: int, name: str) -> Example:
    first = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = np.array([*first, *_encoded(piece, tokenizer)][:length], dtype=np.int64)
    # the first token is not predicted
    labels = np.concatenate([[IGNORED], ids[1:]]).astype(np.int64)
    return Example(ids, labels, len(ids), name, name)
