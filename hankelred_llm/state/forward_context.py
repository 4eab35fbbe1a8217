"""How padding, document starts and states come to the adapters.

What counts is read once per forward pass, where the decoder is called, and handed to each decoder layer as
one more keyword. The layers get a subclass of their class that adds this keyword where it is called, and
makes it the current pass while the layer runs. Gradient checkpointing runs the layer again with the same
keywords, so a recomputed layer sees what it saw at first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..errors import AdapterError, StateError
from .cache import HRMState, find_cache, find_state, open_state, tokens_seen
from .decoder_call import DecoderCall, argument_names
from .segments import Tokens, read_tokens
from .shards import Shards, check_ring, compare_shards, meeting_place, read_shard, tell_refusal


class _Current(threading.local):
    """The pass that runs in this thread: one model may serve several at once."""

    value: Pass | None = None  # of the decoder that runs
    in_layer: Pass | None = None  # of the decoder layer that runs
    row_adapters: tuple[RowAdapters, ...] = ()


_current = _Current()


def current_pass() -> Pass | None:
    """Return the forward pass of the decoder layer that runs now, None outside of one."""
    return _current.in_layer


class RowAdapters(NamedTuple):
    """An adapter for each row of the batches that a decoder gets."""

    decoder: nn.Module
    names: tuple[str, ...]
    copies: int  # of each row, which generate makes for beams and samples


@contextlib.contextmanager
def row_adapters(decoder: nn.Module, names: Sequence[str], *, copies: int) -> Iterator[None]:
    """Give each row of the batches that a decoder gets inside an adapter of its own.

    Parameters
    ----------
    decoder : Module
        Other decoders that run inside, such as that of an assistant model, are not concerned.
    names : sequence of str
        One for each row. A name that no adapter has stands for the base model.
    copies : int
        Rows may come so many times each, one after the other.
    """
    before = _current.row_adapters
    _current.row_adapters = (RowAdapters(decoder, tuple(names), copies), *before)
    try:
        yield
    finally:
        _current.row_adapters = before


def _row_adapters(decoder: nn.Module, batch: int) -> tuple[str, ...] | None:
    """Return the adapter of each row of a batch, None where they are not given by row."""
    given = next((each for each in _current.row_adapters if each.decoder is decoder), None)
    if given is None:
        return None
    for copies in (1, given.copies):
        if copies * len(given.names) == batch:
            return tuple(name for name in given.names for _ in range(copies))
    raise AdapterError(
        f"adapter_names has {len(given.names)} names for a batch of {batch} rows; give one for each row"
    )


class Pass:
    """One forward pass of a decoder, as its layers share it."""

    def __init__(
        self,
        call: DecoderCall,
        tokens: Tokens,
        n_layers: int,
        *,
        shards: Shards | None = None,
        row_adapters: tuple[str, ...] | None = None,
    ):
        self.call, self.tokens, self.n_layers = call, tokens, n_layers
        self.batch, self.time = call.batch, call.time
        self.shards, self.row_adapters = shards, row_adapters
        self._rows: dict[str, Tensor] = {}
        self.plain = tokens.keep is None and tokens.reset is None
        self._cache: Cache | None = None
        self._seen = 0
        self._state: HRMState | None = None
        self._outer: Pass | None = None
        # what adapters made of the input of the block that runs, by block and adapter
        self.heard: tuple[str, dict[str, tuple[Tensor, Tensor]]] | None = None

    def start(self) -> None:
        """Become the current pass, within another one if there is."""
        self._outer, _current.value = _current.value, self

    def enter(self, cache: Cache | None) -> None:
        """Note the cache that the first layer gets, before keys and values are added."""
        if self._cache is None and cache is not None:
            self._cache = cache
            self._seen = tokens_seen(cache)

    def tokens_on(self, device: torch.device) -> Tokens:
        """Return padding and document starts on the device of a layer."""
        return Tokens(*(None if flags is None else flags.to(device) for flags in self.tokens))

    def shards_on(self, device: torch.device) -> Shards | None:
        """Return where this shard stands, known on the device of a layer."""
        return None if self.shards is None else self.shards.on(device)

    def rows_of(self, adapter: str) -> Tensor | None:
        """Return which rows an adapter takes part in, (batch, 1, 1); None where in all."""
        if self.row_adapters is None or set(self.row_adapters) == {adapter}:
            return None
        if adapter not in self._rows:
            self._rows[adapter] = torch.tensor([name == adapter for name in self.row_adapters])[:, None, None]
        return self._rows[adapter]

    def follow(self) -> HRMState | None:
        """Return the states to go on from, and count the tokens of this pass."""
        if self.shards is not None:
            # a cache that the model makes for itself is left alone: who goes on from it is refused, as it has
            # tokens and no states
            return None
        if self._state is None and self._cache is not None:
            self._state = open_state(self._cache, seen=self._seen, n_layers=self.n_layers)
            self._state.check_rows(self.row_adapters)
        return self._state

    def take_heard(self, block: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what adapters made of the input of a block, and forget it."""
        (place, heard), self.heard = self.heard or ("", {}), None
        return heard if place == block else {}

    def skip(self, block: str) -> None:
        """Note that the adapter of a block does not see these tokens."""
        state = None if self._cache is None else find_state(self._cache)
        if state is not None:
            state.drop(block)

    def leave(self, *, finished: bool) -> None:
        """Stop being the current pass; count the tokens if all layers are through."""
        _current.value = self._outer
        if finished and self._state is not None:
            self._state.started = True
            if not self._state.static:
                self._state.tokens += self.time

    def check_cache(self, output: Any, *, recomputing: Callable[[], bool]) -> None:
        """Refuse a cache that was filled in this pass without the states of the adapters.

        Parameters
        ----------
        output : Any
            What the decoder returned.
        recomputing : callable
            Tells whether layers are computed again in the backward pass: transformers then keeps no cache.

        Raises
        ------
        StateError
            Where this went unnoticed, the next tokens would start from a state of zero.
        """
        if self.shards is not None or torch.compiler.is_compiling():
            return
        shown = find_cache(output.values() if isinstance(output, Mapping) else _as_tuple(output))
        for cache in (self.call.cache, shown):
            if cache is None or cache is self._cache or not (seen := tokens_seen(cache)):
                continue
            raise StateError(
                f"the cache holds {seen} tokens, and no decoder layer was called with it, so the states of "
                f"the adapters are not in it (transformers {transformers.__version__}); pass use_cache=False"
            )
        if self.call.use_cache and self._cache is None and shown is None and not recomputing():
            raise StateError(
                "use_cache=True was given, and neither the decoder's layers nor its output show a cache "
                f"(transformers {transformers.__version__}), so the next tokens would start from a state of "
                "zero; pass use_cache=False"
            )


