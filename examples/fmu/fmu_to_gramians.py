"""Empirical Gramians of an FMU for co-simulation (FMI 2), by FMPy.

    pip install fmpy pythonfmu
    pythonfmu build -f tanks.py             # or an FMU of yours: see the arguments of simulator_of
    python fmu_to_gramians.py Tanks.fmu

The FMU must let its states be set before a run. The two tanks here are linear near their steady level, where
the Hankel singular values are known: (sqrt(2) + 1) / 2 and (sqrt(2) - 1) / 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import fmpy
import numpy as np
from fmpy.fmi2 import FMU2Slave

import hankelred

STEP = 0.1  # s


def simulator_of(path, inputs, states, outputs, step):
    """Return an FMU as a simulator, given the names of its variables and the communication step (s)."""
    folder = fmpy.extract(str(path))
    description = fmpy.read_model_description(folder)
    references = {variable.name: variable.valueReference for variable in description.modelVariables}
    inputs, states, outputs = ([references[name] for name in names] for names in (inputs, states, outputs))

    def simulate(x0, u):
        fmu = FMU2Slave(
            guid=description.guid,
            unzipDirectory=folder,
            modelIdentifier=description.coSimulation.modelIdentifier,
            instanceName="run",
        )
        fmu.instantiate()
        fmu.setupExperiment(startTime=0.0)
        fmu.setReal(states, x0)
        fmu.enterInitializationMode()
        fmu.exitInitializationMode()
        x, y = np.empty((len(states), u.shape[1])), np.empty((len(outputs), u.shape[1]))
        for k in range(u.shape[1]):
            fmu.setReal(inputs, u[:, k])  # constant until the next sample
            x[:, k], y[:, k] = fmu.getReal(states), fmu.getReal(outputs)
            fmu.doStep(currentCommunicationPoint=k * step, communicationStepSize=step)
        fmu.terminate()
        fmu.freeInstance()
        return x, y

    return simulate


def main():
    """Print the Hankel singular values of the two tanks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("fmu", type=Path)
    simulate = simulator_of(parser.parse_args().fmu, ["inflow"], ["upper", "lower"], ["lower"], STEP)
    gramians = hankelred.empirical_gramians(
        simulate,
        step=STEP,
        horizon=40.0,
        steady_state=[1.0, 1.0],
        steady_input=[1.0],
        input_scales=0.01,
        state_scales=0.01,
        excitation="step",
    )
    print("Hankel singular values:", *(f"{value:.5f}" for value in gramians.hankel_singular_values))


if __name__ == "__main__":
    main()
