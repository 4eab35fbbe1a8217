"""The context of a forward pass: how padding, segment starts and states reach the adapters.

The context is read once per forward pass, where the decoder is called, and passed to each decoder layer as
one more keyword. The class of each decoder layer is replaced by a subclass that adds this keyword to the
call, and that of the decoder by one that ends the pass however it is left. Gradient checkpointing runs the
layer again with the same keywords, on a GPU in another thread, so a recomputed layer gets the same context.

The code of the models passes no keyword of ours on in two places, where what is running is kept by thread:

* From the decoder to its layers: those of Bloom, Codegen, Falcon, GPT-J, GPT-Neo and MPT are called with
  named arguments only.
* From a decoder layer to its blocks: an MLP is called with hidden states only. What its adapters compute
  before the block returns is kept in the :class:`LayerCall`, which ends with the call of the layer.

Hooks of the blocks call the adapters: hooks run also where another library has replaced ``forward`` of a
block. A wrapper around the block, as those of peft around linear modules (``base_layer``), would change the
names of all parameters in the block, so that a LoRA in it could not load its files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..errors import StateError
from ..ops.masks import SegmentMasks
from .attention_masks import read_segment_masks
from .cache import HRMState, Steps, TokenStep, cached_length, find_cache, find_state, open_state
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


class _Running(threading.local):
    """What runs in this thread, the innermost of it: a decoder, or one of its layers.

    No ContextVar: torch.compile (2.13) breaks its graph at one. In a graph that other code breaks it loses
    what is written here; the blocks then refuse to run, as outside of a forward pass.
    """

    call: ForwardContext | LayerCall | None = None


_running = _Running()


def current_layer_call() -> LayerCall | None:
    """Return the call of the decoder layer that is running, None outside of one."""
    call = _running.call
    return call if isinstance(call, LayerCall) else None


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
        # of a single token without gradients, blocks may use steps that are prepared for all of them together
        self.single = (
            call.time == 1
            and shards is None
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )
        self._cache: Cache | None = None
        self._cached_before = 0
        self._state: HRMState | None = None
        self._steps: Steps | None = None
        self._outer: ForwardContext | LayerCall | None = None

    def start(self) -> None:
        """Make this the innermost call that is running; a decoder may be called inside of another one."""
        self._outer, _running.call = _running.call, self

    def call_layer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall:
        """Return a new call of a decoder layer; record its cache, before keys and values are added to it."""
        if self._cache is None and (cache := find_cache((*args, *kwargs.values()))) is not None:
            self._cache, self._cached_before = cache, cached_length(cache)
        return LayerCall(self)

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
        return self._state

    def step_of(self, block: str, adapter: str) -> TokenStep | None:
        """Return what an adapter needs for a single token, None where it is not prepared for one."""
        if self._steps is None:
            state = self.open_state_once()
            self._steps = {} if state is None else state.steps(self._segment_start_on)
        return self._steps.get((block, adapter))

    def _segment_start_on(self, device: torch.device) -> Tensor | None:
        return self.masks_on(device).segment_start

    def skip(self, block: str) -> None:
        """Drop the states of a block whose adapters do not process these tokens."""
        state = None if self._cache is None else find_state(self._cache)
        if state is not None:
            state.drop(block)

    def leave(self, *, finished: bool) -> None:
        """Return to the call around this one; count the tokens if all layers have finished."""
        _running.call = self._outer
        if finished and self._state is not None:
            self._state.store_steps(self._steps or {})
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


@dataclass(slots=True)
class BlockCall:
    """One call of a block of a decoder layer: what its adapters have computed before the block returns.

    Parameters
    ----------
    context : ForwardContext
    active : list of str
        Names of the adapters that take part.
    outputs : dict of (Tensor, Tensor)
        Output and states of those that take the block's input, by adapter.
    static_inputs : dict of (Tensor, Tensor)
        Input of the block, and what the static parts read of it, by adapter.
    """

    context: ForwardContext
    active: list[str]
    outputs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    static_inputs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(slots=True)
class LayerCall:
    """One call of a decoder layer, or of its recomputation.

    The context could not hold what adapters compute in it: the graph of the pass holds the context, so that
    the outputs of a layer that fails, or is recomputed only in part, would never be freed.

    Parameters
    ----------
    context : ForwardContext
    blocks : dict of BlockCall or TokenStep
        Calls of its blocks that have not returned, by name of the block in a cache; the step of a single
        token where the only active adapter is prepared for one.
    """

    context: ForwardContext
    blocks: dict[str, BlockCall | TokenStep] = field(default_factory=dict)


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
    _patch(backbone, _PatchedDecoder)
    for layer in layers:
        _patch(layer, _PatchedLayer)


def remove(backbone: nn.Module, layers: nn.ModuleList) -> None:
    """Undo :func:`install`."""
    for hook in backbone.__dict__.pop("_hrm_hooks", ()):
        hook.remove()
    for name in ("_hrm_decoder", "_hrm_group"):
        backbone.__dict__.pop(name, None)
    for module in (backbone, *layers):
        _unpatch(module)


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
    if call.time == 1 and not torch.compiler.is_compiling():
        masks = masks.without_no_ops()
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
    context = _running.call
    if not isinstance(context, ForwardContext):  # the decoder was called without tokens, or refused
        return
    context.leave(finished=output is not None)
    if output is not None:
        context.check_cache(output, recomputing=lambda: _recomputes(backbone))
        warn_of_overflow(backbone, output)


def _recomputes(backbone: nn.Module) -> bool:
    return any(
        getattr(module, "gradient_checkpointing", False) and module.training for module in backbone.modules()
    )


class _Patched:
    """A decoder, or one of its layers, whose class was replaced by a subclass with the same name."""

    original_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle finds classes by name, and this class has the name of the original one
        return _restore, (_patch_of(type(self)), type(self).original_class), self.__dict__


class _PatchedDecoder(_Patched):
    """A decoder whose pass ends however it is left."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outer = _running.call
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        except BaseException as error:
            # torch runs no hook after a KeyboardInterrupt, also not the one that ends the pass
            if not isinstance(error, Exception):
                _running.call = outer
            raise


