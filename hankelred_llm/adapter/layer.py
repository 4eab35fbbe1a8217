"""The HRM layer: diagonal linear systems beside a block of a decoder layer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import AdapterError, StateError
from ..state.forward_context import Pass, current_pass
from .system import HRMSystem

if TYPE_CHECKING:
    from .config import HRMConfig, Modes


class HRMLayer(nn.Module, BaseTunerLayer):
    """The adapters beside one block of a decoder layer: a child of that layer, next to the block.

    The block stays where it is, so names of the base model's parameters do not change, and adapters of other
    methods inside the block are found and saved as ever.

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
        By adapter name. Its modules are called with x (batch, time, d), after the tap, and the keywords
        ``keep`` and ``reset``; they return ``(y, s)``. So hooks on them see input, mask, output and states.
    """

    adapter_layer_names = ("hrm_system",)
    other_param_names = ()
    hrm_system: nn.ModuleDict

    def __init__(self, target: nn.Module, index: int, block: str, width: int):
        super().__init__()
        self.index, self.block, self.width = index, block, width
        self.place = f"{index}.{block}"  # of its states in a cache
        self.hrm_system = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.taps: dict[str, str] = {}
        self.method_adapters: tuple[str, ...] = ()  # all of this method in the model
        # past the registry of modules: neither is a child of the other
        self.__dict__["_target"] = target
        target.__dict__["_hrm_layer"] = self
        self.__dict__["_hooks"] = (
            target.register_forward_pre_hook(_listen, with_kwargs=True),
            target.register_forward_hook(_add_adapters, with_kwargs=True),
        )

    @property
    def target(self) -> nn.Module:
        """The block."""
        return cast(nn.Module, self.__dict__["_target"])

    def update_layer(self, adapter_name: str, config: HRMConfig, modes: Modes) -> None:
        """Put a fresh adapter in."""
        double = any(p.dtype == torch.float64 for p in self.target.parameters())
        dtype = torch.float64 if double else torch.float32
        system = HRMSystem(self.width, modes, dtype=dtype, device=self.target_device())
        system.start(config.init_weights, gate=config.gate_init)
        system.train(self.training)
        self.hrm_system[adapter_name] = system
        self.taps[adapter_name] = config.tap
        self.set_adapter(cast(list[str], self.active_adapters))

    def system(self, adapter_name: str) -> HRMSystem:
        """Return the system of an adapter."""
        return cast(HRMSystem, self.hrm_system[adapter_name])

    def active_systems(self) -> list[str]:
        """Return the names of the adapters that take part in the forward pass."""
        names = [] if self.disable_adapters else cast(list[str], self.active_adapters)
        return [name for name in names if name in self.hrm_system]

    def systems_of(self, this: Pass | None) -> list[str]:
        """Return the names of the adapters that take part in one forward pass."""
        if this is None or this.row_adapters is None or self.disable_adapters:
            return self.active_systems()
        return [name for name in dict.fromkeys(this.row_adapters) if name in self.hrm_system]

    def listen(self, hidden: Tensor) -> None:
        """Run the active adapters that tap the input of the block, before the block.

        What the backward pass needs is there then before the block's last product, which activation
        checkpointing therefore leaves out where it computes the layer again.

        Raises
        ------
        StateError
            The block was called by itself, or its cache is another adapter's.
        """
        names = [name for name in self.systems_of(current_pass()) if self.taps[name] == "input"]
        if names:
            this = self._pass_of(hidden)
            this.heard = (self.place, {name: self._run(this, name, hidden) for name in names})

    def forward(self, hidden: Tensor, head: Tensor) -> Tensor:
        """Add what the active adapters say to the output of the block.

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
            As :meth:`listen`.
        """
        this = current_pass()
        active = self.systems_of(this)
        if not active:
            if this is not None:
                this.skip(self.place)
            return head
        this = self._pass_of(hidden)
        heard = this.take_heard(self.place)
        states = {}
        own = head
        for name in active:
            x = hidden if self.taps[name] == "input" else own
            y, s = heard[name] if name in heard else self._run(this, name, x)
            states[self.system(name).identity.value] = s
            rows = this.rows_of(name)
            if rows is not None:
                y = torch.where(rows.to(y.device), y, 0)
            head = head + y
            head = head if head.dtype == own.dtype else head.to(own.dtype)
        state = this.follow()
        if state is not None:
            state.store(self.place, states)
        return head

    def _pass_of(self, hidden: Tensor) -> Pass:
        """Return the pass that runs, of which these are the hidden states."""
        this = current_pass()
        if this is None:
            raise StateError(
                f"block {self.place} was called outside the forward pass of its model, so padding and "
                "document starts are unknown; call the model, or its decoder"
            )
        if hidden.shape[:-1] != (this.batch, this.time):
            raise StateError(
                f"block {self.place} got hidden states of shape {tuple(hidden.shape)} for a batch of "
                f"{this.batch} rows of {this.time} tokens; an adapter needs them as (batch, time, width)"
            )
        return this

    def _run(self, this: Pass, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what an adapter says, and its states."""
        system = self.system(name)
        identity = system.identity.value
        keep, reset = this.tokens if this.plain else this.tokens_on(x.device)
        state = this.follow()
        before = None if state is None else state.previous(self.place, identity)
        stepper = None
        if before is not None and state is not None and this.time == 1 and not torch.is_grad_enabled():
            stepper = state.stepper(self.place, identity, system.stepper)
        shards = this.shards_on(x.device)
        found = system(x, state=before, keep=keep, reset=reset, stepper=stepper, shards=shards)
        return cast("tuple[Tensor, Tensor]", found)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapters; names of other methods on the model, such as LoRA, change nothing."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if not names or any(name in self.method_adapters for name in names):
            super().set_adapter(names, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out."""
        super().delete_adapter(adapter_name)
        self.taps.pop(adapter_name, None)
        self.method_adapters = tuple(name for name in self.method_adapters if name != adapter_name)

    def detach(self) -> None:
        """Leave the block alone."""
        for hook in self.__dict__["_hooks"]:
            hook.remove()
        self.target.__dict__.pop("_hrm_layer", None)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: a recurrence cannot be merged into weights."""
        raise cannot_merge()

    def unmerge(self) -> None:
        """Refuse: nothing can have been merged."""
        raise cannot_merge()

    @property
    def weight(self) -> Tensor:
        """None: what peft thinks a tuner layer wraps."""
        raise AttributeError("weight")

    @property
    def bias(self) -> Tensor:
        """None, as the weight."""
        raise AttributeError("bias")

    def target_device(self) -> torch.device | None:
        """Return the device that the block computes on, None where it has no tensors."""
        # weights that accelerate has taken away come back to the device they run on
        for module in self.target.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
        # quantized blocks may hold their weights as buffers
        tensors = itertools.chain(self.target.parameters(), self.target.buffers())
        return next((tensor.device for tensor in tensors), None)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # peft would also cast to the block's type, and bfloat16 is too coarse for poles and states
        place = self.target_device() if device is None else device
        if place is not None and adapter_name in self.hrm_system:
            system = self.hrm_system[adapter_name]
            if not any(parameter.is_meta for parameter in system.parameters()):
                system.to(place)


def _listen(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Listen to what goes into a block, as its hook; a hook that comes later may still change that."""
    if next(reversed(block._forward_pre_hooks.values())) is _listen:
        block.__dict__["_hrm_layer"].listen(_hidden_states(args, kwargs))


def _add_adapters(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Add to what comes out of a block, as its hook."""
    hidden, layer = _hidden_states(args, kwargs), block.__dict__["_hrm_layer"]
    if isinstance(out, tuple):
        return (layer.forward(hidden, out[0]), *out[1:])
    return layer.forward(hidden, out)


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return cast(Tensor, args[0] if args else kwargs["hidden_states"])


def cannot_merge() -> AdapterError:
    """Return the refusal to merge."""
    return AdapterError(
        "an HRM adapter has a state that runs along the tokens, so it cannot be merged into weights; keep "
        "the PeftModel for inference, or call unload() to get the base model back"
    )
