"""Linear models in multiprecision arithmetic: responses, Gramians, norms and peaks of exactly these numbers.

Nothing here is shared with the package. Numbers are balls of python-flint at `BITS` bits; a result is rounded
to double precision only when it leaves this file, so differences of nearly equal models keep their digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest

flint = pytest.importorskip("flint", reason="python-flint is not installed (extra test)")

BITS = 600
flint.ctx.prec = BITS

acb, acb_mat, acb_poly = flint.acb, flint.acb_mat, flint.acb_poly


def number(x):
    """Return a double, real or complex, as an exact number."""
    return acb(float(np.real(x)), float(np.imag(x)))


def matrix(M):
    """Return an array of doubles as an exact matrix; an exact matrix as it is."""
    if isinstance(M, acb_mat):
        return M
    M = np.atleast_2d(np.asarray(M))
    return acb_mat(M.shape[0], M.shape[1], [number(x) for x in M.flat])


def identity(n):
    return acb_mat(n, n, [int(i == j) for i in range(n) for j in range(n)])


def adjoint(M):
    return M.transpose().conjugate()


def doubles(M):
    """Round an exact matrix to an array."""
    return np.array([complex(x) for x in M.entries()]).reshape(M.nrows(), M.ncols())


def joined(blocks):
    """Return one matrix of rows of exact blocks."""
    rows = []
    for line in blocks:
        tables = [block.tolist() for block in line]
        rows += [[x for part in parts for x in part] for parts in zip(*tables, strict=True)]
    return acb_mat(rows) if rows and rows[0] else acb_mat(len(rows), 0)


def eigenvalues(A):
    return A.mid().eig(algorithm="approx") if A.nrows() else []


def boundary_distance(poles, *, discrete):
    """Return for each exact pole how far inside the stability region it is (negative: outside)."""
    return np.array([float((1 - abs(z) if discrete else -z.real).mid()) for z in poles])


@dataclass(frozen=True)
class Exact:
    """A state space whose four matrices are exact, in continuous or discrete time."""

    A: acb_mat
    B: acb_mat
    C: acb_mat
    D: acb_mat
    discrete: bool

    @classmethod
    def of(cls, system, *, discrete):
        """Take (A, B, C, D) or (A, B, C, D, E) of doubles at their word."""
        A, B, C, D, *E = (matrix(M) for M in system)
        if E and A.nrows():
            A, B = E[0].solve(A), E[0].solve(B)
        return cls(A.mid(), B.mid(), C, D, discrete)

    @property
    def n(self):
        return self.A.nrows()

    @cached_property
    def poles(self):
        return eigenvalues(self.A)

    def minus(self, other):
        """Return the parallel connection of this and the negative of another model."""
        zero = acb_mat(self.n, other.n)
        return Exact(
            joined([[self.A, zero], [acb_mat(other.n, self.n), other.A]]),
            joined([[self.B], [other.B]]),
            joined([[self.C, -other.C]]),
            self.D - other.D,
            self.discrete,
        )

    # rational functions ------------------------------------------------

    @cached_property
    def rational(self):
        """Numerators (p rows of m polynomials) and the common denominator, by Leverrier's recursion."""
        n, p, m = self.n, self.C.nrows(), self.B.ncols()
        coefficients, term = [acb(1)], identity(n)
        numerators = [[[] for _ in range(m)] for _ in range(p)]
        for k in range(1, n + 1):
            values = self.C * term * self.B
            for i in range(p):
                for j in range(m):
                    numerators[i][j].append(values[i, j])
            product = self.A * term
            coefficients.append(-product.trace() / k)
            term = (product + identity(n) * coefficients[-1]).mid()
        den = acb_poly(coefficients[::-1])
        num = [[acb_poly(numerators[i][j][::-1]) + self.D[i, j] * den for j in range(m)] for i in range(p)]
        return Rational(num, [[den] * m for _ in range(p)])

    # Gramians ------------------------------------------------

    def _doubled(self):
        """Return (F, G, H) in discrete time with the same Gramians: in continuous time a Cayley transform."""
        if self.discrete:
            return self.A, self.B, self.C
        sizes = [float(abs(z).mid()) for z in self.poles]
        shift = acb(math.sqrt(max(sizes) * max(min(sizes), max(sizes) * 1e-30)))
        resolvent = (identity(self.n) * shift - self.A).inv()
        root = (2 * shift).sqrt()
        F = resolvent * (identity(self.n) * shift + self.A)
        return F.mid(), (resolvent * self.B * root).mid(), (self.C * resolvent * root).mid()

    @cached_property
    def gramians(self):
        """Controllability and observability Gramian of a stable model, by Smith doubling."""
        F, G, H = self._doubled()
        P, Q = (G * adjoint(G)).mid(), (adjoint(H) * H).mid()
        for _ in range(100):
            P, Q = (P + F * P * adjoint(F)).mid(), (Q + adjoint(F) * Q * F).mid()
            F = (F * F).mid()
            if all(float(abs(x).mid()) < 1e-200 for x in F.entries()):
                return P, Q
        raise ArithmeticError("the model is not stable")

    @cached_property
    def hankel_singular_values(self):
        """Falling, in double precision."""
        if self.n == 0:
            return np.zeros(0)
        P, Q = self.gramians
        squares = eigenvalues(P * Q)
        return np.sort([float(abs(z).sqrt().mid()) for z in squares])[::-1]

    @cached_property
    def h2(self):
        """Root of the energy of the impulse response, inf where a direct term makes it so."""
        if not self.discrete and any(abs(x) != 0 for x in self.D.entries()):
            return math.inf
        energy = (self.C * self.gramians[0] * adjoint(self.C)).trace() if self.n else acb(0)
        energy += (self.D * adjoint(self.D)).trace()
        return float(abs(energy).sqrt().mid())

    def split(self, kept):
        """Return the stable part and the rest, which has `kept` poles: those nearest the boundary, or beyond.

        The projector onto the stable poles comes from Newton's iteration for the matrix sign function. Both
        parts keep n states; those that the other part has taken are parked at a stable pole, out of reach.
        """
        distance = np.sort(boundary_distance(self.poles, discrete=self.discrete))
        eye = identity(self.n)
        size = max((float(abs(z).mid()) for z in self.poles), default=0.0)
        parked = acb(0) if self.discrete else acb(-max(size, 1.0))
        nothing = Exact(eye * parked, self.B * 0, self.C * 0, self.D * 0, self.discrete)
        if kept == 0:
            return self, nothing
        if kept == self.n:
            return replace(nothing, D=self.D), replace(self, D=self.D * 0)
        edge = acb(0.5 * (distance[kept - 1] + distance[kept]))
        if self.discrete:
            # the circle of this radius, mapped to the imaginary axis
            radius = 1 - edge
            X = (self.A + eye * radius).inv() * (self.A - eye * radius)
        else:
            X = self.A + eye * edge
        for _ in range(300):
            following = ((X + X.inv()) * acb(0.5)).mid()
            change = max(float(abs(x).mid()) for x in (following - X).entries())
            X = following
            if change < 1e-100:
                break
        onto = (eye - X) * acb(0.5)
        rest = eye - onto
        return tuple(
            Exact((self.A * part + others * parked).mid(), part * self.B, self.C * part, D, self.discrete)
            for part, others, D in ((onto, rest, self.D), (rest, onto, self.D * 0))
        )

    # peaks ------------------------------------------------

    def exceeds(self, level):
        """Tell whether some frequency has a gain above a level: the Hamiltonian has poles on the axis."""
        system = self.in_continuous_time() if self.discrete else self
        level = acb(level)
        A, B, C, D = system.A, system.B * (1 / level), system.C, system.D * (1 / level)
        p, m = D.nrows(), D.ncols()
        if np.linalg.norm(doubles(D), 2) > 1:
            return True
        R, S = (identity(m) - adjoint(D) * D).inv(), (identity(p) - D * adjoint(D)).inv()
        C = C * acb(1)
        F = A + B * R * adjoint(D) * C
        hamiltonian = joined([[F, B * R * adjoint(B)], [-(adjoint(C) * S * C), -adjoint(F)]])
        return any(float(abs(z.real).mid()) <= 1e-60 * float(abs(z).mid()) for z in eigenvalues(hamiltonian))

    def in_continuous_time(self):
        """Return a continuous model with the same gains, by a Moebius map that keeps away from the poles."""
        angles = np.linspace(0, 2 * math.pi, 37)[:-1]
        turns = [acb(math.cos(a), math.sin(a)) for a in angles]
        far = max(turns, key=lambda q: min((float(abs(z + q).mid()) for z in self.poles), default=1.0))
        q = far / abs(far)
        inverse = (self.A + identity(self.n) * q).inv()
        root = acb(2).sqrt()
        return Exact(
            inverse * (self.A - identity(self.n) * q),
            inverse * self.B * root,
            self.C * inverse * (root * q),
            self.D - self.C * inverse * self.B,
            False,
        )


