"""The linear recurrence: methods against loops that share no code with them; order and isolation, bitwise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.sweeps import sweep
from hypothesis import given, settings
from hypothesis import strategies as st

from hankelred import HankelredError
from hankelred_llm import linear_recurrence
from hankelred_llm.ops import autograd, chunk_elementwise, chunk_matmul
from hankelred_llm.ops.autograd import channel_scan
from hankelred_llm.ops.recurrence import add_entering_state, states_between_shards

KINDS = ["real", "complex"]
CAUSAL = ["auto", "chunked", "sequential"]
#: around the chunk, the doubling and the block
LENGTHS = [0, 1, 2, 15, 16, 17, 32, 33, 300, 1025]


def numpy_loop(log_decay, phase, u, state=None, keep=None, reset=None):
    """Compute the recurrence in numpy, one number at a time in float64."""
    log_decay, u = np.asarray(log_decay, float), np.asarray(u)
    a = np.exp(log_decay + (0 if phase is None else 1j * np.asarray(phase, float)))
    batch, time, r = u.shape
    s = np.zeros((batch, time, r), dtype=complex if phase is not None else float)
    last = np.zeros((batch, r), s.dtype) if state is None else np.asarray(state).astype(s.dtype)
    for b in range(batch):
        for t in range(time):
            if reset is not None and reset[b, t]:
                last[b] = 0
            if keep is None or keep[b, t]:
                last[b] = a * last[b] + u[b, t]
            s[b, t] = last[b]
    return s, last


def problem(kind, time, *, batch=2, r=3, seed=0, dtype=torch.float64, masks=True):
    """Return the arguments of a recurrence, with random masks."""
    g = torch.Generator().manual_seed(seed)
    rate = 10.0 ** (-4 * torch.rand(r, generator=g, dtype=torch.float64))
    phase = math.pi * torch.rand(r, generator=g, dtype=torch.float64)
    of = dtype if kind == "real" else dtype.to_complex()
    u = torch.randn(batch, time, r, generator=g, dtype=of)
    state = torch.randn(batch, r, generator=g, dtype=of)
    keep = torch.rand(batch, time, generator=g) > 0.3
    reset = torch.rand(batch, time, generator=g) > 0.9
    arguments = dict(log_decay=(-rate).to(dtype), phase=phase.to(dtype) if kind == "complex" else None, u=u)
    return arguments | dict(state=state) | (dict(keep=keep, reset=reset) if masks else {})


def local_error(log_decay, phase, u, s):
    """Return the largest ``|e_t| / sum_j |a|^(t-j) |u_j|``, against float64."""
    s_true, _ = linear_recurrence(log_decay, phase, as_double(u), method="sequential")
    scale, _ = linear_recurrence(log_decay, None, as_double(u).abs(), method="sequential")
    return ((as_double(s) - s_true).abs() / scale.clamp(min=1e-300)).max().item()


def as_double(u):
    return u.to(torch.complex128 if u.is_complex() else torch.float64)


def bits(x):
    """Return the bytes of every number, so that NaN equals NaN and a changed last bit is seen."""
    x = torch.view_as_real(x) if x.is_complex() else x
    return x.contiguous().view({4: torch.int32, 8: torch.int64}[x.element_size()])


def same_bits(x, y):
    return torch.equal(bits(x), bits(y))


# ---- values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("masks", ["none", "keep", "reset", "both"])
def test_states_are_those_of_the_numpy_loop(kind, time, masks):
    arguments = problem(kind, time, seed=time)
    for name, unwanted in (("keep", ("none", "reset")), ("reset", ("none", "keep"))):
        if masks in unwanted:
            del arguments[name]
    expected, expected_last = numpy_loop(**arguments)
    for method in CAUSAL + (["fft"] if masks == "none" else []):
        s, last = linear_recurrence(**arguments, method=method)
        np.testing.assert_allclose(s.numpy(), expected, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(last.numpy(), expected_last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", LENGTHS[1:])
@pytest.mark.parametrize("masks", ["none", "keep", "reset", "both"])
def test_exported_states_are_those_of_the_numpy_loop(kind, time, masks, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    arguments = problem(kind, time, masks=False) | {
        name: mask
        for name, mask in problem(kind, time).items()
        if name == masks or (masks == "both" and name in ("keep", "reset"))
    }
    arguments["log_decay"][0] = -math.inf
    s, last = linear_recurrence(**arguments)
    s_true, last_true = numpy_loop(**arguments)
    np.testing.assert_allclose(s.numpy(), s_true, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(last.numpy(), last_true, rtol=1e-9, atol=1e-9)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunk_elementwise, "_CPU_STEP", 1)
    monkeypatch.setattr(chunk_matmul, "_BLOCK", 12_000)
    assert max(x.block_length(torch.empty(2, 6, 3000)) for x in (chunk_elementwise, chunk_matmul)) < 1100


@pytest.fixture(autouse=True, scope="module", params=["as chosen", "products from one chunk on"])
def shortest(request):
    """Short sequences are left to sweeps; here they show what products do, too."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "as chosen":
            patch.setattr(chunk_matmul, "_FEWEST_NUMBERS", 1)
            patch.setattr(chunk_matmul, "_FEWEST_SAMPLES", 1)
        yield request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("time", [3000, 3008])