class _PatchedLayer(_Patched):
    """A decoder layer that runs in the context it is called with."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # not a hook: in transformers 5.17 gradient checkpointing repeats hooks too, after the forward pass
        running = _running.call
        kwargs.setdefault("hrm_context", running.context if isinstance(running, LayerCall) else running)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, hrm_context: ForwardContext | None = None, **kwargs: Any) -> Any:
        """Run the layer while its call is the innermost one."""
        previous = _running.call
        _running.call = None if hrm_context is None else hrm_context.call_layer(args, kwargs)
        try:
            return type(self).original_class.forward(self, *args, **kwargs)
        finally:
            _running.call = previous


_PATCHED_CLASSES: dict[tuple[type[_Patched], type[nn.Module]], type[nn.Module]] = {}


def _patched_class(patch: type[_Patched], cls: type[nn.Module]) -> type[nn.Module]:
    """Return the patched subclass of a class, always the same one."""
    if (patch, cls) not in _PATCHED_CLASSES:
        # the name is kept: sharding policies and device maps find decoder layers by it
        members = {"original_class": cls, "__module__": cls.__module__, "__doc__": cls.__doc__}
        _PATCHED_CLASSES[patch, cls] = type(cls.__name__, (patch, cls), members)
    return _PATCHED_CLASSES[patch, cls]


def _patch_of(cls: type[_Patched]) -> type[_Patched]:
    return _PatchedDecoder if issubclass(cls, _PatchedDecoder) else _PatchedLayer


def _restore(patch: type[_Patched], cls: type[nn.Module]) -> nn.Module:
    patched = _patched_class(patch, cls)
    return patched.__new__(patched)


def _patch(module: nn.Module, patch: type[_Patched]) -> None:
    """Replace the class of a module by its patched subclass."""
    module.__class__ = _patched_class(patch, type(module))
    _renew_old_forward(module)


def _unpatch(module: nn.Module) -> None:
    """Undo :func:`_patch`."""
    if isinstance(module, _Patched):
        module.__class__ = type(module).original_class  # type: ignore[assignment]
        _renew_old_forward(module)


def _renew_old_forward(module: nn.Module) -> None:
    """Have accelerate's offloading, which calls the previous forward, call that of the class."""
    if "_old_forward" in module.__dict__:
        module.__dict__["_old_forward"] = type(module).forward.__get__(module)
