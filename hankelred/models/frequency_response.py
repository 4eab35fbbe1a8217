"""The frequency response of a state space at many frequencies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import zgesv, ztrtrs

from .._util.arrays import EPS, Array, is_moderate
from .._util.poles import distance_to_boundary
from .._util.schur import is_quasi_triangular, schur_form, triangular_form

#: Up to this size all frequencies are solved in one batch; for larger models A is brought to Schur form once.
BATCH_SIZE = 40

#: Estimated error of a sum of partial fractions, relative to the sum of their sizes, for each state.
ROUNDING_OF_FRACTIONS = 100 * EPS

#: Error of a computed Schur form, relative to the norm of A.
ROUNDING_OF_SCHUR_FORM = 10 * EPS

#: Partial fractions are used up to this number of pairs of inputs and outputs; beyond, a solution for each
#: frequency costs less.
MAX_PAIRS = 16

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

    Frequencies are angular: rad/s in continuous time, radians per sample in discrete time. ``schur`` states
    that A is in Schur form.
    """

    def __init__(self, A: Array, B: Array, C: Array, D: Array, *, discrete: bool, schur: bool = False):
        self.discrete = discrete
        self.D = D.astype(complex)
        self.n = A.shape[0]
        if self.n > BATCH_SIZE:
            if not (schur or is_quasi_triangular(A)):
                A, Z = schur_form(A)
                B, C = Z.conj().T @ B, C @ Z
            self.A, self.B, self.C = triangular_form(A, B, C)
        else:
            self.A, self.B, self.C = A.astype(complex), B.astype(complex), C.astype(complex)

    @cached_property
    def poles(self) -> Array:
        """The poles of the system."""
        return self._eigenvectors[0] if self.n <= BATCH_SIZE else np.diagonal(self.A)

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

    def approximate_gain(self, frequencies: Array) -> tuple[Array, Array] | None:
        """Return gains from partial fractions and estimates of their errors; None where these are not used.

        Each costs one product for each state, and many frequencies a few calls.
        """
        if self._residues is None:
            return None
        gains, fractions = self._gains_and_fractions(frequencies)
        with np.errstate(invalid="ignore"):
            errors = np.abs(fractions) @ self._sizes_of_residues
        return gains, ROUNDING_OF_FRACTIONS * self.n * errors

    def cheap_gain(self, frequencies: Array) -> Array:
        """Return the gains of :meth:`approximate_gain`, without the errors; only where it returns gains."""
        return self._gains_and_fractions(frequencies)[0]

    def _gains_and_fractions(self, frequencies: Array) -> tuple[Array, Array]:
        residues = self._residues
        assert residues is not None
        points = np.exp(1j * frequencies) if self.discrete else 1j * frequencies
        fractions = points[:, None] - self.poles
        with np.errstate(divide="ignore", invalid="ignore"):
            np.divide(1.0, fractions, out=fractions)
            response = (fractions @ residues).reshape(-1, *self.D.shape) + self.D
        return largest_singular_value(response), fractions

    def rounding(self, frequencies: Array) -> Array:
        """Estimate by how much the rounding of A, as in a Schur form, changes the gain at each frequency.

        To first order it is |C R| |dA| |R B| with the resolvent R.
        """
        out = np.full(frequencies.size, np.inf)
        points = np.exp(1j * frequencies) if self.discrete else 1j * frequencies
        adjoint_outputs = self.C.conj().T
        eye = np.eye(self.n)
        for k, point in enumerate(points):
            shifted = self.A - point * eye
            if self.n > BATCH_SIZE:
                states, info = ztrtrs(shifted, self.B)
                outputs, _ = ztrtrs(shifted, adjoint_outputs, trans=2)
            else:
                states, info = zgesv(shifted, self.B)[2:]
                outputs = zgesv(shifted.conj().T, adjoint_outputs)[2]
            if info == 0:
                out[k] = np.linalg.norm(outputs) * np.linalg.norm(states)
        return np.asarray(ROUNDING_OF_SCHUR_FORM * np.linalg.norm(self.A) * out)

    @cached_property
    def _eigenvectors(self) -> tuple[Array, Array]:
        """The poles and eigenvectors of A, which is upper triangular for larger models."""
        if self.n <= BATCH_SIZE:
            return np.linalg.eig(self.A)
        poles = np.diagonal(self.A)
        V = np.eye(self.n, dtype=complex)
        with np.errstate(all="ignore"):  # the entries of equal poles are not finite
            for i in range(self.n - 2, -1, -1):
                V[i, i + 1 :] = (self.A[i, i + 1 :] @ V[i + 1 :, i + 1 :]) / (poles[i + 1 :] - poles[i])
        return poles, V

    @cached_property
    def _residues(self) -> Array | None:
        """The residues of the poles, (n, outputs * inputs); None where eigenvectors are dependent."""
        if self.D.size > MAX_PAIRS:
            return None
        V = self._eigenvectors[1]
        if not is_moderate(V):
            return None
        if self.n > BATCH_SIZE:
            inputs, info = ztrtrs(V, self.B)
        else:
            try:
                inputs, info = np.linalg.solve(V, self.B), 0
            except np.linalg.LinAlgError:
                return None
        residues = ((self.C @ V).T[:, :, None] * inputs[:, None, :]).reshape(self.n, -1)
        return residues if info == 0 and is_moderate(residues) else None

    @cached_property
    def _sizes_of_residues(self) -> Array:
        return (
            np.asarray(np.linalg.norm(self._residues, axis=1)) if self._residues is not None else np.zeros(0)
        )


