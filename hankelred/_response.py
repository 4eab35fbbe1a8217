"""The frequency response of a state space at many frequencies, prepared once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.linalg as sla
from scipy.linalg.lapack import ztrtrs

from ._arrays import Array

#: Up to this size all frequencies are solved in one batch; beyond, A is brought to Schur form once.
BATCH_SIZE = 40


class FrequencyResponse:
    """G(s) = C (s - A)^-1 B + D on the imaginary axis, or on the unit circle.

    Frequencies are angular: rad/s in continuous time, radians per sample in discrete time.
    """

    def __init__(self, A: Array, B: Array, C: Array, D: Array, *, discrete: bool):
        self.discrete = discrete
        self.D = D.astype(complex)
        self.n = A.shape[0]
        if self.n > BATCH_SIZE:
            kind = "complex" if np.iscomplexobj(A) else "real"
            T, Z = sla.schur(A, output=kind, check_finite=False)
            if kind == "real":
                T, Z = sla.rsf2csf(T, Z)
            self.A = np.asfortranarray(T)
            self.B, self.C = Z.conj().T @ B, C @ Z
        else:
            self.A, self.B, self.C = A.astype(complex), B.astype(complex), C.astype(complex)

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
            except np.linalg.LinAlgError:  # exactly on a pole: find out where
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
        out[finite] = np.linalg.svd(response[finite], compute_uv=False)[:, 0]
    return out
