"""Attention masks and positions of a decoder call, read as padding and segment starts.

Each source (a 2-D or 4-D attention mask, positions, cumulative document lengths, document ids) has a reader
of its own; :func:`read_segment_masks` combines what they return.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from ..errors import StateError
from ..ops.masks import SegmentMasks


def read_segment_masks(
    batch: int,
    time: int,
    *,
    mask: Any,
    positions: Tensor | None,
    cumulative_lengths: Tensor | None,
    document_ids: Tensor | None,
    cache: Cache | None,
    window: int | None,
) -> SegmentMasks:
    """Read which tokens are valid (no padding), and where segments start.

    Parameters
    ----------
    batch, time : int
        Size of the batch, without the tokens in the cache.
    mask : Tensor, dict of Tensor or None
        Attention mask: (batch, tokens so far) or (batch, heads, time, keys).
    positions : Tensor, shape (batch or 1, time), optional
        A valid token starts a segment when its position is not that of the previous valid token + 1; the
        first valid token does when its position is 0.
    cumulative_lengths : Tensor, optional
        Cumulative lengths of the documents of one row, as for flash attention.
    document_ids : Tensor, shape (1, time), optional
        Number of the document of each token.
    cache : Cache, optional
        Keys and values of earlier tokens.
    window : int, optional
        Width of the sliding window, if attention has one.

    Raises
    ------
    StateError
        The state of a recurrence cannot follow such a mask.
    """
    mask, window = _one_mask(mask, window)
    valid, visible = _read_mask(mask, batch, time, cache)
    # a single token has none before it here, and starts a segment by its position only
    previous = None if valid is None or time == 1 else _previous_valid(valid)
    sources = (
        None if positions is None else _starts_from_positions(positions, previous, batch, time),
        None if visible is None or previous is None else _starts_from_visibility(visible, previous, window),
        None if cumulative_lengths is None else _starts_from_lengths(cumulative_lengths, time),
        None if document_ids is None else _starts_from_document_ids(document_ids),
    )
    segment_start: Tensor | None = None
    for starts in sources:
        if starts is not None:
            starts = starts.expand(batch, time)
            segment_start = starts if segment_start is None else segment_start | starts
    if segment_start is not None and valid is not None:
        segment_start = segment_start & valid
    if visible is not None and valid is not None and segment_start is not None and time > 1:
        _check_causal_segments(visible, valid, segment_start)
    return SegmentMasks(valid, segment_start)


def _one_mask(mask: Any, window: int | None) -> tuple[Any, int | None]:
    """Return one mask where there is one for each kind of attention, and the window that applies to it."""
    if not isinstance(mask, dict):
        return mask, window
    masks = {kind: value for kind, value in mask.items() if value is not None}
    if "full_attention" in masks:
        return masks["full_attention"], None
    return next(iter(masks.values()), None), window


def _read_mask(mask: Any, batch: int, time: int, cache: Cache | None) -> tuple[Tensor | None, Tensor | None]:
    """Return which tokens are valid, (batch, time), and which see which, (batch, time, time), of a 4-D mask.

    Raises
    ------
    StateError
        It is no 2-D or 4-D tensor.
    """
    if mask is None:
        return None, None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        kind = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise StateError(
            f"padding cannot be read from an attention mask of kind {kind}; pass one of shape (batch, tokens)"
        )
    indices = _token_indices(mask, time, cache)
    if mask.ndim == 2:
        return mask[:, indices].bool().expand(batch, time), None
    visible = _visible(mask, indices).expand(batch, time, time)
    return visible.diagonal(dim1=1, dim2=2), visible


def _token_indices(mask: Tensor, time: int, cache: Cache | None) -> Any:
    """Return where the tokens of this batch are along the last axis of a mask that also covers the cache."""
    width = mask.shape[-1]
    if width < time:
        raise StateError(
            f"the attention mask covers {width} tokens, fewer than the {time} given; pass one that covers "
            "them and all that are in the cache"
        )
    # by classes, of which there are few: isinstance of an abstract class is slow, and this is for every token
    kinds = (
        set() if cache is None else {k for k in set(map(type, cache.layers)) if issubclass(k, StaticLayer)}
    )
    layers = (
        [i for i, kv in enumerate(cache.layers) if type(kv) in kinds] if cache is not None and kinds else []
    )
    if cache is None or not layers:
        if mask.ndim == 4 and cache is not None and cache.get_seq_length() > 0:
            raise StateError(
                "a 4-D attention mask does not tell which tokens in the cache a document continues; pass a "
                "mask of shape (batch, tokens)"
            )
        return slice(width - time, width)
    # 4-D masks of a static cache are as wide as the layer they were made for, and may begin later
    layer = next((i for i in layers if cache.layers[i].get_max_length() == width), layers[0])
    first = cache.get_seq_length(layer)
    if mask.ndim == 4 and cache.layers[layer].is_sliding:
        first -= cache.get_mask_sizes(time, layer)[1]
    return torch.arange(time, device=mask.device) + first


def _visible(mask: Tensor, indices: Any) -> Tensor:
    """Return whether a token may attend to another one of this batch, (batch, time, time)."""
    values = mask[:, 0][..., indices]
    return values if values.dtype == torch.bool else values > torch.finfo(values.dtype).min / 2


def _previous_valid(valid: Tensor) -> Tensor:
    """Return the index of the last valid token before each token, -1 where there is none."""
    index = torch.arange(valid.shape[1], device=valid.device)
    latest = torch.where(valid, index, -1).cummax(1).values
    return torch.nn.functional.pad(latest[:, :-1], (1, 0), value=-1)


def _starts_from_positions(positions: Tensor, previous: Tensor | None, batch: int, time: int) -> Tensor:
    """Return where positions do not continue those of the previous valid token."""
    if positions.ndim != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != time:
        raise StateError(
            f"document starts cannot be read from position_ids of shape {tuple(positions.shape)}; pass "
            f"(batch, time) = ({batch}, {time})"
        )
    positions = positions.expand(batch, time)
    at_zero = positions == 0
    if time == 1:
        return at_zero
    if previous is None:
        return torch.cat([at_zero[:, :1], positions[:, 1:] != positions[:, :-1] + 1], 1)
    expected = positions.gather(1, previous.clamp(min=0)) + 1
    return torch.where(previous < 0, at_zero, positions != expected)


def _starts_from_visibility(visible: Tensor, previous: Tensor, window: int | None) -> Tensor:
    """Return where a token may not attend to the previous valid one, although the window reaches it."""
    sees_previous = visible.gather(2, previous.clamp(min=0)[..., None])[..., 0]
    within_window = previous >= 0
    if window is not None:
        within_window &= torch.arange(previous.shape[1], device=previous.device) - previous < window
    return within_window & ~sees_previous


def _starts_from_lengths(cumulative_lengths: Tensor, time: int) -> Tensor:
    starts = torch.zeros(time + 1, dtype=torch.bool, device=cumulative_lengths.device)
    return starts.index_fill(0, cumulative_lengths.long(), True)[None, :time]


def _starts_from_document_ids(document_ids: Tensor) -> Tensor:
    return torch.nn.functional.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=False)


def _check_causal_segments(visible: Tensor, valid: Tensor, segment_start: Tensor) -> None:
    """Refuse masks that are not causal within segments, as of trees and of prefixes that look ahead."""
    if torch.compiler.is_compiling():
        return
    segment = segment_start.cumsum(1)
    same_segment = (segment[:, :, None] == segment[:, None, :]) & valid[:, None, :]
    not_causal = visible & valid[:, :, None] & ~(same_segment & torch.ones_like(same_segment).tril())
    if bool(not_causal.any()):
        raise StateError(
            "the 4-D attention mask lets tokens look ahead or past the start of their document, as in "
            "trees or prefixes; a recurrence cannot follow it: pass a mask of shape (batch, tokens), and "
            "position_ids for packed documents"
        )