def test_many_blocks_are_one_scan(kind, masks, time, small_blocks):
    arguments = problem(kind, time, masks=masks, seed=1)
    expected, _ = numpy_loop(**arguments)
    np.testing.assert_allclose(linear_recurrence(**arguments)[0].numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pairs, reals", [(2, 1), (0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("time", [1, 40])
def test_columns_are_real_parts_imaginary_parts_real_modes(pairs, reals, time):
    g = torch.Generator().manual_seed(pairs)
    log_decay = -torch.rand(pairs + reals, generator=g, dtype=torch.float64)
    phase = torch.rand(pairs, generator=g, dtype=torch.float64)
    u = torch.randn(2, 2 * pairs + reals, time, generator=g, dtype=torch.float64)
    state = torch.randn(2, 2 * pairs + reals, generator=g, dtype=torch.float64)
    keep, reset = torch.rand(2, time, generator=g) > 0.3, torch.rand(2, time, generator=g) > 0.8
    s, last = channel_scan(
        log_decay, phase if pairs else None, u, state=state, valid=keep, segment_start=reset
    )
    masks = dict(keep=keep, reset=reset)

    def cut(x):
        return torch.complex(x[:, :pairs], x[:, pairs : 2 * pairs]), x[:, 2 * pairs :]

    for x, x0, y, y_last, p, ld in zip(
        cut(u), cut(state), cut(s), cut(last), (phase, None), log_decay.split([pairs, reals]), strict=True
    ):
        expected, expected_last = numpy_loop(ld, p, x.mT, state=x0, **masks)
        np.testing.assert_allclose(y.mT.numpy(), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(y_last.numpy(), expected_last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("time", [16, 70, 3000])
def test_pairs_and_real_modes_together_and_all_their_gradients(time):
    """With masks they are sweeps; chunks by products know both kinds too, and join many chunks twice."""
    g = torch.Generator().manual_seed(3)
    log_decay = -(10.0 ** (-3 * torch.rand(5, generator=g, dtype=torch.float64)))
    phase = math.pi * torch.rand(2, generator=g, dtype=torch.float64)
    u, weights = torch.randn(2, 2, 7, time, generator=g, dtype=torch.float64)
    state = torch.randn(2, 7, generator=g, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (log_decay, phase, u, state)]

    def plain(log_decay, phase, u, state):
        pair = linear_recurrence(
            log_decay[:2],
            phase,
            torch.complex(u[:, :2], u[:, 2:4]).mT,
            state=torch.complex(state[:, :2], state[:, 2:4]),
            method="sequential",
        )
        real = linear_recurrence(log_decay[2:], None, u[:, 4:].mT, state=state[:, 4:], method="sequential")
        return [torch.cat([p.real, p.imag, r], -1) for p, r in zip(pair, real, strict=True)]

    s, last = channel_scan(log_decay, phase, u, state=state)
    expected, expected_last = plain(*inputs)
    torch.testing.assert_close(s.mT, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(last, expected_last, rtol=1e-11, atol=1e-11)
    loss = (s * weights).sum() + last.square().sum()
    truth = (expected.mT * weights).sum() + expected_last.square().sum()
    for ours, theirs in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(truth, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def signal(name, time, r, g):
    white = torch.randn(1, time, r, generator=g)
    if name == "spike":
        white[:, -1] = 1e6
    if name == "coloured":
        white = linear_recurrence(torch.full((r,), -1e-3), None, white)[0].contiguous()
    if name == "constant":
        white = torch.ones(1, time, r)
    return white


@pytest.mark.parametrize("name", ["white", "spike", "coloured", "constant"])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_error_is_relative_to_what_each_state_remembers(name, kind):
    g = torch.Generator().manual_seed(3)
    log_decay = -torch.logspace(-6, 1, 8)
    phase = math.pi * torch.rand(8, generator=g) if kind == "complex" else None
    u = signal(name, 4096, 8, g)
    s, _ = linear_recurrence(log_decay, phase, u)
    assert s.dtype == (torch.float32 if kind == "real" else torch.complex64)
    assert local_error(log_decay, phase, u, s) < 2e-6
    if name == "spike":  # what the convolution does with it is why it is not the default
        assert (
            local_error(log_decay, phase, u, linear_recurrence(log_decay, phase, u, method="fft")[0]) > 1e-3
        )


def test_slow_decay_keeps_its_digits():
    # a float32 decay factor of exp(-1e-6) is off by 1 % of its distance to 1
    u = torch.zeros(1, 100_000, 1)
    u[:, 0] = 1.0
    s, _ = linear_recurrence(torch.tensor([-1e-6]), None, u)
    exact = np.exp(np.float64(np.float32(-1e-6)) * np.arange(100_000))
    np.testing.assert_allclose(s.flatten().double().numpy(), exact, rtol=2e-6)


@pytest.mark.parametrize("rate", [0.0, -200.0, -1e30, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_decays_are_finite_with_finite_gradients(rate, kind):
    log_decay = torch.tensor([rate, -0.1], requires_grad=True)
    phase = torch.tensor([0.3, 0.2], requires_grad=True) if kind == "complex" else None
    u = torch.ones(1, 100, 2, requires_grad=True)
    keep = torch.arange(100)[None] % 3 > 0
    for mask in (None, keep):
        for time in (1, 100):
            s, last = linear_recurrence(
                log_decay,
                phase,
                u[:, :time],
                state=torch.ones(1, 2),
                keep=None if mask is None else mask[:, :time],
            )
            expected, _ = linear_recurrence(
                log_decay,
                phase,
                u[:, :time],
                state=torch.ones(1, 2),
                keep=mask if mask is None else mask[:, :time],
                method="sequential",
            )
            torch.testing.assert_close(s, expected, rtol=1e-5, atol=1e-5)
            inputs = [log_decay, u] + ([phase] if phase is not None else [])
            for gradient in torch.autograd.grad(s.abs().sum() + last.abs().sum(), inputs):
                assert gradient.isfinite().all()


# ---- gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["chunked", "sequential"])
@pytest.mark.parametrize("time", [1, 19])
@pytest.mark.parametrize("masks", sweep([True, False], first=1))
def test_gradcheck(kind, method, time, masks):
    arguments = problem(kind, time, r=2, masks=masks, seed=time)
    names = ["log_decay", "u", "state"] + (["phase"] if kind == "complex" else [])
    inputs = [arguments[name].requires_grad_() for name in names]

    def run(*inputs):
        return linear_recurrence(**(arguments | dict(zip(names, inputs, strict=True))), method=method)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", [True, False])
def test_gradients_are_those_of_the_loop(kind, masks, small_blocks):
    arguments = problem(kind, 2100, masks=masks, seed=5)
    names = ["log_decay", "u", "state"] + (["phase"] if kind == "complex" else [])
    inputs = [arguments[name].requires_grad_() for name in names]
    weights = torch.randn_like(arguments["u"].detach())

    def gradients(method):
        s, last = linear_recurrence(**arguments, method=method)
        return torch.autograd.grad((s * weights).abs().sum() + (last * weights[:, 0]).abs().sum(), inputs)

    methods = ["chunked"] if masks else ["chunked", "fft"]
    expected = gradients("sequential")
    for method in methods:
        for gradient, truth in zip(gradients(method), expected, strict=True):
            torch.testing.assert_close(gradient, truth, rtol=1e-9, atol=1e-9)


def test_gradient_of_the_last_state_alone_and_of_frozen_parameters():
    arguments = problem("real", 50, seed=2)
    u = arguments["u"].requires_grad_()
    (gradient,) = torch.autograd.grad(linear_recurrence(**arguments)[1].sum(), u)
    (truth,) = torch.autograd.grad(linear_recurrence(**arguments, method="sequential")[1].sum(), u)
    torch.testing.assert_close(gradient, truth)


def test_hidden_samples_have_no_gradient_even_when_not_finite():
    arguments = problem("real", 60, seed=8)
    hidden = ~arguments["keep"]
    arguments["u"][hidden] = math.nan
    inputs = [arguments[name].requires_grad_() for name in ("u", "log_decay", "state")]
    for method in CAUSAL:
        s, _ = linear_recurrence(**arguments, method=method)
        gradients = torch.autograd.grad(s.square().sum(), inputs)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert not gradients[0][hidden].any()


def test_second_derivatives_are_refused():
    arguments = problem("real", 20, masks=False)
    u = arguments["u"].requires_grad_()
    (gradient,) = torch.autograd.grad(linear_recurrence(**arguments)[0].square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


def test_backward_keeps_the_states_and_nothing_else():
    saved = {}

    def pack(t):
        saved[t.data_ptr()] = t.numel() * t.element_size()
        return t

    u = torch.randn(1, 32, 8192, requires_grad=True)
    log_decay = (-torch.rand(32)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        linear_recurrence(log_decay, None, u.mT)
    assert sum(saved.values()) <= 1.2 * u.numel() * u.element_size()


# ---- order, masks, isolation: to the bit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["chunked", "sequential"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, 1.0, -0.0])
@pytest.mark.parametrize("masks", [True, False])
def test_a_later_sample_changes_no_earlier_bit(kind, method, value, masks):
    arguments = problem(kind, 200, dtype=torch.float32, masks=masks, seed=4)
    times = [1, 15, 16, 37, 100, 199]
    if masks:
        arguments["keep"][:, times] = True
    before, _ = linear_recurrence(**arguments, method=method)
    for t in times:
        changed = arguments["u"].clone()
        changed[:, t:] = value
        after, last = linear_recurrence(**(arguments | dict(u=changed)), method=method)
        assert same_bits(after[:, :t], before[:, :t])
        if not math.isfinite(value) and not masks:
            assert not after[:, t:].abs().isfinite().any()
            assert not last.abs().isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row_channel_and_future(kind, value, small_blocks):
    """Chunks are matrix products, in which 0 * Inf is NaN for every state of the chunk, earlier ones too."""
    arguments = problem(kind, 2500, dtype=torch.float32, masks=False, seed=4)
    u, start = arguments.pop("u"), arguments.pop("state")
    struck, weights = u.clone(), torch.randn(u.shape, dtype=u.dtype)
    struck[0, 1090, 1] = value

    def run(u, weights):
        u = u.clone().requires_grad_()
        s, last = linear_recurrence(**arguments, u=u, state=start)
        # the gradient to u is the same recurrence from the end
        (back,) = torch.autograd.grad(s, u, weights)
        return s.detach(), last.detach(), back

    s, last, back = run(u, weights)
    s_struck, last_struck, _ = run(struck, weights)
    touched = torch.zeros(u.shape, dtype=torch.bool)
    touched[0, 1090:, 1] = True
    assert same_bits(s_struck[~touched], s[~touched])
    assert not s_struck[touched].abs().isfinite().any()
    assert same_bits(last_struck[~touched[:, -1]], last[~touched[:, -1]])
    bad_weights = weights.clone()
    bad_weights[0, 1090, 1] = value
    _, _, back_struck = run(u, bad_weights)
    touched = torch.zeros(u.shape, dtype=torch.bool)
    touched[0, :1091, 1] = True
    assert same_bits(back_struck[~touched], back[~touched])
    assert not back_struck[touched].abs().isfinite().any()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_chunk_that_overflows_from_zero_leaves_earlier_states_alone(reverse):
    """A chunk ended at -Inf, though its states, with what entered it, were finite: every state was NaN.

    Where chunks are joined an Inf met the zeros of a triangle. The sweeps that should have mended it saw
    nothing, as they round and cut otherwise.
    """
    u = torch.zeros(1, 128, 1)
    u[0, :32, 0] = torch.randn(32, generator=torch.Generator().manual_seed(0))
    u[0, [40, 67, 84], 0] = torch.tensor([3e38, -3e38, -3e38])
    log_decay = torch.tensor([-1e-6])

    def run(u):
        if not reverse:
            return linear_recurrence(log_decay, None, u)[0]
        x = torch.zeros_like(u).requires_grad_()
        s, _ = linear_recurrence(log_decay, None, x)
        return torch.autograd.grad(s, x, u.flip(1))[0].flip(1)

    calm = u.clone()
    calm[0, 67:] = 0
    assert same_bits(run(u)[:, :67], run(calm)[:, :67])
    assert run(u).isfinite().all()
    true, _ = linear_recurrence(log_decay, None, u, method="sequential")
    torch.testing.assert_close(run(u), true, rtol=1e-5, atol=1e32)


def test_nan_in_an_imaginary_part_at_the_end_of_a_block_goes_on():
    """It was in no real part, so the state was carried on as if the sample had been 0."""
    u = torch.zeros(1, 40, 1, dtype=torch.complex64)
    for end in (15, 31):
        struck = u.clone()
        struck[0, end, 0] = complex(1, math.nan)
        s, last = linear_recurrence(torch.tensor([-0.1]), torch.tensor([0.5]), struck)
        assert torch.equal(s[:, :end], u[:, :end])
        assert not s[:, end:].abs().isfinite().any()
        assert not last.abs().isfinite().any()


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_stays_infinity_in_real_modes(value):
    u = torch.ones(1, 100, 1)
    u[:, 20] = value
    s, last = linear_recurrence(torch.tensor([-0.1]), None, u)
    assert (s[:, 20:] == value).all()
    assert last.item() == value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["chunked", "sequential"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, 0.0])
def test_a_reset_lets_nothing_through(kind, method, value):
    arguments = problem(kind, 120, dtype=torch.float32, seed=6)
    for t in (0, 1, 16, 40, 47, 119):
        arguments["reset"] = torch.zeros(2, 120, dtype=torch.bool)
        arguments["reset"][:, t] = True
        arguments["keep"][:, t] = False  # the document starts with padding
        s, last = linear_recurrence(**arguments, method=method)
        u, state = arguments["u"].clone(), torch.full_like(arguments["state"], value)
        u[:, :t] = value
        other, other_last = linear_recurrence(**(arguments | dict(u=u, state=state)), method=method)
        assert same_bits(other[:, t:], s[:, t:])
        assert same_bits(other_last, last)
        assert not s[:, t].any()


def test_documents_of_one_token_or_one_chunk_are_separate_documents():
    arguments = problem("complex", 96, seed=9)
    for length in (1, 5, 16, 24):
        reset = torch.arange(96).expand(2, 96) % length == 0
        s, _ = linear_recurrence(**(arguments | dict(reset=reset)))
        for start in range(0, 96, length):
            part = slice(start, start + length)
            alone, _ = numpy_loop(
                arguments["log_decay"],
                arguments["phase"],
                arguments["u"][:, part],
                keep=arguments["keep"][:, part],
            )
            np.testing.assert_allclose(s[:, part].numpy(), alone, atol=1e-12)


@pytest.mark.parametrize("method", CAUSAL)
def test_a_skipped_step_repeats_the_bits_and_reads_nothing(method):
    arguments = problem("complex", 100, dtype=torch.float32, seed=7)
    del arguments["reset"]
    hidden = ~arguments["keep"]
    s, last = linear_recurrence(**arguments, method=method)
    padded = torch.cat([arguments["state"][:, None], s], 1)
    assert torch.equal(padded[:, 1:][hidden], padded[:, :-1][hidden])
    arguments["u"][hidden] = math.nan
    other, other_last = linear_recurrence(**arguments, method=method)
    assert same_bits(other, s)
    assert same_bits(other_last, last)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 130), st.integers(0, 10**6), st.sampled_from(KINDS), st.booleans(), st.data())
def test_a_sequence_may_be_split_anywhere(time, seed, kind, masks, data):
    arguments = problem(kind, time, seed=seed, masks=masks)
    whole, whole_last = linear_recurrence(**arguments)
    at = data.draw(st.integers(0, time))
    state, parts = arguments.pop("state"), []
    for part in (slice(at), slice(at, None)):
        cut = {name: arguments[name][:, part] for name in ("u", "keep", "reset") if name in arguments}
        s, state = linear_recurrence(**(arguments | cut), state=state)
        parts.append(s)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, whole_last, rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.integers(0, 10**6), st.sampled_from(KINDS), st.floats(-3, 3))
def test_linear_in_input_and_state(time, seed, kind, factor):
    first, second = problem(kind, time, seed=seed), problem(kind, time, seed=seed + 1)
    both = first | {name: first[name] + factor * second[name] for name in ("u", "state")}
    s1, s2 = (
        linear_recurrence(**(first | {name: x[name] for name in ("u", "state")}))[0] for x in (first, second)
    )
    torch.testing.assert_close(linear_recurrence(**both)[0], s1 + factor * s2, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.integers(0, 10**6), st.sampled_from(KINDS))
def test_dropping_the_hidden_samples_changes_nothing(time, seed, kind):
    arguments = problem(kind, time, batch=1, seed=seed)
    keep = arguments["keep"][0]
    # a reset at a hidden sample belongs to the next kept one
    arguments["reset"] &= arguments["keep"]
    s, _ = linear_recurrence(**arguments)
    short = {name: arguments[name][:, keep] for name in ("u", "reset")}
    alone, _ = linear_recurrence(**({k: v for k, v in arguments.items() if k != "keep"} | short))
    torch.testing.assert_close(s[:, keep], alone, rtol=1e-10, atol=1e-10)


def test_channels_and_rows_are_independent_and_may_be_reordered():
    arguments = problem("complex", 50, batch=3, r=4, seed=3, dtype=torch.float32)
    rows, channels = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    s, _ = linear_recurrence(**arguments)
    turned = {name: arguments[name][channels] for name in ("log_decay", "phase")}
    turned |= {name: arguments[name][rows] for name in ("keep", "reset")}
    turned |= {name: arguments[name][rows][..., channels] for name in ("u", "state")}
    torch.testing.assert_close(linear_recurrence(**turned)[0], s[rows][..., channels])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [2048, 2061])
def test_rows_that_pay_for_products_together_give_what_each_gives_alone(kind, time, shortest):
    r = 26 if kind == "real" else 13
    arguments = problem(kind, time, batch=8, r=r, masks=False)
    assert chunk_matmul.is_applicable(torch.empty(8, 26, time), torch.float64)
    assert chunk_matmul.is_applicable(torch.empty(1, 26, time), torch.float64) == (shortest != "as chosen")
    together, last = linear_recurrence(**arguments)
    for b in range(8):
        row = arguments | dict(u=arguments["u"][b : b + 1], state=arguments["state"][b : b + 1])
        alone, alone_last = linear_recurrence(**row)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(last[b : b + 1], alone_last, rtol=1e-11, atol=1e-11)


# ---- types, shapes, layouts


@pytest.mark.parametrize("method", ["auto", "fft", "sequential"])
@pytest.mark.parametrize("u_type", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("parameter_type", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 20])
def test_types(method, u_type, parameter_type, kind, time):
    log_decay = torch.tensor([-0.5, -0.25], dtype=parameter_type, requires_grad=True)
    phase = torch.tensor([0.5, 1.0], dtype=parameter_type) if kind == "complex" else None
    u = torch.ones(2, time, 2, dtype=u_type, requires_grad=True)
    real = torch.float64 if u_type == torch.float64 else torch.float32
    for state in (None, torch.ones(2, 2)):
        s, last = linear_recurrence(log_decay, phase, u, state=state, method=method)
        assert s.dtype == last.dtype == (real if kind == "real" else real.to_complex())
        expected, _ = numpy_loop(
            log_decay.detach().double(),
            phase if phase is None else phase.double(),
            u.detach().double(),
            state=state,
        )
        np.testing.assert_allclose(s.detach().numpy(), expected, rtol=1e-5)
        gradients = torch.autograd.grad(s.abs().sum(), [log_decay, u], allow_unused=True)
        assert gradients[1].dtype == u_type
        assert gradients[0] is None or gradients[0].dtype == parameter_type


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["auto", "fft", "sequential"])
@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 5, 3), (2, 5, 0), (0, 0, 0), (0, 1, 3), (2, 1, 0)])
def test_empty(kind, method, shape):
    batch, time, r = shape
    arguments = problem(kind, time, batch=batch, r=r, masks=False)
    # "fft" once failed inside MKL for no rows or no modes, and a skip here hid it
    u = arguments["u"].requires_grad_()
    s, last = linear_recurrence(**arguments, method=method)
    assert s.shape == u.shape
    assert last.shape == (batch, r)
    assert not s.requires_grad or torch.autograd.grad(s.abs().sum(), u)[0].shape == u.shape
    if time == 0:
        torch.testing.assert_close(last, arguments["state"])
        # the gradient at the last state was returned as it came, which an operator must not do
        state = arguments["state"].requires_grad_()
        _, last = linear_recurrence(**(arguments | dict(state=state)), method=method)
        assert torch.equal(torch.autograd.grad(last.abs().sum(), state)[0], state.detach().sgn())
        arguments["state"] = state.detach()
        assert linear_recurrence(**(arguments | dict(state=None)), method=method)[1].abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout(kind):
    arguments = problem(kind, 70, seed=3)
    s, _ = linear_recurrence(**arguments)
    u = arguments["u"]
    wide = torch.zeros(2, 140, 6, dtype=u.dtype)
    wide[:, ::2, ::2] = u
    for view in (wide[:, ::2, ::2], u.mT.contiguous().mT, u.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        assert not view.is_contiguous()
        assert same_bits(linear_recurrence(**(arguments | dict(u=view)))[0], s)
    one_row = u[:1].expand(2, -1, -1)
    assert same_bits(linear_recurrence(**(arguments | dict(u=one_row)))[0][:1], s[:1])


def test_input_is_left_alone():
    arguments = problem("real", 40)
    copies = {name: value.clone() for name, value in arguments.items() if value is not None}
    linear_recurrence(**arguments)
    for name, copy in copies.items():
        assert torch.equal(arguments[name], copy)


# ---- beside autocast, precision switches, torch.compile, torch.func


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time, masks", [(1, True), (50, True), (200, False)])
def test_autocast_and_matmul_precision_have_no_influence(kind, time, masks):
    """Without masks it is matrix products, which both would round to 4e-3; with a switch on it is sweeps."""
    arguments = problem(kind, time, masks=masks, dtype=torch.float32)
    u = arguments["u"].requires_grad_()

    def run():
        s, _ = linear_recurrence(**arguments)
        return s, torch.autograd.grad(s.abs().square().sum(), u)[0]

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert not chunk_matmul.is_applicable(
            torch.empty(1, 1, 2**20), torch.float32
        )  # whatever this processor does
        coarse = run()
    finally:
        torch.set_float32_matmul_precision(before)
    for x, y, z in zip(plain, inside, coarse, strict=True):
        assert same_bits(x, y)
        if masks:
            assert same_bits(x, z)
        else:
            torch.testing.assert_close(x, z, rtol=0, atol=1e-6 * x.detach().abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 70])
