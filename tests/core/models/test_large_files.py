"""Large models and models of second order in files: .mat, .npz, .json, Matrix Market."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io as sio
import scipy.sparse as sp
from click.testing import CliRunner
from helpers.data import data_file, second_order_model
from helpers.sparse_models import beam, heat

import hankelred
from hankelred import FileFormatError, ModelError, SecondOrderModel
from hankelred.cli.main import cli
from hankelred.files import read_model
from hankelred.models.sparse_model import SparseModel


def chain_of(n):
    off = np.ones(n - 1)
    A = sp.csc_matrix(sp.diags([off, -2.1 * np.ones(n), off], [-1, 0, 1]))
    B, C = np.zeros((n, 1)), np.zeros((1, n))
    B[40], C[0, 45] = 1, 1
    return A, B, C


def market(folder, **matrices):
    """Write NAME.A and so on, as the Oberwolfach collection does."""
    for key, M in matrices.items():
        sio.mmwrite(folder / "model.mtx", sp.coo_matrix(M) if sp.issparse(M) else M)
        (folder / "model.mtx").rename(folder / f"model.{key}")
    return folder / f"model.{next(iter(matrices))}"


def test_large_sparse_mat_file(tmp_path):
    A, B, C = chain_of(5300)
    sio.savemat(tmp_path / "large.mat", {"A": A, "B": sp.csc_matrix(B), "C": sp.csc_matrix(C)})
    model = read_model(tmp_path / "large.mat")
    assert isinstance(model, SparseModel) and model.n_states == 5300
    values = hankelred.hankel_singular_values(model)
    short = (A[:200, :200].toarray(), B[:200], C[:, :200], 0)
    np.testing.assert_allclose(values[:8], hankelred.hankel_singular_values(short)[:8], rtol=1e-6)
    with pytest.raises(ModelError, match="larger ones"):
        hankelred.modal_form(model)


def test_matrix_market_files_of_one_model(tmp_path):
    A, B, C = heat(8)
    E = sp.diags([np.linspace(1, 2, 64)], [0])
    truth = hankelred.hankel_singular_values((A, B, C, 0, E))
    path = market(tmp_path, A=A, B=B, C=sp.csc_matrix(C), E=E)
    for name in (path, tmp_path / "model.E"):
        np.testing.assert_allclose(
            hankelred.hankel_singular_values(read_model(name)), truth, rtol=1e-10, atol=1e-18
        )


def test_second_order_model_in_files(tmp_path):
    M, D, K, B, C = beam(6)
    truth = hankelred.hankel_singular_values(SecondOrderModel(M, D, K, B, C))
    parts = {"M": sp.csc_matrix(M), "K": sp.csc_matrix(K), "B": B}
    sio.savemat(tmp_path / "a.mat", {**parts, "D": sp.csc_matrix(D), "C": C})
    sio.savemat(tmp_path / "b.mat", {**parts, "E": sp.csc_matrix(D), "Cp": C, "Cv": 0 * C})
    arrays = {key: np.asarray(each.toarray() if sp.issparse(each) else each) for key, each in parts.items()}
    np.savez(tmp_path / "c.npz", **arrays, d=D.toarray(), c=C)
    files = [tmp_path / "a.mat", tmp_path / "b.mat", tmp_path / "c.npz"]
    files.append(market(tmp_path, M=parts["M"], E=sp.csc_matrix(D), K=parts["K"], B=B, C=C))
    for file in files:
        model = read_model(file)
        assert isinstance(model, SecondOrderModel)
        np.testing.assert_allclose(
            hankelred.hankel_singular_values(model), truth, rtol=1e-8, atol=1e-9 * truth[0]
        )


def test_slicot_beam_from_its_file():
    model = read_model(data_file("lti/LF10.mat"))
    assert isinstance(model, SecondOrderModel)
    np.testing.assert_array_equal(np.asarray(model.K.toarray()), second_order_model("LF10")[2])


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    A, B, C = chain_of(5300)
    sio.savemat("large.mat", {"A": A, "B": B, "C": C})
    out = CliRunner().invoke(cli, ["hsv", "large.mat", "--plot", "spectrum.png"])
    assert out.exit_code == 0 and "solver: low_rank" in out.output and Path("spectrum.png").stat().st_size
    out = CliRunner().invoke(cli, ["reduce", "large.mat", "--rtol", "1e-3", "--out", "small.mat"])
    assert out.exit_code == 0 and "certificate: rigorous" in out.output
    assert read_model("small.mat").n_states < 40
    M, D, K, B, C = beam(6)
    market(tmp_path, M=M, D=D, K=K, B=B, C=C)
    out = CliRunner().invoke(cli, ["reduce", "model.M", "--order", "4"])
    assert out.exit_code == 0 and "24 states" in out.output


def test_bad_files(tmp_path):
    def refused(says, text=None, name="bad.A"):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(FileFormatError, match=says):
            read_model(tmp_path / name)

    refused("does not exist", name="nothing.A")
    refused("does not begin", "hello")
    refused("holds pattern entries", "%%MatrixMarket matrix coordinate pattern general\n1 1 1\n1 1\n")
    refused("line of sizes", "%%MatrixMarket matrix coordinate real general\n1 1\n1 1 2\n")
    refused("more than a file", "%%MatrixMarket matrix coordinate real general\n1 1 1000000000\n1 1 2\n")
    refused("too many", "%%MatrixMarket matrix coordinate real general\n9999999999 1 1\n1 1 2\n")
    refused("damaged", "%%MatrixMarket matrix coordinate real general\n1 1 1\n5 5 2\n")
    refused("has no B, C", "%%MatrixMarket matrix coordinate real general\n1 1 1\n1 1 -2\n")
    M, D, K, B, C = beam(4)
    folder = tmp_path / "two"
    folder.mkdir()
    path = market(folder, M=M, D=D, E=D, K=K, B=B, C=C)
    with pytest.raises(FileFormatError, match="one damping, D or E"):
        read_model(path)
    sio.savemat(tmp_path / "short.mat", {"M": M, "K": K, "C": C})
    refused("has no B", name="short.mat")


FORMATS = ["csc", "csr", "coo", "dia", "bsr"]


def in_parts(name, M, separator="_"):
    """Return the arrays that scipy.sparse.save_npz writes, with a prefix."""
    places = {"coo": ("row", "col"), "dia": ("offsets",)}.get(M.format, ("indices", "indptr"))
    parts = {"format": M.format, "shape": M.shape, "data": M.data, **{key: getattr(M, key) for key in places}}
    return {f"{name}{separator}{key}": value for key, value in parts.items()}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("several", [False, True])
def test_sparse_matrices_in_npz_files(tmp_path, kind, several):
    """Before, only .mat and Matrix Market files could hold a sparse matrix."""
    A, B, C = heat(8)
    E = sp.diags([np.linspace(1, 2, 64)], [0]).asformat(kind)
    A, B_sparse = A.asformat(kind), sp.csc_matrix(B)
    truth = hankelred.hankel_singular_values((A, B, C, 0, E))
    if several:
        sp.save_npz(tmp_path / "heat.A.npz", A)
        sp.save_npz(tmp_path / "heat.E.npz", E)
        sp.save_npz(tmp_path / "heat.B.npz", B_sparse)
        np.savez(tmp_path / "heat.C.npz", C)
        path = tmp_path / "heat.A.npz"
    else:
        path = tmp_path / "heat.npz"
        np.savez(path, **in_parts("A", A), **in_parts("E", E, "."), **in_parts("b", B_sparse), C=C, dt=0)
    values = hankelred.hankel_singular_values(read_model(path))
    np.testing.assert_allclose(values, truth, rtol=1e-10, atol=1e-18)


def test_large_and_second_order_models_in_npz_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    A, B, C = chain_of(5300)
    np.savez_compressed("large.npz", **in_parts("A", A), **in_parts("B", sp.csc_matrix(B)), C=C)
    assert isinstance(read_model("large.npz"), SparseModel)
    out = CliRunner().invoke(cli, ["reduce", "large.npz", "--rtol", "1e-3", "--out", "small.npz"])
    assert out.exit_code == 0 and "certificate: rigorous" in out.output
    assert read_model("small.npz").n_states < 40
    M, D, K, B, C = beam(6)
    for key, each in {"M": M, "D": D, "K": K}.items():
        sp.save_npz(f"beam.{key}.npz", sp.csc_matrix(each))
    np.savez("beam.B.npz", B)
    np.savez("beam.C.npz", C)
    model = read_model("beam.K.npz")
    assert isinstance(model, SecondOrderModel) and model.is_sparse


def test_damaged_sparse_matrices_in_npz_files(tmp_path):
    A, B, C = heat(8)
    sound = {**in_parts("A", A), "B": B, "C": C}
    path = tmp_path / "model.npz"

    def refused(says, **changed):
        np.savez(path, **{key: value for key, value in {**sound, **changed}.items() if value is not None})
        with pytest.raises((FileFormatError, ModelError), match=says):
            read_model(path)

    refused("has no indptr", A_indptr=None)
    refused("format of the sparse matrix A must be one of", A_format="lil")
    refused("format of the sparse matrix A must be one of", A_format=np.arange(3))
    refused("two sizes", A_shape=np.array([64]))
    refused("two sizes", A_shape=np.array([-64, 64]))
    refused("too large to be read", A_shape=np.array([2**40, 2**40]))
    refused("list of integers", A_indices=A.indices.astype(float))
    refused("do not fit together", A_indices=A.indices + 10**6)
    refused("do not fit together", A_indices=-A.indices)
    refused("do not fit together", A_indptr=A.indptr[:-1])
    refused("do not fit together", A_indptr=A.indptr[::-1].copy())
    # scipy accepts these index pointers, and its conversion then reads beyond the arrays
    refused("do not fit together", A_indptr=np.r_[A.indptr[:-1], 0])
    refused("do not fit together", A_indptr=np.r_[A.indptr[:-1], -1])
    refused("do not fit together", A_data=A.data[:-1])
    refused("as an array and in parts", A=A.toarray())
    refused("strings", A_data=A.data.astype(str))
    refused("nan", A_data=np.full(A.nnz, np.nan))
    refused("holds Python objects", A=np.array(A, dtype=object), A_format=None)
    refused("must be square", A_shape=np.array([90, 64]))
    sp.save_npz(path, A)
    with pytest.raises(FileFormatError, match=r"one sparse matrix; .* NAME\.A\.npz"):
        read_model(path)
    np.savez(tmp_path / "two.A.npz", A=A.toarray(), extra=1)
    with pytest.raises(FileFormatError, match="2 arrays"):
        read_model(tmp_path / "two.A.npz")
    with pytest.raises(FileFormatError, match="does not exist"):
        read_model(tmp_path / "nothing.A.npz")
    sp.save_npz(tmp_path / "alone.A.npz", A)
    with pytest.raises(FileFormatError, match="has no B, C"):
        read_model(tmp_path / "alone.A.npz")
