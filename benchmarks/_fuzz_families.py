"""Families of models that are hard, made from a seed, each with its exact counterpart.

A case is made well scaled first; units of the states and gains are then put on as powers of two, which round
nothing. So the exact counterpart, and how far it moves when the well-scaled data are perturbed, belong to the
model that is handed over whatever its units are.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import control
import numpy as np
import scipy.linalg as sla
import scipy.signal as signal
from helpers import exact as _exact
from helpers.exact import Exact, Rational

#: Relative size of a perturbation of the data, in every matrix (in the Frobenius norm) or coefficient.
PERTURBATION = 4 * np.finfo(float).eps


@dataclass
class Case:
    """A model as a user holds it, and what it is exactly."""

    family: str
    seed: int
    model: Any
    dt: Any
    data: list
    build: Callable
    discrete: bool
    #: gain from the well-scaled model to the one handed over
    gain: float = 1.0
    #: whether the well-scaled data are coefficients, to be perturbed one by one
    coefficients: bool = False

    @property
    def converted(self) -> bool:
        """Whether hankelred works with a state space that was made from the model."""
        return self.coefficients or len(self.data) > 4

    @cached_property
    def exact(self) -> Exact:
        return self.build(self.data)

    @cached_property
    def neighbours(self) -> list[Exact]:
        """Three models whose data are a few units of rounding away."""
        rng = np.random.default_rng(self.seed)
        return [self.build([self._perturbed(M, rng) for M in self.data]) for _ in range(3)]

    def _perturbed(self, M, rng):
        M = np.asarray(M)
        if self.coefficients:
            return M * (1 + PERTURBATION * rng.uniform(-1, 1, M.shape))
        E = rng.standard_normal(M.shape)
        if np.iscomplexobj(M):
            E = E + 1j * rng.standard_normal(M.shape)
        size = np.linalg.norm(E)
        return M + E * (PERTURBATION * np.linalg.norm(M) / size) if size else M


def state_space(A, B, C, D=None, *, discrete, E=None, units=0, gains=(0, 0)):
    """Return what a Case needs of a state space; units of the states and gains of B, C are powers of two."""
    A, B, C = (np.atleast_2d(M) for M in (A, B, C))
    D = np.zeros((C.shape[0], B.shape[1])) if D is None else D
    s, (b, c) = np.ldexp(1.0, np.broadcast_to(units, A.shape[0])), gains
    model = (
        A * s[:, None] / s,
        np.ldexp(1.0, b) * (B * s[:, None]),
        np.ldexp(1.0, c) * (C / s),
        D * 2.0 ** (b + c),
    )
    data = [A, B, C, D]
    if E is not None:
        data.append(E)
        model = (*model, E * s[:, None] / s)
    return {
        "model": model,
        "dt": discrete,
        "data": data,
        "discrete": discrete,
        "gain": 2.0 ** (b + c),
        "build": lambda data: Exact.of(data, discrete=discrete),
    }


# pieces ------------------------------------------------


def sizes(rng, least=1, most=10):
    return int(rng.integers(least, most + 1)), int(rng.integers(1, 4)), int(rng.integers(1, 4))


def coin(rng, share=0.5):
    return bool(rng.random() < share)


def ports(rng, n, m, p, kind=float):
    def normal(*shape):
        M = rng.standard_normal(shape)
        return M + 1j * rng.standard_normal(shape) if kind is complex else M

    return normal(n, m), normal(p, n), normal(p, m) * coin(rng)


def turned(rng, A, B, C, how=None):
    """Return the model in other states: as they are, under a rotation, or under any map."""
    how = rng.choice(["not", "rotated", "mapped"]) if how is None else how
    if how == "not":
        return A, B, C
    T = rng.standard_normal(A.shape)
    if how == "rotated":
        T = np.linalg.qr(T)[0]
    return T @ A @ np.linalg.inv(T), T @ B, C @ np.linalg.inv(T)


def stable(rng, n, *, discrete, kind=float):
    A = rng.standard_normal((n, n))
    if kind is complex:
        A = A + 1j * rng.standard_normal((n, n))
    poles, margin = np.linalg.eigvals(A), 10.0 ** rng.uniform(-3, 0)
    if discrete:
        return A * ((1 - 0.9 * margin) / np.abs(poles).max())
    return A - (poles.real.max() + margin) * np.eye(n)


def pair(w, damping, *, discrete):
    """Return a block with the poles of one oscillator; w in rad/s, or in radians a sample."""
    if discrete:
        r = 1 - damping
        return r * np.array([[np.cos(w), -np.sin(w)], [np.sin(w), np.cos(w)]])
    return w * np.array([[-damping, 1.0], [-1.0, -damping]])


def oscillators(rng, *, discrete, lightest, count=None):
    count = count or int(rng.integers(1, 5))
    blocks = []
    for _ in range(count):
        w = rng.uniform(0.05, 3.0) if discrete else 10.0 ** rng.uniform(-1, 2)
        blocks.append(pair(w, 10.0 ** rng.uniform(lightest, -1), discrete=discrete))
    if coin(rng):
        blocks.append([[rng.uniform(-0.9, 0.9) if discrete else -(10.0 ** rng.uniform(-1, 2))]])
    return sla.block_diag(*blocks)


# families ------------------------------------------------


def random_continuous(rng):
    n, m, p = sizes(rng)
    B, C, D = ports(rng, n, m, p)
    return state_space(stable(rng, n, discrete=False), B, C, D, discrete=False)


def random_discrete(rng):
    n, m, p = sizes(rng)
    B, C, D = ports(rng, n, m, p)
    return state_space(stable(rng, n, discrete=True), B, C, D, discrete=True)


def complex_matrices(rng):
    (n, m, p), discrete = sizes(rng, most=8), coin(rng)
    B, C, D = ports(rng, n, m, p, complex)
    return state_space(stable(rng, n, discrete=discrete, kind=complex), B, C, D, discrete=discrete)


def resonant(rng):
    """Oscillators whose resonances are as narrow as 1e-9."""
    discrete = coin(rng)
    A = oscillators(rng, discrete=discrete, lightest=-9)
    B, C, D = ports(rng, A.shape[0], *sizes(rng)[1:])
    return state_space(*turned(rng, A, B, C), D, discrete=discrete)


def multiple_poles(rng):
    """Jordan blocks, and poles that are nearly multiple."""
    discrete, blocks = coin(rng), []
    for _ in range(int(rng.integers(1, 3))):
        k = int(rng.integers(2, 5))
        pole = rng.uniform(-0.9, 0.9) if discrete else -rng.uniform(0.5, 10)
        gaps = coin(rng) * 10.0 ** rng.uniform(-12, -3) * rng.standard_normal(k)
        blocks.append(np.diag(pole + gaps) + rng.uniform(0.1, 5) * np.eye(k, k=1))
    A = sla.block_diag(*blocks)
    B, C, D = ports(rng, A.shape[0], *sizes(rng)[1:])
    return state_space(*turned(rng, A, B, C), D, discrete=discrete)


def equal_oscillators(rng):
    """Exactly repeated complex pairs with all their eigenvectors."""
    discrete = coin(rng)
    block = pair(rng.uniform(0.1, 3), 10.0 ** rng.uniform(-4, -0.5), discrete=discrete)
    A = np.kron(np.eye(int(rng.integers(2, 5))), block)
    B, C, D = ports(rng, A.shape[0], *sizes(rng)[1:])
    return state_space(*turned(rng, A, B, C), D, discrete=discrete)


def stiff_chain(rng):
    """Compartments in a row, or a ladder of resistors and capacitors, over up to eight decades."""
    n, m, p = sizes(rng, 3)
    decades = rng.uniform(0, 4)
    rates = 10.0 ** rng.uniform(-decades, decades, n + 1)
    capacity = 10.0 ** rng.uniform(-decades, decades, n) if coin(rng) else np.ones(n)
    L = np.diag(rates[:-1] + rates[1:]) - np.diag(rates[1:-1], 1) - np.diag(rates[1:-1], -1)
    B, C, D = np.zeros((n, m)), np.zeros((p, n)), ports(rng, n, m, p)[2]
    B[rng.integers(0, n, m), np.arange(m)] = 1
    C[np.arange(p), rng.integers(0, n, p)] = 1
    return state_space(-L / capacity[:, None], B / capacity[:, None], C, D, discrete=False)


def companion(rng):
    """Companion matrices, with rates far from one in continuous time."""
    discrete, poles = coin(rng), []
    unit = 1.0 if discrete else 10.0 ** rng.uniform(-2, 3)
    for _ in range(int(rng.integers(1, 5))):
        if coin(rng):
            poles.append(rng.uniform(-0.95, 0.95) if discrete else -unit * rng.uniform(0.1, 3))
        else:
            z = rng.uniform(0.1, 0.95) * np.exp(1j * rng.uniform(0.1, 3))
            z = z if discrete else unit * complex(-(10.0 ** rng.uniform(-2, 0)), rng.uniform(0.3, 3))
            poles += [z, np.conj(z)]
    n = len(poles)
    A = sla.companion(np.poly(poles).real)
    C = rng.standard_normal((1, n)) * unit ** np.arange(1, n + 1)
    return state_space(A, np.eye(n)[:, :1], C, discrete=discrete)


def second_order(rng):
    """Masses, dampers and springs as x'' = ..., in companion form."""
    k = int(rng.integers(1, 6))
    mass = 10.0 ** rng.uniform(-1, 1, k)
    spring = 10.0 ** (rng.uniform(0, 8) + rng.uniform(-1, 1, k + 1))
    K = np.diag(spring[:-1] + spring[1:]) - np.diag(spring[1:-1], 1) - np.diag(spring[1:-1], -1)
    light = 10.0 ** rng.uniform(-6, -1)
    damping = light * (K / np.sqrt(spring.mean()) + np.diag(mass) * np.sqrt(spring.mean()))
    zero, eye = np.zeros((k, k)), np.eye(k)
    A = np.block([[zero, eye], [-K / mass[:, None], -damping / mass[:, None]]])
    B = np.vstack([np.zeros((k, 1)), eye[:, :1] / mass[:, None]])
    C = np.hstack([eye[-1:], zero[:1]]) if coin(rng) else np.hstack([zero[:1], eye[-1:]])
    return state_space(A, B, C, discrete=False)


def nearly_nonminimal(rng):
    """Half of the states are reached, or observed, by 1e-6 to 1e-14 only."""
    (n, m, p), discrete = sizes(rng, 2), coin(rng)
    A = stable(rng, n, discrete=discrete)
    B, C, D = ports(rng, n, m, p)
    weak, h = 10.0 ** rng.uniform(-14, -6), n // 2
    A[h:, :h] *= weak
    B[h:] *= weak
    if not discrete:
        A -= max(0.0, np.linalg.eigvals(A).real.max() + 0.1) * np.eye(n)
    else:
        A *= min(1.0, 0.95 / np.abs(np.linalg.eigvals(A)).max())
    return state_space(*turned(rng, A, B, C, rng.choice(["not", "rotated"])), D, discrete=discrete)


def near_the_boundary(rng):
    """Poles within 1e-6 to 1e-11 of the boundary of stability."""
    discrete, distance = coin(rng), 10.0 ** rng.uniform(-11, -6)
    n = int(rng.integers(1, 7))
    slow = np.array([[(1 - distance) * rng.choice([-1, 1]) if discrete else -distance]])
    if coin(rng):
        slow = pair(rng.uniform(0.1, 3), distance, discrete=discrete)
    A = sla.block_diag(stable(rng, n, discrete=discrete), slow)
    B, C, D = ports(rng, A.shape[0], *sizes(rng)[1:])
    return state_space(*turned(rng, A, B, C, rng.choice(["not", "rotated"])), D, discrete=discrete)


def far_gains(rng):
    """B and C of sizes from 1e-60 to 1e60, together or against each other."""
    discrete, b = coin(rng), int(rng.integers(-200, 201))
    c = int(rng.choice([-b, b, int(rng.integers(-200, 201))]))
    n = int(rng.integers(1, 9))
    A = stable(rng, n, discrete=discrete)
    if coin(rng):
        A = oscillators(rng, discrete=discrete, lightest=-3)
    B, C, D = ports(rng, A.shape[0], *sizes(rng)[1:])
    return state_space(*turned(rng, A, B, C), D, discrete=discrete, gains=(b, c))


def far_units(rng):
    """States in units from 1e-12 to 1e12."""
    (n, m, p), discrete = sizes(rng, 2), coin(rng)
    B, C, D = ports(rng, n, m, p)
    units = rng.integers(-40, 41, n)
    return state_space(stable(rng, n, discrete=discrete), B, C, D, discrete=discrete, units=units)


def kept_poles(rng):
    """Integrators, undamped oscillators and unstable poles beside stable ones, under exact integer shears."""
    discrete, n = coin(rng), int(rng.integers(0, 6))
    blocks = [np.round(stable(rng, n, discrete=discrete) * 2**20) / 2**20] if n else []
    half = [[0.0, 1], [-1, 0]] if discrete else [[0.0, 2], [-0.5, 0]]
    chain = [[1.0, 1], [0, 1]] if discrete else [[0.0, 1], [0, 0]]
    unstable = [[1.5, -1], [0.5, 1.25]] if discrete else [[0.5, 1], [-1, 0.25]]
    single = [[1.0]] if discrete else [[0.0]]
    names = rng.choice(4, int(rng.integers(1, 3)), replace=False)
    blocks += [[half, chain, unstable, single][k] for k in names]
    A = sla.block_diag(*blocks)
    B, C, D = ports(rng, A.shape[0], *sizes(rng)[1:])
    for _ in range(int(rng.integers(0, 4)) if A.shape[0] > 1 else 0):
        # row i plus t times row j, column j minus t times column i: exact in these few bits
        (i, j), t = rng.choice(A.shape[0], 2, replace=False), int(rng.integers(-2, 3))
        A[i] += t * A[j]
        A[:, j] -= t * A[:, i]
    return state_space(A, B, C, D, discrete=discrete)


def dead_beat(rng):
    """Delays and other nilpotent parts: every pole, or some of them, at zero."""
    k = int(rng.integers(1, 9))
    A = np.eye(k, k=-1) * rng.uniform(0.2, 3)
    if coin(rng):
        n = int(rng.integers(1, 4))
        A = sla.block_diag(A, stable(rng, n, discrete=True))
    B, C, D = ports(rng, A.shape[0], *sizes(rng)[1:])
    if coin(rng):
        B, C, D = np.eye(A.shape[0])[:, :1], rng.standard_normal((1, A.shape[0])), None
    return state_space(*turned(rng, A, B, C), D, discrete=True)


def descriptor(rng):
    """Models with a fifth matrix E, nonsingular but not well conditioned, in rows of different units."""
    (n, m, p), discrete = sizes(rng), coin(rng)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    E = U @ np.diag(10.0 ** rng.uniform(-5, 0, n)) @ V
    B, C, D = ports(rng, n, m, p)
    case = state_space(E @ stable(rng, n, discrete=discrete), E @ B, C, D, discrete=discrete, E=E)
    rows = np.ldexp(1.0, rng.integers(-30, 31, n))[:, None]
    A, B, C, D, E = case["model"]
    case["model"] = rows * A, rows * B, C, D, rows * E
    return case


def _denominator(rng, undamped, discrete):
    """Return factors: stable poles, and undamped pairs or integrators where wanted."""
    factors = []
    for _ in range(int(rng.integers(0 if undamped else 1, 4))):
        if discrete:
            z = rng.uniform(-0.9, 0.9)
            factors.append([1.0, -z] if coin(rng) else [1.0, -2 * abs(z) * np.cos(rng.uniform(0, 3)), z * z])
        else:
            w = 10.0 ** rng.uniform(-1, 2)
            factors.append([1.0, w] if coin(rng) else [1.0, 2 * 10.0 ** rng.uniform(-2, 0) * w, w * w])
    if undamped:
        w = 10.0 ** rng.uniform(np.log10(0.05), np.log10(2000))
        if coin(rng):
            w = float(rng.choice([0.1, 0.5, 1, 2, 3, 10, 60, 100, 377, 1000, 2000]))
        if discrete:
            factors.append([1.0, -2 * np.cos(min(w, 3.0)), 1.0] if coin(rng, 0.8) else [1.0, -1.0])
        else:
            factors.append([1.0, 0.0, w * w] if coin(rng, 0.8) else [1.0, 0.0])
    return factors


def _rational(rng, undamped):
    discrete = coin(rng)
    p, m = (1, 1) if coin(rng, 0.6) else (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    shared = _denominator(rng, undamped, discrete)
    num, den, data = [], [], []
    for _ in range(p):
        num.append([])
        den.append([])
        for _ in range(m):
            factors = shared if coin(rng, 0.7) else _denominator(rng, undamped and coin(rng), discrete)
            d = np.array([1.0])
            for factor in factors:
                d = np.polymul(d, factor)
            roots = np.abs(np.roots(d))
            size = roots.max() if d.size > 1 and not discrete and roots.max() > 0 else 1.0
            k = int(rng.integers(1, d.size + 1))
            n = rng.standard_normal(k) * size ** (np.arange(k) + float(d.size - k))
            num[-1].append(n)
            den[-1].append(d)
            data += [n, d]

    def build(data):
        entries = iter(data)
        rows = [[(next(entries), next(entries)) for _ in range(m)] for _ in range(p)]
        rational = Rational.of([[n for n, _ in row] for row in rows], [[d for _, d in row] for row in rows])
        return rational.realization(discrete=discrete)

    scipy_too = p == m == 1 and coin(rng)
    if scipy_too:
        model = signal.TransferFunction(num[0][0], den[0][0], **({"dt": 0.5} if discrete else {}))
    else:
        model = control.tf(num, den, 0.5 if discrete else 0)
    return {
        "model": model,
        "dt": discrete,
        "data": data,
        "build": build,
        "discrete": discrete,
        "coefficients": True,
    }


def transfer_functions(rng):
    return _rational(rng, undamped=False)


def undamped_transfer_functions(rng):
    """Poles on the boundary of stability: where a test on the axis would meet them."""
    return _rational(rng, undamped=True)


def zeros_poles_gain(rng):
    discrete, poles, zeros = coin(rng), [], []
    for _ in range(int(rng.integers(1, 5))):
        w = 10.0 ** rng.uniform(-1, 2)
        if coin(rng):
            poles.append([rng.uniform(-0.9, 0.9) if discrete else -w])
        else:
            damping = 0.0 if coin(rng, 0.3) else 10.0 ** rng.uniform(-3, -0.3)
            z = (1 - damping) * np.exp(1j * rng.uniform(0.1, 3)) if discrete else w * complex(-damping, 1)
            poles.append([z, np.conj(z)])
    for _ in range(int(rng.integers(0, len(poles) + 1))):
        zeros.append(rng.uniform(-2, 2))
    poles = np.array([z for group in poles for z in group], dtype=complex)
    data = [np.array(zeros), poles, np.array([rng.uniform(0.1, 5)])]

    def build(data):
        zeros, poles, gain = data
        # conjugate pairs stay so, whatever a perturbation did
        upper = [z for z in poles if z.imag > 0]
        exact = [z for z in poles if z.imag == 0] + upper + [np.conj(z) for z in upper]
        num = _exact.acb_poly.from_roots([_exact.number(z) for z in zeros]) * _exact.number(gain[0])
        den = _exact.acb_poly.from_roots([_exact.number(z) for z in exact])
        return Rational([[num]], [[den]]).realization(discrete=discrete)

    model = signal.ZerosPolesGain(data[0], data[1], data[2][0], **({"dt": 0.5} if discrete else {}))
    return {
        "model": model,
        "dt": discrete,
        "data": data,
        "build": build,
        "discrete": discrete,
        "coefficients": True,
    }


FAMILIES = {
    family.__name__.replace("_", " "): family
    for family in (
        random_continuous,
        random_discrete,
        complex_matrices,
        resonant,
        multiple_poles,
        equal_oscillators,
        stiff_chain,
        companion,
        second_order,
        nearly_nonminimal,
        near_the_boundary,
        far_gains,
        far_units,
        kept_poles,
        dead_beat,
        descriptor,
        transfer_functions,
        undamped_transfer_functions,
        zeros_poles_gain,
    )
}


def make(family: str, seed: int) -> Case:
    """Return the case of a family and a seed, the same on every machine."""
    rng = np.random.default_rng([zlib.crc32(family.encode()), seed])
    return Case(family=family, seed=seed, **FAMILIES[family](rng))
