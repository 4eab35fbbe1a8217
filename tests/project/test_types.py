"""What a type checker of a user says about results: the type of the reduced model is that of the model."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
from typing import Any, assert_type
import numpy as np
import hankelred
from hankelred import ModalSystem, Reduction, SecondOrderModel

def check(modal: ModalSystem, chain: SecondOrderModel, any_reduction: Reduction) -> None:
    assert_type(hankelred.reduce(modal).system, ModalSystem)
    assert_type(hankelred.reduce(modal, 2, method="modal").at(1).system, ModalSystem)
    assert_type(hankelred.reduce(modal, [1, 2]), list[Reduction[ModalSystem]])
    hankelred.reduce((np.eye(2), np.eye(2), np.eye(2), 0), 1).system[0].shape
    hankelred.reduce({"A": np.eye(2), "B": np.eye(2), "C": np.eye(2)}, 1).system[0].shape
    assert_type(any_reduction.system, Any)
    hankelred.reduce(modal, 2).system.no_such_attribute  # line 14
    hankelred.reduce(modal, "two")  # line 15
"""


@pytest.mark.slow
def test_type_of_the_reduced_model(tmp_path):
    api = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    # errors are reported in the program only, not in what it imports
    out, err, _ = api.run(
        [*options, "--follow-imports=silent", "--python-executable", sys.executable, str(program)]
    )
    errors = [line.split("program.py:")[1] for line in out.splitlines() if ": error:" in line]
    assert err == "" and [line.split(":")[0] for line in errors] == ["14", "15"], out
    assert "no_such_attribute" in errors[0] and "reduce" in errors[1]
