"""The recurrence on real columns, time last, with its derivatives: what the adapter layer calls.

The operators are opaque to `torch.compile`, which therefore neither breaks its graph on them nor unrolls
them; a single token goes through plain operations instead, which it may fuse with their neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hankelred_llm.ops import chunked as _chunks
from hankelred_llm.ops.chunk_elementwise import hide
from hankelred_llm.ops.decode_step import Step
from hankelred_llm.ops.eigenvalues import Masks, Modes

# Numbers in a piece of a sum of products: the products then stay in a cache.
_CPU_PIECE = 2**18


def column_scan(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    *,
    state: Tensor | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the diagonal recurrence on real columns.

    Parameters
    ----------
    log_decay : Tensor, (modes,)
        log|a| of every mode; the first `pairs` modes stand for a conjugate pair each.
    phase : Tensor, (pairs,), or None
        Angle of the pairs in radians per step.
    u : Tensor, (batch, 2 pairs + real modes, time)
        Columns: real parts of the pairs, their imaginary parts, real modes. Any strides.
    state : Tensor, (batch, columns), optional
        State before the first sample; zero when not given.
    keep, reset : bool Tensor, (batch, time), optional
        Where `keep` is False the state stays and u is not read; where `reset` is True all before it is
        forgotten.

    Returns
    -------
    s : Tensor, (batch, columns, time)
        float64 for float64 input, else float32.
    last_state : Tensor, (batch, columns)

    Examples
    --------
    A pair of modulus 1/2 that turns by a quarter, struck once:

    >>> import math, torch
    >>> u = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    >>> s, _ = column_scan(torch.tensor([math.log(0.5)]), torch.tensor([math.pi / 2]), u)
    >>> torch.allclose(s, torch.tensor([[[1.0, 0.0, -0.25], [0.0, 0.5, 0.0]]]), atol=1e-7)
    True
    """
    if u.shape[-1] == 1:
        return _one_step(log_decay, phase, u, state, keep, reset)
    return _column_scan(u, log_decay, phase, state, keep, reset)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type states have for inputs of a type: float64 stays, all else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _one_step(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    state: Tensor | None,
    keep: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Take one sample."""
    dtype = state_dtype(u.dtype)
    if state is None:
        s = u.to(dtype) if keep is None else torch.where(keep[:, None], u.to(dtype), 0.0)
        return s, s[..., 0]
    before = (state if reset is None else torch.where(reset, 0.0, state)).to(dtype)
    s = Step.of(log_decay, phase).advance(u[..., 0], before)
    if keep is not None:
        s = torch.where(keep, s, before)
    return s[..., None], s


@torch.library.custom_op("hankelred_llm::column_scan", mutates_args=())
def _column_scan(
    u: Tensor,
    log_decay: Tensor,
    phase: Tensor | None,
    state: Tensor | None,
    keep: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    s = torch.empty(u.shape, dtype=state_dtype(u.dtype), device=u.device)
    for _ in _chunks.scan(Modes.of(log_decay, phase), u, s, state, Masks(keep, reset)):
        pass
    return s, _last_state(s, state)


def _last_state(s: Tensor, state: Tensor | None) -> Tensor:
    if s.shape[-1]:
        return s[..., -1].clone()
    return s.new_zeros(s.shape[:2]) if state is None else state.to(s.dtype, copy=True)


@_column_scan.register_fake
def _(
    u: Tensor,
    log_decay: Tensor,
    phase: Tensor | None,
    state: Tensor | None,
    keep: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    s = torch.empty(u.shape, dtype=state_dtype(u.dtype), device=u.device)
    return s, s.new_empty(s.shape[:2])


@torch.library.custom_op("hankelred_llm::column_scan_backward", mutates_args=())
def column_scan_backward(
    s_gradient: Tensor,
    last_gradient: Tensor | None,
    s: Tensor,
    log_decay: Tensor,
    phase: Tensor | None,
    state: Tensor | None,
    keep: Tensor | None,
    reset: Tensor | None,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients to u, log_decay, phase and state; all but the first are empty where not asked for.

    The adjoint ``h_t = g_t + conj(a) h_(t+1)`` is the same recurrence from the end; the gradient to u is h,
    and the one to log a is the sum of ``h_t conj(a s_(t-1))``, real part to log|a|, imaginary to the phase.
    """
    modes, masks = Modes.of(log_decay, phase), Masks(keep, reset)
    h = torch.empty_like(s)
    correlation = s.new_zeros(modes.log_decay.shape, dtype=torch.complex128)
    # without any samples this is what is returned, and an operator may not return what it was given
    h_first = s.new_zeros(s.shape[:2]) if last_gradient is None else last_gradient.clone()
    for start, stop in _chunks.scan(
        modes.conjugate(), s_gradient, h, last_gradient, masks.adjoint(), reverse=True
    ):
        block = h[..., start:stop]
        if start == 0:
            h_first = block[..., 0].clone()
        if keep is not None:
            hide(block, keep[:, None, start:stop])
        if parameters:
            if reset is not None:
                block = block * (~reset[:, None, start:stop]).to(block.dtype)
            if start == 0 and state is not None:
                correlation += _correlate(block[..., :1], state[..., None], modes.pairs)
            before = max(start - 1, 0)
            correlation += _correlate(
                block[..., before + 1 - start :], s[..., before : stop - 1], modes.pairs
            )
    if state is None:
        h_first = h_first[:0].clone()
    elif s.shape[-1]:
        h_first = _chunks.one_step_back(modes, h_first, masks)
    a = torch.cat(modes.powers(torch.ones(1, device=s.device, dtype=torch.float64)))
    correlation *= a.squeeze(1).conj()
    rows = slice(None) if parameters else slice(0)
    return (
        h,
        correlation.real[rows].clone(),
        correlation.imag[: modes.pairs][rows].clone(),
        h_first.to(s.dtype),
    )


@column_scan_backward.register_fake
def _(
    s_gradient: Tensor,
    last_gradient: Tensor | None,
    s: Tensor,
    log_decay: Tensor,
    phase: Tensor | None,
    state: Tensor | None,
    keep: Tensor | None,
    reset: Tensor | None,
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
    """Sum ``h conj(s)`` over batch and time; complex (modes,), from columns (batch, columns, time)."""
    rows, time = h.shape[0] * h.shape[1], h.shape[2]
    length = max(1, _CPU_PIECE // max(1, rows)) if h.device.type == "cpu" else max(1, time)
    # float32 sums a piece pairwise; the pieces are added in float64
    total = h.new_zeros(h.shape[1] - pairs, dtype=torch.complex128 if pairs else torch.float64)
    for h_piece, s_piece in zip(torch.split(h, length, 2), torch.split(s, length, 2), strict=True):
        total += _correlate_piece(h_piece, s_piece, pairs)
    return total


def _correlate_piece(h: Tensor, s: Tensor, pairs: int) -> Tensor:
    """Do `_correlate` in float32, products and sums."""

    def total(product: Tensor) -> Tensor:
        return product.sum((0, 2)).double()

    if not pairs:
        return total(h * s)
    h_real, h_imag, s_real, s_imag = (t[:, i : i + pairs] for t in (h, s) for i in (0, pairs))
    real = total((h_real * s_real).addcmul_(h_imag, s_imag))
    imag = total((h_imag * s_real).addcmul_(h_real, s_imag, value=-1))
    return torch.cat([torch.complex(real, imag), total(h[:, 2 * pairs :] * s[:, 2 * pairs :])])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    u, log_decay, phase, state, keep, reset = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], log_decay, phase, state, keep, reset)
    ctx.input_dtype = u.dtype


def _backward(ctx: Any, s_gradient: Tensor | None, last_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    s, log_decay, phase, state, keep, reset = ctx.saved_tensors
    if s_gradient is None:
        s_gradient = torch.zeros_like(s)
    u_gradient, decay_gradient, phase_gradient, state_gradient = column_scan_backward(
        s_gradient,
        last_gradient,
        s,
        log_decay,
        phase,
        state,
        keep,
        reset,
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


_column_scan.register_autograd(_backward, setup_context=_setup_context)
