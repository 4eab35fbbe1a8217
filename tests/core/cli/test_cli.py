"""The command line as a user runs it: exit status, errors of one line, output files complete or absent."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from helpers.commands import run_main
from helpers.data import data_file

import hankelred
from hankelred.cli import main as cli
from hankelred.files import read_model, write_model
from hankelred.models.linear_model import as_model


def system(n=12, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n))
    A -= (np.linalg.eigvals(A).real.max() + 0.2) * np.eye(n)
    return A, rng.standard_normal((n, 2)), rng.standard_normal((3, n)), rng.standard_normal((3, 2))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the files that the examples of --help name."""
    monkeypatch.chdir(tmp_path)
    write_model(as_model(system()), "model.mat")
    write_model(as_model(system()), "model.json")
    write_model(as_model(system()), "model.npz")
    u = np.random.default_rng(1).standard_normal(400)
    A, B, C, D = system()
    y = hankelred.simulate((A, B[:, :1], C[:2], D[:2, :1]), u, step=0.2)
    table = np.column_stack([u, y.T])
    np.savetxt("record.csv", table, delimiter=",", header="u,y1,y2", comments="")
    np.savetxt("dryer.dat", table[:, :2])
    np.savetxt("inputs.csv", table[:, :2], delimiter=",", header="u1,u2", comments="")
    omega = np.geomspace(0.1, 10, 40)
    response = 1 / ((1j * omega) ** 2 + 0.2j * omega + 1) + 1 / ((1j * omega) ** 2 + 0.5j * omega + 9)
    np.savetxt("response.csv", np.column_stack([omega, response.real, response.imag]), delimiter=",")
    np.savez("response.npz", response=response, omega=omega)
    return tmp_path


def run(*arguments):
    """Run `hankelred`; return exit status, output and error output."""
    return run_main(cli.main, "hankelred", *arguments)


def help_examples():
    for command in cli.cli.commands.values():
        text = command.help
        for line in text.splitlines():
            if line.strip().startswith("hankelred "):
                yield line.strip()


@pytest.mark.slow
@pytest.mark.parametrize("line", list(help_examples()))
def test_every_example_of_help_works(folder, line):
    arguments = shlex.split(line)[1:]
    status, _, err = run(*arguments)
    assert status == 0, err
    for flag in ("--out", "--plot"):
        if flag in arguments:
            assert (folder / arguments[arguments.index(flag) + 1]).stat().st_size > 0
    assert not list(folder.glob(".*"))  # no temporary file is left


def test_help_shows_an_example_each(folder):
    assert len(list(help_examples())) >= 4
    for command in ([], ["hsv"], ["reduce"], ["identify"]):
        status, out, _ = run(*command, "--help")
        assert status == 0
        assert "Example:" in out


def test_hsv_prints_the_values(folder):
    status, out, _ = run("hsv", "model.mat")
    assert status == 0
    values = hankelred.hankel_singular_values(system())
    printed = [float(x) for x in re.findall(r"\d\.\d{6}e[+-]\d\d", out)]
    for value in values:
        assert any(abs(p - value) <= 1e-6 * value for p in printed)


@pytest.mark.parametrize("name", ["model.mat", "model.json", "model.npz"])
def test_formats_hold_the_same_model(folder, name):
    for M, N in zip(read_model(name).as_tuple(), system(), strict=True):
        np.testing.assert_array_equal(M, N)


@pytest.mark.parametrize("suffix", [".mat", ".json", ".npz"])
@pytest.mark.parametrize("dt", [0, True, None, 0.25])
def test_reduced_model_keeps_its_timebase(folder, suffix, dt):
    A, B, C, D = system()
    A = A / np.abs(np.linalg.eigvals(A)).max() * (0.9 if dt else 1)
    model = as_model((A, B, C, D), dt)
    write_model(model, f"in{suffix}")
    status, _, err = run("reduce", f"in{suffix}", "--order", "3", "--out", f"out{suffix}")
    assert status == 0, err
    back = read_model(f"out{suffix}")
    assert back.dt == dt
    assert type(back.dt) is type(dt)
    expected = hankelred.reduce((A, B, C, D), 3, dt=dt)
    assert back.n_states == 3
    np.testing.assert_allclose(
        hankelred.hankel_singular_values(back.as_tuple(), dt=dt),
        hankelred.hankel_singular_values(expected.system, dt=dt),
        rtol=1e-10,
    )


@pytest.mark.parametrize("dt", [True, np.array(True), np.array([[True]])])
def test_archive_of_the_users_own_with_an_unspecified_step(folder, dt):
    # numpy keeps the type: True is a discrete model without a step, and not one second
    A, B, C, D = system()
    np.savez("own.npz", A=A / 20, B=B, C=C, D=D, dt=dt)
    assert read_model("own.npz").dt is True
    np.savez("own.npz", A=A / 20, B=B, C=C, D=D, dt=np.array([[1]]))
    assert type(read_model("own.npz").dt) is float


