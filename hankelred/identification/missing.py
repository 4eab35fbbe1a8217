"""Missing samples (NaN): records are cut where inputs are missing, outputs are bridged by the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .._util.arrays import Array
from ..errors import HankelredError
from .records import RecordedData

#: Shorter pieces between missing inputs are left out: their initial states use up most of their information.
_SHORTEST_PIECE = 20


@dataclass(frozen=True)
class MissingSamples:
    """Records without missing inputs, outputs interpolated, and where outputs were missing."""

    data: RecordedData
    #: (p, T) for each record
    masks: tuple[Array, ...]
    #: samples that were left out because an input was missing
    n_left_out: int

    @property
    def n_missing(self) -> int:
        """Number of missing values of outputs."""
        return sum(int(mask.sum()) for mask in self.masks)

    def bridged_by(self, outputs: list[Array]) -> RecordedData:
        """Fill the gaps with simulated outputs, moved to meet the measured ones at both ends."""
        filled = []
        for y, simulated, mask in zip(self.data.outputs, outputs, self.masks, strict=True):
            filled.append(simulated + _interpolated(y - simulated, mask))
        return replace(self.data, outputs=tuple(filled))


def without_missing(data: RecordedData) -> MissingSamples:
    """Cut records where an input is missing, and interpolate missing outputs.

    Raises
    ------
    HankelredError
        No piece is long enough, or an output is missing throughout one.
    """
    us: list[Array] = []
    ys: list[Array] = []
    total = 0
    for u, y in zip(data.inputs, data.outputs, strict=True):
        total += u.shape[1]
        present = np.isfinite(u).all(axis=0)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], present, [False]]).astype(int)))
        for start, stop in edges.reshape(-1, 2):
            # nothing is known before the first and after the last output
            known = np.flatnonzero(np.isfinite(y[:, start:stop]).all(axis=0))
            if known.size and known[-1] + 1 - known[0] >= _SHORTEST_PIECE:
                piece = slice(start + known[0], start + known[-1] + 1)
                us.append(u[:, piece])
                ys.append(y[:, piece])
    if not us:
        raise HankelredError(
            f"no piece of {_SHORTEST_PIECE} samples is without missing inputs and has outputs; there is "
            "nothing to identify a model from"
        )
    masks = tuple(~np.isfinite(y) for y in ys)
    filled = tuple(_interpolated(y, mask) for y, mask in zip(ys, masks, strict=True))
    left_out = total - sum(u.shape[1] for u in us)
    return MissingSamples(replace(data, inputs=tuple(us), outputs=filled), masks, left_out)


def _interpolated(y: Array, mask: Array) -> Array:
    out = y.copy()
    index = np.arange(y.shape[1])
    for channel, missing in zip(out, mask, strict=True):
        channel[missing] = np.interp(index[missing], index[~missing], channel[~missing])
    return out
