"""Reading of damaged, malicious and unusual files without harm, and atomic writing."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.io.matlab
import scipy.sparse as sps
from helpers.commands import run_main
from helpers.data import load_mat

import hankelred
from hankelred import FileFormatError, ModelError
from hankelred._util.mat_files import MatFile, Unread
from hankelred._util.writing import replace_file, scratch_folder, write_atomically
from hankelred.cli import main as cli
from hankelred.files import read_model, write_model
from hankelred.identification.records import read_columns
from hankelred.models.linear_model import as_model

A = -np.eye(4) + 0.1
MODEL = {"A": A, "B": np.ones((4, 1)), "C": np.ones((1, 4))}
SCIPYS = Path(scipy.io.matlab.__file__).parent / "tests" / "data"


def mat(content, **options):
    file = io.BytesIO()
    scipy.io.savemat(file, content, **options)
    return file.getvalue()


def compressed(data):
    """Compress the variables of a level 5 file as they are: savemat would sort and check them first."""
    out, at = data[:128], 128
    while at < len(data):
        size = struct.unpack("<I", data[at + 4 : at + 8])[0]
        body = zlib.compress(data[at : at + 8 + size])
        out += struct.pack("<II", 15, len(body)) + body
        at += 8 + size
    return out


def refusal(path, kind=FileFormatError):
    """Return the message of a refusal, which is one printable line with the file's name in front."""
    with warnings.catch_warnings(), pytest.raises(kind) as caught:
        warnings.simplefilter("error")
        read_model(path)
    message = str(caught.value)
    assert message.isprintable() and 20 < len(message) < 1500
    if kind is FileFormatError:
        assert message.startswith(str(path)[:100].encode("unicode_escape").decode()[:40])
    return message


# MAT-files, read by the package itself


def same(ours, theirs):
    if isinstance(ours, str):
        return ours == ("" if theirs.size == 0 else theirs[0])
    ours, theirs = (x.toarray() if sps.issparse(x) else x for x in (ours, theirs))
    return ours.shape == theirs.shape and np.array_equal(ours, theirs)


def check_fields(ours, theirs):
    """Compare the fields of a struct; those of other kinds are left out."""
    record = theirs.ravel()[0]
    for name in theirs.dtype.names or ():
        value = record[name]
        if sps.issparse(value) or value.dtype.kind in "iufc":
            assert same(ours[name], value)
        elif value.dtype.kind == "U" and value.size == 1:
            assert ours[name] == value[0]
        elif value.size:
            assert isinstance(ours[name], Unread)


