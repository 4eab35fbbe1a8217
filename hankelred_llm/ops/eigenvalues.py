"""Eigenvalues by their logarithm, their powers in float64, and modes as real columns.

The recurrence runs on real columns: the real parts of the conjugate pairs, their imaginary parts, the real
modes. Sums that must not lose digits run on modes, complex128 and float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Modes:
    """Eigenvalues by their logarithm, in float64.

    Parameters
    ----------
    log_decay : Tensor, (modes,)
    phase : Tensor, (pairs,)
        Belongs to the first modes; empty when all are real.
    """

    log_decay: Tensor
    phase: Tensor

    @classmethod
    def of(cls, log_decay: Tensor, phase: Tensor | None) -> Modes:
        """Take parameters of any precision; no phase means real modes."""
        # the clamp lets a log-decay of -inf take part in k * log_decay with k = 0; exp of both is 0 for k > 0
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

    def conjugate(self) -> Modes:
        """Return the modes of the adjoint recurrence."""
        return Modes(self.log_decay, -self.phase)


@dataclass(frozen=True)
class Powers:
    """The powers of the eigenvalues that chunks of a length need: 0 to that length.

    Parameters
    ----------
    pairs : int
    exact : list of Tensor, complex (pairs, length + 1) and real (real modes, length + 1)
        In float64.
    columns : list of Tensor, (modes, length + 1)
        The same in the type computed in: real parts, imaginary parts, real modes.
    """

    pairs: int
    exact: list[Tensor]
    columns: list[Tensor]

    @classmethod
    def of(cls, modes: Modes, length: int, dtype: torch.dtype) -> Powers:
        """Compute them."""
        exact = modes.powers(torch.arange(length + 1, device=modes.log_decay.device, dtype=torch.float64))
        # with strides of its own: the parts of a complex tensor are two apart
        return cls(modes.pairs, exact, [column.to(dtype).contiguous() for column in to_columns(exact)])


@dataclass(frozen=True)
class Masks:
    """Where a step is skipped and where the past is forgotten, both (batch, time) or None."""

    keep: Tensor | None
    reset: Tensor | None

    def adjoint(self) -> Masks:
        """Return the masks of the recurrence that runs backward: its step at t is the original's at t + 1."""
        keep, reset = self.keep, self.reset
        return Masks(
            None if keep is None else torch.cat([keep[:, 1:], torch.ones_like(keep[:, :1])], 1),
            None if reset is None else torch.cat([reset[:, 1:], torch.zeros_like(reset[:, :1])], 1),
        )


def to_modes(columns: Tensor, pairs: int) -> list[Tensor]:
    """Turn (batch, columns, ...) into complex128 pairs and float64 real modes.

    A kind that is empty is left out; without any column, there is an empty tensor of real modes.
    """
    columns = columns.double()
    if not pairs:
        return [columns]
    pair = torch.complex(columns[:, :pairs], columns[:, pairs : 2 * pairs])
    return [pair] if columns.shape[1] == 2 * pairs else [pair, columns[:, 2 * pairs :]]


def to_columns(modes: Iterable[Tensor]) -> list[Tensor]:
    """Undo `to_modes`, short of joining: real parts, imaginary parts, real modes."""
    return [part for mode in modes for part in ((mode.real, mode.imag) if mode.is_complex() else (mode,))]


def add_product(into: Sequence[Tensor], a: Sequence[Tensor], s: Sequence[Tensor], pairs: int) -> None:
    """Add the product of two sets of columns to a third, in place."""
    if pairs:
        into[0].addcmul_(a[0], s[0]).addcmul_(a[1], s[1], value=-1)
        into[1].addcmul_(a[0], s[1]).addcmul_(a[1], s[0])
    if len(into) != 2:
        into[-1].addcmul_(a[-1], s[-1])
