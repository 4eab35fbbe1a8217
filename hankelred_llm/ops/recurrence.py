"""The linear recurrence of a diagonal system: one entry point, three ways to compute it.

``s_t = exp(log_decay + i phase) s_(t-1) + u_t`` with padding, document starts and a state in and out.
The float64 loop in `_sequential` is the definition; everything else is compared with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hankelred import ModelError

from .autograd import channel_scan, state_dtype
from .eigenvalues import Eigenvalues

RECURRENCE_METHODS = ("auto", "chunked", "fft", "sequential")


def linear_recurrence(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    *,
    state: Tensor | None = None,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
    method: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run ``s_t = a s_(t-1) + u_t`` with ``a = exp(log_decay + i phase)``, channel by channel.

    Differentiable once in `log_decay`, `phase`, `u` and `state`. There is no synchronization with the
    device and, under `torch.compile`, no graph break. On a CPU, long sequences without masks are checked once
    per block for a state that is not finite; elsewhere there is no branch on data.

    Parameters
    ----------
    log_decay : Tensor, (r,)
        log|a|, meant to be at most 0; not checked by value.
    phase : Tensor, (r,), or None
        The angle of a in radians a sample; None for real modes.
    u : Tensor, (batch, time, r)
        Real, or complex where there is a phase. A view of a channel-first tensor (time contiguous) is the
        fast layout.
    state : Tensor, (batch, r), optional
        s before the first sample; zero when not given.
    keep : bool Tensor, (batch, time), optional
        Where False, ``s_t = s_(t-1)`` and u_t is never read.
    reset : bool Tensor, (batch, time), optional
        Where True a segment starts: the state before it is forgotten, `state` too; without keep, s_t is 0
        there.
    method : {"auto", "chunked", "fft", "sequential"}
        "auto" is "chunked", which is exactly causal: no later sample, Inf and NaN included, changes an
        earlier state. "fft" is the zero-padded convolution, whose error is relative to the largest state of
        the whole sequence; it supports neither `keep` nor `reset`. "sequential" is a plain loop in float64.

    Returns
    -------
    s : Tensor, (batch, time, r)
        Complex where there is a phase; of double precision where u is, else of single, for half-precision u
        too.
    last_state : Tensor, (batch, r)
        ``s[:, -1]``, or `state` where there is no sample.

    Raises
    ------
    hankelred.HankelredError
        A shape or a dtype is wrong, the method is unknown, or it is "fft" and there is a mask.

    Notes
    -----
    The powers of a are built as ``exp(k (log_decay + i phase))`` in float64: at a decay rate of 1e-6, a
    rounded to float32 has lost 1 % of ``1 - a``.

    References
    ----------
    The convolution by FFT: arXiv:2606.26290. Scans by halves and by doubling: G. E. Blelloch, "Prefix sums
    and their applications", CMU-CS-90-190 (1990).

    Examples
    --------
    >>> import math, torch
    >>> import hankelred_llm
    >>> log_decay = torch.tensor([math.log(0.5)])
    >>> s, last = hankelred_llm.linear_recurrence(log_decay, None, torch.ones(1, 4, 1))
    >>> s.flatten().tolist()
    [1.0, 1.5, 1.75, 1.875]
    >>> hankelred_llm.linear_recurrence(log_decay, None, torch.ones(1, 1, 1), state=last)[0].item()
    1.9375
    """
    _check(log_decay, phase, u, state, keep, reset, method)
    if method == "sequential":
        return _sequential(log_decay, phase, u, state, keep, reset)
    if method == "fft":
        return _fft(log_decay, phase, u, state)
    if phase is None:
        s, last = channel_scan(log_decay, None, u.mT, state=state, valid=keep, segment_start=reset)
        return s.mT, last
    r = log_decay.shape[0]
    channels = torch.cat([u.real.mT, _imaginary(u).mT], 1)
    start = None if state is None else torch.cat([state.real, _imaginary(state)], 1)
    s, last = channel_scan(log_decay, phase, channels, state=start, valid=keep, segment_start=reset)
    return torch.complex(s[:, :r], s[:, r:]).mT, torch.complex(last[:, :r], last[:, r:])


