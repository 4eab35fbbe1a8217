"""The recurrent state inside the cache of transformers.

A cache of transformers is a list of layers, one for each decoder layer, that it reorders, crops, resets and
copies. The states of all adapters are one more entry at its end, so they are reordered, cropped, reset and
copied together with keys and values.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import Cache, EncoderDecoderCache, StaticLayer

from hankelred.errors import name_list

from ..errors import StateError
from ..ops.decode_step import StepCoefficients, SteppedSystem, Stepper, Versions
from ..ops.masks import after_reset

#: Number of tokens that a cache can always be cropped by.
CROPPABLE_TOKENS = 64

#: Number of tokens of the last call that a cache of a single row can be cropped by: drafts of prompt lookup
#: and assisted decoding, which work on single rows, may be longer than CROPPABLE_TOKENS.
DRAFT_TOKENS = 1024

#: Device, type and number of rows of states.
_Kind: TypeAlias = tuple[torch.device, torch.dtype, int]

_NEW_CACHE = "start with a new, empty cache"

#: Since 5.23 transformers has a class for entries without keys, and skips them in more places. Only the name
#: of that class is used.
_CacheLayerWithoutKeys: type = getattr(cache_utils, "DummyLayer", object)


class TokenStep:
    """What an adapter needs for a single token, and what it computes for it.

    Parameters
    ----------
    stepper : Stepper
    state : Tensor, shape (batch, states)
        Before the token.
    decayed : Tensor, shape (batch, 1, states), or (states,) for a single row
        A times it, or zero where a segment starts.
    plain : bool
        Whether a call of the system is its own forward pass, without autocast, so that it needs no call.
    """

    __slots__ = ("after", "decayed", "plain", "read", "state", "static_input", "stepper")

    def __init__(self, stepper: Stepper, state: Tensor, decayed: Tensor, plain: bool):
        self.stepper, self.state, self.decayed, self.plain = stepper, state, decayed, plain
        #: input of the block, and what its static parts read of it, once they have
        self.read: Tensor | None = None
        self.static_input: Tensor | None = None
        #: the state after the token, (batch, 1, states)
        self.after: Tensor | None = None


#: By block and adapter.
Steps: TypeAlias = dict[tuple[str, str], TokenStep]


class HRMState(_CacheLayerWithoutKeys):
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
        Number of tokens that the states have followed (growing caches).
    is_sliding : bool
        As for all other layers of the cache: transformers takes sizes of masks from the first layer of each
        kind, which must not be this one.
    next_layer : object, optional
        The layer that is needed after this one, where the cache is offloaded from the device.

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

    def __init__(self, static: bool, *, is_sliding: bool = False, next_layer: Any = None):
        self.static, self.is_sliding, self.next_layer = static, is_sliding, next_layer
        self.started = False
        self.tokens = 0
        self.record_past = False
        self._row_adapters: tuple[str, ...] | None = None
        self._histories: dict[str, dict[str, _StateHistory]] = {}  # by block, then by adapter
        # by device and type of the states
        self._stacked: dict[tuple[torch.device, torch.dtype], _StackedSteps] = {}

    def __getstate__(self) -> dict[str, Any]:
        # prepared steps contain systems, of which a saved cache needs the states only; they are made again
        return {**self.__dict__, "_stacked": {}}

    def previous(self, block: str, adapter: str) -> Tensor | None:
        """Return the last state of an adapter of a block, (batch, states), None before the first token.

        Raises
        ------
        StateError
            The cache holds tokens that this adapter has not processed.
        """
        history = self._histories.get(block, {}).get(adapter)
        if history is not None:
            return history.last()
        if self.started:
            raise StateError(
                f"the cache holds tokens that the adapter of block {block} has not processed: it was filled "
                f"with the adapter off, with another adapter active, or by another model; {_NEW_CACHE}"
            )
        return None

    def check_rows(self, row_adapters: tuple[str, ...] | None) -> None:
        """Refuse rows with other adapters than those that processed their earlier tokens.

        Parameters
        ----------
        row_adapters : tuple of str or None
            The adapter of each row, None where one adapter is active for all rows.

        Raises
        ------
        StateError
            A row would continue from a state that belongs to another adapter.
        """
        # one adapter for all rows equals that adapter being active, and the states are kept by adapter
        mixed = row_adapters if row_adapters is not None and len(set(row_adapters)) > 1 else None
        if not self.started:
            self._row_adapters = mixed
        elif self._row_adapters not in (mixed, row_adapters):
            before, now = (
                "one adapter for all rows" if names is None else f"adapter_names={list(names)}"
                for names in (self._row_adapters, row_adapters)
            )
            raise StateError(f"the cache was filled with {before}, and is called with {now}; {_NEW_CACHE}")

    def stepper(self, block: str, adapter: str, system: SteppedSystem) -> Stepper:
        """Return an adapter prepared for single tokens: once, and again after its parameters have changed.

        Parameters
        ----------
        block, adapter : str
        system : HRMSystem
            Of the adapter.
        """
        if torch.compiler.is_compiling():
            return system.stepper()
        history = self._histories[block][adapter]
        stepper = history.stepper
        if stepper is None or stepper.system is not system or not stepper.is_current():
            stepper = history.stepper = system.stepper()
        return stepper

    def steps(self, segment_starts: Callable[[torch.device], Tensor | None]) -> Steps:
        """Return what adapters need for a single token, by block and adapter, computed for all together.

        Adapters that have not been prepared for single tokens, as they are now, are left out. One loop over
        all of them once a pass takes a fraction of the time that a look at each between the layers takes.

        Parameters
        ----------
        segment_starts : callable
            Returns, by device, where the states are forgotten: (batch, 1) bool, or None.
        """
        kinds: dict[_Kind, dict[tuple[str, str], tuple[_StateHistory, Tensor]]] = {}
        for block, histories in self._histories.items():
            for adapter, history in histories.items():
                if history.stepper is not None:
                    last = history.last()
                    kind = last.device, last.dtype, last.shape[0]  # len() of a tensor calls Python
                    kinds.setdefault(kind, {})[block, adapter] = history, last
        steps: Steps = {}
        for kind, members in kinds.items():
            stacked = self._stack(kind, members)
            if stacked is None:  # without those that have changed
                return self.steps(segment_starts)
            device, dtype, rows = kind
            states = [last for _, last in members.values()]
            after = stacked.coefficients.decay(torch.cat(states, 1)).to(dtype)
            after = after_reset(after, segment_starts(device))
            after = after.view(-1) if rows == 1 else after.unsqueeze(1)
            parts = torch.split(after, list(stacked.sizes), -1)
            plain = not torch.is_autocast_enabled(device.type)
            for key, stepper, state, part in zip(members, stacked.steppers, states, parts, strict=True):
                steps[key] = TokenStep(stepper, state, part, plain and stepper.system.is_called_plainly())
        return steps

    def _stack(
        self, kind: _Kind, members: Mapping[tuple[str, str], tuple[_StateHistory, Tensor]]
    ) -> _StackedSteps | None:
        """Return adapters stacked; None after steps of those with changed parameters were discarded."""
        device, dtype, _ = kind  # whatever the number of rows, so that those of earlier ones are not kept
        stacked = self._stacked.get((device, dtype))
        steppers = [history.stepper for history, _ in members.values() if history.stepper is not None]
        if stacked is None or not stacked.is_of(steppers):
            stacked = self._stacked[device, dtype] = _StackedSteps.of(steppers)
        if stacked.is_current():
            return stacked
        for history, _ in members.values():
            if history.stepper is not None and not history.stepper.is_current():
                history.stepper = None
        return None

    def store_steps(self, steps: Steps) -> None:
        """Keep the states after a single token, of adapters whose step was used."""
        for (block, adapter), step in steps.items():
            if step.after is not None:
                histories = self._histories[block]
                if len(histories) > 1:  # adapters that do not process this token
                    self._histories[block] = histories = {adapter: histories[adapter]}
                histories[adapter].append(step.after.select(1, 0), unlimited=self.record_past)

    def store(self, block: str, states: dict[str, Tensor]) -> None:
        """Keep states of the active adapters of a block; drop those of all others.

        Parameters
        ----------
        block : str
        states : dict of Tensor, shape (batch, states, time), or (batch, states) for a single token
            By adapter.
        """
        histories = self._histories.get(block, {})
        if histories.keys() != states.keys():
            histories = {
                name: histories.get(name) or (_LastState() if self.static else _RecentStates())
                for name in states
            }
            self._histories[block] = histories
        for adapter, s in states.items():
            histories[adapter].append(s, unlimited=self.record_past)

    def last_states(self) -> dict[str, Tensor]:
        """Return the last states of all adapters, by block and adapter.

        Raises
        ------
        StateError
            Rows have adapters of their own.
        """
        if self._row_adapters is not None:
            raise StateError(
                "the rows of the cache have adapters of their own, whose states cannot be told apart; fill "
                "one cache for each adapter"
            )
        return {
            # static ones are overwritten at the next token, views of growing ones hold a prompt's states
            f"{block} {adapter}": history.last().clone()
            for block, histories in self._histories.items()
            for adapter, history in histories.items()
        }

    def drop(self, block: str) -> None:
        """Drop the states of a block whose adapters do not process the current tokens."""
        self._histories.pop(block, None)

    # the methods that transformers calls

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[None, None]:
        """Refuse keys; None is accepted, which a cache that is rebuilt from its keys passes here."""
        if key_states is not None or value_states is not None:
            raise StateError("the states of an adapter cannot hold keys and values")
        return None, None

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def offload(self) -> None:
        """Do nothing: a state is small enough to stay on its device."""

    def prefetch(self) -> None:
        """Prefetch the next layer with keys; transformers before 5.23 calls this entry in its place."""
        if self.next_layer is not None:
            self.next_layer.prefetch()

    def activate_past_recording(self) -> None:
        """Keep every state until the next :meth:`crop`: drafts may be longer than CROPPABLE_TOKENS."""
        self.record_past = True

    def detach(self) -> None:
        """Detach the states from the graph of the passes that made them."""
        self._rows(torch.Tensor.detach)

    def reset(self) -> None:
        """Return to the empty cache."""
        self.started, self.tokens, self._row_adapters = False, 0, None
        self._stacked.clear()
        if self.static:
            self._rows(torch.zeros_like)
            for history in self._all():
                history.stepper = None
        else:
            self._histories.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, ``-tokens_to_remove`` of them.

        Raises
        ------
        StateError
            States are not kept for so many tokens, and these are not all tokens.
        """
        removed = -int(tokens_to_remove)  # transformers 5.17 gives a tensor
        if removed < 0:
            raise StateError(
                f"crop({tokens_to_remove}): pass the number of tokens to remove as a negative number"
            )
        if removed >= self.tokens and not self.static:
            self.reset()
            return
        for history in self._all():
            history.crop(removed, self.tokens)
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
        for history in self._all():
            history.rows(change)

    def _all(self) -> list[_StateHistory]:
        return [history for histories in self._histories.values() for history in histories.values()]


