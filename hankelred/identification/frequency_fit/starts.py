"""Initial models of a frequency response: Loewner matrices, and relocation of poles (vector fitting)."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import EPS, Array
from ...models.conjugate_pairs import grouped_conjugates
from .sections import FitData, Sections, fit_outputs, sections_of, stabilized, unit_inputs

#: A frequency above this, in units of those of the data, is the Nyquist frequency, mapped to infinity.
NYQUIST_IMAGE = 1e8
#: Most frequencies of a Loewner matrix, whose decomposition grows with the cube of their number.
_MOST_LOEWNER_POINTS = 600
#: Relative distance up to which a pole is the conjugate of another.
_SAME = 1e-10
#: Damping of the first poles of the relocation (Gustavsen and Semlyen recommend a hundredth).
_FIRST_DAMPING = 0.01


class LoewnerPencil:
    """The compressed Loewner pencil of a response, from which poles of every order follow.

    A. J. Mayo and A. C. Antoulas, Linear Algebra Appl. 425 (2007). Frequencies are left and right points in
    turn, with unit vectors as tangential directions in turn; conjugates are added, the pencil is made real.
    """

    def __init__(self, omega: Array, response: Array) -> None:
        positive = np.flatnonzero((omega > 0) & (omega < NYQUIST_IMAGE))
        if positive.size > _MOST_LOEWNER_POINTS:
            positive = positive[np.linspace(0, positive.size - 1, _MOST_LOEWNER_POINTS).astype(int)]
        omega, response = omega[positive], response[positive]
        _, p, m = response.shape
        left, right = np.arange(0, omega.size, 2), np.arange(1, omega.size, 2)
        lefts = np.eye(p)[np.arange(left.size) % p]
        rights = np.eye(m)[np.arange(right.size) % m]
        V = np.einsum("kp,kpm->km", lefts, response[left])
        W = np.einsum("kpm,km->kp", response[right], rights)
        mu, la = 1j * omega[left], 1j * omega[right]
        mu, la = np.concatenate([mu, mu.conj()]), np.concatenate([la, la.conj()])
        V, W = np.concatenate([V, V.conj()]), np.concatenate([W, W.conj()])
        lefts, rights = np.concatenate([lefts, lefts]), np.concatenate([rights, rights])
        by_left, by_right = V @ rights.T, lefts @ W.T
        gap = mu[:, None] - la[None]
        loewner = (by_left - by_right) / gap
        shifted = (mu[:, None] * by_left - la[None] * by_right) / gap
        to_left, to_right = _to_real(left.size), _to_real(right.size)
        loewner = (to_left @ loewner @ to_right.conj().T).real
        shifted = (to_left @ shifted @ to_right.conj().T).real
        V = (to_left @ V).real
        self._left = sla.svd(np.hstack([loewner, shifted]), full_matrices=False)[0]
        self._right = sla.svd(np.vstack([loewner, shifted]), full_matrices=False)[2].T
        self._loewner = self._left.T @ loewner @ self._right
        self._shifted = self._left.T @ shifted @ self._right
        self._V = self._left.T @ V

    def sections(self, order: int, surplus: int) -> Sections | None:
        """Return the sections of this many poles; `surplus` more are computed, and the fastest left out.

        A direct term gives the pencil poles at infinity, which are left out in this way.
        """
        r = order + surplus
        if r > min(self._loewner.shape):
            return None
        E, A, B = -self._loewner[:r, :r], -self._shifted[:r, :r], self._V[:r]
        try:
            values, left = sla.eig(A, E, left=True, right=False)
        except (sla.LinAlgError, ValueError):
            return None
        with np.errstate(all="ignore"):
            # row of the pole in modal coordinates: left vectors of the pencil applied to B
            rows = left.conj().T @ B
        finite = np.flatnonzero(np.isfinite(values))
        kept = _whole_pairs(values, finite[np.argsort(np.abs(values[finite]))], order)
        if kept is None:
            return None
        m = B.shape[1]
        return sections_of(_clean(values[kept]), rows[kept] if m > 1 else None, m)


def _to_real(half: int) -> Array:
    eye = np.eye(half)
    return np.block([[eye, eye], [-1j * eye, 1j * eye]]) / np.sqrt(2)


def _clean(poles: Array) -> Array:
    return np.where(np.abs(poles.imag) <= 1e-14 * np.abs(poles), poles.real, poles)


def _whole_pairs(values: Array, order_of_size: Array, count: int) -> Array | None:
    """Return the first `count` of these poles, without cutting a pair apart."""
    kept: list[int] = []
    for group in grouped_conjugates(values[order_of_size], _SAME) or []:
        if len(kept) + len(group) <= count:
            kept += [int(order_of_size[k]) for k in group]
        if len(kept) == count:
            return np.array(kept, dtype=int)
    return None


def spread_poles(order: int, omega: Array) -> Sections:
    """Return weakly damped poles spread over the frequencies of the data, on a logarithmic axis."""
    positive = omega[(omega > 0) & (omega < NYQUIST_IMAGE)]
    low, high = (positive[0], positive[-1]) if positive.size else (1.0, 1.0)
    frequency = np.geomspace(low, max(high, low * (1 + 1e-6)), order // 2)
    single = np.full(order % 2, -np.sqrt(low * high))
    return Sections(
        frequency,
        np.full(order // 2, _FIRST_DAMPING),
        single,
        unit_inputs(order // 2, order % 2),
    )


def relocated(start: Sections, data: FitData, *, stable: bool, steps: int) -> Sections:
    """Relocate the poles of a common denominator of all entries; return the sections that fit best.

    Vector fitting with relaxed normalization: B. Gustavsen and A. Semlyen, IEEE Trans. Power Delivery 14
    (1999); B. Gustavsen, ibid. 21 (2006). The numerators of each entry are eliminated by a QR factorization
    (Deschrijver, Mrozowski, Dhaene and De Zutter, IEEE Microw. Wireless Compon. Lett. 18, 2008).
    """
    entries = data.entries
    current = best = start
    best_loss = np.inf
    for step in range(steps + 1):
        loss = fit_outputs(current, entries)[0].loss
        if loss < best_loss:
            best, best_loss = current, loss
        if step == steps or best_loss <= (8 * EPS) ** 2 * data.energy:
            break
        poles = _zeros_of_denominator(current, entries)
        if poles is None:
            break
        current = sections_of(poles, None, 1)
        if stable:
            current = stabilized(current)
    return best


def _zeros_of_denominator(current: Sections, entries: FitData) -> Array | None:
    N, q, _ = entries.shape
    n = current.order
    basis = np.concatenate([current.responses(entries.omega)[..., 0], np.ones((N, 1))], axis=1)[:, None]
    blocks, targets = [], []
    for i in range(q):
        M = np.concatenate([basis, -basis * entries.response[:, i][..., None]], axis=2)
        rows = entries.rows(i, M)
        factor = sla.qr(rows, mode="r", check_finite=False)[0]
        blocks.append(factor[n + 1 : 2 * n + 2, n + 1 :])
        targets.append(np.zeros(blocks[-1].shape[0]))
    # without this row the trivial solution zero would be the best one
    weight = np.sqrt(entries.energy) / N
    blocks.append(weight * basis[:, 0].sum(axis=0).real[None])
    targets.append(np.array([weight * N]))
    M, target = np.concatenate(blocks), np.concatenate(targets)
    size = np.linalg.norm(M, axis=0)
    size[size == 0] = 1.0
    if not np.all(np.isfinite(size)):
        return None
    sigma = sla.lstsq(M / size, target, cond=1e-15, lapack_driver="gelsy", check_finite=False)[0] / size
    direct = sigma[n]
    if abs(direct) < 1e-8:  # the denominator would have fewer zeros than poles
        direct = np.copysign(1e-8, direct)
    poles = np.linalg.eigvals(current.A - current.B @ sigma[None, :n] / direct)
    return _clean(poles) if np.all(np.isfinite(poles)) else None
