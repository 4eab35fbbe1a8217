"""Random circuits by modified nodal analysis, against multiprecision arithmetic and the graph of the circuit.

    python benchmarks/fuzz_circuits.py [--cases 300] [--largest 100]

Three of four circuits are well posed: trees, ladders and grids of resistors (1e-1 to 1e6 ohms), capacitors
(1e-15 to 1e-6 farads) and inductors (1e-12 to 1e-3 henries) with sources between any nodes. One of four has a
fault, so that det(s E - A) = 0. The number of finite poles is known from the graph; the transfer function is
evaluated with 600 bits at nine frequencies. A difference counts as right up to 1e-8 of the response, ten
roundings of the entries of A and E, and 1e-13 of the largest response of the finite part, and of the
polynomial.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.netlists import FAULTS, difference, random_netlist

from hankelred import HankelredError
from hankelred.models.linear_model import as_model

OUTCOMES = ("right", "refused", "wrong order", "wrong response", "foreign exception")


def outcome(netlist):
    """Return what became of a circuit, and the details of what is no success."""
    regular = netlist.is_regular()
    try:
        model = as_model(netlist.matrices())
    except HankelredError as error:
        named = "are not determined" in str(error)
        return ("right" if named and not regular else "refused"), str(error)
    except Exception as error:
        return "foreign exception", repr(error)
    if not regular or model.n_states != netlist.finite_order():
        return "wrong order", f"{model.n_states} finite poles"
    off = difference(netlist.matrices(), model)
    return ("right", "") if off <= 1 else ("wrong response", f"{off:.1e} times what is accepted")


def main():
    """Print a table of the outcomes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--largest", type=int, default=100)
    arguments = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    for seed in range(arguments.cases):
        fault = None if seed % 4 else FAULTS[seed // 4 % len(FAULTS)]
        result, details = outcome(random_netlist(seed, largest=arguments.largest, fault=fault))
        counts.setdefault(fault or "well posed", Counter())[result] += 1
        if result != "right":
            print(f"seed {seed}: {result}: {details}", flush=True)
    print("| circuits | cases | " + " | ".join(OUTCOMES) + " |")
    print("|---" * (len(OUTCOMES) + 2) + "|")
    for name, counter in counts.items():
        print(f"| {name} | {counter.total()} | " + " | ".join(str(counter[one]) for one in OUTCOMES) + " |")


if __name__ == "__main__":
    main()