class _StateHistory(ABC):
    """States of one adapter of one block."""

    stepper: Stepper | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "stepper"}

    @abstractmethod
    def last(self) -> Tensor:
        """Return the last state, (batch, states)."""

    @abstractmethod
    def append(self, s: Tensor, *, unlimited: bool) -> None:
        """Append states (batch, states[, time]); keep the most recent ones, or all if unlimited."""

    @abstractmethod
    def crop(self, removed: int, tokens: int) -> None:
        """Remove the states of the last tokens."""

    @abstractmethod
    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the rows of the batch."""


class _LastState(_StateHistory):
    """The last state, in a static cache, always at the same address, as compiled models require."""

    def __init__(self) -> None:
        self._state: Tensor | None = None

    def last(self) -> Tensor:
        if self._state is None:
            raise StateError("the static cache has no state yet")
        # it is overwritten below, which must not change a tensor saved for the backward pass
        return self._state.clone() if torch.is_grad_enabled() else self._state

    def append(self, s: Tensor, *, unlimited: bool) -> None:
        last = s if s.ndim == 2 else s[..., -1]
        if self._state is None or self._state.dtype != last.dtype:
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


class _RecentStates(_StateHistory):
    """States after each of the last tokens, in consecutive pieces (batch, states[, time])."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, Tensor]] = []  # with the number of tokens
        self._length = 0

    def last(self) -> Tensor:
        piece = self._pieces[-1][1]
        return piece if piece.ndim == 2 else piece[..., -1]

    def append(self, s: Tensor, *, unlimited: bool) -> None:
        needed = CROPPABLE_TOKENS + 1  # one state more than can be cropped: the one to return to
        tokens = 1
        if s.ndim == 3:
            longest = needed if s.shape[0] > 1 else DRAFT_TOKENS + 1
            if not unlimited and s.shape[-1] > longest:
                s = s[..., -longest:].clone()  # a view would keep the states of a whole prompt in memory
            tokens = s.shape[-1]
        self._pieces.append((tokens, s))
        self._length += tokens
        if not unlimited:
            while self._length - self._pieces[0][0] >= needed:
                self._length -= self._pieces.pop(0)[0]

    def crop(self, removed: int, tokens: int) -> None:
        if removed >= self._length:
            raise StateError(
                f"the cache cannot be cropped by {removed} of its {tokens} tokens: states are kept for the "
                f"last {self._length - 1}; crop less, or call cache.activate_past_recording() before these "
                "tokens"
            )
        self._length -= removed
        while removed:
            length, piece = self._pieces.pop()
            if length > removed:
                self._pieces.append((length - removed, piece[..., :-removed]))
            removed -= min(removed, length)
        # a prompt or a draft may have been longer than CROPPABLE_TOKENS; older states are not needed any more
        if self._length > 2 * CROPPABLE_TOKENS:
            self.rows(lambda states: states[..., -CROPPABLE_TOKENS - 1 :].clone())

    def rows(self, change: Callable[[Tensor], Tensor]) -> None:
        pieces = [piece if piece.ndim == 3 else piece[..., None] for _, piece in self._pieces]
        piece = change(torch.cat(pieces, -1) if len(pieces) > 1 else pieces[0])
        self._length = piece.shape[-1]
        self._pieces = [(self._length, piece)]