def test_matlab_file_with_sparse_matrices_descriptor_and_lower_case(folder):
    A, B, C, _ = system()
    E = np.diag(np.arange(1.0, 13))
    scipy.io.savemat("sparse.mat", {"a": scipy.sparse.csc_matrix(E @ A), "b": E @ B, "c": C, "e": E})
    model = read_model("sparse.mat")
    np.testing.assert_allclose(model.A, A, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(model.D, np.zeros((3, 2)))
    assert model.dt == 0


def test_order_and_rule_together(folder):
    """The message offered a rule, gap, that the command line does not have."""
    write_model((-1, 1, 1, 0), "lag.json")
    status, _, err = run("reduce", "lag.json", "--order", "1", "--rtol", "0.1")
    assert status == 2 and "gap" not in err
    assert err == "error: give the order or a rule to choose it, not both: got order=1 and rtol=0.1\n"


def test_sizes_of_a_model_with_a_singular_E(folder):
    """The size was the number of finite poles, "1 states" and "1 finite poles of 3 states" included."""
    A, B, C = np.array([[-1.0, 0, 0], [0, 1, 0], [1, 0, 1]]), np.ones((3, 1)), np.eye(1, 3)
    np.savez("circuit.npz", A=A, B=B, C=C, D=[[0.0]], E=np.diag([1.0, 0, 0]))
    status, out, err = run("reduce", "circuit.npz", "--order", "1")
    assert status == 0, err
    assert out.startswith("3 states, 1 input, 1 output, continuous -> order 1 by truncation")
    assert "singular E: 1 finite pole of 3 states, proper" in out
    assert run("hsv", "circuit.npz")[1].startswith("3 states, 1 input, 1 output, continuous")


def test_dt_option_comes_before_the_file(folder):
    write_model(as_model(([[0.5]], [[1.0]], [[1.0]], 0), 0), "unit.json")
    status, out, _ = run("hsv", "unit.json", "--dt", "0.1")
    assert status == 0
    assert "discrete, dt = 0.1" in out
    assert f"{1 / 0.75:.6e}" in out


def bad_files(folder):
    (folder / "empty.mat").write_bytes(b"")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "empty.json").write_text("")
    for name in ("model.mat", "model.npz", "model.json"):
        whole = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
    (folder / "list.json").write_text("[1, 2]")
    (folder / "no-c.json").write_text(json.dumps({"A": [[-1]], "B": [[1]]}))
    (folder / "shape.json").write_text(json.dumps({"A": [[-1, 2]], "B": [[1]], "C": [[1]]}))
    (folder / "nan.json").write_text('{"A": [[NaN]], "B": [[1]], "C": [[1]]}')
    (folder / "text.json").write_text('{"A": "minus one", "B": [[1]], "C": [[1]]}')
    (folder / "ragged.json").write_text('{"A": [[1, 2], [3]], "B": [[1]], "C": [[1]]}')
    (folder / "twice.json").write_text('{"a": [[-1]], "A ": 0, "B": [[1]], "b": [[1]], "C": [[1]]}')
    (folder / "dt.json").write_text('{"A": [[-1]], "B": [[1]], "C": [[1]], "dt": -2}')
    (folder / "v73.mat").write_bytes(
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400)
    )
    np.savez(folder / "pickled.npz", A=np.array([{}], dtype=object), B=[[1]], C=[[1]])
    (folder / "model.txt").write_text("1 2 3")
    (folder / "directory.mat").mkdir()


BAD = [
    ("hsv", "missing.mat"),
    ("hsv", "empty.mat"),
    ("hsv", "empty.npz"),
    ("hsv", "empty.json"),
    ("hsv", "cut-model.mat"),
    ("hsv", "cut-model.npz"),
    ("hsv", "cut-model.json"),
    ("hsv", "list.json"),
    ("hsv", "no-c.json"),
    ("hsv", "shape.json"),
    ("hsv", "nan.json"),
    ("hsv", "text.json"),
    ("hsv", "ragged.json"),
    ("hsv", "dt.json"),
    ("hsv", "v73.mat"),
    ("hsv", "pickled.npz"),
    ("hsv", "model.txt"),
    ("hsv", "directory.mat"),
    ("hsv", "model.mat", "--plot", "picture.docx"),
    ("hsv", "model.mat", "--plot", "nowhere/picture.png"),
    ("hsv", "model.mat", "--dt", "soon"),
    ("hsv", "model.mat", "--stability-tol", "-1"),
    ("hsv",),
    ("frobnicate",),
    ("hsv", "model.mat", "--nonsense"),
    ("reduce", "model.mat", "--order", "-1"),
    ("reduce", "model.mat", "--order", "1.5"),
    ("reduce", "model.mat", "--tol", "0"),
    ("reduce", "model.mat", "--tol", "-3"),
    ("reduce", "model.mat", "--energy", "1.2"),
    ("reduce", "model.mat", "--order", "2", "--tol", "1"),
    ("reduce", "model.mat", "--rtol", "1", "--tol", "1"),
    ("reduce", "model.mat", "--method", "magic"),
    ("reduce", "model.mat", "--order", "2", "--out", "reduced.xls"),
    ("reduce", "model.mat", "--order", "2", "--out", "nowhere/reduced.mat"),
    ("identify", "missing.csv", "--inputs", "0", "--outputs", "1"),
    ("identify", "record.csv", "--inputs", "0"),
    ("identify", "record.csv", "--inputs", "0", "--outputs", "7"),
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_what_is_wrong_is_said_in_one_line(folder, arguments):
    bad_files(folder)
    before = set(folder.iterdir())
    status, out, err = run(*arguments)
    assert status == 2
    assert re.fullmatch(r"error: [^\n]{10,400}\n", err), err
    assert "Traceback" not in out + err
    assert set(folder.iterdir()) == before


def test_a_failed_write_leaves_the_old_file(folder, monkeypatch):
    # A disk that fills up in the middle must not cost the result of yesterday.
    (folder / "reduced.mat").write_bytes(b"yesterday")

    def full(name, content):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scipy.io, "savemat", full)
    status, _, err = run("reduce", "model.npz", "--order", "2", "--out", "reduced.mat")
    assert status == 2
    assert "No space left" in err
    assert (folder / "reduced.mat").read_bytes() == b"yesterday"
    assert not list(folder.glob(".reduced*"))


