"""Multiprecision reference values and systems made by formula, for the tests only.

Nothing here is shared with the package: the reference is Smith doubling on the Gramians themselves
with so many bits that squaring the condition number does no harm, and eigenvalues of their product.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

BITS = 1000


def exact_hsv(A, B, C, *, discrete=False, bits=BITS):
    """Hankel singular values of the stable system with exactly these double precision matrices."""
    flint = _flint()
    saved = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        P, Q = _gramians(flint, A, B, C, discrete)
        eigenvalues = flint.acb_mat(_mid(flint, P * Q)).eig(algorithm="approx")
        squares = np.array([_log2_and_double(value.real) for value in eigenvalues])
    finally:
        flint.ctx.prec = saved
    return np.sort(squares)[::-1]


def exact_gramians(A, B, C, *, discrete=False, bits=BITS):
    """Return (controllability, observability) rounded to double precision."""
    flint = _flint()
    saved = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        P, Q = _gramians(flint, A, B, C, discrete)
        return _to_numpy(flint, P), _to_numpy(flint, Q)
    finally:
        flint.ctx.prec = saved


def exact_response(system, point, bits=300):
    """Response at a complex point, less what is given as D, rounded to double precision."""
    flint = _flint()
    saved = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        return _to_numpy(flint, _ExactResponse(flint, system).at(flint.acb(point.real, point.imag)))
    finally:
        flint.ctx.prec = saved


def exact_gains(first, second, w, *, discrete=False, bits=300):
    """Largest singular value of first minus second at angular frequencies, subtracted with so many bits."""
    flint = _flint()
    saved = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        out = []
        first, second = _ExactResponse(flint, first), _ExactResponse(flint, second)
        for angle in np.atleast_1d(w):
            point = flint.acb(0, float(angle))
            point = point.exp() if discrete else point
            G = first.at(point) - second.at(point)
            out.append(np.linalg.norm(_to_numpy(flint, G), 2))
    finally:
        flint.ctx.prec = saved
    return np.array(out)


def exact_error(full, reduced, *, discrete=False, bits=300):
    """Largest gain of full minus reduced: on a grid with all resonances, zoomed in at its highest points."""
    both = sla.block_diag(full[0], reduced[0])
    w = np.unique(np.abs(frequency_grid(both, discrete=discrete, points=25)))
    gains = exact_gains(full, reduced, w, discrete=discrete, bits=bits)
    best = float(gains.max())
    for k in np.argsort(-gains)[:3]:
        low, high = w[max(k - 1, 0)], w[min(k + 1, w.size - 1)]
        for _ in range(5):
            line = np.linspace(low, high, 7)
            near = exact_gains(full, reduced, line, discrete=discrete, bits=bits)
            j = int(near.argmax())
            best = max(best, float(near[j]))
            low, high = line[max(j - 1, 0)], line[min(j + 1, 6)]
    return best


class _ExactResponse:
    """The response of a system whose matrices are converted once for all points."""

    def __init__(self, flint, system):
        A, B, C, D = (np.atleast_2d(np.asarray(M)) for M in system)

        def exact(M):
            entries = [flint.acb(float(np.real(x)), float(np.imag(x))) for x in M.ravel()]
            return flint.acb_mat(*M.shape, entries)

        self.minus_A, self.B, self.C, self.D = exact(-A), exact(B), exact(C), exact(D)
        self.diagonal = [self.minus_A[k, k] for k in range(A.shape[0])]

    def at(self, point):
        if not self.diagonal:
            return self.D
        for k, entry in enumerate(self.diagonal):
            self.minus_A[k, k] = entry + point
        # without a proved radius: its error is some units of the last of hundreds of bits
        return self.C * self.minus_A.solve(self.B, algorithm="approx") + self.D


def _flint():
    import pytest

    return pytest.importorskip("flint", reason="python-flint is not installed (extra test)")


def _log2_and_double(square):
    root = abs(square).sqrt()
    return float(root.mid())


def _mid(flint, M):
    return type(M)(M.nrows(), M.ncols(), [x.mid() for x in M.entries()])


def _gramians(flint, A, B, C, discrete):
    A, B, C = (np.atleast_2d(np.asarray(M)) for M in (A, B, C))
    if any(np.iscomplexobj(M) for M in (A, B, C)):
        convert, kind = (lambda x: flint.acb(float(x.real), float(x.imag))), flint.acb_mat
    else:
        convert, kind = (lambda x: flint.arb(float(x))), flint.arb_mat
    n = A.shape[0]

    def to_exact(M):
        return kind(M.shape[0], M.shape[1], [convert(x) for x in M.ravel()])

    def adjoint(M):
        M = M.transpose()
        if kind is flint.acb_mat:
            return kind(M.nrows(), M.ncols(), [x.conjugate() for x in M.entries()])
        return M

    def mid(M):
        if kind is flint.acb_mat:
            entries = [flint.acb(x.real.mid(), x.imag.mid()) for x in M.entries()]
            return kind(M.nrows(), M.ncols(), entries)
        return _mid(flint, M)

    F, G, H = to_exact(A), to_exact(B), to_exact(C)
    if not discrete:
        shift = flint.arb(float(np.sqrt(np.linalg.norm(A, 2) / np.linalg.norm(np.linalg.inv(A), 2))))
        eye = kind(n, n, [convert(np.float64(i == j)) for i in range(n) for j in range(n)])
        resolvent = mid((eye * shift - F).inv())
        F = mid(resolvent * (eye * shift + F))
        G = mid(resolvent * G * (2 * shift).sqrt())
        H = mid(H * resolvent * (2 * shift).sqrt())
    P, Q = mid(G * adjoint(G)), mid(adjoint(H) * H)
    for _ in range(80):
        P, Q = mid(P + F * P * adjoint(F)), mid(Q + adjoint(F) * Q * F)
        F = mid(F * F)
        if max((float(abs(x)) for x in F.entries()), default=0.0) < 1e-250:
            return P, Q
    raise AssertionError("the reference did not converge: the system is not stable")


def _to_numpy(flint, M):
    if isinstance(M, flint.acb_mat):
        entries = [complex(float(x.real.mid()), float(x.imag.mid())) for x in M.entries()]
    else:
        entries = [float(x.mid()) for x in M.entries()]
    return np.array(entries).reshape(M.nrows(), M.ncols())


# systems by formula ------------------------------------------------


def random_system(seed, n, m=1, p=1, *, discrete=False, complex_=False, margin=0.1, direct=True):
    """Return a stable dense system (A, B, C, D)."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        out = rng.standard_normal(shape)
        return out + 1j * rng.standard_normal(shape) if complex_ else out

    A = normal(n, n)
    if n:
        poles = np.linalg.eigvals(A)
        if discrete:
            A = A * ((1 - margin) / np.abs(poles).max())
        else:
            A = A - (poles.real.max() + margin) * np.eye(n)
    return A, normal(n, m), normal(p, n), normal(p, m) if direct else np.zeros((p, m))


