"""A stable or unstable rational matrix as a sum of sections of order two and one, and its least-squares fit.

``G(s) = C (s - A)^-1 B + D`` with A block diagonal. A section of order two is ``w [[0, 1], [-1, -2 zeta]]``:
its poles may be a conjugate pair or both real, and pass from one to the other without a jump. Everything is
real, and a section is stable if and only if zeta > 0. The points are ``s = j omega``.

For given A and B the best C and D follow from linear least squares. The refinement therefore searches A and B
only (variable projection: Golub and Pereyra, SIAM J. Numer. Anal. 10, 1973, with the Jacobian of Kaufman, BIT
15, 1975), by Levenberg-Marquardt steps. With one input only the poles remain to be searched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg as sla

from ..._util.arrays import EPS, Array

#: Limits of the logarithms of w and zeta: far outside any data, and with finite squares.
_LOG_LIMIT = 80.0
#: Largest change of a logarithm in one step.
_LARGEST_STEP = 2.0
#: A step makes no resonance narrower than this share of the distance of the frequencies around it, where no
#: data determine it; a resonance that the start already has is kept.
_NARROWEST = 0.25


@dataclass(frozen=True)
class Sections:
    """Poles and input rows; C and D are computed for data."""

    #: w and zeta of each section of order two, (k,)
    frequency: Array
    damping: Array
    #: the pole of each section of order one, (r,), not zero
    poles: Array
    #: (2 k + r, m), the sections of order two first
    B: Array

    @property
    def order(self) -> int:
        """Number of states."""
        return 2 * self.frequency.size + self.poles.size

    def subset(self, kept: Array) -> Sections:
        """Return some of the sections, those of order two first; `kept` is a mask."""
        pairs, singles = np.split(kept, [self.frequency.size])
        rows = np.concatenate([np.repeat(pairs, 2), singles])
        return Sections(self.frequency[pairs], self.damping[pairs], self.poles[singles], self.B[rows])

    @property
    def A(self) -> Array:
        """The block diagonal matrix."""
        w, zeta, k = self.frequency, self.damping, self.frequency.size
        out = np.zeros((self.order, self.order))
        first = 2 * np.arange(k)
        out[first, first + 1] = w
        out[first + 1, first] = -w
        out[first + 1, first + 1] = -2 * zeta * w
        single = 2 * k + np.arange(self.poles.size)
        out[single, single] = self.poles
        return out

    def responses(self, omega: Array) -> Array:
        """Return the states (N, n, m) of each input, ``(s - A)^-1 B``."""
        return self._resolvent(omega, self.B.T[None], transposed=False).transpose(0, 2, 1)

    def observed(self, omega: Array, C: Array) -> Array:
        """Return ``C (s - A)^-1``, (N, p, n)."""
        return self._resolvent(omega, C[None], transposed=True)

    def _resolvent(self, omega: Array, vectors: Array, *, transposed: bool) -> Array:
        """Return the resolvent, or its transpose, times vectors, (1, q, n) -> (N, q, n)."""
        k = self.frequency.size
        w, zeta, x = self.frequency, self.damping, omega[:, None]
        # (w - x)(w + x) keeps the digits of a resonance that w^2 - x^2 would lose
        denominator = ((w - x) * (w + x) + 2j * zeta * w * x)[:, None]
        s = 1j * omega[:, None, None]
        first, second = vectors[..., 0 : 2 * k : 2], vectors[..., 1 : 2 * k : 2]
        sign = -1.0 if transposed else 1.0
        out = np.empty((omega.size, vectors.shape[1], self.order), dtype=complex)
        with np.errstate(divide="ignore", invalid="ignore"):
            out[..., 0 : 2 * k : 2] = ((s + 2 * zeta * w) * first + sign * w * second) / denominator
            out[..., 1 : 2 * k : 2] = (s * second - sign * w * first) / denominator
            out[..., 2 * k :] = vectors[..., 2 * k :] / (s - self.poles)
        return out


def unit_inputs(k: int, r: int) -> Array:
    """Return the input column of a single input: every real rational function has such a form."""
    return np.concatenate([np.tile([0.0, 1.0], k), np.ones(r)])[:, None]


def sections_of(poles: Array, rows: Array | None, m: int) -> Sections:
    """Return the sections with given poles.

    Parameters
    ----------
    poles : ndarray (n,)
        Of a real system, conjugates both, in any order.
    rows : ndarray (n, m), complex, or None
        The input row of each pole in modal coordinates; None for a single input.
    m : int
        Number of inputs.
    """
    upper = np.flatnonzero(poles.imag > 0)
    real = np.flatnonzero(poles.imag == 0)
    real = real[np.argsort(poles[real].real)]
    positive = real[poles[real].real > 0]
    negative = real[poles[real].real <= 0]
    couples, singles = [], []
    for group in (negative, positive):
        couples += [(group[i], group[i + 1]) for i in range(0, group.size - 1, 2)]
        singles += list(group[group.size - group.size % 2 :])
    tiny = EPS * max(float(np.abs(poles).max(initial=0.0)), np.finfo(float).tiny)
    pair_poles = [(poles[k], poles[k].conj()) for k in upper]
    pair_poles += [(poles[i], poles[j]) for i, j in couples]
    product = np.array([max((a * b).real, tiny**2) for a, b in pair_poles])
    frequency = np.sqrt(product)
    damping = np.array([-(a + b).real for a, b in pair_poles]) / (2 * frequency)
    single_poles = np.array([poles[k].real if poles[k].real != 0 else -tiny for k in singles])
    if rows is None:
        B = unit_inputs(frequency.size, single_poles.size)
        return Sections(frequency, damping, single_poles, B)
    blocks = []
    for w, (a, b), (i, j) in zip(
        frequency, pair_poles, [(k, None) for k in upper] + list(couples), strict=True
    ):
        # the left eigenvectors of a section are (-1, pole / w)
        left = np.array([[-1.0, a / w], [-1.0, b / w]])
        pair_rows = np.array([rows[i], rows[i].conj() if j is None else rows[j]])
        if j is not None:  # equal poles have one eigenvector
            left = left.real
            pair_rows = pair_rows.real
        blocks.append(np.linalg.lstsq(left, pair_rows, rcond=1e-12)[0].real)
    blocks += [rows[k].real[None] for k in singles]
    B = np.concatenate(blocks) if blocks else np.zeros((0, m))
    return Sections(frequency, damping, single_poles, with_unit_rows(B, frequency.size))


def with_unit_rows(B: Array, k: int) -> Array:
    """Scale the rows of every section to unit size; C takes the inverse."""
    B = B.copy()
    size = np.linalg.norm(B[: 2 * k].reshape(k, 2 * B.shape[1]), axis=1)
    B[: 2 * k] /= np.repeat(np.where(size > 0, size, 1.0), 2)[:, None]
    size = np.linalg.norm(B[2 * k :], axis=1)
    B[2 * k :] /= np.where(size > 0, size, 1.0)[:, None]
    return B


def stabilized(sections: Sections) -> Sections:
    """Mirror unstable poles at the imaginary axis, and move those on it off it by rounding."""
    damping = np.maximum(np.abs(sections.damping), EPS)
    return replace(sections, damping=damping, poles=-np.abs(sections.poles))


@dataclass(frozen=True)
class Fit:
    """Sections with the C and D that fit the data best."""

    sections: Sections
    C: Array
    D: Array
    #: sum of the squares of the weighted residual
    loss: float

    def response(self, omega: Array) -> Array:
        """Return the response (N, p, m)."""
        return np.asarray(self.C @ self.sections.responses(omega) + self.D)


@dataclass(frozen=True)
class FitData:
    """A response (N, p, m) at omega (N,), and the weight of each value."""

    omega: Array
    response: Array
    weights: Array

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of frequencies, outputs and inputs."""
        return self.response.shape

    @property
    def entries(self) -> FitData:
        """The same data with every entry of the response as an output, and one input."""
        N, p, m = self.shape
        return FitData(
            self.omega, self.response.reshape(N, p * m, 1), np.reshape(self.weights, (N, p * m, 1))
        )

    def rows(self, i: int, values: Array) -> Array:
        """Weight complex values (N, m, ...) of output i and stack real over imaginary parts, (2 N m, ...)."""
        weights = self.weights[:, i].reshape(*self.weights[:, i].shape, *[1] * (values.ndim - 2))
        flat = (values * weights).reshape(-1, *values.shape[2:])
        return np.concatenate([flat.real, flat.imag])

    @property
    def energy(self) -> float:
        """Sum of the squares of the weighted response."""
        return float(np.sum(np.abs(self.response * self.weights) ** 2))


