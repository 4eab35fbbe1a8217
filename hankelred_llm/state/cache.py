"""The recurrent state inside the cache of transformers.

A cache of transformers is a list of layers, one for each decoder layer, that it reorders, crops, resets and
copies. The states of all adapters are one more entry at its end, so whatever happens to keys and values
happens to them too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache, EncoderDecoderCache, StaticLayer

from ..errors import StateError

if TYPE_CHECKING:
    from ..ops.decode_step import Stepper

#: How many tokens a cache can always be cropped by.
TAIL = 64

#: How many tokens of the last call a cache of a single row can be cropped by: drafts of prompt lookup and
#: assisted decoding, which are for single rows, may be longer than the tail.
DRAFT = 1024

_NEW_CACHE = "start with a new, empty cache"

#: Since 5.23 transformers has a class for entries without keys, and passes over them in more places. Nothing
#: of that class is used but its name.
_WithoutKeys: type = getattr(cache_utils, "DummyLayer", object)


class HRMState(_WithoutKeys):
    """States of all adapters of a model, as one more layer of its cache.

    Growing caches keep the states after each of the last tokens, so that they can be cropped; static ones
    keep the last state only, at an address that never changes.

    Parameters
    ----------
    static : bool
        Whether the cache is a static one.

    Attributes
    ----------
    tokens : int
        Number of tokens followed (growing caches).
    is_sliding : bool
        As all other layers of the cache: transformers takes sizes of masks from the first layer of a kind,
        which must not be this one.
    first : object, optional
        The layer that is needed after this one, when a cache is kept off the device.

    Examples
    --------
    >>> import torch
    >>> from hankelred_llm.state.cache import HRMState
    >>> state = HRMState(static=False)
    >>> state.store("0.mlp", {"adapter": torch.arange(6.0).reshape(1, 2, 3)})
    >>> state.tokens = 3
    >>> state.previous("0.mlp", "adapter")
    tensor([[2., 5.]])
    >>> state.crop(-1)
    >>> state.tokens, state.previous("0.mlp", "adapter")
    (2, tensor([[1., 4.]]))
    """

    supports_early_init = False
    is_initialized = True
    is_compileable = True
    is_croppable = True
    keys = values = None

    def __init__(self, static: bool, *, is_sliding: bool = False, first: Any = None):
        self.static, self.is_sliding, self.first = static, is_sliding, first
        self.started = False
        self.tokens = 0
        self.record_past = False
        self._row_adapters: tuple[str, ...] | None = None
        self._tracks: dict[str, dict[str, _Track]] = {}  # by block, then by adapter

    def previous(self, block: str, adapter: str) -> Tensor | None:
        """Return the state an adapter left beside a block, (batch, states), None at the start.

        Raises
        ------
        StateError
            The cache holds tokens that this adapter has not seen.
        """
        track = self._tracks.get(block, {}).get(adapter)
        if track is not None:
            return track.last()
        if self.started:
            raise StateError(
                f"the cache holds tokens that the adapter of block {block} has not seen: it was filled with "
                f"the adapter off, with another adapter active, or by another model; {_NEW_CACHE}"
            )
        return None

    def check_rows(self, row_adapters: tuple[str, ...] | None) -> None:
        """Refuse to go on where rows have other adapters than those that followed their tokens so far.

        Parameters
        ----------
        row_adapters : tuple of str or None
            The adapter of each row, where they are given by row.

        Raises
        ------
        StateError
            A row would go on from the state of tokens that another adapter has changed.
        """
        # one adapter for all rows is that adapter active, and the states themselves tell which one it was
        mixed = row_adapters if row_adapters is not None and len(set(row_adapters)) > 1 else None
        if not self.started:
            self._row_adapters = mixed
        elif self._row_adapters not in (mixed, row_adapters):
            before, now = (
                "one adapter for all rows" if names is None else f"adapter_names={list(names)}"
                for names in (self._row_adapters, row_adapters)
            )
            raise StateError(f"the cache was filled with {before}, and is called with {now}; {_NEW_CACHE}")

    def stepper(self, block: str, adapter: str, make: Callable[[], Stepper]) -> Stepper:
        """Return an adapter prepared for one token.

        It is prepared once: a cache is of no use after parameters have changed.
        """
        if torch.compiler.is_compiling():
            return make()
        track = self._tracks[block][adapter]
        if track.stepper is None:
            track.stepper = make()
        return track.stepper

    def store(self, block: str, states: dict[str, Tensor]) -> None:
        """Keep states (batch, states, time) of the adapters active beside a block, and drop all others."""
        tracks = self._tracks.get(block, {})
        if tracks.keys() != states.keys():
            tracks = {name: tracks.get(name) or (_Slot() if self.static else _Tail()) for name in states}
            self._tracks[block] = tracks
        for adapter, s in states.items():
            tracks[adapter].append(s, unlimited=self.record_past)

    def drop(self, block: str) -> None:
        """Forget a block, whose adapter does not see the tokens that come now."""
        self._tracks.pop(block, None)

    # what transformers calls

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[None, None]:
        """Refuse keys; a cache that is put together again from its keys hands over the absence of any."""
        if key_states is not None or value_states is not None:
            raise StateError("the states of an adapter are no layer to keep keys in")
        return None, None

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def offload(self) -> None:
        """Stay: a state is small."""

    def prefetch(self) -> None:
        """Hand on to the layer whose turn it is next; transformers before 5.23 takes this one for it."""
        if self.first is not None:
            self.first.prefetch()

    def activate_past_recording(self) -> None:
        """Keep every state until the next :meth:`crop`: drafts may be longer than the tail."""
        self.record_past = True

    def detach(self) -> None:
        """Cut the states off from the passes that made them: gradients end here, values go on."""
        self._rows(torch.Tensor.detach)

    def reset(self) -> None:
        """Go back to the empty cache."""
        self.started, self.tokens, self._row_adapters = False, 0, None
        if self.static:
            self._rows(torch.zeros_like)
            for track in self._all():
                track.stepper = None
        else:
            self._tracks.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, ``-tokens_to_remove`` of them.

        Raises
        ------
        StateError
            More than the kept tail, but not all.
        """
        removed = -int(tokens_to_remove)  # transformers 5.17 gives a tensor
        if removed < 0:
            raise StateError(
                f"crop({tokens_to_remove}): pass the number of tokens to remove as a negative number"
            )
        if removed >= self.tokens and not self.static:
            self.reset()
            return
        for track in self._all():
            track.crop(removed, self.tokens)
        self.tokens -= removed

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, for beam search."""
        self._rows(lambda states: states.index_select(0, beam_idx.to(states.device)))
        if self._row_adapters is not None:
            self._row_adapters = tuple(self._row_adapters[row] for row in beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._rows(lambda states: states.repeat_interleave(repeats, dim=0))
        if self._row_adapters is not None:
            self._row_adapters = tuple(name for name in self._row_adapters for _ in range(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows only."""
        self._rows(lambda states: states[indices.to(states.device)])
        if self._row_adapters is not None:
            rows = torch.arange(len(self._row_adapters), device=indices.device)[indices]
            self._row_adapters = tuple(self._row_adapters[row] for row in rows.tolist())

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for track in self._all():
            track.rows(change)

    def _all(self) -> list[_Track]:
        return [track for tracks in self._tracks.values() for track in tracks.values()]


