"""What inputs excite, against signals of which the books say it, and relations that were built in."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.signal as ss

import hankelred
from hankelred.identification.excitation import dependence, excited_directions, excited_frequencies


def white(seed, samples=500):
    return np.random.default_rng(seed).standard_normal(samples)


class TestDirections:
    @pytest.mark.parametrize("lines", [1, 2, 3, 4])
    @pytest.mark.parametrize("level", [0.0, 50.0])
    def test_a_sum_of_sines_excites_twice_as_many(self, lines, level):
        # Söderström and Stoica, System Identification, section 5.4; a known level excites one more
        t = np.arange(400)
        u = level + sum(np.sin(0.7 * (k + 1) * t + k) for k in range(lines))
        assert excited_directions([u[None]], 12, offsets=True) == [(2 * lines, 12)]
        assert excited_directions([u[None]], 12, offsets=False) == [(2 * lines + (level > 0), 12)]

    @pytest.mark.parametrize("bits", [3, 4])
    def test_a_periodic_binary_sequence_excites_its_period(self, bits):
        # section 5.4: a maximum-length sequence of period M is persistently exciting of order M
        sequence = np.tile(2.0 * ss.max_len_seq(bits)[0] - 1, 30)
        period = 2**bits - 1
        assert excited_directions([sequence[None]], 20, offsets=False) == [(period, 20)]
        assert excited_directions([sequence[None]], 20, offsets=True) == [(period - 1, 20)]

    def test_noise_excites_all_and_short_records_are_counted_as_far_as_they_go(self):
        assert excited_directions([white(0)[None]], 9, offsets=True) == [(9, 9)]
        assert excited_directions([white(0, 30)[None], white(1, 10)[None]], 40, offsets=False) == [(15, 15)]


class TestFrequencies:
    @pytest.mark.parametrize("samples", [400, 401])
    def test_lines_are_found(self, samples):
        t = np.arange(samples)
        u = 3 + np.sin(0.3 * t) + 1e-4 * np.sin(2 * t + 1) + (-1.0) ** t
        bands = excited_frequencies([white(0, 50)[None], u[None]], 0, offsets=True)
        np.testing.assert_allclose(bands, [(0.3, 0.3), (2, 2), (np.pi, np.pi)], atol=1e-3)
        bands = excited_frequencies([u[None]], 0, offsets=False)
        np.testing.assert_allclose(bands[0], (0, 0))
        assert len(bands) == 4

    def test_bands_are_found(self):
        # by windowed filters with stop bands below the threshold
        taps = ss.firwin(1501, 0.2, window=("kaiser", 25.0))
        u = ss.fftconvolve(white(1, 4000), taps, "valid")
        ((low, high),) = excited_frequencies([u[None]], 0, offsets=True)
        assert low == 0 and high == pytest.approx(0.2 * np.pi, abs=0.03)
        shifted = u * np.exp(1.5j * np.arange(u.size))
        ((low, high),) = excited_frequencies([shifted[None]], 0, offsets=True)
        assert (low, high) == pytest.approx((1.5 - 0.2 * np.pi, 1.5 + 0.2 * np.pi), abs=0.03)

    def test_noise_and_steps_have_power_everywhere(self):
        assert excited_frequencies([white(2)[None]], 0, offsets=True) == []
        assert excited_frequencies([(np.arange(500.0)[None] > 200) * 1.0], 0, offsets=True) == []


class TestDependence:
    def test_a_delayed_copy(self):
        u = white(3)
        relation = dependence([np.stack([u[2:], u[:-2]])], 9, offsets=True)
        assert relation.channels == (0, 1) and relation.rest < 1e-12
        (_, j, k), (factor, other, delay) = relation.terms
        assert {(j, k), (other, delay)} == {(0, 2), (1, 0)} and factor == pytest.approx(-1)

    @pytest.mark.parametrize("seed", range(4))
    def test_a_filter(self, seed):
        # 2 u1(t) - 0.8 u1(t-1) = 3 u0(t) + u0(t-1), in every scale and with levels
        u0 = white(seed, 300)
        u1 = ss.lfilter([3, 1], [2, -0.8], u0)
        inputs = np.stack([1e6 * u0 + 5, white(seed + 10, 300), u1 - 40])
        relation = dependence([inputs[:, 20:160], inputs[:, 160:]], 7, offsets=True)
        assert relation.channels == (0, 2) and relation.rest < 1e-10
        terms = {(j, k): factor for factor, j, k in relation.terms}
        expected = {(0, 0): 3e-6, (0, 1): 1e-6, (2, 0): -2, (2, 1): 0.8}
        assert terms.keys() == expected.keys()
        for place, factor in expected.items():
            assert factor / expected[0, 0] == pytest.approx(terms[place] / terms[0, 0], rel=1e-6)

    def test_the_sum_of_two_others(self):
        u0, u1 = white(4), white(5)
        relation = dependence([np.stack([u0, u1, u0 - u1, white(6)])], 5, offsets=False)
        assert relation.channels == (0, 1, 2) and len(relation.terms) == 3

    def test_a_long_relation_names_the_inputs_only(self):
        u = white(7, 2000)
        echoes = ss.lfilter(np.random.default_rng(8).uniform(1, 2, 8), 1, u)
        relation = dependence([np.stack([u, echoes])[:, 10:]], 21, offsets=True)
        assert relation.channels == (0, 1) and relation.terms == ()

    def test_independent_inputs(self):
        t = np.arange(400)
        steps = np.stack([t > 50, t > 210]) * 1.0
        slow = np.stack([ss.lfilter([1], [1, -0.99], white(s, 400)) for s in (9, 10)])
        switched = np.repeat(np.sign([white(s, 40) for s in (11, 12)]), 10, axis=1)
        correlated = np.stack([white(13), white(13) + 0.05 * white(14)])
        short = np.stack([white(s, 60) for s in (15, 16, 17)])
        for inputs in (steps, 1e5 + steps, slow, switched, correlated, short, white(18)[None]):
            assert dependence([inputs], 41, offsets=True) is None


class TestWarnings:
    """A record is no better than its inputs, and a fit of 98 % does not show it."""

    def process(self, *inputs):
        u = np.stack(inputs)
        y = sum(ss.lfilter([0, 1, 0.2 * j], [1, -1.2, 0.5], one) for j, one in enumerate(u))
        return u, y + 0.05 * white(99, y.size)

    def test_two_sines_do_not_excite_order_four(self):
        t = np.arange(500)
        u, y = self.process(np.sin(0.3 * t) + np.sin(0.9 * t + 1))
        with pytest.warns(
            hankelred.ReductionWarning,
            match=r"input 0 excites only 4 of the 9 directions .*, its power is at 0\.3, 0\.9 radians per "
            "sample: .*; it determines order 1",
        ) as caught:
            hankelred.identify(u, y, 4)
        assert {warning.filename for warning in caught} == {__file__}
        with pytest.warns(hankelred.ReductionWarning, match="its power is at 3, 9 rad/s"):
            hankelred.identify(u, y, 4, dt=0.1)

    def test_inputs_that_depend_on_each_other(self):
        u = white(20)
        late = np.append(0, u[:-1])
        with pytest.warns(
            hankelred.ReductionWarning,
            match=r"input 0 and input 1 depend on each other \(.*t-1.* constant",
        ) as caught:
            hankelred.identify(*self.process(u, late), 2)
        assert {warning.filename for warning in caught} == {__file__}
        with pytest.warns(hankelred.ReductionWarning, match="is zero to within"):
            hankelred.identify(*self.process(u, late), 2, offsets=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hankelred.identify(*self.process(u, white(21)), 2)