def states_between_shards(
    log_decay: Tensor,
    phase: Tensor | None,
    last_states: Tensor,
    kept: Tensor,
    *,
    cut: Tensor | None = None,
) -> Tensor:
    """Return the initial state of each of several contiguous shards of one sequence.

    Each shard is scanned from zero independently; only its final state has to be communicated.

    Parameters
    ----------
    log_decay, phase : Tensor, (r,)
        As in `linear_recurrence`.
    last_states : Tensor, (shards, batch, r)
        Final state of each shard's scan from zero, in order.
    kept : Tensor, (shards, batch) or (shards, 1)
        How many samples of each shard are kept (not padding); without padding, its length.
    cut : bool Tensor, (shards, batch), optional
        Whether the shard contains a reset.

    Returns
    -------
    Tensor, (shards, batch, r)
        Initial states, for `add_entering_state`. The first is zero.

    Examples
    --------
    >>> import torch
    >>> from .recurrence import add_entering_state, linear_recurrence, states_between_shards
    >>> log_decay, u = torch.tensor([-0.1, -0.01]), torch.ones(1, 100, 2)
    >>> shards = u.split([30, 70], 1)
    >>> scans = [linear_recurrence(log_decay, None, shard) for shard in shards]
    >>> entering = states_between_shards(
    ...     log_decay, None, torch.stack([last for _, last in scans]), torch.tensor([[30], [70]])
    ... )
    >>> s = [add_entering_state(log_decay, None, s, x) for (s, _), x in zip(scans, entering)]
    >>> torch.allclose(torch.cat(s, 1), linear_recurrence(log_decay, None, u)[0])
    True
    """
    factor = _powers(log_decay, phase, kept)
    state = torch.zeros_like(last_states[0])
    initial_states = []
    for shard, last in enumerate(last_states):
        initial_states.append(state)
        carried = factor[shard] * state
        if cut is not None:
            carried = torch.where(cut[shard, :, None], 0.0, carried)
        state = (carried + last).to(last.dtype)
    return torch.stack(initial_states)


def add_entering_state(
    log_decay: Tensor,
    phase: Tensor | None,
    s: Tensor,
    state: Tensor,
    *,
    keep: Tensor | None = None,
    reset: Tensor | None = None,
) -> Tensor:
    """Correct states that were scanned from zero for an initial state: ``s_t + a^(t+1) state``.

    Parameters
    ----------
    log_decay, phase : Tensor, (r,)
        As in `linear_recurrence`.
    s : Tensor, (batch, time, r)
        The scan from zero, with the same `keep` and `reset`.
    state : Tensor, (batch, r)
        The state before the first sample.
    keep, reset : bool Tensor, (batch, time), optional
        As in `linear_recurrence`; only kept samples count as steps, and the correction ends at a reset.

    Returns
    -------
    Tensor, (batch, time, r)
        The states that `linear_recurrence` returns with this `state`, up to rounding.
    """
    ones = torch.ones(1, s.shape[1], dtype=torch.bool, device=s.device)
    steps = (ones if keep is None else keep).cumsum(1)
    carried = _powers(log_decay, phase, steps) * state[:, None]
    if reset is not None:
        carried = torch.where((reset.cumsum(1) > 0)[..., None], 0.0, carried)
    return (s + carried).to(s.dtype)


def _imaginary(x: Tensor) -> Tensor:
    return x.imag if x.is_complex() else torch.zeros_like(x)


def _powers(log_decay: Tensor, phase: Tensor | None, exponents: Tensor) -> Tensor:
    """Return ``exp(k lambda)``, float64 or complex128, with a last axis of r more than `exponents`."""
    (powers,) = Eigenvalues.of(log_decay, phase).powers(exponents.flatten().double())
    return powers.mT.reshape(*exponents.shape, powers.shape[0])


def _result_dtype(u: Tensor, phase: Tensor | None) -> torch.dtype:
    real = torch.float64 if u.dtype == torch.complex128 else state_dtype(u.dtype)
    return real if phase is None else real.to_complex()


