"""Which tokens of a batch count, and where documents start: read from what a decoder is called with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from ..errors import StateError


class Tokens(NamedTuple):
    """What a recurrence has to know of a batch, each (batch, time) bool or None where all are the same."""

    keep: Tensor | None
    """False: padding, an identity step."""
    reset: Tensor | None
    """True: a document starts."""


def read_tokens(
    batch: int,
    time: int,
    *,
    mask: Any,
    positions: Tensor | None,
    starts: Tensor | None,
    documents: Tensor | None,
    cache: Cache | None,
    window: int | None,
) -> Tokens:
    """Read padding and document starts.

    Parameters
    ----------
    batch, time : int
        Size of the batch, without what is in the cache.
    mask : Tensor, dict of Tensor or None
        Attention mask: (batch, tokens so far) or (batch, heads, time, keys).
    positions : Tensor, shape (batch or 1, time), optional
        A kept token starts a document when its position is not that of the last kept token + 1; the first
        kept one when its position is 0.
    starts : Tensor, optional
        Cumulative lengths of the documents of one row, as for flash attention.
    documents : Tensor, shape (1, time), optional
        Document of each token.
    cache : Cache, optional
        Keys and values of earlier tokens.
    window : int, optional
        Width of the sliding window, if attention has one.

    Raises
    ------
    StateError
        A mask that a recurrence cannot follow.
    """
    keep: Tensor | None = None
    links: Tensor | None = None
    if isinstance(mask, dict):  # by kind of attention
        given = {kind: one for kind, one in mask.items() if one is not None}
        window = None if "full_attention" in given else window
        mask = given.get("full_attention", next(iter(given.values()), None))
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
            seen = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise StateError(
                f"padding cannot be read from an attention mask of kind {seen}; pass one of shape (batch, "
                "tokens)"
            )
        if mask.ndim == 2:
            keep = mask[:, _columns(mask, time, cache)].bool().expand(batch, time)
        else:
            links = _allowed(mask, _columns(mask, time, cache)).expand(batch, time, time)
            keep = links.diagonal(dim1=1, dim2=2)
    before = None if keep is None else _previous_kept(keep)
    reset: Tensor | None = None
    if positions is not None:
        if positions.ndim != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != time:
            raise StateError(
                f"document starts cannot be read from position_ids of shape {tuple(positions.shape)}; pass "
                f"(batch, time) = ({batch}, {time})"
            )
        reset = _jumps(positions.expand(batch, time), before)
    for extra in (
        None if links is None or before is None else _breaks(links, before, window),
        None if starts is None else _marks(starts, time),
        None if documents is None else _changes(documents),
    ):
        if extra is not None:
            reset = extra.expand(batch, time) if reset is None else reset | extra
    if reset is not None and keep is not None:
        reset = reset & keep
    if links is not None and keep is not None and reset is not None and time > 1:
        _check_followed(links, keep, reset)
    return Tokens(keep, reset)


def _columns(mask: Tensor, time: int, cache: Cache | None) -> Any:
    """Where the tokens of this batch stand in a mask that also covers the cache."""
    width = mask.shape[-1]
    if width < time:
        raise StateError(
            f"the attention mask covers {width} tokens, fewer than the {time} given; pass one that covers "
            "them and all that are in the cache"
        )
    layers = [] if cache is None else [i for i, kv in enumerate(cache.layers) if isinstance(kv, StaticLayer)]
    if cache is None or not layers:
        if mask.ndim == 4 and cache is not None and cache.get_seq_length() > 0:
            raise StateError(
                "a 4-D attention mask does not say which tokens in the cache a document goes on from; pass a "
                "mask of shape (batch, tokens)"
            )
        return slice(width - time, width)
    # 4-D masks of a static cache are as wide as the layer they were made for, and may begin later
    layer = next((i for i in layers if cache.layers[i].get_max_length() == width), layers[0])
    first = cache.get_seq_length(layer)
    if mask.ndim == 4 and cache.layers[layer].is_sliding:
        first -= cache.get_mask_sizes(time, layer)[1]
    return torch.arange(time, device=mask.device) + first


def _allowed(mask: Tensor, columns: Any) -> Tensor:
    """(batch, time, time): whether a token may look at another one of this batch."""
    own = mask[:, 0][..., columns]
    return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2


def _previous_kept(keep: Tensor) -> Tensor:
    """Index of the last kept token before each token, -1 where there is none."""
    index = torch.arange(keep.shape[1], device=keep.device)
    latest = torch.where(keep, index, -1).cummax(1).values
    return torch.nn.functional.pad(latest[:, :-1], (1, 0), value=-1)


def _jumps(positions: Tensor, before: Tensor | None) -> Tensor:
    first = positions == 0
    if positions.shape[1] == 1:
        return first
    if before is None:
        return torch.cat([first[:, :1], positions[:, 1:] != positions[:, :-1] + 1], 1)
    expected = positions.gather(1, before.clamp(min=0)) + 1
    return torch.where(before < 0, first, positions != expected)


def _breaks(links: Tensor, before: Tensor, window: int | None) -> Tensor:
    """Where a kept token may not look at the kept one before it, though it is near enough."""
    linked = links.gather(2, before.clamp(min=0)[..., None])[..., 0]
    near = before >= 0
    if window is not None:
        near &= torch.arange(before.shape[1], device=before.device) - before < window
    return near & ~linked


def _marks(starts: Tensor, time: int) -> Tensor:
    marks = torch.zeros(time + 1, dtype=torch.bool, device=starts.device)
    return marks.index_fill(0, starts.long(), True)[None, :time]


def _changes(documents: Tensor) -> Tensor:
    return torch.nn.functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=False)


def _check_followed(links: Tensor, keep: Tensor, reset: Tensor) -> None:
    """Refuse trees, and prefixes that look ahead: a recurrence follows one document after the other."""
    if torch.compiler.is_compiling():
        return
    document = reset.cumsum(1)
    same = (document[:, :, None] == document[:, None, :]) & keep[:, None, :]
    foreign = links & keep[:, :, None] & ~(same & torch.ones_like(same).tril())
    if bool(foreign.any()):
        raise StateError(
            "the 4-D attention mask lets tokens look ahead or past the start of their document, as in "
            "trees or prefixes; a recurrence cannot follow it: pass a mask of shape (batch, tokens), and "
            "position_ids for packed documents"
        )
