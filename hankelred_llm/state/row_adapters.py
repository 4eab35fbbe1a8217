"""The adapter of each row of a batch, where a call of the PeftModel names them.

``generate`` of transformers, which calls the decoder, refuses arguments that the model does not take, so the
names are kept by thread for the duration of the call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from ..errors import AdapterError


class RowAdapters(NamedTuple):
    """The adapter of each row of the batches that a decoder processes."""

    decoder: nn.Module
    names: tuple[str, ...]
    copies: int  # of each row, made by generate for beams and samples


class _Calls(threading.local):
    """What the calls of PeftModels that are running in this thread name, the innermost first."""

    entries: tuple[RowAdapters, ...] = ()


_calls = _Calls()


@contextlib.contextmanager
def row_adapters(decoder: nn.Module, names: Sequence[str], *, copies: int) -> Iterator[None]:
    """Use one adapter per row for the batches that a decoder processes in this block.

    Parameters
    ----------
    decoder : Module
        Other decoders, such as that of an assistant model, are not affected.
    names : sequence of str
        One for each row. A name that no adapter has means the base model.
    copies : int
        Each row may be repeated so many times, consecutively.
    """
    previous = _calls.entries
    _calls.entries = (RowAdapters(decoder, tuple(names), copies), *previous)
    try:
        yield
    finally:
        _calls.entries = previous


def adapters_of_rows(decoder: nn.Module, batch: int) -> tuple[str, ...] | None:
    """Return the adapter of each row of a batch, None where they are not given by row."""
    by_row = next((entry for entry in _calls.entries if entry.decoder is decoder), None)
    if by_row is None:
        return None
    for copies in (1, by_row.copies):
        if copies * len(by_row.names) == batch:
            return tuple(name for name in by_row.names for _ in range(copies))
    raise AdapterError(
        f"adapter_names has {len(by_row.names)} names for a batch of {batch} rows; give one for each row"
    )