@pytest.mark.parametrize("name", sorted(path.name for path in SCIPYS.glob("*.mat")) or ["none"])
def test_matlabs_own_files_are_read_as_scipy_reads_them(name):
    # scipy brings files of MATLAB 4.2 to 8, of machines of both byte orders, and some that are damaged
    if not SCIPYS.is_dir():
        pytest.skip("this scipy comes without its test data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = load_mat(SCIPYS / name)
        theirs = {key: value for key, value in theirs.items() if not key.startswith("__")}
    except Exception:
        theirs = None
    if name == "nasty_duplicate_fieldnames.mat":  # scipy renames them
        with open(SCIPYS / name, "rb") as file, pytest.raises(FileFormatError, match="two fields Station_Q"):
            MatFile(file).fields("Summary")
        return
    read = []
    with open(SCIPYS / name, "rb") as file:
        try:
            content = MatFile(file)
            for key in content:
                if content.kind(key) in ("numbers", "logicals", "sparse"):
                    assert theirs is None or same(content[key], theirs[key])
                    read.append(key)
                elif content.kind(key) == "struct" and theirs is not None and theirs[key].size == 1:
                    check_fields(content.fields(key), theirs[key])
                    with pytest.raises(FileFormatError, match="holds a MATLAB struct"):
                        content[key]
                elif content.kind(key) == "text" and (theirs is None or theirs[key].size <= 1):
                    assert theirs is None or same(content[key], theirs[key])
                else:
                    with pytest.raises(FileFormatError):
                        content[key]
        except FileFormatError:
            assert theirs is None  # damaged for both
            return
    if theirs is not None:
        numbers = [k for k, v in theirs.items() if getattr(v, "dtype", np.dtype("U")).kind in "iufc"]
        assert set(read) >= set(numbers)
        assert set(content) == set(theirs)


VALUES = {
    "real": np.arange(6.0).reshape(2, 3) / 7,
    "complex": np.array([[1 + 2j, np.inf], [0, -3j]]),
    "single": np.float32([[1.5, 2.5]]),
    "i1": np.int8([[-1, 2]]),
    "u8": np.uint64([[2**63, 1]]),
    "empty": np.zeros((0, 3)),
    "scalar": np.array([[0.1]]),
    "cube": np.arange(24.0).reshape(2, 3, 4),
    "text": np.array(["None"]),
    "sparse": sps.csc_matrix(np.diag([1.0, 0, 3])),
    "sparse_complex": sps.csc_matrix(np.array([[0, 1j], [2, 0]])),
    "nothing": sps.csc_matrix((3, 2)),
}


@pytest.mark.parametrize("options", [{}, {"do_compression": True}, {"format": "4"}], ids=str)
@pytest.mark.parametrize("key", VALUES)
def test_every_type_scipy_writes_is_read(options, key):
    value = VALUES[key]
    if "format" in options and (key == "cube" or value.dtype.kind == "u"):
        pytest.skip("level 4 has no such array")
    data = mat({key: value, "other": 1.0}, **options)
    theirs = load_mat(io.BytesIO(data))
    content = MatFile(io.BytesIO(data))
    assert list(content) == [key, "other"]
    assert same(content[key], theirs[key])
    if not isinstance(content[key], str):
        assert content[key].dtype.isnative


@pytest.mark.slow
def test_reading_a_mat_file_imports_no_compiled_reader(tmp_path):
    # Story: scipy's reader crashed on 17 of 20000 mutated files. It is also slow to import.
    (tmp_path / "m.mat").write_bytes(mat(MODEL, do_compression=True))
    code = (
        "import sys; from hankelred.files import read_model; read_model('m.mat'); "
        "print('scipy.io' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("which", "at", "value"),
    [
        ("indices", slice(None), -1),
        ("indices", 3, 4),
        ("indices", 0, 10**8),
        ("indices", 5, -(2**31)),
        ("indices", 15, 2**31 - 1),
        ("indptr", 1, 10**8),
        ("indptr", 4, 10**6),
        ("indptr", 4, -1),
        ("indptr", 0, 3),
        ("indptr", 2, 1),
    ],
)
def test_sparse_indices_that_lie_outside_are_refused(tmp_path, which, at, value, packed):
    """Story: an index past the end printed a spectrum with exit status 0, -1 aborted, 1e8 was a crash.

    The file chose where in memory was written, and what.
    """
    S = sps.csc_matrix(A)
    sound = getattr(S, which)
    wrong = sound.copy()
    wrong[at] = value
    data = mat({**MODEL, "A": S}).replace(sound.tobytes(), wrong.tobytes(), 1)
    path = tmp_path / "x.mat"
    path.write_bytes(compressed(data) if packed else data)
    assert "damaged: a sparse matrix" in refusal(path)
    status, out, err = run_main(cli.main, "hankelred", "hsv", path)
    assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("place", "value"),
    [((0, 0), 5.0), ((0, 0), 0.0), ((1, 1), 1e300), ((2, 1), np.nan), ((0, 1), 1.5), ((-1, 0), -1)],
)
def test_sparse_indices_of_level_4_too(tmp_path, place, value):
    S = sps.coo_matrix(A)
    table = np.vstack([np.c_[S.row + 1.0, S.col + 1.0, S.data], [4, 4, 0]])
    sound, wrong = table.copy(), table.copy()
    wrong[place] = value
    data = mat({**MODEL, "A": S}, format="4")
    assert sound.tobytes(order="F") in data
    path = tmp_path / "x.mat"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_model(path).A, A)
    path.write_bytes(data.replace(sound.tobytes(order="F"), wrong.tobytes(order="F")))
    assert "sparse matrix" in refusal(path)


@pytest.mark.parametrize("form", ["csc", "csr", "coo", "bsr"])
def test_sparse_matrices_of_the_user_are_checked_too(form):
    # A relative: the same matrix passed in Python.
    S = sps.csc_matrix(A).asformat(form)
    (S.row if form == "coo" else S.indices)[0] = 10**8
    with pytest.raises(ModelError, match="A is a damaged sparse matrix"):
        hankelred.reduce((S, MODEL["B"], MODEL["C"], 0), 1)
    sound = sps.csc_matrix(A).asformat(form)
    assert hankelred.reduce((sound, MODEL["B"], MODEL["C"], 0), 1).order == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged"),
        (b"MATLAB 5.0 MAT-file", "does not begin as a MAT-file does"),
        (b"\0" * 200, "impossible header"),
        (mat(MODEL)[:300], "ends in the middle of a variable"),
        (mat(MODEL)[:131], "ends in the middle of a variable"),
        (mat(MODEL) + b"\1\2\3", "ends in the middle"),
        (mat(MODEL, format="4")[:50], "ends in the middle of a variable"),
        (
            mat(MODEL).replace(b"\x0e\0\0\0", b"\x63\0\0\0", 1),
            "element of type 99 where a variable should be",
        ),
        (mat({**MODEL, "A": {"field": 1}}), "A holds a MATLAB struct"),
        (mat({**MODEL, "B": np.array([1, "x"], dtype=object)}), "B holds a MATLAB cell"),
        (
            b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(384) + b"\x89HDF\r\n\x1a\n",
            r"save\(..., '-v7'\)",
        ),
        (mat(MODEL) + mat({"A": 1.0})[128:], "two variables A"),
    ],
    ids=range(12),
)
def test_damaged_mat_files_say_where(tmp_path, data, words):
    path = tmp_path / "x.mat"
    path.write_bytes(data)
    import re

    assert re.search(words, refusal(path))