def heat(n=30):
    """1-D heat conduction, heated at one end and measured at the other: values fall by 1e-30 and more."""
    A = (n + 1) ** 2 * (np.diag(-2.0 * np.ones(n)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1))
    B, C = np.zeros((n, 1)), np.zeros((1, n))
    B[0, 0], C[0, -1] = n + 1, 1
    return A, B, C, np.zeros((1, 1))


def near_nonminimal(n=30, seed=0):
    """Half of the states are reached by the input through 1e-9 only."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n))
    A -= (np.linalg.eigvals(A).real.max() + 0.5) * np.eye(n)
    B, C = rng.standard_normal((n, 2)), rng.standard_normal((2, n))
    A[n // 2 :, : n // 2] *= 1e-9
    B[n // 2 :] *= 1e-9
    return A, B, C, np.zeros((2, 2))


def slow_pole(distance=1e-9, n=21, seed=1):
    """One pole at -distance beside n - 1 of size 1, block diagonal so that rounding does not move it."""
    A, B, C, D = random_system(seed, n - 1, 2, 2, margin=0.5, direct=False)
    rng = np.random.default_rng(seed + 1000)
    A = sla.block_diag(A, -distance)
    return A, np.vstack([B, rng.standard_normal((1, 2))]), np.hstack([C, rng.standard_normal((2, 1))]), D


def damped_chain(masses=10, damping=1e-3, m=1):
    """Masses on springs between two walls, forces on the first m, positions of the last m."""
    K = 2 * np.eye(masses) - np.eye(masses, k=1) - np.eye(masses, k=-1)
    eye, zero = np.eye(masses), np.zeros((masses, masses))
    A = np.block([[zero, eye], [-K, -damping * K]])
    B = np.vstack([zero[:, :m], eye[:, :m]])
    C = np.hstack([eye[-m:], zero[-m:]])
    return A, B, C, np.zeros((m, m))


def companion_form(M, D, K, force, position):
    """Return M q'' + D q' + K q = force u, y = position q, as a state space of positions and velocities."""
    n = M.shape[0]
    zero, eye = np.zeros((n, n)), np.eye(n)
    A = np.block([[zero, eye], [-np.linalg.solve(M, K), -np.linalg.solve(M, D)]])
    B = np.vstack([np.zeros((n, force.shape[1])), np.linalg.solve(M, force)])
    C = np.hstack([position, np.zeros((position.shape[0], n))])
    return A, B, C, np.zeros((position.shape[0], force.shape[1]))


def stiff_chain(seed, masses=8, decades=6):
    """Masses on springs whose stiffnesses, and whose masses, differ by so many decades together."""
    rng = np.random.default_rng(seed)
    k = 10.0 ** rng.uniform(0, decades, masses + 1)
    m = 10.0 ** rng.uniform(-decades / 4, 0, masses)
    K = np.diag(k[:-1] + k[1:]) - np.diag(k[1:-1], 1) - np.diag(k[1:-1], -1)
    M = np.diag(m)
    ends = np.eye(masses)[:, :1], np.eye(masses)[-1:]
    return companion_form(M, 1e-3 * M + 1e-7 * K, K, *ends)


