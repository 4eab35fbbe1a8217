"""Random circuits as lists of parts, their modified nodal analysis, and what their graphs say about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUND = -1
#: Decades of ohms, farads and henries.
DECADES = {"R": (-1, 6), "C": (-15, -6), "L": (-12, -3)}
#: What makes det(s E - A) = 0.
FAULTS = ("floating", "current cutset", "voltage loop")


@dataclass
class Netlist:
    """Parts (kind, from, to, value) between the nodes 0, 1, ...; ground is -1.

    Kinds are R, L, C, V and I: sources, which are inputs.
    """

    nodes: int
    parts: list[tuple[str, int, int, float]]

    def of_kind(self, kinds):
        return [part for part in self.parts if part[0] in kinds]

    def matrices(self):
        """Return A, B, C, D, E: node voltages, currents of inductors, currents of voltage sources.

        Outputs are three node voltages and the currents of the voltage sources.
        """
        inductors, voltages, currents = (self.of_kind(kind) for kind in "LVI")
        n = self.nodes + len(inductors) + len(voltages)
        A, E = np.zeros((n, n)), np.zeros((n, n))
        B = np.zeros((n, len(voltages) + len(currents)))

        def stamp(M, rows, columns, value):
            for i, row_sign in zip(rows, (1, -1), strict=True):
                for j, sign in zip(columns, (1, -1), strict=True):
                    if i >= 0 and j >= 0:
                        M[i, j] += row_sign * sign * value

        k = self.nodes
        for kind, a, b, value in inductors + voltages:
            for node, sign in ((a, 1.0), (b, -1.0)):
                if node >= 0:
                    A[node, k] -= sign
                    A[k, node] += sign
            if kind == "L":
                E[k, k] = value
            else:
                B[k, k - self.nodes - len(inductors)] = -1
            k += 1
        source = len(voltages)
        for kind, a, b, value in self.parts:
            if kind == "R":
                stamp(A, (a, b), (a, b), -1 / value)
            elif kind == "C":
                stamp(E, (a, b), (a, b), value)
            elif kind == "I":
                for node, sign in ((a, -1.0), (b, 1.0)):
                    if node >= 0:
                        B[node, source] += sign
                source += 1
        C = np.zeros((min(3, self.nodes) + len(voltages), n))
        for row, node in enumerate(np.linspace(0, self.nodes - 1, min(3, self.nodes)).astype(int)):
            C[row, node] = 1
        for row in range(len(voltages)):
            C[min(3, self.nodes) + row, self.nodes + len(inductors) + row] = 1
        return A, B, C, np.zeros((C.shape[0], B.shape[1])), E

    def components(self, kinds):
        """Return the number of connected components of the graph of some kinds of parts, ground included."""
        parent = list(range(self.nodes + 1))

        def root(i):
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for _, a, b, _ in self.of_kind(kinds):
            parent[root(a + 1)] = root(b + 1)
        return len({root(i) for i in range(self.nodes + 1)})

    def is_regular(self):
        """Return whether det(s E - A) is not zero.

        It is zero exactly if a part is connected to the rest by current sources at most, or if voltage
        sources are in a loop.
        """
        loops = len(self.of_kind("V")) - (self.nodes + 1 - self.components("V"))
        return self.components("RLCV") == 1 and loops == 0

    def finite_order(self):
        """Return the number of finite poles of a regular circuit.

        One for each capacitor and inductor, less the loops of capacitors and voltage sources and the cutsets
        of inductors and current sources.
        """
        capacitive = (self.nodes + 1 - self.components("CV")) - len(self.of_kind("V"))
        cutsets = self.components("RCV") - self.components("RLCV")
        return capacitive + len(self.of_kind("L")) - cutsets


def random_netlist(seed, *, largest=200, fault=None):
    """Return a connected circuit with values over several decades, well posed unless a fault is named.

    Faults: "floating" (a part without a path to ground), "current cutset" (a node with current sources only),
    "voltage loop" (two voltage sources in parallel, or three in a triangle).
    """
    rng = np.random.default_rng(seed)
    n = round(10 ** rng.uniform(np.log10(3), np.log10(largest / 1.5)))
    weights = rng.dirichlet((2.0, 1.5, 1.0))
    centers = {kind: rng.uniform(low + 1, high - 1) for kind, (low, high) in DECADES.items()}
    wide = rng.random() < 0.5

    def value(kind):
        low, high = DECADES[kind]
        exponent = rng.uniform(low, high) if wide else centers[kind] + rng.uniform(-1, 1)
        return float(f"{10**exponent:.3g}")

    def part(a, b):
        kind = str(rng.choice(["R", "C", "L"], p=weights))
        return kind, a, b, value(kind)

    parts = []
    shape = rng.choice(["tree", "ladder", "grid"])
    width = max(2, int(np.sqrt(n)))
    for node in range(n):
        if shape == "tree":
            parts.append(part(node, int(rng.integers(-1, node)) if node else GROUND))
            if rng.random() < 0.6:
                parts.append(part(node, int(rng.integers(-1, n))))
        elif shape == "ladder":
            parts.append(part(node, node - 1))
            parts.append(part(node, GROUND))
        else:
            parts.append(part(node, node - 1 if node % width else GROUND))
            if node >= width:
                parts.append(part(node, node - width))
            if rng.random() < 0.3:
                parts.append(part(node, GROUND))
    parts = [one for one in parts if one[1] != one[2]]
    netlist = Netlist(n, parts)
    for _ in range(int(rng.integers(1, 4))):
        a, b = int(rng.integers(n)), int(rng.choice([GROUND, int(rng.integers(-1, n))]))
        if a == b:
            continue
        kind = "V" if rng.random() < 0.5 else "I"
        before = netlist.components("V")
        parts.append((kind, a, b, 1.0))
        if kind == "V" and netlist.components("V") == before:
            parts[-1] = ("I", a, b, 1.0)
    if not netlist.of_kind("VI"):
        parts.append(("I", 0, GROUND, 1.0))
    if fault == "floating":
        netlist.nodes += 2
        parts += [part(n, n + 1), part(n, n + 1)]
    elif fault == "current cutset":
        netlist.nodes += 1
        parts += [("I", n, int(rng.integers(-1, n)), 1.0)]
    elif fault == "voltage loop":
        a, b = int(rng.integers(n)), GROUND
        parts += [("V", a, b, 1.0), ("V", a, b, 1.0)]
    return netlist


def exact_response(system, s, bits=600):
    """Return C (s E - A)^-1 B + D in multiprecision arithmetic."""
    import flint

    before, flint.ctx.prec = flint.ctx.prec, bits
    try:
        A, B, C, D, E = (np.asarray(M, float) for M in system)
        z = flint.acb(s.real, s.imag)
        n = A.shape[0]
        pencil = flint.acb_mat(n, n, [z * float(e) - float(a) for e, a in zip(E.flat, A.flat, strict=True)])
        x = pencil.solve(flint.acb_mat(*B.shape, [float(b) for b in B.flat]))
        y = flint.acb_mat(*C.shape, [float(c) for c in C.flat]) * x
        out = [[complex(y[i, j]) for j in range(B.shape[1])] for i in range(C.shape[0])]
        return np.array(out) + D
    finally:
        flint.ctx.prec = before


def difference(system, model):
    """Return the largest difference of a model from a circuit at nine frequencies, in units of what is right.

    That is 1e-8 of the response, ten roundings of each entry of A and E, and 1e-13 of the largest response of
    the finite part, and of the polynomial: they may cancel.
    """
    A, B, C, _, E = system
    known = model.infinite.poles if model.infinite else None
    poles = np.abs(np.linalg.eigvals(model.A) if known is None else known)
    poles = poles[poles > 0] if np.any(poles > 0) else np.ones(1)
    frequencies = np.geomspace(poles.min() / 10, poles.max() * 10, 9)
    rows = []
    n = model.n_states
    states = (model.A, model.B, model.C, np.zeros_like(model.D), np.eye(n))
    for w in frequencies:
        s = 1j * w
        known = exact_response(system, s)
        polynomial = sum(s**k * D for k, D in enumerate((model.D, *model.improper)))
        finite = exact_response(states, s) if n else 0 * polynomial
        x = np.linalg.solve(s * E - A, B.astype(complex))
        y = np.linalg.solve((s * E - A).T, C.T.astype(complex))
        moved = np.linalg.norm(np.abs(y).T @ ((w * np.abs(E) + np.abs(A)) @ np.abs(x)))
        accepted = 1e-8 * np.linalg.norm(known) + 10 * np.finfo(float).eps * moved
        accepted += 1e-13 * np.linalg.norm(polynomial)
        rows.append((np.linalg.norm(finite + polynomial - known), accepted, np.linalg.norm(finite)))
    off, levels, sizes = np.array(rows).T
    levels += 1e-13 * sizes.max()
    return float((off / np.where(off > 0, levels, 1.0)).max())
