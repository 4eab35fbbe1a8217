"""The recurrence on real channels, time last, with its gradients: the operator that the adapter layer calls.

The operators are opaque to `torch.compile`, so they neither break its graph nor are unrolled; a single token
is computed by plain operations instead, which it can fuse with others. `torch.export` gets plain operations
only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import chunked
from .chunk_elementwise import zero_invalid
from .decode_step import StepCoefficients
from .eigenvalues import Eigenvalues
from .exported_scan import exported_scan
from .masks import SegmentMasks, after_reset

# Numbers per piece of a sum of products, so that the products stay in the processor's cache.
_CPU_PIECE = 2**18


def channel_scan(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    *,
    state: Tensor | None = None,
    valid: Tensor | None = None,
    segment_start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the diagonal recurrence on real channels.

    Parameters
    ----------
    log_decay : Tensor, (modes,)
        log|a| of every mode; each of the first `pairs` modes represents a conjugate pair.
    phase : Tensor, (pairs,), or None
        Angle of the pairs in radians per step.
    u : Tensor, (batch, 2 pairs + real modes, time)
        Real channels: real parts of the pairs, their imaginary parts, real modes. Any strides.
    state : Tensor, (batch, channels), optional
        State before the first sample; zero when not given.
    valid, segment_start : bool Tensor, (batch, time), optional
        Where `valid` is False the state stays and u is not read; where `segment_start` is True the state
        before it is forgotten.

    Returns
    -------
    s : Tensor, (batch, channels, time)
        float64 for float64 input, else float32.
    last_state : Tensor, (batch, channels)

    Examples
    --------
    The impulse response of a pair of modulus 1/2 and angle pi/2:

    >>> import math, torch
    >>> u = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    >>> s, _ = channel_scan(torch.tensor([math.log(0.5)]), torch.tensor([math.pi / 2]), u)
    >>> torch.allclose(s, torch.tensor([[[1.0, 0.0, -0.25], [0.0, 0.5, 0.0]]]), atol=1e-7)
    True
    """
    if u.shape[-1] == 1:
        return _one_step(log_decay, phase, u, state, valid, segment_start)
    if torch.compiler.is_exporting():
        u = u.to(state_dtype(u.dtype))
        return exported_scan(log_decay, phase, u, state=state, valid=valid, segment_start=segment_start)
    return _channel_scan(u, log_decay, phase, state, valid, segment_start)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of states for a dtype of inputs: float64 stays, every other is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _one_step(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    state: Tensor | None,
    valid: Tensor | None,
    segment_start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run a single sample."""
    dtype = state_dtype(u.dtype)
    if state is None:
        s = u.to(dtype) if valid is None else torch.where(valid[:, None], u.to(dtype), 0.0)
        return s, s[..., 0]
    before = after_reset(state, segment_start).to(dtype)
    s = StepCoefficients.of(log_decay, phase).advance(u[..., 0], before)
    if valid is not None:
        s = torch.where(valid, s, before)
    return s[..., None], s


@torch.library.custom_op("hankelred_llm::channel_scan", mutates_args=())
def _channel_scan(
    u: Tensor,
    log_decay: Tensor,
    phase: Tensor | None,
    state: Tensor | None,
    valid: Tensor | None,
    segment_start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    s = torch.empty(u.shape, dtype=state_dtype(u.dtype), device=u.device)
    for _ in chunked.scan(Eigenvalues.of(log_decay, phase), u, s, state, SegmentMasks(valid, segment_start)):
        pass
    return s, _last_state(s, state)


def _last_state(s: Tensor, state: Tensor | None) -> Tensor:
    if s.shape[-1]:
        return s[..., -1].clone()
    return s.new_zeros(s.shape[:2]) if state is None else state.to(s.dtype, copy=True)


@_channel_scan.register_fake
def _(
    u: Tensor,
    log_decay: Tensor,
    phase: Tensor | None,
    state: Tensor | None,
    valid: Tensor | None,
    segment_start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    s = torch.empty(u.shape, dtype=state_dtype(u.dtype), device=u.device)
    return s, s.new_empty(s.shape[:2])


@torch.library.custom_op("hankelred_llm::channel_scan_backward", mutates_args=())
def channel_scan_backward(
    s_gradient: Tensor,
    last_gradient: Tensor | None,
    s: Tensor,
    log_decay: Tensor,
    phase: Tensor | None,
    state: Tensor | None,
    valid: Tensor | None,
    segment_start: Tensor | None,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to u, log_decay, phase and state.

    All but the first are empty where they are not required. The adjoint ``h_t = g_t + conj(a) h_(t+1)`` is
    the same recurrence in reverse; the gradient with respect to u is h, and that with respect to log a is the
    sum of ``h_t conj(a s_(t-1))``: its real part belongs to log|a|, its imaginary part to the phase.
    """
    modes, masks = Eigenvalues.of(log_decay, phase), SegmentMasks(valid, segment_start)
    h = torch.empty_like(s)
    correlation = s.new_zeros(modes.log_decay.shape, dtype=torch.complex128)
    # returned where there are no samples; a copy, as an operator may not return one of its inputs
    h_first = s.new_zeros(s.shape[:2]) if last_gradient is None else last_gradient.clone()
    for start, stop in chunked.scan(
        modes.conjugate(), s_gradient, h, last_gradient, masks.adjoint(), reverse=True
    ):
        block = h[..., start:stop]
        if start == 0:
            h_first = block[..., 0].clone()
        if valid is not None:
            zero_invalid(block, valid[:, None, start:stop])
        if parameters:
            if segment_start is not None:
                block = block * (~segment_start[:, None, start:stop]).to(block.dtype)
            if start == 0 and state is not None:
                correlation += _correlate(block[..., :1], state[..., None], modes.pairs)
            before = max(start - 1, 0)
            correlation += _correlate(
                block[..., before + 1 - start :], s[..., before : stop - 1], modes.pairs
            )
    if state is None:
        h_first = h_first[:0].clone()
    elif s.shape[-1]:
        h_first = chunked.initial_state_gradient(modes, h_first, masks)
    a = torch.cat(modes.powers(torch.ones(1, device=s.device, dtype=torch.float64)))
    correlation *= a.squeeze(1).conj()
    rows = slice(None) if parameters else slice(0)
    return (
        h,
        correlation.real[rows].clone(),
        correlation.imag[: modes.pairs][rows].clone(),
        h_first.to(s.dtype),
    )


@channel_scan_backward.register_fake
def _(
    s_gradient: Tensor,
    last_gradient: Tensor | None,
    s: Tensor,
    log_decay: Tensor,
    phase: Tensor | None,
    state: Tensor | None,
    valid: Tensor | None,
    segment_start: Tensor | None,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    modes = log_decay.shape[0] if parameters else 0
    pairs = phase.shape[0] if parameters and phase is not None else 0
    return (
        torch.empty_like(s),
        s.new_empty(modes, dtype=torch.float64),
        s.new_empty(pairs, dtype=torch.float64),
        s.new_empty(s.shape[:2] if state is not None else (0, s.shape[1])),
    )


def _correlate(h: Tensor, s: Tensor, pairs: int) -> Tensor:
    """Sum ``h conj(s)`` over batch and time; complex (modes,), from channels (batch, channels, time)."""
    rows, time = h.shape[0] * h.shape[1], h.shape[2]
    length = max(1, _CPU_PIECE // max(1, rows)) if h.device.type == "cpu" else max(1, time)
    # float32 sums a piece pairwise; the pieces are added in float64
    total = h.new_zeros(h.shape[1] - pairs, dtype=torch.complex128 if pairs else torch.float64)
    for h_piece, s_piece in zip(torch.split(h, length, 2), torch.split(s, length, 2), strict=True):
        total += _correlate_piece(h_piece, s_piece, pairs)
    return total


def _correlate_piece(h: Tensor, s: Tensor, pairs: int) -> Tensor:
    """Compute `_correlate` of one piece, products and sums in float32."""

    def total(product: Tensor) -> Tensor:
        return product.sum((0, 2)).double()

    if not pairs:
        return total(h * s)
    h_real, h_imag, s_real, s_imag = (t[:, i : i + pairs] for t in (h, s) for i in (0, pairs))
    real = total((h_real * s_real).addcmul_(h_imag, s_imag))
    imag = total((h_imag * s_real).addcmul_(h_real, s_imag, value=-1))
    return torch.cat([torch.complex(real, imag), total(h[:, 2 * pairs :] * s[:, 2 * pairs :])])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, log_decay, phase, state, valid, segment_start = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], log_decay, phase, state, valid, segment_start)
    ctx.input_dtype = u.dtype


def _backward(ctx: Any, s_gradient: Tensor | None, last_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    s, log_decay, phase, state, valid, segment_start = ctx.saved_tensors
    if s_gradient is None:
        s_gradient = torch.zeros_like(s)
    u_gradient, decay_gradient, phase_gradient, state_gradient = channel_scan_backward(
        s_gradient,
        last_gradient,
        s,
        log_decay,
        phase,
        state,
        valid,
        segment_start,
        ctx.needs_input_grad[1] or ctx.needs_input_grad[2],
    )
    parameters = decay_gradient.shape == log_decay.shape
    return (
        u_gradient.to(ctx.input_dtype),
        decay_gradient.to(log_decay.dtype) if parameters else None,
        phase_gradient.to(phase.dtype) if parameters and phase is not None else None,
        None if state is None else state_gradient.to(state.dtype),
        None,
        None,
    )


_channel_scan.register_autograd(_backward, setup_context=_setup_context)