def fit_outputs(sections: Sections, data: FitData) -> tuple[Fit, list[Array], list[Array]]:
    """Fit C and D by least squares; return also an orthonormal basis and the residual for each output."""
    N, p, m = data.shape
    n = sections.order
    X = np.concatenate(
        [
            sections.responses(data.omega).transpose(0, 2, 1),
            np.broadcast_to(np.eye(m, dtype=complex), (N, m, m)),
        ],
        axis=2,
    )
    C, D = np.zeros((p, n)), np.zeros((p, m))
    bases, errors = [], []
    loss = 0.0
    shared = p > 1 and bool(np.all(data.weights == data.weights[:, :1]))
    basis = factor = size = np.zeros(0)
    for i in range(p):
        if i == 0 or not shared:
            M = data.rows(i, X)
            size = np.linalg.norm(M, axis=0)
            size[size == 0] = 1.0
            if not np.all(np.isfinite(size)):
                return Fit(sections, C, D, np.inf), [], []
            basis, factor = sla.qr(M / size, mode="economic", check_finite=False)
        target = data.rows(i, data.response[:, i])
        theta, error = _solve(basis, factor, target)
        theta = theta / size
        C[i], D[i] = theta[:n], theta[n:]
        bases.append(basis)
        errors.append(error)
        loss += float(error @ error)
    return Fit(sections, C, D, loss), bases, errors


