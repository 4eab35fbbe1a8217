"""The package as a whole: its imports, exports and documentation, and which folder imports which."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.reference import random_system

import hankelred

PACKAGE = Path(hankelred.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "matplotlib", "control", "scipy.signal", "slycot", "transformers", "pandas")


def in_a_fresh_python(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_import_is_lean():
    out = in_a_fresh_python(f"import hankelred, sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert out.strip() == "[]"


@pytest.mark.slow
def test_names_are_imported_when_they_are_used():
    # Story: `import hankelred` loaded every module, 0.7 s on a slow machine, also for `hankelred --help`.
    code = """
import sys, hankelred
print([m for m in ("numpy", "scipy", "click") if m in sys.modules])
names = {name: getattr(hankelred, name) for name in hankelred.__all__}
from hankelred import *
print(all(globals()[name] is value for name, value in names.items()), set(names) <= set(dir(hankelred)))
print(hankelred.models.linear_model.DENSE_LIMIT > 0, hasattr(hankelred, "no_such_name"))
"""
    assert in_a_fresh_python(code).split("\n")[:3] == ["[]", "True True", "True False"]


@pytest.mark.slow
def test_work_on_tuples_stays_lean():
    code = f"""
import sys, numpy as np, hankelred
system = np.diag([-1.0, -2.0]), np.ones((2, 1)), np.ones((1, 2)), 0
r = hankelred.reduce(system, 1)
r.error(), hankelred.norm(system), hankelred.gramian(system), hankelred.modal_form(system)
print([m for m in {HEAVY!r} if m in sys.modules])
"""
    assert in_a_fresh_python(code).strip() == "[]"


@pytest.mark.slow
def test_works_where_slycot_cannot_be_imported():
    code = """
import sys
sys.modules["slycot"] = None
import numpy as np, control, hankelred
system = control.ss(np.diag([-1.0, -1e-9]), np.ones((2, 1)), np.ones((1, 2)), 0)
r = hankelred.reduce(system, 1)
print(r.order, r.solver, r.error() <= r.error_bound * (1 + 1e-6))
"""
    assert in_a_fresh_python(code).split() == ["1", "cauchy", "True"]


def test_nothing_imports_slycot_or_torch():
    for path in MODULES:
        for name in imported_names(path, everywhere=True):
            assert name.split(".")[0] not in ("slycot", "torch", "transformers"), (path.name, name)


def test_all_is_what_exists():
    assert hankelred.__all__ == sorted(hankelred.__all__)
    assert len(set(hankelred.__all__)) == len(hankelred.__all__)
    public = {
        name
        for name in dir(hankelred)
        if not name.startswith("_")
        and not inspect.ismodule(getattr(hankelred, name))
        and name != "annotations"
    }
    assert public == set(hankelred.__all__)
    assert (PACKAGE / "py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", hankelred.__version__)


def public_functions():
    for name in hankelred.__all__:
        value = getattr(hankelred, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and not issubclass(value, Exception):
            for method, function in inspect.getmembers(value, inspect.isfunction):
                if not method.startswith("_"):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize("name, function", list(public_functions()))
def test_docstring(name, function):
    doc = inspect.getdoc(function)
    assert (doc and doc.splitlines()[0].endswith((".", ";"))) or "\n\n" in doc
    parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "args", "kwargs")]
    if "." in name:
        return  # methods of results are short; their parameters are those of the function
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert re.search(rf"^{section}\n-+$", doc, re.M), f"{name} has no section {section}"
    described = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n[A-Z]\w+\n-+\n|\Z)", doc, re.S | re.M).group(1)
    heads = " ".join(line for line in described.splitlines() if line and not line.startswith(" "))
    for parameter in parameters:
        assert re.search(rf"\b{parameter}\b", heads), f"{name}: {parameter} is not described"
    assert ">>>" in doc


@pytest.mark.parametrize("name", [n for n in hankelred.__all__ if inspect.isclass(getattr(hankelred, n))])
def test_classes_are_documented(name):
    assert inspect.getdoc(getattr(hankelred, name)), name


def test_errors_are_value_errors():
    for name in hankelred.__all__:
        value = getattr(hankelred, name)
        if inspect.isclass(value) and name.endswith("Error"):
            assert issubclass(value, hankelred.HankelredError) and issubclass(value, ValueError)
    assert issubclass(hankelred.ReductionWarning, UserWarning)


def imported_names(path, *, everywhere=False):
    """Names of modules imported; those inside functions and for type checkers only with everywhere."""
    tree = ast.parse(path.read_text())
    if everywhere:
        nodes = list(ast.walk(tree))
    else:
        nodes = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level) + (node.module or "")


def test_heavy_modules_are_imported_only_inside_functions():
    for path in MODULES:
        for name in imported_names(path):
            assert name.split(".")[0] not in ("matplotlib", "control", "torch"), (path.name, name)
            assert name != "scipy.signal", path.name


@pytest.mark.slow
def test_no_bare_assertion_guards_user_input():
    # asserts vanish under -O, and their message is empty
    code = """
import numpy as np, hankelred
try:
    hankelred.reduce((np.eye(2), np.ones((3, 1)), np.ones((1, 2)), 0))
except hankelred.HankelredError as error:
    print("refused:", bool(str(error)))
"""
    result = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False
    )
    assert result.stdout.split() == ["refused:", "True"], result.stderr


def test_same_answer_twice():
    # the probes of the residual are random numbers from a fixed seed
    system = random_system(0, 20, 2, 2)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = hankelred.reduce(system, 5), hankelred.reduce(system, 5)
    for M, N in zip(first.system, second.system, strict=True):
        np.testing.assert_array_equal(M, N)
    assert first.residual == second.residual
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