def test_a_checksum_that_is_wrong_is_seen(tmp_path):
    path = tmp_path / "x.mat"
    data = bytearray(mat(MODEL, do_compression=True))
    size = struct.unpack("<I", data[132:136])[0]
    data[136 + size - 1] ^= 1
    path.write_bytes(data)
    assert "cannot be inflated" in refusal(path)
    # and one that is missing, though every number is there
    whole = mat({"A": A}, do_compression=True)
    size = struct.unpack("<I", whole[132:136])[0]
    others = mat({"B": MODEL["B"], "C": MODEL["C"]}, do_compression=True)[128:]
    path.write_bytes(whole[:132] + struct.pack("<I", size - 4) + whole[136:-4] + others)
    assert "does not end where it should" in refusal(path)


def test_a_sparse_matrix_with_fewer_numbers_than_entries_is_refused(tmp_path):
    S = sps.csc_matrix(A)
    data = mat({**MODEL, "A": S})
    numbers = struct.pack("<II", 9, 8 * S.nnz) + S.data.tobytes()
    fewer = (
        struct.pack("<II", 9, 8 * S.nnz - 16) + S.data.tobytes()[:-16] + struct.pack("<II", 9, 8) + bytes(8)
    )
    assert data.count(numbers) == 1 and len(fewer) == len(numbers)
    path = tmp_path / "x.mat"
    path.write_bytes(data.replace(numbers, fewer))
    assert f"{S.nnz} entries with fewer numbers" in refusal(path)


@pytest.mark.slow
def test_variables_that_are_not_wanted_are_not_read(tmp_path):
    # Story: an .npz of 4.7 MB with an unused member of 4.8 GB was unpacked whole: a minute, and all memory.
    junk = np.zeros(20_000_000)
    (tmp_path / "x.mat").write_bytes(mat({"junk": junk, **MODEL}, do_compression=True))
    np.savez_compressed(tmp_path / "x.npz", junk=junk, **MODEL)
    for name in ("x.mat", "x.npz"):
        tracemalloc.start()
        model = read_model(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(model.A, A)
        assert peak < 5e6, name


@pytest.mark.parametrize("suffix", [".mat", ".npz", ".json"])
def test_variables_beyond_the_limit_are_refused_before_they_are_unpacked(tmp_path, monkeypatch, suffix):
    for module in ("mat_files", "reading"):
        monkeypatch.setattr(f"hankelred._util.{module}.LARGEST_IN_FILE", 10**6)
    path = tmp_path / f"x{suffix}"
    large = {**MODEL, "A": np.zeros((1000, 1000))}
    if suffix == ".mat":
        path.write_bytes(mat(large, do_compression=True))
    elif suffix == ".npz":
        np.savez_compressed(path, **large)
    else:
        path.write_text(json.dumps({k: v.tolist() for k, v in large.items()}))
    tracemalloc.start()
    assert "at most 1000000 are read" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


# .npz


def archive(path, members):
    with zipfile.ZipFile(path, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the member that is there twice
        for name, data in members:
            file.writestr(name, data)


def npy(value):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(value), allow_pickle=True)
    return file.getvalue()


SOUND = [(f"{key}.npy", npy(value)) for key, value in MODEL.items()]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([*SOUND, ("A.npy", npy([[1.0]]))], "A twice"),
        ([*SOUND, ("A", npy([[1.0]]))], "A twice"),
        ([*SOUND, ("a.npy", npy([[1.0]]))], None),
        ([("a.npy", SOUND[0][1]), ("B.npy", SOUND[1][1]), ("C.npy", SOUND[2][1])], None),
        ([*SOUND[1:], ("A.npy", SOUND[0][1] + b"more")], "longer than its shape"),
        ([*SOUND[1:], ("A.npy", SOUND[0][1][:-8])], "damaged"),
        ([*SOUND[1:], ("A.npy", b"no array")], "damaged"),
        ([*SOUND[1:], ("A.npy", npy(np.array([[object()]])))], "A holds Python objects"),
        ([*SOUND[1:], ("A.npy", SOUND[0][1].replace(b"(4, 4)", b"(9, 9)"))], "damaged"),
    ],
)
def test_odd_archives(tmp_path, members, words):
    path = tmp_path / "x.npz"
    archive(path, members)
    if words is None:
        np.testing.assert_array_equal(read_model(path).A, A)
    else:
        assert words in refusal(path)