def _sequential(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    state: Tensor | None,
    keep: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence by its definition, in float64, one sample after the other."""
    a = log_decay.double().exp()
    if phase is not None:
        a = torch.polar(a, phase.double())
    s = a.new_zeros(u.shape[0], u.shape[2]) if state is None else state.to(a.dtype)
    states = [s]
    for t in range(u.shape[1]):
        if reset is not None:
            s = torch.where(reset[:, t, None], 0.0, s)
        moved = a * s + u[:, t]
        s = moved if keep is None else torch.where(keep[:, t, None], moved, s)
        states.append(s)
    dtype = _result_dtype(u, phase)
    return torch.stack(states, 1)[:, 1:].to(dtype), s.to(dtype)


def _fft(log_decay: Tensor, phase: Tensor | None, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolve with the powers of a by zero-padded FFT."""
    time, dtype = u.shape[1], _result_dtype(u, phase)
    powers = _powers(log_decay, phase, torch.arange(time + 1, device=u.device))
    if not u.numel():  # torch.fft refuses empty tensors
        last = u.new_zeros(u.shape[0], u.shape[2]) if state is None else state
        return u.to(dtype), last.to(dtype)
    kernel, x, n = powers[:-1].to(dtype).mT, u.to(dtype).mT, 2 * time
    if phase is None:
        s = torch.fft.irfft(torch.fft.rfft(kernel, n) * torch.fft.rfft(x, n), n)
    else:
        s = torch.fft.ifft(torch.fft.fft(kernel, n) * torch.fft.fft(x, n))
    s = s[..., :time].mT
    if state is not None:
        s = (s + powers[1:] * state[:, None]).to(dtype)
    return s, s[:, -1]


def _check(
    log_decay: Tensor,
    phase: Tensor | None,
    u: Tensor,
    state: Tensor | None,
    keep: Tensor | None,
    reset: Tensor | None,
    method: str,
) -> None:
    """Refuse wrong shapes and dtypes; values are not checked, as they may be on a device."""
    if method not in RECURRENCE_METHODS:
        raise ModelError(
            f"method={method!r} is unknown: use one of {', '.join(map(repr, RECURRENCE_METHODS))}"
        )
    if u.dim() != 3 or not (u.is_floating_point() or u.is_complex()):
        raise ModelError(
            f"u has shape {tuple(u.shape)} and type {u.dtype}: give floating-point numbers of shape "
            "(batch, time, r)"
        )
    batch, time, r = u.shape
    _check_one("log_decay", log_decay, (r,), "one a channel of u")
    if phase is not None:
        _check_one("phase", phase, (r,), "one a channel of u, or None for real modes")
    if state is not None:
        _check_one("state", state, (batch, r), "(batch, r) as in u", may_be_complex=phase is not None)
    if u.is_complex() and phase is None:
        raise ModelError(
            f"u is {u.dtype} but phase is None: give phase=torch.zeros({r}), or the real part of u"
        )
    for name, mask in (("keep", keep), ("reset", reset)):
        if mask is None:
            continue
        if mask.dtype != torch.bool or tuple(mask.shape) != (batch, time):
            raise ModelError(
                f"{name} has shape {tuple(mask.shape)} and type {mask.dtype}: give a bool tensor of shape "
                f"(batch, time) = ({batch}, {time}), for example {name}.bool()"
            )
        if method == "fft":
            raise ModelError(
                f"method='fft' is one convolution over the whole sequence and does not support {name}: "
                "use method='auto', or leave the mask out where it changes nothing"
            )


def _check_one(
    name: str, value: Tensor, shape: tuple[int, ...], which: str, may_be_complex: bool = False
) -> None:
    right_type = value.is_floating_point() or (may_be_complex and value.is_complex())
    if tuple(value.shape) != shape or not right_type:
        kind = "real or complex" if may_be_complex else "real"
        raise ModelError(
            f"{name} has shape {tuple(value.shape)} and type {value.dtype}: give {kind} floating-point "
            f"numbers of shape {shape}, {which}"
        )