class TestForce:
    """`--out` replaced symbolic links, write-protected files and MODEL itself, and asked nothing.

    A long computation came first where the target could not be written at all.
    """

    COMMANDS = (
        ("reduce", "model.mat", "--order", "2", "--out"),
        ("reduce", "model.mat", "--order", "2", "--plot"),
        ("hsv", "model.mat", "--plot"),
        ("identify", "record.csv", "--inputs", "u", "--outputs", "y1", "--order", "1", "--out"),
        ("identify", "record.csv", "--inputs", "u", "--outputs", "y1", "--order", "1", "--plot"),
    )

    @pytest.fixture
    def no_work(self, monkeypatch):
        """Fail where work is done before the refusal."""

        def work(*_, **__):
            raise AssertionError("there was work before the refusal")

        for name in ("cli.main.read_model", "cli.identify.read_columns"):
            monkeypatch.setattr(f"hankelred.{name}", work)

    @staticmethod
    def target(command):
        return "out.json" if command[-1] == "--out" else "out.png"

    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    @pytest.mark.parametrize("exists", [True, False])
    def test_a_link_is_not_replaced(self, folder, no_work, command, exists):
        name = self.target(command)
        (folder / name).symlink_to("elsewhere")
        if exists:
            (folder / "elsewhere").write_text("precious")
        status, out, err = run(*command, name)
        assert (status, out) == (2, "")
        assert err == f"error: {name} is a symbolic link (to elsewhere); --force replaces it\n"
        assert (folder / name).is_symlink()

    @pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
    def test_a_write_protected_file_is_not_replaced(self, folder, no_work, command):
        name = self.target(command)
        (folder / name).write_text("precious")
        (folder / name).chmod(0o444)
        status, _, err = run(*command, name)
        assert (status, err) == (2, f"error: {name} is write-protected; --force replaces it\n")
        assert (folder / name).read_text() == "precious"

    @pytest.mark.parametrize("command", COMMANDS[:1] + COMMANDS[3:4], ids=" ".join)
    @pytest.mark.parametrize("name", ["same", "./same", "hard link"])
    def test_what_is_read_is_not_replaced(self, folder, no_work, command, name):
        source = command[1]
        if source.endswith("csv"):
            (folder / "record.mat").write_bytes((folder / "model.mat").read_bytes())
            command, source = (command[0], "record.mat", *command[2:]), "record.mat"
        if name == "hard link":
            (folder / "linked.mat").hardlink_to(folder / source)
        target = {"same": source, "./same": f"../{folder.name}/{source}", "hard link": "linked.mat"}[name]
        before = (folder / source).read_bytes()
        status, _, err = run(*command, target)
        assert (status, err) == (2, f"error: {target} is the file that is read; --force replaces it\n")
        assert (folder / source).read_bytes() == before

    def test_neither_is_a_pipe_or_a_folder(self, folder, no_work):
        os.mkfifo("pipe.json")
        (folder / "folder.json").mkdir()
        command = self.COMMANDS[0]
        assert run(*command, "pipe.json")[2] == "error: pipe.json is no ordinary file; --force replaces it\n"
        for options in ((), ("--force",)):
            assert (
                run(*command, "folder.json", *options)[2]
                == "error: cannot write folder.json: it is a folder\n"
            )

    @pytest.mark.parametrize("target", ["/proc/out.json", "x" * 300 + ".json", "x" * 300 + "/out.json"])
    def test_what_cannot_be_written_is_refused_before_the_work(self, folder, no_work, target):
        if not os.path.isdir("/proc"):
            pytest.skip("this system has no /proc")
        for options in ((), ("--force",)):
            status, _, err = run(*self.COMMANDS[0], target, *options)
            assert status == 2 and err.startswith(f"error: cannot write {target}: ")

    @pytest.mark.slow
    @pytest.mark.parametrize("command", COMMANDS[:4], ids=" ".join)
    def test_force_replaces_them(self, folder, command):
        name = self.target(command)
        (folder / "elsewhere").write_text("precious")
        (folder / name).symlink_to("elsewhere")
        for _ in range(2):
            status, out, err = run(*command, name, "--force")
            assert (status, err) == (0, "") and f"wrote {name}" in out
            assert not (folder / name).is_symlink()
            (folder / name).chmod(0o444)
        assert (folder / "elsewhere").read_text() == "precious"

    def test_force_replaces_the_model(self, folder):
        assert run("reduce", "model.mat", "--order", "2", "--out", "model.mat", "--force")[0] == 0
        assert read_model("model.mat").n_states == 2

    def test_an_ordinary_file_is_replaced_as_before(self, folder):
        for order in "23":
            assert run("reduce", "model.mat", "--order", order, "--out", "out.json")[0] == 0
        assert read_model("out.json").n_states == 3


