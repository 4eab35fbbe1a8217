"""The HRM layer: a diagonal linear system beside a block of a decoder layer."""

from __future__ import annotations

import contextlib
import itertools
import math
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from . import _carrier
from ._errors import AdapterError, StateError
from ._scan import column_scan
from ._starts import STARTS
from ._step import Step

if TYPE_CHECKING:
    from ._shards import Shards
    from .config import HRMConfig, Modes

#: log|A| of poles that decay faster is taken for this: after one token nothing is left, and ``-inf``, the
#: pole 0, has no place among parameters.
FASTEST = -60.0
#: log|A| of poles that decay more slowly: |A| in float64 is still below 1, after a rotation too.
SLOWEST = -(2.0**-50)
#: The same as values of ``log_rate``.
RATES = math.log(-SLOWEST), math.log(-FASTEST)


class HRMSystem(nn.Module):
    r"""A diagonal linear system from width d to width d, in real columns.

    ``s_t = A s_{t-1} + B x_t``, ``y_t = gate * C s_t``. The first ``pairs`` modes stand for conjugate pairs:
    each is one complex state, held as two columns, its real and its imaginary part. The others are real.
    Columns are ordered: real parts, imaginary parts, real modes.

    Parameters
    ----------
    width : int
        d.
    modes : Modes
        Numbers of columns, and of conjugate pairs and negative real modes among them.
    dtype, device
        Of the parameters.

    Attributes
    ----------
    modes : Modes
    log_rate : Parameter, shape (order - pairs,)
        ``log(-log|A|)``, so that ``|A| < 1`` whatever its value; beyond |A| of exp(-60) and 1 - 9e-16, where
        exp would overflow or give 1, a value counts as that limit.
    phase : Parameter, shape (pairs,), or None without pairs
        Angle of A, radians per token.
    B : Parameter, shape (order, d)
    C : Parameter, shape (d, order)
    gate : Parameter, shape (1,)
    identity : str
        Changes with the parameters' owner: a copy of the model, or another system in its place, has another
        one.

    Examples
    --------
    >>> import torch
    >>> from hankelred_llm.adapter import HRMSystem
    >>> from hankelred_llm.config import Modes
    >>> system = HRMSystem(4, Modes(order=3, pairs=1, negative=0), dtype=torch.float64, device="cpu")
    >>> system.start("ring", gate=1.0)
    >>> y, s = system(torch.randn(2, 5, 4, dtype=torch.float64))
    >>> y.shape, s.shape
    (torch.Size([2, 5, 4]), torch.Size([2, 3, 5]))
    """

    phase: nn.Parameter | None
    identity: Identity

    def __init__(self, width: int, modes: Modes, *, dtype: torch.dtype, device: Any):
        super().__init__()
        self.width, self.modes = width, modes
        order, pairs = modes.order, modes.pairs
        place = {"dtype": dtype, "device": device}
        self.log_rate = nn.Parameter(torch.empty(order - pairs, **place))
        self.phase = nn.Parameter(torch.empty(pairs, **place)) if pairs else None
        self.B = nn.Parameter(torch.empty(order, width, **place))
        self.C = nn.Parameter(torch.empty(width, order, **place))
        self.gate = nn.Parameter(torch.empty(1, **place))
        self.identity = Identity()

    @torch.no_grad()
    def start(self, start: str, *, gate: float) -> None:
        """Set the parameters of a fresh adapter, which adds nothing to the output.

        Parameters
        ----------
        start : str
            As ``HRMConfig.init_weights``.
        gate : float
            With 0 the output map is random, otherwise it is zero: were both zero, nothing could be learned.
        """
        deviation = (2 * self.width) ** -0.5
        poles = STARTS[start](self.modes.order - self.modes.pairs, self.modes.pairs)
        self.log_rate.copy_((-poles.log_decay).log())
        if self.phase is not None:
            self.phase.copy_(poles.phase)
        self.B.normal_(std=deviation)
        self.gate.fill_(gate)
        if gate == 0:
            self.C.normal_(std=deviation)
        else:
            self.C.zero_()

    def log_decay(self) -> Tensor:
        """Return log|A|, (modes,)."""
        return -self.log_rate.clamp(*RATES).exp()

    def forward(
        self,
        x: Tensor,
        *,
        state: Tensor | None = None,
        keep: Tensor | None = None,
        reset: Tensor | None = None,
        decoder: Decoder | None = None,
        shards: Shards | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the system.

        Parameters
        ----------
        x : Tensor, shape (batch, time, d)
        state : Tensor, shape (batch, order), optional
            State before the first token; default zero.
        keep : Tensor of bool, shape (batch, time), optional
            False: the state stays, the token is not read.
        reset : Tensor of bool, shape (batch, time), optional
            True: what came before is forgotten.
        decoder : Decoder, optional
            What :meth:`decoder` returns, for a single token that goes on from a state.
        shards : Shards, optional
            The tokens are one shard of a sequence; the state comes from the process before.

        Returns
        -------
        y : Tensor, shape (batch, time, d)
        s : Tensor, shape (batch, order, time)
        """
        if decoder is not None and state is not None:
            if not torch.is_autocast_enabled(x.device.type):
                return decoder.run(x, state, keep, reset)
            with _full_precision(x.device.type):
                return decoder.run(x, state, keep, reset)
        batch, time, width = x.shape
        with _full_precision(x.device.type):
            B, out = self._maps()
            rows = x.reshape(batch * time, width).to(B.dtype)
            # channel first: one product for the whole batch, in the layout the scan is fast in
            u = (B @ rows.t()).view(-1, batch, time).transpose(0, 1)
            signs = self._signs(u, keep, shards) if self.modes.negative else None
            u = self._flipped(u, signs)
            if shards is None:
                s, _ = column_scan(self.log_decay(), self.phase, u, state=state, keep=keep, reset=reset)
            else:
                s = shards.scan(self.log_decay(), self.phase, u, keep=keep, reset=reset)
            s = self._flipped(s, signs)
            y = s.transpose(1, 2).reshape(batch * time, -1) @ out
        return y.view(batch, time, width), s

    def _maps(self) -> tuple[Tensor, Tensor]:
        """Return B, and gate * C turned, in single precision at least."""
        dtype = torch.promote_types(self.B.dtype, torch.float32)
        return self.B.to(dtype), (self.gate * self.C).to(dtype).t()

    def decoder(self) -> Decoder:
        """Return what a single token takes, of use as long as the parameters stay what they are."""
        B, out = self._maps()
        return Decoder(
            Step.of(self.log_decay(), self.phase, negative=self.modes.negative), B, out.contiguous()
        )

    def _signs(self, u: Tensor, keep: Tensor | None, shards: Shards | None) -> Tensor:
        """Return -1 and 1 in turns, one turn for each kept token of the sequence: (batch or 1, 1, time)."""
        ones = torch.ones(1, u.shape[-1], dtype=torch.long, device=u.device) if keep is None else keep.long()
        turns = ones.cumsum(1)
        if shards is not None:
            turns = turns + shards.kept_before()[:, None]
        return (1 - 2 * (turns % 2)).to(u.dtype)[:, None]

    def _flipped(self, columns: Tensor, signs: Tensor | None) -> Tensor:
        """Change signs of the last columns: an alternating state is a steady one seen with alternating signs.

        With v_t = (-1)^t s_t, s_t = -a s_{t-1} + u_t is v_t = a v_{t-1} + (-1)^t u_t; the scan knows
        a > 0 only.
        """
        if signs is None:
            return columns
        steady = columns.shape[1] - self.modes.negative
        return torch.cat([columns[:, :steady], columns[:, steady:] * signs], 1)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def kept_precise(tensor: Tensor) -> Tensor:
            # model.to(bfloat16) is meant for the base: in eight bits poles would be other poles
            out = cast(Tensor, fn(tensor))
            rounded = out.is_floating_point() and out.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(out.device) if rounded else out

        return super()._apply(kept_precise, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"width={self.width}, {self.modes}"


class Decoder(NamedTuple):
    """A system prepared for one token at a time."""

    step: Step
    B: Tensor  # (order, d)
    out: Tensor  # (order, d), contiguous: a product with one row reads it twice as fast as C

    def run(
        self, x: Tensor, state: Tensor, keep: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run one token, in as few operations as can be."""
        batch, _, width = x.shape
        row = x.reshape(batch, width)
        before = state if reset is None else torch.where(reset, 0.0, state)
        s = self.step.advance(
            linear(row if row.dtype == state.dtype else row.to(state.dtype), self.B), before
        )
        if keep is not None:
            s = torch.where(keep, s, before)
        return torch.mm(s, self.out).view(batch, 1, width), s[..., None]

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        return self  # copies of a cache share it: nothing in it is ever changed


class Identity:
    """Tells systems apart: copies differ, pickles do not."""

    def __init__(self) -> None:
        self.value = uuid.uuid4().hex

    def __deepcopy__(self, memo: dict[int, Any]) -> Identity:
        return Identity()


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Keep autocast out: a state that has run for thousands of tokens needs its digits."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


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
        self.__dict__["_hook"] = target.register_forward_hook(_add_adapters, with_kwargs=True)

    @property
    def target(self) -> nn.Module:
        """The block."""
        return cast(nn.Module, self.__dict__["_target"])

    def update_layer(self, adapter_name: str, config: HRMConfig, modes: Modes) -> None:
        """Put a fresh adapter in."""
        double = any(p.dtype == torch.float64 for p in self.target.parameters())
        dtype = torch.float64 if double else torch.float32
        system = HRMSystem(self.width, modes, dtype=dtype, device=self._target_device())
        # a start from data goes on from the ring, once all layers are there
        start = "ring" if config.init_weights == "balanced" else config.init_weights
        system.start(start, gate=config.gate_init)
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
            The block was called by itself, or its cache is another adapter's.
        """
        this, active = _carrier.current_pass(), self.active_systems()
        if not active:
            if this is not None:
                this.skip(self.place)
            return head
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
        keep, reset = this.tokens if this.plain else this.tokens_on(head.device)
        shards = this.shards_on(head.device)
        state = this.follow()
        states = {}
        own = head
        for name in active:
            system = self.system(name)
            identity = system.identity.value
            before = None if state is None else state.previous(self.place, identity)
            x = hidden if self.taps[name] == "input" else own
            decoder = None
            if before is not None and state is not None and this.time == 1 and not torch.is_grad_enabled():
                decoder = state.decoder(self.place, identity, system.decoder)
            y, states[identity] = system(
                x, state=before, keep=keep, reset=reset, decoder=decoder, shards=shards
            )
            head = head + y
            head = head if head.dtype == own.dtype else head.to(own.dtype)
        if state is not None:
            state.store(self.place, states)
        return head

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
        self.__dict__["_hook"].remove()
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

    def _target_device(self) -> torch.device | None:
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
        place = self._target_device() if device is None else device
        if place is not None and adapter_name in self.hrm_system:
            system = self.hrm_system[adapter_name]
            if not any(parameter.is_meta for parameter in system.parameters()):
                system.to(place)


def _add_adapters(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Forward hook of a block."""
    hidden = args[0] if args else kwargs["hidden_states"]
    layer = block.__dict__["_hrm_layer"]
    if isinstance(out, tuple):
        return (layer.forward(hidden, out[0]), *out[1:])
    return layer.forward(hidden, out)


def cannot_merge() -> AdapterError:
    """Return the refusal to merge."""
    return AdapterError(
        "an HRM adapter has a state that runs along the tokens, so it cannot be merged into weights; keep "
        "the PeftModel for inference, or call unload() to get the base model back"
    )