def _as_tuple(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def install(backbone: nn.Module, layers: nn.ModuleList) -> None:
    """Make a decoder and its layers carry passes; a second time does nothing."""
    if "_hrm_hooks" in backbone.__dict__:
        return
    backbone.__dict__["_hrm_decoder"] = (argument_names(backbone), len(layers))
    backbone.__dict__["_hrm_hooks"] = [
        backbone.register_forward_pre_hook(_start_pass, with_kwargs=True),
        backbone.register_forward_hook(_end_pass, always_call=True),
    ]
    for layer in layers:
        layer.__class__ = _carrying(type(layer))
        if "_old_forward" in layer.__dict__:  # accelerate's offloading calls what was there before
            layer.__dict__["_old_forward"] = type(layer).forward.__get__(layer)


def remove(backbone: nn.Module, layers: nn.ModuleList) -> None:
    """Undo :func:`install`."""
    for hook in backbone.__dict__.pop("_hrm_hooks", ()):
        hook.remove()
    for name in ("_hrm_decoder", "_hrm_group"):
        backbone.__dict__.pop(name, None)
    for layer in layers:
        if isinstance(layer, _Carrier):
            layer.__class__ = type(layer).carried  # type: ignore[assignment]
            if "_old_forward" in layer.__dict__:
                layer.__dict__["_old_forward"] = type(layer).forward.__get__(layer)


def carrying_decoders(model: nn.Module) -> list[nn.Module]:
    """Return the decoders in a model that carry passes."""
    return [module for module in model.modules() if "_hrm_hooks" in module.__dict__]


def _start_pass(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names, n_layers = backbone.__dict__["_hrm_decoder"]
    group = backbone.__dict__.get("_hrm_group")
    if group is None:
        this = _read_pass(backbone, names, args, kwargs, n_layers)
    else:
        this = _read_pass_of_shard(backbone, names, args, kwargs, n_layers, group)
    if this is not None:
        this.start()


def _read_pass(
    backbone: Any, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], n_layers: int
) -> Pass | None:
    """Read what a decoder is called with; None where there are no tokens: it will complain itself."""
    check_ring(None)
    call = DecoderCall.read(backbone.config, names, args, kwargs)
    if call is None:
        return None
    tokens = _tokens(backbone.config, call)
    return Pass(call, tokens, n_layers, row_adapters=_row_adapters(backbone, call.batch))


def _read_pass_of_shard(
    backbone: nn.Module,
    names: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    n_layers: int,
    group: dist.ProcessGroup,
) -> Pass:
    """Read the same of a shard, and meet the processes that hold the others."""
    place = meeting_place(group, backbone)
    try:
        check_ring(group)
        call = DecoderCall.read(backbone.config, names, args, kwargs)
        if call is None:
            raise StateError("a shard of a sequence came without input_ids or inputs_embeds; pass its tokens")
        seen = 0 if call.cache is None else tokens_seen(call.cache)
        if seen:
            raise StateError(
                f"a shard of a sequence came with a cache of {seen} tokens; context parallelism "
                "knows no cache: pass the whole sequence in shards, and use_cache=False"
            )
        tokens = _tokens(backbone.config, call)
        own = read_shard(
            call.batch,
            call.time,
            tokens,
            mask=call.mask,
            positions=call.positions,
            starts=call.starts,
            documents=call.documents,
        )
    except Exception:
        tell_refusal(group, place)  # the others wait for this process
        raise
    shards = compare_shards(group, own, place)
    return Pass(call, tokens, n_layers, shards=shards, row_adapters=_row_adapters(backbone, call.batch))


def _tokens(config: Any, call: DecoderCall) -> Tokens:
    return read_tokens(
        call.batch,
        call.time,
        mask=call.mask,
        positions=call.positions,
        starts=call.starts,
        documents=call.documents,
        cache=call.cache,
        window=getattr(config, "sliding_window", None),
    )


def _end_pass(backbone: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    this = _current.value
    if this is None:
        return
    this.leave(finished=output is not None)
    if output is not None:
        this.check_cache(output, recomputing=lambda: _recomputes(backbone))


def _recomputes(backbone: nn.Module) -> bool:
    return any(
        getattr(module, "gradient_checkpointing", False) and module.training for module in backbone.modules()
    )


class _Carrier:
    """A decoder layer that runs in the pass it was handed."""

    carried: type[nn.Module]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # not by a hook: in transformers 5.17 gradient checkpointing runs hooks again too, after the pass
        kwargs.setdefault("hrm_pass", _current.value)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # the class has the name of the one it was made from, by which it cannot be found
        return _restore, (type(self).carried,), self.__dict__


def _restore(cls: type[nn.Module]) -> nn.Module:
    carrying = _carrying(cls)
    return carrying.__new__(carrying)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _carrying(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a decoder layer that carries passes, always the same one."""
    if cls not in _CLASSES:
        _CLASSES[cls] = _make_carrying(cls)
    return _CLASSES[cls]


def _make_carrying(cls: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, hrm_pass: Pass | None = None, **kwargs: Any) -> Any:
        if hrm_pass is not None:
            hrm_pass.enter(find_cache((*args, *kwargs.values())))
        before, _current.in_layer = _current.in_layer, hrm_pass
        try:
            return cls.forward(self, *args, **kwargs)
        finally:
            _current.in_layer = before
            if hrm_pass is not None:
                # a layer that fails, or is computed again as far as needed, leaves a block in the middle; its
                # graph holds this pass, so it would never be freed
                hrm_pass.heard = None

    # the name stays: sharding policies and device maps find decoder layers by it
    members = {"forward": forward, "carried": cls, "__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_Carrier, cls), members)