class _StackedSteps(NamedTuple):
    """Adapters of which the states are multiplied by A in one operation."""

    steppers: tuple[Stepper, ...]
    sizes: tuple[int, ...]  # numbers of channels
    coefficients: StepCoefficients
    versions: Versions  # of the parameters of all

    @classmethod
    def of(cls, steppers: Sequence[Stepper]) -> _StackedSteps:
        """Stack prepared steps."""
        return cls(
            tuple(steppers),
            tuple(len(stepper.step.diagonal) for stepper in steppers),
            StepCoefficients.stacked([stepper.step for stepper in steppers]),
            Versions.joined(stepper.versions for stepper in steppers),
        )

    def is_of(self, steppers: Sequence[Stepper]) -> bool:
        """Return whether these are the steps that were stacked."""
        return len(steppers) == len(self.steppers) and all(map(operator.is_, steppers, self.steppers))

    def is_current(self) -> bool:
        """Return whether no parameter has changed since the steps were prepared."""
        tensors = [tensor for stepper in self.steppers for tensor in stepper.system.tensors()]
        return Versions.of(tensors) == self.versions


def find_state(cache: Cache) -> HRMState | None:
    """Return the states in a cache, None where there are none."""
    return next((layer for layer in reversed(cache.layers) if isinstance(layer, HRMState)), None)


