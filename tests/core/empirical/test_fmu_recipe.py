"""The recipe for FMUs runs as it stands in examples/fmu, with an FMU that is made here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[3] / "examples" / "fmu"


@pytest.mark.slow
def test_fmu_has_the_singular_values_of_its_linearization(tmp_path):
    pytest.importorskip("fmpy", reason="FMPy, which runs FMUs, is not installed")
    pytest.importorskip("pythonfmu", reason="pythonfmu, which makes FMUs, is not installed")
    build = [sys.executable, "-m", "pythonfmu", "build", "-f", str(FOLDER / "tanks.py"), "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    command = [sys.executable, str(FOLDER / "fmu_to_gramians.py"), str(tmp_path / "Tanks.fmu")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    values = [float(word) for word in done.stdout.split(":")[1].split()]
    np.testing.assert_allclose(values, [(2**0.5 + 1) / 2, (2**0.5 - 1) / 2], atol=1e-4)
