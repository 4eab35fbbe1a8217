"""Scaling of states, inputs and outputs by powers of two: it corrects bad units without rounding errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla
from scipy.linalg.lapack import dgebal

from .._util.arrays import Array, largest_entry
from ..errors import ModelError

#: Upper limit of passes over the states. A companion matrix in rad/s needs over a hundred.
MAX_SWEEPS = 300

#: States are scaled where the norm of a row and that of its column differ by more than this factor.
BALANCED = 16.0

#: Groups of states are scaled where rows of B, or columns of C, differ by more powers of two than this.
GROUP_SPREAD = 64

#: Powers of two below this one can be multiplied without overflow or loss of digits.
SAFE_EXPONENT = 500

#: Between these a norm computed from squares is accurate: those that underflow are negligible.
SAFE_NORMS = (1e-120, 1e150)


@dataclass(frozen=True)
class ScaledSystem:
    """A system whose states, inputs and outputs are scaled for double precision.

    ``x = states * z`` for the states x of the model and z of this system (``states @ z`` where ``states`` is
    a unitary matrix). In the states z, B and C of the model are ``2**input_exponent * B`` and
    ``2**output_exponent * C``.
    """

    A: Array
    B: Array
    C: Array
    states: Array
    input_exponent: int
    output_exponent: int

    @property
    def gain(self) -> float:
        """The gain of the model divided by that of this system."""
        return 2.0**self.exponent

    @property
    def exponent(self) -> int:
        """The gain as an exponent of two, which is even."""
        return self.input_exponent + self.output_exponent

    @property
    def nonzero_gain(self) -> float:
        """The gain, as a unit of errors.

        Raises
        ------
        ModelError
            It is below the smallest number of double precision.
        """
        if self.gain == 0:
            size = self.exponent * math.log10(2)
            raise ModelError(
                f"B times C is about 1e{size:.0f}, less than double precision holds: choose other units of "
                "the inputs or outputs"
            )
        return self.gain

    def in_units_of_the_model(self, B: Array, C: Array) -> tuple[Array, Array]:
        """Return B and C, in any states, times the root of the gain: C (s - A)^-1 B is then the model's."""
        half = self.exponent // 2
        return times_power_of_two(B, half), times_power_of_two(C, half)

    def unscale_right(self, basis: Array) -> Array:
        """Convert columns of a right basis, which are states, to the model's states."""
        return self.states @ basis if self.states.ndim == 2 else self.states[:, None] * basis

    def unscale_left(self, basis: Array) -> Array:
        """Convert columns of a left basis, which multiply states, to the model's states."""
        return self.states @ basis if self.states.ndim == 2 else basis / self.states[:, None]

    def scale_right(self, basis: Array) -> Array:
        """Convert columns of a right basis from the model's states to these states."""
        return self.states.conj().T @ basis if self.states.ndim == 2 else basis / self.states[:, None]

    def scale_left(self, basis: Array) -> Array:
        """Convert columns of a left basis from the model's states to these states."""
        return self.states.conj().T @ basis if self.states.ndim == 2 else basis * self.states[:, None]


def scale_system(A: Array, B: Array, C: Array) -> ScaledSystem:
    """Scale B and C to entries of about one, and the states so that rows and columns have equal norms."""
    input_exponent, output_exponent = gain_exponent(B), gain_exponent(C)
    B, C = times_power_of_two(B, -input_exponent), times_power_of_two(C, -output_exponent)
    scales = equilibrate(A, B, C)
    if (scales != 1).any():
        A, B, C = A * scales, B / scales[:, None], C * scales
        A /= scales[:, None]
    return ScaledSystem(A, B, C, scales, input_exponent, output_exponent)


def gain_exponent(M: Array) -> int:
    """Return the even exponent of the power of two nearest the largest entry; half of it is an integer."""
    size = largest_entry(M)
    return 2 * round(math.log2(size) / 2) if size > 0 else 0


def times_power_of_two(values: Array, exponent: int) -> Array:
    """Return values times 2**exponent, also where that would overflow; np.ldexp takes no complex numbers."""
    if exponent == 0:
        return values
    half = exponent // 2
    return np.asarray(values * 2.0**half * 2.0 ** (exponent - half))


