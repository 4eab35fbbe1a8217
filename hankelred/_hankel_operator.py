"""Block Hankel matrices by FFT products, and their leading singular triplets without ever forming them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.fft as sfft
import scipy.linalg as sla

Array: TypeAlias = npt.NDArray[Any]

#: Norm of a Hankel matrix of white noise over the root mean square of its singular values: it grows as the
#: square root of the logarithm of the size (Meckes, Electronic Communications in Probability 12, 2007), and
#: is
#: 2.1 to 2.6 for 100 to 10,000 rows.
NOISE_NORM = 3.0

#: Up to this many rows or columns a dense singular value decomposition is as fast and simpler.
DENSE_SIZE = 500

_MAX_STEPS = 12
_OVERSAMPLING = 12
_PROBES = 4


class HankelOperator:
    """The block Hankel matrix ``H[i, j] = h[i + j + 1]`` of Markov parameters h, (rows p, columns m).

    Both numbers of blocks are ``len(markov) // 2``, so that an even number of parameters is used up; the
    last of an odd number has no place in a square matrix.

    Parameters
    ----------
    markov : ndarray (n, p, m)
        ``markov[0]`` is the direct feedthrough and has no place in H.
    """

    def __init__(self, markov: Array) -> None:
        self.blocks = markov.shape[0] // 2
        self.p, self.m = markov.shape[1:]
        self.shape = (self.blocks * self.p, self.blocks * self.m)
        self.sequence = markov[1 : 2 * self.blocks]
        self.dtype = np.dtype(complex if np.iscomplexobj(markov) else float)
        self._length = sfft.next_fast_len(3 * self.blocks, real=self.dtype.kind == "f")
        self._spectrum = self._fft(self.sequence)

    def _fft(self, x: Array) -> Array:
        return np.asarray((sfft.rfft if self.dtype.kind == "f" else sfft.fft)(x, self._length, axis=0))

    def _ifft(self, x: Array) -> Array:
        return np.asarray((sfft.irfft if self.dtype.kind == "f" else sfft.ifft)(x, self._length, axis=0))

    def dot(self, x: Array) -> Array:
        """H @ x, x (columns m, k)."""
        # H is a Toeplitz matrix with its columns turned round: a product is a stretch of a convolution.
        b = self.blocks
        turned = self._fft(x.reshape(b, self.m, -1)[::-1])
        out = self._ifft(self._spectrum @ turned)[b - 1 : 2 * b - 1]
        return out.reshape(self.shape[0], -1)

    def adjoint_dot(self, x: Array) -> Array:
        """H^H @ x, x (rows p, k)."""
        b = self.blocks
        # the adjoint is the block Hankel matrix of the adjoint blocks; conj(H^T conj(x)) needs no second
        # spectrum
        turned = self._fft(x.reshape(b, self.p, -1)[::-1].conj())
        out = self._ifft(self._spectrum.transpose(0, 2, 1) @ turned)[b - 1 : 2 * b - 1]
        return out.conj().reshape(self.shape[1], -1)

    def dense(self) -> Array:
        """Return the matrix itself."""
        index = np.arange(self.blocks)[:, None] + np.arange(self.blocks)[None]
        return self.sequence[index].transpose(0, 2, 1, 3).reshape(self.shape)


@dataclass(frozen=True)
class HankelSVD:
    """Leading singular triplets, and how much was left out."""

    left: Array
    singular_values: Array
    right: Array
    #: root of the mean square of the singular values that were not computed (0 where all were)
    rest: float
    #: numerical uncertainty of any of the singular values
    rounding: float


def leading_svd(operator: HankelOperator, order: int | None, tol: float | None) -> HankelSVD:
    """Find the singular triplets that matter: all above `tol`, above the noise, and at least `order` of them.

    Small matrices are decomposed densely. Large ones by randomised subspace iteration (Halko, Martinsson
    and Tropp, SIAM Review 53, 2011), the block doubling until the remainder is at the level of noise or
    rounding. The random numbers are seeded: the same data gives the same result.
    """
    small = min(operator.shape)
    if max(operator.shape) <= DENSE_SIZE:
        left, s, right = sla.svd(operator.dense(), full_matrices=False)
        return HankelSVD(left, s, right.conj().T, 0.0, max(operator.shape) * np.finfo(float).eps * _top(s))
    width = 32 if order is None else order + _OVERSAMPLING
    rng = np.random.default_rng(0)
    while True:
        if 2 * width >= small:
            left, s, right = sla.svd(operator.dense(), full_matrices=False)
            return HankelSVD(
                left, s, right.conj().T, 0.0, max(operator.shape) * np.finfo(float).eps * _top(s)
            )
        found = _randomised(operator, width, rng)
        if order is None:
            floor = max(found.rounding, NOISE_NORM * found.rest)
            # Halfway down the block the values are converged; those after it only have to be small.
            settled = found.singular_values[width // 2] <= floor
            if tol is not None:
                settled = settled or found.singular_values[width // 2] * 2 * small <= tol
            if not settled:
                width *= 2
                continue
        return found


def _randomised(operator: HankelOperator, width: int, rng: np.random.Generator) -> HankelSVD:
    def noise(rows: int, columns: int) -> Array:
        x = rng.standard_normal((rows, columns))
        return x + 1j * rng.standard_normal((rows, columns)) if operator.dtype.kind == "c" else x

    basis = _orthonormal(operator.dot(noise(operator.shape[1], width)))
    s = np.full(width, np.inf)
    # An FFT product errs by a few eps of the norm of H, whatever the direction.
    relative = 32 * np.finfo(float).eps * np.log2(operator.shape[0])
    for step in range(_MAX_STEPS):
        # orthonormalising between the two products keeps small singular values from drowning
        image = operator.adjoint_dot(basis)
        before, s = s, sla.svdvals(image, check_finite=False)
        # The block's last values never settle in noise; the others converge as the square of their vectors.
        if step >= 2 and np.abs(s - before)[: width - _OVERSAMPLING].max() <= relative * _top(s):
            break
        basis = _orthonormal(operator.dot(_orthonormal(image)))
    right, s, left = sla.svd(operator.adjoint_dot(basis), full_matrices=False, check_finite=False)
    left = basis @ left.conj().T
    probes = noise(operator.shape[1], _PROBES)
    image = operator.dot(probes)
    image -= basis @ (basis.conj().T @ image)
    scale = 2.0 if operator.dtype.kind == "c" else 1.0
    left_over = float(np.sqrt(np.sum(np.abs(image) ** 2) / (_PROBES * scale)))
    rest = left_over / np.sqrt(max(min(operator.shape) - width, 1))
    return HankelSVD(left, s, right, rest, relative * _top(s))


def _orthonormal(x: Array) -> Array:
    return np.asarray(sla.qr(x, mode="economic", overwrite_a=True, check_finite=False)[0])


def _top(s: Array) -> float:
    return float(s[0]) if s.size else 0.0
