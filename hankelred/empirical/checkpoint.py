"""Responses of experiments that are finished, in a folder, from which an interrupted call goes on."""

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

_FORMAT = 1
#: Responses computed again agree with the stored ones to this, relative to the largest; on another machine
#: bits may differ.
_AGREEMENT = 1e-6


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
        self, trajectory: str, n_outputs: int, experiments: Iterable[tuple[str, Array, Array]]
    ) -> CheckpointPart:
        """Return the responses of one kind, "states" or "outputs", of experiments given by name, x0 and u."""
        digest = hashlib.sha256(f"{_FORMAT} {trajectory} {n_outputs}".encode())
        for name, x0, u in experiments:
            digest.update(name.encode())
            for values in (x0, u):
                digest.update(np.ascontiguousarray(values, dtype=float).tobytes())
        return CheckpointPart(self.folder, trajectory, digest.hexdigest())


class CheckpointPart:
    """The responses of one kind of a call, in order from the first experiment on."""

    def __init__(self, folder: Path, trajectory: str, identity: str) -> None:
        self._folder, self._trajectory, self._identity = folder, trajectory, identity

    def read(self) -> list[Array]:
        """Return the responses of the finished experiments.

        Raises
        ------
        HankelredError
            They belong to other experiments.
        FileFormatError
            A file is damaged.
        """
        responses: list[Array] = []
        while (path := self._file(len(responses))).exists():
            responses.extend(self._read(path))
        return responses

    def append(self, first: int, responses: Sequence[Array]) -> None:
        """Write the responses from experiment `first` on."""
        content: dict[str, Any] = {"identity": self._identity, "responses": np.stack(responses)}

        def write(name: str) -> None:
            with open(name, "wb") as file:  # with a name instead of a file, savez may add an ending
                np.savez(file, **content)

        write_atomically(self._file(first), write)

    def check(self, computed: Array, stored: Array) -> None:
        """Raise unless a response computed again is the stored one: the simulator may have changed."""
        scale = max(float(np.abs(stored).max(initial=0.0)), float(np.abs(computed).max(initial=0.0)))
        if computed.shape != stored.shape or np.abs(computed - stored).max(initial=0.0) > _AGREEMENT * scale:
            raise HankelredError(
                f"the responses in {in_one_line(self._folder)} are those of another simulator: the first "
                "experiment gives other values now; use another folder, or remove this one"
            )

    def _file(self, first: int) -> Path:
        return self._folder / f"{self._trajectory}-{first:06d}.npz"

    def _read(self, path: Path) -> Array:
        try:
            with open(path, "rb") as file:
                content = Archive(file)
                identity, responses = str(content["identity"]), content["responses"]
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
        return responses