def test_compiles_as_one_graph_inside_a_model(kind, time):
    arguments = problem(kind, time, dtype=torch.float32)
    projection = torch.nn.Linear(3, 3)
    rest = {name: value for name, value in arguments.items() if name not in ("u", "log_decay")}

    def model(u, log_decay):
        s, last = linear_recurrence(log_decay, u=projection(u), **rest)
        return s.abs().mean() + last.abs().mean()

    def gradients(function):
        u, log_decay = (
            arguments["u"].real.clone().requires_grad_(),
            arguments["log_decay"].clone().requires_grad_(),
        )
        return torch.autograd.grad(function(u, log_decay), [u, log_decay, projection.weight])

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for gradient, expected in zip(gradients(compiled), gradients(model), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_compiles_for_any_length_at_once():
    torch.compiler.reset()
    lengths = []

    def counting(graph, inputs):
        lengths.append(len(inputs))
        return graph

    compiled = torch.compile(linear_recurrence, fullgraph=True, backend=counting, dynamic=True)
    for time in (20, 33, 2000):
        arguments = problem("real", time)
        torch.testing.assert_close(compiled(**arguments)[0], linear_recurrence(**arguments)[0])
    assert len(lengths) == 1


def test_operators_keep_their_promises_to_torch():
    arguments = problem("real", 40)
    names = ("u", "log_decay", "phase", "state", "keep", "reset")
    inputs = [arguments[name] for name in names]
    inputs[0] = inputs[0].mT.contiguous().requires_grad_()
    inputs[1].requires_grad_()
    torch.library.opcheck(torch.ops.hankelred_llm.channel_scan.default, inputs)


@pytest.mark.parametrize("pairs", [0, 2, 4])
@pytest.mark.parametrize("masks", [True, False])
def test_the_operators_read_no_number_and_stay_on_the_device(pairs, masks):
    """On the device "meta", which has no numbers, what a GPU would do runs up to the first that is read."""
    u, state = torch.empty(2, 4 + pairs, 2000, device="meta"), torch.empty(2, 4 + pairs, device="meta")
    log_decay, phase = torch.empty(4, device="meta"), torch.empty(pairs, device="meta") if pairs else None
    keep = torch.empty(2, 2000, dtype=torch.bool, device="meta") if masks else None
    forward, backward = autograd._channel_scan._init_fn, autograd.channel_scan_backward._init_fn
    s, last = forward(u, log_decay, phase, state, keep, keep)
    gradients = backward(s, last, s, log_decay, phase, state, keep, keep, True)
    assert [x.shape for x in (s, last, *gradients)] == [
        u.shape,
        state.shape,
        u.shape,
        (4,),
        (pairs,),
        state.shape,
    ]
    assert all(x.device.type == "meta" for x in (s, last, *gradients))
    with pytest.raises(RuntimeError, match="meta"):
        bool(s.isfinite().all())


def test_functional_gradients_are_refused_but_for_the_plain_loop():
    arguments = problem("real", 30, masks=False)

    def loss(u, method="auto"):
        return linear_recurrence(**(arguments | dict(u=u)), method=method)[0].square().sum()

    u = arguments["u"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(u), u)
    gradient = torch.func.grad(lambda u: loss(u, "sequential"))(arguments["u"])
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(loss)(arguments["u"])


def test_vmap_runs_one_after_the_other():
    # A test once wanted vmap refused; torch falls back on a loop for the operator, which is right, if slow.
    arguments = problem("complex", 30, masks=False)
    several = torch.stack([arguments["u"], 2 * arguments["u"], arguments["u"].flip(1)])
    mapped = torch.func.vmap(lambda u: linear_recurrence(**(arguments | dict(u=u)))[0])(several)
    expected = torch.stack([linear_recurrence(**(arguments | dict(u=u)))[0] for u in several])
    torch.testing.assert_close(mapped, expected, rtol=0, atol=0)


# ---- shards


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[40, 60], [1, 0, 50, 49], [25, 25, 25, 25], [100]])
@pytest.mark.parametrize("masks", [True, False])
def test_shards_compose_to_the_full_scan(kind, sizes, masks):
    arguments = problem(kind, 100, masks=masks, seed=len(sizes))
    arguments["state"] = None
    if masks:
        arguments["reset"][:, 10:] = False
        arguments["reset"][0, 70] = True
    parameters = {name: arguments[name] for name in ("log_decay", "phase")}
    whole, _ = linear_recurrence(**arguments)
    shards = [
        {name: arguments[name].split(sizes, 1)[i] for name in ("u", "keep", "reset") if name in arguments}
        for i in range(len(sizes))
    ]
    scans = [linear_recurrence(**parameters, **shard) for shard in shards]
    valid_counts, cut = torch.tensor(sizes)[:, None], None
    if masks:
        valid_counts = torch.stack([shard["keep"].sum(1) for shard in shards])
        cut = torch.stack([shard["reset"].any(1) for shard in shards])
    entering = states_between_shards(
        **parameters, last_states=torch.stack([x for _, x in scans]), kept=valid_counts, cut=cut
    )
    pieces = []
    for (s, _), state, shard in zip(scans, entering, shards, strict=True):
        del shard["u"]
        pieces.append(add_entering_state(**parameters, s=s, state=state, **shard))
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-12)


