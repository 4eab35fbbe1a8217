"""Modal truncation: the poles with the largest contribution to the response are kept unchanged."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from ..._util.arrays import EPS, Array, Quadruple
from ...gramians.stability import is_stable_pole, matrix_size
from ...models.block_diagonal import block_diagonal_bases
from ...models.frequency_response import FrequencyResponse
from ...models.linear_model import LinearModel
from ...models.projection import project_exactly
from ...models.scaling import scale_system
from ..methods import BalancedSource
from ..norms import critical_frequencies, hinf_norm, no_direct_term


class Modal(BalancedSource):
    """Truncation of the block-diagonal form, whose blocks are poles and conjugate pairs.

    The singular values of this method are half the largest gain of each block, once for each of its states,
    so that twice their sum over the truncated blocks bounds the error.

    Sources: Davison, IEEE Trans. Autom. Control 11 (1966); Varga, Proc. CDC (1995).
    """

    method = "modal"
    certified = False

    def __init__(self, model: LinearModel, stability_tol: float):
        self.full = model
        real, unitary = model.in_real_states()
        self._back = None if unitary is None else unitary.conj().T
        self._real = real
        system = scale_system(real.A, real.B, real.C)
        self.unit, self._system = system.gain, system
        right, left, parts = block_diagonal_bases(system.A) if real.n_states else (real.A, real.A, [])
        size, gains = matrix_size(system.A), []
        tol = model.tolerance(stability_tol, size)
        exact = project_exactly(system, left, right)
        none = no_direct_term(model.D.shape)
        for part in parts:
            block = exact.A[part, part], exact.B[part], exact.C[:, part]
            poles = np.linalg.eigvals(block[0])
            stable = np.all(is_stable_pole(poles, size, discrete=model.is_discrete, tol=tol))
            gains.append(hinf_norm(*block, none, discrete=model.is_discrete)[0] if stable else math.inf)
        falling = sorted(range(len(parts)), key=lambda k: -gains[k])
        self._blocks = [parts[k] for k in falling]
        self._gains = np.array([gains[k] for k in falling])
        self._right, self._left, self._exact = right, left, exact
        widths = np.array([part.stop - part.start for part in self._blocks], dtype=int)
        self.hankel_singular_values = np.repeat(self._gains * self.unit / 2, widths)
        finite = np.isfinite(self.hankel_singular_values)
        largest = float(self.hankel_singular_values[finite].max(initial=0.0))
        self.noise_floor = model.n_states * EPS * largest
        self.unstable_order = int(np.count_nonzero(~finite))
        self.largest_order = model.n_states
        self.solver, self.residual = "block-diagonal form", 0.0

    def attainable(self, order: int) -> tuple[int, str]:
        """Return the largest order up to this one that splits no block."""
        kept = sum(self._blocks[k].stop - self._blocks[k].start for k in self._kept(order))
        return kept, "a conjugate pair or a cluster of poles can only be truncated as a whole"

    def truncate(self, order: int) -> tuple[LinearModel, Array | None, Array | None]:
        """Return the model of the blocks with the largest gains, up to the order."""
        kept = [self._blocks[k] for k in self._kept(order)]
        columns = np.concatenate([np.arange(b.start, b.stop) for b in kept]) if kept else np.zeros(0, int)
        r, half = columns.size, 2.0 ** ((self._system.input_exponent + self._system.output_exponent) // 2)
        A, start = np.zeros((r, r), self._exact.A.dtype), 0
        for block in kept:
            stop = start + block.stop - block.start
            A[start:stop, start:stop] = self._exact.A[block, block]
            start = stop
        model = self._real.with_matrices(
            A, self._exact.B[columns] * half, self._exact.C[:, columns] * half, self._real.D
        )
        scale = 2.0 ** ((self._system.input_exponent - self._system.output_exponent) // 2)
        left = self._system.unscale_left(self._left[:, columns]) / scale
        right = self._system.unscale_right(self._right[:, columns]) * scale
        if self._back is not None:
            left, right = self._back @ left, self._back @ right
        return model, left.conj(), right

    def bound(self, order: int) -> float:
        """Return the sum of the largest gains of the truncated blocks."""
        kept = self._kept(order)
        truncated = [gain for k, gain in enumerate(self._gains) if k not in kept]
        return self.unit * (float(np.sum(truncated)) + self._form_error)

    def certified_bound(self, bound: float, reduced: LinearModel | None) -> float:
        """Return the sum of the largest gains of the truncated blocks."""
        return math.inf if reduced is None else self.bound(reduced.n_states)

    def order_within(self, tol: float | None, rtol: float | None) -> int | None:
        """Return the smallest order whose bound is within a tolerance."""
        if tol is None and rtol is None:
            return None
        level = self.tolerance(tol, rtol)
        for order in range(self.unstable_order, self.largest_order):
            if self.attainable(order)[0] == order and self.bound(order) <= level:
                return order
        return self.largest_order

    def level(self, order: int) -> float:
        """Return the bound of an order."""
        return self.bound(order)

    def error(self, reduced: LinearModel, norm: str) -> float:
        """Return the norm of full minus reduced, without the unstable blocks, which are equal."""
        return self.error_without_balancing(reduced, norm)

    def compared(self, reduced: LinearModel) -> tuple[tuple[Array, Array, Array], Quadruple, float]:
        """Return the stable parts; the others are equal."""
        system, k = self._real, self.unstable_order
        if k:
            kept = [b for b, gain in zip(self._blocks, self._gains, strict=True) if np.isfinite(gain)]
            columns = np.concatenate([np.arange(b.start, b.stop) for b in kept]) if kept else np.zeros(0, int)
            half = math.sqrt(self.unit)
            full = (
                self._exact.A[np.ix_(columns, columns)],
                self._exact.B[columns] * half,
                self._exact.C[:, columns] * half,
            )
        else:
            full = system.A, system.B, system.C
        stable = reduced.A[k:, k:], reduced.B[k:], reduced.C[:, k:], no_direct_term(reduced.D.shape)
        return full, stable, 1.0

    @cached_property
    def _form_error(self) -> float:
        """Estimate of the error of the block-diagonal form, in scaled units."""
        system, blocks = self._system, np.zeros_like(self._exact.A)
        for block in self._blocks:
            blocks[block, block] = self._exact.A[block, block]
        discrete = self.full.is_discrete
        w = critical_frequencies(system.A, discrete=discrete)
        w = w[np.isfinite(w)]
        none = np.zeros(self.full.D.shape)
        first = FrequencyResponse(system.A, system.B, system.C, none, discrete=discrete)(w)
        second = FrequencyResponse(blocks, self._exact.B, self._exact.C, none, discrete=discrete)(w)
        with np.errstate(invalid="ignore"):  # both are infinite at a marginal pole
            difference = np.abs(first - second)
        return 2 * float(
            np.linalg.norm(difference[np.isfinite(difference).all(axis=(1, 2))], axis=(1, 2)).max(initial=0.0)
        )

    def _kept(self, order: int) -> list[int]:
        kept, used = [], 0
        for k, block in enumerate(self._blocks):
            if used + block.stop - block.start <= order:
                kept.append(k)
                used += block.stop - block.start
        return kept