def in_range(values: Array, exponent: int, what: str) -> Array:
    """Return values in the model's units, 2**exponent times larger; refuse those that overflow.

    Raises
    ------
    ModelError
        An entry would be infinite.
    """
    if abs(exponent) < SAFE_EXPONENT and largest_entry(values) < 2.0**SAFE_EXPONENT:
        return np.asarray(values * 2.0**exponent)
    with np.errstate(over="ignore"):
        out = times_power_of_two(values, exponent)
    if not np.all(np.isfinite(out)):
        size = np.log10(float(np.abs(values).max())) + exponent * np.log10(2)
        raise ModelError(
            f"the {what} reaches 1e{size:.0f}, more than double precision holds: choose other units of the "
            "inputs or outputs"
        )
    return out


def equilibrate(A: Array, B: Array, C: Array) -> Array:
    """Return the state scales s (powers of two) that balance rows against columns.

    With x = s z the system of z is (A s_j / s_i, B / s_i, C s_j): for each state the row of [A B]
    and the column of [A; C], without the diagonal, get about equal norms. The result, and everything
    computed from it, hardly depends on the units of the states.

    Source: Osborne, J. ACM 7 (1960); Varga, SLICOT TB01ID.
    """
    n = A.shape[0]
    if n == 0:
        return np.ones(0)
    magnitude = np.abs(A)
    magnitude.ravel(order="K")[:: n + 1] = 0.0
    input_norms, output_norms = _norms(np.abs(B), axis=1), _norms(np.abs(C), axis=0)
    scaling = _StateScaling(magnitude, input_norms, output_norms, np.zeros(n, dtype=int))
    if not _are_balanced(magnitude, input_norms, output_norms):
        scaling.balance_states()
    if max(_spread(scaling.input_norms), _spread(scaling.output_norms)) > GROUP_SPREAD:
        # States coupled to each other more strongly than to inputs and outputs cannot be scaled one by one.
        for _ in range(MAX_SWEEPS):
            if not scaling.balance_groups():
                break
            scaling.balance_states()
    scales: Array = np.ldexp(1.0, scaling.exponents)
    return scales


def _are_balanced(magnitude: Array, input_norms: Array, output_norms: Array) -> bool:
    """Return whether no state has a row and a column of too different norms."""
    squares = magnitude * magnitude
    rows = squares.sum(axis=1) + input_norms * input_norms
    columns = squares.sum(axis=0) + output_norms * output_norms
    low, high = min(rows.min(), columns.min()), max(rows.max(), columns.max())
    limit = BALANCED**2
    if not (SAFE_NORMS[0] ** 2 < low and high < SAFE_NORMS[1] ** 2):
        rows = np.hypot(_norms(magnitude, axis=1), input_norms)
        columns = np.hypot(_norms(magnitude, axis=0), output_norms)
        usable = (rows > 0) & (columns > 0)
        rows, columns, limit = rows[usable], columns[usable], BALANCED
    return not ((rows > limit * columns) | (columns > limit * rows)).any()


@dataclass(frozen=True)
class _StateScaling:
    """Sizes of the entries of A, rows of B and columns of C, and exponents of the scales applied so far."""

    magnitude: Array
    input_norms: Array
    output_norms: Array
    exponents: Array

    def balance_states(self) -> None:
        """Scale the states one after the other until none changes by a power of two.

        LAPACK's gebal does it for a matrix with one more state, which the outputs drive and which drives the
        inputs. Only ratios of its scales matter, so that of this state is divided out.
        """
        n = self.input_norms.size
        bordered = np.zeros((n + 1, n + 1), order="F")
        bordered[:n, :n] = self.magnitude
        bordered[:n, n], bordered[n, :n] = self.input_norms, self.output_norms
        balanced, _, _, scale, _ = dgebal(bordered, scale=1, permute=0, overwrite_a=1)
        exponents = np.frexp(scale)[1]
        self.magnitude[:] = balanced[:n, :n]
        self.input_norms[:] = balanced[:n, n] / scale[n]
        self.output_norms[:] = balanced[n, :n] * scale[n]
        self.exponents[:] += exponents[:n] - exponents[n]

    def balance_groups(self) -> bool:
        """Scale groups of coupled states together; return whether one changed by more than a factor of 4."""
        moved_far = False
        for group in _coupled_groups(np.maximum(self.magnitude, self.magnitude.T)):
            others = np.ones(self.input_norms.size, dtype=bool)
            others[group] = False
            row = np.hypot(_norm(self.magnitude[group][:, others]), _norm(self.input_norms[group]))
            column = np.hypot(_norm(self.magnitude[others][:, group]), _norm(self.output_norms[group]))
            moved_far |= abs(self._move(group, row, column)) > 2
        return moved_far

    def _move(self, states: slice | Array, row: float, column: float) -> int:
        if row == 0 or column == 0:
            return 0
        shift = int(np.rint(0.5 * (np.log2(row) - np.log2(column))))
        if shift != 0:
            factor = 2.0**shift
            self.magnitude[states] /= factor
            self.input_norms[states] /= factor
            self.magnitude[:, states] *= factor
            self.output_norms[states] *= factor
            self.exponents[states] += shift
        return shift