def cached_length(cache: Cache) -> int:
    """Return the number of tokens with keys in the cache; 0 where a read from the device is not needed."""
    length = cache.get_seq_length()
    if isinstance(length, int):
        return length
    state = find_state(cache)
    # a static cache counts on the device: that count is read once, before there are states, and not during
    # tracing; a cropped window of transformers 5.17 counts there too, but it grows and is compared
    followed = state is not None and state.static
    return 0 if followed or torch.compiler.is_compiling() else int(length)


def open_state(cache: Cache, *, length: int, n_layers: int) -> HRMState:
    """Return the states in a cache, appending an empty entry to an empty cache.

    Parameters
    ----------
    cache : Cache
        That of ``n_layers`` decoder layers.
    length : int
        The result of :func:`cached_length` before this pass.

    Raises
    ------
    StateError
        The cache holds tokens that no adapter has processed, or is a static one of an exported program.
    """
    if torch.compiler.is_exporting() and any(isinstance(layer, StaticLayer) for layer in cache.layers):
        raise StateError(
            "an exported program keeps the keys of a static cache in buffers, and has none for the states of "
            "the adapters, which would start from zero at every call; export with use_cache=False, or a step "
            "whose states are inputs and outputs: see hankelred_llm.get_states"
        )
    state = find_state(cache)
    if state is None:
        if length:
            raise StateError(
                f"the cache holds {length} tokens that no adapter has processed: it was filled with the "
                f"adapter off, or by the base model; {_NEW_CACHE}"
            )
        # a DynamicCache without config grows layer by layer, and would mistake the entry for one of them
        while cache.layer_class_to_replicate is not None and len(cache.layers) < n_layers:
            cache.layers.append(cache.layer_class_to_replicate())
        sliding = cache.is_sliding
        skipped = [
            linear or (slides and cache.offloading and cache.only_non_sliding)
            for linear, slides in zip(cache.is_linear, sliding, strict=True)
        ]
        state = HRMState(
            static=any(isinstance(layer, StaticLayer) for layer in cache.layers),
            is_sliding=bool(sliding) and all(sliding),
            next_layer=next((x for x, skip in zip(cache.layers, skipped, strict=True) if not skip), None),
        )
        cache.layers.append(state)
    elif not state.static and state.tokens != length:
        raise StateError(
            f"the cache holds {length} tokens, of which the adapter has followed {state.tokens}: it was off, "
            f"or another model wrote into the cache; {_NEW_CACHE}"
        )
    return state


