"""The diagonal linear system of an adapter, with its parameters."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..ops.autograd import channel_scan
from ..ops.decode_step import StepCoefficients, Stepper, Versions
from .initial_poles import INITIAL_POLES

if TYPE_CHECKING:
    from ..state.shards import Shards
    from .config import ModeCounts

#: Lower limit of log|A|: after one token nothing of the state is left, and ``-inf``, the pole 0, cannot be a
#: parameter.
FASTEST_LOG_DECAY = -60.0
#: Upper limit of log|A|: |A| in float64 is still below 1, after a rotation too.
SLOWEST_LOG_DECAY = -(2.0**-50)
#: The same limits as values of ``log_rate``.
LOG_RATE_LIMITS = math.log(-SLOWEST_LOG_DECAY), math.log(-FASTEST_LOG_DECAY)

#: Start of the names of the parameters of static readouts.
READOUT = "readout_"


class StaticMaps(NamedTuple):
    """The parts of a system without a state."""

    readouts: Mapping[str, int] = {}  # width of the output by name of the linear module that gets it
    feedthrough: bool = False
    rank: int | None = None  # of an input map of their own, None where they share B with the state


class PreciseModule(nn.Module):
    """A module whose parameters keep at least single precision, whatever the base model is converted to."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def kept_precise(tensor: Tensor) -> Tensor:
            # model.to(bfloat16) is meant for the base model: eight bits would change the poles
            out = cast(Tensor, fn(tensor))
            rounded = out.is_floating_point() and out.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(out.device) if rounded else out

        return super()._apply(kept_precise, recurse)  # type: ignore[no-untyped-call]

    def is_called_plainly(self) -> bool:
        """Return whether a call of this module is :meth:`forward` of its class, and nothing else."""
        return not (
            self._forward_hooks or torch_module._global_forward_hooks or self.runs_code_before_forward()
        )

    def runs_code_before_forward(self) -> bool:
        """Return whether a call of this module may change its parameters before they are used."""
        hooks = self._forward_pre_hooks or torch_module._global_forward_pre_hooks
        # other libraries, such as accelerate, replace forward in the instance
        return bool(hooks) or "forward" in self.__dict__


