"""Block Hankel matrices by FFT products, and their leading singular triplets without ever forming them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft as sfft
import scipy.linalg as sla

from .._util.arrays import EPS, Array

#: Norm of a Hankel matrix of white noise over the root mean square of its singular values: it grows as the
#: square root of the logarithm of the size (Meckes, Electronic Communications in Probability 12, 2007), and
#: is 2.1 to 2.6 for 100 to 10,000 rows.
NOISE_NORM = 3.0

#: Up to this many rows or columns a dense singular value decomposition is as fast, and simpler.
DENSE_SIZE = 500

#: From this many pairs of an output and an input on, a product is a matrix product at each frequency instead
#: of a sum over pairs: 64 x 64 channels, 63 lags, 44 columns took 18 ms instead of 51, 16 x 16 channels 1.8
#: instead of 2.4; with fewer channels, or with thousands of lags, it is not faster.
MANY_CHANNELS = 256

_MAX_STEPS = 12
_OVERSAMPLING = 12
_PROBES = 4


class HankelOperator:
    """The block Hankel matrix ``H[i, j] = h[i + j + 1]`` of Markov parameters h, (rows p, columns m).

    Both numbers of blocks are ``len(markov) // 2``, so that all of an even number of parameters are used;
    of an odd number the last one is left out, since the matrix is square.

    Parameters
    ----------
    markov : ndarray (n, p, m)
        ``markov[0]`` is the direct feedthrough and does not enter H.
    """

    def __init__(self, markov: Array) -> None:
        self.blocks = markov.shape[0] // 2
        self.p, self.m = markov.shape[1:]
        self.shape = (self.blocks * self.p, self.blocks * self.m)
        self.sequence = markov[1 : 2 * self.blocks]
        self.dtype = np.dtype(complex if np.iscomplexobj(markov) else float)
        # A circular convolution of this length wraps around only onto entries that are not used.
        self._length = sfft.next_fast_len(2 * self.blocks - 1, real=self.dtype.kind == "f")
        self._spectrum = self._fft(self.sequence.transpose(1, 2, 0))

    def _fft(self, x: Array) -> Array:
        return np.asarray((sfft.rfft if self.dtype.kind == "f" else sfft.fft)(x, self._length))

    def _ifft(self, x: Array) -> Array:
        return np.asarray((sfft.irfft if self.dtype.kind == "f" else sfft.ifft)(x, self._length))

    def dot(self, x: Array) -> Array:
        """H @ x, x (columns m, k)."""
        return self._product(self._spectrum, x)

    def adjoint_dot(self, x: Array) -> Array:
        """H^H @ x, x (rows p, k)."""
        # conj(H^T conj(x)) needs no second spectrum: H^T is the block Hankel matrix of the transposed blocks
        return self._product(self._spectrum.transpose(1, 0, 2), x.conj()).conj()

    def _product(self, spectrum: Array, x: Array) -> Array:
        # H is a Toeplitz matrix with its columns reversed: a product is a section of a convolution.
        b, (rows, columns) = self.blocks, spectrum.shape[:2]
        reversed_spectrum = self._fft(
            np.ascontiguousarray(x.reshape(b, columns, -1)[::-1].transpose(1, 2, 0))
        )
        if rows * columns >= MANY_CHANNELS:
            # one matrix product at each frequency
            products = np.ascontiguousarray(spectrum.transpose(2, 0, 1)) @ np.ascontiguousarray(
                reversed_spectrum.transpose(2, 0, 1)
            )
            responses = self._ifft(np.ascontiguousarray(products.transpose(1, 2, 0)))
            return responses[..., b - 1 : 2 * b - 1].transpose(2, 0, 1).reshape(b * rows, -1)
        product = np.empty((b, rows, x.shape[1]), dtype=self.dtype)
        for i in range(rows):
            total = spectrum[i, 0] * reversed_spectrum[0]
            for j in range(1, columns):
                total += spectrum[i, j] * reversed_spectrum[j]
            product[:, i] = self._ifft(total)[:, b - 1 : 2 * b - 1].T
        return product.reshape(b * rows, -1)

    def dense(self) -> Array:
        """Return the matrix itself."""
        index = np.arange(self.blocks)[:, None] + np.arange(self.blocks)[None]
        return self.sequence[index].transpose(0, 2, 1, 3).reshape(self.shape)


@dataclass(frozen=True)
class HankelSVD:
    """Leading singular triplets, and the size of those that were not computed."""

    left: Array
    singular_values: Array
    right: Array
    #: root mean square of the singular values that were not computed (0 where all were)
    remainder: float
    #: numerical uncertainty of any of the singular values
    rounding: float


def leading_svd(operator: HankelOperator, order: int | None, tol: float | None) -> HankelSVD:
    """Return the singular triplets above `tol` and above the noise, and at least `order` of them.

    Small matrices are decomposed densely. Large ones by randomized subspace iteration (Halko, Martinsson
    and Tropp, SIAM Review 53, 2011), the block doubling until the remainder is at the level of noise or
    rounding. The random numbers have a fixed seed: the same data give the same result.
    """
    small = min(operator.shape)
    if max(operator.shape) <= DENSE_SIZE:
        return _by_dense_svd(operator)
    rng = np.random.default_rng(0)
    width = 32 if order is None else order + _OVERSAMPLING
    while 2 * width < small:
        basis = _orthonormal(operator.dot(_random_block(operator, operator.shape[1], width, rng)))
        if order is not None or _captures_spectrum(operator, basis, tol, rng):
            return _by_subspace_iteration(operator, basis, rng)
        width *= 2
    return _by_dense_svd(operator)


def _by_dense_svd(operator: HankelOperator) -> HankelSVD:
    left, s, right = _svd(operator.dense())
    return HankelSVD(left, s, right.conj().T, 0.0, max(operator.shape) * EPS * _largest_value(s))


def _captures_spectrum(
    operator: HankelOperator, basis: Array, tol: float | None, rng: np.random.Generator
) -> bool:
    """Whether the smallest values of a first basis are at the level of noise, rounding or `tol`."""
    s = sla.svdvals(operator.adjoint_dot(basis), check_finite=False)
    last = s[-_OVERSAMPLING]  # those after it are underestimated by a basis without power steps
    floor = max(_rounding(operator, s), NOISE_NORM * _remainder(operator, basis, rng))
    return bool(last <= floor or (tol is not None and 2 * min(operator.shape) * last <= tol))


def _rounding(operator: HankelOperator, s: Array) -> float:
    # The error of an FFT product is a few eps of the norm of H, in any direction.
    return float(32 * EPS * np.log2(operator.shape[0]) * _largest_value(s))


def _remainder(operator: HankelOperator, basis: Array, rng: np.random.Generator) -> float:
    """Estimate the root mean square of the singular values outside a basis, with random vectors."""
    image = operator.dot(_random_block(operator, operator.shape[1], _PROBES, rng))
    image -= basis @ (basis.conj().T @ image)
    scale = 2.0 if operator.dtype.kind == "c" else 1.0
    total = float(np.sum(np.abs(image) ** 2)) / (_PROBES * scale)
    return float(np.sqrt(total / max(min(operator.shape) - basis.shape[1], 1)))


def _random_block(operator: HankelOperator, rows: int, columns: int, rng: np.random.Generator) -> Array:
    x = rng.standard_normal((rows, columns))
    return x + 1j * rng.standard_normal((rows, columns)) if operator.dtype.kind == "c" else x


def _by_subspace_iteration(operator: HankelOperator, basis: Array, rng: np.random.Generator) -> HankelSVD:
    s = np.full(basis.shape[1], np.inf)
    for step in range(_MAX_STEPS):
        image = operator.adjoint_dot(basis)
        # In noise the last values of the block do not converge; the others converge quadratically in the
        # error of their vectors.
        previous, s = s, sla.svdvals(image, check_finite=False)
        if step and np.abs(s - previous)[: s.size - _OVERSAMPLING].max() <= _rounding(operator, s):
            break
        # orthonormalizing between the two products keeps small singular values from being lost to rounding
        basis = _orthonormal(operator.dot(_orthonormal(image)))
    right, s, left = _svd(operator.adjoint_dot(basis))
    return HankelSVD(
        basis @ left.conj().T, s, right, _remainder(operator, basis, rng), _rounding(operator, s)
    )


def _svd(x: Array) -> tuple[Array, Array, Array]:
    try:
        left, s, right = sla.svd(x, full_matrices=False, check_finite=False)
    except np.linalg.LinAlgError:
        # divide and conquer fails on some matrices of low rank; QR iteration does not, and is slower
        left, s, right = sla.svd(x, full_matrices=False, check_finite=False, lapack_driver="gesvd")
    return left, s, right


def _orthonormal(x: Array) -> Array:
    return np.asarray(sla.qr(x, mode="economic", overwrite_a=True, check_finite=False)[0])


def _largest_value(s: Array) -> float:
    return float(s[0]) if s.size else 0.0
