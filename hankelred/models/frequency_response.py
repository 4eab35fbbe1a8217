"""The frequency response of a state space at many frequencies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import ztrtrs

from .._util.arrays import EPS, Array
from .._util.poles import distance_to_boundary
from .._util.schur import is_quasi_triangular, schur_form, triangular_form

#: Up to this size all frequencies are solved in one batch; for larger models A is brought to Schur form once.
BATCH_SIZE = 40

#: Two responses are not compared at a point nearer to a pole than this, relative to its size.
POLE_CLEARANCE = 1e-3

#: Number of slowest poles at whose peaks two responses are compared.
MAX_PEAKS = 8

#: A pole nearer to the stability boundary than this, relative to its size, counts as undamped, with no peak.
UNDAMPED = 1e-9

#: Largest change of the response by a change of states that is accepted, relative to its largest value.
MAX_RESPONSE_CHANGE = 1e-6


class FrequencyResponse:
    """G(s) = C (s - A)^-1 B + D on the imaginary axis, or on the unit circle.

    Frequencies are angular: rad/s in continuous time, radians per sample in discrete time.
    """

    def __init__(self, A: Array, B: Array, C: Array, D: Array, *, discrete: bool):
        self.discrete = discrete
        self.D = D.astype(complex)
        self.n = A.shape[0]
        if self.n > BATCH_SIZE:
            if not is_quasi_triangular(A):
                A, Z = schur_form(A)
                B, C = Z.conj().T @ B, C @ Z
            self.A, self.B, self.C = triangular_form(A, B, C)
        else:
            self.A, self.B, self.C = A.astype(complex), B.astype(complex), C.astype(complex)

    @property
    def poles(self) -> Array:
        """The poles of the system."""
        return np.diagonal(self.A) if self.n > BATCH_SIZE else np.linalg.eigvals(self.A)

    def __call__(self, frequencies: npt.ArrayLike) -> Array:
        """Return the response, shape (frequencies, outputs, inputs); infinite at a pole."""
        w = np.atleast_1d(np.asarray(frequencies, dtype=float))
        points = np.exp(1j * w) if self.discrete else 1j * w
        if self.n == 0 or self.B.shape[1] == 0 or self.C.shape[0] == 0:
            return np.broadcast_to(self.D, (w.size, *self.D.shape)).copy()
        if self.n <= BATCH_SIZE:
            return self._batched(points)
        out = np.empty((w.size, *self.D.shape), dtype=complex)
        shifted = self.A.copy(order="F")
        diagonal = np.diagonal(self.A).copy()
        index = np.arange(self.n)
        for k, point in enumerate(points):
            shifted[index, index] = diagonal - point
            states, info = ztrtrs(shifted, self.B)
            out[k] = self.D - self.C @ states if info == 0 else np.inf
        return out

    def _batched(self, points: Array) -> Array:
        out = np.empty((points.size, *self.D.shape), dtype=complex)
        eye = np.eye(self.n)
        for start in range(0, points.size, 1024):
            part = points[start : start + 1024]
            pencils = part[:, None, None] * eye - self.A
            try:
                states = np.linalg.solve(pencils, np.broadcast_to(self.B, (part.size, *self.B.shape)))
                out[start : start + part.size] = self.D + self.C @ states
            except np.linalg.LinAlgError:  # a frequency is exactly on a pole: solve one by one
                for k, pencil in enumerate(pencils):
                    try:
                        out[start + k] = self.D + self.C @ np.linalg.solve(pencil, self.B)
                    except np.linalg.LinAlgError:
                        out[start + k] = np.inf
        return out

    def gain(self, frequencies: npt.ArrayLike) -> Array:
        """Return the largest singular value at each frequency."""
        return largest_singular_value(self(frequencies))


def largest_singular_value(response: Array) -> Array:
    """Return the largest singular value of each matrix in a stack; inf where it is not finite."""
    if 0 in response.shape[1:]:
        return np.zeros(response.shape[0])
    finite = np.isfinite(response).all(axis=(1, 2))
    out = np.full(response.shape[0], np.inf)
    if np.any(finite):
        out[finite] = _norms_of(response if np.all(finite) else response[finite])
    return out


def _norms_of(response: Array) -> Array:
    """Return the spectral norm of each matrix in a stack."""
    if 1 not in response.shape[1:]:
        return np.asarray(np.linalg.svd(response, compute_uv=False)[:, 0])
    # a row, a column or a number: the norm of its entries; divided by the largest, no square underflows
    sizes = np.abs(response)
    largest = sizes.max(axis=(1, 2))
    sizes /= np.where(largest > 0, largest, 1.0)[:, None, None]
    return np.asarray(largest * np.sqrt(np.sum(sizes**2, axis=(1, 2))))


def points_off_the_poles(poles: Array, *, discrete: bool) -> Array:
    """Return points in the frequency range of a system at which its response is finite and well-conditioned.

    They are on the stability boundary, except those that are near an undamped pole: these are moved off
    the boundary, to where they are farthest from the poles.
    """
    if discrete:
        on_circle = np.exp(1j * np.linspace(0.01, np.pi - 0.01, 41))
        candidates = np.array([1.0, 1.3, 0.75, 1.7])[:, None] * on_circle
    else:
        size = np.abs(poles)
        # computed eigenvalues this small may be those of an integrator
        size = size[size > EPS * size.max(initial=0.0)] if np.any(size > 0) else np.ones(1)
        radii = np.geomspace(size.min() / 3, size.max() * 3, 41)
        candidates = np.exp(1j * np.pi * np.array([0.5, 0.38, 0.26, 0.14]))[:, None] * radii
    if poles.size == 0:
        return candidates[0]
    gaps = np.abs(candidates[:, :, None] - poles).min(axis=2) / np.abs(candidates)
    rows = np.where(gaps[0] >= POLE_CLEARANCE, 0, np.argmax(gaps, axis=0))
    return candidates[rows, np.arange(candidates.shape[1])]


def points_at_peaks(poles: Array, *, discrete: bool) -> Array:
    """Return the points of the stability boundary nearest to the slowest damped poles.

    The response has its peaks there. A point too near to its pole is moved along the boundary.
    """
    size = np.ones(poles.size) if discrete else np.abs(poles)
    distance = distance_to_boundary(poles, discrete=discrete)
    damped = np.flatnonzero(distance > UNDAMPED * size)
    slowest = damped[np.argsort(distance[damped] / size[damped], kind="stable")[:MAX_PEAKS]]
    clearance = 2 * POLE_CLEARANCE * size[slowest]
    aside = np.where(distance[slowest] < clearance, clearance, 0.0)
    points = (
        np.exp(1j * (np.angle(poles[slowest]) + aside)) if discrete else 1j * (poles[slowest].imag + aside)
    )
    gaps = np.abs(points[:, None] - poles)
    nearest = gaps.argmin(axis=1) if points.size else np.zeros(0, dtype=int)
    reach = POLE_CLEARANCE * np.maximum(np.abs(points), np.abs(poles[nearest]))
    return np.unique(points[gaps[np.arange(points.size), nearest] >= reach])


def difference_of_responses(
    system: tuple[Array, Array, Array],
    other_response: Callable[[complex], Array],
    poles: Array,
    *,
    discrete: bool,
) -> float:
    """Return the largest difference of another response from that of A, B and C, relative to the latter.

    It is sampled over the frequency range and at peaks that rounding of A does not move; of a large model at
    few points, so that the cost is small beside that of the poles.
    """
    A, B, C = system
    eye = np.eye(A.shape[0])
    rounding = EPS * float(np.linalg.norm(A))
    largest = largest_difference = 0.0
    compared = False
    points = points_off_the_poles(poles, discrete=discrete)[:: 5 if A.shape[0] > BATCH_SIZE else 1]
    peaks = points_at_peaks(poles, discrete=discrete)
    for k, point in enumerate(np.concatenate([points, peaks])):
        try:
            states = np.linalg.solve(point * eye - A, B)
            response = C @ states
            if k >= points.size:
                outputs = np.linalg.solve((point * eye - A).T, C.T)
                moved = rounding * float(np.linalg.norm(outputs) * np.linalg.norm(states))
                if not moved <= 0.1 * MAX_RESPONSE_CHANGE * np.linalg.norm(response):
                    continue
            difference = np.abs(response - other_response(point))
        except np.linalg.LinAlgError:
            # poles at zero are computed with rounding errors, and points of that size are poles to the solver
            continue
        compared = True
        largest = max(largest, float(np.abs(response).max(initial=0.0)))
        largest_difference = max(largest_difference, float(difference.max(initial=0.0)))
    if not compared:
        return np.inf
    return largest_difference / largest if largest > 0 else largest_difference
