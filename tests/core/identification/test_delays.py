"""Delays of inputs: a state for each sample, whose parameters are not estimated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

import hankelred
from hankelred.identification.delays import likely_delays, shifted_records, with_delay_states
from hankelred.identification.linear_fit import FittedModel, residuals


def record(seed, delays, *, samples=400, noise=0.1, p=1):
    """Outputs of second-order processes of inputs that come later by their delays, by scipy's filter."""
    rng = np.random.default_rng(seed)
    u = np.repeat(rng.choice([-1.0, 1.0], (len(delays), samples // 3 + 1)), 3, axis=1)[:, :samples]
    y = np.zeros((p, samples))
    for i in range(p):
        for j, d in enumerate(delays):
            late = np.concatenate([np.zeros(d), u[j]])[:samples]
            y[i] += lfilter([0.0, 0.5 + j, 0.2 * (i + 1)], [1.0, -1.5, 0.7], late)
    return u, y + noise * rng.standard_normal(y.shape)


class TestLikelyDelays:
    @pytest.mark.parametrize("delays", [(5,), (2, 4), (0, 3)])
    def test_they_are_found(self, delays):
        u, y = record(0, delays, samples=600)
        assert likely_delays([u], [y]) == delays

    def test_a_smooth_response_without_delay_is_not_taken_for_one(self):
        for seed in range(10):
            u, y = record(seed, (0,))
            assert likely_delays([u], [y]) == (0,)

    def test_short_records_have_none(self):
        u, y = record(0, (4,), samples=30)
        assert likely_delays([u], [y]) == (0,)

    @pytest.mark.parametrize(("samples", "delay"), [(20, 3), (7, 0)])
    def test_many_short_records(self, samples, delay):
        """There were as many lags as samples of the longest record: IndexError, as no equation was left."""
        records = [record(seed, (3,), samples=samples) for seed in range(30)]
        assert likely_delays([u for u, _ in records], [y for _, y in records]) == (delay,)


class TestDelayStates:
    @pytest.mark.parametrize("delays", [(3,), (2, 4), (4, 4), (0, 3), (3, 0, 1)])
    @pytest.mark.parametrize("p", [1, 2, 3])
    def test_the_model_of_the_inputs_has_the_outputs_of_the_later_inputs(self, delays, p):
        """With a single output, a delay of each of two inputs once made a model that was not minimal."""
        rng = np.random.default_rng(1)
        n, m = 3, len(delays)
        A = np.diag([0.9, 0.5, -0.4])
        model = FittedModel(
            A,
            rng.standard_normal((n, m)),
            rng.standard_normal((p, n)),
            rng.standard_normal((p, m)),
            (),
            np.zeros(p),
        )
        u = rng.standard_normal((m, 60))
        y = np.zeros((p, 60))
        x = np.zeros(n)
        for t in range(60):
            late = np.array([u[j, t - d] if t >= d else 0.0 for j, d in enumerate(delays)])
            y[:, t] = model.C @ x + model.D @ late
            x = A @ x + model.B @ late
        found = with_delay_states(model, delays, [u], [y])
        assert np.abs(residuals(found, [u], [y])[0]).max() < 1e-9
        blocks = [found.C @ np.linalg.matrix_power(found.A, k) for k in range(found.order)]
        assert np.linalg.matrix_rank(np.concatenate(blocks)) == found.order

    def test_records_are_shifted(self):
        us, ys = shifted_records([np.arange(20.0).reshape(2, 10)], [np.arange(10.0)[None]], (1, 3))
        assert us[0].tolist() == [[2, 3, 4, 5, 6, 7, 8], [10, 11, 12, 13, 14, 15, 16]]
        assert ys[0].tolist() == [[3, 4, 5, 6, 7, 8, 9]]


class TestIdentify:
    def test_a_delay_costs_no_parameters(self):
        u, y = record(2, (5,), samples=150, noise=0.5)
        model = hankelred.identify(u, y)
        assert model.input_delays == (5,)
        assert model.order == 7
        poles, errors = model.pole_errors()
        assert poles.size == errors.size == 7
        roots = np.roots([1.0, -1.5, 0.7])
        for root in roots:
            k = int(np.argmin(np.abs(poles - root)))
            assert abs(poles[k] - root) < 4 * errors[k]
        s = model.system
        response = [(s.C @ np.linalg.matrix_power(s.A, k) @ s.B).item() for k in range(40)]
        pulse = np.concatenate([[1.0], np.zeros(40)])
        expected = lfilter([0.0] * 6 + [0.5, 0.2], [1.0, -1.5, 0.7], pulse)[1:]
        assert np.linalg.norm(response - expected) < 0.1 * np.linalg.norm(expected)
        assert np.abs(response[:4]).max() < 1e-12

    def test_bridged_gaps_leave_them(self):
        """The order was given when the model was estimated again, and delays were not looked for."""
        u, y = record(2, (5,), samples=150, noise=0.5)
        y[0, [40, 80, 81]] = np.nan
        with pytest.warns(hankelred.ReductionWarning, match="3 missing value"):
            model = hankelred.identify(u, y, missing="bridge")
        assert model.input_delays == (5,)

    def test_with_an_order_given_they_are_not_looked_for(self):
        u, y = record(2, (5,), samples=200)
        assert hankelred.identify(u, y, 7).input_delays == (0,)