def test_a_changed_byte_in_an_archive_is_seen(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **MODEL)
    data = bytearray(path.read_bytes())
    data[data.index(A.tobytes()) + 3] ^= 1
    path.write_bytes(data)
    assert "Bad CRC-32" in refusal(path)


# .json


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # were accepted: as numbers, and the last of two
        ('{"A": [["-1"]], "B": [[1]], "C": [[1]]}', "A holds a string"),
        ('{"A": [[-1]], "B": [[true]], "C": [[1]]}', "B holds a boolean"),
        ('{"A": [[-1]], "B": [[1, false]], "C": [[1.0]]}', "B holds a boolean"),
        ('{"A": [[-1]], "A": [[-2]], "B": [[1]], "C": [[1]]}', "A twice"),
        ('{"A": [[-1]], "B": [[1]], "C": [[1]], "meta": {"x": 1, "x": 2}}', "x twice"),
        ('{"A": [[-1]], "a": [[-2]], "B": [[1]], "C": [[1]]}', None),
        ('{"A": "text", "B": [[1]], "C": [[1]]}', "A holds text"),
        ('{"A": true, "B": [[1]], "C": [[1]]}', "A holds a boolean"),
        ('{"A": [[null]], "B": [[1]], "C": [[1]]}', "A holds null"),
        ('{"A": {"x": 1}, "B": [[1]], "C": [[1]]}', "A holds an object"),
        ('{"A": [[1, 2], [3]], "B": [[1]], "C": [[1]]}', "rows of different lengths"),
        ('{"A": [[1, [2]], [3, 4]], "B": [[1]], "C": [[1]]}', "rows of different lengths"),
        ("[1, 2]", "expected an object"),
        ("{", "damaged or not a .json file"),
        ("[" * 100000, "damaged or not a .json file"),
        ("\ufeff{}", "has no A, B, C"),
        ('{"A": ' + "9" * 5000 + "}", "damaged or not a .json file"),
        ('{"M\\u001b[31m\\n": 1, "' + "x" * 5000 + '": 2}', r"M\x1b[31m\n, xxx"),
    ],
    ids=range(18),
)
def test_odd_json(tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    if words is None:
        assert read_model(path).A == -1
    else:
        assert words in refusal(path)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity", "1" + "0" * 400])
def test_numbers_beyond_double_precision_are_refused(tmp_path, number):
    path = tmp_path / "x.json"
    path.write_text(f'{{"A": [[{number}]], "B": [[1]], "C": [[1]]}}')
    assert "A" in refusal(path, ModelError)


# entries and timebases that numpy would take


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([["-1"]]), "A holds strings"),
        (np.array([[b"-1"]]), "A holds strings"),
        (np.array([[True]]), "A holds booleans"),
        (np.array([["2020-01-01"]], dtype="M8[D]"), "A holds dates"),
        (np.array([[5]], dtype="m8[s]"), "A holds time spans"),
        (np.array([[(1, 2.0)]], dtype=[("a", int), ("b", float)]), "A holds entries of type"),
    ],
)
def test_what_is_no_number_is_refused_in_archives(tmp_path, value, words):
    path = tmp_path / "x.npz"
    np.savez(path, A=value, B=1.0, C=1.0)
    assert words in refusal(path)


@pytest.mark.parametrize("value", [np.array([[True]]), sps.csc_matrix(np.array([[True]]))])
def test_logicals_are_refused_in_mat_files(tmp_path, value):
    path = tmp_path / "x.mat"
    path.write_bytes(mat({"A": value, "B": 1.0, "C": 1.0}))
    assert "A holds" in refusal(path) and "a matrix of numbers" in refusal(path)


def test_strings_and_dates_are_no_entries_in_python_either():
    for A in (
        [["-1"]],
        np.array([[b"-1"]]),
        np.array([["-1"]], dtype=object),
        np.array([[1]], dtype="m8[s]"),
    ):
        with pytest.raises(ModelError, match="A is not a numeric matrix"):
            hankelred.hankel_singular_values((A, 1, 1, 0))


