"""Natural records for `bench_identification.py records`; none is part of this repository.

`DAISY` are whitespace columns of the DaISy collection (De Moor et al., KU Leuven). `OTHERS` are from
elsewhere: nobody here had looked at a fit to them before the first run of docs/identification.md. They
are read from one folder, with the names that they have at their sources, all on github.com:

- gas-furnace.csv: Box and Jenkins' gas furnace, gas rate and CO2, 296 samples of 9 s, in
  WizardKingZ/time_series_outlier_detection;
- dataBenchmark.csv: cascaded tanks (Schoukens and Noel, nonlinearbenchmark.org), pump voltage and a level
  that overflows, 1024 samples of 4 s, in
  MiladBnit/Uncertainty-quantification-in-neural-state-space-models-applications;
- buck_id.csv: a buck converter, 1001 samples; x_cc.csv and y_cc.csv: an electromechanical generator, every
  500th of 500,000 samples; f-16.txt: a vibration test of an aircraft wing, voltage, force and acceleration,
  the first 4096 samples; all in wilsonrljr/sysidentpy-data;
- SNLS80mV.mat: the silverbox (nonlinearbenchmark.org), an electronic oscillator with a cubic spring, samples
  50,000 to 54,095, in antonior92/sysid-neuralnet at commit 8da23c9;
- wh.mat: the circuit of a Wiener-Hammerstein system (nonlinearbenchmark.org), samples 20,000 to 24,095, in
  gsmfnc/LPV_SysId.

The choice of samples was made before any model was estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

#: inputs (m, T), outputs (p, T), sampling time in seconds (1 where none is stated)
Record = tuple[Any, Any, float]

#: columns of inputs and outputs, sampling time in seconds
_DAISY: dict[str, tuple[list[int], list[int], float]] = {
    "dryer": ([0], [1], 0.08),
    "robot_arm": ([0], [1], 1.0),
    "CD_player_arm": ([0, 1], [2, 3], 1.0),
    "ballbeam": ([0], [1], 0.1),
    "exchanger": ([1], [2], 1.0),
    "heating_system": ([1], [2], 2.0),
    "cstr": ([1], [2, 3], 0.1),
    "steamgen": ([1, 2, 3, 4], [5, 6, 7, 8], 3.0),
}


def _daisy(name: str) -> Callable[[Path], Record]:
    def load(folder: Path) -> Record:
        inputs, outputs, dt = _DAISY[name]
        table = np.loadtxt(folder / f"{name}.dat")
        return table[:, inputs].T, table[:, outputs].T, dt

    return load


def _csv(path: Path, columns: list[int], **options: Any) -> Any:
    return np.genfromtxt(path, delimiter=",", usecols=columns, skip_header=1, **options).T


def _gas_furnace(folder: Path) -> Record:
    u, y = _csv(folder / "gas-furnace.csv", [0, 1])
    return u[None], y[None], 9.0


def _tanks(folder: Path) -> Record:
    u, y = _csv(folder / "dataBenchmark.csv", [0, 2], max_rows=1024)
    return u[None], y[None], 4.0


def _buck(folder: Path) -> Record:
    u, y = _csv(folder / "buck_id.csv", [1, 2])
    return u[None], y[None], 1.0


def _generator(folder: Path) -> Record:
    u, y = (np.loadtxt(folder / f"{name}_cc.csv")[::500] for name in "xy")
    return u[None], y[None], 1.0


def _f16(folder: Path) -> Record:
    table = np.loadtxt(folder / "f-16.txt", delimiter=",", max_rows=4096).T
    return table[:2], table[2:], 1.0


def _silverbox(folder: Path) -> Record:
    file = scipy.io.loadmat(folder / "SNLS80mV.mat")
    u, y = (file[name].ravel()[50_000:54_096] for name in ("V1", "V2"))
    return u[None], y[None], 1.0


def _wiener_hammerstein(folder: Path) -> Record:
    file = scipy.io.loadmat(folder / "wh.mat")
    u, y = (file[name].ravel()[20_000:24_096] for name in ("U", "Y"))
    return u[None], y[None], 1.0


DAISY: dict[str, Callable[[Path], Record]] = {name: _daisy(name) for name in _DAISY}
OTHERS: dict[str, Callable[[Path], Record]] = {
    "gas_furnace": _gas_furnace,
    "tanks": _tanks,
    "buck": _buck,
    "generator": _generator,
    "f16": _f16,
    "silverbox": _silverbox,
    "wiener_hammerstein": _wiener_hammerstein,
}