@dataclass(frozen=True)
class Rational:
    """A matrix of rational functions with exact coefficients."""

    num: list
    den: list

    @classmethod
    def of(cls, num, den):
        """Take coefficients in falling powers at their word."""

        def poly(c):
            return acb_poly([number(x) for x in np.atleast_1d(c)[::-1]])

        return cls([[poly(c) for c in row] for row in num], [[poly(c) for c in row] for row in den])

    def at(self, s):
        """Return the exact value at a point, rows of numbers."""
        return [
            [a(s) / b(s) for a, b in zip(*rows, strict=True)] for rows in zip(self.num, self.den, strict=True)
        ]

    def realization(self, *, discrete):
        """Return an exact state space, one controllable form for each entry."""
        p, m = len(self.num), len(self.num[0])
        D, blocks = acb_mat(p, m), []
        for i in range(p):
            for j in range(m):
                lead = self.den[i][j][self.den[i][j].degree()]
                den, num = self.den[i][j] * (1 / lead), self.num[i][j] * (1 / lead)
                k = den.degree()
                direct = num[k] if num.degree() >= k else acb(0)
                D[i, j] = direct
                if k:
                    blocks.append(
                        (i, j, [den[q] for q in range(k)], [num[q] - direct * den[q] for q in range(k)])
                    )
        n = sum(len(b[2]) for b in blocks)
        A, B, C, at = acb_mat(n, n), acb_mat(n, m), acb_mat(p, n), 0
        for i, j, den, num in blocks:
            k = len(den)
            for q in range(k):
                A[at + k - 1, at + q] = -den[q]
                C[i, at + q] = num[q]
                if q + 1 < k:
                    A[at + q, at + q + 1] = 1
            B[at + k - 1, j] = 1
            at += k
        return Exact(A, B, C, D, discrete)


