"""Warnings of responses that the inputs of a record do not determine, and relations between inputs."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import scipy.signal as ss
from scipy.optimize import curve_fit

import hankelred
from hankelred.identification.diagnostics.input_dependence import dependence
from hankelred.identification.diagnostics.uncertainty import Information


def white(seed, samples=500):
    return np.random.default_rng(seed).standard_normal(samples)


def terms_of(relation):
    return {(j, k): factor for factor, j, k in relation.terms}


class TestRelations:
    def test_a_delayed_copy(self):
        u = white(3)
        relation = dependence([np.stack([u[2:], u[:-2]])], 5, offsets=True)
        assert relation.channels == (0, 1)
        terms = terms_of(relation)
        assert terms.keys() == {(0, 2), (1, 0)} and terms[0, 2] / terms[1, 0] == pytest.approx(-1)
        assert dependence([np.stack([u[2:], u[:-2]])], 2, offsets=True) is None

    def test_a_delayed_copy_of_a_slow_input(self):
        # shorter relations hold almost: a slow input is nearly a sum of its own delayed copies
        u = ss.lfilter([1], [1, -1.98, 0.9805], white(4))
        relation = dependence([np.stack([u[3:], u[:-3]])], 5, offsets=True)
        assert terms_of(relation).keys() == {(0, 3), (1, 0)}

    def test_an_input_and_its_difference(self):
        # the second is a thousandth of the first
        position = ss.lfilter(*ss.butter(2, 0.0004), np.repeat(white(5, 8), 2500))
        relation = dependence([np.stack([position[1:], np.diff(position)])], 3, offsets=True)
        terms = terms_of(relation)
        assert relation.channels == (0, 1) and terms.keys() == {(0, 0), (0, 1), (1, 0)}
        assert terms[0, 0] / terms[0, 1] == pytest.approx(-1) and terms[1, 0] / terms[0, 0] == pytest.approx(
            -1
        )

    @pytest.mark.parametrize("seed", range(4))
    def test_a_filter(self, seed):
        # 2 u1(t) - 0.8 u1(t-1) = 3 u0(t) + u0(t-1), in other units and with levels
        u0 = white(seed, 300)
        u1 = ss.lfilter([3, 1], [2, -0.8], u0)
        inputs = np.stack([1e6 * u0 + 5, white(seed + 10, 300), u1 - 40])
        relation = dependence([inputs[:, 20:160], inputs[:, 160:]], 4, offsets=True)
        assert relation.channels == (0, 2)
        terms = terms_of(relation)
        expected = {(0, 0): 3e-6, (0, 1): 1e-6, (2, 0): -2, (2, 1): 0.8}
        assert terms.keys() == expected.keys()
        for place, factor in expected.items():
            assert factor / expected[0, 0] == pytest.approx(terms[place] / terms[0, 0], rel=1e-6)

    def test_the_sum_of_two_others(self):
        u0, u1 = white(4), white(5)
        relation = dependence([np.stack([u0, u1, u0 - u1, white(6)])], 5, offsets=False)
        assert relation.channels == (0, 1, 2) and len(relation.terms) == 3

    def test_many_short_records(self):
        u = white(7, 600)
        records = [np.stack([u[i + 4 : i + 24], u[i : i + 20]]) for i in range(0, 570, 20)]
        assert terms_of(dependence(records, 9, offsets=True)).keys() == {(0, 4), (1, 0)}

    def test_one_input_at_a_time(self):
        still = np.zeros(60)
        records = [np.stack([white(8, 60), still]), np.stack([still, white(9, 60)])]
        assert dependence(records, 9, offsets=True) is None

    def test_independent_inputs(self):
        t = np.arange(400)
        steps = np.stack([t > 50, t > 210]) * 1.0
        slow = np.stack([ss.lfilter([1], [1, -0.99], white(s, 400)) for s in (9, 10)])
        switched = np.repeat(np.sign([white(s, 40) for s in (11, 12)]), 10, axis=1)
        drift = np.stack([t + white(13, 400), t + white(14, 400)])
        short = np.stack([white(s, 60) for s in (15, 16, 17)])
        for inputs in (steps, 1e5 + steps, slow, switched, drift, short, white(18)[None]):
            assert dependence([inputs], 21, offsets=True) is None

    @pytest.mark.parametrize("samples", [1, 2, 5])
    def test_records_too_short_to_tell(self, samples):
        assert dependence([np.stack([white(1, samples), white(2, samples)])], 5, offsets=False) is None


A = np.array([[0.8, 0.2, 0.0], [-0.2, 0.7, 0.1], [0.0, 0.0, 0.5]])
B = np.array([[1.0, 0.5], [0.0, 1.0], [0.3, -0.4]])
C = np.array([[1.0, 0.3, 0.2], [0.0, 1.0, -0.5]])


def process(inputs, outputs=1, noise=0.02):
    u = np.stack(inputs)
    y = hankelred.simulate((A, B[:, : len(u)], C[:outputs], 0), u, dt=True)
    return u, y + noise * y.std(axis=1, keepdims=True) * np.random.default_rng(77).standard_normal(y.shape)


def warned(inputs, order, outputs=1, noise=0.02, **options):
    """Return the warnings of undetermined responses, and the model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = hankelred.identify(*process(inputs, outputs, noise), order, **options)
    return [w for w in caught if "does not determine" in str(w.message)], model


