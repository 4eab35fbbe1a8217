"""Adapters as linear systems: out of a model and back."""

from __future__ import annotations

import control
import numpy as np
import pytest
import torch
from helpers.models import WIDTH, adapted, base_model, error, padded, step_by_step, system_of, tokens
from peft import PeftModel

import hankelred
import hankelred_llm
from hankelred_llm import AdapterError

RNG = np.random.default_rng(5)


def response(system, n=12):
    """Re(C exp(k lambda) B) for k < n."""
    log_poles, B, C = system
    return np.stack([((C * np.exp(k * np.asarray(log_poles))) @ B).real for k in range(n)])


def mixed(width=WIDTH):
    """Two conjugate pairs, a slow and a fast real pole, and a negative one."""
    pairs = np.array([-0.05 + 0.3j, -0.4 + 2.0j])
    poles = np.concatenate([np.stack([pairs, pairs.conj()], 1).ravel(), [-1e-4, -3.0, -0.2 + np.pi * 1j]])
    B = RNG.normal(size=(7, width)) + 0j
    C = RNG.normal(size=(width, 7)) + 0j
    for i in (0, 2):
        B[i] += 1j * RNG.normal(size=width)
        C[:, i] += 1j * RNG.normal(size=width)
        B[i + 1], C[:, i + 1] = B[i].conj(), C[:, i].conj()
    return poles, B, C


def said_by(model, layer, x):
    """What the adapter of a layer adds for an input (time, width), and its response to it by definition."""
    system = system_of(model, layer)
    with torch.no_grad():
        y = system(torch.from_numpy(x).to(system.B.dtype)[None])[0][0].double().numpy()
    markov = response(hankelred_llm.get_systems(model)[layer], len(x))
    expected = sum(np.pad(x, ((k, 0), (0, 0)))[: len(x)] @ markov[k].T for k in range(len(x)))
    return y, expected


@pytest.mark.parametrize(
    "fields", [{}, {"eigenvalues": "real"}, {"r": 5}, {"r": 1}, {"init_weights": "s4d_real"}]
)
def test_systems_are_what_the_layers_compute(fields):
    model = adapted(**fields)
    with torch.no_grad():
        for layer in (0, 1):
            system_of(model, layer).gate.fill_(-0.7)
    systems = hankelred_llm.get_systems(model)
    assert sorted(systems) == [0, 1]
    for layer, (log_poles, B, C) in systems.items():
        r = fields.get("r", 6)
        assert log_poles.shape == (r,) and B.shape == (r, WIDTH) and C.shape == (WIDTH, r)
        assert log_poles.dtype == complex and np.all(log_poles.real < 0)
        # conjugates side by side, so that the sums are real without taking the real part
        np.testing.assert_allclose((C @ B).imag, 0, atol=1e-12)
        x = RNG.normal(size=(30, WIDTH))
        y, expected = said_by(model, layer, x)
        np.testing.assert_allclose(y, expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "fields", [{}, {"eigenvalues": "real", "r": 5}, {"r": 5}, {"init_weights": "s4d_real"}]
)
def test_there_and_back_changes_no_output(fields):
    model, ids = adapted(**fields), tokens(2, 20)
    with torch.no_grad():
        for p in model.get_base_model().model.layers[1].parameters():
            if p.requires_grad and p.shape == (1,):
                p.fill_(2.5)
        before, systems = model(ids).logits, hankelred_llm.get_systems(model)
        hankelred_llm.set_systems(model, systems)
        assert error(model(ids).logits, before) < 2e-6
    for layer, system in hankelred_llm.get_systems(model).items():
        for new, old in zip(system, systems[layer], strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-7)
    assert model.peft_config["default"].rank_pattern == {}
    assert all(p.item() == 1 for n, p in model.named_parameters() if n.endswith("gate"))