def on_boundary(w, *, discrete):
    """Return the exact point of an angular frequency."""
    return acb(0, flint.arb(w)).exp() if discrete else acb(0, flint.arb(w))


def gain(first, second, s):
    """Largest singular value of the difference of two rational matrices (None: zero) at an exact point."""
    value = first.at(s)
    if second is not None:
        value = [
            [a - b for a, b in zip(*rows, strict=True)] for rows in zip(value, second.at(s), strict=True)
        ]
    table = np.array([[complex(x) for x in row] for row in value])
    if not np.all(np.isfinite(table)):
        return math.inf
    size = np.abs(table).max()
    if table.size == 1 or size == 0:
        return float(size)
    return float(size * np.linalg.svd(table / size, compute_uv=False)[0])


def peak(first, second, poles, *, discrete, real):
    """Return the largest gain found on the boundary of stability, and where.

    A grid over every time scale with the resonances of the poles, then golden sections around the highest.
    It is a gain that is there; that none is higher is the business of `Exact.exceeds`.
    """
    z = np.array([complex(x) for x in poles])
    if discrete:
        angles, width = np.angle(z), np.abs(1 - np.abs(z))
        w = np.concatenate([angles, angles + width, angles - width, np.linspace(-math.pi, math.pi, 49)])
        w = w[np.abs(w) <= math.pi]
    else:
        sizes = np.abs(z[z != 0])
        ends = (sizes.min() / 30, sizes.max() * 30) if sizes.size else (0.1, 10)
        w = np.concatenate([[0.0], np.geomspace(*ends, 61)])
        resonance = np.sqrt(np.maximum(z.imag**2 - z.real**2, 0)) * np.sign(z.imag)
        w = np.concatenate([w, -w, z.imag, resonance, z.imag + z.real, z.imag - z.real])
    w = np.unique(np.abs(w) if real else w)

    def height(x):
        return gain(first, second, on_boundary(float(x), discrete=discrete))

    heights = np.array([height(x) for x in w])
    k = int(np.argmax(heights))
    best, at = heights[k], w[k]
    padded = np.concatenate([[-1.0], heights, [-1.0]])
    tops = np.flatnonzero((heights >= padded[:-2]) & (heights >= padded[2:]))
    for k in tops[np.argsort(-heights[tops])][:4]:
        if heights[k] < 0.2 * best:
            continue
        low, high = w[max(k - 1, 0)], w[min(k + 1, w.size - 1)]
        inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
        values = [height(x) for x in inner]
        for _ in range(40):
            j = int(values[1] > values[0])
            if values[j] > best:
                best, at = values[j], inner[j]
            if high - low <= 1e-12 * abs(at):
                break
            if j == 0:
                high, inner, values = inner[1], [0.0, inner[0]], [0.0, values[0]]
                inner[0] = high - GOLDEN * (high - low)
                values[0] = height(inner[0])
            else:
                low, inner, values = inner[0], [inner[1], 0.0], [values[1], 0.0]
                inner[1] = low + GOLDEN * (high - low)
                values[1] = height(inner[1])
    return float(best), float(at)


GOLDEN = (math.sqrt(5) - 1) / 2