def _coupled_groups(coupling: Array) -> list[Array]:
    """Return groups of coupled states, from the most strongly coupled pair to each connected component.

    They are the merges of single-linkage clustering: edges of a maximum spanning tree in descending order.
    """
    n = coupling.shape[0]
    nearest, parent = coupling[0].copy(), np.zeros(n, dtype=int)
    outside = np.ones(n, dtype=bool)
    outside[0] = False
    edges = []
    for _ in range(n - 1):  # Prim
        k = int(np.argmax(np.where(outside, nearest, -1.0)))
        edges.append((float(nearest[k]), k, int(parent[k])))
        outside[k] = False
        closer = coupling[k] > nearest
        nearest[closer], parent[closer] = coupling[k][closer], k
    group_of = [np.array([i]) for i in range(n)]
    groups = []
    for weight, i, j in sorted(edges, reverse=True):
        if weight == 0:
            break
        merged = np.concatenate([group_of[i], group_of[j]])
        groups.append(merged)
        for k in merged:
            group_of[k] = merged
    return groups


def _spread(sizes: Array) -> float:
    """Return by how many powers of two the nonzero sizes differ."""
    smallest = float(sizes.min())
    if smallest == 0:
        sizes = sizes[sizes > 0]
        smallest = float(sizes.min(initial=math.inf))
    return math.log2(float(sizes.max())) - math.log2(smallest) if sizes.size else 0.0


def _norm(M: Array) -> float:
    return float(_norms(M.reshape(1, -1), axis=1)[0])


def _norms(M: Array, *, axis: int) -> Array:
    """Return the norms along an axis of a nonnegative matrix without underflow or overflow of squares."""
    if M.shape[axis] == 1:
        return M.ravel()
    norms: Array = np.sqrt(np.einsum("ij,ij->i" if axis == 1 else "ij,ij->j", M, M))
    if norms.size == 0 or (norms.min() > SAFE_NORMS[0] and norms.max() < SAFE_NORMS[1]):
        return norms
    largest = M.max(axis=axis, initial=0.0, keepdims=True)
    unit = np.where(largest > 0, largest, 1.0)
    return largest.ravel() * np.linalg.norm(M / unit, axis=axis)


def equalizing_scales(row_norms: Array, column_norms: Array) -> Array:
    """Return scales that give rows of B and columns of C the same norm; 1 where either is zero."""
    usable = (row_norms > 0) & (column_norms > 0)
    scale = np.ones(row_norms.size)
    scale[usable] = np.sqrt(column_norms[usable] / row_norms[usable])
    return scale


def balance_matrix(A: Array) -> tuple[Array, Array]:
    """Scale the states by A alone: ``A = diag(t) Ab diag(1 / t)``; return ``Ab, t``.

    Norms of Ab are meaningful also for states in mixed units, as in the matrix exponential.
    """
    if A.shape[0] == 0:
        return A, np.ones(0)
    # LAPACK's gebal is called directly: scipy.linalg.matrix_balance casts the factors to integers and
    # warns when they are large.
    gebal = sla.get_lapack_funcs("gebal", (A,))
    scale = gebal(A, scale=1, permute=0)[3]
    # Limit the factors, so that scaled B, C and x cannot overflow.
    scale = np.clip(scale, 2.0**-100, 2.0**100)
    return A * scale / scale[:, None], scale