def cantilever(elements):
    """Euler-Bernoulli beam, clamped at one end, force and deflection at the other."""
    h = 1 / elements
    mass = (
        h
        / 420
        * np.array(
            [
                [156, 22 * h, 54, -13 * h],
                [22 * h, 4 * h * h, 13 * h, -3 * h * h],
                [54, 13 * h, 156, -22 * h],
                [-13 * h, -3 * h * h, -22 * h, 4 * h * h],
            ]
        )
    )
    stiffness = (
        1
        / h**3
        * np.array(
            [
                [12, 6 * h, -12, 6 * h],
                [6 * h, 4 * h * h, -6 * h, 2 * h * h],
                [-12, -6 * h, 12, -6 * h],
                [6 * h, 2 * h * h, -6 * h, 4 * h * h],
            ]
        )
    )
    n = 2 * elements + 2
    M, K = np.zeros((n, n)), np.zeros((n, n))
    for k in range(elements):
        own = slice(2 * k, 2 * k + 4)
        M[own, own] += mass
        K[own, own] += stiffness
    M, K = M[2:, 2:], K[2:, 2:]
    tip = np.eye(n - 2)[:, n - 4 : n - 3]
    return companion_form(M, 1e-2 * M + 1e-5 * K, K, tip, tip.T)


def hidden_needle(seed, width=1e-9, n=6):
    """A resonance of a relative width beside other poles, in general coordinates."""
    A, B, C, D = random_system(seed, n, 1, 1, direct=False)
    rng = np.random.default_rng(seed + 9)
    w, gain = 10 ** rng.uniform(-1, 2), 10 ** rng.uniform(-6, 0)
    A = sla.block_diag([[0, w], [-w, -2 * width * w]], A)
    B = np.vstack([[[0.0], [np.sqrt(width) * gain]], B])
    C = np.hstack([[[np.sqrt(width) * gain, 0.0]], C])
    return similar(A, B, C, D, rng)


def all_pass(poles, gain=1.0):
    """Return a continuous all-pass function in balanced coordinates: every singular value is |gain|."""
    poles = np.asarray(poles, dtype=float)
    k = poles.size
    # B B^T = -(A + A^T): Takenaka-Malmquist form
    b = np.sqrt(-2 * poles)
    A = np.diag(poles) - np.tril(np.outer(b, b), -1)
    B = b.reshape(k, 1)
    return A, B, -gain * B.T, np.full((1, 1), gain)


def with_jordan_block(block, seed=0, n=6, *, discrete=False, orthogonal=False):
    """Hide a block (integrators) beside a random stable system under a similarity."""
    A, B, C, D = random_system(seed, n, 2, 2, discrete=discrete)
    rng = np.random.default_rng(seed + 500)
    k = block.shape[0]
    A = sla.block_diag(block, A)
    B = np.vstack([rng.standard_normal((k, 2)), B])
    C = np.hstack([rng.standard_normal((2, k)), C])
    return similar(A, B, C, D, rng, orthogonal=orthogonal)


def similar(A, B, C, D, rng, *, orthogonal=False):
    """Return the system in other state coordinates."""
    T = rng.standard_normal(A.shape)
    if orthogonal:
        T = np.linalg.qr(T)[0]
    return T @ A @ np.linalg.inv(T), T @ B, C @ np.linalg.inv(T), D


# independent measurements ------------------------------------------------


def response(system, w, *, discrete=False):
    """Frequency response at angular frequencies w, shape (w, p, m), by plain solves."""
    A, B, C, D = system
    points = np.exp(1j * np.asarray(w)) if discrete else 1j * np.asarray(w)
    n = A.shape[0]
    if n == 0:
        return np.broadcast_to(D, (points.size, *D.shape)).astype(complex)
    return np.array([C @ np.linalg.solve(s * np.eye(n) - A, B.astype(complex)) + D for s in points])


def gains(system, w, *, discrete=False):
    """Largest singular value at each frequency."""
    G = response(system, w, discrete=discrete)
    return np.linalg.svd(G, compute_uv=False)[:, 0] if 0 not in G.shape else np.zeros(len(G))


def difference(first, second):
    """Return the system first minus second."""
    A1, B1, C1, D1 = first
    A2, B2, C2, D2 = second
    return sla.block_diag(A1, A2), np.vstack([B1, B2]), np.hstack([C1, -C2]), D1 - D2


def frequency_grid(A, *, discrete=False, points=300, both_sides=False):
    """Return frequencies over every time scale of A, with its resonances."""
    poles = np.linalg.eigvals(A) if A.size else np.ones(1)
    if discrete:
        w = np.concatenate([np.linspace(0, np.pi, points), np.geomspace(1e-6, np.pi, points)])
        w = np.append(w, np.abs(np.angle(poles)))
    else:
        size = np.abs(poles[poles != 0]) if np.any(poles != 0) else np.ones(1)
        w = np.geomspace(size.min() / 100, size.max() * 100, points)
        w = np.concatenate([[0.0], w, np.abs(poles.imag), np.abs(poles)])
    w = np.unique(w)
    return np.unique(np.concatenate([-w, w])) if both_sides else w