class DifferenceResponse(FrequencyResponse):
    """The response of a system minus that of another one with the same inputs and outputs."""

    def __init__(self, first: FrequencyResponse, second: FrequencyResponse):
        self.parts = first, second
        self.discrete = first.discrete
        self.n = first.n + second.n
        self.D = first.D - second.D

    def __call__(self, frequencies: npt.ArrayLike) -> Array:
        """Return the difference of the responses, shape (frequencies, outputs, inputs)."""
        return np.asarray(self.parts[0](frequencies) - self.parts[1](frequencies))

    def rounding(self, frequencies: Array) -> Array:
        """Estimate by how much the rounding of both systems changes the gain at each frequency."""
        return np.asarray(self.parts[0].rounding(frequencies) + self.parts[1].rounding(frequencies))

    @cached_property
    def poles(self) -> Array:
        """The poles of both systems."""
        return np.concatenate([part.poles for part in self.parts])

    @cached_property
    def _residues(self) -> Array | None:
        first, second = (part._residues for part in self.parts)
        return None if first is None or second is None else np.concatenate([first, -second])


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
    least = min(response.shape[1:])
    if least > 2:
        return np.asarray(np.linalg.svd(response, compute_uv=False)[:, 0])
    sizes = np.abs(response)
    if response.shape[1:] == (1, 1):
        return np.asarray(sizes[:, 0, 0])
    # divided by the largest entry, no square underflows
    largest = sizes.max(axis=(1, 2))
    unit = np.where(largest > 0, largest, 1.0)
    squares = (sizes / unit[:, None, None]) ** 2
    if least == 1:  # a row or a column: the norm of its entries
        return np.asarray(largest * np.sqrt(squares.sum(axis=(1, 2))))
    # two rows or columns: the larger eigenvalue of their 2 x 2 matrix of inner products
    axis = 1 if response.shape[2] == 2 else 2
    first, second = np.moveaxis(response / unit[:, None, None], 3 - axis, 0)
    a, d = np.moveaxis(squares.sum(axis=axis), 1, 0)
    inner = np.abs((first.conj() * second).sum(axis=1))
    return np.asarray(largest * np.sqrt((a + d) / 2 + np.hypot((a - d) / 2, inner)))


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
