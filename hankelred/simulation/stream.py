"""Convolution of a stream, in blocks of any size, with the same result as one long convolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from .._util.arrays import Array
from .._util.sharing import Shared
from ..errors import HankelredError
from .convolve import apply_spectra, inverse_transform, transform
from .signals import as_input, as_kernel, as_output, check_overflow

#: Lags that are summed directly; a power of two.
_BASE = 64
#: The same for many channels, where the matrix of direct sums would be large.
_BASE_MANY_CHANNELS = 16
_MANY_CHANNELS = 64
#: A long block is processed in pieces of at least this many samples, also for a short kernel.
_LEAST_PIECE = 8192


class Convolver(Shared):
    """Convolve a stream with an impulse response, block by block, without delay.

    Parameters
    ----------
    markov : (n, p, m) or (n,) array_like
        Impulse response, real or complex; 1-D is accepted for one input and one output.

    Attributes
    ----------
    n_inputs, n_outputs : int
        m and p.

    Raises
    ------
    HankelredError
        ``markov`` has another shape, or holds NaN or Inf.

    Notes
    -----
    The concatenated outputs equal one :func:`convolve` of the concatenated inputs up to rounding, which is
    about 1e-16 times the largest of the last n samples (the error of the FFT, see there). The memory is
    constant, about 10 n (p m + p + m) numbers. Lags below 64 samples are summed directly; those from
    ``64 * 2**j`` to ``64 * 2**(j + 1)`` are added by one FFT each time ``64 * 2**j`` new samples are complete
    [1]_ [2]_, so that a sample costs O(log(n)^2) operations for any block size, and one push in every
    ``64 * 2**j`` samples takes longer than the others.

    Only one thread at a time can use a stream; a second one is refused.

    References
    ----------
    .. [1] W. G. Gardner, "Efficient convolution without input-output delay", J. Audio Eng. Soc. 43
       (1995) 127-136.
    .. [2] E. Hairer, C. Lubich, M. Schlichte, "Fast numerical solution of nonlinear Volterra
       convolution equations", SIAM J. Sci. Stat. Comput. 6 (1985) 532-541.

    Examples
    --------
    >>> import hankelred
    >>> stream = hankelred.Convolver([1.0, 0.5, 0.25])
    >>> stream.push([1.0, 0.0])
    array([1. , 0.5])
    >>> stream.push([0.0, 2.0])
    array([0.25, 2.  ])
    """

    def __init__(self, markov: npt.ArrayLike) -> None:
        super().__init__()
        self._kernel = as_kernel(markov)
        n, p, m = self._kernel.shape
        self.n_outputs, self.n_inputs = p, m
        self._base = _BASE if p * m <= _MANY_CHANNELS else _BASE_MANY_CHANNELS
        self._piece = max(self._base, 1 << (max(n, _LEAST_PIECE) - 1).bit_length())
        # The matrix from one block of inputs to the outputs of the same block and the next:
        # near[l, o, c, i] = kernel[l - c, o, i].
        L = self._base
        padded = np.zeros((3 * L - 1, p, m), dtype=self._kernel.dtype)
        first = self._kernel[:L]
        padded[L - 1 : L - 1 + len(first)] = first
        windows = sliding_window_view(padded, L, axis=0)[..., ::-1]
        self._near = windows.transpose(0, 1, 3, 2).reshape(2 * L * p, L * m)
        self._spectra: dict[tuple[int, int, bool], Array] = {}
        self.reset()

    def reset(self) -> None:
        """Discard all input so far: the next push starts from zero input."""
        dtype = self._kernel.dtype
        with self._exclusive():
            # The position within a piece, the inputs of the piece up to there, and the contributions of all
            # inputs so far to the outputs of this piece and the next.
            self._position: int = 0
            self._inputs = np.zeros((self.n_inputs, self._piece), dtype=dtype)
            self._outputs = np.zeros((self.n_outputs, 2 * self._piece), dtype=dtype)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise HankelredError(
                "another thread is using this Convolver, and the blocks of a stream have an order: push from "
                "one thread, or use one Convolver per thread"
            )
        try:
            yield
        finally:
            self._lock.release()

    def push(self, u_block: npt.ArrayLike) -> Array:
        """Process the next input samples and return the outputs at the same samples.

        Parameters
        ----------
        u_block : (m, b) or (b,) array_like
            Any number of samples, also 0; 1-D is accepted for one input.

        Returns
        -------
        y_block : (p, b) or (b,) ndarray
            Outputs at these samples. Complex if the kernel or any input since :meth:`reset` is.

        Raises
        ------
        HankelredError
            Wrong number of channels, NaN or Inf, or another thread at the same time (the input is then
            ignored and the stream can be continued); an output too large for double precision.
        """
        u, is_1d = as_input(u_block, self.n_inputs, owner="the impulse response")
        with self._exclusive():
            y = self._outputs_of(u)
        check_overflow(y, "the output")
        return as_output(y, is_1d)

    def _outputs_of(self, u: Array) -> Array:
        if np.iscomplexobj(u) and not np.iscomplexobj(self._inputs):
            self._inputs = self._inputs.astype(complex)
            self._outputs = self._outputs.astype(complex)
        y = np.empty((self.n_outputs, u.shape[1]), dtype=self._outputs.dtype)
        done = 0
        with np.errstate(over="ignore", invalid="ignore"):
            while done < u.shape[1]:
                start = self._position
                count = self._next_count(u.shape[1] - done)
                self._inputs[:, start : start + count] = u[:, done : done + count]
                if count > self._base:
                    self._add(start, count, lag=0)
                else:
                    self._add_near(start, count)
                y[:, done : done + count] = self._outputs[:, start : start + count]
                done += count
                self._advance(count)
        return y

    def _next_count(self, available: int) -> int:
        """Return how many samples to process at once: up to the next block, or an aligned power of two."""
        inside = self._position % self._base
        if inside or available < self._base:
            return min(self._base - inside, available)
        aligned = self._position & -self._position or self._piece
        return min(aligned, 1 << (available.bit_length() - 1))

    def _add_near(self, start: int, count: int) -> None:
        """Add the direct sums over lags shorter than a block, from the newest samples."""
        L, p, m = self._base, self.n_outputs, self.n_inputs
        inside = start % L
        block = start - inside
        stop = inside + count
        inputs = self._inputs[:, block : block + stop].T.ravel()
        last = stop if stop < L else 2 * L
        sums = self._near[inside * p : last * p, : stop * m] @ inputs
        self._outputs[:, start : block + last] += sums.reshape(last - inside, p).T

    def _add(self, start: int, count: int, lag: int) -> None:
        """Add lags from ``lag`` to ``lag + count``, from ``count`` inputs, through one FFT."""
        if lag >= len(self._kernel) or 0 in self._kernel.shape:
            return
        real = not np.iscomplexobj(self._inputs)
        spectra = self._spectra.get((lag, count, real))
        if spectra is None:
            part = self._kernel[lag : lag + count].transpose(1, 2, 0)
            spectra = transform(np.ascontiguousarray(part), 2 * count, real)
            self._spectra[lag, count, real] = spectra
        inputs = transform(self._inputs[:, start : start + count], 2 * count, real)
        products = apply_spectra(spectra, inputs)
        sums = inverse_transform(products, 2 * count, real)
        self._outputs[:, start + lag : start + lag + 2 * count] += sums

    def _advance(self, count: int) -> None:
        self._position += count
        if self._position % self._base == 0:
            # Add the contributions of the blocks of this length or longer that are now complete.
            length = max(count, self._base)
            while length < self._piece and self._position % length == 0:
                self._add(self._position - length, length, lag=length)
                length *= 2
        if self._position == self._piece:
            self._position = 0
            self._outputs[:, : self._piece] = self._outputs[:, self._piece :]
            self._outputs[:, self._piece :] = 0.0