def test_complex_models_go_to_every_format_but_json(folder):
    model = as_model(([[-1 + 2j]], [[1.0]], [[1.0]], 0))
    for name in ("z.mat", "z.npz"):
        write_model(model, name)
        np.testing.assert_array_equal(read_model(name).A, model.A)
    with pytest.raises(hankelred.FileFormatError, match="complex"):
        write_model(model, "z.json")
    assert not (folder / "z.json").exists()


def test_columns_are_listed_where_none_is_chosen(folder):
    status, _, err = run("identify", "record.csv", "--outputs", "y1")
    assert status == 2
    assert "record.csv has columns 0 to 2 (u, y1, y2)" in err


def test_a_decimal_comma_is_recognised(folder):
    (folder / "comma.csv").write_text("u;y\n" + "0,5;1\n" * 50)
    _, _, err = run("identify", "comma.csv", "--inputs", "u", "--outputs", "y")
    assert "'0,5' is not a number; write a decimal point" in err


def test_a_model_that_explains_nothing_is_not_silent(folder):
    rng = np.random.default_rng(0)
    np.savetxt("noise.dat", rng.standard_normal((200, 2)))
    status, out, err = run("identify", "noise.dat", "--inputs", "0", "--outputs", "1", "--order", "1")
    assert status == 0 and "dt unspecified" in out
    assert re.fullmatch(
        r"warning: [^\n]*next to nothing of output 0[^\n]* inputs and outputs swapped[^\n]*\n", err
    )


def test_what_keeps_fewer_states_is_said(folder):
    assert "--order, --tol, --rtol or --energy to keep fewer" in run("reduce", "model.mat")[1]
    assert "to keep fewer" not in run("reduce", "model.mat", "--order", "2")[1]


