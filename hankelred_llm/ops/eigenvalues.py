"""Eigenvalues as logarithms, their powers in float64, and modes as real channels.

The recurrence runs on real channels: the real parts of the conjugate pairs, their imaginary parts, the real
modes. Sums that need full precision run on modes, in complex128 and float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Eigenvalues:
    """Eigenvalues as logarithms, in float64.

    Parameters
    ----------
    log_decay : Tensor, (modes,)
    phase : Tensor, (pairs,)
        Of the first modes, which are pairs; empty when all are real.
    """

    log_decay: Tensor
    phase: Tensor

    @classmethod
    def of(cls, log_decay: Tensor, phase: Tensor | None) -> Eigenvalues:
        """Convert parameters of any precision; without a phase all modes are real."""
        # clamped, so that k * log_decay is not NaN for -inf and k = 0; exp of both is 0 for k > 0
        log_decay = log_decay.double().clamp(min=-1e30)
        return cls(log_decay, log_decay[:0] if phase is None else phase.double())

    @property
    def pairs(self) -> int:
        """Number of conjugate pairs."""
        return self.phase.shape[0]

    def powers(self, exponents: Tensor) -> list[Tensor]:
        """Return ``exp(k lambda)``, never powers of a rounded a: complex (pairs, k), real (real modes, k).

        As in `to_modes`, a kind that is empty is left out.
        """
        radius = (self.log_decay[:, None] * exponents).exp()
        if not self.pairs:
            return [radius]
        pair = torch.polar(radius[: self.pairs], self.phase[:, None] * exponents)
        return [pair] if self.pairs == radius.shape[0] else [pair, radius[self.pairs :]]

    def logs(self) -> list[Tensor]:
        """Return the logarithms, complex (pairs,) and real (real modes,); an empty kind is left out."""
        if not self.pairs:
            return [self.log_decay]
        pair = torch.complex(self.log_decay[: self.pairs], self.phase)
        return [pair] if self.pairs == len(self.log_decay) else [pair, self.log_decay[self.pairs :]]

    def conjugate(self) -> Eigenvalues:
        """Return the eigenvalues of the adjoint recurrence."""
        return Eigenvalues(self.log_decay, -self.phase)


@dataclass(frozen=True)
class Powers:
    """The powers of the eigenvalues for chunks of a length: exponents 0 to that length.

    Parameters
    ----------
    pairs : int
    exact : list of Tensor, complex (pairs, length + 1) and real (real modes, length + 1)
        In float64.
    channels : list of Tensor, (modes, length + 1)
        The same in the dtype of the computation: real parts, imaginary parts, real modes.
    """

    pairs: int
    exact: list[Tensor]
    channels: list[Tensor]

    @classmethod
    def of(cls, modes: Eigenvalues, length: int, dtype: torch.dtype) -> Powers:
        """Compute them."""
        exact = modes.powers(torch.arange(length + 1, device=modes.log_decay.device, dtype=torch.float64))
        # contiguous copies: the parts of a complex tensor are views with stride two
        return cls(modes.pairs, exact, [channel.to(dtype).contiguous() for channel in to_channels(exact)])


def to_modes(channels: Tensor, pairs: int) -> list[Tensor]:
    """Turn (batch, channels, ...) into complex128 pairs and float64 real modes.

    A kind that is empty is left out; without any channel, there is an empty tensor of real modes.
    """
    channels = channels.double()
    if not pairs:
        return [channels]
    pair = torch.complex(channels[:, :pairs], channels[:, pairs : 2 * pairs])
    return [pair] if channels.shape[1] == 2 * pairs else [pair, channels[:, 2 * pairs :]]


def to_channels(modes: Iterable[Tensor]) -> list[Tensor]:
    """Undo `to_modes` without concatenating: real parts, imaginary parts, real modes."""
    return [part for mode in modes for part in ((mode.real, mode.imag) if mode.is_complex() else (mode,))]


def add_product(into: Sequence[Tensor], a: Sequence[Tensor], s: Sequence[Tensor], pairs: int) -> None:
    """Add the product of two sets of channels to a third, in place."""
    if pairs:
        into[0].addcmul_(a[0], s[0]).addcmul_(a[1], s[1], value=-1)
        into[1].addcmul_(a[0], s[1]).addcmul_(a[1], s[0])
    if len(into) != 2:
        into[-1].addcmul_(a[-1], s[-1])
