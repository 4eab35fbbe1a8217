"""Sums over pairs of a gradient and an earlier input, whole or as a sketch, by lag."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]

#: Number of lags of the impulse response: those of a Hankel matrix of 32 x 32 blocks.
LAGS = 63

#: Blocks wider than this are sketched by so many random combinations of their channels.
SKETCH = 128

#: Dimension of the subspaces computed from the sketch: half of SKETCH keeps the remaining equations
#: well-conditioned.
RANGE = SKETCH // 2


class _Maps(NamedTuple):
    """Random maps of a sketch: the same for every collector of a width, so that sums can be added."""

    inputs: Tensor  # (d, SKETCH), orthonormal columns
    outputs: Tensor  # (d, SKETCH), orthonormal columns
    past: Tensor  # (SKETCH, RANGE) at each frequency: a random combination of the inputs of all lags
    future: Tensor  # (SKETCH, RANGE) at each frequency: a random combination of the gradients of all lags


@lru_cache(maxsize=4)
def _maps(width: int, dtype: torch.dtype, device: torch.device) -> _Maps:
    rng, size = np.random.default_rng(0), min(width, SKETCH)
    inputs, outputs = (
        torch.from_numpy(np.linalg.qr(rng.standard_normal((width, size)))[0]).to(device, dtype)
        for _ in range(2)
    )
    past, future = (
        torch.fft.rfft(
            torch.from_numpy(rng.standard_normal((LAGS, size, RANGE)) / math.sqrt(LAGS * RANGE)).to(
                device, dtype
            ),
            n=2 * (LAGS + 1),
            dim=0,
        )
        for _ in range(2)
    )
    return _Maps(inputs, outputs, past, future)


@dataclass
class Sums:
    """Sums over pairs (g_t, x_{t-k}).

    A narrow block keeps the whole gradient. A wide one keeps a one-pass sketch of it as a three-way tensor
    (Sun, Guo, Luo, Tropp and Udell, SIAM J. Math. Data Sci. 2, 2020): all lags between random combinations of
    channels, and for the ranges of inputs and outputs one random combination over all lags each.

    Attributes
    ----------
    core : Tensor, shape (LAGS, p, m)
    outputs, inputs : Tensor, shape (d, RANGE), or (d, 0) where nothing is sketched
    """

    core: Tensor
    outputs: Tensor
    inputs: Tensor

    @classmethod
    def zero(cls, width: int, device: torch.device) -> Sums:
        """Return sums over nothing."""
        size, rank = (width, 0) if width <= RANGE else (min(width, SKETCH), RANGE)
        shapes = (LAGS, size, size), (width, rank), (width, rank)
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, x: Tensor, g: Tensor, time_index: Tensor) -> None:
        """Add pairs of tokens (N, d); their time indices leave LAGS steps between sequences."""
        sketched = self.inputs.shape[1] > 0
        maps = _maps(x.shape[1], x.dtype, x.device) if sketched else None
        a, c = (x @ maps.inputs, g @ maps.outputs) if maps else (x, g)
        A, C = _spectra(a, c, time_index)
        core = torch.fft.irfft(torch.einsum("bfp,bfm->fpm", C, A.conj()), n=2 * (LAGS + 1), dim=0)
        self.core += core[:LAGS].to(self.core.device)
        if maps is None:
            return
        block = LAGS + 1
        z = torch.fft.irfft(torch.einsum("bfs,fsr->bfr", A, maps.past), n=2 * block, dim=1)[:, block:]
        self.outputs += (g.T @ z.reshape(-1, RANGE)[time_index]).to(self.core.device)
        # pieces of two blocks, of which the first is added to the block before
        w = torch.fft.irfft(torch.einsum("bfs,fsr->bfr", C, maps.future.conj()), n=2 * block, dim=1)
        w = w[:, block:] + torch.nn.functional.pad(w[1:, :block], (0, 0, 0, 0, 0, 1))
        self.inputs += (x.T @ w.reshape(-1, RANGE)[time_index]).to(self.core.device)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.core + other.core, self.outputs + other.outputs, self.inputs + other.inputs)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.core - other.core, self.outputs - other.outputs, self.inputs - other.inputs)

    def markov(self) -> tuple[Array, Array | None, Array | None]:
        """Return -dL/dH_k between subspaces, (LAGS, p, m), and the bases of these, (d, p) and (d, m)."""
        core, outputs, inputs = (m.cpu().numpy() for m in (self.core, self.outputs, self.inputs))
        if inputs.shape[1] == 0:
            return -core, None, None
        maps = _maps(inputs.shape[0], torch.float64, torch.device("cpu"))
        U, V = np.linalg.qr(outputs)[0], np.linalg.qr(inputs)[0]
        left = np.linalg.pinv(maps.outputs.numpy().T @ U)
        right = np.linalg.pinv(V.T @ maps.inputs.numpy())
        return -(left @ core @ right), U, V


def _spectra(a: Tensor, c: Tensor, time_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spectra, (blocks, LAGS + 2, channels), of blocks of c and of a in them and the block before.

    Over two blocks the circular correlation of the two equals the linear one at all lags up to LAGS.
    """
    block = LAGS + 1
    blocks = int(time_index[-1]) // block + 1
    streams = a.new_zeros(blocks + 1, block, a.shape[1]), c.new_zeros(blocks, block, c.shape[1])
    streams[0][1:].reshape(-1, a.shape[1]).index_copy_(0, time_index, a)
    streams[1].reshape(-1, c.shape[1]).index_copy_(0, time_index, c)
    A = torch.fft.rfft(torch.cat([streams[0][:-1], streams[0][1:]], 1), dim=1)
    C = torch.fft.rfft(torch.nn.functional.pad(streams[1], (0, 0, block, 0)), dim=1)
    return A, C
