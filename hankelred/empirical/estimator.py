"""One-pass, mergeable estimate of a Gramian from a stream of states, stored as a factor."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from .._util.checks import as_positive_integer, real_number, require_finite
from .._util.reading import Archive
from .._util.sharing import Shared
from .._util.writing import replace_file
from ..errors import FileFormatError, HankelredError, in_one_line
from ..simulation.signals import as_numbers
from .triangular_factor import TriangularFactor

_FORMAT = 1
#: The largest sample magnitude: larger ones could overflow in the factor.
_MAX_SAMPLE = 1e300
#: Bytes of samples that are read at a time.
_BLOCK_BYTES = 2**25


class GramianEstimator(Shared):
    r"""Streaming estimate of the Gramian :math:`\frac1N\sum_k x_k x_k^H` of a sequence of states.

    It takes one pass over the data and O(n^2) memory, whatever the length of the stream. Estimators
    updated in different processes can be merged in any order; the result equals that of one estimator
    updated with all samples. The estimate is stored as a triangular factor updated by QR, and products
    are never formed: directions 1e-12 times weaker than the strongest are still accurate in
    :meth:`factor`, while in any sum of ``x x^H`` they are lost to rounding.

    Threads may share an estimator: updates run one after the other, in an order that matters only with
    forgetting, and results are read between complete updates.

    Parameters
    ----------
    n_states : int
        Length of a state, at least 1.
    forgetting : float, optional
        Factor in (0, 1] by which the weight of every older sample is multiplied at each new one; with 1
        (default) all have the same weight. With ``f < 1`` the estimate is that of about the last
        ``1 / (1 - f)`` samples.

    Attributes
    ----------
    n_states : int
    forgetting : float
    n_samples : int
        Number of samples.
    weight : float
        Sum of the weights of the samples, which is ``n_samples`` without forgetting.

    Raises
    ------
    HankelredError
        A parameter is out of range.

    References
    ----------
    G. H. Golub, C. F. Van Loan, *Matrix Computations*, 4th ed., 2013, section 6.5 (updating a QR
    factorisation).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> first, second = rng.standard_normal((2, 3, 500))
    >>> a, b = GramianEstimator(3), GramianEstimator(3)
    >>> a.update(first)
    >>> b.update(second)
    >>> both = np.concatenate([first, second], axis=1)
    >>> bool(np.allclose(a.merge(b).gramian(), both @ both.T / 1000))
    True
    """

    def __init__(self, n_states: int, *, forgetting: float = 1.0) -> None:
        states = as_positive_integer(n_states)
        if states is None:
            raise HankelredError(f"n_states must be a whole number of at least 1, got {n_states!r}")
        factor = real_number(forgetting, lambda f: 0 < f <= 1, "forgetting must be in (0, 1]", HankelredError)
        super().__init__()
        self.n_states = states
        self.forgetting = factor
        self.n_samples = 0
        self.weight = 0.0
        self._factor = TriangularFactor(self.n_states)

    def __repr__(self) -> str:
        return (
            f"GramianEstimator(n_states={self.n_states}, forgetting={self.forgetting:g}, "
            f"n_samples={self.n_samples})"
        )

    def update(self, states: npt.ArrayLike) -> None:
        """Add samples to the estimate.

        Parameters
        ----------
        states : array_like (n_states, samples)
            Time last; real or complex. A 1-D array is accepted for one state. An empty array changes nothing.
            An array that is not in memory (a memory map, an HDF5 or zarr array, a dask array) is read in
            blocks of samples of 32 MiB, or of one chunk where that is larger.

        Raises
        ------
        HankelredError
            The shape is wrong, or a sample is NaN, Inf or larger than 1e300; then no sample is added.

        Examples
        --------
        >>> estimator = GramianEstimator(2)
        >>> estimator.update([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
        >>> estimator.gramian() * 3
        array([[2., 0.],
               [0., 4.]])
        """
        blocks = _blocks(states)
        first = next(blocks)
        second = next(blocks, None)
        if second is None:
            self._push(self._checked(first, 0))
            return
        # the estimate changes only after all blocks have been read without an error
        added = GramianEstimator(self.n_states, forgetting=self.forgetting)
        start = 0
        for block in itertools.chain((first, second), blocks):
            x = self._checked(block, start)
            added._push(x)
            start += x.shape[1]
        triangle, samples, _ = added._content()
        self._push_weighted(triangle, samples)

    def _checked(self, states: npt.ArrayLike, start: int) -> Array:
        """Check samples, the first of which has the number `start`."""
        x = as_numbers(states, "states")
        if x.ndim == 1 and self.n_states == 1:
            x = x[None, :]
        if x.ndim != 2 or x.shape[0] != self.n_states:
            raise HankelredError(
                f"states must have shape ({self.n_states}, samples), time last, got {x.shape}"
                + ("; transpose them" if x.ndim == 2 and x.shape[1] == self.n_states else "")
            )
        x = x.astype(complex if np.iscomplexobj(x) else float)
        requirement = "every sample must be finite: leave out or repair the bad samples"
        require_finite(x, "states", HankelredError, requirement, start)
        if np.abs(x).max(initial=0.0) > _MAX_SAMPLE:
            raise HankelredError(
                f"the samples are as large as {np.abs(x).max():.1e}; the largest that can be summed is "
                f"{_MAX_SAMPLE:.0e}: choose other units"
            )
        return x

    def _push(self, x: Array) -> None:
        samples = x.shape[1]
        if samples == 0:
            return
        if self.forgetting < 1:
            x = x * self.forgetting ** (np.arange(samples - 1, -1, -1) / 2)
        self._push_weighted(x.conj().T, samples)

    def _push_weighted(self, rows: Array, samples: int) -> None:
        """Add rows in which so many samples have their weights already."""
        with self._lock:
            if self.forgetting < 1:
                remains = self.forgetting**samples
                self._factor.scale(remains**0.5)
                self.weight = self.weight * remains + (1 - remains) / (1 - self.forgetting)
            else:
                self.weight += samples
            self._factor.push(rows)
            self.n_samples += samples

    def _content(self) -> tuple[Array, int, float]:
        """Return triangle, number of samples and weight, read together."""
        with self._lock:
            return self._factor.triangle, self.n_samples, self.weight

    def merge(self, other: GramianEstimator) -> GramianEstimator:
        """Return a new estimator of the samples of both.

        Neither of the two is changed. With forgetting, the two are treated as parallel streams that end
        at the same time, so that merging is associative and commutative.

        Parameters
        ----------
        other : GramianEstimator
            An estimator with the same number of states and the same forgetting factor.

        Raises
        ------
        HankelredError
            The numbers of states or the forgetting factors differ.

        Examples
        --------
        >>> a, b = GramianEstimator(1), GramianEstimator(1)
        >>> a.update([1.0, 1.0])
        >>> b.update([3.0])
        >>> a.merge(b).gramian() * 3
        array([[11.]])
        """
        return GramianEstimator.merge_all([self, other])

    @staticmethod
    def merge_all(estimators: Iterable[GramianEstimator]) -> GramianEstimator:
        """Return a new estimator of the samples of all, as those of the processes of a parallel run.

        Parameters
        ----------
        estimators : iterable of GramianEstimator
            At least one, with the same number of states and the same forgetting factor; as in :meth:`merge`.
            They are read one after the other, so that a generator may load them from files.

        Raises
        ------
        HankelredError
            There is none, or the numbers of states or the forgetting factors differ.

        Examples
        --------
        >>> shards = [GramianEstimator(1) for _ in range(3)]
        >>> for k, shard in enumerate(shards):
        ...     shard.update([float(k)])
        >>> GramianEstimator.merge_all(shards).gramian() * 3
        array([[5.]])
        """
        merged: GramianEstimator | None = None
        for part in estimators:
            if not isinstance(part, GramianEstimator):
                raise HankelredError(f"can only merge a GramianEstimator, got {type(part).__name__}")
            if merged is None:
                merged = GramianEstimator(part.n_states, forgetting=part.forgetting)
            for name in ("n_states", "forgetting"):
                value, other_value = getattr(merged, name), getattr(part, name)
                if value != other_value:
                    raise HankelredError(f"cannot merge estimators with {name} {value} and {other_value}")
            triangle, samples, weight = part._content()
            merged._factor.push(triangle)
            merged.n_samples += samples
            merged.weight += weight
        if merged is None:
            raise HankelredError("there is no estimator to merge; pass at least one")
        return merged

    def factor(self) -> Array:
        """Return L with W = L L^H, without forming W.

        Returns
        -------
        ndarray (n_states, k)
            Lower triangular; with fewer samples than states, k is the number of samples.

        Raises
        ------
        HankelredError
            No samples yet.

        Examples
        --------
        >>> estimator = GramianEstimator(2)
        >>> estimator.update([[3e-200, 0.0], [0.0, 1e200]])
        >>> np.abs(estimator.factor()) * 2**0.5
        array([[3.e-200, 0.e+000],
               [0.e+000, 1.e+200]])
        """
        triangle, samples, weight = self._content()
        if samples == 0:
            raise HankelredError("the estimator has no samples yet; call update(states) first")
        L: Array = triangle.conj().T / weight**0.5
        return L

    def gramian(self) -> Array:
        """Return the weighted mean of x x^H.

        Returns
        -------
        ndarray (n_states, n_states)
            Hermitian, positive semidefinite.

        Raises
        ------
        HankelredError
            No samples yet, or states so large that their squares overflow.

        Examples
        --------
        >>> estimator = GramianEstimator(1)
        >>> estimator.update([1.0, 2.0, 2.0])
        >>> estimator.gramian()
        array([[3.]])
        """
        L = self.factor()
        with np.errstate(over="ignore", invalid="ignore"):
            W: Array = L @ L.conj().T
        if not np.all(np.isfinite(W)):
            raise HankelredError(
                f"the squares of states up to {np.abs(L).max():.1e} overflow; use factor(), which forms "
                "no squares"
            )
        return W

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the estimate to an .npz file atomically: a reader gets the old file or the new one.

        Parameters
        ----------
        path : path
            Written under exactly this name.

        Raises
        ------
        OSError
            The file cannot be written; then there is no partial file.

        Examples
        --------
        >>> import tempfile
        >>> estimator = GramianEstimator(1)
        >>> estimator.update([2.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     estimator.save(folder + "/shard-0.npz")
        ...     GramianEstimator.load(folder + "/shard-0.npz").gramian()
        array([[4.]])
        """
        triangle, samples, weight = self._content()
        content: dict[str, Any] = {
            "format": _FORMAT,
            "n_states": self.n_states,
            "forgetting": self.forgetting,
            "n_samples": samples,
            "weight": weight,
            "triangle": triangle,
        }

        def write(name: str) -> None:
            with open(name, "wb") as file:  # with a name instead of a file, savez may add an ending
                np.savez(file, **content)

        replace_file(Path(path), write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GramianEstimator:
        """Read an estimate written by :meth:`save`; it can be updated and merged further.

        Parameters
        ----------
        path : path

        Raises
        ------
        FileFormatError
            The file was not written by :meth:`save`, or is damaged.
        FileNotFoundError
            There is no such file.

        Examples
        --------
        >>> GramianEstimator.load("no/such/file.npz")
        Traceback (most recent call last):
        ...
        FileNotFoundError: [Errno 2] No such file or directory: 'no/such/file.npz'
        """
        with open(path, "rb") as file:
            try:
                return cls._restored(Archive(file))
            except Exception as error:  # zipfile and numpy raise many types of errors on damaged files
                # a zip file ends with its directory; a file without one is of another format, or truncated
                detail = "no .npz file" if "not a zip file" in str(error) else in_one_line(error, 120)
                raise FileFormatError(
                    f"{in_one_line(os.fspath(path))} is not a saved GramianEstimator ({detail}); write it "
                    "with save()"
                ) from error

    @classmethod
    def _restored(cls, data: Mapping[str, Array]) -> GramianEstimator:
        if int(data["format"]) != _FORMAT:
            raise FileFormatError(f"format {int(data['format'])}, this version reads {_FORMAT}")
        loaded = cls(int(data["n_states"]), forgetting=float(data["forgetting"]))
        triangle, loaded.n_samples, loaded.weight = (
            data["triangle"],
            int(data["n_samples"]),
            float(data["weight"]),
        )
        fits = triangle.shape[1:] == (loaded.n_states,) and triangle.dtype.kind in "fc"
        # no entry of the factor exceeds the largest sample times the square root of their number
        max_entry = _MAX_SAMPLE * max(loaded.n_samples, 0) ** 0.5
        fits = fits and bool(np.all(np.abs(triangle) <= max_entry))
        if not fits or loaded.n_samples < 0 or not 0 <= loaded.weight < float("inf"):
            raise FileFormatError(f"a factor of shape {triangle.shape} does not fit {loaded.n_states} states")
        loaded._factor.push(triangle)
        return loaded


def _blocks(states: Any) -> Iterator[Any]:
    """Yield an array in memory as it is, and any other in blocks of samples."""
    shape, dtype = getattr(states, "shape", None), getattr(states, "dtype", None)
    # tables of pandas are in memory, and are not indexed by position
    lazy = isinstance(states, np.memmap) or not (isinstance(states, np.ndarray) or hasattr(states, "iloc"))
    if not (lazy and isinstance(shape, tuple) and len(shape) == 2 and hasattr(states, "__getitem__")):
        yield states
        return
    itemsize = getattr(dtype, "itemsize", 8)
    width = max(1, _BLOCK_BYTES // max(1, int(shape[0]) * itemsize))
    if shape[1] <= width:
        yield states
        return
    chunks = getattr(states, "chunks", None)
    if isinstance(chunks, tuple) and len(chunks) == 2:
        # whole chunks: each would otherwise be read, or computed, several times
        chunk = max(chunks[1]) if isinstance(chunks[1], tuple) else int(chunks[1])
        width = max(chunk, width // chunk * chunk)
    for start in range(0, int(shape[1]), width):
        yield states[:, start : start + width]
