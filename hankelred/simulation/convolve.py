"""Causal convolution of a kernel (n, p, m) with an input (m, T), on plain arrays.

Two methods: overlap-save with the FFT, and direct sums as products with Toeplitz matrices. Models, checks
and shapes are handled in :mod:`hankelred.simulation.simulate`.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .._util.arrays import Array

#: Samples of one row of the direct product, and columns of the input window processed at once.
_DIRECT_BLOCK = 64
_DIRECT_WINDOW = 1024
#: Working set of the FFT blocks that are processed at once, in bytes: about one second-level cache.
_CHUNK_BYTES = 1 << 20


def direct_is_faster(n: int, m: int, p: int) -> bool:
    """Return whether direct sums, which are more accurate, are as fast as FFTs (measured)."""
    return n <= _DIRECT_BLOCK and min(m, p) == 1


def convolve_direct(kernel: Array, u: Array) -> Array:
    """Sum ``kernel[i] @ u[:, k - i]`` directly; the rounding of an output is that of its own terms."""
    n, p, m = kernel.shape
    samples = u.shape[1]
    L = _DIRECT_BLOCK
    dtype = np.result_type(kernel, u)
    count = -(-samples // L)
    history = -(-(n - 1) // L) * L  # samples before a block that contribute to it
    padded = np.zeros((m, history + count * L), dtype=dtype)
    padded[:, history : history + samples] = u
    # toeplitz[w, o, i, l] = kernel[back + l - w, o, i]
    reversed_kernel = np.zeros((history + 2 * L - 1, p, m), dtype=dtype)
    reversed_kernel[L - 1 : L - 1 + n] = kernel
    toeplitz = sliding_window_view(reversed_kernel, L, axis=0)[::-1]
    y = np.zeros((p, count, L), dtype=dtype)
    rows = max(1, _CHUNK_BYTES // (8 * m * min(_DIRECT_WINDOW, history + L)))
    for left in range(0, history + L, _DIRECT_WINDOW):
        right = min(left + _DIRECT_WINDOW, history + L)
        width = right - left
        matrix = toeplitz[left:right].transpose(2, 0, 1, 3).reshape(m * width, p * L)
        inputs = sliding_window_view(padded[:, left:], width, axis=1)[:, ::L][:, :count]
        for first in range(0, count, rows):
            windows = inputs[:, first : first + rows].transpose(1, 0, 2).reshape(-1, m * width)
            y[:, first : first + rows] += (windows @ matrix).reshape(-1, p, L).transpose(1, 0, 2)
    return y.reshape(p, -1)[:, :samples]


def convolve_fft(kernel: Array, u: Array) -> Array:
    """Overlap-save: each input and output channel is transformed once, not once per pair."""
    n, p, m = kernel.shape
    samples = u.shape[1]
    dtype = np.result_type(kernel, u)
    real = not np.iscomplexobj(np.empty(0, dtype))
    size = _fft_size(n, samples, real)
    spectra = transform(np.ascontiguousarray(kernel.transpose(1, 2, 0)), size, real)
    if size >= samples + n - 1:
        products = apply_spectra(spectra, transform(u, size, real))
        return inverse_transform(products, size, real)[..., :samples]
    hop = size - n + 1
    count = -(-samples // hop)
    padded = np.zeros((m, count * hop + n - 1), dtype=dtype)
    padded[:, n - 1 : n - 1 + samples] = u
    windows = sliding_window_view(padded, size, axis=1)[:, ::hop]
    y = np.empty((p, count, hop), dtype=dtype)
    rows = max(1, _CHUNK_BYTES // (16 * size * (m + p)))
    for first in range(0, count, rows):
        inputs = transform(windows[:, first : first + rows], size, real)
        products = apply_spectra(spectra, inputs)
        y[:, first : first + rows] = inverse_transform(products, size, real)[..., n - 1 :]
    return y.reshape(p, -1)[:, :samples]


def transform(x: Array, size: int, real: bool) -> Array:
    """FFT along the last axis, padded to ``size``."""
    import scipy.fft as sfft  # slow to import, and of no use to the command line

    out: Array = sfft.rfft(x, size) if real else sfft.fft(x, size)
    return out


def inverse_transform(x: Array, size: int, real: bool) -> Array:
    """Inverse of :func:`transform`; overwrites ``x``."""
    import scipy.fft as sfft

    out: Array = sfft.irfft(x, size, overwrite_x=True) if real else sfft.ifft(x, size, overwrite_x=True)
    return out


def apply_spectra(spectra: Array, inputs: Array) -> Array:
    """``out[o] = sum_i spectra[o, i] * inputs[i]``; inputs may have axes between the first and the last."""
    p, m = spectra.shape[:2]
    if p == m == 1:
        inputs *= spectra[0, 0]
        return inputs
    out = np.zeros((p, *inputs.shape[1:]), dtype=inputs.dtype)
    term = np.empty(inputs.shape[1:], dtype=inputs.dtype)
    for o in range(p):
        for i in range(m):
            np.multiply(inputs[i], spectra[o, i], out=term)
            out[o] += term
    return out


def _fft_size(n: int, samples: int, real: bool) -> int:
    """Return the transform length with the least work: one transform, or blocks of a few kernel lengths."""
    import scipy.fft as sfft

    single_size = sfft.next_fast_len(samples + n - 1, real=real)
    best_size, least_work = single_size, float(single_size) * np.log2(single_size + 1.0)
    size = 1 << max(6, n.bit_length())
    while size < single_size:
        work = -(-samples // (size - n + 1)) * (size * np.log2(size) + 100.0)
        if work < least_work:
            best_size, least_work = size, work
        size *= 2
    return int(best_size)