def share_of_error(model, omega):
    """Return the error of the response relative to the true one."""
    z = np.exp(1j * omega)
    inputs = B[:, : model.system.B.shape[1]]
    true = np.stack([C[:1] @ np.linalg.solve(point * np.eye(3) - A, inputs) for point in z], axis=2)
    return np.abs(model.response_errors(omega)[0] - true) / np.abs(true)


T = np.arange(500)
TWO_SINES = np.sin(0.3 * T) + np.sin(0.9 * T + 1)


class TestWarnings:
    """Stories: a record whose second input was a delayed copy of the first was fitted with 98 % and nothing
    was said. The standard errors of what it does not determine were those of a pseudoinverse, 6 to 20 times
    too small. A count of independent delayed inputs warned of records that determine everything, and not of
    rounded sines, whose rounding was taken for excitation."""

    @pytest.mark.parametrize("decimals", [None, 5, 3])
    def test_two_sines_do_not_determine_order_four(self, decimals):
        u = TWO_SINES if decimals is None else np.round(TWO_SINES, decimals)
        (warning,), model = warned([u], 4)
        assert warning.filename == __file__
        frequencies = r"(all 61 frequencies tested|[\d., to]+ radians per sample)"
        assert re.search(
            f"from input 0 to output 0: at {frequencies} two standard errors are larger than it",
            str(warning.message),
        )
        assert share_of_error(model, np.geomspace(0.01, np.pi, 50)).max() > 0.5
        assert share_of_error(model, np.array([0.3, 0.9])).max() < 0.1
        assert warned([u], 2)[0] == []

    def test_frequencies_are_in_the_units_of_the_record(self):
        first, last = (
            [float(x) for x in re.search(rf"at ([\d.]+) to ([\d.]+) {unit}", message).groups()]
            for unit, message in (
                (unit, str(warned([np.round(TWO_SINES, 5)], 4, dt=dt)[0][0].message))
                for unit, dt in (("radians per sample", True), ("rad/s", 0.1))
            )
        )
        assert np.allclose(last, np.multiply(10, first), rtol=0.01)

    @pytest.mark.parametrize(
        ("second", "written"),
        [
            (lambda u: np.append(0, u[:-1]), "input 1[t] - input 0[t-1] is constant"),
            (
                lambda u: ss.lfilter([1], [1, -0.5], u),
                r"input 1[t] - input 0[t] - 0.5 input 1[t-1] is constant",
            ),
        ],
    )
    def test_inputs_that_depend_on_each_other(self, second, written):
        u = white(20)
        (warning,), _ = warned([u, second(u)], 3)
        assert "(1 other response is not determined either)" in str(warning.message)
        assert f"since input 0 and input 1 depend on each other ({written}, with t in" in str(warning.message)

    def test_the_band_of_an_infinite_error_fills_the_plot(self):
        """Infinite errors had no band at all, as if the response were certain."""
        u = white(20)
        _, model = warned([u, np.append(0, u[:-1])], 3)
        assert np.isinf(model.response_errors([0.1, 1.0])[1]).all()
        axis = model.plot_response()[0, 1]
        omega, gain = axis.lines[0].get_data()
        edges = axis.collections[0].get_paths()[0].vertices
        assert edges[:, 0].min() == omega[0] and edges[:, 0].max() == omega[-1]
        assert edges[:, 1].max() > 20 * gain.max() and edges[:, 1].min() < gain.min() / 20

    def test_inputs_that_are_nearly_the_same(self):
        u = white(20)
        (warning,), model = warned([u, u + 1e-3 * white(21)], 3)
        assert "depend on each other" not in str(warning.message)
        assert share_of_error(model, np.array([0.1, 1.0])).max() > 0.5

    @pytest.mark.parametrize(
        "inputs",
        [
            [white(22)],
            [white(22), white(23)],
            [white(22), np.append(np.zeros(6), white(22)[:-6])],  # a delay longer than the model's
            [sum(np.sin(w * T) for w in (0.3, 0.9, 1.7)), sum(np.sin(w * T) for w in (0.5, 1.2, 2.2))],
            [np.repeat(np.sign(white(24, 100)), 5)],
            [ss.lfilter(*ss.butter(4, 0.1), white(25))],
        ],
        ids=["white", "two", "late", "sines", "switched", "slow"],
    )
    @pytest.mark.parametrize("noise", [0.0, 0.02])
    def test_records_that_determine_the_model(self, inputs, noise):
        none, model = warned(inputs, 3, noise=noise)
        assert none == []
        assert share_of_error(model, np.array([0.1, 0.3, 1.0])).max() < 0.15

    def test_two_outputs_determine_more(self):
        # two sines give four numbers for each output, and a model of order two has eight
        assert warned([TWO_SINES], 2, outputs=2)[0] == []

    def test_responses_that_are_zero_are_determined(self):
        """Compared with themselves alone they never were: two standard errors are larger than zero."""
        model = (np.diag([0.8, 0.6]), np.eye(2), np.eye(2), 0)
        u = np.stack([white(26), white(27)])
        for noise in (0.0, 0.02):
            y = hankelred.simulate(model, u, dt=True) + noise * np.stack([white(28), white(29)])
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                hankelred.identify(u, y, 2)

    def test_an_integrator_does_not_hide_other_frequencies(self):
        # compared with the peak, which is infinite, everything but the lowest frequencies seemed determined
        u = np.stack([white(30), white(30) + 0.01 * white(31)])
        integrator = (np.diag([1.0, 0.5]), [[1, 0.5], [0.3, 1]], [[1, 1]], 0)
        y = hankelred.simulate(integrator, u, dt=True)
        y = y + 0.02 * y.std() * white(32)
        for stable in (True, False):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = hankelred.identify(u, y, 2, stable=stable)
            (text,) = [str(w.message) for w in caught if "does not determine" in str(w.message)]
            assert float(re.search(r"([\d.]+) radians", text)[1]) > 2
            assert np.all(np.isfinite(model.pole_errors()[1]))

    def test_of_several_relations_one_is_told_that_holds(self):
        a, b = white(33), white(34)
        late = (np.append(0, a[:-1]), np.append([0, 0], a[:-2]))
        u = np.stack([a, *late])
        with pytest.warns(hankelred.ReductionWarning, match=r"input 1\[t\] - input 0\[t-1\] is constant"):
            hankelred.identify(u, ss.lfilter([0, 1], [1, -0.8], u.sum(axis=0)) + 0.05 * b, 2)

    def test_a_relation_between_other_inputs_is_no_reason(self):
        a = white(35)
        u = np.stack([np.sin(0.3 * T), a, np.append(0, a[:-1])])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hankelred.identify(u, ss.lfilter([0, 1], [1, -1.2, 0.5], u.sum(axis=0)) + 0.05 * white(36), 3)
        (text,) = [str(w.message) for w in caught if "does not determine" in str(w.message)]
        assert ("from input 0" in text) != ("input 1 and input 2 depend on each other" in text)