def test_clipping_is_said_in_one_line(folder):
    A, B = np.diag([-1.0, -2.0]), np.array([[1.0], [0.0]])
    write_model(as_model((A, B, np.ones((1, 2)), 0)), "hidden.json")
    status, out, err = run("reduce", "hidden.json", "--order", "2")
    assert status == 0
    assert "order 1" in out
    assert err.startswith("warning: order 2 was requested")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_python_m_is_the_console_script(folder):
    result = subprocess.run(
        [sys.executable, "-m", "hankelred", "hsv", "gone.mat"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "error: gone.mat does not exist\n"
    assert result.stdout == ""


def test_no_command_shows_the_help(folder):
    status, out, _ = run()
    assert status == 2
    assert "Commands:" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iss", "build", "heat-cont", "pde", "MRdemo2M"])
def test_real_models_are_reduced(folder, name):
    path = data_file(f"lti/{name}.mat")
    status, out, err = run("reduce", path, "--rtol", "1e-2", "--out", "small.npz", "--plot", "small.png")
    assert status == 0, err
    bound, error = (float(x) for x in re.findall(r"\(H-infinity\): (\S+)", out))
    assert error <= bound * (1 + 1e-9)
    assert read_model("small.npz").n_states < read_model(path).n_states
    assert (folder / "small.png").read_bytes().startswith(b"\x89PNG")


# JSON, and the commands that print one figure or write one file


def test_json_of_hsv(folder):
    status, out, err = run("hsv", "model.mat", "--json", "--plot", "s.png")
    content = json.loads(out)
    assert status == 0 and err == "wrote s.png\n"
    assert [content[key] for key in ("states", "inputs", "outputs", "dt")] == [12, 2, 3, 0]
    np.testing.assert_allclose(
        content["hankel_singular_values"], hankelred.hankel_singular_values(system()), rtol=1e-12
    )
    assert len(content["error_bounds"]) == 13 and content["error_bounds"][-1] == 0


def test_json_has_no_infinity(folder):
    """JSON knows no Infinity and no NaN, which Python writes all the same."""
    write_model(as_model(([[1.0]], [[1.0]], [[1.0]], 0)), "unstable.json")
    content = json.loads(run("hsv", "unstable.json", "--json")[1], parse_constant=pytest.fail)
    assert content["hankel_singular_values"] == [None]
    content = json.loads(run("compare", "model.mat", "--order", "4", "--json")[1], parse_constant=pytest.fail)
    methods = {row["method"]: row for row in content["methods"]}
    assert methods["truncation"]["error"] > 0 and methods["truncation"]["band_error"] is None


def test_compare_of_a_large_model_says_first_that_it_takes_long(folder, monkeypatch):
    """Of a membrane of 1610 states nothing was printed for ten minutes, and there was no end in sight."""
    command = ("compare", "model.mat", "--order", "4", "--json")
    assert "dense matrices" not in run(*command)[2]
    monkeypatch.setattr("hankelred.cli.main.MANY_STATES", 11)
    status, out, err = run(*command)
    assert status == 0 and json.loads(out)["methods"]
    assert "12 states" in err and "first reduce the model" in err


def test_json_of_reduce(folder):
    options = (
        "--order",
        "5",
        "--method",
        "frequency_limited",
        "--band",
        "1",
        "2",
        "--json",
        "--out",
        "r.npz",
    )
    status, out, err = run("reduce", "model.mat", *options)
    assert (status, err) == (0, "wrote r.npz\n")
    content = json.loads(out)
    reduction = hankelred.reduce(system(), 5, method="frequency_limited", band=(1, 2))
    assert content["order"] == 5
    assert content["error"] == pytest.approx(reduction.error("hinf"), rel=1e-6)
    assert content["error_in_band"] == pytest.approx(reduction.error(band=(1, 2)), rel=1e-6)


@pytest.mark.parametrize("kind", ["h2", "hinf", "linf", "hankel"])
def test_norm(folder, kind):
    A, B, C, _ = system()
    write_model(as_model((A, B, C, 0)), "proper.mat")
    value = hankelred.norm((A, B, C, 0), kind)
    assert f"{kind} norm: {value:.6e}" in run("norm", "proper.mat", "--kind", kind)[1]
    assert json.loads(run("norm", "proper.mat", "--kind", kind, "--json")[1])["norm"] == pytest.approx(value)


def test_norm_names_the_frequency(folder):
    """A resonance at 3 rad/s."""
    write_model(as_model(([[0.0, 1.0], [-9.0, -1e-3]], [[0.0], [1.0]], [[1.0, 0.0]], 0)), "peak.json")
    assert run("norm", "peak.json")[1].endswith("hinf norm: 3.333333e+02 at 3 rad/s\n")


@pytest.mark.parametrize("ending", ["mat", "npz", "json"])
def test_convert(folder, ending):
    status, out, _ = run("convert", "model.mat", f"copy.{ending}", "--dt", "0.1")
    assert status == 0 and out.endswith(f"discrete, dt = 0.1\nwrote copy.{ending}\n")
    model = read_model(f"copy.{ending}")
    assert model.dt == 0.1
    assert all(np.array_equal(M, N) for M, N in zip(model.as_tuple(), system(), strict=True))


def test_simulate(folder):
    status, out, err = run("simulate", "model.mat", "inputs.csv", "--step", "0.2", "--out", "y.csv")
    assert (status, err) == (0, "") and out == "400 samples, 3 outputs\nwrote y.csv\n"
    u = np.loadtxt("inputs.csv", delimiter=",", skiprows=1).T
    y = np.loadtxt("y.csv", delimiter=",", skiprows=1).T
    assert np.array_equal(y, hankelred.simulate(system(), u, step=0.2))
    assert (folder / "y.csv").read_text().startswith("y0,y1,y2\n")


def test_simulate_with_a_column_of_times(folder):
    u = np.random.default_rng(2).standard_normal((2, 50))
    times = 0.1 * np.arange(50)
    np.savetxt("timed.csv", np.column_stack([times, u.T]), delimiter=",", header="time,a,b", comments="")
    assert run("simulate", "model.mat", "timed.csv", "--hold", "foh", "--out", "y.csv")[0] == 0
    table = np.loadtxt("y.csv", delimiter=",", skiprows=1).T
    np.testing.assert_allclose(table[0], times, rtol=1e-15)
    np.testing.assert_allclose(
        table[1:], hankelred.simulate(system(), u, step=0.1, hold="foh"), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "model.mat", "record.csv", "--out", "y.csv"), "2 inputs, and there are 3 columns"),
        (("simulate", "model.mat", "inputs.csv", "--out", "y.csv"), "give --step"),
        (("simulate", "model.mat", "inputs.csv", "--step", "1", "--out", "y.txt"), "ends in .csv"),
        (
            ("simulate", "model.mat", "inputs.csv", "--step", "1", "--out", "inputs.csv"),
            "inputs.csv is the file that is read; --force replaces it",
        ),
        (("convert", "model.mat", "model.mat"), "model.mat is the file that is read"),
        (("convert", "model.mat", "copy.txt"), "the ending must be one of"),
        (("norm", "model.mat", "--kind", "h3"), "'h3' is not one of"),
    ],
)
def test_refusals_of_the_small_commands(folder, arguments, message):
    before = sorted(path.name for path in folder.iterdir())
    status, out, err = run(*arguments)
    assert status == 2 and out == "" and message in err and err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_simulate_refuses_a_step_that_is_not_that_of_the_times(folder):
    """--step overrode the column of times, which was copied beside the outputs for other times."""
    table = np.column_stack([0.1 * np.arange(5), np.ones((5, 2))])
    np.savetxt("timed.csv", table, delimiter=",", header="time,a,b", comments="")
    status, _, err = run("simulate", "model.mat", "timed.csv", "--step", "0.7", "--out", "y.csv")
    assert status == 2 and "--step 0.7 disagrees with the column 'time', whose step is 0.1" in err
    assert run("simulate", "model.mat", "timed.csv", "--step", "0.1", "--out", "y.csv")[0] == 0


def test_norm_of_a_large_model_has_no_frequency(folder):
    """A second-order model of 5200 states ended in an error about an argument of Python."""
    masses = 2600
    K = scipy.sparse.diags([-np.ones(masses - 1), 2 * np.ones(masses), -np.ones(masses - 1)], [-1, 0, 1])
    M, force = scipy.sparse.identity(masses, format="csc"), np.eye(masses, 1)
    content = {"M": M, "D": (0.5 * K + M).tocsc(), "K": K.tocsc(), "B": force, "C": force.T}
    scipy.io.savemat("chain.mat", content)
    status, out, err = run("norm", "chain.mat")
    assert (status, err) == (0, "") and re.search(r"hinf norm: \S+\n$", out)
    write_model(as_model(([[1.0]], [[1.0]], [[1.0]], 0)), "unstable.json")
    assert run("norm", "unstable.json")[1].endswith("hinf norm: inf\n")