class HRMSystem(PreciseModule):
    r"""A diagonal linear system from width d to width d, with real states.

    ``u_t = B x_t``, ``s_t = A s_{t-1} + u_t``, ``y_t = gate * C s_t``. The first ``pairs`` modes represent
    conjugate pairs: each is one complex state, stored as two real channels, its real and its imaginary part.
    The others are real. Channels are ordered: real parts, imaginary parts, real modes.

    With feedthrough, ``y_t = gate * C (u_t + m * s_t)``. Static readouts are further output maps of u_t, to
    linear modules of the block. Where the static parts have an input map of their own, they read
    ``static_B x_t`` in place of u_t, and ``y_t = gate * C s_t + static_C static_B x_t``.

    Parameters
    ----------
    width : int
        d.
    modes : ModeCounts
        Numbers of real states, and of conjugate pairs and negative real modes among them.
    static : StaticMaps, optional
        Default: none.
    dtype, device
        Of the parameters.

    Attributes
    ----------
    modes : ModeCounts
    static : StaticMaps
    log_rate : Parameter, shape (order - pairs,)
        ``log(-log|A|)``, so that ``|A| < 1`` whatever its value; clamped to |A| between exp(-60) and
        1 - 9e-16, beyond which exp would overflow or give 1.
    phase : Parameter, shape (pairs,), or None without pairs
        Angle of A, radians per token.
    B : Parameter, shape (order, d)
    C : Parameter, shape (d, order)
    gate : Parameter, shape (1,)
    m : Parameter, shape (order,), or None
        None without feedthrough, and where the static parts have an input map of their own.
    static_B : Parameter, shape (rank, d), or None
    static_C : Parameter, shape (d, rank), or None
    readout_NAME : Parameter, shape (outputs, rank)
        Of the linear module of this name; see :meth:`readout`.
    identity : str
        Differs between a model and its copies, and between a system and one that replaces it.

    Examples
    --------
    >>> import torch
    >>> from hankelred_llm.adapter.system import HRMSystem
    >>> from hankelred_llm.adapter.config import ModeCounts
    >>> system = HRMSystem(4, ModeCounts(order=3, pairs=1, negative=0), dtype=torch.float64, device="cpu")
    >>> system.initialize("ring", gate=1.0)
    >>> y, s = system(torch.randn(2, 5, 4, dtype=torch.float64))
    >>> y.shape, s.shape
    (torch.Size([2, 5, 4]), torch.Size([2, 3, 5]))
    """

    phase: nn.Parameter | None
    identity: Identity

    m: nn.Parameter | None
    static_B: nn.Parameter | None
    static_C: nn.Parameter | None

    def __init__(
        self,
        width: int,
        modes: ModeCounts,
        static: StaticMaps = StaticMaps(),  # noqa: B008, it cannot be changed
        *,
        dtype: torch.dtype,
        device: Any,
    ):
        super().__init__()
        self.width, self.modes, self.static = width, modes, static
        order, pairs = modes.order, modes.pairs
        factory_kwargs = {"dtype": dtype, "device": device}
        self.log_rate = nn.Parameter(torch.empty(order - pairs, **factory_kwargs))
        self.phase = nn.Parameter(torch.empty(pairs, **factory_kwargs)) if pairs else None
        self.B = nn.Parameter(torch.empty(order, width, **factory_kwargs))
        self.C = nn.Parameter(torch.empty(width, order, **factory_kwargs))
        self.gate = nn.Parameter(torch.empty(1, **factory_kwargs))
        rank, direct = static.rank, static.feedthrough
        self.m = nn.Parameter(torch.empty(order, **factory_kwargs)) if direct and rank is None else None
        self.static_B = None if rank is None else nn.Parameter(torch.empty(rank, width, **factory_kwargs))
        self.static_C = (
            nn.Parameter(torch.empty(width, rank, **factory_kwargs)) if direct and rank is not None else None
        )
        for name, outputs in static.readouts.items():
            readout = torch.empty(outputs, order if rank is None else rank, **factory_kwargs)
            # no ParameterDict: peft takes the name of the adapter out of a key only before its last part
            self.register_parameter(READOUT + name, nn.Parameter(readout))
        self.identity = Identity()
        self._parameter_names = frozenset(self._parameters)

    @torch.no_grad()
    def initialize(self, scheme: str, *, gate: float) -> None:
        """Initialize the parameters so that the adapter adds nothing to the output.

        Parameters
        ----------
        scheme : str
            As ``HRMConfig.init_weights``.
        gate : float
            With 0 the output map is random, otherwise it is zero: with both zero all gradients would vanish.
        """
        deviation = (2 * self.width) ** -0.5
        poles = INITIAL_POLES[scheme](self.modes.order - self.modes.pairs, self.modes.pairs)
        self.log_rate.copy_((-poles.log_decay).log())
        if self.phase is not None:
            self.phase.copy_(poles.phase)
        self.B.normal_(std=deviation)
        self.gate.fill_(gate)
        if gate == 0:
            self.C.normal_(std=deviation)
        else:
            self.C.zero_()
        if self.m is not None:
            self.m.fill_(1.0)
        if self.static_B is not None:
            self.static_B.normal_(std=deviation)
        for output in self._static_outputs():
            output.zero_()

    def readout(self, name: str) -> nn.Parameter:
        """Return the static output map to the linear module of a name, (its output width, rank)."""
        return cast(nn.Parameter, getattr(self, READOUT + name))  # no entry of the parameters where pruned

    def output_is_zero(self) -> bool:
        """Return whether all outputs are zero for every input, as those of an untrained adapter."""
        return self.static_is_zero() and not bool(((self.gate * self.C) != 0).any())

    def static_is_zero(self) -> bool:
        """Return whether the parts without a state add nothing to any output."""
        shared = [] if self.m is None else [self.gate * self.C]
        return not any(bool((output != 0).any()) for output in [*self._static_outputs(), *shared])

    def _static_outputs(self) -> list[nn.Parameter]:
        """Return the output maps that only the static parts have."""
        readouts = [self.readout(name) for name in self.static.readouts]
        return readouts if self.static_C is None else [*readouts, self.static_C]

    def static_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the static parts have."""
        outputs = self._static_outputs()
        return outputs if self.static_B is None else [self.static_B, *outputs]

    def output_map(self) -> Tensor:
        """Return the map from the states to the output, (d, order): gate * C, or gate * C m."""
        return self.gate * self.C if self.m is None else self.gate * self.C * self.m

    def static_map(self) -> nn.Parameter:
        """Return the map from x to what the static parts read, (rank, d): B, or one of their own."""
        return self.B if self.static_B is None else self.static_B

    def static_input(self, x: Tensor) -> Tensor:
        """Return what the static parts read: u, (batch, rank, time), from x (batch, time, d)."""
        with _full_precision(x.device.type):
            return _mapped(self.static_map(), x)

    def log_decay(self) -> Tensor:
        """Return log|A|, (modes,)."""
        return -self.log_rate.clamp(*LOG_RATE_LIMITS).exp()

    def forward(
        self,
        x: Tensor,
        *,
        state: Tensor | None = None,
        valid: Tensor | None = None,
        segment_start: Tensor | None = None,
        stepper: Stepper | None = None,
        shards: Shards | None = None,
        static_input: Tensor | None = None,
        decayed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the system.

        Parameters
        ----------
        x : Tensor, shape (batch, time, d)
        state : Tensor, shape (batch, order), optional
            State before the first token; default zero.
        valid : Tensor of bool, shape (batch, time), optional
            False: padding; the state stays, the token is not read.
        segment_start : Tensor of bool, shape (batch, time), optional
            True: the state before is forgotten.
        stepper : Stepper, optional
            What :meth:`stepper` returns, for a single token after a state.
        shards : Shards, optional
            The tokens are one shard of a sequence; the state comes from the previous process.
        static_input : Tensor, shape (batch, rank, time), optional
            What :meth:`static_input` returned for x, where it was called before.
        decayed : Tensor, shape (batch, 1, order), or (order,) for a single row, optional
            A times the state, for the stepper, where it was computed for all layers together.

        Returns
        -------
        y : Tensor, shape (batch, time, d)
        s : Tensor, shape (batch, order, time)
        """
        if stepper is not None and state is not None:
            with _full_precision(x.device.type):
                read = None if static_input is None else static_input.transpose(1, 2)
                y, last_state = stepper.run(x, state, valid, segment_start, read, decayed)
            return y, last_state.transpose(1, 2)
        batch, time, width = x.shape
        with _full_precision(x.device.type):
            u = static_input if static_input is not None and self.static_B is None else _mapped(self.B, x)
            drive = u
            signs = self._signs(u, valid, shards) if self.modes.negative else None
            u = self._flipped(u, signs)
            if shards is None:
                s, _ = channel_scan(
                    self.log_decay(), self.phase, u, state=state, valid=valid, segment_start=segment_start
                )
            else:
                s = shards.scan(self.log_decay(), self.phase, u, valid=valid, segment_start=segment_start)
            s = self._flipped(s, signs)
            outputs = s if self.m is None else torch.addcmul(drive, _precise(self.m)[:, None], s)
            y = _rows(outputs) @ _precise(self.gate * self.C).t()
            if self.static_C is not None:
                direct = self.static_input(x) if static_input is None else static_input
                y = torch.addmm(y, _rows(direct), _precise(self.static_C).t())
        return y.view(batch, time, width), s

    def tensors(self) -> Iterable[Tensor | None]:
        """Return the parameters that there are, as they are now."""
        if self._parameters.keys() == self._parameter_names:
            return self._parameters.values()  # faster than attributes of a module
        # parametrized, pruned and flattened parameters are attributes only
        return [getattr(self, name) for name in self._parameter_names]

    def stepper(self) -> Stepper:
        """Return the system prepared for single tokens; it is out of date once its versions change."""
        return Stepper(
            StepCoefficients.of(self.log_decay(), self.phase, negative=self.modes.negative),
            _precise(self.B),
            _precise(self.gate * self.C).t().contiguous().t(),
            None if self.m is None else _precise(self.m),
            None if self.static_B is None else _precise(self.static_B),
            None if self.static_C is None else _precise(self.static_C).t().contiguous().t(),
            system=self,
            # tensors that are traced have no address, and no step is kept of them
            versions=Versions.of([] if torch.compiler.is_compiling() else self.tensors()),
        )

    def _signs(self, u: Tensor, valid: Tensor | None, shards: Shards | None) -> Tensor:
        """Return (-1)^t, t counting the valid tokens of the sequence: (batch or 1, 1, time)."""
        ones = (
            torch.ones(1, u.shape[-1], dtype=torch.long, device=u.device) if valid is None else valid.long()
        )
        counts = ones.cumsum(1)
        if shards is not None:
            counts = counts + shards.valid_before()[:, None]
        return (1 - 2 * (counts % 2)).to(u.dtype)[:, None]

    def _flipped(self, channels: Tensor, signs: Tensor | None) -> Tensor:
        """Change signs of the channels with negative eigenvalues, to scan them with positive ones.

        With v_t = (-1)^t s_t, s_t = -a s_{t-1} + u_t becomes v_t = a v_{t-1} + (-1)^t u_t; the scan takes
        a > 0 only.
        """
        if signs is None:
            return channels
        positive = channels.shape[1] - self.modes.negative
        return torch.cat([channels[:, :positive], channels[:, positive:] * signs], 1)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        static = f", {self.static}" if self.static != StaticMaps() else ""
        return f"width={self.width}, {self.modes}{static}"


