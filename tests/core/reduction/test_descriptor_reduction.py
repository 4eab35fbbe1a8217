"""What is done with models with a singular E: every method, norms, simulation, files, pictures, commands."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import scipy.io as sio
import scipy.linalg as sla
import scipy.sparse as sp
from helpers.commands import run_main
from helpers.descriptor_models import constrained_masses, integrator, rc_ladder

import hankelred
from hankelred import ModelError, ReductionWarning
from hankelred.cli.main import main
from hankelred.files import read_model
from hankelred.models.linear_model import as_model

matplotlib.use("Agg")


def response(system, s):
    A, B, C, D = system[:4]
    E = system[4] if len(system) == 5 else np.eye(len(A))
    return C @ np.linalg.solve(s * E - A, B.astype(complex)) + D


METHODS = {
    "truncation": {},
    "residualization": {},
    "frequency_limited": {"band": (0.1, 1.0)},
    "time_limited": {"horizon": 5.0},
    "frequency_weighted": {"input_weight": ([[-1.0]], [[1.0]], [[1.0]], 0)},
    "hankel_norm": {},
    "modal": {},
}


@pytest.mark.parametrize("moved", [False, True], ids=["proper", "improper"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_polynomial(method, moved):
    """The returned model has an E only where it must, and differs from the model by the error of the rest.

    Six masses that are moved have four values above rounding, so that with order 4 some methods warned or
    refused on some processors; eight have six.
    """
    masses = 8 if moved else 6
    system = constrained_masses(masses, moved=moved)
    reduction = hankelred.reduce(system, 4, method=method, **METHODS[method])
    assert len(reduction.system) == (5 if moved else 4)
    assert len(reduction.improper) == (2 if moved else 0) and reduction.finite_order == 2 * masses - 2
    error = reduction.error("hinf")
    for w in (0.3, 1.7, 30.0):
        apart = np.linalg.norm(response(system, 1j * w) - response(reduction.system, 1j * w), 2)
        assert apart <= error * (1 + 1e-6) + 1e-9 * np.linalg.norm(response(system, 1j * w))
    again = hankelred.reduce(reduction.system, reduction.order)
    assert len(again.improper) == len(reduction.improper) and again.finite_order == reduction.order


@pytest.mark.parametrize("method", ["stochastic", "coprime", "positive_real", "bounded_real"])
def test_methods_that_need_a_proper_model_say_so(method):
    system = rc_ladder(6, at_source=1e-12)
    A, B, C, D, E = system
    with pytest.raises(ModelError, match=f"improper of degree 1.*{method}|{method}.*improper"):
        hankelred.reduce((A, B, C[1:], D, E), 2, method=method)
    weight = (A, B, C[1:], D, E)
    with pytest.raises(ModelError, match="input_weight has to be proper"):
        hankelred.reduce(rc_ladder(3)[:5], 2, method="frequency_weighted", input_weight=weight)
    with pytest.raises(ModelError, match="ModalSystem holds no polynomial"):
        hankelred.modal_form((A, B, C[1:], D, E))


def test_projection_and_gramians_in_the_states_of_the_model():
    """Bases satisfy left^T E right = 1; Gramians are the proper ones, here against the definition."""
    system = constrained_masses(5)
    A, B, C, _, E = system
    reduction = hankelred.reduce(system, 4)
    left, right = reduction.left, reduction.right
    np.testing.assert_allclose(left.T @ E @ right, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(left.T @ A @ right, reduction.system[0], atol=1e-12)
    P = hankelred.gramian(system, "controllability")
    Q = hankelred.gramian(system, "observability")
    X = hankelred.gramian((A, B, C[:1], 0, E), "cross")
    # A P E^T + E P A^T + Pl B B^T Pl^T = 0 with the projection onto the finite poles, from all bases
    part = as_model(system).infinite
    finite = E @ part.right @ part.left.T
    residual = A @ P @ E.T + E @ P @ A.T + finite @ B @ B.T @ finite.T
    assert np.abs(residual).max() <= 1e-12 * np.abs(P).max()
    values = np.sqrt(np.sort(np.abs(sla.eigvals(P @ Q)))[::-1][:4])
    np.testing.assert_allclose(values, reduction.hankel_singular_values[:4], rtol=1e-6)
    assert X.shape == A.shape
    np.testing.assert_allclose(np.trace(X), np.trace(response_at_zero_half(A, B, C[:1], E)), rtol=1e-8)
    given = hankelred.reduce(system, 4, controllability_factor=hankelred.gramian(system, factor=True))
    np.testing.assert_allclose(given.hankel_singular_values[:4], values, rtol=1e-6)


def response_at_zero_half(A, B, C, E):
    """Return half of -G_sp(0), the trace of the cross Gramian, from values of G at 0 and infinity."""
    far = response((A, B, C, np.zeros((1, 1)), E), 1e9 + 0j).real
    return (response((A, B, C, np.zeros((1, 1)), E), 0j).real - far) / 2


def test_norms():
    proper, improper = constrained_masses(5), constrained_masses(5, moved=True)
    value, at = hankelred.norm(proper, "hinf", return_frequency=True)
    np.testing.assert_allclose(np.linalg.norm(response(proper, 1j * at), 2), value, rtol=1e-6)
    for kind in ("h2", "hinf", "linf"):
        assert hankelred.norm(improper, kind) == np.inf
    values = hankelred.hankel_singular_values(improper)
    assert np.all(np.isfinite(values)) and hankelred.norm(improper, "hankel") == pytest.approx(values[0])


def test_split_adds_up_and_keeps_the_polynomial_once():
    system = rc_ladder(4, at_source=1e-12)
    stable, unstable = hankelred.split(system)
    s = 1e9j
    total = response(stable, s) + response(unstable, s)
    np.testing.assert_allclose(total, response(system, s), rtol=1e-9)


def test_simulation_from_a_consistent_start():
    """Against the closed form of a capacitor that is charged through a resistor (voltage and current)."""
    system = rc_ladder(1, R=2.0, capacitance=0.25)  # tau = 0.5
    t = np.arange(50) * 0.1
    u = np.ones((1, 50))
    y, states = hankelred.simulate(system, u, step=0.1, return_states=True)
    np.testing.assert_allclose(y[0], 1 - np.exp(-t / 0.5), atol=1e-12)
    np.testing.assert_allclose(y[1], -np.exp(-t / 0.5) / 2, atol=1e-12)  # current out of the source
    np.testing.assert_allclose(states[0], 1.0)  # the node at the source
    y = hankelred.simulate(system, 0 * u, step=0.1, x0=[9.0, 1.0, 9.0])  # only E x0 matters
    np.testing.assert_allclose(y[0], np.exp(-t / 0.5), atol=1e-12)
    head, x = hankelred.simulate(system, u[:, :20], step=0.1, return_state=True)
    tail = hankelred.simulate(system, u[:, 20:], step=0.1, x0=x)
    whole = hankelred.simulate(system, u, step=0.1)
    np.testing.assert_allclose(np.concatenate([head, tail], axis=1), whole, atol=1e-12)


def test_starts_and_outputs_that_would_be_impulses_are_named():
    masses = constrained_masses(4)
    x0 = np.zeros(9)
    x0[0] = 1.0  # the first mass is moved and the last one is not
    with pytest.raises(ModelError, match="x0 is not consistent"):
        hankelred.simulate(masses, np.zeros(5), step=0.1, x0=x0)
    improper = constrained_masses(4, moved=True)
    with pytest.raises(ModelError, match="improper of degree 2"):
        hankelred.simulate(improper, np.ones(5), step=0.1)
    with pytest.warns(ReductionWarning, match=r"D_1 delta\^\(1\)\(t\)"):
        samples = hankelred.impulse_response(improper, 5, step=0.1)
    assert samples.shape == (5, 2, 1)
    with pytest.raises(ModelError, match="states depend on each other"):
        hankelred.truncate_states(masses, [0])
    with pytest.raises(ModelError, match="cannot be excited one by one"):
        hankelred.empirical_gramians(masses)


@pytest.mark.parametrize("ending", [".mat", ".npz", ".json"])
def test_files_and_commands(tmp_path, ending):
    system = rc_ladder(5, at_source=1e-12)
    source = tmp_path / "model.mat"
    sio.savemat(
        source, {key: sp.csc_matrix(M) for key, M in zip("ABCE", (*system[:3], system[4]), strict=True)}
    )
    model = read_model(source)
    assert model.n_states == 5 and len(model.improper) == 1
    out = tmp_path / f"reduced{ending}"
    picture = tmp_path / "picture.png"
    status, text, _ = run_main(
        main, "hankelred", "reduce", source, "--order", "3", "--out", out, "--plot", picture
    )
    assert status == 0 and "improper" in text and picture.stat().st_size > 1000
    again = read_model(out)
    assert again.n_states == 3
    np.testing.assert_allclose(again.improper[0], model.improper[0], atol=1e-20)
    status, text, _ = run_main(main, "hankelred", "hsv", source)
    assert status == 0 and "unstable or marginal" not in text


def test_matrix_market_files(tmp_path):
    for key, M in zip("ABCE", (*rc_ladder(5)[:3], rc_ladder(5)[4]), strict=True):
        sio.mmwrite(tmp_path / f"ladder.{key}.mtx", sp.coo_matrix(M))
        (tmp_path / f"ladder.{key}.mtx").rename(tmp_path / f"ladder.{key}")
    assert read_model(tmp_path / "ladder.A").n_states == 5


def test_pictures_of_an_improper_model():
    reduction = hankelred.reduce(constrained_masses(5, moved=True), 2)
    ax = hankelred.plot_reduction(reduction)
    w, gain = ax.get_lines()[0].get_data()
    k = len(w) // 2
    known = np.linalg.norm(response(constrained_masses(5, moved=True), 1j * w[k]), 2)
    np.testing.assert_allclose(gain[k], known, rtol=1e-6)
    ax = hankelred.plot_hankel_singular_values(constrained_masses(5, moved=True))
    assert ax.get_yscale() == "log"


def test_an_integrator_is_kept():
    reduction = hankelred.reduce(integrator())
    assert reduction.unstable_order == 1 and reduction.order == 1
    np.testing.assert_allclose(response(reduction.system, 2j), [[-1e3 / 2j]], rtol=1e-9)
