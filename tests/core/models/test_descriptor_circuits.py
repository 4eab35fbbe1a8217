"""Random circuits: finite poles by the graph, transfer functions by multiprecision, faults that are named."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.netlists import FAULTS, Netlist, difference, random_netlist
from helpers.sweeps import sweep

import hankelred
from hankelred import HankelredError, ModelError
from hankelred.models.linear_model import as_model


@pytest.mark.parametrize("seed", sweep([4, 7, 9, 16, 28, 31, 50, 57, 64, 98], first=3))
def test_well_posed_circuits_are_not_refused(seed):
    """Story: 12 of 100 random circuits were refused, although the number of finite poles was right. The bases
    were rounded to double precision, beside poles 1e20 times faster than others, and poles that are zero by
    structure got residues that are not there (1e-9 / s where the response is 1e-12)."""
    pytest.importorskip("flint")
    netlist = random_netlist(seed, largest=100)
    model = as_model(netlist.matrices())
    assert model.n_states == netlist.finite_order()
    assert difference(netlist.matrices(), model) <= 1


def test_residues_beside_poles_at_zero_are_compared():
    """Story: a circuit came back off by 2 % at 66 rad/s, and by 8e4 / w^2 below. The responses were compared
    at the frequencies of the poles, and those of poles that are zero but for rounding tell nothing."""
    pytest.importorskip("flint")
    netlist = random_netlist(122, largest=60)
    try:
        model = as_model(netlist.matrices())
    except HankelredError as error:
        assert "differs from the model" in str(error)
    else:
        assert difference(netlist.matrices(), model) <= 1


def test_a_small_capacitor_is_no_short_circuit():
    """Story: with 378 nF from a node to another and 12 fF to ground the pole of the small one was taken for
    infinite, since the gap above its singular value is wider than that to rounding."""
    netlist = random_netlist(95, largest=100)
    assert as_model(netlist.matrices()).n_states == netlist.finite_order() == 21


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(4))
def test_faults_are_named(seed, fault):
    """Story: the message of a singular pencil did not say which part of a circuit is at fault."""
    netlist = random_netlist(seed, largest=30, fault=fault)
    assert not netlist.is_regular()
    with pytest.raises(ModelError, match=r"states \[.*are not determined.*reference node") as caught:
        as_model(netlist.matrices())
    if fault == "floating":
        n = netlist.nodes
        assert f"states [{n - 2}, {n - 1}] are not determined" in str(caught.value)
    elif fault == "current cutset":
        assert f"states [{netlist.nodes - 1}] are not determined" in str(caught.value)


def test_a_loop_of_three_voltage_sources_is_named():
    """The currents around the loop are not determined, and the sum of its equations is 0 = u."""
    parts = [("R", 0, -1, 10.0), ("C", 1, -1, 1e-9), ("V", 0, -1, 1.0), ("V", 1, 0, 1.0), ("V", 1, -1, 1.0)]
    with pytest.raises(ModelError, match=r"states \[2, 3, 4\] are not determined.*voltage sources in a loop"):
        as_model(Netlist(2, parts).matrices())


def test_a_loop_of_inductors_has_no_residue_at_zero():
    """The current around two inductors in parallel is a pole at zero that no input drives: the voltage over
    them is that over one of half the size, also at frequencies 1e9 times below the other pole."""
    parts = [("L", 0, -1, 2e-9), ("L", 0, -1, 2e-9), ("R", 0, -1, 50.0), ("I", 0, -1, 1.0)]
    system = Netlist(1, parts).matrices()
    model = as_model(system)
    assert model.n_states == 2
    for w in (1.0, 1e5, 1e10):
        s = 1j * w
        value = model.C @ np.linalg.solve(s * np.eye(2) - model.A, model.B.astype(complex)) + model.D
        assert abs(value[0, 0] + 1 / (1 / 50 + 1 / (s * 1e-9))) <= 1e-13 * 50


@pytest.mark.parametrize("stray", [1e-13, 1e-18, 1e-21])
def test_stray_capacitances_leave_slow_poles_stable(stray):
    """Story: with 1e-18 F at a node beside 1e-6 F at another E is not singular, and stability was judged by
    the size of E^-1 A: the slow pole, 1e15 times smaller, was called marginal, its singular value inf."""
    parts = [("R", 0, 1, 1e3), ("R", 1, 2, 1e3), ("C", 0, -1, 1e-6), ("C", 1, -1, stray), ("C", 2, -1, 2e-6)]
    parts += [("R", 2, -1, 1e5), ("I", 0, -1, 1.0)]
    system = Netlist(3, parts).matrices()
    values = hankelred.hankel_singular_values(system)
    without = [part for part in parts if part[3] != stray]
    known = hankelred.hankel_singular_values(Netlist(3, without).matrices())
    assert np.all(np.isfinite(values))
    np.testing.assert_allclose(values[:2], known[:2], rtol=1e-6)
