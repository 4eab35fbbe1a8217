"""Models fitted to frequency responses, against closed forms, exact responses and published models."""

from __future__ import annotations

import math
import warnings

import control
import numpy as np
import pytest
import scipy.linalg as sla
from helpers.data import slicot_model
from helpers.sweeps import sweep

import hankelred
from hankelred.cli.main import cli
from hankelred.identification.frequency_fit.response_data import read_response
from hankelred.identification.frequency_fit.sections import Sections, sections_of


def response(system, points):
    """Return C (s - A)^-1 B + D at each point, (p, m, N), one solve after the other."""
    A, B, C, D = (np.atleast_2d(M) for M in system)
    if len(A) > 100:  # by eigenvectors, whose condition number is 61 for the one such model here
        poles, V = np.linalg.eig(A)
        B, C = np.linalg.solve(V, B), C @ V
        return np.stack([(C / (s - poles)) @ B + D for s in points], axis=-1)
    eye = np.eye(len(A))
    return np.stack([C @ np.linalg.solve(s * eye - A, B) + D for s in points], axis=-1)


def resonant(n, p=1, m=1, seed=0, damping=(0.02, 0.05)):
    """A chain of resonances between 1 and 100 rad/s, one mode each, with a direct term."""
    rng = np.random.default_rng(seed)
    w = np.geomspace(1.5, 70, n // 2)
    blocks = [[[0, a], [-a, -2 * z * a]] for a, z in zip(w, rng.uniform(*damping, n // 2), strict=True)]
    blocks += [[[-3.0]]] * (n % 2)
    return (
        sla.block_diag(*blocks),
        rng.standard_normal((n, m)),
        rng.standard_normal((p, n)),
        rng.standard_normal((p, m)),
    )


def noisy(values, size, rng):
    error = rng.standard_normal(values.shape) + 1j * rng.standard_normal(values.shape)
    return values + size * np.abs(values) * error / math.sqrt(2)


def relative_error(model, system, points):
    exact = response(system, points)
    s = model.system
    return np.linalg.norm(response((s.A, s.B, s.C, s.D), points) - exact) / np.linalg.norm(exact)


def poles_match(found, expected, tolerance):
    found = np.asarray(found)
    return found.size == expected.size and all(
        np.abs(found - pole).min() <= tolerance * abs(pole) for pole in expected
    )


OMEGA = np.geomspace(0.5, 200, 200)


class TestExactResponses:
    @pytest.mark.parametrize(("p", "m"), [(1, 1), (3, 1), (1, 2), (2, 2), (2, 3)])
    @pytest.mark.parametrize("order", [1, 4, 7])
    def test_a_noise_free_response_gives_its_model(self, order, p, m):
        system = resonant(order, p, m, seed=order)
        model = hankelred.fit_frequency_response(response(system, 1j * OMEGA), order, omega=OMEGA)
        fine = 1j * np.geomspace(0.3, 300, 701)
        assert relative_error(model, system, fine) < 1e-11
        assert poles_match(model.system.poles(), np.linalg.eigvals(system[0]), 1e-9)
        assert model.order == order and model.system.dt == 0
        assert model.fit.shape == (p,) and np.all(model.fit > 1 - 1e-11)

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
    def test_the_order_is_found(self, shape):
        system = resonant(6, *shape, seed=2)
        model = hankelred.fit_frequency_response(response(system, 1j * OMEGA), omega=OMEGA)
        assert model.order == 6
        assert relative_error(model, system, 1j * OMEGA) < 1e-11

    @pytest.mark.parametrize("dt", [True, 0.05])
    def test_discrete_time_to_the_nyquist_frequency(self, dt):
        step = 1.0 if dt is True else dt
        poles = np.array([0.9 * np.exp(0.7j), 0.9 * np.exp(-0.7j), -0.5])
        system = np.diag(poles), np.ones((3, 1)), np.array([[1 - 1j, 1 + 1j, 0.5]]), np.array([[0.2]])
        omega = np.linspace(0, math.pi / step, 60)
        values = response(system, np.exp(1j * omega * step))
        model = hankelred.fit_frequency_response(values, 3, omega=omega, dt=dt)
        assert model.system.dt == dt
        assert relative_error(model, system, np.exp(1j * np.linspace(0, math.pi, 333))) < 1e-11
        assert poles_match(model.system.poles(), poles, 1e-9)

    def test_real_double_poles(self):
        """A double pole has no basis of eigenvectors; the sections pass through it without a jump."""
        omega = np.geomspace(0.01, 100, 100)
        s = 1j * omega
        model = hankelred.fit_frequency_response(1 / (s + 1) ** 2, 2, omega=omega)
        found = response((model.system.A, model.system.B, model.system.C, model.system.D), s)
        assert np.abs(found[0, 0] - 1 / (s + 1) ** 2).max() < 1e-11

    def test_units_do_not_matter(self):
        system = resonant(5, 2, 2)
        values = response(system, 1j * OMEGA)
        for gain, frequency in ((1e-40, 1.0), (1e40, 1e9), (1.0, 1e-9)):
            model = hankelred.fit_frequency_response(values * gain, 5, omega=OMEGA * frequency)
            assert np.all(model.fit > 1 - 1e-11)
            assert poles_match(model.system.poles() / frequency, np.linalg.eigvals(system[0]), 1e-9)

    def test_an_output_in_small_units_is_fitted_as_well(self):
        system = resonant(4, 2, 1)
        rng = np.random.default_rng(0)
        values = noisy(response(system, 1j * OMEGA), 1e-3, rng) * np.array([1.0, 1e-9])[:, None, None]
        model = hankelred.fit_frequency_response(values, 4, omega=OMEGA)
        assert np.all(model.fit > 1 - 2e-3)

    @pytest.mark.slow
    def test_build(self):
        system, _ = slicot_model("build")
        omega = np.geomspace(1, 200, 400)
        model = hankelred.fit_frequency_response(response(system, 1j * omega), 48, omega=omega)
        assert relative_error(model, system, 1j * np.geomspace(1, 200, 3001)) <= 1e-12


class TestNoise:
    @pytest.mark.slow
    def test_build(self):
        system, _ = slicot_model("build")
        omega = np.geomspace(1, 200, 400)
        values = noisy(response(system, 1j * omega), 1e-3, np.random.default_rng(0))
        # all 48 states exist; that the weakest of them are below the noise is no reason for a warning
        model = hankelred.fit_frequency_response(values, 48, omega=omega)
        assert model.system.poles().real.max() < 0
        assert relative_error(model, system, 1j * np.geomspace(1, 200, 3001)) <= 1.2e-3

    @pytest.mark.slow
    def test_a_resonant_model_of_40_states(self):
        system = resonant(40)
        omega = np.geomspace(1, 100, 400)
        values = noisy(response(system, 1j * omega), 1e-3, np.random.default_rng(0))
        model = hankelred.fit_frequency_response(values, 40, omega=omega)
        assert model.system.poles().real.max() < 0
        assert relative_error(model, system, 1j * np.geomspace(1, 100, 3001)) <= 1.2e-3

    @pytest.mark.slow
    @pytest.mark.xslow
    def test_a_space_station_with_three_inputs_and_outputs(self):
        """The 60 states are as good as those of a balanced truncation of the true model, to a quarter."""
        system, _ = slicot_model("iss")
        omega, fine = np.geomspace(0.1, 100, 400), 1j * np.geomspace(0.1, 100, 3001)
        model = hankelred.fit_frequency_response(response(system, 1j * omega), 60, omega=omega)
        error = relative_error(model, system, fine)
        reduced = hankelred.reduce(system, 60).system
        exact = response(system, fine)
        assert error <= 1e-3
        assert error <= 1.25 * np.linalg.norm(response(reduced, fine) - exact) / np.linalg.norm(exact)

    @pytest.mark.slow
    @pytest.mark.parametrize("additive", [False, True])
    def test_the_error_is_that_of_the_best_estimate(self, additive):
        """With the right weights the error of n parameters is sqrt(n / N) of that of N values."""
        system = resonant(6, seed=4)
        rng = np.random.default_rng(1)
        exact = response(system, 1j * OMEGA)
        errors = []
        for _ in range(4):
            values = (
                noisy(exact, 1e-2, rng) if not additive else exact + noisy(np.ones_like(exact), 1e-2, rng) - 1
            )
            model = hankelred.fit_frequency_response(values, 6, omega=OMEGA)
            s = model.system
            difference = response((s.A, s.B, s.C, s.D), 1j * OMEGA) - exact
            scale = 1 if additive else np.abs(exact)
            errors.append(np.mean(np.abs(difference / scale) ** 2))
        # 13 real parameters, 400 real values
        assert math.sqrt(np.mean(errors)) < 1.5 * 1e-2 * math.sqrt(13 / 400)

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", sweep(range(3), first=1))
    def test_the_order_is_found_in_noise(self, seed):
        system = resonant(6, seed=seed)
        values = noisy(response(system, 1j * OMEGA), 1e-3, np.random.default_rng(seed))
        model = hankelred.fit_frequency_response(values, omega=OMEGA)
        assert 6 <= model.order <= 8
        assert relative_error(model, system, 1j * np.geomspace(0.5, 200, 999)) < 1e-3


class TestStability:
    def test_an_unstable_response_is_fitted_by_a_stable_model_with_a_warning(self):
        s = 1j * OMEGA
        values = 1 / (s - 2) + 1 / (s + 5)
        with pytest.warns(hankelred.ReductionWarning, match="stable=False"):
            stable = hankelred.fit_frequency_response(values, 2, omega=OMEGA)
        assert stable.system.poles().real.max() < 0
        free = hankelred.fit_frequency_response(values, 2, omega=OMEGA, stable=False)
        assert np.allclose(np.sort(free.system.poles().real), [-5, 2], rtol=1e-9)
        assert free.unstable_order == 1

    @pytest.mark.slow
    def test_noise_gives_no_unstable_pole(self):
        rng = np.random.default_rng(3)
        for seed in range(3):
            system = resonant(10, seed=seed)
            values = noisy(response(system, 1j * OMEGA), 0.05, rng)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", hankelred.ReductionWarning)
                model = hankelred.fit_frequency_response(values, 24, omega=OMEGA)
            assert model.system.poles().real.max() < 0

    @pytest.mark.slow
    def test_no_resonance_between_the_frequencies(self):
        """Least squares alone once put a peak of 1.4 times the response between two noisy values."""
        system = resonant(12, seed=1)
        values = noisy(response(system, 1j * OMEGA), 1e-2, np.random.default_rng(5))
        with pytest.warns(hankelred.ReductionWarning, match=r"only 1[0-4] of the 30 states"):
            model = hankelred.fit_frequency_response(values, 30, omega=OMEGA)
        assert relative_error(model, system, 1j * np.geomspace(0.5, 200, 8001)) < 0.05


class TestResult:
    def test_names_and_timebase_of_frequency_response_data(self):
        system = resonant(4, 2, 1)
        data = control.frd(
            response(system, 1j * OMEGA), OMEGA, inputs=["force"], outputs=["position", "speed"], smooth=False
        )
        model = hankelred.fit_frequency_response(data, 4)
        assert model.system.input_labels == ["force"]
        assert model.system.output_labels == ["position", "speed"]
        w = np.array([0.1, 0.2, 0.4, 0.8, 1.6])
        discrete = control.frd(1 / (np.exp(0.5j * w) - 0.7), w, dt=0.5)
        assert hankelred.fit_frequency_response(discrete, 1).system.dt == 0.5
        with pytest.raises(hankelred.HankelredError, match="disagrees"):
            hankelred.fit_frequency_response(discrete, 1, dt=0.25)

    def test_singular_values_and_other_orders(self):
        system = resonant(6, 2, 2, seed=3)
        model = hankelred.fit_frequency_response(response(system, 1j * OMEGA), 6, omega=OMEGA)
        exact = hankelred.hankel_singular_values(system)
        assert np.allclose(model.hankel_singular_values[:6], exact, rtol=1e-8)
        assert model.error_bound == np.inf
        assert model.error() < 1e-8 * exact[0]
        smaller = model.at(4)
        assert smaller.order == 4
        direct = hankelred.fit_frequency_response(response(system, 1j * OMEGA), 4, omega=OMEGA)
        assert np.allclose(smaller.fit, direct.fit, rtol=1e-6)
        assert smaller.residual == pytest.approx(direct.residual, rel=1e-6)

    def test_an_order_that_the_response_does_not_have(self):
        """Order 80 of a system of 6 states once ended in an error instead of its 6 states."""
        values = response(resonant(6, 2, 2, seed=2), 1j * OMEGA)
        with pytest.warns(hankelred.ReductionWarning, match="determines only"):
            model = hankelred.fit_frequency_response(values, 60, omega=OMEGA)
        assert model.system.nstates == model.order < 60
        assert np.all(model.fit > 1 - 1e-9)

    @pytest.mark.parametrize("noise", [0.0, 1e-3, 1e-2])
    @pytest.mark.parametrize("shape", [(1, 1), (2, 2)])
    def test_states_that_the_response_does_not_determine(self, shape, noise):
        """Of 6 states, order 8 had a noise floor of 5e-14 instead of 4e-2, without a warning."""
        values = noisy(response(resonant(6, *shape, seed=2), 1j * OMEGA), noise, np.random.default_rng(0))
        with pytest.warns(hankelred.ReductionWarning, match=r"only 6 of the 8 states.*compare with order=6"):
            hankelred.fit_frequency_response(values, 8, omega=OMEGA)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hankelred.fit_frequency_response(values, 6, omega=OMEGA)
            hankelred.fit_frequency_response(values, 4, omega=OMEGA)  # too small, not too large

    @pytest.mark.parametrize("seed", range(4))
    def test_a_chosen_order_has_no_states_that_follow_the_noise(self, seed):
        """Held-out frequencies chose 13 states for seed 3, with a noise floor of 1e-14, and 5 for seed 0."""
        omega = np.geomspace(0.1, 10, 60)
        values = 1 / ((1j * omega) ** 2 + 0.2j * omega + 1)
        model = hankelred.fit_frequency_response(
            noisy(values[None, None], 1e-3, np.random.default_rng(seed)), omega=omega
        )
        assert model.order == 2 and model.noise_floor > 1e-4

    def test_an_output_that_is_zero(self):
        """Its weights of 1e154 overflowed where the states that the data determine are counted."""
        values = np.concatenate([0 * response(resonant(2), 1j * OMEGA), response(resonant(2), 1j * OMEGA)])
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            with pytest.warns(hankelred.ReductionWarning, match="next to nothing of output 0"):
                model = hankelred.fit_frequency_response(values, 2, omega=OMEGA)
        assert model.fit[1] > 1 - 1e-9 and np.all(model.system.C[0] == 0)

    def test_plot(self):
        system = resonant(4)
        values = response(system, 1j * OMEGA)
        ax = hankelred.fit_frequency_response(values, 4, omega=OMEGA).plot()
        data, curve, _ = ax.lines
        assert np.allclose(data.get_ydata(), np.abs(values[0, 0]))
        x = np.asarray(curve.get_xdata())
        assert np.allclose(curve.get_ydata(), np.abs(response(system, 1j * x)[0, 0]), rtol=1e-9)
        assert ax.get_xlabel() == "angular frequency (rad/s)"
        assert ax.get_ylabel() == "gain"

    def test_plot_of_several_channels_in_discrete_time(self):
        omega = np.linspace(0.1, 3, 50)
        values = response(resonant(2, 2, 2), np.exp(1j * omega) * 100)
        model = hankelred.fit_frequency_response(values, 2, omega=omega, dt=True)
        ax = model.plot()
        largest = np.linalg.norm(values, 2, axis=(0, 1))
        assert np.allclose(ax.lines[0].get_ydata(), largest, rtol=1e-12)
        s = model.system
        x = np.asarray(ax.lines[1].get_xdata())
        curve = np.linalg.norm(response((s.A, s.B, s.C, s.D), np.exp(1j * x)), 2, axis=(0, 1))
        assert np.allclose(ax.lines[1].get_ydata(), curve, rtol=1e-9)
        assert ax.get_xlabel() == "angular frequency (rad/sample)"
        assert ax.get_ylabel() == "largest singular value"

    def test_the_sections_of_poles_have_these_poles(self):
        poles = np.array([-1 + 2j, -1 - 2j, -3, -0.5, -8, 0.4])
        sections = sections_of(poles, None, 1)
        assert poles_match(np.linalg.eigvals(sections.A), poles, 1e-12)
        omega = np.array([0.1, 1.0, 7.0])
        exact = np.array([np.linalg.solve(1j * w * np.eye(6) - sections.A, sections.B) for w in omega])
        assert np.allclose(sections.responses(omega), exact, rtol=1e-12)
        C = np.random.default_rng(0).standard_normal((2, 6))
        observed = np.array([C @ np.linalg.inv(1j * w * np.eye(6) - sections.A) for w in omega])
        assert np.allclose(sections.observed(omega, C), observed, rtol=1e-12)
        assert Sections(np.ones(2), np.ones(2), np.ones(1), np.ones((5, 1))).order == 5


GOOD = 1 / (1j * OMEGA + 1)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (GOOD, {}, "omega is missing"),
        (GOOD, {"omega": OMEGA[:-1]}, "last axis"),
        (GOOD[:, None, None], {"omega": OMEGA}, "moveaxis"),
        (GOOD[None], {"omega": OMEGA}, r"\(outputs, inputs, frequencies\)"),
        (GOOD, {"omega": OMEGA[::-1]}, "not in increasing order"),
        (GOOD, {"omega": np.repeat(OMEGA[::2], 2)}, "twice"),
        (GOOD, {"omega": OMEGA - 1}, "negative"),
        (GOOD, {"omega": OMEGA, "dt": 0.1}, "Nyquist"),
        (GOOD, {"omega": np.where(OMEGA > 100, np.nan, OMEGA)}, "finite"),
        (np.where(OMEGA > 100, np.nan, GOOD), {"omega": OMEGA}, "leave that frequency out"),
        (np.abs(GOOD), {"omega": OMEGA}, "phases"),
        (0 * GOOD, {"omega": OMEGA}, "zero at every frequency"),
        (GOOD[:3], {"omega": OMEGA[:3], "order": 6}, "too few frequencies"),
        (GOOD[:1], {"omega": OMEGA[:1]}, "too few frequencies"),
        (GOOD, {"omega": OMEGA, "order": 0}, "static gain"),
        (GOOD, {"omega": OMEGA, "order": 1.5}, "whole number"),
        (["a"], {"omega": [1.0]}, "numeric"),
        (GOOD, {"omega": OMEGA[None]}, "one-dimensional"),
        (control.frd(GOOD, OMEGA), {"omega": OMEGA}, "leave omega out"),
    ],
)
def test_wrong_arguments_are_refused(data, options, message):
    options = {"order": 2} | options
    with pytest.raises(hankelred.HankelredError, match=message):
        hankelred.fit_frequency_response(data, **options)


class TestFiles:
    def test_a_table_with_several_entries(self, tmp_path):
        values = response(resonant(3, 2, 2), 1j * OMEGA)
        flat = values.reshape(4, -1).T
        columns = np.column_stack(
            [OMEGA / (2 * np.pi), np.stack([flat.real, flat.imag], axis=2).reshape(-1, 8)]
        )
        np.savetxt(tmp_path / "response.txt", columns)
        values_read, omega = read_response(tmp_path / "response.txt", inputs=2, in_hertz=True)
        assert np.allclose(values_read, values) and np.allclose(omega, OMEGA)
        with pytest.raises(hankelred.FileFormatError, match="9 columns"):
            read_response(tmp_path / "response.txt", inputs=3)

    def test_arrays(self, tmp_path):
        np.savez(tmp_path / "r.npz", frdata=GOOD[None, None], f=OMEGA / (2 * np.pi))
        values_read, omega = read_response(tmp_path / "r.npz")
        assert np.allclose(values_read.reshape(-1), GOOD) and np.allclose(omega, OMEGA)
        np.savez(tmp_path / "r.npz", A=GOOD)
        with pytest.raises(hankelred.FileFormatError, match="no frequency response"):
            read_response(tmp_path / "r.npz")

    def test_touchstone(self, tmp_path):
        file = tmp_path / "line.s1p"
        lines = [f"{w / (2 * np.pi)} {g.real} {g.imag}" for w, g in zip(OMEGA, GOOD, strict=True)]
        file.write_text("# Hz S RI R 50\n" + "\n".join(lines) + "\n")
        try:
            import skrf  # noqa: F401
        except ImportError:
            with pytest.raises(hankelred.FileFormatError, match="scikit-rf"):
                read_response(file)
            return
        values_read, omega = read_response(file)
        assert np.allclose(values_read[0, 0], GOOD) and np.allclose(omega, OMEGA)

    def test_command(self, tmp_path):
        from click.testing import CliRunner

        system = resonant(4)
        values = response(system, 1j * OMEGA)[0, 0]
        table = np.column_stack([OMEGA, values.real, values.imag])
        np.savetxt(tmp_path / "r.csv", table, delimiter=",", header="omega,re,im", comments="")
        out, picture = tmp_path / "model.json", tmp_path / "model.png"
        run = CliRunner().invoke(
            cli, ["fit", str(tmp_path / "r.csv"), "--order", "4", "--out", str(out), "--plot", str(picture)]
        )
        assert run.exit_code == 0, run.output
        assert "200 frequencies, 1 input, 1 output -> order 4, continuous" in run.output
        written = hankelred.files.read_model(out, None)
        assert poles_match(np.linalg.eigvals(written.A), np.linalg.eigvals(system[0]), 1e-8)
        assert picture.stat().st_size > 0