def test_longer_types_that_overflow_are_refused_without_a_warning(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, A=np.longdouble([[10]]) ** 4000, B=1.0, C=1.0)
    assert "A[0, 0] is inf" in refusal(path, ModelError)


@pytest.mark.parametrize(
    "written",
    [
        "{}", "[[1], [1, 2]]", "[1, 2]", "[]", '"soon"', '"0.1"', '""', "-1", "1e400", "NaN", "1e-400",
        "0.0e-5", "1" + "0" * 400, '{"a": "b\\n"}',
    ],
)  # fmt: skip
def test_odd_timebases_in_json(tmp_path, written):
    # Story: {}, a ragged list and 10**400 ended in a traceback; 1e-400 became 0, a continuous model.
    path = tmp_path / "x.json"
    path.write_text(f'{{"A": [[-1]], "B": [[1]], "C": [[1]], "dt": {written}}}')
    if written == "0.0e-5":
        assert read_model(path).dt == 0
    else:
        assert "dt must be" in refusal(path)
        assert read_model(path, dt=0.5).dt == 0.5


@pytest.mark.parametrize(
    ("value", "dt"),
    [
        (0.1, 0.1),
        ([[0.1]], 0.1),
        (np.int8(2), 2.0),
        ("None", None),
        ("True", True),
        (True, True),
        (b"None", "refused"),
        (0.1 + 2j, "refused"),  # was accepted with a warning of numpy's, imaginary part dropped
        ([[0.1 + 2j]], "refused"),
        ([0.1, 0.2], "refused"),
        (np.zeros((0, 0)), "refused"),
        (np.datetime64("2020-01-01"), "refused"),
        (np.timedelta64(1, "s"), "refused"),
        (np.array((1, 2.0), dtype=[("a", int), ("b", float)]), "refused"),
        (np.longdouble(10) ** 4000, "refused"),
        (np.nan, "refused"),
        (-0.5, "refused"),
    ],
    ids=str,
)
def test_odd_timebases_in_archives(tmp_path, value, dt):
    path = tmp_path / "x.npz"
    np.savez(path, dt=value, **MODEL)
    if dt == "refused":
        assert "dt must be" in refusal(path)
        assert read_model(path, dt=True).dt is True
    else:
        found = read_model(path).dt
        assert found == dt and isinstance(found, bool) == isinstance(dt, bool)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([[0.1, "s"]], dtype=object), "dt holds a MATLAB cell"),
        ({"value": 0.1}, "dt holds a MATLAB struct"),
        (sps.csc_matrix([[0.1]]), "dt must be"),
        (0.1j, "dt must be"),
        ("soon", "dt must be"),
        (np.zeros((0, 0)), "dt must be one number"),
    ],
    ids=range(6),
)
def test_odd_timebases_in_mat_files(tmp_path, value, words):
    path = tmp_path / "x.mat"
    path.write_bytes(mat({**MODEL, "dt": value}))
    assert words in refusal(path)
    assert read_model(path, dt=0.5).dt == 0.5  # then that of the file is not read


@pytest.mark.parametrize(
    "dt", ["0.1", b"1", np.complex64(1), 0.1 + 0j, np.timedelta64(1), {}, [0.1], 10**5000], ids=type
)
def test_odd_timebases_in_python(dt):
    with pytest.raises(ModelError, match="dt must be"):
        hankelred.hankel_singular_values((A, MODEL["B"], MODEL["C"], 0), dt=dt)


def test_a_tiny_step_on_the_command_line_is_no_continuous_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(as_model((0.5, 1, 1, 0)), "m.json")
    for text, words in (("1e-400", "'1e-400' is neither 0"), ("0.1s", "'0.1s' is neither 0")):
        status, _, err = run_main(cli.main, "hankelred", "hsv", "m.json", "--dt", text)
        assert status == 2 and words in err and err.count("\n") == 1
    for text, shown in (("0e-400", "continuous"), ("1e-300", "dt = 1e-300"), ("True", "dt unspecified")):
        assert shown in run_main(cli.main, "hankelred", "hsv", "m.json", "--dt", text)[1]


def test_wrong_ending_of_a_model_names_every_format(tmp_path):
    # Story: the message had no Matrix Market files, which are read too, but not written.
    with pytest.raises(FileFormatError, match=r"\.json, or of Matrix Market files \.A, .*\.K, got '\.txt'"):
        read_model(tmp_path / "m.txt")
    with pytest.raises(FileFormatError, match=r"\.mat, \.npz, \.json, got '\.txt'"):
        write_model(as_model((0.5, 1, 1, 0)), tmp_path / "m.txt")