def test_missing_samples_of_a_record_are_bridged_on_request(folder):
    """The refusal named a call of Python, which a user of the command line could not make."""
    table = np.loadtxt("record.csv", delimiter=",", skiprows=1)
    table[100:103, 1] = np.nan
    np.savetxt("gaps.csv", table, delimiter=",", header="u,y1,y2", comments="")
    command = ("identify", "gaps.csv", "--inputs", "u", "--outputs", "y1", "--dt", "0.1", "--order", "2")
    status, _, err = run(*command)
    assert status != 0 and "--missing bridge" in " ".join(err.split())
    status, out, err = run(*command, "--missing", "bridge", "--json")
    assert status == 0 and "3 missing value(s) of outputs were bridged" in " ".join(err.split())
    with pytest.warns(hankelred.ReductionWarning, match="3 missing"):
        model = hankelred.identify(table[:, 0], table[:, 1], 2, dt=0.1, missing="bridge")
    assert np.allclose(json.loads(out)["fit"], model.fit)


def test_json_of_models_from_data(folder):
    status, out, err = run(
        *("identify", "record.csv", "--inputs", "u", "--outputs", "y1,y2", "--dt", "0.1", "--order", "2"),
        *("--json", "--out", "identified.json"),
    )
    content = json.loads(out, parse_constant=pytest.fail)
    assert status == 0 and "wrote identified.json" in err
    table = np.loadtxt("record.csv", delimiter=",", skiprows=1)
    model = hankelred.identify(table[:, :1].T, table[:, 1:].T, 2, dt=0.1)
    assert content["order"] == 2 and content["dt"] == 0.1 and content["samples"] == len(table)
    assert content["output_names"] == ["y1", "y2"]
    assert np.allclose(content["fit"], model.fit) and np.allclose(
        content["held_back_fit"], model.held_back_fit
    )
    assert np.allclose(content["hankel_singular_values"], model.hankel_singular_values)

    omega = np.geomspace(0.1, 10, 50)
    lag = 1 / (1j * omega + 1)
    np.savetxt("response.csv", np.column_stack([omega, lag.real, lag.imag]), delimiter=",")
    status, out, err = run("fit", "response.csv", "--order", "1", "--json", "--out", "fitted.json")
    content = json.loads(out, parse_constant=pytest.fail)
    assert status == 0 and "wrote fitted.json" in err
    assert content["order"] == 1 and content["relative_error"] < 1e-9 and content["frequencies"] == 50
    # the only Hankel singular value of 1 / (s + 1) is 1/2
    assert content["hankel_singular_values"][0] == pytest.approx(0.5)


# --- standard input and output ---