def get_states(cache: Cache) -> dict[str, Tensor]:
    """Return copies of the last states of all adapters in a cache, to be passed on within a process.

    The names of the states belong to the model object, so that states of a model that is loaded again, as the
    inputs of a program that was exported from it, have other names. Their order is that of the layers: with
    the names that are needed, ``dict(zip(names, states.values(), strict=True))`` are the same states.

    Parameters
    ----------
    cache : Cache
        That a model with adapters has filled.

    Returns
    -------
    dict of Tensor, shape (batch, states)
        By block and by system; a copy of the model, or the adapter loaded again, has other systems.

    Raises
    ------
    StateError
        The cache has no states, or its rows have adapters of their own.

    Examples
    --------
    >>> import torch, transformers, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    >>> cache = model(torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values
    >>> [tuple(state.shape) for state in hankelred_llm.get_states(cache).values()]
    [(1, 4), (1, 4)]
    """
    state = find_state(cache)
    if state is None:
        raise StateError("the cache has no states of adapters: call a model with an adapter with it first")
    return state.last_states()


def set_states(cache: Cache, states: Mapping[str, Tensor]) -> None:
    """Put states into a cache with the keys and values of the same tokens.

    Parameters
    ----------
    cache : Cache
        Growing, with keys and without states, as one that was made from the keys and values of another.
    states : mapping of Tensor
        From :func:`get_states`.

    Raises
    ------
    StateError
        The cache is a static one, is empty, or has states already; a name is none of :func:`get_states`, or
        not of a layer of the cache; or a state is no tensor (rows of the cache, states) of finite numbers. At
        the next call of the model: a state has another size than its adapter, or belongs to another one.

    Examples
    --------
    >>> import torch, transformers, hankelred_llm
    >>> config = transformers.MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=1)
    >>> model = hankelred_llm.attach(transformers.MistralForCausalLM(config), r=4)
    >>> cache = model(torch.ones(1, 5, dtype=torch.long), use_cache=True).past_key_values
    >>> again = transformers.DynamicCache()
    >>> for k in range(2):
    ...     _ = again.update(cache.layers[k].keys, cache.layers[k].values, k)
    >>> hankelred_llm.set_states(again, hankelred_llm.get_states(cache))
    >>> token = torch.ones(1, 1, dtype=torch.long)
    >>> logits = model(token, past_key_values=again).logits
    >>> torch.equal(logits, model(token, past_key_values=cache).logits)
    True
    """
    if find_state(cache) is not None:
        raise StateError("the cache has states of adapters already; make a new one from its keys and values")
    static = any(isinstance(layer, StaticLayer) for layer in cache.layers)
    keys = next((layer.keys for layer in cache.layers if getattr(layer, "keys", None) is not None), None)
    if static or keys is None:
        raise StateError(
            "states can be put into a growing cache that has keys and values of the same tokens, such as a "
            "DynamicCache after its update()"
        )
    length = cached_length(cache)
    names = [name.partition(" ") for name in states]
    if not names or not all(block and adapter for block, _, adapter in names):
        raise StateError(f"states {name_list(list(states), 3)} are not named as get_states names them")
    layers = {str(k) for k in range(len(cache.layers))}
    unknown = [block for block, _, _ in names if block.partition(".")[0] not in layers]
    if unknown:
        raise StateError(
            f"there are states of {name_list(unknown, 3)}, and the cache has {len(layers)} layers only; pass "
            "the states of the model that filled it"
        )
    for name, last in states.items():
        _check_last_state(name, last, rows=keys.shape[0])
    state = open_state(cache, length=0, n_layers=len(cache.layers))
    by_block: dict[str, dict[str, Tensor]] = {}
    for (block, _, adapter), last in zip(names, states.values(), strict=True):
        by_block.setdefault(block, {})[adapter] = last
    for block, last_states in by_block.items():
        state.store(block, last_states)
    state.started, state.tokens = True, length


