"""The diagonal linear system of an adapter, with its parameters."""

from __future__ import annotations

import contextlib
import math
import uuid
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..ops.autograd import channel_scan
from ..ops.decode_step import StepCoefficients, Stepper
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


class HRMSystem(nn.Module):
    r"""A diagonal linear system from width d to width d, with real states.

    ``s_t = A s_{t-1} + B x_t``, ``y_t = gate * C s_t``. The first ``pairs`` modes represent conjugate pairs:
    each is one complex state, stored as two real channels, its real and its imaginary part. The others are
    real. Channels are ordered: real parts, imaginary parts, real modes.

    Parameters
    ----------
    width : int
        d.
    modes : Modes
        Numbers of real states, and of conjugate pairs and negative real modes among them.
    dtype, device
        Of the parameters.

    Attributes
    ----------
    modes : Modes
    log_rate : Parameter, shape (order - pairs,)
        ``log(-log|A|)``, so that ``|A| < 1`` whatever its value; clamped to |A| between exp(-60) and
        1 - 9e-16, beyond which exp would overflow or give 1.
    phase : Parameter, shape (pairs,), or None without pairs
        Angle of A, radians per token.
    B : Parameter, shape (order, d)
    C : Parameter, shape (d, order)
    gate : Parameter, shape (1,)
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

    def __init__(self, width: int, modes: ModeCounts, *, dtype: torch.dtype, device: Any):
        super().__init__()
        self.width, self.modes = width, modes
        order, pairs = modes.order, modes.pairs
        factory_kwargs = {"dtype": dtype, "device": device}
        self.log_rate = nn.Parameter(torch.empty(order - pairs, **factory_kwargs))
        self.phase = nn.Parameter(torch.empty(pairs, **factory_kwargs)) if pairs else None
        self.B = nn.Parameter(torch.empty(order, width, **factory_kwargs))
        self.C = nn.Parameter(torch.empty(width, order, **factory_kwargs))
        self.gate = nn.Parameter(torch.empty(1, **factory_kwargs))
        self.identity = Identity()

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

    def output_is_zero(self) -> bool:
        """Return whether the output is zero for every input, as that of an untrained adapter."""
        return not bool(((self.gate * self.C) != 0).any())

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
    ) -> tuple[Tensor, Tensor]:
        """Run the system.

        Parameters
        ----------
        x : Tensor, shape (batch, time, d)
        state : Tensor, shape (batch, order), optional
            State before the first token; default zero.
        keep : Tensor of bool, shape (batch, time), optional
            False: padding; the state stays, the token is not read.
        reset : Tensor of bool, shape (batch, time), optional
            True: the state before is forgotten.
        stepper : Stepper, optional
            What :meth:`stepper` returns, for a single token after a state.
        shards : Shards, optional
            The tokens are one shard of a sequence; the state comes from the previous process.

        Returns
        -------
        y : Tensor, shape (batch, time, d)
        s : Tensor, shape (batch, order, time)
        """
        if stepper is not None and state is not None:
            if not torch.is_autocast_enabled(x.device.type):
                return stepper.run(x, state, valid, segment_start)
            with _full_precision(x.device.type):
                return stepper.run(x, state, valid, segment_start)
        batch, time, width = x.shape
        with _full_precision(x.device.type):
            B, out = self._maps()
            rows = x.reshape(batch * time, width).to(B.dtype)
            # channel first: one product for the whole batch, in the layout that the scan is fast for
            u = (B @ rows.t()).view(-1, batch, time).transpose(0, 1)
            signs = self._signs(u, valid, shards) if self.modes.negative else None
            u = self._flipped(u, signs)
            if shards is None:
                s, _ = channel_scan(
                    self.log_decay(), self.phase, u, state=state, valid=valid, segment_start=segment_start
                )
            else:
                s = shards.scan(self.log_decay(), self.phase, u, valid=valid, segment_start=segment_start)
            s = self._flipped(s, signs)
            y = s.transpose(1, 2).reshape(batch * time, -1) @ out
        return y.view(batch, time, width), s

    def _maps(self) -> tuple[Tensor, Tensor]:
        """Return B and the transpose of gate * C, in at least single precision."""
        dtype = torch.promote_types(self.B.dtype, torch.float32)
        return self.B.to(dtype), (self.gate * self.C).to(dtype).t()

    def stepper(self) -> Stepper:
        """Return the system prepared for single tokens; it is out of date once parameters change."""
        B, out = self._maps()
        return Stepper(
            StepCoefficients.of(self.log_decay(), self.phase, negative=self.modes.negative),
            B,
            out.contiguous(),
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

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def kept_precise(tensor: Tensor) -> Tensor:
            # model.to(bfloat16) is meant for the base model: eight bits would change the poles
            out = cast(Tensor, fn(tensor))
            rounded = out.is_floating_point() and out.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(out.device) if rounded else out

        return super()._apply(kept_precise, recurse)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"width={self.width}, {self.modes}"


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


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Disable autocast: a state that accumulates thousands of tokens needs full precision."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