def piped(*arguments, data=b"", stdout=subprocess.PIPE):
    """Run the command in a process of its own, with bytes as its standard input."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(hankelred.__file__))}
    done = subprocess.run(
        [sys.executable, "-m", "hankelred", *arguments],
        input=data,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json", "npz", "mat"])
def test_models_go_through_pipes(kind, folder):
    """The name "-" was refused with "the ending must be one of .mat, .npz, .json"."""
    with open(f"model.{kind}", "rb") as file:
        content = file.read()
    status, out, err = piped("reduce", "-", "--order", "4", "--out", "-", "--format", kind, data=content)
    assert status == 0, err
    assert "order 4 by truncation" in err and "standard-output" not in err
    with open(f"small.{kind}", "wb") as file:
        file.write(out)
    expected = hankelred.reduce(read_model("model.mat"), 4).system
    np.testing.assert_allclose(read_model(f"small.{kind}").A, expected[0], rtol=1e-9, atol=1e-12)
    status, out, err = piped("hsv", "-", "--json", data=out)
    assert (status, err) == (0, "")
    assert len(json.loads(out)["hankel_singular_values"]) == 4


@pytest.mark.slow
def test_tables_go_through_pipes(folder):
    table = (folder / "inputs.csv").read_bytes()
    status, out, err = piped("simulate", "model.mat", "-", "--step", "0.1", "--out", "-", data=table)
    assert status == 0, err
    assert run("simulate", "model.mat", "inputs.csv", "--step", "0.1", "--out", "y.csv")[0] == 0
    assert out == (folder / "y.csv").read_bytes()
    record = (folder / "record.csv").read_bytes()
    options = ("--inputs", "u", "--outputs", "y1", "--dt", "0.2", "--order", "2", "--out", "-")
    status, out, err = piped("identify", "-", *options, data=record)
    assert status == 0 and len(json.loads(out)["A"]) == 2, err


@pytest.mark.slow
def test_nothing_is_written_to_standard_output_after_an_error(folder):
    status, out, err = piped("reduce", "-", "--order", "2", "--out", "-", data=b'{"A": [[1]]}')
    assert (status, out) == (2, b"")
    assert err.startswith("error: standard input: it has no B, C") and err.count("\n") == 1
    status, out, err = piped("simulate", "-", "-", "--out", "y.csv", data=b"{}")
    assert (status, out) == (2, b"") and "standard input can be read once" in err
    status, out, err = piped("reduce", "model.mat", "--out", "-", "--json")
    assert (status, out) == (2, b"") and "cannot both have standard output" in err


def with_input(monkeypatch, data, *arguments):
    """Run the command in this process with bytes as its standard input; return also its bytes of output."""
    output = io.TextIOWrapper(io.BytesIO(), write_through=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    monkeypatch.setattr(sys, "argv", ["hankelred", *arguments])
    err, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code or 0
    return status, output.buffer.getvalue(), err.getvalue()


@pytest.mark.parametrize("source", ["json", "npz", "mat", "level 4", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("target", [None, "json", "npz", "mat"])
def test_standard_input_is_recognized_by_its_first_bytes(folder, monkeypatch, source, target):
    """--format named both ends: `convert - - --format npz` of JSON found it damaged or not a .npz file."""
    if source == "level 4":
        scipy.io.savemat("four.mat", dict(zip("ABCD", system(), strict=True)), format="4")
        data = (folder / "four.mat").read_bytes()
    elif source.startswith("utf"):
        data = (folder / "model.json").read_text().encode(source)
    else:
        data = (folder / f"model.{source}").read_bytes()
    options = () if target is None else ("--format", target)
    status, out, err = with_input(monkeypatch, data, "convert", "-", "-", *options)
    assert (status, err) == (0, "12 states, 2 inputs, 3 outputs, continuous\n")
    (folder / f"copy.{target or 'json'}").write_bytes(out)
    copy = read_model(f"copy.{target or 'json'}")
    assert all(np.array_equal(M, N) for M, N in zip(copy.as_tuple(), system(), strict=True))


@pytest.mark.parametrize(
    "command", [("hsv",), ("norm",), ("reduce", "--order", "2"), ("compare", "--order", "2")]
)
def test_every_command_recognizes_a_model_on_standard_input(folder, monkeypatch, command):
    """Without --format, `hsv -` found a .mat file to be damaged or not a .json file."""
    name, *options = command
    status, out, err = with_input(monkeypatch, (folder / "model.mat").read_bytes(), name, "-", *options)
    assert status == 0, err
    assert out.decode().startswith("12 states, 2 inputs, 3 outputs, continuous")


def test_the_format_of_the_output_is_not_that_of_a_table_on_standard_input(folder, monkeypatch):
    """`identify - --out - --format mat` read its text as a .mat file."""
    options = (
        "--inputs",
        "0",
        "--outputs",
        "1",
        "--dt",
        "0.2",
        "--order",
        "2",
        "--out",
        "-",
        "--format",
        "mat",
    )
    record = np.loadtxt("record.csv", delimiter=",", skiprows=1)[:, :2]
    scipy.io.savemat("record.mat", {"u": record[:, :1], "y": record[:, 1:]})
    expected = hankelred.identify(record[:, 0], record[:, 1], 2, dt=0.2).model
    for name in ("record.csv", "record.mat"):
        status, out, err = with_input(monkeypatch, (folder / name).read_bytes(), "identify", "-", *options)
        assert status == 0, err
        (folder / "identified.mat").write_bytes(out)
        np.testing.assert_allclose(read_model("identified.mat").A, expected.A, rtol=1e-9, atol=1e-12)
    for name in ("response.csv", "response.npz"):
        data = (folder / name).read_bytes()
        status, out, err = with_input(monkeypatch, data, "fit", "-", "--order", "4", *options[-4:])
        assert status == 0 and out.startswith(b"MATLAB 5.0"), err


def test_format_where_the_bytes_do_not_tell(folder, monkeypatch):
    """An archive may follow other bytes: zip files are read from their end."""
    data = b"#!/bin/sh\n" + (folder / "model.npz").read_bytes()
    status, out, err = with_input(monkeypatch, data, "hsv", "-", "--format", "npz")
    assert status == 0 and out.startswith(b"12 states"), err
    status, out, err = with_input(monkeypatch, data, "hsv", "-")
    assert (status, out) == (2, b"") and "standard input is damaged or not a .json file" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("hsv", "-"),
        ("convert", "-", "-", "--format", "npz"),
        ("simulate", "model.mat", "-", "--out", "-"),
        ("identify", "-", "--inputs", "0", "--outputs", "1"),
        ("fit", "-"),
    ],
)
def test_empty_standard_input(folder, monkeypatch, arguments):
    """The message was about JSON: "damaged or not a .json file (Expecting value...)"."""
    assert with_input(monkeypatch, b"", *arguments) == (2, b"", "error: standard input is empty\n")
    if arguments[0] == "hsv":  # <&-
        monkeypatch.setattr(sys, "stdin", None)
        assert run(*arguments) == (2, "", "error: standard input is empty\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("convert", "-", "-", "--format", "csv"),
            "of a model on standard output must be json or npz or mat, got csv",
        ),
        (
            ("reduce", "-", "--order", "2", "--out", "-", "--format", "csv"),
            "of a model on standard output must be",
        ),
        (
            ("simulate", "model.mat", "inputs.csv", "--step", "1", "--out", "-", "--format", "json"),
            "of a table on standard output must be csv, got json",
        ),
    ],
)
def test_formats_that_do_not_fit_what_is_written(folder, monkeypatch, arguments, message):
    """The message was about the ending .csv, although the user gave no ending."""
    status, out, err = with_input(monkeypatch, (folder / "model.json").read_bytes(), *arguments)
    assert (status, out) == (2, b"") and err.startswith(f"error: --format {message}") and err.count("\n") == 1


def test_the_format_of_tables_and_a_model_on_standard_input(folder, monkeypatch):
    """--format csv of the output made a model on standard input a .csv file too."""
    options = ("--step", "0.1", "--out", "-", "--format", "csv")
    data = (folder / "model.npz").read_bytes()
    status, out, err = with_input(monkeypatch, data, "simulate", "-", "inputs.csv", *options)
    assert (status, err) == (0, "400 samples, 3 outputs\n") and out.startswith(b"y0,y1,y2\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("hsv", "model.mat"),
        ("norm", "model.mat"),
        ("compare", "model.mat", "--order", "2"),
        ("reduce", "model.mat", "--order", "2", "--out", "small.json"),
        ("convert", "model.mat", "copy.json"),
        ("simulate", "model.mat", "inputs.csv", "--step", "0.1", "--out", "y.csv"),
        ("identify", "record.csv", "--inputs", "u", "--outputs", "y1", "--dt", "0.2"),
        ("fit", "response.csv"),
    ],
)
def test_a_format_of_no_stream_is_refused(folder, arguments):
    """`convert model.mat copy.json --format npz` wrote JSON, and said nothing of --format."""
    message = (
        "error: --format npz is that of -, standard input or output, and no file is -: leave it out; the "
        "ending of a file tells its format\n"
    )
    assert run(*arguments, "--format", "npz") == (2, "", message)
    assert not {"small.json", "copy.json", "y.csv"} & {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "arguments", "given", "read"),
    [
        ("model.json", ("hsv", "-"), "npz", "json"),
        ("model.mat", ("norm", "-"), "csv", "mat"),
        ("model.npz", ("convert", "-", "copy.json"), "mat", "npz"),
        ("inputs.csv", ("simulate", "model.mat", "-", "--step", "0.1", "--out", "y.csv"), "mat", "csv"),
        ("response.npz", ("fit", "-"), "mat", "npz"),
    ],
)
def test_a_format_that_is_not_that_of_the_input_is_refused(folder, monkeypatch, name, arguments, given, read):
    """The first bytes told the format, and a --format that disagreed was ignored in silence."""
    data = (folder / name).read_bytes()
    message = (
        f"error: --format {given} is not that of standard input, which is read as {read}: leave it out\n"
    )
    assert with_input(monkeypatch, data, *arguments, "--format", given) == (2, b"", message)
    assert not (folder / "copy.json").exists() and not (folder / "y.csv").exists()
    status, _, err = with_input(monkeypatch, data, *arguments, "--format", read)
    assert status == 0, err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("hsv", "model.mat", "--plot", "-"), "a picture"),
        (("reduce", "model.mat", "--order", "2", "--plot", "-"), "a picture"),
        (("reduce", "model.mat", "--order", "2", "--report", "-"), "a report"),
        (("compare", "model.mat", "--order", "2", "--plot", "-"), "a picture"),
        (("identify", "record.csv", "--inputs", "0", "--outputs", "1", "--plot", "-"), "a picture"),
        (("fit", "response.csv", "--plot", "-"), "a picture"),
    ],
)
def test_pictures_and_reports_do_not_go_to_standard_output(folder, arguments, what):
    """The message was "-: a picture ends in .png, .pdf, .svg, got 'no ending'"."""
    assert run(*arguments) == (2, "", f"error: {what} cannot go to standard output: name a file\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes")
@pytest.mark.parametrize(
    "arguments",
    [
        ("hsv", "-"),
        ("hsv", "-", "--json"),
        ("convert", "-", "-", "--format", "npz"),
        ("reduce", "-", "--order", "2", "--out", "-"),
        ("simulate", "-", "inputs.csv", "--step", "0.1", "--out", "-"),
    ],
)
def test_a_reader_that_stops_early_gets_no_traceback(folder, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        status, _, err = piped(*arguments, data=(folder / "model.mat").read_bytes(), stdout=writing)
    finally:
        os.close(writing)
    assert status == 1
    assert "Traceback" not in err and "Exception" not in err and "BrokenPipe" not in err


def test_convert_and_simulate_print_json(folder):
    status, out, _ = run("convert", "model.mat", "copy.json", "--json")
    assert status == 0 and json.loads(out)["states"] == 12
    status, out, _ = run("simulate", "model.mat", "inputs.csv", "--step", "0.1", "--out", "y.csv", "--json")
    assert status == 0 and json.loads(out)["samples"] == 400


def on_terminal(columns, environment, *arguments):
    """What the command prints on a terminal of this many columns, by a pseudo-terminal."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    import struct

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    root = os.path.dirname(os.path.dirname(hankelred.__file__))
    variables |= {"PYTHONPATH": root, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "hankelred", *arguments], stdout=follower, stderr=follower, env=variables
    )
    os.close(follower)
    text = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # the end, on Linux
            break
        if not block:
            break
        text += block
    os.close(leader)
    process.wait(timeout=60)
    return text.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [20, 40, 80])
def test_narrow_terminals_cut_no_digits(columns, folder):
    """At 20 columns a value was printed as "2.9…"."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(columns, {}, "hsv", "model.mat"))
    assert "…" not in text
    values = [f"{value:.6e}" for value in hankelred.hankel_singular_values(read_model("model.mat"))]
    flat = re.sub(r"\s*\r?\n", "\n", text)
    assert all(value in flat for value in values)
    if columns == 40:
        assert max(len(line) for line in flat.splitlines() if "e+0" in line or "e-0" in line) <= 60


@pytest.mark.slow
def test_no_color_means_no_escapes(folder):
    """NO_COLOR switched colors off, and left bold and dim."""
    assert "\x1b[" in on_terminal(80, {}, "hsv", "model.mat")
    assert "\x1b[" not in on_terminal(80, {"NO_COLOR": "1"}, "hsv", "model.mat")