@pytest.mark.parametrize("suffix", [".mat", ".npz", ".json"])
def test_models_of_any_type_are_written(tmp_path, suffix):
    # Story: only the object of read_model was written; a control.StateSpace ended in an AttributeError.
    control = pytest.importorskip("control")
    model = (A, MODEL["B"], MODEL["C"], 0)
    for written, dt in ((model, 0.5), (control.ss(*model, 0.5), 0), (as_model(model, 0.5), 0)):
        write_model(written, tmp_path / f"x{suffix}", dt)
        again = read_model(tmp_path / f"x{suffix}")
        assert np.array_equal(again.A, A) and again.dt == 0.5
    reduction = hankelred.reduce(model, 1)
    for wrong, text in (
        (reduction, r"^Reduction is a result, not a model; pass its \.system"),
        (A, "cannot use"),
    ):
        with pytest.raises(ModelError, match=text):
            write_model(wrong, tmp_path / f"y{suffix}")
    assert not (tmp_path / f"y{suffix}").exists()
    write_model(reduction.system, tmp_path / f"y{suffix}")
    assert read_model(tmp_path / f"y{suffix}").n_states == 1


@pytest.mark.parametrize("suffix", [".mat", ".npz", ".json"])
def test_an_improper_model_is_written_with_its_e(tmp_path, suffix):
    """s + 2 + 3 / (s + 1), whose s the matrices A, B, C and D alone would lose; and its proper part."""
    matrices = np.diag([-1.0, 1.0, 1.0]), [[1.0], [0.0], [1.0]], [[3.0, -1.0, 0.0]], 2.0, np.zeros((3, 3))
    matrices[4][0, 0] = matrices[4][1, 2] = 1
    model = as_model(matrices)
    write_model(model, tmp_path / f"x{suffix}")
    again = read_model(tmp_path / f"x{suffix}")
    assert again.n_states == 1
    np.testing.assert_allclose(again.improper, [[[1.0]]], rtol=1e-14)
    np.testing.assert_allclose(again.C / (1j - again.A) * again.B + again.D, [[3 / (1j + 1) + 2]], rtol=1e-14)
    assert len(model.to_user()) == 5 and len(model.proper_part().to_user()) == 4


@pytest.mark.parametrize("scale", [1e-310, 5e-324])
@pytest.mark.parametrize("complex_", [False, True])
def test_a_descriptor_matrix_that_folds_to_infinity_is_refused(tmp_path, scale, complex_):
    # Story: entries of E near 1e-310 made A infinite, behind the check of its entries; eig then failed.
    E = np.diag([1.0, 1.0, 1.0, scale]) * (1 + 1j if complex_ else 1)
    path = tmp_path / "x.mat"
    path.write_bytes(mat({**MODEL, "E": E}))
    assert "E^-1 A or E^-1 B exceeds double precision" in refusal(path, ModelError)
    with pytest.raises(ModelError, match="exceeds double precision"):
        hankelred.hankel_singular_values((A, MODEL["B"], MODEL["C"], 0, E))
    path.write_bytes(mat({**MODEL, "E": np.eye(4) * 1e-100}))
    np.testing.assert_allclose(read_model(path).A, A * 1e100)


# names


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".mat", "x" * 300 + "/m.mat", "a\0b.mat", "m.mat/x.mat", "gone\n.mat"]
)
def test_impossible_names_are_refused_in_one_line(tmp_path, monkeypatch, name):
    # Story: a path of 300 characters ended in an OSError from is_file.
    monkeypatch.chdir(tmp_path)
    write_model(as_model((0.5, 1, 1, 0)), "m.mat")
    for read in (read_model, read_columns):
        with pytest.raises(FileFormatError) as caught:
            read(name)
        assert str(caught.value).isprintable()
    if "\0" not in name:
        status, _, err = run_main(cli.main, "hankelred", "hsv", name)
        assert status == 2 and err.count("\n") == 1 and "Traceback" not in err
        with pytest.raises(FileFormatError, match="cannot write"):
            write_model(as_model((0.5, 1, 1, 0)), "nowhere/" + name)


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path, monkeypatch):
    # Story: names of variables were printed as they are: lines, colours, megabytes.
    monkeypatch.chdir(tmp_path)
    red = "\x1b[31m\nerror: nothing\x07"
    archive("x.npz", [(f"{red}.npy", npy([1.0])), ("B" * 60000 + ".npy", npy([1.0]))])
    archive("y.npz", [(f"{red}{i}.npy", npy([1.0])) for i in range(1000)])
    Path("z.json").write_text(json.dumps({red: 1, "M": 2, "K": 3}))
    Path("t.csv").write_text(f"u,y,\x1b[31m{'y' * 1000}\n" + "1,2,3\n" * 50)
    lines = [
        ("hsv", "x.npz"),
        ("hsv", "y.npz"),
        ("hsv", "z.json"),
        ("identify", "t.csv", "--inputs", "q", "--outputs", "y"),
    ]
    for arguments in lines:
        status, out, err = run_main(cli.main, "hankelred", *arguments)
        assert (status, out) == (2, "")
        assert err[:-1].isprintable() and len(err) < 1500


