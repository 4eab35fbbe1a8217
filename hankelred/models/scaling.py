"""Scaling of states, inputs and outputs by powers of two, which undoes bad units without a rounding error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .._util.arrays import Array
from ..errors import ModelError

#: A chain of states with rates far from one (a companion matrix in rad/s) needs over a hundred.
MAX_SWEEPS = 300

#: Powers of two by which rows of B, or columns of C, differ before groups of states are looked at.
GROUP_SPREAD = 64


@dataclass(frozen=True)
class Scaled:
    """A system in units of its states, inputs and outputs that suit double precision.

    ``x = states * z`` for the model's states x (``states @ z`` where it is a matrix, a unitary one), and
    the model's own B and C, in these states, are ``2**input_exponent * B`` and ``2**output_exponent * C``.
    """

    A: Array
    B: Array
    C: Array
    states: Array
    input_exponent: int
    output_exponent: int

    @property
    def gain(self) -> float:
        """The model's gains divided by those of this system."""
        return 2.0 ** (self.input_exponent + self.output_exponent)

    def right(self, basis: Array) -> Array:
        """Take columns of states to the model's states."""
        return self.states @ basis if self.states.ndim == 2 else self.states[:, None] * basis

    def left(self, basis: Array) -> Array:
        """Take columns that products with states are formed with to the model's states."""
        return self.states @ basis if self.states.ndim == 2 else basis / self.states[:, None]

    def into_right(self, basis: Array) -> Array:
        """Take columns of the model's states to these states."""
        return self.states.conj().T @ basis if self.states.ndim == 2 else basis / self.states[:, None]

    def into_left(self, basis: Array) -> Array:
        """Take columns that products with the model's states are formed with to these states."""
        return self.states.conj().T @ basis if self.states.ndim == 2 else basis * self.states[:, None]


def scaled(A: Array, B: Array, C: Array) -> Scaled:
    """Bring B and C to entries of about one, and the states to units that balance rows and columns."""
    input_exponent, output_exponent = gain_exponent(B), gain_exponent(C)
    B, C = B * 2.0**-input_exponent, C * 2.0**-output_exponent
    scales = equilibrate(A, B, C)
    return Scaled(
        A * scales / scales[:, None], B / scales[:, None], C * scales, scales, input_exponent, output_exponent
    )


def gain_exponent(M: Array) -> int:
    """Return the even power of two nearest the largest entry, so that its square root is a power too."""
    size = float(np.abs(M).max(initial=0.0))
    return 2 * round(np.log2(size) / 2) if size > 0 else 0


def in_range(values: Array, exponent: int, what: str) -> Array:
    """Return values in the model's own units, 2**exponent times larger; refuse what double precision lacks.

    Raises
    ------
    ModelError
        An entry would be infinite.
    """
    with np.errstate(over="ignore"):
        out: Array = values * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
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
    and the column of [A; C], without the diagonal, get about equal norms. The result hardly depends
    on the units the states came in, which is what makes everything after it independent of them.

    Source: Osborne, J. ACM 7 (1960); Varga, SLICOT TB01ID.
    """
    n = A.shape[0]
    magnitude = np.abs(A)
    np.fill_diagonal(magnitude, 0.0)
    units = _Units(magnitude, _sizes(B), _sizes(C.T), np.zeros(n, dtype=int))
    rows = np.hypot(_sizes(magnitude), units.reach)
    columns = np.hypot(_sizes(magnitude.T), units.sight)
    usable = (rows > 0) & (columns > 0)
    if np.any(np.abs(np.log2(rows[usable]) - np.log2(columns[usable])) > 4):
        units.balance_states()
    if max(_spread(units.reach), _spread(units.sight)) > GROUP_SPREAD:
        # States coupled to each other more strongly than to the ports cannot move one by one.
        for _ in range(MAX_SWEEPS):
            if not units.balance_groups():
                break
            units.balance_states()
    scales: Array = np.ldexp(1.0, units.exponents)
    return scales


@dataclass(frozen=True)
class _Units:
    """Sizes of the entries of A, rows of B and columns of C, and the scales taken out of them so far."""

    magnitude: Array
    reach: Array
    sight: Array
    exponents: Array

    def balance_states(self) -> None:
        """Balance the states one after the other until none has to move by a power of two."""
        for _ in range(MAX_SWEEPS):
            moved = False
            for i in range(self.reach.size):
                row = np.hypot(np.sqrt(self.magnitude[i] @ self.magnitude[i]), self.reach[i])
                column = np.hypot(np.sqrt(self.magnitude[:, i] @ self.magnitude[:, i]), self.sight[i])
                moved |= self._move(slice(i, i + 1), row, column) != 0
            if not moved:
                return

    def balance_groups(self) -> bool:
        """Balance groups of coupled states as a whole, and tell whether any moved by more than a little."""
        far = False
        for group in _groups(np.maximum(self.magnitude, self.magnitude.T)):
            others = np.ones(self.reach.size, dtype=bool)
            others[group] = False
            row = np.hypot(_size(self.magnitude[group][:, others]), _size(self.reach[group]))
            column = np.hypot(_size(self.magnitude[others][:, group]), _size(self.sight[group]))
            far |= abs(self._move(group, row, column)) > 2
        return far

    def _move(self, states: slice | Array, row: float, column: float) -> int:
        if row == 0 or column == 0:
            return 0
        shift = int(np.rint(0.5 * (np.log2(row) - np.log2(column))))
        if shift != 0:
            factor = 2.0**shift
            self.magnitude[states] /= factor
            self.reach[states] /= factor
            self.magnitude[:, states] *= factor
            self.sight[states] *= factor
            self.exponents[states] += shift
        return shift


def _groups(coupling: Array) -> list[Array]:
    """Return groups of coupled states, from the most strongly coupled pair to every connected component.

    These are the merges of single-linkage clustering: the edges of a maximum spanning tree in falling order.
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
    """Return by how many powers of two the sizes that are not zero differ."""
    nonzero = sizes[sizes > 0]
    return float(np.log2(nonzero.max()) - np.log2(nonzero.min())) if nonzero.size else 0.0


def _size(M: Array) -> float:
    return float(_sizes(M.reshape(1, -1))[0])


def _sizes(M: Array) -> Array:
    """Return the norms of the rows, safe from underflow and overflow of squares."""
    largest = np.abs(M).max(axis=1, initial=0.0)
    unit = np.where(largest > 0, largest, 1.0)
    return largest * np.linalg.norm(M / unit[:, None], axis=1)


def equal_norms(reach: Array, sight: Array) -> Array:
    """Return the scales that give rows of B and columns of C the same norm, 1 where either is zero."""
    usable = (reach > 0) & (sight > 0)
    scale = np.ones(reach.size)
    scale[usable] = np.sqrt(sight[usable] / reach[usable])
    return scale


def balance(A: Array) -> tuple[Array, Array]:
    """Scale the states by A alone: ``A = diag(t) Ab diag(1 / t)``; return ``Ab, t``.

    Norms of Ab mean something for states in mixed units, also inside the matrix exponential.
    """
    if A.shape[0] == 0:
        return A, np.ones(0)
    # LAPACK's routine itself: scipy.linalg.matrix_balance casts the factors to integers and warns
    # when they are large.
    gebal = sla.get_lapack_funcs("gebal", (A,))
    scale = gebal(A, scale=1, permute=0)[3]
    # Within limits, so that scaling B, C and x cannot leave the range of double precision.
    scale = np.clip(scale, 2.0**-100, 2.0**100)
    return A * scale / scale[:, None], scale