class _Track(ABC):
    """States of one adapter beside one block."""

    stepper: Stepper | None = None

    @abstractmethod
    def last(self) -> Tensor:
        """Return the last state, (batch, states)."""

    @abstractmethod
    def append(self, s: Tensor, *, unlimited: bool) -> None:
        """Go on by the states (batch, states, time), of which some are kept, or all."""

    @abstractmethod
    def crop(self, removed: int, tokens: int) -> None:
        """Go back by some of the tokens."""

    @abstractmethod
    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the rows of the batch."""


class _Slot(_Track):
    """The last state, in a static cache: a compiled model finds it at the same address every time."""

    def __init__(self) -> None:
        self._state: Tensor | None = None

    def last(self) -> Tensor:
        if self._state is None:
            raise StateError("the static cache has no state yet")
        # it is overwritten below, which a backward pass must not see
        return self._state.clone() if torch.is_grad_enabled() else self._state

    def append(self, s: Tensor, *, unlimited: bool) -> None:
        last = s[..., -1]
        if self._state is None:
            self._state = torch.zeros_like(last)
        self._state.copy_(last)

    def crop(self, removed: int, tokens: int) -> None:
        if removed:
            raise StateError(
                "a static cache cannot be cropped: it keeps the last state only; use a DynamicCache"
            )

    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._state is not None:
            changed = change(self._state)
            if changed.shape == self._state.shape:
                self._state.copy_(changed)
            else:
                self._state = changed


class _Tail(_Track):
    """States after each of the last tokens: pieces (batch, states, time), in order."""

    def __init__(self) -> None:
        self._pieces: list[Tensor] = []
        self._length = 0

    def last(self) -> Tensor:
        return self._pieces[-1][..., -1]

    def append(self, s: Tensor, *, unlimited: bool) -> None:
        kept = TAIL + 1  # one state more than can be cropped: the one to go back to
        longest = kept if s.shape[0] > 1 else DRAFT + 1
        if not unlimited and s.shape[-1] > longest:
            s = s[..., -longest:].clone()  # a view would hold on to the states of a whole prompt
        self._pieces.append(s)
        self._length += s.shape[-1]
        if not unlimited:
            while self._length - self._pieces[0].shape[-1] >= kept:
                self._length -= self._pieces.pop(0).shape[-1]

    def crop(self, removed: int, tokens: int) -> None:
        if removed >= self._length:
            raise StateError(
                f"the cache cannot be cropped by {removed} of its {tokens} tokens: states are kept for the "
                f"last {self._length - 1}; crop less, or call cache.activate_past_recording() before these "
                "tokens"
            )
        self._length -= removed
        while removed:
            piece = self._pieces.pop()
            if piece.shape[-1] > removed:
                self._pieces.append(piece[..., :-removed])
            removed -= min(removed, piece.shape[-1])
        # a prompt or a draft may have been longer than the tail; what lies before it is not needed any more
        if self._length > 2 * TAIL:
            self.rows(lambda states: states[..., -TAIL - 1 :].clone())

    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        piece = change(torch.cat(self._pieces, -1) if len(self._pieces) > 1 else self._pieces[0])
        self._pieces, self._length = [piece], piece.shape[-1]


def find_state(cache: Cache) -> HRMState | None:
    """Return the states in a cache, None where there are none."""
    return next((layer for layer in reversed(cache.layers) if isinstance(layer, HRMState)), None)


def tokens_seen(cache: Cache) -> int:
    """Return how many tokens the cache holds keys of; 0 where asking a device would be in vain."""
    seen = cache.get_seq_length()
    if isinstance(seen, int):
        return seen
    state = find_state(cache)
    # a static cache counts on the device: it is asked once, before there are states, and not while it is
    # traced; so does a window of transformers 5.17 once it was cropped, but that one grows and is compared
    followed = state is not None and state.static
    return 0 if followed or torch.compiler.is_compiling() else int(seen)


def open_state(cache: Cache, *, seen: int, n_layers: int) -> HRMState:
    """Return the states in a cache, appending an empty entry to an empty cache.

    Parameters
    ----------
    cache : Cache
        That of ``n_layers`` decoder layers.
    seen : int
        What :func:`tokens_seen` said before this pass.

    Raises
    ------
    StateError
        The cache holds tokens that no adapter has seen.
    """
    state = find_state(cache)
    if state is None:
        if seen:
            raise StateError(
                f"the cache holds {seen} tokens that no adapter has seen: it was filled with the adapter "
                f"off, or by the base model; {_NEW_CACHE}"
            )
        # a DynamicCache without config grows a layer at a time, and would take the entry for one of them
        while cache.layer_class_to_replicate is not None and len(cache.layers) < n_layers:
            cache.layers.append(cache.layer_class_to_replicate())
        sliding = cache.is_sliding
        passed_over = [
            linear or (slides and cache.offloading and cache.only_non_sliding)
            for linear, slides in zip(cache.is_linear, sliding, strict=True)
        ]
        state = HRMState(
            static=any(isinstance(layer, StaticLayer) for layer in cache.layers),
            is_sliding=bool(sliding) and all(sliding),
            first=next((x for x, no in zip(cache.layers, passed_over, strict=True) if not no), None),
        )
        cache.layers.append(state)
    elif not state.static and state.tokens != seen:
        raise StateError(
            f"the cache holds {seen} tokens, of which the adapter has followed {state.tokens}: it was off, "
            f"or another model wrote into the cache; {_NEW_CACHE}"
        )
    return state


def find_cache(values: Iterable[object]) -> Cache | None:
    """Return the cache among the arguments, or the outputs, of a call: found by its type.

    The name of the argument differs between architectures, and has changed between versions of transformers.

    Parameters
    ----------
    values : iterable
        All positional and keyword arguments, or all outputs.

    Raises
    ------
    StateError
        A cache is of a kind that cannot hold a recurrent state, or there are two of them.

    Examples
    --------
    >>> from transformers import DynamicCache
    >>> from hankelred_llm.state.cache import find_cache
    >>> cache = DynamicCache()
    >>> find_cache([None, True, cache, cache]) is cache
    True
    """
    found: Cache | None = None
    for value in values:
        if value is None or isinstance(value, (Tensor, bool, int, float, str)):
            continue
        if not isinstance(value, Cache) or isinstance(value, EncoderDecoderCache):
            if not _holds_keys(value):
                continue
            raise StateError(
                f"a recurrent state cannot be kept in a {type(value).__name__}; use a DynamicCache or a "
                "StaticCache"
            )
        if found is not None and found is not value:
            raise StateError(
                f"the model was called with two caches, a {type(found).__name__} and a "
                f"{type(value).__name__}; the state can be kept in one of them only: pass one"
            )
        found = value
    return found


def _holds_keys(value: object) -> bool:
    """Tell whether a value serves as a cache: one of another kind, or pairs of keys and values by layer."""
    if isinstance(value, (tuple, list)):
        first = value[0] if value else None
        return isinstance(first, (tuple, list)) and any(isinstance(x, Tensor) and x.ndim == 4 for x in first)
    return isinstance(value, Cache) or (hasattr(value, "get_seq_length") and hasattr(value, "update"))