def test_a_mixed_system_is_computed_saved_and_loaded(tmp_path):
    model, ids = adapted(), tokens(2, 20)
    system = mixed()
    hankelred_llm.set_systems(model, {1: system})
    back = hankelred_llm.get_systems(model)[1]
    np.testing.assert_allclose(response(back), response(system), atol=1e-5)
    y, expected = said_by(model, 1, RNG.normal(size=(25, WIDTH)))
    np.testing.assert_allclose(y, expected, atol=3e-6 * np.abs(expected).max())
    assert len(back[0]) == 7
    config = model.peft_config["default"]
    assert config.rank_pattern == {"layers.1.mlp": 7} and config.mode_pattern == {"layers.1.mlp": [2, 1]}
    with torch.no_grad():
        before = model(ids).logits
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(base_model(), tmp_path)
        assert torch.equal(again(ids).logits, before)
    # and they are trained on
    model.train()(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


KINDS = {
    "tuple": lambda s: s,
    "lists": lambda s: tuple(part.tolist() for part in s),
    "ModalSystem": lambda s: hankelred.ModalSystem(*s),
    "ModalSystem with step": lambda s: hankelred.ModalSystem(*s, dt=0.5),
    "StateSpace": lambda s: control.ss(*hankelred.ModalSystem(*s).state_space(), True),
    "Reduction": lambda s: hankelred.reduce(hankelred.ModalSystem(*s), 7),
    "Reduction of a StateSpace": lambda s: hankelred.reduce(
        control.ss(*hankelred.ModalSystem(*s).state_space(), True), 7
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_system(kind):
    model, system = adapted(), mixed()
    hankelred_llm.set_systems(model, {0: KINDS[kind](system)})
    np.testing.assert_allclose(
        response(hankelred_llm.get_systems(model)[0]),
        response(system),
        atol=1e-5 * np.abs(response(system)).max(),
    )


def test_negative_poles_pass_over_padding_and_through_a_cache():
    """Their states alternate with every kept token, not with every place."""
    model, ids = adapted(base={"sliding_window": None}), tokens(2, 17)
    hankelred_llm.set_systems(model, {0: mixed(), 1: mixed()})
    with torch.no_grad():
        full = model(ids).logits
        assert error(step_by_step(model, ids, size=3), full) < 2e-6
        assert error(step_by_step(model, ids), full) < 2e-6
        for gap in (slice(0, 4), slice(5, 8), slice(14, 17)):
            width = 17 + gap.stop - gap.start
            batch = padded(ids, gap, width)
            valid = batch["attention_mask"][0].bool()
            assert error(model(**batch).logits[:, valid], full) < 2e-6


@pytest.mark.parametrize("order", range(1, 12))
def test_a_reduction_has_as_many_states_as_it_says(order):
    model = adapted(r=12)
    full = hankelred_llm.get_systems(model)[0]
    hankelred_llm.set_systems(model, {0: hankelred.reduce(hankelred.ModalSystem(*full), order)})
    reduced = hankelred_llm.get_systems(model)[0]
    assert len(reduced[0]) == order == system_of(model).B.shape[0]


def test_spectra_survive():
    model, system = adapted(), mixed()
    hankelred_llm.set_systems(model, {0: system})
    expected = hankelred.hankel_singular_values(hankelred.ModalSystem(*system))
    values = hankelred.hankel_singular_values(hankelred.ModalSystem(*hankelred_llm.get_systems(model)[0]))
    np.testing.assert_allclose(values[: len(expected)], expected, rtol=1e-4)


def test_a_pole_at_zero_is_there_for_one_token():
    model = adapted()
    B, C = RNG.normal(size=(2, WIDTH)), RNG.normal(size=(WIDTH, 2))
    hankelred_llm.set_systems(model, {0: (np.array([-np.inf, -0.1]), B, C)})
    markov = response(hankelred_llm.get_systems(model)[0])
    np.testing.assert_allclose(markov[0], C @ B, atol=1e-5)
    np.testing.assert_allclose(markov[3], np.exp(-0.3) * np.outer(C[:, 1], B[1]), atol=1e-5)


def test_a_complex_pole_without_partner_counts_by_its_real_part():
    model = adapted()
    system = (
        np.array([-0.1 + 0.5j]),
        *(RNG.normal(size=s) + 1j * RNG.normal(size=s) for s in ((1, WIDTH), (WIDTH, 1))),
    )
    hankelred_llm.set_systems(model, {0: system})
    np.testing.assert_allclose(response(hankelred_llm.get_systems(model)[0]), response(system), atol=1e-5)


def test_a_real_pole_with_turned_vectors_is_one_real_state():
    model = adapted()
    b, c = RNG.normal(size=(1, WIDTH)), RNG.normal(size=(WIDTH, 1))
    turn = np.exp(0.7j)
    hankelred_llm.set_systems(model, {0: (np.array([-0.1]), b * turn, c / turn)})
    back = hankelred_llm.get_systems(model)[0]
    assert back[0].shape == (1,)
    np.testing.assert_allclose(response(back), response((np.array([-0.1]), b, c)), atol=1e-5)


def test_adapters_by_name():
    model = adapted()
    model.add_adapter("other", hankelred_llm.HRMConfig(r=3, layers_to_transform=[1]))
    assert sorted(hankelred_llm.get_systems(model, "other")) == [1]
    assert len(hankelred_llm.get_systems(model, "other")[1][0]) == 3
    assert sorted(hankelred_llm.get_systems(model)) == [0, 1]
    model.set_adapter("other")
    assert sorted(hankelred_llm.get_systems(model)) == [1]
    hankelred_llm.set_systems(model, {1: mixed()}, adapter_name="other")
    assert model.peft_config["default"].rank_pattern == {}
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(AdapterError, match="pass adapter_name"):
        hankelred_llm.get_systems(model)


def test_frozen_adapters_stay_frozen(tmp_path):
    adapted().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(base_model(), tmp_path)
    hankelred_llm.set_systems(model, {0: mixed()})
    assert not any(p.requires_grad for p in model.parameters())


REFUSED = {
    "no such layer": ({5: mixed()}, "no layer 5; it has layers 0, 1"),
    "other width": ({0: mixed(8)}, r"expected \(n,\), \(n, 32\)"),
    "unstable": ({0: (np.array([0.1]), np.ones((1, WIDTH)), np.ones((WIDTH, 1)))}, "not stable.*1.105"),
    "marginal": ({0: (np.array([0.0]), np.ones((1, WIDTH)), np.ones((WIDTH, 1)))}, "not stable"),
    "empty": ({0: (np.zeros(0), np.ones((0, WIDTH)), np.ones((WIDTH, 0)))}, "no states"),
    "NaN": ({0: (np.array([-0.1]), np.full((1, WIDTH), np.nan), np.ones((WIDTH, 1)))}, "B has entries"),
    "continuous": (
        {0: control.ss(-np.eye(1), np.ones((1, WIDTH)), np.ones((WIDTH, 1)), np.zeros((WIDTH, WIDTH)))},
        "discrete time",
    ),
    "feedthrough": (
        {0: hankelred.ModalSystem([-0.1], np.ones((1, WIDTH)), np.ones((WIDTH, 1)), np.eye(WIDTH))},
        "feedthrough D of size 1",
    ),
    "no model": ({0: "system"}, "layer 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_systems_that_do_not_fit_are_refused_before_anything_changes(case):
    systems, message = REFUSED[case]
    model, ids = adapted(), tokens(1, 5)
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(AdapterError, match=message):
            hankelred_llm.set_systems(model, {1: mixed(), **systems})
        assert torch.equal(model(ids).logits, before)


def test_models_without_adapter_and_unknown_names():
    with pytest.raises(AdapterError, match=r"no HRM adapter; put one in with hankelred_llm.attach"):
        hankelred_llm.get_systems(base_model())
    with pytest.raises(AdapterError, match="no adapter 'x'; the model has 'default'"):
        hankelred_llm.get_systems(adapted(), "x")


def test_two_blocks_of_a_layer():
    # With target_modules=["mlp", "self_attn"] get_systems returned the systems beside one of the two blocks,
    # and reduce shrank only these, without a word about the other half.
    model = adapted(target_modules=["mlp", "self_attn"], r=4)
    for call in (
        hankelred_llm.get_systems,
        hankelred_llm.hankel_spectra,
        lambda model: hankelred_llm.reduce(model, order=2),
        lambda model: hankelred_llm.set_systems(model, {}),
        lambda model: hankelred_llm.calibrate(model, [{"input_ids": tokens(1, 4)}]),
    ):
        with pytest.raises(
            AdapterError, match=r"'default' has more than one system.*mlp, self_attn.*add_adapter"
        ):
            call(model)


def test_systems_that_are_no_mapping_are_refused():
    # a list came out as "'list' object has no attribute 'items'"
    model = adapted()
    with pytest.raises(AdapterError, match=r"must be a mapping from layer index to system.*got a list"):
        hankelred_llm.set_systems(model, [mixed()])


@pytest.mark.parametrize("other", [-0.1 - 0.7j, -0.2 - 0.5j, -0.1 - 0.500001j, -0.1000001 - 0.5j])
def test_poles_that_are_no_conjugates_are_no_pair(other):
    # Conjugate B and C alone do not make a pair; no test looked at the poles' phases, and none noticed a
    # tolerance that took neighbours for conjugates.
    model = adapted()
    b = RNG.normal(size=(1, WIDTH)) + 1j * RNG.normal(size=(1, WIDTH))
    c = RNG.normal(size=(WIDTH, 1)) + 1j * RNG.normal(size=(WIDTH, 1))
    system = (
        np.array([-0.1 + 0.5j, other]),
        np.concatenate([b, b.conj()]),
        np.concatenate([c, c.conj()], 1),
    )
    hankelred_llm.set_systems(model, {0: system})
    stored = hankelred_llm.get_systems(model)[0]
    assert len(stored[0]) == 4  # each got a conjugate of its own
    np.testing.assert_allclose(response(stored), response(system), atol=1e-4)


@pytest.mark.parametrize("log_rate", [120.0, 89.0, -104.0, -200.0])
def test_extreme_rates_are_harmless(log_rate):
    # exp(89) is infinite in single precision: gradients were not finite. exp(-104) is 0: the pole was on the
    # unit circle
    model = adapted(r=5)
    system = system_of(model)
    with torch.no_grad():
        system.log_rate.fill_(log_rate)
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad.isfinite().all() for p in system.parameters())
    assert (system.log_decay() < 0).all() and system.log_decay().isfinite().all()
    log_poles, B, C = hankelred_llm.get_systems(model)[0]
    assert (np.abs(np.exp(log_poles)) < 1).all()
    hankelred_llm.set_systems(model, {0: (log_poles, B, C)})
    np.testing.assert_allclose(hankelred_llm.get_systems(model)[0][0].real, log_poles.real, rtol=1e-5)


def test_a_pole_that_rounds_to_the_circle_is_kept_inside():
    # log|a| = -1e-20 is below 0, and exp of it is 1: an adapter was written that never forgets
    model = adapted(r=4)
    _, B, C = hankelred_llm.get_systems(model)[0]
    hankelred_llm.set_systems(model, {0: (np.full(4, -1e-20, complex), B.real.copy(), C.real.copy())})
    assert (np.abs(np.exp(hankelred_llm.get_systems(model)[0][0])) < 1).all()
