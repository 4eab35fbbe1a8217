"""The context of a forward pass: how padding, segment starts and states reach the adapters.

The context is read once per forward pass, where the decoder is called, and passed to each decoder layer as
one more keyword. The class of each decoder layer is replaced by a subclass that adds this keyword to the
call, and makes the context the current one while the layer runs. Gradient checkpointing runs the layer again
with the same keywords, so a recomputed layer gets the same context.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..errors import StateError
from ..ops.masks import SegmentMasks
from .attention_masks import read_segment_masks
from .cache import HRMState, cached_length, find_cache, find_state, open_state
from .decoder_call import DecoderCall, argument_names
from .overflow import warn_of_overflow
from .row_adapters import adapters_of_rows
from .shards import (
    Shards,
    announce_refusal,
    check_torch_context_parallel,
    common_device,
    compare_shards,
    read_shard,
)


class _Current(threading.local):
    """The context of the forward pass of this thread: one model may serve several threads at once."""

    value: ForwardContext | None = None  # of the decoder that is running
    in_layer: ForwardContext | None = None  # of the decoder layer that is running


_current = _Current()


def current_context() -> ForwardContext | None:
    """Return the context of the decoder layer that is running, None outside of one."""
    return _current.in_layer


class ForwardContext:
    """What the layers of a decoder share during one forward pass."""

    def __init__(
        self,
        call: DecoderCall,
        masks: SegmentMasks,
        n_layers: int,
        *,
        shards: Shards | None = None,
        row_adapters: tuple[str, ...] | None = None,
    ):
        self.call, self.masks, self.n_layers = call, masks, n_layers
        self.batch, self.time = call.batch, call.time
        self.shards, self.row_adapters = shards, row_adapters
        self._rows: dict[str, Tensor] = {}
        self.unmasked = masks.valid is None and masks.segment_start is None
        self._cache: Cache | None = None
        self._cached_before = 0
        self._state: HRMState | None = None
        self._outer: ForwardContext | None = None
        # block that is running, and output and states of its adapters that take the block's input, by adapter
        self.pre_block_outputs: tuple[str, dict[str, tuple[Tensor, Tensor]]] | None = None
        # input of the block that is running, and what the static parts of an adapter read of it, by block and
        # adapter
        self.static_inputs: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def start(self) -> None:
        """Make this the current context, nested in the one before if there is one."""
        self._outer, _current.value = _current.value, self

    def enter(self, cache: Cache | None) -> None:
        """Record the cache passed to the first layer, before keys and values are added to it."""
        if self._cache is None and cache is not None:
            self._cache = cache
            self._cached_before = cached_length(cache)

    @property
    def entered(self) -> bool:
        """Whether the cache of this pass is known."""
        return self._cache is not None

    def masks_on(self, device: torch.device) -> SegmentMasks:
        """Return the masks on the device of a layer."""
        return SegmentMasks(*(None if mask is None else mask.to(device) for mask in self.masks))

    def shards_on(self, device: torch.device) -> Shards | None:
        """Return the description of the shards, on the device of a layer."""
        return None if self.shards is None else self.shards.on(device)

    def rows_of(self, adapter: str) -> Tensor | None:
        """Return the rows that an adapter applies to, (batch, 1, 1) bool; None for all rows."""
        if self.row_adapters is None or set(self.row_adapters) == {adapter}:
            return None
        if adapter not in self._rows:
            self._rows[adapter] = torch.tensor([name == adapter for name in self.row_adapters])[:, None, None]
        return self._rows[adapter]

    def open_state_once(self) -> HRMState | None:
        """Return the states in the cache, opened at the first call; None without a cache."""
        if self.shards is not None:
            # a cache that the model creates itself gets no states: a later call with it is refused, as it has
            # tokens without states
            return None
        if self._state is None and self._cache is not None:
            self._state = open_state(self._cache, length=self._cached_before, n_layers=self.n_layers)
            self._state.check_rows(self.row_adapters)
            self._state.start_pass()
        return self._state

    def take_pre_block_outputs(self, block: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Return, and remove, the adapter outputs computed before a block."""
        (owner, outputs), self.pre_block_outputs = self.pre_block_outputs or ("", {}), None
        return outputs if owner == block else {}

    def skip(self, block: str) -> None:
        """Drop the states of a block whose adapters do not process these tokens."""
        state = None if self._cache is None else find_state(self._cache)
        if state is not None:
            state.drop(block)

    def leave(self, *, finished: bool) -> None:
        """Restore the outer context; count the tokens if all layers have finished."""
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
            The output of the decoder.
        recomputing : callable
            Returns whether layers are recomputed in the backward pass: transformers then keeps no cache.

        Raises
        ------
        StateError
            Without this error the next tokens would start from a zero state.
        """
        if self.shards is not None or torch.compiler.is_compiling():
            return
        returned = find_cache(output.values() if isinstance(output, Mapping) else _as_tuple(output))
        for cache in (self.call.cache, returned):
            if cache is None or cache is self._cache or not (cached := cached_length(cache)):
                continue
            raise StateError(
                f"the cache holds {cached} tokens, and no decoder layer was called with it, so the states of "
                f"the adapters are not in it (transformers {transformers.__version__}); pass use_cache=False"
            )
        if self.call.use_cache and self._cache is None and returned is None and not recomputing():
            raise StateError(
                "use_cache=True was given, and neither the decoder's layers nor its output have a cache "
                f"(transformers {transformers.__version__}), so the next tokens would start from a state of "
                "zero; pass use_cache=False"
            )


def _as_tuple(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def install(backbone: nn.Module, layers: nn.ModuleList) -> None:
    """Patch a decoder and its layers to pass the context along; a second call does nothing."""
    if "_hrm_hooks" in backbone.__dict__:
        return
    backbone.__dict__["_hrm_decoder"] = (argument_names(backbone), len(layers))
    backbone.__dict__["_hrm_hooks"] = [
        backbone.register_forward_pre_hook(_start_context, with_kwargs=True),
        backbone.register_forward_hook(_end_context, always_call=True),
    ]
    for layer in layers:
        layer.__class__ = _patched_class(type(layer))
        if "_old_forward" in layer.__dict__:  # accelerate's offloading calls the previous forward
            layer.__dict__["_old_forward"] = type(layer).forward.__get__(layer)


def remove(backbone: nn.Module, layers: nn.ModuleList) -> None:
    """Undo :func:`install`."""
    for hook in backbone.__dict__.pop("_hrm_hooks", ()):
        hook.remove()
    for name in ("_hrm_decoder", "_hrm_group"):
        backbone.__dict__.pop(name, None)
    for layer in layers:
        if isinstance(layer, _PatchedLayer):
            layer.__class__ = type(layer).original_class  # type: ignore[assignment]
            if "_old_forward" in layer.__dict__:
                layer.__dict__["_old_forward"] = type(layer).forward.__get__(layer)


def patched_decoders(model: nn.Module) -> list[nn.Module]:
    """Return the decoders in a model that :func:`install` has patched."""
    return [module for module in model.modules() if "_hrm_hooks" in module.__dict__]


def _start_context(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names, n_layers = backbone.__dict__["_hrm_decoder"]
    group = backbone.__dict__.get("_hrm_group")
    if group is None:
        context = _read_context(backbone, names, args, kwargs, n_layers)
    else:
        context = _read_context_of_shard(backbone, names, args, kwargs, n_layers, group)
    if context is not None:
        context.start()


def _read_context(
    backbone: Any, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], n_layers: int
) -> ForwardContext | None:
    """Read the arguments of a decoder; None without tokens, for which the decoder raises its own error."""
    check_torch_context_parallel(None)
    call = DecoderCall.read(backbone.config, names, args, kwargs)
    if call is None:
        return None
    masks = _segment_masks(backbone.config, call)
    return ForwardContext(call, masks, n_layers, row_adapters=adapters_of_rows(backbone, call.batch))


def _read_context_of_shard(
    backbone: nn.Module,
    names: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    n_layers: int,
    group: dist.ProcessGroup,
) -> ForwardContext:
    """Read the same of a shard, and compare it with those of the other processes."""
    device = common_device(group, backbone)
    try:
        check_torch_context_parallel(group)
        call = DecoderCall.read(backbone.config, names, args, kwargs)
        if call is None:
            raise StateError("a shard of a sequence has no input_ids or inputs_embeds; pass its tokens")
        cached = 0 if call.cache is None else cached_length(call.cache)
        if cached:
            raise StateError(
                f"a shard of a sequence has a cache of {cached} tokens; context parallelism "
                "supports no cache: pass the whole sequence in shards, and use_cache=False"
            )
        masks = _segment_masks(backbone.config, call)
        summary = read_shard(
            call.batch,
            call.time,
            masks,
            mask=call.mask,
            positions=call.positions,
            cumulative_lengths=call.cumulative_lengths,
            document_ids=call.document_ids,
        )
    except Exception:
        announce_refusal(group, device)  # the other processes wait for this one
        raise
    shards = compare_shards(group, summary, device)
    return ForwardContext(
        call, masks, n_layers, shards=shards, row_adapters=adapters_of_rows(backbone, call.batch)
    )


def _segment_masks(config: Any, call: DecoderCall) -> SegmentMasks:
    return read_segment_masks(
        call.batch,
        call.time,
        mask=call.mask,
        positions=call.positions,
        cumulative_lengths=call.cumulative_lengths,
        document_ids=call.document_ids,
        cache=call.cache,
        window=getattr(config, "sliding_window", None),
    )


def _end_context(backbone: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    context = _current.value
    if context is None:
        return
    context.leave(finished=output is not None)
    if output is not None:
        context.check_cache(output, recomputing=lambda: _recomputes(backbone))
        warn_of_overflow(backbone, output)


def _recomputes(backbone: nn.Module) -> bool:
    return any(
        getattr(module, "gradient_checkpointing", False) and module.training for module in backbone.modules()
    )


class _PatchedLayer:
    """A decoder layer that runs in the context it is called with."""

    original_class: type[nn.Module]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # not a hook: in transformers 5.17 gradient checkpointing repeats hooks too, after the forward pass
        kwargs.setdefault("hrm_context", _current.value)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle finds classes by name, and this class has the name of the original one
        return _restore, (type(self).original_class,), self.__dict__


def _restore(cls: type[nn.Module]) -> nn.Module:
    patched = _patched_class(cls)
    return patched.__new__(patched)


_PATCHED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _patched_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a decoder layer class that takes a context, always the same one."""
    if cls not in _PATCHED_CLASSES:
        _PATCHED_CLASSES[cls] = _make_patched_class(cls)
    return _PATCHED_CLASSES[cls]


def _make_patched_class(cls: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, hrm_context: ForwardContext | None = None, **kwargs: Any) -> Any:
        if hrm_context is not None and not hrm_context.entered:
            hrm_context.enter(find_cache((*args, *kwargs.values())))
        previous, _current.in_layer = _current.in_layer, hrm_context
        try:
            return cls.forward(self, *args, **kwargs)
        finally:
            _current.in_layer = previous
            if hrm_context is not None:
                # a layer that fails, or is recomputed only in part, stops inside a block; the graph of these
                # outputs holds this context, so neither would ever be freed
                hrm_context.pre_block_outputs = None
                hrm_context.static_inputs.clear()

    # the name is kept: sharding policies and device maps find decoder layers by it
    members = {
        "forward": forward,
        "original_class": cls,
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    return type(cls.__name__, (_PatchedLayer, cls), members)