def test_a_column_that_is_there_twice_is_not_chosen_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("u,y,y\n" + "1,2,3\n" * 50)
    err = run_main(cli.main, "hankelred", "identify", "t.csv", "--inputs", "u", "--outputs", "y")[2]
    assert "'y' names several columns; choose by number: the file has columns 0 to 2 (u, y, y)" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("u,y\n1,2\n1_0,3\n", "line 3, column 0: '1_0' is not a number"),
        ('u,y\n1,"2\n', "is no table"),
        ("u,y\n1,2" + "0" * 200000 + "\n", "is no table"),
        ("u,y\n1\0,2\n", r"t.csv.*"),
        (b"\xff\xfe\x00", "is not text"),
        ("", "has no samples"),
    ],
    ids=range(6),
)
def test_odd_tables(tmp_path, content, words):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileFormatError, match=words) as caught:
        read_columns(path)
    assert str(caught.value).isprintable()


# written whole


def model_file(folder):
    path = folder / "m.json"
    write_model(as_model((A, MODEL["B"], MODEL["C"], 0)), path)
    return path


KILLED = """
import os, sys, signal
from pathlib import Path
from hankelred._util.writing import replace_file

def write(name):
    with open(name, "w") as file:
        file.write("half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path(sys.argv[1]), write)
"""


@pytest.mark.slow
def test_what_killed_writers_left_is_removed_by_the_next(tmp_path):
    # Story: a hundred kills of a process that saves in a loop left 72 temporary files.
    targets = [tmp_path / "a.npz", tmp_path / "b.json", tmp_path / ("long" * 50 + ".json")]
    for target in targets:
        assert (
            subprocess.run([sys.executable, "-c", KILLED, target], check=False).returncode == -signal.SIGKILL
        )
        assert not target.exists()
    (tmp_path / ".a.unfinished-mine.txt").mkdir()
    assert len(os.listdir(tmp_path)) <= 3  # each removes what the one before it has left
    model_file(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".a.unfinished-mine.txt", "m.json"]


