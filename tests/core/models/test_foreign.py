"""Models of other packages, without a conversion by the user: dicts, and objects with A, B, C and D."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

import hankelred
from hankelred import ModelError

A = np.array([[-1.0, 0.2], [0.0, -3.0]])
B, C, D = np.ones((2, 1)), np.array([[1.0, 2.0]]), np.array([[0.5]])
PLAIN = (A, B, C, D)


class WithMatrices:
    """The interface of pyMOR's LTIModel: the missing D and E are None."""

    def __init__(self, *matrices, sampling_time=0):
        self.matrices, self.sampling_time = matrices, sampling_time
        self.A = self.B = self.C = object()  # operators

    def to_abcde_matrices(self):
        return self.matrices


def values(sys, **options):
    return hankelred.hankel_singular_values(sys, **options)


@pytest.mark.parametrize(
    "sys",
    [
        {"A": A, "B": B, "C": C, "D": D},
        {"A": A.tolist(), "B": B.tolist(), "C": C.tolist(), "D": 0.5, "E": None, "dt": 0},
        {"A": 2 * A, "B": 2 * B, "C": C, "E": 2 * np.eye(2)},
        SimpleNamespace(A=A, B=B, C=C, D=D, dt=0),
        SimpleNamespace(A=A, B=B, C=C, D=None, Ts=0.0),
        SimpleNamespace(a=A, b=B, c=C, d=D, SamplingPeriod=0),
        WithMatrices(A, B, C, None, None),
        WithMatrices(2 * A, 2 * B, C, D, 2 * np.eye(2)),
    ],
)
def test_continuous_models(sys):
    np.testing.assert_allclose(values(sys), values(PLAIN), rtol=1e-14)
    reduced = hankelred.reduce(sys, 1).system
    assert isinstance(reduced, tuple)
    np.testing.assert_allclose(reduced[0], hankelred.reduce(PLAIN, 1).system[0])


@pytest.mark.parametrize(
    "sys",
    [
        {"A": A / 4, "B": B, "C": C, "dt": 0.1},
        SimpleNamespace(A=A / 4, B=B, C=C, D=D, ts=0.1),
        WithMatrices(A / 4, B, C, D, None, sampling_time=0.1),
    ],
)
def test_discrete_models(sys):
    assert hankelred.reduce(sys, 1).model.dt == 0.1
    np.testing.assert_allclose(values(sys), values((A / 4, B, C, D), dt=0.1), rtol=1e-14)


def test_sampling_time_of_a_dict_may_be_passed():
    sys = {"A": A / 4, "B": B, "C": C}
    np.testing.assert_allclose(values(sys, dt=True), values((A / 4, B, C, 0), dt=True), rtol=1e-14)


def test_large_sparse_models_stay_sparse():
    n = 5200
    line = sp.diags_array([np.ones(n - 1), -2.5 * np.ones(n), np.ones(n - 1)], offsets=[-1, 0, 1])
    sparse = (sp.csc_array(line), np.ones((n, 1)), np.ones((1, n)))
    expected = values((*sparse, 0))[:3]
    for sys in (
        dict(zip("ABC", sparse, strict=True)),
        SimpleNamespace(**dict(zip("ABC", sparse, strict=True)), dt=0),
        WithMatrices(*sparse, None, None),
    ):
        assert np.array_equal(values(sys)[:3], expected)


def test_what_is_refused():
    with pytest.raises(ModelError, match=r"no sampling time .* may be continuous or discrete"):
        values(SimpleNamespace(A=A, B=B, C=C, D=D))
    with pytest.raises(ModelError, match=r"the dict has no B; .* \['A', 'C'\]"):
        values({"A": A, "C": C})
    with pytest.raises(ModelError, match="B must have 2 rows"):
        values({"A": A, "B": np.ones((3, 1)), "C": C})
    with pytest.raises(ModelError, match=r"cannot use types.SimpleNamespace as a model"):
        values(SimpleNamespace(A="text", B=None))


def test_models_of_nfoursid_are_discrete():
    nfoursid = pytest.importorskip("nfoursid.state_space")
    sys = nfoursid.StateSpace(A / 4, B, C, D)
    np.testing.assert_allclose(values(sys), values((A / 4, B, C, D), dt=True), rtol=1e-14)


def test_models_of_pymor():
    iosys = pytest.importorskip("pymor.models.iosys")
    sys = iosys.LTIModel.from_matrices(A, B, C, D)
    np.testing.assert_allclose(values(sys), sys.hsv(), rtol=1e-10)