@torch.no_grad()
def output_bound(log_rate: Tensor, B: Tensor, C: Tensor, gate: Tensor) -> float:
    """Return a bound on the states and outputs of a system, for inputs of at most one in every entry.

    Parameters
    ----------
    log_rate, B, C, gate : Tensor
        As in :class:`HRMSystem`.

    Returns
    -------
    float
        The largest ``sum |C| |B| / (1 - |a|)`` over outputs, and ``sum |B| / (1 - |a|)`` over states.

    Examples
    --------
    >>> import torch
    >>> half = torch.tensor([0.5]).log().neg().log()  # log_rate of a pole at 0.5
    >>> one = torch.ones(1, 1)
    >>> round(output_bound(half, 2 * one, 3 * one, torch.ones(1)), 5)  # 3 * 2 / (1 - 0.5)
    12.0
    """
    log_decay = -log_rate.double().clamp(*LOG_RATE_LIMITS).exp()
    pairs = len(B) - len(log_rate)
    drive = B.double().abs().sum(1)
    # |u| of a complex state is at most the sum of those of its real and its imaginary part
    both = drive[:pairs] + drive[pairs : 2 * pairs]
    states = torch.cat([both, drive[2 * pairs :]]) / -torch.expm1(log_decay)
    channels = torch.cat([states[:pairs], states])
    outputs = (gate.double() * C.double()).abs() @ channels
    return float(torch.cat([states, outputs]).max())


class Identity:
    """A name of a system that distinguishes copies; a pickle keeps it."""

    def __init__(self) -> None:
        self.value = uuid.uuid4().hex

    def __deepcopy__(self, memo: dict[int, Any]) -> Identity:
        return Identity()


def _precise(tensor: Tensor) -> Tensor:
    """Return parameters in at least single precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _mapped(input_map: Tensor, x: Tensor) -> Tensor:
    """Return the product of an input map (rank, d) with x (batch, time, d), as (batch, rank, time)."""
    batch, time, width = x.shape
    input_map = _precise(input_map)
    rows = x.reshape(batch * time, width).to(input_map.dtype)
    # channel first: one product for the whole batch, in the layout that the scan is fast for
    return (input_map @ rows.t()).view(-1, batch, time).transpose(0, 1)


def _rows(channels: Tensor) -> Tensor:
    """Return channels (batch, order, time) as one row per token, (batch * time, order)."""
    return channels.transpose(1, 2).reshape(-1, channels.shape[1])


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Disable autocast: a state that accumulates thousands of tokens needs full precision."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
