"""The diagonal linear system with its parameters: what an adapter is, wherever it stands."""

from __future__ import annotations

import contextlib
import math
import uuid
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..ops.autograd import column_scan
from ..ops.decode_step import Step, Stepper
from .initial_poles import STARTS

if TYPE_CHECKING:
    from ..state.shards import Shards
    from .config import Modes

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
    >>> from hankelred_llm.adapter.system import HRMSystem
    >>> from hankelred_llm.adapter.config import Modes
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

    def adds_nothing(self) -> bool:
        """Tell whether the output is zero whatever comes in, as that of a fresh adapter."""
        return not bool(((self.gate * self.C) != 0).any())

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
            False: the state stays, the token is not read.
        reset : Tensor of bool, shape (batch, time), optional
            True: what came before is forgotten.
        stepper : Stepper, optional
            What :meth:`stepper` returns, for a single token that goes on from a state.
        shards : Shards, optional
            The tokens are one shard of a sequence; the state comes from the process before.

        Returns
        -------
        y : Tensor, shape (batch, time, d)
        s : Tensor, shape (batch, order, time)
        """
        if stepper is not None and state is not None:
            if not torch.is_autocast_enabled(x.device.type):
                return stepper.run(x, state, keep, reset)
            with _full_precision(x.device.type):
                return stepper.run(x, state, keep, reset)
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

    def stepper(self) -> Stepper:
        """Return what a single token takes, of use as long as the parameters stay what they are."""
        B, out = self._maps()
        return Stepper(
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