def _solve(basis: Array, factor: Array, target: Array) -> tuple[Array, Array]:
    """Solve a least-squares problem by its QR factorization; near dependence is cut off."""
    diagonal = np.abs(np.diag(factor))
    projected = basis.T @ target
    if diagonal.min(initial=np.inf) > 1e-13 * diagonal.max(initial=0.0):
        theta = sla.solve_triangular(factor, projected, check_finite=False)
    else:
        theta = sla.lstsq(factor, projected, cond=1e-13, lapack_driver="gelsd", check_finite=False)[0]
        return theta, target - basis @ (factor @ theta)
    error = target - basis @ projected
    # the second projection removes what rounding has left of the basis
    correction = basis.T @ error
    return theta + sla.solve_triangular(factor, correction, check_finite=False), error - basis @ correction


def refine(start: Sections, data: FitData, *, stable: bool, max_steps: int, rtol: float) -> Fit:
    """Lower the loss by Levenberg-Marquardt steps over the poles and, with several inputs, B."""
    fit, bases, errors = fit_outputs(start, data)
    rounding = (EPS * 8) ** 2 * data.energy
    damping, small = 1e-3, 0
    for _ in range(max_steps):
        if not (rounding < fit.loss < np.inf):
            break
        gram, gradient = _normal_equations(fit, data, bases, errors, stable)
        size = np.sqrt(np.maximum(np.diag(gram), np.diag(gram).max() * 1e-14))
        size[size == 0] = 1.0
        scaled = gram / np.outer(size, size)
        decreased = False
        for _ in range(8):
            try:
                factor = sla.cho_factor(scaled + damping * np.eye(size.size), check_finite=False)
            except sla.LinAlgError:
                damping *= 10
                continue
            step = sla.cho_solve(factor, gradient / size, check_finite=False) / size
            moved = _moved(fit.sections, step, stable)
            if stable:
                moved = _as_wide_as_data(moved, fit.sections, data.omega)
            trial, trial_bases, trial_errors = fit_outputs(moved, data)
            if trial.loss < fit.loss:
                decreased = True
                break
            damping *= 6
        if not decreased:
            break
        gain = 1 - trial.loss / fit.loss
        fit, bases, errors = trial, trial_bases, trial_errors
        damping = max(damping / 8, 1e-13)
        small = small + 1 if gain < rtol else 0
        if small == 2:
            break
    return fit


