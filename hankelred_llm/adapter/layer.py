"""The HRM layer: diagonal linear systems in parallel with a block of a decoder layer."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import AdapterError, ConfigError, StateError
from ..state.cache import TokenStep
from ..state.forward_context import BlockCall, ForwardContext, LayerCall, current_layer_call
from .system import HRMSystem, StaticMaps

if TYPE_CHECKING:
    from .config import HRMConfig, ModeCounts


class AdapterLayer(nn.Module, BaseTunerLayer):
    """The adapters of one module of the base model, which adds their outputs in a hook.

    The module is not wrapped, so names of the base model's parameters do not change, and adapters of other
    methods in it are found and saved as usual.

    Parameters
    ----------
    target : Module
        The module.
    """

    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()

    def __init__(self, target: nn.Module):
        super().__init__()
        self.merged_adapters: list[str] = []
        self.method_adapters: tuple[str, ...] = ()  # all of this method in the model
        self._active_parts: list[str] = []
        # not registered as a submodule: neither is a child of the other
        self.__dict__["_target"] = target
        self.__dict__["_hooks"] = ()

    @property
    def target(self) -> nn.Module:
        """The module of the base model."""
        return cast(nn.Module, self.__dict__["_target"])

    def modules_of(self, kind: str) -> nn.ModuleDict:
        """Return the modules with the parameters of one kind, by adapter name."""
        return cast(nn.ModuleDict, getattr(self, kind))

    @abstractmethod
    def has_adapter(self, adapter_name: str) -> bool:
        """Return whether an adapter has a part here."""

    def active_parts(self) -> list[str]:
        """Return the names of the adapters that take part in the forward pass."""
        return self._active_parts

    def update_active_parts(self) -> None:
        """Find the active parts anew; every forward pass needs them, several times."""
        active = [] if self.disable_adapters else cast(list[str], self.active_adapters)
        self._active_parts = [name for name in active if self.has_adapter(name)]

    def active_in(self, context: ForwardContext | None) -> list[str]:
        """Return the names of the adapters that take part in one forward pass."""
        if context is None or context.row_adapters is None or self.disable_adapters:
            return self.active_parts()
        return [name for name in dict.fromkeys(context.row_adapters) if self.has_adapter(name)]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapters; names of adapters of other methods, such as LoRA, are ignored."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if not names or any(name in self.method_adapters for name in names):
            super().set_adapter(names, inference_mode=inference_mode)
        self.update_active_parts()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters on or off."""
        super().enable_adapters(enabled)
        self.update_active_parts()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self.method_adapters = tuple(name for name in self.method_adapters if name != adapter_name)
        self.update_active_parts()

    def remove_hooks(self) -> None:
        """Remove the hooks from the module."""
        for hook in self.__dict__["_hooks"]:
            hook.remove()
        self.__dict__["_hooks"] = ()

    def detach(self) -> None:
        """Leave the module as it was before adapters were added."""
        self.remove_hooks()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: a recurrence cannot be merged into weights."""
        raise cannot_merge()

    def unmerge(self) -> None:
        """Refuse: nothing can have been merged."""
        raise cannot_merge()

    @property
    def weight(self) -> Tensor:
        """Absent: peft assumes that a tuner layer wraps a layer with weights."""
        raise AttributeError("weight")

    @property
    def bias(self) -> Tensor:
        """Absent, as the weight."""
        raise AttributeError("bias")

    def target_device(self) -> torch.device | None:
        """Return the device that the module computes on, None where it has no tensors."""
        # weights that accelerate has offloaded return to the device they run on
        for module in self.target.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
        # quantized modules may hold their weights as buffers
        tensors = itertools.chain(self.target.parameters(), self.target.buffers())
        return next((tensor.device for tensor in tensors), None)

    def parameter_dtype(self) -> torch.dtype:
        """Return the type of new parameters: double precision for a module in it, else single."""
        double = any(p.dtype == torch.float64 for p in self.target.parameters())
        return torch.float64 if double else torch.float32

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # peft would also cast to the module's dtype, and bfloat16 is too coarse for poles and states
        device = self.target_device() if device is None else device
        for kind in self.adapter_layer_names:
            if device is not None and adapter_name in self.modules_of(kind):
                part = self.modules_of(kind)[adapter_name]
                if not any(parameter.is_meta for parameter in part.parameters()):
                    part.to(device)


class HRMLayer(AdapterLayer):
    """The adapters of one block of a decoder layer: a child of that layer, next to the block.

    Parameters
    ----------
    target : Module
        The block: it takes hidden states first, or by the name ``hidden_states``, and returns hidden states,
        or a tuple that starts with them.
    index : int
        Number of the decoder layer.
    block : str
        Name of the block in it.
    width : int
        d.

    Attributes
    ----------
    hrm_system : ModuleDict of HRMSystem
        By adapter name. Its modules are called with x (batch, time, d), the input or output of the block, and
        the keywords ``valid`` and ``segment_start``; they return ``(y, s)``, which forward hooks can read.
    """

    adapter_layer_names = ("hrm_system",)
    hrm_system: nn.ModuleDict

    def __init__(self, target: nn.Module, index: int, block: str, width: int):
        super().__init__(target)
        self.index, self.block, self.width = index, block, width
        self.cache_key = f"{index}.{block}"  # names its states in a cache
        self.hrm_system = nn.ModuleDict()
        # its dict: the access through modules costs time at every token
        self._systems = cast("dict[str, HRMSystem]", self.hrm_system._modules)
        self.taps: dict[str, str] = {}
        target.__dict__["_hrm_layer"] = self
        self.__dict__["_hooks"] = (
            target.register_forward_pre_hook(_before_block, with_kwargs=True),
            target.register_forward_hook(_add_adapters, with_kwargs=True),
        )

    def has_adapter(self, adapter_name: str) -> bool:
        """Return whether an adapter has a system here."""
        return adapter_name in self._systems

    def update_layer(
        self, adapter_name: str, config: HRMConfig, modes: ModeCounts, static: StaticMaps
    ) -> None:
        """Add a newly initialized adapter."""
        system = HRMSystem(
            self.width, modes, static, dtype=self.parameter_dtype(), device=self.target_device()
        )
        system.initialize(config.init_weights, gate=config.gate_init)
        system.train(self.training)
        self.hrm_system[adapter_name] = system
        self.taps[adapter_name] = config.tap
        self.set_adapter(cast(list[str], self.active_adapters))

    def system(self, adapter_name: str) -> HRMSystem:
        """Return the system of an adapter."""
        return self._systems[adapter_name]

    def static_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all adapters that only their static parts have."""
        return [
            parameter
            for system in self.hrm_system.values()
            for parameter in cast(HRMSystem, system).static_parameters()
        ]

    def static_input(self, block_call: BlockCall, name: str, x: Tensor, reader: str = "") -> Tensor:
        """Return what the static parts of an adapter read, computed once for all of them.

        Parameters
        ----------
        block_call : BlockCall
            The call of the block that is running.
        name : str
            Of the adapter.
        x : Tensor, shape (batch, time, d)
            Input of the block, or of a linear module in it that is read statically.
        reader : str
            Name of that module.

        Raises
        ------
        ConfigError
            The linear module has another input than its block.
        """
        if name not in block_call.static_inputs:
            system = self.system(name)
            _check_not_offloaded(name, system.B, x)
            block_call.static_inputs[name] = x, system.static_input(x)
        read, u = block_call.static_inputs[name]
        if read is not x:
            raise self._other_input(name, reader)
        return u

    def static_input_of_token(self, step: TokenStep, name: str, x: Tensor, reader: str) -> Tensor:
        """Return the same for a single token, (batch, 1, rank)."""
        if step.static_input is None:
            step.read, step.static_input = x, step.stepper.static_input(x)
        if step.read is not x:
            raise self._other_input(name, reader)
        return step.static_input

    def _other_input(self, name: str, reader: str = "") -> ConfigError:
        named = reader or ", ".join(self.system(name).static.readouts)
        return ConfigError(
            f"static_readouts names '{named}', which has another input than block {self.cache_key}, so "
            "that it cannot read u = B x; name only projections of the block's input, and give the "
            "others a LoRA of their own with lora="
        )

    def run_before_block(self, hidden: Tensor | None) -> None:
        """Run the active adapters that take the input of the block, before the block runs.

        The tensors that their backward pass saves then exist before the block's last matrix product, which
        activation checkpointing can therefore skip when it recomputes the layer.

        Parameters
        ----------
        hidden : Tensor, shape (batch, time, d), or None
            Input of the block. None: it is not known yet, and all adapters run after the block.

        Raises
        ------
        StateError
            The block was called by itself, or its cache is another adapter's.
        """
        layer_call = current_layer_call()
        if layer_call is not None and (step := self._only_step(layer_call.context)) is not None:
            layer_call.blocks[self.cache_key] = step
            return
        block_call = self._new_call(layer_call)
        if layer_call is None or block_call is None:
            return
        layer_call.blocks[self.cache_key] = block_call
        if hidden is None:
            return
        for name in block_call.active:
            if self.taps[name] == "input":
                block_call.outputs[name] = self._run(block_call, name, hidden)

    def forward(self, hidden: Tensor, head: Tensor) -> Tensor:
        """Add the outputs of the active adapters to the output of the block.

        Parameters
        ----------
        hidden, head : Tensor, shape (batch, time, d)
            Input and output of the block.

        Returns
        -------
        Tensor, shape (batch, time, d)

        Raises
        ------
        StateError
            As :meth:`run_before_block`.
        """
        layer_call = current_layer_call()
        block_call: BlockCall | None = None
        if layer_call is not None:
            begun = layer_call.blocks.pop(self.cache_key, None)
            if isinstance(begun, TokenStep):
                return self._add_step(layer_call.context, begun, hidden, head)
            block_call = begun
        block_call = self._new_call(layer_call) if block_call is None else block_call
        if block_call is None:
            return head
        context = block_call.context
        if not block_call.active:
            context.skip(self.cache_key)
            return head
        states = {}
        block_output = head
        for name in block_call.active:
            output = block_call.outputs.get(name)
            if output is None:
                output = self._run(block_call, name, hidden if self.taps[name] == "input" else block_output)
            y, states[self._systems[name].identity.value] = output
            rows = None if context.row_adapters is None else context.rows_of(name)
            if rows is not None:
                y = torch.where(rows.to(y.device), y, 0)
            head = head + y
            head = head if head.dtype == block_output.dtype else head.to(block_output.dtype)
        state = context.open_state_once()
        if state is not None:
            state.store(self.cache_key, states)
        return head

    def _new_call(self, layer_call: LayerCall | None) -> BlockCall | None:
        """Return a new call of the block, None outside of a decoder layer where no adapter is active.

        Raises
        ------
        StateError
            No decoder layer is running, and an adapter is active.
        """
        if layer_call is not None:
            return BlockCall(layer_call.context, self.active_in(layer_call.context))
        if self.active_parts():
            raise StateError(
                f"block {self.cache_key} was called outside the forward pass of its model, so padding and "
                "document starts are unknown; call the model, or its decoder"
            )
        return None

    def _only_step(self, context: ForwardContext) -> TokenStep | None:
        """Return the step of a single token where the only active adapter is prepared for one."""
        active = self._active_parts
        if not context.single or len(active) != 1 or context.row_adapters is not None:
            return None
        system = self._systems[active[0]]
        step = context.step_of(self.cache_key, system.identity.value)
        usable = step is not None and step.plain and step.stepper.system is system
        return step if usable and self.taps[active[0]] == "input" else None

    def _add_step(self, context: ForwardContext, step: TokenStep, hidden: Tensor, head: Tensor) -> Tensor:
        """Add the output of a single token to that of the block; the pass keeps the state at its end."""
        self._check_shape(context, hidden)
        if step.read is not None and step.read is not hidden:
            raise self._other_input(self._active_parts[0])
        valid, segment_start = context.masks if context.unmasked else context.masks_on(hidden.device)
        head, step.after = step.stepper.run(
            hidden, step.state, valid, segment_start, step.static_input, step.decayed, head
        )
        return head

    def _check_shape(self, context: ForwardContext, x: Tensor) -> None:
        """Refuse hidden states that are not those of the batch that the decoder was called with."""
        if x.shape != (context.batch, context.time, self.width):
            raise StateError(
                f"block {self.cache_key} got hidden states of shape {tuple(x.shape)} for a batch of "
                f"{context.batch} rows of {context.time} tokens; an adapter needs them as (batch, time, "
                "width)"
            )

    def _run(self, block_call: BlockCall, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of an adapter, and its states.

        Raises
        ------
        StateError
            The hidden states are not those of the batch that the decoder was called with.
        """
        context = block_call.context
        self._check_shape(context, x)
        system = self._systems[name]
        _check_not_offloaded(name, system.B, x)
        identity = system.identity.value
        valid, segment_start = context.masks if context.unmasked else context.masks_on(x.device)
        # pruning and weight_norm compute parameters in a pre-hook: what is read of them before is out of date
        current = not system.runs_code_before_forward()
        u = self.static_input(block_call, name, x) if system.static.readouts and current else None
        state = context.open_state_once()
        options: dict[str, Any] = {}
        step = context.step_of(self.cache_key, identity) if context.single and current else None
        if step is not None and step.stepper.system is system:
            options.update(stepper=step.stepper, state=step.state, decayed=step.decayed)
        elif state is not None:
            before = self._fitting(state.previous(self.cache_key, identity), system)
            options["state"] = before
            if context.time == 1 and current and not torch.is_grad_enabled() and before is not None:
                options["stepper"] = state.stepper(self.cache_key, identity, system)
        if context.shards is not None:
            options["shards"] = context.shards_on(x.device)
        result = system(x, valid=valid, segment_start=segment_start, static_input=u, **options)
        return cast("tuple[Tensor, Tensor]", result)

    def _fitting(self, state: Tensor | None, system: HRMSystem) -> Tensor | None:
        """Return a state in the type of the parameters; states that were put into a cache may have another.

        Raises
        ------
        StateError
            The state has another size.
        """
        if state is None:
            return None
        if state.shape[1] != system.modes.order:
            raise StateError(
                f"the cache has a state of {state.shape[1]} numbers for block {self.cache_key}, whose "
                f"adapter has {system.modes.order}; pass the states of this adapter to set_states"
            )
        dtype = torch.promote_types(system.B.dtype, torch.float32)
        return state if state.dtype == dtype else state.to(dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        super().delete_adapter(adapter_name)
        self.taps.pop(adapter_name, None)

    def detach(self) -> None:
        """Remove the hooks from the block."""
        super().detach()
        self.target.__dict__.pop("_hrm_layer", None)


def _before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run adapters on the input of a block, if no later pre-hook of the block can still change that input."""
    is_last = next(reversed(block._forward_pre_hooks.values())) is _before_block
    block.__dict__["_hrm_layer"].run_before_block(_hidden_states(args, kwargs) if is_last else None)


def _add_adapters(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Add the adapters to the output of a block, as its forward hook."""
    hidden, layer = _hidden_states(args, kwargs), block.__dict__["_hrm_layer"]
    if isinstance(out, tuple):
        return (layer.forward(hidden, out[0]), *out[1:])
    return layer.forward(hidden, out)


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return cast(Tensor, args[0] if args else kwargs["hidden_states"])


def cannot_merge() -> AdapterError:
    """Return the error of every attempt to merge."""
    return AdapterError(
        "an HRM adapter has a state that runs along the tokens, so it cannot be merged into weights; keep "
        "the PeftModel for inference, or call unload() to get the base model back"
    )


def _check_not_offloaded(name: str, parameter: Tensor, x: Tensor) -> None:
    """Refuse parameters without data: accelerate brings them back for the forward pass of their module only.

    Raises
    ------
    AdapterError
    """
    if parameter.is_meta and not x.is_meta:
        raise AdapterError(
            f"the parameters of adapter '{name}' are on the meta device, as after accelerate.cpu_offload of "
            "a model with an adapter, and are read where they have no data; offload the base model first, "
            "then attach or load the adapter, which is small"
        )