# ---- refusals


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(method="fast"), r"'fast' is unknown: use one of 'auto'"),
        (dict(u=torch.zeros(5, 3)), r"u has shape \(5, 3\).*\(batch, time, r\)"),
        (dict(u=torch.zeros(2, 5, 3, dtype=torch.int64)), r"torch.int64: give floating-point"),
        (dict(log_decay=torch.zeros(4)), r"log_decay has shape \(4,\).*shape \(3,\)"),
        (dict(log_decay=torch.zeros(3, dtype=torch.complex64)), r"log_decay .*complex64: give real"),
        (dict(phase=torch.zeros(2)), r"phase has shape \(2,\).*None for real modes"),
        (dict(state=torch.zeros(3)), r"state has shape \(3,\).*\(2, 3\)"),
        (dict(state=torch.zeros(2, 3, dtype=torch.complex64)), r"state .*complex64: give real"),
        (dict(u=torch.zeros(2, 5, 3, dtype=torch.complex64)), r"phase is None: give phase=torch.zeros\(3\)"),
        (dict(keep=torch.ones(2, 5)), r"keep .*float32: give a bool tensor .*keep.bool\(\)"),
        (dict(reset=torch.ones(2, 4, dtype=torch.bool)), r"reset has shape \(2, 4\).*\(2, 5\)"),
        (
            dict(keep=torch.ones(2, 5, dtype=torch.bool), method="fft"),
            r"does not support keep: use method='auto'",
        ),
        (dict(reset=torch.ones(2, 5, dtype=torch.bool), method="fft"), r"does not support reset"),
    ],
)
def test_refusals_name_what_was_seen_and_the_remedy(change, message):
    arguments = dict(log_decay=torch.zeros(3), phase=None, u=torch.zeros(2, 5, 3))
    with pytest.raises(HankelredError, match=message):
        linear_recurrence(**(arguments | change))