class TestAgainstCurveFit:
    """scipy.optimize.curve_fit knows no state space: it fits the coefficients of a transfer function."""

    @pytest.mark.parametrize(
        "u", [white(37), np.repeat(np.sign(white(41, 100)), 5)], ids=["white", "switched"]
    )
    def test_standard_errors_of_the_response(self, u):
        b, a = [0, 1, 0.5], [1, -1.2, 0.5]
        y = ss.lfilter(b, a, u) + 0.2 * white(38)
        model = hankelred.identify(u, y, 2)
        direct = bool(np.any(model.system.D))

        def simulated(_, *parameters):
            b0, b1, b2, a1, a2, z1, z2, level = parameters if direct else (0.0, *parameters)
            return ss.lfilter([b0, b1, b2], [1, a1, a2], u, zi=[z1, z2])[0] + level

        start = [0.0] * direct + [1, 0.5, -1.2, 0.5, 0, 0, 0]
        best, covariance = curve_fit(simulated, np.arange(u.size), y, start)
        b, (a1, a2) = best[: 2 + direct], best[2 + direct : 4 + direct]
        omega = np.array([0.05, 0.3, 0.9, 2.0, 3.0])
        response, errors = model._response_errors(omega, white=True)
        for k, z in enumerate(np.exp(-1j * omega)):
            powers = [z**d for d in range(not direct, 3)]
            denominator = 1 + a1 * z + a2 * z**2
            G = b @ powers / denominator
            assert abs(response[0, 0, k] - G) < 0.5 * errors[0, 0, k]
            slopes = np.array([*powers, -G * z, -G * z**2]) / denominator
            variance = (slopes.conj() @ covariance[: slopes.size, : slopes.size] @ slopes).real
            assert errors[0, 0, k] == pytest.approx(np.sqrt(variance), rel=0.05)

    def test_a_delayed_copy_determines_order_one(self):
        first = white(39)
        second = np.append(0, first[:-1])
        y = ss.lfilter([0, 1], [1, -0.8], first) + ss.lfilter([0, 0.5], [1, -0.8], second) + 0.1 * white(40)

        def simulated(_, b, c, a, level):
            return ss.lfilter([0, b], [1, a], first) + ss.lfilter([0, c], [1, a], second) + level

        # with one pole, two gains of inputs that are the same but for the delay are determined
        _, covariance = curve_fit(simulated, np.arange(500), y, [1, 0.5, -0.8, 0])
        assert np.isfinite(covariance).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hankelred.identify(np.stack([first, second]), y, 1)