def _normal_equations(
    fit: Fit, data: FitData, bases: list[Array], errors: list[Array], stable: bool
) -> tuple[Array, Array]:
    N, p, m = data.shape
    sections, k = fit.sections, fit.sections.frequency.size
    w, zeta = sections.frequency, sections.damping
    X = sections.responses(data.omega).transpose(0, 2, 1)
    Y = sections.observed(data.omega, fit.C)
    x1, x2 = X[..., 0 : 2 * k : 2], X[..., 1 : 2 * k : 2]
    count = sections.order + (sections.order * m if m > 1 else 0)
    gram, gradient = np.zeros((count, count)), np.zeros(count)
    for i in range(p):
        y = Y[:, i, None, :]
        y1, y2 = y[..., 0 : 2 * k : 2], y[..., 1 : 2 * k : 2]
        columns = [
            w * (y1 * x2 - y2 * x1 - 2 * zeta * y2 * x2),  # by log w
            -2 * w * (zeta if stable else 1.0) * y2 * x2,  # by log zeta, or zeta
            sections.poles * y[..., 2 * k :] * X[..., 2 * k :],  # by log |pole|
        ]
        if m > 1:
            by_B = np.zeros((N, m, sections.order, m), dtype=complex)
            by_B[:, np.arange(m), :, np.arange(m)] = y[:, 0]
            columns.append(by_B.reshape(N, m, -1))
        J = data.rows(i, np.concatenate(columns, axis=2))
        J -= bases[i] @ (bases[i].T @ J)
        gram += J.T @ J
        gradient += J.T @ errors[i]
    return gram, gradient


def _moved(sections: Sections, step: Array, stable: bool) -> Sections:
    k, r = sections.frequency.size, sections.poles.size
    by_w, by_zeta, by_pole, by_B = np.split(step, np.cumsum([k, k, r]))

    def scaled(values: Array, change: Array) -> Array:
        logs = np.log(np.abs(values)) + np.clip(change, -_LARGEST_STEP, _LARGEST_STEP)
        return np.sign(values) * np.exp(np.clip(logs, -_LOG_LIMIT, _LOG_LIMIT))

    damping = scaled(sections.damping, by_zeta) if stable else sections.damping + by_zeta
    B = sections.B
    if by_B.size:
        B = with_unit_rows(B + by_B.reshape(B.shape), k)
    return Sections(scaled(sections.frequency, by_w), damping, scaled(sections.poles, by_pole), B)


def _as_wide_as_data(moved: Sections, before: Sections, omega: Array) -> Sections:
    """Limit the damping from below by the distance of the frequencies at the resonance."""
    if omega.size < 2:
        return moved
    gaps = np.diff(omega)
    at = np.clip(np.searchsorted(omega, moved.frequency) - 1, 0, gaps.size - 1)
    least = np.minimum(_NARROWEST * gaps[at] / moved.frequency, before.damping)
    inside = (moved.frequency > omega[0]) & (moved.frequency < omega[-1])
    return replace(moved, damping=np.where(inside, np.maximum(moved.damping, least), moved.damping))