def test_a_writer_that_lives_keeps_its_temporary_file(tmp_path):
    other = tmp_path / "other.json"

    def write(name):
        Path(name).write_text("half")
        # while this one writes, another finishes in the same folder, in this process and in another one
        code = (
            "from hankelred.files import write_model; from hankelred.models.linear_model import as_model; "
            f"write_model(as_model((0.5, 1, 1, 0)), {str(other)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        write_atomically(tmp_path / "third.txt", lambda name: Path(name).write_text("third"))
        assert Path(name).read_text() == "half"
        Path(name).write_text("whole")

    replace_file(tmp_path / "mine.txt", write)
    assert (tmp_path / "mine.txt").read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == ["mine.txt", "other.json", "third.txt"]


KILLED_FOLDER = """
import os, sys, signal
from pathlib import Path
from hankelred._util.writing import PREVIOUS, scratch_folder

target = Path(sys.argv[1])
with scratch_folder(target) as scratch:
    (scratch / "new").mkdir()
    if sys.argv[2] == "moved":
        os.replace(target, scratch / PREVIOUS)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moved", ["moved", "not moved"])
def test_folders_of_killed_writers_are_removed_and_the_previous_content_is_kept(tmp_path, moved):
    """A relative: a command that replaces a folder moves the old one away first; a kill at that moment must
    not lose it, whatever is cleaned up later."""
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "weights").write_text("old")
    (tmp_path / ".adapter.unfinished-somebody").mkdir()
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", KILLED_FOLDER, target, moved], check=False)
        assert run.returncode == -signal.SIGKILL
        assert target.exists() == (moved == "not moved")
    with scratch_folder(target) as scratch:
        assert (target / "weights").read_text() == "old"
        with scratch_folder(target) as other:
            assert other.is_dir() and scratch.is_dir() and other != scratch
    assert sorted(os.listdir(tmp_path)) == [".adapter.unfinished-somebody", "adapter"]


def test_permissions_are_those_of_any_new_file_and_the_mask_is_left_alone(tmp_path):
    # A relative: the mask of the process was set to 0 for a moment, in which other threads' files were open.
    before = os.umask(0o027)
    try:
        path = model_file(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        assert os.umask(before) == 0o027


def test_a_failed_write_leaves_nothing(tmp_path):
    def broken(name):
        Path(name).write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FileFormatError, match="No space left"):
        write_atomically(tmp_path / "x.json", broken)
    assert os.listdir(tmp_path) == []


# structs, as MATLAB users send them


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("step", "dt"), [(0, 0), (0.1, 0.1), (-1, True)])
def test_model_in_a_struct(tmp_path, compressed, step, dt):
    A, B, C = np.array([[0.5, 0.1], [0.0, 0.3]]), np.ones((2, 1)), np.eye(2)
    fields = {
        "a": A,
        "b": B,
        "c": sps.csc_matrix(C),
        "Ts": float(step),
        "Name": "plant",
        "Notes": {"by": "me"},
    }
    path = tmp_path / "model.mat"
    path.write_bytes(mat({"sys": fields, "answer": 42.0}, do_compression=compressed))
    model = read_model(path)
    assert model.dt == dt and (model.dt is True) == (dt is True)
    assert np.array_equal(model.A, A) and np.array_equal(model.C, C)


def test_model_in_an_object_of_json(tmp_path):
    path = tmp_path / "model.json"
    path.write_text('{"plant": {"A": [[0.5]], "B": [[1]], "C": [[2]], "dt": 0.1}, "by": "me"}')
    assert read_model(path).dt == 0.1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"sys": {"A": 1.0, "B": 1.0}}, "it has no C; .* this one has A, B"),
        ({"one": {"A": 1.0}, "two": {"A": 2.0}}, "it has no A, B, C; .* this one has one, two"),
        ({"sys": np.zeros((2, 2), [("A", object), ("B", object)])}, "an array of structs, of shape"),
        ({"sys": {"A": "text", "B": 1.0, "C": 1.0}}, "A holds text"),
        ({"sys": {**MODEL, "E": np.array([1, "a"], object)}}, "E holds a MATLAB cell"),
        ({"sys": {**MODEL, "D": {"value": 1.0}}}, "D holds a MATLAB struct"),
        ({"sys": {**MODEL, "Ts": np.array([0.1, "a"], object)}}, "dt must be"),
        ({"sys": {**MODEL, "E": sps.csc_matrix(np.eye(4, dtype=bool))}}, "E holds a MATLAB sparse logical"),
        ({"sys": {**MODEL, "InputDelay": 0.5}}, "has the property InputDelay, and models have no delays"),
        ({"sys": {**MODEL, "TimeUnit": "minutes"}}, "TimeUnit of the struct must be seconds"),
        ({**MODEL, "Ts": 0.1, "dt": 0.2}, "it has Ts and dt; keep one"),
    ],
)
def test_structs_that_are_no_model(tmp_path, content, match):
    path = tmp_path / "model.mat"
    path.write_bytes(mat(content))
    assert re.search(match, refusal(path))


def test_struct_with_all_the_properties_of_a_matlab_model(tmp_path):
    """What get(sys) returns: empty matrices for what a model does not have."""
    empty = np.zeros((0, 0))
    properties = {"A": MODEL["A"], "B": MODEL["B"], "C": MODEL["C"], "D": np.zeros((1, 1)), "E": empty}
    others = {
        "Scaled": 0.0,
        "StateName": np.array(["", ""], object),
        "InternalDelay": empty,
        "InputDelay": 0.0,
    }
    path = tmp_path / "model.mat"
    path.write_bytes(mat({"sys": {**properties, **others, "Ts": empty, "TimeUnit": "seconds", "Name": ""}}))
    model = read_model(path)
    assert model.dt == 0 and np.array_equal(model.A, A)


@pytest.mark.parametrize("key", ["Ts", "ts"])
def test_sampling_time_by_its_name_in_matlab(tmp_path, key):
    """It was ignored beside the matrices, and the model read as a continuous one."""
    for content in ({**MODEL, key: 0.1}, {"sys": {**MODEL, key: 0.1}}):
        path = tmp_path / "model.mat"
        path.write_bytes(mat(content))
        assert read_model(path).dt == 0.1
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"A": [[0.5]], "B": [[1]], "C": [[1]], key: -1}))
    assert read_model(path).dt is True
