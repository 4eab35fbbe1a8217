"""Responses of finished experiments in a folder, from which an interrupted call resumes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._util.arrays import Array
from .._util.reading import Archive
from .._util.writing import check_writable, write_atomically
from ..errors import FileFormatError, HankelredError, in_one_line

_FORMAT = 2
#: A response computed again agrees with the stored one to this, relative to the range of each row, and to
#: rounding, relative to the largest value; on another machine bits may differ.
_AGREEMENT, _ROUNDING = 1e-6, 1e-11


class Checkpoint:
    """A folder with the responses of finished experiments, one file for each round.

    Parameters
    ----------
    folder : path
        It is created if it does not exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            self.folder = Path(folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        except (TypeError, OSError) as error:
            reason = getattr(error, "strerror", None) or f"got {folder!r}"
            raise HankelredError(f"checkpoint must be a folder that can be written: {reason}") from None
        check_writable(self.folder / "checkpoint.npz")

    def part(
        self,
        trajectory: str,
        n_outputs: int,
        experiments: Iterable[tuple[str, Array, Array]],
        count: int,
        witness: Array,
    ) -> CheckpointPart:
        """Return the responses of one kind of `count` experiments.

        Parameters
        ----------
        trajectory : str
            "states" or "outputs".
        n_outputs : int
        experiments : iterable of (name, x0, u)
        count : int
            Number of experiments.
        witness : ndarray (rows, T)
            Response of the simulator to a run that perturbs all that the experiments perturb one by one. The
            same run of another simulator gives other values. It has the shape of the other responses.
        """
        digest = hashlib.sha256(f"{_FORMAT} {trajectory} {n_outputs}".encode())
        for name, x0, u in experiments:
            digest.update(name.encode())
            for values in (x0, u):
                digest.update(np.ascontiguousarray(values, dtype=float).tobytes())
        return CheckpointPart(self.folder, trajectory, digest.hexdigest(), count, witness)


class CheckpointPart:
    """The responses of one kind of a call, in order from the first experiment on."""

    def __init__(self, folder: Path, trajectory: str, identity: str, count: int, witness: Array) -> None:
        self._folder, self._trajectory, self._identity = folder, trajectory, identity
        self._count, self._witness = count, witness

    def read(self) -> list[Array]:
        """Return the responses of the finished experiments.

        Raises
        ------
        HankelredError
            They belong to other experiments, or to another simulator.
        FileFormatError
            A file is damaged.
        """
        responses: list[Array] = []
        while len(responses) < self._count and (path := self._file(len(responses))).exists():
            responses.extend(self._read(path, self._count - len(responses)))
        return responses

    def append(self, first: int, responses: Sequence[Array]) -> None:
        """Write the responses from experiment `first` on."""
        # each file has the witness: one of them may be removed, or be left over from an earlier call
        content: dict[str, Any] = {
            "identity": self._identity,
            "witness": self._witness,
            "responses": np.stack(responses),
        }

        def write(name: str) -> None:
            with open(name, "wb") as file:  # with a name instead of a file, savez may add an ending
                np.savez(file, **content)

        write_atomically(self._file(first), write)

    def _check_simulator(self, stored: Array) -> None:
        """Raise unless the witness is the stored one: the simulator may have changed."""
        computed = self._witness
        # a row may be much smaller than another, and the response much smaller than the steady state
        ranges = np.abs(computed - computed[:, :1]).max(axis=1, initial=0.0)
        allowed = _AGREEMENT * ranges + _ROUNDING * float(np.abs(computed).max(initial=0.0))
        if np.any(np.abs(computed - stored) > allowed[:, None]):
            raise HankelredError(
                f"the responses in {in_one_line(self._folder)} are those of another simulator: a run that "
                "perturbs all states or inputs at once gives other values now; use another folder, or "
                "remove this one"
            )

    def _file(self, first: int) -> Path:
        return self._folder / f"{self._trajectory}-{first:06d}.npz"

    def _read(self, path: Path, remaining: int) -> Array:
        try:
            with open(path, "rb") as file:
                content = Archive(file)
                identity = str(content["identity"])
                if identity == self._identity:
                    witness = _checked(content["witness"], self._witness.shape)
                    responses = _checked(content["responses"], (None, *self._witness.shape))
                    if not 1 <= len(responses) <= remaining:
                        raise ValueError(f"{len(responses)} responses, expected from 1 to {remaining}")
        except Exception as error:  # zipfile and numpy raise many types of errors on damaged files
            raise FileFormatError(
                f"{in_one_line(path)} cannot be read ({in_one_line(error, 120)}); remove it to have "
                "its experiments run again"
            ) from error
        if identity != self._identity:
            raise HankelredError(
                f"{in_one_line(self._folder)} has the responses of other experiments (another excitation, "
                "grid, scale or operating point); use another folder, or remove this one"
            )
        self._check_simulator(witness)
        return responses


def _checked(array: Array, shape: tuple[int | None, ...]) -> Array:
    """Return an array of finite numbers of this shape; None stands for any length."""
    fits = array.ndim == len(shape) and all(
        size in (None, given) for size, given in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"an array of shape {array.shape}, expected {shape}")
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"an array of type {array.dtype}, expected numbers")
    if not np.all(np.isfinite(array)):
        raise ValueError("values that are not finite")
    return array