def test_information_about_directions_that_are_not_determined():
    rng = np.random.default_rng(0)
    J = rng.standard_normal((50, 4)) * [1, 1e3, 1e-3, 1]
    known = Information.of([J[:20], J[20:23], J[23:]])
    np.testing.assert_allclose(known.covariance(np.eye(4)), np.linalg.inv(J.T @ J), rtol=1e-8)
    np.testing.assert_allclose((J @ known.known).T @ (J @ known.known), np.eye(4), atol=1e-12)
    assert known.determines(np.eye(4)).all() and known.determines(np.eye(4)[:, :2]).all()
    # with a fifth parameter whose effect is that of the first two
    J = np.column_stack([J, 1e6 * (J[:, 0] - J[:, 1])])
    information = Information.of([J])
    np.testing.assert_array_equal(information.determines(np.eye(5)), [False, False, True, True, False])
    # the sum of their effects is
    assert information.determines(np.array([[1, 0, 0, 0, 1e6], [0, 1, 0, 0, -1e6]])).all()
    covariance = information.covariance(np.eye(4))
    np.testing.assert_allclose(covariance[2:4, 2:4], np.linalg.inv(J[:, :4].T @ J[:, :4])[2:, 2:], rtol=1e-6)
    # a parameter without any effect, and nearly one with that of another
    noise = rng.standard_normal(50)
    J = np.column_stack([J[:, :2], 0 * J[:, 0], J[:, 0] + 1e-7 * noise])
    information = Information.of([J])
    np.testing.assert_array_equal(information.determines(10 * np.eye(4)), [True, True, False, True])
    rest = np.linalg.lstsq(J[:, :2], noise)[1][0]
    assert information.covariance(np.eye(3))[3, 3] == pytest.approx(1e14 / rest, rel=1e-6)