def _check_last_state(name: str, last: Tensor, *, rows: int) -> None:
    """Refuse what cannot be the state of an adapter after the tokens of some rows."""
    if not isinstance(last, Tensor) or last.ndim != 2 or not last.is_floating_point():
        is_tensor = isinstance(last, Tensor)
        got = f"{last.dtype} of shape {tuple(last.shape)}" if is_tensor else type(last).__name__
        raise StateError(
            f"the state of {name} is a {got}; pass floating-point tensors of shape (batch, states), as "
            "get_states returns them"
        )
    if last.shape[0] != rows:
        raise StateError(
            f"the state of {name} has {last.shape[0]} rows, and the cache has {rows}; pass the state of each "
            "row"
        )
    if not torch.compiler.is_compiling() and not bool(last.isfinite().all()):
        raise StateError(f"the state of {name} has numbers that are not finite; pass states that have none")


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
    cache: Cache | None = None
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
        if cache is not None and cache is not value:
            raise StateError(
                f"the model was called with two caches, a {type(cache).__name__} and a "
                f"{type(value).__name__}; the state can be kept in one of them only: pass one"
            )
        cache = value
    return cache


def _holds_keys(value: object) -> bool:
    """Return whether a value is a cache of another kind, such as pairs of keys and values by layer."""
    if isinstance(value, (tuple, list)):
        first = value[0] if value else None
        return isinstance(first, (tuple, list)) and any(isinstance(x, Tensor) and x.ndim == 4 for x in first)
    return isinstance(value, Cache) or (hasattr(value, "get_seq_length") and hasattr(value, "update"))
